//! Objects that could not be applied, and when they are tried again.

use super::{ApplyOp, MoveOne, Place, Replica, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{live, parked_row, put_parked, remove_parked};
use crate::ledger::object::{Kind, ObjectState, Seq};
use crate::ledger::rows::{ParkedRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::NameSetDigest;
use crate::time::WallMillis;

/// The first wait, doubled with each attempt.
const RETRY_FIRST_MS: u64 = 1_000;
/// The longest wait.
const RETRY_MAX_MS: u64 = 60_000;
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
        if !self.running.is_empty() {
            return Ok(());
        }
        let due: Vec<ObjectId> = self
            .parked
            .iter()
            .filter(|(_, next)| **next <= wall)
            .map(|(id, _)| *id)
            .take(RETRY_BATCH)
            .collect();
        for id in due {
            let Some(row) = parked_row(t, id)? else {
                self.parked.remove(&id);
                continue;
            };
            // Whatever comes of it, not at once again.
            self.parked
                .insert(id, WallMillis(wall.0 + wait_ms(id, row.attempts + 1)));
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
        match row.what {
            ParkedWhat::Content(state) if live(t, id)?.is_some() => {
                self.plan_content(wall, t, row.seq, &state, None, None)
            }
            ParkedWhat::Meta(state) => self.retry_meta(t, id, state),
            ParkedWhat::Move { from } => {
                let folder = self.folders.at(t, from.0)?;
                let (Some(folder), Some((to, _)), Some(live)) =
                    (folder, self.place_of(t, id)?, live(t, id)?)
                else {
                    return self.unpark(t, id);
                };
                let Some(local) = live.local else {
                    return self.unpark(t, id);
                };
                let identity = local.fingerprint.identity;
                let place = Place {
                    folder,
                    name: from.1.clone(),
                };
                let one = MoveOne {
                    id,
                    from: place,
                    to,
                    identity,
                };
                self.run(ApplyOp::Move(vec![one]), Then::Moved(vec![(id, from)]));
                Ok(())
            }
            ParkedWhat::Remove { at, identity, kind } => {
                let Some(folder) = self.folders.at(t, at.0)? else {
                    return self.unpark(t, id);
                };
                let place = Place {
                    folder,
                    name: at.1.clone(),
                };
                let below = NameSetDigest::default();
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
            ParkedWhat::Content(_) => self.unpark(t, id),
        }
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
        let (kind, meta) = (state.kind, state.meta);
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
        let next_try = WallMillis(wall.0 + wait_ms(id, attempts));
        self.parked.insert(id, next_try);
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
            ParkedWhat::Move { .. } | ParkedWhat::Remove { .. } => {}
        }
        put_parked(t, state.id, &row)
    }

    pub(super) fn unpark(&mut self, t: &mut dyn Tables, id: ObjectId) -> Result<(), TableError> {
        if self.parked.remove(&id).is_some() {
            remove_parked(t, id)?;
        }
        Ok(())
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
        crate::ledger::access::parked(t, most)
    }
}

/// Doubling from a second to a minute, spread by 20 % with the object's own number: many objects
/// parked at once do not come back at once.
fn wait_ms(id: ObjectId, attempts: u32) -> u64 {
    let doubled = RETRY_FIRST_MS << attempts.saturating_sub(1).min(6);
    let wait = doubled.min(RETRY_MAX_MS);
    wait - wait / 10 + (id.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % (wait / 5).max(1)
}
