//! What lies beside a root and must not be touched, and somebody who watches it.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{XattrFlags, lsetxattr};
use rustix::io::Errno;

/// What the files outside say, and an attribute of theirs: found nowhere else afterwards.
const SECRET: &[u8] = b"only the owner of this may read it";
/// A name that nothing inside has.
const OWN_NAME: &str = "only-outside";

/// The folders that have the names of those inside.
const FOLDERS: [&str; 4] = ["", "a", "a/b", "a/b/c"];

/// One entry as it must stay. Where others make links to it, its change time and its number of
/// names are left out.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    changed: Option<(i64, i64, u64)>,
    content: Vec<u8>,
}

/// A tree of root's with the names of the tree inside.
pub(super) struct Outside {
    top: PathBuf,
    before: BTreeMap<PathBuf, Entry>,
    watch: OwnedFd,
}

impl Outside {
    /// Makes `outside` in a folder, and watches every folder and file of it: nobody who attacks
    /// opens anything there, so whoever does is an agent. `outside/linked` is for the attackers'
    /// hard links, and is only compared.
    pub(super) fn new(beside: &Path) -> Self {
        let top = beside.join("outside");
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for folder in FOLDERS {
            fs::create_dir_all(top.join(folder)).unwrap();
            for file in ["f", "g", OWN_NAME] {
                secret(&top.join(folder).join(file));
            }
        }
        fs::create_dir(top.join("linked")).unwrap();
        for file in ["f", "g"] {
            secret(&top.join("linked").join(file));
        }
        for (path, _) in snapshot(&top) {
            if !path.starts_with(top.join("linked")) {
                let all = WatchFlags::ALL_EVENTS | WatchFlags::DONT_FOLLOW;
                inotify::add_watch(&watch, &path, all).unwrap();
            }
        }
        let before = snapshot(&top);
        let outside = Self { top, before, watch };
        while !outside.events().is_empty() {}
        outside
    }

    /// Nobody opened, read, wrote or changed anything, and all is as it was.
    #[track_caller]
    pub(super) fn assert_untouched(&self) {
        let events = self.events();
        assert!(events.is_empty(), "somebody was outside: {events:#?}");
        let after = snapshot(&self.top);
        for path in self.before.keys().chain(after.keys()) {
            let (before, after) = (self.before.get(path), after.get(path));
            assert_eq!(before, after, "{} was touched", path.display());
        }
        // Looking at it was seen: the watch works.
        assert!(!self.events().is_empty(), "nobody watches");
    }

    fn events(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        let mut events = Vec::new();
        while events.len() < 50 {
            match reader.next() {
                Ok(event) => events.push(format!("{:?} {:?}", event.events(), event.file_name())),
                Err(Errno::AGAIN) => break,
                Err(error) => panic!("{error}"),
            }
        }
        events
    }
}

fn secret(path: &Path) {
    fs::write(path, SECRET).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    // Not every filesystem has them.
    let _ = lsetxattr(path, "user.secret", SECRET, XattrFlags::empty());
}

fn snapshot(top: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    each(top, &mut |path, meta| {
        let linked = path.starts_with(top.join("linked")) && meta.is_file();
        let changed = (meta.ctime(), meta.ctime_nsec(), meta.nlink());
        let content = if meta.is_file() {
            fs::read(path).unwrap()
        } else {
            Vec::new()
        };
        let entry = Entry {
            inode: meta.ino(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            changed: (!linked).then_some(changed),
            content,
        };
        found.insert(path.to_owned(), entry);
    });
    found
}

fn each(top: &Path, look: &mut impl FnMut(&Path, &fs::Metadata)) {
    let mut paths = vec![top.to_owned()];
    while let Some(path) = paths.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        look(&path, &meta);
    }
}

impl Outside {
    /// Nothing below `inside` holds the secret, has it as an attribute, or has a name that is only
    /// outside. The files themselves may be there, by links of the attackers' making.
    #[track_caller]
    pub(super) fn assert_not_in(&self, inside: &Path) {
        let linked = |meta: &fs::Metadata| self.before.values().any(|e| e.inode == meta.ino());
        each(inside, &mut |path, meta| {
            assert!(!path.ends_with(OWN_NAME), "{} came in", path.display());
            if !meta.is_file() || linked(meta) {
                return;
            }
            let mut value = [0_u8; 256];
            let length = rustix::fs::lgetxattr(path, "user.secret", &mut value).unwrap_or(0);
            let content = fs::read(path).unwrap();
            let held = content.windows(SECRET.len()).any(|w| w == SECRET);
            assert!(
                !held && &value[..length] != SECRET,
                "the secret came to {}",
                path.display()
            );
        });
    }
}
