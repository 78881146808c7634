//! The owner's token: who has it may do everything, and knows whom to talk to.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cdsync_transport::CaFingerprint;
use thiserror::Error;

/// What every token begins with; the digit is the version of what follows.
const PREFIX: &str = "cdsync-owner-1.";

/// Why a text is not an owner's token. Not retryable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OwnerTokenError {
    /// It does not begin as one does.
    #[error("this is not an owner's token: one begins with {PREFIX:?}")]
    NotAToken,
    /// Characters were lost or changed.
    #[error("the owner's token is damaged: copy it again, whole")]
    Damaged,
}

/// A 256-bit secret, and the fingerprint of the authority that the master must show. As text:
/// `cdsync-owner-1.` and base64url (no padding) of fingerprint (32 bytes), secret (32) and 4 bytes
/// of BLAKE3 over both, which tell a damaged copy from a wrong token.
#[derive(Clone)]
pub struct OwnerToken {
    fingerprint: CaFingerprint,
    secret: [u8; 32],
}

impl fmt::Debug for OwnerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerToken")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl OwnerToken {
    /// A token from 32 random bytes.
    #[must_use]
    pub const fn new(fingerprint: CaFingerprint, secret: [u8; 32]) -> Self {
        Self {
            fingerprint,
            secret,
        }
    }

    /// The authority that the master must show.
    #[must_use]
    pub const fn fingerprint(&self) -> CaFingerprint {
        self.fingerprint
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key("cdsync owner token 1", &self.secret)
    }

    /// The text: a secret. It is also what the API takes as bearer token.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = [self.fingerprint.0, self.secret].concat();
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for OwnerToken {
    type Err = OwnerTokenError;

    fn from_str(text: &str) -> Result<Self, OwnerTokenError> {
        let body = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(OwnerTokenError::NotAToken)?;
        if body.len() > 100 {
            return Err(OwnerTokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| OwnerTokenError::Damaged)?;
        let (rest, check) = bytes
            .split_last_chunk::<4>()
            .ok_or(OwnerTokenError::Damaged)?;
        let (fingerprint, secret) = rest
            .split_first_chunk::<32>()
            .ok_or(OwnerTokenError::Damaged)?;
        let secret = secret.try_into().map_err(|_| OwnerTokenError::Damaged)?;
        if checksum(rest) != *check {
            return Err(OwnerTokenError::Damaged);
        }
        Ok(Self {
            fingerprint: CaFingerprint(*fingerprint),
            secret,
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a token survives its text, that no damage passes, and that its secret shows in
    /// no debug text.
    #[test]
    fn tokens_round_trip() {
        let token = OwnerToken::new(CaFingerprint([7; 32]), [9; 32]);
        let text = token.to_text();
        let read: OwnerToken = format!(" {text}\n").parse().unwrap();
        assert_eq!(read.hash(), token.hash());
        assert_eq!(read.fingerprint(), token.fingerprint());
        let parse = |text: &str| text.parse::<OwnerToken>().unwrap_err();
        assert_eq!(parse("x"), OwnerTokenError::NotAToken);
        assert_eq!(parse(&text[..text.len() - 1]), OwnerTokenError::Damaged);
        assert_eq!(parse(&text.replace("1.", "1.A")), OwnerTokenError::Damaged);
        assert_eq!(
            parse(&format!("{PREFIX}{}", "A".repeat(9999))),
            OwnerTokenError::Damaged
        );
        assert!(!format!("{token:?}").contains("secret"));
    }
}
