//! All objects of a ledger, one after another.

use std::ops::ControlFlow;

use super::rows::{LiveObject, ObjectRow, decode_row};
use super::tables::{Table, TableError, Tables};

/// How many rows are read before what was kept of them is worked on: some hundred bytes each.
const CHUNK: usize = 4096;

/// Works on every live object that `keep` says, in the order of their ids; `each` may write.
///
/// # Errors
/// What `each` returned, and [`TableError`]; not retryable within the transaction.
pub fn each_live(
    t: &mut dyn Tables,
    keep: impl Fn(&LiveObject) -> bool,
    mut each: impl FnMut(&mut dyn Tables, LiveObject) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut from = Vec::new();
    loop {
        let (mut kept, mut failed) = (Vec::new(), None);
        let (mut read, mut last) = (0, Vec::new());
        t.range(Table::Objects, &from, None, &mut |key, value| {
            read += 1;
            match decode_row(Table::Objects, value) {
                Ok(ObjectRow::Live(row)) => kept.extend(keep(&row).then_some(row)),
                Ok(ObjectRow::Gone(_)) => {}
                Err(error) => failed = Some(error),
            }
            if failed.is_none() && read < CHUNK {
                return ControlFlow::Continue(());
            }
            last = key.to_vec();
            ControlFlow::Break(())
        })?;
        failed.map_or(Ok(()), Err)?;
        for row in kept {
            each(t, row)?;
        }
        if last.is_empty() {
            return Ok(());
        }
        last.push(0);
        from = last;
    }
}
