//! Proof that the kernel gives events for a root: a probe file made, renamed and removed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cdsync_core::path::{Name, RESERVED_NAME};
use rustix::io::Errno;

use super::fanotify::Group;
use super::{Gap, Hint, HintSink};
use crate::dir::{Dir, Root};
use crate::error::{FsError, FsErrorKind};

/// How long events may take. They are queued before the calls return; this only bounds a reader
/// that has much to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// What the probe showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// All three events came.
    Works,
    /// Nothing can be written there.
    ReadOnly,
    /// They did not come.
    Silent,
}

#[derive(Debug, Default)]
struct Seen {
    created: bool,
    renamed: bool,
    removed: bool,
}

struct ProbeSink {
    before: Name,
    after: Name,
    seen: Arc<Mutex<Seen>>,
}

impl HintSink for ProbeSink {
    fn hints(&mut self, batch: &[Hint]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for hint in batch {
            let name = hint.name.as_ref();
            if name == Some(&self.before) {
                seen.created |= hint.what.created;
                seen.renamed |= hint
                    .renamed_to
                    .as_ref()
                    .is_some_and(|(_, to)| *to == self.after);
            }
            seen.removed |= name == Some(&self.after) && hint.what.removed;
        }
    }

    fn gap(&mut self, _why: Gap) {}
}

/// Opens `.cdsync/` of a root, making it if needed; `None` where nothing can be written.
pub(super) fn reserved_folder(root: &Root) -> Result<Option<Dir>, FsError> {
    let name = reserved_name()?;
    let top = root.top();
    match top.make_folder(&name, 0o700) {
        Ok(()) => {}
        Err(error) => match error.kind() {
            FsErrorKind::Exists => {}
            FsErrorKind::ReadOnly | FsErrorKind::Permission => return Ok(None),
            _ => return Err(error),
        },
    }
    top.open_folder(&name).map(Some)
}

fn reserved_name() -> Result<Name, FsError> {
    Name::new(RESERVED_NAME).map_err(|_| FsError::new("use", RESERVED_NAME, Errno::INVAL))
}

/// A name for a file that lives for a moment.
pub(super) fn passing_name(what: &str) -> Result<Name, FsError> {
    let random = getrandom::u64().map_err(|_| FsError::new("name", what, Errno::IO))?;
    Name::new(format!(".{what}-{random:016x}").as_bytes())
        .map_err(|_| FsError::new("name", what, Errno::INVAL))
}

/// Makes the events and says whether the group delivers them.
pub(super) fn prove(root: &Root, group: &Arc<Group>) -> Result<Proof, FsError> {
    let Some(folder) = reserved_folder(root)? else {
        return Ok(Proof::ReadOnly);
    };
    let (before, after) = (passing_name("probe")?, passing_name("probe")?);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let sink = ProbeSink {
        before: before.clone(),
        after: after.clone(),
        seen: Arc::clone(&seen),
    };
    let member = group.join(Arc::new(Mutex::new(Box::new(sink))));
    match folder.create_exclusive(&before, 0o600) {
        Ok(file) => drop(file),
        Err(error) => match error.kind() {
            FsErrorKind::ReadOnly | FsErrorKind::Permission => return Ok(Proof::ReadOnly),
            _ => return Err(error),
        },
    }
    folder.rename_new(&before, &folder, &after)?;
    folder.unlink(&after)?;
    if member.flush(PATIENCE).is_err() {
        return Ok(Proof::Silent);
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let works = seen.created && seen.renamed && seen.removed;
    Ok(if works { Proof::Works } else { Proof::Silent })
}
