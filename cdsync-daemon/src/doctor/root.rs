//! A root: what its filesystem holds, and whether its changes are noticed.

use std::fs;
use std::path::Path;

use cdsync_core::path::{Escaped, Name, RESERVED_NAME, RelPath};
use cdsync_fs::{Backend, Dir, FsError, FsErrorKind, Gap, Hint, HintSink, Root, WatchHub};
use rustix::fs::{XattrFlags, fsetxattr, statvfs};
use rustix::process::geteuid;

use super::Findings;
use crate::failure::chain;
use crate::text::bytes;

/// An access list with one entry beside the owner's, the group's and the others': version 2, then
/// tag, permissions and id of each.
const ACL: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 255, 255, 255, 255, //
    2, 0, 4, 0, 1, 0, 0, 0, //
    4, 0, 4, 0, 255, 255, 255, 255, //
    16, 0, 4, 0, 255, 255, 255, 255, //
    32, 0, 4, 0, 255, 255, 255, 255, //
];

/// Of a filesystem, in percent: less is said.
const FREE_PERCENT: u64 = 10;

struct Nobody;

impl HintSink for Nobody {
    fn hints(&mut self, _batch: &[Hint]) {}
    fn gap(&mut self, _why: Gap) {}
}

pub(super) fn check(findings: &mut Findings, path: &Path) {
    findings.about(Escaped(path.as_os_str().as_encoded_bytes()).to_string());
    let root = match Root::open(path, &RelPath::root()) {
        Ok(root) => root,
        Err(error) => {
            let next =
                "make the folder, or mount its filesystem; or leave it out of the agent's --root";
            return findings.fail("root", chain(&error), next);
        }
    };
    findings.ok("root", "can be opened");
    space(findings, path);
    mounts(findings, path);
    match reserved(&root.top()) {
        Ok(folder) => {
            private(findings, path);
            abilities(findings, &root.top(), &folder);
        }
        Err(error) if is_unwritable(&error) => findings.warn(
            "reserved folder",
            "nothing can be written here: it can be a source, and no target",
            "nothing, for a source; else mount it writable and give the agent leave",
        ),
        Err(error) => {
            let next = "remove what is at that name, if it is not a folder";
            findings.fail("reserved folder", chain(&error), next);
        }
    }
    watching(findings, &root);
}

fn is_unwritable(error: &FsError) -> bool {
    matches!(
        error.kind(),
        FsErrorKind::ReadOnly | FsErrorKind::Permission
    )
}

fn reserved(top: &Dir) -> Result<Dir, FsError> {
    let name = name(RESERVED_NAME);
    match top.make_folder(&name, 0o700) {
        Err(error) if error.kind() != FsErrorKind::Exists => Err(error),
        _ => top.open_folder(&name),
    }
}

/// A name of this program's own making.
fn name(text: impl AsRef<[u8]>) -> Name {
    Name::new(text.as_ref()).expect("plain names are short and without slashes")
}

fn private(findings: &mut Findings, path: &Path) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let path = path.join(".cdsync");
    match fs::symlink_metadata(&path) {
        Ok(found)
            if found.permissions().mode() & 0o077 == 0 && found.uid() == geteuid().as_raw() =>
        {
            findings.ok("reserved folder", "private");
        }
        Ok(_) => findings.warn(
            "reserved folder",
            ".cdsync can be used by others",
            "nothing: the agent corrects it when it starts",
        ),
        Err(error) => {
            let next = "see the root's permissions";
            findings.fail("reserved folder", error.to_string(), next);
        }
    }
}

/// What is kept of a file, tried on one.
fn abilities(findings: &mut Findings, top: &Dir, folder: &Dir) {
    match try_abilities(findings, top, folder) {
        Ok(()) => {}
        Err(error) => {
            let next = "see the root's permissions and free space";
            findings.fail("publishing", chain(&error), next);
        }
    }
}

fn try_abilities(findings: &mut Findings, top: &Dir, folder: &Dir) -> Result<(), FsError> {
    let unique = std::process::id();
    let probe = |what: &str| name(format!(".doctor-{what}-{unique}"));
    let (one, other) = (probe("a"), probe("b"));
    let file = folder.create_exclusive(&one, 0o600)?;
    let listed = fsetxattr(&file, "user.cdsync.doctor", b"1", XattrFlags::empty());
    let acl = fsetxattr(&file, "system.posix_acl_access", &ACL, XattrFlags::empty());
    let next = "nothing, if no file has any: what cannot be held is reported file by file";
    for (check, tried) in [("attributes", listed), ("access lists", acl)] {
        match tried {
            Ok(()) => findings.ok(check, "kept"),
            Err(error) => findings.warn(check, format!("not kept: {error}"), next),
        }
    }
    let done = publish(top, folder, &one, &other);
    // Whatever was reached: none of it stays.
    for (dir, name) in [(folder, &one), (folder, &other), (top, &one), (top, &other)] {
        match dir.unlink(name) {
            Err(error) if error.kind() != FsErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match done {
        Ok(()) => findings.ok("publishing", "by rename and exchange"),
        Err(error) => {
            let next = "no target can be here: use a root that is one filesystem, on a local disk";
            findings.fail("publishing", chain(&error), next);
        }
    }
    cases(findings, folder)
}

/// As a target publishes: a rename out of the reserved folder, and an exchange over what is there.
fn publish(top: &Dir, folder: &Dir, one: &Name, other: &Name) -> Result<(), FsError> {
    folder.rename_new(one, top, one)?;
    drop(folder.create_exclusive(other, 0o600)?);
    folder.exchange(other, top, one)
}

fn cases(findings: &mut Findings, folder: &Dir) -> Result<(), FsError> {
    let unique = std::process::id();
    let (lower, upper) = (
        name(format!(".doctor-case-{unique}")),
        name(format!(".DOCTOR-CASE-{unique}")),
    );
    drop(folder.create_exclusive(&lower, 0o600)?);
    let same = folder.look(&upper, cdsync_fs::LookWants::default())?;
    folder.unlink(&lower)?;
    if same.is_some() {
        findings.warn(
            "names",
            "names that differ by case alone are one file here",
            "nothing, if the source has none: the others are reported",
        );
    } else {
        findings.ok("names", "told apart by every byte");
    }
    Ok(())
}

fn space(findings: &mut Findings, path: &Path) {
    const NEXT: &str = "make room, or shorten the trash of its jobs";
    let found = match statvfs(path) {
        Ok(found) => found,
        Err(error) => return findings.fail("space", error.to_string(), NEXT),
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let scarce = |free: u64, all: u64| all > 0 && free < all / 100 * FREE_PERCENT;
    if scarce(found.f_bavail, found.f_blocks) {
        findings.warn("space", format!("{} left", bytes(free)), NEXT);
    } else {
        findings.ok("space", format!("{} left", bytes(free)));
    }
    if scarce(found.f_favail, found.f_files) {
        let found = format!("{} of {} left", found.f_favail, found.f_files);
        findings.warn("inodes", found, NEXT);
    }
}

/// Filesystems mounted below a root are not entered.
fn mounts(findings: &mut Findings, path: &Path) {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    let Ok(path) = path.canonicalize() else {
        return;
    };
    let below = text.lines().filter_map(|line| {
        let point = line.split(' ').nth(4)?;
        let point = Path::new(point);
        (point != path && point.starts_with(&path)).then(|| point.display().to_string())
    });
    let below: Vec<String> = below.take(5).collect();
    if !below.is_empty() {
        findings.warn(
            "mounts",
            format!("other filesystems are mounted below: {}", below.join(", ")),
            "give each a job of its own, with that folder as its root: they are not entered",
        );
    }
}

fn watching(findings: &mut Findings, root: &Root) {
    const CHECK: &str = "watching";
    match WatchHub::new().watch(root, Box::new(Nobody)) {
        Ok(watch) => match watch.backend() {
            Backend::Fanotify => findings.ok(CHECK, "by fanotify, for the whole filesystem"),
            Backend::Polling => findings.warn(
                CHECK,
                "no events come here: the tree is compared every few seconds",
                "nothing, for small trees; else use a filesystem that gives events",
            ),
            Backend::Notify(by) => findings.warn(
                CHECK,
                format!("by {by}, folder by folder"),
                "nothing, for few folders; else run as root on a filesystem with file handles",
            ),
        },
        Err(error) => {
            let next = "no realtime source can be here; a manual job and a target can";
            findings.fail(CHECK, chain(&error), next);
        }
    }
}
