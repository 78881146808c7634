//! One direction of a stream in memory: a bounded queue of pieces.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::connection::Handle;
use crate::connection::{BoxFuture, RecvHalf, SendHalf, Stream};
use crate::error::{CloseCode, RecvError, SendError};

#[derive(Debug)]
struct PipeState {
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    taken_bytes: u64,
    finished: bool,
    reset: Option<CloseCode>,
    stopped: Option<CloseCode>,
}

/// Shared by the two ends of one direction. Each `Notify` has one waiter, so `notify_one` and its
/// stored permit lose no wake-up.
#[derive(Debug)]
struct Pipe {
    state: Mutex<PipeState>,
    readable: Notify,
    writable: Notify,
    capacity_bytes: usize,
}

impl Pipe {
    fn new(capacity_bytes: usize) -> Arc<Self> {
        let state = PipeState {
            queue: VecDeque::new(),
            queued_bytes: 0,
            taken_bytes: 0,
            finished: false,
            reset: None,
            stopped: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            readable: Notify::new(),
            writable: Notify::new(),
            capacity_bytes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves as much of `parts` as there is room for; `true` when nothing is left of them.
    fn push(&self, parts: &mut [Bytes]) -> Result<bool, SendError> {
        let mut state = self.lock();
        if let Some(code) = state.stopped {
            return Err(SendError::Stopped(code));
        }
        if state.finished || state.reset.is_some() {
            return Err(SendError::Ended);
        }
        for part in parts.iter_mut().filter(|part| !part.is_empty()) {
            let room = self.capacity_bytes - state.queued_bytes;
            if room == 0 {
                self.readable.notify_one();
                return Ok(false);
            }
            let piece = part.split_to(room.min(part.len()));
            state.queued_bytes += piece.len();
            state.taken_bytes += piece.len() as u64;
            state.queue.push_back(piece);
            if !part.is_empty() {
                self.readable.notify_one();
                return Ok(false);
            }
        }
        self.readable.notify_one();
        Ok(true)
    }

    /// Fills `slots`; `None`: nothing at hand now, `Some(0)`: nothing will follow.
    fn pop(&self, slots: &mut [Bytes]) -> Result<Option<usize>, RecvError> {
        let mut state = self.lock();
        if state.stopped.is_some() {
            return Err(RecvError::Ended);
        }
        if let Some(code) = state.reset {
            return Err(RecvError::Reset(code));
        }
        let mut filled = 0;
        while filled < slots.len() {
            let Some(piece) = state.queue.pop_front() else {
                break;
            };
            state.queued_bytes -= piece.len();
            slots[filled] = piece;
            filled += 1;
        }
        if filled > 0 {
            self.writable.notify_one();
            return Ok(Some(filled));
        }
        Ok(state.finished.then_some(0))
    }
}

/// A stream as the opener made it, on its way to the peer.
#[derive(Debug)]
pub(super) struct Offer {
    there: Arc<Pipe>,
    back: Arc<Pipe>,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Offer {
    /// The acceptor's halves.
    pub(super) fn accept(self, handle: &Arc<Handle>) -> Stream {
        halves(self.back, self.there, handle, &self.permit, None)
    }
}

/// Two pipes make a stream: the opener's halves, which carry the offer to the peer.
pub(super) fn open_stream(
    handle: &Arc<Handle>,
    permit: OwnedSemaphorePermit,
    capacity_bytes: usize,
) -> Stream {
    let (there, back) = (Pipe::new(capacity_bytes), Pipe::new(capacity_bytes));
    let permit = Arc::new(permit);
    let offer = Offer {
        there: there.clone(),
        back: back.clone(),
        permit: Arc::clone(&permit),
    };
    halves(there, back, handle, &permit, Some(offer))
}

fn halves(
    sending: Arc<Pipe>,
    receiving: Arc<Pipe>,
    handle: &Arc<Handle>,
    permit: &Arc<OwnedSemaphorePermit>,
    offer: Option<Offer>,
) -> Stream {
    let (handle, permit) = (Arc::clone(handle), Arc::clone(permit));
    let send = MemorySend {
        pipe: sending,
        handle: Arc::clone(&handle),
        offer,
        _permit: Arc::clone(&permit),
    };
    let recv = MemoryRecv {
        pipe: receiving,
        handle,
        ended: false,
        _permit: permit,
    };
    (Box::new(send), Box::new(recv))
}

#[derive(Debug)]
struct MemorySend {
    pipe: Arc<Pipe>,
    handle: Arc<Handle>,
    /// Held until the first byte or the end makes the stream known to the peer.
    offer: Option<Offer>,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl MemorySend {
    fn announce(&mut self) {
        if let Some(offer) = self.offer.take() {
            self.handle.announce(offer);
        }
    }
}

impl SendHalf for MemorySend {
    fn send<'a>(&'a mut self, parts: &'a mut [Bytes]) -> BoxFuture<'a, Result<(), SendError>> {
        Box::pin(async move {
            if parts.iter().any(|part| !part.is_empty()) {
                self.announce();
            }
            loop {
                if let Some(reason) = self.handle.reason() {
                    return Err(reason.into());
                }
                if self.pipe.push(parts)? {
                    return Ok(());
                }
                tokio::select! {
                    () = self.pipe.writable.notified() => {}
                    reason = self.handle.closed() => return Err(reason.into()),
                }
            }
        })
    }

    fn taken_bytes(&self) -> u64 {
        self.pipe.lock().taken_bytes
    }

    fn finish(&mut self) -> Result<(), SendError> {
        self.announce();
        let mut state = self.pipe.lock();
        if state.finished || state.reset.is_some() {
            return Err(SendError::Ended);
        }
        state.finished = true;
        self.pipe.readable.notify_one();
        Ok(())
    }

    fn reset(&mut self, code: CloseCode) {
        self.announce();
        let mut state = self.pipe.lock();
        if state.reset.is_none() {
            state.reset = Some(code);
            state.queue.clear();
            state.queued_bytes = 0;
            self.pipe.readable.notify_one();
        }
    }
}

impl Drop for MemorySend {
    fn drop(&mut self) {
        let finished = self.pipe.lock().finished;
        if !finished {
            self.reset(CloseCode::DROPPED);
        }
    }
}

#[derive(Debug)]
struct MemoryRecv {
    pipe: Arc<Pipe>,
    handle: Arc<Handle>,
    /// Everything was received: dropping it stops nobody.
    ended: bool,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl RecvHalf for MemoryRecv {
    fn recv_many<'a>(
        &'a mut self,
        slots: &'a mut [Bytes],
    ) -> BoxFuture<'a, Result<Option<usize>, RecvError>> {
        Box::pin(async move {
            loop {
                if let Some(reason) = self.handle.reason() {
                    return Err(reason.into());
                }
                if let Some(filled) = self.pipe.pop(slots)? {
                    self.ended = filled == 0;
                    return Ok((filled > 0).then_some(filled));
                }
                tokio::select! {
                    () = self.pipe.readable.notified() => {}
                    reason = self.handle.closed() => return Err(reason.into()),
                }
            }
        })
    }

    fn stop(&mut self, code: CloseCode) {
        let mut state = self.pipe.lock();
        if state.stopped.is_none() {
            state.stopped = Some(code);
            state.queue.clear();
            state.queued_bytes = 0;
            self.pipe.writable.notify_one();
        }
    }
}

impl Drop for MemoryRecv {
    fn drop(&mut self) {
        if !self.ended {
            self.stop(CloseCode::DROPPED);
        }
    }
}
