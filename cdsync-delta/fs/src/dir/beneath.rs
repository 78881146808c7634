//! Resolving a relative path beneath an open folder: by `openat2`, or component by component.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// How often a resolution is repeated that the kernel gave up because something was renamed.
const RETRIES: u32 = 64;

/// The longest path given to one call, below `PATH_MAX` (4,096 with the NUL).
const CALL_MAX_BYTES: usize = 4000;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Whether mount points on the way are entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounts {
    /// Below a root: never.
    Refuse,
    /// On the way from what the operator allowed to the root, which may be a volume of its own.
    Enter,
}

impl Mounts {
    fn resolve(self) -> ResolveFlags {
        match self {
            Self::Refuse => RESOLVE.union(ResolveFlags::NO_XDEV),
            Self::Enter => RESOLVE,
        }
    }
}

/// How paths are resolved: asked of the system once for each root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By `openat2`, which knows all the rules itself.
    Openat2,
    /// Component by component: the kernel, or a seccomp filter, refuses `openat2`.
    Steps,
}

impl Way {
    /// What works here. Whatever `openat2` fails with, the other way keeps the same rules.
    pub(super) fn of(base: BorrowedFd<'_>) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match retry(|| rustix::fs::openat2(base, c".", flags, Mode::empty(), RESOLVE)) {
            Ok(_) => Self::Openat2,
            Err(_) => Self::Steps,
        }
    }
}

/// Where a path begins and by which rules it is resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beneath<'a> {
    pub(super) base: BorrowedFd<'a>,
    pub(super) way: Way,
    pub(super) mounts: Mounts,
}

impl Beneath<'_> {
    /// Opens the folder at `path` (names joined by single slashes, none empty, `.` or `..`); an
    /// empty path opens `base` anew.
    pub(super) fn open_folder(self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let last = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if path.len() <= CALL_MAX_BYTES {
            let path = if path.is_empty() { b"." } else { path };
            return self.open(path, last);
        }
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut rest = path;
        let mut at: Option<OwnedFd> = None;
        while rest.len() > CALL_MAX_BYTES {
            // A name is at most 255 bytes long, so there is a slash.
            let cut = rest[..=CALL_MAX_BYTES]
                .iter()
                .rposition(|&b| b == b'/')
                .ok_or(Errno::INVAL)?;
            at = Some(self.from(at.as_ref()).open(&rest[..cut], step)?);
            rest = &rest[cut + 1..];
        }
        self.from(at.as_ref()).open(rest, last)
    }

    /// Opens what is at `path` without following any link and, below a root, without entering a
    /// mount. With `O_PATH` and `O_NOFOLLOW` a link as the last component is itself opened.
    pub(super) fn open(self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mode = Mode::empty();
        match self.way {
            Way::Openat2 => {
                let resolve = self.mounts.resolve();
                retry(|| rustix::fs::openat2(self.base, path, flags, mode, resolve))
            }
            Way::Steps => self.open_by_steps(path, flags),
        }
    }

    fn from<'b>(self, at: Option<&'b OwnedFd>) -> Beneath<'b>
    where
        Self: 'b,
    {
        Beneath {
            base: at.map_or(self.base, |fd| fd.as_fd()),
            ..self
        }
    }

    /// Every component by the handle of its parent, none followed if it is a link, none on another
    /// mount or device. What is to be opened for use is a handle first too: a device acts on being
    /// opened, and whoever watches sees it.
    fn open_by_steps(self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let place = Place::of(self.base)?;
        let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut components = path.split(|&b| b == b'/').peekable();
        let mut at: Option<OwnedFd> = None;
        while let Some(name) = components.next() {
            if name.is_empty() || name == b".." || (name == b"." && path != b".") {
                return Err(Errno::INVAL);
            }
            let kind = match components.peek() {
                Some(_) => OFlags::DIRECTORY,
                None => flags & OFlags::DIRECTORY,
            };
            let from = self.from(at.as_ref()).base;
            let next = retry(|| rustix::fs::openat(from, name, handle | kind, Mode::empty()))?;
            if self.mounts == Mounts::Refuse && Place::of(next.as_fd())? != place {
                return Err(Errno::XDEV);
            }
            at = Some(next);
        }
        let at = at.ok_or(Errno::INVAL)?;
        match flags.contains(OFlags::PATH) {
            true => Ok(at),
            false => open_handle(at.as_fd(), flags),
        }
    }
}

/// Opens for use what a handle is.
fn open_handle(handle: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Below, the name is the kernel's own and a link in its way, which leads along no path. What the
    // handle is is not followed any further: a link cannot be opened.
    let flags = flags.difference(OFlags::NOFOLLOW);
    let open = |path: &[u8]| retry(|| rustix::fs::openat(handle, path, flags, Mode::empty()));
    if flags.contains(OFlags::DIRECTORY) {
        return open(b".");
    }
    open(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_bytes())
}

fn retry(mut call: impl FnMut() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    for _ in 0..RETRIES {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// On which filesystem something is, and through which mount it was reached: what is bind-mounted
/// has the device of the filesystem that it comes from. Kernels before 5.8 tell no mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    device: u64,
    mount: u64,
}

impl Place {
    fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted)?;
        let told = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(Self {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            mount: if told { stat.stx_mnt_id } else { 0 },
        })
    }
}

/// The device number of what a descriptor is open on.
pub(super) fn device_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(Place::of(fd)?.device)
}
