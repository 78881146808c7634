//! Reading live content: bytes count only if the file is the same before and after.

use std::os::fd::{AsFd, OwnedFd};

use cdsync_core::ledger::object::{Fingerprint, Observed};
use cdsync_core::path::Name;
use cdsync_delta::{RANGE_BYTES, RangeHash, range_hash, range_span};
use rustix::buffer::spare_capacity;
use rustix::fs::Advice;
use rustix::io::Errno;
use thiserror::Error;

use crate::dir::{Dir, LookWants, observe_fd};
use crate::error::{FsError, FsErrorKind};

/// From which size on the kernel is told that a file is read from start to end.
const LARGE_BYTES: u64 = 1024 * 1024;

/// Why content could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Nothing is at the name any more. Retryable by whoever knows where the object is now.
    #[error("the file is gone")]
    Gone,
    /// It is another file, or the same one with other size or times than expected: what was read
    /// does not count. Retryable with what is there now.
    #[error("the file changed")]
    Changed(Box<Observed>),
    /// The system refused. Retryable as the error says.
    #[error("the file cannot be read")]
    Unreadable(#[source] FsError),
}

/// An open file whose fingerprint was as expected when it was opened.
#[derive(Debug)]
pub struct ContentReader {
    file: OwnedFd,
    expect: Fingerprint,
    path: Vec<u8>,
}

/// Opens the file at `name` for reading, if it is still the one known by `expect`.
///
/// # Errors
/// [`ReadError`]; all of it is retryable after another look.
pub fn open_content(
    dir: &Dir,
    name: &Name,
    expect: &Fingerprint,
) -> Result<ContentReader, ReadError> {
    let file = match dir.open_file(name) {
        Ok(file) => file,
        Err(error) => return Err(not_opened(dir, name, error)),
    };
    let path: Vec<u8> = dir.path().join(name).into();
    let reader = ContentReader {
        file,
        expect: *expect,
        path,
    };
    reader.check()?;
    if expect.size >= LARGE_BYTES {
        // Only advice: a filesystem that does not take it reads all the same.
        let _ = rustix::fs::fadvise(&reader.file, 0, None, Advice::Sequential);
    }
    Ok(reader)
}

fn not_opened(dir: &Dir, name: &Name, error: FsError) -> ReadError {
    match error.kind() {
        FsErrorKind::NotFound => ReadError::Gone,
        // A link now (ELOOP), or a socket (ENXIO): say what it is.
        FsErrorKind::Link | FsErrorKind::Io => match dir.look(name, LookWants::default()) {
            Ok(Some(found)) => ReadError::Changed(Box::new(found)),
            Ok(None) => ReadError::Gone,
            Err(_) => ReadError::Unreadable(error),
        },
        _ => ReadError::Unreadable(error),
    }
}

impl ContentReader {
    /// Size of the content in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.expect.size
    }

    /// The open file, for sending from it without a copy. What was sent counts only once
    /// [`ContentReader::finish`] says so.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Appends the whole content to `into` and tells its BLAKE3. The caller has checked that the
    /// size fits. On failure `into` is as long as before.
    ///
    /// # Errors
    /// [`ReadError`], retryable after another look.
    pub fn read_small(self, into: &mut Vec<u8>) -> Result<[u8; 32], ReadError> {
        let before = into.len();
        let result = self
            .read_whole(into)
            .and_then(|hash| self.check().map(|()| hash));
        if result.is_err() {
            into.truncate(before);
        }
        result
    }

    fn read_whole(&self, into: &mut Vec<u8>) -> Result<[u8; 32], ReadError> {
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < self.expect.size {
            let step = (self.expect.size - offset).min(RANGE_BYTES as u64) as usize;
            let start = into.len();
            self.read_at(offset, step, into)?;
            // Right after the read, while the bytes are in the cache of this core.
            hasher.update(&into[start..]);
            offset += step as u64;
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Appends range `index` to `into` and tells its hash. On failure `into` is as long as before.
    ///
    /// # Errors
    /// [`ReadError::Changed`] when the file is shorter than it was; else what the system said.
    pub fn read_range(&self, index: u64, into: &mut Vec<u8>) -> Result<RangeHash, ReadError> {
        let span = range_span(index, self.expect.size);
        let start = into.len();
        let result = self.read_at(span.start, (span.end - span.start) as usize, into);
        if let Err(error) = result {
            into.truncate(start);
            return Err(error);
        }
        Ok(range_hash(
            index,
            &into[start..],
            self.expect.size <= RANGE_BYTES as u64,
        ))
    }

    /// Says whether the file is still the one that was opened, so that what was read counts.
    ///
    /// # Errors
    /// [`ReadError::Changed`] when it is not.
    pub fn finish(self) -> Result<(), ReadError> {
        self.check()
    }

    fn read_at(&self, offset: u64, bytes: usize, into: &mut Vec<u8>) -> Result<(), ReadError> {
        into.reserve(bytes);
        let end = into.len() + bytes;
        let mut offset = offset;
        while into.len() < end {
            let room = end - into.len();
            let read = if into.capacity() == end {
                rustix::io::pread(&self.file, spare_capacity(into), offset)
            } else {
                self.read_limited(offset, room, into)
            };
            match read {
                Ok(0) => return Err(self.shrunk()),
                Ok(n) => offset += n as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.unreadable(errno)),
            }
        }
        Ok(())
    }

    /// Reads at most `room` bytes into a buffer that has more room than that.
    fn read_limited(&self, offset: u64, room: usize, into: &mut Vec<u8>) -> Result<usize, Errno> {
        let start = into.len();
        into.resize(start + room, 0);
        let read = rustix::io::pread(&self.file, &mut into[start..], offset);
        into.truncate(start + *read.as_ref().unwrap_or(&0));
        read
    }

    fn check(&self) -> Result<(), ReadError> {
        let now = observe_fd(self.file.as_fd(), LookWants::default())
            .map_err(|errno| self.unreadable(errno))?;
        if now.fingerprint == self.expect {
            Ok(())
        } else {
            Err(ReadError::Changed(Box::new(now)))
        }
    }

    fn shrunk(&self) -> ReadError {
        match observe_fd(self.file.as_fd(), LookWants::default()) {
            Ok(now) => ReadError::Changed(Box::new(now)),
            Err(errno) => self.unreadable(errno),
        }
    }

    fn unreadable(&self, errno: Errno) -> ReadError {
        ReadError::Unreadable(FsError::new("read", self.path.clone(), errno))
    }
}
