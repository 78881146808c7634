//! Proving a certificate: its chain, then the one identity it carries.

use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::CaFingerprint;
use crate::error::peer_text;
use crate::peer::{IdentityError, PeerIdentity};

/// The crypto provider of this crate. It is never installed for the process: a program that embeds
/// this crate may have chosen another.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

pub(crate) fn untrusted(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Untrusted {
        detail: peer_text(error.to_string().as_bytes()),
    }
}

/// A store that trusts one authority and nothing else.
pub(crate) fn root_store(ca: &CertificateDer<'_>) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).map_err(untrusted)?;
    Ok(roots)
}

/// Checks that `leaf` chains to `ca` at `now`, and reads its identity.
pub(crate) fn verify_member(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    ca: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<PeerIdentity, IdentityError> {
    let parsed = ParsedCertificate::try_from(leaf).map_err(untrusted)?;
    let roots = root_store(ca)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)
        .map_err(untrusted)?;
    identity_of(leaf, CaFingerprint::of(ca))
}

/// The identity in a certificate whose chain to the authority is already proven.
pub(crate) fn identity_of(
    leaf: &CertificateDer<'_>,
    ca: CaFingerprint,
) -> Result<PeerIdentity, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(untrusted)?;
    let extension = certificate.subject_alternative_name().map_err(untrusted)?;
    let names = extension
        .map(|e| e.value.general_names.as_slice())
        .unwrap_or_default();
    let [GeneralName::DNSName(name)] = names else {
        return Err(IdentityError::NameCount { names: names.len() });
    };
    let identity = PeerIdentity::from_dns_name(name)?;
    let expected = ca.cluster();
    if identity.cluster != expected {
        return Err(IdentityError::WrongCluster {
            expected,
            found: identity.cluster,
        });
    }
    Ok(identity)
}
