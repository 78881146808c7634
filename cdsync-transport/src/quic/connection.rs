//! A quinn connection behind the traits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, TransportErrorCode, VarInt, WriteError};

use crate::connection::{BoxFuture, Connection, LinkStats, RecvHalf, SendHalf, Stream};
use crate::error::{CloseCode, CloseReason, RecvError, SendError, peer_text};
use crate::peer::PeerIdentity;

/// What a peer that has proven nothing may still send.
#[derive(Debug)]
pub(super) struct Budget {
    left_bytes: AtomicU64,
    connection: quinn::Connection,
}

impl Budget {
    pub(super) fn new(bytes: u64, connection: quinn::Connection) -> Arc<Self> {
        Arc::new(Self {
            left_bytes: AtomicU64::new(bytes),
            connection,
        })
    }

    /// Counts what was received; beyond the budget the connection ends.
    fn spend(&self, bytes: u64) -> Result<(), RecvError> {
        let spent = self
            .left_bytes
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            });
        spent.map(|_| ()).map_err(|_| {
            self.connection
                .close(code(CloseCode::LIMIT), b"too much for a joining server");
            RecvError::Connection(CloseReason::Local)
        })
    }
}

/// One connection to a peer.
#[derive(Debug)]
pub(super) struct QuicConnection {
    connection: quinn::Connection,
    peer: PeerIdentity,
    /// Opened while dialling to learn that the peer took this side's certificate; the first
    /// `open` gets it. If none comes and this handle is dropped before the last stream, the peer
    /// sees an empty stream, as anybody may send it one.
    first: Mutex<Option<(quinn::SendStream, quinn::RecvStream)>>,
    budget: Option<Arc<Budget>>,
}

impl QuicConnection {
    pub(super) fn new(
        connection: quinn::Connection,
        peer: PeerIdentity,
        first: Option<(quinn::SendStream, quinn::RecvStream)>,
        budget: Option<Arc<Budget>>,
    ) -> Self {
        Self {
            connection,
            peer,
            first: Mutex::new(first),
            budget,
        }
    }

    fn wrap(&self, (send, recv): (quinn::SendStream, quinn::RecvStream)) -> Stream {
        let send = QuicSend {
            stream: send,
            taken_bytes: 0,
            ended: false,
        };
        let recv = QuicRecv {
            stream: recv,
            budget: self.budget.clone(),
            ended: false,
        };
        (Box::new(send), Box::new(recv))
    }
}

impl Connection for QuicConnection {
    fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
        Box::pin(async move {
            let first = self
                .first
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let stream = match (first, self.connection.close_reason()) {
                (_, Some(error)) => return Err(close_reason(error)),
                (Some(first), None) => first,
                (None, None) => self.connection.open_bi().await.map_err(close_reason)?,
            };
            Ok(self.wrap(stream))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
        Box::pin(async move {
            self.connection
                .accept_bi()
                .await
                .map(|s| self.wrap(s))
                .map_err(close_reason)
        })
    }

    fn close(&self, close_code: CloseCode, reason: &str) {
        self.connection.close(code(close_code), reason.as_bytes());
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async move { close_reason(self.connection.closed().await) })
    }

    fn stats(&self) -> LinkStats {
        let stats = self.connection.stats();
        LinkStats {
            rtt: stats.path.rtt,
            mtu_bytes: stats.path.current_mtu,
            window_bytes: stats.path.cwnd,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
        }
    }
}

#[derive(Debug)]
struct QuicSend {
    stream: quinn::SendStream,
    taken_bytes: u64,
    ended: bool,
}

impl SendHalf for QuicSend {
    fn send<'a>(&'a mut self, parts: &'a mut [Bytes]) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            let mut rest = parts;
            while !rest.is_empty() {
                let written = self.stream.write_chunks(rest).await.map_err(send_error)?;
                self.taken_bytes += written.bytes as u64;
                rest = &mut rest[written.chunks..];
            }
            Ok(())
        })
    }

    fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    fn finish(&mut self) -> Result<(), SendError> {
        self.stream.finish().map_err(|_| SendError::Ended)?;
        self.ended = true;
        Ok(())
    }

    fn reset(&mut self, reset_code: CloseCode) {
        self.ended = true;
        // It fails only when the stream was reset before.
        let _ = self.stream.reset(code(reset_code));
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        // quinn would finish the stream, and an aborted message would look like a whole one.
        if !self.ended {
            self.reset(CloseCode::DROPPED);
        }
    }
}

#[derive(Debug)]
struct QuicRecv {
    stream: quinn::RecvStream,
    budget: Option<Arc<Budget>>,
    ended: bool,
}

impl RecvHalf for QuicRecv {
    fn recv_many<'a>(
        &'a mut self,
        slots: &'a mut [Bytes],
    ) -> BoxFuture<'a, Result<Option<usize>, RecvError>> {
        Box::pin(async move {
            let filled = self.stream.read_chunks(slots).await.map_err(recv_error)?;
            let Some(filled) = filled else {
                self.ended = true;
                return Ok(None);
            };
            if let Some(budget) = &self.budget {
                let bytes: usize = slots[..filled].iter().map(Bytes::len).sum();
                budget.spend(bytes as u64)?;
            }
            Ok(Some(filled))
        })
    }

    fn stop(&mut self, stop_code: CloseCode) {
        self.ended = true;
        // It fails only when the stream ended before.
        let _ = self.stream.stop(code(stop_code));
    }
}

impl Drop for QuicRecv {
    fn drop(&mut self) {
        if !self.ended {
            self.stop(CloseCode::DROPPED);
        }
    }
}

pub(super) fn code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code.0)
}

/// Codes are 32 bits here; a larger one comes from another program.
fn close_code(code: VarInt) -> CloseCode {
    u32::try_from(code.into_inner()).map_or(CloseCode::PROTOCOL, CloseCode)
}

pub(super) fn close_reason(error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            CloseReason::by_peer(close_code(close.error_code), &close.reason)
        }
        ConnectionError::ConnectionClosed(close) => by_stack(&close),
        ConnectionError::Reset => CloseReason::Restarted,
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::LocallyClosed => CloseReason::Local,
        other @ (ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::CidsExhausted) => CloseReason::Protocol {
            detail: peer_text(other.to_string().as_bytes()),
        },
    }
}

/// The peer's QUIC stack, not its program, ended the connection.
fn by_stack(close: &quinn::ConnectionClose) -> CloseReason {
    /// TLS alerts come as 0x100 plus the alert (RFC 9001, section 4.8).
    const ALERTS: std::ops::Range<u64> = 0x100..0x200;
    let detail = peer_text(close.to_string().as_bytes());
    match close.error_code {
        TransportErrorCode::CONNECTION_REFUSED => CloseReason::by_peer(
            CloseCode::BUSY,
            b"it takes no connections now: it is ending, or too many come at once",
        ),
        code if ALERTS.contains(&u64::from(code)) => CloseReason::HandshakeRefused { detail },
        _ => CloseReason::Protocol { detail },
    }
}

fn send_error(error: WriteError) -> SendError {
    match error {
        WriteError::Stopped(code) => SendError::Stopped(close_code(code)),
        WriteError::ConnectionLost(error) => SendError::Connection(close_reason(error)),
        // 0-RTT is never used.
        WriteError::ClosedStream | WriteError::ZeroRttRejected => SendError::Ended,
    }
}

fn recv_error(error: ReadError) -> RecvError {
    match error {
        ReadError::Reset(code) => RecvError::Reset(close_code(code)),
        ReadError::ConnectionLost(error) => RecvError::Connection(close_reason(error)),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            RecvError::Ended
        }
    }
}
