//! Making folders.

use std::sync::Arc;

use cdsync_core::ledger::object::{Kind, Metadata, Observed};
use cdsync_core::path::Name;

use super::{Applier, ApplyError, Displaced, Stager, make_private, random_name};
use crate::dir::{Dir, LookWants};
use crate::error::{FsError, FsErrorKind};

/// How often a name is tried that others keep changing.
const ATTEMPTS: usize = 8;

/// What making a folder came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFolder {
    /// The folder, with its kernel handle and what it could not be given.
    pub observed: Observed,
    /// Whether it was there already. Its metadata was not touched then.
    pub existed: bool,
    /// What it took the place of.
    pub displaced: Displaced,
}

impl Applier {
    /// Makes a folder with its metadata. A folder that is already there is adopted as it is;
    /// anything else is swapped out and kept in the trash. Writing into the folder changes its
    /// time: set it again when its content is complete.
    ///
    /// # Errors
    /// [`ApplyError::Contended`] when others keep changing the name; else what the system said.
    pub fn make_folder(
        &self,
        dir: &Dir,
        name: &Name,
        meta: &Metadata,
    ) -> Result<MadeFolder, ApplyError> {
        for _ in 0..ATTEMPTS {
            let made = match dir.look(name, LookWants::HANDLE)? {
                Some(observed) if observed.kind == Kind::Folder => {
                    self.refuse_own(&observed, dir, name)?;
                    self.refuse_alias(dir, name, None)?;
                    return Ok(MadeFolder {
                        observed,
                        existed: true,
                        displaced: Displaced::None,
                    });
                }
                None => self.new_folder(dir, name)?,
                Some(_) => {
                    self.refuse_alias(dir, name, None)?;
                    self.replace_by_folder(dir, name)?
                }
            };
            if let Some((folder, displaced)) = made {
                // By the handle that made it: by now the name may be another's.
                let applied = folder.set_own_metadata(meta)?;
                let mut observed = folder.self_look()?;
                observed.losses = applied.losses;
                return Ok(MadeFolder {
                    observed,
                    existed: false,
                    displaced,
                });
            }
        }
        Err(ApplyError::Contended {
            path: dir.path().join(name),
        })
    }

    /// What is CDSync's own is never taken for a folder of the job, wherever it was moved.
    fn refuse_own(&self, found: &Observed, dir: &Dir, name: &Name) -> Result<(), FsError> {
        if !self.own.contains(&found.fingerprint.identity) {
            return Ok(());
        }
        let path = dir.path().join(name);
        Err(FsError::of_kind(FsErrorKind::Reserved, "make folder", path))
    }

    /// Makes a folder aside and gives it its name; `None` when that was taken meanwhile.
    fn new_folder(
        &self,
        dir: &Dir,
        name: &Name,
    ) -> Result<Option<(Arc<Dir>, Displaced)>, ApplyError> {
        let folder = Stager::new(Arc::clone(&self.stage)).whole_folder()?;
        let made = Arc::clone(folder.dir());
        match self.publish_folder(folder, dir, name) {
            Ok(()) => Ok(Some((made, Displaced::None))),
            Err(ApplyError::Contended { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Swaps a new folder in for what is at the name; `None` when it vanished meanwhile.
    fn replace_by_folder(
        &self,
        dir: &Dir,
        name: &Name,
    ) -> Result<Option<(Arc<Dir>, Displaced)>, ApplyError> {
        let path = dir.path().join(name);
        let slot = self.trash_lock().slot(name)?;
        let temp = random_name()?;
        let made = make_private(&self.spare, &temp)?;
        match self.spare.exchange(&temp, dir, name) {
            Ok(()) => {
                self.spare.rename_new(&temp, &slot.folder, &slot.name)?;
                let kept = self.settle(&slot, None, &path)?;
                Ok(Some((made, Displaced::Foreign(Box::new(kept)))))
            }
            Err(error) => {
                self.spare.remove_folder(&temp)?;
                match error.kind() {
                    FsErrorKind::NotFound => Ok(None),
                    FsErrorKind::Unsupported => {
                        self.trash(dir, name, None, &path)?;
                        Ok(None)
                    }
                    _ => Err(error.into()),
                }
            }
        }
    }
}
