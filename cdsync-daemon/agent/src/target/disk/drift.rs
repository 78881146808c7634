//! Whether others changed what is at a name.

use cdsync_core::ledger::loss::{Loss, Losses};
use cdsync_core::ledger::object::{Fingerprint, Hash, Identity, Kind, Metadata, Observed};
use cdsync_core::ledger::rows::{Known, Left};
use cdsync_core::path::Name;
use cdsync_core::replica::{ApplyResult, Difference, Met, Place};
use cdsync_fs::{ApplyError, Dir, LookWants, hash_content};

use super::Disk;

/// A file that has only another change time is read up to this size, in bytes, to tell whether
/// anything else changed. A larger one is taken by its size and modification time: names that it
/// got or lost, and backups, change the time as well.
const READ_MAX_BYTES: u64 = 64 << 20;

impl Disk {
    /// Compares what is at a name with what is known to be there; `None` for nothing.
    pub(super) fn met(
        &self,
        dir: &Dir,
        name: &Name,
        known: Option<&Known>,
    ) -> Result<Met, ApplyError> {
        let Some(seen) = dir.look(name, LookWants::default())? else {
            return Ok(Met::Nothing);
        };
        let own = known.map(|known| known.identity);
        if self.applier.alias_of(dir, name, own)?.is_some() {
            return Ok(Met::Nothing);
        }
        let Some(known) = known else {
            return Ok(Met::Other);
        };
        if known.identity == Identity::default() {
            // Whatever is there.
            return Ok(Met::AsLeft);
        }
        if seen.fingerprint.identity != known.identity {
            return Ok(Met::Other);
        }
        let Some(left) = &known.left else {
            return Ok(Met::AsLeft);
        };
        if seen.fingerprint.ctime == left.ctime {
            return Ok(Met::AsLeft);
        }
        if seen.kind == Kind::File && !has_content(dir, name, &seen, left) {
            return Ok(Met::Other);
        }
        if seen.kind != Kind::Symlink && seen.meta.mode != left.mode {
            return Ok(Met::OtherMeta);
        }
        Ok(Met::AsLeft)
    }
}

impl Disk {
    /// Whether a copy is as it was written, by what is on the disk and not only in memory.
    pub(super) fn verify(
        &self,
        at: &Place,
        kind: Kind,
        print: &Fingerprint,
        left: Option<&Left>,
    ) -> Result<ApplyResult, ApplyError> {
        let dir = self.dir(at)?;
        let wants = LookWants {
            handle: kind == Kind::Folder,
            ..LookWants::default()
        };
        let Some(seen) = dir.look(&at.name, wants)? else {
            return Ok(ApplyResult::NotEqual);
        };
        let mut equal = seen.kind == kind && seen.fingerprint.identity == print.identity;
        if kind == Kind::File && equal {
            let now = &seen.fingerprint;
            equal = now.size == print.size
                && match left.and_then(|left| left.hash) {
                    Some(hash) => hash_content(&dir, &at.name, now, true)
                        .is_ok_and(|found| Hash(found) == hash),
                    None => now.mtime == print.mtime,
                };
        }
        if !equal {
            return Ok(ApplyResult::NotEqual);
        }
        Ok(ApplyResult::Done(vec![seen]))
    }
}

/// How a copy should be.
pub(super) struct Wished<'a> {
    pub(super) kind: Kind,
    pub(super) print: &'a Fingerprint,
    pub(super) left: Option<&'a Left>,
    pub(super) meta: Option<&'a Metadata>,
    /// What of the metadata it is known not to have.
    pub(super) losses: Losses,
}

impl Disk {
    /// Looks whether a copy is as it was left.
    pub(super) fn check(
        &self,
        at: Option<&Place>,
        wished: &Wished<'_>,
    ) -> Result<ApplyResult, ApplyError> {
        let differs = |what| Ok(ApplyResult::Differs(what));
        let Some(at) = at else {
            let seen = self.root.top().self_look()?;
            return match wished.is_dressed(&seen) {
                true => Ok(ApplyResult::Done(vec![seen])),
                false => differs(Difference::Meta),
            };
        };
        let dir = match self.dir(at) {
            Err(ApplyError::Fs(error)) if super::is_elsewhere(&error) => {
                return differs(Difference::Gone);
            }
            other => other?,
        };
        let own = wished.print.identity;
        // Mounted over, nothing of it can be told: an error.
        let found = dir.look(&at.name, LookWants::default())?;
        let Some(seen) = found else {
            return differs(Difference::Gone);
        };
        if self.applier.alias_of(&dir, &at.name, Some(own))?.is_some() {
            return differs(Difference::Gone);
        }
        if seen.kind != wished.kind || seen.fingerprint.identity != own {
            return differs(Difference::Other);
        }
        if seen.fingerprint == *wished.print {
            return Ok(ApplyResult::Done(vec![seen]));
        }
        let Some(seen) = dir.look(&at.name, LookWants::ALL)? else {
            return differs(Difference::Gone);
        };
        if let (Kind::File, Some(left)) = (seen.kind, wished.left)
            && !has_content(&dir, &at.name, &seen, left)
        {
            return differs(Difference::Content);
        }
        if !wished.is_dressed(&seen) {
            return differs(Difference::Meta);
        }
        Ok(ApplyResult::Done(vec![seen]))
    }
}

impl Wished<'_> {
    /// Whether something has the metadata that it should have, but for what it cannot have here.
    fn is_dressed(&self, seen: &Observed) -> bool {
        let Some(meta) = self.meta else { return true };
        let lacks = |loss| self.losses.has(loss);
        // Set-id bits are withheld where the owner is another one.
        let bits = if lacks(Loss::Owner) { 0o1777 } else { 0o7777 };
        let found = &seen.meta;
        let is_owned = lacks(Loss::Owner) || (found.uid, found.gid) == (meta.uid, meta.gid);
        let has_mode = lacks(Loss::Mode)
            || seen.kind == Kind::Symlink
            || found.mode & bits == meta.mode & bits;
        let has_time = lacks(Loss::Time) || found.mtime == meta.mtime;
        let loses = [Loss::Xattrs, Loss::Acl, Loss::Capability];
        let has_xattrs = loses.into_iter().any(lacks) || found.xattrs == meta.xattrs;
        is_owned && has_mode && has_time && has_xattrs
    }
}

/// Whether a file whose change time is another one has the content that was left in it.
fn has_content(dir: &Dir, name: &Name, seen: &Observed, left: &Left) -> bool {
    let print = &seen.fingerprint;
    if (print.size, print.mtime) != (left.size, left.mtime) {
        return false;
    }
    let Some(hash) = left.hash.filter(|_| print.size <= READ_MAX_BYTES) else {
        return true;
    };
    hash_content(dir, name, print, false).is_ok_and(|found| Hash(found) == hash)
}
