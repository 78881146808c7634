//! Where this server's jobs stand, for the master.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use cdsync_core::ids::JobId;
use cdsync_core::wire::{Epoch, JobReport, Report, SourceReport, TargetReport};
use tokio::sync::Notify;

/// The reports, replaced whole by those who run the jobs.
#[derive(Debug, Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    epoch: Epoch,
    jobs: BTreeMap<JobId, JobReport>,
}

impl Board {
    fn with(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    pub(crate) fn epoch(&self, epoch: Epoch) {
        self.with(|inner| inner.epoch = epoch);
    }

    pub(crate) fn source(&self, job: JobId, report: Option<SourceReport>) {
        self.with(|inner| {
            inner.job(job).source = report;
            inner.drop_empty(job);
        });
    }

    pub(crate) fn target(&self, job: JobId, report: Option<TargetReport>) {
        self.with(|inner| {
            inner.job(job).target = report;
            inner.drop_empty(job);
        });
    }

    pub(crate) fn report(&self) -> Report {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Report {
            epoch: inner.epoch,
            jobs: inner.jobs.values().cloned().collect(),
        }
    }

    /// Waits for a change since the last wait. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Inner {
    fn job(&mut self, job: JobId) -> &mut JobReport {
        self.jobs.entry(job).or_insert(JobReport {
            job,
            source: None,
            target: None,
        })
    }

    fn drop_empty(&mut self, job: JobId) {
        if self
            .jobs
            .get(&job)
            .is_some_and(|r| r.source.is_none() && r.target.is_none())
        {
            self.jobs.remove(&job);
        }
    }
}
