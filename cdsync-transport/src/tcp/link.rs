//! What the lanes of one connection share: how it ended, idle lanes, streams to be accepted.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::sleep;

use super::dial::LaneDialler;
use super::lane::{Lane, Readiness, Traffic};
use crate::connection::LinkStats;
use crate::error::{CloseCode, CloseReason};
use crate::peer::PeerIdentity;
use crate::quic::QuicConfig;

/// Streams that one side may have open at once, as over QUIC.
pub(super) const MAX_STREAMS: usize = 256;

/// Lanes that a peer may have brought at once: its streams, those that it lets go of while we have
/// not seen it yet, and the idle ones.
pub(super) const MAX_LANES: usize = 2 * MAX_STREAMS;

/// Lanes kept for the next stream: as many as an agent pulls at once, twice.
const IDLE_LANES: usize = 8;

/// How long they are kept, in times of the connection's silence: a minute, usually. Making one takes
/// two round trips and two milliseconds.
const IDLE_LANE_SILENCES: u32 = 4;

/// How long a sender that was told to stop may take to end its direction, counted likewise: what is
/// on the way is a few megabytes at most.
const DRAIN_SILENCES: u32 = 2;

/// How much longer a lane may wait for the peer to begin a stream: who opens streams lets go of it
/// first, so that none is begun on a lane that is just closed.
const UNUSED_LANE_AGES: u32 = 3;

/// A number that names a connection to the peer; random, of no use to anybody else.
pub(super) type ConnectionId = [u8; 16];

/// How a connection ended.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    /// By this side; the peer is told.
    Local {
        code: CloseCode,
        reason: String,
    },
    Other(CloseReason),
}

impl Ending {
    fn reason(&self) -> CloseReason {
        match self {
            Self::Local { .. } => CloseReason::Local,
            Self::Other(reason) => reason.clone(),
        }
    }
}

/// Waits until the connection is over.
pub(super) async fn over(ending: &mut watch::Receiver<Option<Ending>>) -> CloseReason {
    match ending.wait_for(Option::is_some).await {
        Ok(ending) => ending.as_ref().map_or(CloseReason::Local, Ending::reason),
        Err(_) => CloseReason::Local,
    }
}

#[derive(Debug)]
struct IdleLane {
    lane: Arc<Lane>,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: ConnectionId,
    pub(super) peer: PeerIdentity,
    pub(super) remote: SocketAddr,
    /// How more lanes are made; only on the side that dialled the connection.
    pub(super) dialler: Option<LaneDialler>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) permits: Arc<Semaphore>,
    /// Lanes that the peer brought.
    pub(super) lanes: Arc<Semaphore>,
    /// How many lanes the peer is still to be asked for, and the word to do so.
    wanted_lanes: AtomicUsize,
    pub(super) wanted: Notify,
    /// A lane came that this side may open a stream on.
    pub(super) came: Notify,
    /// Smoothed round trip in microseconds.
    rtt_micros: AtomicU64,
    ending: watch::Sender<Option<Ending>>,
    idle: Mutex<Vec<IdleLane>>,
    /// After which a peer counts as gone: what lanes wait for is measured in it.
    silence: Duration,
    offers: mpsc::Sender<Arc<Lane>>,
    runtime: runtime::Handle,
}

impl Link {
    /// The receiver gets lanes on which the peer began a stream.
    pub(super) fn new(
        id: ConnectionId,
        peer: PeerIdentity,
        remote: SocketAddr,
        dialler: Option<LaneDialler>,
        traffic: Arc<Traffic>,
        config: &QuicConfig,
    ) -> (Arc<Self>, mpsc::Receiver<Arc<Lane>>) {
        let (offers, offered) = mpsc::channel(MAX_LANES);
        let link = Arc::new(Self {
            id,
            peer,
            remote,
            dialler,
            traffic,
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
            lanes: Arc::new(Semaphore::new(MAX_LANES)),
            wanted_lanes: AtomicUsize::new(0),
            wanted: Notify::new(),
            came: Notify::new(),
            rtt_micros: AtomicU64::new(0),
            ending: watch::Sender::new(None),
            idle: Mutex::default(),
            silence: config.idle_timeout,
            offers,
            runtime: runtime::Handle::current(),
        });
        (link, offered)
    }

    pub(super) fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// Why it is over, if it is.
    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.ending.borrow().as_ref().map(Ending::reason)
    }

    fn end(&self, ending: Ending) {
        self.ending.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(ending);
            }
            first
        });
        self.idle().clear();
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        self.end(Ending::Local {
            code,
            reason: reason.to_owned(),
        });
    }

    pub(super) fn fail(&self, reason: CloseReason) {
        self.end(Ending::Other(reason));
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<IdleLane>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a lane for the next stream that this side opens.
    pub(super) fn keep(&self, lane: Arc<Lane>) {
        let mut idle = self.idle();
        if idle.len() < IDLE_LANES && self.reason().is_none() {
            let since = Instant::now();
            idle.push(IdleLane { lane, since });
            drop(idle);
            self.came.notify_one();
        }
    }

    /// Takes a lane that the peer brought because it was asked to.
    pub(super) fn brought(&self, lane: Arc<Lane>) {
        let since = Instant::now();
        if self.reason().is_none() {
            self.idle().push(IdleLane { lane, since });
            self.came.notify_one();
        }
    }

    /// Asks the peer for a lane.
    pub(super) fn want_lane(&self) {
        self.wanted_lanes.fetch_add(1, Ordering::Relaxed);
        self.wanted.notify_one();
    }

    /// How many the peer is to be asked for.
    pub(super) fn take_wanted(&self) -> usize {
        self.wanted_lanes.swap(0, Ordering::Relaxed)
    }

    /// The idle lane that was used last, whose congestion window is the freshest, of those that
    /// the peer is done with.
    pub(super) fn take_idle(&self) -> Option<Arc<Lane>> {
        let mut idle = self.idle();
        for at in (0..idle.len()).rev() {
            match idle[at].lane.readiness() {
                Ok(Readiness::Ready) => return Some(idle.remove(at).lane),
                Ok(Readiness::NotYet) => {}
                Err(_) => drop(idle.remove(at)),
            }
        }
        None
    }

    fn idle_age(&self) -> Duration {
        self.silence * IDLE_LANE_SILENCES
    }

    /// How long a sender that was told to stop may take to end its direction.
    pub(super) fn drain_deadline(&self) -> Duration {
        self.silence * DRAIN_SILENCES
    }

    /// Closes what was idle for long.
    pub(super) fn expire_idle(&self) {
        self.idle()
            .retain(|idle| idle.since.elapsed() < self.idle_age());
    }

    /// Waits for the peer to begin a stream on `lane`, then offers it to who accepts. A lane on which
    /// none begins for long is closed.
    pub(super) fn await_stream(self: &Arc<Self>, lane: Arc<Lane>) {
        let link = Arc::clone(self);
        self.spawn(async move {
            let mut ending = link.ending();
            let mut unused = pin!(sleep(link.idle_age() * UNUSED_LANE_AGES));
            loop {
                match lane.begun() {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(_) => return,
                }
                tokio::select! {
                    biased;
                    _ = over(&mut ending) => return,
                    ready = lane.readable() => if ready.is_err() { return },
                    () = &mut unused => return,
                }
            }
            // There is room for all lanes; a receiver that is gone ended the connection.
            let _ = link.offers.try_send(lane);
        });
    }

    /// Takes a measured round trip into the smoothed one, as TCP does.
    pub(super) fn measured(&self, rtt: Duration) {
        let new = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        let old = self.rtt_micros.load(Ordering::Relaxed);
        let smoothed = if old == 0 { new } else { (old * 7 + new) / 8 };
        self.rtt_micros.store(smoothed, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> LinkStats {
        LinkStats {
            rtt: Duration::from_micros(self.rtt_micros.load(Ordering::Relaxed)),
            sent_bytes: self.traffic.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.traffic.received_bytes.load(Ordering::Relaxed),
            ..LinkStats::default()
        }
    }
}

/// The hold of the connection and of its halves: when the last is dropped, it is closed.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) link: Arc<Link>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close(CloseCode::DROPPED, "");
    }
}
