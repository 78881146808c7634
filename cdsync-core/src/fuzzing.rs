//! What the fuzzer and the replay of its corpus call: bytes of somebody else's in, no panic out.

use std::str::FromStr as _;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::filter::{Filter, FilterSpec};
use crate::ids::{IncarnationId, Label, ObjectId, OriginId};
use crate::ledger::digest::DigestKey;
use crate::ledger::loss::Losses;
use crate::ledger::object::{Fingerprint, Identity, Kind, Metadata, Observed, Seq};
use crate::ledger::record::Record;
use crate::ledger::rows::{Incarnation, NameRow, ObjectRow, ParkedRow, Progress, decode_row};
use crate::ledger::snapshot::{AnswerError, answer};
use crate::ledger::tables::Table;
use crate::ledger::xattrs::Xattrs;
use crate::path::{Escaped, Name, RelPath, is_hidden};
use crate::replica::{ApplyOp, ApplyResult, MoveResult, Replica};
use crate::sim::MemTables;
use crate::time::{Timestamp, WallMillis};
use crate::wire::{
    Accepted, AgentMessage, BatchHeader, CompareAnswer, CompareAsk, CompareWhy, Grant, JoinReply,
    JoinRequest, MasterMessage, Orders, PeerMessage, Signed, Snapshot, decode, encode,
};

/// Steps that one batch may take: more is a loop.
const STEPS_MAX: usize = 10_000;

/// A message of this type, and back: what was taken once is taken again as it was.
fn message<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(taken) = decode::<T>(bytes) {
        let once = encode(&taken);
        let again: T = decode(&once).expect("what was taken is taken again");
        assert_eq!(encode(&again), once, "the same again");
    }
}

/// Messages between agents.
pub fn peer(bytes: &[u8]) {
    message::<PeerMessage>(bytes);
    message::<BatchHeader>(bytes);
}

/// Messages between agents and the master, and those of joining.
pub fn control(bytes: &[u8]) {
    message::<AgentMessage>(bytes);
    message::<MasterMessage>(bytes);
    message::<JoinRequest>(bytes);
    message::<JoinReply>(bytes);
    message::<Signed>(bytes);
    message::<Orders>(bytes);
    message::<Grant>(bytes);
}

/// Rows of a ledger, names, paths and labels.
pub fn rows(bytes: &[u8]) {
    // Damaged rows are told; nothing more is asked of them here.
    let _ = decode_row::<ObjectRow>(Table::Objects, bytes);
    let _ = decode_row::<NameRow>(Table::Names, bytes);
    let _ = decode_row::<ParkedRow>(Table::Parked, bytes);
    let _ = decode_row::<(u64, Record)>(Table::Log, bytes);
    let _ = decode_row::<Incarnation>(Table::Meta, bytes);
    let _ = decode_row::<Progress>(Table::Meta, bytes);
    let _ = ObjectId::from_key(bytes);
    if let Ok(name) = Name::new(bytes) {
        assert!(!name.as_bytes().contains(&b'/'), "one name");
    }
    if let Ok(path) = RelPath::new(bytes.to_vec()) {
        assert!(path.components().all(|c| c != b".."), "it stays below");
    }
    let shown = Escaped(bytes).to_string();
    assert!(!shown.contains(is_hidden), "on one line");
    let _ = std::str::from_utf8(bytes).map(Label::from_str);
}

/// A target that is sent batches: each is `[u16 LE length][header]`, and behind each a byte whose
/// bits say which operations fail on the disk.
pub fn replica(bytes: &[u8]) {
    const ORIGIN: OriginId = OriginId(0x11);
    let mut t = MemTables::default();
    let filter = Filter::new(&FilterSpec::default()).expect("no filter is a filter");
    let mut replica = Replica::open(&mut t, filter, false).expect("tables do not fail");
    let accepted = Accepted {
        origin: ORIGIN,
        incarnation: IncarnationId(0x22),
        resumed: false,
        head: Seq(1),
        complete: false,
    };
    let taken = replica.handle_accepted(&mut t, &accepted);
    assert!(taken.expect("tables do not fail"), "an empty ledger");
    let mut rest = bytes;
    while let Some((len, more)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(more.len());
        let (batch, more) = more.split_at(len);
        let (fails, more) = more.split_first().unwrap_or((&0, more));
        rest = more;
        let Ok(batch) = decode::<BatchHeader>(batch) else {
            continue;
        };
        // As its driver does: no more while it waits for something.
        if replica.is_idle() && replica.handle_batch(batch).is_ok() {
            run(&mut replica, &mut t, *fails);
        }
        if replica.take_refused().is_some() {
            assert!(replica.is_idle(), "nothing of it is left");
        }
    }
}

/// A target that compares: each answer is `[u16 LE length][answer]`, and behind each a byte whose
/// bits say which operations fail on the disk. What the answers bring is asked about too, as a
/// target that is hostile asks a source.
pub fn compare(bytes: &[u8]) {
    let of = Snapshot {
        origin: OriginId(0x11),
        incarnation: IncarnationId(0x22),
        at: Seq(300),
        bytes: 0,
        files: 0,
        why: CompareWhy::Unknown,
        key: [0; 32],
    };
    let mut t = MemTables::default();
    let filter = Filter::new(&FilterSpec::default()).expect("no filter is a filter");
    let mut replica = Replica::open(&mut t, filter, false).expect("tables do not fail");
    let mut rest = bytes;
    while let Some((len, more)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(more.len());
        let (message, more) = more.split_at(len);
        let (fails, more) = more.split_first().unwrap_or((&0, more));
        rest = more;
        if let Ok(ask) = decode::<CompareAsk>(message) {
            let answered = answer(&t, of.origin, &DigestKey(of.key), &ask);
            assert!(
                !matches!(answered, Err(AnswerError::Table(_))),
                "tables do not fail"
            );
        }
        if !replica.is_reconciling() {
            let begun = replica.handle_snapshot(&mut t, &of);
            assert!(begun.expect("tables do not fail"), "the same origin");
        }
        replica.poll_compare(&t).expect("tables do not fail");
        if let Ok(answer) = decode::<CompareAnswer>(message) {
            let taken = replica.handle_compared(&mut t, answer);
            taken.expect("tables do not fail");
        }
        replica.poll_compare(&t).expect("tables do not fail");
        for _ in 0..STEPS_MAX {
            if !replica.has_differences() {
                break;
            }
            replica
                .plan_differences(&mut t)
                .expect("tables do not fail");
            run(&mut replica, &mut t, *fails);
        }
        assert!(!replica.has_differences(), "it goes on and on");
        replica.take_refused();
    }
}

fn run(replica: &mut Replica, t: &mut MemTables, fails: u8) {
    for _ in 0..STEPS_MAX {
        let step = replica.poll_step(WallMillis(1), t);
        let Some(step) = step.expect("tables do not fail") else {
            if replica.poll_sync() {
                replica.handle_synced(t).expect("tables do not fail");
            }
            return;
        };
        let result = |(at, op): (usize, &ApplyOp)| {
            if fails >> (at % 8) & 1 == 1 {
                ApplyResult::Failed("not today".to_owned())
            } else if let ApplyOp::Move(moves) = op {
                let one = |index: usize| match seen(op).into_iter().next() {
                    Some(seen) if fails >> (index % 7) & 1 == 0 => MoveResult::Done(Box::new(seen)),
                    _ => MoveResult::Missing,
                };
                ApplyResult::Moved((0..moves.len()).map(one).collect())
            } else {
                ApplyResult::Done(seen(op))
            }
        };
        let results = step.ops.iter().enumerate().map(result).collect();
        drop(step);
        let applied = replica.handle_applied(WallMillis(1), t, results);
        applied.expect("tables do not fail");
    }
    panic!("it goes on and on");
}

/// What a disk shows after an operation.
fn seen(op: &ApplyOp) -> Vec<Observed> {
    let kind = match op {
        ApplyOp::Remove { .. } => return Vec::new(),
        ApplyOp::MakeFolder { .. } => Kind::Folder,
        ApplyOp::SetMeta { kind, .. } => *kind,
        _ => Kind::File,
    };
    let looked = |number| Observed {
        fingerprint: Fingerprint {
            identity: Identity {
                inode: number,
                born: Timestamp::default(),
            },
            size: 0,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
        },
        kind,
        meta: Metadata {
            mode: 0,
            uid: 0,
            gid: 0,
            user: Vec::new(),
            group: Vec::new(),
            mtime: Timestamp::default(),
            xattrs: Xattrs::NONE,
        },
        link_count: 1,
        device: 0,
        link: None,
        handle: None,
        left_out: None,
        losses: Losses::NONE,
    };
    match op {
        ApplyOp::Move(moves) => moves.iter().map(|one| looked(one.id.number)).collect(),
        _ => vec![looked(op.object().map_or(0, |id| id.number))],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Proves that nothing which a fuzzer once found worth keeping panics.
    #[test]
    fn the_corpus_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 5] = [
            ("peer", super::peer),
            ("control", super::control),
            ("rows", super::rows),
            ("replica", super::replica),
            ("compare", super::compare),
        ];
        for (name, target) in targets {
            let mut count = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
