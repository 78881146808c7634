//! Scans: folders are listed one after another and compared with the ledger.
//!
//! A folder is entered in the ledger before it is listed, so that whatever happens in it later
//! comes as a hint that can be resolved. Memory is bounded by the width of one path plus eight
//! bytes for each name of the folders being listed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;

use super::compare::{Lost, is_emptied};
use super::pairing::{climb, is_folder};
use super::pending::Waiting;
use super::{Coalescer, FolderKey, ListRequest, LookError, Slot, What};
use crate::filter::Verdict;
use crate::ids::ObjectId;
use crate::ledger::access::{self, live};
use crate::ledger::object::{Kind, Observed};
use crate::ledger::rows::{LiveObject, NameRow};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::Name;
use crate::time::{Instant, WallMillis};

/// How many folders outside of the ledger are remembered, 60 bytes each or so.
const UNHEARD_MAX: usize = 4096;

/// How many names are remembered as looked at while their folder is listed.
const LOOKED_MAX: usize = 4096;

/// How many folders are listed at once: what moves while it is listed is looked at again, so few.
pub(super) const OUTSTANDING_MAX: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Listings {
    stack: Vec<(ObjectId, Depth)>,
    queued: BTreeSet<ObjectId>,
    outstanding: BTreeMap<ObjectId, Listing>,
    /// New names of a scan over a ledger that was there before: looked at when the scan ends,
    /// together with what vanished, so that renames are seen as such.
    deferred: Vec<Slot>,
    defer: bool,
    /// A scan is running, or what it found is still looked at: folders that move meanwhile are
    /// listed where they come to, because the scan may have been there before.
    scanning: bool,
    /// Hints were lost, and what they spoke of is still looked at.
    lossy: bool,
    /// Handles of folders of which a write was told before they were in the ledger. Kept, because
    /// the hint by which a folder is entered may come much later than that of the write.
    unheard: BTreeSet<Vec<u8>>,
    /// Folders that came into the ledger since, with the same meaning.
    deaf: BTreeSet<ObjectId>,
    /// Folders that were not where the ledger had them when they were to be listed, or whose names
    /// could not be looked at: listed once they are met again.
    owed: BTreeMap<ObjectId, Depth>,
    /// What was owed and is being listed: until that has ended, hints are missing there.
    paid: BTreeMap<ObjectId, Depth>,
    /// Names taken out for a look that is under way.
    pub(super) looking: BTreeMap<Slot, Waiting>,
    /// Folders taken out for a look at themselves, with how often that was in vain.
    pub(super) looking_itself: BTreeMap<ObjectId, u8>,
    /// How many folders were asked for so far.
    listed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Known folders below are listed too.
    Deep,
    /// Only new folders below are.
    Shallow,
    /// For the safety scan, which has an order of its own.
    Patrol,
}

#[derive(Debug)]
struct Listing {
    depth: Depth,
    /// Hashes of the names seen: 8 bytes each, whatever their length. A collision only delays the
    /// notice of a deletion until the next hint.
    seen: BTreeSet<u64>,
    /// The ledger had no name of it when its names began to come: what is there was seen since.
    blank: bool,
    /// Some of its names could not be looked at, and are not followed one by one.
    failed: bool,
    /// What was looked at since it was asked for: a part of it that comes now may be older.
    looked: Looked,
}

/// What was looked at while a folder is listed.
#[derive(Debug, Default)]
struct Looked {
    names: BTreeSet<Name>,
    /// More names than are remembered.
    more: bool,
    /// The folder itself.
    itself: bool,
}

impl Looked {
    fn has(&self, name: &Name) -> bool {
        self.more || self.names.contains(name)
    }
}

impl Listings {
    pub(super) fn is_quiet(&self) -> bool {
        let mut outstanding = self.outstanding.values();
        self.stack.is_empty() && outstanding.all(|listing| listing.depth == Depth::Patrol)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.is_quiet() && self.deferred.is_empty()
    }

    /// Whether new names wait for the end of a scan that has come.
    pub(super) fn has_deferred(&self) -> bool {
        self.is_quiet() && !self.deferred.is_empty()
    }

    /// Lists everything. `since_before`: the ledger was there before, and nobody may have watched
    /// meanwhile.
    pub(super) fn start(&mut self, root: ObjectId, since_before: bool) {
        self.defer |= since_before;
        self.lossy |= since_before;
        self.scanning = true;
        self.push(root, Depth::Deep);
    }

    /// Lists one folder again, because hints of it were lost; what moved into it or out of it is
    /// paired at the end if `defer`.
    pub(super) fn again(&mut self, folder: ObjectId, defer: bool) {
        self.lossy = true;
        self.defer |= defer;
        self.push(folder, Depth::Shallow);
    }

    /// Everything below `above` is listed in place of one folder below it.
    pub(super) fn cover(&mut self, folder: ObjectId, above: ObjectId) {
        if self.queued.remove(&folder) {
            self.stack.retain(|(id, _)| *id != folder);
        }
        self.scanning = true;
        self.push(above, Depth::Deep);
    }

    /// Lists a folder and everything below it.
    pub(super) fn deep(&mut self, folder: ObjectId) {
        self.push(folder, Depth::Deep);
    }

    /// Lists a folder once it is met again.
    pub(super) fn owe(&mut self, folder: ObjectId, depth: Depth) {
        let owed = self.owed.entry(folder).or_insert(depth);
        if depth == Depth::Deep {
            *owed = depth;
        }
    }

    pub(super) fn is_scanning(&self) -> bool {
        self.scanning
    }

    pub(super) fn listed(&self) -> u64 {
        self.listed
    }

    pub(super) fn end_scan(&mut self) {
        self.scanning = false;
        self.lossy = false;
        self.deaf.clear();
        self.paid.clear();
    }

    /// Hints were lost.
    pub(super) fn lost(&mut self) {
        self.lossy = true;
    }

    /// A write was told of in a folder that the ledger does not have: it may be outside, or come
    /// into the ledger later.
    pub(super) fn not_heard(&mut self, key: FolderKey) {
        match key {
            FolderKey::Handle(handle) => {
                if self.unheard.len() >= UNHEARD_MAX {
                    self.unheard.clear();
                    self.lossy = true;
                }
                self.unheard.insert(handle);
            }
            FolderKey::Path(_) | FolderKey::Nowhere => self.lossy = true,
        }
    }

    /// A folder came into the ledger by this handle.
    pub(super) fn heard(&mut self, folder: ObjectId, handle: &[u8]) {
        if self.unheard.remove(handle) {
            self.deaf.insert(folder);
        }
    }

    /// Whether a write of what is in this folder now, or was until it left, may not have been told:
    /// also because a listing of it is owed, or one of all below a folder above it.
    pub(super) fn is_deaf(&self, t: &dyn TablesRead, folder: ObjectId) -> Result<bool, TableError> {
        let heard_badly = self.lossy || self.deaf.contains(&folder);
        if heard_badly || self.owed.is_empty() && self.paid.is_empty() {
            return Ok(heard_badly);
        }
        let owed = |id| {
            let depths = [self.owed.get(&id), self.paid.get(&id)];
            let mut depths = depths.into_iter().flatten();
            depths.any(|depth| id == folder || *depth == Depth::Deep)
        };
        climb(t, &BTreeMap::new(), folder, owed)
    }

    /// A name was looked at: what a listing that is under way has seen there may be older.
    pub(super) fn looked_at(&mut self, slot: &Slot) {
        if let Some(listing) = self.outstanding.get_mut(&slot.0) {
            let looked = &mut listing.looked;
            looked.more |= looked.names.len() >= LOOKED_MAX;
            if !looked.more {
                looked.names.insert(slot.1.clone());
            }
        }
    }

    /// A folder was looked at, by itself or behind its name.
    pub(super) fn looked_at_itself(&mut self, folder: ObjectId) {
        if let Some(listing) = self.outstanding.get_mut(&folder) {
            listing.looked.itself = true;
        }
    }

    /// What is being listed of a folder is not all of it.
    pub(super) fn fail(&mut self, folder: ObjectId) {
        if let Some(listing) = self.outstanding.get_mut(&folder) {
            listing.failed = true;
        }
    }

    /// A folder was met where it is now. If a scan missed it, the scan goes on there.
    pub(super) fn met(&mut self, folder: ObjectId) {
        if let Some(depth) = self.pay(folder) {
            self.push(folder, depth);
        }
    }

    /// What is owed to a folder, if anything, is done now.
    fn pay(&mut self, folder: ObjectId) -> Option<Depth> {
        let depth = self.owed.remove(&folder)?;
        self.scanning |= depth == Depth::Deep;
        self.paid.insert(folder, depth);
        Some(depth)
    }

    /// A folder is gone for good.
    pub(super) fn gone(&mut self, folder: ObjectId) {
        self.owed.remove(&folder);
    }

    /// A folder is asked for.
    pub(super) fn begin(&mut self, folder: ObjectId, depth: Depth) {
        self.listed += 1;
        let listing = Listing {
            depth,
            seen: BTreeSet::new(),
            blank: false,
            failed: false,
            looked: Looked::default(),
        };
        self.outstanding.insert(folder, listing);
    }

    fn push(&mut self, folder: ObjectId, depth: Depth) {
        if self.queued.insert(folder) {
            self.stack.push((folder, depth));
        } else if depth == Depth::Deep {
            for entry in self.stack.iter_mut().filter(|(id, _)| *id == folder) {
                entry.1 = Depth::Deep;
            }
        }
    }
}

impl Coalescer {
    /// The next folder to list, if one may be started now.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_listing(&mut self, t: &dyn TablesRead) -> Result<Option<ListRequest>, TableError> {
        while self.listings.outstanding.len() < OUTSTANDING_MAX {
            let Some((id, depth)) = self.listings.stack.pop() else {
                break;
            };
            if self.listings.outstanding.contains_key(&id) {
                // It changed while it is being listed: once more when that has ended.
                self.listings.stack.insert(0, (id, depth));
                break;
            }
            self.listings.queued.remove(&id);
            let Some(folder) = self.folders.at(t, id)? else {
                self.unseen.folder_seen(id);
                continue;
            };
            // What a scan that could not list it owes it is done by this one.
            let depth = match self.listings.pay(id) {
                Some(Depth::Deep) => Depth::Deep,
                _ => depth,
            };
            self.listings.begin(id, depth);
            return Ok(Some(ListRequest { folder }));
        }
        Ok(None)
    }

    /// Takes a part of a folder's listing.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_listed(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
        entries: Vec<(Name, Result<Observed, LookError>)>,
    ) -> Result<(), TableError> {
        if !self.listings.outstanding.contains_key(&folder) {
            return Ok(());
        }
        let Some(row) = live(t, folder)? else {
            // It was taken for gone meanwhile: where it is, it is a new one.
            return Ok(());
        };
        if !entries.is_empty() {
            // Else its end tells of it, unless it is not there any more.
            self.tell_listed(wall, t, folder, &row)?;
        }
        let blank = access::is_childless(t, folder)?;
        for (name, seen) in entries {
            let Some(listing) = self.listings.outstanding.get_mut(&folder) else {
                break;
            };
            listing.blank |= blank && listing.seen.is_empty();
            let once = listing.seen.insert(name_hash(&name));
            let depth = listing.depth;
            let slot = (folder, name);
            // A first copy asks for no name: that is most of what it would ask the ledger.
            let known = if blank && once {
                None
            } else {
                access::name(t, slot.0, &slot.1)?.and_then(|row| row.object)
            };
            match seen {
                Ok(observed) => {
                    self.listed_one(now, wall, t, known, slot, observed)?;
                }
                Err(error) => {
                    if let Some(id) = known
                        && let Some(row) = live(t, id)?
                    {
                        self.owe_deep(depth, id, row.state.kind);
                    }
                    let waiting = self.pending.take(&slot);
                    let waiting = waiting.unwrap_or_else(|| Waiting::new(What::LOOK, now));
                    self.name_missed(now, t, slot, waiting, &error)?;
                }
            }
        }
        Ok(())
    }

    fn listed_one(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        known: Option<ObjectId>,
        slot: Slot,
        observed: Observed,
    ) -> Result<(), TableError> {
        if self.unseen.is_name(&slot) {
            self.pending.due_now(slot.clone(), now);
        }
        let verdict = self.judge(t, &slot, observed.kind)?;
        if verdict == Verdict::Excluded {
            // As good as missing: if the ledger has it, the end of the listing will see that.
            if let Some(listing) = self.listings.outstanding.get_mut(&slot.0) {
                listing.seen.remove(&name_hash(&slot.1));
            }
            return Ok(());
        }
        self.note_left_out(t, &slot, &observed)?;
        let Some(listing) = self.listings.outstanding.get(&slot.0) else {
            return Ok(());
        };
        let (depth, was_looked_at) = (listing.depth, listing.looked.has(&slot.1));
        let Some(id) = known else {
            if depth == Depth::Patrol {
                return self.patrol_differs(now, t, slot);
            }
            if was_looked_at {
                self.look_once_more(now, slot);
                return Ok(());
            }
            return self.listed_new(now, wall, t, slot, &observed, verdict);
        };
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        if depth == Depth::Patrol {
            return self.patrol_known(now, t, slot, &row, &observed);
        }
        let same = row.state.kind == observed.kind
            && row
                .local
                .as_ref()
                .is_some_and(|l| l.fingerprint.identity == observed.fingerprint.identity)
            && !self.is_of_another(t, id, &observed)?;
        if !same {
            self.owe_deep(depth, id, row.state.kind);
            self.pending.due_now(slot, now);
            return Ok(());
        }
        if row.state.kind == Kind::Folder {
            self.listings.met(id);
            self.keep_handle(t, id, &observed)?;
            if depth == Depth::Deep {
                self.listings.deep(id);
            }
            if verdict == Verdict::Included && !row.is_announced() {
                // A folder above it was renamed, and now an expression matches this one too.
                self.announce_folder(wall, t, id)?;
                return Ok(());
            }
            if row
                .local
                .as_ref()
                .is_some_and(|l| l.handle != observed.handle)
            {
                self.note_handle(t, id, row, &observed)?;
            }
            // Else its own metadata is compared when it is listed itself.
            if depth == Depth::Shallow && !was_looked_at {
                self.seen_folders.insert(id, observed);
            } else if depth == Depth::Shallow {
                self.look_once_more(now, slot);
            }
            return Ok(());
        }
        let differs = row.local.as_ref().map(|l| l.fingerprint) != Some(observed.fingerprint)
            || row.state.meta != observed.meta;
        if was_looked_at && differs {
            self.look_once_more(now, slot);
            return Ok(());
        }
        if is_emptied(&row, &observed) {
            // Weighed with others like it.
            if !self.pending.is_held(&slot) {
                self.pending.due_now(slot, now);
            }
            return Ok(());
        }
        self.note_links(t, id, &observed)?;
        self.compare_same(wall, t, id, row, &observed, What::default())
    }

    /// A listing shows something else than a look at the same name since it was asked for: which
    /// of the two is newer, another look tells.
    fn look_once_more(&mut self, now: Instant, slot: Slot) {
        if !self.pending.is_held(&slot) {
            self.pending.due_now(slot, now);
        }
    }

    fn listed_new(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: Slot,
        observed: &Observed,
        verdict: Verdict,
    ) -> Result<(), TableError> {
        if self.pending.get(&slot).is_some() {
            // A hint is on its way to a look, which knows more (is it still open?).
            return Ok(());
        }
        if self.vanished.contains_key(&observed.fingerprint.identity) {
            self.pending.due_now(slot, now);
            return Ok(());
        }
        let moved = self.moved_from(t, observed)?;
        if let Some(old) = moved.and_then(|(_, row)| row.names.into_iter().next()) {
            // It left a place where the ledger still has it: both are looked at together.
            self.pending.due_now(old, now);
            self.pending.due_now(slot, now);
            return Ok(());
        }
        if self.listings.defer && self.listings.deferred.len() < self.config.pending_max / 2 {
            self.listings.deferred.push(slot);
            return Ok(());
        }
        // A folder is listed in its turn, and told of then.
        let verdict = match observed.kind {
            Kind::Folder => Verdict::Descend,
            _ => verdict,
        };
        self.enter_new(wall, t, slot, observed, verdict)
    }

    /// Tells of a folder that is being listed, right before what is in it: a target then makes both
    /// at once.
    fn tell_listed(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
        row: &LiveObject,
    ) -> Result<(), TableError> {
        if let Some(slot) = row.slot()
            && !row.is_announced()
            && self.judge(t, slot, Kind::Folder)? == Verdict::Included
        {
            self.announce_folder(wall, t, folder)?;
        }
        Ok(())
    }

    /// A scan did not meet a folder where the ledger has it. It may be back at this very name when
    /// that is looked at, and then nothing else says that it is still to be listed.
    fn owe_deep(&mut self, depth: Depth, id: ObjectId, kind: Kind) {
        if depth == Depth::Deep && kind == Kind::Folder {
            self.listings.owe(id, depth);
        }
    }

    /// A folder moves away. What a scan owes to one that it was in, it owes to this one too: it is
    /// not there any more when that is listed.
    pub(super) fn owe_along(
        &mut self,
        t: &dyn TablesRead,
        from: &Slot,
        moving: &Lost,
    ) -> Result<(), TableError> {
        let owed = |folder| self.listings.owed.get(&folder) == Some(&Depth::Deep);
        if is_folder(moving) && climb(t, &BTreeMap::new(), from.0, owed)? {
            self.listings.owe(moving.id, Depth::Deep);
        }
        Ok(())
    }

    /// What the ledger has of a folder that was found elsewhere.
    pub(super) fn moved_from(
        &self,
        t: &dyn TablesRead,
        observed: &Observed,
    ) -> Result<Option<(ObjectId, LiveObject)>, TableError> {
        let Some(handle) = observed.folder_handle() else {
            return Ok(None);
        };
        let Some(id) = access::folder_by_handle(t, handle)? else {
            return Ok(None);
        };
        let row = live(t, id)?.filter(|row| {
            let local = row.local.as_ref();
            local.is_some_and(|l| l.fingerprint.identity == observed.fingerprint.identity)
        });
        Ok(row.map(|row| (id, row)))
    }

    /// A folder's listing ended; `itself` was seen behind it, or says why the listing failed.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_list_end(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
        itself: Result<Observed, LookError>,
    ) -> Result<(), TableError> {
        let Some(listing) = self.listings.outstanding.remove(&folder) else {
            return Ok(());
        };
        let patrol = listing.depth == Depth::Patrol;
        if patrol {
            self.patrolled(now, folder, listing.seen.len());
        }
        let Some(row) = live(t, folder)? else {
            self.unseen.folder_seen(folder);
            return Ok(());
        };
        if !matches!(itself, Err(LookError::Moved)) {
            self.tell_listed(wall, t, folder, &row)?;
        }
        match itself {
            Ok(observed) => {
                // The safety scan only looks for differences: it does not do what a listing that
                // failed was to do.
                if !listing.failed && !patrol {
                    self.unseen.folder_seen(folder);
                }
                let mut missing = Vec::new();
                let mut compare = |name: Name, row: NameRow| {
                    if let Some(id) = row.object
                        && !listing.seen.contains(&name_hash(&name))
                    {
                        missing.push((name, id));
                    }
                    ControlFlow::Continue(())
                };
                // What came into a blank one since was followed by hints.
                if !listing.blank {
                    access::children(t, folder, &mut compare)?;
                }
                for (name, id) in missing {
                    if patrol {
                        self.patrol_differs(now, t, (folder, name))?;
                        continue;
                    }
                    if let Some(row) = live(t, id)? {
                        self.owe_deep(listing.depth, id, row.state.kind);
                    }
                    let slot = (folder, name);
                    if !self.pending.is_held(&slot) {
                        self.pending.due_now(slot, now);
                    }
                }
                if listing.looked.itself {
                    // Which of the two is newer, another look tells.
                    self.pending.folder(folder);
                } else {
                    self.seen_folders.insert(folder, observed);
                }
                self.record_folders(wall, t)?;
                self.withdraw_folder(wall, t, folder)?;
            }
            // It moved on with what is in it, and a hint tells.
            Err(LookError::Moved | LookError::OtherFilesystem) if patrol => {}
            Err(error @ (LookError::Moved | LookError::OtherFilesystem)) => {
                if error == LookError::OtherFilesystem {
                    self.unseen.folder_seen(folder);
                }
                // Whatever happened to it or above it, the names that led there tell.
                if self.look_at_path(now, t, folder)? {
                    self.listings.owe(folder, listing.depth);
                } else {
                    self.unseen.folder_seen(folder);
                }
            }
            Err(LookError::Failed(reason)) => {
                let depth = if patrol {
                    Depth::Shallow
                } else {
                    listing.depth
                };
                self.folder_unseen(now, t, folder, depth, &reason)?;
            }
        }
        Ok(())
    }

    /// Looks at a folder's name and at those of all folders above it: one of them leads elsewhere.
    /// `false` for the root, which has none.
    pub(super) fn look_at_path(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        folder: ObjectId,
    ) -> Result<bool, TableError> {
        let mut at = folder;
        for _ in 0..access::DEPTH_MAX {
            let slot = live(t, at)?.and_then(|row| row.names.into_iter().next());
            let Some(slot) = slot else { break };
            at = slot.0;
            // Whether it is gone is being proved, or may be told: what is missing below it must not
            // begin that anew for ever.
            if !self.pending.is_confirming_at(&slot) && !self.pending.is_held(&slot) {
                self.pending.due_now(slot, now);
            }
        }
        Ok(at != folder)
    }

    /// When a scan has ended and nothing of it is left to be looked at, the new names that it met
    /// are: together with what vanished, so that renames are seen as such.
    pub(super) fn release_deferred(&mut self, now: Instant) {
        if self.listings.is_quiet() {
            for slot in std::mem::take(&mut self.listings.deferred) {
                self.pending.due_now(slot, now);
            }
            self.listings.defer = false;
        }
    }
}

fn name_hash(name: &Name) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
