//! The tables as one transaction sees them.

use std::cell::OnceCell;
use std::fmt;
use std::ops::{Bound, ControlFlow};

use cdsync_core::ledger::tables::{RowFn, Table, TableError, Tables, TablesRead};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, WriteTransaction};

use super::run::{Run, rows};
use super::{LedgerStore, definition};

type Bytes = &'static [u8];
type Pair = (Vec<u8>, Vec<u8>);

/// Why a table could not be read.
enum ReadError {
    Store(redb::StorageError),
    Row(TableError),
}

impl From<redb::StorageError> for ReadError {
    fn from(error: redb::StorageError) -> Self {
        Self::Store(error)
    }
}

impl From<TableError> for ReadError {
    fn from(error: TableError) -> Self {
        Self::Row(error)
    }
}

/// The table whose rows are kept in runs.
const IN_RUNS: Table = Table::Log;

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

/// The run that has a key if any has it, with the key under which it is stored.
fn run_at(
    table: &impl ReadableTable<Bytes, Bytes>,
    key: &[u8],
) -> Result<Option<Pair>, redb::StorageError> {
    let found = table.range::<&[u8]>(key..)?.next().transpose()?;
    Ok(found.map(|(key, run)| (key.value().to_vec(), run.value().to_vec())))
}

/// The value at a key of [`IN_RUNS`].
fn get_in_runs(view: &dyn TablesRead, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
    let mut found = None;
    view.range(IN_RUNS, key, None, &mut |at, value| {
        found = (at == key).then(|| value.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Returns whether `row` broke, or the end was reached.
fn range_in_runs(
    table: &impl ReadableTable<Bytes, Bytes>,
    from: &[u8],
    to: Option<&[u8]>,
    row: &mut RowFn<'_>,
) -> Result<bool, ReadError> {
    for entry in table.range::<&[u8]>(from..)? {
        let (_, run) = entry?;
        if range_in_run(run.value(), from, to, row)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn range_in_run(
    run: &[u8],
    from: &[u8],
    to: Option<&[u8]>,
    row: &mut RowFn<'_>,
) -> Result<bool, TableError> {
    for entry in rows(run) {
        let (key, value) = entry?;
        if key < from {
            continue;
        }
        if to.is_some_and(|to| key >= to) || row(key, value).is_break() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn last_in_runs(table: &impl ReadableTable<Bytes, Bytes>) -> Result<Option<Pair>, ReadError> {
    let Some((_, run)) = table.last()? else {
        return Ok(None);
    };
    let mut last = None;
    for row in rows(run.value()) {
        last = Some(row?);
    }
    Ok(last.map(|(key, value)| (key.to_vec(), value.to_vec())))
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
        let [a, b, c, d, e, f, g, h, i, j] = Table::ALL;
        let open = |table| transaction.open_table(definition(table));
        Ok(Self {
            tables: [
                open(a)?,
                open(b)?,
                open(c)?,
                open(d)?,
                open(e)?,
                open(f)?,
                open(g)?,
                open(h)?,
                open(i)?,
                open(j)?,
            ],
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
        Table::Doubts => 6,
        Table::Links => 7,
        Table::Lost => 8,
        Table::Compared => 9,
    }
}

fn failed(error: ReadError) -> TableError {
    match error {
        ReadError::Store(error) => TableError::Store(error.to_string()),
        ReadError::Row(error) => error,
    }
}

impl TablesRead for ReadView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        if table == IN_RUNS {
            get_in_runs(self, key)
        } else {
            get_from(self.table(table), key).map_err(|e| failed(e.into()))
        }
    }

    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        row: &mut RowFn<'_>,
    ) -> Result<(), TableError> {
        let rows = self.table(table);
        if table == IN_RUNS {
            range_in_runs(rows, from, to, row).map(drop).map_err(failed)
        } else {
            range_of(rows, from, to, row).map_err(|e| failed(e.into()))
        }
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, TableError> {
        let rows = self.table(table);
        if table == IN_RUNS {
            last_in_runs(rows).map_err(failed)
        } else {
            last_of(rows).map_err(|e| failed(e.into()))
        }
    }
}

type OpenTable<'txn> = redb::Table<'txn, Bytes, Bytes>;

/// The tables inside a write transaction, each opened when it is first used: opening all six would
/// be most of the cost of a small transaction.
pub(super) struct WriteView<'store, 'txn> {
    store: &'store LedgerStore,
    transaction: &'txn WriteTransaction,
    tables: [OnceCell<OpenTable<'txn>>; Table::ALL.len()],
    /// What was appended to [`IN_RUNS`] and is not in the store yet: behind everything there.
    run: Run,
}

impl<'store, 'txn> WriteView<'store, 'txn> {
    pub(super) fn new(store: &'store LedgerStore, transaction: &'txn WriteTransaction) -> Self {
        Self {
            store,
            transaction,
            tables: Default::default(),
            run: Run::default(),
        }
    }

    /// Gives the store what was gathered; nothing counts before.
    pub(super) fn finish(mut self) -> Result<(), TableError> {
        self.end_run()
    }

    fn fail(&self, error: &dyn std::error::Error) -> TableError {
        self.store.fail(error).into()
    }

    fn read_failed(&self, error: ReadError) -> TableError {
        match error {
            ReadError::Store(error) => self.fail(&error),
            ReadError::Row(error) => error,
        }
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

impl WriteView<'_, '_> {
    fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let done = self.table_mut(table)?.insert(key, value).map(drop);
        done.map_err(|error| self.fail(&error))
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), TableError> {
        let done = self.table_mut(table)?.remove(key).map(drop);
        done.map_err(|error| self.fail(&error))
    }

    /// Stores the run being gathered, and begins the next.
    fn end_run(&mut self) -> Result<(), TableError> {
        let mut run = std::mem::take(&mut self.run);
        if let Some((key, _)) = run.last() {
            self.insert(IN_RUNS, key, run.bytes())?;
        }
        run.clear();
        self.run = run;
        Ok(())
    }

    /// Adds a row behind all others to the run being gathered.
    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        if !self.run.has_room(key, value) {
            self.end_run()?;
        }
        self.run.push(key, value)
    }

    fn put_in_runs(&mut self, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let is_behind = match self.run.last() {
            Some((last, _)) => key > last,
            None => self.last(IN_RUNS)?.is_none_or(|(last, _)| key > &last[..]),
        };
        if is_behind {
            self.append(key, value)
        } else {
            self.edit_run(key, Some(value))
        }
    }

    /// Puts or removes a row in the midst: the run that it is in is written anew.
    fn edit_run(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), TableError> {
        self.end_run()?;
        let found = run_at(self.table(IN_RUNS)?, key).map_err(|error| self.fail(&error))?;
        let Some((stored, run)) = found else {
            return Ok(());
        };
        self.delete(IN_RUNS, &stored)?;
        let mut value = value;
        for row in rows(&run) {
            let (at, old) = row?;
            if at >= key
                && let Some(value) = value.take()
            {
                self.append(key, value)?;
            }
            if at != key {
                self.append(at, old)?;
            }
        }
        self.end_run()
    }
}

impl WriteView<'_, '_> {
    /// Drops the rows up to a key: whole runs, and the first part of one.
    fn drop_runs(&mut self, last: &[u8]) -> Result<(), TableError> {
        self.end_run()?;
        let done = self
            .table_mut(IN_RUNS)?
            .retain_in::<&[u8], _>(..=last, |_, _| false);
        done.map_err(|error| self.fail(&error))?;
        let first = run_at(self.table(IN_RUNS)?, last).map_err(|error| self.fail(&error))?;
        let Some((stored, run)) = first else {
            return Ok(());
        };
        let mut rest = Run::default();
        for row in rows(&run) {
            let (key, value) = row?;
            if key > last {
                rest.push(key, value)?;
            }
        }
        if rest.bytes().len() < run.len() {
            self.insert(IN_RUNS, &stored, rest.bytes())?;
        }
        Ok(())
    }
}

impl TablesRead for WriteView<'_, '_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        if table == IN_RUNS {
            return get_in_runs(self, key);
        }
        get_from(self.table(table)?, key).map_err(|error| self.fail(&error))
    }

    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        row: &mut RowFn<'_>,
    ) -> Result<(), TableError> {
        let stored = self.table(table)?;
        if table != IN_RUNS {
            return range_of(stored, from, to, row).map_err(|error| self.fail(&error));
        }
        let ended = range_in_runs(stored, from, to, row);
        if !ended.map_err(|error| self.read_failed(error))? {
            range_in_run(self.run.bytes(), from, to, row)?;
        }
        Ok(())
    }

    fn last(&self, table: Table) -> Result<Option<Pair>, TableError> {
        let stored = self.table(table)?;
        if table != IN_RUNS {
            return last_of(stored).map_err(|error| self.fail(&error));
        }
        if let Some((key, value)) = self.run.last() {
            return Ok(Some((key.to_vec(), value.to_vec())));
        }
        last_in_runs(stored).map_err(|error| self.read_failed(error))
    }
}

impl Tables for WriteView<'_, '_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        if table == IN_RUNS {
            self.put_in_runs(key, value)
        } else {
            self.insert(table, key, value)
        }
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<(), TableError> {
        if table == IN_RUNS {
            self.edit_run(key, None)
        } else {
            self.delete(table, key)
        }
    }

    fn remove_until(&mut self, table: Table, last: &[u8]) -> Result<(), TableError> {
        if table == IN_RUNS {
            return self.drop_runs(last);
        }
        let done = self
            .table_mut(table)?
            .retain_in::<&[u8], _>(..=last, |_, _| false);
        done.map_err(|error| self.fail(&error))
    }
}
