//! Stores into a mapped file.
#![expect(
    unsafe_code,
    reason = "mapping memory, and writing to it, cannot be said otherwise"
)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// Changes up to `bytes.len()` bytes at the beginning of a file through a mapping, and syncs it.
/// No event tells of such stores: one real write of the first byte and the close that follow do.
pub(crate) fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len())
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    if length == 0 {
        return Ok(());
    }
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at a place that the kernel chooses; nobody else knows of it.
    let at = unsafe {
        mmap(
            std::ptr::null_mut(),
            length,
            access,
            MapFlags::SHARED,
            &file,
            0,
        )?
    };
    // One page by the kernel's hand: another thread may cut the file short meanwhile, and a store
    // behind its end would kill this process. A read into the mapping fails instead.
    let filled = fill(at.cast(), &bytes[..length]);
    // SAFETY: the mapping made above, which nothing refers to any more after this.
    unsafe {
        msync(at, length, MsyncFlags::SYNC).ok();
        munmap(at, length)?;
    }
    filled?;
    let mut first = [0];
    file.read_exact_at(&mut first, 0)?;
    file.write_all_at(&first, 0)
}

/// Lets the kernel copy bytes to the mapping, from a pipe.
fn fill(at: *mut u8, bytes: &[u8]) -> io::Result<()> {
    let (read, write) = rustix::pipe::pipe()?;
    let count = rustix::io::write(&write, bytes)?;
    // SAFETY: `count` bytes from `at` on are inside the mapping of the caller, which is writable
    // and lives; the kernel reports a fault for pages that are no longer in the file.
    let into =
        unsafe { std::slice::from_raw_parts_mut(at.cast::<std::mem::MaybeUninit<u8>>(), count) };
    rustix::io::read(&read, into)?;
    Ok(())
}
