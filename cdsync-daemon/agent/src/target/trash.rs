//! The thread that keeps a target's trash within its limits, beside the engine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cdsync_core::job::{OnDelete, Settings};
use cdsync_core::time::WallMillis;
use cdsync_core::wire::TrashReport;
use cdsync_fs::{Applier, TrashLimits};

use super::TargetError;
use crate::lease::LeaseClock;
use crate::source::chain;

/// How often the trash is looked at: for a trash within its limits that is a handful of calls.
const EVERY: Duration = Duration::from_secs(1);
/// How long it waits after each [`PACE_OPERATIONS`], so that others have the disk.
const PACE: Duration = Duration::from_millis(1);
const PACE_OPERATIONS: u32 = 64;

/// What a job's settings say of its trash.
pub(super) fn limits(settings: &Settings) -> TrashLimits {
    TrashLimits {
        age: Duration::from_millis(settings.trash.age_ms),
        percent: settings.trash.percent,
        bytes: settings.trash.bytes,
        erase: settings.on_delete == OnDelete::Erase,
    }
}

/// The thread. It ends, without being waited for, soon after this is dropped.
#[derive(Debug)]
pub(super) struct Cleaner {
    report: Arc<Mutex<TrashReport>>,
    stop: Arc<AtomicBool>,
    _alive: SyncSender<()>,
}

impl Cleaner {
    pub(super) fn start(
        applier: Arc<Applier>,
        clock: Arc<LeaseClock>,
        job: String,
    ) -> Result<Self, TargetError> {
        let (alive, ended) = sync_channel::<()>(0);
        let (report, stop) = <(Arc<Mutex<TrashReport>>, Arc<AtomicBool>)>::default();
        let (told, stopped) = (Arc::clone(&report), Arc::clone(&stop));
        let work = move || {
            loop {
                let found = turn(&applier, &clock, &stopped);
                if let Some(trouble) = &found.trouble {
                    tracing::debug!(job, trouble, "the trash");
                }
                if !stopped.load(Ordering::Relaxed) {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = found;
                }
                if ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("trash".into())
            .spawn(work)
            .map_err(TargetError::Thread)?;
        Ok(Self {
            report,
            stop,
            _alive: alive,
        })
    }

    /// What it last found.
    pub(super) fn report(&self) -> TrashReport {
        let report = self.report.lock();
        report.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn turn(applier: &Applier, clock: &LeaseClock, stop: &AtomicBool) -> TrashReport {
    let mut done = 0_u32;
    let mut pace = || {
        done = done.wrapping_add(1);
        if done.is_multiple_of(PACE_OPERATIONS) {
            std::thread::sleep(PACE);
        }
        !stop.load(Ordering::Relaxed)
    };
    let now = clock.trusted();
    let unsure = now.is_none().then(|| {
        "nothing is removed for its age: this server's clock jumped, or the master's has not \
         confirmed it"
            .to_owned()
    });
    match applier.tend_trash(now.map(|now| now.0 / 1000), &mut pace) {
        Ok(used) => TrashReport {
            entries: used.held.entries,
            bytes: used.held.bytes,
            oldest: used.oldest.map(|secs| WallMillis(secs * 1000)),
            trouble: unsure,
        },
        Err(error) => TrashReport {
            trouble: Some(chain(&error)),
            ..TrashReport::default()
        },
    }
}
