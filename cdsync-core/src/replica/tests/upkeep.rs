//! What is verified after a crash of the system, and what becomes of others' changes.

use super::*;
use crate::ids::BootId;
use crate::job::Drift;

const FIRST: BootId = BootId(1);
const SECOND: BootId = BootId(2);

/// Carries out every step, each operation with this answer.
pub(super) fn answer(
    replica: &mut Replica,
    t: &mut MemTables,
    what: &mut dyn FnMut(&ApplyOp) -> ApplyResult,
) -> Vec<ApplyOp> {
    let mut all = Vec::new();
    while let Some(step) = replica.poll_step(NOW, t).unwrap() {
        let results = step.ops.iter().map(&mut *what).collect();
        all.extend(step.ops.iter().cloned());
        drop(step);
        replica.handle_applied(NOW, t, results).unwrap();
    }
    all
}

/// A target that holds file 2 as record 2 made it, which no sync covers yet.
fn unsynced(t: &mut MemTables) -> Replica {
    let mut replica = replica(t);
    replica.handle_boot(t, FIRST).unwrap();
    let made = batch(vec![create(2, 2, "a")], vec![here(2)]);
    replica.handle_batch(made).unwrap();
    drain(&mut replica, t, &mut |_| true);
    replica
}

fn again(t: &mut MemTables, boot: BootId) -> Replica {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut replica = Replica::open(t, filter, false).unwrap();
    replica.handle_boot(t, boot).unwrap();
    replica
}

/// Verifies everything that is to be, with this answer for each. Returns what was verified.
fn verify(replica: &mut Replica, t: &mut MemTables, good: bool) -> Vec<ObjectId> {
    let mut verified = Vec::new();
    while replica.is_verifying() {
        replica.poll_verify(t).unwrap();
        answer(replica, t, &mut |op| {
            let number = op.object().map_or(0, |id| id.number);
            if matches!(op, ApplyOp::Verify { .. }) {
                verified.extend(op.object());
                if !good {
                    return ApplyResult::NotEqual;
                }
            }
            ApplyResult::Done(vec![seen(number, Kind::File)])
        });
    }
    verified
}

/// Proves that after another boot, and only then, what was written since the last sync is compared
/// with its content, and that what is not so any more is parked and fetched again.
#[test]
fn another_boot_has_unsynced_copies_verified() {
    let mut t = MemTables::default();
    drop(unsynced(&mut t));
    let mut same = again(&mut t, FIRST);
    assert_eq!(verify(&mut same, &mut t, true), []);
    drop(same);
    let mut other = again(&mut t, SECOND);
    assert_eq!(verify(&mut other, &mut t, false), [id(2)]);
    let parked = other.parked_rows(&t, 10).unwrap();
    assert_eq!((parked.len(), parked[0].0), (1, id(2)));
    let later = WallMillis(NOW.0 + 10_000);
    other.handle_timeout(later, &mut t).unwrap();
    drain(&mut other, &mut t, &mut |_| true);
    assert_eq!(other.poll_fetch().map(|want| want.object), Some(id(2)));
}

/// Proves that after another boot every further name of a copy that is whole is linked again: the
/// disk may have lost the name and kept the content.
#[test]
fn another_boot_has_further_names_linked_again() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t);
    let mut link = create(3, 2, "b");
    link.objects[0].content_seq = Seq(2);
    replica.handle_batch(batch(vec![link], vec![])).unwrap();
    let links = |ops: &[ApplyOp]| {
        let at = |op: &ApplyOp| match op {
            ApplyOp::Link { at, .. } => Some(at.name.clone()),
            _ => None,
        };
        ops.iter().filter_map(at).collect::<Vec<_>>()
    };
    let done = drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(links(&done), [name("b")]);
    drop(replica);
    let mut other = again(&mut t, SECOND);
    other.poll_verify(&t).unwrap();
    let done = drain(&mut other, &mut t, &mut |_| true);
    assert!(matches!(done[0], ApplyOp::Verify { .. }), "{done:?}");
    assert_eq!(links(&done), [name("b")]);
}

/// Proves that a folder which is found not to be at its name is made there anew, with what was in
/// it, instead of being tried again for ever.
#[test]
fn a_folder_that_is_not_at_its_name_is_made_anew() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let records = vec![folder_at(2, 2, 1, "a"), create_in(3, 3, 2, "b")];
    replica.handle_batch(batch(records, vec![here(3)])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let more = batch(vec![create_in(4, 4, 2, "c")], vec![here(4)]);
    replica.handle_batch(more).unwrap();
    let mut gone = true;
    let mut made = Vec::new();
    for later in [0, 10_000, 20_000, 30_000] {
        let now = WallMillis(NOW.0 + later);
        replica.handle_timeout(now, &mut t).unwrap();
        let ops = answer(&mut replica, &mut t, &mut |op| {
            let id = op.object().unwrap_or_default();
            let kind = match op {
                ApplyOp::MakeFolder { .. } => Kind::Folder,
                ApplyOp::SetMeta { kind, .. } => *kind,
                _ => Kind::File,
            };
            if gone && id.number == 2 && matches!(op, ApplyOp::SetMeta { .. }) {
                gone = false;
                return ApplyResult::NotEqual;
            }
            ApplyResult::Done(vec![seen(id.number, kind)])
        });
        let makes = |op: &ApplyOp| matches!(op, ApplyOp::MakeFolder { .. });
        made.extend(
            ops.iter()
                .filter(|op| makes(op))
                .filter_map(ApplyOp::object),
        );
        while let Some(want) = replica.poll_fetch() {
            let staged = staged(want.at_least.0);
            replica
                .handle_fetched(now, &mut t, want.object, staged)
                .unwrap();
        }
    }
    assert_eq!(made, [id(2)]);
    assert_eq!(replica.parked_count(), 0);
    let held = |number| {
        access::live(&t, id(number))
            .unwrap()
            .unwrap()
            .local
            .is_some()
    };
    assert!(held(2) && held(3) && held(4));
}

/// Proves that verifying begins anew when it was not ended by a good sync, and that what a sync
/// covers is not verified after another boot.
#[test]
fn what_is_synced_is_not_verified() {
    let mut t = MemTables::default();
    drop(unsynced(&mut t));
    let mut interrupted = again(&mut t, SECOND);
    assert!(interrupted.is_verifying());
    interrupted.poll_verify(&t).unwrap();
    drop(interrupted);
    let mut other = again(&mut t, SECOND);
    assert_eq!(verify(&mut other, &mut t, true), [id(2)]);
    assert!(other.poll_flush(), "there is something to make certain");
    other.handle_synced(&mut t).unwrap();
    drop(other);
    let mut third = again(&mut t, FIRST);
    assert_eq!(verify(&mut third, &mut t, true), []);
}

/// Proves that after a sync that failed nothing is claimed before everything written since the last
/// good one was verified, and that what was lost is parked when it is.
#[test]
fn a_failed_sync_has_everything_verified() {
    for good in [true, false] {
        let mut t = MemTables::default();
        let mut replica = unsynced(&mut t);
        assert!(replica.poll_sync());
        replica.handle_sync_failed(&mut t).unwrap();
        assert!(!replica.poll_sync(), "not before it is verified");
        assert_eq!(replica.claim(), Seq(1));
        assert_eq!(verify(&mut replica, &mut t, good), [id(2)]);
        assert_eq!(sync(&mut replica, &mut t), Seq(2));
        assert_eq!(replica.parked_count(), usize::from(!good));
    }
}

/// Proves that what was parked when its record was claimed counts as held only once a sync that began
/// after it was done has ended.
#[test]
fn what_was_parked_is_held_once_it_is_synced() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    replica
        .handle_batch(batch(vec![folder_at(2, 2, 1, "a")], vec![]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |op| op.object() != Some(id(2)));
    assert_eq!(sync(&mut replica, &mut t), Seq(2));
    assert_eq!(replica.parked_count(), 1);
    assert!(!replica.poll_flush(), "everything else is on the disk");
    let mut done_under_way = Vec::new();
    for seq in [3, 4] {
        let later = WallMillis(NOW.0 + 1_000_000 * seq);
        replica.handle_timeout(later, &mut t).unwrap();
        drain(&mut replica, &mut t, &mut |_| true);
        assert_eq!(replica.parked_count(), 0);
        done_under_way.push(replica.unsynced().len());
        if seq == 3 {
            assert!(!replica.poll_sync(), "there is nothing more to claim");
            assert!(replica.poll_flush());
            let mut more = folder_at(3, 3, 1, "b");
            more.seq = Seq(3);
            replica.handle_batch(batch(vec![more], vec![])).unwrap();
            drain(&mut replica, &mut t, &mut |op| op.object() != Some(id(3)));
            continue;
        }
        replica.handle_synced(&mut t).unwrap();
        assert_eq!(replica.unsynced().collect::<Vec<_>>(), [id(3)]);
    }
    assert_eq!(done_under_way, [1, 2]);
    assert_eq!(sync(&mut replica, &mut t), Seq(3));
    assert_eq!(replica.unsynced().len(), 0);
}

/// Proves that what was being fetched when a sync failed is verified once it is published, although
/// that is after the failure and syncs are good again.
#[test]
fn what_was_staged_when_a_sync_failed_is_verified() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t);
    let mut large = create(3, 3, "large");
    large.objects[0].content = Content::Data {
        size: 1 << 30,
        hash: None,
    };
    replica
        .handle_batch(batch(vec![large], vec![Inline::Pull]))
        .unwrap();
    let missing = &mut |op: &ApplyOp| match op {
        ApplyOp::AdoptFile { .. } => ApplyResult::NotEqual,
        op => ApplyResult::Done(vec![seen(
            op.object().map_or(0, |id| id.number),
            Kind::File,
        )]),
    };
    answer(&mut replica, &mut t, missing);
    assert_eq!(replica.poll_fetch().map(|want| want.object), Some(id(3)));
    assert!(replica.poll_sync());
    replica.handle_sync_failed(&mut t).unwrap();
    assert_eq!(verify(&mut replica, &mut t, true), [id(2)]);
    let staged = FetchResult::Staged {
        version: Seq(3),
        mtime: Timestamp::default(),
        size: 1 << 30,
        hash: Hash([0; 32]),
    };
    assert!(replica.handle_fetched(NOW, &mut t, id(3), staged).unwrap());
    answer(&mut replica, &mut t, missing);
    assert!(!replica.poll_sync(), "not before it is verified");
    assert_eq!(verify(&mut replica, &mut t, true), [id(3)]);
    assert_eq!(sync(&mut replica, &mut t), Seq(3));
}

/// Proves that what is being written when a sync fails is verified, although what came of it is told
/// after the failure.
#[test]
fn what_was_being_written_when_a_sync_failed_is_verified() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t);
    assert!(replica.poll_sync());
    let more = batch(vec![create(3, 3, "b")], vec![here(3)]);
    replica.handle_batch(more).unwrap();
    let step = replica.poll_step(NOW, &mut t).unwrap().unwrap();
    replica.handle_sync_failed(&mut t).unwrap();
    let done = ApplyResult::Done(vec![seen(3, Kind::File)]);
    let results = vec![done; step.ops.len()];
    drop(step);
    replica.handle_applied(NOW, &mut t, results).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(verify(&mut replica, &mut t, true), [id(2), id(3)]);
}

/// Proves that a folder which the disk lost has what was in it verified too, though that had been
/// synced long before.
#[test]
fn a_lost_folder_takes_what_was_in_it() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t);
    let mut folder = record(3);
    folder.objects.push(state(3, 3, Kind::Folder));
    folder.names.push(NameState {
        parent: id(1),
        name: name("folder"),
        object: Some(id(3)),
    });
    let mut inner = create(4, 4, "inner");
    inner.names[0].parent = id(3);
    replica
        .handle_batch(batch(vec![folder, inner], vec![here(4)]))
        .unwrap();
    let there = &mut |op: &ApplyOp| {
        let number = op.object().map_or(0, |id| id.number);
        match op {
            ApplyOp::Move(_) => {
                let seen = Box::new(seen(number, Kind::Folder));
                ApplyResult::Moved(vec![MoveResult::Done(seen)])
            }
            ApplyOp::MakeFolder { .. } => ApplyResult::Done(vec![seen(number, Kind::Folder)]),
            _ => ApplyResult::Done(vec![seen(number, Kind::File)]),
        }
    };
    answer(&mut replica, &mut t, there);
    assert_eq!(sync(&mut replica, &mut t), Seq(4));
    // Only the folder is written to after that: it is given another name.
    let mut moved = record(5);
    for (at, object) in [("folder", None), ("other", Some(id(3)))] {
        moved.names.push(NameState {
            parent: id(1),
            name: name(at),
            object,
        });
    }
    moved.objects.push(state(3, 5, Kind::Folder));
    replica.handle_batch(batch(vec![moved], vec![])).unwrap();
    answer(&mut replica, &mut t, there);
    drop(replica);
    let mut other = again(&mut t, SECOND);
    assert_eq!(verify(&mut other, &mut t, false), [id(3), id(4)]);
    assert_eq!(other.parked_count(), 2);
}

/// Proves that what others changed, and what stays so, is not taken for something that the disk lost.
#[test]
fn what_is_kept_for_others_is_not_verified() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t).with_policy(policy(Drift::Keep, 0, 0));
    replica.handle_batch(update(3)).unwrap();
    answer(&mut replica, &mut t, &mut kept);
    assert!(replica.poll_sync());
    replica.handle_sync_failed(&mut t).unwrap();
    assert_eq!(verify(&mut replica, &mut t, false), []);
    assert_eq!(replica.drift_report().kept, 1);
    assert_eq!(sync(&mut replica, &mut t), Seq(3));
}

/// Proves that a claim without a sync is taken back by another boot, and not by another start.
#[test]
fn claims_without_a_sync_end_with_the_boot() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t);
    assert!(replica.poll_sync());
    replica.handle_published(&mut t).unwrap();
    assert_eq!(replica.claim(), Seq(2));
    drop(replica);
    assert_eq!(again(&mut t, FIRST).claim(), Seq(2));
    let other = again(&mut t, SECOND);
    assert_eq!(other.claim(), Seq(1));
    assert!(other.is_verifying());
}

/// Proves that a name which was emptied before the disk lost its last changes is emptied again when
/// its record comes again.
#[test]
fn removals_are_done_again_after_another_boot() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t);
    assert_eq!(sync(&mut replica, &mut t), Seq(2));
    let removal = || batch(vec![remove(3, 2, "a")], vec![]);
    replica.handle_batch(removal()).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    drop(replica);
    for (boot, wanted) in [(FIRST, 0), (SECOND, 1)] {
        let mut replica = again(&mut t, boot);
        let accepted = Accepted {
            origin: ORIGIN,
            incarnation: RUN,
            resumed: true,
            head: Seq(3),
            complete: true,
        };
        assert!(replica.handle_accepted(&mut t, &accepted).unwrap());
        replica.handle_batch(removal()).unwrap();
        let ops = drain(&mut replica, &mut t, &mut |_| true);
        let removals = ops.iter().filter(|op| matches!(op, ApplyOp::Remove { .. }));
        assert_eq!(removals.count(), wanted);
    }
}

fn policy(drift: Drift, resumes: u64, accepts: u64) -> Policy {
    Policy {
        drift,
        resumes,
        accepts,
        ..Policy::default()
    }
}

/// New content for file 2.
fn update(seq: u64) -> BatchHeader {
    let mut record = record(seq);
    record.objects.push(state(2, seq, Kind::File));
    batch(vec![record], vec![here(seq)])
}

fn kept(op: &ApplyOp) -> ApplyResult {
    match op {
        ApplyOp::WriteFile { .. } | ApplyOp::AdoptFile { .. } => ApplyResult::Kept,
        _ => ApplyResult::Done(vec![seen(1, Kind::Folder)]),
    }
}

/// Proves that what others changed is parked by itself under `keep`, counted once, looked at before
/// it is fetched, kept over a restart, and replaced once it is accepted.
#[test]
fn kept_work_of_others_waits_to_be_accepted() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t).with_policy(policy(Drift::Keep, 0, 0));
    replica.handle_batch(update(3)).unwrap();
    let ops = answer(&mut replica, &mut t, &mut kept);
    let keeps = |op: &ApplyOp| {
        matches!(
            op,
            ApplyOp::WriteFile { over: Some(known), drift: OnDrift::Keep, .. } if known.left.is_some()
        )
    };
    assert!(ops.iter().any(keeps), "{ops:?}");
    assert_eq!(sync(&mut replica, &mut t), Seq(3), "nothing waits for it");
    let told = |replica: &Replica| {
        let report = replica.drift_report();
        (report.count, report.kept, report.names, report.alert)
    };
    assert_eq!(told(&replica), (1, 1, vec!["a".to_owned()], false));
    assert_eq!(replica.take_drifted().len(), 1);
    drop(replica);
    let mut replica = again(&mut t, FIRST).with_policy(policy(Drift::Keep, 0, 0));
    let later = WallMillis(NOW.0 + 10_000);
    replica.handle_timeout(later, &mut t).unwrap();
    let ops = answer(&mut replica, &mut t, &mut kept);
    assert!(matches!(ops[0], ApplyOp::AdoptFile { .. }), "{ops:?}");
    assert_eq!(replica.poll_fetch(), None);
    assert_eq!(told(&replica), (1, 1, vec!["a".to_owned()], false));
    replica.handle_policy(policy(Drift::Keep, 0, 1));
    assert_eq!(replica.poll_timeout(), Some(WallMillis(0)));
    replica.handle_timeout(later, &mut t).unwrap();
    answer(&mut replica, &mut t, &mut kept);
    assert_eq!(replica.poll_fetch().map(|want| want.object), Some(id(2)));
    let staged = staged(3);
    assert!(replica.handle_fetched(NOW, &mut t, id(2), staged).unwrap());
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let replaces = |op: &ApplyOp| {
        matches!(
            op,
            ApplyOp::WriteFile {
                drift: OnDrift::Replace,
                ..
            }
        )
    };
    assert!(ops.iter().any(replaces), "{ops:?}");
    assert_eq!(told(&replica), (1, 0, vec!["a".to_owned()], false));
    assert_eq!(replica.parked_count(), 0);
}

/// Proves that an alert lasts over restarts, until the job is resumed, and that what others wrote
/// before it was renamed is still known as theirs.
#[test]
fn alerts_last_until_the_job_is_resumed() {
    let mut t = MemTables::default();
    let mut replica = unsynced(&mut t).with_policy(policy(Drift::Alert, 4, 0));
    let mut moved = remove(3, 2, "a");
    moved.removed.clear();
    moved.names.push(NameState {
        parent: id(1),
        name: name("b"),
        object: Some(id(2)),
    });
    let mut state = state(2, 3, Kind::File);
    state.content_seq = Seq(2);
    moved.objects.push(state);
    replica.handle_batch(batch(vec![moved], vec![])).unwrap();
    answer(&mut replica, &mut t, &mut |op| {
        let number = op.object().map_or(0, |id| id.number);
        let mut seen = seen(number, Kind::File);
        if matches!(op, ApplyOp::Move(_)) {
            seen.fingerprint.size = 77;
            return ApplyResult::Moved(vec![MoveResult::Done(Box::new(seen))]);
        }
        ApplyResult::Done(vec![seen])
    });
    replica.handle_batch(update(4)).unwrap();
    let ops = answer(&mut replica, &mut t, &mut |op| {
        let number = op.object().map_or(0, |id| id.number);
        match op {
            ApplyOp::WriteFile { .. } => ApplyResult::Overwrote(vec![seen(2, Kind::File)]),
            _ => ApplyResult::Done(vec![seen(number, Kind::File)]),
        }
    });
    let over = ops.iter().find_map(|op| match op {
        ApplyOp::WriteFile { over, .. } => over.and_then(|known| known.left),
        _ => None,
    });
    assert_eq!(over.map(|left| left.size), Some(1), "as it was left");
    assert!(replica.drift_report().alert);
    drop(replica);
    let mut replica = again(&mut t, FIRST).with_policy(policy(Drift::Alert, 4, 0));
    assert!(replica.drift_report().alert);
    replica.handle_policy(policy(Drift::Alert, 5, 0));
    assert!(!replica.drift_report().alert);
    assert_eq!(replica.drift_report().count, 1);
}
