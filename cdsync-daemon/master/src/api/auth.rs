//! Who may call.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cdsync_transport::PeerPlace;

use super::answers::ApiError;
use crate::OwnerToken;
use crate::shared::Shared;

/// Whether a connection has shown a good token once. Until then it may not last.
/// It has a place among those of its address meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Proven(Arc<Mutex<Option<PeerPlace<IpAddr>>>>);

impl Proven {
    pub(crate) fn not_yet(place: PeerPlace<IpAddr>) -> Self {
        Self(Arc::new(Mutex::new(Some(place))))
    }

    pub(super) fn is_proven(&self) -> bool {
        self.place().is_none()
    }

    fn place(&self) -> MutexGuard<'_, Option<PeerPlace<IpAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
        if let Some(proven) = request.extensions().get::<Proven>() {
            proven.place().take();
        }
        next.run(request).await
    } else {
        let text =
            "this token opens nothing here; next: use the owner.token of this master's folder";
        refused(StatusCode::FORBIDDEN, text)
    }
}
