//! Machines whose power is cut, on disks that forget what was not synced.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cdsync_tests::{
    Churn, Cluster, Random, Space, assert_equal, is_root, make_tree, seed, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ALL: [&str; 3] = ["master", "origin", "edge"];

/// A master and two agents, each with its data, and the agents with their trees too, on a disk of
/// its own; and a job that is in sync.
struct Machines {
    cluster: Cluster,
    random: Random,
    source: PathBuf,
    target: PathBuf,
}

impl Machines {
    /// `None` where no such disk can be made.
    fn start(filesystem: &str) -> Option<Self> {
        if !can_cut(filesystem) {
            return None;
        }
        // XFS makes none below 300 MiB.
        let mib = if filesystem == "xfs" { 320 } else { 96 };
        let mut space = Space::new();
        let disks = ALL.map(|name| space.disk(&format!("data-{name}"), filesystem, mib));
        let mut cluster = Cluster::start_with(space);
        let [source, target] = [&disks[1], &disks[2]].map(|disk| disk.join("tree"));
        cut(&mut cluster, "master");
        cluster.up("master");
        for (name, tree) in [("origin", &source), ("edge", &target)] {
            fs::create_dir(tree).unwrap();
            cluster.agent(name, tree);
            sync(&disks[1]);
        }
        let mut random = Random::new(seed());
        for (folder, files) in [("quiet", 100), ("busy", 60)] {
            fs::create_dir(source.join(folder)).unwrap();
            make_tree(&source.join(folder), &mut random, 8, files);
        }
        sync(&source);
        cluster.job("site", ("origin", &source), &[("edge", &target)]);
        Some(Self {
            cluster,
            random,
            source,
            target,
        })
    }

    /// Cuts the power of a machine; its disk is there again, and nothing runs.
    fn cut(&mut self, name: &str) {
        cut(&mut self.cluster, name);
        self.cluster.reboot(name, &mut self.random);
    }

    fn settled(&self) {
        self.cluster.wait("site");
        self.cluster
            .assert_equal("site", &self.source, &self.target);
    }
}

/// Whether there can be disks whose power can be cut.
fn can_cut(filesystem: &str) -> bool {
    let tools = ["xfs_io".to_owned(), format!("mkfs.{filesystem}")];
    let has = |tool: &String| Command::new(tool).arg("-V").output().is_ok();
    let can = is_root() && tools.iter().all(has);
    if !can {
        eprintln!("SKIPPED: power cuts on {filesystem} (needs root, {tools:?})");
    }
    can
}

fn cut(cluster: &mut Cluster, name: &str) {
    let disk = cluster.data(name).to_owned();
    cluster.space.cut_power(&disk);
    cluster.kill(name);
    cluster.space.restore_power(&disk);
}

fn sync(path: &Path) {
    let file = fs::File::open(path).unwrap();
    rustix::fs::syncfs(&file).unwrap();
}

/// Proves that after power cuts of any machine at any moment, while files change, everything comes
/// back by itself and the trees end equal.
#[test]
fn power_cuts_at_any_moment_end_equal() {
    for filesystem in ["ext4", "xfs"] {
        let Some(mut machines) = Machines::start(filesystem) else {
            return;
        };
        machines.settled();
        for round in 0..4 {
            let folder = machines.source.join("busy");
            let changes = Churn::start(&folder, seed() + round, 2, Duration::from_millis(2));
            let some = 20 + machines.random.below(200);
            wait_until(PATIENCE, "changes", || changes.count() > some);
            let name = *machines.random.pick(&ALL);
            eprintln!("{filesystem}: power cut of {name} after {some} changes");
            if name == "origin" {
                drop(changes);
                machines.cut(name);
            } else {
                machines.cut(name);
                drop(changes);
            }
            machines.cluster.up(name);
        }
        machines.settled();
    }
}

/// Proves that whatever a target claimed is on its disk when its power is cut right after.
#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    for filesystem in ["ext4", "xfs"] {
        let Some(mut machines) = Machines::start(filesystem) else {
            return;
        };
        for name in ALL {
            machines.cut(name);
            machines.cluster.up(name);
        }
        machines.settled();
        for round in 0..2 {
            let folder = machines.source.join("busy");
            let changes = Churn::start(&folder, seed() + round, 2, Duration::from_millis(2));
            wait_until(PATIENCE, "changes", || changes.count() > 100);
            drop(changes);
            machines.settled();
            machines.cut("edge");
            // Before anybody can bring it back.
            assert_equal(&machines.source, &machines.target);
            machines.cluster.up("edge");
        }
        machines.settled();
    }
}

/// Proves that a disk that fails under an agent's ledger is told in the job's status with the file,
/// that nothing counts as done meanwhile, and that the agent goes on by itself once the disk is
/// there again, with everything that it had claimed.
#[test]
fn a_failing_disk_of_a_ledger_is_told_and_survived() {
    let Some(mut disks) = Disks::start(&["origin", "edge"]) else {
        return;
    };
    for name in ["edge", "origin"] {
        let data = disks.cluster.data(name).to_owned();
        disks.cluster.space.cut_power(&data);
        let mut number = 0;
        wait_until(PATIENCE, "the failure is told", || {
            number += 1;
            fs::write(disks.source.join(format!("{name}-{number}")), "new").unwrap();
            let status = disks.cluster.json("job status site").to_string();
            status.contains(".redb") || status.contains("Input/output error")
        });
        let wait = ["job", "wait", "site", "--timeout", "1s"];
        assert_ne!(disks.cluster.cdsync(wait).code, 0);
        disks.cluster.space.restore_power(&data);
        disks.cluster.wait_state("site", "in-sync");
        disks.settled();
    }
}

/// Proves that a master whose disk fails says so to whoever wants something changed, that jobs go on
/// meanwhile, and that it works again, without a restart, once the disk is there again.
#[test]
fn a_failing_disk_of_the_master_is_told_and_survived() {
    let Some(mut disks) = Disks::start(&["master"]) else {
        return;
    };
    let data = disks.cluster.data("master").to_owned();
    let token = disks.cluster.space.path().join("owner.token");
    fs::copy(data.join("owner.token"), &token).unwrap();
    let address = disks.cluster.address(1, 7480);
    let said = |cluster: &Cluster, args: &[&str]| {
        let mut command = cluster.command();
        command.args(args).env("CDSYNC_MASTER", &address);
        let output = command.env("CDSYNC_TOKEN_FILE", &token).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let pause = ["job", "pause", "site"];
    disks.cluster.space.cut_power(&data);
    let (done, text) = said(&disks.cluster, &pause);
    assert!(!done && text.contains("store failed"), "{text}");
    fs::write(disks.source.join("meanwhile"), "new").unwrap();
    wait_until(PATIENCE, "jobs go on", || {
        disks.target.join("meanwhile").exists()
    });
    disks.cluster.space.restore_power(&data);
    for args in [pause, ["job", "resume", "site"]] {
        let (done, text) = said(&disks.cluster, &args);
        assert!(done, "{text}");
    }
    disks.settled();
}

/// A job whose trees are in memory, and the data of some processes on disks that may fail.
struct Disks {
    cluster: Cluster,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    fn start(names: &[&str]) -> Option<Self> {
        if !can_cut("ext4") {
            return None;
        }
        let mut space = Space::new();
        for name in names {
            space.disk(&format!("data-{name}"), "ext4", 96);
        }
        let mut cluster = Cluster::start_with(space);
        let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
        fs::write(source.join("first"), "content").unwrap();
        cluster.agent("origin", &source);
        cluster.agent("edge", &target);
        cluster.job("site", ("origin", &source), &[("edge", &target)]);
        let disks = Self {
            cluster,
            source,
            target,
        };
        disks.settled();
        Some(disks)
    }

    fn settled(&self) {
        self.cluster.wait("site");
        self.cluster
            .assert_equal("site", &self.source, &self.target);
    }
}
