//! Reading live content: bytes count only if the file is the same before and after.

use std::os::fd::{AsFd, OwnedFd};

use cdsync_core::ledger::object::{Fingerprint, Kind, Observed};
use cdsync_core::path::{Name, RelPath};
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
    folder: RelPath,
    name: Name,
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
    let reader = ContentReader::new(open_any(dir, name)?, *expect, dir, name);
    reader.check()?;
    if expect.size >= LARGE_BYTES {
        // Only advice: a filesystem that does not take it reads all the same.
        let _ = rustix::fs::fadvise(&reader.file, 0, None, Advice::Sequential);
    }
    Ok(reader)
}

/// Reads a whole file, if it is still the one known by `expect`, and tells its BLAKE3. `from_disk`:
/// what the kernel has of it in memory is dropped before, as far as it is on the disk already.
///
/// # Errors
/// [`ReadError`]; all of it is retryable after another look.
pub fn hash_content(
    dir: &Dir,
    name: &Name,
    expect: &Fingerprint,
    from_disk: bool,
) -> Result<[u8; 32], ReadError> {
    let reader = open_content(dir, name, expect)?;
    if from_disk {
        // Only advice: without it the content in memory is what is compared.
        let _ = rustix::fs::fadvise(&reader.file, 0, None, Advice::DontNeed);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < expect.size {
        let step = (expect.size - offset).min(RANGE_BYTES as u64) as usize;
        buffer.clear();
        reader.read_at(offset, step, &mut buffer)?;
        hasher.update(&buffer);
        offset += step as u64;
    }
    reader.finish()?;
    Ok(*hasher.finalize().as_bytes())
}

/// A file of which parts may be taken for a new content. Nobody says that it stays as it is: what is
/// made of it has to be proven.
#[derive(Debug)]
pub struct BaseReader {
    file: OwnedFd,
    len: u64,
    folder: RelPath,
    name: Name,
}

impl BaseReader {
    /// Opens the file at `name`, if there is one.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when there is nothing, or something that is no file; else what the system
    /// said.
    pub fn open(dir: &Dir, name: &Name) -> Result<Self, ReadError> {
        let file = open_any(dir, name)?;
        let seen = observe_fd(file.as_fd(), LookWants::default());
        let seen = seen.map_err(|errno| {
            ReadError::Unreadable(FsError::at("look at", dir.path(), name, errno))
        })?;
        if seen.kind != Kind::File {
            return Err(ReadError::Gone);
        }
        Ok(Self {
            file,
            len: seen.fingerprint.size,
            folder: dir.path().clone(),
            name: name.clone(),
        })
    }

    /// How long it was when it was opened, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends so many bytes from an offset to `into`.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when it is not that long any more; else what the system said.
    pub fn read_at(&self, offset: u64, bytes: usize, into: &mut Vec<u8>) -> Result<(), ReadError> {
        match read_at(&self.file, offset, bytes, into) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ReadError::Gone),
            Err(errno) => {
                let error = FsError::at("read", &self.folder, &self.name, errno);
                Err(ReadError::Unreadable(error))
            }
        }
    }
}

/// Appends so many bytes of a file to `into`. `false` when it has fewer; what was appended then says
/// nothing.
fn read_at(file: &OwnedFd, offset: u64, bytes: usize, into: &mut Vec<u8>) -> Result<bool, Errno> {
    into.reserve(bytes);
    let end = into.len() + bytes;
    let mut offset = offset;
    if into.capacity() - into.len() > bytes + bytes / 4 {
        // The room of the buffer does not bound what is read.
        let mut done = into.len();
        into.resize(end, 0);
        while done < end {
            match rustix::io::pread(file, &mut into[done..], offset) {
                Ok(0) => return Ok(false),
                Ok(n) => (done, offset) = (done + n, offset + n as u64),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        return Ok(true);
    }
    while into.len() < end {
        match rustix::io::pread(file, spare_capacity(into), offset) {
            Ok(0) => return Ok(false),
            Ok(n) => offset += n as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    // The buffer may have room for a little more than was asked for, and the file more than it had.
    into.truncate(end);
    Ok(true)
}

/// Opens the file at `name`, whichever it is.
pub(crate) fn open_any(dir: &Dir, name: &Name) -> Result<OwnedFd, ReadError> {
    dir.open_file(name)
        .map_err(|error| not_opened(dir, name, error))
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
    pub(crate) fn new(file: OwnedFd, expect: Fingerprint, dir: &Dir, name: &Name) -> Self {
        Self {
            file,
            expect,
            folder: dir.path().clone(),
            name: name.clone(),
        }
    }

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
        if self.expect.size <= RANGE_BYTES as u64 {
            // In one go, which hashes more of a short file at once.
            let start = into.len();
            self.read_at(0, self.expect.size as usize, into)?;
            return Ok(*blake3::hash(&into[start..]).as_bytes());
        }
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

    /// Appends so many bytes from an offset to `into`.
    ///
    /// # Errors
    /// [`ReadError::Changed`] when the file is shorter than it was; else what the system said.
    pub fn read_at(&self, offset: u64, bytes: usize, into: &mut Vec<u8>) -> Result<(), ReadError> {
        match read_at(&self.file, offset, bytes, into) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.shrunk()),
            Err(errno) => Err(self.unreadable(errno)),
        }
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
        ReadError::Unreadable(FsError::at("read", &self.folder, &self.name, errno))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::{Place, name};

    fn print(place: &Place, below: &str) -> Fingerprint {
        place.look(below).unwrap().fingerprint
    }

    /// Proves that whole content and ranges come with the hash of the whole, appended to what the
    /// buffer held, for sizes around the range length.
    #[test]
    fn content_and_hash_agree() {
        let place = Place::new();
        let top = place.root.top();
        for size in [
            0,
            1,
            RANGE_BYTES - 1,
            RANGE_BYTES,
            RANGE_BYTES + 1,
            3 * RANGE_BYTES + 7,
        ] {
            let bytes: Vec<u8> = (0..size).map(|n| (n * 7 / 3) as u8).collect();
            place.write("f", &bytes);
            let expect = print(&place, "f");
            let mut into = b"before".to_vec();
            let reader = open_content(&top, &name("f"), &expect).unwrap();
            let hash = reader.read_small(&mut into).unwrap();
            assert_eq!(hash, *blake3::hash(&bytes).as_bytes());
            assert!(into[6..] == bytes, "{size}");
            let reader = open_content(&top, &name("f"), &expect).unwrap();
            let mut root = cdsync_delta::RootBuilder::new();
            let mut into = Vec::new();
            for index in 0..cdsync_delta::range_count(size as u64) {
                root.push(reader.read_range(index, &mut into).unwrap());
            }
            reader.finish().unwrap();
            assert_eq!(root.finish(size as u64).unwrap(), hash);
            assert!(into == bytes, "{size}");
        }
    }

    /// Proves that every way in which a file can be another one than expected is told.
    #[test]
    fn changed_files_do_not_count() {
        let place = Place::new();
        let top = place.root.top();
        place.write("f", b"first");
        let expect = print(&place, "f");
        let reader = open_content(&top, &name("f"), &expect).unwrap();
        std::fs::write(place.at("f"), b"other").unwrap();
        let mut into = vec![1];
        assert!(matches!(
            reader.read_small(&mut into),
            Err(ReadError::Changed(_))
        ));
        assert_eq!(into, [1]);
        let error = open_content(&top, &name("f"), &expect).unwrap_err();
        assert!(matches!(error, ReadError::Changed(now) if now.fingerprint == print(&place, "f")));
        let expect = print(&place, "f");
        let reader = open_content(&top, &name("f"), &expect).unwrap();
        std::fs::write(place.at("f"), b"oth").unwrap();
        assert!(matches!(
            reader.read_range(0, &mut into),
            Err(ReadError::Changed(_))
        ));
        assert_eq!(into, [1]);
        std::fs::remove_file(place.at("f")).unwrap();
        let gone = open_content(&top, &name("f"), &expect).unwrap_err();
        assert!(matches!(gone, ReadError::Gone));
        std::os::unix::fs::symlink("/etc/passwd", place.at("f")).unwrap();
        let link = open_content(&top, &name("f"), &expect).unwrap_err();
        assert!(matches!(link, ReadError::Changed(now) if now.link.is_some()));
    }

    /// Proves that growing while it is read is told at the end, and that a pipe does not block.
    #[test]
    fn growth_is_told_and_pipes_do_not_block() {
        let place = Place::new();
        let top = place.root.top();
        place.write("log", &[7; 1000]);
        let expect = print(&place, "log");
        let reader = open_content(&top, &name("log"), &expect).unwrap();
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .open(place.at("log"))
            .unwrap();
        log.write_all(b"more").unwrap();
        let mut into = Vec::new();
        reader.read_range(0, &mut into).unwrap();
        assert!(matches!(reader.finish(), Err(ReadError::Changed(_))));
        top.make_special(&name("p"), Kind::Fifo, 0).unwrap();
        let pipe = open_content(&top, &name("p"), &expect).unwrap_err();
        assert!(matches!(pipe, ReadError::Changed(_)));
    }
}
