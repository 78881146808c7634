//! The loss report: what this disk does not hold of objects that are there.

use std::collections::BTreeMap;

use super::Replica;
use crate::ids::ObjectId;
use crate::ledger::access::{self, live};
use crate::ledger::loss::{Loss, Losses};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::RelPath;

/// How many objects are known by name that are not held whole; beyond it they are not counted.
pub const LOST_MAX: usize = 10_000;

/// How many of them are named by the next [`Replica::take_lost`].
const FRESH_MAX: usize = 20;

/// Objects that are not held whole.
#[derive(Debug, Default)]
pub(super) struct Lost {
    all: BTreeMap<ObjectId, Losses>,
    fresh: Vec<ObjectId>,
    changes: u64,
}

/// What is not held whole, for a report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LostReport {
    /// How many objects, at most [`LOST_MAX`].
    pub count: u64,
    /// How many for each reason.
    pub reasons: Vec<(Loss, u64)>,
    /// The first of them.
    pub first: Vec<(RelPath, Losses)>,
}

impl Lost {
    /// Reads what was known before. What is gone since is forgotten.
    pub(super) fn open(t: &mut dyn Tables) -> Result<Self, TableError> {
        let mut lost = Self::default();
        for (id, losses) in access::lost(t, LOST_MAX)? {
            if live(t, id)?.is_some() {
                lost.all.insert(id, losses);
            } else {
                access::put_lost(t, id, Losses::NONE)?;
            }
        }
        Ok(lost)
    }
}

impl Replica {
    /// An object is held but for this.
    pub(super) fn note_losses(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        losses: Losses,
    ) -> Result<(), TableError> {
        let known = self.lost.all.get(&id).copied().unwrap_or_default();
        if known == losses || (known.is_empty() && self.lost.all.len() >= LOST_MAX) {
            return Ok(());
        }
        self.lost.changes += 1;
        if losses.is_empty() {
            self.lost.all.remove(&id);
        } else {
            self.lost.all.insert(id, losses);
            if self.lost.fresh.len() < FRESH_MAX {
                self.lost.fresh.push(id);
            }
        }
        access::put_lost(t, id, losses)
    }

    /// What is known to be missing of an object.
    pub(super) fn losses_of(&self, id: ObjectId) -> Losses {
        self.lost.all.get(&id).copied().unwrap_or_default()
    }

    /// Whether further names of anything are copies here.
    pub(super) fn has_copies(&self) -> bool {
        let mut all = self.lost.all.values();
        all.any(|losses| losses.has(Loss::HardLink))
    }

    /// How often [`Replica::lost_report`] has changed, but for what was removed since.
    #[must_use]
    pub fn lost_changes(&self) -> u64 {
        self.lost.changes
    }

    /// What is not held whole, the first `most` by name.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn lost_report(
        &mut self,
        t: &dyn TablesRead,
        most: usize,
    ) -> Result<LostReport, TableError> {
        let mut report = LostReport::default();
        let mut reasons: BTreeMap<Loss, u64> = BTreeMap::new();
        let mut gone = Vec::new();
        for (id, losses) in &self.lost.all {
            if live(t, *id)?.is_none() {
                gone.push(*id);
                continue;
            }
            report.count += 1;
            losses
                .iter()
                .for_each(|loss| *reasons.entry(loss).or_default() += 1);
            if report.first.len() < most
                && let Some(path) = access::path_of(t, *id)?
            {
                report.first.push((path, *losses));
            }
        }
        for id in gone {
            self.lost.all.remove(&id);
        }
        report.reasons = reasons.into_iter().collect();
        Ok(report)
    }

    /// Whether [`Replica::take_lost`] has something to tell.
    #[must_use]
    pub fn has_new_losses(&self) -> bool {
        !self.lost.fresh.is_empty()
    }

    /// Objects that are not held whole since the last call, at most 20 of them.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn take_lost(&mut self, t: &dyn TablesRead) -> Result<Vec<(RelPath, Losses)>, TableError> {
        let mut fresh = Vec::new();
        for id in std::mem::take(&mut self.lost.fresh) {
            if let (Some(losses), Some(path)) = (self.lost.all.get(&id), access::path_of(t, id)?) {
                fresh.push((path, *losses));
            }
        }
        Ok(fresh)
    }
}
