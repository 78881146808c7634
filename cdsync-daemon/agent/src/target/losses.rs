//! Telling what a target's disk does not hold of files that are there.

use std::time::{Duration, Instant};

use cdsync_core::replica::Replica;
use cdsync_core::wire::{LossReport, LostReport};
use cdsync_fs::LedgerStore;

use super::TargetError;
use crate::joblog::{JobLog, shorten};

/// How many files a report names.
const REPORT_LOSSES: usize = 20;
/// How many files one run of an engine tells of in the job's log.
const TOLD_MAX: usize = 100;
/// How often it is asked which of them are gone.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Losses {
    told: usize,
    /// The last report, what it was made of, and when.
    report: Option<(u64, Instant, LossReport)>,
}

impl Losses {
    /// The report as it is now, made again only where something changed.
    pub(super) fn report(
        &mut self,
        replica: &mut Replica,
        store: &LedgerStore,
    ) -> Result<LossReport, TargetError> {
        let changes = replica.lost_changes();
        if let Some((known, at, report)) = &self.report {
            let is_fresh = report.count == 0 || at.elapsed() < REFRESH_EVERY;
            if *known == changes && is_fresh {
                return Ok(report.clone());
            }
        }
        let lost = replica.lost_report(&store.read()?, REPORT_LOSSES)?;
        let first = lost.first.into_iter().map(|(path, losses)| {
            let mut path = path.to_string();
            shorten(&mut path);
            LostReport { path, losses }
        });
        let report = LossReport {
            count: lost.count,
            reasons: lost.reasons,
            first: first.collect(),
        };
        self.report = Some((changes, Instant::now(), report.clone()));
        Ok(report)
    }

    /// Notes new ones in the job's log.
    pub(super) fn tell(&mut self, replica: &mut Replica, store: &LedgerStore, log: &JobLog) {
        if !replica.has_new_losses() {
            return;
        }
        let lost = store
            .read()
            .map_err(TargetError::from)
            .and_then(|view| Ok(replica.take_lost(&view)?));
        let lost = match lost {
            Ok(lost) => lost,
            Err(error) => {
                tracing::debug!(%error, "the loss report cannot be read");
                return;
            }
        };
        for (path, losses) in lost {
            if self.told >= TOLD_MAX {
                return;
            }
            self.told += 1;
            let mut path = path.to_string();
            shorten(&mut path);
            let reasons: Vec<&str> = losses.iter().map(|loss| loss.text()).collect();
            log.note(format!("{path} is not held whole: {}", reasons.join("; ")));
            if self.told == TOLD_MAX {
                log.note("more files are not held whole: job status counts them");
            }
        }
    }
}
