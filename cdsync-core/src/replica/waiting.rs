//! What waits for objects that could not be moved.
//!
//! An object whose move failed is still at its old name on the disk, while the ledger has it at the
//! new one. Paths are built from where it is ([`Folders::displace`](crate::ledger::access::Folders)),
//! so that what lies below it goes on. What waits is parked like everything else that could not be
//! done: the object's own changes, what uses one of its two names, and what is to be made in folders
//! that wait themselves. As soon as the object is moved all of that is tried again.

use std::collections::{BTreeMap, BTreeSet};

use super::links::name_number;
use super::result::nothing_left;
use super::{ApplyOp, ApplyResult, MoveOne, Place, Replica, Running, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{self, FolderAt, Slot, children, live, put_live, put_meta, put_parked};
use crate::ledger::object::{Identity, Kind, ObjectState, Seq};
use crate::ledger::rows::{LiveObject, ParkedRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::Name;
use crate::time::WallMillis;

/// Folders to be looked through for what the ledger does not know.
pub(super) const OWED: &str = "replica-owed-1";

/// An object that is to be moved waits so often for a folder that is not there. What it is to be
/// moved into may wait for its own name: then it is fetched instead.
const PATIENCE: u32 = 4;

/// Both names of an object that could not be moved.
#[derive(Debug, Clone)]
pub(super) struct Stuck {
    /// Where it is on the disk. The folder may be gone from the ledger: its path was this.
    pub(super) from: (FolderAt, Name),
    /// Where the ledger had it when that failed last.
    pub(super) to: Slot,
}

impl Stuck {
    pub(super) fn of(row: &ParkedRow) -> Option<Self> {
        let ParkedWhat::Move { from, to, .. } = &row.what else {
            return None;
        };
        Some(Self {
            from: from.clone(),
            to: (to.0.id, to.1.clone()),
        })
    }

    pub(super) fn left_slot(&self) -> Slot {
        (self.from.0.id, self.from.1.clone())
    }

    fn uses(&self, slot: &Slot) -> bool {
        self.to == *slot || (self.from.0.id == slot.0 && self.from.1 == slot.1)
    }
}

impl Replica {
    /// Notes that an object stays where it is on the disk.
    pub(super) fn is_stuck(&mut self, id: ObjectId, stuck: Stuck) {
        self.folders.displace(id, stuck.from.clone());
        self.blocking.insert(id, stuck);
    }

    /// An object is where the ledger has it, or given up. What waited for it is tried now.
    pub(super) fn is_free(&mut self, id: ObjectId) {
        if self.blocking.remove(&id).is_some() {
            self.folders.replace(id);
            self.look_again();
        }
        self.try_again(id);
    }

    /// A folder was made. What waited for it is tried now.
    pub(super) fn release(&mut self, id: ObjectId) {
        self.look_again();
        self.try_again(id);
    }

    /// What was to be verified, or to get its times again, and was not where the ledger has it.
    fn look_again(&mut self) {
        self.durable.wait_no_more();
        self.touched.append(&mut self.untouched);
    }

    fn try_again(&mut self, id: ObjectId) {
        for waiting in self.waiting.remove(&id).unwrap_or_default() {
            self.parked.hurry(waiting);
        }
    }

    /// For what a move has to wait: something else that could not be moved and uses its names, a
    /// folder that is not on the disk, or one that is still below the object itself.
    pub(super) fn moves_wait(&self, moves: &[MoveOne]) -> Option<ObjectId> {
        moves.iter().find_map(|one| {
            let own = self.blocking.contains_key(&one.id).then_some(one.id);
            let slot = |at: &Place| (at.folder.id, at.name.clone());
            let to = &one.to.folder;
            let absent = is_absent(to);
            own.or_else(|| self.user_of(&slot(&one.from)))
                .or_else(|| self.user_of(&slot(&one.to)))
                .or_else(|| absent.then_some(to.id))
                .or_else(|| {
                    let here = one.from.folder.path.join(&one.from.name);
                    to.path.after(&here)?;
                    self.blocking.keys().next().copied()
                })
        })
    }

    fn user_of(&self, slot: &Slot) -> Option<ObjectId> {
        let mut stuck = self.blocking.iter();
        stuck.find(|(_, stuck)| stuck.uses(slot)).map(|(id, _)| *id)
    }

    /// Takes out of the step what has to wait, and parks it. Returns whether there was any.
    pub(super) fn hold_back(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<bool, TableError> {
        let is_absent = |one: &Running| one.op.place().is_some_and(|at| is_absent(&at.folder));
        if self.blocking.is_empty() && !self.running.iter().any(is_absent) {
            return Ok(false);
        }
        let mut made = BTreeSet::new();
        let mut held = Vec::new();
        let planned = std::mem::take(&mut self.running);
        for Running { op, then } in planned {
            let Some(by) = self.waits_for(&op, &made) else {
                if let ApplyOp::MakeFolder { id, .. } = &op {
                    made.insert(*id);
                }
                self.running.push(Running { op, then });
                continue;
            };
            held.push((op, then, by));
        }
        let any = !held.is_empty();
        for (op, then, by) in held {
            match then {
                Then::Touched => {
                    self.untouched.extend(op.object());
                    continue;
                }
                // What is looked for is not there yet.
                Then::Probed(_) | Then::Checked(_) | Then::StillThere(_) => continue,
                // Nor where the rows have it.
                Then::Verified => {
                    self.durable.wait(op.object());
                    continue;
                }
                _ => {}
            }
            let waiting = match &then {
                Then::Linked(_, slot) => Some(name_number(slot)),
                _ => op.object().filter(|id| *id != ObjectId::default()),
            };
            if let Some(id) = waiting {
                self.waiting.entry(by).or_default().insert(id);
            } else if let ApplyOp::Remove { at, .. } = &op {
                // Nothing is parked for it: its folder is looked through then.
                self.owe_sweep(t, at.folder.id)?;
                continue;
            }
            let reason = match access::path_of(t, by)? {
                Some(path) => format!("it waits for {path}"),
                None => "it waits for a folder".to_owned(),
            };
            self.answer(wall, t, op, then, ApplyResult::Failed(reason))?;
        }
        Ok(any)
    }

    fn waits_for(&self, op: &ApplyOp, made: &BTreeSet<ObjectId>) -> Option<ObjectId> {
        // Moves were judged when they were planned.
        let at = op.place()?;
        // It is looked at where it was left.
        let own = match op {
            ApplyOp::Verify { id, .. } => Some(*id),
            _ => None,
        };
        if let Some(id) = op.object().filter(|id| self.blocking.contains_key(id))
            && own != Some(id)
        {
            return Some(id);
        }
        let slot = (at.folder.id, at.name.clone());
        let mut stuck = self.blocking.iter();
        if let Some((id, _)) = stuck.find(|(id, stuck)| own != Some(**id) && stuck.uses(&slot)) {
            return Some(*id);
        }
        // What was in a folder that is lost may be lost too, which needs no folder to be told.
        let folder = &at.folder;
        if is_absent(folder) && !made.contains(&folder.id) && own.is_none() {
            return Some(folder.id);
        }
        None
    }

    /// Tries all moves that are parked, together: they may have to change places.
    pub(super) fn retry_moves(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<(), TableError> {
        let mut moves = BTreeMap::new();
        // What stays where it is this time.
        let mut stay = Vec::new();
        for (id, stuck) in self.blocking.clone() {
            if !self.blocking.contains_key(&id) {
                // Given up with what it was in.
                continue;
            }
            let (Some(live), Some(row)) = (live(t, id)?, access::parked_row(t, id)?) else {
                self.unpark(t, id)?;
                continue;
            };
            let Some(local) = live.local.filter(|_| row.is_of_move()) else {
                self.unpark_moved(t, id)?;
                continue;
            };
            let next = WallMillis(wall.0 + self.wait_ms(id, row.attempts + 1));
            self.parked.insert(id, next);
            let to = live.names.into_iter().find(|slot| *slot == stuck.to);
            let to_now = match &to {
                Some((folder, _)) => self.folders.at(t, *folder)?,
                None => None,
            };
            let (Some(folder), Some((_, name))) = (to_now, to) else {
                stay.push(stuck);
                continue;
            };
            if is_absent(&folder) {
                if row.attempts > PATIENCE {
                    self.give_up(wall, t, id, &stuck.left_slot())?;
                } else {
                    self.waiting.entry(folder.id).or_default().insert(id);
                    let attempts = row.attempts + 1;
                    put_parked(t, id, &ParkedRow { attempts, ..row })?;
                    stay.push(stuck);
                }
                continue;
            }
            let one = MoveOne {
                id,
                from: self.left_place(t, stuck)?,
                to: Place { folder, name },
                identity: local.fingerprint.identity,
            };
            moves.insert(id, one);
        }
        moves.retain(|id, _| self.blocking.contains_key(id));
        let mut together = Together::new(moves);
        loop {
            // Nor what would take the place of that.
            while let Some(stuck) = stay.pop() {
                for slot in [&stuck.to, &stuck.left_slot()] {
                    let gone = together.without_users_of(slot);
                    stay.extend(gone.iter().filter_map(|id| self.blocking.get(id).cloned()));
                }
            }
            // Nor what would go into itself, because something below it stays.
            let gone = together.without_circles();
            if gone.is_empty() {
                break;
            }
            stay.extend(gone.iter().filter_map(|id| self.blocking.get(id).cloned()));
        }
        let moves: Vec<MoveOne> = together.moves.into_values().collect();
        for one in &moves {
            self.touched.extend([one.from.folder.id, one.to.folder.id]);
        }
        if !moves.is_empty() {
            self.run(ApplyOp::Move(moves), Then::Moved);
        }
        Ok(())
    }

    /// Where something that could not be moved was left.
    pub(super) fn left_place(
        &mut self,
        t: &dyn TablesRead,
        stuck: Stuck,
    ) -> Result<Place, TableError> {
        let (folder, name) = stuck.from;
        let folder = self.folders.now(t, &folder)?;
        Ok(Place { folder, name })
    }

    /// An object that is not where it was left, or cannot be moved from there: it is fetched anew,
    /// with everything below it. What is at its old name is nobody's any more.
    pub(super) fn give_up(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        left: &Slot,
    ) -> Result<(), TableError> {
        self.owe_sweep(t, left.0)?;
        self.folders.forget();
        let mut lost = vec![id];
        while let Some(id) = lost.pop() {
            let Some(mut row) = live(t, id)? else {
                continue;
            };
            if row.local.take().is_none() {
                continue;
            }
            let state = wanted(access::parked_row(t, id)?, &row.state);
            if let Some(stuck) = self.blocking.get(&id) {
                // It stays behind where it is on the disk.
                let left = stuck.from.0.id;
                self.owe_sweep(t, left)?;
            }
            self.remove_left(wall, t, id)?;
            let is_linked = row.names.len() > 1;
            put_live(t, id, row)?;
            if is_linked {
                // It may be at its other names all the same.
                super::suspect_published(t, id)?;
            }
            if state.kind == Kind::Folder {
                let mut below = Vec::new();
                children(t, id, &mut |_, row| {
                    below.extend(row.object);
                    std::ops::ControlFlow::Continue(())
                })?;
                // Its entries come behind it, and so does what was still to leave it.
                lost.extend(below);
                let leaving = self.blocking.iter().filter(|(_, one)| one.from.0.id == id);
                lost.extend(leaving.map(|(id, _)| *id));
            }
            self.want_anew(wall, t, state)?;
        }
        Ok(())
    }

    /// What is known to be at an object's names, and was to make room as the object came, goes to
    /// the trash by itself.
    pub(super) fn remove_left(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        for at in row.names {
            self.remove_remnant(wall, t, at, row.state.version.seq)?;
        }
        Ok(())
    }

    /// What a name remembers goes to the trash by itself, unless that is noted already.
    pub(super) fn remove_remnant(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        at: Slot,
        seq: Seq,
    ) -> Result<(), TableError> {
        let left = access::name(t, at.0, &at.1)?.and_then(|name| name.remnant);
        let Some(known) = left.filter(|left| left.identity != Identity::default()) else {
            return Ok(());
        };
        let number = name_number(&at);
        if self.is_busy(number) {
            return Ok(());
        }
        let reason = "what is to come in its place did not".to_owned();
        // As such it is removed whatever it is.
        let kind = Kind::Folder;
        let what = ParkedWhat::Remove { at, known, kind };
        self.park(wall, t, number, seq, reason, what)?;
        self.parked.hurry(number);
        Ok(())
    }

    /// What is at a folder's name goes to the trash, and all copies in it with it: they are fetched
    /// anew.
    pub(super) fn lose_below(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
    ) -> Result<(), TableError> {
        let mut below = Vec::new();
        children(t, folder, &mut |name, row| {
            below.extend(row.object.map(|id| (id, (folder, name))));
            std::ops::ControlFlow::Continue(())
        })?;
        for (id, slot) in below {
            let Some(row) = live(t, id)? else { continue };
            if row.names.len() < 2 {
                self.give_up(wall, t, id, &slot)?;
            } else if row.local.is_some() {
                let reason = "its folder is lost".to_owned();
                self.link_later(wall, t, (row.state.version.seq, id), slot, reason)?;
                self.names_went(wall, t, id)?;
            }
        }
        Ok(())
    }

    /// An object that is gone comes back: what is still to be removed of it is nobody's.
    pub(super) fn forget_removal(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let Some(ParkedRow {
            what: ParkedWhat::Remove { at, .. },
            ..
        }) = access::parked_row(t, id)?
        else {
            return Ok(());
        };
        self.unpark(t, id)?;
        nothing_left(t, &at)?;
        self.owe_sweep(t, at.0)
    }

    /// Parks an object that is not on the disk to be made at once.
    fn want_anew(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        state: ObjectState,
    ) -> Result<(), TableError> {
        // A record may have changed it since that was noted.
        let fetched = self.fetches.remove(state.id).map(|fetch| fetch.state);
        // One of the same version is more: rows get their version with a name alone.
        let newer = fetched.filter(|fetched| fetched.version.seq >= state.version.seq);
        let state = newer.unwrap_or(state);
        let (id, seq) = (state.id, state.version.seq);
        self.unpark(t, id)?;
        self.parked.insert(id, WallMillis(0));
        let row = ParkedRow {
            seq,
            reason: "it was not where it had been left".to_owned(),
            since: wall,
            attempts: 0,
            next_try: WallMillis(0),
            what: ParkedWhat::Content(state),
            kept: None,
        };
        put_parked(t, id, &row)
    }

    /// What a folder that is to be removed means for objects that could not be moved: those in it on
    /// the disk go with it, and are fetched anew where they live on. Gives those back that it takes
    /// out of the ledger and that are elsewhere.
    pub(super) fn before_removal(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: ObjectId,
    ) -> Result<Vec<(Stuck, LiveObject)>, TableError> {
        let mut stuck_ones = Vec::with_capacity(self.blocking.len());
        // What leaves the ledger with it leaves the disk, wherever it is there.
        let mut going = vec![folder];
        for (id, stuck) in self.blocking.clone() {
            let Some(row) = live(t, id)? else { continue };
            // Not what the record itself takes out.
            let name = access::name(t, stuck.to.0, &stuck.to.1)?;
            let in_ledger = name.and_then(|row| row.object) == Some(id)
                && access::is_named_below(t, stuck.to.0, folder)?;
            if in_ledger && row.names.len() == 1 {
                going.push(id);
            }
            stuck_ones.push((id, stuck, row, in_ledger));
        }
        let mut judged = Vec::with_capacity(stuck_ones.len());
        for (id, stuck, row, in_ledger) in stuck_ones {
            let mut on_disk = false;
            for top in going.iter().filter(|top| **top != id) {
                on_disk |= self.folders.is_really_below(t, stuck.from.0.id, *top)?;
            }
            judged.push((id, stuck, row, in_ledger, on_disk));
        }
        let mut stranded = Vec::new();
        for (id, stuck, row, in_ledger, on_disk) in judged {
            if !self.blocking.contains_key(&id) {
                continue;
            }
            if (in_ledger || on_disk) && row.names.len() > 1 {
                // It lives on by another name.
                self.give_up(wall, t, id, &stuck.left_slot())?;
                continue;
            }
            match (in_ledger, on_disk) {
                (true, true) => self.unpark(t, id)?,
                (true, false) => stranded.push((stuck, row)),
                (false, true) => self.give_up(wall, t, id, &stuck.left_slot())?,
                (false, false) => {}
            }
        }
        Ok(stranded)
    }

    /// Has a folder looked through once everything is where the ledger has it.
    pub(super) fn owe_sweep(
        &mut self,
        t: &mut dyn Tables,
        folder: ObjectId,
    ) -> Result<(), TableError> {
        let path = self.folders.at(t, folder)?.map(|at| at.path);
        if self.sweep.owe(folder, path) {
            put_meta(t, OWED, &self.sweep.noted())?;
        }
        Ok(())
    }

    /// A move that failed: the object stays at its old name. What it is parked for besides stays.
    pub(super) fn park_move(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        one: &MoveOne,
        reason: &str,
    ) -> Result<(), TableError> {
        let seq = live(t, one.id)?.map_or(Seq(0), |row| row.state.version.seq);
        let what = match access::parked_row(t, one.id)?.map(|row| row.what) {
            Some(ParkedWhat::Move { from, to, then }) => {
                let slot = (to.0.id, to.1);
                if slot != (one.from.folder.id, one.from.name.clone())
                    && slot != (one.to.folder.id, one.to.name.clone())
                {
                    // Another one of its names.
                    self.owe_sweep(t, one.from.folder.id)?;
                    self.owe_sweep(t, slot.0)?;
                    return self.give_up(wall, t, one.id, &(from.0.id, from.1));
                }
                if slot != (one.to.folder.id, one.to.name.clone()) {
                    // What it was to replace there is in no ledger.
                    self.owe_sweep(t, slot.0)?;
                }
                ParkedWhat::Move {
                    from,
                    to: (one.to.folder.clone(), one.to.name.clone()),
                    then,
                }
            }
            _ => one.parked(),
        };
        self.park(wall, t, one.id, seq, reason.to_owned(), what)
    }
}

/// Whether a folder is not on the disk. What is at its path may be another one.
pub(super) fn is_absent(folder: &FolderAt) -> bool {
    !folder.id.is_root() && folder.identity.is_none()
}

/// Moves that may be done together, found by the names that they leave and take.
#[derive(Debug)]
struct Together {
    moves: BTreeMap<ObjectId, MoveOne>,
    /// Which use a name.
    users: BTreeMap<Slot, Vec<ObjectId>>,
    /// What leaves a path.
    leaving: BTreeMap<Vec<u8>, ObjectId>,
}

impl Together {
    fn new(moves: BTreeMap<ObjectId, MoveOne>) -> Self {
        let (mut users, mut leaving) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
        for (id, one) in &moves {
            for at in [&one.from, &one.to] {
                let slot = (at.folder.id, at.name.clone());
                users.entry(slot).or_default().push(*id);
            }
            leaving.insert(path_left(one), *id);
        }
        Self {
            moves,
            users,
            leaving,
        }
    }

    fn remove(&mut self, id: ObjectId) {
        if let Some(one) = self.moves.remove(&id) {
            self.leaving.remove(&path_left(&one));
        }
    }

    /// Takes out what leaves or takes a name. Returns what that was.
    fn without_users_of(&mut self, slot: &Slot) -> Vec<ObjectId> {
        let mut gone = self.users.remove(slot).unwrap_or_default();
        gone.retain(|id| self.moves.contains_key(id));
        for id in &gone {
            self.remove(*id);
        }
        gone
    }

    /// Takes out, one after another, what would come below itself. Returns what that was: what is
    /// left may do so without it.
    fn without_circles(&mut self) -> Vec<ObjectId> {
        let all: Vec<ObjectId> = self.moves.keys().copied().collect();
        let mut gone = Vec::new();
        for id in all {
            if self.goes_into_itself(id) {
                self.remove(id);
                gone.push(id);
            }
        }
        gone
    }

    /// Whether a folder would come below itself, with all that moves along with it.
    fn goes_into_itself(&self, id: ObjectId) -> bool {
        let mut next = self.moves.get(&id);
        for _ in 0..=self.moves.len() {
            let Some(one) = next else { return false };
            // What moves next above, if anything does, is below its own new folder then.
            next = self.nearest_above(one.to.folder.path.as_bytes());
            if next.is_some_and(|above| above.id == id) {
                return true;
            }
        }
        true
    }

    /// What leaves the path of a folder, or the nearest one above that.
    fn nearest_above(&self, folder: &[u8]) -> Option<&MoveOne> {
        let mut path = folder;
        while !path.is_empty() {
            if let Some(id) = self.leaving.get(path) {
                return self.moves.get(id);
            }
            let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            path = &path[..end];
        }
        None
    }
}

fn path_left(one: &MoveOne) -> Vec<u8> {
    let path = one.from.folder.path.join(&one.from.name);
    path.as_bytes().to_vec()
}

/// A parked row that is done after its object's move.
pub(super) fn after_move(before: &ParkedRow, next: ParkedRow) -> Option<ParkedRow> {
    let ParkedWhat::Move { from, to, .. } = &before.what else {
        return None;
    };
    Some(ParkedRow {
        what: ParkedWhat::Move {
            from: from.clone(),
            to: to.clone(),
            then: Some(Box::new(next)),
        },
        ..before.clone()
    })
}

/// The state that an object is to get: what it is parked for, or what the ledger has. Of a folder
/// that is the newer one; what a file is parked for is renewed by each record that changes it.
pub(super) fn wanted(parked: Option<ParkedRow>, held: &ObjectState) -> ObjectState {
    let parked = parked.and_then(|row| match row.what {
        ParkedWhat::Move { then, .. } => then.map(|row| row.what),
        other => Some(other),
    });
    let Some(ParkedWhat::Content(state) | ParkedWhat::Meta(state)) = parked else {
        return held.clone();
    };
    if state.kind == Kind::Folder && state.version.seq < held.version.seq {
        return held.clone();
    }
    state
}
