//! Owners by name: what this server calls its users and groups.
//!
//! The files of the system are read, never its name services: an answer must not wait for a network
//! in the middle of a look at a file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cdsync_core::job::Owners;
use cdsync_core::ledger::object::{Metadata, OWNER_NAME_MAX_BYTES};

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";
/// The most of one of these files that is read: 100,000 lines or so.
const FILE_MAX_BYTES: u64 = 8 << 20;
/// How often it is asked whether one of them changed.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// The names of one file's lines with their numbers, both ways.
#[derive(Debug, Default)]
struct Names {
    changed: Option<SystemTime>,
    by_number: HashMap<u32, Vec<u8>>,
    by_name: HashMap<Vec<u8>, u32>,
}

impl Names {
    /// Lines are `name:password:number:..`; of several with one name or number the first counts,
    /// as for the system itself.
    fn parse(text: &[u8]) -> Self {
        let mut names = Self::default();
        for line in text.split(|&b| b == b'\n') {
            let mut fields = line.split(|&b| b == b':');
            let (Some(name), Some(number)) = (fields.next(), fields.nth(1)) else {
                continue;
            };
            let number = std::str::from_utf8(number)
                .ok()
                .and_then(|n| n.parse().ok());
            let (false, Some(number)) = (name.is_empty(), number) else {
                continue;
            };
            if name.len() <= OWNER_NAME_MAX_BYTES {
                names.by_number.entry(number).or_insert(name.to_vec());
                names.by_name.entry(name.to_vec()).or_insert(number);
            }
        }
        names
    }

    /// Reads the file again if it is another one than before.
    #[expect(
        clippy::disallowed_methods,
        reason = "the system's own file, below no root"
    )]
    fn refresh(&mut self, path: &Path) {
        let changed = path.metadata().and_then(|m| m.modified()).ok();
        if changed.is_some() && changed == self.changed {
            return;
        }
        let mut text = Vec::new();
        let read = File::open(path).and_then(|f| f.take(FILE_MAX_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => {
                *self = Self::parse(&text);
                self.changed = changed;
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "names of owners cannot be read");
            }
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    asked: Option<Instant>,
    users: Names,
    groups: Names,
}

/// How a job's owners travel, with what this server calls them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnerNames(Option<Arc<Mutex<Known>>>);

impl OwnerNames {
    pub(crate) fn new(owners: Owners) -> Self {
        Self((owners == Owners::Name).then(Arc::default))
    }

    fn with<T>(&self, ask: impl FnOnce(&Known) -> T) -> Option<T> {
        let known = self.0.as_ref()?;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
            known.users.refresh(Path::new(USERS));
            known.groups.refresh(Path::new(GROUPS));
            known.asked = Some(Instant::now());
        }
        Some(ask(&known))
    }

    /// Adds the names of what was seen on this server, where owners travel by name.
    pub(crate) fn name(&self, meta: &mut Metadata) {
        self.with(|known| {
            let of = |names: &Names, number| names.by_number.get(&number).cloned();
            meta.user = of(&known.users, meta.uid).unwrap_or_default();
            meta.group = of(&known.groups, meta.gid).unwrap_or_default();
        });
    }

    /// Turns names into the numbers that they have on this server, where owners travel by name and
    /// it knows them.
    pub(crate) fn number(&self, meta: &mut Metadata) {
        let (user, group) = (
            std::mem::take(&mut meta.user),
            std::mem::take(&mut meta.group),
        );
        self.with(|known| {
            let of = |names: &Names, name: &[u8]| names.by_name.get(name).copied();
            meta.uid = of(&known.users, &user).unwrap_or(meta.uid);
            meta.gid = of(&known.groups, &group).unwrap_or(meta.gid);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(uid: u32, gid: u32) -> Metadata {
        Metadata {
            mode: 0o644,
            uid,
            gid,
            user: Vec::new(),
            group: Vec::new(),
            mtime: cdsync_core::time::Timestamp::default(),
            xattrs: cdsync_core::ledger::xattrs::Xattrs::NONE,
        }
    }

    /// Proves that lines which are none are passed over, and that the first of several counts.
    #[test]
    fn lines_are_parsed() {
        let text =
            b"root:x:0:0::/root:/bin/sh\n\n# no\nx:y\na:x:7\nb:x:7:\na:x:9\n:x:3\nc:x:many\n";
        let names = Names::parse(text);
        assert_eq!(names.by_number[&7], b"a");
        assert_eq!(names.by_name[&b"a"[..]], 7);
        assert_eq!(names.by_name[&b"b"[..]], 7);
        assert_eq!(names.by_number.len(), 3);
    }

    /// Proves that an owner comes back as the number that this server has for its name, that one
    /// nobody knows keeps its number, and that nothing of it happens where owners are numbers.
    #[test]
    fn names_become_numbers() {
        let names = OwnerNames::new(Owners::Name);
        let mut meta = owned(0, 0);
        names.name(&mut meta);
        assert_eq!(meta.user, b"root");
        (meta.uid, meta.gid) = (4000, 4001);
        meta.group = b"nobody-knows-this-group".to_vec();
        names.number(&mut meta);
        assert_eq!(meta, owned(0, 4001));
        let numbers = OwnerNames::new(Owners::Numeric);
        numbers.name(&mut meta);
        assert_eq!(meta, owned(0, 4001));
        meta.user = b"daemon".to_vec();
        numbers.number(&mut meta);
        assert_eq!(meta, owned(0, 4001));
    }
}
