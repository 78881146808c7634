//! The last lines of one job's log on this server.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use cdsync_core::ledger::object::Seq;
use cdsync_core::wire::{LogLine, Op};

use crate::clock::wall;

/// How many lines are kept: some 12 MiB at worst, a tenth of that with usual paths.
const LINES_MAX: usize = 10_000;

/// A bounded log; the oldest lines go first.
#[derive(Debug, Default)]
pub(crate) struct JobLog(Mutex<Lines>);

/// The longest text of a line, in bytes: a page of a thousand lines must fit one message.
const TEXT_MAX_BYTES: usize = 512;

/// Cuts a text for people that is too long to be shown.
pub(crate) fn shorten(text: &mut String) {
    if text.len() > TEXT_MAX_BYTES {
        let cut = (0..=TEXT_MAX_BYTES)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(cut.unwrap_or(0));
        text.push_str(" ...");
    }
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<LogLine>,
    last: u64,
}

impl JobLog {
    pub(crate) fn push(&self, mut line: LogLine) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shorten(&mut line.path);
        shorten(&mut line.detail);
        log.last += 1;
        line.number = log.last;
        if log.lines.len() >= LINES_MAX {
            log.lines.pop_front();
        }
        log.lines.push_back(line);
    }

    /// Says something that is not a change.
    pub(crate) fn note(&self, detail: impl Into<String>) {
        self.push(LogLine {
            number: 0,
            at: wall(),
            op: Op::Note,
            path: String::new(),
            detail: detail.into(),
            latency_ms: None,
            seq: Seq(0),
        });
    }

    /// Lines behind a number, or the newest ones for zero.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Vec<LogLine> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if after == 0 {
            let skip = log.lines.len().saturating_sub(limit);
            return log.lines.iter().skip(skip).cloned().collect();
        }
        log.lines
            .iter()
            .filter(|line| line.number > after)
            .take(limit)
            .cloned()
            .collect()
    }
}
