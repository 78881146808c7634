//! What taking over a root that is not empty would do: the source's names in a ledger of their
//! own, compared with what is on the disk. Nothing is changed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use cdsync_core::filter::{Filter, Verdict};
use cdsync_core::ids::{ObjectId, OriginId};
use cdsync_core::ledger::access::{self, live, put_gone, put_live, put_name};
use cdsync_core::ledger::object::{Content, Kind, ObjectState, Observed, Seq};
use cdsync_core::ledger::record::Record;
use cdsync_core::ledger::rows::{LiveObject, NameRow};
use cdsync_core::ledger::tables::{Table, TableError, Tables};
use cdsync_core::path::RelPath;
use cdsync_core::replica::{Replica, ReplicaError, compared};
use cdsync_core::wire::{
    Accepted, BatchHeader, CompareAnswer, CompareAsk, CompareWhy, Compared, Preview, Snapshot, Tick,
};
use cdsync_fs::{Dir, Durability, LedgerStore, LookWants, ReadView, Root};

use super::TargetError;

/// How many names of each kind are shown.
const NAMES_MAX: usize = 20;
const CACHE_BYTES: usize = 4 << 20;

/// A comparison under way. Its ledger is removed when it is dropped.
#[derive(Debug)]
pub(super) struct PreviewRun {
    file: PathBuf,
    store: LedgerStore,
    filter: Filter,
    origin: OriginId,
    cursor: Seq,
    head: Seq,
    complete: bool,
    compared: Option<Seq>,
    found: Preview,
    /// Compares an empty ledger with the upstream's, whose log does not begin with its first record.
    comparing: Option<Replica>,
}

impl PreviewRun {
    pub(super) fn open(file: &Path, filter: Filter) -> Result<Self, TargetError> {
        remove(file)?;
        let store = LedgerStore::open(file, CACHE_BYTES)?;
        Ok(Self {
            file: file.to_owned(),
            store,
            filter,
            origin: OriginId(0),
            cursor: Seq(0),
            head: Seq(0),
            complete: false,
            compared: None,
            found: Preview::default(),
            comparing: None,
        })
    }

    pub(super) fn found(&self) -> &Preview {
        &self.found
    }

    /// A subscription begins. It sends everything from the start, over what is here: states.
    pub(super) fn begin(&mut self, accepted: &Accepted) {
        self.comparing = None;
        self.cursor = Seq(0);
        self.origin = accepted.origin;
        self.head = accepted.head;
        self.complete = accepted.complete;
    }

    /// A subscription begins with a snapshot: all of it is asked for, into a ledger that is empty.
    pub(super) fn begin_comparison(&mut self, snapshot: &Snapshot) -> Result<(), TargetError> {
        self.cursor = Seq(0);
        self.origin = snapshot.origin;
        self.head = snapshot.at;
        // Else the next sign of life says so.
        self.complete = snapshot.why == CompareWhy::Unknown;
        let replica = self.store.write(Durability::Lazy, |t| {
            for table in [Table::Meta, Table::Objects, Table::Names] {
                t.remove_until(table, &[u8::MAX; 300])?;
            }
            let mut replica = Replica::open(t, self.filter.clone(), true)?;
            replica.handle_snapshot(t, snapshot)?;
            Ok::<_, TargetError>(replica)
        })?;
        self.comparing = Some(replica);
        Ok(())
    }

    /// Takes an answer about the snapshot; gives back why it is refused.
    pub(super) fn take_compared(
        &mut self,
        answer: CompareAnswer,
    ) -> Result<Option<ReplicaError>, TargetError> {
        let Some(replica) = &mut self.comparing else {
            return Ok(None);
        };
        self.store
            .write(Durability::Lazy, |t| replica.handle_compared(t, answer))?;
        Ok(replica.take_refused())
    }

    /// What is to be asked about the snapshot next. Once all is known it is noted.
    pub(super) fn poll_compare(&mut self) -> Result<Option<CompareAsk>, TargetError> {
        let Some(replica) = &mut self.comparing else {
            return Ok(None);
        };
        let ask = replica.poll_compare(&self.store.read()?)?;
        if ask == Some(CompareAsk::Done) {
            self.comparing = None;
            let view = self.store.read()?;
            self.store.write(Durability::Lazy, |t| {
                compared(&view, &mut |object| enter(t, object))
            })?;
            self.cursor = self.head;
        }
        Ok(ask)
    }

    pub(super) fn tick(&mut self, tick: &Tick) {
        self.head = self.head.max(tick.head);
        self.complete = tick.complete;
    }

    pub(super) fn batch(&mut self, header: BatchHeader) -> Result<(), TargetError> {
        self.head = self.head.max(header.head);
        self.store.write(Durability::Lazy, |t| {
            for record in &header.records {
                note(t, record)?;
            }
            Ok::<_, TargetError>(())
        })?;
        if let Some(last) = header.records.last() {
            self.cursor = last.seq;
        }
        Ok(())
    }

    /// Compares once everything announced is here, and again when more was.
    pub(super) fn compare(&mut self, root: &Root) -> Result<(), TargetError> {
        let ready = self.complete && self.cursor >= self.head && self.compared != Some(self.cursor);
        if !ready {
            return Ok(());
        }
        let view = self.store.read()?;
        let mut found = Preview {
            complete: true,
            source_empty: true,
            ..Preview::default()
        };
        let id = ObjectId::root(self.origin);
        access::children(&view, id, &mut |_, _| {
            found.source_empty = false;
            ControlFlow::Break(())
        })?;
        self.folder(&view, &root.top(), Some(id), &RelPath::root(), &mut found)?;
        self.found = found;
        self.compared = Some(self.cursor);
        Ok(())
    }

    /// Compares one folder of the disk. `id` is `None` where the source has none there. Recursion
    /// is as deep as the tree; each level holds one descriptor and one listing.
    fn folder(
        &self,
        view: &ReadView,
        dir: &Dir,
        id: Option<ObjectId>,
        path: &RelPath,
        found: &mut Preview,
    ) -> Result<(), TargetError> {
        let mut entries = Vec::new();
        dir.list(1024, LookWants::default(), &mut |piece| {
            entries.extend(
                piece
                    .into_iter()
                    .filter_map(|(name, seen)| Some((name, seen.ok()?))),
            );
            ControlFlow::Continue(())
        })?;
        for (name, seen) in entries {
            let below = path.join(&name);
            let is_folder = seen.kind == Kind::Folder;
            if self.filter.judge(&below, is_folder) == Verdict::Excluded {
                continue;
            }
            let object = match id {
                Some(id) => access::name(view, id, &name)?.and_then(|row| row.object),
                None => None,
            };
            let state = match object {
                Some(id) => live(view, id)?.map(|row| row.state),
                None => None,
            };
            count(found, &below, &seen, state.as_ref());
            if is_folder {
                let object = state.filter(|s| s.kind == Kind::Folder).map(|s| s.id);
                self.folder(view, &dir.open_folder(&name)?, object, &below, found)?;
            }
        }
        Ok(())
    }
}

impl Drop for PreviewRun {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.file) {
            tracing::debug!(%error, "a preview's file stays");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the agent's own data, which nobody else may write to"
)]
fn remove(file: &Path) -> Result<(), TargetError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TargetError::Reset(error))
        }
        _ => Ok(()),
    }
}

fn count(found: &mut Preview, path: &RelPath, seen: &Observed, state: Option<&ObjectState>) {
    match state {
        None => {
            found.removed += 1;
            if found.removed_names.len() < NAMES_MAX {
                found.removed_names.push(path.to_string());
            }
        }
        Some(state) if equal(seen, state) => found.equal += 1,
        Some(_) => {
            found.replaced += 1;
            if found.replaced_names.len() < NAMES_MAX {
                found.replaced_names.push(path.to_string());
            }
        }
    }
}

/// Equal size and modification time count as equal.
fn equal(seen: &Observed, state: &ObjectState) -> bool {
    seen.kind == state.kind
        && match (&state.content, seen.kind) {
            (Content::Data { size, .. }, Kind::File) => {
                seen.fingerprint.size == *size && seen.meta.mtime == state.meta.mtime
            }
            (Content::Link(target), Kind::Symlink) => seen.link.as_ref() == Some(target),
            (_, kind) => kind == Kind::Folder,
        }
}

/// Enters an object of a snapshot.
fn enter(t: &mut dyn Tables, object: Compared) -> Result<(), TableError> {
    let Compared { state, names } = object;
    let names = names.into_iter().map(|(number, name)| {
        let parent = ObjectId { number, ..state.id };
        (parent, name)
    });
    let names: Vec<_> = names.collect();
    for (parent, name) in &names {
        let row = NameRow {
            object: Some(state.id),
            remnant: None,
        };
        put_name(t, *parent, name, row)?;
    }
    let local = None;
    put_live(
        t,
        state.id,
        LiveObject {
            state,
            names,
            local,
        },
    )
}

/// Notes a record's names and objects.
fn note(t: &mut dyn Tables, record: &Record) -> Result<(), TableError> {
    for id in &record.removed {
        if let Some(row) = live(t, *id)? {
            for (parent, name) in &row.names {
                put_name(
                    t,
                    *parent,
                    name,
                    NameRow {
                        object: None,
                        remnant: None,
                    },
                )?;
            }
            access::bury_below(t, *id, record.seq)?;
            put_gone(t, *id, record.seq)?;
        }
    }
    for state in &record.objects {
        let name = record.names.iter().find(|n| n.object == Some(state.id));
        let names = match (name, live(t, state.id)?) {
            (Some(new), row) => {
                for (parent, old) in row.map(|row| row.names).unwrap_or_default() {
                    let here = access::name(t, parent, &old)?.and_then(|row| row.object);
                    if here == Some(state.id) {
                        put_name(
                            t,
                            parent,
                            &old,
                            NameRow {
                                object: None,
                                remnant: None,
                            },
                        )?;
                    }
                }
                let row = NameRow {
                    object: Some(state.id),
                    remnant: None,
                };
                put_name(t, new.parent, &new.name, row)?;
                vec![(new.parent, new.name.clone())]
            }
            (None, Some(row)) => row.names,
            (None, None) => Vec::new(),
        };
        put_live(
            t,
            state.id,
            LiveObject {
                state: state.clone(),
                names,
                local: None,
            },
        )?;
    }
    Ok(())
}
