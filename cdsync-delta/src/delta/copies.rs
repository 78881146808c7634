//! Copies and their encoding.
//!
//! A list is one byte [`COPIES_VERSION`], then three numbers for each copy: how many bytes after
//! the end of the copy before it begins; where it begins in the base, as the difference to where
//! that copy would have gone on (modulo 2^64, as a signed number in zigzag order: 0, -1, 1, -2);
//! and its length. Numbers are little-endian base 128 (LEB128), as short as they can be, so that a
//! list has one encoding only.

use super::DeltaError;

/// The most copies of one list.
pub const COPIES_MAX: usize = 1 << 17;

/// The version of the encoding, its first byte.
pub const COPIES_VERSION: u8 = 1;

/// `len` bytes of the base from `from` on are those of the new content from `at` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Where it begins in the new content, in bytes.
    pub at: u64,
    /// Where it begins in the base, in bytes.
    pub from: u64,
    /// Its length in bytes, not 0.
    pub len: u64,
}

impl Copy {
    /// Where it ends in the new content.
    pub(super) fn end(&self) -> u64 {
        self.at.saturating_add(self.len)
    }

    pub(super) fn is_continued_by(&self, next: &Self) -> bool {
        self.at.checked_add(self.len) == Some(next.at)
            && self.from.checked_add(self.len) == Some(next.from)
    }
}

/// Encodes copies that are in order and do not overlap, about 6 bytes for each. Of a list longer
/// than [`COPIES_MAX`], which no [`Matcher`](super::Matcher) and no [`merge`](super::merge) makes,
/// the rest is left out: then what is sent as literals has to follow from [`decode_copies`].
#[must_use]
pub fn encode_copies(copies: &[Copy]) -> Vec<u8> {
    let mut out = vec![COPIES_VERSION];
    let mut end = 0_u64;
    let mut next = 0_u64;
    for copy in copies.iter().take(COPIES_MAX) {
        debug_assert!(copy.at >= end && copy.len > 0, "in order and not empty");
        let gap = copy.at.wrapping_sub(end);
        let difference = copy.from.wrapping_sub(next.wrapping_add(gap)) as i64;
        put(&mut out, gap);
        put(&mut out, ((difference << 1) ^ (difference >> 63)) as u64);
        put(&mut out, copy.len);
        end = copy.at.wrapping_add(copy.len);
        next = copy.from.wrapping_add(copy.len);
    }
    out
}

/// Decodes copies for a base and a new content of these lengths in bytes. What comes back is in
/// order, without overlap and within both.
///
/// # Errors
/// [`DeltaError`] for everything else, not retryable. The memory is in proportion to
/// `bytes`, 24 bytes for each copy.
pub fn decode_copies(bytes: &[u8], base_len: u64, new_len: u64) -> Result<Vec<Copy>, DeltaError> {
    let Some((version, mut rest)) = bytes.split_first() else {
        return Err(DeltaError::Truncated { index: 0 });
    };
    if *version != COPIES_VERSION {
        return Err(DeltaError::Version { found: *version });
    }
    let mut copies = Vec::new();
    let (mut end, mut next) = (0_u64, 0_u64);
    while !rest.is_empty() {
        if copies.len() >= COPIES_MAX {
            return Err(DeltaError::CopyCount);
        }
        let index = copies.len() as u64;
        let mut number = || take(&mut rest, index);
        let (gap, difference, len) = (number()?, number()?, number()?);
        if len == 0 {
            return Err(DeltaError::CopyEmpty { index });
        }
        let difference = (difference >> 1) ^ (difference & 1).wrapping_neg();
        let from = next.wrapping_add(gap).wrapping_add(difference);
        if !ends_within(from, len, base_len) {
            return Err(DeltaError::OutsideBase {
                index,
                from,
                len,
                base_len,
            });
        }
        let Some(at) = end
            .checked_add(gap)
            .filter(|at| ends_within(*at, len, new_len))
        else {
            return Err(DeltaError::OutsideNew {
                index,
                gap,
                len,
                new_len,
            });
        };
        (end, next) = (at + len, from + len);
        copies.push(Copy { at, from, len });
    }
    Ok(copies)
}

fn ends_within(start: u64, len: u64, limit: u64) -> bool {
    start.checked_add(len).is_some_and(|end| end <= limit)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(rest: &mut &[u8], index: u64) -> Result<u64, DeltaError> {
    let mut number = 0_u64;
    for place in 0..10 {
        let Some((byte, later)) = rest.split_first() else {
            return Err(DeltaError::Truncated { index });
        };
        *rest = later;
        // The tenth byte has one bit of 64 left, and no byte after the first is zero at the end.
        if (place == 9 && *byte > 1) || (place > 0 && *byte == 0) {
            break;
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if *byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DeltaError::Number { index })
}
