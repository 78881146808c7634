//! Watching, scanning and changing directory trees through directory handles.
//!
//! Everything below a root goes through [`Dir`]: names are resolved by the kernel beneath an open
//! handle, without following links and without leaving the filesystem, so that no name, link or
//! race leads outside. Nothing here knows a network, and nothing here decides: which change wins is
//! the ledger's and the caller's to say.
//!
//! # Known limits
//! - Linux only for now.
//! - Stores through a memory map give no event until they are written back; no look can tell.
//! - `notify` watches by path: where it is used in place of fanotify, who owns a tree can have names
//!   outside of it watched for a moment. The hints that come of it are looked up beneath the root.
//! - [`Dir`] handles outlive renames of the folder. They are asked for by path and are re-resolved
//!   after half a second; keep none for longer than one batch.
#![deny(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and look at trees as others do: by paths"
    )
)]

pub mod apply;
#[cfg(test)]
mod confinement;
pub mod dir;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod read;
pub mod restless;
mod sys;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod watch;

pub use apply::{
    Applier, ApplyError, Displaced, Expected, MadeFolder, Move, MoveOutcome, NameSetDigest, Pace,
    Published, Relocated, Staged, StagedWriter, Stager, TrashClock, TrashLimits, TrashUse, Trashed,
    WHOLE_DEPTH_MAX, Weight, WholeFolder, make_private, write_unseen,
};
pub use dir::{
    Applied, Dir, DirRef, Finder, FolderId, Listed, LookWants, NameStream, Root, RootIdentity,
    RootLost, Whereabouts, folders_above,
};
pub use error::{FsError, FsErrorKind};
pub use read::{BaseReader, ContentReader, ReadError, hash_content, open_content};
pub use restless::{RestlessReader, open_restless};
pub use tables::{Durability, LedgerStore, ReadView, StoreError};
pub use watch::{
    Backend, FlushError, FolderRef, Gap, Hint, HintFlags, HintSink, Watch, WatchError, WatchHub,
};
