//! Deletes that are taken back: what of the source's deletes went to the trash, and back from there.
//!
//! The ledger notes for a while where each removed file and folder is kept. A manager who finds that
//! the source lost its files gets back with this what was already deleted here, until they decide
//! about the rest.

use std::ops::ControlFlow;

use cdsync_core::ids::ObjectId;
use cdsync_core::ledger::access::{self, meta, put_meta};
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::rows::{ObjectRow, ParkedWhat, decode_row, encode_row};
use cdsync_core::ledger::tables::{Table, TableError, Tables, TablesRead};
use cdsync_core::path::{Name, RESERVED_NAME, RelPath};
use cdsync_core::wire::Restore;
use cdsync_fs::{FsError, Root};

use crate::clock::wall;

/// How many removals are remembered: a job halts long before so many went that nobody wanted.
const NOTED_MAX: usize = 65_536;
/// How many of the oldest are forgotten at once when there are more.
const FORGOTTEN: usize = 4_096;

/// Begins the key of a removal: then follow its record's number and its own, big-endian.
const PREFIX: &[u8] = b"removed-";
/// The deletes that were taken back last, and whether what came back was swept since.
const RESTORED: &str = "restored";

/// Something that went to the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Removed {
    /// Which object was to be removed: what lay below a folder goes by the folder's.
    pub(super) id: ObjectId,
    /// Where it was.
    pub(super) path: RelPath,
    /// Where it is, below the job's trash.
    pub(super) kept_as: RelPath,
}

/// Counts what is noted.
#[derive(Debug)]
pub(super) struct Removals {
    next: u64,
    count: usize,
}

impl Removals {
    pub(super) fn open(t: &dyn TablesRead) -> Result<Self, TableError> {
        let mut count = 0;
        each(t, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        // Behind every number of an earlier run, by the clock or else by chance: a number that comes
        // twice costs one note.
        let next = wall().0 << 20;
        Ok(Self { next, count })
    }

    /// Notes what a step removed.
    pub(super) fn note(
        &mut self,
        t: &mut dyn Tables,
        removed: Vec<Removed>,
    ) -> Result<(), TableError> {
        for one in removed {
            let Some(by) = removed_by(t, one.id)? else {
                continue;
            };
            let key = key(by, self.next);
            self.next += 1;
            self.count += 1;
            t.put(Table::Meta, &key, &encode_row(&(one.path, one.kept_as)))?;
        }
        while self.count > NOTED_MAX {
            let mut oldest = Vec::new();
            each(t, &mut |key, _| {
                oldest.push(key.to_vec());
                match oldest.len() {
                    FORGOTTEN.. => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            })?;
            self.count = self.count.saturating_sub(oldest.len().max(1));
            for key in oldest {
                t.remove(Table::Meta, &key)?;
            }
        }
        Ok(())
    }
}

/// What came of taking deletes back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Restored {
    /// Files and folders that are back.
    pub(super) back: u64,
    /// Others, and why not for the first of them.
    pub(super) failed: u64,
    pub(super) why: Option<String>,
}

/// Whether these deletes are still to be taken back.
pub(super) fn is_wanted(t: &dyn TablesRead, restore: &Restore) -> Result<bool, TableError> {
    let done: Option<(Restore, bool)> = meta(t, RESTORED)?;
    Ok(done.is_none_or(|(done, _)| done != *restore))
}

/// Notes that deletes were taken back.
pub(super) fn done(t: &mut dyn Tables, restore: &Restore) -> Result<(), TableError> {
    put_meta(t, RESTORED, &(*restore, false))
}

/// Whether something was brought back that the source may not have: asked once the source goes on.
/// What it does not have by then is to be swept.
pub(super) fn take_sweep(t: &mut dyn Tables) -> Result<bool, TableError> {
    let Some((restore, false)) = meta::<(Restore, bool)>(t, RESTORED)? else {
        return Ok(false);
    };
    put_meta(t, RESTORED, &(restore, true))?;
    Ok(true)
}

/// Brings back what these deletes took, the last of it first: so a folder is there before what was
/// in it. What is at a name by now stays.
pub(super) fn bring_back(
    root: &Root,
    job: &str,
    t: &dyn TablesRead,
    restore: &Restore,
) -> Result<Restored, TableError> {
    let mut entries: Vec<(RelPath, RelPath)> = Vec::new();
    let mut failed = None;
    let (from, to) = (key(restore.after.next(), 0), key(restore.upto.next(), 0));
    t.range(Table::Meta, &from, Some(&to), &mut |_, value| {
        match decode_row(Table::Meta, value) {
            Ok(entry) => entries.push(entry),
            Err(error) => failed = Some(error),
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut restored = Restored::default();
    entries.reverse();
    // What was removed side by side may have been noted in another order.
    loop {
        let before = entries.len();
        restored.why = None;
        entries.retain(|(path, kept_as)| {
            let failed = bring_one(root, job, path, kept_as).err();
            let again = failed.is_some();
            restored.why = restored.why.take().or(failed);
            again
        });
        restored.back += (before - entries.len()) as u64;
        if entries.is_empty() || entries.len() == before {
            break;
        }
    }
    restored.failed = entries.len() as u64;
    root.forget_all();
    Ok(restored)
}

fn bring_one(root: &Root, job: &str, path: &RelPath, kept_as: &RelPath) -> Result<(), String> {
    let (Some((kept_in, kept)), Some((folder, name))) = (split(kept_as), split(path)) else {
        return Err(format!("{path} is not kept"));
    };
    let home = [RESERVED_NAME, b"/", job.as_bytes(), b"/trash/"].concat();
    let trash = RelPath::new([&home[..], kept_in.as_bytes()].concat());
    let trash = trash.map_err(|error| format!("{path}: {error}"))?;
    let back = || {
        let trash = root.top().open_below(&trash)?;
        trash.rename_new(&kept, &root.top().open_below(&folder)?, &name)
    };
    back().map_err(|error: FsError| crate::source::chain(&error))
}

/// A path's folder and its last name; `None` for the root.
fn split(path: &RelPath) -> Option<(RelPath, Name)> {
    let mut names: Vec<Name> = path.components().flat_map(Name::new).collect();
    let name = names.pop()?;
    let folder = names.iter().fold(RelPath::root(), |at, name| at.join(name));
    Some((folder, name))
}

/// Which record removed something; `None` for what a sweep found, which was never the source's.
fn removed_by(t: &dyn TablesRead, id: ObjectId) -> Result<Option<Seq>, TableError> {
    if let Some(ObjectRow::Gone(by)) = access::object(t, id)? {
        return Ok(Some(by));
    }
    // A name of a file that has, or had, others: noted under the name's own number while it is
    // being removed.
    let row = access::parked_row(t, id)?;
    let row = row.filter(|row| matches!(row.what, ParkedWhat::Remove { .. }));
    Ok(row.map(|row| row.seq))
}

fn key(seq: Seq, number: u64) -> Vec<u8> {
    [PREFIX, &seq.0.to_be_bytes(), &number.to_be_bytes()].concat()
}

/// Takes a row's key and value, and says whether to go on.
type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

fn each(t: &dyn TablesRead, row: &mut EachRow<'_>) -> Result<(), TableError> {
    let end = key(Seq(u64::MAX), u64::MAX);
    t.range(Table::Meta, PREFIX, Some(&end), row)
}
