#!/usr/bin/env python3
"""Compares two directory trees and prints every difference; shares no code with CDSync.

    compare-trees.py A B [--exclude-reserved] [--filter-exclude REGEX].. [--ignore FIELD]..

Names, types, sizes, modes, owners, modification times in nanoseconds, symlink targets, device
numbers, and the content byte by byte. The two roots themselves are not compared, only what is in
them. Exit status: 0 equal, 1 different, 2 a tree could not be read (or wrong usage).
"""

import argparse
import os
import re
import stat
import sys
from typing import Callable, Iterator, NamedTuple

# What --ignore understands; `dir-mtime` is `mtime` for folders only.
FIELDS = ("mode", "uid", "gid", "mtime", "dir-mtime", "link-mtime")
RESERVED = b".cdsync"
CHUNK_BYTES = 1 << 20


class Difference(NamedTuple):
    """One difference; `field` is `name`, `type`, `size`, `content`, `target`, `device` or one of FIELDS."""

    path: bytes
    field: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.field}: {self.left} | {self.right}"


class Rules(NamedTuple):
    """Which entries are walked and which fields count."""

    exclude_reserved: bool = False
    excluded: tuple = ()
    ignored: frozenset = frozenset()

    def skips(self, path: bytes, is_dir: bool) -> bool:
        if self.exclude_reserved and os.path.basename(path) == RESERVED:
            return True
        shown = path + b"/" if is_dir else path
        return any(pattern.search(shown) for pattern in self.excluded)


def printable(path: bytes) -> str:
    """A name as one line of ASCII, whatever bytes it has."""
    return repr(path)[2:-1]


def kind(mode: int) -> str:
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "symlink",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "block device",
        stat.S_IFCHR: "character device",
    }.get(stat.S_IFMT(mode), "unknown")


def listing(folder: bytes, prefix: bytes, rules: Rules) -> dict:
    """The entries of one folder: name -> (path from the root, stat)."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if not rules.skips(path, stat.S_ISDIR(status.st_mode)):
                found[entry.name] = (path, status)
    return found


def same_content(left: bytes, right: bytes) -> bool:
    with open(left, "rb", buffering=0) as a, open(right, "rb", buffering=0) as b:
        while True:
            one, two = a.read(CHUNK_BYTES), b.read(CHUNK_BYTES)
            if one != two:
                # A short read is no difference: read on to a common length before judging.
                one, two = fill(a, one), fill(b, two)
                if one != two:
                    return False
            if not one:
                return True


def fill(file, start: bytes) -> bytes:
    parts, have = [start], len(start)
    while have < CHUNK_BYTES and (part := file.read(CHUNK_BYTES - have)):
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def compare_metadata(path: bytes, one: os.stat_result, two: os.stat_result, rules: Rules) -> Iterator[Difference]:
    is_dir, is_link = stat.S_ISDIR(one.st_mode), stat.S_ISLNK(one.st_mode)
    checks = [("uid", one.st_uid, two.st_uid, str), ("gid", one.st_gid, two.st_gid, str)]
    if not is_link:  # a symlink has no mode of its own on Linux
        checks.append(("mode", stat.S_IMODE(one.st_mode), stat.S_IMODE(two.st_mode), oct))
    time = "dir-mtime" if is_dir else "link-mtime" if is_link else "mtime"
    if "mtime" not in rules.ignored:
        checks.append((time, one.st_mtime_ns, two.st_mtime_ns, str))
    for field, left, right, show in checks:
        if left != right and field not in rules.ignored:
            yield Difference(path, field, show(left), show(right))


def compare_entry(a: bytes, b: bytes, path: bytes, one: os.stat_result, two: os.stat_result, rules: Rules) -> Iterator[Difference]:
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(two.st_mode):
        yield Difference(path, "type", kind(one.st_mode), kind(two.st_mode))
        return
    yield from compare_metadata(path, one, two, rules)
    left, right = os.path.join(a, path), os.path.join(b, path)
    if stat.S_ISREG(one.st_mode):
        if one.st_size != two.st_size:
            yield Difference(path, "size", str(one.st_size), str(two.st_size))
        elif not same_content(left, right):
            yield Difference(path, "content", "differs", f"{one.st_size} bytes each")
    elif stat.S_ISLNK(one.st_mode):
        target, other = os.readlink(left), os.readlink(right)
        if target != other:
            yield Difference(path, "target", printable(target), printable(other))
    elif stat.S_ISBLK(one.st_mode) or stat.S_ISCHR(one.st_mode):
        if one.st_rdev != two.st_rdev:
            yield Difference(path, "device", str(one.st_rdev), str(two.st_rdev))


def compare(a, b, rules: Rules = Rules(), visited: Callable[[], None] = lambda: None) -> Iterator[Difference]:
    """Yields the differences between the trees below `a` and `b`, folder by folder in name order.

    `visited` is called for each entry of `a`. Raises OSError when a tree cannot be read.
    """
    a, b = os.fsencode(a), os.fsencode(b)
    folders = [b""]
    while folders:
        prefix = folders.pop()
        left = listing(os.path.join(a, prefix), prefix, rules)
        right = listing(os.path.join(b, prefix), prefix, rules)
        for name in sorted(left.keys() | right.keys()):
            if name not in right:
                visited()
                yield Difference(left[name][0], "name", kind(left[name][1].st_mode), "missing")
            elif name not in left:
                yield Difference(right[name][0], "name", "missing", kind(right[name][1].st_mode))
            else:
                visited()
                (path, one), (_, two) = left[name], right[name]
                yield from compare_entry(a, b, path, one, two, rules)
                if stat.S_ISDIR(one.st_mode) and stat.S_ISDIR(two.st_mode):
                    folders.append(path + b"/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--exclude-reserved", action="store_true", help="leave out .cdsync at every depth")
    parser.add_argument("--filter-exclude", metavar="REGEX", action="append", default=[],
                        help="leave out what matches in its relative path (bytes, unanchored; a folder ends in /)")
    parser.add_argument("--ignore", metavar="FIELD", action="append", default=[], choices=FIELDS,
                        help="a field that need not be equal: " + ", ".join(FIELDS) + " (mtime: of everything)")
    parser.add_argument("--max", metavar="N", type=int, default=100, help="print at most N differences (100)")
    options = parser.parse_args()
    patterns = tuple(re.compile(os.fsencode(regex)) for regex in options.filter_exclude)
    rules = Rules(options.exclude_reserved, patterns, frozenset(options.ignore))

    entries = differences = 0

    def visited() -> None:
        nonlocal entries
        entries += 1

    try:
        for difference in compare(options.a, options.b, rules, visited):
            differences += 1
            if differences <= options.max:
                print(difference)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if differences > options.max:
        print(f".. and {differences - options.max} more")
    print(f"{entries} entries compared, {differences} differences", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
