//! Frames over a stream: `[u32 payload length, little-endian][u8 kind][payload]`.
//!
//! The kinds are the caller's. A length beyond the reader's maximum is refused before anything is
//! allocated for it; memory is taken as bytes come in, not as lengths are announced.
//!
//! Both directions are measured by progress: a peer that takes or brings less than
//! [`PACE_BYTES`] of a frame in a [`PATIENCE`] is given up, however large the frame is.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};

use crate::connection::{RecvHalf, SendHalf};
use crate::error::{CloseCode, Fault, RecvError, Retry, SendError};

/// Bytes before each payload.
pub const FRAME_HEADER_BYTES: usize = 5;

/// The default maximum of a payload: room for a batch of a mebibyte with its records, and for
/// sixteen content ranges.
pub const MAX_FRAME_PAYLOAD_BYTES: usize = 4 * 1024 * 1024;

/// Payloads below this are copied behind their header into one buffer: one piece less to queue.
const INLINE_BYTES: usize = 1024;

/// Pieces taken from the stream at once: about 45 KiB at an MTU of 1,500, 200 KiB at 6,500.
const RECV_SLOTS: usize = 32;

/// Payloads from this size on share a buffer that is used again once its last payload is gone.
/// Smaller ones get their own: a small payload that is kept must not hold a large buffer.
const SHARED_BUFFER_BYTES: usize = 16 * 1024;

/// How long a peer may take for [`PACE_BYTES`] of a frame, by default.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a peer must take or bring of a frame within a [`PATIENCE`], or else the rest of it: 273 bytes a
/// second, which no link that anybody uses is below.
pub const PACE_BYTES: u64 = 16 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The payload is over the maximum.
    #[error("a frame of kind {kind} has {len} bytes, at most {max} are allowed")]
    TooLarge {
        /// The frame's kind.
        kind: u8,
        /// Its payload length in bytes.
        len: usize,
        /// The maximum in force.
        max: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, {missing} bytes short")]
    Truncated {
        /// How many bytes are missing at least.
        missing: usize,
    },
    /// The peer takes, or brings, less of a frame than it must.
    #[error("the peer moved {moved} bytes of a frame in {within:?}, which is too slow")]
    Stalled {
        /// How many.
        moved: u64,
        /// In which time.
        within: Duration,
    },
    /// The peer brings nothing at all.
    #[error("the peer said nothing for {after:?}")]
    Silent {
        /// How long.
        after: Duration,
    },
    /// Receiving failed.
    #[error(transparent)]
    Recv(#[from] RecvError),
    /// Sending failed.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl FrameError {
    /// Whether a new stream (or connection) may fare better.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::TooLarge { .. } => Retry::Never,
            Self::Truncated { .. } | Self::Stalled { .. } | Self::Silent { .. } => Retry::Backoff,
            Self::Recv(e) => e.retry(),
            Self::Send(e) => e.retry(),
        }
    }

    /// Whose fault it is. A frame too large to write is told apart by the caller, who wrote it.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::TooLarge { .. } | Self::Truncated { .. } | Self::Stalled { .. } => Fault::Peer,
            Self::Silent { .. } => Fault::Network,
            Self::Recv(e) => e.fault(),
            Self::Send(e) => e.fault(),
        }
    }
}

/// One frame as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The caller's kind.
    pub kind: u8,
    /// The payload, at most the reader's maximum.
    pub payload: Bytes,
}

/// Writes frames to a stream.
#[derive(Debug)]
pub struct FrameWriter {
    half: Box<dyn SendHalf>,
    max_payload_bytes: usize,
    patience: Duration,
    /// What is still to be sent of frames that were begun.
    pending: Vec<Bytes>,
}

impl FrameWriter {
    /// Writes to `half`, with payloads of at most [`MAX_FRAME_PAYLOAD_BYTES`].
    #[must_use]
    pub fn new(half: Box<dyn SendHalf>) -> Self {
        Self {
            half,
            max_payload_bytes: MAX_FRAME_PAYLOAD_BYTES,
            patience: PATIENCE,
            pending: Vec::new(),
        }
    }

    /// Sets how long the peer may take for [`PACE_BYTES`]; default [`PATIENCE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets the maximum payload in bytes; default [`MAX_FRAME_PAYLOAD_BYTES`], at most `u32::MAX`.
    /// The reader at the other end must allow it.
    #[must_use]
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = bytes.min(u32::MAX as usize);
        self
    }

    /// Writes one frame whose payload is all `parts` in order. Large parts are not copied, only
    /// shared.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] (nothing was written, the stream is still good),
    /// [`FrameError::Stalled`] or [`FrameError::Send`].
    ///
    /// # Cancel safety
    /// Safe in this sense: once polled, the frame is in the writer and goes out whole, its rest
    /// before the next frame or at [`FrameWriter::flush`]. Do not write it again.
    pub async fn write(&mut self, kind: u8, parts: &[Bytes]) -> Result<(), FrameError> {
        self.queue(kind, parts)?;
        self.flush().await
    }

    /// Sends what an abandoned [`FrameWriter::write`] left.
    ///
    /// # Errors
    /// [`FrameError::Stalled`] or [`FrameError::Send`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        while !self.pending.is_empty() {
            let before = self.half.taken_bytes();
            let sending = timeout(self.patience, self.half.send(&mut self.pending));
            if let Ok(sent) = sending.await {
                sent?;
                self.pending.clear();
                break;
            }
            let moved = self.half.taken_bytes() - before;
            if moved < PACE_BYTES {
                let within = self.patience;
                return Err(FrameError::Stalled { moved, within });
            }
        }
        Ok(())
    }

    fn queue(&mut self, kind: u8, parts: &[Bytes]) -> Result<(), FrameError> {
        let max = self.max_payload_bytes;
        let len = parts.iter().map(Bytes::len).sum();
        let too_large = FrameError::TooLarge { kind, len, max };
        let Some(wire_len) = u32::try_from(len).ok().filter(|_| len <= max) else {
            return Err(too_large);
        };
        let inline = len <= INLINE_BYTES;
        let mut head = BytesMut::with_capacity(FRAME_HEADER_BYTES + if inline { len } else { 0 });
        head.put_u32_le(wire_len);
        head.put_u8(kind);
        if inline {
            parts.iter().for_each(|part| head.put_slice(part));
        }
        self.pending.push(head.freeze());
        if !inline {
            self.pending
                .extend(parts.iter().filter(|part| !part.is_empty()).cloned());
        }
        Ok(())
    }

    /// Sends the rest, if any, and says that no frame follows.
    ///
    /// # Errors
    /// [`FrameError::Send`].
    ///
    /// # Cancel safety
    /// Safe: call it again.
    pub async fn finish(&mut self) -> Result<(), FrameError> {
        self.flush().await?;
        Ok(self.half.finish()?)
    }

    /// Gives the stream up.
    pub fn reset(&mut self, code: CloseCode) {
        self.pending.clear();
        self.half.reset(code);
    }
}

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    half: Box<dyn RecvHalf>,
    max_payload_bytes: usize,
    slots: Box<[Bytes]>,
    /// The slots not yet consumed.
    ready: std::ops::Range<usize>,
    header: [u8; FRAME_HEADER_BYTES],
    header_len: usize,
    /// The payload so far; meaningful once the header is complete.
    body: BytesMut,
    /// Backs large payloads, see [`SHARED_BUFFER_BYTES`].
    shared: BytesMut,
    patience: Duration,
    /// Since when how much came of the frame that was begun.
    pace: Option<Pace>,
    heard: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    since: Instant,
    moved: u64,
}

impl FrameReader {
    /// Reads from `half`, refusing payloads over [`MAX_FRAME_PAYLOAD_BYTES`].
    #[must_use]
    pub fn new(half: Box<dyn RecvHalf>) -> Self {
        Self {
            half,
            max_payload_bytes: MAX_FRAME_PAYLOAD_BYTES,
            slots: vec![Bytes::new(); RECV_SLOTS].into(),
            ready: 0..0,
            header: [0; FRAME_HEADER_BYTES],
            header_len: 0,
            body: BytesMut::new(),
            shared: BytesMut::new(),
            patience: PATIENCE,
            pace: None,
            heard: Instant::now(),
        }
    }

    /// Sets how long the peer may take for [`PACE_BYTES`] of a frame that it has begun; default
    /// [`PATIENCE`]. How long it may take to begin one is the caller's.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// When something came last, be it a part of a frame; at first, when this was made.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Sets the maximum payload in bytes; default [`MAX_FRAME_PAYLOAD_BYTES`]. Worst-case memory of
    /// a reader is this plus the stream's receive window.
    #[must_use]
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = bytes;
        self
    }

    /// The next frame, `None` when the stream ended after a whole one.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] (also at every further call), [`FrameError::Truncated`],
    /// [`FrameError::Stalled`], [`FrameError::Recv`].
    ///
    /// # Cancel safety
    /// Safe: what was received stays in the reader.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        // While nobody waited here, nobody measured.
        self.pace = self
            .pace
            .filter(|pace| pace.since.elapsed() < self.patience);
        loop {
            if let Some(frame) = self.take_ready()? {
                self.pace = None;
                return Ok(Some(frame));
            }
            match self.receive().await? {
                Some(filled) => self.ready = 0..filled,
                None if self.header_len == 0 => return Ok(None),
                None => {
                    return Err(FrameError::Truncated {
                        missing: self.missing(),
                    });
                }
            }
        }
    }

    /// As [`FrameReader::next`], but from a peer that is given up when nothing comes for `silence`;
    /// a frame that comes slowly is not silence.
    ///
    /// # Errors
    /// As [`FrameReader::next`], and [`FrameError::Silent`].
    ///
    /// # Cancel safety
    /// Safe: what was received stays in the reader.
    pub async fn next_within(&mut self, silence: Duration) -> Result<Option<Frame>, FrameError> {
        let mut heard = Instant::now();
        loop {
            if let Ok(frame) = timeout_at(heard + silence, self.next()).await {
                return frame;
            }
            if self.heard <= heard {
                return Err(FrameError::Silent { after: silence });
            }
            heard = self.heard;
        }
    }

    /// The next pieces; those of a frame that was begun must come at a pace.
    async fn receive(&mut self) -> Result<Option<usize>, FrameError> {
        if self.header_len == 0 {
            let filled = self.half.recv_many(&mut self.slots).await?;
            self.heard = Instant::now();
            return Ok(filled);
        }
        let fresh = Pace {
            since: Instant::now(),
            moved: 0,
        };
        let pace = self.pace.get_or_insert(fresh);
        let receiving = timeout_at(
            pace.since + self.patience,
            self.half.recv_many(&mut self.slots),
        );
        let received = receiving.await.ok().transpose()?;
        let now = Instant::now();
        if let Some(Some(filled)) = received {
            self.heard = now;
            pace.moved += self.slots[..filled]
                .iter()
                .map(|s| s.len() as u64)
                .sum::<u64>();
        }
        if now >= pace.since + self.patience {
            let (moved, within) = (pace.moved, self.patience);
            if moved < PACE_BYTES && received.is_none_or(|filled| filled.is_some()) {
                return Err(FrameError::Stalled { moved, within });
            }
            self.pace = None;
        }
        Ok(received.unwrap_or(Some(0)))
    }

    /// Tells the sender to stop.
    pub fn stop(&mut self, code: CloseCode) {
        self.half.stop(code);
    }

    /// Assembles a frame from the pieces at hand, as far as they go.
    fn take_ready(&mut self) -> Result<Option<Frame>, FrameError> {
        while self.header_len < FRAME_HEADER_BYTES {
            let missing = FRAME_HEADER_BYTES - self.header_len;
            let Some(piece) = self.take_piece(missing) else {
                return Ok(None);
            };
            let end = self.header_len + piece.len();
            self.header[self.header_len..end].copy_from_slice(&piece);
            self.header_len = end;
        }
        self.begin_body()?;
        while self.missing() > 0 {
            let Some(piece) = self.take_piece(self.missing()) else {
                return Ok(None);
            };
            self.body.extend_from_slice(&piece);
        }
        Ok(Some(self.finish_frame()))
    }

    /// At most `max` bytes of the first piece not yet consumed.
    fn take_piece(&mut self, max: usize) -> Option<Bytes> {
        let slot = self
            .slots
            .get_mut(self.ready.start)
            .filter(|_| !self.ready.is_empty())?;
        if slot.len() > max {
            return Some(slot.split_to(max));
        }
        self.ready.start += 1;
        Some(std::mem::take(slot))
    }

    fn payload_len(&self) -> usize {
        let [a, b, c, d, _] = self.header;
        u32::from_le_bytes([a, b, c, d]) as usize
    }

    fn missing(&self) -> usize {
        if self.header_len < FRAME_HEADER_BYTES {
            return FRAME_HEADER_BYTES - self.header_len;
        }
        self.payload_len() - self.body.len()
    }

    /// Checks the announced length, then takes a buffer for it unless there is one. The memory
    /// behind the buffer is touched, and so really used, only as the payload comes in.
    fn begin_body(&mut self) -> Result<(), FrameError> {
        let (len, max) = (self.payload_len(), self.max_payload_bytes);
        if len > max {
            return Err(FrameError::TooLarge {
                kind: self.header[4],
                len,
                max,
            });
        }
        if self.body.capacity() < len {
            self.body = if len >= SHARED_BUFFER_BYTES {
                self.shared.reserve(len);
                std::mem::take(&mut self.shared)
            } else {
                BytesMut::with_capacity(len)
            };
        }
        Ok(())
    }

    fn finish_frame(&mut self) -> Frame {
        let mut body = std::mem::take(&mut self.body);
        let payload = body.split().freeze();
        if payload.len() >= SHARED_BUFFER_BYTES {
            // What is left of the buffer leads back to its allocation once `payload` is dropped.
            self.shared = body;
        }
        self.header_len = 0;
        Frame {
            kind: self.header[4],
            payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::connection::BoxFuture;

    /// Gives out prepared pieces, then the end.
    #[derive(Debug)]
    struct Pieces(VecDeque<Bytes>);

    impl RecvHalf for Pieces {
        fn recv_many<'a>(
            &'a mut self,
            slots: &'a mut [Bytes],
        ) -> BoxFuture<'a, Result<Option<usize>, RecvError>> {
            let mut filled = 0;
            while filled < slots.len() {
                let Some(piece) = self.0.pop_front() else {
                    break;
                };
                slots[filled] = piece;
                filled += 1;
            }
            Box::pin(std::future::ready(Ok((filled > 0).then_some(filled))))
        }

        fn stop(&mut self, _code: CloseCode) {}
    }

    /// Keeps what it is sent.
    #[derive(Debug, Default)]
    struct Sink(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl SendHalf for Sink {
        fn send<'a>(&'a mut self, parts: &'a mut [Bytes]) -> BoxFuture<'a, Result<(), SendError>> {
            let mut all = self.0.lock().unwrap();
            parts.iter().for_each(|part| all.extend_from_slice(part));
            Box::pin(std::future::ready(Ok(())))
        }

        fn taken_bytes(&self) -> u64 {
            self.0.lock().unwrap().len() as u64
        }

        fn finish(&mut self) -> Result<(), SendError> {
            Ok(())
        }

        fn reset(&mut self, _code: CloseCode) {}
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    /// Proves the bytes of a frame, which other versions of the program read.
    #[test]
    fn wire_format() {
        let sink = Sink::default();
        let written = std::sync::Arc::clone(&sink.0);
        let mut writer = FrameWriter::new(Box::new(sink));
        let parts = [
            Bytes::from_static(b"ab"),
            Bytes::new(),
            Bytes::from_static(b"c"),
        ];
        run(writer.write(0x2a, &parts)).unwrap();
        run(writer.write(0, &[])).unwrap();
        // 03 00 00 00 = three bytes, 2a = kind, then the payload; then an empty frame of kind 0.
        assert_eq!(*written.lock().unwrap(), b"\x03\0\0\0\x2aabc\0\0\0\0\0");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Proves that frames come out as they went in, however the stream is cut into pieces, and
        /// that payloads which are kept are not overwritten by later ones.
        #[test]
        fn any_cut_gives_the_same_frames(
            lens in prop::collection::vec(prop_oneof![0usize..40, 15_000usize..40_000], 0..12),
            cuts in prop::collection::vec(1usize..9_000, 1..20),
        ) {
            let payload = |i: usize, len: usize| {
                Bytes::from((0..len).map(|b| (b * 31 + i) as u8).collect::<Vec<_>>())
            };
            let sink = Sink::default();
            let written = std::sync::Arc::clone(&sink.0);
            let mut writer = FrameWriter::new(Box::new(sink));
            for (i, &len) in lens.iter().enumerate() {
                run(writer.write(i as u8, &[payload(i, len)])).unwrap();
            }
            let mut rest = Bytes::from(std::mem::take(&mut *written.lock().unwrap()));
            let mut pieces = VecDeque::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                pieces.push_back(rest.split_to((*cut).min(rest.len())));
            }
            let mut reader = FrameReader::new(Box::new(Pieces(pieces)));
            let mut frames = Vec::new();
            while let Some(frame) = run(reader.next()).unwrap() {
                frames.push(frame);
            }
            prop_assert_eq!(frames.len(), lens.len());
            for (i, (frame, &len)) in frames.iter().zip(&lens).enumerate() {
                prop_assert_eq!(frame.kind, i as u8);
                prop_assert!(frame.payload == payload(i, len));
            }
        }
    }

    /// Proves that a large buffer is used again once its payload is gone, and not before.
    #[test]
    fn large_buffers_are_shared() {
        let frame = |byte: u8| {
            let mut bytes = vec![0, 0, 1, 0, 1];
            bytes.resize(5 + (1 << 16), byte);
            Bytes::from(bytes)
        };
        let pieces = [frame(1), frame(2), frame(3)].into();
        let mut reader = FrameReader::new(Box::new(Pieces(pieces)));
        let first = run(reader.next()).unwrap().unwrap().payload;
        let place = first.as_ptr();
        let kept = run(reader.next()).unwrap().unwrap().payload;
        assert_ne!(kept.as_ptr(), place);
        assert!(first.iter().all(|&b| b == 1), "overwritten while in use");
        let second_place = kept.as_ptr();
        drop((first, kept));
        let third = run(reader.next()).unwrap().unwrap().payload;
        assert_eq!(
            third.as_ptr(),
            second_place,
            "the last buffer was free to be used again"
        );
    }
}
