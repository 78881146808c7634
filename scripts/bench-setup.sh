#!/usr/bin/env bash
# Installs what `make bench` compares with: rsync, lsyncd, Syncthing, inotify-tools, and the source
# of a Linux kernel as a real tree. Each one that cannot be had is left out of the comparison.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
apt_install iproute2 util-linux || die "needs root and apt-get; elsewhere install by hand:
  rsync lsyncd syncthing inotify-tools, and give a tree with make bench ARGS='--tree DIR'"

missing=()
for package in rsync lsyncd syncthing inotify-tools xz-utils python3; do
    apt-get install -y -qq --no-install-recommends "$package" >&2 || missing+=("$package")
done
# The tree of Debian 12 first, so that results of several machines compare; else the newest.
tree=linux-source-6.1
if ! apt-cache show "$tree" >/dev/null 2>&1; then
    tree="$(apt-cache search --names-only '^linux-source-[0-9.]+$' | awk '{ print $1 }' | sort -V | tail -n 1)"
fi
if [ -z "$tree" ] || ! apt-get install -y -qq --no-install-recommends "$tree" >&2; then
    missing+=(linux-source)
fi
[ "${#missing[@]}" = 0 ] || loud "could not be installed: ${missing[*]}"
say "done: make bench"
