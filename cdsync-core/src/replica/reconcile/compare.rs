//! Finding what differs: first ranges, then parts of those that differ, then single objects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

use super::super::Replica;
use super::super::plan::state_fits;
use super::apply::Applying;
use super::{Goal, Reconcile, ReconcileProgress};
use crate::ids::{ObjectId, OriginId};
use crate::ledger::access::live;
use crate::ledger::digest::{DigestKey, RangeSum, elements};
use crate::ledger::object::Kind;
use crate::ledger::rows::{LiveObject, encode_row};
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::wire::{CompareAnswer, CompareAsk, Compared, OBJECTS_MAX, RangeDigest, Snapshot};

/// How many own names are looked at in one go.
const LOOK_MAX: usize = 32 * 1024;

/// A run of keys of names: behind the first, up to the second, which is empty for the end.
type Span = (Vec<u8>, Vec<u8>);

/// A comparison under way.
#[derive(Debug)]
pub(in crate::replica) struct Comparing {
    goal: Goal,
    key: DigestKey,
    files: u64,
    /// Where the next ranges begin; `None` once the end was reached.
    after: Option<Vec<u8>>,
    /// Ranges that differ.
    differing: VecDeque<Span>,
    /// The one whose names are told apart.
    looking: Option<Looking>,
    /// Objects to be asked for.
    numbers: BTreeSet<u64>,
    asked: Option<CompareAsk>,
    names: u64,
    found: u64,
}

/// A range that differs, being gone through.
#[derive(Debug)]
struct Looking {
    span: Span,
    /// What was asked about it; `None` once it is being gone through.
    asked: Option<Vec<[u8; 8]>>,
    /// A bit for each part that differs.
    differing: u64,
    /// The upstream's names there that were not met here, by their short hashes.
    theirs: BTreeMap<[u8; 8], u64>,
}

impl Comparing {
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        Self {
            goal: Goal {
                at: snapshot.at,
                incarnation: snapshot.incarnation,
                bytes: snapshot.bytes,
                why: snapshot.why,
            },
            key: DigestKey(snapshot.key),
            files: snapshot.files,
            after: Some(Vec::new()),
            differing: VecDeque::new(),
            looking: None,
            numbers: BTreeSet::from([ObjectId::ROOT_NUMBER]),
            asked: None,
            names: 0,
            found: 0,
        }
    }

    pub(super) fn progress(&self) -> ReconcileProgress {
        ReconcileProgress {
            why: self.goal.why,
            names: self.names,
            files: self.files,
            found: self.found,
            applying: false,
        }
    }
}

impl Replica {
    /// The next question about the upstream's snapshot, if one is to be asked now: one at a time.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_compare(&mut self, t: &dyn TablesRead) -> Result<Option<CompareAsk>, TableError> {
        if self.issued.is_some() || !self.running.is_empty() {
            // What is under way may still change rows that are compared.
            return Ok(None);
        }
        let Some(mut comparing) = self.take_comparing() else {
            return Ok(None);
        };
        if comparing.asked.is_some() {
            self.reconcile = Reconcile::Comparing(comparing);
            return Ok(None);
        }
        while comparing.looking.is_some() && comparing.numbers.len() < OBJECTS_MAX {
            if !self.is_as_asked(t, &mut comparing)? {
                break;
            }
            self.look_on(t, &mut comparing)?;
        }
        let sums = |span: &Span| self.sum(t, &comparing.key, span);
        let ask = if comparing.numbers.len() >= OBJECTS_MAX || comparing.looking.is_some() {
            None
        } else if let Some((after, to)) = comparing.differing.front().cloned() {
            let sum = sums(&(after.clone(), to.clone()))?;
            let buckets = parts(&sum);
            Some(CompareAsk::Range { after, to, buckets })
        } else {
            let after = comparing.after.clone();
            after.map(|after| CompareAsk::Ranges { after })
        };
        let numbers = comparing.numbers.iter().take(OBJECTS_MAX).copied();
        let ask = match ask {
            Some(ask) => ask,
            None if comparing.numbers.is_empty() => {
                self.reconcile =
                    Reconcile::Applying(Applying::new(comparing.goal, comparing.progress()));
                return Ok(Some(CompareAsk::Done));
            }
            None => CompareAsk::Objects {
                numbers: numbers.collect(),
            },
        };
        comparing.asked = Some(ask.clone());
        self.reconcile = Reconcile::Comparing(comparing);
        Ok(Some(ask))
    }

    /// Takes an answer; what does not fit its question is refused ([`Replica::take_refused`]).
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_compared(
        &mut self,
        t: &mut dyn Tables,
        answer: CompareAnswer,
    ) -> Result<(), TableError> {
        let Some(mut comparing) = self.take_comparing() else {
            return Ok(());
        };
        let fits = match (comparing.asked.take(), answer) {
            (Some(CompareAsk::Ranges { after }), CompareAnswer::Ranges(ranges)) => {
                self.take_ranges(t, &mut comparing, after, ranges)?
            }
            (
                Some(CompareAsk::Range { after, to, buckets }),
                CompareAnswer::Range {
                    differing,
                    elements,
                },
            ) => {
                comparing.differing.pop_front();
                comparing.looking = Some(Looking {
                    span: (after, to),
                    asked: Some(buckets),
                    differing,
                    theirs: elements.into_iter().collect(),
                });
                true
            }
            (Some(CompareAsk::Objects { numbers }), CompareAnswer::Objects(objects)) => {
                self.take_objects(t, &mut comparing, &numbers, objects)?
            }
            _ => false,
        };
        if fits {
            self.reconcile = Reconcile::Comparing(comparing);
        } else {
            self.refuse_comparison();
        }
        Ok(())
    }

    fn take_comparing(&mut self) -> Option<Box<Comparing>> {
        match std::mem::take(&mut self.reconcile) {
            Reconcile::Comparing(comparing) => Some(comparing),
            other => {
                self.reconcile = other;
                None
            }
        }
    }

    /// Whether what the ledger has of an object is on the disk, with nothing left to be done.
    fn is_held(&self, row: &LiveObject) -> Option<bool> {
        let id = row.state.id;
        Some(row.local.is_some() && !self.parked.contains(id) && !self.intended.contains(&id))
    }

    fn sum(
        &self,
        t: &dyn TablesRead,
        key: &DigestKey,
        (after, to): &Span,
    ) -> Result<RangeSum, TableError> {
        let mut sum = RangeSum::default();
        let counts = |row: &LiveObject| self.is_held(row);
        elements(t, key, (after, to), &counts, &mut |_, element| {
            sum.add(&element);
            ControlFlow::Continue(())
        })?;
        Ok(sum)
    }

    /// Compares ranges; `false` when they are not what was asked for.
    fn take_ranges(
        &self,
        t: &dyn TablesRead,
        comparing: &mut Comparing,
        after: Vec<u8>,
        ranges: Vec<RangeDigest>,
    ) -> Result<bool, TableError> {
        let mut from = after;
        let count = ranges.len();
        for (index, range) in ranges.into_iter().enumerate() {
            let is_end = range.to.is_empty();
            if !is_end && range.to <= from || is_end && index + 1 < count {
                return Ok(false);
            }
            let span = (from, range.to);
            let sum = self.sum(t, &comparing.key, &span)?;
            comparing.names += sum.names as u64;
            from = span.1.clone();
            if sum.whole.to_le_bytes() != range.sum {
                comparing.differing.push_back(span);
            }
        }
        comparing.after = (!from.is_empty()).then_some(from);
        Ok(count > 0)
    }

    /// Whether a range is still as it was when it was asked about: what is held or not may have changed
    /// since, and the answer says nothing of that. If not, it is asked about again.
    fn is_as_asked(
        &self,
        t: &dyn TablesRead,
        comparing: &mut Comparing,
    ) -> Result<bool, TableError> {
        let Some(looking) = &mut comparing.looking else {
            return Ok(false);
        };
        let Some(asked) = looking.asked.take() else {
            return Ok(true);
        };
        if parts(&self.sum(t, &comparing.key, &looking.span)?) == asked {
            return Ok(true);
        }
        if let Some(looking) = comparing.looking.take() {
            comparing.differing.push_front(looking.span);
        }
        Ok(false)
    }

    /// Goes on through the own names of a range that differs.
    fn look_on(&self, t: &dyn TablesRead, comparing: &mut Comparing) -> Result<(), TableError> {
        let Some(mut looking) = comparing.looking.take() else {
            return Ok(());
        };
        let Comparing { key, numbers, .. } = comparing;
        let mut looked = 0;
        let mut stopped = None;
        let counts = |row: &LiveObject| self.is_held(row);
        let bounds = (&looking.span.0[..], &looking.span.1[..]);
        elements(t, key, bounds, &counts, &mut |name, element| {
            let differs = looking.differing >> element.bucket() & 1 == 1;
            if differs && looking.theirs.remove(&element.short()).is_none() {
                numbers.insert(element.object.number);
            }
            looked += 1;
            if looked >= LOOK_MAX || numbers.len() >= OBJECTS_MAX {
                stopped = Some(name.to_vec());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        match stopped {
            Some(name) if name != looking.span.1 => {
                looking.span.0 = name;
                comparing.looking = Some(looking);
            }
            _ => numbers.extend(looking.theirs.into_values()),
        }
        Ok(())
    }

    /// Keeps what the snapshot has of objects that differ; `false` for what cannot be true.
    fn take_objects(
        &mut self,
        t: &mut dyn Tables,
        comparing: &mut Comparing,
        numbers: &[u64],
        objects: Vec<Option<Compared>>,
    ) -> Result<bool, TableError> {
        if objects.is_empty() || objects.len() > numbers.len() {
            return Ok(false);
        }
        let origin = self.origin.unwrap_or_default();
        for (number, object) in numbers.iter().zip(objects) {
            let id = self.object(*number);
            comparing.numbers.remove(number);
            match &object {
                Some(compared) if !fits(compared, id, origin, comparing.goal) => return Ok(false),
                None if id.is_root() => return Ok(false),
                None if live(t, id)?.is_none() => continue,
                _ => {}
            }
            comparing.found += 1;
            t.put(Table::Compared, &id.to_key(), &encode_row(&object))?;
        }
        Ok(true)
    }
}

fn parts(sum: &RangeSum) -> Vec<[u8; 8]> {
    sum.buckets.iter().map(|sum| sum.to_le_bytes()).collect()
}

/// Whether an object can be one of a snapshot: what a hostile upstream could send ends here, and
/// what the records made of it would be refused for.
fn fits(compared: &Compared, id: ObjectId, origin: OriginId, goal: Goal) -> bool {
    let Compared { state, names } = compared;
    let unique: BTreeSet<_> = names.iter().collect();
    let count_fits = match state.kind {
        _ if id.is_root() => names.is_empty(),
        Kind::Folder => names.len() == 1,
        _ => !names.is_empty(),
    };
    state.id == id
        && count_fits
        && unique.len() == names.len()
        && names
            .iter()
            .all(|(parent, name)| *parent != id.number && !name.is_reserved())
        && state.version.seq <= goal.at
        && state_fits(state.version.seq, state, origin)
}
