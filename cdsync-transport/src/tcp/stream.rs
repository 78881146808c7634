//! The two halves of a stream, and what becomes of its lane afterwards.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::lane::{End, Lane, LaneError, kind};
use super::link::{Ending, Handle, Link, over};
use crate::connection::{BoxFuture, RecvHalf, SendHalf, Stream};
use crate::error::{CloseCode, CloseReason, RecvError, SendError};

/// How long a lane that failed waits for the connection to say why.
const VERDICT_WAIT: Duration = Duration::from_millis(500);

/// One stream on its lane; shared by its halves and, once they are gone, by who tidies up.
#[derive(Debug)]
struct Use {
    link: Arc<Link>,
    lane: Arc<Lane>,
    /// This side opened the stream; `false`: the peer did, and may open another on this lane.
    opened: bool,
    /// Directions that have not ended.
    open: AtomicU8,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Use {
    /// One direction ended: after the second the lane is free for another stream. Who accepted the
    /// stream says so to who opened it.
    fn end_direction(self: &Arc<Self>) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.release(true);
        }
    }

    fn release(self: &Arc<Self>, tell: bool) {
        drop(
            self.permit
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        if self.opened {
            self.lane.shrink();
            self.link.keep(Arc::clone(&self.lane));
            return;
        }
        self.lane.renumber();
        if tell {
            self.tell(|lane| lane.put(kind::RELEASE, &[]));
        }
        self.lane.shrink();
        self.link.await_stream(Arc::clone(&self.lane));
    }

    /// Queues a message that needs no waiting for; the rest of it goes out in the background.
    fn tell(self: &Arc<Self>, put: impl FnOnce(&Lane) -> Result<bool, LaneError>) {
        // A lane that fails here fails for whoever receives on it, too.
        if let Ok(false) = put(&self.lane) {
            let mut tx = self.lane.tx();
            if !std::mem::replace(&mut tx.flushing, true) {
                let (link, lane) = (Arc::clone(&self.link), Arc::clone(&self.lane));
                self.link.spawn(async move {
                    let mut ending = link.ending();
                    tokio::select! {
                        biased;
                        _ = over(&mut ending) => {}
                        // A lane that fails fails for whoever uses it next, too.
                        _ = lane.flush() => {}
                    }
                });
            }
        }
    }

    /// What a failed lane means: the connection's end, or else only this stream's.
    async fn verdict(
        &self,
        error: LaneError,
        ending: &mut watch::Receiver<Option<Ending>>,
    ) -> Option<CloseReason> {
        tracing::debug!(peer = %self.link.peer, %error, "a lane failed");
        if let Some(reason) = error.reason() {
            self.link.fail(reason);
        }
        timeout(VERDICT_WAIT, over(ending)).await.ok()
    }
}

/// The halves of a stream on `lane`.
pub(super) fn halves(
    handle: Arc<Handle>,
    lane: Arc<Lane>,
    permit: Option<OwnedSemaphorePermit>,
) -> Stream {
    let link = Arc::clone(&handle.link);
    let used = Arc::new(Use {
        lane,
        opened: permit.is_some(),
        open: AtomicU8::new(2),
        permit: Mutex::new(permit),
        link,
    });
    let send = TcpSend {
        used: Arc::clone(&used),
        ending: used.link.ending(),
        ended: false,
        _handle: Arc::clone(&handle),
    };
    let recv = TcpRecv {
        ending: used.link.ending(),
        used,
        end: None,
        _handle: handle,
    };
    (Box::new(send), Box::new(recv))
}

#[derive(Debug)]
struct TcpSend {
    used: Arc<Use>,
    ending: watch::Receiver<Option<Ending>>,
    ended: bool,
    _handle: Arc<Handle>,
}

impl TcpSend {
    /// Ends this direction by a last message.
    fn end(&mut self, kind: u8, body: &[&[u8]]) {
        self.ended = true;
        // Nobody else ends the last direction: then one write says both.
        if !self.used.opened && self.used.open.load(Ordering::Acquire) == 1 {
            self.used.tell(|lane| {
                let mut tx = lane.tx();
                tx.put(kind, body)?;
                tx.put(kind::RELEASE, &[])?;
                lane.write(&mut tx)
            });
            self.used.open.store(0, Ordering::Release);
            self.used.release(false);
        } else {
            self.used.tell(|lane| lane.put(kind, body));
            self.used.end_direction();
        }
    }
}

impl SendHalf for TcpSend {
    fn send<'a>(&'a mut self, parts: &'a mut [Bytes]) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            if self.ended {
                return Err(SendError::Ended);
            }
            let lane = &self.used.lane;
            loop {
                if let Some(reason) = self.used.link.reason() {
                    return Err(reason.into());
                }
                if let Some(code) = lane.stopped() {
                    return Err(SendError::Stopped(code));
                }
                match lane.send(parts) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => {
                        let verdict = self.used.verdict(error, &mut self.ending).await;
                        return Err(verdict.map_or(
                            SendError::Stopped(CloseCode::DROPPED),
                            SendError::Connection,
                        ));
                    }
                }
                tokio::select! {
                    biased;
                    reason = over(&mut self.ending) => return Err(reason.into()),
                    // An error is met again by the write.
                    _ = lane.stream.writable() => {}
                }
                // A receiver that is as fast never makes a write wait.
                tokio::task::consume_budget().await;
            }
        })
    }

    fn taken_bytes(&self) -> u64 {
        self.used.lane.tx().sent_bytes
    }

    fn finish(&mut self) -> Result<(), SendError> {
        if self.ended {
            return Err(SendError::Ended);
        }
        self.end(kind::FINISH, &[]);
        Ok(())
    }

    fn reset(&mut self, code: CloseCode) {
        if !self.ended {
            self.end(kind::RESET, &[&code.0.to_le_bytes()]);
        }
    }
}

impl Drop for TcpSend {
    fn drop(&mut self) {
        self.reset(CloseCode::DROPPED);
    }
}

#[derive(Debug)]
struct TcpRecv {
    used: Arc<Use>,
    ending: watch::Receiver<Option<Ending>>,
    /// How it ended: every further call says the same.
    end: Option<Result<(), RecvError>>,
    _handle: Arc<Handle>,
}

impl TcpRecv {
    fn ended(&mut self, end: End) -> Result<Option<usize>, RecvError> {
        let end = match end {
            End::Finished => Ok(()),
            End::Reset(code) => Err(RecvError::Reset(code)),
        };
        self.end = Some(end.clone());
        self.used.end_direction();
        end.map(|()| None)
    }
}

impl RecvHalf for TcpRecv {
    fn recv_many<'a>(
        &'a mut self,
        slots: &'a mut [Bytes],
    ) -> BoxFuture<'a, Result<Option<usize>, RecvError>> {
        Box::pin(async move {
            if let Some(end) = &self.end {
                return end.clone().map(|()| None);
            }
            tokio::task::consume_budget().await;
            loop {
                if let Some(reason) = self.used.link.reason() {
                    return Err(reason.into());
                }
                match self.used.lane.receive(slots) {
                    Ok(Some(Ok(filled))) => return Ok(Some(filled)),
                    Ok(Some(Err(end))) => return self.ended(end),
                    Ok(None) => {}
                    Err(error) => {
                        let verdict = self.used.verdict(error, &mut self.ending).await;
                        let error = verdict
                            .map_or(RecvError::Reset(CloseCode::DROPPED), RecvError::Connection);
                        // This direction never ends: the lane is not used again.
                        self.end = Some(Err(error.clone()));
                        return Err(error);
                    }
                }
                tokio::select! {
                    biased;
                    reason = over(&mut self.ending) => return Err(reason.into()),
                    // An error is met again by the read.
                    _ = self.used.lane.readable() => {}
                }
            }
        })
    }

    fn stop(&mut self, code: CloseCode) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(Err(RecvError::Ended));
        match self.used.lane.discard() {
            Ok(Some(_)) => self.used.end_direction(),
            Ok(None) => {
                self.used.tell(|lane| lane.stop(code));
                self.used.link.spawn(drain(Arc::clone(&self.used)));
            }
            // The lane goes with the last hold on it.
            Err(_) => {}
        }
    }
}

impl Drop for TcpRecv {
    fn drop(&mut self) {
        self.stop(CloseCode::DROPPED);
    }
}

/// Reads what nobody wants until the peer ends its direction, so that the lane can be used again.
async fn drain(used: Arc<Use>) {
    // A peer that sends on and on is not read for ever; its lane is not used again, and goes with
    // the other direction.
    let deadline = used.link.drain_deadline();
    if timeout(deadline, discard_all(&used)).await == Ok(true) {
        used.end_direction();
    }
}

/// Whether the peer's direction ended.
async fn discard_all(used: &Use) -> bool {
    let mut ending = used.link.ending();
    let lane = Arc::clone(&used.lane);
    loop {
        match lane.discard() {
            Ok(Some(_)) => return true,
            Ok(None) => {}
            Err(_) => return false,
        }
        tokio::select! {
            biased;
            _ = over(&mut ending) => return false,
            ready = lane.readable() => if ready.is_err() { return false },
        }
        tokio::task::consume_budget().await;
    }
}
