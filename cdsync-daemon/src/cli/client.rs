//! Calls of the master's API: one connection each, TLS pinned to the token's authority.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_master::OwnerToken;
use cdsync_master::api::types::ErrorBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::verify;
use crate::failure::{Failure, Result, chain};

const CONNECT: Duration = Duration::from_secs(10);

/// What a call takes at most beyond the time that it asks the master to wait.
const ANSWER: Duration = Duration::from_secs(30);

/// The status of 10,000 servers and some jobs of as many targets.
const BODY_MAX_BYTES: usize = 256 << 20;

/// Certificates are not checked against a host name; TLS only wants one that is valid.
const SERVER_NAME: &str = "cdsync.internal";

/// Calls one master.
pub(crate) struct Client {
    address: String,
    token: OwnerToken,
    tls: TlsConnector,
    /// What to type when the master does not answer.
    start: String,
}

impl Client {
    pub(super) fn new(address: String, token: OwnerToken, start: String) -> Result<Self> {
        let config = verify::config(token.fingerprint());
        let config = config.map_err(|error| Failure::machine(&error))?;
        Ok(Self {
            address,
            token,
            tls: TlsConnector::from(Arc::new(config)),
            start,
        })
    }

    /// Calls without a body; JSON comes back.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None::<&()>, Duration::ZERO)
            .await
    }

    /// As [`Client::get`], where the master takes its time.
    pub(crate) async fn get_slowly<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T> {
        self.call(Method::GET, path, None::<&()>, patience).await
    }

    /// Calls with a JSON body; JSON comes back.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        patience: Duration,
    ) -> Result<T> {
        self.call(method, path, body, patience).await
    }

    /// Removes; nothing comes back.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        self.exchange(Method::DELETE, path, Bytes::new(), Duration::ZERO)
            .await
            .map(drop)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        patience: Duration,
    ) -> Result<T> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body
            .map_err(|error| Failure::machine(&error))?
            .unwrap_or_default();
        let answer = self.exchange(method, path, body.into(), patience).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            Failure::condition(format!("the master's answer does not parse: {error}"))
                .next("use a cdsync of the same version as the master")
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes> {
        let stream = tokio::time::timeout(CONNECT, self.dial()).await;
        let stream = stream.map_err(|_| self.unreachable("it does not answer"))??;
        let lost = |error: &dyn std::error::Error| self.unreachable(&chain(error));
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| lost(&error))?;
        // It ends with the call: the sender is dropped then.
        let driving = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header(header::HOST, &self.address)
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.token.to_text()),
            )
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::machine(&error))?;
        let answered = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| lost(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| self.unreachable(&error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let answered = tokio::time::timeout(patience.saturating_add(ANSWER), answered).await;
        driving.abort();
        let (status, body) =
            answered.map_err(|_| self.unreachable("it took too long to answer"))??;
        if status.is_success() {
            Ok(body)
        } else {
            Err(refusal(status, &body))
        }
    }

    async fn dial(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await;
        let stream = stream.map_err(|error| self.unreachable(&error.to_string()))?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| Failure::machine(&error))?;
        self.tls.connect(name, stream).await.map_err(|error| {
            let why = error.to_string();
            let tls = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match tls {
                Some(rustls::Error::InvalidCertificate(_)) => Failure::not_permitted(format!(
                    "what answers at {} is not the master of this token: {why}",
                    self.address
                )),
                _ => self.unreachable(&why),
            }
        })
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::unreachable(format!(
            "the master at {} cannot be reached: {why}",
            self.address
        ))
        .next(self.start.clone())
    }
}

/// What the master's error means for the exit code.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let said = serde_json::from_slice::<ErrorBody>(body).unwrap_or_else(|_| ErrorBody {
        error: format!("the master answered {status}"),
        next: None,
    });
    let failure = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::not_permitted(said.error),
        _ => Failure::condition(said.error),
    };
    match said.next {
        Some(next) => failure.next(next),
        None => failure,
    }
}
