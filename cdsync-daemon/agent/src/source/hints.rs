//! From the watcher's thread to the engine's: a bounded buffer that never makes the watcher wait.

use std::sync::{Arc, Mutex, PoisonError};

use cdsync_core::coalescer::{FolderKey, Hint, What};
use cdsync_fs::{FolderRef, Gap, HintFlags, HintSink};

use super::Input;
use crate::mailbox::Mailbox;

/// How many hints wait at most; beyond it they collapse to a gap: the tree is compared instead.
const HINTS_MAX: usize = 65_536;

/// Hints not yet taken by the engine.
#[derive(Debug, Default)]
pub(super) struct HintBuffer(Mutex<Waiting>);

/// What the engine takes.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) hints: Vec<Hint>,
    /// Something was lost: compare everything.
    pub(super) gap: bool,
    /// The watcher ended.
    pub(super) ended: bool,
}

impl HintBuffer {
    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The watcher's side.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) buffer: Arc<HintBuffer>,
    pub(super) engine: Mailbox<Input>,
}

impl HintSink for Sink {
    fn hints(&mut self, batch: &[cdsync_fs::Hint]) {
        let mut waiting = self.buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.gap {
            return;
        }
        if waiting.hints.len() + batch.len() > HINTS_MAX {
            waiting.hints.clear();
            waiting.gap = true;
        } else {
            waiting.hints.extend(batch.iter().map(hint_of));
        }
        drop(waiting);
        self.engine.nudge(Input::Wake);
    }

    fn gap(&mut self, why: Gap) {
        if why == Gap::NotWatched {
            tracing::debug!("a folder came: the tree is compared");
        } else {
            tracing::warn!(?why, "the watcher lost hints: the tree is compared");
        }
        let mut waiting = self.buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.hints.clear();
        waiting.gap = true;
        waiting.ended |= why == Gap::Ended;
        drop(waiting);
        self.engine.nudge(Input::Wake);
    }
}

fn hint_of(hint: &cdsync_fs::Hint) -> Hint {
    let renamed = hint.renamed_to.as_ref();
    Hint {
        folder: key_of(&hint.folder),
        name: hint.name.clone(),
        what: what_of(hint.what, renamed.is_some()),
        partner: renamed.map(|(folder, name)| (key_of(folder), name.clone())),
    }
}

fn key_of(folder: &FolderRef) -> FolderKey {
    match folder {
        FolderRef::Handle(handle) => FolderKey::Handle(handle.clone()),
        FolderRef::Path(path) => FolderKey::Path(path.clone()),
    }
}

fn what_of(flags: HintFlags, renamed: bool) -> What {
    What {
        created: flags.created,
        written: flags.written,
        closed: flags.closed,
        at_once: flags.removed || flags.attributes || renamed,
        folder: flags.is_folder,
    }
}
