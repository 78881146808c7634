//! What a target keeps: its trash, and what others changed in its root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_tests::{Cluster, Random, is_root, job_file, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A source and a target that hold the same four files, under settings of the job file.
pub(crate) struct Kept {
    pub(crate) cluster: Cluster,
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
}

impl Kept {
    fn start(settings: &str) -> Self {
        Self::start_with(settings, &|_| {})
    }

    /// The same with what `make` makes in the source besides.
    pub(crate) fn start_with(settings: &str, make: &dyn Fn(&Path)) -> Self {
        let mut cluster = Cluster::start();
        let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
        for name in ["one", "two", "three", "four"] {
            fs::write(source.join(name), name).unwrap();
        }
        make(&source);
        cluster.agent("origin", &source);
        cluster.agent("edge", &target);
        let kept = Self {
            cluster,
            source,
            target,
        };
        kept.settings(settings);
        kept.settled();
        kept
    }

    pub(crate) fn settings(&self, settings: &str) {
        let (source, target) = (("origin", &*self.source), [("edge", &*self.target)]);
        let text = job_file("site", source, &target, settings);
        self.cluster.apply(&text, &[]).expect(0);
    }

    pub(crate) fn settled(&self) {
        self.cluster.wait("site");
        self.cluster
            .assert_equal("site", &self.source, &self.target);
    }

    pub(crate) fn status(&self) -> Value {
        self.cluster.json("job status site")["targets"][0].take()
    }

    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(PATIENCE, what, || {
            let status = self.status();
            let held = holds(&status);
            if !held {
                std::thread::sleep(Duration::from_millis(50));
            }
            held
        });
    }

    pub(crate) fn target(&self, name: &str) -> String {
        fs::read_to_string(self.target.join(name)).unwrap_or_default()
    }

    pub(crate) fn trash(&self) -> Vec<String> {
        contents(&self.target.join(".cdsync/site/trash"))
    }

    pub(crate) fn said_in_log(&self, text: &str) -> bool {
        self.cluster
            .cdsync(["job", "log", "site"])
            .out
            .contains(text)
    }
}

/// What the files below a folder hold, sorted, but for what describes the trash itself.
fn contents(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if name != "manifest" && name != "total" {
                found.push(fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }
    found.sort();
    found
}

/// Proves that deleted and replaced files are kept in the trash, that the status tells of them, and
/// that they go when they are too old for the job's settings.
#[test]
fn the_trash_is_kept_for_a_while() {
    let kept = Kept::start("");
    fs::remove_file(kept.source.join("one")).unwrap();
    fs::write(kept.source.join("two"), "two anew").unwrap();
    fs::write(kept.source.join(".new"), "three anew").unwrap();
    fs::rename(kept.source.join(".new"), kept.source.join("three")).unwrap();
    kept.settled();
    assert!(
        kept.trash().contains(&"one".to_owned()),
        "{:?}",
        kept.trash()
    );
    assert!(
        kept.trash().contains(&"two".to_owned()),
        "{:?}",
        kept.trash()
    );
    assert!(
        kept.trash().contains(&"three".to_owned()),
        "{:?}",
        kept.trash()
    );
    kept.until("the status tells of the trash", |status| {
        let trash = &status["trash"];
        trash["entries"].as_u64() >= Some(3) && trash["oldest_ms"].is_u64()
    });
    let text = kept.cluster.cdsync(["job", "status", "site"]).expect(0).out;
    assert!(text.contains("in the trash"), "{text}");
    kept.settings("[trash]\nage = \"1s\"");
    kept.until("the trash is empty", |status| {
        status["trash"]["entries"] == 0 && kept.trash().is_empty()
    });
    kept.settled();
}

/// Proves that nothing goes from the trash for its age while a server's clock is known to have jumped,
/// ahead or back, and that what came to the trash by a clock that was behind is not too old once that
/// is set right.
#[test]
fn the_trash_is_kept_while_the_clock_is_wrong() {
    const DAY_MS: i64 = 24 * 3600 * 1000;
    let kept = Kept::start("[trash]\nage = \"1d\"");
    fs::remove_file(kept.source.join("one")).unwrap();
    kept.settled();
    let is_unsure = |status: &Value| {
        let trouble = status["trash"]["trouble"].as_str().unwrap_or_default();
        trouble.contains("clock jumped")
    };
    kept.until("the clock is right", |status| !is_unsure(status));
    kept.cluster.shift_clock("edge", 3 * DAY_MS);
    kept.until("the clock is known to be wrong", is_unsure);
    assert!(kept.trash().contains(&"one".to_owned()));
    kept.cluster.shift_clock("edge", -3 * DAY_MS);
    fs::remove_file(kept.source.join("two")).unwrap();
    kept.settled();
    kept.until("both are in the trash", |status| {
        is_unsure(status) && status["trash"]["entries"] == 2
    });
    kept.cluster.shift_clock("edge", 0);
    // With new orders the master says how late it is.
    kept.settings("[trash]\nage = \"2d\"");
    kept.until("the clock is right again", |status| !is_unsure(status));
    let trash = kept.trash();
    for name in ["one", "two"] {
        assert!(trash.contains(&name.to_owned()), "{trash:?}");
    }
}

/// Proves that a job that erases leaves nothing of what was deleted or replaced.
#[test]
fn erasing_keeps_nothing() {
    let kept = Kept::start("on_delete = \"erase\"");
    fs::create_dir_all(kept.source.join("folder/inner")).unwrap();
    fs::write(kept.source.join("folder/inner/file"), "inner").unwrap();
    kept.settled();
    fs::remove_file(kept.source.join("one")).unwrap();
    fs::write(kept.source.join("two"), "two anew").unwrap();
    fs::remove_dir_all(kept.source.join("folder")).unwrap();
    kept.settled();
    wait_until(PATIENCE, "nothing is left", || {
        ["stage", "spare", "trash"]
            .iter()
            .all(|folder| contents(&kept.target.join(".cdsync/site").join(folder)).is_empty())
    });
}

/// Changes three files at the target and the same three at the source: one by content, one by
/// deleting it there, one by its mode only. A fourth is only at the target, where the source makes
/// one of that name.
fn quarrel(kept: &Kept) {
    for name in ["one", "two"] {
        fs::write(kept.target.join(name), "theirs").unwrap();
    }
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(kept.target.join("three"), mode).unwrap();
    fs::write(kept.target.join("five"), "theirs too").unwrap();
    fs::write(kept.source.join("one"), "one anew").unwrap();
    fs::remove_file(kept.source.join("two")).unwrap();
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(kept.source.join("three"), mode).unwrap();
    fs::write(kept.source.join("five"), "five").unwrap();
    fs::write(kept.source.join("four"), "four anew").unwrap();
}

/// Proves that what others changed at a target is replaced, that nothing of it is lost, and that
/// status and log tell of it.
#[test]
fn others_changes_are_overwritten_and_kept_in_the_trash() {
    let kept = Kept::start("");
    quarrel(&kept);
    kept.settled();
    let trash = kept.trash();
    assert_eq!(
        trash.iter().filter(|text| *text == "theirs").count(),
        2,
        "{trash:?}"
    );
    assert!(trash.contains(&"theirs too".to_owned()), "{trash:?}");
    kept.until("four changes are told", |status| {
        let names = status["drift"]["names"].as_array().unwrap();
        status["drift"]["count"] == 4
            && ["one", "two", "three", "five"]
                .iter()
                .all(|name| names.iter().any(|n| n == name))
    });
    assert_eq!(kept.status()["drift"]["alert"], false);
    assert!(kept.said_in_log("changed by others"));
}

/// Proves that what others changed stays under `keep` without holding up anything else, that it
/// ends when theirs is taken away, and for the rest when a manager accepts the source's versions.
#[test]
fn others_changes_stay_if_the_job_says_so() {
    let settings = "drift = \"keep\"\n[retry]\nfirst = \"50ms\"\nmost = \"200ms\"";
    let mut kept = Kept::start(settings);
    quarrel(&kept);
    kept.until("four are kept", |status| status["drift"]["kept"] == 4);
    wait_until(PATIENCE, "the fourth file arrives", || {
        kept.target("four") == "four anew"
    });
    for (name, text) in [("one", "theirs"), ("two", "theirs"), ("five", "theirs too")] {
        assert_eq!(kept.target(name), text);
    }
    let status = kept.status();
    let reasons: Vec<&Value> = status["parked"].as_array().unwrap().iter().collect();
    assert!(
        reasons
            .iter()
            .all(|one| one["reason"] == "kept: changed by others"),
        "{reasons:?}"
    );
    fs::remove_file(kept.target.join("five")).unwrap();
    wait_until(PATIENCE, "the free name is taken", || {
        kept.target("five") == "five"
    });
    kept.until("three are kept", |status| status["drift"]["kept"] == 3);
    kept.cluster.stop("edge");
    kept.cluster.up("edge");
    kept.until("they are kept over a restart", |status| {
        status["drift"]["kept"] == 3 && status["state"] == "parked"
    });
    assert_eq!(kept.target("one"), "theirs");
    kept.cluster.cdsync(["job", "accept", "site"]).expect(0);
    kept.settled();
    assert_eq!(kept.status()["drift"]["kept"], 0);
    let trash = kept.trash();
    assert_eq!(
        trash.iter().filter(|text| *text == "theirs").count(),
        2,
        "{trash:?}"
    );
}

/// Proves that under `alert` a target says so until a manager acknowledges it.
#[test]
fn others_changes_are_an_alert_if_the_job_says_so() {
    let kept = Kept::start("drift = \"alert\"");
    fs::write(kept.target.join("one"), "theirs").unwrap();
    fs::write(kept.source.join("one"), "one anew").unwrap();
    kept.settled();
    kept.until("the alert is told", |status| {
        status["state"] == "alert" && status["drift"]["alert"] == true
    });
    assert_eq!(kept.target("one"), "one anew");
    kept.cluster.cdsync(["job", "resume", "site"]).expect(0);
    kept.until("it is acknowledged", |status| status["state"] == "in-sync");
    assert_eq!(kept.status()["drift"]["count"], 1);
}

/// Proves that a full disk takes from the trash what it needs, that this is told, and that the
/// targets go on holding what the source does.
#[test]
fn a_full_disk_takes_from_the_trash() {
    if !is_root() {
        eprintln!("SKIPPED, needs root: a small filesystem");
        return;
    }
    let mut cluster = Cluster::start();
    let source = cluster.space.folder("source");
    let target = cluster.space.disk("target", "tmpfs", 40);
    let mut random = Random::new(5);
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let settings = "trash = { age = \"7d\", percent = 90 }";
    let targets = [("edge", &*target)];
    let text = job_file("site", ("origin", &source), &targets, settings);
    cluster.apply(&text, &[]).expect(0);
    for _ in 0..6 {
        fs::write(source.join("large"), random.bytes(12 << 20)).unwrap();
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    }
    let log = cluster.cdsync(["job", "log", "site"]).out;
    assert!(log.contains("the disk is full"), "{log}");
}
