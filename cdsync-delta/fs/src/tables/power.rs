//! Power cuts and failing disks.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;

use cdsync_core::ledger::tables::TablesRead;
use cdsync_tests::{PowerDisk, Random, seed, survivors};

use super::*;

/// Small, so that pages also go to the disk before a commit.
const CACHE: usize = 64 * 1024;
const COMMITS: u64 = 60;

type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

fn open(disk: &PowerDisk) -> Result<LedgerStore, StoreError> {
    LedgerStore::open_on(Path::new("ledger"), disk.clone(), CACHE)
}

/// All rows of all tables.
fn content(store: &LedgerStore) -> Model {
    let view = store.read().unwrap();
    let mut found = Model::new();
    for (number, table) in Table::ALL.into_iter().enumerate() {
        view.range(table, b"", None, &mut |key, value| {
            found.insert((number, key.to_vec()), value.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    found
}

/// A transaction of the kind that ledgers see: the log is appended to, other tables change.
fn change(
    store: &LedgerStore,
    durability: Durability,
    random: &mut Random,
    model: &mut Model,
) -> Result<(), TableError> {
    let mut next = model.clone();
    store.write::<_, TableError>(durability, |t| {
        for _ in 0..random.below(30) {
            let number = usize::try_from(random.below(Table::ALL.len() as u64)).unwrap();
            let table = Table::ALL[number];
            let length = usize::try_from(random.below(700)).unwrap();
            let (mut key, value) = (random.below(200).to_be_bytes(), random.bytes(length));
            if table == Table::Log {
                let last = next.keys().filter(|(table, _)| *table == number).count();
                key = (last as u64 + 1).to_be_bytes();
            } else if random.below(3) == 0 {
                t.remove(table, &key)?;
                next.remove(&(number, key.to_vec()));
                continue;
            }
            t.put(table, &key, &value)?;
            next.insert((number, key.to_vec()), value);
        }
        Ok(())
    })?;
    *model = next;
    Ok(())
}

/// Proves that after a power cut at any sync, with any part of what was not synced lost, a ledger
/// opens and holds exactly what some durable commit held: the last one acknowledged, or the one
/// under way. Lazy commits between them are there with it or not at all.
#[test]
fn a_power_cut_leaves_the_last_durable_commit() {
    let mut random = Random::new(seed());
    let disk = PowerDisk::default();
    let store = open(&disk).unwrap();
    let mut model = Model::new();
    // When each durable commit was begun and acknowledged, with what it made so.
    let mut commits = vec![(0, disk.now(), model.clone())];
    for _ in 0..COMMITS {
        for _ in 0..random.below(4) {
            change(&store, Durability::Lazy, &mut random, &mut model).unwrap();
        }
        let began = disk.now();
        change(&store, Durability::Durable, &mut random, &mut model).unwrap();
        commits.push((began, disk.now(), model.clone()));
    }
    let mut tried = 0;
    for moment in disk.moments() {
        // A file that was never whole is made anew by the next start.
        let Some(acknowledged) = commits.iter().rposition(|(_, end, _)| *end <= moment) else {
            continue;
        };
        for _ in 0..3 {
            let image = disk.image(moment, &mut survivors(&mut random));
            let store = open(&PowerDisk::holding(image)).unwrap();
            let found = content(&store);
            let possible = commits[acknowledged..]
                .iter()
                .take_while(|(began, end, _)| *end <= moment || *began < moment);
            assert!(
                possible.clone().any(|(_, _, model)| *model == found),
                "cut at {moment}: {} rows are none of the {} possible states",
                found.len(),
                possible.count()
            );
            let mut model = found;
            change(&store, Durability::Durable, &mut random, &mut model).unwrap();
            assert_eq!(content(&store), model);
            tried += 1;
        }
    }
    eprintln!("{tried} cuts");
    assert!(tried > 3 * COMMITS);
}

/// Proves that a power cut while a ledger is made leaves one that opens, or a clear word: the file
/// named, nothing made up.
#[test]
fn a_power_cut_at_the_beginning_is_survived_or_told() {
    let mut random = Random::new(seed());
    let disk = PowerDisk::default();
    drop(open(&disk).unwrap());
    for moment in 0..=disk.now() {
        for _ in 0..8 {
            let image = disk.image(moment, &mut survivors(&mut random));
            match open(&PowerDisk::holding(image)) {
                Ok(store) => assert!(content(&store).is_empty()),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("'ledger' cannot be opened"), "{text}");
                }
            }
        }
    }
}

/// Proves that a disk that fails or is full in the middle of anything ends in an error that names
/// the file, that the store then refuses work, and that it holds everything acknowledged once the
/// disk is well and the store is opened anew.
#[test]
fn a_failing_disk_is_told_and_survived() {
    let mut random = Random::new(seed());
    let disk = PowerDisk::default();
    let mut store = open(&disk).unwrap();
    let mut model = Model::new();
    for round in 0..40 {
        change(&store, Durability::Durable, &mut random, &mut model).unwrap();
        let kind = *random.pick(&[ErrorKind::StorageFull, ErrorKind::Other]);
        let durable = model.clone();
        let mut attempted = model.clone();
        disk.fail(Some(kind));
        // Lazy ones may find room in memory; a durable one cannot be acknowledged.
        let mut failed = None;
        for _ in 0..4 {
            let durability = *random.pick(&[Durability::Lazy, Durability::Durable]);
            failed = change(&store, durability, &mut random, &mut attempted).err();
            assert!(
                failed.is_some() || durability == Durability::Lazy,
                "round {round}"
            );
            if failed.is_some() {
                break;
            }
        }
        if let Some(error) = failed {
            assert!(error.to_string().contains("'ledger' failed"), "{error}");
            let refused = store.read().unwrap_err().to_string();
            assert!(refused.contains("opened anew"), "{refused}");
        }
        drop(store);
        assert!(open(&disk).is_err(), "a store opened on a disk that fails");
        disk.fail(None);
        store = open(&disk).unwrap();
        model = content(&store);
        let kept = model == durable || model == attempted;
        assert!(kept, "round {round}: what was acknowledged is not there");
    }
}
