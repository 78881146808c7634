//! What the API takes and gives, beside the states of `cdsync_core::coordinator`.

use cdsync_core::coordinator::{JobStatus, ServerStatus, TargetStatus};
use cdsync_core::filter::FilterSpec;
use cdsync_core::ids::Label;
use cdsync_core::job::{JobSpec, Mode, Place, Settings};
use cdsync_core::wire::Decision;
use serde::{Deserialize, Serialize};

/// A job as the API takes it: places are texts such as `edge-1:/srv/www` or `@asia/seoul:/srv/www`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobBody {
    /// Its name.
    pub name: Label,
    /// When it runs.
    pub mode: Mode,
    /// Where changes come from: one server.
    pub source: Vec<String>,
    /// Where they go.
    pub target: Vec<String>,
    /// What is carried.
    #[serde(default)]
    pub filter: FilterSpec,
    /// What has a default.
    #[serde(default)]
    pub settings: Settings,
}

impl From<&JobSpec> for JobBody {
    fn from(spec: &JobSpec) -> Self {
        // Not `Display`, which escapes for people.
        let text = |place: &Place| {
            let Place { who, path } = place;
            let who = match who {
                cdsync_core::job::Who::Server(name) => name.to_string(),
                cdsync_core::job::Who::Group { region, group } => format!("@{region}/{group}"),
                cdsync_core::job::Who::Region(region) => format!("@{region}"),
            };
            format!("{who}:{}", path.as_str())
        };
        Self {
            name: spec.name.clone(),
            mode: spec.mode,
            source: spec.sources.iter().map(text).collect(),
            target: spec.targets.iter().map(text).collect(),
            filter: spec.filter.clone(),
            settings: spec.settings.clone(),
        }
    }
}

impl TryFrom<JobBody> for JobSpec {
    type Error = cdsync_core::job::JobError;

    fn try_from(body: JobBody) -> Result<Self, Self::Error> {
        let places = |texts: &[String]| {
            texts
                .iter()
                .map(|text| text.parse::<Place>())
                .collect::<Result<Vec<_>, _>>()
        };
        let spec = Self {
            name: body.name,
            mode: body.mode,
            sources: places(&body.source)?,
            targets: places(&body.target)?,
            filter: body.filter,
            settings: body.settings,
        };
        spec.validate()?;
        Ok(spec)
    }
}

/// `PUT /jobs/{name}` and `POST /jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The job.
    pub job: JobBody,
    /// What the targets hold may be replaced.
    #[serde(default)]
    pub adopt: bool,
    /// How long to wait for the targets' first word, in milliseconds; at most 60,000.
    #[serde(default = "default_wait")]
    pub wait_ms: u64,
}

const fn default_wait() -> u64 {
    10_000
}

/// What applying a job came to. The job is stored in every case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Whether it is a new one.
    pub created: bool,
    /// Servers of the job that are not connected: they begin when they are.
    pub missing: Vec<Label>,
    /// Connected targets that have not said yet whether their root is empty.
    pub undecided: Vec<Label>,
    /// Targets whose content was accepted, now or before.
    pub accepted: Vec<Label>,
    /// Where it stands; targets that wait to be accepted say so with a preview.
    pub status: JobStatus,
}

impl Applied {
    /// Whether a target's content was accepted: it may say for a moment longer that it waits.
    #[must_use]
    pub fn adopted(&self, target: &TargetStatus) -> bool {
        self.accepted.contains(&target.server)
    }
}

/// `POST /tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The name that the server gets.
    pub name: Label,
    /// `REGION/GROUP`.
    pub group: String,
    /// How long it is good, in milliseconds; 1 s to 30 days.
    pub ttl_ms: u64,
}

/// A join token. It is shown once and stored only as a hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// The token: a secret.
    pub token: String,
    /// Where it leads.
    pub address: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The master.
    pub master: MasterStatus,
    /// Its servers, by name.
    pub servers: Vec<ServerStatus>,
    /// Its jobs, by name.
    pub jobs: Vec<JobStatus>,
}

/// Where the master stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterStatus {
    /// The program's version.
    pub version: String,
    /// The cluster.
    pub cluster: String,
    /// The newest plan.
    pub epoch: String,
    /// Where agents dial it.
    pub address: String,
    /// Where this API listens.
    pub http: String,
    /// How long it has been running, in milliseconds.
    pub uptime_ms: u64,
    /// Agents obey a master of this term, which is not below this one's: it is an older copy, and
    /// gives no orders until that is accepted.
    #[serde(default)]
    pub outranked_by_term: Option<u64>,
}

/// `POST /accept-restore`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreAccepted {
    /// Under which it rules now.
    pub term: u64,
}

/// `POST /jobs/{name}/resume`; without a body the job looks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// What is to be done about deletes that halted it: `again`, `accept` or `restore`.
    pub decision: Decision,
}

/// `POST /jobs/{name}/run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAsked {
    /// The number of the run.
    pub run: u64,
}

/// `GET /jobs/{name}/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// Whether every target holds all that the source held when this was asked.
    pub done: bool,
    /// Whether more waiting would have been in vain.
    pub hopeless: bool,
    /// The number that every target had to reach, once the source gave it.
    pub seq: Option<u64>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Who lags, and why.
    pub laggards: Vec<LaggardStatus>,
}

/// Who keeps a fence from being reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaggardStatus {
    /// The server; `None` for the job as a whole.
    pub server: Option<Label>,
    /// Its state.
    pub state: Option<String>,
    /// Why, with what to do next where somebody must.
    pub why: String,
    /// How many records it is behind.
    pub pending_changes: u64,
    /// Parked or held paths, escaped; the first ones.
    pub paths: Vec<String>,
}

/// `GET /jobs/{name}/log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// The lines, oldest first.
    pub lines: Vec<LogEntry>,
    /// Where the next page begins.
    pub cursor: String,
    /// Servers that did not answer, with why.
    pub missing: Vec<Missing>,
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Where it happened.
    pub server: Label,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What: `create`, `update`, `attributes`, `rename`, `move`, `delete` or `note`.
    pub op: String,
    /// Where, escaped; for a rename or move the new path.
    pub path: String,
    /// More: the old path, a reason.
    pub detail: String,
    /// At a target: milliseconds from the record at the source to here, by both clocks.
    pub latency_ms: Option<u64>,
    /// The record's number, zero for notes.
    pub seq: u64,
}

/// A server that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub server: Label,
    /// Why.
    pub why: String,
}

/// `GET /jobs/{name}/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What each server knows, by name.
    pub servers: Vec<Explanation>,
}

/// What one server knows of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which server.
    pub server: Label,
    /// `source`, `target` or both.
    pub role: String,
    /// Sentences, the most important first.
    pub lines: Vec<String>,
    /// Why there is no answer.
    pub error: Option<String>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
