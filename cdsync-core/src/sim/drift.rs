//! A target whose files others change, under each of the job's policies.

use super::disk::{Disk, ROOT};
use super::kinds::Bed;
use super::world::World;
use crate::job::Drift;
use crate::ledger::object::Kind;
use crate::path::RESERVED_NAME;
use crate::time::Timestamp;

/// How often a manager accepts what others did, before it must be all.
const ACCEPTS_MAX: usize = 3;

/// A source whose target's files others change.
#[derive(Debug)]
pub(super) struct Drifting {
    world: World,
    policy: Drift,
}

impl Drifting {
    pub(super) fn new(world: World, policy: Drift) -> Self {
        Self { world, policy }
    }
}

impl Bed for Drifting {
    /// What others wrote is told when it is replaced, or stays until somebody accepts; and once the
    /// source has touched everything, both are equal again.
    fn run(&mut self) -> Result<(), String> {
        self.world.live();
        self.world.target.tuning.others = 0;
        self.world.advance(1_000_000);
        touch_all(&mut self.world.source.disk);
        if self.policy == Drift::Keep {
            for _ in 0..1500 {
                self.world.advance(20_000);
                self.world.round();
            }
            self.world.target.accept();
        }
        let mut settled = self.world.settle();
        for _ in 0..ACCEPTS_MAX {
            if settled.is_err() && self.world.target.keeps() {
                // It was found after that, and waits to be accepted too.
                self.world.target.accept();
                settled = self.world.settle();
            }
        }
        settled?;
        self.world.check()
    }

    fn story(&self) -> String {
        self.world.story()
    }
}

/// Changes everything, so that a target looks at each of its copies.
fn touch_all(disk: &mut Disk) {
    let all = disk.walk();
    let files = all
        .iter()
        .filter(|(path, _)| path.components().all(|c| c != RESERVED_NAME));
    let (files, others): (Vec<_>, Vec<_>) =
        files.partition(|(_, id)| disk.node(*id).kind == Kind::File);
    for (number, (_, id)) in files.into_iter().enumerate() {
        disk.open_file(*id);
        disk.write(*id, format!("touched {number}").as_bytes());
        disk.close(*id);
    }
    for id in others.into_iter().map(|(_, id)| *id).chain([ROOT]) {
        let mtime = disk.node(id).meta.mtime;
        let secs = mtime.secs - 77;
        disk.set_mtime(id, Timestamp { secs, ..mtime });
    }
}
