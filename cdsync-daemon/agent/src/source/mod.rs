//! A job's source: its engine thread watches, compares and records; others read what it announces.

mod engine;
mod hashes;
mod hints;
mod looks;
mod polling;
mod reread;
mod room;
#[cfg(test)]
mod tests;
mod trim;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cdsync_core::coalescer::{LookError, MassDelete, Reread, TooMuch};
use cdsync_core::filter::FilterError;
use cdsync_core::ids::{IncarnationId, ObjectId, OriginId};
use cdsync_core::job::{Mode, RootPath};
use cdsync_core::ledger::object::{Observed, Seq};
use cdsync_core::ledger::outgoing::ContentAt;
use cdsync_core::ledger::tables::TableError;
use cdsync_core::path::{Name, RelPath};
use cdsync_core::wire::{
    ClaimedByAll, FenceAnswer, JobOrder, SourceOrder, SourceReport, SourceState,
};
use cdsync_fs::{
    FsError, FsErrorKind, LedgerStore, Root, RootLost, StoreError, WatchError, WatchHub,
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::board::Board;
use crate::joblog::JobLog;
use crate::mailbox::{Inbox, Mailbox};
use crate::roots::RootError;
use crate::serve::Restless;
use engine::Engine;
pub(crate) use hashes::Hashed;
pub(crate) use looks::dir_ref;
pub(crate) use room::Taken;

/// How long a source that failed waits before it tries again.
const RETRY: Duration = Duration::from_secs(2);

/// What a source's engine is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// There are hints.
    Wake,
    /// A part of a listing, with more to come.
    Listed {
        folder: ObjectId,
        entries: Vec<(Name, Result<Observed, LookError>)>,
        /// Held until the entries are taken in.
        _room: Taken,
    },
    /// The end of a listing, with its last part: one message for most folders.
    ListEnd {
        folder: ObjectId,
        entries: Vec<(Name, Result<Observed, LookError>)>,
        itself: Result<Observed, LookError>,
        /// Held until the entries are taken in.
        _room: Taken,
    },
    /// A reader found a file other than recorded.
    Recheck { folder: RelPath, name: Name },
    /// A file in doubt was read again.
    Reread { at: ContentAt, reread: Reread },
    /// Content was read for sending.
    Hashed(Vec<Hashed>),
    /// A fence is asked for.
    Fence(oneshot::Sender<Result<FenceAnswer, String>>),
    /// What all targets claim.
    Claimed(ClaimedByAll),
    /// New orders for the same job.
    Orders(Box<JobOrder>),
    /// End.
    Stop,
}

/// What is announced to subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Announced {
    pub(crate) head: Seq,
    pub(crate) bytes: u64,
    pub(crate) complete: bool,
}

/// What subscribers and readers need of a running source.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) origin: OriginId,
    pub(crate) incarnation: IncarnationId,
    pub(crate) root: Root,
    pub(crate) store: Arc<LedgerStore>,
    pub(crate) announced: watch::Receiver<Announced>,
    pub(crate) engine: Mailbox<Input>,
    /// Files that changed while they were read.
    pub(crate) restless: Arc<Restless>,
    /// Files that are never at rest are sent as they are read.
    pub(crate) unproven: bool,
}

/// What a source is made from.
#[derive(Debug, Clone)]
pub(crate) struct SourceContext {
    pub(crate) order: JobOrder,
    pub(crate) allowed: Vec<PathBuf>,
    pub(crate) ledger: PathBuf,
    pub(crate) hub: Arc<WatchHub>,
    pub(crate) board: Arc<Board>,
    pub(crate) log: Arc<JobLog>,
    pub(crate) serving: Arc<Mutex<Option<Arc<Served>>>>,
    /// How many hints wait for the engine at most.
    pub(crate) hints_max: usize,
}

impl SourceContext {
    fn part(&self) -> Result<&SourceOrder, SourceError> {
        self.order.source.as_ref().ok_or(SourceError::NoOrder)
    }

    /// Reports that no engine runs; `known` is what the last one had announced.
    fn report(
        &self,
        state: SourceState,
        known: (OriginId, Seq),
        error: Option<String>,
        deletes: Option<MassDelete>,
    ) {
        let (origin, head) = match &deletes {
            Some(deletes) => (deletes.origin, deletes.upto),
            None => known,
        };
        self.board.source(
            self.order.job,
            Some(SourceReport {
                state,
                origin,
                head,
                resume: self.order.source.as_ref().map_or(0, |part| part.resume),
                deletes,
                last_error: error,
                ..SourceReport::default()
            }),
        );
    }

    fn served(&self) -> Option<Arc<Served>> {
        self.serving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn serve(&self, served: Option<Arc<Served>>) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = served;
    }
}

/// Why a source cannot run.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    #[error("the orders name no source here")]
    NoOrder,
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tables(#[from] TableError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("the watcher ended")]
    WatcherEnded,
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("it panicked: see the agent's log; please report it")]
    Panicked,
    /// Stops until a manager resumes the job.
    #[error("{0}")]
    Halt(String),
    /// Stops until a manager decides.
    #[error("{}", deletes_text(.0))]
    Deletes(Box<MassDelete>),
}

impl SourceError {
    fn lost(path: &RootPath, lost: RootLost) -> Self {
        match lost {
            // Says nothing of the root: looked at again soon.
            RootLost::Unreadable(error) if error.kind() == FsErrorKind::TooManyOpen => {
                Self::Fs(error)
            }
            lost => Self::Halt(format!(
                "{path}: {lost}; nothing is deleted anywhere. Bring it back, then resume the job"
            )),
        }
    }
}

/// Why an engine ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It was told to.
    Stop,
    /// New orders need a new engine.
    Again,
}

/// A running source. Dropping it stops it and waits for its thread.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) engine: Mailbox<Input>,
    pub(crate) serving: Arc<Mutex<Option<Arc<Served>>>>,
    /// Set before it is told: an engine that fails may have taken the word with it.
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    pub(crate) fn start(context: SourceContext) -> std::io::Result<Self> {
        let (engine, inbox) = Mailbox::new();
        let serving = Arc::clone(&context.serving);
        let mailbox = engine.clone();
        let stopped = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stopped);
        let thread = std::thread::Builder::new()
            .name(format!("src-{}", context.order.name))
            .spawn(move || supervise(context, &mailbox, &inbox, &stops))?;
        Ok(Self {
            engine,
            serving,
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // An engine that is gone already needs no word.
        let _ = self.engine.send(Input::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a source's thread panicked");
        }
    }
}

/// Runs engines one after another until told to stop.
fn supervise(
    mut context: SourceContext,
    mailbox: &Mailbox<Input>,
    inbox: &Inbox<Input>,
    stops: &AtomicBool,
) {
    let mut known = (OriginId(0), Seq(0));
    loop {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            Engine::open(&context, mailbox.begin(inbox))
                .and_then(|mut engine| engine.run(&mut context, inbox))
        }))
        .unwrap_or(Err(SourceError::Panicked));
        if let Some(served) = context.served() {
            known = (served.origin, served.announced.borrow().head);
        }
        context.serve(None);
        match outcome {
            Ok(Ended::Stop) => break,
            Err(error) if stops.load(Ordering::SeqCst) => {
                tracing::warn!(job = %context.order.name, reason = chain(&error), "failed at its end");
                break;
            }
            Ok(Ended::Again) => {}
            Err(error @ (SourceError::Halt(_) | SourceError::Deletes(_))) => {
                let reason = error.to_string();
                let deletes = match error {
                    SourceError::Deletes(deletes) => Some(*deletes),
                    _ => None,
                };
                tracing::error!(job = %context.order.name, reason, "source halted");
                context.log.note(format!("halted: {reason}"));
                context.report(
                    SourceState::Halted {
                        reason: reason.clone(),
                    },
                    known,
                    Some(reason.clone()),
                    deletes,
                );
                if !wait_for_resume(&mut context, inbox, &reason) {
                    break;
                }
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(job = %context.order.name, reason, "source failed; tried again");
                context.report(
                    SourceState::Failed {
                        reason: reason.clone(),
                    },
                    known,
                    Some(reason.clone()),
                    None,
                );
                if !pause(&mut context, inbox, RETRY, &reason) {
                    break;
                }
            }
        }
    }
    context.board.source(context.order.job, None);
}

/// Waits for a manager's word. `false`: to stop.
fn wait_for_resume(context: &mut SourceContext, inbox: &Inbox<Input>, reason: &str) -> bool {
    let before = context.order.source.as_ref().map_or(0, |s| s.resume);
    loop {
        if !pause(context, inbox, Duration::from_secs(3600), reason) {
            return false;
        }
        if context
            .order
            .source
            .as_ref()
            .is_some_and(|s| s.resume > before)
        {
            return true;
        }
    }
}

/// Waits, but for new orders. `false`: to stop.
fn pause(context: &mut SourceContext, inbox: &Inbox<Input>, wait: Duration, reason: &str) -> bool {
    let end = std::time::Instant::now() + wait;
    loop {
        match inbox.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
            Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Ok(Input::Orders(order)) => {
                context.order = *order;
                return true;
            }
            // Whoever asked may be gone.
            Ok(Input::Fence(reply)) => drop(reply.send(Err(format!("the source: {reason}")))),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return true,
        }
    }
}

/// Why deletes halted a source, with what to do next.
fn deletes_text(deletes: &MassDelete) -> String {
    let MassDelete {
        files, gone, held, ..
    } = deletes;
    let what = match deletes.why {
        TooMuch::Emptied => "no file would be left",
        TooMuch::Beyond => "that is more than the job's guard lets go",
    };
    format!(
        "{} of {files} files are gone here, and {what}: {held} of these deletes are held, {gone} \
         had gone on to the targets. Say `cdsync job resume`, which shows what it will do",
        held + gone
    )
}

/// An error with everything behind it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(source) = at {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        at = source.source();
    }
    text
}

/// Whether a job is watched.
pub(crate) fn is_watched(order: &JobOrder) -> bool {
    order.mode == Mode::Realtime
}
