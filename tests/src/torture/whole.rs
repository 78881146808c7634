//! Files whose versions say of themselves whether they are whole, and threads that read them at the
//! targets all the time.
//!
//! ```text
//! whole N VERSION LENGTH CHECKSUM\n   LENGTH bytes, which VERSION and N determine the checksum of
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::random::Random;

/// How many files.
const FILES: u64 = 8;

/// Replaces the files at the source, one at a time, by writing beside and renaming over.
#[derive(Debug)]
pub(super) struct Writer {
    folder: PathBuf,
    random: Random,
    versions: [u64; FILES as usize],
}

impl Writer {
    pub(super) fn new(folder: &Path, random: Random) -> Self {
        Self {
            folder: folder.to_owned(),
            random,
            versions: [0; FILES as usize],
        }
    }

    pub(super) fn act(&mut self) {
        let number = self.random.below(FILES);
        let version = &mut self.versions[usize::try_from(number).unwrap()];
        *version += 1;
        let most = match number {
            0 => 1 << 20,
            1 => 300_000,
            _ => 6000,
        };
        let length = usize::try_from(self.random.below(most)).unwrap();
        let payload = self.random.bytes(length);
        let sum = checksum(number, *version, &payload);
        let mut bytes = format!("whole {number} {version} {length} {sum:016x}\n").into_bytes();
        bytes.extend(payload);
        let temporary = self.folder.join(format!("w{number}~"));
        // A full disk leaves half a file beside; the one that counts is the old one.
        if fs::write(&temporary, bytes).is_ok() {
            let _ = fs::rename(temporary, self.folder.join(format!("w{number}")));
        }
    }
}

/// FNV-1a over everything that the header says and the payload.
fn checksum(number: u64, version: u64, payload: &[u8]) -> u64 {
    let head = number
        .to_le_bytes()
        .into_iter()
        .chain(version.to_le_bytes());
    head.chain(payload.iter().copied())
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
}

/// The version that the bytes are, if they are all of it.
fn version_of(number: u64, bytes: &[u8]) -> Result<u64, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| format!("no whole header in {} bytes", bytes.len()))?;
    let (head, payload) = bytes.split_at(end + 1);
    let head = std::str::from_utf8(head).map_err(|_| "the header is not text")?;
    let words: Vec<&str> = head.split_whitespace().collect();
    let ["whole", own, version, length, sum] = words[..] else {
        return Err(format!("not a header: {head:?}"));
    };
    let version: u64 = version.parse().map_err(|_| "no version")?;
    if own != number.to_string() || length != payload.len().to_string() {
        let found = payload.len();
        return Err(format!("{head:?} has {found} bytes behind it"));
    }
    if sum != format!("{:016x}", checksum(number, version, payload)) {
        return Err(format!("{head:?} has other bytes behind it"));
    }
    Ok(version)
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Odd while the target's root is away.
    absences: AtomicU64,
    reads: AtomicU64,
    versions: AtomicU64,
    wrong: Mutex<Option<String>>,
}

/// A thread that reads the files at one target, until dropped.
#[derive(Debug)]
pub(super) struct Reader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub(super) fn start(target: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let (inner, folder) = (Arc::clone(&shared), target.join("whole"));
        let thread = std::thread::spawn(move || {
            let mut seen = [0; FILES as usize];
            while !inner.stop.load(Ordering::SeqCst) {
                for number in 0..FILES {
                    let last = &mut seen[usize::try_from(number).unwrap()];
                    if let Err(wrong) = read(&inner, &folder, number, last) {
                        let mut slot = inner.wrong.lock().unwrap_or_else(PoisonError::into_inner);
                        slot.get_or_insert(format!("{}/w{number}: {wrong}", folder.display()));
                    }
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The root goes away, or is back: files may be missing in between.
    pub(super) fn absent(&self) {
        self.shared.absences.fetch_add(1, Ordering::SeqCst);
    }

    /// What was seen and must not be.
    pub(super) fn wrong(&self) -> Option<String> {
        let wrong = self.shared.wrong.lock();
        wrong.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often files were read, and how many different versions were seen.
    pub(super) fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.shared.reads), count(&self.shared.versions))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a reader panicked"
            );
        }
    }
}

fn read(shared: &Shared, folder: &Path, number: u64, last: &mut u64) -> Result<(), String> {
    let before = shared.absences.load(Ordering::SeqCst);
    let bytes = fs::read(folder.join(format!("w{number}")));
    let after = shared.absences.load(Ordering::SeqCst);
    let may_be_absent = before != after || !before.is_multiple_of(2) || *last == 0;
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(_) if may_be_absent => return Ok(()),
        Err(error) => return Err(format!("was there as version {last}: {error}")),
    };
    let version = version_of(number, &bytes)?;
    if version < *last {
        return Err(format!("version {version} after {last}"));
    }
    shared.reads.fetch_add(1, Ordering::Relaxed);
    if version > *last {
        shared.versions.fetch_add(1, Ordering::Relaxed);
    }
    *last = version;
    Ok(())
}
