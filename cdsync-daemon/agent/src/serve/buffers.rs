//! Large buffers used again: memory fresh from the system costs a page fault for every 4 KiB, as
//! much as filling it.

use bytes::Bytes;

/// How many buffers are remembered: what is being filled, queued and sent at once.
const KEPT_MAX: usize = 8;

/// Buffers that were handed out, to be used again once everybody else has let go of them.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<Bytes>);

impl Buffers {
    /// An empty buffer with room for `room` bytes at least.
    pub(super) fn take(&mut self, room: usize) -> Vec<u8> {
        let free = self.0.iter().position(Bytes::is_unique);
        let Some(mut free) = free.map(|at| self.0.swap_remove(at)) else {
            return Vec::with_capacity(room);
        };
        free.clear();
        let mut buffer = Vec::from(free);
        buffer.reserve(room);
        buffer
    }

    /// What `buffer` holds, ready to be sent; the memory comes back later.
    pub(super) fn lend(&mut self, buffer: Vec<u8>) -> Bytes {
        let bytes = Bytes::from(buffer);
        if self.0.len() < KEPT_MAX {
            self.0.push(bytes.clone());
        }
        bytes
    }

    /// Gives the memory back to the system.
    pub(super) fn release(&mut self) {
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that memory is used again once what was lent is dropped, and not before.
    #[test]
    fn lent_memory_comes_back() {
        let mut buffers = Buffers::default();
        let mut first = buffers.take(1000);
        first.resize(700, 1);
        let place = first.as_ptr();
        let lent = buffers.lend(first);
        let mut second = buffers.take(1000);
        second.resize(1000, 2);
        assert_ne!(second.as_ptr(), place);
        assert!(lent.iter().all(|&b| b == 1), "overwritten while in use");
        drop(lent);
        let third = buffers.take(1000);
        assert!(third.is_empty() && third.capacity() >= 1000);
        assert_eq!(third.as_ptr(), place);
    }
}
