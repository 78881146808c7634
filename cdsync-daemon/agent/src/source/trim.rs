//! The source's log is kept within the job's bound.

use std::time::{Duration, Instant};

use cdsync_core::coalescer::Coalescer;
use cdsync_core::ids::ObjectId;
use cdsync_core::job::LogBounds;
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::tables::{TableError, Tables};
use cdsync_core::ledger::trim::{TrimLimits, drop_tombstones};
use cdsync_core::time::WallMillis;

use crate::clock::{steady, wall};

/// How often records are looked at for their age.
const EVERY: Duration = Duration::from_secs(60);
/// How many records go in one transaction, and how many objects are looked at for tombstones.
const AT_ONCE: usize = 4096;
/// A clock that was set by more than this says nothing of an age.
const JUMP_MAX_MS: u64 = 3_600_000;

/// When the log is looked at, and where its tombstones are looked for.
#[derive(Debug)]
pub(super) struct Trimmer {
    due: Instant,
    /// Where the search for tombstones of records up to this number goes on.
    burying: Option<(ObjectId, Seq)>,
    /// The clock was found to have jumped, and that was told.
    jumped: bool,
}

impl Trimmer {
    pub(super) fn new() -> Self {
        Self {
            due: Instant::now(),
            burying: None,
            jumped: false,
        }
    }

    /// Whether there may be something to drop.
    pub(super) fn is_due(&self, coalescer: &Coalescer, bounds: LogBounds) -> bool {
        self.due <= Instant::now()
            || self.burying.is_some()
            || coalescer.log_kept().bytes > bounds.bytes
    }

    /// Drops some of what is beyond the bound. Returns whether anything was written.
    pub(super) fn trim(
        &mut self,
        t: &mut dyn Tables,
        coalescer: &mut Coalescer,
        bounds: LogBounds,
    ) -> Result<bool, TableError> {
        self.due = Instant::now() + EVERY;
        let now = wall();
        self.jumped = now.0.abs_diff(steady().0) > JUMP_MAX_MS;
        let before = match self.jumped {
            true => 0,
            false => now.0.saturating_sub(bounds.age_ms),
        };
        let limits = TrimLimits {
            upto: coalescer.announced(),
            before: WallMillis(before),
            bytes: bounds.bytes,
            most: AT_ONCE,
        };
        if let Some(start) = coalescer.trim_log(t, limits)? {
            // There may be more.
            self.due = Instant::now();
            self.burying = Some((ObjectId::default(), start));
            return Ok(true);
        }
        let Some((from, upto)) = self.burying.take() else {
            return Ok(false);
        };
        let next = drop_tombstones(t, from, upto, AT_ONCE)?;
        self.burying = next.map(|next| (next, upto));
        Ok(true)
    }

    /// Whether the age of records is not looked at, because the clock was set.
    pub(super) fn has_jumped(&self) -> bool {
        self.jumped
    }
}
