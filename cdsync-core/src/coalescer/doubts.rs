//! Doubts: files whose bytes may be other ones than recorded, although size and modification time
//! are the same.
//!
//! Nobody watched, or hints were lost, and the change time moved: by a change of attributes, by a
//! move, or by a write whose modification time was restored. What the look shows is told at once;
//! the bytes are read again, one file after another, and compared with the hash of what was sent.
//! A doubt is durable with the look that raised it, so that no crash forgets it.

use std::ops::ControlFlow;
use std::time::Duration;

use super::Coalescer;
use super::compare::{Bytes, LOST_MS, RACY_MS, is_racy};
use crate::ids::{BootId, ObjectId};
use crate::ledger::access::{live, meta, put_live, put_meta};
use crate::ledger::object::{Content, Hash, Kind, Seq};
use crate::ledger::outgoing::{ContentAt, content_at};
use crate::ledger::rows::LiveObject;
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::ledger::walk::each_live;
use crate::time::{Instant, WallMillis};

/// How long a file that changed while it was read again is left alone.
const CHANGED: Duration = Duration::from_millis(100);

/// What was changed so long before the last record counts as written by the system when its power
/// is cut: it writes back what is half a minute old, and takes a while for that.
const WRITTEN_BACK: Duration = Duration::from_secs(600);

/// The run of the system in which the ledger was opened last.
const BOOT: &str = "source-boot";

/// Up to when an earlier run had taken in what happened.
const HEARD: &str = "source-heard";

/// A hint that was not taken in yet is no older.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// Up to when all that happened was taken in: what is lost when a run ends is younger.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Of the run before, until all was compared.
    pub(super) before: Option<WallMillis>,
    /// Whether all was compared since the ledger was opened, or it was empty then.
    pub(super) compared: bool,
    /// A scan was begun since then.
    pub(super) scanned: bool,
    /// When hints were taken last.
    taken: Option<Instant>,
    upto: WallMillis,
    noted: WallMillis,
}

impl Heard {
    pub(super) fn open(t: &dyn TablesRead, head: Seq) -> Result<Self, TableError> {
        Ok(Self {
            before: meta(t, HEARD)?,
            compared: head <= Seq(1),
            ..Self::default()
        })
    }

    /// All hints so far were taken.
    pub(super) fn took(&mut self, now: Instant) {
        self.taken = Some(now);
    }

    /// What was hinted was looked at; `all` of it, or a part is waited for as long as it may be.
    fn looked(&mut self, now: Instant, wall: WallMillis, all: bool) {
        let since = self.taken.map(|taken| now.0.saturating_sub(taken.0));
        let back = match since {
            Some(since) if all => since + ON_ITS_WAY,
            _ => Duration::from_millis(LOST_MS),
        };
        let back = u64::try_from(back.as_millis()).unwrap_or(u64::MAX);
        self.upto = self.upto.max(WallMillis(wall.0.saturating_sub(back)));
    }
}

/// What is in doubt: the rows of [`Table::Doubts`], counted.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    count: u64,
    /// The one being read again.
    reading: Option<ObjectId>,
    /// The last one that was read.
    last: Vec<u8>,
    due: Instant,
}

/// What reading a file again showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reread {
    /// Its hash; it looked as expected before and after.
    Read(Hash),
    /// It is another one, or looks otherwise, or is not there.
    Changed,
    /// The disk refuses.
    Failed,
}

impl Doubts {
    pub(super) fn open(t: &dyn TablesRead) -> Result<Self, TableError> {
        let mut count = 0;
        t.range(Table::Doubts, &[], None, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(Self {
            count,
            ..Self::default()
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        (self.count > 0 && self.reading.is_none()).then_some(self.due)
    }

    /// The first one behind the last one, else the first of all.
    fn next(&self, t: &dyn TablesRead) -> Result<Option<Vec<u8>>, TableError> {
        let mut from = self.last.clone();
        from.push(0);
        let mut found = None;
        for start in [from.as_slice(), &[]] {
            t.range(Table::Doubts, start, None, &mut |key, _| {
                found = Some(key.to_vec());
                ControlFlow::Break(())
            })?;
            if found.is_some() {
                break;
            }
        }
        Ok(found)
    }
}

impl Coalescer {
    /// Says which run of the system this is; call it before anything else. After another one, files
    /// that had changed shortly before the last record are in doubt: the disk may have lost bytes
    /// that were read from memory and sent, and have kept their times.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_boot(&mut self, t: &mut dyn Tables, boot: BootId) -> Result<(), TableError> {
        let before: Option<BootId> = meta(t, BOOT)?;
        if before == Some(boot) {
            return Ok(());
        }
        put_meta(t, BOOT, &boot)?;
        if before.is_none() {
            return Ok(());
        }
        let within = u64::try_from(WRITTEN_BACK.as_millis()).unwrap_or(u64::MAX);
        let since = self.ledger.last_change().0.saturating_sub(within) / 1000;
        let late = |row: &LiveObject| {
            let ctime = row.local.as_ref().map(|local| local.fingerprint.ctime.secs);
            row.state.kind == Kind::File && ctime.is_some_and(|at| at >= since.cast_signed())
        };
        each_live(t, late, |t, row| self.doubt_content(t, row.state.id))
    }

    /// What was hinted was looked at. As long as anything is compared because hints were lost, the time
    /// of those stands.
    pub(super) fn heard(&mut self, now: Instant, wall: WallMillis) {
        if !self.listings.is_idle() || self.gap_count() > 0 {
            return;
        }
        let all = !self.is_looking() && self.listings.looking.is_empty();
        self.heard.looked(now, wall, all);
    }

    /// Notes with what was written up to when all was taken in.
    pub(super) fn note_heard(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        let heard = &mut self.heard;
        if self.written && heard.upto > heard.noted {
            put_meta(t, HEARD, &heard.upto)?;
            heard.noted = heard.upto;
        }
        Ok(())
    }

    /// How many files are in doubt.
    #[must_use]
    pub fn doubt_count(&self) -> u64 {
        self.doubts.count
    }

    /// The next file to read again, if one may be now; answer by [`Self::handle_reread`]. How fast
    /// it is read is the driver's choice.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn poll_reread(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
    ) -> Result<Option<ContentAt>, TableError> {
        while self.doubts.next_due().is_some_and(|due| due <= now) {
            let Some(key) = self.doubts.next(t)? else {
                self.doubts.count = 0;
                break;
            };
            self.doubts.last.clone_from(&key);
            let id = ObjectId::from_key(&key);
            let at = match id {
                Some(id) => content_at(t, &mut self.folders, id, Seq(0))?.ok(),
                None => None,
            };
            let Some(at) = at else {
                self.settle_doubt(t, &key)?;
                continue;
            };
            if is_racy(&at.fingerprint, wall) {
                // It may change once more without another change time.
                self.doubts.due = now.after(Duration::from_millis(RACY_MS));
                break;
            }
            self.doubts.reading = Some(at.object);
            return Ok(Some(at));
        }
        Ok(None)
    }

    /// Takes what reading a file again showed.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_reread(
        &mut self,
        now: Instant,
        wall: WallMillis,
        t: &mut dyn Tables,
        at: &ContentAt,
        reread: Reread,
    ) -> Result<(), TableError> {
        if self.doubts.reading != Some(at.object) {
            return Ok(());
        }
        self.doubts.reading = None;
        let Some(row) = live(t, at.object)? else {
            return Ok(());
        };
        let local = row.local.as_ref();
        let same = local.is_some_and(|local| local.fingerprint == at.fingerprint)
            && row.state.content_seq == at.version;
        if t.get(Table::Doubts, &at.object.to_key())?.is_none() || !same {
            return Ok(());
        }
        let hash = match reread {
            Reread::Changed => {
                self.doubts.due = now.after(CHANGED);
                if let Some(slot) = row.slot() {
                    self.pending.due_now(slot.clone(), now);
                }
                return Ok(());
            }
            Reread::Read(hash) => Some(hash),
            // Whoever asks for it is told why it does not come.
            Reread::Failed => None,
        };
        self.settle_doubt(t, &at.object.to_key())?;
        if hash.is_some() && hash_of(&row) == hash {
            return Ok(());
        }
        self.record_reread(wall, t, row, hash)
    }

    /// Tells of other bytes behind the same look.
    fn record_reread(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        mut row: LiveObject,
        hash: Option<Hash>,
    ) -> Result<(), TableError> {
        let mut record = self.begin(wall, t)?;
        row.state.replaces = Some(row.state.version);
        row.state.version = record.version(self.ledger.origin());
        row.state.content_seq = record.seq;
        if let Content::Data { hash: known, .. } = &mut row.state.content {
            *known = hash;
        }
        record.objects.push(row.state.clone());
        put_live(t, row.state.id, row)?;
        self.written = true;
        self.ledger.append(t, &record)
    }

    /// Notes the hashes of content that was read for sending: of which object, of which version.
    /// What is in doubt has none: whoever read it before may have got other bytes. Nor has anything
    /// until all was compared with what an earlier run had recorded and sent.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_hashes(
        &mut self,
        t: &mut dyn Tables,
        hashes: impl IntoIterator<Item = (ObjectId, Seq, Hash)>,
    ) -> Result<(), TableError> {
        let compared = self.heard.compared;
        for (id, version, read) in hashes.into_iter().filter(|_| compared) {
            let Some(mut row) = live(t, id)? else {
                continue;
            };
            let Content::Data { hash, .. } = &mut row.state.content else {
                continue;
            };
            if row.state.content_seq != version
                || hash.is_some()
                || !self.doubts.is_empty() && t.get(Table::Doubts, &id.to_key())?.is_some()
            {
                continue;
            }
            *hash = Some(read);
            put_live(t, id, row)?;
            self.written = true;
        }
        Ok(())
    }

    /// Raises or ends a doubt by what a comparison showed.
    pub(super) fn heed(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
        bytes: Bytes,
    ) -> Result<(), TableError> {
        match bytes {
            Bytes::InDoubt => self.doubt_content(t, id),
            Bytes::Differ => self.settle_doubt(t, &id.to_key()),
            Bytes::Same => Ok(()),
        }
    }

    /// The bytes of a file may be other ones than recorded.
    pub(super) fn doubt_content(
        &mut self,
        t: &mut dyn Tables,
        id: ObjectId,
    ) -> Result<(), TableError> {
        let key = id.to_key();
        if t.get(Table::Doubts, &key)?.is_none() {
            self.doubts.count += 1;
            self.written = true;
            t.put(Table::Doubts, &key, &[])?;
        }
        Ok(())
    }

    /// Nothing is in doubt about it any more.
    pub(super) fn settle_doubt(
        &mut self,
        t: &mut dyn Tables,
        key: &[u8],
    ) -> Result<(), TableError> {
        if !self.doubts.is_empty() && t.get(Table::Doubts, key)?.is_some() {
            self.doubts.count -= 1;
            self.written = true;
            t.remove(Table::Doubts, key)?;
        }
        Ok(())
    }
}

fn hash_of(row: &LiveObject) -> Option<Hash> {
    match row.state.content {
        Content::Data { hash, .. } => hash,
        _ => None,
    }
}
