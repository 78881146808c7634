//! Names that a target's disk takes for one, as those that differ only in case.
//!
//! What has the name first keeps it. What comes to it then is parked, and told as a loss, until the
//! other one is gone or called otherwise: else the two would displace each other for ever.

use super::links::name_number;
use super::{ApplyOp, ApplyResult, Replica, Then};
use crate::ids::ObjectId;
use crate::ledger::access;
use crate::ledger::loss::{Loss, Losses};
use crate::ledger::tables::{TableError, Tables};
use crate::path::Name;

impl Replica {
    /// An operation was not done because the disk takes its name for another one.
    pub(super) fn clashes(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        then: &Then,
        other: &Name,
    ) -> Result<ApplyResult, TableError> {
        let (Some(id), Some(at)) = (op.object(), op.place()) else {
            return Ok(ApplyResult::Failed("its name is another one's here".into()));
        };
        let waiting = match then {
            Then::Linked(_, slot) => name_number(slot),
            _ => id,
        };
        let reason = self.clash(t, id, waiting, at.folder.id, other)?;
        Ok(ApplyResult::Failed(reason))
    }

    /// Notes that an object has no name of its own here, and what waits for the other one to go.
    /// Returns the reason, for people.
    pub(super) fn clash(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        waiting: ObjectId,
        folder: ObjectId,
        other: &Name,
    ) -> Result<String, TableError> {
        let mut losses = self.losses_of(id);
        losses.add(Loss::Name);
        self.note_losses(t, id, losses)?;
        let by = access::name(t, folder, other)?.and_then(|row| row.object);
        if let Some(by) = by.filter(|by| *by != id) {
            self.waiting.entry(by).or_default().insert(waiting);
        }
        Ok(format!("its name is the same as '{other}' here"))
    }

    /// An object is at a name of its own.
    pub(super) fn is_at_its_name(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let mut losses = self.losses_of(id);
        if !losses.has(Loss::Name) {
            return Ok(());
        }
        losses.remove(Loss::Name);
        self.note_losses(t, id, losses)
    }

    /// What was seen to be missing of an object at its first name, with what is known of its other
    /// names.
    pub(super) fn with_names(&self, id: ObjectId, seen: Losses, names: usize) -> Losses {
        let mut losses = seen;
        if names > 1 && self.losses_of(id).has(Loss::Name) {
            losses.add(Loss::Name);
        }
        losses
    }
}
