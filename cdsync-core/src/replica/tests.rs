//! What a target refuses, holds, parks and claims: batches made by hand, and worlds in miniature.

mod patrol;
mod rare;
mod reconcile;
mod upkeep;

use super::*;
use crate::filter::FilterSpec;
use crate::ledger::loss::Losses;
use crate::ledger::object::{
    Content, Fingerprint, Hash, Identity, Kind, Metadata, ObjectState, Observed, Version,
};
use crate::ledger::record::NameState;
use crate::ledger::rows::name_key;
use crate::ledger::tables::Table;
use crate::ledger::xattrs::Xattrs;
use crate::path::Name;
use crate::sim::{Durability, MemTables, NodeId, Scenario, TargetTuning, World};
use crate::time::Timestamp;
use crate::wire::Inline;

const ORIGIN: OriginId = OriginId(5);
const RUN: IncarnationId = IncarnationId(6);
const ROOT: NodeId = 1;
const NOW: WallMillis = WallMillis(1_000);

fn id(number: u64) -> ObjectId {
    ObjectId {
        origin: ORIGIN,
        number,
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn meta_of(seq: u64) -> Metadata {
    Metadata {
        mode: 0o644,
        uid: 1,
        gid: 1,
        user: Vec::new(),
        group: Vec::new(),
        mtime: Timestamp {
            secs: i64::try_from(seq).unwrap(),
            nanos: 0,
        },
        xattrs: Xattrs::NONE,
    }
}

fn state(number: u64, seq: u64, kind: Kind) -> ObjectState {
    let content = match kind {
        Kind::File => Content::Data {
            size: 1,
            hash: None,
        },
        _ => Content::None,
    };
    ObjectState {
        id: id(number),
        kind,
        meta: meta_of(seq),
        content,
        version: Version {
            origin: ORIGIN,
            incarnation: RUN,
            seq: Seq(seq),
            hlc: Hlc(seq),
        },
        content_seq: if kind == Kind::File { Seq(seq) } else { Seq(0) },
        replaces: None,
    }
}

fn record(seq: u64) -> Record {
    Record {
        seq: Seq(seq),
        incarnation: RUN,
        hlc: Hlc(seq),
        names: Vec::new(),
        objects: Vec::new(),
        removed: Vec::new(),
        group: 0,
        set: 0,
        signature: Vec::new(),
    }
}

fn create(seq: u64, number: u64, file: &str) -> Record {
    let mut record = record(seq);
    record.names.push(NameState {
        parent: id(1),
        name: name(file),
        object: Some(id(number)),
    });
    record.objects.push(state(number, seq, Kind::File));
    record
}

fn remove(seq: u64, number: u64, file: &str) -> Record {
    let mut record = record(seq);
    record.names.push(NameState {
        parent: id(1),
        name: name(file),
        object: None,
    });
    record.removed.push(id(number));
    record
}

fn here(version: u64) -> Inline {
    Inline::Here {
        version: Seq(version),
        len: 1,
        hash: Hash([0; 32]),
        mtime: Timestamp::default(),
    }
}

/// Content of one byte that was fetched.
fn staged(version: u64) -> FetchResult {
    FetchResult::Staged {
        version: Seq(version),
        mtime: Timestamp::default(),
        size: 1,
        hash: Hash([0; 32]),
    }
}

fn batch(records: Vec<Record>, contents: Vec<Inline>) -> BatchHeader {
    BatchHeader {
        head: records.last().map_or(Seq(0), |r| r.seq),
        records,
        contents,
        bytes: 0,
    }
}

/// A target that holds the source's root folder, record 1.
fn replica(t: &mut MemTables) -> Replica {
    let mut replica =
        Replica::open(t, Filter::new(&FilterSpec::default()).unwrap(), false).unwrap();
    let accepted = Accepted {
        origin: ORIGIN,
        incarnation: RUN,
        resumed: false,
        head: Seq(1),
        complete: true,
    };
    assert!(replica.handle_accepted(t, &accepted).unwrap());
    let mut first = record(1);
    first.objects.push(state(1, 1, Kind::Folder));
    replica.handle_batch(batch(vec![first], vec![])).unwrap();
    drain(&mut replica, t, &mut |_| true);
    assert_eq!(sync(&mut replica, t), Seq(1));
    replica
}

fn seen(number: u64, kind: Kind) -> Observed {
    let fingerprint = Fingerprint {
        identity: Identity {
            inode: number,
            born: Timestamp::default(),
        },
        size: 1,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
    };
    Observed {
        fingerprint,
        kind,
        meta: meta_of(0),
        link_count: 1,
        device: 0,
        link: None,
        handle: None,
        left_out: None,
        losses: Losses::NONE,
    }
}

/// Carries out every step, each operation as `works` says. Returns how many there were.
fn drain(
    replica: &mut Replica,
    t: &mut MemTables,
    works: &mut dyn FnMut(&ApplyOp) -> bool,
) -> Vec<ApplyOp> {
    let mut all = Vec::new();
    while let Some(step) = replica.poll_step(NOW, t).unwrap() {
        let results = step
            .ops
            .iter()
            .map(|op| {
                if !works(op) {
                    return ApplyResult::Failed("not today".to_owned());
                }
                let number = op.object().map_or(0, |id| id.number);
                let kind = match op {
                    ApplyOp::MakeFolder { .. } => Kind::Folder,
                    ApplyOp::SetMeta { kind, .. } => *kind,
                    _ => Kind::File,
                };
                match op {
                    ApplyOp::Remove { .. } => ApplyResult::Done(vec![]),
                    ApplyOp::Move(moves) => {
                        let done = |one: &MoveOne| {
                            MoveResult::Done(Box::new(seen(one.id.number, Kind::File)))
                        };
                        ApplyResult::Moved(moves.iter().map(done).collect())
                    }
                    _ => ApplyResult::Done(vec![seen(number, kind)]),
                }
            })
            .collect();
        all.extend(step.ops.iter().cloned());
        drop(step);
        replica.handle_applied(NOW, t, results).unwrap();
    }
    all
}

fn sync(replica: &mut Replica, t: &mut MemTables) -> Seq {
    if replica.poll_sync() {
        replica.handle_synced(t).unwrap();
        t.commit(Durability::Durable);
    }
    replica.claim()
}

/// Proves that what an honest upstream never sends is refused, and nothing of it is taken.
#[test]
fn bad_batches_are_refused() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let mut foreign = create(2, 2, "a");
    foreign.objects[0].id.origin = OriginId(9);
    let mut foreign_parent = create(2, 2, "a");
    foreign_parent.names[0].parent.origin = OriginId(9);
    let mut reserved = create(2, 2, "a");
    reserved.names[0].name = name(".cdsync");
    let mut takes_root = create(2, 2, "a");
    takes_root.names[0].object = Some(id(1));
    let mut removes_root = record(2);
    removes_root.removed.push(id(1));
    let mut mode = create(2, 2, "a");
    mode.objects[0].meta.mode = 0o10_000;
    let mut other_seq = create(2, 2, "a");
    other_seq.objects[0].version.seq = Seq(3);
    let mut link = create(2, 2, "a");
    link.objects[0].kind = Kind::Symlink;
    link.objects[0].content = Content::Link(b"a\0b".to_vec());
    let mut twice = create(2, 2, "a");
    twice.objects.push(twice.objects[0].clone());
    let mut one_name_twice = create(2, 2, "a");
    one_name_twice.names.push(one_name_twice.names[0].clone());
    let mut both = create(2, 2, "a");
    both.removed.push(id(2));
    let mut unsaid = create(2, 2, "a");
    for number in 0..100 {
        let mut name = unsaid.names[0].clone();
        (name.name, name.object) = (self::name(&number.to_string()), Some(id(9)));
        unsaid.names.push(name);
    }
    let mut nobody = create(2, 2, "a");
    nobody.objects[0].meta.uid = u32::MAX;
    let mut time = create(2, 2, "a");
    time.objects[0].meta.mtime.nanos = 0x3fff_ffff;
    let bad = [
        twice,
        one_name_twice,
        both,
        unsaid,
        nobody,
        time,
        foreign,
        foreign_parent,
        reserved,
        takes_root,
        removes_root,
        mode,
        other_seq,
        link,
    ];
    for record in bad {
        let contents = record.contents().map(|_| here(2)).collect();
        let refused = replica.handle_batch(batch(vec![record.clone()], contents));
        assert_eq!(refused, Err(ReplicaError::Record(Seq(2))), "{record:?}");
    }
    let gap = replica.handle_batch(batch(vec![create(3, 2, "a")], vec![here(3)]));
    assert!(
        matches!(gap, Err(ReplicaError::OutOfOrder { .. })),
        "{gap:?}"
    );
    let spoilt = |spoil: fn(&mut u32, &mut Timestamp)| {
        let mut content = here(2);
        if let Inline::Here { len, mtime, .. } = &mut content {
            spoil(len, mtime);
        }
        vec![content]
    };
    for contents in [
        vec![],
        vec![here(2), here(2)],
        vec![here(1)],
        spoilt(|len, _| *len = u32::MAX),
        spoilt(|_, mtime| mtime.nanos = u32::MAX),
    ] {
        let refused = replica.handle_batch(batch(vec![create(2, 2, "a")], contents));
        assert_eq!(refused, Err(ReplicaError::Contents));
    }
    assert!(replica.is_idle());
    replica
        .handle_batch(batch(vec![create(2, 2, "a")], vec![here(2)]))
        .unwrap();
}

/// Proves that a batch whose first records are known already is taken in whole at once, while its
/// contents are at hand.
#[test]
fn records_that_come_again_keep_no_batch_open() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let records = vec![create(2, 2, "a"), change(3, 2)];
    let again = batch(records.clone(), vec![here(2), here(3)]);
    replica.handle_batch(again).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    drop(replica);
    let mut replica = opened_again(&mut t, 4);
    let more = [records, vec![create(4, 3, "b")]].concat();
    let contents = vec![here(2), here(3), here(4)];
    replica.handle_batch(batch(more, contents)).unwrap();
    let done = drain(&mut replica, &mut t, &mut |_| true);
    let made = |op: &ApplyOp| op.object() == Some(id(3));
    assert!(done.iter().any(made), "{done:?}");
    assert!(replica.is_idle(), "it waits for nothing");
    assert_eq!(sync(&mut replica, &mut t), Seq(4));
}

fn change(seq: u64, number: u64) -> Record {
    let mut record = record(seq);
    record.objects.push(state(number, seq, Kind::File));
    record
}

/// The next step, all of it done, and durable: then the agent is killed. Returns the operations.
fn step_and_crash(mut replica: Replica, t: &mut MemTables) -> Arc<Vec<ApplyOp>> {
    let step = replica.poll_step(NOW, t).unwrap().unwrap();
    let done = |op: &ApplyOp| {
        let number = op.object().map_or(0, |id| id.number);
        ApplyResult::Done(vec![seen(number, Kind::File)])
    };
    let results = step.ops.iter().map(done).collect();
    let ops = step.ops;
    replica.handle_applied(NOW, t, results).unwrap();
    t.commit(Durability::Durable);
    ops
}

fn opened_again(t: &mut MemTables, head: u64) -> Replica {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut replica = Replica::open(t, filter, false).unwrap();
    let accepted = Accepted {
        origin: ORIGIN,
        incarnation: RUN,
        resumed: true,
        head: Seq(head),
        complete: true,
    };
    assert!(replica.handle_accepted(t, &accepted).unwrap());
    replica
}

fn sets_times_of(ops: &[ApplyOp], folder: ObjectId) -> bool {
    let sets = |op: &ApplyOp| matches!(op, ApplyOp::SetMeta { id, .. } if *id == folder);
    ops.iter().any(sets)
}

/// Proves that a folder in which a file was replaced gets its times again, although the agent was
/// killed before it had set them, and the record that comes again has nothing else to do.
#[test]
fn folders_of_new_content_get_their_times_after_a_kill() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let records = vec![folder_at(2, 2, 1, "a"), create_in(3, 3, 2, "b")];
    replica.handle_batch(batch(records, vec![here(3)])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(3));
    let again = || batch(vec![change(4, 3)], vec![here(4)]);
    replica.handle_batch(again()).unwrap();
    step_and_crash(replica, &mut t);
    let mut replica = opened_again(&mut t, 4);
    replica.handle_batch(again()).unwrap();
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    assert!(sets_times_of(&ops, id(2)), "{ops:?}");
}

/// Proves that a folder gets its times again, too, when the agent was killed after content which was
/// fetched came into it in the middle of a batch that says nothing of it.
#[test]
fn folders_of_fetched_content_get_their_times_after_a_kill() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let records = vec![folder_at(2, 2, 1, "a"), create_in(3, 3, 2, "b")];
    replica
        .handle_batch(batch(records, vec![Inline::Pull]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let want = replica.poll_fetch().unwrap();
    let fetched = staged(3);
    assert!(
        replica
            .handle_fetched(NOW, &mut t, want.object, fetched)
            .unwrap()
    );
    let more = || batch(vec![create(4, 4, "c")], vec![here(4)]);
    replica.handle_batch(more()).unwrap();
    let ops = step_and_crash(replica, &mut t);
    assert_eq!(ops[0].object(), Some(id(3)), "{ops:?}");
    let mut replica = opened_again(&mut t, 4);
    replica.handle_timeout(NOW, &mut t).unwrap();
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    assert!(sets_times_of(&ops, id(2)), "{ops:?}");
}

fn create_in(seq: u64, number: u64, parent: u64, file: &str) -> Record {
    let mut record = create(seq, number, file);
    record.names[0].parent = id(parent);
    record
}

fn folder_at(seq: u64, number: u64, parent: u64, at: &str) -> Record {
    let mut record = record(seq);
    record.objects.push(state(number, seq, Kind::Folder));
    record.names.push(NameState {
        parent: id(parent),
        name: name(at),
        object: Some(id(number)),
    });
    record
}

/// Proves that records which make a folder its own ancestor, a file a folder, or a path longer than
/// any that is carried are refused by name, that nothing of them is claimed, and that the same
/// target goes on with what an honest upstream sends after it.
#[test]
fn records_that_make_no_tree_are_refused() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let honest = vec![folder_at(2, 2, 1, "a"), folder_at(3, 3, 2, "b")];
    replica.handle_batch(batch(honest, vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(replica.take_refused(), None);
    assert_eq!(sync(&mut replica, &mut t), Seq(3));
    let below_itself = folder_at(4, 2, 3, "c");
    let in_itself = folder_at(4, 2, 2, "c");
    let mut crossed = folder_at(4, 2, 9, "c");
    crossed.objects.push(state(9, 4, Kind::Folder));
    crossed.names.push(NameState {
        parent: id(3),
        name: name("d"),
        object: Some(id(9)),
    });
    let mut other_kind = record(4);
    other_kind.objects.push(state(2, 4, Kind::File));
    for bad in [below_itself, in_itself, crossed, other_kind] {
        let contents = bad.contents().map(|_| here(4)).collect();
        replica
            .handle_batch(batch(vec![bad.clone()], contents))
            .unwrap();
        drain(&mut replica, &mut t, &mut |_| true);
        let refused = Some(ReplicaError::Record(Seq(4)));
        assert_eq!(replica.take_refused(), refused, "{bad:?}");
        assert!(replica.is_idle());
        assert_eq!(sync(&mut replica, &mut t), Seq(3));
    }
    // Deeper and deeper, until it is refused.
    let long = "x".repeat(255);
    let mut seq = 4;
    while replica.take_refused().is_none() {
        assert!(seq < 300, "as deep as it likes");
        let parent = if seq == 4 { 3 } else { 6 + seq };
        let deeper = folder_at(seq, 7 + seq, parent, &long);
        replica.handle_batch(batch(vec![deeper], vec![])).unwrap();
        drain(&mut replica, &mut t, &mut |_| true);
        seq += 1;
    }
    assert!(seq > 250, "{seq}");
    let last = seq - 1;
    let honest = vec![folder_at(last, 5, 3, "e")];
    replica.handle_batch(batch(honest, vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(last));
}

/// Proves that a claim passes a record with a parked object listed, that it is tried again when its
/// time has come, with the newest state, and that it is then off the list.
#[test]
fn parked_objects_are_retried_with_their_newest_state() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    replica
        .handle_batch(batch(vec![create(2, 2, "a")], vec![here(2)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |op| {
        !matches!(op, ApplyOp::WriteFile { .. })
    });
    assert_eq!(sync(&mut replica, &mut t), Seq(2));
    let parked = replica.parked_rows(&t, 10).unwrap();
    assert_eq!((parked.len(), parked[0].0), (1, id(2)));
    let mut chmod = record(3);
    let mut newer = state(2, 3, Kind::File);
    newer.content_seq = Seq(2);
    newer.meta.mode = 0o600;
    chmod.objects.push(newer);
    replica.handle_batch(batch(vec![chmod], vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let later = WallMillis(NOW.0 + 10_000);
    assert!(
        replica
            .poll_timeout()
            .is_some_and(|at| at > NOW && at <= later)
    );
    replica.handle_timeout(later, &mut t).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let want = replica
        .poll_fetch()
        .expect("its content is asked for again");
    assert_eq!(want.object, id(2));
    let staged = staged(2);
    assert!(replica.handle_fetched(NOW, &mut t, id(2), staged).unwrap());
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let written = ops.iter().find_map(|op| match op {
        ApplyOp::WriteFile { meta, .. } => Some(meta.mode),
        _ => None,
    });
    assert_eq!(written, Some(0o600));
    assert_eq!(replica.parked_count(), 0);
}

/// Proves that a file gets its newest metadata where a retry asked for its content as it was parked,
/// and the records that changed it since come again on another subscription.
#[test]
fn what_is_fetched_gets_its_newest_metadata() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    replica
        .handle_batch(batch(vec![create(2, 2, "a")], vec![here(2)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |op| {
        !matches!(op, ApplyOp::WriteFile { .. })
    });
    assert_eq!(sync(&mut replica, &mut t), Seq(2));
    let mut later = NOW;
    let mut retry = |replica: &mut Replica, t: &mut MemTables| {
        later.0 += 100_000;
        replica.handle_timeout(later, t).unwrap();
        drain(replica, t, &mut |_| true);
        replica.poll_fetch().expect("its content is asked for")
    };
    retry(&mut replica, &mut t);
    let mut renamed = create(3, 2, "b");
    renamed.names.push(NameState {
        parent: id(1),
        name: name("a"),
        object: None,
    });
    renamed.objects[0].content_seq = Seq(2);
    renamed.objects[0].meta.mode = 0o600;
    replica
        .handle_batch(batch(vec![renamed.clone()], vec![]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let again = Accepted {
        origin: ORIGIN,
        incarnation: RUN,
        resumed: true,
        head: Seq(3),
        complete: true,
    };
    assert!(replica.handle_accepted(&mut t, &again).unwrap());
    retry(&mut replica, &mut t);
    replica.handle_batch(batch(vec![renamed], vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let staged = staged(2);
    assert!(replica.handle_fetched(NOW, &mut t, id(2), staged).unwrap());
    drain(&mut replica, &mut t, &mut |_| true);
    let held = access::live(&t, id(2)).unwrap().unwrap();
    assert_eq!(
        (held.state.version.seq, held.state.meta.mode),
        (Seq(3), 0o600)
    );
    assert_eq!(replica.parked_count(), 0);
}

/// Proves that a kill between the retry of a parked object and the setting of its folder's times
/// does not leave the folder with the time of that retry, though the record is claimed long since.
#[test]
fn times_of_folders_survive_a_kill_after_a_retry() {
    let mut t = MemTables::default();
    let mut killed = replica(&mut t);
    killed
        .handle_batch(batch(vec![create(2, 2, "a")], vec![here(2)]))
        .unwrap();
    drain(&mut killed, &mut t, &mut |op| {
        !matches!(op, ApplyOp::WriteFile { .. })
    });
    assert_eq!(sync(&mut killed, &mut t), Seq(2));
    let later = WallMillis(NOW.0 + 10_000);
    killed.handle_timeout(later, &mut t).unwrap();
    drain(&mut killed, &mut t, &mut |_| true);
    assert!(killed.poll_fetch().is_some());
    let staged = staged(2);
    assert!(killed.handle_fetched(NOW, &mut t, id(2), staged).unwrap());
    let step = killed
        .poll_step(NOW, &mut t)
        .unwrap()
        .expect("it is written");
    assert!(matches!(step.ops[..], [ApplyOp::WriteFile { .. }]));
    let written = vec![ApplyResult::Done(vec![seen(2, Kind::File)])];
    killed.handle_applied(NOW, &mut t, written).unwrap();
    drop(killed);

    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut started = Replica::open(&mut t, filter, false).unwrap();
    started.handle_timeout(NOW, &mut t).unwrap();
    let ops = drain(&mut started, &mut t, &mut |_| true);
    let sets = |op: &ApplyOp| matches!(op, ApplyOp::SetMeta { id: of, .. } if *of == id(1));
    assert!(ops.iter().any(sets), "{ops:?}");
    assert_eq!(started.parked_count(), 0);
}

/// Proves that a removal which a kill interrupted, and which fails when it is tried again after
/// that, is tried until it works.
#[test]
fn interrupted_removals_are_tried_until_they_work() {
    let mut t = MemTables::default();
    let mut killed = replica(&mut t);
    killed
        .handle_batch(batch(vec![create(2, 2, "a")], vec![here(2)]))
        .unwrap();
    drain(&mut killed, &mut t, &mut |_| true);
    killed
        .handle_batch(batch(vec![remove(3, 2, "a")], vec![]))
        .unwrap();
    let step = killed.poll_step(NOW, &mut t).unwrap().expect("a removal");
    assert!(matches!(step.ops[..], [ApplyOp::Remove { .. }]));
    // As if the record had moved something first, and the kill had come behind that.
    t.remove(Table::Names, &name_key(id(1), &name("a")))
        .unwrap();
    drop(killed);

    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut started = Replica::open(&mut t, filter, false).unwrap();
    let mut later = NOW;
    for works in [false, false, true] {
        started.handle_timeout(later, &mut t).unwrap();
        let ops = drain(&mut started, &mut t, &mut |op| {
            works || !matches!(op, ApplyOp::Remove { .. })
        });
        let removes = |op: &ApplyOp| matches!(op, ApplyOp::Remove { .. });
        assert!(ops.iter().any(removes), "{ops:?}");
        later = WallMillis(later.0 + 600_000);
    }
    assert_eq!(started.parked_count(), 0);
}

/// Proves that what could not be made because its folder could not is tried as soon as the folder is
/// there, however deep the folders lie in each other.
#[test]
fn folders_in_folders_that_failed_come_together() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let deep: Vec<Record> = (2..12).map(|n| folder_at(n, n, n - 1, "d")).collect();
    replica.handle_batch(batch(deep, vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |_| false);
    assert_eq!(replica.parked_count(), 11, "the root's times too");
    let mut now = NOW;
    // The first of them works again at last; nothing is waited for after that.
    now.0 += 600_000;
    for _ in 2..13 {
        replica.handle_timeout(now, &mut t).unwrap();
        let mut one = false;
        drain(&mut replica, &mut t, &mut |op| {
            let makes = matches!(op, ApplyOp::MakeFolder { .. });
            !makes || !std::mem::replace(&mut one, true)
        });
    }
    assert_eq!(replica.parked_count(), 0);
}

/// Proves that a file which takes the name of another one, and was known before with other content,
/// never shows that content at the name: it shows the file that was there until the new content is
/// here.
#[test]
fn names_are_taken_with_the_content_that_belongs_to_them() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let both = vec![create(2, 2, "a"), create(3, 3, "a~")];
    let contents = vec![here(2), here(3)];
    replica.handle_batch(batch(both, contents)).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let mut over = create(4, 3, "a");
    over.names.push(remove(4, 3, "a~").names.remove(0));
    over.removed.push(id(2));
    replica
        .handle_batch(batch(vec![over], vec![Inline::Pull]))
        .unwrap();
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let emptied = ops.iter().filter_map(|op| match op {
        ApplyOp::Remove { at, .. } => Some(at.name.clone()),
        ApplyOp::Move(_) => Some(name("moved")),
        _ => None,
    });
    assert_eq!(emptied.collect::<Vec<_>>(), [name("a~")]);
    assert_eq!(replica.poll_fetch().map(|want| want.object), Some(id(3)));
    let staged = staged(4);
    assert!(replica.handle_fetched(NOW, &mut t, id(3), staged).unwrap());
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let written = ops.iter().find_map(|op| match op {
        ApplyOp::WriteFile { at, over, .. } => Some((at.name.clone(), over.is_some())),
        _ => None,
    });
    assert_eq!(written, Some((name("a"), true)));
    assert_eq!(sync(&mut replica, &mut t), Seq(4));
    assert_eq!(replica.parked_count(), 0);
}

/// Proves that the same holds for content that an earlier record brought, and that is not here yet:
/// the file comes to a free name, and to a further one, with that content; and that it stays as it
/// was at the name that it keeps until then.
#[test]
fn new_names_wait_for_content_of_earlier_records() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let both = vec![create(2, 2, "a"), create(3, 3, "b~")];
    replica
        .handle_batch(batch(both, vec![here(2), here(3)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let both = vec![change(4, 2), change(5, 3)];
    let unsettled = vec![Inline::Unsettled, Inline::Unsettled];
    replica.handle_batch(batch(both, unsettled)).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let mut link = create(6, 2, "a2");
    link.objects[0].content_seq = Seq(4);
    let mut rename = create(7, 3, "b");
    rename.objects[0].content_seq = Seq(5);
    rename.names.push(remove(7, 3, "b~").names.remove(0));
    replica
        .handle_batch(batch(vec![link, rename], vec![]))
        .unwrap();
    let work = |op: &ApplyOp| match op {
        ApplyOp::Remove { at, .. } => Some(format!("{} goes", at.name)),
        ApplyOp::Move(_) => Some("moved".to_owned()),
        ApplyOp::Link { at, .. } => Some(format!("{} is linked", at.name)),
        ApplyOp::WriteFile { at, over, .. } => {
            Some(format!("{} is written, over {}", at.name, over.is_some()))
        }
        _ => None,
    };
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let done: Vec<String> = ops.iter().filter_map(work).collect();
    assert_eq!(done, ["b~ goes"]);
    assert_eq!(sync(&mut replica, &mut t), Seq(7));
    assert_eq!(replica.parked_count(), 2);
    let later = replica.poll_timeout().unwrap();
    replica
        .handle_timeout(WallMillis(later.0 + 10_000), &mut t)
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    for (object, version) in [(2, 4), (3, 5)] {
        let want = replica.poll_fetch().unwrap();
        assert_eq!((want.object, want.at_least), (id(object), Seq(version)));
        let staged = staged(version);
        assert!(
            replica
                .handle_fetched(NOW, &mut t, want.object, staged)
                .unwrap()
        );
    }
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let done: Vec<String> = ops.iter().filter_map(work).collect();
    let wanted = [
        "a is written, over true",
        "b is written, over false",
        "a2 is linked",
    ];
    assert_eq!(done, wanted);
    assert_eq!(replica.parked_count(), 0);
}

/// Proves that a parked object that the source removes is parked no more.
#[test]
fn removal_ends_parking() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let unsettled = vec![Inline::Unsettled];
    replica
        .handle_batch(batch(vec![create(2, 2, "a")], unsettled))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(replica.parked_count(), 1);
    replica
        .handle_batch(batch(vec![remove(3, 2, "a")], vec![]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(replica.parked_count(), 0);
    assert_eq!(sync(&mut replica, &mut t), Seq(3));
}

/// Proves that a claim passes a record whose content was answered "removed by 4" only together
/// with record 4.
#[test]
fn claims_wait_for_the_removing_number() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let removed = vec![Inline::Removed { by: Seq(4) }];
    replica
        .handle_batch(batch(vec![create(2, 2, "a")], removed))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(1));
    replica
        .handle_batch(batch(vec![create(3, 3, "b")], vec![here(3)]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(1));
    replica
        .handle_batch(batch(vec![remove(4, 2, "a")], vec![]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(4));
}

/// Proves that the same holds where the answer came by a fetch that earlier batches waited for.
#[test]
fn claims_wait_for_what_a_fetch_said() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    replica
        .handle_batch(batch(vec![create(2, 2, "a")], vec![Inline::Pull]))
        .unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(replica.poll_fetch().map(|w| w.object), Some(id(2)));
    assert_eq!(sync(&mut replica, &mut t), Seq(1));
    let gone = FetchResult::Removed(Seq(9));
    replica.handle_fetched(NOW, &mut t, id(2), gone).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    assert_eq!(sync(&mut replica, &mut t), Seq(1));
}

/// A file that was moved, while nothing but that fails.
fn failed_move(replica: &mut Replica, t: &mut MemTables) {
    let batch_of_one = batch(vec![create(2, 2, "a")], vec![here(2)]);
    replica.handle_batch(batch_of_one).unwrap();
    drain(replica, t, &mut |_| true);
    let mut rename = record(3);
    for (file, object) in [("a", None), ("b", Some(id(2)))] {
        rename.names.push(NameState {
            parent: id(1),
            name: name(file),
            object,
        });
    }
    let mut moved = state(2, 3, Kind::File);
    moved.content_seq = Seq(2);
    rename.objects.push(moved);
    let records = vec![rename, create(4, 4, "a"), create(5, 5, "c")];
    let contents = vec![here(4), here(5)];
    replica.handle_batch(batch(records, contents)).unwrap();
}

/// Proves that a move that failed holds back what wants its names and nothing else, and that this is
/// tried again as soon as the move is done.
#[test]
fn a_failed_move_holds_back_what_depends_on_it() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    failed_move(&mut replica, &mut t);
    let ops = drain(&mut replica, &mut t, &mut |op| {
        !matches!(op, ApplyOp::Move(_))
    });
    let written = |ops: &[ApplyOp]| {
        let files = ops.iter().filter_map(|op| match op {
            ApplyOp::WriteFile { at, .. } => Some(at.name.clone()),
            _ => None,
        });
        files.collect::<Vec<_>>()
    };
    assert_eq!(written(&ops), [name("c")]);
    assert!(replica.is_idle());
    assert_eq!(
        sync(&mut replica, &mut t),
        Seq(5),
        "what is parked is claimed"
    );
    assert_eq!(replica.parked_count(), 2);
    let later = WallMillis(NOW.0 + 10_000);
    replica.handle_timeout(later, &mut t).unwrap();
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    assert!(matches!(ops[0], ApplyOp::Move(_)), "{ops:?}");
    assert_eq!(replica.poll_timeout(), Some(WallMillis(0)), "at once");
    replica.handle_timeout(later, &mut t).unwrap();
    assert_eq!(replica.poll_fetch().map(|want| want.object), Some(id(4)));
}

/// Proves that a name which becomes a link of a file that cannot be moved yet is linked once that is
/// moved, though what was to come to that name before is removed from it meanwhile.
#[test]
fn a_link_that_waits_outlives_a_removal_at_its_name() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    failed_move(&mut replica, &mut t);
    drain(&mut replica, &mut t, &mut |op| match op {
        ApplyOp::Move(_) => false,
        ApplyOp::WriteFile { at, .. } => at.name != name("c"),
        _ => true,
    });
    let mut swapped = record(6);
    for (file, object) in [("c", 2), ("d", 5)] {
        swapped.names.push(NameState {
            parent: id(1),
            name: name(file),
            object: Some(id(object)),
        });
        let mut moved = state(object, 6, Kind::File);
        moved.content_seq = Seq(object);
        swapped.objects.push(moved);
    }
    replica.handle_batch(batch(vec![swapped], vec![])).unwrap();
    drain(&mut replica, &mut t, &mut |op| {
        !matches!(op, ApplyOp::Move(_))
    });
    let mut linked = Vec::new();
    for later in 1..4 {
        let later = WallMillis(NOW.0 + 100_000 * later);
        replica.handle_timeout(later, &mut t).unwrap();
        let ops = drain(&mut replica, &mut t, &mut |_| true);
        linked.extend(ops.into_iter().filter_map(|op| match op {
            ApplyOp::Link { id, at, .. } => Some((id, at.name)),
            _ => None,
        }));
    }
    assert_eq!(linked, [(id(2), name("c"))]);
}

/// Proves that what is neither at its old name nor at its new one is fetched again, and that its
/// old folder is looked through for what was left there.
#[test]
fn what_a_move_does_not_find_is_fetched_again() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    failed_move(&mut replica, &mut t);
    let step = replica.poll_step(NOW, &mut t).unwrap().unwrap();
    assert!(matches!(step.ops[..], [ApplyOp::Move(_)]), "{step:?}");
    drop(step);
    let missing = ApplyResult::Moved(vec![MoveResult::Missing]);
    replica.handle_applied(NOW, &mut t, vec![missing]).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    replica.handle_timeout(NOW, &mut t).unwrap();
    assert_eq!(replica.poll_fetch().map(|want| want.object), Some(id(2)));
    assert!(replica.is_sweeping());
}

/// Proves that what nobody has at a name, and cannot be removed now, is removed later, and that the
/// target is not in sync before; but that it does not wait for ever for that.
#[test]
fn a_sweep_that_failed_is_tried_again() {
    for works_after in [2, 100] {
        let mut t = MemTables::default();
        let mut replica = replica(&mut t);
        failed_move(&mut replica, &mut t);
        let step = replica.poll_step(NOW, &mut t).unwrap().unwrap();
        drop(step);
        let missing = ApplyResult::Moved(vec![MoveResult::Missing]);
        replica.handle_applied(NOW, &mut t, vec![missing]).unwrap();
        drain(&mut replica, &mut t, &mut |_| true);
        assert_eq!(sync(&mut replica, &mut t), Seq(5));
        let (mut tries, mut wall) = (0, NOW);
        while replica.is_sweeping() {
            assert!(!replica.is_in_sync());
            let folder = replica.poll_sweep(wall, &mut t).unwrap().unwrap();
            let left = SweepEntry {
                name: name("left"),
                kind: Kind::File,
                identity: seen(9, Kind::File).fingerprint.identity,
            };
            let there = if tries > works_after {
                vec![]
            } else {
                vec![left]
            };
            replica.handle_swept(wall, &mut t, &folder, there).unwrap();
            drain(&mut replica, &mut t, &mut |op| {
                tries += u32::from(matches!(op, ApplyOp::Remove { .. }));
                tries > works_after
            });
            if tries <= works_after {
                assert!(
                    replica.poll_sweep(NOW, &mut t).unwrap().is_none(),
                    "at once"
                );
            }
            wall.0 += 100_000;
        }
        assert_eq!(tries, works_after.min(5) + 1);
    }
}

/// Proves that what cannot be moved any more, and was to get other content and metadata since, is
/// fetched with all of that.
#[test]
fn what_is_given_up_gets_its_newest_metadata() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let first = batch(vec![create(2, 2, "a")], vec![here(2)]);
    replica.handle_batch(first).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    let mut rename = record(3);
    for (file, object) in [("a", None), ("b", Some(id(2)))] {
        rename.names.push(NameState {
            parent: id(1),
            name: name(file),
            object,
        });
    }
    let mut moved = state(2, 3, Kind::File);
    moved.content_seq = Seq(2);
    rename.objects.push(moved);
    let mut dressed = change(5, 2);
    dressed.objects[0].content_seq = Seq(4);
    dressed.objects[0].meta.mode = 0o600;
    for (record, contents) in [
        (rename, vec![]),
        (change(4, 2), vec![Inline::Pull]),
        (dressed, vec![]),
    ] {
        replica.handle_batch(batch(vec![record], contents)).unwrap();
        drain(&mut replica, &mut t, &mut |op| {
            !matches!(op, ApplyOp::Move(_))
        });
    }
    let later = WallMillis(NOW.0 + 10_000);
    replica.handle_timeout(later, &mut t).unwrap();
    let step = replica.poll_step(NOW, &mut t).unwrap().unwrap();
    assert!(matches!(step.ops[..], [ApplyOp::Move(_)]), "{step:?}");
    drop(step);
    let missing = ApplyResult::Moved(vec![MoveResult::Missing]);
    replica.handle_applied(NOW, &mut t, vec![missing]).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    replica.handle_timeout(later, &mut t).unwrap();
    drain(&mut replica, &mut t, &mut |_| true);
    replica.poll_fetch().expect("it is fetched");
    let staged = staged(4);
    assert!(replica.handle_fetched(NOW, &mut t, id(2), staged).unwrap());
    let ops = drain(&mut replica, &mut t, &mut |_| true);
    let mode = ops.iter().find_map(|op| match op {
        ApplyOp::WriteFile { meta, .. } => Some(meta.mode),
        _ => None,
    });
    assert_eq!(mode, Some(0o600), "{ops:?}");
}

/// Proves that what is parked is due after a start, whatever the clock said before: one that was set
/// back must not park it for as long.
#[test]
fn a_start_tries_what_is_parked_at_once() {
    let mut t = MemTables::default();
    let mut first = replica(&mut t);
    first
        .handle_batch(batch(vec![create(2, 2, "a")], vec![here(2)]))
        .unwrap();
    drain(&mut first, &mut t, &mut |_| false);
    assert!(first.poll_timeout() > Some(NOW));
    let before = WallMillis(NOW.0 / 2);
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut second = Replica::open(&mut t, filter, false).unwrap();
    assert!(second.poll_timeout() <= Some(before));
    second.handle_timeout(before, &mut t).unwrap();
    let want = second.poll_fetch().expect("it is tried again");
    assert_eq!(want.object, id(2));
}

/// Proves that a cursor of another history is told apart.
#[test]
fn another_history_is_refused() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let accepted = |origin, resumed| Accepted {
        origin,
        incarnation: RUN,
        resumed,
        head: Seq(9),
        complete: true,
    };
    assert!(
        !replica
            .handle_accepted(&mut t, &accepted(OriginId(8), true))
            .unwrap()
    );
    assert!(
        !replica
            .handle_accepted(&mut t, &accepted(ORIGIN, false))
            .unwrap()
    );
    assert!(
        replica
            .handle_accepted(&mut t, &accepted(ORIGIN, true))
            .unwrap()
    );
}

fn file(disk: &mut crate::sim::Disk, at: &str, bytes: &[u8], mtime: Timestamp) -> NodeId {
    let node = disk.create_file(ROOT, &name(at)).unwrap();
    disk.write(node, bytes);
    disk.close(node);
    disk.set_mtime(node, mtime);
    node
}

/// Proves that taking over a root keeps what is equal as it is, moves what is foreign or differs to
/// the trash, and leaves alone what the filter excludes.
#[test]
fn adoption_keeps_equal_and_trashes_foreign() {
    let mut scenario = Scenario::calm(0);
    scenario.filter.exclude = vec!["skip".to_owned()];
    scenario.target = TargetTuning {
        adopt: true,
        ..TargetTuning::default()
    };
    let mut world = World::new(scenario, 3);
    let old = Timestamp { secs: 77, nanos: 0 };
    // It starts again behind these changes: its first scan finds them.
    world.source.crash();
    file(&mut world.source.disk, "equal", b"same", old);
    file(&mut world.source.disk, "large", &[b'x'; 60], old);
    file(&mut world.source.disk, "differs", b"new", old);
    let target = &mut world.target.disk;
    let equal = file(target, "equal", b"same", old);
    let large = file(target, "large", &[b'x'; 60], old);
    file(target, "differs", b"older", old);
    file(target, "foreign", b"?", old);
    let folder = target.mkdir(ROOT, &name("foreign-folder")).unwrap();
    target.create_file(folder, &name("inside")).unwrap();
    let kept = file(target, "skip-me", b"!", old);
    world.source.disk.take_events();
    world.settle().unwrap();
    let target = &world.target.disk;
    assert_eq!(target.at("equal"), Some(equal));
    assert_eq!(target.at("large"), Some(large));
    assert_eq!(target.at("skip-me"), Some(kept));
    assert_eq!(target.node(target.at("differs").unwrap()).bytes, b"new");
    assert_eq!(target.at("foreign"), None);
    assert_eq!(target.at("foreign-folder"), None);
    assert!(target.at(".cdsync/root").is_some());
    let trashed: Vec<String> = target.trash.iter().map(|t| t.path.to_string()).collect();
    for gone in ["differs", "foreign", "foreign-folder"] {
        assert!(trashed.iter().any(|t| t == gone), "{gone} of {trashed:?}");
    }
}

/// Proves that the tombstones of what was removed go once the claim has passed it, and none before;
/// and that a target looks for them by itself after many removals.
#[test]
fn claimed_tombstones_go() {
    let stands = |t: &MemTables, number| access::object(t, id(number)).unwrap().is_some();
    let come_and_go = |replica: &mut Replica, t: &mut MemTables, seq| {
        let records = vec![create(seq, seq, "a"), remove(seq + 1, seq, "a")];
        replica
            .handle_batch(batch(records, vec![here(seq)]))
            .unwrap();
        drain(replica, t, &mut |_| true);
    };
    let mut t = MemTables::default();
    let mut early = replica(&mut t);
    come_and_go(&mut early, &mut t, 2);
    early.drop_tombstones(&mut t).unwrap();
    assert!(stands(&t, 2), "it is not claimed");
    sync(&mut early, &mut t);
    early.drop_tombstones(&mut t).unwrap();
    assert!(!stands(&t, 2));

    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let mut seqs = (2..).step_by(2);
    while !replica.has_tombstones() {
        let seq = seqs.next().unwrap();
        come_and_go(&mut replica, &mut t, seq);
        assert_eq!(sync(&mut replica, &mut t), Seq(seq + 1));
    }
    assert!(stands(&t, 2));
    while replica.has_tombstones() {
        replica.drop_tombstones(&mut t).unwrap();
    }
    assert!(!stands(&t, 2) && stands(&t, 1), "but not the root");
}
