//! How a ledger of many entries behaves.

use std::time::{Duration, Instant};

use cdsync_core::ledger::tables::TablesRead;

use super::*;

/// As the engines have it.
const CACHE: usize = 8 << 20;
/// Beside the cache, whatever the size.
const REST_MAX_BYTES: u64 = 32 << 20;
const BATCH: u64 = 10_000;

/// A field of this process's status, in bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let rest = status.split(field).nth(1).unwrap();
    let kib: u64 = rest.split_whitespace().next().unwrap().parse().unwrap();
    kib << 10
}

/// Rows of about the size that a file has in a ledger: its name, itself, its record.
fn fill(store: &LedgerStore, entries: u64) {
    for first in (0..entries).step_by(usize::try_from(BATCH).unwrap()) {
        let durability = match (first / BATCH) % 10 {
            9 => Durability::Durable,
            _ => Durability::Lazy,
        };
        let put = |t: &mut dyn Tables| -> Result<(), TableError> {
            for number in first..(first + BATCH).min(entries) {
                let id = [7_u64.to_be_bytes(), number.to_be_bytes()].concat();
                let parent = [7_u64.to_be_bytes(), (number / 100).to_be_bytes()].concat();
                let name = [&parent[..], format!("file-{number}").as_bytes()].concat();
                t.put(Table::Names, &name, &[1; 20])?;
                t.put(Table::Objects, &id, &[2; 120])?;
                t.put(Table::Log, &number.to_be_bytes(), &[3; 110])?;
            }
            Ok(())
        };
        store.write::<_, TableError>(durability, put).unwrap();
    }
    let last = |_: &mut dyn Tables| Ok(());
    store
        .write::<_, TableError>(Durability::Durable, last)
        .unwrap();
}

fn timed(path: &Path, what: &str) -> (LedgerStore, Duration) {
    // Makes the peak start again from here.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let began = Instant::now();
    let store = LedgerStore::open(path, CACHE).unwrap();
    let took = began.elapsed();
    let grown = status("VmHWM:").saturating_sub(before);
    eprintln!("{what}: {took:?}, {} KiB more at most", grown >> 10);
    assert!(
        grown <= CACHE as u64 + REST_MAX_BYTES,
        "{what}: {grown} bytes"
    );
    (store, took)
}

/// Proves that a ledger of very many entries (`CDSYNC_ENTRIES`, by default a million) is opened in
/// memory that does not grow with it, after a polite end and after a kill. To be run alone.
#[test]
#[ignore = "minutes; run with --ignored, one test at a time"]
fn a_large_ledger_opens_in_little_memory() {
    let entries = std::env::var("CDSYNC_ENTRIES");
    let entries = entries.map_or(1_000_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (path, killed) = (folder.path().join("ledger"), folder.path().join("killed"));
    let store = LedgerStore::open(&path, CACHE).unwrap();
    let began = Instant::now();
    fill(&store, entries);
    let size = std::fs::metadata(&path).unwrap().len();
    eprintln!(
        "{entries} entries in {:?}: {} bytes each",
        began.elapsed(),
        size / entries
    );
    // As a process that is killed leaves it.
    std::fs::copy(&path, &killed).unwrap();
    drop(store);
    drop(timed(&path, "opened after a polite end"));
    let (store, _) = timed(&killed, "opened after a kill");
    let key = (entries - 1).to_be_bytes();
    let last = store.read().unwrap().last(Table::Log).unwrap().unwrap();
    assert_eq!(last.0, key);
}
