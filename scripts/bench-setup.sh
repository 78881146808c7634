#!/usr/bin/env bash
# Installs what `make bench` compares with: rsync, lsyncd, Syncthing, inotify-tools, and the source
# of a Linux kernel as a real tree, in two versions where Debian offers two. Each one that cannot be
# had is left out of the comparison.
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

# The oldest and the newest version on offer, for switching between them. The installed one is used
# where it lies; any other is kept as kernels/PACKAGE_VERSION.tar.xz.
fetch_version() {
    local version="$1" kept="$PWD/bench-results/kernels/${tree}_$1.tar.xz" work
    if [ -e "$kept" ] || [ "$(dpkg-query -W -f '${Version}' "$tree" 2>/dev/null)" = "$version" ]; then
        return
    fi
    say "fetching $tree $version"
    mkdir -p "${kept%/*}"
    work="$(mktemp -d "${kept%/*}/fetching.XXXXXX")"
    # As root: the user of apt's sandbox may not write here.
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$tree=$version") &&
        dpkg-deb --fsys-tarfile "$work"/*.deb | tar -xO "./usr/src/$tree.tar.xz" >"$work/tree" &&
        mv "$work/tree" "$kept" || missing+=("$tree=$version")
    rm -rf "$work"
}
if [ -n "$tree" ]; then
    versions="$(apt-cache madison "$tree" | awk '{ print $3 }' | sort -Vu)"
    for version in $(printf '%s\n' "$versions" | sed -n '1p;$p' | uniq); do
        fetch_version "$version"
    done
fi
[ "${#missing[@]}" = 0 ] || loud "could not be installed: ${missing[*]}"
say "done: make bench"
