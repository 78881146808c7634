//! The ledger: objects, names, versions, the log, claims.

pub mod object;
pub mod record;
pub mod tables;
