//! Extended attributes and access lists of an object.
#![expect(
    clippy::disallowed_methods,
    reason = "what a descriptor is open on is reached through /proc, with at most one name behind it"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use cdsync_core::ledger::loss::{Loss, Losses};
use cdsync_core::ledger::xattrs::{
    ACL_ACCESS, ACL_DEFAULT, CAPABILITY, XATTRS_MAX_BYTES, Xattrs, is_carried,
};
use cdsync_core::path::Name;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::sys;

#[cfg(test)]
mod tests;

/// Room for the names of nearly every object.
const LIST_BYTES: usize = 1024;
/// The kernel's own bound of a list, and of one value.
const KERNEL_MAX_BYTES: usize = 64 * 1024;

/// An object whose attributes are meant.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    /// The one that a descriptor is open on, also by `O_PATH`.
    Handle(BorrowedFd<'a>),
    /// The one at a name, a link itself.
    Name(BorrowedFd<'a>, &'a Name),
}

impl At<'_> {
    /// The kernel's own name of it: the attribute calls know no `O_PATH` descriptors. What a
    /// descriptor is open on is reached without a walk along any path of the tree.
    fn path(self) -> Vec<u8> {
        match self {
            Self::Handle(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes(),
            Self::Name(dir, name) => {
                let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
                path.extend_from_slice(name.as_bytes());
                path
            }
        }
    }

    fn list(self, into: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Handle(fd) => match rustix::fs::flistxattr(fd, &mut *into) {
                Err(Errno::BADF) => rustix::fs::listxattr(self.path(), into),
                other => other,
            },
            Self::Name(dir, name) => match sys::list_xattrs_at(dir, name.as_bytes(), into) {
                Err(Errno::NOSYS) => rustix::fs::llistxattr(self.path(), into),
                other => other,
            },
        }
    }

    fn value(self, name: &[u8], into: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Handle(_) => rustix::fs::getxattr(self.path(), name, into),
            Self::Name(..) => rustix::fs::lgetxattr(self.path(), name, into),
        }
    }
}

/// Whether the filesystem, or this process, knows no attributes here.
fn is_without(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS)
}

/// The attributes that are carried, and whether some had to be left out. An object that changes
/// meanwhile may be read half before and half after: compare its change time.
pub(super) fn read(at: At<'_>) -> Result<(Xattrs, bool), Errno> {
    let mut short = [0; LIST_BYTES];
    match at.list(&mut short) {
        Ok(0) => Ok((Xattrs::NONE, false)),
        Ok(length) => read_listed(at, &short[..length]),
        Err(Errno::RANGE) => {
            let mut long = vec![0; KERNEL_MAX_BYTES];
            let length = at.list(&mut long)?;
            read_listed(at, &long[..length])
        }
        Err(errno) if is_without(errno) => Ok((Xattrs::NONE, false)),
        Err(errno) => Err(errno),
    }
}

fn read_listed(at: At<'_>, list: &[u8]) -> Result<(Xattrs, bool), Errno> {
    let mut all = Vec::new();
    let (mut bytes, mut left_out) = (0, false);
    let mut names: Vec<&[u8]> = list.split(|&b| b == 0).filter(|n| is_carried(n)).collect();
    names.sort_unstable();
    for name in names {
        if bytes > XATTRS_MAX_BYTES {
            left_out = true;
            break;
        }
        let mut value = vec![0; KERNEL_MAX_BYTES];
        match at.value(name, &mut value) {
            Ok(length) => value.truncate(length),
            // It went meanwhile.
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno),
        }
        value.shrink_to_fit();
        bytes += name.len() + value.len();
        all.push((name.to_vec(), value));
    }
    let (xattrs, more) = Xattrs::new(all);
    Ok((xattrs, left_out || more))
}

/// Makes the attributes those that are wanted, where they differ. What cannot be given is told.
///
/// # Errors
/// What the system said, where it is not about what this filesystem or process can give.
pub(super) fn set(fd: BorrowedFd<'_>, found: &Xattrs, wanted: &Xattrs) -> Result<Losses, Errno> {
    let mut losses = Losses::NONE;
    if found == wanted {
        return Ok(losses);
    }
    let path = At::Handle(fd).path();
    for (name, _) in found.iter().filter(|(n, _)| wanted.value(n).is_none()) {
        match rustix::fs::removexattr(&path[..], name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => losses.add(loss_of(name, errno)?),
        }
    }
    for (name, value) in wanted.iter() {
        if found.value(name) == Some(value) {
            continue;
        }
        let give = || rustix::fs::setxattr(&path[..], name, value, XattrFlags::empty());
        let given = match give() {
            // The room for an object's attributes is bounded on some filesystems. Else the disk was
            // full, and room may have been made since.
            Err(Errno::NOSPC) if has_room(fd) => match give() {
                Err(Errno::NOSPC) => {
                    losses.add(loss_by(name));
                    continue;
                }
                given => given,
            },
            given => given,
        };
        if let Err(errno) = given {
            losses.add(loss_of(name, errno)?);
        }
    }
    Ok(losses)
}

/// Whether the filesystem has room, whatever it refused.
fn has_room(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_bavail > 64)
}

/// What is lost where an attribute cannot be given.
fn loss_of(name: &[u8], errno: Errno) -> Result<Loss, Errno> {
    let lost = match errno {
        // INVAL: an access list of users that this filesystem or user namespace does not know.
        // NOENT: there is no /proc to reach the object by.
        Errno::OPNOTSUPP
        | Errno::NOSYS
        | Errno::PERM
        | Errno::ACCESS
        | Errno::INVAL
        | Errno::TOOBIG
        | Errno::RANGE
        | Errno::NOENT => true,
        _ => false,
    };
    match lost {
        true => Ok(loss_by(name)),
        false => Err(errno),
    }
}

/// What is lost with an attribute.
fn loss_by(name: &[u8]) -> Loss {
    match name {
        ACL_ACCESS | ACL_DEFAULT => Loss::Acl,
        CAPABILITY => Loss::Capability,
        _ => Loss::Xattrs,
    }
}
