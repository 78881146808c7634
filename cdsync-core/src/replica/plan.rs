//! From records to operations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::structure::given_since;
use super::{ApplyOp, Body, Issued, OnDrift, Place, Queued, Replica, Running, Step, Then, tree};
use crate::ids::{ObjectId, OriginId};
use crate::ledger::access::{self, Slot, live, object, put_live, put_name};
use crate::ledger::object::{
    Content, Hash, Identity, Kind, OWNER_NAME_MAX_BYTES, ObjectState, Seq,
};
use crate::ledger::outgoing::INLINE_MAX_BYTES;
use crate::ledger::record::{NameState, RECORD_MAX_ITEMS, Record};
use crate::ledger::rows::{Known, LiveObject, NameRow, ObjectRow};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::ledger::writer::size_of;
use crate::path::Name;
use crate::time::WallMillis;
use crate::wire::Inline;

/// The longest target of a symbolic link: `PATH_MAX` less the final NUL.
const LINK_MAX_BYTES: usize = 4095;

/// Whether a record can be true of a ledger of this origin; what a hostile upstream could send
/// ends here.
pub(super) fn fits(record: &Record, origin: OriginId) -> bool {
    let objects: BTreeSet<ObjectId> = record.objects.iter().map(|state| state.id).collect();
    let slots: BTreeSet<_> = record.names.iter().map(|n| (n.parent, &n.name)).collect();
    record.names.len() <= RECORD_MAX_ITEMS
        && record.objects.len() <= 2 * RECORD_MAX_ITEMS
        && record.removed.len() <= RECORD_MAX_ITEMS
        && record.names.iter().all(|n| {
            n.parent.origin == origin
                && !n.name.is_reserved()
                && n.object
                    .is_none_or(|id| id.origin == origin && !id.is_root())
        })
        && slots.len() == record.names.len()
        && folders_have_one_name(record)
        && objects.len() == record.objects.len()
        && record
            .names
            .iter()
            .all(|n| n.object.is_none_or(|id| objects.contains(&id)))
        && record
            .removed
            .iter()
            .all(|id| id.origin == origin && !id.is_root() && !objects.contains(id))
        && record
            .objects
            .iter()
            .all(|state| state_fits(record.seq, state, origin))
}

/// Whether no folder gets two names: only files have links.
fn folders_have_one_name(record: &Record) -> bool {
    let folders = record.objects.iter().filter(|o| o.kind == Kind::Folder);
    let folders: BTreeSet<ObjectId> = folders.map(|state| state.id).collect();
    let mut named = BTreeSet::new();
    let mut names = record.names.iter().filter_map(|name| name.object);
    names.all(|id| !folders.contains(&id) || named.insert(id))
}

pub(super) fn state_fits(seq: Seq, state: &ObjectState, origin: OriginId) -> bool {
    let content_fits = match (state.kind, &state.content) {
        (Kind::File, Content::Data { .. }) => true,
        (Kind::Symlink, Content::Link(target)) => {
            !target.is_empty() && target.len() <= LINK_MAX_BYTES && !target.contains(&0)
        }
        (Kind::Folder | Kind::Fifo | Kind::Socket, Content::None) => true,
        (Kind::CharDevice | Kind::BlockDevice, Content::Device(_)) => true,
        _ => false,
    };
    content_fits
        && state.id.origin == origin
        && state.version.origin == origin
        && state.version.seq == seq
        && state.content_seq <= seq
        && state.meta.mode <= 0o7777
        // To a system this owner means that nothing is to be set.
        && state.meta.uid != u32::MAX
        && state.meta.gid != u32::MAX
        && state.meta.mtime.is_valid()
        && state.meta.xattrs.fit()
        && state.meta.user.len() <= OWNER_NAME_MAX_BYTES
        && state.meta.group.len() <= OWNER_NAME_MAX_BYTES
        && (!state.id.is_root() || state.kind == Kind::Folder)
}

/// Whether content can be what a record of this number brings.
pub(super) fn content_fits(seq: Seq, content: &Inline) -> bool {
    match content {
        Inline::Here {
            version,
            len,
            mtime,
            ..
        } => *version >= seq && u64::from(*len) <= INLINE_MAX_BYTES && mtime.is_valid(),
        _ => true,
    }
}

impl Replica {
    /// What to do on the disk now; `None` when there is nothing, or a step is under way.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_step(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<Option<Step>, TableError> {
        if self.issued.is_some() {
            return Ok(None);
        }
        let mut ordered = std::mem::take(&mut self.retrying);
        loop {
            if self.running.is_empty() && self.rest.is_none() {
                // A record's removals come first: one may be of what is still at a file's new name.
                self.plan_staged(t)?;
            }
            if self.running.is_empty() {
                ordered = self.plan_queue(wall, t)?;
            }
            if self.running.is_empty() && self.queue.is_empty() && self.rest.is_none() {
                self.plan_touched(t)?;
                if self.running.is_empty() {
                    self.end_batch();
                }
            }
            let held_back = self.hold_back(wall, t)?;
            if !self.running.is_empty() {
                break;
            }
            if !held_back {
                return Ok(None);
            }
        }
        if ordered {
            // What must go goes first, so that it does not take along what comes instead.
            self.running.sort_by_key(|running| match running.op {
                ApplyOp::Remove { .. } => 0,
                ApplyOp::MakeFolder { .. } => 1,
                ApplyOp::Move(_) => 2,
                _ => 3,
            });
        }
        let running = self.running.drain(..).map(|one| (one.op, one.then));
        let (ops, thens): (Vec<_>, Vec<_>) = running.unzip();
        let ops = Arc::new(ops);
        self.issued = Some(Issued {
            ops: Arc::clone(&ops),
            thens,
            doubtful: false,
        });
        Ok(Some(Step { ops, ordered }))
    }

    /// Takes records from the queue until there is something to do that the next one must wait
    /// for. Returns whether the operations must be done one after another.
    fn plan_queue(&mut self, wall: WallMillis, t: &mut dyn Tables) -> Result<bool, TableError> {
        if let Some(rest) = self.rest.take() {
            self.plan_rest(wall, t, rest)?;
            if !self.running.is_empty() {
                return Ok(true);
            }
        }
        let mut busy = BTreeSet::new();
        let mut busy_names: BTreeMap<ObjectId, BTreeSet<Name>> = BTreeMap::new();
        while let Some(queued) = self.queue.front() {
            let record = &queued.record;
            let is_busy = |at: &NameState| {
                let names = busy_names.get(&at.parent);
                names.is_some_and(|names| names.contains(&at.name))
            };
            // Where none of them has anything to do, there is nothing to wait for.
            if !self.running.is_empty()
                && (record.objects.iter().any(|state| busy.contains(&state.id))
                    || record.names.iter().any(is_busy))
            {
                return Ok(false);
            }
            let shape = Shape::of(t, &queued.record)?;
            if shape == Shape::Structure && !self.running.is_empty() {
                return Ok(false);
            }
            let record = &queued.record;
            let seq = record.seq;
            // What only makes things that nobody has heard of changes no other.
            let only_new = shape == Shape::New && record.objects.len() == record.names.len();
            let is_tree = only_new || tree::stays_a_tree(t, record)?;
            let Some(queued) = self.queue.pop_front() else {
                break;
            };
            if !is_tree || self.has_no_place(t, &queued.record)? {
                self.refuse(seq);
                return Ok(false);
            }
            busy.extend(queued.record.objects.iter().map(|state| state.id));
            for at in &queued.record.names {
                let names = busy_names.entry(at.parent).or_default();
                names.insert(at.name.clone());
            }
            self.log(t, &queued.record)?;
            if self.is_suspect(queued.record.seq) {
                // Whatever was done of it, its folders may not have got their times again.
                let parents = queued.record.names.iter().map(|name| name.parent);
                self.touched.extend(parents);
                for state in &queued.record.objects {
                    if state.kind == Kind::Folder {
                        self.touched.insert(state.id);
                    }
                    // New content changes the folder too, without any word of its name.
                    let names = live(t, state.id)?.map(|row| row.names).unwrap_or_default();
                    self.touched
                        .extend(names.into_iter().map(|(parent, _)| parent));
                }
            }
            let queued = match shape {
                Shape::New => match self.plan_new_file(t, queued)? {
                    Some(queued) => queued,
                    None => continue,
                },
                _ => queued,
            };
            match shape {
                Shape::New | Shape::Simple => self.plan_simple(wall, t, &queued)?,
                Shape::Structure => {
                    self.plan_structure(wall, t, queued)?;
                    if !self.running.is_empty() {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Plans what most records of a first copy are: one file that is [`Shape::New`], its content at
    /// hand. Its rows are written once, with what became of it. Gives back what is not that.
    fn plan_new_file(
        &mut self,
        t: &mut dyn Tables,
        mut queued: Queued,
    ) -> Result<Option<Queued>, TableError> {
        let seq = queued.record.seq;
        let ([state], [name]) = (&queued.record.objects[..], &queued.record.names[..]) else {
            return Ok(Some(queued));
        };
        let [
            (
                _,
                index,
                Inline::Here {
                    version, len, hash, ..
                },
            ),
        ] = queued.contents[..]
        else {
            return Ok(Some(queued));
        };
        let plain = version <= seq && name.object == Some(state.id) && !self.is_suspect(seq);
        if !plain {
            return Ok(Some(queued));
        }
        let Some(folder) = self.folders.at(t, name.parent)? else {
            return Ok(Some(queued));
        };
        let (names, objects) = (&mut queued.record.names, &mut queued.record.objects);
        let (Some(name), Some(mut state)) = (names.pop(), objects.pop()) else {
            return Ok(Some(queued));
        };
        state.content = Content::Data {
            size: u64::from(len),
            hash: Some(hash),
        };
        self.touched.insert(name.parent);
        let op = ApplyOp::WriteFile {
            id: state.id,
            at: Place {
                folder,
                name: name.name,
            },
            body: Body::Inline(index),
            meta: state.meta.clone(),
            over: None,
            drift: self.on_drift(state.id, seq),
            adopt: self.adopts(),
        };
        self.run(op, Then::New(Box::new(state)));
        Ok(None)
    }

    fn plan_simple(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        queued: &Queued,
    ) -> Result<(), TableError> {
        for state in &queued.record.objects {
            let name = queued
                .record
                .names
                .iter()
                .find(|n| n.object == Some(state.id));
            let slot = name.map(|n| (n.parent, n.name.clone()));
            self.plan_object(wall, t, queued, state, slot, None)?;
            self.add_names(t, &queued.record, state.id)?;
        }
        Ok(())
    }

    /// Plans what is missing of one object. `slot` is its new name if it is to be made there;
    /// `over` what is known to sit at that name.
    pub(super) fn plan_object(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        queued: &Queued,
        state: &ObjectState,
        slot: Option<Slot>,
        over: Option<Known>,
    ) -> Result<(), TableError> {
        let seq = queued.record.seq;
        let content = content_of(queued, state.id);
        let row = object(t, state.id)?;
        // A name that it has lost since, with the folder, where it lives on by others.
        let is_lost = |slot: &Slot| match &row {
            Some(ObjectRow::Live(row)) => !row.names.is_empty() && !row.names.contains(slot),
            _ => false,
        };
        let slot = slot.filter(|slot| !is_lost(slot));
        match (row, slot) {
            (Some(ObjectRow::Live(row)), _)
                if row.state.version.seq > seq
                    && content.is_some()
                    && (row.local.is_none() || row.state.content_seq < state.content_seq)
                    && !self.parked.contains(state.id)
                    && self.fetches.get_mut(state.id).is_none() =>
            {
                // It was wanted on a subscription that ended, and renamed or changed since.
                let mut wanted = row.state;
                if wanted.content_seq < state.content_seq {
                    wanted.content_seq = state.content_seq;
                    wanted.content = state.content.clone();
                }
                self.plan_content(wall, t, seq, &wanted, content, over)
            }
            (Some(row), _) if row.seq() > seq => Ok(()),
            (Some(ObjectRow::Live(row)), _) if row.local.is_some() => {
                if row.state.version.seq == seq && row.state == *state {
                    return Ok(());
                }
                self.plan_change(wall, t, seq, state, content, row)
            }
            (Some(ObjectRow::Live(mut row)), None) if state.id.is_root() => {
                row.state = state.clone();
                self.touched.insert(state.id);
                put_live(t, state.id, row)
            }
            (Some(ObjectRow::Live(mut row)), None) => {
                // Known, not here: being fetched, parked, or already gone at the source.
                row.state = state.clone();
                put_live(t, state.id, row)?;
                if let Some(fetch) = self.fetches.get_mut(state.id) {
                    fetch.renew(state.clone());
                    return self.renew_parked(t, state);
                }
                // What nobody waits for was lost in a crash.
                let is_lost = queued.of_snapshot && !self.parked.contains(state.id);
                if content.is_some() || is_lost {
                    self.renew_parked(t, state)?;
                    return self.plan_content(wall, t, seq, state, content, over);
                }
                self.renew_parked(t, state)
            }
            (row, Some(slot)) => {
                if matches!(row, Some(ObjectRow::Gone(by)) if by >= seq) {
                    return Ok(());
                }
                if !self.parent_is_live(t, slot.0)? {
                    return Ok(());
                }
                if let Some(by) = given_since(t, seq, &slot, state.id)? {
                    self.hold = self.hold.max(by);
                    return Ok(());
                }
                if row.is_some() {
                    self.forget_removal(t, state.id)?;
                }
                // The name still knows what sits there, from the first time or from a removal that
                // did not work.
                let over = match access::name(t, slot.0, &slot.1)? {
                    Some(noted) if noted.object.is_none_or(|at| at == state.id) => {
                        over.or(noted.remnant)
                    }
                    _ => over,
                };
                put_name(
                    t,
                    slot.0,
                    &slot.1,
                    NameRow {
                        object: Some(state.id),
                        remnant: over,
                    },
                )?;
                // A record that comes again takes no names back that a later one gave.
                let names = match row {
                    Some(ObjectRow::Live(row)) if row.names.contains(&slot) => row.names,
                    _ => vec![slot],
                };
                let row = LiveObject {
                    state: state.clone(),
                    names,
                    local: None,
                };
                put_live(t, state.id, row)?;
                self.plan_content(wall, t, seq, state, content, over)
            }
            (None, None) if state.id.is_root() => {
                let row = LiveObject {
                    state: state.clone(),
                    names: Vec::new(),
                    local: None,
                };
                self.touched.insert(state.id);
                put_live(t, state.id, row)
            }
            // Never named here: its name's record was skipped because it was gone by then.
            (Some(ObjectRow::Gone(_)) | None, None) => Ok(()),
        }
    }

    fn parent_is_live(&self, t: &dyn TablesRead, parent: ObjectId) -> Result<bool, TableError> {
        Ok(parent.is_root() || live(t, parent)?.is_some())
    }

    /// Plans the making of something that has its rows but is not on the disk.
    pub(super) fn plan_content(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        state: &ObjectState,
        content: Option<(usize, &Inline)>,
        over: Option<Known>,
    ) -> Result<(), TableError> {
        let id = state.id;
        let Some((at, noted)) = self.place_of(t, id)? else {
            return Ok(());
        };
        let over = over.or(noted);
        let drift = self.on_drift(id, seq);
        self.touched.insert(at.folder.id);
        let meta = state.meta.clone();
        match (&state.kind, &state.content) {
            (Kind::Folder, _) => {
                self.touched.insert(id);
                let held = Then::Held(Box::new(state.clone()));
                let left = noted.map(|left| left.identity);
                let left = left.filter(|left| *left != Identity::default());
                self.run(ApplyOp::MakeFolder { id, at, meta, left }, held);
                Ok(())
            }
            (Kind::Symlink, Content::Link(target)) => {
                let held = Then::Held(Box::new(state.clone()));
                let target = target.clone();
                self.run(
                    ApplyOp::MakeLink {
                        id,
                        at,
                        target,
                        meta,
                        over,
                        drift,
                    },
                    held,
                );
                Ok(())
            }
            (Kind::File, _) => self.plan_file(wall, t, seq, state, content, at, over),
            (kind, content) => {
                let held = Then::Held(Box::new(state.clone()));
                let (kind, device) = (*kind, device_of(content));
                let op = ApplyOp::MakeSpecial {
                    id,
                    at,
                    kind,
                    device,
                    meta,
                    over: over.map(|known| known.identity),
                };
                self.run(op, held);
                Ok(())
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one file's facts, used once")]
    fn plan_file(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        state: &ObjectState,
        content: Option<(usize, &Inline)>,
        at: Place,
        over: Option<Known>,
    ) -> Result<(), TableError> {
        let id = state.id;
        let adopt = self.adopts();
        let drift = self.on_drift(id, seq);
        if !adopt && !matches!(content, Some((_, Inline::Here { .. }))) {
            self.suspect_name(t, seq, state, &at)?;
        }
        match content {
            Some((
                index,
                Inline::Here {
                    version,
                    len,
                    hash,
                    mtime,
                },
            )) => {
                let mut state = state.clone();
                if *version > seq {
                    state.content_seq = *version;
                    state.meta.mtime = *mtime;
                    self.hold = self.hold.max(*version);
                }
                state.content = Content::Data {
                    size: u64::from(*len),
                    hash: Some(*hash),
                };
                let (meta, body) = (state.meta.clone(), Body::Inline(index));
                let op = ApplyOp::WriteFile {
                    id,
                    at,
                    body,
                    meta,
                    over,
                    drift,
                    adopt,
                };
                self.run(op, Then::Held(Box::new(state)));
            }
            Some((_, Inline::Removed { by })) => self.hold = self.hold.max(*by),
            Some((_, Inline::Unsettled)) => {
                let reason = "it is changing at the source".to_owned();
                return self.park_content(wall, t, seq, state.clone(), reason);
            }
            Some((_, Inline::Unreadable { reason })) => {
                let reason = format!("the source cannot read it: {reason}");
                return self.park_content(wall, t, seq, state.clone(), reason);
            }
            Some((_, Inline::Pull)) if adopt && over.is_none() => {
                let (size, mtime) = (size_of(&state.content), state.meta.mtime);
                let op = ApplyOp::AdoptFile {
                    id,
                    at,
                    size,
                    mtime,
                    hash: hash_of(&state.content),
                    meta: state.meta.clone(),
                    over: None,
                    drift: OnDrift::Ignore,
                };
                self.run(op, Then::Adopted(Box::new(state.clone())));
            }
            None if state.content_seq < seq && !self.retrying && !self.fetches.has(id) => {
                // An earlier record's, which is claimed already as parked: it stays so.
                let reason = "its content is still to come".to_owned();
                return self.park_content(wall, t, seq, state.clone(), reason);
            }
            Some((_, Inline::Pull | Inline::Sent)) | None => self.fetches.want(seq, state.clone()),
        }
        Ok(())
    }

    pub(super) fn is_suspect(&self, seq: Seq) -> bool {
        self.suspect.is_some_and(|upto| seq <= upto)
    }

    /// A file may have been published before a crash that lost its row, and no content comes now to
    /// replace it: whatever is at its names stays there until that comes, or goes with the name.
    fn suspect_name(
        &mut self,
        t: &mut dyn Tables,
        seq: Seq,
        state: &ObjectState,
        at: &Place,
    ) -> Result<(), TableError> {
        if !self.is_suspect(seq) {
            return Ok(());
        }
        let slot = (at.folder.id, at.name.clone());
        match live(t, state.id)?.and_then(|row| row.local.map(|l| (l, row.state))) {
            Some((local, held)) => {
                let op = ApplyOp::SetMeta {
                    id: state.id,
                    at: Some(at.clone()),
                    identity: local.fingerprint.identity,
                    kind: Kind::File,
                    meta: held.meta,
                    left: None,
                    drift: OnDrift::Ignore,
                };
                self.run(op, Then::Probed(slot));
                Ok(())
            }
            None => super::suspect_published(t, state.id),
        }
    }

    /// Plans the change of something that is on the disk and keeps its name.
    fn plan_change(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        state: &ObjectState,
        content: Option<(usize, &Inline)>,
        mut row: LiveObject,
    ) -> Result<(), TableError> {
        let held_newer = row.state.content_seq >= state.content_seq;
        let brings = content.is_some_and(|(_, c)| !matches!(c, Inline::Sent)) && !held_newer;
        if brings || (state.kind == Kind::File && !held_newer) {
            if let Some(fetch) = self.fetches.get_mut(state.id) {
                fetch.renew(state.clone());
                if !matches!(content, Some((_, Inline::Here { .. }))) {
                    return Ok(());
                }
                self.fetches.remove(state.id);
            }
            let over = row.known();
            return self.plan_content(wall, t, seq, state, content, over);
        }
        if let Some(fetch) = self.fetches.get_mut(state.id) {
            fetch.renew(state.clone());
            return Ok(());
        }
        let mut state = state.clone();
        if held_newer && state.kind == Kind::File {
            // Content of a later version came ahead: it keeps the time that belongs to it.
            if row.state.content_seq > state.content_seq {
                state.meta.mtime = row.state.meta.mtime;
            }
            state.content_seq = row.state.content_seq;
            state.content = row.state.content.clone();
        }
        if self.parked.contains(state.id) && state.kind == Kind::File {
            return self.renew_parked(t, &state);
        }
        if state.kind == Kind::Folder {
            self.touched.insert(state.id);
            row.state = state;
            return put_live(t, row.state.id, row);
        }
        let Some((at, _)) = self.place_of(t, state.id)? else {
            return Ok(());
        };
        let Some(known) = row.known() else {
            return Ok(());
        };
        let (id, kind, meta) = (state.id, state.kind, state.meta.clone());
        let op = ApplyOp::SetMeta {
            id,
            at: Some(at),
            identity: known.identity,
            kind,
            meta,
            left: known.left,
            drift: self.on_drift(id, seq),
        };
        self.run(op, Then::Meta(Box::new(state)));
        Ok(())
    }

    /// Folders in which something changed get their own times again.
    fn plan_touched(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        for id in std::mem::take(&mut self.touched) {
            if self.blocking.contains_key(&id) {
                // Once it is moved.
                continue;
            }
            let Some(row) = live(t, id)? else { continue };
            if self.is_theirs(row.slot()) {
                // As others want it, until they are told otherwise.
                self.unpark(t, id)?;
                continue;
            }
            let at = if id.is_root() {
                None
            } else {
                match self.place_of(t, id)? {
                    Some((at, _)) => Some(at),
                    None => continue,
                }
            };
            let identity = match &row.local {
                Some(local) => local.fingerprint.identity,
                None if id.is_root() => Identity::default(),
                None => continue,
            };
            let (kind, meta) = (Kind::Folder, row.state.meta);
            self.run(
                ApplyOp::SetMeta {
                    id,
                    at,
                    identity,
                    kind,
                    meta,
                    left: None,
                    drift: OnDrift::Ignore,
                },
                Then::Touched,
            );
        }
        Ok(())
    }

    /// Where an object's first name is, and what is known to sit there.
    pub(super) fn place_of(
        &mut self,
        t: &dyn TablesRead,
        id: ObjectId,
    ) -> Result<Option<(Place, Option<Known>)>, TableError> {
        let Some(row) = live(t, id)? else {
            return Ok(None);
        };
        let Some((parent, name)) = row.slot().cloned() else {
            return Ok(None);
        };
        let Some(folder) = self.folders.at(t, parent)? else {
            return Ok(None);
        };
        let remnant = access::name(t, parent, &name)?.and_then(|n| n.remnant);
        let over = remnant.or_else(|| row.known());
        Ok(Some((Place { folder, name }, over)))
    }

    pub(super) fn run(&mut self, op: ApplyOp, then: Then) {
        self.running.push(Running { op, then });
    }
}

/// A file's hash, where it is known.
pub(super) fn hash_of(content: &Content) -> Option<Hash> {
    match content {
        Content::Data { hash, .. } => *hash,
        _ => None,
    }
}

fn device_of(content: &Content) -> u64 {
    match content {
        Content::Device(number) => *number,
        _ => 0,
    }
}

/// How a record is to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// It only makes things that the ledger has never heard of, at free names.
    New,
    /// It only makes things at free names, or changes things where they are. As the one above, it
    /// may be applied side by side with others.
    Simple,
    /// It removes or moves something.
    Structure,
}

impl Shape {
    fn of(t: &dyn TablesRead, record: &Record) -> Result<Self, TableError> {
        if !record.removed.is_empty() {
            return Ok(Self::Structure);
        }
        let mut shape = Self::New;
        for name in &record.names {
            let Some(id) = name.object else {
                return Ok(Self::Structure);
            };
            if access::name(t, name.parent, &name.name)?.is_some() {
                return Ok(Self::Structure);
            }
            match object(t, id)? {
                None => {}
                Some(ObjectRow::Gone(_)) => shape = Self::Simple,
                Some(ObjectRow::Live(_)) => return Ok(Self::Structure),
            }
        }
        Ok(shape)
    }
}

fn content_of(queued: &Queued, id: ObjectId) -> Option<(usize, &Inline)> {
    let found = queued.contents.iter().find(|(of, ..)| *of == id);
    found.map(|(_, index, content)| (*index, content))
}
