//! Content that is pulled: large one on streams of its own, small one in groups.

use std::collections::BTreeMap;

use super::waiting::is_absent;
use super::{Place, Replica, Then};
use crate::ids::ObjectId;
use crate::job::AdoptCheck;
use crate::ledger::access::live;
use crate::ledger::object::{Hash, ObjectState, Seq};
use crate::ledger::outgoing::INLINE_MAX_BYTES;
use crate::ledger::tables::{TableError, Tables, TablesRead};
use crate::ledger::writer::size_of;
use crate::time::{Timestamp, WallMillis};

/// How many fetches of large content run at once: each holds one staged file and two ranges of memory.
const LARGE_MAX: usize = 4;
/// How many of small content are asked for at once. Each that has come and is not published holds a
/// staged file.
const SMALL_MAX: usize = 256;
/// How many may wait before no more records are taken.
const WANTED_MAX: usize = 1024;

/// Content to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchWant {
    /// Whose.
    pub object: ObjectId,
    /// At least this version.
    pub at_least: Seq,
    /// The size that the record said, in bytes.
    pub size: u64,
}

impl FetchWant {
    /// Whether it is no longer than what travels inside of batches.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.size <= INLINE_MAX_BYTES
    }
}

/// How a fetch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchResult {
    /// Staged whole and verified.
    Staged {
        /// The number that last changed what was read.
        version: Seq,
        /// The modification time that belongs to it.
        mtime: Timestamp,
        /// Its size.
        size: u64,
        /// Its BLAKE3.
        hash: Hash,
    },
    /// The object is gone, by this record or one before.
    Removed(Seq),
    /// It changed while it was read: a later record brings it.
    Unsettled,
    /// The upstream or this disk failed, and why.
    Failed(String),
    /// The connection ended: asked for again on the next one.
    Interrupted,
}

#[derive(Debug, Default)]
pub(super) struct Fetches {
    wanted: BTreeMap<ObjectId, Fetch>,
    /// Large content that is being pulled.
    large: usize,
    /// Small content that is asked for.
    small: usize,
    /// So much of the small content came that more is asked for, up to the most.
    refills: bool,
    /// Staged content whose publishing is to be planned.
    pub(super) staged: Vec<ObjectId>,
}

#[derive(Debug)]
pub(super) struct Fetch {
    /// The record that wants it: claims stay below.
    seq: Seq,
    pub(super) state: ObjectState,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// Asked for, as small content or not.
    Active(bool),
    Staged,
}

impl Fetches {
    pub(super) fn is_full(&self) -> bool {
        self.wanted.len() >= WANTED_MAX
    }

    pub(super) fn has(&self, id: ObjectId) -> bool {
        self.wanted.contains_key(&id)
    }

    pub(super) fn first_seq(&self) -> Option<Seq> {
        self.wanted.values().map(|f| f.seq).min()
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = ObjectId> {
        self.wanted.keys().copied()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn want(&mut self, seq: Seq, state: ObjectState) {
        match self.wanted.get_mut(&state.id) {
            // One that is staged or on its way stays: whatever it brings is applied, and the
            // version tells whether more is to come.
            Some(fetch) => fetch.renew(state),
            None => {
                let fetch = Fetch {
                    seq,
                    state,
                    phase: Phase::Waiting,
                };
                self.wanted.insert(fetch.state.id, fetch);
            }
        }
    }

    pub(super) fn get_mut(&mut self, id: ObjectId) -> Option<&mut Fetch> {
        self.wanted.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: ObjectId) -> Option<Fetch> {
        let fetch = self.wanted.remove(&id)?;
        self.ended(fetch.phase);
        self.staged.retain(|staged| *staged != id);
        Some(fetch)
    }

    /// One that was in this phase is not asked for any more. Returns whether it was.
    fn ended(&mut self, phase: Phase) -> bool {
        match phase {
            Phase::Active(true) => self.small -= 1,
            Phase::Active(false) => self.large -= 1,
            Phase::Waiting | Phase::Staged => return false,
        }
        true
    }

    /// Whether one more of a kind may be asked for. Small content is in groups, so that it costs no
    /// round trip each: more is asked for once half of it has come.
    fn has_place(&mut self, small: bool) -> bool {
        if self.small <= SMALL_MAX / 2 {
            self.refills = true;
        }
        if self.small == SMALL_MAX {
            self.refills = false;
        }
        match small {
            true => self.refills,
            false => self.large < LARGE_MAX,
        }
    }
}

impl Fetch {
    fn want(&self) -> FetchWant {
        FetchWant {
            object: self.state.id,
            at_least: self.state.content_seq,
            size: size_of(&self.state.content),
        }
    }

    /// A later record changed the object: the newest state is what will be published.
    pub(super) fn renew(&mut self, state: ObjectState) {
        if state.version.seq < self.state.version.seq {
            // A retry of what was parked before.
            return;
        }
        self.state = with_content_of(&self.state, state);
    }
}

/// A later state, with the content that an earlier one knew where that came ahead of its record: it
/// keeps the time that belongs to it.
pub(super) fn with_content_of(known: &ObjectState, state: ObjectState) -> ObjectState {
    if known.content_seq < state.content_seq {
        return state;
    }
    let mut state = state;
    if known.content_seq > state.content_seq {
        state.meta.mtime = known.meta.mtime;
    }
    state.content_seq = known.content_seq;
    state.content = known.content.clone();
    state
}

impl Replica {
    /// The next content to pull, if one more may be. What [is small](FetchWant::is_small) is to be
    /// asked for many at once.
    pub fn poll_fetch(&mut self) -> Option<FetchWant> {
        let (small, large) = (self.fetches.has_place(true), self.fetches.has_place(false));
        if !small && !large {
            return None;
        }
        let blocking = &self.blocking;
        let waiting = self.fetches.wanted.iter_mut().filter(|(id, f)| {
            let has_place = if f.want().is_small() { small } else { large };
            has_place && f.phase == Phase::Waiting && !blocking.contains_key(id)
        });
        let (_, fetch) = waiting.min_by_key(|(_, f)| f.seq)?;
        let want = fetch.want();
        let is_small = want.is_small();
        fetch.phase = Phase::Active(is_small);
        match is_small {
            true => self.fetches.small += 1,
            false => self.fetches.large += 1,
        }
        Some(want)
    }

    /// Where something may be of which content that is pulled can be made: what its name holds now,
    /// whatever that is. `None` where it comes to no name yet.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn fetch_base(
        &mut self,
        t: &dyn TablesRead,
        id: ObjectId,
    ) -> Result<Option<Place>, TableError> {
        if self.blocking.contains_key(&id) {
            return Ok(None);
        }
        let place = self.place_of(t, id)?;
        Ok(place.map(|(at, _)| at).filter(|at| !is_absent(&at.folder)))
    }

    /// A fetch ended. Returns whether the staged file is wanted; if not, it is to be dropped.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_fetched(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        result: FetchResult,
    ) -> Result<bool, TableError> {
        let phase = self.fetches.wanted.get(&id).map(|fetch| fetch.phase);
        if !phase.is_some_and(|phase| self.fetches.ended(phase)) {
            // The end of one that was asked for on an earlier subscription.
            return Ok(false);
        }
        let Some(fetch) = self.fetches.wanted.get_mut(&id) else {
            return Ok(false);
        };
        fetch.phase = Phase::Waiting;
        if self.blocking.contains_key(&id) && !matches!(result, FetchResult::Staged { .. }) {
            // Its move is parked and stays so: once it is done, this is asked for again.
            return Ok(false);
        }
        match result {
            FetchResult::Staged {
                version,
                mtime,
                size,
                hash,
            } => {
                if version < fetch.state.content_seq {
                    // Older than what a record has said since: once more.
                    return Ok(false);
                }
                if version > fetch.state.content_seq {
                    fetch.state.meta.mtime = mtime;
                    fetch.state.content_seq = version;
                    let seq = fetch.seq;
                    self.hold = self.hold.max(version);
                    hold_back(&mut self.marks, seq, version);
                }
                let Some(fetch) = self.fetches.wanted.get_mut(&id) else {
                    return Ok(false);
                };
                fetch.state.content = crate::ledger::object::Content::Data {
                    size,
                    hash: Some(hash),
                };
                fetch.phase = Phase::Staged;
                self.fetches.staged.push(id);
                return Ok(true);
            }
            FetchResult::Removed(by) => {
                self.hold = self.hold.max(by);
                hold_back(&mut self.marks, fetch.seq, by);
                if self.parked.contains(id) && live(t, id)?.is_some() {
                    // A claim may have passed its record already, because it is parked: it stays
                    // so until the record that removes it is taken in.
                    self.park_fetch(wall, t, id, format!("record {by} removes it"))?;
                } else {
                    self.fetches.remove(id);
                    self.unpark(t, id)?;
                }
            }
            FetchResult::Unsettled => {
                self.park_fetch(wall, t, id, "it is changing at the source".to_owned())?;
            }
            FetchResult::Failed(reason) => self.park_fetch(wall, t, id, reason)?,
            FetchResult::Interrupted => {}
        }
        Ok(false)
    }

    fn park_fetch(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        id: ObjectId,
        reason: String,
    ) -> Result<(), TableError> {
        let Some(fetch) = self.fetches.remove(id) else {
            return Ok(());
        };
        self.park_content(wall, t, fetch.seq, fetch.state, reason)
    }

    /// Plans the publishing of what was staged. The operations go into the running step.
    pub(super) fn plan_staged(&mut self, t: &mut dyn Tables) -> Result<(), TableError> {
        for id in std::mem::take(&mut self.fetches.staged) {
            let Some(fetch) = self.fetches.get_mut(id) else {
                continue;
            };
            let (state, seq) = (fetch.state.clone(), fetch.seq);
            if live(t, id)?.is_none() {
                self.fetches.remove(id);
                continue;
            }
            let Some((place, over)) = self.place_of(t, id)? else {
                self.fetches.remove(id);
                continue;
            };
            self.run(
                super::ApplyOp::WriteFile {
                    id,
                    at: place,
                    body: super::Body::Staged(id),
                    meta: state.meta.clone(),
                    over,
                    drift: self.on_drift(id, seq),
                    // Looked at once more, now that its hash is known.
                    adopt: self.adopts() && self.policy.adopt_check == AdoptCheck::Content,
                },
                Then::Held(Box::new(state)),
            );
        }
        Ok(())
    }
}

/// Ends of batches from this record on are claimed only together with a later number.
fn hold_back(marks: &mut std::collections::VecDeque<super::Mark>, from: Seq, until: Seq) {
    for mark in marks.iter_mut().filter(|mark| mark.seq >= from) {
        mark.hold = mark.hold.max(until);
    }
}
