//! Comparing what was seen with what the ledger has, and pairing what vanished with what appeared.

use std::collections::{BTreeMap, BTreeSet};

use super::listing::Depth;
use super::pending::Waiting;
use super::{Coalescer, LookError, Looked, Slot, What};
use crate::filter::Verdict;
use crate::ids::ObjectId;
use crate::ledger::access::{self, live, put_live};
use crate::ledger::object::{Content, Fingerprint, Identity, Kind, Observed, Seq};
use crate::ledger::rows::{LiveObject, Local};
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::time::{Instant, WallMillis};

/// How close to its last change a file's times may fail to show another one: older kernels step
/// them with the timer tick, 10 ms at the slowest, and clocks are read at different moments.
pub(super) const RACY_MS: u64 = 30;

/// How far back lost hints may reach when a listing makes up for them.
pub(super) const LOST_MS: u64 = 10_000;

/// A name behind which an object of the ledger is not any more.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) id: ObjectId,
    pub(super) row: LiveObject,
    pub(super) waiting: Waiting,
}

impl Lost {
    /// What was hinted at the name that it left.
    pub(super) fn what(&self) -> What {
        self.waiting.what
    }
}

/// A name behind which something is that the ledger does not have there.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) observed: Observed,
    pub(super) verdict: Verdict,
    pub(super) what: What,
    /// How often it was looked at in vain.
    pub(super) misses: u8,
}

/// A file that is empty now and was not.
#[derive(Debug)]
pub(super) struct Emptied {
    pub(super) id: ObjectId,
    pub(super) row: LiveObject,
    pub(super) observed: Observed,
    pub(super) waiting: Waiting,
}

/// What one round of looks found, by slot.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) lost: BTreeMap<Slot, Lost>,
    pub(super) found: BTreeMap<Slot, Found>,
    /// Files that are empty now and were not.
    pub(super) emptied: BTreeMap<Slot, Emptied>,
    /// Folders that are not where the ledger has them.
    pub(super) missed: BTreeSet<ObjectId>,
    /// Where something is, of the ends of renames.
    taken: BTreeSet<Slot>,
    /// What was written at names that are not carried.
    aside: Vec<(Identity, What)>,
    /// Objects that something was told of by names where nothing is, and where they went.
    left: Vec<(Vec<u8>, What, Option<Slot>)>,
}

/// Which lost object each found name belongs to.
pub(super) type Moves = BTreeMap<Slot, Slot>;

impl Coalescer {
    /// Takes what the looks of one [`Coalescer::poll_looks`] found, all of them together.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_looked(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        looked: Vec<Looked>,
    ) -> Result<(), TableError> {
        let missed = looked
            .iter()
            .filter(|look| look.itself == Err(LookError::Moved))
            .map(|look| look.folder);
        let mut round = Round {
            missed: missed.collect(),
            ..Round::default()
        };
        for Looked {
            folder,
            itself,
            names,
        } in looked
        {
            let misses = self.listings.looking_itself.remove(&folder);
            match itself {
                Ok(observed) => {
                    self.listings.looked_at_itself(folder);
                    self.seen_folders.insert(folder, observed);
                }
                Err(LookError::Failed(reason)) => {
                    let names = names.into_iter().map(|(name, _)| name).collect();
                    self.folder_failed(now, t, folder, names, &reason)?;
                    continue;
                }
                Err(error @ (LookError::Moved | LookError::OtherFilesystem)) => {
                    let names = names.into_iter().map(|(name, _)| name);
                    self.folder_missed(now, t, folder, names, misses, &error)?;
                    continue;
                }
            }
            for (name, seen) in names {
                let slot = (folder, name);
                let waiting = self.listings.looking.remove(&slot);
                let waiting = waiting.unwrap_or_else(|| Waiting::new(What::LOOK, now));
                match seen {
                    Ok(observed) => {
                        self.unseen.name_seen(&slot);
                        self.listings.looked_at(&slot);
                        self.examine(now, wall, t, slot, observed, waiting, &mut round)?;
                    }
                    Err(error) => self.name_missed(now, t, slot, waiting, &error)?,
                }
            }
        }
        for (object, what, to) in std::mem::take(&mut round.left) {
            // What only moved was looked at where it is now.
            let moved = to.is_some_and(|to| round.taken.contains(&to));
            if !moved || self.strays.contains(&object) {
                self.strays.add(object, what);
            }
        }
        self.heed_aside(t, &mut round)?;
        self.recall_vanished(now, t, &mut round)?;
        self.prepare_links(t, &round)?;
        let mut moves = self.pair(now, t, &mut round)?;
        self.renew_folders(wall, t, &mut round, &moves)?;
        self.guard_round(now, wall, t, &mut round, &mut moves)?;
        self.record_round(wall, t, round, &moves)?;
        self.record_folders(wall, t)?;
        self.heard(now, wall);
        Ok(())
    }

    /// What was written while it was at a name that is not carried was written all the same, should
    /// it come back before it is taken for gone.
    fn heed_aside(&mut self, t: &dyn TablesRead, round: &mut Round) -> Result<(), TableError> {
        for (at, what) in std::mem::take(&mut round.aside) {
            let lost = round.lost.values_mut();
            for lost in lost.filter(|lost| identity(&lost.row) == Some(at)) {
                lost.waiting.what.merge(what);
            }
            let Some(id) = self.vanished.get(&at) else {
                continue;
            };
            let names = live(t, *id)?.map(|row| row.names).unwrap_or_default();
            for slot in names {
                self.pending.heed(&slot, what);
            }
        }
        Ok(())
    }

    fn folder_missed(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        folder: ObjectId,
        names: impl Iterator<Item = crate::path::Name>,
        misses: Option<u8>,
        error: &LookError,
    ) -> Result<(), TableError> {
        let mut lost = false;
        if let (Some(misses), LookError::Moved) = (misses, error) {
            // Its own metadata is not compared when what moved was a folder above it.
            lost |= !self.look_at_folder_again(now, folder, misses);
        }
        for name in names {
            let slot = (folder, name);
            let Some(waiting) = self.listings.looking.remove(&slot) else {
                continue;
            };
            let wrote = waiting.what.written || waiting.what.closed;
            let object = waiting.object.clone().map(|object| (object, waiting.what));
            if !self.look_again(now, slot.clone(), waiting) {
                // From here on the listing that the folder is owed stands for it.
                self.unseen.name_seen(&slot);
                lost = true;
                if let Some((object, what)) = object {
                    self.strays.add(object, what);
                }
                if wrote {
                    // It does not know of the write.
                    self.listings.lost();
                }
            }
        }
        if lost && self.look_at_path(now, t, folder)? {
            self.listings.owe(folder, Depth::Shallow);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one look's facts, used once")]
    fn examine(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: Slot,
        observed: Option<Observed>,
        mut waiting: Waiting,
        round: &mut Round,
    ) -> Result<(), TableError> {
        waiting.moved = false;
        let nothing = observed.is_none();
        if nothing && let Some(object) = waiting.object.take() {
            round
                .left
                .push((object, waiting.what, waiting.partner.clone()));
        } else if waiting.partner.is_some() {
            round.taken.insert(slot.clone());
        }
        let verdict = match &observed {
            Some(seen) => self.judge(t, &slot, seen.kind)?,
            None => Verdict::Excluded,
        };
        if let (Some(seen), Verdict::Excluded) = (&observed, verdict)
            && (waiting.what.written || waiting.what.closed)
        {
            let identity = seen.fingerprint.identity;
            round.aside.push((identity, waiting.what));
        }
        let observed = observed.filter(|_| verdict != Verdict::Excluded);
        if let Some(seen) = &observed {
            self.note_left_out(t, &slot, seen)?;
        }
        let known = access::name(t, slot.0, &slot.1)?.and_then(|row| row.object);
        let known = match known {
            Some(id) => live(t, id)?.map(|row| (id, row)),
            None => None,
        };
        if let (Some(seen), Some((id, row))) = (&observed, &known)
            && identity(row) == Some(seen.fingerprint.identity)
            && row.state.kind == seen.kind
            && !self.is_of_another(t, *id, seen)?
        {
            if row.state.kind == Kind::Folder {
                // Something may have moved in from where the filter did not look.
                self.listings.looked_at_itself(*id);
                self.seen_folders.insert(*id, seen.clone());
                self.listings.met(*id);
                self.keep_handle(t, *id, seen)?;
                return Ok(());
            }
            if is_emptied(row, seen) {
                let (id, row, observed) = (*id, row.clone(), seen.clone());
                let emptied = Emptied {
                    id,
                    row,
                    observed,
                    waiting,
                };
                round.emptied.insert(slot, emptied);
                return Ok(());
            }
            self.note_links(t, *id, seen)?;
            return self.compare_same(wall, t, *id, row.clone(), seen, waiting.what);
        }
        if let Some(seen) = observed {
            if known.is_none()
                && self.hold_large(now, &slot, &waiting, seen.kind, seen.fingerprint.size)
            {
                return Ok(());
            }
            if self.is_elsewhere(now, t, &slot, &seen, &waiting, round)? {
                return Ok(());
            }
            let found = Found {
                observed: seen,
                verdict,
                what: waiting.what,
                misses: waiting.misses,
            };
            round.found.insert(slot.clone(), found);
        }
        if known.is_none()
            && nothing
            && (waiting.what.written || waiting.what.closed)
            && !self.pending.missed_write(slot.clone())
        {
            self.listings.lost();
        }
        if let Some((id, row)) = known {
            if let Some(identity) = identity(&row) {
                self.vanished.remove(&identity);
            }
            round.lost.insert(slot, Lost { id, row, waiting });
        }
        Ok(())
    }

    /// Whether a folder that appeared is one that the ledger has elsewhere, at a name that was not
    /// looked at yet: then both are looked at again, together. Where the old name cannot be looked
    /// at, having been seen is enough: a folder is at one place only.
    fn is_elsewhere(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: &Slot,
        seen: &Observed,
        waiting: &Waiting,
        round: &mut Round,
    ) -> Result<bool, TableError> {
        let Some((id, row)) = self.moved_from(t, seen)? else {
            return Ok(false);
        };
        let Some(old) = row.names.first().cloned() else {
            return Ok(false);
        };
        let unreachable = round.missed.contains(&old.0);
        let known = old == *slot
            || round.lost.contains_key(&old)
            || !unreachable && self.listings.looking.contains_key(&old)
            || self.vanished.contains_key(&seen.fingerprint.identity);
        if known {
            return Ok(false);
        }
        if !unreachable {
            let mut waiting = waiting.clone();
            waiting.moved = true;
            waiting.partner = Some(old.clone());
            if self.look_again(now, slot.clone(), waiting) {
                self.pending.due_now(old, now);
                return Ok(true);
            }
        }
        let waiting = Waiting::new(What::LOOK, now);
        self.pending.due_now(old.clone(), now);
        round.lost.insert(old, Lost { id, row, waiting });
        Ok(false)
    }

    /// Some of what a name has besides its content is not carried.
    pub(super) fn note_left_out(
        &mut self,
        t: &dyn TablesRead,
        slot: &Slot,
        seen: &Observed,
    ) -> Result<(), TableError> {
        if let Some(what) = seen.left_out
            && let Some(folder) = self.folders.at(t, slot.0)?
        {
            self.trouble(folder.path.join(&slot.1), what);
        }
        Ok(())
    }

    pub(super) fn judge(
        &mut self,
        t: &dyn TablesRead,
        slot: &Slot,
        kind: Kind,
    ) -> Result<Verdict, TableError> {
        if slot.1.is_reserved() {
            return Ok(Verdict::Excluded);
        }
        let carried = self.config.specials.carries(kind);
        if carried && self.filter.is_trivial() {
            return Ok(Verdict::Included);
        }
        let Some(folder) = self.folders.at(t, slot.0)? else {
            return Ok(Verdict::Excluded);
        };
        let path = folder.path.join(&slot.1);
        let verdict = self.filter.judge(&path, kind == Kind::Folder);
        if carried || verdict == Verdict::Excluded {
            return Ok(verdict);
        }
        self.trouble(
            path,
            format!("it is a {kind}, which the job does not carry (specials)"),
        );
        Ok(Verdict::Excluded)
    }

    /// Compares an object with a look at the same inode behind the same name.
    pub(super) fn compare_same(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        row: LiveObject,
        seen: &Observed,
        what: What,
    ) -> Result<(), TableError> {
        let Some(local) = &row.local else {
            return Ok(());
        };
        let same_meta = row.state.meta == seen.meta;
        let is_file = seen.kind == Kind::File;
        let listed = what == What::default() && self.listed_racy(&row, &seen.fingerprint, wall);
        if local.fingerprint == seen.fingerprint && same_meta {
            // The hint may be late: what counts is how soon after the change it was recorded.
            let recorded = row.state.version.hlc.wall();
            let hinted = (what.closed || what.written)
                && (is_racy(&seen.fingerprint, wall) || is_racy(&seen.fingerprint, recorded));
            return match (is_file && hinted, is_file && listed) {
                (true, _) => self.record_change(wall, t, id, row, seen, true),
                (false, true) => self.doubt_content(t, id),
                (false, false) => Ok(()),
            };
        }
        let content = is_file
            && (bytes_differ(&local.fingerprint, &seen.fingerprint) || what.closed || what.written);
        // Else a hint explains it.
        let silent = !what.at_once || self.may_be_unheard(t, &row)?;
        let touched = local.fingerprint.ctime != seen.fingerprint.ctime && silent;
        if is_file && !content && (touched || listed) {
            self.doubt_content(t, id)?;
        }
        if content || !same_meta {
            return self.record_change(wall, t, id, row, seen, content);
        }
        // Only the change time moved: noted, nothing to tell.
        let fingerprint = seen.fingerprint;
        let local = row.local.clone().map(|l| Local { fingerprint, ..l });
        self.written = true;
        put_live(t, id, LiveObject { local, ..row })
    }

    /// A listing stands for hints that were lost a moment ago, or when the run before ended: what was
    /// recorded within one step of the clock after its last change may have changed once more within
    /// that step.
    fn listed_racy(&self, row: &LiveObject, fingerprint: &Fingerprint, wall: WallMillis) -> bool {
        let lost = WallMillis(wall.0.saturating_sub(LOST_MS));
        let since = match self.heard.before {
            Some(before) if self.gap_count() == 0 => before,
            Some(before) => before.min(lost),
            None => lost,
        };
        is_racy(fingerprint, row.state.version.hlc.wall()) && is_racy(fingerprint, since)
    }

    /// The handle of a folder that was met leads to it: something that was taken for another folder
    /// may have had it meanwhile, and hints of what happened in it were not understood.
    pub(super) fn keep_handle(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        seen: &Observed,
    ) -> Result<(), TableError> {
        let Some(handle) = &seen.handle else {
            return Ok(());
        };
        if access::folder_by_handle(t, handle)? == Some(id) {
            return Ok(());
        }
        self.written = true;
        self.listings.deep(id);
        self.listings.heard(id, handle);
        t.put(Table::Handles, handle, &id.to_key())
    }

    /// A folder's kernel handle is another than before: a restored disk, another mount.
    pub(super) fn note_handle(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        row: LiveObject,
        seen: &Observed,
    ) -> Result<(), TableError> {
        if let Some(old) = row.local.as_ref().and_then(|l| l.handle.as_ref()) {
            access::remove_handle(t, old, id)?;
        }
        if let Some(new) = &seen.handle {
            t.put(Table::Handles, new, &id.to_key())?;
        }
        let local = row.local.clone().map(|l| Local {
            handle: seen.handle.clone(),
            ..l
        });
        self.written = true;
        put_live(t, id, LiveObject { local, ..row })
    }
}

/// What is known of a moved file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// As recorded.
    Same,
    /// As recorded, if nobody restored a modification time behind a write.
    InDoubt,
    /// Other ones.
    Differ,
}

/// Compares a moved file's bytes with what is recorded, as far as a look shows them. A move changes
/// the change time, so that only a hint tells a file whose old modification time was restored
/// behind a write: where hints may be `missing`, it is in doubt. So is one that may have changed
/// within the step of the clock in which it was recorded.
pub(super) fn moved_bytes(row: &LiveObject, seen: &Observed, what: What, missing: bool) -> Bytes {
    if seen.kind != Kind::File {
        return Bytes::Same;
    }
    let Some(local) = &row.local else {
        return Bytes::Differ;
    };
    let said = match row.state.content {
        Content::Data { size, .. } => size != seen.fingerprint.size,
        _ => false,
    };
    if bytes_differ(&local.fingerprint, &seen.fingerprint) || said || what.written || what.closed {
        return Bytes::Differ;
    }
    let touched = local.fingerprint.ctime != seen.fingerprint.ctime;
    if missing && (touched || is_racy(&local.fingerprint, row.state.version.hlc.wall())) {
        return Bytes::InDoubt;
    }
    Bytes::Same
}

/// Whether a file lost all of its bytes since it was recorded.
pub(super) fn is_emptied(row: &LiveObject, seen: &Observed) -> bool {
    let filled = matches!(row.state.content, Content::Data { size, .. } if size > 0);
    filled && seen.fingerprint.size == 0
}

fn bytes_differ(a: &Fingerprint, b: &Fingerprint) -> bool {
    a.size != b.size || a.mtime != b.mtime || a.identity != b.identity
}

pub(super) fn is_racy(fingerprint: &Fingerprint, wall: WallMillis) -> bool {
    let ctime = fingerprint.ctime;
    let changed = ctime
        .secs
        .saturating_mul(1000)
        .saturating_add(i64::from(ctime.nanos / 1_000_000));
    u64::try_from(changed).is_ok_and(|changed| changed.saturating_add(RACY_MS) >= wall.0)
}

pub(super) fn identity(row: &LiveObject) -> Option<Identity> {
    row.local.as_ref().map(|l| l.fingerprint.identity)
}

/// The version of something that was never announced.
pub(super) const UNANNOUNCED: Seq = Seq(0);
