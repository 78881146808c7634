//! Mass deletes: what the guard lets through before somebody has decided.

use super::disk::{Disk, NodeId, OUTSIDE, ROOT};
use super::kinds::Bed;
use super::rng::Rng;
use super::source::SourceTuning;
use super::world::{Scenario, World};
use crate::ledger::object::Kind;
use crate::path::{Name, RESERVED_NAME};

/// How a root is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// File by file, then the folders.
    Unlink,
    /// Each entry of the root with all below it, at once.
    Trees,
    /// Everything is moved out of the root.
    MoveOut,
    /// Every file loses its bytes.
    Truncate,
    /// All entries of the root become others, empty ones of the same names.
    Hollow,
}

/// A source of some files whose root is emptied, running or not.
#[derive(Debug)]
pub(super) struct Emptied {
    world: World,
    rng: Rng,
    source: SourceTuning,
    files: u64,
}

impl Bed for Emptied {
    /// Of a root that is emptied in place, in whatever way, running or down, at most 10 files or
    /// 1 % have gone at the target before the job halts; and all go when that is accepted.
    fn run(&mut self) -> Result<(), String> {
        self.world.settle()?;
        self.world.check()?;
        self.world.source.tuning = self.source;
        let all = [
            How::Unlink,
            How::Trees,
            How::MoveOut,
            How::Truncate,
            How::Hollow,
        ];
        let how = all[self.rng.below(all.len())];
        let down = self.rng.one_in(3);
        self.world.decided_after = u64::MAX;
        if down {
            self.stop();
        }
        self.empty(how);
        if down {
            self.world.source_back = 0;
        }
        self.wait();
        let most = 10.max(self.files / 100);
        let (gone, files) = (self.gone(), self.files);
        let story = format!("{how:?}, down {down}, {gone} of {files} files gone, {most} may");
        let Some(halt) = self.world.source.halted.clone() else {
            return Err(format!("{story}: it was to halt"));
        };
        if gone > most || halt.held + halt.gone < gone || halt.names.is_empty() {
            return Err(format!("{story}: {halt:?}"));
        }
        self.world.decided_after = 0;
        let rest = self.world.settle().and_then(|()| self.world.check());
        rest.map_err(|what| format!("{story}: {what}"))?;
        match full_files(&self.world.target.disk) {
            0 => Ok(()),
            left => Err(format!("{story}: {left} left")),
        }
    }

    fn story(&self) -> String {
        self.world.story()
    }
}

impl Emptied {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut some = |values: &[usize]| values[rng.below(values.len())];
        let source = SourceTuning {
            recheck: false,
            buffer: 0,
            scan_every: None,
            delay_us: some(&[0, 300, 3000, 20_000]),
            reorder: some(&[0, 0, 5]),
            queue: some(&[0, 0, 0, 5]),
            lazy: some(&[0, 0, 3]),
            fail: some(&[0, 0, 0, 20]),
            tight: some(&[0, 0, 0, 1]) == 1,
            free: 0,
        };
        let files = some(&[10, 11, 15, 40, 150, 1200]) + some(&[0, 1, 2]);
        let scenario = Scenario {
            source,
            ..Scenario::calm(0)
        };
        let mut world = World::new(scenario, seed);
        fill(&mut world.source.disk, &mut rng, files);
        Self {
            world,
            rng,
            source,
            files: files as u64,
        }
    }

    /// Empties the root while the source runs, with a little time now and then.
    fn empty(&mut self, how: How) {
        let mut steps = steps(&self.world.source.disk, how);
        if how == How::Trees || how == How::MoveOut {
            self.rng.shuffle(&mut steps);
        }
        for (folder, name) in steps {
            act(&mut self.world.source.disk, how, folder, &name);
            if self.rng.one_in(8) {
                let pause = 1 + self.rng.below(2000) as u64;
                self.world.advance(pause);
                self.world.round();
            }
        }
    }

    fn stop(&mut self) {
        self.world.source.crash();
        self.world.session = None;
        self.world.source_back = u64::MAX;
    }

    /// Lets some seconds pass.
    fn wait(&mut self) {
        for _ in 0..3000 {
            self.world.advance(5_000);
            self.world.round();
        }
    }

    /// How many files have gone at the target, or have lost their bytes there.
    fn gone(&self) -> u64 {
        self.files - full_files(&self.world.target.disk)
    }
}

fn full_files(disk: &Disk) -> u64 {
    let full = |id: &NodeId| disk.node(*id).kind == Kind::File && !disk.node(*id).bytes.is_empty();
    let all = disk.walk();
    let carried = all
        .iter()
        .filter(|(path, id)| path.components().all(|c| c != RESERVED_NAME) && full(id));
    carried.count() as u64
}

fn fill(disk: &mut Disk, rng: &mut Rng, files: usize) {
    let mut folders = vec![ROOT];
    for number in 0..files {
        if rng.one_in(6) {
            let parent = folders[rng.below(folders.len())];
            let name = Name::new(format!("d{number}").as_bytes()).expect("a name");
            folders.extend(disk.mkdir(parent, &name));
        }
        let folder = folders[rng.below(folders.len())];
        let name = Name::new(format!("f{number}").as_bytes()).expect("a name");
        let file = disk.create_file(folder, &name).expect("it is new");
        disk.write(file, b"content");
        disk.close(file);
    }
}

/// Names in the order in which they go.
fn steps(disk: &Disk, how: How) -> Vec<(NodeId, Name)> {
    let top = disk.node(ROOT).children.keys();
    let top = top.filter(|name| name.as_bytes() != RESERVED_NAME);
    if how != How::Unlink && how != How::Truncate {
        return top.map(|name| (ROOT, name.clone())).collect();
    }
    let mut all = disk.walk();
    // What is in a folder goes before it.
    all.sort_by_key(|(path, _)| std::cmp::Reverse(path.clone()));
    let slots = all
        .into_iter()
        .filter_map(|(_, id)| disk.node(id).slot.clone());
    slots
        .filter(|(_, name)| name.as_bytes() != RESERVED_NAME)
        .collect()
}

fn act(disk: &mut Disk, how: How, folder: NodeId, name: &Name) {
    let Some(id) = disk.child(folder, name) else {
        return;
    };
    match how {
        How::Unlink => drop(disk.unlink(folder, name)),
        How::Trees => disk.remove_tree(folder, name),
        How::MoveOut => drop(disk.rename((folder, name), (OUTSIDE, name))),
        How::Truncate if disk.node(id).kind == Kind::File => {
            disk.open_file(id);
            disk.write(id, b"");
            disk.close(id);
        }
        How::Truncate => {}
        How::Hollow if disk.node(id).kind == Kind::File => {
            disk.unlink(folder, name);
            let file = disk.create_file(folder, name).expect("the name is free");
            disk.close(file);
        }
        How::Hollow => {
            disk.remove_tree(folder, name);
            disk.mkdir(folder, name);
        }
    }
}
