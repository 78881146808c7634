use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cdsync_core::ledger::object::{Identity, Kind};
use cdsync_core::path::Name;
use rustix::fs::{CWD, RenameFlags};

use super::canary::{Canary, SECRET, assert_not_in};
use crate::apply::{Applier, Move, MoveOutcome, NameSetDigest, Stager};
use crate::dir::{Dir, LookWants, Root};
use crate::testing::{Place, dir_ref, is_root, meta, name, path};

/// Who owns the tree and attacks.
const NOBODY: u32 = 65_534;

/// The folders whose paths are attacked, outermost first.
const FOLDERS: [&str; 3] = ["a", "a/b", "a/b/c"];

/// What is done, by which user.
type Attacking = (fn(&mut Attack), u32);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.next() % from.len() as u64).unwrap()]
    }
}

fn seed() -> u64 {
    let told = std::env::var("CDSYNC_SEED")
        .ok()
        .and_then(|t| t.parse().ok());
    let seed = told.unwrap_or_else(|| getrandom::u64().unwrap());
    eprintln!("CDSYNC_SEED={seed}");
    seed
}

fn length() -> Duration {
    let told = std::env::var("CDSYNC_CONFINEMENT_MS")
        .ok()
        .and_then(|t| t.parse().ok());
    Duration::from_millis(told.unwrap_or(400))
}

/// Swaps components until told to stop. What it cannot do at this moment it leaves.
struct Attack {
    place: PathBuf,
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    random: Random,
}

impl Attack {
    fn at(&self, below: &str) -> PathBuf {
        self.place.join("root").join(below)
    }

    fn outside(&self, below: &str) -> PathBuf {
        self.place.join("outside").join(below)
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) {
        if rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags).is_ok() {
            self.swaps.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A folder becomes a link to the same names outside, vanishes, or changes places, for a moment.
    fn swap_folders(&mut self) {
        let exchange = RenameFlags::EXCHANGE;
        while !self.stop.load(Ordering::Relaxed) {
            let folder = self.random.pick(&FOLDERS);
            let link = format!("link-{}", folder.len());
            let _ = std::os::unix::fs::symlink(self.outside(folder), self.at(&link));
            match self.random.next() % 3 {
                0 => {
                    self.rename(folder, &link, exchange);
                    self.rename(folder, &link, exchange);
                }
                1 => {
                    self.rename(folder, "away", RenameFlags::NOREPLACE);
                    self.rename(&link, folder, RenameFlags::NOREPLACE);
                    let _ = std::fs::remove_file(self.at(folder));
                    self.rename("away", folder, RenameFlags::NOREPLACE);
                }
                _ => {
                    let _ = std::fs::create_dir(self.at("other"));
                    self.rename(folder, "other", exchange);
                    self.rename(folder, "other", exchange);
                }
            }
        }
    }

    /// A file becomes a link to the one outside, or vanishes, for a moment.
    fn swap_files(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let file = self.random.pick(&["a/f", "a/b/f", "a/b/c/f", "a/b/g"]);
            let link = format!("flink-{}", file.len());
            let _ = std::os::unix::fs::symlink(self.outside(file), self.at(&link));
            self.rename(file, &link, RenameFlags::EXCHANGE);
            self.rename(file, &link, RenameFlags::EXCHANGE);
            if self.random.next().is_multiple_of(4) {
                let _ = std::fs::remove_file(self.at(file));
            }
        }
    }

    /// A file becomes a second name of the one outside: what the owner of a tree can do where
    /// `fs.protected_hardlinks` is off. Names come and go, so that the count of names lies.
    fn link_files(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let file = self.random.pick(&["a/f", "a/b/f", "a/b/c/f"]);
            let _ = std::fs::remove_file(self.at(file));
            if std::fs::hard_link(self.outside(file), self.at(file)).is_ok() {
                self.swaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// CDSync's own folder is at the name of one that is just being made.
    fn swap_own(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.rename(".cdsync", "new", RenameFlags::EXCHANGE);
            self.rename(".cdsync", "new", RenameFlags::EXCHANGE);
            self.rename("new", "away", RenameFlags::NOREPLACE);
            self.rename(".cdsync", "new", RenameFlags::NOREPLACE);
            self.rename("new", ".cdsync", RenameFlags::NOREPLACE);
            let _ = std::fs::remove_dir(self.at("away"));
        }
    }
}

/// A place whose root belongs to the attacker, with everything that the canary has.
fn arena() -> Place {
    let place = Place::quiet();
    for folder in FOLDERS {
        for file in ["f", "g"] {
            place.write(&format!("{folder}/{file}"), b"inside");
        }
    }
    let own = |path: PathBuf| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    own(place.at(""));
    for folder in FOLDERS {
        own(place.at(folder));
    }
    // The attacker must get to it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.base.path(), open).unwrap();
    place
}

/// Runs `work` again and again while others attack; gives how often.
fn under_attack(
    place: &Place,
    attacks: &[Attacking],
    random: &mut Random,
    mut work: impl FnMut(&mut Random),
) {
    let (stop, swaps) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let threads: Vec<_> = attacks
        .iter()
        .map(|&(attack, user)| {
            let mut own = Attack {
                place: place.base.path().to_owned(),
                stop: Arc::clone(&stop),
                swaps: Arc::clone(&swaps),
                random: Random(random.next()),
            };
            std::thread::spawn(move || {
                become_user(user);
                attack(&mut own);
            })
        })
        .collect();
    let mut done = 0_u64;
    let end = Instant::now() + length();
    while Instant::now() < end || (swaps.load(Ordering::Relaxed) < 100 && done < 1_000_000) {
        work(random);
        done += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let swaps = swaps.load(Ordering::Relaxed);
    eprintln!("{done} rounds against {swaps} swaps");
    assert!(swaps >= 100, "nobody attacked");
}

/// This thread alone becomes another user.
fn become_user(user: u32) {
    if user != 0 {
        let (uid, gid) = (
            rustix::process::Uid::from_raw(user),
            rustix::process::Gid::from_raw(user),
        );
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
    }
}

fn both_ways(place: &Place) -> [Root; 2] {
    let steps = Root::open_by_steps(place.base.path(), &path("root")).unwrap();
    [place.root.clone(), steps]
}

fn open(root: &Root, random: &mut Random) -> Option<Arc<Dir>> {
    if random.next().is_multiple_of(2) {
        root.forget_all();
    }
    let below = random.pick(&FOLDERS);
    root.dir(&dir_ref(below.len() as u64, below)).ok()
}

/// Proves that who reads, looks and lists while the owner of the tree swaps its folders and files
/// for links never reads or sees what is outside.
#[test]
fn sending_reads_nothing_outside() {
    if !is_root("a tree whose owner attacks") {
        return;
    }
    let mut random = Random(seed());
    let place = arena();
    let canary = Canary::new(&place, false);
    let outside: Vec<u64> = inodes(&canary);
    let roots = both_ways(&place);
    let attacks: &[Attacking] = &[(Attack::swap_folders, NOBODY), (Attack::swap_files, NOBODY)];
    under_attack(&place, attacks, &mut random, |random| {
        let Some(dir) = open(&roots[random.pick(&[0, 1])], random) else {
            return;
        };
        assert!(!outside.contains(&dir.identity().inode));
        let _ = dir.list(16, LookWants::HANDLE, &mut |piece| {
            for (_, seen) in piece {
                let inode = seen.map_or(0, |o| o.fingerprint.identity.inode);
                assert!(!outside.contains(&inode), "something outside was seen");
            }
            std::ops::ControlFlow::Continue(())
        });
        let file = name(random.pick(&["f", "g"]));
        let Ok(Some(seen)) = dir.look(&file, LookWants::default()) else {
            return;
        };
        let mut bytes = Vec::new();
        if let Ok(reader) = crate::open_content(&dir, &file, &seen.fingerprint)
            && reader.read_small(&mut bytes).is_ok()
        {
            assert_ne!(bytes, SECRET);
        }
    });
    canary.assert_whole();
}

fn inodes(canary: &Canary) -> Vec<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    for folder in ["", "a", "a/b", "a/b/c"] {
        for file in ["", "f", "g"] {
            let path = canary.at(folder).join(file);
            all.push(std::fs::metadata(path).unwrap().ino());
        }
    }
    all
}

/// A target's writer, doing one change after the other.
struct Writer {
    roots: [Root; 2],
    applier: Applier,
    stager: Stager,
    /// What it published itself: the only thing whose metadata may be set without a look before.
    own: Option<(Name, Identity)>,
}

impl Writer {
    fn new(place: &Place) -> Self {
        let applier = Applier::open(&place.root, "job").unwrap();
        let stager = applier.stager(0).unwrap();
        Self {
            roots: both_ways(place),
            applier,
            stager,
            own: None,
        }
    }

    /// One change of any kind. That it may fail under attack is expected.
    fn change(&mut self, random: &mut Random) {
        let root = self.roots[random.pick(&[0, 1])].clone();
        let Some(dir) = open(&root, random) else {
            return;
        };
        let file = name(random.pick(&["f", "g", "h"]));
        let wanted = meta(random.pick(&[0o777, 0o4755, 0o640]));
        match random.next() % 9 {
            0 | 1 => self.publish(&dir, &file, random),
            2 => self.dress(&dir, random),
            3 => drop(dir.adopt(&file, &wanted, |o| o.kind == Kind::File)),
            4 => drop(self.applier.trash(&dir, &file, None, &path("f"))),
            5 => self.folder(&dir),
            6 => self.exchange(&dir, &file),
            7 => drop(dir.look(&file, LookWants::HANDLE)),
            _ => drop(self.applier.sync_file(&dir, &file)),
        }
    }

    fn publish(&mut self, dir: &Dir, file: &Name, random: &mut Random) {
        let staged = match random.next() % 4 {
            0 => self.stager.symlink(b"/etc/passwd", &meta(0o777)),
            1 => self.stager.special(Kind::Fifo, 0, &meta(0o666)),
            _ => self.stager.small(b"from the source", &meta(0o644)),
        };
        let expect = self.own.as_ref().map(|(_, identity)| (*identity).into());
        if let Ok(published) = self.applier.publish(staged.unwrap(), dir, file, expect)
            && published.observed.kind == Kind::File
        {
            self.own = Some((file.clone(), published.observed.fingerprint.identity));
        }
    }

    fn dress(&self, dir: &Dir, random: &mut Random) {
        let Some((file, identity)) = &self.own else {
            return;
        };
        let wanted = meta(random.pick(&[0o777, 0o600, 0o4755]));
        if let Ok(seen) = dir.set_metadata(file, Some(*identity), &wanted, Kind::File) {
            assert_eq!(
                seen.fingerprint.identity, *identity,
                "another one was dressed"
            );
        }
    }

    fn folder(&self, dir: &Dir) {
        let new = name("new");
        if let Ok(made) = self.applier.make_folder(dir, &new, &meta(0o777)) {
            let identity = made.observed.fingerprint.identity;
            let mut known = NameSetDigest::new();
            drop(self.applier.trash_folder(dir, &new, identity, &known));
            known.add(b"f");
            drop(self.applier.trash_folder(dir, &new, identity, &known));
            drop(self.applier.remove_empty_folder(dir, &new, identity));
        }
    }

    fn exchange(&self, dir: &Arc<Dir>, file: &Name) {
        let Ok(Some(seen)) = dir.look(file, LookWants::default()) else {
            return;
        };
        let wanted = Move {
            from_dir: Some(Arc::clone(dir)),
            from_name: file.clone(),
            to_dir: Arc::clone(dir),
            to_name: name("moved"),
            identity: seen.fingerprint.identity,
        };
        if let Ok(done) = self.applier.relocate(&[wanted])
            && let [MoveOutcome::Done(now)] = done.outcomes.as_slice()
        {
            assert_eq!(now.fingerprint.identity, seen.fingerprint.identity);
        }
    }
}

/// Proves that who stages, publishes, dresses, links, moves and deletes while the owner of the tree
/// swaps its folders and files for links changes nothing outside, and brings nothing in from there.
#[test]
fn receiving_changes_nothing_outside() {
    if !is_root("a tree whose owner attacks") {
        return;
    }
    let mut random = Random(seed());
    let place = arena();
    let canary = Canary::new(&place, false);
    let mut writer = Writer::new(&place);
    let attacks: &[Attacking] = &[(Attack::swap_folders, NOBODY), (Attack::swap_files, NOBODY)];
    under_attack(&place, attacks, &mut random, |random| writer.change(random));
    canary.assert_whole();
    assert_not_in(&place.at(""));
}

/// Proves that second names of files outside, which come and go at every name, lead nobody to set
/// those files' owner, mode or times, or to write to them.
#[test]
fn second_names_come_and_go() {
    if !is_root("a tree whose owner attacks") {
        return;
    }
    let mut random = Random(seed());
    let place = arena();
    let canary = Canary::new(&place, true);
    let mut writer = Writer::new(&place);
    // Both as root: the kernel's own protection against such links does not count here.
    let attacks: &[Attacking] = &[(Attack::link_files, 0), (Attack::link_files, 0)];
    under_attack(&place, attacks, &mut random, |random| {
        writer.change(random);
        // The narrowest place: a count of one that is the name outside.
        for root in &writer.roots {
            if let Ok(dir) = root.dir(&dir_ref(1, "a")) {
                drop(dir.adopt(&name("f"), &meta(0o777), |o| o.kind == Kind::File));
            }
        }
    });
    canary.assert_whole();
}

/// Proves that roots are opened and made only beneath what was allowed while who owns that swaps
/// the folders on the way for links.
#[test]
fn roots_are_opened_inside() {
    if !is_root("a tree whose owner attacks") {
        return;
    }
    let mut random = Random(seed());
    let place = arena();
    let canary = Canary::new(&place, false);
    let outside = inodes(&canary);
    let attacks: &[Attacking] = &[(Attack::swap_folders, NOBODY)];
    let allowed = place.at("");
    under_attack(&place, attacks, &mut random, |random| {
        let below = path(random.pick(&["a", "a/b", "a/b/c", "a/b/new/deep"]));
        let roots = [
            Root::open(&allowed, &below),
            Root::create_below(&allowed, &below),
            Root::open_by_steps(&allowed, &below),
        ];
        for root in roots.into_iter().flatten() {
            assert!(!outside.contains(&root.identity().inode));
        }
    });
    canary.assert_whole();
}

/// Proves that CDSync's own folder, swapped for a folder that is just being made, is not given away
/// in its place.
#[test]
fn own_folders_are_not_given_away() {
    if !is_root("a tree whose owner attacks") {
        return;
    }
    let mut random = Random(seed());
    let place = arena();
    let applier = Applier::open(&place.root, "job").unwrap();
    let (top, new) = (place.root.top(), name("new"));
    let own = top.open_folder(&name(".cdsync")).unwrap();
    let attacks: &[Attacking] = &[(Attack::swap_own, NOBODY)];
    under_attack(&place, attacks, &mut random, |_| {
        if let Ok(made) = applier.make_folder(&top, &new, &meta(0o777)) {
            let identity = made.observed.fingerprint.identity;
            assert_ne!(identity, own.identity());
            drop(applier.remove_empty_folder(&top, &new, identity));
        }
        assert_eq!(own.self_look().unwrap().meta.mode, 0o700);
    });
}
