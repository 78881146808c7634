//! Joining, being refused, being replaced, being removed.

use axum::http::{Method, StatusCode};
use bytes::Bytes;
use cdsync_core::ids::{Label, ServerId};
use cdsync_core::wire::{AgentMessage, JoinReply, MasterMessage, kind};
use cdsync_transport::{CloseCode, CloseReason, JoinSecret, PeerIdentity};
use serde_json::{Value, json};

use super::bed::{Bed, at, hello, request, soon};
use crate::store::rows::{self, TokenRow};

fn refusal(reply: &JoinReply) -> &str {
    match reply {
        JoinReply::Refused { reason } => reason,
        JoinReply::Welcome { .. } => panic!("{reply:?}"),
    }
}

/// Proves that a token lets exactly one server in, under the name and group that it was made for,
/// and that used, expired, foreign and malformed ones each get their own answer.
#[tokio::test]
async fn tokens_are_good_once() {
    let bed = Bed::new().await;
    let token = bed.join_token("edge", "asia/seoul").await;
    let secret = token.secret().as_bytes().to_vec();
    assert_eq!(token.addr(), "master:7400");
    assert_eq!(token.fingerprint(), bed.fingerprint);
    // A request that cannot be signed does not use the token up.
    let bad = bed.show(secret.clone(), "no request".into()).await;
    assert!(refusal(&bad).contains("signing request"), "{bad:?}");
    let reply = bed.show(secret.clone(), request()).await;
    let JoinReply::Welcome { name, cluster, .. } = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(name, Label::new("edge").unwrap());
    assert_eq!(cluster, bed.fingerprint.cluster().0);
    let again = bed.show(secret, request()).await;
    assert!(refusal(&again).contains("used before"), "{again:?}");
    let foreign = bed.show(vec![7; 32], request()).await;
    assert!(refusal(&foreign).contains("no such token"), "{foreign:?}");
    let short = bed.show(vec![7; 31], request()).await;
    assert!(refusal(&short).contains("32 bytes"), "{short:?}");
    let label = |text: &str| Label::new(text).unwrap();
    let row = TokenRow {
        name: label("late"),
        region: label("asia"),
        group: label("seoul"),
        expires: at(1),
        used: false,
    };
    let hash = JoinSecret::from_bytes([9; 32]).hash().0;
    bed.shared()
        .store(move |store| rows::put_token(store, &hash, &row, at(1)))
        .await
        .unwrap();
    let late = bed.show(vec![9; 32], request()).await;
    assert!(refusal(&late).contains("expired"), "{late:?}");
    let servers = bed.get("/servers").await;
    assert_eq!(servers.as_array().unwrap().len(), 1);
    assert_eq!(servers[0]["region"], "asia");
    assert_eq!(servers[0]["state"], "unreachable");
    let taken = json!({ "name": "edge", "group": "asia/seoul", "ttl_ms": 60_000 });
    let (status, value) = bed.call(Method::POST, "/tokens", taken).await;
    assert_eq!(status, StatusCode::CONFLICT, "{value}");
}

/// Proves that a second connection of a server takes the place of the first, which is told so, and
/// that the server counts as connected all the time.
#[tokio::test]
async fn a_newer_connection_replaces_the_older() {
    let bed = Bed::new().await;
    let first = bed.agent("edge", "asia/seoul").await;
    let mut second = bed.connect("edge", first.server, first.orders_key).await;
    let reason = soon(first.connection.closed()).await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::REPLACED,
                ..
            }
        ),
        "{reason:?}"
    );
    second.orders(|orders| orders.jobs.is_empty()).await;
    assert_eq!(bed.get("/servers").await[0]["state"], "connected");
    second.connection.close(CloseCode::DONE, "");
    bed.until("/servers", |servers| servers[0]["state"] == "unreachable")
        .await;
}

/// Proves that a removed server is cut off at once, refused when it comes again, and does not keep
/// its name from a successor.
#[tokio::test]
async fn a_removed_server_is_refused() {
    let bed = Bed::new().await;
    let agent = bed.agent("edge", "asia/seoul").await;
    let (status, _) = bed.call(Method::DELETE, "/servers/edge", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let refused = |reason: &CloseReason| {
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::REFUSED,
                ..
            }
        )
    };
    let reason = soon(agent.connection.closed()).await;
    assert!(refused(&reason), "{reason:?}");
    let again = bed.dial("edge", agent.server, agent.orders_key).await;
    let reason = soon(again.connection.closed()).await;
    assert!(refused(&reason), "{reason:?}");
    let (status, _) = bed.call(Method::DELETE, "/servers/edge", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let successor = bed.agent("edge", "asia/seoul").await;
    assert_ne!(successor.server, agent.server);
}

/// Proves that strangers, and agents that send what is no message, are refused while others go on.
#[tokio::test]
async fn nonsense_ends_only_its_own_connection() {
    let bed = Bed::new().await;
    let mut good = bed.agent("good", "asia/seoul").await;
    let stranger = bed.dial("stranger", ServerId(4711), good.orders_key).await;
    let reason = soon(stranger.connection.closed()).await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::REFUSED,
                ..
            }
        ),
        "{reason:?}"
    );
    let wild = bed.agent("wild", "asia/seoul").await;
    let (server, key) = (wild.server, wild.orders_key);
    drop(wild);
    for (kind, body) in [
        (kind::CONTROL, vec![0xff; 100]),
        (kind::RANGE, vec![1, 0]),
        (kind::CONTROL, Vec::new()),
        (
            kind::CONTROL,
            cdsync_core::wire::encode(&AgentMessage::Renew { csr: "x".into() }),
        ),
    ] {
        let mut agent = bed.dial("wild", server, key).await;
        let _ = agent.writer.write(kind, &[Bytes::from(body)]).await;
        let reason = soon(agent.connection.closed()).await;
        assert!(
            matches!(
                reason,
                CloseReason::Peer {
                    code: CloseCode::PROTOCOL,
                    ..
                }
            ),
            "{reason:?}"
        );
    }
    let mut odd = hello("wild");
    odd.roots = vec!["relative".into()];
    let mut agent = bed.dial("wild", server, key).await;
    agent.send(&AgentMessage::Hello(odd)).await;
    let reason = soon(agent.connection.closed()).await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::PROTOCOL,
                ..
            }
        ),
        "{reason:?}"
    );
    good.orders(|orders| orders.jobs.is_empty()).await;
    assert_eq!(bed.get("/servers").await[0]["state"], "connected");
}

/// Proves that a renewed certificate is for the server that asked, and for the key that it showed.
#[tokio::test]
async fn certificates_are_renewed() {
    let bed = Bed::new().await;
    let mut agent = bed.agent("edge", "asia/seoul").await;
    let key = cdsync_transport::NodeKey::generate().unwrap();
    let der = key.signing_request().unwrap();
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let csr =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
    agent.send(&AgentMessage::Renew { csr }).await;
    let certificate = loop {
        match agent.next().await {
            Some(MasterMessage::Renewed { certificate }) => break certificate,
            Some(_) => {}
            None => panic!("the connection ended"),
        }
    };
    let authority = cdsync_transport::CertificateAuthority::load(&bed.data()).unwrap();
    let node = cdsync_transport::NodeIdentity::new(key, &certificate, authority.certificate_pem());
    let expected = PeerIdentity::agent(bed.fingerprint.cluster(), agent.server);
    assert_eq!(*node.unwrap().identity(), expected);
}
