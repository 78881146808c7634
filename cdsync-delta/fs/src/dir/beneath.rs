//! Resolving a relative path beneath an open folder: by `openat2`, or component by component.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// How often a resolution is repeated that the kernel gave up because something was renamed.
const RETRIES: u32 = 64;

/// The longest path given to one call, below `PATH_MAX` (4,096 with the NUL).
const CALL_MAX_BYTES: usize = 4000;

/// Cleared when the kernel or a seccomp filter refuses `openat2`.
static OPENAT2_WORKS: AtomicBool = AtomicBool::new(true);

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
/// Opens the folder at `path` (names joined by single slashes, none empty, `.` or `..`) beneath
/// `base`; an empty path opens `base` anew.
pub(super) fn open_folder(base: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_folder_with(base, path, Mounts::Refuse)
}

/// As [`open_folder`], with mounts as said.
pub(super) fn open_folder_with(
    base: BorrowedFd<'_>,
    path: &[u8],
    mounts: Mounts,
) -> Result<OwnedFd, Errno> {
    let last = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if path.len() <= CALL_MAX_BYTES {
        let path = if path.is_empty() { b"." } else { path };
        return open_with(base, path, last, Mode::empty(), mounts);
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
        let from = at.as_ref().map_or(base, |fd| fd.as_fd());
        at = Some(open_with(from, &rest[..cut], step, Mode::empty(), mounts)?);
        rest = &rest[cut + 1..];
    }
    let from = at.as_ref().map_or(base, |fd| fd.as_fd());
    open_with(from, rest, last, Mode::empty(), mounts)
}
/// Opens `path` beneath `base` without following any link and without leaving the filesystem.
pub(super) fn open(
    base: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    open_with(base, path, flags, mode, Mounts::Refuse)
}

fn open_with(
    base: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    mounts: Mounts,
) -> Result<OwnedFd, Errno> {
    // With O_PATH and O_NOFOLLOW a link as the last component is itself opened: asked for by looks.
    // Through openat2 that needs the link allowed, so these go by the plain call, which cannot
    // follow either; the callers compare the device.
    if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) && !path.contains(&b'/') {
        return retry(|| rustix::fs::openat(base, path, flags, mode));
    }
    if OPENAT2_WORKS.load(Ordering::Relaxed) {
        match retry(|| rustix::fs::openat2(base, path, flags, mode, mounts.resolve())) {
            Err(Errno::NOSYS) => OPENAT2_WORKS.store(false, Ordering::Relaxed),
            // Seccomp filters answer EPERM for calls they do not know; so may a real file.
            Err(Errno::PERM) if !openat2_allowed(base) => {
                OPENAT2_WORKS.store(false, Ordering::Relaxed);
            }
            other => return other,
        }
    }
    open_by_steps(base, path, flags, mode, mounts)
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

fn openat2_allowed(base: BorrowedFd<'_>) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(base, ".", flags, Mode::empty(), RESOLVE).is_ok()
}

/// The walk for kernels without `openat2`: every component by the handle of its parent, none
/// followed if it is a link, none on another device.
pub(super) fn open_by_steps(
    base: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    mounts: Mounts,
) -> Result<OwnedFd, Errno> {
    let device = device_of(base)?;
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut components = path.split(|&b| b == b'/').peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(name) = components.next() {
        if name.is_empty() || name == b".." || (name == b"." && path != b".") {
            return Err(Errno::INVAL);
        }
        let flags = if components.peek().is_some() {
            step
        } else {
            flags | OFlags::NOFOLLOW
        };
        let from = at.as_ref().map_or(base, |fd| fd.as_fd());
        let next = retry(|| rustix::fs::openat(from, name, flags, mode))?;
        if mounts == Mounts::Refuse && device_of(next.as_fd())? != device {
            return Err(Errno::XDEV);
        }
        at = Some(next);
    }
    at.ok_or(Errno::INVAL)
}

/// The device number of what a descriptor is open on.
pub(super) fn device_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    Ok(rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor))
}
