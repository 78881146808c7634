//! What is on the disk for certain, and what is looked at again after a crash of the system.
//!
//! Whatever is written belongs to a round, which ends when a sync of the disk begins. A row says in
//! which round its copy was written. After another boot, or a sync that failed, the copies of all
//! rounds that no good sync has ended are verified by their content before anything more is claimed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::waiting::wanted;
use super::{ApplyOp, Mark, PROGRESS, Replica, Then};
use crate::ids::{BootId, ObjectId};
use crate::ledger::access::{children, live, meta, parked_row, put_live, put_meta, put_name};
use crate::ledger::object::{Kind, Observed, Seq};
use crate::ledger::rows::{Known, NameRow, ObjectRow, Progress, decode_row};
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::time::WallMillis;

const SYNCED: &str = "replica-synced";

/// How many copies are verified at once.
const AT_ONCE: usize = 64;

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Synced {
    /// The run of the system in which it was written.
    boot: Option<BootId>,
    /// Everything of this round and those before is on the disk.
    round: u64,
    /// What was claimed then.
    progress: Progress,
    /// What was written in later rounds is not verified yet.
    doubted: bool,
}

/// Which rounds are on the disk.
#[derive(Debug, Default)]
pub(super) struct Durable {
    synced: Synced,
    /// What is written now belongs to this one.
    pub(super) round: u64,
    /// What the sync under way ends: a round, and the claim that it makes safe where it makes none
    /// itself.
    ending: Option<(u64, Option<Progress>)>,
    /// Still to be verified.
    doubted: BTreeSet<ObjectId>,
    /// The same, once something that could not be moved is where the ledger has it.
    waiting: BTreeSet<ObjectId>,
    /// What was being fetched when a sync failed: its staged bytes may be lost, which no later sync
    /// tells, so that it is verified once it is published.
    staged: BTreeSet<ObjectId>,
    /// The system came up anew, and the names that records empty may be back.
    rebooted: bool,
    /// Something was put in doubt since the sync under way began.
    raised: bool,
    /// What was parked and is done, with the round in which it was: its claim came before.
    unparked: BTreeMap<ObjectId, u64>,
    /// A sync has ended since this start: what an earlier one did last is on the disk too.
    has_synced: bool,
}

impl Durable {
    pub(super) fn is_doubted(&self) -> bool {
        !self.doubted.is_empty() || !self.waiting.is_empty()
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.ending.is_some()
    }

    /// Something was published: whether it is as it was staged is to be verified, if a sync failed
    /// meanwhile.
    pub(super) fn published(&mut self, id: ObjectId) {
        if self.staged.remove(&id) {
            self.doubted.insert(id);
        }
    }

    /// It cannot be verified while something is not where the ledger has it.
    pub(super) fn wait(&mut self, id: Option<ObjectId>) {
        self.waiting.extend(id);
    }

    /// What waited for that is verified now.
    pub(super) fn wait_no_more(&mut self) {
        self.doubted.append(&mut self.waiting);
    }

    /// Something that was parked is done.
    pub(super) fn unparked(&mut self, id: ObjectId) {
        self.unparked.insert(id, self.round);
    }

    /// A sync begins.
    pub(super) fn end_round(&mut self, progress: Option<Progress>) {
        self.ending = Some((self.round, progress));
        self.round += 1;
        self.raised = false;
    }
}

impl Replica {
    /// Says which run of the system this is; call it before anything else. After another one than
    /// before, claims that no sync of the disk covers are taken back.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_boot(&mut self, t: &mut dyn Tables, boot: BootId) -> Result<(), TableError> {
        let mut synced: Synced = meta(t, SYNCED)?.unwrap_or_default();
        let before = synced.boot.replace(boot);
        synced.doubted |= before.is_some_and(|before| before != boot);
        self.durable.synced = synced;
        // Behind every round that an earlier start may have begun.
        self.durable.round = synced.round + 2;
        self.durable.rebooted = synced.doubted;
        put_meta(t, SYNCED, &synced)?;
        if !synced.doubted {
            return Ok(());
        }
        if synced.progress.claim < self.progress.claim {
            self.progress = synced.progress;
            self.cursor = self.progress.claim;
            self.head = self.progress.claim;
            self.head_bytes = self.progress.bytes;
            self.hold = self.progress.hold;
            put_meta(t, PROGRESS, &self.progress)?;
        }
        self.doubt(t)
    }

    /// Whether copies are being verified: no more is claimed until they are.
    #[must_use]
    pub fn is_verifying(&self) -> bool {
        self.durable.is_doubted()
    }

    /// Whether [`Replica::poll_verify`] has anything to do now.
    #[must_use]
    pub fn can_verify(&self) -> bool {
        !self.durable.doubted.is_empty() && self.is_idle()
    }

    /// Whether what is claimed is on the disk for certain, but for what is parked and
    /// [`Replica::unsynced`].
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.durable.has_synced && !self.is_verifying()
    }

    /// What was parked and is done, which no sync covers yet: as long as that it is not held for
    /// certain, and counts as little as what is parked still.
    pub fn unsynced(&self) -> impl ExactSizeIterator<Item = ObjectId> {
        self.durable.unparked.keys().copied()
    }

    /// Plans the verifying of some copies, if nothing else is under way; operations follow by
    /// [`Replica::poll_step`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_verify(&mut self, t: &dyn TablesRead) -> Result<(), TableError> {
        if !self.can_verify() {
            return Ok(());
        }
        for _ in 0..AT_ONCE {
            let Some(id) = self.durable.doubted.pop_first() else {
                break;
            };
            let Some(row) = live(t, id)? else { continue };
            if self.drifts.kept.contains(&id) {
                // What is there is others' and stays.
                continue;
            }
            // What could not be moved may be lost where it was left.
            let at = match self.blocking.get(&id).cloned() {
                Some(stuck) => Some(self.left_place(t, stuck)?),
                None => self.place_of(t, id)?.map(|(at, _)| at),
            };
            let (Some(local), Some(at)) = (&row.local, at) else {
                continue;
            };
            let op = ApplyOp::Verify {
                id,
                at,
                kind: row.state.kind,
                print: local.fingerprint,
                left: row.known().and_then(|known| known.left),
            };
            self.run(op, Then::Verified);
        }
        Ok(())
    }

    /// What was published so far counts, though no sync covers it: as [`Replica::handle_synced`]
    /// for jobs that want it so.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_published(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        self.durable.ending = None;
        self.sweep.sync_failed();
        self.durable.unparked.clear();
        match self.syncing.take() {
            Some(mark) => self.claim_mark(t, mark),
            None => Ok(()),
        }
    }

    /// Whether a sync would make anything certain that is claimed already, or was parked when it was;
    /// one sync at a time.
    pub fn poll_flush(&mut self) -> bool {
        let synced = &self.durable.synced;
        let wanted = synced.doubted
            || synced.progress.claim < self.progress.claim
            || !self.durable.has_synced
            || !self.durable.unparked.is_empty();
        let free = self.syncing.is_none() && !self.durable.is_syncing();
        if !wanted || !free || !self.is_idle() || self.durable.is_doubted() {
            return false;
        }
        self.durable.end_round(Some(self.progress));
        self.sweep.sync_began();
        true
    }

    /// Everything that was on the disk when [`Self::poll_sync`] or [`Self::poll_flush`] said so is
    /// durable: writes the new claim, which counts once this transaction is durable too.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_synced(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if let Some(mark) = self.syncing.take() {
            self.claim_mark(t, mark)?;
        }
        if let Some((round, progress)) = self.durable.ending.take() {
            self.sweeps_synced(t)?;
            let synced = &mut self.durable.synced;
            synced.round = round;
            synced.progress = progress.unwrap_or(self.progress);
            synced.doubted = self.durable.raised;
            put_meta(t, SYNCED, synced)?;
            self.durable.unparked.retain(|_, done| *done > round);
            self.durable.has_synced = true;
        }
        Ok(())
    }

    /// A sync failed: nothing is claimed, also not by the next one, before all that was written
    /// since the last good one is verified.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_sync_failed(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        self.syncing = None;
        self.durable.ending = None;
        self.sweep.sync_failed();
        self.dirty = true;
        self.durable.synced.doubted = true;
        self.durable.staged = self.fetches.objects().collect();
        if let Some(issued) = &mut self.issued {
            issued.doubtful = true;
        }
        put_meta(t, SYNCED, &self.durable.synced)?;
        self.doubt(t)
    }

    /// Up to where records do not come again, whatever happens to the system.
    pub(super) fn claimed_for_certain(&self) -> Seq {
        self.progress.claim.min(self.durable.synced.progress.claim)
    }

    fn claim_mark(&mut self, t: &mut dyn Tables, mark: Mark) -> Result<(), TableError> {
        self.progress = Progress {
            claim: mark.seq,
            incarnation: mark.incarnation,
            hold: mark.hold,
            bytes: mark.bytes,
        };
        self.marks.retain(|m| m.seq > mark.seq);
        put_meta(t, PROGRESS, &self.progress)?;
        self.forget_former(t)?;
        self.maybe_sweep();
        Ok(())
    }

    /// Whether a name that this record emptied may hold what it held before, because the disk lost
    /// its last changes.
    pub(super) fn is_back(&self, seq: Seq) -> bool {
        self.durable.rebooted && self.is_suspect(seq)
    }

    /// Everything that was written since the last good sync is to be verified.
    pub(super) fn doubt(&mut self, t: &dyn TablesRead) -> Result<(), TableError> {
        let round = self.durable.synced.round;
        let mut failed = None;
        let doubted = &mut self.durable.doubted;
        t.range(Table::Objects, &[], None, &mut |key, value| {
            let id = ObjectId::from_key(key);
            match (id, decode_row(Table::Objects, value)) {
                (Some(id), Ok(ObjectRow::Live(row))) if !id.is_root() => {
                    if row.local.is_some_and(|local| local.round > round) {
                        doubted.insert(id);
                    }
                }
                (_, Ok(_)) => {}
                (_, Err(error)) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// A folder was lost, or is made anew: the copies in it may be gone with what it was. They count
    /// as written now, so that a crash before they are verified does not forget that they are to be.
    pub(super) fn doubt_below(
        &mut self,
        t: &mut dyn Tables,
        folder: ObjectId,
    ) -> Result<(), TableError> {
        let mut below = Vec::new();
        children(t, folder, &mut |_, row| {
            below.extend(row.object);
            ControlFlow::Continue(())
        })?;
        for id in below {
            let Some(mut row) = live(t, id)? else {
                continue;
            };
            let Some(local) = &mut row.local else {
                continue;
            };
            local.round = self.durable.round;
            put_live(t, id, row)?;
            self.durable.doubted.insert(id);
            self.durable.raised = true;
        }
        if self.durable.raised && !self.durable.synced.doubted {
            self.durable.synced.doubted = true;
            put_meta(t, SYNCED, &self.durable.synced)?;
        }
        Ok(())
    }

    /// A copy is as it was written: it belongs to the round of now, which is to be synced.
    pub(super) fn verified(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        seen: Vec<Observed>,
    ) -> Result<(), TableError> {
        let Some(id) = op.object() else { return Ok(()) };
        let (Some(mut row), Some(seen)) = (live(t, id)?, seen.into_iter().next()) else {
            return Ok(());
        };
        row.local = Some(self.local_of(seen));
        let is_linked = row.names.len() > 1;
        put_live(t, id, row)?;
        if is_linked {
            // Its other names may be lost all the same.
            self.relink(wall, t, id)?;
        }
        Ok(())
    }

    /// A copy is not what was written: it is made anew, and what is there goes to the trash. A
    /// folder takes with it what was in it, however long that has been on the disk.
    pub(super) fn torn(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
    ) -> Result<(), TableError> {
        let reason = "it was lost in a crash of the system or by the disk: it is fetched again";
        op.object()
            .map_or(Ok(()), |id| self.lose(wall, t, id, reason))
    }

    /// An object is not on the disk any more, or not as it should be: it is made anew.
    pub(super) fn lose(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        reason: &str,
    ) -> Result<(), TableError> {
        let Some(mut row) = live(t, id)? else {
            return Ok(());
        };
        let Some((parent, name)) = row.slot().cloned() else {
            return Ok(());
        };
        if let Some(stuck) = self.blocking.get(&id) {
            let left = stuck.left_slot();
            return self.give_up(wall, t, id, &left);
        }
        row.local = None;
        let wanted = wanted(parked_row(t, id)?, &row.state);
        put_live(t, id, row)?;
        if wanted.kind == Kind::Folder {
            self.doubt_below(t, id)?;
        }
        let noted = NameRow {
            object: Some(id),
            remnant: Some(Known::default()),
        };
        put_name(t, parent, &name, noted)?;
        // Its other names may be links to what was there.
        super::suspect_published(t, id)?;
        self.folders.forget();
        self.park_content(wall, t, wanted.version.seq, wanted, reason.to_owned())
    }
}
