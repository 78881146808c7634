//! The test bed: a master that can be stopped and started, and scripted agents.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use cdsync_core::ids::{JobId, OriginId, ServerId};
use cdsync_core::ledger::object::Seq;
use cdsync_core::time::WallMillis;
use cdsync_core::wire::{
    AgentMessage, DriftReport, Epoch, Hello, JoinReply, JoinRequest, LossReport, MasterMessage,
    Orders, Report, Signed, SourceReport, SourceState, TargetReport, TargetState, TrashReport,
    VerifyingKey, decode, encode, kind,
};
use cdsync_transport::{
    CaFingerprint, CertificateAuthority, Connection, FrameReader, FrameWriter, JoinToken,
    MemoryNetwork, NodeKey, PeerExpectation, PeerIdentity, Transport,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::shared::Shared;
use crate::{Master, MasterConfig};

/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must happen.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it happens in time")
}

pub(super) struct Bed {
    folder: TempDir,
    pub(super) network: MemoryNetwork,
    pub(super) fingerprint: CaFingerprint,
    pub(super) token: String,
    running: Option<Running>,
}

struct Running {
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Bed {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = MasterConfig {
            http: "127.0.0.1:0".parse().unwrap(),
            advertise: Some("master:7400".into()),
            ..MasterConfig::default()
        };
        let data = folder.path().join("m");
        let made = Master::init(&data, config).unwrap();
        let token = fs::read_to_string(made.owner_token)
            .unwrap()
            .trim()
            .to_owned();
        let network = MemoryNetwork::new();
        let mut bed = Self {
            folder,
            network,
            fingerprint: made.fingerprint,
            token,
            running: None,
        };
        bed.start().await;
        bed
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("m")
    }

    pub(super) async fn start(&mut self) {
        let identity = PeerIdentity::master(self.fingerprint.cluster(), ServerId(1));
        let transport = self.network.endpoint("master:7400", identity);
        let master = Master::open_over(&self.data(), transport).await.unwrap();
        let shared = master.shared();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(master.run(async {
            let _ = stopped.await;
        }));
        self.running = Some(Running { shared, stop, task });
    }

    pub(super) async fn stop(&mut self) {
        let Running { shared, stop, task } = self.running.take().unwrap();
        stop.send(()).unwrap();
        soon(task).await.unwrap();
        // The store is open as long as somebody holds it.
        drop(shared);
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.running.as_ref().unwrap().shared
    }

    /// One call of the API, with these headers.
    pub(super) async fn call_as(
        &self,
        authorization: Option<&str>,
        method: Method,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"));
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let router = crate::api::router(self.shared());
        let response = soon(router.oneshot(request)).await.unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    /// One call of the API as the owner.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let bearer = format!("Bearer {}", self.token);
        self.call_as(Some(&bearer), method, path, body).await
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(Method::GET, path, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.call(Method::POST, path, body).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    /// Asks until the answer is as wanted.
    pub(super) async fn until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        soon(async {
            loop {
                let value = self.get(path).await;
                if good(&value) {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    pub(super) async fn join_token(&self, name: &str, group: &str) -> JoinToken {
        let body = json!({ "name": name, "group": group, "ttl_ms": 60_000 });
        let made = self.post("/tokens", body).await;
        made["token"].as_str().unwrap().parse().unwrap()
    }

    /// Shows a secret to the master.
    pub(super) async fn show(&self, secret: Vec<u8>, csr: String) -> JoinReply {
        let connection = self.network.join("newcomer", "master:7400").unwrap();
        let (send, receive) = connection.open().await.unwrap();
        let request = JoinRequest {
            secret,
            csr,
            address: "newcomer:7410".into(),
            program: "test".into(),
        };
        let mut writer = FrameWriter::new(send);
        writer
            .write(kind::CONTROL, &[Bytes::from(encode(&request))])
            .await
            .unwrap();
        let mut reader = FrameReader::new(receive);
        let frame = soon(reader.next()).await.unwrap().unwrap();
        decode(&frame.payload).unwrap()
    }

    /// A joined and connected agent.
    pub(super) async fn agent(&self, name: &str, group: &str) -> Agent {
        let token = self.join_token(name, group).await;
        let reply = self
            .show(token.secret().as_bytes().to_vec(), request())
            .await;
        let JoinReply::Welcome {
            server,
            orders_key,
            authority,
            ..
        } = reply
        else {
            panic!("{reply:?}");
        };
        assert_eq!(
            authority,
            CertificateAuthority::load(&self.data())
                .unwrap()
                .certificate_pem()
        );
        self.connect(name, server, orders_key).await
    }

    pub(super) async fn connect(
        &self,
        name: &str,
        server: ServerId,
        orders_key: VerifyingKey,
    ) -> Agent {
        self.connect_showing(name, server, orders_key, Signed::default())
            .await
    }

    /// As [`Bed::connect`], by an agent that obeys orders of this standing.
    pub(super) async fn connect_showing(
        &self,
        name: &str,
        server: ServerId,
        orders_key: VerifyingKey,
        standing: Signed,
    ) -> Agent {
        let mut agent = self.dial(name, server, orders_key).await;
        let hello = Hello {
            standing,
            ..hello(name)
        };
        agent.send(&AgentMessage::Hello(hello)).await;
        assert!(matches!(
            agent.next().await,
            Some(MasterMessage::Welcome { .. })
        ));
        agent
    }

    /// A copy of the master's folder, which must not run.
    pub(super) fn copy(&self) -> TempDir {
        let copy = TempDir::new().unwrap();
        copy_files(&self.data(), copy.path());
        copy
    }

    /// Puts a copy in the place of what is there now.
    pub(super) fn restore(&self, copy: &TempDir) {
        copy_files(copy.path(), &self.data());
    }

    pub(super) async fn dial(
        &self,
        name: &str,
        server: ServerId,
        orders_key: VerifyingKey,
    ) -> Agent {
        let identity = PeerIdentity::agent(self.fingerprint.cluster(), server);
        let transport: Arc<dyn Transport> = self.network.endpoint(name, identity);
        let expect = PeerExpectation::any_master();
        let connection = transport.connect("master:7400", &expect).await.unwrap();
        let (send, receive) = connection.open().await.unwrap();
        let (writer, reader) = (FrameWriter::new(send), FrameReader::new(receive));
        Agent {
            server,
            orders_key,
            connection,
            writer,
            reader,
            epoch: Epoch::default(),
            _transport: transport,
        }
    }
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_files(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A signing request of a fresh key, PEM.
pub(super) fn request() -> String {
    use base64::Engine;
    let der = NodeKey::generate().unwrap().signing_request().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

pub(super) fn hello(name: &str) -> Hello {
    Hello {
        program: "test".into(),
        address: format!("{name}:7410"),
        roots: vec!["/srv".into()],
        standing: Signed::default(),
        watching: "fanotify".into(),
    }
}

/// An agent that does what its test says.
pub(super) struct Agent {
    pub(super) server: ServerId,
    pub(super) orders_key: VerifyingKey,
    pub(super) connection: Arc<dyn Connection>,
    pub(super) writer: FrameWriter,
    reader: FrameReader,
    /// Of the newest orders that it saw.
    pub(super) epoch: Epoch,
    /// Dropping it would close the connection.
    _transport: Arc<dyn Transport>,
}

pub(super) const ORIGIN: OriginId = OriginId(77);

impl Agent {
    pub(super) async fn send(&mut self, message: &AgentMessage) {
        let body = Bytes::from(encode(message));
        self.writer.write(kind::CONTROL, &[body]).await.unwrap();
    }

    /// The next message; `None` when the connection is over.
    pub(super) async fn next(&mut self) -> Option<MasterMessage> {
        let frame = soon(self.reader.next()).await.ok()??;
        Some(decode(&frame.payload).unwrap())
    }

    fn open(&mut self, signed: &Signed) -> Orders {
        let orders: Orders = signed.verify(&self.orders_key).unwrap();
        assert_eq!(orders.server, self.server);
        assert!(orders.epoch >= self.epoch, "orders never step back");
        self.epoch = orders.epoch;
        orders
    }

    /// The next orders that are as wanted.
    pub(super) async fn orders(&mut self, good: impl Fn(&Orders) -> bool) -> Orders {
        loop {
            let message = self.next().await.expect("the connection lasts");
            if let MasterMessage::Orders(signed) = message {
                let orders = self.open(&signed);
                if good(&orders) {
                    return orders;
                }
            }
        }
    }

    pub(super) async fn report(
        &mut self,
        job: JobId,
        source: Option<SourceReport>,
        target: Option<TargetReport>,
    ) {
        let jobs = vec![cdsync_core::wire::JobReport {
            job,
            source,
            target,
        }];
        self.send(&AgentMessage::Report(Report {
            epoch: self.epoch,
            jobs,
        }))
        .await;
    }
}

pub(super) fn source(head: u64) -> Option<SourceReport> {
    Some(SourceReport {
        state: SourceState::Watching,
        origin: ORIGIN,
        head: Seq(head),
        run_done: (0, Seq(0)),
        resume: 0,
        ..SourceReport::default()
    })
}

pub(super) fn target(state: TargetState, claim: u64) -> TargetReport {
    TargetReport {
        state,
        upstream: None,
        resume: 0,
        origin: ORIGIN,
        claim: Seq(claim),
        head: Seq(claim),
        pending_bytes: 0,
        oldest_pending_ms: 0,
        parked_count: 0,
        parked: Vec::new(),
        preview: None,
        last_error: None,
        trash: TrashReport::default(),
        drift: DriftReport::default(),
        losses: LossReport::default(),
    }
}

/// The body of a job with one source and one target.
pub(super) fn job(name: &str, adopt: bool, wait_ms: u64) -> Value {
    json!({
        "job": {
            "name": name, "mode": "realtime",
            "source": ["origin:/srv/www"], "target": ["edge:/srv/www"],
        },
        "adopt": adopt, "wait_ms": wait_ms,
    })
}

pub(super) const fn at(ms: u64) -> WallMillis {
    WallMillis(ms)
}
