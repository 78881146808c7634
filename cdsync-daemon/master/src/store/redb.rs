//! The store on redb: one file, readable by its owner alone.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadableTable, TableDefinition, WriteTransaction};

use super::{Collection, Entry, Steps, Store, StoreError, Transaction};

/// Page cache: the whole of a large cluster's rows is some ten megabytes.
const CACHE_BYTES: usize = 16 << 20;

/// A store in one file. Every commit is durable when it returns.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
}

const fn table(collection: Collection) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(collection.name())
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Database(error.to_string())
}

impl RedbStore {
    /// Opens the file, or makes it with mode 0600. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process has it open, else [`StoreError::Database`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let database = FileBackend::new(file).and_then(|file| {
            Builder::new()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(file)
        });
        let database = database.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::Busy,
            other => failed(other),
        })?;
        let store = Self { database };
        // Reading a table that was never written is an error: make them all.
        store.transact(&mut |_| Ok(()))?;
        Ok(store)
    }
}

impl Store for RedbStore {
    fn transact(&self, steps: &mut Steps<'_>) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        for collection in Collection::ALL {
            transaction.open_table(table(collection)).map_err(failed)?;
        }
        let mut open = RedbTransaction { transaction };
        match steps(&mut open) {
            Ok(()) => open.transaction.commit().map_err(failed),
            Err(error) => {
                open.transaction.abort().map_err(failed)?;
                Err(error)
            }
        }
    }
}

struct RedbTransaction {
    transaction: WriteTransaction,
}

impl Transaction for RedbTransaction {
    fn get(&self, collection: Collection, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let table = self
            .transaction
            .open_table(table(collection))
            .map_err(failed)?;
        let value = table.get(key).map_err(failed)?;
        Ok(value.map(|guard| guard.value().to_vec()))
    }

    fn list(&self, collection: Collection) -> Result<Vec<Entry>, StoreError> {
        let table = self
            .transaction
            .open_table(table(collection))
            .map_err(failed)?;
        let rows = table.iter().map_err(failed)?;
        rows.map(|row| {
            let (key, value) = row.map_err(failed)?;
            Ok((key.value().to_vec(), value.value().to_vec()))
        })
        .collect()
    }

    fn put(&mut self, collection: Collection, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut table = self
            .transaction
            .open_table(table(collection))
            .map_err(failed)?;
        table.insert(key, value).map_err(failed)?;
        Ok(())
    }

    fn remove(&mut self, collection: Collection, key: &[u8]) -> Result<(), StoreError> {
        let mut table = self
            .transaction
            .open_table(table(collection))
            .map_err(failed)?;
        table.remove(key).map_err(failed)?;
        Ok(())
    }
}
