//! Tombstones of a target: of use only while records may come again that speak of what is gone.

use super::Replica;
use crate::ids::ObjectId;
use crate::ledger::object::Seq;
use crate::ledger::tables::{TableError, Tables};
use crate::ledger::trim::drop_tombstones;

/// How many objects are removed before their tombstones are looked for.
const REMOVED_MAX: u64 = 10_000;
/// How many of these a target that was just started is taken to have: nobody counted them before.
const REMOVED_FIRST: u64 = 9_000;
/// How many objects are looked at in one transaction.
const AT_ONCE: usize = 4096;

/// When tombstones are looked for, and how far that is.
#[derive(Debug)]
pub(super) struct Graves {
    removed: u64,
    /// From which object on, those of records up to which number.
    looking: Option<(ObjectId, Seq)>,
}

impl Default for Graves {
    fn default() -> Self {
        Self {
            removed: REMOVED_FIRST,
            looking: None,
        }
    }
}

impl Graves {
    /// So many objects were removed.
    pub(super) fn note(&mut self, removed: u64) {
        self.removed = self.removed.saturating_add(removed);
    }
}

impl Replica {
    /// Whether [`Replica::drop_tombstones`] has something to look for, and nothing else is to be done.
    #[must_use]
    pub fn has_tombstones(&self) -> bool {
        let is_due = self.graves.looking.is_some() || self.graves.removed >= REMOVED_MAX;
        is_due && self.needs_no_tombstones()
    }

    /// Whether nothing is left to be done that may be of what is gone: what is tried again asks for
    /// its object, and what is swept for what was there.
    fn needs_no_tombstones(&self) -> bool {
        self.is_idle()
            && self.parked.len() == 0
            && self.intended.is_empty()
            && !self.sweep.is_owed()
            && !self.is_verifying()
    }

    /// Drops some of the tombstones of records that no upstream sends again, because they are claimed
    /// and on the disk.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn drop_tombstones(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if !self.needs_no_tombstones() {
            return Ok(());
        }
        let (from, upto) = self.graves.looking.take().unwrap_or_else(|| {
            self.graves.removed = 0;
            (ObjectId::default(), self.claimed_for_certain())
        });
        let (next, _) = drop_tombstones(t, from, upto, AT_ONCE)?;
        self.graves.looking = next.map(|next| (next, upto));
        Ok(())
    }
}
