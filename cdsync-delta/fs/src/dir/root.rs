//! The root of a job on this server: where every path begins.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdsync_core::ids::ObjectId;
use cdsync_core::ledger::object::Identity;
use cdsync_core::path::{Escaped, Name, RelPath};
use cdsync_core::time::Timestamp;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::beneath::{Beneath, Mounts, Way};
use super::cache::Cache;
use super::{Dir, beneath};
use crate::error::{FsError, FsErrorKind};
use crate::sys;

/// How many folders a root keeps open.
const OPEN_FOLDERS: usize = 512;

/// What a root is known by across restarts, besides its marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootIdentity {
    /// Device number. May differ after a reboot: compare the filesystem id first.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Time of birth where the filesystem keeps it, else zero.
    pub born: Timestamp,
    /// The kernel's handle, empty where the filesystem gives none.
    pub handle: Vec<u8>,
    /// The filesystem's id as `statfs` gives it; zero where it has none.
    pub fsid: u64,
}

/// Why a root is no longer what it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RootLost {
    /// Nothing is at its path any more.
    #[error("the root vanished")]
    Vanished,
    /// Another folder is at its path.
    #[error("another folder is at the root's path")]
    Replaced,
    /// Another filesystem is at its path: unmounted, or something was mounted over it.
    #[error("another filesystem is at the root's path")]
    OtherFilesystem,
    /// It could not be looked at.
    #[error("the root cannot be looked at")]
    Unreadable(#[source] FsError),
}

/// Which folder is meant: its id, for caching, and its path now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRef {
    /// Its id in the ledger.
    pub id: ObjectId,
    /// Its path from the root, as the ledger has it.
    pub path: RelPath,
    /// What it was known by when it was last seen; `None` accepts any folder at the path.
    pub identity: Option<Identity>,
}

/// An open root. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Root {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    allowed: PathBuf,
    below: RelPath,
    dir: Arc<Dir>,
    identity: RootIdentity,
    cache: Mutex<Cache>,
}

impl Root {
    /// Opens `below` beneath `allowed`, a folder that the operator of this server named. Links in
    /// `allowed` itself are followed: it is the operator's own word. The root may be the top of a
    /// mounted volume; below it no mount is entered.
    ///
    /// # Errors
    /// What the system said; retryable once the folder is there.
    pub fn open(allowed: &Path, below: &RelPath) -> Result<Self, FsError> {
        let dir = open_path(allowed, below, None)?;
        Self::from_dir(allowed, below, dir)
    }

    /// As [`Root::open`], resolving as where `openat2` is missing.
    #[cfg(test)]
    pub(crate) fn open_by_steps(allowed: &Path, below: &RelPath) -> Result<Self, FsError> {
        let dir = open_path(allowed, below, Some(Way::Steps))?;
        Self::from_dir(allowed, below, dir)
    }

    /// As [`Root::open`], making the folders of `below` that do not exist yet (mode 0755 less the
    /// umask).
    ///
    /// # Errors
    /// What the system said.
    pub fn create_below(allowed: &Path, below: &RelPath) -> Result<Self, FsError> {
        let mut so_far = RelPath::root();
        for component in below.components() {
            let name =
                Name::new(component).map_err(|_| FsError::new("make", component, Errno::INVAL))?;
            let parent = open_path(allowed, &so_far, None)?;
            match parent.make_folder(&name, 0o755) {
                // A folder of a mounted volume may be read-only and there.
                Err(error)
                    if !matches!(error.kind(), FsErrorKind::Exists | FsErrorKind::ReadOnly) =>
                {
                    return Err(error);
                }
                _ => so_far = so_far.join(&name),
            }
        }
        Self::open(allowed, below)
    }

    fn from_dir(allowed: &Path, below: &RelPath, dir: Dir) -> Result<Self, FsError> {
        let identity = identity_of(&dir)
            .map_err(|errno| FsError::new("open root", shown(allowed, below), errno))?;
        let inner = Inner {
            allowed: allowed.to_owned(),
            below: below.clone(),
            dir: Arc::new(dir),
            identity,
            cache: Mutex::new(Cache::new(OPEN_FOLDERS)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What it is known by.
    #[must_use]
    pub fn identity(&self) -> &RootIdentity {
        &self.inner.identity
    }

    /// Resolves the path again and compares what is there with what was opened. Cheap enough to be
    /// called before every batch of deletes.
    ///
    /// # Errors
    /// [`RootLost`], which says what happened; the job must halt.
    pub fn verify(&self) -> Result<(), RootLost> {
        let way = Some(self.inner.dir.way());
        let dir = match open_path(&self.inner.allowed, &self.inner.below, way) {
            Ok(dir) => dir,
            Err(error) => return Err(lost_by(error)),
        };
        let now = identity_of(&dir).map_err(|errno| {
            RootLost::Unreadable(FsError::new("look at root", self.shown_bytes(), errno))
        })?;
        let before = &self.inner.identity;
        if now.device != before.device || now.fsid != before.fsid {
            return Err(RootLost::OtherFilesystem);
        }
        if now != *before {
            return Err(RootLost::Replaced);
        }
        Ok(())
    }

    /// The root's path, escaped for people.
    #[must_use]
    pub fn display(&self) -> String {
        Escaped(&self.shown_bytes()).to_string()
    }

    /// The root folder itself.
    #[must_use]
    pub fn top(&self) -> Arc<Dir> {
        Arc::clone(&self.inner.dir)
    }

    /// The folder that `dir` speaks of, opened from the root along its path, or an open handle of
    /// the last half second.
    ///
    /// # Errors
    /// [`FsErrorKind::Moved`] when another folder is at the path; else what the system said.
    pub fn dir(&self, dir: &DirRef) -> Result<Arc<Dir>, FsError> {
        if dir.path.is_root() {
            check(dir, &self.inner.dir)?;
            return Ok(self.top());
        }
        let found = self.cache().find(dir.id, &dir.path);
        if let Some(found) = found {
            check(dir, &found)?;
            return Ok(found);
        }
        let opened = Arc::new(self.open_again(&dir.path)?);
        check(dir, &opened)?;
        let gone = self.cache().insert(dir.id, Arc::clone(&opened));
        drop(gone);
        Ok(opened)
    }

    fn open_again(&self, path: &RelPath) -> Result<Dir, FsError> {
        let top = &self.inner.dir;
        let open = || top.open_at(path.as_bytes(), path.clone());
        match open() {
            // Other parts of the process need descriptors more than this cache does.
            Err(Errno::MFILE) => {
                self.forget_all();
                open()
            }
            other => other,
        }
        .map_err(|errno| FsError::new("open", path.as_bytes(), errno))
    }

    /// Closes the handle kept for a folder: it was moved or removed.
    pub fn forget(&self, id: ObjectId) {
        let gone = self.cache().remove(id);
        drop(gone);
    }

    /// Closes every handle kept: a folder with folders below it was moved.
    pub fn forget_all(&self) {
        let gone = self.cache().clear();
        drop(gone);
    }

    /// The path as the system sees it, for interfaces that take nothing else.
    pub(crate) fn system_path(&self) -> PathBuf {
        let below = std::ffi::OsStr::from_bytes(self.inner.below.as_bytes());
        self.inner.allowed.join(below)
    }

    fn shown_bytes(&self) -> Vec<u8> {
        shown(&self.inner.allowed, &self.inner.below)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // The cache is consistent between any two of its calls, so a panic elsewhere harms nothing.
        self.inner
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(wanted: &DirRef, found: &Dir) -> Result<(), FsError> {
    let Some(identity) = wanted.identity else {
        return Ok(());
    };
    let same_birth = identity.born == Timestamp::default()
        || found.identity().born == Timestamp::default()
        || identity.born == found.identity().born;
    if identity.inode == found.identity().inode && same_birth {
        return Ok(());
    }
    Err(FsError::of_kind(
        FsErrorKind::Moved,
        "open",
        wanted.path.as_bytes(),
    ))
}

fn shown(allowed: &Path, below: &RelPath) -> Vec<u8> {
    let mut bytes = allowed.as_os_str().as_bytes().to_vec();
    if !below.is_root() {
        bytes.push(b'/');
        bytes.extend_from_slice(below.as_bytes());
    }
    bytes
}

/// `way` is `None` where it is not known yet what works.
#[expect(
    clippy::disallowed_methods,
    reason = "what the operator allowed is named by its path; all below by handles"
)]
fn open_path(allowed: &Path, below: &RelPath, way: Option<Way>) -> Result<Dir, FsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(allowed, flags, Mode::empty())
        .and_then(|base| {
            let way = way.unwrap_or_else(|| Way::of(base.as_fd()));
            let fd = if below.is_root() {
                base
            } else {
                let beneath = Beneath {
                    base: base.as_fd(),
                    way,
                    mounts: Mounts::Enter,
                };
                beneath.open_folder(below.as_bytes())?
            };
            let device = beneath::device_of(fd.as_fd())?;
            Dir::from_fd(fd, way, device, RelPath::root())
        })
        .map_err(|errno| FsError::new("open root", shown(allowed, below), errno))
}

fn identity_of(dir: &Dir) -> Result<RootIdentity, Errno> {
    let fsid = rustix::fs::fstatvfs(dir)?.f_fsid;
    Ok(RootIdentity {
        device: dir.device(),
        inode: dir.identity().inode,
        born: dir.identity().born,
        handle: sys::file_handle(dir.as_fd())?.unwrap_or_default(),
        fsid,
    })
}

fn lost_by(error: FsError) -> RootLost {
    match error.kind() {
        FsErrorKind::NotFound => RootLost::Vanished,
        FsErrorKind::NotFolder | FsErrorKind::Link => RootLost::Replaced,
        FsErrorKind::OtherFilesystem => RootLost::OtherFilesystem,
        _ => RootLost::Unreadable(error),
    }
}
