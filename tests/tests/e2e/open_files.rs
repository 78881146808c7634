//! Files that are being written.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdsync_tests::{Cluster, job_file, wait_until};

/// Proves that a file which stays open and grows for longer than `max_age` arrives before it is
/// closed, and with its last byte afterwards.
#[test]
fn a_file_held_open_arrives() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let places = [("edge", target.as_path())];
    let job = job_file("site", ("origin", &source), &places, "max_age = \"300ms\"");
    cluster.apply(&job, &[]).expect(0);
    cluster.wait("site");
    let mut file = File::create(source.join("growing.log")).unwrap();
    let mut line = 0;
    let mut grow = || {
        line += 1;
        writeln!(file, "line {line} of a log that is never closed").unwrap();
    };
    let mut size = 0;
    for _ in 0..3 {
        wait_until(
            Duration::from_secs(20),
            "what was written arrives, unclosed",
            || {
                grow();
                std::thread::sleep(Duration::from_millis(20));
                fs::metadata(target.join("growing.log")).is_ok_and(|meta| meta.len() > size)
            },
        );
        let content = fs::read(target.join("growing.log")).unwrap();
        size = content.len() as u64;
        assert!(
            fs::read(source.join("growing.log"))
                .unwrap()
                .starts_with(&content)
        );
    }
    grow();
    drop(file);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}

/// One version of a file: its number, again and again, so that a mixture of two is seen.
fn version(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(5_000 + number as usize % 3_000)
}

/// Proves that who reads a target while its files are replaced never sees anything but a whole
/// version, in files that travel in one piece and in ranges.
#[test]
fn readers_never_see_a_torn_file() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    let pad = vec![0; 2 << 20];
    let write = |number: u32| {
        for (name, tail) in [("small", &pad[..0]), ("large", &pad)] {
            let temporary = source.join(format!("{name}~"));
            fs::write(&temporary, [&version(number), tail].concat()).unwrap();
            fs::rename(temporary, source.join(name)).unwrap();
        }
    };
    let read = |name: &str, tail: usize| {
        let content = fs::read(target.join(name)).ok()?;
        let number = u32::from_le_bytes(content[..4].try_into().unwrap());
        let expected = [&version(number), &pad[..tail]].concat();
        assert!(
            content == expected,
            "{name} is torn: {} bytes",
            content.len()
        );
        Some(number)
    };
    write(1);
    cluster.wait("site");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 2.. {
                write(number);
                std::thread::sleep(Duration::from_millis(8));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let stopped = Stopping(&stop);
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while seen.iter().any(|seen| seen.len() < 25) && std::time::Instant::now() < end {
            seen[0].extend(read("small", 0));
            seen[1].extend(read("large", pad.len()));
        }
        drop(stopped);
        let counts = seen.map(|seen| seen.len());
        assert!(
            counts.iter().all(|&count| count >= 25),
            "versions seen: {counts:?}"
        );
    });
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}

/// Proves that a log which is written to without a pause arrives as far as it had grown, and that a
/// file which is written all over without a pause is held, named in the status and by a fence, until
/// the job says that it is sent all the same; both arrive whole once nobody writes.
#[test]
fn files_that_never_rest_are_named() {
    const SIZE: usize = 8 << 20;
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let places = [("edge", target.as_path())];
    let job = |more: &str| job_file("site", ("origin", &source), &places, more);
    let hurried = "max_age = \"300ms\"";
    if cluster.space.clones_files() {
        eprintln!("skipped: files are cloned here, so that each of them rests");
        return;
    }
    cluster.apply(&job(hurried), &[]).expect(0);
    cluster.wait("site");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::create(source.join("wild")).unwrap();
            let mut log = File::create(source.join("log")).unwrap();
            for round in 0_u64.. {
                for at in 0..8 {
                    let bytes = vec![u8::try_from(round % 251).unwrap(); SIZE / 8];
                    file.write_all_at(&bytes, (at * SIZE / 8) as u64).unwrap();
                    log.write_all(&bytes[..64]).unwrap();
                    std::thread::sleep(Duration::from_micros(100));
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let stopped = Stopping(&stop);
        wait_until(Duration::from_secs(90), "the wild file is held", || {
            let status = cluster.json("job status site");
            let held = status["sources"][0]["held"].to_string();
            held.contains("wild: it is never at rest")
        });
        let said = cluster
            .cdsync(["job", "wait", "site", "--timeout", "5s"])
            .expect(1);
        assert!(said.err.contains("wild"), "{said:?}");
        wait_until(Duration::from_secs(60), "the log arrives", || {
            fs::metadata(target.join("log")).is_ok_and(|meta| meta.len() > 0)
        });
        assert!(!target.join("wild").exists());
        cluster
            .apply(&job(&format!("{hurried}\nunsettled = \"send\"")), &[])
            .expect(0);
        wait_until(Duration::from_secs(90), "the wild file arrives", || {
            fs::metadata(target.join("wild")).is_ok_and(|meta| meta.len() == SIZE as u64)
        });
        drop(stopped);
    });
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
}

/// Stops a writer, also when a test fails.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
