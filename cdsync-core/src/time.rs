//! Time as arguments: nothing in this crate reads a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in the life of a machine: time since an epoch that its driver chose (its own start, or
/// a simulator's zero). Never goes backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub Duration);

impl Instant {
    /// This point and a while more.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }

    /// How long ago `earlier` was, zero when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Wall time in milliseconds since 1970, for leases, logs and people.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct WallMillis(pub u64);

/// A hybrid logical clock reading: wall milliseconds in the upper 48 bits, a counter in the lower
/// 16. Orders changes of several sources (Kulkarni et al., 2014); within one ledger it only rises.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The next reading after this one, at wall time `now`.
    #[must_use]
    pub fn next(self, now: WallMillis) -> Self {
        Self((now.0 << 16).max(self.0 + 1))
    }

    /// The wall time inside.
    #[must_use]
    pub const fn wall(self) -> WallMillis {
        WallMillis(self.0 >> 16)
    }
}

/// A file's time as the kernel gives it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// Whether it can be a file's time: other nanoseconds mean something else to a system.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.nanos < 1_000_000_000
    }
}
