//! Dialling: resolve, try the addresses with a head start for the first, prove both identities.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::handshake::{self, HandshakeError, Secured};
use super::lane::{Lane, LaneError, Traffic, kind};
use super::link::{ConnectionId, Link};
use super::{ALPN_TCP, Purpose, control};
use crate::error::{CloseReason, ConnectError, peer_text};
use crate::identity::NodeIdentity;
use crate::identity::verify;
use crate::limit::{PeerLimit, PeerPlace};
use crate::peer::{IdentityError, PeerExpectation, PeerIdentity};
use crate::quic::QuicConfig;
use crate::resolve::{head_start, resolve};
use crate::tls::{self, Verdict};

/// Who this side is and how it behaves: shared by an endpoint and its connections.
#[derive(Debug)]
pub(super) struct Local {
    node: RwLock<NodeIdentity>,
    pub(super) config: QuicConfig,
    /// Lanes that peers brought, or made this side bring.
    pub(super) lanes: PeerLimit,
}

impl Local {
    pub(super) fn new(node: NodeIdentity, config: QuicConfig) -> Self {
        let lanes = PeerLimit::with_total(config.peer_lanes(), config.max_lanes);
        Self {
            node: RwLock::new(node),
            config,
            lanes,
        }
    }

    pub(super) fn node(&self) -> NodeIdentity {
        self.node
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_node(&self, node: NodeIdentity) {
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = node;
    }

    /// What every lane's socket is told. Nothing waits for more to send, and the kernel itself asks
    /// whether the other end of an idle lane is still there. A peer that is gone in the midst of a
    /// send is noticed on the control lane; the kernel's own limit on unacknowledged bytes would
    /// also end a lane whose receiver lives and waits for a slow disk.
    pub(super) fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        let second = Duration::from_secs(1);
        let interval = self.config.keep_alive.max(second);
        let silence = self.config.idle_timeout;
        let probes = silence.as_secs().div_ceil(interval.as_secs()).max(1);
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, interval)?;
        sockopt::set_tcp_keepintvl(stream, interval)?;
        sockopt::set_tcp_keepcnt(stream, u32::try_from(probes).unwrap_or(u32::MAX))?;
        Ok(())
    }
}

/// A connection's control lane, welcomed by the peer.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) lane: Lane,
    pub(super) peer: PeerIdentity,
    pub(super) remote: SocketAddr,
    pub(super) traffic: Arc<Traffic>,
    pub(super) rtt: Duration,
}

/// Makes the control lane of a new connection, within the handshake deadline.
pub(super) async fn connect(
    local: &Arc<Local>,
    id: ConnectionId,
    addr: &str,
    expect: &PeerExpectation,
) -> Result<Dialled, ConnectError> {
    let after = local.config.handshake_deadline;
    timeout(after, race(local, id, addr, expect))
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::TimedOut {
                addr: addr.to_owned(),
                after,
            })
        })
}

async fn race(
    local: &Arc<Local>,
    id: ConnectionId,
    addr: &str,
    expect: &PeerExpectation,
) -> Result<Dialled, ConnectError> {
    let mut attempts = JoinSet::new();
    for (index, target) in resolve(addr).await?.into_iter().enumerate() {
        let (local, addr, expect) = (Arc::clone(local), addr.to_owned(), *expect);
        attempts.spawn(async move {
            sleep(head_start(index)).await;
            let attempt = control_lane(&local, id, target, &expect).await;
            attempt.map_err(|failure| failure.into_error(addr))
        });
    }
    let mut failure = None;
    // Dropping the set on return abandons the slower attempts.
    while let Some(outcome) = attempts.join_next().await {
        match outcome {
            Ok(Ok(dialled)) => return Ok(dialled),
            Ok(Err(error)) => failure = Some(error),
            Err(error) => failure = Some(unstarted(addr, error.to_string())),
        }
    }
    Err(failure.unwrap_or_else(|| unstarted(addr, "no address to try".to_owned())))
}

fn unstarted(addr: &str, detail: String) -> ConnectError {
    ConnectError::Local {
        addr: addr.to_owned(),
        detail,
    }
}

/// Why a lane could not be made.
#[derive(Debug)]
enum Failure {
    Unreachable(String),
    Identity(IdentityError),
    Refused(CloseReason),
    Local(String),
}

impl Failure {
    fn into_error(self, addr: String) -> ConnectError {
        match self {
            Self::Unreachable(detail) => ConnectError::Unreachable { addr, detail },
            Self::Identity(source) => ConnectError::Identity { addr, source },
            Self::Refused(source) => ConnectError::Refused { addr, source },
            Self::Local(detail) => ConnectError::Local { addr, detail },
        }
    }

    fn of_handshake(error: &HandshakeError, verdict: &Verdict) -> Self {
        if let Some(Err(source)) = verdict.get() {
            return Self::Identity(source.clone());
        }
        let detail = peer_text(error.to_string().as_bytes());
        match error {
            HandshakeError::Io(_) | HandshakeError::Eof => Self::Unreachable(detail),
            HandshakeError::Tls(rustls::Error::AlertReceived(_)) => {
                Self::Refused(CloseReason::HandshakeRefused { detail })
            }
            _ => Self::Refused(CloseReason::Protocol { detail }),
        }
    }

    /// The lane ended where a welcome was awaited.
    fn of_lane(error: &LaneError) -> Self {
        let detail = peer_text(error.to_string().as_bytes());
        match error {
            LaneError::Io(_) | LaneError::Eof => Self::Unreachable(detail),
            // TLS is done for this side before the peer has seen its certificate.
            LaneError::Alert(_) => Self::Refused(CloseReason::HandshakeRefused { detail }),
            _ => Self::Refused(CloseReason::Protocol { detail }),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(detail) | Self::Local(detail) => f.write_str(detail),
            Self::Identity(error) => error.fmt(f),
            Self::Refused(reason) => reason.fmt(f),
        }
    }
}

/// The crate's provider with AES-128 before AES-256: the dialler's order decides. Of what a byte
/// costs over TCP, nearly half is its protection, a quarter of which this saves; the certificates'
/// keys (P-256) are no stronger.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = PROVIDER.get_or_init(|| {
        let mut provider = CryptoProvider::clone(&verify::provider());
        let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
        // Stable: what is not first keeps its order.
        provider
            .cipher_suites
            .sort_by_key(|suite| suite.suite() != first);
        Arc::new(provider)
    });
    Arc::clone(made)
}

/// How a lane that the peer asked for is counted: among all, and among its connection's.
pub(super) type Brought = (PeerPlace, OwnedSemaphorePermit);

/// A lane to `target` with its hello queued, who is at its other end, and the round trip.
async fn lane(
    local: &Local,
    target: SocketAddr,
    expect: &PeerExpectation,
    hello: (ConnectionId, Purpose),
    traffic: Arc<Traffic>,
    brought: Option<Brought>,
) -> Result<(Lane, PeerIdentity, Duration), Failure> {
    let (config, verdict) =
        tls::member(&local.node(), expect, ALPN_TCP, provider()).map_err(Failure::Local)?;
    let unreachable = |error: io::Error| Failure::Unreachable(error.to_string());
    let begun = Instant::now();
    let stream = TcpStream::connect(target).await.map_err(unreachable)?;
    let rtt = begun.elapsed();
    local
        .prepare(&stream)
        .map_err(|e| Failure::Local(e.to_string()))?;
    let secured: Secured = handshake::client(stream, config)
        .await
        .map_err(|error| Failure::of_handshake(&error, &verdict))?;
    let Some(Ok(peer)) = verdict.get() else {
        return Err(Failure::Identity(IdentityError::NoCertificate));
    };
    let (place, permit) = brought.unzip();
    let lane = Lane::new(secured, traffic, place, permit);
    let (id, purpose) = hello;
    lane.put(kind::HELLO, &[&id, &[purpose.byte()]])
        .map_err(|error| Failure::of_lane(&error))?;
    Ok((lane, *peer, rtt))
}

async fn control_lane(
    local: &Local,
    id: ConnectionId,
    target: SocketAddr,
    expect: &PeerExpectation,
) -> Result<Dialled, Failure> {
    let traffic = Arc::new(Traffic::default());
    let hello = (id, Purpose::Control);
    let (lane, peer, rtt) = lane(local, target, expect, hello, Arc::clone(&traffic), None).await?;
    let asked = Instant::now();
    let welcome = async {
        lane.flush().await?;
        lane.message().await
    };
    match welcome.await {
        Ok((kind::WELCOME, _)) => {}
        Ok((kind::CLOSE, body)) => return Err(Failure::Refused(control::closed_by_peer(&body))),
        Ok(_) => {
            return Err(Failure::of_lane(&LaneError::Protocol("no welcome")));
        }
        Err(error) => return Err(Failure::of_lane(&error)),
    }
    Ok(Dialled {
        lane,
        peer,
        remote: target,
        traffic,
        // A busy machine makes either longer, hardly both.
        rtt: rtt.min(asked.elapsed()),
    })
}

/// Makes more lanes to where a connection's control lane leads.
#[derive(Debug, Clone)]
pub(super) struct LaneDialler {
    pub(super) local: Arc<Local>,
}

impl LaneDialler {
    /// A lane of `link`, within the handshake deadline; an error is for people.
    pub(super) async fn lane(
        &self,
        link: &Link,
        purpose: Purpose,
        brought: Option<Brought>,
    ) -> Result<Arc<Lane>, String> {
        let expect = PeerExpectation {
            role: link.peer.role,
            server: Some(link.peer.server),
        };
        let hello = (link.id, purpose);
        let traffic = Arc::clone(&link.traffic);
        let dialling = lane(&self.local, link.remote, &expect, hello, traffic, brought);
        match timeout(self.local.config.handshake_deadline, dialling).await {
            Ok(Ok((lane, _, rtt))) => {
                link.measured(rtt);
                Ok(Arc::new(lane))
            }
            Ok(Err(failure)) => Err(format!("no further lane: {failure}")),
            Err(_) => Err("no further lane in time".to_owned()),
        }
    }
}
