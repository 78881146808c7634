"""The laboratory: machines on one, each with its own network and its own file systems.

Everything lives in mount, network and process namespaces of the benchmark's own, so that the kernel
clears all of it away when the benchmark ends, however it ends.
"""

import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
INSIDE = "CDSYNC_BENCH_INSIDE"
MIB = 1 << 20


class LabError(Exception):
    """Something of a system under test did not work; its result is reported as missing."""


def enter_namespaces(argv):
    """Runs this program again in namespaces of its own. Does not return."""
    os.environ[INSIDE] = "1"
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--propagation", "private",
               "--mount-proc", *argv]
    os.execvp(command[0], command)


class Machine:
    """One end: a network namespace with an address, and tmpfs mounts."""

    def __init__(self, lab, name, address):
        self.lab, self.name, self.address = lab, name, address
        self.namespace = f"cdsync-bench-{os.getpid()}-{name}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        self.inode = os.stat(f"/run/netns/{self.namespace}").st_ino

    def wrap(self, command):
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *map(str, command)]

    def spawn(self, label, command, **options):
        """Starts a long-lived process; its output goes to a log that failures quote."""
        path = self.lab.logs / f"{label}.log"
        with open(path, "ab") as log:
            process = subprocess.Popen(self.wrap(command), stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True, **options)
        self.lab.running.append((label, process))
        return process

    def call(self, command, timeout=600, check=True, **options):
        """Runs a command to its end and returns what it printed."""
        try:
            done = subprocess.run(self.wrap(command), stdin=subprocess.DEVNULL, timeout=timeout,
                                  capture_output=True, text=True, errors="replace", **options)
        except subprocess.TimeoutExpired:
            raise LabError(f"not within {timeout} s: {' '.join(map(str, command))}") from None
        if check and done.returncode != 0:
            raise LabError(f"exit {done.returncode}: {' '.join(map(str, command))}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        return done

    def wire_bytes(self):
        """Bytes sent and received on its links, as this end counts them (with Ethernet headers)."""
        shown = json.loads(run("ip", "-n", self.namespace, "-j", "-s", "link", "show"))
        counted = [link["stats64"] for link in shown if link["ifname"].startswith("link")]
        return sum(stats["tx"]["bytes"] + stats["rx"]["bytes"] for stats in counted)


class Lab:
    """Two machines, `source` and `target`, joined by one link; a third one for who asks for it."""

    def __init__(self, mtu):
        # In our own mount namespace: names of network namespaces that nobody else sees, and that
        # nobody has to remove.
        os.makedirs("/run/netns", exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "size=1m", "cdsync-bench", "/run/netns")
        self.base = Path(tempfile.mkdtemp(prefix="cdsync-bench-"))
        run("mount", "-t", "tmpfs", "-o", "mode=0755,size=64m", "cdsync-bench", self.base)
        self.logs = self.base / "logs"
        self.logs.mkdir()
        self.running = []
        self.mounts = {}
        self.mtu = mtu
        self.source = Machine(self, "source", "10.77.0.1")
        self.target = Machine(self, "target", "10.77.0.2")
        self.machines = {"source": self.source, "target": self.target}
        self._link("link0", self.source.address, self.target)

    def second_target(self):
        """The machine `target-2`, with a link of its own to the source; made when first asked for."""
        if "target-2" not in self.machines:
            machine = self.machines["target-2"] = Machine(self, "target-2", "10.77.1.2")
            self._link("link1", "10.77.1.1", machine)
            run("ip", "-n", machine.namespace, "route", "add", self.source.address, "via", "10.77.1.1")
        return self.machines["target-2"]

    def _link(self, name, address, target):
        """Joins the source, under a name and an address, with `link0` of a target."""
        run("ip", "link", "add", name, "netns", self.source.namespace, "mtu", self.mtu, "type", "veth",
            "peer", "name", "link0", "netns", target.namespace, "mtu", self.mtu)
        for machine, link, own in ((self.source, name, address), (target, "link0", target.address)):
            run("ip", "-n", machine.namespace, "address", "add", f"{own}/24", "dev", link)
            run("ip", "-n", machine.namespace, "link", "set", link, "up")

    def fresh(self, name):
        """An empty file system of its own, in place of the one of that name before it.

        Sources and targets never share one: a watcher of a whole file system would see the other
        side's writes too, and be measured with them.
        """
        path = self.base / name
        self.drop(name)
        path.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "mode=0755,size=90%", "cdsync-bench", path)
        self.mounts[name] = path
        return path

    def drop(self, name):
        path = self.mounts.pop(name, None)
        if path is None:
            return
        for _ in range(50):
            if subprocess.run(["umount", path], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)  # a process that was just killed may hold it for a moment
        run("umount", "--lazy", path)

    def touch_memory(self, size):
        """Writes and removes `size` bytes beside both roots, so that what follows finds memory ready.

        A virtual machine gives freed memory back to its host, and the first touch of what comes anew
        costs several times a copy; whoever ran first would pay for the others.
        """
        path = self.fresh("scratch") / "memory"
        block = bytes(MIB)
        with open(path, "wb", buffering=0) as file:
            for _ in range(size // MIB + 1):
                file.write(block)
        self.drop("scratch")

    def stop_all(self):
        """Ends what was started: politely, then not. Returns when all of it is gone."""
        for _, process in self.running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 5
        for _, process in self.running:
            try:
                process.wait(max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            # The rest of its session: children of a shell, a monitored process.
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass
            process.wait()
        self.running.clear()
        # And whatever left its session: nobody may help, or load the machine, for the next system.
        wait_until(self._nobody_left, 10, "all processes of the last system are gone")

    def processes(self):
        """(pid, the machine's name) of everything that runs at one of the ends."""
        ends = {machine.inode: machine.name for machine in self.machines.values()}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    end = ends.get(os.stat(f"/proc/{name}/ns/net").st_ino)
                except OSError:
                    continue
                if end:
                    yield int(name), end

    def _nobody_left(self):
        left = [pid for pid, _ in self.processes()]
        for pid in left:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        return not left

    def check_alive(self):
        """Raises LabError when a long-lived process has ended."""
        for label, process in self.running:
            if process.poll() is not None:
                raise LabError(f"{label} ended with {process.returncode}\n{self.tail(label)}")

    def tail(self, label, size=2000):
        try:
            return (self.logs / f"{label}.log").read_text(errors="replace")[-size:]
        except OSError:
            return ""

    def close(self):
        self.stop_all()
        for name in list(self.mounts):
            self.drop(name)
        subprocess.run(["umount", "--lazy", self.base], capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)


class Meter:
    """Processor time, memory and bytes on the wire of `source` and `target` between start and stop.

    Processor time is that of all processes in each end's network namespace, their ended children
    included (10 ms steps), and of the commands that this program ran to their end. Memory is the
    highest sum of the peaks (VmHWM) of the processes alive at one moment, looked at 20 times a second.
    """

    def __init__(self, lab):
        self.lab = lab
        self.peak = {"source": 0, "target": 0}
        self._end = threading.Event()

    def __enter__(self):
        for pid, _ in self.lab.processes():
            forget_peak(pid)
        self._cpu = self._cpu_now()
        self._children = children_seconds()
        self._wire = self.lab.source.wire_bytes()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        self.start = time.perf_counter()
        return self

    def stop_clock(self):
        """Ends what is timed. What has begun by then still has its processor time counted."""
        self.wall = time.perf_counter() - self.start
        self.wire = self.lab.source.wire_bytes() - self._wire
        # Helpers that are just ending are counted at their parents once they have.
        time.sleep(0.5)

    def __exit__(self, *_):
        self._end.set()
        self._sampler.join()
        self._sample_once()
        after = self._cpu_now()
        self.cpu = {end: after[end] - self._cpu[end] for end in after}
        self.cpu["source"] += children_seconds() - self._children

    def result(self):
        return {
            "wall_s": self.wall,
            "cpu_source_s": self.cpu["source"],
            "cpu_target_s": self.cpu["target"],
            "cpu_s": self.cpu["source"] + self.cpu["target"],
            "rss_source_mib": self.peak["source"] / 1024,
            "rss_target_mib": self.peak["target"] / 1024,
            "wire_bytes": self.wire,
        }

    def _cpu_now(self):
        total = {"source": 0.0, "target": 0.0}
        for pid, end in self.lab.processes():
            total[end] += cpu_seconds(pid)
        return total

    def _sample(self):
        while not self._end.wait(0.05):
            self._sample_once()

    def _sample_once(self):
        now = {"source": 0, "target": 0}
        for pid, end in self.lab.processes():
            now[end] += peak_kib(pid)
        for end, kib in now.items():
            self.peak[end] = max(self.peak[end], kib)


def cpu_seconds(pid):
    """Processor time of a process and of its ended children; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5), counted after the name.
    return sum(map(int, fields[11:15])) / CLOCK_TICKS


def peak_kib(pid):
    """The most memory that a process had at once (VmHWM); 0 when it is gone."""
    try:
        _, found, rest = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")
    except OSError:
        return 0
    return int(rest.split(None, 1)[0]) if found else 0


def forget_peak(pid):
    """Makes VmHWM start again from now."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        pass


def children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def wait_until(condition, timeout, what, lab=None, interval=0.02):
    """Polls until the condition holds. Raises LabError when it does not in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    checked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now > deadline:
            raise LabError(f"not within {timeout:.0f} s: {what}")
        if lab and now - checked > 1:
            checked = now
            lab.check_alive()
        time.sleep(interval)
