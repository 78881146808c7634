//! The store on redb: one file, readable by its owner alone.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cdsync_transport::make_private;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction,
};

use super::{Collection, Entry, Steps, Store, StoreError, Transaction};

/// Page cache: the whole of a large cluster's rows is some ten megabytes.
const CACHE_BYTES: usize = 16 << 20;

type Opener = dyn Fn() -> Result<Database, StoreError> + Send + Sync;

/// A store in one file. Every commit is durable when it returns. After the database failed (a full
/// disk, say), the next transaction opens it again.
pub struct RedbStore {
    open: Box<Opener>,
    /// `None` after a failure: what is in memory may then be ahead of the disk.
    database: Mutex<Option<Database>>,
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").finish_non_exhaustive()
    }
}

const fn table(collection: Collection) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(collection.name())
}

fn failed(error: impl fmt::Display) -> StoreError {
    StoreError::Database(error.to_string())
}

impl RedbStore {
    /// Makes the file with mode 0600, whole and durable before it has its name; what was there
    /// goes. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Database`]; retryable.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        make_private(path, |file| {
            let database = open_on(FileBackend::new(file).map_err(not_opened)?)?;
            make_tables(&database)
        })?;
        Self::open(path)
    }

    /// Opens the file, which must be there: a folder whose disk is not mounted is no empty store.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process has it open, else [`StoreError::Database`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::with(move || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|error| failed(format!("{}: {error}", path.display())))?;
            open_on(FileBackend::new(file).map_err(not_opened)?)
        })
    }

    fn with(
        open: impl Fn() -> Result<Database, StoreError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let database = open()?;
        make_tables(&database)?;
        Ok(Self {
            open: Box::new(open),
            database: Mutex::new(Some(database)),
        })
    }
}

/// Reading a table that was never written is an error: makes them all.
fn make_tables(database: &Database) -> Result<(), StoreError> {
    transact(database, &mut |_| Ok(()))
}

fn open_on(backend: impl StorageBackend) -> Result<Database, StoreError> {
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(not_opened)
}

fn not_opened(error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Busy,
        other => failed(other),
    }
}

impl Store for RedbStore {
    fn transact(&self, steps: &mut Steps<'_>) -> Result<(), StoreError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match &mut *database {
            Some(open) => open,
            none => none.insert((self.open)()?),
        };
        let result = transact(open, steps);
        if matches!(result, Err(StoreError::Database(_))) {
            *database = None;
        }
        result
    }
}

fn transact(database: &Database, steps: &mut Steps<'_>) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use cdsync_tests::{PowerDisk, Random, seed, survivors};

    use super::*;

    fn open(disk: &PowerDisk) -> Result<RedbStore, StoreError> {
        let disk = disk.clone();
        RedbStore::with(move || open_on(disk.clone()))
    }

    fn put(store: &RedbStore, number: u64) -> Result<(), StoreError> {
        let key = number.to_be_bytes();
        store.transact(&mut |tx| {
            tx.put(Collection::Jobs, &key, b"job")?;
            tx.put(Collection::Meta, b"last", &key)
        })
    }

    /// The number of the last transaction; all before it must be there too.
    fn last(store: &RedbStore) -> u64 {
        let mut last = 0;
        let mut read = |tx: &mut dyn Transaction| {
            let value = tx.get(Collection::Meta, b"last")?;
            last = value.map_or(0, |value| u64::from_be_bytes(value.try_into().unwrap()));
            let jobs = tx.list(Collection::Jobs)?.len() as u64;
            assert_eq!(jobs, last, "half a transaction");
            Ok(())
        };
        store.transact(&mut read).unwrap();
        last
    }

    /// Proves that after a power cut at any sync, with any part of what was not synced lost, the
    /// master's store opens and holds every transaction that had returned, none of them in part.
    #[test]
    fn a_power_cut_loses_nothing_that_returned() {
        let mut random = Random::new(seed());
        let disk = PowerDisk::default();
        let store = open(&disk).unwrap();
        let mut returned = vec![disk.now()];
        for number in 1..=40 {
            put(&store, number).unwrap();
            returned.push(disk.now());
        }
        for moment in disk.moments() {
            let Some(least) = returned.iter().rposition(|end| *end <= moment) else {
                continue;
            };
            for _ in 0..3 {
                let image = disk.image(moment, &mut survivors(&mut random));
                let found = last(&open(&PowerDisk::holding(image)).unwrap());
                let least = least as u64;
                assert!((least..=least + 1).contains(&found), "{found}, not {least}");
            }
        }
    }

    /// Proves that a transaction on a disk that fails says so, and that the next one works as soon
    /// as the disk is well, without a restart.
    #[test]
    fn a_disk_that_is_well_again_is_used_again() {
        let disk = PowerDisk::default();
        let store = open(&disk).unwrap();
        for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
            let before = last(&store);
            put(&store, before + 1).unwrap();
            disk.fail(Some(kind));
            for _ in 0..3 {
                assert!(matches!(
                    put(&store, before + 2),
                    Err(StoreError::Database(_))
                ));
            }
            disk.fail(None);
            assert_eq!(last(&store), before + 1);
        }
    }
}
