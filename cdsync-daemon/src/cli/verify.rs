//! Whom the command talks to: the master whose authority the owner's token names.
//!
//! Host names are not asked for, because a master has none of its own: its chain must lead to that
//! authority, and its certificate must carry the role of a master, so that no other member of the
//! cluster can pose as one.

use std::sync::Arc;

use cdsync_transport::{CaFingerprint, PeerIdentity, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Why a server is not the master.
#[derive(Debug)]
pub(super) struct NotTheMaster(&'static str);

impl std::fmt::Display for NotTheMaster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotTheMaster {}

fn refused(why: &'static str) -> Error {
    CertificateError::Other(OtherError(Arc::new(NotTheMaster(why)))).into()
}

/// A configuration that takes only a master of this authority.
pub(super) fn config(fingerprint: CaFingerprint) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier {
        fingerprint,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct Verifier {
    fingerprint: CaFingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let named = |ca: &&CertificateDer<'_>| *blake3::hash(ca).as_bytes() == self.fingerprint.0;
        let ca = chain.iter().find(named);
        let ca = ca.ok_or_else(|| refused("it does not show the authority of this token"))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &roots,
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let identity = identity(leaf).ok_or_else(|| refused("its certificate names nobody"))?;
        if identity.role != Role::Master || identity.cluster != self.fingerprint.cluster() {
            return Err(refused("it is a member of the cluster, but not the master"));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The one name in a certificate, as an identity.
fn identity(leaf: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let extension = certificate.subject_alternative_name().ok()??;
    match extension.value.general_names.as_slice() {
        [GeneralName::DNSName(name)] => PeerIdentity::from_dns_name(name).ok(),
        _ => None,
    }
}
