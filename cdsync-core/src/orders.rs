//! Which orders an agent obeys: only the newest, and only from the master that its certificate
//! names.
//!
//! Orders that pass are made durable by the driver before [`Obedience::obey`], so that a restart
//! obeys the same ones. Among runs of a master the later term counts; two runs of one term, which
//! a copy of a master's store brings about, are told apart by their instance, and the one that came
//! first is obeyed until a later term comes.

use thiserror::Error;

use crate::ids::ServerId;
use crate::time::WallMillis;
use crate::wire::{Epoch, Orders, SignError, Signed, VerifyingKey};

/// Why orders are refused. None is retryable with the same orders.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OrdersRefused {
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
    /// Of the same term, but from another run of a master.
    #[error(
        "orders of term {term} are refused: another run of the master gave orders in that term"
    )]
    OtherMaster {
        /// The term.
        term: u64,
    },
}

/// The orders that a server obeys.
#[derive(Debug)]
pub struct Obedience {
    key: VerifyingKey,
    server: ServerId,
    cluster: u64,
    current: Option<Orders>,
}

impl Obedience {
    /// No orders yet.
    #[must_use]
    pub const fn new(key: VerifyingKey, server: ServerId, cluster: u64) -> Self {
        Self {
            key,
            server,
            cluster,
            current: None,
        }
    }

    /// What is obeyed.
    #[must_use]
    pub const fn current(&self) -> Option<&Orders> {
        self.current.as_ref()
    }

    /// Opens orders for this server, whatever their epoch: what an earlier run had kept.
    ///
    /// # Errors
    /// [`OrdersRefused::Signature`] and [`OrdersRefused::NotMine`].
    pub fn verify(&self, signed: &Signed) -> Result<Orders, OrdersRefused> {
        let orders: Orders = signed.verify(&self.key)?;
        if orders.server != self.server || orders.cluster != self.cluster {
            return Err(OrdersRefused::NotMine);
        }
        Ok(orders)
    }

    /// Opens orders that are newer than what is obeyed, or the same plan with a fresh lease.
    ///
    /// # Errors
    /// [`OrdersRefused`].
    pub fn judge(&self, signed: &Signed) -> Result<Orders, OrdersRefused> {
        let orders = self.verify(signed)?;
        let Some(current) = &self.current else {
            return Ok(orders);
        };
        let (obeyed, got) = (current.epoch, orders.epoch);
        if got.term == obeyed.term && orders.instance != current.instance {
            return Err(OrdersRefused::OtherMaster { term: got.term });
        }
        let refreshed = got == obeyed && orders.lease_until >= current.lease_until;
        if got <= obeyed && !refreshed {
            return Err(OrdersRefused::Old { obeyed, got });
        }
        Ok(orders)
    }

    /// Obeys what was judged, and made durable since.
    pub fn obey(&mut self, orders: Orders) -> &Orders {
        self.current.insert(orders)
    }
}

/// What is to be done under orders at a time: after their lease nothing moves, and everything is
/// kept.
#[must_use]
pub fn in_force(mut orders: Orders, now: WallMillis) -> Orders {
    if orders.lease_until <= now {
        for job in &mut orders.jobs {
            job.paused = true;
        }
    }
    orders
}
