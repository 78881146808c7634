//! What only TCP has: lanes that are used again, asked for, and attached to their own peer alone.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_transport::{
    CloseCode, CloseReason, ConnectError, Connection, FrameReader, FrameWriter, IdentityError,
    NodeIdentity, PeerExpectation, QuicConfig, RecvError, Retry, TcpTransport, Transport,
};

use crate::trust::bare;
use crate::world::{CLIENT, Cluster, SERVER, accept_one, bind_tcp, noise, quick, read_all, within};

struct Ends {
    client: Arc<TcpTransport>,
    server: Arc<TcpTransport>,
    dialled: Arc<dyn Connection>,
    accepted: Arc<dyn Connection>,
}

async fn ends() -> Ends {
    ends_with(quick()).await
}

async fn ends_with(config: QuicConfig) -> Ends {
    let cluster = Cluster::new();
    let (client, server) = (
        bind_tcp(cluster.agent(CLIENT), config.clone()),
        bind_tcp(cluster.agent(SERVER), config),
    );
    let addr = server.local_addr().to_string();
    let expect = PeerExpectation::agent(SERVER);
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    let accepted = accept_one(&*server).await;
    Ends {
        client,
        server,
        dialled,
        accepted,
    }
}

/// TCP connections of this process to `port`, as the kernel counts them.
pub(crate) fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let established = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        let (to, state) = (fields.next(), fields.next());
        to.is_some_and(|to| to.ends_with(&remote)) && state == Some("01")
    };
    table.lines().skip(1).filter(established).count()
}

/// One question and one answer, as a pull makes them: the asker reads one frame and lets go.
async fn ask(ends: &Ends, round: u64) {
    let accepted = Arc::clone(&ends.accepted);
    let answering = tokio::spawn(async move {
        let (send, recv) = accepted.accept().await.unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv));
        let frame = reader.next().await.unwrap().unwrap();
        writer.write(2, &[frame.payload]).await.unwrap();
        writer.finish().await.unwrap();
    });
    let (send, recv) = ends.dialled.open().await.unwrap();
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv));
    let question = noise(70_000, round);
    let parts = std::slice::from_ref(&question);
    writer.write(1, parts).await.unwrap();
    writer.finish().await.unwrap();
    let answer = reader.next().await.unwrap().unwrap();
    assert!(answer.payload == question);
    drop((writer, reader));
    answering.await.unwrap();
}

/// Proves that streams one after the other share their lane, also when readers let go before they
/// saw the end: no stream is mistaken for another, and no handshake is paid again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_are_used_again() {
    let ends = ends().await;
    for round in 0..300 {
        within(ask(&ends, round)).await;
    }
    // The control lane, and those for streams: an end may be on its way while the next is opened.
    let lanes = connections_to(ends.server.local_addr().port());
    assert!((2..=10).contains(&lanes), "{lanes} connections");
}

/// Proves that streams given up in every way leave lanes that carry the next one whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_streams_harm_no_later_one() {
    let ends = ends().await;
    for round in 0..120u64 {
        let (mut send, mut recv) = ends.dialled.open().await.unwrap();
        let big = noise(300_000 + round as usize, round);
        send.send(&mut [big.slice(..1)]).await.unwrap();
        let (mut back, mut theirs) = within(ends.accepted.accept()).await.unwrap();
        match round % 6 {
            0 => drop((send, recv, back, theirs)),
            1 => {
                send.reset(CloseCode::BUSY);
                back.send(&mut [big.slice(..9)]).await.unwrap();
                back.finish().unwrap();
                assert_eq!(read_all(&mut *recv).await.len(), 9);
            }
            2 => {
                theirs.stop(CloseCode::LIMIT);
                let _ = send.send(&mut [big]).await;
                drop(send);
            }
            3 => {
                send.finish().unwrap();
                recv.stop(CloseCode::DONE);
                let _ = back.send(&mut [big]).await;
            }
            4 => {
                send.finish().unwrap();
                back.finish().unwrap();
            }
            _ => {
                send.send(&mut [big.slice(1..)]).await.unwrap();
                send.finish().unwrap();
                assert!(within(read_all(&mut *theirs)).await == big);
                let again = theirs.recv().await;
                assert_eq!(again, Ok(None));
            }
        }
        within(ask(&ends, round)).await;
    }
}

/// Proves that the side that accepted the connection can open streams, many at once, although it
/// dials nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_acceptor_opens_streams() {
    let ends = ends().await;
    const COUNT: usize = 40;
    let mut opening = tokio::task::JoinSet::new();
    for i in 0..COUNT {
        let accepted = Arc::clone(&ends.accepted);
        opening.spawn(async move {
            let (mut send, _recv) = accepted.open().await.unwrap();
            send.send(&mut [Bytes::from(vec![i as u8])]).await.unwrap();
            send.finish().unwrap();
        });
    }
    let mut seen = Vec::new();
    for _ in 0..COUNT {
        let (_send, mut recv) = within(ends.dialled.accept()).await.unwrap();
        seen.extend(within(read_all(&mut *recv)).await);
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..COUNT as u8));
    within(async { while opening.join_next().await.is_some() {} }).await;
}

/// Proves that a connection allows 256 streams at once in each direction, and one more when one of
/// them ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_at_once_are_bounded() {
    let ends = ends().await;
    let mut streams = Vec::new();
    for _ in 0..256 {
        let (mut send, recv) = within(ends.dialled.open()).await.unwrap();
        send.send(&mut [Bytes::from_static(b"x")]).await.unwrap();
        streams.push((send, recv));
    }
    let more = tokio::time::timeout(Duration::from_millis(200), ends.dialled.open()).await;
    assert!(more.is_err(), "a 257th stream");
    let (mut send, mut recv) = streams.swap_remove(0);
    send.finish().unwrap();
    // Which of them was finished is not known here: each is kept, and the finished one answered.
    let mut others = Vec::new();
    let answering = async {
        loop {
            let (mut back, mut theirs) = ends.accepted.accept().await.unwrap();
            let ended = Duration::from_millis(100);
            if tokio::time::timeout(ended, read_all(&mut *theirs))
                .await
                .is_ok()
            {
                return back.finish().unwrap();
            }
            others.push((back, theirs));
        }
    };
    within(answering).await;
    assert_eq!(within(recv.recv()).await, Ok(None));
    within(ends.dialled.open()).await.unwrap();
}

/// Proves that a peer that is gone without a word is told from one that is silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_dropped_endpoint_hear_of_it() {
    let ends = ends().await;
    let (mut send, mut recv) = ends.dialled.open().await.unwrap();
    send.send(&mut [Bytes::from_static(b"x")]).await.unwrap();
    drop((ends.accepted, ends.server));
    let reason = within(ends.dialled.closed()).await;
    assert!(matches!(reason, CloseReason::Peer { .. }), "{reason:?}");
    assert_eq!(recv.recv().await, Err(RecvError::Connection(reason)));
    within(ends.client.close()).await;
}

async fn refusal(
    client: NodeIdentity,
    server: NodeIdentity,
    expect: PeerExpectation,
) -> ConnectError {
    let (client, server) = (bind_tcp(client, quick()), bind_tcp(server, quick()));
    let addr = server.local_addr().to_string();
    let error = within(client.connect(&addr, &expect)).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Never, "{error:?}");
    error
}

/// Proves that over TCP, too, the dialler refuses a foreign authority and another member.
#[tokio::test]
async fn the_dialler_refuses_whom_it_did_not_mean() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let expect = PeerExpectation::agent(SERVER);
    let error = refusal(ours.agent(CLIENT), theirs.agent(SERVER), expect).await;
    assert!(
        matches!(
            error,
            ConnectError::Identity {
                source: IdentityError::Untrusted { .. },
                ..
            }
        ),
        "{error:?}"
    );
    let expect = PeerExpectation::agent(ServerId(0xc));
    let error = refusal(ours.agent(CLIENT), ours.agent(SERVER), expect).await;
    assert!(
        matches!(
            error,
            ConnectError::Identity {
                source: IdentityError::WrongServer { found: SERVER, .. },
                ..
            }
        ),
        "{error:?}"
    );
}

/// Proves that a renewed certificate is used for new connections and disturbs none that exists,
/// whose further lanes prove the same identity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_in_place() {
    let cluster = Cluster::new();
    let (client, server) = (
        bind_tcp(cluster.agent(CLIENT), quick()),
        bind_tcp(cluster.agent(SERVER), quick()),
    );
    let addr = server.local_addr().to_string();
    let expect = PeerExpectation::agent(SERVER);
    let first = within(client.connect(&addr, &expect)).await.unwrap();
    let _accepted = accept_one(&*server).await;
    server.set_node(cluster.agent(SERVER)).unwrap();
    client.set_node(cluster.agent(CLIENT)).unwrap();
    assert!(server.set_node(Cluster::new().agent(SERVER)).is_err());
    let _second = within(client.connect(&addr, &expect)).await.unwrap();
    let _accepted = accept_one(&*server).await;
    assert!(within(first.open()).await.is_ok());
}

/// A client that trusts everybody and speaks the protocol of lanes by hand.
pub(crate) struct Bare(pub(crate) rustls::StreamOwned<rustls::ClientConnection, TcpStream>);

impl Bare {
    pub(crate) fn to(addr: SocketAddr, alpn: &[u8], shown: Option<bare::Shown>) -> Self {
        let name = rustls::pki_types::ServerName::try_from("x.internal").unwrap();
        let config = Arc::new(bare::tls(alpn, shown));
        let socket = TcpStream::connect(addr).unwrap();
        let deadline = Some(Duration::from_secs(30));
        socket.set_read_timeout(deadline).unwrap();
        let tls = rustls::ClientConnection::new(config, name).unwrap();
        Self(rustls::StreamOwned::new(tls, socket))
    }

    /// Sends one message; the next one from the server, or why there is none.
    pub(crate) fn exchange(&mut self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.write_all(message)?;
        self.0.flush()?;
        let mut answer = vec![0; 1_000];
        let read = self.0.read(&mut answer)?;
        answer.truncate(read);
        Ok(answer)
    }
}

const HELLO: u8 = 4;
pub(crate) const WELCOME: u8 = 5;

pub(crate) fn hello(id: u8, purpose: u8) -> Vec<u8> {
    let mut message = vec![HELLO];
    message.extend([id; 16]);
    message.push(purpose);
    message
}

/// Proves that only members get in, and that each lane is attached to a connection of its own peer
/// alone, that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_are_attached_to_their_own_peer() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = bind_tcp(ours.agent(SERVER), quick());
    let addr = server.local_addr();
    let bare = async |alpn: &'static [u8], shown, message: Vec<u8>| {
        let talk = move || {
            let mut client = Bare::to(addr, alpn, shown);
            let answer = client.exchange(&message);
            (client, answer)
        };
        within(tokio::task::spawn_blocking(talk)).await.unwrap()
    };
    const ALPN: &[u8] = b"cdsync-tcp/1";
    let other = ServerId(0xc);
    let member = |server| Some(bare::Shown::agent(&ours, server));
    let stranger = Some(bare::Shown::agent(&theirs, CLIENT));
    for (alpn, shown, alert) in [
        (ALPN, None, "CertificateRequired"),
        (ALPN, stranger, "UnknownCA"),
        (b"cdsync/1", member(CLIENT), "NoApplicationProtocol"),
    ] {
        let (_, refused) = bare(alpn, shown, hello(1, 0)).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("alert"), "{alert}: {error}");
    }
    let (_kept, answer) = bare(ALPN, member(CLIENT), hello(7, 0)).await;
    assert_eq!(answer.unwrap()[0], WELCOME);
    let accepted = accept_one(&*server).await;
    assert_eq!(accepted.peer().server, CLIENT);
    // Another member's lane, one of no connection, a second control lane, and malformed hellos.
    for (server, message) in [
        (other, hello(7, 1)),
        (other, hello(7, 2)),
        (CLIENT, hello(8, 1)),
        (CLIENT, hello(7, 0)),
        (CLIENT, hello(7, 9)),
        (CLIENT, hello(9, 0)[..9].to_vec()),
        (CLIENT, vec![0, 1, 2]),
    ] {
        let (_, refused) = bare(ALPN, member(server), message.clone()).await;
        assert!(
            !matches!(refused, Ok(ref answer) if !answer.is_empty()),
            "{message:?}"
        );
    }
    let idle = tokio::time::timeout(Duration::from_millis(100), accepted.accept()).await;
    assert!(idle.is_err(), "a stranger's stream came");
    // The same by the connection's own peer.
    let talk = move |shown| {
        let mut client = Bare::to(addr, ALPN, shown);
        client.0.write_all(&hello(7, 1)).unwrap();
        client.0.write_all(b"\0mine").unwrap();
        client.0.write_all(&[1]).unwrap();
        client
    };
    let shown = member(CLIENT);
    let _lane = within(tokio::task::spawn_blocking(move || talk(shown)))
        .await
        .unwrap();
    let (_send, mut recv) = within(accepted.accept()).await.unwrap();
    assert_eq!(within(read_all(&mut *recv)).await, b"mine");
}

/// Proves that messages that no lane carries end that lane's connection, not the program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_end_the_connection() {
    let ours = Cluster::new();
    let server = bind_tcp(ours.agent(SERVER), quick());
    let addr = server.local_addr();
    for (round, message) in [
        &[][..],
        &[200],
        &[0, 1],
        &[1],
        &[3, 0, 0],
        &[9],
        &[6, 1],
        &[4; 18],
    ]
    .iter()
    .enumerate()
    {
        let shown = Some(bare::Shown::agent(&ours, CLIENT));
        let id = 100 + round as u8;
        let talk = move || {
            let mut client = Bare::to(addr, b"cdsync-tcp/1", shown);
            assert_eq!(client.exchange(&hello(id, 0)).unwrap()[0], WELCOME);
            client
        };
        let mut client = within(tokio::task::spawn_blocking(talk)).await.unwrap();
        let accepted = accept_one(&*server).await;
        if message.is_empty() {
            client.0.conn.send_close_notify();
            client.0.flush().unwrap();
        } else {
            client.0.write_all(message).unwrap();
        }
        let reason = within(accepted.closed()).await;
        assert!(
            matches!(
                reason,
                CloseReason::Protocol { .. } | CloseReason::Restarted
            ),
            "{message:?}: {reason:?}"
        );
    }
}

/// Proves that strangers who send noise, who send nothing, and who send a hello slowly are let go,
/// and that members are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_hold_up_nobody() {
    let cluster = Cluster::new();
    let config = quick().handshake_deadline(Duration::from_secs(1));
    let server = bind_tcp(cluster.agent(SERVER), config);
    let to = server.local_addr();
    let mut silent = TcpStream::connect(to).unwrap();
    let mut slow = TcpStream::connect(to).unwrap();
    // The header of a TLS record of 512 bytes, and no more of it.
    slow.write_all(&[22, 3, 1, 2, 0]).unwrap();
    for seed in 0..50 {
        let mut noisy = TcpStream::connect(to).unwrap();
        let mut bytes = noise(1 + seed as usize * 2_000, seed).to_vec();
        if seed % 2 == 0 {
            bytes.splice(0..0, [22, 3, 1, 0x40, 0]);
        }
        // It may have been let go already.
        let _ = noisy.write_all(&bytes);
    }
    let client = bind_tcp(cluster.agent(CLIENT), quick());
    let expect = PeerExpectation::agent(SERVER);
    let dialled = within(client.connect(&to.to_string(), &expect))
        .await
        .unwrap();
    let accepted = accept_one(&*server).await;
    assert_eq!(accepted.peer().server, CLIENT);
    assert!(dialled.open().await.is_ok());
    let ended = tokio::task::spawn_blocking(move || {
        for stranger in [&mut silent, &mut slow] {
            let deadline = Some(Duration::from_secs(30));
            stranger.set_read_timeout(deadline).unwrap();
            // The end, or a reset: not the timeout.
            let mut rest = Vec::new();
            if let Err(error) = stranger.read_to_end(&mut rest) {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock);
            }
        }
    });
    within(ended).await.unwrap();
}

/// Proves that a receiver that lives and takes nothing for long, as one with a slow disk does, keeps
/// its stream: nothing is lost, and the connection stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_receiver_keeps_its_stream() {
    let silence = Duration::from_secs(1);
    let ends = ends_with(quick().keep_alive(Duration::from_millis(200), silence)).await;
    // Beyond what the kernel and both ends hold, so that the sender meets a closed window.
    let sent = noise(64 << 20, 5);
    let (mut send, _recv) = ends.dialled.open().await.unwrap();
    let mut parts = [sent.clone()];
    let sending = tokio::spawn(async move {
        send.send(&mut parts).await.unwrap();
        send.finish().unwrap();
    });
    let (_back, mut theirs) = within(ends.accepted.accept()).await.unwrap();
    // The silence after which a dead peer is given up, several times: time is what this is about.
    tokio::time::sleep(4 * silence).await;
    assert!(!sending.is_finished(), "it all went into buffers");
    assert!(within(read_all(&mut *theirs)).await == sent);
    within(sending).await.unwrap();
}

/// Proves that one host whose sockets say nothing cannot keep others from connecting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_sockets_of_one_host_hold_up_nobody_else() {
    let cluster = Cluster::new();
    let config = quick().max_pending_handshakes(8);
    let server = bind_tcp(cluster.agent(SERVER), config);
    let mut silent = Vec::new();
    for _ in 0..40 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(within(socket.connect(server.local_addr())).await.unwrap());
    }
    let client = bind_tcp(cluster.agent(CLIENT), quick());
    let addr = server.local_addr().to_string();
    let expect = PeerExpectation::agent(SERVER);
    within(client.connect(&addr, &expect)).await.unwrap();
    assert_eq!(accept_one(&*server).await.peer().server, CLIENT);
}
