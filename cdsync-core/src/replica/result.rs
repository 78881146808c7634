//! What became of operations.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::links::is_waiting;
use super::waiting::is_absent;
use super::{ApplyOp, ApplyResult, Difference, Issued, MoveResult, Replica, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{self, Slot, live, parked_row, put_live, put_name};
use crate::ledger::loss::Loss;
use crate::ledger::object::{Kind, ObjectState, Observed, Seq};
use crate::ledger::rows::{LiveObject, Local, NameRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables};
use crate::time::WallMillis;

impl Replica {
    /// Takes the results of a step, in the order of its operations.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_applied(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        results: Vec<ApplyResult>,
    ) -> Result<(), TableError> {
        let Some(issued) = self.issued.take() else {
            return Ok(());
        };
        let Issued {
            ops,
            thens,
            doubtful,
        } = issued;
        debug_assert_eq!(thens.len(), results.len(), "one result for each operation");
        let ops = Arc::unwrap_or_clone(ops);
        let in_batch = self.batch_end.is_some();
        let mut beside = BTreeSet::new();
        let mut unmade = BTreeSet::new();
        for ((op, then), mut result) in ops.into_iter().zip(thens).zip(results) {
            self.dirty = true;
            if in_batch && op.is_beside_batch() {
                beside.extend(op.folder());
            }
            let folder = op.place().map(|at| &at.folder);
            if folder.is_some_and(|at| is_absent(at) && unmade.contains(&at.id)) {
                // Whatever came of it is in something else that is at the folder's name.
                result = ApplyResult::Failed("its folder could not be made".to_owned());
            }
            if let (ApplyOp::MakeFolder { id, .. }, ApplyResult::Failed(_)) = (&op, &result) {
                unmade.insert(*id);
            }
            self.answer(wall, t, op, then, result)?;
        }
        if doubtful {
            self.doubt(t)?;
        }
        if in_batch {
            beside.retain(|folder| self.touched.contains(folder));
        } else {
            beside.clone_from(&self.touched);
        }
        self.note_touched(wall, t, beside)
    }

    /// Notes folders whose times are to be set again. A batch comes once more after a kill, and says
    /// so itself; what is done besides does not.
    fn note_touched(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folders: BTreeSet<ObjectId>,
    ) -> Result<(), TableError> {
        let fresh: Vec<ObjectId> = folders.difference(&self.intended).copied().collect();
        for id in fresh {
            let Some(row) = live(t, id)? else { continue };
            let is_here = row.local.is_some() || id.is_root();
            // Whatever else it waits for ends with its times.
            if is_here && parked_row(t, id)?.is_none() {
                let seq = row.state.version.seq;
                self.intend(wall, t, id, seq, ParkedWhat::Meta(row.state))?;
            }
        }
        Ok(())
    }

    /// Takes the result of one operation.
    pub(super) fn answer(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: ApplyOp,
        then: Then,
        result: ApplyResult,
    ) -> Result<(), TableError> {
        let result = match result {
            ApplyResult::Overwrote(seen) => {
                self.met_drift(t, &op, false)?;
                ApplyResult::Done(seen)
            }
            ApplyResult::Kept => return self.keep_theirs(wall, t, op, then),
            ApplyResult::Clashes(other) => self.clashes(t, &op, &then, &other)?,
            other => other,
        };
        match (then, result) {
            (Then::Held(state) | Then::Adopted(state), ApplyResult::Done(seen)) => {
                self.held(wall, t, *state, seen.into_iter().next())
            }
            (Then::Held(state), ApplyResult::Found(seen)) => {
                if !self.adopting {
                    self.owe_sweep(t, state.id)?;
                }
                self.held(wall, t, *state, seen.into_iter().next())
            }
            (Then::New(state), ApplyResult::Done(seen)) => {
                let seen = seen.into_iter().next();
                if let Some(seen) = &seen {
                    self.note_losses(t, state.id, seen.losses)?;
                }
                enter(t, *state, op, seen.map(|seen| self.local_of(seen)))
            }
            (Then::New(state), ApplyResult::Failed(reason)) => {
                enter(t, (*state).clone(), op, None)?;
                super::suspect_published(t, state.id)?;
                self.park_content(wall, t, state.version.seq, *state, reason)
            }
            (Then::Adopted(state), ApplyResult::NotEqual) => {
                self.fetches.want(state.version.seq, *state);
                Ok(())
            }
            (Then::Held(state) | Then::Adopted(state), ApplyResult::Failed(reason)) => {
                self.fetches.remove(state.id);
                if state.kind == Kind::Folder {
                    self.remove_left(wall, t, state.id)?;
                }
                // It may have come to its name before something about it failed.
                super::suspect_published(t, state.id)?;
                self.park_content(wall, t, state.version.seq, *state, reason)
            }
            (Then::Meta(state), ApplyResult::Done(seen)) => {
                self.meta_held(wall, t, *state, seen.into_iter().next())
            }
            (Then::Meta(state), ApplyResult::Failed(reason)) => {
                let (id, seq) = (state.id, state.version.seq);
                self.park(wall, t, id, seq, reason, ParkedWhat::Meta(*state))
            }
            (Then::Meta(state), ApplyResult::NotEqual) => self.lost_content(wall, t, *state),
            (Then::Moved, ApplyResult::Moved(results)) => self.moved(wall, t, &op, results),
            (Then::Moved, ApplyResult::Failed(reason)) => {
                let moves = op.moves().iter();
                moves
                    .clone()
                    .try_for_each(|one| self.park_move(wall, t, one, &reason))
            }
            (Then::Linked(_, slot), ApplyResult::Done(seen)) => {
                self.linked(t, &op, &slot, seen.into_iter().next())
            }
            (Then::Linked(seq, slot), ApplyResult::Failed(reason)) => {
                self.not_linked(wall, t, &op, (seq, slot), reason)
            }
            (Then::Removed(seq, slot), ApplyResult::Done(_)) => self.removed(t, &op, seq, &slot),
            (Then::Removed(seq, slot), ApplyResult::NotEqual) => {
                self.not_there(t, &op, (seq, &slot))
            }
            (Then::Removed(seq, slot), ApplyResult::Failed(reason)) => {
                self.not_removed(wall, t, &op, seq, slot, reason)
            }
            (Then::Touched, ApplyResult::Done(seen)) => self.noted(t, &op, seen),
            (Then::Touched, ApplyResult::Failed(reason)) => self.not_touched(wall, t, &op, reason),
            (Then::Touched, ApplyResult::NotEqual) => self.not_the_folder(wall, t, &op),
            (Then::Probed(_), ApplyResult::Done(seen)) if !seen.is_empty() => Ok(()),
            (Then::Probed(slot), ApplyResult::Done(_)) => Self::replaced(t, &op, &slot),
            (Then::Probed(slot), ApplyResult::Failed(reason)) => {
                Self::replaced(t, &op, &slot)?;
                self.not_probed(wall, t, &op, reason)
            }
            (Then::Verified, ApplyResult::Done(seen)) => self.verified(wall, t, &op, seen),
            (Then::Verified, ApplyResult::NotEqual | ApplyResult::Failed(_)) => {
                self.torn(wall, t, &op)
            }
            (Then::Swept, ApplyResult::Failed(reason)) => {
                if let Some(folder) = op.folder() {
                    self.not_swept(wall, folder, reason);
                }
                Ok(())
            }
            (Then::Swept, _) => Ok(()),
            (Then::Checked(slot), ApplyResult::Done(seen)) => {
                self.checked(t, &op, slot.as_ref(), seen.into_iter().next())
            }
            (Then::Checked(slot), ApplyResult::Differs(found)) => {
                self.differs(wall, t, &op, slot.as_ref(), found)
            }
            (Then::Checked(_) | Then::StillThere(_), ApplyResult::Failed(_)) => Ok(()),
            (Then::StillThere(slot), ApplyResult::Differs(found)) => {
                self.still_there(wall, t, slot, found)
            }
            (Then::GaveWay(slot), ApplyResult::Done(_)) => self.gave_way(wall, t, slot, None),
            (Then::GaveWay(slot), ApplyResult::Failed(reason)) => {
                self.gave_way(wall, t, slot, Some(reason))
            }
            (
                _,
                ApplyResult::NotEqual
                | ApplyResult::Overwrote(_)
                | ApplyResult::Kept
                | ApplyResult::Differs(_)
                | ApplyResult::Clashes(_)
                | ApplyResult::Found(_)
                | ApplyResult::Moved(_),
            )
            | (Then::Moved | Then::StillThere(_), _) => {
                debug_assert!(false, "an answer to another question");
                Ok(())
            }
        }
    }

    /// A copy as it was seen just now.
    pub(super) fn local_of(&self, seen: Observed) -> Local {
        Local {
            fingerprint: seen.fingerprint,
            handle: seen.handle,
            round: self.durable.round,
        }
    }

    fn held(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        state: ObjectState,
        seen: Option<Observed>,
    ) -> Result<(), TableError> {
        let id = state.id;
        self.fetches.remove(id);
        self.durable.published(id);
        self.unpark(t, id)?;
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        let Some((parent, name)) = row.slot().cloned() else {
            return Ok(());
        };
        put_name(
            t,
            parent,
            &name,
            NameRow {
                object: Some(id),
                remnant: None,
            },
        )?;
        self.touched.insert(parent);
        let is_folder = state.kind == Kind::Folder;
        if is_folder {
            self.folders.forget_one(id);
            self.release(id);
        }
        let state = not_before(&row, state);
        if let Some(seen) = &seen {
            let losses = self.with_names(id, seen.losses, row.names.len());
            self.note_losses(t, id, losses)?;
        }
        let local = seen.map(|seen| self.local_of(seen)).or(row.local);
        let names = row.names;
        let is_linked = names.len() > 1;
        put_live(
            t,
            id,
            LiveObject {
                state,
                names,
                local,
            },
        )?;
        if is_linked {
            self.relink(wall, t, id)?;
        }
        if is_folder {
            self.doubt_below(t, id)?;
        }
        Ok(())
    }

    fn meta_held(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        state: ObjectState,
        seen: Option<Observed>,
    ) -> Result<(), TableError> {
        self.unpark(t, state.id)?;
        let Some(mut row) = live(t, state.id)? else {
            return Ok(());
        };
        row.state = not_before(&row, state);
        let id = row.state.id;
        // Copies in place of links do not get the new metadata by themselves.
        let has_copies = row.names.len() > 1 && self.losses_of(id).has(Loss::HardLink);
        if let Some(seen) = &seen {
            let losses = self.with_names(id, seen.losses, row.names.len());
            self.note_losses(t, id, losses)?;
        }
        row.local = seen.map(|seen| self.local_of(seen)).or(row.local);
        put_live(t, id, row)?;
        if has_copies {
            self.relink(wall, t, id)?;
        }
        Ok(())
    }

    fn moved(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        results: Vec<MoveResult>,
    ) -> Result<(), TableError> {
        self.folders.forget();
        for (one, result) in op.moves().iter().zip(results) {
            match result {
                MoveResult::Done(seen) => {
                    self.unpark_moved(t, one.id)?;
                    self.is_at_its_name(t, one.id)?;
                    // What was in its way is gone.
                    nothing_left(t, &(one.to.folder.id, one.to.name.clone()))?;
                    let Some(mut row) = live(t, one.id)? else {
                        continue;
                    };
                    if row.state.kind == Kind::Folder {
                        self.touched.insert(one.id);
                    }
                    // What others wrote before it was moved stays theirs: it is met when it is
                    // replaced.
                    let print = |l: &Local| (l.fingerprint.size, l.fingerprint.mtime);
                    let seen = self.local_of(*seen);
                    let is_file = row.state.kind == Kind::File;
                    match &mut row.local {
                        Some(before) if is_file && print(before) != print(&seen) => {
                            before.round = seen.round;
                        }
                        local => *local = Some(seen),
                    }
                    put_live(t, one.id, row)?;
                }
                MoveResult::Missing => {
                    let left = (one.from.folder.id, one.from.name.clone());
                    self.give_up(wall, t, one.id, &left)?;
                }
                MoveResult::Clashes(other) => {
                    let reason = self.clash(t, one.id, one.id, one.to.folder.id, &other)?;
                    self.park_move(wall, t, one, &reason)?;
                }
                MoveResult::Failed(reason) => self.park_move(wall, t, one, &reason)?,
            }
        }
        Ok(())
    }

    fn removed(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        seq: Seq,
        slot: &Slot,
    ) -> Result<(), TableError> {
        if seq <= self.progress.claim {
            // A crash of the system may bring it back, and no record comes again that says it is gone.
            self.owe_sweep(t, slot.0)?;
        }
        if let Some(id) = op.object() {
            self.unpark_removal(t, id)?;
        }
        nothing_left(t, slot)
    }

    /// What was to be removed has gone, and something that no row knows is at its name: a crash may
    /// have taken back the row of what came next, or it is others'.
    fn not_there(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        (seq, slot): (Seq, &Slot),
    ) -> Result<(), TableError> {
        self.removed(t, op, seq, slot)?;
        self.owe_sweep(t, slot.0)
    }

    fn not_removed(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        seq: Seq,
        slot: Slot,
        reason: String,
    ) -> Result<(), TableError> {
        let ApplyOp::Remove {
            id, known, kind, ..
        } = op
        else {
            return Ok(());
        };
        if is_waiting(t, &slot)? {
            // The link takes its place.
            return self.unpark_removal(t, *id);
        }
        let what = ParkedWhat::Remove {
            at: slot,
            known: *known,
            kind: *kind,
        };
        self.park(wall, t, *id, seq, reason, what)
    }

    fn noted(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        seen: Vec<Observed>,
    ) -> Result<(), TableError> {
        let Some(id) = op.object() else { return Ok(()) };
        let (Some(mut row), Some(seen)) = (live(t, id)?, seen.into_iter().next()) else {
            return Ok(());
        };
        self.note_losses(t, id, seen.losses)?;
        row.local = Some(self.local_of(seen));
        self.unpark(t, id)?;
        put_live(t, id, row)
    }

    /// What is at an object's name is not what the ledger knows: it goes once its content is here.
    fn replaced(t: &mut dyn Tables, op: &ApplyOp, slot: &Slot) -> Result<(), TableError> {
        let ApplyOp::SetMeta { id, .. } = op else {
            return Ok(());
        };
        let Some(mut row) = live(t, *id)? else {
            return Ok(());
        };
        if row.slot() != Some(slot) {
            return Ok(());
        }
        row.local = None;
        put_live(t, *id, row)?;
        // Its other names are links to what was found.
        super::suspect_published(t, *id)
    }

    /// Whether an object is still at its name is not known: it counts as missing until it is made
    /// anew, or goes.
    fn not_probed(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        reason: String,
    ) -> Result<(), TableError> {
        let Some(id) = op.object() else { return Ok(()) };
        let Some(row) = live(t, id)?.filter(|row| row.local.is_none()) else {
            return Ok(());
        };
        if self.is_busy(id) {
            return Ok(());
        }
        let seq = row.state.version.seq;
        self.park_content(wall, t, seq, row.state, reason)
    }

    /// A folder is not where it should be. Where no record that comes again may still tell why, it
    /// was not left so: a crash took rows back that nothing tells of any more, or others did it.
    fn not_the_folder(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
    ) -> Result<(), TableError> {
        let Some(row) = op.object().map(|id| live(t, id)).transpose()?.flatten() else {
            return Ok(());
        };
        let slot = row.slot().cloned();
        // Before the upstream's first word nobody knows what comes again.
        let is_to_come = self.suspect.is_none_or(|upto| self.cursor < upto)
            || !self.queue.is_empty()
            || self.is_reconciling();
        if slot.is_none() || row.local.is_none() || is_to_come {
            let reason = "another folder is at its name".to_owned();
            return self.not_touched(wall, t, op, reason);
        }
        // Its times are not what it waits for any more.
        if let Some(id) = op.object() {
            self.unpark(t, id)?;
        }
        self.differs(wall, t, op, slot.as_ref(), Difference::Other)
    }

    fn not_touched(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        reason: String,
    ) -> Result<(), TableError> {
        let Some(id) = op.object() else { return Ok(()) };
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        let seq = row.state.version.seq;
        self.park(wall, t, id, seq, reason, ParkedWhat::Meta(row.state))
    }
}

/// A name holds nothing but its object any more.
pub(super) fn nothing_left(t: &mut dyn Tables, slot: &Slot) -> Result<(), TableError> {
    let Some(row) = access::name(t, slot.0, &slot.1)? else {
        return Ok(());
    };
    let row = NameRow {
        remnant: None,
        ..row
    };
    put_name(t, slot.0, &slot.1, row)
}

/// Writes the rows of a new object, which was written by `op`.
pub(super) fn enter(
    t: &mut dyn Tables,
    state: ObjectState,
    op: ApplyOp,
    local: Option<Local>,
) -> Result<(), TableError> {
    let Some(slot) = op.into_written() else {
        debug_assert!(false, "only files are entered so");
        return Ok(());
    };
    let row = NameRow {
        object: Some(state.id),
        remnant: None,
    };
    put_name(t, slot.0, &slot.1, row)?;
    let names = vec![slot];
    put_live(
        t,
        state.id,
        LiveObject {
            state,
            names,
            local,
        },
    )
}

/// What is held now, with the version of the row where that is a later one: a record gave it
/// another name meanwhile, and an earlier one that comes again must not take that back.
fn not_before(row: &LiveObject, state: ObjectState) -> ObjectState {
    if row.state.version.seq <= state.version.seq {
        return state;
    }
    ObjectState {
        version: row.state.version,
        replaces: row.state.replaces,
        ..state
    }
}
