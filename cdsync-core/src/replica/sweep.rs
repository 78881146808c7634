//! After a root was taken over, and in single folders where the ledger may be behind the disk: what
//! is there and not in the ledger goes to the trash.

use std::collections::BTreeMap;

use super::{ApplyOp, OnDrift, Place, Replica, Then};
use crate::filter::Verdict;
use crate::ids::ObjectId;
use crate::job::Drift;
use crate::ledger::access::{self, FolderAt, live, put_meta, put_name};
use crate::ledger::object::{Identity, Kind, Seq};
use crate::ledger::rows::NameRow;
use crate::ledger::tables::{TableError, Tables};
use crate::path::{Name, NameSetDigest, RelPath};
use crate::time::WallMillis;

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

/// Folders, with where they were when something was left in them: what is carried there may be
/// excluded where they are now, and is ours all the same.
pub(super) type Owed = BTreeMap<ObjectId, Option<RelPath>>;

#[derive(Debug, Default)]
pub(super) struct Sweep {
    state: State,
    stack: Vec<ObjectId>,
    /// Single folders in which something may be that is in no ledger.
    owed: Owed,
    /// Those that were looked through since the last sync of the disk began: what was removed from
    /// them may be back after a crash of the system.
    unsynced: Owed,
    /// The same before the sync under way.
    syncing: Owed,
    failures: Vec<String>,
    /// Owed folders from which something could not be removed: how often that was tried, and when
    /// it is tried again.
    resting: BTreeMap<ObjectId, (u32, WallMillis)>,
}

/// So often it is tried to remove something that is not the source's.
const TRIES: u32 = 6;

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Off,
    Running,
}

impl Sweep {
    pub(super) fn new(owed: Owed) -> Self {
        Self {
            owed,
            ..Self::default()
        }
    }

    /// Returns whether it was not owed before.
    pub(super) fn owe(&mut self, folder: ObjectId, path: Option<RelPath>) -> bool {
        if self.owed.contains_key(&folder) {
            return false;
        }
        let done = [&self.unsynced, &self.syncing].map(|done| done.get(&folder));
        let path = done.into_iter().flatten().next().cloned().unwrap_or(path);
        self.owed.insert(folder, path);
        true
    }

    /// What is noted for the next start.
    pub(super) fn noted(&self) -> Owed {
        let all = self.syncing.iter().chain(&self.unsynced).chain(&self.owed);
        all.map(|(id, path)| (*id, path.clone())).collect()
    }

    /// A sync of the disk begins.
    pub(super) fn sync_began(&mut self) {
        self.syncing.append(&mut self.unsynced);
    }

    /// It ended. Returns whether less is to be noted.
    pub(super) fn sync_ended(&mut self) -> bool {
        !std::mem::take(&mut self.syncing).is_empty()
    }

    /// It failed.
    pub(super) fn sync_failed(&mut self) {
        self.unsynced.append(&mut self.syncing);
    }

    pub(super) fn is_owed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// The next folder that does not rest.
    fn next_owed(&self, wall: WallMillis) -> Option<ObjectId> {
        let rests = |id: &ObjectId| self.resting.get(id).is_some_and(|(_, until)| *until > wall);
        self.owed.keys().find(|id| !rests(id)).copied()
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

    /// The same, while nothing that is there is taken for what is to come.
    pub(super) fn sweep_only(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if !self.adopting {
            self.sweeps_only = true;
            put_meta(t, super::SWEEPS_ONLY, &true)?;
        }
        self.sweep_again(t)
    }

    /// Whether what is there and looks equal is taken over.
    pub(super) fn adopts(&self) -> bool {
        self.adopting && !self.sweeps_only
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
    pub fn poll_sweep(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<Option<FolderAt>, TableError> {
        // What could not be moved is at a name that the ledger does not know.
        if !self.is_sweeping() || !self.is_idle() || !self.blocking.is_empty() {
            return Ok(None);
        }
        let all_here = self.complete && self.progress.claim >= self.head;
        while all_here && let Some(id) = self.sweep.next_owed(wall) {
            // One that is not on the disk holds nothing, and is owed anew if it turns out to be.
            let folder = self.folders.at(t, id)?;
            let is_there = |folder: &FolderAt| id.is_root() || folder.identity.is_some();
            if let Some(folder) = folder.filter(is_there) {
                return Ok(Some(folder));
            }
            self.swept(id);
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
        if std::mem::take(&mut self.sweeps_only) {
            put_meta(t, super::SWEEPS_ONLY, &false)?;
        }
        Ok(None)
    }

    /// Whether a folder of [`Replica::poll_sweep`] is one of those that are looked through by
    /// themselves. If it cannot be looked at now, it can be asked for again at any time.
    #[must_use]
    pub fn is_owed(&self, folder: ObjectId) -> bool {
        self.sweep.owed.contains_key(&folder)
    }

    /// Takes a swept folder's entries; removals follow by [`Replica::poll_step`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_swept(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: &FolderAt,
        entries: Vec<SweepEntry>,
    ) -> Result<(), TableError> {
        let former = self.sweep.owed.get(&folder.id).cloned();
        let owed = former.is_some();
        if owed {
            // A kill may have come between an earlier removal and its times.
            self.touched.insert(folder.id);
        }
        for entry in entries {
            let is_folder = entry.kind == Kind::Folder;
            let is_carried = |at: &RelPath| {
                let verdict = self.filter.judge(&at.join(&entry.name), is_folder);
                verdict != Verdict::Excluded
            };
            let former = former.iter().flatten();
            if !is_carried(&folder.path) && !former.into_iter().any(is_carried) {
                continue;
            }
            let known = access::name(t, folder.id, &entry.name)?;
            if let Some(NameRow {
                object: Some(id),
                remnant,
            }) = known
            {
                let row = live(t, id)?;
                if !owed && is_folder && row.is_some() {
                    self.sweep.stack.push(id);
                }
                let is_here = row.is_some_and(|row| row.local.is_some());
                if !is_here && remnant.is_none() {
                    self.in_the_way(wall, t, id, folder, entry)?;
                }
                continue;
            }
            // What a crash may have taken out of the ledger is nothing to know a thing by.
            let remnant = known.and_then(|name| name.remnant);
            if remnant.is_some_and(|left| left.identity != Identity::default()) {
                // It remembers what was to go, and nobody may do that any more.
                self.remove_remnant(wall, t, (folder.id, entry.name), Seq(0))?;
                continue;
            }
            if owed || self.sweeps_only {
                // Nobody has said that all of it may go.
                self.foreign(wall, t, folder, entry)?;
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
            self.swept(folder.id);
        } else if owed {
            self.sweep.resting.entry(folder.id).or_default().0 += 1;
        }
        Ok(())
    }

    /// What is at a name whose object is still to come may be what a crash took out of the rows, or
    /// others': nothing says that it goes when the name is given up.
    fn in_the_way(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        folder: &FolderAt,
        entry: SweepEntry,
    ) -> Result<(), TableError> {
        if self.policy.drift == Drift::Keep {
            return Ok(());
        }
        if !self.adopts() {
            return self.foreign(wall, t, folder, entry);
        }
        if entry.kind == Kind::Folder {
            // It is taken over when its object is made.
            return Ok(());
        }
        // It may be what is to come.
        let noted = NameRow {
            object: Some(id),
            remnant: Some(entry.identity.into()),
        };
        put_name(t, folder.id, &entry.name, noted)
    }

    /// A folder that was owed holds nothing foreign, or what cannot be removed.
    pub(super) fn swept(&mut self, folder: ObjectId) {
        self.sweep.resting.remove(&folder);
        if let Some(path) = self.sweep.owed.remove(&folder) {
            self.sweep.unsynced.insert(folder, path);
        }
    }

    /// Something could not be removed from a folder that was looked through: once more, some time
    /// later.
    pub(super) fn not_swept(&mut self, wall: WallMillis, folder: ObjectId, reason: String) {
        self.sweep.failed(reason);
        let tries = self.sweep.resting.get(&folder).map_or(TRIES, |rest| rest.0);
        if tries >= TRIES {
            return self.swept(folder);
        }
        let until = WallMillis(wall.0 + self.wait_ms(folder, tries));
        self.sweep.resting.insert(folder, (tries, until));
    }

    /// A folder of [`Replica::poll_sweep`] that [is owed](Replica::is_owed) could not be listed: it is
    /// tried again some time later, as often as it takes.
    pub fn handle_sweep_failed(&mut self, wall: WallMillis, folder: ObjectId, reason: String) {
        let tries = self.sweep.resting.get(&folder).map_or(0, |rest| rest.0);
        let tries = (tries + 1).min(TRIES - 1);
        self.sweep.resting.insert(folder, (tries, wall));
        self.not_swept(wall, folder, reason);
    }

    /// What was looked through is on the disk.
    pub(super) fn sweeps_synced(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if self.sweep.sync_ended() {
            put_meta(t, super::waiting::OWED, &self.sweep.noted())?;
        }
        Ok(())
    }

    /// What the last sweep could not remove, for people.
    #[must_use]
    pub fn sweep_failures(&self) -> &[String] {
        &self.sweep.failures
    }
}
