//! Drives the built program: real processes, real sockets, real files.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and speak to whoever runs them"
)]

mod adoption;
mod away;
mod bounds;
mod changes;
mod commands;
mod confinement;
mod deletes;
mod differences;
mod drift;
mod fidelity;
mod filters;
mod full_disks;
mod hostile;
mod member;
mod names;
mod open_files;
mod overflow;
mod places;
mod power;
mod restarts;
mod roots;
mod scale;
mod torture;
mod trust;
mod upkeep;
