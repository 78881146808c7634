//! Owner, mode and time of an object, set by its handle.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cdsync_core::ledger::loss::{Loss, Losses};
use cdsync_core::ledger::object::{Identity, Kind, Metadata, Observed};
use cdsync_core::ledger::xattrs::CAPABILITY;
use cdsync_core::path::Name;
use cdsync_core::time::Timestamp;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::{Dir, LookWants, observe_fd, xattr};
use crate::error::{FsError, FsErrorKind};
use crate::sys;

const SET_ID: u32 = 0o6000;

/// What setting metadata came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Applied {
    /// What could not be given to the object, because this process may not or the filesystem does
    /// not hold it. It keeps the owner that it has; set-id bits and capabilities are withheld then,
    /// as they would speak for another owner.
    pub losses: Losses,
}

impl Dir {
    /// Makes owner, mode, attributes and time of the object at `name` those of `meta`, and tells
    /// what it is then, by the same handle, with what could not be given to it. Touches only what
    /// differs, never follows a link, and leaves a link's mode alone (Linux has none).
    ///
    /// # Errors
    /// [`FsErrorKind::Changed`] when the object is not of `kind`, [`FsErrorKind::Moved`] when it is
    /// not `identity`; else what the system said. A refused change of owner is no error: it is told
    /// in [`Observed::losses`], and so is what this filesystem does not hold.
    pub fn set_metadata(
        &self,
        name: &Name,
        identity: Option<Identity>,
        meta: &Metadata,
        kind: Kind,
    ) -> Result<Observed, FsError> {
        let (fd, found) = self.hold(name, "set metadata of")?;
        if let Some(identity) = identity {
            super::look::check_identity(self, name, found.fingerprint.identity, identity)?;
        }
        if found.kind != kind {
            let path = self.path().join(name);
            return Err(FsError::of_kind(
                FsErrorKind::Changed,
                "set metadata of",
                path,
            ));
        }
        self.set_held(name, fd.as_fd(), &found, meta)
    }

    /// Opens whatever is at a name, to be looked at and changed by its handle.
    pub(super) fn hold(
        &self,
        name: &Name,
        what: &'static str,
    ) -> Result<(OwnedFd, Observed), FsError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.beneath()
            .open(name.as_bytes(), flags)
            .and_then(|fd| {
                let found = observe_fd(fd.as_fd(), LookWants::META)?;
                Ok((fd, found))
            })
            .map_err(|errno| FsError::at(what, self.path(), name, errno))
    }

    /// Sets what differs on what is held, and looks at it again.
    pub(super) fn set_held(
        &self,
        name: &Name,
        fd: BorrowedFd<'_>,
        found: &Observed,
        meta: &Metadata,
    ) -> Result<Observed, FsError> {
        set(fd, Some((self, name)), found, meta)
            .and_then(|applied| {
                let mut seen = observe_fd(fd, LookWants::HANDLE)?;
                seen.losses = applied.losses;
                Ok(seen)
            })
            .map_err(|errno| FsError::at("set metadata of", self.path(), name, errno))
    }

    /// As [`Dir::set_metadata`], for this folder itself.
    ///
    /// # Errors
    /// What the system said.
    pub fn set_own_metadata(&self, meta: &Metadata) -> Result<Applied, FsError> {
        observe_fd(self.as_fd(), LookWants::META)
            .and_then(|found| set(self.as_fd(), None, &found, meta))
            .map_err(|errno| FsError::new("set metadata of", self.path().as_bytes(), errno))
    }
}

/// Sets what differs on an open file that was just made, without attributes, and tells which it is.
pub(crate) fn apply_to_fd(
    fd: BorrowedFd<'_>,
    meta: &Metadata,
) -> Result<(Identity, Applied), Errno> {
    let found = observe_fd(fd, LookWants::default())?;
    let applied = set(fd, None, &found, meta)?;
    Ok((found.fingerprint.identity, applied))
}

/// As [`apply_to_fd`], for a file that was just made and written: its time is set without a look,
/// and mostly nothing else is to be. It has no attributes, as the folder that it was made in gives
/// none. Tells what the file is then, and what it could not be given.
pub(crate) fn apply_to_new(fd: BorrowedFd<'_>, meta: &Metadata) -> Result<Observed, Errno> {
    set_time(fd, None, meta.mtime)?;
    let found = observe_fd(fd, LookWants::default())?;
    if found.meta == *meta {
        return Ok(found);
    }
    let applied = set(fd, None, &found, meta)?;
    let mut now = observe_fd(fd, LookWants::default())?;
    now.losses = applied.losses;
    Ok(now)
}

/// Owner first: changing it clears set-id bits and capabilities; then the attributes, while the
/// mode may still let them be written, and the mode, which an access list agrees with; time last.
fn set(
    fd: BorrowedFd<'_>,
    by_name: Option<(&Dir, &Name)>,
    found: &Observed,
    meta: &Metadata,
) -> Result<Applied, Errno> {
    let mut applied = Applied::default();
    let owner_changed = set_owner(fd, &found.meta, meta, &mut applied.losses)?;
    let dressed = set_xattrs(fd, by_name, found, meta, owner_changed, &mut applied.losses)?;
    let mut mode = meta.mode & 0o7777;
    if applied.losses.has(Loss::Owner) {
        mode &= !SET_ID;
    }
    let cleared = owner_changed && mode & SET_ID != 0;
    let mode_differs = mode != found.meta.mode || dressed || cleared;
    if found.kind != Kind::Symlink && mode_differs {
        set_mode(fd, by_name, found, mode, &mut applied.losses)?;
    }
    if !applied.losses.is_empty() && is_locked_fd(fd)? {
        return Err(Errno::PERM);
    }
    if meta.mtime != found.meta.mtime {
        let by_name = by_name.map(|(dir, name)| (dir, name, found));
        set_time(fd, by_name, meta.mtime)?;
    }
    Ok(applied)
}

/// Whether it is refused to everybody to change it.
fn is_locked_fd(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let flags = StatxFlags::BASIC_STATS;
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, flags)?;
    Ok(super::look::is_locked(&stat))
}

/// Returns whether anything was set, after which the mode may be another one.
fn set_xattrs(
    fd: BorrowedFd<'_>,
    by_name: Option<(&Dir, &Name)>,
    found: &Observed,
    meta: &Metadata,
    owner_changed: bool,
    losses: &mut Losses,
) -> Result<bool, Errno> {
    let wanted = if losses.has(Loss::Owner) && meta.xattrs.value(CAPABILITY).is_some() {
        losses.add(Loss::Capability);
        &meta.xattrs.without(CAPABILITY)
    } else {
        &meta.xattrs
    };
    // The kernel takes capabilities from what gets another owner.
    let left = if owner_changed && found.meta.xattrs.value(CAPABILITY).is_some() {
        &found.meta.xattrs.without(CAPABILITY)
    } else {
        &found.meta.xattrs
    };
    if left == wanted {
        return Ok(false);
    }
    if found.kind != Kind::Symlink && found.meta.mode & 0o200 == 0 {
        // Who is not privileged may write no attribute of what he may not write.
        let writable = found.meta.mode | 0o200;
        set_mode(fd, by_name, found, writable, &mut Losses::default())?;
    }
    losses.merge(xattr::set(fd, left, wanted)?);
    Ok(true)
}

/// Returns whether owner or group changed.
fn set_owner(
    fd: BorrowedFd<'_>,
    found: &Metadata,
    meta: &Metadata,
    losses: &mut Losses,
) -> Result<bool, Errno> {
    let uid = (meta.uid != found.uid).then(|| Uid::from_raw(meta.uid));
    let gid = (meta.gid != found.gid).then(|| Gid::from_raw(meta.gid));
    if uid.is_none() && gid.is_none() {
        return Ok(false);
    }
    let chown = |uid, gid| rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH);
    match chown(uid, gid) {
        Ok(()) => Ok(true),
        // EINVAL: a user namespace or filesystem that does not know this number.
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => {
            losses.add(Loss::Owner);
            // A member of the group may still give it, though not the owner.
            Ok(uid.is_some() && gid.is_some() && chown(None, gid).is_ok())
        }
        Err(errno) => Err(errno),
    }
}

fn set_mode(
    fd: BorrowedFd<'_>,
    by_name: Option<(&Dir, &Name)>,
    found: &Observed,
    mode: u32,
    losses: &mut Losses,
) -> Result<(), Errno> {
    match change_mode(fd, by_name, found, mode) {
        // A filesystem that holds no such bits, as those of another system.
        Err(Errno::PERM) if rustix::process::geteuid().is_root() => {
            losses.add(Loss::Mode);
            Ok(())
        }
        other => other,
    }
}

fn change_mode(
    fd: BorrowedFd<'_>,
    by_name: Option<(&Dir, &Name)>,
    found: &Observed,
    mode: u32,
) -> Result<(), Errno> {
    let Some((dir, name)) = by_name else {
        return rustix::fs::fchmod(fd, Mode::from_raw_mode(mode));
    };
    match sys::chmod_handle(fd, mode) {
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {}
        other => return other,
    }
    // Kernels before 6.6.
    let again = open_again(dir, name, found)?;
    rustix::fs::fchmod(&again, Mode::from_raw_mode(mode))
}

/// For kernels that change nothing by a handle of [`Dir::hold`]: the object itself, opened again
/// and compared. What is no file and no folder must not be opened (a device may act on it), and
/// stays as it is.
fn open_again(dir: &Dir, name: &Name, found: &Observed) -> Result<OwnedFd, Errno> {
    if !matches!(found.kind, Kind::File | Kind::Folder) {
        return Err(Errno::OPNOTSUPP);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let again = dir.beneath().open(name.as_bytes(), flags)?;
    let same = observe_fd(again.as_fd(), LookWants::default())?;
    if same.fingerprint.identity != found.fingerprint.identity {
        return Err(Errno::STALE);
    }
    Ok(again)
}

fn set_time(
    fd: BorrowedFd<'_>,
    by_name: Option<(&Dir, &Name, &Observed)>,
    mtime: Timestamp,
) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.secs,
            tv_nsec: i64::from(mtime.nanos),
        },
    };
    let Some((dir, name, found)) = by_name else {
        return rustix::fs::futimens(fd, &times);
    };
    match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
        // Kernels before 5.8 know no empty path here.
        Err(Errno::INVAL | Errno::NOENT) => {
            rustix::fs::futimens(open_again(dir, name, found)?, &times)
        }
        other => other,
    }
}
