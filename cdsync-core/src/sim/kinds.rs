//! The kinds of runs. One seed of one kind is one run, always the same.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::bursts::Emptied;
use super::drift::Drifting;
use super::plan::PlanWorld;
use super::rng::Rng;
use super::source::SourceTuning;
use super::world::{Scenario, World};
use crate::job::Drift;

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Random changes and faults.
    Changes,
    /// The same, where files have several names and some are special.
    Links,
    /// Hints collapse to gaps of their folders.
    Overflow,
    /// Safety scans in the middle of everything.
    Patrol,
    /// The source's disk fails to show things.
    Looks,
    /// A root is emptied.
    Emptied,
    /// Nearly every delete is held for a while.
    Held,
    /// Answers of fetches come twice, out of order, and after their subscription has ended.
    Network,
    /// The target's disk is full, read-only or fails for a while, and so do its syncs.
    Troubles,
    /// The target's power is cut, and its disk loses what was not synced.
    Power,
    /// The log is dropped to its last records now and then, and the target is away more often.
    ShortLog,
    /// Others change the target's files.
    Drift,
    /// Masters, agents and their orders.
    Plans,
}

/// A run that broke a promise.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Of which kind.
    pub kind: Kind,
    /// The seed.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
    /// What happened before.
    pub story: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind, seed, what, ..
        } = self;
        write!(
            f,
            "make sim ARGS=\"--kind {kind} --seed {seed}\"\n  {}",
            what.replace('\n', "\n  ")
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is run to its end.
pub(super) trait Bed {
    /// Runs it.
    ///
    /// # Errors
    /// What is wrong at the end; what is wrong on the way is a panic.
    fn run(&mut self) -> Result<(), String>;

    /// What happened, for a person who looks for the mistake.
    fn story(&self) -> String;
}

impl Bed for World {
    fn run(&mut self) -> Result<(), String> {
        self.live();
        self.settle()?;
        self.check()
    }

    fn story(&self) -> String {
        Self::story(self)
    }
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Changes,
        Self::Links,
        Self::Overflow,
        Self::Patrol,
        Self::Looks,
        Self::Emptied,
        Self::Held,
        Self::Network,
        Self::Troubles,
        Self::Power,
        Self::ShortLog,
        Self::Drift,
        Self::Plans,
    ];

    /// What it is called on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::Links => "links",
            Self::Overflow => "overflow",
            Self::Patrol => "patrol",
            Self::Looks => "looks",
            Self::Emptied => "emptied",
            Self::Held => "held",
            Self::Network => "network",
            Self::Troubles => "troubles",
            Self::Power => "power",
            Self::ShortLog => "short-log",
            Self::Drift => "drift",
            Self::Plans => "plans",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Runs one seed.
    ///
    /// # Errors
    /// [`Failed`], with the story.
    pub fn run(self, seed: u64) -> Result<(), Failed> {
        let mut bed = self.bed(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| bed.run()));
        let what = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(what)) => what,
            Err(panic) => panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_default(),
        };
        Err(Failed {
            kind: self,
            seed,
            what,
            story: bed.story(),
        })
    }

    fn bed(self, seed: u64) -> Box<dyn Bed> {
        let mut scenario = Scenario::random(&mut Rng::new(seed));
        match self {
            Self::Changes => {}
            Self::Links => {
                scenario.workload.links = true;
                scenario.source.recheck = true;
            }
            Self::Overflow => {
                scenario.source.buffer = 1 + (seed % 6) as usize;
                scenario.source.tight = seed.is_multiple_of(2);
            }
            Self::Patrol => {
                scenario.source.scan_every = Some(Duration::from_millis(30));
                scenario.target.check_every_ms = Some(30);
            }
            Self::Looks => {
                let source = SourceTuning {
                    fail: 10,
                    ..SourceTuning::default()
                };
                scenario = Scenario {
                    source,
                    ..Scenario::calm(60)
                };
            }
            Self::Held => {
                let mut rng = Rng::new(seed ^ 0xe5);
                scenario.source.free = 1 + rng.below(3) as u64;
                scenario.accepts = rng.one_in(2);
            }
            Self::Network => {
                scenario.unruly = true;
                scenario.cut = 10 + (seed % 50) as usize;
            }
            Self::Troubles => {
                scenario.trouble = 15 + (seed % 30) as usize;
                scenario.target.fail = 0;
                // From there on, so that those before stay what they were.
                scenario.workload.links = seed >= 10_000 && seed.is_multiple_of(2);
                scenario.source.recheck = scenario.workload.links;
            }
            Self::Power => {
                scenario.target.power = true;
                scenario.power_cut = 20 + (seed % 60) as usize;
                scenario.target.fail = 0;
                if seed.is_multiple_of(2) {
                    scenario.trouble = 40;
                }
                scenario.workload.links = seed >= 10_000 && seed.is_multiple_of(3);
                scenario.source.recheck = scenario.workload.links;
            }
            Self::ShortLog => {
                let mut rng = Rng::new(seed ^ 0xf6);
                scenario.trim = [3, 20, 60][rng.below(3)];
                scenario.cut = [15, 40, 100][rng.below(3)];
                scenario.workload.links = rng.one_in(3);
                scenario.source.recheck = scenario.workload.links;
            }
            Self::Drift => {
                let policy = [Drift::Overwrite, Drift::Keep, Drift::Alert][(seed % 3) as usize];
                scenario.target.others = 2 + (seed % 13) as usize;
                scenario.target.drift = policy;
                // After a crash a target may take its own work for others'.
                scenario.target_crash = 0;
                scenario.target.fail = 0;
                return Box::new(Drifting::new(World::new(scenario, seed), policy));
            }
            Self::Emptied => return Box::new(Emptied::new(seed)),
            Self::Plans => return Box::new(PlanWorld::new(seed)),
        }
        Box::new(World::new(scenario, seed))
    }
}
