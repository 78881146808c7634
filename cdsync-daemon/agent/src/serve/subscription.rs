//! One target's stream of records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::outgoing::BatchLimits;
use cdsync_core::ledger::snapshot::why_compare;
use cdsync_core::wire::{
    Accepted, CompareWhy, PeerMessage, RefusedWhy, Subscribe, Tick, batch_cost, decode, kind,
};
use cdsync_transport::{FrameReader, FrameWriter};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::batch::{How, Made, Maker};
use super::busy::Busy;
use super::{ServeError, Serving, compare, write};
use crate::clock::wall;
use crate::source::{Announced, Served, chain};

/// How often a source shows that it lives.
const TICK: Duration = Duration::from_secs(1);
/// The most credit that a target may have: what it grants beyond is a mistake.
const CREDIT_MAX: i64 = 256 << 20;
/// A link that takes fewer bytes a second than this is worth compressing for: at level 1 one core
/// makes about 400 MB/s, so compression then costs less time than it saves.
const SLOW_BYTES_PER_SECOND: f64 = 40e6;
/// Writes smaller than this say nothing about the link: they end in a buffer.
const MEASURED_BYTES: usize = 64 << 10;

/// What is known of the way to the target.
#[derive(Debug, Default)]
struct Link {
    bytes_per_second: Option<f64>,
}

impl Link {
    fn is_slow(&self) -> bool {
        self.bytes_per_second
            .is_some_and(|rate| rate < SLOW_BYTES_PER_SECOND)
    }

    fn measured(&mut self, bytes: usize, took: Duration) {
        if bytes < MEASURED_BYTES {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        self.bytes_per_second = Some(self.bytes_per_second.map_or(rate, |r| r * 0.7 + rate * 0.3));
    }
}

struct Subscription<'a> {
    served: &'a Arc<Served>,
    serving: &'a Serving,
    with_content: bool,
    cursor: Seq,
    credit: i64,
    told: Announced,
    link: Link,
    making: Option<JoinHandle<Option<Result<Made, ServeError>>>>,
    maker: Option<Maker>,
    /// While it has batches.
    busy: Option<Busy>,
}

/// Serves a subscription until the peer, the source or the connection ends it.
pub(super) async fn serve(
    served: &Arc<Served>,
    subscribe: &Subscribe,
    serving: &Serving,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<(), ServeError> {
    let cursor = match why_first(served, subscribe)? {
        Some(why) => compare::serve(served, why, serving, writer, reader).await?,
        None => accept(served, subscribe, writer).await?,
    };
    let mut subscription = Subscription {
        served,
        serving,
        with_content: !subscribe.preview,
        cursor,
        credit: 0,
        told: Announced::default(),
        link: Link::default(),
        making: None,
        maker: Some(Maker::default()),
        busy: None,
    };
    subscription.run(writer, reader).await
}

/// Why the target has to compare before records may come; `None` where they lead on from its cursor.
fn why_first(served: &Served, subscribe: &Subscribe) -> Result<Option<CompareWhy>, ServeError> {
    let view = served.store.read();
    let view = view.map_err(|e| ServeError::Source(chain(&e)))?;
    let why = why_compare(&view, subscribe.cursor.as_ref());
    why.map_err(|e| ServeError::Source(chain(&e)))
}

/// Says from where on records come.
async fn accept(
    served: &Served,
    subscribe: &Subscribe,
    writer: &mut FrameWriter,
) -> Result<Seq, ServeError> {
    let now = *served.announced.borrow();
    let accepted = Accepted {
        origin: served.origin,
        incarnation: served.incarnation,
        resumed: subscribe.cursor.is_some(),
        head: now.head,
        complete: now.complete,
    };
    write(writer, &PeerMessage::Accepted(accepted)).await?;
    Ok(subscribe.cursor.map_or(Seq(0), |cursor| cursor.seq))
}

impl Subscription<'_> {
    async fn run(
        &mut self,
        writer: &mut FrameWriter,
        reader: &mut FrameReader,
    ) -> Result<(), ServeError> {
        let mut announced = self.served.announced.clone();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = *announced.borrow_and_update();
            self.make_next(now);
            self.tell(writer, now).await?;
            tokio::select! {
                biased;
                made = join(&mut self.making), if self.making.is_some() => {
                    self.making = None;
                    let made = made.ok_or(ServeError::Ending)??;
                    self.send(writer, made, now).await?;
                }
                frame = reader.next() => match frame? {
                    Some(frame) => self.take(frame.kind, &frame.payload)?,
                    None => return Ok(()),
                },
                changed = announced.changed() => changed.map_err(|_| stopped())?,
                _ = ticks.tick() => self.told = Announced::default(),
            }
        }
    }

    fn take(&mut self, kind: u8, payload: &[u8]) -> Result<(), ServeError> {
        if kind != kind::MESSAGE {
            return Err(ServeError::Protocol(
                "a subscriber sent something else than a message",
            ));
        }
        match decode::<PeerMessage>(payload) {
            Ok(PeerMessage::Credit { bytes }) => {
                self.credit = (self.credit + i64::from(bytes)).min(CREDIT_MAX);
                Ok(())
            }
            Ok(_) => Err(ServeError::Protocol("a subscriber sent the wrong message")),
            Err(_) => Err(ServeError::Protocol(
                "a subscriber's message does not decode",
            )),
        }
    }

    /// Lets a reader thread make the next batch while the last one is on its way.
    fn make_next(&mut self, announced: Announced) {
        let ready = announced.head > self.cursor && self.credit > 0 && self.making.is_none();
        let Some(maker) = ready.then(|| self.maker.take()).flatten() else {
            return;
        };
        let (served, readers) = (Arc::clone(self.served), self.serving.readers.clone());
        let (after, head) = (self.cursor, announced.head);
        let all = &self.serving.busy;
        let busy = self.busy.get_or_insert_with(|| all.begin());
        let how = How {
            limits: BatchLimits::default().shared_by(busy.streams()),
            with_content: self.with_content,
            compress: self.link.is_slow(),
        };
        self.making = Some(tokio::spawn(async move {
            readers
                .run(move || maker.make(&served, after, head, how))
                .await
        }));
    }

    async fn send(
        &mut self,
        writer: &mut FrameWriter,
        made: Made,
        now: Announced,
    ) -> Result<(), ServeError> {
        self.maker = Some(made.maker);
        let Some(last) = made.last else { return Ok(()) };
        self.cursor = last;
        let bytes: usize = made.parts.iter().map(bytes::Bytes::len).sum();
        self.credit -= i64::from(batch_cost(bytes));
        self.make_next(now);
        let began = Instant::now();
        writer.write(made.kind, &made.parts).await?;
        self.link.measured(bytes, began.elapsed());
        Ok(())
    }

    /// A tick, once everything that it covers was sent.
    async fn tell(&mut self, writer: &mut FrameWriter, now: Announced) -> Result<(), ServeError> {
        if self.cursor < now.head || now == self.told || self.making.is_some() {
            return Ok(());
        }
        self.told = now;
        if let Some(maker) = &mut self.maker {
            maker.rest();
        }
        self.busy = None;
        let tick = Tick {
            head: now.head,
            incarnation: self.served.incarnation,
            bytes: now.bytes,
            at: wall(),
            complete: now.complete,
        };
        write(writer, &PeerMessage::Tick(tick)).await
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        if let Some(making) = &self.making {
            making.abort();
        }
    }
}

/// Cancel safe: the handle stays where it is.
async fn join(
    making: &mut Option<JoinHandle<Option<Result<Made, ServeError>>>>,
) -> Option<Result<Made, ServeError>> {
    match making {
        Some(handle) => handle.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

pub(super) fn stopped() -> ServeError {
    ServeError::refused(RefusedWhy::NotServing, "the source stopped")
}
