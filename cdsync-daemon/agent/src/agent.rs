//! The agent itself.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cdsync_core::ids::{Label, ServerId};
use cdsync_core::wire::VerifyingKey;
use cdsync_transport::{
    AutoTransport, BindError, DialOver, NodeIdentity, QuicConfig, Transport, make_private_folder,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::board::Board;
use crate::control::{self, Control};
use crate::lease;
use crate::orders::OrdersKeeper;
use crate::roles::{Roles, RolesContext};
use crate::serve::{self, Readers, Serving};

/// What a peer that was let in may have sent and not yet been read, on each of its connections.
const REQUESTS_WINDOW_BYTES: u32 = 128 << 10;

/// What an agent needs to know. It has no safe defaults: every field comes from joining.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The folder for ledgers and orders; used by one agent at a time.
    pub data: PathBuf,
    /// Where other agents connect to, by UDP (QUIC) and by TCP.
    pub listen: SocketAddr,
    /// Over what other agents are dialled.
    pub dial_over: DialOver,
    /// What other agents dial: host and port; port 0 stands for the one that `listen` gets.
    pub advertise: String,
    /// The roots that jobs may use: themselves and everything below.
    pub roots: Vec<PathBuf>,
    /// Where the master is dialled: host and port.
    pub master_address: String,
    /// This server, as the master numbered it.
    pub server: ServerId,
    /// This server's name, for messages.
    pub name: Label,
    /// The cluster.
    pub cluster: u64,
    /// The key that orders and grants are signed with.
    pub orders_key: VerifyingKey,
    /// Key and certificates.
    pub identity: NodeIdentity,
    /// How many hints of changes wait for each source at most, some 100 bytes each; beyond it the
    /// folders that they speak of are compared instead. [`HINTS_MAX`] is a good choice.
    pub hints_max: usize,
}

/// The usual [`AgentConfig::hints_max`].
pub const HINTS_MAX: usize = 65_536;

/// Why an agent cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The address cannot be listened on. Retryable.
    #[error("cannot listen")]
    Bind(#[from] BindError),
    /// The data folder cannot be used. Retryable once it can.
    #[error("cannot use the data folder {folder}")]
    Data {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A running agent. Dropping it stops everything at once, which loses nothing that was claimed;
/// [`Agent::run`] ends politely.
#[derive(Debug)]
pub struct Agent {
    transport: Arc<AutoTransport>,
    roles: Arc<Mutex<Roles>>,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Binds, takes up the standing orders, and connects to the master. Must be called inside a
    /// tokio runtime with I/O and time enabled, which it keeps using.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn start(mut config: AgentConfig) -> Result<Self, AgentError> {
        let data_error = |source| AgentError::Data {
            folder: config.data.clone(),
            source,
        };
        let ledgers = config.data.join("ledgers");
        make_private_folder(&ledgers).map_err(data_error)?;
        let readers = Readers::start().map_err(data_error)?;
        let transport = Arc::new(AutoTransport::bind(
            config.listen,
            config.identity.clone(),
            // Who comes to fetch sends requests and credit, nothing more.
            QuicConfig::default().accepted_window(REQUESTS_WINDOW_BYTES),
            config.dial_over,
        )?);
        if let Some(host) = config.advertise.strip_suffix(":0") {
            config.advertise = format!("{host}:{}", transport.local_addr().port());
        }
        let board = Arc::new(Board::default());
        let serving = Arc::new(Serving::new(config.orders_key, config.cluster, readers));
        let shared: Arc<dyn Transport> = transport.clone();
        let roles = Arc::new(Mutex::new(Roles::new(RolesContext {
            ledgers,
            allowed: config.roots.clone(),
            transport: Arc::clone(&shared),
            runtime: tokio::runtime::Handle::current(),
            board: Arc::clone(&board),
            serving: Arc::clone(&serving),
            hints_max: config.hints_max,
        })));
        let keeper = OrdersKeeper::open(
            config.data.join("orders"),
            config.orders_key,
            config.server,
            config.cluster,
        );
        let (newest, watched) = watch::channel(keeper.current().cloned());
        if let Some(orders) = keeper.current() {
            serving.revoke(&orders.revoked);
            serving.clock.seen(orders.issued);
            control::follow(&roles, serving.clock.in_force(orders.clone()));
        }
        let mut tasks = JoinSet::new();
        let (clock, following) = (Arc::clone(&serving.clock), Arc::clone(&roles));
        tasks.spawn(lease::watch_end(
            Arc::clone(&clock),
            watched,
            move |orders| {
                control::follow(&following, clock.in_force(orders));
            },
        ));
        tasks.spawn(serve::accept(shared, Arc::clone(&serving)));
        let control = Control {
            config: Arc::new(config),
            transport: Arc::clone(&transport),
            board,
            keeper,
            roles: Arc::clone(&roles),
            serving,
            newest,
            unkept: None,
        };
        tasks.spawn(control.run());
        Ok(Self {
            transport,
            roles,
            tasks,
        })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.transport.local_addr()
    }

    /// Runs until `shutdown` is ready, then ends politely: engines commit what they have, peers are
    /// told.
    ///
    /// # Cancel safety
    /// Dropping it stops everything at once; nothing that was claimed is lost.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        self.tasks.shutdown().await;
        let roles = Arc::clone(&self.roles);
        // Engines end on their own threads; waiting for them must not hold up the runtime.
        let ended = tokio::task::spawn_blocking(move || {
            roles
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .end_all();
        });
        if ended.await.is_err() {
            tracing::error!("the engines did not end in order");
        }
        self.transport.close().await;
    }
}
