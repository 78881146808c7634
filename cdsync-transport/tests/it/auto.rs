//! Which of two protocols a connection takes, and what is said when neither passes.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_transport::{
    AutoTransport, BindError, ConnectError, Connection, DialOver, PeerExpectation, Transport,
};

use crate::world::{CLIENT, Cluster, SERVER, accept_one, bind, bind_tcp, quick, read_all, within};

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn auto(cluster: &Cluster, server: ServerId, over: DialOver) -> AutoTransport {
    AutoTransport::bind(any(), cluster.agent(server), quick(), over).unwrap()
}

/// QUIC alone knows the size of its packets.
fn is_quic(connection: &dyn Connection) -> bool {
    connection.stats().mtu_bytes > 0
}

async fn carries(dialled: &dyn Connection, accepted: &dyn Connection) {
    let (mut send, _recv) = dialled.open().await.unwrap();
    send.send(&mut [Bytes::from_static(b"over")]).await.unwrap();
    send.finish().unwrap();
    let (_send, mut recv) = within(accepted.accept()).await.unwrap();
    assert_eq!(within(read_all(&mut *recv)).await, b"over");
}

/// Proves that each preference leads over what it says, to one endpoint that accepts both, and that
/// a short way is taken over TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_preference_is_followed() {
    let cluster = Cluster::new();
    let server = auto(&cluster, SERVER, DialOver::Auto);
    let addr = server.local_addr().to_string();
    let expect = PeerExpectation::agent(SERVER);
    for (over, quic) in [
        (DialOver::Quic, true),
        (DialOver::Tcp, false),
        (DialOver::Auto, false),
    ] {
        let client = auto(&cluster, CLIENT, over);
        let dialled = within(client.connect(&addr, &expect)).await.unwrap();
        assert_eq!(is_quic(&*dialled), quic, "{over:?}");
        // Where both were tried, the one not taken may come out first; it is closed.
        let accepted = loop {
            let accepted = accept_one(&server).await;
            if is_quic(&*accepted) == quic {
                break accepted;
            }
        };
        carries(&*dialled, &*accepted).await;
    }
    within(server.close()).await;
    assert!(server.accept().await.is_none());
}

/// Proves that the one that passes is taken where the other does not, as with a firewall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_protocol_is_enough() {
    let cluster = Cluster::new();
    let client = auto(&cluster, CLIENT, DialOver::Auto);
    let expect = PeerExpectation::agent(SERVER);

    let quic = bind(cluster.agent(SERVER), quick());
    let addr = quic.local_addr().to_string();
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    assert!(is_quic(&*dialled));
    carries(&*dialled, &*accept_one(&*quic).await).await;

    // A TCP port that answers nothing, as behind a firewall.
    let quic = bind(cluster.agent(SERVER), quick());
    let _silent = TcpListener::bind(quic.local_addr()).unwrap();
    let addr = quic.local_addr().to_string();
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    assert!(is_quic(&*dialled));

    let tcp = bind_tcp(cluster.agent(SERVER), quick());
    let _silent = UdpSocket::bind(tcp.local_addr()).unwrap();
    let addr = tcp.local_addr().to_string();
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    assert!(!is_quic(&*dialled));
    carries(&*dialled, &*accept_one(&*tcp).await).await;
}

/// Proves that the wrong peer is called so, whichever of the two found it and whatever the other
/// met.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_more_telling_error_is_given() {
    let cluster = Cluster::new();
    let client = auto(&cluster, CLIENT, DialOver::Auto);
    let expect = PeerExpectation::agent(ServerId(0xc));
    let quic = bind(cluster.agent(SERVER), quick());
    let tcp = bind_tcp(cluster.agent(SERVER), quick());
    let both = auto(&cluster, SERVER, DialOver::Auto);
    let servers: [Arc<dyn Transport>; 3] = [quic, tcp, Arc::new(both)];
    for server in servers {
        let addr = server.local_addr().to_string();
        let error = within(client.connect(&addr, &expect)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Identity { .. }), "{error:?}");
    }
    let nobody = {
        let gone = auto(&cluster, SERVER, DialOver::Auto);
        let addr = gone.local_addr().to_string();
        within(gone.close()).await;
        addr
    };
    let error = within(client.connect(&nobody, &expect)).await.unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. }
        ),
        "{error:?}"
    );
}

/// Proves that a port taken for one protocol is refused with the protocol's name.
#[tokio::test]
async fn a_taken_port_is_named() {
    let cluster = Cluster::new();
    let refused = |listen| {
        let over = DialOver::Auto;
        AutoTransport::bind(listen, cluster.agent(SERVER), quick(), over).unwrap_err()
    };
    let tcp = TcpListener::bind(any()).unwrap();
    let error = refused(tcp.local_addr().unwrap());
    assert!(
        matches!(
            &error,
            BindError::Listen {
                protocol: "TCP",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("TCP"), "{error}");
    let udp = UdpSocket::bind(any()).unwrap();
    let error = refused(udp.local_addr().unwrap());
    assert!(
        matches!(
            &error,
            BindError::Listen {
                protocol: "UDP",
                ..
            }
        ),
        "{error:?}"
    );
}
