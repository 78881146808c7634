use std::time::Duration;

use super::retention::stamp_secs;
use super::*;
use crate::testing::{Place, name, path};

fn applier(place: &Place, limits: TrashLimits) -> Applier {
    let applier = Applier::open(&place.root, "job-1").unwrap();
    applier.with_trash(limits)
}

/// Puts a file of these many bytes into the trash.
fn trash_file(place: &Place, applier: &Applier, at: &str, bytes: usize) {
    place.write(at, &vec![7; bytes]);
    let top = place.root.top();
    applier.trash(&top, &name(at), None, &path(at)).unwrap();
}

fn kept(place: &Place) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![place.at(".cdsync/job-1/trash")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.file_name().into_string().unwrap());
            }
        }
    }
    found.retain(|name| name != "manifest" && name != "total");
    found.sort();
    found
}

/// Proves that the trash is held to its bytes, the oldest things going first, and that what it
/// holds is known by another start too.
#[test]
fn the_oldest_goes_first() {
    let place = Place::new();
    let limits = TrashLimits {
        bytes: Some(200 << 10),
        ..TrashLimits::default()
    };
    let first = applier(&place, limits);
    for n in 0..5 {
        trash_file(&place, &first, &format!("f{n}"), 64 << 10);
    }
    let mut calm = || true;
    // The first turn closes the folder in use, the next one removes from it.
    first.tend_trash(None, &mut calm).unwrap();
    let held = first.tend_trash(None, &mut calm).unwrap();
    assert_eq!(kept(&place), ["3-f2", "4-f3", "5-f4"]);
    assert_eq!(held.held.entries, 3, "{held:?}");
    assert!(held.held.bytes <= 200 << 10, "{held:?}");
    drop(first);
    let second = applier(&place, limits);
    let again = second.tend_trash(None, &mut calm).unwrap();
    assert_eq!(again.held, held.held);
    assert_eq!(again.oldest, held.oldest);
    let totals = second.tend_trash(None, &mut calm).unwrap();
    assert_eq!(totals.held, held.held, "counted once more");
}

/// Proves that what is too old goes, whole folders of any depth with it, that nothing does while
/// the clock is not to be trusted, and that an interrupted turn is finished by the next one.
#[test]
fn age_ends_it() {
    let place = Place::new();
    let limits = TrashLimits {
        age: Duration::from_secs(100),
        ..TrashLimits::default()
    };
    let before = applier(&place, limits);
    let deep = "d/".repeat(300);
    place.write(&format!("{deep}f"), b"deep");
    place.write("d/beside", b"b");
    let top = place.root.top();
    before.trash(&top, &name("d"), None, &path("d")).unwrap();
    trash_file(&place, &before, "old", 5);
    let mut calm = || true;
    let held = before.tend_trash(None, &mut calm).unwrap();
    assert_eq!(held.held.entries, 300 + 3, "{held:?}");
    let began = held.oldest.unwrap();
    drop(before);
    let after = applier(&place, limits);
    let early = after.tend_trash(Some(began + 100), &mut calm).unwrap();
    assert_eq!(early.held.entries, 303);
    after.tend_trash(None, &mut calm).unwrap();
    let late = Some(began + 111);
    let mut turns = 0;
    loop {
        let mut left = 400;
        let mut hurried = || {
            left -= 1;
            left > 0
        };
        turns += 1;
        assert!(turns < 200, "{:?}", kept(&place));
        let used = after.tend_trash(late, &mut hurried).unwrap();
        if kept(&place).is_empty() && used.held == Weight::default() {
            break;
        }
    }
    assert!(turns > 1, "{turns}");
    let left = std::fs::read_dir(place.at(".cdsync/job-1/trash")).unwrap();
    assert_eq!(left.count(), 0);
}

/// Proves that a job that erases leaves neither what was deleted nor what was replaced.
#[test]
fn erasing_leaves_nothing() {
    let place = Place::new();
    let limits = TrashLimits {
        erase: true,
        ..TrashLimits::default()
    };
    let applier = applier(&place, limits);
    let stager = applier.stager(0).unwrap();
    let top = place.root.top();
    trash_file(&place, &applier, "gone", 3);
    assert_eq!(kept(&place), [""; 0]);
    place.write("foreign", b"theirs");
    let staged = stager.small(b"ours", &crate::testing::meta(0o644)).unwrap();
    let published = applier.publish(staged, &top, &name("foreign"), None);
    assert!(matches!(
        published.unwrap().displaced,
        Displaced::Foreign(_)
    ));
    assert_eq!(kept(&place), [""; 0]);
    place.write("folder/inner/f", b"f");
    let at = path("folder");
    applier.trash(&top, &name("folder"), None, &at).unwrap();
    let mut calm = || true;
    applier.tend_trash(None, &mut calm).unwrap();
    assert_eq!(kept(&place), [""; 0]);
}

/// Proves that what turns out in the trash to be others' work goes back as it was, also in a job
/// that erases, and that it stays in the trash when its name was taken meanwhile.
#[test]
fn others_work_goes_back() {
    for (erase, taken) in [(false, false), (true, false), (false, true)] {
        let place = Place::new();
        let limits = TrashLimits {
            erase,
            ..TrashLimits::default()
        };
        let applier = applier(&place, limits);
        let top = place.root.top();
        place.write("f", b"theirs");
        let ours = Identity::default().into();
        let kept_now = applier.trash(&top, &name("f"), Some(ours), &path("f"));
        let late = kept_now.unwrap().unwrap();
        assert!(!late.expected);
        assert_eq!(kept(&place), ["1-f"]);
        if taken {
            place.write("f", b"newer");
        }
        applier.put_back(&late, &top, &name("f")).unwrap();
        assert_eq!(
            place.read("f"),
            if taken {
                b"newer"
            } else {
                b"theirs".as_slice()
            }
        );
        assert_eq!(kept(&place).len(), usize::from(taken));
    }
}

/// Proves that an older version of our own that is replaced is kept where the trash is said to
/// keep things.
#[test]
fn replaced_versions_are_kept() {
    let place = Place::new();
    let applier = applier(&place, TrashLimits::default());
    let stager = applier.stager(0).unwrap();
    let top = place.root.top();
    let mut expect = None;
    for text in ["one", "two"] {
        let meta = crate::testing::meta(0o644);
        let staged = stager.small(text.as_bytes(), &meta).unwrap();
        let published = applier.publish(staged, &top, &name("f"), expect).unwrap();
        expect = Some(published.observed.fingerprint.into());
    }
    assert_eq!(place.read("f"), b"two");
    assert_eq!(kept(&place), ["1-f"]);
}

/// Proves that the time in a trash folder's name is read as it was written.
#[test]
fn stamps_are_read_back() {
    for secs in [0, 951_782_399, 951_782_400, 1_798_761_599, 4_107_542_400] {
        let stamp = format!("{}-0badcafe", trash::utc_stamp(secs));
        assert_eq!(stamp_secs(&name(&stamp)), Some(secs), "{stamp}");
    }
    for odd in [
        "manifest",
        "20260231",
        "20261301T000000Z",
        "2026ü131T000000Z",
    ] {
        assert_eq!(stamp_secs(&name(odd)), None, "{odd}");
    }
}
