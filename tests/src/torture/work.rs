//! Random work in a tree: whatever POSIX allows.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
    lremovexattr, lsetxattr, mknodat, renameat_with, utimensat,
};

use crate::random::Random;
use crate::{fidelity, is_root, mapped};

/// Files held open by one worker, at most.
const HELD_MAX: usize = 4;
/// When a tree has more entries, folders are removed until it has fewer.
pub(super) const ENTRIES_MAX: u64 = 3000;

/// One worker's hands.
#[derive(Debug)]
pub(super) struct Worker {
    top: PathBuf,
    random: Random,
    held: Vec<File>,
    done: u64,
    /// Whether it gives files second names.
    links: bool,
}

impl Worker {
    pub(super) const fn new(top: PathBuf, random: Random, links: bool) -> Self {
        Self {
            top,
            random,
            held: Vec::new(),
            done: 0,
            links,
        }
    }

    /// Closes what it holds open.
    pub(super) fn let_go(&mut self) {
        self.held.clear();
    }

    /// One random change. Failures are part of it: a name that is taken or gone, a full disk, a
    /// folder moved below itself.
    pub(super) fn act(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(200) {
            self.thin_out();
        }
        let some = self.pick();
        let fresh = self.fresh();
        let _ = match self.random.below(40) {
            0..=5 => self.write(&fresh),
            6..=8 => fs::create_dir(&fresh),
            9..=11 => self.save(&some),
            12 | 13 => self.append(&some),
            14 | 15 => self.poke(&some),
            16 => self.cut(&some),
            17 => mapped::store(&some, &self.random.bytes(3000)),
            18 => self.hold(&some),
            19 | 20 => fs::rename(&some, &fresh),
            21 | 22 => fs::rename(&some, self.pick()),
            23 => self.over_empty_folder(&some),
            24 | 25 => self.exchange(&some),
            26 => symlink(self.name(), &fresh),
            27 | 28 => fs::remove_file(&some),
            29 => self.remove_folder(&some),
            30 | 31 => self.mode(&some),
            32 => self.owner(&some),
            33 => self.times(&some),
            34 => self.sparse(&fresh),
            35 => self.deep_or_wide(&fresh),
            36 if fidelity::HARD_LINKS && self.links => fs::hard_link(&some, &fresh),
            37 if fidelity::XATTRS => self.xattr(&some),
            38 if fidelity::ACLS => self.acl(&some),
            39 if fidelity::SPECIAL_FILES => self.special(&fresh),
            _ => self.large(&fresh),
        };
    }

    /// Something in the tree, or a name that is not there.
    fn pick(&mut self) -> PathBuf {
        let mut at = self.top.clone();
        loop {
            let below = names(&at);
            if below.is_empty() {
                return at.join("nothing");
            }
            at.push(self.random.pick(&below));
            let is_folder = fs::symlink_metadata(&at).is_ok_and(|meta| meta.is_dir());
            if !is_folder || self.random.below(3) == 0 {
                return at;
            }
        }
    }

    fn folder(&mut self) -> PathBuf {
        let some = self.pick();
        match fs::symlink_metadata(&some) {
            Ok(meta) if meta.is_dir() && self.random.below(4) > 0 => some,
            _ => some.parent().unwrap_or(&self.top).to_owned(),
        }
    }

    /// A name in some folder; now and then one that is taken.
    fn fresh(&mut self) -> PathBuf {
        let folder = self.folder();
        folder.join(self.name())
    }

    fn name(&mut self) -> OsString {
        if self.random.below(12) > 0 {
            return format!("n{}", self.random.below(50)).into();
        }
        let length = match self.random.below(8) {
            0 => 255,
            _ => 1 + self.random.below(12),
        };
        let mut bytes = self.random.bytes(usize::try_from(length).unwrap());
        for byte in &mut bytes {
            if matches!(*byte, 0 | b'/') {
                *byte = b'\n';
            }
        }
        // No name for itself or its parent, nor the reserved one.
        bytes[0] = bytes[0].max(b'/' + 1);
        OsString::from_vec(bytes)
    }

    fn content(&mut self) -> Vec<u8> {
        let most = match self.random.below(10) {
            0 => 60_000,
            1..=3 => 9000,
            _ => 900,
        };
        let size = self.random.below(most);
        self.random.bytes(usize::try_from(size).unwrap())
    }

    fn write(&mut self, path: &Path) -> io::Result<()> {
        create(path)?.write_all(&self.content())
    }

    /// As editors save.
    fn save(&mut self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension(format!("{}~", self.random.below(100)));
        create(&temporary)?.write_all(&self.content())?;
        fs::rename(&temporary, path)
    }

    fn append(&mut self, path: &Path) -> io::Result<()> {
        let mut file = without_waiting().append(true).open(path)?;
        for _ in 0..=self.random.below(3) {
            file.write_all(&self.random.bytes(400))?;
        }
        Ok(())
    }

    fn poke(&mut self, path: &Path) -> io::Result<()> {
        let file = without_waiting().write(true).open(path)?;
        file.write_all_at(&self.random.bytes(100), self.random.below(5000))
    }

    fn cut(&mut self, path: &Path) -> io::Result<()> {
        let file = without_waiting().write(true).open(path)?;
        file.set_len(self.random.below(3000))
    }

    /// Goes on with a file that it holds open, or opens one for later.
    fn hold(&mut self, path: &Path) -> io::Result<()> {
        if self.held.len() >= HELD_MAX || (!self.held.is_empty() && self.random.below(3) > 0) {
            let at = usize::try_from(self.random.below(self.held.len() as u64)).unwrap();
            let bytes = self.random.bytes(300);
            self.held[at].write_all_at(&bytes, self.random.below(2000))?;
            if self.random.below(2) == 0 {
                self.held.swap_remove(at);
            }
            return Ok(());
        }
        self.held.push(without_waiting().write(true).open(path)?);
        Ok(())
    }

    fn over_empty_folder(&mut self, some: &Path) -> io::Result<()> {
        if !fs::symlink_metadata(some)?.is_dir() {
            return Ok(());
        }
        let empty = self.fresh();
        fs::create_dir(&empty)?;
        fs::rename(some, &empty)
    }

    fn exchange(&mut self, some: &Path) -> io::Result<()> {
        let other = self.pick();
        Ok(renameat_with(
            CWD,
            some,
            CWD,
            &other,
            RenameFlags::EXCHANGE,
        )?)
    }

    fn remove_folder(&mut self, path: &Path) -> io::Result<()> {
        match self.random.below(3) {
            0 if path.starts_with(&self.top) => fs::remove_dir_all(path),
            _ => fs::remove_dir(path),
        }
    }

    /// Any bits where nobody is locked out by them.
    fn mode(&mut self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_symlink() {
            return Ok(());
        }
        let any = u32::try_from(self.random.below(0o10000)).unwrap();
        let own = if is_root() { 0 } else { 0o700 };
        fs::set_permissions(path, Permissions::from_mode(any | own))
    }

    fn owner(&mut self, path: &Path) -> io::Result<()> {
        let mut id = || u32::try_from(self.random.below(5) * 1000).unwrap();
        let (user, group) = (id(), id());
        if is_root() {
            lchown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    fn times(&mut self, path: &Path) -> io::Result<()> {
        let seconds = i64::try_from(self.random.below(3_000_000_000)).unwrap() - 1_000_000_000;
        let at = Timespec {
            tv_sec: seconds,
            tv_nsec: i64::try_from(self.random.below(1_000_000_000)).unwrap(),
        };
        let times = Timestamps {
            last_access: at,
            last_modification: at,
        };
        Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn sparse(&mut self, path: &Path) -> io::Result<()> {
        let file = without_waiting()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let size = 1 + self.random.below(2 << 20);
        file.set_len(size)?;
        for _ in 0..self.random.below(3) {
            file.write_all_at(&self.random.bytes(500), self.random.below(size))?;
        }
        Ok(())
    }

    fn large(&mut self, path: &Path) -> io::Result<()> {
        if self.random.below(4) > 0 {
            return self.write(path);
        }
        let mut file = create(path)?;
        for _ in 0..1 + self.random.below(16) {
            file.write_all(&self.random.bytes(100_000))?;
        }
        Ok(())
    }

    fn deep_or_wide(&mut self, path: &Path) -> io::Result<()> {
        if self.random.below(2) == 0 {
            let below: PathBuf = (0..self.random.below(30))
                .map(|n| format!("d{n}"))
                .collect();
            fs::create_dir_all(path.join(&below))?;
            return create(&path.join(below).join("end"))?.write_all(&self.content());
        }
        fs::create_dir(path)?;
        for number in 0..self.random.below(150) {
            create(&path.join(format!("w{number}")))?.write_all(&self.random.bytes(20))?;
        }
        Ok(())
    }

    fn xattr(&mut self, path: &Path) -> io::Result<()> {
        let name = format!("user.n{}", self.random.below(3));
        if self.random.below(4) == 0 {
            return Ok(lremovexattr(path, name)?);
        }
        let length = usize::try_from(self.random.below(200)).unwrap();
        let value = self.random.bytes(length);
        Ok(lsetxattr(path, name, &value, XattrFlags::empty())?)
    }

    /// `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`, as the kernel has it.
    fn acl(&mut self, path: &Path) -> io::Result<()> {
        let user = 1000 + u32::try_from(self.random.below(3)).unwrap();
        let none = u32::MAX;
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in [
            (1_u16, 6_u16, none),
            (2, 4, user),
            (4, 4, none),
            (0x10, 4, none),
            (0x20, 0, none),
        ] {
            value.extend(tag.to_le_bytes());
            value.extend(rights.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        // A folder may also say what is made in it gets.
        let name = match self.random.below(3) {
            0 => "system.posix_acl_default",
            _ => "system.posix_acl_access",
        };
        Ok(lsetxattr(path, name, &value, XattrFlags::empty())?)
    }

    fn special(&mut self, path: &Path) -> io::Result<()> {
        let kind = match self.random.below(2) {
            0 => FileType::Fifo,
            _ => FileType::Socket,
        };
        Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), 0)?)
    }

    fn thin_out(&mut self) {
        while entries(&self.top) > ENTRIES_MAX {
            let folder = self.folder();
            if folder != self.top {
                let _ = fs::remove_dir_all(folder);
            }
        }
    }
}

/// The names in a folder, always in the same order.
fn names(folder: &Path) -> Vec<OsString> {
    let Ok(listed) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = listed
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.as_bytes() != b".cdsync")
        .collect();
    names.sort();
    names
}

fn entries(folder: &Path) -> u64 {
    let Ok(listed) = fs::read_dir(folder) else {
        return 0;
    };
    listed
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => 1 + entries(&entry.path()),
            _ => 1,
        })
        .sum()
}

/// Opens whatever is there: who opens a pipe would else wait for its other end.
fn without_waiting() -> OpenOptions {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    let mut options = File::options();
    options.custom_flags(flags);
    options
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = without_waiting();
    options.write(true).create(true).truncate(true).open(path)
}
