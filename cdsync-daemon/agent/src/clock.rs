//! The clocks of this process, read here and nowhere else.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdsync_core::time::{Instant, WallMillis};

/// Names a file for tests of clocks that are set: its milliseconds are added to the wall clock
/// whenever that is read.
const SHIFT_FILE: &str = "CDSYNC_TEST_CLOCK_SHIFT_FILE";

/// Wall time.
pub(crate) fn wall() -> WallMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let clock = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    WallMillis(clock.saturating_add_signed(shift_ms()))
}

fn shift_ms() -> i64 {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os(SHIFT_FILE).map(PathBuf::from));
    let Some(file) = file else { return 0 };
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's own file, outside of every root"
    )]
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Wall time as it was when it was first asked for, and what passed since: for waits, which a
/// clock that is set must neither lengthen nor end.
pub(crate) fn steady() -> WallMillis {
    static START: OnceLock<(std::time::Instant, WallMillis)> = OnceLock::new();
    let (start, at) = START.get_or_init(|| (std::time::Instant::now(), wall()));
    let passed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    WallMillis(at.0.saturating_add(passed))
}

/// Time since one machine's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(std::time::Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn now(&self) -> Instant {
        Instant(self.0.elapsed())
    }

    /// How long until a point in time; zero when it is past.
    pub(crate) fn until(&self, then: Instant) -> Duration {
        then.0.saturating_sub(self.0.elapsed())
    }
}

/// A random number for an id; never zero, which stands for none.
pub(crate) fn random_id() -> u64 {
    getrandom::u64()
        .unwrap_or_else(|_| wall().0.rotate_left(32) ^ u64::from(std::process::id()))
        .max(1)
}
