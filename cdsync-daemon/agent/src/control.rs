//! The connection to the master: hello, orders in, reports out, questions answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cdsync_core::wire::{
    AgentMessage, Answer, CONTROL_MAX_BYTES, Hello, MasterMessage, Orders, Signed, decode, encode,
    kind,
};
use cdsync_transport::{
    AutoTransport, CertificateError, CloseReason, ConnectError, FrameError, FrameReader,
    FrameWriter, NodeIdentity, PeerExpectation, Transport,
};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::agent::AgentConfig;
use crate::board::Board;
use crate::clock::random_id;
use crate::orders::{OrdersError, OrdersKeeper};
use crate::roles::{Asked, Roles};
use crate::serve::Serving;
use crate::source::chain;

/// How long after an answer a certificate that is still old is not asked for again.
const RENEW_PAUSE: Duration = Duration::from_secs(600);
/// The first wait before the master is tried again, doubled with each failure.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest wait.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Reports of a busy agent are at least so far apart.
const REPORT_GAP: Duration = Duration::from_millis(20);
/// A report is sent at least so often: the master's sign that this server lives.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How soon orders that could not be kept are tried again; at the next report then.
const KEEP_AGAIN: Duration = Duration::from_millis(900);
/// How long the master may take to let the stream be opened.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// How many answers may wait to be sent.
const ANSWERS: usize = 64;

/// Why there is no master.
#[derive(Debug, Error)]
enum ControlError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Closed(#[from] CloseReason),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("it lets no stream be opened")]
    Slow,
    #[error("it ended the connection")]
    Ended,
}

/// Everything that the control task works with.
pub(crate) struct Control {
    pub(crate) config: Arc<AgentConfig>,
    pub(crate) transport: Arc<AutoTransport>,
    pub(crate) board: Arc<Board>,
    pub(crate) keeper: OrdersKeeper,
    pub(crate) roles: Arc<Mutex<Roles>>,
    pub(crate) serving: Arc<Serving>,
    /// The newest orders, for whoever watches the end of their lease.
    pub(crate) newest: watch::Sender<Option<Orders>>,
    /// Orders that the disk does not take, and when that was tried last.
    pub(crate) unkept: Option<(Signed, Instant)>,
}

impl Control {
    /// Keeps a connection to the master until aborted.
    pub(crate) async fn run(mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            let began = Instant::now();
            let Err(error) = self.talk().await;
            tracing::warn!(
                master = self.config.master_address,
                error = chain(&error),
                "the master is not reached; standing orders are followed"
            );
            if began.elapsed() > RETRY_MAX {
                wait = RETRY_FIRST;
            }
            tokio::time::sleep(wait.mul_f64(0.9 + (random_id() % 1000) as f64 / 5000.0)).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn talk(&mut self) -> Result<std::convert::Infallible, ControlError> {
        let expect = PeerExpectation::any_master();
        let connection = self
            .transport
            .quic()
            .connect(&self.config.master_address, &expect)
            .await?;
        let opened = tokio::time::timeout(OPEN_MAX, connection.open()).await;
        let (send, recv) = opened.map_err(|_| ControlError::Slow)??;
        let mut writer = FrameWriter::new(send).with_max_payload(CONTROL_MAX_BYTES);
        let mut reader = FrameReader::new(recv).with_max_payload(CONTROL_MAX_BYTES);
        write(&mut writer, &AgentMessage::Hello(self.hello())).await?;
        tracing::info!(
            master = self.config.master_address,
            "connected to the master"
        );
        let (answers, mut answered) = mpsc::channel::<(u64, Result<Answer, String>)>(ANSWERS);
        let mut report_at = Instant::now();
        let mut changed = true;
        let mut renew_asked: Option<Instant> = None;
        // The newest ones come again with each connection.
        self.unkept = None;
        loop {
            let again = |(_, tried): &mut (_, Instant)| tried.elapsed() >= KEEP_AGAIN;
            if let Some((signed, _)) = self.unkept.take_if(again) {
                self.take_orders(signed, true);
            }
            let asked_lately = renew_asked.is_some_and(|at| at.elapsed() < RENEW_PAUSE);
            if self.certificate_is_old() && !asked_lately {
                renew_asked = Some(Instant::now());
                self.ask_renewal(&mut writer).await?;
            }
            let due = if changed {
                report_at + REPORT_GAP
            } else {
                report_at + REPORT_EVERY
            };
            tokio::select! {
                frame = reader.next() => {
                    let frame = frame?.ok_or(ControlError::Ended)?;
                    if frame.kind != kind::CONTROL {
                        return Err(ControlError::Protocol("a frame of another kind"));
                    }
                    let message = decode(&frame.payload)
                        .map_err(|_| ControlError::Protocol("a message does not decode"))?;
                    self.take(message, &answers);
                }
                Some((id, answer)) = answered.recv() => {
                    write(&mut writer, &AgentMessage::Answer { id, answer }).await?;
                }
                () = self.board.changed(), if !changed => changed = true,
                () = tokio::time::sleep_until(due) => {
                    changed = false;
                    report_at = Instant::now();
                    write(&mut writer, &AgentMessage::Report(self.board.report())).await?;
                }
            }
        }
    }

    fn hello(&self) -> Hello {
        let current = self.keeper.current();
        Hello {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.config.advertise.clone(),
            roots: self
                .config
                .roots
                .iter()
                .map(|r| r.display().to_string())
                .collect(),
            standing: current.map_or_else(Signed::default, |orders| orders.standing.clone()),
            watching: watching().to_owned(),
        }
    }

    /// Takes a message.
    fn take(
        &mut self,
        message: MasterMessage,
        answers: &mpsc::Sender<(u64, Result<Answer, String>)>,
    ) {
        match message {
            MasterMessage::Welcome { now } => self.serving.clock.told(now),
            MasterMessage::Orders(signed) => self.take_orders(signed, false),
            MasterMessage::Ask { id, ask } => {
                let (roles, answers) = (Arc::clone(&self.roles), answers.clone());
                tokio::spawn(async move {
                    let asked = tokio::task::spawn_blocking(move || {
                        roles
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .ask(ask)
                    });
                    let answer = match asked.await {
                        Ok(Asked::Now(answer)) => answer,
                        Ok(Asked::Fence(answer)) => match answer.await {
                            Ok(answer) => answer.map(Answer::Fence),
                            Err(_) => Err("the source began anew; ask again".to_owned()),
                        },
                        Err(_) => Err("the agent is ending".to_owned()),
                    };
                    // A connection that is gone needs no answer.
                    drop(answers.send((id, answer)).await);
                });
            }
            MasterMessage::Claimed(claimed) => {
                // Whoever holds the roles now may wait for a disk, and it is told again.
                if let Ok(roles) = self.roles.try_lock() {
                    roles.claimed(&claimed);
                }
            }
            MasterMessage::Renewed { certificate } => {
                if let Err(error) = self.renew(&certificate) {
                    tracing::error!(
                        error = chain(&error),
                        "the renewed certificate is not usable"
                    );
                }
            }
        }
    }

    /// Follows orders. What the disk does not take is tried again until it does, or newer ones come.
    fn take_orders(&mut self, signed: Signed, again: bool) {
        self.unkept = None;
        match self.keeper.take(&signed) {
            Ok(orders) => {
                // At once, not behind engines that end.
                self.serving.revoke(&orders.revoked);
                self.serving.clock.told(orders.issued);
                self.newest.send_replace(Some(orders.clone()));
                follow(&self.roles, self.serving.clock.in_force(orders.clone()));
            }
            Err(error) => {
                if !again {
                    tracing::warn!(error = chain(&error), "orders are not followed");
                }
                if let OrdersError::Keep(_) = error {
                    self.unkept = Some((signed, Instant::now()));
                }
            }
        }
    }

    fn certificate_is_old(&self) -> bool {
        SystemTime::now() > self.transport.node().renew_at()
    }

    async fn ask_renewal(&self, writer: &mut FrameWriter) -> Result<(), ControlError> {
        match self.transport.node().key().signing_request_pem() {
            Ok(csr) => write(writer, &AgentMessage::Renew { csr }).await,
            Err(error) => {
                tracing::error!(error = chain(&error), "no certificate can be asked for");
                Ok(())
            }
        }
    }

    fn renew(&self, certificate: &str) -> Result<(), CertificateError> {
        let old = self.transport.node();
        let node = NodeIdentity::new(old.key().clone(), certificate, old.ca_pem())?;
        node.save(&self.config.data)?;
        if let Err(error) = self.transport.set_node(node) {
            tracing::error!(
                error = chain(&error),
                "the renewed certificate is not taken"
            );
        }
        Ok(())
    }
}

/// Which way of watching this process may use. A filesystem may still refuse it; the job's log says
/// what each source came to.
#[expect(
    clippy::disallowed_methods,
    reason = "the kernel's word on this process, not a job's tree"
)]
fn watching() -> &'static str {
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::metadata("/proc/self") {
        Ok(own) if own.uid() == 0 => "fanotify",
        _ => "inotify: the agent does not run as root",
    }
}

/// Follows orders on a thread that may wait: engines end before others begin.
pub(crate) fn follow(roles: &Arc<Mutex<Roles>>, orders: Orders) {
    tracing::info!(epoch = %orders.epoch, jobs = orders.jobs.len(), "new orders");
    let roles = Arc::clone(roles);
    tokio::task::spawn_blocking(move || {
        roles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .follow(&orders);
    });
}

async fn write(writer: &mut FrameWriter, message: &AgentMessage) -> Result<(), ControlError> {
    Ok(writer
        .write(kind::CONTROL, &[Bytes::from(encode(message))])
        .await?)
}
