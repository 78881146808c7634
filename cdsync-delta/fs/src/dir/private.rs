//! Folders that nobody else may enter.

use std::os::fd::AsFd;

use cdsync_core::ledger::loss::Losses;
use cdsync_core::ledger::object::Metadata;
use cdsync_core::ledger::xattrs::{ACL_ACCESS, ACL_DEFAULT};
use cdsync_core::path::Name;
use rustix::io::Errno;

use super::{Dir, LookWants, observe_fd};
use crate::error::{FsError, FsErrorKind};

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
            Err(error) if error.kind() != FsErrorKind::Permission => Err(error),
            Ok(false) | Err(_) => {
                let path = self.path().join(name);
                Err(FsError::of_kind(FsErrorKind::NotPrivate, "use", path))
            }
        }
    }

    /// What is made in a folder with a default list would be opened up to others at once.
    fn is_private(&self) -> Result<bool, Errno> {
        let found = observe_fd(self.as_fd(), LookWants::META)?.meta;
        let own = rustix::process::geteuid().as_raw();
        let lists = [ACL_ACCESS, ACL_DEFAULT].map(|list| found.xattrs.value(list).is_some());
        Ok(found.uid == own && found.mode & 0o077 == 0 && !lists.contains(&true))
    }

    /// The owner goes first: who owned it could open it again.
    fn take_back(&self) -> Result<bool, FsError> {
        let fail = |errno| FsError::new("take back", self.path().as_bytes(), errno);
        let found = observe_fd(self.as_fd(), LookWants::META)
            .map_err(fail)?
            .meta;
        let own = Metadata {
            uid: rustix::process::geteuid().as_raw(),
            mode: 0o700,
            xattrs: found.xattrs.without(ACL_ACCESS).without(ACL_DEFAULT),
            ..found
        };
        let applied = self.set_own_metadata(&own)?;
        Ok(applied.losses == Losses::NONE && self.is_private().map_err(fail)?)
    }
}
