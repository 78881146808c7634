//! How long the trash keeps what it holds: the oldest goes first, by age, by size, or because the
//! disk is full.
//!
//! Everything here may be stopped at any moment and done again, and by two threads at once: what
//! one removes the other does not find. A trash folder carries its weight in a file `total` from
//! when it was counted until something is removed from it, so that a start counts little.

use std::collections::BTreeMap;
use std::time::Duration;

use cdsync_core::ledger::object::Kind;
use cdsync_core::path::{Name, RelPath};

use super::stage::names_of;
use super::{Applier, ApplyError, name_of, random_name, read_full, write_full};
use crate::dir::Dir;
use crate::error::{FsError, FsErrorKind};

/// The longest time that one trash folder takes things in.
const SPAN_MAX: Duration = Duration::from_secs(3600);
/// The shortest.
const SPAN_MIN: Duration = Duration::from_secs(1);
/// Room that must be missing before the trash is taken for what fills the disk, in bytes.
const ROOM_BYTES: u64 = 64 << 20;
/// As [`ROOM_BYTES`], in files.
const ROOM_FILES: u64 = 64;
/// The file with a closed folder's weight.
const TOTAL: &[u8] = b"total";
pub(super) const MANIFEST: &[u8] = b"manifest";

/// What the trash keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrashLimits {
    /// At most so old.
    pub age: Duration,
    /// At most this part of the filesystem, in percent.
    pub percent: u8,
    /// At most so many bytes, if said.
    pub bytes: Option<u64>,
    /// Nothing is kept at all, whatever the other limits say.
    pub erase: bool,
}

impl Default for TrashLimits {
    /// Everything is kept.
    fn default() -> Self {
        Self {
            age: Duration::MAX,
            percent: 100,
            bytes: None,
            erase: false,
        }
    }
}

impl TrashLimits {
    /// How long one trash folder takes things in: whole folders end together.
    pub(super) fn span(&self) -> Duration {
        (self.age / 10).clamp(SPAN_MIN, SPAN_MAX)
    }
}

/// A number of things and how much room they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weight {
    /// Files, links and folders; of a folder's own content, only once it was counted.
    pub entries: u64,
    /// What the filesystem has allocated for them, in bytes.
    pub bytes: u64,
}

impl Weight {
    pub(super) fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }
}

/// What the trash holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrashUse {
    /// How much.
    pub held: Weight,
    /// When the oldest of it came, in seconds since 1970.
    pub oldest: Option<u64>,
    /// What the last call removed.
    pub removed: Weight,
}

/// Called between small pieces of work; `false` ends it. The place to wait, so that others have
/// the disk.
pub type Pace<'a> = &'a mut dyn FnMut() -> bool;

/// The weights of closed trash folders, as far as they are known.
pub(super) type Weights = BTreeMap<Name, Weight>;

impl Applier {
    /// Counts what the trash holds and removes what is beyond its limits, the oldest first. `now`
    /// in seconds since 1970; `None` where the clock is not to be trusted: nothing is too old then.
    ///
    /// # Errors
    /// What the system said; the next call goes on from there. Retryable.
    pub fn tend_trash(&self, now: Option<u64>, pace: Pace<'_>) -> Result<TrashUse, ApplyError> {
        let limits = self.limits;
        self.trash_lock().close_old(limits.erase)?;
        self.weigh_unweighed(pace)?;
        let (top, current) = self.trash_top();
        let mut folders = Vec::new();
        for name in names_of(&top)? {
            if Some(&name) != current.as_ref() {
                let Some(weight) = self.weight_of(&top, &name, pace)? else {
                    return Ok(TrashUse::default());
                };
                folders.push((name, weight));
            }
        }
        // Their names begin with their time.
        folders.sort_by(|a: &(Name, Weight), b| a.0.cmp(&b.0));
        let mut held = self.trash_lock().live_weight();
        for (_, weight) in &folders {
            held.add(*weight);
        }
        let room = if limits.erase { 0 } else { self.trash_room()? };
        let mut removed = Weight::default();
        let mut oldest = current.as_ref().and_then(stamp_secs);
        for (name, weight) in folders {
            let since = stamp_secs(&name);
            let until = since.map(|at| {
                limits
                    .age
                    .saturating_add(limits.span())
                    .as_secs()
                    .saturating_add(at)
            });
            let too_old = matches!((now, until), (Some(now), Some(until)) if until <= now);
            let excess = held
                .bytes
                .saturating_sub(removed.bytes)
                .saturating_sub(room);
            if !too_old && !limits.erase && excess == 0 {
                oldest = oldest.into_iter().chain(since).min();
                continue;
            }
            let most = if too_old || limits.erase || excess >= weight.bytes {
                u64::MAX
            } else {
                excess
            };
            removed.add(self.remove_from(&top, &name, most, pace)?);
            if most != u64::MAX {
                oldest = oldest.into_iter().chain(since).min();
            }
        }
        let over = held.bytes.saturating_sub(removed.bytes) > room;
        if over && self.trash_lock().live_weight().entries > 0 {
            // What is too much lies in the folder in use: it is the next one to be looked at.
            self.trash_lock().close()?;
        }
        held.entries = held.entries.saturating_sub(removed.entries);
        held.bytes = held.bytes.saturating_sub(removed.bytes);
        Ok(TrashUse {
            held,
            oldest,
            removed,
        })
    }

    /// Makes room on a disk that is full by removing the oldest things from the trash: `bytes` and
    /// a bit. Removes nothing where it is not the filesystem that is full.
    ///
    /// # Errors
    /// What the system said.
    pub fn make_room(&self, bytes: u64) -> Result<Weight, ApplyError> {
        let (top, _) = self.trash_top();
        let wanted = bytes.saturating_add(ROOM_BYTES);
        let stat = rustix::fs::fstatvfs(&*top)
            .map_err(|errno| FsError::new("ask the room of", top.path().as_bytes(), errno))?;
        let mut removed = Weight::default();
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= wanted && (stat.f_files == 0 || stat.f_ffree >= ROOM_FILES) {
            return Ok(removed);
        }
        self.trash_lock().close()?;
        let mut names = names_of(&top)?;
        names.sort();
        for name in names {
            let most = wanted.saturating_sub(removed.bytes);
            removed.add(self.remove_from(&top, &name, most, &mut || true)?);
            if removed.bytes >= wanted {
                break;
            }
        }
        if removed.entries > 0 {
            // Some filesystems give back what was removed only once that is durable.
            let synced = rustix::fs::syncfs(&*top);
            synced.map_err(|errno| FsError::new("sync", top.path().as_bytes(), errno))?;
        }
        Ok(removed)
    }

    /// How many bytes the trash may hold.
    fn trash_room(&self) -> Result<u64, ApplyError> {
        let (top, _) = self.trash_top();
        let stat = rustix::fs::fstatvfs(&*top)
            .map_err(|errno| FsError::new("ask the size of", top.path().as_bytes(), errno))?;
        let whole = u128::from(stat.f_blocks) * u128::from(stat.f_frsize);
        let part = whole * u128::from(self.limits.percent) / 100;
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        Ok(self.limits.bytes.map_or(part, |bytes| bytes.min(part)))
    }

    /// Counts the folders that came to the trash folder in use as a whole.
    fn weigh_unweighed(&self, pace: Pace<'_>) -> Result<(), ApplyError> {
        loop {
            let next = self.trash_lock().next_unweighed();
            let Some((folder, name)) = next else {
                return Ok(());
            };
            let mut weight = Weight::default();
            if !weigh_below(&folder, &name, &mut weight, pace)? {
                return Ok(());
            }
            self.trash_lock().add_weight(&folder, weight);
        }
    }

    /// What a closed trash folder holds; `None`: ended before it was counted.
    fn weight_of(
        &self,
        top: &Dir,
        name: &Name,
        pace: Pace<'_>,
    ) -> Result<Option<Weight>, ApplyError> {
        if let Some(weight) = self.weights().get(name) {
            return Ok(Some(*weight));
        }
        let folder = match top.open_folder(name) {
            Ok(folder) => folder,
            Err(error) if error.kind() == FsErrorKind::NotFound => {
                return Ok(Some(Weight::default()));
            }
            Err(error) => return Err(error.into()),
        };
        let mut weight = Weight::default();
        if let Some(known) = read_total(&folder)? {
            weight = known;
        } else {
            for entry in names_of(&folder)? {
                if !is_ours(&entry) {
                    weight.add(own_weight(&folder, &entry)?.map_or(Weight::default(), |w| w.1));
                    if !weigh_below(&folder, &entry, &mut weight, pace)? {
                        return Ok(None);
                    }
                }
            }
            write_total(&folder, weight)?;
        }
        self.weights().insert(name.clone(), weight);
        Ok(Some(weight))
    }

    /// Removes the oldest things from a trash folder until so many bytes are gone, and the folder
    /// itself once nothing is left in it.
    fn remove_from(
        &self,
        top: &Dir,
        name: &Name,
        most: u64,
        pace: Pace<'_>,
    ) -> Result<Weight, ApplyError> {
        let mut removed = Weight::default();
        let folder = match top.open_folder(name) {
            Ok(folder) => folder,
            Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(removed),
            Err(error) => return Err(error.into()),
        };
        // From here on nobody knows its weight.
        self.weights().remove(name);
        absent_is_fine(folder.unlink(&name_of(TOTAL)?))?;
        let mut entries = names_of(&folder)?;
        entries.retain(|entry| !is_ours(entry));
        // Numbered as they came; what was taken out of folders that are being removed is first.
        entries.sort_by_key(counter_of);
        let mut stuck = None;
        for entry in entries {
            if removed.bytes >= most || !pace() {
                return Ok(removed);
            }
            match remove_entry(&folder, &entry, &mut removed, pace) {
                Ok(true) => {}
                Ok(false) => return Ok(removed),
                Err(error) => stuck = Some(error),
            }
        }
        if let Some(error) = stuck {
            return Err(error.into());
        }
        if !self.trash_lock().is_in_use(name) {
            absent_is_fine(folder.unlink(&name_of(MANIFEST)?))?;
            absent_is_fine(top.remove_folder(name))?;
        }
        Ok(removed)
    }
}

/// Removes something from a trash folder. `false`: ended before it was done. A folder is emptied of
/// its own folders by moving them beside it, so that no depth needs more than two open folders.
fn remove_entry(
    folder: &Dir,
    name: &Name,
    removed: &mut Weight,
    pace: Pace<'_>,
) -> Result<bool, FsError> {
    let mut waiting = vec![name.clone()];
    while let Some(name) = waiting.last().cloned() {
        if !pace() {
            return Ok(false);
        }
        let Some((kind, weight)) = own_weight(folder, &name)? else {
            waiting.pop();
            continue;
        };
        if kind == Kind::Folder {
            let inner = open_own(folder, &name)?;
            let mut moved = None;
            for below in names_of(&inner)? {
                let Some((kind, weight)) = own_weight(&inner, &below)? else {
                    continue;
                };
                if kind == Kind::Folder {
                    let beside = random_name()?;
                    make_movable(&inner, &below)?;
                    absent_is_fine(inner.rename_new(&below, folder, &beside))?;
                    moved = Some(beside);
                    break;
                }
                absent_is_fine(inner.unlink(&below))?;
                removed.add(weight);
                if !pace() {
                    return Ok(false);
                }
            }
            if let Some(beside) = moved {
                waiting.push(beside);
                continue;
            }
            match folder.remove_folder(&name) {
                // Something came into it meanwhile: the next time.
                Err(error) if error.kind() == FsErrorKind::NotEmpty => {}
                other => absent_is_fine(other)?,
            }
        } else {
            absent_is_fine(folder.unlink(&name))?;
        }
        removed.add(weight);
        waiting.pop();
    }
    Ok(true)
}

/// Adds what is below a folder. `false`: ended before it was done.
fn weigh_below(
    folder: &Dir,
    name: &Name,
    into: &mut Weight,
    pace: Pace<'_>,
) -> Result<bool, FsError> {
    match own_weight(folder, name)? {
        Some((Kind::Folder, _)) => {}
        _ => return Ok(true),
    }
    let top = open_own(folder, name)?;
    let mut waiting = vec![RelPath::root()];
    while let Some(path) = waiting.pop() {
        let dir = match top.open_below(&path) {
            Ok(dir) => dir,
            Err(error) if error.kind() == FsErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for below in names_of(&dir)? {
            if !pace() {
                return Ok(false);
            }
            let Some((kind, weight)) = own_weight(&dir, &below)? else {
                continue;
            };
            into.add(weight);
            if kind == Kind::Folder {
                waiting.push(path.join(&below));
            }
        }
    }
    Ok(true)
}

/// Opens a folder in the trash, also one that its owner made unreadable.
fn open_own(parent: &Dir, name: &Name) -> Result<Dir, FsError> {
    make_movable(parent, name)?;
    parent.open_folder(name)
}

/// Who is not root may neither empty nor move a folder that says so.
fn make_movable(parent: &Dir, name: &Name) -> Result<(), FsError> {
    let Some(found) = parent.look(name, crate::dir::LookWants::default())? else {
        return Ok(());
    };
    if found.meta.mode & 0o700 == 0o700 {
        return Ok(());
    }
    let mut meta = found.meta;
    meta.mode |= 0o700;
    let identity = Some(found.fingerprint.identity);
    // Its owner is what it was: whether that was kept says nothing.
    let _ = parent.set_metadata(name, identity, &meta, Kind::Folder)?;
    Ok(())
}

/// What a name itself takes; `None` where nothing is.
pub(super) fn own_weight(dir: &Dir, name: &Name) -> Result<Option<(Kind, Weight)>, FsError> {
    let found = dir.allocated(name)?;
    Ok(found.map(|(kind, bytes)| (kind, Weight { entries: 1, bytes })))
}

fn absent_is_fine(result: Result<(), FsError>) -> Result<(), FsError> {
    match result {
        Err(error) if error.kind() == FsErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn is_ours(name: &Name) -> bool {
    name.as_bytes() == MANIFEST || name.as_bytes() == TOTAL
}

/// The number of an entry, which rises as they come.
fn counter_of(name: &Name) -> u64 {
    let digits = name.as_bytes().iter().take_while(|b| b.is_ascii_digit());
    let dashed = name.as_bytes().contains(&b'-');
    let number = digits.fold(0_u64, |n, b| {
        n.saturating_mul(10).saturating_add(u64::from(b - b'0'))
    });
    if dashed { number } else { 0 }
}

fn read_total(folder: &Dir) -> Result<Option<Weight>, FsError> {
    let name = name_of(TOTAL)?;
    let file = match folder.open_file(&name) {
        Ok(file) => file,
        Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = [0; 64];
    let read = read_full(&file, &mut bytes)
        .map_err(|errno| FsError::at("read", folder.path(), &name, errno))?;
    let text = std::str::from_utf8(&bytes[..read]).unwrap_or_default();
    // Ends with a line: one that was torn is counted again.
    let fields = text
        .strip_suffix('\n')
        .and_then(|line| line.split_once(' '));
    let parsed = fields.and_then(|(entries, bytes)| {
        let (entries, bytes) = (entries.parse().ok()?, bytes.parse().ok()?);
        Some(Weight { entries, bytes })
    });
    Ok(parsed)
}

fn write_total(folder: &Dir, weight: Weight) -> Result<(), FsError> {
    let (name, temp) = (name_of(TOTAL)?, random_name()?);
    let file = folder.create_exclusive(&temp, 0o600)?;
    let line = format!("{} {}\n", weight.entries, weight.bytes);
    write_full(&file, line.as_bytes(), 0)
        .map_err(|errno| FsError::at("write", folder.path(), &name, errno))?;
    folder.rename_over(&temp, folder, &name)
}

/// The time that a trash folder's name begins with, in seconds since 1970.
pub(super) fn stamp_secs(name: &Name) -> Option<u64> {
    let text = std::str::from_utf8(name.as_bytes().get(..16)?).ok()?;
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    if text.as_bytes()[8] != b'T' || text.as_bytes()[15] != b'Z' {
        return None;
    }
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(9, 11)?, part(11, 13)?, part(13, 15)?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of a civil date by Hinnant's algorithm.
    let shifted = year - u64::from(month <= 2);
    let (era, of_era) = (shifted / 400, shifted % 400);
    let month_index = (month + 9) % 12;
    let of_year = (153 * month_index + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    let days = days.checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}
