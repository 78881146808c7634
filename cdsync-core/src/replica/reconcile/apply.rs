//! Making records of what differs.
//!
//! Each object that differs is one record, or several objects are one where each waits for another
//! (a swap, folders turned round). An object comes after what it waits for: what sits at a name that
//! it gets, the nearest folder above its new place that differs itself, and, where a folder is to be
//! removed, what leaves it. What is nowhere in the snapshot is removed last, but for what is in the
//! way.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::super::{Mark, Queued, Replica};
use super::walk::{Difference, RECORDS_MAX, Walk, difference};
use super::{Goal, Reconcile, ReconcileProgress};
use crate::ids::ObjectId;
use crate::ledger::access::{self, DEPTH_MAX, Slot, live, put_gone, put_live};
use crate::ledger::object::{Content, Kind, ObjectState, Seq, Version};
use crate::ledger::record::{NameState, Record};
use crate::ledger::rows::{LiveObject, ObjectRow, decode_row};
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::ledger::writer::size_of;
use crate::path::Name;
use crate::time::Hlc;
use crate::wire::{CompareWhy, Compared, Inline};

/// What differs is being brought.
#[derive(Debug)]
pub(in crate::replica) struct Applying {
    goal: Goal,
    progress: ReconcileProgress,
    /// Where the next object that differs is looked for.
    from: [u8; 16],
    /// Whether what is in the snapshot is all there: the rest is removed.
    removing: bool,
}

impl Applying {
    pub(super) fn new(goal: Goal, progress: ReconcileProgress) -> Self {
        Self {
            goal,
            progress: ReconcileProgress {
                applying: true,
                ..progress
            },
            from: [0; 16],
            removing: false,
        }
    }

    pub(super) fn progress(&self) -> ReconcileProgress {
        self.progress
    }
}

/// Whether more records may be made before those are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    Wait,
}

impl Replica {
    /// Whether records are to be made of what differs now: [`Replica::plan_differences`].
    #[must_use]
    pub fn has_differences(&self) -> bool {
        let is_busy = !self.queue.is_empty()
            || !self.running.is_empty()
            || self.issued.is_some()
            || self.rest.is_some()
            || self.fetches.is_full();
        matches!(self.reconcile, Reconcile::Applying(_)) && !is_busy
    }

    /// Makes the next records out of what differs; operations follow by [`Replica::poll_step`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn plan_differences(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if !self.has_differences() {
            return Ok(());
        }
        let Reconcile::Applying(mut applying) = std::mem::take(&mut self.reconcile) else {
            return Ok(());
        };
        while self.queue.len() < RECORDS_MAX {
            let Some(id) = applying.next(t)? else {
                return self.end_reconcile(t, &applying.goal);
            };
            if self.plan_with_needs(t, applying.goal, id)? == Flow::Wait {
                break;
            }
        }
        if self.refused.is_none() {
            self.reconcile = Reconcile::Applying(applying);
        }
        Ok(())
    }

    /// Everything is on its way: what the snapshot has is held once that is in.
    fn end_reconcile(&mut self, t: &mut dyn Tables, goal: &Goal) -> Result<(), TableError> {
        debug_assert!(t.last(Table::Compared)?.is_none(), "all was planned");
        self.batch_end = Some(Mark {
            seq: goal.at,
            incarnation: goal.incarnation,
            bytes: goal.bytes,
            hold: Seq(0),
        });
        Ok(())
    }

    /// Makes the records of an object and of all that it waits for, as far as they are made at once.
    fn plan_with_needs(
        &mut self,
        t: &mut dyn Tables,
        goal: Goal,
        id: ObjectId,
    ) -> Result<Flow, TableError> {
        let mut walk = Walk::new(id);
        while let Some(knot) = walk.next(t)? {
            if self.plan_knot(t, goal, &knot)? == Flow::Wait {
                return Ok(Flow::Wait);
            }
            if self.queue.len() >= RECORDS_MAX {
                return Ok(Flow::Wait);
            }
        }
        let Some(cut) = walk.cut_at else {
            return Ok(Flow::GoOn);
        };
        if self.queue.is_empty() {
            // What leaves it waits for its name.
            if let Some(slot) = live(t, cut)?.and_then(|row| row.slot().cloned()) {
                self.set_aside(t, goal, cut, slot)?;
            }
        }
        Ok(Flow::Wait)
    }

    /// Makes one record of objects that wait for each other.
    fn plan_knot(
        &mut self,
        t: &mut dyn Tables,
        goal: Goal,
        ids: &[ObjectId],
    ) -> Result<Flow, TableError> {
        if ids.len() > 1 {
            if self.untie(t, goal, ids)? {
                return Ok(Flow::Wait);
            }
            let mut rows = ids.iter().map(|id| live(t, *id));
            if rows.all(|row| matches!(row, Ok(None))) {
                // Folders that lie in each other.
                self.refuse_comparison();
                return Ok(Flow::Wait);
            }
        }
        let mut made = Making::new(goal);
        let mut flow = Flow::GoOn;
        for id in ids {
            let row = live(t, *id)?;
            let Some(wanted) = difference(t, *id)?.flatten() else {
                forget_version(t, goal, *id, None)?;
                made.remove(*id, row);
                t.remove(Table::Compared, &id.to_key())?;
                continue;
            };
            if row
                .as_ref()
                .is_some_and(|row| row.state.kind != wanted.state.kind)
            {
                // Its number was given twice: what was there before goes first.
                forget_version(t, goal, *id, None)?;
                made.remove(*id, row);
                flow = Flow::Wait;
                continue;
            }
            let (brings, moves) = made.give(*id, row.as_ref(), &wanted);
            if moves {
                // Until it is there the ledger tells other folders above what is in it.
                flow = Flow::Wait;
            }
            let content = (!brings).then_some(wanted.state.content_seq);
            forget_version(t, goal, *id, content)?;
            t.remove(Table::Compared, &id.to_key())?;
        }
        self.queue.extend(made.into_queued());
        Ok(flow)
    }

    /// Objects that wait for each other cannot all change at once where one of them is yet to be
    /// made: what sits at the names that they get is moved out of the way first. Returns whether that
    /// was so.
    fn untie(
        &mut self,
        t: &mut dyn Tables,
        goal: Goal,
        ids: &[ObjectId],
    ) -> Result<bool, TableError> {
        let mut in_the_way = BTreeMap::new();
        let mut makes = false;
        for id in ids {
            let Some(wanted) = difference(t, *id)?.flatten() else {
                continue;
            };
            makes |= live(t, *id)?.is_none();
            for (number, name) in wanted.names {
                let slot = (self.object(number), name);
                let there = access::name(t, slot.0, &slot.1)?;
                let there = there.and_then(|row| row.object);
                in_the_way.extend(there.filter(|there| there != id).map(|id| (slot, id)));
            }
        }
        if !makes {
            return Ok(false);
        }
        let queued = self.queue.iter().flat_map(|queued| &queued.record.objects);
        let queued: BTreeSet<ObjectId> = queued.map(|state| state.id).collect();
        if in_the_way.values().any(|id| queued.contains(id)) {
            // A record that is made already takes it away, and gives it its own place.
            return Ok(true);
        }
        let before = self.queue.len();
        for (slot, id) in in_the_way {
            self.set_aside(t, goal, id, slot)?;
        }
        Ok(self.queue.len() > before)
    }

    /// Takes something away from a name until that is free or it is removed: to a name of its own in
    /// the root, or by leaving it its other names.
    fn set_aside(
        &mut self,
        t: &mut dyn Tables,
        goal: Goal,
        id: ObjectId,
        slot: Slot,
    ) -> Result<(), TableError> {
        let name = Name::new(format!(".cdsync-aside-{}", id.number).as_bytes());
        let (Some(row), Ok(name)) = (live(t, id)?, name) else {
            return Ok(());
        };
        let aside = (self.object(ObjectId::ROOT_NUMBER), name);
        if slot == aside {
            return Ok(());
        }
        let mut made = Making::new(goal);
        made.names.insert(slot, None);
        if row.names.len() < 2 {
            made.names.insert(aside, Some(id));
        }
        forget_version(t, goal, id, Some(row.state.content_seq))?;
        made.record
            .objects
            .extend(live(t, id)?.map(|row| row.state));
        self.queue.extend(made.into_queued());
        Ok(())
    }
}

impl Applying {
    /// The next object to be dealt with.
    fn next(&mut self, t: &dyn TablesRead) -> Result<Option<ObjectId>, TableError> {
        loop {
            let (mut found, mut failed) = (None, None);
            let removing = self.removing;
            t.range(Table::Compared, &self.from, None, &mut |key, value| {
                match decode_row::<Difference>(Table::Compared, value) {
                    Ok(None) if !removing => return ControlFlow::Continue(()),
                    Ok(_) => found = ObjectId::from_key(key),
                    Err(error) => failed = Some(error),
                }
                ControlFlow::Break(())
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            match found {
                Some(id) if self.removing => return Ok(Some(topmost(t, id)?)),
                Some(id) => {
                    self.from = id.to_key();
                    return Ok(Some(id));
                }
                None if self.removing => return Ok(None),
                None => (self.removing, self.from) = (true, [0; 16]),
            }
        }
    }
}

/// The highest folder above something that is to be removed which is to be removed too.
fn topmost(t: &dyn TablesRead, id: ObjectId) -> Result<ObjectId, TableError> {
    let (mut top, mut at) = (id, id);
    for _ in 0..DEPTH_MAX {
        let Some((parent, _)) = live(t, at)?.and_then(|row| row.slot().cloned()) else {
            break;
        };
        match difference(t, parent)? {
            Some(None) => top = parent,
            _ => break,
        }
        at = parent;
    }
    Ok(top)
}

/// What a record says of an object counts, whatever the ledger had heard of it in another history:
/// the snapshot is the truth. `content`: the number of the content that is held, `None` where other
/// content comes.
fn forget_version(
    t: &mut dyn Tables,
    goal: Goal,
    id: ObjectId,
    content: Option<Seq>,
) -> Result<(), TableError> {
    if goal.why == CompareWhy::Behind {
        return Ok(());
    }
    match access::object(t, id)? {
        Some(ObjectRow::Live(mut row)) => {
            row.state.version = Version::default();
            row.state.content_seq = content.unwrap_or_default();
            put_live(t, id, row)
        }
        Some(ObjectRow::Gone(_)) => put_gone(t, id, Seq(0)),
        None => Ok(()),
    }
}

/// A record being made.
struct Making {
    goal: Goal,
    record: Record,
    names: BTreeMap<Slot, Option<ObjectId>>,
    contents: Vec<(ObjectId, usize, Inline)>,
}

impl Making {
    fn new(goal: Goal) -> Self {
        let record = Record {
            seq: goal.at,
            incarnation: goal.incarnation,
            hlc: Hlc::default(),
            names: Vec::new(),
            objects: Vec::new(),
            removed: Vec::new(),
            group: 0,
            set: 0,
            signature: Vec::new(),
        };
        Self {
            goal,
            record,
            names: BTreeMap::new(),
            contents: Vec::new(),
        }
    }

    fn vacate(&mut self, slot: Slot) {
        self.names.entry(slot).or_default();
    }

    fn remove(&mut self, id: ObjectId, row: Option<LiveObject>) {
        let Some(row) = row else { return };
        self.record.removed.push(id);
        row.names.into_iter().for_each(|slot| self.vacate(slot));
    }

    /// Returns whether its content is to come, and whether it is a folder that moves.
    fn give(&mut self, id: ObjectId, row: Option<&LiveObject>, wanted: &Compared) -> (bool, bool) {
        let names = wanted.names.iter().map(|(number, name)| {
            let parent = ObjectId {
                number: *number,
                ..id
            };
            (parent, name.clone())
        });
        let names: Vec<Slot> = names.collect();
        let held = row.filter(|row| row.local.is_some());
        let known = held.map_or(&[][..], |row| &row.names);
        let left = row.map_or(&[][..], |row| &row.names);
        let moves = wanted.state.kind == Kind::Folder && !left.is_empty() && names != left;
        for slot in left.iter().filter(|slot| !names.contains(slot)) {
            self.vacate(slot.clone());
        }
        for slot in names.into_iter().filter(|slot| !known.contains(slot)) {
            self.names.insert(slot, Some(id));
        }
        let is_file = wanted.state.kind == Kind::File;
        let brings = is_file && !held.is_some_and(|row| self.has_content(row, &wanted.state));
        if brings {
            self.contents.push((id, 0, Inline::Pull));
        }
        self.record.hlc = self.record.hlc.max(wanted.state.version.hlc);
        self.record.objects.push(wanted.state.clone());
        (brings, moves)
    }

    /// Whether a copy has the content of a state already.
    fn has_content(&self, row: &LiveObject, wanted: &ObjectState) -> bool {
        if size_of(&row.state.content) != size_of(&wanted.content) {
            return false;
        }
        let hash = |state: &ObjectState| match state.content {
            Content::Data { hash, .. } => hash,
            _ => None,
        };
        let equal = hash(&row.state).is_some() && hash(&row.state) == hash(wanted);
        // Numbers of another history say nothing.
        equal || self.goal.why == CompareWhy::Behind && row.state.content_seq == wanted.content_seq
    }

    fn into_queued(mut self) -> Option<Queued> {
        let names = self.names.into_iter();
        let names = names.map(|((parent, name), object)| NameState {
            parent,
            name,
            object,
        });
        self.record.names = names.collect();
        let is_empty = self.record.objects.is_empty() && self.record.removed.is_empty();
        (!is_empty).then_some(Queued {
            record: self.record,
            contents: self.contents,
            of_snapshot: true,
        })
    }
}
