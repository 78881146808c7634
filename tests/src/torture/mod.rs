//! The torture run: a master, a source and two targets as processes; random work of every kind at
//! the source; random faults; readers that look at the targets all the time. After each round the
//! faults end, and both targets must equal the source.
//!
//! ```text
//! work.rs     what a worker does            faults.rs   what goes wrong
//! crew.rs     workers that rest together    whole.rs    files that tell whether they are whole
//! ```
//!
//! The seed gives the work of each worker and the faults in their order; who meets whom is the
//! machine's affair.

mod crew;
mod faults;
mod whole;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::aftermath::{Aftermath, output_within};
use crate::cluster::{Cluster, job_file};
use crate::compare::differences;
use crate::random::Random;
use crate::space::is_root;
use crew::Crew;
use whole::Reader;

const JOB: &str = "torture";
const SOURCE: &str = "origin";
const TARGETS: [&str; 2] = ["edge-1", "edge-2"];

/// Room for a root, and for the data of an agent.
const ROOT_MIB: u64 = 512;
const DATA_MIB: u64 = 256;
/// How long `job wait` may take after a round.
const WAIT: &str = "180s";
/// How much longer than asked a run may take: the last round's end, and a report.
const LATE_MAX: Duration = Duration::from_secs(600);
/// Between two faults, at most.
const CALM_MAX_MS: u64 = 1500;
/// How long keeping one disk of a failed run may take.
const COPY_MAX: Duration = Duration::from_secs(120);
/// Differences and lines of the timeline that are printed.
const TOLD_MAX: usize = 40;
const LINES_MAX: usize = 60;

/// How a run goes.
#[derive(Debug, Clone)]
pub struct Torture {
    /// Gives the work and the faults.
    pub seed: u64,
    /// How long the rounds last together, at least one.
    pub lasts: Duration,
    /// How long one round works before it is compared.
    pub round: Duration,
    /// Whether disks fill up, become read-only and vanish, links are cut and queues overflow. Needs
    /// root; without it processes are killed, frozen and restarted only.
    pub disks: bool,
    /// Whether files get second names. What is changed by a second name that comes and goes between
    /// two looks is not noticed before the next safety scan.
    pub links: bool,
    /// Of the roots, made for the run where it is root: `tmpfs`, or what `mkfs` makes.
    pub filesystem: String,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Tally {
    /// Rounds, each compared in the end.
    pub rounds: u64,
    /// Changes tried at the source.
    pub changes: usize,
    /// Processes killed by SIGKILL.
    pub kills: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Whole files read at targets, and different versions seen there.
    pub reads: (u64, u64),
    /// How long it took.
    pub took: Duration,
}

#[derive(Debug)]
struct Disk {
    /// What can be mounted elsewhere, made read-only, and filled.
    mount: PathBuf,
    /// What the job has, in it.
    root: PathBuf,
}

#[derive(Debug)]
struct World {
    // First: the threads end before what they work in is removed.
    crew: Crew,
    readers: Vec<Reader>,
    cluster: Cluster,
    /// The source's, and the targets'.
    disks: [Disk; 3],
    /// Whether the disks are filesystems of their own.
    has_disks: bool,
    random: Random,
    seed: u64,
    began: Instant,
    timeline: Vec<String>,
    active: Vec<faults::Active>,
    tally: Tally,
    /// Whether links can be cut.
    cuts: bool,
    _mend: Aftermath,
}

impl Torture {
    /// Runs it.
    ///
    /// # Panics
    /// When anything is not as it must be: with the seed, the timeline and the differences; what
    /// the servers had is kept, and where is printed.
    #[must_use]
    pub fn run(&self) -> Tally {
        eprintln!(
            "torture: seed {}, {} s on {}",
            self.seed,
            self.lasts.as_secs(),
            self.filesystem
        );
        let mut world = World::new(self);
        loop {
            world.round(self.round);
            if world.began.elapsed() >= self.lasts {
                break;
            }
        }
        world.tally.took = world.began.elapsed();
        let tally = std::mem::take(&mut world.tally);
        eprintln!("torture: seed {} passed: {tally:?}", self.seed);
        tally
    }
}

impl World {
    fn new(torture: &Torture) -> Self {
        let mut cluster = Cluster::start_for(torture.lasts + torture.round + LATE_MAX);
        let has_disks = torture.disks && is_root();
        let mut random = Random::new(torture.seed);
        let disks = [SOURCE, TARGETS[0], TARGETS[1]].map(|name| {
            let disk = format!("disk-{name}");
            let mount = if has_disks {
                cluster
                    .space
                    .disk(&format!("data-{name}"), "tmpfs", DATA_MIB);
                cluster.space.disk(&disk, &torture.filesystem, ROOT_MIB)
            } else {
                cluster.space.plain_folder(&disk)
            };
            let root = mount.join("root");
            fs::create_dir(&root).unwrap();
            Disk { mount, root }
        });
        let source = disks[0].root.clone();
        for folder in ["work", "whole"] {
            fs::create_dir(source.join(folder)).unwrap();
        }
        crate::make_tree(&source.join("work"), &mut random, 20, 200);
        let roots = disks.each_ref().map(|disk| disk.root.clone());
        for (name, root) in [SOURCE, TARGETS[0], TARGETS[1]].iter().zip(&roots) {
            cluster.agent(name, root);
        }
        let targets = [(TARGETS[0], &*roots[1]), (TARGETS[1], &*roots[2])];
        // The work deletes and empties most of what there is.
        let more = "guard = { percent = 100 }";
        let job = job_file(JOB, (SOURCE, &source), &targets, more);
        cluster.apply(&job, &[]).expect(0);
        Self {
            crew: Crew::new(&source, torture.seed, 3, torture.links),
            readers: roots[1..].iter().map(|root| Reader::start(root)).collect(),
            cluster,
            disks,
            has_disks,
            random,
            seed: torture.seed,
            began: Instant::now(),
            timeline: Vec::new(),
            active: Vec::new(),
            tally: Tally::default(),
            cuts: has_disks && faults::can_cut(),
            _mend: faults::mend_after(),
        }
    }

    fn disk(&self, name: &str) -> &Disk {
        let at = TARGETS.iter().position(|target| *target == name);
        &self.disks[at.map_or(0, |at| at + 1)]
    }

    fn reader(&self, name: &str) -> &Reader {
        let at = TARGETS.iter().position(|target| *target == name);
        &self.readers[at.expect("a target")]
    }

    fn note(&mut self, what: String) {
        let at = self.began.elapsed().as_secs_f64();
        self.timeline.push(format!("{at:9.3} {what}"));
    }

    fn round(&mut self, lasts: Duration) {
        self.tally.rounds += 1;
        self.note(format!("round {}", self.tally.rounds));
        let end = Instant::now() + lasts;
        self.crew.work();
        while Instant::now() < end {
            let calm = Duration::from_millis(self.random.below(CALM_MAX_MS));
            let next = (Instant::now() + calm).min(end);
            while Instant::now() < next {
                self.end_faults(false);
                self.revive();
                self.look_at_readers();
                std::thread::sleep(Duration::from_millis(10));
            }
            self.begin_fault();
        }
        self.note("calm".to_owned());
        let changes = self.crew.count();
        self.recover();
        self.crew.rest();
        self.settle();
        self.tally.changes = self.crew.count();
        self.tally.reads = self
            .readers
            .iter()
            .map(Reader::counts)
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let (rounds, kills) = (self.tally.rounds, self.tally.kills);
        eprintln!(
            "round {rounds} equal after {:.0} s: {changes} changes, {kills} kills so far",
            self.began.elapsed().as_secs_f64()
        );
    }

    fn look_at_readers(&mut self) {
        if let Some(wrong) = self.readers.iter().find_map(Reader::wrong) {
            self.note("a reader saw it".to_owned());
            if let Some(name) = wrong.rsplit('/').next().and_then(|s| s.split(':').next()) {
                self.explain(&[format!("reader whole/{name}")]);
            }
            self.fail(&format!("a reader saw what must not be: {wrong}"));
        }
    }

    /// Everything has arrived, and everything is equal.
    fn settle(&mut self) {
        let wait = ["job", "wait", JOB, "--timeout", WAIT];
        let mut said = self.cluster.cdsync(wait);
        // Whose connection was cut may have been halted without the master knowing.
        if said.code != 0 && self.go_on() {
            said = self.cluster.cdsync(wait);
        }
        self.note(format!("job wait: {}", said.code));
        let mut wrong = Vec::new();
        for name in TARGETS {
            let found = differences(&self.disks[0].root, &self.disk(name).root);
            wrong.extend(found.into_iter().map(|line| format!("{name} {line}")));
        }
        if said.code != 0 || !wrong.is_empty() {
            eprintln!("{}{}", said.out, said.err);
            self.explain(&wrong);
            self.fail(&format!(
                "job wait said {}; {} differences",
                said.code,
                wrong.len()
            ));
        }
        self.look_at_readers();
        for name in TARGETS {
            thin_trash(&self.disk(name).root);
        }
    }

    fn explain(&self, wrong: &[String]) {
        // Who is frozen answers nobody.
        self.cluster.thaw();
        eprintln!("{}", self.cluster.cdsync(["job", "status", JOB]).out);
        for line in wrong.iter().take(TOLD_MAX) {
            eprintln!("{line}");
        }
        let log = self.cluster.cdsync(["job", "log", JOB]).out;
        for line in wrong.iter().take(4) {
            let path = line.split(' ').nth(1).unwrap_or_default();
            let path = path.trim_end_matches(':');
            let said = self.cluster.cdsync(["job", "explain", JOB, "--", path]);
            eprintln!("{path}\n{}{}", said.out, said.err);
            for line in log.lines().filter(|line| line.contains(path)) {
                eprintln!("  {line}");
            }
        }
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(&what());
        }
    }

    /// Keeps what there is, tells how it came to it, and panics.
    fn fail(&mut self, what: &str) -> ! {
        let lines = self.timeline.len().saturating_sub(LINES_MAX);
        eprintln!("{}", self.timeline[lines..].join("\n"));
        let kept = std::env::temp_dir().join(format!("cdsync-torture-{}", self.seed));
        self.keep(&kept);
        panic!(
            "torture: {what}\nseed {}, after {:?}; what the servers had is in {}",
            self.seed,
            self.began.elapsed(),
            kept.display()
        );
    }

    fn keep(&mut self, kept: &Path) {
        let _ = fs::remove_dir_all(kept);
        fs::create_dir_all(kept).unwrap();
        fs::write(kept.join("timeline"), self.timeline.join("\n")).unwrap();
        self.crew.rest();
        for name in ["master", SOURCE, TARGETS[0], TARGETS[1]] {
            if self.cluster.pid(name).is_some() {
                self.cluster.kill(name);
            }
            fs::write(kept.join(format!("{name}.log")), self.cluster.log(name)).unwrap();
            copy(self.cluster.data(name), kept);
        }
        for disk in &self.disks {
            copy(&disk.mount, kept);
        }
    }
}

fn copy(from: &Path, into: &Path) {
    let done = output_within(COPY_MAX, Command::new("cp").arg("-a").arg(from).arg(into));
    if !done.status.success() {
        eprintln!("{} could not be kept whole", from.display());
    }
}

/// Nothing is ever removed from the trash: what is in it makes room for the next round.
fn thin_trash(root: &Path) {
    let folders = fs::read_dir(root.join(".cdsync").join(JOB).join("trash"));
    for folder in folders.into_iter().flatten().flatten() {
        let entries = fs::read_dir(folder.path()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name() != "manifest") {
            let path = entry.path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
}
