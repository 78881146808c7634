//! What CDSync decides: the rules of recording, carrying and applying changes, as pure state
//! machines over ordered tables. No I/O, no clock, no threads, no randomness of its own.
#![forbid(unsafe_code)]

mod bounds;
pub mod change;
pub mod coalescer;
pub mod coordinator;
pub mod filter;
#[cfg(any(test, feature = "sim"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod ids;
pub mod job;
pub mod ledger;
pub mod orders;
pub mod path;
pub mod replica;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod time;
pub mod topology;
pub mod wire;
