//! The endpoint.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::accept::{self, Connections, Gate};
use super::connection::TcpConnection;
use super::dial::{self, LaneDialler, Local};
use super::link::{ConnectionId, Link};
use super::{ALPN_TCP, control};
use crate::connection::{BoxFuture, Connection, Transport};
use crate::error::{BindError, ConnectError};
use crate::identity::NodeIdentity;
use crate::peer::PeerExpectation;
use crate::quic::QuicConfig;
use crate::tls;

/// A TCP endpoint with an identity, for members only. Dropping it closes it without waiting.
#[derive(Debug)]
pub struct TcpTransport {
    local_addr: SocketAddr,
    local: Arc<Local>,
    tls: Arc<RwLock<Arc<rustls::ServerConfig>>>,
    connections: Arc<Connections>,
    ready: Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
    /// Ends once every peer was told.
    told: Mutex<mpsc::Receiver<()>>,
    acceptor: JoinHandle<()>,
}

impl TcpTransport {
    /// Listens on `listen` (port 0: any free one) as `node`. Must be called inside a tokio runtime
    /// with I/O and time enabled, which it keeps using. Of `config` it takes the deadline and number
    /// of handshakes and the signs of life; windows are the kernel's, and joins are refused.
    ///
    /// # Errors
    /// [`BindError::Listen`] (retryable) and [`BindError::Identity`].
    pub fn bind(
        listen: SocketAddr,
        node: NodeIdentity,
        config: QuicConfig,
    ) -> Result<Self, BindError> {
        let tls = server_config(&node)?;
        let failed = |source| BindError::Listen {
            protocol: "TCP",
            addr: listen,
            source,
        };
        let listener = listener(listen).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let local = Arc::new(Local::new(node, config));
        let (alive, told) = mpsc::channel(1);
        let connections = Arc::new(Connections::new(alive));
        let (sender, ready) = mpsc::channel(accept::READY);
        let tls = Arc::new(RwLock::new(tls));
        // The acceptor alone may hand connections over: `accept` ends with it.
        let gate = Arc::new(Gate {
            local: Arc::clone(&local),
            tls: Arc::clone(&tls),
            connections: Arc::clone(&connections),
            ready: sender,
        });
        let acceptor = tokio::spawn(accept::run(listener, gate));
        Ok(Self {
            local_addr,
            local,
            tls,
            connections,
            ready: Mutex::new(ready),
            told: Mutex::new(told),
            acceptor,
        })
    }

    /// The identity in use.
    #[must_use]
    pub fn node(&self) -> NodeIdentity {
        self.local.node()
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
        let tls = server_config(&node)?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        self.local.set_node(node);
        Ok(())
    }

    fn shut(&self) {
        self.acceptor.abort();
        self.connections.close_all();
    }
}

fn listener(listen: SocketAddr) -> std::io::Result<TcpListener> {
    // It sets SO_REUSEADDR: a restart need not wait for the old connections' last packets.
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn server_config(node: &NodeIdentity) -> Result<Arc<rustls::ServerConfig>, BindError> {
    let mut config =
        tls::server(node, false, &[ALPN_TCP]).map_err(|detail| BindError::Identity { detail })?;
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

impl Transport for TcpTransport {
    fn connect<'a>(
        &'a self,
        addr: &'a str,
        expect: &'a PeerExpectation,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, ConnectError>> {
        Box::pin(async move {
            let Some(alive) = self.connections.alive() else {
                return Err(ConnectError::Closed);
            };
            let mut id = ConnectionId::default();
            getrandom::fill(&mut id).map_err(|error| ConnectError::Local {
                addr: addr.to_owned(),
                detail: error.to_string(),
            })?;
            let dialled = dial::connect(&self.local, id, addr, expect).await?;
            let dialler = LaneDialler {
                local: Arc::clone(&self.local),
            };
            let (link, offered) = Link::new(
                id,
                dialled.peer,
                dialled.remote,
                Some(dialler),
                dialled.traffic,
                &self.local.config,
            );
            link.measured(dialled.rtt);
            self.connections.dialled(&link);
            if self.connections.alive().is_none() {
                return Err(ConnectError::Closed);
            }
            let config = self.local.config.clone();
            let control = control::run(Arc::clone(&link), dialled.lane, config, Some(alive));
            link.spawn(control);
            let connection: Arc<dyn Connection> = Arc::new(TcpConnection::new(link, offered));
            Ok(connection)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async move { self.ready.lock().await.recv().await })
    }

    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shut();
        Box::pin(async move {
            let mut told = self.told.lock().await;
            let _ = timeout(control::CLOSE_WAIT, told.recv()).await;
        })
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        self.shut();
    }
}
