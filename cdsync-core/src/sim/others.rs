//! Others, who change a target's files: what they do, and what becomes of it.

use std::collections::BTreeSet;

use super::disk::{Disk, NodeId};
use super::rng::Rng;
use super::source::hash;
use crate::ids::ObjectId;
use crate::ledger::object::{Identity, Kind};
use crate::ledger::rows::{Known, Left};
use crate::path::{Name, RESERVED_NAME};
use crate::replica::{ApplyOp, ApplyResult, Met, OnDrift};

/// Compares what is at a name with what is known to be there.
pub(super) fn met(disk: &Disk, folder: NodeId, name: &Name, known: Option<&Known>) -> Met {
    let Some(id) = disk.child(folder, name) else {
        return Met::Nothing;
    };
    let Some(known) = known else {
        return Met::Other;
    };
    let (node, any) = (disk.node(id), known.identity == Identity::default());
    let Some(left) = known.left.filter(|_| !any) else {
        let is_it = any || node.identity == known.identity;
        return if is_it { Met::AsLeft } else { Met::Other };
    };
    if node.identity != known.identity {
        return Met::Other;
    }
    if node.ctime == left.ctime {
        return Met::AsLeft;
    }
    if node.kind == Kind::File && !has_content(disk, id, &left) {
        return Met::Other;
    }
    if node.kind != Kind::Symlink && node.meta.mode != left.mode {
        return Met::OtherMeta;
    }
    Met::AsLeft
}

fn has_content(disk: &Disk, id: NodeId, left: &Left) -> bool {
    let node = disk.node(id);
    let same = (node.bytes.len() as u64, node.meta.mtime) == (left.size, left.mtime);
    same && left.hash.is_none_or(|known| known == hash(&node.bytes))
}

/// Those who change a target's files.
#[derive(Debug)]
pub(super) struct Others {
    rng: Rng,
    counter: u64,
    /// Files that they wrote, made or replaced.
    theirs: BTreeSet<NodeId>,
    /// What they did, for a failed run's report.
    pub(super) history: Vec<String>,
}

impl Others {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            counter: 0,
            theirs: BTreeSet::new(),
            history: Vec::new(),
        }
    }

    /// Does something to a file of the target, if it can be told from what the target does: not
    /// within one step of the clock.
    pub(super) fn act(&mut self, disk: &mut Disk) {
        let all: Vec<(String, NodeId)> = disk
            .walk()
            .into_iter()
            .filter(|(path, _)| path.components().all(|c| c != RESERVED_NAME))
            .map(|(path, id)| (path.to_string(), id))
            .collect();
        let Some((path, id)) = self.rng.pick(&all).cloned() else {
            return;
        };
        if disk.node(id).ctime >= disk.now() {
            return;
        }
        let slot = disk.node(id).slot.clone();
        let Some((folder, name)) =
            slot.filter(|(folder, name)| disk.child(*folder, name) == Some(id))
        else {
            return;
        };
        let kind = disk.node(id).kind;
        let what = match (self.rng.below(5), kind) {
            (_, Kind::Folder) => {
                let name = ["a", "b", "c", "d", "e.txt", "f.txt"][self.rng.below(6)];
                let name = Name::new(name.as_bytes()).expect("a name");
                if !self.make(disk, id, &name) {
                    return;
                }
                format!("make {path}/{name}")
            }
            (0 | 1, Kind::File) => {
                let bytes = self.bytes();
                disk.open_file(id);
                disk.write(id, &bytes);
                disk.close(id);
                self.theirs.insert(id);
                format!("write {path}")
            }
            (2, Kind::File) => {
                disk.set_mode(id, 0o640, None);
                format!("chmod {path}")
            }
            (3, _) => {
                disk.unlink(folder, &name);
                self.make(disk, folder, &name);
                format!("replace {path}")
            }
            _ => {
                disk.unlink(folder, &name);
                format!("remove {path}")
            }
        };
        self.history.push(format!(
            "{:>9} us: {what}",
            disk.clock / 1000 % 1_000_000_000
        ));
    }

    fn make(&mut self, disk: &mut Disk, folder: NodeId, name: &Name) -> bool {
        let Some(id) = disk.create_file(folder, name) else {
            return false;
        };
        let bytes = self.bytes();
        disk.write(id, &bytes);
        disk.close(id);
        self.theirs.insert(id);
        true
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.counter += 1;
        format!("theirs {:03}", self.counter).into_bytes()
    }

    /// Whether a file is theirs, or was.
    pub(super) fn is_theirs(&self, id: NodeId) -> bool {
        self.theirs.contains(&id)
    }

    /// Checks what an operation did to the file of theirs that was at its name: it is told, or it
    /// stays. Folders, what moves to a name, and what is swept because no ledger has it, tell nothing.
    ///
    /// # Panics
    /// When it went without a word.
    pub(super) fn check(
        &self,
        op: &ApplyOp,
        there: Option<NodeId>,
        gone: bool,
        result: &ApplyResult,
    ) {
        let drift = match op {
            ApplyOp::WriteFile { drift, .. } | ApplyOp::MakeLink { drift, .. } => drift,
            ApplyOp::Remove { id, drift, .. }
                if *id == ObjectId::default() && *drift == OnDrift::Ignore =>
            {
                return;
            }
            ApplyOp::Remove { drift, kind, .. } if *kind != Kind::Folder => drift,
            _ => return,
        };
        let Some(there) = there.filter(|id| self.is_theirs(*id) && gone) else {
            return;
        };
        assert!(
            matches!(result, ApplyResult::Overwrote(_)) && *drift == OnDrift::Replace,
            "what others wrote in node {there} went without a word: {op:?} -> {result:?}"
        );
    }
}
