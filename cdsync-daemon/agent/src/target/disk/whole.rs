//! Folders that are new in a step and are made whole: with what the step has for them, before
//! anybody sees them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use cdsync_core::ids::ObjectId;
use cdsync_core::replica::{ApplyOp, ApplyResult, Body, Place};
use cdsync_fs::{ApplyError, Dir, LookWants, WHOLE_DEPTH_MAX, WholeFolder, make_private};

use super::{Disk, with};

/// From how many files on a folder is made whole: it costs a rename, each of them saves one.
const FILES_MIN: usize = 2;

/// So many folders of one step are made whole at most, or none: each has a handle open.
const FOLDERS_MAX: usize = 128;

/// The unseen folders of the step that is being applied.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    dirs: RwLock<HashMap<ObjectId, Arc<Dir>>>,
    /// Something half made could not be removed from one of them.
    spoilt: AtomicBool,
}

impl Unseen {
    pub(super) fn dir(&self, folder: ObjectId) -> Option<Arc<Dir>> {
        let dirs = self.dirs.read().ok()?;
        dirs.get(&folder).cloned()
    }

    /// None of them may be published.
    pub(super) fn spoil(&self) {
        self.spoilt.store(true, Ordering::Relaxed);
    }

    fn add(&self, folder: ObjectId, dir: Arc<Dir>) {
        if let Ok(mut dirs) = self.dirs.write() {
            dirs.insert(folder, dir);
        }
    }

    fn clear(&self) -> bool {
        if let Ok(mut dirs) = self.dirs.write() {
            dirs.clear();
        }
        self.spoilt.swap(false, Ordering::Relaxed)
    }
}

/// A step's folders that are made whole.
#[derive(Debug, Default)]
pub(super) struct WholeFolders {
    /// Those that are published, each with all that is below it.
    tops: Vec<Top>,
    /// Which of them each unseen folder is in.
    within: HashMap<ObjectId, usize>,
}

#[derive(Debug)]
struct Top {
    index: usize,
    folder: WholeFolder,
    /// The folders below it, by their places in the step.
    below: Vec<usize>,
}

/// Which folders of a step are made whole: those with some files in it, and all folders in them.
pub(super) fn choose(ops: &[ApplyOp]) -> HashSet<ObjectId> {
    let mut files: HashMap<ObjectId, usize> = HashMap::new();
    for op in ops {
        if let ApplyOp::WriteFile {
            at,
            body: Body::Inline(_),
            over: None,
            adopt: false,
            ..
        } = op
        {
            *files.entry(at.folder.id).or_default() += 1;
        }
    }
    let mut depths: HashMap<ObjectId, usize> = HashMap::new();
    for op in ops {
        let ApplyOp::MakeFolder { id, at, .. } = op else {
            continue;
        };
        let above = depths.get(&at.folder.id).copied();
        if above.is_some() || files.get(id).is_some_and(|n| *n >= FILES_MIN) {
            depths.insert(*id, above.unwrap_or(0) + 1);
        }
    }
    let is_deep = depths.values().any(|depth| *depth > WHOLE_DEPTH_MAX);
    if is_deep || depths.len() > FOLDERS_MAX {
        return HashSet::new();
    }
    depths.into_keys().collect()
}

impl Disk {
    /// Begins one of the folders that are made whole. `false`: its name is taken, so it cannot be.
    pub(super) fn begin_whole(
        &self,
        whole: &mut WholeFolders,
        index: usize,
        id: ObjectId,
        at: &Place,
    ) -> Result<bool, ApplyError> {
        if let Some(parent) = self.unseen.dir(at.folder.id) {
            let Some(&top) = whole.within.get(&at.folder.id) else {
                return Ok(false);
            };
            self.unseen.add(id, make_private(&parent, &at.name)?);
            whole.within.insert(id, top);
            whole.tops[top].below.push(index);
            return Ok(true);
        }
        if self
            .dir(at)?
            .look(&at.name, LookWants::default())?
            .is_some()
        {
            // It is taken over as it is, or moved out of the way.
            return Ok(false);
        }
        let folder = self.stagers[0].whole_folder()?;
        self.unseen.add(id, Arc::clone(folder.dir()));
        whole.within.insert(id, whole.tops.len());
        let below = Vec::new();
        whole.tops.push(Top {
            index,
            folder,
            below,
        });
        Ok(true)
    }

    /// Publishes what was made whole, and says in `results` what became of it.
    pub(super) fn end_whole(
        &self,
        whole: WholeFolders,
        ops: &[ApplyOp],
        results: &mut [Option<ApplyResult>],
    ) {
        let dirs = |index: usize| ops[index].object().and_then(|id| self.unseen.dir(id));
        let dirs: Vec<HashMap<usize, Arc<Dir>>> = whole
            .tops
            .iter()
            .map(|top| {
                let all = top.below.iter().chain([&top.index]);
                all.filter_map(|&at| Some((at, dirs(at)?))).collect()
            })
            .collect();
        let spoilt = self.unseen.clear();
        for (number, (top, dirs)) in whole.tops.into_iter().zip(dirs).enumerate() {
            let published = if spoilt {
                let path = top.folder.dir().path().clone();
                Err(ApplyError::Contended { path })
            } else {
                self.dress_whole(&dirs, ops)
                    .and_then(|()| self.publish_whole(top, ops))
            };
            match published {
                Ok(()) => {
                    for (at, dir) in dirs {
                        results[at] = Some(self.seen(&dir, &ops[at]));
                    }
                }
                Err(error) => {
                    let reason = crate::source::chain(&error);
                    let is_lost = |op: &ApplyOp| {
                        let of = |id: ObjectId| whole.within.get(&id) == Some(&number);
                        op.folder().is_some_and(of) || op.object().is_some_and(of)
                    };
                    let lost = ops.iter().zip(results.iter_mut());
                    for (_, result) in lost.filter(|(op, _)| is_lost(op)) {
                        *result = Some(ApplyResult::Failed(reason.clone()));
                    }
                }
            }
        }
    }

    /// Gives folders that are complete their own metadata, so that nobody meets them without. Not
    /// where it says that nobody may write: who may not write to a folder may not move it.
    fn dress_whole(
        &self,
        dirs: &HashMap<usize, Arc<Dir>>,
        ops: &[ApplyOp],
    ) -> Result<(), ApplyError> {
        for (&at, dir) in dirs {
            if let ApplyOp::MakeFolder { meta, .. } = &ops[at]
                && meta.mode & 0o200 != 0
            {
                // What it could not be given is told once it is looked at.
                let _ = dir.set_own_metadata(meta)?;
            }
        }
        Ok(())
    }

    fn publish_whole(&self, top: Top, ops: &[ApplyOp]) -> Result<(), ApplyError> {
        let ApplyOp::MakeFolder { at, .. } = &ops[top.index] else {
            return Ok(());
        };
        let dir = self.dir(at)?;
        self.applier.publish_folder(top.folder, &dir, &at.name)
    }

    /// What a published folder is, with the metadata that it may still lack.
    fn seen(&self, dir: &Dir, op: &ApplyOp) -> ApplyResult {
        let ApplyOp::MakeFolder { meta, .. } = op else {
            return ApplyResult::Done(Vec::new());
        };
        let looked = dir
            .set_own_metadata(meta)
            .and_then(|applied| Ok(vec![with(dir.self_look()?, applied)]));
        match looked {
            Ok(seen) => {
                self.note(&seen);
                ApplyResult::Done(seen)
            }
            Err(error) => ApplyResult::Failed(crate::source::chain(&error)),
        }
    }
}
