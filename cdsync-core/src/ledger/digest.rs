//! Digests of ranges of names: what two ledgers of one origin are compared by.
//!
//! A range is a run of keys of the names' table, so one huge folder is many ranges and a thousand
//! small ones are a single range. Each name adds a keyed hash of itself and of the state of the
//! object behind it; the sum does not depend on the order. No content is hashed: a state says by
//! its numbers which content belongs to it. The key is drawn for each comparison, so that nobody
//! can prepare names whose sums collide.

use std::ops::ControlFlow;

use super::access::live;
use super::object::ObjectState;
use super::rows::{LiveObject, NameRow, decode_row};
use super::tables::{Table, TableError, TablesRead};
use crate::ids::ObjectId;

/// The most names of one range.
pub const RANGE_NAMES_MAX: usize = 4096;

/// Into how many parts a range that differs is divided, by the hashes of its names.
pub const BUCKETS: usize = 64;

/// Makes the hashes of one comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DigestKey(pub [u8; 32]);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey(..)")
    }
}

/// One name of a ledger, as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// The object behind the name.
    pub object: ObjectId,
    /// Of the name and of the object's state.
    pub hash: u128,
}

impl Element {
    /// Which part of its range it belongs to, below [`BUCKETS`].
    #[must_use]
    pub const fn bucket(&self) -> usize {
        (self.hash >> (u128::BITS - BUCKETS.ilog2())) as usize
    }

    /// What stands for it where whole hashes are too long.
    #[must_use]
    pub const fn short(&self) -> [u8; 8] {
        (self.hash as u64).to_le_bytes()
    }
}

/// The sum over a range, and over each of its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSum {
    /// Over all of it.
    pub whole: u128,
    /// Over each part.
    pub buckets: [u64; BUCKETS],
    /// How many names.
    pub names: usize,
}

impl Default for RangeSum {
    fn default() -> Self {
        Self {
            whole: 0,
            buckets: [0; BUCKETS],
            names: 0,
        }
    }
}

impl RangeSum {
    /// Adds a name.
    pub fn add(&mut self, element: &Element) {
        let bucket = &mut self.buckets[element.bucket()];
        *bucket = bucket.wrapping_add(element.hash as u64);
        self.whole = self.whole.wrapping_add(element.hash);
        self.names += 1;
    }
}

fn hash_of(key: &DigestKey, name: &[u8], state: &ObjectState) -> u128 {
    let version = (&state.version.incarnation, state.version.seq);
    let facts = (state.id.number, state.kind, version, state.content_seq);
    let facts = postcard::to_extend(&(facts, &state.meta), Vec::with_capacity(256))
        .expect("states consist of types that postcard always encodes, into memory");
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name);
    hasher.update(&facts);
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// Calls `each` with the key and the element of every name behind `after`, up to `to` where there is
/// one, until it breaks. What `counts` does not take as it stands in the ledger is like nothing that
/// another ledger has; `None` leaves it out.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn elements(
    t: &dyn TablesRead,
    key: &DigestKey,
    (after, to): (&[u8], &[u8]),
    counts: &dyn Fn(&LiveObject) -> Option<bool>,
    each: &mut dyn FnMut(&[u8], Element) -> ControlFlow<()>,
) -> Result<(), TableError> {
    let mut failed = None;
    let mut one = |name: &[u8], value: &[u8]| -> Result<ControlFlow<()>, TableError> {
        if name == after {
            return Ok(ControlFlow::Continue(()));
        }
        if !to.is_empty() && name > to {
            return Ok(ControlFlow::Break(()));
        }
        let row: NameRow = decode_row(Table::Names, value)?;
        let Some(object) = row.object else {
            return Ok(ControlFlow::Continue(()));
        };
        let hash = match live(t, object)? {
            Some(row) => match counts(&row) {
                Some(true) => hash_of(key, name, &row.state),
                Some(false) => !hash_of(key, name, &row.state),
                None => return Ok(ControlFlow::Continue(())),
            },
            None => 0,
        };
        Ok(each(name, Element { object, hash }))
    };
    t.range(Table::Names, after, None, &mut |name, value| {
        one(name, value).unwrap_or_else(|error| {
            failed = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failed.map_or(Ok(()), Err)
}
