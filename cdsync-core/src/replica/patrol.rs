//! The paced check of a target: from time to time everything in its root is looked at, folder by
//! folder and at a pace, and compared with the rows; what others changed is treated as the job's
//! `drift` says.
//!
//! Of each folder what the ledger has there is looked at first, by the names in the ledger; then the
//! folder is listed, and what is there and in no ledger is foreign. It waits for nothing and nothing
//! waits for it. What a crash may have left behind the ledger is not others' work: nothing is checked
//! before the records that may have been applied without a trace came again.

use std::ops::ControlFlow;

use super::links::{name_number, numbered};
use super::{ApplyOp, Difference, OnDrift, Place, Replica, SweepEntry, Then};
use crate::filter::Verdict;
use crate::ids::{ObjectId, OriginId};
use crate::job::Drift;
use crate::ledger::access::{self, FolderAt, Slot, live, parked_row, put_live, put_meta, put_name};
use crate::ledger::loss::{Loss, Losses};
use crate::ledger::object::{Fingerprint, Kind, Observed, Seq};
use crate::ledger::rows::{Known, LiveObject, NameRow, ParkedWhat};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::{Name, NameSetDigest, RelPath};
use crate::time::WallMillis;

/// When the last check ended, by the clock: an agent that is often restarted checks all the same.
const CHECKED: &str = "replica-checked";

/// How many copies are looked at in one go.
const AT_ONCE: usize = 64;
/// How many names of a listing are taken in one go.
pub const PATROL_NAMES: usize = 512;
/// So many entries a millisecond at most.
const ENTRIES_PER_MS: usize = 10;
/// So many of others' things are kept by name; more are found once these are decided.
const KEPT_MAX: usize = 1_000;

const LOST: &str = "it was changed or removed by others: it is fetched again";

/// What the check wants of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatrolAsk {
    /// Operations were planned: [`Replica::poll_step`].
    Step,
    /// The next names of this folder: [`Replica::handle_patrol_names`].
    Names(FolderAt),
}

#[derive(Debug, Default)]
pub(super) struct Patrol {
    running: bool,
    /// A whole check is due, whatever the clock says.
    again: bool,
    /// Folders to come.
    stack: Vec<ObjectId>,
    at: Option<At>,
    /// When it goes on, by a clock that nobody sets.
    due: WallMillis,
    /// When the last one ended, by the clock.
    last: Option<WallMillis>,
    ended: u64,
}

#[derive(Debug)]
struct At {
    folder: ObjectId,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// What the ledger has in it, behind this name.
    Rows(Option<Name>),
    /// What it lists.
    Names,
}

impl Patrol {
    pub(super) fn open(t: &dyn TablesRead) -> Result<Self, TableError> {
        let last = access::meta(t, CHECKED)?;
        Ok(Self {
            last,
            ..Self::default()
        })
    }

    pub(super) fn begin_again(&mut self) {
        self.again = true;
    }

    fn pause(&mut self, now: WallMillis, entries: usize) {
        let pause = entries.div_ceil(ENTRIES_PER_MS).max(1);
        self.due = WallMillis(now.0.saturating_add(pause as u64));
    }
}

/// The number under which something is noted that others did at a name, and that stays.
fn drift_number(slot: Option<&Slot>) -> ObjectId {
    numbered(OriginId(u64::MAX - 1), slot)
}

impl Replica {
    /// Whether [`Replica::poll_patrol`] has anything to do now.
    #[must_use]
    pub fn wants_patrol(&self, now: WallMillis, clock: WallMillis) -> bool {
        let Some(every) = self.policy.check_every_ms else {
            return false;
        };
        let patrol = &self.patrol;
        let is_due = match patrol.last {
            _ if patrol.running || patrol.again => true,
            // A clock that was set back since says nothing.
            Some(last) => last > clock || clock.0 - last.0 >= every,
            None => true,
        };
        is_due && now >= patrol.due && self.can_patrol()
    }

    /// Whether a check is under way, and when it goes on.
    #[must_use]
    pub fn patrol_due(&self) -> Option<WallMillis> {
        self.patrol.running.then_some(self.patrol.due)
    }

    /// How many checks have ended.
    #[must_use]
    pub fn patrols_ended(&self) -> u64 {
        self.patrol.ended
    }

    /// What the check wants next. `now` for its pace; `clock` is the wall's, for when one is due.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_patrol(
        &mut self,
        now: WallMillis,
        clock: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<Option<PatrolAsk>, TableError> {
        if !self.wants_patrol(now, clock) {
            return Ok(None);
        }
        let is_new = self.patrol.last.is_none_or(|last| last > clock);
        if is_new && !self.patrol.running && !self.patrol.again {
            self.set_checked(t, clock)?;
            return Ok(None);
        }
        if !self.patrol.running {
            let Some(origin) = self.origin else {
                return Ok(None);
            };
            self.patrol.running = true;
            self.patrol.again = false;
            self.patrol.stack = vec![ObjectId::root(origin)];
            self.check_root(t, ObjectId::root(origin))?;
        }
        loop {
            let Some(at) = &self.patrol.at else {
                let Some(folder) = self.patrol.stack.pop() else {
                    break;
                };
                let phase = Phase::Rows(None);
                self.patrol.at = Some(At { folder, phase });
                continue;
            };
            let folder = at.folder;
            let there = self.folders.at(t, folder)?;
            let there = there.filter(|there| folder.is_root() || there.identity.is_some());
            let Some(there) = there else {
                self.patrol.at = None;
                continue;
            };
            match &at.phase {
                Phase::Names => return Ok(Some(PatrolAsk::Names(there))),
                Phase::Rows(after) => {
                    let after = after.clone();
                    self.check_rows(now, t, &there, after.as_ref())?;
                }
            }
            if !self.running.is_empty() {
                return Ok(Some(PatrolAsk::Step));
            }
        }
        self.patrol.running = false;
        self.patrol.ended += 1;
        self.set_checked(t, clock)?;
        Ok((!self.running.is_empty()).then_some(PatrolAsk::Step))
    }

    fn set_checked(&mut self, t: &mut dyn Tables, clock: WallMillis) -> Result<(), TableError> {
        self.patrol.last = Some(clock);
        put_meta(t, CHECKED, &clock)
    }

    /// Whether what the rows say is what the disk holds, but for others' work.
    fn can_patrol(&self) -> bool {
        let claim = self.progress.claim;
        self.complete
            && !self.adopting
            && self.suspect.is_some_and(|upto| claim >= upto)
            && self.is_idle()
            && self.blocking.is_empty()
            && !self.is_sweeping()
            && !self.is_verifying()
    }

    /// Plans looks at what the ledger has in a folder, behind a name.
    fn check_rows(
        &mut self,
        now: WallMillis,
        t: &mut dyn Tables,
        folder: &FolderAt,
        after: Option<&Name>,
    ) -> Result<(), TableError> {
        let mut rows = Vec::with_capacity(AT_ONCE);
        access::children_after(t, folder.id, after, &mut |name, row| {
            rows.push((name, row));
            match rows.len() {
                AT_ONCE => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })?;
        self.patrol.pause(now, rows.len());
        let phase = match rows.last() {
            Some((last, _)) if rows.len() == AT_ONCE => Phase::Rows(Some(last.clone())),
            _ => Phase::Names,
        };
        if let Some(at) = &mut self.patrol.at {
            at.phase = phase;
        }
        for (name, row) in rows {
            let (Some(id), None) = (row.object, row.remnant) else {
                continue;
            };
            self.check(t, id, (folder.id, name))?;
        }
        Ok(())
    }

    /// Plans a look at one name of an object, if that is where it should be.
    fn check(&mut self, t: &dyn TablesRead, id: ObjectId, slot: Slot) -> Result<(), TableError> {
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        if self.is_busy(id) || self.is_busy(name_number(&slot)) || self.fetches.has(id) {
            return Ok(());
        }
        let (Some(local), Some(folder)) = (&row.local, self.folders.at(t, slot.0)?) else {
            return Ok(());
        };
        let is_first = row.slot() == Some(&slot);
        let losses = self.losses_of(id);
        if !is_first && losses.has(Loss::HardLink) {
            // A copy, of which nothing is known.
            return Ok(());
        }
        let op = ApplyOp::Check {
            id,
            at: Some(Place {
                folder,
                name: slot.1.clone(),
            }),
            kind: row.state.kind,
            print: local.fingerprint,
            // Further names show the same.
            left: row
                .known()
                .and_then(|known| known.left)
                .filter(|_| is_first),
            meta: is_first.then(|| row.state.meta.clone()),
            losses,
        };
        self.run(op, Then::Checked(Some(slot)));
        Ok(())
    }

    /// Whether something is still to be done to it.
    pub(super) fn is_busy(&self, id: ObjectId) -> bool {
        self.parked.contains(id) || self.intended.contains(&id)
    }

    /// The root has no name in the ledger.
    fn check_root(&mut self, t: &dyn TablesRead, id: ObjectId) -> Result<(), TableError> {
        if self.is_busy(id) {
            return Ok(());
        }
        let Some(row) = live(t, id)? else {
            return Ok(());
        };
        let Some(local) = &row.local else {
            return Ok(());
        };
        let op = ApplyOp::Check {
            id,
            at: None,
            kind: Kind::Folder,
            print: local.fingerprint,
            left: None,
            meta: Some(row.state.meta.clone()),
            losses: self.losses_of(id),
        };
        self.run(op, Then::Checked(None));
        Ok(())
    }

    /// Takes the next names of a folder; `ended` once there are no more. Returns those that no ledger
    /// has: they are to be looked at, for [`Replica::handle_foreign`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_patrol_names(
        &mut self,
        now: WallMillis,
        t: &dyn TablesRead,
        folder: &FolderAt,
        names: Vec<Name>,
        ended: bool,
    ) -> Result<Vec<Name>, TableError> {
        self.patrol.pause(now, names.len());
        if ended {
            self.patrol.at = None;
        }
        let mut foreign = Vec::new();
        for name in names {
            let is_new = !name.is_reserved() && access::name(t, folder.id, &name)?.is_none();
            let number = drift_number(Some(&(folder.id, name.clone())));
            if is_new && !self.parked.contains(number) {
                foreign.push(name);
            }
        }
        Ok(foreign)
    }

    /// A folder could not be listed: its own folder's check says why.
    pub fn handle_patrol_failed(&mut self) {
        self.patrol.at = None;
    }

    /// Treats what is in a folder and in no ledger; operations follow by [`Replica::poll_step`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_foreign(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: &FolderAt,
        entries: Vec<SweepEntry>,
    ) -> Result<(), TableError> {
        for entry in entries {
            let path = folder.path.join(&entry.name);
            let is_folder = entry.kind == Kind::Folder;
            if self.filter.judge(&path, is_folder) != Verdict::Excluded {
                self.foreign(wall, t, folder, entry)?;
            }
        }
        Ok(())
    }

    /// Something that others put into a folder goes to the trash, or stays, as the job says.
    pub(super) fn foreign(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        folder: &FolderAt,
        entry: SweepEntry,
    ) -> Result<(), TableError> {
        let slot = (folder.id, entry.name.clone());
        if self.policy.drift == Drift::Keep && !self.drifts.is_yielding(drift_number(Some(&slot))) {
            return self.keep_as_it_is(wall, t, Some(slot), None);
        }
        let at = Place {
            folder: folder.clone(),
            name: entry.name,
        };
        self.met_drift_at(t, at.folder.path.join(&at.name), false)?;
        self.touched.insert(folder.id);
        let op = ApplyOp::Remove {
            id: ObjectId::default(),
            at,
            known: entry.identity.into(),
            drift: OnDrift::Ignore,
            kind: entry.kind,
            below: NameSetDigest::default(),
        };
        self.run(op, Then::Swept);
        Ok(())
    }

    /// Whether what others did at a name, or to the root, stays.
    pub(super) fn is_theirs(&self, slot: Option<&Slot>) -> bool {
        !self.drifts.kept.is_empty() && self.drifts.kept.contains(&drift_number(slot))
    }

    /// What a look at a name found to be as it should.
    pub(super) fn checked(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        slot: Option<&Slot>,
        seen: Option<Observed>,
    ) -> Result<(), TableError> {
        self.unpark(t, drift_number(slot))?;
        let (Some(id), Some(seen)) = (op.object(), seen) else {
            return Ok(());
        };
        let Some(mut row) = live(t, id)? else {
            return Ok(());
        };
        let is_first = row.slot() == slot;
        if let Some(local) = row.local.as_mut().filter(|_| is_first)
            && local.fingerprint.identity == seen.fingerprint.identity
            && local.fingerprint != seen.fingerprint
        {
            // What was read once is not read again for the same change time.
            local.fingerprint = seen.fingerprint;
            put_live(t, id, row)?;
        }
        if seen.kind == Kind::Folder && !id.is_root() && self.patrol.running {
            self.patrol.stack.push(id);
        }
        Ok(())
    }

    /// What a look at a name found not to be as the ledger has it.
    pub(super) fn differs(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: &ApplyOp,
        slot: Option<&Slot>,
        found: Difference,
    ) -> Result<(), TableError> {
        let number = drift_number(slot);
        let Some(row) = op.object().map(|id| live(t, id)).transpose()?.flatten() else {
            return self.unpark(t, number);
        };
        let id = row.state.id;
        if row.state.kind == Kind::Folder && found == Difference::Meta && self.patrol.running {
            // What is in it may be all right.
            self.patrol.stack.extend((!id.is_root()).then_some(id));
        }
        if self.policy.drift == Drift::Keep && !self.drifts.is_yielding(number) {
            return self.keep_as_it_is(wall, t, slot.cloned(), Some(id));
        }
        if self.parked.contains(number) {
            // It was told when it was kept.
            self.unpark(t, number)?;
        } else {
            let path = match op.place() {
                Some(at) => at.folder.path.join(&at.name),
                None => RelPath::root(),
            };
            self.met_drift_at(t, path, false)?;
        }
        self.bring_back(wall, t, row, slot, found)
    }

    /// Makes what others changed as it should be again; what they made of it goes to the trash.
    fn bring_back(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        row: LiveObject,
        slot: Option<&Slot>,
        found: Difference,
    ) -> Result<(), TableError> {
        let (id, kind) = (row.state.id, row.state.kind);
        let is_first = row.slot() == slot;
        if found == Difference::Meta {
            if kind == Kind::Folder {
                self.touched.insert(id);
                return Ok(());
            }
            let (Some((at, _)), Some(known)) = (self.place_of(t, id)?, row.known()) else {
                return Ok(());
            };
            let op = ApplyOp::SetMeta {
                id,
                at: Some(at),
                identity: known.identity,
                kind,
                meta: row.state.meta.clone(),
                left: None,
                drift: OnDrift::Ignore,
            };
            self.run(op, Then::Meta(Box::new(row.state)));
            return Ok(());
        }
        let Some(slot) = slot else {
            // Another root is told by its marker.
            return Ok(());
        };
        if is_first {
            self.lose(wall, t, id, LOST)?;
            self.parked.hurry(id);
            return Ok(());
        }
        let noted = NameRow {
            object: Some(id),
            remnant: Some(Known::default()),
        };
        put_name(t, slot.0, &slot.1, noted)?;
        let seq = row.state.version.seq;
        self.intend_link(wall, t, seq, id, slot.clone())?;
        self.plan_link(t, seq, id, slot.clone())
    }

    /// What others did at a name stays, and is told, until they undo it or it may give way.
    fn keep_as_it_is(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: Option<Slot>,
        object: Option<ObjectId>,
    ) -> Result<(), TableError> {
        let number = drift_number(slot.as_ref());
        if !self.drifts.kept.contains(&number) {
            if self.drifts.kept.len() >= KEPT_MAX {
                return Ok(());
            }
            let path = match &slot {
                Some((folder, name)) => self.folders.at(t, *folder)?.map(|at| at.path.join(name)),
                None => Some(RelPath::root()),
            };
            if let Some(path) = path {
                self.met_drift_at(t, path, true)?;
            }
        }
        let seq = match object {
            Some(id) => live(t, id)?.map_or(Seq(0), |row| row.state.version.seq),
            None => Seq(0),
        };
        let reason = match object {
            Some(_) => "kept: changed by others",
            None => "kept: put there by others",
        };
        let what = ParkedWhat::Theirs { object, at: slot };
        self.park(wall, t, number, seq, reason.to_owned(), what)?;
        self.keeps(t, number)
    }

    /// Looks again at what others did at a name; what they undid is nobody's concern any more.
    pub(super) fn retry_theirs(
        &mut self,
        t: &mut dyn Tables,
        number: ObjectId,
        object: Option<ObjectId>,
        at: Option<Slot>,
    ) -> Result<(), TableError> {
        if let Some(id) = object {
            let before = self.running.len();
            match at {
                None => self.check_root(t, id)?,
                Some(at) if live(t, id)?.is_some_and(|row| row.names.contains(&at)) => {
                    self.check(t, id, at)?;
                }
                Some(_) => {}
            }
            if self.running.len() == before {
                // It is gone, or being changed by the source, which meets it then.
                return self.unpark(t, number);
            }
            return Ok(());
        }
        let Some(at) = at else {
            return self.unpark(t, number);
        };
        let Some(folder) = self.folders.at(t, at.0)? else {
            return self.unpark(t, number);
        };
        if let Some(row) = access::name(t, at.0, &at.1)? {
            // The source has taken the name: a folder there kept others' times until now.
            if let Some(id) = row.object
                && live(t, id)?.is_some_and(|row| row.state.kind == Kind::Folder)
            {
                self.touched.insert(id);
            }
            return self.unpark(t, number);
        }
        let place = Place {
            folder,
            name: at.1.clone(),
        };
        if self.drifts.is_yielding(number) || self.policy.drift != Drift::Keep {
            self.touched.insert(at.0);
            let op = ApplyOp::Remove {
                id: ObjectId::default(),
                at: place,
                known: Known::default(),
                drift: OnDrift::Ignore,
                // Whatever it is.
                kind: Kind::Folder,
                below: NameSetDigest::default(),
            };
            self.run(op, Then::GaveWay(at));
            return Ok(());
        }
        let op = ApplyOp::Check {
            id: ObjectId::default(),
            at: Some(place),
            kind: Kind::File,
            print: Fingerprint::default(),
            left: None,
            meta: None,
            losses: Losses::NONE,
        };
        self.run(op, Then::StillThere(at));
        Ok(())
    }

    /// Whether something foreign that is kept is still there.
    pub(super) fn still_there(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: Slot,
        found: Difference,
    ) -> Result<(), TableError> {
        match found {
            Difference::Gone => self.unpark(t, drift_number(Some(&slot))),
            _ => self.keep_as_it_is(wall, t, Some(slot), None),
        }
    }

    /// Something foreign that was kept is gone to the trash, or could not be moved there.
    pub(super) fn gave_way(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        slot: Slot,
        failed: Option<String>,
    ) -> Result<(), TableError> {
        let number = drift_number(Some(&slot));
        let Some(reason) = failed else {
            return self.unpark(t, number);
        };
        let seq = parked_row(t, number)?.map_or(Seq(0), |row| row.seq);
        let what = ParkedWhat::Theirs {
            object: None,
            at: Some(slot),
        };
        self.park(wall, t, number, seq, reason, what)
    }
}
