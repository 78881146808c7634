//! Writing records: one for what changed together.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::compare::{Bytes, Found, Lost, Moves, Round, UNANNOUNCED, moved_bytes};
use super::links;
use super::pairing::{climb, is_folder, left};
use super::{Coalescer, Slot};
use crate::filter::Verdict;
use crate::ids::ObjectId;
use crate::ledger::access::{self, bury_below, live, put_gone, put_live, put_name};
use crate::ledger::object::{Kind, ObjectState, Observed, Seq, Version};
use crate::ledger::record::{NameState, RECORD_MAX_ITEMS, Record};
use crate::ledger::rows::{LiveObject, Local, NameRow};
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::ledger::writer::new_state;
use crate::time::{Instant, WallMillis};

/// From how many bytes of extended attributes on a record takes no more folders along.
const RECORD_XATTRS_BYTES: u64 = 1 << 20;

/// How many folders are remembered as told of.
const TOLD_MAX: usize = 256;

impl Coalescer {
    /// Enters something new, with a record of its own if it is to be told of now.
    pub(super) fn enter_new(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: Slot,
        seen: &Observed,
        verdict: Verdict,
    ) -> Result<(), TableError> {
        if verdict == Verdict::Descend {
            let id = self.ledger.new_object();
            return self.enter(t, id, slot, seen, unannounced(id, seen));
        }
        if self.enter_link(wall, t, &slot, seen)? {
            return Ok(());
        }
        self.announce_folder(wall, t, slot.0)?;
        let mut record = self.begin(wall, t)?;
        self.add_new(t, &mut record, slot, seen)?;
        self.ledger.append(t, &record)
    }

    /// Adds a new object to a record.
    fn add_new(
        &mut self,
        t: &mut dyn Tables,
        record: &mut Record,
        slot: Slot,
        seen: &Observed,
    ) -> Result<(), TableError> {
        let id = self.ledger.new_object();
        let state = new_state(id, seen, record.version(self.ledger.origin()));
        record.names.push(name_state(&slot, Some(id)));
        record.objects.push(state.clone());
        self.enter(t, id, slot, seen, state)
    }

    /// Writes the rows of a new object; a new folder is listed from here on.
    fn enter(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        slot: Slot,
        seen: &Observed,
        state: ObjectState,
    ) -> Result<(), TableError> {
        let local = Some(Local {
            fingerprint: seen.fingerprint,
            handle: seen.folder_handle().cloned(),
            round: 0,
        });
        if let Some(handle) = seen.folder_handle() {
            self.doubt_holder(t, handle)?;
            t.put(Table::Handles, handle, &id.to_key())?;
            self.listings.heard(id, handle);
        }
        self.note_identity(t, id, seen)?;
        put_name(
            t,
            slot.0,
            &slot.1,
            NameRow {
                object: Some(id),
                remnant: None,
            },
        )?;
        put_live(
            t,
            id,
            LiveObject {
                state,
                names: vec![slot],
                local,
            },
        )?;
        self.written = true;
        match seen.kind {
            Kind::Folder => self.listings.deep(id),
            _ => self.ledger.file_came(),
        }
        Ok(())
    }

    /// A folder comes in whose handle leads to another one: one of the two is gone. If it is the new
    /// one, the other must have its handle back, or hints of what happens in it are lost.
    pub(super) fn doubt_holder(
        &mut self,
        t: &dyn TablesRead,
        handle: &[u8],
    ) -> Result<(), TableError> {
        if let Some(holder) = access::folder_by_handle(t, handle)?
            && let Some(slot) = live(t, holder)?.and_then(|row| row.names.into_iter().next())
        {
            self.pending.due_now(slot, Instant::default());
        }
        Ok(())
    }

    /// Tells of a folder, and of those above it, that only a filter's depth had entered so far.
    pub(super) fn announce_folder(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
    ) -> Result<(), TableError> {
        if self.told.contains(&folder) {
            return Ok(());
        }
        let mut chain = Vec::new();
        let mut at = folder;
        while let Some(row) = live(t, at)? {
            if row.is_announced() {
                break;
            }
            let Some(slot) = row.slot().cloned() else {
                break;
            };
            let parent = slot.0;
            chain.push((at, slot, row));
            at = parent;
        }
        for (id, slot, mut row) in chain.into_iter().rev() {
            let mut record = self.begin(wall, t)?;
            row.state.version = record.version(self.ledger.origin());
            record.names.push(name_state(&slot, Some(id)));
            record.objects.push(row.state.clone());
            put_live(t, id, row)?;
            self.ledger.append(t, &record)?;
            self.written = true;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        self.told.insert(folder);
        Ok(())
    }

    /// Records new content or metadata of an object that kept its name.
    pub(super) fn record_change(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        mut row: LiveObject,
        seen: &Observed,
        content: bool,
    ) -> Result<(), TableError> {
        self.written = true;
        if content {
            self.settle_doubt(t, &id.to_key())?;
        }
        if !row.is_announced() {
            row.state.meta = seen.meta.clone();
            note_local(&mut row, seen);
            return put_live(t, id, row);
        }
        let mut record = self.begin(wall, t)?;
        self.renew(&mut row, &record, seen, content);
        record.objects.push(row.state.clone());
        put_live(t, id, row)?;
        self.ledger.append(t, &record)
    }

    /// The version of an object is that of a record.
    pub(super) fn stamp(&self, row: &mut LiveObject, record: &Record) {
        let version = record.version(self.ledger.origin());
        if row.state.version != version {
            row.state.replaces = row.is_announced().then_some(row.state.version);
            row.state.version = version;
        }
    }

    pub(super) fn renew(
        &self,
        row: &mut LiveObject,
        record: &Record,
        seen: &Observed,
        content: bool,
    ) {
        self.stamp(row, record);
        row.state.meta = seen.meta.clone();
        if content {
            row.state.content = seen.content();
            row.state.content_seq = record.seq;
        }
        note_local(row, seen);
    }

    /// Records the metadata of folders that a round or a listing looked at: their own times change
    /// with every name in them. They go into the round's last record where there is one, so that a
    /// rename is one record.
    pub(super) fn record_folders(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<(), TableError> {
        for (id, seen) in std::mem::take(&mut self.seen_folders) {
            let Some(mut row) = live(t, id)? else {
                continue;
            };
            let same_inode = row
                .local
                .as_ref()
                .is_some_and(|l| l.fingerprint.identity == seen.fingerprint.identity);
            if !same_inode || row.state.meta == seen.meta {
                continue;
            }
            self.written = true;
            if row.is_announced() {
                let room = |record: &mut Record| record.xattr_bytes() < RECORD_XATTRS_BYTES;
                let mut record = match self.open.take_if(room) {
                    Some(record) => record,
                    None => self.begin(wall, t)?,
                };
                self.renew(&mut row, &record, &seen, false);
                record.objects.retain(|state| state.id != id);
                record.objects.push(row.state.clone());
                self.open = Some(record);
            } else {
                row.state.meta = seen.meta.clone();
                note_local(&mut row, &seen);
            }
            put_live(t, id, row)?;
        }
        self.close(t)
    }

    /// Begins a record, after the one that was open is written.
    pub(super) fn begin(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<Record, TableError> {
        self.close(t)?;
        Ok(self.ledger.begin(wall))
    }

    fn close(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        self.open
            .take()
            .map_or(Ok(()), |record| self.ledger.append(t, &record))
    }

    /// Records everything that a round found to have changed its name, come or gone.
    pub(super) fn record_round(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        round: Round,
        moves: &Moves,
    ) -> Result<(), TableError> {
        let Round {
            mut lost,
            mut found,
            ..
        } = round;
        let mut groups = groups(t, &lost, &found, moves)?;
        // What moves away from a folder goes before the folder's own removal.
        groups.sort_by_key(|slots| {
            slots
                .iter()
                .any(|slot| lost.contains_key(slot) && !moves.values().any(|f| f == slot))
        });
        let left: BTreeSet<ObjectId> = lost.keys().map(|slot| slot.0).collect();
        for slots in groups {
            for slot in &slots {
                // A folder removed by an earlier group took what was below it along.
                if let Some(l) = lost.get(slot)
                    && access::name(t, slot.0, &slot.1)?.and_then(|row| row.object) != Some(l.id)
                {
                    lost.remove(slot);
                }
            }
            self.record_group(wall, t, &slots, &mut lost, &mut found, moves)?;
        }
        for folder in left {
            self.withdraw_folder(wall, t, folder)?;
        }
        Ok(())
    }

    fn record_group(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slots: &[Slot],
        lost: &mut BTreeMap<Slot, Lost>,
        found: &mut BTreeMap<Slot, Found>,
        moves: &Moves,
    ) -> Result<(), TableError> {
        self.announce_parents(wall, t, slots, lost, found, moves)?;
        let mut record = self.begin(wall, t)?;
        let mut new_names: BTreeMap<Slot, Option<ObjectId>> = BTreeMap::new();
        // First everything leaves its old name, then everything takes its new one.
        let mut moving = BTreeMap::new();
        let mut removed = Vec::new();
        for slot in slots {
            let Some(gone) = lost.remove(slot) else {
                continue;
            };
            put_name(
                t,
                slot.0,
                &slot.1,
                NameRow {
                    object: None,
                    remnant: None,
                },
            )?;
            if gone.row.is_announced() {
                new_names.insert(slot.clone(), None);
            }
            if moves.values().any(|from| from == slot) {
                self.owe_along(t, slot, &gone)?;
                // A folder that it leaves may go for good in this record, and its debts with it.
                let unheard = self.may_be_unheard(t, &gone.row)?;
                moving.insert(slot.clone(), (gone, unheard));
            } else {
                removed.push((slot, gone));
            }
        }
        for (slot, gone) in removed {
            if !self.drop_name(t, &mut record, slot, gone.id, gone.what())? {
                self.remove(t, &mut record, gone)?;
            }
        }
        for slot in slots {
            let Some(seen) = found.remove(slot) else {
                continue;
            };
            let from = moves.get(slot);
            match from.and_then(|from| Some((from, moving.remove(from)?))) {
                Some((from, gone)) => {
                    let told = self.move_to(t, &mut record, (from, slot), gone, &seen)?;
                    if let Some(id) = told {
                        new_names.insert(slot.clone(), Some(id));
                    }
                }
                None if seen.verdict == Verdict::Descend => {
                    let id = self.ledger.new_object();
                    self.enter(
                        t,
                        id,
                        slot.clone(),
                        &seen.observed,
                        unannounced(id, &seen.observed),
                    )?;
                }
                None => match self.linked(t, &seen.observed)? {
                    Some(known) => {
                        let (observed, what) = (&seen.observed, seen.what);
                        let id = self.link_to(t, &mut record, slot, known, observed, what)?;
                        new_names.insert(slot.clone(), Some(id));
                    }
                    None => {
                        new_names.remove(slot);
                        self.add_new(t, &mut record, slot.clone(), &seen.observed)?;
                    }
                },
            }
        }
        record
            .names
            .extend(new_names.iter().map(|(slot, id)| name_state(slot, *id)));
        self.written = true;
        // Even an empty record is written: the numbers have no holes.
        self.open = Some(record);
        Ok(())
    }

    /// Tells of the folders into which comes what is told of. Some of them may leave their own names
    /// in the same round: what was read of those is read again.
    fn announce_parents(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slots: &[Slot],
        lost: &mut BTreeMap<Slot, Lost>,
        found: &BTreeMap<Slot, Found>,
        moves: &Moves,
    ) -> Result<(), TableError> {
        loop {
            for slot in slots {
                let Some(f) = found.get(slot) else { continue };
                let told = moves
                    .get(slot)
                    .and_then(|from| lost.get(from))
                    .is_some_and(|l| l.row.is_announced());
                if f.verdict == Verdict::Included || told {
                    self.announce_folder(wall, t, slot.0)?;
                }
            }
            let mut again = false;
            for slot in slots {
                if let Some(l) = lost.get_mut(slot)
                    && !l.row.is_announced()
                    && let Some(row) = live(t, l.id)?
                {
                    again |= row.is_announced();
                    l.row = row;
                }
            }
            if !again {
                return Ok(());
            }
        }
    }

    fn remove(
        &mut self,
        t: &mut dyn Tables,
        record: &mut Record,
        gone: Lost,
    ) -> Result<(), TableError> {
        let Lost { id, row, .. } = gone;
        if let Some(local) = &row.local {
            if let Some(handle) = &local.handle {
                access::remove_handle(t, handle, id)?;
            }
            access::remove_identity(t, local.fingerprint.identity, id)?;
        }
        // It may have lost another name in this very record.
        record.objects.retain(|state| state.id != id);
        if row.state.kind == Kind::Folder {
            self.listings.gone(id);
            self.unseen.folder_seen(id);
            let files = bury_below(t, id, record.seq)?.files;
            self.ledger.files_went(files);
            self.tombstones += files;
            self.folders.forget();
        } else {
            self.ledger.files_went(1);
        }
        if row.is_announced() {
            record.removed.push(id);
        }
        put_gone(t, id, record.seq)?;
        self.tombstones += 1;
        if row.state.kind == Kind::Folder {
            self.forget_writes(t)?;
        }
        Ok(())
    }

    /// What was written in folders that are taken for gone cannot be looked at there any more. Such
    /// a folder may be elsewhere, and be entered as a new one.
    fn forget_writes(&mut self, t: &dyn TablesRead) -> Result<(), TableError> {
        for folder in self.pending.written_folders() {
            if live(t, folder)?.is_none() {
                self.listings.lost();
            }
        }
        Ok(())
    }

    /// Gives a moved object its new name. `unheard`: a write through its old names may not have been
    /// told. Returns its id if the record tells of it.
    fn move_to(
        &mut self,
        t: &mut dyn Tables,
        record: &mut Record,
        (from, slot): (&Slot, &Slot),
        (gone, unheard): (Lost, bool),
        seen: &Found,
    ) -> Result<Option<ObjectId>, TableError> {
        let mut what = seen.what;
        what.merge(gone.what());
        let Lost { id, row, .. } = gone;
        // One of its other names may have been recorded since it was read.
        let mut row = live(t, id)?.unwrap_or(row);
        what.merge(self.hinted(&row));
        let missing = unheard || self.listings.is_deaf(t, slot.0)?;
        let bytes = moved_bytes(&row, &seen.observed, what, missing);
        self.heed(t, id, bytes)?;
        row.names.retain(|name| name != from && name != slot);
        row.names.insert(0, slot.clone());
        // It may have been met at its new name before it was missed at the old one, as another
        // object.
        self.note_identity(t, id, &seen.observed)?;
        put_name(
            t,
            slot.0,
            &slot.1,
            NameRow {
                object: Some(id),
                remnant: None,
            },
        )?;
        if row.state.kind == Kind::Folder {
            self.folders.forget();
            self.listings.met(id);
            self.keep_handle(t, id, &seen.observed)?;
            if !self.filter.is_trivial() || self.listings.is_scanning() {
                // The verdict on everything below it may be another one now.
                self.listings.deep(id);
            }
        }
        let told = row.is_announced() || seen.verdict == Verdict::Included;
        if told {
            self.renew(&mut row, record, &seen.observed, bytes == Bytes::Differ);
            links::tell(record, &row);
        } else {
            note_local(&mut row, &seen.observed);
        }
        put_live(t, id, row)?;
        Ok(told.then_some(id))
    }

    /// A folder that was made only for what it contains goes when it contains nothing any more.
    pub(super) fn withdraw_folder(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
    ) -> Result<(), TableError> {
        let mut at = folder;
        while let Some(mut row) = live(t, at)? {
            let Some(slot) = row.slot().cloned() else {
                return Ok(());
            };
            if !row.is_announced() || self.judge(t, &slot, Kind::Folder)? != Verdict::Descend {
                return Ok(());
            }
            let mut ids = Vec::new();
            access::children(t, at, &mut |_, child| {
                ids.extend(child.object);
                ControlFlow::Continue(())
            })?;
            for id in ids {
                if live(t, id)?.is_some_and(|child| child.is_announced()) {
                    return Ok(());
                }
            }
            let mut record = self.begin(wall, t)?;
            record.names.push(name_state(&slot, None));
            record.removed.push(at);
            row.state.version.seq = UNANNOUNCED;
            put_live(t, at, row)?;
            self.told.remove(&at);
            self.written = true;
            self.ledger.append(t, &record)?;
            at = slot.0;
        }
        Ok(())
    }
}

pub(super) fn name_state(slot: &Slot, object: Option<ObjectId>) -> NameState {
    NameState {
        parent: slot.0,
        name: slot.1.clone(),
        object,
    }
}

fn unannounced(id: ObjectId, seen: &Observed) -> ObjectState {
    let mut state = new_state(id, seen, Version::default());
    state.content_seq = Seq(0);
    state
}

fn note_local(row: &mut LiveObject, seen: &Observed) {
    let handle = row
        .local
        .take()
        .and_then(|l| l.handle)
        .or_else(|| seen.folder_handle().cloned());
    row.local = Some(Local {
        fingerprint: seen.fingerprint,
        handle,
        round: 0,
    });
}

/// Groups the slots of a round by what must be told together: the two ends of a move; a name and
/// whatever takes its place; a move into or out of a folder that moves itself, and a move out of one
/// that is removed.
fn groups(
    t: &dyn TablesRead,
    lost: &BTreeMap<Slot, Lost>,
    found: &BTreeMap<Slot, Found>,
    moves: &Moves,
) -> Result<Vec<Vec<Slot>>, TableError> {
    let slots: BTreeSet<&Slot> = lost.keys().chain(found.keys()).collect();
    let index: BTreeMap<&Slot, usize> = slots.iter().enumerate().map(|(i, s)| (*s, i)).collect();
    let mut sets = Sets((0..slots.len()).collect());
    let moved_folders: BTreeMap<ObjectId, &Slot> = moves
        .values()
        .map(|from| (&lost[from], from))
        .filter(|(l, _)| is_folder(l))
        .map(|(l, from)| (l.id, from))
        .collect();
    let gone: BTreeMap<ObjectId, &Slot> = left(lost, moves)
        .filter(|(_, l)| is_folder(l))
        .map(|(slot, l)| (l.id, slot))
        .collect();
    let by_ledger = BTreeMap::new();
    for (to, from) in moves {
        sets.join(index[to], index[from]);
        let mut join_all = |folders: &BTreeMap<ObjectId, &Slot>, start| {
            climb(t, &by_ledger, start, |at| {
                if let Some(folder) = folders.get(&at) {
                    sets.join(index[from], index[*folder]);
                }
                false
            })
        };
        // Out of something that is removed: the removal would take it along.
        join_all(&gone, from.0)?;
        if is_folder(&lost[from]) {
            // Below something that moves: in another order a folder might come below itself.
            join_all(&moved_folders, to.0)?;
        }
        for end in [to, from] {
            if let Some(folder) = moved_folders.get(&end.0) {
                sets.join(index[from], index[*folder]);
            }
        }
    }
    let mut groups: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
    for slot in slots {
        groups
            .entry(sets.find(index[slot]))
            .or_default()
            .push(slot.clone());
    }
    debug_assert!(
        groups.values().all(|g| g.len() <= RECORD_MAX_ITEMS),
        "rounds are smaller"
    );
    Ok(groups.into_values().collect())
}

struct Sets(Vec<usize>);

impl Sets {
    fn find(&self, mut at: usize) -> usize {
        while self.0[at] != at {
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        let (low, high) = (a.min(b), a.max(b));
        self.0[high] = low;
    }
}
