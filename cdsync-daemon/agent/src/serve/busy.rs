//! How many subscriptions have batches in memory: they share what there is for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The busy subscriptions of an agent.
#[derive(Debug, Default)]
pub(super) struct AllBusy(Arc<AtomicUsize>);

/// One that is busy, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<AtomicUsize>);

impl AllBusy {
    pub(super) fn begin(&self) -> Busy {
        self.0.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.0))
    }
}

impl Busy {
    /// How many there are, this one included.
    pub(super) fn streams(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
