//! The guard against mass deletes.
//!
//! A few deletes go at once. What exceeds that waits outside of the log until the deletes pause,
//! and is judged together: a burst that would empty the root, or that exceeds the job's bounds,
//! halts the job with the rest still held. Moves out of the root are deletes, and files that lost
//! all of their bytes are counted with them. Names at which something happens meanwhile leave the
//! burst: what was deleted and made anew is a change like any other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::AddAssign;
use std::time::Duration;

use super::compare::{Found, Lost, Moves, Round, identity, is_emptied};
use super::listing::Depth;
use super::pairing::{climb, left, linked};
use super::pending::{Confirm, Guarded, Waiting};
use super::{Coalescer, CoalescerConfig, Slot, What};
use crate::bounds;
use crate::ids::{ObjectId, OriginId};
use crate::job::Guard as Bounds;
use crate::ledger::access::{self, live};
use crate::ledger::object::{Kind, Seq};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::RelPath;
use crate::time::{Instant, WallMillis};

/// Deletes of less than this part of the files go at once, within a second.
const FREE_PART: u64 = 100;
const FREE_WITHIN: Duration = Duration::from_secs(1);
/// A burst is over when so long nothing of it happened.
const QUIET: Duration = Duration::from_millis(250);
/// A burst is judged after so long, unless more of it is being found.
const HELD_FOR: Duration = Duration::from_secs(5);
/// A burst is judged after so long in any case.
const HELD_FOR_MOST: Duration = Duration::from_secs(30);
/// A burst is judged when it has so many names, about 250 bytes each.
const HELD_MAX: usize = 262_144;
/// A root with fewer files may be emptied at once.
const EMPTIED_LEAST: u64 = 10;
/// How finely it is remembered when files went.
const TICK: Duration = Duration::from_millis(100);
/// How many held names are told.
const NAMES_MAX: usize = 20;
/// How many are taken from a peer.
const NAMES_TAKEN_MAX: usize = 1024;

/// What makes a burst of deletes too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum TooMuch {
    /// It would leave no file, or none with bytes in it.
    Emptied,
    /// It exceeds the job's bounds.
    Beyond,
}

/// A burst of deletes that nobody has allowed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MassDelete {
    /// What makes it too large.
    pub why: TooMuch,
    /// How many files there were before it.
    pub files: u64,
    /// How many of them are in the log as gone.
    pub gone: u64,
    /// The ledger.
    pub origin: OriginId,
    /// They are told by records behind this one,
    pub after: Seq,
    /// up to this one.
    pub upto: Seq,
    /// How many files are held: neither in the log nor on the disk.
    pub held: u64,
    /// The first names that are held, at most 20; a folder stands for all that is below it.
    #[serde(deserialize_with = "bounds::list::<_, _, NAMES_TAKEN_MAX>")]
    pub names: Vec<RelPath>,
}

/// How many files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Weight {
    removed: u64,
    /// They stay, without their bytes.
    emptied: u64,
}

impl Weight {
    const ONE_REMOVED: Self = Self {
        removed: 1,
        emptied: 0,
    };
    const ONE_EMPTIED: Self = Self {
        removed: 0,
        emptied: 1,
    };

    const fn files(self) -> u64 {
        self.removed + self.emptied
    }
}

impl AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.removed += other.removed;
        self.emptied += other.emptied;
    }
}

#[derive(Debug)]
struct Gone {
    /// In ticks, the end of the one in which they went.
    at: u128,
    after: Seq,
    weight: Weight,
}

#[derive(Debug)]
struct Burst {
    began: Instant,
    last: Instant,
}

/// What is known of deletes.
#[derive(Debug)]
pub(super) struct Guard {
    bounds: Bounds,
    /// Fewer deletes go at once, within a second.
    free: u64,
    /// What went within the bounds' time.
    gone: VecDeque<Gone>,
    /// Files that lost one of several names lately: when, and the record before that. The last name
    /// may follow, and is taken back with the others.
    parted: BTreeMap<ObjectId, (u128, Seq)>,
    burst: Option<Burst>,
    /// So many files may go whatever the bounds say.
    accepted: u64,
    halt: Option<MassDelete>,
}

/// Of how many files it is known that they lost a name.
const PARTED_MAX: usize = 4096;

impl Guard {
    pub(super) const fn new(config: &CoalescerConfig) -> Self {
        Self {
            bounds: config.guard,
            free: config.free_deletes,
            gone: VecDeque::new(),
            parted: BTreeMap::new(),
            burst: None,
            accepted: 0,
            halt: None,
        }
    }

    /// What was accepted was said of what this scan was to find.
    pub(super) const fn end_scan(&mut self) {
        self.accepted = 0;
    }

    /// Something happens at a name that is held: others may follow.
    pub(super) const fn stir(&mut self, now: Instant) {
        if let Some(burst) = &mut self.burst {
            burst.last = now;
        }
    }

    const fn is_off(&self) -> bool {
        self.bounds.percent >= 100
    }

    /// What went since some time, and the record before that.
    fn gone_since(&self, since: Instant) -> (Weight, Option<Seq>) {
        let since = since.0.as_millis() / TICK.as_millis();
        let mut sum = Weight::default();
        let recent = self.gone.iter().rev().take_while(|gone| gone.at >= since);
        let after = recent.fold(None, |after: Option<Seq>, gone| {
            sum += gone.weight;
            Some(after.map_or(gone.after, |after| after.min(gone.after)))
        });
        (sum, after)
    }

    fn gone_within(&self, now: Instant, within: Duration) -> Weight {
        self.gone_since(before(now, within)).0
    }

    fn went(&mut self, now: Instant, after: Seq, weight: Weight) {
        if weight.files() == 0 {
            return;
        }
        let oldest = before(now, self.within()).0.as_millis() / TICK.as_millis();
        while self.gone.front().is_some_and(|gone| gone.at < oldest) {
            self.gone.pop_front();
        }
        let at = now.0.as_millis() / TICK.as_millis() + 1;
        match self.gone.back_mut() {
            Some(last) if last.at == at => {
                last.weight += weight;
                last.after = last.after.min(after);
            }
            _ => self.gone.push_back(Gone { at, after, weight }),
        }
    }

    /// A file lost a name and lives on by another one; `after` is the record before.
    fn parts(&mut self, now: Instant, id: ObjectId, after: Seq) {
        if self.parted.len() >= PARTED_MAX {
            self.parted.clear();
        }
        let at = now.0.as_millis() / TICK.as_millis();
        self.parted.entry(id).or_insert((at, after));
    }

    /// The record before a file that goes lost its first name, if it had several lately.
    fn parted_after(&mut self, now: Instant, id: ObjectId) -> Option<Seq> {
        let oldest = before(now, self.within()).0.as_millis() / TICK.as_millis();
        let (at, after) = self.parted.remove(&id)?;
        (at >= oldest).then_some(after)
    }

    fn within(&self) -> Duration {
        Duration::from_millis(self.bounds.within_ms.into())
    }

    /// Whether so much more may go without being held. What the disk fails to show `slowly` comes
    /// apart in looks that lie seconds apart, whenever it went.
    fn may_go(&self, now: Instant, files: u64, more: Weight, slowly: bool) -> bool {
        if self.burst.is_some() {
            return false;
        }
        let within = if slowly { self.within() } else { FREE_WITHIN };
        let recent = self.gone_within(now, within);
        let free = self.free.max((files + recent.removed) / FREE_PART);
        more.files() == 0
            || recent.files() + more.files() < free && self.verdict(now, files, more).is_none()
    }

    fn beyond(&self, now: Instant, files: u64, more: Weight) -> Option<TooMuch> {
        let gone = self.gone_within(now, self.within());
        let (going, all) = (gone.files() + more.files(), files + gone.removed);
        let beyond = going >= self.bounds.least
            && u128::from(going) * 100 > u128::from(all) * u128::from(self.bounds.percent);
        beyond.then_some(TooMuch::Beyond)
    }

    /// What speaks against letting so much go.
    fn verdict(&self, now: Instant, files: u64, held: Weight) -> Option<TooMuch> {
        let gone = self.gone_within(now, self.within());
        let none_left = held.files() + gone.emptied >= files;
        if none_left && held.files() > 0 && files + gone.removed >= EMPTIED_LEAST {
            return Some(TooMuch::Emptied);
        }
        self.beyond(now, files, held)
    }

    fn hold(&mut self, now: Instant) {
        let burst = self.burst.get_or_insert(Burst {
            began: now,
            last: now,
        });
        burst.last = now;
    }

    /// When the burst is judged as things stand. With a `backlog` more of it may be found.
    fn due(&self, backlog: bool, names: usize) -> Option<Instant> {
        let burst = self.burst.as_ref().filter(|_| self.halt.is_none())?;
        let quiet = burst.last.after(QUIET);
        let long = burst.began.after(HELD_FOR);
        let due = match backlog {
            _ if names >= HELD_MAX => burst.began,
            true => quiet.max(long).min(burst.began.after(HELD_FOR_MOST)),
            false => quiet.min(long),
        };
        Some(due)
    }
}

/// How many names of each object go in a round.
fn names_gone(round: &Round, moves: &Moves) -> BTreeMap<ObjectId, usize> {
    let mut names = BTreeMap::new();
    for (_, lost) in left(&round.lost, moves) {
        *names.entry(lost.id).or_default() += 1;
    }
    names
}

fn before(now: Instant, ago: Duration) -> Instant {
    Instant(now.0.saturating_sub(ago))
}

impl Coalescer {
    /// A burst of deletes for which somebody has to decide. Nothing that is held goes any more: the
    /// driver ends the machine, and makes another one when it is known what is to be done.
    #[must_use]
    pub const fn poll_halt(&self) -> Option<&MassDelete> {
        self.guard.halt.as_ref()
    }

    /// Somebody has allowed what was held: so many files may be gone when the scan finds them to
    /// be, and no more.
    pub const fn accept_deletes(&mut self, files: u64) {
        self.guard.accepted = files;
    }

    /// What went before the last halt counts on: another look at the disk takes nothing of it back.
    pub fn recall_deletes(&mut self, now: Instant, last: &MassDelete) {
        let removed = last.gone;
        let weight = Weight {
            removed,
            emptied: 0,
        };
        self.guard.went(now, last.after, weight);
    }

    /// Whether deletes are held.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.pending.held.is_empty()
    }

    /// How many files the ledger has told of.
    #[must_use]
    pub const fn files(&self) -> u64 {
        self.ledger.files()
    }

    pub(super) fn guard_due(&self) -> Option<Instant> {
        self.guard.due(self.has_backlog(), self.pending.held.len())
    }

    /// Whether what was told and seen may still come to more deletes.
    fn has_backlog(&self) -> bool {
        !self.listings.is_idle() || self.pending.is_confirming()
    }

    /// Takes what must be held out of a round, and records the files that lost their bytes and may.
    pub(super) fn guard_round(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        round: &mut Round,
        moves: &mut Moves,
    ) -> Result<(), TableError> {
        let weights = self.weigh_round(t, round, moves)?;
        let mut sum = Weight::default();
        weights.values().for_each(|weight| sum += *weight);
        let slowly = self.unseen.count() > 0;
        if self.guard.may_go(now, self.ledger.files(), sum, slowly) {
            let after = self.note_parted(now, round, moves);
            self.guard.went(now, after, sum);
        } else if !weights.is_empty() {
            self.guard.hold(now);
            for slot in linked(weights.keys().cloned().collect(), moves) {
                let weight = weights.get(&slot).copied().unwrap_or_default();
                self.hold(now, round, slot, weight);
            }
            moves.retain(|to, from| round.found.contains_key(to) && round.lost.contains_key(from));
            self.note_parted(now, round, moves);
        }
        for emptied in std::mem::take(&mut round.emptied).into_values() {
            let what = emptied.waiting.what;
            self.compare_same(wall, t, emptied.id, emptied.row, &emptied.observed, what)?;
        }
        Ok(())
    }

    /// Notes which files lose one of several names in a round. Returns the record before the first
    /// name of those went that go for good.
    fn note_parted(&mut self, now: Instant, round: &Round, moves: &Moves) -> Seq {
        let head = self.ledger.head();
        let mut after = head;
        let names = names_gone(round, moves);
        for (_, lost) in left(&round.lost, moves) {
            let all = names
                .get(&lost.id)
                .is_some_and(|gone| *gone >= lost.row.names.len());
            match all {
                true => after = after.min(self.guard.parted_after(now, lost.id).unwrap_or(after)),
                false => self.guard.parts(now, lost.id, head),
            }
        }
        after
    }

    /// What would go in a round and is not free to, by name.
    fn weigh_round(
        &self,
        t: &dyn TablesRead,
        round: &Round,
        moves: &Moves,
    ) -> Result<BTreeMap<Slot, Weight>, TableError> {
        let mut weights = BTreeMap::new();
        if self.guard.is_off() {
            return Ok(weights);
        }
        let names = names_gone(round, moves);
        let is_folder = |(_, lost): (_, &Lost)| lost.row.state.kind == Kind::Folder;
        let folders = left(&round.lost, moves).any(is_folder);
        for (slot, lost) in left(&round.lost, moves) {
            let gone = names.get(&lost.id).copied().unwrap_or_default();
            // With a folder other names may go: it counts at its first name then.
            if !folders && gone < lost.row.names.len() {
                continue;
            }
            // What takes the place of a file by a rename is no delete.
            let found = round.found.get(slot);
            let renamed = moves.contains_key(slot);
            if lost.waiting.guarded != Guarded::Free
                && let Some(weight) = weigh(t, (slot, lost), found, renamed)?
            {
                weights.insert(slot.clone(), weight);
            }
        }
        let mut emptied_ones = BTreeSet::new();
        for (slot, emptied) in &round.emptied {
            if emptied.waiting.guarded != Guarded::Free && emptied.row.is_announced() {
                // Held with its other names, and counted once.
                let weight = match emptied_ones.insert(emptied.id) {
                    true => Weight::ONE_EMPTIED,
                    false => Weight::default(),
                };
                weights.insert(slot.clone(), weight);
            }
        }
        Ok(weights)
    }

    /// Takes a name out of the round, to be looked at again when the burst has been judged.
    fn hold(&mut self, now: Instant, round: &mut Round, slot: Slot, weight: Weight) {
        // Its folder is looked at again with it: the times belong into that record.
        self.seen_folders.remove(&slot.0);
        let found = round.found.remove(&slot);
        let mut waiting = if let Some(lost) = round.lost.remove(&slot) {
            if let Some(identity) = identity(&lost.row) {
                self.vanished.insert(identity, lost.id);
            }
            lost.waiting
        } else if let Some(emptied) = round.emptied.remove(&slot) {
            emptied.waiting
        } else {
            Waiting {
                misses: found.map_or(0, |found| found.misses),
                ..Waiting::new(What::LOOK, now)
            }
        };
        waiting.confirm = Confirm::No;
        waiting.doubts = 0;
        waiting.moved = false;
        waiting.guarded = Guarded::Held(weight);
        self.pending.put(slot, waiting);
    }

    /// Judges the burst when its time has come: it goes, or the job halts.
    pub(super) fn judge_burst(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
    ) -> Result<(), TableError> {
        let backlog = self.has_backlog() || self.pending.next_due().is_some_and(|due| due <= now);
        let due = self.guard.due(backlog, self.pending.held.len());
        if due.is_none_or(|due| due > now) {
            return Ok(());
        }
        self.drop_covered(t)?;
        let mut held = Weight::default();
        for slot in &self.pending.held {
            if let Some(Guarded::Held(weight)) = self.pending.get(slot).map(|w| w.guarded) {
                held += weight;
            }
        }
        let mut verdict = self.guard.verdict(now, self.ledger.files(), held);
        if verdict.is_none() && self.unseen.count() > 0 {
            // What the disk fails to show may be gone as well, and would go a little at a time.
            let mut all = held;
            all.removed += self.unseen_files(t)?;
            verdict = self.guard.verdict(now, self.ledger.files(), all);
        }
        match verdict.filter(|_| held.files() > self.guard.accepted) {
            None => self.release(now, held),
            Some(why) => self.halt(t, now, why, held)?,
        }
        Ok(())
    }

    /// What is held may go, if it is still gone when it is looked at once more.
    fn release(&mut self, now: Instant, held: Weight) {
        self.guard.burst = None;
        self.guard.accepted = self.guard.accepted.saturating_sub(held.files());
        self.guard.went(now, self.ledger.head(), held);
        for slot in self.pending.held.clone() {
            if let Some(mut waiting) = self.pending.take(&slot) {
                waiting.guarded = Guarded::Free;
                waiting.due = now;
                self.pending.put(slot, waiting);
            }
        }
    }

    fn halt(
        &mut self,
        t: &dyn TablesRead,
        now: Instant,
        why: TooMuch,
        held: Weight,
    ) -> Result<(), TableError> {
        let (gone, after) = self.guard.gone_since(before(now, self.guard.within()));
        let mut names = Vec::new();
        for slot in self.pending.held.iter().take(NAMES_MAX) {
            if let Some(folder) = self.folders.at(t, slot.0)? {
                names.push(folder.path.join(&slot.1));
            }
        }
        self.guard.halt = Some(MassDelete {
            why,
            files: self.ledger.files() + gone.removed,
            gone: gone.files(),
            origin: self.origin(),
            after: after.unwrap_or(self.ledger.head()),
            upto: self.ledger.head(),
            held: held.files(),
            names,
        });
        Ok(())
    }

    /// What is held below a folder that is held itself goes with it.
    fn drop_covered(&mut self, t: &dyn TablesRead) -> Result<(), TableError> {
        let mut folders = BTreeSet::new();
        for slot in &self.pending.held {
            let id = access::name(t, slot.0, &slot.1)?.and_then(|row| row.object);
            if let Some(id) = id
                && live(t, id)?.is_some_and(|row| row.state.kind == Kind::Folder)
            {
                folders.insert(id);
            }
        }
        if folders.is_empty() {
            return Ok(());
        }
        let mut covered = Vec::new();
        // Names of one folder stand together.
        let mut last: Option<(ObjectId, Option<ObjectId>)> = None;
        for slot in &self.pending.held {
            let by = match last {
                Some((folder, by)) if folder == slot.0 => by,
                _ => covering(t, slot.0, &folders)?,
            };
            last = Some((slot.0, by));
            covered.extend(by.map(|by| (slot.clone(), by)));
        }
        for (slot, by) in covered {
            let id = access::name(t, slot.0, &slot.1)?.and_then(|row| row.object);
            if let Some(row) = id.map(|id| live(t, id)).transpose()?.flatten()
                && let Some(identity) = identity(&row)
            {
                self.vanished.remove(&identity);
            }
            self.pending.take(&slot);
            self.unseen.name_seen(&slot);
            // If the folder is met again, what was held in it is found by listing it.
            self.listings.owe(by, Depth::Deep);
        }
        Ok(())
    }
}

/// What goes with a name that something left: `None` where nothing does. A file that left several
/// names counts at its first one.
fn weigh(
    t: &dyn TablesRead,
    (slot, lost): (&Slot, &Lost),
    found: Option<&Found>,
    renamed: bool,
) -> Result<Option<Weight>, TableError> {
    if !lost.row.is_announced() {
        return Ok(None);
    }
    if lost.row.state.kind == Kind::Folder {
        let removed = access::files_below(t, lost.id)?;
        let weight = Weight {
            removed,
            emptied: 0,
        };
        return Ok((found.is_none() || removed > 0).then_some(weight));
    }
    if lost.row.slot() != Some(slot) {
        return Ok(None);
    }
    Ok(match found {
        None => Some(Weight::ONE_REMOVED),
        Some(found) => {
            let file = found.observed.kind == Kind::File && !renamed;
            (file && is_emptied(&lost.row, &found.observed)).then_some(Weight::ONE_EMPTIED)
        }
    })
}

/// The first of these folders at or above one.
fn covering(
    t: &dyn TablesRead,
    from: ObjectId,
    folders: &BTreeSet<ObjectId>,
) -> Result<Option<ObjectId>, TableError> {
    let mut covering = None;
    climb(t, &BTreeMap::new(), from, |at| {
        covering = folders.contains(&at).then_some(at);
        covering.is_some()
    })?;
    Ok(covering)
}
