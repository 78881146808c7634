"""Tables for people, a file for machines."""

import json
import os
import platform
import statistics
import time

from scenarios import summary


def machine():
    """The machine, as far as it explains the figures."""
    model = "unknown"
    memory = 0
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                model = line.partition(":")[2].strip()
                break
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) // 1024
    return {"cores": len(os.sched_getaffinity(0)), "cpu": model, "memory_mib": memory,
            "kernel": platform.release(), "load_before": os.getloadavg()[0]}


def ratio(results, name, base, key="wall_s"):
    """The median over rounds of name/base, both of the same round."""
    pairs = [a[key] / b[key] for a, b in zip(results[name], results[base])
             if "failed" not in a and "failed" not in b and b[key] > 0]
    return statistics.median(pairs) if pairs else None


def show(scenario, results, asked):
    """Prints one scenario's table or tables."""
    about = ", ".join(f"{key} {value:,}" if isinstance(value, int) else str(value)
                      for key, value in scenario.about.items())
    print(f"\n({scenario.key}) {scenario.name}" + (f": {about}" if about else ""))
    latency, churn = scenario.key == "a", scenario.key == "f"
    if churn:
        rows = [("system", "runs", "wall s", "cpu s", "wire MB", "remarks")]
    elif latency:
        rows = [("system", "changes", "p50 ms", "p99 ms", "max ms", "remarks")]
    else:
        base = asked[0]
        rows = [("system", "runs", "wall s", "min..max", f"x {base}", "cpu s (src+tgt)", "peak MiB (src, tgt)", "wire MB", "remarks")]
    for name in asked:
        found = summary(results[name])
        if found is None:
            rows.append((name,) + ("-",) * (len(rows[0]) - 2) + ("FAILED: " + first_line(results[name]),))
        elif churn:
            rows.append((name, str(found["runs"]), f"{found['wall_s']:.3f}", f"{found['cpu_s']:.2f}",
                         wire(found["wire_bytes"]), remarks(found, results[name])))
        elif latency:
            rows.append((name, str(found["changes"]), f"{found['p50_ms']:.2f}", f"{found['p99_ms']:.2f}",
                         f"{found['max_ms']:.1f}", remarks(found, results[name])))
        else:
            factor = ratio(results, name, base)
            rows.append((name, str(found["runs"]), f"{found['wall_s']:.3f}",
                         f"{found['wall_min_s']:.3f}..{found['wall_max_s']:.3f}",
                         f"{factor:.2f}" if factor is not None else "-",
                         f"{found['cpu_s']:.2f} ({found['cpu_source_s']:.2f}+{found['cpu_target_s']:.2f})",
                         f"{found['rss_source_mib']:.0f}, {found['rss_target_mib']:.0f}",
                         wire(found["wire_bytes"]), remarks(found, results[name])))
    table(rows)
    for result in results[asked[0]]:
        if "phases" in result:
            show_phases(result)


def show_phases(result):
    """What each phase of a churn took, per process and per link, and the renames alone."""
    rows = [("phase", "made s", "wait s", "wall s", "cpu s", "peak MiB", "wire MB", "equal")]
    print(f"  seed {result['seed']}; of " + ", ".join(result["phases"][0]["cpu_s"]))
    for phase in result["phases"]:
        seconds = [phase.get(key) for key in ("made_s", "wait_s", "wall_s")]
        rows.append((phase["phase"], *("-" if value is None else f"{value:.3f}" for value in seconds),
                     " ".join(f"{value:.2f}" for value in phase["cpu_s"].values()),
                     " ".join(f"{mib:.0f}" for mib in phase["peak_mib"].values()),
                     " ".join(wire(count) for count in phase["wire_bytes"].values()),
                     " ".join(f"{server}: {'yes' if equal else 'NO'}" for server, equal in phase["equal"].items())))
    table(rows)
    for phase in result["phases"]:
        if "changes" in phase:
            counts = {**phase["switch"], **phase["changes"]}
            print(f"  {phase['phase']}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    show_renames(result["rename"])


def show_renames(found):
    """Each rename of the large folder on an idle system."""
    each = found["each"]
    print(f"  rename of {found['folder']}, alone, {len(each)} times:")
    for server in sorted(each[0]["ms"]):
        taken = sorted(one["ms"][server] for one in each)
        print(f"    {server}: new name after {statistics.median(taken):.2f} ms ({taken[0]:.2f}..{taken[-1]:.2f}; asked: 50)")
    print("    records: " + " ".join(str(one["records"]) for one in each) + " (asked: 1 each)")
    print(f"    bytes on both links: {' '.join(str(one['wire_bytes']) for one in each)};"
          f" an idle system's {found['idle_bytes_per_s']:.0f} a second taken off:"
          f" {' '.join(f'{count:.0f}' for count in found['net_bytes'])} (asked: below 4096)")
    print(f"    files at the targets: {'the same ones as before' if found['files_kept'] else 'WRITTEN ANEW'}")


def wire(count):
    return f"{count / 1e6:.1f}" if count >= 100_000 else f"{count / 1e6:.4f}"


def remarks(found, results):
    parts = []
    if not found["valid"]:
        bad = next(r for r in results if r.get("equal") is False)
        parts.append("INVALID, not equal: " + "; ".join(bad["differences"])[:200])
    if found["failed_runs"]:
        parts.append(f"{found['failed_runs']} failed: {first_line(results)}")
    if found.get("missed"):
        parts.append(f"{found['missed']} not seen in 30 s")
    if found["remark"]:
        parts.append(found["remark"])
    if found["not_kept"]:
        parts.append("does not keep " + ", ".join(found["not_kept"]))
    return "; ".join(parts)


def first_line(results):
    text = next(r["failed"] for r in results if "failed" in r)
    return " / ".join(text.strip().splitlines()[:2])[:160]


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:])]
        print("  " + "  ".join(cells + [row[-1]]).rstrip())


def save(folder, report):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, time.strftime("%Y%m%d-%H%M%S.json", time.gmtime()))
    with open(path, "w") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    return path
