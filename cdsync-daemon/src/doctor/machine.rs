//! The kernel and its limits.

use std::fs;
use std::str::FromStr;

use rustix::process::{Resource, geteuid, getrlimit};
use rustix::system::uname;

use super::Findings;

/// Linux 5.17 has `FAN_RENAME`, by which renames are seen whole.
const KERNEL: (u32, u32) = (5, 17);
/// An agent needs some dozens, a busy one with many peers and roots a few thousand.
const DESCRIPTORS: u64 = 8192;
/// Events that may wait; beyond it the whole root is compared.
const EVENTS: u64 = 16_384;
/// Folders that may be watched without fanotify.
const WATCHES: u64 = 65_536;
/// What a socket may hold: less loses packets under QUIC.
const SOCKET_BYTES: u64 = 4 << 20;

pub(super) fn check(findings: &mut Findings) {
    kernel(findings);
    let is_root = geteuid().is_root();
    if is_root {
        findings.ok("privilege", "runs as root");
    } else {
        findings.warn(
            "privilege",
            "runs without root: owners and device nodes cannot be kept, and folders are watched one by one",
            "run the agent as root, or with CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH, CAP_CHOWN, CAP_FOWNER, CAP_DAC_OVERRIDE, CAP_MKNOD",
        );
    }
    descriptors(findings);
    at_least(
        findings,
        "event queue",
        "fs.fanotify.max_queued_events",
        EVENTS,
    );
    if !is_root {
        at_least(findings, "watches", "fs.inotify.max_user_watches", WATCHES);
    }
    for name in ["net.core.rmem_max", "net.core.wmem_max"] {
        at_least(findings, "socket buffers", name, SOCKET_BYTES);
    }
}

fn kernel(findings: &mut Findings) {
    let name = uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|n| u32::from_str(n).ok());
    let version = (number().unwrap_or(0), number().unwrap_or(0));
    if version >= KERNEL {
        findings.ok("kernel", format!("Linux {release}"));
    } else {
        findings.warn(
            "kernel",
            format!("Linux {release}: no FAN_RENAME, so folders are watched one by one"),
            "use Linux 5.17 or newer",
        );
    }
}

fn descriptors(findings: &mut Findings) {
    let limit = getrlimit(Resource::Nofile);
    match limit.maximum {
        Some(most) if most < DESCRIPTORS => findings.warn(
            "descriptors",
            format!("at most {most} open files and connections"),
            format!("raise the hard limit: LimitNOFILE={DESCRIPTORS} in the unit, or ulimit -Hn"),
        ),
        Some(most) => findings.ok("descriptors", format!("at most {most}")),
        None => findings.ok("descriptors", "no limit"),
    }
}

/// A number of `/proc/sys`, by its name as `sysctl` has it.
fn at_least(findings: &mut Findings, check: &'static str, name: &str, least: u64) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            let next = "nothing, if this kernel has no such setting";
            return findings.warn(check, format!("cannot read {path}: {error}"), next);
        }
    };
    match text.trim().parse::<u64>() {
        Ok(found) if found < least => findings.warn(
            check,
            format!("{name} is {found}"),
            format!("sysctl -w {name}={least}"),
        ),
        _ => findings.ok(check, format!("{name} is {}", text.trim())),
    }
}
