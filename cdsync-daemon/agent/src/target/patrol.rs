//! The paced check for what others changed: the replica says what is looked at, and when.

use cdsync_core::ids::ObjectId;
use cdsync_core::ledger::access::FolderAt;
use cdsync_core::replica::{PATROL_NAMES, PatrolAsk, SweepEntry};
use cdsync_fs::{Dir, Durability, FsErrorKind, LookWants, NameStream};

use super::TargetError;
use super::engine::Engine;
use crate::clock::{steady, wall};

/// The folder that is being listed.
#[derive(Debug, Default)]
pub(super) struct PatrolRun {
    names: Option<(ObjectId, NameStream)>,
}

impl Engine {
    /// Goes on with the check, or begins one, if that is due.
    pub(super) fn patrol(&mut self) -> Result<(), TargetError> {
        if !self.replica.wants_patrol(steady(), wall()) {
            return Ok(());
        }
        let asked = self.store.write(Durability::Lazy, |t| {
            self.replica.poll_patrol(steady(), wall(), t)
        })?;
        match asked {
            None => Ok(()),
            Some(PatrolAsk::Step) => {
                self.patrol.names = None;
                self.apply_planned()
            }
            Some(PatrolAsk::Names(folder)) => self.patrol_names(&folder),
        }
    }

    fn patrol_names(&mut self, folder: &FolderAt) -> Result<(), TargetError> {
        let reference = crate::source::dir_ref(folder);
        let listed = self.root.dir(&reference).and_then(|dir| {
            let mut stream = match self.patrol.names.take() {
                Some((id, stream)) if id == folder.id => stream,
                _ => dir.name_stream()?,
            };
            let names = stream.next(PATROL_NAMES)?;
            Ok((dir, stream, names))
        });
        let (dir, stream, names) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(path = %folder.path, %error, "a folder is not checked");
                self.replica.handle_patrol_failed();
                return Ok(());
            }
        };
        let ended = names.len() < PATROL_NAMES;
        if !ended {
            self.patrol.names = Some((folder.id, stream));
        }
        let unknown = self.replica.handle_patrol_names(
            steady(),
            &self.store.read()?,
            folder,
            names,
            ended,
        )?;
        if unknown.is_empty() {
            return Ok(());
        }
        let entries = unknown.into_iter().filter_map(|name| look(&dir, name));
        let entries: Vec<SweepEntry> = entries.collect();
        self.store.write(Durability::Lazy, |t| {
            self.replica.handle_foreign(steady(), t, folder, entries)
        })?;
        self.apply_planned()
    }
}

/// What is at a name; `None` for nothing, and for what is mounted there, which is not this root's.
fn look(dir: &Dir, name: cdsync_core::path::Name) -> Option<SweepEntry> {
    match dir.look(&name, LookWants::default()) {
        Ok(seen) => seen.map(|seen| SweepEntry {
            name,
            kind: seen.kind,
            identity: seen.fingerprint.identity,
        }),
        Err(error) => {
            if error.kind() != FsErrorKind::OtherFilesystem {
                tracing::debug!(%error, "a name is not checked");
            }
            None
        }
    }
}
