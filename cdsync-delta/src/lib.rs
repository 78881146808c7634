//! Content ranges, hashes and differences: bytes in, bytes out, nothing else.
#![forbid(unsafe_code)]

mod content;
mod delta;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use content::{
    ContentError, RANGE_BYTES, RangeHash, RootBuilder, range_count, range_hash, range_span,
};
pub use delta::{
    BLOCK_SIGNATURE_BYTES, BlockSizes, COPIES_MAX, COPIES_VERSION, Copy, DeltaError, DeltaKey,
    Index, Matcher, Piece, SIGNATURE_BLOCKS_MAX, Work, decode_copies, encode_copies, gaps, merge,
    pieces, sign_block, unused,
};
