//! Taking over what stands at a name already: only if that name is all there is of it.
//!
//! What others put at a name may be a second name of a file outside of the root. Its owner and mode
//! are nobody's to set from here, now or later, so such an object is not taken over.

use std::os::fd::{AsFd, BorrowedFd};

use cdsync_core::ledger::object::{Kind, Metadata, Observed};
use cdsync_core::path::Name;
use rustix::io::Errno;

use super::{Dir, LookWants, observe_fd};
use crate::error::{FsError, FsErrorKind};

impl Dir {
    /// Takes over the object at `name` if `wanted` says that it is the one, giving it `meta`. `None`
    /// when it is not, when nothing is there, and when the object has other names.
    ///
    /// # Errors
    /// As [`Dir::set_metadata`].
    pub fn adopt(
        &self,
        name: &Name,
        meta: &Metadata,
        wanted: impl Fn(&Observed) -> bool,
    ) -> Result<Option<Observed>, FsError> {
        let (fd, found) = match self.hold(name, "take over") {
            Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if found.kind == Kind::Folder || !wanted(&found) {
            return Ok(None);
        }
        let sole = self
            .is_sole_name(name, fd.as_fd(), &found)
            .map_err(|errno| FsError::at("take over", self.path(), name, errno))?;
        if !sole {
            return Ok(None);
        }
        let adopted = match found.meta == *meta {
            true => found,
            false => self.set_held(name, fd.as_fd(), &found, meta)?,
        };
        Ok(Some(adopted))
    }

    /// Whether `name` is the only name of what is held. A count of one is not enough: the name may
    /// be gone since it was opened, and the one that counts be another. It is the name if that
    /// still leads there and no name came or went around that look, which the change time tells
    /// (finely since Linux 6.13; before, within one tick of its clock, it does not).
    fn is_sole_name(
        &self,
        name: &Name,
        fd: BorrowedFd<'_>,
        found: &Observed,
    ) -> Result<bool, Errno> {
        if found.link_count != 1 {
            return Ok(false);
        }
        // Else it is being changed by others.
        let Ok(Some(there)) = self.look(name, LookWants::default()) else {
            return Ok(false);
        };
        let after = observe_fd(fd, LookWants::META)?;
        Ok(there.fingerprint == found.fingerprint && after == *found)
    }
}
