//! What a job's settings say to its targets.

use super::Replica;
use crate::job::{AdoptCheck, Drift, Retry, Settings};
use crate::time::WallMillis;

/// How a replica keeps its job's promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// When parked objects are tried again.
    pub retry: Retry,
    /// What happens to what others changed.
    pub drift: Drift,
    /// What is compared before a file that is there already is taken over.
    pub adopt_check: AdoptCheck,
    /// How long after a check of the whole root the next one begins, in milliseconds.
    pub check_every_ms: Option<u64>,
    /// How often a manager resumed the job: acknowledges what was reported before.
    pub resumes: u64,
    /// How often a manager accepted what the targets hold: what was kept before gives way.
    pub accepts: u64,
}

impl Policy {
    /// What a job's settings and its manager's commands say.
    #[must_use]
    pub fn new(settings: &Settings, resumes: u64, accepts: u64) -> Self {
        Self {
            retry: settings.retry,
            drift: settings.drift,
            adopt_check: settings.adopt_check,
            check_every_ms: Some(settings.scan_every_ms).filter(|every| *every > 0),
            resumes,
            accepts,
        }
    }
}

impl Replica {
    /// The same replica under a job's settings, in place of the defaults.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Takes new settings or commands. What was kept is looked at again if it may give way now.
    pub fn handle_policy(&mut self, policy: Policy) {
        let before = std::mem::replace(&mut self.policy, policy);
        if (before.drift, before.accepts) != (policy.drift, policy.accepts) {
            for id in self.drifts.kept() {
                self.parked.insert(id, WallMillis(0));
            }
            // More may be found than was kept.
            self.patrol.begin_again();
        }
    }
}
