//! Finding the name of an object that only a handle names.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cdsync_core::ledger::object::Identity;
use cdsync_core::path::{Name, RelPath};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::{Dir, Root, look};
use crate::error::FsError;
use crate::sys;

/// Where an object is that is no folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// Which one it is.
    pub identity: Identity,
    /// The kernel's handle of a folder and the name that it has there, where that is below the root
    /// and the kernel knows it at the moment.
    pub name: Option<(Vec<u8>, Name)>,
    /// Whether it has more names than one.
    pub several: bool,
}

/// Finds objects below a root by the handles that hints bring. For some at once; open it anew for
/// others, as the root may move.
#[derive(Debug)]
pub struct Finder {
    top: Arc<Dir>,
    mount: OwnedFd,
    /// Where the root is in this process's mounts.
    prefix: Vec<u8>,
}

impl Finder {
    /// Begins to find things.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(root: &Root) -> Result<Self, FsError> {
        let fail = |errno| FsError::new("open", b"", errno);
        let top = root.top();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mount = rustix::fs::openat(&top, c".", flags, Mode::empty()).map_err(fail)?;
        let mut prefix = path_of(top.as_fd()).map_err(fail)?;
        if prefix.last() != Some(&b'/') {
            prefix.push(b'/');
        }
        Ok(Self { top, mount, prefix })
    }

    /// Where something is now; `None` when it is nowhere below the root any more.
    ///
    /// # Errors
    /// What the system said; [`crate::FsErrorKind::Permission`] without `CAP_DAC_READ_SEARCH`.
    pub fn find(&self, handle: &[u8]) -> Result<Option<Whereabouts>, FsError> {
        self.find_errno(handle)
            .map_err(|errno| FsError::new("find", b"", errno))
    }

    fn find_errno(&self, handle: &[u8]) -> Result<Option<Whereabouts>, Errno> {
        let object = match sys::open_by_handle(self.mount.as_fd(), handle) {
            Ok(object) => object,
            Err(Errno::STALE | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(&object, c"", AtFlags::EMPTY_PATH, wanted)?;
        let is_folder = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::Directory;
        if stat.stx_nlink == 0 || is_folder {
            return Ok(None);
        }
        let identity = look::identity_of(&stat);
        // A path may be too long to be told.
        let path = path_of(object.as_fd()).unwrap_or_default();
        let several = stat.stx_nlink > 1;
        let name = match path.strip_prefix(&self.prefix[..]) {
            Some(below) => self.name_at(below, identity),
            // What is not part of any tree at the moment shows as the root of one.
            None if !several && is_named(&path) => return Ok(None),
            None => None,
        };
        Ok(Some(Whereabouts {
            identity,
            name,
            several,
        }))
    }

    /// The name at a path below the root, if it is that object's.
    fn name_at(&self, below: &[u8], identity: Identity) -> Option<(Vec<u8>, Name)> {
        let at = below.iter().rposition(|&byte| byte == b'/');
        let (above, name) = at.map_or((&[][..], below), |at| (&below[..at], &below[at + 1..]));
        let name = Name::new(name).ok()?;
        let folder = self
            .top
            .open_below(&RelPath::new(above.to_vec()).ok()?)
            .ok()?;
        let seen = folder.look(&name, look::LookWants::default()).ok()??;
        if seen.fingerprint.identity != identity {
            return None;
        }
        Some((sys::file_handle(folder.as_fd()).ok()??, name))
    }
}

/// Whether a path is that of a name that is there.
fn is_named(path: &[u8]) -> bool {
    path.starts_with(b"/") && path.len() > 1 && !path.ends_with(b" (deleted)")
}

/// Where the kernel has something. Nothing is opened by that: whoever wants it looks there.
fn path_of(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::readlinkat(rustix::fs::CWD, link, Vec::new())?.into_bytes())
}
