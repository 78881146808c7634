//! Processes that end and come back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_tests::{Churn, Cluster, Random, make_tree, seed, wait_until};

/// A source with a quiet and a busy folder, and one target that has all of it.
fn start(random: &mut Random) -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start();
    let source = cluster.space.folder("source");
    let target = cluster.space.folder("target");
    for (folder, files) in [("quiet", 300), ("busy", 60)] {
        fs::create_dir(source.join(folder)).unwrap();
        make_tree(&source.join(folder), random, 10, files);
    }
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
    (cluster, source, target)
}

/// The inodes of all files of a tree: a file that was sent anew has another one.
fn inodes(top: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path(), meta.ino());
            }
        }
    }
    found
}

fn shuffle<T>(list: &mut [T], random: &mut Random) {
    for at in (1..list.len()).rev() {
        let other = random.below(at as u64 + 1);
        list.swap(at, usize::try_from(other).unwrap());
    }
}

/// Waits until some more changes were made.
fn let_change(churn: &Churn, count: u64) {
    let end = churn.count() + count;
    wait_until(Duration::from_secs(30), "more changes", || {
        churn.count() >= end
    });
}

fn all_connected(cluster: &Cluster) {
    for name in ["origin", "edge"] {
        wait_until(
            Duration::from_secs(30),
            &format!("{name} is connected"),
            || cluster.server_state(name).as_deref() == Some("connected"),
        );
    }
}

/// Proves that master, source and target may each be stopped and started in any order while files
/// change: the target is equal in the end, and what did not change was not sent again.
#[test]
fn polite_restarts_in_any_order_end_equal() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut cluster, source, target) = start(&mut random);
    let before = inodes(&target.join("quiet"));
    let churn = Churn::start(&source.join("busy"), seed, 2, Duration::from_millis(8));
    let mut names = ["master", "origin", "edge"];
    shuffle(&mut names, &mut random);
    for name in names {
        eprintln!("{name} restarts");
        let_change(&churn, 40);
        cluster.stop(name);
        let_change(&churn, 40);
        cluster.up(name);
    }
    for _ in 0..2 {
        shuffle(&mut names, &mut random);
        eprintln!("all end: {names:?}");
        for name in names {
            cluster.stop(name);
            let_change(&churn, 10);
        }
        shuffle(&mut names, &mut random);
        eprintln!("all begin: {names:?}");
        for name in names {
            cluster.spawn(name);
            let_change(&churn, 10);
        }
        wait_until(Duration::from_secs(30), "the master answers", || {
            cluster.cdsync(["status"]).code == 0
        });
        all_connected(&cluster);
    }
    let_change(&churn, 20);
    eprintln!("{} changes", churn.stop());
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
    assert_eq!(
        inodes(&target.join("quiet")),
        before,
        "files were sent again"
    );
}

/// Proves that with the end of their orders' lease a source and a target move nothing any more and
/// keep everything, that changes are recorded meanwhile, and that all arrives once the master is
/// heard of again.
#[test]
fn nothing_moves_after_the_end_of_a_lease() {
    let (mut cluster, source, target) = start(&mut Random::new(seed()));
    let recorded = cluster.source_seq("site");
    cluster.stop("master");
    let eight_days = Duration::from_hours(8 * 24);
    for name in ["origin", "edge"] {
        cluster.stop(name);
        cluster.shift_clock(name, i64::try_from(eight_days.as_millis()).unwrap());
        cluster.spawn(name);
        wait_until(Duration::from_secs(30), "the lease's end is told", || {
            cluster
                .log(name)
                .contains("nothing moves until the master is heard of")
        });
    }
    let before = inodes(&target);
    fs::write(source.join("late"), "1").unwrap();
    fs::remove_file(source.join("busy").join(first_file(&source.join("busy")))).unwrap();
    // The master comes back; by their clocks its orders have ended too.
    cluster.up("master");
    all_connected(&cluster);
    wait_until(Duration::from_secs(30), "both changes are recorded", || {
        // The master knows of none before the source's first report.
        let status = cluster.json("job status site");
        let seq = status["sources"][0]["seq"].as_u64();
        seq.is_some_and(|seq| seq >= recorded + 2)
    });
    assert_eq!(inodes(&target), before, "something moved");
    for name in ["origin", "edge"] {
        cluster.stop(name);
        cluster.shift_clock(name, 0);
        cluster.up(name);
    }
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}

fn first_file(folder: &Path) -> std::ffi::OsString {
    let mut entries = fs::read_dir(folder).unwrap().flatten();
    let file = entries.find(|entry| entry.file_type().unwrap().is_file());
    file.unwrap().file_name()
}

/// Proves that the source's and the target's agent may be killed at any moment while files change:
/// the target is equal in the end, and what did not change was not sent again.
#[test]
fn killed_agents_resume() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut cluster, source, target) = start(&mut random);
    let before = inodes(&target.join("quiet"));
    let churn = Churn::start(&source.join("busy"), seed, 2, Duration::from_millis(6));
    for name in ["edge", "origin", "edge", "origin"] {
        let_change(&churn, 60);
        cluster.kill(name);
        let_change(&churn, 20);
        cluster.up(name);
    }
    let_change(&churn, 20);
    eprintln!("{} changes", churn.stop());
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
    assert_eq!(
        inodes(&target.join("quiet")),
        before,
        "files were sent again"
    );
}

/// Moves folders about at random, with what is below them: to other folders, into each other's
/// places, and inside out.
fn storm(top: &Path, random: &mut Random, moves: u64) {
    let below = |path: &Path, of: &Path| path.starts_with(of);
    for _ in 0..moves {
        let folders: Vec<PathBuf> = {
            let mut found = vec![top.to_owned()];
            let mut at = 0;
            while at < found.len() {
                let entries = fs::read_dir(&found[at]).unwrap().flatten();
                let below: Vec<_> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
                found.extend(below);
                at += 1;
            }
            found
        };
        let mut pick = || {
            let at = random.below(folders.len() as u64 - 1) + 1;
            folders[usize::try_from(at).unwrap()].clone()
        };
        let (a, b) = (pick(), pick());
        if below(&a, &b) || below(&b, &a) {
            // Inside out: the inner one comes up, the outer one goes below it.
            let (outer, inner) = if below(&a, &b) { (b, a) } else { (a, b) };
            let spare = top.join("inner");
            if outer != inner && fs::rename(&inner, &spare).is_ok() {
                fs::rename(&outer, spare.join("outer")).ok();
                fs::rename(&spare, &outer).ok();
            }
        } else if random.below(2) == 0 {
            let spare = top.join("spare");
            fs::rename(&a, &spare).unwrap();
            fs::rename(&b, &a).unwrap();
            fs::rename(&spare, &b).unwrap();
        } else {
            let to = b.join(a.file_name().unwrap());
            if !to.exists() {
                fs::rename(&a, &to).unwrap();
            }
        }
    }
}

/// Proves that a target killed in the middle of moving folders about ends equal, and that
/// nothing which stayed was sent again.
#[test]
fn kills_in_a_storm_of_moves_end_equal() {
    let mut random = Random::new(seed());
    let (mut cluster, source, target) = start(&mut random);
    let storms = source.join("busy");
    let before = inodes(&target.join("quiet"));
    for round in 0..4 {
        eprintln!("round {round}");
        storm(&storms, &mut random, 40);
        // The first moves have come when the agent is killed in the midst of the others.
        let mark = storms.join(format!("mark-{round}"));
        fs::write(&mark, b"here").unwrap();
        let arrived = target.join("busy").join(mark.file_name().unwrap());
        storm(&storms, &mut random, 40);
        wait_until(Duration::from_secs(30), "the mark arrives", || {
            arrived.exists()
        });
        cluster.kill("edge");
        storm(&storms, &mut random, 20);
        cluster.up("edge");
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    }
    assert_eq!(
        inodes(&target.join("quiet")),
        before,
        "files were sent again"
    );
}

/// Proves that changes keep arriving while the master is away, also at agents that start meanwhile.
#[test]
fn changes_arrive_without_the_master() {
    let seed = seed();
    let (mut cluster, source, target) = start(&mut Random::new(seed));
    cluster.stop("master");
    let churn = Churn::start(&source.join("busy"), seed, 1, Duration::from_millis(8));
    let pulse = |number: u32| {
        let (temporary, name) = (source.join("pulse~"), format!("pulse-{number}"));
        fs::write(&temporary, &name).unwrap();
        fs::rename(&temporary, source.join(&name)).unwrap();
        wait_until(Duration::from_secs(15), &format!("{name} arrives"), || {
            fs::read(target.join(&name)).is_ok_and(|content| content == name.as_bytes())
        });
    };
    for number in 0..40 {
        pulse(number);
        std::thread::sleep(Duration::from_millis(50));
    }
    for (name, number) in [("edge", 40), ("origin", 41)] {
        cluster.stop(name);
        cluster.spawn(name);
        pulse(number);
    }
    drop(churn);
    cluster.up("master");
    all_connected(&cluster);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}
