//! What the fuzzer and the replay of its corpus call: bytes of somebody else's in, no panic out.

use bytes::Bytes;
use cdsync_transport::compress::Decompressor;

use crate::target::engine::open_batch;

/// A batch frame; the first byte says whether it is compressed.
pub fn batch(bytes: &[u8]) {
    let Some((compressed, payload)) = bytes.split_first() else {
        return;
    };
    let payload = Bytes::copy_from_slice(payload);
    let opened = open_batch(&mut Decompressor::new(), compressed & 1 == 1, payload);
    if let Ok((header, contents)) = opened {
        assert_eq!(header.contents.len(), contents.len(), "one for each");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Proves that nothing which a fuzzer once found worth keeping panics.
    #[test]
    fn the_corpus_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 1] = [("batch", super::batch)];
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
