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
use super::compare::{Bytes, RACY_MS, is_racy};
use crate::ids::ObjectId;
use crate::ledger::access::{live, put_live};
use crate::ledger::object::{Content, Hash, Seq};
use crate::ledger::outgoing::{ContentAt, content_at};
use crate::ledger::rows::LiveObject;
use crate::ledger::tables::{Table, TableError, Tables, TablesRead};
use crate::time::{Instant, WallMillis};

/// How long a file that changed while it was read again is left alone.
const CHANGED: Duration = Duration::from_millis(100);

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
    /// What is in doubt has none: whoever read it before may have got other bytes.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_hashes(
        &mut self,
        t: &mut dyn Tables,
        hashes: impl IntoIterator<Item = (ObjectId, Seq, Hash)>,
    ) -> Result<(), TableError> {
        for (id, version, read) in hashes {
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
