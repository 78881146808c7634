"""The trees to copy: a kernel's source, or one generated in its shape; folders of small files."""

import glob
import os
import random
import shutil
import subprocess

SMALL_BYTES = 4096
# The shape of Linux 6.1's source, for where it is not installed.
KERNEL_FILES = 78_600
KERNEL_FOLDERS = 5_100
KERNEL_BYTES = 1_300_000_000


def place_large_tree(folder, tree, files):
    """Fills `folder` and says with what. `tree`: a folder of the user's; `files`: of a generated one."""
    if tree:
        subprocess.run(["cp", "-a", f"{os.path.abspath(tree)}/.", folder], check=True)
        return f"a copy of {tree}"
    archives = sorted(glob.glob("/usr/src/linux-source-*.tar.xz"))
    if archives and files is None:
        subprocess.run(["tar", "-xJf", archives[-1], "-C", folder, "--strip-components=1"], check=True)
        return f"the kernel's source ({os.path.basename(archives[-1])})"
    generate(folder, files or KERNEL_FILES)
    return f"a generated tree in the shape of a kernel's source ({files or KERNEL_FILES:,} files)"


def generate(folder, files):
    """A seeded tree: many small texts, few large ones, folders up to five deep."""
    folder = os.fspath(folder)
    seeded = random.Random(6_1)
    words = [bytes(seeded.choices(b"abcdefghijklmnopqrstuvwxyz_", k=seeded.randint(2, 12))) for _ in range(4000)]
    pool = b" ".join(seeded.choices(words, k=600_000))
    folders = [folder]
    for number in range(max(1, files * KERNEL_FOLDERS // KERNEL_FILES)):
        parent = seeded.choice(folders[-200:])
        if parent.count("/") - folder.count("/") >= 5:
            parent = folder
        path = f"{parent}/d{number}"
        os.mkdir(path)
        folders.append(path)
    mean = KERNEL_BYTES / KERNEL_FILES
    for number in range(files):
        # Half of the files below 5 KiB and a long tail: what a source tree looks like.
        size = min(int(seeded.lognormvariate(0, 1.45) * mean / 2.86), len(pool) // 2)
        start = seeded.randrange(len(pool) - size)
        with open(f"{seeded.choice(folders)}/f{number}.c", "wb") as file:
            file.write(b"/* %d */\n" % number)
            file.write(pool[start:start + size])


def small_files(folder, count, per_folder=100, seed=1):
    """Makes `folder` with `count` files of 4 KiB, 100 in each of its folders."""
    content = random.Random(seed).randbytes(SMALL_BYTES - 8)
    os.makedirs(folder)
    for number in range(count):
        if number % per_folder == 0:
            inner = f"{folder}/d{number // per_folder:04}"
            os.mkdir(inner)
        with open(f"{inner}/f{number:06}", "wb", buffering=0) as file:
            file.write(number.to_bytes(8, "little") + content)


def small_files_are_there(folder, count, per_folder=100):
    """Whether all files of `small_files` are in `folder`, under their names and whole."""
    try:
        # The last ones first: a look at an unfinished copy must not cost the copier its processor.
        for first in reversed(range(0, count, per_folder)):
            wanted = min(per_folder, count - first)
            whole = 0
            with os.scandir(f"{folder}/d{first // per_folder:04}") as entries:
                for entry in entries:
                    if entry.name.startswith("f") and entry.stat().st_size == SMALL_BYTES:
                        whole += 1
            if whole < wanted:
                return False
        return True
    except FileNotFoundError:
        return False


def one_file(path, size):
    """One file of `size` bytes that do not compress."""
    with open(path, "wb", buffering=0) as file:
        left = size
        while left > 0:
            left -= file.write(os.urandom(min(left, 1 << 20)))


def describe(folder):
    """Files, folders and bytes below a folder."""
    files = folders = size = 0
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders += 1
                    pending.append(entry.path)
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return {"files": files, "folders": folders, "bytes": size}


def remove_marks(folder):
    """Removes what the systems under test leave in a source's root."""
    for name in (".cdsync", ".stfolder", ".stversions", ".bench-probe"):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
