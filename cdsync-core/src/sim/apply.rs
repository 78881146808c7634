//! What a target's driver does for each operation, on the model of a disk.

use std::collections::BTreeMap;

use super::disk::{Disk, NodeId, ROOT};
use super::others;
use super::source::hash;
use crate::ids::ObjectId;
use crate::ledger::object::{Identity, Kind, Metadata};
use crate::ledger::rows::Known;
use crate::path::{Name, NameSetDigest, RelPath};
use crate::replica::{
    ApplyOp, ApplyResult, Body, Difference, Met, MoveOne, MoveResult, OnDrift, Place,
};

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
            over,
            drift,
            adopt,
            ..
        } => {
            let bytes = match body {
                Body::Inline(index) => bodies.inline.get(*index),
                Body::Staged(id) => bodies.staged.get(id),
            };
            let bytes = bytes.expect("the driver keeps the bytes of a step").clone();
            let adopted = match adopt {
                true => adopt_file(disk, at, bytes.len() as u64, meta.mtime, meta),
                false => Ok(None),
            };
            match adopted {
                Ok(Some(id)) => Ok(vec![id]),
                Ok(None) => {
                    let new = (Kind::File, bytes, meta);
                    return told(publish_over(disk, at, new, over.as_ref(), *drift));
                }
                Err(reason) => Err(reason),
            }
        }
        ApplyOp::AdoptFile {
            at,
            size,
            mtime,
            meta,
            over,
            drift,
            ..
        } => match adopt_file(disk, at, *size, *mtime, meta) {
            Ok(None) => {
                let stays = met(disk, at, over.as_ref()).is_ok_and(|met| met.stays(*drift));
                return match stays {
                    true => ApplyResult::Kept,
                    false => ApplyResult::NotEqual,
                };
            }
            Ok(Some(id)) => Ok(vec![id]),
            Err(reason) => Err(reason),
        },
        ApplyOp::MakeLink {
            at,
            target,
            meta,
            over,
            drift,
            ..
        } => {
            let new = (Kind::Symlink, target.clone(), meta);
            return told(publish_over(disk, at, new, over.as_ref(), *drift));
        }
        ApplyOp::MakeSpecial { at, kind, meta, .. } => {
            open(disk, at).map(|folder| vec![publish(disk, folder, at, *kind, Vec::new(), meta)])
        }
        ApplyOp::SetMeta {
            at,
            identity,
            kind,
            meta,
            left,
            drift,
            ..
        } => match (at, left) {
            (Some(at), Some(left)) if *drift != OnDrift::Ignore => {
                let known = Known {
                    identity: *identity,
                    left: Some(*left),
                };
                return told(set_known_meta(disk, at, &known, meta, *drift));
            }
            (Some(at), _) if *kind == Kind::Folder && !is_there(disk, at, *identity) => {
                return ApplyResult::NotEqual;
            }
            _ => set_meta(disk, at.as_ref(), *identity, meta),
        },
        ApplyOp::Link {
            from, at, identity, ..
        } => link(disk, from, at, *identity),
        ApplyOp::Verify {
            at,
            kind,
            print,
            left,
            ..
        } => {
            let there = open(disk, at)
                .ok()
                .and_then(|folder| disk.child(folder, &at.name));
            let same = |id: &NodeId| {
                let (node, seen) = (disk.node(*id), disk.observe(*id).fingerprint);
                let content = match left.as_ref().and_then(|left| left.hash) {
                    _ if *kind != Kind::File => true,
                    Some(known) => seen.size == print.size && hash(&node.bytes) == known,
                    None => (seen.size, seen.mtime) == (print.size, print.mtime),
                };
                node.kind == *kind && seen.identity == print.identity && content
            };
            match there.filter(same) {
                Some(id) => Ok(vec![id]),
                None => return ApplyResult::NotEqual,
            }
        }
        ApplyOp::Check {
            at,
            kind,
            print,
            left,
            meta,
            ..
        } => {
            let there = match at {
                None => Some(ROOT),
                Some(at) => open(disk, at).ok().and_then(|it| disk.child(it, &at.name)),
            };
            let Some(id) = there else {
                return ApplyResult::Differs(Difference::Gone);
            };
            let (node, seen) = (disk.node(id), disk.observe(id).fingerprint);
            let content = left.as_ref().and_then(|left| left.hash);
            if node.kind != *kind || seen.identity != print.identity {
                return ApplyResult::Differs(Difference::Other);
            }
            if *kind == Kind::File && content.is_some_and(|known| hash(&node.bytes) != known) {
                return ApplyResult::Differs(Difference::Content);
            }
            if meta.as_ref().is_some_and(|meta| node.meta != *meta) {
                return ApplyResult::Differs(Difference::Meta);
            }
            Ok(vec![id])
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
            drift,
            kind,
            below,
            ..
        } => return told(remove(disk, at, known, *drift, *kind, *below)),
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

/// What was done, or why not.
fn told(result: Result<ApplyResult, String>) -> ApplyResult {
    result.unwrap_or_else(ApplyResult::Failed)
}

fn met(disk: &Disk, at: &Place, known: Option<&Known>) -> Result<Met, String> {
    Ok(others::met(disk, open(disk, at)?, &at.name, known))
}

/// Publishes, unless others changed what that would replace and it is to stay.
fn publish_over(
    disk: &mut Disk,
    at: &Place,
    (kind, bytes, meta): (Kind, Vec<u8>, &Metadata),
    over: Option<&Known>,
    drift: OnDrift,
) -> Result<ApplyResult, String> {
    let folder = open(disk, at)?;
    let met = match over {
        Some(known) if drift != OnDrift::Ignore => met(disk, at, Some(known))?,
        _ => Met::AsLeft,
    };
    let any = over.is_some_and(|known| known.identity == Identity::default());
    let is_expected = |id: NodeId| {
        let node = disk.node(id);
        over.is_some_and(|known| {
            let is_left = |left: &crate::ledger::rows::Left| {
                (left.size, left.mtime) == (node.bytes.len() as u64, node.meta.mtime)
            };
            let content = node.kind != Kind::File || known.left.as_ref().is_none_or(is_left);
            node.identity == known.identity && content
        })
    };
    let there = disk.child(folder, &at.name);
    let foreign = !any && there.is_some_and(|id| !is_expected(id));
    if met.stays(drift) || (foreign && drift == OnDrift::Keep) {
        return Ok(ApplyResult::Kept);
    }
    let id = publish(disk, folder, at, kind, bytes, meta);
    let seen = vec![disk.observe(id)];
    let is_told = met.is_told(drift) || (foreign && drift == OnDrift::Replace);
    Ok(match is_told {
        true => ApplyResult::Overwrote(seen),
        false => ApplyResult::Done(seen),
    })
}

fn set_known_meta(
    disk: &mut Disk,
    at: &Place,
    known: &Known,
    meta: &Metadata,
    drift: OnDrift,
) -> Result<ApplyResult, String> {
    let met = met(disk, at, Some(known))?;
    if met.stays(drift) {
        return Ok(ApplyResult::Kept);
    }
    if matches!(met, Met::Nothing | Met::Other) {
        return Ok(ApplyResult::NotEqual);
    }
    let ids = set_meta(disk, Some(at), known.identity, meta)?;
    let seen = ids.into_iter().map(|id| disk.observe(id)).collect();
    Ok(match met {
        Met::OtherMeta => ApplyResult::Overwrote(seen),
        _ => ApplyResult::Done(seen),
    })
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

/// Whether this is at a name, as far as its folder is where it should be.
fn is_there(disk: &Disk, at: &Place, identity: Identity) -> bool {
    let Ok(folder) = open(disk, at) else {
        return true;
    };
    let found = disk.child(folder, &at.name);
    found.is_some_and(|id| disk.node(id).identity == identity)
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
    let spare = disk.at(".cdsync");
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
        let set_aside = spare.and_then(|spare| {
            let mut inside = disk.node(spare).children.values();
            let id = *inside.find(|id| disk.node(**id).identity == one.identity)?;
            Some((spare, id))
        });
        planned.push((one, to, done, here.or(set_aside)));
    }
    for (one, to, _, here) in &planned {
        // Two names of one file: the old one has to go.
        if let Some((from, id)) = here
            && (from, &one.from.name) != (to, &one.to.name)
        {
            let name = match Some(*from) == spare {
                true => aside(*id),
                false => one.from.name.clone(),
            };
            disk.trash(*from, &name, RelPath::root());
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
            if let Some((from, _)) = here
                && disk.is_below(*to, id)
            {
                // As a disk does: it goes back to where it was, or stays aside if that is in it now.
                match (disk.is_below(*from, id), spare) {
                    (true, Some(spare)) => disk.put(id, spare, &aside(id)),
                    _ => disk.put(id, *from, &one.from.name),
                }
                results.push(MoveResult::Failed("it would be in itself".to_owned()));
                continue;
            }
            clear(disk, *to, &one.to);
            disk.put(id, *to, &one.to.name);
        }
        results.push(MoveResult::Done(Box::new(disk.observe(id))));
    }
    Ok(results)
}

/// The name of what could not be moved on, nor back.
fn aside(id: NodeId) -> Name {
    Name::new(format!("move-{id}").as_bytes()).expect("a name")
}

fn remove(
    disk: &mut Disk,
    at: &Place,
    known: &Known,
    drift: OnDrift,
    kind: Kind,
    below: NameSetDigest,
) -> Result<ApplyResult, String> {
    let folder = open(disk, at)?;
    let Some(id) = disk.child(folder, &at.name) else {
        return Ok(ApplyResult::Done(Vec::new()));
    };
    let any = known.identity == Identity::default();
    let is_it = disk.node(id).identity == known.identity || (any && kind == Kind::Folder);
    let is_folder = disk.node(id).kind == Kind::Folder;
    if !is_it && (kind == Kind::Folder || is_folder) {
        return Ok(ApplyResult::NotEqual);
    }
    if !is_folder {
        return remove_file(disk, at, known, drift);
    }
    let mut found = NameSetDigest::default();
    digest(disk, id, &RelPath::root(), &mut found);
    if found != below {
        // Foreign content: one by one into the trash, but for what the filter excludes.
        disk.foreign_removals += 1;
    }
    clear(disk, folder, at);
    Ok(ApplyResult::Done(Vec::new()))
}

fn remove_file(
    disk: &mut Disk,
    at: &Place,
    known: &Known,
    drift: OnDrift,
) -> Result<ApplyResult, String> {
    let folder = open(disk, at)?;
    let met = match drift {
        OnDrift::Ignore => Met::AsLeft,
        _ => met(disk, at, Some(known))?,
    };
    if met.stays(drift) {
        return Ok(ApplyResult::Kept);
    }
    clear(disk, folder, at);
    Ok(match met.is_told(drift) {
        true => ApplyResult::Overwrote(Vec::new()),
        false => ApplyResult::Done(Vec::new()),
    })
}

fn digest(disk: &Disk, folder: NodeId, at: &RelPath, into: &mut NameSetDigest) {
    for (name, id) in &disk.node(folder).children {
        let path = at.join(name);
        into.add(path.as_bytes());
        digest(disk, *id, &path, into);
    }
}
