//! Somebody else at the master's address, towards the agents.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::wire::{
    AgentMessage, CONTROL_MAX_BYTES, MasterMessage, Orders, Signed, SigningKey, decode, encode,
    kind,
};
use cdsync_tests::{Cluster, wait_until};
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, FrameReader, FrameWriter, NodeIdentity,
    PeerIdentity, QuicConfig, QuicTransport, Transport,
};

use super::assert_bounded;
use crate::member::{kept_orders, runtime, server_id};

const PATIENCE: Duration = Duration::from_secs(60);

/// Who listens at the master's address, with an identity of its own.
struct Impostor {
    runtime: tokio::runtime::Runtime,
    transport: Arc<QuicTransport>,
    /// How many agents said hello.
    greeted: Arc<AtomicUsize>,
}

impl Impostor {
    /// Says the same to every agent that says hello.
    fn new(cluster: &Cluster, identity: NodeIdentity, says: Vec<MasterMessage>) -> Self {
        let runtime = runtime();
        let address = cluster.address(1, 7400).parse().unwrap();
        let mut bound = None;
        // Who had the address before may take a moment to leave it.
        wait_until(PATIENCE, "the master's address is free", || {
            let identity = identity.clone();
            bound = runtime.block_on(async {
                QuicTransport::bind(address, identity, QuicConfig::default()).ok()
            });
            bound.is_some()
        });
        let transport = Arc::new(bound.unwrap());
        let greeted = Arc::new(AtomicUsize::new(0));
        let says = Arc::new(says);
        let accepting = accept(Arc::clone(&transport), Arc::clone(&greeted), says);
        runtime.spawn(accepting);
        Self {
            runtime,
            transport,
            greeted,
        }
    }

    fn end(self) {
        self.runtime.block_on(self.transport.close());
    }
}

async fn accept(
    transport: Arc<QuicTransport>,
    greeted: Arc<AtomicUsize>,
    says: Arc<Vec<MasterMessage>>,
) {
    while let Some(connection) = transport.accept().await {
        let (greeted, says) = (Arc::clone(&greeted), Arc::clone(&says));
        tokio::spawn(async move {
            let Ok((send, recv)) = connection.accept().await else {
                return;
            };
            let mut reader = FrameReader::new(recv).with_max_payload(CONTROL_MAX_BYTES);
            let mut writer = FrameWriter::new(send).with_max_payload(CONTROL_MAX_BYTES);
            let mut said = false;
            while let Ok(Some(frame)) = reader.next().await {
                let hello = matches!(decode(&frame.payload), Ok(AgentMessage::Hello(_)));
                greeted.fetch_add(usize::from(hello), Ordering::Relaxed);
                for message in says.iter().filter(|_| !said) {
                    let body = Bytes::from(encode(message));
                    if writer.write(kind::CONTROL, &[body]).await.is_err() {
                        return;
                    }
                }
                said = true;
            }
        });
    }
}

/// The signed orders that an agent keeps, as they are.
fn signed(cluster: &Cluster, name: &str) -> Signed {
    decode(&fs::read(cluster.data(name).join("orders")).unwrap()).unwrap()
}

/// Proves that agents obey no one but their master, and nothing of its that is past: not another
/// server of the cluster or a stranger at the master's address, to whom they do not even say hello;
/// not, from whoever has stolen the master's certificate but not its key for orders, orders from
/// before, of another server, bent ones, or ones that somebody else signed. What runs goes on
/// meanwhile, and the master is obeyed as soon as it is back.
#[test]
fn impostors_are_not_obeyed() {
    let mut cluster = Cluster::start();
    let [source, edge] = ["source", "edge"].map(|name| cluster.space.folder(name));
    let plain = cluster.space.plain_folder("nowhere");
    fs::write(source.join("file"), "content").unwrap();
    cluster.agent("origin", &source);
    cluster.agent_in("edge", "eu/one", &[&edge]);
    let _address = cluster.member("evil", &plain);
    cluster.job("site", ("origin", &source), &[("edge", &edge)]);
    cluster.wait("site");
    // Orders that were good once: while the job was paused.
    cluster.cdsync(["job", "pause", "site"]).expect(0);
    let paused = |cluster: &Cluster, name: &str| kept_orders(cluster, name).jobs[0].paused;
    wait_until(PATIENCE, "the pause is obeyed", || {
        paused(&cluster, "origin") && paused(&cluster, "edge")
    });
    let [old_origin, old_edge] = ["origin", "edge"].map(|name| signed(&cluster, name));
    cluster.cdsync(["job", "resume", "site"]).expect(0);
    wait_until(PATIENCE, "the job goes on", || {
        !paused(&cluster, "origin") && !paused(&cluster, "edge")
    });
    cluster.wait("site");
    let kept = ["origin", "edge"].map(|name| kept_orders(&cluster, name).epoch);
    let still = |cluster: &Cluster| ["origin", "edge"].map(|name| kept_orders(cluster, name).epoch);

    cluster.stop("master");
    let evil = NodeIdentity::load(cluster.data("evil")).unwrap();
    let master = NodeIdentity::load(&cluster.data("master").join("node")).unwrap();
    let stranger = {
        let authority = CertificateAuthority::create().unwrap();
        let own = PeerIdentity::master(authority.cluster(), server_id(&cluster, "edge"));
        authority.issue_local(&own, CERTIFICATE_VALIDITY).unwrap()
    };
    for (who, identity) in [("a server of the cluster", evil), ("a stranger", stranger)] {
        let said = |cluster: &Cluster, name: &str| {
            let log = cluster.log(name);
            log.matches("the master is not reached").count()
        };
        let before = ["origin", "edge"].map(|name| said(&cluster, name));
        let impostor = Impostor::new(&cluster, identity, Vec::new());
        // Each of them has tried at least once more from beginning to end.
        wait_until(PATIENCE, who, || {
            let now = ["origin", "edge"].map(|name| said(&cluster, name));
            now.iter()
                .zip(before)
                .all(|(now, before)| *now >= before + 2)
        });
        let greeted = impostor.greeted.load(Ordering::Relaxed);
        assert_eq!(greeted, 0, "{who} is greeted");
        impostor.end();
    }

    let mut bent = encode(&signed(&cluster, "edge"));
    let at = bent.len() - 1;
    bent[at] ^= 1;
    let bent: Signed = decode(&bent).unwrap();
    let mut orders: Orders = kept_orders(&cluster, "edge");
    orders.epoch.term += 7;
    orders.jobs.iter_mut().for_each(|job| job.paused = true);
    let forged = SigningKey::from_seed(&[7; 32]).sign(&orders);
    let messages = [old_origin, old_edge, bent, forged].map(MasterMessage::Orders);
    let refusals = |name: &str| cluster.log(name).matches("orders are not followed").count();
    let before = ["origin", "edge"].map(refusals);
    let impostor = Impostor::new(&cluster, master, messages.to_vec());
    for (name, before) in ["origin", "edge"].into_iter().zip(before) {
        wait_until(PATIENCE, "each of the orders is refused", || {
            refusals(name) >= before + messages.len()
        });
    }
    assert_eq!(still(&cluster), kept);
    fs::write(source.join("meanwhile"), "it goes on").unwrap();
    wait_until(PATIENCE, "what runs goes on", || {
        fs::read(edge.join("meanwhile")).is_ok_and(|found| found == b"it goes on")
    });
    impostor.end();

    cluster.up("master");
    cluster.cdsync(["job", "pause", "site"]).expect(0);
    wait_until(PATIENCE, "the master is obeyed", || {
        paused(&cluster, "origin") && paused(&cluster, "edge")
    });
    cluster.cdsync(["job", "resume", "site"]).expect(0);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &edge);
    assert_bounded(&mut cluster, &["origin", "edge", "master"]);
}
