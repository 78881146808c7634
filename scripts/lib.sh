# shellcheck shell=bash
# Shared by the scripts beside it; sourced, never run.

# rustup's own folder is not in the PATH of a shell that was open before it was installed.
if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi

# The oldest compiler that builds this workspace (rust-version in Cargo.toml).
rust_wanted() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml; }

say() { printf '==> %s\n' "$*" >&2; }
loud() { printf '\n*** %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }

# A terminal to draw on, and nobody's build server.
is_interactive() { [ -t 1 ] && [ -z "${CI:-}" ]; }

# apt_install PACKAGE..: 0 when installed, 1 when this machine is not one where we can.
apt_install() {
    is_root && command -v apt-get >/dev/null || return 1
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    # The lists of a fresh image are empty; with no network the install below says so itself.
    apt-get update -qq || true
    apt-get install -y -qq --no-install-recommends "$@" >&2
}

# version_at_least HAVE WANTED
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
