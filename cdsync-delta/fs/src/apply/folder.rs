//! Making folders.

use cdsync_core::ledger::object::{Kind, Metadata, Observed};
use cdsync_core::path::Name;

use super::{Applier, ApplyError, Displaced, random_name};
use crate::dir::{Applied, Dir, LookWants};
use crate::error::FsErrorKind;

/// How often a name is tried that others keep changing.
const ATTEMPTS: usize = 8;

/// What making a folder came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFolder {
    /// The folder, with its kernel handle.
    pub observed: Observed,
    /// Whether it was there already. Its metadata was not touched then.
    pub existed: bool,
    /// What it took the place of.
    pub displaced: Displaced,
    /// What setting its metadata came to.
    pub applied: Applied,
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
            match dir.make_folder(name, meta.mode & 0o777) {
                Ok(()) => return Self::made(dir, name, meta, Displaced::None),
                Err(error) if error.kind() != FsErrorKind::Exists => return Err(error.into()),
                Err(_) => {}
            }
            match dir.look(name, LookWants { handle: true })? {
                None => {}
                Some(observed) if observed.kind == Kind::Folder => {
                    let (displaced, applied) = (Displaced::None, Applied::default());
                    return Ok(MadeFolder {
                        observed,
                        existed: true,
                        displaced,
                        applied,
                    });
                }
                Some(_) => {
                    if let Some(displaced) = self.replace_by_folder(dir, name)? {
                        return Self::made(dir, name, meta, displaced);
                    }
                }
            }
        }
        Err(ApplyError::Contended {
            path: dir.path().join(name),
        })
    }

    /// Swaps a new folder in for what is at the name; `None` when it vanished meanwhile.
    fn replace_by_folder(&self, dir: &Dir, name: &Name) -> Result<Option<Displaced>, ApplyError> {
        let path = dir.path().join(name);
        let slot = self.trash_lock().slot(name)?;
        let temp = random_name()?;
        self.spare.make_folder(&temp, 0o700)?;
        match self.spare.exchange(&temp, dir, name) {
            Ok(()) => {
                self.spare.rename_new(&temp, &slot.folder, &slot.name)?;
                let kept = self.settle(&slot, None, &path)?;
                Ok(Some(Displaced::Foreign(Box::new(kept))))
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

    fn made(
        dir: &Dir,
        name: &Name,
        meta: &Metadata,
        displaced: Displaced,
    ) -> Result<MadeFolder, ApplyError> {
        let folder = dir.open_folder(name)?;
        let applied = folder.set_own_metadata(meta)?;
        let observed = folder.self_look()?;
        Ok(MadeFolder {
            observed,
            existed: false,
            displaced,
            applied,
        })
    }
}
