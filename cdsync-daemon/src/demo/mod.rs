//! `cdsync demo`: a master and agents in one process, over real QUIC on loopback, keeping a real
//! tree identical in temporary targets.

mod cluster;
mod edits;
mod folder;
mod tree;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cdsync_core::coordinator::JobStatus;
use cdsync_core::filter::FilterSpec;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::DemoArgs;
use crate::failure::{Failure, Result};
use crate::output::say;
use crate::shutdown;
use cluster::Cluster;
use folder::TempFolder;

/// What the project's own checkout holds beside sources.
const BUILD_OUTPUT: &str = "^target/";
/// How long the first copy may take before the demo gives up on it.
const FIRST_COPY: Duration = Duration::from_secs(600);
/// How long the targets may take to follow the edits.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs the demonstration.
pub(crate) async fn run(demo: DemoArgs) -> Result<()> {
    let folder = TempFolder::make()?;
    let source = Source::choose(&demo, folder.path())?;
    say(&format!(
        "source   {} ({})",
        source.path.display(),
        source.what
    ));
    let began = Instant::now();
    let cluster = Cluster::start(folder.path(), &source.path, demo.targets.into()).await?;
    say(&format!(
        "running  1 master and {} agents in this process, over QUIC on loopback, in {} ms",
        cluster.targets.len() + 1,
        began.elapsed().as_millis()
    ));
    for target in &cluster.targets {
        say(&format!(
            "target   {}  {}",
            target.name,
            target.root.display()
        ));
    }
    let began = Instant::now();
    cluster.apply(&source.path, source.filter.clone()).await?;
    let done = first_copy(&cluster, began).await?;
    say(&done);
    let outcome = if demo.once {
        prove(&cluster, &source.path).await
    } else {
        follow(&cluster, &source.path).await
    };
    cluster.stop().await;
    outcome
}

/// The tree that is kept identical.
struct Source {
    path: PathBuf,
    what: &'static str,
    filter: FilterSpec,
}

impl Source {
    /// What was asked for; else the project's own checkout; else a made tree. `--once` changes
    /// files, so it works on a copy.
    fn choose(demo: &DemoArgs, folder: &Path) -> Result<Self> {
        let all = FilterSpec::default();
        let sources = FilterSpec {
            include: Vec::new(),
            exclude: vec![BUILD_OUTPUT.to_owned()],
        };
        let machine = |error: std::io::Error| Failure::machine(&error);
        let (path, what, filter) = match (&demo.source, tree::checkout()) {
            (Some(path), _) => {
                let path = std::fs::canonicalize(path).map_err(|error| {
                    Failure::usage(format!("--source {}: {error}", path.display()))
                })?;
                (path, "as asked", all.clone())
            }
            (None, Some(path)) => (
                path,
                "the project's own checkout, without build output",
                sources,
            ),
            (None, None) => {
                let path = folder.join("made");
                tree::make(&path).map_err(machine)?;
                return Ok(Self {
                    path,
                    what: "a tree made for this",
                    filter: all.clone(),
                });
            }
        };
        if !demo.once {
            return Ok(Self { path, what, filter });
        }
        let copy = folder.join("source");
        tree::copy(&path, &copy, Path::new("target")).map_err(machine)?;
        Ok(Self {
            path: copy,
            what: "a copy, so that yours is left alone",
            filter: all,
        })
    }
}

/// Shows the first copy until every target is in sync.
async fn first_copy(cluster: &Cluster, began: Instant) -> Result<String> {
    let bar = progress();
    loop {
        let status = cluster.status().await?;
        let (held, all) = progress_of(&status);
        bar.set_length(all);
        bar.set_position(held);
        let seq = status
            .sources
            .first()
            .and_then(|s| s.seq)
            .map_or(0, |seq| seq.0);
        let in_sync = status
            .targets
            .iter()
            .all(|t| t.pending_changes == 0 && t.cursor.is_some_and(|c| c.0 >= seq));
        if status.state == cdsync_core::coordinator::JobState::InSync && in_sync && seq > 0 {
            bar.finish_and_clear();
            let took = began.elapsed();
            return Ok(format!(
                "copied   {seq} records to {} targets in {:.2} s",
                status.targets.len(),
                took.as_secs_f64()
            ));
        }
        if began.elapsed() > FIRST_COPY {
            bar.finish_and_clear();
            return Err(Failure::condition(trouble(&status)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("copying  [{bar:40}] {pos}/{len} records  {elapsed}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn progress_of(status: &JobStatus) -> (u64, u64) {
    let head = status
        .sources
        .first()
        .and_then(|s| s.seq)
        .map_or(0, |seq| seq.0);
    let held: u64 = status
        .targets
        .iter()
        .filter_map(|t| t.cursor)
        .map(|c| c.0)
        .sum();
    (held, head * status.targets.len() as u64)
}

fn trouble(status: &JobStatus) -> String {
    let mut text = "the first copy did not end in time".to_owned();
    for target in &status.targets {
        let error = target.last_error.as_deref().unwrap_or("no error");
        text.push_str(&format!("\n{}: {error}", target.server));
    }
    text
}

/// Edits, proves equality by an independent comparison, and says the figures.
async fn prove(cluster: &Cluster, source: &Path) -> Result<()> {
    let made = edits::churn(source).map_err(|error| Failure::machine(&error))?;
    let began = Instant::now();
    cluster.wait(CATCH_UP).await?;
    say(&format!(
        "edits    {made} changes, equal {:.0} ms after the last one",
        began.elapsed().as_secs_f64() * 1000.0
    ));
    let Some(first) = cluster.targets.first() else {
        return Ok(());
    };
    let (from, to) = (source.to_owned(), first.root.clone());
    let latency = tokio::task::spawn_blocking(move || edits::latency(&from, &to)).await;
    let latency = latency
        .map_err(|error| Failure::machine(&error))?
        .map_err(|error| Failure::condition(format!("a change did not arrive: {error}")))?;
    say(&format!(
        "latency  of one change (write and rename 4 KiB): p50 {:.2} ms, p99 {:.2} ms",
        latency.p50_ms, latency.p99_ms
    ));
    cluster.wait(CATCH_UP).await?;
    let mut unequal = 0;
    for target in &cluster.targets {
        let compared = tree::compare(source, &target.root).map_err(|e| Failure::machine(&e))?;
        for difference in compared.differences.iter().take(20) {
            say(&format!("differs  {}: {difference}", target.name));
        }
        unequal += compared.differences.len();
        say(&format!(
            "proof    {}: {} entries, {} bytes compared, {} differences",
            target.name,
            compared.entries,
            compared.bytes,
            compared.differences.len()
        ));
    }
    if unequal > 0 {
        return Err(Failure::condition(format!(
            "{unequal} differences between source and targets"
        )));
    }
    say("done     every target equals the source");
    Ok(())
}

/// Shows every change until interrupted.
async fn follow(cluster: &Cluster, source: &Path) -> Result<()> {
    say(&format!(
        "watching change files in {} and see; Ctrl-C ends",
        source.display()
    ));
    let ended = shutdown::requested()?;
    tokio::pin!(ended);
    tokio::select! {
        () = &mut ended => Ok(()),
        failed = cluster.follow_log() => failed,
    }
}
