//! What became of operations.

use std::sync::Arc;

use super::{ApplyOp, ApplyResult, Issued, MoveResult, Replica, Then};
use crate::ledger::access::{self, Slot, live, put_live, put_name};
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
        let Some(Issued { ops, thens }) = self.issued.take() else {
            return Ok(());
        };
        debug_assert_eq!(thens.len(), results.len(), "one result for each operation");
        let ops = Arc::unwrap_or_clone(ops);
        for ((op, then), result) in ops.into_iter().zip(thens).zip(results) {
            self.dirty = true;
            self.answer(wall, t, op, then, result)?;
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
                self.park_content(wall, t, state.version.seq, *state, reason)
            }
            (Then::Adopted(state), ApplyResult::NotEqual) => {
                self.fetches.want(state.version.seq, *state);
                Ok(())
            }
            (Then::Held(state) | Then::Adopted(state), ApplyResult::Failed(reason)) => {
                self.fetches.remove(state.id);
                if state.kind != Kind::Folder && self.is_suspect(state.version.seq) {
                    super::suspect_published(t, state.id)?;
                }
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
            (Then::Removed(_, slot), ApplyResult::Done(_)) => self.removed(t, &op, &slot),
            (Then::Removed(seq, slot), ApplyResult::Failed(reason)) => {
                self.not_removed(wall, t, &op, seq, slot, reason)
            }
            (Then::Touched, ApplyResult::Done(seen)) => self.noted(t, &op, seen),
            (Then::Touched, ApplyResult::Failed(reason)) => self.not_touched(wall, t, &op, reason),
            (Then::Probed(_), ApplyResult::Done(seen)) if !seen.is_empty() => Ok(()),
            (Then::Probed(slot), ApplyResult::Done(_) | ApplyResult::Failed(_)) => {
                self.replaced(t, &op, slot)
            }
            (Then::Verified, ApplyResult::Done(seen)) => self.verified(t, &op, seen),
            (Then::Verified, ApplyResult::NotEqual | ApplyResult::Failed(_)) => {
                self.torn(wall, t, &op)
            }
            (Then::Swept, ApplyResult::Failed(reason)) => {
                self.sweep.failed(reason);
                op.folder().map_or(Ok(()), |folder| self.swept(t, folder))
            }
            (Then::Swept, _) => Ok(()),
            (
                _,
                ApplyResult::NotEqual
                | ApplyResult::Overwrote(_)
                | ApplyResult::Kept
                | ApplyResult::Found(_)
                | ApplyResult::Moved(_),
            )
            | (Then::Moved, _) => {
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
        if state.kind == Kind::Folder {
            self.folders.forget_one(id);
            self.release(id);
        }
        let state = not_before(&row, state);
        if let Some(seen) = &seen {
            self.note_losses(t, id, seen.losses)?;
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
            self.note_losses(t, id, seen.losses)?;
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
                MoveResult::Failed(reason) => self.park_move(wall, t, one, &reason)?,
            }
        }
        Ok(())
    }

    fn removed(&mut self, t: &mut dyn Tables, op: &ApplyOp, slot: &Slot) -> Result<(), TableError> {
        if let Some(id) = op.object() {
            self.unpark(t, id)?;
        }
        nothing_left(t, slot)
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

    /// What is at an object's name is not what the ledger knows: it goes.
    fn replaced(&mut self, t: &mut dyn Tables, op: &ApplyOp, slot: Slot) -> Result<(), TableError> {
        let ApplyOp::SetMeta {
            id, at: Some(at), ..
        } = op
        else {
            return Ok(());
        };
        let Some(mut row) = live(t, *id)? else {
            return Ok(());
        };
        if row.slot() != Some(&slot) {
            return Ok(());
        }
        row.local = None;
        let seq = row.state.version.seq;
        put_live(t, *id, row)?;
        // Its other names are links to what was found.
        super::suspect_published(t, *id)?;
        self.clear_name(t, seq, *id, at.clone())
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
