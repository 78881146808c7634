//! Names that a target's filesystem takes for one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_tests::{Cluster, Folding, is_root, job_file, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A source that keeps names apart by case, and a target that does not.
struct Bed {
    cluster: Cluster,
    source: PathBuf,
    target: PathBuf,
    _mounted: Folding,
}

impl Bed {
    fn start() -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED, needs root: a filesystem to which case does not count");
            return None;
        }
        let mut cluster = Cluster::start();
        let source = cluster.space.folder("source");
        let target = cluster.space.plain_folder("target");
        let Some(mounted) = Folding::mount(&target) else {
            eprintln!("SKIPPED, needs FUSE: a filesystem to which case does not count");
            return None;
        };
        cluster.agent("origin", &source);
        cluster.agent("edge", &target);
        Some(Self {
            cluster,
            source,
            target,
            _mounted: mounted,
        })
    }

    fn apply(&self) {
        let (source, target) = (("origin", &*self.source), [("edge", &*self.target)]);
        self.cluster
            .apply(&job_file("site", source, &target, ""), &[])
            .expect(0);
    }

    fn status(&self) -> Value {
        self.cluster.json("job status site")["targets"][0].take()
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(PATIENCE, what, || {
            let status = self.status();
            let held = holds(&status);
            if !held {
                std::thread::sleep(Duration::from_millis(50));
            }
            held
        });
    }

    /// The target lacks these, each of which has the name of the other one there.
    fn clash(&self, pairs: &[(&str, &str)]) {
        self.until("the clashes are told", |status| {
            let parked = status["parked"].as_array().unwrap();
            let lost = status["losses"].as_array().unwrap();
            parked.len() == pairs.len()
                && pairs.iter().all(|(path, other)| {
                    let reason = format!("its name is the same as '{other}' here");
                    let is_it = |one: &&Value| one["path"] == *path;
                    let is_parked = parked.iter().find(is_it).map(|one| &one["reason"]);
                    is_parked.is_some_and(|said| *said == *reason) && lost.iter().any(|l| is_it(&l))
                })
        });
    }

    fn settled(&self) {
        self.cluster.wait("site");
        self.same();
        self.until("nothing is lost", |status| count_of(&status["losses"]) == 0);
    }

    /// Names and contents; a filesystem of this kind has little else.
    fn same(&self) {
        assert_eq!(tree(&self.source), tree(&self.target));
    }
}

fn count_of(list: &Value) -> usize {
    list.as_array().unwrap().len()
}

/// All names below a folder, as they are listed, with the contents of files.
fn tree(top: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let (mut found, mut folders) = (Vec::new(), vec![top.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_name() == ".cdsync" {
                continue;
            }
            let path = entry.path();
            let below = path.strip_prefix(top).unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                found.push((below, None));
                folders.push(path);
            } else {
                found.push((below, Some(fs::read(path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

/// Proves that of two names which a target's filesystem takes for one the first stays, whatever is
/// done to the second; that the second is told with its reason; and that it comes as soon as the
/// first goes or is called otherwise, files and folders alike, also over a restart.
#[test]
fn the_first_of_two_names_stays() {
    let Some(mut bed) = Bed::start() else { return };
    let at = |name: &str| bed.source.join(name);
    fs::write(at("README"), "first").unwrap();
    fs::create_dir(at("Folder")).unwrap();
    fs::write(at("Folder/file"), "in the first").unwrap();
    bed.apply();
    bed.settled();
    let first = tree(&bed.target);
    fs::write(at("readme"), "second").unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/file"), "in the second").unwrap();
    fs::write(at("other"), "other").unwrap();
    wait_until(PATIENCE, "another file comes", || {
        bed.target.join("other").exists()
    });
    bed.until("the clash of the folders is told", |status| {
        count_of(&status["losses"]) == 2
    });
    fs::write(at("readme"), "second anew").unwrap();
    fs::remove_file(at("other")).unwrap();
    wait_until(PATIENCE, "the other file goes", || {
        !bed.target.join("other").exists()
    });
    assert_eq!(tree(&bed.target), first);
    fs::remove_dir_all(at("folder")).unwrap();
    bed.clash(&[("readme", "README")]);
    assert_eq!(tree(&bed.target), first);
    bed.cluster.stop("edge");
    bed.cluster.up("edge");
    bed.clash(&[("readme", "README")]);
    let at = |name: &str| bed.source.join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/file"), "in the third").unwrap();
    bed.until("the clash of the folders is told again", |status| {
        count_of(&status["losses"]) == 2
    });
    // The one goes, the other is called otherwise.
    fs::remove_file(at("README")).unwrap();
    fs::rename(at("Folder"), at("elsewhere")).unwrap();
    bed.settled();
}

/// Proves that a file, a folder and a link that get another spelling of their names get it at such
/// a target too, and that what is moved to a name that is taken there waits until that is free.
#[test]
fn names_are_spelt_anew() {
    let Some(bed) = Bed::start() else { return };
    let at = |name: &str| bed.source.join(name);
    fs::write(at("Read me"), "text").unwrap();
    fs::create_dir(at("Folder")).unwrap();
    fs::write(at("Folder/file"), "inside").unwrap();
    fs::write(at("taken"), "taken").unwrap();
    fs::write(at("moved"), "moved").unwrap();
    bed.apply();
    bed.settled();
    fs::rename(at("Read me"), at("READ ME")).unwrap();
    fs::rename(at("Folder"), at("folder")).unwrap();
    bed.settled();
    fs::rename(at("moved"), at("Taken")).unwrap();
    bed.clash(&[("Taken", "taken")]);
    assert_eq!(fs::read(bed.target.join("taken")).unwrap(), b"taken");
    assert_eq!(fs::read(bed.target.join("moved")).unwrap(), b"moved");
    fs::remove_file(at("taken")).unwrap();
    bed.settled();
}
