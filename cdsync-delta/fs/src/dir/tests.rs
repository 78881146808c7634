use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use cdsync_core::ledger::loss::{Loss, Losses};
use cdsync_core::ledger::object::{Kind, Metadata};
use cdsync_core::path::{Name, RelPath};
use cdsync_core::time::Timestamp;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::*;
use crate::error::FsErrorKind;
use crate::testing::{Place, dir_ref, is_root, meta, name, path};

fn names(dir: &Dir, chunk: usize) -> (Vec<Name>, Vec<usize>) {
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    dir.list(chunk, LookWants::default(), &mut |piece| {
        sizes.push(piece.len());
        all.extend(piece.into_iter().map(|(name, found)| {
            found.unwrap();
            name
        }));
        ControlFlow::Continue(())
    })
    .unwrap();
    all.sort();
    (all, sizes)
}

/// Proves that any bytes which may be a name come back as they are, and that listing is bounded by
/// its chunk and leaves `.cdsync` out.
#[test]
fn odd_names_are_listed_in_chunks() {
    let place = Place::new();
    let top = place.root.top();
    let mut wanted: Vec<Name> = [
        &b"a\nb"[..],
        b"\xff\xfe\x80",
        &[b'x'; 255],
        b" ",
        b"...",
        b"-rf",
    ]
    .iter()
    .map(|b| Name::new(b).unwrap())
    .collect();
    for name in &wanted {
        drop(top.create_exclusive(name, 0o644).unwrap());
    }
    std::fs::create_dir(place.at(".cdsync")).unwrap();
    wanted.sort();
    let (all, sizes) = names(&top, 4);
    assert_eq!(all, wanted);
    assert_eq!(sizes, [4, 2]);
    assert!(!top.is_empty_but_reserved().unwrap());
    for name in &wanted {
        assert_eq!(
            top.look(name, LookWants::default()).unwrap().unwrap().kind,
            Kind::File
        );
        top.unlink(name).unwrap();
    }
    assert!(top.is_empty_but_reserved().unwrap());
}

/// Proves that a listing that was stopped stops, and is told nothing more.
#[test]
fn listing_can_be_stopped() {
    let place = Place::new();
    for n in 0..10 {
        place.write(&format!("f{n}"), b"");
    }
    let mut calls = 0;
    let mut stop = |_: Listed| {
        calls += 1;
        ControlFlow::Break(())
    };
    place
        .root
        .top()
        .list(3, LookWants::default(), &mut stop)
        .unwrap();
    assert_eq!(calls, 1);
}

/// Proves that a link which takes the place of a folder on the way leads nowhere, by both ways of
/// resolving.
#[test]
fn swapped_component_is_refused() {
    let place = Place::new();
    std::fs::create_dir_all(place.at("a/b")).unwrap();
    std::fs::create_dir_all(place.base.path().join("outside/b")).unwrap();
    assert!(place.root.dir(&dir_ref(2, "a/b")).is_ok());
    std::fs::rename(place.at("a"), place.at("away")).unwrap();
    symlink(place.base.path().join("outside"), place.at("a")).unwrap();
    place.root.forget_all();
    let error = place.root.dir(&dir_ref(2, "a/b")).unwrap_err();
    assert_eq!(error.kind(), FsErrorKind::Link, "{error}");
    let stepping = Root::open_by_steps(place.base.path(), &path("root")).unwrap();
    let top = stepping.top();
    let steps = |below: &[u8]| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        top.beneath().open(below, flags)
    };
    assert!(matches!(
        steps(b"a/b").unwrap_err(),
        Errno::LOOP | Errno::NOTDIR
    ));
    assert!(matches!(
        steps(b"a").unwrap_err(),
        Errno::LOOP | Errno::NOTDIR
    ));
    assert_eq!(steps(b"away/../..").unwrap_err(), Errno::INVAL);
    assert!(steps(b"away/b").is_ok());
    assert!(steps(b".").is_ok());
}

/// Proves that a file behind a link is neither opened nor changed.
#[test]
fn links_are_not_followed() {
    let place = Place::new();
    let victim = place.base.path().join("outside/victim");
    std::fs::write(&victim, b"secret").unwrap();
    std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o600)).unwrap();
    symlink(&victim, place.at("link")).unwrap();
    let top = place.root.top();
    assert_eq!(
        top.open_file(&name("link")).unwrap_err().kind(),
        FsErrorKind::Link
    );
    let wrong = top
        .set_metadata(&name("link"), None, &meta(0o777), Kind::File)
        .unwrap_err();
    assert_eq!(wrong.kind(), FsErrorKind::Changed);
    let _ = top
        .set_metadata(&name("link"), None, &meta(0o777), Kind::Symlink)
        .unwrap();
    let after = std::fs::metadata(&victim).unwrap();
    assert_eq!(after.permissions().mode() & 0o7777, 0o600);
    assert_ne!(after.mtime(), meta(0).mtime.secs);
    let link = top
        .look(&name("link"), LookWants::default())
        .unwrap()
        .unwrap();
    assert_eq!(link.meta.mtime, meta(0).mtime);
    assert_eq!(
        link.link.as_deref(),
        Some(victim.as_os_str().as_encoded_bytes())
    );
}

/// Proves that a folder is recognised as another one by inode, and that the cache never gives the
/// folder of another path.
#[test]
fn other_folder_at_path_is_moved() {
    let place = Place::new();
    std::fs::create_dir(place.at("a")).unwrap();
    let mut a = dir_ref(2, "a");
    a.identity = Some(place.identity("a"));
    let first = place.root.dir(&a).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &place.root.dir(&a).unwrap()));
    std::fs::rename(place.at("a"), place.at("b")).unwrap();
    std::fs::create_dir(place.at("a")).unwrap();
    let b = DirRef {
        path: path("b"),
        ..a.clone()
    };
    assert_eq!(place.root.dir(&b).unwrap().identity(), first.identity());
    assert_eq!(place.root.dir(&a).unwrap_err().kind(), FsErrorKind::Moved);
    place.root.forget(a.id);
    assert_eq!(place.root.dir(&a).unwrap_err().kind(), FsErrorKind::Moved);
}

/// Proves that more folders than the cache holds can be used, and that it stays bounded.
#[test]
fn cache_is_bounded() {
    let place = Place::new();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for n in 0..1200 {
        let below = format!("d{n}");
        std::fs::create_dir(place.at(&below)).unwrap();
        place.root.dir(&dir_ref(100 + n, &below)).unwrap();
    }
    assert!(open() < before + 700, "{} more", open() - before);
}

/// Proves that trees deeper than one call can name are reached and made.
#[test]
fn paths_beyond_path_max_are_opened() {
    let place = Place::new();
    let component = Name::new(&[b'd'; 200]).unwrap();
    let mut below = RelPath::root();
    let mut dir = place.root.top().open_below(&below).unwrap();
    for _ in 0..45 {
        dir.make_folder(&component, 0o755).unwrap();
        dir = dir.open_folder(&component).unwrap();
        below = below.join(&component);
    }
    assert!(below.as_bytes().len() > 2 * 4096);
    let found = place
        .root
        .dir(&DirRef {
            path: below,
            ..dir_ref(9, "")
        })
        .unwrap();
    assert_eq!(found.identity(), dir.identity());
}

/// Proves that a root which vanished or was replaced is told from one that is as it was.
#[test]
fn lost_roots_are_noticed() {
    let place = Place::new();
    place.root.verify().unwrap();
    std::fs::rename(place.at(""), place.base.path().join("away")).unwrap();
    assert_eq!(place.root.verify(), Err(RootLost::Vanished));
    std::fs::create_dir(place.at("")).unwrap();
    assert_eq!(place.root.verify(), Err(RootLost::Replaced));
    std::fs::remove_dir(place.at("")).unwrap();
    symlink("outside", place.base.path().join("root")).unwrap();
    assert_eq!(place.root.verify(), Err(RootLost::Replaced));
    std::fs::remove_file(place.base.path().join("root")).unwrap();
    std::fs::rename(place.base.path().join("away"), place.at("")).unwrap();
    place.root.verify().unwrap();
}

/// Proves that a target's folder is made beneath what the operator allowed, and only there.
#[test]
fn roots_are_made_below() {
    let place = Place::new();
    let made = Root::create_below(place.base.path(), &path("root/x/y")).unwrap();
    assert!(place.at("x/y").is_dir());
    made.verify().unwrap();
    symlink(place.base.path().join("outside"), place.at("l")).unwrap();
    assert!(Root::create_below(place.base.path(), &path("root/l/y")).is_err());
    assert!(!place.base.path().join("outside/y").exists());
}

/// Proves that what is mounted inside a root is reported and not entered, bind mounts too.
#[test]
fn mounts_are_not_entered() {
    if !is_root("mounting inside a root") {
        return;
    }
    let place = Place::new();
    std::fs::create_dir_all(place.at("mnt/sub")).unwrap();
    let run = |args: &[&std::ffi::OsStr]| {
        std::process::Command::new(args[0])
            .args(&args[1..])
            .output()
            .unwrap()
            .status
            .success()
    };
    let (outside, mnt) = (place.base.path().join("outside"), place.at("mnt"));
    if !run(&[
        "mount".as_ref(),
        "--bind".as_ref(),
        outside.as_ref(),
        mnt.as_ref(),
    ]) {
        eprintln!("SKIPPED, cannot mount here");
        return;
    }
    let top = place.root.top();
    let look = top
        .look(&name("mnt"), LookWants::HANDLE)
        .map_err(|e| e.kind());
    let open = place
        .root
        .dir(&dir_ref(2, "mnt"))
        .map(drop)
        .map_err(|e| e.kind());
    let mut listed = Vec::new();
    let list = top.list(8, LookWants::default(), &mut |piece| {
        listed.extend(piece);
        ControlFlow::Continue(())
    });
    assert!(run(&["umount".as_ref(), mnt.as_ref()]));
    assert_eq!(look, Err(FsErrorKind::OtherFilesystem));
    assert_eq!(open, Err(FsErrorKind::OtherFilesystem));
    list.unwrap();
    let error = listed.pop().unwrap().1.unwrap_err();
    assert_eq!(error.kind(), FsErrorKind::OtherFilesystem);
}

/// Proves that mode with set-id bits and times before 1970 in nanoseconds arrive, for files and
/// folders, and that setting them again changes nothing.
#[test]
fn metadata_is_set_exactly() {
    let place = Place::new();
    place.write("f", b"x");
    std::fs::create_dir(place.at("d")).unwrap();
    let top = place.root.top();
    let old = Timestamp {
        secs: -12_345,
        nanos: 999_999_999,
    };
    for (file, kind, mode) in [("f", Kind::File, 0o6751), ("d", Kind::Folder, 0o1770)] {
        let wanted = Metadata {
            mtime: old,
            ..meta(mode)
        };
        let identity = Some(place.identity(file));
        assert_eq!(
            top.set_metadata(&name(file), identity, &wanted, kind)
                .map(|seen| seen.losses),
            Ok(Losses::NONE)
        );
        let first = place.look(file).unwrap();
        assert_eq!(first.meta, wanted);
        top.set_metadata(&name(file), identity, &wanted, kind)
            .unwrap();
        assert_eq!(
            place.look(file).unwrap(),
            first,
            "nothing differs, so not even ctime moves"
        );
        let other = place.identity(if file == "f" { "d" } else { "f" });
        let error = top
            .set_metadata(&name(file), Some(other), &wanted, kind)
            .unwrap_err();
        assert_eq!(error.kind(), FsErrorKind::Moved);
    }
}

/// Proves that an owner is given, and that set-id bits survive the change of owner.
#[test]
fn owners_are_set() {
    if !is_root("changing owners") {
        return;
    }
    let place = Place::new();
    place.write("f", b"x");
    symlink("nowhere", place.at("l")).unwrap();
    let top = place.root.top();
    let wanted = Metadata {
        uid: 1234,
        gid: 5678,
        ..meta(0o4755)
    };
    let _ = top
        .set_metadata(&name("f"), None, &wanted, Kind::File)
        .unwrap();
    assert_eq!(place.look("f").unwrap().meta, wanted);
    let _ = top
        .set_metadata(&name("l"), None, &wanted, Kind::Symlink)
        .unwrap();
    let link = place.look("l").unwrap().meta;
    assert_eq!((link.uid, link.gid, link.mtime), (1234, 5678, wanted.mtime));
}

/// Proves that a rename to a taken name takes nothing, and that an exchange takes both.
#[test]
fn renames_replace_nothing() {
    let place = Place::new();
    place.write("a", b"a");
    place.write("d/b", b"b");
    let (top, d) = (place.root.top(), place.dir("d"));
    let error = top.rename_new(&name("a"), &d, &name("b")).unwrap_err();
    assert_eq!(error.kind(), FsErrorKind::Exists);
    top.exchange(&name("a"), &d, &name("b")).unwrap();
    assert_eq!(
        (place.read("a"), place.read("d/b")),
        (b"b".to_vec(), b"a".to_vec())
    );
    let missing = top.exchange(&name("a"), &d, &name("c")).unwrap_err();
    assert_eq!(missing.kind(), FsErrorKind::NotFound);
    let inside = top.exchange(&name("d"), &d, &name("b")).unwrap_err();
    assert_eq!(inside.kind(), FsErrorKind::Unsupported);
    assert_eq!(
        d.remove_folder(&name("b")).unwrap_err().kind(),
        FsErrorKind::NotFolder
    );
    assert_eq!(
        top.remove_folder(&name("d")).unwrap_err().kind(),
        FsErrorKind::NotEmpty
    );
}

/// Proves that a failed call names what failed on one line, whatever the name is.
#[test]
fn errors_name_the_path() {
    let place = Place::new();
    let bad = Name::new(b"a\nERROR forged").unwrap();
    let error = place.root.top().open_file(&bad).unwrap_err();
    assert_eq!(
        error.to_string(),
        "open 'a\\nERROR forged': No such file or directory (os error 2)"
    );
    assert!(!error.is_retryable());
    assert_eq!(error.errno(), Some(libc::ENOENT));
}

/// Proves that a root may be a volume mounted below what the operator allowed, and that losing the
/// mount is told as such.
#[test]
fn root_may_be_a_mounted_volume() {
    if !is_root("mounting a root") {
        return;
    }
    let place = Place::new();
    let volume = place.at("volume");
    std::fs::create_dir(&volume).unwrap();
    let run = |args: &[&str], at: &std::path::Path| {
        let mut command = std::process::Command::new(args[0]);
        command
            .args(&args[1..])
            .arg(at)
            .output()
            .unwrap()
            .status
            .success()
    };
    if !run(&["mount", "-t", "tmpfs", "tmpfs"], &volume) {
        eprintln!("SKIPPED, cannot mount here");
        return;
    }
    let root = Root::create_below(place.base.path(), &path("root/volume"));
    let verified = root.as_ref().map(Root::verify);
    // A lazy unmount: the root holds a handle, as it does when an administrator forces one.
    assert!(run(&["umount", "-l"], &volume));
    assert_eq!(verified.unwrap(), Ok(()));
    assert_eq!(root.unwrap().verify(), Err(RootLost::OtherFilesystem));
}

/// Proves that an owner who may not give a file away gets all but the owner set, without the
/// set-id bits that would then speak for another.
#[test]
fn refused_owner_is_told() {
    if rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, needs to run without root: a refused change of owner");
        return;
    }
    let place = Place::new();
    place.write("f", b"x");
    let wanted = Metadata {
        uid: 0,
        gid: 0,
        ..meta(0o6755)
    };
    let seen = place
        .root
        .top()
        .set_metadata(&name("f"), None, &wanted, Kind::File)
        .unwrap();
    assert!(seen.losses.has(Loss::Owner));
    let found = place.look("f").unwrap().meta;
    assert_eq!(found, meta(0o755));
}
