//! Tables in memory, with transactions that a crash can take back.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use crate::ledger::tables::{Entry, RowFn, Table, TableError, Tables, TablesRead};

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Seen by later transactions, lost by a crash before the next durable commit.
    Lazy,
    /// Survives a crash, and so does everything committed before.
    Durable,
}

/// Tables in memory. Changes are made in place; what they replaced is kept until it is durable.
#[derive(Debug, Clone, Default)]
pub struct MemTables {
    rows: BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// What was there before each change since the last durable commit.
    undo: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
    /// How much of it is committed lazily.
    committed: usize,
    changes: u64,
}

impl MemTables {
    /// Ends the open transaction.
    pub fn commit(&mut self, durability: Durability) {
        if durability == Durability::Durable {
            self.undo.clear();
        }
        self.committed = self.undo.len();
    }

    /// Drops the open transaction.
    pub fn abort(&mut self) {
        self.roll_back(self.committed);
    }

    /// Loses everything since the last durable commit.
    pub fn crash(&mut self) {
        self.roll_back(0);
    }

    /// How often anything was changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether a crash now would lose nothing.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.undo.is_empty()
    }

    /// How many rows a table has.
    #[must_use]
    pub fn len(&self, table: Table) -> usize {
        self.rows.get(&table).map_or(0, BTreeMap::len)
    }

    /// Whether a table has no rows.
    #[must_use]
    pub fn is_empty(&self, table: Table) -> bool {
        self.len(table) == 0
    }

    fn roll_back(&mut self, to: usize) {
        self.changes += 1;
        for (table, key, old) in self.undo.drain(to..).rev() {
            let rows = self.rows.entry(table).or_default();
            match old {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        self.committed = self.committed.min(to);
    }
}

impl TablesRead for MemTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        Ok(self
            .rows
            .get(&table)
            .and_then(|rows| rows.get(key))
            .cloned())
    }

    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        row: &mut RowFn<'_>,
    ) -> Result<(), TableError> {
        let Some(rows) = self.rows.get(&table) else {
            return Ok(());
        };
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        if matches!(to, Bound::Excluded(end) if end <= from) {
            return Ok(());
        }
        for (key, value) in rows.range::<[u8], _>((Bound::Included(from), to)) {
            if let ControlFlow::Break(()) = row(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, table: Table) -> Result<Option<Entry>, TableError> {
        let last = self.rows.get(&table).and_then(BTreeMap::last_key_value);
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }
}

impl Tables for MemTables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        let rows = self.rows.entry(table).or_default();
        let old = rows.insert(key.to_vec(), value.to_vec());
        self.undo.push((table, key.to_vec(), old));
        self.changes += 1;
        Ok(())
    }

    fn remove(&mut self, table: Table, key: &[u8]) -> Result<(), TableError> {
        if let Some(old) = self.rows.get_mut(&table).and_then(|rows| rows.remove(key)) {
            self.undo.push((table, key.to_vec(), Some(old)));
            self.changes += 1;
        }
        Ok(())
    }
}
