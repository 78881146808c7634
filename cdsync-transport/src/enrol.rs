//! Join tokens: what an operator carries from the master to a server that shall join.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

use crate::identity::CaFingerprint;

/// Bytes of the secret in a token.
pub const JOIN_SECRET_BYTES: usize = 32;

/// What every token begins with; the digit is the version of what follows.
const PREFIX: &str = "cdsync-join-1.";

/// The longest master address, as a DNS name and a port have it.
const MAX_ADDR_BYTES: usize = 255 + 6;

const FIXED_BYTES: usize = 32 + JOIN_SECRET_BYTES;

/// The one-time secret of a token: whoever shows it may join. Shown in no log.
#[derive(Clone)]
pub struct JoinSecret([u8; JOIN_SECRET_BYTES]);

impl JoinSecret {
    /// Takes the bytes as received from a joining server.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; JOIN_SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent over the enrolment connection and nowhere else.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; JOIN_SECRET_BYTES] {
        &self.0
    }

    /// The form to be stored: the secret has 256 random bits, so a plain hash (BLAKE3 with a
    /// context) suffices. Looking a hash up leaks nothing of the secret through timing.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key("cdsync join secret 1", &self.0))
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(..)")
    }
}

/// The stored form of a [`JoinSecret`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretHash(pub [u8; 32]);

/// Why a text is not a join token. Not retryable: ask for a new token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JoinTokenError {
    /// It does not begin as a token does.
    #[error("this is not a join token: one begins with {PREFIX:?}")]
    NotAToken,
    /// It is a token of another version.
    #[error("this join token is of version {version}, this program reads version 1")]
    Version {
        /// The version in the text.
        version: u32,
    },
    /// Characters were lost or changed on the way.
    #[error("the join token is damaged: copy it again, whole")]
    Damaged,
    /// The master's address is not `host:port`.
    #[error("{addr:?} is not an address of the form host:port")]
    Address {
        /// The address, cut.
        addr: String,
    },
}

/// What a server needs to join: `cdsync-join-1.` and base64url (no padding) of the authority's
/// fingerprint (32 bytes), the secret (32), the master's address, and 4 bytes of BLAKE3 over all
/// that to tell a damaged copy from a wrong secret.
#[derive(Debug, Clone)]
pub struct JoinToken {
    addr: String,
    fingerprint: CaFingerprint,
    secret: JoinSecret,
}

impl JoinToken {
    /// Makes a token with a fresh secret. `addr` is where joining servers reach the master, as
    /// `host:port`.
    ///
    /// # Errors
    /// [`JoinTokenError::Address`].
    ///
    /// # Panics
    /// When the system has no randomness, which Linux never says after boot.
    pub fn create(addr: &str, fingerprint: CaFingerprint) -> Result<Self, JoinTokenError> {
        check_addr(addr)?;
        let mut secret = [0; JOIN_SECRET_BYTES];
        getrandom::fill(&mut secret).expect("the system has a random source");
        Ok(Self {
            addr: addr.to_owned(),
            fingerprint,
            secret: JoinSecret(secret),
        })
    }

    /// The master's address, `host:port`.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The authority that the master must show.
    #[must_use]
    pub const fn fingerprint(&self) -> CaFingerprint {
        self.fingerprint
    }

    /// The one-time secret.
    #[must_use]
    pub const fn secret(&self) -> &JoinSecret {
        &self.secret
    }

    /// The text to hand over. It is a secret: whoever has it can join once.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.addr.len() + 4);
        bytes.extend_from_slice(&self.fingerprint.0);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(self.addr.as_bytes());
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let body = strip_prefix(text.trim())?;
        // Four characters for three bytes: the cap comes before the allocation.
        if body.len() > (FIXED_BYTES + MAX_ADDR_BYTES + 4) * 4 / 3 + 4 {
            return Err(JoinTokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| JoinTokenError::Damaged)?;
        let (rest, check) = bytes
            .split_last_chunk::<4>()
            .ok_or(JoinTokenError::Damaged)?;
        if checksum(rest) != *check {
            return Err(JoinTokenError::Damaged);
        }
        let (fingerprint, rest) = rest
            .split_first_chunk::<32>()
            .ok_or(JoinTokenError::Damaged)?;
        let (secret, addr) = rest
            .split_first_chunk::<JOIN_SECRET_BYTES>()
            .ok_or(JoinTokenError::Damaged)?;
        let addr = str::from_utf8(addr).map_err(|_| JoinTokenError::Damaged)?;
        check_addr(addr)?;
        Ok(Self {
            addr: addr.to_owned(),
            fingerprint: CaFingerprint(*fingerprint),
            secret: JoinSecret(*secret),
        })
    }
}

fn strip_prefix(text: &str) -> Result<&str, JoinTokenError> {
    if let Some(body) = text.strip_prefix(PREFIX) {
        return Ok(body);
    }
    let version = text
        .strip_prefix("cdsync-join-")
        .and_then(|rest| rest.split_once('.'));
    match version.and_then(|(digits, _)| digits.parse().ok()) {
        Some(version) => Err(JoinTokenError::Version { version }),
        None => Err(JoinTokenError::NotAToken),
    }
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

fn check_addr(addr: &str) -> Result<(), JoinTokenError> {
    let good = addr.len() <= MAX_ADDR_BYTES
        && addr.bytes().all(|b| b.is_ascii_graphic())
        && addr.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if good {
        Ok(())
    } else {
        Err(JoinTokenError::Address {
            addr: addr.chars().take(80).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a token survives its text form, and that its secret shows in no debug text.
    #[test]
    fn tokens_round_trip() {
        let token = JoinToken::create("master.example:7440", CaFingerprint([7; 32])).unwrap();
        let read: JoinToken = format!("  {}\n", token.to_text()).parse().unwrap();
        assert_eq!(read.addr(), "master.example:7440");
        assert_eq!(read.fingerprint(), CaFingerprint([7; 32]));
        assert_eq!(read.secret().as_bytes(), token.secret().as_bytes());
        assert_eq!(read.secret().hash(), token.secret().hash());
        assert!(format!("{token:?}").contains("JoinSecret(..)"));
    }

    /// Proves that each way of spoiling a token gets its own answer.
    #[test]
    fn spoilt_tokens_say_why() {
        let text = JoinToken::create("[::1]:7440", CaFingerprint([7; 32]))
            .unwrap()
            .to_text();
        let parse = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(parse("hello"), JoinTokenError::NotAToken);
        assert_eq!(parse(""), JoinTokenError::NotAToken);
        assert_eq!(
            parse("cdsync-join-2.abc"),
            JoinTokenError::Version { version: 2 }
        );
        assert_eq!(parse(&text[..text.len() - 1]), JoinTokenError::Damaged);
        assert_eq!(parse(&text.replace("1.", "1.A")), JoinTokenError::Damaged);
        assert_eq!(
            parse(&format!("{PREFIX}{}", "A".repeat(100_000))),
            JoinTokenError::Damaged
        );
        for addr in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:70000",
            "a b:1",
            "ä:1",
        ] {
            let made = JoinToken::create(addr, CaFingerprint([0; 32]));
            assert!(
                matches!(made, Err(JoinTokenError::Address { .. })),
                "{addr}"
            );
        }
    }
}
