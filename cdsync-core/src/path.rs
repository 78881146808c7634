//! Names and relative paths as bytes: valid by construction, escaped when shown.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

/// The longest name, as Linux has it.
pub const NAME_MAX_BYTES: usize = 255;

/// The longest relative path that is carried. Longer than `PATH_MAX`, because a tree may be deeper
/// than one call can name; bounded, because a peer may send one.
pub const PATH_MAX_BYTES: usize = 64 * 1024;

/// The folder at a root that belongs to CDSync; excluded from every job at every depth.
pub const RESERVED_NAME: &[u8] = b".cdsync";

/// Why bytes are not a [`Name`] or a [`RelPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// No bytes at all.
    #[error("a name is empty")]
    Empty,
    /// Over [`NAME_MAX_BYTES`] (name) or [`PATH_MAX_BYTES`] (path).
    #[error("a name of {bytes} bytes is too long")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// `.` or `..`.
    #[error("a name is '.' or '..'")]
    Dots,
    /// A slash or a NUL inside, or a leading or doubled slash in a path.
    #[error("a name contains a slash or a NUL byte")]
    BadByte,
}

/// One component of a path: 1 to 255 bytes, no slash, no NUL, neither `.` nor `..`. Any other byte
/// is allowed, valid UTF-8 or not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks and copies a name.
    ///
    /// # Errors
    /// [`NameError`], not retryable.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        check_name(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the folder that belongs to CDSync.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        &*self.0 == RESERVED_NAME
    }
}

impl TryFrom<&[u8]> for Name {
    type Error = NameError;
    fn try_from(bytes: &[u8]) -> Result<Self, NameError> {
        Self::new(bytes)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Checked(PhantomData))
    }
}

/// Takes bytes as a whole, in one copy, or one by one where the format knows no bytes.
struct Checked<T>(PhantomData<T>);

impl<'de, T> Visitor<'de> for Checked<T>
where
    T: for<'a> TryFrom<&'a [u8], Error = NameError>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<T, E> {
        T::try_from(bytes).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
        let bytes = Vec::<u8>::deserialize(SeqAccessDeserializer::new(seq))?;
        self.visit_bytes(&bytes)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Escaped(&self.0), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

fn check_name(bytes: &[u8]) -> Result<(), NameError> {
    match bytes {
        [] => Err(NameError::Empty),
        b"." | b".." => Err(NameError::Dots),
        _ if bytes.len() > NAME_MAX_BYTES => Err(NameError::TooLong { bytes: bytes.len() }),
        _ if bytes.iter().any(|&b| b == b'/' || b == 0) => Err(NameError::BadByte),
        _ => Ok(()),
    }
}

/// A path below a root: names joined by `/`, the root itself being empty. Cheap to clone: every
/// file of a folder is told with the folder's path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RelPath(Option<Arc<[u8]>>);

impl RelPath {
    /// The root itself.
    #[must_use]
    pub const fn root() -> Self {
        Self(None)
    }

    /// Checks and takes a path.
    ///
    /// # Errors
    /// [`NameError`] when any component is not a [`Name`], or it is over [`PATH_MAX_BYTES`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, NameError> {
        if bytes.len() > PATH_MAX_BYTES {
            return Err(NameError::TooLong { bytes: bytes.len() });
        }
        if !bytes.is_empty() {
            for component in bytes.split(|&b| b == b'/') {
                match check_name(component) {
                    Err(NameError::Empty) => return Err(NameError::BadByte),
                    other => other?,
                }
            }
        }
        Ok(Self::from_checked(&bytes))
    }

    fn from_checked(bytes: &[u8]) -> Self {
        Self((!bytes.is_empty()).then(|| bytes.into()))
    }

    /// The bytes, without a leading or trailing slash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether this is the root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// The names, from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.as_bytes()
            .split(|&b| b == b'/')
            .filter(|c| !c.is_empty())
    }

    /// This path with one more name.
    #[must_use]
    pub fn join(&self, name: &Name) -> Self {
        let above = self.as_bytes();
        let mut bytes = Vec::with_capacity(above.len() + 1 + name.as_bytes().len());
        bytes.extend_from_slice(above);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        Self::from_checked(&bytes)
    }

    /// What follows `top` in this path: nothing where they are equal, else the rest with its leading
    /// slash. `None` when this path is neither `top` nor below it; the root follows nothing.
    #[must_use]
    pub fn after(&self, top: &Self) -> Option<&[u8]> {
        let rest = self.as_bytes().strip_prefix(top.as_bytes())?;
        (rest.is_empty() || rest[0] == b'/').then_some(rest)
    }

    /// The path from names listed from the deepest up, as a walk towards the root finds them.
    #[must_use]
    pub fn from_names_upwards(names: &[Name]) -> Self {
        let mut bytes = Vec::new();
        for name in names.iter().rev() {
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(name.as_bytes());
        }
        Self::from_checked(&bytes)
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = NameError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, NameError> {
        Self::new(bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.as_bytes().to_vec()
    }
}

impl TryFrom<&[u8]> for RelPath {
    type Error = NameError;
    fn try_from(bytes: &[u8]) -> Result<Self, NameError> {
        Self::new(bytes.to_vec())
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Checked(PhantomData))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            f.write_str(".")
        } else {
            fmt::Display::fmt(&Escaped(self.as_bytes()), f)
        }
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Shows bytes on one line: printable UTF-8 as it is, control characters, backslashes and bytes
/// that are not UTF-8 as `\n`, `\t`, `\\` or `\xNN`. A name can thus never forge a log line.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    '\\' => f.write_str("\\\\")?,
                    c if is_hidden(c) => write!(f, "\\u{{{:x}}}", c as u32)?,
                    c => fmt::Write::write_char(f, c)?,
                }
            }
            for b in chunk.invalid() {
                write!(f, "\\x{b:02x}")?;
            }
        }
        Ok(())
    }
}

/// Control characters and those that reorder or hide the text around them on a terminal.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// An order-independent digest of a set of relative paths: tells whether a folder on a disk holds
/// just what a ledger says, without keeping either list. Compared within one process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NameSetDigest {
    count: u64,
    sum: u64,
}

impl NameSetDigest {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many paths were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds a path, relative to the folder that the digest is of.
    pub fn add(&mut self, path: &[u8]) {
        use std::hash::Hasher as _;
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(path);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hasher.finish());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that nothing which could leave a folder passes as a name, and that odd bytes do.
    #[test]
    fn names_are_single_components() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"\n", b"\xff\xfe", &[b'x'; 255], b" "] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    /// Proves that a path cannot climb, start at `/`, or hide an empty component.
    #[test]
    fn paths_stay_below_the_root() {
        for bad in [
            &b"/a"[..],
            b"a//b",
            b"a/",
            b"../a",
            b"a/../b",
            b"a/./b",
            b"a\0",
        ] {
            assert!(RelPath::new(bad.to_vec()).is_err(), "{bad:?}");
        }
        let path = RelPath::new(b"a/b".to_vec()).unwrap();
        assert_eq!(path.join(&Name::new(b"c").unwrap()).as_bytes(), b"a/b/c");
        assert_eq!(
            RelPath::root().join(&Name::new(b"c").unwrap()).as_bytes(),
            b"c"
        );
    }

    /// Proves that a name cannot break a log line or hide on a terminal.
    #[test]
    fn shown_names_are_escaped() {
        let name = Name::new(b"a\nb\x1b[0m\xff\\\xe2\x80\xae").unwrap();
        assert_eq!(name.to_string(), "a\\nb\\u{1b}[0m\\xff\\\\\\u{202e}");
    }

    /// Proves that names and paths are stored and sent as the bytes that they always were, and
    /// that formats without bytes, which give one number after another, are understood as well.
    #[test]
    fn bytes_are_one_run() {
        use serde::de::value::{Error, SeqDeserializer};
        let bytes = b"a\xff b".to_vec();
        let (name, path) = (
            Name::new(&bytes).unwrap(),
            RelPath::new(bytes.clone()).unwrap(),
        );
        let stored = postcard::to_allocvec(&bytes).unwrap();
        assert_eq!(postcard::to_allocvec(&name).unwrap(), stored);
        assert_eq!(postcard::to_allocvec(&path).unwrap(), stored);
        assert_eq!(postcard::from_bytes::<Name>(&stored).unwrap(), name);
        assert_eq!(postcard::from_bytes::<RelPath>(&stored).unwrap(), path);
        let numbers = || SeqDeserializer::<_, Error>::new(bytes.iter().copied());
        assert_eq!(Name::deserialize(numbers()).unwrap(), name);
        assert_eq!(RelPath::deserialize(numbers()).unwrap(), path);
        assert!(postcard::from_bytes::<Name>(b"\x02..").is_err());
        assert!(postcard::from_bytes::<RelPath>(b"\x03/a/").is_err());
        let root = postcard::from_bytes::<RelPath>(b"\0").unwrap();
        assert_eq!(root, RelPath::root());
        assert_eq!(RelPath::new(Vec::new()).unwrap(), root);
    }

    /// Proves that only a path at or below another one follows it, by whole names.
    #[test]
    fn paths_follow_by_whole_names() {
        let path = |text: &str| RelPath::new(text.as_bytes().to_vec()).unwrap();
        assert_eq!(path("a/b/c").after(&path("a/b")), Some(&b"/c"[..]));
        assert_eq!(path("a/b").after(&path("a/b")), Some(&b""[..]));
        assert_eq!(path("a/bc").after(&path("a/b")), None);
        assert_eq!(path("a").after(&path("a/b")), None);
        assert_eq!(RelPath::root().after(&path("a")), None);
    }
}
