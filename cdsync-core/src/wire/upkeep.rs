//! What a target reports of its trash, and of files that others changed.

use serde::{Deserialize, Serialize};

use super::control::REPORT_MAX_NAMES;
use crate::bounds;
use crate::time::WallMillis;

/// How many changed paths a report names.
pub const DRIFT_NAMES: usize = 20;

/// What a target's trash holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrashReport {
    /// Files, links and folders.
    pub entries: u64,
    /// What the filesystem has allocated for them, in bytes.
    pub bytes: u64,
    /// When the oldest of them came.
    pub oldest: Option<WallMillis>,
    /// Why nothing is removed for its age, or why something cannot be removed; for people.
    #[serde(deserialize_with = "bounds::maybe_text")]
    pub trouble: Option<String>,
}

/// What others changed in a target's root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DriftReport {
    /// How many changes of others were met.
    pub count: u64,
    /// The first paths, escaped, at most [`DRIFT_NAMES`].
    #[serde(deserialize_with = "bounds::texts::<_, REPORT_MAX_NAMES>")]
    pub names: Vec<String>,
    /// How many of others' versions stay, because the job says so.
    pub kept: u64,
    /// Whether a manager is to acknowledge it.
    pub alert: bool,
}
