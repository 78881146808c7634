//! Dialling: resolve, try the addresses with a head start for the first, prove both identities.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use quinn::{ClientConfig, Endpoint};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::config::QuicConfig;
use super::connection::{QuicConnection, close_reason};
use super::socket;
use super::tls;
use crate::connection::Connection;
use crate::error::{CloseReason, ConnectError};
use crate::identity::CaFingerprint;
use crate::resolve::{head_start, resolve};
use crate::tls::Verdict;

/// What certificates are checked against is not a host name; quinn only wants one that is valid.
const SERVER_NAME: &str = "cdsync.internal";

/// The sockets for dialling, made when first used, spread over by turns.
#[derive(Debug)]
pub(super) struct Dialler {
    config: QuicConfig,
    v4: Mutex<Vec<Endpoint>>,
    v6: Mutex<Vec<Endpoint>>,
    turn: AtomicUsize,
    closed: AtomicBool,
}

impl Dialler {
    pub(super) fn new(config: QuicConfig) -> Self {
        Self {
            config,
            v4: Mutex::default(),
            v6: Mutex::default(),
            turn: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn endpoint(&self, to: SocketAddr) -> std::io::Result<Endpoint> {
        let (slots, any) = match to {
            SocketAddr::V4(_) => (&self.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&self.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.config.client_socket_count();
        let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = slots.get(turn) {
            return Ok(endpoint.clone());
        }
        let endpoint = socket::endpoint(any, None, &self.config)?;
        slots.push(endpoint.clone());
        Ok(endpoint)
    }

    /// Makes no connection from now on; returns the endpoints to be closed.
    pub(super) fn shut(&self) -> Vec<Endpoint> {
        self.closed.store(true, Ordering::Release);
        let all = |slots: &Mutex<Vec<Endpoint>>| {
            slots.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        [all(&self.v4), all(&self.v6)].concat()
    }

    /// Connects with what `tls` makes for each attempt, within the handshake deadline.
    pub(super) async fn connect(
        &self,
        addr: &str,
        tls: impl Fn() -> Result<(ClientConfig, Verdict), String>,
    ) -> Result<Arc<dyn Connection>, ConnectError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ConnectError::Closed);
        }
        let after = self.config.handshake_deadline;
        timeout(after, self.race(addr, tls))
            .await
            .unwrap_or_else(|_| {
                Err(ConnectError::TimedOut {
                    addr: addr.to_owned(),
                    after,
                })
            })
    }

    async fn race(
        &self,
        addr: &str,
        tls: impl Fn() -> Result<(ClientConfig, Verdict), String>,
    ) -> Result<Arc<dyn Connection>, ConnectError> {
        let local = |detail| ConnectError::Local {
            addr: addr.to_owned(),
            detail,
        };
        let mut attempts = JoinSet::new();
        let mut failure = None;
        for (index, target) in resolve(addr).await?.into_iter().enumerate() {
            let endpoint = match self.endpoint(target) {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    failure = Some(local(error.to_string()));
                    continue;
                }
            };
            let (mut config, verdict) = tls().map_err(local)?;
            config.transport_config(self.config.dialled());
            let attempt = Attempt {
                addr: addr.to_owned(),
                target,
                endpoint,
                config,
                verdict,
            };
            attempts.spawn(async move {
                sleep(head_start(index)).await;
                attempt.run().await
            });
        }
        // Dropping the set on return abandons the slower attempts.
        while let Some(outcome) = attempts.join_next().await {
            match outcome {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failure = Some(error),
                Err(error) => failure = Some(local(error.to_string())),
            }
        }
        Err(failure.unwrap_or_else(|| local("no address to try".to_owned())))
    }
}

struct Attempt {
    addr: String,
    target: SocketAddr,
    endpoint: Endpoint,
    config: ClientConfig,
    verdict: Verdict,
}

impl Attempt {
    async fn run(self) -> Result<Arc<dyn Connection>, ConnectError> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), self.target, SERVER_NAME)
            .map_err(|error| self.unstarted(&error))?;
        let connection = connecting.await.map_err(|error| self.failed(error))?;
        // TLS is done for this side before the peer has seen its certificate. The peer allows a
        // stream only once it took it, so waiting for one tells: one round trip, no byte.
        let first = connection
            .open_bi()
            .await
            .map_err(|error| self.failed(error))?;
        let Some(Ok(peer)) = self.verdict.get() else {
            let source = crate::peer::IdentityError::NoCertificate;
            return Err(ConnectError::Identity {
                addr: self.addr,
                source,
            });
        };
        Ok(Arc::new(QuicConnection::new(
            connection,
            *peer,
            Some(first),
            None,
        )))
    }

    fn unstarted(&self, error: &quinn::ConnectError) -> ConnectError {
        let addr = self.addr.clone();
        match error {
            quinn::ConnectError::EndpointStopping => ConnectError::Closed,
            other => ConnectError::Unreachable {
                addr,
                detail: other.to_string(),
            },
        }
    }

    fn failed(&self, error: quinn::ConnectionError) -> ConnectError {
        let addr = self.addr.clone();
        if let Some(Err(source)) = self.verdict.get() {
            return ConnectError::Identity {
                addr,
                source: source.clone(),
            };
        }
        match close_reason(error) {
            CloseReason::TimedOut => ConnectError::Unreachable {
                addr,
                detail: "nobody answers".to_owned(),
            },
            CloseReason::Local => ConnectError::Closed,
            source => ConnectError::Refused { addr, source },
        }
    }
}

/// Connects a server that is about to join to its master. The master is taken only if it presents
/// an authority of this fingerprint and a certificate of it with the role of a master. The
/// connection allows one stream, lasts ten seconds and carries 64 KiB at most to the master; close
/// it when the answer is there. Needs a tokio runtime; its socket goes with the connection.
///
/// # Errors
/// [`ConnectError`]; [`ConnectError::Identity`] when the master is not the token's, never
/// retryable.
///
/// # Cancel safety
/// Dropping it abandons the attempt.
pub async fn enrol_connect(
    addr: &str,
    fingerprint: CaFingerprint,
) -> Result<Arc<dyn Connection>, ConnectError> {
    Dialler::new(QuicConfig::default().client_sockets(1))
        .connect(addr, || tls::joining(fingerprint))
        .await
}
