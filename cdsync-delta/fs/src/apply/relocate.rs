//! Several moves at once: chains, swaps and longer cycles, without a name missing in between where
//! the filesystem can swap.
//!
//! They can be done again after a kill at any moment: whatever is moved is at its old name, at its
//! new one, at that of another move of the same set, or in the spare folder under a name that its
//! identity gives; and what has to make room is in the trash before its name is taken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdsync_core::ledger::object::{Identity, Kind, Observed};
use cdsync_core::path::{Name, RelPath};

use super::{Applier, ApplyError, Trashed, name_of, stage};
use crate::dir::{Dir, LookWants};
use crate::error::{FsError, FsErrorKind};

/// One object that goes from one name to another.
#[derive(Debug, Clone)]
pub struct Move {
    /// The folder where it is; `None` where that is not to be found: what is in it may have been
    /// set aside before a kill.
    pub from_dir: Option<Arc<Dir>>,
    /// Its name there.
    pub from_name: Name,
    /// The folder where it belongs.
    pub to_dir: Arc<Dir>,
    /// Its name there.
    pub to_name: Name,
    /// Which object it is.
    pub identity: Identity,
}

/// What became of one move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveOutcome {
    /// The object, with its kernel handle, is at its destination; it was moved now, or had been
    /// before.
    Done(Box<Observed>),
    /// The object is neither at its old name nor at its new one. Nothing was moved for it.
    Missing,
    /// To this filesystem its new name is the same as this other one of the folder. It is where it
    /// was before.
    Clashes(Name),
    /// The system refused. The object is where it was before, or at a place told in the error.
    Failed(FsError),
}

/// What became of all of them, in the order given, and what had to make room.
#[derive(Debug, Default)]
pub struct Relocated {
    /// One for each move.
    pub outcomes: Vec<MoveOutcome>,
    /// What was at a destination and belongs to no move.
    pub displaced: Vec<Trashed>,
}

struct Pending<'a> {
    index: usize,
    wanted: &'a Move,
    /// Where the object is at this moment.
    at: Place,
    in_spare: bool,
}

#[derive(Clone)]
struct Place {
    dir: Arc<Dir>,
    name: Name,
}

impl Place {
    fn is(&self, dir: &Dir, name: &Name) -> bool {
        self.dir.identity() == dir.identity() && self.name == *name
    }

    fn holds(&self, identity: Identity) -> Result<bool, FsError> {
        let found = self.dir.look(&self.name, LookWants::default())?;
        Ok(found.is_some_and(|o| o.fingerprint.identity == identity))
    }
}

enum Step {
    Settled(MoveOutcome),
    Waits,
    /// What has to make room at this path may hold what others move out of it.
    Crowded(RelPath),
    /// It is at its new name only as far as the filesystem takes that for the old one.
    Respelt,
}

/// What is told of a folder has its handle, so that nobody needs to look by its name again.
/// What a kill left aside waits this long for the moves to be done again.
const ASIDE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

impl Applier {
    /// Makes every move, in whatever order they need. The moves may form any permutation.
    /// Destinations that hold something outside the set are freed: it goes to the trash. Doing it
    /// again does nothing: a move whose destination holds its object is done.
    ///
    /// # Errors
    /// Only when the trash or the spare folder fails; what single moves came to is in the result.
    pub fn relocate(&self, moves: &[Move]) -> Result<Relocated, ApplyError> {
        let mut result = Relocated::default();
        let mut outcomes: Vec<Option<MoveOutcome>> = vec![None; moves.len()];
        let mut pending = self.locate(moves)?;
        while !pending.is_empty() {
            let before = pending.len();
            let mut next = 0;
            while next < pending.len() {
                match self.step(&pending, next, &mut result.displaced)? {
                    Step::Settled(outcome) => {
                        let settled = pending.swap_remove(next);
                        if !matches!(outcome, MoveOutcome::Done(_)) {
                            settled.put_back();
                        }
                        outcomes[settled.index] = Some(outcome);
                    }
                    Step::Waits => next += 1,
                    Step::Crowded(path) => self.clear_below(&mut pending, &path)?,
                    Step::Respelt => {
                        if !self.set_aside(&mut pending[next])? {
                            next += 1;
                        }
                    }
                }
            }
            if pending.len() == before && !self.break_cycle(&mut pending, &mut outcomes)? {
                break;
            }
        }
        for stuck in pending {
            stuck.put_back();
            let path = stuck.wanted.to_dir.path().join(&stuck.wanted.to_name);
            let error = FsError::of_kind(FsErrorKind::Busy, "move to", path);
            outcomes[stuck.index] = Some(MoveOutcome::Failed(error));
        }
        let missing = |outcome: Option<_>| outcome.unwrap_or(MoveOutcome::Missing);
        result.outcomes = outcomes.into_iter().map(missing).collect();
        Ok(result)
    }

    /// Does one move if nothing is in its way that another move will take away.
    fn step(
        &self,
        pending: &[Pending<'_>],
        index: usize,
        displaced: &mut Vec<Trashed>,
    ) -> Result<Step, ApplyError> {
        let this = &pending[index];
        let wanted = this.wanted;
        let at_destination = match wanted.to_dir.look(&wanted.to_name, LookWants::HANDLE) {
            Ok(found) => found,
            Err(error) => return Ok(Step::Settled(MoveOutcome::Failed(error))),
        };
        if let Some(found) = at_destination {
            let alias = self.alias_of(&wanted.to_dir, &wanted.to_name, None)?;
            if found.fingerprint.identity == wanted.identity {
                match alias {
                    Some(other) if this.in_spare => {
                        return Ok(Step::Settled(MoveOutcome::Clashes(other)));
                    }
                    Some(_) => return Ok(Step::Respelt),
                    None => {}
                }
                Self::drop_second_name(pending, this, &found)?;
                return Ok(Step::Settled(MoveOutcome::Done(Box::new(found))));
            }
            if !this.at.holds(wanted.identity)? {
                return Ok(Step::Settled(MoveOutcome::Missing));
            }
            let mut others = pending.iter().filter(|p| p.index != this.index);
            let there = alias.as_ref().unwrap_or(&wanted.to_name);
            if others.any(|p| p.at.is(&wanted.to_dir, there)) {
                return Ok(Step::Waits);
            }
            if let Some(other) = alias {
                return Ok(Step::Settled(MoveOutcome::Clashes(other)));
            }
            let path = wanted.to_dir.path().join(&wanted.to_name);
            if found.kind == Kind::Folder && pending.iter().any(|p| p.comes_from(&path)) {
                return Ok(Step::Crowded(path));
            }
            displaced.extend(self.free(this, &found)?);
        } else if !this.at.holds(wanted.identity)? {
            return Ok(Step::Settled(MoveOutcome::Missing));
        }
        Ok(Self::finish(this))
    }

    /// Renames to a destination that is free, or holds the object since an exchange.
    fn finish(this: &Pending<'_>) -> Step {
        let wanted = this.wanted;
        match this
            .at
            .dir
            .rename_new(&this.at.name, &wanted.to_dir, &wanted.to_name)
        {
            Ok(()) => {}
            // Into itself (its new parent moves later), or taken again at this moment.
            Err(error) if error.errno() == Some(libc::EINVAL) => return Step::Waits,
            Err(error) if error.kind() == FsErrorKind::Exists => {}
            Err(error) if error.kind() == FsErrorKind::NotFound => {}
            Err(error) => return Step::Settled(MoveOutcome::Failed(error)),
        }
        match wanted.to_dir.look(&wanted.to_name, LookWants::HANDLE) {
            Ok(Some(found)) if found.fingerprint.identity == wanted.identity => {
                Step::Settled(MoveOutcome::Done(Box::new(found)))
            }
            Ok(_) => {
                let path = wanted.to_dir.path().join(&wanted.to_name);
                let error = FsError::of_kind(FsErrorKind::Changed, "move to", path);
                Step::Settled(MoveOutcome::Failed(error))
            }
            Err(error) => Step::Settled(MoveOutcome::Failed(error)),
        }
    }

    /// Frees a destination: what stands there goes to the trash. A file takes the place of a file
    /// without the name missing for a moment.
    fn free(&self, this: &Pending<'_>, found: &Observed) -> Result<Option<Trashed>, ApplyError> {
        let wanted = this.wanted;
        let (dir, name) = (&wanted.to_dir, &wanted.to_name);
        let path = dir.path().join(name);
        let is_folder = |found: Option<Observed>| found.is_some_and(|o| o.kind == Kind::Folder);
        let moving = this.at.dir.look(&this.at.name, LookWants::default())?;
        if found.kind != Kind::Folder && !is_folder(moving) {
            let slot = self.trash_lock().slot(name)?;
            match dir.hard_link(name, &slot.folder, &slot.name) {
                Ok(()) => {
                    this.at.dir.rename_over(&this.at.name, dir, name)?;
                    return self.settle(&slot, None, &path).map(Some);
                }
                // Without room for a name what comes behind it may fail as well.
                Err(error) if error.is_disk_full() => return Err(error.into()),
                // No further names on this filesystem, or not of this one.
                Err(_) => {}
            }
        }
        self.trash(dir, name, None, &path)
    }

    /// Sets aside everything that comes from below a path.
    fn clear_below(&self, pending: &mut [Pending<'_>], path: &RelPath) -> Result<(), ApplyError> {
        for this in pending.iter_mut().filter(|p| p.comes_from(path)) {
            if !self.set_aside(this)? {
                // It is not there: its own step says so.
                this.in_spare = true;
            }
        }
        Ok(())
    }

    /// Finds where everything is now: at its old name, or where a kill left it.
    fn locate<'a>(&self, moves: &'a [Move]) -> Result<Vec<Pending<'a>>, ApplyError> {
        let mut elsewhere: Option<BTreeMap<Identity, Place>> = None;
        let mut pending = Vec::with_capacity(moves.len());
        for (index, wanted) in moves.iter().enumerate() {
            let aside = Place {
                dir: Arc::clone(&self.spare),
                name: Self::aside_name(wanted.identity)?,
            };
            let at = wanted.from().unwrap_or_else(|| aside.clone());
            let mut this = Pending {
                index,
                wanted,
                at,
                in_spare: false,
            };
            if !this.at.holds(wanted.identity)? {
                if aside.holds(wanted.identity)? {
                    (this.at, this.in_spare) = (aside, true);
                } else {
                    let found = match &mut elsewhere {
                        Some(found) => found,
                        none => none.insert(everywhere(moves)?),
                    };
                    if let Some(place) = found.get(&wanted.identity) {
                        this.at = place.clone();
                    }
                }
            }
            pending.push(this);
        }
        Ok(pending)
    }

    /// The name in the spare folder of an object that a move has set aside.
    ///
    /// # Errors
    /// Never in practice: the name is short.
    pub fn aside_name(identity: Identity) -> Result<Name, FsError> {
        let (inode, born) = (identity.inode, identity.born);
        name_of(format!("{ASIDE}{inode:x}-{:x}-{:x}", born.secs, born.nanos).as_bytes())
    }

    /// Moves what an earlier run left in the middle of a swap to the trash, but for what moves that
    /// may be done again have set aside.
    pub(super) fn keep_spares(&self) -> Result<(), ApplyError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        for name in stage::names_of(&self.spare)? {
            if name.as_bytes().starts_with(ASIDE.as_bytes()) {
                let found = self.spare.look(&name, LookWants::default())?;
                let since = found.map_or(0, |o| o.fingerprint.ctime.secs);
                let since = Duration::from_secs(u64::try_from(since).unwrap_or(0));
                if now.saturating_sub(since) < ASIDE_KEPT {
                    continue;
                }
            }
            let from = self.spare.path().join(&name);
            if let Some(kept) = self.trash(&self.spare, &name, None, &from)? {
                tracing::warn!(kept = %kept.kept_as, "an interrupted move was kept in the trash");
            }
        }
        Ok(())
    }

    /// A hard link that was moved onto another name of its own file: only the old name has to go.
    fn drop_second_name(
        pending: &[Pending<'_>],
        this: &Pending<'_>,
        found: &Observed,
    ) -> Result<(), FsError> {
        let place = &this.at;
        if found.kind == Kind::Folder
            || found.link_count < 2
            || place.is(&this.wanted.to_dir, &this.wanted.to_name)
            || pending
                .iter()
                .any(|p| place.is(&p.wanted.to_dir, &p.wanted.to_name))
            || !place.holds(this.wanted.identity)?
        {
            return Ok(());
        }
        place.dir.unlink(&place.name)
    }

    /// Nothing can go on: all that is left waits for each other. Swaps one object to its place, or
    /// sets it aside where no swap is possible. Says whether anything was done.
    fn break_cycle(
        &self,
        pending: &mut Vec<Pending<'_>>,
        outcomes: &mut [Option<MoveOutcome>],
    ) -> Result<bool, ApplyError> {
        for index in 0..pending.len() {
            let (at, wanted) = (pending[index].at.clone(), pending[index].wanted);
            let occupant = (0..pending.len())
                .find(|&o| o != index && pending[o].at.is(&wanted.to_dir, &wanted.to_name));
            let Some(occupant) = occupant else { continue };
            match at.dir.exchange(&at.name, &wanted.to_dir, &wanted.to_name) {
                Ok(()) => {
                    pending[occupant].at = at;
                    return Ok(true);
                }
                Err(error) if error.kind() == FsErrorKind::Unsupported => {}
                Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(true),
                Err(error) => {
                    let failed = pending.swap_remove(index);
                    outcomes[failed.index] = Some(MoveOutcome::Failed(error));
                    return Ok(true);
                }
            }
        }
        // The deepest first: a folder cannot leave from under one that is set aside before it.
        for this in pending.iter_mut().filter(|p| !p.in_spare) {
            if self.set_aside(this)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves one waiting object out of the way, into the spare folder. Each goes there only once.
    fn set_aside(&self, this: &mut Pending<'_>) -> Result<bool, ApplyError> {
        let name = Self::aside_name(this.wanted.identity)?;
        if !this.at.holds(this.wanted.identity)? {
            return Ok(false);
        }
        match this.at.dir.rename_new(&this.at.name, &self.spare, &name) {
            Ok(()) => {
                this.at = Place {
                    dir: Arc::clone(&self.spare),
                    name,
                };
                this.in_spare = true;
                Ok(true)
            }
            Err(error) if error.kind() == FsErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// How names of what was set aside begin.
const ASIDE: &str = "move-";

/// What is at any old or new name.
fn everywhere(moves: &[Move]) -> Result<BTreeMap<Identity, Place>, FsError> {
    let mut found = BTreeMap::new();
    for one in moves {
        for place in one.from().into_iter().chain([one.to()]) {
            if let Some(there) = place.dir.look(&place.name, LookWants::default())? {
                found.insert(there.fingerprint.identity, place);
            }
        }
    }
    Ok(found)
}

impl Move {
    fn from(&self) -> Option<Place> {
        self.from_dir.as_ref().map(|dir| Place {
            dir: Arc::clone(dir),
            name: self.from_name.clone(),
        })
    }

    fn to(&self) -> Place {
        Place {
            dir: Arc::clone(&self.to_dir),
            name: self.to_name.clone(),
        }
    }
}

impl Pending<'_> {
    /// Whether its old name is below a path, and it may be there still.
    fn comes_from(&self, path: &RelPath) -> bool {
        let from = self.wanted.from_dir.as_ref();
        !self.in_spare && from.is_some_and(|dir| dir.path().after(path).is_some())
    }

    /// Returns an object that was set aside and could not be moved on.
    fn put_back(&self) {
        if !self.in_spare {
            return;
        }
        let Some(dir) = &self.wanted.from_dir else {
            return;
        };
        let name = &self.wanted.from_name;
        if let Err(error) = self.at.dir.rename_new(&self.at.name, dir, name) {
            // The next start keeps it in the trash.
            tracing::warn!(%error, "an interrupted move stays in the spare folder");
        }
    }
}
