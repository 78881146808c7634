//! Pulling a content as its difference to what is here: the other end of `serve/delta`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cdsync_core::ledger::object::Hash;
use cdsync_core::replica::{FetchResult, FetchWant, Place};
use cdsync_core::wire::{
    Base, ContentHeader, DIFFERENCE_MIN_BYTES, PeerMessage, SIGNATURES_MAX_BYTES, kind,
};
use cdsync_delta::{
    BLOCK_SIGNATURE_BYTES, BlockSizes, Copy, DeltaKey, Piece, RANGE_BYTES, RootBuilder,
    decode_copies, pieces, range_count, range_hash, range_span, sign_block,
};
use cdsync_fs::{ApplyError, BaseReader, StagedWriter};
use cdsync_transport::{FrameReader, FrameWriter};
use tokio::sync::mpsc;

use super::disk::Disk;
use super::link::write;
use super::pull::{
    BROKEN, Failure, Fetch, Pulled, WRITE_BEHIND, broken, frame, interrupted, message_of, staged_as,
};
use crate::source::chain;

/// How many times longer than the content a base may be.
const BASE_TIMES_MAX: u64 = 4;
/// How long encoded copies may be, in bytes: each takes 30 at most.
const COPIES_MAX_BYTES: u64 = 4 << 20;
/// After how much of a base what was signed is sent, in bytes.
const SIGN_STEP_BYTES: u64 = 64 << 20;

impl Fetch {
    /// Pulls one content as its difference to what is at its name. `None` when that is no use: it is
    /// to be pulled whole.
    pub(super) async fn difference(
        &self,
        want: &FetchWant,
        place: &Place,
    ) -> Option<Result<Pulled, Failure>> {
        if want.size < DIFFERENCE_MIN_BYTES {
            return None;
        }
        let (disk, at) = (Arc::clone(&self.disk), place.clone());
        let base = tokio::task::spawn_blocking(move || disk.base(&at)).await;
        let most = want.size.saturating_mul(BASE_TIMES_MAX);
        let base = base.ok().flatten();
        let base = base.filter(|base| (DIFFERENCE_MIN_BYTES..=most).contains(&base.len()))?;
        let mut moved = 0;
        match self.exchange(want, Arc::new(base), &mut moved).await {
            Err(Failure::OfNoUse(why)) => {
                tracing::debug!(object = ?want.object, why, "its difference is of no use");
                None
            }
            Err(Failure::Interrupted) => {
                // Whatever it was, the whole needs neither side to wait for the other's disk.
                tracing::debug!(object = ?want.object, "its difference was interrupted");
                None
            }
            Ok((result, staged)) => {
                let path = place.folder.path.join(&place.name);
                let size = staged.size();
                let note =
                    format!("{path}: {moved} bytes were exchanged for the difference of {size}");
                Some(Ok((result, staged, Some(note))))
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    async fn exchange(
        &self,
        want: &FetchWant,
        base: Arc<BaseReader>,
        moved: &mut u64,
    ) -> Result<(FetchResult, StagedWriter), Failure> {
        let mut key = [0; 32];
        if getrandom::fill(&mut key).is_err() {
            return Err(Failure::OfNoUse("there is no randomness".to_owned()));
        }
        let (mut writer, mut reader) = self.open().await?;
        let signed = Signed {
            base: Arc::clone(&base),
            key,
        };
        let asked = PeerMessage::FetchDifference(
            self.request(want),
            Base {
                len: base.len(),
                key,
            },
        );
        write(&mut writer, &asked).await.map_err(interrupted)?;
        let sizes = BlockSizes::for_len(base.len());
        let whole = sizes.blocks(base.len()) * u64::from(sizes.coarse);
        *moved += signed
            .send(
                &mut writer,
                sizes.coarse,
                std::iter::once(0..whole).collect(),
            )
            .await?;
        let header = self.header(want, &mut reader).await?;
        let mut refined = false;
        let encoded = loop {
            let next = frame(&mut reader).await?;
            if next.kind == kind::RANGE {
                // It is sent whole: it changes all the time.
                *moved += header.size;
                return self.ranges(header, &mut reader, Some(next)).await;
            }
            match message_of(&next)? {
                PeerMessage::Matching => {}
                PeerMessage::Refine { stretches } if !refined => {
                    refined = true;
                    let stretches = checked(stretches, base.len(), sizes.fine)?;
                    *moved += signed.send(&mut writer, sizes.fine, stretches).await?;
                }
                PeerMessage::Difference { bytes } if bytes <= COPIES_MAX_BYTES => {
                    break copies(&mut reader, bytes).await?;
                }
                PeerMessage::Abandon => return Err(Failure::Answer(FetchResult::Unsettled)),
                PeerMessage::Refused { .. } => return Err(Failure::Interrupted),
                // It is sent whole, and is empty by now.
                PeerMessage::ContentEnd { .. } if header.size == 0 => {
                    return Err(Failure::OfNoUse("there is nothing left".to_owned()));
                }
                _ => return Err(broken(BROKEN)),
            }
        };
        // What was signed is all that the upstream is told.
        writer.finish().await.map_err(interrupted)?;
        *moved += encoded.len() as u64;
        let copies = decode_copies(&encoded, base.len(), header.size)
            .map_err(|_| broken("the upstream sent copies that cannot be"))?;
        drop(encoded);
        let copied: u64 = copies.iter().map(|copy| copy.len).sum();
        let literal = header.size - copied;
        *moved += literal;
        self.rebuild(header, base, (copies, literal), &mut reader)
            .await
    }

    /// Puts together what is here, by the copies, and the `left` bytes that are to come.
    async fn rebuild(
        &self,
        header: ContentHeader,
        base: Arc<BaseReader>,
        (copies, mut left): (Vec<Copy>, u64),
        reader: &mut FrameReader,
    ) -> Result<(FetchResult, StagedWriter), Failure> {
        let (literals, inbox) = mpsc::channel(WRITE_BEHIND);
        let disk = Arc::clone(&self.disk);
        let wanted = Wanted(Arc::new(AtomicBool::new(true)));
        let goes_on = Arc::clone(&wanted.0);
        // It ends by itself when this is dropped.
        let build = tokio::task::spawn_blocking(move || {
            build(&disk, header.size, &base, &copies, inbox, &goes_on)
        });
        let mut told = None;
        while left > 0 {
            let next = frame(reader).await?;
            if next.kind != kind::LITERAL {
                told = Some(next);
                break;
            }
            let len = next.payload.len() as u64;
            if len == 0 || len > left || next.payload.len() > RANGE_BYTES {
                return Err(broken(BROKEN));
            }
            left -= len;
            // A closed channel: building failed, and says why below.
            if literals.send(next.payload).await.is_err() {
                break;
            }
        }
        drop(literals);
        let built = match build.await.map_err(interrupted)? {
            Ok(built) => Some(built),
            // What comes says whose fault it is.
            Err(Unbuilt::Short) => None,
            Err(Unbuilt::Base) => {
                return Err(Failure::OfNoUse("what is here was changed".to_owned()));
            }
            Err(Unbuilt::Disk(reason)) => return Err(broken(reason)),
        };
        let last = match told {
            Some(frame) => frame,
            None => frame(reader).await?,
        };
        match (message_of(&last)?, built) {
            (PeerMessage::Abandon, _) => Err(Failure::Answer(FetchResult::Unsettled)),
            (PeerMessage::Refused { .. }, _) => Err(Failure::Interrupted),
            (PeerMessage::ContentEnd { root }, Some((staged, built))) if built == Some(root) => {
                Ok((staged_as(&header, root), staged))
            }
            (PeerMessage::ContentEnd { .. }, Some(_)) => {
                // Somebody wrote to what is here, or two blocks look the same.
                Err(Failure::OfNoUse(
                    "what was built is another content".to_owned(),
                ))
            }
            _ => Err(broken(BROKEN)),
        }
    }
}

/// Says, when it is dropped, that nobody wants what is being built.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The stretches that an upstream wants to be signed finely: of whole blocks, in order.
fn checked(stretches: Vec<(u64, u64)>, len: u64, block: u32) -> Result<Vec<Range<u64>>, Failure> {
    let block = u64::from(block);
    let mut end = 0;
    let mut checked = Vec::with_capacity(stretches.len());
    for (from, to) in stretches {
        let fits = from >= end && from < to && to <= len;
        if !fits || (to - from) % block != 0 {
            return Err(broken(BROKEN));
        }
        end = to;
        checked.push(from..to);
    }
    Ok(checked)
}

/// So many bytes of encoded copies.
async fn copies(reader: &mut FrameReader, bytes: u64) -> Result<Vec<u8>, Failure> {
    let mut encoded = Vec::new();
    while (encoded.len() as u64) < bytes {
        let next = frame(reader).await?;
        let fits = encoded.len() as u64 + next.payload.len() as u64 <= bytes;
        if next.kind != kind::COPIES || next.payload.is_empty() || !fits {
            return Err(broken(BROKEN));
        }
        encoded.extend_from_slice(&next.payload);
    }
    Ok(encoded)
}

/// A base and the secret by which it is signed.
struct Signed {
    base: Arc<BaseReader>,
    key: [u8; 32],
}

impl Signed {
    /// Sends the signatures of stretches of the base, as they are made. Returns how many bytes.
    async fn send(
        &self,
        writer: &mut FrameWriter,
        block: u32,
        stretches: Vec<Range<u64>>,
    ) -> Result<u64, Failure> {
        let mut bytes = 0;
        let (frames, mut next) = mpsc::channel(WRITE_BEHIND);
        let (base, key) = (Arc::clone(&self.base), DeltaKey(self.key));
        let work =
            tokio::task::spawn_blocking(move || sign(&base, &key, block, stretches, &frames));
        while let Some(signatures) = next.recv().await {
            bytes += signatures.len() as u64;
            let sent = writer.write(kind::SIGNATURES, &[signatures]).await;
            sent.map_err(interrupted)?;
        }
        let done = work.await.map_err(interrupted)?;
        done.map(|()| bytes).map_err(Failure::OfNoUse)
    }
}

fn sign(
    base: &BaseReader,
    key: &DeltaKey,
    block: u32,
    stretches: Vec<Range<u64>>,
    frames: &mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let mut signatures = Vec::with_capacity(SIGNATURES_MAX_BYTES);
    let mut bytes = Vec::new();
    let step = u64::from(block).max(RANGE_BYTES as u64);
    let mut unsent = 0;
    for stretch in stretches {
        let mut at = stretch.start;
        while at < stretch.end {
            if frames.is_closed() {
                // Nobody listens any more.
                return Ok(());
            }
            let len = step.min(stretch.end - at);
            bytes.clear();
            base.read_at(at, len as usize, &mut bytes)
                .map_err(|error| chain(&error))?;
            at += len;
            unsent += len;
            for block in bytes.chunks_exact(block as usize) {
                sign_block(key, block, &mut signatures);
                if signatures.len() + BLOCK_SIGNATURE_BYTES > SIGNATURES_MAX_BYTES {
                    unsent = 0;
                    hand_over(&mut signatures, frames);
                }
            }
            if unsent >= SIGN_STEP_BYTES {
                unsent = 0;
                hand_over(&mut signatures, frames);
            }
        }
    }
    hand_over(&mut signatures, frames);
    Ok(())
}

/// Sends what was signed, if there is any and somebody listens.
fn hand_over(signatures: &mut Vec<u8>, frames: &mpsc::Sender<Bytes>) {
    if !signatures.is_empty() {
        let more = Vec::with_capacity(SIGNATURES_MAX_BYTES);
        // Who does not listen is met by the next look.
        let _ = frames.blocking_send(Bytes::from(std::mem::replace(signatures, more)));
    }
}

/// Why a content was not built.
enum Unbuilt {
    /// What is here failed or changed.
    Base,
    /// Too few bytes came.
    Short,
    /// This disk takes nothing.
    Disk(String),
}

/// Writes the content in its order, and tells its hash.
fn build(
    disk: &Disk,
    size: u64,
    base: &BaseReader,
    copies: &[Copy],
    mut inbox: mpsc::Receiver<Bytes>,
    goes_on: &AtomicBool,
) -> Result<(StagedWriter, Option<Hash>), Unbuilt> {
    let told = |error: ApplyError| Unbuilt::Disk(chain(&error));
    let stager = disk.fetch_stager().map_err(told)?;
    let writer = disk.with_room(size, || stager.large(size)).map_err(told)?;
    let mut root = RootBuilder::new();
    let mut pieces = pieces(copies, size);
    let mut piece = pieces.next();
    let mut literal = Bytes::new();
    let mut bytes = Vec::with_capacity(RANGE_BYTES);
    for index in 0..range_count(size) {
        let span = range_span(index, size);
        let len = (span.end - span.start) as usize;
        if !goes_on.load(Ordering::Relaxed) {
            return Err(Unbuilt::Short);
        }
        bytes.clear();
        while bytes.len() < len {
            let room = (len - bytes.len()) as u64;
            match &mut piece {
                Some(Piece::Copy { len: 0, .. } | Piece::Literal { len: 0 }) => {
                    piece = pieces.next();
                }
                Some(Piece::Copy { from, len }) => {
                    let step = room.min(*len);
                    base.read_at(*from, step as usize, &mut bytes)
                        .map_err(|_| Unbuilt::Base)?;
                    *from += step;
                    *len -= step;
                }
                Some(Piece::Literal { len }) => {
                    if literal.is_empty() {
                        literal = inbox.blocking_recv().ok_or(Unbuilt::Short)?;
                    }
                    let step = room.min(*len).min(literal.len() as u64);
                    bytes.extend_from_slice(&literal.split_to(step as usize));
                    *len -= step;
                }
                None => return Err(Unbuilt::Short),
            }
        }
        root.push(range_hash(index, &bytes, size <= RANGE_BYTES as u64));
        let left = size - span.start;
        disk.with_room(left, || writer.write_range(index, &bytes))
            .map_err(told)?;
    }
    let root = root.finish(size).ok().map(Hash);
    Ok((writer, root))
}
