//! From the watcher's thread to the engine's: a bounded buffer that never makes the watcher wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use cdsync_core::coalescer::{FolderKey, Hint, What};
use cdsync_fs::{FolderRef, Gap, HintFlags, HintSink};

use super::Input;
use crate::mailbox::Mailbox;

/// Of how many folders hints may be lost at once, 60 bytes each or so. Beyond it the whole tree is
/// compared: what folders have in common is not known here.
const FOLDERS_MAX: usize = 4096;

/// How many objects are kept in mind then that were told without a folder, 100 bytes each or so.
const STRAYS_MAX: usize = 16_384;

/// What was told of an object by hints that were too many.
#[derive(Debug, Default)]
struct Stray {
    what: What,
    /// By one without a folder: nothing else leads to it.
    nowhere: bool,
}

/// Hints not yet taken by the engine.
#[derive(Debug)]
pub(super) struct HintBuffer {
    waiting: Mutex<Waiting>,
    /// How many hints wait at most; beyond it they collapse to gaps of their folders.
    hints_max: usize,
}

/// What the engine takes.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) hints: Vec<Hint>,
    /// Folders of which hints were lost.
    pub(super) folders: BTreeSet<FolderKey>,
    /// Nobody knows where something was lost: compare everything.
    pub(super) gap: bool,
    /// The watcher ended.
    pub(super) ended: bool,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.hints.is_empty() && self.folders.is_empty() && !self.gap
    }

    fn add(&mut self, batch: &[cdsync_fs::Hint], hints_max: usize) {
        if self.gap {
            return;
        }
        if self.hints.len() + batch.len() <= hints_max {
            self.hints.extend(batch.iter().map(hint_of));
            return;
        }
        let hints = std::mem::take(&mut self.hints);
        let mut strays: BTreeMap<Vec<u8>, Stray> = BTreeMap::new();
        for hint in hints.into_iter().chain(batch.iter().map(hint_of)) {
            let nowhere = hint.folder == FolderKey::Nowhere;
            if let Some(object) = hint.object {
                let stray = strays.entry(object).or_default();
                stray.what.merge(hint.what);
                stray.nowhere |= nowhere;
            }
            if nowhere {
                continue;
            }
            self.folders.insert(hint.folder);
            self.folders.extend(hint.partner.map(|(folder, _)| folder));
            if self.folders.len() > FOLDERS_MAX {
                self.lose_all();
                return;
            }
        }
        if strays.len() > STRAYS_MAX {
            // The comparison of their folders finds most of the others.
            strays.retain(|_, stray| stray.nowhere);
        }
        if strays.len() > STRAYS_MAX {
            self.lose_all();
            return;
        }
        self.hints
            .extend(strays.into_iter().map(|(object, stray)| Hint {
                folder: FolderKey::Nowhere,
                name: None,
                what: stray.what,
                partner: None,
                object: Some(object),
            }));
    }

    fn lose_all(&mut self) {
        self.hints.clear();
        self.folders.clear();
        self.gap = true;
    }
}

impl HintBuffer {
    pub(super) fn new(hints_max: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            hints_max,
        }
    }

    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // Consistent between any two statements that may panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.buffer.lock().add(batch, self.buffer.hints_max);
        self.engine.nudge(Input::Wake);
    }

    fn gap(&mut self, why: Gap) {
        if why == Gap::NotWatched {
            tracing::debug!("a folder came: the tree is compared");
        } else {
            tracing::warn!(?why, "the watcher lost hints: the tree is compared");
        }
        let mut waiting = self.buffer.lock();
        waiting.lose_all();
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
        object: hint.object.clone(),
    }
}

fn key_of(folder: &FolderRef) -> FolderKey {
    match folder {
        FolderRef::Handle(handle) => FolderKey::Handle(handle.clone()),
        FolderRef::Path(path) => FolderKey::Path(path.clone()),
        FolderRef::Nowhere => FolderKey::Nowhere,
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

#[cfg(test)]
mod tests {
    use cdsync_core::path::Name;

    use super::*;

    fn hints(folders: std::ops::Range<usize>) -> Vec<cdsync_fs::Hint> {
        let hint = |n: usize| cdsync_fs::Hint {
            folder: FolderRef::Handle(n.to_le_bytes().to_vec()),
            name: Name::new(b"x").ok(),
            what: HintFlags::default(),
            pid: 0,
            renamed_to: None,
            object: None,
        };
        folders.map(hint).collect()
    }

    /// Proves that hints beyond the limit collapse to their folders, both ends of a rename, that
    /// later ones are kept again, and that too many folders are a gap of everything.
    #[test]
    fn hints_collapse_to_folders() {
        let mut waiting = Waiting::default();
        waiting.add(&hints(0..3), 3);
        assert_eq!((waiting.hints.len(), waiting.folders.len()), (3, 0));
        let mut renamed = hints(3..4);
        let to = FolderRef::Handle(b"to".to_vec());
        renamed[0].renamed_to = Some((to, Name::new(b"y").unwrap()));
        waiting.add(&renamed, 3);
        assert_eq!((waiting.hints.len(), waiting.folders.len()), (0, 5));
        waiting.add(&hints(0..2), 3);
        assert_eq!((waiting.hints.len(), waiting.folders.len()), (2, 5));
        assert!(!waiting.gap);
        waiting.add(&hints(10..11 + FOLDERS_MAX), 3);
        assert!(waiting.gap && waiting.hints.is_empty() && waiting.folders.is_empty());
        waiting.add(&hints(0..2), 3);
        assert!(waiting.hints.is_empty(), "all of it is compared anyway");
    }

    /// Proves that objects are kept in mind when hints collapse, each once with all that was told of
    /// it, and that too many of those to which nothing else leads are a gap of everything.
    #[test]
    fn hints_of_objects_are_kept() {
        let stray = |n: usize| cdsync_fs::Hint {
            folder: FolderRef::Nowhere,
            name: None,
            object: Some(n.to_le_bytes().to_vec()),
            ..hints(0..1).remove(0)
        };
        let mut waiting = Waiting::default();
        waiting.add(&[stray(1), stray(2), stray(1)], 5);
        waiting.add(&hints(0..3), 5);
        assert_eq!((waiting.hints.len(), waiting.folders.len()), (2, 3));
        let mut named = hints(7..8);
        named[0].object = Some(b"by a name".to_vec());
        named[0].what.written = true;
        let mut again = named[0].clone();
        again.what = HintFlags::default();
        waiting.add(&[named.remove(0), again, stray(3), stray(4)], 5);
        assert_eq!((waiting.hints.len(), waiting.folders.len()), (5, 4));
        assert!(waiting.hints.iter().any(|hint| hint.what.written));
        let many: Vec<_> = (5..5 + STRAYS_MAX).map(stray).collect();
        waiting.add(&many, 5);
        assert!(waiting.gap && waiting.hints.is_empty());
    }
}
