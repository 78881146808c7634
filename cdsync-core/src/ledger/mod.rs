//! The ledger: objects, names, versions, the log, claims.

pub mod access;
pub mod digest;
pub mod loss;
pub mod object;
pub mod outgoing;
pub mod record;
pub mod rows;
pub mod snapshot;
pub mod tables;
pub mod trim;
pub mod walk;
pub mod writer;
pub mod xattrs;
