//! A model of one filesystem with a root folder that is watched and a place outside of it.
//!
//! It knows what the machines rely on: inode numbers that are used again, times of birth, change
//! times that step with a clock, folders that keep their identity wherever they go, and hints as
//! fanotify gives them (folder by handle; a rename is one hint with a partner, an exchange two).

use std::collections::{BTreeMap, BTreeSet};

use crate::coalescer::{FolderKey, Hint, LookError, What, Whereabouts};
use crate::ledger::access::FolderAt;
use crate::ledger::loss::Losses;
use crate::ledger::object::{Fingerprint, Identity, Kind, Metadata, Observed};
use crate::ledger::xattrs::Xattrs;
use crate::path::{Name, RelPath};
use crate::time::{Timestamp, WallMillis};

/// A file, folder or link of the model, never used again.
pub type NodeId = u64;

/// The folder that is watched.
pub const ROOT: NodeId = 1;
/// A folder of the same filesystem that is not.
pub const OUTSIDE: NodeId = 2;

/// When the virtual clock starts, in nanoseconds since 1970.
pub const EPOCH_NANOS: u64 = 1_800_000_000 * 1_000_000_000;

/// One file, folder or link.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is known by.
    pub identity: Identity,
    /// What it is.
    pub kind: Kind,
    /// Mode, owner, modification time.
    pub meta: Metadata,
    /// Change time.
    pub ctime: Timestamp,
    /// A file's bytes or a link's target.
    pub bytes: Vec<u8>,
    /// A folder's names.
    pub children: BTreeMap<Name, NodeId>,
    /// One of its names, or its last one; kept when it is unlinked, because an open file still
    /// reports by it.
    pub slot: Option<(NodeId, Name)>,
    /// The name by which it was opened last, also when that is gone.
    opened: Option<(NodeId, Name)>,
    /// How many names it has.
    pub links: u32,
    /// How many have it open for writing.
    pub writers: u32,
}

/// Something that was moved out of a target's way.
#[derive(Debug, Clone)]
pub struct Trashed {
    /// Where it was.
    pub path: RelPath,
    /// What it is.
    pub node: NodeId,
}

/// The filesystem.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: BTreeMap<NodeId, Node>,
    next_node: NodeId,
    next_inode: u64,
    free_inodes: Vec<u64>,
    /// Whether inode numbers are used again.
    pub reuse: bool,
    /// Nanoseconds since 1970.
    pub clock: u64,
    /// How coarse its times are, in nanoseconds.
    pub granularity: u64,
    events: Vec<Hint>,
    /// Whether hints are kept: off where nobody watches.
    pub watched: bool,
    /// Names that something else is mounted over.
    pub covered: BTreeSet<(NodeId, Name)>,
    /// What was moved out of the way.
    pub trash: Vec<Trashed>,
    /// How often a folder was removed that held more or less than was known.
    pub foreign_removals: u64,
    /// How often anything was changed.
    changes: u64,
}

impl Disk {
    /// An empty root.
    #[must_use]
    pub fn new() -> Self {
        let mut disk = Self {
            nodes: BTreeMap::new(),
            next_node: ROOT,
            next_inode: 100,
            free_inodes: Vec::new(),
            reuse: true,
            clock: EPOCH_NANOS,
            granularity: 4_000_000,
            events: Vec::new(),
            watched: true,
            covered: BTreeSet::new(),
            trash: Vec::new(),
            foreign_removals: 0,
            changes: 0,
        };
        for _ in [ROOT, OUTSIDE] {
            let id = disk.new_node(Kind::Folder, 0o755);
            disk.node_mut(id).links = 1;
        }
        disk
    }

    /// Whether there was ever such a node.
    pub(super) fn knows(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// The node that was seen.
    pub(super) fn by_identity(&self, seen: &Observed) -> Option<NodeId> {
        let mut nodes = self.nodes.iter().rev();
        let found = nodes.find(|(_, node)| node.identity == seen.fingerprint.identity);
        found.map(|(id, _)| *id)
    }

    /// How often anything was changed so far.
    pub(super) fn age(&self) -> u64 {
        self.changes
    }

    /// An older state goes on where a later one ended: in its time, with numbers that were never
    /// given.
    pub(super) fn go_on_after(&mut self, later: &Self) {
        self.clock = later.clock;
        self.next_node = self.next_node.max(later.next_node);
        self.changes = self.changes.max(later.changes);
    }

    /// The time now, as its clock steps.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let nanos = self.clock - self.clock % self.granularity.max(1);
        Timestamp {
            secs: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            nanos: u32::try_from(nanos % 1_000_000_000).unwrap_or(0),
        }
    }

    /// The wall clock.
    #[must_use]
    pub const fn wall(&self) -> WallMillis {
        WallMillis(self.clock / 1_000_000)
    }

    /// Hints since the last call, in their order.
    pub fn take_events(&mut self) -> Vec<Hint> {
        std::mem::take(&mut self.events)
    }

    /// A hint that does not come from the disk.
    pub fn tell(&mut self, hint: Hint) {
        self.events.push(hint);
    }

    /// A node.
    ///
    /// # Panics
    /// When there was never such a node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    /// A node, to be changed unseen by anybody.
    ///
    /// # Panics
    /// When there was never such a node.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.changes += 1;
        self.nodes.get_mut(&id).expect("nodes are never forgotten")
    }

    /// What is at a name.
    #[must_use]
    pub fn child(&self, folder: NodeId, name: &Name) -> Option<NodeId> {
        self.node(folder).children.get(name).copied()
    }

    /// The node at a path below the root.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<NodeId> {
        let mut at = ROOT;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = self.child(at, &Name::new(part.as_bytes()).ok()?)?;
        }
        Some(at)
    }

    /// The folder that somebody means, opened along its path and compared.
    ///
    /// # Errors
    /// [`LookError::Moved`] where there is none or another one; [`LookError::OtherFilesystem`].
    pub fn open(&self, folder: &FolderAt) -> Result<NodeId, LookError> {
        let mut at = ROOT;
        for part in folder.path.components() {
            let name = Name::new(part).map_err(|_| LookError::Moved)?;
            if self.covered.contains(&(at, name.clone())) {
                return Err(LookError::OtherFilesystem);
            }
            at = self.child(at, &name).ok_or(LookError::Moved)?;
            if self.node(at).kind != Kind::Folder {
                return Err(LookError::Moved);
            }
        }
        match folder.identity {
            Some(identity) if identity != self.node(at).identity => Err(LookError::Moved),
            _ => Ok(at),
        }
    }

    /// What `stat` says of a node.
    #[must_use]
    pub fn observe(&self, id: NodeId) -> Observed {
        let node = self.node(id);
        let size = match node.kind {
            Kind::Folder => 4096,
            _ => node.bytes.len() as u64,
        };
        Observed {
            fingerprint: Fingerprint {
                identity: node.identity,
                size,
                mtime: node.meta.mtime,
                ctime: node.ctime,
            },
            kind: node.kind,
            meta: node.meta.clone(),
            link_count: node.links,
            device: 0,
            link: (node.kind == Kind::Symlink).then(|| node.bytes.clone()),
            handle: (node.kind == Kind::Folder || node.links > 1).then(|| self.handle(id)),
            left_out: None,
            losses: Losses::NONE,
        }
    }

    /// What a look at a name finds.
    #[must_use]
    pub fn look(&self, folder: NodeId, name: &Name) -> Option<Observed> {
        self.child(folder, name).map(|id| self.observe(id))
    }

    /// The kernel's handle of a node.
    pub(super) fn handle(&self, id: NodeId) -> Vec<u8> {
        let mut handle = self.node(id).identity.inode.to_le_bytes().to_vec();
        handle.extend_from_slice(&id.to_le_bytes());
        handle
    }

    fn new_node(&mut self, kind: Kind, mode: u32) -> NodeId {
        let id = self.next_node;
        self.next_node += 1;
        let inode = match self.free_inodes.pop() {
            Some(free) if self.reuse => free,
            _ => {
                self.next_inode += 1;
                self.next_inode
            }
        };
        let now = self.now();
        let born = Timestamp {
            // Fine enough to tell two lives of one number apart.
            nanos: now.nanos + u32::try_from(id % 1000).unwrap_or(0),
            ..now
        };
        let (uid, gid) = (1000, 1000);
        let meta = Metadata {
            mode,
            uid,
            gid,
            user: Vec::new(),
            group: Vec::new(),
            mtime: now,
            xattrs: Xattrs::NONE,
        };
        let node = Node {
            identity: Identity { inode, born },
            kind,
            meta,
            ctime: now,
            bytes: Vec::new(),
            children: BTreeMap::new(),
            slot: None,
            opened: None,
            links: 0,
            writers: 0,
        };
        self.changes += 1;
        self.nodes.insert(id, node);
        id
    }

    fn hint(&mut self, folder: NodeId, name: Option<&Name>, what: What) {
        if self.watched {
            self.events.push(Hint {
                folder: FolderKey::Handle(self.handle(folder)),
                name: name.cloned(),
                what,
                partner: None,
                object: None,
            });
        }
    }

    /// The kernel tells of a file by the name that was used, and which one it is.
    fn hint_node(&mut self, id: NodeId, mut what: What) {
        what.folder = self.node(id).kind == Kind::Folder;
        let object = (!what.folder).then(|| self.handle(id));
        let told = self.events.len();
        match self.used_name(id).cloned() {
            Some((folder, name)) => self.hint(folder, Some(&name), what),
            None => self.hint(id, None, what),
        }
        for hint in &mut self.events[told..] {
            hint.object.clone_from(&object);
        }
    }

    /// The kernel tells that a file got or lost a name.
    fn hint_links(&mut self, id: NodeId) {
        if self.watched && self.node(id).kind != Kind::Folder {
            self.events.push(Hint {
                folder: FolderKey::Nowhere,
                name: None,
                what: What::LOOK,
                partner: None,
                object: Some(self.handle(id)),
            });
        }
    }

    /// Where the kernel has an object that is no folder: the name used last, if it is still there.
    pub(super) fn find(&self, handle: &[u8]) -> Option<Whereabouts> {
        let mut nodes = self.nodes.keys().rev().copied();
        let id = nodes.find(|id| self.handle(*id) == handle)?;
        let used = self.used_name(id);
        let there = used.filter(|(folder, name)| self.child(*folder, name) == Some(id));
        let key = |folder| FolderKey::Handle(self.handle(folder));
        (self.node(id).links > 0).then(|| Whereabouts {
            identity: self.node(id).identity,
            name: there.map(|(folder, name)| (key(*folder), name.clone())),
            several: self.node(id).links > 1,
        })
    }

    /// The name that the kernel has in mind of a node: the one that is open keeps its.
    fn used_name(&self, id: NodeId) -> Option<&(NodeId, Name)> {
        let node = self.node(id);
        let opened = node.opened.as_ref().filter(|_| node.writers > 0);
        opened.or(node.slot.as_ref())
    }

    /// Whoever has a file open by a name has it by the new one.
    fn renamed(&mut self, id: NodeId, from: (NodeId, &Name), to: (NodeId, &Name)) {
        let node = self.node_mut(id);
        if node.opened.as_ref().is_some_and(|at| (at.0, &at.1) == from) {
            node.opened = Some((to.0, to.1.clone()));
        }
    }

    /// The folder's times move because of a name in it.
    fn touch(&mut self, folder: NodeId) {
        let now = self.now();
        let node = self.node_mut(folder);
        node.meta.mtime = now;
        node.ctime = now;
    }

    fn changed(&mut self, id: NodeId) {
        let now = self.now();
        self.node_mut(id).ctime = now;
    }

    fn link_in(&mut self, id: NodeId, folder: NodeId, name: &Name) {
        self.node_mut(folder).children.insert(name.clone(), id);
        let node = self.node_mut(id);
        node.slot = Some((folder, name.clone()));
        node.links += 1;
        self.touch(folder);
    }

    fn unlink_from(&mut self, folder: NodeId, name: &Name) -> Option<NodeId> {
        let id = self.node_mut(folder).children.remove(name)?;
        self.node_mut(id).links -= 1;
        self.touch(folder);
        if self.node(id).links > 0 {
            let other = self.names_of(id).into_iter().next();
            self.node_mut(id).slot = other;
        }
        Some(id)
    }

    /// Its inode number may be used again.
    fn free(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.links == 0 && node.writers == 0 {
            let inode = node.identity.inode;
            self.free_inodes.push(inode);
        }
    }

    fn create(&mut self, folder: NodeId, name: &Name, kind: Kind, mode: u32) -> Option<NodeId> {
        if self.child(folder, name).is_some() {
            return None;
        }
        let id = self.new_node(kind, mode);
        self.link_in(id, folder, name);
        let what = What {
            created: true,
            folder: kind == Kind::Folder,
            ..What::default()
        };
        self.hint(folder, Some(name), what);
        Some(id)
    }

    /// Creates a file and leaves it open for writing. `None` where the name is taken.
    pub fn create_file(&mut self, folder: NodeId, name: &Name) -> Option<NodeId> {
        let id = self.create(folder, name, Kind::File, 0o644)?;
        self.open_file(id);
        Some(id)
    }

    /// Opens a file for writing.
    pub fn open_file(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.writers += 1;
        node.opened.clone_from(&node.slot);
    }

    /// Replaces an open file's bytes.
    pub fn write(&mut self, id: NodeId, bytes: &[u8]) {
        let now = self.now();
        let node = self.node_mut(id);
        node.bytes = bytes.to_vec();
        node.meta.mtime = now;
        node.ctime = now;
        let what = What {
            written: true,
            ..What::default()
        };
        self.hint_node(id, what);
    }

    /// The power was cut: a file has other bytes behind its times.
    #[cfg(test)]
    pub(crate) fn lose_bytes(&mut self, id: NodeId, bytes: &[u8]) {
        self.node_mut(id).bytes = bytes.to_vec();
    }

    /// Closes a file that was open for writing.
    pub fn close(&mut self, id: NodeId) {
        self.node_mut(id).writers -= 1;
        let what = What {
            closed: true,
            ..What::default()
        };
        self.hint_node(id, what);
        self.free(id);
    }

    /// Makes a folder.
    pub fn mkdir(&mut self, folder: NodeId, name: &Name) -> Option<NodeId> {
        self.create(folder, name, Kind::Folder, 0o755)
    }

    /// Makes a pipe, a socket or a device.
    pub fn special(&mut self, folder: NodeId, name: &Name, kind: Kind) -> Option<NodeId> {
        self.create(folder, name, kind, 0o600)
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, folder: NodeId, name: &Name, target: &[u8]) -> Option<NodeId> {
        let id = self.create(folder, name, Kind::Symlink, 0o777)?;
        self.node_mut(id).bytes = target.to_vec();
        Some(id)
    }

    /// All names of a node.
    #[must_use]
    pub fn names_of(&self, id: NodeId) -> Vec<(NodeId, Name)> {
        let mut names = Vec::new();
        for (folder, node) in &self.nodes {
            let own = node.children.iter().filter(|(_, child)| **child == id);
            names.extend(own.map(|(name, _)| (*folder, name.clone())));
        }
        names
    }

    /// Gives a file one more name, as `link(2)` does. Returns whether it was done.
    pub fn link(&mut self, id: NodeId, folder: NodeId, name: &Name) -> bool {
        if self.node(id).kind == Kind::Folder || self.child(folder, name).is_some() {
            return false;
        }
        self.link_in(id, folder, name);
        self.changed(id);
        self.hint_links(id);
        let what = What {
            created: true,
            ..What::default()
        };
        self.hint(folder, Some(name), what);
        true
    }

    /// Removes a name; a folder must be empty.
    pub fn unlink(&mut self, folder: NodeId, name: &Name) -> bool {
        let Some(id) = self.child(folder, name) else {
            return false;
        };
        if !self.node(id).children.is_empty() {
            return false;
        }
        self.unlink_from(folder, name);
        self.changed(id);
        self.hint_links(id);
        let what = What {
            at_once: true,
            folder: self.node(id).kind == Kind::Folder,
            ..What::default()
        };
        self.hint(folder, Some(name), what);
        self.free(id);
        true
    }

    /// Removes a name with everything below it, one by one.
    pub fn remove_tree(&mut self, folder: NodeId, name: &Name) {
        let Some(id) = self.child(folder, name) else {
            return;
        };
        let names: Vec<Name> = self.node(id).children.keys().cloned().collect();
        for below in names {
            self.remove_tree(id, &below);
        }
        self.unlink(folder, name);
    }

    /// Whether `id` is `folder` or lies below it.
    #[must_use]
    pub fn is_below(&self, id: NodeId, folder: NodeId) -> bool {
        let mut at = id;
        for _ in 0..=self.nodes.len() {
            if at == folder {
                return true;
            }
            let node = self.node(at);
            match &node.slot {
                Some((parent, _)) if node.links > 0 => at = *parent,
                _ => return false,
            }
        }
        panic!("a folder is below itself");
    }

    /// Renames as `rename(2)` does. Returns whether it was done.
    pub fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name)) -> bool {
        let Some(id) = self.child(from.0, from.1) else {
            return false;
        };
        let is_folder = self.node(id).kind == Kind::Folder;
        if from == to || (is_folder && self.is_below(to.0, id)) {
            return false;
        }
        let over = self.child(to.0, to.1);
        if let Some(over) = over {
            if over == id {
                // Two names of one file: both stay.
                return false;
            }
            let node = self.node(over);
            let over_folder = node.kind == Kind::Folder;
            if is_folder != over_folder || !node.children.is_empty() {
                return false;
            }
            self.unlink_from(to.0, to.1);
            self.changed(over);
            self.free(over);
        }
        self.unlink_from(from.0, from.1);
        self.link_in(id, to.0, to.1);
        self.renamed(id, from, to);
        self.changed(id);
        self.hint_rename(from, to, is_folder);
        if let Some(over) = over {
            self.hint_links(over);
        }
        true
    }

    /// Swaps two names, as `RENAME_EXCHANGE` does.
    pub fn exchange(&mut self, a: (NodeId, &Name), b: (NodeId, &Name)) -> bool {
        let (Some(x), Some(y)) = (self.child(a.0, a.1), self.child(b.0, b.1)) else {
            return false;
        };
        if x == y || self.is_below(a.0, y) || self.is_below(b.0, x) {
            return false;
        }
        self.unlink_from(a.0, a.1);
        self.unlink_from(b.0, b.1);
        self.link_in(x, b.0, b.1);
        self.link_in(y, a.0, a.1);
        self.renamed(x, a, b);
        self.renamed(y, b, a);
        self.changed(x);
        self.changed(y);
        let (x_folder, y_folder) = (
            self.node(x).kind == Kind::Folder,
            self.node(y).kind == Kind::Folder,
        );
        self.hint_rename(a, b, x_folder);
        self.hint_rename(b, a, y_folder);
        true
    }

    fn hint_rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), folder: bool) {
        if self.watched {
            self.events.push(Hint {
                folder: FolderKey::Handle(self.handle(from.0)),
                name: Some(from.1.clone()),
                what: What {
                    folder,
                    ..What::LOOK
                },
                partner: Some((FolderKey::Handle(self.handle(to.0)), to.1.clone())),
                object: None,
            });
        }
    }

    /// Sets mode and owner.
    pub fn set_mode(&mut self, id: NodeId, mode: u32, owner: Option<(u32, u32)>) {
        let node = self.node_mut(id);
        if node.kind != Kind::Symlink {
            node.meta.mode = mode;
        }
        if let Some((uid, gid)) = owner {
            node.meta.uid = uid;
            node.meta.gid = gid;
        }
        self.changed(id);
        self.hint_node(id, What::LOOK);
    }

    /// Sets the modification time.
    pub fn set_mtime(&mut self, id: NodeId, mtime: Timestamp) {
        self.node_mut(id).meta.mtime = mtime;
        self.changed(id);
        self.hint_node(id, What::LOOK);
    }

    /// Takes a name away, into the trash, without a hint.
    pub fn trash(&mut self, folder: NodeId, name: &Name, path: RelPath) {
        if let Some(id) = self.unlink_from(folder, name) {
            self.changed(id);
            self.trash.push(Trashed { path, node: id });
        }
    }

    /// Puts something that has no name at a free one, without a hint.
    pub fn put(&mut self, id: NodeId, folder: NodeId, name: &Name) {
        self.link_in(id, folder, name);
        self.changed(id);
    }

    /// Sets all metadata at once, as a target does.
    pub fn set_meta(&mut self, id: NodeId, meta: Metadata) {
        if self.node(id).meta != meta {
            self.node_mut(id).meta = meta;
            self.changed(id);
        }
    }

    /// Every path below the root with its node, folders before what is in them.
    #[must_use]
    pub fn walk(&self) -> Vec<(RelPath, NodeId)> {
        let mut found = Vec::new();
        let mut stack = vec![(RelPath::root(), ROOT)];
        while let Some((path, id)) = stack.pop() {
            for (name, child) in self.node(id).children.iter().rev() {
                stack.push((path.join(name), *child));
            }
            if id != ROOT {
                found.push((path, id));
            }
        }
        found
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}
