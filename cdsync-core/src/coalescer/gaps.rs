//! Gaps: folders of which it is not known what changed in them, until they were compared.
//!
//! None is kept durably: a start compares the whole tree anyway, so that a crash in the middle of a
//! repair leaves nothing that the next start does not repair.

use std::collections::{BTreeMap, BTreeSet};

use super::{Coalescer, FolderKey};
use crate::ids::ObjectId;
use crate::ledger::access::{self, live};
use crate::ledger::object::Seq;
use crate::ledger::tables::{TableError, TablesRead};
use crate::path::RelPath;
use crate::time::Instant;

/// The gaps that are open.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Since when, by folder.
    open: BTreeMap<ObjectId, Instant>,
}

impl Gaps {
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// What was compared was looked at.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }
}

/// A gap, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenGap {
    /// The folder, below the root.
    pub path: RelPath,
    /// Since when.
    pub since: Instant,
}

impl Coalescer {
    /// Nobody knows where something was lost: the whole tree is compared.
    pub fn handle_gap(&mut self, now: Instant) {
        self.pending.moves += 1;
        self.gaps
            .open
            .entry(ObjectId::root(self.origin()))
            .or_insert(now);
        self.listings.lost();
        self.start_scan();
    }

    /// Hints of these folders were lost: they are compared, and nothing else is. Of folders that
    /// are not in the ledger nothing was lost that their entering does not find.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn handle_gaps(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        folders: impl IntoIterator<Item = FolderKey>,
    ) -> Result<(), TableError> {
        for key in folders {
            self.pending.moves += 1;
            match self.resolve(t, &key)? {
                Some(folder) => self.open_gap(now, t, folder)?,
                None => self.listings.not_heard(key),
            }
        }
        Ok(())
    }

    /// Too much happened in a folder to follow, or it was not told.
    pub(super) fn open_gap(
        &mut self,
        now: Instant,
        t: &dyn TablesRead,
        folder: ObjectId,
    ) -> Result<(), TableError> {
        self.gaps.open.entry(folder).or_insert(now);
        self.listings.again(folder, self.ledger.head() > Seq(1));
        if self.gaps.open.len() > self.config.gaps_max {
            self.merge_gaps(now, t)?;
        }
        Ok(())
    }

    /// Replaces the deepest gaps by those of the folders above them, until few are left.
    fn merge_gaps(&mut self, now: Instant, t: &dyn TablesRead) -> Result<(), TableError> {
        let open = std::mem::take(&mut self.gaps.open);
        let mut lines = Vec::with_capacity(open.len());
        for (folder, since) in open {
            lines.push((lineage(t, folder)?, since));
        }
        let mut level = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        let top = |line: &[ObjectId], level: usize| line[level.min(line.len() - 1)];
        loop {
            level = level.saturating_sub(1);
            let tops: BTreeSet<_> = lines.iter().map(|(line, _)| top(line, level)).collect();
            if tops.len() <= self.config.gaps_max / 2 || level == 0 {
                break;
            }
        }
        for (line, since) in lines {
            let merged = top(&line, level);
            let entry = self.gaps.open.entry(merged).or_insert(now);
            *entry = since.min(*entry);
            if line.len() > level + 1 {
                self.listings.cover(line[line.len() - 1], merged);
            }
        }
        Ok(())
    }

    /// How many gaps are open.
    #[must_use]
    pub fn gap_count(&self) -> usize {
        self.gaps.open.len()
    }

    /// The first gaps, at most `most`.
    ///
    /// # Errors
    /// [`TableError`]; not retryable within the transaction.
    pub fn gaps(&mut self, t: &dyn TablesRead, most: usize) -> Result<Vec<OpenGap>, TableError> {
        let mut gaps = Vec::new();
        for (folder, since) in self.gaps.open.iter().take(most) {
            if let Some(at) = self.folders.at(t, *folder)? {
                let (path, since) = (at.path, *since);
                gaps.push(OpenGap { path, since });
            }
        }
        Ok(gaps)
    }

    /// How many folders were listed since this was opened.
    #[must_use]
    pub fn listed_folders(&self) -> u64 {
        self.listings.listed()
    }

    pub(super) fn close_gaps(&mut self, now: Instant) {
        if self.listings.is_idle() && self.pending.is_settled(now) {
            self.gaps.close();
        }
    }
}

/// A folder and those above it, the root first.
fn lineage(t: &dyn TablesRead, folder: ObjectId) -> Result<Vec<ObjectId>, TableError> {
    let mut line = vec![folder];
    while line.len() <= access::DEPTH_MAX
        && let Some(row) = live(t, line[line.len() - 1])?
        && let Some(slot) = row.slot()
    {
        line.push(slot.0);
    }
    line.reverse();
    Ok(line)
}
