//! What the end-to-end tests are made with: clusters of real processes, folders to work in, random
//! changes, and a comparison that shares no code with the program.
//!
//! ```text
//!   Cluster   a master and agents, each its own process on its own address of 127/8
//!   Space     folders; as root each on a tmpfs of its own
//!   Folding   a filesystem to which case does not count in names
//!   Churn     seeded random changes of a tree
//!   compare   two trees, entry by entry, byte by byte
//!   Scale     many files: times and memory
//!   Usage     what a process uses
//!   PowerDisk a disk for redb whose power can be cut
//!   Torture   all of it with random faults, as long as wanted
//! ```
//!
//! Everything here panics when something goes wrong: it is only for tests.
#![deny(unsafe_code)]
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a library for tests: it speaks to whoever runs them, and fails by panicking"
)]

mod aftermath;
mod binary;
mod churn;
mod cluster;
mod compare;
mod fidelity;
mod folding;
mod mapped;
mod power;
mod random;
mod scale;
mod space;
mod torture;
mod usage;
mod wait;

pub use binary::cdsync;
pub use churn::{Churn, make_tree};
pub use cluster::{Cluster, Said, job_file};
pub use compare::{assert_equal, differences};
pub use folding::Folding;
pub use power::{PowerDisk, survivors};
pub use random::{Random, seed};
pub use scale::{Scale, Shape};
pub use space::{Space, fill, is_root, unfill};
pub use torture::{Tally, Torture};
pub use usage::Usage;
pub use wait::wait_until;
