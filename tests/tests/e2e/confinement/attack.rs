//! Whoever owns a tree, and swaps every component of every path in it while others work there.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cdsync_tests::Random;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags, linkat, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Gid, Uid};

/// Who owns the trees.
pub(super) const OWNER: u32 = 65_534;

/// The folders whose paths are attacked, outermost first.
const FOLDERS: [&str; 3] = ["a", "a/b", "a/b/c"];
const FILES: [&str; 4] = ["a/f", "a/b/f", "a/b/c/f", "a/b/g"];

/// What is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attack {
    /// A folder becomes a link to the same names outside, vanishes, or changes places.
    Folders,
    /// A file becomes a link to the one outside, or vanishes.
    Files,
    /// A file is written anew: work for who carries it.
    Writes,
    /// A file becomes a second name of one outside: what the owner of a tree can do where
    /// `fs.protected_hardlinks` is off, and root always.
    HardLinks,
    /// A folder, or a file, is covered by a mount of what is outside. Only root can.
    Mounts,
    /// CDSync's own folder becomes a link to a folder outside, or another's.
    OwnFolder,
}

/// Attackers, each a thread with a user of its own.
pub(super) struct Attackers {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    tree: PathBuf,
}

impl Attackers {
    /// Begins all of these at `tree`; `outside` has the same names.
    pub(super) fn begin(tree: &Path, outside: &Path, attacks: &[Attack], seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let swaps = Arc::new(AtomicU64::new(0));
        let begin = |(number, &attack): (u64, &Attack)| {
            let mut one = Attacker {
                tree: tree.to_owned(),
                outside: outside.to_owned(),
                stop: Arc::clone(&stop),
                swaps: Arc::clone(&swaps),
                random: Random::new(seed ^ number),
            };
            std::thread::spawn(move || one.run(attack))
        };
        let threads = (1..).zip(attacks).map(begin).collect();
        let tree = tree.to_owned();
        Self {
            stop,
            swaps,
            threads,
            tree,
        }
    }

    /// Ends them all, takes away what they left, and makes the tree whole.
    pub(super) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let swaps = self.swaps.load(Ordering::Relaxed);
        eprintln!("{swaps} swaps");
        assert!(swaps >= 100, "nobody attacked");
        unmount_below(&self.tree);
        make_whole(&self.tree);
    }
}

/// Makes the tree that is attacked, and gives it to its owner.
pub(super) fn make_whole(tree: &Path) {
    let owned = |path: &Path| std::os::unix::fs::lchown(path, Some(OWNER), Some(OWNER)).unwrap();
    fs::create_dir_all(tree).unwrap();
    owned(tree);
    for entry in fs::read_dir(tree).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let left = name.starts_with("link-") || ["away", "other"].contains(&name.as_str());
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true if left => fs::remove_dir_all(&path).unwrap(),
            false if left => fs::remove_file(&path).unwrap(),
            _ => {}
        }
    }
    for folder in FOLDERS {
        let path = tree.join(folder);
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_dir()) {
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir_all(&path).unwrap();
        owned(&path);
    }
    for file in FILES {
        let path = tree.join(file);
        let _ = fs::remove_file(&path);
        fs::write(&path, "inside").unwrap();
        owned(&path);
    }
    // So that no burst of deletes is one that would empty the root.
    for number in 0..30 {
        let path = tree.join(format!("calm-{number}"));
        fs::write(&path, "calm").unwrap();
        owned(&path);
    }
}

struct Attacker {
    tree: PathBuf,
    outside: PathBuf,
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    random: Random,
}

impl Attacker {
    fn run(&mut self, attack: Attack) {
        if !matches!(attack, Attack::Mounts | Attack::HardLinks) {
            become_owner();
        }
        while !self.stop.load(Ordering::Relaxed) {
            match attack {
                Attack::Folders => self.swap_folder(),
                Attack::Files => self.swap_file(),
                Attack::Writes => self.write_file(),
                Attack::HardLinks => self.link_file(),
                Attack::Mounts => self.mount(),
                Attack::OwnFolder => self.swap_own(),
            }
        }
    }

    fn counted(&self, done: bool) {
        self.swaps.fetch_add(u64::from(done), Ordering::Relaxed);
    }

    fn rename(&self, from: &str, to: &str, how: RenameFlags) {
        let (from, to) = (self.tree.join(from), self.tree.join(to));
        self.counted(renameat_with(CWD, from, CWD, to, how).is_ok());
    }

    fn swap_folder(&mut self) {
        let folder = *self.random.pick(&FOLDERS);
        let link = format!("link-{}", folder.len());
        let _ = symlink(self.outside.join(folder), self.tree.join(&link));
        match self.random.below(3) {
            0 => {
                self.rename(folder, &link, RenameFlags::EXCHANGE);
                self.rename(folder, &link, RenameFlags::EXCHANGE);
            }
            1 => {
                self.rename(folder, "away", RenameFlags::NOREPLACE);
                self.rename(&link, folder, RenameFlags::NOREPLACE);
                let _ = fs::remove_file(self.tree.join(folder));
                self.rename("away", folder, RenameFlags::NOREPLACE);
            }
            _ => {
                let _ = fs::create_dir(self.tree.join("other"));
                self.rename(folder, "other", RenameFlags::EXCHANGE);
                self.rename(folder, "other", RenameFlags::EXCHANGE);
            }
        }
    }

    fn swap_file(&mut self) {
        let file = *self.random.pick(&FILES);
        let link = format!("link-file-{}", file.len());
        let _ = symlink(self.outside.join(file), self.tree.join(&link));
        self.rename(file, &link, RenameFlags::EXCHANGE);
        self.rename(file, &link, RenameFlags::EXCHANGE);
        if self.random.below(4) == 0 {
            let _ = fs::remove_file(self.tree.join(file));
        }
    }

    /// By a rename over it: who opens a file by its path would be led outside by his own links, and
    /// be taken for somebody else there.
    fn write_file(&mut self) {
        let file = *self.random.pick(&FILES);
        let fresh = self.tree.join("link-fresh");
        let text = format!("inside {}", self.random.next());
        if fs::write(&fresh, text).is_ok() {
            let _ = fs::rename(&fresh, self.tree.join(file));
        }
        // Else a source would have nothing but hints to read.
        std::thread::sleep(Duration::from_millis(2));
    }

    fn link_file(&mut self) {
        let file = *self.random.pick(&FILES);
        let (folder, name) = file.rsplit_once('/').unwrap();
        let Ok(folder) = self.beneath(folder) else {
            return;
        };
        let outside = self.outside.join("linked").join(name);
        let _ = unlinkat(&folder, name, AtFlags::empty());
        self.counted(linkat(CWD, outside, folder, name, AtFlags::empty()).is_ok());
    }

    fn mount(&mut self) {
        let at = *self.random.pick(&["a", "a/b", "a/b/c", "a/f", "a/b/f"]);
        if let Ok(inside) = self.beneath(at) {
            let inside = format!("/proc/self/fd/{}", inside.as_raw_fd());
            self.counted(mount_bind(self.outside.join(at), inside).is_ok());
            std::thread::sleep(Duration::from_millis(self.random.below(4)));
        }
        unmount_below(&self.tree);
    }

    /// What is at a path, for root, who must not be led outside by the other attackers.
    fn beneath(&self, path: &str) -> Result<OwnedFd, Errno> {
        let tree = fs::File::open(&self.tree).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(tree, path, flags, Mode::empty(), resolve)
    }

    fn swap_own(&mut self) {
        let _ = symlink(self.outside.join("a"), self.tree.join("link-own"));
        self.rename(".cdsync", "link-own", RenameFlags::EXCHANGE);
        self.rename(".cdsync", "link-own", RenameFlags::EXCHANGE);
        let _ = fs::create_dir(self.tree.join("other"));
        self.rename(".cdsync", "other", RenameFlags::EXCHANGE);
        self.rename(".cdsync", "other", RenameFlags::EXCHANGE);
    }
}

/// Takes away what was mounted, by whatever name it has now: it moves with its folder.
fn unmount_below(tree: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = table.lines().filter_map(|line| line.split(' ').nth(4));
    for place in places.map(Path::new) {
        if place.starts_with(tree) && place != tree {
            let _ = unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// This thread alone becomes the owner.
fn become_owner() {
    let (uid, gid) = (Uid::from_raw(OWNER), Gid::from_raw(OWNER));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
}
