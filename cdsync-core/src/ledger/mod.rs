//! The ledger: objects, names, versions, the log, claims.

pub mod object;
pub mod tables;
