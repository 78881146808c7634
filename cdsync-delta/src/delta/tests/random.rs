//! Random changes of random contents.

use proptest::prelude::*;

use super::*;

/// One random change of a content.
#[derive(Debug, Clone)]
enum Edit {
    Insert {
        at: usize,
        bytes: Vec<u8>,
    },
    Delete {
        at: usize,
        len: usize,
    },
    Overwrite {
        at: usize,
        bytes: Vec<u8>,
    },
    Move {
        from: usize,
        len: usize,
        to: usize,
    },
    Repeat {
        from: usize,
        len: usize,
        times: usize,
    },
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = || 0_usize..6000;
    let len = || 0_usize..700;
    let bytes = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..90),
            (0_usize..900).prop_map(|len| vec![0; len]),
        ]
    };
    prop_oneof![
        (place(), bytes()).prop_map(|(at, bytes)| Edit::Insert { at, bytes }),
        (place(), len()).prop_map(|(at, len)| Edit::Delete { at, len }),
        (place(), bytes()).prop_map(|(at, bytes)| Edit::Overwrite { at, bytes }),
        (place(), len(), place()).prop_map(|(from, len, to)| Edit::Move { from, len, to }),
        (place(), len(), 1_usize..4).prop_map(|(from, len, times)| Edit::Repeat {
            from,
            len,
            times
        }),
    ]
}

impl Edit {
    fn apply(&self, content: &mut Vec<u8>) {
        let within = |at: usize, content: &[u8]| at % (content.len() + 1);
        let span = |from: usize, len: usize, content: &[u8]| {
            let start = within(from, content);
            start..(start + len).min(content.len())
        };
        match self {
            Self::Insert { at, bytes } => {
                let at = within(*at, content);
                content.splice(at..at, bytes.iter().copied());
            }
            Self::Delete { at, len } => {
                content.drain(span(*at, *len, content));
            }
            Self::Overwrite { at, bytes } => {
                let span = span(*at, bytes.len(), content);
                content[span.clone()].copy_from_slice(&bytes[..span.len()]);
            }
            Self::Move { from, len, to } => {
                let moved: Vec<u8> = content.drain(span(*from, *len, content)).collect();
                let to = within(*to, content);
                content.splice(to..to, moved);
            }
            Self::Repeat { from, len, times } => {
                let span = span(*from, *len, content);
                let repeated = content[span.clone()].repeat(*times);
                content.splice(span.end..span.end, repeated);
            }
        }
    }
}

/// Contents without a pattern, of few letters, and of repeated parts.
fn base() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0_usize..6000, any::<u64>()).prop_map(|(len, seed)| noise(len, seed)),
        (0_usize..6000, any::<u64>()).prop_map(|(len, seed)| {
            let mut bytes = noise(len, seed);
            bytes.iter_mut().for_each(|byte| *byte &= 1);
            bytes
        }),
        (1_usize..300, 0_usize..20, any::<u64>())
            .prop_map(|(len, times, seed)| noise(len, seed).repeat(times)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Proves that any change of any base, in blocks of any lengths and on both levels, is rebuilt.
    #[test]
    fn any_change_is_rebuilt(
        base in base(),
        edits in prop::collection::vec(edit(), 0..6),
        fine in 1_u32..80,
        times in 1_u32..10,
    ) {
        let mut new = base.clone();
        edits.iter().for_each(|edit| edit.apply(&mut new));
        let sizes = BlockSizes { coarse: fine * times, fine };
        let copies = two_levels(&base, &new, sizes);
        prop_assert_eq!(rebuilt(&base, &new, &copies), new);
    }

    /// Proves that what is found does not depend on how the content is pushed.
    #[test]
    fn pieces_pushed_do_not_matter(
        base in base(),
        edits in prop::collection::vec(edit(), 0..6),
        block in 1_u32..300,
        step in 1_usize..5000,
        from in 0_u64..6000,
    ) {
        let mut new = base.clone();
        edits.iter().for_each(|edit| edit.apply(&mut new));
        // Longer than what a matcher holds.
        let new = new.repeat(1 + 200_000 / new.len().max(1000));
        let index = index_of(&base, block);
        let find = |step: usize| {
            let mut found = Vec::new();
            let mut matcher = Matcher::new(&index, 0).expecting(from);
            for part in new.chunks(step) {
                matcher.push(part, &mut found);
            }
            let work = matcher.finish(&mut found);
            (found, work)
        };
        let whole = find(new.len().max(1));
        prop_assert_eq!(find(step), whole.clone());
        prop_assert_eq!(rebuilt(&base, &new, &whole.0), new);
    }
}
