//! Whole runs by seed. `CDSYNC_SEEDS=count` sets how many of each kind are tried, `CDSYNC_FIRST=n`
//! where they begin; a seed that fails is told with the command that replays it.

use super::*;

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

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn try_seeds(kind: Kind, usual: u64) {
    let count = variable("CDSYNC_SEEDS").unwrap_or(usual);
    let first = variable("CDSYNC_FIRST").unwrap_or(0);
    let failures: Vec<String> = (first..first + count)
        .filter_map(|seed| kind.run(seed).err())
        .map(|failed| match count {
            // It is being looked at.
            1 => format!("{failed}\n{}", failed.story),
            _ => failed.to_string(),
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed:\n{}",
        failures.len(),
        failures[..failures.len().min(10)].join("\n")
    );
}

/// Proves the promises of the ledger under random changes and faults: after everything came to
/// rest both disks are equal under the filter, claims never said too much, versions never went
/// back, and the numbers have no holes.
#[test]
fn seeds() {
    try_seeds(Kind::Changes, 2000);
}

/// Proves the same where files have several names: at the end the same names are one file.
#[test]
fn seeds_with_links() {
    try_seeds(Kind::Links, 2000);
}

/// Proves the same where the log keeps only its last records and the target is away for longer: it
/// compares, deletes nothing that only moved, and brings nothing back.
#[test]
fn seeds_with_a_short_log() {
    try_seeds(Kind::ShortLog, 500);
}

/// Proves that one plan rules: whatever happens to masters and agents, to copies of a master and to
/// orders on their way, no agent steps back to older orders, obeys two runs of a master in one term,
/// or obeys what no master ordered; standing orders hold without a master until their lease ends;
/// and in the end all obey the master that is left.
#[test]
fn one_plan_rules() {
    try_seeds(Kind::Plans, 400);
}

/// Proves that whatever a source's disk fails to show is in the log once it shows it.
#[test]
fn failing_looks_lose_nothing() {
    try_seeds(Kind::Looks, 200);
}

/// Proves that hints which collapse to gaps of their folders lose nothing, also where the gaps merge
/// into those of the folders above.
#[test]
fn own_overflow_loses_nothing() {
    try_seeds(Kind::Overflow, 500);
}

/// Proves that safety scans in the middle of everything disturb nothing.
#[test]
fn safety_scans_disturb_nothing() {
    try_seeds(Kind::Patrol, 300);
}

/// Proves promise 4: of a root that is emptied in place, in whatever way, running or down, at most
/// 10 files or 1 % have gone at the target before the job halts; and all go when that is accepted.
#[test]
fn an_emptied_source_deletes_little() {
    try_seeds(Kind::Emptied, 150);
}

/// Proves that random changes converge where nearly every delete is held for a while and bursts
/// halt the source, with somebody who accepts or only looks again.
#[test]
fn held_deletes_converge() {
    try_seeds(Kind::Held, 300);
}

/// Proves that answers of fetches may come twice, overtake batches, and come after the subscription
/// that asked for them has ended.
#[test]
fn an_unruly_network_loses_nothing() {
    try_seeds(Kind::Network, 300);
}

/// Proves that a disk that is full, read-only or fails for a while, and does not sync, loses nothing
/// that was claimed, and that everything is there once it works again.
#[test]
fn a_failing_disk_loses_nothing() {
    try_seeds(Kind::Troubles, 300);
}

/// Proves that a power cut, after which a disk has lost what was not synced and holds torn files,
/// loses nothing that was claimed, and that everything is whole in the end.
#[test]
fn a_power_cut_loses_nothing() {
    try_seeds(Kind::Power, 300);
}

/// Proves that what others change in a target is told when it is replaced, or stays where the job says
/// so, and that everything is equal once the source has touched it.
#[test]
fn drift_is_told_or_kept() {
    try_seeds(Kind::Drift, 300);
}

/// Seeds that once broke a promise, with what was behind it.
const BROKEN_BEFORE: &[(Kind, u64, &str)] = &[
    (
        Kind::ShortLog,
        14364,
        "a folder that was not the one at its name was tried again for ever",
    ),
    (
        Kind::ShortLog,
        12351,
        "an old record took a name back that a comparison had given to another object",
    ),
    (
        Kind::ShortLog,
        15030,
        "the same, and it was claimed without what had come since",
    ),
    (
        Kind::ShortLog,
        12410,
        "what a stuck folder was to replace counted as the folder, and all in it as lost",
    ),
    (
        Kind::Links,
        10422,
        "a name that was left before its object was given up was noted to be there",
    ),
    (
        Kind::Links,
        12629,
        "an earlier version stayed at a name that waited for its link",
    ),
    (
        Kind::Network,
        7480,
        "a folder was moved below itself, as what leads out of it did not",
    ),
    (
        Kind::Troubles,
        19,
        "a file that waited to be moved came to a later name without its content",
    ),
    (
        Kind::ShortLog,
        789,
        "of what a comparison brings, a file with a new name was not asked for",
    ),
    (
        Kind::Changes,
        3040,
        "a folder's own times were not looked at again when one above it had moved",
    ),
    (
        Kind::Changes,
        13561,
        "the same, below a folder that moved twice",
    ),
    (Kind::Changes, 19162, "the same, under a filter"),
    (
        Kind::Changes,
        13726,
        "a write with its time restored, and a move, while hints were lost",
    ),
    (
        Kind::Changes,
        15736,
        "the same in a folder that was not in the ledger yet",
    ),
    (
        Kind::Changes,
        13907,
        "a folder that was elsewhere when a scan came by was not listed at all",
    ),
    (
        Kind::Changes,
        3421,
        "a folder was made where another one was still to be moved away",
    ),
    (
        Kind::Changes,
        14926,
        "a file of a lost row was renamed before its content came again",
    ),
    (
        Kind::Changes,
        24232,
        "a write in a folder that was taken for gone and entered anew",
    ),
    (
        Kind::Changes,
        27337,
        "fetched content was published before its record's removals were done",
    ),
    (
        Kind::Changes,
        27880,
        "a claim passed a parked file while a fetch said that it is removed later",
    ),
    (Kind::Changes, 38923, "the same after the claim"),
    (
        Kind::Changes,
        38036,
        "a file that moved was written once more within the step of the clock",
    ),
    (
        Kind::Changes,
        10874,
        "an older state that was held late took a newer name back when it came again",
    ),
    (
        Kind::Changes,
        36129,
        "what a failed removal had left was forgotten when a file without content came",
    ),
    (
        Kind::Changes,
        7144,
        "a move out of a folder that went with it could not be tried again",
    ),
    (
        Kind::Changes,
        8696,
        "a folder that moved on behind a flush was taken for gone, with a move into it",
    ),
    (
        Kind::Changes,
        10794,
        "the same, with a copy of it left over",
    ),
    (
        Kind::Changes,
        26303,
        "a folder took the place of the one it was in, and what was seen below was doubted for ever",
    ),
    (
        Kind::Changes,
        10780,
        "a folder whose look failed in a scan was not listed when it was seen",
    ),
    (
        Kind::Changes,
        44067,
        "a scan that failed at its first folder went on as if it were none",
    ),
    (Kind::Changes, 8639, "the same at a name below its root"),
    (
        Kind::Changes,
        14249,
        "what a filter took out was not withdrawn when the look at it failed",
    ),
    (
        Kind::Changes,
        7396,
        "a folder's own look that failed with that at an excluded name was forgotten",
    ),
    (
        Kind::Changes,
        7700,
        "a write was forgotten when the file had moved twice before it was looked at",
    ),
    (
        Kind::Changes,
        4370,
        "a file written before a crash stayed when writing it again had failed",
    ),
    (
        Kind::Changes,
        36506,
        "a scan that failed at its root ended there, because the root was listed for another reason",
    ),
    (Kind::Changes, 50445, "the same"),
    (
        Kind::Changes,
        17443,
        "a write with its time restored, and a move, while nobody watched",
    ),
    (Kind::Changes, 50747, "the same"),
    (Kind::Changes, 52422, "the same"),
    (Kind::Changes, 65824, "the same"),
    (Kind::Changes, 67604, "the same"),
    (Kind::Changes, 73271, "the same"),
    (
        Kind::Changes,
        1557,
        "a parked move was forgotten when the file that moved was not read whole",
    ),
    (
        Kind::Changes,
        2683,
        "what was missing below a folder began anew, for ever, the proof that the folder is gone",
    ),
    (Kind::Changes, 7626, "the same"),
    (Kind::Links, 2477, "the same"),
    (Kind::Patrol, 7233, "the same"),
    (
        Kind::Changes,
        8990,
        "a folder was seen in what it had been in, and nothing told how that came about",
    ),
    (
        Kind::Overflow,
        4472,
        "a folder's own look gave way to what a listing had seen of it before",
    ),
    (
        Kind::Changes,
        5385,
        "a folder that was made anew got the metadata for which it had been parked before",
    ),
    (Kind::Overflow, 4301, "the same"),
    (
        Kind::Links,
        4622,
        "something was tried again between a record's moves and its removals",
    ),
    (Kind::Overflow, 3406, "the same"),
    (Kind::Patrol, 404, "the same"),
    (
        Kind::Links,
        5829,
        "what went with a removed folder was to be moved out of it all the same",
    ),
    (
        Kind::Overflow,
        4614,
        "a record moved something out of a folder that it removes, and it was taken for removed",
    ),
    (
        Kind::Changes,
        9348,
        "something was still in a folder that went from the ledger, and moved with it",
    ),
    (
        Kind::Links,
        3545,
        "a write at one name was forgotten when another name of the file was recorded first",
    ),
    (
        Kind::Links,
        8190,
        "a name that a file got again was left to an older object of the same file",
    ),
    (Kind::Links, 8328, "the same"),
    (Kind::Links, 9894, "the same"),
    (
        Kind::Patrol,
        4927,
        "a safety scan took the place of a listing that had failed",
    ),
    (
        Kind::Network,
        2361,
        "what was to move into a folder that leaves a removed one was removed with it",
    ),
    (Kind::Network, 6427, "the same"),
    (
        Kind::Network,
        4110,
        "the newest state of a file was forgotten when the file was given up",
    ),
    (
        Kind::ShortLog,
        1786,
        "an object waited for what a folder had been in before it was moved",
    ),
    (Kind::ShortLog, 532, "the same"),
    (Kind::ShortLog, 6443, "the same"),
    (
        Kind::Troubles,
        2944,
        "what was in a folder that was lost and made anew was taken for held",
    ),
    (Kind::Troubles, 3481, "the same"),
    (Kind::Troubles, 9184, "the same"),
    (
        Kind::Troubles,
        6152,
        "what was given up with its folder was taken for done",
    ),
    (
        Kind::Troubles,
        6980,
        "what a move was to replace stayed when that was given up",
    ),
    (
        Kind::Power,
        6548,
        "what could not be moved was not verified, and everything waited for it",
    ),
    (Kind::Power, 3433, "the same"),
    (
        Kind::Power,
        1096,
        "a power cut brought back what was removed, and no record told of it again",
    ),
    (
        Kind::Power,
        6421,
        "what a move had not found was removed before a crash, and came back",
    ),
    (
        Kind::Changes,
        9954,
        "what a crash had left in a folder was excluded where that moved to",
    ),
    (Kind::Links, 6198, "the same"),
    (
        Kind::Links,
        12,
        "a link was forgotten because something that could not be moved was to go from its name",
    ),
    (Kind::Links, 9949, "the same"),
    (
        Kind::Links,
        1456,
        "what could not be looked at counted neither as held nor as parked",
    ),
    (
        Kind::Links,
        7746,
        "a file's last name on the disk went with its folder",
    ),
    (
        Kind::Links,
        3048,
        "a record that came again gave a name in a folder that had gone",
    ),
    (
        Kind::ShortLog,
        8562,
        "what was held changed between a question about a range and its answer",
    ),
    (
        Kind::Network,
        238,
        "a file was written into what was at the name of a folder that could not be made",
    ),
    (
        Kind::Troubles,
        8842,
        "what was in a lost folder could not be verified before that was made",
    ),
    (Kind::Troubles, 4841, "the same"),
    (
        Kind::Troubles,
        1726,
        "content that came ahead of its record was noted with the size and hash of the one before",
    ),
    (
        Kind::Troubles,
        1255,
        "a removal that failed was forgotten when another one worked",
    ),
    (
        Kind::Network,
        940,
        "a late tick took back that the source's first scan had ended",
    ),
    (
        Kind::Troubles,
        2506,
        "what a record left at a name was forgotten with its subscription",
    ),
    (
        Kind::ShortLog,
        585,
        "a folder was to be removed for ever where another one was by then",
    ),
    (Kind::ShortLog, 4398, "the same"),
    (Kind::Overflow, 7042, "the same"),
    (
        Kind::ShortLog,
        7089,
        "what a crash left at a name stayed when something else gave the name up",
    ),
    (Kind::ShortLog, 9463, "the same"),
    (Kind::Power, 7688, "the same"),
    (
        Kind::Drift,
        5596,
        "what a move was to replace stayed when there was nothing to move",
    ),
    (Kind::Drift, 1678, "the same"),
    (
        Kind::Power,
        1553,
        "a folder waited for ever for what was at its name",
    ),
    (
        Kind::Held,
        9741,
        "what was still to leave a folder that was given up went with what took its place",
    ),
    (
        Kind::Held,
        4969,
        "a write at a name that is not carried was forgotten when the file came back",
    ),
    (
        Kind::Held,
        5556,
        "a name that went with its folder counted as one that the disk fails to show",
    ),
    (
        Kind::Emptied,
        598,
        "what a failing disk showed late went a little at a time",
    ),
    (
        Kind::Troubles,
        11500,
        "a folder that left one which a scan could not list was not listed where it came to",
    ),
    (
        Kind::ShortLog,
        13358,
        "what may have been published before a crash stayed, though its folder was looked through",
    ),
    (
        Kind::ShortLog,
        11122,
        "what a record of a comparison was about to move was set aside as it had been",
    ),
    (
        Kind::Power,
        19516,
        "what was being written while a sync failed was not verified",
    ),
    (
        Kind::Links,
        18116,
        "a further name that was linked before a crash was not known to be, where the first was",
    ),
];

/// Proves that what once broke a promise does not any more.
#[test]
fn seeds_that_failed_before_pass() {
    for (kind, seed, what) in BROKEN_BEFORE {
        if let Err(failed) = kind.run(*seed) {
            panic!("{what}: {failed}");
        }
    }
}
