//! Records that move, replace or remove: planned one at a time.
//!
//! Everything leaves its old name before anything takes a new one, in the rows as on the disk, and
//! moves are done before anything else is planned. Their places are named by the paths from before
//! the record, because the disk opens all folders before it moves the first.
//!
//! What is planned is noted among the parked rows before it is done: rows that are durable while
//! the disk is behind them are made true by a retry after the next start.

use std::collections::{BTreeMap, BTreeSet};

use super::links::{Change, Names, is_waiting, name_number, order_names};
use super::waiting::Stuck;
use super::{ApplyOp, MoveOne, Place, Queued, Replica, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{
    self, Slot, bury_below, digest_below, live, put_gone, put_live, put_name,
};
use crate::ledger::object::{Identity, Kind, ObjectState, Seq};
use crate::ledger::record::{NameState, Record};
use crate::ledger::rows::{Known, LiveObject, NameRow, ObjectRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::NameSetDigest;
use crate::time::WallMillis;

/// What the record does to the names, as far as it is news.
#[derive(Debug, Default)]
struct Layout {
    /// The object that each name gets.
    next: BTreeMap<Slot, ObjectId>,
    /// Objects that are on the disk and change a name.
    moves: Vec<(ObjectId, Slot, Slot)>,
    /// The same and more for all that live on, on the disk or not.
    names: Names,
}

/// What is left of a record once its moves are done.
#[derive(Debug)]
pub(super) struct Rest {
    queued: Queued,
    removals: Vec<Removal>,
    /// Names to be linked.
    pub(super) links: Vec<(ObjectId, Slot)>,
    pub(super) renamed: BTreeSet<ObjectId>,
    /// What stays at a name until what replaces it is there.
    pub(super) stays: BTreeMap<Slot, Known>,
    /// What was to leave folders that are removed.
    left: Vec<ObjectId>,
}

#[derive(Debug)]
struct Removal {
    id: ObjectId,
    slot: Slot,
    known: Known,
    kind: Kind,
    below: NameSetDigest,
    /// Noted among the parked rows: not for what was never published.
    noted: bool,
}

impl Removal {
    /// Of what is at a name that no ledger has.
    fn of_whatever(slot: Slot) -> Self {
        Self::of_remnant(ObjectId::default(), slot, Known::default())
    }

    /// Of what was to make room for an object at a name.
    fn of_remnant(id: ObjectId, slot: Slot, known: Known) -> Self {
        Self {
            id,
            slot,
            known,
            // As such it is removed whatever it is.
            kind: Kind::Folder,
            below: NameSetDigest::default(),
            noted: false,
        }
    }
}

impl Rest {
    /// Removals and links that were noted and not planned yet.
    pub(super) fn noted(&self) -> impl Iterator<Item = ObjectId> {
        let links = self.links.iter().map(|(_, slot)| name_number(slot));
        let removals = self.removals.iter().filter(|r| r.noted);
        removals.map(|r| r.id).chain(links)
    }

    pub(super) fn seq(&self) -> Seq {
        self.queued.record.seq
    }

    /// The names of an object are this record's from now on: an older one that comes again must not
    /// take them back, even if the rest of this state is not held yet.
    pub(super) fn stamp(&self, row: &mut LiveObject) {
        let objects = &self.queued.record.objects;
        if let Some(state) = objects.iter().find(|state| state.id == row.state.id) {
            row.state.version = state.version;
            row.state.replaces = state.replaces;
        }
    }
}

impl Replica {
    pub(super) fn plan_structure(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        queued: Queued,
    ) -> Result<(), TableError> {
        let renewed = self.take_renewed(wall, t, &queued.record)?;
        let layout = layout(t, &queued.record)?;
        let mut moves = self.plan_moves(t, &layout)?;
        let mut rest = Rest {
            queued,
            removals: Vec::new(),
            links: Vec::new(),
            renamed: BTreeSet::new(),
            stays: BTreeMap::new(),
            left: Vec::new(),
        };
        leave(t, &layout, &mut rest)?;
        for removal in &rest.removals {
            // Of a folder that was lost, with what is left of it there; not of what it was to
            // replace there, while it is elsewhere.
            if live(t, removal.id)?.is_some_and(|row| row.local.is_none()) {
                self.lose_below(wall, t, removal.id)?;
            }
        }
        self.leave_renewed(wall, t, renewed, &layout, &mut rest)?;
        self.remove_rows(wall, t, &layout, &mut rest)?;
        self.drop_names(wall, t, &layout, &mut rest)?;
        // What was still to leave something that is removed goes with it, and is fetched anew.
        let mut held = BTreeSet::new();
        for one in &moves {
            let row = live(t, one.id)?;
            held.extend(row.filter(|row| row.local.is_some()).map(|_| one.id));
        }
        for one in moves.extract_if(.., |one| !held.contains(&one.id)) {
            // Nor does it take away what is at its new name.
            let slot = (one.to.folder.id, one.to.name);
            rest.removals.push(Removal::of_whatever(slot));
        }
        let Layout { next, names, .. } = layout;
        self.take(t, &next, names.renames, &mut rest)?;
        self.take_links(wall, t, names.links, &mut rest)?;
        if self.is_suspect(rest.seq()) {
            let all = self.is_back(rest.seq());
            come_back(t, &mut rest, all)?;
        }
        if moves.is_empty() {
            return self.plan_rest(wall, t, rest);
        }
        if let Some(by) = self.moves_wait(&moves) {
            for one in &moves {
                self.waiting.entry(by).or_default().insert(one.id);
                self.park_move(wall, t, one, "it waits for another move")?;
            }
            return self.plan_rest(wall, t, rest);
        }
        let seq = rest.queued.record.seq;
        for one in &moves {
            self.intend(wall, t, one.id, seq, one.parked())?;
        }
        self.run(ApplyOp::Move(moves), Then::Moved);
        self.rest = Some(rest);
        Ok(())
    }

    /// Plans what a record wants besides its moves, which are done.
    pub(super) fn plan_rest(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        rest: Rest,
    ) -> Result<(), TableError> {
        let Rest {
            queued,
            removals,
            links,
            renamed,
            stays,
            left,
        } = rest;
        let record = &queued.record;
        for moved in left {
            if let Some(stuck) = self.blocking.get(&moved).cloned() {
                // It could not leave, and goes with its folder.
                self.give_up(wall, t, moved, &stuck.left_slot())?;
            }
        }
        for removal in removals {
            self.plan_removal(t, record.seq, removal)?;
        }
        for (id, slot) in links {
            self.plan_link(t, record.seq, id, slot)?;
        }
        for state in &record.objects {
            if renamed.contains(&state.id) {
                self.plan_renamed(wall, t, &queued, state)?;
                continue;
            }
            let name = record.names.iter().find(|n| n.object == Some(state.id));
            let slot = name.map(|n| (n.parent, n.name.clone()));
            let over = slot.as_ref().and_then(|slot| stays.get(slot).copied());
            self.plan_object(wall, t, &queued, state, slot, over)?;
            self.add_names(t, record, state.id)?;
        }
        Ok(())
    }

    /// A file that gets a name while its content is behind, because this record or an earlier one
    /// brings other content that is not here yet, comes to that name with the content: nobody may
    /// read there what it was before. From now on it is not on the disk. What it was stays at the
    /// names that it keeps, until it is replaced there; gives back the names that it leaves.
    fn take_renewed(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        record: &Record,
    ) -> Result<Vec<(Slot, Known)>, TableError> {
        let mut taken = Vec::new();
        if record.names.is_empty() {
            return Ok(taken);
        }
        let files = record.objects.iter().filter(|o| o.kind == Kind::File);
        for state in files {
            let Some(mut row) = live(t, state.id)? else {
                continue;
            };
            let Some(known) = row.known() else { continue };
            let is_behind =
                row.state.content_seq < state.content_seq && row.state.version.seq < record.seq;
            let is_new = |n: &NameState| {
                n.object == Some(state.id) && !row.names.contains(&(n.parent, n.name.clone()))
            };
            if !is_behind || !record.names.iter().any(is_new) {
                continue;
            }
            if let Some(stuck) = self.blocking.get(&state.id) {
                // It waits to be moved as it was.
                let left = stuck.left_slot();
                self.give_up(wall, t, state.id, &left)?;
                continue;
            }
            for slot in &row.names {
                // What waits to be linked there may be an earlier version, linked before.
                let stays = match is_waiting(t, slot)? {
                    true => Known::default(),
                    false => known,
                };
                let (object, remnant) = (Some(state.id), Some(stays));
                let at = |n: &&NameState| (n.parent, &n.name) == (slot.0, &slot.1);
                match record.names.iter().find(at) {
                    Some(next) if next.object != object => taken.push((slot.clone(), stays)),
                    _ => put_name(t, slot.0, &slot.1, NameRow { object, remnant })?,
                }
            }
            row.local = None;
            put_live(t, state.id, row)?;
        }
        Ok(taken)
    }

    /// What such files were goes from their old names, which others may take.
    fn leave_renewed(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        renewed: Vec<(Slot, Known)>,
        layout: &Layout,
        rest: &mut Rest,
    ) -> Result<(), TableError> {
        let moved: BTreeSet<ObjectId> = layout.moves.iter().map(|(id, ..)| *id).collect();
        for (slot, known) in renewed {
            if takes_place(layout, &moved, &slot) {
                rest.stays.insert(slot, known);
                continue;
            }
            if layout.next.contains_key(&slot) {
                stays(t, rest, slot, known)?;
                continue;
            }
            let (id, kind) = (name_number(&slot), Kind::File);
            let at = slot.clone();
            let what = ParkedWhat::Remove { at, known, kind };
            self.intend(wall, t, id, rest.seq(), what)?;
            rest.removals.push(Removal {
                id,
                slot,
                known,
                kind,
                below: NameSetDigest::default(),
                noted: true,
            });
        }
        Ok(())
    }

    fn plan_moves(
        &mut self,
        t: &dyn TablesRead,
        layout: &Layout,
    ) -> Result<Vec<MoveOne>, TableError> {
        let mut moves = Vec::with_capacity(layout.moves.len());
        for (id, from, to) in &layout.moves {
            let (Some(row), Some(from), Some(to)) = (
                live(t, *id)?,
                self.place_at(t, from)?,
                self.place_at(t, to)?,
            ) else {
                continue;
            };
            let Some(local) = row.local else { continue };
            self.touched.extend([from.folder.id, to.folder.id]);
            moves.push(MoveOne {
                id: *id,
                from,
                to,
                identity: local.fingerprint.identity,
            });
        }
        Ok(moves)
    }

    fn place_at(&mut self, t: &dyn TablesRead, slot: &Slot) -> Result<Option<Place>, TableError> {
        let folder = self.folders.at(t, slot.0)?;
        Ok(folder.map(|folder| Place {
            folder,
            name: slot.1.clone(),
        }))
    }

    fn remove_rows(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        layout: &Layout,
        rest: &mut Rest,
    ) -> Result<(), TableError> {
        let moved: BTreeSet<ObjectId> = layout.moves.iter().map(|(id, ..)| *id).collect();
        let removed = rest.queued.record.removed.clone();
        let seq = rest.queued.record.seq;
        for id in removed {
            self.fetches.remove(id);
            let Some(row) = live(t, id)? else { continue };
            if row.state.version.seq >= seq {
                continue;
            }
            let stuck = self.blocking.get(&id).cloned();
            self.unpark(t, id)?;
            let kind = row.state.kind;
            let below = match kind {
                Kind::Folder => digest_below(t, id)?,
                _ => NameSetDigest::default(),
            };
            for slot in row.names.clone() {
                let is_first = row.slot() == Some(&slot);
                let vacated = vacate(t, layout, &moved, &row, &slot, rest)?;
                let (known, slot) = match (&stuck, vacated) {
                    (Some(stuck), _) if stuck.to == slot => {
                        // It never came here. What it was to replace here is in no ledger, and may
                        // be a folder with all that is in it.
                        self.owe_sweep(t, slot.0)?;
                        let replaced = vacated.filter(|known| Some(*known) != row.known());
                        if !layout.next.contains_key(&slot) {
                            let gone = replaced.map(|known| Removal::of_remnant(id, slot, known));
                            rest.removals.extend(gone);
                        } else if !takes_place(layout, &moved, &slot) {
                            stays(t, rest, slot, replaced.unwrap_or_default())?;
                        }
                        let from = stuck.left_slot();
                        if takes_place(layout, &moved, &from) {
                            continue;
                        }
                        // No record says that this name is empty.
                        self.owe_sweep(t, from.0)?;
                        let Some(known) = row.known() else { continue };
                        (known, from)
                    }
                    (_, Some(known)) => (known, slot),
                    (_, None) => continue,
                };
                let what = ParkedWhat::Remove {
                    at: slot.clone(),
                    known,
                    kind,
                };
                // By its own number also where it was left: the name may be noted for a link.
                let id = if is_first { id } else { name_number(&slot) };
                self.intend(wall, t, id, seq, what)?;
                rest.removals.push(Removal {
                    id,
                    slot,
                    known,
                    kind,
                    below,
                    noted: true,
                });
            }
            if kind == Kind::Folder {
                for (moved, from, _) in &layout.moves {
                    if access::is_below(t, from.0, id)? {
                        rest.left.push(*moved);
                    }
                }
                let stranded = self.before_removal(wall, t, id)?;
                let buried = bury_below(t, id, seq)?;
                self.graves.note(buried.files);
                self.folders.forget();
                for linked in buried.living {
                    self.names_went(wall, t, linked)?;
                }
                for (stuck, row) in stranded {
                    let replaced = takes_place(layout, &moved, &stuck.left_slot());
                    self.remove_stranded(wall, t, seq, (&stuck, &row, replaced), rest)?;
                }
            }
            put_gone(t, id, seq)?;
            self.graves.note(1);
        }
        Ok(())
    }

    /// Takes names from objects that have others.
    fn drop_names(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        layout: &Layout,
        rest: &mut Rest,
    ) -> Result<(), TableError> {
        let moved: BTreeSet<ObjectId> = layout.moves.iter().map(|(id, ..)| *id).collect();
        let seq = rest.seq();
        // What is noted of a name that goes with what a file was.
        let noted = rest.removals.iter().filter(|removal| removal.noted);
        let noted: BTreeSet<ObjectId> = noted.map(|removal| removal.id).collect();
        for (id, slot) in &layout.names.drops {
            let Some(mut row) = live(t, *id)? else {
                continue;
            };
            let number = name_number(slot);
            if !noted.contains(&number) {
                self.unpark(t, number)?;
            }
            if let Some(stuck) = self.blocking.get(id).filter(|stuck| stuck.to == *slot) {
                // It never came here: what it is on the disk is swept, and it is fetched anew.
                let left = stuck.left_slot();
                self.owe_sweep(t, slot.0)?;
                self.give_up(wall, t, *id, &left)?;
                row = live(t, *id)?.unwrap_or(row);
            }
            if let Some(known) = vacate(t, layout, &moved, &row, slot, rest)? {
                let kind = row.state.kind;
                let what = ParkedWhat::Remove {
                    at: slot.clone(),
                    known,
                    kind,
                };
                self.intend(wall, t, number, seq, what)?;
                rest.removals.push(Removal {
                    id: number,
                    slot: slot.clone(),
                    known,
                    kind,
                    below: NameSetDigest::default(),
                    noted: true,
                });
            }
            row.names.retain(|name| name != slot);
            order_names(t, &mut row.names)?;
            rest.stamp(&mut row);
            rest.renamed.insert(*id);
            put_live(t, *id, row)?;
        }
        Ok(())
    }

    /// Removes an object that went with a folder into which it was still to be moved.
    fn remove_stranded(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        (stuck, row, replaced): (&Stuck, &LiveObject, bool),
        rest: &mut Rest,
    ) -> Result<(), TableError> {
        let (id, kind) = (row.state.id, row.state.kind);
        self.parked.remove(id);
        self.intended.remove(&id);
        self.is_free(id);
        let Some(known) = row.known().filter(|_| !replaced) else {
            return Ok(());
        };
        let slot = stuck.left_slot();
        self.owe_sweep(t, slot.0)?;
        let what = ParkedWhat::Remove {
            at: slot.clone(),
            known,
            kind,
        };
        self.intend(wall, t, id, seq, what)?;
        rest.removals.push(Removal {
            id,
            slot,
            known,
            kind,
            below: NameSetDigest::default(),
            noted: true,
        });
        Ok(())
    }

    fn plan_removal(
        &mut self,
        t: &mut dyn Tables,
        seq: Seq,
        removal: Removal,
    ) -> Result<(), TableError> {
        let Removal {
            id,
            slot,
            known,
            kind,
            below,
            noted,
        } = removal;
        // What was never published may wait for its content under its new name: it stays parked.
        let id = if noted { id } else { name_number(&slot) };
        let Some(at) = self.place_at(t, &slot)? else {
            // The folder that it was in went with it.
            return self.unpark_removal(t, id);
        };
        self.touched.insert(at.folder.id);
        // Until it is done the name remembers what is still there.
        let object = access::name(t, slot.0, &slot.1)?.and_then(|row| row.object);
        let remnant = Some(known);
        put_name(t, slot.0, &slot.1, NameRow { object, remnant })?;
        let op = ApplyOp::Remove {
            id,
            at,
            known,
            drift: self.on_drift(id, seq),
            kind,
            below,
        };
        self.run(op, Then::Removed(seq, slot));
        Ok(())
    }

    /// Gives objects that have rows their new names.
    fn take(
        &mut self,
        t: &mut dyn Tables,
        next: &BTreeMap<Slot, ObjectId>,
        renames: Vec<(ObjectId, Slot, Slot)>,
        rest: &mut Rest,
    ) -> Result<(), TableError> {
        let suspect = self.is_suspect(rest.seq());
        for (id, from, slot) in renames {
            let Some(mut row) = live(t, id)? else {
                continue;
            };
            // Also what a removal that did not work has left there.
            let left = access::name(t, slot.0, &slot.1)?.and_then(|row| row.remnant);
            let there = rest.stays.get(&slot).copied().or(left);
            // What was published here before a crash that took its row back is not known.
            let unknown = suspect && row.state.kind != Kind::Folder && row.local.is_none();
            let remnant = there.or(unknown.then(Known::default));
            put_name(
                t,
                slot.0,
                &slot.1,
                NameRow {
                    object: Some(id),
                    remnant,
                },
            )?;
            if is_waiting(t, &slot)? {
                // It was to be linked there, and is moved there instead.
                self.unpark(t, name_number(&slot))?;
            }
            let old = access::name(t, from.0, &from.1)?;
            if old.is_some_and(|old| old.object == Some(id)) {
                // It was given up after it had left, and noted to be there all the same.
                if next.contains_key(&from) {
                    stays(t, rest, from.clone(), Known::default())?;
                } else {
                    let nothing = NameRow {
                        object: None,
                        remnant: None,
                    };
                    put_name(t, from.0, &from.1, nothing)?;
                    rest.removals.push(Removal::of_whatever(from.clone()));
                }
            }
            row.names.retain(|name| *name != from && *name != slot);
            row.names.insert(0, slot);
            rest.stamp(&mut row);
            if row.state.kind == Kind::Folder {
                self.folders.forget();
            }
            put_live(t, id, row)?;
            rest.renamed.insert(id);
        }
        Ok(())
    }

    /// An object under its new name: its metadata and content, where they changed along with it.
    fn plan_renamed(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        queued: &Queued,
        state: &ObjectState,
    ) -> Result<(), TableError> {
        let Some(mut row) = live(t, state.id)? else {
            return Ok(());
        };
        let quiet = row.local.is_some()
            && row.state.meta == state.meta
            && row.state.content_seq >= state.content_seq
            && !self.parked.contains(state.id)
            && self.fetches.get_mut(state.id).is_none();
        if quiet {
            row.state.version = state.version;
            row.state.replaces = state.replaces;
            return put_live(t, state.id, row);
        }
        self.plan_object(wall, t, queued, state, None, None)
    }
}

/// Names that were emptied before a crash may hold what they held: those of which the ledger says so,
/// and all of them where the disk lost its last changes.
fn come_back(t: &dyn TablesRead, rest: &mut Rest, all: bool) -> Result<(), TableError> {
    for at in rest
        .queued
        .record
        .names
        .iter()
        .filter(|n| n.object.is_none())
    {
        let slot = (at.parent, at.name.clone());
        let planned = rest.removals.iter().any(|removal| removal.slot == slot);
        let is_done = match access::name(t, slot.0, &slot.1)? {
            Some(row) => row.object.is_some(),
            None => !all,
        };
        if planned || is_done {
            continue;
        }
        rest.removals.push(Removal::of_whatever(slot));
    }
    Ok(())
}

fn layout(t: &dyn TablesRead, record: &Record) -> Result<Layout, TableError> {
    let mut layout = Layout::default();
    let mut got: BTreeMap<ObjectId, Vec<Slot>> = BTreeMap::new();
    let mut taken = BTreeMap::new();
    for name in &record.names {
        let slot = (name.parent, name.name.clone());
        taken.insert(slot.clone(), name.object);
        if let Some(NameRow {
            object: Some(id), ..
        }) = access::name(t, slot.0, &slot.1)?
        {
            // It may lose this name, whether it gets another one or not.
            got.entry(id).or_default();
        }
        let Some(id) = name.object else { continue };
        let row = access::object(t, id)?;
        if row.as_ref().is_some_and(|row| row.seq() > record.seq) {
            continue;
        }
        if went_since(t, record, &slot)? || given_since(t, record.seq, &slot, id)?.is_some() {
            continue;
        }
        layout.next.insert(slot.clone(), id);
        got.entry(id).or_default().push(slot);
    }
    for (id, got) in got {
        let Some(row) = live(t, id)?.filter(|row| row.state.version.seq <= record.seq) else {
            continue;
        };
        let is_folder = row.state.kind == Kind::Folder;
        let is_single = got.is_empty() && row.names.len() < 2;
        if record.removed.contains(&id) || row.names.is_empty() || is_single {
            continue;
        }
        if is_folder && got.iter().all(|slot| row.names.contains(slot)) {
            continue;
        }
        let mut absent = Vec::new();
        for slot in &row.names[1..] {
            if row.local.is_some() && is_waiting(t, slot)? {
                absent.push(slot);
            }
        }
        let is_left = |slot: &&Slot| taken.get(*slot).is_some_and(|to| *to != Some(id));
        let change = Change {
            id,
            known: &row.names,
            got: &got,
            left: row.names.iter().filter(is_left).collect(),
            absent,
        };
        change.sort(&mut layout.names, is_folder);
        if row.local.is_some() {
            let renames = layout.names.renames.iter();
            let own = renames.filter(|(of, ..)| *of == id).cloned();
            layout.moves.extend(own);
        }
    }
    Ok(layout)
}

/// Whether the folder of a name is known to have gone since, with the name.
pub(super) fn went_since(
    t: &dyn TablesRead,
    record: &Record,
    slot: &Slot,
) -> Result<bool, TableError> {
    let parent = access::object(t, slot.0)?;
    Ok(matches!(parent, Some(ObjectRow::Gone(by)) if by > record.seq))
}

/// The later record that is known to have given a name to another object: where a comparison has
/// brought what a log says that is read after it all the same, nothing else tells.
pub(super) fn given_since(
    t: &dyn TablesRead,
    seq: Seq,
    slot: &Slot,
    id: ObjectId,
) -> Result<Option<Seq>, TableError> {
    let owner = access::name(t, slot.0, &slot.1)?.and_then(|row| row.object);
    let Some(owner) = owner.filter(|owner| *owner != id) else {
        return Ok(None);
    };
    let by = live(t, owner)?.map(|row| row.state.version.seq);
    Ok(by.filter(|by| *by > seq))
}

/// Takes objects that have rows away from their old names.
fn leave(t: &mut dyn Tables, layout: &Layout, rest: &mut Rest) -> Result<(), TableError> {
    for (id, from, _) in &layout.names.renames {
        let Some(row) = live(t, *id)? else { continue };
        let remnant = access::name(t, from.0, &from.1)?.and_then(|n| n.remnant);
        let nothing = NameRow {
            object: None,
            remnant: None,
        };
        put_name(t, from.0, &from.1, nothing)?;
        // What sat at the old name of something that never came there.
        let came = row.local.is_some();
        let remnant = remnant.filter(|left| !came || left.identity != Identity::default());
        let Some(known) = remnant else { continue };
        stays(t, rest, from.clone(), known)?;
        if layout.next.contains_key(from) {
            continue;
        }
        let removal = Removal::of_remnant(*id, from.clone(), known);
        rest.removals.push(Removal {
            kind: if came { Kind::Folder } else { row.state.kind },
            ..removal
        });
    }
    Ok(())
}

/// Whether something is moved to a name.
fn takes_place(layout: &Layout, moved: &BTreeSet<ObjectId>, slot: &Slot) -> bool {
    let next = layout.next.get(slot);
    next.is_some_and(|next| moved.contains(next))
}

/// Empties the name row of a removed object. Returns what must go from the disk there.
fn vacate(
    t: &mut dyn Tables,
    layout: &Layout,
    moved: &BTreeSet<ObjectId>,
    row: &LiveObject,
    slot: &Slot,
    rest: &mut Rest,
) -> Result<Option<Known>, TableError> {
    let remnant = access::name(t, slot.0, &slot.1)?.and_then(|n| n.remnant);
    let nothing = NameRow {
        object: None,
        remnant: None,
    };
    put_name(t, slot.0, &slot.1, nothing)?;
    // What could not be moved here is elsewhere.
    let left = remnant.filter(|left| left.identity != Identity::default());
    let Some(known) = left.or(row.known()).or(remnant) else {
        return Ok(None);
    };
    let next = layout.next.get(slot);
    if takes_place(layout, moved, slot) {
        // The move puts what it finds in its way into the trash.
        rest.stays.insert(slot.clone(), known);
        return Ok(None);
    }
    let objects = &rest.queued.record.objects;
    let replacing = next.and_then(|next| objects.iter().find(|s| s.id == *next));
    if replacing.is_some_and(|s| s.kind != Kind::Folder) && row.state.kind != Kind::Folder {
        stays(t, rest, slot.clone(), known)?;
        return Ok(None);
    }
    Ok(Some(known))
}

/// What was at a name stays there until what takes the name comes. The name knows it too: its
/// record may end before that is planned.
fn stays(t: &mut dyn Tables, rest: &mut Rest, slot: Slot, known: Known) -> Result<(), TableError> {
    let remnant = Some(known);
    let object = None;
    put_name(t, slot.0, &slot.1, NameRow { object, remnant })?;
    rest.stays.insert(slot, known);
    Ok(())
}
