//! Taking connections: each handshake in a task of its own, few at once, none for long.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, Incoming, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::config::{QuicConfig, UNPROVEN_WINDOW_BYTES};
use super::connection::{Budget, QuicConnection, code};
use super::tls::accepted_peer;
use crate::connection::Connection;
use crate::error::CloseCode;
use crate::identity::CaFingerprint;
use crate::limit::{PeerLimit, PeerPlace};
use crate::peer::Role;

/// Connections ready to be taken by the caller; more wait with their handshake's permit.
pub(super) const READY: usize = 64;

/// What the tasks of one endpoint share.
#[derive(Debug)]
struct Gate {
    config: QuicConfig,
    ca: CaFingerprint,
    /// By address: nobody is proven yet.
    joins: PeerLimit<IpAddr>,
    ready: mpsc::Sender<Arc<dyn Connection>>,
}

/// Runs until the endpoint is closed.
pub(super) async fn run(
    endpoint: Endpoint,
    config: QuicConfig,
    ca: CaFingerprint,
    ready: mpsc::Sender<Arc<dyn Connection>>,
) {
    let pending_max = config.max_pending_handshakes;
    let pending = Arc::new(Semaphore::new(pending_max));
    let addresses = PeerLimit::new(QuicConfig::address_share(pending_max));
    let joins = PeerLimit::with_total(QuicConfig::join_share(config.max_joins), config.max_joins);
    let gate = Arc::new(Gate {
        config,
        ca,
        joins,
        ready,
    });
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                let crowded = pending.available_permits() <= pending_max / 2;
                let place = addresses.take(incoming.remote_address().ip());
                if (crowded || place.is_none()) && !incoming.remote_address_validated() {
                    // A forged address never answers this; nothing is kept meanwhile. It fails only
                    // for an address that is validated.
                    let _ = incoming.retry();
                    continue;
                }
                match (place, Arc::clone(&pending).try_acquire_owned()) {
                    (Some(place), Ok(permit)) => {
                        let pending = Pending { _permit: permit, _place: place };
                        tasks.spawn(Arc::clone(&gate).handshake(incoming, pending));
                    }
                    _ => incoming.refuse(),
                }
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Counts a handshake under way, among all and among those of its address.
struct Pending {
    _permit: OwnedSemaphorePermit,
    _place: PeerPlace<IpAddr>,
}

impl Gate {
    /// Does one handshake, hands the connection over, and stays with it while it is unproven.
    async fn handshake(self: Arc<Self>, incoming: Incoming, pending: Pending) {
        let addr = incoming.remote_address();
        let deadline = self.config.handshake_deadline;
        let Ok(connecting) = incoming.accept() else {
            return;
        };
        let connection = match timeout(deadline, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(%addr, %error, "a handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(%addr, "a handshake took too long");
                return;
            }
        };
        match accepted_peer(&connection, self.ca) {
            Ok(peer) if peer.role == Role::Joining => self.take_joining(connection, pending).await,
            Ok(peer) => {
                connection.set_receive_window(self.config.accepted_window_bytes());
                connection.set_max_concurrent_bi_streams(QuicConfig::member_streams());
                let taken = QuicConnection::new(connection.clone(), peer, None, None);
                self.hand_over(connection, Arc::new(taken)).await;
            }
            Err(error) => {
                tracing::debug!(%addr, %error, "a peer was refused");
                connection.close(
                    code(CloseCode::UNAUTHENTICATED),
                    b"a certificate is required",
                );
            }
        }
    }

    async fn take_joining(&self, connection: quinn::Connection, pending: Pending) {
        let Some(_join) = self.joins.take(connection.remote_address().ip()) else {
            connection.close(code(CloseCode::BUSY), b"too many servers are joining");
            return;
        };
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(1));
        let budget = Budget::new(UNPROVEN_WINDOW_BYTES.into(), connection.clone());
        let peer = crate::peer::PeerIdentity::joining(self.ca.cluster());
        let taken = QuicConnection::new(connection.clone(), peer, None, Some(budget));
        let life = async {
            self.hand_over(connection.clone(), Arc::new(taken)).await;
            drop(pending);
            connection.closed().await;
        };
        if timeout(self.config.join_deadline, life).await.is_err() {
            connection.close(code(CloseCode::DEADLINE), b"joining took too long");
        }
    }

    async fn hand_over(&self, connection: quinn::Connection, taken: Arc<dyn Connection>) {
        if self
            .ready
            .send_timeout(taken, Duration::from_secs(5))
            .await
            .is_err()
        {
            connection.close(code(CloseCode::BUSY), b"not taken in time");
        }
    }
}
