//! Several names of one file.
//!
//! A name behind which is an inode that the ledger has under another name is a second name of that
//! object. Objects are found by what the disk knows them by through an index, which is made when a
//! file with several names is met for the first time: most trees have none, and pay nothing.

use std::collections::BTreeMap;

use super::compare::{Bytes, Round, moved_bytes};
use super::strays::NAMES_MAX;
use super::{Coalescer, Slot, What};
use crate::ids::ObjectId;
use crate::ledger::access::{self, live, meta, put_live, put_meta, put_name};
use crate::ledger::object::{Identity, Kind, Observed};
use crate::ledger::record::Record;
use crate::ledger::rows::{LiveObject, NameRow};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::ledger::walk::each_live;
use crate::time::{Instant, WallMillis};

const INDEXED: &str = "links-indexed";

/// Whether a ledger has the index.
pub(super) fn is_indexed(t: &dyn TablesRead) -> Result<bool, TableError> {
    Ok(meta(t, INDEXED)?.unwrap_or(false))
}

impl Coalescer {
    /// The object of which something that was seen at a new name is one more name.
    pub(super) fn linked(
        &mut self,
        t: &mut dyn Tables,
        seen: &Observed,
    ) -> Result<Option<(ObjectId, LiveObject)>, TableError> {
        if seen.kind != Kind::Folder && seen.link_count > 1 {
            self.make_index(t)?;
        }
        self.known_link(t, seen)
    }

    /// From here on objects are found by what the disk knows them by.
    pub(super) fn make_index(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if !self.indexed {
            index(t)?;
            self.indexed = true;
            self.written = true;
        }
        Ok(())
    }

    fn known_link(
        &self,
        t: &dyn TablesRead,
        seen: &Observed,
    ) -> Result<Option<(ObjectId, LiveObject)>, TableError> {
        if seen.kind == Kind::Folder || seen.link_count < 2 || !self.indexed {
            return Ok(None);
        }
        let identity = seen.fingerprint.identity;
        let Some(id) = access::object_by_identity(t, identity)? else {
            return Ok(None);
        };
        let row = live(t, id)?.filter(|row| {
            let same = |l: &crate::ledger::rows::Local| l.fingerprint.identity == identity;
            row.local.as_ref().is_some_and(same)
                && row.state.kind == seen.kind
                && row.is_announced()
                && !row.names.is_empty()
        });
        Ok(row.map(|row| (id, row)))
    }

    /// Whether what was seen belongs to another object than the ledger has at that name: the name was
    /// given to it again before it was missed there.
    pub(super) fn is_of_another(
        &self,
        t: &dyn TablesRead,
        id: ObjectId,
        seen: &Observed,
    ) -> Result<bool, TableError> {
        let owner = self.known_link(t, seen)?;
        Ok(owner.is_some_and(|(owner, _)| owner != id))
    }

    /// Makes the index before it is asked what was seen.
    pub(super) fn prepare_links(
        &mut self,
        t: &mut dyn Tables,
        round: &Round,
    ) -> Result<(), TableError> {
        for found in round.found.values() {
            if self.indexed {
                break;
            }
            self.linked(t, &found.observed)?;
        }
        Ok(())
    }

    /// Which objects the files with several names are that were found.
    pub(super) fn owners(
        &self,
        t: &dyn TablesRead,
        round: &Round,
    ) -> Result<BTreeMap<Identity, ObjectId>, TableError> {
        let mut owners = BTreeMap::new();
        for found in round.found.values() {
            if let Some((id, _)) = self.known_link(t, &found.observed)? {
                owners.insert(found.observed.fingerprint.identity, id);
            }
        }
        Ok(owners)
    }

    /// Keeps the index, where there is one.
    pub(super) fn note_identity(
        &self,
        t: &mut dyn Tables,
        id: ObjectId,
        seen: &Observed,
    ) -> Result<(), TableError> {
        if !self.indexed || seen.kind == Kind::Folder {
            return Ok(());
        }
        match &seen.handle {
            Some(handle) => access::put_linked(t, seen.fingerprint.identity, handle, id),
            None => access::put_identity(t, seen.fingerprint.identity, id),
        }
    }

    /// A file that the ledger has was seen at one of its names. If it has others, hints by these
    /// lead to it from here on: they may be outside, or not carried.
    pub(super) fn note_links(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        seen: &Observed,
    ) -> Result<(), TableError> {
        if seen.kind != Kind::Folder && seen.link_count > 1 {
            self.make_index(t)?;
            self.note_identity(t, id, seen)?;
        }
        Ok(())
    }

    /// Something happened to an object by a name, `None` for one outside. If the ledger has it by
    /// others, it is looked at there.
    pub(super) fn hint_linked(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        object: &[u8],
        by: Option<&Slot>,
        what: What,
    ) -> Result<(), TableError> {
        if self.strays.contains(object) {
            self.strays.add(object.to_vec(), what);
        }
        if !self.indexed {
            return Ok(());
        }
        let Some(id) = access::object_by_handle(t, object)? else {
            return Ok(());
        };
        let names = live(t, id)?.map(|row| row.names).unwrap_or_default();
        if by.is_some_and(|by| names.contains(by)) {
            return Ok(());
        }
        for slot in names.into_iter().take(NAMES_MAX) {
            self.hint(now, t, slot, what, None, None)?;
        }
        Ok(())
    }

    /// Gives an object one more name, in a record of its own if it is one.
    pub(super) fn enter_link(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: &Slot,
        seen: &Observed,
    ) -> Result<bool, TableError> {
        let Some(known) = self.linked(t, seen)? else {
            return Ok(false);
        };
        self.announce_folder(wall, t, slot.0)?;
        let mut record = self.begin(wall, t)?;
        self.link_to(t, &mut record, slot, known, seen, What::LOOK)?;
        record
            .names
            .push(super::commit::name_state(slot, self.object_at(t, slot)?));
        self.ledger.append(t, &record)?;
        Ok(true)
    }

    fn object_at(&self, t: &dyn TablesRead, slot: &Slot) -> Result<Option<ObjectId>, TableError> {
        Ok(access::name(t, slot.0, &slot.1)?.and_then(|row| row.object))
    }

    /// Gives an object one more name. Returns its id.
    pub(super) fn link_to(
        &mut self,
        t: &mut dyn Tables,
        record: &mut Record,
        slot: &Slot,
        (id, mut row): (ObjectId, LiveObject),
        seen: &Observed,
        mut what: What,
    ) -> Result<ObjectId, TableError> {
        what.merge(self.hinted(&row));
        let missing = self.listings.is_deaf(t, slot.0)? || self.may_be_unheard(t, &row)?;
        let bytes = moved_bytes(&row, seen, what, missing);
        self.heed(t, id, bytes)?;
        let name = NameRow {
            object: Some(id),
            remnant: None,
        };
        self.note_links(t, id, seen)?;
        put_name(t, slot.0, &slot.1, name)?;
        row.names.retain(|known| known != slot);
        row.names.push(slot.clone());
        self.renew(&mut row, record, seen, bytes == Bytes::Differ);
        tell(record, &row);
        self.written = true;
        put_live(t, id, row)?;
        Ok(id)
    }

    /// Whether a write through one of the names that the ledger has of an object may not have been
    /// told.
    pub(super) fn may_be_unheard(
        &self,
        t: &dyn TablesRead,
        row: &LiveObject,
    ) -> Result<bool, TableError> {
        for slot in &row.names {
            if self.listings.is_deaf(t, slot.0)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is hinted at the names that the ledger has of an object, and not looked at yet. Once its
    /// new times are noted, those looks would find nothing.
    pub(super) fn hinted(&self, row: &LiveObject) -> What {
        let mut what = What::default();
        for slot in &row.names {
            let looking = self.listings.looking.get(slot);
            for waiting in self.pending.get(slot).into_iter().chain(looking) {
                what.merge(waiting.what);
            }
        }
        what
    }

    /// Takes one of several names from an object. `false`: it is the last one.
    pub(super) fn drop_name(
        &mut self,
        t: &mut dyn Tables,
        record: &mut Record,
        slot: &Slot,
        id: ObjectId,
        mut what: What,
    ) -> Result<bool, TableError> {
        let Some(mut row) = live(t, id)?.filter(|row| row.names.iter().any(|n| n != slot)) else {
            return Ok(false);
        };
        row.names.retain(|known| known != slot);
        if row.is_announced() {
            self.stamp(&mut row, record);
            tell(record, &row);
        }
        if let Some(other) = row.slot().cloned() {
            // Its change time moved: noted before a scan takes it for a write. What was told of it by
            // the name that is gone is told of it all the same.
            what.at_once = true;
            what.created = false;
            self.pending.due_because(other, Instant::default(), what);
        }
        put_live(t, id, row)?;
        Ok(true)
    }
}

/// A record tells of an object as it is now.
pub(super) fn tell(record: &mut Record, row: &LiveObject) {
    record.objects.retain(|state| state.id != row.state.id);
    record.objects.push(row.state.clone());
}

/// Makes the index of everything that is there.
fn index(t: &mut dyn Tables) -> Result<(), TableError> {
    let indexed = |row: &LiveObject| row.state.kind != Kind::Folder;
    each_live(t, indexed, |t, row| match row.local {
        Some(local) => access::put_identity(t, local.fingerprint.identity, row.state.id),
        None => Ok(()),
    })?;
    put_meta(t, INDEXED, &true)
}
