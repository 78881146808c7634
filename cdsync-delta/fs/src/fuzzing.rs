//! What the fuzzer and the replay of its corpus call: bytes of somebody else's in, no panic out.

use crate::tables::run;
use crate::watch::parse::parse;

/// A buffer of fanotify's.
pub fn fanotify(bytes: &[u8]) {
    let mut hints = Vec::new();
    let parsed = parse(bytes, &mut hints);
    assert!(
        hints.len() as u64 <= parsed.events,
        "no hint without an event"
    );
    assert!(parsed.events <= bytes.len() as u64, "every event has bytes");
}

/// A run of the ledger's log.
pub fn run(bytes: &[u8]) {
    let mut taken = 0;
    for row in run::rows(bytes) {
        match row {
            Ok((key, value)) => taken += key.len() + value.len(),
            Err(_) => break,
        }
    }
    assert!(taken <= bytes.len(), "no row is made up");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Proves that nothing which a fuzzer once found worth keeping panics.
    #[test]
    fn the_corpus_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 2] = [("fanotify", super::fanotify), ("run", super::run)];
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
