//! `cdsync job log`.

use std::collections::BTreeSet;
use std::time::Duration;

use cdsync_core::ids::Label;
use cdsync_master::api::types::{LogEntry, LogPage};

use super::client::Client;
use crate::failure::{Failure, Result};
use crate::output::{hint, json, say};
use crate::text::time;

/// How long one question of a follower waits at the master.
const FOLLOW: Duration = Duration::from_secs(30);

/// Shows the log; with `follow` until it is interrupted. As JSON, one object per line when
/// following, else one array.
pub(super) async fn log(client: &Client, name: &Label, follow: bool, as_json: bool) -> Result<()> {
    let page: LogPage = client
        .get_slowly(&format!("/jobs/{name}/log"), Duration::from_secs(20))
        .await?;
    let mut told = BTreeSet::new();
    if !follow {
        if as_json {
            json(&page);
        } else {
            page.lines.iter().for_each(|line| say(&text(line)));
            if page.lines.is_empty() && page.missing.is_empty() {
                hint(&format!(
                    "nothing yet; next: cdsync job log {name} --follow"
                ));
            }
            missing(&page, &mut told);
        }
        return Ok(());
    }
    let mut page = page;
    loop {
        for line in &page.lines {
            if as_json {
                let line = serde_json::to_string(line);
                say(&line.map_err(|error| Failure::machine(&error))?);
            } else {
                say(&text(line));
            }
        }
        missing(&page, &mut told);
        let path = format!(
            "/jobs/{name}/log?cursor={}&wait_ms={}",
            page.cursor,
            FOLLOW.as_millis()
        );
        page = client.get_slowly(&path, FOLLOW).await?;
    }
}

/// Says once which servers are silent, and again when one fell silent anew.
fn missing(page: &LogPage, told: &mut BTreeSet<Label>) {
    let silent: BTreeSet<Label> = page.missing.iter().map(|one| one.server.clone()).collect();
    for one in page
        .missing
        .iter()
        .filter(|one| !told.contains(&one.server))
    {
        hint(&format!("note: no lines from {}: {}", one.server, one.why));
    }
    *told = silent;
}

fn text(line: &LogEntry) -> String {
    let mut text = format!(
        "{}  {:<12}  {:<10}  {}",
        time(line.at_ms),
        line.server,
        line.op,
        line.path
    );
    if !line.detail.is_empty() {
        text.push_str(&format!("  ({})", line.detail));
    }
    if let Some(ms) = line.latency_ms {
        text.push_str(&format!("  {ms} ms"));
    }
    text
}
