//! After a root was taken over, and in single folders where the ledger may be behind the disk: what
//! is there and not in the ledger goes to the trash.

use std::collections::BTreeSet;

use super::{ApplyOp, OnDrift, Place, Replica, Then};
use crate::filter::Verdict;
use crate::ids::ObjectId;
use crate::ledger::access::{self, FolderAt, live, put_meta};
use crate::ledger::object::{Identity, Kind};
use crate::ledger::tables::{TableError, Tables};
use crate::path::{Name, NameSetDigest};

/// One entry of a swept folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepEntry {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
    /// What it is known by.
    pub identity: Identity,
}

#[derive(Debug, Default)]
pub(super) struct Sweep {
    state: State,
    stack: Vec<ObjectId>,
    /// Single folders in which something may be that is in no ledger.
    owed: BTreeSet<ObjectId>,
    failures: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    Running,
}

impl Sweep {
    pub(super) fn new(owed: Vec<ObjectId>) -> Self {
        Self {
            owed: owed.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Returns whether it was not owed before.
    pub(super) fn owe(&mut self, folder: ObjectId) -> bool {
        self.owed.insert(folder)
    }

    pub(super) fn owed(&self) -> Vec<ObjectId> {
        self.owed.iter().copied().collect()
    }

    pub(super) fn is_owed(&self) -> bool {
        !self.owed.is_empty()
    }

    pub(super) fn failed(&mut self, reason: String) {
        if self.failures.len() < 16 {
            self.failures.push(reason);
        }
    }
}

impl Replica {
    /// Begins once everything that the source has was taken in.
    pub(super) fn maybe_sweep(&mut self) {
        let ready = self.adopting && self.complete && self.progress.claim >= self.head;
        if ready
            && self.sweep.state == State::Off
            && let Some(origin) = self.origin
        {
            self.sweep.state = State::Running;
            self.sweep.stack.push(ObjectId::root(origin));
        }
    }

    /// Compares the whole root once more when everything that the source has was taken in: something
    /// may be there that is not the source's.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn sweep_again(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        self.adopting = true;
        put_meta(t, super::ADOPTING, &true)
    }

    /// Whether a sweep is under way: whether [`Replica::poll_sweep`] has anything to say.
    #[must_use]
    pub fn is_sweeping(&self) -> bool {
        self.sweep.state == State::Running || self.sweep.is_owed()
    }

    /// The next folder whose entries are wanted for the sweep.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_sweep(&mut self, t: &mut dyn Tables) -> Result<Option<FolderAt>, TableError> {
        // What could not be moved is at a name that the ledger does not know.
        if !self.is_sweeping() || !self.is_idle() || !self.blocking.is_empty() {
            return Ok(None);
        }
        let all_here = self.complete && self.progress.claim >= self.head;
        while all_here && let Some(id) = self.sweep.owed.first().copied() {
            if let Some(folder) = self.folders.at(t, id)? {
                return Ok(Some(folder));
            }
            self.swept(t, id)?;
        }
        if self.sweep.state == State::Off {
            return Ok(None);
        }
        while let Some(id) = self.sweep.stack.pop() {
            if let Some(folder) = self.folders.at(t, id)? {
                return Ok(Some(folder));
            }
        }
        self.sweep.state = State::Off;
        self.adopting = false;
        put_meta(t, super::ADOPTING, &false)?;
        Ok(None)
    }

    /// Takes a swept folder's entries; removals follow by [`Replica::poll_step`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_swept(
        &mut self,
        t: &mut dyn Tables,
        folder: &FolderAt,
        entries: Vec<SweepEntry>,
    ) -> Result<(), TableError> {
        let owed = self.sweep.owed.contains(&folder.id);
        for entry in entries {
            let path = folder.path.join(&entry.name);
            let is_folder = entry.kind == Kind::Folder;
            if self.filter.judge(&path, is_folder) == Verdict::Excluded {
                continue;
            }
            let known = access::name(t, folder.id, &entry.name)?;
            if let Some(id) = known.as_ref().and_then(|row| row.object) {
                if !owed && is_folder && live(t, id)?.is_some() {
                    self.sweep.stack.push(id);
                }
                continue;
            }
            if known.is_some() {
                continue;
            }
            self.touched.insert(folder.id);
            let op = ApplyOp::Remove {
                id: ObjectId::default(),
                at: Place {
                    folder: folder.clone(),
                    name: entry.name,
                },
                known: entry.identity.into(),
                drift: OnDrift::Ignore,
                kind: entry.kind,
                below: NameSetDigest::default(),
            };
            self.run(op, Then::Swept);
        }
        if owed && self.running.is_empty() {
            // Only now: what was found before is gone.
            self.swept(t, folder.id)?;
        }
        Ok(())
    }

    /// A folder that was owed holds nothing foreign, or what cannot be removed.
    pub(super) fn swept(&mut self, t: &mut dyn Tables, folder: ObjectId) -> Result<(), TableError> {
        if self.sweep.owed.remove(&folder) {
            put_meta(t, super::waiting::OWED, &self.sweep.owed())?;
        }
        Ok(())
    }

    /// What the last sweep could not remove, for people.
    #[must_use]
    pub fn sweep_failures(&self) -> &[String] {
        &self.sweep.failures
    }
}
