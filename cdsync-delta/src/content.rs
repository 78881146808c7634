//! Content as aligned ranges, each proven by the BLAKE3 chaining value of its subtree.
//!
//! BLAKE3 is a left-balanced binary tree over chunks of 1,024 bytes (BLAKE3 paper, section 2.1). A
//! range of 256 chunks is a whole subtree of it, so the hash of a file follows from the chaining
//! values of its ranges without reading its bytes again.

use std::ops::Range;

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use thiserror::Error;

/// The length of every range but the last, in bytes. A power of two of BLAKE3 chunks, which makes
/// a range a subtree.
pub const RANGE_BYTES: usize = 256 * 1024;

const _: () = assert!((RANGE_BYTES / blake3::CHUNK_LEN).is_power_of_two());

/// What proves one range: the chaining value of its subtree, or the root hash of a content of at
/// most one range.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RangeHash(pub [u8; 32]);

impl std::fmt::Debug for RangeHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Why a root hash cannot be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The number of ranges pushed is not that of a content of this length. Not retryable.
    #[error("{pushed} ranges for a content of {total_len} bytes, which has {expected}")]
    RangeCount {
        /// How many were pushed.
        pushed: u64,
        /// How many there should be.
        expected: u64,
        /// Length of the content, in bytes.
        total_len: u64,
    },
}

/// How many ranges a content of `total_len` bytes has: none when it is empty.
#[must_use]
pub const fn range_count(total_len: u64) -> u64 {
    total_len.div_ceil(RANGE_BYTES as u64)
}

/// Which bytes range `index` of a content of `total_len` bytes covers; empty beyond its end.
#[must_use]
pub fn range_span(index: u64, total_len: u64) -> Range<u64> {
    let start = index.saturating_mul(RANGE_BYTES as u64).min(total_len);
    start..start.saturating_add(RANGE_BYTES as u64).min(total_len)
}

/// The hash of range `index` with its `bytes`. `single` says that the whole content is at most
/// [`RANGE_BYTES`] long (so `index` is 0); then this is the root hash. No range of a longer content
/// is empty: for one that a peer sends all the same this is the hash of nothing, which fits nowhere.
///
/// # Panics
/// When `bytes` is longer than [`RANGE_BYTES`], or `index` lies beyond 2^46 (content longer than
/// BLAKE3 can hash): both are mistakes of the caller, who knows the content's length.
#[must_use]
pub fn range_hash(index: u64, bytes: &[u8], single: bool) -> RangeHash {
    assert!(
        bytes.len() <= RANGE_BYTES,
        "a range is at most {RANGE_BYTES} bytes long"
    );
    if single || bytes.is_empty() {
        debug_assert!(
            index == 0 || !single,
            "a content of one range has only range 0"
        );
        return RangeHash(*blake3::hash(bytes).as_bytes());
    }
    assert!(
        index < 1 << 46,
        "range {index} lies beyond what BLAKE3 can hash"
    );
    let mut hasher = Hasher::new();
    hasher.set_input_offset(index * RANGE_BYTES as u64);
    hasher.update(bytes);
    RangeHash(hasher.finalize_non_root())
}

/// Computes the root hash of a content from the hashes of its ranges, given in order.
///
/// Holds at most one value per level of the tree: 64 at the utmost.
#[derive(Debug, Clone, Default)]
pub struct RootBuilder {
    /// Roots of finished subtrees, the largest first, and the newest range. A pair is merged only
    /// when a further range shows that it is not the last: the last merge makes the root.
    stack: Vec<[u8; 32]>,
    pushed: u64,
}

impl RootBuilder {
    /// Nothing pushed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many ranges were pushed: the index of the next one.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Adds the hash of the next range.
    pub fn push(&mut self, hash: RangeHash) {
        // Complete subtrees correspond to the one bits of the number of ranges so far.
        while self.stack.len() > self.pushed.count_ones() as usize {
            let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) else {
                break;
            };
            self.stack
                .push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        self.stack.push(hash.0);
        self.pushed += 1;
    }

    /// The root hash of the content of `total_len` bytes. An empty content needs no range.
    ///
    /// # Errors
    /// [`ContentError::RangeCount`] when the number of ranges does not fit, not retryable.
    pub fn finish(mut self, total_len: u64) -> Result<[u8; 32], ContentError> {
        let expected = range_count(total_len);
        let empty = total_len == 0 && self.pushed == 1;
        if self.pushed != expected && !empty {
            return Err(ContentError::RangeCount {
                pushed: self.pushed,
                expected,
                total_len,
            });
        }
        let Some(mut right) = self.stack.pop() else {
            return Ok(*blake3::hash(b"").as_bytes());
        };
        while let Some(left) = self.stack.pop() {
            if self.stack.is_empty() {
                return Ok(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes());
            }
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        Ok(right)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    fn by_ranges(content: &[u8]) -> [u8; 32] {
        let total = content.len() as u64;
        let mut root = RootBuilder::new();
        for index in 0..range_count(total) {
            let span = range_span(index, total);
            let range = &content[span.start as usize..span.end as usize];
            root.push(range_hash(index, range, total <= RANGE_BYTES as u64));
        }
        root.finish(total).unwrap()
    }

    /// Proves that the root from ranges is BLAKE3 of the whole at every edge of chunk and range.
    #[test]
    fn root_equals_whole_hash_at_edges() {
        let k = RANGE_BYTES;
        let mut sizes = vec![0, 1, 1023, 1024, 1025, k - 1, k, k + 1, k + 1024, 3 * k + 5];
        sizes.extend([
            2 * k,
            2 * k + 1,
            4 * k,
            4 * k - 1,
            5 * k,
            7 * k,
            8 * k,
            8 * k + 3,
            16 * k,
        ]);
        for size in sizes {
            let content = bytes(size, size as u64);
            assert_eq!(
                by_ranges(&content),
                *blake3::hash(&content).as_bytes(),
                "{size} bytes"
            );
        }
    }

    /// Proves that the hash of a content of one range is its root, as callers rely on.
    #[test]
    fn single_range_is_root() {
        let content = bytes(RANGE_BYTES, 3);
        assert_eq!(
            range_hash(0, &content, true).0,
            *blake3::hash(&content).as_bytes()
        );
        assert_ne!(
            range_hash(0, &content, false),
            range_hash(0, &content, true)
        );
    }

    /// Proves that a missing or surplus range from a peer is refused, not hashed.
    #[test]
    fn wrong_count_is_refused() {
        let mut root = RootBuilder::new();
        root.push(RangeHash([1; 32]));
        let two = RANGE_BYTES as u64 + 1;
        assert!(root.clone().finish(two).is_err());
        root.push(RangeHash([2; 32]));
        assert!(root.clone().finish(two).is_ok());
        root.push(RangeHash([3; 32]));
        assert!(root.finish(two).is_err());
        assert!(RootBuilder::new().finish(1).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Proves the equality for any length up to nine ranges.
        #[test]
        fn root_equals_whole_hash(len in 0usize..9 * RANGE_BYTES, seed: u64) {
            let content = bytes(len, seed);
            prop_assert_eq!(by_ranges(&content), *blake3::hash(&content).as_bytes());
        }
    }
}
