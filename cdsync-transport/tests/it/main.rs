//! The transports against one suite, and what only QUIC can show: proofs, strangers, real links.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail and say why"
)]

mod auto;
mod enrolment;
mod evil_lanes;
mod lanes;
mod links;
mod pace;
mod relay;
mod strangers;
mod suite;
mod trust;
mod world;
