//! Records that move, replace or remove: planned one at a time.
//!
//! Everything leaves its old name before anything takes a new one, in the rows as on the disk.
//! Places are named by the paths from before the record, because the disk opens all folders
//! before it moves the first.

use std::collections::{BTreeMap, BTreeSet};

use super::{ApplyOp, MoveOne, Place, Queued, Replica, Then};
use crate::ids::ObjectId;
use crate::ledger::access::{
    self, Slot, bury_below, digest_below, live, put_gone, put_live, put_name,
};
use crate::ledger::object::{Identity, Kind, ObjectState};
use crate::ledger::record::Record;
use crate::ledger::rows::{LiveObject, NameRow};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::NameSetDigest;
use crate::time::WallMillis;

/// What the record does to the names, as far as it is news.
#[derive(Default)]
struct Layout {
    /// The object that each name gets.
    next: BTreeMap<Slot, ObjectId>,
    /// Objects that are on the disk and change their name.
    moves: Vec<(ObjectId, Slot, Slot)>,
    /// What stays at a name until the content that replaces it is here.
    stays: BTreeMap<Slot, Identity>,
}

impl Replica {
    pub(super) fn plan_structure(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        queued: &Queued,
    ) -> Result<(), TableError> {
        let record = &queued.record;
        let mut layout = self.layout(t, record)?;
        let moves = self.plan_moves(t, &layout)?;
        self.plan_removals(t, record, &mut layout)?;
        let renamed = self.rename_rows(t, record, &mut layout)?;
        if !moves.is_empty() {
            let from = layout
                .moves
                .iter()
                .map(|(id, from, _)| (*id, from.clone()))
                .collect();
            self.run(ApplyOp::Move(moves), Then::Moved(from));
        }
        for state in &record.objects {
            if renamed.contains(&state.id) {
                self.plan_renamed(wall, t, queued, state)?;
                continue;
            }
            let name = record.names.iter().find(|n| n.object == Some(state.id));
            let slot = name.map(|n| (n.parent, n.name.clone()));
            let over = slot
                .as_ref()
                .and_then(|slot| layout.stays.get(slot).copied());
            self.plan_object(wall, t, queued, state, slot, over)?;
        }
        Ok(())
    }

    fn layout(&mut self, t: &dyn TablesRead, record: &Record) -> Result<Layout, TableError> {
        let mut layout = Layout::default();
        for name in &record.names {
            let slot = (name.parent, name.name.clone());
            let Some(id) = name.object else { continue };
            let row = access::object(t, id)?;
            if row.as_ref().is_some_and(|row| row.seq() > record.seq) {
                continue;
            }
            layout.next.insert(slot.clone(), id);
            let Some(row) = row.and_then(crate::ledger::rows::ObjectRow::into_live) else {
                continue;
            };
            let Some(from) = row.slot().cloned() else {
                continue;
            };
            if row.local.is_some() && from != slot {
                layout.moves.push((id, from, slot));
            }
        }
        Ok(layout)
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

    fn plan_removals(
        &mut self,
        t: &mut dyn Tables,
        record: &Record,
        layout: &mut Layout,
    ) -> Result<(), TableError> {
        let moved: BTreeSet<ObjectId> = layout.moves.iter().map(|(id, ..)| *id).collect();
        for id in &record.removed {
            self.fetches.remove(*id);
            let Some(row) = live(t, *id)? else { continue };
            if row.state.version.seq >= record.seq {
                continue;
            }
            self.unpark(t, *id)?;
            let kind = row.state.kind;
            let below = match kind {
                Kind::Folder => digest_below(t, *id)?,
                _ => NameSetDigest::default(),
            };
            for slot in row.names.clone() {
                self.plan_removal(t, record, layout, &moved, &row, &slot, below)?;
            }
            if kind == Kind::Folder {
                bury_below(t, *id, record.seq)?;
                self.folders.forget();
            }
            put_gone(t, *id, record.seq)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one removal's facts, used once")]
    fn plan_removal(
        &mut self,
        t: &mut dyn Tables,
        record: &Record,
        layout: &mut Layout,
        moved: &BTreeSet<ObjectId>,
        row: &LiveObject,
        slot: &Slot,
        below: NameSetDigest,
    ) -> Result<(), TableError> {
        let remnant = access::name(t, slot.0, &slot.1)?.and_then(|n| n.remnant);
        let held = row.local.as_ref().map(|l| l.fingerprint.identity);
        put_name(
            t,
            slot.0,
            &slot.1,
            NameRow {
                object: None,
                remnant: None,
            },
        )?;
        let Some(identity) = held.or(remnant) else {
            return Ok(());
        };
        let next = layout.next.get(slot);
        if next.is_some_and(|next| moved.contains(next)) {
            // The move puts what it finds in its way into the trash.
            return Ok(());
        }
        let replacing = next.and_then(|next| record.objects.iter().find(|s| s.id == *next));
        if replacing.is_some_and(|s| s.kind != Kind::Folder) && row.state.kind != Kind::Folder {
            layout.stays.insert(slot.clone(), identity);
            return Ok(());
        }
        let Some(at) = self.place_at(t, slot)? else {
            return Ok(());
        };
        self.touched.insert(at.folder.id);
        // Until it is done the name remembers what is still there.
        put_name(
            t,
            slot.0,
            &slot.1,
            NameRow {
                object: None,
                remnant: Some(identity),
            },
        )?;
        let (id, kind) = (row.state.id, row.state.kind);
        let op = ApplyOp::Remove {
            id,
            at,
            identity,
            kind,
            below,
        };
        self.run(op, Then::Removed(record.seq, slot.clone()));
        Ok(())
    }

    /// Gives objects that have rows their new names. Returns which.
    fn rename_rows(
        &mut self,
        t: &mut dyn Tables,
        record: &Record,
        layout: &mut Layout,
    ) -> Result<BTreeSet<ObjectId>, TableError> {
        let mut renamed = BTreeMap::new();
        for (slot, id) in &layout.next {
            let Some(row) = live(t, *id)? else { continue };
            let Some(from) = row.slot().cloned() else {
                continue;
            };
            if from == *slot {
                continue;
            }
            let remnant = access::name(t, from.0, &from.1)?.and_then(|n| n.remnant);
            put_name(
                t,
                from.0,
                &from.1,
                NameRow {
                    object: None,
                    remnant: None,
                },
            )?;
            if let (None, Some(identity)) = (&row.local, remnant) {
                self.remove_remnant(t, record, &row, &from, identity)?;
            }
            renamed.insert(*id, (slot.clone(), row));
        }
        for (id, (slot, mut row)) in renamed.clone() {
            let remnant = row
                .local
                .is_none()
                .then(|| layout.stays.get(&slot).copied())
                .flatten();
            put_name(
                t,
                slot.0,
                &slot.1,
                NameRow {
                    object: Some(id),
                    remnant,
                },
            )?;
            row.names = vec![slot];
            if row.state.kind == Kind::Folder {
                self.folders.forget();
            }
            put_live(t, id, row)?;
        }
        Ok(renamed.into_keys().collect())
    }

    /// What sat at the old name of something that was never published there.
    fn remove_remnant(
        &mut self,
        t: &mut dyn Tables,
        record: &Record,
        row: &LiveObject,
        from: &Slot,
        identity: Identity,
    ) -> Result<(), TableError> {
        let Some(at) = self.place_at(t, from)? else {
            return Ok(());
        };
        put_name(
            t,
            from.0,
            &from.1,
            NameRow {
                object: None,
                remnant: Some(identity),
            },
        )?;
        let (id, kind) = (row.state.id, row.state.kind);
        let below = NameSetDigest::default();
        let op = ApplyOp::Remove {
            id,
            at,
            identity,
            kind,
            below,
        };
        self.run(op, Then::Removed(record.seq, from.clone()));
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
            && self.fetches.get_mut(state.id).is_none();
        if quiet {
            row.state.version = state.version;
            row.state.replaces = state.replaces;
            return put_live(t, state.id, row);
        }
        self.plan_object(wall, t, queued, state, None, None)
    }
}
