//! What is kept beside content, mode, owner, mtime and symlinks, and therefore compared, and done
//! by random work: one switch each, to be turned as it comes.

/// Several names of one file.
pub(crate) const HARD_LINKS: bool = true;
/// Extended attributes of users.
pub(crate) const XATTRS: bool = true;
/// POSIX access control lists.
pub(crate) const ACLS: bool = true;
/// Holes in files.
pub(crate) const HOLES: bool = true;
/// FIFOs and sockets.
pub(crate) const SPECIAL_FILES: bool = true;
