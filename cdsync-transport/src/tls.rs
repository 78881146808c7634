//! TLS configurations: own provider, TLS 1.3 only, both sides verified against one authority.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};

use crate::identity::verify::{identity_of, provider, root_store, verify_member};
use crate::identity::{CaFingerprint, NodeIdentity};
use crate::peer::{IdentityError, PeerExpectation, PeerIdentity};

/// What a dialling side trusts.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// The authority that signed one's own certificate.
    Authority(CertificateDer<'static>),
    /// Before joining: an authority of this fingerprint, which the server must present.
    Fingerprint(CaFingerprint),
}

/// Where the verifier leaves what it found: TLS itself only carries an alert.
pub(crate) type Verdict = Arc<OnceLock<Result<PeerIdentity, IdentityError>>>;

#[derive(Debug)]
struct ServerVerifier {
    provider: Arc<CryptoProvider>,
    trust: Trust,
    expect: PeerExpectation,
    verdict: Verdict,
}

impl ServerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<PeerIdentity, IdentityError> {
        let ca = match &self.trust {
            Trust::Authority(ca) => ca,
            Trust::Fingerprint(wanted) => chain
                .iter()
                .find(|certificate| CaFingerprint::of(certificate) == *wanted)
                .ok_or(IdentityError::WrongAuthority)?,
        };
        let identity = verify_member(leaf, chain, ca, now)?;
        self.expect.check(&identity)?;
        Ok(identity)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.verify(end_entity, intermediates, now);
        let good = verdict.is_ok();
        // One verifier serves one handshake, so the slot is still empty.
        let _ = self.verdict.set(verdict);
        if good {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refusal())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls13())
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

fn refusal() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// Only TLS 1.3 is configured: a TLS 1.2 signature cannot come.
fn not_tls13() -> Error {
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)
}

/// Checks a client's chain as webpki does, then that it carries an identity of this cluster.
#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    ca: CaFingerprint,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Members have one certificate: there is nothing to choose, and strangers learn nothing.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        identity_of(end_entity, self.ca).map_err(|error| {
            tracing::debug!(%error, "refused a client certificate");
            refusal()
        })?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// How the listening side identifies itself and whom it takes. With `anonymous`, a peer without a
/// certificate passes too: what it may do is judged after the handshake, when the protocol is known.
pub(crate) fn server(
    node: &NodeIdentity,
    anonymous: bool,
    protocols: &[&[u8]],
) -> Result<ServerConfig, String> {
    let roots = Arc::new(root_store(node.ca()).map_err(|e| e.to_string())?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if anonymous {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    let chain = builder.build().map_err(|e| e.to_string())?;
    let verifier = Arc::new(ClientVerifier {
        chain,
        ca: node.ca_fingerprint(),
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(node.certified_key())));
    config.alpn_protocols = protocols.iter().map(|alpn| alpn.to_vec()).collect();
    // Every connection proves itself anew: a resumed one would outlive a certificate.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For one attempt of a member to reach another; the verdict belongs to this attempt.
pub(crate) fn member(
    node: &NodeIdentity,
    expect: &PeerExpectation,
    alpn: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<(ClientConfig, Verdict), String> {
    let trust = Trust::Authority(node.ca().clone());
    client(trust, Some(node), *expect, alpn, provider)
}

/// For one attempt to reach whom `trust` and `expect` say, with a certificate or (joining) without.
pub(crate) fn client(
    trust: Trust,
    node: Option<&NodeIdentity>,
    expect: PeerExpectation,
    alpn: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<(ClientConfig, Verdict), String> {
    let verdict = Verdict::default();
    let verifier = ServerVerifier {
        provider: Arc::clone(&provider),
        trust,
        expect,
        verdict: Arc::clone(&verdict),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match node {
        Some(node) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(node.certified_key()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok((config, verdict))
}
