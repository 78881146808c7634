//! Pairing what vanished with what appeared, and doubting what vanished without a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::compare::{Lost, Moves, Round, identity};
use super::pending::{Confirm, DOUBTS_MAX, MISSES_MAX, Waiting};
use super::{Coalescer, Slot, What};
use crate::ids::ObjectId;
use crate::ledger::access::{self, live};
use crate::ledger::object::{Identity, Kind};
use crate::ledger::tables::{TableError, TablesRead};
use crate::time::Instant;

/// How long what was looked at in vain too often waits.
const MISSED: Duration = Duration::from_millis(100);

impl Coalescer {
    /// What appeared may be something that vanished in an earlier round and waits for its flush.
    pub(super) fn recall_vanished(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        round: &mut Round,
    ) -> Result<(), TableError> {
        let met: Vec<Identity> = round
            .found
            .values()
            .map(|f| f.observed.fingerprint.identity)
            .filter(|identity| self.vanished.contains_key(identity))
            .collect();
        for identity in met {
            let Some(id) = self.vanished.remove(&identity) else {
                continue;
            };
            let Some(row) = live(t, id)? else { continue };
            let in_doubt = |slot: &&Slot| {
                let waiting = self.pending.get(slot);
                waiting.is_some_and(|w| row.names.len() == 1 || w.confirm != Confirm::No)
            };
            let Some(slot) = row.names.iter().find(in_doubt).cloned() else {
                continue;
            };
            let Some(waiting) = self.pending.take(&slot) else {
                continue;
            };
            // Something else may be at the old name by now, which waited for the same flush.
            self.pending.due_now(slot.clone(), now);
            round.lost.entry(slot).or_insert(Lost { id, row, waiting });
        }
        Ok(())
    }

    /// Pairs found with lost by identity. What stays lost and is not known to be gone waits for a
    /// flush, together with whatever appeared in its place and whatever was paired with that.
    pub(super) fn pair(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        round: &mut Round,
    ) -> Result<Moves, TableError> {
        loop {
            let moves = by_identity(round, &self.owners(t, round)?);
            let mut unsure = unsure(t, round, &moves)?;
            let others = self.with_others(round, &moves, &unsure);
            unsure.extend(others);
            if !unsure.is_empty() {
                for slot in linked(unsure, &moves) {
                    self.doubt(round, slot);
                }
                continue;
            }
            let adrift = adrift(t, round, &moves)?;
            if !adrift.is_empty() {
                // What is in it has moved along the same path into what took its place. The names
                // do not tell how: the whole tree does.
                adrift
                    .iter()
                    .for_each(|slot| drop(round.found.remove(slot)));
                self.handle_gap(now);
                continue;
            }
            let early = into_itself(t, round, &moves)?;
            let in_vain = |slot: &&Slot| round.found[*slot].misses >= MISSES_MAX;
            let late: Vec<Slot> = early.iter().filter(in_vain).cloned().collect();
            if !late.is_empty() {
                // The folder is not in what it was in, and nothing tells how that came about: it is
                // taken for gone, and met anew where it is.
                late.iter().for_each(|slot| drop(round.found.remove(slot)));
                self.handle_gap(now);
                continue;
            }
            let ends = early.into_iter().flat_map(|to| [moves[&to].clone(), to]);
            let mut early: BTreeSet<Slot> = ends.collect();
            early.extend(twins(round));
            if early.is_empty() {
                return Ok(moves);
            }
            for slot in linked(early, &moves) {
                let found = round.found.remove(&slot);
                let waiting = match round.lost.remove(&slot) {
                    Some(lost) => lost.waiting,
                    None => Waiting {
                        misses: found.map_or(0, |found| found.misses),
                        ..Waiting::new(What::LOOK, now)
                    },
                };
                if !self.look_again(now, slot.clone(), waiting) {
                    // No hint brings it in order: what else has moved is found by a scan.
                    self.pending.due_later(slot, now.after(MISSED));
                    if !self.listings.is_scanning() {
                        self.handle_gap(now);
                    }
                }
            }
        }
    }

    /// Names of files of which another name is missing too, and not yet proved to be gone: they go
    /// together, as they are brought back together from a trash.
    fn with_others(&self, round: &Round, moves: &Moves, unsure: &BTreeSet<Slot>) -> Vec<Slot> {
        let is_open = |slot: &Slot| unsure.contains(slot) || self.pending.is_confirming_at(slot);
        let sure = left(&round.lost, moves).filter(|(slot, _)| !unsure.contains(*slot));
        let with_others = sure.filter(|(slot, lost)| {
            let mut others = lost.row.names.iter().filter(|name| name != slot);
            lost.waiting.doubts < DOUBTS_MAX && others.any(is_open)
        });
        with_others.map(|(slot, _)| slot.clone()).collect()
    }

    /// Takes a name out of the round, to be looked at again after a flush.
    fn doubt(&mut self, round: &mut Round, slot: Slot) {
        round.found.remove(&slot);
        // Its folder is looked at again with it: the times belong into that record.
        self.seen_folders.remove(&slot.0);
        if let Some(mut lost) = round.lost.remove(&slot) {
            if lost.waiting.confirm == Confirm::Sure {
                lost.waiting.doubts = lost.waiting.doubts.saturating_add(1);
            }
            if let Some(identity) = identity(&lost.row) {
                self.vanished.insert(identity, lost.id);
            }
            self.confirm_later(slot, lost.waiting);
        }
    }
}

fn by_identity(round: &Round, owners: &BTreeMap<Identity, ObjectId>) -> Moves {
    // A file may have left several names, and come to several.
    let mut lost: BTreeMap<Identity, Vec<&Slot>> = BTreeMap::new();
    for (slot, gone) in round.lost.iter().rev() {
        if let Some(identity) = identity(&gone.row) {
            lost.entry(identity).or_default().push(slot);
        }
    }
    let mut moves = Moves::new();
    for (slot, found) in &round.found {
        let identity = found.observed.fingerprint.identity;
        let Some(left) = lost.get_mut(&identity) else {
            continue;
        };
        // An older object of the same file is none any more.
        let fits = |from: &&Slot| {
            let gone = &round.lost[*from];
            gone.row.state.kind == found.observed.kind
                && owners.get(&identity).is_none_or(|owner| *owner == gone.id)
        };
        if let Some(at) = left.iter().rposition(fits) {
            moves.insert(slot.clone(), left.remove(at).clone());
        }
    }
    moves
}

/// Names whose objects were not found elsewhere, and may be there all the same: it was not proved
/// otherwise yet, or something was seen in them in this very round.
fn unsure(t: &dyn TablesRead, round: &Round, moves: &Moves) -> Result<BTreeSet<Slot>, TableError> {
    let mut unsure: BTreeSet<Slot> = left(&round.lost, moves)
        .filter(|(_, lost)| !lost.waiting.confirm.is_proof(is_folder(lost)))
        .map(|(slot, _)| slot.clone())
        .collect();
    seen_below_gone(t, round, moves, |_, gone| {
        if round.lost[gone].waiting.doubts < DOUBTS_MAX {
            unsure.insert(gone.clone());
        }
    })?;
    Ok(unsure)
}

/// What was seen below folders that are gone without doubt.
fn adrift(t: &dyn TablesRead, round: &Round, moves: &Moves) -> Result<Vec<Slot>, TableError> {
    let mut adrift = Vec::new();
    seen_below_gone(t, round, moves, |found, _| adrift.push(found.clone()))?;
    Ok(adrift)
}

/// Names with something new at them, below folders that are taken for gone.
fn seen_below_gone(
    t: &dyn TablesRead,
    round: &Round,
    moves: &Moves,
    mut each: impl FnMut(&Slot, &Slot),
) -> Result<(), TableError> {
    let gone: BTreeMap<ObjectId, &Slot> = left(&round.lost, moves)
        .filter(|(_, lost)| is_folder(lost) && lost.waiting.confirm.is_proof(true))
        .map(|(slot, lost)| (lost.id, slot))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let parents = new_parents(round, moves);
    for found in round.found.keys() {
        climb(t, &parents, found.0, |at| {
            let slot = gone.get(&at);
            slot.is_some_and(|slot| {
                each(found, slot);
                true
            })
        })?;
    }
    Ok(())
}

/// What was not found elsewhere.
pub(super) fn left<'a>(
    lost: &'a BTreeMap<Slot, Lost>,
    moves: &'a Moves,
) -> impl Iterator<Item = (&'a Slot, &'a Lost)> {
    let taken: BTreeSet<&Slot> = moves.values().collect();
    lost.iter().filter(move |(slot, _)| !taken.contains(*slot))
}

pub(super) fn is_folder(lost: &Lost) -> bool {
    lost.row.state.kind == Kind::Folder
}

/// Names at which one and the same folder was seen: it moved between the looks, unless that is so
/// again and again.
fn twins(round: &Round) -> BTreeSet<Slot> {
    let mut seen: BTreeMap<Identity, Vec<&Slot>> = BTreeMap::new();
    for (slot, found) in &round.found {
        if found.observed.kind == Kind::Folder && found.misses < MISSES_MAX {
            let identity = found.observed.fingerprint.identity;
            seen.entry(identity).or_default().push(slot);
        }
    }
    let twins = seen.into_values().filter(|slots| slots.len() > 1);
    twins.flatten().cloned().collect()
}

/// Where moves would put folders below themselves: a move of what they went into was not seen yet.
fn into_itself(
    t: &dyn TablesRead,
    round: &Round,
    moves: &Moves,
) -> Result<BTreeSet<Slot>, TableError> {
    let parents = new_parents(round, moves);
    let mut early = BTreeSet::new();
    for (to, from) in moves {
        let lost = &round.lost[from];
        if is_folder(lost) && climb(t, &parents, to.0, |at| at == lost.id)? {
            early.insert(to.clone());
        }
    }
    Ok(early)
}

/// Where the objects that move come to.
fn new_parents(round: &Round, moves: &Moves) -> BTreeMap<ObjectId, ObjectId> {
    let parent = |(to, from): (&Slot, &Slot)| (round.lost[from].id, to.0);
    moves.iter().map(parent).collect()
}

/// Goes up from a folder to the root, by the moves first, until `stop` says so. Returns whether it
/// did.
pub(super) fn climb(
    t: &dyn TablesRead,
    parents: &BTreeMap<ObjectId, ObjectId>,
    from: ObjectId,
    mut stop: impl FnMut(ObjectId) -> bool,
) -> Result<bool, TableError> {
    let mut at = from;
    for _ in 0..access::DEPTH_MAX {
        if stop(at) {
            return Ok(true);
        }
        let above = match parents.get(&at) {
            Some(parent) => Some(*parent),
            None => live(t, at)?.and_then(|row| row.slot().map(|slot| slot.0)),
        };
        let Some(above) = above else { break };
        at = above;
    }
    Ok(false)
}

/// The names, and all that chains of moves tie to them: none of a chain can be told by itself.
pub(super) fn linked(mut slots: BTreeSet<Slot>, moves: &Moves) -> BTreeSet<Slot> {
    let back: BTreeMap<&Slot, &Slot> = moves.iter().map(|(to, from)| (from, to)).collect();
    let mut next: Vec<Slot> = slots.iter().cloned().collect();
    while let Some(slot) = next.pop() {
        let ends = [moves.get(&slot), back.get(&slot).copied()];
        for end in ends.into_iter().flatten() {
            if slots.insert(end.clone()) {
                next.push(end.clone());
            }
        }
    }
    slots
}
