"""What is measured. Every scenario treats all systems alike and looks at the target in one way."""

import gc
import importlib.util
import os
import random
import statistics
import time
from pathlib import Path

import trees
from lab import LabError, Meter, wait_until

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
# What has to be equal in a result of any system; what else a peer does not keep is only named.
CONTENT_FIELDS = {"name", "type", "size", "content", "target", "device"}


def load_comparer():
    spec = importlib.util.spec_from_file_location("compare_trees", SCRIPTS / "compare-trees.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


comparer = load_comparer()


class Scenario:
    """One question, asked of every system in turn, round by round."""

    key = name = ""
    # Whether systems follow changes (else each round is one first copy).
    live = True
    # The systems asked, by name, the one that others are related to first.
    asked = ("rsync", "cdsync", "rsync-loop", "lsyncd-0s", "syncthing")

    def __init__(self, lab, options):
        self.lab, self.options = lab, options
        self.about = {}

    def rounds(self):
        return self.options.runs

    def prepare(self):
        """Once, before all rounds."""

    def fill(self, source):
        """Puts into an empty source what is there before anything is measured (live scenarios)."""
        trees.small_files(f"{source}/base", self.options.base_files)

    def measure(self, system):
        raise NotImplementedError

    def round(self, kind):
        """One measurement of one system, everything around it fresh. Returns its result."""
        lab = self.lab
        lab.fresh("target")
        if self.live:
            self.fill(lab.fresh("source"))
        else:
            trees.remove_marks(lab.mounts["source"])
        system = kind(lab, self.options)
        try:
            system.start()
            if self.live:
                system.follow()
            lab.check_alive()
            result = self.measure(system)
            result.update(self.judge(system))
            if system.remark:
                result["remark"] = system.remark
            return result
        except (LabError, OSError) as error:
            return {"failed": str(error) or repr(error)}
        finally:
            system.stop()

    def judge(self, system):
        """Whether what was measured counts: `equal`, and what differs."""
        return verdict(system, settle=self.live)

    def finish(self):
        self.lab.drop("target")
        self.lab.drop("source")


def verdict(system, settle):
    """Compares both trees; gives a system that cannot tell when it is done its time to be."""
    deadline = time.monotonic() + system.patience
    late = False
    try:
        if settle:
            system.settled()
    except LabError as error:
        late = str(error)
    # Everything that belongs to the systems themselves, at either end.
    skipped = (comparer.re.compile(rb"^\.stfolder/|^\.stversions/|(^|/)\.syncthing\..*\.tmp$"),)
    rules = comparer.Rules(exclude_reserved=True, excluded=skipped)
    while True:
        try:
            differences = list(comparer.compare(system.source, system.target, rules))
        except OSError as error:  # an entry went away while the trees were read
            differences = [comparer.Difference(os.fsencode(str(error)), "name", "read", "failed")]
        wrong = [d for d in differences if d.field in CONTENT_FIELDS or system.name == "cdsync"]
        if not (wrong or late):
            break
        # A peer's other metadata is looked at once: it is not what makes a result valid.
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    not_kept = sorted({d.field for d in differences} - CONTENT_FIELDS)
    found = {"equal": not wrong and not late}
    if not_kept:
        found["not_kept"] = not_kept
    if wrong or late:
        found["differences"] = ([late] if late else []) + [str(d) for d in wrong[:5]] + [f"{len(wrong)} in all"]
    return found


class Latency(Scenario):
    """(a) One change: a 4 KiB file written beside and renamed over, the system idle before it."""

    key, name = "a", "latency of one change (4 KiB, write + rename)"
    asked = ("cdsync", "rsync-loop", "lsyncd-0s", "lsyncd", "syncthing")
    FILES = 8
    # An idle pause before each change, in seconds; not constant, so that it meets no timer's beat.
    PAUSE = (0.05, 0.15)
    MISSED_AFTER = 30.0

    def rounds(self):
        return 1

    def fill(self, source):
        super().fill(source)
        os.mkdir(f"{source}/docs")
        for number in range(self.FILES):
            Path(f"{source}/docs/{number}.txt").write_bytes(bytes(trees.SMALL_BYTES))

    def measure(self, system):
        seeded = random.Random(4)
        taken, missed = [], 0
        end = time.monotonic() + self.options.latency_seconds
        gc.disable()
        try:
            for number in range(self.options.changes):
                if time.monotonic() > end or missed >= 3:
                    break
                time.sleep(seeded.uniform(*self.PAUSE))
                content = seeded.randbytes(trees.SMALL_BYTES)
                seconds = self.change(system, f"docs/{number % self.FILES}.txt", content)
                if seconds is None:
                    missed += 1
                else:
                    taken.append(seconds * 1000)
        finally:
            gc.enable()
        if not taken:
            raise LabError("no change arrived")
        return {"ms": taken, "missed": missed}

    def change(self, system, name, content):
        """One change; the seconds until it is whole at the target, or None."""
        here, there = f"{system.source}/{name}", f"{system.target}/{name}"
        pause = self.options.poll_us / 1e6
        old = os.stat(there)
        old = (old.st_ino, old.st_mtime_ns)
        start = time.perf_counter()
        with open(f"{here}.tmp", "wb", buffering=0) as file:
            file.write(content)
        os.rename(f"{here}.tmp", here)
        while True:
            try:
                now = os.stat(there)
                if (now.st_ino, now.st_mtime_ns) != old:
                    seen = time.perf_counter()
                    with open(there, "rb", buffering=0) as file:
                        if file.read(len(content) + 1) == content:
                            return seen - start
            except FileNotFoundError:
                pass
            if time.perf_counter() - start > self.MISSED_AFTER:
                return None
            if pause:
                time.sleep(pause)


class Burst(Scenario):
    """(b) Many new files at once, from the start of their creation to the last at the target."""

    key, name = "b", "new 4 KiB files made at once"

    def prepare(self):
        self.about["files"] = self.options.burst_files

    def measure(self, system):
        count = self.options.burst_files
        self.lab.touch_memory(2 * count * trees.SMALL_BYTES)
        with Meter(self.lab) as meter:
            trees.small_files(f"{system.source}/burst", count, seed=2)
            made = time.perf_counter() - meter.start
            system.changed()
            wait_until(lambda: trees.small_files_are_there(f"{system.target}/burst", count),
                       self.options.limit, "all files at the target", self.lab)
            meter.stop_clock()
        return {**meter.result(), "made_s": made}


class FirstCopy(Scenario):
    """(c) The first copy of a kernel's source tree to an empty target."""

    key, name = "c", "first copy of a large tree"
    live = False
    asked = ("rsync", "cdsync")

    def prepare(self):
        source = self.lab.fresh("source")
        self.about["tree"] = trees.place_large_tree(source, self.options.tree, self.options.tree_files)
        self.about.update(trees.describe(source))

    def measure(self, system):
        # Rounded up to pages, and the inodes: about a third more than the bytes for small files.
        self.lab.touch_memory(self.about["bytes"] + 6144 * self.about["files"])
        with Meter(self.lab) as meter:
            system.first_copy()
            meter.stop_clock()
        return meter.result()


class LargeFile(FirstCopy):
    """(d) One large file that does not compress."""

    key, name = "d", "first copy of one large file"

    def prepare(self):
        source = self.lab.fresh("source")
        trees.one_file(f"{source}/disk.img", self.options.file_bytes)
        self.about.update(trees.describe(source))


class FolderRename(Scenario):
    """(e) The rename of a folder with many files, from before it to all of it at the target."""

    key, name = "e", "rename of a folder"

    def prepare(self):
        self.about["files"] = self.options.rename_files

    def fill(self, source):
        super().fill(source)
        trees.small_files(f"{source}/before", self.options.rename_files, seed=3)

    def measure(self, system):
        old, new = f"{system.target}/before", f"{system.target}/after"

        def there():
            return (os.path.isdir(new) and not os.path.lexists(old)
                    and trees.small_files_are_there(new, self.options.rename_files))

        with Meter(self.lab) as meter:
            os.rename(f"{system.source}/before", f"{system.source}/after")
            system.changed()
            wait_until(there, self.options.limit, "the folder under its new name", self.lab, 0.002)
            meter.stop_clock()
        return meter.result()


class ChangedImage(Scenario):
    """(g) A large image of which 1 % of the 4 KiB blocks were overwritten, and 20 stretches inserted."""

    key, name = "g", "a changed image, from its close to all of it at the target"
    asked = ("rsync", "cdsync", "syncthing")
    BLOCK = 4096
    INSERTIONS = 20

    def prepare(self):
        seeded = random.Random(5)
        size = self.options.image_bytes
        # Not at once: a number of so many bits is too large for it.
        self.before = b"".join(seeded.randbytes(1 << 20) for _ in range(size >> 20))
        after = bytearray(self.before)
        for block in seeded.sample(range(size // self.BLOCK), size // self.BLOCK // 100):
            after[block * self.BLOCK:(block + 1) * self.BLOCK] = seeded.randbytes(self.BLOCK)
        # From the end on, so that no insertion moves the place of the next one.
        for place in sorted(seeded.sample(range(size), self.INSERTIONS), reverse=True):
            after[place:place] = seeded.randbytes(seeded.randrange(1, self.BLOCK))
        self.after = bytes(after)
        self.about.update(bytes=size, changed=size // self.BLOCK // 100 * self.BLOCK)

    def fill(self, source):
        super().fill(source)
        Path(f"{source}/disk.img").write_bytes(self.before)

    def measure(self, system):
        here, there = f"{system.source}/disk.img", f"{system.target}/disk.img"
        self.lab.touch_memory(2 * len(self.after))
        with open(here, "r+b", buffering=0) as file:
            view = memoryview(self.after)
            while view:
                view = view[file.write(view[:1 << 20]):]
            changed = os.fstat(file.fileno())
            with Meter(self.lab) as meter:
                file.close()
                system.changed()

                def arrived():
                    found = os.stat(there)
                    return (found.st_size, found.st_mtime_ns) == (changed.st_size, changed.st_mtime_ns)

                wait_until(arrived, self.options.limit, "the changed image", self.lab, 0.002)
                meter.stop_clock()
        return meter.result()

    def finish(self):
        self.before = self.after = b""
        super().finish()


ALL = (Latency, Burst, FirstCopy, LargeFile, FolderRename, ChangedImage)


def percentile(values, part):
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * part // 100) - 1)]


def summary(results):
    """Medians over the rounds of one system that went well."""
    good = [r for r in results if "failed" not in r]
    if not good:
        return None
    if "ms" in good[0]:
        values = [ms for r in good for ms in r["ms"]]
        found = {"changes": len(values), "missed": sum(r["missed"] for r in good),
                 "p50_ms": percentile(values, 50), "p99_ms": percentile(values, 99), "max_ms": max(values)}
    else:
        numbers = [key for key, value in good[0].items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
        found = {key: statistics.median(r[key] for r in good) for key in numbers}
        found["wall_min_s"], found["wall_max_s"] = min(r["wall_s"] for r in good), max(r["wall_s"] for r in good)
        found["runs"] = len(good)
    found["remark"] = good[0].get("remark", "")
    found["failed_runs"] = len(results) - len(good)
    found["valid"] = all(r["equal"] for r in good)
    found["not_kept"] = sorted({field for r in good for field in r.get("not_kept", ())})
    return found
