//! The newest orders: verified, kept durably, obeyed also while the master is away.

use std::path::PathBuf;
use std::{fs, io};

use cdsync_core::ids::ServerId;
use cdsync_core::orders::{Obedience, OrdersRefused};
use cdsync_core::wire::{Orders, SignError, Signed, VerifyingKey, decode, encode};
use cdsync_transport::write_private;
use thiserror::Error;

/// The largest file of orders.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Why orders are not taken.
#[derive(Debug, Error)]
pub(crate) enum OrdersError {
    /// Not retryable with the same orders.
    #[error(transparent)]
    Refused(#[from] OrdersRefused),
    /// They could not be kept; they are not obeyed, so that a restart obeys the same ones.
    /// Retryable.
    #[error("orders cannot be kept: {0}")]
    Keep(#[from] io::Error),
}

/// Keeps the newest orders.
#[derive(Debug)]
pub(crate) struct OrdersKeeper {
    file: PathBuf,
    obedience: Obedience,
}

impl OrdersKeeper {
    /// Opens what was kept. A file that does not verify counts as none, and is told of.
    pub(crate) fn open(file: PathBuf, key: VerifyingKey, server: ServerId, cluster: u64) -> Self {
        let mut keeper = Self {
            file,
            obedience: Obedience::new(key, server, cluster),
        };
        match keeper.load() {
            Ok(Some(orders)) => {
                keeper.obedience.obey(orders);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the kept orders are not usable"),
        }
        keeper
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the agent's own data, which nobody else may write to"
    )]
    fn load(&self) -> Result<Option<Orders>, OrdersError> {
        match fs::metadata(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(meta) if meta.len() > FILE_MAX_BYTES => {
                return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
            }
            Ok(_) => {}
        }
        let signed: Signed = decode(&fs::read(&self.file)?)
            .map_err(|error| OrdersRefused::from(SignError::from(error)))?;
        Ok(Some(self.obedience.verify(&signed)?))
    }

    pub(crate) fn current(&self) -> Option<&Orders> {
        self.obedience.current()
    }

    /// Takes orders, durably, if they are newer, or the same plan with a fresh lease.
    ///
    /// # Errors
    /// [`OrdersError`].
    pub(crate) fn take(&mut self, signed: &Signed) -> Result<&Orders, OrdersError> {
        let orders = self.obedience.judge(signed)?;
        self.keep(signed)?;
        Ok(self.obedience.obey(orders))
    }

    fn keep(&self, signed: &Signed) -> io::Result<()> {
        write_private(&self.file, &encode(signed))
    }
}
