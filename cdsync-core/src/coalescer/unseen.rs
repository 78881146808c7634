//! What the disk fails to show: tried again, and told until it is seen.
//!
//! A name that could not be looked at, or a folder that could not be listed, is neither there nor
//! gone. It stays as the ledger has it, and whoever waits for everything is told of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::listing::Depth;
use super::pending::{Confirm, Waiting};
use super::{Coalescer, LookError, Slot, Trouble, What};
use crate::filter::Verdict;
use crate::ids::ObjectId;
use crate::ledger::access;
use crate::ledger::object::Kind;
use crate::ledger::tables::{TableError, TablesRead};
use crate::path::{Name, RelPath};
use crate::time::Instant;

/// How many names are followed one by one; beyond it their folders are listed again, and what is
/// mounted somewhere is left to the safety scan.
const NAMES_MAX: usize = 1024;

/// The first wait before the disk is asked again, doubled with each failure.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// How often it is looked whether something is still mounted over a name.
const COVERED_EVERY: Duration = Duration::from_secs(5);

/// The longest wait, in doublings: 64 s.
const DOUBLINGS_MAX: u8 = 7;

/// Names and folders that the disk fails to show.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// Each waits for its turn among the pending names too.
    names: BTreeMap<Slot, String>,
    /// Each is owed a listing.
    folders: BTreeMap<ObjectId, Folder>,
    /// Names that something is mounted over, and when they are looked at again: nobody tells when it
    /// goes.
    covered: BTreeMap<Slot, Covered>,
}

#[derive(Debug)]
struct Covered {
    due: Instant,
    /// What was told of it meanwhile.
    what: What,
}

#[derive(Debug)]
struct Folder {
    reason: String,
    fails: u8,
    due: Instant,
}

impl Unseen {
    pub(super) fn count(&self) -> usize {
        self.names.len() + self.folders.len()
    }

    pub(super) fn names_count(&self) -> usize {
        self.names.len()
    }

    pub(super) fn is_name(&self, slot: &Slot) -> bool {
        self.names.contains_key(slot)
    }

    pub(super) fn name_seen(&mut self, slot: &Slot) {
        self.names.remove(slot);
        self.covered.remove(slot);
    }

    pub(super) fn folder_seen(&mut self, folder: ObjectId) {
        self.folders.remove(&folder);
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let folders = self.folders.values().map(|folder| folder.due);
        folders
            .chain(self.covered.values().map(|covered| covered.due))
            .min()
    }

    pub(super) fn hurry(&mut self, now: Instant) {
        for folder in self.folders.values_mut() {
            folder.due = folder.due.min(now);
        }
        for covered in self.covered.values_mut() {
            covered.due = now.min(covered.due);
        }
    }
}

impl Coalescer {
    /// How many paths the disk fails to show: what is in the log says nothing of them.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.unseen.count()
    }

    /// The first of them, at most `most`, each with what the disk said.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn held(&mut self, t: &dyn TablesRead, most: usize) -> Result<Vec<Trouble>, TableError> {
        let mut held = Vec::new();
        for (folder, unseen) in self.unseen.folders.iter().take(most) {
            if let Some(at) = self.folders.at(t, *folder)? {
                let (path, reason) = (at.path, unseen.reason.clone());
                held.push(Trouble { path, reason });
            }
        }
        for (slot, reason) in self.unseen.names.iter().take(most - held.len()) {
            if let Some(at) = self.folders.at(t, slot.0)? {
                let (path, reason) = (at.path.join(&slot.1), reason.clone());
                held.push(Trouble { path, reason });
            }
        }
        Ok(held)
    }

    /// How many files the ledger has at and below what the disk fails to show; some perhaps twice.
    pub(super) fn unseen_files(&self, t: &dyn TablesRead) -> Result<u64, TableError> {
        let mut files = 0;
        for folder in self.unseen.folders.keys() {
            files += access::files_below(t, *folder)?;
        }
        for (folder, name) in self.unseen.names.keys() {
            let known = access::name(t, *folder, name)?.and_then(|row| row.object);
            let row = known.map(|id| access::live(t, id)).transpose()?.flatten();
            files += match row {
                Some(row) if row.state.kind == Kind::Folder => {
                    access::files_below(t, row.state.id)?
                }
                Some(_) => 1,
                None => 0,
            };
        }
        Ok(files)
    }

    /// Gives up what the disk failed to show, until the next scan meets it: for sources that are
    /// looked at only when somebody says so.
    pub fn forget_held(&mut self) {
        for (slot, _) in std::mem::take(&mut self.unseen.names) {
            self.pending.take(&slot);
        }
        self.unseen.folders.clear();
        self.unseen.covered.clear();
    }

    /// A look at a name saw nothing.
    pub(super) fn name_missed(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: Slot,
        waiting: Waiting,
        error: &LookError,
    ) -> Result<(), TableError> {
        match error {
            LookError::Failed(reason) => self.name_unseen(now, t, slot, waiting, reason),
            LookError::Moved => {
                self.unseen.name_seen(&slot);
                Ok(())
            }
            LookError::OtherFilesystem => {
                let known = self.unseen.covered.remove(&slot);
                self.unseen.name_seen(&slot);
                if known.is_none()
                    && let Some(folder) = self.folders.at(t, slot.0)?
                {
                    let reason = "another filesystem is mounted here: it is not entered";
                    self.trouble(folder.path.join(&slot.1), reason);
                }
                if let Some(object) = waiting.object {
                    self.strays.add(object, waiting.what);
                }
                // Nothing explains what moved its times once it can be seen.
                let mut what = known.map_or(What::default(), |covered| covered.what);
                what.merge(waiting.what);
                what.at_once = false;
                let due = now.after(COVERED_EVERY);
                if self.unseen.covered.len() < NAMES_MAX {
                    self.unseen.covered.insert(slot, Covered { due, what });
                }
                Ok(())
            }
        }
    }

    fn name_unseen(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: Slot,
        mut waiting: Waiting,
        reason: &str,
    ) -> Result<(), TableError> {
        let Some(folder) = self.folders.at(t, slot.0)? else {
            self.unseen.name_seen(&slot);
            return Ok(());
        };
        let path = folder.path.join(&slot.1);
        // What was carried under another path is still to be taken back when it is seen.
        let carried = access::name(t, slot.0, &slot.1)?.is_some_and(|row| row.object.is_some());
        if !carried && (slot.1.is_reserved() || self.is_excluded(&path)) {
            self.unseen.name_seen(&slot);
            return Ok(());
        }
        let known = self.unseen.is_name(&slot);
        if !known && self.unseen.names.len() >= NAMES_MAX {
            self.listings.fail(slot.0);
            return self.folder_unseen(now, t, slot.0, Depth::Shallow, reason);
        }
        if !known {
            self.trouble(path, reason);
        }
        self.unseen.names.insert(slot.clone(), reason.to_owned());
        waiting.fails = waiting.fails.saturating_add(1);
        waiting.confirm = Confirm::No;
        waiting.moved = false;
        waiting.due = now.after(wait(waiting.fails));
        self.pending.put(slot, waiting);
        Ok(())
    }

    /// A folder could not be listed, or not whole.
    pub(super) fn folder_unseen(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        folder: ObjectId,
        depth: Depth,
        reason: &str,
    ) -> Result<(), TableError> {
        let Some(at) = self.folders.at(t, folder)? else {
            self.unseen.folder_seen(folder);
            return Ok(());
        };
        let before = self.unseen.folders.get(&folder).map(|f| f.fails);
        if before.is_none() {
            self.trouble(at.path, reason);
        }
        let fails = before.unwrap_or(0).saturating_add(1);
        let unseen = Folder {
            reason: reason.to_owned(),
            fails,
            due: now.after(wait(fails)),
        };
        self.unseen.folders.insert(folder, unseen);
        // Also once its name is met again: somebody may have changed what it lets see.
        self.listings.owe(folder, depth);
        Ok(())
    }

    /// The looks at names of a folder failed with the folder itself.
    pub(super) fn folder_failed(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        folder: ObjectId,
        names: Vec<Name>,
        reason: &str,
    ) -> Result<(), TableError> {
        let mut followed = false;
        for name in names {
            let slot = (folder, name);
            if let Some(waiting) = self.listings.looking.remove(&slot) {
                self.name_unseen(now, t, slot.clone(), waiting, reason)?;
                followed |= self.unseen.is_name(&slot);
            }
        }
        if followed {
            // It is looked at with the names.
            return Ok(());
        }
        self.folder_unseen(now, t, folder, Depth::Shallow, reason)
    }

    /// Lists again what could not be listed, and looks at what was covered, when its time has come.
    pub(super) fn list_unseen(&mut self, now: Instant) {
        for (slot, covered) in &mut self.unseen.covered {
            if covered.due <= now {
                covered.due = now.after(COVERED_EVERY);
                self.pending.due_because(slot.clone(), now, covered.what);
            }
        }
        for (folder, unseen) in &mut self.unseen.folders {
            if unseen.due <= now {
                // Until this listing ends, which says more.
                unseen.due = now.after(wait(DOUBLINGS_MAX));
                self.listings.owe(*folder, Depth::Shallow);
                self.listings.met(*folder);
            }
        }
    }

    fn is_excluded(&self, path: &RelPath) -> bool {
        [false, true]
            .iter()
            .all(|is_folder| self.filter.judge(path, *is_folder) == Verdict::Excluded)
    }
}

fn wait(fails: u8) -> Duration {
    RETRY_FIRST * (1 << fails.saturating_sub(1).min(DOUBLINGS_MAX))
}
