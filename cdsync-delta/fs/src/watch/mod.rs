//! Hints from the kernel that something may have changed: never the truth, which is a look.
//!
//! With privileges one fanotify group watches each whole filesystem (no watch per folder, no race
//! on new folders, renames with both names); else `notify` watches folder by folder.

mod fanotify;
mod notify;
pub(crate) mod parse;
mod probe;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cdsync_core::path::{Name, RelPath};
use thiserror::Error;

use crate::dir::{Dir, Root};
use crate::error::FsError;

use fanotify::{Group, Member};
use notify::NotifyWatch;
use probe::Proof;

/// A folder as a watcher names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FolderRef {
    /// The kernel's handle, in the form of [`cdsync_core::ledger::object::Observed::handle`]: the
    /// handle type as 4 bytes little-endian, then its bytes. It identifies; it is never opened.
    Handle(Vec<u8>),
    /// The path from the root.
    Path(RelPath),
    /// The kernel knows no folder: only [`Hint::object`] tells where to look.
    Nowhere,
}

/// What kinds of change a hint stands for; several when the kernel merged events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HintFlags {
    /// The name appeared.
    pub created: bool,
    /// Bytes were written or cut off.
    pub written: bool,
    /// A file that was open for writing was closed.
    pub closed: bool,
    /// The name vanished.
    pub removed: bool,
    /// Mode, owner or times changed.
    pub attributes: bool,
    /// The object is a folder. Not always known: look.
    pub is_folder: bool,
}

impl HintFlags {
    fn merge(&mut self, other: Self) {
        self.created |= other.created;
        self.written |= other.written;
        self.closed |= other.closed;
        self.removed |= other.removed;
        self.attributes |= other.attributes;
        self.is_folder |= other.is_folder;
    }
}

/// Something may have changed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// In which folder. With fanotify: any folder of the filesystem, often outside the root.
    pub folder: FolderRef,
    /// Which name, `None` for the folder itself.
    pub name: Option<Name>,
    /// What happened.
    pub what: HintFlags,
    /// Which process did it, zero when unknown. Provenance, never a reason to drop a hint.
    pub pid: i32,
    /// Where the name went when it was renamed. Swapped names arrive as two renames.
    pub renamed_to: Option<(FolderRef, Name)>,
    /// What it happened to, where that is told and is no folder: the kernel's handle, in the same
    /// form as a folder's. [`crate::Finder`] tells where it is.
    pub object: Option<Vec<u8>>,
}

/// Why it is not known what changed: everything below the root must be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// The kernel's queue overflowed.
    Overflow,
    /// The kernel said something that is not understood.
    Malformed,
    /// A folder is not watched, or was not for a moment: [`Watch::settle`], then look.
    NotWatched,
    /// The root itself was moved, removed or unmounted.
    RootChanged,
    /// The watcher ended; no hint comes any more.
    Ended,
}

/// Takes hints. Called from the watcher's own thread, which empties the kernel's queue: a call must
/// not wait for anything, nor call back into its [`Watch`].
pub trait HintSink: Send {
    /// Some hints, in the order of the kernel.
    fn hints(&mut self, batch: &[Hint]);
    /// What happened since the last hint is not known.
    fn gap(&mut self, why: Gap);
}

/// Who gives the hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// fanotify on the whole filesystem.
    Fanotify,
    /// The `notify` crate, by the named interface of the system.
    Notify(&'static str),
    /// Nobody: neither of them works here. The root is to be compared again and again.
    Polling,
}

/// Why a root cannot be watched.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The limit on watched folders (`fs.inotify.max_user_watches`) is reached. Retryable after
    /// raising it.
    #[error("'{root}' has more folders than fs.inotify.max_user_watches allows to watch")]
    TooManyFolders {
        /// The root, escaped.
        root: String,
    },
    /// The watcher could not be set up. Retryable.
    #[error("'{root}' cannot be watched: {reason}")]
    Setup {
        /// The root, escaped.
        root: String,
        /// What the system said.
        reason: String,
    },
    /// No event came. The root is polled instead.
    #[error("no events come from '{root}'")]
    Silent {
        /// The root, escaped.
        root: String,
    },
    /// The probe in `.cdsync/` failed for another reason than missing leave. Retryable.
    #[error("the watcher's probe failed")]
    Probe(#[source] FsError),
}

/// Why a flush cannot promise anything.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The deadline passed. Retryable.
    #[error("the watcher did not come to the end of its queue in time")]
    TimedOut,
    /// The watcher has ended.
    #[error("the watcher has ended")]
    Ended,
    /// This backend flushes by a file in `.cdsync/`, which could not be written.
    #[error("the watcher's flush file cannot be written")]
    NoSentinel(#[source] FsError),
}

type SharedSink = Arc<Mutex<Box<dyn HintSink>>>;

/// Watches roots; those on one filesystem share what they can.
#[derive(Debug, Default)]
pub struct WatchHub {
    groups: Mutex<HashMap<u64, Weak<Group>>>,
    without_fanotify: bool,
    without_notify: bool,
}

impl WatchHub {
    /// Nothing watched yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A hub that behaves as if this process had no privileges.
    #[cfg(test)]
    fn unprivileged() -> Self {
        Self {
            without_fanotify: true,
            ..Self::default()
        }
    }

    /// A hub that behaves as if no events came from anywhere.
    #[must_use]
    pub fn without_events() -> Self {
        Self {
            without_fanotify: true,
            without_notify: true,
            ..Self::default()
        }
    }

    /// Begins to watch a root. Hints come from before this returns on, so that a scan started
    /// afterwards misses nothing. Proves itself by a probe file in `.cdsync/` where it may write.
    /// Where no events come by any way there are no hints: [`Backend::Polling`].
    ///
    /// # Errors
    /// [`WatchError`], retryable as its variants say.
    pub fn watch(&self, root: &Root, sink: Box<dyn HintSink>) -> Result<Watch, WatchError> {
        let sink: SharedSink = Arc::new(Mutex::new(sink));
        if !self.without_fanotify
            && let Some(member) = self.join_group(root, &sink)?
        {
            return Ok(Watch {
                inner: Inner::Fanotify(member),
            });
        }
        let inner = match self.by_folder(root, sink) {
            Ok(watch) => Inner::Notify(watch),
            Err(error @ WatchError::Probe(_)) => return Err(error),
            Err(error) => {
                tracing::warn!(root = root.display(), %error, "no events here: polling");
                Inner::Polling
            }
        };
        Ok(Watch { inner })
    }

    /// Watches by `notify`, if it gives events here.
    fn by_folder(&self, root: &Root, sink: SharedSink) -> Result<NotifyWatch, WatchError> {
        if self.without_notify {
            return Err(WatchError::Silent {
                root: root.display(),
            });
        }
        let watch = NotifyWatch::start(root, sink)?;
        match watch.flush(probe::PATIENCE) {
            // Nothing can be written there to prove it.
            Ok(()) | Err(FlushError::NoSentinel(_)) => Ok(watch),
            Err(_) => Err(WatchError::Silent {
                root: root.display(),
            }),
        }
    }

    /// `None` when fanotify is not allowed, refused, or gives no events here.
    fn join_group(&self, root: &Root, sink: &SharedSink) -> Result<Option<Member>, WatchError> {
        let group = match self.group(root) {
            Ok(group) => group,
            Err(errno) => {
                tracing::info!(root = root.display(), %errno, "no fanotify here");
                return Ok(None);
            }
        };
        let member = group.join(Arc::clone(sink));
        match probe::prove(root, &group).map_err(WatchError::Probe)? {
            Proof::Works => {}
            Proof::ReadOnly => {
                tracing::info!(root = root.display(), "read-only root: watcher not probed");
            }
            Proof::Silent => {
                tracing::warn!(root = root.display(), "fanotify gives no events here");
                return Ok(None);
            }
        }
        Ok(Some(member))
    }

    fn group(&self, root: &Root) -> Result<Arc<Group>, rustix::io::Errno> {
        let device = root.identity().device;
        // The map is consistent after any panic: entries are only replaced whole.
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&device).and_then(Weak::upgrade)
            && group.is_alive()
        {
            return Ok(group);
        }
        let group = Group::start(&root.top())?;
        groups.retain(|_, g| g.strong_count() > 0);
        groups.insert(device, Arc::downgrade(&group));
        Ok(group)
    }
}

/// A watched root. Dropping it ends the hints: none comes after the drop returned.
#[derive(Debug)]
pub struct Watch {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Fanotify(Member),
    Notify(NotifyWatch),
    Polling,
}

impl Watch {
    /// Who gives the hints.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match &self.inner {
            Inner::Fanotify(_) => Backend::Fanotify,
            Inner::Notify(_) => Backend::Notify("inotify"),
            Inner::Polling => Backend::Polling,
        }
    }

    /// Returns once the sink has been given everything that the kernel had queued before the call.
    /// Blocks this thread for at most `patience`.
    ///
    /// # Errors
    /// [`FlushError`]; nothing is promised then.
    pub fn flush(&self, patience: Duration) -> Result<(), FlushError> {
        match &self.inner {
            Inner::Fanotify(member) => member.flush(patience),
            Inner::Notify(watch) => watch.flush(patience),
            Inner::Polling => Ok(()),
        }
    }

    /// To be called before what a gap hides is looked at: from when this returns on, whatever
    /// happens in the folders that were told of so far gives hints. Blocks for a moment.
    pub fn settle(&self) {
        if let Inner::Notify(watch) = &self.inner {
            watch.settle();
        }
    }

    /// Asks for no hints about what happens in a folder, subfolders not included; what is renamed
    /// out of it is told. Meant for staging folders: it saves the kernel and the reader most of
    /// the work that staging causes. Does nothing where the backend cannot.
    pub fn ignore_folder(&self, folder: &Dir) {
        if let Inner::Fanotify(member) = &self.inner {
            member.ignore_folder(folder);
        }
    }
}
