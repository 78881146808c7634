use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

use cdsync_core::ledger::tables::TablesRead;

use super::*;

const CACHE: usize = 4 * 1024 * 1024;

fn fresh() -> (tempfile::TempDir, PathBuf, LedgerStore) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let store = LedgerStore::open(&path, CACHE).unwrap();
    (folder, path, store)
}

fn rows(view: &dyn TablesRead, from: &[u8], to: Option<&[u8]>) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    view.range(Table::Names, from, to, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    keys
}

/// Proves that what a crash left of a store that was being made is in nobody's way.
#[test]
fn a_half_made_store_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    std::fs::write(path.with_extension("new"), b"half of one").unwrap();
    let store = LedgerStore::open(&path, CACHE).unwrap();
    assert!(store.read().unwrap().last(Table::Log).unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Proves that a store which comes back while it is opened is not taken for a new one, and that one
/// which goes is not made anew.
#[test]
fn a_store_that_comes_or_goes_is_refused() {
    let (_folder, path, store) = fresh();
    drop(store);
    assert!(LedgerStore::is_there(&path).unwrap());
    let opened = LedgerStore::open_as(false, &path, CACHE);
    assert!(
        matches!(opened, Err(StoreError::Unsteady { .. })),
        "{opened:?}"
    );
    drop(LedgerStore::open_as(true, &path, CACHE).unwrap());
    std::fs::remove_file(&path).unwrap();
    let opened = LedgerStore::open_as(true, &path, CACHE);
    assert!(matches!(opened, Err(StoreError::Open { .. })), "{opened:?}");
    assert!(!LedgerStore::is_there(&path).unwrap());
    drop(LedgerStore::open_as(false, &path, CACHE).unwrap());
}

/// Proves reads, ranges and the last row inside a transaction, and that tables are apart.
#[test]
fn tables_are_ordered_and_apart() {
    let (_folder, path, store) = fresh();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let done: Result<(), TableError> = store.write(Durability::Durable, |t| {
        for key in [&b"b"[..], b"a", b"c\xff", b"c", b""] {
            t.put(Table::Names, key, b"v")?;
        }
        t.put(Table::Log, b"zz", b"log")?;
        t.remove(Table::Names, b"b")?;
        t.remove(Table::Names, b"never there")?;
        assert_eq!(t.get(Table::Names, b"b")?, None);
        assert_eq!(t.get(Table::Names, b"a")?, Some(b"v".to_vec()));
        assert_eq!(rows(t, b"a", None), [&b"a"[..], b"c", b"c\xff"]);
        t.put(Table::Links, b"a", b"v")?;
        t.remove_until(Table::Links, b"a")?;
        assert_eq!(t.last(Table::Links)?, None);
        Ok(())
    });
    done.unwrap();
    let view = store.read().unwrap();
    assert_eq!(rows(&view, b"", Some(b"c")), [&b""[..], b"a"]);
    assert_eq!(rows(&view, b"c", Some(b"a")), Vec::<Vec<u8>>::new());
    assert_eq!(
        view.last(Table::Log).unwrap(),
        Some((b"zz".to_vec(), b"log".to_vec()))
    );
    assert_eq!(view.last(Table::Parked).unwrap(), None);
    let mut first = Vec::new();
    view.range(Table::Names, b"", None, &mut |key, _| {
        first.push(key.to_vec());
        ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(first.len(), 1);
    for table in Table::ALL {
        view.get(table, b"x").unwrap();
    }
}

/// Proves that a failed transaction leaves nothing, and that an open view does not move.
#[test]
fn failed_work_leaves_nothing() {
    let (_folder, _path, store) = fresh();
    let before = store.read().unwrap();
    let failed: Result<(), TableError> = store.write(Durability::Durable, |t| {
        t.put(Table::Meta, b"k", b"v")?;
        Err(TableError::Corrupt { table: "meta-0" })
    });
    assert!(matches!(failed, Err(TableError::Corrupt { .. })));
    assert_eq!(store.read().unwrap().get(Table::Meta, b"k").unwrap(), None);
    let put = |t: &mut dyn Tables| t.put(Table::Meta, b"k", b"v");
    store.write::<_, TableError>(Durability::Lazy, put).unwrap();
    assert_eq!(
        store.read().unwrap().get(Table::Meta, b"k").unwrap(),
        Some(b"v".to_vec())
    );
    assert_eq!(before.get(Table::Meta, b"k").unwrap(), None);
}

/// Proves that what was committed durably is there after a restart, and that two cannot open it.
#[test]
fn durable_commits_stay() {
    let (_folder, path, store) = fresh();
    let put = |key: &'static [u8]| move |t: &mut dyn Tables| t.put(Table::Meta, key, b"v");
    store
        .write::<_, TableError>(Durability::Lazy, put(b"lazy"))
        .unwrap();
    store
        .write::<_, TableError>(Durability::Durable, put(b"durable"))
        .unwrap();
    assert!(matches!(
        LedgerStore::open(&path, CACHE),
        Err(StoreError::InUse { .. })
    ));
    drop(store);
    let store = LedgerStore::open(&path, CACHE).unwrap();
    let view = store.read().unwrap();
    assert!(view.get(Table::Meta, b"lazy").unwrap().is_some());
    assert!(view.get(Table::Meta, b"durable").unwrap().is_some());
}

/// Proves that a failed store refuses work with a clear error until it is opened anew.
#[test]
fn failed_store_refuses() {
    let (_folder, path, store) = fresh();
    let _ = store.fail(&io::Error::other("disk on fire"));
    assert!(matches!(store.read(), Err(StoreError::Refused { .. })));
    let refused = store
        .write::<(), TableError>(Durability::Lazy, |_| Ok(()))
        .unwrap_err();
    assert!(
        refused.to_string().contains("must be opened anew"),
        "{refused}"
    );
    drop(store);
    assert!(LedgerStore::open(&path, CACHE).unwrap().read().is_ok());
}

/// Proves that many small lazy commits with a durable one now and then keep the file bounded, and
/// prints what a small transaction costs.
#[test]
fn lazy_commits_do_not_bloat() {
    let (_folder, path, store) = fresh();
    let started = std::time::Instant::now();
    let mut lazy = std::time::Duration::ZERO;
    for n in 0..2000u32 {
        let level = if n % 50 == 49 {
            Durability::Durable
        } else {
            Durability::Lazy
        };
        let begun = std::time::Instant::now();
        let done: Result<(), TableError> = store.write(level, |t| {
            let key = (n % 300).to_be_bytes();
            t.put(Table::Objects, &key, &[n as u8; 72])?;
            t.put(Table::Names, &key, &[1; 16])?;
            t.put(Table::Log, &n.to_be_bytes(), &[2; 120])?;
            t.put(Table::Meta, b"cursor", &n.to_be_bytes())?;
            t.remove(Table::Log, &n.wrapping_sub(500).to_be_bytes())
        });
        done.unwrap();
        if level == Durability::Lazy {
            lazy += begun.elapsed();
        }
    }
    let size = std::fs::metadata(&path).unwrap().len();
    eprintln!(
        "file {size} bytes, {} us a lazy transaction, {:?} in all",
        lazy.as_micros() / 1960,
        started.elapsed()
    );
    assert!(size < 16 * 1024 * 1024, "{size} bytes for 140 kB of rows");
}

/// Proves that views may be used by another thread than the one that opened them.
#[test]
fn views_are_send() {
    fn assert_send<T: Send>() {}
    assert_send::<ReadView>();
    assert_send::<LedgerStore>();
}

/// Proves that the log, whose rows are kept in runs, reads as an ordered table whatever is appended,
/// put in the midst, removed and dropped from the beginning, within a transaction and behind it, and that a transaction that
/// fails leaves nothing of it.
#[test]
fn runs_read_as_rows() {
    let (_folder, _path, store) = fresh();
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut random = Random(0x5eed);
    let mut end = 0u64;
    for round in 0..300 {
        let mut after = model.clone();
        let fails = random.below(10) == 0;
        let done: Result<(), TableError> = store.write(Durability::Lazy, |t| {
            for _ in 0..random.below(60) {
                let within = random.below(end + 2).to_be_bytes();
                let value =
                    vec![round as u8; random.below(1_500) as usize * random.below(2) as usize];
                match random.below(10) {
                    0 => {
                        t.remove(Table::Log, &within)?;
                        after.remove(&within[..]);
                    }
                    1 => {
                        t.put(Table::Log, &within, &value)?;
                        after.insert(within.to_vec(), value);
                    }
                    2 => assert_eq!(t.get(Table::Log, &within)?.as_ref(), after.get(&within[..])),
                    3 => assert_same(t, &after, &within, &random.below(end + 2).to_be_bytes()),
                    4 if random.below(20) == 0 => {
                        let last = random.below(end / 40 + 1).to_be_bytes();
                        t.remove_until(Table::Log, &last)?;
                        after.retain(|key, _| key[..] > last[..]);
                    }
                    _ => {
                        end += 1 + random.below(3);
                        t.put(Table::Log, &end.to_be_bytes(), &value)?;
                        after.insert(end.to_be_bytes().to_vec(), value);
                    }
                }
            }
            assert_same(t, &after, &0u64.to_be_bytes(), &(end + 2).to_be_bytes());
            if fails {
                return Err(TableError::Corrupt { table: "log-0" });
            }
            Ok(())
        });
        assert_eq!(done.is_err(), fails);
        if !fails {
            model = after;
        }
        let view = store.read().unwrap();
        let from = random.below(end + 2).to_be_bytes();
        assert_same(&view, &model, &from, &random.below(end + 2).to_be_bytes());
        assert_eq!(
            view.get(Table::Log, &from).unwrap().as_ref(),
            model.get(&from[..])
        );
    }
    assert!(model.len() > 1_000, "{} rows", model.len());
}

fn assert_same(t: &dyn TablesRead, model: &BTreeMap<Vec<u8>, Vec<u8>>, from: &[u8], to: &[u8]) {
    let last = model.last_key_value();
    let last = last.map(|(key, value)| (key.clone(), value.clone()));
    assert_eq!(t.last(Table::Log).unwrap(), last);
    let mut found = Vec::new();
    t.range(Table::Log, from, Some(to), &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    let wanted = model
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()));
    let wanted: Vec<_> = wanted
        .filter(|(key, _)| &key[..] >= from && &key[..] < to)
        .collect();
    assert!(found == wanted, "{from:?} to {to:?}");
}

/// A linear congruential generator: the same numbers at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// Proves that a log of another form is told as such and not read as something else.
#[test]
fn damaged_runs_are_told() {
    let (_folder, _path, store) = fresh();
    let transaction = store.database.begin_write().unwrap();
    let mut table = transaction.open_table(definition(Table::Log)).unwrap();
    table
        .insert(&b"k"[..], &[9, 0, 0, 0, 1, 0, 0, 0, b'k'][..])
        .unwrap();
    drop(table);
    transaction.commit().unwrap();
    let view = store.read().unwrap();
    assert!(matches!(
        view.get(Table::Log, b"k"),
        Err(TableError::Corrupt { .. })
    ));
    let put = |t: &mut dyn Tables| t.put(Table::Log, b"a", b"v");
    let error = store
        .write::<_, TableError>(Durability::Lazy, put)
        .unwrap_err();
    assert!(matches!(error, TableError::Corrupt { .. }));
}
