//! `cdsync doctor`: looks at this machine as an agent will need it, and says what to do.
//!
//! Nothing is changed but for files that are made and removed again in `.cdsync/` of each root.

mod data;
mod machine;
mod root;

use std::path::PathBuf;

use serde::Serialize;

use crate::args::DoctorArgs;
use crate::failure::{Failure, Result};
use crate::join::Joined;
use crate::output::{Table, json, say};
use crate::text::count;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but less well, or not for everything.
    Warn,
    /// It will not work.
    Fail,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    check: &'static str,
    /// What it speaks of, escaped.
    subject: String,
    found: String,
    /// What to do about it.
    next: Option<String>,
}

/// All findings, in the order of the checks.
#[derive(Debug, Default)]
struct Findings {
    subject: String,
    all: Vec<Finding>,
}

impl Findings {
    /// What is added from now on speaks of this.
    fn about(&mut self, subject: impl Into<String>) {
        self.subject = subject.into();
    }

    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(Verdict::Ok, check, found.into(), None);
    }

    fn warn(&mut self, check: &'static str, found: impl Into<String>, next: impl Into<String>) {
        self.add(Verdict::Warn, check, found.into(), Some(next.into()));
    }

    fn fail(&mut self, check: &'static str, found: impl Into<String>, next: impl Into<String>) {
        self.add(Verdict::Fail, check, found.into(), Some(next.into()));
    }

    fn add(&mut self, verdict: Verdict, check: &'static str, found: String, next: Option<String>) {
        self.all.push(Finding {
            verdict,
            check,
            subject: self.subject.clone(),
            found,
            next,
        });
    }

    fn number(&self, verdict: Verdict) -> usize {
        self.all.iter().filter(|f| f.verdict == verdict).count()
    }
}

/// Checks this machine; fails when something will not work.
pub(crate) async fn run(args: DoctorArgs) -> Result<()> {
    let mut findings = Findings::default();
    findings.about("machine");
    machine::check(&mut findings);
    let mut roots = args.root;
    if let Some(folder) = &args.data {
        let joined = Joined::load(folder)?;
        roots.extend(joined.roots.iter().cloned());
        data::check(&mut findings, folder, &joined).await;
    }
    roots.sort();
    roots.dedup();
    for root in roots {
        check_root(&mut findings, root).await?;
    }
    tell(&findings, args.json);
    match findings.number(Verdict::Fail) {
        0 => Ok(()),
        failed => Err(Failure::condition(count(
            u64::try_from(failed).unwrap_or(u64::MAX),
            "check failed",
            "checks failed",
        ))),
    }
}

/// A root may be on a disk that hangs, and its watcher waits for events.
async fn check_root(findings: &mut Findings, root: PathBuf) -> Result<()> {
    let checked = tokio::task::spawn_blocking(move || {
        let mut findings = Findings::default();
        root::check(&mut findings, &root);
        findings.all
    });
    findings
        .all
        .extend(checked.await.map_err(|error| Failure::machine(&error))?);
    Ok(())
}

fn tell(findings: &Findings, as_json: bool) {
    if as_json {
        json(&findings.all);
        return;
    }
    let mut table = Table::new(["", "CHECK", "OF", "FOUND"]);
    for finding in &findings.all {
        let mark = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let Finding {
            check,
            subject,
            found,
            ..
        } = finding;
        table.row([
            mark.to_owned(),
            (*check).to_owned(),
            subject.clone(),
            found.clone(),
        ]);
    }
    say(&table.text());
    let todo = |finding: &Finding| {
        let next = finding.next.as_ref()?;
        Some(format!("{} ({}): {next}", finding.check, finding.subject))
    };
    let todo: Vec<String> = findings.all.iter().filter_map(todo).collect();
    if !todo.is_empty() {
        say(&format!("\nwhat to do\n{}", todo.join("\n")));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn of_root(path: &std::path::Path) -> Findings {
        let mut findings = Findings::default();
        root::check(&mut findings, path);
        findings
    }

    fn verdict(findings: &Findings, check: &str) -> Option<Verdict> {
        let found = findings.all.iter().find(|f| f.check == check);
        found.map(|f| f.verdict)
    }

    /// Proves that a good root passes, and that nothing of the probes stays in it.
    #[test]
    fn a_good_root_passes() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "content").unwrap();
        let findings = of_root(folder.path());
        assert_eq!(findings.number(Verdict::Fail), 0, "{:?}", findings.all);
        assert_eq!(verdict(&findings, "publishing"), Some(Verdict::Ok));
        let mut left = fs::read_dir(folder.path().join(".cdsync")).unwrap();
        assert!(left.next().is_none());
    }

    /// Proves that a root that is not there, or is no folder, fails with what to do.
    #[test]
    fn a_bad_root_fails() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [folder.path().join("missing"), file] {
            let findings = of_root(&path);
            assert_eq!(verdict(&findings, "root"), Some(Verdict::Fail));
            assert!(findings.all.iter().all(|f| f.next.is_some()));
        }
    }

    /// Proves that a reserved folder that others may enter is reported.
    #[test]
    fn an_open_reserved_folder_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let reserved = folder.path().join(".cdsync");
        fs::create_dir(&reserved).unwrap();
        fs::set_permissions(&reserved, fs::Permissions::from_mode(0o777)).unwrap();
        let findings = of_root(folder.path());
        assert_eq!(verdict(&findings, "reserved folder"), Some(Verdict::Warn));
    }
}
