//! Reading files that change whenever they are read.

use std::os::fd::{AsFd, OwnedFd};

use cdsync_core::ledger::object::{Fingerprint, Identity};
use cdsync_core::path::{Name, RESERVED_NAME};
use cdsync_core::time::Timestamp;
use cdsync_delta::{RANGE_BYTES, RangeHash, RootBuilder, range_count};
use rustix::fs::{Mode, OFlags};

use crate::dir::{Dir, LookWants, Root, observe_fd};
use crate::error::FsError;
use crate::read::{ContentReader, ReadError, open_any};

/// What shows that what was read is a state that the file once had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// It was read from a clone, which nobody writes to.
    Cloned,
    /// Read twice, it is the same up to the size at the start.
    Twice,
    /// Nothing: somebody said that it is good enough.
    None,
}

/// A file that does not rest, as it was when it was opened.
#[derive(Debug)]
pub struct RestlessReader {
    reader: ContentReader,
    /// As the file itself was, when it was opened.
    opened: Fingerprint,
    proof: Proof,
}

/// Opens the file at `name`, if it is the one known by `identity`, to be read while it changes: from
/// a clone where the filesystem makes one, and this root has a reserved folder to put it in; else up
/// to the size that it has now. With `unproven` what is read then counts whatever it is.
///
/// # Errors
/// [`ReadError`]; all of it is retryable after another look.
pub fn open_restless(
    root: &Root,
    dir: &Dir,
    name: &Name,
    identity: Identity,
    unproven: bool,
) -> Result<RestlessReader, ReadError> {
    let file = open_any(dir, name)?;
    let look = |file: &OwnedFd| {
        observe_fd(file.as_fd(), LookWants::default())
            .map_err(|errno| ReadError::Unreadable(FsError::at("read", dir.path(), name, errno)))
    };
    let seen = look(&file)?;
    if seen.fingerprint.identity != identity {
        return Err(ReadError::Changed(Box::new(seen)));
    }
    let opened = seen.fingerprint;
    let (file, expect, proof) = match clone_of(root, &file) {
        Some(clone) => {
            let expect = look(&clone)?.fingerprint;
            (clone, expect, Proof::Cloned)
        }
        None if unproven => (file, opened, Proof::None),
        None => (file, opened, Proof::Twice),
    };
    Ok(RestlessReader {
        reader: ContentReader::new(file, expect, dir, name),
        opened,
        proof,
    })
}

/// A file without a name that shares the other one's content, as it is at this moment.
fn clone_of(root: &Root, file: &OwnedFd) -> Option<OwnedFd> {
    let reserved = Name::new(RESERVED_NAME).ok()?;
    let folder = root.top().open_folder(&reserved).ok()?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::openat(folder.as_fd(), ".", flags, Mode::RUSR | Mode::WUSR).ok()?;
    rustix::fs::ioctl_ficlone(&clone, file).ok()?;
    Some(clone)
}

impl RestlessReader {
    /// Size of what is read, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.reader.size()
    }

    /// The file's modification time when it was opened.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.opened.mtime
    }

    /// Size and times of the file when it was opened.
    #[must_use]
    pub fn opened(&self) -> &Fingerprint {
        &self.opened
    }

    /// As [`ContentReader::read_range`].
    ///
    /// # Errors
    /// [`ReadError::Changed`] when the file is shorter than it was; else what the system said.
    pub fn read_range(&self, index: u64, into: &mut Vec<u8>) -> Result<RangeHash, ReadError> {
        self.reader.read_range(index, into)
    }

    /// Says whether what was read, with this BLAKE3, counts. May read all of it again.
    ///
    /// # Errors
    /// [`ReadError::Changed`] when it does not.
    pub fn finish(self, read: [u8; 32]) -> Result<(), ReadError> {
        match self.proof {
            Proof::Cloned | Proof::None => Ok(()),
            Proof::Twice => {
                let mut again = RootBuilder::new();
                let mut bytes = Vec::with_capacity(RANGE_BYTES);
                for index in 0..range_count(self.size()) {
                    bytes.clear();
                    again.push(self.reader.read_range(index, &mut bytes)?);
                }
                if again.finish(self.size()).is_ok_and(|again| again == read) {
                    return Ok(());
                }
                // The very look that says so.
                self.reader.finish()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::testing::{Place, name};

    fn open(place: &Place, unproven: bool) -> RestlessReader {
        let identity = place.identity("f");
        let top = place.root.top();
        open_restless(&place.root, &top, &name("f"), identity, unproven).unwrap()
    }

    fn read(reader: &RestlessReader) -> (Vec<u8>, [u8; 32]) {
        let (mut bytes, mut root) = (Vec::new(), RootBuilder::new());
        for index in 0..range_count(reader.size()) {
            root.push(reader.read_range(index, &mut bytes).unwrap());
        }
        (bytes, root.finish(reader.size()).unwrap())
    }

    /// Proves that a file which only grows counts up to the size at the start, that one written in
    /// its middle does not, unless anything does, and that another file at the name is told.
    #[test]
    fn only_growth_is_proved() {
        let place = Place::new();
        let before = vec![7; 3 * RANGE_BYTES + 5];
        place.write("f", &before);
        let writer = || {
            let mut options = std::fs::OpenOptions::new();
            options.append(true).open(place.at("f")).unwrap()
        };
        let reader = open(&place, false);
        writer().write_all(b"more").unwrap();
        let (bytes, hash) = read(&reader);
        writer().write_all(b"and more").unwrap();
        assert!(bytes == before);
        reader.finish(hash).unwrap();

        let middle = std::fs::OpenOptions::new()
            .write(true)
            .open(place.at("f"))
            .unwrap();
        for unproven in [false, true] {
            let reader = open(&place, unproven);
            let cloned = reader.proof == Proof::Cloned;
            let (_, hash) = read(&reader);
            middle
                .write_all_at(&[u8::from(unproven)], RANGE_BYTES as u64)
                .unwrap();
            assert_eq!(reader.finish(hash).is_ok(), unproven || cloned);
        }
        let identity = place.identity("f");
        place.write("g", b"another one");
        std::fs::rename(place.at("g"), place.at("f")).unwrap();
        let top = place.root.top();
        let other = open_restless(&place.root, &top, &name("f"), identity, true).unwrap_err();
        assert!(matches!(other, ReadError::Changed(_)));
    }
}
