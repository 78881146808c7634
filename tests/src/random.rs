//! Small seeded random numbers: the same seed gives the same test on every machine.

use std::hash::{BuildHasher, RandomState};

/// The seed of this run: `CDSYNC_SEED` when set, else a new one. It is printed, and shown when the
/// test fails.
///
/// # Panics
/// When `CDSYNC_SEED` is not a number.
#[must_use]
pub fn seed() -> u64 {
    let seed = match std::env::var("CDSYNC_SEED") {
        Ok(text) => text.parse().expect("CDSYNC_SEED is a number"),
        Err(_) => RandomState::new().hash_one(()) >> 32,
    };
    eprintln!("CDSYNC_SEED={seed}");
    seed
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; two with one seed give the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is at least 1.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// One of several.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[usize::try_from(at).expect("an index fits")]
    }

    /// So many bytes, which do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
