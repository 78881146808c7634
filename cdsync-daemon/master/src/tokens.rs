//! Making join tokens.

use std::path::Path;

use cdsync_core::ids::{Label, LabelError};
use cdsync_core::time::WallMillis;
use cdsync_transport::{CaFingerprint, CertificateAuthority, JoinToken, JoinTokenError};
use thiserror::Error;

use crate::api::types::{TokenMade, TokenRequest};
use crate::config::advertised;
use crate::folder::Folder;
use crate::init::read_config;
use crate::shared::now;
use crate::store::rows::{self, TokenRow};
use crate::{Master, MasterError, RedbStore};

const TTL_MIN_MS: u64 = 1_000;
const TTL_MAX_MS: u64 = 30 * 24 * 3600 * 1000;

/// Why a join token is not made. Not retryable as it stands, but for failures of the master.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not of the form `REGION/GROUP`.
    #[error("{group:?} is not of the form REGION/GROUP")]
    Group {
        /// The refused text, cut to 200 characters.
        group: String,
    },
    /// A region or group is not a name.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The time is out of bounds.
    #[error("a token is good for 1 second to 30 days")]
    Ttl,
    /// A server of this name is a member.
    #[error(
        "a server named {name} has joined already; next: choose another name, or cdsync server remove {name}"
    )]
    NameTaken {
        /// The name.
        name: Label,
    },
    /// The master's address cannot go into a token.
    #[error("{0}; next: set advertise in master.toml and start the master again")]
    Address(JoinTokenError),
    /// The master's folder or store failed.
    #[error(transparent)]
    Master(#[from] MasterError),
}

/// A token made and not yet stored.
pub(crate) struct NewToken {
    pub(crate) made: TokenMade,
    pub(crate) hash: [u8; 32],
    pub(crate) row: TokenRow,
}

/// Checks a request and makes its token.
pub(crate) fn make(
    request: TokenRequest,
    address: &str,
    fingerprint: CaFingerprint,
    is_taken: impl FnOnce(&Label) -> bool,
) -> Result<NewToken, TokenError> {
    let TokenRequest {
        name,
        group,
        ttl_ms,
    } = request;
    let (region, group) = match group.split_once('/') {
        Some((region, group)) => (Label::new(region)?, Label::new(group)?),
        None => {
            return Err(TokenError::Group {
                group: group.chars().take(200).collect(),
            });
        }
    };
    if !(TTL_MIN_MS..=TTL_MAX_MS).contains(&ttl_ms) {
        return Err(TokenError::Ttl);
    }
    if is_taken(&name) {
        return Err(TokenError::NameTaken { name });
    }
    let token = JoinToken::create(address, fingerprint).map_err(TokenError::Address)?;
    let expires = WallMillis(now().0.saturating_add(ttl_ms));
    let made = TokenMade {
        token: token.to_text(),
        address: address.to_owned(),
        expires_ms: expires.0,
    };
    let row = TokenRow {
        name,
        region,
        group,
        expires,
        used: false,
    };
    Ok(NewToken {
        made,
        hash: token.secret().hash().0,
        row,
    })
}

impl Master {
    /// Makes a join token in the folder of a master that does not run. Blocks.
    ///
    /// # Errors
    /// [`TokenError`]; [`MasterError::Store`] of a busy store when the master does run.
    pub fn make_token(data: &Path, request: TokenRequest) -> Result<TokenMade, TokenError> {
        let folder = Folder::new(data);
        let config = read_config(&folder)?;
        let authority = CertificateAuthority::load(data).map_err(MasterError::from)?;
        let store = RedbStore::open(&folder.store()).map_err(MasterError::from)?;
        let names = rows::server_names(&store).map_err(MasterError::from)?;
        let address = advertised(&config, config.listen);
        let token = make(request, &address, authority.fingerprint(), |name| {
            names.contains(name)
        })?;
        rows::put_token(&store, &token.hash, &token.row, now()).map_err(MasterError::from)?;
        Ok(token.made)
    }
}
