use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use cdsync_core::ledger::object::Kind;
use cdsync_core::path::{Name, RelPath};
use rustix::fs::XattrFlags;

use super::canary::Canary;
use crate::apply::{Applier, Move, MoveOutcome};
use crate::dir::{LookWants, Root, RootLost};
use crate::error::FsErrorKind;
use crate::testing::{Place, dir_ref, is_root, meta, name, path};

const NOBODY: u32 = 65_534;

/// A root with `a/b/f`, where `a` is a link to the same names outside by now.
fn swapped() -> (Place, Canary) {
    let place = Place::new();
    place.write("a/b/f", b"inside");
    let canary = Canary::new(&place, false);
    std::fs::rename(place.at("a"), place.at("away")).unwrap();
    symlink(canary.at("a"), place.at("a")).unwrap();
    (place, canary)
}

/// The same root, resolved in both ways.
fn both_ways(place: &Place) -> [Root; 2] {
    let steps = Root::open_by_steps(place.base.path(), &path("root")).unwrap();
    [place.root.clone(), steps]
}

/// Proves that no folder is reached through a link that was swapped for a component, by its path or
/// from an open folder, and so nothing is received, sent, listed or deleted there.
#[test]
fn no_folder_is_reached_through_a_link() {
    let (place, canary) = swapped();
    for root in both_ways(&place) {
        for below in ["a", "a/b", "a/b/c"] {
            let error = root.dir(&dir_ref(2, below)).unwrap_err();
            assert!(
                matches!(error.kind(), FsErrorKind::Link | FsErrorKind::NotFolder),
                "{error}"
            );
            assert!(root.top().open_below(&path(below)).is_err());
        }
        assert!(root.top().open_folder(&name("a")).is_err());
    }
    canary.assert_whole();
}

/// Proves that an open folder whose path leads outside by now is still the folder that it was: what
/// is published, linked, made, removed and dressed there stays inside.
#[test]
fn open_folders_stay_what_they_were() {
    let place = Place::new();
    place.write("a/b/f", b"inside");
    let canary = Canary::new(&place, false);
    let (held, applier) = (place.dir("a/b"), Applier::open(&place.root, "job").unwrap());
    std::fs::rename(place.at("a"), place.at("away")).unwrap();
    symlink(canary.at("a"), place.at("a")).unwrap();
    let stager = applier.stager(0).unwrap();
    let file = stager.small(b"new", &meta(0o644)).unwrap();
    applier.publish(file, &held, &name("g"), None).unwrap();
    let link = stager.symlink(b"/etc", &meta(0o777)).unwrap();
    applier.publish(link, &held, &name("l"), None).unwrap();
    let pipe = stager.special(Kind::Fifo, 0, &meta(0o600)).unwrap();
    applier.publish(pipe, &held, &name("p"), None).unwrap();
    applier
        .make_folder(&held, &name("c"), &meta(0o755))
        .unwrap();
    let f = held.look_existing(&name("f")).unwrap();
    let identity = Some(f.fingerprint.identity);
    let _ = held
        .set_metadata(&name("f"), identity, &meta(0o777), Kind::File)
        .unwrap();
    applier
        .trash(&held, &name("f"), None, &path("a/b/f"))
        .unwrap();
    assert_eq!(place.read("away/b/g"), b"new");
    assert!(place.at("away/b/c").is_dir() && !place.at("away/b/f").exists());
    canary.assert_whole();
}

/// Proves that a link at a file's own name is neither read, nor dressed, nor written through: it is
/// itself removed, moved and replaced.
#[test]
fn a_link_at_a_name_is_only_a_link() {
    let place = Place::new();
    let canary = Canary::new(&place, false);
    let applier = Applier::open(&place.root, "job").unwrap();
    for root in both_ways(&place) {
        for n in ["f", "g", "h"] {
            let _ = std::fs::remove_file(place.at(n));
            symlink(canary.at("f"), place.at(n)).unwrap();
        }
        let top = root.top();
        let seen = top.look_existing(&name("f")).unwrap();
        assert_eq!(seen.kind, Kind::Symlink);
        assert_eq!(
            top.open_file(&name("f")).unwrap_err().kind(),
            FsErrorKind::Link
        );
        assert!(crate::open_content(&top, &name("f"), &seen.fingerprint).is_err());
        let _ = top
            .set_metadata(&name("f"), None, &meta(0o777), Kind::Symlink)
            .unwrap();
        let is_file = |o: &cdsync_core::ledger::object::Observed| o.kind == Kind::File;
        assert_eq!(top.adopt(&name("f"), &meta(0o777), is_file), Ok(None));
        let wanted = Move {
            from_dir: Some(top.clone()),
            from_name: name("f"),
            to_dir: top.clone(),
            to_name: name("g"),
            identity: seen.fingerprint.identity,
        };
        let moved = applier.relocate(&[wanted]).unwrap();
        assert!(matches!(moved.outcomes[0], MoveOutcome::Done(_)));
        let stager = applier.stager(0).unwrap();
        let file = stager.small(b"new", &meta(0o644)).unwrap();
        applier.publish(file, &top, &name("g"), None).unwrap();
        applier.trash(&top, &name("h"), None, &path("h")).unwrap();
        assert_eq!(place.read("g"), b"new");
    }
    canary.assert_whole();
}

/// Proves that a second name of a file outside is not taken over, so that its owner, mode and times
/// are not set, whether they differ now or come to differ later; and that it can be replaced.
#[test]
fn second_names_are_not_taken_over() {
    let place = Place::new();
    let canary = Canary::new(&place, true);
    std::fs::hard_link(canary.at("f"), place.at("f")).unwrap();
    let links = canary.at("link");
    symlink("nowhere", &links).unwrap();
    std::fs::hard_link(&links, place.at("l")).unwrap();
    let link_before = std::fs::symlink_metadata(&links).unwrap();
    for root in both_ways(&place) {
        let top = root.top();
        for n in ["f", "l"] {
            let now = top.look_existing(&name(n)).unwrap();
            for wanted in [&meta(0o777), &now.meta] {
                assert_eq!(top.adopt(&name(n), wanted, |_| true), Ok(None), "{n}");
            }
        }
    }
    let link_after = std::fs::symlink_metadata(&links).unwrap();
    assert_eq!(link_before.mtime_nsec(), link_after.mtime_nsec());
    std::fs::remove_file(&links).unwrap();
    let applier = Applier::open(&place.root, "job").unwrap();
    let file = applier
        .stager(0)
        .unwrap()
        .small(b"new", &meta(0o666))
        .unwrap();
    applier
        .publish(file, &place.root.top(), &name("f"), None)
        .unwrap();
    assert_eq!(place.read("f"), b"new");
    let held = std::fs::metadata(canary.at("f")).unwrap();
    assert_eq!(held.permissions().mode() & 0o7777, 0o600);
    // Its own single name is taken over.
    place.write("own", b"x");
    let adopted = place.root.top().adopt(&name("own"), &meta(0o640), |_| true);
    assert_eq!(adopted.unwrap().unwrap().meta, meta(0o640));
}

/// Proves that what is mounted over a name, folder or file, of another filesystem or the same one,
/// is neither entered, nor read, nor dressed, nor taken over.
#[test]
fn mounts_are_no_way_out() {
    if !is_root("mounting over names of a root") {
        return;
    }
    let place = Place::new();
    let canary = Canary::new(&place, false);
    place.write("a/b/f", b"inside");
    place.write("f", b"inside");
    let run = |args: &[&Path]| {
        let mut command = std::process::Command::new(args[0]);
        command.args(&args[1..]).output().unwrap().status.success()
    };
    let bind = [Path::new("mount"), Path::new("--bind")];
    for n in ["f", "a"] {
        if !run(&[bind[0], bind[1], &canary.at(n), &place.at(n)]) {
            eprintln!("SKIPPED, cannot mount here");
            return;
        }
    }
    let mut told = Vec::new();
    for root in both_ways(&place) {
        let (top, f) = (root.top(), name("f"));
        told.push(top.look(&f, LookWants::default()).map(drop));
        told.push(top.open_file(&f).map(drop));
        told.push(
            top.set_metadata(&f, None, &meta(0o777), Kind::File)
                .map(drop),
        );
        told.push(top.adopt(&f, &meta(0o777), |_| true).map(drop));
        told.push(root.dir(&dir_ref(2, "a")).map(drop));
        told.push(root.dir(&dir_ref(3, "a/b")).map(drop));
    }
    for n in ["f", "a"] {
        assert!(run(&[Path::new("umount"), &place.at(n)]));
    }
    for one in told {
        assert_eq!(one.unwrap_err().kind(), FsErrorKind::OtherFilesystem);
    }
    canary.assert_whole();
}

/// Proves that `.cdsync` and what is in it, put there as links or files by others, is not used.
#[test]
fn own_folders_are_no_links() {
    for below in [
        ".cdsync",
        ".cdsync/job",
        ".cdsync/job/stage",
        ".cdsync/job/trash",
    ] {
        let place = Place::new();
        let canary = Canary::new(&place, false);
        let at = place.at(below);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(canary.at("a"), &at).unwrap();
        let error = Applier::open(&place.root, "job").unwrap_err();
        assert!(
            error.to_string().contains("a symbolic link is in the way"),
            "{error}"
        );
        std::fs::remove_file(&at).unwrap();
        std::fs::write(&at, b"").unwrap();
        assert!(Applier::open(&place.root, "job").is_err());
        canary.assert_whole();
    }
}

/// Proves that folders in `.cdsync` that another user made, opened up or gave away are taken back
/// before anything is put there, and what that user had left in staging is gone.
#[test]
fn own_folders_are_taken_back() {
    if !is_root("folders of another user") {
        return;
    }
    let place = Place::new();
    let all = [
        "",
        "/job",
        "/job/stage",
        "/job/spare",
        "/job/trash",
        "/job/stage/0",
    ];
    let all = all.map(|below| place.at(&format!(".cdsync{below}")));
    for folder in &all {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("planted"), b"").unwrap();
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let applier = Applier::open(&place.root, "job").unwrap();
    let _stager = applier.stager(0).unwrap();
    for folder in &all {
        let found = std::fs::metadata(folder).unwrap();
        assert_eq!(
            (found.uid(), found.mode() & 0o7777),
            (0, 0o700),
            "{}",
            folder.display()
        );
    }
    assert!(!place.at(".cdsync/job/stage/planted").exists());
    assert!(!place.at(".cdsync/job/stage/0/planted").exists());
}

/// Proves that a root which hands an ACL on to what is made in it opens nothing that is staged.
#[test]
fn staged_files_inherit_nothing() {
    if !is_root("an ACL of another user") {
        return;
    }
    let place = Place::new();
    let mut acl = 2_u32.to_le_bytes().to_vec();
    // Owner, one named user, group, mask, others.
    for (tag, bits, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 7, NOBODY),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let default = c"system.posix_acl_default";
    let top = place.root.top();
    if rustix::fs::fsetxattr(&*top, default, &acl, XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED, no ACLs here");
        return;
    }
    let applier = Applier::open(&place.root, "job").unwrap();
    let file = applier
        .stager(0)
        .unwrap()
        .small(b"new", &meta(0o640))
        .unwrap();
    applier.publish(file, &top, &name("f"), None).unwrap();
    let made = applier.make_folder(&top, &name("d"), &meta(0o750)).unwrap();
    assert_eq!(made.observed.meta.mode, 0o750);
    for n in ["f", "d"] {
        let access =
            rustix::fs::getxattr(place.at(n), c"system.posix_acl_access", &mut [0_u8; 256]);
        assert!(access.is_err(), "{n} is open to others");
    }
}

/// Proves that CDSync's own folders, moved to a name of the job, are not taken for its folder: it
/// would be given away with all that is staged in it.
#[test]
fn own_folders_are_not_taken_for_the_jobs() {
    let place = Place::new();
    let applier = Applier::open(&place.root, "job").unwrap();
    std::fs::rename(place.at(".cdsync"), place.at("d")).unwrap();
    let top = place.root.top();
    for (dir, n) in [
        (top.clone(), "d"),
        (place.dir("d"), "job"),
        (place.dir("d/job"), "stage"),
    ] {
        let error = applier
            .make_folder(&dir, &name(n), &meta(0o777))
            .unwrap_err();
        assert!(error.to_string().contains("move it back"), "{error}");
        let found = dir.look_existing(&name(n)).unwrap();
        assert_eq!(found.meta.mode, 0o700);
    }
}

/// Proves that names for what is staged cannot be guessed, and that nobody else gets to them.
#[test]
fn staged_names_are_unpredictable() {
    let place = Place::new();
    let applier = Applier::open(&place.root, "job").unwrap();
    let stager = applier.stager(0).unwrap();
    let staged: Vec<_> = (0..200)
        .map(|_| stager.small(b"", &meta(0o600)).unwrap())
        .collect();
    let folder = place.at(".cdsync/job/stage/0");
    let mode = std::fs::metadata(&folder).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700);
    let numbers: Vec<u64> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| u64::from_str_radix(e.unwrap().file_name().to_str().unwrap(), 16).unwrap())
        .collect();
    assert_eq!(numbers.len(), staged.len());
    // Each bit is set in about half of them: 200 fair coins miss these bounds once in 10^10 runs.
    for bit in 0..64 {
        let ones = numbers.iter().filter(|n| *n >> bit & 1 == 1).count();
        assert!((50..=150).contains(&ones), "bit {bit}: {ones}");
    }
}

/// Proves that a root is opened only at or below what the operator allowed, through no link, and
/// that one which is swapped afterwards is told while its handles stay what they were.
#[test]
fn roots_do_not_fail_open() {
    let place = Place::new();
    let canary = Canary::new(&place, false);
    assert!(RelPath::new(b"..".to_vec()).is_err() && RelPath::new(b"a/../..".to_vec()).is_err());
    symlink(canary.at("a"), place.at("l")).unwrap();
    for below in ["root/l", "root/l/b", "root/l/new"] {
        assert!(Root::open(place.base.path(), &path(below)).is_err());
        assert!(Root::create_below(place.base.path(), &path(below)).is_err());
    }
    let [at, away] = ["root", "away"].map(|n| place.base.path().join(n));
    for root in both_ways(&place) {
        std::fs::rename(&at, &away).unwrap();
        symlink(canary.at(""), &at).unwrap();
        assert_eq!(root.verify(), Err(RootLost::Replaced));
        root.top().make_folder(&name("made"), 0o755).unwrap();
        root.top().remove_folder(&name("made")).unwrap();
        std::fs::remove_file(&at).unwrap();
        std::fs::rename(&away, &at).unwrap();
        assert_eq!(root.verify(), Ok(()));
    }
    canary.assert_whole();
}

/// Proves that names with line ends, escapes and control characters are one harmless line wherever
/// they are told: errors, and the trash's manifest.
#[test]
fn odd_names_are_told_on_one_line() {
    let place = Place::new();
    let bad = Name::new(b"x\nERROR \x1b[2J\r\x07\x9b forged\t1").unwrap();
    let applier = Applier::open(&place.root, "job").unwrap();
    let top = place.root.top();
    let errors = [
        top.open_file(&bad).unwrap_err().to_string(),
        format!("{:?}", top.open_folder(&bad).unwrap_err()),
        crate::ApplyError::Contended {
            path: RelPath::root().join(&bad),
        }
        .to_string(),
    ];
    drop(top.create_exclusive(&bad, 0o600).unwrap());
    let kept = applier
        .trash(&top, &bad, None, &RelPath::root().join(&bad))
        .unwrap()
        .unwrap();
    applier.sync().unwrap();
    let folder = std::fs::read_dir(place.at(".cdsync/job/trash")).unwrap();
    let folder = folder.map(|e| e.unwrap().path()).next().unwrap();
    let manifest = std::fs::read_to_string(folder.join("manifest")).unwrap();
    assert_eq!(manifest.lines().count(), 1, "{manifest:?}");
    let line = manifest.trim_end_matches('\n').replacen('\t', " ", 1);
    for text in errors.iter().chain([&line, &kept.kept_as.to_string()]) {
        assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
    }
}
