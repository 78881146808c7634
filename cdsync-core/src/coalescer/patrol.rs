//! The safety scan: from time to time all folders are listed, one by one and at a pace, to find what
//! no event told: stores through memory maps, writers on other machines.
//!
//! It waits for nothing and nothing waits for it. What differs may only be younger than its hint:
//! it is looked at again after a while, and then told if it still differs.

use std::time::Duration;

use super::listing::Depth;
use super::pending::Waiting;
use super::{Coalescer, ListRequest, Slot, What};
use crate::ids::ObjectId;
use crate::ledger::object::{Kind, Observed};
use crate::ledger::rows::LiveObject;
use crate::ledger::tables::{TableError, TablesRead};
use crate::time::Instant;

/// The pause after each entry of a folder: 10,000 a second at most.
const PACE: Duration = Duration::from_micros(100);
/// The least pause after a folder.
const FOLDER_PACE: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub(super) struct Patrol {
    /// Folders to come.
    stack: Vec<ObjectId>,
    /// The one being listed.
    listing: Option<ObjectId>,
    running: bool,
    /// When the next folder is listed, or the next scan begins.
    due: Option<Instant>,
    ended: u64,
}

impl Patrol {
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.filter(|_| self.listing.is_none())
    }

    pub(super) fn push(&mut self, folder: ObjectId) {
        self.stack.push(folder);
    }
}

impl Coalescer {
    /// The next folder that the safety scan lists; answered as any other listing.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_patrol(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
    ) -> Result<Option<ListRequest>, TableError> {
        let Some(every) = self.config.scan_every else {
            return Ok(None);
        };
        let due = *self.patrol.due.get_or_insert_with(|| now.after(every));
        if due > now || self.patrol.listing.is_some() {
            return Ok(None);
        }
        if !self.listings.is_idle() {
            // What is known to be missing goes first.
            self.patrol.due = Some(now.after(FOLDER_PACE));
            return Ok(None);
        }
        if !self.patrol.running {
            self.patrol.running = true;
            self.patrol.stack.push(ObjectId::root(self.origin()));
        }
        while let Some(id) = self.patrol.stack.pop() {
            if let Some(folder) = self.folders.at(t, id)? {
                self.patrol.listing = Some(id);
                self.listings.begin(id, Depth::Patrol);
                return Ok(Some(ListRequest { folder }));
            }
        }
        self.patrol.running = false;
        self.patrol.ended += 1;
        self.patrol.due = Some(now.after(every));
        Ok(None)
    }

    /// How many safety scans have ended.
    #[must_use]
    pub fn patrols_ended(&self) -> u64 {
        self.patrol.ended
    }

    /// A folder was listed for the safety scan.
    pub(super) fn patrolled(&mut self, now: Instant, folder: ObjectId, entries: usize) {
        if self.patrol.listing == Some(folder) {
            self.patrol.listing = None;
            let pause = PACE * u32::try_from(entries).unwrap_or(u32::MAX);
            self.patrol.due = Some(now.after(pause.max(FOLDER_PACE)));
        }
    }

    /// The safety scan met something that the ledger has there.
    pub(super) fn patrol_known(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: Slot,
        row: &LiveObject,
        observed: &Observed,
    ) -> Result<(), TableError> {
        let local = row.local.as_ref();
        let same = row.state.kind == observed.kind
            && local.is_some_and(|local| match observed.kind {
                // Its own times are compared when it is listed.
                Kind::Folder => local.fingerprint.identity == observed.fingerprint.identity,
                _ => local.fingerprint == observed.fingerprint && row.state.meta == observed.meta,
            });
        if !same {
            return self.patrol_differs(now, t, slot);
        }
        if observed.kind == Kind::Folder {
            self.patrol.push(row.state.id);
        }
        Ok(())
    }

    /// The safety scan met something else than the ledger has.
    pub(super) fn patrol_differs(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: Slot,
    ) -> Result<(), TableError> {
        if self.pending.get(&slot).is_some() || slot.1.is_reserved() {
            return Ok(());
        }
        if self.pending.len() >= self.config.pending_max / 2 {
            return self.open_gap(now, t, slot.0);
        }
        let mut waiting = Waiting::new(What::default(), now);
        waiting.due = now.after(self.config.max_age);
        self.pending.put(slot, waiting);
        Ok(())
    }
}
