//! The coalescer: turns hints and looks at a source's disk into records.
//!
//! Hints only say that something may have changed somewhere; what is recorded comes from looks:
//! what `stat` shows of the names concerned, compared with the ledger. Call in this order, inside
//! one transaction where a ledger is asked for:
//!
//! 1. [`Coalescer::handle_hints`], [`Coalescer::start_scan`]: inputs;
//! 2. [`Coalescer::poll_looks`]: names to look at now; answer by [`Coalescer::handle_looked`]; once
//!    there are none, [`Coalescer::poll_strays`]: objects whose names are to be found; answer by
//!    [`Coalescer::handle_strays`], and look again;
//! 3. [`Coalescer::poll_listing`], then [`Coalescer::poll_patrol`]: a folder to list; answer by [`Coalescer::handle_listed`] and
//!    [`Coalescer::handle_list_end`];
//! 4. [`Coalescer::poll_flush`]: whether the kernel's queue must be read out before what vanished
//!    may be taken for gone; answer by [`Coalescer::handle_flushed`];
//! 5. [`Coalescer::poll_reread`]: a file whose bytes are in doubt, to be read again; answer by
//!    [`Coalescer::handle_reread`];
//! 6. [`Coalescer::poll_halt`]: whether what goes is too much, and somebody has to decide;
//! 7. [`Coalescer::finish`] before the transaction ends, [`Coalescer::handle_committed`] once it is
//!    durable: only then may [`Coalescer::announced`] be announced;
//! 8. [`Coalescer::poll_timeout`]: when to call 2 again without any input.

mod commit;
mod compare;
mod doubts;
mod gaps;
mod guard;
mod links;
mod listing;
mod pairing;
mod patrol;
mod pending;
mod renewed;
mod strays;
#[cfg(test)]
mod tests;
mod unseen;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::filter::Filter;
use crate::ids::{IncarnationId, ObjectId, OriginId};
use crate::job::{Guard as GuardBounds, Specials};
pub use crate::ledger::access::Slot;
use crate::ledger::access::{FolderAt, Folders};
use crate::ledger::object::{Identity, Observed, Seq};
use crate::ledger::record::Record;
use crate::ledger::tables::{TableError, Tables};
use crate::ledger::trim::{Kept, TrimLimits};
use crate::ledger::writer::LedgerWriter;
use crate::path::{Name, RelPath};
use crate::time::{Instant, WallMillis};
pub use doubts::Reread;
use doubts::{Doubts, Heard};
use gaps::Gaps;
pub use gaps::OpenGap;
use guard::Guard;
pub use guard::{MassDelete, TooMuch};
use listing::Listings;
use patrol::Patrol;
use pending::Pending;
use strays::Strays;
pub use strays::{Found, Whereabouts};
use unseen::Unseen;

/// How a hint names its folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FolderKey {
    /// The kernel's file handle, as [`Observed::handle`] has it.
    Handle(Vec<u8>),
    /// The path below the root.
    Path(RelPath),
    /// The kernel knows none: the hint is about its object.
    Nowhere,
}

/// What a hint says happened; several may be merged into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct What {
    /// The name is new.
    pub created: bool,
    /// Bytes were written; the file may still be open.
    pub written: bool,
    /// A file that was open for writing was closed.
    pub closed: bool,
    /// The name went, or came by a rename, or metadata changed: look at once.
    pub at_once: bool,
    /// The name is a folder's.
    pub folder: bool,
}

impl What {
    /// Look at once.
    pub const LOOK: Self = Self {
        created: false,
        written: false,
        closed: false,
        at_once: true,
        folder: false,
    };

    /// Adds what another hint says of the same thing.
    pub fn merge(&mut self, other: Self) {
        self.created |= other.created;
        self.written |= other.written;
        self.closed |= other.closed;
        self.at_once |= other.at_once;
        self.folder |= other.folder;
    }
}

/// Something may have changed at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// In this folder.
    pub folder: FolderKey,
    /// At this name, `None` for the folder itself.
    pub name: Option<Name>,
    /// How.
    pub what: What,
    /// The other end of a rename.
    pub partner: Option<(FolderKey, Name)>,
    /// What it happened to, where that is known and is no folder: the kernel's file handle.
    pub object: Option<Vec<u8>>,
}

/// Names of one folder to look at, and the folder itself behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookRequest {
    /// The folder.
    pub folder: FolderAt,
    /// The names.
    pub names: Vec<Name>,
}

/// Why a look saw nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookError {
    /// The folder is not where the ledger has it: a hint of what happened to it is on its way.
    Moved,
    /// A mount point or subvolume: not entered.
    OtherFilesystem,
    /// The disk failed, with what it said.
    Failed(String),
}

/// What a look at one name found: `None` where there is nothing.
pub type NameSeen = Result<Option<Observed>, LookError>;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// The folder.
    pub folder: ObjectId,
    /// The folder itself, seen after the names; an error speaks for all of them.
    pub itself: Result<Observed, LookError>,
    /// The names.
    pub names: Vec<(Name, NameSeen)>,
}

/// A folder to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListRequest {
    /// The folder.
    pub folder: FolderAt,
}

/// Times and bounds; the defaults are the documented ones.
#[derive(Debug, Clone, Copy)]
pub struct CoalescerConfig {
    /// How long a file that stays open for writing holds back its changes.
    pub max_age: Duration,
    /// How long a new file that nobody has written to is waited for: it may have been made by a
    /// link, and then no close ever comes.
    pub settle: Duration,
    /// How long the close of a new name waits for the rename that often follows it.
    pub linger: Duration,
    /// The same for a new file above [`Self::large`]: its dump would be in vain.
    pub linger_large: Duration,
    /// What counts as large, in bytes.
    pub large: u64,
    /// Which special files are carried.
    pub specials: Specials,
    /// How many names wait at most; beyond it hints become a gap of their folder.
    pub pending_max: usize,
    /// How many gaps are followed at most; beyond it those of the folders above stand for them.
    pub gaps_max: usize,
    /// How many names one round looks at.
    pub looks_max: usize,
    /// Fewer deletes than this within a second go at once; or than 1 % of the files, if that is more.
    pub free_deletes: u64,
    /// How many deletes at once halt the job.
    pub guard: GuardBounds,
    /// How long after the start, and after the end of one, a safety scan begins; `None` for never.
    pub scan_every: Option<Duration>,
}

impl Default for CoalescerConfig {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(5),
            settle: Duration::from_millis(100),
            linger: Duration::from_micros(300),
            linger_large: Duration::from_millis(10),
            large: 1 << 20,
            specials: Specials::default(),
            pending_max: 65_536,
            gaps_max: 1024,
            looks_max: 2048,
            free_deletes: 10,
            guard: GuardBounds::default(),
            scan_every: Some(Duration::from_secs(24 * 3600)),
        }
    }
}

/// Something a person should know of, with the path it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Where.
    pub path: RelPath,
    /// What.
    pub reason: String,
}

/// The machine; one per source root.
#[derive(Debug)]
pub struct Coalescer {
    config: CoalescerConfig,
    filter: Filter,
    ledger: LedgerWriter,
    folders: Folders,
    pending: Pending,
    listings: Listings,
    unseen: Unseen,
    strays: Strays,
    gaps: Gaps,
    doubts: Doubts,
    heard: Heard,
    guard: Guard,
    patrol: Patrol,
    /// What waited when the scan ended is being looked at, before everything is said.
    closing: bool,
    /// Objects that vanished from a name and wait for a flush, by identity: a listing that meets
    /// one of them met a rename.
    vanished: BTreeMap<Identity, ObjectId>,
    flush: FlushState,
    /// Folders whose own metadata is compared once a round ends.
    seen_folders: BTreeMap<ObjectId, Observed>,
    /// Folders of which it is known that they were told of.
    told: BTreeSet<ObjectId>,
    /// The last record of a round, which still takes the metadata of its folders.
    open: Option<Record>,
    announced: Seq,
    /// There is an index of objects by what the disk knows them by.
    indexed: bool,
    /// How many tombstones were made.
    tombstones: u64,
    written: bool,
    troubles: Vec<Trouble>,
    trouble_paths: BTreeSet<RelPath>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlushState {
    Idle,
    Wanted,
    Asked,
}

/// The most troubles kept until they are taken.
const TROUBLES_MAX: usize = 256;

impl Coalescer {
    /// Opens the ledger for a new incarnation; see [`LedgerWriter::open`].
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn open(
        config: CoalescerConfig,
        filter: Filter,
        t: &mut dyn Tables,
        fresh: OriginId,
        incarnation: IncarnationId,
        root: &Observed,
        now: WallMillis,
    ) -> Result<Self, TableError> {
        let ledger = LedgerWriter::open(t, fresh, incarnation, root, now)?;
        let (indexed, head) = (links::is_indexed(t)?, ledger.head());
        Ok(Self {
            config,
            filter,
            ledger,
            folders: Folders::default(),
            pending: Pending::default(),
            listings: Listings::default(),
            unseen: Unseen::default(),
            strays: Strays::default(),
            gaps: Gaps::default(),
            doubts: Doubts::open(t)?,
            heard: Heard::open(t, head)?,
            guard: Guard::new(&config),
            patrol: Patrol::default(),
            closing: false,
            vanished: BTreeMap::new(),
            flush: FlushState::Idle,
            seen_folders: BTreeMap::new(),
            told: BTreeSet::new(),
            open: None,
            announced: Seq(0),
            indexed,
            tombstones: 0,
            written: true,
            troubles: Vec::new(),
            trouble_paths: BTreeSet::new(),
        })
    }

    /// The ledger's id.
    #[must_use]
    pub fn origin(&self) -> OriginId {
        self.ledger.origin()
    }

    /// The running incarnation.
    #[must_use]
    pub fn incarnation(&self) -> IncarnationId {
        self.ledger.incarnation()
    }

    /// The last number given, durable or not.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.ledger.head()
    }

    /// Content bytes of all records up to [`Self::head`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ledger.bytes()
    }

    /// Drops the beginning of the log, of what may be announced. Returns up to where, if there was
    /// anything to drop.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn trim_log(
        &mut self,
        t: &mut dyn Tables,
        limits: TrimLimits,
    ) -> Result<Option<Seq>, TableError> {
        let upto = limits.upto.min(self.announced);
        self.ledger.trim(t, TrimLimits { upto, ..limits })
    }

    /// How many tombstones were made since this was opened, about: folders within one that went are
    /// not counted.
    #[must_use]
    pub fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// What is left of the log.
    #[must_use]
    pub fn log_kept(&self) -> Kept {
        self.ledger.kept()
    }

    /// The last number that may be announced.
    #[must_use]
    pub fn announced(&self) -> Seq {
        self.announced
    }

    /// Whether a scan is running.
    #[must_use]
    pub fn is_scanning(&self) -> bool {
        !self.listings.is_idle()
    }

    /// Whether every hint so far has become a record or nothing. Files that wait for their close
    /// do not count unless [`Self::hurry`] was said since they came; [`Self::waiting`] names them.
    /// Nor does what the disk fails to show: [`Self::held`] names that.
    #[must_use]
    pub fn is_settled(&self, now: Instant) -> bool {
        self.listings.is_idle()
            && self.pending.is_settled(now)
            && self.strays.is_empty()
            && self.doubts.is_empty()
            && !self.is_holding()
    }

    /// Names that wait for something else than their turn, at most `most`.
    #[must_use]
    pub fn waiting(&self, most: usize) -> Vec<Slot> {
        self.pending.slots().take(most).cloned().collect()
    }

    /// Makes everything that waits due at once, for a fence: [`Self::is_settled`] waits for all of
    /// it, and what the disk failed to show is asked for once more.
    pub fn hurry(&mut self, now: Instant) {
        self.pending.hurry(now);
        self.unseen.hurry(now);
    }

    /// Whether the log says all that was there when the last scan ended, so that absence means
    /// something. What waited for a close or a linger by then is looked at first, without waiting:
    /// `false` until that has been done, and as long as the disk fails to show something.
    pub fn poll_complete(&mut self, now: Instant) -> bool {
        if !self.is_settled(now) {
            return false;
        }
        if !self.closing {
            self.closing = true;
            self.pending.hurry(now);
        }
        self.is_settled(now) && self.unseen.count() == 0
    }

    /// Troubles since the last call, at most 256.
    pub fn take_troubles(&mut self) -> Vec<Trouble> {
        self.trouble_paths.clear();
        std::mem::take(&mut self.troubles)
    }

    /// Compares the whole tree with the ledger.
    pub fn start_scan(&mut self) {
        self.closing = false;
        self.heard.scanned = true;
        self.listings
            .start(ObjectId::root(self.origin()), self.ledger.head() > Seq(1));
    }

    /// When [`Self::poll_looks`] has something without any further input.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.listings.has_deferred() {
            return Some(Instant::default());
        }
        let others = [
            self.unseen.next_due(),
            self.doubts.next_due(),
            self.guard_due(),
            self.patrol.next_due(),
            self.strays.next_due(),
        ];
        let others = others.into_iter().flatten();
        self.pending.next_due().into_iter().chain(others).min()
    }

    /// Whether anything waits to be looked at but what the disk fails to show.
    fn is_looking(&self) -> bool {
        self.pending.len() > self.unseen.names_count() || !self.strays.is_empty()
    }

    /// Writes what must be written before the transaction ends. Returns whether anything was
    /// written since the last call: whether a commit must be made durable.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn finish(&mut self, t: &mut dyn Tables) -> Result<bool, TableError> {
        if self.listings.is_idle() && !self.is_looking() {
            self.listings.end_scan();
            self.heard.before = None;
            self.gaps.close();
            self.guard.end_scan();
        }
        self.heard.compared |= self.heard.scanned && self.listings.is_idle();
        self.note_heard(t)?;
        self.ledger.save(t)?;
        Ok(std::mem::take(&mut self.written))
    }

    /// A durable commit covers everything up to this number.
    pub fn handle_committed(&mut self, upto: Seq) {
        debug_assert!(
            upto <= self.ledger.head(),
            "only what was written can be durable"
        );
        self.announced = self.announced.max(upto);
    }

    fn trouble(&mut self, path: RelPath, reason: impl Into<String>) {
        if self.troubles.len() < TROUBLES_MAX && self.trouble_paths.insert(path.clone()) {
            self.troubles.push(Trouble {
                path,
                reason: reason.into(),
            });
        }
    }
}
