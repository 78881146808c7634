//! Which folders a folder lies in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

/// More folders than this within each other are not looked at.
const DEPTH_MAX: usize = 8192;

/// A folder by device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderId {
    device: u64,
    inode: u64,
}

/// The folder at a path and all those that it lies in, itself first; `None` for each that is not
/// there (yet). Through links and mounts: what counts is where it really is, found by going up from
/// its handle. For comparing roots; nothing is opened for use.
#[must_use]
pub fn folders_above(path: &Path) -> Vec<Option<FolderId>> {
    let mut chain = Vec::new();
    for ancestor in path.ancestors() {
        match open(CWD, ancestor.as_os_str().as_encoded_bytes()) {
            Ok(folder) => {
                // What failed on the way up is not there for us.
                let _ = climb(folder, &mut chain);
                break;
            }
            Err(_) => chain.push(None),
        }
    }
    chain
}

fn climb(folder: OwnedFd, chain: &mut Vec<Option<FolderId>>) -> Result<(), Errno> {
    let mut at = folder;
    let mut id = id_of(at.as_fd())?;
    for _ in 0..DEPTH_MAX {
        chain.push(Some(id));
        at = open(at.as_fd(), b"..")?;
        let above = id_of(at.as_fd())?;
        if above == id {
            break;
        }
        id = above;
    }
    Ok(())
}

fn open(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(from, path, flags, Mode::empty())
}

fn id_of(fd: BorrowedFd<'_>) -> Result<FolderId, Errno> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    Ok(FolderId {
        device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
    })
}
