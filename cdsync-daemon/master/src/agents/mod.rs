//! Serving agents: who may come in, and what each connection is for.

mod control;
mod join;

use std::sync::Arc;
use std::time::Duration;

use cdsync_transport::{
    CloseCode, Connection, FrameReader, FrameWriter, PeerLimit, Role, Transport,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{Instrument, debug, info_span};

use crate::shared::Shared;

/// How long a peer may take to open its stream and say its first message.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Servers that may join at once; more are told to come again.
const JOINS: usize = 32;

/// Connections that one agent may have: one, and those that it gave up without a word.
const PEER_CONNECTIONS_MAX: usize = 8;

/// Accepts connections until the transport is closed or `shared` is no longer wanted. Dropping it
/// ends every connection.
pub(crate) async fn serve(shared: Arc<Shared>, transport: Arc<dyn Transport>) {
    let joins = Arc::new(Semaphore::new(JOINS));
    let limit = PeerLimit::new(PEER_CONNECTIONS_MAX);
    let mut tasks = JoinSet::new();
    while let Some(connection) = transport.accept().await {
        while tasks.try_join_next().is_some() {}
        let peer = *connection.peer();
        // Joining servers have no name yet; they are counted together.
        let place = match peer.role {
            Role::Joining => None,
            _ => match limit.take(peer.server) {
                None => {
                    connection.close(CloseCode::LIMIT, "too many connections of one server");
                    continue;
                }
                place => place,
            },
        };
        let span = info_span!("peer", %peer, from = %connection.remote_addr());
        let (shared, joins) = (Arc::clone(&shared), Arc::clone(&joins));
        let serving = async move {
            one(shared, connection, joins).await;
            drop(place);
        };
        tasks.spawn(serving.instrument(span));
    }
    tasks.shutdown().await;
}

/// Serves one connection, and says why it ended.
async fn one(shared: Arc<Shared>, connection: Arc<dyn Connection>, joins: Arc<Semaphore>) {
    let ended = match connection.peer().role {
        Role::Agent => control::serve(&shared, &connection).await,
        Role::Joining => match joins.try_acquire() {
            Ok(_permit) => join::serve(&shared, &connection).await,
            Err(_) => Err(Ended::new(CloseCode::BUSY, "too many servers join at once")),
        },
        Role::Master => Err(Ended::new(
            CloseCode::REFUSED,
            "a master does not serve masters",
        )),
    };
    if let Err(ended) = ended {
        debug!(code = %ended.code, reason = %ended.reason, "connection ended");
        connection.close(ended.code, &ended.reason);
    }
}

/// Why a connection is ended by this side.
#[derive(Debug)]
struct Ended {
    code: CloseCode,
    reason: String,
}

impl Ended {
    fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    fn protocol(error: impl std::fmt::Display) -> Self {
        Self::new(CloseCode::PROTOCOL, error.to_string())
    }
}

/// The one stream that a peer opens, with frames of at most `max_bytes`.
async fn stream(
    connection: &Arc<dyn Connection>,
    max_bytes: usize,
) -> Result<(FrameWriter, FrameReader), Ended> {
    let opened = tokio::time::timeout(FIRST_MESSAGE, connection.accept()).await;
    let opened = opened.map_err(|_| Ended::new(CloseCode::DEADLINE, "no stream was opened"))?;
    let (send, receive) = opened.map_err(Ended::protocol)?;
    let reader = FrameReader::new(receive).with_max_payload(max_bytes);
    Ok((FrameWriter::new(send), reader))
}

/// The first message of a stream, whole and in time.
async fn first<T: serde::de::DeserializeOwned>(reader: &mut FrameReader) -> Result<T, Ended> {
    let frame = tokio::time::timeout(FIRST_MESSAGE, reader.next()).await;
    let frame = frame.map_err(|_| Ended::new(CloseCode::DEADLINE, "no first message"))?;
    let frame = frame.map_err(Ended::protocol)?;
    let frame = frame.ok_or_else(|| Ended::protocol("the stream ended before it began"))?;
    if frame.kind != cdsync_core::wire::kind::CONTROL {
        return Err(Ended::protocol(format!(
            "a frame of kind {} came first",
            frame.kind
        )));
    }
    cdsync_core::wire::decode(&frame.payload).map_err(Ended::protocol)
}
