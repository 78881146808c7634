//! What follows from copies: gaps, stretches of the base worth a second look, and the order in
//! which the new content is put together.

use std::ops::Range;

use super::copies::Copy;
use super::matcher::append;
use super::signature::BLOCK_SIGNATURE_BYTES;
use super::{BlockSizes, SIGNATURE_BLOCKS_MAX};

/// A part of the new content, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the base.
    Copy {
        /// Where they begin in the base, in bytes.
        from: u64,
        /// How many there are.
        len: u64,
    },
    /// Bytes that the sender has to send.
    Literal {
        /// How many there are.
        len: u64,
    },
}

/// What copies leave of a new content of `new_len` bytes, in order. The copies are in order and do
/// not overlap.
#[must_use]
pub fn gaps(copies: &[Copy], new_len: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(copies.iter().map(Copy::end));
    let ends = copies.iter().map(|copy| copy.at).chain([new_len]);
    starts
        .zip(ends)
        .filter(|(start, end)| start < end)
        .map(|(start, end)| start..end)
        .collect()
}

/// The pieces that make the new content of `new_len` bytes. The copies are in order, do not overlap
/// and end within it.
pub fn pieces(copies: &[Copy], new_len: u64) -> impl Iterator<Item = Piece> {
    let ends = std::iter::once(0).chain(copies.iter().map(Copy::end));
    let literals = ends
        .zip(copies.iter().map(|copy| copy.at).chain([new_len]))
        .map(|(end, at)| Piece::Literal {
            len: at.saturating_sub(end),
        });
    let copied = copies.iter().map(|copy| {
        Some(Piece::Copy {
            from: copy.from,
            len: copy.len,
        })
    });
    literals
        .zip(copied.chain([None]))
        .flat_map(|(literal, copy)| [Some(literal), copy])
        .flatten()
        .filter(|piece| !matches!(piece, Piece::Literal { len: 0 }))
}

/// One list of the copies of two levels, both in order. Where two overlap, the one that begins first
/// stays, of equal ones that of `coarse`. Copies that continue one another become one. It has
/// at most [`COPIES_MAX`](super::COPIES_MAX) copies.
#[must_use]
pub fn merge(coarse: &[Copy], fine: &[Copy]) -> Vec<Copy> {
    let mut merged: Vec<Copy> = Vec::with_capacity(coarse.len() + fine.len());
    let (mut coarse, mut fine) = (coarse.iter().peekable(), fine.iter().peekable());
    while let Some(copy) = match (coarse.peek(), fine.peek()) {
        (Some(c), Some(f)) if f.at < c.at => fine.next(),
        (None, _) => fine.next(),
        _ => coarse.next(),
    } {
        if merged.last().is_none_or(|last| last.end() <= copy.at) {
            append(&mut merged, *copy);
        }
    }
    merged
}

/// The stretches of a base of `base_len` bytes that no copy uses, in order: whole coarse blocks, and
/// what follows the last of these, if it has a whole fine block. Each is a number of fine blocks,
/// whose signatures are worth asking for.
///
/// Empty when the new content of `new_len` bytes has gaps that are altogether shorter than those
/// signatures. There are at most [`SIGNATURE_BLOCKS_MAX`] fine blocks: the first ones.
#[must_use]
pub fn unused(copies: &[Copy], base_len: u64, new_len: u64, sizes: BlockSizes) -> Vec<Range<u64>> {
    let (coarse, fine) = (u64::from(sizes.coarse), u64::from(sizes.fine));
    if fine == 0 || coarse == 0 {
        return Vec::new();
    }
    let mut stretches = Vec::new();
    let mut start = 0;
    let mut blocks_left = SIGNATURE_BLOCKS_MAX;
    let mut add = |range: Range<u64>| {
        // What is shorter than a block at the end of the base has no signature.
        let blocks = (range.end.saturating_sub(range.start) / fine).min(blocks_left);
        blocks_left -= blocks;
        if blocks > 0 {
            stretches.push(range.start..range.start + blocks * fine);
        }
    };
    for used in used(copies) {
        // A block that is used in part counts as used.
        add(start..used.start / coarse * coarse);
        start = start.max(used.end.div_ceil(coarse).saturating_mul(coarse));
    }
    add(start..base_len);
    let signatures = (SIGNATURE_BLOCKS_MAX - blocks_left) * BLOCK_SIGNATURE_BYTES as u64;
    let missing = gaps(copies, new_len)
        .iter()
        .fold(0_u64, |sum, gap| sum.saturating_add(gap.end - gap.start));
    if missing < signatures {
        stretches.clear();
    }
    stretches
}

/// What copies use of the base, in its order.
fn used(copies: &[Copy]) -> Vec<Range<u64>> {
    let mut used: Vec<_> = copies
        .iter()
        .map(|copy| copy.from..copy.from.saturating_add(copy.len))
        .collect();
    used.sort_unstable_by_key(|range| range.start);
    used
}
