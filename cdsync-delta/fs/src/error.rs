//! What can go wrong with one call on the filesystem.

use std::fmt;

use cdsync_core::path::{Escaped, Name, RelPath};
use rustix::io::Errno;

/// What kind of failure an [`FsError`] is: what a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FsErrorKind {
    /// There is no such name.
    NotFound,
    /// The name is taken.
    Exists,
    /// What is at the path is another object than the one asked for.
    Moved,
    /// It changed while it was looked at, or is of another kind than expected.
    Changed,
    /// It lies on another filesystem: a mount point or a subvolume inside the root, or a staging
    /// folder that is mounted apart.
    OtherFilesystem,
    /// A symbolic link stands where a folder was expected.
    Link,
    /// Something that is no folder stands where a folder was expected.
    NotFolder,
    /// A folder stands where something else was expected.
    IsFolder,
    /// A folder is not empty.
    NotEmpty,
    /// Disk or quota is full.
    NoSpace,
    /// The filesystem is read-only.
    ReadOnly,
    /// Not allowed.
    Permission,
    /// A folder that must be CDSync's alone belongs to another user, who may change what is in it.
    NotPrivate,
    /// One of CDSync's own folders stands where one of the job's was expected.
    Reserved,
    /// The name or path is longer than the filesystem can hold.
    TooLong,
    /// Too many open files in this process or on this server.
    TooManyOpen,
    /// The filesystem cannot do it.
    Unsupported,
    /// A file cannot have another name: the filesystem holds no such names, not so many, or this
    /// process may not give them.
    Unlinkable,
    /// Interrupted or busy: the same call may succeed at once.
    Busy,
    /// Any other failure; the number says which.
    Io,
}

impl FsErrorKind {
    fn of(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound,
            Errno::EXIST => Self::Exists,
            Errno::STALE => Self::Moved,
            Errno::XDEV => Self::OtherFilesystem,
            Errno::LOOP => Self::Link,
            Errno::NOTDIR => Self::NotFolder,
            Errno::ISDIR => Self::IsFolder,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::NoSpace,
            Errno::ROFS => Self::ReadOnly,
            Errno::ACCESS | Errno::PERM => Self::Permission,
            Errno::NAMETOOLONG => Self::TooLong,
            Errno::MFILE | Errno::NFILE => Self::TooManyOpen,
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::ILSEQ => Self::Unsupported,
            Errno::AGAIN | Errno::INTR | Errno::BUSY | Errno::TXTBSY => Self::Busy,
            _ => Self::Io,
        }
    }
}

/// One failed call: on which path (relative to the root unless it is the root's own), doing what.
#[derive(Clone, PartialEq, Eq)]
pub struct FsError {
    kind: FsErrorKind,
    operation: &'static str,
    path: Vec<u8>,
    errno: Option<Errno>,
}

impl FsError {
    pub(crate) fn new(operation: &'static str, path: impl Into<Vec<u8>>, errno: Errno) -> Self {
        let kind = FsErrorKind::of(errno);
        Self {
            kind,
            operation,
            path: path.into(),
            errno: Some(errno),
        }
    }

    pub(crate) fn of_kind(
        kind: FsErrorKind,
        operation: &'static str,
        path: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            kind,
            operation,
            path: path.into(),
            errno: None,
        }
    }

    pub(crate) fn at(operation: &'static str, folder: &RelPath, name: &Name, errno: Errno) -> Self {
        Self::new(operation, folder.join(name), errno)
    }

    /// What kind of failure.
    #[must_use]
    pub fn kind(&self) -> FsErrorKind {
        self.kind
    }

    /// The path, as bytes; relative to the root unless the root itself failed.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The operating system's number, where it was its answer.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.errno.map(Errno::raw_os_error)
    }

    /// Whether the filesystem has no room left: not a quota, and not a file that is too large.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.errno == Some(Errno::NOSPC)
    }

    /// Whether trying again later can help without anybody changing anything at this path.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            FsErrorKind::NoSpace
            | FsErrorKind::TooManyOpen
            | FsErrorKind::Busy
            | FsErrorKind::Changed
            | FsErrorKind::Moved => true,
            FsErrorKind::Io => !matches!(self.errno, Some(Errno::INVAL)),
            _ => false,
        }
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: &[u8] = if self.path.is_empty() {
            b"."
        } else {
            &self.path
        };
        write!(f, "{} '{}': ", self.operation, Escaped(shown))?;
        match (self.kind, self.errno) {
            (FsErrorKind::Moved, _) => f.write_str("another object is at this path"),
            (FsErrorKind::Changed, _) => f.write_str("it changed meanwhile"),
            (FsErrorKind::OtherFilesystem, _) => f.write_str("it lies on another filesystem"),
            (FsErrorKind::Unlinkable, _) => f.write_str("it cannot have a second name here"),
            (FsErrorKind::Link, _) => f.write_str("a symbolic link is in the way"),
            (FsErrorKind::NotPrivate, _) => f.write_str(
                "it belongs to another user; remove it, or give it to the user that the agent runs as",
            ),
            (FsErrorKind::Reserved, _) => {
                f.write_str("CDSync's own folder was moved here; move it back to '.cdsync'")
            }
            (_, Some(errno)) => fmt::Display::fmt(&errno, f),
            (kind, None) => write!(f, "{kind:?}"),
        }
    }
}

impl fmt::Debug for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FsError({:?}: {self})", self.kind)
    }
}

impl std::error::Error for FsError {}
