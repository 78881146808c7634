//! Large content as its difference to what the target holds.
//!
//! The target signs its copy in coarse blocks. They are sought in the content at any offset while it
//! is read and hashed; then the target signs finely what of its copy was not found, and that is
//! sought in the gaps. What is in neither is sent. The target proves the whole before it publishes.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::ledger::object::Hash;
use cdsync_core::ledger::outgoing::ContentAt;
use cdsync_core::wire::{
    Base, DIFFERENCE_MIN_BYTES, FetchRequest, PeerMessage, REFINE_MAX, SIGNATURES_MAX_BYTES, kind,
};
use cdsync_delta::{
    BLOCK_SIGNATURE_BYTES, BlockSizes, Copy, DeltaKey, Index, Matcher, RANGE_BYTES, RootBuilder,
    SIGNATURE_BLOCKS_MAX, encode_copies, gaps, merge, range_count, unused,
};
use cdsync_fs::{ContentReader, ReadError};
use cdsync_transport::{FrameReader, FrameWriter};
use tokio::sync::mpsc;

use super::ServeError;
use super::batch::failed;
use super::buffers::Buffers;
use super::fetch::{Piece, READ_AHEAD, Reader, found, header, ranges, say, send};
use super::places::Place;
use crate::source::{Served, chain};

/// How long a target may take for some of the signatures that it was asked for.
const SILENCE: Duration = Duration::from_secs(60);
/// How long for all of them.
const SIGNING_MAX: Duration = Duration::from_secs(15 * 60);
/// How often the target hears that this side lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// How long encoded copies are in one frame.
const COPIES_BYTES: usize = RANGE_BYTES;

/// Serves one fetch of a difference.
pub(super) async fn serve(
    served: &Arc<Served>,
    request: &FetchRequest,
    base: Base,
    place: Place,
    (writer, reader): (&mut FrameWriter, &mut FrameReader),
) -> Result<(), ServeError> {
    if base.len < DIFFERENCE_MIN_BYTES {
        return Err(ServeError::Protocol("a difference to next to nothing"));
    }
    let sizes = BlockSizes::for_len(base.len);
    let signed = sizes.blocks(base.len) * u64::from(sizes.coarse);
    let all = 0..signed;
    let coarse = index(reader, &base, sizes.coarse, std::slice::from_ref(&all)).await?;
    let (pieces, mut next) = mpsc::channel(READ_AHEAD);
    let (finely, fine) = mpsc::channel(1);
    let (reading, request) = (Arc::clone(served), request.clone());
    // It ends by itself when the channels' other ends are dropped, and has its place until then.
    let work = tokio::task::spawn_blocking(move || {
        let sides = Sides {
            served: &reading,
            base,
            pieces: &pieces,
        };
        let ended = sides.difference(&request, coarse, fine);
        drop(place);
        ended
    });
    while let Some(piece) = next.recv().await {
        let stretches = match &piece {
            Piece::Refine(stretches) => Some(stretches.clone()),
            _ => None,
        };
        send(writer, piece).await?;
        if let Some(stretches) = stretches {
            let index = index(reader, &base, sizes.fine, &stretches).await?;
            // The other side is gone only together with the pieces.
            let _ = finely.send(index).await;
        }
    }
    match work.await {
        Ok(result) => result,
        Err(_) => Err(ServeError::Ending),
    }
}

/// Takes the signatures of stretches of the base.
async fn index(
    reader: &mut FrameReader,
    base: &Base,
    block: u32,
    stretches: &[Range<u64>],
) -> Result<Index, ServeError> {
    let signed = signed(reader, base, block, stretches);
    let signed = tokio::time::timeout(SIGNING_MAX, signed).await;
    signed.map_err(|_| ServeError::Silent)?
}

async fn signed(
    reader: &mut FrameReader,
    base: &Base,
    block: u32,
    stretches: &[Range<u64>],
) -> Result<Index, ServeError> {
    let blocks = |stretch: &Range<u64>| (stretch.end - stretch.start) / u64::from(block);
    let expected: u64 = stretches.iter().map(blocks).sum();
    if expected > SIGNATURE_BLOCKS_MAX {
        return Err(ServeError::Protocol("too many blocks of a base"));
    }
    let expected = expected as usize * BLOCK_SIGNATURE_BYTES;
    let mut signatures = Vec::with_capacity(expected);
    while signatures.len() < expected {
        let frame = reader.next_within(SILENCE).await?;
        let frame = frame.ok_or(ServeError::Silent)?;
        let fits = (1..=SIGNATURES_MAX_BYTES).contains(&frame.payload.len())
            && signatures.len() + frame.payload.len() <= expected;
        if frame.kind != kind::SIGNATURES || !fits {
            return Err(ServeError::Protocol("no signatures where they should be"));
        }
        signatures.extend_from_slice(&frame.payload);
    }
    let mut index = Index::new(DeltaKey(base.key), block);
    let mut left = &signatures[..];
    for stretch in stretches {
        let len = blocks(stretch) as usize * BLOCK_SIGNATURE_BYTES;
        let (these, more) = left.split_at(len);
        index
            .add(stretch.start, these)
            .map_err(|_| ServeError::Protocol("signatures that cannot be"))?;
        left = more;
    }
    Ok(index)
}

/// What the reading side needs.
struct Sides<'a> {
    served: &'a Served,
    base: Base,
    pieces: &'a mpsc::Sender<Piece>,
}

impl Sides<'_> {
    fn difference(
        &self,
        request: &FetchRequest,
        coarse: Index,
        fine: mpsc::Receiver<Index>,
    ) -> Result<(), ServeError> {
        let Some((at, reader)) = found(self.served, request, self.pieces)? else {
            return Ok(());
        };
        let reader = match reader {
            Reader::Exact(reader) => reader,
            // It changes while it is read, so that it cannot be read twice: all of it is sent.
            restless @ Reader::Restless(_) => {
                return ranges(self.served, &at, restless, self.pieces);
            }
        };
        say(self.pieces, header(&at, reader.size(), at.mtime))?;
        match self.find(&reader, coarse, fine) {
            Ok(Some(found)) => self.tell(&at, reader, found),
            // The target is gone.
            Ok(None) => Err(ServeError::Ending),
            Err(error) => self.abandon(&at, &error),
        }
    }

    fn abandon(&self, at: &ContentAt, error: &ReadError) -> Result<(), ServeError> {
        failed(self.served, at, error);
        say(self.pieces, Piece::Abandon)
    }

    /// Whether the target still listens, which hears now and then that this side lives.
    fn is_heard(&self, told: &mut Instant) -> bool {
        if told.elapsed() < SIGN_OF_LIFE {
            return !self.pieces.is_closed();
        }
        *told = Instant::now();
        say(self.pieces, Piece::Matching).is_ok()
    }

    /// Reads everything once, and finds what the base has of it. `None` when nobody listens.
    fn find(
        &self,
        reader: &ContentReader,
        coarse: Index,
        mut fine: mpsc::Receiver<Index>,
    ) -> Result<Option<(Vec<Copy>, RootBuilder)>, ReadError> {
        let size = reader.size();
        let (mut root, mut copies) = (RootBuilder::new(), Vec::new());
        let mut matcher = Matcher::new(&coarse, 0);
        let mut told = Instant::now();
        let mut bytes = Vec::with_capacity(RANGE_BYTES);
        for index in 0..range_count(size) {
            bytes.clear();
            root.push(reader.read_range(index, &mut bytes)?);
            matcher.push(&bytes, &mut copies);
            if !self.is_heard(&mut told) {
                return Ok(None);
            }
        }
        matcher.finish(&mut copies);
        drop(coarse);
        let sizes = BlockSizes::for_len(self.base.len);
        let mut stretches = unused(&copies, self.base.len, size, sizes);
        stretches.truncate(REFINE_MAX);
        if stretches.is_empty() {
            return Ok(Some((copies, root)));
        }
        if say(self.pieces, Piece::Refine(stretches)).is_err() {
            return Ok(None);
        }
        let Some(fine) = fine.blocking_recv() else {
            return Ok(None);
        };
        let mut more = Vec::new();
        let mut before = copies.iter().peekable();
        for gap in gaps(&copies, size) {
            let mut matcher = Matcher::new(&fine, gap.start);
            // What goes on behind the copy before is expected first.
            while let Some(copy) = before.next_if(|copy| copy.at + copy.len <= gap.start) {
                if copy.at + copy.len == gap.start {
                    matcher = Matcher::new(&fine, gap.start).expecting(copy.from + copy.len);
                }
            }
            let mut at = gap.start;
            while at < gap.end {
                bytes.clear();
                let step = (gap.end - at).min(RANGE_BYTES as u64) as usize;
                reader.read_at(at, step, &mut bytes)?;
                matcher.push(&bytes, &mut more);
                at += step as u64;
                if !self.is_heard(&mut told) {
                    return Ok(None);
                }
            }
            matcher.finish(&mut more);
        }
        Ok(Some((merge(&copies, &more), root)))
    }

    /// Sends what was found, and what was not.
    fn tell(
        &self,
        at: &ContentAt,
        reader: ContentReader,
        (copies, root): (Vec<Copy>, RootBuilder),
    ) -> Result<(), ServeError> {
        let size = reader.size();
        say(self.pieces, Piece::Copies(encode_copies(&copies)))?;
        let mut buffers = Buffers::default();
        let mut bytes = buffers.take(RANGE_BYTES);
        for gap in gaps(&copies, size) {
            let mut from = gap.start;
            while from < gap.end {
                let room = (RANGE_BYTES - bytes.len()) as u64;
                let step = (gap.end - from).min(room) as usize;
                if let Err(error) = reader.read_at(from, step, &mut bytes) {
                    return self.abandon(at, &error);
                }
                from += step as u64;
                if bytes.len() == RANGE_BYTES {
                    say(self.pieces, Piece::Literal(buffers.lend(bytes)))?;
                    bytes = buffers.take(RANGE_BYTES);
                }
            }
        }
        if !bytes.is_empty() {
            say(self.pieces, Piece::Literal(buffers.lend(bytes)))?;
        }
        let root = root
            .finish(size)
            .map_err(|e| ServeError::Source(chain(&e)))?;
        match Reader::Exact(reader).finish(self.served, at, Hash(root)) {
            Ok(()) => say(self.pieces, Piece::End(Hash(root))),
            Err(error) => self.abandon(at, &error),
        }
    }
}

/// Sends encoded copies, in frames.
pub(super) async fn send_copies(
    writer: &mut FrameWriter,
    encoded: Vec<u8>,
) -> Result<(), ServeError> {
    let bytes = encoded.len() as u64;
    super::write(writer, &PeerMessage::Difference { bytes }).await?;
    let mut left = Bytes::from(encoded);
    while !left.is_empty() {
        let part = left.split_to(left.len().min(COPIES_BYTES));
        writer.write(kind::COPIES, &[part]).await?;
    }
    Ok(())
}
