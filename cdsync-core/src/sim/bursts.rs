//! Mass deletes: what the guard lets through before somebody has decided.

use super::disk::{Disk, NodeId, OUTSIDE, ROOT};
use super::rng::Rng;
use super::{Scenario, SourceTuning, World};
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
struct Emptied {
    world: World,
    rng: Rng,
    files: u64,
}

impl Emptied {
    fn new(seed: u64) -> Self {
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
        world.settle().expect("it comes to rest");
        world.check().expect("it is equal");
        world.source.tuning = source;
        Self {
            world,
            rng,
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
    fn run(&mut self) {
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

fn emptied(seed: u64) {
    let mut bed = Emptied::new(seed);
    let all = [
        How::Unlink,
        How::Trees,
        How::MoveOut,
        How::Truncate,
        How::Hollow,
    ];
    let how = all[bed.rng.below(all.len())];
    let down = bed.rng.one_in(3);
    bed.world.decided_after = u64::MAX;
    if down {
        bed.stop();
    }
    bed.empty(how);
    if down {
        bed.world.source_back = 0;
    }
    bed.run();
    let most = 10.max(bed.files / 100);
    let (gone, files) = (bed.gone(), bed.files);
    let story = format!("seed {seed}: {how:?}, down {down}, {gone} of {files} files gone");
    let halted = bed.world.source.halted.clone();
    let halt = halted.unwrap_or_else(|| {
        if std::env::var("CDSYNC_SEED").is_ok() {
            println!("{}", bed.world.story());
        }
        panic!("{story}: it was to halt")
    });
    assert!(gone <= most, "{story}, {most} may");
    assert!(halt.held + halt.gone >= gone, "{story}: {halt:?}");
    assert!(!halt.names.is_empty(), "{story}: {halt:?}");
    bed.world.decided_after = 0;
    bed.world
        .settle()
        .unwrap_or_else(|e| panic!("{story}: {e}"));
    bed.world.check().unwrap_or_else(|e| panic!("{story}: {e}"));
    assert_eq!(full_files(&bed.world.target.disk), 0, "{story}");
}

fn count(usual: u64) -> std::ops::Range<u64> {
    let variable = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = variable("CDSYNC_SEED") {
        return seed..seed + 1;
    }
    let first = variable("CDSYNC_FIRST").unwrap_or(0);
    first..first + variable("CDSYNC_SEEDS").unwrap_or(usual)
}

/// Proves promise 4: of a root that is emptied in place, in whatever way, running or down, at most
/// 10 files or 1 % have gone at the target before the job halts; and all go when that is accepted.
#[test]
fn an_emptied_source_deletes_little() {
    for seed in count(150) {
        emptied(seed);
    }
}

/// Proves that random changes converge where nearly every delete is held for a while and bursts
/// halt the source, with somebody who accepts or only looks again.
#[test]
fn held_deletes_converge() {
    for seed in count(300) {
        let mut rng = Rng::new(seed ^ 0xe5);
        let mut scenario = Scenario::random(&mut Rng::new(seed));
        scenario.source.free = 1 + rng.below(3) as u64;
        let mut world = World::new(scenario, seed);
        world.source.accepts = rng.one_in(2);
        world.live();
        world.source.accepts = true;
        let result = world.settle().and_then(|()| world.check());
        if let Err(failed) = result {
            if std::env::var("CDSYNC_SEED").is_ok() {
                println!("{}", world.story());
            }
            panic!("CDSYNC_SEED={seed}: {failed}");
        }
    }
}
