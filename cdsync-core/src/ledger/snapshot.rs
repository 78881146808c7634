//! What an upstream says of one state of its ledger, so that a target whose cursor the log does not
//! lead on from finds what differs.

use std::ops::ControlFlow;

use super::access::live;
use super::digest::{DigestKey, Element, RANGE_NAMES_MAX, RangeSum, elements};
use super::object::Seq;
use super::rows::LiveObject;
use super::tables::{TableError, TablesRead};
use super::trim::log_start;
use super::writer::{history, knows_cursor};
use crate::ids::{ObjectId, OriginId};
use crate::wire::{
    CompareAnswer, CompareAsk, CompareWhy, Compared, Cursor, RANGES_MAX, RangeDigest, Snapshot,
};

/// What one answer takes at most, in bytes or so; one object may go beyond it.
const ANSWER_BYTES: usize = 512 << 10;

/// Why a question is not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The ledger failed; not retryable on the same snapshot.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The asking side misbehaves: a range that nobody told it.
    #[error("a range of more than {RANGE_NAMES_MAX} names")]
    Range,
}

/// Why the log does not lead on from a cursor, `None` where it does.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn why_compare(
    t: &dyn TablesRead,
    cursor: Option<&Cursor>,
) -> Result<Option<CompareWhy>, TableError> {
    let start = log_start(t)?;
    Ok(match cursor {
        Some(c) if !knows_cursor(t, c.origin, c.incarnation, c.seq)? => Some(CompareWhy::Unknown),
        Some(c) if c.seq < start => Some(CompareWhy::Behind),
        None if start > Seq(0) => Some(CompareWhy::Behind),
        _ => None,
    })
}

/// Begins a comparison with the state that this view shows. Nothing of it may be told before
/// everything up to its number is durable.
///
/// # Errors
/// [`TableError`]; not retryable within the transaction.
pub fn snapshot(
    t: &dyn TablesRead,
    why: CompareWhy,
    key: DigestKey,
) -> Result<Option<Snapshot>, TableError> {
    let Some(history) = history(t)? else {
        return Ok(None);
    };
    Ok(Some(Snapshot {
        origin: history.origin,
        incarnation: history.incarnation,
        at: history.head,
        bytes: history.bytes,
        files: history.files,
        why,
        key: key.0,
    }))
}

/// Answers a question about this view; `None` when there are no more.
///
/// # Errors
/// [`AnswerError`]; not retryable.
pub fn answer(
    t: &dyn TablesRead,
    origin: OriginId,
    key: &DigestKey,
    ask: &CompareAsk,
) -> Result<Option<CompareAnswer>, AnswerError> {
    Ok(Some(match ask {
        CompareAsk::Ranges { after } => CompareAnswer::Ranges(ranges(t, key, after)?),
        CompareAsk::Range { after, to, buckets } => range(t, key, (after, to), buckets)?,
        CompareAsk::Objects { numbers } => CompareAnswer::Objects(objects(t, origin, numbers)?),
        CompareAsk::Done => return Ok(None),
    }))
}

/// What nobody was told of is not compared.
fn told(row: &LiveObject) -> Option<bool> {
    row.is_announced().then_some(true)
}

fn ranges(
    t: &dyn TablesRead,
    key: &DigestKey,
    after: &[u8],
) -> Result<Vec<RangeDigest>, TableError> {
    let mut ranges = Vec::new();
    let mut sum = RangeSum::default();
    let mut last = Vec::new();
    elements(t, key, (after, &[]), &told, &mut |name, element| {
        if sum.names == RANGE_NAMES_MAX {
            ranges.push(digest(&last, &sum));
            sum = RangeSum::default();
            if ranges.len() == RANGES_MAX {
                return ControlFlow::Break(());
            }
        }
        sum.add(&element);
        name.clone_into(&mut last);
        ControlFlow::Continue(())
    })?;
    if ranges.len() < RANGES_MAX {
        ranges.push(digest(&[], &sum));
    }
    Ok(ranges)
}

fn digest(to: &[u8], sum: &RangeSum) -> RangeDigest {
    RangeDigest {
        to: to.to_vec(),
        sum: sum.whole.to_le_bytes(),
    }
}

fn range(
    t: &dyn TablesRead,
    key: &DigestKey,
    bounds: (&[u8], &[u8]),
    buckets: &[[u8; 8]],
) -> Result<CompareAnswer, AnswerError> {
    let mut sum = RangeSum::default();
    let mut found: Vec<Element> = Vec::new();
    elements(t, key, bounds, &told, &mut |_, element| {
        sum.add(&element);
        if sum.names > RANGE_NAMES_MAX {
            return ControlFlow::Break(());
        }
        found.push(element);
        ControlFlow::Continue(())
    })?;
    if sum.names > RANGE_NAMES_MAX {
        return Err(AnswerError::Range);
    }
    let mut differing = 0_u64;
    for (bucket, own) in sum.buckets.iter().enumerate() {
        let same = buckets.get(bucket) == Some(&own.to_le_bytes());
        differing |= u64::from(!same) << bucket;
    }
    found.retain(|element| differing >> element.bucket() & 1 == 1);
    let elements = found.iter().map(|e| (e.short(), e.object.number));
    Ok(CompareAnswer::Range {
        differing,
        elements: elements.collect(),
    })
}

fn objects(
    t: &dyn TablesRead,
    origin: OriginId,
    numbers: &[u64],
) -> Result<Vec<Option<Compared>>, TableError> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for number in numbers {
        if bytes >= ANSWER_BYTES {
            break;
        }
        let number = *number;
        let row = live(t, ObjectId { origin, number })?.filter(LiveObject::is_announced);
        let compared = row.map(|row| Compared {
            state: row.state,
            names: row
                .names
                .into_iter()
                .map(|at| (at.0.number, at.1))
                .collect(),
        });
        if let Some(compared) = &compared {
            let names = compared.names.iter().map(|at| 32 + at.1.as_bytes().len());
            bytes += 128 + compared.state.meta.xattrs.bytes() + names.sum::<usize>();
        }
        found.push(compared);
    }
    Ok(found)
}
