//! Identifiers: servers, ledgers, objects, jobs, and the names people give them.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name of a server, region, group or job, in bytes.
pub const LABEL_MAX_BYTES: usize = 63;

/// Why a text is not a [`Label`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a name: use 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a-z or 0-9")]
pub struct LabelError {
    /// The refused text, cut to 80 characters.
    pub text: String,
}

/// A name of a server, region, group or job: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`LabelError`] when the text does not match the pattern; not retryable.
    pub fn new(text: impl Into<String>) -> Result<Self, LabelError> {
        let text = text.into();
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = !bytes.is_empty()
            && bytes.len() <= LABEL_MAX_BYTES
            && good(bytes[0])
            && bytes
                .iter()
                .all(|&b| good(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid {
            Ok(Self(text))
        } else {
            Err(LabelError {
                text: text.chars().take(80).collect(),
            })
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Label {
    type Error = LabelError;
    fn try_from(text: String) -> Result<Self, LabelError> {
        Self::new(text)
    }
}

impl std::str::FromStr for Label {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, LabelError> {
        Self::new(text)
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:016x})"), self.0)
            }
        }
    };
}

random_id! {
    /// A server, as its master numbered it at joining. Random, never reused.
    ServerId
}
random_id! {
    /// A job. Random, given by the master when the job is first applied; a job that is removed and
    /// made again under the same name is another job.
    JobId
}
random_id! {
    /// One ledger of a source root: the first half of every [`ObjectId`] that it gives out. Random,
    /// minted when the ledger is created, so a ledger that was lost and made anew never hands out
    /// an id that a target already holds for something else.
    OriginId
}
random_id! {
    /// One run of an agent over one ledger. Random; the ledger keeps the order of its own.
    IncarnationId
}

/// An object: file, folder, link or other, wherever its names are. Given at first sight by the
/// origin, never reused, kept across renames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ObjectId {
    /// The ledger that gave the number.
    pub origin: OriginId,
    /// The number; [`ObjectId::ROOT_NUMBER`] is the root folder.
    pub number: u64,
}

impl ObjectId {
    /// The number of every origin's root folder.
    pub const ROOT_NUMBER: u64 = 1;

    /// The root folder of an origin.
    #[must_use]
    pub const fn root(origin: OriginId) -> Self {
        Self {
            origin,
            number: Self::ROOT_NUMBER,
        }
    }

    /// Whether this is its origin's root folder.
    #[must_use]
    pub const fn is_root(self) -> bool {
        self.number == Self::ROOT_NUMBER
    }

    /// The table key: origin, then number, both big-endian so that keys sort as ids do.
    #[must_use]
    pub fn to_key(self) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.origin.0.to_be_bytes());
        key[8..].copy_from_slice(&self.number.to_be_bytes());
        key
    }

    /// The id behind a table key, `None` when it is shorter than 16 bytes.
    #[must_use]
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let origin = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
        let number = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
        Some(Self {
            origin: OriginId(origin),
            number,
        })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:{}", self.origin.0 >> 32, self.number)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One run of the operating system: what was written in it and not synced is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub u128);

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that only the documented pattern is a name: scripts and file names rely on it.
    #[test]
    fn labels_follow_the_pattern() {
        for good in ["a", "0", "edge-1", "a.b_c-d", &"x".repeat(63)] {
            assert!(Label::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "A",
            "a b",
            "a/b",
            "ä",
            "a\n",
            &"x".repeat(64),
        ] {
            assert!(Label::new(bad).is_err(), "{bad}");
        }
    }

    /// Proves that keys sort as ids do, which range scans by folder rely on.
    #[test]
    fn object_keys_sort_as_ids() {
        let id = |o, n| ObjectId {
            origin: OriginId(o),
            number: n,
        };
        let mut ids = [id(2, 1), id(1, 300), id(1, 2), id(256, 0)];
        ids.sort();
        let keys: Vec<_> = ids.iter().map(|i| i.to_key()).collect();
        assert!(keys.is_sorted());
        assert_eq!(ObjectId::from_key(&keys[0]), Some(ids[0]));
        assert_eq!(ObjectId::from_key(&keys[0][..15]), None);
    }
}
