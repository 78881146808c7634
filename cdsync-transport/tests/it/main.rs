//! The transports against one suite, and what only QUIC can show: proofs, strangers, real links.

mod enrolment;
mod links;
mod relay;
mod strangers;
mod suite;
mod trust;
mod world;
