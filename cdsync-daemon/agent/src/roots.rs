//! The roots that this server's operator allowed.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cdsync_core::job::RootPath;
use cdsync_core::path::RelPath;
use cdsync_fs::{FsError, Root};
use thiserror::Error;

/// Why a root cannot be used.
#[derive(Debug, Error)]
pub(crate) enum RootError {
    /// The operator did not allow it. Not retryable.
    #[error(
        "{path} is not below any root that this server's operator allowed; \
         start the agent with --root for it"
    )]
    NotAllowed {
        /// The root.
        path: RootPath,
    },
    /// It cannot be opened. Retryable once it is there.
    #[error("cannot open the root {path}")]
    Open {
        /// The root.
        path: RootPath,
        /// What the system said.
        #[source]
        source: FsError,
    },
}

/// Opens a root at or below an allowed one. With `create`, missing folders below the allowed one
/// are made.
pub(crate) fn open(allowed: &[PathBuf], path: &RootPath, create: bool) -> Result<Root, RootError> {
    let (top, below) =
        find(allowed, path).ok_or_else(|| RootError::NotAllowed { path: path.clone() })?;
    let opened = if create {
        Root::create_below(top, &below)
    } else {
        Root::open(top, &below)
    };
    opened.map_err(|source| RootError::Open {
        path: path.clone(),
        source,
    })
}

fn find<'a>(allowed: &'a [PathBuf], path: &RootPath) -> Option<(&'a Path, RelPath)> {
    let wanted = Path::new(path.as_str());
    // The longest one, so that a mount below another allowed root is opened by itself.
    let top = allowed
        .iter()
        // A relative one would be looked for wherever the agent runs; an empty one is above all.
        .filter(|top| top.is_absolute() && wanted.starts_with(top))
        .max_by_key(|top| top.as_os_str().len())?;
    let below = wanted.strip_prefix(top).ok()?;
    let below = RelPath::new(below.as_os_str().as_bytes().to_vec()).ok()?;
    Some((top, below))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that only paths at or below an allowed root are found, by whole components.
    #[test]
    fn only_below_allowed_roots() {
        let allowed = [
            PathBuf::from("/srv"),
            PathBuf::from("/srv/big"),
            PathBuf::from("/data/x"),
        ];
        let found = |p: &str| {
            find(&allowed, &RootPath::new(p).unwrap())
                .map(|(top, below)| (top.to_owned(), below.to_string()))
        };
        assert_eq!(
            found("/srv/www"),
            Some((PathBuf::from("/srv"), "www".into()))
        );
        assert_eq!(found("/srv"), Some((PathBuf::from("/srv"), ".".into())));
        assert_eq!(
            found("/srv/big/a"),
            Some((PathBuf::from("/srv/big"), "a".into()))
        );
        assert_eq!(found("/srvx"), None);
        assert_eq!(found("/data"), None);
    }

    /// Proves that rules which say nothing allow nothing, and that no way up leads out of one.
    #[test]
    fn rules_do_not_fail_open() {
        let path = RootPath::new("/srv/www").unwrap();
        for allowed in ["", ".", "srv", "./srv"] {
            assert_eq!(find(&[PathBuf::from(allowed)], &path), None, "{allowed:?}");
        }
        assert_eq!(find(&[], &path), None);
        for up in ["/srv/../etc", "/srv/./www", "/srv//www/..", "srv"] {
            assert!(RootPath::new(up).is_err(), "{up}");
        }
    }
}
