//! A connection in memory: a link shared by its two sides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, mpsc, watch};

use super::pipe::{Offer, open_stream};
use crate::connection::{BoxFuture, Connection, LinkStats, Stream};
use crate::error::{CloseCode, CloseReason};
use crate::peer::PeerIdentity;

/// Streams that one side may have open at once, as over QUIC.
const MAX_STREAMS: usize = 256;

/// The two ends of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Dialler,
    Acceptor,
}

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

/// How a link ended.
#[derive(Debug, Clone)]
enum Ending {
    Closed {
        by: Side,
        code: CloseCode,
        reason: String,
    },
    Cut,
}

/// What both sides share.
#[derive(Debug)]
pub(super) struct Link {
    ending: watch::Sender<Option<Ending>>,
    /// Streams made known to the dialler and to the acceptor, in this order. `try_send` never
    /// fails for lack of room: a stream holds one of `MAX_STREAMS` permits.
    announced: [mpsc::Sender<Offer>; 2],
}

impl Link {
    fn reason(&self, side: Side) -> Option<CloseReason> {
        self.ending.borrow().as_ref().map(|ending| match ending {
            Ending::Cut => CloseReason::TimedOut,
            Ending::Closed { by, .. } if *by == side => CloseReason::Local,
            Ending::Closed { code, reason, .. } => CloseReason::by_peer(*code, reason.as_bytes()),
        })
    }

    async fn closed(&self, side: Side) -> CloseReason {
        let mut ending = self.ending.subscribe();
        loop {
            if let Some(reason) = self.reason(side) {
                return reason;
            }
            // The sender lives in `self`: it cannot be gone.
            let _ = ending.changed().await;
        }
    }

    fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(ending);
            }
            first
        });
    }

    pub(super) fn cut(&self) {
        self.end(Ending::Cut);
    }

    pub(super) fn close(&self, by: Side, code: CloseCode, reason: &str) {
        self.end(Ending::Closed {
            by,
            code,
            reason: reason.to_owned(),
        });
    }

    pub(super) fn is_over(&self) -> bool {
        self.ending.borrow().is_some()
    }
}

/// One side's hold on the link: the connection and the halves of its streams share it, and when
/// the last is dropped, the link is closed.
#[derive(Debug)]
pub(super) struct Handle {
    link: Arc<Link>,
    side: Side,
}

impl Handle {
    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.link.reason(self.side)
    }

    pub(super) async fn closed(&self) -> CloseReason {
        self.link.closed(self.side).await
    }

    pub(super) fn announce(&self, offer: Offer) {
        // A receiver that is gone means the link is over: its streams end with it.
        let _ = self.link.announced[self.side.other() as usize].try_send(offer);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close(self.side, CloseCode::DROPPED, "");
    }
}

/// Who and where one side is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Party {
    pub(super) identity: PeerIdentity,
    pub(super) addr: SocketAddr,
}

/// One side of a link.
#[derive(Debug)]
pub(super) struct MemoryConnection {
    handle: Arc<Handle>,
    peer: Party,
    permits: Arc<Semaphore>,
    offers: Mutex<mpsc::Receiver<Offer>>,
    capacity_bytes: usize,
}

/// Links two parties; the first connection is the dialler's.
pub(super) fn link_pair(
    dialler: Party,
    acceptor: Party,
    capacity_bytes: usize,
) -> (Arc<Link>, Arc<MemoryConnection>, Arc<MemoryConnection>) {
    let (to_dialler, at_dialler) = mpsc::channel(MAX_STREAMS);
    let (to_acceptor, at_acceptor) = mpsc::channel(MAX_STREAMS);
    let ending = watch::Sender::new(None);
    let link = Arc::new(Link {
        ending,
        announced: [to_dialler, to_acceptor],
    });
    let connection = |side, peer, offers| {
        Arc::new(MemoryConnection {
            handle: Arc::new(Handle {
                link: Arc::clone(&link),
                side,
            }),
            peer,
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            offers: Mutex::new(offers),
            capacity_bytes,
        })
    };
    let dialling = connection(Side::Dialler, acceptor, at_dialler);
    let accepting = connection(Side::Acceptor, dialler, at_acceptor);
    (link, dialling, accepting)
}

impl Connection for MemoryConnection {
    fn peer(&self) -> &PeerIdentity {
        &self.peer.identity
    }

    fn remote_addr(&self) -> SocketAddr {
        self.peer.addr
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
        Box::pin(async move {
            let permit = tokio::select! {
                biased;
                reason = self.handle.closed() => return Err(reason),
                permit = Arc::clone(&self.permits).acquire_owned() => permit,
            };
            let permit = permit.map_err(|_| CloseReason::Local)?;
            Ok(open_stream(&self.handle, permit, self.capacity_bytes))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
        Box::pin(async move {
            let next = async { self.offers.lock().await.recv().await };
            tokio::select! {
                biased;
                reason = self.handle.closed() => Err(reason),
                offer = next => Ok(offer.ok_or(CloseReason::Local)?.accept(&self.handle)),
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.handle.link.close(self.handle.side, code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(self.handle.closed())
    }

    fn stats(&self) -> LinkStats {
        LinkStats {
            rtt: Duration::from_micros(10),
            ..LinkStats::default()
        }
    }
}
