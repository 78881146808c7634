//! An evil target, towards an honest source and its other targets.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::ids::{IncarnationId, ObjectId, OriginId, ServerId};
use cdsync_core::ledger::object::Seq;
use cdsync_core::wire::{
    ContentAnswer, Cursor, FETCHES_MAX, FetchRequest, PeerMessage, RefusedWhy, Signed, Subscribe,
    encode, kind,
};
use cdsync_core::{ids::JobId, wire::JobOrder};
use cdsync_tests::{Cluster, wait_until};
use cdsync_transport::{Connection, FrameReader, FrameWriter};

use super::assert_bounded;
use crate::member::{Member, grant, hear, kept_orders, say, server_id};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long a change may take to the honest target of a source that is attacked. It takes some
/// milliseconds alone.
const PROMPT: Duration = Duration::from_secs(5);

/// How many connections are asked for: more than one server may have.
const CONNECTIONS: usize = 300;
/// How many streams of a connection.
const STREAMS: usize = 8;

struct Bed {
    cluster: Cluster,
    member: Member,
    source: PathBuf,
    edge: PathBuf,
    origin: (String, ServerId),
}

/// The job `site` from `origin` to the honest `edge` and to `evil`, and `other` to `edge` alone.
fn start() -> Bed {
    let mut cluster = Cluster::start();
    let [source, second] = ["source", "second"].map(|name| cluster.space.folder(name));
    let [edge, more] = ["edge", "more"].map(|name| cluster.space.folder(name));
    fs::write(source.join("file"), "content").unwrap();
    fs::write(source.join("large"), vec![7; 24 << 20]).unwrap();
    fs::write(second.join("file"), "of another job").unwrap();
    cluster.agent_in("origin", "eu/one", &[&source, &second]);
    cluster.agent_in("edge", "eu/one", &[&edge, &more]);
    let nowhere = cluster.space.plain_folder("nowhere");
    let address = cluster.member("evil", &nowhere);
    let root = nowhere.to_str().unwrap().to_owned();
    let member = Member::new(&cluster, "evil", &address, vec![root]);
    let targets = [("edge", &*edge), ("evil", &*nowhere)];
    cluster.job("site", ("origin", &source), &targets);
    cluster.job("other", ("origin", &second), &[("edge", &more)]);
    cluster.wait("other");
    let origin = (cluster.agent_address(2), server_id(&cluster, "origin"));
    Bed {
        cluster,
        member,
        source,
        edge,
        origin,
    }
}

impl Bed {
    fn dial(&self) -> Arc<dyn Connection> {
        self.member.dial(&self.origin.0, self.origin.1)
    }

    /// A change is at the honest target soon.
    #[track_caller]
    fn assert_prompt(&self, text: &str) {
        let began = Instant::now();
        fs::write(self.source.join("file"), text).unwrap();
        wait_until(PATIENCE, text, || {
            fs::read(self.edge.join("file")).is_ok_and(|found| found == text.as_bytes())
        });
        let took = began.elapsed();
        eprintln!("{text}: {took:?}");
        assert!(took < PROMPT, "{text}: {took:?}");
    }
}

fn subscribe(job: JobId, grant: &Signed, cursor: Option<Cursor>) -> PeerMessage {
    PeerMessage::Subscribe(Subscribe {
        job,
        grant: grant.clone(),
        cursor,
        preview: false,
    })
}

fn fetch(job: JobId, grant: &Signed, object: ObjectId, at_least: u64) -> PeerMessage {
    PeerMessage::Fetch(FetchRequest {
        job,
        grant: grant.clone(),
        object,
        at_least: Seq(at_least),
    })
}

async fn open(connection: &Arc<dyn Connection>, first: &PeerMessage) -> Option<Asked> {
    let (send, recv) = connection.open().await.ok()?;
    let (mut writer, reader) = (FrameWriter::new(send), FrameReader::new(recv));
    say(&mut writer, first).await.ok()?;
    Some(Asked { writer, reader })
}

/// A stream on which something was asked for.
struct Asked {
    writer: FrameWriter,
    reader: FrameReader,
}

async fn ask(connection: &Arc<dyn Connection>, first: &PeerMessage) -> Option<PeerMessage> {
    hear(&mut open(connection, first).await?.reader).await
}

fn why(answer: Option<PeerMessage>) -> RefusedWhy {
    match answer {
        Some(PeerMessage::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// Proves that a source answers as many fetches on one stream as it says that it does, in their
/// order, and takes no more.
#[test]
fn a_stream_carries_so_many_fetches() {
    let bed = start();
    let (_, order) = bed.member.order(&bed.cluster, "site");
    let grant = grant(&order);
    let connection = bed.dial();
    let origin = bed.member.runtime.block_on(async {
        let asked = subscribe(order.job, &grant, None);
        match ask(&connection, &asked).await {
            Some(PeerMessage::Accepted(accepted)) => accepted.origin,
            other => panic!("{other:?}"),
        }
    });
    // The root's number tells that it has no content, and those of no object that they are gone.
    let object = |number| ObjectId { origin, number };
    for count in [FETCHES_MAX, FETCHES_MAX + 1] {
        let answered = bed.member.runtime.block_on(async {
            let first = fetch(order.job, &grant, object(1 << 40), 0);
            let mut stream = open(&connection, &first).await.unwrap();
            for n in 1..count {
                let more = fetch(order.job, &grant, object((1 << 40) + n as u64), 0);
                say(&mut stream.writer, &more).await.unwrap();
            }
            stream.writer.finish().await.unwrap();
            let mut answered = 0;
            while let Some(PeerMessage::Content(ContentAnswer::Removed { .. })) =
                hear(&mut stream.reader).await
            {
                answered += 1;
            }
            answered
        });
        assert!(answered <= FETCHES_MAX);
        assert_eq!(answered == count, count == FETCHES_MAX, "{answered}");
    }
}

/// Proves that a source serves a server by a grant of the master's for that server and job alone:
/// not by another's, one for another job, a bent one, or something else that the master signed; not
/// while the job is paused; and not when the server was removed, whatever runs for it by then.
#[test]
fn grants_do_not_fail_open() {
    let mut bed = start();
    let (orders, order) = bed.member.order(&bed.cluster, "site");
    let own = grant(&order);
    let kept = kept_orders(&bed.cluster, "edge");
    let of = |name: &str| -> &JobOrder {
        let mut jobs = kept.jobs.iter();
        jobs.find(|job| job.name.as_str() == name).unwrap()
    };
    let mut bent = encode(&own);
    let at = bent.len() - 1;
    bent[at] ^= 1;
    let bent: Signed = cdsync_core::wire::decode(&bent).unwrap();
    let connection = bed.dial();
    bed.member.runtime.block_on(async {
        let connection = &connection;
        for (what, job, shown) in [
            ("another's", order.job, &grant(of("site"))),
            ("of another job", of("other").job, &grant(of("other"))),
            ("for another job", of("other").job, &own),
            ("bent", order.job, &bent),
            ("the proof of orders", order.job, &orders.standing),
            ("none", order.job, &Signed::default()),
        ] {
            let object = ObjectId::root(OriginId(1));
            for asked in [subscribe(job, shown, None), fetch(job, shown, object, 0)] {
                let answer = ask(connection, &asked).await;
                assert_eq!(why(answer), RefusedWhy::Grant, "{what}");
            }
        }
        let answer = ask(connection, &subscribe(order.job, &own, None)).await;
        assert!(
            matches!(answer, Some(PeerMessage::Accepted(_))),
            "{answer:?}"
        );
    });
    bed.cluster.cdsync(["job", "pause", "site"]).expect(0);
    let asked = subscribe(order.job, &own, None);
    wait_until(PATIENCE, "a paused job is not served", || {
        let answer = bed.member.runtime.block_on(ask(&connection, &asked));
        matches!(
            answer,
            Some(PeerMessage::Refused {
                why: RefusedWhy::NotServing,
                ..
            })
        )
    });
    bed.cluster.cdsync(["job", "resume", "site"]).expect(0);
    let mut running = None;
    wait_until(PATIENCE, "a resumed job is served", || {
        let asked = bed.member.runtime.block_on(open(&connection, &asked));
        running = asked.and_then(|mut asked| {
            let answer = bed.member.runtime.block_on(hear(&mut asked.reader));
            matches!(answer, Some(PeerMessage::Accepted(_))).then_some(asked)
        });
        running.is_some()
    });
    bed.cluster.cdsync(["server", "remove", "evil"]).expect(0);
    let mut running = running.unwrap();
    bed.member.runtime.block_on(async {
        let ended = async { while hear(&mut running.reader).await.is_some() {} };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("it ends");
    });
    let answer = bed.member.runtime.block_on(ask(&connection, &asked));
    assert!(
        matches!(answer, None | Some(PeerMessage::Refused { .. })),
        "{answer:?}"
    );
    bed.cluster.wait("other");
    assert_bounded(&mut bed.cluster, &["origin", "edge", "master"]);
}

/// Proves that requests which make no sense are answered or refused, each by itself: cursors of
/// nowhere, replayed ones, objects that are not there, versions that never were, credit without end.
#[test]
fn requests_of_nonsense_are_answered() {
    let mut bed = start();
    let (_, order) = bed.member.order(&bed.cluster, "site");
    let (job, own) = (order.job, grant(&order));
    let connection = bed.dial();
    bed.member.runtime.block_on(async {
        let first = ask(&connection, &subscribe(job, &own, None)).await;
        let Some(PeerMessage::Accepted(accepted)) = first else {
            panic!("{first:?}")
        };
        let cursor = |origin, incarnation, seq| Cursor {
            origin,
            incarnation,
            seq: Seq(seq),
        };
        for (cursor, resumed) in [
            (
                cursor(accepted.origin, accepted.incarnation, u64::MAX),
                false,
            ),
            (cursor(OriginId(3), accepted.incarnation, 1), false),
            (cursor(accepted.origin, IncarnationId(3), 1), false),
            // An old one, again and again, is as good as it ever was.
            (cursor(accepted.origin, accepted.incarnation, 1), true),
            (cursor(accepted.origin, accepted.incarnation, 1), true),
        ] {
            let answer = ask(&connection, &subscribe(job, &own, Some(cursor))).await;
            // Where a cursor leads nowhere there is only a snapshot to compare with.
            match answer {
                Some(PeerMessage::Accepted(now)) => assert_eq!(now.resumed, resumed, "{cursor:?}"),
                Some(PeerMessage::Snapshot(_)) => assert!(!resumed, "{cursor:?}"),
                _ => panic!("{answer:?}"),
            }
        }
        let object = |number| ObjectId {
            origin: accepted.origin,
            number,
        };
        for (number, at_least) in [(u64::MAX, 0), (1, 0), (2, u64::MAX), (0, u64::MAX)] {
            let answer = ask(&connection, &fetch(job, &own, object(number), at_least)).await;
            let harmless = matches!(
                answer,
                Some(
                    PeerMessage::Content(
                        ContentAnswer::Removed { .. }
                            | ContentAnswer::Unsettled
                            | ContentAnswer::Unreadable { .. }
                    ) | PeerMessage::Refused { .. }
                )
            );
            assert!(harmless, "{number} at {at_least}: {answer:?}");
        }
        let mut asked = open(&connection, &subscribe(job, &own, None))
            .await
            .unwrap();
        for _ in 0..20_000 {
            let bytes = u32::MAX;
            say(&mut asked.writer, &PeerMessage::Credit { bytes })
                .await
                .unwrap();
        }
        // What is no message ends the connection, and nothing else.
        let noise = Bytes::from_static(b"noise");
        let _ = asked.writer.write(kind::BATCH, &[noise]).await;
        let closed = async { while hear(&mut asked.reader).await.is_some() {} };
        tokio::time::timeout(PATIENCE, closed)
            .await
            .expect("it is closed");
    });
    bed.assert_prompt("after nonsense");
    assert_bounded(&mut bed.cluster, &["origin", "edge", "master"]);
}

/// Proves that a target which takes all connections, streams, subscriptions and fetches that it can
/// get, grants credit without end and reads nothing, with hundreds of connections beside that say
/// nothing at all, slows no other target, does not make the source grow, and leaves nothing behind.
#[test]
fn greedy_targets_starve_nobody() {
    let mut bed = start();
    let (_, order) = bed.member.order(&bed.cluster, "site");
    let (job, own) = (order.job, grant(&order));
    let before = bed.cluster.usage("origin");
    let silent: Vec<_> = (0..200)
        .filter_map(|_| TcpStream::connect(&bed.origin.0).ok())
        .collect();
    let greedy = |number: usize| {
        let transport = Arc::clone(&bed.member.transport);
        let (address, server) = bed.origin.clone();
        let own = own.clone();
        async move {
            let expected = cdsync_transport::PeerExpectation::agent(server);
            let connection = cdsync_transport::Transport::connect(&*transport, &address, &expected);
            let connection = connection.await.ok()?;
            let mut held = Vec::new();
            for stream in 0..STREAMS {
                let object = ObjectId {
                    origin: OriginId(number as u64),
                    number: 2,
                };
                let asked = match stream % 2 {
                    0 => subscribe(job, &own, None),
                    _ => fetch(job, &own, object, 0),
                };
                let limit = Duration::from_secs(2);
                let Ok(Some(mut asked)) =
                    tokio::time::timeout(limit, open(&connection, &asked)).await
                else {
                    break;
                };
                let bytes = u32::MAX;
                if say(&mut asked.writer, &PeerMessage::Credit { bytes })
                    .await
                    .is_err()
                {
                    break;
                }
                held.push(asked);
            }
            Some((connection, held))
        }
    };
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|number| bed.member.runtime.spawn(greedy(number)))
        .collect();
    let held = bed.member.runtime.block_on(async {
        let mut held = Vec::new();
        for task in tasks {
            held.extend(task.await.unwrap());
        }
        held
    });
    let streams: usize = held.iter().map(|(_, streams)| streams.len()).sum();
    eprintln!("{} connections with {streams} streams are held", held.len());
    assert!(streams > 100, "too few to show anything");
    for text in ["one", "two", "three"] {
        bed.assert_prompt(text);
    }
    bed.cluster.wait("other");
    assert_bounded(&mut bed.cluster, &["origin", "edge", "master"]);
    drop((held, silent));
    let member = bed.member;
    drop(member);
    wait_until(PATIENCE * 2, "what they held is given back", || {
        let now = bed.cluster.usage("origin");
        now.descriptors <= before.descriptors + 32 && now.threads <= before.threads + 24
    });
}
