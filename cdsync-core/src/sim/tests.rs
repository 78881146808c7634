//! Whole runs by seed. `CDSYNC_SEED=n` replays one with its story, `CDSYNC_SEEDS=count` sets how
//! many are tried.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Proves the smallest thing of all: a file that is created at the source comes to the target.
#[test]
fn a_file_arrives() {
    let mut world = World::new(Scenario::calm(0), 1);
    world.settle().unwrap();
    let name = crate::path::Name::new(b"hello").unwrap();
    let id = world.source.disk.create_file(1, &name).unwrap();
    world.source.disk.write(id, b"hi");
    world.source.disk.close(id);
    world.settle().unwrap();
    world.check().unwrap();
    assert!(world.target.disk.at("hello").is_some());
}

fn run_with_story(seed: u64, story: bool, links: bool) -> Result<(), String> {
    let mut scenario = Scenario::random(&mut Rng::new(seed));
    scenario.workload.links = links;
    scenario.source.recheck = links;
    let mut world = World::new(scenario, seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.live();
        world.settle()?;
        world.check()
    }));
    let failed = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failed)) => failed,
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default(),
    };
    if story {
        println!("{}", world.story());
    }
    Err(failed)
}

/// Proves the promises of the ledger under random changes and faults: after everything came to
/// rest both disks are equal under the filter, claims never said too much, versions never went
/// back, and the numbers have no holes.
#[test]
fn seeds() {
    try_seeds(false);
}

/// Proves the same where files have several names: at the end the same names are one file.
#[test]
fn seeds_with_links() {
    try_seeds(true);
}

fn try_seeds(links: bool) {
    if let Some(seed) = variable("CDSYNC_SEED") {
        if let Err(failed) = run_with_story(seed, true, links) {
            panic!("CDSYNC_SEED={seed}: {failed}");
        }
        return;
    }
    let count = variable("CDSYNC_SEEDS").unwrap_or(2000);
    let first = variable("CDSYNC_FIRST").unwrap_or(0);
    let shown = variable("CDSYNC_SHOW").map_or(10, |n| usize::try_from(n).unwrap_or(10));
    let mut failures = Vec::new();
    for seed in first..first + count {
        if let Err(failed) = run_with_story(seed, false, links) {
            failures.push(format!("CDSYNC_SEED={seed}: {failed}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(shown)].join("\n")
    );
}

/// Proves that one plan rules: whatever happens to masters and agents, to copies of a master and to
/// orders on their way, no agent steps back to older orders, obeys two runs of a master in one term,
/// or obeys what no master ordered; standing orders hold without a master until their lease ends;
/// and in the end all obey the master that is left.
#[test]
fn one_plan_rules() {
    let (first, count) = match variable("CDSYNC_SEED") {
        Some(seed) => (seed, 1),
        None => (0, variable("CDSYNC_SEEDS").unwrap_or(400)),
    };
    for seed in first..first + count {
        let mut world = PlanWorld::new(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| world.run(150)));
        if !matches!(outcome, Ok(Ok(()))) {
            println!("{}", world.history.join("\n"));
            panic!("CDSYNC_SEED={seed}: {outcome:?}");
        }
    }
}

/// Seeds that once broke a promise, with what was behind it.
const BROKEN_BEFORE: &[(u64, &str)] = &[
    (
        3040,
        "a folder's own times were not looked at again when one above it had moved",
    ),
    (13561, "the same, below a folder that moved twice"),
    (19162, "the same, under a filter"),
    (
        13726,
        "a write with its time restored, and a move, while hints were lost",
    ),
    (15736, "the same in a folder that was not in the ledger yet"),
    (
        13907,
        "a folder that was elsewhere when a scan came by was not listed at all",
    ),
    (
        3421,
        "a folder was made where another one was still to be moved away",
    ),
    (
        14926,
        "a file of a lost row was renamed before its content came again",
    ),
    (
        24232,
        "a write in a folder that was taken for gone and entered anew",
    ),
    (
        27337,
        "fetched content was published before its record's removals were done",
    ),
    (
        27880,
        "a claim passed a parked file while a fetch said that it is removed later",
    ),
    (38923, "the same after the claim"),
    (
        38036,
        "a file that moved was written once more within the step of the clock",
    ),
    (
        10874,
        "an older state that was held late took a newer name back when it came again",
    ),
    (
        36129,
        "what a failed removal had left was forgotten when a file without content came",
    ),
    (
        7144,
        "a move out of a folder that went with it could not be tried again",
    ),
    (
        8696,
        "a folder that moved on behind a flush was taken for gone, with a move into it",
    ),
    (10794, "the same, with a copy of it left over"),
    (
        26303,
        "a folder took the place of the one it was in, and what was seen below was doubted for ever",
    ),
    (
        10780,
        "a folder whose look failed in a scan was not listed when it was seen",
    ),
    (
        44067,
        "a scan that failed at its first folder went on as if it were none",
    ),
    (8639, "the same at a name below its root"),
    (
        14249,
        "what a filter took out was not withdrawn when the look at it failed",
    ),
    (
        7396,
        "a folder's own look that failed with that at an excluded name was forgotten",
    ),
    (
        7700,
        "a write was forgotten when the file had moved twice before it was looked at",
    ),
    (
        4370,
        "a file written before a crash stayed when writing it again had failed",
    ),
    (
        36506,
        "a scan that failed at its root ended there, because the root was listed for another reason",
    ),
    (50445, "the same"),
    (
        17443,
        "a write with its time restored, and a move, while nobody watched",
    ),
    (50747, "the same"),
    (52422, "the same"),
    (65824, "the same"),
    (67604, "the same"),
    (73271, "the same"),
    (
        1557,
        "a parked move was forgotten when the file that moved was not read whole",
    ),
];

/// Proves that what once broke a promise does not any more.
#[test]
fn seeds_that_failed_before_pass() {
    for (seed, what) in BROKEN_BEFORE {
        if let Err(failed) = run_with_story(*seed, false, false) {
            panic!("CDSYNC_SEED={seed} ({what}): {failed}");
        }
    }
}

/// Proves that whatever a source's disk fails to show is in the log once it shows it.
#[test]
fn failing_looks_lose_nothing() {
    for seed in 0..200 {
        let scenario = Scenario {
            source: SourceTuning {
                fail: 10,
                ..SourceTuning::default()
            },
            ..Scenario::calm(60)
        };
        let mut world = World::new(scenario, seed);
        world.live();
        let result = world.settle().and_then(|()| world.check());
        if let Err(failed) = result {
            panic!("seed {seed}: {failed}");
        }
    }
}

/// Proves that hints which collapse to gaps of their folders lose nothing, also where the gaps merge
/// into those of the folders above.
#[test]
fn own_overflow_loses_nothing() {
    let count = variable("CDSYNC_SEEDS").unwrap_or(500);
    for seed in 0..count {
        let mut scenario = Scenario::random(&mut Rng::new(seed));
        scenario.source.buffer = 1 + (seed % 6) as usize;
        scenario.source.tight = seed % 2 == 0;
        let mut world = World::new(scenario, seed);
        world.live();
        let result = world.settle().and_then(|()| world.check());
        if let Err(failed) = result {
            panic!("seed {seed}: {failed}");
        }
    }
}

/// Proves that safety scans in the middle of everything disturb nothing.
#[test]
fn safety_scans_disturb_nothing() {
    let (first, count) = match variable("CDSYNC_SEED") {
        Some(seed) => (seed, 1),
        None => (0, variable("CDSYNC_SEEDS").unwrap_or(300)),
    };
    for seed in first..first + count {
        let mut scenario = Scenario::random(&mut Rng::new(seed));
        scenario.source.scan_every = Some(std::time::Duration::from_millis(30));
        let mut world = World::new(scenario, seed);
        world.live();
        let result = world.settle().and_then(|()| world.check());
        if let Err(failed) = result {
            if count == 1 {
                println!("{}", world.story());
            }
            panic!("CDSYNC_SEED={seed}: {failed}");
        }
    }
}
