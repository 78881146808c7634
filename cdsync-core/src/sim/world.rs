//! A source, a target and what is between them, run by one seed until both are equal.

use super::check;
use super::disk::ROOT;
use super::link::{Session, ToTarget};
use super::rng::Rng;
use super::source::{SourceSim, SourceTuning};
use super::target::{TargetSim, TargetTuning};
use super::workload::{Workload, WorkloadTuning};
use crate::filter::{Filter, FilterSpec};
use crate::path::Name;

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
    target_crashed: bool,
    target_back: u64,
    session_back: u64,
}

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
            target_crashed: false,
            target_back: 0,
            session_back: 0,
        }
    }

    /// Runs a random scenario of a seed to its end.
    ///
    /// # Errors
    /// What differs, or what did not come to rest.
    ///
    /// # Panics
    /// When a rule is broken on the way.
    pub fn run(seed: u64) -> Result<(), String> {
        let scenario = Scenario::random(&mut Rng::new(seed));
        let mut world = Self::new(scenario, seed);
        world.live();
        world.settle()?;
        world.check()
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
        let pause = self.rng.below(20_000_000) as u64;
        if source && self.source.machine.is_some() {
            self.source.crash();
            self.session = None;
            self.source_back = now + pause;
            self.workload.history.push("--- source crash".to_owned());
        }
        if target && self.target.machine.is_some() {
            self.target.crash();
            self.target_crashed = true;
            self.session = None;
            self.target_back = now + pause;
        }
        if cut {
            self.session = None;
            self.session_back = now + pause / 2;
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
        if session.is_none() && now >= self.session_back && source.tables.is_durable() {
            *session = Session::open(source, target, now);
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
        let before = self.target.reported;
        for want in self.target.pump() {
            if let Some(session) = &mut self.session {
                session.to_source.push_back((now + latency, want));
            }
        }
        let settled = !self.target.is_working() && self.source.tables.is_durable();
        // After a crash a disk is ahead of its ledger until the records came again.
        if self.target.reported > before && settled && !self.target_crashed {
            let (source, target) = (&self.source.tables, &self.target.tables);
            let claim = self.target.reported;
            check::claim_is_held(source, target, &self.target.disk, claim)
                .unwrap_or_else(|broken| panic!("{broken}"));
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
                Some((_, ToTarget::Accepted(_))) => false,
                _ => !self.target.inbox.is_empty(),
            };
            if busy {
                break;
            }
            let Some((_, message)) = session.to_target.pop_front() else {
                break;
            };
            match message {
                ToTarget::Accepted(accepted) => assert!(
                    self.target.accepted(&accepted),
                    "a target's cursor is always known again"
                ),
                ToTarget::Batch(header, bodies) => self.target.inbox.push_back((header, bodies)),
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
        self.target.tuning.fail = 0;
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
            replica.map(crate::replica::Replica::claim),
            replica.map(crate::replica::Replica::head),
            replica.map(crate::replica::Replica::is_idle),
            replica.map(crate::replica::Replica::is_in_sync),
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
        check::numbers_are_contiguous(&self.source.tables);
        let marker = self.target.disk.at(".cdsync/root");
        let marker = marker.expect("the marker of the target's root stays");
        assert_eq!(self.target.disk.node(marker).bytes, b"marker");
        let trivial = Filter::new(&FilterSpec::default()).expect("it is empty");
        let wanted = check::tree(&self.source.disk, &self.filter);
        let found = check::tree(&self.target.disk, &trivial);
        let differences = check::differences(&wanted, &found);
        if differences.is_empty() {
            Ok(())
        } else {
            Err(differences.join("\n"))
        }
    }

    /// What happened, for a person who looks for the mistake.
    #[must_use]
    pub fn story(&self) -> String {
        let tail = |lines: &mut dyn Iterator<Item = String>| lines.collect::<Vec<_>>().join("\n");
        format!(
            "scenario {:#?}\nworkload:\n{}\nsource:\n{}\ntarget:\n{}",
            self.scenario,
            tail(&mut self.workload.history.iter().cloned()),
            tail(&mut self.source.history.iter().cloned()),
            tail(&mut self.target.history.iter().cloned()),
        )
    }
}
