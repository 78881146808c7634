//! Jobs: what is kept identical, from where, to where.

mod settings;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::filter::{Filter, FilterError, FilterSpec};
use crate::ids::Label;
pub use settings::{
    AdoptCheck, Drift, Durability, Guard, LogBounds, OnDelete, Owners, Retry, SettingError,
    Settings, Specials, TrashBounds, Unsettled,
};

/// The most sources and targets that one job names.
pub const PLACES_MAX: usize = 10_000;
/// The longest absolute path of a root, in bytes.
pub const ROOT_PATH_MAX_BYTES: usize = 4096;

/// When a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Changes are watched for and carried at once.
    Realtime,
    /// The source is compared with its ledger when somebody runs the job.
    Manual,
}

/// An absolute path of a root on a server: starts with `/`, no `.`, `..`, empty component or NUL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootPath(String);

impl RootPath {
    /// Checks and takes a path; a trailing slash is dropped.
    ///
    /// # Errors
    /// [`JobError::RootPath`]; not retryable.
    pub fn new(text: &str) -> Result<Self, JobError> {
        let trimmed = text.trim_end_matches('/');
        let good = text.starts_with('/')
            && trimmed.len() <= ROOT_PATH_MAX_BYTES
            && !text.contains('\0')
            && trimmed
                .split('/')
                .skip(1)
                .all(|c| !matches!(c, "" | "." | ".."));
        if !good {
            return Err(JobError::RootPath {
                text: text.chars().take(200).collect(),
            });
        }
        Ok(Self(if trimmed.is_empty() {
            "/".to_owned()
        } else {
            trimmed.to_owned()
        }))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RootPath {
    type Error = JobError;
    fn try_from(text: String) -> Result<Self, JobError> {
        Self::new(&text)
    }
}

impl From<RootPath> for String {
    fn from(path: RootPath) -> Self {
        path.0
    }
}

impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&crate::path::Escaped(self.0.as_bytes()), f)
    }
}

/// Who a target line speaks of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// One server.
    Server(Label),
    /// Every server of a group.
    Group {
        /// The group's region.
        region: Label,
        /// The group.
        group: Label,
    },
    /// Every server of a region.
    Region(Label),
}

/// A root, or one root on each of several servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Which servers.
    pub who: Who,
    /// Where on them.
    pub path: RootPath,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Server(server) => write!(f, "{server}:{}", self.path),
            Who::Group { region, group } => write!(f, "@{region}/{group}:{}", self.path),
            Who::Region(region) => write!(f, "@{region}:{}", self.path),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = JobError;
    /// Reads `SERVER:PATH`, `@REGION:PATH` or `@REGION/GROUP:PATH`.
    fn from_str(text: &str) -> Result<Self, JobError> {
        let malformed = || JobError::Place {
            text: text.chars().take(200).collect(),
        };
        let (who, path) = text.split_once(':').ok_or_else(malformed)?;
        let label = |s: &str| Label::new(s).map_err(|_| malformed());
        let who = match who.strip_prefix('@') {
            None => Who::Server(label(who)?),
            Some(rest) => match rest.split_once('/') {
                None => Who::Region(label(rest)?),
                Some((region, group)) => Who::Group {
                    region: label(region)?,
                    group: label(group)?,
                },
            },
        };
        Ok(Self {
            who,
            path: RootPath::new(path)?,
        })
    }
}

/// Why a job is not valid; none is retryable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JobError {
    /// Not an absolute, plain path.
    #[error("{text:?} is not a root: use an absolute path without '.', '..' or doubled slashes")]
    RootPath {
        /// The refused text, cut to 200 characters.
        text: String,
    },
    /// Not one of the three forms.
    #[error("{text:?} is not a place: use SERVER:PATH, @REGION:PATH or @REGION/GROUP:PATH")]
    Place {
        /// The refused text, cut to 200 characters.
        text: String,
    },
    /// A job has exactly one source, which is a server.
    #[error("job {job} names {count} sources: it needs exactly one, and that a server")]
    Sources {
        /// The job.
        job: Label,
        /// How many it named.
        count: usize,
    },
    /// A job has between one and [`PLACES_MAX`] targets.
    #[error("job {job} names {count} targets: it needs 1 to 10000")]
    Targets {
        /// The job.
        job: Label,
        /// How many it named.
        count: usize,
    },
    /// The filter does not compile.
    #[error("the filter of job {job} does not compile")]
    Filter {
        /// The job.
        job: Label,
        /// Why.
        #[source]
        source: FilterError,
    },
    /// A setting is out of bounds.
    #[error("job {job}")]
    Setting {
        /// The job.
        job: Label,
        /// Which, and what it may be.
        #[source]
        source: SettingError,
    },
}

/// A job as the manager declared it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its name.
    pub name: Label,
    /// When it runs.
    pub mode: Mode,
    /// Where changes come from: one server.
    pub sources: Vec<Place>,
    /// Where they go.
    pub targets: Vec<Place>,
    /// What is carried.
    pub filter: FilterSpec,
    /// What has a default.
    pub settings: Settings,
}

impl JobSpec {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`JobError`]; not retryable.
    pub fn validate(&self) -> Result<(), JobError> {
        let one_server = matches!(
            &self.sources[..],
            [Place {
                who: Who::Server(_),
                ..
            }]
        );
        if !one_server {
            return Err(JobError::Sources {
                job: self.name.clone(),
                count: self.sources.len(),
            });
        }
        if self.targets.is_empty() || self.targets.len() > PLACES_MAX {
            return Err(JobError::Targets {
                job: self.name.clone(),
                count: self.targets.len(),
            });
        }
        Filter::new(&self.filter).map_err(|source| JobError::Filter {
            job: self.name.clone(),
            source,
        })?;
        self.settings
            .validate()
            .map_err(|source| JobError::Setting {
                job: self.name.clone(),
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves the three forms of a place and that nothing else passes.
    #[test]
    fn places_parse_and_print() {
        for text in ["edge-1:/srv/www", "@asia:/srv", "@asia/seoul:/"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in [
            "edge-1",
            "edge-1:srv",
            "@:/srv",
            "@a/b/c:/srv",
            "a:/x/../y",
            "a:/x//y",
            ":/x",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
        assert_eq!(RootPath::new("/srv/www/").unwrap().as_str(), "/srv/www");
    }
}
