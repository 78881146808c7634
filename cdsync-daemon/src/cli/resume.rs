//! `cdsync job resume`.

use std::time::Duration;

use cdsync_core::coordinator::{DeletesStatus, JobStatus};
use cdsync_core::ids::Label;
use cdsync_core::wire::Decision;
use cdsync_master::api::types::ResumeRequest;
use hyper::Method;

use super::client::Client;
use super::show;
use crate::failure::{Failure, Result};
use crate::output::{hint, json, say};

/// What the options say.
pub(super) const fn decision(accept: bool, restore: bool, again: bool) -> Option<Decision> {
    match (accept, restore, again) {
        (true, ..) => Some(Decision::Accept),
        (_, true, _) => Some(Decision::Restore),
        (.., true) => Some(Decision::Again),
        _ => None,
    }
}

/// Shows what would be done, and does it if somebody has decided or nothing is to be decided.
pub(super) async fn resume(
    client: &Client,
    name: &Label,
    decision: Option<Decision>,
    as_json: bool,
) -> Result<()> {
    let before: JobStatus = client.get(&format!("/jobs/{name}")).await?;
    let held = before.sources.iter().find_map(|s| s.deletes.as_ref());
    if let Some(held) = held
        && !as_json
    {
        say(&format!("job {name} is halted: {}", show::deletes(held)));
    }
    let decision = match (held, decision) {
        (Some(_), None) => {
            if as_json {
                json(&before);
            }
            let failure = undecided(name);
            return Err(if as_json { failure.silently() } else { failure });
        }
        (None, Some(Decision::Accept | Decision::Restore)) => {
            return Err(Failure::condition(format!("job {name} holds no deletes"))
                .next(format!("cdsync job resume {name}")));
        }
        (_, decision) => decision.unwrap_or_default(),
    };
    let path = format!("/jobs/{name}/resume");
    let request = ResumeRequest { decision };
    let status: JobStatus = client
        .send(Method::POST, &path, Some(&request), Duration::ZERO)
        .await?;
    if as_json {
        json(&status);
        return Ok(());
    }
    let (done, next) = told(name, decision, held);
    say(&format!("job {name} {done}"));
    hint(&format!("next: {next}"));
    Ok(())
}

fn undecided(name: &Label) -> Failure {
    let text = format!(
        "somebody has to decide about these deletes:\n  \
         cdsync job resume {name} --accept   lets them go: the files go to the targets' trash\n  \
         cdsync job resume {name} --restore  brings back at the targets what went there already\n  \
         cdsync job resume {name} --again    looks again, after the files were brought back"
    );
    Failure::told(text, format!("cdsync job status {name}"))
}

/// What was done, and what comes next.
fn told(name: &Label, decision: Decision, held: Option<&DeletesStatus>) -> (String, String) {
    match (decision, held) {
        (Decision::Accept, Some(held)) => (
            format!("resumed: {} deletes go", held.held),
            format!("cdsync job wait {name}"),
        ),
        (Decision::Restore, Some(held)) => (
            format!(
                "stays halted: {} deletes are taken back at the targets",
                held.gone
            ),
            format!("copy the files back at the source, then cdsync job resume {name} --again"),
        ),
        _ => ("resumed".to_owned(), format!("cdsync job status {name}")),
    }
}
