"""A developer's churn of a large tree: one source, two targets, every file compared after every phase."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import trees
from developer import Developer, Editing, Switch
from lab import LabError, cpu_seconds, forget_peak, peak_kib, wait_until
from scenarios import Scenario, comparer
from systems import CDSync

RESERVED_OUT = comparer.Rules(exclude_reserved=True)
SHOWN = 20
EXPLAINED = 3
# What the rename of a folder may cost on an idle system, whatever it holds.
RENAME_MS, RENAME_BYTES, RENAME_RECORDS = 50, 4096, 1


class TwoTargets(CDSync):
    """CDSync with two targets, each a process on a machine of its own."""

    edges = {"edge-1": "target", "edge-2": "target-2"}

    def __init__(self, lab, options):
        super().__init__(lab, options)
        self.home["target-2"] = lab.fresh("state-target-2")
        # Whether the logs are to be kept when the system stops: until all was found equal.
        self.suspect = True

    def follow(self):
        """Nothing yet: the first copy is measured here."""

    def status(self):
        """The source's newest record, and the records that each target has applied."""
        shown = json.loads(self.command("job", "status", "bench", "--json", "--data", self.data).stdout)
        return shown["sources"][0]["seq"], {target["server"]: target["cursor"] for target in shown["targets"]}

    def stop(self):
        status = ""
        if self.suspect and self.lab.running:
            status = self.command("job", "status", "bench", "--data", self.data, check=False).stdout
        super().stop()
        if self.suspect:
            kept = Path(self.options.out) / time.strftime("churn-%Y%m%d-%H%M%S", time.gmtime())
            shutil.copytree(self.lab.logs, kept, dirs_exist_ok=True)
            (kept / "job-status").write_text(status)
            progress(f"logs: {kept}")


class Phase:
    """What each process and each link had to do between the beginning and the end of a `with`."""

    def __init__(self, system, name):
        self.system, self.name = system, name
        self.found = {"phase": name}

    def __enter__(self):
        progress(self.name)
        for _, process in self.system.lab.running:
            forget_peak(process.pid)
        self._cpu, self._wire = self._cpu_now(), wire_now(self.system)
        self.start = time.perf_counter()
        return self

    def made(self, **counts):
        """The changes are made; what follows is waiting for the targets."""
        self.found.update(made_s=time.perf_counter() - self.start, **counts)

    def __exit__(self, *_):
        wall, wire, cpu = time.perf_counter() - self.start, wire_now(self.system), self._cpu_now()
        self.found["wall_s"] = wall
        self.found["wait_s"] = wall - self.found.get("made_s", 0)
        self.found["wire_bytes"] = {edge: wire[edge] - self._wire[edge] for edge in wire}
        self.found["cpu_s"] = {label: cpu[label] - self._cpu[label] for label in cpu}
        self.found["peak_mib"] = {label(name): peak_kib(process.pid) / 1024 for name, process in self.system.lab.running}

    def _cpu_now(self):
        return {label(name): cpu_seconds(process.pid) for name, process in self.system.lab.running}


def wire_now(system):
    """Bytes that went over each target's link until now."""
    return {server: system.lab.machines[end].wire_bytes() for server, end in system.edges.items()}


def label(name):
    return name.removeprefix("cdsync-")


def progress(text):
    print(f"    {time.strftime('%H:%M:%S')}     {text}", file=sys.stderr)


class Churn(Scenario):
    """(f) A developer's churn of a large tree, one source to two targets: only whether all is equal counts."""

    key, name = "f", "a developer's churn of a large tree, one source to two targets"
    asked = ("cdsync",)
    # How long the system is left alone before and after what is measured on an idle one.
    QUIET_SECONDS = 2

    def rounds(self):
        return self.options.churn_runs

    def prepare(self):
        options = self.options
        self.lab.second_target()
        versions = self.lab.fresh("versions")
        self.about["tree"], self.old, self.new = trees.place_two_versions(
            versions, options.tree, options.tree_files, options.seed)
        self.about.update(trees.describe(versions / "a"))
        self.about["seed"] = options.seed
        self.seeds = iter(range(options.seed, options.seed + self.rounds()))

    def fill(self, source):
        shutil.copytree(self.lab.mounts["versions"] / "a", source, symlinks=True, dirs_exist_ok=True)

    def round(self, kind):
        del kind  # the same product, but with two targets
        self.lab.fresh("target-2")
        return super().round(TwoTargets)

    def finish(self):
        for name in ("target-2", "versions"):
            self.lab.drop(name)
        super().finish()

    def measure(self, system):
        self.seed = next(self.seeds)
        self.phases, self.compared, self.wrong = [], [], []
        self.developer = Developer(system.source, self.seed)
        self.pick_folders()
        self.lab.touch_memory(2 * (self.about["bytes"] + 6144 * self.about["files"]))
        self.first_copy(system)
        self.there(system)
        self.back(system)
        renames = self.renames(system)
        system.suspect = bool(self.wrong)
        return {**self.total(), "seed": self.seed, "phases": self.phases, "compared": self.compared, "rename": renames}

    def judge(self, system):
        """After every phase both targets were compared; what counts is all of it."""
        found = {"equal": not self.wrong}
        if self.wrong:
            found["differences"] = self.wrong
        return found

    def pick_folders(self):
        """The folder to rename, and two pairs to swap: by how many files they hold."""
        below = self.developer.folders(self.developer.files())
        top = sorted((path for path in below if "/" not in path), key=lambda path: (-below[path], path))
        if len(top) < 3:
            raise LabError("the tree has fewer than three folders at its top")
        self.main, self.pair = top[0], top[1:3]
        self.aside = f"{self.main}-renamed"
        # One in each of two folders at the top, so that neither is inside of the other.
        inner = {path.partition("/")[0]: path for path in sorted(below, reverse=True) if path.count("/") == 1}
        self.inner = sorted(inner.values())[:2]
        self.about["renamed"] = f"{self.main} with {below[self.main]:,} files"

    def first_copy(self, system):
        with Phase(system, "first copy") as phase:
            system.first_copy()
        self.compare(system, phase)

    def there(self, system):
        """To the other version, and then everything that is no version at all."""
        developer, options = self.developer, self.options
        switch = Switch(system.source, self.old, self.new)
        third = [-(-count // 3) for count in (options.churn_edits, options.churn_deletes, options.churn_moves)]
        with Phase(system, "another version, edits, deletes, moves, renames") as phase:
            counts = switch.go()
            developer.small_changes(*third)
            developer.rename(self.main, self.aside)
            developer.small_changes(*third)
            developer.swap(*self.pair)
            developer.small_changes(*third)
            phase.made(switch=counts, changes=dict(developer.done))
            system.wait("bench", options.limit)
        self.compare(system, phase)

    def back(self, system):
        """To the first version, while somebody else edits."""
        developer, options = self.developer, self.options
        developer.done.clear()
        with Phase(system, "folders back, the first version, edits meanwhile") as phase:
            developer.rename(self.aside, self.main)
            developer.swap(*self.pair)
            # A version may have emptied one of them, or a small tree have none.
            if len(self.inner) == 2 and all((system.source / path).is_dir() for path in self.inner):
                developer.exchange(*self.inner)
            switch = Switch(system.source, self.new, self.old)
            editing = Editing(system.source, self.seed + 1_000_000, options.churn_edits)
            editing.start()
            counts = switch.go()
            # All that writes has ended before anybody waits or compares.
            changes = {**developer.done, **editing.finish()}
            phase.made(switch=counts, changes=changes)
            system.wait("bench", options.limit)
        self.compare(system, phase)

    def compare(self, system, phase):
        """Both targets with the source, in every field, while nobody writes."""
        self.phases.append(phase.found)
        progress("comparing both targets")
        phase.found["equal"] = {}
        for server, end in system.edges.items():
            differences = list(comparer.compare(system.source, self.lab.mounts[end], RESERVED_OUT))
            phase.found["equal"][server] = not differences
            self.compared.append({"phase": phase.name, "target": server, "differences": len(differences),
                                  "first": [str(difference) for difference in differences[:SHOWN]]})
            if differences:
                self.tell(system, phase, server, differences)
        self.lab.check_alive()

    def tell(self, system, phase, server, differences):
        """Says what differs, whether it still does a while later, and what the servers know of it."""
        head = f"seed {self.seed}, {phase.name}, {server}: {len(differences)} differences"
        self.wrong += [head, *(str(difference) for difference in differences[:SHOWN])]
        print(f"NOT EQUAL: {head}", *map(str, differences[:SHOWN]), sep="\n  ")
        time.sleep(5)
        later = list(comparer.compare(system.source, self.lab.mounts[system.edges[server]], RESERVED_OUT))
        print(f"  5 s later: {len(later)} differences")
        explained = {}
        for path in dict.fromkeys(os.fsdecode(difference.path) for difference in differences[:EXPLAINED]):
            said = system.command("job", "explain", "bench", path, "--data", system.data, check=False)
            explained[path] = said.stdout + said.stderr
            print(f"  job explain bench {path}\n{explained[path]}")
        self.compared[-1].update(later=len(later), explained=explained)

    def renames(self, system):
        """The rename of the large folder alone, there and back again, on an idle system."""
        before = inodes(system, self.lab, self.main)
        idle = self.idle(system)
        taken = []
        with Phase(system, "the rename alone, on the idle system") as phase:
            for number in range(self.options.churn_renames):
                names = (self.main, self.aside) if number % 2 == 0 else (self.aside, self.main)
                taken.append(self.one_rename(system, *names))
        phase.found["wait_s"] = None
        kept = before == inodes(system, self.lab, self.main)
        self.compare(system, phase)
        rate = sum(idle["wire_bytes"].values()) / idle["wall_s"]
        wires = [max(0, taken_["wire_bytes"] - rate * taken_["wall_s"]) for taken_ in taken]
        return {"folder": self.about["renamed"], "each": taken, "idle": idle, "idle_bytes_per_s": rate,
                "files_kept": kept, "net_bytes": wires}

    def idle(self, system):
        """What keeping connections alive costs on the wire when nothing happens."""
        time.sleep(self.QUIET_SECONDS)
        with Phase(system, "idle") as phase:
            time.sleep(self.options.idle_seconds)
        return phase.found

    def one_rename(self, system, old, new):
        """One rename: when each target shows it, its records, and all bytes until it was claimed everywhere."""
        (first, _), pause = system.status(), self.options.poll_us / 1e6
        roots = {server: self.lab.mounts[end] for server, end in system.edges.items()}
        wire, seen = wire_now(system), {}
        start = time.perf_counter()
        os.rename(system.source / old, system.source / new)
        while len(seen) < len(roots):
            for server, root in roots.items():
                if server not in seen and os.path.isdir(root / new) and not os.path.lexists(root / old):
                    seen[server] = (time.perf_counter() - start) * 1000
            if time.perf_counter() - start > 60:
                raise LabError(f"not within 60 s: {old} renamed to {new} at {set(roots) - set(seen)}")
            if pause:
                time.sleep(pause)

        def claimed():
            last, cursors = system.status()
            return last > first and all(cursor == last for cursor in cursors.values())

        wait_until(claimed, 60, "the rename is claimed by both targets", self.lab, 0.1)
        time.sleep(self.QUIET_SECONDS)
        wall, after = time.perf_counter() - start, wire_now(system)
        return {"ms": seen, "records": system.status()[0] - first, "wall_s": wall,
                "wire_bytes": sum(after.values()) - sum(wire.values())}

    def total(self):
        """One row for the whole churn, as the other scenarios have it; the renames' pauses are no work."""
        work = [phase for phase in self.phases if phase["wait_s"] is not None]
        return {"wall_s": sum(phase["wall_s"] for phase in work),
                "cpu_s": sum(sum(phase["cpu_s"].values()) for phase in work),
                "wire_bytes": sum(sum(phase["wire_bytes"].values()) for phase in work)}


def inodes(system, lab, folder):
    """Which file each name of a folder is, at every target: the same ones were not written anew."""
    found = {}
    for server, end in system.edges.items():
        root = f"{lab.mounts[end]}/{folder}"
        found[server] = {path: (os.lstat(where).st_ino, os.lstat(where).st_mtime_ns) for path, where in trees.contents(root).items()}
    return found
