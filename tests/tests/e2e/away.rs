//! Targets that were away for longer than the source's log reaches back, and sources whose ledger
//! was lost.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_tests::{Cluster, Random, differences, job_file, make_tree, wait_until};

const SHORT_LOG: &str = "log = { age = \"7d\", size = \"64KiB\" }";
/// What a comparison may take on the wire here: some two hundred objects differ of two thousand.
const COMPARED_MAX_BYTES: u64 = 96 << 10;

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn equal(source: &Path, target: &Path) {
    wait_until(Duration::from_secs(60), "a target is equal", || {
        differences(source, target).is_empty()
    });
}

/// Lines of a job's log that speak of comparisons, and the bytes that the last one took.
fn compared(cluster: &Cluster) -> (usize, u64) {
    let log = cluster.cdsync(["job", "log", "site"]).out;
    let lines: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("names compared"))
        .collect();
    let bytes = lines.last().and_then(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().rposition(|word| word.starts_with("bytes"))?;
        words[at - 1].parse().ok()
    });
    (lines.len(), bytes.unwrap_or(0))
}

/// Fills the log beyond its bound: each change is a record.
fn fill_log(folder: &Path) {
    for round in 0..6 {
        for number in 0..100 {
            fs::write(folder.join(format!("busy-{number}")), format!("{round}")).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What happens while a target is away: files and folders are removed, moved, swapped, linked.
fn rebuild(source: &Path) {
    let at = |path: &str| source.join(path);
    for number in 0..20 {
        fs::remove_file(at(&format!("gone/{number}"))).unwrap();
    }
    fs::remove_dir(at("gone")).unwrap();
    for number in 0..20 {
        fs::rename(at(&format!("from/{number}")), at(&format!("to/{number}"))).unwrap();
    }
    fs::rename(at("deep/a"), at("top")).unwrap();
    fs::rename(at("swap-1"), at("swap-x")).unwrap();
    fs::rename(at("swap-2"), at("swap-1")).unwrap();
    fs::rename(at("swap-x"), at("swap-2")).unwrap();
    fs::rename(at("linked"), at("to/linked")).unwrap();
    fs::hard_link(at("to/linked"), at("to/third")).unwrap();
    fs::write(at("to/new"), "made meanwhile").unwrap();
}

fn prepare(source: &Path) {
    make_tree(source, &mut Random::new(7), 40, 1_200);
    for folder in ["gone", "from", "to", "deep", "deep/a", "busy"] {
        fs::create_dir(source.join(folder)).unwrap();
    }
    for number in 0..20 {
        fs::write(source.join(format!("gone/{number}")), "goes").unwrap();
        fs::write(
            source.join(format!("from/{number}")),
            format!("moves {number}"),
        )
        .unwrap();
    }
    fs::write(source.join("deep/a/file"), "in a folder that moves").unwrap();
    fs::write(source.join("swap-1"), "one").unwrap();
    fs::write(source.join("swap-2"), "two").unwrap();
    fs::write(source.join("linked"), "two names").unwrap();
    fs::hard_link(source.join("linked"), source.join("second")).unwrap();
}

/// Proves that a target that was away for longer than the log reaches back is caught up by
/// comparing: deletes, moves and links of that time arrive, what moved is moved and not sent again,
/// the comparison takes bytes for what differs only, and another target does not notice. A target
/// that is added later, when the log does not begin with its first record any more, is asked about
/// and filled.
#[test]
fn a_target_away_beyond_the_log_is_caught_up() {
    let mut cluster = Cluster::start();
    let [source, near, far, late] =
        ["source", "near", "far", "late"].map(|name| cluster.space.folder(name));
    prepare(&source);
    cluster.agent("origin", &source);
    cluster.agent("near", &near);
    cluster.agent("far", &far);
    let targets: [(&str, &Path); 2] = [("near", &near), ("far", &far)];
    let text = job_file("site", ("origin", &source), &targets, SHORT_LOG);
    cluster.apply(&text, &[]).expect(0);
    cluster.wait("site");
    let (moved, folder) = (inode(&far.join("from/3")), inode(&far.join("deep/a")));
    let quiet = inode(&far.join("second"));

    cluster.stop("far");
    rebuild(&source);
    fill_log(&source.join("busy"));
    equal(&source, &near);
    let before = compared(&cluster).0;
    cluster.up("far");
    cluster.wait("site");
    cluster.assert_equal("site", &source, &far);
    cluster.assert_equal("site", &source, &near);
    let (times, bytes) = compared(&cluster);
    assert_eq!(times, before + 1, "one target compares, once");
    assert!(bytes > 0 && bytes < COMPARED_MAX_BYTES, "{bytes} bytes");
    assert_eq!(inode(&far.join("to/3")), moved, "a file was sent again");
    assert_eq!(inode(&far.join("top")), folder, "a folder was made anew");
    assert_eq!(inode(&far.join("second")), quiet, "a link was sent again");

    fs::write(late.join("foreign"), "only here").unwrap();
    cluster.agent("late", &late);
    let targets: [(&str, &Path); 3] = [("near", &near), ("far", &far), ("late", &late)];
    let text = job_file("site", ("origin", &source), &targets, SHORT_LOG);
    cluster.apply(&text, &[]).expect(1);
    let status = cluster.wait_state("site", "awaiting-accept");
    assert!(status.to_string().contains("foreign"), "{status}");
    cluster.cdsync(["job", "accept", "site"]).expect(0);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &late);
}

/// The only source ledger below an agent's data.
fn source_ledger(data: &Path) -> PathBuf {
    let entries = fs::read_dir(data.join("ledgers")).unwrap().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths
        .find(|path| path.to_string_lossy().ends_with("-source.redb"))
        .unwrap()
}

/// Proves that after the loss of a source's ledger its target compares by what its files look like:
/// equal files stay as they are, what changed meanwhile arrives, and the job goes on.
#[test]
fn a_lost_source_ledger_sends_nothing_again() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    prepare(&source);
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    let quiet: Vec<_> = (0..20)
        .map(|n| inode(&target.join(format!("from/{n}"))))
        .collect();

    cluster.stop("origin");
    fs::remove_file(source_ledger(cluster.data("origin"))).unwrap();
    fs::write(source.join("from/new"), "made meanwhile").unwrap();
    fs::remove_file(source.join("gone/3")).unwrap();
    cluster.up("origin");
    equal(&source, &target);
    cluster.wait("site");
    let after: Vec<_> = (0..20)
        .map(|n| inode(&target.join(format!("from/{n}"))))
        .collect();
    assert_eq!(quiet, after, "equal files were sent again");
    fs::write(source.join("to/later"), "goes on").unwrap();
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}
