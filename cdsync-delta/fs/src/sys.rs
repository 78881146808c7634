//! The system calls that rustix does not have. The only file of this crate with unsafe code.
#![expect(unsafe_code, reason = "leaf module for raw system calls")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

/// `MAX_HANDLE_SZ` of the kernel.
const HANDLE_MAX_BYTES: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C, align(8))]
struct HandleBuffer {
    handle_bytes: u32,
    handle_type: i32,
    bytes: [u8; HANDLE_MAX_BYTES],
}

fn last_errno() -> Errno {
    let number = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(number.unwrap_or(libc::EIO))
}

/// The kernel's handle of an open object: the handle type as 4 bytes little-endian, then its bytes.
/// fanotify reports the same pair. `None` where the filesystem gives none.
pub(crate) fn file_handle(fd: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    /// Whether this kernel knows `AT_HANDLE_FID` (since 6.6): handles that only identify, which
    /// also filesystems give that cannot open by handle.
    static FID_KNOWN: AtomicBool = AtomicBool::new(true);

    let mut flags = libc::AT_EMPTY_PATH;
    if FID_KNOWN.load(Ordering::Relaxed) {
        flags |= libc::AT_HANDLE_FID;
    }
    loop {
        match name_to_handle(fd, flags) {
            Ok(handle) => return Ok(Some(handle)),
            Err(Errno::INVAL) if flags & libc::AT_HANDLE_FID != 0 => {
                FID_KNOWN.store(false, Ordering::Relaxed);
                flags &= !libc::AT_HANDLE_FID;
            }
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

fn name_to_handle(fd: BorrowedFd<'_>, flags: libc::c_int) -> Result<Vec<u8>, Errno> {
    let mut buffer = HandleBuffer {
        handle_bytes: HANDLE_MAX_BYTES as u32,
        handle_type: 0,
        bytes: [0; HANDLE_MAX_BYTES],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: the buffer has the layout of `struct file_handle` with `handle_bytes` bytes of room
    // behind its header, the path is a NUL-terminated empty string, and the descriptor is open.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut buffer).cast(),
            &raw mut mount,
            flags,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    let length = (buffer.handle_bytes as usize).min(HANDLE_MAX_BYTES);
    let mut handle = Vec::with_capacity(4 + length);
    handle.extend_from_slice(&buffer.handle_type.to_le_bytes());
    handle.extend_from_slice(&buffer.bytes[..length]);
    Ok(handle)
}

/// Opens what a handle names, of [`file_handle`]'s form, with `O_PATH`: nothing acts on that. `mount`
/// is any descriptor on the filesystem, none opened with `O_PATH`. Needs `CAP_DAC_READ_SEARCH`.
pub(crate) fn open_by_handle(mount: BorrowedFd<'_>, handle: &[u8]) -> Result<OwnedFd, Errno> {
    let (kind, bytes) = handle.split_first_chunk().ok_or(Errno::INVAL)?;
    let mut buffer = HandleBuffer {
        handle_bytes: 0,
        handle_type: i32::from_le_bytes(*kind),
        bytes: [0; HANDLE_MAX_BYTES],
    };
    let room = buffer.bytes.get_mut(..bytes.len()).ok_or(Errno::INVAL)?;
    room.copy_from_slice(bytes);
    buffer.handle_bytes = bytes.len() as u32;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the buffer has the layout of `struct file_handle`, and as many bytes behind its header
    // as that says; the descriptor is open.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut buffer).cast(), flags) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call has just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the mode of the object behind a descriptor, also one opened with `O_PATH`
/// (`fchmodat2`, since Linux 6.6).
pub(crate) fn chmod_handle(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    // SAFETY: the path is a NUL-terminated empty string, the descriptor is open, and the other
    // arguments are numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            fd.as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EMPTY_PATH,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// A new fanotify group.
pub(crate) fn fanotify_init(flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    let event_flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE) as libc::c_uint;
    // SAFETY: both arguments are numbers.
    let fd = unsafe { libc::fanotify_init(flags, event_flags) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call has just returned this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a mark for what `at` is open on.
pub(crate) fn fanotify_mark(
    group: BorrowedFd<'_>,
    flags: libc::c_uint,
    mask: u64,
    at: BorrowedFd<'_>,
) -> Result<(), Errno> {
    // SAFETY: both descriptors are open, and a null path means the object that `at` is open on.
    let result = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            flags,
            mask,
            at.as_raw_fd(),
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// The names of the extended attributes of the object at `name` in a folder, a link itself,
/// separated by NULs (`listxattrat`, since Linux 6.13). Returns how many bytes they take.
pub(crate) fn list_xattrs_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    into: &mut [u8],
) -> Result<usize, Errno> {
    /// The number is the same on every architecture, as of all calls since Linux 5.1.
    const SYS_LISTXATTRAT: libc::c_long = 465;
    static KNOWN: AtomicBool = AtomicBool::new(true);

    if !KNOWN.load(Ordering::Relaxed) {
        return Err(Errno::NOSYS);
    }
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: the path is NUL-terminated, the descriptor is open, and the buffer has the room that
    // is said.
    let result = unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            into.as_mut_ptr(),
            into.len(),
        )
    };
    if let Ok(length) = usize::try_from(result) {
        return Ok(length);
    }
    let errno = last_errno();
    if errno == Errno::NOSYS {
        KNOWN.store(false, Ordering::Relaxed);
    }
    Err(errno)
}
