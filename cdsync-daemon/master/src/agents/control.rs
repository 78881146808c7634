//! An agent's control stream: its hello and reports in, orders and questions out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_core::wire::{
    AgentMessage, Answer, CONTROL_MAX_BYTES, Hello, MasterMessage, Signed, decode, encode, kind,
};
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CloseCode, Connection, FrameReader, FrameWriter, PeerIdentity,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::{Ended, first, stream};
use crate::init::check_address;
use crate::shared::{Live, Question, REMOVED, Shared, now};

/// Questions that may wait for one agent; a person asks, so few are enough.
const QUESTIONS: usize = 64;

/// Answers to renewals that may wait to be sent.
const REPLIES: usize = 4;

/// How often a source is told what its targets claim: its log takes room until it knows.
const CLAIMS_EVERY: Duration = Duration::from_secs(10);

/// The most roots that an agent may name, and the longest.
const ROOTS_MAX: usize = 256;
const ROOT_MAX_BYTES: usize = 4096;

/// Numbers connections of this process.
static GENERATION: AtomicU64 = AtomicU64::new(1);

type Pending = Mutex<HashMap<u64, oneshot::Sender<Result<Answer, String>>>>;

/// Serves a member's agent until its connection ends.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    connection: &Arc<dyn Connection>,
) -> Result<(), Ended> {
    let peer = *connection.peer();
    if shared.read(|plan| plan.topology().server(peer.server).is_none()) {
        return Err(Ended::new(CloseCode::REFUSED, REMOVED));
    }
    let (writer, mut reader) = stream(connection, CONTROL_MAX_BYTES).await?;
    let AgentMessage::Hello(hello) = first(&mut reader).await? else {
        return Err(Ended::protocol("the first message is not a hello"));
    };
    check(&hello)?;
    let session = Session::begin(shared, connection, hello).await?;
    let result = session.run(writer, reader).await;
    session.end();
    result
}

fn check(hello: &Hello) -> Result<(), Ended> {
    check_address(&hello.address).map_err(Ended::protocol)?;
    let bad = |root: &String| root.len() > ROOT_MAX_BYTES || !root.starts_with('/');
    if hello.roots.len() > ROOTS_MAX || hello.roots.iter().any(bad) {
        return Err(Ended::protocol(
            "the roots are too many, too long or not absolute",
        ));
    }
    Ok(())
}

/// One connection of one agent.
struct Session {
    shared: Arc<Shared>,
    server: ServerId,
    generation: u64,
    peer: PeerIdentity,
    orders: watch::Receiver<Option<Signed>>,
    questions: tokio::sync::Mutex<mpsc::Receiver<Question>>,
    pending: Pending,
}

impl Session {
    /// Takes the place of a connection before, and makes the agent's orders ready.
    async fn begin(
        shared: &Arc<Shared>,
        connection: &Arc<dyn Connection>,
        hello: Hello,
    ) -> Result<Self, Ended> {
        let peer = *connection.peer();
        let server = peer.server;
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        let (orders, ordered) = watch::channel(None);
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let live = Live {
            generation,
            connection: Arc::clone(connection),
            orders,
            questions,
        };
        let taken = shared.input(|state| {
            // It may have been removed while it said hello.
            let name = state.coordinator.topology().server(server)?.name.clone();
            let before = state.live.insert(server, live);
            let ruled = state.coordinator.outranked().is_none();
            let news = state.coordinator.handle_hello(server, hello, now());
            let outranked = state.coordinator.outranked().filter(|_| ruled);
            Some((name, before, news, outranked.map(|later| later.term)))
        });
        let (name, before, news, outranked) =
            taken.ok_or_else(|| Ended::new(CloseCode::REFUSED, REMOVED))?;
        info!(server = %name, replaced = before.is_some(), "connected");
        if let Some(term) = outranked {
            error!(
                server = %name,
                term,
                "an agent obeys a later master: this one was restored from an older copy, or \
                 another one runs. It gives no orders before `cdsync master accept-restore`",
            );
        }
        if let Some(before) = before {
            before
                .connection
                .close(CloseCode::REPLACED, "a newer connection took its place");
        }
        let session = Self {
            shared: Arc::clone(shared),
            server,
            generation,
            peer,
            orders: ordered,
            questions: tokio::sync::Mutex::new(asked),
            pending: Mutex::default(),
        };
        if news && let Err(error) = shared.keep_server(server).await {
            // It says so again at its next hello.
            warn!(%error, "what a server says of itself was not stored");
        }
        Ok(session)
    }

    /// Reads and writes at the same time: neither waits for the other.
    async fn run(&self, writer: FrameWriter, reader: FrameReader) -> Result<(), Ended> {
        let (replies, outgoing) = mpsc::channel(REPLIES);
        tokio::select! {
            result = self.read(reader, replies) => result,
            result = self.write(writer, outgoing) => result,
        }
    }

    fn end(&self) {
        let mine = self.shared.input(|state| {
            let mine = state
                .live
                .get(&self.server)
                .is_some_and(|l| l.generation == self.generation);
            if mine {
                state.live.remove(&self.server);
                state.coordinator.handle_disconnected(self.server, now());
            }
            mine
        });
        info!(server = %self.server, replaced = !mine, "disconnected");
    }

    async fn read(
        &self,
        mut reader: FrameReader,
        replies: mpsc::Sender<MasterMessage>,
    ) -> Result<(), Ended> {
        while let Some(frame) = reader.next().await.map_err(Ended::protocol)? {
            if frame.kind != kind::CONTROL {
                return Err(Ended::protocol(format!("a frame of kind {}", frame.kind)));
            }
            match decode(&frame.payload).map_err(Ended::protocol)? {
                AgentMessage::Hello(_) => return Err(Ended::protocol("a second hello")),
                AgentMessage::Report(report) => self.shared.input(|state| {
                    // A connection that was replaced speaks of the past.
                    let live = state.live.get(&self.server);
                    if live.is_some_and(|live| live.generation == self.generation) {
                        state.coordinator.handle_report(self.server, report, now());
                    }
                }),
                AgentMessage::Answer { id, answer } => {
                    // Nobody may wait any more: the deadline passed.
                    if let Some(waiting) = self.pending().remove(&id) {
                        let _ = waiting.send(answer);
                    }
                }
                AgentMessage::Renew { csr } => {
                    let renewed = self.renew(&csr)?;
                    if replies.send(renewed).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// A new certificate for who the connection's own certificate says it is.
    fn renew(&self, csr: &str) -> Result<MasterMessage, Ended> {
        let issued = self
            .shared
            .authority
            .issue(csr.as_bytes(), &self.peer, CERTIFICATE_VALIDITY);
        let certificate = issued.map_err(Ended::protocol)?;
        info!(server = %self.server, "certificate renewed");
        Ok(MasterMessage::Renewed { certificate })
    }

    async fn write(
        &self,
        mut writer: FrameWriter,
        mut replies: mpsc::Receiver<MasterMessage>,
    ) -> Result<(), Ended> {
        let mut orders = self.orders.clone();
        let mut questions = self.questions.lock().await;
        let mut next_id = 1_u64;
        send(&mut writer, &MasterMessage::Welcome { now: now() }).await?;
        // What was ordered before this began counts as news.
        orders.mark_changed();
        let mut claims = tokio::time::interval(CLAIMS_EVERY);
        claims.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                changed = orders.changed() => match changed {
                    Ok(()) => orders.borrow_and_update().clone().map(MasterMessage::Orders),
                    // The place of this connection was taken, or the server removed.
                    Err(_) => return Ok(()),
                },
                Some(question) = questions.recv() => self.question(question, &mut next_id),
                Some(reply) = replies.recv() => Some(reply),
                _ = claims.tick() => self.claimed(),
            };
            if let Some(message) = message {
                send(&mut writer, &message).await?;
            }
        }
    }

    /// What the targets of the server's jobs claim, if they all do. Told again and again: a source
    /// that began anew does not know it any more.
    fn claimed(&self) -> Option<MasterMessage> {
        let claimed = self.shared.read(|plan| plan.claimed(self.server));
        (!claimed.is_empty()).then_some(MasterMessage::Claimed(claimed))
    }

    /// Numbers a question, unless nobody waits for its answer any more.
    fn question(&self, question: Question, next_id: &mut u64) -> Option<MasterMessage> {
        let mut pending = self.pending();
        pending.retain(|_, waiting| !waiting.is_closed());
        if question.answer.is_closed() {
            return None;
        }
        let id = *next_id;
        *next_id += 1;
        pending.insert(id, question.answer);
        Some(MasterMessage::Ask {
            id,
            ask: question.ask,
        })
    }

    fn pending(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Answer, String>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(writer: &mut FrameWriter, message: &MasterMessage) -> Result<(), Ended> {
    let body = Bytes::from(encode(message));
    writer
        .write(kind::CONTROL, &[body])
        .await
        .map_err(Ended::protocol)
}
