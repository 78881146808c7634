//! Several names of one object.
//!
//! Content is published at an object's first name; every other name is made a link to that, in
//! place of what it was. A name that is still to be linked is noted among the parked rows under a
//! number of its own: the object itself may be parked for something else.

use std::collections::{BTreeSet, VecDeque};

use super::structure::{Rest, given_since, went_since};
use super::{ApplyOp, Place, Replica, Then};
use crate::ids::{ObjectId, OriginId};
use crate::ledger::access::{self, Slot, live, put_live, put_name};
use crate::ledger::loss::Loss;
use crate::ledger::object::{Kind, Observed, Seq};
use crate::ledger::record::Record;
use crate::ledger::rows::{Known, LiveObject, Local, NameRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::time::WallMillis;

/// The number under which something is noted that is to be done at one of several names: of no
/// origin, so that it is no object's.
pub(super) fn name_number(slot: &Slot) -> ObjectId {
    numbered(OriginId(u64::MAX), Some(slot))
}

/// A number for a name, or for the root, which has none.
pub(super) fn numbered(origin: OriginId, slot: Option<&Slot>) -> ObjectId {
    let mut number = 0xcbf2_9ce4_8422_2325_u64;
    if let Some((folder, name)) = slot {
        for byte in folder.to_key().iter().chain(name.as_bytes()) {
            number = (number ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    ObjectId { origin, number }
}

/// Whether this is such a number.
pub(super) fn is_name_number(id: ObjectId) -> bool {
    id.origin == OriginId(u64::MAX)
}

impl Replica {
    /// Gives objects that have rows the further names that a record says.
    pub(super) fn take_links(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        links: Vec<(ObjectId, Slot)>,
        rest: &mut Rest,
    ) -> Result<(), TableError> {
        for (id, slot) in links {
            let Some(mut row) = live(t, id)? else {
                continue;
            };
            let left = self.left_at(t, rest.seq(), &row, &slot)?;
            let remnant = rest.stays.get(&slot).copied().or(left);
            let object = Some(id);
            put_name(t, slot.0, &slot.1, NameRow { object, remnant })?;
            row.names.retain(|name| *name != slot);
            row.names.push(slot.clone());
            rest.stamp(&mut row);
            rest.renamed.insert(id);
            let is_held = row.local.is_some();
            put_live(t, id, row)?;
            if is_held {
                let seq = rest.seq();
                self.intend_link(wall, t, seq, id, slot.clone())?;
                rest.links.push((id, slot));
            }
        }
        Ok(())
    }

    /// Gives an object that was just entered under its first name the others that its record says.
    pub(super) fn add_names(
        &mut self,
        t: &mut dyn Tables,
        record: &Record,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let more = record.names.iter().filter(|n| n.object == Some(id)).skip(1);
        let more: Vec<Slot> = more.map(|n| (n.parent, n.name.clone())).collect();
        if more.is_empty() {
            return Ok(());
        }
        let state = record.objects.iter().find(|state| state.id == id);
        let is_its = |row: &LiveObject| state.is_some_and(|s| s.version == row.state.version);
        let Some(mut row) =
            live(t, id)?.filter(|row| is_its(row) && row.state.kind != Kind::Folder)
        else {
            return Ok(());
        };
        for slot in more {
            let taken =
                went_since(t, record, &slot)? || given_since(t, record.seq, &slot, id)?.is_some();
            if row.names.contains(&slot) || taken {
                continue;
            }
            let remnant = self.left_at(t, record.seq, &row, &slot)?;
            let object = Some(id);
            put_name(t, slot.0, &slot.1, NameRow { object, remnant })?;
            row.names.push(slot);
        }
        put_live(t, id, row)
    }

    /// What is at a name that an object gets. What is not held may have been linked there before a
    /// crash that took its rows back.
    fn left_at(
        &self,
        t: &dyn TablesRead,
        seq: Seq,
        row: &LiveObject,
        slot: &Slot,
    ) -> Result<Option<Known>, TableError> {
        let left = access::name(t, slot.0, &slot.1)?.and_then(|row| row.remnant);
        let unknown = row.local.is_none() && self.is_suspect(seq);
        Ok(left.or_else(|| unknown.then(Known::default)))
    }

    /// All names of an object but the first are to be links to what was just published there.
    pub(super) fn relink(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        let seq = row.state.version.seq;
        for slot in row.names.into_iter().skip(1) {
            self.intend_link(wall, t, seq, id, slot.clone())?;
            self.plan_link(t, seq, id, slot)?;
        }
        Ok(())
    }

    pub(super) fn intend_link(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        object: ObjectId,
        at: Slot,
    ) -> Result<(), TableError> {
        let number = name_number(&at);
        self.intend(wall, t, number, seq, ParkedWhat::Link { object, at })
    }

    /// Plans that a name becomes a link to the object's first one, if it is still one of its names.
    pub(super) fn plan_link(
        &mut self,
        t: &mut dyn Tables,
        seq: Seq,
        id: ObjectId,
        slot: Slot,
    ) -> Result<(), TableError> {
        let here = access::name(t, slot.0, &slot.1)?;
        let is_its = here.as_ref().and_then(|row| row.object) == Some(id);
        let local = live(t, id)?.and_then(|row| row.local);
        let first = self.place_of(t, id)?;
        let folder = self.folders.at(t, slot.0)?;
        let (true, Some(local), Some((from, _)), Some(folder)) = (is_its, local, first, folder)
        else {
            // It is another one's, or is made when the object's content is here.
            return self.unpark(t, name_number(&slot));
        };
        let at = Place {
            folder,
            name: slot.1.clone(),
        };
        if at == from {
            return self.unpark(t, name_number(&slot));
        }
        self.touched.insert(slot.0);
        let op = ApplyOp::Link {
            id,
            from,
            at,
            identity: local.fingerprint.identity,
            over: here.and_then(|row| row.remnant).map(|known| known.identity),
        };
        self.run(op, Then::Linked(seq, slot));
        Ok(())
    }

    pub(super) fn linked(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        slot: &Slot,
        seen: Option<Observed>,
    ) -> Result<(), TableError> {
        self.unpark(t, name_number(slot))?;
        let Some(id) = op.object() else { return Ok(()) };
        let Some(mut row) = live(t, id)?.filter(|row| row.names.contains(slot)) else {
            return Ok(());
        };
        let (object, remnant) = (Some(id), None);
        put_name(t, slot.0, &slot.1, NameRow { object, remnant })?;
        self.is_at_its_name(t, id)?;
        if let Some(seen) = &seen
            && seen.losses.has(Loss::HardLink)
        {
            let mut losses = self.losses_of(id);
            losses.add(Loss::HardLink);
            self.note_losses(t, id, losses)?;
        }
        if let (Some(local), Some(seen)) = (&mut row.local, seen) {
            note_link(local, &seen);
            local.round = self.durable.round;
            put_live(t, id, row)?;
        }
        Ok(())
    }

    pub(super) fn not_linked(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        (seq, slot): (Seq, Slot),
        reason: String,
    ) -> Result<(), TableError> {
        match op.object() {
            Some(id) => self.link_later(wall, t, (seq, id), slot, reason),
            None => Ok(()),
        }
    }

    /// A name is to be linked to its object's first one later.
    pub(super) fn link_later(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        (seq, object): (Seq, ObjectId),
        slot: Slot,
        reason: String,
    ) -> Result<(), TableError> {
        let number = name_number(&slot);
        let what = ParkedWhat::Link { object, at: slot };
        self.park(wall, t, number, seq, reason, what)
    }

    /// Some names of an object went from the disk with their folder: if it had no others there, it
    /// went too, and is fetched anew.
    pub(super) fn names_went(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let Some(mut row) = live(t, id)? else {
            return Ok(());
        };
        order_names(t, &mut row.names)?;
        let first = row.names.first().cloned();
        put_live(t, id, row)?;
        match first {
            Some(first) if is_waiting(t, &first)? => self.give_up(wall, t, id, &first),
            _ => Ok(()),
        }
    }
}

/// A new name moves the change time of what has it. Where links are not possible there is a copy,
/// and what is known of the first name stays.
fn note_link(local: &mut Local, seen: &Observed) {
    if local.fingerprint.identity == seen.fingerprint.identity {
        local.fingerprint = seen.fingerprint;
    }
}

/// Which names of objects that live on a record takes away, and which it gives to objects that
/// keep those they have.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// An object leaves one name for another.
    pub(super) renames: Vec<(ObjectId, Slot, Slot)>,
    /// An object gets one more name.
    pub(super) links: Vec<(ObjectId, Slot)>,
    /// An object loses one of several names.
    pub(super) drops: Vec<(ObjectId, Slot)>,
}

/// What a record does to the names of one object that lives on.
#[derive(Debug)]
pub(super) struct Change<'a> {
    /// Which object.
    pub(super) id: ObjectId,
    /// Its names so far.
    pub(super) known: &'a [Slot],
    /// Those that it has by the record.
    pub(super) got: &'a [Slot],
    /// Those of the names so far that the record gives to nobody or another one.
    pub(super) left: Vec<&'a Slot>,
    /// Those of the names so far that are not on the disk: still to be linked.
    pub(super) absent: Vec<&'a Slot>,
}

impl Change<'_> {
    /// Sorts it out. A folder has one name, whatever the record says.
    pub(super) fn sort(self, names: &mut Names, is_folder: bool) {
        let Self {
            id,
            known,
            got,
            mut left,
            absent,
        } = self;
        let mut new: VecDeque<&Slot> = got.iter().filter(|slot| !known.contains(slot)).collect();
        if is_folder {
            if let (Some(from), Some(to)) = (known.first(), new.pop_front()) {
                names.renames.push((id, from.clone(), to.clone()));
            }
            return;
        }
        let is_there = |slot: &&Slot| !absent.contains(slot);
        let stays = known.iter().filter(|slot| !left.contains(slot));
        let (there, waiting): (Vec<&Slot>, Vec<&Slot>) = stays.partition(|slot| is_there(slot));
        // One rename for each object: the disk finds what it moves by what it is known by. Where
        // no name would be left on the disk, one that waits for its link takes it.
        if let Some(at) = left.iter().position(is_there) {
            let to = new.pop_front();
            let to = to.or_else(|| waiting.first().copied().filter(|_| there.is_empty()));
            if let Some(to) = to {
                let from = left.remove(at);
                names.renames.push((id, from.clone(), to.clone()));
            }
        }
        names
            .links
            .extend(new.into_iter().map(|to| (id, to.clone())));
        names
            .drops
            .extend(left.into_iter().map(|slot| (id, slot.clone())));
    }
}

/// Whether an object's further name waits for its link.
pub(super) fn is_waiting(t: &dyn TablesRead, slot: &Slot) -> Result<bool, TableError> {
    let row = access::parked_row(t, name_number(slot))?;
    Ok(row.is_some_and(|row| matches!(row.what, ParkedWhat::Link { .. })))
}

/// The names of an object that are on the disk first: there its content is.
pub(super) fn order_names(t: &dyn TablesRead, names: &mut [Slot]) -> Result<(), TableError> {
    let mut waiting = BTreeSet::new();
    for slot in names.iter() {
        if is_waiting(t, slot)? {
            waiting.insert(slot.clone());
        }
    }
    names.sort_by_key(|slot| waiting.contains(slot));
    Ok(())
}
