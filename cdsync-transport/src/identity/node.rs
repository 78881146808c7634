//! What a server holds to prove who it is.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, CertificateSigningRequest, DistinguishedName, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::verify::{provider, untrusted, verify_member};
use super::{CaFingerprint, CertificateError, files};
use crate::peer::PeerIdentity;

const KEY_FILE: &str = "node.key";
const CERTIFICATE_FILE: &str = "node.pem";
const CA_FILE: &str = "ca.pem";

/// A server's private key (ECDSA P-256). It is made where it is used and never leaves.
#[derive(Clone)]
pub struct NodeKey {
    pem: String,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl NodeKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`CertificateError::Make`], not retryable.
    pub fn generate() -> Result<Self, CertificateError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| CertificateError::make(&e))?;
        Ok(Self {
            pem: pair.serialize_pem(),
        })
    }

    /// Takes a key from its PEM text.
    ///
    /// # Errors
    /// [`CertificateError::Pem`], not retryable.
    pub fn from_pem(pem: &str) -> Result<Self, CertificateError> {
        KeyPair::from_pem(pem).map_err(|e| CertificateError::pem("key", e))?;
        Ok(Self {
            pem: pem.to_owned(),
        })
    }

    /// A signing request (DER) for this key: the only thing that leaves.
    ///
    /// # Errors
    /// [`CertificateError::Make`], not retryable.
    pub fn signing_request(&self) -> Result<Vec<u8>, CertificateError> {
        Ok(self.request()?.der().to_vec())
    }

    /// The same as PEM text, as messages carry it.
    ///
    /// # Errors
    /// As [`NodeKey::signing_request`].
    pub fn signing_request_pem(&self) -> Result<String, CertificateError> {
        self.request()?
            .pem()
            .map_err(|e| CertificateError::make(&e))
    }

    fn request(&self) -> Result<CertificateSigningRequest, CertificateError> {
        let pair = KeyPair::from_pem(&self.pem).map_err(|e| CertificateError::pem("key", e))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(&pair)
            .map_err(|e| CertificateError::make(&e))
    }
}

/// A server's key, its certificate, and the authority that it trusts. Cheap to clone.
#[derive(Clone)]
pub struct NodeIdentity {
    inner: Arc<Inner>,
}

struct Inner {
    identity: PeerIdentity,
    key: NodeKey,
    certificate_pem: String,
    ca_pem: String,
    ca: CertificateDer<'static>,
    certified: Arc<CertifiedKey>,
    issued_at: SystemTime,
    expires_at: SystemTime,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("identity", &self.inner.identity)
            .field("expires_at", &self.inner.expires_at)
            .finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Puts an identity together, and checks that the certificate was issued by the authority for
    /// this key. Whether it is still valid is not asked: see [`NodeIdentity::expires_at`].
    ///
    /// # Errors
    /// [`CertificateError::Pem`], [`CertificateError::Chain`], [`CertificateError::OtherKey`]; not
    /// retryable.
    pub fn new(
        key: NodeKey,
        certificate_pem: &str,
        ca_pem: &str,
    ) -> Result<Self, CertificateError> {
        let leaf = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| CertificateError::pem("certificate", e))?;
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|e| CertificateError::pem("authority certificate", e))?;
        let (issued_at, expires_at) = validity(&leaf)?;
        let since_epoch = issued_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let identity = verify_member(&leaf, &[], &ca, UnixTime::since_unix_epoch(since_epoch))?;
        let der = PrivateKeyDer::from_pem_slice(key.pem.as_bytes())
            .map_err(|e| CertificateError::pem("key", e))?;
        let signer = provider()
            .key_provider
            .load_private_key(der)
            .map_err(|e| CertificateError::pem("key", e))?;
        // The authority's certificate goes along: a joining server knows only its fingerprint.
        let certified = CertifiedKey::new(vec![leaf, ca.clone()], signer);
        if certified.keys_match().is_err() {
            return Err(CertificateError::OtherKey {
                server: identity.server,
            });
        }
        let inner = Inner {
            identity,
            key,
            certificate_pem: certificate_pem.to_owned(),
            ca_pem: ca_pem.to_owned(),
            ca,
            certified: Arc::new(certified),
            issued_at,
            expires_at,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Reads `node.key`, `node.pem` and `ca.pem` from a folder. Blocks.
    ///
    /// # Errors
    /// [`CertificateError::File`] (retryable) and those of [`NodeIdentity::new`].
    pub fn load(folder: &Path) -> Result<Self, CertificateError> {
        let key = NodeKey::from_pem(&files::read(&folder.join(KEY_FILE))?)?;
        let certificate = files::read(&folder.join(CERTIFICATE_FILE))?;
        Self::new(key, &certificate, &files::read(&folder.join(CA_FILE))?)
    }

    /// Writes the three files (mode 0600) into a folder, which is made if missing. Blocks. A crash
    /// in between leaves old and new files together: keep the key when renewing and no mix can
    /// arise that does not fit.
    ///
    /// # Errors
    /// [`CertificateError::File`], retryable.
    pub fn save(&self, folder: &Path) -> Result<(), CertificateError> {
        files::write(&folder.join(KEY_FILE), &self.inner.key.pem)?;
        files::write(&folder.join(CA_FILE), &self.inner.ca_pem)?;
        files::write(&folder.join(CERTIFICATE_FILE), &self.inner.certificate_pem)
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &PeerIdentity {
        &self.inner.identity
    }

    /// The key, for the signing request of a renewal.
    #[must_use]
    pub fn key(&self) -> &NodeKey {
        &self.inner.key
    }

    /// The trusted authority's certificate as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.inner.ca_pem
    }

    /// The fingerprint of the trusted authority.
    #[must_use]
    pub fn ca_fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.inner.ca)
    }

    /// When the certificate stops being valid.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.inner.expires_at
    }

    /// When to renew: at half of the certificate's life.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let life = self.inner.expires_at.duration_since(self.inner.issued_at);
        self.inner.issued_at + life.unwrap_or_default() / 2
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.inner.certified)
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.inner.ca
    }
}

fn validity(leaf: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), CertificateError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(untrusted)?;
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    let validity = certificate.validity();
    Ok((
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    ))
}
