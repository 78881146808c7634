#!/usr/bin/env bash
# Makes this machine able to build and test CDSync, as far as that can be done unasked.
# setup.sh [build|test]: `build` leaves out what only the tests use. Quick when nothing is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
purpose="${1:-test}"

packages=()
# Some crates compile C: the TLS provider, zstd and BLAKE3's assembler.
command -v cc >/dev/null || packages+=(gcc libc6-dev)
if [ "$purpose" = test ]; then
    # Tests of links of several sizes make network namespaces. Without it they are skipped.
    command -v ip >/dev/null || packages+=(iproute2)
    # Torture runs cut links with it.
    command -v nft >/dev/null || packages+=(nftables)
    # Tests of what other filesystems hold make images of them. Without these they are skipped.
    for tool in mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs mkfs.vfat:dosfstools; do
        [ -x "/sbin/${tool%:*}" ] || command -v "${tool%:*}" >/dev/null || packages+=("${tool#*:}")
    done
fi
if [ "${#packages[@]}" -gt 0 ] && ! apt_install "${packages[@]}"; then
    loud "please install: ${packages[*]} (here that needs root and apt-get, or your own way)"
fi
command -v cc >/dev/null || die "no C compiler (cc): install gcc or clang, then run this again"

wanted="$(rust_wanted)"
command -v cargo >/dev/null || die "cargo is not installed. CDSync needs Rust $wanted or newer:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
Then open a new shell and run this again."
have="$(rustc --version | awk '{ print $2 }')"
version_at_least "$have" "$wanted" ||
    die "rustc $have is too old: CDSync needs $wanted or newer (rustup update stable)"

if [ "$purpose" = test ]; then
    for tool in fmt clippy; do
        cargo "$tool" --version >/dev/null 2>&1 && continue
        component="${tool/fmt/rustfmt}"
        say "adding $component to the Rust toolchain"
        rustup component add "$component" >&2 ||
            die "cargo $tool is missing and rustup could not add it: install $component"
    done
fi
