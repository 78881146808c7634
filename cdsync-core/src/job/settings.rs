//! How a job keeps its promises: everything about it that has a default.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ledger::object::Kind;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
/// Ten years: the longest time that is kept.
const AGE_MAX_MS: u64 = 3_653 * DAY_MS;

/// When what a target holds is claimed, and so reported as there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Once it is published; a power cut may take it back, which the next start finds out.
    None,
    /// Once its batch was synced to the disk.
    #[default]
    Batch,
    /// Each file is synced before it is published, and its batch before it is claimed.
    Each,
}

/// What a delete at the source does at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// What was deleted or replaced is kept in the job's trash for a while.
    #[default]
    Trash,
    /// Nothing of it stays.
    Erase,
}

/// What happens to a target's file that somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drift {
    /// The source's version replaces it; the other one is kept in the trash.
    #[default]
    Overwrite,
    /// It stays, and is reported, until the manager decides.
    Keep,
    /// As `Overwrite`, and reported as a failure of the target.
    Alert,
}

/// What happens to a file that never rests while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsettled {
    /// It is reported, and tried again.
    #[default]
    Report,
    /// What was read is sent, though it may be no state that the file ever had.
    Send,
}

/// How owners travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owners {
    /// By number.
    #[default]
    Numeric,
    /// By name where both servers know it, else by number.
    Name,
}

/// What is compared where a target's file may be the source's already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdoptCheck {
    /// Equal size and modification time count as equal.
    #[default]
    Time,
    /// The content is read.
    Content,
}

/// Which special files are carried; the others are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Specials {
    /// Named pipes.
    pub fifos: bool,
    /// Sockets, as names that nobody listens at.
    pub sockets: bool,
    /// Device nodes: whoever may write the source's tree gets access to the targets' devices.
    pub devices: bool,
}

impl Specials {
    /// Whether an object of this kind is carried.
    #[must_use]
    pub const fn carries(self, kind: Kind) -> bool {
        match kind {
            Kind::File | Kind::Folder | Kind::Symlink => true,
            Kind::Fifo => self.fifos,
            Kind::Socket => self.sockets,
            Kind::CharDevice | Kind::BlockDevice => self.devices,
        }
    }
}

impl Default for Specials {
    fn default() -> Self {
        Self {
            fifos: true,
            sockets: true,
            devices: false,
        }
    }
}

/// What the log keeps for targets that are behind; they reconcile beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogBounds {
    /// At most so old, in milliseconds; a minute to ten years.
    pub age_ms: u64,
    /// At most so large, in bytes of records; at least 64 KiB.
    pub bytes: u64,
}

impl Default for LogBounds {
    /// Seven days or 1 GiB.
    fn default() -> Self {
        Self {
            age_ms: 7 * DAY_MS,
            bytes: 1 << 30,
        }
    }
}

/// What a target's trash keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrashBounds {
    /// At most so old, in milliseconds; at most ten years.
    pub age_ms: u64,
    /// At most this part of the target's filesystem, in percent; 0 to 90.
    pub percent: u8,
    /// At most so many bytes, if said.
    pub bytes: Option<u64>,
}

impl Default for TrashBounds {
    /// Seven days or a tenth of the filesystem.
    fn default() -> Self {
        Self {
            age_ms: 7 * DAY_MS,
            percent: 10,
            bytes: None,
        }
    }
}

/// When what failed is tried again: the wait doubles from the first to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The first wait, in milliseconds; 10 to an hour.
    pub first_ms: u32,
    /// The longest wait, in milliseconds; at least the first, at most a day.
    pub most_ms: u32,
    /// How far a wait may differ from that, to either side, in percent; 0 to 50.
    pub jitter_percent: u8,
}

impl Default for Retry {
    /// One second to a minute, 20 % to either side.
    fn default() -> Self {
        Self {
            first_ms: 1_000,
            most_ms: 60_000,
            jitter_percent: 20,
        }
    }
}

impl Retry {
    /// How long to wait before an attempt, in milliseconds: `attempt` counts from one. The same for
    /// the same `seed` and attempt, and spread evenly over the jitter with both, so that what
    /// failed together does not come back together.
    #[must_use]
    pub fn wait_ms(&self, seed: u64, attempt: u32) -> u64 {
        let doublings = attempt.saturating_sub(1).min(32);
        let whole = (u64::from(self.first_ms) << doublings).min(u64::from(self.most_ms));
        let spread = whole * u64::from(self.jitter_percent.min(100)) / 100;
        let random = mix(seed ^ u64::from(attempt).rotate_left(48));
        whole - spread + random % (2 * spread + 1)
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How many deletes at once halt a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// More than this part of the files, in percent; 1 to 100, where 100 switches the guard off.
    pub percent: u8,
    /// And at least so many.
    pub least: u64,
    /// Within this time, in milliseconds; a second to an hour.
    pub within_ms: u32,
}

impl Default for Guard {
    /// More than half of the files, at least 1,000, within a minute.
    fn default() -> Self {
        Self {
            percent: 50,
            least: 1_000,
            within_ms: 60_000,
        }
    }
}

/// Everything about a job that has a default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long a file open for writing is waited for, in milliseconds; 100 to an hour.
    pub max_age_ms: u32,
    /// When what a target holds is claimed.
    pub durability: Durability,
    /// What the log keeps.
    pub log: LogBounds,
    /// What a delete does.
    pub on_delete: OnDelete,
    /// What the trash keeps.
    pub trash: TrashBounds,
    /// What happens to a target's file that somebody else changed.
    pub drift: Drift,
    /// When what failed is tried again.
    pub retry: Retry,
    /// How many deletes at once halt the job.
    pub guard: Guard,
    /// What happens to a file that never rests.
    pub unsettled: Unsettled,
    /// How owners travel.
    pub owners: Owners,
    /// Which special files are carried.
    pub specials: Specials,
    /// What is compared when a root is taken over.
    pub adopt_check: AdoptCheck,
    /// How often the whole tree is compared, to find what no event told, in milliseconds; a minute
    /// to ten years, zero for never.
    pub scan_every_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_age_ms: 5_000,
            durability: Durability::default(),
            log: LogBounds::default(),
            on_delete: OnDelete::default(),
            trash: TrashBounds::default(),
            drift: Drift::default(),
            retry: Retry::default(),
            guard: Guard::default(),
            unsettled: Unsettled::default(),
            owners: Owners::default(),
            specials: Specials::default(),
            adopt_check: AdoptCheck::default(),
            scan_every_ms: DAY_MS,
        }
    }
}

/// A setting is out of its bounds; not retryable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{setting} is out of bounds: {wanted}")]
pub struct SettingError {
    /// Which.
    pub setting: &'static str,
    /// What it may be.
    pub wanted: &'static str,
}

impl Settings {
    /// Checks the bounds that the fields document.
    ///
    /// # Errors
    /// [`SettingError`]; not retryable.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self {
            log, retry, guard, ..
        } = self;
        let checks = [
            (
                (100..=3_600_000).contains(&self.max_age_ms),
                "max_age",
                "100ms to 1h",
            ),
            (
                (MINUTE_MS..=AGE_MAX_MS).contains(&log.age_ms),
                "log.age",
                "1m to 3653d",
            ),
            (log.bytes >= 64 << 10, "log.size", "at least 64KiB"),
            (
                self.trash.age_ms <= AGE_MAX_MS,
                "trash.age",
                "at most 3653d",
            ),
            (self.trash.percent <= 90, "trash.percent", "0 to 90"),
            (
                (10..=3_600_000).contains(&retry.first_ms),
                "retry.first",
                "10ms to 1h",
            ),
            (
                (retry.first_ms..=86_400_000).contains(&retry.most_ms),
                "retry.most",
                "retry.first to 1d",
            ),
            (retry.jitter_percent <= 50, "retry.jitter", "0 to 50"),
            (
                (1..=100).contains(&guard.percent),
                "guard.percent",
                "1 to 100",
            ),
            (
                (1_000..=3_600_000).contains(&guard.within_ms),
                "guard.within",
                "1s to 1h",
            ),
            (
                self.scan_every_ms == 0 || (MINUTE_MS..=AGE_MAX_MS).contains(&self.scan_every_ms),
                "scan_every",
                "1m to 3653d, or 0s for never",
            ),
        ];
        match checks.iter().find(|(good, ..)| !good) {
            None => Ok(()),
            Some((_, setting, wanted)) => Err(SettingError { setting, wanted }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that the defaults are the documented ones and within their bounds.
    #[test]
    fn defaults_hold() {
        let settings = Settings::default();
        settings.validate().unwrap();
        assert_eq!(settings.log.age_ms, 604_800_000);
        assert_eq!(settings.log.bytes, 1_073_741_824);
        assert_eq!(
            (settings.trash.age_ms, settings.trash.percent),
            (604_800_000, 10)
        );
        assert_eq!(settings.drift, Drift::Overwrite);
        let Retry {
            first_ms,
            most_ms,
            jitter_percent,
        } = settings.retry;
        assert_eq!((first_ms, most_ms, jitter_percent), (1_000, 60_000, 20));
    }

    /// Proves that waits double from the first to the longest, stay within the jitter, use all of
    /// it, and are the same each time.
    #[test]
    fn waits_double_within_the_jitter() {
        let retry = Retry {
            first_ms: 100,
            most_ms: 1_000,
            jitter_percent: 20,
        };
        for (attempt, whole) in [(1, 100), (2, 200), (4, 800), (5, 1_000), (u32::MAX, 1_000)] {
            let waits: Vec<u64> = (0..500).map(|seed| retry.wait_ms(seed, attempt)).collect();
            let (low, high) = (whole * 8 / 10, whole * 12 / 10);
            assert!(waits.iter().all(|wait| (low..=high).contains(wait)));
            let quarter = (high - low) / 4;
            assert!(waits.iter().any(|wait| *wait < low + quarter));
            assert!(waits.iter().any(|wait| *wait > high - quarter));
            assert_eq!(waits[7], retry.wait_ms(7, attempt));
        }
        let exact = Retry {
            jitter_percent: 0,
            ..retry
        };
        assert_eq!(exact.wait_ms(3, 3), 400);
        let longest = Retry {
            first_ms: 3_600_000,
            most_ms: 86_400_000,
            jitter_percent: 50,
        };
        assert!(longest.wait_ms(1, 100) <= 86_400_000 * 3 / 2);
    }

    /// Proves that a setting beyond its bounds is refused by its name.
    #[test]
    fn bounds_are_checked() {
        let refused = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.validate().map_err(|error| error.setting)
        };
        assert_eq!(refused(&|s| s.max_age_ms = 99), Err("max_age"));
        assert_eq!(refused(&|s| s.log.bytes = 1), Err("log.size"));
        assert_eq!(refused(&|s| s.log.age_ms = u64::MAX), Err("log.age"));
        assert_eq!(refused(&|s| s.trash.percent = 91), Err("trash.percent"));
        assert_eq!(refused(&|s| s.retry.most_ms = 999), Err("retry.most"));
        assert_eq!(refused(&|s| s.guard.percent = 0), Err("guard.percent"));
        assert_eq!(refused(&|s| s.scan_every_ms = 1), Err("scan_every"));
        assert_eq!(refused(&|s| s.scan_every_ms = 0), Ok(()));
    }
}
