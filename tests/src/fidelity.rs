//! What is kept beside content, mode, owner, mtime and symlinks, and therefore compared, and done
//! by random work, and what readers may rely on: one
//! switch each, to be turned as it comes.

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

/// A name whose file is replaced always shows the old file or the new one. Today it may show none
/// for a while: when a target applies versions that were replaced at the source meanwhile, and when
/// one that was killed looks for what it had done.
pub(crate) const REPLACED_NAMES_STAY: bool = false;
