//! The forms of keys and values in the tables.
//!
//! Values are postcard behind a version byte in the table's name ([`Table::name`]); keys are
//! big-endian so that they sort as what they stand for.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::access::FolderAt;
use super::object::{Content, Fingerprint, Hash, Identity, Kind, ObjectState, Seq};
use super::tables::{Table, TableError};
use crate::ids::{IncarnationId, ObjectId};
use crate::path::Name;
use crate::time::{Timestamp, WallMillis};

/// What is known of an object.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all rows are live, and none is kept long"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectRow {
    /// It exists.
    Live(LiveObject),
    /// A tombstone: the record of this number removed it.
    Gone(Seq),
}

impl ObjectRow {
    /// The number of the record that last touched the object.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        match self {
            Self::Live(live) => live.state.version.seq,
            Self::Gone(seq) => *seq,
        }
    }

    /// The object where it exists.
    #[must_use]
    pub fn into_live(self) -> Option<LiveObject> {
        match self {
            Self::Live(live) => Some(live),
            Self::Gone(_) => None,
        }
    }
}

/// An object that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveObject {
    /// Its state. At a target this is what is *held*, once `local` is there.
    pub state: ObjectState,
    /// Its names, in the order in which they were given.
    pub names: Vec<(ObjectId, Name)>,
    /// The copy on this disk; `None` while there is none.
    pub local: Option<Local>,
}

impl LiveObject {
    /// Whether any record speaks of it. A folder that only a filter's depth asks to look into is
    /// in the ledger before anybody is told.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.state.version.seq > Seq(0)
    }

    /// Its first name.
    #[must_use]
    pub fn slot(&self) -> Option<&(ObjectId, Name)> {
        self.names.first()
    }

    /// The copy on this disk, as far as it tells a change by others from it.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        let print = self.local.as_ref()?.fingerprint;
        let hash = match &self.state.content {
            Content::Data { hash, .. } => *hash,
            _ => None,
        };
        let left = Left {
            size: print.size,
            mtime: print.mtime,
            ctime: print.ctime,
            mode: self.state.meta.mode,
            hash,
        };
        Some(Known {
            identity: print.identity,
            left: (self.state.kind != Kind::Folder).then_some(left),
        })
    }
}

/// Something at a name of this disk, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Known {
    /// Which inode; all zero for whatever is there.
    pub identity: Identity,
    /// How it was left; `None` where that is not known.
    pub left: Option<Left>,
}

impl From<Identity> for Known {
    fn from(identity: Identity) -> Self {
        Self {
            identity,
            left: None,
        }
    }
}

/// How a copy was when it was last written or moved here: what is not so was changed by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Size in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time.
    pub ctime: Timestamp,
    /// The mode that it was to get.
    pub mode: u32,
    /// BLAKE3 of a file, where it was read or written as a whole.
    pub hash: Option<Hash>,
}

/// Facts of the copy on this disk. They never travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// What tells that it was not touched.
    pub fingerprint: Fingerprint,
    /// A folder's kernel file handle.
    pub handle: Option<Vec<u8>>,
    /// At a target, between which syncs of the disk it was written.
    pub round: u64,
}

/// What is behind a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRow {
    /// The object that belongs there; `None` only together with a remnant.
    pub object: Option<ObjectId>,
    /// Something older that still sits at the name on this disk, to be replaced when the object's
    /// content is here, or to be removed when that works.
    pub remnant: Option<Known>,
}

/// An object that could not be applied yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedRow {
    /// The record that wanted it.
    pub seq: Seq,
    /// Why not.
    pub reason: String,
    /// Since when.
    pub since: WallMillis,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub next_try: WallMillis,
    /// What is to be done once it works.
    pub what: ParkedWhat,
    /// It waits because others changed what is there, and that stays: how often their work had
    /// been given up by then.
    pub kept: Option<u64>,
}

impl ParkedRow {
    /// Whether it is to be moved.
    #[must_use]
    pub const fn is_of_move(&self) -> bool {
        matches!(self.what, ParkedWhat::Move { .. })
    }

    /// Whether it is to get content or metadata.
    #[must_use]
    pub const fn is_of_state(&self) -> bool {
        matches!(self.what, ParkedWhat::Content(_) | ParkedWhat::Meta(_))
    }

    /// What is to be done after its move.
    #[must_use]
    pub fn then(&self) -> Option<&Self> {
        match &self.what {
            ParkedWhat::Move { then, .. } => then.as_deref(),
            _ => None,
        }
    }
}

/// What a parked object waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParkedWhat {
    /// To be made, or to get new content: this state.
    Content(ObjectState),
    /// To get this metadata.
    Meta(ObjectState),
    /// To be moved. The folders are where they were before anything of the same record moved,
    /// also those that went with it.
    Move {
        /// Where it still is.
        from: (FolderAt, Name),
        /// Where the ledger has it.
        to: (FolderAt, Name),
        /// What is to be done to it then: content or metadata.
        then: Option<Box<ParkedRow>>,
    },
    /// This name is to become a link to the object.
    Link {
        /// Which object.
        object: ObjectId,
        /// Where.
        at: (ObjectId, Name),
    },
    /// To be removed from this name; the object itself is a tombstone.
    Remove {
        /// Where it still is.
        at: (ObjectId, Name),
        /// What it is known by.
        known: Known,
        /// What it is.
        kind: Kind,
    },
    /// What others did there stays: nothing is to be done but to look again.
    Theirs {
        /// Whose name it is; `None` for something foreign.
        object: Option<ObjectId>,
        /// Where; `None` for the root folder.
        at: Option<(ObjectId, Name)>,
    },
}

impl ParkedWhat {
    /// The name that it is about, where it is about a name rather than an object.
    #[must_use]
    pub const fn name(&self) -> Option<&(ObjectId, Name)> {
        match self {
            Self::Link { at, .. } | Self::Remove { at, .. } => Some(at),
            Self::Theirs { at, .. } => at.as_ref(),
            Self::Content(_) | Self::Meta(_) | Self::Move { .. } => None,
        }
    }
}

/// One run of an agent over a source's ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Which.
    pub id: IncarnationId,
    /// The one before.
    pub predecessor: Option<IncarnationId>,
    /// The last number of the one before: its own start behind it.
    pub after: Seq,
}

/// Up to where a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// It holds everything up to here, but what is parked.
    pub claim: Seq,
    /// The incarnation that wrote the record at the claim.
    pub incarnation: IncarnationId,
    /// The claim stays where it is until this number is reached: an answer said that the record
    /// of this number removed or replaced what an earlier one speaks of.
    pub hold: Seq,
    /// Running sum of content bytes up to the claim.
    pub bytes: u64,
}

/// The key of a name.
#[must_use]
pub fn name_key(parent: ObjectId, name: &Name) -> Vec<u8> {
    let mut key = Vec::with_capacity(16 + name.as_bytes().len());
    key.extend_from_slice(&parent.to_key());
    key.extend_from_slice(name.as_bytes());
    key
}

/// The first key behind all names of a folder; `None` for the very last folder there can be.
#[must_use]
pub fn names_end(parent: ObjectId) -> Option<[u8; 16]> {
    let next = u128::from_be_bytes(parent.to_key()).checked_add(1)?;
    Some(next.to_be_bytes())
}

/// Room for nearly every row: one allocation, where growing would take six.
const ROW_BYTES: usize = 256;

/// Encodes a value.
#[must_use]
pub fn encode_row<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_extend(row, Vec::with_capacity(ROW_BYTES))
        .expect("rows consist of types that postcard always encodes, into memory")
}

/// Decodes a value of a table.
///
/// # Errors
/// [`TableError::Corrupt`]; not retryable.
pub fn decode_row<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, TableError> {
    postcard::from_bytes(bytes).map_err(|_| TableError::Corrupt {
        table: table.name(),
    })
}
