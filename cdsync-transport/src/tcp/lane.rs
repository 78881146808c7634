//! A lane: one TCP connection under TLS that carries messages, one to a record.
//!
//! ```text
//!   record content = [u8 kind][body]      the record says how long it is
//! ```
//!
//! Sending and receiving have locks of their own, held while records are protected and while the
//! socket is asked without waiting, never over an await.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustix::net::{Shutdown, shutdown};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::sleep;

use super::handshake::Secured;
use super::record::{CONTENT_MAX_BYTES, Opened, Opener, RECORD_MAX_BYTES, Sealer};
use crate::error::{CloseCode, CloseReason};
use crate::limit::PeerPlace;

/// What is protected before it is given to the kernel in one call.
const SEND_BYTES: usize = 256 * 1024;

/// The largest read in one call, and with room for the start of a record the largest buffer.
const READ_MAX_BYTES: usize = 256 * 1024;

/// The first read of a stream: one record and a bit. It doubles while reads come back full.
const READ_MIN_BYTES: usize = RECORD_MAX_BYTES + 1024;

/// What may be opened and not yet taken, when only the sender looks (for a stop): at most this and
/// one read.
const HELD_MAX_BYTES: usize = 1024 * 1024;

/// What a piece costs beside its bytes.
const PIECE_BYTES: usize = 64;

/// What a lane on which little moves may keep of buffers, for each direction.
const IDLE_BUFFER_BYTES: usize = 64 * 1024;

/// How long a large buffer waits for more to receive.
const IDLE_BUFFER_WAIT: Duration = Duration::from_secs(1);

/// Reads that are thrown away at once.
const DISCARD_READS: usize = 8;

/// Parts gathered into one record.
const GATHER_MAX: usize = 32;

/// Records without content that may come in a row: new keys, and stops.
const NOISE_MAX: u32 = 1024;

/// The kinds of messages. On streams:
pub(super) mod kind {
    /// Bytes of the stream.
    pub(crate) const DATA: u8 = 0;
    /// The sender's end; nothing follows.
    pub(crate) const FINISH: u8 = 1;
    /// The sender gave up: `[u32 code]`.
    pub(crate) const RESET: u8 = 2;
    /// To the sender: `[u32 number of the stream on this lane][u32 code]`.
    pub(crate) const STOP: u8 = 3;
    /// By who accepted the stream: it is done with it, and the lane free for the next.
    pub(crate) const RELEASE: u8 = 10;
    /// First on each lane, by its dialler: `[16 connection][u8 purpose]`.
    pub(crate) const HELLO: u8 = 4;
    /// Answer to the hello of a control lane. This and what follows travel on control lanes only.
    pub(crate) const WELCOME: u8 = 5;
    /// `[u64 anything]`.
    pub(crate) const PING: u8 = 6;
    /// The same back.
    pub(crate) const PONG: u8 = 7;
    /// The connection ends: `[u32 code][text]`.
    pub(crate) const CLOSE: u8 = 8;
    /// The dialler of the connection is asked for a lane on which the acceptor may open streams.
    pub(crate) const DIAL: u8 = 9;
}

/// Why a lane is of no more use.
#[derive(Debug, Error)]
pub(super) enum LaneError {
    #[error("{0}")]
    Io(io::Error),
    #[error("it ended in the midst of a stream")]
    Eof,
    #[error("{0}")]
    Tls(rustls::Error),
    #[error("received fatal alert: {0:?}")]
    Alert(rustls::AlertDescription),
    #[error("{0}")]
    Protocol(&'static str),
}

impl LaneError {
    /// What it says of the connection; `None`: nothing, only this lane is gone.
    pub(super) fn reason(&self) -> Option<CloseReason> {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                Some(CloseReason::TimedOut)
            }
            Self::Io(_) | Self::Eof => None,
            other => Some(CloseReason::Protocol {
                detail: crate::error::peer_text(other.to_string().as_bytes()),
            }),
        }
    }
}

/// How the peer's direction of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Finished,
    Reset(CloseCode),
}

/// What all lanes of a connection have moved, with all overhead.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

/// The sending direction.
#[derive(Debug)]
pub(super) struct Tx {
    sealer: Sealer,
    out: Vec<u8>,
    written: usize,
    /// All that the kernel took.
    pub(super) sent_bytes: u64,
    /// A task writes what is left.
    pub(super) flushing: bool,
}

impl Tx {
    pub(super) fn is_flushed(&self) -> bool {
        self.written == self.out.len()
    }

    /// Queues one message.
    pub(super) fn put(&mut self, kind: u8, body: &[&[u8]]) -> Result<(), LaneError> {
        let mut chunks: [&[u8]; 4] = [&[]; 4];
        chunks[0] = std::slice::from_ref(&kind);
        chunks[1..=body.len()].copy_from_slice(body);
        self.sealer
            .seal(&chunks[..=body.len()], &mut self.out)
            .map_err(LaneError::Tls)
    }

    /// Takes a buffer for `parts`, and gives a large one back when little is sent: the bulk is over.
    fn fit(&mut self, parts: &[Bytes]) {
        let wanted: usize = parts.iter().map(Bytes::len).sum();
        let idle = self.out.is_empty() && self.out.capacity() > IDLE_BUFFER_BYTES;
        if idle && wanted < CONTENT_MAX_BYTES {
            self.out = Vec::new();
        }
        self.out.reserve(wanted.min(SEND_BYTES) + RECORD_MAX_BYTES);
    }

    /// Takes bytes of a stream from the front of `parts` until there is enough for one write.
    fn fill(&mut self, parts: &mut [Bytes]) -> Result<(), LaneError> {
        let mut first = 0;
        while self.out.len() < SEND_BYTES {
            while parts.get(first).is_some_and(Bytes::is_empty) {
                first += 1;
            }
            let rest = &mut parts[first..];
            if rest.is_empty() {
                break;
            }
            let mut chunks: [&[u8]; GATHER_MAX] = [&[]; GATHER_MAX];
            chunks[0] = &[kind::DATA];
            let (mut used, mut room) = (1, CONTENT_MAX_BYTES - 1);
            for part in rest.iter() {
                if used == GATHER_MAX || room == 0 {
                    break;
                }
                chunks[used] = &part[..part.len().min(room)];
                room -= chunks[used].len();
                used += 1;
            }
            self.sealer
                .seal(&chunks[..used], &mut self.out)
                .map_err(LaneError::Tls)?;
            let mut taken = CONTENT_MAX_BYTES - 1 - room;
            for part in rest {
                let step = part.len().min(taken);
                part.advance(step);
                taken -= step;
                if taken == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The receiving direction.
#[derive(Debug)]
pub(super) struct Rx {
    opener: Opener,
    /// As received.
    buffer: BytesMut,
    read_bytes: usize,
    /// Of the current stream, opened and not yet taken.
    pieces: VecDeque<Bytes>,
    held_bytes: usize,
    end: Option<End>,
    /// The peer, who accepted the current stream, is done with it.
    released: bool,
    /// Which stream of this lane is the current one.
    number: u32,
    /// Records since the last one that brought a stream on.
    noise: u32,
}

impl Rx {
    /// Gives the buffer back, unless something is in it.
    fn shrink(&mut self) {
        self.read_bytes = READ_MIN_BYTES;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

impl Rx {
    /// Counts a record that carries nothing for the stream. Who sends nothing else would keep a
    /// thread busy for ever.
    fn is_noise(&mut self) -> Result<(), LaneError> {
        self.noise += 1;
        if self.noise > NOISE_MAX {
            return Err(LaneError::Protocol("nothing but records without content"));
        }
        Ok(())
    }
}

/// What a look at the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Some,
    Nothing,
}

/// Whether an idle lane can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// The peer is not done with the last stream.
    NotYet,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: TcpStream,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    /// The current stream was stopped by its receiver: code + 1.
    stopped: AtomicU64,
    /// The sender took something off the socket that is the receiver's.
    stashed: Notify,
    /// The peer asked for new keys.
    renew: AtomicBool,
    traffic: Arc<Traffic>,
    /// Counts it among the lanes that the peer has here.
    _place: Option<PeerPlace>,
    /// Counts it among those that the peer brought to its connection.
    brought: Option<OwnedSemaphorePermit>,
}

impl Lane {
    pub(super) fn new(
        secured: Secured,
        traffic: Arc<Traffic>,
        place: Option<PeerPlace>,
        brought: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let tx = Tx {
            sealer: secured.sealer,
            out: secured.unsent,
            written: 0,
            sent_bytes: 0,
            flushing: false,
        };
        let rx = Rx {
            opener: secured.opener,
            buffer: secured.received,
            read_bytes: READ_MIN_BYTES,
            pieces: VecDeque::new(),
            held_bytes: 0,
            end: None,
            released: false,
            number: 0,
            noise: 0,
        };
        Self {
            stream: secured.stream,
            tx: Mutex::new(tx),
            rx: Mutex::new(rx),
            stopped: AtomicU64::new(0),
            stashed: Notify::new(),
            renew: AtomicBool::new(false),
            traffic,
            _place: place,
            brought,
        }
    }

    /// Counts it among a connection's lanes.
    pub(super) fn join(&mut self, traffic: &Arc<Traffic>, brought: OwnedSemaphorePermit) {
        self.traffic = Arc::clone(traffic);
        self.brought = Some(brought);
    }

    pub(super) fn tx(&self) -> MutexGuard<'_, Tx> {
        self.tx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rx(&self) -> MutexGuard<'_, Rx> {
        self.rx.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the kernel what is queued, as far as it takes it; `true`: all of it.
    pub(super) fn write(&self, tx: &mut Tx) -> Result<bool, LaneError> {
        while !tx.is_flushed() {
            match self.stream.try_write(&tx.out[tx.written..]) {
                Ok(written) => {
                    tx.written += written;
                    tx.sent_bytes += written as u64;
                    self.traffic
                        .sent_bytes
                        .fetch_add(written as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(LaneError::Io(error)),
            }
        }
        tx.out.clear();
        tx.written = 0;
        if self.renew.swap(false, Ordering::Relaxed) {
            tx.sealer.renew(&mut tx.out).map_err(LaneError::Tls)?;
        }
        Ok(true)
    }

    /// Queues one message and writes what the kernel takes.
    pub(super) fn put(&self, kind: u8, body: &[&[u8]]) -> Result<bool, LaneError> {
        let mut tx = self.tx();
        tx.put(kind, body)?;
        self.write(&mut tx)
    }

    /// Sends from the front of `parts`; `true`: all of them, and the kernel has them.
    pub(super) fn send(&self, parts: &mut [Bytes]) -> Result<bool, LaneError> {
        let mut tx = self.tx();
        if !self.write(&mut tx)? {
            return Ok(false);
        }
        tx.fit(parts);
        tx.fill(parts)?;
        let flushed = self.write(&mut tx)?;
        Ok(flushed && parts.iter().all(Bytes::is_empty))
    }

    /// Writes until all is written.
    pub(super) async fn flush(&self) -> Result<(), LaneError> {
        loop {
            {
                let mut tx = self.tx();
                if self.write(&mut tx)? {
                    // Under the same lock: what is queued from now on is not overlooked.
                    tx.flushing = false;
                    return Ok(());
                }
            }
            self.stream.writable().await.map_err(LaneError::Io)?;
        }
    }

    /// Reads once, without waiting.
    pub(super) fn fill(&self, rx: &mut Rx) -> Result<Filled, LaneError> {
        let room = rx.buffer.capacity() - rx.buffer.len();
        if room < rx.read_bytes / 2 {
            rx.buffer.reserve(rx.read_bytes);
        }
        let room = rx.buffer.capacity() - rx.buffer.len();
        match self.stream.try_read_buf(&mut rx.buffer) {
            Ok(0) => Err(LaneError::Eof),
            Ok(read) => {
                if read == room {
                    rx.read_bytes = (rx.read_bytes * 2).min(READ_MAX_BYTES);
                }
                self.traffic
                    .received_bytes
                    .fetch_add(read as u64, Ordering::Relaxed);
                Ok(Filled::Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(error) => Err(LaneError::Io(error)),
        }
    }

    /// Waits until there may be something to receive.
    pub(super) async fn readable(&self) -> io::Result<()> {
        let large = {
            let rx = self.rx();
            rx.buffer.is_empty() && rx.read_bytes > IDLE_BUFFER_BYTES
        };
        tokio::select! {
            biased;
            ready = self.stream.readable() => return ready,
            () = self.stashed.notified() => return Ok(()),
            () = sleep(IDLE_BUFFER_WAIT), if large => self.rx().shrink(),
        }
        tokio::select! {
            ready = self.stream.readable() => ready,
            () = self.stashed.notified() => Ok(()),
        }
    }

    /// The next message at hand, whatever it is.
    pub(super) fn next(&self, rx: &mut Rx) -> Result<Option<(u8, Bytes)>, LaneError> {
        loop {
            match rx.opener.open(&mut rx.buffer).map_err(LaneError::Tls)? {
                None => return Ok(None),
                Some(Opened::Content(mut content)) => {
                    if content.is_empty() {
                        return Err(LaneError::Protocol("a message without a kind"));
                    }
                    let kind = content.get_u8();
                    if kind == kind::FINISH || (kind == kind::DATA && !content.is_empty()) {
                        rx.noise = 0;
                    }
                    return Ok(Some((kind, content.freeze())));
                }
                Some(Opened::Renewed { asked }) => {
                    rx.is_noise()?;
                    if asked {
                        self.renew.store(true, Ordering::Relaxed);
                    }
                }
                Some(Opened::Alert(alert)) => return Err(LaneError::Alert(alert.into())),
            }
        }
    }

    /// Waits for a message; for lanes that carry no stream yet.
    pub(super) async fn message(&self) -> Result<(u8, Bytes), LaneError> {
        loop {
            {
                let mut rx = self.rx();
                loop {
                    if let Some(message) = self.next(&mut rx)? {
                        return Ok(message);
                    }
                    if self.fill(&mut rx)? == Filled::Nothing {
                        break;
                    }
                }
            }
            self.stream.readable().await.map_err(LaneError::Io)?;
        }
    }

    /// Opens what is at hand of the current stream, until there are `pieces` of it, and reads on
    /// while there are none and the socket has some.
    fn advance(&self, rx: &mut Rx, pieces: usize) -> Result<(), LaneError> {
        loop {
            while rx.pieces.len() < pieces {
                let Some((kind, body)) = self.next(rx)? else {
                    break;
                };
                self.sort(rx, kind, body)?;
            }
            if !rx.pieces.is_empty() || rx.end.is_some() || self.fill(rx)? == Filled::Nothing {
                return Ok(());
            }
        }
    }

    fn sort(&self, rx: &mut Rx, kind: u8, body: Bytes) -> Result<(), LaneError> {
        match (kind, rx.end) {
            (kind::STOP, _) => {
                rx.is_noise()?;
                let (number, code) = two_u32(&body)?;
                // One for an earlier stream crossed that stream's end on the way.
                if number == rx.number {
                    self.stopped.store(u64::from(code) + 1, Ordering::Relaxed);
                }
            }
            (kind::DATA, None) => {
                if body.is_empty() {
                    return rx.is_noise();
                }
                rx.held_bytes += body.len() + PIECE_BYTES;
                rx.pieces.push_back(body);
            }
            (kind::FINISH, None) => rx.end = Some(End::Finished),
            (kind::RESET, None) => rx.end = Some(End::Reset(CloseCode(one_u32(&body)?))),
            (kind::RELEASE, Some(_)) => rx.released = true,
            _ => return Err(LaneError::Protocol("an unexpected message on a stream")),
        }
        Ok(())
    }

    /// Pieces of the current stream, or its end; `None`: the socket has nothing now.
    pub(super) fn receive(
        &self,
        slots: &mut [Bytes],
    ) -> Result<Option<Result<usize, End>>, LaneError> {
        let mut rx = self.rx();
        self.advance(&mut rx, slots.len())?;
        let filled = rx.pieces.len().min(slots.len());
        for (slot, piece) in slots.iter_mut().zip(rx.pieces.drain(..filled)) {
            *slot = piece;
        }
        let taken: usize = slots[..filled].iter().map(|p| p.len() + PIECE_BYTES).sum();
        rx.held_bytes -= taken;
        Ok(match (filled, rx.end) {
            (0, end) => end.map(Err),
            (filled, _) => Some(Ok(filled)),
        })
    }

    /// Throws away what is at hand of the current stream; its end if that is reached. It gives up
    /// for now when more comes than it throws away.
    pub(super) fn discard(&self) -> Result<Option<End>, LaneError> {
        let mut rx = self.rx();
        for _ in 0..DISCARD_READS {
            rx.pieces.clear();
            rx.held_bytes = 0;
            self.advance(&mut rx, usize::MAX)?;
            if rx.pieces.is_empty() {
                return Ok(rx.end);
            }
        }
        Ok(None)
    }

    /// Whether the receiver of the current stream wants no more. Looks at what has come, unless
    /// somebody else is just doing so.
    pub(super) fn stopped(&self) -> Option<CloseCode> {
        if let Ok(mut rx) = self.rx.try_lock()
            && rx.held_bytes < HELD_MAX_BYTES
        {
            // An error is met again by whoever receives, and by the write that follows.
            if let Ok(Filled::Some) = self.fill(&mut rx) {
                if self.advance(&mut rx, usize::MAX).is_err() {
                    // The bad record is gone from the buffer: nothing behind it may be read.
                    let _ = shutdown(&self.stream, Shutdown::Both);
                    rx.buffer.clear();
                }
                self.stashed.notify_one();
            }
        }
        let stopped = self.stopped.load(Ordering::Relaxed);
        u32::try_from(stopped.checked_sub(1)?).ok().map(CloseCode)
    }

    /// Asks the sender of the current stream to stop.
    pub(super) fn stop(&self, code: CloseCode) -> Result<bool, LaneError> {
        let number = self.rx().number;
        self.put(kind::STOP, &[&number.to_le_bytes(), &code.0.to_le_bytes()])
    }

    /// Makes ready for the next stream, after both sides are done with the current one.
    pub(super) fn renumber(&self) {
        let mut rx = self.rx();
        rx.number = rx.number.wrapping_add(1);
        rx.end = None;
        rx.released = false;
        rx.pieces.clear();
        rx.held_bytes = 0;
        self.stopped.store(0, Ordering::Relaxed);
    }

    /// Gives back what an idle lane does not need.
    pub(super) fn shrink(&self) {
        self.rx().shrink();
        let mut tx = self.tx();
        if tx.is_flushed() {
            tx.out = Vec::new();
            tx.written = 0;
        }
    }

    /// Whether the peer has begun a stream here.
    pub(super) fn begun(&self) -> Result<bool, LaneError> {
        let mut rx = self.rx();
        self.advance(&mut rx, 1)?;
        let begun = !rx.pieces.is_empty() || rx.end.is_some();
        if !begun && rx.buffer.is_empty() {
            rx.buffer = BytesMut::new();
        }
        Ok(begun)
    }

    /// Whether a lane on which this side opens streams can carry the next one.
    pub(super) fn readiness(&self) -> Result<Readiness, LaneError> {
        let mut rx = self.rx();
        // The release, if it has come; and the end, if that has come after it.
        for _ in 0..2 {
            let filled = self.fill(&mut rx)?;
            while let Some((kind, body)) = self.next(&mut rx)? {
                self.sort(&mut rx, kind, body)?;
            }
            if filled == Filled::Nothing {
                break;
            }
        }
        let fresh = rx.end.is_none() && rx.pieces.is_empty();
        let released = rx.released;
        if rx.buffer.is_empty() {
            rx.buffer = BytesMut::new();
        }
        drop(rx);
        if released {
            self.renumber();
        }
        Ok(if fresh || released {
            Readiness::Ready
        } else {
            Readiness::NotYet
        })
    }
}

fn four(body: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(body.try_into().ok()?))
}

fn one_u32(body: &[u8]) -> Result<u32, LaneError> {
    four(body).ok_or(LaneError::Protocol("a message of a wrong length"))
}

fn two_u32(body: &[u8]) -> Result<(u32, u32), LaneError> {
    let halves = body.split_at_checked(4);
    halves
        .and_then(|(a, b)| Some((four(a)?, four(b)?)))
        .ok_or(LaneError::Protocol("a message of a wrong length"))
}
