//! What a difference costs: a pseudo-random image of which 1 % of the 4 KiB blocks are overwritten
//! and which has 20 insertions of 1 to 4,000 bytes.
//!
//! `cargo run --release -p cdsync-delta --example difference -- [MiB]` (256 unless told)
#![allow(clippy::print_stdout, reason = "it prints what it measures")]

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use cdsync_delta::{
    BlockSizes, Copy, DeltaKey, Index, Matcher, Piece, Work, encode_copies, gaps, merge, pieces,
    sign_block, unused,
};

const MIB: usize = 1 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }
}

fn changed(base: &[u8], random: &mut Random) -> Vec<u8> {
    let mut new = base.to_vec();
    for _ in 0..base.len() / 4096 / 100 {
        let at = random.below(base.len() / 4096) * 4096;
        new[at..at + 4096].copy_from_slice(&random.bytes(4096));
    }
    for _ in 0..20 {
        let at = random.below(new.len());
        let len = 1 + random.below(4000);
        new.splice(at..at, random.bytes(len));
    }
    new
}

/// Tells how long a step took, and how fast that is for so many bytes.
fn timed<T>(what: &str, bytes: u64, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = step();
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes as f64 / seconds / 1e6;
    println!("{what:<40} {seconds:>8.4} s {rate:>8.0} MB/s");
    result
}

fn sign(key: &DeltaKey, bytes: &[u8], block: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for block in bytes.chunks_exact(block as usize) {
        sign_block(key, block, &mut out);
    }
    out
}

fn part(bytes: &[u8], range: Range<u64>) -> &[u8] {
    &bytes[range.start as usize..range.end as usize]
}

fn find(index: &Index, new: &[u8], range: Range<u64>, found: &mut Vec<Copy>) -> Work {
    let mut matcher = Matcher::new(index, range.start);
    // As read from a file, in parts.
    for bytes in part(new, range).chunks(256 * 1024) {
        matcher.push(bytes, found);
    }
    matcher.finish(found)
}

fn difference(base: &[u8], new: &[u8]) {
    let key = DeltaKey(*blake3::hash(b"any secret").as_bytes());
    let (base_len, new_len) = (base.len() as u64, new.len() as u64);
    let sizes = BlockSizes::for_len(base_len);

    let signature = timed("sign coarse", base_len, || sign(&key, base, sizes.coarse));
    let mut index = Index::new(key.clone(), sizes.coarse);
    timed("index coarse", base_len, || index.add(0, &signature)).expect("own signatures");
    let mut coarse = Vec::new();
    let work = timed("match coarse", new_len, || {
        find(&index, new, 0..new_len, &mut coarse)
    });
    println!("  {work:?}");

    let asked = unused(&coarse, base_len, new_len, sizes);
    let asked_len = asked.iter().map(|range| range.end - range.start).sum();
    let mut index = Index::new(key.clone(), sizes.fine);
    let signatures: Vec<_> = timed("sign fine", asked_len, || {
        let sign = |range: &Range<u64>| sign(&key, part(base, range.clone()), sizes.fine);
        asked.iter().map(sign).collect()
    });
    for (range, signatures) in asked.iter().zip(&signatures) {
        index.add(range.start, signatures).expect("own signatures");
    }
    let gaps_now = gaps(&coarse, new_len);
    let gaps_len = gaps_now.iter().map(|gap| gap.end - gap.start).sum();
    let mut fine = Vec::new();
    timed("match fine", gaps_len, || {
        for gap in gaps_now {
            find(&index, new, gap, &mut fine);
        }
    });

    let copies = merge(&coarse, &fine);
    let encoded = encode_copies(&copies);
    let literals: u64 = gaps(&copies, new_len).iter().map(|g| g.end - g.start).sum();
    let rebuilt = timed("rebuild", new_len, || rebuild(base, new, &copies));
    assert!(rebuilt == new, "the same content");
    let fine_bytes: usize = signatures.iter().map(Vec::len).sum();
    println!("coarse signature {:>12} bytes", signature.len());
    println!(
        "fine signatures  {fine_bytes:>12} bytes, {} stretches",
        asked.len()
    );
    println!(
        "encoded copies   {:>12} bytes, {} copies",
        encoded.len(),
        copies.len()
    );
    println!("literals         {literals:>12} bytes");
    let total = signature.len() as u64 + fine_bytes as u64 + encoded.len() as u64 + literals;
    println!("altogether       {total:>12} bytes of {new_len}\n");
}

fn rebuild(base: &[u8], new: &[u8], copies: &[Copy]) -> Vec<u8> {
    let mut out = Vec::with_capacity(new.len());
    for piece in pieces(copies, new.len() as u64) {
        match piece {
            Piece::Copy { from, len } => out.extend_from_slice(part(base, from..from + len)),
            Piece::Literal { len } => {
                out.extend_from_slice(&new[out.len()..out.len() + len as usize]);
            }
        }
    }
    out
}

fn main() {
    let told = std::env::args().nth(1).map(|mib| mib.parse().expect("MiB"));
    let len = told.unwrap_or(256) * MIB;
    let mut random = Random(1);
    let base = random.bytes(len);
    let new = changed(&base, &mut random);
    // Memory is slow when it is touched for the first time.
    black_box(blake3::hash(&new));

    println!("an image with 1 % of its blocks changed, and 20 insertions");
    difference(&base, &new);
    println!("nothing in common");
    difference(&base, &random.bytes(len));
    println!("the same");
    difference(&base, &base);
}
