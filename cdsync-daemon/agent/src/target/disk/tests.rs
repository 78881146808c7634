//! What a step does on a real filesystem.

use std::path::Path;

use cdsync_core::filter::FilterSpec;
use cdsync_core::ids::OriginId;
use cdsync_core::ledger::access::FolderAt;

use super::*;

fn disk(top: &Path) -> Disk {
    let root = Root::open(top, &RelPath::root()).unwrap();
    let applier = Arc::new(Applier::open(&root, "job").unwrap());
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    Disk::open(root, applier, filter).unwrap()
}

/// A path of the form `folder/name`, as the ledger would have it now.
fn place(disk: &Disk, path: &str) -> Place {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let path = RelPath::new(folder.as_bytes().to_vec()).unwrap_or_else(|_| RelPath::root());
    let number = folder.bytes().fold(1, |n, b| n * 31 + u64::from(b));
    let id = ObjectId {
        origin: OriginId(7),
        number,
    };
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
                mtime: Timestamp::default(),
            },
            over: None,
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
