#!/usr/bin/env bash
# Many files from one agent to another, with times, memory of every process and a comparison:
# make million ARGS="--files 1000000 --shape one-folder". Both roots lie in memory.
# A ledger of many entries by itself, opened after a polite end and after a kill, with its times and
# memory: make million ARGS="--ledger 10000000".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1-}" = --ledger ]; then
  CDSYNC_ENTRIES="${2:?how many entries}" exec cargo test --locked --quiet --release --package cdsync-fs --lib -- \
    --ignored --exact --nocapture tables::size::a_large_ledger_opens_in_little_memory
fi
cargo build --locked --quiet --release --package cdsync-daemon --package cdsync-tests --bins
exec target/release/million "$@"
