//! Random changes of a source's disk.

use super::disk::{Disk, NodeId, OUTSIDE, ROOT};
use super::rng::Rng;
use crate::ledger::object::Kind;
use crate::path::{Name, RESERVED_NAME};
use crate::time::Timestamp;

/// What kinds of changes there are.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadTuning {
    /// How many different names: few make collisions likely.
    pub names: usize,
    /// One in so many files stays open for long; zero for none.
    pub held: usize,
    /// Whether things move out of the root and in.
    pub outside: bool,
    /// Whether changes happen while the driver looks.
    pub racing: bool,
    /// Whether files have several names, and there are special ones.
    pub links: bool,
}

/// Makes changes.
#[derive(Debug)]
pub struct Workload {
    /// Its generator.
    pub rng: Rng,
    /// How many operations are left.
    pub left: usize,
    tuning: WorkloadTuning,
    open: Vec<NodeId>,
    counter: u64,
    /// What it did, for a failed run's report.
    pub history: Vec<String>,
}

const NAMES: [&str; 10] = [
    "a", "b", "c", "d", "e.txt", "f.txt", "skip-g", "h.tmp", "keep-i", "j",
];

impl Workload {
    /// So many operations to come.
    #[must_use]
    pub fn new(tuning: WorkloadTuning, operations: usize, seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            left: operations,
            tuning,
            open: Vec::new(),
            counter: 0,
            history: Vec::new(),
        }
    }

    /// Does something, sometimes, while a driver is between two looks at the disk.
    pub fn meanwhile(&mut self, disk: &mut Disk) {
        if self.tuning.racing && self.left > 0 && self.rng.one_in(12) {
            disk.clock += 1 + self.rng.below(200_000) as u64;
            self.act(disk);
        }
    }

    /// Closes what is still open.
    pub fn finish(&mut self, disk: &mut Disk) {
        for id in std::mem::take(&mut self.open) {
            disk.close(id);
        }
    }

    /// Does one operation.
    pub fn act(&mut self, disk: &mut Disk) {
        self.left = self.left.saturating_sub(1);
        let before = self.history.len();
        let outside = self.tuning.outside;
        if self.tuning.links && self.rng.one_in(6) {
            self.act_on_links(disk);
            return;
        }
        match self.rng.below(34) {
            0..=4 => self.create(disk),
            5..=7 => self.save_by_rename(disk),
            8..=10 => self.write_in_place(disk),
            11..=14 => self.rename(disk),
            15 => self.exchange(disk),
            16 => self.rotate(disk),
            17 => self.invert(disk),
            18..=19 => self.unlink(disk),
            20 => self.remove_tree(disk),
            21..=23 => self.mkdir(disk),
            24 => self.chmod(disk),
            25 => self.restore_mtime(disk),
            26 => self.symlink(disk),
            27 if outside => self.move_out(disk),
            28 if outside => self.move_in(disk),
            29 => self.replace(disk),
            30 => self.reserved(disk),
            31 => self.make_tree(disk),
            32 => self.close_one(disk),
            _ => self.chain(disk),
        }
        if self.history.len() == before {
            self.history.push("nothing".to_owned());
        }
    }

    /// One operation of those that few trees know.
    fn act_on_links(&mut self, disk: &mut Disk) {
        match self.rng.below(8) {
            0..=3 => self.link(disk),
            4 => self.link_over(disk),
            5 => self.save_by_link(disk),
            6 => self.link_outside(disk),
            _ => self.special(disk),
        }
    }

    fn say(&mut self, disk: &Disk, what: String) {
        self.history.push(format!(
            "{:>9} us: {what}",
            disk.clock / 1000 % 1_000_000_000
        ));
    }

    fn name(&mut self) -> Name {
        let name = NAMES[self.rng.below(self.tuning.names.min(NAMES.len()))];
        Name::new(name.as_bytes()).expect("the names are names")
    }

    fn folder(&mut self, disk: &Disk) -> NodeId {
        let mut all: Vec<NodeId> = disk
            .walk()
            .into_iter()
            .filter(|(path, id)| {
                disk.node(*id).kind == Kind::Folder
                    && path.components().count() < 4
                    && path.components().all(|c| c != RESERVED_NAME)
            })
            .map(|(_, id)| id)
            .collect();
        all.extend([ROOT, ROOT]);
        all[self.rng.below(all.len())]
    }

    fn existing(&mut self, disk: &Disk, wanted: impl Fn(Kind) -> bool) -> Option<(NodeId, Name)> {
        let all: Vec<NodeId> = disk
            .walk()
            .into_iter()
            .filter(|(path, id)| {
                path.components().all(|c| c != RESERVED_NAME) && wanted(disk.node(*id).kind)
            })
            .map(|(_, id)| id)
            .collect();
        let id = *self.rng.pick(&all)?;
        disk.node(id).slot.clone()
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.counter += 1;
        let mut bytes = format!("{:04}", self.counter).into_bytes();
        let more = [0, 5, 5, 5, 20, 60][self.rng.below(6)];
        bytes.resize(4 + more, b'.');
        bytes
    }

    fn write_and_close(&mut self, disk: &mut Disk, id: NodeId) {
        if self.rng.one_in(8) {
            // An empty file.
        } else {
            for _ in 0..=self.rng.below(2) {
                let bytes = self.bytes();
                disk.write(id, &bytes);
            }
        }
        if self.tuning.held > 0 && self.rng.one_in(self.tuning.held) {
            self.open.push(id);
        } else {
            disk.close(id);
        }
    }

    fn create(&mut self, disk: &mut Disk) {
        let (folder, name) = (self.folder(disk), self.name());
        if let Some(id) = disk.create_file(folder, &name) {
            self.write_and_close(disk, id);
            self.say(disk, format!("create {folder}/{name} = node {id}"));
        }
    }

    fn save_by_rename(&mut self, disk: &mut Disk) {
        let Some((folder, name)) = self.existing(disk, |k| k == Kind::File) else {
            return;
        };
        let temp = Name::new(b"h.tmp").expect("a name");
        if let Some(id) = disk.create_file(folder, &temp) {
            let bytes = self.bytes();
            disk.write(id, &bytes);
            disk.close(id);
            disk.rename((folder, &temp), (folder, &name));
            self.say(disk, format!("save {folder}/{name} = node {id}"));
        }
    }

    fn write_in_place(&mut self, disk: &mut Disk) {
        if let Some((folder, name)) = self.existing(disk, |k| k == Kind::File) {
            let id = disk.child(folder, &name).expect("it was found there");
            disk.open_file(id);
            self.write_and_close(disk, id);
            self.say(disk, format!("write {folder}/{name} = node {id}"));
        }
    }

    fn rename(&mut self, disk: &mut Disk) {
        if let Some(from) = self.existing(disk, |_| true) {
            let to = (self.folder(disk), self.name());
            if disk.rename((from.0, &from.1), (to.0, &to.1)) {
                self.say(disk, format!("rename {from:?} {to:?}"));
            }
        }
    }

    fn exchange(&mut self, disk: &mut Disk) {
        let (a, b) = (self.existing(disk, |_| true), self.existing(disk, |_| true));
        if let (Some(a), Some(b)) = (a, b)
            && disk.exchange((a.0, &a.1), (b.0, &b.1))
        {
            self.say(disk, format!("exchange {a:?} {b:?}"));
        }
    }

    /// a -> spare, b -> a, spare -> b.
    fn rotate(&mut self, disk: &mut Disk) {
        let (a, b) = (self.existing(disk, |_| true), self.existing(disk, |_| true));
        let (Some(a), Some(b)) = (a, b) else { return };
        let spare = (ROOT, Name::new(b"spare").expect("a name"));
        let steps = [(&a, &spare), (&b, &a), (&spare, &b)];
        for (from, to) in steps {
            if disk.rename((from.0, &from.1), (to.0, &to.1)) {
                self.say(disk, format!("rename {from:?} {to:?}"));
            }
        }
    }

    /// mv a/b c; mv a c/.
    fn invert(&mut self, disk: &mut Disk) {
        let Some(inner) = self.existing(disk, |k| k == Kind::Folder) else {
            return;
        };
        let (outer, to) = (disk.node(inner.0).slot.clone(), (ROOT, self.name()));
        let moved = disk.child(inner.0, &inner.1).expect("it was found there");
        if let Some(outer) = outer
            && disk.rename((inner.0, &inner.1), (to.0, &to.1))
        {
            self.say(disk, format!("rename {inner:?} {to:?}"));
            let name = self.name();
            if disk.rename((outer.0, &outer.1), (moved, &name)) {
                self.say(disk, format!("rename {outer:?} {moved}/{name}"));
            }
        }
    }

    fn unlink(&mut self, disk: &mut Disk) {
        if let Some((folder, name)) = self.existing(disk, |_| true)
            && disk.unlink(folder, &name)
        {
            self.say(disk, format!("unlink {folder}/{name}"));
        }
    }

    fn remove_tree(&mut self, disk: &mut Disk) {
        if let Some((folder, name)) = self.existing(disk, |k| k == Kind::Folder) {
            disk.remove_tree(folder, &name);
            self.say(disk, format!("remove tree {folder}/{name}"));
        }
    }

    fn mkdir(&mut self, disk: &mut Disk) {
        let (folder, name) = (self.folder(disk), self.name());
        if let Some(id) = disk.mkdir(folder, &name) {
            self.say(disk, format!("mkdir {folder}/{name} = node {id}"));
        }
    }

    fn chmod(&mut self, disk: &mut Disk) {
        let mode = [0o600, 0o755, 0o4755, 0o400, 0o700][self.rng.below(5)];
        let owner = self.rng.one_in(2).then_some((1000, 1001));
        if self.rng.one_in(6) {
            disk.set_mode(ROOT, 0o755, owner);
            self.say(disk, "chmod of the root".to_owned());
        } else if let Some((folder, name)) = self.existing(disk, |_| true) {
            let id = disk.child(folder, &name).expect("it was found there");
            disk.set_mode(id, mode, owner);
            self.say(disk, format!("chmod {folder}/{name}"));
        }
    }

    /// Other bytes of the same size, and the time as it was.
    fn restore_mtime(&mut self, disk: &mut Disk) {
        if let Some((folder, name)) = self.existing(disk, |k| k != Kind::Symlink) {
            let id = disk.child(folder, &name).expect("it was found there");
            let mtime = disk.node(id).meta.mtime;
            if disk.node(id).kind == Kind::File {
                self.counter += 1;
                let mut bytes = disk.node(id).bytes.clone();
                let counter = format!("{:04}", self.counter);
                for (byte, new) in bytes.iter_mut().zip(counter.into_bytes()) {
                    *byte = new;
                }
                disk.open_file(id);
                disk.write(id, &bytes);
                disk.close(id);
                disk.set_mtime(id, mtime);
            } else {
                let secs = mtime.secs - 1000;
                disk.set_mtime(id, Timestamp { secs, ..mtime });
            }
            self.say(disk, format!("restore mtime {folder}/{name} = node {id}"));
        }
    }

    fn symlink(&mut self, disk: &mut Disk) {
        let (folder, name) = (self.folder(disk), self.name());
        let target = self.bytes();
        if disk.symlink(folder, &name, &target).is_some() {
            self.say(disk, format!("symlink {folder}/{name}"));
        }
    }

    fn link(&mut self, disk: &mut Disk) {
        let Some(from) = self.existing(disk, |k| k != Kind::Folder) else {
            return;
        };
        let to = (self.folder(disk), self.name());
        let id = disk.child(from.0, &from.1).expect("it was found there");
        if disk.link(id, to.0, &to.1) {
            self.say(disk, format!("link {from:?} {to:?}"));
        }
    }

    /// Another file's name becomes one more name of a file: ln -f.
    fn link_over(&mut self, disk: &mut Disk) {
        let no_folder = |k| k != Kind::Folder;
        let (a, b) = (
            self.existing(disk, no_folder),
            self.existing(disk, no_folder),
        );
        let (Some(a), Some(b)) = (a, b) else { return };
        let temp = (b.0, Name::new(b"h.tmp").expect("a name"));
        let id = disk.child(a.0, &a.1).expect("it was found there");
        if disk.link(id, temp.0, &temp.1) {
            disk.rename((temp.0, &temp.1), (b.0, &b.1));
            self.say(disk, format!("link {a:?} over {b:?}"));
        }
    }

    /// ln a b; write a new a: the old one is kept as b.
    fn save_by_link(&mut self, disk: &mut Disk) {
        let Some((folder, name)) = self.existing(disk, |k| k == Kind::File) else {
            return;
        };
        let kept = self.name();
        let id = disk.child(folder, &name).expect("it was found there");
        if disk.link(id, folder, &kept) {
            disk.unlink(folder, &name);
            let new = disk.create_file(folder, &name).expect("the name is free");
            self.write_and_close(disk, new);
            self.say(
                disk,
                format!("keep {folder}/{name} as {kept}, new node {new}"),
            );
        }
    }

    /// A name out of the root, or one in of what is outside.
    fn link_outside(&mut self, disk: &mut Disk) {
        let name = self.name();
        if !self.tuning.outside {
            return;
        }
        if self.rng.one_in(2) {
            if let Some(from) = self.existing(disk, |k| k == Kind::File) {
                let id = disk.child(from.0, &from.1).expect("it was found there");
                if disk.link(id, OUTSIDE, &name) {
                    self.say(disk, format!("link {from:?} to the outside"));
                }
            }
        } else if let Some(id) = disk.node(OUTSIDE).children.values().next().copied() {
            let folder = self.folder(disk);
            if disk.link(id, folder, &name) {
                self.say(
                    disk,
                    format!("link node {id} from the outside to {folder}/{name}"),
                );
            }
        }
    }

    fn special(&mut self, disk: &mut Disk) {
        let (folder, name) = (self.folder(disk), self.name());
        let kinds = [Kind::Fifo, Kind::Socket, Kind::CharDevice];
        let kind = kinds[self.rng.below(kinds.len())];
        if disk.special(folder, &name, kind).is_some() {
            self.say(disk, format!("{kind} {folder}/{name}"));
        }
    }

    fn move_out(&mut self, disk: &mut Disk) {
        if let Some(from) = self.existing(disk, |_| true) {
            let to = self.name();
            disk.remove_tree(OUTSIDE, &to);
            if disk.rename((from.0, &from.1), (OUTSIDE, &to)) {
                self.say(disk, format!("move out {from:?}"));
            }
        }
    }

    fn move_in(&mut self, disk: &mut Disk) {
        let from = disk.node(OUTSIDE).children.keys().next().cloned();
        if let Some(from) = from {
            let to = (self.folder(disk), self.name());
            if disk.rename((OUTSIDE, &from), (to.0, &to.1)) {
                self.say(disk, format!("move in {to:?}"));
            }
        }
    }

    /// Unlink, then create: the same inode number, another life.
    fn replace(&mut self, disk: &mut Disk) {
        if let Some((folder, name)) = self.existing(disk, |k| k == Kind::File) {
            disk.unlink(folder, &name);
            let id = if self.rng.one_in(4) {
                disk.mkdir(folder, &name)
            } else {
                disk.create_file(folder, &name)
            };
            let id = id.expect("the name is free");
            if disk.node(id).kind == Kind::File {
                self.write_and_close(disk, id);
            }
            self.say(disk, format!("replace {folder}/{name} by node {id}"));
        }
    }

    /// What is called `.cdsync` is nobody's business, at any depth.
    fn reserved(&mut self, disk: &mut Disk) {
        let folder = self.folder(disk);
        let name = Name::new(RESERVED_NAME).expect("a name");
        if let Some(id) = disk.mkdir(folder, &name) {
            let inner = self.name();
            if let Some(file) = disk.create_file(id, &inner) {
                disk.write(file, b"private");
                disk.close(file);
            }
            self.say(disk, format!("reserved in {folder}"));
        }
    }

    fn make_tree(&mut self, disk: &mut Disk) {
        let (folder, name) = (self.folder(disk), self.name());
        let Some(top) = disk.mkdir(folder, &name) else {
            return;
        };
        self.say(disk, format!("tree {folder}/{name} = node {top}"));
        let mut at = top;
        for _ in 0..=self.rng.below(2) {
            for _ in 0..=self.rng.below(3) {
                let name = self.name();
                if let Some(id) = disk.create_file(at, &name) {
                    self.write_and_close(disk, id);
                }
            }
            let name = self.name();
            at = disk.mkdir(at, &name).unwrap_or(at);
        }
    }

    fn close_one(&mut self, disk: &mut Disk) {
        if !self.open.is_empty() {
            let id = self.open.swap_remove(self.rng.below(self.open.len()));
            if self.rng.one_in(2) {
                let bytes = self.bytes();
                disk.write(id, &bytes);
            }
            disk.close(id);
            self.say(disk, format!("close node {id}"));
        }
    }

    /// c -> d, b -> c, a -> b.
    fn chain(&mut self, disk: &mut Disk) {
        let Some(first) = self.existing(disk, |_| true) else {
            return;
        };
        let mut to = (self.folder(disk), self.name());
        let mut from = first;
        for _ in 0..3 {
            if !disk.rename((from.0, &from.1), (to.0, &to.1)) {
                break;
            }
            self.say(disk, format!("rename {from:?} {to:?}"));
            to = from;
            match self.existing(disk, |_| true) {
                Some(next) => from = next,
                None => break,
            }
        }
    }
}
