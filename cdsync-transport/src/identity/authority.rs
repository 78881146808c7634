//! The authority of a cluster: signs the certificates of its servers.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::{BACKDATE, CaFingerprint, CertificateError, NodeIdentity, NodeKey, files};
use crate::peer::{ClusterId, PeerIdentity};

/// How long an authority's certificate is valid: ten years.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(3653 * 24 * 3600);

/// A signing request is some 300 bytes; nothing near this is one.
const MAX_REQUEST_BYTES: usize = 8 * 1024;

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// The authority of a cluster: its key (ECDSA P-256) and its self-signed certificate.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a new authority, and with it a new cluster. Nothing is written.
    ///
    /// # Errors
    /// [`CertificateError::Make`], not retryable.
    pub fn create() -> Result<Self, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| CertificateError::make(&e))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.remove(DnType::CommonName);
        // Named after its key, so that two authorities are never taken for one by their names.
        let name = blake3::hash(key.public_key_raw()).to_hex();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("CDSync {}", &name[..16]));
        set_validity(&mut params, AUTHORITY_VALIDITY);
        let certificate = params
            .self_signed(&key)
            .map_err(|e| CertificateError::make(&e))?;
        Self::from_pem(&key.serialize_pem(), &certificate.pem())
    }

    /// Reads an authority back from the PEM texts of key and certificate.
    ///
    /// # Errors
    /// [`CertificateError::Pem`], not retryable.
    pub fn from_pem(key_pem: &str, certificate_pem: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| CertificateError::pem("key", e))?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| CertificateError::pem("certificate", e))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| CertificateError::pem("certificate", e))?;
        Ok(Self {
            issuer,
            certificate,
            certificate_pem: certificate_pem.to_owned(),
        })
    }

    /// Reads `ca.key` and `ca.pem` from a folder. Blocks.
    ///
    /// # Errors
    /// [`CertificateError::File`] (retryable) and [`CertificateError::Pem`].
    pub fn load(folder: &Path) -> Result<Self, CertificateError> {
        let key = files::read(&folder.join(KEY_FILE))?;
        Self::from_pem(&key, &files::read(&folder.join(CERTIFICATE_FILE))?)
    }

    /// Writes `ca.key` and `ca.pem` (mode 0600) into a folder, which is made if missing. Blocks.
    ///
    /// # Errors
    /// [`CertificateError::File`], retryable.
    pub fn save(&self, folder: &Path) -> Result<(), CertificateError> {
        files::write(&folder.join(KEY_FILE), &self.issuer.key().serialize_pem())?;
        files::write(&folder.join(CERTIFICATE_FILE), &self.certificate_pem)
    }

    /// The certificate as PEM: what members trust. Not a secret.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// BLAKE3 of the certificate's DER form: what a join token carries.
    #[must_use]
    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.certificate)
    }

    /// The cluster that it stands for.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.fingerprint().cluster()
    }

    /// Signs a certificate for the key in a signing request (DER or PEM). Only the key is taken from
    /// the request: whatever names or rights it asks for are ignored; they come from `identity`.
    /// Valid from one hour ago until `validity` from now.
    ///
    /// # Errors
    /// [`CertificateError::Request`] (the requester's fault), [`CertificateError::Joining`],
    /// [`CertificateError::Chain`] for an identity of another cluster; not retryable.
    pub fn issue(
        &self,
        request: &[u8],
        identity: &PeerIdentity,
        validity: Duration,
    ) -> Result<String, CertificateError> {
        let name = identity.dns_name().ok_or(CertificateError::Joining)?;
        if identity.cluster != self.cluster() {
            let (expected, found) = (self.cluster(), identity.cluster);
            return Err(crate::peer::IdentityError::WrongCluster { expected, found }.into());
        }
        let request = parse_request(request)?;
        let mut params =
            CertificateParams::new([name.clone()]).map_err(|e| CertificateError::make(&e))?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| CertificateError::make(&e))?;
        Ok(certificate.pem())
    }

    /// Makes a key and a certificate in one step: for the master itself, and for tests.
    ///
    /// # Errors
    /// As [`CertificateAuthority::issue`].
    pub fn issue_local(
        &self,
        identity: &PeerIdentity,
        validity: Duration,
    ) -> Result<NodeIdentity, CertificateError> {
        let key = NodeKey::generate()?;
        let certificate = self.issue(&key.signing_request()?, identity, validity)?;
        NodeIdentity::new(key, &certificate, &self.certificate_pem)
    }
}

fn parse_request(request: &[u8]) -> Result<CertificateSigningRequestParams, CertificateError> {
    let refused = |detail: String| CertificateError::Request { detail };
    if request.len() > MAX_REQUEST_BYTES {
        return Err(refused(format!("{} bytes are too many", request.len())));
    }
    let der = if request.starts_with(b"-----") {
        CertificateSigningRequestDer::from_pem_slice(request).map_err(|e| refused(e.to_string()))?
    } else {
        CertificateSigningRequestDer::from(request)
    };
    // This also verifies that the request is signed by the key it carries.
    CertificateSigningRequestParams::from_der(&der).map_err(|e| refused(e.to_string()))
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + validity;
}
