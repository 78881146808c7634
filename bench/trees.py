"""The trees to copy: a kernel's source, or one generated in its shape; folders of small files; versions."""

import glob
import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

SMALL_BYTES = 4096
# The shape of Linux 6.1's source, for where it is not installed.
KERNEL_FILES = 78_600
KERNEL_FOLDERS = 5_100
KERNEL_BYTES = 1_300_000_000
# Further versions of that source, as `make bench-setup` leaves them: PACKAGE_VERSION.tar.xz.
KERNELS = Path(__file__).resolve().parent.parent / "bench-results" / "kernels"


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


def kernels():
    """Versions of the kernel's source that are here, the oldest first: version -> archive."""
    found = {path.name[:-len(".tar.xz")].partition("_")[2]: path for path in KERNELS.glob("*_*.tar.xz")}
    for path in Path("/usr/src").glob("linux-source-*.tar.xz"):
        asked = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", path.name[:-len(".tar.xz")]],
                               capture_output=True, text=True) if shutil.which("dpkg-query") else None
        if asked and asked.returncode == 0:
            found.setdefault(asked.stdout, path)
    ordered = subprocess.run(["sort", "-V"], input="\n".join(found), capture_output=True, text=True, check=True)
    return {version: found[version] for version in ordered.stdout.split()}


def place_two_versions(folder, tree, files, seed):
    """Makes two versions of a large tree below `folder`; says of what, and where the files of each are.

    Returns a text, and for each version its files and symlinks: relative name -> where its content is.
    What is alike in both is there once.
    """
    one, two = f"{folder}/a", f"{folder}/b"
    os.mkdir(one)
    os.mkdir(two)
    versions = {} if tree or files else kernels()
    if len(versions) < 2:
        about = place_large_tree(one, tree, files) if tree else halves(one, files or KERNEL_FILES)
        old = contents(one)
        return f"{about}, and a seeded edit of 5 % of its files", old, edited(old, two, seed)
    (first, _), *_, (last, _) = versions.items()
    for version, into in ((first, one), (last, two)):
        subprocess.run(["tar", "-xJf", versions[version], "-C", into, "--strip-components=1"], check=True)
    old, new = contents(one), contents(two)
    for path, where in new.items():
        if path in old and alike(where, old[path]):
            os.unlink(where)
            new[path] = old[path]
    return f"the kernel's source in Debian's {first} and {last}", old, new


def halves(folder, files):
    """A generated tree with half of its files in `drivers`, as a kernel's source has."""
    os.mkdir(f"{folder}/drivers")
    generate(f"{folder}/drivers", files // 2)
    generate(folder, files - files // 2)
    return f"a generated tree in the shape of a kernel's source ({files:,} files)"


def contents(folder):
    """The files and symlinks below a folder: relative name -> path, in the order of names."""
    found = {}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(f"{parent}/{name}")]
        for name in files + links:
            path = f"{parent}/{name}"
            found[path[len(folder) + 1:]] = path
    return dict(sorted(found.items()))


def alike(one, other):
    """Whether two files or symlinks are what a version control system calls unchanged."""
    try:
        a, b = os.lstat(one), os.lstat(other)
        if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
            return False
        if stat.S_ISLNK(a.st_mode):
            return os.readlink(one) == os.readlink(other)
        return (a.st_size == b.st_size and not (a.st_mode ^ b.st_mode) & 0o100
                and Path(one).read_bytes() == Path(other).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False


def edited(old, folder, seed):
    """A second version: 4 % of the files edited, 0.5 % removed, 0.5 % new. Only what is new is in `folder`."""
    seeded = random.Random(seed)
    new = dict(old)
    names = [path for path, where in old.items() if not os.path.islink(where)]
    each = max(1, len(names) // 200)
    for number, path in enumerate(seeded.sample(names, min(10 * each, len(names)))):
        if number < each:
            del new[path]
            continue
        if number < 2 * each:
            path = f"{os.path.dirname(path)}/new-{number}.c".lstrip("/")
        new[path] = f"{folder}/{number}"
        lines = Path(old[path]).read_bytes().splitlines(True) if path in old else []
        lines.insert(seeded.randint(0, len(lines)), b"/* %d */\n" % seeded.getrandbits(64))
        Path(new[path]).write_bytes(b"".join(lines))
    return dict(sorted(new.items()))


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
