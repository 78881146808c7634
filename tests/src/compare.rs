//! An independent comparison of two trees.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};

use crate::fidelity;

/// At most so many differences are told.
const TOLD_MAX: usize = 40;

/// What is compared of one entry, beside content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    size: u64,
    link: Option<Vec<u8>>,
    /// Of devices.
    device: u64,
    /// The first of the names that one file has in the tree; `None` for a file with one name.
    group: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// On the disk, of sparse files only; 0 for others.
    allocated: u64,
}

/// Room that another filesystem may take more for the same holes.
const HOLE_SLACK_BYTES: u64 = 256 * 1024;

/// How two trees differ: one line for each difference, names escaped. `.cdsync` is left out at
/// every depth, and the two top folders themselves are not compared.
///
/// # Panics
/// When a tree cannot be read.
#[must_use]
pub fn differences(left: &Path, right: &Path) -> Vec<String> {
    let (a, b) = (read(left), read(right));
    let mut told = Vec::new();
    for (path, one) in &a {
        match b.get(path) {
            None => told.push(format!("{}: only left", shown(path))),
            Some(other) => compare(left, right, path, one, other, &mut told),
        }
    }
    for path in b.keys().filter(|path| !a.contains_key(*path)) {
        told.push(format!("{}: only right", shown(path)));
    }
    told
}

/// Two trees are equal.
///
/// # Panics
/// When they are not, with the differences.
#[track_caller]
pub fn assert_equal(left: &Path, right: &Path) {
    let found = differences(left, right);
    assert!(
        found.is_empty(),
        "{} and {} differ in {} places:\n{}",
        left.display(),
        right.display(),
        found.len(),
        found[..found.len().min(TOLD_MAX)].join("\n")
    );
}

fn compare(left: &Path, right: &Path, path: &[u8], a: &Entry, b: &Entry, told: &mut Vec<String>) {
    let b = &without_holes(a, b);
    if a != b {
        told.push(format!("{}: {a:?} | {b:?}", shown(path)));
    } else if a.kind == "file" {
        let name = Path::new(std::ffi::OsStr::from_bytes(path));
        let content = |top: &Path| fs::read(top.join(name)).unwrap_or_default();
        if content(left) != content(right) {
            told.push(format!("{}: content", shown(path)));
        }
    }
}

/// The other entry, with the same holes as the first one if it has about as many.
fn without_holes(a: &Entry, b: &Entry) -> Entry {
    let mut b = b.clone();
    if a.allocated == 0 || b.allocated <= a.allocated + HOLE_SLACK_BYTES {
        b.allocated = a.allocated;
    }
    b
}

fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

fn read(top: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut found: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let path = top.join(std::ffi::OsStr::from_bytes(&folder));
        let listed = fs::read_dir(&path);
        // What vanishes while the tree is read is not there.
        let listed = match listed {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_empty() => continue,
            other => other.unwrap_or_else(|e| panic!("cannot list {}: {e}", path.display())),
        };
        for entry in listed.map_while(Result::ok) {
            let name = entry.file_name().into_vec();
            if name == b".cdsync" {
                continue;
            }
            let mut below = folder.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(name);
            let Ok(meta) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            if meta.is_dir() {
                folders.push(below.clone());
            }
            let described = describe(&entry.path(), &meta);
            if fidelity::HARD_LINKS && !meta.is_dir() && meta.nlink() > 1 {
                inodes.entry(meta.ino()).or_default().push(below.clone());
            }
            found.insert(below, described);
        }
    }
    // Names elsewhere do not count: what was removed may be one more name in the trash.
    for names in inodes.into_values().filter(|names| names.len() > 1) {
        let first = names.iter().min().cloned();
        for name in names {
            if let Some(entry) = found.get_mut(&name) {
                entry.group.clone_from(&first);
            }
        }
    }
    found
}

/// The extended attributes that count.
fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let counts = |name: &[u8]| match name {
        name if name.starts_with(b"system.posix_acl_") => fidelity::ACLS,
        b"security.capability" => fidelity::XATTRS,
        name => {
            fidelity::XATTRS
                && [&b"user."[..], b"trusted."]
                    .iter()
                    .any(|of| name.starts_with(of))
        }
    };
    let mut names = [0_u8; 1 << 16];
    let length = llistxattr(path, &mut names).unwrap_or(0);
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| counts(name))
        .map(|name| {
            let mut value = [0_u8; 1 << 16];
            let length = lgetxattr(path, name, &mut value).unwrap_or(0);
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

fn describe(path: &Path, meta: &Metadata) -> Entry {
    let kind = match meta.file_type() {
        t if t.is_file() => "file",
        t if t.is_dir() => "folder",
        t if t.is_symlink() => "symlink",
        t if t.is_fifo() => "fifo",
        t if t.is_socket() => "socket",
        _ => "device",
    };
    let link = meta.is_symlink().then(|| {
        let target = fs::read_link(path).unwrap_or_default();
        target.into_os_string().into_vec()
    });
    Entry {
        kind,
        // A symlink has no mode of its own.
        mode: if meta.is_symlink() {
            0
        } else {
            meta.mode() & 0o7777
        },
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: if meta.is_file() { meta.len() } else { 0 },
        link,
        device: if matches!(kind, "device") {
            meta.rdev()
        } else {
            0
        },
        group: None,
        xattrs: match fidelity::XATTRS || fidelity::ACLS {
            true => xattrs(path),
            false => BTreeMap::new(),
        },
        allocated: match meta.blocks() * 512 {
            on_disk if fidelity::HOLES && meta.is_file() && on_disk < meta.len() / 2 => on_disk,
            _ => 0,
        },
    }
}
