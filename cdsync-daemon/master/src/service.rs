//! A run of a master: opened, served, closed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cdsync_core::coordinator::{Coordinator, MasterIdentity};
use cdsync_core::wire::SigningKey;
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, NodeIdentity, PeerIdentity, QuicConfig,
    QuicTransport, Transport,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::advertised;
use crate::folder::Folder;
use crate::init::read_config;
use crate::shared::{Facts, Shared, blocking, now};
use crate::store::rows::{self, Loaded};
use crate::{MasterConfig, MasterError, RedbStore, Store, agents, api};

/// How often leases and the master's own certificate are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How long the API's open requests may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(2);

/// A master that listens. Serve with [`Master::run`]; dropping it instead closes everything at
/// once, and loses nothing that was stored.
#[derive(Debug)]
pub struct Master {
    shared: Arc<Shared>,
    folder: Folder,
    transport: Arc<dyn Transport>,
    /// The transport again, where it takes a renewed certificate.
    quic: Option<Arc<QuicTransport>>,
    http: TcpListener,
    tls: Arc<api::ServerTls>,
    http_addr: SocketAddr,
}

/// What is read from the folder.
struct Opened {
    config: MasterConfig,
    authority: CertificateAuthority,
    node: NodeIdentity,
    store: Arc<dyn Store>,
    loaded: Loaded,
}

fn open(folder: &Folder) -> Result<Opened, MasterError> {
    let config = read_config(folder)?;
    let authority = CertificateAuthority::load(folder.path())?;
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(&folder.store())?);
    let loaded = rows::load(&*store)?;
    if authority.cluster().0 != loaded.master.cluster {
        return Err(MasterError::OtherAuthority {
            folder: folder.path().to_owned(),
        });
    }
    let node = own_node(folder, &authority, &loaded)?;
    Ok(Opened {
        config,
        authority,
        node,
        store,
        loaded,
    })
}

/// The master's own identity, renewed where half of its time is over.
fn own_node(
    folder: &Folder,
    authority: &CertificateAuthority,
    loaded: &Loaded,
) -> Result<NodeIdentity, MasterError> {
    match NodeIdentity::load(&folder.node()) {
        Ok(node) if node.renew_at() > SystemTime::now() => Ok(node),
        _ => {
            let identity = PeerIdentity::master(authority.cluster(), loaded.master.server);
            let node = authority.issue_local(&identity, CERTIFICATE_VALIDITY)?;
            node.save(&folder.node())?;
            Ok(node)
        }
    }
}

impl Master {
    /// Starts a run of the master in a folder: reads it, stores the next term, and listens for
    /// agents by QUIC and for the API. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`MasterError`]; [`MasterError::Bind`], [`MasterError::Http`] and [`MasterError::Store`]
    /// of a busy store are retryable.
    ///
    /// # Cancel safety
    /// Dropping it may leave a term unused, which is harmless.
    pub async fn open(data: &Path) -> Result<Self, MasterError> {
        let folder = Folder::new(data);
        let opened = read(&folder).await?;
        let config = QuicConfig::default().accept_joins(true);
        let quic = QuicTransport::bind(opened.config.listen, opened.node.clone(), config)?;
        let quic = Arc::new(quic);
        let transport: Arc<dyn Transport> = Arc::clone(&quic) as _;
        Self::start(folder, opened, transport, Some(quic)).await
    }

    /// As [`Master::open`], with agents coming over a transport of the caller's: in tests, one in
    /// memory.
    ///
    /// # Errors
    /// As [`Master::open`].
    ///
    /// # Cancel safety
    /// As [`Master::open`].
    pub async fn open_over(
        data: &Path,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, MasterError> {
        let folder = Folder::new(data);
        let opened = read(&folder).await?;
        Self::start(folder, opened, transport, None).await
    }

    async fn start(
        folder: Folder,
        opened: Opened,
        transport: Arc<dyn Transport>,
        quic: Option<Arc<QuicTransport>>,
    ) -> Result<Self, MasterError> {
        let Opened {
            config,
            authority,
            node,
            store,
            loaded,
        } = opened;
        let failed = |source| MasterError::Http {
            addr: config.http,
            source,
        };
        let http = TcpListener::bind(config.http).await.map_err(failed)?;
        let http_addr = http.local_addr().map_err(failed)?;
        let tls = Arc::new(api::ServerTls::new(&folder.node())?);
        debug_assert_eq!(node.ca_fingerprint(), authority.fingerprint());
        let told = folder.clone();
        blocking(move || told.write(&told.http_address(), &format!("{http_addr}\n"))).await?;
        let key = SigningKey::from_seed(&loaded.master.orders_seed);
        let facts = Facts {
            advertise: advertised(&config, transport.local_addr()),
            http: http_addr.to_string(),
            owner: loaded.owner,
            orders_key: key.verifying_key(),
            started: now(),
        };
        let identity = MasterIdentity {
            cluster: loaded.master.cluster,
            instance: crate::random::id()?,
            term: loaded.term,
        };
        let coordinator = Coordinator::new(identity, key, loaded.servers, loaded.jobs)
            .with_revoked(loaded.revoked);
        let shared = Arc::new(Shared::new(coordinator, store, authority, facts));
        Ok(Self {
            shared,
            folder,
            transport,
            quic,
            http,
            tls,
            http_addr,
        })
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Where agents connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.transport.local_addr()
    }

    /// What goes into join tokens.
    #[must_use]
    pub fn advertised(&self) -> &str {
        &self.shared.facts.advertise
    }

    /// Where the API listens.
    #[must_use]
    pub const fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Serves agents and the API until `shutdown` is done, then closes both: agents are told to
    /// come again, and go on working meanwhile.
    ///
    /// # Cancel safety
    /// Dropping it closes everything at once; nothing that was stored is lost.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let Self {
            shared,
            folder,
            transport,
            quic,
            http,
            tls,
            http_addr,
        } = self;
        info!(
            agents = %transport.local_addr(),
            advertised = %shared.facts.advertise,
            api = %http_addr,
            epoch = %shared.read(Coordinator::epoch),
            "master serves",
        );
        let stopping = CancellationToken::new();
        let api = api::serve(
            Arc::clone(&shared),
            http,
            Arc::clone(&tls),
            stopping.clone(),
        );
        let api = tokio::spawn(api);
        let agents = agents::serve(Arc::clone(&shared), Arc::clone(&transport));
        let housekeeping = housekeeping(&shared, &folder, quic.as_deref(), &tls);
        tokio::select! {
            () = shutdown => {}
            () = agents => error!("the transport closed by itself"),
            () = housekeeping => {}
        }
        stopping.cancel();
        transport.close().await;
        let aborting = api.abort_handle();
        if tokio::time::timeout(DRAIN, api).await.is_err() {
            aborting.abort();
        }
        info!("master stopped");
    }
}

async fn read(folder: &Folder) -> Result<Opened, MasterError> {
    let folder = folder.clone();
    blocking(move || open(&folder)).await
}

/// Renews leases and the master's own certificate.
async fn housekeeping(
    shared: &Shared,
    folder: &Folder,
    quic: Option<&QuicTransport>,
    tls: &api::ServerTls,
) {
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    loop {
        tick.tick().await;
        shared.input(|state| state.coordinator.handle_time(now()));
        if let Err(error) = renew(shared, folder, quic, tls).await {
            error!(%error, "the master's own certificate was not renewed; tried again in a minute");
        }
    }
}

async fn renew(
    shared: &Shared,
    folder: &Folder,
    quic: Option<&QuicTransport>,
    tls: &api::ServerTls,
) -> Result<(), MasterError> {
    let at = folder.node();
    let node = blocking(move || Ok(NodeIdentity::load(&at)?)).await?;
    if node.renew_at() > SystemTime::now() {
        return Ok(());
    }
    let fresh = shared
        .authority
        .issue_local(node.identity(), CERTIFICATE_VALIDITY)?;
    let (at, saved) = (folder.node(), fresh.clone());
    blocking(move || Ok(saved.save(&at)?)).await?;
    if let Some(quic) = quic {
        quic.set_node(fresh)?;
    }
    tls.reload(&folder.node())?;
    info!("the master's own certificate was renewed");
    Ok(())
}
