//! What the master keeps of a job, and the commands that change it. Each command makes a new
//! [`Job`] from the old one, so that the driver can store it durably before it counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::coalescer::MassDelete;
use crate::ids::{JobId, Label, ServerId};
use crate::job::{JobSpec, RootPath, Who};
use crate::wire::{Decision, Restore};

/// A job as the master keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What the manager declared.
    pub spec: JobSpec,
    /// Moving stops.
    pub paused: bool,
    /// Targets whose own content may be replaced, with the root that this was said of: another
    /// root on the same server has to be accepted anew.
    pub accepted: BTreeMap<ServerId, RootPath>,
    /// How often it was run by hand.
    pub run: u64,
    /// How often it was resumed.
    pub resume: u64,
    /// What was decided by the last time.
    pub decision: Decision,
    /// The deletes whose files come back, if that was decided.
    pub restore: Option<Restore>,
    /// How often what its targets hold was accepted.
    pub accepts: u64,
}

impl Job {
    /// A new job.
    #[must_use]
    pub const fn new(id: JobId, spec: JobSpec) -> Self {
        Self {
            id,
            spec,
            paused: false,
            accepted: BTreeMap::new(),
            run: 0,
            resume: 0,
            decision: Decision::Again,
            restore: None,
            accepts: 0,
        }
    }

    /// The same job under a changed declaration. What was accepted holds on, unless the source is
    /// another one: nobody has said that its content may replace anything.
    #[must_use]
    pub fn with_spec(mut self, spec: JobSpec) -> Self {
        if spec.sources != self.spec.sources {
            self.accepted.clear();
        }
        self.spec = spec;
        self
    }

    /// Accepts the content that these targets hold: also what was kept there because others had
    /// changed it may be replaced.
    #[must_use]
    pub fn with_accepted(
        mut self,
        targets: impl IntoIterator<Item = (ServerId, RootPath)>,
    ) -> Self {
        self.accepted.extend(targets);
        self.accepts += 1;
        self
    }

    /// Paused.
    #[must_use]
    pub const fn with_pause(mut self) -> Self {
        self.paused = true;
        self
    }

    /// Going on, whether it was paused or halted.
    #[must_use]
    pub const fn with_resume(mut self) -> Self {
        self.paused = false;
        self.resume += 1;
        self.decision = Decision::Again;
        self.restore = None;
        self
    }

    /// Going on after deletes that halted it, as it was decided about them.
    #[must_use]
    pub fn with_decision(self, decision: Decision, deletes: &MassDelete) -> Self {
        let restore = (decision == Decision::Restore).then_some(Restore {
            origin: deletes.origin,
            after: deletes.after,
            upto: deletes.upto,
        });
        Self {
            decision,
            restore,
            ..self.with_resume()
        }
    }

    /// Run once more.
    #[must_use]
    pub const fn with_run(mut self) -> Self {
        self.run += 1;
        self
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &Label {
        &self.spec.name
    }

    /// The name of its source server and the root there; `None` when the declaration is not valid.
    #[must_use]
    pub fn source(&self) -> Option<(&Label, &RootPath)> {
        match self.spec.sources.first() {
            Some(place) => match &place.who {
                Who::Server(name) => Some((name, &place.path)),
                _ => None,
            },
            None => None,
        }
    }

    /// Whether a target's content was accepted.
    #[must_use]
    pub fn is_accepted(&self, server: ServerId, root: &RootPath) -> bool {
        self.accepted.get(&server) == Some(root)
    }
}
