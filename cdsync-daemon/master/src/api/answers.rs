//! Errors as JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cdsync_core::coordinator::JobRefused;

use super::types::ErrorBody;
use crate::StoreError;

/// What a handler returns when it does not do it.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// An error whose text may end in `; next: ..`, which becomes the field of that name.
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        let text = text.into();
        let (error, next) = match text.split_once("; next: ") {
            Some((error, next)) => (error.to_owned(), Some(next.to_owned())),
            None => (text, None),
        };
        Self {
            status,
            body: ErrorBody { error, next },
        }
    }

    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<JobRefused> for ApiError {
    fn from(refused: JobRefused) -> Self {
        let status = match &refused {
            JobRefused::NoSuchJob { .. } => StatusCode::NOT_FOUND,
            JobRefused::Invalid(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::CONFLICT,
        };
        match &refused {
            JobRefused::Problems { name, problems } => match &problems[..] {
                [one] => Self::new(status, format!("job {name}: {one}")),
                many => {
                    let lines: Vec<String> = many.iter().map(ToString::to_string).collect();
                    let error = format!("job {name} cannot run:\n  {}", lines.join("\n  "));
                    Self {
                        status,
                        body: ErrorBody { error, next: None },
                    }
                }
            },
            JobRefused::Invalid(error) => {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                Self {
                    status,
                    body: ErrorBody {
                        error: text,
                        next: None,
                    },
                }
            }
            other => Self::new(status, other.to_string()),
        }
    }
}
