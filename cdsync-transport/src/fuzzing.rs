//! What the fuzzer and the replay of its corpus call: bytes of somebody else's in, no panic out.

use std::collections::VecDeque;
use std::str::FromStr as _;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::compress::{Compressor, Decompressor};
use crate::connection::{BoxFuture, RecvHalf};
use crate::error::{CloseCode, RecvError, peer_text};
use crate::tcp::record::whole_record;
use crate::{FrameReader, JoinToken, PeerIdentity};

/// What one frame, or what is packed, may come to here.
const MAX_BYTES: usize = 1 << 20;

/// Gives out prepared pieces, then the end.
#[derive(Debug)]
struct Pieces(VecDeque<Bytes>);

impl RecvHalf for Pieces {
    fn recv_many<'a>(
        &'a mut self,
        slots: &'a mut [Bytes],
    ) -> BoxFuture<'a, Result<Option<usize>, RecvError>> {
        let filled = slots.len().min(self.0.len());
        for (slot, piece) in slots.iter_mut().zip(self.0.drain(..filled)) {
            *slot = piece;
        }
        Box::pin(std::future::ready(Ok((filled > 0).then_some(filled))))
    }

    fn stop(&mut self, _code: CloseCode) {}
}

/// A stream of frames; the first byte says how it is cut into pieces.
pub fn frames(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else {
        return;
    };
    let pieces = stream.chunks(usize::from(*cut).max(1));
    let pieces = pieces.map(Bytes::copy_from_slice).collect();
    let reading = async {
        let mut reader = FrameReader::new(Box::new(Pieces(pieces))).with_max_payload(MAX_BYTES);
        let mut taken = 0;
        while let Ok(Some(frame)) = reader.next().await {
            assert!(frame.payload.len() <= MAX_BYTES, "bounded");
            taken += frame.payload.len();
        }
        assert!(taken <= stream.len(), "nothing is made up");
    };
    // Where a stream ends, an answer is always at hand: nothing waits for the clock.
    let mut reading = std::pin::pin!(reading);
    let mut context = Context::from_waker(Waker::noop());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    assert_eq!(
        reading.as_mut().poll(&mut context),
        Poll::Ready(()),
        "it waits"
    );
}

/// Something packed, by whoever.
pub fn packed(bytes: &[u8]) {
    let mut decompressor = Decompressor::new();
    if let Ok(plain) = decompressor.decompress_bounded(bytes, MAX_BYTES) {
        assert!(plain.len() <= MAX_BYTES, "bounded");
        let mut again = Vec::new();
        let packing = Compressor::new().compress_into(1, &[&plain[..]], &mut again);
        packing.expect("what is at hand can be packed");
        let unpacked = decompressor.decompress_bounded(&again, MAX_BYTES);
        assert_eq!(unpacked.as_deref(), Ok(&plain[..]), "the same again");
    }
}

/// What comes before or beside a stream: a record's header, names in certificates, tokens, reasons.
pub fn handshake(bytes: &[u8]) {
    if let Ok(Some(len)) = whole_record(bytes) {
        assert!(len <= bytes.len(), "whole");
    }
    assert!(peer_text(bytes).chars().count() <= 200, "cut");
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(peer) = PeerIdentity::from_dns_name(text) {
        assert_eq!(
            peer.dns_name().as_deref(),
            Some(text),
            "one identity has one name"
        );
    }
    if let Ok(token) = JoinToken::from_str(text) {
        let again: JoinToken = token.to_text().parse().expect("it is one");
        assert_eq!(again.addr(), token.addr());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Proves that nothing which a fuzzer once found worth keeping panics.
    #[test]
    fn the_corpus_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 3] = [
            ("frames", super::frames),
            ("packed", super::packed),
            ("handshake", super::handshake),
        ];
        for (name, target) in targets {
            let mut count = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
