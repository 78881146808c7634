//! The master's folder: what lies in it, and how it is written.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cdsync_transport::{make_private_folder, write_private};

use super::MasterError;

/// More than any of the small files needs.
const SMALL_MAX_BYTES: u64 = 64 * 1024;

/// The paths in a master's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration; written last by `init`, so that it also says that all else is there.
    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("master.toml")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("master.redb")
    }

    pub(crate) fn owner_token(&self) -> PathBuf {
        self.path.join("owner.token")
    }

    /// Where the API really listens: the port is chosen by the system when 0 was asked for.
    pub(crate) fn http_address(&self) -> PathBuf {
        self.path.join("http.addr")
    }

    /// The master's own key and certificate.
    pub(crate) fn node(&self) -> PathBuf {
        self.path.join("node")
    }

    /// Makes the folder, durably and for its owner alone.
    pub(crate) fn create(&self) -> Result<(), MasterError> {
        make_private_folder(&self.path).map_err(|source| self.failed(&self.path, source))
    }

    /// Reads a small file.
    pub(crate) fn read(&self, path: &Path) -> Result<String, MasterError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(SMALL_MAX_BYTES).read_to_string(&mut text))
            .map_err(|source| self.failed(path, source))?;
        Ok(text)
    }

    /// Writes a small file whole, durably and for its owner alone.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), MasterError> {
        write_private(path, text.as_bytes()).map_err(|source| self.failed(path, source))
    }

    fn failed(&self, path: &Path, source: io::Error) -> MasterError {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound && path == self.config() {
            return MasterError::NotInitialised {
                folder: self.path.clone(),
            };
        }
        MasterError::File { path, source }
    }
}
