//! What a comparison costs, and what comes out of it where objects wait for each other.

use super::*;
use crate::ledger::digest::DigestKey;
use crate::ledger::snapshot::{answer, snapshot};
use crate::wire::{CompareAsk, CompareWhy, PeerMessage, Snapshot, encode};

/// A source and a target that holds all of it, with nothing between them.
struct Apart {
    world: World,
}

impl Apart {
    fn new(make: impl FnOnce(&mut crate::sim::Disk)) -> Self {
        let mut world = World::new(Scenario::calm(0), 1);
        make(&mut world.source.disk);
        world.settle().unwrap();
        world.check().unwrap();
        world.session = None;
        Self { world }
    }

    /// Changes the source, while its log keeps nothing.
    fn change(&mut self, change: impl FnOnce(&mut crate::sim::Disk)) {
        change(&mut self.world.source.disk);
        for _ in 0..2_000 {
            self.world.advance(10_000);
            self.world.source.pump(&mut |_| {});
        }
        assert!(self.world.source.is_quiet(), "all of it is in the log");
        self.world.source.trim(0);
    }

    fn together(mut self) {
        self.world
            .settle()
            .unwrap_or_else(|e| panic!("{e}\n{}", self.world.story()));
        self.world
            .check()
            .unwrap_or_else(|e| panic!("{e}\n{}", self.world.story()));
        let names = self.world.target.disk.walk();
        let aside = names
            .iter()
            .find(|(path, _)| path.to_string().contains("aside"));
        assert!(aside.is_none(), "nothing stays out of the way");
    }
}

fn file(disk: &mut crate::sim::Disk, folder: NodeId, text: &str) -> NodeId {
    let node = disk.create_file(folder, &name(text)).unwrap();
    disk.write(node, text.as_bytes());
    disk.close(node);
    node
}

/// Proves that what a comparison costs on the wire grows with what differs, and not with what there
/// is: twelve differences of five thousand names.
#[test]
fn a_comparison_costs_what_differs() {
    let mut apart = Apart::new(|disk| {
        for folder in 0..5 {
            let node = disk
                .mkdir(ROOT, &name(&format!("folder {folder}")))
                .unwrap();
            for at in 0..1_000 {
                file(disk, node, &format!("file {at} of {folder}"));
            }
        }
    });
    apart.change(|disk| {
        for folder in 0..4 {
            let node = disk.at(&format!("folder {folder}")).unwrap();
            let old = name(&format!("file 7 of {folder}"));
            disk.rename((node, &old), (node, &name("renamed")));
            disk.unlink(node, &name(&format!("file 8 of {folder}")));
            file(disk, node, "new");
        }
    });
    let World { source, target, .. } = &mut apart.world;
    let key = DigestKey([3; 32]);
    let of = snapshot(&source.tables, CompareWhy::Behind, key)
        .unwrap()
        .unwrap();
    let replica = target.machine.as_mut().unwrap();
    assert!(replica.handle_snapshot(&mut target.tables, &of).unwrap());
    let (mut bytes, mut asked) = (0, 0);
    loop {
        let ask = replica.poll_compare(&target.tables).unwrap().unwrap();
        asked += 1;
        let done = ask == CompareAsk::Done;
        bytes += encode(&PeerMessage::Compare(ask.clone())).len();
        let Some(answer) = answer(&source.tables, of.origin, &key, &ask).unwrap() else {
            assert!(done);
            break;
        };
        bytes += encode(&PeerMessage::Compared(answer.clone())).len();
        replica.handle_compared(&mut target.tables, answer).unwrap();
        assert_eq!(replica.take_refused(), None);
    }
    let found = replica.reconciling().unwrap().found;
    // Twelve objects, four folders and the root.
    assert_eq!(found, 17);
    eprintln!("{bytes} bytes in {asked} questions");
    assert!(bytes < 24 << 10, "{bytes} bytes");
    apart.together();
}

/// Proves that a snapshot of a source that is still looking through its disk does not count as all
/// that there is, before the source says so.
#[test]
fn a_snapshot_is_not_all_that_there_is_unless_told() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let snapshot = |why| Snapshot {
        origin: ORIGIN,
        incarnation: RUN,
        at: Seq(7),
        bytes: 0,
        files: 0,
        why,
        key: [0; 32],
    };
    let behind = snapshot(CompareWhy::Behind);
    assert!(replica.handle_snapshot(&mut t, &behind).unwrap());
    assert!(!replica.complete, "only the source knows");
    let unknown = snapshot(CompareWhy::Unknown);
    assert!(replica.handle_snapshot(&mut t, &unknown).unwrap());
    assert!(replica.complete, "without that it is not served");
}

/// Proves that files that moved between folders while the target was away are moved there, not
/// removed and sent again, and that swaps and folders turned round come out right.
#[test]
fn what_moved_is_moved() {
    let mut apart = Apart::new(|disk| {
        let [a, b] = ["a", "b"].map(|text| disk.mkdir(ROOT, &name(text)).unwrap());
        for at in 0..20 {
            file(disk, a, &format!("x{at}"));
        }
        file(disk, b, "other");
        let mut at = ROOT;
        for text in ["c", "d", "e"] {
            at = disk.mkdir(at, &name(text)).unwrap();
            file(disk, at, "in it");
        }
    });
    let before = apart.world.target.published.len();
    apart.change(|disk| {
        let [a, b, c] = ["a", "b", "c"].map(|text| disk.at(text).unwrap());
        let [d, e] = ["c/d", "c/d/e"].map(|text| disk.at(text).unwrap());
        for at in 0..20 {
            let text = name(&format!("x{at}"));
            disk.rename((a, &text), (b, &text));
        }
        disk.exchange((b, &name("x1")), (b, &name("x2")));
        disk.exchange((ROOT, &name("a")), (ROOT, &name("b")));
        // c/d/e becomes e/d/c.
        disk.rename((d, &name("e")), (ROOT, &name("e")));
        disk.rename((c, &name("d")), (e, &name("d")));
        disk.rename((ROOT, &name("c")), (d, &name("c")));
    });
    let world = &mut apart.world;
    world.settle().unwrap();
    assert_eq!(
        world.target.published.len(),
        before,
        "nothing was sent again"
    );
    apart.together();
}

/// Proves that a folder made in the place of another one whose content moved into it is filled by
/// moves, however much that is: each waits for the other.
#[test]
fn what_waits_for_each_other_is_untied() {
    for count in [3, 600] {
        let mut apart = Apart::new(|disk| {
            let a = disk.mkdir(ROOT, &name("a")).unwrap();
            for at in 0..count {
                file(disk, a, &format!("x{at}"));
            }
        });
        let before = apart.world.target.published.len();
        apart.change(|disk| {
            let a = disk.at("a").unwrap();
            let made = disk.mkdir(ROOT, &name("made")).unwrap();
            for at in 0..count {
                let text = name(&format!("x{at}"));
                disk.rename((a, &text), (made, &text));
            }
            disk.unlink(ROOT, &name("a"));
            disk.rename((ROOT, &name("made")), (ROOT, &name("a")));
        });
        let world = &mut apart.world;
        world.settle().unwrap();
        assert_eq!(
            world.target.published.len(),
            before,
            "nothing was sent again"
        );
        apart.together();
    }
}

/// Proves that a target of another source's ledger is told so, and that a cursor of a history that
/// nobody knows leads to a comparison once more after a kill, not to the log's beginning.
#[test]
fn a_history_that_nobody_knows_is_compared() {
    let mut t = MemTables::default();
    let mut replica = replica(&mut t);
    let of = Snapshot {
        origin: ORIGIN,
        incarnation: IncarnationId(77),
        at: Seq(1),
        bytes: 0,
        files: 0,
        why: CompareWhy::Unknown,
        key: [0; 32],
    };
    let before = replica.resume();
    assert!(before.is_some(), "it has claimed something");
    assert!(replica.handle_snapshot(&mut t, &of).unwrap());
    assert_eq!(replica.claim(), Seq(0), "numbers of another history");
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut again = Replica::open(&mut t, filter, false).unwrap();
    assert_eq!(again.resume(), before);
    let other = Snapshot {
        origin: OriginId(99),
        ..of
    };
    assert!(!again.handle_snapshot(&mut t, &other).unwrap());
}
