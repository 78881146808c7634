//! What the fuzzer and the replay of its corpus call: bytes of somebody else's in, no panic out.

use crate::{RANGE_BYTES, RangeHash, RootBuilder, range_count, range_hash, range_span};

/// How many ranges are pushed at most: beyond it nothing new happens.
const PUSHED_MAX: u64 = 4096;

/// A content as an upstream announces it: `[u64 LE size][u16 LE ranges sent][bytes of a range]`.
pub fn content(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let Some((sent, rest)) = rest.split_first_chunk::<2>() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    let sent = u64::from(u16::from_le_bytes(*sent)).min(PUSHED_MAX);
    let range = &rest[..rest.len().min(RANGE_BYTES)];
    let mut root = RootBuilder::new();
    for index in 0..sent {
        let span = range_span(index, size);
        assert!(
            span.end - span.start <= RANGE_BYTES as u64 && span.end <= size,
            "a part of it"
        );
        root.push(range_hash(index, range, sent == 1));
    }
    let whole = root.clone().finish(size);
    assert!(
        whole.is_err() || sent == range_count(size) || size == 0,
        "all of it"
    );
    root.push(RangeHash([0; 32]));
    assert!(
        root.finish(size).is_err() || sent + 1 == range_count(size) || size == 0,
        "no more"
    );
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Proves that nothing which a fuzzer once found worth keeping panics.
    #[test]
    fn the_corpus_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 1] = [("content", super::content)];
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
