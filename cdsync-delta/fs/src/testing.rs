//! What the tests share.

use std::path::{Path, PathBuf};

use cdsync_core::ids::{ObjectId, OriginId};
use cdsync_core::ledger::object::{Identity, Metadata, Observed};
use cdsync_core::ledger::xattrs::Xattrs;
use cdsync_core::path::{Name, RelPath};
use cdsync_core::time::Timestamp;

use crate::dir::{Dir, DirRef, LookWants, Root};

/// A folder of its own with a root in it, `outside` beside it, removed at the end.
pub(crate) struct Place {
    pub(crate) base: tempfile::TempDir,
    pub(crate) root: Root,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// On a filesystem that is quiet, where there is one: watchers see all of it.
    pub(crate) fn quiet() -> Self {
        let shared = Path::new("/dev/shm");
        if shared.is_dir() {
            Self::within(shared)
        } else {
            Self::new()
        }
    }

    fn within(parent: &Path) -> Self {
        let base = tempfile::Builder::new()
            .prefix("cdsync-fs-")
            .tempdir_in(parent)
            .unwrap();
        std::fs::create_dir(base.path().join("root")).unwrap();
        std::fs::create_dir(base.path().join("outside")).unwrap();
        let root = Root::open(base.path(), &path("root")).unwrap();
        Self { base, root }
    }

    /// The system's path of something below the root.
    pub(crate) fn at(&self, below: &str) -> PathBuf {
        self.base.path().join("root").join(below)
    }

    pub(crate) fn write(&self, below: &str, bytes: &[u8]) {
        let path = self.at(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, below: &str) -> Vec<u8> {
        std::fs::read(self.at(below)).unwrap()
    }

    pub(crate) fn dir(&self, below: &str) -> std::sync::Arc<Dir> {
        self.root.dir(&dir_ref(77, below)).unwrap()
    }

    /// Folder and name of something below the root, opened without the cache.
    pub(crate) fn look(&self, below: &str) -> Option<Observed> {
        let (folder, last) = below.rsplit_once('/').unwrap_or(("", below));
        let dir = self.root.top().open_below(&path(folder)).unwrap();
        dir.look(&name(last), LookWants::HANDLE).unwrap()
    }

    pub(crate) fn identity(&self, below: &str) -> Identity {
        self.look(below).unwrap().fingerprint.identity
    }
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes().to_vec()).unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub(crate) fn dir_ref(number: u64, below: &str) -> DirRef {
    let id = ObjectId {
        origin: OriginId(1),
        number,
    };
    DirRef {
        id,
        path: path(below),
        identity: None,
    }
}

/// This process's own, with the given mode, at a time with nanoseconds.
pub(crate) fn meta(mode: u32) -> Metadata {
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let mtime = Timestamp {
        secs: 1_234_567_890,
        nanos: 123_456_789,
    };
    Metadata {
        mode,
        uid: own.0,
        gid: own.1,
        user: Vec::new(),
        group: Vec::new(),
        mtime,
        xattrs: Xattrs::NONE,
    }
}

/// Whether this process may do everything; says loudly when a test is skipped.
pub(crate) fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED, needs root: {what}");
    }
    root
}
