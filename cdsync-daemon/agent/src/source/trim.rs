//! The source's log is dropped up to what all targets claim, and kept within the job's bound.

use std::time::{Duration, Instant};

use cdsync_core::coalescer::Coalescer;
use cdsync_core::ids::ObjectId;
use cdsync_core::job::LogBounds;
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::tables::{TableError, Tables};
use cdsync_core::ledger::trim::{TrimLimits, drop_tombstones};
use cdsync_core::time::WallMillis;
use cdsync_core::wire::ClaimedByAll;

use crate::clock::{steady, wall};

/// How often records are looked at for their age.
const EVERY: Duration = Duration::from_secs(60);
/// How many records go in one transaction: a change waits for no more than this.
const RECORDS_AT_ONCE: usize = 1024;
/// The same while the log takes more than it may: more than a turn writes.
const RECORDS_BEYOND: usize = 8192;
/// How many objects are looked at for tombstones in one transaction.
const OBJECTS_AT_ONCE: usize = 4096;
/// How many tombstones there are before they are looked for, at least. Looking for them passes every
/// object, so that it waits for a fourth as many as there are files.
const TOMBSTONES_MIN: u64 = 10_000;
/// A clock that was set by more than this says nothing of an age.
const JUMP_MAX_MS: u64 = 3_600_000;

/// When the log is looked at, and where its tombstones are looked for.
#[derive(Debug)]
pub(super) struct Trimmer {
    due: Instant,
    /// What all targets claim.
    claimed: Option<ClaimedByAll>,
    graves: Graves,
    /// Up to where the tombstones reach that earlier runs left, and nobody has counted.
    former: Option<Seq>,
    /// The clock was found to have jumped, and that was told.
    jumped: bool,
}

/// Tombstones of records that were dropped: nobody asks for them any more.
#[derive(Debug)]
enum Graves {
    /// So many had been made when they were looked for last.
    Few(u64),
    /// There are enough, once the log is dropped up to this number, by which so many had been made.
    Many(Seq, u64),
    /// The search goes on from an object, for those of records up to this number.
    Search(ObjectId, Seq, u64),
}

impl Trimmer {
    pub(super) fn new(coalescer: &Coalescer) -> Self {
        Self {
            due: Instant::now(),
            claimed: None,
            graves: Graves::Search(ObjectId::default(), coalescer.log_kept().start, 0),
            former: Some(coalescer.head()),
            jumped: false,
        }
    }

    /// All targets claim this.
    pub(super) fn claimed(&mut self, claimed: ClaimedByAll) {
        self.claimed = Some(claimed);
        self.due = Instant::now();
    }

    /// Whether there may be something to drop.
    pub(super) fn is_due(&self, coalescer: &Coalescer, bounds: LogBounds) -> bool {
        self.due <= Instant::now()
            || matches!(self.graves, Graves::Search(..))
            || coalescer.log_kept().bytes > bounds.bytes
    }

    /// Drops some of what is claimed by all or beyond the bound. Returns whether anything was
    /// written.
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
        let upto = coalescer.announced();
        // What speaks of more than there is speaks of another history of this ledger.
        let claimed = self
            .claimed
            .filter(|claimed| claimed.origin == coalescer.origin() && claimed.upto <= upto);
        let most = match coalescer.log_kept().bytes > bounds.bytes {
            true => RECORDS_BEYOND,
            false => RECORDS_AT_ONCE,
        };
        let limits = TrimLimits {
            upto,
            claimed: claimed.map_or(Seq(0), |claimed| claimed.upto),
            before: WallMillis(before),
            bytes: bounds.bytes,
            most,
        };
        if coalescer.trim_log(t, limits)?.is_some() {
            // There may be more.
            self.due = Instant::now();
            return Ok(true);
        }
        self.bury(t, coalescer)
    }

    /// Takes some tombstones away, if it is time.
    fn bury(&mut self, t: &mut dyn Tables, coalescer: &Coalescer) -> Result<bool, TableError> {
        let start = coalescer.log_kept().start;
        match self.graves {
            Graves::Few(before) => {
                let new = coalescer.tombstones().saturating_sub(before);
                if new >= TOMBSTONES_MIN.max(coalescer.files() / 4) {
                    self.graves = Graves::Many(coalescer.head(), coalescer.tombstones());
                }
                Ok(false)
            }
            Graves::Many(upto, made) if start >= upto => {
                self.graves = Graves::Search(ObjectId::default(), start, made);
                Ok(false)
            }
            Graves::Many(..) => Ok(false),
            Graves::Search(from, upto, made) => {
                let (next, dropped) = drop_tombstones(t, from, upto, OBJECTS_AT_ONCE)?;
                self.graves = match (next, self.former) {
                    (Some(next), _) => Graves::Search(next, upto, made),
                    (None, Some(former)) if former > upto => {
                        self.former = None;
                        Graves::Many(former, 0)
                    }
                    (None, _) => Graves::Few(made),
                };
                Ok(dropped)
            }
        }
    }

    /// Whether the age of records is not looked at, because the clock was set.
    pub(super) fn has_jumped(&self) -> bool {
        self.jumped
    }
}
