//! Jobs and the commands on them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cdsync_core::coordinator::{Job, JobRefused, JobStatus};
use cdsync_core::wire::Decision;
use tracing::info;

use super::answers::ApiError;
use super::servers::label;
use super::types::{ResumeRequest, RunAsked};
use crate::shared::Shared;

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<JobStatus>> {
    Json(shared.read(|plan| plan.jobs().map(|job| plan.status(job)).collect()))
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<JobStatus>, ApiError> {
    let name = label(&name)?;
    Ok(Json(shared.read(|plan| {
        plan.job(&name).map(|job| plan.status(job))
    })?))
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = label(&name)?;
    let _changing = shared.changing.lock().await;
    let id = shared.read(|plan| plan.job(&name).map(|job| job.id))?;
    shared.remove_job(id).await?;
    info!(%name, "job removed");
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn accept(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<JobStatus>, ApiError> {
    let name = label(&name)?;
    let _changing = shared.changing.lock().await;
    let job = shared.read(|plan| {
        plan.job(&name)
            .map(|job| job.clone().with_accepted(plan.targets(job)))
    })?;
    shared.put_job(job.clone()).await?;
    info!(%name, "job accepted");
    Ok(status(&shared, &job))
}

pub(super) async fn pause(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<JobStatus>, ApiError> {
    let job = change(&shared, &name, Job::with_pause, "paused").await?;
    Ok(status(&shared, &job))
}

pub(super) async fn resume(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    request: Option<Json<Option<ResumeRequest>>>,
) -> Result<Json<JobStatus>, ApiError> {
    let request = request.and_then(|Json(request)| request);
    let decision = request.map_or(Decision::Again, |request| request.decision);
    if decision == Decision::Again {
        let job = change(&shared, &name, Job::with_resume, "resumed").await?;
        return Ok(status(&shared, &job));
    }
    let name = label(&name)?;
    let _changing = shared.changing.lock().await;
    let decided = shared.read(|plan| {
        let job = plan.job(&name)?;
        let decided = plan.deletes(job);
        Ok::<_, JobRefused>(decided.map(|deletes| job.clone().with_decision(decision, deletes)))
    })?;
    let job = decided.ok_or_else(|| {
        let text = format!("job {name} holds no deletes; next: cdsync job status {name}");
        ApiError::new(StatusCode::CONFLICT, text)
    })?;
    shared.put_job(job.clone()).await?;
    info!(%name, ?decision, "job resumed");
    Ok(status(&shared, &job))
}

pub(super) async fn run(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<Json<RunAsked>, ApiError> {
    let job = change(&shared, &name, Job::with_run, "run").await?;
    Ok(Json(RunAsked { run: job.run }))
}

fn status(shared: &Shared, job: &Job) -> Json<JobStatus> {
    Json(shared.read(|plan| plan.status(job)))
}

/// Changes a job, stores it and plans with it.
async fn change(
    shared: &Shared,
    name: &str,
    command: fn(Job) -> Job,
    done: &'static str,
) -> Result<Job, ApiError> {
    let name = label(name)?;
    let _changing = shared.changing.lock().await;
    let job = command(shared.read(|plan| plan.job(&name).cloned())?);
    shared.put_job(job.clone()).await?;
    info!(%name, "job {done}");
    Ok(job)
}
