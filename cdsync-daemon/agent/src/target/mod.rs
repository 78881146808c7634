//! A job's target: its engine thread applies what a link task receives from the upstream.

mod difference;
mod disk;
pub(crate) mod engine;
mod link;
mod losses;
mod patrol;
mod preview;
mod pull;
mod reconcile;
mod restore;
mod trash;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::filter::FilterError;
use cdsync_core::ids::{JobId, ObjectId, OriginId, ServerId};
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::tables::TableError;
use cdsync_core::path::RelPath;
use cdsync_core::replica::{FetchResult, FetchWant, Place, ReplicaError};
use cdsync_core::wire::{
    Accepted, CompareAnswer, CompareAsk, Cursor, DriftReport, JobOrder, LossReport, Snapshot,
    TargetOrder, TargetReport, TargetState, Tick, TrashReport,
};
use cdsync_fs::{Applier, ApplyError, FsError, StagedWriter, StoreError};
use cdsync_transport::Transport;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::board::Board;
use crate::joblog::JobLog;
use crate::lease::LeaseClock;
use crate::mailbox::{Inbox, Mailbox};
use crate::roots::RootError;
use engine::Engine;

/// How long a target that failed waits before it tries again.
const RETRY: Duration = Duration::from_secs(2);

/// How long a target whose root is not what it was waits before it looks again.
const HALT_RETRY: Duration = Duration::from_secs(5);
/// How long a busy engine may take to explain something.
const EXPLAIN_PATIENCE: Duration = Duration::from_secs(5);

/// What a target's engine is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A subscription began, from this cursor on. Answered with whether its records may come.
    Accepted {
        by: ServerId,
        from: Option<Cursor>,
        accepted: Accepted,
        reply: oneshot::Sender<Verdict>,
    },
    /// A subscription began with a snapshot to be compared. Answered likewise.
    Snapshot {
        by: ServerId,
        from: Option<Cursor>,
        snapshot: Snapshot,
        reply: oneshot::Sender<Verdict>,
    },
    /// The answer to a question about it, and what it took on the wire, in bytes.
    Compared { answer: CompareAnswer, bytes: u64 },
    /// A batch frame.
    Batch { compressed: bool, payload: Bytes },
    /// A sign of life.
    Tick(Tick),
    /// A fetch ended.
    Fetched {
        object: ObjectId,
        result: FetchResult,
        staged: Option<StagedWriter>,
        /// What the job's log says of it.
        note: Option<String>,
    },
    /// A sync of the disk ended.
    Synced(Result<(), String>),
    /// The link lost its upstream, and why.
    Unlinked(String),
    /// What is known of a path.
    Explain {
        path: RelPath,
        reply: std::sync::mpsc::SyncSender<String>,
    },
    /// New orders for the same job.
    Orders(Box<JobOrder>),
    /// End.
    Stop,
}

/// One content to pull.
#[derive(Debug)]
struct Pull {
    want: FetchWant,
    /// Where something may be of which it can be made.
    base: Option<Place>,
}

/// What the engine asks of its link.
#[derive(Debug)]
enum LinkOrder {
    /// Grant the upstream more.
    Credit(u32),
    /// Pull these contents, one after another on one stream.
    Fetch(Vec<Pull>),
    /// Ask this about the snapshot.
    Compare(CompareAsk),
    /// The upstream misbehaves or the ledger begins anew: drop the subscription.
    Drop(String),
}

/// What an engine says to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its records may come.
    GoOn,
    /// More was claimed since it was asked for: ask again from there.
    Again,
    /// The ledger begins anew, with another link.
    Anew,
}

/// Where a link begins to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resume {
    cursor: Option<Cursor>,
    preview: bool,
}

/// What a target is made from.
#[derive(Debug, Clone)]
pub(crate) struct TargetContext {
    pub(crate) order: JobOrder,
    pub(crate) allowed: Vec<PathBuf>,
    pub(crate) ledger: PathBuf,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) board: Arc<Board>,
    pub(crate) log: Arc<JobLog>,
    /// Tells when things in the trash are too old.
    pub(crate) clock: Arc<LeaseClock>,
    /// Another target root of this server that overlaps with this one.
    pub(crate) overlaps: Option<String>,
}

impl TargetContext {
    fn part(&self) -> Result<&TargetOrder, TargetError> {
        self.order.target.as_ref().ok_or(TargetError::NoOrder)
    }

    fn report_state(&self, state: TargetState, error: String) {
        self.board.target(
            self.order.job,
            Some(TargetReport {
                state,
                upstream: None,
                resume: self.order.target.as_ref().map_or(0, |part| part.resume),
                origin: OriginId(0),
                claim: Seq(0),
                head: Seq(0),
                pending_bytes: 0,
                oldest_pending_ms: 0,
                parked_count: 0,
                parked: Vec::new(),
                preview: None,
                last_error: Some(error),
                trash: TrashReport::default(),
                drift: DriftReport::default(),
                losses: LossReport::default(),
            }),
        );
    }
}

/// Why a target cannot run.
#[derive(Debug, Error)]
pub(crate) enum TargetError {
    #[error("the orders name no target here")]
    NoOrder,
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tables(#[from] TableError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("the upstream misbehaves: {0}")]
    Upstream(#[from] ReplicaError),
    #[error("the ledger cannot begin anew: {0}")]
    Reset(std::io::Error),
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("it panicked: see the agent's log; please report it")]
    Panicked,
    /// Stops until something is changed.
    #[error("{0}")]
    Halt(String),
}

/// Why an engine ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It was told to.
    Stop,
    /// It must be made anew: other orders, or another ledger.
    Again,
}

/// A running target. Dropping it stops it and waits for its thread.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) engine: Mailbox<Input>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    pub(crate) fn start(context: TargetContext) -> std::io::Result<Self> {
        let (engine, inbox) = Mailbox::new();
        let mailbox = engine.clone();
        let thread = std::thread::Builder::new()
            .name(format!("tgt-{}", context.order.name))
            .spawn(move || supervise(context, &mailbox, &inbox))?;
        Ok(Self {
            engine,
            thread: Some(thread),
        })
    }

    /// What the ledger knows of a path; `None` when the engine does not answer in time. Blocks.
    pub(crate) fn explain(&self, path: RelPath) -> Option<String> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.engine.send(Input::Explain { path, reply }).ok()?;
        answer.recv_timeout(EXPLAIN_PATIENCE).ok()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // An engine that is gone already needs no word.
        let _ = self.engine.send(Input::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a target's thread panicked");
        }
    }
}

fn supervise(mut context: TargetContext, mailbox: &Mailbox<Input>, inbox: &Inbox<Input>) {
    let mut told = String::new();
    loop {
        // Nothing of an engine that panicked is used again: the transaction that it was in is gone.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            Engine::open(&context, mailbox.begin(inbox))
                .and_then(|mut engine| engine.run(&mut context, inbox))
        }))
        .unwrap_or(Err(TargetError::Panicked));
        let (state, reason, wait) = match outcome {
            Ok(Ended::Stop) => break,
            Ok(Ended::Again) => continue,
            // A root that is back is known by its marker, so looking again is safe.
            Err(TargetError::Halt(reason)) => (TargetState::Halted, reason, HALT_RETRY),
            Err(error) => (TargetState::Halted, crate::source::chain(&error), RETRY),
        };
        if told != reason {
            tracing::warn!(job = %context.order.name, reason, "target stopped");
            context.log.note(format!("stopped: {reason}"));
            told.clone_from(&reason);
        }
        context.report_state(state, reason);
        if !pause(&mut context, inbox, wait) {
            break;
        }
    }
    context.board.target(context.order.job, None);
}

/// Waits, but for new orders. `false`: to stop.
fn pause(context: &mut TargetContext, inbox: &Inbox<Input>, wait: Duration) -> bool {
    let end = std::time::Instant::now() + wait;
    loop {
        match inbox.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Ok(Input::Orders(order)) => {
                context.order = *order;
                return true;
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return true,
        }
    }
}

/// The thread that syncs the disk, so that applying goes on meanwhile.
#[derive(Debug)]
struct Syncer {
    requests: std::sync::mpsc::SyncSender<bool>,
}

impl Syncer {
    fn start(applier: Arc<Applier>, engine: Mailbox<Input>) -> Result<Self, TargetError> {
        let (requests, inbox) = std::sync::mpsc::sync_channel::<bool>(1);
        std::thread::Builder::new()
            .name("sync".into())
            .spawn(move || {
                while let Ok(dirty) = inbox.recv() {
                    let result = if dirty { applier.sync() } else { Ok(()) };
                    let result = result.map_err(|e| crate::source::chain(&e));
                    if engine.send(Input::Synced(result)).is_err() {
                        return;
                    }
                }
            })
            .map_err(TargetError::Thread)?;
        Ok(Self { requests })
    }

    /// Asks for a sync; one is under way at most, so this never waits.
    fn ask(&self, dirty: bool) {
        // The thread is gone only when the engine is.
        let _ = self.requests.send(dirty);
    }
}

/// The task that keeps a subscription; aborted when dropped.
#[derive(Debug)]
struct LinkHandle {
    orders: mpsc::Sender<LinkOrder>,
    task: tokio::task::JoinHandle<()>,
}

impl LinkHandle {
    fn say(&self, order: LinkOrder) {
        // A link that is gone has nothing to grant or fetch. One that is full is waited for: it
        // never waits for the engine longer than the engine's own inbox is full.
        if self.orders.blocking_send(order).is_err() {
            tracing::debug!("an order to a link that is gone");
        }
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A job, for spans and messages of the link.
#[derive(Debug, Clone)]
struct JobRef {
    id: JobId,
    name: String,
}
