//! Why a master cannot be made, opened or run.

use std::net::SocketAddr;
use std::path::PathBuf;

use cdsync_transport::{BindError, CertificateError};
use thiserror::Error;

use crate::StoreError;

/// Why a master cannot be made, opened or run. Retryable where the variant says so.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MasterError {
    /// The folder holds a master already.
    #[error("{} holds a master already; next: cdsync master run --data {}", folder.display(), folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds no master.
    #[error("{} holds no master; next: cdsync master init --data {}", folder.display(), folder.display())]
    NotInitialised {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read or written. Retryable.
    #[error("cannot access {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration does not parse.
    #[error("{}: {detail}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        detail: String,
    },
    /// The address to advertise is not `host:port`.
    #[error("{text:?} is not an address: use HOST:PORT")]
    Advertise {
        /// The refused text.
        text: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key or certificate is unusable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificate authority in the folder is not the one that the store speaks of.
    #[error("the authority in {} is not the one that this master's store speaks of; next: restore both from one backup", folder.display())]
    OtherAuthority {
        /// The folder.
        folder: PathBuf,
    },
    /// Agents cannot be listened for. Retryable once the address is free.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The API cannot be listened for. Retryable once the address is free.
    #[error("cannot listen on {addr} for the API: {source}")]
    Http {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS configuration of the API cannot be made.
    #[error("cannot set up TLS for the API: {detail}")]
    Tls {
        /// What is wrong.
        detail: String,
    },
    /// The system gave no randomness, or a worker thread died.
    #[error("this machine failed: {detail}")]
    Machine {
        /// What happened.
        detail: String,
    },
}
