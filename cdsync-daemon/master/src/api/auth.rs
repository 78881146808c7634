//! Who may call.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cdsync_transport::PeerPlace;
use tokio::time::Instant;
use tracing::warn;

use super::answers::ApiError;
use crate::OwnerToken;
use crate::shared::Shared;

/// Wrong tokens are logged at most so often, with how many there were.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What a request has to pass.
#[derive(Debug)]
pub(super) struct Gate {
    shared: Arc<Shared>,
    wrong: Mutex<Wrong>,
}

/// Wrong tokens that were shown since they were last told of.
#[derive(Debug, Default)]
struct Wrong {
    count: u64,
    told: Option<Instant>,
}

impl Gate {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            wrong: Mutex::default(),
        }
    }

    /// A token that opens nothing was shown: for the log, which it must not fill.
    fn note_wrong(&self, from: Option<IpAddr>) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.count += 1;
        if wrong.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            warn!(
                count = wrong.count,
                last_from = from.map(tracing::field::display),
                "wrong tokens were shown to the API"
            );
            *wrong = Wrong {
                count: 0,
                told: Some(Instant::now()),
            };
        }
    }
}

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

    /// From where it comes, while it has shown none.
    fn address(&self) -> Option<IpAddr> {
        self.place().as_ref().map(|place| *place.peer())
    }

    fn place(&self) -> MutexGuard<'_, Option<PeerPlace<IpAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a request pass that shows the owner's token as bearer token.
pub(super) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
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
        blake3::Hash::from(token.hash()) == blake3::Hash::from(gate.shared.facts.owner)
    });
    let proven = request.extensions().get::<Proven>();
    if good {
        if let Some(proven) = proven {
            proven.place().take();
        }
        next.run(request).await
    } else {
        gate.note_wrong(proven.and_then(Proven::address));
        let text =
            "this token opens nothing here; next: use the owner.token of this master's folder";
        let mut answer = refused(StatusCode::FORBIDDEN, text);
        // Each guess costs a handshake, and a place among those of its address.
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
        answer
    }
}
