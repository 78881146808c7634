//! Identities: the authority of a cluster, a server's key and certificate, and how both are proven.

mod authority;
mod files;
mod node;
pub(crate) mod verify;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use cdsync_core::ids::ServerId;
use rustls::pki_types::CertificateDer;
use thiserror::Error;

pub use authority::CertificateAuthority;
pub use files::{make_private, make_private_folder, write_private};
pub use node::{NodeIdentity, NodeKey};

use crate::error::Retry;
use crate::peer::{ClusterId, IdentityError};

/// How long a server's certificate is valid by default. It is renewed at half of it, so a server
/// may be away for two weeks and still come back by itself.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// How far back a certificate's validity begins, for servers whose clocks lag.
pub(crate) const BACKDATE: Duration = Duration::from_secs(3600);

/// BLAKE3 of the DER form of an authority's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaFingerprint(pub [u8; 32]);

impl CaFingerprint {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }

    /// The cluster that the authority stands for.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        ClusterId(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaFingerprint({self})")
    }
}

/// Why a key or certificate cannot be made, read or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A text is not the PEM of what it should be.
    #[error("not a PEM {what}: {detail}")]
    Pem {
        /// What was expected.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The signing request is malformed, too long, or not signed by its own key.
    #[error("the signing request is refused: {detail}")]
    Request {
        /// What is wrong.
        detail: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make a certificate: {detail}")]
    Make {
        /// What the library said.
        detail: String,
    },
    /// The certificate is not a valid one of this authority.
    #[error("the certificate does not fit the authority")]
    Chain(#[from] IdentityError),
    /// The certificate is for another key.
    #[error("the certificate of server {server} is for another key")]
    OtherKey {
        /// Whom the certificate names.
        server: ServerId,
    },
    /// A joining server has no certificate.
    #[error("a joining server gets no certificate")]
    Joining,
}

impl CertificateError {
    /// Whether trying again may help.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::File { .. } => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    pub(crate) fn make(error: &rcgen::Error) -> Self {
        Self::Make {
            detail: error.to_string(),
        }
    }

    pub(crate) fn pem(what: &'static str, error: impl fmt::Display) -> Self {
        Self::Pem {
            what,
            detail: error.to_string(),
        }
    }
}
