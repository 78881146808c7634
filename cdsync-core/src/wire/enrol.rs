//! Joining: what a new server and the master say to each other once.

use serde::{Deserialize, Serialize};

use super::VerifyingKey;
use crate::bounds;
use crate::ids::{Label, ServerId};

/// What a joining server sends. The connection's certificate was checked against the token's
/// fingerprint before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret, 32 bytes.
    pub secret: Vec<u8>,
    /// Certificate signing request, PEM, at most 16 KiB.
    pub csr: String,
    /// Where other agents dial this one.
    #[serde(deserialize_with = "bounds::text")]
    pub address: String,
    /// The program's version, for people.
    #[serde(deserialize_with = "bounds::text")]
    pub program: String,
}

/// What the master answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// Joined.
    Welcome {
        /// The server's id.
        server: ServerId,
        /// The name that the token gave it.
        name: Label,
        /// The cluster.
        cluster: u64,
        /// Its certificate, PEM.
        certificate: String,
        /// The certificate authority's certificate, PEM.
        authority: String,
        /// The key that orders and grants are signed with.
        orders_key: VerifyingKey,
    },
    /// Not joined, with the reason and what to do. Not retryable with the same token.
    Refused {
        /// Why, for people.
        #[serde(deserialize_with = "bounds::text")]
        reason: String,
    },
}
