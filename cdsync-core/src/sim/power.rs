//! What a disk is left with when the power fails: its names as they were at some moment since the
//! last sync, its newer contents perhaps torn.

use std::collections::BTreeSet;

use super::disk::{Disk, NodeId};
use super::rng::Rng;

/// How many moments since the last sync are remembered.
const MOMENTS_MAX: usize = 8;

/// A disk at one moment.
#[derive(Debug, Clone)]
struct Moment {
    disk: Disk,
    /// Contents that are not on it for certain.
    unsynced: BTreeSet<NodeId>,
}

/// What may be left.
#[derive(Debug)]
pub(super) struct Images {
    /// No names are older than these.
    certain: Moment,
    /// Moments since then, in their order.
    since: Vec<Moment>,
    /// What the sync under way makes certain.
    syncing: Option<Disk>,
    /// Contents that no sync has covered.
    unsynced: BTreeSet<NodeId>,
    rng: Rng,
}

impl Images {
    pub(super) fn new(disk: &Disk, seed: u64) -> Self {
        let disk = disk.clone();
        Self {
            certain: Moment {
                disk,
                unsynced: BTreeSet::new(),
            },
            since: Vec::new(),
            syncing: None,
            unsynced: BTreeSet::new(),
            rng: Rng::new(seed),
        }
    }

    /// Something was done; `written` are new contents.
    pub(super) fn changed(&mut self, disk: &Disk, written: impl IntoIterator<Item = NodeId>) {
        self.unsynced.extend(written);
        if !self.rng.one_in(3) {
            return;
        }
        if self.since.len() >= MOMENTS_MAX {
            self.since.remove(self.rng.below(MOMENTS_MAX));
        }
        self.since.push(self.now(disk));
    }

    fn now(&self, disk: &Disk) -> Moment {
        Moment {
            disk: disk.clone(),
            unsynced: self.unsynced.clone(),
        }
    }

    /// All names so far are on the disk, as after the sync of a folder; contents need not be.
    pub(super) fn names_synced(&mut self, disk: &Disk) {
        self.certain = self.now(disk);
        self.since.clear();
    }

    pub(super) fn sync_began(&mut self, disk: &Disk) {
        self.syncing = Some(disk.clone());
    }

    pub(super) fn sync_ended(&mut self) {
        let Some(disk) = self.syncing.take() else {
            return;
        };
        let covered = |id: &NodeId| disk.knows(*id);
        self.unsynced.retain(|id| !covered(id));
        for moment in &mut self.since {
            moment.unsynced.retain(|id| !covered(id));
        }
        self.certain.unsynced.retain(|id| !covered(id));
        // Folders that were synced since make later names certain.
        if disk.age() > self.certain.disk.age() {
            self.since.retain(|moment| moment.disk.age() >= disk.age());
            self.certain = Moment {
                disk,
                unsynced: BTreeSet::new(),
            };
        }
    }

    /// The disk gives some of what no sync has covered up, without a word.
    pub(super) fn sync_failed(&mut self, disk: &mut Disk) {
        self.syncing = None;
        tear(disk, &self.unsynced, &mut self.rng);
    }

    /// What the disk is when the power is back.
    pub(super) fn cut(&mut self, disk: &Disk) -> Disk {
        self.since.push(self.now(disk));
        let at = self.rng.below(self.since.len() + 1);
        let left = match at {
            0 => self.certain.clone(),
            _ => self.since[at - 1].clone(),
        };
        let Moment {
            disk: mut left,
            unsynced,
        } = left;
        tear(&mut left, &unsynced, &mut self.rng);
        left.go_on_after(disk);
        self.certain = Moment {
            disk: left.clone(),
            unsynced: BTreeSet::new(),
        };
        self.since.clear();
        self.unsynced.clear();
        self.syncing = None;
        left
    }
}

fn tear(disk: &mut Disk, unsynced: &BTreeSet<NodeId>, rng: &mut Rng) {
    for id in unsynced {
        if !disk.knows(*id) {
            continue;
        }
        let bytes = &mut disk.node_mut(*id).bytes;
        match rng.below(4) {
            0 => bytes.clear(),
            1 => bytes.fill(0),
            _ => {}
        }
    }
}
