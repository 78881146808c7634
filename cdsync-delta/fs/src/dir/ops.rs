//! Single changes in a folder: each is one system call, or its careful substitute.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cdsync_core::ledger::object::Kind;
use cdsync_core::path::Name;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Dir;
use crate::error::{FsError, FsErrorKind};

impl Dir {
    /// Opens a file for reading, without following a link or waiting for the other end of a pipe,
    /// and without touching its access time where that is allowed.
    ///
    /// # Errors
    /// What the system said.
    pub fn open_file(&self, name: &Name) -> Result<OwnedFd, FsError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags| self.beneath().open(name.as_bytes(), flags);
        match open(flags | OFlags::NOATIME) {
            // Only a file's owner may read it without a trace.
            Err(Errno::PERM) => open(flags),
            other => other,
        }
        .map_err(|errno| FsError::at("open", self.path(), name, errno))
    }

    /// Makes an empty file and opens it for writing and reading. The umask applies to `mode`.
    ///
    /// # Errors
    /// [`FsErrorKind::Exists`] when the name is taken; else what the system said.
    pub fn create_exclusive(&self, name: &Name, mode: u32) -> Result<OwnedFd, FsError> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // By the plain call: O_EXCL follows no link, and a single name cannot leave the folder.
        rustix::fs::openat(
            self.as_fd(),
            name.as_bytes(),
            flags,
            Mode::from_raw_mode(mode),
        )
        .map_err(|errno| FsError::at("create", self.path(), name, errno))
    }

    /// Makes a folder. The umask applies to `mode`.
    ///
    /// # Errors
    /// [`FsErrorKind::Exists`] when the name is taken; else what the system said.
    pub fn make_folder(&self, name: &Name, mode: u32) -> Result<(), FsError> {
        rustix::fs::mkdirat(self.as_fd(), name.as_bytes(), Mode::from_raw_mode(mode))
            .map_err(|errno| FsError::at("make folder", self.path(), name, errno))
    }

    /// Makes a symbolic link that says `target`.
    ///
    /// # Errors
    /// [`FsErrorKind::Exists`] when the name is taken; else what the system said.
    pub fn make_symlink(&self, target: &[u8], name: &Name) -> Result<(), FsError> {
        rustix::fs::symlinkat(target, self.as_fd(), name.as_bytes())
            .map_err(|errno| FsError::at("make link", self.path(), name, errno))
    }

    /// Makes a pipe, a socket or a device.
    ///
    /// # Errors
    /// [`FsErrorKind::Exists`] when the name is taken; else what the system said.
    pub fn make_special(&self, name: &Name, kind: Kind, device: u64) -> Result<(), FsError> {
        let file_type = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::File | Kind::Folder | Kind::Symlink => {
                return Err(FsError::at("make", self.path(), name, Errno::INVAL));
            }
        };
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(self.as_fd(), name.as_bytes(), file_type, mode, device)
            .map_err(|errno| FsError::at("make", self.path(), name, errno))
    }

    /// Gives the object at `name` a second name. A link is itself linked, not followed.
    ///
    /// # Errors
    /// [`FsErrorKind::Exists`] when the other name is taken, [`FsErrorKind::Unlinkable`] when there
    /// can be no second name; else what the system said.
    pub fn hard_link(&self, name: &Name, to: &Self, to_name: &Name) -> Result<(), FsError> {
        let none = AtFlags::empty();
        rustix::fs::linkat(
            self.as_fd(),
            name.as_bytes(),
            to.as_fd(),
            to_name.as_bytes(),
            none,
        )
        .map_err(|errno| match errno {
            Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK => {
                FsError::of_kind(FsErrorKind::Unlinkable, "link", to.path().join(to_name))
            }
            errno => FsError::at("link", to.path(), to_name, errno),
        })
    }

    /// Renames to a name that is free.
    ///
    /// # Errors
    /// [`FsErrorKind::Exists`] when it is not; else what the system said.
    pub fn rename_new(&self, name: &Name, to: &Self, to_name: &Name) -> Result<(), FsError> {
        let result = match self.rename(name, to, to_name, RenameFlags::NOREPLACE) {
            // EINVAL also says that a folder would go into itself; the substitute says so again.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.rename_new_substitute(name, to, to_name)
            }
            other => other,
        };
        result.map_err(|errno| FsError::at("rename to", to.path(), to_name, errno))
    }

    /// Renames, in place of what has the other name.
    ///
    /// # Errors
    /// What the system said.
    pub fn rename_over(&self, name: &Name, to: &Self, to_name: &Name) -> Result<(), FsError> {
        self.rename(name, to, to_name, RenameFlags::empty())
            .map_err(|errno| FsError::at("rename over", to.path(), to_name, errno))
    }

    /// Swaps two names.
    ///
    /// # Errors
    /// [`FsErrorKind::NotFound`] when one of them is not there, [`FsErrorKind::Unsupported`] when
    /// the filesystem cannot swap or one lies inside the other.
    pub fn exchange(&self, name: &Name, to: &Self, to_name: &Name) -> Result<(), FsError> {
        self.rename(name, to, to_name, RenameFlags::EXCHANGE)
            .map_err(|errno| match errno {
                Errno::INVAL => FsError::of_kind(
                    FsErrorKind::Unsupported,
                    "exchange",
                    to.path().join(to_name),
                ),
                errno => FsError::at("exchange", to.path(), to_name, errno),
            })
    }

    /// Removes a name that is no folder.
    ///
    /// # Errors
    /// What the system said.
    pub fn unlink(&self, name: &Name) -> Result<(), FsError> {
        self.remove(name, AtFlags::empty())
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// [`FsErrorKind::NotEmpty`], or what the system said.
    pub fn remove_folder(&self, name: &Name) -> Result<(), FsError> {
        self.remove(name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, name: &Name, flags: AtFlags) -> Result<(), FsError> {
        rustix::fs::unlinkat(self.as_fd(), name.as_bytes(), flags)
            .map_err(|errno| FsError::at("remove", self.path(), name, errno))
    }

    fn rename(
        &self,
        name: &Name,
        to: &Self,
        to_name: &Name,
        how: RenameFlags,
    ) -> Result<(), Errno> {
        let (from, to): (BorrowedFd<'_>, BorrowedFd<'_>) = (self.as_fd(), to.as_fd());
        rustix::fs::renameat_with(from, name.as_bytes(), to, to_name.as_bytes(), how)
    }

    /// For filesystems without `RENAME_NOREPLACE`: a second name for what can have one (which
    /// fails when the name is taken), else a look and a plain rename.
    fn rename_new_substitute(&self, name: &Name, to: &Self, to_name: &Name) -> Result<(), Errno> {
        let none = AtFlags::empty();
        let linked = rustix::fs::linkat(
            self.as_fd(),
            name.as_bytes(),
            to.as_fd(),
            to_name.as_bytes(),
            none,
        );
        match linked {
            Ok(()) => return rustix::fs::unlinkat(self.as_fd(), name.as_bytes(), none),
            Err(Errno::EXIST) => return Err(Errno::EXIST),
            Err(_) => {}
        }
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(to.as_fd(), to_name.as_bytes(), nofollow) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => self.rename(name, to, to_name, RenameFlags::empty()),
            Err(errno) => Err(errno),
        }
    }
}
