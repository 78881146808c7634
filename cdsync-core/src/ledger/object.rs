//! Objects: what they are, what their state is, and what was seen of them on a disk.

use serde::{Deserialize, Serialize};

use super::loss::Losses;
use super::xattrs::Xattrs;
use crate::ids::{IncarnationId, ObjectId, OriginId};
use crate::time::{Hlc, Timestamp};

/// A record's place in its origin's log. Zero: before the first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Seq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A socket.
    Socket,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Symlink => "symbolic link",
            Self::Fifo => "named pipe",
            Self::CharDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Socket => "socket",
        })
    }
}

/// The longest name of an owner or group, in bytes.
pub const OWNER_NAME_MAX_BYTES: usize = 256;

/// Metadata that is kept identical.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with set-id and sticky bits, at most 0o7777.
    pub mode: u32,
    /// Owner, numeric.
    pub uid: u32,
    /// Group, numeric.
    pub gid: u32,
    /// The owner's name at the source; empty where owners travel by number, or it has none.
    pub user: Vec<u8>,
    /// The same for the group.
    pub group: Vec<u8>,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes and access lists.
    pub xattrs: Xattrs,
}

/// What an object holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Content {
    /// Folders, pipes, sockets.
    None,
    /// A file's bytes: how many, and their hash once somebody has read them all.
    Data {
        /// Size in bytes.
        size: u64,
        /// BLAKE3 of the whole, `None` while unknown.
        hash: Option<Hash>,
    },
    /// A symbolic link's target, as bytes (at most 4,095).
    Link(Vec<u8>),
    /// A device's number.
    Device(u64),
}

/// Which change an object's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// The ledger where the change was recorded.
    pub origin: OriginId,
    /// The run of the agent that recorded it.
    pub incarnation: IncarnationId,
    /// Its place in that ledger's log.
    pub seq: Seq,
    /// When, as a hybrid logical clock.
    pub hlc: Hlc,
}

/// The whole state of an object as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectState {
    /// Which object.
    pub id: ObjectId,
    /// What it is; an object never changes its kind.
    pub kind: Kind,
    /// Metadata.
    pub meta: Metadata,
    /// Content.
    pub content: Content,
    /// The change that brought this state.
    pub version: Version,
    /// The change that last touched the *content*: content of at least this version is asked for.
    pub content_seq: Seq,
    /// The version that this one replaced, `None` for a new object.
    pub replaces: Option<Version>,
}

/// What a disk knows an object by: equal on two looks only if it is the same inode of the same
/// life (an inode number alone is used again by the next file).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Identity {
    /// Inode number.
    pub inode: u64,
    /// Time of birth where the filesystem keeps it, else zero.
    pub born: Timestamp,
}

/// What tells that a file's bytes have not been touched: compare all of it, because tools restore
/// modification times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Which inode.
    pub identity: Identity,
    /// Size in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time.
    pub ctime: Timestamp,
}

/// What one look at a name found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Identity, size and times.
    pub fingerprint: Fingerprint,
    /// Kind.
    pub kind: Kind,
    /// Mode, owner and mtime.
    pub meta: Metadata,
    /// How many names the inode has.
    pub link_count: u32,
    /// A device's number, else zero.
    pub device: u64,
    /// A symbolic link's target.
    pub link: Option<Vec<u8>>,
    /// The kernel's file handle of a folder, and of what has several names, where the filesystem
    /// gives one.
    pub handle: Option<Vec<u8>>,
    /// What of it is not carried, for people.
    pub left_out: Option<&'static str>,
    /// What this disk could not hold of what it was to be: known right after it was made so.
    pub losses: Losses,
}

impl Observed {
    /// Its handle if it is a folder.
    #[must_use]
    pub fn folder_handle(&self) -> Option<&Vec<u8>> {
        self.handle.as_ref().filter(|_| self.kind == Kind::Folder)
    }

    /// The content that a state made from this look would have, with the hash unknown.
    #[must_use]
    pub fn content(&self) -> Content {
        match self.kind {
            Kind::File => Content::Data {
                size: self.fingerprint.size,
                hash: None,
            },
            Kind::Symlink => Content::Link(self.link.clone().unwrap_or_default()),
            Kind::CharDevice | Kind::BlockDevice => Content::Device(self.device),
            Kind::Folder | Kind::Fifo | Kind::Socket => Content::None,
        }
    }
}
