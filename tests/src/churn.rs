//! Random changes of a tree.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::random::Random;

/// The largest random file.
const FILE_MAX_BYTES: u64 = 40_000;

/// Makes a tree of about so many folders and files below `top`.
///
/// # Panics
/// When it cannot.
pub fn make_tree(top: &Path, random: &mut Random, folders: usize, files: usize) {
    let mut made = vec![top.to_owned()];
    for number in 0..folders {
        let path = random.pick(&made).join(format!("folder-{number}"));
        fs::create_dir(&path).unwrap();
        made.push(path);
    }
    for number in 0..files {
        let folder = random.pick(&made);
        let size = random.below(random.clone().below(12_000) + 1);
        let content = random.bytes(usize::try_from(size).unwrap());
        fs::write(folder.join(format!("file-{number}.bin")), content).unwrap();
    }
}

/// Threads that change a tree at random until stopped.
#[derive(Debug)]
pub struct Churn {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Churn {
    /// Starts threads, each with its own numbers, that pause up to `pause` between two changes.
    #[must_use]
    pub fn start(top: &Path, seed: u64, threads: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let threads = (0..threads)
            .map(|number| {
                let (top, stop, done) = (top.to_owned(), Arc::clone(&stop), Arc::clone(&done));
                let mut random = Random::new(seed ^ (number << 40));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        change(&top, &mut random);
                        done.fetch_add(1, Ordering::Relaxed);
                        let micros = u64::try_from(pause.as_micros()).unwrap();
                        std::thread::sleep(Duration::from_micros(random.below(micros + 1)));
                    }
                })
            })
            .collect();
        Self {
            stop,
            done,
            threads,
        }
    }

    /// How many changes were tried.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops and waits for the threads; gives the number of changes tried.
    ///
    /// # Panics
    /// When a thread panicked.
    #[must_use]
    pub fn stop(mut self) -> u64 {
        self.end();
        self.count()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a changing thread panicked"
            );
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.end();
    }
}

/// One random change. Other threads may be faster: what is gone already is not changed.
fn change(top: &Path, random: &mut Random) {
    let known = walk(top);
    let folders: Vec<&PathBuf> = known.iter().filter(|path| path.is_dir()).collect();
    let folder = match random.below(folders.len() as u64 + 1) {
        0 => top,
        _ => random.pick(&folders).as_path(),
    };
    let fresh = folder.join(format!("n{}", random.below(60)));
    let mut any = || match known.is_empty() {
        true => fresh.clone(),
        false => random.pick(&known).clone(),
    };
    let (some, other) = (any(), any());
    // Failures are part of it: a name that is taken, a folder moved below itself.
    let _ = match random.below(16) {
        0..=2 => fs::write(&fresh, content(random)),
        3 => fs::create_dir(&fresh),
        4 => save(&some, random),
        5 => append(&some, random),
        6 => poke(&some, random),
        7 => fs::rename(&some, &fresh),
        8 => fs::rename(&some, &other),
        9 => swap(&some, &other),
        10 => fs::remove_file(&some),
        11 if random.below(4) == 0 => fs::remove_dir_all(&some),
        11 => fs::remove_dir(&some),
        12 => fs::set_permissions(&some, fs::Permissions::from_mode(mode(&some, random))),
        13 => symlink(format!("to-{}", random.below(9)), &fresh),
        14 => File::options()
            .write(true)
            .open(&some)
            .and_then(|file| file.set_len(random.below(99))),
        _ => touch(&some, random),
    };
}

fn content(random: &mut Random) -> Vec<u8> {
    let size = random.below(FILE_MAX_BYTES);
    random.bytes(usize::try_from(size).unwrap())
}

fn walk(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(listed) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in listed
            .flatten()
            .filter(|entry| entry.file_name() != ".cdsync")
        {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    // The order of a listing is the filesystem's affair.
    found.sort();
    found
}

/// As editors save: a temporary file, renamed over the old one.
fn save(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("{}~", random.below(1000)));
    fs::write(&temporary, content(random))?;
    fs::rename(&temporary, path)
}

fn append(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let mut file = File::options().append(true).open(path)?;
    file.write_all(&random.bytes(500))
}

/// Writes in the middle.
fn poke(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&random.bytes(100), random.below(3000))
}

fn swap(a: &Path, b: &Path) -> std::io::Result<()> {
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Readable and searchable for oneself, else nobody could go on.
fn mode(path: &Path, random: &mut Random) -> u32 {
    let own = if path.is_dir() { 0o700 } else { 0o600 };
    own | (u32::try_from(random.below(0o100)).unwrap())
}

fn touch(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let at = std::time::UNIX_EPOCH + Duration::new(random.below(1 << 31), 123_456_789);
    File::open(path)?.set_modified(at)
}
