//! Peers that take or bring next to nothing, and those that are only slow.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_transport::{
    ClusterId, Connection, FrameError, FrameReader, FrameWriter, MemoryNetwork, MemoryTransport,
    PACE_BYTES, PATIENCE, PeerExpectation, PeerIdentity, Stream, Transport,
};
use tokio::time::{Instant, sleep};

use crate::world::{CLIENT, SERVER, accept_one};

type Ends = ([Arc<MemoryTransport>; 2], [Arc<dyn Connection>; 2]);

/// A stream in memory, whose clock is the test's: both ends, and what keeps them.
async fn stream() -> (Stream, Stream, Ends) {
    let network = MemoryNetwork::new();
    let agent = |id| PeerIdentity::agent(ClusterId(1), id);
    let one = network.endpoint("one:1", agent(CLIENT));
    let two = network.endpoint("two:1", agent(SERVER));
    let expect = PeerExpectation::agent(SERVER);
    let dialled = one.connect("two:1", &expect).await.unwrap();
    let accepted = accept_one(&*two).await;
    let (mut send, recv) = dialled.open().await.unwrap();
    // A stream is known by its first byte; a frame of no bytes is passed over by the readers here.
    send.send(&mut [Bytes::from_static(&[0; 5])]).await.unwrap();
    let theirs = accepted.accept().await.unwrap();
    ((send, recv), theirs, ([one, two], [dialled, accepted]))
}

/// Proves that a peer which sends a frame byte by byte is given up, also when it never pauses for
/// long, and when its frame is a small one.
#[tokio::test(start_paused = true)]
async fn a_dripping_sender_is_given_up() {
    for len in [100_u32, 1 << 20] {
        let ((mut send, _back), (_answer, recv), _ends) = stream().await;
        let dripping = tokio::spawn(async move {
            let head = Bytes::from([&len.to_le_bytes()[..], &[7]].concat());
            send.send(&mut [head]).await.unwrap();
            while send.send(&mut [Bytes::from_static(b"x")]).await.is_ok() {
                sleep(PATIENCE / 12).await;
            }
        });
        let mut reader = FrameReader::new(recv);
        reader.next().await.unwrap().unwrap();
        let began = Instant::now();
        let error = reader.next().await.unwrap_err();
        assert!(matches!(error, FrameError::Stalled { .. }), "{error:?}");
        assert!(began.elapsed() < 2 * PATIENCE);
        drop(reader);
        dripping.await.unwrap();
    }
}

/// Proves that a slow peer at the pace that is asked for brings its frame, however long it takes, and
/// that it is not taken for silent.
#[tokio::test(start_paused = true)]
async fn a_slow_sender_is_waited_for() {
    let ((mut send, _back), (_answer, recv), _ends) = stream().await;
    let pieces = 20;
    let len = pieces * PACE_BYTES as u32;
    tokio::spawn(async move {
        let head = Bytes::from([&len.to_le_bytes()[..], &[7]].concat());
        send.send(&mut [head]).await.unwrap();
        for _ in 0..pieces {
            sleep(PATIENCE * 9 / 10).await;
            let piece = Bytes::from(vec![1; PACE_BYTES as usize]);
            send.send(&mut [piece]).await.unwrap();
        }
        send.finish().unwrap();
    });
    let mut reader = FrameReader::new(recv);
    reader.next().await.unwrap().unwrap();
    let began = Instant::now();
    let frame = reader.next_within(PATIENCE).await.unwrap().unwrap();
    assert_eq!(frame.payload.len(), len as usize);
    assert!(began.elapsed() > 10 * PATIENCE);
}

/// Proves that a peer which says nothing is given up in its time, and that one which begins a frame
/// in the last moment is not.
#[tokio::test(start_paused = true)]
async fn silence_is_told_from_slowness() {
    let silence = Duration::from_secs(10);
    let ((mut send, _back), (_answer, recv), _ends) = stream().await;
    let mut reader = FrameReader::new(recv);
    reader.next().await.unwrap().unwrap();
    let late = tokio::spawn(async move {
        sleep(silence * 9 / 10).await;
        send.send(&mut [Bytes::from_static(&[3, 0, 0])])
            .await
            .unwrap();
        sleep(silence * 9 / 10).await;
        send.send(&mut [Bytes::from_static(&[0, 7, 1, 2, 3])])
            .await
            .unwrap();
        send
    });
    let frame = reader.next_within(silence).await.unwrap().unwrap();
    assert_eq!(frame.payload, [1, 2, 3][..]);
    let _kept = late.await.unwrap();
    let began = Instant::now();
    let error = reader.next_within(silence).await.unwrap_err();
    assert!(matches!(error, FrameError::Silent { .. }), "{error:?}");
    assert_eq!(began.elapsed(), silence);
}

/// Proves that a peer which takes nothing, or next to nothing, is given up, and that one which takes
/// slowly gets all.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_takes_nothing_is_given_up() {
    let payload = Bytes::from(vec![3; 4 << 20]);
    for (step, waits) in [(0, false), (1, false), (200, true)] {
        let ((send, _back), (_answer, mut recv), _ends) = stream().await;
        let reading = tokio::spawn(async move {
            let mut all = 0;
            if step == 0 {
                return std::future::pending().await;
            }
            loop {
                sleep(PATIENCE / 10).await;
                for _ in 0..step {
                    match recv.recv().await {
                        Ok(Some(piece)) => all += piece.len(),
                        _ => return all,
                    }
                }
            }
        });
        let mut writer = FrameWriter::new(send).with_max_payload(payload.len());
        // In pieces of a few bytes, so that a reader takes few at a time.
        let parts: Vec<Bytes> = payload.chunks(1_000).map(Bytes::copy_from_slice).collect();
        let written = writer.write(1, &parts).await;
        if waits {
            written.unwrap();
            writer.finish().await.unwrap();
            assert_eq!(reading.await.unwrap(), payload.len() + 5 + 5);
        } else {
            let error = written.unwrap_err();
            assert!(matches!(error, FrameError::Stalled { .. }), "{error:?}");
            reading.abort();
        }
    }
}
