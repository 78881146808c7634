//! The ledger's tables on redb.
//!
//! One file per job and root. A write is one redb transaction; how durable it is, is said for each.
//! Measured with a cache of 8 MiB on ext4: a small lazy transaction (5 rows in 3 tables) takes about
//! 55 microseconds, a durable one what the disk takes for its sync besides.

mod file;
#[cfg(test)]
mod power;
pub(crate) mod run;
#[cfg(test)]
mod size;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use cdsync_core::ledger::tables::{Table, TableError, Tables};
use redb::backends::FileBackend;
use redb::{Database, StorageBackend, TableDefinition};
use thiserror::Error;

pub use view::ReadView;
use view::WriteView;

/// How much a commit promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Seen by later transactions; survives the process only once a durable commit followed.
    Lazy,
    /// On the disk when the call returns, with everything committed before.
    Durable,
}

/// Why the store cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open. Retryable.
    #[error("the ledger's store '{path}' is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, or is damaged. Retryable once its cause is gone.
    #[error("the ledger's store '{path}' cannot be opened: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb or the system said.
        reason: String,
    },
    /// It was not there when somebody looked, and is: its disk came back in between. Retryable.
    #[error("the ledger's store '{path}' came while it was opened")]
    Unsteady {
        /// The file.
        path: PathBuf,
    },
    /// An operation failed now. The store refuses work until it is opened anew.
    #[error("the ledger's store '{path}' failed: {reason}")]
    Failed {
        /// The file.
        path: PathBuf,
        /// What redb said.
        reason: String,
    },
    /// An earlier operation had failed; open the store anew.
    #[error("the ledger's store '{path}' failed before and must be opened anew")]
    Refused {
        /// The file.
        path: PathBuf,
    },
}

impl StoreError {
    fn not_opened(path: &Path, error: &redb::Error) -> Self {
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse { path },
            error => Self::Open {
                path,
                reason: error.to_string(),
            },
        }
    }
}

impl From<StoreError> for TableError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

fn definition(table: Table) -> Definition {
    TableDefinition::new(table.name())
}

/// The store of one ledger.
pub struct LedgerStore {
    database: Database,
    path: PathBuf,
    /// Set by the first storage error: what is in memory may then be ahead of the disk.
    failed: AtomicBool,
}

impl fmt::Debug for LedgerStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl LedgerStore {
    /// Whether there is a store at `path`.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the disk does not say.
    pub fn is_there(path: &Path) -> Result<bool, StoreError> {
        file::is_there(path).map_err(|error| StoreError::not_opened(path, &error.into()))
    }

    /// As [`LedgerStore::open`], but only as what it was when somebody looked: `known`, or one to be
    /// made. What is true of a root whose ledger is there is wrong of one without.
    ///
    /// # Errors
    /// As [`LedgerStore::open`], and [`StoreError::Unsteady`].
    pub fn open_as(known: bool, path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        if known {
            let failed = |error: io::Error| StoreError::not_opened(path, &error.into());
            let file = file::open(path).map_err(failed)?;
            return Self::open_file(path, file, cache_bytes);
        }
        match Self::open_or_make(path, cache_bytes)? {
            (store, true) => Ok(store),
            (_, false) => Err(StoreError::Unsteady {
                path: path.to_owned(),
            }),
        }
    }

    /// Opens the store at `path`, or makes it, readable and writable for its owner alone: whole and
    /// durable before it has its name. `cache_bytes` bounds redb's cache. After a crash the file is
    /// repaired first, which reads all of it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] and [`StoreError::Open`].
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        Self::open_or_make(path, cache_bytes).map(|(store, _)| store)
    }

    /// Tells besides whether it was made.
    fn open_or_make(path: &Path, cache_bytes: usize) -> Result<(Self, bool), StoreError> {
        let failed = |error: io::Error| StoreError::not_opened(path, &error.into());
        let (file, made) = file::open_or_make(path).map_err(failed)?;
        let store = Self::open_file(path, file, cache_bytes)?;
        let was_made = made.is_some();
        if let Some(made) = made {
            made.name().map_err(failed)?;
        }
        Ok((store, was_made))
    }

    fn open_file(path: &Path, file: File, cache_bytes: usize) -> Result<Self, StoreError> {
        let backend = FileBackend::new(file);
        let backend = backend.map_err(|error| StoreError::not_opened(path, &error.into()))?;
        Self::open_on(path, backend, cache_bytes)
    }

    /// As [`LedgerStore::open`], on whatever keeps its bytes.
    fn open_on(
        path: &Path,
        backend: impl StorageBackend,
        cache_bytes: usize,
    ) -> Result<Self, StoreError> {
        let failed = |error| StoreError::not_opened(path, &error);
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create_with_backend(backend)
            .map_err(|error| failed(error.into()))?;
        let store = Self {
            database,
            path: path.to_owned(),
            failed: AtomicBool::new(false),
        };
        // Every table exists from now on, so that readers find them.
        let create = || -> Result<(), redb::Error> {
            let transaction = store.database.begin_write()?;
            for table in Table::ALL {
                transaction.open_table(definition(table))?;
            }
            Ok(transaction.commit()?)
        };
        create().map_err(failed)?;
        Ok(store)
    }

    /// Runs `work` in one transaction. It counts only if `work` succeeds; writers wait for each
    /// other.
    ///
    /// # Errors
    /// What `work` returned, with nothing changed; or the store's own failure, after which the
    /// store must be opened anew (with [`Durability::Durable`] it is then unknown whether the
    /// transaction survives a crash).
    pub fn write<R, E: From<TableError>>(
        &self,
        durability: Durability,
        work: impl FnOnce(&mut dyn Tables) -> Result<R, E>,
    ) -> Result<R, E> {
        let store = |error: StoreError| E::from(TableError::from(error));
        self.check().map_err(store)?;
        let mut transaction = self
            .database
            .begin_write()
            .map_err(|error| store(self.fail(&error)))?;
        let level = match durability {
            Durability::Lazy => redb::Durability::None,
            Durability::Durable => redb::Durability::Immediate,
        };
        transaction
            .set_durability(level)
            .map_err(|error| store(self.fail(&error)))?;
        let mut view = WriteView::new(self, &transaction);
        let result = work(&mut view);
        let result = result.and_then(|value| view.finish().map(|()| value).map_err(E::from));
        // A table operation that failed inside poisons the store even if `work` swallowed it.
        let result = result.and_then(|value| self.check().map_err(store).map(|()| value));
        match result {
            Ok(value) => {
                transaction
                    .commit()
                    .map_err(|error| store(self.fail(&error)))?;
                Ok(value)
            }
            Err(error) => {
                if let Err(abort) = transaction.abort() {
                    return Err(store(self.fail(&abort)));
                }
                Err(error)
            }
        }
    }

    /// A consistent view of everything committed so far. While it lives, the space that later
    /// writes free is not used again: keep it short.
    ///
    /// # Errors
    /// [`StoreError::Refused`] and [`StoreError::Failed`].
    pub fn read(&self) -> Result<ReadView, StoreError> {
        self.check()?;
        ReadView::open(&self.database).map_err(|error| self.fail(&error))
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(StoreError::Refused {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    fn fail(&self, error: &dyn std::error::Error) -> StoreError {
        self.failed.store(true, Ordering::Release);
        tracing::error!(path = %self.path.display(), %error, "the ledger's store failed");
        StoreError::Failed {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}
