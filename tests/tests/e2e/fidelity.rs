//! Everything about a file that is kept identical, on several filesystems.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use cdsync_tests::{Cluster, is_root, job_file, wait_until};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};

/// How long what is told may take.
const SECONDS: Duration = Duration::from_secs(30);

/// An access list by which user 4242 has other rights than the mode says.
fn acl(group: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries = [
        (0x01_u16, 6_u16, none),
        (0x02, 6, 4242),
        (0x04, group, none),
        (0x10, 6, none),
        (0x20, 4, none),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {}: {e}", path.display()));
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn special(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
    mode(path, 0o640);
}

/// A file of 8 MiB of which only the ends are not holes.
fn sparse(path: &Path) {
    let mut file = File::create(path).unwrap();
    file.write_all(b"begin").unwrap();
    file.set_len(8 << 20).unwrap();
    file.seek(SeekFrom::End(-3)).unwrap();
    file.write_all(b"end").unwrap();
}

/// One of everything. The times of the folders are from long before their content.
fn make_everything(top: &Path) {
    let at = |name: &str| top.join(name);
    for folder in ["plain", "lists", "linked/inner", "modes"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    for bits in [0o000, 0o001, 0o222, 0o644, 0o1777, 0o2755, 0o4711, 0o7777] {
        let path = at(&format!("modes/{bits:o}"));
        fs::write(&path, "x").unwrap();
        chown(&path, Some(1234), Some(5678)).unwrap();
        mode(&path, bits);
    }
    fs::create_dir(at("modes/closed")).unwrap();
    fs::write(at("modes/closed/inner"), "x").unwrap();
    mode(&at("modes/closed"), 0o000);
    fs::create_dir(at("modes/shared")).unwrap();
    mode(&at("modes/shared"), 0o3775);
    fs::write(at("lists/file"), "x").unwrap();
    set(&at("lists/file"), "system.posix_acl_access", &acl(4));
    set(&at("lists/file"), "user.note", b"a note");
    set(&at("lists/file"), "user.empty", b"");
    fs::create_dir(at("lists/folder")).unwrap();
    fs::write(at("lists/folder/without"), "x").unwrap();
    set(&at("lists/folder"), "system.posix_acl_default", &acl(5));
    symlink("nowhere", at("lists/link")).unwrap();
    lchown(at("lists/link"), Some(77), Some(88)).unwrap();
    set(&at("lists/link"), "trusted.label", b"of a link");
    fs::write(at("lists/program"), "x").unwrap();
    let capability: Vec<u8> = [0x0200_0001_u32, 1 << 10, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    mode(&at("lists/program"), 0o755);
    set(&at("lists/program"), "security.capability", &capability);
    sparse(&at("plain/sparse"));
    File::create(at("plain/hole"))
        .unwrap()
        .set_len(3 << 20)
        .unwrap();
    fs::write(at("linked/first"), "one file").unwrap();
    fs::hard_link(at("linked/first"), at("linked/inner/second")).unwrap();
    fs::hard_link(at("linked/first"), at("third")).unwrap();
    special(&at("pipe"), FileType::Fifo, 0);
    drop(UnixListener::bind(at("socket")).unwrap());
    special(&at("null"), FileType::CharacterDevice, makedev(1, 3));
    special(&at("loop"), FileType::BlockDevice, makedev(7, 200));
    for name in [
        &b"\xff\xfe bytes"[..],
        b"line\nend",
        b" ",
        b"-rf",
        &[b'n'; 255],
    ] {
        fs::write(top.join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for folder in ["plain", "lists", "lists/folder", "linked/inner", "linked"] {
        let times = FileTimes::new().set_modified(old);
        File::open(at(folder)).unwrap().set_times(times).unwrap();
    }
}

/// What is changed afterwards, each compared by itself.
/// A change, and what it is called.
type Change = (&'static str, Box<dyn Fn(&Path)>);

fn changes() -> Vec<Change> {
    fn change(what: &'static str, how: impl Fn(&Path) + 'static) -> Change {
        (what, Box::new(how))
    }
    vec![
        change("an attribute alone", |top| {
            set(&top.join("lists/file"), "user.note", b"another note");
        }),
        change("an attribute removed", |top| {
            rustix::fs::removexattr(top.join("lists/file"), "user.note").unwrap();
        }),
        change("an access list", |top| {
            set(&top.join("lists/file"), "system.posix_acl_access", &acl(6));
        }),
        change("an access list removed", |top| {
            rustix::fs::removexattr(top.join("lists/file"), "system.posix_acl_access").unwrap();
        }),
        change("the owner of a program", |top| {
            chown(top.join("modes/4711"), Some(4321), None).unwrap();
            mode(&top.join("modes/4711"), 0o4711);
        }),
        change("written by one of its names", |top| {
            fs::write(top.join("third"), "other bytes by the third name").unwrap();
        }),
        change("one of its names removed", |top| {
            fs::remove_file(top.join("linked/first")).unwrap();
        }),
        change("one of its names renamed", |top| {
            fs::rename(top.join("third"), top.join("linked/inner/renamed")).unwrap();
        }),
        change("one more name", |top| {
            fs::hard_link(top.join("linked/inner/second"), top.join("plain/again")).unwrap();
        }),
        change("a name over another file", |top| {
            fs::write(top.join("victim"), "goes").unwrap();
            fs::hard_link(top.join("plain/again"), top.join("temporary")).unwrap();
            fs::rename(top.join("temporary"), top.join("victim")).unwrap();
        }),
        change("a single file becomes two names", |top| {
            fs::hard_link(top.join("modes/644"), top.join("modes/same")).unwrap();
        }),
        change("mode by another name", |top| {
            mode(&top.join("modes/same"), 0o600);
        }),
        change("saved by rename, the old one kept", |top| {
            fs::hard_link(top.join("lists/folder/without"), top.join("kept")).unwrap();
            fs::write(top.join("new"), "new").unwrap();
            fs::rename(top.join("new"), top.join("lists/folder/without")).unwrap();
        }),
        change("a folder of names moves", |top| {
            fs::rename(top.join("linked"), top.join("moved")).unwrap();
        }),
        change("a hole is filled, a file cut", |top| {
            fs::write(top.join("plain/hole"), vec![7; 600_000]).unwrap();
            let file = File::options().write(true).open(top.join("plain/sparse"));
            file.unwrap().set_len(5 << 20).unwrap();
        }),
        change("a pipe becomes a file", |top| {
            fs::remove_file(top.join("pipe")).unwrap();
            fs::write(top.join("pipe"), "no pipe").unwrap();
            special(&top.join("plain/pipe"), FileType::Fifo, 0);
        }),
        change("everything of it goes", |top| {
            fs::remove_dir_all(top.join("moved")).unwrap();
            fs::remove_dir_all(top.join("lists")).unwrap();
        }),
    ]
}

fn carry_everything(folders: impl Fn(&mut Cluster, &str) -> Option<PathBuf>) {
    if !is_root() {
        eprintln!("SKIPPED: fidelity needs root");
        return;
    }
    let mut cluster = Cluster::start();
    let Some(source) = folders(&mut cluster, "source") else {
        return;
    };
    let Some(target) = folders(&mut cluster, "target") else {
        return;
    };
    make_everything(&source);
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let more = "specials = [\"fifo\", \"socket\", \"device\"]";
    let job = job_file("site", ("origin", &source), &[("edge", &target)], more);
    cluster.apply(&job, &["--adopt"]).expect(0);
    let check = |cluster: &Cluster, what: &str| {
        eprintln!("{what}");
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    };
    check(&cluster, "first copy");
    for (what, change) in changes() {
        change(&source);
        check(&cluster, what);
    }
    for name in ["one", "two", "three"] {
        fs::write(source.join(name), name).unwrap();
    }
    check(&cluster, "some more files");
    // So that nobody looks before the names by which they are changed are gone.
    cluster.freeze("origin", true);
    change_unseen(&source);
    cluster.freeze("origin", false);
    check(&cluster, "changed by names that were gone again");
    cluster.stop("origin");
    fs::write(source.join("while"), "stopped").unwrap();
    fs::hard_link(source.join("while"), source.join("while too")).unwrap();
    set(&source.join("while"), "user.while", b"stopped");
    cluster.up("origin");
    check(&cluster, "changed while the source was stopped");
    cluster.kill("edge");
    fs::write(source.join("while too"), "the target was dead").unwrap();
    fs::remove_file(source.join("while")).unwrap();
    cluster.up("edge");
    check(&cluster, "changed while the target was dead");
}

/// Changes files by further names, which are made and removed again.
fn change_unseen(top: &Path) {
    let fleeting = top.join("fleeting");
    let link = |name: &str| fs::hard_link(top.join(name), &fleeting).unwrap();
    link("one");
    mode(&fleeting, 0o640);
    fs::remove_file(&fleeting).unwrap();
    link("two");
    let mut file = File::options().append(true).open(&fleeting).unwrap();
    file.write_all(b", longer").unwrap();
    fs::rename(top.join("three"), top.join("3")).unwrap();
    fs::rename(top.join("3"), &fleeting).unwrap();
    file.write_all(b" and longer").unwrap();
    drop(file);
    fs::rename(&fleeting, top.join("three")).unwrap();
    // Only what was hinted tells of this one.
    link("three");
    let times = fs::metadata(&fleeting).unwrap();
    let times = FileTimes::new().set_modified(times.modified().unwrap());
    let mut file = File::options().write(true).open(&fleeting).unwrap();
    fs::remove_file(&fleeting).unwrap();
    file.write_all(b"THREE").unwrap();
    file.set_times(times).unwrap();
}

/// A folder on a filesystem of its own; `None` where that kind cannot be made, which is told.
fn image(cluster: &mut Cluster, name: &str, kind: &str) -> Option<PathBuf> {
    let tool = format!("mkfs.{kind}");
    if Command::new(&tool).arg("-V").output().is_err() {
        eprintln!("SKIPPED: there is no {tool} here");
        return None;
    }
    Some(cluster.space.disk(name, kind, 512))
}

/// Proves that everything about files which is to be kept is kept, on filesystems in memory.
#[test]
fn everything_is_kept_on_tmpfs() {
    carry_everything(|cluster, name| Some(cluster.space.folder(name)));
}

/// Proves the same on ext4.
#[test]
fn everything_is_kept_on_ext4() {
    carry_everything(|cluster, name| image(cluster, name, "ext4"));
}

/// Proves the same on XFS.
#[test]
fn everything_is_kept_on_xfs() {
    carry_everything(|cluster, name| image(cluster, name, "xfs"));
}

/// Proves the same on Btrfs.
#[test]
fn everything_is_kept_on_btrfs() {
    carry_everything(|cluster, name| image(cluster, name, "btrfs"));
}

/// Proves that what the job does not carry is told, and is not at the target.
#[test]
fn what_is_not_carried_is_told() {
    if !is_root() {
        eprintln!("SKIPPED: devices need root");
        return;
    }
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    special(
        &source.join("null"),
        FileType::CharacterDevice,
        makedev(1, 3),
    );
    special(&source.join("pipe"), FileType::Fifo, 0);
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    assert!(!target.join("null").exists());
    assert!(target.join("pipe").symlink_metadata().unwrap().mode() & 0o777 == 0o640);
    let told = || {
        cluster
            .cdsync(["job", "log", "site"])
            .out
            .contains("character device")
    };
    wait_until(SECONDS, "the log tells of the device", told);
}
