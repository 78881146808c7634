//! The one door of the ledger to storage: ordered tables of bytes.

use std::ops::ControlFlow;

use thiserror::Error;

/// The tables of one ledger. Keys and values are bytes whose forms [`super::rows`] defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Small facts: origin, counters, incarnations, cursor and claim.
    Meta,
    /// Object id (16 bytes) to object row or tombstone.
    Objects,
    /// Parent object id (16 bytes) and name bytes to object id.
    Names,
    /// Sequence number (8 bytes, big-endian) to record.
    Log,
    /// Kernel file handle of a folder to its object id.
    Handles,
    /// Object id to parked row.
    Parked,
    /// Object id of a file whose bytes may be other ones than recorded, to nothing.
    Doubts,
    /// What a disk knows a file by to its object id: at a source that has met a file with several
    /// names.
    Links,
    /// Object id to what a target's disk does not hold of it.
    Lost,
    /// At a target that compares: object id to what the upstream's snapshot has of it.
    Compared,
}

impl Table {
    /// Every table, in a fixed order.
    pub const ALL: [Self; 10] = [
        Self::Meta,
        Self::Objects,
        Self::Names,
        Self::Log,
        Self::Handles,
        Self::Parked,
        Self::Doubts,
        Self::Links,
        Self::Lost,
        Self::Compared,
    ];

    /// Its name in a store, with the version of its row format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta-0",
            Self::Objects => "objects-0",
            Self::Names => "names-0",
            Self::Log => "log-0",
            Self::Handles => "handles-0",
            Self::Parked => "parked-0",
            Self::Doubts => "doubts-0",
            Self::Links => "links-0",
            Self::Lost => "lost-0",
            Self::Compared => "compared-0",
        }
    }
}

/// Why a table operation failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TableError {
    /// The store failed. Nothing of the open transaction counts; the ledger must be reopened.
    #[error("the ledger's store failed: {0}")]
    Store(String),
    /// A row does not decode. The ledger is damaged or of another version.
    #[error("a row of table {table} does not decode")]
    Corrupt {
        /// The table's name.
        table: &'static str,
    },
}

/// An owned key and value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// What [`TablesRead::range`] calls for each row: key and value.
pub type RowFn<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Reading: one consistent view.
pub trait TablesRead {
    /// The value at a key.
    ///
    /// # Errors
    /// [`TableError::Store`], not retryable within the transaction.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError>;

    /// Calls `row` for each entry with `from <= key`, and `key < to` where there is a `to`, in key
    /// order, until it breaks.
    ///
    /// # Errors
    /// [`TableError::Store`], not retryable within the transaction.
    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        row: &mut RowFn<'_>,
    ) -> Result<(), TableError>;

    /// The entry with the highest key.
    ///
    /// # Errors
    /// [`TableError::Store`], not retryable within the transaction.
    fn last(&self, table: Table) -> Result<Option<Entry>, TableError>;
}

/// Reading and writing inside one transaction. What is written is seen by later reads of the same
/// transaction. The driver commits; a durable commit is reported to the machine afterwards.
pub trait Tables: TablesRead {
    /// Inserts or replaces.
    ///
    /// # Errors
    /// [`TableError::Store`], not retryable within the transaction.
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), TableError>;

    /// Removes; nothing happens where there is no such key.
    ///
    /// # Errors
    /// [`TableError::Store`], not retryable within the transaction.
    fn remove(&mut self, table: Table, key: &[u8]) -> Result<(), TableError>;

    /// Removes everything up to a key, and that too.
    ///
    /// # Errors
    /// [`TableError::Store`], not retryable within the transaction.
    fn remove_until(&mut self, table: Table, last: &[u8]) -> Result<(), TableError> {
        let mut keys = Vec::new();
        self.range(table, &[], None, &mut |key, _| {
            if key > last {
                return ControlFlow::Break(());
            }
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        keys.iter().try_for_each(|key| self.remove(table, key))
    }
}
