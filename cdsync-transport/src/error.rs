//! What can go wrong, whose fault it is, and whether trying again can help.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cdsync_core::path::Escaped;
use thiserror::Error;

use crate::peer::IdentityError;

/// Whether the same call may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Yes, after a pause that grows with each attempt.
    Backoff,
    /// Not until somebody changes something (an address, a certificate, a program).
    Never,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This program or this machine.
    Local,
    /// The other side.
    Peer,
    /// What lies between, or nobody can say.
    Network,
}

/// Why a connection, or one direction of a stream, was ended. Codes from 64 on are free for
/// callers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(pub u32);

impl CloseCode {
    /// A handle was dropped and nobody said why.
    pub const DROPPED: Self = Self(0);
    /// Orderly end, nothing left to do.
    pub const DONE: Self = Self(1);
    /// The endpoint goes down; come again.
    pub const SHUTDOWN: Self = Self(2);
    /// This identity is not served here.
    pub const REFUSED: Self = Self(3);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(4);
    /// The peer went beyond a limit.
    pub const LIMIT: Self = Self(5);
    /// Too much to do; come again.
    pub const BUSY: Self = Self(6);
    /// The peer took too long.
    pub const DEADLINE: Self = Self(7);
    /// No certificate where one is needed.
    pub const UNAUTHENTICATED: Self = Self(8);
    /// A newer connection of the same peer took its place.
    pub const REPLACED: Self = Self(9);

    /// Whether coming again can help, as far as the code says.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::REFUSED | Self::PROTOCOL | Self::LIMIT | Self::UNAUTHENTICATED => Retry::Never,
            _ => Retry::Backoff,
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::DROPPED => "dropped",
            Self::DONE => "done",
            Self::SHUTDOWN => "shutdown",
            Self::REFUSED => "refused",
            Self::PROTOCOL => "protocol",
            Self::LIMIT => "limit",
            Self::BUSY => "busy",
            Self::DEADLINE => "deadline",
            Self::UNAUTHENTICATED => "unauthenticated",
            Self::REPLACED => "replaced",
            Self(other) => return write!(f, "{other}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloseCode({self})")
    }
}

/// Why a connection is over. Every call on it fails with this from then on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side closed it, or shut its endpoint down.
    #[error("closed by this side")]
    Local,
    /// The peer closed it.
    #[error("closed by the peer ({code}): {reason}")]
    Peer {
        /// What the peer gave as code.
        code: CloseCode,
        /// What it wrote, escaped and cut; for people only.
        reason: String,
    },
    /// Nothing was heard for the idle timeout: the peer or the way to it is down.
    #[error("the peer fell silent")]
    TimedOut,
    /// The peer does not know the connection: it restarted.
    #[error("the peer lost the connection's state")]
    Restarted,
    /// The peer refused the handshake, usually this side's certificate.
    #[error("the peer refused the handshake: {detail}")]
    HandshakeRefused {
        /// Its TLS alert and text, escaped and cut.
        detail: String,
    },
    /// One side broke the transport protocol.
    #[error("transport protocol failure: {detail}")]
    Protocol {
        /// What was seen.
        detail: String,
    },
}

impl CloseReason {
    /// The reason as a peer wrote it: escaped and cut to 200 characters.
    pub(crate) fn by_peer(code: CloseCode, reason: &[u8]) -> Self {
        Self::Peer {
            code,
            reason: peer_text(reason),
        }
    }

    /// Whether a new connection may fare better.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Peer { code, .. } => code.retry(),
            Self::HandshakeRefused { .. } => Retry::Never,
            Self::Local | Self::TimedOut | Self::Restarted | Self::Protocol { .. } => {
                Retry::Backoff
            }
        }
    }

    /// Whose doing it was.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Local => Fault::Local,
            Self::TimedOut => Fault::Network,
            _ => Fault::Peer,
        }
    }
}

/// Text of a peer for people: on one line, at most 200 characters.
pub(crate) fn peer_text(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(800)];
    Escaped(cut).to_string().chars().take(200).collect()
}

/// Why no connection could be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is not `host:port`, or its host has no address.
    #[error("cannot resolve {addr}")]
    Resolve {
        /// The address as given.
        addr: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens there, or no route leads there.
    #[error("cannot reach {addr}: {detail}")]
    Unreachable {
        /// The address as given.
        addr: String,
        /// What was seen.
        detail: String,
    },
    /// No handshake within the deadline.
    #[error("no answer from {addr} within {after:?}")]
    TimedOut {
        /// The address as given.
        addr: String,
        /// The deadline.
        after: Duration,
    },
    /// Somebody answered who is not whom this side must reach.
    #[error("the peer at {addr} is refused")]
    Identity {
        /// The address as given.
        addr: String,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// The peer ended the connection before it was usable.
    #[error("the peer at {addr} ended the handshake")]
    Refused {
        /// The address as given.
        addr: String,
        /// What it said.
        source: CloseReason,
    },
    /// This side's endpoint is closed.
    #[error("this endpoint is closed")]
    Closed,
    /// This side could not set up the attempt (socket, key or configuration).
    #[error("cannot start a connection to {addr}: {detail}")]
    Local {
        /// The address as given.
        addr: String,
        /// What failed.
        detail: String,
    },
}

impl ConnectError {
    /// Whether dialling again may help.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Local { .. } => Retry::Backoff,
            Self::Refused { source, .. } => source.retry(),
            Self::Identity { .. } | Self::Closed => Retry::Never,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Resolve { .. } | Self::Closed | Self::Local { .. } => Fault::Local,
            Self::Unreachable { .. } | Self::TimedOut { .. } => Fault::Network,
            Self::Identity { .. } | Self::Refused { .. } => Fault::Peer,
        }
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address is taken, not ours, or needs privileges.
    #[error("cannot listen on {protocol} {addr}")]
    Listen {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The address as given.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Key and certificate do not make a usable TLS configuration.
    #[error("the identity is unusable: {detail}")]
    Identity {
        /// What is wrong.
        detail: String,
    },
}

impl BindError {
    /// Whether trying again may help.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Listen { .. } => Retry::Backoff,
            Self::Identity { .. } => Retry::Never,
        }
    }
}

/// Why bytes could not be sent on a stream.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// The receiver does not want more.
    #[error("the receiver stopped the stream ({0})")]
    Stopped(CloseCode),
    /// The connection is over.
    #[error("the connection is over")]
    Connection(#[from] CloseReason),
    /// The stream was finished or reset by this side before.
    #[error("the stream was already ended by this side")]
    Ended,
    /// Reading the file failed, or it is shorter than the range asked for (`UnexpectedEof`).
    #[error("cannot read the file at offset {offset}")]
    File {
        /// Where in the file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl SendError {
    /// Whether a new stream (or connection) may fare better.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Stopped(code) => code.retry(),
            Self::Connection(reason) => reason.retry(),
            Self::Ended | Self::File { .. } => Retry::Never,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Stopped(_) => Fault::Peer,
            Self::Connection(reason) => reason.fault(),
            Self::Ended | Self::File { .. } => Fault::Local,
        }
    }
}

/// Why nothing more can be received on a stream.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The sender gave the stream up; what it had sent may be incomplete.
    #[error("the sender reset the stream ({0})")]
    Reset(CloseCode),
    /// The connection is over.
    #[error("the connection is over")]
    Connection(#[from] CloseReason),
    /// The stream was stopped by this side before.
    #[error("the stream was already stopped by this side")]
    Ended,
}

impl RecvError {
    /// Whether a new stream (or connection) may fare better.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Reset(code) => code.retry(),
            Self::Connection(reason) => reason.retry(),
            Self::Ended => Retry::Never,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Reset(_) => Fault::Peer,
            Self::Connection(reason) => reason.fault(),
            Self::Ended => Fault::Local,
        }
    }
}
