//! Making a batch: records from the ledger, small content from the disk.

use bytes::Bytes;
use cdsync_core::ledger::object::{Hash, Seq};
use cdsync_core::ledger::outgoing::{BatchLimits, ContentAt, Need, OutgoingStream};
use cdsync_core::ledger::trim::log_start;
use cdsync_core::wire::{BatchHeader, Inline, RefusedWhy, encode, kind};
use cdsync_fs::{ReadError, open_content};
use cdsync_transport::compress::Compressor;

use super::ServeError;
use super::buffers::Buffers;
use crate::source::{Hashed, Input, Served, chain, dir_ref};

/// The level of compression where it pays: the fastest.
const LEVEL: i32 = 1;

/// One subscription's side of making batches; it moves to a reader thread and back.
#[derive(Debug, Default)]
pub(super) struct Maker {
    stream: OutgoingStream,
    compressor: Option<Compressor>,
    buffers: Buffers,
}

/// How a batch is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) limits: BatchLimits,
    pub(super) with_content: bool,
    pub(super) compress: bool,
}

/// A batch ready to be sent.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) maker: Maker,
    pub(super) kind: u8,
    pub(super) parts: Vec<Bytes>,
    pub(super) last: Option<Seq>,
}

impl Maker {
    /// Makes the next batch behind `after`; `last` is `None` when there was none.
    pub(super) fn make(
        mut self,
        served: &Served,
        after: Seq,
        head: Seq,
        how: How,
    ) -> Result<Made, ServeError> {
        let failed = |error: &dyn std::error::Error| ServeError::Source(chain(error));
        let view = served.store.read().map_err(|e| failed(&e))?;
        if log_start(&view).map_err(|e| failed(&e))? > after {
            // It asks again, and compares.
            let reason = "the log was dropped beyond what was sent";
            return Err(ServeError::refused(RefusedWhy::NotServing, reason));
        }
        let out = self
            .stream
            .collect(&view, after, head, how.limits, how.with_content)
            .map_err(|e| failed(&e))?;
        drop(view);
        let mut content = self.buffers.take(content_bytes(&out.needs));
        let mut hashed = Vec::new();
        let contents = out
            .needs
            .into_iter()
            .map(|need| self.answer(served, need, &mut content, &mut hashed))
            .collect();
        if !hashed.is_empty() {
            // What is not noted is sent once more some day.
            served.engine.nudge(Input::Hashed(hashed));
        }
        let last = out.records.last().map(|record| record.seq);
        let header = BatchHeader {
            records: out.records,
            contents,
            bytes: out.bytes,
            head,
        };
        let header = encode(&header);
        let header_len = u32::try_from(header.len())
            .map_err(|_| ServeError::Source("a batch header is too large".into()))?;
        let mut prefix = Vec::with_capacity(4 + header.len());
        prefix.extend_from_slice(&header_len.to_le_bytes());
        prefix.extend_from_slice(&header);
        let (kind, parts) = if how.compress {
            let packed = self.compress(&prefix, &content)?;
            drop(self.buffers.lend(content));
            (kind::BATCH_ZSTD, vec![packed])
        } else {
            let content = self.buffers.lend(content);
            (kind::BATCH, vec![Bytes::from(prefix), content])
        };
        Ok(Made {
            maker: self,
            kind,
            parts,
            last,
        })
    }

    /// The target has everything: what was kept for more goes.
    pub(super) fn rest(&mut self) {
        self.buffers.release();
    }

    fn compress(&mut self, prefix: &[u8], content: &[u8]) -> Result<Bytes, ServeError> {
        let plain = u32::try_from(prefix.len() + content.len())
            .map_err(|_| ServeError::Source("a batch is too large".into()))?;
        let mut packed = plain.to_le_bytes().to_vec();
        self.compressor
            .get_or_insert_with(Compressor::new)
            .compress_into(LEVEL, &[prefix, content], &mut packed)
            .map_err(|e| ServeError::Source(chain(&e)))?;
        Ok(Bytes::from(packed))
    }

    fn answer(
        &mut self,
        served: &Served,
        need: Need,
        into: &mut Vec<u8>,
        hashed: &mut Vec<Hashed>,
    ) -> Inline {
        let at = match need {
            Need::Read(at) => at,
            Need::Pull => return Inline::Pull,
            Need::Sent => return Inline::Sent,
            Need::Removed { by } => return Inline::Removed { by },
        };
        let before = into.len();
        match read(served, &at, into) {
            Ok(hash) => {
                let len = u32::try_from(into.len() - before).unwrap_or(u32::MAX);
                served.restless.rested(at.object);
                hashed.push((at.object, at.version, hash));
                Inline::Here {
                    version: at.version,
                    len,
                    hash,
                    mtime: at.mtime,
                }
            }
            Err(error) => {
                into.truncate(before);
                self.stream.not_sent(at.object);
                failed(served, &at, &error);
                match error {
                    ReadError::Unreadable(error) => Inline::Unreadable {
                        reason: chain(&error),
                    },
                    _ => Inline::Unsettled,
                }
            }
        }
    }
}

/// A file could not be read as recorded: the engine looks at it, if it does not know yet.
pub(super) fn failed(served: &Served, at: &ContentAt, error: &ReadError) {
    if matches!(error, ReadError::Changed(_)) {
        served.restless.failed(at);
    }
    recheck(served, at);
}

/// The engine looks at a file that is not as recorded.
pub(super) fn recheck(served: &Served, at: &ContentAt) {
    served.engine.nudge(Input::Recheck {
        folder: at.folder.path.clone(),
        name: at.name.clone(),
    });
}

/// What all contents to be read take.
fn content_bytes(needs: &[Need]) -> usize {
    let size = |need: &Need| match need {
        Need::Read(at) => usize::try_from(at.fingerprint.size).unwrap_or(0),
        _ => 0,
    };
    needs.iter().map(size).sum()
}

fn read(served: &Served, at: &ContentAt, into: &mut Vec<u8>) -> Result<Hash, ReadError> {
    let dir = served
        .root
        .dir(&dir_ref(&at.folder))
        .map_err(|error| match error.kind() {
            cdsync_fs::FsErrorKind::NotFound | cdsync_fs::FsErrorKind::Moved => ReadError::Gone,
            _ => ReadError::Unreadable(error),
        })?;
    let reader = open_content(&dir, &at.name, &at.fingerprint)?;
    reader.read_small(into).map(Hash)
}
