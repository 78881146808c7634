//! An open folder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use cdsync_core::ledger::object::Identity;
use cdsync_core::path::{Name, RelPath};
use rustix::io::Errno;

use super::beneath::{Beneath, Mounts, Way};
use super::look;
use crate::error::FsError;

/// An open folder below a root. What is done by its methods happens in this folder, wherever it was
/// moved meanwhile; [`super::Root::dir`] opens it anew by its path.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    way: Way,
    device: u64,
    identity: Identity,
    path: RelPath,
    /// Whether names may be one in it that are not the same bytes, once that was asked.
    folding: OnceLock<bool>,
}

impl Dir {
    pub(super) fn from_fd(
        fd: OwnedFd,
        way: Way,
        device: u64,
        path: RelPath,
    ) -> Result<Self, Errno> {
        let identity = look::identity_fd(fd.as_fd())?;
        Ok(Self {
            fd,
            way,
            device,
            identity,
            path,
            folding: OnceLock::new(),
        })
    }

    /// Where it was when it was opened, relative to the root. For messages.
    #[must_use]
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// Which folder it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// From where paths below it are resolved.
    pub(super) fn beneath(&self) -> Beneath<'_> {
        Beneath {
            base: self.as_fd(),
            way: self.way,
            mounts: Mounts::Refuse,
        }
    }

    /// Opens a folder below it by handle; `path` is where that is from the root.
    pub(super) fn open_at(&self, below: &[u8], path: RelPath) -> Result<Self, Errno> {
        let fd = self.beneath().open_folder(below)?;
        Self::from_fd(fd, self.way, self.device, path)
    }

    pub(super) fn folding(&self) -> &OnceLock<bool> {
        &self.folding
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }

    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    /// Opens the folder at a name, without following a link or entering a mount.
    ///
    /// # Errors
    /// What the system said; [`crate::FsErrorKind::Link`], [`crate::FsErrorKind::NotFolder`] and
    /// [`crate::FsErrorKind::OtherFilesystem`] when it is no folder of this filesystem.
    pub fn open_folder(&self, name: &Name) -> Result<Self, FsError> {
        let path = self.path.join(name);
        self.open_at(name.as_bytes(), path)
            .map_err(|errno| FsError::at("open", &self.path, name, errno))
    }

    /// Opens the folder at a path below this one; the empty path is this one again.
    ///
    /// # Errors
    /// As [`Dir::open_folder`].
    pub fn open_below(&self, below: &RelPath) -> Result<Self, FsError> {
        let mut path = self.path.clone();
        if path.is_root() {
            path = below.clone();
        } else if !below.is_root() {
            let mut bytes = path.as_bytes().to_vec();
            bytes.push(b'/');
            bytes.extend_from_slice(below.as_bytes());
            path = RelPath::new(bytes)
                .map_err(|_| FsError::new("open", self.path.as_bytes(), Errno::NAMETOOLONG))?;
        }
        let shown = path.as_bytes().to_vec();
        self.open_at(below.as_bytes(), path)
            .map_err(|errno| FsError::new("open", shown, errno))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
