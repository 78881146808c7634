//! Who may call the API, and what it says of nonsense.

use axum::http::{Method, StatusCode};
use cdsync_transport::{CaFingerprint, PeerLimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::bed::{Bed, soon};
use crate::OwnerToken;
use crate::api::{Proven, http, router};

/// Proves that nothing is answered without the owner's token, with a wrong one, or with one of
/// another master, and that the refusal says what to do.
#[tokio::test]
async fn callers_show_the_owners_token() {
    let bed = Bed::new().await;
    let foreign = OwnerToken::new(CaFingerprint([1; 32]), [2; 32]).to_text();
    let mut spoilt = bed.token.clone();
    spoilt.pop();
    for (shown, expected) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("Bearer x".to_owned()), StatusCode::FORBIDDEN),
        (Some(format!("Bearer {foreign}")), StatusCode::FORBIDDEN),
        (Some(format!("Bearer {spoilt}")), StatusCode::FORBIDDEN),
        (Some(format!("Basic {}", bed.token)), StatusCode::FORBIDDEN),
    ] {
        for path in ["/status", "/nowhere"] {
            let (status, value) = bed
                .call_as(shown.as_deref(), Method::GET, path, Value::Null)
                .await;
            assert_eq!(status, expected, "{shown:?}");
            assert!(value["next"].is_string(), "{value}");
        }
    }
    let status = bed.get("/status").await;
    assert_eq!(status["master"]["address"], "master:7400");
}

/// Proves that a caller who shows no token, and takes no answers, loses its connection, that it counts
/// among those of its address until then, and that one who showed a token neither does.
#[tokio::test]
async fn connections_without_a_token_do_not_last() {
    let bed = Bed::new().await;
    let addresses = PeerLimit::new(1);
    let from: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    for shown in [false, true] {
        let place = addresses.take(from).expect("one at a time");
        let (mut caller, served) = tokio::io::duplex(1_000);
        let proven = Proven::not_yet(place);
        let router = router(bed.shared());
        let stopping = CancellationToken::new();
        let serving = tokio::spawn(http(served, router, proven, stopping));
        let head = "GET /api/v1/status HTTP/1.1\r\nHost: x\r\n";
        let token = format!("Authorization: Bearer {}\r\n\r\n", bed.token);
        let request = format!("{head}{}", if shown { &token } else { "\r\n" });
        caller.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        soon(caller.read_exact(&mut answer)).await.unwrap();
        assert_eq!(addresses.take(from).is_some(), shown);
        tokio::time::pause();
        // It asks on and on, and takes no answer. Who showed a token may.
        let asking = async { while caller.write_all(request.as_bytes()).await.is_ok() {} };
        let long = std::time::Duration::from_secs(300);
        let ended = tokio::time::timeout(long, asking).await;
        assert_eq!(ended.is_ok(), !shown);
        assert_eq!(serving.is_finished(), !shown);
        tokio::time::resume();
        serving.abort();
        let _ = serving.await;
    }
}

/// Proves that a connection on which a wrong token was shown is closed with the answer, so that each
/// guess costs a connection.
#[tokio::test]
async fn a_wrong_token_costs_the_connection() {
    let bed = Bed::new().await;
    let place = PeerLimit::new(1).take("192.0.2.1".parse().unwrap());
    let (mut caller, served) = tokio::io::duplex(4_000);
    let router = router(bed.shared());
    let proven = Proven::not_yet(place.expect("one at a time"));
    let serving = tokio::spawn(http(served, router, proven, CancellationToken::new()));
    let mut wrong = bed.token.clone();
    wrong.pop();
    let request =
        format!("GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {wrong}\r\n\r\n");
    // The second guess is not answered any more.
    for _ in 0..2 {
        let _ = caller.write_all(request.as_bytes()).await;
    }
    let mut answers = String::new();
    soon(caller.read_to_string(&mut answers)).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 403").count(), 1, "{answers}");
    soon(serving).await.unwrap().unwrap();
}

/// Proves that each kind of bad request gets a status and a text of its own.
#[tokio::test]
async fn bad_requests_say_why() {
    let bed = Bed::new().await;
    let body = |name: &str, source: &str, exclude: &str| {
        json!({ "job": {
            "name": name, "mode": "realtime", "source": [source], "target": ["edge:/srv"],
            "filter": { "exclude": [exclude] },
        }})
    };
    for (method, path, body, status, text) in [
        (Method::GET, "/jobs/none", Value::Null, 404, "no job none"),
        (Method::GET, "/jobs/NONE", Value::Null, 400, "not a name"),
        (
            Method::POST,
            "/jobs/none/run",
            Value::Null,
            404,
            "no job none",
        ),
        (
            Method::GET,
            "/jobs/none/wait",
            Value::Null,
            404,
            "no job none",
        ),
        (
            Method::GET,
            "/jobs/none/log?cursor=x",
            Value::Null,
            400,
            "cursor",
        ),
        (Method::GET, "/nowhere", Value::Null, 404, "no such path"),
        (
            Method::POST,
            "/jobs",
            body("a", "nobody:/srv", "x"),
            409,
            "no server nobody",
        ),
        (
            Method::POST,
            "/jobs",
            body("a", "@all:/srv", "x"),
            400,
            "exactly one",
        ),
        (
            Method::POST,
            "/jobs",
            body("a", "edge:srv", "x"),
            400,
            "not a root",
        ),
        (
            Method::POST,
            "/jobs",
            body("a", "edge:/srv", "("),
            400,
            "exclude list",
        ),
        (
            Method::PUT,
            "/jobs/b",
            body("a", "edge:/srv", "x"),
            400,
            "not the one in the path",
        ),
        (
            Method::POST,
            "/tokens",
            json!({ "name": "a", "group": "asia", "ttl_ms": 60_000 }),
            400,
            "REGION/GROUP",
        ),
        (
            Method::POST,
            "/tokens",
            json!({ "name": "a", "group": "asia/seoul", "ttl_ms": 1 }),
            400,
            "1 second to 30 days",
        ),
    ] {
        let (found, value) = bed.call(method, path, body).await;
        assert_eq!(found.as_u16(), status, "{path}: {value}");
        let error = value["error"].as_str().unwrap();
        assert!(error.contains(text), "{path}: {error}");
    }
}
