//! Objects that could not be applied, and when they are tried again.

use super::fetch::with_content_of;
use super::waiting::{Stuck, after_move};
use super::{ApplyOp, Place, Replica, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{self, live, parked_row, put_name, put_parked, remove_parked};
use crate::ledger::object::{Kind, ObjectState, Seq};
use crate::ledger::rows::{NameRow, ParkedRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::NameSetDigest;
use crate::time::WallMillis;

/// How many are tried at once.
const RETRY_BATCH: usize = 256;

impl Replica {
    /// When parked objects are tried again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<WallMillis> {
        self.parked.first()
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
        // In the middle of a record the names of what it removes may look free.
        if !self.running.is_empty() || self.issued.is_some() || self.rest.is_some() {
            return Ok(());
        }
        let due = self.parked.due(wall, RETRY_BATCH);
        self.retrying = !due.is_empty();
        if due.iter().any(|id| self.blocking.contains_key(id)) {
            self.retry_moves(wall, t)?;
        }
        for id in due {
            let Some(row) = parked_row(t, id)? else {
                self.parked.remove(id);
                continue;
            };
            if self.blocking.contains_key(&id) {
                continue;
            }
            // Whatever comes of it, not at once again.
            self.parked
                .insert(id, WallMillis(wall.0 + self.wait_ms(id, row.attempts + 1)));
            self.retry(wall, t, id, row)?;
        }
        Ok(())
    }

    fn retry(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        row: ParkedRow,
    ) -> Result<(), TableError> {
        self.give_way(id, row.kept);
        match row.what {
            ParkedWhat::Content(state)
                if self.is_still_kept(row.kept) && live(t, id)?.is_some() =>
            {
                self.look_at_kept(wall, t, row.seq, state)
            }
            ParkedWhat::Content(state) if live(t, id)?.is_some() => {
                self.plan_content(wall, t, row.seq, &state, None, None)
            }
            ParkedWhat::Meta(state) => self.retry_meta(wall, t, id, row.seq, state),
            ParkedWhat::Move { .. } => Ok(()),
            ParkedWhat::Remove { at, known, kind } => {
                let still = access::name(t, at.0, &at.1)?.and_then(|row| row.remnant);
                let still = still.is_some_and(|still| still.identity == known.identity);
                let fresh = access::name(t, at.0, &at.1)?.is_none() && row.attempts == 0;
                let folder = self.folders.at(t, at.0)?;
                let Some(folder) = folder else {
                    // Its folder went too.
                    return self.unpark(t, id);
                };
                if !fresh && !still {
                    // The name was to be taken by something else since, whether that came or not.
                    self.owe_sweep(t, at.0)?;
                    return self.unpark(t, id);
                }
                // As when it was planned first: until it is done the name remembers what is there.
                let object = access::name(t, at.0, &at.1)?.and_then(|row| row.object);
                let remnant = Some(known);
                put_name(t, at.0, &at.1, NameRow { object, remnant })?;
                let place = Place {
                    folder,
                    name: at.1.clone(),
                };
                let below = NameSetDigest::default();
                self.touched.insert(place.folder.id);
                let op = ApplyOp::Remove {
                    id,
                    at: place,
                    known,
                    drift: self.on_drift(id, row.seq),
                    kind,
                    below,
                };
                self.run(op, Then::Removed(row.seq, at));
                Ok(())
            }
            ParkedWhat::Link { object, at } => self.plan_link(t, row.seq, object, at),
            ParkedWhat::Theirs { object, at } => self.retry_theirs(t, id, object, at),
            ParkedWhat::Content(_) => self.unpark(t, id),
        }
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
        let before = parked_row(t, id)?;
        self.parked.remove(id);
        self.intended.insert(id);
        let row = ParkedRow {
            seq,
            reason: "it is being done".to_owned(),
            since: wall,
            attempts: 0,
            next_try: WallMillis(0),
            what,
            kept: None,
        };
        let row = match before {
            Some(before) if before.is_of_state() => after_move(&row, before).unwrap_or(row),
            _ => row,
        };
        put_parked(t, id, &row)
    }

    fn retry_meta(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        seq: Seq,
        state: ObjectState,
    ) -> Result<(), TableError> {
        if state.kind == Kind::Folder {
            let Some(row) = live(t, id)? else {
                return self.unpark(t, id);
            };
            if row.local.is_none() && !id.is_root() {
                // It was lost meanwhile: it gets them when it is made.
                return self.plan_content(wall, t, seq, &row.state, None, None);
            }
            self.touched.insert(id);
            return Ok(());
        }
        let (Some((at, _)), Some(live)) = (self.place_of(t, id)?, live(t, id)?) else {
            return self.unpark(t, id);
        };
        let Some(known) = live.known() else {
            return self.unpark(t, id);
        };
        let (kind, meta) = (state.kind, state.meta.clone());
        let op = ApplyOp::SetMeta {
            id,
            at: Some(at),
            identity: known.identity,
            kind,
            meta,
            left: known.left,
            drift: self.on_drift(id, seq),
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
        self.park(wall, t, id, seq, reason, ParkedWhat::Content(state))?;
        // However long it has been tried, it is tried again as soon as its folder is made.
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        let parent = row.slot().map_or(id, |(parent, _)| *parent);
        if live(t, parent)?.is_some_and(|row| row.local.is_none()) && !parent.is_root() {
            self.waiting.entry(parent).or_default().insert(id);
        }
        Ok(())
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
        let (first, behind) = match before {
            Some(before) if before.is_of_move() && !matches!(what, ParkedWhat::Move { .. }) => {
                (before.then().cloned(), Some(before))
            }
            other => (other, None),
        };
        let attempts = first
            .as_ref()
            .map_or(1, |row| row.attempts.saturating_add(1));
        let row = ParkedRow {
            seq,
            reason,
            since: first.as_ref().map_or(wall, |row| row.since),
            attempts,
            next_try: WallMillis(wall.0 + self.wait_ms(id, attempts)),
            what,
            kept: None,
        };
        if let Some(row) = behind.and_then(|before| after_move(&before, row.clone())) {
            // What is done to it comes after its move.
            return put_parked(t, id, &row);
        }
        let row = match first {
            Some(first) if first.is_of_state() => after_move(&row, first).unwrap_or(row),
            _ => row,
        };
        self.parked.insert(id, row.next_try);
        self.intended.remove(&id);
        self.drifts.kept.remove(&id);
        match Stuck::of(&row) {
            Some(stuck) => self.is_stuck(id, stuck),
            None => self.is_free(id),
        }
        put_parked(t, id, &row)
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
            ParkedWhat::Content(wanted) | ParkedWhat::Meta(wanted) => renew(wanted, state),
            ParkedWhat::Move { then, .. } => match then.as_mut().map(|row| &mut row.what) {
                Some(ParkedWhat::Content(wanted) | ParkedWhat::Meta(wanted)) => {
                    renew(wanted, state);
                }
                _ => {
                    *then = Some(Box::new(ParkedRow {
                        seq: state.version.seq,
                        reason: row.reason.clone(),
                        since: row.since,
                        attempts: 0,
                        next_try: WallMillis(0),
                        what: ParkedWhat::Meta(state.clone()),
                        kept: None,
                    }));
                }
            },
            ParkedWhat::Link { .. } | ParkedWhat::Remove { .. } | ParkedWhat::Theirs { .. } => {}
        }
        put_parked(t, state.id, &row)
    }

    pub(super) fn unpark(&mut self, t: &mut dyn Tables, id: ObjectId) -> Result<(), TableError> {
        self.drifts.forget(id);
        let known = self.parked.remove(id);
        if known {
            self.durable.unparked(id);
        }
        if self.intended.remove(&id) || known {
            self.is_free(id);
            remove_parked(t, id)?;
        }
        Ok(())
    }

    /// A removal needs no more to be done. What waits at its name to be linked does.
    pub(super) fn unpark_removal(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let row = parked_row(t, id)?;
        match row.map(|row| row.what) {
            Some(ParkedWhat::Link { .. }) => Ok(()),
            _ => self.unpark(t, id),
        }
    }

    /// An object was moved: what else it is parked for is still to be done.
    pub(super) fn unpark_moved(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let then = parked_row(t, id)?.and_then(|row| row.then().cloned());
        self.unpark(t, id)?;
        let Some(row) = then else {
            return Ok(());
        };
        self.parked.insert(id, WallMillis(0));
        put_parked(t, id, &row)
    }

    pub(super) fn wait_ms(&self, id: ObjectId, attempts: u32) -> u64 {
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

/// A later state takes the place of an earlier one, whose content is still to come.
fn renew(wanted: &mut ObjectState, state: &ObjectState) {
    *wanted = with_content_of(wanted, state.clone());
}
