//! The one layer through which everything below a root is reached: open handles of folders.

mod above;
mod adopt;
mod alias;
mod beneath;
mod cache;
mod find;
mod folder;
mod list;
mod look;
mod meta;
mod ops;
mod private;
mod root;
#[cfg(test)]
mod tests;
mod xattr;

pub use above::{FolderId, folders_above};
pub use find::{Finder, Whereabouts};
pub use folder::Dir;
pub use list::{Listed, NameStream};
pub use look::LookWants;
pub use meta::Applied;
pub use root::{DirRef, Root, RootIdentity, RootLost};

pub(crate) use look::{check_identity, observe_fd};
pub(crate) use meta::{apply_to_fd, apply_to_new};
