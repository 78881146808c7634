#!/usr/bin/env bash
# Checks all crates against deny.toml. Installs cargo-deny first where it is missing, which compiles
# for some minutes; that is why this is not part of `make lint`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
scripts/setup.sh build

if ! cargo deny --version >/dev/null 2>&1; then
    say "installing cargo-deny"
    cargo install cargo-deny --locked --version 0.20.2
fi
cargo deny --locked check bans licenses sources
# The advisory database is fetched; without network that is no fault of the crates.
if ! cargo deny --locked fetch db; then
    loud "SKIPPED: advisories (the database could not be fetched)"
    exit 0
fi
cargo deny --locked --offline check advisories
