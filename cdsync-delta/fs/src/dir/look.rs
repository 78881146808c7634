//! One look at a name: what it is, without following or mounting anything.

use std::os::fd::{AsFd, BorrowedFd};

use cdsync_core::ledger::loss::Losses;
use cdsync_core::ledger::object::{Fingerprint, Identity, Kind, Metadata, Observed};
use cdsync_core::ledger::xattrs::Xattrs;
use cdsync_core::path::Name;
use cdsync_core::time::Timestamp;
use rustix::fs::{AtFlags, FileType, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::{Dir, xattr};
use crate::error::{FsError, FsErrorKind};
use crate::sys;

/// What a look brings besides what one `statx` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LookWants {
    /// The kernel's handle of a folder, or of anything with several names.
    pub handle: bool,
    /// Extended attributes and access lists.
    pub xattrs: bool,
}

impl LookWants {
    /// Everything, as a source has to see it.
    pub const ALL: Self = Self {
        handle: true,
        xattrs: true,
    };
    /// What of the metadata one `statx` does not tell.
    pub(crate) const META: Self = Self {
        handle: false,
        xattrs: true,
    };
    /// The kernel's handle.
    pub const HANDLE: Self = Self {
        handle: true,
        xattrs: false,
    };
}

/// How often the attributes of something that changes are read before the last ones are taken: a
/// hint of the change is on its way.
const XATTR_READS: usize = 3;

const LOOK: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

impl Dir {
    /// What is at a name now, `None` when there is nothing.
    ///
    /// # Errors
    /// [`FsErrorKind::OtherFilesystem`] when something is mounted there; else what the system said.
    pub fn look(&self, name: &Name, wants: LookWants) -> Result<Option<Observed>, FsError> {
        match self.look_errno(name, wants) {
            Ok(observed) => Ok(Some(observed)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(FsError::at("look at", self.path(), name, errno)),
        }
    }

    /// What is at a name and how many bytes the filesystem has allocated for it; `None` when there
    /// is nothing.
    ///
    /// # Errors
    /// As [`Dir::look`].
    pub(crate) fn allocated(&self, name: &Name) -> Result<Option<(Kind, u64)>, FsError> {
        let fail = |errno| FsError::at("look at", self.path(), name, errno);
        let wanted = StatxFlags::TYPE.union(StatxFlags::BLOCKS);
        match rustix::fs::statx(self.as_fd(), name.as_bytes(), LOOK, wanted) {
            Ok(stat) => {
                self.check_mount(&stat).map_err(fail)?;
                Ok(Some((kind_of(&stat).map_err(fail)?, stat.stx_blocks * 512)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(fail(errno)),
        }
    }

    /// What this folder is itself, with its kernel handle.
    ///
    /// # Errors
    /// What the system said.
    pub fn self_look(&self) -> Result<Observed, FsError> {
        observe_fd(self.as_fd(), LookWants::ALL)
            .map_err(|errno| FsError::new("look at", self.path().as_bytes(), errno))
    }

    /// As [`Dir::look`], for callers that need a thing to be there.
    pub(crate) fn look_existing(&self, name: &Name) -> Result<Observed, FsError> {
        let found = self.look(name, LookWants::default())?;
        found.ok_or_else(|| FsError::at("look at", self.path(), name, Errno::NOENT))
    }

    /// Whether the object at a name, or this folder, is set immutable or append-only: then nobody
    /// may change it, whatever his privileges.
    pub fn is_locked(&self, name: &Name) -> bool {
        let there = rustix::fs::statx(self.as_fd(), name.as_bytes(), LOOK, WANTED);
        let here = rustix::fs::statx(self.as_fd(), c"", AtFlags::EMPTY_PATH, WANTED);
        [there, here].iter().flatten().any(is_locked)
    }

    fn look_errno(&self, name: &Name, wants: LookWants) -> Result<Observed, Errno> {
        let stat = rustix::fs::statx(self.as_fd(), name.as_bytes(), LOOK, WANTED)?;
        let kind = kind_of(&stat)?;
        self.check_mount(&stat)?;
        let handle = wants.handle && (kind == Kind::Folder || stat.stx_nlink > 1);
        let by_handle = kind == Kind::Symlink || handle;
        if !by_handle {
            let mut observed = observed_of(&stat, kind);
            if wants.xattrs {
                let at = xattr::At::Name(self.as_fd(), name);
                let again = || {
                    let stat = rustix::fs::statx(self.as_fd(), name.as_bytes(), LOOK, WANTED)?;
                    // Somebody may have laid something over the name meanwhile.
                    self.check_mount(&stat)?;
                    Ok(stat)
                };
                observe_xattrs(&mut observed, at, again)?;
            }
            return Ok(observed);
        }
        // By a handle, so that the target or the kernel handle belongs to what was looked at.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.beneath().open(name.as_bytes(), flags)?;
        let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, WANTED)?;
        self.check_mount(&stat)?;
        observe(fd.as_fd(), &stat, wants)
    }

    /// Refuses what another filesystem, or a bind mount of this one, has laid over a name.
    fn check_mount(&self, stat: &Statx) -> Result<(), Errno> {
        let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let mounted = stat
            .stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT)
            && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        if device != self.device() || mounted {
            Err(Errno::XDEV)
        } else {
            Ok(())
        }
    }
}

/// What a descriptor is open on.
pub(crate) fn observe_fd(fd: BorrowedFd<'_>, wants: LookWants) -> Result<Observed, Errno> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)?;
    observe(fd, &stat, wants)
}

fn observe(fd: BorrowedFd<'_>, stat: &Statx, wants: LookWants) -> Result<Observed, Errno> {
    let mut observed = observed_of(stat, kind_of(stat)?);
    if observed.kind == Kind::Symlink {
        let target = rustix::fs::readlinkat(fd, c"", Vec::new())?;
        observed.link = Some(target.into_bytes());
    }
    if wants.handle && (observed.kind == Kind::Folder || observed.link_count > 1) {
        observed.handle = sys::file_handle(fd)?;
    }
    if wants.xattrs {
        let again = || rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED);
        observe_xattrs(&mut observed, xattr::At::Handle(fd), again)?;
    }
    Ok(observed)
}

/// Reads the attributes of what was seen. Where there are some it is looked at again behind them:
/// they belong to the state with its change time.
fn observe_xattrs(
    observed: &mut Observed,
    at: xattr::At<'_>,
    again: impl Fn() -> Result<Statx, Errno>,
) -> Result<(), Errno> {
    for _ in 0..XATTR_READS {
        let (xattrs, left_out) = xattr::read(at)?;
        observed.meta.xattrs = xattrs;
        if left_out {
            observed.left_out =
                Some("its extended attributes are larger than 64 KiB: some are not carried");
        }
        if observed.meta.xattrs.is_empty() {
            break;
        }
        let stat = again()?;
        if timestamp(stat.stx_ctime) == observed.fingerprint.ctime
            && identity_of(&stat) == observed.fingerprint.identity
        {
            break;
        }
        if kind_of(&stat)? != observed.kind {
            return Err(Errno::AGAIN);
        }
        let (link, handle) = (observed.link.take(), observed.handle.take());
        *observed = Observed {
            link,
            handle,
            ..observed_of(&stat, observed.kind)
        };
    }
    Ok(())
}

fn observed_of(stat: &Statx, kind: Kind) -> Observed {
    let mtime = timestamp(stat.stx_mtime);
    Observed {
        fingerprint: Fingerprint {
            identity: identity_of(stat),
            size: stat.stx_size,
            mtime,
            ctime: timestamp(stat.stx_ctime),
        },
        kind,
        meta: Metadata {
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            user: Vec::new(),
            group: Vec::new(),
            mtime,
            xattrs: Xattrs::NONE,
        },
        link_count: stat.stx_nlink,
        device: match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor)
            }
            _ => 0,
        },
        link: None,
        handle: None,
        left_out: is_locked(stat)
            .then_some("it is set immutable or append-only, which targets do not keep"),
        losses: Losses::NONE,
    }
}

/// Whether somebody keeps it from being changed, for everybody.
pub(super) fn is_locked(stat: &Statx) -> bool {
    let locks = StatxAttributes::IMMUTABLE.union(StatxAttributes::APPEND);
    stat.stx_attributes.intersects(locks)
}

/// Inode, and time of birth where the filesystem keeps one.
pub(super) fn identity_of(stat: &Statx) -> Identity {
    let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let born = if known {
        timestamp(stat.stx_btime)
    } else {
        Timestamp::default()
    };
    Identity {
        inode: stat.stx_ino,
        born,
    }
}

fn timestamp(time: rustix::fs::StatxTimestamp) -> Timestamp {
    Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}

fn kind_of(stat: &Statx) -> Result<Kind, Errno> {
    kind_of_type(FileType::from_raw_mode(u32::from(stat.stx_mode))).ok_or(Errno::INVAL)
}

/// The kind behind a file type, `None` when the system did not say.
pub(super) fn kind_of_type(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return None,
    })
}

/// Identity of what a descriptor is open on.
pub(super) fn identity_fd(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)?;
    Ok(identity_of(&stat))
}

/// Refuses an object that is not the one expected.
pub(crate) fn check_identity(
    dir: &Dir,
    name: &Name,
    found: Identity,
    expected: Identity,
) -> Result<(), FsError> {
    if found == expected {
        return Ok(());
    }
    Err(FsError::of_kind(
        FsErrorKind::Moved,
        "use",
        dir.path().join(name),
    ))
}
