//! When what is parked is tried again.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::ObjectId;
use crate::time::WallMillis;

/// Parked objects by their next try. Each takes some 70 bytes; what is wanted of them is in the
/// table of parked rows.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    next: BTreeMap<ObjectId, WallMillis>,
    by_time: BTreeSet<(WallMillis, ObjectId)>,
}

impl Schedule {
    pub(super) fn len(&self) -> usize {
        self.next.len()
    }

    pub(super) fn contains(&self, id: ObjectId) -> bool {
        self.next.contains_key(&id)
    }

    /// An object is tried at this time, whatever was said before.
    pub(super) fn insert(&mut self, id: ObjectId, next: WallMillis) {
        if let Some(before) = self.next.insert(id, next) {
            self.by_time.remove(&(before, id));
        }
        self.by_time.insert((next, id));
    }

    /// An object that is parked is tried at once.
    pub(super) fn hurry(&mut self, id: ObjectId) {
        if self.contains(id) {
            self.insert(id, WallMillis(0));
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, id: ObjectId) -> bool {
        let Some(next) = self.next.remove(&id) else {
            return false;
        };
        self.by_time.remove(&(next, id));
        true
    }

    /// The next try of any.
    pub(super) fn first(&self) -> Option<WallMillis> {
        self.by_time.first().map(|(next, _)| *next)
    }

    /// Whose time has come, those first that have waited longest; at most `most`.
    pub(super) fn due(&self, now: WallMillis, most: usize) -> Vec<ObjectId> {
        let due = self.by_time.iter().take_while(|(next, _)| *next <= now);
        due.map(|(_, id)| *id).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::OriginId;

    /// Proves that objects are due in the order of their times, once each, however often they were
    /// put off or hurried.
    #[test]
    fn objects_are_due_in_their_order() {
        let id = |number| ObjectId {
            origin: OriginId(1),
            number,
        };
        let mut schedule = Schedule::default();
        for (number, next) in [(1, 30), (2, 20), (3, 10)] {
            schedule.insert(id(number), WallMillis(next));
        }
        assert_eq!(schedule.first(), Some(WallMillis(10)));
        assert_eq!(schedule.due(WallMillis(20), 9), [id(3), id(2)]);
        assert_eq!(schedule.due(WallMillis(20), 1), [id(3)]);
        schedule.insert(id(3), WallMillis(40));
        schedule.hurry(id(1));
        schedule.hurry(id(9));
        assert_eq!(schedule.due(WallMillis(40), 9), [id(1), id(2), id(3)]);
        assert!(schedule.remove(id(1)) && !schedule.remove(id(1)));
        assert_eq!(
            (schedule.len(), schedule.first()),
            (2, Some(WallMillis(20)))
        );
    }
}
