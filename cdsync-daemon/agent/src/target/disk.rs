//! Doing on the disk what the replica asks.

mod drift;
mod names;
mod second;
#[cfg(test)]
mod tests;
mod whole;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::restore::Removed;
use crate::owners::OwnerNames;
use bytes::Bytes;
use cdsync_core::filter::{Filter, Verdict};
use cdsync_core::ids::ObjectId;
use cdsync_core::job::{AdoptCheck, Settings, Specials};
use cdsync_core::ledger::loss::Loss;
use cdsync_core::ledger::object::{Hash, Identity, Kind, Metadata, Observed};
use cdsync_core::ledger::rows::{Known, Left};
use cdsync_core::path::{Name, NameSetDigest, RelPath};
use cdsync_core::replica::{
    ApplyOp, ApplyResult, Body, Met, MoveOne, MoveResult, OnDrift, Place, Step,
};
use cdsync_core::time::Timestamp;
use cdsync_delta::range_hash;
use cdsync_fs::{
    Applied, Applier, ApplyError, BaseReader, Dir, DirRef, Displaced, Expected, FsError,
    FsErrorKind, LookWants, MadeFolder, Move, MoveOutcome, Root, Staged, StagedWriter, Stager,
    Trashed, Weight, hash_content, write_unseen,
};
use drift::Wished;
use second::{Second, Shard};
use whole::{Unseen, WholeFolders};

/// Writers that work side by side.
const WRITERS: usize = 2;
/// Below so many operations the hand-over to threads costs more than it saves.
const ALONE_BELOW: usize = 16;

/// How many paths are tried to find a folder that interrupted moves have taken along.
const TRIED_MAX: usize = 1024;

/// How often room is made for one thing.
const ROOM_ATTEMPTS: usize = 8;

/// The inline contents of the batch being applied: the bytes with the hash that they must have.
pub(super) type Contents = Vec<Option<(Bytes, Hash)>>;

/// A target's disk.
#[derive(Debug)]
pub(super) struct Disk {
    root: Root,
    pub(super) applier: Arc<Applier>,
    stagers: Vec<Stager>,
    filter: Filter,
    specials: Specials,
    adopt_check: AdoptCheck,
    owners: OwnerNames,
    /// What was fetched, with its hash.
    staged: Mutex<HashMap<ObjectId, (StagedWriter, Hash)>>,
    /// The writer beside the engine's thread.
    second: Second,
    unseen: Unseen,
    /// Some owner could not be set.
    owners_kept: AtomicBool,
    /// What went to the trash for records since it was last asked for.
    removed: Mutex<Vec<Removed>>,
    /// What went from the trash because the disk was full, since it was asked last.
    freed: Mutex<Weight>,
}

impl Disk {
    pub(super) fn open(
        root: Root,
        applier: Arc<Applier>,
        filter: Filter,
        settings: &Settings,
    ) -> Result<Self, ApplyError> {
        let stagers = (0..WRITERS)
            .map(|n| applier.stager(n))
            .collect::<Result<_, _>>()?;
        let (staged, owners_kept) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self {
            root,
            applier,
            stagers,
            filter,
            specials: settings.specials,
            adopt_check: settings.adopt_check,
            owners: OwnerNames::new(settings.owners),
            staged,
            second: Second::default(),
            unseen: Unseen::default(),
            owners_kept,
            removed: Mutex::default(),
            freed: Mutex::default(),
        })
    }

    /// What was removed for records since the last call.
    pub(super) fn take_removed(&self) -> Vec<Removed> {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *removed)
    }

    fn note_removed(&self, id: ObjectId, path: &RelPath, trashed: Option<Trashed>) {
        if let Some(trashed) = trashed {
            let (path, kept_as) = (path.clone(), trashed.kept_as);
            let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
            removed.push(Removed { id, path, kept_as });
        }
    }

    /// Where fetched content is staged.
    pub(super) fn fetch_stager(&self) -> Result<Stager, ApplyError> {
        self.applier.stager(WRITERS)
    }

    /// Opens what is at a name, as something of which a content may be made.
    pub(super) fn base(&self, at: &Place) -> Option<BaseReader> {
        BaseReader::open(&*self.dir(at).ok()?, &at.name).ok()
    }

    pub(super) fn keep_staged(&self, object: ObjectId, writer: StagedWriter, hash: Hash) {
        self.staged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(object, (writer, hash));
    }

    /// Whether this process may not give files their owners, as seen so far.
    pub(super) fn owners_kept(&self) -> bool {
        self.owners_kept.load(Ordering::Relaxed)
    }

    /// What went from the trash because the disk was full, since the last call.
    pub(super) fn take_freed(&self) -> Weight {
        std::mem::take(&mut *self.freed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tries something that needs so many bytes; while the disk is full and the trash holds
    /// anything, room is made and it is tried again.
    pub(super) fn with_room<T>(
        &self,
        bytes: u64,
        mut attempt: impl FnMut() -> Result<T, ApplyError>,
    ) -> Result<T, ApplyError> {
        for _ in 0..ROOM_ATTEMPTS {
            match attempt() {
                Err(ApplyError::Fs(error)) if error.is_disk_full() => {
                    let freed = self.applier.make_room(bytes)?;
                    if freed.entries == 0 {
                        return Err(error.into());
                    }
                    let mut all = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
                    all.entries += freed.entries;
                    all.bytes += freed.bytes;
                }
                other => return other,
            }
        }
        attempt()
    }

    fn note(&self, seen: &[Observed]) {
        if seen.iter().any(|seen| seen.losses.has(Loss::Owner)) {
            self.owners_kept.store(true, Ordering::Relaxed);
        }
    }

    /// Runs a step. One result for each operation, in their order.
    pub(super) fn run(self: &Arc<Self>, step: &Step, contents: &Arc<Contents>) -> Vec<ApplyResult> {
        let ops = self.with_own_owners(&step.ops);
        if step.ordered || ops.len() < ALONE_BELOW {
            return ops
                .iter()
                .map(|op| self.one(op, contents, &self.stagers[0]))
                .collect();
        }
        self.side_by_side(&ops, contents)
    }

    /// The operations with owners as this server has them.
    fn with_own_owners(&self, ops: &Arc<Vec<ApplyOp>>) -> Arc<Vec<ApplyOp>> {
        let named = |meta: &Metadata| !meta.user.is_empty() || !meta.group.is_empty();
        if !ops.iter().any(|op| op.meta().is_some_and(named)) {
            return Arc::clone(ops);
        }
        let mut own = Vec::clone(ops);
        own.iter_mut()
            .filter_map(ApplyOp::meta_mut)
            .for_each(|meta| self.owners.number(meta));
        Arc::new(own)
    }

    fn side_by_side(
        self: &Arc<Self>,
        ops: &Arc<Vec<ApplyOp>>,
        contents: &Arc<Contents>,
    ) -> Vec<ApplyResult> {
        let mut results: Vec<Option<ApplyResult>> = vec![None; ops.len()];
        let mut shards: [Vec<usize>; WRITERS] = Default::default();
        let chosen = if self.applier.is_each_synced() {
            // Each of its files would have to be synced by its name.
            HashSet::new()
        } else {
            whole::choose(ops)
        };
        let mut whole = WholeFolders::default();
        for (index, op) in ops.iter().enumerate() {
            if let ApplyOp::MakeFolder { id, at, .. } = op {
                let begun = if chosen.contains(id) {
                    self.begin_whole(&mut whole, index, *id, at)
                } else {
                    Ok(false)
                };
                results[index] = match begun {
                    Ok(true) => None,
                    Ok(false) => Some(self.one(op, contents, &self.stagers[0])),
                    Err(error) => Some(ApplyResult::Failed(crate::source::chain(&error))),
                };
            } else {
                let folder = op.folder().map_or(0, |id| id.number);
                shards[usize::try_from(folder).unwrap_or(0) % WRITERS].push(index);
            }
        }
        balance(&mut shards);
        let [own, other] = shards;
        let other = Shard {
            disk: Arc::clone(self),
            ops: Arc::clone(ops),
            contents: Arc::clone(contents),
            indexes: other,
            stager: 1,
        };
        let own = Shard {
            disk: Arc::clone(self),
            ops: Arc::clone(ops),
            contents: Arc::clone(contents),
            indexes: own,
            stager: 0,
        };
        let done = self.second.beside(other, || own.work());
        for (index, result) in done.into_iter().flatten() {
            results[index] = Some(result);
        }
        self.end_whole(whole, ops, &mut results);
        results
            .into_iter()
            .map(|r| r.unwrap_or_else(|| ApplyResult::Failed("it was not tried".into())))
            .collect()
    }

    fn one(&self, op: &ApplyOp, contents: &Contents, stager: &Stager) -> ApplyResult {
        let outcome = match op {
            ApplyOp::MakeFolder { at, meta, left, .. } => {
                return match self.with_room(0, || self.make_folder(at, meta)) {
                    Ok(made)
                        if made.existed && *left == Some(made.observed.fingerprint.identity) =>
                    {
                        let path = at.folder.path.join(&at.name);
                        ApplyResult::Failed(format!("the former {path} is still to be removed"))
                    }
                    Ok(made) => {
                        let seen = vec![made.observed];
                        self.note(&seen);
                        if made.existed {
                            ApplyResult::Found(seen)
                        } else {
                            ApplyResult::Done(seen)
                        }
                    }
                    Err(ApplyError::Clashes { other, .. }) => ApplyResult::Clashes(other),
                    Err(error) => ApplyResult::Failed(crate::source::chain(&error)),
                };
            }
            ApplyOp::WriteFile { body, .. } => {
                let write = || self.write_file(op, contents, stager);
                match body {
                    Body::Inline(_) => self.with_room(0, write),
                    // What was staged is gone with a failed attempt: it is fetched again.
                    Body::Staged(_) => write(),
                }
            }
            ApplyOp::AdoptFile {
                at,
                size,
                mtime,
                hash,
                meta,
                over,
                drift,
                ..
            } => {
                let wanted = Wanted {
                    size: *size,
                    mtime: *mtime,
                    hash: *hash,
                };
                self.adopt_or_tell(at, &wanted, meta, over.as_ref(), *drift)
            }
            ApplyOp::MakeLink {
                at,
                target,
                meta,
                over,
                drift,
                ..
            } => self.with_room(0, || {
                self.make_link(at, target, meta, over.as_ref(), *drift, stager)
            }),
            ApplyOp::MakeSpecial {
                at,
                kind,
                device,
                meta,
                over,
                ..
            } => self
                .with_room(0, || {
                    self.make_special(at, (*kind, *device), meta, *over, stager)
                })
                .map(ApplyResult::Done),
            ApplyOp::Link {
                from,
                at,
                identity,
                over,
                ..
            } => self
                .with_room(0, || self.link(from, at, *identity, *over, stager))
                .map(ApplyResult::Done),
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
                    self.set_known_meta(at, *identity, *kind, meta, *left, *drift)
                }
                _ => self.set_meta(at.as_ref(), *identity, *kind, meta),
            },
            ApplyOp::Verify {
                at,
                kind,
                print,
                left,
                ..
            } => self.verify(at, *kind, print, left.as_ref()),
            ApplyOp::Check {
                at,
                kind,
                print,
                left,
                meta,
                losses,
                ..
            } => {
                let wanted = Wished {
                    kind: *kind,
                    print,
                    left: left.as_ref(),
                    meta: meta.as_ref(),
                    losses: *losses,
                };
                self.check(at.as_ref(), &wanted)
            }
            ApplyOp::Move(moves) => self
                .with_room(0, || self.relocate(moves))
                .map(ApplyResult::Moved),
            ApplyOp::Remove {
                id,
                at,
                known,
                drift,
                kind,
                below,
            } => self.remove(*id, at, known, *drift, *kind, below),
        };
        match outcome {
            Ok(mut result) => {
                if let ApplyResult::Done(seen) | ApplyResult::Overwrote(seen) = &mut result {
                    if let (Some(meta), [seen]) = (op.meta(), &mut seen[..]) {
                        compare(seen, meta);
                    }
                    self.note(seen);
                }
                result
            }
            Err(ApplyError::Drifted { .. }) => ApplyResult::Kept,
            Err(ApplyError::Clashes { other, .. }) => ApplyResult::Clashes(other),
            Err(error) => ApplyResult::Failed(self.explain(op, &error)),
        }
    }

    /// Why an operation failed, with what a person can do about it where that is known.
    fn explain(&self, op: &ApplyOp, error: &ApplyError) -> String {
        let reason = crate::source::chain(error);
        let refused = matches!(error, ApplyError::Fs(e) if e.kind() == FsErrorKind::Permission);
        let locked = |at: &Place| self.dir(at).is_ok_and(|dir| dir.is_locked(&at.name));
        if refused && op.places().any(locked) {
            return format!(
                "{reason}: it, or its folder, is set immutable or append-only on this server; \
                 `chattr -i -a` lets it be changed"
            );
        }
        reason
    }

    fn dir(&self, at: &Place) -> Result<Arc<Dir>, ApplyError> {
        let folder = &at.folder;
        if let Some(unseen) = self.unseen.dir(folder.id) {
            return Ok(unseen);
        }
        if folder.identity.is_none() {
            // What is there by its name may be another one's.
            self.applier.refuse_respelt(&folder.path)?;
        }
        Ok(self.root.dir(&DirRef {
            id: folder.id,
            path: folder.path.clone(),
            identity: folder.identity,
        })?)
    }

    fn make_folder(&self, at: &Place, meta: &Metadata) -> Result<MadeFolder, ApplyError> {
        self.applier.make_folder(&*self.dir(at)?, &at.name, meta)
    }

    fn write_file(
        &self,
        op: &ApplyOp,
        contents: &Contents,
        stager: &Stager,
    ) -> Result<ApplyResult, ApplyError> {
        let ApplyOp::WriteFile {
            at,
            body,
            meta,
            over,
            drift,
            adopt,
            ..
        } = op
        else {
            return Ok(ApplyResult::NotEqual);
        };
        let dir = self.dir(at)?;
        let staged = match body {
            Body::Inline(index) => {
                let Some((bytes, hash)) = contents.get(*index).and_then(Option::as_ref) else {
                    return Err(missing(at));
                };
                let wanted = Wanted {
                    size: bytes.len() as u64,
                    mtime: meta.mtime,
                    hash: Some(*hash),
                };
                if *adopt && let Some(seen) = self.adopt_file(at, &wanted, meta)? {
                    return Ok(done(seen));
                }
                if range_hash(0, bytes, true).0 != hash.0 {
                    return Err(wrong_hash(at));
                }
                if let Some(seen) = self.write_unseen(at, bytes, meta)? {
                    return Ok(done(seen));
                }
                stager.small(bytes, meta)?
            }
            Body::Staged(id) => {
                let writer = self
                    .staged
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(id);
                let (writer, hash) = writer.ok_or_else(|| missing(at))?;
                let wanted = Wanted {
                    size: writer.size(),
                    mtime: meta.mtime,
                    hash: Some(hash),
                };
                if *adopt && let Some(seen) = self.adopt_file(at, &wanted, meta)? {
                    return Ok(done(seen));
                }
                writer.finish(meta)?
            }
        };
        self.publish(staged, &dir, &at.name, over.as_ref(), *drift)
    }

    /// Publishes what is staged, unless others changed what it would replace and that is to stay.
    fn publish(
        &self,
        staged: Staged,
        dir: &Dir,
        name: &Name,
        over: Option<&Known>,
        drift: OnDrift,
    ) -> Result<ApplyResult, ApplyError> {
        // A new name needs no look: taking it says whether it is free.
        let met = match over {
            Some(known) if drift != OnDrift::Ignore => self.met(dir, name, Some(known))?,
            _ => Met::AsLeft,
        };
        if met.stays(drift) {
            return Ok(ApplyResult::Kept);
        }
        let any = over.is_some_and(|known| known.identity == Identity::default());
        // What restored its size and time is theirs all the same.
        let expect = over.filter(|_| met != Met::Other).map(expected);
        let published = match drift {
            OnDrift::Keep if !any => self.applier.publish_or_keep(staged, dir, name, expect)?,
            _ => self.applier.publish(staged, dir, name, expect)?,
        };
        let foreign = matches!(published.displaced, Displaced::Foreign(_)) && !any;
        if met.is_told(drift) || (foreign && drift == OnDrift::Replace) {
            return Ok(ApplyResult::Overwrote(vec![published.observed]));
        }
        Ok(done(published.observed))
    }

    fn adopt_or_tell(
        &self,
        at: &Place,
        wanted: &Wanted,
        meta: &Metadata,
        over: Option<&Known>,
        drift: OnDrift,
    ) -> Result<ApplyResult, ApplyError> {
        if let Some(seen) = self.adopt_file(at, wanted, meta)? {
            return Ok(done(seen));
        }
        if drift == OnDrift::Keep && self.met(&*self.dir(at)?, &at.name, over)?.stays(drift) {
            return Ok(ApplyResult::Kept);
        }
        Ok(ApplyResult::NotEqual)
    }

    /// Writes a file into a folder that nobody sees yet. `None`: it is none, or the name is taken
    /// there (where names are equal that are not the same bytes).
    fn write_unseen(
        &self,
        at: &Place,
        bytes: &[u8],
        meta: &Metadata,
    ) -> Result<Option<Observed>, ApplyError> {
        let Some(dir) = self.unseen.dir(at.folder.id) else {
            return Ok(None);
        };
        match write_unseen(&dir, &at.name, bytes, meta) {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if error.kind() == FsErrorKind::Exists => Ok(None),
            Err(error) => {
                // What is half written must not be published.
                match dir.unlink(&at.name) {
                    Err(error) if error.kind() != FsErrorKind::NotFound => self.unseen.spoil(),
                    _ => {}
                }
                Err(error.into())
            }
        }
    }

    /// Takes over a file that is equal by what the job has compared.
    fn adopt_file(
        &self,
        at: &Place,
        wanted: &Wanted,
        meta: &Metadata,
    ) -> Result<Option<Observed>, ApplyError> {
        let dir = self.dir(at)?;
        self.applier.refuse_alias(&dir, &at.name, None)?;
        let looks_equal = |seen: &Observed| {
            let print = &seen.fingerprint;
            let times = (print.size, print.mtime) == (wanted.size, wanted.mtime);
            seen.kind == Kind::File && times
        };
        if self.adopt_check == AdoptCheck::Time {
            return Ok(dir.adopt(&at.name, meta, looks_equal)?);
        }
        // What is not known is fetched first.
        let Some(hash) = wanted.hash else {
            return Ok(None);
        };
        let found = dir.look(&at.name, LookWants::default())?;
        let Some(found) = found.filter(looks_equal) else {
            return Ok(None);
        };
        let print = found.fingerprint;
        if !hash_content(&dir, &at.name, &print, false).is_ok_and(|read| Hash(read) == hash) {
            return Ok(None);
        }
        Ok(dir.adopt(&at.name, meta, |seen| seen.fingerprint == print)?)
    }

    fn make_link(
        &self,
        at: &Place,
        target: &[u8],
        meta: &Metadata,
        over: Option<&Known>,
        drift: OnDrift,
        stager: &Stager,
    ) -> Result<ApplyResult, ApplyError> {
        let dir = self.dir(at)?;
        self.applier
            .refuse_alias(&dir, &at.name, identity_of(over))?;
        let is_it =
            |seen: &Observed| seen.kind == Kind::Symlink && seen.link.as_deref() == Some(target);
        if let Some(seen) = dir.adopt(&at.name, meta, is_it)? {
            return Ok(done(seen));
        }
        let staged = stager.symlink(target, meta)?;
        self.publish(staged, &dir, &at.name, over, drift)
    }

    /// Sets metadata, if what is there is what was left there.
    fn set_known_meta(
        &self,
        at: &Place,
        identity: Identity,
        kind: Kind,
        meta: &Metadata,
        left: Left,
        drift: OnDrift,
    ) -> Result<ApplyResult, ApplyError> {
        let left = Some(left);
        let known = Known { identity, left };
        let met = self.met(&*self.dir(at)?, &at.name, Some(&known))?;
        match met {
            _ if met.stays(drift) => Ok(ApplyResult::Kept),
            Met::Nothing | Met::Other => Ok(ApplyResult::NotEqual),
            Met::AsLeft => self.set_meta(Some(at), identity, kind, meta),
            Met::OtherMeta => match self.set_meta(Some(at), identity, kind, meta)? {
                ApplyResult::Done(seen) => Ok(ApplyResult::Overwrote(seen)),
                other => Ok(other),
            },
        }
    }

    fn make_special(
        &self,
        at: &Place,
        (kind, device): (Kind, u64),
        meta: &Metadata,
        over: Option<Identity>,
        stager: &Stager,
    ) -> Result<Vec<Observed>, ApplyError> {
        let dir = self.dir(at)?;
        if !self.specials.carries(kind) {
            return Err(ApplyError::NotCarried {
                path: dir.path().join(&at.name),
                kind,
            });
        }
        self.applier.refuse_alias(&dir, &at.name, over)?;
        if let Some(seen) = dir.look(&at.name, LookWants::default())?
            && seen.kind == kind
            && seen.device == device
        {
            let identity = seen.fingerprint.identity;
            let seen = self
                .applier
                .set_metadata(&dir, &at.name, Some(identity), meta, kind)?;
            return Ok(vec![seen]);
        }
        let staged = stager.special(kind, device, meta)?;
        let published = self
            .applier
            .publish(staged, &dir, &at.name, over.map(Into::into))?;
        Ok(vec![published.observed])
    }

    fn set_meta(
        &self,
        at: Option<&Place>,
        identity: Identity,
        kind: Kind,
        meta: &Metadata,
    ) -> Result<ApplyResult, ApplyError> {
        let Some(at) = at else {
            let top = self.root.top();
            let applied = top.set_own_metadata(meta)?;
            return Ok(done(with(top.self_look()?, applied)));
        };
        let dir = self.dir(at)?;
        let seen = self
            .applier
            .set_metadata(&dir, &at.name, Some(identity), meta, kind);
        match seen {
            Err(ApplyError::Fs(error)) if kind == Kind::Folder && is_elsewhere(&error) => {
                Ok(ApplyResult::NotEqual)
            }
            seen => Ok(done(seen?)),
        }
    }

    fn relocate(&self, moves: &[MoveOne]) -> Result<Vec<MoveResult>, ApplyError> {
        // All folders first: the paths are those from before the first move.
        let wanted: Vec<Move> = moves
            .iter()
            .map(|one| {
                let from_dir = match self.dir_of_move(&one.from, moves) {
                    Err(ApplyError::Fs(error)) if is_elsewhere(&error) => None,
                    other => Some(other?),
                };
                Ok(Move {
                    from_dir,
                    from_name: one.from.name.clone(),
                    to_dir: self.dir_of_move(&one.to, moves)?,
                    to_name: one.to.name.clone(),
                    identity: one.identity,
                })
            })
            .collect::<Result<_, ApplyError>>()?;
        let relocated = self.applier.relocate(&wanted)?;
        for one in moves {
            self.root.forget(one.id);
        }
        self.root.forget_all();
        let outcomes = relocated.outcomes.into_iter();
        let results: Vec<MoveResult> = outcomes
            .map(|outcome| match outcome {
                MoveOutcome::Done(found) => {
                    self.note(std::slice::from_ref(&*found));
                    MoveResult::Done(found)
                }
                MoveOutcome::Clashes(other) => MoveResult::Clashes(other),
                MoveOutcome::Failed(error) => MoveResult::Failed(crate::source::chain(&error)),
                MoveOutcome::Missing => MoveResult::Missing,
            })
            .collect();
        // The ledger says next that it was done, and does not look again.
        for (at, one) in wanted.iter().enumerate() {
            for dir in one.from_dir.iter().chain([&one.to_dir]) {
                let same = |other: &Move| {
                    let mut dirs = other.from_dir.iter().chain([&other.to_dir]);
                    dirs.any(|d| d.identity() == dir.identity())
                };
                if !wanted[..at].iter().any(same) {
                    self.applier.sync_folder(dir)?;
                }
            }
        }
        Ok(results)
    }

    /// Opens the folder of a move. Before a kill other moves of the same set may have taken that
    /// folder, or some above it, aside or to their new places: it is found there by its identity.
    fn dir_of_move(&self, at: &Place, moves: &[MoveOne]) -> Result<Arc<Dir>, ApplyError> {
        let first = self.dir(at);
        match &first {
            Err(ApplyError::Fs(error)) if is_elsewhere(error) => {}
            _ => return first,
        }
        let mut tried = BTreeSet::from([at.folder.path.clone()]);
        let mut next = VecDeque::from([at.folder.path.clone()]);
        while let Some(path) = next.pop_front() {
            for candidate in self.taken_along(&path, moves)? {
                if tried.len() >= TRIED_MAX || !tried.insert(candidate.clone()) {
                    continue;
                }
                let mut place = at.clone();
                place.folder.path = candidate.clone();
                if let Ok(dir) = self.dir(&place) {
                    return Ok(dir);
                }
                next.push_back(candidate);
            }
        }
        first
    }

    /// Where a path may lead by now, with each of the moves that take it along.
    fn taken_along(&self, path: &RelPath, moves: &[MoveOne]) -> Result<Vec<RelPath>, ApplyError> {
        let mut candidates = Vec::new();
        for one in moves {
            let from = one.from.folder.path.join(&one.from.name);
            let Some(rest) = path.after(&from) else {
                continue;
            };
            let aside = Applier::aside_name(one.identity)?;
            let aside = self.applier.spare_folder().path().join(&aside);
            let there = one.to.folder.path.join(&one.to.name);
            for top in [aside, there] {
                candidates.extend(RelPath::new([top.as_bytes(), rest].concat()).ok());
            }
        }
        Ok(candidates)
    }

    fn remove(
        &self,
        id: ObjectId,
        at: &Place,
        known: &Known,
        drift: OnDrift,
        kind: Kind,
        below: &NameSetDigest,
    ) -> Result<ApplyResult, ApplyError> {
        let nothing = || Ok(ApplyResult::Done(Vec::new()));
        let dir = match self.dir(at) {
            // The folder that it was in is gone, and it with it.
            Err(ApplyError::Fs(error)) if error.kind() == FsErrorKind::NotFound => {
                return nothing();
            }
            other => other?,
        };
        let Some(seen) = dir.look(&at.name, LookWants::default())? else {
            return nothing();
        };
        let path = at.folder.path.join(&at.name);
        let found = seen.fingerprint.identity;
        if self
            .applier
            .alias_of(&dir, &at.name, Some(known.identity))?
            .is_some()
        {
            // Another one's, to this filesystem at the same name.
            return nothing();
        }
        let any = known.identity == Identity::default();
        // What is still there may be of another kind than what was to come in its place, and is
        // removed together with that.
        let is_it = found == known.identity || (any && kind == Kind::Folder);
        if !is_it && (kind == Kind::Folder || seen.kind == Kind::Folder) {
            return Ok(ApplyResult::NotEqual);
        }
        match seen.kind {
            Kind::Folder => self.remove_folder(id, &dir, &at.name, &path, found, below),
            _ => self.remove_file(id, &dir, &at.name, &path, known, drift),
        }
    }

    fn remove_folder(
        &self,
        id: ObjectId,
        dir: &Dir,
        name: &Name,
        path: &RelPath,
        identity: Identity,
        below: &NameSetDigest,
    ) -> Result<ApplyResult, ApplyError> {
        self.root.forget(id);
        match self.applier.trash_folder(dir, name, identity, below) {
            Ok(trashed) => {
                self.note_removed(id, path, trashed);
                self.root.forget_all();
            }
            Err(ApplyError::ForeignContent { .. }) => {
                self.remove_but_foreign(id, dir, name, path, identity)?;
            }
            Err(error) => return Err(error),
        }
        Ok(ApplyResult::Done(Vec::new()))
    }

    fn remove_file(
        &self,
        id: ObjectId,
        dir: &Dir,
        name: &Name,
        path: &RelPath,
        known: &Known,
        drift: OnDrift,
    ) -> Result<ApplyResult, ApplyError> {
        let met = match drift {
            OnDrift::Ignore => Met::AsLeft,
            _ => self.met(dir, name, Some(known))?,
        };
        if met.stays(drift) {
            return Ok(ApplyResult::Kept);
        }
        let any = known.identity == Identity::default();
        let expect = (!any).then(|| expected(known));
        let trashed = self.applier.trash(dir, name, expect, path)?;
        let late = trashed.as_ref().filter(|trashed| !trashed.expected);
        if let (OnDrift::Keep, Some(late)) = (drift, late) {
            // Written to since it was looked at: it goes back.
            self.applier.put_back(late, dir, name)?;
            return Ok(ApplyResult::Kept);
        }
        let is_told = met.is_told(drift) || (drift == OnDrift::Replace && late.is_some());
        self.note_removed(id, path, trashed);
        Ok(if is_told {
            ApplyResult::Overwrote(Vec::new())
        } else {
            ApplyResult::Done(Vec::new())
        })
    }

    /// A folder that holds more than the ledger knows: what the filter excludes keeps its folder,
    /// everything else goes to the trash.
    fn remove_but_foreign(
        &self,
        id: ObjectId,
        dir: &Dir,
        name: &Name,
        path: &RelPath,
        identity: Identity,
    ) -> Result<(), ApplyError> {
        let kept = self.clear(id, dir, name, path)?;
        self.root.forget_all();
        if let Some(kept) = kept {
            return Err(ApplyError::ForeignContent {
                path: kept,
                known: 0,
                found: 1,
            });
        }
        let expect = Some(identity.into());
        let trashed = self.applier.trash(dir, name, expect, path)?;
        self.note_removed(id, path, trashed);
        Ok(())
    }

    /// Moves what the filter carries below a folder into the trash. Returns something that stays.
    fn clear(
        &self,
        id: ObjectId,
        dir: &Dir,
        name: &Name,
        path: &RelPath,
    ) -> Result<Option<RelPath>, ApplyError> {
        let folder = dir.open_folder(name)?;
        let mut entries = Vec::new();
        folder.list_names(&mut |name, _| {
            entries.push(name);
            std::ops::ControlFlow::Continue(())
        })?;
        let mut kept = None;
        for entry in entries {
            let below = path.join(&entry);
            let Some(seen) = folder.look(&entry, LookWants::default())? else {
                continue;
            };
            let is_folder = seen.kind == Kind::Folder;
            match self.filter.judge(&below, is_folder) {
                Verdict::Excluded => kept = Some(below),
                _ => {
                    let inner = match is_folder {
                        true => self.clear(id, &folder, &entry, &below)?,
                        false => None,
                    };
                    if inner.is_some() {
                        kept = inner;
                        continue;
                    }
                    let trashed = self.applier.trash(&folder, &entry, None, &below)?;
                    self.note_removed(id, &below, trashed);
                }
            }
        }
        Ok(kept)
    }
}

/// What a file is to be that is taken as it is.
struct Wanted {
    size: u64,
    mtime: Timestamp,
    /// `None` while nobody has read it.
    hash: Option<Hash>,
}

fn done(seen: Observed) -> ApplyResult {
    ApplyResult::Done(vec![seen])
}

fn identity_of(known: Option<&Known>) -> Option<Identity> {
    known.map(|known| known.identity)
}

/// What must come out of an exchange, or arrive in the trash, for nobody's work to be touched.
fn expected(known: &Known) -> Expected {
    Expected {
        identity: known.identity,
        content: known.left.map(|left| (left.size, left.mtime)),
    }
}

/// Moves work from the fuller shard to the emptier one: a batch is often one folder. Operations of
/// one folder may run side by side; keeping them together only saves opening it twice.
fn balance(shards: &mut [Vec<usize>]) {
    let total: usize = shards.iter().map(Vec::len).sum();
    let fair = total.div_ceil(shards.len().max(1));
    let mut spare = Vec::new();
    for shard in shards.iter_mut() {
        let keep = shard.len().min(fair);
        spare.extend(shard.drain(keep..));
    }
    for shard in shards.iter_mut() {
        let room = fair.saturating_sub(shard.len()).min(spare.len());
        shard.extend(spare.drain(spare.len() - room..));
    }
}

/// Whether an error says that a folder may be at another path.
fn is_elsewhere(error: &FsError) -> bool {
    matches!(
        error.kind(),
        FsErrorKind::NotFound | FsErrorKind::Moved | FsErrorKind::NotFolder | FsErrorKind::Link
    )
}

/// What is seen of an object, with what it could not be given.
fn with(seen: Observed, applied: Applied) -> Observed {
    Observed {
        losses: applied.losses,
        ..seen
    }
}

/// Adds what a filesystem took without a word, and does not hold. A folder's time comes last.
fn compare(seen: &mut Observed, meta: &Metadata) {
    let found = &seen.meta;
    if seen.kind != Kind::Folder && found.mtime != meta.mtime {
        seen.losses.add(Loss::Time);
    }
    if (found.uid, found.gid) != (meta.uid, meta.gid) {
        seen.losses.add(Loss::Owner);
    } else if seen.kind != Kind::Symlink && found.mode != meta.mode {
        seen.losses.add(Loss::Mode);
    }
}

fn wrong_hash(at: &Place) -> ApplyError {
    ApplyError::WrongContent {
        path: at.folder.path.join(&at.name),
    }
}

fn missing(at: &Place) -> ApplyError {
    ApplyError::NoContent {
        path: at.folder.path.join(&at.name),
    }
}
