//! QUIC and TCP on one address: each connection takes what suits the way to its peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::connection::{BoxFuture, Connection, Transport};
use crate::error::{BindError, CloseCode, ConnectError};
use crate::identity::NodeIdentity;
use crate::peer::PeerExpectation;
use crate::quic::{QuicConfig, QuicTransport};
use crate::tcp::TcpTransport;

/// How much earlier TCP is tried than QUIC.
const HEAD_START: Duration = Duration::from_millis(150);

/// Below this round trip the way is a LAN's or a region's: it loses next to nothing, and what a
/// byte costs the processors is what bounds the speed. Beyond it QUIC's streams, which share one
/// congestion state and survive a change of address, are worth their work.
const SHORT_WAY: Duration = Duration::from_millis(20);

/// How long one waits for the other where the other is preferred.
const FAIR_WAIT: Duration = Duration::from_millis(750);

/// How often port 0 may give a port that the other protocol cannot have.
const PORT_ATTEMPTS: usize = 16;

/// Over what connections are dialled; they are always accepted over both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DialOver {
    /// TCP on short ways, QUIC on long ones, and whichever works where only one does.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// TCP alone.
    Tcp,
}

/// An endpoint that listens for QUIC (UDP) and TCP on one address and port. Dropping it closes it
/// without waiting.
#[derive(Debug)]
pub struct AutoTransport {
    quic: QuicTransport,
    tcp: TcpTransport,
    over: DialOver,
}

impl AutoTransport {
    /// Listens on `listen` (port 0: any that is free for both protocols) as `node`. Must be called
    /// inside a tokio runtime with I/O and time enabled, which it keeps using.
    ///
    /// # Errors
    /// [`BindError::Listen`] (retryable), which names the protocol, and [`BindError::Identity`].
    pub fn bind(
        listen: SocketAddr,
        node: NodeIdentity,
        config: QuicConfig,
        over: DialOver,
    ) -> Result<Self, BindError> {
        let mut attempt = 1;
        loop {
            let tcp = TcpTransport::bind(listen, node.clone(), config.clone())?;
            match QuicTransport::bind(tcp.local_addr(), node.clone(), config.clone()) {
                Ok(quic) => return Ok(Self { quic, tcp, over }),
                Err(BindError::Listen { .. }) if listen.port() == 0 && attempt < PORT_ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The part that speaks QUIC: for peers that speak nothing else, such as the master.
    #[must_use]
    pub const fn quic(&self) -> &QuicTransport {
        &self.quic
    }

    /// The identity in use.
    #[must_use]
    pub fn node(&self) -> NodeIdentity {
        self.quic.node()
    }

    /// Takes a renewed certificate for all connections from now on; those that exist stay as they
    /// are. It must be of the same authority.
    ///
    /// # Errors
    /// [`BindError::Identity`], not retryable; the old identity stays in use.
    pub fn set_node(&self, node: NodeIdentity) -> Result<(), BindError> {
        self.quic.set_node(node.clone())?;
        self.tcp.set_node(node)
    }
}

/// Takes one of two attempts at the same peer. TCP is begun first; QUIC follows after its head
/// start, or when TCP has failed or leads a long way.
async fn race(
    addr: &str,
    tcp: impl Future<Output = Result<Arc<dyn Connection>, ConnectError>>,
    quic: impl Future<Output = Result<Arc<dyn Connection>, ConnectError>>,
) -> Result<Arc<dyn Connection>, ConnectError> {
    let (mut tcp, mut quic) = (std::pin::pin!(tcp), std::pin::pin!(quic));
    let first = match timeout(HEAD_START, &mut tcp).await {
        Ok(outcome) => First::Tcp(outcome),
        Err(_) => tokio::select! {
            biased;
            outcome = &mut tcp => First::Tcp(outcome),
            outcome = &mut quic => First::Quic(outcome),
        },
    };
    match first {
        First::Tcp(Ok(tcp)) if is_short(&*tcp) => Ok(chosen(addr, "TCP", "a short way", tcp)),
        First::Tcp(Ok(tcp)) => match timeout(FAIR_WAIT, quic).await {
            Ok(Ok(quic)) if !is_short(&*quic) => {
                tcp.close(CloseCode::DONE, "QUIC is taken");
                Ok(chosen(addr, "QUIC", "a long way", quic))
            }
            Ok(Ok(quic)) => {
                quic.close(CloseCode::DONE, "TCP is taken");
                Ok(chosen(addr, "TCP", "a short way after all", tcp))
            }
            _ => Ok(chosen(addr, "TCP", "QUIC does not pass", tcp)),
        },
        First::Quic(Ok(quic)) if is_short(&*quic) => match timeout(FAIR_WAIT, tcp).await {
            Ok(Ok(tcp)) => {
                quic.close(CloseCode::DONE, "TCP is taken");
                Ok(chosen(addr, "TCP", "a short way", tcp))
            }
            _ => Ok(chosen(addr, "QUIC", "TCP does not pass", quic)),
        },
        First::Quic(Ok(quic)) => Ok(chosen(addr, "QUIC", "a long way", quic)),
        First::Tcp(Err(error @ (ConnectError::Resolve { .. } | ConnectError::Closed))) => {
            Err(error)
        }
        First::Tcp(Err(error)) => match quic.await {
            Ok(quic) => Ok(chosen(addr, "QUIC", &error.to_string(), quic)),
            Err(other) => Err(more_telling(error, other)),
        },
        First::Quic(Err(error)) => match tcp.await {
            Ok(tcp) => Ok(chosen(addr, "TCP", &error.to_string(), tcp)),
            Err(other) => Err(more_telling(other, error)),
        },
    }
}

enum First {
    Tcp(Result<Arc<dyn Connection>, ConnectError>),
    Quic(Result<Arc<dyn Connection>, ConnectError>),
}

fn is_short(connection: &dyn Connection) -> bool {
    connection.stats().rtt < SHORT_WAY
}

fn chosen(
    addr: &str,
    over: &str,
    why: &str,
    connection: Arc<dyn Connection>,
) -> Arc<dyn Connection> {
    let rtt = connection.stats().rtt;
    tracing::debug!(addr, over, why, ?rtt, "connected");
    connection
}

/// Of two failures the one that says more: who the peer is, before what it said, before silence.
fn more_telling(tcp: ConnectError, quic: ConnectError) -> ConnectError {
    const fn rank(error: &ConnectError) -> u8 {
        match error {
            ConnectError::Identity { .. } => 0,
            ConnectError::Closed => 1,
            ConnectError::Refused { .. } => 2,
            ConnectError::Local { .. } => 3,
            ConnectError::Resolve { .. } => 4,
            ConnectError::Unreachable { .. } => 5,
            ConnectError::TimedOut { .. } => 6,
        }
    }
    if rank(&quic) < rank(&tcp) { quic } else { tcp }
}

impl Transport for AutoTransport {
    fn connect<'a>(
        &'a self,
        addr: &'a str,
        expect: &'a PeerExpectation,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, ConnectError>> {
        match self.over {
            DialOver::Auto => Box::pin(race(
                addr,
                self.tcp.connect(addr, expect),
                self.quic.connect(addr, expect),
            )),
            DialOver::Quic => self.quic.connect(addr, expect),
            DialOver::Tcp => self.tcp.connect(addr, expect),
        }
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async move {
            tokio::select! {
                Some(connection) = self.quic.accept() => Some(connection),
                Some(connection) = self.tcp.accept() => Some(connection),
                else => None,
            }
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.quic.local_addr()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let (quic, tcp) = (self.quic.close(), self.tcp.close());
        Box::pin(async move {
            tokio::join!(quic, tcp);
        })
    }
}

#[cfg(test)]
mod tests {
    use cdsync_core::ids::ServerId;

    use super::*;
    use crate::connection::{LinkStats, Stream};
    use crate::error::CloseReason;
    use crate::memory::MemoryNetwork;
    use crate::peer::{ClusterId, PeerIdentity};

    /// A connection that claims another round trip.
    #[derive(Debug)]
    struct Far(Arc<dyn Connection>, Duration);

    impl Connection for Far {
        fn peer(&self) -> &PeerIdentity {
            self.0.peer()
        }

        fn remote_addr(&self) -> SocketAddr {
            self.0.remote_addr()
        }

        fn open(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
            self.0.open()
        }

        fn accept(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
            self.0.accept()
        }

        fn close(&self, code: CloseCode, reason: &str) {
            self.0.close(code, reason);
        }

        fn closed(&self) -> BoxFuture<'_, CloseReason> {
            self.0.closed()
        }

        fn stats(&self) -> LinkStats {
            LinkStats {
                rtt: self.1,
                ..LinkStats::default()
            }
        }
    }

    async fn far(rtt_millis: u64) -> Arc<dyn Connection> {
        let network = MemoryNetwork::new();
        let id = |server| PeerIdentity::agent(ClusterId(1), ServerId(server));
        let one = network.endpoint("one:1", id(1));
        let _two = network.endpoint("two:1", id(2));
        let expect = PeerExpectation::agent(ServerId(2));
        let connection = one.connect("two:1", &expect).await.unwrap();
        Arc::new(Far(connection, Duration::from_millis(rtt_millis)))
    }

    /// `Some`: after how many milliseconds it is there, and its round trip.
    async fn attempt(made: Option<(u64, u64)>) -> Result<Arc<dyn Connection>, ConnectError> {
        match made {
            None => std::future::pending().await,
            Some((after, rtt)) => {
                tokio::time::sleep(Duration::from_millis(after)).await;
                Ok(far(rtt).await)
            }
        }
    }

    /// Proves which of the two is taken: TCP on short ways however late it is within reason, QUIC
    /// on long ones, and whichever comes where only one does.
    #[tokio::test(start_paused = true)]
    async fn the_way_decides() {
        // In milliseconds: TCP's arrival and round trip, QUIC's, and the round trip taken.
        for (tcp, quic, taken) in [
            (Some((1, 1)), Some((0, 2)), 1),
            (Some((300, 1)), Some((10, 2)), 1),
            (Some((120, 40)), Some((90, 41)), 41),
            (Some((400, 40)), Some((90, 41)), 41),
            (Some((120, 40)), Some((5_000, 41)), 40),
            (Some((120, 40)), None, 40),
            (None, Some((10, 2)), 2),
            (None, Some((90, 41)), 41),
            // A busy machine made TCP's measure long.
            (Some((100, 25)), Some((10, 2)), 25),
        ] {
            let made = race("there:1", attempt(tcp), attempt(quic)).await.unwrap();
            let expected = Duration::from_millis(taken);
            assert_eq!(made.stats().rtt, expected, "{tcp:?} {quic:?}");
        }
    }
}
