//! Where the master keeps what must outlive it: small collections of bytes under keys, changed by
//! transactions. The trait names no type of any database.

mod memory;
mod redb;
pub(crate) mod rows;

pub use self::redb::RedbStore;
pub use memory::MemoryStore;

use thiserror::Error;

/// A collection, with the version of its rows' format in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collection {
    /// Small facts about the master itself.
    Meta,
    /// Server id (8 bytes, big-endian) to server.
    Servers,
    /// Job id (8 bytes, big-endian) to job.
    Jobs,
    /// Hash of a join secret to what it allows.
    Tokens,
    /// Server id (8 bytes, big-endian) of those that were removed.
    Revoked,
    /// Name of a manager to the hash of its token.
    Managers,
}

impl Collection {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Meta,
        Self::Servers,
        Self::Jobs,
        Self::Tokens,
        Self::Revoked,
        Self::Managers,
    ];

    /// Its name in a store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta-0",
            Self::Servers => "servers-0",
            Self::Jobs => "jobs-0",
            Self::Tokens => "tokens-0",
            Self::Revoked => "revoked-0",
            Self::Managers => "managers-0",
        }
    }
}

/// Why the store did not do it. Nothing of the transaction counts.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database failed; retryable after it was opened again.
    #[error("the master's store failed: {0}")]
    Database(String),
    /// The file could not be made; retryable.
    #[error("the master's store cannot be made: {0}")]
    Make(#[from] std::io::Error),
    /// Another process has it open; retryable once that one ended.
    #[error("another process has the master's store open; next: stop the other cdsync master run")]
    Busy,
    /// A row does not decode; not retryable.
    #[error("a row of {collection} does not decode: {detail}")]
    Corrupt {
        /// The collection.
        collection: &'static str,
        /// What is wrong.
        detail: String,
    },
}

/// A row: its key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// What [`Store::transact`] runs.
pub type Steps<'a> = dyn FnMut(&mut dyn Transaction) -> Result<(), StoreError> + 'a;

/// One transaction: it sees its own writes, and nobody sees them before it is committed.
pub trait Transaction {
    /// The value at a key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get(&self, collection: Collection, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Every row, in the order of keys.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self, collection: Collection) -> Result<Vec<Entry>, StoreError>;

    /// Inserts or replaces.
    ///
    /// # Errors
    /// [`StoreError`].
    fn put(&mut self, collection: Collection, key: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// Removes; nothing happens where there is no such key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn remove(&mut self, collection: Collection, key: &[u8]) -> Result<(), StoreError>;
}

/// A transactional store. Its calls block.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Runs the steps in one transaction, alone. When it returns `Ok`, everything is durable; when
    /// the steps or the commit fail, nothing happened.
    ///
    /// # Errors
    /// What the steps returned, or [`StoreError::Database`].
    fn transact(&self, steps: &mut Steps<'_>) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exercise(store: &dyn Store) {
        store
            .transact(&mut |tx| {
                tx.put(Collection::Jobs, b"b", b"2")?;
                tx.put(Collection::Jobs, b"a", b"1")?;
                assert_eq!(tx.get(Collection::Jobs, b"a")?, Some(b"1".to_vec()));
                Ok(())
            })
            .unwrap();
        let failed = store.transact(&mut |tx| {
            tx.remove(Collection::Jobs, b"a")?;
            tx.put(Collection::Servers, b"a", b"1")?;
            Err(StoreError::Busy)
        });
        assert!(matches!(failed, Err(StoreError::Busy)));
        store
            .transact(&mut |tx| {
                let rows = tx.list(Collection::Jobs)?;
                let expected = [
                    (b"a".to_vec(), b"1".to_vec()),
                    (b"b".to_vec(), b"2".to_vec()),
                ];
                assert_eq!(rows, expected);
                assert!(tx.list(Collection::Servers)?.is_empty());
                Ok(())
            })
            .unwrap();
    }

    /// Proves that both stores are transactional alike: all of a transaction or nothing of it.
    #[test]
    fn transactions_are_atomic() {
        exercise(&MemoryStore::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.redb");
        exercise(&RedbStore::create(&path).unwrap());
        exercise_again(&path);
    }

    /// Proves that only `create` makes a store: where its disk is not mounted, none is made that
    /// would be taken for an empty one; and that what a crash left of one being made is replaced.
    #[test]
    fn a_store_is_made_only_when_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.redb");
        std::fs::write(path.with_extension("new"), b"half of one").unwrap();
        assert!(RedbStore::open(&path).is_err());
        assert!(!path.exists());
        drop(RedbStore::create(&path).unwrap());
        RedbStore::open(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// What was committed is there after the store was opened again, and the file is the owner's.
    fn exercise_again(path: &std::path::Path) {
        use std::os::unix::fs::PermissionsExt;
        let store = RedbStore::open(path).unwrap();
        store
            .transact(&mut |tx| {
                assert_eq!(tx.get(Collection::Jobs, b"b")?, Some(b"2".to_vec()));
                Ok(())
            })
            .unwrap();
        assert!(matches!(RedbStore::open(path), Err(StoreError::Busy)));
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
