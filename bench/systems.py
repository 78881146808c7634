"""CDSync and what it is measured against, behind one small interface.

`start` brings both ends up and idle. `follow` makes a system keep `lab/target` like `lab/source` and
returns when it does. `first_copy` does one whole copy. `changed` is called after a change was made:
a system that watches does nothing then, one that does not runs.
"""

import json
import os
import shutil
import subprocess
import time
import xml.etree.ElementTree as XML
from pathlib import Path

from lab import LabError, wait_until

RSYNC_PORT = 8730
# Without the last one rsync compares times in whole seconds, and a second change of the same size
# within one second never arrives.
RSYNC_OPTIONS = ("--archive", "--delete", "--modify-window=-1")


class System:
    """One system under test. Its roots are `source` and `target`, its own files are in two mounts."""

    name = ""
    needs = ()
    watches = True
    # What a reader of its figures must know.
    remark = ""
    # Seconds that it may take to begin with a change, and to be done with what follows from one.
    patience = 20

    def __init__(self, lab, options):
        self.lab, self.options = lab, options
        self.source, self.target = lab.mounts["source"], lab.mounts["target"]
        self.home = {"source": lab.fresh("state-source"), "target": lab.fresh("state-target")}

    @classmethod
    def missing(cls, _options):
        """Why this system cannot be measured here, or None."""
        absent = [tool for tool in cls.needs if not shutil.which(tool)]
        return f"not installed: {', '.join(absent)}" if absent else None

    def start(self):
        raise NotImplementedError

    def follow(self):
        self.wait_for_probe()

    def changed(self):
        pass

    def settled(self):
        """Called before the trees are compared, where a system can tell that it is done."""

    def wait_for_probe(self):
        """Until a file written now at the source is at the target: connected, watching, idle."""
        probe = f"{time.time_ns()}".encode()
        (self.source / ".bench-probe").write_bytes(probe)
        there = self.target / ".bench-probe"
        wait_until(lambda: there.exists() and there.read_bytes() == probe, 60 + self.patience,
                   f"{self.name} carries a first file", self.lab)

    def stop(self):
        self.lab.stop_all()


class CDSync(System):
    """Master and source agent at the source's end, target agent at the other; only documented commands."""

    name = "cdsync"
    # `job wait` says that it is done, so it is taken at its word.
    patience = 0
    # The servers of the targets, and where each of them is.
    edges = {"edge-1": "target"}

    @classmethod
    def missing(cls, options):
        return options.cdsync_missing

    def start(self):
        lab, here = self.lab, self.lab.source
        self.data = self.home["source"] / "master"
        self.command("master", "init", "--data", self.data, "--listen", f"{here.address}:7400",
                     "--http", "127.0.0.1:7480", "--advertise", f"{here.address}:7400")
        here.spawn("cdsync-master", [self.options.cdsync, "master", "run", "--data", self.data])
        wait_until(lambda: here.call([self.options.cdsync, "status", "--data", self.data], check=False).returncode == 0,
                   30, "the master answers", lab, 0.1)
        for server, end in {"origin": "source", **self.edges}.items():
            self.agent(lab.machines[end], server, end)
        # A first job beside the measured one shows that all agents are connected and idle.
        self.job("warm-up", {end: home / "warm" for end, home in self.home.items()})
        self.wait("warm-up", retry=True)
        self.command("job", "remove", "warm-up", "--data", self.data, check=False)

    def agent(self, machine, server, end):
        home, warm, root = self.home[end] / "agent", self.home[end] / "warm", self.lab.mounts[end]
        warm.mkdir()
        if end == "source":
            (warm / "one").write_text("one\n")
        token = self.command("master", "token", "--data", self.data, "--name", server, "--group", f"bench/{end}").stdout.strip()
        machine.call([self.options.cdsync, "agent", "join", "--data", home, "--token", token, "--root", root,
                      "--root", warm, "--listen", f"{machine.address}:7410", "--advertise", f"{machine.address}:7410"])
        machine.spawn(f"cdsync-{server}", [self.options.cdsync, "agent", "run", "--data", home])

    def command(self, *arguments, **options):
        """A manager's command, given where the master runs."""
        return self.lab.source.call([self.options.cdsync, *arguments], **options)

    def job(self, name, roots):
        """Applies a job from the source's root to that of every target."""
        file = self.home["source"] / f"{name}.toml"

        def place(server, end):
            # A path as a JSON string, which is a TOML string too.
            return f'{{ server = "{server}", path = {json.dumps(str(roots[end]))} }}'

        targets = ", ".join(place(server, end) for server, end in self.edges.items())
        file.write_text(f'name = "{name}"\nmode = "realtime"\n'
                        f'source = [{place("origin", "source")}]\ntarget = [{targets}]\n')
        self.command("job", "apply", "-f", file, "--data", self.data)

    def wait(self, name, timeout=600, retry=False):
        """`job wait`; with `retry`, again while agents that have just started are not there yet."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.command("job", "wait", name, "--timeout", f"{timeout}s", "--data", self.data, timeout=timeout + 30)
                return
            except LabError:
                self.lab.check_alive()
                if not retry or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def follow(self):
        self.first_copy()
        self.wait_for_probe()

    def first_copy(self):
        self.job("bench", self.lab.mounts)
        self.wait("bench", self.options.limit)

    def settled(self):
        self.wait("bench", 120)


class Rsync(System):
    """An rsync daemon at the target, without encryption; the client runs once a change is complete."""

    name = "rsync"
    needs = ("rsync",)
    watches = False

    def start(self):
        config = self.home["target"] / "rsyncd.conf"
        # Without a chroot the daemon tidies what symlinks point to: a kernel has one with `/./` in it.
        config.write_text(f"uid = 0\ngid = 0\nuse chroot = yes\nmunge symlinks = no\nreverse lookup = no\n[target]\npath = {self.target}\nread only = no\n")
        machine = self.lab.target
        machine.spawn(f"{self.name}-daemon", ["rsync", "--daemon", "--no-detach", f"--config={config}",
                                              f"--address={machine.address}", f"--port={RSYNC_PORT}"])
        self.url = f"rsync://{machine.address}:{RSYNC_PORT}/target/"
        wait_until(lambda: self.lab.source.call(["rsync", self.url], check=False).returncode == 0,
                   10, "the rsync daemon answers", self.lab, 0.05)

    def first_copy(self):
        self.lab.source.call(["rsync", *RSYNC_OPTIONS, f"{self.source}/", self.url], timeout=self.options.limit)

    def follow(self):
        self.first_copy()

    changed = first_copy


class RsyncLoop(Rsync):
    """inotifywait, and one rsync of the whole tree for what it says."""

    name = "rsync-loop"
    needs = ("rsync", "inotifywait")
    watches = True

    def follow(self):
        # Events that came while rsync ran are one next run; 10 ms for a temporary file's rename.
        script = """inotifywait -m -r -q -e close_write,attrib,move,create,delete --format x "$1" |
            while read -r _; do
                while read -r -t 0.01 _; do :; done
                rsync "${@:3}" "$1/" "$2"
            done"""
        self.first_copy()
        self.lab.source.spawn("rsync-loop", ["bash", "-c", script, "loop", self.source, self.url, *RSYNC_OPTIONS])
        time.sleep(1)  # inotifywait says nothing when it has set its watches
        self.wait_for_probe()

    changed = System.changed


class Lsyncd(Rsync):
    """lsyncd over rsync, told to wait for nothing."""

    name = "lsyncd-0s"
    needs = ("rsync", "lsyncd")
    watches = True
    delay = 0

    def follow(self):
        config = self.home["source"] / "lsyncd.lua"
        delay = f"delay = {self.delay}," if self.delay is not None else ""
        config.write_text(f'settings {{ nodaemon = true, logfile = "/dev/null" }}\n'
                          f'sync {{ default.rsync, source = "{self.source}", target = "{self.url}", {delay} '
                          f'rsync = {{ archive = true, _extra = {{ "--modify-window=-1" }} }} }}\n')
        self.lab.source.spawn(self.name, ["lsyncd", "-nodaemon", config])
        self.wait_for_probe()

    changed = System.changed


class LsyncdDefault(Lsyncd):
    """lsyncd as it comes, which gathers changes for 15 s."""

    name = "lsyncd"
    delay = None
    patience = 60


class Syncthing(System):
    """Two Syncthings told of each other, without discovery and relays, at the shortest watcher delay."""

    name = "syncthing"
    needs = ("syncthing",)
    # The shortest one first; 0 would turn the watcher off.
    DELAYS = ("0.01", "1")

    def start(self):
        machines = {"source": self.lab.source, "target": self.lab.target}
        ids = {end: self.identity(machine, end) for end, machine in machines.items()}
        for end, machine in machines.items():
            self.configure(end, ids, {e: m.address for e, m in machines.items()})
        self.machines = machines

    def environment(self, end):
        return {**os.environ, "HOME": str(self.home[end]), "STNODEFAULTFOLDER": "1", "STNOUPGRADE": "1"}

    def identity(self, machine, end):
        machine.call(["syncthing", "generate", f"--home={self.home[end]}"], env=self.environment(end))
        return machine.call(["syncthing", f"--home={self.home[end]}", "--device-id"], env=self.environment(end)).stdout.strip()

    def configure(self, end, ids, addresses):
        path = self.home[end] / "config.xml"
        tree = XML.parse(path)
        root = tree.getroot()
        for old in root.findall("folder") + root.findall("device"):
            root.remove(old)
        folder = XML.SubElement(root, "folder", {
            "id": "bench", "label": "bench", "path": str(self.source if end == "source" else self.target),
            "type": "sendonly" if end == "source" else "receiveonly", "rescanIntervalS": "3600",
            "fsWatcherEnabled": "true", "ignorePerms": "false"})
        XML.SubElement(folder, "minDiskFree", {"unit": "%"}).text = "0"
        for other, identity in ids.items():
            XML.SubElement(folder, "device", {"id": identity})
            device = XML.SubElement(root, "device", {"id": identity, "name": other, "compression": "metadata"})
            XML.SubElement(device, "address").text = f"tcp://{addresses[other]}:22000"
        root.find("gui").set("enabled", "false")
        options = root.find("options")
        wanted = {"listenAddress": f"tcp://{addresses[end]}:22000", "globalAnnounceEnabled": "false",
                  "localAnnounceEnabled": "false", "relaysEnabled": "false", "natEnabled": "false",
                  "reconnectionIntervalS": "1", "startBrowser": "false", "urAccepted": "-1",
                  "autoUpgradeIntervalH": "0", "crashReportingEnabled": "false", "setLowPriority": "false"}
        for key, value in wanted.items():
            for old in options.findall(key):
                options.remove(old)
            XML.SubElement(options, key).text = value
        tree.write(path)

    def follow(self):
        for root in (self.source, self.target):
            (root / ".stfolder").mkdir(exist_ok=True)
        for end, machine in self.machines.items():
            self.serve(end, machine)
        self.wait_for_probe()

    def serve(self, end, machine):
        for delay in self.DELAYS:
            self.set_delay(end, delay)
            process = machine.spawn(f"syncthing-{end}", ["syncthing", "serve", f"--home={self.home[end]}", "--no-browser",
                                                         "--no-restart", "--logflags=0"], env=self.environment(end))
            time.sleep(2)
            if process.poll() is None:
                self.remark = f"watcher delay {delay} s"
                return
            # Older versions take whole seconds only, and end when they read another value.
            if "invalid syntax" not in self.lab.tail(f"syncthing-{end}"):
                break
            self.lab.running.pop()
        raise LabError(f"syncthing does not start\n{self.lab.tail(f'syncthing-{end}')}")

    def set_delay(self, end, delay):
        path = self.home[end] / "config.xml"
        tree = XML.parse(path)
        tree.getroot().find("folder").set("fsWatcherDelayS", delay)
        tree.write(path)


ALL = (CDSync, Rsync, RsyncLoop, Lsyncd, LsyncdDefault, Syncthing)


def versions():
    """What is installed, for the record."""
    found = {}
    for tool, flag in (("rsync", "--version"), ("lsyncd", "-version"), ("syncthing", "--version")):
        if shutil.which(tool):
            shown = subprocess.run([tool, flag], capture_output=True, text=True)
            found[tool] = (shown.stdout or shown.stderr).splitlines()[0].strip()
    return found
