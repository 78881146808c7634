//! The jobs that this server takes part in, as the newest orders say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cdsync_core::ids::JobId;
use cdsync_core::job::RootPath;
use cdsync_core::ledger::access;
use cdsync_core::ledger::object::Kind;
use cdsync_core::ledger::tables::TablesRead;
use cdsync_core::path::{Name, RelPath};
use cdsync_core::time::WallMillis;
use cdsync_core::wire::{Answer, Ask, ClaimedByAll, Epoch, JobOrder, LogLine, Orders};
use cdsync_fs::{FolderId, WatchHub, folders_above};
use cdsync_transport::Transport;
use tokio::sync::oneshot;

use crate::board::Board;
use crate::joblog::JobLog;
use crate::serve::Serving;
use crate::source::{self, Source, SourceContext, chain};
use crate::target::{self, Target, TargetContext};

/// What every role is made from.
#[derive(Debug)]
pub(crate) struct RolesContext {
    pub(crate) ledgers: PathBuf,
    pub(crate) allowed: Vec<PathBuf>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) board: Arc<Board>,
    pub(crate) serving: Arc<Serving>,
    pub(crate) hints_max: usize,
}

/// The running jobs.
#[derive(Debug)]
pub(crate) struct Roles {
    context: RolesContext,
    hub: Arc<WatchHub>,
    jobs: BTreeMap<JobId, Running>,
    /// Of the newest orders followed, with the end of their lease.
    newest: (Epoch, WallMillis),
}

#[derive(Debug)]
struct Running {
    order: JobOrder,
    log: Arc<JobLog>,
    source: Option<Source>,
    target: Option<Target>,
    /// What the target was told of an overlap.
    overlaps: Option<String>,
}

impl Roles {
    pub(crate) fn new(context: RolesContext) -> Self {
        Self {
            context,
            hub: Arc::new(WatchHub::new()),
            jobs: BTreeMap::new(),
            newest: (Epoch::default(), WallMillis(0)),
        }
    }

    /// Follows orders. Blocks while engines end, so it belongs on a thread that may wait.
    pub(crate) fn follow(&mut self, orders: &Orders) {
        // Threads that bring them may overtake each other.
        let newest = (orders.epoch, orders.lease_until);
        if newest < self.newest {
            return;
        }
        self.newest = newest;
        let wanted: Vec<JobId> = orders.jobs.iter().map(|order| order.job).collect();
        let gone: Vec<JobId> = self
            .jobs
            .keys()
            .filter(|job| !wanted.contains(job))
            .copied()
            .collect();
        for job in gone {
            self.end(job);
        }
        self.forget_ledgers(&wanted);
        let targets: Vec<(JobId, RootPath)> = orders
            .jobs
            .iter()
            .filter_map(|o| Some((o.job, o.target.as_ref()?.root.clone())))
            .collect();
        for order in &orders.jobs {
            let overlaps = overlap(order, &targets);
            self.follow_job(order, overlaps);
        }
        // Last: with it, what the reports say is about these orders.
        self.context.board.epoch(orders.epoch);
    }

    fn follow_job(&mut self, order: &JobOrder, overlaps: Option<String>) {
        let running = self.jobs.entry(order.job).or_insert_with(|| Running {
            order: order.clone(),
            log: Arc::new(JobLog::default()),
            source: None,
            target: None,
            overlaps: None,
        });
        let root = |order: &JobOrder| order.target.as_ref().map(|t| t.root.clone());
        if root(&running.order) != root(order) {
            // Ended here, and its report with it: what it held elsewhere must not be taken for
            // what is held under these orders.
            running.target = None;
        }
        running.order = order.clone();
        let context = &self.context;
        match (&running.source, &order.source) {
            // A thread that is gone is started anew below.
            (Some(source), Some(_))
                if source
                    .engine
                    .send(source::Input::Orders(Box::new(order.clone())))
                    .is_ok() => {}
            _ => running.source = None,
        }
        if order.source.is_some() && running.source.is_none() {
            let started = Source::start(SourceContext {
                order: order.clone(),
                allowed: context.allowed.clone(),
                ledger: ledger_path(&context.ledgers, order.job, "source"),
                hub: Arc::clone(&self.hub),
                board: Arc::clone(&context.board),
                log: Arc::clone(&running.log),
                serving: Arc::new(Mutex::new(None)),
                hints_max: context.hints_max,
            });
            match started {
                Ok(source) => running.source = Some(source),
                Err(error) => tracing::error!(job = %order.name, %error, "no thread for a source"),
            }
        }
        match &running.source {
            Some(source) => {
                context
                    .serving
                    .put(order.job, Arc::clone(&source.serving), order.paused);
            }
            None => context.serving.remove(order.job),
        }
        follow_target(context, running, order, overlaps);
    }

    /// Ends every job, waiting for its threads.
    pub(crate) fn end_all(&mut self) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end(job);
        }
    }

    fn end(&mut self, job: JobId) {
        self.context.serving.remove(job);
        self.jobs.remove(&job);
    }

    /// Removes the ledgers of jobs that are no more. Files of people are never touched.
    #[expect(
        clippy::disallowed_methods,
        reason = "the agent's own data, which nobody else may write to"
    )]
    fn forget_ledgers(&self, wanted: &[JobId]) {
        let Ok(entries) = std::fs::read_dir(&self.context.ledgers) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let job = name
                .to_str()
                .and_then(|name| name.split_once('-'))
                .and_then(|(id, _)| u64::from_str_radix(id, 16).ok());
            if let Some(job) = job
                && !wanted.contains(&JobId(job))
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(%error, "an old ledger cannot be removed");
            }
        }
    }

    /// Tells sources what all of their targets claim.
    pub(crate) fn claimed(&self, claimed: &[ClaimedByAll]) {
        for told in claimed {
            let running = self.jobs.get(&told.job);
            if let Some(source) = running.and_then(|running| running.source.as_ref()) {
                // One that has no place for it now is told again.
                source.engine.nudge(source::Input::Claimed(*told));
            }
        }
    }

    /// Answers the master. The receiver comes later for what takes time.
    pub(crate) fn ask(&self, ask: Ask) -> Asked {
        let job = match &ask {
            Ask::Fence { job } | Ask::Log { job, .. } | Ask::Explain { job, .. } => *job,
        };
        let Some(running) = self.jobs.get(&job) else {
            return Asked::Now(Err("this server has no part in that job".into()));
        };
        match ask {
            Ask::Fence { .. } => match &running.source {
                Some(source) => {
                    let (reply, answer) = oneshot::channel();
                    match source.engine.send(source::Input::Fence(reply)) {
                        Ok(()) => Asked::Fence(answer),
                        Err(_) => Asked::Now(Err("the source is ending".into())),
                    }
                }
                None => Asked::Now(Err("this server is not the job's source".into())),
            },
            Ask::Log { after, limit, .. } => {
                let lines: Vec<LogLine> = running.log.after(after, limit.min(1000) as usize);
                Asked::Now(Ok(Answer::Log(lines)))
            }
            Ask::Explain { path, .. } => Asked::Now(explain(running, path).map(Answer::Explain)),
        }
    }
}

fn follow_target(
    context: &RolesContext,
    running: &mut Running,
    order: &JobOrder,
    overlaps: Option<String>,
) {
    if running.overlaps != overlaps {
        // It began, or came to an end: only a new target sees that.
        running.target = None;
        running.overlaps.clone_from(&overlaps);
    }
    match (&running.target, &order.target) {
        // A thread that is gone is started anew below.
        (Some(target), Some(_))
            if target
                .engine
                .send(target::Input::Orders(Box::new(order.clone())))
                .is_ok() => {}
        _ => running.target = None,
    }
    if order.target.is_none() || running.target.is_some() {
        return;
    }
    let started = Target::start(TargetContext {
        order: order.clone(),
        allowed: context.allowed.clone(),
        ledger: ledger_path(&context.ledgers, order.job, "target"),
        transport: Arc::clone(&context.transport),
        runtime: context.runtime.clone(),
        board: Arc::clone(&context.board),
        log: Arc::clone(&running.log),
        clock: Arc::clone(&context.serving.clock),
        overlaps,
    });
    match started {
        Ok(target) => running.target = Some(target),
        Err(error) => tracing::error!(job = %order.name, %error, "no thread for a target"),
    }
}

/// How a question is answered.
pub(crate) enum Asked {
    Now(Result<Answer, String>),
    Fence(oneshot::Receiver<Result<cdsync_core::wire::FenceAnswer, String>>),
}

fn ledger_path(folder: &Path, job: JobId, role: &str) -> PathBuf {
    folder.join(format!("{job}-{role}.redb"))
}

/// Another job's target root of these orders that lies at, above or below this one's, by its path
/// or, through links and mounts, on the disk.
fn overlap(order: &JobOrder, targets: &[(JobId, RootPath)]) -> Option<String> {
    let own = Path::new(order.target.as_ref()?.root.as_str());
    let own_chain = folders_above(own);
    targets
        .iter()
        .filter(|(job, _)| *job < order.job)
        .map(|(_, root)| root)
        .find(|root| {
            let other = Path::new(root.as_str());
            own.starts_with(other)
                || other.starts_with(own)
                || chains_meet(&own_chain, &folders_above(other))
        })
        .map(ToString::to_string)
}

/// Whether one folder is the other, or lies in it.
fn chains_meet(a: &[Option<FolderId>], b: &[Option<FolderId>]) -> bool {
    let within = |inner: &[Option<FolderId>], outer: &[Option<FolderId>]| {
        let outer = outer.first().copied().flatten();
        outer.is_some() && inner.contains(&outer)
    };
    within(a, b) || within(b, a)
}

fn explain(running: &Running, path: Vec<u8>) -> Result<Vec<String>, String> {
    let path = RelPath::new(path).map_err(|e| format!("not a path below the root: {e}"))?;
    let mut said = Vec::new();
    if let Some(source) = &running.source {
        let slot = source
            .serving
            .lock()
            .map_err(|_| "the source is ending".to_owned())?
            .clone();
        match slot {
            None => said.push("as the source: it is not running; see its state".to_owned()),
            Some(served) => {
                let view = served.store.read().map_err(|e| chain(&e))?;
                let root = cdsync_core::ids::ObjectId::root(served.origin);
                let text = describe(&view, root, &path, &running.order).map_err(|e| chain(&e))?;
                said.push(format!("as the source: {text}"));
            }
        }
    }
    if let Some(target) = &running.target {
        let text = target
            .explain(path)
            .unwrap_or_else(|| "it is not running".to_owned());
        said.push(format!("as a target: {text}"));
    }
    Ok(said)
}

/// What a ledger knows of a path.
pub(crate) fn describe(
    view: &dyn TablesRead,
    root: cdsync_core::ids::ObjectId,
    path: &RelPath,
    order: &JobOrder,
) -> Result<String, cdsync_core::ledger::tables::TableError> {
    let mut at = root;
    for component in path.components() {
        let Ok(name) = Name::new(component) else {
            return Ok("no such name".to_owned());
        };
        match access::name(view, at, &name)?.and_then(|row| row.object) {
            Some(id) => at = id,
            None => return Ok(why_missing(order, path)),
        }
    }
    let Some(row) = access::live(view, at)? else {
        return Ok("not in the ledger".to_owned());
    };
    let what = match row.state.kind {
        Kind::Folder => "a folder",
        Kind::Symlink => "a symbolic link",
        _ => "a file",
    };
    let seq = row.state.version.seq;
    let held = if row.local.is_some() {
        "on the disk"
    } else {
        "not on the disk yet"
    };
    let parked = access::parked_row(view, at)?.map(|parked| {
        format!(
            "; parked: {} (tried {} times)",
            parked.reason, parked.attempts
        )
    });
    Ok(format!(
        "{what}, last changed by record {seq}, {held}{}",
        parked.unwrap_or_default()
    ))
}

/// Tells why a path is not in a ledger.
fn why_missing(order: &JobOrder, path: &RelPath) -> String {
    use cdsync_core::filter::{Filter, Verdict};
    let Ok(filter) = Filter::new(&order.filter) else {
        return "the filter does not compile".to_owned();
    };
    let judged = [false, true].map(|is_folder| filter.judge_deep(path, is_folder));
    if judged.iter().all(|verdict| *verdict == Verdict::Excluded) {
        "the job's filter excludes it".to_owned()
    } else {
        "not in the ledger: it does not exist, or is not recorded yet".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use cdsync_core::filter::FilterSpec;
    use cdsync_core::ids::Label;
    use cdsync_core::job::{Mode, Settings};
    use cdsync_core::wire::{Adopt, Signed, TargetOrder};

    use super::*;

    fn order(job: u64, root: &Path) -> JobOrder {
        JobOrder {
            job: JobId(job),
            name: Label::new("site").unwrap(),
            mode: Mode::Realtime,
            filter: FilterSpec::default(),
            paused: false,
            settings: Settings::default(),
            source: None,
            target: Some(TargetOrder {
                root: RootPath::new(root.to_str().unwrap()).unwrap(),
                upstreams: Vec::new(),
                adopt: Adopt::Ask,
                resume: 0,
                restore: None,
                accepts: 0,
                grant: Signed::default(),
            }),
        }
    }

    /// Proves that two jobs cannot fill one folder through two paths, nor one inside the other, and
    /// that folders beside each other are no overlap.
    #[test]
    fn overlaps_are_seen_through_other_paths() {
        let space = tempfile::tempdir().unwrap();
        let at = |name: &str| space.path().join(name);
        for folder in ["real/inner", "beside"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        symlink(at("real"), at("link")).unwrap();
        let overlaps = |first: &str, second: &str| {
            let (first, second) = (order(1, &at(first)), order(2, &at(second)));
            let root = first.target.as_ref().unwrap().root.clone();
            overlap(&second, &[(JobId(1), root)]).is_some()
        };
        assert!(overlaps("real", "link"));
        assert!(overlaps("real", "link/inner"));
        assert!(overlaps("link/inner", "real"));
        assert!(!overlaps("real", "beside"));
        assert!(!overlaps("link/inner", "beside"));
    }
}
