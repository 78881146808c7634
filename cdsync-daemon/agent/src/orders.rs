//! The newest orders: verified, kept durably, obeyed also while the master is away.

use std::path::PathBuf;
use std::{fs, io};

use cdsync_core::ids::ServerId;
use cdsync_core::wire::{Epoch, Orders, SignError, Signed, VerifyingKey, decode, encode};
use cdsync_transport::write_private;
use thiserror::Error;

/// The largest file of orders.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Why orders are refused. None is retryable with the same orders.
#[derive(Debug, Error)]
pub(crate) enum OrdersError {
    /// Not signed by this cluster's master, or malformed.
    #[error("orders are refused: {0}")]
    Signature(#[from] SignError),
    /// For another server or cluster.
    #[error("orders are refused: they are for another server or cluster")]
    NotMine,
    /// Older than what is obeyed.
    #[error("orders of epoch {got} are refused: epoch {obeyed} is obeyed")]
    Old {
        /// What is obeyed.
        obeyed: Epoch,
        /// What came.
        got: Epoch,
    },
    /// Of the same term, but from another master.
    #[error("orders of term {term} are refused: another master instance gave orders in that term")]
    OtherMaster {
        /// The term.
        term: u64,
    },
    /// They could not be kept; they are not obeyed, so that a restart obeys the same ones.
    #[error("orders cannot be kept: {0}")]
    Keep(#[from] io::Error),
}

/// Keeps the newest orders.
#[derive(Debug)]
pub(crate) struct OrdersKeeper {
    file: PathBuf,
    key: VerifyingKey,
    server: ServerId,
    cluster: u64,
    current: Option<Orders>,
}

impl OrdersKeeper {
    /// Opens what was kept. A file that does not verify counts as none, and is told of.
    pub(crate) fn open(file: PathBuf, key: VerifyingKey, server: ServerId, cluster: u64) -> Self {
        let mut keeper = Self {
            file,
            key,
            server,
            cluster,
            current: None,
        };
        match keeper.load() {
            Ok(orders) => keeper.current = orders,
            Err(error) => tracing::error!(%error, "the kept orders are not usable"),
        }
        keeper
    }

    fn load(&self) -> Result<Option<Orders>, OrdersError> {
        match fs::metadata(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(meta) if meta.len() > FILE_MAX_BYTES => return Err(OrdersError::NotMine),
            Ok(_) => {}
        }
        let signed: Signed = decode(&fs::read(&self.file)?).map_err(SignError::from)?;
        self.check(&signed).map(Some)
    }

    pub(crate) fn current(&self) -> Option<&Orders> {
        self.current.as_ref()
    }

    /// Takes orders, durably, if they are newer, or the same plan with a fresh lease.
    ///
    /// # Errors
    /// [`OrdersError`].
    pub(crate) fn take(&mut self, signed: &Signed) -> Result<&Orders, OrdersError> {
        let orders = self.check(signed)?;
        if let Some(current) = &self.current {
            let (obeyed, got) = (current.epoch, orders.epoch);
            if got.term == obeyed.term && orders.instance != current.instance {
                return Err(OrdersError::OtherMaster { term: got.term });
            }
            let refreshed = got == obeyed && orders.lease_until >= current.lease_until;
            if got <= obeyed && !refreshed {
                return Err(OrdersError::Old { obeyed, got });
            }
        }
        self.keep(signed)?;
        Ok(self.current.insert(orders))
    }

    fn check(&self, signed: &Signed) -> Result<Orders, OrdersError> {
        let orders: Orders = signed.verify(&self.key)?;
        if orders.server != self.server || orders.cluster != self.cluster {
            return Err(OrdersError::NotMine);
        }
        Ok(orders)
    }

    fn keep(&self, signed: &Signed) -> io::Result<()> {
        write_private(&self.file, &encode(signed))
    }
}
