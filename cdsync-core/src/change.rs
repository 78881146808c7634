//! Labels of changes, derived from records for people and logs. Nothing is replayed by them.

use crate::ids::ObjectId;
use crate::ledger::object::ObjectState;
use crate::ledger::record::{NameState, Record};
use crate::wire::Op;

/// One labelled change of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// What happened.
    pub op: Op,
    /// Which object.
    pub object: ObjectId,
    /// The name that it has now (or had, for a delete); `None` where the record names none.
    pub name: Option<&'a NameState>,
    /// The name that it left.
    pub from: Option<&'a NameState>,
}

/// The changes of a record, in the order of its parts. Folders whose own times moved along with a
/// name in them are not mentioned.
#[must_use]
pub fn changes(record: &Record) -> Vec<Change<'_>> {
    let mut all = Vec::new();
    for state in &record.objects {
        if let Some(change) = change_of(record, state) {
            all.push(change);
        }
    }
    let mut left = left_by_removed(record, &all);
    for id in &record.removed {
        all.push(Change {
            op: Op::Delete,
            object: *id,
            name: left.next(),
            from: None,
        });
    }
    all
}

/// The names that removed objects had, in order: those that are empty now and that nothing moved
/// from, then those that something else has taken.
fn left_by_removed<'a>(
    record: &'a Record,
    changes: &[Change<'a>],
) -> impl Iterator<Item = &'a NameState> + use<'a> {
    let same = |a: &NameState, b: &NameState| a.parent == b.parent && a.name == b.name;
    let moved_from: Vec<&NameState> = changes.iter().filter_map(|change| change.from).collect();
    let (empty, taken): (Vec<_>, Vec<_>) = record
        .names
        .iter()
        .filter(|name| !moved_from.iter().any(|from| same(from, name)))
        .partition(|name| name.object.is_none());
    empty.into_iter().chain(taken)
}

fn change_of<'a>(record: &'a Record, state: &ObjectState) -> Option<Change<'a>> {
    let name = record.names.iter().find(|n| n.object == Some(state.id));
    let change = |op, from| {
        Some(Change {
            op,
            object: state.id,
            name,
            from,
        })
    };
    let Some(at) = name else {
        let only_times =
            !record.names.is_empty() && state.kind == crate::ledger::object::Kind::Folder;
        return if record.carries_content(state) {
            change(Op::Update, None)
        } else if only_times || state.id.is_root() {
            None
        } else if let Some(left) = record.names.iter().find(|n| n.object.is_none()) {
            // One of several names went.
            Some(Change {
                op: Op::Delete,
                object: state.id,
                name: Some(left),
                from: None,
            })
        } else {
            change(Op::Attributes, None)
        };
    };
    if state.replaces.is_none() {
        return change(Op::Create, None);
    }
    // Where several names changed at once, any that was left or swapped will do for people.
    let others = || record.names.iter().filter(|n| n.object != Some(state.id));
    let from = others()
        .find(|n| n.parent == at.parent)
        .or_else(|| others().next());
    match from {
        Some(from) if from.parent == at.parent => change(Op::Rename, Some(from)),
        Some(from) => change(Op::Move, Some(from)),
        // It got one more name.
        None => change(Op::Create, None),
    }
}
