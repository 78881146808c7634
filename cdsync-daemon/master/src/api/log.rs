//! What the agents of a job tell of it: its log, and what they know of a path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cdsync_core::coordinator::Job;
use cdsync_core::ids::{JobId, Label, ServerId};
use cdsync_core::path::{PATH_MAX_BYTES, RelPath};
use cdsync_core::wire::{Answer, Ask, LogLine};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::answers::ApiError;
use super::servers::label;
use super::types::{Explained, Explanation, LogEntry, LogPage, Missing};
use crate::shared::{AskError, Shared};

/// How long an agent may take to answer.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// Agents that are asked for one page; beyond it, a page would take too long.
const MEMBERS_MAX: usize = 256;
const LINES_DEFAULT: u32 = 200;
const LINES_MAX: u32 = 5_000;
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Between two rounds of questions while a follower waits.
const ROUND: Duration = Duration::from_millis(300);

#[derive(Debug, Deserialize)]
pub(super) struct LogQuery {
    cursor: Option<String>,
    limit: Option<u32>,
    wait_ms: Option<u64>,
}

/// Up to which line each server's log was read.
type Positions = BTreeMap<u64, u64>;

pub(super) async fn log(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Json<LogPage>, ApiError> {
    let name = label(&name)?;
    let mut positions = read_cursor(query.cursor.as_deref())?;
    let limit = query.limit.unwrap_or(LINES_DEFAULT).clamp(1, LINES_MAX);
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    loop {
        let (id, members) = members(&shared, &name)?;
        let page = round(&shared, id, members, limit, &mut positions).await;
        if !page.lines.is_empty() || Instant::now() >= deadline {
            return Ok(Json(page));
        }
        sleep(ROUND).await;
    }
}

struct Member {
    id: ServerId,
    name: Label,
    role: &'static str,
}

fn members(shared: &Shared, name: &Label) -> Result<(JobId, Vec<Member>), ApiError> {
    Ok(shared.read(|plan| {
        plan.job(name).map(|job: &Job| {
            let targets = plan.targets(job);
            let member = |server: &cdsync_core::topology::Server| {
                let is_source = job
                    .source()
                    .is_some_and(|(source, _)| *source == server.name);
                let is_target = targets.iter().any(|(id, _)| *id == server.id);
                let role = match (is_source, is_target) {
                    (true, true) => "source and target",
                    (true, false) => "source",
                    _ => "target",
                };
                Member {
                    id: server.id,
                    name: server.name.clone(),
                    role,
                }
            };
            let members = plan.members(job).into_iter().take(MEMBERS_MAX).map(member);
            (job.id, members.collect())
        })
    })?)
}

/// Asks everybody once for what is new.
async fn round(
    shared: &Arc<Shared>,
    job: JobId,
    members: Vec<Member>,
    limit: u32,
    positions: &mut Positions,
) -> LogPage {
    let mut asked = JoinSet::new();
    for member in members {
        let shared = Arc::clone(shared);
        let after = positions.get(&member.id.0).copied().unwrap_or(0);
        asked.spawn(async move {
            let lines = lines_of(&shared, member.id, job, after, limit).await;
            (member, lines)
        });
    }
    let (mut lines, mut missing) = (Vec::new(), Vec::new());
    while let Some(answered) = asked.join_next().await {
        let Ok((member, answer)) = answered else {
            continue;
        };
        match answer {
            Ok(found) => {
                if let Some(last) = found.iter().map(|line| line.number).max() {
                    positions.insert(member.id.0, last);
                }
                lines.extend(found.into_iter().map(|line| entry(&member.name, line)));
            }
            Err(error) => missing.push(Missing {
                server: member.name,
                why: error.to_string(),
            }),
        }
    }
    lines.sort_by(|a, b| (a.at_ms, a.seq, &a.server).cmp(&(b.at_ms, b.seq, &b.server)));
    missing.sort_by(|a, b| a.server.cmp(&b.server));
    LogPage {
        lines,
        cursor: write_cursor(positions),
        missing,
    }
}

/// One server's lines after a number. Numbers start anew with the agent: where its newest line lies
/// before the number, everything is new.
async fn lines_of(
    shared: &Shared,
    server: ServerId,
    job: JobId,
    after: u64,
    limit: u32,
) -> Result<Vec<LogLine>, AskError> {
    let ask = async |after, limit| {
        let answer = shared
            .ask(server, Ask::Log { job, after, limit }, ASK_DEADLINE)
            .await?;
        match answer {
            Answer::Log(lines) => Ok(lines),
            _ => Err(AskError::Refused("it answered something else".to_owned())),
        }
    };
    let mut lines = ask(after, limit).await?;
    if lines.is_empty() && after > 0 {
        let newest = ask(0, 1).await?;
        if newest.first().is_some_and(|line| line.number < after) {
            lines = ask(0, limit).await?;
        }
    }
    lines.truncate(LINES_MAX as usize);
    Ok(lines)
}

fn entry(server: &Label, line: LogLine) -> LogEntry {
    LogEntry {
        server: server.clone(),
        at_ms: line.at.0,
        op: line.op.to_string(),
        path: line.path,
        detail: line.detail,
        latency_ms: line.latency_ms,
        seq: line.seq.0,
    }
}

fn write_cursor(positions: &Positions) -> String {
    let pairs = positions
        .iter()
        .flat_map(|(server, number)| [server.to_le_bytes(), number.to_le_bytes()].concat());
    URL_SAFE_NO_PAD.encode(pairs.collect::<Vec<u8>>())
}

fn read_cursor(text: Option<&str>) -> Result<Positions, ApiError> {
    let Some(text) = text else {
        return Ok(Positions::new());
    };
    let bad = || ApiError::bad("this is not a cursor of the log");
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
    let (pairs, []) = bytes.as_chunks::<16>() else {
        return Err(bad());
    };
    if pairs.len() > MEMBERS_MAX {
        return Err(bad());
    }
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|_| bad());
    pairs
        .iter()
        .map(|pair| Ok((number(&pair[..8])?, number(&pair[8..])?)))
        .collect()
}

#[derive(Debug, Deserialize)]
pub(super) struct ExplainQuery {
    path: String,
}

pub(super) async fn explain(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Explained>, ApiError> {
    let name = label(&name)?;
    let bad = || ApiError::bad("the path is not base64url of a path below the root");
    if query.path.len() > PATH_MAX_BYTES * 4 / 3 + 4 {
        return Err(bad());
    }
    let bytes = URL_SAFE_NO_PAD.decode(&query.path).map_err(|_| bad())?;
    let path = RelPath::new(bytes).map_err(|error| ApiError::bad(error.to_string()))?;
    let (job, members) = members(&shared, &name)?;
    let mut asked = JoinSet::new();
    for member in members {
        let (shared, path) = (Arc::clone(&shared), path.as_bytes().to_vec());
        asked.spawn(async move {
            let answer = shared
                .ask(member.id, Ask::Explain { job, path }, ASK_DEADLINE)
                .await;
            let (lines, error) = match answer {
                Ok(Answer::Explain(lines)) => (lines, None),
                Ok(_) => (Vec::new(), Some("it answered something else".to_owned())),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            Explanation {
                server: member.name,
                role: member.role.to_owned(),
                lines,
                error,
            }
        });
    }
    let mut servers = asked.join_all().await;
    // The source first: it decides.
    servers.sort_by(|a, b| {
        (!a.role.starts_with("source"), &a.server).cmp(&(!b.role.starts_with("source"), &b.server))
    });
    Ok(Json(Explained { servers }))
}
