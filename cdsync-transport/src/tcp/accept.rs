//! Taking lanes: each handshake in a task of its own, few at once, none for long.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::{sleep, timeout};

use super::connection::TcpConnection;
use super::dial::Local;
use super::lane::{Lane, Traffic, kind};
use super::link::{ConnectionId, Link};
use super::{HELLO_BYTES, Purpose, control, handshake};
use crate::connection::Connection;
use crate::error::CloseCode;
use crate::identity::verify::identity_of;
use crate::peer::PeerIdentity;
use crate::quic::QuicConfig;

/// Connections ready to be taken by the caller; more wait with their handshake's permit.
pub(super) const READY: usize = 64;

/// After the system gave no connection (too many open files, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All connections of an endpoint, so that closing it ends them.
#[derive(Debug)]
pub(super) struct Connections {
    accepted: Mutex<HashMap<ConnectionId, Weak<Link>>>,
    dialled: Mutex<Vec<Weak<Link>>>,
    /// Held by every connection until its peer was told of its end; `None` once closed.
    alive: Mutex<Option<mpsc::Sender<()>>>,
}

impl Connections {
    pub(super) fn new(alive: mpsc::Sender<()>) -> Self {
        Self {
            accepted: Mutex::default(),
            dialled: Mutex::default(),
            alive: Mutex::new(Some(alive)),
        }
    }

    /// `None` once the endpoint is closed.
    pub(super) fn alive(&self) -> Option<mpsc::Sender<()>> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.clone()
    }

    pub(super) fn dialled(&self, link: &Arc<Link>) {
        let mut all = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|link| link.strong_count() > 0);
        all.push(Arc::downgrade(link));
    }

    /// Enters an accepted connection; `false` if its number is taken.
    fn enter(&self, link: &Arc<Link>) -> bool {
        let mut all = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        match all.entry(link.id) {
            Entry::Occupied(_) => false,
            Entry::Vacant(slot) => {
                slot.insert(Arc::downgrade(link));
                true
            }
        }
    }

    fn leave(&self, id: &ConnectionId) {
        let mut all = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }

    fn find(&self, id: &ConnectionId) -> Option<Arc<Link>> {
        let all = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).and_then(Weak::upgrade)
    }

    /// Ends all of them; none is made from now on.
    pub(super) fn close_all(&self) {
        self.alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = accepted.values().filter_map(Weak::upgrade).collect();
        drop(accepted);
        let dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(dialled.iter().filter_map(Weak::upgrade));
        drop(dialled);
        for link in all {
            link.close(CloseCode::SHUTDOWN, "endpoint closed");
        }
    }
}

/// What the tasks of one endpoint share.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) local: Arc<Local>,
    pub(super) tls: Arc<RwLock<Arc<ServerConfig>>>,
    pub(super) connections: Arc<Connections>,
    pub(super) ready: mpsc::Sender<Arc<dyn Connection>>,
}

/// Runs until aborted.
pub(super) async fn run(listener: TcpListener, gate: Arc<Gate>) {
    let most = gate.local.config.max_pending_handshakes;
    let share = QuicConfig::address_share(most);
    // Which address each handshake under way is from: few enough to be counted one by one.
    let mut pending: HashMap<Id, IpAddr> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            incoming = listener.accept() => match incoming {
                Ok((stream, addr)) => {
                    let same = pending.values().filter(|from| **from == addr.ip()).count();
                    // Dropped when there are too many: who dials tries again.
                    if pending.len() < most && same < share {
                        let gate = Arc::clone(&gate);
                        let task = tasks.spawn(async move { gate.take(stream, addr).await });
                        pending.insert(task.id(), addr.ip());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no TCP connection is taken");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = tasks.join_next_with_id() => {
                let id = ended.map_or_else(|panicked| panicked.id(), |(id, ())| id);
                pending.remove(&id);
            }
        }
    }
}

impl Gate {
    async fn take(&self, stream: TcpStream, addr: SocketAddr) {
        let deadline = self.local.config.handshake_deadline;
        match timeout(deadline, self.prove(stream)).await {
            Ok(Ok((lane, traffic, peer, id, purpose))) => match purpose {
                Purpose::Control => self.connection(lane, traffic, peer, id, addr).await,
                Purpose::Streams | Purpose::Reverse => {
                    if let Err(error) = self.attach(lane, &peer, id, purpose) {
                        tracing::debug!(%addr, %peer, error, "a lane was refused");
                    }
                }
            },
            Ok(Err(error)) => tracing::debug!(%addr, error, "a handshake failed"),
            Err(_) => tracing::debug!(%addr, "a handshake took too long"),
        }
    }

    /// The handshake and the hello.
    async fn prove(
        &self,
        stream: TcpStream,
    ) -> Result<(Lane, Arc<Traffic>, PeerIdentity, ConnectionId, Purpose), String> {
        self.local.prepare(&stream).map_err(|e| e.to_string())?;
        let tls = Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner));
        let secured = handshake::server(stream, tls)
            .await
            .map_err(|e| e.to_string())?;
        let leaf = secured.leaf.as_ref().ok_or("no certificate")?;
        let ca = self.local.node().ca_fingerprint();
        let peer = identity_of(leaf, ca).map_err(|e| e.to_string())?;
        let place = self.local.lanes.take(peer.server);
        let place = place.ok_or("the peer has too many connections here, or all peers have")?;
        let traffic = Arc::new(Traffic::default());
        let lane = Lane::new(secured, Arc::clone(&traffic), Some(place), None);
        let (kind, body) = lane.message().await.map_err(|e| e.to_string())?;
        let hello = (kind == kind::HELLO && body.len() == HELLO_BYTES)
            .then(|| body.split_first_chunk::<16>())
            .flatten();
        let (id, purpose) = hello.ok_or("no hello")?;
        let purpose = Purpose::from_byte(purpose[0]).ok_or("an unknown purpose")?;
        Ok((lane, traffic, peer, *id, purpose))
    }

    /// A new connection, by its control lane.
    async fn connection(
        &self,
        lane: Lane,
        traffic: Arc<Traffic>,
        peer: PeerIdentity,
        id: ConnectionId,
        addr: SocketAddr,
    ) {
        let Some(alive) = self.connections.alive() else {
            return;
        };
        let (link, offered) = Link::new(id, peer, addr, None, traffic, &self.local.config);
        if !self.connections.enter(&link) {
            tracing::debug!(%addr, %peer, "a connection's number is taken");
            return;
        }
        let connections = Arc::clone(&self.connections);
        let (watched, config) = (Arc::clone(&link), self.local.config.clone());
        link.spawn(async move {
            // The first thing that the peer hears.
            let welcomed = lane.put(kind::WELCOME, &[]);
            if welcomed.is_ok() {
                control::run(watched, lane, config, Some(alive)).await;
            }
            connections.leave(&id);
        });
        let taken: Arc<dyn Connection> = Arc::new(TcpConnection::new(Arc::clone(&link), offered));
        if self
            .ready
            .send_timeout(taken, Duration::from_secs(5))
            .await
            .is_err()
        {
            link.close(CloseCode::BUSY, "not taken in time");
        }
    }

    /// A further lane of a connection: only of the same peer.
    fn attach(
        &self,
        mut lane: Lane,
        peer: &PeerIdentity,
        id: ConnectionId,
        purpose: Purpose,
    ) -> Result<(), &'static str> {
        let link = self.connections.find(&id).ok_or("no such connection")?;
        if link.peer != *peer {
            return Err("the connection is another peer's");
        }
        if link.reason().is_some() {
            return Err("the connection is over");
        }
        let permit = Arc::clone(&link.lanes).try_acquire_owned();
        lane.join(&link.traffic, permit.map_err(|_| "too many lanes")?);
        let lane = Arc::new(lane);
        if purpose == Purpose::Reverse {
            link.brought(lane);
        } else {
            link.await_stream(lane);
        }
        Ok(())
    }
}
