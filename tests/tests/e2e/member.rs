//! A server of the cluster that the test plays itself: it has joined as every server does, and
//! speaks the real transport with its own certificate.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_core::wire::{
    AgentMessage, Answer, CONTROL_MAX_BYTES, Hello, JobOrder, MasterMessage, Orders, PeerMessage,
    Report, Signed, VerifyingKey, decode, encode, kind,
};
use cdsync_tests::{Cluster, wait_until};
use cdsync_transport::{
    AutoTransport, Connection, DialOver, FrameError, FrameReader, FrameWriter, NodeIdentity,
    PeerExpectation, QuicConfig, Transport,
};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// How long the master may take to send orders.
const SECONDS: Duration = Duration::from_secs(30);

/// What is said to the master of a member may wait in a queue of so many.
const SAID: usize = 16;

/// A runtime for what a test does by itself.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// The id of a server that has joined.
pub(crate) fn server_id(cluster: &Cluster, name: &str) -> ServerId {
    let identity = NodeIdentity::load(cluster.data(name)).unwrap();
    identity.identity().server
}

/// The orders that are in a signed message for an agent.
pub(crate) fn verified(cluster: &Cluster, name: &str, signed: &Signed) -> Orders {
    let text = fs::read_to_string(cluster.data(name).join("agent.toml")).unwrap();
    let file: toml::Table = toml::from_str(&text).unwrap();
    let hex = file["orders_key"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    let key = VerifyingKey(std::array::from_fn(byte));
    signed.verify(&key).unwrap()
}

/// The orders that an agent keeps.
pub(crate) fn kept_orders(cluster: &Cluster, name: &str) -> Orders {
    let signed: Signed = decode(&fs::read(cluster.data(name).join("orders")).unwrap()).unwrap();
    verified(cluster, name, &signed)
}

/// The grant of a target's order.
pub(crate) fn grant(order: &JobOrder) -> Signed {
    order.target.as_ref().unwrap().grant.clone()
}

/// Says something on a stream between agents.
pub(crate) async fn say(writer: &mut FrameWriter, message: &PeerMessage) -> Result<(), FrameError> {
    let body = Bytes::from(encode(message));
    writer.write(kind::MESSAGE, &[body]).await
}

/// The next message on a stream between agents.
pub(crate) async fn hear(reader: &mut FrameReader) -> Option<PeerMessage> {
    let frame = reader.next().await.ok()??;
    decode(&frame.payload).ok()
}

/// A member whose agent is the test.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) transport: Arc<AutoTransport>,
    pub(crate) runtime: Runtime,
    orders: watch::Receiver<Option<Signed>>,
    said: mpsc::Sender<AgentMessage>,
    /// What it answers to whatever it is asked.
    pub(crate) answer: Arc<Mutex<Result<Answer, String>>>,
}

impl Member {
    /// Takes the place of a server that [`Cluster::member`] has joined, and says hello.
    pub(crate) fn new(cluster: &Cluster, name: &str, address: &str, roots: Vec<String>) -> Self {
        let runtime = runtime();
        let identity = NodeIdentity::load(cluster.data(name)).unwrap();
        let transport = runtime.block_on(async {
            let listen = address.parse().unwrap();
            let config = QuicConfig::default();
            AutoTransport::bind(listen, identity, config, DialOver::Auto).unwrap()
        });
        let transport = Arc::new(transport);
        let hello = Hello {
            program: "evil".to_owned(),
            address: address.to_owned(),
            roots,
            standing: Signed::default(),
            watching: "fanotify".to_owned(),
        };
        let (told, orders) = watch::channel(None);
        let (said, to_say) = mpsc::channel(SAID);
        let master = cluster.address(1, 7400);
        let answer = Arc::new(Mutex::new(Err("no".to_owned())));
        let talking = Talking {
            hello,
            orders: told,
            said: to_say,
            answer: Arc::clone(&answer),
        };
        runtime.spawn(talk(Arc::clone(&transport), master, talking));
        let member = Self {
            name: name.to_owned(),
            transport,
            runtime,
            orders,
            said,
            answer,
        };
        wait_until(SECONDS, "the master knows the member", || {
            cluster.server_state(name).as_deref() == Some("connected")
        });
        member
    }

    /// Says something to the master.
    pub(crate) fn say(&self, message: AgentMessage) {
        self.said.blocking_send(message).unwrap();
    }

    /// Reports something.
    pub(crate) fn report(&self, report: Report) {
        self.say(AgentMessage::Report(report));
    }

    /// The order of a job, once it is there.
    pub(crate) fn order(&self, cluster: &Cluster, job: &str) -> (Orders, JobOrder) {
        let mut found = None;
        wait_until(SECONDS, "the orders are there", || {
            let signed = self.orders.borrow().clone();
            let orders = signed.map(|signed| verified(cluster, &self.name, &signed));
            found = orders.and_then(|orders| {
                let order = orders
                    .jobs
                    .iter()
                    .find(|order| order.name.as_str() == job)?;
                let order = order.clone();
                Some((orders, order))
            });
            found.is_some()
        });
        found.unwrap()
    }

    /// A connection to an agent of the cluster.
    pub(crate) fn dial(&self, address: &str, server: ServerId) -> Arc<dyn Connection> {
        let expected = PeerExpectation::agent(server);
        let dialled = self.transport.connect(address, &expected);
        self.runtime.block_on(dialled).unwrap()
    }
}

struct Talking {
    hello: Hello,
    orders: watch::Sender<Option<Signed>>,
    said: mpsc::Receiver<AgentMessage>,
    answer: Arc<Mutex<Result<Answer, String>>>,
}

/// Keeps the control stream, until the master ends it.
async fn talk(transport: Arc<AutoTransport>, master: String, mut with: Talking) {
    let expected = PeerExpectation::any_master();
    // An error: the test has ended.
    let Ok(connection) = transport.quic().connect(&master, &expected).await else {
        return;
    };
    let Ok((send, recv)) = connection.open().await else {
        return;
    };
    let mut writer = FrameWriter::new(send).with_max_payload(CONTROL_MAX_BYTES);
    let mut reader = FrameReader::new(recv).with_max_payload(CONTROL_MAX_BYTES);
    let mut next = Some(AgentMessage::Hello(with.hello));
    loop {
        if let Some(message) = next.take() {
            let body = Bytes::from(encode(&message));
            if writer.write(kind::CONTROL, &[body]).await.is_err() {
                return;
            }
        }
        tokio::select! {
            message = with.said.recv() => match message {
                Some(message) => next = Some(message),
                None => return,
            },
            frame = reader.next() => {
                let Ok(Some(frame)) = frame else { return };
                match decode(&frame.payload) {
                    Ok(MasterMessage::Orders(signed)) => {
                        drop(with.orders.send_replace(Some(signed)));
                    }
                    Ok(MasterMessage::Ask { id, .. }) => {
                        let answer = with.answer.lock().unwrap().clone();
                        next = Some(AgentMessage::Answer { id, answer });
                    }
                    _ => {}
                }
            }
        }
    }
}
