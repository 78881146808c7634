//! Golden bytes and refusals.

use proptest::prelude::*;

use super::*;
use crate::coalescer::{MassDelete, TooMuch};
use crate::filter::FilterSpec;
use crate::ids::{IncarnationId, JobId, Label, ObjectId, OriginId, ServerId};
use crate::job::{Mode, RootPath, Settings};
use crate::ledger::loss::{Loss, Losses};
use crate::ledger::object::{Content, Hash, Kind, Metadata, ObjectState, Seq, Version};
use crate::ledger::record::{NameState, RECORD_MAX_ITEMS, Record};
use crate::ledger::trim::Kept;
use crate::ledger::xattrs::Xattrs;
use crate::path::{Name, RelPath};
use crate::time::{Hlc, Timestamp, WallMillis};

/// Proves that a body of another version, a cut one and one with bytes behind it are refused.
#[test]
fn bodies_are_exact() {
    let body = encode(&PeerMessage::Credit { bytes: 300 });
    assert_eq!(
        decode::<PeerMessage>(&body),
        Ok(PeerMessage::Credit { bytes: 300 })
    );
    assert_eq!(
        decode::<PeerMessage>(&[9, 1, 1]),
        Err(WireError::Version { version: 9 })
    );
    for bad in [&body[..body.len() - 1], &[], &[WIRE_VERSION, 200]] {
        assert!(
            matches!(decode::<PeerMessage>(bad), Err(WireError::Malformed { .. })),
            "{bad:?}"
        );
    }
    let mut long = body;
    long.push(0);
    assert!(matches!(
        decode::<PeerMessage>(&long),
        Err(WireError::Malformed { .. })
    ));
}

/// A message and its bytes: hexadecimal, annotated, each line a field.
struct Golden {
    name: &'static str,
    bytes: Vec<u8>,
    expected: &'static str,
    decodes: fn(&[u8]) -> bool,
}

impl Golden {
    fn of<T>(name: &'static str, message: &T, expected: &'static str) -> Self
    where
        T: Serialize + DeserializeOwned,
    {
        Self {
            name,
            bytes: encode(message),
            expected,
            decodes: |bytes| decode::<T>(bytes).is_ok(),
        }
    }
}

/// Takes the digits before `;` in each line.
fn plain(annotated: &str) -> String {
    annotated
        .lines()
        .filter_map(|line| line.split(';').next())
        .flat_map(str::chars)
        .filter(char::is_ascii_hexdigit)
        .collect()
}

fn shown(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const ORIGIN: OriginId = OriginId(0x11);

fn id(number: u64) -> ObjectId {
    ObjectId {
        origin: ORIGIN,
        number,
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn state(number: u64, kind: Kind, content: Content) -> ObjectState {
    ObjectState {
        id: id(number),
        kind,
        meta: Metadata {
            mode: 0o644,
            uid: 1000,
            gid: 100,
            user: b"u".to_vec(),
            group: Vec::new(),
            mtime: Timestamp { secs: -1, nanos: 5 },
            xattrs: Xattrs::new([(b"user.a".to_vec(), b"1".to_vec())]).0,
        },
        content,
        version: Version {
            origin: ORIGIN,
            incarnation: IncarnationId(0x22),
            seq: Seq(9),
            hlc: Hlc(7),
        },
        content_seq: Seq(9),
        replaces: None,
    }
}

fn record() -> Record {
    Record {
        seq: Seq(9),
        incarnation: IncarnationId(0x22),
        hlc: Hlc(7),
        names: vec![
            NameState {
                parent: id(1),
                name: name("a"),
                object: Some(id(2)),
            },
            NameState {
                parent: id(1),
                name: name("b"),
                object: None,
            },
        ],
        objects: vec![state(
            2,
            Kind::File,
            Content::Data {
                size: 3,
                hash: None,
            },
        )],
        removed: vec![id(3)],
        group: 0,
        set: 0,
        signature: Vec::new(),
    }
}

fn peer_messages() -> Vec<Golden> {
    let cursor = Cursor {
        origin: ORIGIN,
        incarnation: IncarnationId(0x22),
        seq: Seq(300),
    };
    let subscribe = Subscribe {
        job: JobId(5),
        grant: Signed::default(),
        cursor: Some(cursor),
        preview: false,
    };
    let accepted = Accepted {
        origin: ORIGIN,
        incarnation: IncarnationId(0x22),
        resumed: true,
        head: Seq(301),
        complete: false,
    };
    let tick = Tick {
        head: Seq(9),
        incarnation: IncarnationId(0x22),
        bytes: 128,
        at: WallMillis(1000),
        complete: true,
    };
    let fetch = FetchRequest {
        job: JobId(5),
        grant: Signed::default(),
        object: id(2),
        at_least: Seq(9),
    };
    let header = ContentHeader {
        version: Seq(9),
        size: 300,
        mtime: Timestamp { secs: 1, nanos: 2 },
        attempt: 1,
    };
    vec![
        Golden::of(
            "subscribe",
            &PeerMessage::Subscribe(subscribe),
            "01 00        ; version, kind
             05           ; job
             00 00        ; grant: payload, signature
             01 11 22 ac02; cursor: there, origin, incarnation, seq
             00           ; preview",
        ),
        Golden::of(
            "credit",
            &PeerMessage::Credit { bytes: 300 },
            "01 01 ; version, kind
             ac02  ; bytes",
        ),
        Golden::of(
            "accepted",
            &PeerMessage::Accepted(accepted),
            "01 02    ; version, kind
             11 22    ; origin, incarnation
             01       ; resumed
             ad02 00  ; head, complete",
        ),
        Golden::of(
            "tick",
            &PeerMessage::Tick(tick),
            "01 03       ; version, kind
             09 22       ; head, incarnation
             8001 e807   ; bytes, at
             01          ; complete",
        ),
        Golden::of(
            "fetch",
            &PeerMessage::Fetch(fetch.clone()),
            "01 04    ; version, kind
             05 00 00 ; job, grant
             11 02 09 ; origin and number of the object, at least",
        ),
        Golden::of(
            "content follows",
            &PeerMessage::Content(ContentAnswer::Follows(header)),
            "01 05 00  ; version, kind, follows
             09 ac02   ; version of the content, size
             02 02     ; mtime: seconds (zigzag), nanoseconds
             01        ; attempt",
        ),
        Golden::of(
            "content removed",
            &PeerMessage::Content(ContentAnswer::Removed { by: Seq(9) }),
            "01 05 01 09 ; version, kind, removed, by",
        ),
        Golden::of(
            "content unsettled",
            &PeerMessage::Content(ContentAnswer::Unsettled),
            "01 05 02 ; version, kind, unsettled",
        ),
        Golden::of(
            "content unreadable",
            &PeerMessage::Content(ContentAnswer::Unreadable {
                reason: "no".into(),
            }),
            "01 05 03 02 6e6f ; version, kind, unreadable, length, reason",
        ),
        Golden::of(
            "content end",
            &PeerMessage::ContentEnd {
                root: Hash([7; 32]),
            },
            "01 06 ; version, kind
             0707070707070707 0707070707070707 0707070707070707 0707070707070707",
        ),
        Golden::of("abandon", &PeerMessage::Abandon, "01 07 ; version, kind"),
        Golden::of(
            "fetch of a difference",
            &PeerMessage::FetchDifference(
                fetch.clone(),
                Base {
                    len: 300,
                    key: [7; 32],
                },
            ),
            "01 0c    ; version, kind
             05 00 00 ; job, grant
             11 02 09 ; origin and number of the object, at least
             ac02     ; length of the base
             0707070707070707 0707070707070707 0707070707070707 0707070707070707 ; key",
        ),
        Golden::of("matching", &PeerMessage::Matching, "01 0d ; version, kind"),
        Golden::of(
            "refine",
            &PeerMessage::Refine {
                stretches: vec![(1, 300)],
            },
            "01 0e 01 01 ac02 ; version, kind, count, begin, end",
        ),
        Golden::of(
            "difference",
            &PeerMessage::Difference { bytes: 300 },
            "01 0f ac02 ; version, kind, bytes of copies",
        ),
        Golden::of(
            "refused",
            &PeerMessage::Refused {
                why: RefusedWhy::Busy,
                reason: "x".into(),
            },
            "01 08 04 01 78 ; version, kind, busy, length, reason",
        ),
    ]
}

fn batches() -> Vec<Golden> {
    let here = Inline::Here {
        version: Seq(9),
        len: 3,
        hash: Hash([1; 32]),
        mtime: Timestamp { secs: 0, nanos: 1 },
    };
    let contents = vec![
        here,
        Inline::Pull,
        Inline::Sent,
        Inline::Removed { by: Seq(8) },
        Inline::Unsettled,
        Inline::Unreadable { reason: "r".into() },
    ];
    let batch = BatchHeader {
        records: vec![record()],
        contents,
        bytes: 3,
        head: Seq(12),
    };
    vec![Golden::of(
        "batch",
        &batch,
        "01 01          ; version, one record
         09 22 07       ; seq, incarnation, hlc
         02             ; names
         11 01 01 61 01 11 02 ; parent, name, object
         11 01 01 62 00 ; parent, name, nothing
         01             ; objects
         11 02 00       ; id, file
         a403 e807 64   ; mode, uid, gid
         01 75 00       ; user, no group
         01 05          ; mtime: seconds (zigzag), nanoseconds
         01 06 757365722e61 01 31 ; attributes: name, value
         01 03 00       ; data, size, hash unknown
         11 22 09 07    ; version: origin, incarnation, seq, hlc
         09 00          ; content seq, replaces nothing
         01 11 03       ; removed
         00 00 00       ; group, set, signature
         06             ; contents
         00 09 03 0101010101010101 0101010101010101 0101010101010101 0101010101010101 00 01
         01             ; pull
         02             ; sent
         03 08          ; removed by
         04             ; unsettled
         05 01 72       ; unreadable
         03 0c          ; bytes, head",
    )]
}

fn control_messages() -> Vec<Golden> {
    let hello = Hello {
        program: "p".into(),
        address: "h:1".into(),
        roots: vec!["/r".into()],
        standing: Signed::default(),
        watching: "w".into(),
    };
    let parked = ParkedReport {
        path: "a".into(),
        reason: "b".into(),
        since: WallMillis(1),
        attempts: 2,
        next_try: WallMillis(3),
    };
    let mut acl = Losses::NONE;
    acl.add(Loss::Acl);
    let target = TargetReport {
        state: TargetState::InSync,
        upstream: Some(ServerId(6)),
        resume: 2,
        origin: ORIGIN,
        claim: Seq(7),
        head: Seq(8),
        pending_bytes: 9,
        oldest_pending_ms: 10,
        parked_count: 1,
        parked: vec![parked],
        preview: None,
        last_error: None,
        trash: TrashReport {
            entries: 1,
            bytes: 2,
            oldest: Some(WallMillis(3)),
            trouble: None,
        },
        drift: DriftReport {
            count: 4,
            names: vec!["d".into()],
            kept: 5,
            alert: true,
        },
        losses: LossReport {
            count: 1,
            reasons: vec![(Loss::Acl, 1)],
            first: vec![LostReport {
                path: "l".into(),
                losses: acl,
            }],
        },
    };
    let source = SourceReport {
        state: SourceState::Watching,
        origin: ORIGIN,
        head: Seq(9),
        run_done: (1, Seq(2)),
        resume: 3,
        held_count: 4,
        held: vec!["h".into()],
        gap_count: 1,
        gaps: vec![GapReport {
            path: "g".into(),
            since: WallMillis(5),
        }],
        doubts: 6,
        listed: 7,
        scanned: Some(WallMillis(8)),
        deletes: Some(MassDelete {
            why: TooMuch::Beyond,
            files: 1,
            gone: 2,
            origin: ORIGIN,
            after: Seq(3),
            upto: Seq(4),
            held: 5,
            names: vec![RelPath::new(b"d".to_vec()).unwrap()],
        }),
        last_error: None,
        log: Kept {
            start: Seq(4),
            bytes: 3,
        },
    };
    let report = Report {
        epoch: Epoch::default(),
        jobs: vec![JobReport {
            job: JobId(5),
            source: Some(source),
            target: Some(target),
        }],
    };
    let fence = FenceAnswer {
        origin: ORIGIN,
        seq: Seq(9),
        held: vec!["f".into()],
        restless: vec!["g".into()],
    };
    let answer = AgentMessage::Answer {
        id: 1,
        answer: Ok(Answer::Fence(fence)),
    };
    let renew = AgentMessage::Renew { csr: "c".into() };
    let welcome = MasterMessage::Welcome { now: WallMillis(1) };
    let renewed = MasterMessage::Renewed {
        certificate: "c".into(),
    };
    let claimed = MasterMessage::Claimed(vec![ClaimedByAll {
        job: JobId(5),
        origin: ORIGIN,
        upto: Seq(9),
    }]);
    let ask = MasterMessage::Ask {
        id: 1,
        ask: Ask::Explain {
            job: JobId(5),
            path: vec![0xff],
        },
    };
    vec![
        Golden::of(
            "hello",
            &AgentMessage::Hello(hello),
            "01 00 01 70 03 683a31 01 02 2f72 ; version, kind, program, address, roots
             00 00 01 77                    ; standing, watching",
        ),
        Golden::of(
            "report",
            &AgentMessage::Report(report),
            "01 01 00 00 01 05    ; version, kind, epoch, jobs, job
             01 01 11 09 01 02       ; source: watching, origin, head, run
             03 04 01 01 68          ; resume, held, the first of it
             01 01 01 67 05 06 07    ; gaps, the first: path, since; doubts, listed
             01 08                   ; scanned
             01 01 01 02 11 03 04    ; deletes: why, files, gone, origin, after, up to
             05 01 01 64 00          ; held, names; no error
             04 03                   ; log: start, bytes
             01 03 01 06 02 11       ; target: in sync, upstream, resume, origin
             07 08 09 0a 01          ; claim, head, pending bytes, oldest, parked
             01 01 61 01 62 01 02 03 ; path, reason, since, attempts, next try
             00 00                   ; preview, last error
             01 02 01 03 00          ; trash: entries, bytes, oldest, trouble
             04 01 01 64 05 01       ; drift: count, names, kept, alert
             01 01 02 01 01 01 6c 04 ; losses: count, reasons, first",
        ),
        Golden::of(
            "answer",
            &answer,
            "01 02 01 00 00 11 09 01 01 66   ; version, kind, id, ok, fence, origin, seq, held
             01 01 67                        ; never at rest",
        ),
        Golden::of("renew", &renew, "01 03 01 63 ; version, kind, request"),
        Golden::of("welcome", &welcome, "01 00 01 ; version, kind, now"),
        Golden::of(
            "orders",
            &MasterMessage::Orders(Signed::default()),
            "01 01 00 00 ; version, kind, payload, signature",
        ),
        Golden::of(
            "ask",
            &ask,
            "01 02 01 02 05 01 ff ; version, kind, id, explain, job, path",
        ),
        Golden::of(
            "renewed",
            &renewed,
            "01 03 01 63 ; version, kind, certificate",
        ),
        Golden::of(
            "claimed",
            &claimed,
            "01 04 01 05 11 09 ; version, kind, jobs, job, origin, up to",
        ),
    ]
}

fn signed_and_enrolment() -> Vec<Golden> {
    let grant = Grant {
        cluster: 1,
        job: JobId(2),
        holder: ServerId(3),
        epoch: Epoch {
            term: 4,
            counter: 5,
        },
        until: WallMillis(6),
    };
    let orders = Orders {
        cluster: 1,
        server: ServerId(2),
        epoch: Epoch {
            term: 3,
            counter: 4,
        },
        instance: 5,
        issued: WallMillis(6),
        lease_until: WallMillis(7),
        jobs: vec![JobOrder {
            job: JobId(8),
            name: Label::new("j").unwrap(),
            mode: Mode::Realtime,
            filter: FilterSpec {
                include: vec!["i".into()],
                exclude: vec![],
            },
            paused: false,
            settings: Settings::default(),
            source: Some(SourceOrder {
                root: RootPath::new("/s").unwrap(),
                run: 1,
                resume: 2,
                decision: Decision::Accept,
            }),
            target: Some(TargetOrder {
                root: RootPath::new("/t").unwrap(),
                upstreams: vec![Upstream {
                    server: ServerId(3),
                    name: Label::new("u").unwrap(),
                    address: "a".into(),
                }],
                adopt: Adopt::Accept,
                resume: 3,
                restore: Some(Restore {
                    origin: ORIGIN,
                    after: Seq(4),
                    upto: Seq(5),
                }),
                accepts: 4,
                grant: Signed::default(),
            }),
        }],
        revoked: vec![ServerId(4)],
        standing: Signed::default(),
    };
    let request = JoinRequest {
        secret: vec![1, 2],
        csr: "c".into(),
        address: "a".into(),
        program: "p".into(),
    };
    let refused = JoinReply::Refused { reason: "r".into() };
    vec![
        Golden::of(
            "grant",
            &grant,
            "01 01 02 03 04 05 06 ; version, cluster, job, holder, epoch, until",
        ),
        Golden::of(
            "orders body",
            &orders,
            "01 01 02 03 04 05 06 07 ; version, cluster, server, epoch, instance, issued, lease
             01 08 01 6a 00          ; jobs, job, name, realtime
             01 01 69 00 00 8827     ; include, exclude, paused; settings: max age
             01 8088b2a002 8080808004 ; durability, log: age, bytes
             00 8088b2a002 0a 00     ; on delete, trash: age, percent, bytes
             00 e807 e0d403 14       ; drift, retry: first, most, jitter
             32 e807 e0d403 00 00    ; guard: percent, least, within; unsettled, owners
             01 01 00 00 80b89929    ; specials, adopt check, scan every
             01 02 2f73 01 02 01     ; source: root, run, resume, decision
             01 02 2f74              ; target: root
             01 03 01 75 01 61 01    ; upstreams: server, name, address; adopt
             03 01 11 04 05 04 00 00 ; resume, restore: origin, after, up to; accepts, grant
             01 04 00 00             ; revoked, standing",
        ),
        Golden::of(
            "join request",
            &request,
            "01 02 0102 01 63 01 61 01 70 ; version, secret, request, address, program",
        ),
        Golden::of(
            "join refused",
            &refused,
            "01 01 01 72 ; version, refused, reason",
        ),
    ]
}

fn comparisons() -> Vec<Golden> {
    let snapshot = Snapshot {
        origin: ORIGIN,
        incarnation: IncarnationId(0x22),
        at: Seq(300),
        bytes: 128,
        files: 7,
        why: CompareWhy::Behind,
        key: [9; 32],
    };
    let ask = PeerMessage::Compare;
    let range = CompareAsk::Range {
        after: Vec::new(),
        to: vec![5],
        buckets: vec![[1; 8]],
    };
    let ranges = CompareAnswer::Ranges(vec![RangeDigest {
        to: vec![6],
        sum: [2; 16],
    }]);
    let elements = CompareAnswer::Range {
        differing: 5,
        elements: vec![([3; 8], 2)],
    };
    let folder = Compared {
        state: state(2, Kind::Folder, Content::None),
        names: vec![(1, name("a"))],
    };
    vec![
        Golden::of(
            "snapshot",
            &PeerMessage::Snapshot(snapshot),
            "01 09      ; version, kind
             11 22      ; origin, incarnation
             ac02 8001  ; at, bytes
             07 00      ; files, why
             0909090909090909 0909090909090909 0909090909090909 0909090909090909",
        ),
        Golden::of(
            "compare ranges",
            &ask(CompareAsk::Ranges { after: vec![1, 2] }),
            "01 0a 00 02 0102 ; version, kind, ranges, length, after",
        ),
        Golden::of(
            "compare a range",
            &ask(range),
            "01 0a 01 00 01 05   ; version, kind, range, after, to
             01 0101010101010101 ; parts",
        ),
        Golden::of(
            "compare objects",
            &ask(CompareAsk::Objects {
                numbers: vec![1, 300],
            }),
            "01 0a 02 02 01 ac02 ; version, kind, objects, count, numbers",
        ),
        Golden::of(
            "compare done",
            &ask(CompareAsk::Done),
            "01 0a 03 ; version, kind, done",
        ),
        Golden::of(
            "compared ranges",
            &PeerMessage::Compared(ranges),
            "01 0b 00 01 01 06 ; version, kind, ranges, count, to
             0202020202020202 0202020202020202",
        ),
        Golden::of(
            "compared range",
            &PeerMessage::Compared(elements),
            "01 0b 01 05            ; version, kind, range, parts that differ
             01 0303030303030303 02 ; names: hash, object",
        ),
        Golden::of(
            "compared objects",
            &PeerMessage::Compared(CompareAnswer::Objects(vec![None, Some(folder)])),
            "01 0b 02 02 00 01 ; version, kind, objects, count, nothing, something
             11 02 01          ; id, folder
             a403 e807 64      ; mode, uid, gid
             01 75 00          ; user, no group
             01 05             ; mtime: seconds (zigzag), nanoseconds
             01 06 757365722e61 01 31 ; attributes: name, value
             00                ; no content
             11 22 09 07       ; version: origin, incarnation, seq, hlc
             09 00             ; content seq, replaces nothing
             01 01 01 61       ; names: count, folder, name",
        ),
    ]
}

fn all() -> Vec<Golden> {
    let mut all = peer_messages();
    all.extend(comparisons());
    all.extend(batches());
    all.extend(control_messages());
    all.extend(signed_and_enrolment());
    all
}

/// Proves that every message has the bytes that it had when it was first released.
#[test]
fn golden_bytes() {
    let mut wrong = Vec::new();
    for golden in all() {
        let bytes = shown(&golden.bytes);
        if bytes != plain(golden.expected) {
            wrong.push(format!("{}: {bytes}", golden.name));
        }
        assert!((golden.decodes)(&golden.bytes), "{}", golden.name);
    }
    assert!(
        wrong.is_empty(),
        "other bytes than ever:\n{}",
        wrong.join("\n")
    );
}

/// Proves that a batch cannot claim more contents than memory should hold: one byte each would
/// become eighty.
#[test]
fn contents_of_a_batch_are_bounded() {
    let batch = |count| BatchHeader {
        records: Vec::new(),
        contents: vec![Inline::Sent; count],
        bytes: 0,
        head: Seq(0),
    };
    let most = encode(&batch(BATCH_MAX_CONTENTS));
    assert!(decode::<BatchHeader>(&most).is_ok());
    let more = encode(&batch(BATCH_MAX_CONTENTS + 1));
    assert!(decode::<BatchHeader>(&more).is_err());
}

/// Proves that a message whose many tiny parts would take far more memory than its bytes is refused,
/// whichever list they are in, and that the largest record there may be is not.
#[test]
fn small_messages_stay_small_in_memory() {
    let header = |records: Vec<Record>| BatchHeader {
        records,
        contents: Vec::new(),
        bytes: 0,
        head: Seq(0),
    };
    let empty = Record {
        names: Vec::new(),
        objects: Vec::new(),
        ..record()
    };
    let largest = Record {
        names: vec![record().names[0].clone(); RECORD_MAX_ITEMS],
        objects: vec![state(2, Kind::Folder, Content::None); 2 * RECORD_MAX_ITEMS],
        removed: vec![id(3); RECORD_MAX_ITEMS],
        ..record()
    };
    let decodes = |records| decode::<BatchHeader>(&encode(&header(records))).is_ok();
    assert!(decodes(vec![largest.clone()]));
    assert!(decodes(vec![empty.clone(); BATCH_MAX_RECORDS]));
    assert!(!decodes(vec![empty.clone(); BATCH_MAX_RECORDS + 1]));
    assert!(!decodes(vec![largest.clone(); 8]), "lists count together");
    let mut more_names = largest.clone();
    more_names.names.push(record().names[0].clone());
    let mut more_objects = largest.clone();
    let folder = state(2, Kind::Folder, Content::None);
    more_objects.objects.push(folder.clone());
    let mut more_removed = largest;
    more_removed.removed.push(id(3));
    let mut signature = empty.clone();
    signature.signature = vec![0; 65];
    let mut xattrs = empty;
    let mut dressed = folder;
    dressed.meta.xattrs = Xattrs::unchecked(vec![(Vec::new(), Vec::new()); 2_000]);
    xattrs.objects.push(dressed);
    for bad in [more_names, more_objects, more_removed, signature, xattrs] {
        assert!(!decodes(vec![bad]));
    }
    let answer = |lines: usize| AgentMessage::Answer {
        id: 1,
        answer: Ok(Answer::Explain(vec![String::new(); lines])),
    };
    assert!(decode::<AgentMessage>(&encode(&answer(1_000))).is_ok());
    assert!(decode::<AgentMessage>(&encode(&answer(100_000))).is_err());
}

/// Proves that no list of a report makes many times of its bytes in memory, and that what names and
/// reasons it has come out safe to show.
#[test]
fn reports_are_bounded() {
    let gap = GapReport {
        path: "a\nb".to_owned(),
        since: WallMillis(0),
    };
    let source = SourceReport {
        gaps: vec![gap; 20],
        ..SourceReport::default()
    };
    let taken: SourceReport = decode(&encode(&source)).unwrap();
    assert_eq!(taken.gaps[19].path, "a\\nb");
    let deletes = MassDelete {
        why: TooMuch::Beyond,
        files: 1,
        gone: 1,
        origin: ORIGIN,
        after: Seq(1),
        upto: Seq(1),
        held: 1,
        names: vec![RelPath::root(); 100_000],
    };
    let many_gaps = SourceReport {
        gaps: vec![source.gaps[0].clone(); 100_000],
        ..source.clone()
    };
    let many_names = SourceReport {
        deletes: Some(deletes),
        ..source
    };
    for many in [many_gaps, many_names] {
        assert!(decode::<SourceReport>(&encode(&many)).is_err());
    }
    let drift = |names| DriftReport {
        names,
        ..DriftReport::default()
    };
    let few: DriftReport = decode(&encode(&drift(vec!["\x1b".to_owned()]))).unwrap();
    assert_eq!(few.names, ["\\u{1b}"]);
    assert!(decode::<DriftReport>(&encode(&drift(vec![String::new(); 100_000]))).is_err());
    let trash = TrashReport {
        trouble: Some("a\nb".to_owned()),
        ..TrashReport::default()
    };
    let taken: TrashReport = decode(&encode(&trash)).unwrap();
    assert_eq!(taken.trouble.as_deref(), Some("a\\nb"));
}

/// Proves that what a peer writes for people comes out on one line, cut, and cannot speak to a
/// terminal; and that plain text comes out as it is.
#[test]
fn texts_of_peers_are_made_safe() {
    let told = |reason: &str| {
        let refused = PeerMessage::Refused {
            why: RefusedWhy::Busy,
            reason: reason.to_owned(),
        };
        match decode(&encode(&refused)) {
            Ok(PeerMessage::Refused { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    let plain = "no room: a\\nb, \u{e9}";
    assert_eq!(told(plain), plain);
    let evil = told("x\n2026 ERROR all is lost\r\x1b[2J\u{202e}");
    assert!(!evil.contains(crate::path::is_hidden), "{evil:?}");
    for long in ["\u{e9}".repeat(100_000), "\n".repeat(100_000)] {
        let cut = told(&long);
        assert!(cut.len() <= TEXT_MAX_BYTES && cut.len() > TEXT_MAX_BYTES - 4);
        assert_eq!(told(&cut), cut, "what is safe stays");
    }
}

/// Proves that no message passes cut short, whatever the place, and that none panics.
#[test]
fn prefixes_are_refused() {
    for golden in all() {
        for end in 0..golden.bytes.len() {
            assert!(
                !(golden.decodes)(&golden.bytes[..end]),
                "{} cut to {end} bytes",
                golden.name
            );
        }
    }
}

fn decode_all(bytes: &[u8]) {
    for golden in all() {
        (golden.decodes)(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Proves that random bytes behind a valid version never panic a decoder.
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
        let mut versioned = vec![WIRE_VERSION];
        versioned.extend(bytes);
        decode_all(&versioned);
    }

    /// Proves that a valid message with some bytes bent never panics a decoder.
    #[test]
    fn bent_bytes_never_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let all = all();
        let golden = &all[which.index(all.len())];
        let mut bytes = golden.bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        (golden.decodes)(&bytes);
    }
}
