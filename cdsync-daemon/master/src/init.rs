//! Making a master.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cdsync_core::ids::ServerId;
use cdsync_transport::{CERTIFICATE_VALIDITY, CaFingerprint, CertificateAuthority, PeerIdentity};

use crate::config::reachable;
use crate::folder::Folder;
use crate::store::rows::{self, MasterRow};
use crate::{Master, MasterConfig, MasterError, OwnerToken, RedbStore, random};

/// What [`Master::init`] made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The file with the owner's token.
    pub owner_token: PathBuf,
    /// What `--master` with that file pins.
    pub fingerprint: CaFingerprint,
    /// Where agents will dial the master.
    pub advertise: String,
    /// Where the API will listen.
    pub http: SocketAddr,
}

impl Master {
    /// Makes a new cluster in a folder: its authority, the master's own certificate, the owner's
    /// token, the store and `master.toml`. Blocks.
    ///
    /// # Errors
    /// [`MasterError::Exists`] where there is one; [`MasterError`] otherwise. After a failure it
    /// may be called again: what half of it left is replaced.
    pub fn init(data: &Path, config: MasterConfig) -> Result<Initialised, MasterError> {
        let folder = Folder::new(data);
        folder.create()?;
        if folder.config().exists() {
            return Err(MasterError::Exists {
                folder: data.to_owned(),
            });
        }
        if let Some(text) = &config.advertise {
            check_address(text)?;
        }
        let authority = CertificateAuthority::create()?;
        let server = ServerId(random::id()?);
        let identity = PeerIdentity::master(authority.cluster(), server);
        authority.save(data)?;
        authority
            .issue_local(&identity, CERTIFICATE_VALIDITY)?
            .save(&folder.node())?;
        let owner = OwnerToken::new(authority.fingerprint(), random::bytes()?);
        let master = MasterRow {
            cluster: authority.cluster().0,
            server,
            orders_seed: random::bytes()?,
        };
        rows::initialise(&RedbStore::create(&folder.store())?, &master, &owner.hash())?;
        folder.write(&folder.owner_token(), &format!("{}\n", owner.to_text()))?;
        let advertise = config
            .advertise
            .clone()
            .unwrap_or_else(|| reachable(config.listen).to_string());
        let http = config.http;
        folder.write(&folder.config(), &render(&folder, &config)?)?;
        Ok(Initialised {
            owner_token: folder.owner_token(),
            fingerprint: authority.fingerprint(),
            advertise,
            http,
        })
    }
}

fn render(folder: &Folder, config: &MasterConfig) -> Result<String, MasterError> {
    let failed = |error: toml::ser::Error| MasterError::Config {
        path: folder.config(),
        detail: error.to_string(),
    };
    Ok(format!(
        "# Where this master listens, and what agents dial. Read at every start.\n{}",
        toml::to_string(config).map_err(failed)?
    ))
}

/// The configuration of the master in a folder.
pub(crate) fn read_config(folder: &Folder) -> Result<MasterConfig, MasterError> {
    let text = folder.read(&folder.config())?;
    toml::from_str(&text).map_err(|error| MasterError::Config {
        path: folder.config(),
        detail: error.to_string(),
    })
}

/// Where the API of the master in a folder listens, as its last run said, else as configured.
/// Blocks.
///
/// # Errors
/// [`MasterError::NotInitialised`], [`MasterError::File`], [`MasterError::Config`].
pub fn http_address(data: &Path) -> Result<SocketAddr, MasterError> {
    let folder = Folder::new(data);
    let configured = read_config(&folder)?.http;
    let told = fs::read_to_string(folder.http_address()).ok();
    Ok(told
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(configured))
}

/// Whether a text has the form `host:port`.
pub(crate) fn check_address(text: &str) -> Result<(), MasterError> {
    let good = text.len() <= 261
        && text.bytes().all(|b| b.is_ascii_graphic())
        && text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if good {
        Ok(())
    } else {
        Err(MasterError::Advertise {
            text: text.chars().take(80).collect(),
        })
    }
}
