//! The trash: whatever is removed or displaced is kept there, under its old name, with a manifest.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cdsync_core::ledger::object::{Identity, Kind, Observed};
use cdsync_core::path::{Escaped, NAME_MAX_BYTES, Name, RelPath};

use super::retention::{MANIFEST, Weight, own_weight};
use super::{
    Applier, ApplyError, Expected, NameSetDigest, digest, name_of, random_u64, write_full,
};
use crate::dir::Dir;
use crate::error::{FsError, FsErrorKind};

/// How many things one trash folder takes in: so many names are held at once to remove the oldest.
const FOLDER_ENTRIES: u64 = 10_000;

/// Manifest lines held back before they are written.
const PENDING_MAX_BYTES: usize = 64 * 1024;

/// What went to the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    /// Where it is now, relative to the job's `trash` folder.
    pub kept_as: RelPath,
    /// What it was, seen after it had left its place.
    pub observed: Observed,
    /// Whether it was what the caller expected. If not, somebody else put it there; it is kept all
    /// the same.
    pub expected: bool,
}

/// Tells how late it is, in seconds since 1970, for what comes to the trash. By default the system's
/// clock.
#[derive(Clone)]
pub struct TrashClock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl TrashClock {
    /// One that asks this.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }
}

impl Default for TrashClock {
    fn default() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs()
        })
    }
}

impl std::fmt::Debug for TrashClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrashClock")
    }
}

/// The trash of one job.
#[derive(Debug)]
pub(super) struct Trash {
    top: Arc<Dir>,
    clock: TrashClock,
    current: Option<Current>,
    /// How long one folder takes things in.
    span: Duration,
    /// Folders that are closed, while something may still be on its way into them.
    closed: Vec<(Name, Arc<Dir>)>,
}

#[derive(Debug)]
struct Current {
    folder: Arc<Dir>,
    name: Name,
    opened: Instant,
    manifest: OwnedFd,
    written: u64,
    pending: Vec<u8>,
    counter: u64,
    weight: Weight,
    /// Whole folders that came and were not counted yet.
    unweighed: Vec<Name>,
}

/// A free place in the trash.
pub(super) struct Slot {
    pub(super) folder: Arc<Dir>,
    pub(super) name: Name,
    kept_as: RelPath,
    counter: u64,
}

impl Trash {
    pub(super) fn new(top: Dir, span: Duration) -> Self {
        Self {
            top: Arc::new(top),
            clock: TrashClock::default(),
            current: None,
            span,
            closed: Vec::new(),
        }
    }

    pub(super) fn set_clock(&mut self, clock: TrashClock) {
        self.clock = clock;
    }

    pub(super) fn set_span(&mut self, span: Duration) {
        self.span = span;
    }

    /// The folder of all of it, and the name of the one in use.
    pub(super) fn top(&self) -> (Arc<Dir>, Option<Name>) {
        let current = self.current.as_ref().map(|current| current.name.clone());
        (Arc::clone(&self.top), current)
    }

    /// Closes the folder in use: what comes next goes to a new one.
    pub(super) fn close(&mut self) -> Result<(), FsError> {
        self.flush()?;
        let closed = self.current.take().map(|c| (c.name, c.folder));
        self.closed.extend(closed);
        // Nothing is on its way into what nobody else holds.
        self.closed.retain(|(_, dir)| Arc::strong_count(dir) > 1);
        Ok(())
    }

    /// Closes the folder in use if it is due, or holds anything and `at_once` is said.
    pub(super) fn close_old(&mut self, at_once: bool) -> Result<(), FsError> {
        let due = |c: &Current| c.opened.elapsed() > self.span || (at_once && c.counter > 0);
        if self.current.as_ref().is_some_and(due) {
            return self.close();
        }
        Ok(())
    }

    /// Whether something may still come into a folder.
    pub(super) fn is_in_use(&mut self, name: &Name) -> bool {
        self.closed.retain(|(_, dir)| Arc::strong_count(dir) > 1);
        let current = self.current.as_ref().map(|current| &current.name);
        current == Some(name) || self.closed.iter().any(|(closed, _)| closed == name)
    }

    /// What the folder in use holds.
    pub(super) fn live_weight(&self) -> Weight {
        self.current.as_ref().map(|c| c.weight).unwrap_or_default()
    }

    /// A whole folder in the folder in use whose content is not counted yet.
    pub(super) fn next_unweighed(&mut self) -> Option<(Arc<Dir>, Name)> {
        let current = self.current.as_mut()?;
        let name = current.unweighed.pop()?;
        Some((Arc::clone(&current.folder), name))
    }

    /// What came to a folder, if it is the one in use.
    pub(super) fn add_weight(&mut self, folder: &Dir, weight: Weight) {
        if let Some(current) = &mut self.current
            && current.folder.identity() == folder.identity()
        {
            current.weight.add(weight);
        }
    }

    /// Reserves a place for something called `basename`.
    pub(super) fn slot(&mut self, basename: &Name) -> Result<Slot, FsError> {
        let full = |c: &Current| c.opened.elapsed() > self.span || c.counter >= FOLDER_ENTRIES;
        if self.current.as_ref().is_some_and(full) {
            self.close()?;
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => none.insert(Current::open(&self.top, (self.clock.0)())?),
        };
        current.counter += 1;
        let mut bytes = format!("{}-", current.counter).into_bytes();
        let room = NAME_MAX_BYTES - bytes.len();
        let kept = &basename.as_bytes()[..basename.as_bytes().len().min(room)];
        bytes.extend_from_slice(kept);
        let name = name_of(&bytes)?;
        let kept_as = RelPath::root().join(&current.name).join(&name);
        let folder = Arc::clone(&current.folder);
        Ok(Slot {
            folder,
            name,
            kept_as,
            counter: current.counter,
        })
    }

    /// Notes what is in a slot and where it came from.
    fn note(&mut self, slot: &Slot, from: &RelPath, kind: Kind) -> Result<(), FsError> {
        let current = self.current.as_mut();
        let Some(current) = current.filter(|c| c.folder.identity() == slot.folder.identity())
        else {
            // It was closed meanwhile: its manifest too.
            return Ok(());
        };
        if kind == Kind::Folder {
            current.unweighed.push(slot.name.clone());
        }
        let line = format!("{}\t{}\n", slot.counter, Escaped(from.as_bytes()));
        current.pending.extend_from_slice(line.as_bytes());
        if current.pending.len() > PENDING_MAX_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes the manifest lines held back.
    pub(super) fn flush(&mut self) -> Result<(), FsError> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let manifest = current.folder.path();
        write_full(&current.manifest, &current.pending, current.written)
            .map_err(|errno| FsError::new("write manifest of", manifest.as_bytes(), errno))?;
        current.written += current.pending.len() as u64;
        current.pending.clear();
        Ok(())
    }
}

impl Current {
    fn open(top: &Dir, now: u64) -> Result<Self, FsError> {
        let name = format!("{}-{:08x}", utc_stamp(now), random_u64()? >> 32);
        let name = name_of(name.as_bytes())?;
        let folder = top.private_folder(&name)?;
        let manifest = folder.create_exclusive(&name_of(MANIFEST)?, 0o600)?;
        Ok(Self {
            folder: Arc::new(folder),
            name,
            opened: Instant::now(),
            manifest,
            written: 0,
            pending: Vec::new(),
            counter: 0,
            weight: Weight::default(),
            unweighed: Vec::new(),
        })
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "the last lines of a trash manifest are lost");
        }
    }
}

impl Applier {
    /// Moves what is at `name` to the trash, then looks what it was. `None` when nothing was there.
    /// `from` is noted in the manifest.
    ///
    /// # Errors
    /// What the system said; nothing was changed then.
    pub fn trash(
        &self,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
        from: &RelPath,
    ) -> Result<Option<Trashed>, ApplyError> {
        let known = expect.map(|expect| expect.identity);
        if self.alias_of(dir, name, known)?.is_some() {
            // What is there is another one's.
            return Ok(None);
        }
        let slot = self.trash_lock().slot(name)?;
        match dir.rename_new(name, &slot.folder, &slot.name) {
            Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        self.settle(&slot, expect, from).map(Some)
    }

    /// Puts back what has just been moved to the trash, if its name is free still; else it stays
    /// there.
    ///
    /// # Errors
    /// What the system said.
    pub fn put_back(&self, kept: &Trashed, dir: &Dir, name: &Name) -> Result<(), ApplyError> {
        let (top, _) = self.trash_top();
        let mut components = kept.kept_as.components();
        let (Some(folder), Some(entry)) = (components.next(), components.next()) else {
            return Ok(());
        };
        let folder = top.open_folder(&name_of(folder)?)?;
        match folder.rename_new(&name_of(entry)?, dir, name) {
            Err(error) if error.kind() == FsErrorKind::Exists => Ok(()),
            other => Ok(other?),
        }
    }

    /// Moves a whole folder to the trash in one go, if the names below it are exactly those that
    /// the caller knows.
    ///
    /// # Errors
    /// [`ApplyError::ForeignContent`] when they are not, [`FsErrorKind::Moved`] when it is another
    /// folder; nothing was changed then. `None` when nothing is there.
    pub fn trash_folder(
        &self,
        dir: &Dir,
        name: &Name,
        identity: Identity,
        known: &NameSetDigest,
    ) -> Result<Option<Trashed>, ApplyError> {
        let folder = match dir.open_folder(name) {
            Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        crate::dir::check_identity(dir, name, folder.identity(), identity)?;
        let found = digest::walk(&folder)?;
        let path = dir.path().join(name);
        if found != *known {
            let (known, found) = (known.count(), found.count());
            return Err(ApplyError::ForeignContent { path, known, found });
        }
        drop(folder);
        self.trash(dir, name, Some(identity.into()), &path)
    }

    /// Looks at what has just been put into a slot and notes it.
    pub(super) fn settle(
        &self,
        slot: &Slot,
        expect: Option<Expected>,
        from: &RelPath,
    ) -> Result<Trashed, ApplyError> {
        let observed = slot.folder.look_existing(&slot.name)?;
        let expected = expect.is_none_or(|e| e.is_met_by(&observed));
        // What others made of it may have to go back.
        if self.limits.erase && expected && observed.kind != Kind::Folder {
            slot.folder.unlink(&slot.name)?;
        } else {
            let weight = own_weight(&slot.folder, &slot.name)?;
            let mut trash = self.trash_lock();
            trash.note(slot, from, observed.kind)?;
            trash.add_weight(&slot.folder, weight.map_or(Weight::default(), |w| w.1));
        }
        Ok(Trashed {
            kept_as: slot.kept_as.clone(),
            observed,
            expected,
        })
    }

    /// Removes a folder that must be empty but for nothing.
    ///
    /// # Errors
    /// [`FsErrorKind::NotEmpty`] when it is not; [`FsErrorKind::Moved`] when it is another folder.
    pub fn remove_empty_folder(
        &self,
        dir: &Dir,
        name: &Name,
        identity: Identity,
    ) -> Result<(), ApplyError> {
        let found = dir.look_existing(name)?;
        if found.kind != Kind::Folder {
            let path = dir.path().join(name);
            return Err(FsError::of_kind(FsErrorKind::NotFolder, "remove", path).into());
        }
        crate::dir::check_identity(dir, name, found.fingerprint.identity, identity)?;
        Ok(dir.remove_folder(name)?)
    }
}

/// `20260131T235959Z`, from seconds since 1970 (civil date by Hinnant's algorithm).
pub(super) fn utc_stamp(secs: u64) -> String {
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::utc_stamp;

    /// Proves the civil date at leap days and century ends, which retention by name relies on.
    #[test]
    fn stamps_are_civil_time() {
        assert_eq!(utc_stamp(0), "19700101T000000Z");
        assert_eq!(utc_stamp(951_782_399), "20000228T235959Z");
        assert_eq!(utc_stamp(951_782_400), "20000229T000000Z");
        assert_eq!(utc_stamp(1_798_761_599), "20261231T235959Z");
        assert_eq!(utc_stamp(4_107_542_400), "21000301T000000Z");
    }
}
