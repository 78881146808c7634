#!/usr/bin/env bash
# Everything that must hold before a change goes in: format, clippy, all tests. Arguments go to
# `cargo test`. What this machine cannot do is said before anything is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
scripts/setup.sh test
scripts/abilities.sh

say "format"
cargo fmt --all --check
say "clippy"
cargo clippy --locked --workspace --all-targets -- -D warnings
if command -v python3 >/dev/null; then
    say "the independent comparer"
    python3 -B scripts/test_compare_trees.py
else
    loud "SKIPPED: tests of scripts/compare-trees.py (no python3)"
fi
# One compilation of the tests and the binary, in the profile that `make demo` uses too.
say "tests"
cargo test --locked --workspace --no-run "$@"
# Every wait of a test has a deadline of its own. Should one hang all the same where nobody looks on,
# the run ends, and its output names the test ("has been running for over 60 seconds").
limit="${CDSYNC_TEST_SECONDS:-3000}"
within=(timeout --signal=INT --kill-after=30 "$limit")
! is_interactive || within=()
status=0
"${within[@]}" cargo test --locked --workspace --no-fail-fast "$@" || status=$?
[ "$status" != 124 ] && [ "$status" != 137 ] ||
    die "the tests did not end within $limit s (CDSYNC_TEST_SECONDS): the output above names the one that ran"
exit "$status"
