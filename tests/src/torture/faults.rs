//! What goes wrong, and how it is put right again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_remount};

use super::{TARGETS, World};
use crate::aftermath::{Aftermath, output_within};
use crate::space::{fill, is_root, unfill};
use crate::wait::wait_until;

/// How long a fault lasts at most.
const LASTS_MAX_MS: u64 = 5000;
/// So few events does the kernel keep for a source that starts under [`Fault::Overflow`].
const SMALL_QUEUE: u32 = 32;
/// How far clocks are set: less than a lease lasts, on both sides of what counts as a jump.
const CLOCK_JUMPS_MS: [i64; 6] = [
    -86_400_000,
    -7_200_000,
    -5_000,
    30_000,
    7_200_000,
    86_400_000,
];
const QUEUE_LENGTH: &str = "/proc/sys/fs/fanotify/max_queued_events";
/// What Linux has unless somebody says otherwise.
const USUAL_QUEUE: u32 = 16_384;
/// Lets packets through again, and gives the kernel its usual queue, however the run ends.
const MEND: &str = r#"
if command -v nft >/dev/null; then
    nft list tables ip | awk -v prefix="$1" 'index($3, prefix) == 1 { print $3 }' |
        while read -r table; do nft delete table ip "$table"; done
fi
[ "$(cat "$2")" != "$3" ] || echo "$4" >"$2"
"#;
/// How long `nft` may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Something that goes wrong for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL, and started again later.
    Kill(&'static str),
    /// SIGTERM, and started again later.
    Stop(&'static str),
    /// SIGSTOP, and SIGCONT later.
    Freeze(&'static str),
    /// Nothing reaches this server's address.
    Cut(&'static str),
    /// Nothing more fits on the disk of a target's root.
    FullDisk(&'static str),
    /// Nothing more fits on the disk of an agent's ledgers.
    FullLedger(&'static str),
    /// A target's root can be read only.
    ReadOnly(&'static str),
    /// The disk of a root is not mounted; for a source, nobody works meanwhile.
    LostRoot(&'static str),
    /// The clock of an agent is set by so many milliseconds, and back later.
    Clock(&'static str, i64),
    /// The source is killed, and starts with a short queue of events at the kernel.
    Overflow,
}

impl Fault {
    /// What it concerns: one fault at a time for each.
    fn place(&self) -> String {
        match self {
            Self::Kill(name) | Self::Stop(name) | Self::Freeze(name) => format!("process {name}"),
            Self::Overflow => format!("process {}", super::SOURCE),
            Self::Cut(name) => format!("link {name}"),
            Self::FullDisk(name) | Self::ReadOnly(name) | Self::LostRoot(name) => {
                format!("disk {name}")
            }
            Self::FullLedger(name) => format!("data {name}"),
            Self::Clock(name, _) => format!("clock {name}"),
        }
    }
}

/// A fault that was begun.
#[derive(Debug)]
pub(super) struct Active {
    fault: Fault,
    until: Instant,
}

impl World {
    /// Begins a random fault, where there is none yet.
    pub(super) fn begin_fault(&mut self) {
        let processes = ["master", super::SOURCE, TARGETS[0], TARGETS[1]];
        let name = *self.random.pick(&processes);
        let agent = *self.random.pick(&processes[1..]);
        let target = *self.random.pick(&TARGETS);
        let jump = *self.random.pick(&CLOCK_JUMPS_MS);
        let fault = match self.random.below(if self.has_disks { 25 } else { 15 }) {
            0..=8 => Fault::Kill(name),
            9..=11 => Fault::Freeze(name),
            12 | 13 => Fault::Stop(name),
            14 => Fault::Clock(agent, jump),
            15 | 16 => Fault::Cut(processes[usize::from(self.random.below(3) > 0)]),
            17 | 18 => Fault::FullDisk(target),
            19 => Fault::FullLedger(agent),
            20 | 21 => Fault::ReadOnly(target),
            22 => Fault::LostRoot(target),
            23 => Fault::LostRoot(super::SOURCE),
            _ => Fault::Overflow,
        };
        let place = fault.place();
        if self
            .active
            .iter()
            .any(|active| active.fault.place() == place)
        {
            return;
        }
        let lasts = self
            .random
            .below(self.random.clone().below(LASTS_MAX_MS) + 1);
        self.note(format!("{fault:?} for {lasts} ms"));
        if self.begin(&fault) {
            let until = Instant::now() + Duration::from_millis(lasts);
            *self.tally.faults.entry(word(&fault)).or_default() += 1;
            self.active.push(Active { fault, until });
        }
    }

    /// Ends the faults whose time is over, or all of them.
    pub(super) fn end_faults(&mut self, all: bool) {
        let now = Instant::now();
        while let Some(at) = self.active.iter().position(|a| all || a.until <= now) {
            let fault = self.active.swap_remove(at).fault;
            self.note(format!("{fault:?} ends"));
            self.end(&fault);
        }
    }

    fn begin(&mut self, fault: &Fault) -> bool {
        match fault {
            Fault::Kill(name) => self.kill(name),
            Fault::Stop(name) => self.cluster.stop_early(name),
            Fault::Freeze(name) => self.cluster.freeze(name, true),
            Fault::Cut(name) => return self.cut(name),
            Fault::FullDisk(name) => fill(&self.disk(name).mount),
            Fault::FullLedger(name) => fill(self.cluster.data(name)),
            Fault::ReadOnly(name) => return self.read_only(name),
            Fault::LostRoot(name) => self.lose(name),
            Fault::Clock(name, jump) => self.cluster.shift_clock(name, *jump),
            Fault::Overflow => self.small_queue(),
        }
        true
    }

    fn end(&mut self, fault: &Fault) {
        match fault {
            Fault::Kill(name) | Fault::Stop(name) => self.cluster.spawn(name),
            Fault::Freeze(name) => self.cluster.freeze(name, false),
            Fault::Cut(name) => nft(&["delete", "table", "ip", &table(name)]),
            Fault::FullDisk(name) => unfill(&self.disk(name).mount),
            Fault::FullLedger(name) => unfill(self.cluster.data(name)),
            Fault::ReadOnly(name) => {
                mount_remount(&self.disk(name).mount, MountFlags::empty(), c"").unwrap();
            }
            Fault::LostRoot(name) => self.find(name),
            Fault::Clock(name, _) => self.cluster.shift_clock(name, 0),
            Fault::Overflow => {}
        }
    }

    fn kill(&mut self, name: &str) {
        self.cluster.kill(name);
        self.tally.kills += 1;
    }

    /// Drops what goes to a server's address, and what comes from it.
    fn cut(&self, name: &str) -> bool {
        if !self.cuts {
            return false;
        }
        let host = if name == "master" { 1 } else { 2 };
        let address = self.cluster.address(host, 0);
        let address = address.trim_end_matches(":0");
        let table = table(name);
        let hook = "{ type filter hook output priority 0; }";
        nft(&["add", "table", "ip", &table]);
        nft(&["add", "chain", "ip", &table, "out", hook]);
        for side in ["daddr", "saddr"] {
            nft(&[
                "add", "rule", "ip", &table, "out", "ip", side, address, "drop",
            ]);
        }
        true
    }

    /// A filesystem with files open for writing cannot be made so: then the agent dies first.
    fn read_only(&mut self, name: &'static str) -> bool {
        let mount = self.disk(name).mount.clone();
        let remount = || mount_remount(&mount, MountFlags::RDONLY, c"").is_ok();
        if remount() {
            return true;
        }
        let process = format!("process {name}");
        if self
            .active
            .iter()
            .any(|active| active.fault.place() == process)
        {
            return false;
        }
        self.kill(name);
        let done = remount();
        self.cluster.spawn(name);
        done
    }

    fn lose(&mut self, name: &str) {
        if name == super::SOURCE {
            self.crew.rest();
        } else {
            self.reader(name).absent();
        }
        let mount = self.disk(name).mount.clone();
        self.cluster.space.move_mount(&mount, &away(&mount));
    }

    fn find(&mut self, name: &str) {
        let mount = self.disk(name).mount.clone();
        let filled: Vec<_> = entries(&mount)
            .into_iter()
            .chain(entries(&self.disk(name).root))
            .filter(|path| *path != self.disk(name).root)
            .collect();
        self.expect(filled.is_empty(), || {
            format!("{name} filled a root whose disk was away: {filled:?}")
        });
        self.cluster.space.move_mount(&away(&mount), &mount);
        if name == super::SOURCE {
            self.crew.work();
        } else {
            self.reader(name).absent();
        }
    }

    fn small_queue(&mut self) {
        let usual = usual_queue();
        self.kill(super::SOURCE);
        let small = SMALL_QUEUE.to_string();
        fs::write(QUEUE_LENGTH, small).unwrap();
        self.cluster.spawn(super::SOURCE);
        let pid = self.cluster.pid(super::SOURCE).unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while !watches(pid) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::write(QUEUE_LENGTH, usual.to_string()).unwrap();
    }

    /// Lets all processes that should run go on running.
    pub(super) fn revive(&mut self) {
        for name in ["master", super::SOURCE, TARGETS[0], TARGETS[1]] {
            let held = self.active.iter().any(|active| {
                active.fault.place() == format!("process {name}")
                    && matches!(active.fault, Fault::Kill(_) | Fault::Stop(_))
            });
            if held || self.cluster.is_alive(name) {
                continue;
            }
            // Where nothing can be written an agent may refuse to start, and says so.
            let excused = self
                .active
                .iter()
                .any(|active| matches!(&active.fault, Fault::FullLedger(full) if *full == name));
            self.expect(excused, || format!("{name} ended by itself"));
            self.note(format!("{name} could not run; it is started again"));
            self.cluster.kill(name);
            self.cluster.spawn(name);
        }
    }

    /// Everything runs and is connected; halted jobs are told to go on.
    pub(super) fn recover(&mut self) {
        self.end_faults(true);
        self.revive();
        let minute = Duration::from_secs(60);
        wait_until(minute, "the master answers", || {
            self.cluster.cdsync(["status"]).code == 0
        });
        for name in [super::SOURCE, TARGETS[0], TARGETS[1]] {
            wait_until(minute, &format!("{name} is connected"), || {
                self.cluster.server_state(name).as_deref() == Some("connected")
            });
        }
        self.go_on();
    }

    /// Tells a halted job to go on. Returns whether it was halted.
    pub(super) fn go_on(&mut self) -> bool {
        let status = self.cluster.json(&format!("job status {}", super::JOB));
        let halted = status["state"] == "halted";
        if halted {
            self.note(format!("halted: {}", status["reason"]));
            self.cluster.cdsync(["job", "resume", super::JOB]).expect(0);
        }
        halted
    }
}

/// Puts right whatever is still wrong with the machine when the run has ended, or died.
pub(super) fn mend_after() -> Aftermath {
    let (small, usual) = (SMALL_QUEUE.to_string(), usual_queue().to_string());
    Aftermath::new(MEND, &[&table(""), QUEUE_LENGTH, &small, &usual])
}

/// Whether links can be cut here.
pub(super) fn can_cut() -> bool {
    is_root() && Command::new("nft").arg("--version").output().is_ok()
}

/// The kernel's, unless another run has made it short just now.
fn usual_queue() -> u32 {
    let text = fs::read_to_string(QUEUE_LENGTH).unwrap_or_default();
    match text.trim().parse() {
        Ok(length) if length > SMALL_QUEUE => length,
        _ => USUAL_QUEUE,
    }
}

fn table(name: &str) -> String {
    format!("cdsync_torture_{}_{name}", std::process::id())
}

fn word(fault: &Fault) -> String {
    let text = format!("{fault:?}");
    text.split('(').next().unwrap_or_default().to_owned()
}

fn away(mount: &Path) -> PathBuf {
    mount.with_extension("away")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

#[track_caller]
fn nft(words: &[&str]) {
    let said = output_within(COMMAND_MAX, Command::new("nft").args(words));
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "nft {words:?}: {error}");
}

/// Whether a process has a group of fanotify with a mark.
fn watches(pid: u32) -> bool {
    entries(Path::new(&format!("/proc/{pid}/fdinfo")))
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("fanotify sdev")))
}
