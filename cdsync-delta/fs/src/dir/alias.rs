//! Names that a filesystem takes for one though their bytes differ: by case, or by how an accented
//! letter is written.
//!
//! Only a listing says which of them a name really is.

use std::ops::ControlFlow;

use cdsync_core::ledger::object::Observed;
use cdsync_core::path::Name;
use rustix::io::Errno;

use super::{Dir, LookWants};
use crate::error::{FsError, FsErrorKind};

/// What `FS_IOC_GETFLAGS` says of a folder that takes no note of case (ext4, f2fs, tmpfs).
const CASEFOLD: u32 = 0x4000_0000;

/// Pairs of names that are one where case, or the form of a letter, does not count.
const PROBES: [(&str, &str); 2] = [("fold-a", "FOLD-A"), ("fold-\u{e9}", "fold-e\u{301}")];

impl Dir {
    /// Whether names that are not the same bytes may be one in this folder by its own flag.
    pub(crate) fn folds_case(&self) -> bool {
        *self.folding().get_or_init(|| {
            let asked = self.reopen().and_then(rustix::fs::ioctl_getflags);
            asked.is_ok_and(|flags| flags.bits() & CASEFOLD != 0)
        })
    }

    /// Whether that is so in a folder of our own, which tells it of its filesystem.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn probe_folding(&self) -> Result<bool, FsError> {
        for (made, asked) in PROBES {
            let name = |text: &str| {
                Name::new(text.as_bytes())
                    .map_err(|_| FsError::new("make", text.as_bytes(), Errno::INVAL))
            };
            let (made, asked) = (name(made)?, name(asked)?);
            match self.create_exclusive(&made, 0o600) {
                Err(error) if error.kind() != FsErrorKind::Exists => return Err(error),
                _ => {}
            }
            let found = self.look(&asked, LookWants::default());
            self.unlink(&made)?;
            // A filesystem that does not hold such a name does not take it for another.
            if matches!(found, Ok(Some(_))) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The name in this folder's listing of what `name` leads to, `None` where that is `name` itself.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn listed_instead(
        &self,
        name: &Name,
        found: &Observed,
    ) -> Result<Option<Name>, FsError> {
        let (mut is_listed, mut other) = (false, None);
        self.list_names(&mut |listed, _| {
            is_listed = listed == *name;
            match is_listed {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        if is_listed {
            return Ok(None);
        }
        self.list_names(&mut |listed, _| {
            let there = self.look(&listed, LookWants::default());
            let is_it = |seen: &Observed| seen.fingerprint.identity == found.fingerprint.identity;
            if matches!(there, Ok(Some(ref seen)) if is_it(seen)) {
                other = Some(listed);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(other)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Place, name};

    /// Proves that what a name leads to is known by its real name where that is another one, and
    /// that a further name of the same file is not mistaken for that.
    #[test]
    fn the_real_name_is_the_listed_one() {
        let place = Place::new();
        let top = place.root.top();
        place.write("README", b"one");
        std::fs::hard_link(place.at("README"), place.at("link")).unwrap();
        let found = place.look("README").unwrap();
        for listed in ["README", "link"] {
            assert_eq!(top.listed_instead(&name(listed), &found).unwrap(), None);
        }
        // As a filesystem would that finds it by another name as well.
        std::fs::remove_file(place.at("link")).unwrap();
        let other = top.listed_instead(&name("readme"), &found).unwrap();
        assert_eq!(other, Some(name("README")));
    }

    /// Proves that asking whether names fold leaves nothing behind, and that it is not so on a
    /// filesystem that keeps them apart.
    #[test]
    fn asking_leaves_nothing() {
        let place = Place::new();
        place.write("FOLD-A", b"another's");
        let top = place.root.top();
        if top.probe_folding().unwrap() {
            eprintln!("SKIPPED: the temporary folder's filesystem takes names for one");
            return;
        }
        assert!(!top.folds_case());
        assert_eq!(std::fs::read_dir(place.at("")).unwrap().count(), 1);
    }
}
