#!/usr/bin/env bash
# Random work and random faults at a small cluster of real processes, for as long as wanted, then
# everything is compared: make torture ARGS="--seconds 3600 --seed 7 --filesystem ext4".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

is_root || loud "not root: only processes are killed and frozen; disks, links and queues stay well"
command -v nft >/dev/null || loud "no nft command (nftables): links are not cut"
cargo build --locked --quiet --package cdsync-daemon --package cdsync-tests --bins
exec target/debug/torture "$@"
