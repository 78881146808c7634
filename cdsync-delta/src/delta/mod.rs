//! Differences: what of a new content an old one, the base, already holds.
//!
//! The receiver holds the base, the sender the new content. The receiver signs the blocks of its
//! base ([`sign_block`]), the sender looks for them at every offset of the new content
//! ([`Matcher`]) and sends copies ([`encode_copies`]) and what no copy covers ([`gaps`]). The
//! receiver puts both together ([`pieces`]). This is rsync's way (A. Tridgell, "Efficient Algorithms
//! for Sorting and Synchronization", 1999, chapter 3) on two levels: coarse blocks of the whole base
//! first, then fine blocks, but only of the stretches that no copy uses ([`unused`]) and only in
//! the gaps of the new content.
//!
//! A copy may be wrong: a signature is short. The receiver proves the whole content by its hash
//! before it is published, and asks for all of it when that fails.

mod copies;
mod matcher;
mod patch;
mod rolling;
mod signature;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use copies::{COPIES_MAX, COPIES_VERSION, Copy, decode_copies, encode_copies};
pub use matcher::{Matcher, Work};
pub use patch::{Piece, gaps, merge, pieces, unused};
pub use signature::{BLOCK_SIGNATURE_BYTES, Index, sign_block};

/// The most blocks that one [`Index`] holds: 1.1 MiB of signatures, 5 to 8 MiB of memory. For a base
/// of 1 GiB, 32,768 blocks, it is about 1.5 MiB.
pub const SIGNATURE_BLOCKS_MAX: u64 = 1 << 17;

/// How many fine blocks a coarse one has.
const FINE_PER_COARSE: u32 = 8;

/// The shortest coarse block, in bytes. Below it a signature costs more than it finds.
const COARSE_MIN: u64 = 2 * 1024;

/// The coarse block of usual bases, in bytes: one signature for 1 GiB is 0.29 MB.
const COARSE_USUAL: u64 = 32 * 1024;

/// The longest coarse block, in bytes: it bounds the memory of a [`Matcher`].
const COARSE_MAX: u64 = 2 * 1024 * 1024;

/// The secret of one transfer, drawn at random for it. Nobody who does not know it can make two
/// blocks of the same signature.
#[derive(Clone, PartialEq, Eq)]
pub struct DeltaKey(pub [u8; 32]);

impl std::fmt::Debug for DeltaKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeltaKey(..)")
    }
}

/// The lengths of the blocks of a base, in bytes. Both sides compute them from the base's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// The blocks of the first level, a power of two.
    pub coarse: u32,
    /// The blocks of the second level, an eighth of the first.
    pub fine: u32,
}

impl BlockSizes {
    /// The block lengths for a base of `base_len` bytes: 32 KiB and 4 KiB from 256 KiB on, shorter
    /// ones below. Beyond 4 GiB blocks grow, so that no signature has more than
    /// [`SIGNATURE_BLOCKS_MAX`] blocks, up to 2 MiB for 256 GiB; see [`Self::blocks`] for what is
    /// longer still.
    #[must_use]
    pub fn for_len(base_len: u64) -> Self {
        let needed = base_len.div_ceil(SIGNATURE_BLOCKS_MAX).min(COARSE_MAX);
        let coarse = (base_len / 8)
            .min(COARSE_USUAL)
            .max(needed)
            .next_power_of_two()
            .max(COARSE_MIN) as u32;
        Self {
            coarse,
            fine: coarse / FINE_PER_COARSE,
        }
    }

    /// How many coarse blocks of a base of `base_len` bytes are signed: all whole ones, at most
    /// [`SIGNATURE_BLOCKS_MAX`].
    #[must_use]
    pub fn blocks(&self, base_len: u64) -> u64 {
        base_len
            .checked_div(u64::from(self.coarse))
            .unwrap_or(0)
            .min(SIGNATURE_BLOCKS_MAX)
    }
}

/// What is wrong with signatures or copies of a peer. None is worth a retry with the same bytes:
/// send the whole content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The bytes are no whole number of signatures.
    #[error("{bytes} bytes are no whole number of signatures of {BLOCK_SIGNATURE_BYTES}")]
    SignatureLength {
        /// How many bytes there are.
        bytes: u64,
    },
    /// More blocks than [`SIGNATURE_BLOCKS_MAX`].
    #[error("{blocks} signatures, at most {SIGNATURE_BLOCKS_MAX} are kept")]
    SignatureCount {
        /// How many there would be.
        blocks: u64,
    },
    /// Blocks that no base can have: of no length, or beyond 2^64 bytes.
    #[error("{blocks} blocks of {block} bytes from {from} on cannot be")]
    SignatureSpan {
        /// Where the first one begins, in bytes of the base.
        from: u64,
        /// How many there are.
        blocks: u64,
        /// The length of each, in bytes.
        block: u32,
    },
    /// Copies in a version that is not [`COPIES_VERSION`].
    #[error("copies in version {found}, known is {COPIES_VERSION}")]
    Version {
        /// The version there is.
        found: u8,
    },
    /// The bytes end within a copy.
    #[error("the list of copies ends within copy {index}")]
    Truncated {
        /// Which copy, from 0.
        index: u64,
    },
    /// A number beyond 64 bits, or longer than it needs to be.
    #[error("a number of copy {index} is too long")]
    Number {
        /// Which copy, from 0.
        index: u64,
    },
    /// More copies than [`COPIES_MAX`].
    #[error("more than {COPIES_MAX} copies")]
    CopyCount,
    /// A copy of no bytes.
    #[error("copy {index} is empty")]
    CopyEmpty {
        /// Which copy, from 0.
        index: u64,
    },
    /// A copy of what the base does not have.
    #[error("copy {index}: {len} bytes from {from} of a base of {base_len}")]
    OutsideBase {
        /// Which copy, from 0.
        index: u64,
        /// Where it begins in the base, in bytes.
        from: u64,
        /// Its length in bytes.
        len: u64,
        /// The length of the base in bytes.
        base_len: u64,
    },
    /// A copy beyond the end of the new content.
    #[error("copy {index}: {len} bytes, {gap} after the one before, of a content of {new_len}")]
    OutsideNew {
        /// Which copy, from 0.
        index: u64,
        /// How far after the copy before it begins, in bytes.
        gap: u64,
        /// Its length in bytes.
        len: u64,
        /// The length of the new content in bytes.
        new_len: u64,
    },
}
