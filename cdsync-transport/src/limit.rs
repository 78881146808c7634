//! How many places one peer may have, of something that all peers share.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdsync_core::ids::ServerId;

/// Counts the places of each peer (connections, lanes, handshakes) against one bound, so that none
/// can take all the places that others need, and all of them together against another. Peers are
/// told apart by their proven id, or by their address before they have proven anything.
#[derive(Debug, Clone)]
pub struct PeerLimit<K: Ord = ServerId> {
    most: usize,
    in_all: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    by_peer: BTreeMap<K, usize>,
    in_all: usize,
}

/// One peer's place; given back when dropped.
#[derive(Debug)]
pub struct PeerPlace<K: Ord = ServerId> {
    peer: K,
    taken: Arc<Mutex<Taken<K>>>,
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Ord + Copy> PeerLimit<K> {
    /// At most `most` places for one peer.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self::with_total(most, usize::MAX)
    }

    /// At most `most` places for one peer, and `in_all` for all of them together.
    #[must_use]
    pub fn with_total(most: usize, in_all: usize) -> Self {
        let taken = Taken {
            by_peer: BTreeMap::new(),
            in_all: 0,
        };
        Self {
            most,
            in_all,
            taken: Arc::new(Mutex::new(taken)),
        }
    }

    /// One more place for this peer; `None` when it, or all together, have as many as they may.
    #[must_use]
    pub fn take(&self, peer: K) -> Option<PeerPlace<K>> {
        let mut taken = lock(&self.taken);
        let count = taken.by_peer.get(&peer).copied().unwrap_or_default();
        if count >= self.most || taken.in_all >= self.in_all {
            return None;
        }
        taken.by_peer.insert(peer, count + 1);
        taken.in_all += 1;
        let taken = Arc::clone(&self.taken);
        Some(PeerPlace { peer, taken })
    }
}

impl<K: Ord> PeerPlace<K> {
    /// Whose place it is.
    #[must_use]
    pub const fn peer(&self) -> &K {
        &self.peer
    }
}

impl<K: Ord> Drop for PeerPlace<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.in_all -= 1;
        if let Some(count) = taken.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that one peer cannot take more than its places, that others are not held up by it,
    /// and that a place that was given back is free again.
    #[test]
    fn one_peer_takes_no_more_than_its_places() {
        let limit = PeerLimit::new(2);
        let places: Vec<_> = (0..2).map(|_| limit.take(ServerId(1)).unwrap()).collect();
        assert!(limit.take(ServerId(1)).is_none());
        assert!(limit.take(ServerId(2)).is_some());
        drop(places);
        assert!(limit.take(ServerId(1)).is_some());
        assert!(lock(&limit.taken).by_peer.is_empty(), "nothing is kept");
    }

    /// Proves that many peers together take no more than there is for all.
    #[test]
    fn all_peers_together_are_bounded() {
        let limit = PeerLimit::with_total(2, 3);
        let mut places: Vec<_> = [1, 1, 2].map(|peer| limit.take(peer).unwrap()).into();
        assert!(limit.take(3).is_none());
        places.pop();
        assert!(limit.take(3).is_some());
    }
}
