//! Who may join, and who may have what.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::{JobId, ServerId};
use cdsync_core::wire::{PeerMessage, RefusedWhy, Signed, Subscribe, kind};
use cdsync_tests::{Cluster, Random, job_file, seed, wait_until};
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, Connection, FrameReader, FrameWriter, NodeIdentity,
    PeerExpectation, PeerIdentity, QuicConfig, QuicTransport, Transport as _, enrol_connect,
};

use crate::member::{grant, hear, kept_orders, runtime, say, server_id};

/// A source and two targets with a job, and the address of the source's agent.
fn start() -> (Cluster, PathBuf, [PathBuf; 2]) {
    let mut cluster = Cluster::start();
    let [source, one, two] = ["source", "one", "two"].map(|name| cluster.space.folder(name));
    fs::write(source.join("file"), "content").unwrap();
    cluster.agent("origin", &source);
    cluster.agent("edge-1", &one);
    cluster.agent("edge-2", &two);
    cluster.job("site", ("origin", &source), &[("edge-1", &one)]);
    cluster.job("other", ("origin", &source), &[("edge-2", &two)]);
    for job in ["site", "other"] {
        cluster.wait(job);
    }
    (cluster, source, [one, two])
}

/// Proves that a token is good once, for its time, and only as it was made.
#[test]
fn tokens_are_good_once() {
    let mut cluster = Cluster::start();
    let root = cluster.space.plain_folder("root");
    let join = |name: &str, token: &str| {
        let data = cluster.space.path().join(name);
        let data = data.to_str().unwrap();
        let args = ["agent", "join", "--data", data, "--token", token, "--root"];
        let listen = cluster.agent_address(9);
        cluster.cdsync(
            args.into_iter()
                .chain([root.to_str().unwrap(), "--listen", &listen]),
        )
    };
    let token = cluster.token("first", "eu/one");
    let mut bent = token.clone().into_bytes();
    let at = bent.len() - 8;
    bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
    let bent = String::from_utf8(bent).unwrap();
    let code = join("bent", &bent).code;
    assert!(code == 2 || code == 4, "{code}");
    join("cut", &token[..token.len() / 2]).expect(2);
    join("first", &token).expect(0);
    let said = join("again", &token).expect(4);
    assert!(said.err.contains("refuses"), "{}", said.err);
    let made = [
        "master", "token", "--name", "late", "--group", "eu/one", "--ttl", "1s",
    ];
    let token = cluster.cdsync(made).expect(0).out.trim().to_owned();
    // Nothing but time makes a token old.
    std::thread::sleep(Duration::from_millis(1_500));
    join("late", &token).expect(4);
    let taken = cluster.cdsync(["master", "token", "--name", "first", "--group", "eu/one"]);
    assert_eq!(taken.code, 1, "a name is taken once: {}", taken.err);
    let servers = cluster.json("server list");
    assert_eq!(servers.as_array().unwrap().len(), 1);
    assert_eq!(servers[0]["name"], "first");
}

/// Proves that an agent uses no root that its own operator did not allow, whatever the master says,
/// that this is told, and that a root can be taken back.
#[test]
fn roots_that_were_not_allowed_are_refused() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    let other = cluster.space.plain_folder("elsewhere");
    fs::write(source.join("file"), "content").unwrap();
    fs::write(other.join("mine"), "mine").unwrap();
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let apply = |cluster: &Cluster, source: &Path, target: &Path| {
        let text = job_file("site", ("origin", source), &[("edge", target)], "");
        cluster.apply(&text, &[])
    };
    for (source, target) in [(&source, &other), (&other, &target)] {
        let said = apply(&cluster, source, target).expect(1);
        assert!(said.err.contains("does not allow"), "{}", said.err);
        cluster.cdsync(["job", "status", "site"]).expect(1);
    }
    assert!(!target.join("mine").exists() && !other.join("file").exists());
    assert!(!other.join(".cdsync").exists());
    // The operator takes a root back from a job that runs.
    apply(&cluster, &source, &target).expect(0);
    cluster.wait("site");
    cluster.stop("edge");
    let file = cluster.data("edge").join("agent.toml");
    let text = fs::read_to_string(&file).unwrap();
    let (old, new) = (target.to_str().unwrap(), other.to_str().unwrap());
    fs::write(&file, text.replace(old, new)).unwrap();
    cluster.up("edge");
    fs::write(source.join("later"), "later").unwrap();
    wait_until(Duration::from_secs(20), "the refusal is told", || {
        let status = cluster.json("job status site");
        let why = &status["targets"][0]["last_error"];
        why.as_str().is_some_and(|why| why.contains("allowed"))
    });
    let said = cluster
        .cdsync(["job", "wait", "site", "--timeout", "2s"])
        .expect(1);
    assert!(said.err.contains("allowed"), "{}", said.err);
    assert!(!target.join("later").exists() && !other.join("later").exists());
}

/// A stranger's endpoint.
fn endpoint(cluster: &Cluster, identity: NodeIdentity) -> QuicTransport {
    let config = QuicConfig::default().handshake_deadline(Duration::from_secs(5));
    QuicTransport::bind(cluster.address(200, 0).parse().unwrap(), identity, config).unwrap()
}

/// What an agent answers to somebody who asks for a job.
async fn ask(connection: &Arc<dyn Connection>, job: JobId, grant: &Signed) -> PeerMessage {
    let (send, receive) = connection.open().await.unwrap();
    let subscribe = PeerMessage::Subscribe(Subscribe {
        job,
        grant: grant.clone(),
        cursor: None,
        preview: false,
    });
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    say(&mut writer, &subscribe).await.unwrap();
    hear(&mut reader).await.unwrap()
}

fn is_refused(answer: &PeerMessage) -> bool {
    matches!(
        answer,
        PeerMessage::Refused {
            why: RefusedWhy::Grant,
            ..
        }
    )
}

/// Proves that a server of the cluster gets a job from another one only with a grant for itself and
/// that job.
#[test]
fn an_agent_serves_only_what_a_grant_entitles_to() {
    let (mut cluster, source, [one, _]) = start();
    let [first, second] = ["edge-1", "edge-2"].map(|name| kept_orders(&cluster, name));
    let (first, second) = (&first.jobs[0], &second.jobs[0]);
    let origin = server_id(&cluster, "origin");
    // Its identity is used here now.
    cluster.stop("edge-2");
    let identity = NodeIdentity::load(cluster.data("edge-2")).unwrap();
    runtime().block_on(async {
        let us = endpoint(&cluster, identity);
        let address = cluster.agent_address(2);
        let expected = PeerExpectation::agent(origin);
        let connection = us.connect(&address, &expected).await.unwrap();
        let none = ask(&connection, first.job, &Signed::default()).await;
        assert!(is_refused(&none), "{none:?}");
        let stolen = ask(&connection, first.job, &grant(first)).await;
        assert!(is_refused(&stolen), "{stolen:?}");
        let widened = ask(&connection, first.job, &grant(second)).await;
        assert!(is_refused(&widened), "{widened:?}");
        let unknown = ask(&connection, JobId(1), &grant(second)).await;
        assert!(is_refused(&unknown), "{unknown:?}");
        let own = ask(&connection, second.job, &grant(second)).await;
        assert!(matches!(own, PeerMessage::Accepted(_)), "{own:?}");
        us.close().await;
    });
    fs::write(source.join("after"), "after").unwrap();
    cluster.wait("site");
    cluster.assert_equal("site", &source, &one);
    cluster.up("edge-2");
    cluster.wait("other");
}

/// Proves that strangers, noise and oversized frames at the ports of agents and master are refused,
/// and that everything goes on meanwhile.
#[test]
fn strangers_and_noise_do_not_disturb() {
    let seed = seed();
    let (mut cluster, source, [one, two]) = start();
    let origin = server_id(&cluster, "origin");
    let master = cluster.address(1, 7400);
    let ports = [
        master.clone(),
        cluster.agent_address(2),
        cluster.agent_address(3),
    ];
    noise(&ports, seed);
    fs::write(source.join("after-noise"), "1").unwrap();
    cluster.wait("site");
    cluster.stop("edge-2");
    let member = NodeIdentity::load(cluster.data("edge-2")).unwrap();
    runtime().block_on(async {
        // Without any certificate, as somebody who wants to join: agents take nobody in.
        let known = member.ca_fingerprint();
        assert!(enrol_connect(&ports[1], known).await.is_err());
        // Of another cluster.
        let foreign = foreign();
        assert!(
            enrol_connect(&ports[0], foreign.ca_fingerprint())
                .await
                .is_err()
        );
        let them = endpoint(&cluster, foreign);
        for port in &ports[1..] {
            assert!(
                them.connect(port, &PeerExpectation::agent(origin))
                    .await
                    .is_err()
            );
        }
        them.close().await;
        // A server of the cluster that sends nonsense.
        let us = endpoint(&cluster, member);
        for bytes in nonsense(seed) {
            let connection = us
                .connect(&ports[1], &PeerExpectation::agent(origin))
                .await
                .unwrap();
            spoil(&connection, bytes).await;
        }
        us.close().await;
    });
    cluster.up("edge-2");
    fs::write(source.join("at last"), "2").unwrap();
    for (job, target) in [("site", &one), ("other", &two)] {
        cluster.wait(job);
        cluster.assert_equal(job, &source, target);
    }
    for name in ["master", "origin", "edge-1", "edge-2"] {
        assert!(cluster.is_alive(name), "{name} ended");
        assert!(
            !cluster.log(name).contains("panicked"),
            "{}",
            cluster.log(name)
        );
    }
}

/// Random datagrams, some of which look like the beginning of a connection.
fn noise(ports: &[String], seed: u64) {
    let mut random = Random::new(seed);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..600 {
        let size = usize::try_from(1 + random.below(1_400)).unwrap();
        let mut bytes = random.bytes(size);
        if round % 3 == 0 {
            // A long header of QUIC version 1.
            let header = [0xC3, 0, 0, 0, 1, 8];
            let len = header.len().min(size);
            bytes[..len].copy_from_slice(&header[..len]);
            bytes.resize(1_200, 0);
        }
        for port in ports {
            let _ = socket.send_to(&bytes, port);
        }
    }
}

fn foreign() -> NodeIdentity {
    let authority = CertificateAuthority::create().unwrap();
    let own = PeerIdentity::agent(authority.cluster(), ServerId(1));
    authority.issue_local(&own, CERTIFICATE_VALIDITY).unwrap()
}

/// Beginnings of streams that are none.
fn nonsense(seed: u64) -> Vec<Bytes> {
    let mut random = Random::new(seed);
    let frame = |len: u32, kind: u8, payload: &[u8]| {
        Bytes::from([&len.to_le_bytes()[..], &[kind], payload].concat())
    };
    vec![
        frame(u32::MAX, kind::MESSAGE, &[0; 64]),
        frame(1 << 20, kind::MESSAGE, &vec![7; 1 << 20]),
        frame(4, kind::MESSAGE, &[1, 255, 255, 255]),
        frame(3, kind::BATCH, b"abc"),
        frame(3, 200, b"abc"),
        frame(0, kind::MESSAGE, b""),
        Bytes::from(random.bytes(5_000)),
    ]
}

/// Sends bytes; the peer ends the stream or the connection.
async fn spoil(connection: &Arc<dyn Connection>, bytes: Bytes) {
    let (mut send, mut receive) = connection.open().await.unwrap();
    // It may be closed before all is sent.
    let _ = send.send(&mut [bytes]).await;
    let _ = send.finish();
    let answered = tokio::time::timeout(Duration::from_secs(20), async {
        while let Ok(Some(_)) = receive.recv().await {}
    });
    answered.await.expect("the stream ends");
}
