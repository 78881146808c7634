//! The embeddable CDSync master: which servers there are, which jobs, who does what, and the HTTP
//! API that managers speak.
//!
//! [`Master::init`] makes a cluster in a folder, [`Master::open`] starts a run of it (and listens),
//! [`Master::run`] serves until it is told to stop. What is decided is decided in
//! `cdsync_core::coordinator`; here it is stored, sent and asked for. No file content passes
//! through a master, and running jobs go on without it.
//!
//! Nothing here makes a runtime, installs a logger or a process-wide crypto provider.
#![forbid(unsafe_code)]

mod agents;
pub mod api;
mod config;
mod error;
mod folder;
mod init;
mod owner;
mod random;
mod service;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod tokens;

pub use config::{MasterConfig, local_address_towards};
pub use error::MasterError;
pub use init::{Initialised, http_address};
pub use owner::{OwnerToken, OwnerTokenError};
pub use service::Master;
pub use store::{Collection, Entry, MemoryStore, RedbStore, Steps, Store, StoreError, Transaction};
pub use tokens::TokenError;
