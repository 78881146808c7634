//! The store in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Collection, Entry, Steps, Store, StoreError, Transaction};

type Rows = BTreeMap<(Collection, Vec<u8>), Vec<u8>>;

/// A store that forgets everything when it is dropped.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: Mutex<Rows>,
}

impl Store for MemoryStore {
    fn transact(&self, steps: &mut Steps<'_>) -> Result<(), StoreError> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = MemoryTransaction { rows: rows.clone() };
        steps(&mut changed)?;
        *rows = changed.rows;
        Ok(())
    }
}

struct MemoryTransaction {
    rows: Rows,
}

impl Transaction for MemoryTransaction {
    fn get(&self, collection: Collection, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.get(&(collection, key.to_vec())).cloned())
    }

    fn list(&self, collection: Collection) -> Result<Vec<Entry>, StoreError> {
        let rows = self.rows.range((collection, Vec::new())..);
        let rows = rows.take_while(|((of, _), _)| *of == collection);
        Ok(rows
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn put(&mut self, collection: Collection, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.rows.insert((collection, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn remove(&mut self, collection: Collection, key: &[u8]) -> Result<(), StoreError> {
        self.rows.remove(&(collection, key.to_vec()));
        Ok(())
    }
}
