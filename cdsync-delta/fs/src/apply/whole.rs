//! New folders that are made with what is in them before anybody sees them.
//!
//! What is written into such a folder needs no name of its own beside the one that it will have, and
//! no rename: a copy of a whole tree is cheaper by a rename for nearly every file.

use std::os::fd::AsFd;
use std::sync::Arc;

use cdsync_core::ledger::object::{Metadata, Observed};
use cdsync_core::path::Name;

use super::stage::remove_tree;
use super::{Applier, ApplyError, Stager, random_name, write_whole};
use crate::dir::{Dir, apply_to_new};
use crate::error::{FsError, FsErrorKind};

/// How deep new folders are made within each other at most: what a crash leaves of them is removed
/// with a handle open for each.
pub const WHOLE_DEPTH_MAX: usize = 16;

/// A new folder on its way. Dropping it removes it, with everything in it.
#[derive(Debug)]
#[must_use]
pub struct WholeFolder {
    stage: Arc<Dir>,
    name: Name,
    folder: Arc<Dir>,
    armed: bool,
}

impl WholeFolder {
    /// The folder, to be filled. Nobody else enters it.
    #[must_use]
    pub fn dir(&self) -> &Arc<Dir> {
        &self.folder
    }
}

impl Drop for WholeFolder {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Err(error) = remove_tree(&self.stage, &self.name) {
            // The next start removes it.
            tracing::debug!(%error, "a staged folder stays behind");
        }
    }
}

impl Stager {
    /// Begins a folder.
    ///
    /// # Errors
    /// What the system said.
    pub fn whole_folder(&self) -> Result<WholeFolder, ApplyError> {
        let name = random_name()?;
        let folder = make_private(&self.folder, &name)?;
        Ok(WholeFolder {
            stage: Arc::clone(&self.folder),
            name,
            folder,
            armed: true,
        })
    }
}

/// Makes a folder that only its owner may enter, for what is made whole: its own metadata is set
/// when it is complete.
///
/// # Errors
/// [`FsErrorKind::Exists`] when the name is taken; else what the system said.
pub fn make_private(dir: &Dir, name: &Name) -> Result<Arc<Dir>, FsError> {
    dir.make_folder(name, 0o700)?;
    Ok(Arc::new(dir.open_folder(name)?))
}

/// Writes a new file into a folder that nobody sees yet.
///
/// # Errors
/// [`FsErrorKind::Exists`] when the name is taken; else what the system said, and a part of the
/// file may be there: it is to be removed, or the folder not to be published.
pub fn write_unseen(
    dir: &Dir,
    name: &Name,
    bytes: &[u8],
    meta: &Metadata,
) -> Result<Observed, FsError> {
    let file = dir.create_exclusive(name, meta.mode & 0o777)?;
    write_whole(&file, bytes)
        .and_then(|()| apply_to_new(file.as_fd(), meta))
        .map_err(|errno| FsError::at("write", dir.path(), name, errno))
}

impl Applier {
    /// Gives a folder its name, which must be free.
    ///
    /// # Errors
    /// [`ApplyError::Contended`] when something came to the name meanwhile (retryable);
    /// [`FsErrorKind::OtherFilesystem`] when `dir` is mounted apart from `.cdsync`; else what the
    /// system said. The folder is removed then.
    pub fn publish_folder(
        &self,
        folder: WholeFolder,
        dir: &Dir,
        name: &Name,
    ) -> Result<(), ApplyError> {
        let mut folder = folder;
        match folder.stage.rename_new(&folder.name, dir, name) {
            Ok(()) => {
                folder.armed = false;
                Ok(())
            }
            Err(error) if error.kind() == FsErrorKind::Exists => Err(ApplyError::Contended {
                path: dir.path().join(name),
            }),
            Err(error) => Err(Self::refused(error, dir, name)),
        }
    }
}
