//! The second writer: a thread that takes over a part of a large step.
//!
//! It stays for as long as its disk: a thread made for each step costs as much as five files.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdsync_core::replica::{ApplyOp, ApplyResult};

use super::{Contents, Disk};

/// What operations came to, with their places in the step.
type Done = Vec<(usize, ApplyResult)>;

/// A part of a step, to be worked on by one writer.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) disk: Arc<Disk>,
    pub(super) ops: Arc<Vec<ApplyOp>>,
    pub(super) contents: Arc<Contents>,
    /// Which of the operations.
    pub(super) indexes: Vec<usize>,
    /// Whose staging folder is used.
    pub(super) stager: usize,
}

impl Shard {
    pub(super) fn work(&self) -> Done {
        let stager = &self.disk.stagers[self.stager];
        let one = |&at: &usize| (at, self.disk.one(&self.ops[at], &self.contents, stager));
        self.indexes.iter().map(one).collect()
    }
}

type Answer = Result<Done, Box<dyn Any + Send>>;

/// The thread, once a step was large enough for it. It ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Second(Mutex<Option<Thread>>);

#[derive(Debug)]
struct Thread {
    shards: SyncSender<Shard>,
    answers: Receiver<Answer>,
}

impl Second {
    /// Has `shard` done while `own` runs here. A panic there is a panic here: nothing of the step
    /// counts.
    pub(super) fn beside(&self, shard: Shard, own: impl FnOnce() -> Done) -> [Done; 2] {
        // Taken out, so that a panic leaves no answer behind for the next step.
        let Some(thread) = self.lock().take().or_else(start) else {
            return [own(), shard.work()];
        };
        if let Err(back) = thread.shards.send(shard) {
            return [own(), back.0.work()];
        }
        let own = own();
        let other = match thread.answers.recv() {
            Ok(Ok(other)) => other,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(gone) => panic!("the second writer is gone: {gone}"),
        };
        *self.lock() = Some(thread);
        [own, other]
    }

    fn lock(&self) -> MutexGuard<'_, Option<Thread>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None`: the system gives no thread now, and one writer does it all.
fn start() -> Option<Thread> {
    let (shards, inbox) = sync_channel::<Shard>(1);
    let (outbox, answers) = sync_channel::<Answer>(1);
    let work = move || {
        for shard in inbox {
            let answer = catch_unwind(AssertUnwindSafe(|| shard.work()));
            // Nothing of the step is held here once it is answered.
            drop(shard);
            if outbox.send(answer).is_err() {
                return;
            }
        }
    };
    let spawned = std::thread::Builder::new()
        .name("tgt-write".into())
        .spawn(work);
    match spawned {
        Ok(_) => Some(Thread { shards, answers }),
        Err(error) => {
            tracing::warn!(%error, "there is no thread for a second writer");
            None
        }
    }
}
