//! A source, a target and what is between them, run by one seed until both are equal.

use super::check;
use super::disk::ROOT;
use super::link::{Session, ToSource, ToTarget};
use super::rng::Rng;
use super::source::{SourceSim, SourceTuning};
use super::target::{TargetSim, TargetTuning, Trouble};
use super::workload::{Workload, WorkloadTuning};
use crate::filter::{Filter, FilterSpec};
use crate::job::Drift;
use crate::ledger::object::Seq;
use crate::ledger::tables::Table;
use crate::path::Name;
use crate::replica::{PARKED_MAX, Replica};

/// What one run is made of.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Operations of the workload.
    pub operations: usize,
    /// The job's filter.
    pub filter: FilterSpec,
    /// The source.
    pub source: SourceTuning,
    /// The target.
    pub target: TargetTuning,
    /// The changes.
    pub workload: WorkloadTuning,
    /// One in so many rounds kills the source; zero for never. The others alike.
    pub source_crash: usize,
    /// ... kills the target.
    pub target_crash: usize,
    /// ... cuts the connection.
    pub cut: usize,
    /// One way, in microseconds.
    pub latency_us: u64,
    /// Whether answers of fetches overtake batches and come twice, and messages of subscriptions
    /// that ended come late.
    pub unruly: bool,
    /// One in so many rounds cuts the target's power.
    pub power_cut: usize,
    /// ... makes the target's disk fail for a while.
    pub trouble: usize,
    /// Whether somebody accepts what halts the source; else they only look at it again, until the
    /// changes end.
    pub accepts: bool,
    /// One in so many rounds drops most of the source's log; zero for never.
    pub trim: usize,
}

impl Scenario {
    /// A scenario drawn from a seed.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let mut some = |values: &[usize]| values[rng.below(values.len())];
        let filters: [(&[&str], &[&str]); 6] = [
            (&[], &[]),
            (&[], &[]),
            (&[], &["skip", r"\.tmp$"]),
            (&[r"\.txt$", "keep"], &[]),
            (&["^a/", "^b/.*txt$", r"(^|/)c/$"], &["skip"]),
            (&[r"(^|/)a/"], &[r"(^|/)b/"]),
        ];
        let (include, exclude) = filters[some(&[0, 1, 2, 3, 4, 5])];
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        Self {
            operations: some(&[20, 60, 100, 200]),
            filter: FilterSpec {
                include: list(include),
                exclude: list(exclude),
            },
            source: SourceTuning {
                delay_us: some(&[0, 300, 3000, 20_000]),
                reorder: some(&[0, 0, 5]),
                queue: some(&[0, 0, 0, 5]),
                lazy: some(&[0, 0, 3]),
                fail: some(&[0, 0, 0, 20]),
                tight: some(&[0, 0, 0, 1]) == 1,
                buffer: 0,
                free: 0,
                scan_every: None,
                recheck: false,
            },
            target: TargetTuning {
                fail: some(&[0, 0, 10, 40]),
                ops_per_round: some(&[0, 1, 3]),
                sync_us: [0, 1000, 20_000][some(&[0, 1, 2])],
                adopt: false,
                power: false,
                check_every_ms: None,
                others: 0,
                drift: Drift::Overwrite,
            },
            workload: WorkloadTuning {
                names: some(&[3, 6, 10]),
                held: some(&[0, 0, 6]),
                outside: some(&[0, 1]) == 1,
                racing: some(&[0, 1]) == 1,
                links: false,
            },
            source_crash: some(&[0, 0, 60, 200]),
            target_crash: some(&[0, 0, 60, 200]),
            cut: some(&[0, 0, 40, 150]),
            latency_us: [0, 100, 5_000, 100_000][some(&[0, 1, 2, 3])],
            unruly: false,
            power_cut: 0,
            trouble: 0,
            accepts: true,
            trim: 0,
        }
    }

    /// A quiet life: nothing fails and nothing is late.
    #[must_use]
    pub fn calm(operations: usize) -> Self {
        Self {
            operations,
            filter: FilterSpec::default(),
            source: SourceTuning::default(),
            target: TargetTuning::default(),
            workload: WorkloadTuning {
                names: 6,
                held: 0,
                outside: true,
                racing: false,
                links: false,
            },
            source_crash: 0,
            target_crash: 0,
            cut: 0,
            latency_us: 100,
            unruly: false,
            power_cut: 0,
            trouble: 0,
            accepts: true,
            trim: 0,
        }
    }
}

/// The whole of it.
#[derive(Debug)]
pub struct World {
    /// The source.
    pub source: SourceSim,
    /// The target.
    pub target: TargetSim,
    /// The changes.
    pub workload: Workload,
    /// The subscription, while it stands.
    pub session: Option<Session>,
    scenario: Scenario,
    filter: Filter,
    rng: Rng,
    /// When a source that is down is started again.
    pub source_back: u64,
    /// How long it takes until a halted source goes on, in nanoseconds.
    pub decided_after: u64,
    /// Up to this record a crash may have left the disk ahead of its ledger.
    ahead: Seq,
    target_back: u64,
    trouble_ends: u64,
    session_back: u64,
    /// Messages of subscriptions that ended, with when they arrive.
    late: Vec<(u64, ToTarget)>,
    rough: Rng,
    rounds: u64,
    /// How often the target's rows and disk had changed when its copies were looked at last.
    looked_at: (u64, u64),
    named: check::Named,
}

/// Of how many rows all copies are looked at whenever anything changed; in fewer rounds where there
/// are more.
const LOOK_AT: u64 = 256;

/// How many rounds a world has to come to rest.
const SETTLE_ROUNDS: usize = 6000;

impl World {
    /// A world at rest: both sides up, nothing connected yet.
    ///
    /// # Panics
    /// When the scenario's filter does not compile.
    #[must_use]
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let filter = Filter::new(&scenario.filter).expect("the scenario's filter compiles");
        let mut source = SourceSim::new(filter.clone(), scenario.source, seed ^ 0xa1);
        let mut target = TargetSim::new(filter.clone(), scenario.target, seed ^ 0xb2);
        let reserved = Name::new(b".cdsync").expect("a name");
        let marker = target
            .disk
            .mkdir(ROOT, &reserved)
            .expect("the root is empty");
        let name = Name::new(b"root").expect("a name");
        let file = target.disk.create_file(marker, &name).expect("it is new");
        target.disk.write(file, b"marker");
        target.disk.close(file);
        let workload = Workload::new(scenario.workload, scenario.operations, seed ^ 0xc3);
        source.accepts = scenario.accepts;
        source.start();
        target.start();
        Self {
            source,
            target,
            workload,
            session: None,
            scenario,
            filter,
            rng: Rng::new(seed ^ 0xd4),
            source_back: 0,
            decided_after: 1_000_000_000,
            ahead: Seq(0),
            target_back: 0,
            trouble_ends: 0,
            session_back: 0,
            late: Vec::new(),
            rough: Rng::new(seed ^ 0xe6),
            rounds: 0,
            looked_at: (0, 0),
            named: check::Named::default(),
        }
    }

    /// Changes and faults, until the workload ends.
    pub fn live(&mut self) {
        while self.workload.left > 0 {
            let pause = match self.rng.below(40) {
                0 => 2_000_000,
                1 => 300_000,
                2..=4 => 50_000,
                5..=15 => 4_000,
                _ => 300,
            };
            let pause = 1 + self.rng.below(pause) as u64;
            self.advance(pause);
            for _ in 0..self.rng.below(4) {
                if self.workload.left > 0 {
                    self.workload.act(&mut self.source.disk);
                }
            }
            self.faults();
            self.round();
        }
    }

    /// Lets time pass.
    pub fn advance(&mut self, micros: u64) {
        self.source.disk.clock += micros * 1000;
        self.target.disk.clock = self.source.disk.clock;
    }

    fn faults(&mut self) {
        let now = self.source.disk.clock;
        let mut hit = |of: usize| of > 0 && self.rng.one_in(of);
        let (source, target, cut) = (
            hit(self.scenario.source_crash),
            hit(self.scenario.target_crash),
            hit(self.scenario.cut),
        );
        let (power, trouble) = (hit(self.scenario.power_cut), hit(self.scenario.trouble));
        let pause = self.rng.below(20_000_000) as u64;
        if source && self.source.machine.is_some() {
            self.source.crash();
            self.hang_up();
            self.source_back = now + pause;
            self.workload.history.push("--- source crash".to_owned());
        }
        if (target || power) && self.target.machine.is_some() {
            let head = self.target.machine.as_ref().map_or(Seq(0), Replica::head);
            self.ahead = self.ahead.max(head);
            match power {
                true => self.target.power_cut(),
                false => self.target.crash(),
            }
            self.session = None;
            // What was on its way to the agent that was killed does not reach the next one.
            self.late.clear();
            self.target_back = now + pause;
        }
        if cut {
            self.hang_up();
            self.session_back = now + pause / 2;
        }
        if trouble {
            let all = [Trouble::Full, Trouble::ReadOnly, Trouble::Io];
            self.target.trouble = self.rng.pick(&all).copied();
            self.trouble_ends = now + pause / 4;
        }
        let others = self.target.tuning.others;
        let disturbed = others > 0 && self.rng.one_in(others);
        self.target.drift(disturbed);
        if now >= self.trouble_ends {
            self.target.trouble = None;
        }
    }

    /// The subscription ends. Some of what was on its way arrives all the same, later.
    fn hang_up(&mut self) {
        let Some(session) = self.session.take().filter(|_| self.scenario.unruly) else {
            return;
        };
        let now = self.source.disk.clock;
        for (_, message) in session.pulled {
            if self.rng.one_in(2) {
                let at = now + self.rng.below(10_000_000_000) as u64;
                self.late.push((at, message));
            }
        }
        for (due, message) in session.to_target {
            if self.rough.one_in(2) {
                let longest = [1_000_000, 100_000_000, 5_000_000_000][self.rough.below(3)];
                let at = due.max(now) + self.rough.below(longest) as u64;
                self.late.push((at, message));
            }
        }
    }

    /// One round of everybody.
    pub fn round(&mut self) {
        let now = self.source.disk.clock;
        if self.source.machine.is_none() && now >= self.source_back {
            self.source.start();
        }
        if self.target.machine.is_none() && now >= self.target_back {
            self.target.start();
        }
        let Self {
            source,
            target,
            workload,
            session,
            rng,
            ..
        } = self;
        source.pump(&mut |disk| workload.meanwhile(disk));
        if self.scenario.trim > 0 && rng.one_in(self.scenario.trim) {
            source.trim(rng.below(6) as u64);
            *session = session.take().filter(|session| session.is_served(source));
        }
        if session.is_none() && now >= self.session_back && source.tables.is_durable() {
            let unruly = self.scenario.unruly.then(|| Rng::new(rng.next_u64()));
            *session = Session::open(source, target, now, unruly, rng);
        }
        let latency = self.scenario.latency_us * 1000;
        if let Some(session) = session {
            session.serve(source, now, latency, rng, &mut |disk| {
                workload.meanwhile(disk)
            });
        }
        target.disk.clock = source.disk.clock;
        if self.source.machine.is_none() {
            self.session = None;
            if self.source.halted.is_some() && now >= self.source_back {
                // Somebody looks at it after a while.
                self.source_back = now.saturating_add(self.decided_after);
            }
        }
        self.deliver(now);
        self.deliver_pulled(now);
        let before = self.target.reported;
        for want in self.target.pump() {
            if let Some(session) = &mut self.session {
                session
                    .to_source
                    .push_back((now + latency, ToSource::Fetch(want)));
            }
        }
        for ask in self.target.asks.drain(..) {
            if let Some(session) = &mut self.session {
                session
                    .to_source
                    .push_back((now + latency, ToSource::Compare(ask)));
            }
        }
        let settled = !self.target.is_working() && self.source.tables.is_durable();
        self.check_bounds();
        self.rounds += 1;
        let many = self.target.tables.len(Table::Objects) as u64 / LOOK_AT;
        let now = (self.target.tables.changes(), self.target.disk.age());
        let changed = self.looked_at != now;
        let looks = changed && self.rounds.is_multiple_of(1.max(many * LOOK_AT / 4));
        if looks && self.target.reported >= self.ahead {
            self.looked_at = now;
            check::copies_are_there(&self.target).unwrap_or_else(|broken| panic!("{broken}"));
            self.named.read(&self.source);
            check::names_come_with_content(&self.target, &self.named)
                .unwrap_or_else(|broken| panic!("{broken}"));
        }
        if std::mem::take(&mut self.target.refused) {
            self.session = None;
        }
        // After a crash a disk is ahead of its ledger until the records came again.
        let held = self.target.others.is_none() && self.target.reported >= self.ahead;
        if self.target.reported > before && settled && held {
            let (source, target) = (&self.source, &self.target.tables);
            let claim = self.target.reported;
            check::claim_is_held(source, target, &self.target.disk, claim)
                .unwrap_or_else(|broken| panic!("{broken}"));
        }
    }

    /// What must hold after every round: nothing grows without a bound.
    fn check_bounds(&self) {
        assert!(self.target.inbox.len() <= 2, "more batches than asked for");
        if let Some(replica) = &self.target.machine {
            assert!(replica.parked_count() <= PARKED_MAX, "too many are parked");
        }
        if let Some(machine) = &self.source.machine {
            let most = if self.source.tuning.tight { 2 } else { 1024 };
            // The root stands for what nobody can name.
            assert!(machine.gap_count() <= most + 1, "too many gaps");
        }
    }

    /// Answers of fetches that come on streams of their own, and what subscriptions that ended had on
    /// its way.
    fn deliver_pulled(&mut self, now: u64) {
        let mut due: Vec<_> = self.late.extract_if(.., |(at, _)| *at <= now).collect();
        if let Some(session) = &mut self.session {
            due.extend(session.pulled.extract_if(.., |(at, _)| *at <= now));
        }
        for (_, message) in due {
            match message {
                ToTarget::Fetched(id, result, bytes) => self.target.fetched(id, result, bytes),
                // An agent takes the beginning of a subscription only before that of the next, and
                // only if nothing was claimed since it was asked for.
                ToTarget::Accepted(accepted, from)
                    if self.session.is_none() && self.target.resume() == from =>
                {
                    self.target.accepted(&accepted);
                }
                ToTarget::Batch(header, bodies) if self.target.wants_batch() => {
                    self.target.inbox.push_back((header, bodies));
                }
                ToTarget::Tick(tick) => self.target.tick(&tick),
                _ => {}
            }
        }
    }

    fn deliver(&mut self, now: u64) {
        while let Some(session) = &mut self.session {
            let due = session.to_target.front().is_some_and(|(at, _)| *at <= now);
            if !due {
                break;
            }
            // Ticks come after the records that they cover were taken in.
            let busy = match session.to_target.front() {
                Some((_, ToTarget::Batch(..))) => !self.target.wants_batch(),
                Some((
                    _,
                    ToTarget::Accepted(..) | ToTarget::Snapshot(_) | ToTarget::Compared(_),
                )) => false,
                _ => !self.target.inbox.is_empty(),
            };
            if busy {
                break;
            }
            let Some((_, message)) = session.to_target.pop_front() else {
                break;
            };
            match message {
                ToTarget::Accepted(_, from) if self.target.resume() != from => {
                    // More was claimed since it was asked for: asked for again.
                    self.session = None;
                }
                ToTarget::Accepted(accepted, _) => assert!(
                    self.target.accepted(&accepted),
                    "a target's cursor is always known again"
                ),
                ToTarget::Batch(header, bodies) => self.target.inbox.push_back((header, bodies)),
                ToTarget::Snapshot(snapshot) => assert!(
                    self.target.snapshot(&snapshot),
                    "there is one source, with one ledger"
                ),
                ToTarget::Compared(answer) => self.target.compared(answer),
                ToTarget::Tick(tick) => self.target.tick(&tick),
                ToTarget::Fetched(id, result, bytes) => self.target.fetched(id, result, bytes),
            }
        }
    }

    /// Ends all changes and faults and waits until nothing is left to do.
    ///
    /// # Errors
    /// What is still going on after a long time.
    pub fn settle(&mut self) -> Result<(), String> {
        self.workload.left = 0;
        self.workload.finish(&mut self.source.disk);
        self.source.accepts = true;
        self.target.tuning.fail = 0;
        self.target.trouble = None;
        self.source.tuning.lazy = 0;
        self.source.tuning.fail = 0;
        (self.source_back, self.target_back, self.session_back) = (0, 0, 0);
        self.scenario.latency_us = self.scenario.latency_us.min(1000);
        for round in 0..SETTLE_ROUNDS {
            self.advance(match round {
                0..=500 => 500,
                501..=2000 => 20_000,
                _ => 500_000,
            });
            self.round();
            let quiet = self.source.is_quiet()
                && self.target.is_quiet()
                && self
                    .session
                    .as_ref()
                    .is_some_and(|s| s.is_quiet(&self.source));
            if quiet {
                return Ok(());
            }
        }
        Err(self.restless())
    }

    fn restless(&self) -> String {
        let machine = self.source.machine.as_ref();
        let replica = self.target.machine.as_ref();
        let parked = replica.map(|r| r.parked_rows(&self.target.tables, 5));
        format!(
            "no rest: source quiet {} (waiting {:?}, held {:?}, scanning {:?}, announced {}, head {:?}), \
             target quiet {} (claim {:?}, head {:?}, idle {:?}, in sync {:?}, working {}), \
             parked {:?}, session {:?}",
            self.source.is_quiet(),
            machine.map(|m| m.waiting(5)),
            machine.map(crate::coalescer::Coalescer::held_count),
            machine.map(crate::coalescer::Coalescer::is_scanning),
            self.source.announced(),
            machine.map(crate::coalescer::Coalescer::head),
            self.target.is_quiet(),
            replica.map(Replica::claim),
            replica.map(Replica::head),
            replica.map(Replica::is_idle),
            replica.map(Replica::is_in_sync),
            self.target.is_working(),
            parked,
            self.session.as_ref().map(|s| s.is_quiet(&self.source)),
        )
    }

    /// Compares everything.
    ///
    /// # Errors
    /// What differs.
    ///
    /// # Panics
    /// When a rule is broken.
    pub fn check(&self) -> Result<(), String> {
        check::numbers_are_contiguous(&self.source);
        let marker = self.target.disk.at(".cdsync/root");
        let marker = marker.expect("the marker of the target's root stays");
        assert_eq!(self.target.disk.node(marker).bytes, b"marker");
        let trivial = Filter::new(&FilterSpec::default()).expect("it is empty");
        let wanted = check::tree(&self.source.disk, &self.filter);
        let mut found = check::tree(&self.target.disk, &trivial);
        if let Some(others) = &self.target.others {
            // What others made at names that the source does not have is nobody's business.
            for (path, id) in self.target.disk.walk() {
                if others.is_theirs(id) && !wanted.contains_key(&path) {
                    found.remove(&path);
                }
            }
        }
        let differences = check::differences(&wanted, &found);
        if differences.is_empty() {
            check::ledgers_are_equal(&self.source.tables, &self.target.tables)
        } else {
            Err(differences.join("\n"))
        }
    }

    /// What happened, for a person who looks for the mistake.
    #[must_use]
    pub fn story(&self) -> String {
        let tail = |lines: &mut dyn Iterator<Item = String>| lines.collect::<Vec<_>>().join("\n");
        let others = self.target.others.as_ref();
        let others = others.map(|others| others.history.join("\n"));
        format!(
            "scenario {:#?}\nothers:\n{}\nworkload:\n{}\nsource:\n{}\ntarget:\n{}",
            self.scenario,
            others.unwrap_or_default(),
            tail(&mut self.workload.history.iter().cloned()),
            tail(&mut self.source.history.iter().cloned()),
            tail(&mut self.target.history.iter().cloned()),
        )
    }
}
