//! What is between a source and a target: one subscription, with latency.

use std::collections::VecDeque;

use super::rng::Rng;
use super::source::{Meanwhile, SourceSim, hash};
use super::target::TargetSim;
use crate::ids::ObjectId;
use crate::ledger::object::Seq;
use crate::ledger::outgoing::{BatchLimits, Need, OutgoingStream};
use crate::ledger::writer::knows_cursor;
use crate::replica::{FetchResult, FetchWant};
use crate::wire::{Accepted, BatchHeader, Inline, Tick};

/// What travels to the target.
#[derive(Debug)]
pub enum ToTarget {
    /// The subscription stands.
    Accepted(Accepted),
    /// Records with their bytes.
    Batch(BatchHeader, Vec<Vec<u8>>),
    /// A sign of life.
    Tick(Tick),
    /// Content that was asked for.
    Fetched(ObjectId, FetchResult, Vec<u8>),
}

/// The largest file inside a batch, in bytes: small, so that both ways are taken.
const INLINE: u64 = 16;

/// One subscription.
#[derive(Debug)]
pub struct Session {
    stream: OutgoingStream,
    sent: Seq,
    ticked: Option<Tick>,
    /// On their way to the target, with when they arrive.
    pub to_target: VecDeque<(u64, ToTarget)>,
    /// Fetches on their way to the source.
    pub to_source: VecDeque<(u64, FetchWant)>,
}

impl Session {
    /// The target subscribes. `None` while one of both is down.
    ///
    /// # Panics
    /// When a ledger is damaged.
    #[must_use]
    pub fn open(source: &SourceSim, target: &TargetSim, now: u64) -> Option<Self> {
        let (machine, replica) = (source.machine.as_ref()?, target.machine.as_ref()?);
        let cursor = replica.resume();
        let resumed = cursor.is_some_and(|c| {
            knows_cursor(&source.tables, c.origin, c.incarnation, c.seq)
                .expect("tables do not fail")
        });
        let accepted = Accepted {
            origin: machine.origin(),
            incarnation: machine.incarnation(),
            resumed,
            head: machine.announced(),
            complete: source.complete,
        };
        let sent = cursor.filter(|_| resumed).map_or(Seq(0), |c| c.seq);
        Some(Self {
            stream: OutgoingStream::default(),
            sent,
            ticked: None,
            to_target: VecDeque::from([(now, ToTarget::Accepted(accepted))]),
            to_source: VecDeque::new(),
        })
    }

    /// Whether everything was sent and nothing is on its way.
    #[must_use]
    pub fn is_quiet(&self, source: &SourceSim) -> bool {
        self.to_target.is_empty()
            && self.to_source.is_empty()
            && self.sent == source.announced()
            && self
                .ticked
                .is_some_and(|t| t.complete && t.head == self.sent)
    }

    /// The source's end: answers fetches, sends records and ticks.
    ///
    /// # Panics
    /// When a record number is missing.
    pub fn serve(
        &mut self,
        source: &mut SourceSim,
        now: u64,
        latency: u64,
        rng: &mut Rng,
        meanwhile: &mut Meanwhile<'_>,
    ) {
        // Only what is durable is served: a number that a crash takes back is given again.
        if source.machine.is_none() || !source.tables.is_durable() {
            return;
        }
        while self.to_source.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, want)) = self.to_source.pop_front() else {
                break;
            };
            let (result, bytes) = source.fetch(want, meanwhile);
            self.send(now + latency, ToTarget::Fetched(want.object, result, bytes));
        }
        let batches = self
            .to_target
            .iter()
            .filter(|(_, m)| matches!(m, ToTarget::Batch(..)))
            .count();
        if batches < 3 {
            self.send_batch(source, now, latency, rng, meanwhile);
        }
        self.send_tick(source, now + latency);
    }

    fn send(&mut self, at: u64, message: ToTarget) {
        let at = self.to_target.back().map_or(at, |(last, _)| at.max(*last));
        self.to_target.push_back((at, message));
    }

    fn send_batch(
        &mut self,
        source: &mut SourceSim,
        now: u64,
        latency: u64,
        rng: &mut Rng,
        meanwhile: &mut Meanwhile<'_>,
    ) {
        let limits = BatchLimits {
            records: 1 + rng.below(12),
            bytes: 1 + rng.below(100) as u64,
            inline: INLINE,
            contents: 64,
            items: 1 + rng.below(64),
        };
        let upto = source.announced();
        let out = self
            .stream
            .collect(&source.tables, self.sent, upto, limits, true)
            .expect("tables do not fail");
        let Some(last) = out.records.last().map(|r| r.seq) else {
            assert_eq!(self.sent, upto, "records that were announced are missing");
            return;
        };
        let (mut contents, mut bodies) = (Vec::new(), Vec::new());
        for need in out.needs {
            let (content, bytes) = match need {
                Need::Pull => (Inline::Pull, Vec::new()),
                Need::Sent => (Inline::Sent, Vec::new()),
                Need::Removed { by } => (Inline::Removed { by }, Vec::new()),
                Need::Read(at) => match source.read(&at, meanwhile) {
                    None => {
                        self.stream.not_sent(at.object);
                        (Inline::Unsettled, Vec::new())
                    }
                    Some(bytes) => {
                        let here = Inline::Here {
                            version: at.version,
                            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                            hash: hash(&bytes),
                            mtime: at.mtime,
                        };
                        (here, bytes)
                    }
                },
            };
            contents.push(content);
            bodies.push(bytes);
        }
        self.sent = last;
        let header = BatchHeader {
            records: out.records,
            contents,
            bytes: out.bytes,
            head: upto,
        };
        self.send(now + latency, ToTarget::Batch(header, bodies));
    }

    fn send_tick(&mut self, source: &SourceSim, at: u64) {
        let Some(machine) = &source.machine else {
            return;
        };
        let tick = Tick {
            head: machine.announced(),
            incarnation: machine.incarnation(),
            bytes: machine.bytes(),
            at: source.disk.wall(),
            complete: source.complete,
        };
        let news = self
            .ticked
            .is_none_or(|t| t.head != tick.head || t.complete != tick.complete);
        if self.sent == tick.head && news {
            self.ticked = Some(tick);
            self.send(at, ToTarget::Tick(tick));
        }
    }
}
