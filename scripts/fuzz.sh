#!/usr/bin/env bash
# Fuzzes every decoder of what others write, one after the other.
#   fuzz.sh [--seconds N] [--keep] [TARGET..]
# N seconds each (60 by default). What is found stays in fuzz/artifacts; --keep takes what reaches new
# code into fuzz/corpus, as few and as small files as do, which the tests of the crates replay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

seconds=60 keep='' targets=()
while [ $# -gt 0 ]; do
    case "$1" in
        --seconds) seconds="${2:?a number of seconds}" && shift 2 ;;
        --keep) keep=1 && shift ;;
        -*) die "unknown option $1; there are --seconds N and --keep" ;;
        *) targets+=("$1") && shift ;;
    esac
done
if ! cargo fuzz --version >/dev/null 2>&1; then
    say "installing cargo-fuzz"
    cargo install --locked cargo-fuzz
fi
# The instrumentation is an unstable option of a stable compiler. No sanitizer: the code is safe Rust,
# and what is not has tests of its own.
export RUSTC_BOOTSTRAP=1
cd fuzz
if [ ${#targets[@]} = 0 ]; then mapfile -t targets < <(cargo fuzz list); fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do
    say "fuzzing $target for $seconds seconds"
    mkdir -p "corpus/$target" "$work/$target"
    # New inputs go to the first folder.
    cargo fuzz run -s none "$target" "$work/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=512 -print_final_stats=1
    if [ -n "$keep" ]; then
        mkdir -p "$work/merged"
        cargo fuzz run -s none "$target" "$work/merged" "corpus/$target" "$work/$target" -- \
            -merge=1 -max_len=512
        rm -rf "corpus/$target"
        mv "$work/merged" "corpus/$target"
    fi
done
say "nothing was found"
