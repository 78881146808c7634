//! The TLS configurations in quinn's form.

use std::sync::Arc;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;

use super::{ALPN_JOIN, ALPN_PEER};
use crate::identity::verify::{identity_of, provider};
use crate::identity::{CaFingerprint, NodeIdentity};
use crate::peer::{IdentityError, PeerExpectation, PeerIdentity, Role};
use crate::tls::{self, Trust, Verdict};

/// How the listening side identifies itself and whom it takes.
pub(super) fn server(node: &NodeIdentity, joins: bool) -> Result<quinn::ServerConfig, String> {
    let protocols: &[&[u8]] = if joins {
        &[ALPN_PEER, ALPN_JOIN]
    } else {
        &[ALPN_PEER]
    };
    let config = tls::server(node, joins, protocols)?;
    let config = QuicServerConfig::try_from(config).map_err(|e| e.to_string())?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(config)))
}

/// For one attempt of a member to reach another; the verdict belongs to this attempt.
pub(super) fn client(
    node: &NodeIdentity,
    expect: &PeerExpectation,
) -> Result<(quinn::ClientConfig, Verdict), String> {
    for_quinn(tls::member(node, expect, ALPN_PEER, provider())?)
}

/// For one attempt of a server to join.
pub(super) fn joining(
    fingerprint: CaFingerprint,
) -> Result<(quinn::ClientConfig, Verdict), String> {
    let expect = PeerExpectation {
        role: Role::Master,
        server: None,
    };
    let trust = Trust::Fingerprint(fingerprint);
    for_quinn(tls::client(trust, None, expect, ALPN_JOIN, provider())?)
}

fn for_quinn(
    (config, verdict): (rustls::ClientConfig, Verdict),
) -> Result<(quinn::ClientConfig, Verdict), String> {
    let config = QuicClientConfig::try_from(config).map_err(|e| e.to_string())?;
    Ok((quinn::ClientConfig::new(Arc::new(config)), verdict))
}

/// Who an accepted peer is, from what the handshake proved.
pub(super) fn accepted_peer(
    connection: &quinn::Connection,
    ca: CaFingerprint,
) -> Result<PeerIdentity, IdentityError> {
    let data = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok());
    if data.and_then(|data| data.protocol).as_deref() == Some(ALPN_JOIN) {
        return Ok(PeerIdentity::joining(ca.cluster()));
    }
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NoCertificate)?;
    identity_of(chain.first().ok_or(IdentityError::NoCertificate)?, ca)
}
