//! Reconciling: what a target does when the log does not lead on from its cursor.
//!
//! It compares its ledger with one snapshot of the upstream's, by digests of ranges of names
//! ([`compare`]), and keeps what differs in a table of its own. When all is known the snapshot is
//! given back, and what differs becomes records of the snapshot's number ([`apply`]), which are
//! carried out like any others; the log goes on behind that. What a snapshot that was lost had
//! brought is compared again: it is equal by then.

mod apply;
mod compare;
mod walk;

use std::ops::ControlFlow;

use super::{Replica, ReplicaError};
use crate::ids::{IncarnationId, ObjectId};
use crate::ledger::access::{meta, put_meta};
use crate::ledger::object::Seq;
use crate::ledger::rows::{Progress, decode_row};
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::wire::{CompareWhy, Compared, Cursor, Snapshot};
use apply::Applying;
use compare::Comparing;

/// The cursor of a history that the upstream does not know, until more of its own is claimed.
const FORMER: &str = "replica-former";

/// Calls `each` for everything that a comparison has found in the upstream's snapshot and not here.
///
/// # Errors
/// [`TableError`], also of `each`; not retryable within the transaction.
pub fn compared(
    t: &dyn TablesRead,
    each: &mut dyn FnMut(Compared) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut failed = None;
    t.range(Table::Compared, &[], None, &mut |_, value| {
        let object: Result<Option<Compared>, _> = decode_row(Table::Compared, value);
        match object.and_then(|object| object.map_or(Ok(()), &mut *each)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// How far a comparison is.
#[derive(Debug, Default)]
pub(super) enum Reconcile {
    /// There is none.
    #[default]
    Off,
    /// Questions are asked.
    Comparing(Box<Comparing>),
    /// All is known.
    Applying(Applying),
}

/// The number that a target reaches by reconciling.
#[derive(Debug, Clone, Copy)]
struct Goal {
    at: Seq,
    incarnation: IncarnationId,
    bytes: u64,
    why: CompareWhy,
}

/// How far a target is with reconciling, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconcileProgress {
    /// Why it does.
    pub why: CompareWhy,
    /// Names compared so far.
    pub names: u64,
    /// Files of the upstream, about.
    pub files: u64,
    /// Objects found that differ.
    pub found: u64,
    /// Whether all are found, and they are being brought.
    pub applying: bool,
}

impl Replica {
    /// The upstream has only a snapshot to begin from. `false`: what this ledger holds is of
    /// another source's, and the caller must begin with an empty one that knows where it was
    /// ([`Replica::note_former`]), adopting what is on the disk.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_snapshot(
        &mut self,
        t: &mut dyn Tables,
        snapshot: &Snapshot,
    ) -> Result<bool, TableError> {
        if !self.takes_origin(t, snapshot.origin)? {
            return Ok(false);
        }
        let unknown = snapshot.why == CompareWhy::Unknown;
        if unknown || snapshot.at < self.progress.claim {
            self.former = self.resume();
            Self::note_former(t, self.former)?;
            self.forget_progress(t)?;
        }
        self.begin_subscription();
        self.head = snapshot.at;
        // Else the next sign of life says so.
        self.complete = unknown;
        if self.suspect.is_none_or(|upto| upto > self.progress.claim) {
            // The disk may have what came and went since in no ledger.
            self.suspect = Some(snapshot.at);
            self.sweep_only(t)?;
        }
        t.remove_until(Table::Compared, &[u8::MAX; 16])?;
        self.reconcile = Reconcile::Comparing(Box::new(Comparing::new(snapshot)));
        Ok(true)
    }

    /// Remembers a cursor that the upstream does not know: shown to it, it leads to a comparison.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn note_former(t: &mut dyn Tables, cursor: Option<Cursor>) -> Result<(), TableError> {
        put_meta(t, FORMER, &cursor)
    }

    pub(super) fn former(t: &dyn TablesRead) -> Result<Option<Cursor>, TableError> {
        Ok(meta::<Option<Cursor>>(t, FORMER)?.flatten())
    }

    /// Numbers of another history say nothing any more.
    fn forget_progress(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        self.progress = Progress::default();
        self.syncing = None;
        put_meta(t, super::PROGRESS, &self.progress)
    }

    /// More was claimed: the own cursor leads on.
    pub(super) fn forget_former(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        match self.former.take() {
            Some(_) => put_meta(t, FORMER, &self.former),
            None => Ok(()),
        }
    }

    /// Whether it compares, or brings what differs.
    #[must_use]
    pub fn is_reconciling(&self) -> bool {
        !matches!(self.reconcile, Reconcile::Off)
    }

    /// How far it is with reconciling; `None` when it does not.
    #[must_use]
    pub fn reconciling(&self) -> Option<ReconcileProgress> {
        match &self.reconcile {
            Reconcile::Off => None,
            Reconcile::Comparing(comparing) => Some(comparing.progress()),
            Reconcile::Applying(applying) => Some(applying.progress()),
        }
    }

    fn refuse_comparison(&mut self) {
        self.reconcile = Reconcile::Off;
        self.refused = Some(ReplicaError::Comparison);
    }

    fn object(&self, number: u64) -> ObjectId {
        ObjectId {
            origin: self.origin.unwrap_or_default(),
            number,
        }
    }
}
