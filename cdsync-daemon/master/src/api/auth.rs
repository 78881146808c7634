//! Who may call.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answers::ApiError;
use crate::OwnerToken;
use crate::shared::Shared;

/// Lets a request pass that shows the owner's token as bearer token.
pub(super) async fn check(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let refused = |status, text: &str| ApiError::new(status, text).into_response();
    let shown = request.headers().get(header::AUTHORIZATION);
    let Some(shown) = shown.and_then(|value| value.to_str().ok()) else {
        let text = "no token was shown; next: use --data DIR, or --master URL --token-file FILE";
        return refused(StatusCode::UNAUTHORIZED, text);
    };
    let token: Option<OwnerToken> = shown
        .strip_prefix("Bearer ")
        .and_then(|text| text.parse().ok());
    let good = token.is_some_and(|token| {
        // Equality of this type takes the same time wherever two hashes differ.
        blake3::Hash::from(token.hash()) == blake3::Hash::from(shared.facts.owner)
    });
    if good {
        next.run(request).await
    } else {
        let text =
            "this token opens nothing here; next: use the owner.token of this master's folder";
        refused(StatusCode::FORBIDDEN, text)
    }
}
