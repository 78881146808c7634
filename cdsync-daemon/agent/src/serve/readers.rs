//! The threads that read small content for batches.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Two: one reads while the other waits for the disk.
const THREADS: usize = 2;
/// Each subscription has one job waiting at most; this bounds what a burst of them may queue.
const QUEUE: usize = 256;

/// How long a subscription waits before it tries a full queue again.
const FULL_WAIT: Duration = Duration::from_millis(1);

type Job = Box<dyn FnOnce() + Send>;

/// A handle on the reader threads; they end when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Readers(SyncSender<Job>);

impl Readers {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<Job>(QUEUE);
        let receiver = Arc::new(Mutex::new(receiver));
        for n in 0..THREADS {
            let receiver = Arc::clone(&receiver);
            std::thread::Builder::new()
                .name(format!("read-{n}"))
                .spawn(move || while run_one(&receiver) {})?;
        }
        Ok(Self(sender))
    }

    /// Runs `job` on a reader thread, waiting for a place in their queue. `None` when they are gone
    /// or the job panicked.
    /// Cancel safety: a dropped call still runs the job; its result is lost.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, result) = oneshot::channel();
        // The receiver may have been dropped: then nobody wants the result.
        let mut job: Job = Box::new(move || drop(reply.send(job())));
        loop {
            match self.0.try_send(job) {
                Ok(()) => return result.await.ok(),
                Err(TrySendError::Disconnected(_)) => return None,
                Err(TrySendError::Full(back)) => job = back,
            }
            tokio::time::sleep(FULL_WAIT).await;
        }
    }
}

fn run_one(receiver: &Mutex<Receiver<Job>>) -> bool {
    let next = receiver
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv();
    match next {
        Ok(job) => {
            // A panic ends one batch, whose subscription sees that nothing came, not the thread.
            if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("making a batch panicked");
            }
            true
        }
        Err(_) => false,
    }
}
