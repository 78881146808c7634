//! What the fuzzer and the replay of its corpus call: bytes of somebody else's in, no panic out.

use crate::{
    BlockSizes, Piece, RANGE_BYTES, RangeHash, RootBuilder, decode_copies, encode_copies, gaps,
    pieces, range_count, range_hash, range_span, unused,
};

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

/// Copies as a peer sends them: `[u64 LE length of the base][u64 LE length of the new content]`,
/// then the list.
pub fn copies(bytes: &[u8]) {
    let Some((base_len, rest)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let Some((new_len, rest)) = rest.split_first_chunk::<8>() else {
        return;
    };
    let base_len = u64::from_le_bytes(*base_len);
    let new_len = u64::from_le_bytes(*new_len);
    let Ok(copies) = decode_copies(rest, base_len, new_len) else {
        return;
    };
    assert_eq!(encode_copies(&copies), rest, "one encoding");
    let mut at = 0;
    for copy in &copies {
        assert!(copy.at >= at && copy.len > 0, "in order");
        assert!(copy.from + copy.len <= base_len, "within the base");
        at = copy.at + copy.len;
    }
    assert!(at <= new_len, "within the content");
    let total = pieces(&copies, new_len).map(|piece| match piece {
        Piece::Copy { len, .. } | Piece::Literal { len } => len,
    });
    assert_eq!(total.sum::<u64>(), new_len, "all of it");
    assert!(gaps(&copies, new_len).len() <= copies.len() + 1);
    let sizes = BlockSizes::for_len(base_len);
    let stretches = unused(&copies, base_len, new_len, sizes);
    assert!(stretches.is_sorted_by(|a, b| a.end <= b.start));
    assert!(
        stretches
            .iter()
            .all(|s| s.start < s.end && s.end <= base_len)
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
        let targets: [Target; 2] = [("content", super::content), ("copies", super::copies)];
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
