mod lists;
mod random;

use super::*;

const KEY: DeltaKey = DeltaKey([7; 32]);

/// Bytes without any pattern.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 56) as u8
    })
    .take(len)
    .collect()
}

fn signed(blocks: &[u8], block: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for block in blocks.chunks_exact(block as usize) {
        sign_block(&KEY, block, &mut out);
    }
    out
}

fn index_of(base: &[u8], block: u32) -> Index {
    let mut index = Index::new(KEY, block);
    index.add(0, &signed(base, block)).unwrap();
    index
}

fn matched(index: &Index, new: &[u8]) -> (Vec<Copy>, Work) {
    let mut found = Vec::new();
    let mut matcher = Matcher::new(index, 0);
    matcher.push(new, &mut found);
    let work = matcher.finish(&mut found);
    (found, work)
}

fn copied(copies: &[Copy]) -> u64 {
    copies.iter().map(|copy| copy.len).sum()
}

/// Both levels, as two sides do it.
fn two_levels(base: &[u8], new: &[u8], sizes: BlockSizes) -> Vec<Copy> {
    let new_len = new.len() as u64;
    let (coarse, _) = matched(&index_of(base, sizes.coarse), new);
    let mut index = Index::new(KEY, sizes.fine);
    for range in unused(&coarse, base.len() as u64, new_len, sizes) {
        let bytes = &base[range.start as usize..range.end as usize];
        assert_eq!(bytes.len() % sizes.fine as usize, 0, "whole fine blocks");
        index.add(range.start, &signed(bytes, sizes.fine)).unwrap();
    }
    let mut fine = Vec::new();
    for gap in gaps(&coarse, new_len) {
        let mut matcher = Matcher::new(&index, gap.start);
        matcher.push(&new[gap.start as usize..gap.end as usize], &mut fine);
        matcher.finish(&mut fine);
    }
    merge(&coarse, &fine)
}

fn rebuilt(base: &[u8], new: &[u8], copies: &[Copy]) -> Vec<u8> {
    let (base_len, new_len) = (base.len() as u64, new.len() as u64);
    let copies = decode_copies(&encode_copies(copies), base_len, new_len).unwrap();
    let mut literals: Vec<u8> = Vec::new();
    for gap in gaps(&copies, new_len) {
        literals.extend(&new[gap.start as usize..gap.end as usize]);
    }
    let (mut out, mut rest) = (Vec::new(), &literals[..]);
    for piece in pieces(&copies, new_len) {
        match piece {
            Piece::Copy { from, len } => out.extend(&base[from as usize..][..len as usize]),
            Piece::Literal { len } => {
                let (now, later) = rest.split_at(len as usize);
                out.extend(now);
                rest = later;
            }
        }
    }
    assert!(rest.is_empty(), "every literal has its place");
    out
}

/// Proves that any lengths around that of a block are rebuilt, and found where there is a block.
#[test]
fn edges_of_a_block_are_exact() {
    for block in [1_u32, 7, 8, 9, 64, 100, 4096] {
        let size = block as usize;
        let lens = [0, 1, size - 1, size, size + 1, 2 * size, 3 * size + 5];
        let content = noise(4 * size + 8, 3);
        for base_len in lens {
            for new_len in lens {
                let (base, new) = (&content[..base_len], &content[..new_len]);
                let (found, _) = matched(&index_of(base, block), new);
                assert_eq!(rebuilt(base, new, &found), new);
                let blocks = (base_len / size).min(new_len / size);
                assert!(
                    copied(&found) >= (blocks * size) as u64,
                    "{block} {base_len} {new_len}"
                );
            }
        }
    }
}

/// Proves that a content of equal blocks is one copy, takes no rolling, and one hash for each byte.
#[test]
fn equal_blocks_are_no_work() {
    const MIB: usize = 1 << 20;
    let base = vec![0; 64 * MIB];
    let index = index_of(&base, 32 * 1024);
    for more in [1, 5000] {
        let new = vec![0; base.len() + more];
        let (found, work) = matched(&index, &new);
        let len = base.len() as u64;
        assert_eq!(
            found,
            [Copy {
                at: 0,
                from: 0,
                len
            }]
        );
        assert!(
            work.rolled <= more as u64 + 8 && work.hashed == len,
            "{work:?}"
        );
    }
    let mut new = vec![0; base.len()];
    new[10 * MIB + 77] = 1;
    let (found, work) = matched(&index, &new);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(copied(&found), (64 * MIB - 32 * 1024) as u64);
    assert_eq!(work.rolled, 0, "the same shift is tried first");
}

/// Proves that an insertion at the start shifts everything, and nearly everything is copied.
#[test]
fn an_insertion_shifts() {
    let base = noise(1 << 20, 1);
    for inserted in [1, 3, 4096, 40_000] {
        let mut new = noise(inserted, 2);
        new.extend(&base);
        let (found, work) = matched(&index_of(&base, 4096), &new);
        let (at, len) = (inserted as u64, 1 << 20);
        assert_eq!(found, [Copy { at, from: 0, len }]);
        assert!(work.rolled <= at + 8, "{work:?}");
    }
}

/// Proves that blocks which change places are found, and each run is one copy.
#[test]
fn moved_blocks_are_found() {
    let base = noise(64 * 1024, 5);
    let order = [3, 0, 1, 2, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11];
    let mut new = Vec::new();
    for number in order {
        new.extend(&base[number * 4096..][..4096]);
    }
    let (found, work) = matched(&index_of(&base, 4096), &new);
    assert_eq!((found.len(), copied(&found)), (4, 64 * 1024));
    assert_eq!(work.rolled, 0);
    assert_eq!(rebuilt(&base, &new, &found), new);
}

/// Proves that the second level finds what is around a change within a coarse block, and the end
/// of a base that is no whole coarse block.
#[test]
fn the_second_level_narrows() {
    let base = noise(300 * 1024 + 9000, 9);
    let sizes = BlockSizes::for_len(base.len() as u64);
    let mut new = base.clone();
    new[100_000] ^= 1;
    let copies = two_levels(&base, &new, sizes);
    assert_eq!(rebuilt(&base, &new, &copies), new);
    let rest = base.len() as u64 % 4096;
    assert_eq!(new.len() as u64 - copied(&copies), 4096 + rest);
}

/// Proves that the second level is left out where it costs more than it may find.
#[test]
fn a_small_gap_asks_for_nothing() {
    let sizes = BlockSizes::for_len(1 << 20);
    let len = 1 << 20;
    let all = [Copy {
        at: 0,
        from: 0,
        len,
    }];
    assert_eq!(unused(&all, len, len, sizes), []);
    let half = [Copy {
        at: 0,
        from: 32 * 1024,
        len: len / 2,
    }];
    assert_eq!(unused(&half, len, len / 2 + 100, sizes), []);
    let asked = [0..32 * 1024, 32 * 1024 + len / 2..len];
    assert_eq!(unused(&half, len, len, sizes), asked);
    let huge = unused(&[], u64::MAX, u64::MAX, sizes);
    let all = std::iter::once(0..SIGNATURE_BLOCKS_MAX * 4096);
    assert!(huge.into_iter().eq(all), "as many as an index takes");
}

/// Proves that block lengths are powers of two, and that no base has too many coarse blocks.
#[test]
fn block_sizes_are_bounded() {
    let at = |len| BlockSizes::for_len(len).coarse;
    assert_eq!(at(0), 2048);
    assert_eq!(at(256 * 1024 - 1), 32 * 1024);
    assert_eq!(at(4 << 30), 32 * 1024);
    assert_eq!(at((4 << 30) + 1), 64 * 1024);
    assert_eq!(at(256 << 30), 2 << 20);
    assert_eq!(at(u64::MAX), 2 << 20);
    for bits in 0..64 {
        for len in [1_u64 << bits, (1 << bits) - 1, (1 << bits) + 12_345] {
            let sizes = BlockSizes::for_len(len);
            assert!(sizes.coarse.is_power_of_two() && sizes.fine == sizes.coarse / 8);
            assert!(sizes.blocks(len) <= SIGNATURE_BLOCKS_MAX);
            let all = len / u64::from(sizes.coarse);
            assert!(sizes.blocks(len) == all || len > 256 << 30, "{len}");
        }
    }
}

/// Proves that a window's state is the same when rolled to as when computed, for any block length.
#[test]
fn rolling_equals_computing() {
    use super::rolling::{Filter, LOOKAHEAD, Roll, Weak, weak_of};
    let data = noise(2000, 4);
    let weak = Weak::new(&KEY);
    for block in [1, 7, 8, 9, 31, 32, 100, 512] {
        let mut roll = Roll::new(weak, block);
        roll.start(&data);
        let empty = Filter::new(0);
        for group in 0..100 {
            for lane in 0..8 {
                let at = group * 8 + lane;
                let whole = weak_of(weak.state(&data[at..at + block]));
                assert_eq!(roll.weak(lane), whole, "{block} {at}");
            }
            let here = &data[group * 8..][..block + LOOKAHEAD];
            if group % 2 == 0 {
                roll.step(here);
            } else {
                assert_eq!(roll.run(here, 1, &empty), (1, 0));
            }
        }
    }
}

/// Proves that the weak hash tells apart blocks that differ little or in a regular way.
#[test]
fn the_weak_hash_spreads() {
    use super::rolling::{Weak, weak_of};
    use std::collections::HashSet;
    let weak = Weak::new(&KEY);
    let mut seen = HashSet::new();
    let mut count = 0;
    let mut add = |block: &[u8]| {
        count += 1;
        seen.insert(weak_of(weak.state(block)));
    };
    for byte in 0..=255 {
        add(&[byte; 4096]);
    }
    for place in 0..4096 {
        for value in [1, 2, 128, 255] {
            let mut block = vec![0; 4096];
            block[place] = value;
            add(&block);
        }
    }
    // Counters that move in the last byte of every word only, as in big-endian tables.
    for start in 1..4096_u32 {
        let word = |n: u32| u64::from(start.wrapping_mul(n) & 0xff) << 56 | u64::from(start);
        let block: Vec<u8> = (0..512).flat_map(|n| word(n).to_le_bytes()).collect();
        add(&block);
    }
    // By chance about 0.05 pairs of 21,000 would be equal.
    assert!(seen.len() + 2 > count, "{} of {count}", seen.len());
}

/// Proves that equal weak hashes at every offset cost no more than was promised, and that the
/// filter and the index are asked in few cases of unknown content.
#[test]
fn vain_work_is_bounded() {
    // Blocks shorter than a word all have weak hash 0; the base has none of these strong hashes.
    let base = noise(7 * 4, 1);
    let new = noise(1 << 20, 2);
    let (_, work) = matched(&index_of(&base, 7), &new);
    let most = 17 * new.len() as u64 + 65 * (7 + 256);
    assert!(work.vain > 0 && work.vain <= most, "{work:?}");

    let base = noise(16 << 20, 3);
    let (found, work) = matched(&index_of(&base, 512), &new);
    assert_eq!(found, []);
    // 2^15 blocks at 2^20 offsets: 8 are equal by chance.
    assert!(work.vain <= 40 * (512 + 256), "{work:?}");
}

/// Proves that an index takes what fits and refuses the rest, with nothing added.
#[test]
fn an_index_refuses() {
    let mut index = Index::new(KEY, 4096);
    let bytes = vec![0; BLOCK_SIGNATURE_BYTES];
    assert_eq!(
        index.add(0, &bytes[1..]),
        Err(DeltaError::SignatureLength { bytes: 8 })
    );
    let too_many = vec![0; BLOCK_SIGNATURE_BYTES * (SIGNATURE_BLOCKS_MAX as usize + 1)];
    let blocks = SIGNATURE_BLOCKS_MAX + 1;
    assert_eq!(
        index.add(0, &too_many),
        Err(DeltaError::SignatureCount { blocks })
    );
    let from = u64::MAX - 4095;
    let (blocks, block) = (1, 4096);
    assert_eq!(
        index.add(from, &bytes),
        Err(DeltaError::SignatureSpan {
            from,
            blocks,
            block
        })
    );
    let (from, block) = (0, 0);
    assert_eq!(
        Index::new(KEY, 0).add(0, &bytes),
        Err(DeltaError::SignatureSpan {
            from,
            blocks,
            block
        })
    );
    assert!(index.is_empty());
    assert_eq!(index.add(u64::MAX - 4096, &bytes), Ok(()));
    assert_eq!(index.add(5, &[]), Ok(()));
    assert_eq!(index.len(), 1);
    let (at, from) = (u64::MAX - 20_000, u64::MAX - 4096);
    let mut matcher = Matcher::new(&index, at).expecting(from);
    matcher.push(&[0; 10_000], &mut Vec::new());
    matcher.finish(&mut Vec::new());
}

/// Proves that an index with every weak hash there can be finds its blocks, in any order.
#[test]
fn many_stretches_are_found() {
    let base = noise(1 << 20, 11);
    let mut index = Index::new(KEY, 64);
    for from in (0..base.len()).step_by(160).rev() {
        let end = base.len().min(from + 128);
        index
            .add(from as u64, &signed(&base[from..end], 64))
            .unwrap();
    }
    let (found, _) = matched(&index, &base);
    assert_eq!(rebuilt(&base, &base, &found), base);
    assert!(copied(&found) >= (base.len() / 160 * 128) as u64);
}

/// Proves that a list of copies does not grow for ever, and that what it has is right.
#[test]
fn copies_are_limited() {
    let base = noise(8, 1);
    let new = base.repeat(COPIES_MAX + 10);
    let (found, _) = matched(&index_of(&base, 8), &new);
    assert_eq!(found.len(), COPIES_MAX);
    let (base_len, new_len) = (base.len() as u64, new.len() as u64);
    let bytes = encode_copies(&found);
    assert!(decode_copies(&bytes, base_len, new_len).is_ok_and(|copies| copies == found));
    assert_eq!(gaps(&found, new_len).len(), 1);
    let twice = merge(
        &found,
        &[Copy {
            at: new_len - 8,
            from: 0,
            len: 8,
        }],
    );
    assert_eq!(twice.len(), COPIES_MAX);
}

/// Proves that of equal blocks the expected one is taken.
#[test]
fn what_is_expected_is_taken() {
    let base = vec![0; 64 * 1024];
    let index = index_of(&base, 4096);
    let mut found = Vec::new();
    let mut matcher = Matcher::new(&index, 100).expecting(12_288);
    matcher.push(&base[..10_000], &mut found);
    matcher.finish(&mut found);
    assert_eq!(
        found,
        [Copy {
            at: 100,
            from: 12_288,
            len: 8192
        }]
    );
}

/// Proves that no secret and no content comes into a log.
#[test]
fn logs_show_no_content() {
    let index = index_of(&[0x61; 64], 8);
    let mut matcher = Matcher::new(&index, 0);
    matcher.push(&[0x61; 5], &mut Vec::new());
    let shown = format!("{index:?} {matcher:?} {KEY:?}");
    assert!(!shown.contains("97") && !shown.contains("7, 7"), "{shown}");
}
