//! Hints by the `notify` crate, for processes without privileges and filesystems without marks.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use ::notify::{
    Config, ErrorKind, Event, EventKind, EventKindMask, INotifyWatcher, RecursiveMode, Watcher,
};
use cdsync_core::ledger::object::Kind;
use cdsync_core::path::{Name, RESERVED_NAME, RelPath};

use super::probe::{passing_name, reserved_folder};
use super::{FlushError, FolderRef, Gap, Hint, HintFlags, HintSink, WatchError};
use crate::dir::{LookWants, Root};
use crate::error::{FsError, FsErrorKind};

type SharedSink = Arc<Mutex<Box<dyn HintSink>>>;

/// A root watched folder by folder.
pub(super) struct NotifyWatch {
    root: Root,
    sentinels: Arc<Sentinels>,
    /// Dropping it ends its thread.
    watcher: Mutex<Option<INotifyWatcher>>,
    /// Emptied when this is dropped, so that no hint comes afterwards.
    sink: Arc<Mutex<Option<SharedSink>>>,
}

impl fmt::Debug for NotifyWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotifyWatch")
            .field("root", &self.root.display())
            .finish_non_exhaustive()
    }
}

/// Files made in `.cdsync/` to be read back: the queue is in order, so all before them is out.
#[derive(Debug, Default)]
struct Sentinels {
    seen: Mutex<Vec<Name>>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NotifyWatch {
    pub(super) fn start(root: &Root, sink: SharedSink) -> Result<Self, WatchError> {
        // Made before the watch begins, so that the watch covers it.
        let _ = reserved_folder(root).map_err(WatchError::Probe)?;
        let setup = |error: &::notify::Error| match error.kind {
            ErrorKind::MaxFilesWatch => WatchError::TooManyFolders {
                root: root.display(),
            },
            _ => WatchError::Setup {
                root: root.display(),
                reason: error.to_string(),
            },
        };
        let path = root.system_path();
        let sentinels = Arc::new(Sentinels::default());
        let sink = Arc::new(Mutex::new(Some(sink)));
        let translator = Translator {
            root: root.clone(),
            path: path.clone(),
            sink: Arc::clone(&sink),
            sentinels: Arc::clone(&sentinels),
            moved_from: None,
        };
        let mut watcher = INotifyWatcher::new(translator, config()).map_err(|e| setup(&e))?;
        watcher
            .watch(&path, RecursiveMode::Recursive)
            .map_err(|e| setup(&e))?;
        Ok(Self {
            root: root.clone(),
            sentinels,
            watcher: Mutex::new(Some(watcher)),
            sink,
        })
    }

    /// Returns once the watches stand for all that was told so far: `notify` adds the watches of new
    /// and moved folders after it told of them, at the end of what it had read. Its configuration
    /// is answered behind that.
    pub(super) fn settle(&self) {
        if let Some(watcher) = &mut *lock(&self.watcher)
            && let Err(error) = watcher.configure(config())
        {
            tracing::warn!(%error, "the watcher does not answer");
        }
    }

    pub(super) fn flush(&self, patience: Duration) -> Result<(), FlushError> {
        let deadline = Instant::now() + patience;
        let folder = match reserved_folder(&self.root) {
            Ok(Some(folder)) => folder,
            Ok(None) => {
                let error = FsError::of_kind(FsErrorKind::ReadOnly, "write to", RESERVED_NAME);
                return Err(FlushError::NoSentinel(error));
            }
            Err(error) => return Err(FlushError::NoSentinel(error)),
        };
        let name = passing_name("flush").map_err(FlushError::NoSentinel)?;
        folder
            .create_exclusive(&name, 0o600)
            .map(drop)
            .map_err(FlushError::NoSentinel)?;
        folder.unlink(&name).map_err(FlushError::NoSentinel)?;
        let mut seen = lock(&self.sentinels.seen);
        loop {
            if let Some(at) = seen.iter().position(|n| *n == name) {
                seen.swap_remove(at);
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FlushError::TimedOut);
            }
            let waited = self.sentinels.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn config() -> Config {
    let kinds = EventKindMask::CORE | EventKindMask::ACCESS_CLOSE;
    Config::default()
        .with_follow_symlinks(false)
        .with_event_kinds(kinds)
}

impl Drop for NotifyWatch {
    fn drop(&mut self) {
        lock(&self.sink).take();
        let watcher = lock(&self.watcher).take();
        drop(watcher);
    }
}

struct Translator {
    root: Root,
    /// The root as it is named in events.
    path: PathBuf,
    sink: Arc<Mutex<Option<SharedSink>>>,
    sentinels: Arc<Sentinels>,
    /// The last rename seen leaving a name: its other half follows at once if it has one.
    moved_from: Option<usize>,
}

/// How many sentinels that nobody waited for are remembered.
const SENTINELS_MAX: usize = 64;

impl ::notify::EventHandler for Translator {
    fn handle_event(&mut self, event: ::notify::Result<Event>) {
        let mut hints = Vec::new();
        let gap = match event {
            Ok(event) if event.need_rescan() => Some(Gap::Overflow),
            Ok(event) => self.translate(&event, &mut hints).err(),
            Err(error) => {
                tracing::warn!(%error, "a folder is not watched");
                Some(Gap::NotWatched)
            }
        };
        let sink = lock(&self.sink);
        let Some(sink) = &*sink else { return };
        let mut sink = lock(sink);
        if !hints.is_empty() {
            sink.hints(&hints);
        }
        if let Some(gap) = gap {
            sink.gap(gap);
        }
        drop(sink);
        self.note_sentinels(&hints);
    }
}

impl Translator {
    fn note_sentinels(&self, hints: &[Hint]) {
        for hint in hints.iter().filter(|h| h.what.created) {
            let Some(name) = &hint.name else { continue };
            let FolderRef::Path(folder) = &hint.folder else {
                continue;
            };
            if folder.as_bytes() != RESERVED_NAME || !name.as_bytes().starts_with(b".flush-") {
                continue;
            }
            let mut seen = lock(&self.sentinels.seen);
            if seen.len() >= SENTINELS_MAX {
                seen.remove(0);
            }
            seen.push(name.clone());
            self.sentinels.changed.notify_all();
        }
    }

    fn translate(&mut self, event: &Event, hints: &mut Vec<Hint>) -> Result<(), Gap> {
        let mut what = HintFlags::default();
        match event.kind {
            EventKind::Create(kind) => {
                what.created = true;
                what.is_folder = kind == CreateKind::Folder;
            }
            EventKind::Remove(kind) => {
                what.removed = true;
                what.is_folder = kind == RemoveKind::Folder;
            }
            EventKind::Modify(ModifyKind::Data(_)) => what.written = true,
            EventKind::Modify(ModifyKind::Metadata(_)) => what.attributes = true,
            EventKind::Modify(ModifyKind::Name(mode)) => {
                return self.translate_rename(event, mode, hints);
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => what.closed = true,
            EventKind::Access(_) => return Ok(()),
            EventKind::Any | EventKind::Other | EventKind::Modify(_) => {
                what.written = true;
                what.attributes = true;
            }
        }
        for path in &event.paths {
            self.push(path, what, hints)?;
            if what.created && what.is_folder {
                // What appears in it before its own watch stands is told by nobody.
                return Err(Gap::NotWatched);
            }
        }
        Ok(())
    }

    /// A rename comes as a leaving half, then an arriving half and the whole if both are watched.
    fn translate_rename(
        &mut self,
        event: &Event,
        mode: RenameMode,
        hints: &mut Vec<Hint>,
    ) -> Result<(), Gap> {
        let created = HintFlags {
            created: true,
            ..HintFlags::default()
        };
        let removed = HintFlags {
            removed: true,
            ..HintFlags::default()
        };
        match (mode, event.paths.as_slice()) {
            (RenameMode::From, [path]) => {
                self.moved_from = event.tracker();
                self.push(path, removed, hints)
            }
            // The whole follows at once and says more.
            (RenameMode::To, [_])
                if self.moved_from.is_some_and(|t| event.tracker() == Some(t)) =>
            {
                Ok(())
            }
            (RenameMode::To, [path]) => {
                self.push(path, created, hints)?;
                self.arrived(path)
            }
            (RenameMode::Both, [from, to]) => {
                self.moved_from = None;
                let (folder, name) = self.split(from)?;
                let renamed_to = Some(self.split(to)?);
                let what = HintFlags::default();
                hints.push(Hint {
                    folder,
                    name: Some(name),
                    what,
                    pid: 0,
                    renamed_to,
                    object: None,
                });
                self.arrived(to)
            }
            (_, paths) => paths.iter().try_for_each(|path| {
                self.push(
                    path,
                    HintFlags {
                        created: true,
                        removed: true,
                        ..created
                    },
                    hints,
                )
            }),
        }
    }

    /// A moved folder is not watched for a moment, nor is anything below it. Looking at the path is
    /// good enough: if something else is there by now, that is told too.
    fn arrived(&self, path: &Path) -> Result<(), Gap> {
        let (FolderRef::Path(folder), name) = self.split(path)? else {
            return Ok(());
        };
        let found = self.root.top().open_below(&folder);
        match found.and_then(|dir| dir.look(&name, LookWants::default())) {
            Ok(Some(found)) if found.kind == Kind::Folder => Err(Gap::NotWatched),
            // A folder that is not there any more was moved again or removed: told as well.
            _ => Ok(()),
        }
    }

    fn push(&self, path: &Path, what: HintFlags, hints: &mut Vec<Hint>) -> Result<(), Gap> {
        if path == self.path {
            if what.removed {
                return Err(Gap::RootChanged);
            }
            let folder = FolderRef::Path(RelPath::root());
            hints.push(Hint {
                folder,
                name: None,
                what,
                pid: 0,
                renamed_to: None,
                object: None,
            });
            return Ok(());
        }
        let (folder, name) = self.split(path)?;
        hints.push(Hint {
            folder,
            name: Some(name),
            what,
            pid: 0,
            renamed_to: None,
            object: None,
        });
        Ok(())
    }

    fn split(&self, path: &Path) -> Result<(FolderRef, Name), Gap> {
        let parent = path.parent().ok_or(Gap::Malformed)?;
        let name = path.file_name().ok_or(Gap::Malformed)?;
        let name = Name::new(name.as_bytes()).map_err(|_| Gap::Malformed)?;
        Ok((FolderRef::Path(self.relative(parent)?), name))
    }

    fn relative(&self, path: &Path) -> Result<RelPath, Gap> {
        let below = path.strip_prefix(&self.path).map_err(|_| Gap::Malformed)?;
        RelPath::new(below.as_os_str().as_bytes().to_vec()).map_err(|_| Gap::Malformed)
    }
}
