//! The link: keeps a subscription to the best upstream that answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::job::Retry;
use cdsync_core::wire::{
    CompareAnswer, CompareAsk, PeerMessage, RefusedWhy, Signed, Subscribe, Upstream, batch_cost,
    decode, encode, kind,
};
use cdsync_transport::{
    CloseReason, ConnectError, Connection, FrameError, FrameReader, FrameWriter, PeerExpectation,
    Transport,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::disk::Disk;
use super::engine::BATCH_MAX_BYTES;
use super::{Input, JobRef, LinkOrder, Resume, Verdict, pull};
use crate::clock::random_id;
use crate::mailbox::{Gone, Mailbox};

/// The first wait before an upstream is tried again, doubled with each failure up to the job's
/// longest one: most connections that end are there again at once.
const RETRY_FIRST_MS: u32 = 20;
/// A subscription that held for so long begins with the first wait again.
const CALM: Duration = Duration::from_secs(10);
/// How long an upstream may take to let a stream be opened.
pub(super) const OPEN_MAX: Duration = Duration::from_secs(30);
/// How long an upstream may say nothing: three of its ticks and a bit. A batch that comes slowly is
/// not silence.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What a link is made from.
#[derive(Debug)]
pub(super) struct LinkContext {
    pub(super) job: JobRef,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) grant: Arc<Mutex<Signed>>,
    pub(super) paused: bool,
    pub(super) resume: Arc<Mutex<Resume>>,
    pub(super) credit: u32,
    pub(super) retry: Retry,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) engine: Mailbox<Input>,
    pub(super) disk: Arc<Disk>,
}

impl LinkContext {
    /// The newest one: orders renew it.
    fn grant(&self) -> Signed {
        let grant = self.grant.lock();
        grant.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a subscription ended.
#[derive(Debug, Error)]
enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Closed(#[from] CloseReason),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it refuses: {reason}")]
    Refused { why: RefusedWhy, reason: String },
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("it says nothing any more")]
    Silent,
    #[error("dropped: {0}")]
    Dropped(String),
    #[error("it ended the subscription")]
    Ended,
    /// More was claimed since the subscription was asked for.
    #[error("the cursor moved while it was asked")]
    Moved,
    /// The engine begins anew and makes another link.
    #[error("the target begins anew")]
    Anew,
}

impl From<Gone> for LinkError {
    fn from(_: Gone) -> Self {
        Self::Anew
    }
}

/// Links until aborted, or until the engine is gone.
pub(super) async fn run(mut context: LinkContext, mut orders: mpsc::Receiver<LinkOrder>) {
    if context.paused {
        // The orders that end the pause make a new engine with a new link.
        let reason = "the job is paused".to_owned();
        // An engine that is gone needs no word.
        let _ = context.engine.deliver(Input::Unlinked(reason)).await;
        return;
    }
    let retry = Retry {
        first_ms: RETRY_FIRST_MS.min(context.retry.first_ms),
        ..context.retry
    };
    let longest = Duration::from_millis(u64::from(retry.most_ms));
    let (mut next, mut failures) = (0, 0_u32);
    while let Some(upstream) = context
        .upstreams
        .get(next % context.upstreams.len().max(1))
        .cloned()
    {
        let before = tokio::time::Instant::now();
        let error = match subscribe(&mut context, &upstream, &mut orders).await {
            Err(LinkError::Anew) => return,
            Err(LinkError::Moved) => continue,
            Err(error) => error,
            Ok(never) => match never {},
        };
        if before.elapsed() > longest.min(CALM) {
            failures = 0;
        }
        let reason = format!("{}: {}", upstream.name, crate::source::chain(&error));
        tracing::debug!(job = context.job.name, reason, "no subscription");
        if context
            .engine
            .deliver(Input::Unlinked(reason))
            .await
            .is_err()
        {
            return;
        }
        while orders.try_recv().is_ok() {}
        failures = failures.saturating_add(1);
        let wait = retry.wait_ms(random_id(), failures);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        next += 1;
    }
    let reason = "the orders name no upstream".to_owned();
    let _ = context.engine.deliver(Input::Unlinked(reason)).await;
}

enum Never {}

async fn subscribe(
    context: &mut LinkContext,
    upstream: &Upstream,
    orders: &mut mpsc::Receiver<LinkOrder>,
) -> Result<Never, LinkError> {
    let expect = PeerExpectation::agent(upstream.server);
    let connection = context
        .transport
        .connect(&upstream.address, &expect)
        .await?;
    let opened = tokio::time::timeout(OPEN_MAX, connection.open()).await;
    let (send, recv) = opened.map_err(|_| LinkError::Silent)??;
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv).with_max_payload(BATCH_MAX_BYTES);
    let resume = *context
        .resume
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let request = Subscribe {
        job: context.job.id,
        grant: context.grant(),
        cursor: resume.cursor,
        preview: resume.preview,
    };
    write(&mut writer, &PeerMessage::Subscribe(request)).await?;
    let answered = tokio::time::timeout(SILENCE_MAX, read(&mut reader)).await;
    let (reply, answer) = oneshot::channel();
    let (by, from) = (upstream.server, resume.cursor);
    let mut compares = false;
    let begun = match answered.map_err(|_| LinkError::Silent)?? {
        Received::Message(PeerMessage::Accepted(accepted)) => Input::Accepted {
            by,
            from,
            accepted,
            reply,
        },
        Received::Message(PeerMessage::Snapshot(snapshot)) => {
            compares = true;
            Input::Snapshot {
                by,
                from,
                snapshot,
                reply,
            }
        }
        Received::Message(PeerMessage::Refused { why, reason }) => {
            return Err(LinkError::Refused { why, reason });
        }
        _ => {
            return Err(LinkError::Protocol(
                "a subscription began with something else",
            ));
        }
    };
    context.engine.deliver(begun).await?;
    match answer.await.unwrap_or(Verdict::Anew) {
        Verdict::GoOn => {}
        Verdict::Again => return Err(LinkError::Moved),
        Verdict::Anew => return Err(LinkError::Anew),
    }
    if !compares {
        grant(&mut writer, context.credit).await?;
    }
    receive(context, &connection, writer, reader, orders).await
}

async fn grant(writer: &mut FrameWriter, bytes: u32) -> Result<(), FrameError> {
    write(writer, &PeerMessage::Credit { bytes }).await
}

async fn receive(
    context: &mut LinkContext,
    connection: &Arc<dyn Connection>,
    mut writer: FrameWriter,
    mut reader: FrameReader,
    orders: &mut mpsc::Receiver<LinkOrder>,
) -> Result<Never, LinkError> {
    // Dropped with this subscription, and every fetch with it.
    let mut fetches = JoinSet::new();
    // As the upstream counts it: a batch may go beyond what is left, once.
    let mut credit = i64::from(context.credit);
    // Whatever else happens on this side: an upstream that is silent is left.
    let mut heard = tokio::time::Instant::now();
    loop {
        tokio::select! {
            received = read(&mut reader) => {
                let input = input_of(received?)?;
                if let Input::Batch { payload, .. } = &input {
                    if credit <= 0 {
                        return Err(LinkError::Protocol("it sent more than it was granted"));
                    }
                    credit -= i64::from(batch_cost(payload.len()));
                }
                context.engine.deliver(input).await?;
                heard = tokio::time::Instant::now();
            }
            order = orders.recv() => match order {
                Some(LinkOrder::Credit(bytes)) => {
                    credit += i64::from(bytes);
                    grant(&mut writer, bytes).await?;
                }
                Some(LinkOrder::Compare(ask)) => {
                    let ends = ask == CompareAsk::Done;
                    write(&mut writer, &PeerMessage::Compare(ask)).await?;
                    if ends {
                        // Records come from now on.
                        grant(&mut writer, context.credit).await?;
                    }
                }
                Some(LinkOrder::Fetch(pulls)) => {
                    let fetch = pull::Fetch {
                        job: context.job.id,
                        grant: context.grant(),
                        pulls,
                        connection: Arc::clone(connection),
                        disk: Arc::clone(&context.disk),
                        engine: context.engine.clone(),
                    };
                    fetches.spawn(fetch.run());
                }
                Some(LinkOrder::Drop(reason)) => return Err(LinkError::Dropped(reason)),
                None => return Err(LinkError::Anew),
            },
            Some(_) = fetches.join_next(), if !fetches.is_empty() => {}
            () = tokio::time::sleep_until(heard + SILENCE_MAX) => {
                // A part of a batch may have come.
                if reader.heard() <= heard {
                    return Err(LinkError::Silent);
                }
                heard = reader.heard();
            }
        }
    }
}

fn input_of(received: Received) -> Result<Input, LinkError> {
    match received {
        Received::Batch {
            compressed,
            payload,
        } => Ok(Input::Batch {
            compressed,
            payload,
        }),
        Received::Message(PeerMessage::Tick(tick)) => Ok(Input::Tick(tick)),
        Received::Compared { answer, bytes } => Ok(Input::Compared { answer, bytes }),
        Received::Message(PeerMessage::Refused { why, reason }) => {
            Err(LinkError::Refused { why, reason })
        }
        Received::Message(_) => Err(LinkError::Protocol("an upstream sent the wrong message")),
        Received::End => Err(LinkError::Ended),
    }
}

enum Received {
    Message(PeerMessage),
    Compared { answer: CompareAnswer, bytes: u64 },
    Batch { compressed: bool, payload: Bytes },
    End,
}

/// Cancel safe, as the reader keeps what it has.
async fn read(reader: &mut FrameReader) -> Result<Received, LinkError> {
    let Some(frame) = reader.next().await? else {
        return Ok(Received::End);
    };
    match frame.kind {
        kind::BATCH | kind::BATCH_ZSTD => {
            let compressed = frame.kind == kind::BATCH_ZSTD;
            Ok(Received::Batch {
                compressed,
                payload: frame.payload,
            })
        }
        kind::MESSAGE => match decode(&frame.payload) {
            Ok(PeerMessage::Compared(answer)) => Ok(Received::Compared {
                answer,
                bytes: frame.payload.len() as u64,
            }),
            Ok(message) => Ok(Received::Message(message)),
            Err(_) => Err(LinkError::Protocol("a message does not decode")),
        },
        _ => Err(LinkError::Protocol("a frame of an unknown kind")),
    }
}

pub(super) async fn write(
    writer: &mut FrameWriter,
    message: &PeerMessage,
) -> Result<(), FrameError> {
    writer
        .write(kind::MESSAGE, &[Bytes::from(encode(message))])
        .await
}
