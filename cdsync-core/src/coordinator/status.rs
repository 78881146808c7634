//! Where jobs and servers stand, derived from the newest reports.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::places::{Root, resolve};
use super::{Coordinator, Job};
use crate::coalescer::{MassDelete, TooMuch};
use crate::ids::{Label, OriginId, ServerId};
use crate::job::Mode;
use crate::ledger::loss::Loss;
use crate::ledger::object::Seq;
use crate::time::WallMillis;
use crate::wire::{
    DRIFT_NAMES, DriftReport, GapReport, LossReport, LostReport, ParkedReport, Preview,
    SourceReport, SourceState, TargetReport, TargetState, TrashReport,
};

/// The state of a job or of one of its targets. Ordered: of several targets, the one with the
/// lowest state gives the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Stopped for safety.
    Halted,
    /// Paused by a manager.
    Paused,
    /// A root is not empty, and nobody has said that it may be taken over.
    AwaitingAccept,
    /// A server does not answer.
    Unreachable,
    /// Others changed files at a target, and nobody has acknowledged it.
    Alert,
    /// Something could not be applied.
    Parked,
    /// Comparing.
    Scanning,
    /// First copy.
    Copying,
    /// Comparing with the upstream what its log does not tell any more.
    Reconciling,
    /// Catching up.
    Lagging,
    /// Equal.
    InSync,
}

impl JobState {
    /// Its name, as scripts read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Paused => "paused",
            Self::AwaitingAccept => "awaiting-accept",
            Self::Unreachable => "unreachable",
            Self::Alert => "alert",
            Self::Parked => "parked",
            Self::Scanning => "scanning",
            Self::Copying => "copying",
            Self::Reconciling => "reconciling",
            Self::Lagging => "lagging",
            Self::InSync => "in-sync",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<TargetState> for JobState {
    fn from(state: TargetState) -> Self {
        match state {
            TargetState::AwaitingAccept => Self::AwaitingAccept,
            TargetState::Scanning => Self::Scanning,
            TargetState::Copying => Self::Copying,
            TargetState::InSync => Self::InSync,
            TargetState::Lagging => Self::Lagging,
            TargetState::Parked => Self::Parked,
            TargetState::Unreachable => Self::Unreachable,
            TargetState::Halted => Self::Halted,
            TargetState::Reconciling => Self::Reconciling,
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub name: Label,
    /// When it runs.
    pub mode: Mode,
    /// The state in one word.
    pub state: JobState,
    /// Why it is halted, or cannot run.
    pub reason: Option<String>,
    /// What is wrong with its declaration, with what to do next.
    pub problems: Vec<String>,
    /// Its sources.
    pub sources: Vec<SourceStatus>,
    /// Its targets, by name.
    pub targets: Vec<TargetStatus>,
}

/// Where a source stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub server: Label,
    /// The root, as it was declared.
    pub root: String,
    /// `scanning`, `watching`, `idle`, `halted`, `failed` or `unreachable`.
    pub state: String,
    /// The highest number announced, `None` while it is not known.
    pub seq: Option<Seq>,
    /// How often it was run by hand, to the end.
    pub runs_done: u64,
    /// How many paths could not be brought into the log.
    pub held_count: u64,
    /// The first of them, each with why.
    pub held: Vec<String>,
    /// Of how many folders it is not known what changed, until they are compared.
    pub gap_count: u64,
    /// The first of them.
    pub gaps: Vec<GapStatus>,
    /// How many files are read again, because their bytes may be other ones than recorded.
    pub doubts: u64,
    /// How many folders were listed since the source started.
    pub listed: u64,
    /// When the last safety scan ended, in milliseconds since 1970.
    pub scanned_ms: Option<u64>,
    /// The last record that its log has dropped; zero for none.
    pub log_start: Seq,
    /// What its log takes, in bytes.
    pub log_bytes: u64,
    /// The deletes that halted it, until somebody has decided.
    pub deletes: Option<DeletesStatus>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// A folder that is being compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapStatus {
    /// The folder below the root.
    pub path: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Deletes that halted a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletesStatus {
    /// Whether no file would be left, or none with bytes in it; else the job's bounds are exceeded.
    pub emptied: bool,
    /// How many files there were before.
    pub files: u64,
    /// How many of them are deleted at the targets, or will be.
    pub gone: u64,
    /// How many are held.
    pub held: u64,
    /// The first of the held, escaped; a folder stands for all that was in it.
    pub names: Vec<String>,
    /// Whether what is deleted at the targets is being brought back there.
    pub restored: bool,
}

/// Where a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Its name.
    pub server: Label,
    /// The root, as it was declared.
    pub root: String,
    /// The state.
    pub state: JobState,
    /// The name of the server that it is subscribed to.
    pub upstream: Option<String>,
    /// Up to where it holds everything but what is parked; `None` while it is not known.
    pub cursor: Option<Seq>,
    /// How many records it is behind.
    pub pending_changes: u64,
    /// Content not yet there, in bytes.
    pub pending_bytes: u64,
    /// How long the oldest change not yet there has been known, in milliseconds.
    pub oldest_pending_ms: u64,
    /// How many objects are parked.
    pub parked_count: u64,
    /// The first of them.
    pub parked: Vec<ParkedStatus>,
    /// What would happen to the content there, while it waits to be accepted.
    pub preview: Option<PreviewStatus>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// What its trash holds.
    pub trash: TrashStatus,
    /// What others changed there.
    pub drift: DriftStatus,
    /// How many objects are there, but not whole; 10,000 for as many or more.
    pub loss_count: u64,
    /// How many for each reason.
    pub loss_reasons: Vec<LossReason>,
    /// The first of them.
    pub losses: Vec<LossStatus>,
}

/// What a target's trash holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrashStatus {
    /// Files, links and folders.
    pub entries: u64,
    /// What the filesystem has allocated for them, in bytes.
    pub bytes: u64,
    /// When the oldest of them came, in milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// Why nothing is removed for its age, or why something cannot be removed.
    pub trouble: Option<String>,
}

/// What others changed at a target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DriftStatus {
    /// How many changes of others were met.
    pub count: u64,
    /// The first paths, escaped.
    pub names: Vec<String>,
    /// How many of others' versions stay, because the job says so.
    pub kept: u64,
    /// Whether a manager is to acknowledge it.
    pub alert: bool,
}

/// How many objects lack something for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReason {
    /// What is missing and why.
    pub reason: String,
    /// How many objects.
    pub count: u64,
}

/// An object that is not held whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossStatus {
    /// Its path, escaped.
    pub path: String,
    /// What is missing and why.
    pub reasons: Vec<String>,
}

/// A parked object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedStatus {
    /// Its path, escaped.
    pub path: String,
    /// Why.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next, in milliseconds since 1970.
    pub next_try_ms: u64,
}

/// What taking over a root would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewStatus {
    /// Whether the comparison has ended.
    pub complete: bool,
    /// Whether taking over would empty the root, because the source is empty.
    pub source_empty: bool,
    /// Files that stay.
    pub equal: u64,
    /// Files that would be replaced.
    pub replaced: u64,
    /// Files and folders that would be removed.
    pub removed: u64,
    /// The first of the replaced, escaped.
    pub replaced_names: Vec<String>,
    /// The first of the removed, escaped.
    pub removed_names: Vec<String>,
}

/// Whether a server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// It has a connection to the master.
    Connected,
    /// It has none.
    Unreachable,
}

/// Where a server stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name.
    pub name: Label,
    /// Its region.
    pub region: Label,
    /// Its group.
    pub group: Label,
    /// Whether it is there.
    pub state: ServerState,
    /// How long ago the master heard from it, in milliseconds; `None` if never since its own start.
    pub last_seen_ms: Option<u64>,
    /// Its id.
    pub id: String,
    /// Where other agents dial it, escaped.
    pub address: String,
    /// The roots that its operator allowed, escaped.
    pub roots: Vec<String>,
    /// Its program's version, escaped.
    pub program: Option<String>,
    /// How it watches, escaped.
    pub watching: Option<String>,
    /// Whether what it reports speaks of its newest orders.
    pub current: bool,
}

/// Text of a peer on one line, at most 500 characters.
fn peer_text(text: &str) -> String {
    crate::path::Escaped(text.as_bytes())
        .to_string()
        .chars()
        .take(500)
        .collect()
}

/// What a peer says went wrong, on one line, at most 500 characters. Names in it are escaped already:
/// a backslash is not doubled.
fn peer_reason(text: &str) -> String {
    let escaped = text.split('\\').map(peer_text);
    let escaped: Vec<String> = escaped.collect();
    escaped.join("\\").chars().take(500).collect()
}

/// Names that their agent has escaped: shown as they are, made safe if it did not.
fn peer_names(names: &[String], max: usize) -> Vec<String> {
    names.iter().take(max).map(|name| shown(name)).collect()
}

/// What should be escaped already: only control and hidden characters are replaced, so that a
/// backslash is not doubled.
pub(super) fn shown(text: &str) -> String {
    let hidden = |c: char| {
        crate::path::Escaped(c.to_string().as_bytes())
            .to_string()
            .len()
            > 4
    };
    text.chars()
        .take(4096)
        .map(|c| {
            if c.is_control() || (c != '\\' && hidden(c)) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

impl Coordinator {
    /// Where all servers stand, by name.
    #[must_use]
    pub fn servers(&self, now: WallMillis) -> Vec<ServerStatus> {
        self.topology
            .iter()
            .map(|server| {
                let contact = self.contacts.get(&server.id);
                let hello = contact.and_then(|contact| contact.hello.as_ref());
                let seen = contact.and_then(|contact| contact.last_seen);
                ServerStatus {
                    name: server.name.clone(),
                    region: server.region.clone(),
                    group: server.group.clone(),
                    state: if self.is_connected(server.id) {
                        ServerState::Connected
                    } else {
                        ServerState::Unreachable
                    },
                    last_seen_ms: seen.map(|at| now.0.saturating_sub(at.0)),
                    id: server.id.to_string(),
                    address: peer_text(&server.address),
                    roots: server
                        .roots
                        .iter()
                        .flatten()
                        .map(|root| peer_text(root))
                        .collect(),
                    program: hello.map(|hello| peer_text(&hello.program)),
                    watching: hello.map(|hello| peer_text(&hello.watching)),
                    current: self.is_current(server.id),
                }
            })
            .collect()
    }

    /// Where a job stands.
    #[must_use]
    pub fn status(&self, job: &Job) -> JobStatus {
        let resolved = resolve(&self.topology, job);
        let targets: Vec<TargetStatus> = resolved
            .targets
            .iter()
            .map(|root| self.target_status(job, *root))
            .collect();
        let source = resolved.source.map(|root| self.source_status(job, root));
        let problems: Vec<String> = self.problems(job).iter().map(ToString::to_string).collect();
        let (state, reason) = self.job_state(job, &targets, &problems);
        JobStatus {
            name: job.name().clone(),
            mode: job.spec.mode,
            state,
            reason,
            problems,
            sources: source.or_else(|| missing_source(job)).into_iter().collect(),
            targets,
        }
    }

    fn job_state(
        &self,
        job: &Job,
        targets: &[TargetStatus],
        problems: &[String],
    ) -> (JobState, Option<String>) {
        let source = self.source_of(job);
        if let Some(SourceState::Halted { reason }) = source.map(|report| &report.state) {
            return (JobState::Halted, Some(peer_reason(reason)));
        }
        let halted = targets
            .iter()
            .find(|target| target.state == JobState::Halted);
        if let Some(target) = halted {
            let why = target.last_error.as_deref().unwrap_or("it gave no reason");
            return (JobState::Halted, Some(format!("{}: {why}", target.server)));
        }
        if job.paused {
            let next = format!("cdsync job resume {}", job.name());
            return (
                JobState::Paused,
                Some(format!("paused by a manager; next: {next}")),
            );
        }
        if let Some(SourceState::Failed { reason }) = source.map(|report| &report.state) {
            return (JobState::Unreachable, Some(peer_reason(reason)));
        }
        let worst = targets.iter().map(|target| target.state).min();
        (
            worst.unwrap_or(JobState::Unreachable),
            problems.first().cloned(),
        )
    }

    /// What the source of a job last reported.
    pub(super) fn source_of(&self, job: &Job) -> Option<&SourceReport> {
        let (name, _) = job.source()?;
        let server = self.topology.by_name(name)?;
        self.report(server.id, job.id)?.source.as_ref()
    }

    /// The deletes that halted a job's source, for which somebody has to decide.
    #[must_use]
    pub fn deletes(&self, job: &Job) -> Option<&MassDelete> {
        self.source_of(job)?.deletes.as_ref()
    }

    /// What a target of a job last reported.
    pub(super) fn target_of(&self, job: &Job, server: ServerId) -> Option<&TargetReport> {
        self.report(server, job.id)?.target.as_ref()
    }

    fn source_status(&self, job: &Job, root: Root<'_>) -> SourceStatus {
        let report = self.source_of(job);
        let reason = match report.map(|report| &report.state) {
            Some(SourceState::Halted { reason } | SourceState::Failed { reason }) => Some(reason),
            _ => report.and_then(|report| report.last_error.as_ref()),
        };
        let state = match report.map(|report| &report.state) {
            _ if !self.is_connected(root.server.id) => "unreachable",
            None | Some(SourceState::Scanning) => "scanning",
            Some(SourceState::Watching) => "watching",
            Some(SourceState::Idle) => "idle",
            Some(SourceState::Halted { .. }) => "halted",
            Some(SourceState::Failed { .. }) => "failed",
        };
        let mut status = SourceStatus {
            state: state.to_owned(),
            last_error: reason.map(|reason| peer_reason(reason)),
            ..unknown_source(root.server.name.clone(), root.path.as_str())
        };
        if let Some(report) = report {
            // Without a ledger it has not looked at any number yet.
            status.seq = (report.origin != OriginId(0)).then_some(report.head);
            status.runs_done = report.run_done.0;
            status.held_count = report.held_count;
            status.held = report
                .held
                .iter()
                .take(20)
                .map(|h| peer_reason(h))
                .collect();
            status.gap_count = report.gap_count;
            status.gaps = report.gaps.iter().take(20).map(gap_status).collect();
            status.doubts = report.doubts;
            status.listed = report.listed;
            status.scanned_ms = report.scanned.map(|at| at.0);
            (status.log_start, status.log_bytes) = (report.log.start, report.log.bytes);
        }
        status.deletes = self
            .deletes(job)
            .map(|deletes| deletes_status(job, deletes));
        status
    }

    fn target_status(&self, job: &Job, root: Root<'_>) -> TargetStatus {
        let report = self.target_of(job, root.server.id);
        let connected = self.is_connected(root.server.id);
        let state = match report {
            _ if !connected => JobState::Unreachable,
            None => JobState::Scanning,
            Some(report) => report.state.into(),
        };
        let last_error = if connected {
            report
                .and_then(|report| report.last_error.as_deref())
                .map(peer_reason)
        } else {
            let name = &root.server.name;
            Some(format!(
                "{name} is not connected to the master; next: cdsync agent run there"
            ))
        };
        let mut status = TargetStatus {
            server: root.server.name.clone(),
            root: root.path.as_str().to_owned(),
            state,
            upstream: None,
            cursor: None,
            pending_changes: 0,
            pending_bytes: 0,
            oldest_pending_ms: 0,
            parked_count: 0,
            parked: Vec::new(),
            preview: None,
            last_error,
            trash: TrashStatus::default(),
            drift: DriftStatus::default(),
            loss_count: 0,
            loss_reasons: Vec::new(),
            losses: Vec::new(),
        };
        if let Some(report) = report {
            self.fill(&mut status, report, self.source_of(job));
        }
        status
    }

    fn fill(
        &self,
        status: &mut TargetStatus,
        report: &TargetReport,
        source: Option<&SourceReport>,
    ) {
        let upstream = report.upstream.and_then(|id| self.topology.server(id));
        let known = source.filter(|source| source.origin == report.origin);
        let head = known.map_or(report.head, |source| source.head.max(report.head));
        status.upstream = upstream.map(|server| server.name.to_string());
        status.cursor = Some(report.claim);
        status.pending_changes = head.0.saturating_sub(report.claim.0);
        status.pending_bytes = report.pending_bytes;
        status.oldest_pending_ms = report.oldest_pending_ms;
        status.parked_count = report.parked_count;
        status.parked = report.parked.iter().take(100).map(parked_status).collect();
        status.preview = report.preview.as_ref().map(preview_status);
        status.trash = trash_status(&report.trash);
        status.drift = drift_status(&report.drift);
        if status.drift.alert && status.state > JobState::Alert {
            status.state = JobState::Alert;
        }
        fill_losses(status, &report.losses);
        // What the source announced to the master may not have reached the target yet.
        if status.state == JobState::InSync && status.pending_changes > 0 {
            status.state = JobState::Lagging;
        }
    }
}

fn fill_losses(status: &mut TargetStatus, report: &LossReport) {
    let reason = |(loss, count): &(Loss, u64)| LossReason {
        reason: loss.text().to_owned(),
        count: *count,
    };
    let one = |lost: &LostReport| LossStatus {
        path: shown(&lost.path),
        reasons: lost
            .losses
            .iter()
            .map(|loss| loss.text().to_owned())
            .collect(),
    };
    status.loss_count = report.count;
    status.loss_reasons = report.reasons.iter().take(20).map(reason).collect();
    status.losses = report.first.iter().take(20).map(one).collect();
}

fn parked_status(parked: &ParkedReport) -> ParkedStatus {
    ParkedStatus {
        path: shown(&parked.path),
        reason: peer_reason(&parked.reason),
        since_ms: parked.since.0,
        attempts: parked.attempts,
        next_try_ms: parked.next_try.0,
    }
}

fn trash_status(trash: &TrashReport) -> TrashStatus {
    TrashStatus {
        entries: trash.entries,
        bytes: trash.bytes,
        oldest_ms: trash.oldest.map(|at| at.0),
        trouble: trash.trouble.as_deref().map(peer_reason),
    }
}

fn drift_status(drift: &DriftReport) -> DriftStatus {
    DriftStatus {
        count: drift.count,
        names: peer_names(&drift.names, DRIFT_NAMES),
        kept: drift.kept,
        alert: drift.alert,
    }
}

fn preview_status(preview: &Preview) -> PreviewStatus {
    PreviewStatus {
        complete: preview.complete,
        source_empty: preview.source_empty,
        equal: preview.equal,
        replaced: preview.replaced,
        removed: preview.removed,
        replaced_names: peer_names(&preview.replaced_names, 20),
        removed_names: peer_names(&preview.removed_names, 20),
    }
}

fn deletes_status(job: &Job, deletes: &MassDelete) -> DeletesStatus {
    let names = deletes.names.iter().take(20);
    DeletesStatus {
        emptied: deletes.why == TooMuch::Emptied,
        files: deletes.files,
        gone: deletes.gone,
        held: deletes.held,
        names: names.map(ToString::to_string).collect(),
        restored: job.restore.is_some(),
    }
}

/// A source that has not joined.
fn missing_source(job: &Job) -> Option<SourceStatus> {
    let (name, root) = job.source()?;
    Some(SourceStatus {
        last_error: Some(format!("there is no server {name}")),
        ..unknown_source(name.clone(), root.as_str())
    })
}

/// A source of which nothing is known.
fn unknown_source(server: Label, root: &str) -> SourceStatus {
    SourceStatus {
        server,
        root: root.to_owned(),
        state: "unreachable".to_owned(),
        seq: None,
        runs_done: 0,
        held_count: 0,
        held: Vec::new(),
        gap_count: 0,
        gaps: Vec::new(),
        doubts: 0,
        listed: 0,
        scanned_ms: None,
        log_start: Seq(0),
        log_bytes: 0,
        deletes: None,
        last_error: None,
    }
}

fn gap_status(gap: &GapReport) -> GapStatus {
    GapStatus {
        path: shown(&gap.path),
        since_ms: gap.since.0,
    }
}

#[cfg(test)]
mod tests {
    use super::peer_reason;

    /// Proves that a name in a reason, which its agent has escaped, is not escaped once more, and
    /// that an agent which escaped nothing breaks no line.
    #[test]
    fn reasons_are_escaped_once() {
        assert_eq!(peer_reason(r"'a\xe9\\b' failed"), r"'a\xe9\\b' failed");
        assert_eq!(peer_reason("a\nb\u{202e}"), "a\\nb\\u{202e}");
    }
}
