//! Signatures of blocks, and the index by which blocks are found.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::rolling::{Filter, Weak, weak_of};
use super::{DeltaError, DeltaKey, SIGNATURE_BLOCKS_MAX};

/// The length of the weak hash within a signature, in bytes.
const WEAK_BYTES: usize = 4;

/// The length of a block's signature, in bytes: 4 of the weak hash (little-endian), and the first 5
/// of BLAKE3 of the block under the key. Of two different blocks with equal weak hashes one in 2^40
/// pairs is taken for equal.
pub const BLOCK_SIGNATURE_BYTES: usize = 9;

type Signature = [u8; BLOCK_SIGNATURE_BYTES];

/// Appends the signature of one block to `out`. Only whole blocks have signatures: a shorter rest
/// at the end of a base has none.
pub fn sign_block(key: &DeltaKey, block: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&weak_of(Weak::new(key).state(block)).to_le_bytes());
    out.extend_from_slice(&strong(key, block));
}

fn strong(key: &DeltaKey, block: &[u8]) -> [u8; BLOCK_SIGNATURE_BYTES - WEAK_BYTES] {
    let hash = blake3::keyed_hash(&key.0, block);
    let (first, _) = hash
        .as_bytes()
        .split_first_chunk()
        .expect("a hash has 32 bytes");
    *first
}

/// Blocks of a base that were signed one after another.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    /// The number of its first block.
    first: usize,
    /// Where that begins in the base.
    from: u64,
}

/// The signatures of a base's blocks, by which a [`Matcher`](super::Matcher) finds them.
///
/// Of blocks with equal weak hashes only the first is found by it; the others are found where they
/// follow a block that was found.
#[derive(Clone)]
pub struct Index {
    key: DeltaKey,
    weak: Weak,
    block: u32,
    signatures: Vec<Signature>,
    stretches: Vec<Stretch>,
    /// Weak hash to the first block that has it. The hasher is std's, which no peer can fill with
    /// collisions.
    first: HashMap<u32, u32>,
    filter: Filter,
}

impl Index {
    /// An index of blocks of `block` bytes each, without any yet.
    #[must_use]
    pub fn new(key: DeltaKey, block: u32) -> Self {
        Self {
            weak: Weak::new(&key),
            key,
            block,
            signatures: Vec::new(),
            stretches: Vec::new(),
            first: HashMap::new(),
            filter: Filter::new(0),
        }
    }

    /// Adds the blocks of a stretch of the base that begins at byte `from`, as signed one after
    /// another. Stretches may begin anywhere and should come in ascending order.
    ///
    /// # Errors
    /// [`DeltaError::SignatureLength`] when the bytes are no whole number of signatures,
    /// [`DeltaError::SignatureCount`] when there would be more than [`SIGNATURE_BLOCKS_MAX`],
    /// [`DeltaError::SignatureSpan`] when no base has such blocks. Then nothing is added. None is
    /// retryable.
    pub fn add(&mut self, from: u64, signatures: &[u8]) -> Result<(), DeltaError> {
        let (added, rest) = signatures.as_chunks::<BLOCK_SIGNATURE_BYTES>();
        if !rest.is_empty() {
            let bytes = signatures.len() as u64;
            return Err(DeltaError::SignatureLength { bytes });
        }
        if added.is_empty() {
            return Ok(());
        }
        let blocks = (self.signatures.len() + added.len()) as u64;
        if blocks > SIGNATURE_BLOCKS_MAX {
            return Err(DeltaError::SignatureCount { blocks });
        }
        let len = u64::from(self.block) * added.len() as u64;
        if len == 0 || from.checked_add(len).is_none() {
            return Err(DeltaError::SignatureSpan {
                from,
                blocks: added.len() as u64,
                block: self.block,
            });
        }
        self.begin_stretch(from);
        for signature in added {
            self.insert(signature);
        }
        Ok(())
    }

    /// How many blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.signatures.len()
    }

    /// Whether there is none: then nothing will be found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signatures.is_empty()
    }

    /// The length of each block, in bytes.
    #[must_use]
    pub fn block(&self) -> u32 {
        self.block
    }

    /// A stretch that goes on where the last one ended is no new one.
    fn begin_stretch(&mut self, from: u64) {
        let first = self.signatures.len();
        let goes_on = self.stretches.last().is_some_and(|last| {
            last.from + (first - last.first) as u64 * u64::from(self.block) == from
        });
        if !goes_on {
            self.stretches.push(Stretch { first, from });
        }
    }

    fn insert(&mut self, signature: &Signature) {
        let weak = weak_in(signature);
        let number = self.signatures.len() as u32;
        self.signatures.push(*signature);
        let Entry::Vacant(vacant) = self.first.entry(weak) else {
            return;
        };
        vacant.insert(number);
        if self.filter.is_full(self.first.len() - 1) {
            self.filter = Filter::new(2 * self.first.len());
            self.first.keys().for_each(|weak| self.filter.insert(*weak));
        } else {
            self.filter.insert(weak);
        }
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    pub(super) fn weak_hash(&self) -> Weak {
        self.weak
    }

    /// The first block with this weak hash.
    pub(super) fn by_weak(&self, weak: u32) -> Option<usize> {
        self.first.get(&weak).map(|number| *number as usize)
    }

    /// The block that begins at `from` in the base.
    pub(super) fn at(&self, from: u64) -> Option<usize> {
        let next = self.stretches.partition_point(|s| s.from <= from);
        let stretch = self.stretches[..next].last()?;
        let end = self.stretches.get(next).map_or(self.len(), |s| s.first);
        let distance = from - stretch.from;
        let number = stretch.first as u64 + distance / u64::from(self.block);
        (distance.is_multiple_of(u64::from(self.block)) && number < end as u64)
            .then_some(number as usize)
    }

    /// Where a block begins in the base.
    pub(super) fn from(&self, number: usize) -> u64 {
        let next = self.stretches.partition_point(|s| s.first <= number);
        let stretch = &self.stretches[next - 1];
        stretch.from + (number - stretch.first) as u64 * u64::from(self.block)
    }

    pub(super) fn has_weak(&self, number: usize, weak: u32) -> bool {
        weak_in(&self.signatures[number]) == weak
    }

    /// Whether a block has the strong hash of these bytes.
    pub(super) fn has_strong(&self, number: usize, bytes: &[u8]) -> bool {
        self.signatures[number][WEAK_BYTES..] == strong(&self.key, bytes)
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("block", &self.block)
            .field("blocks", &self.signatures.len())
            .finish_non_exhaustive()
    }
}

fn weak_in(signature: &Signature) -> u32 {
    let [a, b, c, d, ..] = *signature;
    u32::from_le_bytes([a, b, c, d])
}
