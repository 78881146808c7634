//! The coordinator: what the master decides. Pure: times, ids and the signing key come in as
//! arguments, so that a simulator runs these very rules.
//!
//! # How to drive it
//! 1. [`Coordinator::new`] with what the store holds and a term that was never used before.
//! 2. Inputs: `handle_*`, each after its driver stored what must outlive the process.
//! 3. Outputs: [`Coordinator::poll_orders`] until it gives nothing, after every input; and
//!    [`Coordinator::handle_time`] now and then (a minute is well), which renews leases.
//! 4. Questions: `status`, `servers`, `evaluate_fence` and the like change nothing.

mod fence;
mod job;
mod outranked;
mod places;
mod plan;
mod status;
#[cfg(test)]
mod tests;

pub use fence::{FenceStart, FenceVerdict, Laggard};
pub use job::Job;
pub use outranked::Outranked;
pub use places::Problem;
pub use plan::{LEASE, OrdersFor};
pub use status::{
    DeletesStatus, DriftStatus, GapStatus, JobState, JobStatus, ParkedStatus, PreviewStatus,
    ServerState, ServerStatus, SourceStatus, TargetStatus, TrashStatus,
};

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::ids::{JobId, Label, ServerId};
use crate::job::{JobError, JobSpec, RootPath};
use crate::time::WallMillis;
use crate::topology::{Server, Topology, TopologyError};
use crate::wire::{Epoch, Hello, JobReport, Report, SigningKey};
use places::{Resolved, overlap, resolve};
use plan::Plan;

/// Whose orders these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MasterIdentity {
    /// The cluster.
    pub cluster: u64,
    /// Random, drawn for this run of it.
    pub instance: u64,
    /// This run of it: higher than every run before, stored durably before anything is signed.
    pub term: u64,
}

/// Why a command on a job is refused; not retryable as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JobRefused {
    /// There is no such job.
    #[error("there is no job {name}; next: cdsync job list")]
    NoSuchJob {
        /// The name.
        name: Label,
    },
    /// The declaration is not valid.
    #[error(transparent)]
    Invalid(#[from] JobError),
    /// `job add` of a name that there is.
    #[error(
        "there is a job {name} already; next: cdsync job apply -f FILE to change it, or cdsync job remove {name}"
    )]
    Exists {
        /// The name.
        name: Label,
    },
    /// The declaration does not fit the cluster.
    #[error("job {name} cannot run as it stands")]
    Problems {
        /// The name.
        name: Label,
        /// What is wrong, with what to do.
        problems: Vec<Problem>,
    },
}

/// What is known of a server at this moment.
#[derive(Debug, Default)]
struct Contact {
    connected: bool,
    hello: Option<Hello>,
    report: Option<Report>,
    last_seen: Option<WallMillis>,
}

/// Everything the master knows, and the plan that follows from it.
#[derive(Debug)]
pub struct Coordinator {
    identity: MasterIdentity,
    key: SigningKey,
    topology: Topology,
    jobs: BTreeMap<JobId, Job>,
    names: BTreeMap<Label, JobId>,
    contacts: BTreeMap<ServerId, Contact>,
    /// Removed servers, and when.
    revoked: BTreeMap<ServerId, WallMillis>,
    /// The counter of the newest epoch.
    counter: u64,
    plans: BTreeMap<ServerId, Plan>,
    /// Who is connected and was not yet given the newest orders.
    unsent: BTreeSet<ServerId>,
    /// Agents obey a later master than this one: it gives no orders.
    outranked: Option<Outranked>,
}

impl Coordinator {
    /// A coordinator over what the store holds. Servers and jobs whose name is taken by one before
    /// are dropped; a store that keeps names unique has none.
    #[must_use]
    pub fn new(
        identity: MasterIdentity,
        key: SigningKey,
        servers: impl IntoIterator<Item = Server>,
        jobs: impl IntoIterator<Item = Job>,
    ) -> Self {
        let mut topology = Topology::default();
        for server in servers {
            let _ = topology.insert(server);
        }
        let mut new = Self {
            identity,
            key,
            topology,
            jobs: BTreeMap::new(),
            names: BTreeMap::new(),
            contacts: BTreeMap::new(),
            revoked: BTreeMap::new(),
            counter: 0,
            plans: BTreeMap::new(),
            unsent: BTreeSet::new(),
            outranked: None,
        };
        for job in jobs {
            if !new.names.contains_key(job.name()) {
                new.names.insert(job.name().clone(), job.id);
                new.jobs.insert(job.id, job);
            }
        }
        new.replan();
        new
    }

    /// With the servers that were removed before, and when.
    #[must_use]
    pub fn with_revoked(
        mut self,
        revoked: impl IntoIterator<Item = (ServerId, WallMillis)>,
    ) -> Self {
        self.revoked.extend(revoked);
        self
    }

    /// Whose orders these are.
    #[must_use]
    pub const fn identity(&self) -> MasterIdentity {
        self.identity
    }

    /// The newest epoch given out; its counter only rises.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        Epoch {
            term: self.identity.term,
            counter: self.counter,
        }
    }

    /// The servers.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// All jobs, by name.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.names.values().filter_map(|id| self.jobs.get(id))
    }

    /// A job by its name.
    ///
    /// # Errors
    /// [`JobRefused::NoSuchJob`]; not retryable.
    pub fn job(&self, name: &Label) -> Result<&Job, JobRefused> {
        self.names
            .get(name)
            .and_then(|id| self.jobs.get(id))
            .ok_or_else(|| JobRefused::NoSuchJob { name: name.clone() })
    }

    /// Whether a server has a connection.
    #[must_use]
    pub fn is_connected(&self, server: ServerId) -> bool {
        self.contacts
            .get(&server)
            .is_some_and(|contact| contact.connected)
    }

    /// The source server of a job and all of its targets, once each.
    #[must_use]
    pub fn members<'a>(&'a self, job: &'a Job) -> Vec<&'a Server> {
        let resolved = resolve(&self.topology, job);
        let mut members: Vec<&'a Server> = resolved
            .source
            .iter()
            .chain(&resolved.targets)
            .map(|root| root.server)
            .collect();
        members.sort_by_key(|server| &server.name);
        members.dedup_by_key(|server| server.id);
        members
    }

    /// The targets of a job with their roots.
    #[must_use]
    pub fn targets(&self, job: &Job) -> Vec<(ServerId, RootPath)> {
        let resolved = resolve(&self.topology, job);
        resolved
            .targets
            .iter()
            .map(|root| (root.server.id, root.path.clone()))
            .collect()
    }

    /// The job that a declaration makes, new or changed, for the driver to store and then to hand
    /// to [`Coordinator::handle_job`]. `fresh` is the id of a new one. With `adopt`, whatever the
    /// targets hold may be replaced.
    ///
    /// # Errors
    /// [`JobRefused::Invalid`]; [`JobRefused::Problems`] when it names a source that is not there,
    /// or roots that cannot be. Not retryable as it stands.
    pub fn prepare_job(&self, spec: JobSpec, fresh: JobId, adopt: bool) -> Result<Job, JobRefused> {
        spec.validate()?;
        let mut job = match self.job(&spec.name) {
            Ok(old) => old.clone().with_spec(spec),
            Err(_) => Job::new(fresh, spec),
        };
        let problems = self.grave_problems(&job);
        if !problems.is_empty() {
            return Err(JobRefused::Problems {
                name: job.name().clone(),
                problems,
            });
        }
        if adopt {
            let targets = self.targets(&job);
            job = job.with_accepted(targets);
        }
        Ok(job)
    }

    /// What is wrong with a job, with what to do next.
    #[must_use]
    pub fn problems(&self, job: &Job) -> Vec<Problem> {
        let resolved = resolve(&self.topology, job);
        let mut problems = self.overlaps(job, &resolved);
        problems.extend(resolved.problems);
        problems
    }

    /// The problems that refuse a declaration. An empty group is none: its servers may come.
    fn grave_problems(&self, job: &Job) -> Vec<Problem> {
        let mut problems = self.problems(job);
        problems.retain(|problem| !matches!(problem, Problem::NoMembers { .. }));
        problems
    }

    /// Target roots that lie in target roots of other jobs.
    fn overlaps(&self, job: &Job, resolved: &Resolved<'_>) -> Vec<Problem> {
        let others = self.jobs.values().filter(|other| other.id != job.id);
        let mut problems = Vec::new();
        for other in others {
            let theirs = resolve(&self.topology, other);
            for root in &resolved.targets {
                let Some(their) = theirs.target(root.server.id) else {
                    continue;
                };
                if overlap(root.path, their.path) {
                    problems.push(Problem::Overlap {
                        server: root.server.name.clone(),
                        root: root.path.clone(),
                        other: their.path.clone(),
                        job: other.name().clone(),
                    });
                }
            }
        }
        problems
    }

    /// A server joined.
    ///
    /// # Errors
    /// [`TopologyError`] when its name or id is taken; nothing changed.
    pub fn handle_joined(&mut self, server: Server) -> Result<(), TopologyError> {
        self.topology.insert(server)?;
        self.replan();
        Ok(())
    }

    /// A server was removed: it gets no more orders, nobody else is told to use it, what it
    /// reports counts no more, and everybody is told that its grants are void.
    pub fn handle_removed(&mut self, server: ServerId, now: WallMillis) {
        self.topology.remove(server);
        self.contacts.remove(&server);
        self.revoked.insert(server, now);
        self.replan();
        self.tell_all();
    }

    /// A server connected and said who it is. Returns whether its address or roots are news, which
    /// the driver stores.
    pub fn handle_hello(&mut self, server: ServerId, hello: Hello, now: WallMillis) -> bool {
        if self.topology.server(server).is_none() {
            return false;
        }
        self.note_standing(&hello.standing);
        let news = self.topology.describe(server, &hello.address, &hello.roots);
        let contact = self.contacts.entry(server).or_default();
        contact.connected = true;
        contact.last_seen = Some(now);
        contact.hello = Some(hello);
        // What it said on a connection before speaks of a time before.
        contact.report = None;
        if news {
            self.replan();
        }
        self.unsent.insert(server);
        news
    }

    /// A server reported.
    pub fn handle_report(&mut self, server: ServerId, report: Report, now: WallMillis) {
        if let Some(contact) = self.contacts.get_mut(&server) {
            contact.last_seen = Some(now);
            contact.report = Some(report);
        }
    }

    /// A server's connection is over.
    pub fn handle_disconnected(&mut self, server: ServerId, now: WallMillis) {
        self.unsent.remove(&server);
        if let Some(contact) = self.contacts.get_mut(&server) {
            contact.connected = false;
            contact.last_seen = Some(now);
        }
    }

    /// A job was made or changed.
    pub fn handle_job(&mut self, job: Job) {
        self.names.insert(job.name().clone(), job.id);
        self.jobs.insert(job.id, job);
        self.replan();
    }

    /// A job was removed: its agents forget it, and leave every file where it is.
    pub fn handle_job_removed(&mut self, id: JobId) {
        if let Some(job) = self.jobs.remove(&id) {
            self.names.remove(job.name());
        }
        self.replan();
    }

    /// The newest report of a job from a server, and whether it speaks of the newest orders.
    fn report(&self, server: ServerId, job: JobId) -> Option<&JobReport> {
        let report = self.contacts.get(&server)?.report.as_ref()?;
        report.jobs.iter().find(|entry| entry.job == job)
    }

    /// Whether a server has reported on a job under its newest orders.
    #[must_use]
    pub fn has_word(&self, job: &Job, server: ServerId) -> bool {
        self.is_current(server) && self.report(server, job.id).is_some()
    }

    /// Whether a server's newest report speaks of its newest orders.
    fn is_current(&self, server: ServerId) -> bool {
        if self.outranked.is_some() {
            return false;
        }
        let reported = self
            .contacts
            .get(&server)
            .and_then(|contact| contact.report.as_ref());
        let ordered = self.plans.get(&server);
        match (reported, ordered) {
            (Some(report), Some(plan)) => report.epoch >= plan.epoch,
            _ => false,
        }
    }
}
