//! What must be true of a source and a target.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::disk::{Disk, ROOT};
use super::tables::MemTables;
use crate::filter::{Filter, Verdict};
use crate::ids::ObjectId;
use crate::job::Specials;
use crate::ledger::access::{log_after, object};
use crate::ledger::object::{Kind, ObjectState, Seq};
use crate::ledger::rows::ObjectRow;
use crate::path::RelPath;

/// One entry of a tree: everything that is kept identical.
type Entry = String;

/// The tree as it is to be carried under a filter.
pub(super) fn tree(disk: &Disk, filter: &Filter) -> BTreeMap<RelPath, Entry> {
    let mut found = BTreeMap::new();
    below(disk, ROOT, &RelPath::root(), filter, &mut found);
    found.insert(RelPath::root(), entry(disk, ROOT));
    name_links(disk, &mut found);
    found
}

/// Which of the paths found are one file: told by the first of them.
fn name_links(disk: &Disk, found: &mut BTreeMap<RelPath, Entry>) {
    let mut first: BTreeMap<u64, RelPath> = BTreeMap::new();
    for (path, id) in disk.walk() {
        if disk.node(id).kind == Kind::Folder || !found.contains_key(&path) {
            continue;
        }
        let known = first.entry(id).or_insert_with(|| path.clone());
        if path < *known {
            *known = path;
        }
    }
    for (path, id) in disk.walk() {
        if let (Some(entry), Some(first)) = (found.get_mut(&path), first.get(&id))
            && path != *first
        {
            entry.push_str(&format!(" as {first}"));
        }
    }
}

/// Returns whether anything was found.
fn below(
    disk: &Disk,
    folder: u64,
    at: &RelPath,
    filter: &Filter,
    found: &mut BTreeMap<RelPath, Entry>,
) -> bool {
    let mut any = false;
    for (name, id) in &disk.node(folder).children {
        let path = at.join(name);
        let kind = disk.node(*id).kind;
        let is_folder = kind == Kind::Folder;
        if !Specials::default().carries(kind) {
            continue;
        }
        let carried = match filter.judge(&path, is_folder) {
            Verdict::Excluded => false,
            Verdict::Included => {
                if is_folder {
                    below(disk, *id, &path, filter, found);
                }
                true
            }
            Verdict::Descend => below(disk, *id, &path, filter, found),
        };
        if carried {
            found.insert(path, entry(disk, *id));
            any = true;
        }
    }
    any
}

fn entry(disk: &Disk, id: u64) -> Entry {
    let node = disk.node(id);
    let meta = &node.meta;
    format!(
        "{:?} {:o} {}:{} {}.{:09} {:?}",
        node.kind,
        meta.mode,
        meta.uid,
        meta.gid,
        meta.mtime.secs,
        meta.mtime.nanos,
        node.bytes.escape_ascii().to_string()
    )
}

/// What differs between two trees.
pub(super) fn differences(
    source: &BTreeMap<RelPath, Entry>,
    target: &BTreeMap<RelPath, Entry>,
) -> Vec<String> {
    let mut all = Vec::new();
    for (path, entry) in source {
        match target.get(path) {
            None => all.push(format!("missing at the target: {path}: {entry}")),
            Some(other) if other != entry => {
                all.push(format!(
                    "differs: {path}: {entry}\n  at the target: {other}"
                ));
            }
            Some(_) => {}
        }
    }
    for (path, entry) in target {
        if !source.contains_key(path) {
            all.push(format!("only at the target: {path}: {entry}"));
        }
    }
    all
}

/// Every record number of the source is there once, from the first.
pub(super) fn numbers_are_contiguous(tables: &MemTables) {
    let mut wanted = Seq(1);
    log_after(tables, Seq(0), &mut |_, record| {
        assert_eq!(record.seq, wanted, "a number is missing or used twice");
        wanted = wanted.next();
        ControlFlow::Continue(())
    })
    .expect("tables do not fail");
}

/// A claim is not more than what is held: everything that the source's log says up to it is there
/// in this or a newer version, or is parked.
pub(super) fn claim_is_held(
    source: &MemTables,
    target: &MemTables,
    disk: &Disk,
    claim: Seq,
) -> Result<(), String> {
    let mut model: BTreeMap<ObjectId, ObjectState> = BTreeMap::new();
    let mut gone: BTreeMap<ObjectId, Seq> = BTreeMap::new();
    let mut buried = Vec::new();
    let mut names = BTreeMap::new();
    log_after(source, Seq(0), &mut |_, record| {
        if record.seq > claim {
            return ControlFlow::Break(());
        }
        for name in &record.names {
            let slot = (name.parent, name.name.clone());
            match name.object {
                Some(id) => names.insert(slot, id),
                None => names.remove(&slot),
            };
        }
        for state in record.objects {
            model.insert(state.id, state);
        }
        for id in record.removed {
            model.remove(&id);
            gone.insert(id, record.seq);
            buried.push(id);
        }
        ControlFlow::Continue(())
    })
    .map_err(|e| e.to_string())?;
    // What lay below a removed folder went with it.
    while let Some(folder) = buried.pop() {
        let below: Vec<ObjectId> = names
            .extract_if(.., |slot, _| slot.0 == folder)
            .map(|(_, id)| id)
            .collect();
        for id in below {
            if !names.values().any(|named| *named == id) {
                model.remove(&id);
                buried.push(id);
            }
        }
    }
    let nodes: BTreeMap<_, _> = disk
        .walk()
        .into_iter()
        .map(|(_, id)| (disk.node(id).identity, id))
        .collect();
    for (id, state) in &model {
        let row = object(target, *id).map_err(|e| e.to_string())?;
        let parked = crate::ledger::access::parked_row(target, *id).map_err(|e| e.to_string())?;
        if parked.is_some() || id.is_root() {
            continue;
        }
        match row {
            Some(ObjectRow::Gone(by)) if by > claim => {}
            Some(ObjectRow::Live(live)) => {
                let newer = live.state.version.seq > claim;
                let held = live
                    .local
                    .as_ref()
                    .and_then(|l| nodes.get(&l.fingerprint.identity))
                    .is_some();
                if !newer && (!held || live.state.content_seq < state.content_seq) {
                    return Err(format!(
                        "claim {claim} includes {id} of {}, held: {held}, content {} of {}",
                        state.version.seq, live.state.content_seq, state.content_seq
                    ));
                }
            }
            other => {
                return Err(format!(
                    "claim {claim} includes {id} of {}, which is {other:?}",
                    state.version.seq
                ));
            }
        }
    }
    Ok(())
}
