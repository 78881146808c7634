//! An in-memory network: the same traits without sockets, certificates or a clock. Identities are
//! given, not proven; links can be cut.

mod connection;
mod network;
mod pipe;

pub use network::{MemoryNetwork, MemoryTransport};
