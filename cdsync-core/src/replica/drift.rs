//! What others changed in a target's root.
//!
//! A copy is known by how it was left ([`Known`]); the disk compares that before it replaces,
//! removes or dresses anything, and what the job says then is done with it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::links::is_name_number;
use super::{ApplyOp, OnDrift, Replica, Then, result};
use crate::ids::ObjectId;
use crate::job::Drift;
use crate::ledger::access::{live, parked_row, put_meta, put_parked};
use crate::ledger::object::{Kind, ObjectState, Seq};
use crate::ledger::rows::{Known, ParkedWhat};
use crate::ledger::tables::{TableError, Tables};
use crate::ledger::writer::size_of;
use crate::path::RelPath;
use crate::time::WallMillis;
use crate::wire::{DRIFT_NAMES, DriftReport};

const DRIFT: &str = "replica-drift";

/// Notes that wait for the driver; more are only counted.
const NOTES_MAX: usize = 1_000;

/// What was met, for the job's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drifted {
    /// Where.
    pub path: RelPath,
    /// It stays; else it is in the trash.
    pub kept: bool,
}

/// What is remembered of drift.
#[derive(Debug, Default)]
pub(super) struct Drifts {
    met: Met,
    /// Parked because others' versions stay.
    pub(super) kept: BTreeSet<ObjectId>,
    /// Kept before, and told to give way.
    yielding: BTreeSet<ObjectId>,
    notes: Vec<Drifted>,
}

/// The durable part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Met {
    count: u64,
    names: Vec<String>,
    /// How often the job had been resumed when an alert was due.
    alert: Option<u64>,
}

impl Drifts {
    pub(super) fn open(
        t: &dyn crate::ledger::tables::TablesRead,
        kept: BTreeSet<ObjectId>,
    ) -> Result<Self, TableError> {
        Ok(Self {
            met: crate::ledger::access::meta(t, DRIFT)?.unwrap_or_default(),
            kept,
            ..Self::default()
        })
    }

    /// An object is not parked any more.
    pub(super) fn forget(&mut self, id: ObjectId) {
        self.kept.remove(&id);
        self.yielding.remove(&id);
    }

    /// Whether what was kept under this number may be replaced now.
    pub(super) fn is_yielding(&self, id: ObjectId) -> bool {
        self.yielding.contains(&id)
    }

    pub(super) fn kept(&self) -> Vec<ObjectId> {
        self.kept.iter().copied().collect()
    }
}

impl Replica {
    /// What to do if others changed what an operation for this record finds.
    pub(super) fn on_drift(&self, id: ObjectId, seq: Seq) -> OnDrift {
        // A further name may hold a copy, where a disk makes no links.
        let may_be_copy = is_name_number(id) && self.has_copies();
        if self.adopts() || self.is_suspect(seq) || may_be_copy {
            return OnDrift::Ignore;
        }
        match self.policy.drift {
            Drift::Keep if !self.drifts.is_yielding(id) => OnDrift::Keep,
            _ => OnDrift::Replace,
        }
    }

    /// Notes that others' work was met.
    pub(super) fn met_drift(
        &mut self,
        t: &mut dyn Tables,
        op: &ApplyOp,
        kept: bool,
    ) -> Result<(), TableError> {
        let Some(at) = op.place() else { return Ok(()) };
        self.met_drift_at(t, at.folder.path.join(&at.name), kept)
    }

    /// The same, where it was met at this path.
    pub(super) fn met_drift_at(
        &mut self,
        t: &mut dyn Tables,
        path: RelPath,
        kept: bool,
    ) -> Result<(), TableError> {
        let met = &mut self.drifts.met;
        met.count += 1;
        let name = path.to_string();
        if met.names.len() < DRIFT_NAMES && !met.names.contains(&name) {
            met.names.push(name);
        }
        if self.policy.drift == Drift::Alert {
            met.alert = Some(self.policy.resumes);
        }
        if self.drifts.notes.len() < NOTES_MAX {
            self.drifts.notes.push(Drifted { path, kept });
        }
        put_meta(t, DRIFT, &self.drifts.met)
    }

    /// What others changed stays: what was to be done there waits until it is as it was left, or
    /// may give way.
    pub(super) fn keep_theirs(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        op: ApplyOp,
        then: Then,
    ) -> Result<(), TableError> {
        let Some(id) = op.object() else { return Ok(()) };
        if !self.drifts.kept.contains(&id) {
            self.met_drift(t, &op, true)?;
        }
        let (seq, what) = match then {
            Then::Held(state) | Then::Adopted(state) => {
                self.fetches.remove(state.id);
                (state.version.seq, ParkedWhat::Content(*state))
            }
            Then::New(state) => {
                result::enter(t, (*state).clone(), op, None)?;
                (state.version.seq, ParkedWhat::Content(*state))
            }
            Then::Meta(state) => (state.version.seq, ParkedWhat::Meta(*state)),
            Then::Removed(seq, at) => {
                let ApplyOp::Remove { known, kind, .. } = op else {
                    return Ok(());
                };
                (seq, ParkedWhat::Remove { at, known, kind })
            }
            Then::Linked(..)
            | Then::Touched
            | Then::Moved
            | Then::Probed(_)
            | Then::Verified
            | Then::Checked(_)
            | Then::StillThere(_)
            | Then::GaveWay(_)
            | Then::Swept => {
                return Ok(());
            }
        };
        let reason = "kept: changed by others".to_owned();
        self.park(wall, t, id, seq, reason, what)?;
        self.keeps(t, id)
    }

    /// What is parked so waits for others, or a manager.
    pub(super) fn keeps(&mut self, t: &mut dyn Tables, id: ObjectId) -> Result<(), TableError> {
        if let Some(mut row) = parked_row(t, id)?.filter(|row| !row.is_of_move()) {
            row.kept = Some(self.policy.accepts);
            put_parked(t, id, &row)?;
        }
        self.drifts.kept.insert(id);
        Ok(())
    }

    /// Whether what was kept at that time still is to be. If not, the object's next operation has
    /// its way.
    pub(super) fn is_still_kept(&self, kept: Option<u64>) -> bool {
        kept == Some(self.policy.accepts) && self.policy.drift == Drift::Keep
    }

    /// What was kept may be replaced from now on.
    pub(super) fn give_way(&mut self, id: ObjectId, kept: Option<u64>) {
        if kept.is_some() && !self.is_still_kept(kept) {
            self.drifts.yielding.insert(id);
        }
    }

    /// Looks whether a name is free again for what waits for it, before anything is fetched.
    pub(super) fn look_at_kept(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        seq: Seq,
        state: ObjectState,
    ) -> Result<(), TableError> {
        if state.kind != Kind::File {
            return self.plan_content(wall, t, seq, &state, None, None);
        }
        let Some((at, over)) = self.place_of(t, state.id)? else {
            return Ok(());
        };
        let op = ApplyOp::AdoptFile {
            id: state.id,
            at,
            size: size_of(&state.content),
            mtime: state.meta.mtime,
            hash: super::plan::hash_of(&state.content),
            meta: state.meta.clone(),
            over,
            drift: OnDrift::Keep,
        };
        self.run(op, Then::Adopted(Box::new(state)));
        Ok(())
    }

    /// Others changed or removed the content of something whose metadata was to be set.
    pub(super) fn lost_content(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        state: ObjectState,
    ) -> Result<(), TableError> {
        let seq = state.version.seq;
        if state.kind == Kind::File {
            self.fetches.want(seq, state);
            return Ok(());
        }
        let over: Option<Known> = live(t, state.id)?.and_then(|row| row.known());
        self.plan_content(wall, t, seq, &state, None, over)
    }

    /// What was met since the last call.
    pub fn take_drifted(&mut self) -> Vec<Drifted> {
        std::mem::take(&mut self.drifts.notes)
    }

    /// What others changed here, for a report.
    #[must_use]
    pub fn drift_report(&self) -> DriftReport {
        let Drifts { met, kept, .. } = &self.drifts;
        DriftReport {
            count: met.count,
            names: met.names.clone(),
            kept: kept.len() as u64,
            alert: self.policy.drift == Drift::Alert && met.alert == Some(self.policy.resumes),
        }
    }
}
