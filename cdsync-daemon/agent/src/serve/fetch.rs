//! Large content, in ranges.

use std::sync::Arc;

use bytes::Bytes;
use cdsync_core::ledger::access::Folders;
use cdsync_core::ledger::object::Hash;
use cdsync_core::ledger::outgoing::{ContentAt, content_at};
use cdsync_core::time::Timestamp;
use cdsync_core::wire::{ContentAnswer, ContentHeader, FetchRequest, PeerMessage, kind};
use cdsync_delta::{RANGE_BYTES, RangeHash, RootBuilder, range_count};
use cdsync_fs::{ContentReader, ReadError, RestlessReader, open_content, open_restless};
use cdsync_transport::FrameWriter;
use tokio::sync::mpsc;

use super::batch::{failed, recheck};
use super::buffers::Buffers;
use super::{ServeError, delta, write};
use crate::clock::random_id;
use crate::source::{Input, Served, chain, dir_ref};

/// How many ranges are read ahead of the network.
pub(super) const READ_AHEAD: usize = 4;

/// What the reading side says.
pub(super) enum Piece {
    Answer(ContentAnswer),
    Range([u8; 32], Bytes),
    /// It reads, and there is nothing to send yet.
    Matching,
    /// These stretches of the base are to be signed finely.
    Refine(Vec<std::ops::Range<u64>>),
    /// Encoded copies out of the base.
    Copies(Vec<u8>),
    /// What is in none of them.
    Literal(Bytes),
    End(Hash),
    Abandon,
}

/// Serves one fetch.
pub(super) async fn serve(
    served: &Arc<Served>,
    request: &FetchRequest,
    writer: &mut FrameWriter,
) -> Result<(), ServeError> {
    let (pieces, mut next) = mpsc::channel(READ_AHEAD);
    let (reading, request) = (Arc::clone(served), request.clone());
    // It ends by itself when the channel's other end is dropped.
    let reader = tokio::task::spawn_blocking(move || read(&reading, &request, &pieces));
    while let Some(piece) = next.recv().await {
        // A peer that takes none at a pace is given up: it holds one of the few places.
        send(writer, piece).await?;
    }
    match reader.await {
        Ok(result) => result,
        Err(_) => Err(ServeError::Ending),
    }
}

pub(super) async fn send(writer: &mut FrameWriter, piece: Piece) -> Result<(), ServeError> {
    match piece {
        Piece::Answer(answer) => write(writer, &PeerMessage::Content(answer)).await,
        Piece::Range(hash, bytes) => {
            let hash = Bytes::copy_from_slice(&hash);
            Ok(writer.write(kind::RANGE, &[hash, bytes]).await?)
        }
        Piece::Matching => write(writer, &PeerMessage::Matching).await,
        Piece::Refine(stretches) => {
            let stretches = stretches.iter().map(|s| (s.start, s.end)).collect();
            write(writer, &PeerMessage::Refine { stretches }).await
        }
        Piece::Copies(encoded) => delta::send_copies(writer, encoded).await,
        Piece::Literal(bytes) => Ok(writer.write(kind::LITERAL, &[bytes]).await?),
        Piece::End(root) => write(writer, &PeerMessage::ContentEnd { root }).await,
        Piece::Abandon => write(writer, &PeerMessage::Abandon).await,
    }
}

fn read(
    served: &Served,
    request: &FetchRequest,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), ServeError> {
    match found(served, request, pieces)? {
        Some((at, reader)) => ranges(served, &at, reader, pieces),
        None => Ok(()),
    }
}

/// Opens what is asked for. Where it cannot be sent, says why, and it is `None`.
pub(super) fn found(
    served: &Served,
    request: &FetchRequest,
    pieces: &mpsc::Sender<Piece>,
) -> Result<Option<(ContentAt, Reader)>, ServeError> {
    let broken = |error: &dyn std::error::Error| ServeError::Source(chain(error));
    let view = served.store.read().map_err(|e| broken(&e))?;
    let found = content_at(
        &view,
        &mut Folders::default(),
        request.object,
        request.at_least,
    )
    .map_err(|e| broken(&e))?;
    drop(view);
    let at = match found {
        Ok(at) => at,
        Err(by) => {
            say(pieces, Piece::Answer(ContentAnswer::Removed { by }))?;
            return Ok(None);
        }
    };
    if at.version < request.at_least {
        say(pieces, Piece::Answer(ContentAnswer::Unsettled))?;
        return Ok(None);
    }
    match open(served, &at) {
        Ok(reader) => Ok(Some((at, reader))),
        Err(error) => {
            failed(served, &at, &error);
            let answer = match error {
                ReadError::Unreadable(error) => ContentAnswer::Unreadable {
                    reason: chain(&error),
                },
                _ => ContentAnswer::Unsettled,
            };
            say(pieces, Piece::Answer(answer))?;
            Ok(None)
        }
    }
}

/// A file to read.
pub(super) enum Reader {
    /// It must look as recorded before and after.
    Exact(ContentReader),
    /// It changed too often for that.
    Restless(RestlessReader),
}

fn open(served: &Served, at: &ContentAt) -> Result<Reader, ReadError> {
    let dir = served
        .root
        .dir(&dir_ref(&at.folder))
        .map_err(ReadError::Unreadable)?;
    if !served.restless.is_restless(at.object) {
        return open_content(&dir, &at.name, &at.fingerprint).map(Reader::Exact);
    }
    let identity = at.fingerprint.identity;
    open_restless(&served.root, &dir, &at.name, identity, served.unproven).map(Reader::Restless)
}

impl Reader {
    fn size(&self) -> u64 {
        match self {
            Self::Exact(reader) => reader.size(),
            Self::Restless(reader) => reader.size(),
        }
    }

    fn read_range(&self, index: u64, into: &mut Vec<u8>) -> Result<RangeHash, ReadError> {
        match self {
            Self::Exact(reader) => reader.read_range(index, into),
            Self::Restless(reader) => reader.read_range(index, into),
        }
    }

    /// Whether what was read counts, and what that says of the file.
    pub(super) fn finish(
        self,
        served: &Served,
        at: &ContentAt,
        root: Hash,
    ) -> Result<(), ReadError> {
        match self {
            Self::Exact(reader) => {
                reader.finish()?;
                served.restless.rested(at.object);
                let hashed = vec![(at.object, at.version, root)];
                served.engine.nudge(Input::Hashed(hashed));
            }
            Self::Restless(reader) => {
                let as_recorded = *reader.opened() == at.fingerprint;
                reader.finish(root.0)?;
                served.restless.sent(at.object);
                if !as_recorded {
                    // It was sent ahead of its record.
                    recheck(served, at);
                }
            }
        }
        Ok(())
    }
}

pub(super) fn ranges(
    served: &Served,
    at: &ContentAt,
    reader: Reader,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), ServeError> {
    let size = reader.size();
    let mtime = match &reader {
        Reader::Exact(_) => at.mtime,
        Reader::Restless(reader) => reader.mtime(),
    };
    say(pieces, header(at, size, mtime))?;
    let mut root = RootBuilder::new();
    let mut buffers = Buffers::default();
    for index in 0..range_count(size) {
        let mut bytes = buffers.take(RANGE_BYTES);
        match reader.read_range(index, &mut bytes) {
            Ok(hash) => {
                root.push(hash);
                say(pieces, Piece::Range(hash.0, buffers.lend(bytes)))?;
            }
            Err(error) => {
                failed(served, at, &error);
                return say(pieces, Piece::Abandon);
            }
        }
    }
    let root = root
        .finish(size)
        .map_err(|e| ServeError::Source(chain(&e)))?;
    if let Err(error) = reader.finish(served, at, Hash(root)) {
        failed(served, at, &error);
        return say(pieces, Piece::Abandon);
    }
    say(pieces, Piece::End(Hash(root)))
}

/// What says what follows.
pub(super) fn header(at: &ContentAt, size: u64, mtime: Timestamp) -> Piece {
    Piece::Answer(ContentAnswer::Follows(ContentHeader {
        version: at.version,
        size,
        mtime,
        attempt: random_id(),
    }))
}

pub(super) fn say(pieces: &mpsc::Sender<Piece>, piece: Piece) -> Result<(), ServeError> {
    pieces.blocking_send(piece).map_err(|_| ServeError::Ending)
}
