//! A master's configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use serde::{Deserialize, Serialize};

/// Where a master listens and how it is reached, as `master.toml` holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MasterConfig {
    /// Where agents connect (UDP). Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Where the API listens (TCP). Port 0 lets the system choose.
    pub http: SocketAddr,
    /// What goes into join tokens: `host:port` that agents dial. Without it, `listen`, or this
    /// machine's address towards the outside where `listen` is a wildcard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

impl MasterConfig {
    /// Where agents connect unless told otherwise.
    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7400);
    /// Where the API listens unless told otherwise.
    pub const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7480);
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            listen: Self::LISTEN,
            http: Self::HTTP,
            advertise: None,
        }
    }
}

/// The address that this machine uses towards `peer`, if there is a route. Nothing is sent.
#[must_use]
pub fn local_address_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

/// What to tell others where one listens at `bound`: itself, or for a wildcard the address towards
/// the outside (a documentation address stands for it), or loopback on a machine without one.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let outside = SocketAddr::from(([192, 0, 2, 1], 9));
    let ip = local_address_towards(outside).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    SocketAddr::new(ip, bound.port())
}

/// What agents dial: as configured, else where it listens; the real port in place of 0.
pub(crate) fn advertised(config: &MasterConfig, bound: SocketAddr) -> String {
    match &config.advertise {
        None => reachable(bound).to_string(),
        Some(text) => match text.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", bound.port()),
            None => text.clone(),
        },
    }
}
