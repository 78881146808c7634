//! Targets that are not empty.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cdsync_tests::{Cluster, Random, assert_equal, job_file};

struct Bed {
    cluster: Cluster,
    source: PathBuf,
    target: PathBuf,
    /// What the target held before.
    kept: PathBuf,
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-aT").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// A target with a file that is equal, one that differs, and some that the source does not have.
fn bed() -> Bed {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    let kept = cluster.space.plain_folder("kept");
    fs::create_dir(source.join("sub")).unwrap();
    for (name, content) in [("equal", "same"), ("differs", "new"), ("sub/equal", "also")] {
        fs::write(source.join(name), content).unwrap();
    }
    copy(&source, &target);
    fs::write(target.join("differs"), "old content").unwrap();
    fs::create_dir(target.join("extra folder")).unwrap();
    fs::write(target.join("extra folder/inside"), "only here").unwrap();
    fs::write(target.join("extra"), "extra content").unwrap();
    copy(&target, &kept);
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    Bed {
        cluster,
        source,
        target,
        kept,
    }
}

impl Bed {
    fn job(&self) -> String {
        job_file(
            "site",
            ("origin", &self.source),
            &[("edge", &self.target)],
            "",
        )
    }

    /// Equal to the source; what was there is in the trash; equal files were not touched.
    fn adopted(&self, inode: u64) {
        self.cluster.wait("site");
        self.cluster
            .assert_equal("site", &self.source, &self.target);
        let trash = contents(&self.target.join(".cdsync/site/trash"));
        for gone in ["old content", "only here", "extra content"] {
            assert!(
                trash.iter().any(|content| content == gone.as_bytes()),
                "{gone} not in trash"
            );
        }
        let same = fs::metadata(self.target.join("sub/equal")).unwrap().ino();
        assert_eq!(same, inode, "an equal file was replaced");
    }
}

/// The contents of all files below a folder.
fn contents(top: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(contents(&entry.path())),
            false => found.push(fs::read(entry.path()).unwrap()),
        }
    }
    found
}

/// Proves that `job apply` does not touch a target that holds something, names what would go, and
/// that after `job accept` it is in the trash.
#[test]
fn a_target_that_is_not_empty_waits_to_be_accepted() {
    let bed = bed();
    let inode = fs::metadata(bed.target.join("sub/equal")).unwrap().ino();
    let said = bed.cluster.apply(&bed.job(), &[]).expect(1);
    let told = format!("{}{}", said.out, said.err);
    for word in [
        "edge",
        "differs",
        "extra",
        "extra folder",
        "job accept site",
    ] {
        assert!(told.contains(word), "{word} is not named:\n{told}");
    }
    assert!(!told.contains("sub/equal"), "{told}");
    assert_equal(&bed.kept, &bed.target);
    let said = bed
        .cluster
        .cdsync(["job", "wait", "site", "--timeout", "5s"])
        .expect(1);
    assert!(
        said.err.contains("edge") && said.err.contains("accept"),
        "{}",
        said.err
    );
    let status = bed.cluster.json("job status site");
    assert_eq!(status["targets"][0]["state"], "awaiting-accept");
    // A change at the source changes nothing there either.
    fs::write(bed.source.join("later"), "later").unwrap();
    let said = bed.cluster.apply(&bed.job(), &["--json"]).expect(1);
    assert_eq!(
        said.json()["status"]["targets"][0]["state"],
        "awaiting-accept"
    );
    assert_equal(&bed.kept, &bed.target);
    bed.cluster.cdsync(["job", "accept", "site"]).expect(0);
    bed.adopted(inode);
}

/// Proves that `job apply --adopt` takes a target over at once, and keeps what it removes.
#[test]
fn adopting_keeps_what_it_removes() {
    let bed = bed();
    let inode = fs::metadata(bed.target.join("sub/equal")).unwrap().ino();
    bed.cluster.apply(&bed.job(), &["--adopt"]).expect(0);
    bed.adopted(inode);
}

/// Proves that a target which holds something is not emptied by an empty source unasked, and that
/// this is said.
#[test]
fn an_empty_source_empties_nothing_unasked() {
    let bed = bed();
    for entry in fs::read_dir(&bed.source).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    let said = bed.cluster.apply(&bed.job(), &[]).expect(1);
    assert!(
        said.err.contains("would empty it"),
        "{}{}",
        said.out,
        said.err
    );
    assert_equal(&bed.kept, &bed.target);
}

/// Changes a file's bytes, and neither its size nor its modification time.
fn forge(file: &Path) {
    let before = fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = fs::read(file).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(file, bytes).unwrap();
    let file = File::options().write(true).open(file).unwrap();
    file.set_modified(before).unwrap();
}

/// Takes over a target on which a small and a large file have other bytes than the source's, and
/// the same size and time; another small and another large one are equal. Gives back what the
/// target held in the first two before, and the inodes of the other two.
fn take_over_forged(bed: &Bed, settings: &str) -> (Vec<Vec<u8>>, Vec<u64>) {
    let large = |seed| Random::new(seed).bytes(700_000);
    for (name, content) in [("large", large(1)), ("large equal", large(2))] {
        fs::write(bed.source.join(name), content).unwrap();
        copy(&bed.source.join(name), &bed.target.join(name));
    }
    let forged = ["equal", "large"].map(|name| bed.target.join(name));
    forged.iter().for_each(|file| forge(file));
    let forged = forged.map(|file| fs::read(file).unwrap()).to_vec();
    let inodes = EQUAL.map(|name| fs::metadata(bed.target.join(name)).unwrap().ino());
    let job = job_file(
        "site",
        ("origin", &bed.source),
        &[("edge", &bed.target)],
        settings,
    );
    bed.cluster.apply(&job, &["--adopt"]).expect(0);
    bed.cluster.wait("site");
    (forged, inodes.to_vec())
}

/// The files that are equal on both sides in [`take_over_forged`].
const EQUAL: [&str; 2] = ["sub/equal", "large equal"];

/// Proves that with `adopt_check = "content"` a file of equal size and time and other bytes is
/// replaced when a target is taken over, small or large, its bytes kept in the trash; and that equal
/// ones are not touched.
#[test]
fn a_target_is_taken_over_by_content_if_the_job_says_so() {
    let bed = bed();
    let (forged, inodes) = take_over_forged(&bed, "adopt_check = \"content\"");
    bed.cluster.assert_equal("site", &bed.source, &bed.target);
    let trash = contents(&bed.target.join(".cdsync/site/trash"));
    assert!(forged.iter().all(|bytes| trash.contains(bytes)));
    let now = EQUAL.map(|name| fs::metadata(bed.target.join(name)).unwrap().ino());
    assert_eq!(inodes, now, "an equal file was replaced");
}

/// Proves that by default equal size and time count as equal when a target is taken over.
#[test]
fn a_target_is_taken_over_by_time_by_default() {
    let bed = bed();
    let (forged, inodes) = take_over_forged(&bed, "");
    let now = ["equal", "large"].map(|name| fs::read(bed.target.join(name)).unwrap());
    assert!(forged == now, "a file was replaced");
    let now = EQUAL.map(|name| fs::metadata(bed.target.join(name)).unwrap().ino());
    assert_eq!(inodes, now, "an equal file was replaced");
}
