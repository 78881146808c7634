//! Members that abuse lanes: more than their share, lanes that carry nothing, streams without end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdsync_core::ids::ServerId;
use cdsync_transport::{PeerExpectation, TcpTransport, Transport as _};

use crate::lanes::{Bare, WELCOME, connections_to, hello};
use crate::trust::bare::Shown;
use crate::world::{CLIENT, Cluster, SERVER, accept_one, bind_tcp, quick, within};

const ALPN: &[u8] = b"cdsync-tcp/1";
const CONTROL: u8 = 0;
const STREAMS: u8 = 1;
const DATA: u8 = 0;
const PING: u8 = 6;

/// Far beyond what is waited for here, and far below for ever.
const LONG: Duration = Duration::from_secs(20);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Lanes of one member, a connection each; those that were let in.
fn lanes_of(cluster: &Cluster, to: SocketAddr, member: u64, count: u8) -> Vec<Bare> {
    let lane = |id| {
        let shown = Some(Shown::agent(cluster, ServerId(member)));
        let mut lane = Bare::to(to, ALPN, shown);
        let id = id + 50 * member as u8;
        let welcomed = lane.exchange(&hello(id, CONTROL));
        matches!(welcomed, Ok(answer) if answer.first() == Some(&WELCOME)).then_some(lane)
    };
    (0..count).filter_map(lane).collect()
}

/// Proves that a member cannot have more than its share of lanes, nor all members more than there
/// are, that another gets in meanwhile, and that what was given back can be had again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_member_has_more_than_its_share_of_lanes() {
    let cluster = Arc::new(Cluster::new());
    let silence = Duration::from_secs(60);
    let config = quick().keep_alive(silence / 4, silence).max_lanes(16);
    let server: Arc<TcpTransport> = bind_tcp(cluster.agent(SERVER), config);
    let to = server.local_addr();
    let taking = Arc::clone(&server);
    let accepting = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(connection) = taking.accept().await {
            kept.push(connection);
        }
    });
    let evil = Arc::clone(&cluster);
    let first = blocking(move || lanes_of(&evil, to, 1, 12)).await;
    assert_eq!(first.len(), 4, "a quarter of sixteen");
    let client = bind_tcp(cluster.agent(CLIENT), quick());
    let expect = PeerExpectation::agent(SERVER);
    let addr = to.to_string();
    let other = within(client.connect(&addr, &expect)).await.unwrap();
    within(other.open()).await.unwrap();
    let evil = Arc::clone(&cluster);
    let more = blocking(move || {
        let all = (2..=4).flat_map(|member| lanes_of(&evil, to, member, 8));
        all.collect::<Vec<_>>()
    })
    .await;
    assert_eq!(first.len() + more.len() + 2, 16);
    assert_eq!(connections_to(to.port()), 16);
    drop(first);
    let again = async {
        let mut lanes = Vec::new();
        while lanes.is_empty() {
            let evil = Arc::clone(&cluster);
            lanes.extend(blocking(move || lanes_of(&evil, to, 5, 1)).await);
        }
    };
    within(again).await;
    accepting.abort();
}

/// A member's connection that shows signs of life until it is dropped.
struct Living {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Living {
    fn begin(cluster: &Cluster, to: SocketAddr, id: u8) -> Self {
        let mut control = Bare::to(to, ALPN, Some(Shown::agent(cluster, CLIENT)));
        assert_eq!(control.exchange(&hello(id, CONTROL)).unwrap()[0], WELCOME);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let ping = [PING, 0, 0, 0, 0, 0, 0, 0, 0];
                if control
                    .0
                    .write_all(&ping)
                    .and_then(|()| control.0.flush())
                    .is_err()
                {
                    break;
                }
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lane(cluster: &Cluster, to: SocketAddr, id: u8) -> Bare {
    let mut lane = Bare::to(to, ALPN, Some(Shown::agent(cluster, CLIENT)));
    lane.0.sock.set_read_timeout(Some(LONG)).unwrap();
    lane.0.sock.set_write_timeout(Some(LONG)).unwrap();
    lane.0.write_all(&hello(id, STREAMS)).unwrap();
    lane.0.flush().unwrap();
    lane
}

/// Proves that a lane on which no stream is ever begun is closed, also when a part of one came, while
/// its connection lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_carry_nothing_are_closed() {
    let cluster = Arc::new(Cluster::new());
    let config = quick().keep_alive(Duration::from_millis(100), Duration::from_millis(400));
    let server = bind_tcp(cluster.agent(SERVER), config);
    let to = server.local_addr();
    let evil = Arc::clone(&cluster);
    let (living, mut idle, mut partial) = blocking(move || {
        let living = Living::begin(&evil, to, 1);
        (living, lane(&evil, to, 1), lane(&evil, to, 1))
    })
    .await;
    let accepted = accept_one(&*server).await;
    let ended = blocking(move || {
        // The header of a record, and no more of it.
        partial.0.sock.write_all(&[23, 3, 3, 1, 0]).unwrap();
        [&mut idle, &mut partial].map(|lane| lane.0.read(&mut [0; 100]))
    })
    .await;
    for end in ended {
        let waited = |e: &std::io::Error| e.kind() == ErrorKind::WouldBlock;
        assert!(!end.as_ref().is_err_and(waited), "{end:?}");
    }
    let lives = tokio::time::timeout(Duration::from_millis(10), accepted.closed()).await;
    assert!(lives.is_err(), "{lives:?}");
    blocking(move || drop(living)).await;
}

/// Proves that a stream which nobody wants is not read for ever: its lane is closed when the sender
/// goes on after it was told to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_does_not_stop_is_cut() {
    let cluster = Arc::new(Cluster::new());
    let config = quick().keep_alive(Duration::from_millis(100), Duration::from_millis(400));
    let server = bind_tcp(cluster.agent(SERVER), config);
    let to = server.local_addr();
    let evil = Arc::clone(&cluster);
    let (living, mut endless) = blocking(move || {
        let living = Living::begin(&evil, to, 1);
        let mut lane = lane(&evil, to, 1);
        lane.0.write_all(&[DATA, 1]).unwrap();
        lane.0.flush().unwrap();
        (living, lane)
    })
    .await;
    let accepted = accept_one(&*server).await;
    drop(within(accepted.accept()).await.unwrap());
    let cut = blocking(move || {
        let began = Instant::now();
        let message = [DATA; 10_000];
        while began.elapsed() < LONG {
            if let Err(error) = endless.0.write_all(&message) {
                return Some(error);
            }
        }
        None
    })
    .await;
    let error = cut.expect("it is read for ever");
    assert_ne!(error.kind(), ErrorKind::WouldBlock, "{error}");
    blocking(move || drop(living)).await;
}
