//! A test bed of the state machines: tables in memory that can crash, a model of a disk, the
//! drivers of a source and of a target, and a world that joins them under virtual time.
//!
//! Nothing here sleeps, opens a file or a socket, or draws randomness but from a seed: the same
//! seed gives the same run. [`Kind::run`] is the whole of it; the parts serve unit tests.

mod apply;
mod bursts;
mod check;
mod disk;
mod drift;
mod kinds;
mod link;
mod others;
mod plan;
mod power;
mod rng;
mod source;
mod tables;
mod target;
#[cfg(test)]
mod tests;
mod workload;
mod world;

pub use disk::{Disk, EPOCH_NANOS, Node, NodeId, OUTSIDE, ROOT, Trashed};
pub use kinds::{Failed, Kind};
pub use link::{Session, ToSource, ToTarget};
pub use rng::Rng;
pub use source::{Meanwhile, SourceSim, SourceTuning};
pub use tables::{Durability, MemTables};
pub use target::{TargetSim, TargetTuning, Trouble};
pub use workload::{Workload, WorkloadTuning};
pub use world::{Scenario, World};
