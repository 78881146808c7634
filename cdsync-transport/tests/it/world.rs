//! A cluster for tests, and small helpers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, Connection, NodeIdentity, PeerIdentity, QuicConfig,
    QuicTransport, RecvHalf, TcpTransport, Transport,
};

pub(crate) const SERVER: ServerId = ServerId(0xb);
pub(crate) const CLIENT: ServerId = ServerId(0xa);

/// An authority that issues what tests need.
pub(crate) struct Cluster {
    pub(crate) ca: CertificateAuthority,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            ca: CertificateAuthority::create().unwrap(),
        }
    }

    pub(crate) fn agent(&self, server: ServerId) -> NodeIdentity {
        let identity = PeerIdentity::agent(self.ca.cluster(), server);
        self.ca
            .issue_local(&identity, CERTIFICATE_VALIDITY)
            .unwrap()
    }

    pub(crate) fn master(&self, server: ServerId) -> NodeIdentity {
        let identity = PeerIdentity::master(self.ca.cluster(), server);
        self.ca
            .issue_local(&identity, CERTIFICATE_VALIDITY)
            .unwrap()
    }
}

/// Fails fast, so that a lost packet in a test does not take the defaults' seconds.
pub(crate) fn quick() -> QuicConfig {
    QuicConfig::default()
        .keep_alive(Duration::from_millis(200), Duration::from_secs(2))
        .handshake_deadline(Duration::from_secs(5))
        .client_sockets(1)
}

pub(crate) fn bind(node: NodeIdentity, config: QuicConfig) -> Arc<QuicTransport> {
    Arc::new(QuicTransport::bind("127.0.0.1:0".parse().unwrap(), node, config).unwrap())
}

pub(crate) fn bind_tcp(node: NodeIdentity, config: QuicConfig) -> Arc<TcpTransport> {
    Arc::new(TcpTransport::bind("127.0.0.1:0".parse().unwrap(), node, config).unwrap())
}

/// Accepts one connection and keeps it.
pub(crate) async fn accept_one(transport: &dyn Transport) -> Arc<dyn Connection> {
    within(transport.accept()).await.unwrap()
}

/// A deadline that only a hang reaches.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("hangs")
}

/// Everything until the end of the stream.
pub(crate) async fn read_all(recv: &mut dyn RecvHalf) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = recv.recv().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    all
}

/// Bytes that no compression or repetition makes equal by chance.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}
