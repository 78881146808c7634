//! Hints that are lost: what happened meanwhile is found by comparing, and nothing comes back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cdsync_tests::{Cluster, is_root};

/// How many events the kernel keeps at most, of groups that are made from now on.
const QUEUE_LENGTH: &str = "/proc/sys/fs/fanotify/max_queued_events";
const QUIET: u64 = 200;
const BUSY: u64 = 40;
const BUSY_FILES: u64 = 20;
const FILE_BYTES: usize = 16 << 10;
const JOBS: [&str; 2] = ["one", "two"];

/// Two sources on one filesystem, each with quiet folders and busy ones.
struct Sources {
    /// The kernel's limit is one for all.
    _alone: MutexGuard<'static, ()>,
    cluster: Cluster,
    sources: [PathBuf; 2],
    targets: [PathBuf; 2],
}

/// What was there before hints were lost.
struct Before {
    listed: [u64; 2],
    read_bytes: u64,
    inodes: BTreeMap<PathBuf, u64>,
}

impl Sources {
    fn start() -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED: lost hints (needs root)");
            return None;
        }
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cluster = Cluster::start();
        let disks = ["source", "target"].map(|name| cluster.space.folder(name));
        let [sources, targets] = disks.map(|disk| JOBS.map(|job| disk.join(job)));
        for source in &sources {
            fs::create_dir(source).unwrap();
            fill(source);
        }
        targets
            .iter()
            .for_each(|path| fs::create_dir(path).unwrap());
        for (name, roots) in [("origin", &sources), ("edge", &targets)] {
            cluster.agent_in(name, "eu/one", &[&roots[0], &roots[1]]);
        }
        for (at, job) in JOBS.into_iter().enumerate() {
            cluster.job(job, ("origin", &sources[at]), &[("edge", &targets[at])]);
        }
        let sources = Self {
            _alone: alone,
            cluster,
            sources,
            targets,
        };
        sources.settled();
        Some(sources)
    }

    fn settled(&self) {
        for (at, job) in JOBS.into_iter().enumerate() {
            self.cluster.wait(job);
            self.cluster
                .assert_equal(job, &self.sources[at], &self.targets[at]);
        }
    }

    fn listed(&self) -> [u64; 2] {
        JOBS.map(|job| {
            let status = self.cluster.json(&format!("job status {job}"));
            status["sources"][0]["listed"].as_u64().expect("a number")
        })
    }

    fn before(&self) -> Before {
        Before {
            listed: self.listed(),
            read_bytes: self.cluster.usage("origin").read_bytes,
            inodes: inodes(&self.targets[0]),
        }
    }

    /// How many folders of each source were listed since. What stayed, or only moved, was not sent
    /// again, and nearly nothing was read.
    fn check(&self, before: &Before) -> [u64; 2] {
        let read = self.cluster.usage("origin").read_bytes - before.read_bytes;
        let content = 2 * BUSY * BUSY_FILES * FILE_BYTES as u64;
        assert!(read < content / 3, "{read} bytes were read of {content}");
        let now = inodes(&self.targets[0]);
        for (path, inode) in &now {
            let path = path.to_str().unwrap();
            let was = path
                .replace("moved/", "busy-1/")
                .replace("busy-2/from-3-", "busy-3/");
            if !path.contains("new") {
                let known = before.inodes.get(Path::new(&was));
                assert_eq!(known, Some(inode), "{path} was sent again");
            }
        }
        let listed = self.listed();
        [0, 1].map(|at| listed[at] - before.listed[at])
    }

    /// Freezes the source's agent while trees change, so that hints of it come all at once.
    fn at_once(&self, change: impl FnOnce()) {
        self.cluster.freeze("origin", true);
        change();
        self.cluster.freeze("origin", false);
    }
}

fn fill(top: &Path) {
    let write = |folder: String, files: u64| {
        fs::create_dir(top.join(&folder)).unwrap();
        for file in 0..files {
            let path = top.join(&folder).join(file.to_string());
            fs::write(path, vec![7; FILE_BYTES]).unwrap();
        }
    };
    (0..QUIET).for_each(|n| write(format!("quiet-{n}"), 1));
    (0..BUSY).for_each(|n| write(format!("busy-{n}"), BUSY_FILES));
}

/// Deletes of trees, renames of folders and files, and what is new.
fn change(top: &Path) {
    let at = |below: &str| top.join(below);
    for n in 10..20 {
        fs::remove_dir_all(at(&format!("busy-{n}"))).unwrap();
    }
    fs::rename(at("busy-1"), at("moved")).unwrap();
    for file in 0..BUSY_FILES {
        let (from, to) = (format!("busy-3/{file}"), format!("busy-2/from-3-{file}"));
        fs::rename(at(&from), at(&to)).unwrap();
    }
    fs::create_dir_all(at("busy-4/new/deep")).unwrap();
    fs::write(at("busy-4/new/deep/file"), "new").unwrap();
}

fn unchange(top: &Path) {
    let at = |below: &str| top.join(below);
    fs::rename(at("moved"), at("busy-1")).unwrap();
    for file in 0..BUSY_FILES {
        let (from, to) = (format!("busy-2/from-3-{file}"), format!("busy-3/{file}"));
        fs::rename(at(&from), at(&to)).unwrap();
    }
    fs::remove_dir_all(at("busy-4/new")).unwrap();
    for n in 10..20 {
        fs::create_dir(at(&format!("busy-{n}"))).unwrap();
        for file in 0..BUSY_FILES {
            let path = at(&format!("busy-{n}/{file}"));
            fs::write(path, vec![7; FILE_BYTES]).unwrap();
        }
    }
}

fn inodes(top: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if entry.file_name() == ".cdsync" {
                continue;
            }
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(top).unwrap().to_owned();
                found.insert(path, meta.ino());
            }
        }
    }
    found
}

/// A short queue for groups that are made while this lives.
struct ShortQueue(String);

impl ShortQueue {
    fn set() -> Self {
        let usual = fs::read_to_string(QUEUE_LENGTH).unwrap();
        fs::write(QUEUE_LENGTH, "32").unwrap();
        Self(usual)
    }
}

impl Drop for ShortQueue {
    fn drop(&mut self) {
        fs::write(QUEUE_LENGTH, &self.0).unwrap();
    }
}

/// Proves that, when more hints come than there is room for, the folders that they speak of are
/// compared and no others, that deletes and renames among them arrive as such, and that nothing is
/// read or sent for what only moved.
#[test]
fn own_overflow_compares_only_what_it_is_about() {
    let Some(mut sources) = Sources::start() else {
        return;
    };
    sources.cluster.stop("origin");
    sources.cluster.with_args("origin", &["--hints-max", "4"]);
    sources.cluster.up("origin");
    sources.settled();
    let before = sources.before();
    sources.at_once(|| change(&sources.sources[0]));
    sources.settled();
    let log = sources.cluster.cdsync(["job", "log", "one"]).out;
    assert!(log.contains("hints were lost"), "{log}");
    let [one, two] = sources.check(&before);
    eprintln!("{one} folders were compared");
    assert!(one > 0 && one < QUIET, "{one} folders were compared");
    assert_eq!(two, 0, "folders of another root were compared");
}

/// Proves that after an overflow of the kernel's own queue, which does not tell of what, and after
/// a time without an agent, all roots of that filesystem are compared by looks alone: nothing is
/// read of files that look as before, nothing that was removed stays or comes back, and what moved
/// is found by its identity.
#[test]
fn what_the_kernel_lost_is_found_by_looks_alone() {
    let Some(mut sources) = Sources::start() else {
        return;
    };
    // Politely, so that it has noted the hashes of what it sent.
    sources.cluster.stop("origin");
    let short = ShortQueue::set();
    sources.cluster.up("origin");
    sources.settled();
    drop(short);
    let before = sources.before();
    sources.at_once(|| change(&sources.sources[0]));
    sources.settled();
    let listed = sources.check(&before);
    eprintln!("{listed:?} folders were compared");
    let folders = QUIET + BUSY - 10;
    assert!(listed.iter().all(|n| *n >= folders), "{listed:?}");

    unchange(&sources.sources[0]);
    sources.settled();
    let mut before = sources.before();
    sources.cluster.kill("origin");
    change(&sources.sources[0]);
    sources.cluster.up("origin");
    sources.settled();
    // Of another process.
    (before.listed, before.read_bytes) = ([0; 2], 0);
    let listed = sources.check(&before);
    assert!(listed.iter().all(|n| *n >= folders), "{listed:?}");
}
