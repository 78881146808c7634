//! The fence: whether every target holds all that the source held when somebody asked.

use serde::Serialize;

use super::places::{Root, resolve};
use super::status::{JobState, shown};
use super::{Coordinator, Job};
use crate::ids::{Label, ServerId};
use crate::job::Mode;
use crate::path::RelPath;
use crate::wire::{FenceAnswer, SourceState, TargetReport, TargetState};

/// How many parked paths are named.
const PARKED_NAMED: usize = 10;

/// What a fence begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FenceStart {
    /// Ask this server, the source, for a number.
    Ask(ServerId),
    /// A manual job: the number of its last run.
    Run(FenceAnswer),
    /// Not yet: look again after the next report.
    Later(Laggard),
    /// It will not be reached by waiting.
    Never(Laggard),
}

/// How a fence stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FenceVerdict {
    /// Every target holds all.
    Done,
    /// These do not, yet: look again after the next report.
    Waiting(Vec<Laggard>),
    /// These will not by waiting.
    Never(Vec<Laggard>),
    /// These may by themselves, but not this fence: begin again after a pause.
    Again(Vec<Laggard>),
    /// The source's ledger is another one now: begin again.
    Restart,
}

/// Who keeps a fence from being reached, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Laggard {
    /// The server; `None` for the job as a whole.
    pub server: Option<Label>,
    /// The state, for a target.
    pub state: Option<JobState>,
    /// Why, with what to do next where somebody must.
    pub why: String,
    /// How many records it is behind.
    pub pending_changes: u64,
    /// Parked or held paths, escaped; the first ones.
    pub paths: Vec<String>,
}

impl Laggard {
    fn job(why: String) -> Self {
        Self {
            server: None,
            state: None,
            why,
            pending_changes: 0,
            paths: Vec::new(),
        }
    }

    fn server(server: &Label, state: JobState, why: impl Into<String>) -> Self {
        let why = why.into();
        Self {
            server: Some(server.clone()),
            state: Some(state),
            why,
            ..Self::job(String::new())
        }
    }
}

impl Coordinator {
    /// How a fence for a job begins.
    #[must_use]
    pub fn start_fence(&self, job: &Job) -> FenceStart {
        let name = job.name();
        if job.paused {
            let why = format!("job {name} is paused; next: cdsync job resume {name}");
            return FenceStart::Never(Laggard::job(why));
        }
        let resolved = resolve(&self.topology, job);
        let Some(source) = resolved.source else {
            let why = self
                .problems(job)
                .first()
                .map_or_else(String::new, ToString::to_string);
            return FenceStart::Never(Laggard::job(why));
        };
        if job.spec.mode == Mode::Manual && job.run == 0 {
            let why = format!("job {name} was never run; next: cdsync job run {name}");
            return FenceStart::Never(Laggard::job(why));
        }
        let server = &source.server.name;
        let later =
            |why: &str| FenceStart::Later(Laggard::server(server, JobState::Unreachable, why));
        if !self.is_connected(source.server.id) {
            return later(
                "the source is not connected to the master; next: cdsync agent run there",
            );
        }
        let Some(report) = self
            .source_of(job)
            .filter(|_| self.is_current(source.server.id))
        else {
            return later("the source has not taken the newest orders yet");
        };
        match &report.state {
            SourceState::Halted { .. } if report.resume < job.resume => {
                return later("the source has not taken up the resume yet");
            }
            SourceState::Halted { reason } => {
                let why = format!("the source is halted: {}", shown(reason));
                let deletes = report.deletes.iter().flat_map(|deletes| &deletes.names);
                return FenceStart::Never(Laggard {
                    paths: deletes.take(PARKED_NAMED).map(deleted).collect(),
                    ..Laggard::server(server, JobState::Halted, why)
                });
            }
            SourceState::Failed { reason } => {
                return later(&format!("the source cannot run: {}", shown(reason)));
            }
            SourceState::Scanning | SourceState::Watching | SourceState::Idle => {}
        }
        if job.spec.mode == Mode::Realtime {
            return FenceStart::Ask(source.server.id);
        }
        let (done, seq) = report.run_done;
        if done < job.run {
            return later(&format!("run {} has not ended at the source", job.run));
        }
        FenceStart::Run(FenceAnswer {
            origin: report.origin,
            seq,
            held: report.held.clone(),
            restless: Vec::new(),
        })
    }

    /// Whether every target of the newest orders holds what the answer speaks of.
    #[must_use]
    pub fn evaluate_fence(&self, job: &Job, fence: &FenceAnswer) -> FenceVerdict {
        if let FenceStart::Never(laggard) = self.start_fence(job) {
            return FenceVerdict::Never(vec![laggard]);
        }
        if self
            .source_of(job)
            .is_some_and(|source| source.origin != fence.origin)
        {
            return FenceVerdict::Restart;
        }
        if !fence.held.is_empty() {
            return FenceVerdict::Never(vec![self.held_laggard(job, fence)]);
        }
        let resolved = resolve(&self.topology, job);
        let mut laggards: Vec<Laggard> = resolved
            .problems
            .iter()
            .map(|problem| Laggard::job(problem.to_string()))
            .collect();
        let mut never = !laggards.is_empty();
        for root in &resolved.targets {
            if let Err((laggard, hopeless)) = self.holds(job, *root, fence) {
                never |= hopeless;
                laggards.push(laggard);
            }
        }
        if never {
            return FenceVerdict::Never(laggards);
        }
        if !fence.restless.is_empty() {
            laggards.insert(0, restless_laggard(job, fence));
            return FenceVerdict::Again(laggards);
        }
        if laggards.is_empty() {
            FenceVerdict::Done
        } else {
            FenceVerdict::Waiting(laggards)
        }
    }

    /// The source, by what its disk does not show.
    fn held_laggard(&self, job: &Job, fence: &FenceAnswer) -> Laggard {
        let paths = fence.held.iter().take(PARKED_NAMED);
        let again = match job.spec.mode {
            Mode::Realtime => String::new(),
            Mode::Manual => format!(", then cdsync job run {}", job.name()),
        };
        Laggard {
            server: job.source().map(|(name, _)| name.clone()),
            paths: paths.map(|path| shown(path)).collect(),
            ..Laggard::job(format!(
                "the source cannot look at {} paths; next: let its agent read them, or exclude \
                 them in the job's filter{again}",
                fence.held.len(),
            ))
        }
    }

    /// Whether a target holds everything up to the fence; else why not, and whether waiting is in
    /// vain.
    fn holds(&self, job: &Job, root: Root<'_>, fence: &FenceAnswer) -> Result<(), (Laggard, bool)> {
        let name = &root.server.name;
        let waiting = |state, why: &str| Err((Laggard::server(name, state, why), false));
        if !self.is_connected(root.server.id) {
            let why = "not connected to the master; next: cdsync agent run there";
            return waiting(JobState::Unreachable, why);
        }
        if !self.is_current(root.server.id) {
            return waiting(JobState::Scanning, "has not taken the newest orders yet");
        }
        let Some(report) = self.target_of(job, root.server.id) else {
            return waiting(JobState::Scanning, "has not reported on this job yet");
        };
        let reached = report.origin == fence.origin && report.claim >= fence.seq;
        // While it copies it may still hold what the source does not have.
        let settled = !matches!(report.state, TargetState::Halted | TargetState::Copying);
        if reached && report.parked_count == 0 && settled {
            return Ok(());
        }
        let behind = if report.origin == fence.origin {
            fence.seq.0.saturating_sub(report.claim.0)
        } else {
            fence.seq.0
        };
        let accepted = job.is_accepted(root.server.id, root.path);
        let (why, hopeless) = reason(job, report, behind, accepted);
        let paths = report.parked.iter().take(PARKED_NAMED);
        let laggard = Laggard {
            pending_changes: behind,
            paths: paths
                .map(|p| format!("{}: {}", shown(&p.path), shown(&p.reason)))
                .collect(),
            ..Laggard::server(name, report.state.into(), why)
        };
        Err((laggard, hopeless))
    }
}

/// The source, by files that change each time they are read: who writes them may end at any time.
fn restless_laggard(job: &Job, fence: &FenceAnswer) -> Laggard {
    let paths = fence.restless.iter().take(PARKED_NAMED);
    Laggard {
        server: job.source().map(|(name, _)| name.clone()),
        paths: paths.map(|path| shown(path)).collect(),
        ..Laggard::job(format!(
            "{} files at the source are never at rest",
            fence.restless.len()
        ))
    }
}

fn deleted(path: &RelPath) -> String {
    format!("{path}: gone, and the delete is held")
}

/// Why a target does not hold everything, and whether only a person can change that.
fn reason(job: &Job, report: &TargetReport, behind: u64, accepted: bool) -> (String, bool) {
    let name = job.name();
    let error = report.last_error.as_deref().map(shown);
    let with_error = |text: String| match &error {
        Some(error) => format!("{text}: {error}"),
        None => text,
    };
    match report.state {
        TargetState::AwaitingAccept if !accepted => (
            format!("its root is not empty; next: cdsync job accept {name}"),
            true,
        ),
        TargetState::Halted if report.resume < job.resume => {
            ("has not taken up the resume yet".to_owned(), false)
        }
        TargetState::Halted => (with_error("halted".to_owned()), true),
        TargetState::Unreachable => (with_error("its upstream does not answer".to_owned()), false),
        _ if report.parked_count > 0 => {
            (format!("{} objects are parked", report.parked_count), false)
        }
        _ => (with_error(format!("{behind} changes behind")), false),
    }
}
