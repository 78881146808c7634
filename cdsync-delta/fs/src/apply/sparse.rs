//! Writing without what is zero: a hole at the source is one at the target.

use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::write_full;

/// What filesystems leave out: whole blocks of this size, and the rest behind the last one.
const BLOCK_BYTES: usize = 4096;

/// Whether a block is to be left out. Most differ in their first bytes.
fn is_zero(block: &[u8]) -> bool {
    let (head, rest) = block.split_at(block.len().min(8));
    head.iter().all(|&b| b == 0) && rest.iter().all(|&b| b == 0)
}

/// Writes at an offset that is a multiple of 4 KiB what is not zero. What is zero is left out of a
/// file that nobody wrote to yet, or given back where room was `reserved` for it. The bytes may end
/// within a block only where the file ends; its size is the caller's to set.
pub(super) fn write_sparse(
    file: impl AsFd,
    bytes: &[u8],
    offset: u64,
    reserved: bool,
) -> Result<(), Errno> {
    let mut at = 0;
    while at < bytes.len() {
        let end = |at: usize| bytes.len().min(at + BLOCK_BYTES);
        let zero = is_zero(&bytes[at..end(at)]);
        let mut to = end(at);
        while to < bytes.len() && is_zero(&bytes[to..end(to)]) == zero {
            to = end(to);
        }
        let (run, start) = (&bytes[at..to], offset + at as u64);
        let is_hole = zero && (!reserved || punch(file.as_fd(), start, run.len() as u64));
        if !is_hole {
            write_full(file.as_fd(), run, start)?;
        }
        at = to;
    }
    Ok(())
}

/// Whether the last block of these bytes was left out, so that the size of the file must be set.
pub(super) fn ends_in_hole(bytes: &[u8]) -> bool {
    let last = bytes.len().saturating_sub(1) / BLOCK_BYTES * BLOCK_BYTES;
    !bytes.is_empty() && is_zero(&bytes[last..])
}

fn punch(file: impl AsFd, offset: u64, length: u64) -> bool {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, how, offset, length).is_ok()
}
