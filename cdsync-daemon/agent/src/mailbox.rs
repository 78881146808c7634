//! Bounded inboxes of engine threads, fed from threads and tasks.

use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;

/// How many inputs wait at most. Each kind is bounded more tightly by its own sender (credit, one
/// answer for one question); this only keeps a mistake from growing.
const CAPACITY: usize = 4096;

/// How long a task waits before it tries a full inbox again.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// The sending end.
#[derive(Debug)]
pub(crate) struct Mailbox<T>(SyncSender<T>);

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The engine is gone; what was sent is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl<T> Mailbox<T> {
    pub(crate) fn new() -> (Self, Receiver<T>) {
        let (sender, receiver) = mpsc::sync_channel(CAPACITY);
        (Self(sender), receiver)
    }

    /// Sends from a thread, waiting while the inbox is full.
    pub(crate) fn send(&self, input: T) -> Result<(), Gone> {
        self.0.send(input).map_err(|_| Gone)
    }

    /// Sends a nudge: a full inbox is nudge enough.
    pub(crate) fn nudge(&self, input: T) {
        // Whoever reads the inbox looks at everything anyway.
        drop(self.0.try_send(input));
    }

    /// Sends from a task. Cancel safety: a dropped call sent nothing.
    pub(crate) async fn deliver(&self, mut input: T) -> Result<(), Gone> {
        loop {
            match self.0.try_send(input) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(Gone),
                Err(TrySendError::Full(back)) => input = back,
            }
            tokio::time::sleep(FULL_WAIT).await;
        }
    }
}
