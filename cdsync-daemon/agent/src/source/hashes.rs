//! Hashes of content that was read for sending, on their way into the ledger.
//!
//! They are noted when no more have come for a moment, and when the engine ends: each costs a row,
//! and nobody waits for them. Until then a crash forgets them, and what is in doubt afterwards is
//! sent once more.

use std::time::{Duration, Instant};

use cdsync_core::ids::ObjectId;
use cdsync_core::ledger::object::{Hash, Seq};

/// The hash of an object's content of a version.
pub(crate) type Hashed = (ObjectId, Seq, Hash);

/// How many wait at most: 4 MiB.
const WAITING_MAX: usize = 65_536;
/// How long no more must have come.
const QUIET: Duration = Duration::from_secs(1);
/// How many one transaction notes: some 20 ms.
const NOTED_MAX: usize = 4096;

/// Hashes not noted yet.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    waiting: Vec<Hashed>,
    last: Option<Instant>,
}

impl Hashes {
    pub(super) fn add(&mut self, hashed: Vec<Hashed>) {
        self.waiting.extend(hashed);
        self.last = Some(Instant::now());
    }

    /// When [`Self::take`] has something, `None` while there is nothing.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let last = self.last.filter(|_| !self.waiting.is_empty())?;
        if self.waiting.len() >= WAITING_MAX {
            return Some(Duration::ZERO);
        }
        Some(QUIET.saturating_sub(last.elapsed()))
    }

    /// All that wait, for an engine that ends.
    pub(super) fn take_all(&mut self) -> Vec<Hashed> {
        std::mem::take(&mut self.waiting)
    }

    /// What is to be noted now.
    pub(super) fn take(&mut self) -> Vec<Hashed> {
        if self.due_in() != Some(Duration::ZERO) {
            return Vec::new();
        }
        let rest = self.waiting.split_off(self.waiting.len().min(NOTED_MAX));
        std::mem::replace(&mut self.waiting, rest)
    }
}
