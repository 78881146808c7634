//! The driver of a target: batches to operations to claims, as an agent's engine does it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::apply::{Bodies, apply};
use super::disk::{Disk, NodeId};
use super::others::Others;
use super::power::Images;
use super::rng::Rng;
use super::tables::{Durability, MemTables};
use crate::filter::Filter;
use crate::ids::{BootId, ObjectId};
use crate::job::Drift;
use crate::ledger::access::live;
use crate::ledger::object::{Kind, Seq};
use crate::replica::{
    ApplyOp, ApplyResult, Body, Difference, FetchResult, FetchWant, PatrolAsk, Policy, Replica,
    SweepEntry,
};
use crate::wire::{
    Accepted, BatchHeader, CompareAnswer, CompareAsk, Cursor, Inline, Snapshot, Tick,
};

/// How rough a target's life is. All zero: everything at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct TargetTuning {
    /// One in so many operations fails; zero for none.
    pub fail: usize,
    /// How many operations one round does at most; zero for all.
    pub ops_per_round: usize,
    /// How long a sync takes, in microseconds.
    pub sync_us: u64,
    /// Whether foreign content is taken over.
    pub adopt: bool,
    /// Whether its power may fail.
    pub power: bool,
    /// How often it is checked for others' changes, in milliseconds.
    pub check_every_ms: Option<u64>,
    /// In one of so many rounds others change its files; zero for never.
    pub others: usize,
    /// What is done with what they changed.
    pub drift: Drift,
}

/// What is wrong with a target's disk for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing more fits on it.
    Full,
    /// It cannot be written to.
    ReadOnly,
    /// It fails now and then.
    Io,
}

impl Trouble {
    /// What the disk says to an operation.
    fn refuses(self, op: &ApplyOp, rng: &mut Rng) -> Option<&'static str> {
        let makes = !matches!(
            op,
            ApplyOp::Remove { .. }
                | ApplyOp::Move(_)
                | ApplyOp::SetMeta { .. }
                | ApplyOp::Verify { .. }
                | ApplyOp::Check { .. }
        );
        match self {
            Self::Full => makes.then_some("no space left on device"),
            Self::ReadOnly => {
                let writes = !matches!(op, ApplyOp::Verify { .. } | ApplyOp::Check { .. });
                writes.then_some("read-only file system")
            }
            Self::Io => rng.one_in(2).then_some("input/output error"),
        }
    }

    fn fails_sync(self, rng: &mut Rng) -> bool {
        match self {
            Self::Full => false,
            Self::ReadOnly => true,
            Self::Io => rng.one_in(2),
        }
    }
}

#[derive(Debug)]
struct Working {
    ops: Arc<Vec<ApplyOp>>,
    /// Indexes still to do, in reverse order.
    todo: Vec<usize>,
    results: Vec<Option<ApplyResult>>,
    bodies: Bodies,
}

/// A target.
#[derive(Debug)]
pub struct TargetSim {
    /// Its disk.
    pub disk: Disk,
    /// Its ledger.
    pub tables: MemTables,
    /// The machine, `None` while the agent is down.
    pub machine: Option<Replica>,
    /// How rough it is.
    pub tuning: TargetTuning,
    /// Batches that wait for their turn.
    pub inbox: VecDeque<(BatchHeader, Vec<Vec<u8>>)>,
    /// The highest claim reported.
    pub reported: Seq,
    /// Every operation so far, newest last, for a failed run's report.
    pub history: VecDeque<String>,
    /// Questions about the upstream's snapshot, not sent yet.
    pub asks: Vec<CompareAsk>,
    /// The highest content version that each object was published with.
    pub published: BTreeMap<ObjectId, Seq>,
    /// The version that each object had when something was last done for it, since the last crash.
    applied: BTreeMap<ObjectId, Seq>,
    filter: Filter,
    bodies: Vec<Vec<u8>>,
    contents: Vec<Option<Seq>>,
    staged: BTreeMap<ObjectId, (Seq, Vec<u8>)>,
    working: Option<Working>,
    syncing: Option<u64>,
    /// Whether the step before moved something.
    moved: bool,
    /// A batch does not fit: the subscription is to be dropped.
    pub refused: bool,
    /// What is wrong with its disk.
    pub trouble: Option<Trouble>,
    /// No sync before this time.
    sync_after: u64,
    /// The run of its system.
    boot: u128,
    images: Option<Images>,
    /// Those who change its files.
    pub(super) others: Option<Others>,
    /// How often a manager accepted what it holds.
    accepts: u64,
    rng: Rng,
    rough: Rng,
}

impl TargetSim {
    /// A target that is not started yet, with an empty root.
    #[must_use]
    pub fn new(filter: Filter, tuning: TargetTuning, seed: u64) -> Self {
        let mut disk = Disk::new();
        disk.watched = false;
        Self {
            disk,
            tables: MemTables::default(),
            machine: None,
            tuning,
            inbox: VecDeque::new(),
            reported: Seq(0),
            history: VecDeque::new(),
            asks: Vec::new(),
            published: BTreeMap::new(),
            applied: BTreeMap::new(),
            filter,
            bodies: Vec::new(),
            contents: Vec::new(),
            staged: BTreeMap::new(),
            working: None,
            syncing: None,
            moved: false,
            refused: false,
            trouble: None,
            sync_after: 0,
            boot: 1,
            images: None,
            others: (tuning.others > 0).then(|| Others::new(seed ^ 0x7f)),
            accepts: 0,
            rng: Rng::new(seed),
            rough: Rng::new(seed ^ 0x5e),
        }
    }

    /// Starts the agent.
    ///
    /// # Panics
    /// When the ledger is damaged, or a claim that was reported is lost.
    pub fn start(&mut self) {
        if self.tuning.power && self.images.is_none() {
            self.images = Some(Images::new(&self.disk, self.rough.next_u64()));
        }
        let mut machine = Replica::open(&mut self.tables, self.filter.clone(), self.tuning.adopt)
            .expect("the ledger opens")
            .with_policy(self.policy());
        machine
            .handle_boot(&mut self.tables, BootId(self.boot))
            .expect("tables do not fail");
        assert!(
            machine.claim() >= self.reported,
            "the claim {} was reported and {} is left",
            self.reported,
            machine.claim()
        );
        self.machine = Some(machine);
        self.tables.commit(Durability::Durable);
        self.inbox.clear();
        self.staged.clear();
        self.working = None;
        self.syncing = None;
    }

    fn policy(&self) -> Policy {
        Policy {
            drift: self.tuning.drift,
            accepts: self.accepts,
            check_every_ms: self.tuning.check_every_ms,
            ..Policy::default()
        }
    }

    /// Whether something of others stays, because the job says so.
    pub(super) fn keeps(&self) -> bool {
        let Some(machine) = &self.machine else {
            return false;
        };
        let parked = machine.parked_rows(&self.tables, usize::MAX);
        let mut parked = parked.expect("tables do not fail").into_iter();
        parked.any(|(_, row)| row.kept.is_some())
    }

    /// A manager accepts what the target holds: what was kept gives way.
    pub(super) fn accept(&mut self) {
        self.accepts += 1;
        let policy = self.policy();
        if let Some(machine) = &mut self.machine {
            machine.handle_policy(policy);
        }
    }

    /// Others do something, sometimes.
    pub(super) fn drift(&mut self, disturbed: bool) {
        if disturbed && let Some(others) = &mut self.others {
            others.act(&mut self.disk);
        }
    }

    /// What is at an operation's name.
    fn at_name(&self, op: &ApplyOp) -> Option<NodeId> {
        let at = op.place()?;
        let folder = self.disk.open(&at.folder).ok()?;
        self.disk.child(folder, &at.name)
    }

    /// The agent is killed, perhaps in the middle of a step.
    pub fn crash(&mut self) {
        self.tables.crash();
        self.machine = None;
        self.applied.clear();
        self.note("--- crash".to_owned());
    }

    /// The power fails, and comes back: the disk and the ledger have lost what was not synced.
    pub fn power_cut(&mut self) {
        self.crash();
        self.boot += 1;
        if let Some(images) = &mut self.images {
            self.disk = images.cut(&self.disk);
        }
        self.note("--- the power was cut".to_owned());
    }

    /// Whether it does nothing and waits for nothing but the upstream.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.inbox.is_empty()
            && self.working.is_none()
            && self.syncing.is_none()
            && self.machine.as_ref().is_some_and(|m| {
                let done = m.is_idle() && m.is_in_sync() && !m.is_verifying();
                done && m.parked_count() == 0
            })
    }

    /// Where it would resume.
    pub(super) fn resume(&self) -> Option<Cursor> {
        self.machine.as_ref().and_then(Replica::resume)
    }

    /// Whether nothing is under way or in doubt, so that the ledger tells what is on the disk.
    pub(super) fn is_certain(&self) -> bool {
        let is_still = |machine: &Replica| machine.is_idle() && !machine.is_verifying();
        self.working.is_none() && self.machine.as_ref().is_some_and(is_still)
    }

    /// Room for one more batch.
    #[must_use]
    pub fn wants_batch(&self) -> bool {
        self.inbox.len() < 2 && self.machine.as_ref().is_some_and(|m| !m.is_full())
    }

    /// The subscription was accepted. `false`: it must start with an empty ledger.
    ///
    /// # Panics
    /// When the ledger is damaged.
    pub fn accepted(&mut self, accepted: &Accepted) -> bool {
        self.inbox.clear();
        let Some(machine) = &mut self.machine else {
            return true;
        };
        let good = machine
            .handle_accepted(&mut self.tables, accepted)
            .expect("tables do not fail");
        self.tables.commit(Durability::Lazy);
        good
    }

    /// The upstream has only a snapshot to begin from. `false`: of another source.
    ///
    /// # Panics
    /// When the ledger is damaged.
    pub fn snapshot(&mut self, snapshot: &Snapshot) -> bool {
        self.inbox.clear();
        self.asks.clear();
        let Some(machine) = &mut self.machine else {
            return true;
        };
        let good = machine
            .handle_snapshot(&mut self.tables, snapshot)
            .expect("tables do not fail");
        self.tables.commit(Durability::Lazy);
        self.note(format!("--- {snapshot:?}"));
        good
    }

    /// An answer about the snapshot came.
    ///
    /// # Panics
    /// When the ledger is damaged, or the answer is refused.
    pub fn compared(&mut self, answer: CompareAnswer) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        if let CompareAnswer::Objects(objects) = &answer {
            let lines = objects
                .iter()
                .map(|object| format!("snapshot has {object:?}"));
            self.history.extend(lines);
        }
        machine
            .handle_compared(&mut self.tables, answer)
            .expect("tables do not fail");
        let refused = machine.take_refused();
        assert!(
            refused.is_none(),
            "an honest answer was refused: {refused:?}"
        );
        self.tables.commit(Durability::Lazy);
    }

    /// A tick came.
    pub fn tick(&mut self, tick: &Tick) {
        if let Some(machine) = &mut self.machine {
            machine.handle_tick(tick);
            if machine.is_idle() {
                // Far more often than is due: whatever comes next must not need them.
                machine
                    .drop_tombstones(&mut self.tables)
                    .expect("tables do not fail");
            }
        }
    }

    /// Content came.
    ///
    /// # Panics
    /// When the ledger is damaged.
    pub fn fetched(&mut self, id: ObjectId, result: FetchResult, bytes: Vec<u8>) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        let version = match &result {
            FetchResult::Staged { version, .. } => *version,
            _ => Seq(0),
        };
        self.history.push_back(format!("fetched {id}: {result:?}"));
        let wanted = machine
            .handle_fetched(self.disk.wall(), &mut self.tables, id, result)
            .expect("tables do not fail");
        if wanted {
            self.staged.insert(id, (version, bytes));
        }
        self.tables.commit(Durability::Lazy);
    }

    /// Whether a step is under way.
    #[must_use]
    pub fn is_working(&self) -> bool {
        self.working.is_some()
    }

    /// One round of the engine. Returns fetches to ask for.
    ///
    /// # Panics
    /// When the machine refuses what an honest upstream sent.
    pub fn pump(&mut self) -> Vec<FetchWant> {
        if self.machine.is_none() {
            return Vec::new();
        }
        self.work();
        let wall = self.disk.wall();
        let machine = self.machine.as_mut().expect("it runs");
        if machine.poll_timeout().is_some_and(|at| at <= wall) {
            machine
                .handle_timeout(wall, &mut self.tables)
                .expect("tables do not fail");
        }
        if machine.is_idle()
            && self.working.is_none()
            && let Some((header, bodies)) = self.inbox.pop_front()
        {
            self.take_batch(header, bodies);
        }
        self.sweep();
        self.verify();
        self.patrol();
        let machine = self.machine.as_mut().expect("it runs");
        machine
            .plan_differences(&mut self.tables)
            .expect("tables do not fail");
        self.step();
        self.sync();
        self.tables.commit(Durability::Lazy);
        let machine = self.machine.as_mut().expect("it runs");
        let ask = machine.poll_compare(&self.tables);
        self.asks.extend(ask.expect("tables do not fail"));
        let mut wants = Vec::new();
        while let Some(want) = machine.poll_fetch() {
            wants.push(want);
        }
        let large = wants.iter().filter(|want| !want.is_small()).count();
        assert!(large <= 4, "more large fetches at once than promised");
        assert!(wants.len() <= 256, "more fetches at once than promised");
        wants
    }

    fn take_batch(&mut self, header: BatchHeader, bodies: Vec<Vec<u8>>) {
        for record in &header.records {
            let (names, objects) = (&record.names, &record.objects);
            let objects: Vec<_> = objects
                .iter()
                .map(|o| format!("{:?}:{:?}@{}", o.id, o.kind, o.content_seq))
                .collect();
            let names: Vec<_> = names
                .iter()
                .map(|n| format!("{:?}/{}={:?}", n.parent, n.name, n.object))
                .collect();
            self.history.push_back(format!(
                "record {}: {} | {} | removed {:?}",
                record.seq,
                names.join(" "),
                objects.join(" "),
                record.removed
            ));
        }
        self.note(format!("contents {:?}", header.contents));
        self.contents = header
            .contents
            .iter()
            .map(|c| match c {
                Inline::Here { version, .. } => Some(*version),
                _ => None,
            })
            .collect();
        self.bodies = bodies;
        let machine = self.machine.as_mut().expect("it runs");
        let taken = machine.handle_batch(header);
        if let Err(error) = taken {
            self.note(format!("refused: {error}"));
            self.refused = true;
            self.inbox.clear();
        }
    }

    fn note(&mut self, line: String) {
        self.history.push_back(line);
        while self.history.len() > 4000 {
            self.history.pop_front();
        }
    }

    fn sweep(&mut self) {
        if self.working.is_some() {
            return;
        }
        let wall = self.disk.wall();
        let machine = self.machine.as_mut().expect("it runs");
        let Some(folder) = machine
            .poll_sweep(wall, &mut self.tables)
            .expect("tables do not fail")
        else {
            return;
        };
        let entries = match self.disk.open(&folder) {
            Ok(id) => self.disk.node(id).children.clone(),
            Err(_) => BTreeMap::new(),
        };
        let entries = entries
            .into_iter()
            .map(|(name, id)| SweepEntry {
                name,
                kind: self.disk.node(id).kind,
                identity: self.disk.node(id).identity,
            })
            .collect();
        self.note(format!("sweep {:?} {}", folder.id, folder.path));
        let machine = self.machine.as_mut().expect("it runs");
        machine
            .handle_swept(self.disk.wall(), &mut self.tables, &folder, entries)
            .expect("tables do not fail");
    }

    /// Checks for others' changes, which nobody makes here.
    fn patrol(&mut self) {
        let wall = self.disk.wall();
        let machine = self.machine.as_mut().expect("it runs");
        if self.working.is_some() || !machine.wants_patrol(wall, wall) {
            return;
        }
        let asked = machine
            .poll_patrol(wall, wall, &mut self.tables)
            .expect("tables do not fail");
        if let Some(PatrolAsk::Names(folder)) = asked {
            let id = self.disk.open(&folder).ok();
            let names = id.map_or_else(Vec::new, |id| {
                self.disk.node(id).children.keys().cloned().collect()
            });
            let foreign = machine
                .handle_patrol_names(wall, &self.tables, &folder, names, true)
                .expect("tables do not fail");
            assert_eq!(foreign, [], "nobody else is here: {}", folder.path);
        }
    }

    fn verify(&mut self) {
        let machine = self.machine.as_mut().expect("it runs");
        if self.working.is_none() && machine.can_verify() {
            machine
                .poll_verify(&self.tables)
                .expect("tables do not fail");
        }
    }

    fn step(&mut self) {
        if self.working.is_some() {
            return;
        }
        let machine = self.machine.as_mut().expect("it runs");
        let wall = self.disk.wall();
        let Some(step) = machine
            .poll_step(wall, &mut self.tables)
            .expect("tables do not fail")
        else {
            let refused = machine.take_refused();
            assert!(
                refused.is_none(),
                "an honest upstream is refused: {refused:?}"
            );
            // Nothing of the batch is left to be done: its contents are dropped.
            self.bodies.clear();
            return;
        };
        if step.moves() || std::mem::replace(&mut self.moved, step.moves()) {
            self.tables.commit(Durability::Durable);
        }
        self.moved = step.moves();
        // Folders first and in their order, then the rest in any.
        let count = step.ops.len();
        let (mut first, mut rest): (Vec<usize>, Vec<usize>) = (0..count)
            .partition(|i| step.ordered || matches!(step.ops[*i], ApplyOp::MakeFolder { .. }));
        self.rng.shuffle(&mut rest);
        first.append(&mut rest);
        first.reverse();
        let staged = self.staged.iter();
        self.working = Some(Working {
            todo: first,
            results: vec![None; count],
            bodies: Bodies {
                inline: self.bodies.clone(),
                staged: staged
                    .map(|(id, (_, bytes))| (*id, bytes.clone()))
                    .collect(),
            },
            ops: step.ops,
        });
        self.work();
    }

    /// Does some of the operations of the step under way.
    fn work(&mut self) {
        let Some(mut working) = self.working.take() else {
            return;
        };
        let mut left = match self.tuning.ops_per_round {
            0 => usize::MAX,
            most => 1 + self.rng.below(most),
        };
        while left > 0
            && let Some(index) = working.todo.pop()
        {
            left -= 1;
            let op = &working.ops[index];
            let fails = self.tuning.fail > 0 && self.rng.one_in(self.tuning.fail);
            let refused = self
                .trouble
                .and_then(|trouble| trouble.refuses(op, &mut self.rough));
            let there = self.others.as_ref().and_then(|_| self.at_name(op));
            let result = match refused {
                Some(reason) => ApplyResult::Failed(reason.to_owned()),
                None if fails => ApplyResult::Failed("injected".to_owned()),
                None => apply(&mut self.disk, op, &working.bodies),
            };
            if let Some(others) = &self.others {
                others.check(op, there, self.at_name(op) != there, &result);
            }
            if let Some(images) = &mut self.images {
                let seen = match &result {
                    ApplyResult::Done(seen) | ApplyResult::Overwrote(seen)
                        if matches!(op, ApplyOp::WriteFile { .. }) =>
                    {
                        seen
                    }
                    _ => &Vec::new(),
                };
                let written = seen.iter().filter_map(|seen| self.disk.by_identity(seen));
                images.changed(&self.disk, written);
                if matches!(result, ApplyResult::Moved(_)) {
                    images.names_synced(&self.disk);
                }
            }
            // Times of folders may be behind after a crash, until what was retried then is done again.
            let is_theirs =
                matches!(&result, ApplyResult::Differs(found) if *found != Difference::Meta);
            assert!(
                !is_theirs || self.others.is_some(),
                "nobody else is here: {} -> {result:?}",
                describe(op)
            );
            let short = match &result {
                ApplyResult::Done(_) | ApplyResult::Found(_) => "done".to_owned(),
                other => format!("{other:?}"),
            };
            self.check_version(op, &result);
            self.note(format!("{} -> {short}", describe(&working.ops[index])));
            working.results[index] = Some(result);
        }
        if !working.todo.is_empty() {
            self.working = Some(working);
            return;
        }
        for op in working.ops.iter() {
            if let ApplyOp::WriteFile {
                id,
                body: Body::Staged(_),
                ..
            } = op
            {
                self.staged.remove(id);
            }
        }
        let results = working.results.into_iter();
        let results = results.map(|r| r.expect("all were done")).collect();
        let machine = self.machine.as_mut().expect("it runs");
        machine
            .handle_applied(self.disk.wall(), &mut self.tables, results)
            .expect("tables do not fail");
        self.tables.commit(Durability::Lazy);
    }

    /// For one object the published version never goes back, nor does that of its name and metadata
    /// while the agent runs.
    fn check_version(&mut self, op: &ApplyOp, result: &ApplyResult) {
        let moved = match op {
            ApplyOp::Move(moves) => moves.iter().map(|one| one.id).collect(),
            _ => Vec::from_iter(op.object()),
        };
        for id in moved {
            let Ok(Some(row)) = live(&self.tables, id) else {
                continue;
            };
            let version = row.state.version.seq;
            let before = self.applied.insert(id, version).unwrap_or_default();
            assert!(
                version >= before,
                "object {id} went from {before} back to {version}"
            );
        }
        let (ApplyOp::WriteFile { id, body, .. }, ApplyResult::Done(_) | ApplyResult::Overwrote(_)) =
            (op, result)
        else {
            return;
        };
        let version = match body {
            Body::Inline(index) => self.contents.get(*index).copied().flatten(),
            Body::Staged(id) => self.staged.get(id).map(|(version, _)| *version),
        };
        let Some(version) = version else { return };
        let before = self.published.insert(*id, version).unwrap_or_default();
        assert!(
            version >= before,
            "object {id} went from version {before} back to {version}"
        );
    }

    fn sync(&mut self) {
        let now = self.disk.clock;
        let machine = self.machine.as_mut().expect("it runs");
        match self.syncing {
            None if now >= self.sync_after && (machine.poll_sync() || machine.poll_flush()) => {
                self.syncing = Some(now + self.tuning.sync_us * 1000);
                if let Some(images) = &mut self.images {
                    images.sync_began(&self.disk);
                }
            }
            Some(at) if at <= now => {
                self.syncing = None;
                let rough = &mut self.rough;
                if self
                    .trouble
                    .is_some_and(|trouble| trouble.fails_sync(rough))
                {
                    self.sync_failed();
                } else {
                    self.synced();
                }
            }
            _ => {}
        }
    }

    fn synced(&mut self) {
        if let Some(images) = &mut self.images {
            images.sync_ended();
        }
        let machine = self.machine.as_mut().expect("it runs");
        machine
            .handle_synced(&mut self.tables)
            .expect("tables do not fail");
        let claim = machine.claim();
        self.tables.commit(Durability::Durable);
        assert!(claim >= self.reported, "a claim went back");
        self.reported = claim;
        self.note(format!("claim {claim}"));
    }

    fn sync_failed(&mut self) {
        if let Some(images) = &mut self.images {
            images.sync_failed(&mut self.disk);
        }
        let machine = self.machine.as_mut().expect("it runs");
        machine
            .handle_sync_failed(&mut self.tables)
            .expect("tables do not fail");
        self.tables.commit(Durability::Durable);
        self.sync_after = self.disk.clock + 500_000_000;
        self.note("a sync failed".to_owned());
    }
}

fn describe(op: &ApplyOp) -> String {
    let at = |at: &crate::replica::Place| at.folder.path.join(&at.name).to_string();
    match op {
        ApplyOp::MakeFolder { id, at: place, .. } => format!("mkdir {id} {}", at(place)),
        ApplyOp::WriteFile {
            id,
            at: place,
            over,
            body,
            ..
        } => format!("write {id} {} over {over:?} {body:?}", at(place)),
        ApplyOp::AdoptFile { id, at: place, .. } => format!("adopt {id} {}", at(place)),
        ApplyOp::MakeLink { id, at: place, .. } => format!("link {id} {}", at(place)),
        ApplyOp::Link { id, at: place, .. } => format!("name {id} {}", at(place)),
        ApplyOp::MakeSpecial { id, at: place, .. } => format!("special {id} {}", at(place)),
        ApplyOp::SetMeta {
            id,
            at: place,
            kind,
            ..
        } => {
            let place = place.as_ref().map(at);
            let folder = if *kind == Kind::Folder { " folder" } else { "" };
            format!("meta{folder} {id} {place:?}")
        }
        ApplyOp::Verify { id, at: place, .. } => format!("verify {id} {}", at(place)),
        ApplyOp::Check { id, at: place, .. } => format!("check {id} {:?}", place.as_ref().map(at)),
        ApplyOp::Move(moves) => moves
            .iter()
            .map(|m| format!("mv {} {} -> {}; ", m.id, at(&m.from), at(&m.to)))
            .collect(),
        ApplyOp::Remove { id, at: place, .. } => format!("rm {id} {}", at(place)),
    }
}
