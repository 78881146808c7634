//! Comparing the whole tree again and again, where no events come.

use std::time::{Duration, Instant};

use cdsync_fs::{Backend, Watch};

/// How long after the end of one comparison the next one begins.
const PAUSE: Duration = Duration::from_secs(3);
/// The pause lasts so many times as long as the comparison did, if that is longer.
const SHARE: u32 = 4;

/// When to compare.
#[derive(Debug)]
pub(super) struct Polling {
    on: bool,
    /// When the running comparison was first seen.
    began: Option<Instant>,
    next: Instant,
}

impl Polling {
    pub(super) fn new(watch: Option<&Watch>) -> Self {
        Self {
            on: watch.is_some_and(|watch| watch.backend() == Backend::Polling),
            began: None,
            next: Instant::now(),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// When the next comparison may begin, while none runs.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let waits = self.on && self.began.is_none();
        waits.then(|| self.next.saturating_duration_since(Instant::now()))
    }

    /// Whether a comparison is to be started.
    pub(super) fn is_due(&mut self, scanning: bool) -> bool {
        let now = Instant::now();
        if !self.on {
            return false;
        }
        if scanning {
            self.began.get_or_insert(now);
            return false;
        }
        if let Some(began) = self.began.take() {
            self.next = now + PAUSE.max((now - began) * SHARE);
        }
        let due = self.next <= now;
        if due {
            self.began = Some(now);
        }
        due
    }
}
