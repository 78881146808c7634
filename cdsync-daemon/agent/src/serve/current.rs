//! One subscription for each peer and job: a newer one takes the place of the one before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdsync_core::ids::{JobId, ServerId};
use tokio::sync::oneshot;

type Key = (ServerId, JobId);

#[derive(Debug, Default)]
struct Running {
    begun: u64,
    newest: BTreeMap<Key, (u64, oneshot::Sender<()>)>,
}

/// The running subscriptions of all peers.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Arc<Mutex<Running>>);

/// A running subscription.
#[derive(Debug)]
pub(super) struct Current {
    key: Key,
    number: u64,
    replaced: oneshot::Receiver<()>,
    running: Arc<Mutex<Running>>,
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscriptions {
    /// A subscription begins; the one before of the same peer and job is told to end.
    pub(super) fn begin(&self, peer: ServerId, job: JobId) -> Current {
        let (sender, replaced) = oneshot::channel();
        let mut running = lock(&self.0);
        running.begun += 1;
        let (key, number) = ((peer, job), running.begun);
        // Dropping the old sender is the word to end.
        running.newest.insert(key, (number, sender));
        drop(running);
        let running = Arc::clone(&self.0);
        Current {
            key,
            number,
            replaced,
            running,
        }
    }
}

impl Current {
    /// Waits until a newer one takes its place. Cancel safe.
    pub(super) async fn replaced(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _ = (&mut self.replaced).await;
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        let newest = running.newest.get(&self.key);
        if newest.is_some_and(|(number, _)| *number == self.number) {
            running.newest.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a newer subscription ends the older of the same peer and job, and no other, and
    /// that nothing is kept of those that ended.
    #[tokio::test]
    async fn the_newer_one_stays() {
        let all = Subscriptions::default();
        let mut first = all.begin(ServerId(1), JobId(1));
        let mut other_job = all.begin(ServerId(1), JobId(2));
        let mut other_peer = all.begin(ServerId(2), JobId(1));
        let mut second = all.begin(ServerId(1), JobId(1));
        first.replaced().await;
        drop(first);
        for stays in [&mut second, &mut other_job, &mut other_peer] {
            assert!(
                stays
                    .replaced
                    .try_recv()
                    .is_err_and(|e| e == oneshot::error::TryRecvError::Empty)
            );
        }
        drop((second, other_job, other_peer));
        assert!(lock(&all.0).newest.is_empty());
    }
}
