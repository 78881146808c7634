//! Publishing: a name shows the old thing or the new one, and what it showed before is looked at
//! after it is out of the way, so that nobody's last write is lost.

use cdsync_core::ledger::object::Observed;
use cdsync_core::path::{Name, RelPath};

use super::stage::Staged;
use super::{Applier, ApplyError, Expected, Trashed};
use crate::dir::{Dir, LookWants};
use crate::error::{FsError, FsErrorKind};

/// How often a name is tried that others keep changing.
const ATTEMPTS: usize = 16;

/// What had been at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Displaced {
    /// Nothing.
    None,
    /// What the caller expected; it is gone, or in the trash where that keeps what is replaced.
    Expected,
    /// Something else; it is in the trash.
    Foreign(Box<Trashed>),
}

/// What publishing came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The object at its name, with its final change time: what own looks will show from now on;
    /// and what it could not be given.
    pub observed: Observed,
    /// What it took the place of.
    pub displaced: Displaced,
}

impl Applier {
    /// Gives the staged object its name. `expect` is what the caller knows to be there: `None` for
    /// a new name. What is there in its stead is swapped out and kept in the trash.
    ///
    /// # Errors
    /// [`FsErrorKind::OtherFilesystem`] when the folder is mounted apart from `.cdsync`;
    /// [`ApplyError::Overtaken`] and [`ApplyError::Contended`] when others change the name at the
    /// same time (retryable); else what the system said. After an error look at the name again:
    /// the object may be published, and what it displaced wait in the spare folder, from where the
    /// next start brings it to the trash.
    pub fn publish(
        &self,
        staged: Staged,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
    ) -> Result<Published, ApplyError> {
        self.publish_with(staged, dir, name, expect, false)
    }

    /// As [`Applier::publish`], but what is there in the stead of what the caller expects stays,
    /// or is swapped back.
    ///
    /// # Errors
    /// [`ApplyError::Drifted`] then; else as there.
    pub fn publish_or_keep(
        &self,
        staged: Staged,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
    ) -> Result<Published, ApplyError> {
        self.publish_with(staged, dir, name, expect, true)
    }

    fn publish_with(
        &self,
        staged: Staged,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
        keep: bool,
    ) -> Result<Published, ApplyError> {
        if self.sync_each {
            staged.sync()?;
        }
        let published = self.publish_staged(staged, dir, name, expect, keep)?;
        if self.sync_each {
            self.sync_folder(dir)?;
        }
        Ok(published)
    }

    fn publish_staged(
        &self,
        staged: Staged,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
        keep: bool,
    ) -> Result<Published, ApplyError> {
        let drifted = || ApplyError::Drifted {
            path: dir.path().join(name),
        };
        let mut staged = staged;
        let mut swap = expect.is_some();
        for _ in 0..ATTEMPTS {
            let temp = &staged.temp;
            if !swap {
                match temp.folder.rename_new(&temp.name, dir, name) {
                    Ok(()) => {
                        staged.temp.disarm();
                        return Self::published(&staged, dir, name, Displaced::None);
                    }
                    Err(error) if error.kind() == FsErrorKind::Exists => {
                        self.refuse_alias(dir, name, None)?;
                        if keep {
                            return Err(drifted());
                        }
                    }
                    Err(error) => return Err(Self::refused(error, dir, name)),
                }
            }
            if swap {
                self.refuse_alias(dir, name, expect.map(|expect| expect.identity))?;
            }
            // What comes out of a swap may be another's: a start after a crash deletes what is
            // staged, but keeps what is in the spare folder.
            staged.temp.move_to(&self.spare)?;
            let temp = &staged.temp;
            match temp.folder.exchange(&temp.name, dir, name) {
                Ok(()) => {
                    if keep && Self::swap_back(&mut staged, dir, name, expect)? {
                        return Err(drifted());
                    }
                    let displaced = self.dispose(&mut staged, dir, name, expect)?;
                    return Self::published(&staged, dir, name, displaced);
                }
                // Somebody removed it: a new name after all.
                Err(error) if error.kind() == FsErrorKind::NotFound => swap = false,
                Err(error) if error.kind() == FsErrorKind::Unsupported => {
                    // No exchange on this filesystem: a moment without the name, nothing lost.
                    let path = dir.path().join(name);
                    let kept = self.trash(dir, name, expect, &path)?;
                    return self.publish_after(staged, dir, name, kept);
                }
                Err(error) => return Err(Self::refused(error, dir, name)),
            }
        }
        Err(ApplyError::Contended {
            path: dir.path().join(name),
        })
    }

    fn publish_after(
        &self,
        mut staged: Staged,
        dir: &Dir,
        name: &Name,
        kept: Option<Trashed>,
    ) -> Result<Published, ApplyError> {
        let temp = &staged.temp;
        match temp.folder.rename_new(&temp.name, dir, name) {
            Ok(()) => {}
            Err(error) if error.kind() == FsErrorKind::Exists => {
                return Err(ApplyError::Contended {
                    path: dir.path().join(name),
                });
            }
            Err(error) => return Err(Self::refused(error, dir, name)),
        }
        staged.temp.disarm();
        let displaced = match kept {
            None => Displaced::None,
            Some(kept) => Displaced::Foreign(Box::new(kept)),
        };
        Self::published(&staged, dir, name, displaced)
    }

    /// Swaps back what came out of the exchange if it is not what was expected; says whether.
    fn swap_back(
        staged: &mut Staged,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
    ) -> Result<bool, FsError> {
        staged.temp.disarm();
        let (folder, temp) = (&staged.temp.folder, &staged.temp.name);
        let out = folder.look_existing(temp)?;
        if expect.is_none_or(|e| e.is_met_by(&out)) {
            return Ok(false);
        }
        folder.exchange(temp, dir, name)?;
        // Ours again, unless others were at the name meanwhile: the next start keeps that.
        let back = folder.look_existing(temp)?;
        if back.fingerprint.identity == staged.identity {
            folder.unlink(temp)?;
        }
        Ok(true)
    }

    /// Looks at what came out of the exchange, which is now under the staged name.
    fn dispose(
        &self,
        staged: &mut Staged,
        dir: &Dir,
        name: &Name,
        expect: Option<Expected>,
    ) -> Result<Displaced, ApplyError> {
        // From here on the staged name holds what may be another's: never removed unseen.
        staged.temp.disarm();
        let (folder, temp) = (&staged.temp.folder, &staged.temp.name);
        let out = folder.look_existing(temp)?;
        let expected = expect.is_some_and(|e| e.is_met_by(&out));
        if expected && !self.keep_replaced && folder.unlink(temp).is_ok() {
            return Ok(Displaced::Expected);
        }
        let path = dir.path().join(name);
        match self.keep(staged, name, expect, &path) {
            // As everything else in the trash when the disk is full: it goes before its time. An
            // error would say that nothing was published.
            Err(ApplyError::Fs(error)) if expected && error.is_disk_full() => {
                match folder.unlink(temp) {
                    Err(error) if error.kind() != FsErrorKind::NotFound => {
                        tracing::warn!(%error, "what was replaced stays in the spare folder");
                    }
                    _ => {}
                }
                Ok(Displaced::Expected)
            }
            Ok(_) if expected => Ok(Displaced::Expected),
            Ok(kept) => Ok(Displaced::Foreign(Box::new(kept))),
            Err(error) => Err(error),
        }
    }

    /// Moves what came out of the exchange to the trash.
    fn keep(
        &self,
        staged: &Staged,
        name: &Name,
        expect: Option<Expected>,
        path: &RelPath,
    ) -> Result<Trashed, ApplyError> {
        let slot = self.trash_lock().slot(name)?;
        let temp = &staged.temp;
        temp.folder
            .rename_new(&temp.name, &slot.folder, &slot.name)?;
        self.settle(&slot, expect, path)
    }

    fn published(
        staged: &Staged,
        dir: &Dir,
        name: &Name,
        displaced: Displaced,
    ) -> Result<Published, ApplyError> {
        let overtaken = || ApplyError::Overtaken {
            path: dir.path().join(name),
        };
        let mut observed = match staged.observe() {
            Some(observed) => observed.map_err(|e| FsError::at("look at", dir.path(), name, e))?,
            None => dir
                .look(name, LookWants::default())?
                .ok_or_else(overtaken)?,
        };
        // A file that lost its only name was replaced or removed by others already.
        if observed.link_count == 0 || observed.fingerprint.identity != staged.identity {
            return Err(overtaken());
        }
        observed.losses = staged.applied().losses;
        Ok(Published {
            observed,
            displaced,
        })
    }

    /// A rename that crosses mounts says nothing about where the fault is; say it.
    pub(super) fn refused(error: FsError, dir: &Dir, name: &Name) -> ApplyError {
        if error.kind() == FsErrorKind::OtherFilesystem {
            let path: RelPath = dir.path().join(name);
            let what = "publish from '.cdsync' (the folder is mounted apart from it)";
            return FsError::of_kind(FsErrorKind::OtherFilesystem, what, path).into();
        }
        error.into()
    }
}
