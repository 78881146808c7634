//! Jobs as people read them.

use std::fmt::Write as _;

use cdsync_core::coordinator::{
    DeletesStatus, JobState, JobStatus, PreviewStatus, SourceStatus, TargetStatus,
};
use cdsync_core::ids::Label;
use cdsync_core::job::Mode;
use cdsync_core::path::Escaped;
use cdsync_master::api::types::{Applied, LaggardStatus};

use crate::output::Table;
use crate::text::{ago, bytes, count, time};

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Realtime => "realtime",
        Mode::Manual => "manual",
    }
}

fn place(server: &Label, root: &str) -> String {
    format!("{server}:{}", Escaped(root.as_bytes()))
}

/// A line for each job.
pub(super) fn jobs(list: &[JobStatus]) -> String {
    let mut table = Table::new(["JOB", "MODE", "STATE", "SOURCE", "TARGETS", "BEHIND", "WHY"]);
    for job in list {
        let source = job.sources.first();
        let equal = job
            .targets
            .iter()
            .filter(|t| t.state == JobState::InSync)
            .count();
        let behind = job
            .targets
            .iter()
            .map(|target| target.pending_changes)
            .max();
        table.row([
            job.name.to_string(),
            mode(job.mode).to_owned(),
            job.state.to_string(),
            source.map_or_else(String::new, |s| place(&s.server, &s.root)),
            format!("{equal} of {} in sync", job.targets.len()),
            behind.unwrap_or(0).to_string(),
            job.reason.clone().unwrap_or_default(),
        ]);
    }
    if table.is_empty() {
        return "no jobs; next: cdsync job apply -f FILE, or cdsync job add NAME --from SERVER:PATH --to SERVER:PATH".into();
    }
    table.text()
}

/// One job in full.
pub(super) fn job(job: &JobStatus) -> String {
    let mut text = format!("job {}  {}  {}", job.name, mode(job.mode), job.state);
    if let Some(reason) = &job.reason {
        let _ = write!(text, "  ({reason})");
    }
    text.push_str("\n\n");
    let mut sources = Table::new(["SOURCE", "STATE", "SEQ", "LOG", "ERROR"]);
    for source in &job.sources {
        sources.row([
            place(&source.server, &source.root),
            source.state.clone(),
            source
                .seq
                .map_or_else(|| "-".to_owned(), |seq| seq.to_string()),
            bytes(source.log_bytes),
            source.last_error.clone().unwrap_or_default(),
        ]);
    }
    text.push_str(&sources.text());
    for source in &job.sources {
        text.push_str(&troubles(source));
    }
    text.push('\n');
    let mut targets = Table::new([
        "TARGET", "STATE", "CURSOR", "BEHIND", "CONTENT", "OLDEST", "FROM", "ERROR",
    ]);
    for target in &job.targets {
        targets.row([
            place(&target.server, &target.root),
            target.state.to_string(),
            target
                .cursor
                .map_or_else(|| "-".to_owned(), |seq| seq.to_string()),
            target.pending_changes.to_string(),
            bytes(target.pending_bytes),
            ago(target.oldest_pending_ms),
            target.upstream.clone().unwrap_or_else(|| "-".to_owned()),
            target.last_error.clone().unwrap_or_default(),
        ]);
    }
    text.push_str(&targets.text());
    for source in &job.sources {
        if let Some(held) = &source.deletes {
            let _ = write!(text, "\n{}: {}", source.server, deletes(held));
        }
    }
    for target in &job.targets {
        text.push_str(&parked(target));
        text.push_str(&drift(job, target));
        text.push_str(&trash(target));
        text.push_str(&losses(target));
        if let Some(preview) = &target.preview
            && target.state == JobState::AwaitingAccept
        {
            text.push_str(&waiting(target, preview));
        }
    }
    for problem in &job.problems {
        let _ = write!(text, "\nproblem: {problem}");
    }
    text
}

/// What a source does not know yet, or cannot.
fn troubles(source: &SourceStatus) -> String {
    let mut text = String::new();
    if source.gap_count > 0 {
        let folders = count(source.gap_count, "folder is", "folders are");
        let _ = writeln!(
            text,
            "\n{}: hints were lost, {folders} compared",
            source.server
        );
        for gap in &source.gaps {
            let _ = writeln!(text, "  {} (since {})", gap.path, time(gap.since_ms));
        }
    }
    if source.doubts > 0 {
        let files = count(source.doubts, "file is", "files are");
        let _ = writeln!(
            text,
            "\n{}: {files} read again, to see whether the content changed",
            source.server
        );
    }
    if source.held_count > 0 {
        let paths = count(source.held_count, "path", "paths");
        let _ = writeln!(
            text,
            "\n{}: {paths} could not be brought into the log yet; tried again",
            source.server
        );
        for held in &source.held {
            let _ = writeln!(text, "  {held}");
        }
    }
    text
}

/// Deletes that halted a source, on lines of their own.
pub(super) fn deletes(held: &DeletesStatus) -> String {
    // The numbers are an agent's word.
    let lost = held.gone.saturating_add(held.held);
    let left = held.files.saturating_sub(lost);
    let mut text = format!(
        "{lost} of {} are gone or emptied at the source, {left} would be left\n",
        count(held.files, "file", "files"),
    );
    let back = match held.restored {
        true => ", and come back there from the trash",
        false => "",
    };
    let _ = writeln!(text, "  {} went on to the targets{back}", held.gone);
    let _ = writeln!(text, "  {} are held:", held.held);
    for name in &held.names {
        let _ = writeln!(text, "    {name}");
    }
    if held.held > held.names.len() as u64 {
        text.push_str("    ..\n");
    }
    text
}

fn parked(target: &TargetStatus) -> String {
    if target.parked_count == 0 {
        return String::new();
    }
    let mut text = format!(
        "\n{}: {} could not be applied yet\n",
        target.server,
        count(target.parked_count, "object", "objects")
    );
    for one in &target.parked {
        let _ = writeln!(
            text,
            "  {}: {} (since {}, tried {}, next {})",
            one.path,
            one.reason,
            time(one.since_ms),
            count(one.attempts.into(), "time", "times"),
            time(one.next_try_ms),
        );
    }
    text
}

/// What others changed at a target.
fn drift(job: &JobStatus, target: &TargetStatus) -> String {
    let drift = &target.drift;
    if drift.count == 0 && drift.kept == 0 {
        return String::new();
    }
    let mut text = format!(
        "\n{}: {} by others met, {} kept",
        target.server,
        count(drift.count, "change", "changes"),
        drift.kept
    );
    if !drift.names.is_empty() {
        let _ = write!(text, ": {}", drift.names.join(", "));
        if drift.count > drift.names.len() as u64 {
            text.push_str(", ..");
        }
    }
    text.push('\n');
    if drift.alert {
        let _ = writeln!(text, "  to acknowledge it: cdsync job resume {}", job.name);
    }
    if drift.kept > 0 {
        let _ = writeln!(
            text,
            "  to have the source's version: cdsync job accept {}",
            job.name
        );
    }
    text
}

/// What a target's trash holds.
fn trash(target: &TargetStatus) -> String {
    let trash = &target.trash;
    if trash.entries == 0 && trash.trouble.is_none() {
        return String::new();
    }
    let mut text = format!(
        "\n{}: {} in the trash, {}",
        target.server,
        count(trash.entries, "entry", "entries"),
        bytes(trash.bytes)
    );
    if let Some(oldest) = trash.oldest_ms {
        let _ = write!(text, ", the oldest since {}", time(oldest));
    }
    if let Some(trouble) = &trash.trouble {
        let _ = write!(text, " ({trouble})");
    }
    text.push('\n');
    text
}

/// What is there, but not whole.
fn losses(target: &TargetStatus) -> String {
    if target.loss_count == 0 {
        return String::new();
    }
    let mut text = format!(
        "\n{}: {} not held whole\n",
        target.server,
        match target.loss_count {
            1 => "1 object is".to_owned(),
            many => format!("{many} objects are"),
        }
    );
    for one in &target.loss_reasons {
        let _ = writeln!(text, "  {}: {}", one.count, one.reason);
    }
    for one in &target.losses {
        let _ = writeln!(text, "  {}: {}", one.path, one.reasons.join("; "));
    }
    text
}

/// What taking over a root would do.
fn waiting(target: &TargetStatus, preview: &PreviewStatus) -> String {
    let mut text = format!("\n{} is not empty", place(&target.server, &target.root));
    if !preview.complete {
        text.push_str("; it is still being compared. Until now taking it over");
    } else if preview.source_empty {
        text.push_str(", and the source is: taking it over would empty it, and");
    } else {
        text.push_str("; taking it over");
    }
    text.push_str(" would\n");
    let _ = writeln!(
        text,
        "  keep    {}",
        count(preview.equal, "equal file", "equal files")
    );
    let mut line = |verb: &str, number: u64, one: &str, many: &str, names: &[String]| {
        let _ = write!(text, "  {verb} {}", count(number, one, many));
        if !names.is_empty() {
            let _ = write!(text, ": {}", names.join(", "));
            if number > names.len() as u64 {
                text.push_str(", ..");
            }
        }
        text.push('\n');
    };
    let names = &preview.replaced_names;
    line("replace", preview.replaced, "file", "files", names);
    let names = &preview.removed_names;
    line(
        "remove ",
        preview.removed,
        "file or folder",
        "files and folders",
        names,
    );
    text.push_str("  (what is replaced or removed goes to the job's trash)\n");
    text
}

/// Targets of an applied job whose root is not empty and not accepted, in full; `None` when there
/// are none.
pub(super) fn refusals(applied: &Applied) -> Option<String> {
    let waits = |target: &&TargetStatus| {
        target.state == JobState::AwaitingAccept && !applied.adopted(target)
    };
    let texts: Vec<String> = applied
        .status
        .targets
        .iter()
        .filter(waits)
        .map(|target| match &target.preview {
            Some(preview) => waiting(target, preview).trim_start().to_owned(),
            None => format!(
                "{} is not empty; what would be replaced there is not known yet\n",
                place(&target.server, &target.root)
            ),
        })
        .collect();
    (!texts.is_empty()).then(|| texts.concat())
}

/// Who lags behind a fence.
pub(super) fn laggards(list: &[LaggardStatus]) -> String {
    let mut text = String::new();
    for one in list {
        let _ = write!(text, "\n  ");
        if let Some(server) = &one.server {
            let _ = write!(text, "{server}: ");
        }
        if let Some(state) = &one.state {
            let _ = write!(text, "{state}: ");
        }
        text.push_str(&one.why);
        for path in &one.paths {
            let _ = write!(text, "\n    {path}");
        }
    }
    text
}
