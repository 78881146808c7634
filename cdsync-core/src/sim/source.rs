//! The driver of a source: hints to looks to records, as an agent's engine does it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use super::disk::{Disk, EPOCH_NANOS, NodeId, ROOT};
use super::rng::Rng;
use super::tables::{Durability, MemTables};
use crate::coalescer::{
    Coalescer, CoalescerConfig, FolderKey, Found, Hint, LookError, LookRequest, Looked, MassDelete,
    Reread, What,
};
use crate::filter::Filter;
use crate::ids::{IncarnationId, ObjectId, OriginId};
use crate::ledger::access::{Folders, log_after};
use crate::ledger::object::{Hash, Observed, Seq};
use crate::ledger::outgoing::{ContentAt, content_at};
use crate::ledger::record::Record;
use crate::ledger::trim::{TrimLimits, drop_tombstones};
use crate::path::Name;
use crate::replica::{FetchResult, FetchWant};
use crate::time::{Instant, WallMillis};

/// What happens to the disk between two calls of the driver.
pub type Meanwhile<'a> = dyn FnMut(&mut Disk) + 'a;

/// How rough a source's life is. All zero: everything at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceTuning {
    /// Hints come this much later at most, in microseconds.
    pub delay_us: usize,
    /// One in so many hints overtakes the one before it; zero for none.
    pub reorder: usize,
    /// How many hints fit into the kernel's queue; zero for any number.
    pub queue: usize,
    /// One in so many commits is lazy; zero for none.
    pub lazy: usize,
    /// One in so many looks and listings fails; zero for none.
    pub fail: usize,
    /// Bounds of the machine small enough to be met.
    pub tight: bool,
    /// How many hints the agent's buffer takes at once, before they collapse to gaps of their
    /// folders; zero for any number.
    pub buffer: usize,
    /// Fewer deletes go at once; zero for the default.
    pub free: u64,
    /// How long after one safety scan the next one begins; `None` for never.
    pub scan_every: Option<Duration>,
    /// What cannot be read as recorded is looked at again: no hint tells of a name that a file got
    /// outside of the root.
    pub recheck: bool,
}

#[derive(Debug)]
struct OpenListing {
    folder: ObjectId,
    node: Result<NodeId, LookError>,
    rest: Vec<Name>,
}

/// A source.
#[derive(Debug)]
pub struct SourceSim {
    /// Its disk.
    pub disk: Disk,
    /// Its ledger.
    pub tables: MemTables,
    /// The machine, `None` while the agent is down.
    pub machine: Option<Coalescer>,
    /// How rough it is.
    pub tuning: SourceTuning,
    /// What the job carries.
    pub filter: Filter,
    /// Whether the first scan has ended.
    pub complete: bool,
    /// Why the guard halted it, until what it held is decided.
    pub halted: Option<MassDelete>,
    /// Whether the next start lets go what was held.
    pub accepts: bool,
    /// Records that were dropped from the log.
    pub dropped: Vec<Record>,
    /// Hints, looks and listings so far, newest last, for a failed run's report.
    pub history: VecDeque<String>,
    queue: VecDeque<(u64, Hint)>,
    listings: Vec<OpenListing>,
    flushing: bool,
    /// A file in doubt, with what reading it again showed.
    rereading: Option<(ContentAt, Reread)>,
    /// Hashes of what was read for sending, not noted yet.
    hashes: Vec<(ObjectId, Seq, Hash)>,
    runs: u64,
    rng: Rng,
    slow: Rng,
}

impl SourceSim {
    /// A source that is not started yet.
    #[must_use]
    pub fn new(filter: Filter, tuning: SourceTuning, seed: u64) -> Self {
        Self {
            disk: Disk::new(),
            tables: MemTables::default(),
            machine: None,
            tuning,
            filter,
            complete: false,
            halted: None,
            accepts: true,
            dropped: Vec::new(),
            history: VecDeque::new(),
            queue: VecDeque::new(),
            listings: Vec::new(),
            flushing: false,
            rereading: None,
            hashes: Vec::new(),
            runs: 0,
            rng: Rng::new(seed),
            slow: Rng::new(seed ^ 0xc3),
        }
    }

    /// The machine's time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(Duration::from_nanos(self.disk.clock - EPOCH_NANOS))
    }

    /// Starts the agent: a new incarnation and a scan.
    ///
    /// # Panics
    /// When the ledger is damaged.
    pub fn start(&mut self) {
        self.runs += 1;
        self.disk.take_events();
        self.queue.clear();
        let root = self.disk.observe(ROOT);
        let defaults = CoalescerConfig::default();
        let config = CoalescerConfig {
            large: 24,
            free_deletes: match self.tuning.free {
                0 => defaults.free_deletes,
                free => free,
            },
            pending_max: if self.tuning.tight { 6 } else { 65_536 },
            gaps_max: if self.tuning.tight { 2 } else { 1024 },
            scan_every: self.tuning.scan_every,
            looks_max: if self.tuning.tight { 3 } else { 2048 },
            ..defaults
        };
        let now = self.now();
        let mut machine = Coalescer::open(
            config,
            self.filter.clone(),
            &mut self.tables,
            OriginId(0x1111_2222_3333_4444),
            IncarnationId(1000 + self.runs),
            &root,
            self.disk.wall(),
        )
        .expect("the ledger opens");
        match &self.halted {
            Some(last) if self.accepts => machine.accept_deletes(last.held),
            Some(last) => machine.recall_deletes(now, last),
            None => {}
        }
        machine.start_scan();
        self.machine = Some(machine);
        self.complete = false;
        self.listings.clear();
        self.rereading = None;
        self.flushing = false;
        self.commit(Durability::Durable);
    }

    /// The agent is killed.
    pub fn crash(&mut self) {
        self.tables.crash();
        self.machine = None;
        self.rereading = None;
        self.hashes.clear();
        self.queue.clear();
        self.disk.take_events();
    }

    /// Drops the log but for so many records, whoever needs them.
    ///
    /// # Panics
    /// When the ledger is damaged.
    pub fn trim(&mut self, keep: u64) {
        let Some(machine) = self.machine.as_mut().filter(|_| self.tables.is_durable()) else {
            return;
        };
        let limits = TrimLimits {
            upto: Seq(machine.announced().0.saturating_sub(keep)),
            claimed: Seq(0),
            before: WallMillis(u64::MAX),
            bytes: u64::MAX,
            most: usize::MAX,
        };
        let before = machine.log_kept().start;
        let mut dropped = Vec::new();
        log_after(&self.tables, before, &mut |_, record| {
            dropped.push(record);
            ControlFlow::Continue(())
        })
        .expect("tables do not fail");
        let start = machine.trim_log(&mut self.tables, limits);
        let Some(start) = start.expect("tables do not fail") else {
            return;
        };
        dropped.retain(|record| record.seq <= start);
        self.dropped.append(&mut dropped);
        self.note(format!("the log was dropped up to {start}"));
        let mut from = Some(ObjectId::default());
        while let Some(at) = from {
            (from, _) =
                drop_tombstones(&mut self.tables, at, start, 3).expect("tables do not fail");
        }
        self.commit(Durability::Durable);
    }

    /// What may be announced.
    #[must_use]
    pub fn announced(&self) -> Seq {
        self.machine.as_ref().map_or(Seq(0), Coalescer::announced)
    }

    /// The last number given.
    #[must_use]
    pub fn tables_head(&self) -> Seq {
        self.machine.as_ref().map_or(Seq(0), Coalescer::head)
    }

    /// Whether everything that happened is in the log, durable.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let now = self.now();
        self.queue.is_empty()
            && self.listings.is_empty()
            && !self.flushing
            && self.tables.is_durable()
            && self.machine.as_ref().is_some_and(|machine| {
                machine.is_settled(now)
                    && machine.waiting(1).is_empty()
                    && machine.held_count() == 0
                    && machine.doubt_count() == 0
                    && machine.announced() == machine.head()
            })
    }

    /// One round of the engine.
    ///
    /// # Panics
    /// When the machine fails.
    pub fn pump(&mut self, meanwhile: &mut Meanwhile<'_>) {
        if self.machine.is_none() {
            self.disk.take_events();
            return;
        }
        let gap = self.receive();
        let clock = self.disk.clock;
        let due = self.queue.iter().take_while(|(at, _)| *at <= clock).count();
        self.take_hints(due, gap);
        self.reread(meanwhile);
        self.look(meanwhile);
        self.list(meanwhile);
        self.flush();
        let machine = self.machine.as_mut().expect("nothing stopped it");
        self.complete |= !machine.is_scanning();
        let written = machine
            .finish(&mut self.tables)
            .expect("tables do not fail");
        let lazy = self.tuning.lazy > 0 && self.rng.one_in(self.tuning.lazy);
        match (written, lazy) {
            (true, true) => self.tables.commit(Durability::Lazy),
            (true, false) => self.commit(Durability::Durable),
            (false, _) if !self.tables.is_durable() && !lazy => self.commit(Durability::Durable),
            (false, _) => self.tables.commit(Durability::Lazy),
        }
        self.obey_guard();
    }

    /// Ends the machine when the guard halts it. What was held is decided once it is settled again.
    fn obey_guard(&mut self) {
        let now = self.now();
        let machine = self.machine.as_ref().expect("nothing stopped it");
        if let Some(halt) = machine.poll_halt().cloned() {
            self.note(format!("halted: {halt:?}"));
            self.commit(Durability::Durable);
            self.machine = None;
            self.halted = Some(halt);
        } else if self.halted.is_some() && machine.is_settled(now) {
            self.halted = None;
        }
    }

    /// Gives the first hints to the machine, or what is left of them when they are too many.
    fn take_hints(&mut self, due: usize, gap: bool) {
        let hints: Vec<Hint> = self.queue.drain(..due).map(|(_, hint)| hint).collect();
        for hint in &hints {
            self.note(format!("hint {hint:?}"));
        }
        let now = self.now();
        let collapsed = self.tuning.buffer > 0 && hints.len() > self.tuning.buffer;
        if collapsed {
            self.note("collapsed".to_owned());
        }
        let machine = self.machine.as_mut().expect("it runs");
        if collapsed {
            let told = hints.iter().filter(|hint| hint.object.is_some());
            let strays = told.map(|hint| Hint {
                folder: FolderKey::Nowhere,
                name: None,
                partner: None,
                ..hint.clone()
            });
            let strays: Vec<Hint> = strays.collect();
            let hints = hints.into_iter();
            let hints = hints.filter(|hint| hint.folder != FolderKey::Nowhere);
            let folders = hints.flat_map(|hint| {
                let partner = hint.partner.map(|(folder, _)| folder);
                [Some(hint.folder), partner].into_iter().flatten()
            });
            let gaps = machine.handle_gaps(now, &self.tables, folders);
            gaps.and_then(|()| machine.handle_hints(now, &self.tables, strays))
        } else {
            machine.handle_hints(now, &self.tables, hints)
        }
        .expect("tables do not fail");
        if gap {
            machine.handle_gap(now);
        }
    }

    /// Reads again what is in doubt, and notes the hashes of what was sent.
    fn reread(&mut self, meanwhile: &mut Meanwhile<'_>) {
        let slow = self.tuning.delay_us > 0;
        if !(slow && self.slow.one_in(3)) {
            let hashes = std::mem::take(&mut self.hashes);
            let machine = self.machine.as_mut().expect("it runs");
            machine
                .handle_hashes(&mut self.tables, hashes)
                .expect("tables do not fail");
        }
        let (now, wall) = (self.now(), self.disk.wall());
        match self.rereading.take() {
            Some(reading) if slow && self.slow.one_in(2) => self.rereading = Some(reading),
            Some((at, reread)) => {
                self.note(format!("read again {}: {reread:?}", at.object));
                let machine = self.machine.as_mut().expect("it runs");
                machine
                    .handle_reread(now, wall, &mut self.tables, &at, reread)
                    .expect("tables do not fail");
            }
            None => {}
        }
        let machine = self.machine.as_mut().expect("it runs");
        let next = machine
            .poll_reread(now, wall, &mut self.tables)
            .expect("tables do not fail");
        if let Some(at) = next {
            let fails = self.tuning.fail > 0 && self.slow.one_in(self.tuning.fail);
            let reread = match self.read_once(&at, meanwhile) {
                _ if fails => Reread::Failed,
                Some(bytes) => Reread::Read(hash(&bytes)),
                None => Reread::Changed,
            };
            self.rereading = Some((at, reread));
        }
    }

    fn note(&mut self, line: String) {
        let micros = self.disk.clock / 1000 % 1_000_000_000;
        self.history.push_back(format!("{micros:>9} us: {line}"));
        while self.history.len() > 4000 {
            self.history.pop_front();
        }
    }

    fn commit(&mut self, durability: Durability) {
        self.tables.commit(durability);
        if let Some(machine) = &mut self.machine {
            machine.handle_committed(machine.head());
        }
    }

    /// Takes what the kernel has. Returns whether something was lost.
    fn receive(&mut self) -> bool {
        let mut gap = false;
        for hint in self.disk.take_events() {
            let delay = self.rng.below(self.tuning.delay_us + 1) as u64 * 1000;
            let due = (self.disk.clock + delay).max(self.queue.back().map_or(0, |(at, _)| *at));
            // The kernel merges an event into one of the same name that nobody has read.
            let merged = self.queue.iter_mut().rev().take(8).find(|(_, waits)| {
                waits.partner.is_none()
                    && hint.partner.is_none()
                    && waits.folder == hint.folder
                    && waits.name == hint.name
                    && (waits.object.is_none()
                        || hint.object.is_none()
                        || waits.object == hint.object)
            });
            if let Some((_, waits)) = merged {
                let (a, b) = (&mut waits.what, hint.what);
                a.created |= b.created;
                a.written |= b.written;
                a.closed |= b.closed;
                a.at_once |= b.at_once;
                a.folder |= b.folder;
                waits.object = waits.object.take().or(hint.object);
                continue;
            }
            if self.tuning.queue > 0 && self.queue.len() >= self.tuning.queue {
                gap = true;
                continue;
            }
            self.queue.push_back((due, hint));
            let last = self.queue.len() - 1;
            let apart = last > 0 && are_apart(&self.queue[last - 1].1, &self.queue[last].1);
            if self.tuning.reorder > 0 && apart && self.rng.one_in(self.tuning.reorder) {
                let (a, b) = (self.queue[last - 1].0, self.queue[last].0);
                self.queue.swap(last - 1, last);
                (self.queue[last - 1].0, self.queue[last].0) = (a, b);
            }
        }
        gap
    }

    fn look(&mut self, meanwhile: &mut Meanwhile<'_>) {
        let now = self.now();
        let machine = self.machine.as_mut().expect("it runs");
        let requests = machine
            .poll_looks(now, &self.tables)
            .expect("tables do not fail");
        if requests.is_empty() {
            self.find_strays();
            return;
        }
        let mut looked = Vec::new();
        for request in requests {
            meanwhile(&mut self.disk);
            let mut look = look_one(&mut self.disk, request, meanwhile);
            fail_some(&mut self.rng, self.tuning.fail, &mut look);
            looked.push(look);
        }
        for look in &looked {
            let names = look.names.iter().map(|(name, seen)| match seen {
                Ok(Some(seen)) => format!("{name}={:?}", seen.fingerprint.identity.inode),
                Ok(None) => format!("{name}=none"),
                Err(error) => format!("{name}={error:?}"),
            });
            let names: Vec<String> = names.collect();
            self.note(format!("looked {}: {}", look.folder, names.join(" ")));
        }
        let (now, wall) = (self.now(), self.disk.wall());
        let machine = self.machine.as_mut().expect("it runs");
        machine
            .handle_looked(now, wall, &mut self.tables, looked)
            .expect("tables do not fail");
    }

    fn find_strays(&mut self) {
        let now = self.now();
        let machine = self.machine.as_mut().expect("it runs");
        let mut found = Vec::new();
        for object in machine.poll_strays(now) {
            let at = match self.disk.find(&object) {
                _ if self.tuning.fail > 0 && self.rng.one_in(self.tuning.fail) => Found::Failed,
                Some(at) => Found::At(at),
                None => Found::Gone,
            };
            found.push((object, at));
        }
        machine
            .handle_strays(now, &mut self.tables, found.clone())
            .expect("tables do not fail");
        for found in found {
            self.note(format!("found {found:?}"));
        }
    }

    fn list(&mut self, meanwhile: &mut Meanwhile<'_>) {
        let now = self.now();
        let machine = self.machine.as_mut().expect("it runs");
        while let Some(request) = machine
            .poll_listing(&self.tables)
            .and_then(|next| match next {
                None => machine.poll_patrol(now, &self.tables),
                some => Ok(some),
            })
            .expect("tables do not fail")
        {
            let mut node = self.disk.open(&request.folder);
            if self.tuning.fail > 0 && self.rng.one_in(self.tuning.fail) {
                node = Err(failure());
            }
            let mut rest: Vec<Name> = match &node {
                Ok(id) => self.disk.node(*id).children.keys().cloned().collect(),
                Err(_) => Vec::new(),
            };
            self.rng.shuffle(&mut rest);
            self.listings.push(OpenListing {
                folder: request.folder.id,
                node,
                rest,
            });
        }
        for mut listing in std::mem::take(&mut self.listings) {
            if self.tuning.delay_us > 0 && self.rng.one_in(3) {
                self.listings.push(listing);
                continue;
            }
            let take = 1 + self.rng.below(4);
            let mut entries = Vec::new();
            if let Ok(node) = listing.node {
                for name in listing.rest.drain(..listing.rest.len().min(take)) {
                    meanwhile(&mut self.disk);
                    let fails = self.tuning.fail > 0 && self.rng.one_in(self.tuning.fail);
                    match self.disk.look(node, &name) {
                        Some(_) if self.disk.covered.contains(&(node, name.clone())) => {
                            entries.push((name, Err(LookError::OtherFilesystem)));
                        }
                        Some(_) if fails => entries.push((name, Err(failure()))),
                        Some(seen) => entries.push((name, Ok(seen))),
                        None => {}
                    }
                }
            }
            let done = listing.rest.is_empty();
            let names: Vec<String> = entries.iter().map(|(n, _)| n.to_string()).collect();
            self.note(format!(
                "listed {}: {} {done}",
                listing.folder,
                names.join(" ")
            ));
            let itself = listing.node.clone().map(|node| self.disk.observe(node));
            let folder = listing.folder;
            let (now, wall) = (self.now(), self.disk.wall());
            let machine = self.machine.as_mut().expect("it runs");
            machine
                .handle_listed(now, wall, &mut self.tables, folder, entries)
                .expect("tables do not fail");
            if done {
                machine
                    .handle_list_end(now, wall, &mut self.tables, folder, itself)
                    .expect("tables do not fail");
            } else {
                self.listings.push(listing);
            }
        }
    }

    fn flush(&mut self) {
        let now = self.now();
        if self.flushing && !(self.tuning.delay_us > 0 && self.rng.one_in(2)) {
            let gap = self.receive();
            self.take_hints(self.queue.len(), gap);
            let machine = self.machine.as_mut().expect("it runs");
            machine.handle_flushed(now);
            self.note("flushed".to_owned());
            self.flushing = false;
        }
        self.flushing |= self.machine.as_mut().expect("it runs").poll_flush();
    }

    /// Reads content as it is now, with the proof that it did not change. The inner `None`: it
    /// changes.
    pub fn read(&mut self, at: &ContentAt, meanwhile: &mut Meanwhile<'_>) -> Option<Vec<u8>> {
        let bytes = self.read_once(at, meanwhile)?;
        self.hashes.push((at.object, at.version, hash(&bytes)));
        Some(bytes)
    }

    fn read_once(&mut self, at: &ContentAt, meanwhile: &mut Meanwhile<'_>) -> Option<Vec<u8>> {
        let Ok(folder) = self.disk.open(&at.folder) else {
            self.note(format!(
                "not read {}: folder {:?} moved",
                at.object, at.folder
            ));
            return None;
        };
        let seen = self
            .disk
            .look(folder, &at.name)
            .map(|seen| seen.fingerprint);
        if seen != Some(at.fingerprint) {
            let wanted = at.fingerprint;
            self.note(format!("not read {}: {seen:?} for {wanted:?}", at.object));
            if self.tuning.recheck {
                self.disk.tell(recheck(at));
            }
            return None;
        }
        let id = self.disk.child(folder, &at.name)?;
        let bytes = self.disk.node(id).bytes.clone();
        meanwhile(&mut self.disk);
        (self.disk.observe(id).fingerprint == at.fingerprint).then_some(bytes)
    }

    /// Answers a fetch.
    ///
    /// # Panics
    /// When the ledger is damaged.
    pub fn fetch(
        &mut self,
        want: FetchWant,
        meanwhile: &mut Meanwhile<'_>,
    ) -> (FetchResult, Vec<u8>) {
        let mut folders = Folders::default();
        let at = content_at(&self.tables, &mut folders, want.object, want.at_least)
            .expect("tables do not fail");
        let at = match at {
            Ok(at) => at,
            Err(by) => return (FetchResult::Removed(by), Vec::new()),
        };
        match self.read(&at, meanwhile) {
            None => (FetchResult::Unsettled, Vec::new()),
            Some(bytes) => {
                let result = FetchResult::Staged {
                    version: at.version,
                    mtime: at.mtime,
                    size: bytes.len() as u64,
                    hash: hash(&bytes),
                };
                (result, bytes)
            }
        }
    }
}

/// Whether two hints speak of different names.
fn are_apart(a: &Hint, b: &Hint) -> bool {
    if a.object.is_some() && a.object == b.object {
        return false;
    }
    let slots = |hint: &Hint| {
        let own = (hint.folder.clone(), hint.name.clone());
        let partner = hint.partner.clone();
        [
            Some(own),
            partner.map(|(folder, name)| (folder, Some(name))),
        ]
    };
    let others = slots(b);
    !slots(a)
        .iter()
        .flatten()
        .any(|slot| others.contains(&Some(slot.clone())))
}

/// What a disk says that fails.
pub(crate) fn failure() -> LookError {
    LookError::Failed("input/output error".to_owned())
}

fn fail_some(rng: &mut Rng, fail: usize, look: &mut Looked) {
    if fail == 0 {
        return;
    }
    for (_, seen) in &mut look.names {
        if rng.one_in(fail) {
            *seen = Err(failure());
        }
    }
    if rng.one_in(fail) {
        look.itself = Err(failure());
    }
}

fn look_one(disk: &mut Disk, request: LookRequest, meanwhile: &mut Meanwhile<'_>) -> Looked {
    let folder = request.folder.id;
    let node = match disk.open(&request.folder) {
        Ok(node) => node,
        Err(error) => {
            let names = request.names.into_iter();
            return Looked {
                folder,
                itself: Err(error.clone()),
                names: names.map(|name| (name, Err(error.clone()))).collect(),
            };
        }
    };
    let mut names: Vec<(Name, Result<Option<Observed>, LookError>)> = Vec::new();
    for name in request.names {
        let seen = match disk.covered.contains(&(node, name.clone())) {
            true => Err(LookError::OtherFilesystem),
            false => Ok(disk.look(node, &name)),
        };
        names.push((name, seen));
        meanwhile(disk);
    }
    Looked {
        folder,
        itself: Ok(disk.observe(node)),
        names,
    }
}

/// Stands for BLAKE3: equal bytes, equal hash.
pub(super) fn hash(bytes: &[u8]) -> Hash {
    let mut rng = Rng::new(bytes.len() as u64);
    let mut state = rng.next_u64();
    for byte in bytes {
        state = Rng::new(state ^ u64::from(*byte)).next_u64();
    }
    let mut out = [0; 32];
    for part in out.chunks_mut(8) {
        state = Rng::new(state).next_u64();
        part.copy_from_slice(&state.to_le_bytes());
    }
    Hash(out)
}

/// As the agent's driver does when a file is not as it was recorded.
fn recheck(at: &ContentAt) -> Hint {
    Hint {
        folder: FolderKey::Path(at.folder.path.clone()),
        name: Some(at.name.clone()),
        what: What {
            closed: true,
            ..What::LOOK
        },
        partner: None,
        object: None,
    }
}
