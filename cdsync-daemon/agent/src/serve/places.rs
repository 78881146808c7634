//! The places of fetches: few run at once, and no peer has more than its share of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdsync_core::ids::ServerId;
use tokio::sync::oneshot;

/// How many fetches run at once, over all peers: each holds five ranges of 256 KiB.
const ALL_MAX: usize = 16;
/// How many of them one peer may have: two of its jobs at full speed.
const PEER_MAX: usize = 8;
/// A peer of which none runs has a place even when all are taken, up to so many in all: what others
/// are slow with does not keep it out.
const ALL_WITH_FIRSTS_MAX: usize = 32;
/// How many fetches of one peer may wait.
const WAITING_MAX: usize = 256;

/// Hands places out: to whom has the fewest, and to whom came first among those.
#[derive(Debug, Default)]
pub(super) struct Places(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<ServerId, usize>,
    all: usize,
    waiting: VecDeque<(ServerId, oneshot::Sender<Place>)>,
}

/// One running fetch; its place is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    peer: ServerId,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// Waits for a place; `None` when too many of this peer wait already.
    /// Cancel safety: a dropped call leaves the queue.
    pub(super) async fn take(&self, peer: ServerId) -> Option<Place> {
        let (sender, place) = oneshot::channel();
        {
            let mut state = lock(&self.0);
            state.waiting.retain(|(_, sender)| !sender.is_closed());
            let mine = state.waiting.iter().filter(|(p, _)| *p == peer).count();
            if mine >= WAITING_MAX {
                return None;
            }
            state.waiting.push_back((peer, sender));
        }
        hand_out(&self.0);
        place.await.ok()
    }
}

impl State {
    fn running(&self, peer: ServerId) -> usize {
        self.running.get(&peer).copied().unwrap_or_default()
    }

    fn may_run(&self, peer: ServerId) -> bool {
        match self.running(peer) {
            0 => self.all < ALL_WITH_FIRSTS_MAX,
            running => running < PEER_MAX && self.all < ALL_MAX,
        }
    }

    /// Who is next, counted as running already.
    fn next(&mut self) -> Option<(ServerId, oneshot::Sender<Place>)> {
        let waiting = self.waiting.iter().enumerate();
        let able = waiting.filter(|(_, (peer, _))| self.may_run(*peer));
        let (at, _) = able.min_by_key(|(_, (peer, _))| self.running(*peer))?;
        let (peer, sender) = self.waiting.remove(at)?;
        *self.running.entry(peer).or_default() += 1;
        self.all += 1;
        Some((peer, sender))
    }
}

fn hand_out(state: &Arc<Mutex<State>>) {
    loop {
        // A place that nobody takes any more gives itself back, and so is not made under the lock.
        let Some((peer, sender)) = lock(state).next() else {
            return;
        };
        let place = Place {
            peer,
            state: Arc::clone(state),
        };
        drop(sender.send(place));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.state);
            state.all -= 1;
            if let Some(count) = state.running.get_mut(&self.peer) {
                *count -= 1;
                if *count == 0 {
                    state.running.remove(&self.peer);
                }
            }
        }
        hand_out(&self.state);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Asking<'a> = Pin<Box<dyn Future<Output = Option<Place>> + 'a>>;

    fn now(asking: &mut Asking<'_>) -> Poll<Option<Place>> {
        asking
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }

    fn taken(places: &Places, peer: u64) -> Option<Place> {
        match now(&mut (Box::pin(places.take(ServerId(peer))) as Asking<'_>)) {
            Poll::Ready(place) => place,
            Poll::Pending => None,
        }
    }

    /// Proves that a peer which takes all that it can get, and keeps it, leaves places to others, that
    /// even many such peers leave a first place to one more, and that the number of all is bounded.
    #[test]
    fn no_peer_starves_another() {
        let places = Places::default();
        let evil: Vec<_> = (0..50).filter_map(|_| taken(&places, 1)).collect();
        assert_eq!(evil.len(), PEER_MAX);
        let other: Vec<_> = (0..4).filter_map(|_| taken(&places, 2)).collect();
        assert_eq!(other.len(), 4);
        let evil_too: Vec<_> = (0..50).filter_map(|_| taken(&places, 3)).collect();
        assert_eq!(evil_too.len(), ALL_MAX - PEER_MAX - 4);
        let firsts: Vec<_> = (4..100).filter_map(|peer| taken(&places, peer)).collect();
        assert_eq!(firsts.len(), ALL_WITH_FIRSTS_MAX - ALL_MAX);
    }

    /// Proves that a place which comes free goes to whom has the fewest, not to whom asked most, that
    /// who gave up waiting is passed over, and that nothing is kept at the end.
    #[test]
    fn a_free_place_goes_to_whom_has_fewest() {
        let places = Places::default();
        let mut held: Vec<_> = (0..8).filter_map(|_| taken(&places, 1)).collect();
        held.extend((0..8).filter_map(|_| taken(&places, 2)));
        let mut greedy: Asking<'_> = Box::pin(places.take(ServerId(1)));
        assert!(now(&mut greedy).is_pending());
        let mut gone: Asking<'_> = Box::pin(places.take(ServerId(2)));
        assert!(now(&mut gone).is_pending());
        drop(gone);
        let mut modest: Asking<'_> = Box::pin(places.take(ServerId(3)));
        assert!(
            matches!(now(&mut modest), Poll::Ready(Some(_))),
            "its first"
        );
        held.swap_remove(0);
        assert!(now(&mut greedy).is_ready());
        held.clear();
        drop((greedy, modest));
        let state = lock(&places.0);
        assert!(state.running.is_empty() && state.all == 0);
    }

    /// Proves that no more than so many requests of one peer wait, and those of others still do.
    #[test]
    fn waiting_is_bounded() {
        let places = Places::default();
        let _held: Vec<_> = (0..8).filter_map(|_| taken(&places, 1)).collect();
        let mut waiting: Vec<Asking<'_>> = Vec::new();
        for _ in 0..WAITING_MAX {
            waiting.push(Box::pin(places.take(ServerId(1))));
            assert!(now(waiting.last_mut().unwrap()).is_pending());
        }
        let mut more: Asking<'_> = Box::pin(places.take(ServerId(1)));
        assert!(matches!(now(&mut more), Poll::Ready(None)));
        assert!(taken(&places, 2).is_some());
    }
}
