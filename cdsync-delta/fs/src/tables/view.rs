//! The tables as one transaction sees them.

use std::cell::OnceCell;
use std::fmt;
use std::ops::Bound;

use cdsync_core::ledger::tables::{RowFn, Table, TableError, Tables, TablesRead};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, WriteTransaction};

use super::{LedgerStore, definition};

type Bytes = &'static [u8];
type Pair = (Vec<u8>, Vec<u8>);

fn get_from(
    table: &impl ReadableTable<Bytes, Bytes>,
    key: &[u8],
) -> Result<Option<Vec<u8>>, redb::StorageError> {
    Ok(table.get(key)?.map(|value| value.value().to_vec()))
}

fn range_of(
    table: &impl ReadableTable<Bytes, Bytes>,
    from: &[u8],
    to: Option<&[u8]>,
    row: &mut RowFn<'_>,
) -> Result<(), redb::StorageError> {
    if to.is_some_and(|to| to <= from) {
        return Ok(());
    }
    let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (
        Bound::Included(from),
        to.map_or(Bound::Unbounded, Bound::Excluded),
    );
    for entry in table.range::<&[u8]>(bounds)? {
        let (key, value) = entry?;
        if row(key.value(), value.value()).is_break() {
            break;
        }
    }
    Ok(())
}

fn last_of(table: &impl ReadableTable<Bytes, Bytes>) -> Result<Option<Pair>, redb::StorageError> {
    Ok(table
        .last()?
        .map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
}

/// A consistent view of a ledger's tables. Readers never wait for writers.
pub struct ReadView {
    tables: [ReadOnlyTable<Bytes, Bytes>; Table::ALL.len()],
}

impl fmt::Debug for ReadView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadView").finish_non_exhaustive()
    }
}

impl ReadView {
    pub(super) fn open(database: &Database) -> Result<Self, redb::Error> {
        let transaction = database.begin_read()?;
        let [a, b, c, d, e, f] = Table::ALL;
        let open = |table| transaction.open_table(definition(table));
        Ok(Self {
            tables: [open(a)?, open(b)?, open(c)?, open(d)?, open(e)?, open(f)?],
        })
    }

    fn table(&self, table: Table) -> &ReadOnlyTable<Bytes, Bytes> {
        &self.tables[position(table)]
    }
}

fn position(table: Table) -> usize {
    // The order of `Table::ALL`, which a test compares.
    match table {
        Table::Meta => 0,
        Table::Objects => 1,
        Table::Names => 2,
        Table::Log => 3,
        Table::Handles => 4,
        Table::Parked => 5,
    }
}

fn failed(error: &redb::StorageError) -> TableError {
    TableError::Store(error.to_string())
}

impl TablesRead for ReadView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        get_from(self.table(table), key).map_err(|e| failed(&e))
    }

    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        row: &mut RowFn<'_>,
    ) -> Result<(), TableError> {
        range_of(self.table(table), from, to, row).map_err(|e| failed(&e))
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, TableError> {
        last_of(self.table(table)).map_err(|e| failed(&e))
    }
}

type OpenTable<'txn> = redb::Table<'txn, Bytes, Bytes>;

/// The tables inside a write transaction, each opened when it is first used: opening all six would
/// be most of the cost of a small transaction.
pub(super) struct WriteView<'store, 'txn> {
    store: &'store LedgerStore,
    transaction: &'txn WriteTransaction,
    tables: [OnceCell<OpenTable<'txn>>; Table::ALL.len()],
}

impl<'store, 'txn> WriteView<'store, 'txn> {
    pub(super) fn new(store: &'store LedgerStore, transaction: &'txn WriteTransaction) -> Self {
        Self {
            store,
            transaction,
            tables: Default::default(),
        }
    }

    fn fail(&self, error: &dyn std::error::Error) -> TableError {
        self.store.fail(error).into()
    }

    fn table(&self, table: Table) -> Result<&OpenTable<'txn>, TableError> {
        let cell = &self.tables[position(table)];
        if cell.get().is_none() {
            let opened = self.transaction.open_table(definition(table));
            let opened = opened.map_err(|error| self.fail(&error))?;
            // It was empty a moment ago and nobody else has this cell.
            let _ = cell.set(opened);
        }
        cell.get()
            .ok_or_else(|| TableError::Store("a table did not open".to_owned()))
    }

    fn table_mut(&mut self, table: Table) -> Result<&mut OpenTable<'txn>, TableError> {
        self.table(table)?;
        self.tables[position(table)]
            .get_mut()
            .ok_or_else(|| TableError::Store("a table did not open".to_owned()))
    }
}

impl TablesRead for WriteView<'_, '_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        get_from(self.table(table)?, key).map_err(|error| self.fail(&error))
    }

    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        row: &mut RowFn<'_>,
    ) -> Result<(), TableError> {
        range_of(self.table(table)?, from, to, row).map_err(|error| self.fail(&error))
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, TableError> {
        last_of(self.table(table)?).map_err(|error| self.fail(&error))
    }
}

impl Tables for WriteView<'_, '_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let done = self.table_mut(table)?.insert(key, value).map(drop);
        done.map_err(|error| self.fail(&error))
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<(), TableError> {
        let done = self.table_mut(table)?.remove(key).map(drop);
        done.map_err(|error| self.fail(&error))
    }
}
