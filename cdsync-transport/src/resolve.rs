//! From `host:port` to the addresses that are tried, one after the other.

use std::net::SocketAddr;
use std::time::Duration;

use crate::error::ConnectError;

/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 4;

/// How much earlier each address is tried than the next (RFC 8305 recommends 250 ms).
const HEAD_START: Duration = Duration::from_millis(250);

/// When the address of this index is tried, from the start of the attempt.
pub(crate) fn head_start(index: usize) -> Duration {
    HEAD_START * u32::try_from(index).unwrap_or(u32::MAX)
}

/// The addresses of `host:port`, at least one.
pub(crate) async fn resolve(addr: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |source| ConnectError::Resolve {
        addr: addr.to_owned(),
        source,
    };
    let found: Vec<_> = tokio::net::lookup_host(addr)
        .await
        .map_err(failed)?
        .take(MAX_ADDRESSES)
        .collect();
    if found.is_empty() {
        return Err(failed(std::io::ErrorKind::NotFound.into()));
    }
    Ok(found)
}
