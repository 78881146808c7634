#!/usr/bin/env bash
# Many files from one agent to another, with times, memory of every process and a comparison:
# make million ARGS="--files 1000000 --shape one-folder". Both roots lie in memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --locked --quiet --release --package cdsync-daemon --package cdsync-tests --bins
exec target/release/million "$@"
