//! The endpoint.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::Endpoint;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::config::QuicConfig;
use super::connection::code;
use super::dial::Dialler;
use super::{accept, socket, tls};
use crate::connection::{BoxFuture, Connection, Transport};
use crate::error::{BindError, CloseCode, ConnectError};
use crate::identity::NodeIdentity;
use crate::peer::PeerExpectation;

/// What one packet of an unfinished handshake may hold back, and all of them together, in bytes.
/// quinn's defaults (10 MiB, 100 MiB) would let strangers fill an agent's memory.
const INCOMING_BYTES: u64 = 64 * 1024;
const ALL_INCOMING_BYTES: u64 = 4 * 1024 * 1024;

/// How long `close` waits for the peers to hear of it.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// A QUIC endpoint with an identity. Dropping it closes it without waiting.
#[derive(Debug)]
pub struct QuicTransport {
    endpoint: Endpoint,
    local_addr: SocketAddr,
    node: RwLock<NodeIdentity>,
    config: QuicConfig,
    dialler: Dialler,
    ready: Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
    acceptor: JoinHandle<()>,
}

impl QuicTransport {
    /// Listens on `listen` (port 0: any free one) as `node`. Must be called inside a tokio runtime
    /// with I/O and time enabled, which it keeps using.
    ///
    /// # Errors
    /// [`BindError::Listen`] (retryable) and [`BindError::Identity`].
    pub fn bind(
        listen: SocketAddr,
        node: NodeIdentity,
        config: QuicConfig,
    ) -> Result<Self, BindError> {
        let server = server_config(&node, &config)?;
        let failed = |source| BindError::Listen {
            protocol: "UDP",
            addr: listen,
            source,
        };
        let endpoint = socket::endpoint(listen, Some(server), &config).map_err(failed)?;
        let local_addr = endpoint.local_addr().map_err(failed)?;
        let (sender, ready) = mpsc::channel(accept::READY);
        let acceptor = tokio::spawn(accept::run(
            endpoint.clone(),
            config.clone(),
            node.ca_fingerprint(),
            sender,
        ));
        Ok(Self {
            endpoint,
            local_addr,
            node: RwLock::new(node),
            dialler: Dialler::new(config.clone()),
            config,
            ready: Mutex::new(ready),
            acceptor,
        })
    }

    /// The identity in use.
    #[must_use]
    pub fn node(&self) -> NodeIdentity {
        self.node
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes a renewed certificate for all connections from now on; those that exist stay as they
    /// are. It must be of the same authority.
    ///
    /// # Errors
    /// [`BindError::Identity`], not retryable; the old identity stays in use.
    pub fn set_node(&self, node: NodeIdentity) -> Result<(), BindError> {
        if node.ca_fingerprint() != self.node().ca_fingerprint() {
            let detail = "the certificate is of another authority".to_owned();
            return Err(BindError::Identity { detail });
        }
        self.endpoint
            .set_server_config(Some(server_config(&node, &self.config)?));
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = node;
        Ok(())
    }

    fn shut(&self) -> Vec<Endpoint> {
        let mut all = self.dialler.shut();
        all.push(self.endpoint.clone());
        for endpoint in &all {
            endpoint.close(code(CloseCode::SHUTDOWN), b"endpoint closed");
        }
        all
    }
}

fn server_config(
    node: &NodeIdentity,
    config: &QuicConfig,
) -> Result<quinn::ServerConfig, BindError> {
    let mut server =
        tls::server(node, config.accept_joins).map_err(|detail| BindError::Identity { detail })?;
    server
        .transport_config(config.accepted())
        .max_incoming(config.max_pending_handshakes)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(ALL_INCOMING_BYTES);
    Ok(server)
}

impl Transport for QuicTransport {
    fn connect<'a>(
        &'a self,
        addr: &'a str,
        expect: &'a PeerExpectation,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, ConnectError>> {
        Box::pin(async move {
            let node = self.node();
            self.dialler
                .connect(addr, || tls::client(&node, expect))
                .await
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async move { self.ready.lock().await.recv().await })
    }

    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let all = self.shut();
        Box::pin(async move {
            let idle = async {
                for endpoint in &all {
                    endpoint.wait_idle().await;
                }
            };
            // A peer that is gone would keep it waiting for the idle timeout.
            let _ = timeout(CLOSE_WAIT, idle).await;
        })
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shut();
        self.acceptor.abort();
    }
}
