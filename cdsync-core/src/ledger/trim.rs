//! The log's beginning is dropped: what every target claims, and what is beyond the job's bound. Only
//! as a prefix, so that a cursor is either one that the log leads on from, or not.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::access::{meta, object, put_meta};
use super::object::Seq;
use super::record::Record;
use super::rows::{ObjectRow, decode_row};
use super::tables::{Table, TableError, Tables, TablesRead};
use crate::ids::ObjectId;
use crate::time::WallMillis;

const KEPT: &str = "log-kept";

/// What is left of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Kept {
    /// The last record that was dropped; zero for none.
    pub start: Seq,
    /// What the records behind it take, in bytes.
    pub bytes: u64,
}

/// What may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimLimits {
    /// Nothing behind this number is dropped.
    pub upto: Seq,
    /// Every target claims this: records up to it are dropped.
    pub claimed: Seq,
    /// Records from before this time are dropped.
    pub before: WallMillis,
    /// The log is dropped until it takes no more than this, in bytes.
    pub bytes: u64,
    /// How many records go at once.
    pub most: usize,
}

/// Up to where the log was dropped.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn log_start(t: &dyn TablesRead) -> Result<Seq, TableError> {
    Ok(kept(t)?.start)
}

/// What is left of the log.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn kept(t: &dyn TablesRead) -> Result<Kept, TableError> {
    Ok(meta(t, KEPT)?.unwrap_or_default())
}

pub(super) fn put_kept(t: &mut dyn Tables, kept: Kept) -> Result<(), TableError> {
    put_meta(t, KEPT, &kept)
}

/// What is left of the log when what may go is gone.
fn judge(t: &dyn TablesRead, kept: Kept, limits: TrimLimits) -> Result<Kept, TableError> {
    let mut left = kept;
    let (mut dropped, mut failed) = (0, None);
    let from = kept.start.next().0.to_be_bytes();
    t.range(Table::Log, &from, None, &mut |_, value| {
        let record: Record = match decode_row::<(u64, Record)>(Table::Log, value) {
            Ok((_, record)) => record,
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        };
        let goes = record.seq <= limits.claimed
            || record.hlc.wall() < limits.before
            || left.bytes > limits.bytes;
        if !goes || record.seq > limits.upto || dropped == limits.most {
            return ControlFlow::Break(());
        }
        dropped += 1;
        left.start = record.seq;
        left.bytes = left.bytes.saturating_sub(value.len() as u64);
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(left), Err)
}

/// Drops the beginning of the log. `None` when there is nothing to drop.
pub(super) fn trim(
    t: &mut dyn Tables,
    kept: Kept,
    limits: TrimLimits,
) -> Result<Option<Kept>, TableError> {
    let left = judge(t, kept, limits)?;
    if left.start == kept.start {
        return Ok(None);
    }
    t.remove_until(Table::Log, &left.start.0.to_be_bytes())?;
    put_kept(t, left)?;
    Ok(Some(left))
}

/// Takes away tombstones of objects that records up to `upto` removed: nobody asks for them any
/// more. Looks at so many rows from an object on; returns where to go on, `None` at the end, and
/// whether any went.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn drop_tombstones(
    t: &mut dyn Tables,
    from: ObjectId,
    upto: Seq,
    most: usize,
) -> Result<(Option<ObjectId>, bool), TableError> {
    let (mut gone, mut next, mut failed) = (Vec::new(), None, None);
    let mut looked = 0;
    t.range(Table::Objects, &from.to_key(), None, &mut |key, value| {
        if looked == most {
            next = ObjectId::from_key(key);
            return ControlFlow::Break(());
        }
        looked += 1;
        match decode_row(Table::Objects, value) {
            Ok(ObjectRow::Gone(by)) if by <= upto => gone.extend(ObjectId::from_key(key)),
            Ok(_) => {}
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let any = !gone.is_empty();
    for id in gone {
        debug_assert!(
            matches!(object(t, id)?, Some(ObjectRow::Gone(_))),
            "a tombstone"
        );
        t.remove(Table::Objects, &id.to_key())?;
    }
    Ok((next, any))
}
