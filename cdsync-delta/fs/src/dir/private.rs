//! Folders that nobody else may enter.

use std::os::fd::AsFd;

use cdsync_core::ledger::object::Metadata;
use cdsync_core::path::Name;
use rustix::io::Errno;

use super::{Dir, LookWants, apply_to_fd, observe_fd};
use crate::error::{FsError, FsErrorKind};

/// Named users that a folder hands on to what is made in it.
const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";

impl Dir {
    /// Opens a folder that belongs to this process's user alone (mode 0700), making it if needed.
    /// One that somebody made, opened up or gave away before is taken back, by its handle.
    ///
    /// # Errors
    /// [`FsErrorKind::Link`] and [`FsErrorKind::NotFolder`] when something else is in its place;
    /// [`FsErrorKind::NotPrivate`] when it is another user's and this process may not take it back;
    /// else what the system said.
    pub(crate) fn private_folder(&self, name: &Name) -> Result<Self, FsError> {
        match self.make_folder(name, 0o700) {
            Err(error) if error.kind() != FsErrorKind::Exists => return Err(error),
            _ => {}
        }
        let folder = self.open_folder(name)?;
        match folder.is_private() {
            Ok(true) => return Ok(folder),
            Ok(false) => {}
            Err(errno) => return Err(FsError::at("look at", self.path(), name, errno)),
        }
        match folder.take_back() {
            Ok(true) => Ok(folder),
            Ok(false) | Err(Errno::PERM | Errno::ACCESS) => {
                let path = self.path().join(name);
                Err(FsError::of_kind(FsErrorKind::NotPrivate, "use", path))
            }
            Err(errno) => Err(FsError::at("take back", self.path(), name, errno)),
        }
    }

    fn is_private(&self) -> Result<bool, Errno> {
        let found = observe_fd(self.as_fd(), LookWants::default())?.meta;
        let own = rustix::process::geteuid().as_raw();
        Ok(found.uid == own && found.mode & 0o077 == 0 && !self.hands_on()?)
    }

    /// Whether what is made here would be opened up to others at once.
    fn hands_on(&self) -> Result<bool, Errno> {
        match rustix::fs::fgetxattr(self, DEFAULT_ACL, &mut [0_u8; 0]) {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// The owner goes first: who owned it could open it again.
    fn take_back(&self) -> Result<bool, Errno> {
        let found = observe_fd(self.as_fd(), LookWants::default())?.meta;
        let own = Metadata {
            uid: rustix::process::geteuid().as_raw(),
            mode: 0o700,
            ..found
        };
        let (_, applied) = apply_to_fd(self.as_fd(), &own)?;
        match rustix::fs::fremovexattr(self, DEFAULT_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        Ok(!applied.owner_kept && self.is_private()?)
    }
}
