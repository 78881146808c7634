//! Roots that go away.

use std::fs;
use std::path::{Path, PathBuf};

use cdsync_tests::{Cluster, is_root};

fn start(mounted: bool) -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start();
    let source = match mounted {
        true => cluster.space.folder("source"),
        false => cluster.space.plain_folder("source"),
    };
    let target = cluster.space.folder("target");
    fs::create_dir(source.join("folder")).unwrap();
    for number in 0..20 {
        fs::write(source.join(format!("folder/{number}")), "content").unwrap();
    }
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    (cluster, source, target)
}

/// The job is halted with a reason, and `there` (where the source's content is now) is still what
/// the target has.
#[track_caller]
fn halted(cluster: &Cluster, there: &Path, target: &Path) {
    let status = cluster.wait_state("site", "halted");
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("nothing is deleted"), "{reason}");
    let said = cluster
        .cdsync(["job", "wait", "site", "--timeout", "5s"])
        .expect(1);
    assert!(
        said.err.contains("origin") || said.err.contains("halted"),
        "{}",
        said.err
    );
    cluster.assert_equal("site", there, target);
}

#[track_caller]
fn goes_on(cluster: &Cluster, source: &Path, target: &Path) {
    cluster.cdsync(["job", "resume", "site"]).expect(0);
    // What happened while it was away counts, too.
    fs::write(source.join("folder/after"), "after").unwrap();
    cluster.wait_state("site", "in-sync");
    cluster.wait("site");
    assert!(target.join("folder/after").exists());
    cluster.assert_equal("site", source, target);
}

/// Proves that a source folder that is renamed away, or replaced by an empty one, running or not,
/// halts its job and deletes nothing, and that the job goes on when it is back.
#[test]
fn a_source_folder_that_goes_away_halts_the_job() {
    let (mut cluster, source, target) = start(false);
    let away = source.with_file_name("away");
    fs::rename(&source, &away).unwrap();
    halted(&cluster, &away, &target);
    fs::rename(&away, &source).unwrap();
    goes_on(&cluster, &source, &target);

    fs::rename(&source, &away).unwrap();
    fs::create_dir(&source).unwrap();
    halted(&cluster, &away, &target);
    fs::remove_dir_all(&source).unwrap();
    fs::rename(&away, &source).unwrap();
    goes_on(&cluster, &source, &target);

    cluster.stop("origin");
    fs::rename(&source, &away).unwrap();
    fs::create_dir(&source).unwrap();
    cluster.up("origin");
    halted(&cluster, &away, &target);
    fs::remove_dir_all(&source).unwrap();
    fs::rename(&away, &source).unwrap();
    goes_on(&cluster, &source, &target);
}

/// Proves that a source whose filesystem is unmounted halts its job and deletes nothing, and that
/// the job goes on when it is mounted again.
#[test]
fn an_unmounted_source_halts_the_job() {
    let (mut cluster, source, target) = start(true);
    if !cluster.space.is_mounted(&source) {
        let why = if is_root() { "mounting" } else { "root" };
        eprintln!("SKIPPED: unmounting a source (needs {why})");
        return;
    }
    let away = source.with_file_name("away");
    cluster.space.move_mount(&source, &away);
    halted(&cluster, &away, &target);
    cluster.space.move_mount(&away, &source);
    goes_on(&cluster, &source, &target);

    cluster.stop("origin");
    cluster.space.move_mount(&source, &away);
    cluster.up("origin");
    halted(&cluster, &away, &target);
    cluster.space.move_mount(&away, &source);
    goes_on(&cluster, &source, &target);
}

/// Whether a root is a filesystem of its own, so that a test can go on.
fn is_mountable(cluster: &Cluster, path: &Path) -> bool {
    let mountable = cluster.space.is_mounted(path);
    if !mountable {
        let why = if is_root() { "mounting" } else { "root" };
        eprintln!("SKIPPED: roots that are mounted (needs {why})");
    }
    mountable
}

/// Proves that another filesystem which is mounted over a source, running or not, halts its job and
/// deletes nothing, and that the job goes on when it is away.
#[test]
fn a_filesystem_mounted_over_a_source_halts_the_job() {
    let (mut cluster, source, target) = start(true);
    if !is_mountable(&cluster, &source) {
        return;
    }
    let hidden = cluster.space.plain_folder("hidden");
    cluster.space.bind(&source, &hidden);
    cluster.space.cover(&source);
    halted(&cluster, &hidden, &target);
    // A word alone does not make it the right one.
    cluster.cdsync(["job", "resume", "site"]).expect(0);
    halted(&cluster, &hidden, &target);
    cluster.space.uncover(&source);
    goes_on(&cluster, &source, &target);

    cluster.stop("origin");
    cluster.space.cover(&source);
    cluster.up("origin");
    halted(&cluster, &hidden, &target);
    cluster.space.uncover(&source);
    goes_on(&cluster, &source, &target);
}

/// Proves that a target whose filesystem is not mounted, running or not, halts its job and that
/// nothing at all is written where it belongs; that the job goes on by itself when it is mounted
/// again.
#[test]
fn a_target_that_is_not_mounted_is_not_filled() {
    let (mut cluster, source, target) = start(true);
    if !is_mountable(&cluster, &target) {
        return;
    }
    let away = target.with_file_name("away-target");
    for running in [true, false] {
        if !running {
            cluster.stop("edge");
        }
        cluster.space.move_mount(&target, &away);
        if !running {
            cluster.up("edge");
        }
        fs::write(source.join(format!("folder/while-{running}")), "new").unwrap();
        let status = cluster.wait_state("site", "halted");
        assert!(
            status["reason"].as_str().unwrap().contains("edge"),
            "{status}"
        );
        cluster
            .cdsync(["job", "wait", "site", "--timeout", "2s"])
            .expect(1);
        let there = fs::read_dir(&target).unwrap().count();
        assert_eq!(there, 0, "something was written under the missing mount");
        cluster.space.move_mount(&away, &target);
        cluster.wait_state("site", "in-sync");
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    }
}
