//! Real links of several sizes: network namespaces joined by a veth pair.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cdsync_transport::{
    DialOver, LinkStats, NodeIdentity, PeerExpectation, QuicTransport, TcpTransport, Transport,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::world::{CLIENT, Cluster, SERVER, accept_one, noise, quick, read_all, within};

const BYTES: usize = 32 << 20;

/// Two namespaces with a link between; removed when dropped, and the link with them.
struct Link {
    names: [String; 2],
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    ))
}

impl Link {
    /// `Err` says why this machine cannot make one.
    fn new(mtu: u32, over: DialOver) -> Result<Self, String> {
        let pid = std::process::id();
        let names = ["a", "b"].map(|end| format!("cdsync-{pid}-{mtu}-{over:?}-{end}"));
        let mtu = mtu.to_string();
        let [a, b] = [names[0].clone(), names[1].clone()];
        let link = Self { names };
        ip(&["netns", "add", &a])?;
        ip(&["netns", "add", &b])?;
        ip(&[
            "-n", &a, "link", "add", "v", "mtu", &mtu, "type", "veth", "peer", "name", "v", "mtu",
            &mtu, "netns", &b,
        ])?;
        for (name, addr) in [(&a, "10.99.0.1/24"), (&b, "10.99.0.2/24")] {
            ip(&["-n", name, "addr", "add", addr, "dev", "v"])?;
            ip(&["-n", name, "link", "set", "v", "up"])?;
        }
        Ok(link)
    }

    /// Runs a task on a thread of its own inside one end's namespace: sockets made there stay there.
    fn inside<T: Send + 'static>(
        &self,
        end: usize,
        task: impl AsyncFnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = format!("/var/run/netns/{}", self.names[end]);
        std::thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(task())
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// Sends 32 MiB and waits until the receiver has them all.
async fn send(client: Arc<dyn Transport>, addr: SocketAddr) -> LinkStats {
    let addr = addr.to_string();
    let expect = PeerExpectation::agent(SERVER);
    let connection = within(client.connect(&addr, &expect)).await.unwrap();
    let (mut send, mut recv) = connection.open().await.unwrap();
    send.send(&mut [noise(BYTES, 5)]).await.unwrap();
    send.finish().unwrap();
    let hash = read_all(&mut *recv).await;
    assert_eq!(hash, blake3::hash(&noise(BYTES, 5)).as_bytes());
    let stats = connection.stats();
    connection.close(cdsync_transport::CloseCode::DONE, "");
    client.close().await;
    stats
}

/// Receives everything and answers with its hash.
async fn receive(server: Arc<dyn Transport>) {
    let connection = accept_one(&*server).await;
    let (mut send, mut recv) = within(connection.accept()).await.unwrap();
    let all = within(read_all(&mut *recv)).await;
    let hash = blake3::hash(&all).as_bytes().to_vec();
    send.send(&mut [hash.into()]).await.unwrap();
    send.finish().unwrap();
    within(connection.closed()).await;
}

fn make(over: DialOver, listen: SocketAddr, node: NodeIdentity) -> Arc<dyn Transport> {
    match over {
        DialOver::Tcp => Arc::new(TcpTransport::bind(listen, node, quick()).unwrap()),
        _ => Arc::new(QuicTransport::bind(listen, node, quick()).unwrap()),
    }
}

fn cross(mtu: u32, over: DialOver) -> Option<LinkStats> {
    let link = match Link::new(mtu, over) {
        Ok(link) => link,
        Err(error) => {
            eprintln!(
                "SKIPPED: no link of MTU {mtu} can be made here (root and ip needed): {error}"
            );
            return None;
        }
    };
    let cluster = Cluster::new();
    let (server, client) = (cluster.agent(SERVER), cluster.agent(CLIENT));
    let (tell, told) = mpsc::channel();
    let receiving = link.inside(1, async move || {
        let listen = "10.99.0.2:0".parse().unwrap();
        let server = make(over, listen, server);
        tell.send(server.local_addr()).unwrap();
        receive(server).await;
    });
    let addr = told.recv_timeout(Duration::from_secs(30)).unwrap();
    let sending = link.inside(0, async move || {
        let listen = "10.99.0.1:0".parse().unwrap();
        send(make(over, listen, client), addr).await
    });
    let stats = sending.join().unwrap();
    receiving.join().unwrap();
    Some(stats)
}

/// Proves that content crosses an Ethernet link whole, at the size that it allows.
#[test]
fn mtu_1500() {
    if let Some(stats) = cross(1_500, DialOver::Quic) {
        assert!((1_400..=1_472).contains(&stats.mtu_bytes), "{stats:?}");
    }
}

/// Proves that content crosses a link of jumbo frames whole, in packets that ten of fit one
/// segmentation-offload call.
#[test]
fn mtu_9000() {
    if let Some(stats) = cross(9_000, DialOver::Quic) {
        assert!((6_400..=6_500).contains(&stats.mtu_bytes), "{stats:?}");
    }
}

/// Proves the same for the largest link there is, where quinn left alone would stop dead.
#[test]
fn mtu_65535() {
    if let Some(stats) = cross(65_535, DialOver::Quic) {
        assert!((6_400..=6_500).contains(&stats.mtu_bytes), "{stats:?}");
    }
}

/// Proves that content crosses an Ethernet link whole over TCP.
#[test]
fn tcp_mtu_1500() {
    if let Some(stats) = cross(1_500, DialOver::Tcp) {
        assert!(stats.sent_bytes > BYTES as u64, "{stats:?}");
        assert!(!stats.rtt.is_zero(), "{stats:?}");
    }
}

/// Proves the same over loopback, whose MTU is 65,536.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loopback() {
    let cluster = Cluster::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let server = make(DialOver::Quic, any, cluster.agent(SERVER));
    let client = make(DialOver::Quic, any, cluster.agent(CLIENT));
    let addr = server.local_addr();
    let receiving = tokio::spawn(receive(server));
    let stats = send(client, addr).await;
    assert!((6_400..=6_500).contains(&stats.mtu_bytes), "{stats:?}");
    receiving.await.unwrap();
}
