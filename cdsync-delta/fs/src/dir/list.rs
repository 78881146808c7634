//! Listing a folder in bounded pieces.

use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use cdsync_core::ledger::object::{Kind, Observed};
use cdsync_core::path::{Name, RESERVED_NAME, RelPath};
use rustix::fs::{Mode, OFlags, RawDir, RawDirEntry};
use rustix::io::Errno;

use super::{Dir, LookWants, look};
use crate::error::{FsError, FsErrorKind};

/// Room for one `getdents` call: about a thousand entries of usual length.
const BUFFER_BYTES: usize = 32 * 1024;

/// One piece of a listing: names with what a look at each brought.
pub type Listed = Vec<(Name, Result<Observed, FsError>)>;

/// The names of a folder, a few at a time, for as long as it takes.
#[derive(Debug)]
pub struct NameStream {
    entries: rustix::fs::Dir,
    folder: RelPath,
}

impl NameStream {
    /// The next names, `.cdsync` too, at most so many; none once there are no more.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn next(&mut self, most: usize) -> Result<Vec<Name>, FsError> {
        let mut names = Vec::with_capacity(most);
        while names.len() < most {
            let entry = match self.entries.read() {
                None | Some(Err(Errno::NOENT)) => break,
                Some(Err(Errno::INTR)) => continue,
                Some(Err(errno)) => {
                    return Err(FsError::new("list", self.folder.as_bytes(), errno));
                }
                Some(Ok(entry)) => entry,
            };
            // `.` and `..` are no names.
            names.extend(Name::new(entry.file_name().to_bytes()).ok());
        }
        Ok(names)
    }
}

impl Dir {
    /// Begins to hand over names.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn name_stream(&self) -> Result<NameStream, FsError> {
        let fail = |errno| FsError::new("list", self.path().as_bytes(), errno);
        let fd = self.reopen().map_err(fail)?;
        let entries = rustix::fs::Dir::new(fd).map_err(fail)?;
        let folder = self.path().clone();
        Ok(NameStream { entries, folder })
    }

    /// Looks at every name of the folder and hands them over in pieces of at most `chunk`, in no
    /// order. Leaves out `.cdsync` and what vanishes while it is listed.
    ///
    /// # Errors
    /// When the folder cannot be read. A name that cannot be looked at is handed over with its
    /// error, and the listing goes on.
    pub fn list(
        &self,
        chunk: usize,
        wants: LookWants,
        piece: &mut dyn FnMut(Listed) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        let chunk = chunk.max(1);
        let mut listed = Listed::with_capacity(chunk.min(1024));
        let mut stopped = false;
        self.list_names(&mut |name, _| {
            if name.is_reserved() {
                return ControlFlow::Continue(());
            }
            let Some(found) = self.look(&name, wants).transpose() else {
                return ControlFlow::Continue(());
            };
            listed.push((name, found));
            if listed.len() < chunk {
                return ControlFlow::Continue(());
            }
            let full = std::mem::replace(&mut listed, Listed::with_capacity(chunk.min(1024)));
            let flow = piece(full);
            stopped = flow.is_break();
            flow
        })?;
        if !stopped && !listed.is_empty() {
            let _: ControlFlow<()> = piece(listed);
        }
        Ok(())
    }

    /// Hands over every name, `.cdsync` too, with its kind where the folder itself tells it.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list_names(
        &self,
        each: &mut dyn FnMut(Name, Option<Kind>) -> ControlFlow<()>,
    ) -> Result<(), FsError> {
        let fail = |errno| FsError::new("list", self.path().as_bytes(), errno);
        // A description of its own: the position of a shared one would be shared too.
        let fd = self.reopen().map_err(fail)?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut entries = RawDir::new(fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                // The folder was removed while it was read.
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(fail(errno)),
            };
            let Some((name, kind)) = entry_of(&entry) else {
                continue;
            };
            if each(name, kind).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Whether the folder holds nothing, or nothing but `.cdsync`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn is_empty_but_reserved(&self) -> Result<bool, FsError> {
        let mut empty = true;
        self.list_names(&mut |name, _| {
            empty = name.as_bytes() == RESERVED_NAME;
            if empty {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(empty)
    }

    /// The kind of a name that the listing did not tell.
    pub(crate) fn kind_of(&self, name: &Name, told: Option<Kind>) -> Result<Option<Kind>, FsError> {
        if told.is_some() {
            return Ok(told);
        }
        match self.look(name, LookWants::default()) {
            Ok(found) => Ok(found.map(|o| o.kind)),
            // Mounted over: a folder in this folder's listing, never entered.
            Err(error) if error.kind() == FsErrorKind::OtherFilesystem => Ok(Some(Kind::Folder)),
            Err(error) => Err(error),
        }
    }

    pub(super) fn reopen(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(self.as_fd(), c".", flags, Mode::empty())
    }
}

fn entry_of(entry: &RawDirEntry<'_>) -> Option<(Name, Option<Kind>)> {
    // `.` and `..` are no names; a filesystem that gives a slash or an empty name is broken.
    let name = Name::new(entry.file_name().to_bytes()).ok()?;
    Some((name, look::kind_of_type(entry.file_type())))
}
