//! Sequences that are rare, and once lost a file, or left one; and great numbers.

use super::upkeep::answer;
use super::*;
use crate::job::Drift;
use crate::replica::MoveResult;

fn with_drift(replica: Replica, drift: Drift) -> Replica {
    replica.with_policy(Policy {
        drift,
        ..Policy::default()
    })
}

/// The ledger opened again, as after a kill.
fn opened(t: &mut MemTables, drift: Drift) -> Replica {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    with_drift(Replica::open(t, filter, false).unwrap(), drift)
}

fn good(op: &ApplyOp) -> ApplyResult {
    let number = op.object().map_or(0, |id| id.number);
    let moved = |one: &MoveOne| MoveResult::Done(Box::new(seen(one.id.number, Kind::File)));
    match op {
        ApplyOp::Remove { .. } => ApplyResult::Done(vec![]),
        ApplyOp::Move(moves) => ApplyResult::Moved(moves.iter().map(moved).collect()),
        ApplyOp::MakeFolder { .. } => ApplyResult::Done(vec![seen(number, Kind::Folder)]),
        ApplyOp::SetMeta { kind, .. } => ApplyResult::Done(vec![seen(number, *kind)]),
        _ => ApplyResult::Done(vec![seen(number, Kind::File)]),
    }
}

fn give_names(record: &mut Record, list: &[(&str, Option<u64>)]) {
    for (at, object) in list {
        record.names.push(NameState {
            parent: id(1),
            name: name(at),
            object: object.map(id),
        });
    }
}

/// A file whose content is that of an earlier record.
fn unchanged(number: u64, seq: u64, content: u64) -> ObjectState {
    let mut state = state(number, seq, Kind::File);
    state.content_seq = Seq(content);
    state
}

fn parked(t: &MemTables) -> Vec<ParkedWhat> {
    let mut all = Vec::new();
    access::each_parked(t, &mut |_, row| all.push(row.what)).unwrap();
    all
}

/// Folder 2 `d` with file 3, whose new content was published beside a batch; the times of the folder
/// are still to be set.
fn published_beside(t: &mut MemTables, drift: Drift) -> Replica {
    let mut replica = with_drift(replica(t), drift);
    let made = vec![folder_at(2, 2, 1, "d"), create_in(3, 3, 2, "b")];
    replica.handle_batch(batch(made, vec![here(3)])).unwrap();
    drain(&mut replica, t, &mut |_| true);
    let changed = batch(vec![change(4, 3)], vec![Inline::Pull]);
    replica.handle_batch(changed).unwrap();
    drain(&mut replica, t, &mut |_| true);
    let want = replica.poll_fetch().unwrap();
    assert!(
        replica
            .handle_fetched(NOW, t, want.object, staged(4))
            .unwrap()
    );
    replica
}

/// Another folder is where the second one should be.
fn another_is_there(op: &ApplyOp) -> ApplyResult {
    match op {
        ApplyOp::SetMeta { id: of, .. } if *of == id(2) => ApplyResult::NotEqual,
        ApplyOp::Check { .. } => ApplyResult::Differs(Difference::Other),
        op => good(op),
    }
}

/// Proves that a folder which others replaced stays reported under `keep`, however often it is
/// looked at, and that nothing else is noted of it.
#[test]
fn a_kept_folder_stays_reported() {
    let mut t = MemTables::default();
    let mut replica = published_beside(&mut t, Drift::Keep);
    answer(&mut replica, &mut t, &mut |op| another_is_there(op));
    for later in [10_000, 100_000, 1_000_000] {
        assert_eq!(replica.parked_count(), 1);
        assert!(replica.intended.is_empty(), "its times wait for nothing");
        assert_eq!(replica.parked_rows(&t, 9).unwrap().len(), 1);
        let later = WallMillis(NOW.0 + later);
        replica.handle_timeout(later, &mut t).unwrap();
        answer(&mut replica, &mut t, &mut |op| another_is_there(op));
    }
}

/// Proves that nothing is taken for others' work before the upstream has said which records come
/// again.
#[test]
fn nobody_is_blamed_before_the_upstream_speaks() {
    let mut t = MemTables::default();
    let mut replica = published_beside(&mut t, Drift::Alert);
    let step = replica.poll_step(NOW, &mut t).unwrap().unwrap();
    let results = step.ops.iter().map(good).collect();
    drop(step);
    replica.handle_applied(NOW, &mut t, results).unwrap();
    t.commit(Durability::Durable);
    let mut replica = opened(&mut t, Drift::Alert);
    replica.handle_timeout(NOW, &mut t).unwrap();
    let ops = answer(&mut replica, &mut t, &mut |op| another_is_there(op));
    assert!(!ops.is_empty(), "its times were to be set");
    assert_eq!(replica.drift_report().count, 0);
}

/// Proves that newer content which a file is parked for is not forgotten by what others' thing at
/// its name waited for.
#[test]
fn what_a_file_is_parked_for_outlives_what_others_did() {
    let mut t = MemTables::default();
    let mut replica = with_drift(replica(&mut t), Drift::Keep);
    let folder = replica.folders.at(&t, id(1)).unwrap().unwrap();
    let entry = SweepEntry {
        name: name("x"),
        kind: Kind::File,
        identity: Identity::default(),
    };
    replica
        .handle_foreign(NOW, &mut t, &folder, vec![entry])
        .unwrap();
    answer(&mut replica, &mut t, &mut |op| good(op));
    let theirs = replica.parked_rows(&t, 9).unwrap()[0].0;
    // It was tried often: its next try is far away.
    let far = WallMillis(NOW.0 + 100_000_000);
    replica.parked.insert(theirs, far);
    let made = batch(vec![create(2, 5, "x")], vec![here(2)]);
    replica.handle_batch(made).unwrap();
    answer(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::WriteFile { .. } => ApplyResult::Kept,
        op => good(op),
    });
    let later = WallMillis(NOW.0 + 100_000);
    replica.handle_timeout(later, &mut t).unwrap();
    answer(&mut replica, &mut t, &mut |op| good(op));
    let changed = batch(vec![change(3, 5)], vec![Inline::Unsettled]);
    replica.handle_batch(changed).unwrap();
    answer(&mut replica, &mut t, &mut |op| good(op));
    let waits = |t: &MemTables| {
        let newer = |what: &ParkedWhat| matches!(what, ParkedWhat::Content(state) if state.content_seq == Seq(3));
        parked(t).iter().any(newer)
    };
    assert!(waits(&t), "its content is still to come");
    replica.parked.insert(theirs, WallMillis(0));
    let soon = WallMillis(NOW.0 + 1);
    replica.handle_timeout(soon, &mut t).unwrap();
    answer(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::SetMeta {
            id: of,
            kind: Kind::Folder,
            ..
        } if *of == id(5) => ApplyResult::Failed("it is no folder".to_owned()),
        op => good(op),
    });
    assert!(waits(&t), "it is still to come");
}

/// Proves that a file which leaves two names at once, for one to which it comes with new content, is
/// removed at both, also when a kill comes between.
#[test]
fn what_is_left_at_two_names_is_removed_after_a_kill() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let made = vec![create(2, 2, "a"), create(3, 3, "m")];
    replica
        .handle_batch(batch(made, vec![here(2), here(3)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let mut link = create(4, 2, "b");
    link.objects[0].content_seq = Seq(2);
    replica.handle_batch(batch(vec![link], vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(4));
    let mut both = record(5);
    let names = [
        ("a", None),
        ("b", None),
        ("c", Some(2)),
        ("m", None),
        ("n", Some(3)),
    ];
    give_names(&mut both, &names);
    both.objects = vec![state(2, 5, Kind::File), unchanged(3, 5, 3)];
    replica
        .handle_batch(batch(vec![both.clone()], vec![here(5)]))
        .unwrap();
    let step = replica.poll_step(NOW, &mut t).unwrap().unwrap();
    assert!(matches!(step.ops[..], [ApplyOp::Move(_)]), "moves first");
    t.commit(Durability::Durable);
    drop(step);
    let mut replica = opened_again(&mut t, 5);
    replica
        .handle_batch(batch(vec![both], vec![here(5)]))
        .unwrap();
    let mut ops = drain(&mut replica, &mut t, &mut |_| true);
    let later = WallMillis(NOW.0 + 100_000);
    replica.handle_timeout(later, &mut t).unwrap();
    ops.extend(drain(&mut replica, &mut t, &mut |_| true));
    for old in ["a", "b"] {
        let removed =
            |op: &ApplyOp| matches!(op, ApplyOp::Remove { at, .. } if at.name == name(old));
        assert!(ops.iter().any(removed), "{old}: {ops:?}");
    }
}

/// Proves that what is moved to a name is not removed there with what an object that had been given
/// up was noted to have left.
#[test]
fn what_moves_to_a_name_is_not_removed_with_what_was_there() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let made = vec![
        folder_at(2, 2, 1, "g"),
        create_in(3, 3, 2, "a"),
        create(4, 4, "y"),
    ];
    replica
        .handle_batch(batch(made, vec![here(3), here(4)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let mut link = create(5, 3, "b");
    link.objects[0].content_seq = Seq(3);
    replica.handle_batch(batch(vec![link], vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    // From the folder to `c`, which fails.
    let mut rename = record(6);
    rename.names.push(NameState {
        parent: id(2),
        name: name("a"),
        object: None,
    });
    give_names(&mut rename, &[("c", Some(3))]);
    rename.objects.push(unchanged(3, 6, 3));
    replica.handle_batch(batch(vec![rename], vec![])).unwrap();
    let fails = &mut |op: &ApplyOp| !matches!(op, ApplyOp::Move(_));
    drain(&mut replica, &mut t, fails);
    // On to `e`, while another one comes to `c`, and the folder goes.
    let mut next = record(7);
    let names = [("c", Some(4)), ("e", Some(3)), ("g", None), ("y", None)];
    give_names(&mut next, &names);
    next.objects = vec![unchanged(3, 7, 3), unchanged(4, 7, 4)];
    next.removed.push(id(2));
    replica.handle_batch(batch(vec![next], vec![])).unwrap();
    let mut ops = drain(&mut replica, &mut t, &mut |_| true);
    for later in [10_000, 100_000] {
        let later = WallMillis(NOW.0 + later);
        replica.handle_timeout(later, &mut t).unwrap();
        ops.extend(drain(&mut replica, &mut t, &mut |_| true));
    }
    let came =
        |op: &ApplyOp| matches!(op, ApplyOp::Move(moves) if moves.iter().any(|m| m.id == id(4)));
    let removed = |op: &ApplyOp| matches!(op, ApplyOp::Remove { at, .. } if at.name == name("c"));
    let when = ops.iter().position(came).expect("it moves");
    assert!(!ops[when..].iter().any(removed), "{ops:?}");
    let row = access::name(&t, id(1), &name("c")).unwrap().unwrap();
    assert_eq!((row.object, row.remnant), (Some(id(4)), None));
}

/// Proves that thousands of moves that failed are tried again together, and all of them done.
#[test]
fn many_moves_are_tried_again_at_once() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let count = 3_000;
    let (mut made, mut contents, mut renames) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..count {
        made.push(create(2 + n, 10 + n, &format!("from-{n}")));
        contents.push(here(2 + n));
        let seq = 2 + count + n;
        let mut rename = record(seq);
        let (from, to) = (format!("from-{n}"), format!("to-{n}"));
        give_names(&mut rename, &[(&from, None), (&to, Some(10 + n))]);
        rename.objects.push(unchanged(10 + n, seq, 2 + n));
        renames.push(rename);
    }
    replica.handle_batch(batch(made, contents)).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    replica.handle_batch(batch(renames, vec![])).unwrap();
    let fails = &mut |op: &ApplyOp| !matches!(op, ApplyOp::Move(_));
    drain(&mut replica, &mut t, fails);
    assert_eq!(replica.blocking.len(), usize::try_from(count).unwrap());
    let later = WallMillis(NOW.0 + 1_000_000);
    replica.handle_timeout(later, &mut t).unwrap();
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let together = |op: &ApplyOp| matches!(op, ApplyOp::Move(moves) if moves.len() == 3_000);
    assert!(ops.iter().any(together));
    assert!(replica.blocking.is_empty());
}

/// Proves that small content is asked for many at once, and more of it once half has come, while large
/// content has places of its own.
#[test]
fn small_content_is_asked_for_in_groups() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let (mut made, mut contents) = (Vec::new(), Vec::new());
    for n in 0..408 {
        let mut record = create(2 + n, 10 + n, &format!("file-{n}"));
        if n < 8 {
            record.objects[0].content = Content::Data {
                size: 1 << 30,
                hash: None,
            };
        }
        made.push(record);
        contents.push(Inline::Pull);
    }
    replica.handle_batch(batch(made, contents)).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let asked = |replica: &mut Replica| {
        let wants: Vec<_> = std::iter::from_fn(|| replica.poll_fetch()).collect();
        let small = wants.iter().filter(|want| want.is_small()).count();
        (wants.len() - small, small, wants)
    };
    let (large, small, wants) = asked(&mut replica);
    assert_eq!((large, small), (4, 256));
    let (first, more) = wants
        .iter()
        .filter(|want| want.is_small())
        .partition::<Vec<_>, _>(|want| want.object.number < 18 + 127);
    let gone = |replica: &mut Replica, t: &mut MemTables, want: &FetchWant| {
        let gone = FetchResult::Removed(Seq(500));
        replica.handle_fetched(NOW, t, want.object, gone).unwrap();
    };
    for want in first {
        gone(&mut replica, &mut t, want);
        assert_eq!(asked(&mut replica).2, [], "not one by one");
    }
    gone(&mut replica, &mut t, more[0]);
    let (large, small, _) = asked(&mut replica);
    assert_eq!((large, small), (0, 128));
    gone(&mut replica, &mut t, &wants[0]);
    let (large, small, _) = asked(&mut replica);
    assert_eq!((large, small), (1, 0));
}
