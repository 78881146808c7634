//! Reading and writing rows by what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::loss::Losses;
use super::object::{Identity, Kind, Seq};
use super::record::Record;
use super::rows::{
    LiveObject, NameRow, ObjectRow, ParkedRow, decode_row, encode_row, name_key, names_end,
};
use super::tables::{Table, TableError, Tables, TablesRead};
use crate::ids::ObjectId;
use crate::path::{Name, NameSetDigest, PATH_MAX_BYTES, RelPath};

/// The most folders between an object and its root; a walk that is longer found a damaged ledger.
pub(crate) const DEPTH_MAX: usize = PATH_MAX_BYTES / 2;

/// Where a name is: its folder's object and its bytes.
pub type Slot = (ObjectId, Name);

/// A folder as the ledger knows it: what a disk needs to open it and to see that it is the one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderAt {
    /// Which object.
    pub id: ObjectId,
    /// Where, below the root.
    pub path: RelPath,
    /// What it was last known by on this disk; `None` where it was not noted.
    pub identity: Option<Identity>,
}

/// Reads an object.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn object(t: &dyn TablesRead, id: ObjectId) -> Result<Option<ObjectRow>, TableError> {
    get(t, Table::Objects, &id.to_key())
}

/// Reads an object that exists.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn live(t: &dyn TablesRead, id: ObjectId) -> Result<Option<LiveObject>, TableError> {
    Ok(object(t, id)?.and_then(ObjectRow::into_live))
}

/// Writes an object that exists.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_live(t: &mut dyn Tables, id: ObjectId, live: LiveObject) -> Result<(), TableError> {
    t.put(
        Table::Objects,
        &id.to_key(),
        &encode_row(&ObjectRow::Live(live)),
    )
}

/// Leaves a tombstone.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_gone(t: &mut dyn Tables, id: ObjectId, by: Seq) -> Result<(), TableError> {
    t.put(
        Table::Objects,
        &id.to_key(),
        &encode_row(&ObjectRow::Gone(by)),
    )
}

/// Reads a name.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn name(
    t: &dyn TablesRead,
    parent: ObjectId,
    name: &Name,
) -> Result<Option<NameRow>, TableError> {
    get(t, Table::Names, &name_key(parent, name))
}

/// Writes a name, or removes its row when there is nothing behind it.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_name(
    t: &mut dyn Tables,
    parent: ObjectId,
    name: &Name,
    row: NameRow,
) -> Result<(), TableError> {
    let key = name_key(parent, name);
    if row.object.is_none() && row.remnant.is_none() {
        t.remove(Table::Names, &key)
    } else {
        t.put(Table::Names, &key, &encode_row(&row))
    }
}

/// Calls `each` for the names of a folder in the order of their bytes, until it breaks.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn children(
    t: &dyn TablesRead,
    parent: ObjectId,
    each: &mut dyn FnMut(Name, NameRow) -> ControlFlow<()>,
) -> Result<(), TableError> {
    children_after(t, parent, None, each)
}

/// The same behind a name.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn children_after(
    t: &dyn TablesRead,
    parent: ObjectId,
    after: Option<&Name>,
    each: &mut dyn FnMut(Name, NameRow) -> ControlFlow<()>,
) -> Result<(), TableError> {
    let mut failed = None;
    let end = names_end(parent);
    let to = end.as_ref().map(<[u8; 16]>::as_slice);
    let from = match after {
        Some(name) => [&name_key(parent, name)[..], &[0]].concat(),
        None => parent.to_key().to_vec(),
    };
    t.range(Table::Names, &from, to, &mut |key, value| {
        let parsed = decode_row(Table::Names, value).and_then(|row| {
            let name = key.get(16..).and_then(|bytes| Name::new(bytes).ok());
            Ok((
                name.ok_or(TableError::Corrupt {
                    table: Table::Names.name(),
                })?,
                row,
            ))
        });
        match parsed {
            Ok((name, row)) => each(name, row),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Whether a folder has no name in the ledger.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn is_childless(t: &dyn TablesRead, parent: ObjectId) -> Result<bool, TableError> {
    let mut childless = true;
    children(t, parent, &mut |_, _| {
        childless = false;
        ControlFlow::Break(())
    })?;
    Ok(childless)
}

/// The path of an object by its first name, `None` when it hangs below something that is gone.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn path_of(t: &dyn TablesRead, id: ObjectId) -> Result<Option<RelPath>, TableError> {
    let mut names = Vec::new();
    let mut at = id;
    while !at.is_root() {
        let Some((parent, name)) = live(t, at)?.and_then(|l| l.names.into_iter().next()) else {
            return Ok(None);
        };
        if names.len() > DEPTH_MAX {
            return Err(TableError::Corrupt {
                table: Table::Objects.name(),
            });
        }
        names.push(name);
        at = parent;
    }
    Ok(Some(RelPath::from_names_upwards(&names)))
}

/// Paths of folders, remembered until any folder moves.
#[derive(Debug, Default)]
pub struct Folders {
    known: BTreeMap<ObjectId, FolderAt>,
    /// Those of the known that are something else.
    others: BTreeSet<ObjectId>,
    /// What the paths take, or took before some were forgotten.
    path_bytes: usize,
    /// Where folders are that are not where the ledger has them.
    displaced: BTreeMap<ObjectId, (FolderAt, Name)>,
}

/// How many folders are remembered: bounds memory, 200 bytes each or so.
const FOLDERS_MAX: usize = 4096;

/// What their paths may take: a deep tree has long ones.
const FOLDERS_MAX_BYTES: usize = 2 << 20;

impl Folders {
    /// Where a folder is; `None` when it is not in the ledger, or deeper than paths are carried.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn at(&mut self, t: &dyn TablesRead, id: ObjectId) -> Result<Option<FolderAt>, TableError> {
        if let Some(known) = self.known.get(&id) {
            return Ok(Some(known.clone()));
        }
        let Some(row) = live(t, id)? else {
            return Ok(None);
        };
        let path = match row.names.first() {
            _ if id.is_root() => RelPath::root(),
            None => return Ok(None),
            Some(_) if !self.displaced.is_empty() => match self.real_path(t, id)? {
                Some(path) => path,
                None => return Ok(None),
            },
            Some((parent, name)) => match self.known.get(parent) {
                Some(parent) => parent.path.join(name),
                None => match path_of(t, *parent)? {
                    Some(path) => path.join(name),
                    None => return Ok(None),
                },
            },
        };
        if path.as_bytes().len() > PATH_MAX_BYTES {
            return Ok(None);
        }
        let identity = row.local.map(|l| l.fingerprint.identity);
        self.path_bytes += path.as_bytes().len();
        let at = FolderAt { id, path, identity };
        if self.known.len() >= FOLDERS_MAX || self.path_bytes > FOLDERS_MAX_BYTES {
            self.known.clear();
            self.others.clear();
            self.path_bytes = at.path.as_bytes().len();
        }
        if row.state.kind != Kind::Folder {
            self.others.insert(id);
        }
        self.known.insert(id, at.clone());
        Ok(Some(at))
    }

    /// Whether names may be in an object: it is a folder of the ledger, or was one.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn is_folder(&self, t: &dyn TablesRead, id: ObjectId) -> Result<bool, TableError> {
        if self.known.contains_key(&id) {
            return Ok(!self.others.contains(&id));
        }
        Ok(match object(t, id)? {
            Some(ObjectRow::Live(row)) => row.state.kind == Kind::Folder,
            Some(ObjectRow::Gone(_)) => true,
            None => id.is_root(),
        })
    }

    /// The path of a folder by where those at and above it are.
    fn real_path(&self, t: &dyn TablesRead, id: ObjectId) -> Result<Option<RelPath>, TableError> {
        let mut names = Vec::new();
        let mut top = RelPath::root();
        let mut at = id;
        while !at.is_root() {
            let next = match self.displaced.get(&at) {
                Some((folder, name)) => {
                    names.push(name.clone());
                    if !is_same(t, folder)? {
                        // It is gone from the ledger, and still there for what is in it.
                        top = folder.path.clone();
                        break;
                    }
                    folder.id
                }
                None => match live(t, at)?.and_then(|row| row.names.into_iter().next()) {
                    Some((parent, name)) => {
                        names.push(name);
                        parent
                    }
                    None => return Ok(None),
                },
            };
            if names.len() > PATH_MAX_BYTES {
                return Ok(None);
            }
            at = next;
        }
        let below = RelPath::from_names_upwards(&names);
        Ok(Some(below.components().fold(top, |path, name| {
            Name::new(name).map_or(path.clone(), |name| path.join(&name))
        })))
    }

    /// Where a folder that was noted earlier is now: as it was noted, if the ledger has it no more.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn now(&mut self, t: &dyn TablesRead, noted: &FolderAt) -> Result<FolderAt, TableError> {
        let now = match is_same(t, noted)? {
            true => self.at(t, noted.id)?,
            false => None,
        };
        Ok(now.unwrap_or_else(|| noted.clone()))
    }

    /// Whether something in a folder is in or below another one on the disk.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn is_really_below(
        &self,
        t: &dyn TablesRead,
        folder: ObjectId,
        top: ObjectId,
    ) -> Result<bool, TableError> {
        is_below_by(t, folder, top, |at| {
            self.displaced.get(&at).map(|(folder, _)| folder.id)
        })
    }

    /// A folder is not where the ledger has it, but here; it need not be one.
    pub fn displace(&mut self, id: ObjectId, at: (FolderAt, Name)) {
        self.displaced.insert(id, at);
        self.forget();
    }

    /// It is where the ledger has it.
    pub fn replace(&mut self, id: ObjectId) {
        if self.displaced.remove(&id).is_some() {
            self.forget();
        }
    }

    /// Forgets one folder: it was noted anew.
    pub fn forget_one(&mut self, id: ObjectId) {
        self.known.remove(&id);
    }

    /// Forgets everything: a folder moved, went, or was noted anew.
    pub fn forget(&mut self) {
        self.known.clear();
        self.others.clear();
        self.path_bytes = 0;
    }
}

/// Whether something in a folder is in or below another one in the ledger.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn is_below(t: &dyn TablesRead, folder: ObjectId, top: ObjectId) -> Result<bool, TableError> {
    is_below_by(t, folder, top, |_| None)
}

/// The same by the names that folders still have: what a record took from its name goes elsewhere.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn is_named_below(
    t: &dyn TablesRead,
    folder: ObjectId,
    top: ObjectId,
) -> Result<bool, TableError> {
    let mut at = folder;
    for _ in 0..PATH_MAX_BYTES {
        if at == top {
            return Ok(true);
        }
        let Some((parent, own)) = live(t, at)?.and_then(|row| row.slot().cloned()) else {
            break;
        };
        if name(t, parent, &own)?.and_then(|row| row.object) != Some(at) {
            break;
        }
        at = parent;
    }
    Ok(false)
}

fn is_below_by(
    t: &dyn TablesRead,
    folder: ObjectId,
    top: ObjectId,
    other_parent: impl Fn(ObjectId) -> Option<ObjectId>,
) -> Result<bool, TableError> {
    let mut at = folder;
    // No path has more names.
    for _ in 0..PATH_MAX_BYTES {
        if at == top {
            return Ok(true);
        }
        let parent = match other_parent(at) {
            Some(parent) => Some(parent),
            None => live(t, at)?.and_then(|row| row.slot().map(|(parent, _)| *parent)),
        };
        match parent {
            Some(parent) => at = parent,
            None => break,
        }
    }
    Ok(false)
}

/// Whether the ledger has a folder on the disk as the same one that was noted. One that was removed
/// may have come back as another one.
fn is_same(t: &dyn TablesRead, noted: &FolderAt) -> Result<bool, TableError> {
    let local = live(t, noted.id)?.and_then(|row| row.local);
    let identity = local.map(|local| local.fingerprint.identity);
    Ok(noted.id.is_root() || identity.is_some() && identity == noted.identity)
}

/// How many files are below a folder: everything there that is no folder. A file of several names
/// counts at its first one.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn files_below(t: &dyn TablesRead, folder: ObjectId) -> Result<u64, TableError> {
    let mut files = 0;
    let mut stack = vec![folder];
    while let Some(at) = stack.pop() {
        let mut found = Vec::new();
        children(t, at, &mut |name, row| {
            found.extend(row.object.map(|id| (id, (at, name))));
            ControlFlow::Continue(())
        })?;
        for (id, slot) in found {
            match live(t, id)? {
                Some(row) if row.state.kind == Kind::Folder => stack.push(id),
                Some(row) => files += u64::from(row.slot() == Some(&slot)),
                None => {}
            }
        }
    }
    Ok(files)
}

/// What went with a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Buried {
    /// How many files: objects that are no folders.
    pub files: u64,
    /// What lives on by another name.
    pub living: Vec<ObjectId>,
}

/// Removes the names and objects below a folder, leaving tombstones.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn bury_below(t: &mut dyn Tables, folder: ObjectId, by: Seq) -> Result<Buried, TableError> {
    let mut buried = Buried::default();
    let mut stack = vec![folder];
    while let Some(at) = stack.pop() {
        let mut found = Vec::new();
        children(t, at, &mut |name, row| {
            found.push((name, row));
            ControlFlow::Continue(())
        })?;
        for (name, row) in found {
            t.remove(Table::Names, &name_key(at, &name))?;
            let Some(id) = row.object else { continue };
            let Some(mut child) = live(t, id)? else {
                continue;
            };
            child.names.retain(|slot| *slot != (at, name.clone()));
            if !child.names.is_empty() {
                put_live(t, id, child)?;
                buried.living.push(id);
                continue;
            }
            if let Some(local) = child.local {
                if let Some(handle) = local.handle {
                    remove_handle(t, &handle, id)?;
                }
                remove_identity(t, local.fingerprint.identity, id)?;
            }
            t.remove(Table::Parked, &id.to_key())?;
            put_gone(t, id, by)?;
            match child.state.kind {
                Kind::Folder => stack.push(id),
                _ => buried.files += 1,
            }
        }
    }
    Ok(buried)
}

/// A digest of the paths below a folder of everything that the ledger has on this disk there.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn digest_below(t: &dyn TablesRead, folder: ObjectId) -> Result<NameSetDigest, TableError> {
    let mut digest = NameSetDigest::default();
    let mut stack = vec![(folder, RelPath::root())];
    while let Some((at, path)) = stack.pop() {
        let mut found = Vec::new();
        children(t, at, &mut |name, row| {
            found.push((path.join(&name), row));
            ControlFlow::Continue(())
        })?;
        for (path, row) in found {
            let object = match row.object {
                Some(id) => live(t, id)?,
                None => None,
            };
            let held = object.as_ref().is_some_and(|o| o.local.is_some());
            if held || row.remnant.is_some() {
                digest.add(path.as_bytes());
            }
            if let (Some(id), Some(object)) = (row.object, object)
                && held
                && object.state.kind == Kind::Folder
            {
                stack.push((id, path));
            }
        }
    }
    Ok(digest)
}

/// A record of the log with the running sum of content bytes up to and with it.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn log_record(t: &dyn TablesRead, seq: Seq) -> Result<Option<(u64, Record)>, TableError> {
    get(t, Table::Log, &seq.0.to_be_bytes())
}

/// Appends to the log. Returns what it takes there, in bytes.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn append_log(t: &mut dyn Tables, bytes: u64, record: &Record) -> Result<u64, TableError> {
    let row = encode_row(&(bytes, record));
    t.put(Table::Log, &record.seq.0.to_be_bytes(), &row)?;
    Ok(row.len() as u64)
}

/// Calls `each` for the records behind a number, in order, until it breaks.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn log_after(
    t: &dyn TablesRead,
    after: Seq,
    each: &mut dyn FnMut(u64, Record) -> ControlFlow<()>,
) -> Result<(), TableError> {
    let mut failed = None;
    t.range(
        Table::Log,
        &after.next().0.to_be_bytes(),
        None,
        &mut |_, value| match decode_row::<(u64, Record)>(Table::Log, value) {
            Ok((bytes, record)) => each(bytes, record),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    failed.map_or(Ok(()), Err)
}

/// Objects that are not held whole, in the order of their ids, at most `most`.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn lost(t: &dyn TablesRead, most: usize) -> Result<Vec<(ObjectId, Losses)>, TableError> {
    rows(t, Table::Lost, most)
}

/// Notes what is missing of an object; forgets it where nothing is.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_lost(t: &mut dyn Tables, id: ObjectId, losses: Losses) -> Result<(), TableError> {
    if losses.is_empty() {
        t.remove(Table::Lost, &id.to_key())
    } else {
        t.put(Table::Lost, &id.to_key(), &encode_row(&losses))
    }
}

/// Parked objects, in the order of their ids, at most `most`.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn parked(t: &dyn TablesRead, most: usize) -> Result<Vec<(ObjectId, ParkedRow)>, TableError> {
    rows(t, Table::Parked, most)
}

/// Calls `each` for every parked object, in the order of their ids.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn each_parked(
    t: &dyn TablesRead,
    each: &mut dyn FnMut(ObjectId, ParkedRow),
) -> Result<(), TableError> {
    each_row(t, Table::Parked, &mut |id, row| {
        each(id, row);
        ControlFlow::Continue(())
    })
}

/// The first rows of a table whose keys are objects.
fn rows<T: DeserializeOwned>(
    t: &dyn TablesRead,
    table: Table,
    most: usize,
) -> Result<Vec<(ObjectId, T)>, TableError> {
    let mut rows = Vec::new();
    each_row(t, table, &mut |id, row| {
        rows.push((id, row));
        if rows.len() >= most {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(rows)
}

fn each_row<T: DeserializeOwned>(
    t: &dyn TablesRead,
    table: Table,
    each: &mut dyn FnMut(ObjectId, T) -> ControlFlow<()>,
) -> Result<(), TableError> {
    let mut failed = None;
    t.range(table, &[], None, &mut |key, value| {
        let id = ObjectId::from_key(key).ok_or(TableError::Corrupt {
            table: table.name(),
        });
        match id.and_then(|id| Ok((id, decode_row(table, value)?))) {
            Ok((id, row)) => each(id, row),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Reads a small fact.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn meta<T: DeserializeOwned>(t: &dyn TablesRead, key: &str) -> Result<Option<T>, TableError> {
    get(t, Table::Meta, key.as_bytes())
}

/// Writes a small fact.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_meta<T: Serialize>(t: &mut dyn Tables, key: &str, row: &T) -> Result<(), TableError> {
    t.put(Table::Meta, key.as_bytes(), &encode_row(row))
}

fn get<T: DeserializeOwned>(
    t: &dyn TablesRead,
    table: Table,
    key: &[u8],
) -> Result<Option<T>, TableError> {
    t.get(table, key)?
        .map(|bytes| decode_row(table, &bytes))
        .transpose()
}

/// The folder behind a kernel file handle.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn folder_by_handle(t: &dyn TablesRead, handle: &[u8]) -> Result<Option<ObjectId>, TableError> {
    Ok(t.get(Table::Handles, handle)?
        .and_then(|key| ObjectId::from_key(&key)))
}

/// Forgets a folder's handle, unless another object has it by now: what moved while its new place
/// was listed is entered there before the old one is known to be gone.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn remove_handle(t: &mut dyn Tables, handle: &[u8], id: ObjectId) -> Result<(), TableError> {
    if folder_by_handle(t, handle)? == Some(id) {
        t.remove(Table::Handles, handle)?;
    }
    Ok(())
}

fn identity_key(identity: Identity) -> [u8; 20] {
    let mut key = [0; 20];
    key[..8].copy_from_slice(&identity.inode.to_be_bytes());
    key[8..16].copy_from_slice(&identity.born.secs.to_be_bytes());
    key[16..].copy_from_slice(&identity.born.nanos.to_be_bytes());
    key
}

/// The object that an index has for what a disk knows it by. It may be another one since.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn object_by_identity(
    t: &dyn TablesRead,
    identity: Identity,
) -> Result<Option<ObjectId>, TableError> {
    let row = t.get(Table::Links, &identity_key(identity))?;
    Ok(row.and_then(|row| Some(linked_row(&row)?.0)))
}

/// Notes what a disk knows an object by.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_identity(
    t: &mut dyn Tables,
    identity: Identity,
    id: ObjectId,
) -> Result<(), TableError> {
    if object_by_identity(t, identity)? == Some(id) {
        return Ok(());
    }
    remove_other(t, identity)?;
    t.put(Table::Links, &identity_key(identity), &id.to_key())
}

/// Notes what a disk knows an object by, and the kernel's handle of it: it has several names.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_linked(
    t: &mut dyn Tables,
    identity: Identity,
    handle: &[u8],
    id: ObjectId,
) -> Result<(), TableError> {
    let row = [&id.to_key()[..], handle].concat();
    if t.get(Table::Links, &identity_key(identity))?.as_ref() == Some(&row)
        && object_by_handle(t, handle)? == Some(id)
    {
        return Ok(());
    }
    remove_other(t, identity)?;
    t.put(Table::Links, &identity_key(identity), &row)?;
    t.put(Table::Handles, handle, &id.to_key())
}

/// Forgets the handle of whatever an identity stood for.
fn remove_other(t: &mut dyn Tables, identity: Identity) -> Result<(), TableError> {
    if let Some(row) = t.get(Table::Links, &identity_key(identity))?
        && let Some((id, handle)) = linked_row(&row)
    {
        remove_handle(t, handle, id)?;
    }
    Ok(())
}

/// The object of an identity, and its handle if it had several names.
fn linked_row(row: &[u8]) -> Option<(ObjectId, &[u8])> {
    let (key, handle) = row.split_at_checked(ObjectId::default().to_key().len())?;
    Some((ObjectId::from_key(key)?, handle))
}

/// The file that has, or had, several names and is behind a kernel file handle.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn object_by_handle(t: &dyn TablesRead, handle: &[u8]) -> Result<Option<ObjectId>, TableError> {
    // A handle is that of a folder or of a file for good.
    folder_by_handle(t, handle)
}

/// Forgets what a disk knew an object by.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn remove_identity(
    t: &mut dyn Tables,
    identity: Identity,
    id: ObjectId,
) -> Result<(), TableError> {
    if object_by_identity(t, identity)? == Some(id) {
        remove_other(t, identity)?;
        t.remove(Table::Links, &identity_key(identity))?;
    }
    Ok(())
}

/// A parked object.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn parked_row(t: &dyn TablesRead, id: ObjectId) -> Result<Option<ParkedRow>, TableError> {
    get(t, Table::Parked, &id.to_key())
}

/// Parks an object.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn put_parked(t: &mut dyn Tables, id: ObjectId, row: &ParkedRow) -> Result<(), TableError> {
    t.put(Table::Parked, &id.to_key(), &encode_row(row))
}

/// Takes an object off the parked ones.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn remove_parked(t: &mut dyn Tables, id: ObjectId) -> Result<(), TableError> {
    t.remove(Table::Parked, &id.to_key())
}
