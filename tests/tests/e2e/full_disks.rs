//! Disks on which nothing more fits.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cdsync_tests::{Cluster, fill, is_root, unfill, wait_until};

/// Agents whose data lies on small disks of their own, and a job that is in sync; `None` where no
/// disk can be made.
fn start() -> Option<(Cluster, PathBuf, PathBuf)> {
    if !is_root() {
        eprintln!("SKIPPED: full disks (needs root)");
        return None;
    }
    let mut cluster = Cluster::start();
    for name in ["origin", "edge"] {
        cluster.space.disk(&format!("data-{name}"), "tmpfs", 16);
    }
    let source = cluster.space.folder("source");
    let target = cluster.space.disk("target", "tmpfs", 16);
    for number in 0..20 {
        fs::write(source.join(format!("{number}")), "content").unwrap();
    }
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    Some((cluster, source, target))
}

/// Changes files until the status of the job says this.
#[track_caller]
fn change_until_told(cluster: &Cluster, source: &std::path::Path, what: &str) {
    let mut number = 0;
    wait_until(
        Duration::from_secs(60),
        &format!("the status says {what:?}"),
        || {
            for _ in 0..50 {
                number += 1;
                fs::write(source.join(format!("new-{number}")), vec![7; 4000]).unwrap();
            }
            cluster.json("job status site").to_string().contains(what)
        },
    );
}

/// Proves that a ledger for which there is no room, of the source or of the target, is told of in
/// the job's status with its file, and that the job goes on by itself when there is room again.
#[test]
fn a_full_disk_of_a_ledger_is_told_and_survived() {
    let Some((cluster, source, target)) = start() else {
        return;
    };
    for name in ["edge", "origin"] {
        let data = cluster.data(name).to_owned();
        fill(&data);
        change_until_told(&cluster, &source, ".redb");
        unfill(&data);
        cluster.wait_state("site", "in-sync");
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    }
}

/// Proves that files for which a target has no room are named in the job's status, and arrive when
/// there is room again.
#[test]
fn a_full_target_is_told_and_survived() {
    let Some((cluster, source, target)) = start() else {
        return;
    };
    fill(&target);
    change_until_told(&cluster, &source, "No space left");
    unfill(&target);
    for name in fs::read_dir(&source).unwrap().flatten() {
        let name = name.file_name().into_string().unwrap();
        if name.starts_with("new-") && name.len() > "new-999".len() {
            fs::remove_file(source.join(name)).unwrap();
        }
    }
    cluster.wait("site");
    assert!(fs::remove_file(target.join("ballast")).is_err());
    cluster.assert_equal("site", &source, &target);
}

/// Proves that orders for which an agent's disk has no room are followed once it has, without
/// another word of the master.
#[test]
fn orders_that_do_not_fit_are_followed_later() {
    let Some((cluster, source, target)) = start() else {
        return;
    };
    let data = cluster.data("edge").to_owned();
    fill(&data);
    for words in ["pause", "resume"] {
        cluster.cdsync(["job", words, "site"]).expect(0);
    }
    wait_until(Duration::from_secs(60), "the orders do not fit", || {
        cluster.log("edge").contains("orders cannot be kept")
    });
    unfill(&data);
    fs::write(source.join("late"), "content").unwrap();
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}
