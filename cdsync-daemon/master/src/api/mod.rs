//! The HTTP API: JSON over TLS, under `/api/v1`, for whoever shows a manager's token.
//!
//! | Method and path | What |
//! |---|---|
//! | `GET /status` | the master, its servers and jobs |
//! | `GET /servers`, `DELETE /servers/{name}` | servers |
//! | `POST /accept-restore` | lets a master that was restored from an older copy rule again |
//! | `POST /tokens` | a join token |
//! | `GET /jobs`, `POST /jobs` | all jobs; a new one |
//! | `GET`, `PUT`, `DELETE /jobs/{name}` | one job |
//! | `POST /jobs/{name}/accept`, `run`, `pause`, `resume` | commands |
//! | `GET /jobs/{name}/wait?timeout_ms=` | the fence: answers when it is reached or time is over |
//! | `GET /jobs/{name}/log?cursor=&limit=&wait_ms=` | lines of the log, oldest first |
//! | `GET /jobs/{name}/explain?path=` | what is known of a path (base64url of its bytes) |
//!
//! Errors are `{"error": .., "next": ..}` with a status that says whose fault it is.

mod answers;
mod apply;
mod auth;
mod jobs;
mod log;
mod servers;
mod tls;
pub mod types;
mod wait;

#[cfg(test)]
pub(crate) use auth::Proven;
#[cfg(test)]
pub(crate) use tls::http;
pub(crate) use tls::{ServerTls, serve};

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};

use crate::shared::Shared;
use answers::ApiError;

/// The largest body: a job of 10,000 targets with full-length names fits.
const BODY_MAX_BYTES: usize = 4 << 20;

/// Every route, behind the check of the token.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let job = get(jobs::show).put(apply::apply).delete(jobs::remove);
    let routes = Router::new()
        .route("/status", get(servers::status))
        .route("/servers", get(servers::list))
        .route("/servers/{name}", delete(servers::remove))
        .route("/accept-restore", post(servers::accept_restore))
        .route("/tokens", post(servers::token))
        .route("/jobs", get(jobs::list).post(apply::add))
        .route("/jobs/{name}", job)
        .route("/jobs/{name}/accept", post(jobs::accept))
        .route("/jobs/{name}/run", post(jobs::run))
        .route("/jobs/{name}/pause", post(jobs::pause))
        .route("/jobs/{name}/resume", post(jobs::resume))
        .route("/jobs/{name}/wait", get(wait::wait))
        .route("/jobs/{name}/log", get(log::log))
        .route("/jobs/{name}/explain", get(log::explain));
    Router::new()
        .nest("/api/v1", routes)
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is no such path"))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(axum::middleware::from_fn_with_state(
            Arc::new(auth::Gate::new(Arc::clone(shared))),
            auth::check,
        ))
        .with_state(Arc::clone(shared))
}
