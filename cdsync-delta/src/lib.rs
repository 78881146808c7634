//! Content ranges, hashes and differences: bytes in, bytes out, nothing else.
#![forbid(unsafe_code)]

mod content;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use content::{
    ContentError, RANGE_BYTES, RangeHash, RootBuilder, range_count, range_hash, range_span,
};
