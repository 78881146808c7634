//! What a check of the root finds, and what becomes of it under each policy.

use super::upkeep::answer;
use super::*;
use crate::job::Drift;
use crate::replica::{Difference, PatrolAsk};

const EVERY: u64 = 1_000;

/// A target under a policy that holds file 2 at `a`, a folder 3 at `d` and file 4 in it.
fn checked(t: &mut MemTables, drift: Drift) -> Replica {
    let policy = Policy {
        drift,
        check_every_ms: Some(EVERY),
        ..Policy::default()
    };
    let mut replica = replica(t).with_policy(policy);
    let mut folder = create(3, 3, "d");
    folder.objects[0] = state(3, 3, Kind::Folder);
    let mut inner = create(4, 4, "b");
    inner.names[0].parent = id(3);
    let made = batch(
        vec![create(2, 2, "a"), folder, inner],
        vec![here(2), here(4)],
    );
    replica.handle_batch(made).unwrap();
    drain(&mut replica, t, &mut |_| true);
    assert_eq!(sync(&mut replica, t), Seq(4));
    replica
}

/// Checks the whole root once. `found` says how each object differs; `foreign` what the root lists
/// besides. Returns what was done besides looking.
fn check(
    replica: &mut Replica,
    t: &mut MemTables,
    clock: &mut WallMillis,
    found: &mut dyn FnMut(u64) -> Option<Difference>,
    foreign: &[&str],
) -> Vec<ApplyOp> {
    let mut done = Vec::new();
    let ended = replica.patrols_ended();
    // The first call only says since when the clock counts.
    assert_eq!(replica.poll_patrol(*clock, *clock, t).unwrap(), None);
    clock.0 += EVERY;
    while replica.patrols_ended() == ended {
        clock.0 += 100;
        match replica.poll_patrol(*clock, *clock, t).unwrap() {
            None | Some(PatrolAsk::Step) => {}
            Some(PatrolAsk::Names(folder)) => {
                let mut listed = Vec::new();
                if folder.path.is_root() {
                    listed.extend(foreign.iter().map(|text| name(text)));
                    listed.extend(["a", "d"].map(name));
                }
                let unknown = replica
                    .handle_patrol_names(*clock, t, &folder, listed, true)
                    .unwrap();
                let entries = unknown.into_iter().map(|name| SweepEntry {
                    name,
                    kind: Kind::File,
                    identity: Identity::default(),
                });
                let entries = entries.collect();
                replica.handle_foreign(*clock, t, &folder, entries).unwrap();
            }
        }
        let ops = answer(replica, t, &mut |op| {
            let number = op.object().map_or(0, |id| id.number);
            match (op, found(number)) {
                (ApplyOp::Check { .. }, Some(found)) => ApplyResult::Differs(found),
                (ApplyOp::Remove { .. }, _) => ApplyResult::Done(Vec::new()),
                _ => {
                    let is_folder = matches!(number, 1 | 3);
                    let kind = if is_folder { Kind::Folder } else { Kind::File };
                    ApplyResult::Done(vec![seen(number, kind)])
                }
            }
        });
        done.extend(
            ops.into_iter()
                .filter(|op| !matches!(op, ApplyOp::Check { .. })),
        );
    }
    done
}

/// Proves that a check looks at everything once, does nothing where all is as it was left, and comes
/// again only when it is due.
#[test]
fn a_check_changes_nothing_that_is_as_it_was() {
    let mut t = MemTables::default();
    let mut replica = checked(&mut t, Drift::Overwrite);
    let (mut clock, mut looked) = (NOW, Vec::new());
    let done = check(
        &mut replica,
        &mut t,
        &mut clock,
        &mut |number| {
            looked.push(number);
            None
        },
        &[],
    );
    assert_eq!(done, []);
    looked.sort_unstable();
    assert_eq!(looked, [1, 2, 3, 4]);
    assert!(!replica.wants_patrol(clock, clock), "not before it is due");
    assert_eq!(replica.drift_report().count, 0);
}

/// Proves that metadata that others changed is set again, that content which they changed or removed
/// is wanted anew, and that what they put there goes to the trash; all of it told by name.
#[test]
fn what_differs_is_brought_back() {
    let mut t = MemTables::default();
    let mut replica = checked(&mut t, Drift::Overwrite);
    let done = check(
        &mut replica,
        &mut t,
        &mut WallMillis(NOW.0),
        &mut |number| match number {
            2 => Some(Difference::Content),
            3 => Some(Difference::Meta),
            4 => Some(Difference::Gone),
            _ => None,
        },
        &["theirs"],
    );
    let meta = |op: &&ApplyOp| matches!(op, ApplyOp::SetMeta { id: of, .. } if *of == id(3));
    assert_eq!(done.iter().filter(meta).count(), 1);
    let removed = done.iter().filter_map(|op| match op {
        ApplyOp::Remove { at, .. } => Some(at.name.clone()),
        _ => None,
    });
    assert_eq!(removed.collect::<Vec<_>>(), [name("theirs")]);
    let parked = replica.parked_rows(&t, 10).unwrap();
    let parked: Vec<u64> = parked.iter().map(|(id, _)| id.number).collect();
    assert_eq!(parked, [2, 4]);
    let report = replica.drift_report();
    assert_eq!((report.count, report.kept), (4, 0));
    for path in ["a", "d", "d/b", "theirs"] {
        assert!(report.names.iter().any(|name| name == path), "{report:?}");
    }
}

/// Proves that under `keep` nothing that others did is touched, that it is parked by name once, that
/// what they undo is forgotten, and that the rest gives way when a manager accepts the source's.
#[test]
fn what_differs_stays_if_the_job_says_so() {
    let mut t = MemTables::default();
    let mut replica = checked(&mut t, Drift::Keep);
    let mut clock = NOW;
    let mut found = |number| match number {
        2 => Some(Difference::Content),
        4 => Some(Difference::Meta),
        _ => None,
    };
    for _ in 0..2 {
        let done = check(&mut replica, &mut t, &mut clock, &mut found, &["theirs"]);
        assert_eq!(done, []);
        let report = replica.drift_report();
        assert_eq!((report.count, report.kept), (3, 3));
    }
    // The mode of one is as it was again.
    let later = |clock: WallMillis| WallMillis(clock.0 + 1_000_000);
    replica.handle_timeout(later(clock), &mut t).unwrap();
    answer(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::Check { id: of, .. } if *of == id(2) => ApplyResult::Differs(Difference::Content),
        ApplyOp::Check { id: of, .. } if *of == id(4) => {
            ApplyResult::Done(vec![seen(4, Kind::File)])
        }
        ApplyOp::Check { .. } => ApplyResult::Differs(Difference::Other),
        op => panic!("{op:?}"),
    });
    assert_eq!(replica.drift_report().kept, 2);
    let accepted = Policy {
        accepts: 1,
        ..replica.policy
    };
    replica.handle_policy(accepted);
    replica.handle_timeout(NOW, &mut t).unwrap();
    let done = answer(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::Check { .. } => ApplyResult::Differs(Difference::Content),
        _ => ApplyResult::Done(Vec::new()),
    });
    let removes = |op: &ApplyOp| matches!(op, ApplyOp::Remove { .. });
    assert!(done.iter().any(removes), "{done:?}");
    assert_eq!(replica.drift_report().kept, 0);
    let parked = replica.parked_rows(&t, 10).unwrap();
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(matches!(parked[0].1.what, ParkedWhat::Content(_)));
}

/// Proves that after a kill nothing is taken for others' work before the records that may have been
/// applied without a trace came again.
#[test]
fn nothing_is_checked_before_the_ledger_is_true() {
    let mut t = MemTables::default();
    let policy = checked(&mut t, Drift::Overwrite).policy;
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut replica = Replica::open(&mut t, filter, false)
        .unwrap()
        .with_policy(policy);
    assert!(!replica.wants_patrol(NOW, NOW), "no upstream yet");
    let accepted = Accepted {
        origin: ORIGIN,
        incarnation: RUN,
        resumed: true,
        head: Seq(5),
        complete: true,
    };
    assert!(replica.handle_accepted(&mut t, &accepted).unwrap());
    assert!(!replica.wants_patrol(NOW, NOW), "record 5 is still to come");
    replica
        .handle_batch(batch(vec![create(5, 5, "c")], vec![here(5)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(5));
    assert!(replica.wants_patrol(NOW, NOW));
}

/// Proves that a name which the disk takes for another one is parked with that reason and told as a
/// loss, and tried at once when the other one is gone.
#[test]
fn a_name_that_is_anothers_here_waits_for_it() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let made = batch(
        vec![create(2, 2, "A"), create(3, 3, "a")],
        vec![here(2), here(3)],
    );
    replica.handle_batch(made).unwrap();
    let clash = |op: &ApplyOp| match op.object() {
        Some(of) if of == id(3) => ApplyResult::Clashes(name("A")),
        Some(of) => ApplyResult::Done(vec![seen(of.number, Kind::File)]),
        None => panic!("{op:?}"),
    };
    answer(&mut replica, &mut t, &mut { clash });
    let parked = replica.parked_rows(&t, 10).unwrap();
    assert_eq!((parked.len(), parked[0].0), (1, id(3)));
    assert_eq!(parked[0].1.reason, "its name is the same as 'A' here");
    let lost = replica.lost_report(&t, 10).unwrap();
    assert_eq!(lost.reasons, [(crate::ledger::loss::Loss::Name, 1)]);
    let gone = batch(vec![remove(4, 2, "A")], Vec::new());
    replica.handle_batch(gone).unwrap();
    answer(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::Remove { .. } => ApplyResult::Done(Vec::new()),
        op => clash(op),
    });
    assert!(
        replica.poll_timeout().is_some_and(|at| at <= NOW),
        "it is tried at once"
    );
    replica.handle_timeout(NOW, &mut t).unwrap();
    answer(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::SetMeta { .. } => ApplyResult::Done(vec![seen(1, Kind::Folder)]),
        op => panic!("{op:?}"),
    });
    assert_eq!(replica.poll_fetch().map(|want| want.object), Some(id(3)));
}
