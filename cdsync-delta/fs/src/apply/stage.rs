//! Staging: what is to be published is first made whole under a name that nobody knows.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use cdsync_core::ledger::object::{Identity, Kind, Metadata, Observed};
use cdsync_core::path::Name;
use cdsync_delta::{RANGE_BYTES, range_span};
use rustix::io::Errno;

use super::sparse::write_sparse;
use super::{ApplyError, random_name, write_whole};
use crate::dir::{Applied, Dir, LookWants, apply_to_fd, observe_fd};
use crate::error::{FsError, FsErrorKind};

/// From which size on room is reserved at once. Below, a full disk costs little to find out by
/// writing, and reserving costs some filesystems as much as writing does (tmpfs fills with zeroes).
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// How far ahead of what has come room is reserved: whoever sends it may have announced more than it
/// ever sends.
const AHEAD_BYTES: u64 = 64 * 1024 * 1024;

/// One writer's staging folder.
#[derive(Debug)]
pub struct Stager {
    pub(super) folder: Arc<Dir>,
}

/// Something made whole, with its metadata, waiting to be published. Dropping it removes it.
#[derive(Debug)]
#[must_use]
pub struct Staged {
    pub(super) temp: Temp,
    pub(super) identity: Identity,
    /// A file stays open until it is published: a look by its handle costs no walk to its name.
    file: Option<OwnedFd>,
    applied: Applied,
}

impl Staged {
    /// What a file is now; `None` for what has no handle to look by.
    pub(super) fn observe(&self) -> Option<Result<Observed, Errno>> {
        let file = self.file.as_ref()?;
        Some(observe_fd(file.as_fd(), LookWants::default()))
    }

    /// Has a file's bytes on the disk when this returns.
    pub(super) fn sync(&self) -> Result<(), FsError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let temp = &self.temp;
        rustix::fs::fsync(file)
            .map_err(|errno| FsError::at("sync", temp.folder.path(), &temp.name, errno))
    }

    /// What setting its metadata came to.
    pub fn applied(&self) -> Applied {
        self.applied
    }
}

/// A name in a staging folder, removed when dropped unless it was taken over.
#[derive(Debug)]
pub(super) struct Temp {
    pub(super) folder: Arc<Dir>,
    pub(super) name: Name,
    armed: bool,
}

impl Temp {
    fn new(folder: &Arc<Dir>) -> Result<Self, FsError> {
        Ok(Self {
            folder: Arc::clone(folder),
            name: random_name()?,
            armed: false,
        })
    }

    /// Moves it to another folder of the same job, where it keeps its name.
    pub(super) fn move_to(&mut self, folder: &Arc<Dir>) -> Result<(), FsError> {
        if self.folder.identity() != folder.identity() {
            self.folder.rename_new(&self.name, folder, &self.name)?;
            self.folder = Arc::clone(folder);
        }
        Ok(())
    }

    /// The name was renamed away: nothing to remove.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = self.folder.unlink(&self.name) {
            // The next start removes it.
            tracing::debug!(%error, "a staged file stays behind");
        }
    }
}

impl Stager {
    pub(super) fn new(folder: Arc<Dir>) -> Self {
        Self { folder }
    }

    /// Its folder: to be ignored by a watch of the same filesystem.
    #[must_use]
    pub fn folder(&self) -> &Dir {
        &self.folder
    }

    /// Stages a file with all its bytes at hand.
    ///
    /// # Errors
    /// What the system said.
    pub fn small(&self, bytes: &[u8], meta: &Metadata) -> Result<Staged, ApplyError> {
        let (mut temp, file) = self.create(meta)?;
        temp.armed = true;
        write_whole(&file, bytes).map_err(|errno| self.fail("write", &temp, errno))?;
        self.close(temp, file, meta)
    }

    /// Begins a file of `size` bytes whose ranges come one by one, in any order.
    ///
    /// # Errors
    /// What the system said; a disk without room for all of it is told at once.
    pub fn large(&self, size: u64) -> Result<StagedWriter, ApplyError> {
        let private = 0o600;
        let mut temp = Temp::new(&self.folder)?;
        let file = self.folder.create_exclusive(&temp.name, private)?;
        temp.armed = true;
        rustix::fs::ftruncate(&file, size).map_err(|errno| self.fail("size", &temp, errno))?;
        let reserves = size >= RESERVE_BYTES;
        if reserves && room_of(&file).is_some_and(|room| size > room) {
            return Err(self.fail("find room for", &temp, Errno::NOSPC).into());
        }
        let writer = StagedWriter {
            temp,
            file,
            size,
            reserved: Mutex::new(if reserves { 0 } else { size }),
        };
        writer.reserve(0)?;
        Ok(writer)
    }

    /// Stages a symbolic link that says `target`.
    ///
    /// # Errors
    /// What the system said.
    pub fn symlink(&self, target: &[u8], meta: &Metadata) -> Result<Staged, ApplyError> {
        let mut temp = Temp::new(&self.folder)?;
        self.folder.make_symlink(target, &temp.name)?;
        temp.armed = true;
        self.dress(temp, meta, Kind::Symlink)
    }

    /// Stages a pipe, a socket or a device (its number in `device`, else zero).
    ///
    /// # Errors
    /// What the system said; devices need privileges.
    pub fn special(&self, kind: Kind, device: u64, meta: &Metadata) -> Result<Staged, ApplyError> {
        let mut temp = Temp::new(&self.folder)?;
        self.folder.make_special(&temp.name, kind, device)?;
        temp.armed = true;
        self.dress(temp, meta, kind)
    }

    /// Stages a second name of the object at `name`, if it is `identity`.
    ///
    /// # Errors
    /// [`FsErrorKind::Moved`] when another object is there; else what the system said.
    pub fn link(&self, dir: &Dir, name: &Name, identity: Identity) -> Result<Staged, ApplyError> {
        let mut temp = Temp::new(&self.folder)?;
        dir.hard_link(name, &self.folder, &temp.name)?;
        temp.armed = true;
        let found = self.folder.look_existing(&temp.name)?;
        crate::dir::check_identity(dir, name, found.fingerprint.identity, identity)?;
        Ok(Staged {
            temp,
            identity,
            file: None,
            applied: Applied::default(),
        })
    }

    fn create(&self, meta: &Metadata) -> Result<(Temp, OwnedFd), FsError> {
        let temp = Temp::new(&self.folder)?;
        // Often final, less the umask: one call fewer for most files. Nobody else enters here.
        let file = self
            .folder
            .create_exclusive(&temp.name, meta.mode & 0o777)?;
        Ok((temp, file))
    }

    fn close(&self, temp: Temp, file: OwnedFd, meta: &Metadata) -> Result<Staged, ApplyError> {
        let (identity, applied) = apply_to_fd(file.as_fd(), meta)
            .map_err(|errno| self.fail("set metadata of", &temp, errno))?;
        Ok(Staged {
            temp,
            identity,
            file: Some(file),
            applied,
        })
    }

    fn dress(&self, temp: Temp, meta: &Metadata, kind: Kind) -> Result<Staged, ApplyError> {
        let found = self.folder.look_existing(&temp.name)?;
        let identity = found.fingerprint.identity;
        let seen = self
            .folder
            .set_metadata(&temp.name, Some(identity), meta, kind)?;
        let applied = Applied {
            losses: seen.losses,
        };
        Ok(Staged {
            temp,
            identity,
            file: None,
            applied,
        })
    }

    fn fail(&self, operation: &'static str, temp: &Temp, errno: Errno) -> FsError {
        FsError::at(operation, self.folder.path(), &temp.name, errno)
    }
}

/// A large file on its way. Dropping it removes it.
#[derive(Debug)]
pub struct StagedWriter {
    temp: Temp,
    file: OwnedFd,
    size: u64,
    /// Up to where room is reserved, or need not be.
    reserved: Mutex<u64>,
}

impl StagedWriter {
    /// Size of the whole in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes range `index`, whose hash the caller has checked, once. What of it is zero becomes a
    /// hole. May be called from several threads for different ranges.
    ///
    /// # Errors
    /// [`ApplyError::OutOfRange`] when the bytes are not exactly that range; else what the system
    /// said.
    pub fn write_range(&self, index: u64, bytes: &[u8]) -> Result<(), ApplyError> {
        let span = range_span(index, self.size);
        if span.end - span.start != bytes.len() as u64 {
            let size = self.size;
            return Err(ApplyError::OutOfRange {
                index,
                bytes: bytes.len(),
                size,
            });
        }
        debug_assert!(bytes.len() <= RANGE_BYTES, "the span is at most one range");
        self.reserve(span.end)?;
        let reserved = self.size >= RESERVE_BYTES;
        write_sparse(&self.file, bytes, span.start, reserved).map_err(|errno| {
            FsError::at("write", self.temp.folder.path(), &self.temp.name, errno).into()
        })
    }

    /// Reserves room up to `end` and some more, unless there is.
    fn reserve(&self, end: u64) -> Result<(), ApplyError> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if *reserved > end || *reserved >= self.size {
            return Ok(());
        }
        let until = end.saturating_add(AHEAD_BYTES).min(self.size);
        let keep = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&self.file, keep, *reserved, until - *reserved) {
            Ok(()) => *reserved = until,
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                let folder = self.temp.folder.path();
                return Err(FsError::at("reserve room for", folder, &self.temp.name, errno).into());
            }
            // The filesystem cannot: a full disk shows while writing.
            Err(_) => *reserved = self.size,
        }
        Ok(())
    }

    /// Reads range `index` back, for serving it onwards while the rest is still coming.
    ///
    /// # Errors
    /// What the system said.
    pub fn read_range(&self, index: u64, into: &mut Vec<u8>) -> Result<(), ApplyError> {
        let span = range_span(index, self.size);
        let start = into.len();
        into.resize(start + (span.end - span.start) as usize, 0);
        let mut done = start;
        while done < into.len() {
            let offset = span.start + (done - start) as u64;
            match rustix::io::pread(&self.file, &mut into[done..], offset) {
                Ok(n) if n > 0 => done += n,
                Err(Errno::INTR) => {}
                other => {
                    let errno = other.err().unwrap_or(Errno::IO);
                    into.truncate(start);
                    let folder = self.temp.folder.path();
                    return Err(FsError::at("read", folder, &self.temp.name, errno).into());
                }
            }
        }
        Ok(())
    }

    /// Sets the metadata; every range has been written.
    ///
    /// # Errors
    /// What the system said.
    pub fn finish(self, meta: &Metadata) -> Result<Staged, ApplyError> {
        let Self { temp, file, .. } = self;
        let stager = Stager::new(Arc::clone(&temp.folder));
        stager.close(temp, file, meta)
    }
}

/// How many bytes the filesystem of a file has room for, `None` where it does not say.
fn room_of(file: &OwnedFd) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(file).ok()?;
    stat.f_bavail
        .checked_mul(stat.f_frsize)
        .filter(|_| stat.f_blocks > 0)
}

/// Removes everything in a staging folder, folders with what they hold. What cannot be removed is
/// logged and stays.
pub(super) fn clear(stage: &Dir) -> Result<(), FsError> {
    for name in names_of(stage)? {
        if let Err(error) = remove_tree(stage, &name) {
            tracing::warn!(%error, "an old staged file cannot be removed");
        }
    }
    Ok(())
}

pub(super) fn remove_tree(parent: &Dir, name: &Name) -> Result<(), FsError> {
    match parent.unlink(name) {
        Err(e) if matches!(e.kind(), FsErrorKind::IsFolder | FsErrorKind::Permission) => {}
        other => return other,
    }
    // Staging holds folders of writers, with files and new folders: recursion is bounded by us.
    let folder = parent.open_folder(name)?;
    for inner in names_of(&folder)? {
        remove_tree(&folder, &inner)?;
    }
    drop(folder);
    parent.remove_folder(name)
}

pub(super) fn names_of(folder: &Dir) -> Result<Vec<Name>, FsError> {
    let mut names = Vec::new();
    folder.list_names(&mut |name, _| {
        names.push(name);
        ControlFlow::Continue(())
    })?;
    Ok(names)
}
