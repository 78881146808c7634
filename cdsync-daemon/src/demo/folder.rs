//! A folder that goes with the demo.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::{Failure, Result};
use crate::output::hint;

/// A temporary folder, removed when dropped.
pub(super) struct TempFolder(PathBuf);

impl TempFolder {
    /// Makes one for this process alone (mode 0700).
    pub(super) fn make() -> Result<Self> {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("cdsync-demo-{}-{}", std::process::id(), since.as_nanos());
        let path = std::env::temp_dir().join(name);
        // Fails where there is one already: nobody else can have prepared it.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Failure::machine(&e))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            hint(&format!("note: {} stays: {error}", self.0.display()));
        }
    }
}
