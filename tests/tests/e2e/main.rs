//! Drives the built program: real processes, real sockets, real files.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and speak to whoever runs them"
)]

mod adoption;
mod changes;
mod commands;
mod deletes;
mod fidelity;
mod filters;
mod full_disks;
mod open_files;
mod places;
mod restarts;
mod roots;
mod scale;
mod torture;
mod trust;
mod upkeep;
