//! Runs: rows that were appended together are one row of the store.
//!
//! The log is written at its end and read in order. To insert each of its rows by itself would
//! cost a walk down the tree and a search in a page for each, which is a third of what the ledger
//! costs a first copy.
//!
//! ```text
//!   run = entry..      entry = [u32 key bytes][u32 value bytes][key][value], little-endian
//! ```
//!
//! Keys rise; a run is stored under its last key, so that the first run at or behind a key is the
//! one that holds it.

use cdsync_core::ledger::tables::{Table, TableError};

/// A run ends before it grows beyond this: with its key it fills a page of the store.
const RUN_BYTES: usize = 3_900;
const HEAD_BYTES: usize = 8;

/// A run being gathered.
#[derive(Debug, Default)]
pub(super) struct Run {
    bytes: Vec<u8>,
    /// Where its last entry begins.
    last: usize,
}

impl Run {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether there is room for a row; there always is in an empty one.
    pub(super) fn has_room(&self, key: &[u8], value: &[u8]) -> bool {
        self.is_empty() || self.bytes.len() + HEAD_BYTES + key.len() + value.len() <= RUN_BYTES
    }

    /// Appends a row, whose key is behind all others.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let (Ok(keys), Ok(values)) = (u32::try_from(key.len()), u32::try_from(value.len())) else {
            return Err(TableError::Store("a row is too large".to_owned()));
        };
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&keys.to_le_bytes());
        self.bytes.extend_from_slice(&values.to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    /// Its last row.
    pub(super) fn last(&self) -> Option<(&[u8], &[u8])> {
        rows(&self.bytes[self.last..]).next()?.ok()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.last = 0;
    }
}

/// The rows of a run, in order.
pub(crate) fn rows(run: &[u8]) -> Rows<'_> {
    Rows(run)
}

#[derive(Debug)]
pub(crate) struct Rows<'a>(&'a [u8]);

impl<'a> Iterator for Rows<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let Some((key, value, rest)) = split(self.0) else {
            self.0 = &[];
            return Some(Err(TableError::Corrupt {
                table: Table::Log.name(),
            }));
        };
        self.0 = rest;
        Some(Ok((key, value)))
    }
}

/// The first entry's key and value, and what follows it; `None` when it is not whole.
fn split(run: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (keys, run) = run.split_first_chunk()?;
    let (values, run) = run.split_first_chunk()?;
    let (key, run) = run.split_at_checked(u32::from_le_bytes(*keys) as usize)?;
    let (value, rest) = run.split_at_checked(u32::from_le_bytes(*values) as usize)?;
    Some((key, value, rest))
}
