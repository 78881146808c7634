//! What is kept beside content, mode, owner, mtime and symlinks, and therefore compared, and done
//! by random work, and what readers may rely on: one
//! switch each, to be turned as it comes.

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

/// A file of more than one range stays at its name, older or newer, while a target that was killed
/// fetches it again. Today what is there goes to the trash first.
pub(crate) const LARGE_FILES_STAY: bool = false;
