//! Open folders kept for the next use, a bounded number of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdsync_core::ids::ObjectId;
use cdsync_core::path::RelPath;

use super::Dir;

/// How long a handle is used without resolving its path again. A folder that somebody moves out of
/// the root is thus written to for at most this long.
const FRESH: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Entry {
    dir: Arc<Dir>,
    opened: Instant,
    used: u64,
}

/// Least recently used folders go first; entries older than [`FRESH`] count as absent.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<ObjectId, Entry>,
    capacity: usize,
    clock: u64,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            capacity: capacity.max(1),
            clock: 0,
        }
    }

    pub(super) fn find(&mut self, id: ObjectId, path: &RelPath) -> Option<Arc<Dir>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&id)?;
        if entry.dir.path() != path || entry.opened.elapsed() > FRESH {
            self.entries.remove(&id);
            return None;
        }
        entry.used = self.clock;
        Some(Arc::clone(&entry.dir))
    }

    /// Adds a folder. Returns what had to go, to be closed outside the lock.
    pub(super) fn insert(&mut self, id: ObjectId, dir: Arc<Dir>) -> Vec<Arc<Dir>> {
        self.clock += 1;
        let mut gone = Vec::new();
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&id) {
            // A quarter at once, so that the search for the oldest costs little per insertion.
            let mut used: Vec<u64> = self.entries.values().map(|e| e.used).collect();
            let middle = used.len() / 4;
            let (_, &mut limit, _) = used.select_nth_unstable(middle);
            gone.extend(
                self.entries
                    .extract_if(|_, e| e.used <= limit)
                    .map(|(_, e)| e.dir),
            );
        }
        let entry = Entry {
            dir,
            opened: Instant::now(),
            used: self.clock,
        };
        gone.extend(self.entries.insert(id, entry).map(|e| e.dir));
        gone
    }

    pub(super) fn remove(&mut self, id: ObjectId) -> Option<Arc<Dir>> {
        self.entries.remove(&id).map(|e| e.dir)
    }

    pub(super) fn clear(&mut self) -> Vec<Arc<Dir>> {
        self.entries.drain().map(|(_, e)| e.dir).collect()
    }
}
