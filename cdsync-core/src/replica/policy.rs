//! What a job's settings say to its targets.

use super::Replica;
use crate::job::{Retry, Settings};

/// How a replica keeps its job's promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// When parked objects are tried again.
    pub retry: Retry,
}

impl From<&Settings> for Policy {
    fn from(settings: &Settings) -> Self {
        Self {
            retry: settings.retry,
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
}
