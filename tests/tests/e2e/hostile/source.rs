//! An evil source, towards an honest target and the other jobs of that target.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::ids::{IncarnationId, ObjectId, OriginId};
use cdsync_core::ledger::object::{Content, Hash, Kind, Metadata, ObjectState, Seq, Version};
use cdsync_core::ledger::record::{NameState, Record};
use cdsync_core::ledger::xattrs::Xattrs;
use cdsync_core::path::Name;
use cdsync_core::time::{Hlc, Timestamp, WallMillis};
use cdsync_core::wire::{
    Accepted, Base, BatchHeader, CompareAnswer, CompareWhy, ContentAnswer, ContentHeader,
    FetchRequest, Inline, PeerMessage, RangeDigest, RefusedWhy, Snapshot, Subscribe, Tick, encode,
    kind,
};
use cdsync_delta::{Copy, RANGE_BYTES, RootBuilder, encode_copies, range_hash};
use cdsync_tests::{Cluster, job_file, wait_until};
use cdsync_transport::compress::Compressor;
use cdsync_transport::{FrameReader, FrameWriter, Transport};

use super::assert_bounded;
use crate::member::{Member, hear, say};

const PATIENCE: Duration = Duration::from_secs(60);
const ORIGIN: OriginId = OriginId(0x5eed);
const RUN: IncarnationId = IncarnationId(7);
/// The folder that the honest part of the source's tree has, and a file.
const FOLDER: u64 = 2;
const KEPT: u64 = 3;
/// The last record of the honest part.
const HONEST: u64 = 3;
/// What a bomb becomes: far more than a batch may have, and soon made.
const BOMB_BYTES: usize = 128 << 20;
/// The honest play, which takes back what was made.
const HONESTLY: &str = "";
/// How many records a batch has that is to exceed the credit.
const LINKS: u64 = 1000;
/// The size of a file that is pulled: of five ranges, so that a difference is asked for.
const LARGE: u64 = RANGES * RANGE_BYTES as u64;
const RANGES: u64 = 5;

/// Where a misbehaviour must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// The subscription is left, with this in the target's error.
    Error(&'static str),
    /// An object is parked with this reason.
    Parked(&'static str),
}
use Shows::{Error, Parked};

/// What an evil source does, and what the target says to that.
const EVILS: &[(&str, Shows)] = &[
    // How a stream begins.
    ("begins with a batch", Error("began with something else")),
    ("begins with a tick", Error("began with something else")),
    ("a frame of no kind", Error("unknown kind")),
    ("noise for a message", Error("does not decode")),
    ("a frame without end", Error("bytes")),
    ("says nothing", Error("says nothing")),
    ("refuses with line ends", Error("refuses: x\\")),
    // What a batch has.
    ("no records", Error("do not fit its records")),
    ("a record is missing", Error("was due")),
    ("an old record again", Error("was due")),
    ("a length beyond the batch", Error("do not fit its records")),
    ("counts beyond the batch", Error("do not fit its records")),
    ("a content is missing", Error("do not fit its records")),
    ("a content too many", Error("do not fit its records")),
    ("content beyond the batch", Error("do not fit its records")),
    ("a bomb", Error("do not fit its records")),
    ("a bomb that lies", Error("do not fit its records")),
    ("wrong content", Parked("changing at the source")),
    ("more than was granted", Error("more than it was granted")),
    ("a message of another side", Error("the wrong message")),
    // What a record says.
    ("a name that climbs", Error("do not fit its records")),
    ("a name with a slash", Error("do not fit its records")),
    ("a name of ours", Error("does not fit the ledger")),
    ("a name twice", Error("does not fit the ledger")),
    (
        "a name without its object",
        Error("does not fit the ledger"),
    ),
    ("in a folder of nowhere", Error("does not fit the ledger")),
    ("in a file", Error("does not fit the ledger")),
    ("in a link", Error("does not fit the ledger")),
    ("a folder in itself", Error("does not fit the ledger")),
    ("a folder of two names", Error("does not fit the ledger")),
    ("a file becomes a folder", Error("does not fit the ledger")),
    (
        "an object of another ledger",
        Error("does not fit the ledger"),
    ),
    ("the root at a name", Error("does not fit the ledger")),
    ("the root goes", Error("does not fit the ledger")),
    ("the root is a file", Error("does not fit the ledger")),
    ("modes beyond", Error("does not fit the ledger")),
    ("nobody's owner", Error("does not fit the ledger")),
    ("times that are none", Error("does not fit the ledger")),
    ("a link that ends early", Error("does not fit the ledger")),
    ("a link without end", Error("does not fit the ledger")),
    ("a device", Parked("does not carry")),
    // What a fetch brings.
    ("an older content", Parked("older version")),
    ("more bytes than said", Parked("more bytes than the record")),
    ("a size that none has", Parked("what no file can be")),
    (
        "a range of another place",
        Parked("does not match its hash"),
    ),
    ("a range without a hash", Parked("without a hash")),
    ("a range too large", Parked("bytes")),
    ("another root", Parked("does not match its hash")),
    ("an end before the end", Parked("does not match its hash")),
    ("ranges without end", Parked("broke the protocol")),
    ("no answer to a fetch", Parked("broke the protocol")),
    // What a fetch of a difference brings.
    ("stretches beyond the base", Parked("broke the protocol")),
    ("a stretch backwards", Parked("broke the protocol")),
    ("stretches twice", Parked("broke the protocol")),
    ("copies without end", Parked("broke the protocol")),
    ("copies that are noise", Parked("copies that cannot be")),
    ("copies beyond the base", Parked("copies that cannot be")),
    ("a literal of nothing", Parked("broke the protocol")),
    ("literals without end", Parked("broke the protocol")),
    ("no literals", Parked("broke the protocol")),
    (
        "a difference to another content",
        Parked("does not match its hash"),
    ),
    // What a comparison says.
    (
        "a snapshot that stands still",
        Error("snapshot does not fit"),
    ),
    ("an answer to nothing", Error("snapshot does not fit")),
];

/// What plays the evil source: the misbehaviour of the moment, and how often it was met.
#[derive(Debug, Default)]
struct Stage {
    plays: &'static str,
    met: BTreeMap<&'static str, u32>,
    /// The evil object that the target may have taken, until it is taken back.
    made: Option<u64>,
    /// The last record of a flood of its states that was sent.
    flood: u64,
}

impl Stage {
    fn enter(stage: &Mutex<Self>) -> &'static str {
        let mut stage = stage.lock().unwrap();
        let plays = stage.plays;
        *stage.met.entry(plays).or_default() += 1;
        plays
    }
}

fn id(number: u64) -> ObjectId {
    ObjectId {
        origin: ORIGIN,
        number,
    }
}

fn mtime() -> Timestamp {
    Timestamp {
        secs: 1_000_000_000,
        nanos: 0,
    }
}

fn state(number: u64, seq: u64, kind: Kind) -> ObjectState {
    let content = match kind {
        Kind::File => Content::Data {
            size: 1,
            hash: None,
        },
        Kind::Symlink => Content::Link(b"../../outside".to_vec()),
        Kind::CharDevice => Content::Device(0x0103),
        _ => Content::None,
    };
    ObjectState {
        id: id(number),
        kind,
        meta: Metadata {
            mode: if kind == Kind::Folder { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            user: Vec::new(),
            group: Vec::new(),
            mtime: mtime(),
            xattrs: Xattrs::NONE,
        },
        content,
        version: Version {
            origin: ORIGIN,
            incarnation: RUN,
            seq: Seq(seq),
            hlc: Hlc(seq),
        },
        content_seq: Seq(if kind == Kind::File { seq } else { 0 }),
        replaces: None,
    }
}

fn record(seq: u64) -> Record {
    Record {
        seq: Seq(seq),
        incarnation: RUN,
        hlc: Hlc(seq),
        names: Vec::new(),
        objects: Vec::new(),
        removed: Vec::new(),
        group: 0,
        set: 0,
        signature: Vec::new(),
    }
}

fn at(parent: u64, name: &str, object: Option<u64>) -> NameState {
    NameState {
        parent: id(parent),
        name: Name::new(name.as_bytes()).unwrap(),
        object: object.map(id),
    }
}

/// A record that makes one thing.
fn makes(seq: u64, parent: u64, name: &str, state: ObjectState) -> Record {
    let mut record = record(seq);
    record.names.push(at(parent, name, Some(state.id.number)));
    record.objects.push(state);
    record
}

fn here(version: u64, bytes: &[u8], of: &[u8]) -> Inline {
    Inline::Here {
        version: Seq(version),
        len: u32::try_from(bytes.len()).unwrap(),
        hash: Hash(range_hash(0, of, true).0),
        mtime: mtime(),
    }
}

fn header(records: Vec<Record>, contents: Vec<Inline>) -> BatchHeader {
    BatchHeader {
        head: records.last().map_or(Seq(0), |record| record.seq),
        records,
        contents,
        bytes: 0,
    }
}

fn payload(header: &BatchHeader, contents: &[u8]) -> Vec<u8> {
    framed(&encode(header), contents)
}

fn framed(header: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut payload = u32::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    payload.extend_from_slice(header);
    payload.extend_from_slice(contents);
    payload
}

/// A batch with what makes one empty folder under a name, whose bytes are then others.
fn renamed(seq: u64, bytes: &[u8]) -> Vec<u8> {
    let stands_for = "Z".repeat(bytes.len());
    let folder = state(number(seq), seq, Kind::Folder);
    let folder = makes(seq, 1, &stands_for, folder);
    let mut payload = payload(&header(vec![folder], Vec::new()), b"");
    let found = payload
        .windows(bytes.len())
        .position(|window| window == stands_for.as_bytes())
        .unwrap();
    payload[found..found + bytes.len()].copy_from_slice(bytes);
    payload
}

/// One record as a batch.
fn one(seq: u64, record: Record) -> Vec<u8> {
    let contents = record.contents().map(|_| here(seq, b"x", b"x")).collect();
    let bytes = vec![b'x'; record.contents().count()];
    payload(&header(vec![record], contents), &bytes)
}

/// The object that an evil record of a number makes.
fn number(seq: u64) -> u64 {
    100 + 2 * seq
}

/// An evil record, by what is wrong with it.
fn evil_record(plays: &str, seq: u64) -> Option<Record> {
    let own = number(seq);
    let file = |parent, name: &str| makes(seq, parent, name, state(own, seq, Kind::File));
    let with = |kind, change: fn(&mut ObjectState)| {
        let mut evil = state(own, seq, kind);
        change(&mut evil);
        Some(makes(seq, 1, "evil", evil))
    };
    match plays {
        "a name of ours" => Some(file(1, ".cdsync")),
        "a name twice" => {
            let mut twice = file(1, "evil");
            twice.names.push(at(1, "evil", Some(own)));
            Some(twice)
        }
        "a name without its object" => {
            let mut bare = record(seq);
            bare.names.push(at(1, "evil", Some(own)));
            Some(bare)
        }
        "in a folder of nowhere" => Some(file(77, "evil")),
        "in a file" => Some(file(KEPT, "evil")),
        "in a link" => {
            let mut both = makes(seq, 1, "link", state(own, seq, Kind::Symlink));
            both.names.push(at(own, "evil", Some(own + 1)));
            both.objects.push(state(own + 1, seq, Kind::Folder));
            Some(both)
        }
        "a folder in itself" => {
            let mut moved = makes(seq, FOLDER, "evil", state(FOLDER, seq, Kind::Folder));
            moved.names.push(at(1, "folder", None));
            Some(moved)
        }
        "a folder of two names" => {
            let mut two = makes(seq, 1, "evil", state(own, seq, Kind::Folder));
            two.names.push(at(1, "evil too", Some(own)));
            Some(two)
        }
        "a file becomes a folder" => {
            let mut other = record(seq);
            other.objects.push(state(KEPT, seq, Kind::Folder));
            Some(other)
        }
        "an object of another ledger" => with(Kind::Folder, |evil| evil.id.origin = OriginId(1)),
        "the root at a name" => Some(makes(seq, FOLDER, "evil", state(1, seq, Kind::Folder))),
        "the root goes" => {
            let mut gone = record(seq);
            gone.removed.push(id(1));
            Some(gone)
        }
        "the root is a file" => {
            let mut other = record(seq);
            other.objects.push(state(1, seq, Kind::File));
            Some(other)
        }
        "modes beyond" => with(Kind::Folder, |evil| evil.meta.mode = 0o1_000_755),
        "nobody's owner" => with(Kind::Folder, |evil| evil.meta.uid = u32::MAX),
        "times that are none" => with(Kind::Folder, |evil| evil.meta.mtime.nanos = u32::MAX),
        "a link that ends early" => with(Kind::Symlink, |evil| {
            evil.content = Content::Link(b"here\0there".to_vec());
        }),
        "a link without end" => with(Kind::Symlink, |evil| {
            evil.content = Content::Link(vec![b'x'; 100_000]);
        }),
        _ => None,
    }
}

/// A whole evil batch, and whether it is compressed.
fn evil_batch(plays: &str, seq: u64) -> Option<(bool, Vec<u8>)> {
    if let Some(record) = evil_record(plays, seq) {
        return Some((false, one(seq, record)));
    }
    let own = number(seq);
    let good = || makes(seq, 1, "evil", state(own, seq, Kind::File));
    let contents = |contents: Vec<Inline>, bytes: &[u8]| {
        Some((false, payload(&header(vec![good()], contents), bytes)))
    };
    let squeezed = |said: usize, truly: usize| {
        let mut packed = u32::try_from(said).unwrap().to_le_bytes().to_vec();
        let zeros = vec![0; truly];
        Compressor::new()
            .compress_into(1, &[&zeros], &mut packed)
            .unwrap();
        Some((true, packed))
    };
    match plays {
        "no records" => Some((false, payload(&header(Vec::new(), Vec::new()), b""))),
        "a record is missing" => Some((
            false,
            one(
                seq + 1,
                makes(seq + 1, 1, "evil", state(own, seq + 1, Kind::Folder)),
            ),
        )),
        "an old record again" => Some((
            false,
            one(
                seq - 1,
                makes(seq - 1, 1, "evil", state(own, seq - 1, Kind::Folder)),
            ),
        )),
        "a length beyond the batch" => {
            let mut batch = one(seq, good());
            batch[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            Some((false, batch))
        }
        // A count as a variable-length number: as large as ten bytes can say.
        "counts beyond the batch" => {
            let mut count = vec![0xff; 9];
            count.push(1);
            Some((false, framed(&count, &[0; 64])))
        }
        "a content is missing" => contents(Vec::new(), b""),
        "a content too many" => contents(vec![here(seq, b"x", b"x"), here(seq, b"x", b"x")], b"xx"),
        "content beyond the batch" => contents(vec![here(seq, &[0; 1000], b"x")], b"x"),
        "wrong content" => contents(vec![here(seq, b"y", b"x")], b"y"),
        "a bomb" => squeezed(BOMB_BYTES, BOMB_BYTES),
        "a bomb that lies" => squeezed(1000, BOMB_BYTES),
        "a name that climbs" => Some((false, renamed(seq, b".."))),
        "a name with a slash" => Some((false, renamed(seq, b"../../outside/evil"))),
        "a device" => Some((
            false,
            one(
                seq,
                makes(seq, 1, "evil", state(own, seq, Kind::CharDevice)),
            ),
        )),
        _ => None,
    }
}

/// A batch of states of one link.
fn links(object: u64, first: u64, last: u64) -> Vec<u8> {
    let links = (first..=last).map(|seq| {
        let mut link = state(object, seq, Kind::Symlink);
        let target = format!("{seq}/").repeat(500);
        link.content = Content::Link(target.into_bytes());
        makes(seq, 1, "evil", link)
    });
    payload(&header(links.collect(), Vec::new()), b"")
}

/// Whether a misbehaviour is one of what a fetch brings: its record is a good one, of a file to be
/// pulled.
fn is_of_fetches(plays: &str) -> bool {
    is_between(plays, "an older content", "no answer to a fetch") || is_of_differences(plays)
}

/// The same, where the target has something of which the file can be made.
fn is_of_differences(plays: &str) -> bool {
    let last = "a difference to another content";
    is_between(plays, "stretches beyond the base", last)
}

fn is_between(plays: &str, first: &str, last: &str) -> bool {
    let place = |name: &str| EVILS.iter().position(|(evil, _)| *evil == name);
    place(plays) >= place(first) && place(plays) <= place(last)
}

fn large(seq: u64) -> Vec<u8> {
    let mut file = state(number(seq), seq, Kind::File);
    file.content = Content::Data {
        size: LARGE,
        hash: None,
    };
    let record = makes(seq, 1, "evil", file);
    payload(&header(vec![record], vec![Inline::Pull]), b"")
}

/// The honest part of the tree: the root, a folder, and a file in it.
fn honest() -> Vec<u8> {
    let mut root = record(1);
    root.objects.push(state(1, 1, Kind::Folder));
    let folder = makes(2, 1, "folder", state(FOLDER, 2, Kind::Folder));
    let kept = makes(3, FOLDER, "kept", state(KEPT, 3, Kind::File));
    payload(
        &header(vec![root, folder, kept], vec![here(3, b"x", b"x")]),
        b"x",
    )
}

/// What takes back what an evil record has made.
fn takes_back(seq: u64, number: u64) -> Vec<u8> {
    let mut gone = record(seq);
    gone.names.push(at(1, "evil", None));
    gone.removed.push(id(number));
    payload(&header(vec![gone], Vec::new()), b"")
}

struct Talk {
    writer: FrameWriter,
    reader: FrameReader,
}

impl Talk {
    async fn say(&mut self, message: &PeerMessage) -> Option<()> {
        say(&mut self.writer, message).await.ok()
    }

    async fn frame(&mut self, kind: u8, bytes: Vec<u8>) -> Option<()> {
        self.writer.write(kind, &[Bytes::from(bytes)]).await.ok()
    }

    async fn batch(&mut self, bytes: Vec<u8>) -> Option<()> {
        self.frame(kind::BATCH, bytes).await
    }

    async fn accept(&mut self, asked: &Subscribe, head: u64) -> Option<()> {
        let accepted = Accepted {
            origin: ORIGIN,
            incarnation: RUN,
            resumed: asked.cursor.is_some(),
            head: Seq(head),
            complete: true,
        };
        self.say(&PeerMessage::Accepted(accepted)).await
    }

    async fn tick(&mut self, head: u64) -> Option<()> {
        let tick = Tick {
            head: Seq(head),
            incarnation: RUN,
            bytes: 0,
            at: WallMillis(0),
            complete: true,
        };
        self.say(&PeerMessage::Tick(tick)).await
    }

    /// Ticks until the other side has had enough, or something else is played.
    async fn lull(&mut self, head: u64, plays: &str, stage: &Mutex<Stage>) -> Option<()> {
        while stage.lock().unwrap().plays == plays {
            self.tick(head).await?;
            let heard = tokio::time::timeout(Duration::from_millis(100), hear(&mut self.reader));
            if let Ok(None) = heard.await {
                break;
            }
        }
        None
    }

    async fn subscription(&mut self, asked: &Subscribe, stage: &Mutex<Stage>) -> Option<()> {
        let held = asked.cursor.map_or(0, |cursor| cursor.seq.0);
        if held < HONEST {
            self.accept(asked, HONEST).await?;
            self.batch(honest()).await?;
            return self.lull(HONEST, HONESTLY, stage).await;
        }
        let plays = Stage::enter(stage);
        match plays {
            HONESTLY => {
                let (made, flood) = {
                    let stage = stage.lock().unwrap();
                    (stage.made, stage.flood)
                };
                let last = held.max(flood);
                let next = last + u64::from(made.is_some());
                self.accept(asked, next).await?;
                if let Some(made) = made {
                    // A log is what it is: what was not claimed comes again.
                    for first in (held + 1..=last).step_by(1000) {
                        self.batch(links(made, first, last.min(first + LINKS - 1)))
                            .await?;
                    }
                    self.batch(takes_back(next, made)).await?;
                }
                self.lull(next, plays, stage).await?;
            }
            "begins with a batch" => self.batch(one(held + 1, record(held + 1))).await?,
            "begins with a tick" => self.tick(held + 1).await?,
            "a frame of no kind" => self.frame(200, b"?".to_vec()).await?,
            "noise for a message" => self.frame(kind::MESSAGE, vec![0xff; 64]).await?,
            "says nothing" => {}
            "refuses with line ends" => {
                let refused = PeerMessage::Refused {
                    why: RefusedWhy::Busy,
                    reason: "x\nFORGED line\r\x1b[2J".to_owned(),
                };
                self.say(&refused).await?;
            }
            "a snapshot that stands still" | "an answer to nothing" => {
                self.snapshot(plays, held + 1).await?;
            }
            _ => {
                self.accept(asked, held + 1).await?;
                self.behind(plays, held, stage).await?;
            }
        }
        // Whoever goes first loses: it is the other side that must end this.
        while hear(&mut self.reader).await.is_some() {}
        None
    }

    /// What comes after a good beginning.
    async fn behind(&mut self, plays: &str, held: u64, stage: &Mutex<Stage>) -> Option<()> {
        // What was taken before is not made again.
        let seq = held + 1;
        let makes = {
            let mut stage = stage.lock().unwrap();
            let makes = stage.made.is_none_or(|made| made >= number(seq));
            if makes {
                stage.made = Some(number(seq));
            }
            makes
        };
        if is_of_fetches(plays) {
            if makes {
                self.batch(large(seq)).await?;
                return self.lull(seq, plays, stage).await;
            }
            return self.lull(held, plays, stage).await;
        }
        if let Some((compressed, bytes)) = evil_batch(plays, seq) {
            if makes {
                let kind = if compressed {
                    kind::BATCH_ZSTD
                } else {
                    kind::BATCH
                };
                self.frame(kind, bytes).await?;
                return self.lull(seq, plays, stage).await;
            }
            return self.lull(held, plays, stage).await;
        }
        match plays {
            "a frame without end" => self.batch(vec![0; 48 << 20]).await,
            "more than was granted" => {
                let object = stage.lock().unwrap().made?;
                for first in (seq..).step_by(1000) {
                    let last = first + LINKS - 1;
                    stage.lock().unwrap().flood = last;
                    self.batch(links(object, first, last)).await?;
                }
                None
            }
            "a message of another side" => self.say(&PeerMessage::Credit { bytes: 1 }).await,
            other => panic!("nobody plays {other:?}"),
        }
    }

    async fn snapshot(&mut self, plays: &str, at: u64) -> Option<()> {
        let snapshot = Snapshot {
            origin: ORIGIN,
            incarnation: RUN,
            at: Seq(at),
            bytes: 0,
            files: 1,
            why: CompareWhy::Behind,
            key: [7; 32],
        };
        self.say(&PeerMessage::Snapshot(snapshot)).await?;
        let still = || RangeDigest {
            to: vec![1],
            sum: [0; 16],
        };
        while let Some(message) = hear(&mut self.reader).await {
            let PeerMessage::Compare(_) = message else {
                continue;
            };
            let answer = if plays == "an answer to nothing" {
                CompareAnswer::Objects(vec![None; 16])
            } else {
                CompareAnswer::Ranges(vec![still(), still()])
            };
            self.say(&PeerMessage::Compared(answer)).await?;
        }
        None
    }

    async fn fetch(&mut self, plays: &str, asked: &FetchRequest) -> Option<()> {
        if !is_of_fetches(plays) {
            let gone = ContentAnswer::Unsettled;
            return self.say(&PeerMessage::Content(gone)).await;
        }
        let mut content = ContentHeader {
            version: asked.at_least,
            size: LARGE,
            mtime: mtime(),
            attempt: 1,
        };
        match plays {
            "an older content" => content.version = Seq(asked.at_least.0 - 1),
            "more bytes than said" => content.size = LARGE + 1,
            "a size that none has" => {
                content.version = asked.at_least.next();
                content.size = u64::MAX;
            }
            "no answer to a fetch" => return self.tick(4).await,
            _ => {}
        }
        let follows = PeerMessage::Content(ContentAnswer::Follows(content));
        self.say(&follows).await?;
        let bytes = vec![7; RANGE_BYTES];
        let mut root = RootBuilder::new();
        let ranges = if plays == "ranges without end" {
            10_000
        } else {
            RANGES
        };
        for index in 0..ranges {
            let said = match plays {
                "a range of another place" => index + 1,
                _ => index,
            };
            let hash = range_hash(said, &bytes, false);
            if root.pushed() < RANGES {
                root.push(hash);
            }
            let mut range = match plays {
                "a range without a hash" => Vec::new(),
                _ => hash.0.to_vec(),
            };
            match plays {
                "a range without a hash" => range.extend_from_slice(b"short"),
                "a range too large" => range.extend(vec![7; 2 * RANGE_BYTES]),
                _ => range.extend_from_slice(&bytes),
            }
            self.frame(kind::RANGE, range).await?;
            if plays == "an end before the end" {
                break;
            }
        }
        let root = match plays {
            "another root" | "an end before the end" | "a difference to another content" => {
                Hash([1; 32])
            }
            _ => Hash(root.finish(LARGE).ok()?),
        };
        self.say(&PeerMessage::ContentEnd { root }).await
    }
}

impl Talk {
    async fn difference(&mut self, plays: &str, asked: &FetchRequest, base: Base) -> Option<()> {
        let header = ContentHeader {
            version: asked.at_least,
            size: LARGE,
            mtime: mtime(),
            attempt: 1,
        };
        let follows = ContentAnswer::Follows(header);
        self.say(&PeerMessage::Content(follows)).await?;
        let refine = |from, to| PeerMessage::Refine {
            stretches: vec![(from, to)],
        };
        let beyond = Copy {
            at: 0,
            from: base.len,
            len: 1,
        };
        let copies = match plays {
            "stretches beyond the base" => return self.say(&refine(0, base.len + 4096)).await,
            "a stretch backwards" => return self.say(&refine(8192, 4096)).await,
            "stretches twice" => {
                self.say(&refine(0, 32 << 10)).await?;
                return self.say(&refine(0, 32 << 10)).await;
            }
            "copies without end" => {
                let bytes = u64::MAX;
                return self.say(&PeerMessage::Difference { bytes }).await;
            }
            "copies that are noise" => vec![0xff; 40],
            "copies beyond the base" => encode_copies(&[beyond]),
            _ => encode_copies(&[]),
        };
        let bytes = copies.len() as u64;
        self.say(&PeerMessage::Difference { bytes }).await?;
        self.frame(kind::COPIES, copies).await?;
        match plays {
            "a literal of nothing" => return self.frame(kind::LITERAL, Vec::new()).await,
            "literals without end" => loop {
                self.frame(kind::LITERAL, vec![7; RANGE_BYTES]).await?;
            },
            "no literals" => {}
            _ => {
                for _ in 0..RANGES {
                    self.frame(kind::LITERAL, vec![7; RANGE_BYTES]).await?;
                }
            }
        }
        let root = Hash([1; 32]);
        self.say(&PeerMessage::ContentEnd { root }).await
    }
}

/// Serves one stream.
async fn serve(stage: Arc<Mutex<Stage>>, mut talk: Talk) -> Option<()> {
    let first = hear(&mut talk.reader).await?;
    match first {
        PeerMessage::Subscribe(asked) => talk.subscription(&asked, &stage).await,
        PeerMessage::Fetch(asked) => talk.fetch(Stage::enter(&stage), &asked).await,
        PeerMessage::FetchDifference(asked, base) => {
            talk.difference(Stage::enter(&stage), &asked, base).await?;
            // What it signs is not of interest.
            while talk.reader.next().await.is_ok_and(|frame| frame.is_some()) {}
            Some(())
        }
        _ => None,
    }
}

/// Takes all connections of the member, and all their streams.
async fn accept(transport: Arc<dyn Transport>, stage: Arc<Mutex<Stage>>) {
    while let Some(connection) = transport.accept().await {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            while let Ok((send, recv)) = connection.accept().await {
                let talk = Talk {
                    writer: FrameWriter::new(send).with_max_payload(64 << 20),
                    reader: FrameReader::new(recv),
                };
                tokio::spawn(serve(Arc::clone(&stage), talk));
            }
        });
    }
}

struct Bed {
    cluster: Cluster,
    member: Member,
    stage: Arc<Mutex<Stage>>,
    edge: PathBuf,
    outside: PathBuf,
    origin: PathBuf,
    more: PathBuf,
}

/// The job `site` from `evil` to `edge`, and `other` from the honest `origin` to `edge`.
fn start() -> Bed {
    let mut cluster = Cluster::start();
    let origin = cluster.space.folder("origin");
    let inside = cluster.space.folder("inside");
    let [edge, more, outside] = ["edge", "more", "outside"].map(|name| inside.join(name));
    for folder in [&edge, &more, &outside] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(outside.join("canary"), "alive").unwrap();
    fs::write(origin.join("file"), "begin").unwrap();
    cluster.agent("origin", &origin);
    cluster.agent_in("edge", "eu/one", &[&edge, &more]);
    let nowhere = cluster.space.plain_folder("nowhere");
    let address = cluster.member("evil", &nowhere);
    let root = nowhere.to_str().unwrap().to_owned();
    let member = Member::new(&cluster, "evil", &address, vec![root]);
    let stage = Arc::new(Mutex::new(Stage::default()));
    let transport: Arc<dyn Transport> = Arc::clone(&member.transport) as _;
    member.runtime.spawn(accept(transport, Arc::clone(&stage)));
    cluster.job("other", ("origin", &origin), &[("edge", &more)]);
    let settings = "[retry]\nfirst = \"300ms\"\nmost = \"300ms\"";
    let site = job_file("site", ("evil", &nowhere), &[("edge", &edge)], settings);
    cluster.apply(&site, &[]).expect(0);
    cluster.wait("other");
    Bed {
        cluster,
        member,
        stage,
        edge,
        outside,
        origin,
        more,
    }
}

impl Bed {
    fn plays(&self, plays: &'static str) {
        self.stage.lock().unwrap().plays = plays;
    }

    fn met(&self, plays: &str) -> u32 {
        let met = &self.stage.lock().unwrap().met;
        met.get(plays).copied().unwrap_or_default()
    }

    /// The target's error, and why objects are parked.
    fn told(&self) -> (String, String) {
        let status = self.cluster.json("job status site");
        let target = &status["targets"][0];
        let error = target["last_error"].as_str().unwrap_or_default();
        (error.to_owned(), target["parked"].to_string())
    }

    /// Waits until the target says what it must of a misbehaviour.
    #[track_caller]
    fn wait_told(&self, evil: &str, shows: Shows) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (error, parked) = self.told();
            let told = match shows {
                Error(text) => error.contains(text),
                Parked(text) => parked.contains(text),
            };
            if told && self.met(evil) > 0 {
                return;
            }
            let met = self.met(evil);
            assert!(
                Instant::now() < deadline,
                "{evil:?}, met {met} times, is not told as {shows:?}: {error:?}, {parked}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.edge.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() && entry.file_name() != ".cdsync" {
                    folders.push(path.clone());
                }
                found.push(path.strip_prefix(&self.edge).unwrap().to_owned());
            }
        }
        found.sort();
        found
    }

    #[track_caller]
    fn assert_unharmed(&self, what: &str) {
        let outside: Vec<_> = fs::read_dir(&self.outside).unwrap().collect();
        assert_eq!(outside.len(), 1, "{what}: {outside:?}");
        let canary = fs::read(self.outside.join("canary")).unwrap();
        assert_eq!(canary, b"alive", "{what}");
        let beside: Vec<_> = fs::read_dir(self.outside.parent().unwrap())
            .unwrap()
            .collect();
        assert_eq!(beside.len(), 3, "{what}: {beside:?}");
        assert_eq!(
            fs::read(self.edge.join("folder/kept")).unwrap(),
            b"x",
            "{what}"
        );
    }

    /// What evil there was is taken back by the source, which is honest again.
    fn recover(&self, what: &str) {
        self.plays(HONESTLY);
        self.stage.lock().unwrap().met.remove(HONESTLY);
        let honest = [".cdsync", "folder", "folder/kept"].map(PathBuf::from);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (met, told, names) = (self.met(HONESTLY), self.told(), self.names());
            if met > 0 && told.1 == "[]" && names == honest {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "after {what:?}, met {met} times since: {names:?}, {}, made {:?}",
                self.cluster.json("job status site"),
                self.stage.lock().unwrap().made
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut stage = self.stage.lock().unwrap();
        (stage.made, stage.flood) = (None, 0);
    }
}

/// Proves that whatever a source of a job sends, a target takes nothing that its log cannot have, and
/// says what it was; what it takes stays in its root; another job of the same target goes on; and the
/// same job does as soon as its source is honest again.
#[test]
fn evil_sources_are_refused() {
    let mut bed = start();
    bed.plays(HONESTLY);
    let kept = bed.edge.join("folder/kept");
    wait_until(PATIENCE, "the honest part", || kept.exists());
    for (evil, shows) in EVILS {
        if is_of_differences(evil) {
            fs::write(bed.edge.join("evil"), vec![5; 2 << 20]).unwrap();
        }
        bed.plays(evil);
        bed.wait_told(evil, *shows);
        bed.assert_unharmed(evil);
        if is_of_differences(evil) {
            // It is nobody's, and the source knows nothing of it.
            fs::remove_file(bed.edge.join("evil")).unwrap();
        }
        bed.recover(evil);
        let text = format!("after {evil}");
        fs::write(bed.origin.join("file"), &text).unwrap();
        wait_until(PATIENCE, &text, || {
            fs::read(bed.more.join("file")).is_ok_and(|found| found == text.as_bytes())
        });
    }
    drop(bed.member);
    assert_bounded(&mut bed.cluster, &["edge", "origin", "master"]);
}
