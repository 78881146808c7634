//! Several moves at once: chains, swaps and longer cycles, without a name missing in between where
//! the filesystem can swap.

use std::sync::Arc;

use cdsync_core::ledger::object::{Identity, Kind, Observed};
use cdsync_core::path::Name;

use super::{Applier, ApplyError, Trashed, random_name};
use crate::dir::{Dir, LookWants};
use crate::error::{FsError, FsErrorKind};

/// One object that goes from one name to another.
#[derive(Debug, Clone)]
pub struct Move {
    /// The folder where it is.
    pub from_dir: Arc<Dir>,
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
    /// The object is at its destination; it was moved now, or had been before.
    Done(Box<Observed>),
    /// The object is neither at its old name nor at its new one. Nothing was moved for it.
    Missing,
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
}

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
        let mut pending: Vec<Pending<'_>> = moves.iter().enumerate().map(Pending::new).collect();
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
        let at_destination = match wanted.to_dir.look(&wanted.to_name, LookWants::default()) {
            Ok(found) => found,
            Err(error) => return Ok(Step::Settled(MoveOutcome::Failed(error))),
        };
        if let Some(found) = at_destination {
            if found.fingerprint.identity == wanted.identity {
                Self::drop_second_name(pending, this, &found)?;
                return Ok(Step::Settled(MoveOutcome::Done(Box::new(found))));
            }
            if !this.at.holds(wanted.identity)? {
                return Ok(Step::Settled(MoveOutcome::Missing));
            }
            let others = pending.iter().filter(|p| p.index != this.index);
            if others
                .into_iter()
                .any(|p| p.at.is(&wanted.to_dir, &wanted.to_name))
            {
                return Ok(Step::Waits);
            }
            displaced.extend(self.free(this)?);
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
        match wanted.to_dir.look(&wanted.to_name, LookWants::default()) {
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

    /// Swaps the object in for what stands at its destination, which then goes to the trash from
    /// the object's old name; so neither name is missing for a moment.
    fn free(&self, this: &Pending<'_>) -> Result<Option<Trashed>, ApplyError> {
        let wanted = this.wanted;
        let path = wanted.to_dir.path().join(&wanted.to_name);
        let swapped = this
            .at
            .dir
            .exchange(&this.at.name, &wanted.to_dir, &wanted.to_name);
        match swapped {
            Ok(()) => self.trash(&this.at.dir, &this.at.name, None, &path),
            Err(error) if error.kind() == FsErrorKind::NotFound => Ok(None),
            // No swap here, or the one lies inside the other.
            Err(error) if error.kind() == FsErrorKind::Unsupported => {
                self.trash(&wanted.to_dir, &wanted.to_name, None, &path)
            }
            Err(error) => Err(error.into()),
        }
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
        self.set_aside(pending)
    }

    /// Moves one waiting object out of the way, into the spare folder. Each goes there only once.
    fn set_aside(&self, pending: &mut [Pending<'_>]) -> Result<bool, ApplyError> {
        // The deepest first: a folder cannot leave from under one that is set aside before it.
        for this in pending.iter_mut().filter(|p| !p.in_spare) {
            let name = random_name()?;
            match this.at.dir.rename_new(&this.at.name, &self.spare, &name) {
                Ok(()) => {
                    this.at = Place {
                        dir: Arc::clone(&self.spare),
                        name,
                    };
                    this.in_spare = true;
                    return Ok(true);
                }
                Err(error) if error.kind() == FsErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}

impl<'a> Pending<'a> {
    fn new((index, wanted): (usize, &'a Move)) -> Self {
        let at = Place {
            dir: Arc::clone(&wanted.from_dir),
            name: wanted.from_name.clone(),
        };
        Self {
            index,
            wanted,
            at,
            in_spare: false,
        }
    }

    /// Returns an object that was set aside and could not be moved on.
    fn put_back(&self) {
        if !self.in_spare {
            return;
        }
        let (dir, name) = (&self.wanted.from_dir, &self.wanted.from_name);
        if let Err(error) = self.at.dir.rename_new(&self.at.name, dir, name) {
            // The next start keeps it in the trash.
            tracing::warn!(%error, "an interrupted move stays in the spare folder");
        }
    }
}
