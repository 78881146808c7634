//! QUIC by quinn: TLS 1.3, many streams, path MTU discovery, congestion control.
//!
//! One socket listens; dialled connections share a few sockets of their own, since one socket is
//! served by one task and so by one core.

mod accept;
mod config;
mod connection;
mod dial;
mod socket;
mod tls;
mod transport;

pub use config::QuicConfig;
pub use dial::enrol_connect;
pub use transport::QuicTransport;

/// The protocol between members of a cluster.
pub(crate) const ALPN_PEER: &[u8] = b"cdsync/1";

/// The protocol of a server that is about to join.
pub(crate) const ALPN_JOIN: &[u8] = b"cdsync-join/1";
