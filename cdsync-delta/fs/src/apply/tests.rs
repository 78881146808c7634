use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use cdsync_core::ledger::xattrs::ACL_DEFAULT;
use cdsync_delta::RANGE_BYTES;
use proptest::prelude::*;

use super::*;
use crate::dir::LookWants;
use crate::testing::{Place, is_root, meta, name, path};

fn setup() -> (Place, Applier, Stager) {
    let place = Place::new();
    let applier = Applier::open(&place.root, "job-1").unwrap();
    let stager = applier.stager(0).unwrap();
    (place, applier, stager)
}

/// Everything below the job's trash but manifests, by name: what it holds.
fn trash(place: &Place) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in std::fs::read_dir(place.at(".cdsync/job-1/trash")).unwrap() {
        for entry in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "manifest" {
                found.insert(name, std::fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    found
}

fn manifest(place: &Place) -> String {
    let folders = std::fs::read_dir(place.at(".cdsync/job-1/trash")).unwrap();
    folders
        .map(|f| std::fs::read_to_string(f.unwrap().path().join("manifest")).unwrap())
        .collect()
}

fn staged_files(place: &Place) -> usize {
    std::fs::read_dir(place.at(".cdsync/job-1/stage/0"))
        .unwrap()
        .count()
}

/// Proves that a new file appears whole with its metadata, and that what is told of it is what a
/// later look shows.
#[test]
fn new_file_is_published_whole() {
    let (place, applier, stager) = setup();
    let staged = stager.small(b"hello", &meta(0o4640)).unwrap();
    assert!(!place.at("f").exists());
    let top = place.root.top();
    let published = applier.publish(staged, &top, &name("f"), None).unwrap();
    assert_eq!(place.read("f"), b"hello");
    assert_eq!(published.observed, place.look("f").unwrap());
    assert_eq!(published.observed.meta, meta(0o4640));
    assert_eq!(published.displaced, Displaced::None);
    assert_eq!(staged_files(&place), 0);
    assert_eq!(
        std::fs::metadata(place.at(".cdsync")).unwrap().mode() & 0o777,
        0o700
    );
    applier.sync_file(&top, &name("f")).unwrap();
    applier.sync().unwrap();
}

/// Proves that an owner is given before the file can be seen, with its set-id bits.
#[test]
fn owner_is_published() {
    if !is_root("changing owners") {
        return;
    }
    let (place, applier, stager) = setup();
    let wanted = Metadata {
        uid: 4321,
        gid: 8765,
        ..meta(0o6755)
    };
    let staged = stager.small(b"x", &wanted).unwrap();
    applier
        .publish(staged, &place.root.top(), &name("f"), None)
        .unwrap();
    assert_eq!(place.look("f").unwrap().meta, wanted);
}

/// Proves that ranges of a large file may come in any order, and that wrong ones are refused.
#[test]
fn large_file_comes_by_ranges() {
    let (place, applier, stager) = setup();
    let bytes: Vec<u8> = (0..2 * RANGE_BYTES + 5).map(|n| (n / 3) as u8).collect();
    let writer = stager.large(bytes.len() as u64).unwrap();
    let range = |i: usize| &bytes[i * RANGE_BYTES..bytes.len().min((i + 1) * RANGE_BYTES)];
    for index in [2, 0, 1] {
        writer.write_range(index as u64, range(index)).unwrap();
    }
    let wrong = [(3, 1), (2, 6), (0, 5), (u64::MAX, 1)];
    for (index, length) in wrong {
        let refused = writer.write_range(index, &bytes[..length]);
        assert!(
            matches!(refused, Err(ApplyError::OutOfRange { .. })),
            "{index}"
        );
    }
    let mut back = Vec::new();
    writer.read_range(1, &mut back).unwrap();
    assert!(back == range(1));
    let staged = writer.finish(&meta(0o600)).unwrap();
    applier
        .publish(staged, &place.root.top(), &name("big"), None)
        .unwrap();
    assert!(place.read("big") == bytes);
    drop(stager.large(0).unwrap().finish(&meta(0o600)).unwrap());
    assert_eq!(staged_files(&place), 0, "what is dropped is removed");
}

/// Proves that the version which the caller knows is replaced, and one written to meanwhile, even
/// in place, is kept.
#[test]
fn replaced_version_is_looked_at() {
    let (place, applier, stager) = setup();
    let top = place.root.top();
    let publish = |bytes: &[u8], expect: Option<Expected>| {
        let staged = stager.small(bytes, &meta(0o644)).unwrap();
        applier.publish(staged, &top, &name("f"), expect).unwrap()
    };
    let first = publish(b"1", None).observed.fingerprint;
    let second = publish(b"2", Some(first.into()));
    assert_eq!(second.displaced, Displaced::Expected);
    assert!(trash(&place).is_empty());
    std::fs::write(place.at("f"), b"foreign, in place").unwrap();
    let third = publish(b"3", Some(second.observed.fingerprint.into()));
    assert!(matches!(third.displaced, Displaced::Foreign(kept) if !kept.expected));
    std::fs::remove_file(place.at("f")).unwrap();
    let fourth = publish(b"4", Some(third.observed.fingerprint.into()));
    assert_eq!(fourth.displaced, Displaced::None);
    let fifth = publish(b"5", None);
    assert!(
        matches!(fifth.displaced, Displaced::Foreign(_)),
        "a name believed free was taken"
    );
    assert_eq!(place.read("f"), b"5");
    let kept: Vec<_> = trash(&place).into_values().collect();
    assert_eq!(kept, [b"foreign, in place".to_vec(), b"4".to_vec()]);
    assert_eq!(staged_files(&place), 0);
}

/// Proves that a foreign folder with content makes room whole and is kept.
#[test]
fn foreign_folder_is_kept() {
    let (place, applier, stager) = setup();
    place.write("f/inner", b"theirs");
    let staged = stager.symlink(b"target\xff", &meta(0o777)).unwrap();
    let published = applier
        .publish(staged, &place.root.top(), &name("f"), None)
        .unwrap();
    assert_eq!(published.observed.link.as_deref(), Some(&b"target\xff"[..]));
    assert_eq!(published.observed.meta.mtime, meta(0).mtime);
    let Displaced::Foreign(kept) = published.displaced else {
        panic!("nothing displaced")
    };
    assert_eq!(
        place.read(&format!(".cdsync/job-1/trash/{}/inner", kept.kept_as)),
        b"theirs"
    );
}

/// Proves that second names and pipes are published like files.
#[test]
fn hard_links_and_pipes() {
    let (place, applier, stager) = setup();
    let top = place.root.top();
    place.write("a", b"both");
    let link = stager.link(&top, &name("a"), place.identity("a")).unwrap();
    applier.publish(link, &top, &name("b"), None).unwrap();
    assert_eq!(place.identity("a"), place.identity("b"));
    assert_eq!(place.look("a").unwrap().link_count, 2);
    assert!(
        stager
            .link(&top, &name("a"), place.root.top().identity())
            .is_err()
    );
    let pipe = stager.special(Kind::Fifo, 0, &meta(0o622)).unwrap();
    let pipe = applier.publish(pipe, &top, &name("p"), None).unwrap();
    assert_eq!(
        (pipe.observed.kind, pipe.observed.meta),
        (Kind::Fifo, meta(0o622))
    );
}

/// Proves that a folder is made with its metadata, adopted when it is there, and takes the place
/// of a file, which is kept.
#[test]
fn folders_are_made_and_adopted() {
    let (place, applier, _) = setup();
    let top = place.root.top();
    let made = applier
        .make_folder(&top, &name("d"), &meta(0o2750))
        .unwrap();
    assert!(!made.existed);
    assert_eq!(made.observed, place.look("d").unwrap());
    assert_eq!(made.observed.meta, meta(0o2750));
    let again = applier.make_folder(&top, &name("d"), &meta(0o700)).unwrap();
    assert!(again.existed);
    assert_eq!(again.observed, made.observed);
    place.write("file", b"in the way");
    let over = applier
        .make_folder(&top, &name("file"), &meta(0o755))
        .unwrap();
    assert!(matches!(over.displaced, Displaced::Foreign(_)));
    assert_eq!(
        trash(&place).into_values().collect::<Vec<_>>(),
        [b"in the way".to_vec()]
    );
    let identity = made.observed.fingerprint.identity;
    applier
        .remove_empty_folder(&top, &name("d"), identity)
        .unwrap();
    assert!(!place.at("d").exists());
}

/// Proves that the trash keeps things with where they came from, one line each whatever the name.
#[test]
fn trash_keeps_with_manifest() {
    let (place, applier, _) = setup();
    let top = place.root.top();
    let long = Name::new(&[b'n'; 255]).unwrap();
    let odd = Name::new(b"tab\tline\n\xff").unwrap();
    for name in [&long, &odd] {
        drop(top.create_exclusive(name, 0o644).unwrap());
        let from = RelPath::root().join(name);
        let trashed = applier.trash(&top, name, None, &from).unwrap().unwrap();
        assert!(trashed.expected);
    }
    place.write("f", b"x");
    let other = Some(Expected::from(place.root.top().identity()));
    let trashed = applier
        .trash(&top, &name("f"), other, &path("f"))
        .unwrap()
        .unwrap();
    assert!(!trashed.expected, "kept although it is another");
    assert_eq!(
        applier.trash(&top, &name("f"), None, &path("f")).unwrap(),
        None
    );
    applier.sync().unwrap();
    let text = manifest(&place);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("1\t{}", "n".repeat(255)));
    assert_eq!(&lines[1..], ["2\ttab\\tline\\n\\xff", "3\tf"]);
    let kept: Vec<String> = trash(&place).into_keys().collect();
    assert_eq!(kept[0], format!("1-{}", "n".repeat(253)));
    assert_eq!(kept.len(), 3);
}

/// Proves that a folder goes only if it holds exactly what is known, at any depth.
#[test]
fn unknown_content_keeps_its_folder() {
    let (place, applier, _) = setup();
    let top = place.root.top();
    place.write("d/a", b"");
    place.write("d/e/b", b"");
    place.write("d/e/f/c", b"");
    let mut known = NameSetDigest::new();
    for known_path in ["e/f/c", "a", "e", "e/b", "e/f"] {
        known.add(known_path.as_bytes());
    }
    let identity = place.identity("d");
    for foreign in ["d/e/f/new", "d/.cdsync/x"] {
        place.write(foreign, b"");
        let refused = applier
            .trash_folder(&top, &name("d"), identity, &known)
            .unwrap_err();
        assert!(matches!(
            refused,
            ApplyError::ForeignContent {
                known: 5,
                found: 6,
                ..
            }
        ));
        std::fs::remove_file(place.at(foreign)).unwrap();
    }
    std::fs::remove_dir(place.at("d/.cdsync")).unwrap();
    std::fs::rename(place.at("d/a"), place.at("d/z")).unwrap();
    assert!(
        applier
            .trash_folder(&top, &name("d"), identity, &known)
            .is_err(),
        "same number"
    );
    std::fs::rename(place.at("d/z"), place.at("d/a")).unwrap();
    let other = applier
        .trash_folder(&top, &name("d"), top.identity(), &known)
        .unwrap_err();
    assert!(matches!(other, ApplyError::Fs(e) if e.kind() == FsErrorKind::Moved));
    let trashed = applier
        .trash_folder(&top, &name("d"), identity, &known)
        .unwrap()
        .unwrap();
    assert!(trashed.expected && !place.at("d").exists());
    assert_eq!(
        applier
            .trash_folder(&top, &name("d"), identity, &known)
            .unwrap(),
        None
    );
}

/// Proves that the marker is read back, and that a start clears staging and keeps spares.
#[test]
fn start_cleans_up_and_marker_stays() {
    let (place, applier, stager) = setup();
    assert_eq!(applier.marker().unwrap(), None);
    applier.write_marker(b"mine").unwrap();
    applier.write_marker(b"mine now").unwrap();
    std::mem::forget(stager.small(b"left", &meta(0o644)).unwrap());
    place.write(".cdsync/job-1/stage/3/folder/deep/file", b"");
    place.write(".cdsync/job-1/spare/0123", b"somebody's");
    drop(applier);
    let applier = Applier::open(&place.root, "job-1").unwrap();
    assert_eq!(applier.marker().unwrap().unwrap(), b"mine now");
    assert_eq!(
        std::fs::read_dir(place.at(".cdsync/job-1/stage"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        trash(&place).into_values().collect::<Vec<_>>(),
        [b"somebody's".to_vec()]
    );
    assert!(Applier::open(&place.root, "../x").is_err());
}

fn shift(place: &Place, moves: &[(&str, &str)]) -> Vec<Move> {
    let split = |below: &str| {
        let (folder, last) = below.rsplit_once('/').unwrap_or(("", below));
        (
            Arc::new(place.root.top().open_below(&path(folder)).unwrap()),
            name(last),
        )
    };
    let one = |&(from, to): &(&str, &str)| {
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        Move {
            from_dir: Some(from_dir),
            from_name,
            to_dir,
            to_name,
            identity: place.identity(from),
        }
    };
    moves.iter().map(one).collect()
}

fn all_done(result: &Relocated) -> bool {
    result
        .outcomes
        .iter()
        .all(|o| matches!(o, MoveOutcome::Done(_)))
}

/// Proves that chains, swaps and cycles end where they should, and that doing them again does
/// nothing.
#[test]
fn permutations_are_made() {
    let (place, applier, _) = setup();
    for file in ["a", "b", "c", "d", "x/1", "x/2", "x/3"] {
        place.write(file, file.as_bytes());
    }
    let wanted = [
        ("a", "b"),
        ("b", "x/1"),
        ("x/1", "a"),
        ("c", "d"),
        ("d", "c"),
        ("x/2", "x/3"),
        ("x/3", "x/4"),
    ];
    let moves = shift(&place, &wanted);
    for _ in 0..2 {
        let result = applier.relocate(&moves).unwrap();
        assert!(all_done(&result), "{:?}", result.outcomes);
        assert!(result.displaced.is_empty());
        for (from, to) in wanted {
            assert_eq!(place.read(to), from.as_bytes(), "{from} -> {to}");
        }
    }
    assert!(!place.at("x/2").exists());
}

/// Proves that folders which change places with what lies in them get there.
#[test]
fn parent_and_child_change_places() {
    let (place, applier, _) = setup();
    place.write("a/b/deep", b"in b");
    place.write("a/own", b"in a");
    let mut moves = shift(&place, &[("a", "a/b/b"), ("a/b", "a")]);
    let result = applier.relocate(&moves).unwrap();
    assert!(all_done(&result), "{:?}", result.outcomes);
    assert_eq!(
        (place.read("a/deep"), place.read("a/b/own")),
        (b"in b".into(), b"in a".into())
    );
    moves.reverse();
    assert!(all_done(&applier.relocate(&moves).unwrap()));
}

/// Proves that what stands in the way and belongs to no move is kept, and that a vanished object
/// or a destination inside itself is told without harm.
#[test]
fn strangers_make_room() {
    let (place, applier, _) = setup();
    place.write("a", b"a");
    place.write("b", b"stranger");
    place.write("gone", b"");
    place.write("f/sub/x", b"");
    let moves = shift(&place, &[("a", "b"), ("gone", "c"), ("f", "f/sub/f")]);
    std::fs::remove_file(place.at("gone")).unwrap();
    let result = applier.relocate(&moves).unwrap();
    assert!(matches!(result.outcomes[0], MoveOutcome::Done(_)));
    assert_eq!(result.outcomes[1], MoveOutcome::Missing);
    assert!(matches!(result.outcomes[2], MoveOutcome::Failed(_)));
    assert_eq!(place.read("b"), b"a");
    assert!(!place.at("a").exists());
    assert!(place.at("f/sub/x").exists(), "put back where it was");
    assert_eq!(result.displaced.len(), 1);
    assert_eq!(
        trash(&place).into_values().collect::<Vec<_>>(),
        [b"stranger".to_vec()]
    );
}

/// Proves that a folder takes the place of the one that it comes out of, with others that leave it.
#[test]
fn what_makes_room_loses_nothing_that_leaves_it() {
    let (place, applier, _) = setup();
    place.write("d/sub/x/own", b"x");
    place.write("d/sub/y/own", b"y");
    place.write("d/left", b"left");
    let moves = shift(&place, &[("d/sub/y", "e"), ("d/sub/x", "d")]);
    let result = applier.relocate(&moves).unwrap();
    assert!(all_done(&result), "{:?}", result.outcomes);
    assert_eq!(place.read("d/own"), b"x");
    assert_eq!(place.read("e/own"), b"y");
    assert_eq!(result.displaced.len(), 1);
    assert!(!place.at("d/left").exists(), "it went with its folder");
}

/// Proves that moves go on after a kill: what was set aside is taken from there, also where its old
/// folder is gone, and what has changed names already is found at the other name.
#[test]
fn moves_go_on_after_a_kill() {
    let (place, applier, _) = setup();
    place.write("d/sub/x/own", b"x");
    let mut moves = shift(&place, &[("d/sub/x", "d")]);
    let aside = Applier::aside_name(moves[0].identity).unwrap();
    let from = moves[0].from_dir.take().unwrap();
    let spare = applier.spare_folder();
    from.rename_new(&moves[0].from_name, spare, &aside).unwrap();
    drop(from);
    std::fs::remove_dir_all(place.at("d")).unwrap();
    let applier = Applier::open(&place.root, "job-1").unwrap();
    let result = applier.relocate(&moves).unwrap();
    assert!(all_done(&result), "{:?}", result.outcomes);
    assert_eq!(place.read("d/own"), b"x");

    for file in ["1", "2", "3"] {
        place.write(file, file.as_bytes());
    }
    let moves = shift(&place, &[("1", "2"), ("2", "3"), ("3", "1")]);
    let top = place.root.top();
    top.exchange(&name("1"), &top, &name("2")).unwrap();
    let result = applier.relocate(&moves).unwrap();
    assert!(all_done(&result), "{:?}", result.outcomes);
    let read = ["1", "2", "3"].map(|file| place.read(file));
    assert_eq!(read, [b"3".to_vec(), b"1".to_vec(), b"2".to_vec()]);
    assert!(result.displaced.is_empty());
}

/// Proves that moving one name of a file onto another of its names leaves the one.
#[test]
fn hard_link_onto_itself() {
    let (place, applier, _) = setup();
    place.write("a", b"x");
    std::fs::hard_link(place.at("a"), place.at("b")).unwrap();
    assert!(all_done(
        &applier.relocate(&shift(&place, &[("a", "b")])).unwrap()
    ));
    assert!(!place.at("a").exists());
    assert_eq!(place.read("b"), b"x");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Proves that any partial permutation of names is reached, strangers kept: files counted.
    #[test]
    fn any_partial_permutation(
        to in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
        moved in proptest::collection::vec(any::<bool>(), 8),
        present in proptest::collection::vec(any::<bool>(), 8),
    ) {
        let (place, applier, _) = setup();
        let file = |n: usize| format!("f{n}");
        for n in (0..8).filter(|&n| present[n]) {
            place.write(&file(n), file(n).as_bytes());
        }
        let chosen: Vec<usize> = (0..8).filter(|&n| present[n] && moved[n]).collect();
        let names: Vec<(String, String)> =
            chosen.iter().map(|&n| (file(n), file(to[n]))).collect();
        let pairs: Vec<(&str, &str)> =
            names.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let result = applier.relocate(&shift(&place, &pairs)).unwrap();
        prop_assert!(all_done(&result), "{:?}", result.outcomes);
        for (from, to) in &names {
            prop_assert_eq!(place.read(to), from.as_bytes());
        }
        let left = (0..8).filter(|&n| place.at(&file(n)).exists()).count();
        let before = present.iter().filter(|p| **p).count();
        prop_assert_eq!(left + result.displaced.len(), before);
        prop_assert_eq!(trash(&place).len(), result.displaced.len());
    }
}

/// Measures one writer; run by hand: `cargo test -p cdsync-fs -- --ignored speed --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed_of_publishing() {
    let (place, applier, stager) = setup();
    let top = place.root.top();
    let names: Vec<Name> = (0..5000).map(|n| name(&format!("f{n}"))).collect();
    let bytes = vec![1; 12_000];
    let mut prints = Vec::new();
    let begun = std::time::Instant::now();
    for name in &names {
        let staged = stager.small(&bytes, &meta(0o644)).unwrap();
        prints.push(
            applier
                .publish(staged, &top, name, None)
                .unwrap()
                .observed
                .fingerprint,
        );
    }
    let new = begun.elapsed();
    let begun = std::time::Instant::now();
    for (name, print) in names.iter().zip(prints) {
        let staged = stager.small(&bytes, &meta(0o600)).unwrap();
        applier
            .publish(staged, &top, name, Some(print.into()))
            .unwrap();
    }
    eprintln!(
        "{:?} a new file, {:?} a replaced one",
        new / 5000,
        begun.elapsed() / 5000
    );
}

/// Proves that nothing which others link into the names being published is ever lost: it is at a
/// name or in the trash in the end.
#[test]
fn foreign_files_are_never_lost() {
    const NAMES: usize = 3;
    let (place, applier, stager) = setup();
    let top = place.root.top();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let linked = std::thread::scope(|scope| {
        let foreign = scope.spawn(|| {
            let mut linked = Vec::new();
            for n in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let (text, at) = (format!("foreign {n}"), place.at(&format!("f{}", n % NAMES)));
                let temp = place.base.path().join("outside/temp");
                std::fs::write(&temp, &text).unwrap();
                if n % 5 == 0 {
                    // Taking away what was published makes room for the next link.
                    let _ = std::fs::rename(&at, place.base.path().join(format!("outside/{n}")));
                }
                if std::fs::hard_link(&temp, &at).is_ok() {
                    linked.push(text.into_bytes());
                }
                std::fs::remove_file(&temp).unwrap();
            }
            linked
        });
        let mut expect: [Option<Expected>; NAMES] = [None; NAMES];
        for n in 0..600 {
            let slot = n % NAMES;
            let staged = stager.small(b"ours", &meta(0o644)).unwrap();
            match applier.publish(staged, &top, &name(&format!("f{slot}")), expect[slot]) {
                Ok(published) => expect[slot] = Some(published.observed.fingerprint.into()),
                Err(ApplyError::Overtaken { .. } | ApplyError::Contended { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        foreign.join().unwrap()
    });
    let mut found: Vec<Vec<u8>> = trash(&place).into_values().collect();
    for folder in [place.at(""), place.base.path().join("outside")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            found.extend(std::fs::read(entry.unwrap().path()));
        }
    }
    let lost: Vec<_> = linked.iter().filter(|text| !found.contains(text)).collect();
    assert!(lost.is_empty(), "{} of {} lost", lost.len(), linked.len());
    assert_eq!(staged_files(&place), 0);
    assert_eq!(
        std::fs::read_dir(place.at(".cdsync/job-1/spare"))
            .unwrap()
            .count(),
        0
    );
}

/// Proves that an access list that a root gives to what is made in it reaches nothing that is
/// published: not by staging, nor in a new folder.
#[test]
fn default_lists_are_not_inherited() {
    let place = Place::new();
    let entry = |tag: u16, perm: u16, id: u32| {
        let (tag, perm) = (tag.to_le_bytes(), perm.to_le_bytes());
        [&tag[..], &perm[..], &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let entries = [
        (1, 7, none),
        (2, 7, 4242),
        (4, 5, none),
        (16, 7, none),
        (32, 5, none),
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        list.extend(entry(tag, perm, id));
    }
    let default = ACL_DEFAULT;
    let top = place.at("");
    rustix::fs::setxattr(top, default, &list, rustix::fs::XattrFlags::empty()).unwrap();
    let applier = Applier::open(&place.root, "job").unwrap();
    let stager = applier.stager(0).unwrap();
    let dir = place.root.top();
    let staged = stager.small(b"x", &meta(0o640)).unwrap();
    applier.publish(staged, &dir, &name("f"), None).unwrap();
    applier.make_folder(&dir, &name("d"), &meta(0o750)).unwrap();
    for (path, mode) in [("f", 0o640), ("d", 0o750)] {
        let seen = dir.look(&name(path), LookWants::ALL).unwrap().unwrap();
        assert_eq!(seen.meta, meta(mode), "{path}");
    }
}

/// Proves that what is zero at the source takes no room at a target: in small files, in ranges
/// where room had been reserved, and at the end of a file; and that all bytes are there.
#[test]
fn zeroes_become_holes() {
    let (place, applier, stager) = setup();
    let dir = place.root.top();
    let mut small = vec![0; 100_000];
    small[40_960..45_000].fill(7);
    let staged = stager.small(&small, &meta(0o644)).unwrap();
    applier.publish(staged, &dir, &name("small"), None).unwrap();
    let staged = stager.small(&[0; 5000], &meta(0o644)).unwrap();
    applier.publish(staged, &dir, &name("zero"), None).unwrap();
    let size = 20_u64 << 20;
    let writer = stager.large(size).unwrap();
    for index in 0..size / RANGE_BYTES as u64 {
        let mut range = vec![0; RANGE_BYTES];
        range[8192..8200].fill(if index % 8 == 0 { 9 } else { 0 });
        writer.write_range(index, &range).unwrap();
    }
    let staged = writer.finish(&meta(0o644)).unwrap();
    applier.publish(staged, &dir, &name("large"), None).unwrap();
    assert_eq!(place.read("small"), small);
    assert_eq!(place.read("zero"), [0; 5000]);
    let large = place.read("large");
    assert_eq!(large.len() as u64, size);
    assert_eq!(large.iter().filter(|b| **b == 9).count(), 80);
    let room = |file: &str| std::fs::metadata(place.at(file)).unwrap().blocks() * 512;
    assert!(room("small") <= 16 << 10, "{}", room("small"));
    assert_eq!(room("zero"), 0);
    assert!(room("large") <= 1 << 20, "{}", room("large"));
}
