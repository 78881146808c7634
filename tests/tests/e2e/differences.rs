//! Large files of which a part changes.

use std::fs;
use std::os::unix::fs::FileExt as _;

use cdsync_tests::{Cluster, Random};

const SIZE: usize = 24 << 20;

/// What the job's log says of the newest difference: bytes exchanged, and the file's size.
fn exchanged(cluster: &Cluster) -> Vec<(u64, u64)> {
    let log = cluster.cdsync(["job", "log", "site"]).out;
    let lines = log
        .lines()
        .filter(|line| line.contains("exchanged for the"));
    let numbers = |line: &str| {
        let words: Vec<&str> = line.trim_end_matches(')').split_whitespace().collect();
        let bytes = words.iter().position(|word| *word == "bytes")?;
        let size = words.iter().rposition(|word| *word == "of")? + 1;
        Some((words[bytes - 1].parse().ok()?, words[size].parse().ok()?))
    };
    lines.filter_map(numbers).collect()
}

/// Proves that of a large file only what changed is sent, whether it is written in place, grows at
/// its end, or is replaced by one with bytes inserted and blocks moved; and that a target whose copy
/// somebody else changed gets the same content all the same.
#[test]
fn only_what_changed_is_sent() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    let file = source.join("image");
    let mut content = Random::new(7).bytes(SIZE);
    fs::write(&file, &content).unwrap();
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    let ends_equal = |what: &str, most: u64, times: usize| {
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
        let told = exchanged(&cluster);
        assert_eq!(told.len(), times, "{what}: {told:?}");
        let (bytes, size) = told[told.len() - 1];
        assert_eq!(size, fs::metadata(&file).unwrap().len(), "{what}");
        assert!(bytes <= most, "{what}: {bytes} bytes, at most {most}");
    };

    let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    for at in [5 << 20, 9_000_123, SIZE as u64 - 4096] {
        open.write_all_at(&[1; 4096], at).unwrap();
        content[at as usize..at as usize + 4096].fill(1);
    }
    drop(open);
    ends_equal("in place", 40 << 10, 1);

    content.extend_from_slice(&Random::new(8).bytes(100_000));
    let open = fs::OpenOptions::new().append(true).open(&file).unwrap();
    std::io::Write::write_all(&mut &open, &content[SIZE..]).unwrap();
    drop(open);
    ends_equal("appended", 140 << 10, 2);

    let moved = content.drain(1 << 20..3 << 20).collect::<Vec<u8>>();
    content.extend_from_slice(&moved);
    content.splice(0..0, *b"some bytes in front");
    fs::write(source.join("new"), &content).unwrap();
    fs::rename(source.join("new"), &file).unwrap();
    ends_equal("replaced", 100 << 10, 3);

    let theirs = fs::OpenOptions::new()
        .write(true)
        .open(target.join("image"));
    theirs
        .unwrap()
        .write_all_at(&[9; 300_000], 2 << 20)
        .unwrap();
    let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.write_all_at(b"one more change", 1 << 20).unwrap();
    drop(open);
    ends_equal("changed by others", 500 << 10, 4);
}
