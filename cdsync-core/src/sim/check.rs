//! What must be true of a source and a target.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::disk::{Disk, ROOT};
use super::source::{SourceSim, hash};
use super::tables::MemTables;
use super::target::TargetSim;
use crate::filter::{Filter, Verdict};
use crate::ids::ObjectId;
use crate::job::Specials;
use crate::ledger::access::{live, log_after, object, parked_row, path_of};
use crate::ledger::digest::{DigestKey, elements};
use crate::ledger::object::{Content, Kind, ObjectState, Seq};
use crate::ledger::record::Record;
use crate::ledger::rows::{LiveObject, ObjectRow, decode_row};
use crate::ledger::tables::{Table, TableError, TablesRead};
use crate::path::{Name, RelPath};

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
pub(super) fn numbers_are_contiguous(source: &SourceSim) {
    let mut wanted = Seq(1);
    records(source, &mut |record| {
        assert_eq!(record.seq, wanted, "a number is missing or used twice");
        wanted = wanted.next();
        ControlFlow::Continue(())
    })
    .expect("tables do not fail");
}

/// Every record so far, also those that were dropped from the log.
fn records(
    source: &SourceSim,
    each: &mut dyn FnMut(Record) -> ControlFlow<()>,
) -> Result<(), TableError> {
    let mut last = Seq(0);
    for record in &source.dropped {
        last = record.seq;
        if each(record.clone()).is_break() {
            return Ok(());
        }
    }
    log_after(&source.tables, last, &mut |_, record| each(record))
}

/// Both ledgers say the same of every name: nothing would be found by comparing them.
pub(super) fn ledgers_are_equal(source: &MemTables, target: &MemTables) -> Result<(), String> {
    let key = DigestKey([7; 32]);
    let all = |tables: &MemTables| {
        let mut all = BTreeMap::new();
        let counts = |row: &LiveObject| row.is_announced().then_some(true);
        elements(tables, &key, (&[], &[]), &counts, &mut |name, element| {
            all.insert(name.to_vec(), element);
            ControlFlow::Continue(())
        })
        .map(|()| all)
        .map_err(|e| e.to_string())
    };
    let (source_all, target_all) = (all(source)?, all(target)?);
    for (name, element) in &source_all {
        if target_all.get(name) != Some(element) {
            let row = |t| object(t, element.object).map_err(|e| e.to_string());
            return Err(format!(
                "the ledgers differ at {}: {:?}\n  at the target: {:?}",
                name[16..].escape_ascii(),
                row(source)?,
                row(target)?
            ));
        }
    }
    for (name, element) in &target_all {
        if !source_all.contains_key(name) {
            return Err(format!(
                "only in the target's ledger: {} of {:?}",
                name[16..].escape_ascii(),
                object(target, element.object).map_err(|e| e.to_string())?
            ));
        }
    }
    Ok(())
}

/// What the target's ledger says is on the disk is there, whole and at its name: nothing is lost
/// without being told.
pub(super) fn copies_are_there(target: &TargetSim) -> Result<(), String> {
    if !target.is_certain() || target.others.is_some() {
        return Ok(());
    }
    let (tables, disk) = (&target.tables, &target.disk);
    let mut broken = None;
    let is_held = |row: &LiveObject| row.local.is_some() && !row.state.id.is_root();
    each_row(tables, &mut |row| {
        if broken.is_some() || !is_held(&row) {
            return Ok(());
        }
        let id = row.state.id;
        // What waits for a move is elsewhere, with all that is below it.
        if is_displaced(tables, &row)? {
            return Ok(());
        }
        let Some(path) = path_of(tables, id)? else {
            return Ok(());
        };
        let node = disk.at(&path.to_string()).map(|node| disk.node(node));
        let local = row.local.as_ref().map(|local| local.fingerprint.identity);
        let known = match &row.state.content {
            Content::Data { hash, .. } => *hash,
            _ => None,
        };
        let same = node.is_some_and(|node| {
            let is_whole = known.is_none_or(|known| known == hash(&node.bytes));
            Some(node.identity) == local && (is_whole || node.kind != Kind::File)
        });
        if !same {
            broken = Some(format!("{id} is not at {path}: {row:?}, there is {node:?}"));
        }
        Ok(())
    })
    .map_err(|e| e.to_string())?;
    broken.map_or(Ok(()), Err)
}

/// The content that each object had when it got a name first, as the source's log says.
#[derive(Debug, Default)]
pub(super) struct Named {
    upto: Seq,
    first: BTreeMap<(ObjectId, Name, ObjectId), Seq>,
}

impl Named {
    /// Takes in what was announced since.
    pub(super) fn read(&mut self, source: &SourceSim) {
        let announced = source.announced();
        if announced <= self.upto {
            return;
        }
        let (from, first) = (self.upto, &mut self.first);
        records(source, &mut |record| {
            if record.seq > announced {
                return ControlFlow::Break(());
            }
            for name in record.names.iter().filter(|_| record.seq > from) {
                let Some(id) = name.object else { continue };
                let state = record.objects.iter().find(|state| state.id == id);
                let content = state.map_or(Seq(0), |state| state.content_seq);
                let at = (name.parent, name.name.clone(), id);
                first.entry(at).or_insert(content);
            }
            ControlFlow::Continue(())
        })
        .expect("tables do not fail");
        self.upto = announced;
    }
}

/// Nothing is read at a name that was never there: a file comes to it with the content that it had
/// when it got the name, or a later one.
pub(super) fn names_come_with_content(target: &TargetSim, named: &Named) -> Result<(), String> {
    if target.others.is_some() || target.machine.is_none() {
        return Ok(());
    }
    let (tables, disk) = (&target.tables, &target.disk);
    let (mut held, mut root) = (BTreeMap::new(), None);
    each_row(tables, &mut |row| {
        if row.state.id.is_root() {
            root = Some(row.state.id);
        }
        if let Some(local) = &row.local {
            held.insert(local.fingerprint.identity, row);
        }
        Ok(())
    })
    .map_err(|e| e.to_string())?;
    let known = |node: u64| match node {
        ROOT => root,
        _ => held.get(&disk.node(node).identity).map(|row| row.state.id),
    };
    let folders = disk.walk().into_iter().map(|(_, node)| node);
    for folder in folders.chain([ROOT]) {
        let Some(id) = known(folder) else { continue };
        for (name, node) in &disk.node(folder).children {
            let Some(row) = held.get(&disk.node(*node).identity) else {
                continue;
            };
            let least = named.first.get(&(id, name.clone(), row.state.id));
            if least.is_some_and(|least| row.state.content_seq < *least) {
                return Err(format!(
                    "{name} shows {} with content {}, and came there with {least:?}: {row:?}",
                    row.state.id, row.state.content_seq
                ));
            }
        }
    }
    Ok(())
}

/// Whether an object or something above it is parked: it may not be where the ledger has it.
fn is_displaced(tables: &MemTables, row: &LiveObject) -> Result<bool, TableError> {
    let mut at = row.clone();
    for _ in 0..100 {
        if parked_row(tables, at.state.id)?.is_some()
            || at.local.is_none() && !at.state.id.is_root()
        {
            return Ok(true);
        }
        let above = match at.slot() {
            Some((parent, _)) => live(tables, *parent)?,
            None => None,
        };
        match above {
            Some(above) => at = above,
            None => break,
        }
    }
    Ok(false)
}

/// Every object that lives.
fn each_row(
    tables: &MemTables,
    each: &mut dyn FnMut(LiveObject) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut rows = Vec::new();
    let mut failed = None;
    tables.range(Table::Objects, &[], None, &mut |_, value| {
        match decode_row(Table::Objects, value) {
            Ok(ObjectRow::Live(row)) => rows.push(row),
            Ok(ObjectRow::Gone(_)) => {}
            Err(error) => failed = Some(error),
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(()), Err)?;
    rows.into_iter().try_for_each(each)
}

/// A claim is not more than what is held: everything that the source's log says up to it is there
/// in this or a newer version, or is parked.
pub(super) fn claim_is_held(
    source: &SourceSim,
    target: &MemTables,
    disk: &Disk,
    claim: Seq,
) -> Result<(), String> {
    let mut model: BTreeMap<ObjectId, ObjectState> = BTreeMap::new();
    let mut gone: BTreeMap<ObjectId, Seq> = BTreeMap::new();
    let mut buried = Vec::new();
    let mut names = BTreeMap::new();
    records(source, &mut |record| {
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
        let parked = parked_row(target, *id).map_err(|e| e.to_string())?;
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
