//! Many files: how long the first copy, a restart and one change take, and how much memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::compare::assert_equal;
use crate::wait::wait_until;

/// What an agent may hold resident: this, and so much for each file.
const AGENT_MAX_BYTES: u64 = 64 << 20;
const FILE_MAX_BYTES: u64 = 16;
/// Files in one folder of [`Shape::Folders`].
const FOLDER_FILES: u64 = 100;
/// Changes whose latency is measured; the median counts.
const CHANGES: usize = 21;
/// How long anything may take, and all of it.
const WAIT: Duration = Duration::from_secs(3600);
const RUN_MAX: Duration = Duration::from_secs(4 * 3600);
const JOB: &str = "scale";

/// How the files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A hundred in each folder, each with other content.
    Folders,
    /// All in one folder.
    OneFolder,
    /// As `Folders`, all with one content.
    Identical,
    /// As `Folders`, all without content.
    Empty,
}

impl Shape {
    /// The shape of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "folders" => Self::Folders,
            "one-folder" => Self::OneFolder,
            "identical" => Self::Identical,
            "empty" => Self::Empty,
            _ => return None,
        })
    }

    fn make(self, top: &Path, files: u64) {
        for number in 0..files {
            let folder = match self {
                Self::OneFolder => top.join("all"),
                _ => top.join(format!("{}", number / FOLDER_FILES)),
            };
            if number == 0 || (self != Self::OneFolder && number.is_multiple_of(FOLDER_FILES)) {
                fs::create_dir(&folder).unwrap();
            }
            let content = match self {
                Self::Folders | Self::OneFolder => format!("file {number}\n"),
                Self::Identical => "the same in all\n".to_owned(),
                Self::Empty => String::new(),
            };
            fs::write(folder.join(format!("file-{number}")), content).unwrap();
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// How many files.
    pub files: u64,
    /// How they lie.
    pub shape: Shape,
}

/// Resident memory of a process.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Whose, and when.
    pub what: String,
    /// The most it had, in bytes.
    pub peak: u64,
    /// What it has now, in bytes.
    pub now: u64,
}

/// What was measured.
#[derive(Debug)]
pub struct Figures {
    /// From the job's making until `job wait` returned.
    pub first_copy: Duration,
    /// From the start of both agents until `job wait` returned.
    pub restart: Duration,
    /// Of one file written beside and renamed over; the median.
    pub change: Duration,
    /// After the first copy, and after the restart with its changes.
    pub memory: Vec<Memory>,
    /// The size of both ledgers, in bytes.
    pub ledgers: u64,
}

impl Scale {
    /// Measures. Both trees must be equal, and the agents within their bound.
    ///
    /// # Panics
    /// When they are not, or anything takes more than an hour.
    #[must_use]
    pub fn run(self) -> Figures {
        let mut cluster = Cluster::start_for(RUN_MAX);
        // What a file of some bytes takes in memory, with its inode, and what the ledger takes.
        let room = 256 + ((self.files * 8) >> 10);
        let [source, target] = ["source", "target"].map(|name| place(&mut cluster, name, room));
        self.shape.make(&source, self.files);
        cluster.agent("origin", &source);
        cluster.agent("edge", &target);

        let began = Instant::now();
        cluster.job(JOB, ("origin", &source), &[("edge", &target)]);
        wait(&cluster);
        let first_copy = began.elapsed();
        let mut memory = memory(&cluster, "first copy");
        assert_equal(&source, &target);

        for name in ["origin", "edge"] {
            cluster.stop(name);
        }
        let began = Instant::now();
        cluster.up("origin");
        cluster.up("edge");
        wait(&cluster);
        let restart = began.elapsed();
        let change = change(&source, &target);
        memory.extend(self::memory(&cluster, "restart"));
        wait(&cluster);
        assert_equal(&source, &target);
        self.check(&memory);
        let ledgers = ["origin", "edge"].map(|name| ledger_bytes(cluster.data(name)));
        Figures {
            first_copy,
            restart,
            change,
            memory,
            ledgers: ledgers.iter().sum(),
        }
    }

    /// What an agent may have resident.
    #[must_use]
    pub const fn bound(self) -> u64 {
        AGENT_MAX_BYTES + FILE_MAX_BYTES * self.files
    }

    fn check(self, memory: &[Memory]) {
        let agents = memory.iter().filter(|one| !one.what.starts_with("master"));
        let most = agents.map(|one| one.peak).max().unwrap_or_default();
        let bound = self.bound();
        assert!(most <= bound, "{most} bytes, {bound} at most: {memory:#?}");
    }
}

fn place(cluster: &mut Cluster, name: &str, mib: u64) -> PathBuf {
    if crate::is_root() {
        cluster.space.disk(name, "tmpfs", mib)
    } else {
        cluster.space.plain_folder(name)
    }
}

fn wait(cluster: &Cluster) {
    let timeout = format!("{}s", WAIT.as_secs());
    let said = cluster.cdsync_within(
        WAIT + Duration::from_secs(60),
        ["job", "wait", JOB, "--timeout", &timeout],
    );
    said.expect(0);
}

fn change(source: &Path, target: &Path) -> Duration {
    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|number| {
            let (beside, over) = (source.join("change~"), source.join("change"));
            fs::write(&beside, number.to_string()).unwrap();
            fs::rename(beside, over).unwrap();
            let began = Instant::now();
            wait_until(Duration::from_secs(60), "one change arrives", || {
                let there = || fs::read(target.join("change")).unwrap_or_default();
                // Between the looks of `wait_until` a latency would disappear.
                let end = Instant::now() + Duration::from_millis(50);
                while there() != number.to_string().as_bytes() && Instant::now() < end {
                    std::thread::sleep(Duration::from_micros(100));
                }
                there() == number.to_string().as_bytes()
            });
            let took = began.elapsed();
            std::thread::sleep(Duration::from_millis(50));
            took
        })
        .collect();
    took.sort();
    took[CHANGES / 2]
}

fn memory(cluster: &Cluster, when: &str) -> Vec<Memory> {
    ["master", "origin", "edge"]
        .map(|name| {
            let usage = cluster.usage(name);
            Memory {
                what: format!("{name} after the {when}"),
                peak: usage.peak_bytes,
                now: usage.resident_bytes,
            }
        })
        .into()
}

fn ledger_bytes(data: &Path) -> u64 {
    let files = fs::read_dir(data.join("ledgers")).unwrap().flatten();
    files.map(|file| file.metadata().unwrap().len()).sum()
}
