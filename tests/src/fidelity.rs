//! What is kept beside content, mode, owner, mtime and symlinks, and therefore compared, and done
//! by random work: one switch each.

/// Several names of one file.
pub(crate) const HARD_LINKS: bool = false;
/// Extended attributes of users.
pub(crate) const XATTRS: bool = false;
/// POSIX access control lists.
pub(crate) const ACLS: bool = false;
/// Holes in files.
pub(crate) const HOLES: bool = false;
/// FIFOs and sockets.
pub(crate) const SPECIAL_FILES: bool = false;
