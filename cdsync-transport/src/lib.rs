//! Moves bytes between mutually authenticated peers. It decides nothing: who may do what, what is
//! retried and when, is the caller's.
//!
//! ```text
//!   FrameWriter / FrameReader        frames: [length][kind][payload]
//!   SendHalf / RecvHalf              a stream: ordered bytes, back-pressure, reset codes
//!   Connection                       many streams to one identified peer
//!   Transport                        an endpoint: dials and accepts
//!   QuicTransport | TcpTransport | AutoTransport (both) | MemoryTransport
//! ```
//!
//! - Identities: a cluster has one [`CertificateAuthority`]; every server holds a [`NodeIdentity`]
//!   whose certificate names cluster, server and role ([`PeerIdentity`]). Both sides of every
//!   connection prove theirs, except a server that is about to join ([`JoinToken`]).
//! - Nothing here installs a process-wide crypto provider, logger or runtime.
//!
//! ```
//! use cdsync_core::ids::ServerId;
//! use cdsync_transport::{
//!     ClusterId, FrameReader, FrameWriter, MemoryNetwork, PeerExpectation, PeerIdentity, Transport,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = MemoryNetwork::new();
//! let agent = |id| PeerIdentity::agent(ClusterId(1), ServerId(id));
//! let (alpha, beta) = (network.endpoint("alpha:1", agent(1)), network.endpoint("beta:1", agent(2)));
//!
//! let dialled = alpha.connect("beta:1", &PeerExpectation::agent(ServerId(2))).await?;
//! let (send, _recv) = dialled.open().await?;
//! let mut writer = FrameWriter::new(send);
//! writer.write(7, &["hello".into()]).await?;
//! writer.finish().await?;
//!
//! let accepted = beta.accept().await.ok_or("closed")?;
//! assert_eq!(accepted.peer().server, ServerId(1));
//! let (_send, recv) = accepted.accept().await?;
//! let mut reader = FrameReader::new(recv);
//! assert_eq!(reader.next().await?.ok_or("no frame")?.payload, "hello");
//! assert!(reader.next().await?.is_none());
//! # Ok(())
//! # }
//! ```
//!
//! # Known problems
//! - A stream becomes visible to the peer with its first byte (or its end), not when it is opened.
//! - Closing a connection discards what was not yet delivered: let the receiver close.
#![forbid(unsafe_code)]

mod auto;
pub mod compress;
mod connection;
mod enrol;
mod error;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod limit;
mod memory;
mod peer;
mod quic;
mod resolve;
mod tcp;
mod tls;

pub use auto::{AutoTransport, DialOver};
pub use connection::{
    BoxFuture, Connection, LinkStats, RecvHalf, SEND_FILE_STEP_BYTES, SendHalf, Stream, Transport,
};
pub use enrol::{JOIN_SECRET_BYTES, JoinSecret, JoinToken, JoinTokenError, SecretHash};
pub use error::{
    BindError, CloseCode, CloseReason, ConnectError, Fault, RecvError, Retry, SendError,
};
pub use frame::{
    FRAME_HEADER_BYTES, Frame, FrameError, FrameReader, FrameWriter, MAX_FRAME_PAYLOAD_BYTES,
    PACE_BYTES, PATIENCE,
};
pub use identity::{
    CERTIFICATE_VALIDITY, CaFingerprint, CertificateAuthority, CertificateError, NodeIdentity,
    NodeKey, make_private, make_private_folder, write_private,
};
pub use limit::{PeerLimit, PeerPlace};
pub use memory::{MemoryNetwork, MemoryTransport};
pub use peer::{ClusterId, IdentityError, PeerExpectation, PeerIdentity, Role};
pub use quic::{QuicConfig, QuicTransport, enrol_connect};
pub use tcp::TcpTransport;
