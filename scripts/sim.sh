#!/usr/bin/env bash
# The state machines under simulated faults, by seed: make sim ARGS="--kind links --seed 7" replays
# one, make sim ARGS="--seeds 10000" tries many of each kind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --locked --quiet --profile sim --package cdsync-core --features sim --example sim
exec "${CARGO_TARGET_DIR:-target}/sim/examples/sim" "$@"
