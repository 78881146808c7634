//! Files that changed each time they were read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cdsync_core::ids::ObjectId;
use cdsync_core::ledger::outgoing::ContentAt;

/// How often a file may change while it is read before it is read in another way.
const FAILS_MAX: u32 = 3;
/// How many files are kept in mind; the rest is tried as if for the first time.
const FILES_MAX: usize = 1024;

/// Files that changed while they were read, of one source.
#[derive(Debug, Default)]
pub(crate) struct Restless(Mutex<BTreeMap<ObjectId, File>>);

#[derive(Debug)]
struct File {
    path: String,
    fails: u32,
    /// No other way of reading it worked either.
    never: bool,
}

impl Restless {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectId, File>> {
        // Consistent between any two statements that may panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file changed while it was read.
    pub(super) fn failed(&self, at: &ContentAt) {
        let mut files = self.lock();
        if files.len() >= FILES_MAX && !files.contains_key(&at.object) {
            return;
        }
        let file = files.entry(at.object).or_insert_with(|| File {
            path: String::new(),
            fails: 0,
            never: false,
        });
        file.path = at.folder.path.join(&at.name).to_string();
        file.never |= file.fails >= FAILS_MAX;
        file.fails = file.fails.saturating_add(1);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether a file changed too often to wait for its rest.
    pub(super) fn is_restless(&self, object: ObjectId) -> bool {
        let files = self.lock();
        files
            .get(&object)
            .is_some_and(|file| file.fails >= FAILS_MAX)
    }

    /// A file was read whole, in another way.
    pub(super) fn sent(&self, object: ObjectId) {
        if let Some(file) = self.lock().get_mut(&object) {
            file.never = false;
        }
    }

    /// A file was read whole, and looked the same before and after.
    pub(super) fn rested(&self, object: ObjectId) {
        let mut files = self.lock();
        if !files.is_empty() {
            files.remove(&object);
        }
    }

    /// Forgets files that are gone, and tells of those that could not be read in any way: their
    /// paths with how often it was tried.
    pub(crate) fn never_at_rest(&self, mut is_there: impl FnMut(ObjectId) -> bool) -> Vec<String> {
        let mut files = self.lock();
        files.retain(|id, _| is_there(*id));
        let never = files.values().filter(|file| file.never);
        never
            .map(|file| {
                format!(
                    "{}: it is never at rest: it changed each of the {} times that it was read; \
                     unsettled = \"send\" in the job sends it all the same",
                    file.path, file.fails
                )
            })
            .collect()
    }
}
