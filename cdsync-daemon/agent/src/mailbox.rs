//! Bounded inboxes of engine threads, fed from threads and tasks.

use std::cell::Cell;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

/// How many inputs wait at most. Each kind is bounded more tightly by its own sender (credit, one
/// answer for one question); this only keeps a mistake from growing.
const CAPACITY: usize = 4096;

/// How long a task waits before it tries a full inbox again.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// The sending end.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    sender: SyncSender<(u64, T)>,
    /// The engine that it is for; zero for whichever runs.
    engine: u64,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            engine: self.engine,
        }
    }
}

/// The receiving end: engines take turns at it, and each gets only what is meant for it. What the
/// threads and tasks of an engine before still send (ends of listings and syncs, batches) is about
/// questions that nobody asks any more.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    receiver: Receiver<(u64, T)>,
    engine: Cell<u64>,
}

/// The engine is gone; what was sent is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl<T> Mailbox<T> {
    pub(crate) fn new() -> (Self, Inbox<T>) {
        let (sender, receiver) = mpsc::sync_channel(CAPACITY);
        let engine = Cell::new(0);
        (Self { sender, engine: 0 }, Inbox { receiver, engine })
    }

    /// The sending end for the engine that begins now; every other engine's is deaf from here on.
    pub(crate) fn begin(&self, inbox: &Inbox<T>) -> Self {
        let engine = inbox.engine.get() + 1;
        inbox.engine.set(engine);
        Self {
            sender: self.sender.clone(),
            engine,
        }
    }

    /// Sends from a thread, waiting while the inbox is full.
    pub(crate) fn send(&self, input: T) -> Result<(), Gone> {
        self.sender.send((self.engine, input)).map_err(|_| Gone)
    }

    /// Sends a nudge: a full inbox is nudge enough.
    pub(crate) fn nudge(&self, input: T) {
        // Whoever reads the inbox looks at everything anyway.
        drop(self.sender.try_send((self.engine, input)));
    }

    /// Sends from a task. Cancel safety: a dropped call sent nothing.
    pub(crate) async fn deliver(&self, mut input: T) -> Result<(), Gone> {
        loop {
            match self.sender.try_send((self.engine, input)) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(Gone),
                Err(TrySendError::Full((_, back))) => input = back,
            }
            tokio::time::sleep(FULL_WAIT).await;
        }
    }
}

impl<T> Inbox<T> {
    pub(crate) fn recv_timeout(&self, wait: Duration) -> Result<T, RecvTimeoutError> {
        let began = Instant::now();
        loop {
            let left = wait.saturating_sub(began.elapsed());
            let (engine, input) = self.receiver.recv_timeout(left)?;
            if self.is_current(engine) {
                return Ok(input);
            }
        }
    }

    /// The next input that is there already.
    pub(crate) fn try_recv(&self) -> Option<T> {
        loop {
            let (engine, input) = self.receiver.try_recv().ok()?;
            if self.is_current(engine) {
                return Some(input);
            }
        }
    }

    fn is_current(&self, engine: u64) -> bool {
        engine == 0 || engine == self.engine.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that an engine hears nothing that was meant for one before it, and everything else.
    #[test]
    fn engines_hear_only_what_is_theirs() {
        let (everyone, inbox) = Mailbox::new();
        let first = everyone.begin(&inbox);
        first.send("listed for the first").unwrap();
        everyone.send("stop").unwrap();
        let second = everyone.begin(&inbox);
        first.nudge("the end of it");
        second.send("listed for the second").unwrap();
        assert_eq!(inbox.try_recv(), Some("stop"));
        let wait = Duration::from_secs(5);
        assert_eq!(inbox.recv_timeout(wait), Ok("listed for the second"));
        assert_eq!(inbox.try_recv(), None);
    }
}
