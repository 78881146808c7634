//! TCP under TLS 1.3: a third of QUIC's work per byte, where the way is short.
//!
//! A connection is made of lanes, each a TCP connection of its own. The first one dialled is the
//! control lane: signs of life, and why the connection ended. Every stream has a lane to itself
//! while it lasts, so streams do not block each other and no multiplexer is needed; a lane whose
//! stream both sides are done with carries the next one.
//!
//! What the hot path does, and what it costs: `examples/throughput.rs`, 2 GiB over one stream, both
//! ends on two cores (Xeon without VAES, 2.5 GHz, Linux 6.18) that others kept busy (load 8 to 10,
//! which makes every figure larger), in CPU-seconds of both ends per GiB, QUIC measured beside it:
//!
//! ```text
//!                           TCP          QUIC
//!   link of MTU 1,500       1.65 to 2.1  4.5 to 5.7
//!   the same, as frames     1.8          -
//!   loopback                1.7 to 1.9   2.1
//! ```
//!
//! Over the link: AES-GCM 45 % (AES-256 would add a tenth to the whole), the kernel's two copies
//! 17 %, this side's two (into a record, into the buffer of one write) 7 %; receiving copies nothing. The rest is the kernel's TCP.

mod accept;
mod connection;
mod control;
mod dial;
mod handshake;
mod lane;
mod link;
pub(crate) mod record;
mod stream;
mod transport;

pub use transport::TcpTransport;

/// The protocol between members of a cluster.
pub(crate) const ALPN_TCP: &[u8] = b"cdsync-tcp/1";

/// What a lane is for, said by its dialler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The first lane of a new connection.
    Control,
    /// For streams that the dialler opens.
    Streams,
    /// For streams that the acceptor opens, which asked for it.
    Reverse,
}

/// Bytes of a hello: connection and purpose.
const HELLO_BYTES: usize = 17;

impl Purpose {
    const fn byte(self) -> u8 {
        match self {
            Self::Control => 0,
            Self::Streams => 1,
            Self::Reverse => 2,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Control),
            1 => Some(Self::Streams),
            2 => Some(Self::Reverse),
            _ => None,
        }
    }
}
