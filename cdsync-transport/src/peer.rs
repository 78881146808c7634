//! Who a peer is, as its certificate says, and whom the other side expects.

use std::fmt;

use cdsync_core::ids::ServerId;
use cdsync_core::path::Escaped;
use thiserror::Error;

/// The suffix of every name that a certificate of a cluster carries.
const SUFFIX: &str = ".cdsync.internal";

/// A cluster: the first eight bytes of its authority's fingerprint, big-endian.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// What a server is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Watches, carries and applies changes.
    Agent,
    /// Decides and records.
    Master,
    /// Not yet a member: holds no certificate and proved nothing. Only its join secret can say more;
    /// it may send one request and nothing else.
    Joining,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Master => "master",
            Self::Joining => "joining",
        })
    }
}

/// Who a peer is, proven by its certificate (except for [`Role::Joining`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIdentity {
    /// The cluster whose authority signed the certificate.
    pub cluster: ClusterId,
    /// The server; `ServerId(0)` for [`Role::Joining`].
    pub server: ServerId,
    /// Its role.
    pub role: Role,
}

impl PeerIdentity {
    /// An agent of a cluster.
    #[must_use]
    pub const fn agent(cluster: ClusterId, server: ServerId) -> Self {
        Self {
            cluster,
            server,
            role: Role::Agent,
        }
    }

    /// A master of a cluster.
    #[must_use]
    pub const fn master(cluster: ClusterId, server: ServerId) -> Self {
        Self {
            cluster,
            server,
            role: Role::Master,
        }
    }

    /// A server that is about to join `cluster` and has proven nothing.
    #[must_use]
    pub const fn joining(cluster: ClusterId) -> Self {
        Self {
            cluster,
            server: ServerId(0),
            role: Role::Joining,
        }
    }

    /// The DNS name that a certificate carries for this identity, `None` for [`Role::Joining`],
    /// which has no certificate.
    #[must_use]
    pub fn dns_name(&self) -> Option<String> {
        match self.role {
            Role::Joining => None,
            role => Some(format!("{}.{role}.{}{SUFFIX}", self.server, self.cluster)),
        }
    }

    /// Reads the identity back from a certificate's DNS name. Only the exact form that
    /// [`PeerIdentity::dns_name`] writes is taken, so that one identity has one name.
    ///
    /// # Errors
    /// [`IdentityError::BadName`], not retryable.
    pub fn from_dns_name(name: &str) -> Result<Self, IdentityError> {
        Self::parse(name).ok_or_else(|| IdentityError::BadName {
            name: Escaped(name.as_bytes())
                .to_string()
                .chars()
                .take(120)
                .collect(),
        })
    }

    fn parse(name: &str) -> Option<Self> {
        let mut labels = name.strip_suffix(SUFFIX)?.split('.');
        let server = ServerId(parse_hex(labels.next()?)?);
        let role = match labels.next()? {
            "agent" => Role::Agent,
            "master" => Role::Master,
            _ => return None,
        };
        let cluster = ClusterId(parse_hex(labels.next()?)?);
        labels.next().is_none().then_some(Self {
            cluster,
            server,
            role,
        })
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Joining => f.write_str("joining server"),
            role => write!(f, "{role} {}", self.server),
        }
    }
}

/// Exactly sixteen lower-case hexadecimal digits.
fn parse_hex(text: &str) -> Option<u64> {
    let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == 16 && text.bytes().all(digit))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

/// Whom a side expects at the other end. The cluster needs no mention: it is always one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerExpectation {
    /// The role it must have.
    pub role: Role,
    /// The server it must be; `None`: any server of that role.
    pub server: Option<ServerId>,
}

impl PeerExpectation {
    /// This agent and no other.
    #[must_use]
    pub const fn agent(server: ServerId) -> Self {
        Self {
            role: Role::Agent,
            server: Some(server),
        }
    }

    /// Any master of the cluster.
    #[must_use]
    pub const fn any_master() -> Self {
        Self {
            role: Role::Master,
            server: None,
        }
    }

    /// Compares what was proven with what is expected. The dialling side does this in the
    /// handshake; an accepting side, which cannot know who calls, may do it afterwards.
    ///
    /// # Errors
    /// [`IdentityError::WrongRole`] or [`IdentityError::WrongServer`], not retryable.
    pub fn check(&self, peer: &PeerIdentity) -> Result<(), IdentityError> {
        if peer.role != self.role {
            return Err(IdentityError::WrongRole {
                expected: self.role,
                found: peer.role,
            });
        }
        match self.server {
            Some(expected) if expected != peer.server => Err(IdentityError::WrongServer {
                expected,
                found: peer.server,
            }),
            _ => Ok(()),
        }
    }
}

/// Why a peer is not who it must be. Never retryable without a change of address, certificate or
/// clock.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// It presented no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// Its chain does not end at the cluster's authority, is out of its time, or is malformed.
    #[error("the peer's certificate is not valid here: {detail}")]
    Untrusted {
        /// What the verifier said.
        detail: String,
    },
    /// A valid chain whose certificate does not carry exactly one name.
    #[error("the peer's certificate carries {names} names, one is required")]
    NameCount {
        /// How many it carries.
        names: usize,
    },
    /// A valid chain whose name is not an identity.
    #[error("the name {name} in the peer's certificate is not an identity")]
    BadName {
        /// The name, escaped and cut.
        name: String,
    },
    /// A valid certificate that names another cluster than the authority that signed it.
    #[error("the peer's certificate is for cluster {found}, this is {expected}")]
    WrongCluster {
        /// One's own cluster.
        expected: ClusterId,
        /// The one in the certificate.
        found: ClusterId,
    },
    /// A member of the cluster, but in another role.
    #[error("expected {expected}, the peer is {found}")]
    WrongRole {
        /// The role it must have.
        expected: Role,
        /// The role it has.
        found: Role,
    },
    /// A member of the cluster, but another one.
    #[error("expected server {expected}, the peer is {found}")]
    WrongServer {
        /// The server it must be.
        expected: ServerId,
        /// The server it is.
        found: ServerId,
    },
    /// The presented chain lacks the authority that the join token names.
    #[error("the server does not present the authority that the join token names")]
    WrongAuthority,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that an identity survives its certificate name, and that nothing but the exact form
    /// is read as one.
    #[test]
    fn names_round_trip_and_are_strict() {
        let id = PeerIdentity::agent(ClusterId(0xabc), ServerId(7));
        let name = id.dns_name().unwrap();
        assert_eq!(
            name,
            "0000000000000007.agent.0000000000000abc.cdsync.internal"
        );
        assert_eq!(PeerIdentity::from_dns_name(&name), Ok(id));
        let master = PeerIdentity::master(ClusterId(1), ServerId(u64::MAX));
        assert_eq!(
            PeerIdentity::from_dns_name(&master.dns_name().unwrap()),
            Ok(master)
        );
        assert_eq!(PeerIdentity::joining(ClusterId(1)).dns_name(), None);
        for bad in [
            "",
            "7.agent.0000000000000abc.cdsync.internal",
            "0000000000000007.Agent.0000000000000abc.cdsync.internal",
            "0000000000000007.joining.0000000000000abc.cdsync.internal",
            "000000000000000G.agent.0000000000000abc.cdsync.internal",
            "000000000000000F.agent.0000000000000abc.cdsync.internal",
            "+000000000000007.agent.0000000000000abc.cdsync.internal",
            "0000000000000007.agent.0000000000000abc.x.cdsync.internal",
            "0000000000000007.agent.0000000000000abc.cdsync.internal.",
            "0000000000000007.agent.0000000000000abc.cdsync.example",
        ] {
            assert!(PeerIdentity::from_dns_name(bad).is_err(), "{bad}");
        }
    }

    /// Proves that a valid member is still refused when it is not the one expected.
    #[test]
    fn expectations_compare_role_and_server() {
        let agent = PeerIdentity::agent(ClusterId(1), ServerId(7));
        assert_eq!(PeerExpectation::agent(ServerId(7)).check(&agent), Ok(()));
        assert!(matches!(
            PeerExpectation::agent(ServerId(8)).check(&agent),
            Err(IdentityError::WrongServer { .. })
        ));
        assert!(matches!(
            PeerExpectation::any_master().check(&agent),
            Err(IdentityError::WrongRole { .. })
        ));
    }
}
