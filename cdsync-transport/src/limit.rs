//! How many connections one peer may have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cdsync_core::ids::ServerId;

/// Counts the connections of each peer against one bound, so that a proven peer cannot take all the
/// places that others need.
#[derive(Debug, Clone)]
pub struct PeerLimit {
    most: usize,
    taken: Arc<Mutex<BTreeMap<ServerId, usize>>>,
}

/// One peer's place; given back when dropped.
#[derive(Debug)]
pub struct PeerPlace {
    peer: ServerId,
    taken: Arc<Mutex<BTreeMap<ServerId, usize>>>,
}

impl PeerLimit {
    /// At most `most` connections of one peer.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            taken: Arc::default(),
        }
    }

    /// A place for one more connection of this peer; `None` when it has as many as it may.
    #[must_use]
    pub fn take(&self, peer: ServerId) -> Option<PeerPlace> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        let taken = Arc::clone(&self.taken);
        Some(PeerPlace { peer, taken })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
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
        assert!(limit.taken.lock().unwrap().is_empty(), "nothing is kept");
    }
}
