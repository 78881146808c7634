//! The network: endpoints by address, and the links between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::connection::{Link, Party, Side, link_pair};
use crate::connection::{BoxFuture, Connection, Transport};
use crate::error::{CloseCode, CloseReason, ConnectError};
use crate::peer::{IdentityError, PeerExpectation, PeerIdentity, Role};

/// Connections that wait to be accepted; beyond it a dialler is told that the endpoint is busy.
const BACKLOG: usize = 64;

/// What one direction of a stream holds at most, in bytes: a few frames, so that tests meet
/// back-pressure early.
const STREAM_BUFFER_BYTES: usize = 256 * 1024;

type Incoming = Arc<dyn Connection>;

#[derive(Debug)]
struct Endpoint {
    party: Party,
    incoming: mpsc::Sender<Incoming>,
}

#[derive(Debug)]
struct LiveLink {
    link: Arc<Link>,
    dialler: String,
    acceptor: String,
}

#[derive(Debug, Default)]
struct State {
    endpoints: BTreeMap<String, Endpoint>,
    links: Vec<LiveLink>,
    /// Pairs of names, the smaller first, between which nothing passes.
    cuts: BTreeSet<(String, String)>,
    next_host: u32,
}

impl State {
    /// Accepts a name as well as the text of a socket address.
    fn find(&self, addr: &str) -> Option<(&String, &Endpoint)> {
        self.endpoints.get_key_value(addr).or_else(|| {
            self.endpoints
                .iter()
                .find(|(_, endpoint)| endpoint.party.addr.to_string() == addr)
        })
    }
}

/// A network in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a <= b {
        (a.to_owned(), b.to_owned())
    } else {
        (b.to_owned(), a.to_owned())
    }
}

impl MemoryNetwork {
    /// An empty network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an endpoint under `name` (any text; others dial it by this name or by the text of its
    /// `local_addr`). An endpoint that had the name is no longer reached.
    #[must_use]
    pub fn endpoint(&self, name: &str, identity: PeerIdentity) -> Arc<MemoryTransport> {
        let (incoming, accepting) = mpsc::channel(BACKLOG);
        let mut state = self.lock();
        state.next_host += 1;
        let host = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + state.next_host);
        let party = Party {
            identity,
            addr: SocketAddr::from((host, 7440)),
        };
        state
            .endpoints
            .insert(name.to_owned(), Endpoint { party, incoming });
        Arc::new(MemoryTransport {
            network: self.clone(),
            name: name.to_owned(),
            party,
            accepting: AsyncMutex::new(accepting),
        })
    }

    /// Breaks all connections between two endpoints, whose sides see [`CloseReason::TimedOut`], and
    /// refuses new ones until [`MemoryNetwork::heal`].
    pub fn cut(&self, a: &str, b: &str) {
        let mut state = self.lock();
        let between = pair(a, b);
        state
            .links
            .iter()
            .filter(|live| pair(&live.dialler, &live.acceptor) == between)
            .for_each(|live| live.link.cut());
        state.cuts.insert(between);
    }

    /// Lets new connections pass again.
    pub fn heal(&self, a: &str, b: &str) {
        self.lock().cuts.remove(&pair(a, b));
    }

    /// Connects to a master as a server that is about to join, under the name `from`.
    ///
    /// # Errors
    /// As [`Transport::connect`]; an agent does not take joining servers.
    pub fn join(&self, from: &str, addr: &str) -> Result<Arc<dyn Connection>, ConnectError> {
        self.dial(from, None, addr, &PeerExpectation::any_master())
    }

    fn dial(
        &self,
        from: &str,
        dialler: Option<Party>,
        addr: &str,
        expect: &PeerExpectation,
    ) -> Result<Arc<dyn Connection>, ConnectError> {
        let mut state = self.lock();
        let unreachable = |detail: &str| ConnectError::Unreachable {
            addr: addr.to_owned(),
            detail: detail.to_owned(),
        };
        let (name, endpoint) = state
            .find(addr)
            .ok_or_else(|| unreachable("nobody listens"))?;
        if state.cuts.contains(&pair(from, name)) {
            return Err(unreachable("the link is cut"));
        }
        let acceptor = endpoint.party;
        let dialler = dialler.unwrap_or(Party {
            identity: PeerIdentity::joining(acceptor.identity.cluster),
            addr: SocketAddr::from(([10, 255, 255, 255], 7440)),
        });
        check(&dialler.identity, &acceptor.identity, expect).map_err(|source| {
            ConnectError::Identity {
                addr: addr.to_owned(),
                source,
            }
        })?;
        let (link, dialling, accepting) = link_pair(dialler, acceptor, STREAM_BUFFER_BYTES);
        let busy = || ConnectError::Refused {
            addr: addr.to_owned(),
            source: CloseReason::by_peer(CloseCode::BUSY, b""),
        };
        endpoint.incoming.try_send(accepting).map_err(|_| busy())?;
        let live = LiveLink {
            link,
            dialler: from.to_owned(),
            acceptor: name.clone(),
        };
        state.links.retain(|live| !live.link.is_over());
        state.links.push(live);
        Ok(dialling)
    }

    fn shut(&self, transport: &MemoryTransport) {
        let mut state = self.lock();
        let name = &transport.name;
        let current = state.endpoints.get(name).map(|e| e.party.addr);
        // The name may have gone to a new endpoint meanwhile.
        if current == Some(transport.party.addr) {
            state.endpoints.remove(name);
            for live in &state.links {
                if live.dialler == *name {
                    live.link
                        .close(Side::Dialler, CloseCode::SHUTDOWN, "endpoint closed");
                } else if live.acceptor == *name {
                    live.link
                        .close(Side::Acceptor, CloseCode::SHUTDOWN, "endpoint closed");
                }
            }
        }
    }
}

/// What certificates would prove.
fn check(
    dialler: &PeerIdentity,
    acceptor: &PeerIdentity,
    expect: &PeerExpectation,
) -> Result<(), IdentityError> {
    if dialler.cluster != acceptor.cluster {
        let (expected, found) = (dialler.cluster, acceptor.cluster);
        return Err(IdentityError::WrongCluster { expected, found });
    }
    expect.check(acceptor)?;
    match (dialler.role, acceptor.role) {
        (Role::Joining, found) if found != Role::Master => Err(IdentityError::WrongRole {
            expected: Role::Master,
            found,
        }),
        _ => Ok(()),
    }
}

/// An endpoint of a [`MemoryNetwork`]. Dropping it closes it.
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    name: String,
    party: Party,
    accepting: AsyncMutex<mpsc::Receiver<Incoming>>,
}

impl MemoryTransport {
    /// Its own identity.
    #[must_use]
    pub fn identity(&self) -> &PeerIdentity {
        &self.party.identity
    }

    fn is_open(&self) -> bool {
        let state = self.network.lock();
        state
            .endpoints
            .get(&self.name)
            .is_some_and(|e| e.party.addr == self.party.addr)
    }
}

impl Transport for MemoryTransport {
    fn connect<'a>(
        &'a self,
        addr: &'a str,
        expect: &'a PeerExpectation,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, ConnectError>> {
        Box::pin(async move {
            if !self.is_open() {
                return Err(ConnectError::Closed);
            }
            self.network
                .dial(&self.name, Some(self.party), addr, expect)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async move {
            // The sender lives in the network's map: `None` follows the endpoint's removal.
            self.accepting.lock().await.recv().await
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.party.addr
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.network.shut(self);
        Box::pin(std::future::ready(()))
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.network.shut(self);
    }
}
