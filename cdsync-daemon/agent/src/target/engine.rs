//! The engine of a target: one thread that owns the replica and its ledger.

use std::collections::VecDeque;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::filter::Filter;
use cdsync_core::ids::{ObjectId, OriginId, ServerId};
use cdsync_core::job::{self, Retry};
use cdsync_core::ledger::access::{self, meta, put_meta};
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::tables::TablesRead;
use cdsync_core::path::RelPath;
use cdsync_core::replica::{FetchResult, Policy, Replica, Step, SweepEntry};
use cdsync_core::time::WallMillis;
use cdsync_core::wire::{
    Accepted, Adopt, BatchHeader, Cursor, FETCHES_MAX, Inline, JobOrder, LogLine, Op, ParkedReport,
    Signed, TargetReport, TargetState, batch_cost, decode,
};
use cdsync_fs::{
    Applier, Dir, Durability, FsErrorKind, LedgerStore, LookWants, Root, RootLost, TrashClock,
};
use cdsync_transport::compress::Decompressor;
use tokio::sync::mpsc;

use super::disk::{Contents, Disk};
use super::link::{self, LinkContext};
use super::losses::Losses;
use super::patrol::PatrolRun;
use super::preview::PreviewRun;
use super::restore::{self, Removals};
use super::trash::{self, Cleaner};
use super::{
    Ended, Input, JobRef, LinkHandle, LinkOrder, Pull, Resume, Syncer, TargetContext, TargetError,
    Verdict, reconcile,
};
use crate::boot;
use crate::clock::{steady, wall};
use crate::joblog::shorten;
use crate::mailbox::{Inbox, Mailbox};
use crate::roots;
use crate::source::chain;

/// redb's cache for one ledger.
const LEDGER_CACHE_BYTES: usize = 8 << 20;
/// What the upstream may send ahead of what was applied, in bytes.
const CREDIT_BYTES: u32 = 8 << 20;
/// The largest plain batch: 1 MiB and one file of content, and 512 records of many names.
pub(super) const BATCH_MAX_BYTES: usize = 16 << 20;
/// How many inputs are taken before batches are applied.
const INPUTS_MAX: usize = 64;
/// The engine wakes at least so often, to see that its root is still there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a report of a busy target may wait.
const REPORT_EVERY: Duration = Duration::from_millis(50);
/// How long copies that are to be verified wait for others to have the disk.
const VERIFY_EVERY: Duration = Duration::from_millis(20);
/// How soon a check for others' changes goes on at most.
const PATROL_EVERY: Duration = Duration::from_millis(5);
/// How often a job that claims without syncs has its disk synced all the same.
const FLUSH_EVERY: Duration = Duration::from_secs(60);
/// How many parked objects a report names.
const REPORT_PARKED: usize = 100;

/// When the last engine ended politely.
const ENDED: &str = "target-ended";

/// The path of the root that the ledger speaks of, and whether a manager had accepted it.
const FILLED: &str = "target-root";

/// Whether the root got its marker.
const MARKED: &str = "target-marked";

pub(super) struct Engine {
    pub(super) root: Root,
    disk: Arc<Disk>,
    pub(super) store: LedgerStore,
    pub(super) replica: Replica,
    pub(super) link: LinkHandle,
    /// Where the link resumes.
    resume: Arc<Mutex<Resume>>,
    /// What the link shows the upstream.
    grant: Arc<Mutex<Signed>>,
    syncer: Syncer,
    /// What went to the trash, for a while.
    removals: Removals,
    cleaner: Cleaner,
    pub(super) patrol: PatrolRun,
    pub(super) preview: Option<PreviewRun>,
    /// What answers about the upstream's snapshot took, in bytes.
    pub(super) compared_bytes: u64,
    batches: VecDeque<(bool, Bytes)>,
    decompressor: Decompressor,
    upstream: Option<ServerId>,
    trouble: Option<String>,
    /// When something announced was first seen and not yet claimed.
    behind_since: Option<Instant>,
    /// Since when something that was parked is to be synced.
    unsynced_since: Option<WallMillis>,
    reported: Option<TargetReport>,
    reported_at: Instant,
    was_copying: bool,
    applied: u64,
    owners_told: bool,
    losses: Losses,
    /// Something was fetched and waits to be published.
    fetched: bool,
    /// Syncs that failed one after another, and when the next one may be asked for.
    sync_failures: u32,
    sync_after: Instant,
    flushed_at: Instant,
}

impl Engine {
    /// Opens root and ledger, and begins to link to the upstream.
    pub(super) fn open(
        context: &TargetContext,
        mailbox: Mailbox<Input>,
    ) -> Result<Self, TargetError> {
        if let Some(other) = &context.overlaps {
            return Err(TargetError::Halt(format!(
                "the root overlaps with that of another job here: {other}"
            )));
        }
        let part = context.part()?;
        let known = LedgerStore::is_there(&context.ledger)?;
        let root = match roots::open(&context.allowed, &part.root, !known) {
            Err(roots::RootError::Open { path, source }) if known => {
                return Err(TargetError::Halt(format!(
                    "the root {path} cannot be opened: {source}; bring it back: it is looked for every few seconds"
                )));
            }
            other => other?,
        };
        let foreign = !root.top().is_empty_but_reserved()?;
        let store = LedgerStore::open_as(known, &context.ledger, LEDGER_CACHE_BYTES)?;
        let name = context.order.name.as_str();
        let marker = context.order.job.0.to_le_bytes();
        // Looked at before anything is made: this may be the place of a mount that is missing.
        let marked = Applier::marker_of(&root, name)?.as_deref() == Some(&marker[..]);
        let adopted = part.adopt == Adopt::Accept;
        if known && !marked && was_marked(&store)? {
            let before: Option<(String, bool)> = meta(&store.read()?, FILLED)?;
            let own = part.root.as_str();
            let (path, accepted) = before.unwrap_or_else(|| (own.to_owned(), false));
            if path == own {
                // What was accepted for the root that is missing now says nothing of this one.
                if accepted || !adopted {
                    let next = if accepted {
                        "remove the job and add it again".to_owned()
                    } else {
                        format!("say `cdsync job accept {}`", context.order.name)
                    };
                    return Err(TargetError::Halt(format!(
                        "the root {} is not the one that this job filled before: bring that one \
                         back, or {next} to fill this one",
                        part.root
                    )));
                }
            }
            // The ledger speaks of the other root.
            empty(&store)?;
        }
        let limits = trash::limits(&context.order.settings);
        let each = context.order.settings.durability == job::Durability::Each;
        // A clock that is behind for a while must not make things look old.
        let late = Arc::clone(&context.clock);
        let applier = Applier::open(&root, name)?
            .with_trash(limits)
            .with_trash_clock(TrashClock::new(move || late.now().0 / 1000))
            .with_each_synced(each);
        let applier = Arc::new(applier);
        let filter = Filter::new(&context.order.filter)?;
        // A marker alone says that the job was here once: what came since is people's own.
        let waiting = foreign && !(marked && known) && !adopted;
        let preview = waiting
            .then(|| PreviewRun::open(&context.ledger.with_extension("preview"), filter.clone()))
            .transpose()?;
        let filled = (part.root.as_str(), adopted);
        store.write(Durability::Durable, |t| put_meta(t, FILLED, &filled))?;
        if !waiting && !marked {
            applier.write_marker(&marker)?;
            store.write(Durability::Durable, |t| put_meta(t, MARKED, &true))?;
        }
        let boot = boot::id();
        let fresh = |t: &mut dyn cdsync_core::ledger::tables::Tables| {
            let replica = Replica::open(t, filter.clone(), foreign)?;
            let mut replica = replica.with_policy(policy(&context.order));
            replica.handle_boot(t, boot)?;
            Ok(replica)
        };
        let mut replica: Replica = store
            .write(Durability::Durable, fresh)
            .map_err(TargetError::Tables)?;
        take_back(context, &root, &store, &mut replica)?;
        let removals = Removals::open(&store.read()?)?;
        let disk = Arc::new(Disk::open(
            root.clone(),
            Arc::clone(&applier),
            filter.clone(),
            &context.order.settings,
        )?);
        let name = context.order.name.to_string();
        let cleaner = Cleaner::start(Arc::clone(&applier), Arc::clone(&context.clock), name)?;
        let syncer = Syncer::start(applier, mailbox.clone())?;
        let was_copying = replica.claim().0 == 0;
        let resume = Resume {
            cursor: if preview.is_some() {
                None
            } else {
                replica.resume()
            },
            preview: preview.is_some(),
        };
        let resume = Arc::new(Mutex::new(resume));
        let grant = Arc::new(Mutex::new(part.grant.clone()));
        let link = start_link(context, mailbox, &disk, &resume, &grant)?;
        Ok(Self {
            root,
            disk,
            store,
            replica,
            link,
            resume,
            grant,
            syncer,
            removals,
            cleaner,
            patrol: PatrolRun::default(),
            preview,
            compared_bytes: 0,
            batches: VecDeque::new(),
            decompressor: Decompressor::new(),
            upstream: None,
            trouble: None,
            behind_since: None,
            unsynced_since: None,
            reported: None,
            reported_at: Instant::now(),
            was_copying,
            applied: 0,
            owners_told: false,
            losses: Losses::default(),
            fetched: false,
            sync_failures: 0,
            sync_after: Instant::now(),
            flushed_at: Instant::now(),
        })
    }

    pub(super) fn run(
        &mut self,
        context: &mut TargetContext,
        inbox: &Inbox<Input>,
    ) -> Result<Ended, TargetError> {
        self.report(context, true)?;
        loop {
            let mut inputs = Vec::new();
            match inbox.recv_timeout(self.wait()) {
                Ok(input) => inputs.push(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Ended::Stop),
            }
            while inputs.len() < INPUTS_MAX
                && let Some(input) = inbox.try_recv()
            {
                inputs.push(input);
            }
            // Before anything that may end this engine: what came with it would be lost.
            if let Some(ended) = self.take_orders(context, &mut inputs) {
                // What was applied and not yet claimed is known after a polite end.
                self.store
                    .write(Durability::Durable, |t| put_meta(t, ENDED, &wall()))?;
                return Ok(ended);
            }
            for input in inputs {
                if let Some(ended) = self.take(context, input)? {
                    return Ok(ended);
                }
            }
            self.root.verify().map_err(|lost| match lost {
                // Says nothing of the root.
                RootLost::Unreadable(error) if error.kind() == FsErrorKind::TooManyOpen => {
                    TargetError::Fs(error)
                }
                lost => TargetError::Halt(format!(
                    "{}: {lost}; bring it back: it is looked for every few seconds",
                    self.root.display()
                )),
            })?;
            self.work(context)?;
            self.report(context, false)?;
        }
    }

    fn wait(&self) -> Duration {
        if self.replica.can_verify() {
            return VERIFY_EVERY;
        }
        if self.replica.has_differences() || self.replica.has_tombstones() {
            return Duration::ZERO;
        }
        let parked = self.replica.poll_timeout();
        let retry = parked.map(|at| Duration::from_millis(at.0.saturating_sub(steady().0)));
        let wait = retry.map_or(HEARTBEAT, |retry| retry.min(HEARTBEAT));
        let patrol = self.replica.patrol_due();
        let patrol = patrol.map(|at| Duration::from_millis(at.0.saturating_sub(steady().0)));
        // While it has to wait for other things, they wake the engine.
        let wait = patrol.map_or(wait, |patrol| wait.min(patrol.max(PATROL_EVERY)));
        if self.reported_at.elapsed() < REPORT_EVERY {
            wait.min(REPORT_EVERY)
        } else {
            wait
        }
    }

    /// New orders change only the grant, or need a new engine.
    fn take_orders(
        &mut self,
        context: &mut TargetContext,
        inputs: &mut Vec<Input>,
    ) -> Option<Ended> {
        let mut ended = None;
        inputs.retain_mut(|input| match input {
            Input::Stop => {
                ended = Some(Ended::Stop);
                false
            }
            Input::Orders(order) => {
                if !same_engine(&context.order, order) {
                    ended = ended.or(Some(Ended::Again));
                }
                context.order = (**order).clone();
                self.replica.handle_policy(policy(&context.order));
                if let Some(part) = &context.order.target {
                    let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
                    grant.clone_from(&part.grant);
                }
                false
            }
            _ => true,
        });
        ended
    }

    fn take(
        &mut self,
        context: &mut TargetContext,
        input: Input,
    ) -> Result<Option<Ended>, TargetError> {
        match input {
            Input::Stop | Input::Orders(_) => {}
            Input::Accepted {
                by,
                from,
                accepted,
                reply,
            } => {
                let (verdict, ended) = self.accepted(context, by, from, accepted)?;
                // The link may be gone again.
                let _ = reply.send(verdict);
                return Ok(ended);
            }
            Input::Snapshot {
                by,
                from,
                snapshot,
                reply,
            } => {
                let (verdict, ended) = self.begin_comparison(context, (by, from), &snapshot)?;
                let _ = reply.send(verdict);
                return Ok(ended);
            }
            Input::Compared { answer, bytes } => self.take_compared(answer, bytes)?,
            Input::Batch {
                compressed,
                payload,
            } => self.batches.push_back((compressed, payload)),
            Input::Tick(tick) => {
                self.replica.handle_tick(&tick);
                if let Some(preview) = &mut self.preview {
                    preview.tick(&tick);
                }
            }
            Input::Fetched {
                object,
                result,
                staged,
                note,
            } => {
                if let Some(note) = note {
                    context.log.note(note);
                }
                let hash = match &result {
                    FetchResult::Staged { hash, .. } => Some(*hash),
                    _ => None,
                };
                let wanted = self.store.write(Durability::Lazy, |t| {
                    self.replica.handle_fetched(steady(), t, object, result)
                })?;
                if let (true, Some(staged), Some(hash)) = (wanted, staged, hash) {
                    self.disk.keep_staged(object, staged, hash);
                    self.fetched = true;
                }
            }
            Input::Synced(Ok(())) => {
                if std::mem::take(&mut self.sync_failures) > 0 {
                    self.trouble = None;
                }
                self.flushed_at = Instant::now();
                self.store
                    .write(Durability::Durable, |t| self.replica.handle_synced(t))?;
                let mut resume = self.resume.lock().unwrap_or_else(PoisonError::into_inner);
                resume.cursor = self.replica.resume();
            }
            Input::Synced(Err(reason)) => {
                self.store
                    .write(Durability::Durable, |t| self.replica.handle_sync_failed(t))?;
                self.sync_failures = self.sync_failures.saturating_add(1);
                let wait = Retry::default().wait_ms(0, self.sync_failures);
                self.sync_after = Instant::now() + Duration::from_millis(wait);
                self.trouble = Some(format!("the disk cannot be synced: {reason}"));
                context
                    .log
                    .note(format!("the disk cannot be synced: {reason}"));
            }
            Input::Explain { path, reply } => {
                let text = self.explain(context, &path).unwrap_or_else(|e| chain(&e));
                // Whoever asked may have given up.
                drop(reply.try_send(text));
            }
            Input::Unlinked(reason) => {
                if self.trouble.as_ref() != Some(&reason) {
                    context.log.note(format!("no upstream: {reason}"));
                }
                self.upstream = None;
                self.trouble = Some(reason);
                self.batches.clear();
            }
        }
        Ok(None)
    }

    pub(super) fn begin_link(&mut self, by: ServerId) {
        self.batches.clear();
        self.upstream = Some(by);
        self.trouble = None;
    }

    fn accepted(
        &mut self,
        context: &TargetContext,
        by: ServerId,
        from: Option<Cursor>,
        accepted: Accepted,
    ) -> Result<(Verdict, Option<Ended>), TargetError> {
        self.begin_link(by);
        if let Some(preview) = &mut self.preview {
            preview.begin(&accepted);
            return Ok((Verdict::GoOn, None));
        }
        if from != self.replica.resume() {
            return Ok((Verdict::Again, None));
        }
        let goes_on = self.store.write(Durability::Lazy, |t| {
            self.replica.handle_accepted(t, &accepted)
        })?;
        if goes_on {
            return Ok((Verdict::GoOn, None));
        }
        self.begin_anew(context)
    }

    fn work(&mut self, context: &TargetContext) -> Result<(), TargetError> {
        if self.preview.is_some() {
            return self.work_preview();
        }
        let wall = steady();
        if self.replica.poll_timeout().is_some_and(|at| at <= wall) {
            self.store
                .write(Durability::Lazy, |t| self.replica.handle_timeout(wall, t))?;
            self.apply(&Arc::default())?;
        }
        // What was fetched is published between batches.
        self.apply(&Arc::default())?;
        if self.replica.is_reconciling() {
            self.reconcile(context)?;
        }
        while !self.replica.is_full()
            && self.replica.is_idle()
            && let Some((compressed, payload)) = self.batches.pop_front()
        {
            let bytes = batch_cost(payload.len());
            match self.batch(compressed, payload) {
                Ok(()) => self.link.say(LinkOrder::Credit(bytes)),
                Err(TargetError::Upstream(error)) => {
                    let reason = chain(&error);
                    tracing::error!(job = %context.order.name, reason, "a batch is refused");
                    context
                        .log
                        .note(format!("a batch of the upstream is refused: {reason}"));
                    self.trouble = Some(reason.clone());
                    self.batches.clear();
                    self.link.say(LinkOrder::Drop(reason));
                }
                Err(error) => return Err(error),
            }
            self.ask_sync(context.order.settings.durability)?;
        }
        if self.replica.is_sweeping() {
            self.sweep()?;
        }
        self.fetch()?;
        if self.replica.can_verify() {
            self.store
                .write(Durability::Lazy, |t| self.replica.poll_verify(t))?;
            self.apply(&Arc::default())?;
        }
        if self.replica.has_tombstones() {
            self.store
                .write(Durability::Lazy, |t| self.replica.drop_tombstones(t))?;
        }
        if !context.order.paused {
            self.patrol()?;
        }
        self.ask_sync(context.order.settings.durability)?;
        self.write_log(context);
        Ok(())
    }

    /// Asks for content: large one on a stream each, small one in groups, so that a round trip serves
    /// many.
    fn fetch(&mut self) -> Result<(), TargetError> {
        let mut group = Vec::new();
        while let Some(want) = self.replica.poll_fetch() {
            if !want.is_small() {
                let view = self.store.read()?;
                let base = self.replica.fetch_base(&view, want.object)?;
                self.link.say(LinkOrder::Fetch(vec![Pull { want, base }]));
                continue;
            }
            group.push(Pull { want, base: None });
            if group.len() == FETCHES_MAX {
                self.link.say(LinkOrder::Fetch(std::mem::take(&mut group)));
            }
        }
        if !group.is_empty() {
            self.link.say(LinkOrder::Fetch(group));
        }
        Ok(())
    }

    fn ask_sync(&mut self, durability: job::Durability) -> Result<(), TargetError> {
        if self.sync_after > Instant::now() {
            return Ok(());
        }
        let lazy = durability == job::Durability::None;
        if self.replica.poll_sync() {
            if lazy {
                self.store
                    .write(Durability::Durable, |t| self.replica.handle_published(t))?;
                let mut resume = self.resume.lock().unwrap_or_else(PoisonError::into_inner);
                resume.cursor = self.replica.resume();
            } else {
                let dirty = self.replica.take_dirty();
                self.syncer.ask(dirty);
            }
        }
        // What is claimed without a sync is not left to the next power cut for ever.
        let due = !lazy || self.flushed_at.elapsed() > FLUSH_EVERY;
        if due && self.replica.poll_flush() {
            let _ = self.replica.take_dirty();
            self.syncer.ask(true);
        }
        Ok(())
    }

    fn batch(&mut self, compressed: bool, payload: Bytes) -> Result<(), TargetError> {
        let (header, contents) = open_batch(&mut self.decompressor, compressed, payload)?;
        self.replica.handle_batch(header)?;
        self.apply(&Arc::new(contents))?;
        self.replica
            .take_refused()
            .map_or(Ok(()), |refused| Err(refused.into()))
    }

    /// Carries out what was planned without content of a batch.
    pub(super) fn apply_planned(&mut self) -> Result<(), TargetError> {
        self.apply(&Arc::default())
    }

    /// Runs steps until there is nothing more to do now.
    fn apply(&mut self, contents: &Arc<Contents>) -> Result<(), TargetError> {
        let mut order = MoveOrder::default();
        let mut waiting = None;
        loop {
            waiting = self.apply_until_moves(contents, waiting, &mut order)?;
            if waiting.is_none() && !order.moved {
                return Ok(());
            }
            // A commit without rows covers those before it.
            self.store
                .write(Durability::Durable, |_| Ok::<_, TargetError>(()))?;
            if waiting.is_none() {
                return Ok(());
            }
        }
    }

    /// Runs the step that waited, and others, until one must not begin before everything so far
    /// is durable. Returns that one.
    fn apply_until_moves(
        &mut self,
        contents: &Arc<Contents>,
        waiting: Option<Step>,
        order: &mut MoveOrder,
    ) -> Result<Option<Step>, TargetError> {
        let (replica, disk) = (&mut self.replica, &self.disk);
        let removals = &mut self.removals;
        let mut applied = 0;
        let next = self.store.write(Durability::Lazy, |t| {
            let mut next = waiting;
            loop {
                if let Some(step) = next {
                    applied += step.ops.len() as u64;
                    let results = disk.run(&step, contents);
                    drop(step);
                    removals.note(t, disk.take_removed())?;
                    replica.handle_applied(steady(), t, results)?;
                }
                next = replica.poll_step(steady(), t)?;
                let Some(step) = &next else {
                    return Ok::<_, TargetError>(None);
                };
                if order.must_be_durable(step) {
                    return Ok(next);
                }
            }
        })?;
        self.applied += applied;
        Ok(next)
    }

    /// After a root was taken over: removes what the source does not have.
    fn sweep(&mut self) -> Result<(), TargetError> {
        loop {
            let next = self
                .store
                .write(Durability::Lazy, |t| self.replica.poll_sweep(steady(), t))?;
            let Some(folder) = next else { return Ok(()) };
            let reference = crate::source::dir_ref(&folder);
            if folder.path.is_root() {
                self.refuse_empty_source(folder.id)?;
            }
            let listed = self.root.dir(&reference).map_err(TargetError::from);
            let entries = match listed.and_then(|dir| sweep_entries(&dir)) {
                // What it waits for may be on its way.
                Err(error) if self.replica.is_owed(folder.id) => {
                    tracing::warn!(path = %folder.path, %error, "a folder is looked through later");
                    let reason = format!("{} cannot be listed: {}", folder.path, chain(&error));
                    let replica = &mut self.replica;
                    replica.handle_sweep_failed(steady(), folder.id, reason);
                    continue;
                }
                // What cannot be looked at ends the engine, which says so and sweeps again.
                other => other?,
            };
            self.store.write(Durability::Lazy, |t| {
                self.replica.handle_swept(steady(), t, &folder, entries)
            })?;
            self.apply(&Arc::default())?;
        }
    }

    /// A source that holds nothing at all, while this root holds something, is taken for lost: a
    /// root that is emptied with nobody's word cannot be told from a disk that is not mounted.
    fn refuse_empty_source(&self, root: ObjectId) -> Result<(), TargetError> {
        let mut empty = true;
        access::children(&self.store.read()?, root, &mut |_, _| {
            empty = false;
            std::ops::ControlFlow::Break(())
        })?;
        if !empty || self.root.top().is_empty_but_reserved()? {
            return Ok(());
        }
        Err(TargetError::Halt(
            "the source holds nothing, and this root does: nothing is removed. If that is right, \
             empty this root by hand; else bring the source's content back"
                .into(),
        ))
    }

    fn work_preview(&mut self) -> Result<(), TargetError> {
        let Some(preview) = &mut self.preview else {
            return Ok(());
        };
        while let Some((compressed, payload)) = self.batches.pop_front() {
            let bytes = batch_cost(payload.len());
            let (header, _) = open_batch(&mut self.decompressor, compressed, payload)?;
            preview.batch(header)?;
            self.link.say(LinkOrder::Credit(bytes));
        }
        if let Some(ask) = preview.poll_compare()? {
            self.link.say(LinkOrder::Compare(ask));
        }
        preview.compare(&self.root)?;
        Ok(())
    }

    fn write_log(&mut self, context: &TargetContext) {
        let now = wall();
        for logged in self.replica.take_logged() {
            context.log.push(LogLine {
                number: 0,
                at: now,
                op: logged.op,
                path: logged.path.to_string(),
                detail: logged
                    .from
                    .map(|from| format!("from {from}"))
                    .unwrap_or_default(),
                latency_ms: Some(now.0.saturating_sub(logged.hlc.wall().0)),
                seq: logged.seq,
            });
        }
        self.losses
            .tell(&mut self.replica, &self.store, &context.log);
        if self.disk.owners_kept() && !self.owners_told {
            self.owners_told = true;
            context
                .log
                .note("owners are not kept: the agent may not set them (it is not root)");
        }
        for drifted in self.replica.take_drifted() {
            let detail = if drifted.kept {
                "it was changed by others, and stays"
            } else {
                "it was changed by others, and is put right: what they left is in the trash"
            };
            context.log.push(LogLine {
                number: 0,
                at: now,
                op: Op::Note,
                path: drifted.path.to_string(),
                detail: detail.to_owned(),
                latency_ms: None,
                seq: Seq(0),
            });
        }
        let freed = self.disk.take_freed();
        if freed.entries > 0 {
            context.log.note(format!(
                "the disk is full: {} entries of the trash ({} bytes) went before their time",
                freed.entries, freed.bytes
            ));
        }
        if self.was_copying && self.replica.is_in_sync() {
            self.was_copying = false;
            context
                .log
                .note(format!("first copy done: {} operations", self.applied));
        }
    }

    fn report(&mut self, context: &TargetContext, always: bool) -> Result<(), TargetError> {
        let in_sync = self.replica.is_in_sync();
        if in_sync {
            self.behind_since = None;
        } else if self.behind_since.is_none() {
            self.behind_since = Some(Instant::now());
        }
        let hurried = always || in_sync || self.preview.is_some();
        if !hurried && self.reported_at.elapsed() < REPORT_EVERY {
            return Ok(());
        }
        let resume = context.order.target.as_ref().map_or(0, |part| part.resume);
        let report = self.make_report(context, resume)?;
        if self.reported.as_ref() != Some(&report) {
            self.reported_at = Instant::now();
            context
                .board
                .target(context.order.job, Some(report.clone()));
            self.reported = Some(report);
        }
        Ok(())
    }

    fn make_report(
        &mut self,
        context: &TargetContext,
        resume: u64,
    ) -> Result<TargetReport, TargetError> {
        let is_lazy = context.order.settings.durability == job::Durability::None;
        let unsynced = if is_lazy {
            0
        } else {
            self.replica.unsynced().len()
        };
        self.unsynced_since = (unsynced > 0).then(|| self.unsynced_since.unwrap_or_else(wall));
        let parked_count = (self.replica.parked_count() + unsynced) as u64;
        let parked = if parked_count > 0 {
            self.parked(unsynced)?
        } else {
            Vec::new()
        };
        let preview = self.preview.as_ref().map(|p| p.found().clone());
        let behind = self
            .behind_since
            .map_or(0, |since| since.elapsed().as_millis());
        let reconciling = self
            .replica
            .reconciling()
            .map(|at| reconcile::describe(&at));
        let state = match () {
            () if preview.is_some() => TargetState::AwaitingAccept,
            () if self.upstream.is_none() => TargetState::Unreachable,
            () if reconciling.is_some() => TargetState::Reconciling,
            () if self.replica.is_copying() => TargetState::Copying,
            // What is claimed may have to be copied again.
            () if !is_lazy && !self.replica.is_certain() => TargetState::Copying,
            () if self.replica.claim() < self.replica.head() => TargetState::Lagging,
            () if parked_count > 0 => TargetState::Parked,
            // It may still hold what the source does not have.
            () if self.replica.is_sweeping() => TargetState::Copying,
            () => TargetState::InSync,
        };
        let sweep = self.replica.sweep_failures().first().cloned();
        Ok(TargetReport {
            state,
            upstream: self.upstream,
            resume,
            origin: self.replica.origin().unwrap_or(OriginId(0)),
            claim: self.replica.claim(),
            head: self.replica.head(),
            pending_bytes: self.replica.pending_bytes(),
            oldest_pending_ms: u64::try_from(behind).unwrap_or(u64::MAX),
            parked_count,
            parked,
            preview,
            last_error: self.trouble.clone().or(reconciling).or(sweep),
            trash: self.cleaner.report(),
            drift: self.replica.drift_report(),
            losses: self.losses.report(&mut self.replica, &self.store)?,
        })
    }

    fn explain(&self, context: &TargetContext, path: &RelPath) -> Result<String, TargetError> {
        let Some(origin) = self.replica.origin() else {
            return Ok("it has not heard from an upstream yet".to_owned());
        };
        let view = self.store.read()?;
        let root = ObjectId::root(origin);
        let text = crate::roles::describe(&view, root, path, &context.order)?;
        let (claim, head) = (self.replica.claim(), self.replica.head());
        Ok(format!(
            "{text}; holds everything up to record {claim} of {head}"
        ))
    }

    /// What is parked, and what was parked and is to be synced.
    fn parked(&self, unsynced: usize) -> Result<Vec<ParkedReport>, TargetError> {
        let view = self.store.read()?;
        let rows = self.replica.parked_rows(&view, REPORT_PARKED)?;
        let mut reports = Vec::with_capacity(rows.len());
        for (id, row) in rows {
            let path = match row.what.name() {
                Some((parent, name)) => {
                    access::path_of(&view, *parent)?.map(|path| path.join(name))
                }
                None => access::path_of(&view, id)?,
            };
            let mut report = ParkedReport {
                path: path.unwrap_or_else(RelPath::root).to_string(),
                reason: row.reason,
                since: row.since,
                attempts: row.attempts,
                next_try: row.next_try,
            };
            shorten(&mut report.path);
            shorten(&mut report.reason);
            reports.push(report);
        }
        let unsynced = self.replica.unsynced().take(unsynced);
        let room = REPORT_PARKED.saturating_sub(reports.len());
        for id in unsynced.take(room) {
            let Some(path) = access::path_of(&view, id)? else {
                continue;
            };
            let mut path = path.to_string();
            shorten(&mut path);
            let since = self.unsynced_since.unwrap_or_default();
            reports.push(ParkedReport {
                path,
                reason: "it is done, and not synced yet".to_owned(),
                since,
                attempts: 0,
                next_try: since,
            });
        }
        Ok(reports)
    }
}

/// Takes deletes back, if that was ordered and not done; once the source goes on, what came back and
/// the source does not have goes again.
fn take_back(
    context: &TargetContext,
    root: &Root,
    store: &LedgerStore,
    replica: &mut Replica,
) -> Result<(), TargetError> {
    let Some(ordered) = &context.part()?.restore else {
        return store.write(Durability::Durable, |t| {
            if restore::take_sweep(t)? {
                replica.sweep_again(t)?;
            }
            Ok(())
        });
    };
    let view = store.read()?;
    let same = replica.origin() == Some(ordered.origin);
    if !same || !restore::is_wanted(&view, ordered)? {
        return Ok(());
    }
    let found = restore::bring_back(root, context.order.name.as_str(), &view, ordered)?;
    drop(view);
    store.write(Durability::Durable, |t| restore::done(t, ordered))?;
    let why = found.why.map(|why| format!(" (the first: {why})"));
    context.log.note(format!(
        "deletes taken back: {} came from the trash, {} did not{}",
        found.back,
        found.failed,
        why.unwrap_or_default()
    ));
    Ok(())
}

/// Which steps wait for a durable ledger: what moves, and what comes behind a move. So neither a
/// kill nor a loss of power leaves a disk more than one set of moves apart from its ledger.
#[derive(Debug, Default)]
struct MoveOrder {
    /// Whether the step before moved something.
    moved: bool,
}

impl MoveOrder {
    fn must_be_durable(&mut self, next: &Step) -> bool {
        let moves = next.moves();
        std::mem::replace(&mut self.moved, moves) || moves
    }
}

fn sweep_entries(dir: &Dir) -> Result<Vec<SweepEntry>, TargetError> {
    let mut entries = Vec::new();
    let mut failed = None;
    dir.list(1024, LookWants::default(), &mut |piece| {
        for (name, seen) in piece {
            match seen {
                Ok(seen) => entries.push(SweepEntry {
                    name,
                    kind: seen.kind,
                    identity: seen.fingerprint.identity,
                }),
                // Mounted inside: not this root's, and left alone.
                Err(error) if error.kind() == FsErrorKind::OtherFilesystem => {}
                Err(error) => failed = Some(error),
            }
        }
        std::ops::ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(entries), |error| Err(error.into()))
}

/// Takes a batch frame apart: its header, and the content that belongs to each of its entries.
pub(crate) fn open_batch(
    decompressor: &mut Decompressor,
    compressed: bool,
    payload: Bytes,
) -> Result<(BatchHeader, Contents), TargetError> {
    use cdsync_core::replica::ReplicaError::Contents as Bad;
    let plain = if compressed {
        let (len, frame) = payload.split_at_checked(4).ok_or(Bad)?;
        let len = u32::from_le_bytes(len.try_into().unwrap_or_default()) as usize;
        if len > BATCH_MAX_BYTES {
            return Err(Bad.into());
        }
        Bytes::from(
            decompressor
                .decompress_bounded(frame, len)
                .map_err(|_| Bad)?,
        )
    } else {
        payload
    };
    let (len, _) = plain.split_at_checked(4).ok_or(Bad)?;
    let len = u32::from_le_bytes(len.try_into().unwrap_or_default()) as usize;
    let end = len
        .checked_add(4)
        .filter(|end| *end <= plain.len())
        .ok_or(Bad)?;
    let header: BatchHeader = decode(&plain[4..end]).map_err(|_| Bad)?;
    // Nobody sends nothing, unless to keep this side busy.
    if header.records.is_empty() {
        return Err(Bad.into());
    }
    let mut at = end;
    let mut contents = Contents::with_capacity(header.contents.len());
    for content in &header.contents {
        let Inline::Here { len, hash, .. } = content else {
            contents.push(None);
            continue;
        };
        let end = at
            .checked_add(*len as usize)
            .filter(|end| *end <= plain.len())
            .ok_or(Bad)?;
        contents.push(Some((plain.slice(at..end), *hash)));
        at = end;
    }
    if at != plain.len() {
        return Err(Bad.into());
    }
    Ok((header, contents))
}

/// How the orders have a replica keep the job's promises.
fn policy(order: &JobOrder) -> Policy {
    let (resumes, accepts) = order
        .target
        .as_ref()
        .map_or((0, 0), |target| (target.resume, target.accepts));
    Policy::new(&order.settings, resumes, accepts)
}

/// Whether new orders can be followed by the engine that runs.
fn same_engine(old: &JobOrder, new: &JobOrder) -> bool {
    let facts = |order: &JobOrder| {
        let target = order.target.as_ref();
        target.map(|t| (t.root.clone(), t.adopt, t.upstreams.clone(), t.restore))
    };
    // A renewed grant alone is no reason to begin anew: the link shows the newest one.
    old.filter == new.filter
        && old.settings == new.settings
        && old.paused == new.paused
        && facts(old) == facts(new)
}

/// Empties the ledger; whatever is on the disk will be adopted or replaced.
pub(super) fn empty(store: &LedgerStore) -> Result<(), TargetError> {
    store.write(Durability::Durable, |t| {
        for table in cdsync_core::ledger::tables::Table::ALL {
            loop {
                let mut keys = Vec::new();
                t.range(table, &[], None, &mut |key, _| {
                    keys.push(key.to_vec());
                    if keys.len() < 4096 {
                        std::ops::ControlFlow::Continue(())
                    } else {
                        std::ops::ControlFlow::Break(())
                    }
                })?;
                for key in &keys {
                    t.remove(table, key)?;
                }
                if keys.is_empty() {
                    break;
                }
            }
        }
        Ok::<_, TargetError>(())
    })
}

/// Whether the root of this ledger has a marker: where there is none, it is another one.
fn was_marked(store: &LedgerStore) -> Result<bool, TargetError> {
    let view = store.read()?;
    let filled = view.last(cdsync_core::ledger::tables::Table::Objects)?;
    Ok(filled.is_some() || meta(&view, MARKED)?.unwrap_or(false))
}

fn start_link(
    context: &TargetContext,
    mailbox: Mailbox<Input>,
    disk: &Arc<Disk>,
    resume: &Arc<Mutex<Resume>>,
    grant: &Arc<Mutex<Signed>>,
) -> Result<LinkHandle, TargetError> {
    let part = context.part()?;
    let (orders, inbox) = mpsc::channel(4096);
    let link = LinkContext {
        job: JobRef {
            id: context.order.job,
            name: context.order.name.to_string(),
        },
        upstreams: part.upstreams.clone(),
        grant: Arc::clone(grant),
        paused: context.order.paused,
        resume: Arc::clone(resume),
        credit: CREDIT_BYTES,
        retry: context.order.settings.retry,
        transport: Arc::clone(&context.transport),
        engine: mailbox,
        disk: Arc::clone(disk),
    };
    let task = context.runtime.spawn(link::run(link, inbox));
    Ok(LinkHandle { orders, task })
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("root", &self.root.display())
            .finish_non_exhaustive()
    }
}
