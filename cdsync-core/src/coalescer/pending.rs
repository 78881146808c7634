//! Hints that wait for their turn, bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::guard::Weight;
use super::{Coalescer, FlushState, FolderKey, Hint, LookRequest, Slot, What};
use crate::ids::ObjectId;
use crate::ledger::access::{self, folder_by_handle};
use crate::ledger::object::Kind;
use crate::ledger::tables::{TableError, TablesRead};
use crate::path::Name;
use crate::time::Instant;

/// How often a folder that is not where the ledger has it is looked for before the name that led
/// there is looked at.
pub(super) const MISSES_MAX: u8 = 8;

/// How many names are kept in mind for what was written at them.
const MISSED_WRITES_MAX: usize = 1024;

/// How often it is tried to prove that a folder is gone while other folders move.
pub(super) const DOUBTS_MAX: u8 = 8;

/// How long a hint of what happened to a folder is waited for.
fn missed_for(misses: u8) -> Duration {
    Duration::from_millis(1 << misses.min(6))
}

/// One name that may have changed.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) what: What,
    pub(super) first: Instant,
    pub(super) due: Instant,
    /// The other end of a rename: taken together.
    pub(super) partner: Option<Slot>,
    /// What was changed by this name, where that was told: the kernel's handle.
    pub(super) object: Option<Vec<u8>>,
    /// The object here vanished: what is done about the doubt.
    pub(super) confirm: Confirm,
    /// How often folders moved while it was to be proved that it is gone.
    pub(super) doubts: u8,
    /// A large new file was held once already.
    pub(super) held: bool,
    /// How often the folder was not where the ledger has it.
    pub(super) misses: u8,
    /// How often the disk failed to show it.
    pub(super) fails: u8,
    /// Somebody waits for everything that waited with this one: looked at as soon as it may be.
    pub(super) asked: bool,
    /// A folder was seen here that came from a name which is looked at with it.
    pub(super) moved: bool,
    /// What the guard says of the delete that was seen here.
    pub(super) guarded: Guarded,
}

/// What the guard against mass deletes says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Guarded {
    #[default]
    No,
    /// What was seen here waits until the guard has judged.
    Held(Weight),
    /// It may go if it is still so.
    Free,
}

/// How sure it is that what vanished from a name is gone.
///
/// After a flush every move before it has been told, so that another look, at this name and at all
/// that were told, finds what moved in time. It may have moved on meanwhile: a folder that is still
/// missing is gone only if no folder moved up to a second flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Confirm {
    #[default]
    No,
    /// Waits for a flush; with the number of moves of folders that had been told at the one before
    /// it, if this is the second one.
    Waits(Option<u64>),
    /// One flush came, when this many moves had been told.
    Once(u64),
    /// What is missing now is gone.
    Sure,
}

impl Confirm {
    fn waits(self) -> bool {
        matches!(self, Self::Waits(_))
    }

    /// Whether what is missing now is gone.
    pub(super) fn is_proof(self, is_folder: bool) -> bool {
        match self {
            Self::No | Self::Waits(_) => false,
            Self::Once(_) => !is_folder,
            Self::Sure => true,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    slots: BTreeMap<Slot, Waiting>,
    due: BTreeSet<(Instant, Slot)>,
    /// Folders to be looked at by themselves: when, and how often they were not where the ledger
    /// has them.
    folders: BTreeMap<ObjectId, (Instant, u8)>,
    /// Vanished names that wait for a flush.
    confirming: usize,
    /// Names that somebody waits for or that are in doubt, but for those that the disk fails to
    /// show.
    asked: usize,
    /// Names at which folders were seen that came from elsewhere.
    moved: usize,
    /// How many moves of folders were told, or may have been.
    pub(super) moves: u64,
    /// Names at which something was written that was not there any more when it was looked at: the
    /// move that took it away is told by the next flush at the latest.
    missed_writes: BTreeSet<Slot>,
    /// Names that the guard holds.
    pub(super) held: BTreeSet<Slot>,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.keys()
    }

    /// What was hinted of objects by names that were not looked at yet.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&Vec<u8>, What)> {
        let waiting = self.slots.values();
        waiting.filter_map(|waiting| Some((waiting.object.as_ref()?, waiting.what)))
    }

    /// Folders in which something was written.
    pub(super) fn written_folders(&self) -> BTreeSet<ObjectId> {
        let written = self
            .slots
            .iter()
            .filter(|(_, w)| w.what.written || w.what.closed);
        written.map(|(slot, _)| slot.0).collect()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let slot = self.due.first().map(|(due, _)| *due);
        let folder = self.folders.values().map(|(due, _)| *due).min();
        slot.into_iter().chain(folder).min()
    }

    /// Whether deletes may still come out of what waits for the kernel's queue.
    pub(super) fn is_confirming(&self) -> bool {
        self.confirming > 0
    }

    /// Whether what vanished from a name waits for the kernel's queue.
    pub(super) fn is_confirming_at(&self, slot: &Slot) -> bool {
        self.get(slot)
            .is_some_and(|waiting| waiting.confirm.waits())
    }

    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.folders.is_empty()
            && self.confirming == 0
            && self.asked == 0
            && self.due.first().is_none_or(|(due, _)| *due > now)
    }

    pub(super) fn hurry(&mut self, now: Instant) {
        let slots = self.slots.keys().filter(|slot| !self.held.contains(*slot));
        let slots: Vec<Slot> = slots.cloned().collect();
        for slot in slots {
            let mut waiting = self.take(&slot).expect("the slot was listed just now");
            waiting.held = true;
            waiting.asked = true;
            if !waiting.confirm.waits() {
                waiting.due = waiting.due.min(now);
            }
            self.put(slot, waiting);
        }
    }

    pub(super) fn folder(&mut self, id: ObjectId) {
        self.folders.insert(id, (Instant::default(), 0));
    }

    /// Takes the folders to look at by themselves now.
    fn take_folders(&mut self, now: Instant) -> Vec<(ObjectId, u8)> {
        let due = self.folders.extract_if(.., |_, (due, _)| *due <= now);
        due.map(|(id, (_, misses))| (id, misses)).collect()
    }

    pub(super) fn get(&self, slot: &Slot) -> Option<&Waiting> {
        self.slots.get(slot)
    }

    pub(super) fn is_held(&self, slot: &Slot) -> bool {
        self.held.contains(slot)
    }

    /// Takes a name out. What the guard holds is held no more: something happens there.
    pub(super) fn take(&mut self, slot: &Slot) -> Option<Waiting> {
        let mut waiting = self.slots.remove(slot)?;
        if self.held.remove(slot) {
            waiting.guarded = Guarded::No;
        }
        self.due.remove(&(waiting.due, slot.clone()));
        self.confirming -= usize::from(waiting.confirm.waits());
        self.asked -= usize::from(waiting.is_asked());
        self.moved -= usize::from(waiting.moved);
        Some(waiting)
    }

    /// Puts a name in, replacing what waited there. What waits for a flush or for the guard is not
    /// due by time.
    pub(super) fn put(&mut self, slot: Slot, waiting: Waiting) {
        self.take(&slot);
        self.asked += usize::from(waiting.is_asked());
        self.moved += usize::from(waiting.moved);
        if matches!(waiting.guarded, Guarded::Held(_)) {
            self.held.insert(slot.clone());
        } else if waiting.confirm.waits() {
            self.confirming += 1;
        } else {
            self.due.insert((waiting.due, slot.clone()));
        }
        self.slots.insert(slot, waiting);
    }

    /// Puts a name in as due at once, keeping what is known of it.
    pub(super) fn due_now(&mut self, slot: Slot, now: Instant) {
        let mut waiting = self
            .take(&slot)
            .unwrap_or_else(|| Waiting::new(What::LOOK, now));
        waiting.what.at_once = true;
        waiting.due = now;
        if waiting.confirm.waits() {
            waiting.confirm = Confirm::No;
        }
        self.put(slot, waiting);
    }

    /// The same, because of what was told of the object otherwise: that is not lost.
    pub(super) fn due_because(&mut self, slot: Slot, now: Instant, what: What) {
        let waiting = self.take(&slot);
        let mut waiting = waiting.unwrap_or_else(|| Waiting::new(what, now));
        waiting.what.merge(what);
        waiting.due = now;
        if waiting.confirm.waits() {
            waiting.confirm = Confirm::No;
        }
        self.put(slot, waiting);
    }

    /// More is known of what happened to the object of a name that waits.
    pub(super) fn heed(&mut self, slot: &Slot, what: What) {
        if let Some(waiting) = self.slots.get_mut(slot) {
            waiting.what.merge(what);
        }
    }

    /// Whoever waits for everything waits for a name, which is looked at now.
    pub(super) fn ask(&mut self, slot: &Slot, now: Instant) {
        if let Some(mut waiting) = self.take(slot) {
            waiting.asked = true;
            waiting.due = now;
            self.put(slot.clone(), waiting);
        }
    }

    /// Something was written at a name where nothing is now. Returns whether it can be kept in mind.
    pub(super) fn missed_write(&mut self, slot: Slot) -> bool {
        if self.missed_writes.len() >= MISSED_WRITES_MAX {
            self.missed_writes.clear();
            return false;
        }
        self.missed_writes.insert(slot);
        true
    }

    /// Puts a name in that was looked at in vain too often.
    pub(super) fn due_later(&mut self, slot: Slot, due: Instant) {
        let mut waiting = Waiting::new(What::LOOK, due);
        waiting.misses = 1;
        self.put(slot, waiting);
    }

    fn confirm_all(&mut self, now: Instant) {
        let slots: Vec<Slot> = self
            .slots
            .iter()
            .filter(|(_, w)| w.confirm.waits())
            .map(|(slot, _)| slot.clone())
            .collect();
        for slot in slots {
            let mut waiting = self.take(&slot).expect("the slot was listed just now");
            waiting.due = now;
            waiting.confirm = match waiting.confirm {
                Confirm::Waits(Some(before))
                    if before != self.moves && waiting.doubts < DOUBTS_MAX =>
                {
                    waiting.doubts += 1;
                    waiting.due = now.after(missed_for(waiting.doubts));
                    Confirm::No
                }
                Confirm::Waits(Some(_)) => Confirm::Sure,
                _ => Confirm::Once(self.moves),
            };
            self.put(slot, waiting);
        }
    }
}

impl Waiting {
    pub(super) fn new(what: What, now: Instant) -> Self {
        Self {
            what,
            first: now,
            due: now,
            partner: None,
            object: None,
            confirm: Confirm::No,
            doubts: 0,
            held: false,
            misses: 0,
            fails: 0,
            asked: false,
            moved: false,
            guarded: Guarded::No,
        }
    }

    /// Whether nothing is settled before this is looked at: somebody asked, or what an earlier look
    /// saw is still in doubt.
    fn is_asked(&self) -> bool {
        (self.asked || self.misses > 0 || self.doubts > 0) && self.fails == 0
    }
}

impl Coalescer {
    /// Takes hints. Those of folders that are not in the ledger are outside, or in a folder that
    /// is listed after it is entered, and say nothing.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_hints(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        hints: impl IntoIterator<Item = Hint>,
    ) -> Result<(), TableError> {
        self.heard.took(now);
        for hint in hints {
            if hint.what.folder && hint.what.at_once {
                self.pending.moves += 1;
            }
            if hint.folder == FolderKey::Nowhere {
                if let Some(object) = hint.object {
                    self.strays.add(object, hint.what);
                }
                continue;
            }
            let folder = self.resolve(t, &hint.folder)?;
            let partner = match hint.partner {
                Some((key, name)) => self.resolve(t, &key)?.map(|folder| (folder, name)),
                None => None,
            };
            let Some(name) = hint.name else {
                if let Some(folder) = folder {
                    self.pending.folder(folder);
                }
                continue;
            };
            if folder.is_none() && (hint.what.written || hint.what.closed) {
                self.listings.not_heard(hint.folder);
            }
            let slot = folder.map(|folder| (folder, name));
            if let Some(object) = &hint.object {
                self.hint_linked(now, t, object, slot.as_ref(), hint.what)?;
            }
            if let Some(partner) = partner.clone() {
                // What was written under the old name moved along.
                let before = slot.as_ref().and_then(|slot| self.pending.get(slot));
                let object = before.and_then(|waiting| waiting.object.clone());
                let before = before.map(|waiting| waiting.what);
                // Where it was, nothing could be told of it.
                let missed = slot
                    .as_ref()
                    .is_some_and(|s| self.pending.missed_writes.remove(s));
                let what = What {
                    written: slot.is_none() || missed || before.is_some_and(|w| w.written),
                    closed: before.is_some_and(|w| w.closed),
                    ..What::LOOK
                };
                self.hint(now, t, partner, what, slot.clone(), object)?;
            }
            if let Some(slot) = slot {
                self.hint(now, t, slot, hint.what, partner, hint.object)?;
            }
        }
        Ok(())
    }

    pub(super) fn resolve(
        &mut self,
        t: &dyn TablesRead,
        key: &FolderKey,
    ) -> Result<Option<ObjectId>, TableError> {
        let path = match key {
            FolderKey::Handle(handle) => return folder_by_handle(t, handle),
            FolderKey::Path(path) => path,
            FolderKey::Nowhere => return Ok(None),
        };
        let mut at = ObjectId::root(self.origin());
        for component in path.components() {
            let Ok(name) = Name::new(component) else {
                return Ok(None);
            };
            let row = access::name(t, at, &name)?.and_then(|row| row.object);
            let Some(next) = row else {
                // A folder that the ledger has not met: look at where its path leaves the ledger.
                self.pending.due_now((at, name), Instant::default());
                return Ok(None);
            };
            at = next;
        }
        Ok(Some(at))
    }

    pub(super) fn hint(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: Slot,
        what: What,
        partner: Option<Slot>,
        object: Option<Vec<u8>>,
    ) -> Result<(), TableError> {
        if slot.1.is_reserved() {
            // Not looked at, but its folder has another time now.
            self.pending.folder(slot.0);
            return Ok(());
        }
        if self.pending.len() >= self.config.pending_max && self.pending.get(&slot).is_none() {
            return self.open_gap(now, t, slot.0);
        }
        if self.pending.is_held(&slot) {
            self.guard.stir(now);
        }
        let mut waiting = self
            .pending
            .take(&slot)
            .unwrap_or_else(|| Waiting::new(what, now));
        waiting.guarded = Guarded::No;
        if let Some(object) = object {
            // It goes by another name from here on, if by any.
            if let Some(before) = waiting.object.take_if(|before| *before != object) {
                self.strays.add(before, waiting.what);
            }
            waiting.object = Some(object);
        }
        waiting.what.merge(what);
        waiting.partner = partner.or(waiting.partner);
        // Something new happened here: an earlier flush proves nothing about it.
        waiting.confirm = Confirm::No;
        waiting.due = self.due(now, t, &slot, &waiting)?;
        self.pending.put(slot, waiting);
        Ok(())
    }

    fn due(
        &self,
        now: Instant,
        t: &dyn TablesRead,
        slot: &Slot,
        waiting: &Waiting,
    ) -> Result<Instant, TableError> {
        let what = waiting.what;
        let at = if what.at_once || what.folder || waiting.asked {
            now
        } else if what.closed {
            let known = access::name(t, slot.0, &slot.1)?.is_some_and(|row| row.object.is_some());
            if known {
                now
            } else {
                now.after(self.config.linger)
            }
        } else if what.written {
            waiting.first.after(self.config.max_age)
        } else if what.created {
            waiting.first.after(self.config.settle)
        } else {
            now
        };
        Ok(at)
    }

    /// Names to look at now, folder by folder; empty when there are none. Ends of one rename come
    /// together.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_looks(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
    ) -> Result<Vec<LookRequest>, TableError> {
        self.list_unseen(now);
        self.close_gaps(now);
        self.judge_burst(now, t)?;
        if self.pending.next_due().is_none_or(|due| due > now) {
            self.release_deferred(now);
        }
        let mut chosen: BTreeMap<ObjectId, Vec<Name>> = BTreeMap::new();
        let mut slots = BTreeSet::new();
        while slots.len() < self.config.looks_max {
            let Some((due, slot)) = self.pending.due.first().cloned() else {
                break;
            };
            if due > now {
                break;
            }
            let mut next = Some(slot);
            while let Some(slot) = next {
                let Some(waiting) = self.pending.take(&slot) else {
                    break;
                };
                next = waiting.partner.clone().filter(|p| !slots.contains(p));
                self.listings.looking.insert(slot.clone(), waiting);
                slots.insert(slot);
            }
        }
        for (folder, name) in slots {
            chosen.entry(folder).or_default().push(name);
        }
        for (folder, misses) in self.pending.take_folders(now) {
            self.listings.looking_itself.insert(folder, misses);
            chosen.entry(folder).or_default();
        }
        let mut requests = Vec::with_capacity(chosen.len());
        for (id, names) in chosen {
            match self.folders.at(t, id)? {
                Some(folder) => requests.push(LookRequest { folder, names }),
                None => {
                    self.listings.looking_itself.remove(&id);
                    names.into_iter().for_each(|name| {
                        let slot = (id, name);
                        let waiting = self.listings.looking.remove(&slot);
                        // What it was told of may have other names.
                        if let Some(waiting) = waiting
                            && let Some(object) = waiting.object
                        {
                            self.strays.add(object, waiting.what);
                        }
                        self.unseen.name_seen(&slot);
                    });
                }
            }
        }
        Ok(requests)
    }

    /// Whether the kernel's queue must be read out: everything that it held when this was asked
    /// must have come through [`Self::handle_hints`] before [`Self::handle_flushed`].
    pub fn poll_flush(&mut self) -> bool {
        // A folder that is known to have moved is recorded before what it was in may be gone.
        let idle = self.listings.is_idle() && self.pending.moved == 0;
        let wanted = self.flush == FlushState::Wanted && idle;
        if wanted {
            self.flush = FlushState::Asked;
        }
        wanted
    }

    /// The queue was read out: what vanished before and is still missing is gone.
    pub fn handle_flushed(&mut self, now: Instant) {
        if self.flush == FlushState::Asked {
            self.flush = FlushState::Idle;
            self.pending.missed_writes.clear();
            self.pending.confirm_all(now);
        }
    }

    /// Looks at a vanished name again after a flush.
    pub(super) fn confirm_later(&mut self, slot: Slot, mut waiting: Waiting) {
        waiting.moved = false;
        waiting.confirm = match waiting.confirm {
            Confirm::Once(moves) => Confirm::Waits(Some(moves)),
            _ => Confirm::Waits(None),
        };
        self.pending.put(slot, waiting);
        self.flush = FlushState::Wanted;
    }

    /// A folder was not where the ledger has it: its names wait for the hint of what happened to
    /// it; after some tries the name that led there is looked at.
    pub(super) fn look_again(&mut self, now: Instant, slot: Slot, mut waiting: Waiting) -> bool {
        waiting.misses += 1;
        if waiting.misses > MISSES_MAX {
            return false;
        }
        waiting.due = now.after(missed_for(waiting.misses));
        waiting.confirm = Confirm::No;
        self.pending.put(slot, waiting);
        true
    }

    /// The same for a folder that was to be looked at by itself.
    pub(super) fn look_at_folder_again(&mut self, now: Instant, id: ObjectId, misses: u8) -> bool {
        let misses = misses + 1;
        if misses > MISSES_MAX {
            return false;
        }
        let due = now.after(missed_for(misses));
        self.pending.folders.entry(id).or_insert((due, misses));
        true
    }

    /// Whether a new file is large enough to wait for the rename that may follow.
    pub(super) fn hold_large(
        &mut self,
        now: Instant,
        slot: &Slot,
        waiting: &Waiting,
        kind: Kind,
        size: u64,
    ) -> bool {
        let hold = kind == Kind::File
            && size > self.config.large
            && waiting.what.closed
            && waiting.what.created
            && !waiting.held;
        if hold {
            let mut waiting = waiting.clone();
            waiting.held = true;
            waiting.due = now.after(self.config.linger_large);
            waiting.what.at_once = false;
            self.pending.put(slot.clone(), waiting);
        }
        hold
    }
}
