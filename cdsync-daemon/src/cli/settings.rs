//! The settings of a job as a job file writes them: times as `7d`, sizes as `1GiB`.

use cdsync_core::job::{Guard, LogBounds, Retry, Specials, TrashBounds};
use serde::Deserialize;

use crate::text::{duration, millis, size};

/// A time, in milliseconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) u64);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        duration(&text).map(|span| Self(millis(span)))
    }
}

impl Span {
    /// What is beyond the type is beyond every bound too.
    fn short(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

/// A size, in bytes.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Size(u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        size(&text).map(Self)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogFile {
    age: Option<Span>,
    size: Option<Size>,
}

impl LogFile {
    pub(super) fn bounds(&self) -> LogBounds {
        let default = LogBounds::default();
        LogBounds {
            age_ms: self.age.map_or(default.age_ms, |age| age.0),
            bytes: self.size.map_or(default.bytes, |size| size.0),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrashFile {
    age: Option<Span>,
    percent: Option<u8>,
    size: Option<Size>,
}

impl TrashFile {
    pub(super) fn bounds(&self) -> TrashBounds {
        let default = TrashBounds::default();
        TrashBounds {
            age_ms: self.age.map_or(default.age_ms, |age| age.0),
            percent: self.percent.unwrap_or(default.percent),
            bytes: self.size.map(|size| size.0),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryFile {
    first: Option<Span>,
    most: Option<Span>,
    jitter: Option<u8>,
}

impl RetryFile {
    pub(super) fn bounds(&self) -> Retry {
        let default = Retry::default();
        Retry {
            first_ms: self.first.map_or(default.first_ms, Span::short),
            most_ms: self.most.map_or(default.most_ms, Span::short),
            jitter_percent: self.jitter.unwrap_or(default.jitter_percent),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuardFile {
    percent: Option<u8>,
    least: Option<u64>,
    within: Option<Span>,
}

impl GuardFile {
    pub(super) fn bounds(&self) -> Guard {
        let default = Guard::default();
        Guard {
            percent: self.percent.unwrap_or(default.percent),
            least: self.least.unwrap_or(default.least),
            within_ms: self.within.map_or(default.within_ms, Span::short),
        }
    }
}

/// A kind of special file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Special {
    Fifo,
    Socket,
    Device,
}

pub(super) fn specials(named: &[Special]) -> Specials {
    Specials {
        fifos: named.contains(&Special::Fifo),
        sockets: named.contains(&Special::Socket),
        devices: named.contains(&Special::Device),
    }
}
