//! Changing a target tree: staged beside it, published whole, nothing of others lost.
//!
//! Layout at a target's root, all of it of mode 0700:
//! ```text
//! .cdsync/JOB/root                          the marker: whose root this is
//! .cdsync/JOB/stage/N/<16 hex digits>       what is being written, one folder per writer: files,
//!                                           links, and new folders with what is in them
//! .cdsync/JOB/spare/<16 hex digits>         what is being swapped: may be another's at any moment
//! .cdsync/JOB/trash/<time>-<8 hex digits>/  what was removed or displaced, and its `manifest`
//!                                           and, once it is counted, its `total`
//! ```

mod digest;
mod folder;
mod publish;
mod relocate;
mod retention;
#[cfg(test)]
mod retention_tests;
mod sparse;
mod stage;
#[cfg(test)]
mod tests;
mod trash;
mod whole;

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdsync_core::ledger::object::{Fingerprint, Identity, Kind, Metadata, Observed};
use cdsync_core::path::{Escaped, Name, RESERVED_NAME, RelPath};
use cdsync_core::time::Timestamp;
use rustix::io::Errno;
use thiserror::Error;

use crate::dir::{Dir, LookWants, Root};
use crate::error::{FsError, FsErrorKind};

pub use digest::NameSetDigest;
pub use folder::MadeFolder;
pub use publish::{Displaced, Published};
pub use relocate::{Move, MoveOutcome, Relocated};
pub use retention::{Pace, TrashLimits, TrashUse, Weight};
pub use stage::{Staged, StagedWriter, Stager};
pub use trash::{TrashClock, Trashed};
pub use whole::{WHOLE_DEPTH_MAX, WholeFolder, make_private, write_unseen};

use retention::Weights;
use trash::Trash;

/// The longest marker, in bytes.
const MARKER_MAX_BYTES: usize = 64 * 1024;

/// Why a change could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The system refused. Retryable as the error says.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A folder that was to go holds other names than known. Nothing was changed; look again.
    #[error("'{path}' holds {found} names where {known} are known")]
    ForeignContent {
        /// The folder.
        path: RelPath,
        /// How many names the caller knows below it.
        known: u64,
        /// How many there are.
        found: u64,
    },
    /// Right after publishing, something else was at the name. Retryable after another look.
    #[error("'{path}' was replaced by another process right after it was published")]
    Overtaken {
        /// The name.
        path: RelPath,
    },
    /// Something else than expected is at the name, and was to stay. Nothing was changed.
    #[error("'{path}' was changed by others")]
    Drifted {
        /// The name.
        path: RelPath,
    },
    /// To this filesystem the name is the same as another one of its folder. Nothing was changed.
    #[error("the name of '{path}' is the same as '{other}' on this filesystem")]
    Clashes {
        /// The name.
        path: RelPath,
        /// The one that is there.
        other: Name,
    },
    /// The name could not be taken because others change it again and again. Retryable later.
    #[error("'{path}' is being changed by other processes again and again")]
    Contended {
        /// The name.
        path: RelPath,
    },
    /// What is to be written is not at hand. Retryable: it is fetched again.
    #[error("the content of '{path}' is not at hand: it is fetched again")]
    NoContent {
        /// The name.
        path: RelPath,
    },
    /// What is to be written is not what was announced. Retryable: it is fetched again.
    #[error("other content came for '{path}' than was announced: it is fetched again")]
    WrongContent {
        /// The name.
        path: RelPath,
    },
    /// The job carries nothing of this kind. A mistake of the peer, or other orders than its.
    #[error("'{path}' is a {kind}, which the job does not carry (specials)")]
    NotCarried {
        /// The name.
        path: RelPath,
        /// What it is.
        kind: Kind,
    },
    /// Bytes beyond the size that was announced for a large file. A mistake of the peer.
    #[error("range {index} of {bytes} bytes does not lie in a content of {size}")]
    OutOfRange {
        /// The range.
        index: u64,
        /// How many bytes came.
        bytes: usize,
        /// The size of the whole, in bytes.
        size: u64,
    },
}

impl ApplyError {
    /// Whether trying again later can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fs(error) => error.is_retryable(),
            Self::ForeignContent { .. }
            | Self::Drifted { .. }
            | Self::Clashes { .. }
            | Self::NotCarried { .. }
            | Self::OutOfRange { .. } => false,
            Self::Overtaken { .. }
            | Self::Contended { .. }
            | Self::NoContent { .. }
            | Self::WrongContent { .. } => true,
        }
    }
}

/// What the caller knows of the thing that a change replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Which inode.
    pub identity: Identity,
    /// Size and modification time of a file, where they are known: a file written to in place is
    /// then treated as foreign and kept. The change time is of no use here, as a rename changes it.
    pub content: Option<(u64, Timestamp)>,
}

impl From<Identity> for Expected {
    fn from(identity: Identity) -> Self {
        Self {
            identity,
            content: None,
        }
    }
}

impl From<Fingerprint> for Expected {
    fn from(print: Fingerprint) -> Self {
        Self {
            identity: print.identity,
            content: Some((print.size, print.mtime)),
        }
    }
}

impl Expected {
    fn is_met_by(&self, found: &Observed) -> bool {
        let print = &found.fingerprint;
        let content = match self.content {
            Some((size, mtime)) if found.kind == Kind::File => {
                size == print.size && mtime == print.mtime
            }
            _ => true,
        };
        self.identity == print.identity && content
    }
}

/// Changes the tree below one target root for one job. Shared by all its writers.
#[derive(Debug)]
pub struct Applier {
    root: Root,
    /// The folders of `.cdsync`: whoever owns the root can move them, so they are known by more
    /// than their names.
    own: [Identity; 5],
    home: Arc<Dir>,
    stage: Arc<Dir>,
    spare: Arc<Dir>,
    trash: Mutex<Trash>,
    limits: TrashLimits,
    /// Of closed trash folders.
    weights: Mutex<Weights>,
    /// Older versions of our own that are replaced go to the trash too.
    keep_replaced: bool,
    /// The filesystem takes names for one that are not the same bytes.
    folds: bool,
    /// Each file is on the disk before it has its name, and its name before anything else is done.
    sync_each: bool,
}

impl Applier {
    /// Makes `.cdsync/JOB/` with what belongs there and removes what an earlier run left in
    /// staging. What it left in the middle of a swap goes to the trash: it may be another's.
    ///
    /// # Errors
    /// What the system said; retryable as it says.
    pub fn open(root: &Root, job: &str) -> Result<Self, ApplyError> {
        let top = root.top();
        let reserved = top.private_folder(&name_of(RESERVED_NAME)?)?;
        let home = reserved.private_folder(&name_of(job.as_bytes())?)?;
        let stage = home.private_folder(&name_of(b"stage")?)?;
        let spare = home.private_folder(&name_of(b"spare")?)?;
        let trash = home.private_folder(&name_of(b"trash")?)?;
        let own = [&reserved, &home, &stage, &spare, &trash].map(Dir::identity);
        stage::clear(&stage)?;
        // Without room, or where nothing can be written, whatever comes says so.
        let folds = stage.probe_folding().unwrap_or(false);
        let applier = Self {
            root: root.clone(),
            own,
            home: Arc::new(home),
            stage: Arc::new(stage),
            spare: Arc::new(spare),
            trash: Mutex::new(Trash::new(trash, TrashLimits::default().span())),
            limits: TrashLimits::default(),
            weights: Mutex::default(),
            keep_replaced: false,
            folds,
            sync_each: false,
        };
        applier.keep_spares()?;
        Ok(applier)
    }

    /// Says what the trash keeps, which is everything by default, and has older versions that are
    /// replaced kept there too, which are dropped by default.
    #[must_use]
    pub fn with_trash(mut self, limits: TrashLimits) -> Self {
        self.trash_lock().set_span(limits.span());
        self.keep_replaced = !limits.erase;
        self.limits = limits;
        self
    }

    /// Says by which clock things come to the trash: what is too old is removed by that, once it is
    /// known to be right.
    #[must_use]
    pub fn with_trash_clock(self, clock: TrashClock) -> Self {
        self.trash_lock().set_clock(clock);
        self
    }

    /// Has each file synced before it is published, and its folder after.
    #[must_use]
    pub fn with_each_synced(mut self, each: bool) -> Self {
        self.sync_each = each;
        self
    }

    /// Whether each file is synced for itself.
    #[must_use]
    pub fn is_each_synced(&self) -> bool {
        self.sync_each
    }

    /// The root whose tree it changes.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }
    /// Where things are while they are swapped: to be ignored by a watch, as [`Stager::folder`].
    #[must_use]
    pub fn spare_folder(&self) -> &Dir {
        &self.spare
    }

    /// A staging folder for writer `n`. Writers with different numbers never meet.
    ///
    /// # Errors
    /// What the system said.
    pub fn stager(&self, n: usize) -> Result<Stager, ApplyError> {
        let folder = self
            .stage
            .private_folder(&name_of(n.to_string().as_bytes())?)?;
        Ok(Stager::new(Arc::new(folder)))
    }

    /// The marker of this root, `None` when it has none.
    ///
    /// # Errors
    /// What the system said; a marker over 64 KiB is refused.
    pub fn marker(&self) -> Result<Option<Vec<u8>>, ApplyError> {
        read_marker(&self.home)
    }

    /// The marker of a root for a job, `None` when it has none. Nothing is made there, so that a
    /// root which is not what it was stays untouched.
    ///
    /// # Errors
    /// As [`Self::marker`].
    pub fn marker_of(root: &Root, job: &str) -> Result<Option<Vec<u8>>, ApplyError> {
        let open = || {
            let reserved = root.top().open_folder(&name_of(RESERVED_NAME)?)?;
            reserved.open_folder(&name_of(job.as_bytes())?)
        };
        match open() {
            Ok(home) => read_marker(&home),
            Err(error) if error.kind() == FsErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the marker, durable when this returns.
    ///
    /// # Errors
    /// What the system said; the marker is then the old or the new one, whole.
    pub fn write_marker(&self, bytes: &[u8]) -> Result<(), ApplyError> {
        let name = name_of(b"root")?;
        let temp = random_name()?;
        let file = self.stage.create_exclusive(&temp, 0o600)?;
        let fail = |errno| FsError::at("write", self.home.path(), &name, errno);
        write_full(&file, bytes, 0).map_err(fail)?;
        rustix::fs::fsync(&file).map_err(fail)?;
        let none = rustix::fs::RenameFlags::empty();
        let (stage, home) = (&*self.stage, &*self.home);
        rustix::fs::renameat_with(stage, temp.as_bytes(), home, name.as_bytes(), none)
            .map_err(fail)?;
        rustix::fs::fsync(home).map_err(fail)?;
        // The folders above may be as new as the marker.
        rustix::fs::syncfs(home).map_err(fail)?;
        Ok(())
    }

    /// The name that a folder lists of what is at `name`, where that is another one because the
    /// filesystem takes both for one. Not for what is known as `own`.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn alias_of(
        &self,
        dir: &Dir,
        name: &Name,
        own: Option<Identity>,
    ) -> Result<Option<Name>, FsError> {
        if !self.folds && !dir.folds_case() {
            return Ok(None);
        }
        match dir.look(name, LookWants::default())? {
            Some(found) if Some(found.fingerprint.identity) != own => {
                dir.listed_instead(name, &found)
            }
            _ => Ok(None),
        }
    }

    /// Refuses a name that is another one's here: [`Self::alias_of`].
    ///
    /// # Errors
    /// [`ApplyError::Clashes`] then; else as there.
    pub fn refuse_alias(
        &self,
        dir: &Dir,
        name: &Name,
        own: Option<Identity>,
    ) -> Result<(), ApplyError> {
        match self.alias_of(dir, name, own)? {
            None => Ok(()),
            Some(other) => Err(ApplyError::Clashes {
                path: dir.path().join(name),
                other,
            }),
        }
    }

    /// Refuses a path that leads to a folder by another name than it says, because the filesystem
    /// takes both for one.
    ///
    /// # Errors
    /// [`FsErrorKind::Moved`] then; else what the system said.
    pub fn refuse_respelt(&self, path: &RelPath) -> Result<(), FsError> {
        if !self.folds {
            return Ok(());
        }
        let mut above = RelPath::root();
        for component in path.components() {
            let dir = self.root.top().open_below(&above)?;
            let name = name_of(component)?;
            if self.alias_of(&dir, &name, None)?.is_some() {
                let path = above.join(&name);
                return Err(FsError::of_kind(FsErrorKind::Moved, "use", path));
            }
            above = above.join(&name);
        }
        Ok(())
    }

    /// As [`Dir::set_metadata`].
    ///
    /// # Errors
    /// As there.
    pub fn set_metadata(
        &self,
        dir: &Dir,
        name: &Name,
        identity: Option<Identity>,
        meta: &Metadata,
        kind: Kind,
    ) -> Result<Observed, ApplyError> {
        Ok(dir.set_metadata(name, identity, meta, kind)?)
    }

    /// Makes everything done so far durable: the trash's manifests and the whole filesystem. After
    /// an error nothing since the last good call may be claimed.
    ///
    /// # Errors
    /// What the system said; what was written must then be verified by content.
    pub fn sync(&self) -> Result<(), ApplyError> {
        self.trash_lock().flush()?;
        let top = self.root.top();
        rustix::fs::syncfs(top.as_fd())
            .map_err(|errno| FsError::new("sync", top.path().as_bytes(), errno))?;
        Ok(())
    }

    /// Makes one name and what it stands for durable; cheaper than [`Applier::sync`] for a few.
    ///
    /// # Errors
    /// As [`Applier::sync`].
    pub fn sync_file(&self, dir: &Dir, name: &Name) -> Result<(), ApplyError> {
        let found = dir.look_existing(name)?;
        let fail = |errno| FsError::at("sync", dir.path(), name, errno);
        if matches!(found.kind, Kind::File | Kind::Folder) {
            let file = dir.open_file(name)?;
            rustix::fs::fsync(&file).map_err(fail)?;
        }
        rustix::fs::fsync(dir).map_err(fail)?;
        Ok(())
    }

    /// Makes the names of one folder durable: what was moved into it, or out of it.
    ///
    /// # Errors
    /// As [`Applier::sync`].
    pub fn sync_folder(&self, dir: &Dir) -> Result<(), ApplyError> {
        rustix::fs::fsync(dir)
            .map_err(|errno| FsError::new("sync", dir.path().as_bytes(), errno))?;
        Ok(())
    }

    fn trash_lock(&self) -> MutexGuard<'_, Trash> {
        // Its counter only rises and its lines are whole, also after a panic elsewhere.
        self.trash.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trash_top(&self) -> (Arc<Dir>, Option<Name>) {
        self.trash_lock().top()
    }

    fn weights(&self) -> MutexGuard<'_, Weights> {
        // Each weight is whole.
        self.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_marker(home: &Dir) -> Result<Option<Vec<u8>>, ApplyError> {
    let name = name_of(b"root")?;
    let file = match home.open_file(&name) {
        Ok(file) => file,
        Err(error) if error.kind() == FsErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = vec![0; MARKER_MAX_BYTES + 1];
    let read = read_full(&file, &mut bytes)
        .map_err(|errno| FsError::at("read", home.path(), &name, errno))?;
    if read > MARKER_MAX_BYTES {
        return Err(FsError::at("read", home.path(), &name, Errno::FBIG).into());
    }
    bytes.truncate(read);
    Ok(Some(bytes))
}

fn name_of(bytes: &[u8]) -> Result<Name, FsError> {
    Name::new(bytes)
        .map_err(|_| FsError::new("use", Escaped(bytes).to_string().into_bytes(), Errno::INVAL))
}

/// Random numbers asked of the system at once: asking for each costs as much as a look at a file.
const RANDOM_STOCK: usize = 64;

thread_local! {
    static RANDOM: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

fn random_u64() -> Result<u64, FsError> {
    RANDOM.with_borrow_mut(|stock| {
        if let Some(number) = stock.pop() {
            return Ok(number);
        }
        let mut bytes = [0; 8 * RANDOM_STOCK];
        getrandom::fill(&mut bytes).map_err(|_| FsError::new("name", "random", Errno::IO))?;
        let (numbers, _) = bytes.as_chunks();
        stock.extend(numbers.iter().map(|b| u64::from_le_bytes(*b)));
        stock
            .pop()
            .ok_or_else(|| FsError::new("name", "random", Errno::IO))
    })
}

fn random_name() -> Result<Name, FsError> {
    let number = random_u64()?;
    let digit = |at: usize| b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize & 15];
    name_of(&std::array::from_fn::<_, 16, _>(digit))
}

/// Writes all of a new file's bytes, with holes where they are zero.
fn write_whole(file: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    sparse::write_sparse(file.as_fd(), bytes, 0, false)?;
    if sparse::ends_in_hole(bytes) {
        rustix::fs::ftruncate(file, bytes.len() as u64)?;
    }
    Ok(())
}

fn write_full(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    let mut rest = bytes;
    let mut offset = offset;
    while !rest.is_empty() {
        match rustix::io::pwrite(file.as_fd(), rest, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                rest = &rest[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads from the start until the buffer is full or the file ends.
fn read_full(file: impl AsFd, into: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < into.len() {
        match rustix::io::pread(file.as_fd(), &mut into[done..], done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}
