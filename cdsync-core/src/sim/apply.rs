//! What a target's driver does for each operation, on the model of a disk.

use std::collections::BTreeMap;

use super::disk::{Disk, NodeId, ROOT};
use crate::ids::ObjectId;
use crate::ledger::object::{Identity, Kind, Metadata};
use crate::path::{Name, NameSetDigest, RelPath};
use crate::replica::{ApplyOp, ApplyResult, Body, MoveOne, MoveResult, Place};

/// Where the bytes of a step are.
#[derive(Debug, Clone, Default)]
pub(super) struct Bodies {
    pub(super) inline: Vec<Vec<u8>>,
    pub(super) staged: BTreeMap<ObjectId, Vec<u8>>,
}

type Outcome = Result<Vec<NodeId>, String>;

/// Carries out one operation.
pub(super) fn apply(disk: &mut Disk, op: &ApplyOp, bodies: &Bodies) -> ApplyResult {
    let outcome = match op {
        ApplyOp::MakeFolder { at, meta, left, .. } => match make_folder(disk, at, meta, *left) {
            Ok((id, true)) => return ApplyResult::Found(vec![disk.observe(id)]),
            Ok((id, false)) => Ok(vec![id]),
            Err(reason) => Err(reason),
        },
        ApplyOp::WriteFile {
            at,
            body,
            meta,
            adopt,
            ..
        } => {
            let bytes = match body {
                Body::Inline(index) => bodies.inline.get(*index),
                Body::Staged(id) => bodies.staged.get(id),
            };
            let bytes = bytes.expect("the driver keeps the bytes of a step").clone();
            write_file(disk, at, bytes, meta, *adopt)
        }
        ApplyOp::AdoptFile {
            at,
            size,
            mtime,
            meta,
            ..
        } => match adopt_file(disk, at, *size, *mtime, meta) {
            Ok(None) => return ApplyResult::NotEqual,
            Ok(Some(id)) => Ok(vec![id]),
            Err(reason) => Err(reason),
        },
        ApplyOp::MakeLink {
            at, target, meta, ..
        } => open(disk, at).map(|folder| {
            let id = publish(disk, folder, at, Kind::Symlink, target.clone(), meta);
            vec![id]
        }),
        ApplyOp::MakeSpecial { at, kind, meta, .. } => {
            open(disk, at).map(|folder| vec![publish(disk, folder, at, *kind, Vec::new(), meta)])
        }
        ApplyOp::SetMeta {
            at, identity, meta, ..
        } => set_meta(disk, at.as_ref(), *identity, meta),
        ApplyOp::Link {
            from, at, identity, ..
        } => link(disk, from, at, *identity),
        ApplyOp::Verify { at, print, .. } => {
            let there = open(disk, at)
                .ok()
                .and_then(|folder| disk.child(folder, &at.name));
            let same = |id: &NodeId| {
                let seen = disk.observe(*id).fingerprint;
                (seen.identity, seen.size) == (print.identity, print.size)
            };
            match there.filter(same) {
                Some(id) => Ok(vec![id]),
                None => return ApplyResult::NotEqual,
            }
        }
        ApplyOp::Move(moves) => {
            return match move_all(disk, moves) {
                Ok(results) => ApplyResult::Moved(results),
                Err(reason) => ApplyResult::Failed(reason),
            };
        }
        ApplyOp::Remove {
            at,
            known,
            kind,
            below,
            ..
        } => remove(disk, at, known.identity, *kind, *below),
    };
    match outcome {
        Ok(ids) => ApplyResult::Done(ids.into_iter().map(|id| disk.observe(id)).collect()),
        Err(reason) => ApplyResult::Failed(reason),
    }
}

fn open(disk: &Disk, at: &Place) -> Result<NodeId, String> {
    assert!(
        !at.name.is_reserved() && !at.folder.path.components().any(|c| c == b".cdsync"),
        "an operation in the reserved folder: {at:?}"
    );
    disk.open(&at.folder)
        .map_err(|e| format!("{} in {}: {e:?}", at.name, at.folder.path))
}

fn path(at: &Place) -> RelPath {
    at.folder.path.join(&at.name)
}

fn clear(disk: &mut Disk, folder: NodeId, at: &Place) {
    disk.trash(folder, &at.name, path(at));
}

/// Returns whether it was there already.
fn make_folder(
    disk: &mut Disk,
    at: &Place,
    meta: &Metadata,
    left: Option<Identity>,
) -> Result<(NodeId, bool), String> {
    let folder = open(disk, at)?;
    if let Some(id) = disk.child(folder, &at.name) {
        if disk.node(id).kind == Kind::Folder {
            if left == Some(disk.node(id).identity) {
                return Err(format!("{} is still to be removed", path(at)));
            }
            return Ok((id, true));
        }
        clear(disk, folder, at);
    }
    let id = disk.mkdir(folder, &at.name).expect("the name is free");
    disk.set_meta(id, meta.clone());
    Ok((id, false))
}

fn write_file(
    disk: &mut Disk,
    at: &Place,
    bytes: Vec<u8>,
    meta: &Metadata,
    adopt: bool,
) -> Outcome {
    if adopt && let Some(id) = adopt_file(disk, at, bytes.len() as u64, meta.mtime, meta)? {
        return Ok(vec![id]);
    }
    let folder = open(disk, at)?;
    Ok(vec![publish(disk, folder, at, Kind::File, bytes, meta)])
}

fn adopt_file(
    disk: &mut Disk,
    at: &Place,
    size: u64,
    mtime: crate::time::Timestamp,
    meta: &Metadata,
) -> Result<Option<NodeId>, String> {
    let folder = open(disk, at)?;
    let Some(id) = disk.child(folder, &at.name) else {
        return Ok(None);
    };
    let node = disk.node(id);
    let equal =
        node.kind == Kind::File && node.bytes.len() as u64 == size && node.meta.mtime == mtime;
    if equal {
        disk.set_meta(id, meta.clone());
    }
    Ok(equal.then_some(id))
}

fn publish(
    disk: &mut Disk,
    folder: NodeId,
    at: &Place,
    kind: Kind,
    bytes: Vec<u8>,
    meta: &Metadata,
) -> NodeId {
    clear(disk, folder, at);
    let id = match kind {
        Kind::Symlink => disk.symlink(folder, &at.name, &bytes),
        Kind::File => disk.create_file(folder, &at.name),
        _ => disk.special(folder, &at.name, kind),
    };
    let id = id.expect("the name was cleared");
    let node = disk.node_mut(id);
    node.bytes = bytes;
    node.writers = 0;
    disk.set_meta(id, meta.clone());
    id
}

fn link(disk: &mut Disk, from: &Place, at: &Place, identity: Identity) -> Outcome {
    let (folder, origin) = (open(disk, at)?, open(disk, from)?);
    let is_it = |id: &NodeId| disk.node(*id).identity == identity;
    if let Some(id) = disk.child(folder, &at.name).filter(is_it) {
        return Ok(vec![id]);
    }
    let id = disk.child(origin, &from.name).filter(is_it);
    let id = id.ok_or_else(|| format!("{} is not the one", path(from)))?;
    clear(disk, folder, at);
    disk.link(id, folder, &at.name);
    Ok(vec![id])
}

fn set_meta(disk: &mut Disk, at: Option<&Place>, identity: Identity, meta: &Metadata) -> Outcome {
    let id = match at {
        None => ROOT,
        Some(at) => {
            let folder = open(disk, at)?;
            let id = disk.child(folder, &at.name);
            id.filter(|id| disk.node(*id).identity == identity)
                .ok_or_else(|| format!("{} is not the one", path(at)))?
        }
    };
    disk.set_meta(id, meta.clone());
    Ok(vec![id])
}

/// Opens the folder of a move. Another move of the same set may have taken that folder, or one
/// above it, to its new place already, before a crash: it is there then.
fn open_moved(disk: &Disk, at: &Place, moves: &[MoveOne]) -> Result<NodeId, String> {
    let first = open(disk, at);
    if first.is_ok() {
        return first;
    }
    let mut place = at.clone();
    for _ in 0..=moves.len() {
        let found = moves.iter().find_map(|one| {
            let rest = place.folder.path.after(&path(&one.from))?;
            let mut moved = path(&one.to).as_bytes().to_vec();
            moved.extend_from_slice(rest);
            RelPath::new(moved).ok()
        });
        let Some(moved) = found else { break };
        place.folder.path = moved;
        if let Ok(id) = open(disk, &place) {
            return Ok(id);
        }
    }
    first
}

/// Moves everything at once: all folders are opened first, all names left, then all taken.
fn move_all(disk: &mut Disk, moves: &[MoveOne]) -> Result<Vec<MoveResult>, String> {
    let mut planned = Vec::new();
    for one in moves {
        let from = open_moved(disk, &one.from, moves).ok();
        let to = open_moved(disk, &one.to, moves)?;
        let at = |folder, name: &Name| {
            let id = disk.child(folder, name);
            id.filter(|id| disk.node(*id).identity == one.identity)
        };
        let done = at(to, &one.to.name);
        let here = from.and_then(|from| Some((from, at(from, &one.from.name)?)));
        planned.push((one, to, done, here));
    }
    for (one, to, _, here) in &planned {
        // Two names of one file: the old one has to go.
        if let Some((from, _)) = here
            && (from, &one.from.name) != (to, &one.to.name)
        {
            disk.trash(*from, &one.from.name, RelPath::root());
            disk.trash.pop();
        }
    }
    let mut results = Vec::new();
    for (one, to, done, here) in &planned {
        let Some(id) = done.or(here.map(|(_, id)| id)) else {
            results.push(MoveResult::Missing);
            continue;
        };
        if done.is_none() {
            clear(disk, *to, &one.to);
            disk.put(id, *to, &one.to.name);
        }
        results.push(MoveResult::Done(Box::new(disk.observe(id))));
    }
    Ok(results)
}

fn remove(
    disk: &mut Disk,
    at: &Place,
    identity: Identity,
    kind: Kind,
    below: NameSetDigest,
) -> Outcome {
    let folder = open(disk, at)?;
    let Some(id) = disk.child(folder, &at.name) else {
        return Ok(Vec::new());
    };
    if kind == Kind::Folder {
        if disk.node(id).kind == Kind::Folder && disk.node(id).identity != identity {
            return Err(format!("{} is another folder", path(at)));
        }
        let mut found = NameSetDigest::default();
        digest(disk, id, &RelPath::root(), &mut found);
        if found != below {
            // Foreign content: one by one into the trash, but for what the filter excludes.
            disk.foreign_removals += 1;
        }
    }
    clear(disk, folder, at);
    Ok(Vec::new())
}

fn digest(disk: &Disk, folder: NodeId, at: &RelPath, into: &mut NameSetDigest) {
    for (name, id) in &disk.node(folder).children {
        let path = at.join(name);
        into.add(path.as_bytes());
        digest(disk, *id, &path, into);
    }
}
