//! What anybody can do who reaches the port.

use std::net::UdpSocket;
use std::time::Duration;

use cdsync_transport::{ConnectError, PeerExpectation, Retry, Transport};

use crate::world::{CLIENT, Cluster, SERVER, accept_one, bind, noise, quick, within};

/// Proves that garbage at the port, random or dressed as QUIC, disturbs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_disturb_nobody() {
    let cluster = Cluster::new();
    let server = bind(cluster.agent(SERVER), quick());
    let to = server.local_addr();
    let throw = move |from: &UdpSocket, round: u64| {
        for seed in 0..200 {
            let mut packet = noise(1 + (seed as usize * 37) % 1_400, round * 1_000 + seed).to_vec();
            if seed % 2 == 0 {
                // A long header with version 1: parsed further than noise is.
                packet[0] = 0xc0 | (packet[0] & 0x3f);
                packet.resize(1_200.max(packet.len()), 7);
                packet[1..5].copy_from_slice(&[0, 0, 0, 1]);
            }
            let _ = from.send_to(&packet, to);
        }
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    throw(&socket, 1);
    let client = bind(cluster.agent(CLIENT), quick());
    let addr = to.to_string();
    let expect = PeerExpectation::agent(SERVER);
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    let accepted = accept_one(&*server).await;
    throw(&socket, 2);
    let (mut send, _recv) = dialled.open().await.unwrap();
    send.send(&mut [noise(1 << 20, 1)]).await.unwrap();
    send.finish().unwrap();
    let (_send, mut recv) = within(accepted.accept()).await.unwrap();
    let all = within(crate::world::read_all(&mut *recv)).await;
    assert!(all == noise(1 << 20, 1));
}

/// Proves that a silent address, an unknown host and a malformed address are told apart, and that
/// each says whether to come again.
#[tokio::test]
async fn addresses_that_lead_nowhere() {
    let cluster = Cluster::new();
    let config = quick().handshake_deadline(Duration::from_millis(300));
    let client = bind(cluster.agent(CLIENT), config);
    let expect = PeerExpectation::agent(SERVER);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let error = within(client.connect(&addr, &expect)).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Backoff);
    let error = within(client.connect("no port", &expect))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error:?}");
}

/// Proves that IPv6 works as IPv4 does, and that a name with both reaches the one that listens.
#[tokio::test]
async fn both_ip_versions() {
    let cluster = Cluster::new();
    let client = bind(cluster.agent(CLIENT), quick());
    let expect = PeerExpectation::agent(SERVER);
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let listen = listen.parse().unwrap();
        let node = cluster.agent(SERVER);
        let server = match cdsync_transport::QuicTransport::bind(listen, node, quick()) {
            Ok(server) => server,
            Err(error) if listen.is_ipv6() => {
                eprintln!("SKIPPED: no IPv6 on this machine: {error:?}");
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        let port = server.local_addr().port();
        for addr in [server.local_addr().to_string(), format!("localhost:{port}")] {
            let reached = within(client.connect(&addr, &expect)).await;
            match reached {
                Ok(connection) => assert_eq!(connection.peer().server, SERVER),
                // Where `localhost` is one version only, the other is not reached by it.
                Err(error) => assert!(addr.starts_with("localhost"), "{addr}: {error:?}"),
            }
        }
    }
}
