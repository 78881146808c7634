//! The driver of a target: batches to operations to claims, as an agent's engine does it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::apply::{Bodies, apply};
use super::disk::Disk;
use super::rng::Rng;
use super::tables::{Durability, MemTables};
use crate::filter::Filter;
use crate::ids::ObjectId;
use crate::ledger::object::{Kind, Seq};
use crate::replica::{ApplyOp, ApplyResult, Body, FetchResult, FetchWant, Replica, SweepEntry};
use crate::wire::{Accepted, BatchHeader, Inline, Tick};

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
    /// The highest content version that each object was published with.
    pub published: BTreeMap<ObjectId, Seq>,
    filter: Filter,
    bodies: Vec<Vec<u8>>,
    contents: Vec<Option<Seq>>,
    staged: BTreeMap<ObjectId, (Seq, Vec<u8>)>,
    working: Option<Working>,
    syncing: Option<u64>,
    crashed: bool,
    /// Whether the step before moved something.
    moved: bool,
    rng: Rng,
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
            published: BTreeMap::new(),
            filter,
            bodies: Vec::new(),
            contents: Vec::new(),
            staged: BTreeMap::new(),
            working: None,
            syncing: None,
            crashed: false,
            moved: false,
            rng: Rng::new(seed),
        }
    }

    /// Starts the agent.
    ///
    /// # Panics
    /// When the ledger is damaged, or a claim that was reported is lost.
    pub fn start(&mut self) {
        let machine = Replica::open(&mut self.tables, self.filter.clone(), self.tuning.adopt)
            .expect("the ledger opens");
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

    /// The agent is killed, perhaps in the middle of a step.
    pub fn crash(&mut self) {
        self.tables.crash();
        self.machine = None;
        self.crashed = true;
        self.note("--- crash".to_owned());
    }

    /// Whether it does nothing and waits for nothing but the upstream.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.inbox.is_empty()
            && self.working.is_none()
            && self.syncing.is_none()
            && self
                .machine
                .as_ref()
                .is_some_and(|m| m.is_idle() && m.is_in_sync() && m.parked_count() == 0)
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

    /// A tick came.
    pub fn tick(&mut self, tick: &Tick) {
        if let Some(machine) = &mut self.machine {
            machine.handle_tick(tick);
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
        self.step();
        self.sync();
        self.tables.commit(Durability::Lazy);
        let machine = self.machine.as_mut().expect("it runs");
        let mut wants = Vec::new();
        while let Some(want) = machine.poll_fetch() {
            wants.push(want);
        }
        assert!(wants.len() <= 4, "more fetches at once than promised");
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
        machine
            .handle_batch(header)
            .expect("an honest upstream's batch is taken");
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
        let machine = self.machine.as_mut().expect("it runs");
        let Some(folder) = machine
            .poll_sweep(&mut self.tables)
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
        machine
            .handle_swept(&mut self.tables, &folder, entries)
            .expect("tables do not fail");
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
            // A folder that was made, forgotten by a crash, and then cannot be made again and is
            // renamed leaves its first copy behind: not a case that is promised.
            let spared = matches!(op, ApplyOp::MakeFolder { .. }) && self.crashed
                || matches!(op, ApplyOp::Remove { id, kind, .. }
                    if *kind == Kind::Folder || *id == ObjectId::default());
            let fails = self.tuning.fail > 0 && self.rng.one_in(self.tuning.fail) && !spared;
            let result = if fails {
                ApplyResult::Failed("injected".to_owned())
            } else {
                apply(&mut self.disk, op, &working.bodies)
            };
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

    /// For one object the published version never goes back.
    fn check_version(&mut self, op: &ApplyOp, result: &ApplyResult) {
        let (ApplyOp::WriteFile { id, body, .. }, ApplyResult::Done(_)) = (op, result) else {
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
        let machine = self.machine.as_mut().expect("it runs");
        match self.syncing {
            None if machine.poll_sync() => {
                self.syncing = Some(self.disk.clock + self.tuning.sync_us * 1000);
            }
            Some(at) if at <= self.disk.clock => {
                self.syncing = None;
                machine
                    .handle_synced(&mut self.tables)
                    .expect("tables do not fail");
                let claim = machine.claim();
                self.tables.commit(Durability::Durable);
                assert!(claim >= self.reported, "a claim went back");
                self.reported = claim;
                self.note(format!("claim {claim}"));
            }
            _ => {}
        }
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
        ApplyOp::Move(moves) => moves
            .iter()
            .map(|m| format!("mv {} {} -> {}; ", m.id, at(&m.from), at(&m.to)))
            .collect(),
        ApplyOp::Remove { id, at: place, .. } => format!("rm {id} {}", at(place)),
    }
}
