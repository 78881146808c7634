//! Encoded bytes: signatures and copies.

use proptest::prelude::*;

use super::*;

/// Proves the exact bytes of a signature and of a list of copies, which peers of other versions
/// read.
#[test]
fn encoded_bytes_stay() {
    let mut out = Vec::new();
    sign_block(&KEY, &noise(4096, 1), &mut out);
    assert_eq!(out, [177, 61, 110, 186, 27, 234, 187, 161, 1]);
    let copies = [
        Copy {
            at: 0,
            from: 0,
            len: 4096,
        },
        Copy {
            at: 8192,
            from: 8192,
            len: 300,
        },
        Copy {
            at: 8492,
            from: 8491,
            len: 1,
        },
    ];
    let bytes = [1, 0, 0, 0x80, 0x20, 0x80, 0x20, 0, 0xac, 0x02, 0, 1, 1];
    assert_eq!(encode_copies(&copies), bytes);
    assert_eq!(decode_copies(&bytes, 8492, 8493), Ok(copies.to_vec()));
    assert_eq!(encode_copies(&[]), [1]);
}

/// Proves that each kind of bad list is refused, and told.
#[test]
fn bad_copies_are_refused() {
    let decode = |bytes: &[u8]| decode_copies(bytes, 100, 50).unwrap_err();
    let index = 0;
    assert_eq!(decode(&[]), DeltaError::Truncated { index });
    assert_eq!(decode(&[2]), DeltaError::Version { found: 2 });
    for cut in [&[1, 0][..], &[1, 0, 0], &[1, 0x80], &[1, 0, 0x80, 1]] {
        assert_eq!(decode(cut), DeltaError::Truncated { index });
    }
    assert_eq!(decode(&[1, 0, 0, 1, 0]), DeltaError::Truncated { index: 1 });
    assert_eq!(decode(&[1, 0, 0, 0]), DeltaError::CopyEmpty { index });
    let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let mut beyond = max;
    beyond[9] = 2;
    assert_eq!(
        decode(&[&[1][..], &beyond].concat()),
        DeltaError::Number { index }
    );
    assert_eq!(decode(&[1, 0x80, 0, 0, 1]), DeltaError::Number { index });
    let outside_base = |bytes: &[u8]| matches!(decode(bytes), DeltaError::OutsideBase { .. });
    assert!(outside_base(&[1, 0, 1, 1]), "before the base");
    assert!(outside_base(&[1, 0, 120, 41]), "beyond the base");
    assert!(outside_base(&[&[1, 0, 2][..], &max].concat()), "overflow");
    let outside_new = |bytes: &[u8]| matches!(decode(bytes), DeltaError::OutsideNew { .. });
    assert!(outside_new(&[1, 0, 0, 51]), "too long");
    assert!(outside_new(&[1, 50, 0, 1]), "too far");
    assert!(
        outside_new(&[&[1, 0, 0, 1][..], &max, &[2, 1]].concat()),
        "overflow"
    );
    let many = [&[1][..], &[0, 0, 1].repeat(COPIES_MAX + 1)].concat();
    let len = u64::MAX;
    assert_eq!(decode_copies(&many, len, len), Err(DeltaError::CopyCount));
    assert!(decode_copies(&many[..many.len() - 3], len, len).is_ok());
}

/// Proves that noise never panics, and that a list which is read is the only one of its meaning.
#[test]
fn noise_is_survived() {
    let seed = std::env::var("CDSYNC_SEED")
        .ok()
        .and_then(|told| told.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64
        });
    eprintln!("CDSYNC_SEED={seed}");
    let bytes = noise(40 * 20_000, seed);
    for (count, part) in bytes.chunks(40).enumerate() {
        let mut part = part.to_vec();
        part[16] = COPIES_VERSION;
        if count % 2 == 0 {
            // Small numbers, of which most are read.
            part[17..].iter_mut().for_each(|byte| *byte &= 0x8f);
        }
        crate::fuzzing::copies(&part);
    }
}

proptest! {
    /// Proves that copies survive their encoding, whatever they are.
    #[test]
    fn copies_are_read_as_written(
        parts in prop::collection::vec((any::<u16>(), any::<u64>(), 1..u64::MAX), 0..50),
        small: bool,
    ) {
        let mut end = 0_u64;
        let mut copies = Vec::new();
        for (gap, from, len) in parts {
            let len = if small { len % 5000 + 1 } else { len >> 8 };
            let (at, from) = (end.saturating_add(gap.into()), from >> 1);
            if len == 0 || at.checked_add(len).is_none() {
                break;
            }
            copies.push(Copy { at, from, len });
            end = at + len;
        }
        let bytes = encode_copies(&copies);
        prop_assert_eq!(decode_copies(&bytes, u64::MAX, end), Ok(copies));
    }
}
