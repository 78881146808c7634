//! A disk in memory whose power can be cut at any moment of its past, and that can fail.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::random::Random;

/// Writes survive a power cut, or do not, in pieces of this size.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
enum Done {
    Written { at: u64, bytes: Vec<u8> },
    Length(u64),
    Synced,
}

#[derive(Debug, Default)]
struct State {
    /// What it held before the first of what was done.
    first: Vec<u8>,
    done: Vec<Done>,
    live: Vec<u8>,
    failing: Option<io::ErrorKind>,
}

/// The disk; clones are the same disk.
///
/// It keeps everything that was done to it, in order, so that one run of a test gives the images
/// of a power cut at each of its moments.
#[derive(Debug, Clone, Default)]
pub struct PowerDisk(Arc<Mutex<State>>);

impl PowerDisk {
    /// A disk that holds this.
    #[must_use]
    pub fn holding(image: Vec<u8>) -> Self {
        let state = State {
            first: image.clone(),
            live: image,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// How much was done to it: the present moment.
    #[must_use]
    pub fn now(&self) -> usize {
        self.lock().done.len()
    }

    /// From now on writing and syncing fail, or no more.
    pub fn fail(&self, error: Option<io::ErrorKind>) {
        self.lock().failing = error;
    }

    /// The moments at which a cut is worth trying: around each sync, and between.
    #[must_use]
    pub fn moments(&self) -> Vec<usize> {
        let state = self.lock();
        let syncs = state.done.iter().enumerate();
        let mut moments: Vec<usize> = syncs
            .filter(|(_, done)| matches!(done, Done::Synced))
            .flat_map(|(at, _)| [at.saturating_sub(1), at, at + 1, at + 2])
            .filter(|at| *at <= state.done.len())
            .collect();
        moments.dedup();
        moments
    }

    /// What is there after a power cut at that moment: everything that was synced, and of what was
    /// written since, the sectors that `survives` says.
    #[must_use]
    pub fn image(&self, moment: usize, survives: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let state = self.lock();
        let done = &state.done[..moment];
        let synced = done
            .iter()
            .rposition(|done| matches!(done, Done::Synced))
            .map_or(0, |at| at + 1);
        let mut image = state.first.clone();
        for one in &done[..synced] {
            play(&mut image, one, &mut || true);
        }
        for one in &done[synced..] {
            play(&mut image, one, survives);
        }
        image
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act(&self, done: Done) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(kind) = state.failing {
            return Err(io::Error::new(kind, "the disk fails"));
        }
        play(&mut state.live, &done, &mut || true);
        state.done.push(done);
        Ok(())
    }
}

/// Survivors chosen at random: mostly none or all, else each sector by itself.
pub fn survivors(random: &mut Random) -> impl FnMut() -> bool {
    let share = *random.pick(&[0, 0, 10, 50, 90, 100, 100]);
    let mut random = random.clone();
    move || random.below(100) < share
}

fn play(image: &mut Vec<u8>, done: &Done, survives: &mut dyn FnMut() -> bool) {
    match done {
        Done::Synced => {}
        // A longer file may be there without what is in it; a shorter one may not be there yet.
        Done::Length(length) => {
            let length = usize::try_from(*length).unwrap();
            if length > image.len() || survives() {
                image.resize(length, 0);
            }
        }
        Done::Written { at, bytes } => {
            for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let at = usize::try_from(*at).unwrap() + number * SECTOR_BYTES;
                if survives() && at + sector.len() <= image.len() {
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

impl StorageBackend for PowerDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let found = state.live.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.act(Done::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.act(Done::Synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let bytes = data.to_vec();
        self.act(Done::Written { at: offset, bytes })
    }
}
