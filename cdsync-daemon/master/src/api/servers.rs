//! Servers, join tokens, and the whole at a glance.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cdsync_core::coordinator::ServerStatus;
use cdsync_core::ids::Label;
use tracing::info;

use super::answers::ApiError;
use super::types::{MasterStatus, RestoreAccepted, Status, TokenMade, TokenRequest};
use crate::shared::{Shared, now};
use crate::store::rows;
use crate::tokens::{self, NewToken, TokenError};

pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Json<Status> {
    let facts = &shared.facts;
    Json(shared.read(|plan| Status {
        master: MasterStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: format!("{:016x}", plan.identity().cluster),
            epoch: plan.epoch().to_string(),
            address: facts.advertise.clone(),
            http: facts.http.clone(),
            uptime_ms: now().0.saturating_sub(facts.started.0),
            outranked_by_term: plan.outranked().map(|outranked| outranked.term),
        },
        servers: plan.servers(now()),
        jobs: plan.jobs().map(|job| plan.status(job)).collect(),
    }))
}

pub(super) async fn accept_restore(
    State(shared): State<Arc<Shared>>,
) -> Result<Json<RestoreAccepted>, ApiError> {
    let _changing = shared.changing.lock().await;
    let term = shared.accept_restore().await?.ok_or_else(|| {
        let text = "no agent obeys a later master than this one: there is nothing to accept";
        ApiError::new(StatusCode::CONFLICT, text)
    })?;
    info!(term, "this master rules again");
    Ok(Json(RestoreAccepted { term }))
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<ServerStatus>> {
    Json(shared.read(|plan| plan.servers(now())))
}

pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = label(&name)?;
    let _changing = shared.changing.lock().await;
    let id = shared.read(|plan| plan.topology().by_name(&name).map(|server| server.id));
    let id = id.ok_or_else(|| {
        let text = format!("there is no server {name}; next: cdsync server list");
        ApiError::new(StatusCode::NOT_FOUND, text)
    })?;
    shared.remove_server(id).await?;
    info!(%name, %id, "server removed");
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn token(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<TokenRequest>,
) -> Result<Json<TokenMade>, ApiError> {
    let facts = &shared.facts;
    let taken = |name: &Label| shared.read(|plan| plan.topology().by_name(name).is_some());
    let token = tokens::make(
        request,
        &facts.advertise,
        shared.authority.fingerprint(),
        taken,
    );
    let NewToken { made, hash, row } = token.map_err(|error| {
        let status = match &error {
            TokenError::NameTaken { .. } | TokenError::Address(_) => StatusCode::CONFLICT,
            _ => StatusCode::BAD_REQUEST,
        };
        ApiError::new(status, error.to_string())
    })?;
    let name = row.name.clone();
    shared
        .store(move |store| rows::put_token(store, &hash, &row, now()))
        .await?;
    info!(%name, expires = made.expires_ms, "join token made");
    Ok(Json(made))
}

/// A name as it came in a path or body.
pub(super) fn label(text: &str) -> Result<Label, ApiError> {
    Label::new(text).map_err(|error| ApiError::bad(error.to_string()))
}
