#!/usr/bin/env python3
"""Measures CDSync beside what else is installed: rsync, lsyncd, Syncthing. Needs Linux and root.

Machines on one: network namespaces joined by links, a file system of memory for each end. Every
system is asked in turn, round by round, and is believed only when both trees are equal afterwards.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import report  # noqa: E402
import scenarios  # noqa: E402
import systems  # noqa: E402
from churn import Churn  # noqa: E402
from lab import INSIDE, Lab, LabError, enter_namespaces  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ALL = (*scenarios.ALL, Churn)


def byte_count(text):
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    digits, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    return int(digits) * unit


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="scenarios:\n" + "\n".join(f"  {s.__doc__}" for s in ALL))
    parser.add_argument("--only", metavar="a,b", help="these scenarios")
    parser.add_argument("--systems", metavar="NAMES", help="these systems: " + ",".join(s.name for s in systems.ALL))
    parser.add_argument("--runs", type=int, help="rounds of each scenario but (a), at least 1 (3; of (f) 1)")
    parser.add_argument("--changes", type=int, help="changes in (a) (200)")
    parser.add_argument("--latency-seconds", type=int, default=120, help="at most so long for one system in (a)")
    parser.add_argument("--poll-us", type=int, default=50,
                        help="pause between two looks at the target in (a); 0: none, which takes a core away (50)")
    parser.add_argument("--mtu", type=int, default=1500, help="of the link, 1280 to 65535 (1500)")
    parser.add_argument("--file-size", type=byte_count, help="of the file in (d), like 512M (4G)")
    parser.add_argument("--tree", metavar="DIR", help="this tree in (c) and (f), in place of a kernel's source")
    parser.add_argument("--seed", type=int, default=1, help="of all that is chosen at random in (f) (1)")
    parser.add_argument("--limit", type=int, default=600, help="give up one measurement after so many seconds")
    parser.add_argument("--cdsync", metavar="FILE", help="measure this binary, build nothing")
    parser.add_argument("--out", metavar="DIR", default=str(ROOT / "bench-results"), help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: shows that it works, not how fast")
    options = parser.parse_args()
    quick = options.quick
    options.churn_runs = max(1, options.runs or 1)
    options.runs = max(1, options.runs or (1 if quick else 3))
    options.changes = options.changes or (20 if quick else 200)
    options.image_bytes = 64 << 20 if quick else 1 << 30
    options.file_bytes = options.file_size or (256 << 20 if quick else 4 << 30)
    options.tree_files = 4000 if quick else None
    options.base_files = 200 if quick else 1000
    options.burst_files = 1000 if quick else 10_000
    options.rename_files = 2000 if quick else 20_000
    options.churn_edits, options.churn_deletes, options.churn_moves = (500, 200, 50) if quick else (5000, 2000, 500)
    # An even number: there and back again.
    options.churn_renames, options.idle_seconds = (2, 5) if quick else (6, 20)
    known = {s.key for s in ALL}
    options.only = options.only.split(",") if options.only else sorted(known)
    if not set(options.only) <= known:
        parser.error(f"--only takes some of {','.join(sorted(known))}")
    if not 1280 <= options.mtu <= 65535:
        parser.error("--mtu: 1280 to 65535")
    names = [s.name for s in systems.ALL]
    options.systems = options.systems.split(",") if options.systems else names
    if not set(options.systems) <= set(names):
        parser.error(f"--systems takes some of {','.join(names)}")
    return options


def build():
    """Builds the release binary; tells where it is by the environment, for the run in namespaces."""
    print("==> building the release binary (the first time takes some minutes)", file=sys.stderr)
    done = subprocess.run(["cargo", "build", "--release", "--locked", "-p", "cdsync-daemon"], cwd=ROOT)
    if done.returncode != 0:
        sys.exit("error: the build failed (measure only the others with --systems rsync,lsyncd-0s,syncthing)")
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "release" / "cdsync"


def outside(options):
    """Checks, builds, and goes into namespaces. Does not return."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        sys.exit("error: this needs Linux and root, for network namespaces and file systems of its own.\n"
                 "  cargo build --release && sudo python3 bench/run.py --cdsync target/release/cdsync")
    for tool, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if not shutil.which(tool):
            sys.exit(f"error: no {tool} command: install {package} (make bench-setup)")
    extra = []
    if "cdsync" in options.systems and not options.cdsync:
        extra = ["--cdsync", str(build())]
    enter_namespaces([sys.executable, os.path.abspath(__file__), *sys.argv[1:], *extra])


def fit_to_memory(options):
    """Lowers what memory cannot hold twice, and says so."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    most = (available - (1 << 30)) // 2
    if "d" in options.only and options.file_bytes > most:
        options.file_bytes = max(64 << 20, most >> 26 << 26)
        print(f"NOTE: the file of (d) has {options.file_bytes >> 20} MiB: memory holds no two larger ones")
    if "c" in options.only and not options.quick and most < 2 << 30:
        options.only.remove("c")
        print("SKIPPED: (c): memory does not hold a kernel's source twice")
    if "f" in options.only and not options.quick and available < 8 << 30:
        options.only.remove("f")
        print("SKIPPED: (f): memory does not hold a kernel's source four times")


def choose(options):
    """The systems that can be measured; names the others."""
    chosen = {}
    for system in systems.ALL:
        if system.name not in options.systems:
            continue
        reason = system.missing(options)
        if reason:
            print(f"SKIPPED: {system.name}: {reason}" + (" (make bench-setup)" if system.needs else ""))
        else:
            chosen[system.name] = system
    return chosen


def measure(lab, kind, chosen, options):
    """All rounds of one scenario. Returns its part of the report, or None when nobody is asked."""
    asked = [name for name in kind.asked if name in chosen]
    if not asked:
        print(f"SKIPPED: ({kind.key}): none of {', '.join(kind.asked)} is here")
        return None
    scenario = kind(lab, options)
    progress(f"({scenario.key}) {scenario.name}: preparing")
    results = {name: [] for name in asked}
    try:
        scenario.prepare()
        for number in range(scenario.rounds()):
            # Every second round the other way round, so that nobody always follows the same one.
            for name in asked if number % 2 == 0 else reversed(asked):
                progress(f"({scenario.key}) round {number + 1} of {scenario.rounds()}: {name}")
                result = scenario.round(chosen[name])
                if "failed" in result:
                    progress(f"    failed: {result['failed']}")
                results[name].append(result)
    finally:
        scenario.finish()
    report.show(scenario, results, asked)
    sys.stdout.flush()
    return {"scenario": scenario.key, "name": scenario.name, "about": scenario.about, "base": asked[0],
            "results": results, "summary": {name: scenarios.summary(results[name]) for name in asked},
            "ratio": {name: report.ratio(results, name, asked[0]) for name in asked if scenario.key != "a"}}


def progress(text):
    print(f"    {time.strftime('%H:%M:%S')} {text}", file=sys.stderr)


def inside(options):
    """Runs the scenarios. Returns the exit status, which time never decides."""
    options.cdsync_missing = None if options.cdsync and os.access(options.cdsync, os.X_OK) else f"no binary: {options.cdsync}"
    options.cdsync = options.cdsync and os.path.abspath(options.cdsync)
    machine = report.machine()
    print(f"{machine['cores']} cores, {machine['cpu']}, {machine['memory_mib']} MiB, Linux {machine['kernel']}, link of {options.mtu} bytes")
    if machine["load_before"] > machine["cores"] / 4:
        print(f"NOTE: this machine is busy (load {machine['load_before']:.1f}): the figures will not be its best")
    if options.quick:
        print("NOTE: --quick: the sizes are too small to judge anybody by")
    fit_to_memory(options)
    chosen = choose(options)
    parts = []
    lab = Lab(options.mtu)
    try:
        for kind in ALL:
            if kind.key in options.only:
                part = measure(lab, kind, chosen, options)
                parts += [part] if part else []
    finally:
        lab.close()
    path = report.save(options.out, {
        "machine": machine, "versions": systems.versions(), "scenarios": parts,
        "options": {key: value for key, value in vars(options).items() if key != "cdsync_missing"}})
    print(f"\nwritten: {path}")
    ours = [part["summary"]["cdsync"] for part in parts if "cdsync" in part["summary"]]
    return 0 if all(found and found["valid"] for found in ours) else 1


def main():
    options = arguments()
    if os.environ.get(INSIDE) != "1":
        outside(options)
    # As the first process of its namespace this one gets no default actions.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("interrupted"))
    try:
        return inside(options)
    except LabError as error:
        return f"error: {error}"


if __name__ == "__main__":
    sys.exit(main())
