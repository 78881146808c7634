"""What a developer does to a tree: switches versions, edits, deletes, moves, renames. All by a seed."""

import collections
import ctypes
import os
import random
import shutil
import stat
import threading
import time

import trees

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# What a name may meet when somebody else works in the same tree.
GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Switch:
    """A way from whatever a tree holds to a version of it, as `git checkout --force` takes it.

    What differs is looked up first, as git knows it from its index; `go` then only writes.
    """

    def __init__(self, root, old, new):
        self.root, self.new = os.fspath(root), new
        self.removed = [path for path in old if path not in new]
        self.stale = [path for path, where in new.items() if not trees.alike(f"{self.root}/{path}", where)]

    def go(self):
        """Removes, then unlinks and writes anew. Returns how many were removed and written."""
        for path in self.removed:
            self._remove(path)
        for path in self.stale:
            self._write(path)
        return {"removed": len(self.removed), "written": len(self.stale)}

    def _remove(self, path):
        try:
            os.unlink(f"{self.root}/{path}")
            while path := os.path.dirname(path):
                os.rmdir(f"{self.root}/{path}")
        except OSError:
            pass  # gone already, or a folder that is not empty

    def _write(self, path):
        where, here = self.new[path], f"{self.root}/{path}"
        os.makedirs(os.path.dirname(here), exist_ok=True)
        status = os.lstat(where)
        while True:
            try:
                os.unlink(here)
            except FileNotFoundError:
                pass
            try:
                if stat.S_ISLNK(status.st_mode):
                    os.symlink(os.readlink(where), here)
                    return
                mode = 0o777 if status.st_mode & 0o100 else 0o666
                file = os.open(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                break
            except FileExistsError:
                continue  # somebody's editor put it back meanwhile
        with open(where, "rb") as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target)


class Developer:
    """Somebody who works in a tree. The same seed in the same tree does the same."""

    def __init__(self, root, seed):
        self.root = os.fspath(root)
        self.seeded = random.Random(seed)
        self.done = collections.Counter()

    def files(self):
        """The names of the regular files."""
        found = trees.contents(self.root)
        return [path for path, where in found.items() if not os.path.islink(where)]

    def folders(self, files):
        """The folders at every depth that hold some of these files, with how many are below each."""
        below = collections.Counter()
        for path in files:
            while path := os.path.dirname(path):
                below[path] += 1
        return below

    def small_changes(self, edits, deletes, moves):
        """So many of each in a random order, each on another file."""
        files = self.files()
        folders = sorted(self.folders(files))
        acts = [self.edit] * edits + [self.delete] * deletes + [lambda path: self.move(path, folders)] * moves
        self.seeded.shuffle(acts)
        for act, path in zip(acts, self.seeded.sample(files, min(len(acts), len(files)))):
            act(path)

    def edit(self, path):
        """Appends, writes anew in place, changes some bytes, or writes beside and renames over."""
        here, line = f"{self.root}/{path}", b"/* %d */\n" % self.seeded.getrandbits(64)
        kind = self.seeded.choice(("appended", "rewritten", "patched", "replaced"))
        position = self.seeded.random()
        if kind == "appended":
            with open(here, "r+b", buffering=0) as file:
                file.seek(0, os.SEEK_END)
                file.write(line)
        elif kind == "patched":
            with open(here, "r+b", buffering=0) as file:
                file.seek(int(os.fstat(file.fileno()).st_size * position))
                file.write(line)
        else:
            with open(here, "rb") as file:
                lines = file.read().splitlines(True)
            lines.insert(int(len(lines) * position), line)
            written = here if kind == "rewritten" else f"{here}.new~"
            with open(written, "wb") as file:
                file.writelines(lines)
            if written != here:
                shutil.copymode(here, written)
                os.rename(written, here)
        self.done[kind] += 1

    def delete(self, path):
        os.unlink(f"{self.root}/{path}")
        self.done["deleted"] += 1

    def move(self, path, folders):
        """Into another folder, mostly under its own name."""
        name = os.path.basename(path)
        if self.seeded.random() < 0.3:
            name = f"moved-{name}"
        there = f"{self.root}/{self.seeded.choice(folders)}/{name}"
        if not os.path.lexists(there):
            os.rename(f"{self.root}/{path}", there)
            self.done["moved"] += 1

    def rename(self, old, new):
        os.rename(f"{self.root}/{old}", f"{self.root}/{new}")
        self.done["folders renamed"] += 1

    def swap(self, one, other):
        """Two folders by three renames, as a shell does it."""
        spare = f"{one}.swap"
        for old, new in ((one, spare), (other, one), (spare, other)):
            os.rename(f"{self.root}/{old}", f"{self.root}/{new}")
        self.done["folders swapped"] += 1

    def exchange(self, one, other):
        """Two folders by one system call."""
        paths = [os.fsencode(f"{self.root}/{path}") for path in (one, other)]
        if LIBC.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2", f"{one}, {other}")
        self.done["folders exchanged"] += 1


class Editing(threading.Thread):
    """A second developer, who edits while the first one does something else."""

    def __init__(self, root, seed, edits):
        super().__init__(daemon=True)
        self.developer = Developer(root, seed)
        files = self.developer.files()
        self.picked = self.developer.seeded.choices(files, k=edits)
        self.error = None

    def run(self):
        try:
            for path in self.picked:
                try:
                    self.developer.edit(path)
                except GONE:
                    self.developer.done["missed"] += 1
                time.sleep(0.001)
        except Exception as error:  # told by `finish`, in the thread that waits
            self.error = error

    def finish(self):
        """Returns when the last edit is made, and raises what it met."""
        self.join()
        if self.error:
            raise self.error
        return dict(self.developer.done)
