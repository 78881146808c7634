//! The order in which what differs is made: what an object waits for comes before it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::ids::ObjectId;
use crate::ledger::access::{self, DEPTH_MAX, children, live};
use crate::ledger::object::Kind;
use crate::ledger::rows::decode_row;
use crate::ledger::tables::{Table, TableError, TablesRead};
use crate::wire::Compared;

/// How many records are made at once, and how much of what leaves a folder is looked at.
pub(super) const RECORDS_MAX: usize = 256;

/// What the snapshot has of an object that differs: `None` for nothing.
pub(super) type Difference = Option<Compared>;

/// What differs of an object; `None` where nothing does.
pub(super) fn difference(
    t: &dyn TablesRead,
    id: ObjectId,
) -> Result<Option<Difference>, TableError> {
    let row = t.get(Table::Compared, &id.to_key())?;
    row.map(|bytes| decode_row(Table::Compared, &bytes))
        .transpose()
}

/// What an object waits for.
struct Needs {
    first: Vec<ObjectId>,
    /// There may be more of them, once these are done.
    more: bool,
}

/// Goes through what an object waits for, and gives objects that wait for each other together, after
/// all that they wait for (Tarjan's strongly connected components).
pub(super) struct Walk {
    stack: Vec<Step>,
    seen: BTreeMap<ObjectId, Seen>,
    /// Not given yet, in the order in which they were met.
    open: Vec<ObjectId>,
    /// This waits for more than was looked at: the rest has to wait until those are done.
    pub(super) cut_at: Option<ObjectId>,
}

struct Step {
    id: ObjectId,
    needs: Needs,
    next: usize,
}

#[derive(Clone, Copy)]
struct Seen {
    index: usize,
    low: usize,
    open: bool,
}

impl Walk {
    pub(super) fn new(id: ObjectId) -> Self {
        let step = Step {
            id: ObjectId::default(),
            needs: Needs {
                first: vec![id],
                more: false,
            },
            next: 0,
        };
        Self {
            stack: vec![step],
            seen: BTreeMap::new(),
            open: Vec::new(),
            cut_at: None,
        }
    }

    /// The next of them; `None` at the end, or where it is cut.
    pub(super) fn next(&mut self, t: &dyn TablesRead) -> Result<Option<Vec<ObjectId>>, TableError> {
        while let Some(step) = self.stack.last_mut() {
            if let Some(id) = step.needs.first.get(step.next).copied() {
                step.next += 1;
                let at = step.id;
                match self.seen.get(&id).copied() {
                    None => self.enter(t, id)?,
                    Some(seen) if seen.open => self.lower(at, seen.index),
                    Some(_) => {}
                }
                continue;
            }
            if step.needs.more {
                // What is behind this one waits for the rest, which is not known.
                self.cut_at = Some(step.id);
                return Ok(None);
            }
            let id = step.id;
            self.stack.pop();
            let Some(seen) = self.seen.get(&id).copied() else {
                return Ok(None);
            };
            if let Some(above) = self.stack.last().map(|step| step.id) {
                self.lower(above, seen.low);
            }
            if seen.low == seen.index {
                return Ok(Some(self.close(id)));
            }
        }
        Ok(None)
    }

    fn enter(&mut self, t: &dyn TablesRead, id: ObjectId) -> Result<(), TableError> {
        let index = self.seen.len();
        let seen = Seen {
            index,
            low: index,
            open: true,
        };
        self.seen.insert(id, seen);
        self.open.push(id);
        let needs = needs(t, id)?;
        self.stack.push(Step { id, needs, next: 0 });
        Ok(())
    }

    fn lower(&mut self, id: ObjectId, low: usize) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.low = seen.low.min(low);
        }
    }

    fn close(&mut self, id: ObjectId) -> Vec<ObjectId> {
        let at = self.open.iter().rposition(|open| *open == id).unwrap_or(0);
        let knot = self.open.split_off(at);
        for id in &knot {
            if let Some(seen) = self.seen.get_mut(id) {
                seen.open = false;
            }
        }
        knot
    }
}

/// What an object that differs waits for, of what differs itself.
fn needs(t: &dyn TablesRead, id: ObjectId) -> Result<Needs, TableError> {
    let row = live(t, id)?;
    let wanted = difference(t, id)?.flatten();
    let mut needs = Needs {
        first: Vec::new(),
        more: false,
    };
    let changes_kind =
        matches!((&row, &wanted), (Some(row), Some(wanted)) if row.state.kind != wanted.state.kind);
    if let Some(row) = &row
        && row.state.kind == Kind::Folder
        && (wanted.is_none() || changes_kind)
    {
        leavers(t, id, &mut needs)?;
    }
    let Some(wanted) = wanted.filter(|_| !changes_kind) else {
        return Ok(needs);
    };
    let known = row.map(|row| row.names).unwrap_or_default();
    for (number, name) in wanted.names {
        let parent = ObjectId { number, ..id };
        needs.first.extend(above(t, parent)?);
        if known.contains(&(parent, name.clone())) {
            continue;
        }
        let there = access::name(t, parent, &name)?.and_then(|row| row.object);
        if let Some(there) = there.filter(|there| *there != id)
            && difference(t, there)?.is_some()
        {
            needs.first.push(there);
        }
    }
    Ok(needs)
}

/// The nearest folder that differs, from this one upwards.
fn above(t: &dyn TablesRead, folder: ObjectId) -> Result<Option<ObjectId>, TableError> {
    let mut at = folder;
    for _ in 0..DEPTH_MAX {
        if difference(t, at)?.is_some() {
            return Ok(Some(at));
        }
        match live(t, at)?.and_then(|row| row.slot().cloned()) {
            Some((parent, _)) => at = parent,
            None => break,
        }
    }
    Ok(None)
}

/// What leaves a folder that is to be removed, some of it.
fn leavers(t: &dyn TablesRead, folder: ObjectId, needs: &mut Needs) -> Result<(), TableError> {
    let mut stack = vec![folder];
    let mut met = BTreeSet::new();
    while let Some(at) = stack.pop() {
        let mut below = Vec::new();
        children(t, at, &mut |_, row| {
            below.extend(row.object);
            ControlFlow::Continue(())
        })?;
        for id in below {
            match difference(t, id)? {
                Some(Some(_)) if met.insert(id) => needs.first.push(id),
                Some(Some(_)) => {}
                _ => stack.push(id),
            }
            if needs.first.len() >= RECORDS_MAX {
                needs.more = true;
                return Ok(());
            }
        }
    }
    Ok(())
}
