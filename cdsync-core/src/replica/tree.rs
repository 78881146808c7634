//! What a record does to the tree, checked against the rows before anything of it is planned: what a
//! hostile upstream could send, and an honest one never does.

use std::collections::{BTreeMap, BTreeSet};

use super::reconcile::Reconcile;
use super::{Replica, ReplicaError};
use crate::ids::ObjectId;
use crate::ledger::access::{DEPTH_MAX, live, object};
use crate::ledger::object::{Kind, ObjectState, Seq};
use crate::ledger::record::{NameState, Record};
use crate::ledger::rows::{LiveObject, ObjectRow};
use crate::ledger::tables::{TableError, TablesRead};
use crate::path::PATH_MAX_BYTES;

impl Replica {
    /// A record of the last batch that does not fit what is known: that batch is dropped, and the
    /// subscription is to be dropped too. Told once.
    pub fn take_refused(&mut self) -> Option<ReplicaError> {
        self.refused.take()
    }

    pub(super) fn refuse(&mut self, seq: Seq) {
        self.queue.clear();
        self.batch_end = None;
        self.reconcile = Reconcile::Off;
        self.refused = Some(ReplicaError::Record(seq));
    }

    /// Whether a name of the record has no place: its folder is none, or was never told of, or lies
    /// deeper than any path that is carried.
    pub(super) fn has_no_place(
        &mut self,
        t: &dyn TablesRead,
        record: &Record,
    ) -> Result<bool, TableError> {
        for name in record.names.iter().filter(|name| name.object.is_some()) {
            let folder = self.folders.at(t, name.parent)?;
            if !self.folders.is_folder(t, name.parent)? {
                let comes = |state: &ObjectState| state.id == name.parent;
                let comes = record.objects.iter().find(|state| comes(state));
                if comes.is_none_or(|state| state.kind != Kind::Folder) {
                    return Ok(true);
                }
            }
            let Some(folder) = folder else {
                continue;
            };
            let above = folder.path.as_bytes().len();
            if above + 1 + name.name.as_bytes().len() > PATH_MAX_BYTES {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the tree is still one after a record that moves or changes what has rows: no folder lies
/// below itself or has two names, and nothing has become something else.
pub(super) fn stays_a_tree(t: &dyn TablesRead, record: &Record) -> Result<bool, TableError> {
    let mut folders = BTreeSet::new();
    for state in &record.objects {
        let known = live(t, state.id)?;
        if known
            .as_ref()
            .is_some_and(|row| row.state.kind != state.kind)
        {
            return Ok(false);
        }
        if state.kind == Kind::Folder {
            if known.is_some_and(|row| keeps_its_name(record, &row)) {
                return Ok(false);
            }
            folders.insert(state.id);
        }
    }
    let above = parents(t, record)?;
    for (id, parent) in above.iter().filter(|(id, _)| folders.contains(id)) {
        if !hangs_on_the_root(t, &above, *id, *parent)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a folder gets a name here, and the one before is not taken from it.
fn keeps_its_name(record: &Record, row: &LiveObject) -> bool {
    let id = row.state.id;
    let Some((parent, name)) = row.slot() else {
        return false;
    };
    let own = |at: &&NameState| at.object == Some(id);
    let Some(new) = record.names.iter().find(own) else {
        return false;
    };
    let is_old = |at: &NameState| at.parent == *parent && at.name == *name;
    row.state.version.seq < record.seq && !is_old(new) && !record.names.iter().any(is_old)
}

/// The folder that each object gets, but of those that a later record named.
fn parents(
    t: &dyn TablesRead,
    record: &Record,
) -> Result<BTreeMap<ObjectId, ObjectId>, TableError> {
    let mut parents = BTreeMap::new();
    for name in &record.names {
        let Some(id) = name.object else { continue };
        let later = object(t, id)?.is_some_and(|row: ObjectRow| row.seq() > record.seq);
        if !later {
            parents.insert(id, name.parent);
        }
    }
    Ok(parents)
}

/// Walks up from a folder's new place. What hangs on nothing that is known is skipped elsewhere.
fn hangs_on_the_root(
    t: &dyn TablesRead,
    above: &BTreeMap<ObjectId, ObjectId>,
    id: ObjectId,
    parent: ObjectId,
) -> Result<bool, TableError> {
    let mut at = parent;
    for _ in 0..DEPTH_MAX {
        if at.is_root() {
            return Ok(true);
        }
        if at == id {
            return Ok(false);
        }
        let known = match above.get(&at) {
            Some(parent) => Some(*parent),
            None => live(t, at)?.and_then(|row| row.slot().map(|slot| slot.0)),
        };
        match known {
            Some(parent) => at = parent,
            None => return Ok(true),
        }
    }
    Ok(false)
}
