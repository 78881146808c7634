//! Strays: objects that something was told of by a name that is gone, or by none at all.
//!
//! A file with several names may be changed by one that is removed before anybody looks at it; what
//! is looked at then is another name of it. The kernel tells such objects by handle, also whenever
//! one gets or loses a name. Where they are is asked once all that was told with them was looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Coalescer, FolderKey, Slot, What};
use crate::ledger::access::{self, live};
use crate::ledger::object::Identity;
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::Name;
use crate::time::Instant;

/// Where an object is now that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// Which one it is.
    pub identity: Identity,
    /// A name that it has, where the disk can tell one.
    pub name: Option<(FolderKey, Name)>,
    /// Whether it has others.
    pub several: bool,
}

/// What became of looking for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is nowhere below the root any more, or nobody here may look for it.
    Gone,
    /// It could not be looked for now: it is asked for again.
    Failed,
    /// It is there.
    At(Whereabouts),
}

/// At how many of its names an object is looked at. If it is gone from all of these, the next ones
/// follow.
pub(super) const NAMES_MAX: usize = 16;

/// How long what could not be looked for is left alone.
const FAILED: Duration = Duration::from_millis(500);

/// Objects that wait to be found, by handle.
#[derive(Debug, Default)]
pub(super) struct Strays {
    waiting: BTreeMap<Vec<u8>, What>,
    /// What is being looked for.
    asked: BTreeMap<Vec<u8>, What>,
    /// When they are looked for, after it failed.
    due: Instant,
}

impl Strays {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_empty()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    pub(super) fn contains(&self, object: &[u8]) -> bool {
        self.waiting.contains_key(object)
    }

    pub(super) fn add(&mut self, object: Vec<u8>, what: What) {
        self.waiting.entry(object).or_default().merge(what);
    }
}

impl Coalescer {
    /// Objects to be found, by their handles, once [`Coalescer::poll_looks`] has nothing that is due;
    /// answer by [`Coalescer::handle_strays`]. Empty when there are none.
    pub fn poll_strays(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let strays = &mut self.strays;
        if strays.waiting.is_empty() || strays.due > now {
            return Vec::new();
        }
        if self.gaps.is_open() {
            // A hint of what was done to them may be lost.
            strays
                .waiting
                .values_mut()
                .for_each(|what| what.at_once = false);
        }
        // Once the new times of an object are noted, a hint that comes later explains nothing.
        for (object, what) in self.pending.objects() {
            if let Some(waiting) = strays.waiting.get_mut(object) {
                waiting.merge(what);
            }
        }
        while strays.asked.len() < self.config.looks_max
            && let Some((object, what)) = strays.waiting.pop_first()
        {
            strays.asked.insert(object, what);
        }
        strays.asked.keys().cloned().collect()
    }

    /// Takes where objects are that were asked for: their names are looked at.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_strays(
        &mut self,
        now: Instant,
        t: &mut dyn Tables,
        found: Vec<(Vec<u8>, Found)>,
    ) -> Result<(), TableError> {
        for (object, found) in found {
            let Some(what) = self.strays.asked.remove(&object) else {
                continue;
            };
            let found = match found {
                Found::Gone => continue,
                Found::Failed => {
                    self.strays.add(object, what);
                    self.strays.due = now.after(FAILED);
                    continue;
                }
                Found::At(found) => found,
            };
            // The name that the disk tells may be outside, or not carried.
            if found.several || found.name.is_none() {
                self.look_for(now, t, found.identity, what)?;
            }
            if let Some((folder, name)) = found.name {
                match self.resolve(t, &folder)? {
                    Some(folder) => self.look_because(now, t, (folder, name), what)?,
                    None if what.written || what.closed => self.listings.not_heard(folder),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Something happened to an object, whichever name the ledger has of it.
    fn look_for(
        &mut self,
        now: Instant,
        t: &mut dyn Tables,
        identity: Identity,
        what: What,
    ) -> Result<(), TableError> {
        self.make_index(t)?;
        let Some(id) = access::object_by_identity(t, identity)? else {
            return Ok(());
        };
        // Together: some of them may be gone together.
        let names = live(t, id)?.map(|row| row.names).unwrap_or_default();
        for slot in names.into_iter().take(NAMES_MAX) {
            self.look_because(now, t, slot, what)?;
        }
        Ok(())
    }

    fn look_because(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        slot: Slot,
        what: What,
    ) -> Result<(), TableError> {
        self.hint(now, t, slot.clone(), what, None, None)?;
        self.pending.ask(&slot, now);
        Ok(())
    }
}
