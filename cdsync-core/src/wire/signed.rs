//! What the master signs: orders and grants.

use std::fmt;

use ed25519_dalek::Signer as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{WireError, decode, encode};
use crate::filter::FilterSpec;
use crate::ids::{JobId, Label, OriginId, ServerId};
use crate::job::{Mode, RootPath, Settings};
use crate::ledger::object::Seq;
use crate::time::WallMillis;

/// The largest signed payload, in bytes.
pub const SIGNED_MAX_BYTES: usize = 2 << 20;

/// Which plan: compared by term, then counter. A master starts with its stored term plus one,
/// written durably first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Epoch {
    /// One run of a master.
    pub term: u64,
    /// One plan of that run.
    pub counter: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

/// Everything one server has to do. Replaces what it was told before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The cluster they belong to.
    pub cluster: u64,
    /// The server they are for.
    pub server: ServerId,
    /// Their epoch; an agent obeys only the newest.
    pub epoch: Epoch,
    /// The master's run, drawn at random when it starts: two runs of one term are told apart.
    pub instance: u64,
    /// When they were signed.
    pub issued: WallMillis,
    /// Until when they hold without hearing from the master.
    pub lease_until: WallMillis,
    /// The jobs.
    pub jobs: Vec<JobOrder>,
    /// Servers that are no members any more: whatever grant they show is void. Those whose grants
    /// have ended by now are left out.
    pub revoked: Vec<ServerId>,
    /// The proof of these orders' standing, which the agent shows to whatever master it meets: a
    /// signed [`Standing`].
    pub standing: Signed,
}

/// Where a master stood when it gave orders. An agent shows it to a master, which learns by it that
/// there were later ones than it knows of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The cluster.
    pub cluster: u64,
    /// The epoch of the orders.
    pub epoch: Epoch,
    /// The master's run.
    pub instance: u64,
    /// The servers that had been removed.
    pub revoked: Vec<ServerId>,
}

/// One job's part of an [`Orders`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOrder {
    /// The job.
    pub job: JobId,
    /// Its name, for folders and messages.
    pub name: Label,
    /// When it runs.
    pub mode: Mode,
    /// What it carries.
    pub filter: FilterSpec,
    /// Recording goes on, moving stops.
    pub paused: bool,
    /// How it keeps its promises.
    pub settings: Settings,
    /// What this server does as the source.
    pub source: Option<SourceOrder>,
    /// What this server does as a target.
    pub target: Option<TargetOrder>,
}

/// A server's work as the source of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOrder {
    /// The root.
    pub root: RootPath,
    /// How often the job was run by hand: a rise starts a scan.
    pub run: u64,
    /// How often a manager said `job resume`: a rise lets a halted source look again.
    pub resume: u64,
    /// What is to be done about the deletes that halted it before the last of these.
    pub decision: Decision,
}

/// What a manager decides about deletes that halted a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Look at the disk again: what is still gone is judged anew.
    #[default]
    Again,
    /// As many deletes as were held may go.
    Accept,
    /// What had gone comes back at the targets; the source stays halted.
    Restore,
}

/// Deletes that are to be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restore {
    /// The source's ledger.
    pub origin: OriginId,
    /// Those of records behind this one,
    pub after: Seq,
    /// up to this one.
    pub upto: Seq,
}

/// A server's work as a target of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetOrder {
    /// The root.
    pub root: RootPath,
    /// Whom to subscribe to, best first.
    pub upstreams: Vec<Upstream>,
    /// What to do with content that is already there.
    pub adopt: Adopt,
    /// How often a manager said `job resume`: a rise lets a stopped target look again at once.
    pub resume: u64,
    /// Deletes whose files come back from the trash, while the source stays halted.
    pub restore: Option<Restore>,
    /// How often a manager said `job accept`: a rise lets the source's version replace what was
    /// kept because others had changed it.
    pub accepts: u64,
    /// The leave to fetch, shown to upstreams: a signed [`Grant`].
    pub grant: Signed,
}

/// An agent to fetch from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Which server: the connection is refused unless its certificate says so.
    pub server: ServerId,
    /// Its name, for messages.
    pub name: Label,
    /// Where it is dialled: host and port.
    pub address: String,
}

/// What a target does with content that it finds in its root at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Adopt {
    /// Wait, and say what would be replaced and removed.
    #[default]
    Ask,
    /// Go on: replaced and removed files go to the job's trash.
    Accept,
}

/// Leave to fetch one job's content, shown to the serving agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The cluster.
    pub cluster: u64,
    /// What may be fetched.
    pub job: JobId,
    /// Who may fetch: must be the peer of the connection.
    pub holder: ServerId,
    /// From which epoch.
    pub epoch: Epoch,
    /// Until when.
    pub until: WallMillis,
}

/// A payload and the master's Ed25519 signature over a context and it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signed {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// Why a signed message is refused; not retryable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignError {
    /// The signature is not the master's.
    #[error("the signature is not this cluster's master's")]
    Signature,
    /// Over [`SIGNED_MAX_BYTES`].
    #[error("a signed message of {bytes} bytes is too large")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The payload does not decode.
    #[error(transparent)]
    Payload(#[from] WireError),
}

/// What may be signed: each type under its own context, so that one never passes for another.
pub trait Signable: Serialize + DeserializeOwned {
    /// Separates the types.
    const CONTEXT: &'static [u8];
}

impl Signable for Orders {
    const CONTEXT: &'static [u8] = b"cdsync orders 1\0";
}

impl Signable for Standing {
    const CONTEXT: &'static [u8] = b"cdsync standing 1\0";
}

impl Signable for Grant {
    const CONTEXT: &'static [u8] = b"cdsync grant 1\0";
}

/// The master's key for orders and grants.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

impl SigningKey {
    /// The key behind 32 random bytes, which the caller draws and keeps secret.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a message.
    #[must_use]
    pub fn sign<T: Signable>(&self, message: &T) -> Signed {
        let payload = encode(message);
        let signature = self
            .0
            .sign(&signed_bytes::<T>(&payload))
            .to_bytes()
            .to_vec();
        Signed { payload, signature }
    }
}

/// The public half of a master's key, pinned by agents when they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyingKey(pub [u8; 32]);

impl Signed {
    /// Checks the signature, then decodes.
    ///
    /// # Errors
    /// [`SignError`]; not retryable.
    pub fn verify<T: Signable>(&self, key: &VerifyingKey) -> Result<T, SignError> {
        if self.payload.len() > SIGNED_MAX_BYTES {
            return Err(SignError::TooLarge {
                bytes: self.payload.len(),
            });
        }
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&key.0).map_err(|_| SignError::Signature)?;
        let signature = ed25519_dalek::Signature::from_slice(&self.signature)
            .map_err(|_| SignError::Signature)?;
        key.verify_strict(&signed_bytes::<T>(&self.payload), &signature)
            .map_err(|_| SignError::Signature)?;
        Ok(decode(&self.payload)?)
    }
}

fn signed_bytes<T: Signable>(payload: &[u8]) -> Vec<u8> {
    [T::CONTEXT, payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            cluster: 1,
            job: JobId(2),
            holder: ServerId(3),
            epoch: Epoch {
                term: 4,
                counter: 5,
            },
            until: WallMillis(6),
        }
    }

    /// Proves that only the untouched message under the right key and type verifies.
    #[test]
    fn signatures_bind_key_type_and_bytes() {
        let key = SigningKey::from_seed(&[7; 32]);
        let signed = key.sign(&grant());
        assert_eq!(signed.verify::<Grant>(&key.verifying_key()), Ok(grant()));
        let other = SigningKey::from_seed(&[8; 32]).verifying_key();
        assert_eq!(signed.verify::<Grant>(&other), Err(SignError::Signature));
        assert_eq!(
            signed.verify::<Orders>(&key.verifying_key()),
            Err(SignError::Signature)
        );
        let mut bent = signed.clone();
        bent.payload[3] ^= 1;
        assert_eq!(
            bent.verify::<Grant>(&key.verifying_key()),
            Err(SignError::Signature)
        );
        let mut cut = signed;
        cut.signature.pop();
        assert_eq!(
            cut.verify::<Grant>(&key.verifying_key()),
            Err(SignError::Signature)
        );
    }
}
