//! Making and changing jobs, and waiting for what the targets say of their roots.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cdsync_core::coordinator::{Coordinator, Job, JobRefused, JobState, TargetStatus};
use cdsync_core::ids::{JobId, Label};
use cdsync_core::job::{JobSpec, Mode};
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::answers::ApiError;
use super::servers::label;
use super::types::{Applied, ApplyRequest};
use crate::random;
use crate::shared::Shared;

const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) async fn add(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<ApplyRequest>,
) -> Result<Json<Applied>, ApiError> {
    put(&shared, request, true).await
}

pub(super) async fn apply(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Json(request): Json<ApplyRequest>,
) -> Result<Json<Applied>, ApiError> {
    if label(&name)? != request.job.name {
        return Err(ApiError::bad("the job's name is not the one in the path"));
    }
    put(&shared, request, false).await
}

async fn put(
    shared: &Shared,
    request: ApplyRequest,
    new_only: bool,
) -> Result<Json<Applied>, ApiError> {
    let spec = JobSpec::try_from(request.job).map_err(JobRefused::from)?;
    let fresh =
        JobId(random::id().map_err(|error| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        })?);
    let (id, created) = {
        let _changing = shared.changing.lock().await;
        let job = shared.read(|plan| {
            if new_only && plan.job(&spec.name).is_ok() {
                return Err(JobRefused::Exists { name: spec.name });
            }
            plan.prepare_job(spec, fresh, request.adopt)
        })?;
        let (id, name) = (job.id, job.name().clone());
        shared.put_job(job).await?;
        info!(%name, created = id == fresh, adopt = request.adopt, "job applied");
        (id, id == fresh)
    };
    let wait = Duration::from_millis(request.wait_ms).min(WAIT_MAX);
    Ok(Json(first_word(shared, id, created, wait).await?))
}

/// Waits until every connected target has said whether its root is empty and, where it is not, what
/// would happen to its content.
async fn first_word(
    shared: &Shared,
    id: JobId,
    created: bool,
    wait: Duration,
) -> Result<Applied, ApiError> {
    let deadline = Instant::now() + wait;
    let mut news = shared.news();
    loop {
        news.mark_unchanged();
        let applied = shared.read(|plan| {
            let job = plan.jobs().find(|job| job.id == id)?;
            Some(look(plan, job, created))
        });
        let applied = applied
            .ok_or_else(|| ApiError::new(StatusCode::CONFLICT, "the job was removed meanwhile"))?;
        let decided = applied.undecided.is_empty();
        if decided || timeout_at(deadline, news.changed()).await.is_err() {
            return Ok(applied);
        }
    }
}

fn look(plan: &Coordinator, job: &Job, created: bool) -> Applied {
    let status = plan.status(job);
    let missing = plan
        .members(job)
        .into_iter()
        .filter(|server| !plan.is_connected(server.id))
        .map(|server| server.name.clone())
        .collect();
    // What a manual job would replace is known once it was run.
    let never_run = job.spec.mode == Mode::Manual && job.run == 0;
    let source_silent = status
        .sources
        .iter()
        .any(|source| source.state == "unreachable");
    let targets = plan.targets(job);
    let accepted: Vec<Label> = targets
        .iter()
        .filter(|(id, root)| job.is_accepted(*id, root))
        .filter_map(|(id, _)| {
            plan.topology()
                .server(*id)
                .map(|server| server.name.clone())
        })
        .collect();
    let decided = |target: &TargetStatus, word: bool| match target.state {
        _ if accepted.contains(&target.server) => true,
        _ if !word => false,
        JobState::AwaitingAccept => {
            never_run
                || source_silent
                || target
                    .preview
                    .as_ref()
                    .is_some_and(|preview| preview.complete)
        }
        // It may not have reached its upstream yet.
        JobState::Scanning | JobState::Unreachable => never_run || source_silent,
        _ => true,
    };
    let undecided = targets
        .iter()
        .filter(|(id, _)| plan.is_connected(*id))
        .filter_map(|(id, _)| {
            let server = plan.topology().server(*id)?;
            let target = status
                .targets
                .iter()
                .find(|target| target.server == server.name)?;
            (!decided(target, plan.has_word(job, *id))).then(|| server.name.clone())
        })
        .collect();
    Applied {
        created,
        missing,
        undecided,
        accepted,
        status,
    }
}
