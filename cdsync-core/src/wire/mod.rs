//! Messages between agents and the master, and between agents.
//!
//! Every message is one frame of the transport: a kind byte, then a postcard body whose first byte
//! is the body's version. Enums grow at their end only; a struct that must change becomes a new
//! struct under a new version. Decoding takes no more memory than [`DECODED_MAX_BYTES`] and the bytes
//! that arrived, and everything that is not exactly one valid message is an error. Texts for people
//! come out cut and safe to show.

mod compare;
mod control;
mod enrol;
mod peer;
mod signed;
mod upkeep;

pub use compare::{
    CompareAnswer, CompareAsk, CompareWhy, Compared, OBJECTS_MAX, RANGES_MAX, RangeDigest, Snapshot,
};
pub use control::{
    AgentMessage, Answer, Ask, ClaimedByAll, FenceAnswer, GapReport, Hello, JobReport, LogLine,
    LossReport, LostReport, MasterMessage, Op, ParkedReport, Preview, Report, SourceReport,
    SourceState, TargetReport, TargetState,
};
pub use enrol::{JoinReply, JoinRequest};
pub use peer::{
    Accepted, BATCH_COST_BYTES, BATCH_MAX_CONTENTS, BATCH_MAX_RECORDS, Base, BatchHeader,
    ContentAnswer, ContentHeader, Cursor, DIFFERENCE_MIN_BYTES, FETCHES_MAX, FetchRequest, Inline,
    PeerMessage, REFINE_MAX, RefusedWhy, SIGNATURES_MAX_BYTES, Subscribe, Tick, batch_cost,
};
pub use signed::{
    Adopt, Decision, Epoch, Grant, JobOrder, Orders, Restore, SIGNED_MAX_BYTES, SignError, Signed,
    SigningKey, SourceOrder, Standing, TargetOrder, Upstream, VerifyingKey,
};
pub use upkeep::{DRIFT_NAMES, DriftReport, TrashReport};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::bounds;
pub use crate::bounds::{DECODED_MAX_BYTES, TEXT_MAX_BYTES};

/// The version that opens every body.
pub const WIRE_VERSION: u8 = 1;

/// The largest control message, in bytes.
pub const CONTROL_MAX_BYTES: usize = 4 << 20;

/// Frame kinds on a stream between two agents.
pub mod kind {
    /// A [`PeerMessage`](super::PeerMessage).
    pub const MESSAGE: u8 = 1;
    /// A batch of records with inline content: see [`BatchHeader`](super::BatchHeader).
    pub const BATCH: u8 = 2;
    /// A batch compressed as a whole with zstd: `u32` LE plain length, then the zstd frame.
    pub const BATCH_ZSTD: u8 = 3;
    /// One range of content: 32 bytes of range hash, then at most 256 KiB.
    pub const RANGE: u8 = 4;
    /// A [`AgentMessage`](super::AgentMessage), a [`MasterMessage`](super::MasterMessage), a
    /// [`JoinRequest`](super::JoinRequest) or a [`JoinReply`](super::JoinReply), by stream.
    pub const CONTROL: u8 = 5;
    /// Signatures of blocks of a base, one behind the other.
    pub const SIGNATURES: u8 = 6;
    /// A part of the encoded copies of a difference.
    pub const COPIES: u8 = 7;
    /// Bytes of the content that are in no copy, in their order: at most 256 KiB.
    pub const LITERAL: u8 = 8;
}

/// Why a message does not decode: the peer misbehaves or speaks another version. Not retryable on
/// the same stream.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first byte is not [`WIRE_VERSION`].
    #[error("a message of version {version}, this program speaks {WIRE_VERSION}")]
    Version {
        /// What it said.
        version: u8,
    },
    /// The body is not a valid message of its kind, or bytes follow it.
    #[error("a message of {bytes} bytes does not decode")]
    Malformed {
        /// Its length.
        bytes: usize,
    },
}

/// Encodes a message body.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    encode_after(Vec::new(), message)
}

/// Encodes a message body behind what a buffer already holds.
#[must_use]
pub fn encode_after<T: Serialize>(mut buffer: Vec<u8>, message: &T) -> Vec<u8> {
    buffer.push(WIRE_VERSION);
    postcard::to_extend(message, buffer)
        .expect("messages consist of types that postcard always encodes, into memory")
}

/// Decodes a message body that must fill the bytes exactly.
///
/// # Errors
/// [`WireError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let malformed = WireError::Malformed { bytes: bytes.len() };
    match bytes.split_first() {
        None => Err(malformed),
        Some((&WIRE_VERSION, body)) => match bounds::message(|| postcard::take_from_bytes(body)) {
            Ok((message, [])) => Ok(message),
            _ => Err(malformed),
        },
        Some((&version, _)) => Err(WireError::Version { version }),
    }
}

#[cfg(test)]
mod tests;
