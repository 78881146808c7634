//! What is between a source and a target: one subscription, with latency.

use std::collections::VecDeque;

use super::rng::Rng;
use super::source::{Meanwhile, SourceSim, hash};
use super::tables::MemTables;
use super::target::TargetSim;
use crate::ids::ObjectId;
use crate::ledger::digest::DigestKey;
use crate::ledger::object::Seq;
use crate::ledger::outgoing::{BatchLimits, Need, OutgoingStream};
use crate::ledger::snapshot::{answer, snapshot, why_compare};
use crate::ledger::trim::log_start;
use crate::replica::{FetchResult, FetchWant};
use crate::wire::{
    Accepted, BatchHeader, CompareAnswer, CompareAsk, CompareWhy, Cursor, Inline, Snapshot, Tick,
};

/// What travels to the target.
#[derive(Debug, Clone)]
pub enum ToTarget {
    /// The subscription stands, from this cursor on.
    Accepted(Accepted, Option<Cursor>),
    /// Records with their bytes.
    Batch(BatchHeader, Vec<Vec<u8>>),
    /// The log does not lead on from the cursor: this is to be compared first.
    Snapshot(Snapshot),
    /// The answer to a question about it.
    Compared(CompareAnswer),
    /// A sign of life.
    Tick(Tick),
    /// Content that was asked for.
    Fetched(ObjectId, FetchResult, Vec<u8>),
}

/// What travels to the source.
#[derive(Debug)]
pub enum ToSource {
    /// Content is asked for.
    Fetch(FetchWant),
    /// A question about the snapshot.
    Compare(CompareAsk),
}

/// The largest file inside a batch, in bytes: small, so that both ways are taken.
const INLINE: u64 = 16;

/// One subscription.
#[derive(Debug)]
pub struct Session {
    stream: OutgoingStream,
    sent: Seq,
    ticked: Option<Tick>,
    /// Answers of fetches overtake batches and come twice.
    unruly: Option<Rng>,
    /// On their way to the target, with when they arrive.
    pub to_target: VecDeque<(u64, ToTarget)>,
    /// Answers of fetches on their way, each on a stream of its own, with when they arrive.
    pub pulled: Vec<(u64, ToTarget)>,
    /// Fetches and questions on their way to the source.
    pub to_source: VecDeque<(u64, ToSource)>,
    /// What is compared, until the target knows all of it.
    snapshot: Option<(MemTables, Snapshot)>,
}

impl Session {
    /// The target subscribes. `None` while one of both is down.
    ///
    /// # Panics
    /// When a ledger is damaged.
    #[must_use]
    pub fn open(
        source: &SourceSim,
        target: &TargetSim,
        now: u64,
        unruly: Option<Rng>,
        rng: &mut Rng,
    ) -> Option<Self> {
        let (machine, replica) = (source.machine.as_ref()?, target.machine.as_ref()?);
        let cursor = replica.resume();
        let why = why_compare(&source.tables, cursor.as_ref()).expect("tables do not fail");
        let mut session = Self {
            stream: OutgoingStream::default(),
            sent: cursor.map_or(Seq(0), |c| c.seq),
            ticked: None,
            unruly,
            to_target: VecDeque::new(),
            pulled: Vec::new(),
            to_source: VecDeque::new(),
            snapshot: None,
        };
        let Some(why) = why else {
            let accepted = Accepted {
                origin: machine.origin(),
                incarnation: machine.incarnation(),
                resumed: cursor.is_some(),
                head: machine.announced(),
                complete: source.complete,
            };
            session.send(now, ToTarget::Accepted(accepted, cursor));
            return Some(session);
        };
        if why == CompareWhy::Unknown && !source.complete {
            // What it has is not all that there is.
            return None;
        }
        let mut key = [0; 32];
        key[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        let snapshot = snapshot(&source.tables, why, DigestKey(key));
        let snapshot = snapshot.expect("tables do not fail")?;
        session.sent = snapshot.at;
        session.send(now, ToTarget::Snapshot(snapshot.clone()));
        session.snapshot = Some((source.tables.clone(), snapshot));
        Some(session)
    }

    /// Whether the log still has what comes next.
    ///
    /// # Panics
    /// When a ledger is damaged.
    #[must_use]
    pub fn is_served(&self, source: &SourceSim) -> bool {
        log_start(&source.tables).expect("tables do not fail") <= self.sent
    }

    fn answer(&mut self, at: u64, ask: &CompareAsk) {
        let Some((tables, of)) = &self.snapshot else {
            panic!("a question after the last");
        };
        let answer = answer(tables, of.origin, &DigestKey(of.key), ask);
        match answer.expect("tables do not fail, and the range was told") {
            Some(answer) => self.send(at, ToTarget::Compared(answer)),
            None => self.snapshot = None,
        }
    }

    /// Whether everything was sent and nothing is on its way.
    #[must_use]
    pub fn is_quiet(&self, source: &SourceSim) -> bool {
        self.to_target.is_empty()
            && self.pulled.is_empty()
            && self.to_source.is_empty()
            && self.snapshot.is_none()
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
            let want = match want {
                ToSource::Fetch(want) => want,
                ToSource::Compare(ask) => {
                    self.answer(now + latency, &ask);
                    continue;
                }
            };
            let (result, bytes) = source.fetch(want, meanwhile);
            let answer = ToTarget::Fetched(want.object, result, bytes);
            if self.unruly.is_none() {
                self.send(now + latency, answer);
                continue;
            }
            for _ in 0..=usize::from(self.is_unruly(4)) {
                let late = self.unruly.as_mut().map_or(0, |rng| rng.below(400_000_000));
                self.pulled
                    .push((now + latency + late as u64, answer.clone()));
            }
        }
        if self.snapshot.is_some() {
            return;
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

    fn is_unruly(&mut self, of: usize) -> bool {
        self.unruly.as_mut().is_some_and(|rng| rng.one_in(of))
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
