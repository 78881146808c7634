//! The file of a store: it has its name once it is whole, so that a crash leaves none or a whole one.
#![expect(
    clippy::disallowed_methods,
    reason = "the agent's own data, which nobody else may write to"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A new file that has another name yet.
#[derive(Debug)]
pub(super) struct Made {
    staged: PathBuf,
    path: PathBuf,
}

pub(super) fn is_there(path: &Path) -> io::Result<bool> {
    fs::exists(path)
}

/// Opens the file, which is there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Opens the file, or makes it for its owner alone: redb would make it readable for everybody.
pub(super) fn open_or_make(path: &Path) -> io::Result<(File, Option<Made>)> {
    match open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return Ok((opened?, None)),
    }
    let made = Made {
        staged: path.with_extension("new"),
        path: path.to_owned(),
    };
    match fs::remove_file(&made.staged) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&made.staged)?;
    Ok((file, Some(made)))
}

impl Made {
    /// Gives the file its name, durably; everything in it must be durable.
    pub(super) fn name(self) -> io::Result<()> {
        fs::rename(&self.staged, &self.path)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}
