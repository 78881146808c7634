//! Between an agent and its master, on one stream that the agent opens and keeps.
//!
//! The agent says [`Hello`], the master sends [`Orders`](super::Orders) (signed) and, when a person
//! asks, an [`Ask`]; the agent reports what changed, at most every 20 ms and at least every second.

use serde::{Deserialize, Serialize};

use super::{DriftReport, Epoch, Signed, TrashReport};
use crate::bounds;
use crate::coalescer::MassDelete;
use crate::ids::{JobId, OriginId, ServerId};
use crate::ledger::loss::{Loss, Losses};
use crate::ledger::object::Seq;
use crate::ledger::trim::Kept;
use crate::time::WallMillis;

/// The most roots that an agent may name.
pub(crate) const HELLO_MAX_ROOTS: usize = 256;

/// The most jobs that a report speaks of.
pub(crate) const REPORT_MAX_JOBS: usize = 16 * 1024;

/// The most names, or parked objects, that a report or a fence gives for one job.
pub(crate) const REPORT_MAX_NAMES: usize = 1024;

/// The most lines of an answer.
pub(crate) const ANSWER_MAX_LINES: usize = 16 * 1024;

/// From an agent to the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The first message.
    Hello(Hello),
    /// Where its jobs stand; replaces the report before.
    Report(Report),
    /// The answer to [`MasterMessage::Ask`].
    Answer {
        /// Which question.
        id: u64,
        /// The answer, or why there is none, for people.
        #[serde(deserialize_with = "bounds::or_text")]
        answer: Result<Answer, String>,
    },
    /// Asks for a new certificate for the key in this request (PEM, at most 16 KiB).
    Renew {
        /// Certificate signing request.
        csr: String,
    },
}

/// From the master to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterMessage {
    /// The answer to [`Hello`].
    Welcome {
        /// The master's clock.
        now: WallMillis,
    },
    /// New [`Orders`](super::Orders).
    Orders(Signed),
    /// A question.
    Ask {
        /// Echoed in the answer.
        id: u64,
        /// What is asked.
        ask: Ask,
    },
    /// The new certificate, PEM.
    Renewed {
        /// Certificate.
        certificate: String,
    },
    /// To a source, now and then: what all targets of its jobs claim. Not signed: what is wrong here
    /// makes a target compare, and loses nothing.
    Claimed(#[serde(deserialize_with = "bounds::list::<_, _, REPORT_MAX_JOBS>")] Vec<ClaimedByAll>),
}

/// Up to where every target of a job holds everything: whoever comes again comes from there or
/// later, so that the log before is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedByAll {
    /// The job.
    pub job: JobId,
    /// The ledger.
    pub origin: OriginId,
    /// The lowest of their claims.
    pub upto: Seq,
}

/// What an agent says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program's version, for people.
    #[serde(deserialize_with = "bounds::text")]
    pub program: String,
    /// Where other agents dial this one: host and port.
    #[serde(deserialize_with = "bounds::text")]
    pub address: String,
    /// The roots that its operator allowed.
    #[serde(deserialize_with = "bounds::list::<_, _, HELLO_MAX_ROOTS>")]
    pub roots: Vec<String>,
    /// The proof of the orders that it obeys, a signed [`Standing`](super::Standing); empty without
    /// orders.
    pub standing: Signed,
    /// Which way of watching it may use, for people: `fanotify` or why not.
    #[serde(deserialize_with = "bounds::text")]
    pub watching: String,
}

/// Where a server's jobs stand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The epoch of the orders that this speaks of.
    pub epoch: Epoch,
    /// One entry for each job of those orders.
    #[serde(deserialize_with = "bounds::list::<_, _, REPORT_MAX_JOBS>")]
    pub jobs: Vec<JobReport>,
}

/// Where one job stands on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// The job.
    pub job: JobId,
    /// As the source.
    pub source: Option<SourceReport>,
    /// As a target.
    pub target: Option<TargetReport>,
}

/// What a source is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SourceState {
    /// Comparing its tree with its ledger.
    #[default]
    Scanning,
    /// Watching; what is in the log is what is on the disk.
    Watching,
    /// A manual job between runs.
    Idle,
    /// Stopped for safety until a manager resumes it: nothing is announced.
    Halted {
        /// Why, with what to do next.
        #[serde(deserialize_with = "bounds::text")]
        reason: String,
    },
    /// Cannot run; tried again by itself.
    Failed {
        /// Why, with what to do next.
        #[serde(deserialize_with = "bounds::text")]
        reason: String,
    },
}

/// A folder of which a source does not know what changed, until it has compared it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapReport {
    /// The folder below the root, escaped.
    #[serde(deserialize_with = "bounds::text")]
    pub path: String,
    /// Since when.
    pub since: WallMillis,
}

/// A source's state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceReport {
    /// What it is doing.
    pub state: SourceState,
    /// Its ledger.
    pub origin: OriginId,
    /// The highest number announced.
    pub head: Seq,
    /// The last [`run`](super::SourceOrder::run) that ended, with the number that it ended at.
    pub run_done: (u64, Seq),
    /// The [`resume`](super::SourceOrder::resume) that this speaks of: what was said before a
    /// manager resumed the job is of the past.
    pub resume: u64,
    /// How many paths the disk does not show, so that the log says nothing of them; of a manual
    /// job, when the last run ended.
    pub held_count: u64,
    /// The first of them, at most 20, escaped, each with why.
    #[serde(deserialize_with = "bounds::texts::<_, REPORT_MAX_NAMES>")]
    pub held: Vec<String>,
    /// How many gaps are open.
    pub gap_count: u64,
    /// The first of them, at most 20.
    #[serde(deserialize_with = "bounds::list::<_, _, REPORT_MAX_NAMES>")]
    pub gaps: Vec<GapReport>,
    /// How many files are read again, because their bytes may be other ones than recorded.
    pub doubts: u64,
    /// How many folders it has listed since it started.
    pub listed: u64,
    /// When the last safety scan ended.
    pub scanned: Option<WallMillis>,
    /// The deletes that halted it, until somebody has decided.
    pub deletes: Option<MassDelete>,
    /// What went wrong last, for people.
    #[serde(deserialize_with = "bounds::maybe_text")]
    pub last_error: Option<String>,
    /// What its log holds.
    pub log: Kept,
}

/// What a target is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TargetState {
    /// Its root is not empty, and nobody has said that it may be taken over.
    AwaitingAccept,
    /// Comparing its tree before it begins.
    Scanning,
    /// First copy, or a look for what it may hold that the source does not have.
    Copying,
    /// Holds everything that its upstream announced.
    InSync,
    /// Catching up.
    Lagging,
    /// Holds everything but what is parked.
    Parked,
    /// No upstream answers.
    Unreachable,
    /// Stopped for safety; `last_error` has the reason.
    Halted,
    /// Comparing with its upstream, whose log does not lead on from its cursor, or bringing what
    /// differs; `last_error` says why, and how far it is.
    Reconciling,
}

/// A target's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    /// What it is doing.
    pub state: TargetState,
    /// Whom it is subscribed to.
    pub upstream: Option<ServerId>,
    /// The [`resume`](super::TargetOrder::resume) that this speaks of.
    pub resume: u64,
    /// The ledger that the numbers speak of.
    pub origin: OriginId,
    /// It holds everything up to here, but what is parked.
    pub claim: Seq,
    /// The highest number that its upstream announced to it.
    pub head: Seq,
    /// Content not yet here, in bytes.
    pub pending_bytes: u64,
    /// How long the oldest change not yet here has been known, in milliseconds.
    pub oldest_pending_ms: u64,
    /// How many objects are parked.
    pub parked_count: u64,
    /// The first of them, at most 100.
    #[serde(deserialize_with = "bounds::list::<_, _, REPORT_MAX_NAMES>")]
    pub parked: Vec<ParkedReport>,
    /// What would happen to foreign content, while it waits to be accepted.
    pub preview: Option<Preview>,
    /// What went wrong last, for people.
    #[serde(deserialize_with = "bounds::maybe_text")]
    pub last_error: Option<String>,
    /// What its trash holds.
    pub trash: TrashReport,
    /// What others changed in its root.
    pub drift: DriftReport,
    /// What is there, but not whole.
    pub losses: LossReport,
}

/// What a target's disk does not hold of objects that are there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LossReport {
    /// How many objects; 10,000 for as many or more.
    pub count: u64,
    /// How many for each reason.
    #[serde(deserialize_with = "bounds::list::<_, _, REPORT_MAX_NAMES>")]
    pub reasons: Vec<(Loss, u64)>,
    /// The first of them, at most 20.
    #[serde(deserialize_with = "bounds::list::<_, _, REPORT_MAX_NAMES>")]
    pub first: Vec<LostReport>,
}

/// An object that is there, but not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostReport {
    /// Its path, escaped.
    #[serde(deserialize_with = "bounds::text")]
    pub path: String,
    /// What is missing.
    pub losses: Losses,
}

/// An object that could not be applied yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedReport {
    /// Its path, escaped.
    #[serde(deserialize_with = "bounds::text")]
    pub path: String,
    /// Why.
    #[serde(deserialize_with = "bounds::text")]
    pub reason: String,
    /// Since when.
    pub since: WallMillis,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub next_try: WallMillis,
}

/// What taking over a root that is not empty would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Preview {
    /// Whether the comparison has ended.
    pub complete: bool,
    /// Whether the source holds nothing at all: taking over would empty this root.
    pub source_empty: bool,
    /// Files that are equal and stay.
    pub equal: u64,
    /// Files that would be replaced.
    pub replaced: u64,
    /// Files and folders that would be removed.
    pub removed: u64,
    /// The first of the replaced, escaped, at most 20.
    #[serde(deserialize_with = "bounds::texts::<_, REPORT_MAX_NAMES>")]
    pub replaced_names: Vec<String>,
    /// The first of the removed, escaped, at most 20.
    #[serde(deserialize_with = "bounds::texts::<_, REPORT_MAX_NAMES>")]
    pub removed_names: Vec<String>,
}

/// What the master asks an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// To the source: a number at which everything that was on the disk before is in the log.
    Fence {
        /// The job.
        job: JobId,
    },
    /// Lines of the job's log after a number.
    Log {
        /// The job.
        job: JobId,
        /// Lines with a higher number.
        after: u64,
        /// At most so many, the newest ones when `after` is zero.
        limit: u32,
    },
    /// What is known about one path.
    Explain {
        /// The job.
        job: JobId,
        /// The path below the root, as bytes.
        path: Vec<u8>,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Fence`].
    Fence(FenceAnswer),
    /// To [`Ask::Log`]: the lines.
    Log(#[serde(deserialize_with = "bounds::list::<_, _, ANSWER_MAX_LINES>")] Vec<LogLine>),
    /// To [`Ask::Explain`]: sentences, the most important first.
    Explain(#[serde(deserialize_with = "bounds::texts::<_, ANSWER_MAX_LINES>")] Vec<String>),
}

/// Where the fence stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceAnswer {
    /// The ledger.
    pub origin: OriginId,
    /// Every target that claims this number holds all that was there when the fence was asked for.
    pub seq: Seq,
    /// Paths that could not be brought into the log, with why: the fence fails by them.
    #[serde(deserialize_with = "bounds::texts::<_, REPORT_MAX_NAMES>")]
    pub held: Vec<String>,
    /// Files that changed each time they were read, with how often: the fence is asked for again.
    #[serde(deserialize_with = "bounds::texts::<_, REPORT_MAX_NAMES>")]
    pub restless: Vec<String>,
}

/// The label of a change, derived from states for people, logs and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A new object.
    Create,
    /// New content.
    Update,
    /// New metadata only.
    Attributes,
    /// Another name in the same folder.
    Rename,
    /// Another folder.
    Move,
    /// Gone; to the trash.
    Delete,
    /// Not a change: something a person should know (started, halted, parked, resumed).
    Note,
}

/// One line of a job's log on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its place in this server's log of the job; rises by one, starts anew with the agent.
    pub number: u64,
    /// When.
    pub at: WallMillis,
    /// What.
    pub op: Op,
    /// Where, escaped; for a rename or move the new path.
    #[serde(deserialize_with = "bounds::text")]
    pub path: String,
    /// More: the old path, a reason.
    #[serde(deserialize_with = "bounds::text")]
    pub detail: String,
    /// At a target: milliseconds from the record at the source to here, by both clocks.
    pub latency_ms: Option<u64>,
    /// The record's number, zero for notes.
    pub seq: Seq,
}

/// A label as people see it.
impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Attributes => "attributes",
            Self::Rename => "rename",
            Self::Move => "move",
            Self::Delete => "delete",
            Self::Note => "note",
        })
    }
}
