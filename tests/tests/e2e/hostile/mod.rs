//! Servers of the cluster, with certificates of their own, that keep to no rule: what they do is
//! refused and told, harms no other, and makes nobody's memory, threads or descriptors grow.

mod master;
mod reporter;
mod source;
mod strangers;
mod target;

use cdsync_tests::{Cluster, Usage};

/// What an agent or master of these tests may come to: that of the design, 64 MiB, and what a build
/// without optimisation takes more.
const PEAK_MAX_BYTES: u64 = 96 << 20;

/// Nobody panicked, and these processes took no more of the machine than they may. A process that
/// rests has a few dozen threads and descriptors; so many more are what peers can make it have.
#[track_caller]
fn assert_bounded(cluster: &mut Cluster, names: &[&str]) {
    cluster.assert_healthy();
    for name in names {
        let usage = cluster.usage(name);
        eprintln!("{name}: {usage:?}");
        let Usage {
            peak_bytes,
            threads,
            descriptors,
            ..
        } = usage;
        assert!(peak_bytes <= PEAK_MAX_BYTES, "{name}: {usage:?}");
        assert!(threads <= 80, "{name}: {usage:?}");
        assert!(descriptors <= 1_500, "{name}: {usage:?}");
    }
}
