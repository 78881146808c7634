//! Comparing two ledgers of one origin, on the stream of a subscription.
//!
//! ```text
//! target                                upstream
//!   Subscribe (cursor) ------------------->          the log does not lead on from there
//!   <------- Snapshot (number S, key)                in place of Accepted
//!   Compare (Ranges, Range, Objects) ----->          one at a time
//!   <------- Compared
//!   ...
//!   Compare (Done) ----------------------->          the snapshot is dropped
//!   Credit ------------------------------->
//!   <------- Batch ..., Tick ...                     records behind S
//! ```

use serde::{Deserialize, Serialize};

use crate::bounds;
use crate::ids::{IncarnationId, OriginId};
use crate::ledger::digest::{BUCKETS, RANGE_NAMES_MAX};
use crate::ledger::object::{ObjectState, Seq};
use crate::ledger::record::RECORD_MAX_ITEMS;
use crate::path::{NAME_MAX_BYTES, Name};

/// The longest key of a name: a folder's id and the name.
const KEY_MAX_BYTES: usize = 16 + NAME_MAX_BYTES;

/// How many ranges one answer has at most: both sides hash their names in one go.
pub const RANGES_MAX: usize = 8;

/// How many objects are asked for at once.
pub const OBJECTS_MAX: usize = 512;

/// Why a target has to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CompareWhy {
    /// Its cursor lies before what the log still has.
    Behind,
    /// Its cursor is none of this ledger's history.
    Unknown,
}

/// The state of an upstream's ledger at one number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its source's ledger.
    pub origin: OriginId,
    /// The running incarnation.
    pub incarnation: IncarnationId,
    /// The last number in it.
    pub at: Seq,
    /// Running sum of content bytes up to that.
    pub bytes: u64,
    /// How many files it has, about.
    pub files: u64,
    /// Why the log does not do.
    pub why: CompareWhy,
    /// Makes the hashes of this comparison.
    pub key: [u8; 32],
}

/// A question about the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareAsk {
    /// The digests of the next ranges behind this key.
    Ranges {
        /// Empty for the beginning.
        #[serde(deserialize_with = "bounds::list::<_, _, KEY_MAX_BYTES>")]
        after: Vec<u8>,
    },
    /// What a range has where it differs.
    Range {
        /// The key before its first one.
        #[serde(deserialize_with = "bounds::list::<_, _, KEY_MAX_BYTES>")]
        after: Vec<u8>,
        /// Its last key; empty for the end of the table.
        #[serde(deserialize_with = "bounds::list::<_, _, KEY_MAX_BYTES>")]
        to: Vec<u8>,
        /// The sums over its parts as the asking side has them.
        #[serde(deserialize_with = "bounds::list::<_, _, BUCKETS>")]
        buckets: Vec<[u8; 8]>,
    },
    /// What these objects are.
    Objects {
        /// Their numbers.
        #[serde(deserialize_with = "bounds::list::<_, _, OBJECTS_MAX>")]
        numbers: Vec<u64>,
    },
    /// All is known.
    Done,
}

/// The answer to a [`CompareAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareAnswer {
    /// Ranges in their order, the first behind the key that was asked for; never none.
    Ranges(#[serde(deserialize_with = "bounds::list::<_, _, RANGES_MAX>")] Vec<RangeDigest>),
    /// The names of those parts of the range that differ.
    Range {
        /// A bit for each part that differs.
        differing: u64,
        /// Their names: a short hash, and the number of the object behind it.
        #[serde(deserialize_with = "bounds::list::<_, _, RANGE_NAMES_MAX>")]
        elements: Vec<([u8; 8], u64)>,
    },
    /// The first of the objects asked for: at least one, and as many as one answer takes.
    Objects(#[serde(deserialize_with = "bounds::list::<_, _, OBJECTS_MAX>")] Vec<Option<Compared>>),
}

/// The digest of one range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDigest {
    /// Its last key; empty for the end of the table.
    #[serde(deserialize_with = "bounds::list::<_, _, KEY_MAX_BYTES>")]
    pub to: Vec<u8>,
    /// The sum over its names.
    pub sum: [u8; 16],
}

/// An object of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Its state.
    pub state: ObjectState,
    /// Its names, each with the number of its folder; none for the root.
    #[serde(deserialize_with = "bounds::list::<_, _, { 4 * RECORD_MAX_ITEMS }>")]
    pub names: Vec<(u64, Name)>,
}
