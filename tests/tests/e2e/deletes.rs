//! Many deletes at once.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_tests::{Cluster, wait_until};
use serde_json::Value;

const FOLDERS: usize = 50;
const FILES: usize = 100;
const ALL: usize = FOLDERS * FILES;
/// What a target may lose before its job halts: 1 %.
const FREE: usize = ALL / 100;
/// How long a machine that is busy with other tests may need for all of these files.
const PATIENCE: Duration = Duration::from_secs(180);

struct Bed {
    cluster: Cluster,
    source: PathBuf,
    target: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let mut cluster = Cluster::start();
        let source = cluster.space.folder("source");
        let target = cluster.space.folder("target");
        for folder in 0..FOLDERS {
            fill(&source.join(format!("folder-{folder}")));
        }
        cluster.agent("origin", &source);
        cluster.agent("edge", &target);
        cluster.job("site", ("origin", &source), &[("edge", &target)]);
        cluster.wait("site");
        Self {
            cluster,
            source,
            target,
        }
    }

    /// `rm -rf` of all that is in the source's root.
    fn empty(&self) {
        for entry in entries(&self.source) {
            if entry.is_dir() {
                fs::remove_dir_all(entry).unwrap();
            } else {
                fs::remove_file(entry).unwrap();
            }
        }
    }

    /// The job has halted in time, and says so everywhere.
    #[track_caller]
    fn halted(&self) -> Value {
        let mut status = Value::Null;
        wait_until(PATIENCE, "the job is halted", || {
            status = self.cluster.json("job status site");
            status["state"] == "halted" && !status["sources"][0]["deletes"].is_null()
        });
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.contains("no file would be left"), "{reason}");
        let deletes = &status["sources"][0]["deletes"];
        let number = |name: &str| usize::try_from(deletes[name].as_u64().unwrap()).unwrap();
        assert_eq!(number("files"), ALL, "{deletes}");
        assert_eq!(number("held") + number("gone"), ALL, "{deletes}");
        assert!(number("gone") <= FREE, "{deletes}");
        assert_eq!(deletes["emptied"], true, "{deletes}");
        let names = deletes["names"].as_array().unwrap();
        assert!((1..=20).contains(&names.len()), "{deletes}");
        let there = files(&self.target);
        assert!(there >= ALL - FREE, "{there} of {ALL} files are left");
        let said = self.cluster.cdsync(["job", "wait", "site"]).expect(1);
        let first = names[0].as_str().unwrap();
        assert!(said.err.contains(first), "{}", said.err);
        status
    }

    /// Copies what the target has back to the source, folders that are empty there by now too.
    fn copy_back(&self) {
        for folder in entries(&self.target) {
            let at = self.source.join(folder.file_name().unwrap());
            fs::create_dir_all(&at).unwrap();
            for file in entries(&folder) {
                fs::copy(&file, at.join(file.file_name().unwrap())).unwrap();
            }
        }
    }
}

fn fill(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for file in 0..FILES {
        fs::write(folder.join(format!("file-{file}")), "content").unwrap();
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let own = all.filter(|entry| entry.file_name() != ".cdsync");
    own.map(|entry| entry.path()).collect()
}

fn files(folder: &Path) -> usize {
    let each = entries(folder).into_iter();
    each.map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}

/// Proves that of a source whose root is emptied at most 1 % of the files have gone at its target
/// when its job halts, that nothing more goes until somebody decides, that what had gone comes back
/// when they say so, that the job goes on when the files are back, and that all go when accepted.
#[test]
fn an_emptied_root_halts_the_job() {
    let bed = Bed::new();
    bed.empty();
    bed.halted();
    let shown = bed.cluster.cdsync(["job", "resume", "site"]).expect(1);
    for part in [
        "of 5000 files",
        "are held",
        "--accept",
        "--restore",
        "--again",
    ] {
        let all = format!("{}{}", shown.out, shown.err);
        assert!(all.contains(part), "{part}: {all}");
    }
    // Looking again finds the same.
    bed.cluster
        .cdsync(["job", "resume", "site", "--again"])
        .expect(0);
    bed.halted();

    bed.cluster
        .cdsync(["job", "resume", "site", "--restore"])
        .expect(0);
    wait_until(PATIENCE, "all files are back at the target", || {
        files(&bed.target) == ALL
    });
    assert_eq!(bed.cluster.json("job status site")["state"], "halted");
    bed.copy_back();
    bed.cluster
        .cdsync(["job", "resume", "site", "--again"])
        .expect(0);
    bed.cluster.wait("site");
    assert_eq!(files(&bed.target), ALL);
    bed.cluster.assert_equal("site", &bed.source, &bed.target);

    bed.empty();
    bed.halted();
    let said = bed
        .cluster
        .cdsync(["job", "resume", "site", "--accept"])
        .expect(0);
    assert!(said.out.contains("deletes go"), "{}", said.out);
    bed.cluster.wait("site");
    assert_eq!(files(&bed.target), 0);
    bed.cluster.assert_equal("site", &bed.source, &bed.target);
    bed.cluster
        .cdsync(["job", "resume", "site", "--accept"])
        .expect(1);
}

/// Proves the same of a root that was emptied while its agent was down, and that a restart of the
/// agent decides nothing.
#[test]
fn a_root_emptied_while_the_agent_is_down_halts_the_job() {
    let mut bed = Bed::new();
    bed.cluster.stop("origin");
    bed.empty();
    bed.cluster.up("origin");
    bed.halted();
    assert_eq!(files(&bed.target), ALL);
    bed.cluster.kill("origin");
    bed.cluster.up("origin");
    bed.halted();
    assert_eq!(files(&bed.target), ALL);
    bed.cluster
        .cdsync(["job", "resume", "site", "--accept"])
        .expect(0);
    bed.cluster.wait("site");
    assert_eq!(files(&bed.target), 0);
}

/// Proves that files of two names each count once for the guard, that removing one name of each halts
/// nothing, and that deletes which are taken back bring back both names as one file.
#[test]
fn files_of_two_names_come_back_as_such() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    for folder in ["one", "other"] {
        fs::create_dir(source.join(folder)).unwrap();
    }
    let at = |top: &Path, which: &str, file: usize| top.join(format!("{which}/{file}"));
    for file in 0..60 {
        fs::write(at(&source, "one", file), format!("file {file}")).unwrap();
        fs::hard_link(at(&source, "one", file), at(&source, "other", file)).unwrap();
    }
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    // One name each of most of them: all files live on.
    for file in 20..60 {
        let which = if file % 2 == 0 { "one" } else { "other" };
        fs::remove_file(at(&source, which, file)).unwrap();
    }
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
    // A few go for good, then all.
    for file in 0..3 {
        for which in ["one", "other"] {
            fs::remove_file(at(&source, which, file)).unwrap();
        }
    }
    cluster.wait("site");
    for which in ["one", "other"] {
        for entry in entries(&source.join(which)) {
            fs::remove_file(entry).unwrap();
        }
    }
    let mut deletes = Value::Null;
    wait_until(PATIENCE, "the job is halted", || {
        let status = cluster.json("job status site");
        deletes = status["sources"][0]["deletes"].clone();
        status["state"] == "halted" && !deletes.is_null()
    });
    let number = |name: &str| deletes[name].as_u64().unwrap();
    assert_eq!(number("files"), 60, "{deletes}");
    assert_eq!(number("gone") + number("held"), 60, "{deletes}");
    assert!((3..10).contains(&number("gone")), "{deletes}");
    cluster
        .cdsync(["job", "resume", "site", "--restore"])
        .expect(0);
    let is_back = |file: usize| {
        let names = ["one", "other"].map(|which| fs::metadata(at(&target, which, file)));
        matches!(&names, [Ok(one), Ok(other)] if one.ino() == other.ino())
    };
    wait_until(PATIENCE, "both names of the files are back", || {
        (0..3).all(is_back)
    });
}

/// Proves that a few deletes, a fifth of the files at once, and a folder that is removed and made
/// anew halt nothing and arrive.
#[test]
fn usual_deletes_arrive() {
    let bed = Bed::new();
    for file in 0..8 {
        fs::remove_file(bed.source.join(format!("folder-0/file-{file}"))).unwrap();
    }
    bed.cluster.wait("site");
    assert_eq!(files(&bed.target), ALL - 8);
    for folder in 1..=10 {
        fs::remove_dir_all(bed.source.join(format!("folder-{folder}"))).unwrap();
    }
    bed.cluster.wait("site");
    assert_eq!(files(&bed.target), ALL - 8 - 10 * FILES);
    for folder in 11..=15 {
        let folder = bed.source.join(format!("folder-{folder}"));
        fs::remove_dir_all(&folder).unwrap();
        fill(&folder);
    }
    bed.cluster.wait("site");
    bed.cluster.assert_equal("site", &bed.source, &bed.target);
}
