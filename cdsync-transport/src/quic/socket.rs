//! UDP sockets with large buffers.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use super::config::{MAX_RECEIVED_BYTES, QuicConfig};

/// An endpoint on its own socket. Must be called inside a tokio runtime.
pub(super) fn endpoint(
    addr: SocketAddr,
    server: Option<ServerConfig>,
    config: &QuicConfig,
) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(addr)?;
    let wanted = config.socket_buffer_bytes();
    // The kernel cuts to its limit without an error; whatever fails here costs only speed.
    if let Err(e) = set_socket_recv_buffer_size(&socket, wanted)
        .and_then(|()| set_socket_send_buffer_size(&socket, wanted))
    {
        tracing::debug!(error = %e, wanted, "cannot enlarge the socket's buffers");
    }
    let mut settings = EndpointConfig::default();
    settings
        .max_udp_payload_size(MAX_RECEIVED_BYTES)
        .map_err(io::Error::other)?;
    Endpoint::new(settings, server, socket, Arc::new(TokioRuntime))
}
