//! What a step does on a real filesystem.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cdsync_core::filter::FilterSpec;
use cdsync_core::ids::OriginId;
use cdsync_core::ledger::access::FolderAt;
use cdsync_core::ledger::xattrs::Xattrs;

use super::*;

fn disk(top: &Path) -> Disk {
    let root = Root::open(top, &RelPath::root()).unwrap();
    let applier = Arc::new(Applier::open(&root, "job").unwrap());
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    Disk::open(root, applier, filter, &Settings::default()).unwrap()
}

/// The object at a path.
fn id_of(path: &str) -> ObjectId {
    let step = |n: u64, b: u8| n.wrapping_mul(31).wrapping_add(u64::from(b));
    ObjectId {
        origin: OriginId(7),
        number: path.bytes().fold(1, step),
    }
}

/// A path of the form `folder/name`, as the ledger would have it now.
fn place(disk: &Disk, path: &str) -> Place {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let path = RelPath::new(folder.as_bytes().to_vec()).unwrap_or_else(|_| RelPath::root());
    let id = id_of(folder);
    let found = disk.root.dir(&DirRef {
        id,
        path: path.clone(),
        identity: None,
    });
    Place {
        folder: FolderAt {
            id,
            path,
            identity: Some(found.unwrap().identity()),
        },
        name: Name::new(name.as_bytes()).unwrap(),
    }
}

fn moves(disk: &Disk, paths: &[(&str, &str)]) -> Vec<MoveOne> {
    let one = |(number, (from, to)): (usize, &(&str, &str))| {
        let from = place(disk, from);
        let dir = disk.dir(&from).unwrap();
        let seen = dir.look(&from.name, LookWants::default()).unwrap();
        MoveOne {
            id: ObjectId {
                origin: OriginId(9),
                number: number as u64,
            },
            identity: seen.unwrap().fingerprint.identity,
            from,
            to: place(disk, to),
        }
    };
    paths.iter().enumerate().map(one).collect()
}

fn files(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if entry.file_name() == ".cdsync" {
            } else if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(top).unwrap();
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Proves that a set of moves that depend on each other ends as it should wherever a kill had
/// stopped it: each of its folders may be at its old place, at its new one, or set aside.
#[test]
fn moves_go_on_where_a_kill_stopped_them() {
    let by_hand = [("a/b", "c"), ("a", "c/a"), ("x/y/z", "c/z"), ("x", "c/a/x")];
    for (done, aside) in
        (0..=by_hand.len()).flat_map(|done| [(done, None), (done, Some(0)), (done, Some(3))])
    {
        let space = tempfile::tempdir().unwrap();
        let top = space.path();
        for folder in ["a/b", "x/y/z"] {
            std::fs::create_dir_all(top.join(folder)).unwrap();
        }
        for file in ["a/1", "a/b/2", "x/3", "x/y/4", "x/y/z/5"] {
            std::fs::write(top.join(file), file).unwrap();
        }
        let before = disk(top);
        // What goes below `c` is told by the path that `c` had before.
        let mut wanted = moves(
            &before,
            &[("a/b", "c"), ("a", "a"), ("x/y/z", "z"), ("x", "x")],
        );
        let at = |path: &str| place(&before, path).folder;
        for (one, folder, name) in [(1, "a/b/n", "a"), (2, "a/b/n", "z"), (3, "a/n", "x")] {
            wanted[one].to = Place {
                folder: at(folder),
                name: Name::new(name.as_bytes()).unwrap(),
            };
        }
        drop(before);
        for (from, to) in &by_hand[..done] {
            std::fs::rename(top.join(from), top.join(to)).unwrap();
        }
        let after = disk(top);
        if let Some(number) = aside
            && done == 0
        {
            let one: &MoveOne = &wanted[number];
            let dir = after.dir(&one.from).unwrap();
            let name = Applier::aside_name(one.identity).unwrap();
            let spare = after.applier.spare_folder();
            dir.rename_new(&one.from.name, spare, &name).unwrap();
        }
        let seen = after.relocate(&wanted);
        assert_eq!(seen.unwrap().len(), by_hand.len(), "after {done} moves");
        assert_eq!(
            files(top),
            ["c/2", "c/a/1", "c/a/x/3", "c/a/x/y/4", "c/z/5"],
            "after {done} moves"
        );
    }
}

/// Proves that a removal takes what it was to take, be it of another kind than what was to come
/// instead, and that one of a file leaves a folder that has come to its name since.
#[test]
fn removals_take_what_is_there() {
    let space = tempfile::tempdir().unwrap();
    let top = space.path();
    std::fs::create_dir_all(top.join("folder/below")).unwrap();
    std::fs::create_dir_all(top.join("stays/below")).unwrap();
    std::fs::create_dir_all(top.join("any/below")).unwrap();
    std::fs::write(top.join("file"), "file").unwrap();
    let disk = disk(top);
    let remove = |path: &str, known: Known, kind: Kind| {
        let at = place(&disk, path);
        let below = NameSetDigest::default();
        disk.remove(id_of(path), &at, &known, OnDrift::Ignore, kind, &below)
            .unwrap();
        top.join(path).exists()
    };
    let known = |path: &str| {
        let at = place(&disk, path);
        let seen = disk.dir(&at).unwrap().look(&at.name, LookWants::default());
        Known::from(seen.unwrap().unwrap().fingerprint.identity)
    };
    let (folder, file) = (known("folder"), known("file"));
    assert!(!remove("folder", folder, Kind::File));
    assert!(remove("stays", folder, Kind::File));
    assert!(!remove("file", file, Kind::Folder));
    assert!(!remove("any", Known::default(), Kind::Folder));
}

/// Proves that a large step is done whole by two writers, one step after another, with each result
/// at its operation's place.
#[test]
fn large_steps_are_shared() {
    let top = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk(top.path()));
    for round in 0..3 {
        let bytes = |n: usize| Bytes::from(format!("{round}-{n}"));
        let contents: Contents = (0..40)
            .map(|n| Some((bytes(n), Hash(range_hash(0, &bytes(n), true).0))))
            .collect();
        let ops = (0..40).map(|n| ApplyOp::WriteFile {
            id: ObjectId::default(),
            at: place(&disk, &format!("file-{round}-{n}")),
            body: Body::Inline(n),
            meta: Metadata {
                mode: 0o644,
                uid: 0,
                gid: 0,
                user: Vec::new(),
                group: Vec::new(),
                mtime: Timestamp::default(),
                xattrs: Xattrs::NONE,
            },
            over: None,
            drift: OnDrift::Ignore,
            adopt: false,
        });
        let step = Step {
            ops: Arc::new(ops.collect()),
            ordered: false,
        };
        let results = disk.run(&step, &Arc::new(contents));
        for (n, result) in results.into_iter().enumerate() {
            let ApplyResult::Done(seen) = result else {
                panic!("{n}: {result:?}");
            };
            assert_eq!(seen[0].fingerprint.size, bytes(n).len() as u64);
            let path = top.path().join(format!("file-{round}-{n}"));
            assert_eq!(std::fs::read(path).unwrap(), bytes(n));
        }
    }
}

/// A step by an empty disk: operations on `paths` below it (a folder where a path ends with a
/// slash, else a file with its path as content), none of which was there before.
fn first_step(disk: &Disk, paths: &[&str]) -> (Step, Arc<Contents>) {
    let root = place(disk, "any").folder;
    let mut contents = Contents::new();
    let ops = paths.iter().map(|path| {
        let plain = path.trim_end_matches('/');
        let (folder, name) = plain.rsplit_once('/').unwrap_or(("", plain));
        let folder = match folder {
            "" => root.clone(),
            folder => FolderAt {
                id: id_of(folder),
                path: RelPath::new(folder.as_bytes().to_vec()).unwrap(),
                identity: None,
            },
        };
        let at = Place {
            folder,
            name: Name::new(name.as_bytes()).unwrap(),
        };
        let meta = |mode| Metadata {
            mode,
            uid: 0,
            gid: 0,
            user: Vec::new(),
            group: Vec::new(),
            mtime: Timestamp { secs: 5, nanos: 7 },
            xattrs: Xattrs::NONE,
        };
        if plain != *path {
            let (id, meta) = (id_of(plain), meta(folder_mode(plain)));
            return ApplyOp::MakeFolder {
                id,
                at,
                meta,
                left: None,
            };
        }
        let bytes = Bytes::from((*path).to_owned());
        let hash = Hash(range_hash(0, &bytes, true).0);
        contents.push(Some((bytes, hash)));
        ApplyOp::WriteFile {
            id: id_of(plain),
            at,
            body: Body::Inline(contents.len() - 1),
            meta: meta(0o604),
            over: None,
            drift: OnDrift::Ignore,
            adopt: false,
        }
    });
    let ops = Arc::new(ops.collect());
    let ordered = false;
    (Step { ops, ordered }, Arc::new(contents))
}

/// Folders whose names say so are read-only.
fn folder_mode(path: &str) -> u32 {
    if path.starts_with("ro") {
        0o555
    } else {
        0o2750
    }
}

/// Sixteen files in the top folder: enough for a step to be shared.
const MANY: [&str; 16] = [
    "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15", "16",
];

fn staged(top: &Path) -> usize {
    let writers = std::fs::read_dir(top.join(".cdsync/job/stage")).unwrap();
    let entries = |writer: std::fs::DirEntry| std::fs::read_dir(writer.path()).unwrap().count();
    writers.flatten().map(entries).sum()
}

/// Proves that new folders which come with files in the same step are made as they should be, with
/// those within each other, and that what was seen of each is what is there.
#[test]
fn new_folders_come_whole() {
    let top = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk(top.path()));
    std::fs::create_dir(top.path().join("taken")).unwrap();
    std::fs::write(top.path().join("taken/own"), "own").unwrap();
    let paths = [
        &["a/", "a/b/", "a/1", "a/b/2", "a/b/c/", "a/3", "empty/"][..],
        &["taken/", "taken/4", "taken/5", "one/", "one/6"],
        &["ro/", "ro/7", "ro/8", "ro/inner/", "ro/inner/9"],
        &MANY,
    ]
    .concat();
    let (step, contents) = first_step(&disk, &paths);
    let results = disk.run(&step, &contents);
    for (path, result) in paths.iter().zip(results) {
        let seen = match result {
            ApplyResult::Done(seen) if *path != "taken/" => seen,
            ApplyResult::Found(seen) if *path == "taken/" => seen,
            other => panic!("{path}: {other:?}"),
        };
        let there = std::fs::symlink_metadata(top.path().join(path)).unwrap();
        let print = &seen[0].fingerprint;
        assert_eq!(print.identity.inode, there.ino(), "{path}");
        let ctime = (print.ctime.secs, i64::from(print.ctime.nanos));
        if there.is_file() {
            assert_eq!(ctime, (there.ctime(), there.ctime_nsec()), "{path}");
            assert_eq!(
                std::fs::read(top.path().join(path)).unwrap(),
                path.as_bytes()
            );
            assert_eq!((there.mtime(), there.mtime_nsec()), (5, 7), "{path}");
            assert_eq!(there.mode() & 0o7777, 0o604, "{path}");
        } else if *path != "taken/" {
            assert_eq!(there.mode() & 0o7777, folder_mode(path), "{path}");
        }
    }
    assert!(top.path().join("taken/own").exists());
    assert_eq!(staged(top.path()), 0);
}

/// Proves that nothing of a folder is seen when a part of it could not be made as it should be and
/// could not be removed either, and that each of its operations is told to have failed.
#[test]
fn spoilt_folders_are_not_published() {
    let top = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk(top.path()));
    let paths = [&["a/", "a/b/", "a/1", "a/b/2", "a/3"][..], &MANY].concat();
    let (step, contents) = first_step(&disk, &paths);
    disk.unseen.spoil();
    for (path, result) in paths.iter().zip(disk.run(&step, &contents)) {
        let failed = matches!(result, ApplyResult::Failed(_));
        assert_eq!(failed, path.starts_with('a'), "{path}: {result:?}");
    }
    assert_eq!(files(top.path()), MANY);
    assert!(!top.path().join("a").exists());
    assert_eq!(staged(top.path()), 0);
    // And what comes next is not held up by it.
    let again: Vec<String> = (1..=20).map(|n| format!("a/{n}")).collect();
    let again = ["a/"].into_iter().chain(again.iter().map(String::as_str));
    let again: Vec<&str> = again.collect();
    let (step, contents) = first_step(&disk, &again);
    for (path, result) in again.iter().zip(disk.run(&step, &contents)) {
        assert!(matches!(result, ApplyResult::Done(_)), "{path}: {result:?}");
    }
}

/// Proves that folders which are too many or too deep to be held open are made all the same.
#[test]
fn many_and_deep_folders_are_made() {
    let top = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk(top.path()));
    let deep = (1..=40).map(|depth| format!("{}/", vec!["d"; depth].join("/")));
    let many = (0..200).map(|n| format!("m{n}/"));
    let of = |n| [format!("m{n}/1"), format!("m{n}/2")];
    let all: [Vec<String>; 2] = [
        deep.chain(["d/1".to_owned(), "d/2".to_owned()]).collect(),
        many.chain((0..200).flat_map(of)).collect(),
    ];
    for paths in all {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let (step, contents) = first_step(&disk, &paths);
        for (path, result) in paths.iter().zip(disk.run(&step, &contents)) {
            assert!(matches!(result, ApplyResult::Done(_)), "{path}: {result:?}");
            assert!(top.path().join(path).exists(), "{path}");
        }
    }
    assert_eq!(staged(top.path()), 0);
}

/// Proves that a removal touches neither another folder nor something of another kind that is at the
/// name by then, and says so, whichever of them was to go.
#[test]
fn another_folder_is_not_removed() {
    let top = tempfile::tempdir().unwrap();
    let disk = disk(top.path());
    let identity = |path: &str| {
        let at = place(&disk, path);
        let dir = disk.dir(&at).unwrap();
        let seen = dir.look(&at.name, LookWants::default()).unwrap();
        seen.unwrap().fingerprint.identity
    };
    for name in ["folder", "gone"] {
        std::fs::create_dir(top.path().join(name)).unwrap();
    }
    std::fs::write(top.path().join("file"), "a file").unwrap();
    let (folder, gone, file) = (identity("folder"), identity("gone"), identity("file"));
    let remove = |path: &str, known: Identity, kind: Kind| {
        let below = NameSetDigest::default();
        let (known, at) = (Known::from(known), place(&disk, path));
        disk.remove(id_of(path), &at, &known, OnDrift::Ignore, kind, &below)
            .unwrap()
    };
    for (path, known, kind) in [
        ("folder", gone, Kind::Folder),
        ("file", gone, Kind::Folder),
        ("folder", file, Kind::File),
    ] {
        assert_eq!(remove(path, known, kind), ApplyResult::NotEqual, "{path}");
        assert!(top.path().join(path).exists(), "{path}");
    }
    for (path, known, kind) in [
        ("folder", folder, Kind::Folder),
        ("file", file, Kind::File),
        ("nothing", gone, Kind::Folder),
    ] {
        let done = ApplyResult::Done(Vec::new());
        assert_eq!(remove(path, known, kind), done, "{path}");
        assert!(!top.path().join(path).exists(), "{path}");
    }
}

/// Changes a file behind the agent's back, in one of the ways that others do.
type Change = fn(&Path);

/// Proves what counts as a change by others and what does not, and what becomes of it: that nothing
/// of it is lost when it is replaced, and nothing touched when it is to stay.
#[test]
fn others_work_is_met() {
    use std::os::unix::fs::PermissionsExt;
    let ways: [(&str, bool, Change); 6] = [
        ("nothing", false, |_| {}),
        ("another name", false, |at| {
            std::fs::hard_link(at, at.with_extension("link")).unwrap();
        }),
        ("rewritten", true, |at| {
            std::fs::write(at, "theirs").unwrap()
        }),
        ("with its time restored", true, |at| {
            let mtime = std::fs::metadata(at).unwrap().modified().unwrap();
            std::fs::write(at, "MINE").unwrap();
            let file = std::fs::File::options().write(true).open(at).unwrap();
            file.set_modified(mtime).unwrap();
        }),
        ("replaced", true, |at| {
            std::fs::write(at.with_extension("new"), "theirs").unwrap();
            std::fs::rename(at.with_extension("new"), at).unwrap();
        }),
        ("another mode", true, |at| {
            std::fs::set_permissions(at, PermissionsExt::from_mode(0o600)).unwrap();
        }),
    ];
    for (what, is_theirs, change) in ways {
        for drift in [OnDrift::Keep, OnDrift::Replace] {
            let top = tempfile::tempdir().unwrap();
            let disk = Arc::new(disk(top.path()));
            let at = top.path().join("f");
            let (known, print) = written(&disk, None, OnDrift::Ignore, "mine");
            change(&at);
            let theirs = std::fs::read(&at).unwrap();
            let verified = disk.verify(&place(&disk, "f"), Kind::File, &print, known.left.as_ref());
            let whole = matches!(verified.unwrap(), ApplyResult::Done(_));
            assert_eq!(whole, theirs == b"mine" && what != "replaced", "{what}");
            let result = write(&disk, Some(known), drift, "next");
            let now = std::fs::read(&at).unwrap();
            match (is_theirs, drift) {
                (true, OnDrift::Keep) => {
                    assert_eq!((result, now), (ApplyResult::Kept, theirs), "{what}");
                }
                (true, _) => {
                    assert!(matches!(result, ApplyResult::Overwrote(_)), "{what}");
                    assert_eq!(now, b"next");
                    if theirs != b"mine" {
                        assert_eq!(trash(top.path()), [theirs], "{what}");
                    }
                }
                (false, _) => {
                    assert!(matches!(result, ApplyResult::Done(_)), "{what}: {result:?}");
                    assert_eq!(now, b"next");
                }
            }
            assert_eq!(staged(top.path()), 0);
        }
    }
}

/// Proves that something of others at a name that is to be new is met too.
#[test]
fn others_names_are_met() {
    for drift in [OnDrift::Keep, OnDrift::Replace] {
        let top = tempfile::tempdir().unwrap();
        let disk = Arc::new(disk(top.path()));
        std::fs::write(top.path().join("f"), "theirs").unwrap();
        let result = write(&disk, None, drift, "mine");
        let now = std::fs::read(top.path().join("f")).unwrap();
        if drift == OnDrift::Keep {
            assert_eq!((result, now), (ApplyResult::Kept, b"theirs".to_vec()));
        } else {
            assert!(matches!(result, ApplyResult::Overwrote(_)), "{result:?}");
            assert_eq!(trash(top.path()), [b"theirs"]);
        }
    }
}

/// Proves that where a copy of our own was lost, whatever is at its name gives way, also in a job
/// that keeps what others change, and that nothing of it is lost.
#[test]
fn what_was_lost_is_replaced() {
    for drift in [OnDrift::Keep, OnDrift::Replace] {
        let top = tempfile::tempdir().unwrap();
        let disk = Arc::new(disk(top.path()));
        std::fs::write(top.path().join("f"), "torn").unwrap();
        let result = write(&disk, Some(Known::default()), drift, "whole");
        assert!(matches!(result, ApplyResult::Done(_)), "{result:?}");
        assert_eq!(std::fs::read(top.path().join("f")).unwrap(), b"whole");
        assert_eq!(trash(top.path()), [b"torn"]);
    }
}

/// Publishes the file `f`.
fn write(disk: &Arc<Disk>, over: Option<Known>, drift: OnDrift, text: &str) -> ApplyResult {
    let bytes = Bytes::from(text.to_owned());
    let hash = Hash(range_hash(0, &bytes, true).0);
    let op = ApplyOp::WriteFile {
        id: id_of("f"),
        at: place(disk, "f"),
        body: Body::Inline(0),
        meta: Metadata {
            mode: 0o644,
            uid: 0,
            gid: 0,
            user: Vec::new(),
            group: Vec::new(),
            mtime: Timestamp { secs: 5, nanos: 7 },
            xattrs: Xattrs::NONE,
        },
        over,
        drift,
        adopt: false,
    };
    let step = Step {
        ops: Arc::new(vec![op]),
        ordered: false,
    };
    let mut results = disk.run(&step, &Arc::new(vec![Some((bytes, hash))]));
    results.remove(0)
}

/// Publishes it, and tells how it was left.
fn written(
    disk: &Arc<Disk>,
    over: Option<Known>,
    drift: OnDrift,
    text: &str,
) -> (Known, cdsync_core::ledger::object::Fingerprint) {
    let ApplyResult::Done(seen) = write(disk, over, drift, text) else {
        panic!("it cannot be written");
    };
    let print = seen[0].fingerprint;
    let left = Left {
        size: print.size,
        mtime: print.mtime,
        ctime: print.ctime,
        mode: seen[0].meta.mode,
        hash: Some(Hash(range_hash(0, text.as_bytes(), true).0)),
    };
    let known = Known {
        identity: print.identity,
        left: Some(left),
    };
    (known, print)
}

/// What the files in the trash hold.
fn trash(top: &Path) -> Vec<Vec<u8>> {
    let folders = std::fs::read_dir(top.join(".cdsync/job/trash")).unwrap();
    let entries = |folder: std::fs::DirEntry| std::fs::read_dir(folder.path()).unwrap();
    let files = folders.flatten().flat_map(entries).flatten();
    let kept = files.filter(|file| file.file_name() != "manifest");
    kept.map(|file| std::fs::read(file.path()).unwrap())
        .collect()
}
