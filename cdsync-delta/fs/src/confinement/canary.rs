use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::testing::Place;

/// What the files outside say: found nowhere else afterwards.
pub(super) const SECRET: &[u8] = b"only the owner of this may read it";

/// One entry as it must stay. Its change time and number of names are left out where links to it
/// are made.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    changed: Option<(i64, i64, u64)>,
    content: Vec<u8>,
}

/// A tree outside of the root which has all the names that the tree inside has.
#[derive(Debug)]
pub(super) struct Canary {
    top: PathBuf,
    linked: bool,
    before: BTreeMap<PathBuf, Entry>,
}

impl Canary {
    /// Makes `outside/a/b/c`, each with files `f` and `g` of mode 0600, and remembers it.
    /// `linked`: others will make links to its files.
    pub(super) fn new(place: &Place, linked: bool) -> Self {
        let top = place.base.path().join("outside");
        for folder in ["", "a", "a/b", "a/b/c"] {
            std::fs::create_dir_all(top.join(folder)).unwrap();
            for file in ["f", "g"] {
                let path = top.join(folder).join(file);
                std::fs::write(&path, SECRET).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            }
        }
        let before = snapshot(&top, linked);
        Self {
            top,
            linked,
            before,
        }
    }

    pub(super) fn at(&self, below: &str) -> PathBuf {
        self.top.join(below)
    }

    /// It is as it was, in every entry, byte, inode, mode, owner and time.
    #[track_caller]
    pub(super) fn assert_whole(&self) {
        let after = snapshot(&self.top, self.linked);
        for path in self.before.keys().chain(after.keys()) {
            let (before, after) = (self.before.get(path), after.get(path));
            assert_eq!(before, after, "{} was touched", path.display());
        }
    }
}

fn snapshot(top: &Path, linked: bool) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut paths = vec![top.to_owned()];
    while let Some(path) = paths.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if meta.is_dir() {
            paths.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.is_file() {
            content = std::fs::read(&path).unwrap();
        }
        let changed = (meta.ctime(), meta.ctime_nsec(), meta.nlink());
        let entry = Entry {
            inode: meta.ino(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            changed: (!linked || meta.is_dir()).then_some(changed),
            content,
        };
        found.insert(path, entry);
    }
    found
}

/// Nothing below `top`, `.cdsync` included, holds the secret.
#[track_caller]
pub(super) fn assert_not_in(top: &Path) {
    for (path, entry) in snapshot(top, false) {
        let held = entry.content.windows(SECRET.len()).any(|w| w == SECRET);
        assert!(!held, "the secret came to {}", path.display());
    }
}
