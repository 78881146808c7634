#!/usr/bin/env bash
# Format, clippy and documentation with warnings as errors; the crates' licences and bans where
# cargo-deny is installed (`make lint-deps` installs it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
scripts/setup.sh test

say "format"
cargo fmt --all --check
say "clippy"
cargo clippy --locked --workspace --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet
if cargo deny --version >/dev/null 2>&1; then
    say "crates"
    cargo deny --locked --offline check bans licenses sources
else
    loud "SKIPPED: cargo-deny is not installed (make lint-deps installs it)"
fi
