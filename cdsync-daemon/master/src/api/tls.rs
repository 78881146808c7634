//! Serving the API: TLS with the master's own certificate, then HTTP/1.1.
//!
//! The chain carries the cluster's authority: clients know only its fingerprint, and check the
//! role in the certificate instead of a host name.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cdsync_transport::{PeerLimit, PeerPlace};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::auth::Proven;
use super::router;
use crate::MasterError;
use crate::shared::Shared;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// How many connections of one address may have shown no token yet.
const UNPROVEN_OF_ADDRESS: usize = 64;
/// How long a connection may go without a token: as long as one request may take to come, its answer
/// to be taken.
const UNPROVEN: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(30);
/// After `accept` failed, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The certificate that is shown; it can be renewed while connections are open.
pub(crate) struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    shown: Arc<Shown>,
}

#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls(..)")
    }
}

fn failed(error: impl fmt::Display) -> MasterError {
    MasterError::Tls {
        detail: error.to_string(),
    }
}

fn certified(node: &Path) -> Result<Arc<CertifiedKey>, MasterError> {
    let pem = |name: &str| CertificateDer::from_pem_file(node.join(name)).map_err(failed);
    let key = PrivateKeyDer::from_pem_file(node.join("node.key")).map_err(failed)?;
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key)
        .map_err(failed)?;
    let certified = CertifiedKey::new(vec![pem("node.pem")?, pem("ca.pem")?], key);
    certified.keys_match().map_err(failed)?;
    Ok(Arc::new(certified))
}

impl ServerTls {
    /// Reads the folder that a node identity was saved to.
    pub(crate) fn new(node: &Path) -> Result<Self, MasterError> {
        let shown = Arc::new(Shown(RwLock::new(certified(node)?)));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            shown,
        })
    }

    /// Reads the folder again; connections from now on see the new certificate.
    pub(crate) fn reload(&self, node: &Path) -> Result<(), MasterError> {
        let fresh = certified(node)?;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

/// Serves until `stopping`, then lets open requests end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Arc<ServerTls>,
    stopping: CancellationToken,
) {
    let router = router(&shared);
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let addresses = PeerLimit::new(UNPROVEN_OF_ADDRESS);
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = next(&listener, &room, &addresses) => accepted,
        };
        while tasks.try_join_next().is_some() {}
        let Some((stream, permit, place)) = accepted else {
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        let stopping = stopping.clone();
        tasks.spawn(async move {
            if let Err(error) = connection(stream, acceptor, router, place, stopping).await {
                debug!(error, "a connection to the API ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    addresses: &PeerLimit<IpAddr>,
) -> Option<(TcpStream, OwnedSemaphorePermit, PeerPlace<IpAddr>)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        // Closed when its address has too many.
        Ok((stream, from)) => Some((stream, permit, addresses.take(from.ip())?)),
        Err(error) => {
            warn!(%error, "the API cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: axum::Router,
    place: PeerPlace<IpAddr>,
    stopping: CancellationToken,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let stream = handshake
        .map_err(|_| "no handshake in time".to_owned())?
        .map_err(|error| error.to_string())?;
    http(stream, router, Proven::not_yet(place), stopping).await
}

/// Serves a connection whose handshake is done, until it ends, or goes on for long without a token.
pub(crate) async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: axum::Router,
    proven: Proven,
    stopping: CancellationToken,
) -> Result<(), String> {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    let router = router.layer(axum::Extension(proven.clone()));
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let mut looked = false;
    let mut deadline = pin!(tokio::time::sleep(UNPROVEN));
    loop {
        tokio::select! {
            result = serving.as_mut() => return result.map_err(|error| error.to_string()),
            () = stopping.cancelled() => break serving.as_mut().graceful_shutdown(),
            () = &mut deadline, if !looked => {
                if !proven.is_proven() {
                    return Err("it showed no token in time".to_owned());
                }
                looked = true;
            }
        }
    }
    serving.await.map_err(|error| error.to_string())
}
