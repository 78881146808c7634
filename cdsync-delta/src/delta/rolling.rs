//! The weak hash, which moves along a content at little cost.
//!
//! It is the polynomial fingerprint of R. Karp and M. Rabin ("Efficient randomized
//! pattern-matching algorithms", 1987), as librsync uses it since 2.1, with three differences:
//!
//! - Its letters are words of 8 bytes. Signing a block takes an eighth of the multiplications; for
//!   every offset, eight states are rolled, one for each offset within a word. They do not wait for
//!   each other as the steps of a single one would.
//! - It is computed modulo 2^64, and its upper 32 bits are the hash: a multiplication modulo a
//!   power of two mixes upwards only (M. Dietzfelbinger et al., "A reliable randomized algorithm
//!   for the closest-pair problem", 1997), and the low bits would repeat. The upper half of a word
//!   is folded into its lower half before, so that its last bytes reach all of those bits.
//! - The multiplier comes from the key of the transfer.
//!
//! A polynomial modulo a power of two has known collisions (Thue-Morse sequences). They cost time,
//! which the matcher bounds, never correctness.

use super::DeltaKey;

/// Bytes of a word: how many offsets are rolled together.
pub(super) const WORD: usize = 8;

/// How many bytes beyond the first window a step of [`Roll`] reads.
pub(super) const LOOKAHEAD: usize = 2 * WORD;

/// The weak hash under one key: of the letters `c[0]` to `c[k - 1]` of a window, the upper half of
/// the state `c[0] * m^k + c[1] * m^(k - 1) + .. + c[k - 1] * m`, modulo 2^64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weak {
    multiplier: u64,
}

impl Weak {
    pub(super) fn new(key: &DeltaKey) -> Self {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for part in key.0.as_chunks::<WORD>().0 {
            // The finalizer of SplitMix64: also a poor key gives a multiplier of many bits.
            seed = (seed ^ u64::from_le_bytes(*part)).wrapping_add(0x9e37_79b9_7f4a_7c15);
            seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            seed ^= seed >> 31;
        }
        // 5 modulo 8: of the longest period, 2^62.
        Self {
            multiplier: (seed & !7) | 5,
        }
    }

    /// The state of a window, whose bytes beyond the last whole word do not count.
    pub(super) fn state(self, window: &[u8]) -> u64 {
        // Four sums, which do not wait for each other, of every fourth word each.
        let m = self.multiplier;
        let (m2, m4) = (self.power(2), self.power(4));
        let mut sums = [0_u64; 4];
        let (quads, rest) = window.as_chunks::<{ 4 * WORD }>();
        for quad in quads {
            let (words, _) = quad.as_chunks::<WORD>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_mul(m4).wrapping_add(letter(word));
            }
        }
        let upper = sums[0].wrapping_mul(m).wrapping_add(sums[1]);
        let lower = sums[2].wrapping_mul(m).wrapping_add(sums[3]);
        let mut state = upper.wrapping_mul(m2).wrapping_add(lower);
        for word in rest.as_chunks::<WORD>().0 {
            state = state.wrapping_mul(m).wrapping_add(letter(word));
        }
        // Without it the last word would not reach the upper half.
        state.wrapping_mul(m)
    }

    fn power(self, exponent: usize) -> u64 {
        let (mut result, mut square, mut rest) = (1_u64, self.multiplier, exponent);
        while rest > 0 {
            if rest & 1 == 1 {
                result = result.wrapping_mul(square);
            }
            square = square.wrapping_mul(square);
            rest >>= 1;
        }
        result
    }
}

/// The hash of a state.
#[inline]
pub(super) fn weak_of(state: u64) -> u32 {
    (state >> 32) as u32
}

#[inline(always)]
fn letter(word: &[u8; WORD]) -> u64 {
    let word = u64::from_le_bytes(*word);
    word ^ (word >> 32)
}

/// Which weak hashes may be known: asked at every offset, before anything slower.
///
/// Two tables of bits, one bit of each for a hash. An unknown hash passes the first in about 1 of 64
/// cases, and both in 1 of 1,024. Two bits in one word would need less memory, but more shifts by a
/// variable, which are slow on plain x86-64 and took half of the time.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    /// A power of two, and so is the other: a word for each hash.
    first: Vec<u64>,
    /// A quarter as long.
    second: Vec<u64>,
}

impl Filter {
    /// For this many hashes.
    pub(super) fn new(hashes: usize) -> Self {
        let words = hashes.next_power_of_two().clamp(64, FILTER_WORDS_MAX);
        Self {
            first: vec![0; words],
            second: vec![0; words / 4],
        }
    }

    /// Whether one hash beyond `hashes` should have a longer filter.
    pub(super) fn is_full(&self, hashes: usize) -> bool {
        hashes >= self.first.len() && self.first.len() < FILTER_WORDS_MAX
    }

    pub(super) fn insert(&mut self, weak: u32) {
        // As `passes` counts them, from the state that ends with this hash.
        let state = u64::from(weak) << 32;
        let place = (state >> 38) as usize & (self.first.len() - 1);
        self.first[place] |= 1 << (state >> 32 & 63);
        let place = second_place(weak) & (self.second.len() - 1);
        self.second[place] |= 1 << (weak >> 26);
    }

    pub(super) fn may_contain(&self, weak: u32) -> bool {
        passes(&self.first, u64::from(weak) << 32) && self.passes_second(weak)
    }

    fn passes_second(&self, weak: u32) -> bool {
        let word = self.second[second_place(weak) & (self.second.len() - 1)];
        word >> (weak >> 26) & 1 != 0
    }
}

/// The longest first table: 4 MiB, half a word for each of the most blocks.
const FILTER_WORDS_MAX: usize = 1 << 19;

#[inline(always)]
fn passes(first: &[u64], state: u64) -> bool {
    let word = first[(state >> 38) as usize & (first.len() - 1)];
    word >> (state >> 32 & 63) & 1 != 0
}

/// Upper and lower bits in another mixture than that of the first table.
fn second_place(weak: u32) -> usize {
    (weak.wrapping_mul(0x9e37_79b1) >> 13) as usize
}

/// The weak hashes of the eight windows that begin at an offset and at the seven after it.
#[derive(Debug, Clone)]
pub(super) struct Roll {
    states: [u64; WORD],
    multiplier: u64,
    /// By what a word is multiplied when it leaves the window.
    leaving: u64,
    /// The part of a window that counts, in bytes.
    span: usize,
}

impl Roll {
    pub(super) fn new(weak: Weak, block: usize) -> Self {
        Self {
            states: [0; WORD],
            multiplier: weak.multiplier,
            leaving: weak.power(block / WORD),
            span: block / WORD * WORD,
        }
    }

    /// Begins at the start of `data`, which is at least 7 bytes longer than a block.
    pub(super) fn start(&mut self, data: &[u8]) {
        self.states = [0; WORD];
        let reach = &data[..self.span + WORD - 1];
        for at in (0..self.span).step_by(WORD) {
            let bytes = &reach[at..at + 2 * WORD - 1];
            for (state, word) in self.states.iter_mut().zip(bytes.array_windows()) {
                *state = state
                    .wrapping_add(letter(word))
                    .wrapping_mul(self.multiplier);
            }
        }
    }

    /// The hash of the window `lane` bytes further.
    pub(super) fn weak(&self, lane: usize) -> u32 {
        weak_of(self.states[lane])
    }

    /// Goes on from the start of `data` while the filter knows none of the eight windows, `steps`
    /// times at most. Answers how many steps that were and which windows may be known, as a mask.
    ///
    /// A step reads [`LOOKAHEAD`] bytes beyond the first window.
    pub(super) fn run(&mut self, data: &[u8], steps: usize, filter: &Filter) -> (usize, u8) {
        // Locals, which the compiler keeps in registers.
        let (mut states, multiplier, leaving) = (self.states, self.multiplier, self.leaving);
        let outs = &data[..steps * WORD + WORD];
        let ins = &data[self.span..][..steps * WORD + WORD];
        let mut result = (steps, 0);
        for step in 0..steps {
            if states.iter().any(|state| passes(&filter.first, *state)) {
                let mask = known(&states, filter);
                if mask != 0 {
                    result = (step, mask);
                    break;
                }
            }
            let out = &outs[step * WORD..][..2 * WORD];
            let into = &ins[step * WORD..][..2 * WORD];
            roll(&mut states, out, into, multiplier, leaving);
        }
        self.states = states;
        result
    }

    /// One step from the start of `data`, whatever is known.
    pub(super) fn step(&mut self, data: &[u8]) {
        let (out, into) = (&data[..2 * WORD], &data[self.span..][..2 * WORD]);
        roll(&mut self.states, out, into, self.multiplier, self.leaving);
    }
}

#[cold]
fn known(states: &[u64; WORD], filter: &Filter) -> u8 {
    let lanes = states.iter().enumerate();
    lanes.fold(0, |mask, (lane, state)| {
        mask | u8::from(filter.may_contain(weak_of(*state))) << lane
    })
}

#[inline(always)]
fn roll(states: &mut [u64; WORD], out: &[u8], into: &[u8], multiplier: u64, leaving: u64) {
    for (lane, state) in states.iter_mut().enumerate() {
        let old = letter(word_at(out, lane)).wrapping_mul(leaving);
        *state = state
            .wrapping_add(letter(word_at(into, lane)).wrapping_sub(old))
            .wrapping_mul(multiplier);
    }
}

#[inline(always)]
fn word_at(bytes: &[u8], at: usize) -> &[u8; WORD] {
    bytes[at..]
        .first_chunk()
        .expect("both callers give two words")
}
