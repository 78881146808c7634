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
exec cargo test --locked --workspace --no-fail-fast "$@"
