//! What others change in a target's root that the source never touches again: the paced check.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_tests::{differences, is_root, wait_until};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};
use serde_json::Value;

use crate::upkeep::Kept;

const PATIENCE: Duration = Duration::from_secs(60);

/// More than the time between two checks.
const A_DAY_MS: i64 = 25 * 3600 * 1000;

/// What the source holds besides: something of each kind.
fn make(top: &Path) {
    let at = |name: &str| top.join(name);
    fs::create_dir_all(at("folder/inner")).unwrap();
    fs::write(at("folder/inner/deep"), "deep").unwrap();
    fs::create_dir(at("lost")).unwrap();
    fs::write(at("lost/file"), "lost").unwrap();
    symlink("one", at("link")).unwrap();
    mknodat(
        CWD,
        at("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    fs::write(at("names"), "names").unwrap();
    fs::hard_link(at("names"), at("folder/names")).unwrap();
    fs::write(at("noted"), "noted").unwrap();
    note(&at("noted"), "of the source");
}

fn note(path: &Path, text: &str) {
    rustix::fs::lsetxattr(path, "user.note", text.as_bytes(), XattrFlags::empty()).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Writes other bytes of the same length, and makes as if nothing had happened.
fn forge(path: &Path, text: &str) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, text).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(before).unwrap();
}

/// Changes something of each kind at a target. Returns the paths.
fn meddle(top: &Path) -> Vec<&'static str> {
    let at = |name: &str| top.join(name);
    fs::write(at("one"), "theirs one").unwrap();
    forge(&at("two"), "TWO");
    mode(&at("three"), 0o600);
    fs::rename(at("four"), at("renamed")).unwrap();
    note(&at("noted"), "of others");
    mode(&at("folder"), 0o700);
    note(&at("folder/inner"), "of others");
    mode(&at("pipe"), 0o600);
    fs::remove_file(at("link")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    fs::remove_file(at("folder/names")).unwrap();
    fs::write(at("folder/names"), "names").unwrap();
    fs::remove_dir_all(at("lost")).unwrap();
    fs::write(at("foreign"), "theirs foreign").unwrap();
    fs::create_dir(at("foreign folder")).unwrap();
    fs::write(at("foreign folder/file"), "theirs inside").unwrap();
    let mut paths = vec![
        "one",
        "two",
        "three",
        "four",
        "renamed",
        "noted",
        "folder",
        "folder/inner",
        "pipe",
        "link",
        "folder/names",
        "lost",
        "foreign",
        "foreign folder",
    ];
    if is_root() {
        chown(at("folder/inner/deep"), Some(1234), Some(5678)).unwrap();
        paths.push("folder/inner/deep");
    }
    paths
}

impl Kept {
    fn check_is_due(&self) {
        self.cluster.shift_clock("edge", A_DAY_MS);
    }

    fn equal(&self) {
        wait_until(PATIENCE, "the target is as the source again", || {
            let equal = differences(&self.source, &self.target).is_empty();
            if !equal {
                std::thread::sleep(Duration::from_millis(50));
            }
            equal
        });
        self.settled();
    }
}

fn are_named(names: &Value, paths: &[&str]) -> bool {
    let names = names.as_array().unwrap();
    let named = |path: &&str| names.iter().any(|name| name.as_str() == Some(path));
    paths.iter().all(named)
}

/// Proves that what others change at a target is found although the source never touches it again,
/// whatever it is, and put right; that what they made is in the trash, and status and log name it.
#[test]
fn others_changes_are_found_and_put_right() {
    let kept = Kept::start_with("", &make);
    let untouched = fs::metadata(kept.target.join("names")).unwrap().ino();
    let paths = meddle(&kept.target);
    kept.check_is_due();
    kept.equal();
    kept.until("all of it is told", |status| {
        are_named(&status["drift"]["names"], &paths)
    });
    assert_eq!(kept.status()["drift"]["kept"], 0);
    let trash = kept.trash();
    for theirs in ["theirs one", "TWO", "theirs foreign", "theirs inside"] {
        assert!(
            trash.iter().any(|text| text == theirs),
            "{theirs}: {trash:?}"
        );
    }
    let link = fs::metadata(kept.target.join("folder/names")).unwrap();
    assert_eq!((link.ino(), link.nlink()), (untouched, 2), "one file again");
    assert!(kept.said_in_log("changed by others"));
}

/// Everything below a folder, as far as others' changes show in it.
fn looks(top: &Path) -> Vec<(PathBuf, u32, u64, i64)> {
    let (mut found, mut folders) = (Vec::new(), vec![top.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_name() == ".cdsync" {
                continue;
            }
            let meta = entry.path().symlink_metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            }
            found.push((entry.path(), meta.mode(), meta.ino(), meta.mtime_nsec()));
        }
    }
    found.sort();
    found
}

/// Proves that under `keep` all of that stays, named, while the source's own changes go on; that what
/// others undo is forgotten, and that the rest is put right when a manager accepts the source's.
#[test]
fn others_changes_are_found_and_stay_if_the_job_says_so() {
    let settings = "drift = \"keep\"\n[retry]\nfirst = \"50ms\"\nmost = \"200ms\"";
    let mut kept = Kept::start_with(settings, &make);
    let paths = meddle(&kept.target);
    let theirs = looks(&kept.target);
    kept.check_is_due();
    kept.until("all of it is kept", |status| {
        let parked = status["parked"].as_array().unwrap();
        let parked: Value = parked.iter().map(|one| one["path"].clone()).collect();
        // Folders whose times changed with what is in them are among them.
        are_named(&parked, &paths)
            && status["drift"]["kept"].as_u64() == Some(parked.as_array().unwrap().len() as u64)
    });
    assert_eq!(looks(&kept.target), theirs, "something was touched");
    fs::write(kept.source.join("folder/inner/new"), "new").unwrap();
    wait_until(PATIENCE, "a new file comes", || {
        kept.target("folder/inner/new") == "new"
    });
    let before = kept.status()["drift"]["kept"].as_u64().unwrap();
    mode(&kept.target.join("three"), 0o644);
    fs::remove_file(kept.target.join("foreign")).unwrap();
    kept.until("what was undone is forgotten", |status| {
        status["drift"]["kept"].as_u64() == Some(before - 2)
    });
    kept.cluster.stop("edge");
    kept.cluster.up("edge");
    kept.until("they are kept over a restart", |status| {
        status["drift"]["kept"].as_u64() == Some(before - 2) && status["state"] == "parked"
    });
    assert_eq!(kept.target("one"), "theirs one");
    kept.cluster.cdsync(["job", "accept", "site"]).expect(0);
    kept.equal();
    assert_eq!(kept.status()["drift"]["kept"], 0);
    let trash = kept.trash();
    assert!(
        trash.iter().any(|text| text == "theirs inside"),
        "{trash:?}"
    );
}

/// Proves that under `alert` what is found is put right and told until a manager acknowledges it.
#[test]
fn others_changes_that_are_found_are_an_alert_if_the_job_says_so() {
    let kept = Kept::start_with("drift = \"alert\"", &make);
    fs::write(kept.target.join("foreign"), "theirs").unwrap();
    kept.check_is_due();
    kept.until("the alert is told", |status| {
        status["state"] == "alert" && are_named(&status["drift"]["names"], &["foreign"])
    });
    kept.equal();
    assert!(kept.trash().contains(&"theirs".to_owned()));
    kept.cluster.cdsync(["job", "resume", "site"]).expect(0);
    kept.until("it is acknowledged", |status| status["state"] == "in-sync");
}

/// Proves that what is in a folder which was there already when the source made one of that name
/// goes to the trash and is told, or stays where the job says so.
#[test]
fn what_is_in_a_folder_that_was_there_is_others_work() {
    for (settings, stays) in [("", false), ("drift = \"keep\"", true)] {
        let kept = Kept::start_with(settings, &|_| {});
        fs::create_dir(kept.target.join("folder")).unwrap();
        fs::write(kept.target.join("folder/theirs"), "theirs").unwrap();
        fs::create_dir(kept.source.join("folder")).unwrap();
        fs::write(kept.source.join("folder/ours"), "ours").unwrap();
        kept.until("it is told", |status| {
            are_named(&status["drift"]["names"], &["folder/theirs"])
        });
        wait_until(PATIENCE, "the source's file comes", || {
            kept.target("folder/ours") == "ours"
        });
        if stays {
            assert_eq!(kept.target("folder/theirs"), "theirs");
            assert_eq!(kept.status()["drift"]["kept"], 1);
            kept.cluster.cdsync(["job", "accept", "site"]).expect(0);
        }
        kept.equal();
        assert!(kept.trash().contains(&"theirs".to_owned()));
    }
}
