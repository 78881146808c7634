//! The replica: brings a target's disk to what its upstream's records say.
//!
//! State, not operations, is applied: the replica compares a record with its own rows and asks the
//! disk for what is missing, so a record may come twice, or over anything half-applied. Call in
//! this order, inside one transaction where a ledger is asked for:
//!
//! 1. [`Replica::handle_accepted`] or [`Replica::handle_snapshot`], [`Replica::handle_compared`],
//!    [`Replica::handle_tick`], [`Replica::handle_batch`], [`Replica::handle_fetched`]: inputs; the next batch only once the one before was taken in
//!    whole ([`Replica::is_idle`]);
//! 2. [`Replica::plan_differences`] and [`Replica::poll_step`]: what to do on the disk now; answer by [`Replica::handle_applied`];
//!    then [`Replica::take_refused`]: whether a record turned out not to fit;
//! 3. [`Replica::poll_fetch`]: large content to pull;
//!    [`Replica::poll_compare`]: questions, where the upstream has only a snapshot to begin from;
//!    and [`Replica::poll_verify`]: what a crash of the system may have taken;
//!    [`Replica::poll_patrol`]: what others may have changed;
//! 4. [`Replica::poll_sync`]: whether the disk must be synced; answer by [`Replica::handle_synced`]
//!    inside a transaction that is made durable, then [`Replica::claim`] may be reported;
//! 5. [`Replica::poll_timeout`]: when parked objects are tried again: [`Replica::handle_timeout`].

mod clash;
mod drift;
mod durable;
mod fetch;
mod graves;
mod links;
mod losses;
mod op;
mod parked;
mod patrol;
mod plan;
mod policy;
mod reconcile;
mod result;
mod schedule;
mod structure;
mod sweep;
#[cfg(test)]
mod tests;
mod tree;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use drift::Drifted;
pub use fetch::{FetchResult, FetchWant};
pub use losses::{LOST_MAX, LostReport};
pub use op::{
    ApplyOp, ApplyResult, Body, Difference, Met, MoveOne, MoveResult, OnDrift, Place, Step,
};
pub use patrol::{PATROL_NAMES, PatrolAsk};
pub use policy::Policy;
pub use reconcile::{ReconcileProgress, compared};
pub use sweep::SweepEntry;

use crate::filter::Filter;
use crate::ids::{IncarnationId, ObjectId, OriginId};
use crate::ledger::access::{self, Folders, meta, put_meta};
use crate::ledger::object::Seq;
use crate::ledger::record::Record;
use crate::ledger::rows::{NameRow, ParkedWhat, Progress};
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::path::RelPath;
use crate::time::{Hlc, WallMillis};
use crate::wire::{Accepted, BatchHeader, Cursor, Inline, Op, Tick};
use fetch::Fetches;
use losses::Lost;
use patrol::Patrol;
use reconcile::Reconcile;
use schedule::Schedule;
use sweep::Sweep;
use waiting::Stuck;

const ORIGIN: &str = "replica-origin";
const PROGRESS: &str = "replica-progress";
const ADOPTING: &str = "replica-adopting";
const SWEEPS_ONLY: &str = "replica-sweeps-only";

/// How many objects may be parked before no more records are taken: a bound of memory (some 7 MiB),
/// far beyond what a full disk or a mistake in permissions comes to, because what ends the trouble may
/// come later in the log.
pub const PARKED_MAX: usize = 100_000;

/// Why a batch or an answer is refused: the upstream misbehaves. Not retryable on the same
/// subscription.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// Records do not continue where the ones before ended.
    #[error("the upstream sent record {got} where {wanted} was due")]
    OutOfOrder {
        /// What was due.
        wanted: Seq,
        /// What came.
        got: Seq,
    },
    /// The number of contents does not fit the records, or a content is not what its record says.
    #[error("the contents of a batch do not fit its records")]
    Contents,
    /// A record speaks of objects of another ledger, says what no disk can hold, makes a folder its
    /// own ancestor or an object another kind of thing.
    #[error("record {0} does not fit the ledger")]
    Record(Seq),
    /// An answer about a snapshot that nobody asked for, or that cannot be true.
    #[error("what the upstream says of its snapshot does not fit")]
    Comparison,
}

/// A change that was applied, for the job's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The label.
    pub op: Op,
    /// Where it is now.
    pub path: RelPath,
    /// Where it was before.
    pub from: Option<RelPath>,
    /// The record.
    pub seq: Seq,
    /// When it was recorded at the source.
    pub hlc: Hlc,
}

/// The machine; one per target root.
#[derive(Debug)]
pub struct Replica {
    policy: Policy,
    filter: Filter,
    origin: Option<OriginId>,
    progress: Progress,
    /// The last record read.
    cursor: Seq,
    /// The highest number that the upstream announced.
    head: Seq,
    head_bytes: u64,
    /// Whether the source's first scan has ended.
    complete: bool,
    adopting: bool,
    /// The whole root is to be compared, and nothing in it to be taken over.
    sweeps_only: bool,
    folders: Folders,
    queue: VecDeque<Queued>,
    /// Operations planned, with what their results mean.
    running: Vec<Running>,
    /// Operations under way: nothing joins them any more.
    issued: Option<Issued>,
    fetches: Fetches,
    parked: Schedule,
    /// Noted among the parked rows while they are planned or under way.
    intended: BTreeSet<ObjectId>,
    /// Parked objects that are to be moved, and are where they were.
    blocking: BTreeMap<ObjectId, Stuck>,
    /// Folders whose times are set again once something was moved.
    untouched: BTreeSet<ObjectId>,
    /// What is tried again once one of these is moved, or a folder is made.
    waiting: BTreeMap<ObjectId, BTreeSet<ObjectId>>,
    /// What is left of a record whose moves come first.
    rest: Option<structure::Rest>,
    /// Records up to this number may have been applied before a crash without a trace in the
    /// ledger.
    suspect: Option<Seq>,
    /// Retries were planned: one after another.
    retrying: bool,
    /// Folders whose times must be set again: something was changed in them.
    touched: BTreeSet<ObjectId>,
    /// Ends of batches, for claims.
    marks: VecDeque<Mark>,
    batch_end: Option<Mark>,
    hold: Seq,
    syncing: Option<Mark>,
    dirty: bool,
    sweep: Sweep,
    lost: Lost,
    drifts: drift::Drifts,
    graves: graves::Graves,
    durable: durable::Durable,
    patrol: Patrol,
    logged: Vec<Logged>,
    /// A record that does not fit what is known.
    refused: Option<ReplicaError>,
    reconcile: Reconcile,
    /// A cursor of a history that is not this upstream's.
    former: Option<Cursor>,
}

/// A record of the batch being applied, with its contents.
#[derive(Debug)]
struct Queued {
    record: Record,
    /// Of which object, where the driver has it, and how it comes.
    contents: Vec<(ObjectId, usize, Inline)>,
    /// It was made of an upstream's snapshot: no other record says the same.
    of_snapshot: bool,
}

/// The meaning of an operation's result.
#[derive(Debug)]
struct Running {
    op: ApplyOp,
    then: Then,
}

/// Operations handed out, and what the result of each means.
#[derive(Debug)]
struct Issued {
    ops: Arc<Vec<ApplyOp>>,
    thens: Vec<Then>,
    /// A sync failed meanwhile, with what some of these had written by then.
    doubtful: bool,
}

#[derive(Debug)]
enum Then {
    /// The object is held in this state.
    Held(Box<crate::ledger::object::ObjectState>),
    /// The object is held in this state, at the operation's name; neither has rows yet.
    New(Box<crate::ledger::object::ObjectState>),
    /// Only the metadata of what is held changed.
    Meta(Box<crate::ledger::object::ObjectState>),
    /// A folder's times were set again.
    Touched,
    /// Objects were moved.
    Moved,
    /// A name is a link to the object's first one.
    Linked(Seq, access::Slot),
    /// A name was emptied.
    Removed(Seq, access::Slot),
    /// A file that may have been replaced before a crash is the one that is known, or not.
    Probed(access::Slot),
    /// Content was looked for before it is fetched.
    Adopted(Box<crate::ledger::object::ObjectState>),
    /// A copy was compared with what was written.
    Verified,
    /// Something foreign was removed.
    Swept,
    /// A copy was looked at where it should be; `None` for the root.
    Checked(Option<access::Slot>),
    /// It was asked whether something foreign is still at a name.
    StillThere(access::Slot),
    /// Something foreign that was kept was removed.
    GaveWay(access::Slot),
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    seq: Seq,
    incarnation: IncarnationId,
    bytes: u64,
    hold: Seq,
}

/// Something that waits to be made may be at its name all the same: what was done last failed after
/// that, or a crash took back that it worked.
fn suspect_published(t: &mut dyn Tables, id: ObjectId) -> Result<(), TableError> {
    let Some(row) = access::live(t, id)? else {
        return Ok(());
    };
    if row.local.is_some() {
        return Ok(());
    }
    for (parent, name) in &row.names {
        let remnant = access::name(t, *parent, name)?.and_then(|row| row.remnant);
        let noted = NameRow {
            object: Some(id),
            remnant: Some(remnant.unwrap_or_default()),
        };
        access::put_name(t, *parent, name, noted)?;
    }
    Ok(())
}

impl Replica {
    /// Opens a target's ledger. `adopt` for a root that may hold foreign content, which is taken
    /// over: what is equal stays, the rest goes to the trash.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn open(t: &mut dyn Tables, filter: Filter, adopt: bool) -> Result<Self, TableError> {
        let origin = meta(t, ORIGIN)?;
        let known = meta(t, ADOPTING)?;
        let adopting = match known {
            Some(adopting) => adopting,
            None => {
                put_meta(t, ADOPTING, &adopt)?;
                adopt
            }
        };
        let progress: Progress = meta(t, PROGRESS)?.unwrap_or_default();
        let owed: sweep::Owed = meta(t, waiting::OWED)?.unwrap_or_default();
        let (mut parked, mut kept) = (Schedule::default(), BTreeSet::new());
        let (mut stuck, mut missing) = (Vec::new(), Vec::new());
        access::each_parked(t, &mut |id, row| {
            // The clock may be another one than before: all are due.
            parked.insert(id, WallMillis(0));
            stuck.extend(Stuck::of(&row).map(|stuck| (id, stuck)));
            if row.kept.is_some() {
                // What is kept for others is at the name.
                kept.insert(id);
            } else if matches!(&row.what, ParkedWhat::Content(_)) {
                missing.push(id);
            }
        })?;
        for id in missing {
            suspect_published(t, id)?;
        }
        let drifts = drift::Drifts::open(t, kept)?;
        let mut this = Self {
            policy: Policy::default(),
            filter,
            origin,
            progress,
            cursor: progress.claim,
            head: progress.claim,
            head_bytes: progress.bytes,
            complete: false,
            adopting,
            sweeps_only: meta(t, SWEEPS_ONLY)?.unwrap_or(false),
            folders: Folders::default(),
            queue: VecDeque::new(),
            running: Vec::new(),
            issued: None,
            fetches: Fetches::default(),
            blocking: BTreeMap::new(),
            untouched: BTreeSet::new(),
            waiting: BTreeMap::new(),
            parked,
            intended: BTreeSet::new(),
            rest: None,
            suspect: known.is_none().then_some(Seq(0)),
            retrying: false,
            touched: BTreeSet::new(),
            marks: VecDeque::new(),
            batch_end: None,
            hold: progress.hold,
            syncing: None,
            // An earlier start may have ended before its sync did.
            dirty: true,
            sweep: Sweep::new(owed),
            lost: Lost::open(t)?,
            drifts,
            graves: graves::Graves::default(),
            durable: durable::Durable::default(),
            patrol: Patrol::open(t)?,
            logged: Vec::new(),
            refused: None,
            reconcile: Reconcile::Off,
            former: Self::former(t)?,
        };
        for (id, stuck) in stuck {
            this.is_stuck(id, stuck);
        }
        Ok(this)
    }

    /// Whose records it holds; `None` before the first subscription.
    #[must_use]
    pub fn origin(&self) -> Option<OriginId> {
        self.origin
    }

    /// Where to resume.
    #[must_use]
    pub fn resume(&self) -> Option<Cursor> {
        let claimed = self.origin.filter(|_| self.progress.claim > Seq(0));
        let own = claimed.map(|origin| Cursor {
            origin,
            incarnation: self.progress.incarnation,
            seq: self.progress.claim,
        });
        own.or(self.former)
    }

    /// It holds everything up to here, but what is parked; durable.
    #[must_use]
    pub fn claim(&self) -> Seq {
        self.progress.claim
    }

    /// The highest number that its upstream announced.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.head
    }

    /// Content bytes that are announced and not claimed.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.head_bytes.saturating_sub(self.progress.bytes)
    }

    /// How many objects are parked.
    #[must_use]
    pub fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// Whether everything announced is held, and the source has said everything once.
    #[must_use]
    pub fn is_in_sync(&self) -> bool {
        self.complete && self.claim() >= self.head && !self.adopting && !self.sweep.is_owed()
    }

    /// Whether the first copy is still running.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        !self.complete || self.adopting
    }

    /// Whether the batch before was taken in, so that the next may come.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.running.is_empty()
            && self.issued.is_none()
            && self.rest.is_none()
            && self.touched.is_empty()
            && self.batch_end.is_none()
            && !self.is_reconciling()
    }

    /// Whether no more records should be asked for until something that waits is done.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.parked.len() >= PARKED_MAX || self.fetches.is_full()
    }

    /// Changes applied since the last call.
    pub fn take_logged(&mut self) -> Vec<Logged> {
        std::mem::take(&mut self.logged)
    }

    /// The upstream accepted the subscription. `false`: what this ledger holds is of another
    /// history, and the caller must begin with an empty ledger, adopting what is on the disk.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_accepted(
        &mut self,
        t: &mut dyn Tables,
        accepted: &Accepted,
    ) -> Result<bool, TableError> {
        self.suspect.get_or_insert(accepted.head);
        if !accepted.resumed && self.progress.claim > Seq(0)
            || !self.takes_origin(t, accepted.origin)?
        {
            return Ok(false);
        }
        self.begin_subscription();
        // What an earlier upstream said is not this one's word.
        self.head = accepted.head.max(self.progress.claim);
        self.complete = accepted.complete;
        Ok(true)
    }

    /// Whether it holds this source's ledger; an empty one does from now on.
    fn takes_origin(&mut self, t: &mut dyn Tables, origin: OriginId) -> Result<bool, TableError> {
        if self.origin.is_none() {
            self.origin = Some(origin);
            put_meta(t, ORIGIN, &origin)?;
        }
        Ok(self.origin == Some(origin))
    }

    /// What was read but not claimed comes again.
    fn begin_subscription(&mut self) {
        self.queue.clear();
        self.refused = None;
        if let Some(rest) = self.rest.take() {
            // Its rows are written: what was noted is done by a retry.
            for id in rest.noted().collect::<Vec<_>>() {
                self.intended.remove(&id);
                self.parked.insert(id, WallMillis(0));
            }
        }
        self.batch_end = None;
        self.marks.clear();
        self.fetches.clear();
        self.reconcile = Reconcile::Off;
        self.cursor = self.progress.claim;
        self.hold = self.progress.hold;
    }

    /// A sign of life.
    pub fn handle_tick(&mut self, tick: &Tick) {
        self.head = self.head.max(tick.head);
        self.head_bytes = self.head_bytes.max(tick.bytes);
        // It does not begin again in a ledger: a tick that says less is a late one.
        self.complete |= tick.complete;
        self.maybe_sweep();
    }

    /// Takes a batch: records with their contents, of which the driver keeps the bytes until the
    /// batch is taken in.
    ///
    /// # Errors
    /// [`ReplicaError`]: the upstream misbehaves; drop the subscription.
    pub fn handle_batch(&mut self, batch: BatchHeader) -> Result<(), ReplicaError> {
        debug_assert!(self.is_idle(), "one batch at a time");
        let origin = self.origin.unwrap_or_default();
        let mut contents = batch.contents.into_iter().enumerate();
        let mut wanted = self.cursor.next();
        let mut queue = VecDeque::with_capacity(batch.records.len());
        for record in batch.records {
            if record.seq != wanted {
                return Err(ReplicaError::OutOfOrder {
                    wanted,
                    got: record.seq,
                });
            }
            if !plan::fits(&record, origin) {
                return Err(ReplicaError::Record(record.seq));
            }
            wanted = wanted.next();
            let count = record.contents().count();
            let own = contents.by_ref().take(count).zip(record.contents());
            let own = own.map(|((index, content), state)| (state.id, index, content));
            let contents: Vec<_> = own.collect();
            let fit = |one: &(ObjectId, usize, Inline)| plan::content_fits(record.seq, &one.2);
            if contents.len() != count || !contents.iter().all(fit) {
                return Err(ReplicaError::Contents);
            }
            queue.push_back(Queued {
                record,
                contents,
                of_snapshot: false,
            });
        }
        if contents.next().is_some() {
            return Err(ReplicaError::Contents);
        }
        let Some(last) = queue.back() else {
            return Ok(());
        };
        self.head = self.head.max(batch.head).max(last.record.seq);
        self.head_bytes = self.head_bytes.max(batch.bytes);
        self.batch_end = Some(Mark {
            seq: last.record.seq,
            incarnation: last.record.incarnation,
            bytes: batch.bytes,
            hold: Seq(0),
        });
        self.queue = queue;
        Ok(())
    }

    /// Whether the disk must be synced before more can be claimed; one sync at a time.
    pub fn poll_sync(&mut self) -> bool {
        let busy = self.syncing.is_some() || self.durable.is_syncing();
        if busy || !self.is_idle() || self.durable.is_doubted() {
            return false;
        }
        let limit = self.fetches.first_seq();
        while self.marks.len() > 1 && limit.is_none_or(|limit| self.marks[1].seq < limit) {
            self.marks.pop_front();
        }
        let ready = self.marks.front().copied().filter(|mark| {
            limit.is_none_or(|limit| mark.seq < limit)
                && mark.seq > self.progress.claim
                && mark.hold <= mark.seq
        });
        self.syncing = ready;
        if ready.is_some() {
            self.durable.end_round(None);
            self.sweep.sync_began();
        }
        ready.is_some()
    }

    /// Whether anything was changed on the disk since the last sync began.
    pub fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    fn end_batch(&mut self) {
        let Some(mut mark) = self.batch_end.take() else {
            return;
        };
        mark.hold = self.hold;
        self.cursor = mark.seq;
        self.marks.push_back(mark);
    }

    fn log(&mut self, t: &dyn TablesRead, record: &Record) -> Result<(), TableError> {
        if self.is_copying() {
            return Ok(());
        }
        for change in crate::change::changes(record) {
            let path = match change.name {
                Some(at) => self
                    .folders
                    .at(t, at.parent)?
                    .map(|f| f.path.join(&at.name)),
                None => access::path_of(t, change.object)?,
            };
            let from = match change.from {
                Some(at) => self
                    .folders
                    .at(t, at.parent)?
                    .map(|f| f.path.join(&at.name)),
                None => None,
            };
            let Some(path) = path else { continue };
            let (op, seq, hlc) = (change.op, record.seq, record.hlc);
            self.logged.push(Logged {
                op,
                path,
                from,
                seq,
                hlc,
            });
        }
        Ok(())
    }
}
