//! Objects that could not be applied, and when they are tried again.

use std::collections::BTreeSet;

use super::{ApplyOp, MoveOne, Place, Replica, Running, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{self, live, parked_row, put_parked, remove_parked};
use crate::ledger::object::{Kind, ObjectState, Seq};
use crate::ledger::rows::{ParkedRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::NameSetDigest;
use crate::time::WallMillis;

/// How many are tried at once.
const RETRY_BATCH: usize = 256;

impl Replica {
    /// When parked objects are tried again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<WallMillis> {
        self.parked.values().min().copied()
    }

    /// Tries parked objects whose time has come; operations follow by [`Replica::poll_step`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_timeout(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<(), TableError> {
        if !self.running.is_empty() || self.issued.is_some() {
            return Ok(());
        }
        let due: Vec<ObjectId> = self
            .parked
            .iter()
            .filter(|(_, next)| **next <= wall)
            .map(|(id, _)| *id)
            .take(RETRY_BATCH)
            .collect();
        self.retrying = !due.is_empty();
        let blocked = !self.blocking.is_empty();
        if due.iter().any(|id| self.blocking.contains(id)) {
            self.retry_moves(wall, t)?;
        }
        let mut leaving = BTreeSet::new();
        for id in &self.blocking {
            if let Some(ParkedRow {
                what: ParkedWhat::Move { from, .. },
                ..
            }) = parked_row(t, *id)?
            {
                leaving.insert((from.0.id, from.1));
            }
        }
        for id in due {
            let Some(row) = parked_row(t, id)? else {
                self.parked.remove(&id);
                continue;
            };
            // Whatever comes of it, not at once again.
            self.parked
                .insert(id, WallMillis(wall.0 + self.wait_ms(id, row.attempts + 1)));
            // What waits for a move may be a folder to move to; the rest comes behind.
            let folder = matches!(&row.what, ParkedWhat::Content(s) if s.kind == Kind::Folder);
            if !blocked || (folder && self.is_free(t, id, &leaving)?) {
                self.retry(wall, t, id, row)?;
            }
        }
        Ok(())
    }

    /// Whether a folder may be made although moves are still to be done: neither at a name that
    /// is still to be left, nor below a folder that is not on the disk. At that one's path there
    /// may be another one, which is to be moved.
    fn is_free(
        &self,
        t: &dyn TablesRead,
        id: ObjectId,
        leaving: &BTreeSet<access::Slot>,
    ) -> Result<bool, TableError> {
        let Some(slot) = live(t, id)?.and_then(|row| row.slot().cloned()) else {
            return Ok(false);
        };
        let parent = slot.0;
        let made = |running: &Running| matches!(running.op, ApplyOp::MakeFolder { id, .. } if id == parent);
        let there = parent.is_root()
            || live(t, parent)?.is_some_and(|row| row.local.is_some())
            || self.running.iter().any(made);
        Ok(there && !leaving.contains(&slot))
    }

    fn retry(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        row: ParkedRow,
    ) -> Result<(), TableError> {
        match row.what {
            ParkedWhat::Content(state) if live(t, id)?.is_some() => {
                self.plan_content(wall, t, row.seq, &state, None, None)
            }
            ParkedWhat::Meta(state) => self.retry_meta(t, id, state),
            ParkedWhat::Move { .. } => Ok(()),
            ParkedWhat::Remove { at, identity, kind } => {
                let still = access::name(t, at.0, &at.1)?.and_then(|row| row.remnant);
                let fresh = access::name(t, at.0, &at.1)?.is_none() && row.attempts == 0;
                let folder = self.folders.at(t, at.0)?;
                let (Some(folder), true) = (folder, fresh || still == Some(identity)) else {
                    // Its folder went too, or the name was taken by something else since.
                    return self.unpark(t, id);
                };
                let place = Place {
                    folder,
                    name: at.1.clone(),
                };
                let below = NameSetDigest::default();
                self.touched.insert(place.folder.id);
                let op = ApplyOp::Remove {
                    id,
                    at: place,
                    identity,
                    kind,
                    below,
                };
                self.run(op, Then::Removed(row.seq, at));
                Ok(())
            }
            ParkedWhat::Link { object, at } => self.plan_link(t, row.seq, object, at),
            ParkedWhat::Content(_) => self.unpark(t, id),
        }
    }

    /// Tries all moves that are parked, together: they may have to change places.
    fn retry_moves(&mut self, wall: WallMillis, t: &mut dyn Tables) -> Result<(), TableError> {
        let mut moves = Vec::with_capacity(self.blocking.len());
        for id in self.blocking.clone() {
            let local = live(t, id)?.and_then(|row| row.local);
            let (Some(local), Some(row)) = (local, parked_row(t, id)?) else {
                self.unpark(t, id)?;
                continue;
            };
            let ParkedWhat::Move { from, to } = row.what else {
                self.unpark(t, id)?;
                continue;
            };
            let next = WallMillis(wall.0 + self.wait_ms(id, row.attempts + 1));
            self.parked.insert(id, next);
            self.touched.extend([from.0.id, to.0.id]);
            let place = |(folder, name)| Place { folder, name };
            moves.push(MoveOne {
                id,
                from: place(from),
                to: place(to),
                identity: local.fingerprint.identity,
            });
        }
        if !moves.is_empty() {
            self.run(ApplyOp::Move(moves), Then::Moved);
        }
        Ok(())
    }

    /// Notes what is about to be done, in the same transaction as the rows that say it is done.
    pub(super) fn intend(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        seq: Seq,
        what: ParkedWhat,
    ) -> Result<(), TableError> {
        let before = parked_row(t, id)?.filter(|row| {
            matches!(what, ParkedWhat::Move { .. })
                && matches!(row.what, ParkedWhat::Content(_) | ParkedWhat::Meta(_))
        });
        if let (Some(next), Some(before)) = (self.parked.remove(&id), before) {
            self.displaced.insert(id, (next, before));
        }
        self.intended.insert(id);
        let row = ParkedRow {
            seq,
            reason: "it is being done".to_owned(),
            since: wall,
            attempts: 0,
            next_try: WallMillis(0),
            what,
        };
        put_parked(t, id, &row)
    }

    fn retry_meta(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        state: ObjectState,
    ) -> Result<(), TableError> {
        if state.kind == Kind::Folder {
            self.touched.insert(id);
            return Ok(());
        }
        let (Some((at, _)), Some(live)) = (self.place_of(t, id)?, live(t, id)?) else {
            return self.unpark(t, id);
        };
        let Some(local) = live.local else {
            return self.unpark(t, id);
        };
        let identity = local.fingerprint.identity;
        let (kind, meta) = (state.kind, state.meta.clone());
        let op = ApplyOp::SetMeta {
            id,
            at: Some(at),
            identity,
            kind,
            meta,
        };
        self.run(op, Then::Meta(Box::new(state)));
        Ok(())
    }

    pub(super) fn park_content(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        state: ObjectState,
        reason: String,
    ) -> Result<(), TableError> {
        let id = state.id;
        self.park(wall, t, id, seq, reason, ParkedWhat::Content(state))
    }

    pub(super) fn park(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        seq: Seq,
        reason: String,
        what: ParkedWhat,
    ) -> Result<(), TableError> {
        let before = parked_row(t, id)?;
        let attempts = before
            .as_ref()
            .map_or(1, |row| row.attempts.saturating_add(1));
        let since = before.map_or(wall, |row| row.since);
        let next_try = WallMillis(wall.0 + self.wait_ms(id, attempts));
        self.parked.insert(id, next_try);
        self.intended.remove(&id);
        if matches!(what, ParkedWhat::Move { .. }) {
            self.blocking.insert(id);
        } else {
            self.blocking.remove(&id);
        }
        put_parked(
            t,
            id,
            &ParkedRow {
                seq,
                reason,
                since,
                attempts,
                next_try,
                what,
            },
        )
    }

    /// A later record changed what a parked object is to become.
    pub(super) fn renew_parked(
        &mut self,
        t: &mut dyn Tables,
        state: &ObjectState,
    ) -> Result<(), TableError> {
        let Some(mut row) = parked_row(t, state.id)? else {
            return Ok(());
        };
        match &mut row.what {
            ParkedWhat::Content(wanted) | ParkedWhat::Meta(wanted) => {
                let content_seq = wanted.content_seq.max(state.content_seq);
                *wanted = ObjectState {
                    content_seq,
                    ..state.clone()
                };
            }
            ParkedWhat::Move { .. } | ParkedWhat::Link { .. } | ParkedWhat::Remove { .. } => {}
        }
        put_parked(t, state.id, &row)
    }

    pub(super) fn unpark(&mut self, t: &mut dyn Tables, id: ObjectId) -> Result<(), TableError> {
        self.displaced.remove(&id);
        let known = self.parked.remove(&id).is_some();
        if self.intended.remove(&id) || known {
            self.blocking.remove(&id);
            remove_parked(t, id)?;
        }
        Ok(())
    }

    /// An object was moved: what it was parked for before is still to be done.
    pub(super) fn unpark_moved(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let before = self.displaced.remove(&id);
        self.unpark(t, id)?;
        let Some((next, row)) = before else {
            return Ok(());
        };
        self.parked.insert(id, next);
        put_parked(t, id, &row)
    }

    fn wait_ms(&self, id: ObjectId, attempts: u32) -> u64 {
        self.policy.retry.wait_ms(id.number, attempts)
    }

    /// Parked objects for a report, at most `most`.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn parked_rows(
        &self,
        t: &dyn TablesRead,
        most: usize,
    ) -> Result<Vec<(ObjectId, ParkedRow)>, TableError> {
        let mut rows = access::parked(t, most.saturating_add(self.intended.len()))?;
        rows.retain(|(id, _)| !self.intended.contains(id));
        rows.truncate(most);
        Ok(rows)
    }
}
