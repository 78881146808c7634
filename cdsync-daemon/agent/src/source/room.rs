//! Room for what the scanner has seen and the engine has not taken yet: a folder may hold millions
//! of names, and is listed faster than it is compared.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Entries that may be on their way, some hundred bytes each.
const ENTRIES_MAX: usize = 4096;

/// How much room is left, in entries.
#[derive(Debug)]
pub(super) struct Room {
    left: Mutex<usize>,
    freed: Condvar,
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    room: Arc<Room>,
    entries: usize,
}

impl Room {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            left: Mutex::new(ENTRIES_MAX),
            freed: Condvar::new(),
        })
    }

    /// Waits until there is room for so many entries, at most [`ENTRIES_MAX`].
    pub(super) fn take(self: &Arc<Self>, entries: usize) -> Taken {
        let entries = entries.min(ENTRIES_MAX);
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_while(left, |left| *left < entries);
        *waited.unwrap_or_else(PoisonError::into_inner) -= entries;
        Taken {
            room: Arc::clone(self),
            entries,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut left = self
            .room
            .left
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *left += self.entries;
        self.room.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use super::*;

    /// Proves that whoever lists waits while too much is on its way, and goes on when something of
    /// it was taken, also by being thrown away.
    #[test]
    fn too_much_on_its_way_is_waited_for() {
        let room = Room::new();
        let most = room.take(ENTRIES_MAX - 1);
        let last = room.take(1);
        let (told, taken) = channel();
        let waiting = std::thread::spawn(move || {
            let some = room.take(2);
            told.send(()).unwrap();
            drop(some);
        });
        drop(last);
        let early = taken.recv_timeout(Duration::from_millis(50));
        assert_eq!(early, Err(RecvTimeoutError::Timeout));
        drop(most);
        taken.recv_timeout(Duration::from_secs(20)).unwrap();
        waiting.join().unwrap();
    }
}
