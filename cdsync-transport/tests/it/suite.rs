//! What every transport must do, run over each of them.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cdsync_transport::{
    CloseCode, CloseReason, ConnectError, Connection, FrameError, FrameReader, FrameWriter,
    MemoryNetwork, PeerExpectation, PeerIdentity, RecvError, Role, SendError, Transport,
};

use crate::relay::Relay;
use crate::world::{
    CLIENT, Cluster, SERVER, accept_one, bind, bind_tcp, noise, quick, read_all, within,
};

/// Two connected endpoints and a way to break what is between them.
struct Pair {
    client: Arc<dyn Transport>,
    server: Arc<dyn Transport>,
    dialled: Arc<dyn Connection>,
    accepted: Arc<dyn Connection>,
    cut: Box<dyn Fn()>,
}

async fn memory() -> Pair {
    let network = MemoryNetwork::new();
    let cluster = cdsync_transport::ClusterId(1);
    let client = network.endpoint("client:1", PeerIdentity::agent(cluster, CLIENT));
    let server = network.endpoint("server:1", PeerIdentity::agent(cluster, SERVER));
    let dialled = client
        .connect("server:1", &PeerExpectation::agent(SERVER))
        .await
        .unwrap();
    let accepted = accept_one(&*server).await;
    let cut = Box::new(move || network.cut("client:1", "server:1"));
    Pair {
        client,
        server,
        dialled,
        accepted,
        cut,
    }
}

async fn quic() -> Pair {
    let cluster = Cluster::new();
    let client = bind(cluster.agent(CLIENT), quick());
    let server = bind(cluster.agent(SERVER), quick());
    let relay = Relay::udp(server.local_addr()).await;
    let addr = relay.addr.to_string();
    let expect = PeerExpectation::agent(SERVER);
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    let accepted = accept_one(&*server).await;
    Pair {
        client,
        server,
        dialled,
        accepted,
        cut: Box::new(move || relay.cut()),
    }
}

async fn tcp() -> Pair {
    let cluster = Cluster::new();
    let client = bind_tcp(cluster.agent(CLIENT), quick());
    let server = bind_tcp(cluster.agent(SERVER), quick());
    let relay = Relay::tcp(server.local_addr()).await;
    let addr = relay.addr.to_string();
    let expect = PeerExpectation::agent(SERVER);
    let dialled = within(client.connect(&addr, &expect)).await.unwrap();
    let accepted = accept_one(&*server).await;
    Pair {
        client,
        server,
        dialled,
        accepted,
        cut: Box::new(move || relay.cut()),
    }
}

macro_rules! over_each_transport {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        mod over_memory {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::within(super::$name(super::memory().await)).await; })*
        }
        mod over_quic {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::within(super::$name(super::quic().await)).await; })*
        }
        mod over_tcp {
            $($(#[$doc])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::within(super::$name(super::tcp().await)).await; })*
        }
    };
}

over_each_transport! {
    /// Proves that both sides know each other and that frames go both ways on one stream.
    ping_pong;
    /// Proves that megabytes arrive whole and in order, in parts of any size.
    large_transfer;
    /// Proves that a range of a file arrives as it is, and that a file too short is an error.
    files_are_sent_by_range;
    /// Proves that a reader that stalls bounds what its sender can push, and loses nothing.
    stalled_reader_holds_its_sender;
    /// Proves that streams do not block each other.
    streams_are_independent;
    /// Proves that codes and reasons reach the other side, and that calls fail from then on.
    close_codes_arrive;
    /// Proves that reset and stop reach the other half, and that a dropped sender is no clean end.
    stream_codes_arrive;
    /// Proves that a silent loss of the link is noticed by both sides.
    cut_is_noticed;
    /// Proves that a closed endpoint ends its connections, accepts no more and dials no more.
    closed_endpoint_says_goodbye;
    /// Proves that an oversized frame is refused by its header alone, again at every call.
    oversized_frame_is_refused_early;
    /// Proves that a frame cut off by the end of its stream is no frame.
    truncated_frame_is_an_error;
    /// Proves that a dropped `next` loses no byte and a dropped `write` sends its frame whole.
    frames_survive_cancellation;
}

async fn ping_pong(pair: Pair) {
    assert_eq!(pair.dialled.peer().server, SERVER);
    assert_eq!(pair.accepted.peer().server, CLIENT);
    assert_eq!(pair.accepted.peer().role, Role::Agent);
    let accepted = Arc::clone(&pair.accepted);
    let echo = tokio::spawn(async move {
        let (send, recv) = accepted.accept().await.unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv));
        while let Some(frame) = reader.next().await.unwrap() {
            writer
                .write(frame.kind + 1, &[frame.payload])
                .await
                .unwrap();
        }
        writer.finish().await.unwrap();
    });
    let (send, recv) = pair.dialled.open().await.unwrap();
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv));
    for (kind, len) in [
        (1, 0),
        (2, 1),
        (3, 1024),
        (4, 1025),
        (5, 100_000),
        (6, 4 << 20),
    ] {
        let payload = noise(len, u64::from(kind));
        let (head, tail) = (payload.slice(..len / 3), payload.slice(len / 3..));
        writer
            .write(kind, &[head, Bytes::new(), tail])
            .await
            .unwrap();
        let answer = reader.next().await.unwrap().unwrap();
        assert_eq!(
            (answer.kind, answer.payload == payload),
            (kind + 1, true),
            "{len}"
        );
    }
    writer.finish().await.unwrap();
    assert_eq!(reader.next().await.unwrap(), None);
    echo.await.unwrap();
}

async fn large_transfer(pair: Pair) {
    let data = noise(24 << 20, 7);
    let expected = blake3::hash(&data);
    let accepted = Arc::clone(&pair.accepted);
    let receiving = tokio::spawn(async move {
        let (_send, mut recv) = accepted.accept().await.unwrap();
        blake3::hash(&read_all(&mut *recv).await)
    });
    let (mut send, _recv) = pair.dialled.open().await.unwrap();
    let mut rest = data;
    for step in [1, 7, 1_000, 65_536, 1 << 20].iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let mut part = rest.split_to((*step).min(rest.len()));
        let head = part.split_to(part.len() / 2);
        send.send(&mut [head, Bytes::new(), part]).await.unwrap();
    }
    send.finish().unwrap();
    assert_eq!(receiving.await.unwrap(), expected);
}

async fn files_are_sent_by_range(pair: Pair) {
    let data = noise(1 << 20, 9);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&data).unwrap();
    let accepted = Arc::clone(&pair.accepted);
    let receiving = tokio::spawn(async move {
        let (_send, mut recv) = accepted.accept().await.unwrap();
        read_all(&mut *recv).await
    });
    let (mut send, _recv) = pair.dialled.open().await.unwrap();
    send.send_file(&file, 5, 700_000).await.unwrap();
    let short = send.send_file(&file, 1 << 20, 1).await;
    assert!(
        matches!(
            short,
            Err(SendError::File {
                offset: 0x10_0000,
                ..
            })
        ),
        "{short:?}"
    );
    send.finish().unwrap();
    assert!(receiving.await.unwrap() == data[5..700_005]);
}

async fn stalled_reader_holds_its_sender(pair: Pair) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let (mut send, _recv) = pair.dialled.open().await.unwrap();
    let part = noise(64 << 10, 3);
    const TOTAL: usize = 1_024;
    let sending = tokio::spawn(async move {
        for _ in 0..TOTAL {
            send.send(&mut [part.clone()]).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
        }
        send.finish().unwrap();
    });
    let (_send, mut recv) = pair.accepted.accept().await.unwrap();
    // It has stalled when nothing moved for a while; wherever that is, it must be far from the end.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(
        before < TOTAL / 2,
        "{before} of {TOTAL} parts went to a reader that reads nothing"
    );
    assert_eq!(read_all(&mut *recv).await.len(), TOTAL * (64 << 10));
    sending.await.unwrap();
}

async fn streams_are_independent(pair: Pair) {
    let (mut full, _keep) = pair.dialled.open().await.unwrap();
    let filling = tokio::spawn(async move {
        let part = noise(64 << 10, 3);
        loop {
            if full.send(&mut [part.clone()]).await.is_err() {
                return;
            }
        }
    });
    let stalled = pair.accepted.accept().await.unwrap();
    let (mut send, _recv) = pair.dialled.open().await.unwrap();
    send.send(&mut [Bytes::from_static(b"small")])
        .await
        .unwrap();
    send.finish().unwrap();
    let (_send, mut recv) = pair.accepted.accept().await.unwrap();
    assert_eq!(read_all(&mut *recv).await, b"small");
    drop(stalled);
    filling.await.unwrap();
}

async fn close_codes_arrive(pair: Pair) {
    let (mut send, mut recv) = pair.dialled.open().await.unwrap();
    send.send(&mut [Bytes::from_static(b"x")]).await.unwrap();
    let _stream = pair.accepted.accept().await.unwrap();
    pair.accepted.close(CloseCode(77), "because\nof this");
    let expected = CloseReason::Peer {
        code: CloseCode(77),
        reason: "because\\nof this".into(),
    };
    assert_eq!(pair.dialled.closed().await, expected);
    assert_eq!(pair.accepted.closed().await, CloseReason::Local);
    assert_eq!(
        recv.recv().await,
        Err(RecvError::Connection(expected.clone()))
    );
    assert_eq!(pair.dialled.open().await.unwrap_err(), expected);
    assert_eq!(pair.dialled.accept().await.unwrap_err(), expected);
    assert_eq!(pair.accepted.open().await.unwrap_err(), CloseReason::Local);
    let sent = send.send(&mut [Bytes::from_static(b"y")]).await;
    assert!(matches!(sent, Err(SendError::Connection(_))), "{sent:?}");
}

async fn stream_codes_arrive(pair: Pair) {
    let begin = async || {
        let (mut send, recv) = pair.dialled.open().await.unwrap();
        send.send(&mut [Bytes::from_static(b"x")]).await.unwrap();
        let (their_send, mut their_recv) = pair.accepted.accept().await.unwrap();
        assert_eq!(their_recv.recv().await.unwrap().unwrap(), "x");
        (send, recv, their_send, their_recv)
    };
    let (mut send, _recv, _their_send, mut their_recv) = begin().await;
    send.reset(CloseCode::BUSY);
    assert_eq!(
        their_recv.recv().await,
        Err(RecvError::Reset(CloseCode::BUSY))
    );

    let (send, _recv, _their_send, mut their_recv) = begin().await;
    drop(send);
    assert_eq!(
        their_recv.recv().await,
        Err(RecvError::Reset(CloseCode::DROPPED))
    );

    let (mut send, _recv, _their_send, mut their_recv) = begin().await;
    their_recv.stop(CloseCode::LIMIT);
    let stopped = loop {
        match send.send(&mut [noise(1 << 16, 1)]).await {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(stopped, SendError::Stopped(CloseCode::LIMIT)),
        "{stopped:?}"
    );

    let (mut send, _recv, _their_send, mut their_recv) = begin().await;
    send.finish().unwrap();
    assert!(matches!(send.finish(), Err(SendError::Ended)));
    assert_eq!(their_recv.recv().await, Ok(None));
}

async fn cut_is_noticed(pair: Pair) {
    let (mut send, _recv) = pair.dialled.open().await.unwrap();
    send.send(&mut [Bytes::from_static(b"x")]).await.unwrap();
    let (_send, mut recv) = pair.accepted.accept().await.unwrap();
    assert_eq!(recv.recv().await.unwrap().unwrap(), "x");
    (pair.cut)();
    assert_eq!(pair.dialled.closed().await, CloseReason::TimedOut);
    assert_eq!(pair.accepted.closed().await, CloseReason::TimedOut);
    assert_eq!(
        recv.recv().await,
        Err(RecvError::Connection(CloseReason::TimedOut))
    );
}

async fn closed_endpoint_says_goodbye(pair: Pair) {
    let addr = pair.client.local_addr().to_string();
    pair.server.close().await;
    let reason = pair.dialled.closed().await;
    assert!(
        matches!(
            reason,
            CloseReason::Peer {
                code: CloseCode::SHUTDOWN,
                ..
            }
        ),
        "{reason:?}"
    );
    assert!(pair.server.accept().await.is_none());
    let dialled = pair
        .server
        .connect(&addr, &PeerExpectation::agent(CLIENT))
        .await;
    assert!(matches!(dialled, Err(ConnectError::Closed)), "{dialled:?}");
}

async fn oversized_frame_is_refused_early(pair: Pair) {
    let (mut send, _recv) = pair.dialled.open().await.unwrap();
    // Four gibibytes announced, not one byte of them sent.
    send.send(&mut [Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 9])])
        .await
        .unwrap();
    let (_send, recv) = pair.accepted.accept().await.unwrap();
    let mut reader = FrameReader::new(recv).with_max_payload(1000);
    for _ in 0..2 {
        let refused = reader.next().await;
        let Err(FrameError::TooLarge {
            kind: 9,
            len: 0xffff_ffff,
            max: 1000,
        }) = refused
        else {
            panic!("{refused:?}");
        };
    }
    let (send, _recv) = pair.dialled.open().await.unwrap();
    let mut writer = FrameWriter::new(send).with_max_payload(10);
    let refused = writer.write(1, &[noise(11, 1)]).await;
    assert!(
        matches!(
            refused,
            Err(FrameError::TooLarge {
                len: 11,
                max: 10,
                ..
            })
        ),
        "{refused:?}"
    );
    writer.write(1, &[noise(10, 1)]).await.unwrap();
}

async fn truncated_frame_is_an_error(pair: Pair) {
    for (bytes, short) in [(&b"\x05\0\0"[..], 2), (b"\x05\0\0\0\x01abc", 2)] {
        let (mut send, _recv) = pair.dialled.open().await.unwrap();
        send.send(&mut [Bytes::from_static(bytes)]).await.unwrap();
        send.finish().unwrap();
        let (_send, recv) = pair.accepted.accept().await.unwrap();
        let refused = FrameReader::new(recv).next().await;
        let Err(FrameError::Truncated { missing }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(missing, short);
    }
}

async fn frames_survive_cancellation(pair: Pair) {
    let (send, _recv) = pair.dialled.open().await.unwrap();
    let mut writer = FrameWriter::new(send);
    const FRAMES: u8 = 40;
    let sending = tokio::spawn(async move {
        for kind in 0..FRAMES {
            // Polled once, then dropped: with a full window this happens in the midst of a frame.
            let payload = [noise(300_000, kind.into())];
            let write = writer.write(kind, &payload);
            let _ = tokio::time::timeout(Duration::ZERO, write).await;
            tokio::task::yield_now().await;
            writer.flush().await.unwrap();
        }
        writer.finish().await.unwrap();
    });
    let (_send, recv) = pair.accepted.accept().await.unwrap();
    let mut reader = FrameReader::new(recv);
    for kind in 0..FRAMES {
        let frame = loop {
            match tokio::time::timeout(Duration::from_micros(50), reader.next()).await {
                Ok(frame) => break frame.unwrap().unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(frame.kind, kind);
        assert!(frame.payload == noise(300_000, kind.into()));
    }
    assert_eq!(reader.next().await.unwrap(), None);
    sending.await.unwrap();
}
