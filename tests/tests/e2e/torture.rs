//! A short torture run; `make torture` makes long ones.

use std::time::Duration;

use cdsync_tests::{Torture, seed};

/// Proves that random work, while every process is killed, frozen and restarted at random, leaves
/// both targets equal to the source, and that whoever reads them meanwhile sees whole versions only,
/// never an older one after a newer one.
#[test]
fn random_kills_end_equal() {
    let tally = Torture {
        seed: seed(),
        lasts: Duration::from_secs(40),
        round: Duration::from_secs(12),
        disks: false,
        links: true,
        filesystem: "tmpfs".to_owned(),
    }
    .run();
    assert!(
        tally.kills > 0 && tally.changes > 0 && tally.reads.0 > 0,
        "{tally:?}"
    );
}
