//! The traits: an endpoint, a connection to one peer, and the two halves of a stream.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
pub use futures_core::future::BoxFuture;

use crate::error::{CloseCode, CloseReason, ConnectError, RecvError, SendError};
use crate::peer::{PeerExpectation, PeerIdentity};

/// How much [`SendHalf::send_file`] reads at a time: the bound of its memory.
pub const SEND_FILE_STEP_BYTES: usize = 256 * 1024;

/// Both halves of a bidirectional stream.
pub type Stream = (Box<dyn SendHalf>, Box<dyn RecvHalf>);

/// An endpoint: it dials peers and accepts those who dial it.
pub trait Transport: Send + Sync + Debug {
    /// Connects to `addr` (`host:port`) and proves both identities. It returns only after the peer
    /// took this side's certificate, one round trip after the handshake.
    ///
    /// # Errors
    /// [`ConnectError`]; its `retry()` says which are retryable. A peer that is not whom `expect`
    /// says is [`ConnectError::Identity`].
    ///
    /// # Cancel safety
    /// Dropping it abandons the attempt; the peer sees a closed connection or none.
    fn connect<'a>(
        &'a self,
        addr: &'a str,
        expect: &'a PeerExpectation,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, ConnectError>>;

    /// The next peer whose handshake is done and whose identity is proven (or whose role is
    /// [`Role::Joining`](crate::Role::Joining)); `None` once the endpoint is closed. Slow
    /// handshakes hold up nobody.
    ///
    /// # Cancel safety
    /// Safe: a connection is either returned or stays for the next call.
    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>>;

    /// Where it listens; the port is the real one when 0 was asked for.
    fn local_addr(&self) -> SocketAddr;

    /// Closes all connections with [`CloseCode::SHUTDOWN`], accepts no more, and waits (a few
    /// seconds at most) until the peers were told.
    ///
    /// # Cancel safety
    /// Closing has happened at the first poll; only the waiting is lost.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A connection to one peer: any number of streams, each ordered, none blocking another.
///
/// Dropping the last handle (the connection and all halves of its streams) closes it with
/// [`CloseCode::DROPPED`].
pub trait Connection: Send + Sync + Debug {
    /// Who is at the other end.
    fn peer(&self) -> &PeerIdentity;

    /// Where it is; may change when the peer moves.
    fn remote_addr(&self) -> SocketAddr;

    /// Opens a stream, waiting while the peer allows no more at once. **The peer learns of it with
    /// the first byte sent**, so whoever opens must send first.
    ///
    /// # Errors
    /// [`CloseReason`] when the connection is over.
    ///
    /// # Cancel safety
    /// Safe.
    fn open(&self) -> BoxFuture<'_, Result<Stream, CloseReason>>;

    /// The next stream that the peer opened.
    ///
    /// # Errors
    /// [`CloseReason`] when the connection is over.
    ///
    /// # Cancel safety
    /// Safe.
    fn accept(&self) -> BoxFuture<'_, Result<Stream, CloseReason>>;

    /// Ends the connection at once; what was not yet delivered is lost, in both directions. The
    /// side that received the last message should be the one to close. Only the first call counts.
    fn close(&self, code: CloseCode, reason: &str);

    /// Waits until the connection is over and says why.
    ///
    /// # Cancel safety
    /// Safe.
    fn closed(&self) -> BoxFuture<'_, CloseReason>;

    /// How the link does at this moment.
    fn stats(&self) -> LinkStats;
}

/// What a connection knows of its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Largest datagram payload known to pass, in bytes; 0 when the transport has none.
    pub mtu_bytes: u16,
    /// Congestion window in bytes: what may be on its way at once.
    pub window_bytes: u64,
    /// Packets sent since the start.
    pub sent_packets: u64,
    /// Packets taken as lost since the start.
    pub lost_packets: u64,
    /// Bytes sent since the start, with all overhead.
    pub sent_bytes: u64,
    /// Bytes received since the start, with all overhead.
    pub received_bytes: u64,
}

/// The sending direction of a stream.
///
/// Dropping it without [`SendHalf::finish`] resets the stream with [`CloseCode::DROPPED`], so that
/// an aborted task never looks like a complete message.
pub trait SendHalf: Send + Debug {
    /// Sends all parts in order. Waits while the receiver's window or this side's send window is
    /// full: that bounds the memory.
    ///
    /// # Errors
    /// [`SendError`]; after one, the stream is of no more use.
    ///
    /// # Cancel safety
    /// Safe if `parts` is kept: what was taken has become empty or shorter, and sending the same
    /// `parts` again continues where it stopped.
    fn send<'a>(&'a mut self, parts: &'a mut [Bytes]) -> BoxFuture<'a, Result<(), SendError>>;

    /// Sends `len` bytes of `file` from `offset` on. The default reads and sends in steps of
    /// [`SEND_FILE_STEP_BYTES`]; its reads block the task's thread, so it suits files in the page
    /// cache or a thread of one's own.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::File`] when the file is shorter or unreadable: part of it has
    /// then been sent, and the stream should be reset.
    ///
    /// # Cancel safety
    /// Not safe: it is unknown how much was sent.
    fn send_file<'a>(
        &'a mut self,
        file: &'a File,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            let mut buffer = BytesMut::new();
            let (mut at, end) = (offset, offset.saturating_add(len));
            while at < end {
                let step = usize::try_from(end - at)
                    .map_or(SEND_FILE_STEP_BYTES, |left| left.min(SEND_FILE_STEP_BYTES));
                // `resize` after a `split` re-uses the allocation once the receiver has let go.
                buffer.resize(step, 0);
                let read = read_some(file, &mut buffer, at)?;
                let part = buffer.split_to(read).freeze();
                buffer.clear();
                at += read as u64;
                self.send(&mut [part]).await?;
            }
            Ok(())
        })
    }

    /// How many bytes of this stream have left this side so far, as far as it can tell. Who waits in
    /// [`SendHalf::send`] sees by it whether the receiver takes anything.
    fn taken_bytes(&self) -> u64;

    /// Says that nothing follows; what was sent is still delivered.
    ///
    /// # Errors
    /// [`SendError::Ended`] when it was ended before, not retryable.
    fn finish(&mut self) -> Result<(), SendError>;

    /// Gives the stream up: the receiver sees [`RecvError::Reset`] and may lose what was sent.
    fn reset(&mut self, code: CloseCode);
}

fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, SendError> {
    loop {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(SendError::File { offset, source });
            }
            Ok(read) => return Ok(read),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(SendError::File { offset, source }),
        }
    }
}

/// The receiving direction of a stream.
///
/// Dropping it before its end stops the sender with [`CloseCode::DROPPED`].
pub trait RecvHalf: Send + Debug {
    /// The next bytes, never empty, `None` at the end of the stream. Their boundaries mean nothing.
    ///
    /// # Errors
    /// [`RecvError`]; after one, the stream is of no more use.
    ///
    /// # Cancel safety
    /// Safe.
    fn recv<'a>(&'a mut self) -> BoxFuture<'a, Result<Option<Bytes>, RecvError>> {
        Box::pin(async move {
            let mut slot = [Bytes::new()];
            Ok(self
                .recv_many(&mut slot)
                .await?
                .map(|_| std::mem::take(&mut slot[0])))
        })
    }

    /// As [`RecvHalf::recv`], but fills as many of `slots` as there are pieces at hand (at least
    /// one) and returns how many: one wake-up for many packets. `slots` must not be empty.
    ///
    /// # Errors
    /// As [`RecvHalf::recv`].
    ///
    /// # Cancel safety
    /// Safe: either it returns pieces or nothing was taken.
    fn recv_many<'a>(
        &'a mut self,
        slots: &'a mut [Bytes],
    ) -> BoxFuture<'a, Result<Option<usize>, RecvError>>;

    /// Tells the sender to stop: it sees [`SendError::Stopped`].
    fn stop(&mut self, code: CloseCode);
}
