//! Serving other agents: subscriptions and fetches, to those whom a grant entitles.

mod batch;
mod buffers;
mod busy;
mod compare;
mod current;
mod delta;
mod fetch;
mod places;
mod readers;
mod restless;
mod subscription;

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::{JobId, ServerId};
use cdsync_core::time::WallMillis;
use cdsync_core::wire::{
    FETCHES_MAX, FetchRequest, Grant, PeerMessage, RefusedWhy, SignError, Signed, VerifyingKey,
    decode, encode, kind,
};
use cdsync_transport::{
    CloseCode, Connection, FrameError, FrameReader, FrameWriter, PeerLimit, Role, Stream, Transport,
};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::lease::LeaseClock;
use crate::source::Served;
use busy::AllBusy;
use current::Subscriptions;
use places::Places;
pub(crate) use readers::Readers;
pub(crate) use restless::Restless;

/// How long a peer may take to say what it wants after it opened a stream.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a peer may take to hear that it is refused.
const REFUSAL: Duration = Duration::from_secs(5);
/// The largest request: a grant and some numbers.
const REQUEST_MAX_BYTES: usize = 64 << 10;
/// How many connections are served at once.
const CONNECTIONS_MAX: usize = 4096;
/// How many of them one peer may have: one for each job and one to spare, of the largest clusters.
const PEER_CONNECTIONS_MAX: usize = 256;
/// How many streams of one connection are served at once.
const STREAMS_MAX: usize = 64;
/// How many grants are remembered as verified: one for each target and job, of the usual size.
const VERIFIED_MAX: usize = 64;

/// A running or stopped source behind its job.
type Slot = Arc<Mutex<Option<Arc<Served>>>>;

/// Which jobs are served here, and how entitlement is checked.
#[derive(Debug)]
pub(crate) struct Serving {
    key: VerifyingKey,
    cluster: u64,
    jobs: Mutex<BTreeMap<JobId, Entry>>,
    verified: Mutex<VecDeque<(Signed, Grant)>>,
    pub(crate) readers: Readers,
    fetches: Places,
    subscriptions: Subscriptions,
    busy: AllBusy,
    /// Places for comparisons.
    snapshots: Semaphore,
    /// Servers that are no members any more, as the newest orders say.
    revoked: watch::Sender<BTreeSet<ServerId>>,
    /// What the ends of leases and grants are compared with.
    pub(crate) clock: Arc<LeaseClock>,
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    /// Subscriptions end when it turns true, or when the job is no more.
    paused: watch::Sender<bool>,
}

/// Why a stream ends before its time.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the peer said nothing for too long")]
    Silent,
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("refused: {reason}")]
    Refused { why: RefusedWhy, reason: String },
    #[error("the source failed: {0}")]
    Source(String),
    #[error("the agent is ending")]
    Ending,
}

impl ServeError {
    fn refused(why: RefusedWhy, reason: impl Into<String>) -> Self {
        Self::Refused {
            why,
            reason: reason.into(),
        }
    }
}

/// What a peer may have, and for how long.
struct Entitled {
    served: Arc<Served>,
    paused: watch::Receiver<bool>,
    /// When the grant ends.
    until: WallMillis,
}

impl Serving {
    pub(crate) fn new(key: VerifyingKey, cluster: u64, readers: Readers) -> Self {
        Self {
            key,
            cluster,
            jobs: Mutex::default(),
            verified: Mutex::default(),
            readers,
            fetches: Places::default(),
            subscriptions: Subscriptions::default(),
            busy: AllBusy::default(),
            snapshots: Semaphore::new(compare::SNAPSHOTS_MAX),
            revoked: watch::Sender::new(BTreeSet::new()),
            clock: Arc::new(LeaseClock::start()),
        }
    }

    /// These servers' grants are void, and what runs by them ends now.
    pub(crate) fn revoke(&self, servers: &[ServerId]) {
        self.revoked.send_replace(servers.iter().copied().collect());
    }

    pub(crate) fn put(&self, job: JobId, slot: Slot, paused: bool) {
        match self.jobs().entry(job) {
            btree_map::Entry::Occupied(mut entry) => {
                entry.get_mut().slot = slot;
                entry.get().paused.send_replace(paused);
            }
            btree_map::Entry::Vacant(entry) => {
                entry.insert(Entry {
                    slot,
                    paused: watch::Sender::new(paused),
                });
            }
        }
    }

    pub(crate) fn remove(&self, job: JobId) {
        self.jobs().remove(&job);
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, BTreeMap<JobId, Entry>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A grant whose signature is the master's. The newest ones are remembered, whole: checking a
    /// signature takes longer than a small fetch.
    fn verified(&self, signed: &Signed) -> Result<Grant, SignError> {
        let mut known = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, grant)) = known.iter().find(|(seen, _)| seen == signed) {
            return Ok(grant.clone());
        }
        let grant: Grant = signed.verify(&self.key)?;
        if known.len() >= VERIFIED_MAX {
            known.pop_front();
        }
        known.push_back((signed.clone(), grant.clone()));
        Ok(grant)
    }

    /// The running source of a job, if this peer may fetch it.
    fn entitled(&self, peer: ServerId, job: JobId, grant: &Signed) -> Result<Entitled, ServeError> {
        let refuse = |reason: &str| ServeError::refused(RefusedWhy::Grant, reason);
        let grant = self.verified(grant).map_err(|e| refuse(&e.to_string()))?;
        if grant.cluster != self.cluster || grant.job != job {
            return Err(refuse("the grant is for another job"));
        }
        if grant.holder != peer {
            return Err(refuse("the grant is for another server"));
        }
        if self.revoked.borrow().contains(&peer) {
            return Err(refuse(REVOKED));
        }
        if self.clock.left(grant.until).is_zero() {
            return Err(refuse(
                "the grant has ended; the master must be reached for a new one",
            ));
        }
        let entry = self
            .jobs()
            .get(&job)
            .map(|e| (Arc::clone(&e.slot), e.paused.subscribe()));
        let Some((slot, paused)) = entry else {
            return Err(ServeError::refused(
                RefusedWhy::NoSuchJob,
                "this server is not a source of that job (yet)",
            ));
        };
        if *paused.borrow() {
            return Err(ServeError::refused(
                RefusedWhy::NotServing,
                "the job is paused",
            ));
        }
        let served = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let served = served.ok_or_else(|| {
            ServeError::refused(
                RefusedWhy::NotServing,
                "the source is not running: see its state",
            )
        })?;
        Ok(Entitled {
            served,
            paused,
            until: grant.until,
        })
    }

    /// A place for a fetch of a peer. Cancel safe.
    async fn place(&self, peer: ServerId) -> Result<places::Place, ServeError> {
        let reason = "too many fetches of this server wait";
        let place = self.fetches.take(peer).await;
        place.ok_or_else(|| ServeError::refused(RefusedWhy::Busy, reason))
    }

    /// Waits until a peer may not have it any more, and says why. Cancel safe.
    async fn withdrawn(
        &self,
        peer: ServerId,
        until: WallMillis,
        mut paused: watch::Receiver<bool>,
    ) -> ServeError {
        let mut revoked = self.revoked.subscribe();
        tokio::select! {
            () = self.clock.wait(until) => {
                ServeError::refused(RefusedWhy::Grant, "the grant has ended")
            }
            _ = revoked.wait_for(|revoked| revoked.contains(&peer)) => {
                ServeError::refused(RefusedWhy::Grant, REVOKED)
            }
            // An error: the job is no more.
            _ = paused.wait_for(|paused| *paused) => {
                let reason = "the job was paused or removed";
                ServeError::refused(RefusedWhy::NotServing, reason)
            }
        }
    }
}

const REVOKED: &str = "the server was removed from the cluster";

/// Accepts and serves until dropped or the transport is closed.
pub(crate) async fn accept(transport: Arc<dyn Transport>, serving: Arc<Serving>) {
    let mut connections = JoinSet::new();
    let limit = PeerLimit::new(PEER_CONNECTIONS_MAX);
    while let Some(connection) = transport.accept().await {
        while connections.try_join_next().is_some() {}
        if connection.peer().role != Role::Agent || connections.len() >= CONNECTIONS_MAX {
            connection.close(
                CloseCode::REFUSED,
                "only agents of this cluster are served here",
            );
            continue;
        }
        let Some(place) = limit.take(connection.peer().server) else {
            connection.close(CloseCode::LIMIT, "too many connections of one server");
            continue;
        };
        let serving = Arc::clone(&serving);
        connections.spawn(async move {
            serve_connection(connection, serving).await;
            drop(place);
        });
    }
}

async fn serve_connection(connection: Arc<dyn Connection>, serving: Arc<Serving>) {
    let mut streams = JoinSet::new();
    loop {
        while streams.len() >= STREAMS_MAX {
            streams.join_next().await;
        }
        let Ok(stream) = connection.accept().await else {
            break;
        };
        while streams.try_join_next().is_some() {}
        streams.spawn(serve_stream(
            Arc::clone(&connection),
            stream,
            Arc::clone(&serving),
        ));
    }
    streams.shutdown().await;
}

async fn serve_stream(connection: Arc<dyn Connection>, stream: Stream, serving: Arc<Serving>) {
    let (send, recv) = stream;
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv).with_max_payload(REQUEST_MAX_BYTES);
    let peer = connection.peer().server;
    match serve_request(peer, &mut writer, &mut reader, &serving).await {
        Ok(()) => drop(writer.finish().await),
        Err(ServeError::Refused { why, reason }) => {
            tracing::debug!(%peer, ?why, reason, "refused a peer");
            // It may be gone already; then nobody needs the reason. Nor does one that takes nothing.
            let told = async {
                write(&mut writer, &PeerMessage::Refused { why, reason }).await?;
                Ok::<_, ServeError>(writer.finish().await?)
            };
            if !matches!(tokio::time::timeout(REFUSAL, told).await, Ok(Ok(()))) {
                writer.reset(CloseCode::DROPPED);
            }
        }
        Err(ServeError::Protocol(what)) => {
            tracing::warn!(%peer, what, "a peer broke the protocol");
            connection.close(CloseCode::PROTOCOL, what);
        }
        Err(ServeError::Frame(error)) => {
            tracing::debug!(%peer, %error, "a stream ended");
            if matches!(error, FrameError::TooLarge { .. }) {
                tracing::warn!(%peer, %error, "a peer sent an oversized frame");
                connection.close(CloseCode::LIMIT, "oversized frame");
            }
        }
        Err(error) => {
            tracing::debug!(%peer, %error, "a stream ended");
            writer.reset(CloseCode::DROPPED);
        }
    }
}

async fn serve_request(
    peer: ServerId,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
    serving: &Serving,
) -> Result<(), ServeError> {
    let first = tokio::time::timeout(FIRST_MESSAGE, reader.next());
    let Some(frame) = first.await.map_err(|_| ServeError::Silent)?? else {
        return Ok(());
    };
    if frame.kind != kind::MESSAGE {
        return Err(ServeError::Protocol(
            "a stream began with something else than a request",
        ));
    }
    match decode::<PeerMessage>(&frame.payload) {
        Ok(PeerMessage::Subscribe(subscribe)) => {
            let Entitled {
                served,
                paused,
                until,
            } = serving.entitled(peer, subscribe.job, &subscribe.grant)?;
            let mut current = serving.subscriptions.begin(peer, subscribe.job);
            tokio::select! {
                ended = subscription::serve(&served, &subscribe, serving, writer, reader) => ended,
                () = current.replaced() => {
                    let reason = "a newer subscription of this server took its place";
                    Err(ServeError::refused(RefusedWhy::NotServing, reason))
                }
                why = serving.withdrawn(peer, until, paused) => Err(why),
            }
        }
        Ok(PeerMessage::Fetch(request)) => {
            serve_fetches(peer, request, writer, reader, serving).await
        }
        Ok(PeerMessage::FetchDifference(request, base)) => {
            let Entitled {
                served,
                paused,
                until,
            } = serving.entitled(peer, request.job, &request.grant)?;
            let fetch = async {
                let place = serving.place(peer).await?;
                delta::serve(&served, &request, base, place, (writer, reader)).await
            };
            tokio::select! {
                ended = fetch => ended,
                why = serving.withdrawn(peer, until, paused) => Err(why),
            }
        }
        Ok(_) => Err(ServeError::Protocol(
            "a stream began with the wrong message",
        )),
        Err(_) => Err(ServeError::Protocol("a request does not decode")),
    }
}

/// Serves what is asked for on one stream, one after another.
async fn serve_fetches(
    peer: ServerId,
    first: FetchRequest,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
    serving: &Serving,
) -> Result<(), ServeError> {
    let entitled = serving.entitled(peer, first.job, &first.grant)?;
    let _place = tokio::select! {
        place = serving.place(peer) => place?,
        why = serving.withdrawn(peer, entitled.until, entitled.paused) => return Err(why),
    };
    let mut next = Some(first);
    for _ in 0..FETCHES_MAX {
        let Some(request) = next else { return Ok(()) };
        let Entitled {
            served,
            paused,
            until,
        } = serving.entitled(peer, request.job, &request.grant)?;
        tokio::select! {
            ended = fetch::serve(&served, &request, writer) => ended?,
            why = serving.withdrawn(peer, until, paused) => return Err(why),
        }
        let frame = tokio::time::timeout(FIRST_MESSAGE, reader.next());
        next = match frame.await.map_err(|_| ServeError::Silent)?? {
            None => None,
            Some(frame) => match decode(&frame.payload) {
                Ok(PeerMessage::Fetch(request)) if frame.kind == kind::MESSAGE => Some(request),
                _ => {
                    return Err(ServeError::Protocol(
                        "a fetch was followed by something else",
                    ));
                }
            },
        };
    }
    match next {
        None => Ok(()),
        Some(_) => Err(ServeError::Protocol("too many fetches on one stream")),
    }
}

async fn write(writer: &mut FrameWriter, message: &PeerMessage) -> Result<(), ServeError> {
    Ok(writer
        .write(kind::MESSAGE, &[Bytes::from(encode(message))])
        .await?)
}

#[cfg(test)]
mod tests {
    use cdsync_core::wire::{Epoch, SigningKey};

    use super::*;
    use crate::clock::wall;

    const PEER: ServerId = ServerId(7);
    const JOB: JobId = JobId(8);

    fn serving() -> (Serving, Signed) {
        let key = SigningKey::from_seed(&[3; 32]);
        let grant = key.sign(&Grant {
            cluster: 1,
            job: JOB,
            holder: PEER,
            epoch: Epoch::default(),
            until: WallMillis(wall().0 + 1_000_000),
        });
        let serving = Serving::new(key.verifying_key(), 1, Readers::start().unwrap());
        (serving, grant)
    }

    fn why(refused: Result<Entitled, ServeError>) -> RefusedWhy {
        match refused {
            Err(ServeError::Refused { why, .. }) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("there is no such job"),
        }
    }

    /// Proves that a removed server's grant is void at once, and what runs by it ends.
    #[tokio::test]
    async fn a_removed_server_is_served_no_more() {
        let (serving, grant) = serving();
        let no_job = why(serving.entitled(PEER, JOB, &grant));
        assert_eq!(no_job, RefusedWhy::NoSuchJob, "the grant is good");
        let paused = watch::Sender::new(false);
        let until = WallMillis(wall().0 + 1_000_000);
        let running = serving.withdrawn(PEER, until, paused.subscribe());
        tokio::pin!(running);
        tokio::select! {
            biased;
            ended = &mut running => panic!("{ended}"),
            () = std::future::ready(()) => {}
        }
        serving.revoke(&[PEER]);
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await;
        let Ok(ServeError::Refused { why: ended, .. }) = ended else {
            panic!("it ends by a refusal");
        };
        assert_eq!(ended, RefusedWhy::Grant);
        assert_eq!(why(serving.entitled(PEER, JOB, &grant)), RefusedWhy::Grant);
    }

    /// Proves that a grant ends by the clock that never runs backwards.
    #[tokio::test]
    async fn grants_end_as_time_passes() {
        let (serving, grant) = serving();
        serving.clock.seen(WallMillis(wall().0 + 2_000_000));
        assert_eq!(why(serving.entitled(PEER, JOB, &grant)), RefusedWhy::Grant);
    }
}
