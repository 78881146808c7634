//! What is bounded stays so, and hinders nobody else.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cdsync_tests::{Cluster, differences, wait_until};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

const PATIENCE: Duration = Duration::from_secs(60);
/// What an agent may have resident: this, and 16 bytes for each file.
const AGENT_MAX_BYTES: u64 = 64 << 20;

/// Writes files anew, some small, some that are pulled by range.
fn rewrite(source: &Path, round: u8) {
    for number in 0..1500 {
        let folder = source.join((number % 20).to_string());
        fs::create_dir_all(&folder).unwrap();
        let bytes = if number % 100 == 0 { 2 << 20 } else { 8 << 10 };
        fs::write(folder.join(number.to_string()), vec![round; bytes]).unwrap();
    }
}

fn until_equal(source: &Path, target: &Path) -> Duration {
    let began = Instant::now();
    wait_until(PATIENCE, "the target is equal", || {
        let equal = differences(source, target).is_empty();
        if !equal {
            std::thread::sleep(Duration::from_millis(20));
        }
        equal
    });
    began.elapsed()
}

/// Proves that a target that takes nothing slows no other down, and makes its source hold no more
/// than its bound; and that it catches up once it goes on.
#[test]
fn a_stalled_target_slows_nobody() {
    let mut cluster = Cluster::start();
    let [source, quick, slow] = ["source", "quick", "slow"].map(|name| cluster.space.folder(name));
    for (name, root) in [("origin", &source), ("quick", &quick), ("slow", &slow)] {
        cluster.agent(name, root);
    }
    let targets = [("quick", &*quick), ("slow", &*slow)];
    cluster.job("site", ("origin", &source), &targets);
    cluster.wait("site");
    rewrite(&source, 1);
    let usual = until_equal(&source, &quick);
    cluster.wait("site");
    cluster.freeze("slow", true);
    for round in 2..6 {
        rewrite(&source, round);
        let took = until_equal(&source, &quick);
        eprintln!("{took:?}, {usual:?} with both");
        assert!(took < 3 * usual + Duration::from_secs(1), "{took:?}");
    }
    let peak = cluster.usage("origin").peak_bytes;
    eprintln!("the source had {} MiB at most", peak >> 20);
    assert!(peak < AGENT_MAX_BYTES, "{peak} bytes");
    cluster.freeze("slow", false);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &slow);
}

/// Allows a process so many more descriptors than it has; `None`: as many as it may have.
fn allow(cluster: &Cluster, name: &str, more: Option<u64>) {
    let pid = cluster
        .pid(name)
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = more.map_or(maximum, |more| Some(cluster.usage(name).descriptors + more));
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// Proves that an agent without descriptors left, as source or as target, goes on living, says what
/// it cannot do, and does it by itself once there are some.
#[test]
fn descriptors_that_run_out_are_told_and_survived() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    for name in ["edge", "origin"] {
        allow(&cluster, name, Some(0));
        let mut number = 0;
        wait_until(PATIENCE, &format!("{name} says what is missing"), || {
            number += 1;
            let folder = source.join(format!("{name}-{number}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("file"), "new").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            cluster
                .json("job status site")
                .to_string()
                .contains("Too many open files")
        });
        assert!(cluster.is_alive(name));
        allow(&cluster, name, None);
        cluster.wait_state("site", "in-sync");
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    }
}
