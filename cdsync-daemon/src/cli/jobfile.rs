//! Job files.

use std::path::Path;

use cdsync_core::filter::{Filter, FilterSpec};
use cdsync_core::ids::Label;
use cdsync_core::job::{
    AdoptCheck, Drift, Durability, JobSpec, Mode, OnDelete, Owners, Place, RootPath, Settings,
    Unsettled, Who,
};
use serde::Deserialize;

use super::settings::{GuardFile, LogFile, RetryFile, Span, Special, TrashFile, specials};
use crate::failure::{Failure, Result, chain};
use crate::text::{duration, millis};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobFile {
    name: Label,
    #[serde(default = "realtime")]
    mode: Mode,
    source: Vec<Entry>,
    target: Vec<Entry>,
    #[serde(default)]
    filter: CheckedFilter,
    max_age: Option<MaxAge>,
    #[serde(default)]
    durability: Durability,
    #[serde(default)]
    on_delete: OnDelete,
    #[serde(default)]
    drift: Drift,
    #[serde(default)]
    unsettled: Unsettled,
    #[serde(default)]
    owners: Owners,
    #[serde(default)]
    adopt_check: AdoptCheck,
    specials: Option<Vec<Special>>,
    scan_every: Option<Span>,
    #[serde(default)]
    log: LogFile,
    #[serde(default)]
    trash: TrashFile,
    #[serde(default)]
    retry: RetryFile,
    #[serde(default)]
    guard: GuardFile,
}

impl JobFile {
    fn settings(&self) -> Settings {
        let default = Settings::default();
        Settings {
            max_age_ms: self
                .max_age
                .as_ref()
                .map_or(default.max_age_ms, |age| age.0),
            durability: self.durability,
            log: self.log.bounds(),
            on_delete: self.on_delete,
            trash: self.trash.bounds(),
            drift: self.drift,
            retry: self.retry.bounds(),
            guard: self.guard.bounds(),
            unsettled: self.unsettled,
            owners: self.owners,
            specials: self.specials.as_deref().map_or(default.specials, specials),
            adopt_check: self.adopt_check,
            scan_every_ms: self.scan_every.map_or(default.scan_every_ms, |span| span.0),
        }
    }
}

const fn realtime() -> Mode {
    Mode::Realtime
}

/// A line of `source` or `target`. Checked while it is read, so that an error has its place.
#[derive(Debug, Deserialize)]
#[serde(try_from = "RawEntry")]
struct Entry(Place);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    server: Option<Label>,
    group: Option<String>,
    region: Option<Label>,
    path: RootPath,
}

impl TryFrom<RawEntry> for Entry {
    type Error = String;

    fn try_from(raw: RawEntry) -> std::result::Result<Self, String> {
        let who = match (raw.server, raw.group, raw.region) {
            (Some(server), None, None) => Who::Server(server),
            (None, Some(text), None) => {
                let refused = || format!("group {text:?} is not of the form \"REGION/GROUP\"");
                let (region, group) = text.split_once('/').ok_or_else(refused)?;
                let label = |text: &str| Label::new(text).map_err(|error| error.to_string());
                Who::Group {
                    region: label(region)?,
                    group: label(group)?,
                }
            }
            (None, None, Some(region)) => Who::Region(region),
            _ => return Err("name one of server, group (as \"REGION/GROUP\") or region".into()),
        };
        Ok(Self(Place {
            who,
            path: raw.path,
        }))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "RawFilter")]
struct CheckedFilter(FilterSpec);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFilter {
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

impl TryFrom<RawFilter> for CheckedFilter {
    type Error = String;

    fn try_from(raw: RawFilter) -> std::result::Result<Self, String> {
        let spec = FilterSpec {
            include: raw.include,
            exclude: raw.exclude,
        };
        Filter::new(&spec).map_err(|error| error.to_string())?;
        Ok(Self(spec))
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct MaxAge(u32);

impl TryFrom<String> for MaxAge {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let ms = millis(duration(&text)?);
        match u32::try_from(ms) {
            Ok(ms @ 100..=3_600_000) => Ok(Self(ms)),
            _ => Err("max_age lies between 100ms and 1h".to_owned()),
        }
    }
}

/// Reads a job file's text; `path` is for messages.
///
/// # Errors
/// A usage failure with file and line.
pub(crate) fn parse(path: &Path, text: &str) -> Result<JobSpec> {
    let refused = |why: String| Failure::usage(format!("{}: {}", path.display(), why.trim_end()));
    let file: JobFile = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| 1 + text[..span.start].matches('\n').count());
        match line {
            Some(line) => Failure::usage(format!(
                "{}:{line}: {}",
                path.display(),
                error.to_string().trim_end()
            )),
            None => refused(error.to_string()),
        }
    })?;
    let settings = file.settings();
    let places = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.0).collect();
    let spec = JobSpec {
        name: file.name,
        mode: file.mode,
        sources: places(file.source),
        targets: places(file.target),
        filter: file.filter.0,
        settings,
    };
    spec.validate().map_err(|error| refused(chain(&error)))?;
    Ok(spec)
}

/// Reads a job file, `-` for stdin.
pub(super) fn read(path: &Path) -> Result<JobSpec> {
    let text = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text =
        text.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    parse(path, &text)
}
