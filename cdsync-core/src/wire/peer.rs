//! Between agents: a target subscribes to its upstream on one stream, and pulls large content on
//! streams of their own.
//!
//! ```text
//! target                                upstream
//!   Subscribe (job, grant, cursor) ------->
//!   <------- Accepted (origin, incarnation, head) or Refused
//!   Credit (bytes) ----------------------->
//!   <------- Batch ..., Tick ...            none once the credit is used up; the last may overdraw it
//!
//!   Fetch (job, grant, object, version) -->         another stream
//!   <------- ContentHeader, then ranges (kind RANGE), then ContentEnd; or Refused
//! ```
//!
//! ```text
//!   FetchDifference (fetch, base), signatures of its coarse blocks (kind SIGNATURES) -->
//!   <------- ContentHeader, then Matching while the upstream reads
//!   <------- Refine (stretches of the base)            unless it is of no use
//!   signatures of their fine blocks ------>
//!   <------- Difference (bytes), copies (kind COPIES), what is in none of them (kind LITERAL),
//!            then ContentEnd; or Abandon
//! ```
//!
//! Up to [`FETCHES_MAX`] fetches may be asked for on one stream, without waiting for the first; their
//! answers come in the same order. A refusal ends the stream.

use serde::{Deserialize, Serialize};

use super::{CompareAnswer, CompareAsk, Signed, Snapshot};
use crate::bounds;
use crate::ids::{IncarnationId, JobId, ObjectId, OriginId};
use crate::ledger::object::{Hash, Seq};
use crate::ledger::record::Record;
use crate::time::WallMillis;

/// Every message of a stream between agents but batches and ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Opens a subscription.
    Subscribe(Subscribe),
    /// Grants more bytes of batches.
    Credit {
        /// How many.
        bytes: u32,
    },
    /// Begins the stream.
    Accepted(Accepted),
    /// A source's sign of life, after the records that it covers.
    Tick(Tick),
    /// Opens a fetch, or follows one.
    Fetch(FetchRequest),
    /// The answer to a fetch.
    Content(ContentAnswer),
    /// All ranges were sent: the root hash, computed from the ranges' hashes.
    ContentEnd {
        /// BLAKE3 of the whole.
        root: Hash,
    },
    /// The content changed while it was read: drop what was staged of it.
    Abandon,
    /// Refused; the stream ends.
    Refused {
        /// Why, as a program reads it.
        why: RefusedWhy,
        /// Why, as a person reads it.
        #[serde(deserialize_with = "bounds::text")]
        reason: String,
    },
    /// Begins the stream in place of [`Accepted`]: the log does not lead on from the cursor, and the
    /// target compares first.
    Snapshot(Snapshot),
    /// A question about the snapshot.
    Compare(CompareAsk),
    /// The answer.
    Compared(CompareAnswer),
    /// Opens a fetch of content as its difference to what the target holds.
    FetchDifference(FetchRequest, Base),
    /// The upstream reads, and has nothing to send yet.
    Matching,
    /// The target is to sign these stretches of the base by fine blocks.
    Refine {
        /// Begin and end of each, in bytes, in order: whole coarse blocks.
        #[serde(deserialize_with = "bounds::list::<_, _, REFINE_MAX>")]
        stretches: Vec<(u64, u64)>,
    },
    /// What of the base is where in the content follows, then what is in none of it.
    Difference {
        /// How long the encoded copies are, in bytes.
        bytes: u64,
    },
}

/// Why an upstream refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusedWhy {
    /// The grant is missing, foreign, expired, or for somebody else. Not retryable before new
    /// orders.
    Grant,
    /// This agent does not have the job (yet). Retryable.
    NoSuchJob,
    /// The job is halted or paused here. Retryable.
    NotServing,
    /// The request is malformed or out of bounds. Not retryable.
    Malformed,
    /// Too many requests at once. Retryable.
    Busy,
}

/// Up to where a target has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// Which ledger's numbers.
    pub origin: OriginId,
    /// The incarnation that wrote the record at `seq`.
    pub incarnation: IncarnationId,
    /// The last number read.
    pub seq: Seq,
}

/// A target asks for a job's records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// The job.
    pub job: JobId,
    /// The leave to fetch it.
    pub grant: Signed,
    /// From where; `None` from the start.
    pub cursor: Option<Cursor>,
    /// Records only, no content: to compare before a root is taken over.
    pub preview: bool,
}

/// The upstream's answer to [`Subscribe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its source's ledger.
    pub origin: OriginId,
    /// The running incarnation.
    pub incarnation: IncarnationId,
    /// Whether the cursor was known. If not, records start from the beginning, and what the target
    /// holds beyond them is not from this ledger's history.
    pub resumed: bool,
    /// The highest number announced.
    pub head: Seq,
    /// Whether the first scan has ended: only then does absence mean anything.
    pub complete: bool,
}

/// A source's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// The highest number announced; everything up to here was sent before this tick.
    pub head: Seq,
    /// The running incarnation.
    pub incarnation: IncarnationId,
    /// Content bytes recorded in all records up to `head`, a running sum.
    pub bytes: u64,
    /// The source's clock.
    pub at: WallMillis,
    /// Whether the first scan has ended.
    pub complete: bool,
}

/// The most contents of a batch that are decoded: each takes one byte or more on the wire and some
/// eighty in memory. An upstream ends a batch far below it.
pub const BATCH_MAX_CONTENTS: usize = 128 * 1024;

/// The most records of a batch that are decoded. An upstream ends a batch at half of it.
pub const BATCH_MAX_RECORDS: usize = 1024;

/// What a batch costs of the credit besides its bytes: tiny batches take more memory than their bytes.
pub const BATCH_COST_BYTES: u32 = 512;

/// What a batch frame with so many bytes of payload costs of the credit, for both sides.
#[must_use]
pub fn batch_cost(payload_bytes: usize) -> u32 {
    let bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
    bytes.saturating_add(BATCH_COST_BYTES)
}

/// What opens a batch frame, behind a `u32` LE length; the inline contents follow in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchHeader {
    /// Records in rising order, none missing between the batch before and this one; at most
    /// [`BATCH_MAX_RECORDS`].
    #[serde(deserialize_with = "bounds::list::<_, _, BATCH_MAX_RECORDS>")]
    pub records: Vec<Record>,
    /// One entry for each file whose content a record of this batch changed, in that order; at most
    /// [`BATCH_MAX_CONTENTS`].
    #[serde(deserialize_with = "bounds::list::<_, _, BATCH_MAX_CONTENTS>")]
    pub contents: Vec<Inline>,
    /// Running sum of content bytes of all records up to the last one.
    pub bytes: u64,
    /// The highest number announced when this batch was made.
    pub head: Seq,
}

/// How a file's content comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inline {
    /// In this batch.
    Here {
        /// The number that last changed what was read: not below the record's.
        version: Seq,
        /// How many bytes.
        len: u32,
        /// Their BLAKE3.
        hash: Hash,
        /// The modification time that belongs to these bytes.
        mtime: crate::time::Timestamp,
    },
    /// To be pulled: it is larger than a batch carries.
    Pull,
    /// Sent before, as part of this subscription, at this or a newer version.
    Sent,
    /// The object is gone; a record of this number or before says so.
    Removed {
        /// That number.
        by: Seq,
    },
    /// It changed while it was read; a later record brings it.
    Unsettled,
    /// The source cannot read it.
    Unreadable {
        /// Why, for people.
        #[serde(deserialize_with = "bounds::text")]
        reason: String,
    },
}

/// How many fetches one stream may carry.
pub const FETCHES_MAX: usize = 64;

/// How many stretches of a base are signed finely at once, at most.
pub const REFINE_MAX: usize = 4096;
/// How many bytes of signatures one frame carries, at most: of 7,000 blocks.
pub const SIGNATURES_MAX_BYTES: usize = 63_000;

/// From how many bytes on a base is worth a difference.
pub const DIFFERENCE_MIN_BYTES: u64 = 1 << 20;

/// What a target holds in place of the content that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its length in bytes, from which that of the blocks follows.
    pub len: u64,
    /// The secret by which its blocks are signed, of this fetch alone.
    pub key: [u8; 32],
}

/// A target asks for one object's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    /// The job.
    pub job: JobId,
    /// The leave to fetch it.
    pub grant: Signed,
    /// Whose content.
    pub object: ObjectId,
    /// At least this version.
    pub at_least: Seq,
}

/// The upstream's answer to [`FetchRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentAnswer {
    /// It follows.
    Follows(ContentHeader),
    /// The object is gone; a record of this number or before says so.
    Removed {
        /// That number.
        by: Seq,
    },
    /// It is changing; ask again when a later record speaks of it, or after a while.
    Unsettled,
    /// The upstream cannot read it. Retryable.
    Unreadable {
        /// Why, for people.
        #[serde(deserialize_with = "bounds::text")]
        reason: String,
    },
}

/// What follows: ranges of this content, never of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentHeader {
    /// The number that last changed what is read.
    pub version: Seq,
    /// Size in bytes.
    pub size: u64,
    /// The modification time that belongs to these bytes.
    pub mtime: crate::time::Timestamp,
    /// Tells one attempt to read this version from another.
    pub attempt: u64,
}
