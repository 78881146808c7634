//! Servers that are about to join.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CloseCode, CloseReason, ConnectError, FrameReader, FrameWriter,
    IdentityError, JoinToken, MemoryNetwork, NodeIdentity, NodeKey, PeerExpectation, PeerIdentity,
    QuicTransport, Role, SecretHash, Transport, enrol_connect,
};

use crate::world::{CLIENT, Cluster, SERVER, accept_one, bind, noise, quick, within};

/// Proves the whole way: a token, a request with secret and signing request, a certificate, and
/// then a connection as a member.
#[tokio::test]
async fn a_server_joins_with_its_token() {
    let cluster = Cluster::new();
    let master = bind(cluster.master(SERVER), quick().accept_joins(true));
    let addr = master.local_addr().to_string();
    let text = JoinToken::create(&addr, cluster.ca.fingerprint())
        .unwrap()
        .to_text();
    let token: JoinToken = text.parse().unwrap();
    let stored: SecretHash = token.secret().hash();

    let serving = async {
        let connection = accept_one(&*master).await;
        assert_eq!(connection.peer().role, Role::Joining);
        let (send, recv) = connection.accept().await.unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv));
        let request = reader.next().await.unwrap().unwrap().payload;
        let secret = cdsync_transport::JoinSecret::from_bytes(request[..32].try_into().unwrap());
        assert_eq!(secret.hash(), stored);
        let identity = PeerIdentity::agent(cluster.ca.cluster(), CLIENT);
        let certificate = cluster
            .ca
            .issue(&request[32..], &identity, CERTIFICATE_VALIDITY);
        writer
            .write(2, &[certificate.unwrap().into()])
            .await
            .unwrap();
        writer.finish().await.unwrap();
        connection.closed().await
    };
    let joining = async {
        let connection = enrol_connect(token.addr(), token.fingerprint())
            .await
            .unwrap();
        assert_eq!(connection.peer().role, Role::Master);
        let (send, recv) = connection.open().await.unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv));
        let key = NodeKey::generate().unwrap();
        let secret = Bytes::copy_from_slice(token.secret().as_bytes());
        let request = Bytes::from(key.signing_request().unwrap());
        writer.write(1, &[secret, request]).await.unwrap();
        writer.finish().await.unwrap();
        let certificate = reader.next().await.unwrap().unwrap().payload;
        connection.close(CloseCode::DONE, "");
        let certificate = str::from_utf8(&certificate).unwrap();
        NodeIdentity::new(key, certificate, cluster.ca.certificate_pem()).unwrap()
    };
    let (reason, node) = within(async { tokio::join!(serving, joining) }).await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::DONE,
                ..
            }
        ),
        "{reason:?}"
    );
    assert_eq!(node.ca_fingerprint(), token.fingerprint());

    let member = bind(node, quick());
    let connection = within(member.connect(&addr, &PeerExpectation::any_master()))
        .await
        .unwrap();
    assert_eq!(connection.peer().server, SERVER);
    assert_eq!(accept_one(&*master).await.peer().server, CLIENT);
}

/// Proves that a joining server refuses a master that is not its token's, one that only claims to be
/// of that authority, and an agent in the master's place.
#[tokio::test]
async fn a_wrong_master_is_refused_by_the_joiner() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let config = || quick().accept_joins(true);
    let stranger = bind(theirs.master(SERVER), config());
    let addr = stranger.local_addr().to_string();
    let error = within(enrol_connect(&addr, ours.ca.fingerprint()))
        .await
        .unwrap_err();
    let ConnectError::Identity {
        source: IdentityError::WrongAuthority,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    let agent = bind(ours.agent(ServerId(0xc)), config());
    let addr = agent.local_addr().to_string();
    let error = within(enrol_connect(&addr, ours.ca.fingerprint()))
        .await
        .unwrap_err();
    let ConnectError::Identity {
        source: IdentityError::WrongRole { .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
}

/// Proves that a joining server that says nothing is cut, and that members get in meanwhile.
#[tokio::test]
async fn an_idle_joiner_is_cut() {
    let cluster = Cluster::new();
    let life = Duration::from_millis(500);
    let config = quick().accept_joins(true).join_deadline(life);
    let master = bind(cluster.master(SERVER), config);
    let addr = master.local_addr().to_string();
    let begun = Instant::now();
    let joiner = within(enrol_connect(&addr, cluster.ca.fingerprint()))
        .await
        .unwrap();
    let held = accept_one(&*master).await;
    let member = bind(cluster.agent(CLIENT), quick());
    let _connection = within(member.connect(&addr, &PeerExpectation::any_master()))
        .await
        .unwrap();
    assert_eq!(accept_one(&*master).await.peer().role, Role::Agent);
    let reason = within(joiner.closed()).await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::DEADLINE,
                ..
            }
        ),
        "{reason:?}"
    );
    assert!(begun.elapsed() >= life);
    assert_eq!(within(held.closed()).await, CloseReason::Local);
}

/// Proves that a joining server gets one stream and 64 KiB, whether the master reads or not.
#[tokio::test]
async fn a_talkative_joiner_is_cut() {
    let cluster = Cluster::new();
    let master = bind(cluster.master(SERVER), quick().accept_joins(true));
    let addr = master.local_addr().to_string();
    let joiner = within(enrol_connect(&addr, cluster.ca.fingerprint()))
        .await
        .unwrap();
    let accepted = accept_one(&*master).await;
    let (mut send, _recv) = joiner.open().await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(200), joiner.open()).await;
    assert!(second.is_err(), "a second stream was allowed");
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while send.send(&mut [noise(8 << 10, 1)]).await.is_ok() {
            sent += 8;
        }
        sent
    });
    let (_send, mut recv) = within(accepted.accept()).await.unwrap();
    let mut received = 0;
    while let Ok(Some(piece)) = within(recv.recv()).await {
        received += piece.len();
    }
    assert!(received <= 64 << 10, "{received} bytes were taken");
    let reason = within(joiner.closed()).await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::LIMIT,
                ..
            }
        ),
        "{reason:?}"
    );
    sending.await.unwrap();
}

/// Proves that no more than 64 servers join at once, and half of them from one address; the next is
/// told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joiners_are_counted() {
    let cluster = Cluster::new();
    let config = quick().accept_joins(true);
    let Ok(master) = QuicTransport::bind("[::]:0".parse().unwrap(), cluster.master(SERVER), config)
    else {
        eprintln!("SKIPPED: no IPv6 on this machine, and so no second address");
        return;
    };
    let port = master.local_addr().port();
    let mut joiners = Vec::new();
    for host in ["127.0.0.1", "[::1]"] {
        let addr = format!("{host}:{port}");
        for _ in 0..32 {
            let joining = enrol_connect(&addr, cluster.ca.fingerprint());
            joiners.push(within(joining).await.unwrap());
        }
        refused_as_busy(&addr, &cluster).await;
    }
    assert_eq!(joiners.len(), 64);
}

async fn refused_as_busy(addr: &str, cluster: &Cluster) {
    let error = within(enrol_connect(addr, cluster.ca.fingerprint()))
        .await
        .unwrap_err();
    let ConnectError::Refused {
        source: CloseReason::Peer {
            code: CloseCode::BUSY,
            ..
        },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
}

/// Proves that the in-memory network tells joining servers and agents apart as QUIC does.
#[tokio::test]
async fn joining_in_memory() {
    let network = MemoryNetwork::new();
    let cluster = cdsync_transport::ClusterId(1);
    let master = network.endpoint("master:1", PeerIdentity::master(cluster, SERVER));
    let _agent = network.endpoint("agent:1", PeerIdentity::agent(cluster, CLIENT));
    let joiner = network.join("new:1", "master:1").unwrap();
    assert_eq!(joiner.peer().role, Role::Master);
    assert_eq!(accept_one(&*master).await.peer().role, Role::Joining);
    let error = network.join("new:1", "agent:1").unwrap_err();
    assert!(matches!(error, ConnectError::Identity { .. }), "{error:?}");
}
