//! `cdsync job`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cdsync_core::coordinator::JobStatus;
use cdsync_core::filter::FilterSpec;
use cdsync_core::ids::Label;
use cdsync_core::job::{JobSpec, Mode, Settings};
use cdsync_master::api::types::{Applied, ApplyRequest, Explained, JobBody, RunAsked, Waited};
use hyper::Method;

use super::client::Client;
use super::{connect, jobfile, log, resume, show};
use crate::args::{JobArgs, JobCommand};
use crate::failure::{Failure, Result};
use crate::output::{hint, json, say};
use crate::text::{count, millis};

/// How long `apply` waits for what the targets say of their roots.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// One slice of a wait that has no end.
const SLICE: Duration = Duration::from_secs(60);

/// Jobs.
pub(crate) async fn run(args: JobArgs) -> Result<()> {
    let as_json = args.manager.json;
    // Before the master is asked: a bad file is the first thing to say.
    let request = match &args.command {
        JobCommand::Apply { file, adopt } => Some(request(&jobfile::read(file)?, *adopt)),
        JobCommand::Add { name, from, to } => {
            let spec = JobSpec {
                name: name.clone(),
                mode: Mode::Realtime,
                sources: vec![from.clone()],
                targets: to.clone(),
                filter: FilterSpec::default(),
                settings: Settings::default(),
            };
            spec.validate()
                .map_err(|error| Failure::usage(error.to_string()))?;
            Some(request(&spec, false))
        }
        _ => None,
    };
    let client = connect(&args.manager)?;
    match args.command {
        JobCommand::Apply { .. } | JobCommand::Add { .. } => {
            let is_new = matches!(args.command, JobCommand::Add { .. });
            match request {
                Some(request) => apply(&client, &request, is_new, as_json).await,
                None => Ok(()),
            }
        }
        JobCommand::Accept { name } => {
            let next = format!("cdsync job wait {name}");
            command(&client, &name, "accept", "accepted", &next, as_json).await
        }
        JobCommand::Pause { name } => {
            let next = format!("cdsync job resume {name}");
            command(&client, &name, "pause", "paused", &next, as_json).await
        }
        JobCommand::Resume {
            name,
            accept,
            restore,
            again,
        } => {
            let decision = resume::decision(accept, restore, again);
            resume::resume(&client, &name, decision, as_json).await
        }
        JobCommand::List => {
            let jobs: Vec<JobStatus> = client.get("/jobs").await?;
            if as_json {
                json(&jobs)
            } else {
                say(&show::jobs(&jobs))
            }
            Ok(())
        }
        JobCommand::Status { name } => {
            let job: JobStatus = client.get(&format!("/jobs/{name}")).await?;
            if as_json {
                json(&job)
            } else {
                say(&show::job(&job))
            }
            Ok(())
        }
        JobCommand::Run { name, wait } => run_job(&client, &name, wait, as_json).await,
        JobCommand::Wait { name, timeout } => {
            let waited = wait_for(&client, &name, timeout).await?;
            waited_for(&name, &waited, as_json)
        }
        JobCommand::Remove { name } => {
            client.delete(&format!("/jobs/{name}")).await?;
            if as_json {
                json(&serde_json::json!({ "removed": name }));
            } else {
                say(&format!(
                    "job {name} removed; all files stay where they are"
                ));
            }
            Ok(())
        }
        JobCommand::Log { name, follow } => log::log(&client, &name, follow, as_json).await,
        JobCommand::Explain { name, path } => explain(&client, &name, &path, as_json).await,
    }
}

fn request(spec: &JobSpec, adopt: bool) -> ApplyRequest {
    ApplyRequest {
        job: JobBody::from(spec),
        adopt,
        wait_ms: millis(FIRST_WORD),
    }
}

async fn apply(client: &Client, request: &ApplyRequest, is_new: bool, as_json: bool) -> Result<()> {
    let name = &request.job.name;
    let (method, path) = if is_new {
        (Method::POST, "/jobs".to_owned())
    } else {
        (Method::PUT, format!("/jobs/{name}"))
    };
    let applied: Applied = client
        .send(method, &path, Some(request), FIRST_WORD)
        .await?;
    if as_json {
        json(&applied);
    } else {
        say(&format!(
            "job {name} {}",
            if applied.created { "made" } else { "changed" }
        ));
        for server in &applied.missing {
            say(&format!(
                "{server} is not connected: its part begins when its agent runs"
            ));
        }
        for server in &applied.undecided {
            say(&format!(
                "{server} has not said yet whether its root is empty"
            ));
        }
    }
    if let Some(text) = show::refusals(&applied) {
        let adopt = if is_new {
            ""
        } else {
            " (or cdsync job apply -f FILE --adopt)"
        };
        let failure = Failure::condition(format!("job {name} waits to be accepted\n{text}"))
            .next(format!("cdsync job accept {name}{adopt}"));
        return Err(if as_json { failure.silently() } else { failure });
    }
    if !as_json {
        let next = match request.job.mode {
            Mode::Realtime => format!("cdsync job wait {name}"),
            Mode::Manual => format!("cdsync job run {name} --wait"),
        };
        hint(&format!("next: {next}"));
    }
    Ok(())
}

async fn command(
    client: &Client,
    name: &Label,
    verb: &str,
    done: &str,
    next: &str,
    as_json: bool,
) -> Result<()> {
    let path = format!("/jobs/{name}/{verb}");
    let status: JobStatus = client
        .send(Method::POST, &path, None::<&()>, Duration::ZERO)
        .await?;
    if as_json {
        json(&status);
    } else {
        say(&format!("job {name} {done}"));
        hint(&format!("next: {next}"));
    }
    Ok(())
}

async fn run_job(client: &Client, name: &Label, wait: bool, as_json: bool) -> Result<()> {
    let path = format!("/jobs/{name}/run");
    let asked: RunAsked = client
        .send(Method::POST, &path, None::<&()>, Duration::ZERO)
        .await?;
    if !wait {
        if as_json {
            json(&asked);
        } else {
            say(&format!("job {name}: run {} begins", asked.run));
            hint(&format!("next: cdsync job wait {name}"));
        }
        return Ok(());
    }
    loop {
        let waited = wait_for(client, name, SLICE).await?;
        if waited.done || waited.hopeless {
            return waited_for(name, &waited, as_json);
        }
        if !as_json {
            hint(&format!(
                "job {name}: still on its way{}",
                show::laggards(&waited.laggards)
            ));
        }
    }
}

async fn wait_for(client: &Client, name: &Label, timeout: Duration) -> Result<Waited> {
    let path = format!("/jobs/{name}/wait?timeout_ms={}", millis(timeout));
    client.get_slowly(&path, timeout).await
}

fn waited_for(name: &Label, waited: &Waited, as_json: bool) -> Result<()> {
    if as_json {
        json(waited);
    }
    if waited.done {
        if !as_json {
            let seq = waited
                .seq
                .map_or_else(String::new, |seq| format!(" (up to {seq})"));
            say(&format!(
                "job {name}: every target holds all{seq}, after {} ms",
                waited.elapsed_ms
            ));
        }
        return Ok(());
    }
    let why = if waited.hopeless {
        "waiting does not help"
    } else {
        "time is over"
    };
    let text = format!(
        "job {name} is not equal everywhere: {why}{}",
        show::laggards(&waited.laggards)
    );
    let failure = Failure::told(text, format!("cdsync job status {name}"));
    Err(if as_json { failure.silently() } else { failure })
}

async fn explain(client: &Client, name: &Label, path: &OsStr, as_json: bool) -> Result<()> {
    let bytes = path.as_bytes();
    let bytes = bytes.strip_prefix(b"./").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    let bytes = if bytes == b"." { b"" } else { bytes };
    let encoded = URL_SAFE_NO_PAD.encode(bytes);
    let explained: Explained = client
        .get_slowly(
            &format!("/jobs/{name}/explain?path={encoded}"),
            Duration::from_secs(10),
        )
        .await?;
    let silent = explained
        .servers
        .iter()
        .filter(|server| server.error.is_some())
        .count();
    if as_json {
        json(&explained);
    } else {
        for server in &explained.servers {
            say(&format!("{} ({})", server.server, server.role));
            for line in server.lines.iter().chain(&server.error) {
                say(&format!("  {line}"));
            }
        }
    }
    if silent > 0 {
        let silent = u64::try_from(silent).unwrap_or(u64::MAX);
        let text = format!("{} gave no answer", count(silent, "server", "servers"));
        let failure = Failure::condition(text).next("cdsync server list");
        return Err(if as_json { failure.silently() } else { failure });
    }
    Ok(())
}
