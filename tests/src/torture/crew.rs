//! The threads that work in a source, and stop together when asked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::whole::Writer;
use super::work::Worker;
use crate::random::Random;
use crate::wait::wait_until;

/// Between two changes of one worker, at most.
const PAUSE_MICROS: u64 = 20_000;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    resting: AtomicBool,
    /// How many rest.
    idle: AtomicUsize,
    done: AtomicUsize,
}

/// The workers, and the writer of whole versions. They rest until told to work.
#[derive(Debug)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(super) fn new(source: &Path, seed: u64, workers: u64, links: bool) -> Self {
        let shared = Arc::new(Shared::default());
        shared.resting.store(true, Ordering::SeqCst);
        let mut threads = Vec::new();
        for number in 1..=workers {
            let random = Random::new(seed ^ (number << 40));
            let mut worker = Worker::new(source.join("work"), random.clone(), links);
            threads.push(start(&shared, random, move |resting| match resting {
                true => worker.let_go(),
                false => worker.act(),
            }));
        }
        let random = Random::new(!seed);
        let mut writer = Writer::new(&source.join("whole"), random.clone());
        threads.push(start(&shared, random, move |resting| {
            if !resting {
                writer.act();
            }
        }));
        Self { shared, threads }
    }

    /// How many changes were tried.
    pub(super) fn count(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    pub(super) fn work(&self) {
        self.shared.resting.store(false, Ordering::SeqCst);
    }

    /// Returns when nobody does anything, and nothing is held open.
    pub(super) fn rest(&self) {
        self.shared.resting.store(true, Ordering::SeqCst);
        wait_until(Duration::from_secs(30), "the workers rest", || {
            self.shared.idle.load(Ordering::SeqCst) == self.threads.len()
        });
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a worker panicked"
            );
        }
    }
}

fn start(
    shared: &Arc<Shared>,
    mut random: Random,
    mut act: impl FnMut(bool) + Send + 'static,
) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        while !shared.stop.load(Ordering::SeqCst) {
            if shared.resting.load(Ordering::SeqCst) {
                act(true);
                shared.idle.fetch_add(1, Ordering::SeqCst);
                while shared.resting.load(Ordering::SeqCst) && !shared.stop.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                shared.idle.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            act(false);
            shared.done.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(random.below(PAUSE_MICROS)));
        }
    })
}
