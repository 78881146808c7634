//! Further names of files.

use cdsync_core::ledger::loss::Loss;
use cdsync_core::ledger::object::{Identity, Kind, Observed};
use cdsync_core::replica::Place;
use cdsync_fs::{ApplyError, Dir, FsErrorKind, LookWants, Staged, Stager, open_content};

use super::Disk;

impl Disk {
    /// Makes a name a link to what another name has. Where the filesystem holds no such names, it
    /// gets a copy, which is told.
    pub(super) fn link(
        &self,
        from: &Place,
        at: &Place,
        identity: Identity,
        over: Option<Identity>,
        stager: &Stager,
    ) -> Result<Vec<Observed>, ApplyError> {
        let dir = self.dir(at)?;
        self.applier.refuse_alias(&dir, &at.name, None)?;
        if let Some(seen) = dir.look(&at.name, LookWants::default())?
            && seen.fingerprint.identity == identity
        {
            return Ok(vec![seen]);
        }
        let origin = self.dir(from)?;
        let (staged, is_copy) = match stager.link(&origin, &from.name, identity) {
            Err(ApplyError::Fs(error)) if error.kind() == FsErrorKind::Unlinkable => {
                (copy(&origin, from, identity, stager)?, true)
            }
            other => (other?, false),
        };
        let published = self
            .applier
            .publish(staged, &dir, &at.name, over.map(Into::into))?;
        let mut seen = published.observed;
        if is_copy {
            seen.losses.add(Loss::HardLink);
        }
        Ok(vec![seen])
    }
}

/// Stages a copy of what is at a name, with its metadata.
fn copy(
    dir: &Dir,
    from: &Place,
    identity: Identity,
    stager: &Stager,
) -> Result<Staged, ApplyError> {
    let moved = || ApplyError::Overtaken {
        path: dir.path().join(&from.name),
    };
    let seen = dir.look(&from.name, LookWants::ALL)?.ok_or_else(moved)?;
    if seen.fingerprint.identity != identity {
        return Err(moved());
    }
    match (seen.kind, &seen.link) {
        (Kind::File, _) => {}
        (Kind::Symlink, Some(target)) => return stager.symlink(target, &seen.meta),
        (kind, _) => return stager.special(kind, seen.device, &seen.meta),
    }
    let reader = open_content(dir, &from.name, &seen.fingerprint).map_err(|_| moved())?;
    let size = seen.fingerprint.size;
    let writer = stager.large(size)?;
    let mut bytes = Vec::new();
    for index in 0..cdsync_delta::range_count(size) {
        bytes.clear();
        reader.read_range(index, &mut bytes).map_err(|_| moved())?;
        writer.write_range(index, &bytes)?;
    }
    writer.finish(&seen.meta)
}
