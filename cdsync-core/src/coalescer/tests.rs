//! What is recorded, change by change: a source on a model disk, without a target.

use super::*;
use crate::filter::FilterSpec;
use crate::ids::{BootId, ObjectId};
use crate::ledger::access::{self, log_after};
use crate::ledger::object::Kind;
use crate::ledger::outgoing::content_at;
use crate::ledger::rows::encode_row;
use crate::ledger::writer::knows_cursor;
use crate::sim::{Disk, Durability, MemTables, NodeId, SourceSim, SourceTuning};

const ROOT: NodeId = 1;
const OUTSIDE: NodeId = 2;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn source(include: &[&str], exclude: &[&str]) -> SourceSim {
    let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
    let spec = FilterSpec {
        include: list(include),
        exclude: list(exclude),
    };
    let filter = Filter::new(&spec).unwrap();
    let mut source = SourceSim::new(filter, SourceTuning::default(), 1);
    source.start();
    settle(&mut source);
    source
}

/// Runs the engine until everything is in the log, and returns the records since the last time.
fn settle(source: &mut SourceSim) -> Vec<Record> {
    let before = source.tables_head();
    for _ in 0..2000 {
        source.disk.clock += 5_000_000;
        source.pump(&mut |_| {});
        if source.is_quiet() {
            break;
        }
    }
    assert!(source.is_quiet(), "the source comes to rest");
    let records = records_after(source, before);
    // Later changes happen at another time of the clock.
    source.disk.clock += 100_000_000;
    records
}

/// Reads the content of every file for sending, and notes its hash.
fn send(source: &mut SourceSim) {
    for id in told(source).into_values() {
        let at = content_at(&source.tables, &mut Folders::default(), id, Seq(0)).unwrap();
        if let Ok(at) = at {
            source.read(&at, &mut |_| {}).expect("nobody writes to it");
        }
    }
    settle(source);
}

fn records_after(source: &SourceSim, before: Seq) -> Vec<Record> {
    let mut records = Vec::new();
    log_after(&source.tables, before, &mut |_, record| {
        records.push(record);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    records
}

/// Answers the listings that may be started now, each in one part, those of `failing` by the disk's
/// failure. Returns whether there were any.
fn list_whole(source: &mut SourceSim, failing: &[&str]) -> bool {
    let (now, wall) = (source.now(), source.disk.wall());
    let SourceSim {
        disk,
        tables,
        machine,
        ..
    } = source;
    let machine = machine.as_mut().unwrap();
    let mut folders = Vec::new();
    while let Some(request) = machine.poll_listing(tables).unwrap() {
        folders.push(request.folder);
    }
    for folder in &folders {
        let id = folder.id;
        let (mut entries, mut itself) = (Vec::new(), Err(failed()));
        if !failing.contains(&folder.path.to_string().as_str()) {
            let node = disk.open(folder);
            if let Ok(node) = node {
                let names = disk.node(node).children.keys();
                entries.extend(names.map(|n| (n.clone(), Ok(disk.look(node, n).unwrap()))));
            }
            itself = node.map(|node| disk.observe(node));
        }
        machine
            .handle_listed(now, wall, tables, id, entries)
            .unwrap();
        machine
            .handle_list_end(now, wall, tables, id, itself)
            .unwrap();
    }
    !folders.is_empty()
}

/// What the names lead to by all records so far.
fn told(source: &SourceSim) -> BTreeMap<Slot, ObjectId> {
    let mut names = BTreeMap::new();
    for record in records_after(source, Seq(0)) {
        for state in record.names {
            let slot = (state.parent, state.name);
            match state.object {
                Some(id) => names.insert(slot, id),
                None => names.remove(&slot),
            };
        }
    }
    names
}

/// A source whose first scan has listed the root, and nothing below it yet.
fn source_with_its_root_listed(prepare: impl FnOnce(&mut Disk)) -> SourceSim {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut source = SourceSim::new(filter, SourceTuning::default(), 1);
    prepare(&mut source.disk);
    source.start();
    assert!(list_whole(&mut source, &[]), "the root is listed");
    source
}

fn write(disk: &mut Disk, folder: NodeId, file: &str, bytes: &[u8]) -> NodeId {
    let id = disk.create_file(folder, &name(file)).unwrap();
    disk.write(id, bytes);
    disk.close(id);
    id
}

fn tree(disk: &mut Disk, files: usize) -> NodeId {
    let top = disk.mkdir(ROOT, &name("dir")).unwrap();
    for i in 0..files {
        write(disk, top, &format!("f{i}"), b"x");
    }
    top
}

fn object_at(source: &SourceSim, parent: ObjectId, file: &str) -> Option<ObjectId> {
    let row = access::name(&source.tables, parent, &name(file)).unwrap();
    row.and_then(|row| row.object)
}

fn root() -> ObjectId {
    ObjectId::root(OriginId(0x1111_2222_3333_4444))
}

/// Proves that a rename is one record of two names, without content and under 4 KiB.
#[test]
fn a_rename_is_one_small_record() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, ROOT, "a", b"hello");
    settle(&mut source);
    source.disk.rename((ROOT, &name("a")), (ROOT, &name("b")));
    let records = settle(&mut source);
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].names.len(), 2);
    assert_eq!(records[0].contents().count(), 0);
    assert!(encode_row(&records[0]).len() < 4096);
}

/// Proves that a swap is one record in which both names change, although it arrives as two renames.
#[test]
fn a_swap_is_one_record() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, ROOT, "a", b"1");
    write(&mut source.disk, ROOT, "b", b"2");
    settle(&mut source);
    let before = object_at(&source, root(), "a");
    source.disk.exchange((ROOT, &name("a")), (ROOT, &name("b")));
    let records = settle(&mut source);
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(object_at(&source, root(), "b"), before);
    assert!(records[0].removed.is_empty());
    assert_eq!(records[0].contents().count(), 0);
}

/// Proves that a rename over a file is one record that also removes what was there.
#[test]
fn a_rename_over_is_one_record() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, ROOT, "a", b"1");
    write(&mut source.disk, ROOT, "b", b"2");
    settle(&mut source);
    let (a, b) = (
        object_at(&source, root(), "a"),
        object_at(&source, root(), "b"),
    );
    source.disk.rename((ROOT, &name("a")), (ROOT, &name("b")));
    let records = settle(&mut source);
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].removed, [b.unwrap()]);
    assert_eq!(object_at(&source, root(), "b"), a);
    let deleted = crate::change::changes(&records[0])
        .into_iter()
        .find(|change| change.op == crate::wire::Op::Delete);
    let deleted = deleted.and_then(|change| change.name).unwrap();
    assert_eq!(deleted.name, name("b"), "the log tells where it was");
}

/// Proves that the rename of a folder with a thousand files is one record of two names.
#[test]
fn a_folder_rename_is_one_record() {
    let mut source = source(&[], &[]);
    tree(&mut source.disk, 1000);
    settle(&mut source);
    source
        .disk
        .rename((ROOT, &name("dir")), (ROOT, &name("moved")));
    let records = settle(&mut source);
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].names.len(), 2);
    assert!(encode_row(&records[0]).len() < 4096);
}

/// Proves that saving by a temporary file and a rename is one record that replaces the file, and
/// that the temporary name is never told.
#[test]
fn a_save_is_one_record() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, ROOT, "a", b"old");
    settle(&mut source);
    write(&mut source.disk, ROOT, ".a.tmp", b"new");
    source
        .disk
        .rename((ROOT, &name(".a.tmp")), (ROOT, &name("a")));
    let records = settle(&mut source);
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(records[0].names.iter().all(|n| n.name == name("a")));
    assert_eq!(records[0].contents().count(), 1);
}

/// Proves that a folder which is removed and made anew stays the object that it was: its files are
/// replaced one by one, what did not come back is removed, and what is new is told of.
#[test]
fn a_folder_made_anew_stays_what_it_was() {
    let mut source = source(&[], &[]);
    tree(&mut source.disk, 3);
    settle(&mut source);
    let folder = object_at(&source, root(), "dir").unwrap();
    let kept = object_at(&source, folder, "f0").unwrap();
    let gone = object_at(&source, folder, "f2").unwrap();
    source.disk.remove_tree(ROOT, &name("dir"));
    let made = tree(&mut source.disk, 2);
    write(&mut source.disk, made, "new", b"n");
    let records = settle(&mut source);
    assert_eq!(object_at(&source, root(), "dir"), Some(folder));
    let removed: BTreeSet<ObjectId> = records.iter().flat_map(|r| r.removed.clone()).collect();
    assert!(removed.contains(&gone) && removed.contains(&kept));
    assert!(!removed.contains(&folder), "the folder stays");
    assert_ne!(object_at(&source, folder, "f0"), Some(kept));
    for (file, there) in [("f1", true), ("f2", false), ("new", true)] {
        assert_eq!(object_at(&source, folder, file).is_some(), there, "{file}");
    }
    // What happens in it from now on is heard.
    write(&mut source.disk, made, "later", b"l");
    settle(&mut source);
    assert!(object_at(&source, folder, "later").is_some());
}

/// Proves that a burst of deletes is held, that names at which something comes back leave it, and
/// that the rest goes once it has been judged.
#[test]
fn bursts_of_deletes_are_held_and_judged() {
    let mut source = source(&[], &[]);
    let dir = tree(&mut source.disk, 60);
    settle(&mut source);
    assert_eq!(source.machine.as_ref().unwrap().files(), 60);
    for file in 0..30 {
        source.disk.unlink(dir, &name(&format!("f{file}")));
    }
    let before = source.tables_head();
    for _ in 0..20 {
        source.disk.clock += 1_000_000;
        source.pump(&mut |_| {});
    }
    let machine = source.machine.as_ref().unwrap();
    assert!(machine.is_holding() && !machine.is_settled(source.now()));
    assert_eq!(records_after(&source, before), [], "nothing has gone yet");
    write(&mut source.disk, dir, "f0", b"back");
    let records = settle(&mut source);
    let folder = object_at(&source, root(), "dir").unwrap();
    assert_eq!(source.machine.as_ref().unwrap().files(), 31);
    assert!(object_at(&source, folder, "f0").is_some(), "it came back");
    assert!(object_at(&source, folder, "f1").is_none(), "it is gone");
    // It was replaced, not deleted.
    let replaced = records.iter().position(|r| !r.removed.is_empty()).unwrap();
    assert!(!records[replaced].objects.is_empty());
}

/// Proves that a file of two names counts once for the guard, whichever of them goes first: nothing
/// is held while each lives on under the other name, and all are counted when that goes too.
#[test]
fn a_file_of_two_names_counts_once() {
    for first in ["f", "g"] {
        let mut source = source(&[], &[]);
        let dir = tree(&mut source.disk, 20);
        settle(&mut source);
        for file in 0..20 {
            let id = source.disk.child(dir, &name(&format!("f{file}"))).unwrap();
            source.disk.link(id, ROOT, &name(&format!("g{file}")));
        }
        settle(&mut source);
        let unlink = |source: &mut SourceSim, which: &str| {
            let folder = if which == "f" { dir } else { ROOT };
            for file in 0..20 {
                source.disk.unlink(folder, &name(&format!("{which}{file}")));
            }
        };
        unlink(&mut source, first);
        settle(&mut source);
        assert_eq!(source.halted, None, "{first}");
        let machine = source.machine.as_ref().unwrap();
        assert_eq!((machine.files(), machine.is_holding()), (20, false));
        unlink(&mut source, if first == "f" { "g" } else { "f" });
        for _ in 0..2_000 {
            source.disk.clock += 10_000_000;
            source.pump(&mut |_| {});
            if source.halted.is_some() {
                break;
            }
        }
        let halt = source.halted.as_ref().expect("no file would be left");
        assert_eq!((halt.files, halt.gone, halt.held), (20, 0, 20), "{first}");
    }
}

/// Proves that a name that vanished is removed only after the kernel's queue was read out.
#[test]
fn deletes_wait_for_a_flush() {
    let mut source = source(&[], &[]);
    let id = write(&mut source.disk, ROOT, "a", b"1");
    settle(&mut source);
    let gone = object_at(&source, root(), "a").unwrap();
    source.disk.unlink(ROOT, &name("a"));
    let hints = source.disk.take_events();
    let observed = source.disk.observe(ROOT);
    let (now, wall) = (source.now(), source.disk.wall());
    let machine = source.machine.as_mut().unwrap();
    machine.handle_hints(now, &source.tables, hints).unwrap();
    let head = machine.head();
    let looks = machine.poll_looks(now, &source.tables).unwrap();
    let looked = |looks: Vec<LookRequest>| {
        looks
            .into_iter()
            .map(|look| Looked {
                folder: look.folder.id,
                itself: Ok(observed.clone()),
                names: look.names.into_iter().map(|n| (n, Ok(None))).collect(),
            })
            .collect::<Vec<_>>()
    };
    let found = looked(looks);
    machine
        .handle_looked(now, wall, &mut source.tables, found)
        .unwrap();
    let removed = |tables: &MemTables| {
        let mut removed = Vec::new();
        log_after(tables, head, &mut |_, record| {
            removed.extend(record.removed);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        removed
    };
    assert!(removed(&source.tables).is_empty(), "nothing before a flush");
    assert!(machine.poll_flush());
    machine.handle_flushed(now);
    let looks = machine.poll_looks(now, &source.tables).unwrap();
    let found = looked(looks);
    machine
        .handle_looked(now, wall, &mut source.tables, found)
        .unwrap();
    assert_eq!(removed(&source.tables), [gone]);
    let _ = id;
}

/// Proves that hints of folders that the ledger does not know, such as those outside of the root,
/// change nothing.
#[test]
fn hints_of_unknown_folders_say_nothing() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, OUTSIDE, "a", b"1");
    assert!(settle(&mut source).is_empty());
}

/// Proves that a second write within one step of the clock, of equal size, is not missed.
#[test]
fn racy_times_are_not_trusted() {
    let mut source = source(&[], &[]);
    source.disk.granularity = 10_000_000;
    let id = write(&mut source.disk, ROOT, "a", b"one");
    source.disk.clock += 1_000_000;
    source.pump(&mut |_| {});
    source.disk.clock += 1_000_000;
    source.pump(&mut |_| {});
    let head = source.tables_head();
    source.disk.open_file(id);
    source.disk.write(id, b"two");
    source.disk.close(id);
    source.disk.clock += 1_000_000;
    source.pump(&mut |_| {});
    let mut contents = 0;
    log_after(&source.tables, head, &mut |_, record| {
        contents += record.contents().count();
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(contents, 1);
}

/// Proves that a scan after downtime knows renamed folders and files by their identity: no content
/// goes again.
#[test]
fn a_scan_finds_renames() {
    let mut source = source(&[], &[]);
    let top = tree(&mut source.disk, 5);
    settle(&mut source);
    send(&mut source);
    source.crash();
    source.disk.rename((top, &name("f0")), (ROOT, &name("g0")));
    source
        .disk
        .rename((ROOT, &name("dir")), (ROOT, &name("moved")));
    source.disk.clock += 20_000_000_000;
    source.start();
    let records = settle(&mut source);
    let contents: usize = records.iter().map(|r| r.contents().count()).sum();
    let removed: usize = records.iter().map(|r| r.removed.len()).sum();
    assert_eq!((contents, removed), (0, 0), "{records:#?}");
}

/// Proves that a first scan tells of each folder when it lists it, right before what is in it (as
/// far as it lists several at once), and of empty ones too: a target can make both at once.
#[test]
fn folders_are_told_of_before_what_is_in_them() {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut source = SourceSim::new(filter, SourceTuning::default(), 1);
    let disk = &mut source.disk;
    for top in ["a", "b", "c"] {
        let top = disk.mkdir(ROOT, &name(top)).unwrap();
        for inner in ["x", "y", "empty"] {
            write(disk, top, &format!("of-{inner}"), b"1");
            let inner = disk.mkdir(top, &name(inner)).unwrap();
            let innermost = disk.mkdir(inner, &name("z")).unwrap();
            for folder in [inner, innermost] {
                write(disk, folder, "g", b"2");
                write(disk, folder, "h", b"3");
            }
        }
    }
    let none = disk.mkdir(ROOT, &name("none")).unwrap();
    disk.mkdir(none, &name("neither")).unwrap();
    source.start();
    let records = settle(&mut source);
    // For each folder, the places in the log of its own record and of the last one in it.
    let mut spans: BTreeMap<ObjectId, (usize, usize)> = BTreeMap::new();
    for (at, record) in records.iter().enumerate() {
        for (state, named) in record.objects.iter().zip(&record.names) {
            if state.kind == Kind::Folder {
                spans.insert(state.id, (at, at));
            } else if let Some(span) = spans.get_mut(&named.parent) {
                span.1 = at;
            }
        }
    }
    assert_eq!(spans.len(), 3 + 9 + 9 + 2, "{records:#?}");
    for at in 0..records.len() {
        let begun = spans.values().filter(|span| (span.0..span.1).contains(&at));
        assert!(
            begun.count() <= listing::OUTSTANDING_MAX,
            "{at}: {records:#?}"
        );
    }
}

/// Proves that a folder which a crash left entered, but told to nobody, is told of by the next scan
/// with all that is in it.
#[test]
fn a_crash_before_a_folder_is_listed_hides_nothing() {
    let mut source = source_with_its_root_listed(|disk| {
        tree(disk, 3);
    });
    let folder = object_at(&source, root(), "dir").expect("it is entered");
    assert!(told(&source).is_empty(), "and told to nobody");
    let machine = source.machine.as_mut().unwrap();
    machine.finish(&mut source.tables).unwrap();
    source.tables.commit(Durability::Durable);
    source.crash();
    source.start();
    settle(&mut source);
    let told = told(&source);
    assert_eq!(told.get(&(root(), name("dir"))), Some(&folder));
    assert_eq!(told.len(), 4, "{told:?}");
}

/// Proves that a folder which cannot be listed is told of all the same.
#[test]
fn an_unreadable_folder_is_told_of() {
    let mut source = source_with_its_root_listed(|disk| {
        tree(disk, 3);
    });
    assert!(list_whole(&mut source, &["dir"]));
    let told = told(&source);
    assert_eq!(told.keys().collect::<Vec<_>>(), [&(root(), name("dir"))]);
}

/// Proves that a folder which is gone before it could be listed is never told of.
#[test]
fn a_folder_that_goes_before_it_is_listed_is_not_told_of() {
    let mut source = source_with_its_root_listed(|disk| {
        tree(disk, 3);
    });
    source.disk.remove_tree(ROOT, &name("dir"));
    assert!(list_whole(&mut source, &[]));
    settle(&mut source);
    assert!(object_at(&source, root(), "dir").is_none());
    let records = records_after(&source, Seq(0));
    assert!(
        records
            .iter()
            .all(|r| r.names.is_empty() && r.removed.is_empty()),
        "{records:#?}"
    );
}

/// Proves that a folder which is told of for what comes into it, in the very round in which it
/// moves, leaves nothing at its old name.
#[test]
fn a_folder_told_of_while_it_moves_leaves_its_old_name() {
    let mut source = source_with_its_root_listed(|disk| {
        write(disk, ROOT, "file", b"1");
        disk.mkdir(ROOT, &name("old")).unwrap();
    });
    let folder = object_at(&source, root(), "old").unwrap();
    let look = |path: &str, file: &str| Hint {
        folder: FolderKey::Path(RelPath::new(path.as_bytes().to_vec()).unwrap()),
        name: Some(name(file)),
        what: What::LOOK,
        partner: None,
        object: None,
    };
    let hints = [
        look("old", "file"),
        look("", "file"),
        look("", "old"),
        look("", "new"),
    ];
    let (now, wall) = (source.now(), source.disk.wall());
    let SourceSim {
        disk,
        tables,
        machine,
        ..
    } = &mut source;
    let machine = machine.as_mut().unwrap();
    let node = disk.child(ROOT, &name("old")).unwrap();
    machine.handle_hints(now, tables, hints).unwrap();
    let mut looks = machine.poll_looks(now, tables).unwrap();
    looks.sort_by_key(|look| look.folder.id.is_root());
    disk.rename((ROOT, &name("file")), (node, &name("file")));
    let mut looked = Vec::new();
    for look in looks {
        let node = disk.open(&look.folder).unwrap();
        let names = look.names.into_iter();
        looked.push(Looked {
            folder: look.folder.id,
            names: names
                .map(|n| (n.clone(), Ok(disk.look(node, &n))))
                .collect(),
            itself: Ok(disk.observe(node)),
        });
        // It moves behind the look at what is in it, before the look at its name.
        disk.rename((ROOT, &name("old")), (ROOT, &name("new")));
    }
    machine.handle_looked(now, wall, tables, looked).unwrap();
    settle(&mut source);
    let told = told(&source);
    assert_eq!(told.get(&(root(), name("new"))), Some(&folder));
    assert!(told.contains_key(&(folder, name("file"))), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
}

/// Proves that what moved out of a folder which is removed then stays what it is, also where it
/// takes the place of something that went into it.
#[test]
fn moves_out_of_a_folder_come_before_its_removal() {
    for swap in [false, true] {
        let mut source = source(&[], &[]);
        let disk = &mut source.disk;
        let old = disk.mkdir(ROOT, &name("old")).unwrap();
        let five = disk.mkdir(old, &name("five")).unwrap();
        write(disk, five, "file", b"1");
        let inner = disk.mkdir(ROOT, &name("inner")).unwrap();
        if swap {
            disk.mkdir(inner, &name("outer")).unwrap();
        }
        settle(&mut source);
        let before = object_at(&source, root(), "old").unwrap();
        let before = object_at(&source, before, "five");
        let disk = &mut source.disk;
        disk.rename((inner, &name("outer")), (five, &name("outer")));
        disk.rename((old, &name("five")), (inner, &name("outer")));
        disk.remove_tree(ROOT, &name("old"));
        let records = settle(&mut source);
        let inner = object_at(&source, root(), "inner").unwrap();
        let after = object_at(&source, inner, "outer");
        assert_eq!(after, before, "swap {swap}: {records:#?}");
        let contents: usize = records.iter().map(|r| r.contents().count()).sum();
        assert_eq!(contents, 0, "{records:#?}");
    }
}

/// Proves that a folder's rename judges everything below it again: what no longer matches leaves,
/// what matches now joins.
#[test]
fn filters_judge_again_after_a_rename() {
    let mut source = source(&["^in/", "^also/"], &[]);
    let inside = source.disk.mkdir(ROOT, &name("in")).unwrap();
    write(&mut source.disk, inside, "leaver", b"1");
    let out = source.disk.mkdir(ROOT, &name("out")).unwrap();
    write(&mut source.disk, out, "joiner", b"2");
    settle(&mut source);
    source
        .disk
        .rename((ROOT, &name("in")), (ROOT, &name("gone")));
    source
        .disk
        .rename((ROOT, &name("out")), (ROOT, &name("in")));
    let records = settle(&mut source);
    let folder = object_at(&source, root(), "in").unwrap();
    assert!(object_at(&source, folder, "joiner").is_some());
    let removed: usize = records.iter().map(|r| r.removed.len()).sum();
    assert!(removed >= 1, "the leaver goes: {records:#?}");
    let files = records.iter().flat_map(|r| &r.objects);
    assert!(files.clone().any(|o| o.kind == Kind::File));
}

/// Proves that cursors of every run are known up to where that run ended, and no others.
#[test]
fn cursors_belong_to_incarnations() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, ROOT, "a", b"1");
    settle(&mut source);
    let first = source.machine.as_ref().unwrap().incarnation();
    let end = source.announced();
    source.crash();
    source.start();
    write(&mut source.disk, ROOT, "b", b"1");
    settle(&mut source);
    let second = source.machine.as_ref().unwrap().incarnation();
    let head = source.announced();
    let origin = source.machine.as_ref().unwrap().origin();
    let knows = |run, seq| knows_cursor(&source.tables, origin, run, seq).unwrap();
    assert!(knows(first, end) && knows(second, head));
    assert!(!knows(first, end.next()), "beyond the end of that run");
    assert!(!knows(second, head.next()));
    assert!(!knows(IncarnationId(77), end), "an unknown run");
    assert!(!knows_cursor(&source.tables, OriginId(9), first, end).unwrap());
}

/// Proves that a crash takes back what was not durable, and nothing else.
#[test]
fn tables_crash_to_what_is_durable() {
    use crate::ledger::tables::{Table, Tables as _, TablesRead as _};
    let mut tables = MemTables::default();
    tables.put(Table::Meta, b"k", b"1").unwrap();
    tables.commit(Durability::Durable);
    tables.put(Table::Meta, b"k", b"2").unwrap();
    tables.commit(Durability::Lazy);
    tables.remove(Table::Meta, b"k").unwrap();
    tables.abort();
    assert_eq!(tables.get(Table::Meta, b"k").unwrap(), Some(b"2".to_vec()));
    tables.crash();
    assert_eq!(tables.get(Table::Meta, b"k").unwrap(), Some(b"1".to_vec()));
}

fn failed() -> LookError {
    LookError::Failed("input/output error".to_owned())
}

/// Looks that are due, answered by the disk or, with `fail`, by its failure.
fn answer_looks(source: &mut SourceSim, fail: bool) {
    let (now, wall) = (source.now(), source.disk.wall());
    let SourceSim {
        disk,
        tables,
        machine,
        ..
    } = source;
    let machine = machine.as_mut().unwrap();
    let looks = machine.poll_looks(now, tables).unwrap();
    let looked = looks
        .into_iter()
        .map(|look| {
            let node = disk.open(&look.folder).unwrap();
            let see = |name: &Name| match disk.look(node, name) {
                _ if fail => Err(failed()),
                seen => Ok(seen),
            };
            let names = look.names.into_iter().map(|n| (n.clone(), see(&n)));
            Looked {
                folder: look.folder.id,
                names: names.collect(),
                itself: Ok(disk.observe(node)),
            }
        })
        .collect();
    machine.handle_looked(now, wall, tables, looked).unwrap();
}

fn held(source: &mut SourceSim) -> Vec<String> {
    let machine = source.machine.as_mut().unwrap();
    let held = machine.held(&source.tables, 10).unwrap();
    held.into_iter().map(|held| held.path.to_string()).collect()
}

/// Proves that a name which the disk fails to show is held by name, and recorded once it is shown.
#[test]
fn what_a_disk_fails_to_show_is_held_and_tried_again() {
    let mut source = source(&[], &[]);
    write(&mut source.disk, ROOT, "a", b"1");
    let hints = source.disk.take_events();
    let now = source.now();
    let machine = source.machine.as_mut().unwrap();
    machine.handle_hints(now, &source.tables, hints).unwrap();
    machine.hurry(now);
    assert!(!machine.is_settled(now), "the fence waits for a look");
    answer_looks(&mut source, true);
    let machine = source.machine.as_mut().unwrap();
    assert!(machine.is_settled(now), "but not for the disk to get well");
    assert_eq!(machine.held_count(), 1);
    assert_eq!(held(&mut source), ["a"]);
    assert!(object_at(&source, root(), "a").is_none());
    // It is tried again by itself.
    settle(&mut source);
    assert!(object_at(&source, root(), "a").is_some());
    assert!(held(&mut source).is_empty());
}

/// Proves that a folder which cannot be listed is held, even the root, that the log is not called
/// complete meanwhile, and that what it holds is recorded once it can be listed.
#[test]
fn a_folder_that_cannot_be_listed_keeps_the_log_incomplete() {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut source = SourceSim::new(filter, SourceTuning::default(), 1);
    write(&mut source.disk, ROOT, "a", b"1");
    source.start();
    let (now, wall) = (source.now(), source.disk.wall());
    let machine = source.machine.as_mut().unwrap();
    let folder = machine.poll_listing(&source.tables).unwrap();
    let folder = folder.expect("the scan begins").folder.id;
    machine
        .handle_list_end(now, wall, &mut source.tables, folder, Err(failed()))
        .unwrap();
    assert!(machine.is_settled(now));
    assert!(!machine.poll_complete(now), "nothing was seen of it");
    assert_eq!(held(&mut source), ["."]);
    settle(&mut source);
    assert!(held(&mut source).is_empty());
    let now = source.now();
    assert!(source.machine.as_mut().unwrap().poll_complete(now));
    assert!(object_at(&source, root(), "a").is_some());
}

/// Proves that a scan which could not list a folder goes on below it when that is listed for another
/// reason.
#[test]
fn a_scan_goes_on_where_a_folder_is_listed_again() {
    let mut source = source(&[], &[]);
    let top = tree(&mut source.disk, 1);
    settle(&mut source);
    source.crash();
    write(&mut source.disk, top, "new", b"2");
    source.start();
    assert!(list_whole(&mut source, &["."]), "the root fails");
    let machine = source.machine.as_mut().unwrap();
    machine.listings.again(root(), false);
    settle(&mut source);
    let folder = object_at(&source, root(), "dir").unwrap();
    assert!(object_at(&source, folder, "new").is_some());
}

/// Proves that a folder which leaves one that a scan could not list is listed where it comes to: it
/// is not there any more when the other can be listed.
#[test]
fn what_leaves_a_folder_that_a_scan_could_not_list_is_listed() {
    let mut source = source(&[], &[]);
    let top = tree(&mut source.disk, 1);
    let inner = source.disk.mkdir(top, &name("inner")).unwrap();
    settle(&mut source);
    source.crash();
    write(&mut source.disk, inner, "new", b"2");
    source.start();
    assert!(list_whole(&mut source, &[]), "the root is listed");
    assert!(list_whole(&mut source, &["dir"]), "what is in it fails");
    source.pump(&mut |_| {});
    let (from, to) = (name("inner"), name("moved"));
    assert!(source.disk.rename((top, &from), (ROOT, &to)));
    settle(&mut source);
    let folder = object_at(&source, root(), "moved").unwrap();
    assert!(object_at(&source, folder, "new").is_some());
}

/// Proves that the new bytes of a file are told which was written, with its old time restored, while
/// nobody watched, and which has left its folder by the time that the folder can be listed.
#[test]
fn what_was_written_unwatched_is_told_where_its_folder_could_not_be_listed() {
    let mut source = source(&[], &[]);
    let top = tree(&mut source.disk, 1);
    settle(&mut source);
    let (from, to) = (name("f0"), name("moved"));
    let file = source.disk.child(top, &from).unwrap();
    source.crash();
    let mtime = source.disk.node(file).meta.mtime;
    source.disk.open_file(file);
    source.disk.write(file, b"y");
    source.disk.close(file);
    source.disk.set_mtime(file, mtime);
    source.start();
    assert!(list_whole(&mut source, &[]), "the root is listed");
    assert!(list_whole(&mut source, &["dir"]), "what is in it fails");
    source.pump(&mut |_| {});
    assert!(source.disk.rename((top, &from), (ROOT, &to)));
    let records = settle(&mut source);
    let id = object_at(&source, root(), "moved").unwrap();
    assert!(
        records.iter().any(|r| r.contents().any(|c| c.id == id)),
        "{records:?}"
    );
}

/// Proves that a name excluded by the filter holds up nobody, whatever the disk says of it.
#[test]
fn excluded_names_are_not_held() {
    let mut source = source(&[], &["^secret"]);
    let hint = Hint {
        folder: FolderKey::Path(RelPath::root()),
        name: Some(name("secret")),
        what: What::LOOK,
        partner: None,
        object: None,
    };
    let now = source.now();
    let machine = source.machine.as_mut().unwrap();
    machine.handle_hints(now, &source.tables, [hint]).unwrap();
    answer_looks(&mut source, true);
    assert!(held(&mut source).is_empty());
}

/// Proves that deletes which halt a job begin, for whoever takes them back, with the first name that
/// a file lost which then lost its last one.
#[test]
fn deletes_begin_with_the_first_name() {
    let mut source = source(&[], &[]);
    let dir = tree(&mut source.disk, 20);
    let id = source.disk.child(dir, &name("f0")).unwrap();
    source.disk.link(id, ROOT, &name("g"));
    settle(&mut source);
    let before = source.tables_head();
    source.disk.unlink(ROOT, &name("g"));
    assert_eq!(settle(&mut source).len(), 1, "the name went by itself");
    source.disk.unlink(dir, &name("f0"));
    settle(&mut source);
    for file in 1..20 {
        source.disk.unlink(dir, &name(&format!("f{file}")));
    }
    for _ in 0..2_000 {
        source.disk.clock += 10_000_000;
        source.pump(&mut |_| {});
        if source.halted.is_some() {
            break;
        }
    }
    let halt = source.halted.as_ref().expect("no file would be left");
    assert_eq!((halt.gone, halt.after), (1, before));
}

/// Proves that what happened to a name while something was mounted over it is told once that is
/// gone, of which nobody tells: when somebody waits for everything, and by itself after a while.
#[test]
fn what_was_covered_is_looked_at_again() {
    for asked in [true, false] {
        let mut source = source(&[], &[]);
        let dir = source.disk.mkdir(ROOT, &name("dir")).unwrap();
        write(&mut source.disk, dir, "f", b"1");
        write(&mut source.disk, ROOT, "other", b"2");
        settle(&mut source);
        let covered = (ROOT, name("dir"));
        source.disk.covered.insert(covered.clone());
        let other = name("other");
        assert!(source.disk.exchange((ROOT, &covered.1), (ROOT, &other)));
        write(&mut source.disk, dir, "g", b"3");
        settle(&mut source);
        source.disk.covered.clear();
        let now = source.now();
        match asked {
            true => source.machine.as_mut().unwrap().hurry(now),
            false => source.disk.clock += 5_000_000_000,
        }
        settle(&mut source);
        let seen = object_at(&source, root(), "dir").unwrap();
        let row = access::live(&source.tables, seen).unwrap().unwrap();
        assert_eq!(row.state.kind, Kind::File);
        let moved = object_at(&source, root(), "other").unwrap();
        assert!(object_at(&source, moved, "g").is_some());
    }
}

/// Proves that a change by a name that was made and removed before anybody looked is told of the
/// file's other name, and that so is one by a name outside of the root or one that is not carried.
#[test]
fn changes_by_other_names_are_told() {
    let mut source = source(&[], &["^secret"]);
    let file = write(&mut source.disk, ROOT, "f", b"one");
    settle(&mut source);
    let mode = |records: &[Record]| {
        let states = records.iter().flat_map(|record| &record.objects);
        let files = states.filter(|state| state.kind == Kind::File);
        files.map(|state| state.meta.mode).collect::<Vec<_>>()
    };
    assert!(source.disk.link(file, ROOT, &name("fleeting")));
    source.disk.set_mode(file, 0o600, None);
    assert!(source.disk.unlink(ROOT, &name("fleeting")));
    assert_eq!(mode(&settle(&mut source)), [0o600]);
    for (folder, other, wanted) in [(OUTSIDE, "x", 0o640), (ROOT, "secret", 0o644)] {
        assert!(source.disk.link(file, folder, &name(other)));
        settle(&mut source);
        source.disk.set_mode(file, wanted, None);
        assert_eq!(mode(&settle(&mut source)), [wanted], "{other}");
        assert!(source.disk.unlink(folder, &name(other)));
        settle(&mut source);
    }
    // The bytes too, where nothing but the hint tells.
    let mtime = source.disk.node(file).meta.mtime;
    source.disk.open_file(file);
    assert!(source.disk.link(file, ROOT, &name("fleeting")));
    source.disk.open_file(file);
    source.disk.write(file, b"two");
    assert!(source.disk.unlink(ROOT, &name("fleeting")));
    source.disk.close(file);
    source.disk.set_mtime(file, mtime);
    let records = settle(&mut source);
    let id = object_at(&source, root(), "f").unwrap();
    let states = records.iter().flat_map(|record| &record.objects);
    let mut states = states.filter(|state| state.id == id);
    assert!(
        states.any(|s| s.content_seq == s.version.seq),
        "{records:#?}"
    );
}

/// Proves that the log is complete only with what still waited for its close when the scan ended.
#[test]
fn complete_waits_for_what_lingers() {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let mut source = SourceSim::new(filter, SourceTuning::default(), 1);
    source.start();
    let open = source.disk.create_file(ROOT, &name("open")).unwrap();
    source.disk.write(open, b"half");
    let mut complete = false;
    for _ in 0..20 {
        source.pump(&mut |_| {});
        source.disk.clock += 100_000;
        let now = source.now();
        if source.machine.as_mut().unwrap().poll_complete(now) {
            complete = true;
            break;
        }
    }
    assert!(complete, "without waiting for the close");
    assert!(object_at(&source, root(), "open").is_some());
}

/// Proves that a change of attributes while nobody watched is told without content, and that the
/// bytes are read again and compared: none go again, unless they are other ones than were sent.
#[test]
fn bytes_in_doubt_are_compared() {
    for written in [false, true] {
        let mut source = source(&[], &[]);
        let file = write(&mut source.disk, ROOT, "f", b"one");
        settle(&mut source);
        send(&mut source);
        source.crash();
        let mtime = source.disk.node(file).meta.mtime;
        source.disk.open_file(file);
        source.disk.clock += 20_000_000_000;
        if written {
            source.disk.open_file(file);
            source.disk.write(file, b"two");
            source.disk.close(file);
            source.disk.set_mtime(file, mtime);
        }
        source.disk.set_mode(file, 0o600, None);
        source.start();
        let records = settle(&mut source);
        let modes: Vec<u32> = records
            .iter()
            .flat_map(|r| &r.objects)
            .map(|o| o.meta.mode)
            .collect();
        assert!(
            modes.contains(&0o600),
            "the attributes are told: {records:#?}"
        );
        let contents: usize = records.iter().map(|r| r.contents().count()).sum();
        assert_eq!(contents, usize::from(written), "{records:#?}");
    }
}

/// Proves that, after the system came up anew, bytes that the disk may have lost are read again, and
/// told of if they are other ones behind the same times; and that nothing is read again that had
/// been written long before, nor after a restart of the agent alone.
#[test]
fn bytes_that_a_power_cut_may_have_lost_are_compared() {
    for (boot, after, doubts) in [(2, 1, 1), (2, 3600, 0), (1, 1, 0)] {
        let mut source = source(&[], &[]);
        let boots = |source: &mut SourceSim, boot| {
            let machine = source.machine.as_mut().unwrap();
            machine
                .handle_boot(&mut source.tables, BootId(boot))
                .unwrap();
        };
        boots(&mut source, 1);
        let file = write(&mut source.disk, ROOT, "f", b"two");
        settle(&mut source);
        send(&mut source);
        source.disk.clock += after * 1_000_000_000;
        source.disk.set_mode(ROOT, 0o700, None);
        settle(&mut source);
        source.crash();
        source.disk.lose_bytes(file, b"one");
        source.start();
        boots(&mut source, boot);
        assert_eq!(source.machine.as_ref().unwrap().doubt_count(), doubts);
        let records = settle(&mut source);
        let contents: usize = records.iter().map(|r| r.contents().count()).sum();
        assert_eq!(
            contents as u64, doubts,
            "boot {boot}, {after} s: {records:#?}"
        );
    }
}

/// Proves that a doubt survives a crash: what raised it is in the ledger already.
#[test]
fn a_doubt_survives_a_crash() {
    let mut source = source(&[], &[]);
    let file = write(&mut source.disk, ROOT, "f", b"one");
    settle(&mut source);
    send(&mut source);
    let before = source.tables_head();
    source.crash();
    let mtime = source.disk.node(file).meta.mtime;
    source.disk.open_file(file);
    source.disk.clock += 20_000_000_000;
    source.disk.open_file(file);
    source.disk.write(file, b"two");
    source.disk.close(file);
    source.disk.set_mtime(file, mtime);
    source.start();
    let doubts = |source: &SourceSim| source.machine.as_ref().unwrap().doubt_count();
    while doubts(&source) == 0 {
        source.disk.clock += 1_000_000;
        source.pump(&mut |_| {});
    }
    source.crash();
    source.start();
    assert_eq!(doubts(&source), 1);
    settle(&mut source);
    let records = records_after(&source, before);
    let contents: usize = records.iter().map(|r| r.contents().count()).sum();
    assert_eq!(contents, 1, "{records:#?}");
}

/// Proves that what hints of a folder are lost is found by listing that folder alone, that the gap is
/// told while it is open, and that deletes and renames in it come as such.
#[test]
fn a_gap_compares_its_folder_alone() {
    let mut source = source(&[], &[]);
    for i in 0..20 {
        let folder = source.disk.mkdir(ROOT, &name(&format!("d{i}"))).unwrap();
        write(&mut source.disk, folder, "f", b"x");
    }
    let busy = tree(&mut source.disk, 12);
    settle(&mut source);
    send(&mut source);
    let listed = source.machine.as_ref().unwrap().listed_folders();
    source.tuning.buffer = 2;
    source.disk.clock += 1_000_000_000;
    for i in 0..6 {
        source.disk.unlink(busy, &name(&format!("f{i}")));
    }
    for i in 6..12 {
        let (from, to) = (name(&format!("f{i}")), name(&format!("g{i}")));
        source.disk.rename((busy, &from), (busy, &to));
    }
    let before = source.tables_head();
    source.pump(&mut |_| {});
    let machine = source.machine.as_mut().unwrap();
    let gaps = machine.gaps(&source.tables, 10).unwrap();
    let paths: Vec<String> = gaps.iter().map(|gap| gap.path.to_string()).collect();
    assert_eq!((paths, machine.gap_count()), (vec!["dir".to_owned()], 1));
    let settled = source.machine.as_ref().unwrap().is_settled(source.now());
    assert!(!settled, "a fence waits for it");
    settle(&mut source);
    let machine = source.machine.as_ref().unwrap();
    assert_eq!(machine.gap_count(), 0);
    assert_eq!(machine.listed_folders() - listed, 1);
    let records = records_after(&source, before);
    let contents: usize = records.iter().map(|r| r.contents().count()).sum();
    let removed: usize = records.iter().map(|r| r.removed.len()).sum();
    assert_eq!((contents, removed), (0, 6), "{records:#?}");
}

/// Proves that too many gaps merge into those of the folders above them, and that these find what
/// happened below.
#[test]
fn gaps_merge_upwards() {
    let mut source = source(&[], &[]);
    let (left, right) = (
        source.disk.mkdir(ROOT, &name("left")).unwrap(),
        source.disk.mkdir(ROOT, &name("right")).unwrap(),
    );
    let mut folders = Vec::new();
    for i in 0..5 {
        let folder = source.disk.mkdir(left, &name(&format!("d{i}"))).unwrap();
        write(&mut source.disk, folder, "f", b"x");
        folders.push(folder);
        write(&mut source.disk, right, &format!("f{i}"), b"x");
    }
    settle(&mut source);
    // The bounds of a start.
    source.tuning.tight = true;
    source.crash();
    source.start();
    settle(&mut source);
    source.tuning.buffer = 1;
    for folder in folders {
        source.disk.unlink(folder, &name("f"));
    }
    let before = source.tables_head();
    source.pump(&mut |_| {});
    let machine = source.machine.as_mut().unwrap();
    let gaps = machine.gaps(&source.tables, 10).unwrap();
    let paths: Vec<String> = gaps.iter().map(|gap| gap.path.to_string()).collect();
    assert_eq!(paths, ["left"]);
    settle(&mut source);
    let records = records_after(&source, before);
    let removed: usize = records.iter().map(|r| r.removed.len()).sum();
    assert_eq!(removed, 5);
}

/// Proves that a safety scan finds what no event told (a write, a new file, a deletion, in a folder
/// below), once it still differs after `max_age`, and lists each folder once.
#[test]
fn a_safety_scan_finds_what_no_event_told() {
    let filter = Filter::new(&FilterSpec::default()).unwrap();
    let every = Duration::from_secs(600);
    let tuning = SourceTuning {
        scan_every: Some(every),
        ..SourceTuning::default()
    };
    let mut source = SourceSim::new(filter, tuning, 1);
    source.start();
    let top = tree(&mut source.disk, 3);
    settle(&mut source);
    let listed = source.machine.as_ref().unwrap().listed_folders();
    source.disk.clock += 1_000_000_000;
    let file = source.disk.child(top, &name("f0")).unwrap();
    source.disk.open_file(file);
    source.disk.write(file, b"by a map");
    source.disk.unlink(top, &name("f1"));
    write(&mut source.disk, top, "new", b"from elsewhere");
    source.disk.take_events();
    assert!(settle(&mut source).is_empty(), "nobody knows");
    let before = source.tables_head();
    for _ in 0..700 {
        source.disk.clock += 1_000_000_000;
        source.pump(&mut |_| {});
    }
    let machine = source.machine.as_ref().unwrap();
    assert_eq!(
        (machine.patrols_ended(), machine.listed_folders() - listed),
        (1, 2)
    );
    let records = records_after(&source, before);
    let contents: usize = records.iter().map(|r| r.contents().count()).sum();
    let removed: usize = records.iter().map(|r| r.removed.len()).sum();
    assert_eq!((contents, removed), (2, 1), "{records:#?}");
}

/// Proves that a listing which is older than a look at the same names takes back neither what was
/// recorded of a file and of the folder itself, nor that a name is gone.
#[test]
fn an_old_listing_takes_nothing_back() {
    let mut source = source(&[], &[]);
    let folder = source.disk.mkdir(ROOT, &name("dir")).unwrap();
    let file = write(&mut source.disk, folder, "file", b"old");
    settle(&mut source);
    source.machine.as_mut().unwrap().start_scan();
    assert!(list_whole(&mut source, &[]), "the root is listed");
    let machine = source.machine.as_mut().unwrap();
    let request = machine.poll_listing(&source.tables).unwrap().unwrap();
    write(&mut source.disk, folder, "brief", b"");
    let disk = &source.disk;
    let entries: Vec<_> = ["file", "brief"]
        .map(|n| (name(n), Ok(disk.look(folder, &name(n)).unwrap())))
        .into();
    let itself = Ok(disk.observe(folder));
    source.disk.clock += 100_000_000;
    source.disk.open_file(file);
    source.disk.write(file, b"new content");
    source.disk.close(file);
    source.disk.set_mode(folder, 0o711, None);
    source.disk.unlink(folder, &name("brief"));
    for _ in 0..100 {
        source.disk.clock += 5_000_000;
        source.pump(&mut |_| {});
    }
    let (now, wall) = (source.now(), source.disk.wall());
    let (machine, t) = (source.machine.as_mut().unwrap(), &mut source.tables);
    let id = request.folder.id;
    machine.handle_listed(now, wall, t, id, entries).unwrap();
    machine.handle_list_end(now, wall, t, id, itself).unwrap();
    settle(&mut source);
    let told = told(&source);
    assert!(!told.contains_key(&(id, name("brief"))), "{told:?}");
    for (slot, node) in [((id, name("file")), file), ((root(), name("dir")), folder)] {
        let row = access::live(&source.tables, told[&slot]).unwrap().unwrap();
        let seen = source.disk.observe(node);
        assert_eq!(row.state.meta, seen.meta);
        assert_eq!(
            row.local.map(|l| l.fingerprint.size),
            Some(seen.fingerprint.size)
        );
    }
}
