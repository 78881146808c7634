//! A subscription whose cursor the log does not lead on from: the target compares first.

use std::sync::Arc;
use std::time::Duration;

use cdsync_core::ledger::digest::DigestKey;
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::snapshot::{answer, snapshot};
use cdsync_core::wire::{
    CompareAsk, CompareWhy, PeerMessage, RefusedWhy, Snapshot, Tick, decode, kind,
};
use cdsync_fs::ReadView;
use cdsync_transport::{FrameReader, FrameWriter};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

use super::{ServeError, Serving, write};
use crate::clock::{random_id, wall};
use crate::source::{Served, chain};

/// How many snapshots are held at once: the store keeps all pages that one of them sees.
pub(super) const SNAPSHOTS_MAX: usize = 4;
/// How long one is held at most: ten million names are compared in a minute or two. Who needs longer
/// begins again, and what was found until then is equal.
const SNAPSHOT_AGE: Duration = Duration::from_secs(30 * 60);
/// How often a target hears that this side lives, while it is the one that works.
const TICK: Duration = Duration::from_secs(1);

/// Answers a target's questions about one state of the ledger. Returns the number from which the log
/// goes on, once it knows all.
pub(super) async fn serve(
    served: &Arc<Served>,
    why: CompareWhy,
    serving: &Serving,
    writer: &mut FrameWriter,
    reader: &mut FrameReader,
) -> Result<Seq, ServeError> {
    let place = Semaphore::try_acquire(&serving.snapshots);
    let _place = place.map_err(|_| {
        ServeError::refused(RefusedWhy::Busy, "too many targets compare at this moment")
    })?;
    // What it has of this very ledger and is not there any more was removed; of another history, it
    // may only not have been met yet.
    if why == CompareWhy::Unknown && !served.announced.borrow().complete {
        let reason = "the source still compares its disk with its ledger";
        return Err(ServeError::refused(RefusedWhy::NotServing, reason));
    }
    let (mut view, of) = begin(served, why)?;
    let mut announced = served.announced.clone();
    // Nothing is told before it is durable.
    let durable = announced.wait_for(|now| now.head >= of.at).await;
    drop(durable.map_err(|_| super::subscription::stopped())?);
    let (at, origin, key) = (of.at, of.origin, DigestKey(of.key));
    write(writer, &PeerMessage::Snapshot(of)).await?;
    let until = Instant::now() + SNAPSHOT_AGE;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            frame = reader.next() => frame?,
            _ = ticks.tick() => {
                tell(served, writer).await?;
                continue;
            }
            () = tokio::time::sleep_until(until) => {
                let reason = "the comparison took too long; it begins again";
                return Err(ServeError::refused(RefusedWhy::Busy, reason));
            }
        };
        let frame = frame.ok_or(ServeError::Silent)?;
        let ask = question(frame.kind, &frame.payload)?;
        let answered = serving.readers.run(move || {
            let answered = answer(&view, origin, &key, &ask);
            (view, answered)
        });
        let (back, answered) = answered.await.ok_or(ServeError::Ending)?;
        view = back;
        match answered.map_err(|error| ServeError::Source(chain(&error)))? {
            Some(answer) => write(writer, &PeerMessage::Compared(answer)).await?,
            None => return Ok(at),
        }
    }
}

fn begin(served: &Served, why: CompareWhy) -> Result<(ReadView, Snapshot), ServeError> {
    let failed = |error: &dyn std::error::Error| ServeError::Source(chain(error));
    let view = served.store.read().map_err(|e| failed(&e))?;
    let mut key = [0; 32];
    for part in key.chunks_mut(8) {
        part.copy_from_slice(&random_id().to_le_bytes());
    }
    let of = snapshot(&view, why, DigestKey(key)).map_err(|e| failed(&e))?;
    let of = of.ok_or_else(|| ServeError::Source("the ledger is empty".to_owned()))?;
    Ok((view, of))
}

fn question(frame: u8, payload: &[u8]) -> Result<CompareAsk, ServeError> {
    let message = (frame == kind::MESSAGE).then(|| decode::<PeerMessage>(payload).ok());
    match message.flatten() {
        Some(PeerMessage::Compare(ask)) => Ok(ask),
        _ => Err(ServeError::Protocol(
            "a target that compares sent something else than a question",
        )),
    }
}

/// A sign of life; what it says counts once the log goes on.
async fn tell(served: &Served, writer: &mut FrameWriter) -> Result<(), ServeError> {
    let now = *served.announced.borrow();
    let tick = Tick {
        head: now.head,
        incarnation: served.incarnation,
        bytes: now.bytes,
        at: wall(),
        complete: now.complete,
    };
    write(writer, &PeerMessage::Tick(tick)).await
}
