//! What an upstream sends: records behind a cursor, and which content goes with them *now*.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::access::{FolderAt, Folders, live, log_after, object};
use super::object::{Fingerprint, Kind, ObjectState, Seq};
use super::record::Record;
use super::rows::ObjectRow;
use super::tables::{TableError, TablesRead};
use super::trim::log_start;
use super::writer::size_of;
use crate::ids::ObjectId;
use crate::path::Name;
use crate::time::Timestamp;

/// How much one batch takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Records.
    pub records: usize,
    /// Bytes of content and extended attributes; one record may go beyond it.
    pub bytes: u64,
    /// Files whose content changed; one record may go beyond it.
    pub contents: usize,
    /// Names, objects and removals; one record may go beyond it.
    pub items: usize,
    /// The largest file that travels inside a batch, in bytes.
    pub inline: u64,
}

/// The largest file that ever travels inside a batch, in bytes.
pub const INLINE_MAX_BYTES: u64 = 256 << 10;

impl Default for BatchLimits {
    /// 512 records, 1 MiB, 16,384 contents or as many items, whichever is reached first; files up to one range of 256 KiB inline:
    /// a stream of its own costs more than it saves below that.
    fn default() -> Self {
        Self {
            records: 512,
            bytes: 1 << 20,
            contents: 16 * 1024,
            items: 16 * 1024,
            inline: INLINE_MAX_BYTES,
        }
    }
}

/// What the batches of all streams of one agent take together, two of each, as long as none of them
/// is smaller than [`SHARE_MIN_BYTES`].
const ALL_STREAMS_BYTES: u64 = 24 << 20;

/// The smallest batch that a stream is left with.
const SHARE_MIN_BYTES: u64 = 16 << 10;

impl BatchLimits {
    /// The limits of one of so many streams that have batches at the same time: peers that take none
    /// do not make this side grow with their number. Twelve have it all.
    #[must_use]
    pub fn shared_by(self, streams: usize) -> Self {
        let share = ALL_STREAMS_BYTES / (2 * streams.max(1) as u64);
        let share = share.max(SHARE_MIN_BYTES);
        Self {
            bytes: self.bytes.min(share),
            inline: self.inline.min(share),
            ..self
        }
    }
}

/// Records to send, with what to read for them.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// In rising order, none missing.
    pub records: Vec<Record>,
    /// One for each file whose content a record changed, in that order.
    pub needs: Vec<Need>,
    /// Running sum of content bytes up to the last record.
    pub bytes: u64,
}

/// How a file's content is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Read it and send it with the batch.
    Read(ContentAt),
    /// The target pulls it.
    Pull,
    /// This subscription has brought this or a newer version already.
    Sent,
    /// It is gone.
    Removed {
        /// By the record of this number, or one before it.
        by: Seq,
    },
}

/// Where a file's content is on this disk, and what it must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentAt {
    /// Which object.
    pub object: ObjectId,
    /// Its folder.
    pub folder: FolderAt,
    /// Its name there.
    pub name: Name,
    /// What it must look like before and after reading.
    pub fingerprint: Fingerprint,
    /// The number that last changed the content.
    pub version: Seq,
    /// The modification time that belongs to it.
    pub mtime: Timestamp,
}

/// One target's stream of records.
#[derive(Debug, Default)]
pub struct OutgoingStream {
    folders: Folders,
    /// Content that was sent ahead of the record that brought it.
    ahead: BTreeMap<ObjectId, Seq>,
}

/// How many objects sent ahead are remembered; beyond it some content is sent twice.
const AHEAD_MAX: usize = 4096;

impl OutgoingStream {
    /// Collects records behind `after`, up to `upto`.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn collect(
        &mut self,
        t: &dyn TablesRead,
        after: Seq,
        upto: Seq,
        limits: BatchLimits,
        with_content: bool,
    ) -> Result<Outgoing, TableError> {
        self.folders.forget();
        let mut out = Outgoing::default();
        let (mut content, mut contents, mut items) = (0, 0, 0);
        log_after(t, after, &mut |bytes, record| {
            if record.seq > upto {
                return ControlFlow::Break(());
            }
            content += record
                .contents()
                .map(|state| size_of(&state.content))
                .filter(|size| *size <= limits.inline)
                .sum::<u64>();
            content += record.xattr_bytes();
            contents += record.contents().count();
            items += record.names.len() + record.objects.len() + record.removed.len();
            out.bytes = bytes;
            out.records.push(record);
            if out.records.len() >= limits.records
                || content >= limits.bytes
                || contents >= limits.contents
                || items >= limits.items
            {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if with_content {
            for record in &out.records {
                for state in record.contents() {
                    out.needs
                        .push(self.need(t, record.seq, state, limits.inline)?);
                }
            }
        }
        if let Some(last) = out.records.last() {
            self.ahead.retain(|_, seq| *seq > last.seq);
        }
        Ok(out)
    }

    fn need(
        &mut self,
        t: &dyn TablesRead,
        seq: Seq,
        state: &ObjectState,
        inline: u64,
    ) -> Result<Need, TableError> {
        if self.ahead.get(&state.id).is_some_and(|sent| *sent >= seq) {
            return Ok(Need::Sent);
        }
        let at = match content_at(t, &mut self.folders, state.id, seq)? {
            Ok(at) => at,
            Err(by) => return Ok(Need::Removed { by }),
        };
        if at.fingerprint.size > inline {
            return Ok(Need::Pull);
        }
        if at.version > seq && self.ahead.len() < AHEAD_MAX {
            self.ahead.insert(state.id, at.version);
        }
        Ok(Need::Read(at))
    }

    /// An object whose content could not be read after all: it was not sent ahead.
    pub fn not_sent(&mut self, id: ObjectId) {
        self.ahead.remove(&id);
    }
}

/// Where the current content of an object is: of version `at_least` or newer. The inner error is
/// the number that removed it.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn content_at(
    t: &dyn TablesRead,
    folders: &mut Folders,
    id: ObjectId,
    at_least: Seq,
) -> Result<Result<ContentAt, Seq>, TableError> {
    let row = match object(t, id)? {
        Some(ObjectRow::Live(row)) if row.state.kind == Kind::File => row,
        Some(ObjectRow::Gone(by)) => return Ok(Err(by)),
        Some(ObjectRow::Live(_)) => return Ok(Err(at_least)),
        // Its tombstone went with the record that removed it.
        None => return Ok(Err(at_least.max(log_start(t)?))),
    };
    let (Some(local), Some((parent, name))) = (row.local, row.names.into_iter().next()) else {
        return Ok(Err(at_least));
    };
    let Some(folder) = folders.at(t, parent)? else {
        let gone = at_least.max(log_start(t)?);
        return Ok(Err(live(t, parent)?.map_or(gone, |p| p.state.version.seq)));
    };
    Ok(Ok(ContentAt {
        object: id,
        folder,
        name,
        fingerprint: local.fingerprint,
        version: row.state.content_seq,
        mtime: row.state.meta.mtime,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a few streams have whole batches, that the batches of many take no more together
    /// than those of a few, and that each of them still has one.
    #[test]
    fn many_streams_share() {
        let whole = BatchLimits::default();
        assert_eq!(whole.shared_by(0), whole);
        assert_eq!(whole.shared_by(12), whole);
        for streams in [13, 100, 700, 10_000] {
            let share = whole.shared_by(streams);
            let together = 2 * share.bytes * streams as u64;
            assert!(together <= ALL_STREAMS_BYTES || share.bytes == SHARE_MIN_BYTES);
            assert!(share.inline <= share.bytes && share.bytes >= SHARE_MIN_BYTES);
        }
    }
}
