//! Agents of root at trees whose owner attacks them: nothing beside the tree is opened, read,
//! written, linked, given away or deleted.
//!
//! `outside` is what must not be touched, and somebody who watches it; `attack` swaps every
//! component of every path. `CDSYNC_CONFINEMENT_MS` sets how long each attack takes (milliseconds,
//! 2,500 unless told), `CDSYNC_SEED` repeats the attackers' choices. What one process does at the
//! narrowest places is tested beside its code, in `cdsync-fs/src/confinement`.
//!
//! # The classes of flaws that file synchronisers had, and what tests each
//!
//! | Class | Test |
//! |---|---|
//! | link swapped for a component while sending or scanning | here: `a_source_under_attack_*`; `races::sending_reads_nothing_outside` |
//! | .. while receiving, deleting, restoring from the trash | here: `a_target_under_attack_*`; `races::receiving_changes_nothing_outside` |
//! | .. while setting owner, mode, times, attributes, access lists | here: `a_target_under_attack_*`; `places::a_link_at_a_name_is_only_a_link` |
//! | links and devices made through it | here: `a_target_under_attack_*`; `places::open_folders_stay_what_they_were` |
//! | second names of files outside | here: `a_target_under_attack_*`; `races::second_names_come_and_go` |
//! | mounts over names | here: both; `places::mounts_are_no_way_out` |
//! | names of temporary and kept files can be guessed, or are in reach | here: `own_folders_stay_closed`; `places::staged_names_are_unpredictable` |
//! | a root or its way swapped | `races::roots_are_opened_inside`, `places::roots_do_not_fail_open`; `trust::roots_that_were_not_allowed_are_refused` |
//! | block length zero or huge, counts beyond the frame | `hostile::target::requests_of_nonsense_are_answered`; the bounds in `cdsync-core/src/wire/tests.rs`; `fuzz/` |
//! | unbounded threads | `hostile::target::greedy_targets_starve_nobody` |
//! | quadratic matching | cannot apply: nothing is matched by blocks yet, content travels whole |
//! | stalls before authentication | `hostile::strangers::silence_is_cut`; `it/pace.rs` of the transport |
//! | access rules that fail open | `trust::an_agent_serves_only_what_a_grant_entitles_to`, `hostile::target::grants_do_not_fail_open`; `callers_show_the_owners_token` of the master |
//! | names with line ends in logs | `hostile::reporter::what_an_agent_says_is_one_harmless_line`; `places::odd_names_are_told_on_one_line` |
//! | chroot and daemon modules, name expansion by a shell | cannot apply: there is neither |

mod attack;
mod outside;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cdsync_tests::{Cluster, Random, is_root, job_file, seed};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};

use attack::{Attack, Attackers, OWNER, make_whole};
use outside::Outside;

/// More than a job's own defaults: devices too, and no long waits after failures.
const SETTINGS: &str = "\
    specials = [\"fifo\", \"socket\", \"device\"]\n\
    [retry]\nfirst = \"50ms\"\nmost = \"200ms\"\n";

fn attack_time() -> Duration {
    let told = std::env::var("CDSYNC_CONFINEMENT_MS").ok();
    Duration::from_millis(told.and_then(|text| text.parse().ok()).unwrap_or(2_500))
}

struct Bed {
    cluster: Cluster,
    source: PathBuf,
    target: PathBuf,
    outside: Outside,
    /// The folder of the side that is attacked.
    beside: PathBuf,
    random: Random,
}

impl Bed {
    /// A job between two trees of their owner's, one of them attacked. `None`, loudly, where this
    /// process is not root.
    fn new(attacked: &str, by_steps: bool) -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED, needs root: a tree whose owner attacks");
            return None;
        }
        let random = Random::new(seed());
        let mut cluster = Cluster::start();
        let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
        let beside = if attacked == "source" {
            &source
        } else {
            &target
        };
        let (beside, outside) = (beside.clone(), Outside::new(beside));
        let [source, target] = [source, target].map(|folder| folder.join("tree"));
        make_whole(&source);
        fs::create_dir(&target).unwrap();
        chown(&target, Some(OWNER), Some(OWNER)).unwrap();
        for (name, root) in [("origin", &source), ("edge", &target)] {
            match by_steps {
                true => cluster.agent_through(name, root, launcher()),
                false => cluster.agent(name, root),
            }
        }
        let text = job_file("site", ("origin", &source), &[("edge", &target)], SETTINGS);
        cluster.apply(&text, &[]).expect(0);
        cluster.wait("site");
        Some(Self {
            cluster,
            source,
            target,
            outside,
            beside,
            random,
        })
    }

    fn attack(&mut self, tree: &Path, attacks: &[Attack]) -> Attackers {
        let seed = self.random.next();
        Attackers::begin(tree, &self.beside.join("outside"), attacks, seed)
    }

    /// Nothing outside was touched, nothing of it came in anywhere, and all processes go on.
    #[track_caller]
    fn assert_confined(&mut self) {
        self.outside.assert_untouched();
        for inside in [&self.source, &self.target] {
            self.outside.assert_not_in(inside);
        }
        for name in ["origin", "edge", "master"] {
            self.outside.assert_not_in(self.cluster.data(name));
        }
        self.cluster.assert_healthy();
    }
}

fn launcher() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_without-openat2"))
}

fn source_under_attack(by_steps: bool) {
    let Some(mut bed) = Bed::new("source", by_steps) else {
        return;
    };
    let source = bed.source.clone();
    let all = [
        Attack::Folders,
        Attack::Files,
        Attack::Writes,
        Attack::Mounts,
    ];
    let attackers = bed.attack(&source, &all);
    std::thread::sleep(attack_time() / 2);
    // It scans under attack, too.
    bed.cluster.kill("origin");
    bed.cluster.up("origin");
    std::thread::sleep(attack_time() / 2);
    attackers.end();
    bed.cluster.wait("site");
    bed.cluster.assert_equal("site", &bed.source, &bed.target);
    bed.assert_confined();
}

/// Proves that agents of root which watch, scan, read and send a tree, while its owner swaps its
/// folders and files for links and root mounts over them, open and send nothing from beside it, and
/// that the target equals the source when the attack is over.
#[test]
fn a_source_under_attack_sends_nothing_from_outside() {
    source_under_attack(false);
}

/// Proves the same of a kernel without `openat2`, where paths are walked handle by handle.
#[test]
fn a_source_under_attack_without_openat2() {
    source_under_attack(true);
}

/// One change of any kind at the source.
fn change(source: &Path, random: &mut Random) {
    let at = |name: &str| source.join(name);
    let file = random.pick(&["a/f", "a/b/f", "a/b/g", "a/b/c/f"]);
    let file = at(file);
    let number = random.next();
    let fresh = at(&format!("a/b/new-{}", number % 8));
    match random.below(12) {
        0 | 1 => fs::write(&file, format!("{number}")).unwrap(),
        2 => {
            let bits = *random.pick(&[0o600, 0o644, 0o4755, 0o777]);
            fs::set_permissions(&file, fs::Permissions::from_mode(bits)).unwrap();
        }
        3 => chown(&file, Some(OWNER - 1), None).unwrap(),
        4 => {
            let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(number >> 34);
            let times = fs::FileTimes::new().set_modified(time);
            fs::File::open(&file).unwrap().set_times(times).unwrap();
        }
        5 => {
            let value = number.to_le_bytes();
            let _ = rustix::fs::setxattr(&file, "user.number", &value, XattrFlags::empty());
        }
        6 => {
            let value = acl(number);
            let name = "system.posix_acl_access";
            let _ = rustix::fs::setxattr(&file, name, &value, XattrFlags::empty());
        }
        7 => drop(symlink("/etc/passwd", &fresh).and_then(|()| lchown(&fresh, Some(1), None))),
        8 => drop(fs::hard_link(&file, &fresh)),
        9 => {
            let (kind, device) = *random.pick(&[
                (FileType::Fifo, 0),
                (FileType::CharacterDevice, makedev(1, 3)),
            ]);
            let _ = mknodat(CWD, &fresh, kind, Mode::from_raw_mode(0o666), device);
        }
        10 => {
            let to = random.pick(&["a/moved", "a/b/moved"]);
            drop(fs::rename(&fresh, at(to)));
        }
        _ => {
            let _ = fs::remove_file(&fresh);
            let _ = fs::create_dir(&fresh);
            let _ = fs::remove_dir(&fresh);
        }
    }
}

/// An access list in which a user has rights of his own.
fn acl(user: u64) -> Vec<u8> {
    let user = u32::try_from(user % 1000).unwrap();
    let none = u32::MAX;
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (1_u16, 6_u16, none),
        (2, 6, user),
        (4, 4, none),
        (16, 6, none),
        (32, 4, none),
    ] {
        bytes.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn target_under_attack(by_steps: bool) {
    let Some(mut bed) = Bed::new("target", by_steps) else {
        return;
    };
    let (source, target) = (bed.source.clone(), bed.target.clone());
    let all = [
        Attack::Folders,
        Attack::Files,
        Attack::Mounts,
        Attack::HardLinks,
        Attack::OwnFolder,
    ];
    let attackers = bed.attack(&target, &all);
    for half in 0..2 {
        let end = Instant::now() + attack_time() / 2;
        while Instant::now() < end {
            change(&source, &mut bed.random);
            std::thread::sleep(Duration::from_millis(1));
        }
        if half == 0 {
            bed.cluster.kill("edge");
            bed.cluster.up("edge");
        }
    }
    attackers.end();
    bed.assert_confined();
}

/// Proves that agents of root which receive, stage, publish, dress, link, move and delete in a tree,
/// while its owner swaps its folders and files for links, others link files of outside into it, and
/// root mounts over it, touch nothing beside it, and bring nothing in from there.
#[test]
fn a_target_under_attack_changes_nothing_outside() {
    target_under_attack(false);
}

/// Proves the same of a kernel without `openat2`, where paths are walked handle by handle.
#[test]
fn a_target_under_attack_without_openat2() {
    target_under_attack(true);
}

/// Proves that what comes back from the trash, while the tree is attacked, comes back inside or not
/// at all.
#[test]
fn what_comes_back_from_the_trash_stays_inside() {
    let Some(mut bed) = Bed::new("target", false) else {
        return;
    };
    for entry in fs::read_dir(&bed.source).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    bed.cluster.wait_state("site", "halted");
    let target = bed.target.clone();
    let all = [Attack::Folders, Attack::Files, Attack::OwnFolder];
    let attackers = bed.attack(&target, &all);
    let said = bed.cluster.cdsync(["job", "resume", "site", "--restore"]);
    std::thread::sleep(attack_time() / 2);
    said.expect(0);
    attackers.end();
    bed.assert_confined();
}

/// Proves that CDSync's own folders, in a tree of another's, are root's alone while they are used.
#[test]
fn own_folders_stay_closed() {
    let Some(mut bed) = Bed::new("target", false) else {
        return;
    };
    for round in 0..20 {
        fs::write(bed.source.join("a/f"), format!("{round}")).unwrap();
        let mut folders = vec![bed.target.join(".cdsync")];
        while let Some(folder) = folders.pop() {
            // What is staged comes and goes.
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            let mode = fs::metadata(&folder).map_or(0o700, |meta| meta.permissions().mode());
            assert_eq!(mode & 0o7777, 0o700, "{}", folder.display());
            let paths = entries.map(|entry| entry.unwrap().path());
            folders.extend(paths.filter(|path| path.is_dir()));
        }
    }
    bed.cluster.wait("site");
    assert_eq!(fs::read(bed.target.join("a/f")).unwrap(), b"19");
    bed.assert_confined();
}
