#!/usr/bin/env bash
# Says what the tests can use on this machine, and loudly what they will have to skip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

skips=0
skip() {
    skips=$((skips + 1))
    loud "SKIPPED on this machine: $*"
}

is_root || skip "whatever needs root: owners of files, fanotify, network namespaces"

# Marks on whole file systems: CAP_SYS_ADMIN and Linux 5.17 (FAN_RENAME).
fanotify_works() {
    command -v python3 >/dev/null || return 2
    python3 - <<'PYTHON'
import ctypes, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
# FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME_TARGET, O_RDONLY | O_LARGEFILE
group = libc.fanotify_init(0x1 | 0x2 | 0xC00 | 0x200 | 0x1000, 0o100000)
if group < 0:
    sys.exit(1)
mark = libc.fanotify_mark
mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
# FAN_MARK_ADD | FAN_MARK_FILESYSTEM; FAN_RENAME | FAN_ONDIR
folder = os.fsencode(tempfile.gettempdir())
sys.exit(0 if mark(group, 0x1 | 0x100, 0x10000000 | 0x40000000, -100, folder) == 0 else 1)
PYTHON
}
if is_root; then
    status=0
    fanotify_works || status=$?
    case "$status" in
        0) say "fanotify on $(stat -f -c %T "${TMPDIR:-/tmp}"): works" ;;
        1) skip "fanotify (no permission, an older kernel, or a file system without handles)" ;;
        *) loud "fanotify was not probed (no python3); the tests find out by themselves" ;;
    esac
    if ! command -v ip >/dev/null; then
        skip "links of 1,500, 9,000 and 65,536 bytes (no ip command: iproute2)"
    elif ! unshare --net true 2>/dev/null; then
        skip "links of 1,500, 9,000 and 65,536 bytes (no network namespaces)"
    else
        say "network namespaces: work"
    fi
fi

[ "$skips" -gt 0 ] || say "nothing is skipped on this machine"
