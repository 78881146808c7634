//! The engine of a source: one thread that owns the coalescer and its ledger.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use cdsync_core::change::changes;
use cdsync_core::coalescer::{
    Coalescer, CoalescerConfig, FolderKey, Hint, ListRequest, MassDelete, OpenGap, Trouble, What,
};
use cdsync_core::filter::Filter;
use cdsync_core::ids::{IncarnationId, OriginId};
use cdsync_core::job::Unsettled;
use cdsync_core::ledger::access::{self, live, log_after, meta, put_meta};
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::record::Record;
use cdsync_core::ledger::tables::{TableError, Tables, TablesRead};
use cdsync_core::time::WallMillis;
use cdsync_core::wire::{
    Decision, FenceAnswer, GapReport, JobOrder, LogLine, SourceReport, SourceState,
};
use cdsync_fs::{Durability, FlushError, FsErrorKind, LedgerStore, Root, Watch};
use tokio::sync::{oneshot, watch};

use super::hashes::Hashes;
use super::hints::{HintBuffer, Sink, Waiting};
use super::polling::Polling;
use super::reread::Rereader;
use super::trim::Trimmer;
use super::{Announced, Ended, Input, Served, SourceContext, SourceError, is_watched, looks};
use crate::boot;
use crate::clock::{Stopwatch, random_id, wall};
use crate::joblog::shorten;
use crate::mailbox::{Inbox, Mailbox};
use crate::owners::OwnerNames;
use crate::roots;
use crate::serve::Restless;

/// redb's cache for one ledger.
pub(crate) const LEDGER_CACHE_BYTES: usize = 8 << 20;
/// How many inputs one transaction takes.
const INPUTS_MAX: usize = 64;
/// How long the kernel's queue may take to be read out.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
/// The engine wakes at least so often, to see that its root is still there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// While a scan runs, what it writes is made durable in groups, this far apart: a commit waits for
/// the disk, and nobody waits for one record of many.
const GROUP_COMMITS: Duration = Duration::from_millis(20);
/// The groups grow with the scan, up to this: targets have enough to do by then, and each commit
/// writes the same upper pages of the tables again.
const GROUP_COMMITS_MAX: Duration = Duration::from_millis(100);
/// How long one transaction goes on taking what a scan brings: each costs a commit and two looks at
/// the root besides, as much as a small folder.
const SCAN_TURN: Duration = Duration::from_millis(5);
/// More records at once than this are told as one line in the job's log.
const LOG_LINES_MAX: u64 = 2_000;

const IDENTITY: &str = "root-identity";
const COMPLETE: &str = "source-complete";
const RUN_DONE: &str = "run-done";
const RUN_HELD: &str = "run-held";
/// [`Halting`]; kept until what was decided about it is done.
const DELETES: &str = "mass-delete";
/// How many paths that the disk does not show are named in a report, and in a fence's answer.
const REPORT_HELD: usize = 20;
/// How many gaps are named in a report.
const REPORT_GAPS: usize = 20;
const FENCE_HELD: usize = 1000;

/// The deletes that halted this source.
#[derive(Debug)]
struct Halting {
    deletes: MassDelete,
    /// The resume that the engine then knew.
    resume: u64,
    /// What had gone came back at the targets since.
    restored: bool,
}

/// A [`Halting`] as the ledger has it.
type HaltingRow = Option<(MassDelete, u64, bool)>;

impl Halting {
    fn note(&self, store: &LedgerStore) -> Result<(), SourceError> {
        let row: HaltingRow = Some((self.deletes.clone(), self.resume, self.restored));
        store.write(Durability::Durable, |t| put_meta(t, DELETES, &row))?;
        Ok(())
    }
}

type Reply = oneshot::Sender<Result<FenceAnswer, String>>;

/// Paths that the disk does not show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    count: u64,
    /// The first of them, with why.
    paths: Vec<String>,
}

pub(super) struct Engine {
    root: Root,
    owners: OwnerNames,
    store: Arc<LedgerStore>,
    coalescer: Coalescer,
    watch: Option<Watch>,
    hints: Arc<HintBuffer>,
    lists: SyncSender<Vec<ListRequest>>,
    announce: watch::Sender<Announced>,
    clock: Stopwatch,
    /// When the clock started.
    opened: WallMillis,
    complete: bool,
    /// What was decided about deletes is being done.
    deciding: bool,
    /// The run that is under way, for manual jobs.
    running: Option<u64>,
    run_done: (u64, Seq),
    /// What the disk does not show, as it was reported last; for manual jobs at the end of the last
    /// run.
    held: Held,
    gaps: Vec<GapReport>,
    hashes: Hashes,
    polling: Polling,
    /// How many safety scans have ended, and when the last one did.
    patrols: (u64, Option<WallMillis>),
    rereader: Rereader,
    restless: Arc<Restless>,
    trimmer: Trimmer,
    fences: Vec<Reply>,
    /// Something was written and is not durable yet, since the last durable commit.
    uncommitted: bool,
    committed_at: Instant,
    /// When the scan that runs was first seen.
    scanning_since: Option<Instant>,
    /// An input that a turn met and left to the next one.
    left: Option<Input>,
    logged: Seq,
    last_error: Option<String>,
    reported: Option<SourceReport>,
}

impl Engine {
    /// Opens root and ledger, watches first, then begins to scan.
    pub(super) fn open(
        context: &SourceContext,
        mailbox: Mailbox<Input>,
    ) -> Result<Self, SourceError> {
        let part = context.part()?;
        let known = LedgerStore::is_there(&context.ledger)?;
        let root = match roots::open(&context.allowed, &part.root, false) {
            Err(roots::RootError::Open { path, source })
                if known && source.kind() != FsErrorKind::TooManyOpen =>
            {
                return Err(SourceError::Halt(format!(
                    "the root {path} cannot be opened: {source}; nothing is deleted anywhere. \
                     Bring it back, then resume the job"
                )));
            }
            other => other?,
        };
        let store = Arc::new(LedgerStore::open_as(
            known,
            &context.ledger,
            LEDGER_CACHE_BYTES,
        )?);
        let deletes = held_deletes(context, &store)?;
        check_identity(context, &store, &root)?;
        let hints = Arc::new(HintBuffer::new(context.hints_max));
        let watch = if is_watched(&context.order) {
            let sink = Sink {
                buffer: Arc::clone(&hints),
                engine: mailbox.clone(),
            };
            let watch = context.hub.watch(&root, Box::new(sink))?;
            tracing::info!(job = %context.order.name, root = root.display(),
                backend = ?watch.backend(), "watching");
            context.log.note(format!(
                "watching {} by {:?}",
                root.display(),
                watch.backend()
            ));
            Some(watch)
        } else {
            None
        };
        let polling = Polling::new(watch.as_ref());
        let owners = OwnerNames::new(context.order.settings.owners);
        let lists = start_scanner(&root, &owners, &mailbox)?;
        let rereader = Rereader::start(&root, &mailbox)?;
        let (mut coalescer, mut complete, run_done, held) =
            open_ledger(polling.is_on(), context, &store, &root, &owners)?;
        let (clock, opened) = (Stopwatch::start(), wall());
        if let Some(halting) = &deletes {
            // Absence means nothing before the scan has shown what is still gone.
            complete = false;
            match context.part()?.decision {
                Decision::Accept => coalescer.accept_deletes(halting.deletes.held),
                _ if halting.restored => {}
                _ => coalescer.recall_deletes(clock.now(), &halting.deletes),
            }
        }
        let (announce, announced) = watch::channel(Announced::default());
        let head = coalescer.head();
        let restless = Arc::new(Restless::default());
        context.serve(Some(Arc::new(Served {
            origin: coalescer.origin(),
            incarnation: coalescer.incarnation(),
            root: root.clone(),
            store: Arc::clone(&store),
            announced,
            engine: mailbox,
            restless: Arc::clone(&restless),
            unproven: context.order.settings.unsettled == Unsettled::Send,
        })));
        let mut engine = Self {
            trimmer: Trimmer::new(&coalescer),
            root,
            owners,
            store,
            coalescer,
            watch,
            hints,
            lists,
            announce,
            clock,
            opened,
            complete,
            deciding: deletes.is_some(),
            running: None,
            run_done,
            held,
            gaps: Vec::new(),
            hashes: Hashes::default(),
            polling,
            patrols: (0, None),
            rereader,
            restless,
            fences: Vec::new(),
            uncommitted: true,
            committed_at: Instant::now(),
            scanning_since: None,
            left: None,
            logged: head,
            last_error: None,
            reported: None,
        };
        if is_watched(&context.order) {
            engine.coalescer.start_scan();
        }
        engine.commit()?;
        Ok(engine)
    }

    pub(super) fn run(
        &mut self,
        context: &mut SourceContext,
        inbox: &Inbox<Input>,
    ) -> Result<Ended, SourceError> {
        self.start_run(&context.order);
        loop {
            let mut inputs = Vec::new();
            match self.left.take() {
                Some(input) => inputs.push(input),
                None => match inbox.recv_timeout(self.wait()) {
                    Ok(input) => inputs.push(input),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(Ended::Stop),
                },
            }
            while inputs.len() < INPUTS_MAX
                && let Some(input) = inbox.try_recv()
            {
                inputs.push(input);
            }
            if let Some(ended) = self.take_orders(context, &mut inputs) {
                self.end()?;
                return Ok(ended);
            }
            self.turn(context, inbox, inputs)?;
            self.trim_log(context)?;
            self.report(context);
        }
    }

    /// Keeps what was not worth a commit until now.
    fn end(&mut self) -> Result<(), SourceError> {
        let hashes = self.hashes.take_all();
        if !hashes.is_empty() {
            self.store.write(Durability::Lazy, |t| {
                self.coalescer.handle_hashes(t, hashes)
            })?;
            self.uncommitted = true;
        }
        if self.uncommitted {
            self.commit()?;
        }
        Ok(())
    }

    fn wait(&self) -> Duration {
        let most = if self.uncommitted {
            GROUP_COMMITS
        } else {
            HEARTBEAT
        };
        let due = [self.hashes.due_in(), self.polling.due_in()];
        let most = due.into_iter().flatten().fold(most, Duration::min);
        match self.coalescer.poll_timeout() {
            Some(due) => self.clock.until(due).min(most),
            None => most,
        }
    }

    /// New orders either change nothing here, start a run, or need a new engine.
    fn take_orders(
        &mut self,
        context: &mut SourceContext,
        inputs: &mut Vec<Input>,
    ) -> Option<Ended> {
        let mut ended = None;
        inputs.retain_mut(|input| match input {
            Input::Stop => {
                ended = Some(Ended::Stop);
                false
            }
            Input::Orders(order) => {
                if same_engine(&context.order, order) {
                    context.order = (**order).clone();
                    self.start_run(&context.order);
                } else {
                    context.order = (**order).clone();
                    ended = ended.or(Some(Ended::Again));
                }
                false
            }
            Input::Claimed(claimed) => {
                self.trimmer.claimed(*claimed);
                false
            }
            _ => true,
        });
        ended
    }

    fn start_run(&mut self, order: &JobOrder) {
        let Some(part) = &order.source else { return };
        let wanted = part.run > self.run_done.0 && self.running.is_none_or(|run| run < part.run);
        if !is_watched(order) && wanted {
            if self.running.is_none() {
                self.coalescer.start_scan();
            }
            self.running = Some(part.run);
        }
    }

    fn turn(
        &mut self,
        context: &SourceContext,
        inbox: &Inbox<Input>,
        inputs: Vec<Input>,
    ) -> Result<(), SourceError> {
        let part = context.part()?;
        self.root
            .verify()
            .map_err(|lost| SourceError::lost(&part.root, lost))?;
        let waiting = self.hints.take();
        if waiting.ended {
            return Err(SourceError::WatcherEnded);
        }
        if self.polling.is_due(self.coalescer.is_scanning()) {
            self.coalescer.start_scan();
        }
        let idle = inputs.iter().all(|input| matches!(input, Input::Wake))
            && waiting.is_empty()
            && self.hashes.due_in() != Some(Duration::ZERO)
            && self
                .coalescer
                .poll_timeout()
                .is_none_or(|due| due > self.clock.now())
            && !self.coalescer.is_scanning()
            && self.fences.is_empty()
            && !self.uncommitted;
        if idle {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let began = Instant::now();
        let wrote = store.write(Durability::Lazy, |t| {
            self.take_inputs(t, inputs, waiting)?;
            self.look_around(t)?;
            while let Some(inputs) = self.more_of_scan(inbox, began) {
                let waiting = self.hints.take();
                if waiting.ended {
                    return Err(SourceError::WatcherEnded);
                }
                self.take_inputs(t, inputs, waiting)?;
                self.look_around(t)?;
            }
            // Deletes seen through a handle of a root that is gone must not even be recorded.
            self.root
                .verify()
                .map_err(|lost| SourceError::lost(&part.root, lost))?;
            Ok::<_, SourceError>(self.coalescer.finish(t)?)
        })?;
        self.uncommitted |= wrote;
        let grouped = self.committed_at.elapsed() < self.group_commits();
        if self.uncommitted && !grouped {
            self.commit()?;
        }
        self.obey_guard(part.resume)?;
        self.end_scan()?;
        self.write_log(context)?;
        self.answer_fences()?;
        if self.watch.is_some() {
            self.held = self.held_now(REPORT_HELD)?;
        }
        let gaps = self.gaps_now()?;
        if let (Some(first), true) = (gaps.first(), self.gaps.is_empty()) {
            let folders = self.coalescer.gap_count();
            context.log.note(format!(
                "hints were lost, {folders} folders are compared: {}",
                first.path
            ));
        } else if gaps.is_empty() && !self.gaps.is_empty() {
            context
                .log
                .note("what hints were lost of is compared".to_owned());
        }
        self.gaps = gaps;
        for trouble in self.coalescer.take_troubles() {
            let line = held_line(&trouble);
            context.log.note(line.clone());
            self.last_error = Some(line);
        }
        Ok(())
    }

    /// What a scan has brought since the turn began, until the turn is long enough.
    fn more_of_scan(&mut self, inbox: &Inbox<Input>, began: Instant) -> Option<Vec<Input>> {
        let mut inputs = Vec::new();
        if !self.coalescer.is_scanning() || self.left.is_some() || began.elapsed() >= SCAN_TURN {
            return None;
        }
        while inputs.len() < INPUTS_MAX
            && let Some(input) = inbox.try_recv()
        {
            if matches!(input, Input::Orders(_) | Input::Claimed(_) | Input::Stop) {
                self.left = Some(input);
                break;
            }
            inputs.push(input);
        }
        (!inputs.is_empty()).then_some(inputs)
    }

    /// Drops what the log holds of no use to anybody, or beyond the job's bound.
    fn trim_log(&mut self, context: &SourceContext) -> Result<(), SourceError> {
        let bounds = context.order.settings.log;
        if !self.trimmer.is_due(&self.coalescer, bounds) {
            return Ok(());
        }
        let (trimmer, coalescer) = (&mut self.trimmer, &mut self.coalescer);
        let had_jumped = trimmer.has_jumped();
        let wrote = self
            .store
            .write(Durability::Lazy, |t| trimmer.trim(t, coalescer, bounds))?;
        self.uncommitted |= wrote;
        if trimmer.has_jumped() && !had_jumped {
            context.log.note(
                "the clock was set by more than an hour: the log's age is not looked at".to_owned(),
            );
        }
        Ok(())
    }

    /// How long what is written may wait for what comes behind it, before it is made durable.
    fn group_commits(&mut self) -> Duration {
        if !self.coalescer.is_scanning() {
            self.scanning_since = None;
            return Duration::ZERO;
        }
        let since = self.scanning_since.get_or_insert_with(Instant::now);
        (since.elapsed() / 8).clamp(GROUP_COMMITS, GROUP_COMMITS_MAX)
    }

    fn take_inputs(
        &mut self,
        t: &mut dyn Tables,
        inputs: Vec<Input>,
        waiting: Waiting,
    ) -> Result<(), TableError> {
        let (now, wall) = (self.clock.now(), wall());
        self.take_hints(t, waiting)?;
        self.coalescer.handle_hashes(t, self.hashes.take())?;
        for input in inputs {
            match input {
                Input::Listed {
                    folder,
                    entries,
                    _room,
                } => {
                    self.coalescer
                        .handle_listed(now, wall, t, folder, entries)?;
                }
                Input::ListEnd {
                    folder,
                    entries,
                    itself,
                    _room,
                } => {
                    self.coalescer
                        .handle_listed(now, wall, t, folder, entries)?;
                    self.coalescer
                        .handle_list_end(now, wall, t, folder, itself)?;
                }
                Input::Recheck { folder, name } => {
                    let what = What {
                        closed: true,
                        ..What::LOOK
                    };
                    let folder = FolderKey::Path(folder);
                    let hint = Hint {
                        folder,
                        name: Some(name),
                        what,
                        partner: None,
                        object: None,
                    };
                    self.coalescer.handle_hints(now, t, [hint])?;
                }
                Input::Reread { at, reread } => {
                    self.coalescer.handle_reread(now, wall, t, &at, reread)?;
                }
                Input::Hashed(hashed) => self.hashes.add(hashed),
                Input::Fence(reply) => self.begin_fence(t, reply)?,
                Input::Wake | Input::Orders(_) | Input::Claimed(_) | Input::Stop => {}
            }
        }
        Ok(())
    }

    fn begin_fence(&mut self, t: &mut dyn Tables, reply: Reply) -> Result<(), TableError> {
        match self.flush(t) {
            Ok(()) => {
                if self.polling.is_on() {
                    self.coalescer.start_scan();
                }
                self.coalescer.hurry(self.clock.now());
                self.fences.push(reply);
                Ok(())
            }
            Err(Flushed::Tables(error)) => Err(error),
            // Whoever asked may be gone.
            Err(Flushed::Watch(error)) => {
                drop(reply.send(Err(format!("the watcher was not read out: {error}"))));
                Ok(())
            }
        }
    }

    /// Looks, lists and flushes until nothing is due.
    fn look_around(&mut self, t: &mut dyn Tables) -> Result<(), SourceError> {
        loop {
            let now = self.clock.now();
            let requests = self.coalescer.poll_looks(now, t)?;
            if !requests.is_empty() {
                let looked = looks::look(&self.root, &self.owners, requests);
                self.coalescer
                    .handle_looked(self.clock.now(), wall(), t, looked)?;
                continue;
            }
            let strays = self.coalescer.poll_strays(now);
            if !strays.is_empty() {
                let found = looks::find(&self.root, strays);
                self.coalescer.handle_strays(self.clock.now(), t, found)?;
                continue;
            }
            let mut requests = Vec::new();
            while let Some(request) = self.coalescer.poll_listing(t)? {
                requests.push(request);
            }
            requests.extend(self.coalescer.poll_patrol(now, t)?);
            // The scanner takes as many as may be outstanding, so this never waits.
            if !requests.is_empty() && self.lists.send(requests).is_err() {
                return Err(SourceError::Thread(std::io::ErrorKind::BrokenPipe.into()));
            }
            let hurry = !self.fences.is_empty() || self.running.is_some();
            self.rereader.hurry(hurry);
            if let Some(at) = self.coalescer.poll_reread(now, wall(), t)? {
                self.rereader.ask(at)?;
            }
            if !self.coalescer.poll_flush() {
                return Ok(());
            }
            match self.flush(t) {
                Ok(()) => self.coalescer.handle_flushed(self.clock.now()),
                Err(Flushed::Tables(error)) => return Err(error.into()),
                Err(Flushed::Watch(FlushError::Ended)) => return Err(SourceError::WatcherEnded),
                Err(Flushed::Watch(error)) => {
                    // What vanished stays in doubt; the scan of a gap settles it.
                    tracing::warn!(%error, "the watcher was not read out in time");
                    self.coalescer.handle_gap(self.clock.now());
                    self.coalescer.handle_flushed(self.clock.now());
                }
            }
        }
    }

    fn flush(&mut self, t: &mut dyn Tables) -> Result<(), Flushed> {
        if let Some(watch) = &self.watch {
            watch.flush(FLUSH_PATIENCE).map_err(Flushed::Watch)?;
            let waiting = self.hints.take();
            self.take_hints(t, waiting).map_err(Flushed::Tables)?;
        }
        Ok(())
    }

    /// Takes hints, and what is known of those that were lost: the watches first, then the
    /// comparison.
    fn take_hints(&mut self, t: &dyn TablesRead, waiting: Waiting) -> Result<(), TableError> {
        let now = self.clock.now();
        if let Some(watch) = &self.watch
            && (waiting.gap || !waiting.folders.is_empty())
        {
            watch.settle();
        }
        if waiting.gap {
            self.coalescer.handle_gap(now);
        }
        self.coalescer.handle_gaps(now, t, waiting.folders)?;
        self.coalescer.handle_hints(now, t, waiting.hints)
    }

    /// Makes everything written durable, then announces it.
    fn commit(&mut self) -> Result<(), SourceError> {
        let head = self.coalescer.head();
        let complete = self.complete;
        self.store
            .write(Durability::Durable, |t| put_meta(t, COMPLETE, &complete))?;
        self.coalescer.handle_committed(head);
        self.uncommitted = false;
        self.committed_at = Instant::now();
        self.announce.send_replace(Announced {
            head,
            bytes: self.coalescer.bytes(),
            complete,
        });
        Ok(())
    }

    /// Ends this engine when there are deletes for which somebody has to decide. What is in the log
    /// by now is announced all the same.
    fn obey_guard(&mut self, resume: u64) -> Result<(), SourceError> {
        let Some(deletes) = self.coalescer.poll_halt().cloned() else {
            return Ok(());
        };
        self.commit()?;
        let halting = Halting {
            deletes,
            resume,
            restored: false,
        };
        halting.note(&self.store)?;
        Err(SourceError::Deletes(Box::new(halting.deletes)))
    }

    /// The end of a scan: of the first one, everything has been said; of a run, it is over.
    fn end_scan(&mut self) -> Result<(), SourceError> {
        let now = self.clock.now();
        if self.coalescer.is_scanning() || !self.coalescer.is_settled(now) {
            return Ok(());
        }
        if std::mem::take(&mut self.deciding) {
            self.store.write(Durability::Lazy, |t| {
                put_meta(t, DELETES, &HaltingRow::None)
            })?;
        }
        if let Some(run) = self.running.take() {
            return self.end_run(run);
        }
        if !self.complete && self.watch.is_some() && self.coalescer.poll_complete(now) {
            self.complete = true;
            return self.commit();
        }
        Ok(())
    }

    fn end_run(&mut self, run: u64) -> Result<(), SourceError> {
        self.complete |= self.coalescer.poll_complete(self.clock.now());
        self.run_done = (run, self.coalescer.head());
        self.held = self.held_now(REPORT_HELD)?;
        // Looked for again by the next run: nothing is looked at in between.
        self.coalescer.forget_held();
        let (done, held) = (self.run_done, (self.held.count, self.held.paths.clone()));
        self.store.write(Durability::Lazy, |t| {
            put_meta(t, RUN_HELD, &held)?;
            put_meta(t, RUN_DONE, &done)
        })?;
        self.commit()
    }

    /// What could not be brought into the log, and what is never at rest.
    fn held_now(&mut self, most: usize) -> Result<Held, SourceError> {
        let never = self.never_at_rest()?;
        let mut paths = self.unseen(most)?;
        let count = self.coalescer.held_count() + never.len();
        paths.extend(never);
        paths.truncate(most);
        Ok(Held {
            count: count as u64,
            paths,
        })
    }

    fn never_at_rest(&self) -> Result<Vec<String>, SourceError> {
        if self.restless.is_empty() {
            return Ok(Vec::new());
        }
        let view = self.store.read()?;
        // A ledger that fails says so elsewhere.
        let is_there = |id| live(&view, id).is_ok_and(|row| row.is_some());
        Ok(self.restless.never_at_rest(is_there))
    }

    /// The first paths that could not be brought into the log, with why.
    fn unseen(&mut self, most: usize) -> Result<Vec<String>, SourceError> {
        if self.coalescer.held_count() == 0 {
            return Ok(Vec::new());
        }
        let held = self.coalescer.held(&self.store.read()?, most)?;
        Ok(held.iter().map(held_line).collect())
    }

    fn gaps_now(&mut self) -> Result<Vec<GapReport>, SourceError> {
        if self.coalescer.gap_count() == 0 {
            return Ok(Vec::new());
        }
        let view = self.store.read()?;
        let gaps = self.coalescer.gaps(&view, REPORT_GAPS)?;
        let report = |gap: OpenGap| {
            let since = u64::try_from(gap.since.0.as_millis()).unwrap_or(u64::MAX);
            GapReport {
                path: gap.path.to_string(),
                since: WallMillis(self.opened.0.saturating_add(since)),
            }
        };
        Ok(gaps.into_iter().map(report).collect())
    }

    fn answer_fences(&mut self) -> Result<(), SourceError> {
        let now = self.clock.now();
        if self.fences.is_empty() || !self.coalescer.is_settled(now) || self.running.is_some() {
            return Ok(());
        }
        let mut restless = self.never_at_rest()?;
        restless.truncate(FENCE_HELD);
        let answer = FenceAnswer {
            origin: self.coalescer.origin(),
            seq: self.coalescer.announced(),
            held: self.unseen(FENCE_HELD)?,
            restless,
        };
        for reply in self.fences.drain(..) {
            // Whoever asked may be gone.
            drop(reply.send(Ok(answer.clone())));
        }
        Ok(())
    }

    fn write_log(&mut self, context: &SourceContext) -> Result<(), SourceError> {
        let head = self.coalescer.announced();
        let from = std::mem::replace(&mut self.logged, head);
        if head.0 <= from.0 {
            return Ok(());
        }
        if !self.complete {
            // The first scan: every file there is.
            return Ok(());
        }
        if head.0 - from.0 > LOG_LINES_MAX {
            context
                .log
                .note(format!("{} changes recorded at once", head.0 - from.0));
            return Ok(());
        }
        let view = self.store.read()?;
        let mut failed = None;
        log_after(&view, from, &mut |_, record| {
            match log_lines(&view, &record) {
                Ok(lines) => lines.into_iter().for_each(|line| context.log.push(line)),
                Err(error) => failed = Some(error),
            }
            if record.seq >= head || failed.is_some() {
                std::ops::ControlFlow::Break(())
            } else {
                std::ops::ControlFlow::Continue(())
            }
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn report(&mut self, context: &SourceContext) {
        // Who polls always scans.
        let scanning = self.coalescer.is_scanning() && !(self.polling.is_on() && self.complete);
        let patrols = self.coalescer.patrols_ended();
        if patrols > self.patrols.0 {
            self.patrols = (patrols, Some(wall()));
        }
        let report = SourceReport {
            state: match (scanning, self.watch.is_some()) {
                (true, _) => SourceState::Scanning,
                (false, true) => SourceState::Watching,
                (false, false) => SourceState::Idle,
            },
            origin: self.coalescer.origin(),
            head: self.coalescer.announced(),
            run_done: self.run_done,
            resume: context.order.source.as_ref().map_or(0, |part| part.resume),
            held_count: self.held.count,
            held: self.held.paths.clone(),
            gap_count: self.coalescer.gap_count() as u64,
            gaps: self.gaps.clone(),
            doubts: self.coalescer.doubt_count(),
            listed: self.coalescer.listed_folders(),
            scanned: self.patrols.1,
            deletes: None,
            last_error: self.last_error.clone(),
            log: self.coalescer.log_kept(),
        };
        if self.reported.as_ref() != Some(&report) {
            context
                .board
                .source(context.order.job, Some(report.clone()));
            self.reported = Some(report);
        }
    }
}

/// A path and why it is not as it should be, on one line of bounded length.
fn held_line(held: &Trouble) -> String {
    let mut line = format!("{}: {}", held.path, held.reason);
    shorten(&mut line);
    line
}

enum Flushed {
    Tables(TableError),
    Watch(FlushError),
}

/// Whether new orders can be followed by the engine that runs.
fn same_engine(old: &JobOrder, new: &JobOrder) -> bool {
    let root = |order: &JobOrder| order.source.as_ref().map(|s| s.root.clone());
    old.mode == new.mode
        && old.filter == new.filter
        && old.settings == new.settings
        && root(old) == root(new)
}

fn start_scanner(
    root: &Root,
    owners: &OwnerNames,
    mailbox: &Mailbox<Input>,
) -> Result<SyncSender<Vec<ListRequest>>, SourceError> {
    let (lists, requests) = sync_channel(16);
    let (root, owners, mailbox) = (root.clone(), owners.clone(), mailbox.clone());
    std::thread::Builder::new()
        .name("scan".into())
        .spawn(move || looks::scan(&root, &owners, &requests, &mailbox))
        .map_err(SourceError::Thread)?;
    Ok(lists)
}

type KnownRoot = (u64, u64, u64);

/// Compares the root with the one that the ledger was made of.
fn check_identity(
    context: &SourceContext,
    store: &LedgerStore,
    root: &Root,
) -> Result<(), SourceError> {
    let identity = root.identity();
    let now: KnownRoot = (
        identity.fsid,
        identity.inode,
        identity
            .born
            .secs
            .unsigned_abs()
            .wrapping_mul(1_000_000_007)
            ^ u64::from(identity.born.nanos),
    );
    let part = context.part()?;
    let known: Option<(KnownRoot, u64)> = meta(&store.read()?, IDENTITY)?;
    if let Some((before, resumed)) = known
        && before != now
    {
        if part.resume <= resumed {
            return Err(SourceError::Halt(format!(
                "another folder or filesystem is at {}; nothing is deleted anywhere. \
                 Bring the old one back, or resume the job to go on with this one",
                part.root
            )));
        }
        if root.top().is_empty_but_reserved()? {
            return Err(SourceError::Halt(format!(
                "another folder is at {}, and it is empty; nothing is deleted anywhere, as going on \
                 would empty every target. Bring the old one back, then resume the job",
                part.root
            )));
        }
    }
    store.write(Durability::Durable, |t| {
        put_meta(t, IDENTITY, &(now, part.resume))
    })?;
    Ok(())
}

/// The deletes that halted this source before, if it is to go on now.
fn held_deletes(
    context: &SourceContext,
    store: &LedgerStore,
) -> Result<Option<Halting>, SourceError> {
    let part = context.part()?;
    let row: Option<HaltingRow> = meta(&store.read()?, DELETES)?;
    let held = row.flatten().map(|(deletes, resume, restored)| Halting {
        deletes,
        resume,
        restored,
    });
    match held {
        Some(halting) if part.resume <= halting.resume => {
            Err(SourceError::Deletes(Box::new(halting.deletes)))
        }
        Some(mut halting) if part.decision == Decision::Restore => {
            halting.restored = true;
            halting.note(store)?;
            Err(SourceError::Deletes(Box::new(halting.deletes)))
        }
        held => Ok(held),
    }
}

fn open_ledger(
    polling: bool,
    context: &SourceContext,
    store: &LedgerStore,
    root: &Root,
    owners: &OwnerNames,
) -> Result<(Coalescer, bool, (u64, Seq), Held), SourceError> {
    let filter = Filter::new(&context.order.filter)?;
    let mut observed = root.top().self_look()?;
    owners.name(&mut observed.meta);
    let max_age = Duration::from_millis(u64::from(context.order.settings.max_age_ms));
    // Who is not watched, or polled, is compared whole anyway.
    let every = context.order.settings.scan_every_ms;
    let patrolled = is_watched(&context.order) && !polling && every > 0;
    let config = CoalescerConfig {
        max_age,
        guard: context.order.settings.guard,
        scan_every: patrolled.then(|| Duration::from_millis(every)),
        specials: context.order.settings.specials,
        ..CoalescerConfig::default()
    };
    let fresh = OriginId(random_id());
    let incarnation = IncarnationId(random_id());
    store.write(Durability::Durable, |t| {
        let mut coalescer =
            Coalescer::open(config, filter, t, fresh, incarnation, &observed, wall())?;
        coalescer.handle_boot(t, boot::id())?;
        let complete = meta(t, COMPLETE)?.unwrap_or(false);
        let run_done = meta(t, RUN_DONE)?.unwrap_or((0, Seq(0)));
        let (count, paths) = meta(t, RUN_HELD)?.unwrap_or_default();
        Ok((coalescer, complete, run_done, Held { count, paths }))
    })
}

fn log_lines(t: &dyn TablesRead, record: &Record) -> Result<Vec<LogLine>, TableError> {
    let at = WallMillis(record.hlc.wall().0);
    let mut lines = Vec::new();
    for change in changes(record) {
        let place = |name: &cdsync_core::ledger::record::NameState| {
            let path = access::path_of(t, name.parent)?;
            Ok::<_, TableError>(path.map(|p| p.join(&name.name).to_string()))
        };
        let path = match change.name {
            Some(name) => place(name)?,
            None => access::path_of(t, change.object)?.map(|p| p.to_string()),
        };
        let from = match change.from {
            Some(name) => place(name)?.map(|p| format!("from {p}")),
            None => None,
        };
        lines.push(LogLine {
            number: 0,
            at,
            op: change.op,
            path: path.unwrap_or_default(),
            detail: from.unwrap_or_default(),
            latency_ms: None,
            seq: record.seq,
        });
    }
    Ok(lines)
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("root", &self.root.display())
            .finish_non_exhaustive()
    }
}
