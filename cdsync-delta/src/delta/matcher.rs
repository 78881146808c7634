//! Finds blocks of a base in a stream of new content.

use super::copies::{COPIES_MAX, Copy};
use super::rolling::{LOOKAHEAD, Roll, WORD, weak_of};
use super::signature::Index;

/// How many bytes may be hashed in vain for each byte of the content. An index of 2^17 blocks of
/// 32 KiB has a weak hash by chance at one in 32,768 offsets, which makes 1.
const VAIN_PER_BYTE: u64 = 16;

/// How many blocks may be hashed in vain before that counts.
const VAIN_BLOCKS: u64 = 64;

/// What one hash in vain counts beside the bytes of its block.
const VAIN_EXTRA: u64 = 256;

/// How many bytes are taken in at once, beside four blocks.
const STEP_BYTES: usize = 64 * 1024;

/// What a [`Matcher`] has done, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// What it went through offset by offset.
    pub rolled: u64,
    /// Of what it computed strong hashes.
    pub hashed: u64,
    /// The part of `hashed` that was no block after all.
    pub vain: u64,
}

/// Finds blocks of an index in a stream of new content.
///
/// Call [`push`](Self::push) with the content in order, in pieces of any size, then
/// [`finish`](Self::finish). What is found does not depend on the pieces.
///
/// It holds four blocks and 64 KiB at most. The time is linear in the content whatever that and the
/// index are: after a block of the base its successor is expected, then the one after that, with
/// the block between them changed; only where both fail does it go on offset by offset. The strong
/// hashes that turn out to be in vain are limited to 16 bytes for each byte of the content; beyond
/// that it finds less.
pub struct Matcher<'a> {
    index: &'a Index,
    block: usize,
    /// New content that may still be needed.
    data: Vec<u8>,
    /// Where `data` begins in the new content.
    offset: u64,
    /// The first byte in `data` that is not decided.
    pos: usize,
    roll: Roll,
    /// Whether `roll` stands at `pos`.
    rolling: bool,
    /// What to add to an offset of the new content to be where it is expected in the base.
    shift: u64,
    /// The offset in the new content where the next block of the base is expected.
    expected: u64,
    /// How many bytes are decided.
    decided: u64,
    work: Work,
}

impl<'a> Matcher<'a> {
    /// A matcher for the content from offset `at` on: where the first byte that is pushed stands
    /// in the new content. Until something is found, the base is expected to be the same at the
    /// same offset.
    #[must_use]
    pub fn new(index: &'a Index, at: u64) -> Self {
        let block = index.block() as usize;
        Self {
            index,
            block,
            data: Vec::new(),
            offset: at,
            pos: 0,
            roll: Roll::new(index.weak_hash(), block),
            rolling: false,
            shift: 0,
            expected: at,
            decided: 0,
            work: Work::default(),
        }
    }

    /// Says that the first byte pushed probably is byte `from` of the base, as it is after a copy
    /// that ends there. To be called before the first push. It saves time, and keeps copies of
    /// repeated content in order.
    #[must_use]
    pub fn expecting(mut self, from: u64) -> Self {
        self.shift = from.wrapping_sub(self.offset);
        self
    }

    /// Takes the next bytes of the content, and appends the blocks found to `found`, in order.
    /// Copies that continue one another become one, also with the last one in `found`. A list of
    /// [`COPIES_MAX`] gets no more.
    pub fn push(&mut self, mut bytes: &[u8], found: &mut Vec<Copy>) {
        if self.index.is_empty() {
            return;
        }
        let capacity = 4 * self.block + STEP_BYTES;
        while !bytes.is_empty() {
            if self.data.len() >= capacity {
                self.forget();
            }
            let (now, later) = bytes.split_at(bytes.len().min(capacity - self.data.len()));
            self.data.extend_from_slice(now);
            bytes = later;
            let len = self.data.len();
            while self.pos + 2 * self.block + LOOKAHEAD <= len {
                // As far as the same step would be taken with any more bytes.
                self.advance(len, len - 2 * self.block - LOOKAHEAD, found);
            }
        }
    }

    /// Takes the end of the content, and appends the last blocks to `found`. Answers what was done.
    pub fn finish(mut self, found: &mut Vec<Copy>) -> Work {
        let len = self.data.len();
        // A step reads beyond the last windows, and uses nothing of that.
        self.data.resize(len + LOOKAHEAD, 0);
        while !self.index.is_empty() && self.pos + self.block <= len {
            self.advance(len, len - self.block, found);
        }
        self.work
    }

    /// Drops the bytes that are decided.
    fn forget(&mut self) {
        self.data.drain(..self.pos);
        self.offset += self.pos as u64;
        self.pos = 0;
    }

    /// Decides at least one byte. `len` is the length of the content in `data`; offset by offset
    /// it goes to `last` or a little beyond.
    fn advance(&mut self, len: usize, last: usize, found: &mut Vec<Copy>) {
        let here = self.offset + self.pos as u64;
        if here >= self.expected {
            if here == self.expected && self.follow(len, found) {
                return;
            }
            self.expected += self.block as u64;
        }
        if !self.rolling {
            self.roll.start(&self.data[self.pos..]);
            self.rolling = true;
        }
        let before_next = self.expected.saturating_sub(here).max(1) as usize;
        let steps = before_next.min(last + 1 - self.pos).div_ceil(WORD);
        let (done, mask) = self
            .roll
            .run(&self.data[self.pos..], steps, self.index.filter());
        self.skip(done * WORD);
        if mask == 0 {
            return;
        }
        for lane in 0..WORD {
            if mask >> lane & 1 == 1 && self.pos + lane + self.block <= len {
                let weak = self.roll.weak(lane);
                if let Some(number) = self.look_up(self.pos + lane, weak) {
                    self.skip(lane);
                    self.take(number, found);
                    return;
                }
            }
        }
        self.roll.step(&self.data[self.pos..]);
        self.skip(WORD);
    }

    /// Tries what is expected at `pos`: the block of the base that belongs there, any block, then
    /// the block after the next one.
    fn follow(&mut self, len: usize, found: &mut Vec<Copy>) -> bool {
        let window = &self.data[self.pos..self.pos + self.block];
        let weak = weak_of(self.index.weak_hash().state(window));
        if let Some(number) = self.belonging(self.pos, weak) {
            self.take(number, found);
            return true;
        }
        if self.index.filter().may_contain(weak)
            && let Some(number) = self.look_up(self.pos, weak)
        {
            self.take(number, found);
            return true;
        }
        let next = self.pos + self.block;
        if next + self.block > len {
            return false;
        }
        let window = &self.data[next..next + self.block];
        let weak = weak_of(self.index.weak_hash().state(window));
        let Some(number) = self.belonging(next, weak) else {
            return false;
        };
        self.decided += self.block as u64;
        self.pos = next;
        self.take(number, found);
        true
    }

    /// The block of the base that is expected at a position, if it is there.
    fn belonging(&mut self, pos: usize, weak: u32) -> Option<usize> {
        let from = (self.offset + pos as u64).wrapping_add(self.shift);
        let number = self.index.at(from)?;
        (self.index.has_weak(number, weak) && self.has_strong(number, pos)).then_some(number)
    }

    /// The block with this weak hash, if its strong one is that of the position too.
    fn look_up(&mut self, pos: usize, weak: u32) -> Option<usize> {
        let free = VAIN_BLOCKS * (self.block as u64 + VAIN_EXTRA);
        if self.work.vain > free + VAIN_PER_BYTE * self.decided {
            return None;
        }
        let number = self.index.by_weak(weak)?;
        self.has_strong(number, pos).then_some(number)
    }

    fn has_strong(&mut self, number: usize, pos: usize) -> bool {
        let bytes = &self.data[pos..pos + self.block];
        self.work.hashed += self.block as u64;
        let equal = self.index.has_strong(number, bytes);
        if !equal {
            self.work.vain += self.block as u64 + VAIN_EXTRA;
        }
        equal
    }

    /// Decides bytes that no block begins at.
    fn skip(&mut self, bytes: usize) {
        self.pos += bytes;
        self.decided += bytes as u64;
        self.work.rolled += bytes as u64;
    }

    /// Takes the block at `pos`.
    fn take(&mut self, number: usize, found: &mut Vec<Copy>) {
        let copy = Copy {
            at: self.offset + self.pos as u64,
            from: self.index.from(number),
            len: self.block as u64,
        };
        self.shift = copy.from.wrapping_sub(copy.at);
        self.pos += self.block;
        self.decided += self.block as u64;
        self.expected = copy.at + copy.len;
        self.rolling = false;
        append(found, copy);
    }
}

impl std::fmt::Debug for Matcher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher")
            .field("at", &(self.offset + self.pos as u64))
            .field("index", &self.index)
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

/// Appends a copy, or makes the last one longer.
pub(super) fn append(copies: &mut Vec<Copy>, copy: Copy) {
    if let Some(last) = copies.last_mut()
        && last.is_continued_by(&copy)
    {
        last.len += copy.len;
    } else if copies.len() < COPIES_MAX {
        copies.push(copy);
    }
}
