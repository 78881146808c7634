//! The writing end of a source's ledger: incarnations, numbers and the log.

use super::access::{append_log, meta, put_live, put_meta};
use super::object::{Content, Kind, ObjectState, Observed, Seq, Version};
use super::record::Record;
use super::rows::{Incarnation, LiveObject, Local};
use super::tables::{Table, TableError, Tables, TablesRead};
use super::trim::{Kept, TrimLimits, kept, put_kept, trim};
use crate::ids::{IncarnationId, ObjectId, OriginId};
use crate::time::{Hlc, WallMillis};

const ORIGIN: &str = "origin";
const COUNTERS: &str = "counters";
const INCARNATIONS: &str = "incarnations";

/// How many incarnations a ledger remembers; a cursor of an older one starts over.
const INCARNATIONS_MAX: usize = 4096;

/// Counters of a source's ledger. They are kept in memory and written with each transaction that
/// moved them, so the transaction must commit or the machine must be made anew.
#[derive(Debug)]
pub struct LedgerWriter {
    origin: OriginId,
    incarnation: IncarnationId,
    counters: Counters,
    saved: Counters,
    kept: Kept,
    saved_kept: Kept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
struct Counters {
    seq: Seq,
    number: u64,
    hlc: Hlc,
    bytes: u64,
    files: u64,
}

impl LedgerWriter {
    /// Opens a ledger for a new incarnation, which names its predecessor and where that ended; an
    /// empty ledger becomes `fresh`'s, with the root folder as its first object. Nothing may be
    /// announced before the transaction is durable.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn open(
        t: &mut dyn Tables,
        fresh: OriginId,
        incarnation: IncarnationId,
        root: &Observed,
        now: WallMillis,
    ) -> Result<Self, TableError> {
        let known: Option<OriginId> = meta(t, ORIGIN)?;
        let origin = known.unwrap_or(fresh);
        let counters: Counters = meta(t, COUNTERS)?.unwrap_or_default();
        let kept = kept(t)?;
        let mut ledger = Self {
            origin,
            incarnation,
            counters,
            saved: counters,
            kept,
            saved_kept: kept,
        };
        let mut list: Vec<Incarnation> = meta(t, INCARNATIONS)?.unwrap_or_default();
        list.push(Incarnation {
            id: incarnation,
            predecessor: list.last().map(|i| i.id),
            after: counters.seq,
        });
        let surplus = list.len().saturating_sub(INCARNATIONS_MAX);
        put_meta(t, INCARNATIONS, &list[surplus..].to_vec())?;
        if known.is_none() {
            put_meta(t, ORIGIN, &origin)?;
            ledger.counters.number = ObjectId::ROOT_NUMBER;
            ledger.enter_root(t, root, now)?;
        }
        ledger.save(t)?;
        Ok(ledger)
    }

    fn enter_root(
        &mut self,
        t: &mut dyn Tables,
        root: &Observed,
        now: WallMillis,
    ) -> Result<(), TableError> {
        let id = ObjectId::root(self.origin);
        let mut record = self.begin(now);
        let state = new_state(id, root, record.version(self.origin));
        record.objects.push(state.clone());
        let local = Some(Local {
            fingerprint: root.fingerprint,
            handle: root.handle.clone(),
            round: 0,
        });
        if let Some(handle) = &root.handle {
            t.put(Table::Handles, handle, &id.to_key())?;
        }
        put_live(
            t,
            id,
            LiveObject {
                state,
                names: Vec::new(),
                local,
            },
        )?;
        self.append(t, &record)
    }

    /// The ledger's id.
    #[must_use]
    pub const fn origin(&self) -> OriginId {
        self.origin
    }

    /// The running incarnation.
    #[must_use]
    pub const fn incarnation(&self) -> IncarnationId {
        self.incarnation
    }

    /// The last number given.
    #[must_use]
    pub const fn head(&self) -> Seq {
        self.counters.seq
    }

    /// Content bytes of all records.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.counters.bytes
    }

    /// When the last record was made.
    #[must_use]
    pub const fn last_change(&self) -> WallMillis {
        self.counters.hlc.wall()
    }

    /// How many objects that are no folders have been told of and are there: the files, for people
    /// and for whoever judges how much of them goes.
    #[must_use]
    pub const fn files(&self) -> u64 {
        self.counters.files
    }

    /// A file was entered.
    pub const fn file_came(&mut self) {
        self.counters.files += 1;
    }

    /// So many files are gone.
    pub const fn files_went(&mut self, files: u64) {
        self.counters.files = self.counters.files.saturating_sub(files);
    }

    /// A new object's id.
    pub fn new_object(&mut self) -> ObjectId {
        self.counters.number += 1;
        ObjectId {
            origin: self.origin,
            number: self.counters.number,
        }
    }

    /// An empty record with the next number.
    pub fn begin(&mut self, now: WallMillis) -> Record {
        self.counters.seq = self.counters.seq.next();
        self.counters.hlc = self.counters.hlc.next(now);
        Record {
            seq: self.counters.seq,
            incarnation: self.incarnation,
            hlc: self.counters.hlc,
            names: Vec::new(),
            objects: Vec::new(),
            removed: Vec::new(),
            group: 0,
            set: 0,
            signature: Vec::new(),
        }
    }

    /// Appends a record made by [`Self::begin`], in that order.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn append(&mut self, t: &mut dyn Tables, record: &Record) -> Result<(), TableError> {
        self.counters.bytes += record.content_bytes();
        self.kept.bytes += append_log(t, self.counters.bytes, record)?;
        Ok(())
    }

    /// Drops the beginning of the log. Returns up to where, if there was anything to drop.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn trim(
        &mut self,
        t: &mut dyn Tables,
        limits: TrimLimits,
    ) -> Result<Option<Seq>, TableError> {
        let Some(left) = trim(t, self.kept, limits)? else {
            return Ok(None);
        };
        (self.kept, self.saved_kept) = (left, left);
        Ok(Some(left.start))
    }

    /// What is left of the log.
    #[must_use]
    pub const fn kept(&self) -> Kept {
        self.kept
    }

    /// Writes the counters if they moved. Call it before the transaction ends.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn save(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        if self.counters != self.saved {
            put_meta(t, COUNTERS, &self.counters)?;
            self.saved = self.counters;
        }
        if self.kept != self.saved_kept {
            put_kept(t, self.kept)?;
            self.saved_kept = self.kept;
        }
        Ok(())
    }
}

/// The state of an object seen for the first time.
#[must_use]
pub fn new_state(id: ObjectId, seen: &Observed, version: Version) -> ObjectState {
    let content_seq = if seen.kind == Kind::File {
        version.seq
    } else {
        Seq(0)
    };
    ObjectState {
        id,
        kind: seen.kind,
        meta: seen.meta.clone(),
        content: seen.content(),
        version,
        content_seq,
        replaces: None,
    }
}

/// Whether a cursor belongs to this ledger's history: its incarnation is known and did not end
/// before the cursor.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn knows_cursor(
    t: &dyn TablesRead,
    origin: OriginId,
    incarnation: IncarnationId,
    seq: Seq,
) -> Result<bool, TableError> {
    if meta::<OriginId>(t, ORIGIN)? != Some(origin) {
        return Ok(false);
    }
    let list: Vec<Incarnation> = meta(t, INCARNATIONS)?.unwrap_or_default();
    let Some(at) = list.iter().position(|i| i.id == incarnation) else {
        return Ok(false);
    };
    let end = match list.get(at + 1) {
        Some(next) => next.after,
        None => meta::<Counters>(t, COUNTERS)?.unwrap_or_default().seq,
    };
    Ok((list[at].after..=end).contains(&seq))
}

/// Where a source's ledger stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct History {
    pub(super) origin: OriginId,
    pub(super) incarnation: IncarnationId,
    pub(super) head: Seq,
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// `None` for an empty ledger.
pub(super) fn history(t: &dyn TablesRead) -> Result<Option<History>, TableError> {
    let list: Vec<Incarnation> = meta(t, INCARNATIONS)?.unwrap_or_default();
    let (Some(origin), Some(last)) = (meta(t, ORIGIN)?, list.last()) else {
        return Ok(None);
    };
    let counters: Counters = meta(t, COUNTERS)?.unwrap_or_default();
    Ok(Some(History {
        origin,
        incarnation: last.id,
        head: counters.seq,
        bytes: counters.bytes,
        files: counters.files,
    }))
}

/// The size that a state's content says.
#[must_use]
pub const fn size_of(content: &Content) -> u64 {
    match content {
        Content::Data { size, .. } => *size,
        _ => 0,
    }
}
