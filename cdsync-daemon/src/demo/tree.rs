//! Trees of the demo: where to find one, how to make, copy and compare them. The comparison uses
//! nothing of the product.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

/// The folder that belongs to CDSync; not part of what is compared.
const RESERVED: &str = ".cdsync";

/// The project's own checkout, when the command runs inside one.
pub(super) fn checkout() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let is_ours = |dir: &&Path| dir.join("cdsync-core/Cargo.toml").is_file();
    here.ancestors().find(is_ours).map(Path::to_owned)
}

/// Makes a small tree of text.
pub(super) fn make(path: &Path) -> io::Result<()> {
    for folder in 0..40_u32 {
        let dir = path.join(format!("folder-{}/part-{folder}", folder % 8));
        fs::create_dir_all(&dir)?;
        for file in 0..25_u32 {
            let line = format!("line of file {file} in folder {folder}\n");
            fs::write(
                dir.join(format!("file-{file}.txt")),
                line.repeat(1 + file as usize * 8),
            )?;
        }
        symlink("file-0.txt", dir.join("first"))?;
    }
    Ok(())
}

/// Copies folders, files and symbolic links, leaving out `without` at the top and what belongs to
/// CDSync.
pub(super) fn copy(from: &Path, to: &Path, without: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if name == RESERVED || Path::new(&name) == without {
            continue;
        }
        let (source, target) = (entry.path(), to.join(&name));
        if kind.is_dir() {
            copy(&source, &target, Path::new(""))?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

/// What a comparison found.
pub(super) struct Compared {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) differences: Vec<String>,
}

/// Compares two trees: names, kinds, content, mode, owner, times of everything, link targets.
pub(super) fn compare(a: &Path, b: &Path) -> io::Result<Compared> {
    let mut compared = Compared {
        entries: 0,
        bytes: 0,
        differences: Vec::new(),
    };
    folder(a, b, Path::new(""), &mut compared)?;
    Ok(compared)
}

fn folder(a: &Path, b: &Path, below: &Path, compared: &mut Compared) -> io::Result<()> {
    let (left, right) = (entries(&a.join(below))?, entries(&b.join(below))?);
    for name in right.keys().filter(|name| !left.contains_key(*name)) {
        compared
            .differences
            .push(format!("{:?} is only in the target", below.join(name)));
    }
    for (name, one) in &left {
        let path = below.join(name);
        let Some(other) = right.get(name) else {
            compared
                .differences
                .push(format!("{path:?} is only in the source"));
            continue;
        };
        compared.entries += 1;
        if let Some(what) = differs(&a.join(&path), one, &b.join(&path), other)? {
            compared.differences.push(format!("{path:?}: {what}"));
        }
        if one.is_file() {
            compared.bytes += one.len();
        }
        if one.is_dir() && other.is_dir() {
            folder(a, b, &path, compared)?;
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> io::Result<BTreeMap<OsString, fs::Metadata>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() != RESERVED {
            all.insert(entry.file_name(), entry.path().symlink_metadata()?);
        }
    }
    Ok(all)
}

fn differs(
    a: &Path,
    one: &fs::Metadata,
    b: &Path,
    other: &fs::Metadata,
) -> io::Result<Option<&'static str>> {
    let owners = |m: &fs::Metadata| (m.uid(), m.gid());
    let times = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    Ok(if one.file_type() != other.file_type() {
        Some("another kind")
    } else if one.mode() != other.mode() {
        Some("another mode")
    } else if owners(one) != owners(other) {
        Some("another owner")
    } else if times(one) != times(other) {
        Some("another modification time")
    } else if one.is_file() && (one.len() != other.len() || !same_bytes(a, b)?) {
        Some("other content")
    } else if one.is_symlink() && fs::read_link(a)? != fs::read_link(b)? {
        Some("another link target")
    } else {
        None
    })
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = a.read(&mut left)?;
        if read == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        match b.read_exact(&mut right[..read]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left[..read] != right[..read] {
            return Ok(false);
        }
    }
}
