//! Jobs from their declaration to the fence.

use axum::http::{Method, StatusCode};
use cdsync_core::ids::JobId;
use cdsync_core::ledger::object::Seq;
use cdsync_core::wire::{
    Adopt, AgentMessage, Answer, Ask, Epoch, FenceAnswer, LogLine, MasterMessage, Op, Orders,
    Preview, SigningKey, Standing, TargetReport, TargetState,
};
use serde_json::{Value, json};

use super::bed::{Agent, Bed, ORIGIN, at, job, source, target};

/// Origin and edge, joined and connected.
async fn pair(bed: &Bed) -> (Agent, Agent) {
    (
        bed.agent("origin", "europe/paris").await,
        bed.agent("edge", "asia/seoul").await,
    )
}

const fn with_a_job(orders: &Orders) -> bool {
    !orders.jobs.is_empty()
}

/// The next question, with its number.
async fn question(agent: &mut Agent) -> (u64, Ask) {
    loop {
        let message = agent.next().await.expect("the connection lasts");
        if let MasterMessage::Ask { id, ask } = message {
            return (id, ask);
        }
    }
}

async fn apply(bed: &Bed, name: &str) -> Value {
    let (status, value) = bed
        .call(Method::PUT, &format!("/jobs/{name}"), job(name, false, 0))
        .await;
    assert_eq!(status, StatusCode::OK, "{value}");
    value
}

/// Proves the way of a job: declared, ordered, reported, and a fence that answers when the last
/// target claims the source's number, and not before.
#[tokio::test]
async fn a_job_runs_to_its_fence() {
    let bed = Bed::new().await;
    let (mut origin, mut edge) = pair(&bed).await;
    let applied = apply(&bed, "site").await;
    assert_eq!(applied["created"], true);
    assert_eq!(applied["missing"], json!([]));
    assert_eq!(applied["undecided"], json!(["edge"]));
    let at_origin = origin.orders(with_a_job).await;
    let at_edge = edge.orders(with_a_job).await;
    let id = at_origin.jobs[0].job;
    let order = at_edge.jobs[0].target.as_ref().unwrap();
    assert_eq!(order.upstreams[0].address, "origin:7410");
    assert_eq!(order.adopt, Adopt::Ask);
    origin.report(id, source(5), None).await;
    edge.report(id, None, Some(target(TargetState::Copying, 1)))
        .await;
    bed.until("/jobs/site", |job| job["state"] == "copying")
        .await;
    let waiting = bed.get("/jobs/site/wait?timeout_ms=20000");
    let playing = async {
        let (number, ask) = question(&mut origin).await;
        assert_eq!(ask, Ask::Fence { job: id });
        let fence = FenceAnswer {
            origin: ORIGIN,
            seq: Seq(6),
            held: Vec::new(),
            restless: Vec::new(),
        };
        let answer = AgentMessage::Answer {
            id: number,
            answer: Ok(Answer::Fence(fence)),
        };
        origin.send(&answer).await;
        origin.report(id, source(6), None).await;
        edge.report(id, None, Some(target(TargetState::Lagging, 5)))
            .await;
        bed.until("/jobs/site", |job| {
            job["targets"][0]["pending_changes"] == 1
        })
        .await;
        edge.report(id, None, Some(target(TargetState::InSync, 6)))
            .await;
    };
    let (waited, ()) = tokio::join!(waiting, playing);
    assert_eq!(waited["done"], true, "{waited}");
    assert_eq!(waited["seq"], 6);
    let status = bed.get("/jobs/site").await;
    assert_eq!(status["state"], "in-sync");
    assert_eq!(status["sources"][0]["seq"], 6);
    assert_eq!(status["targets"][0]["cursor"], 6);
}

/// Proves that a fence that is not reached says who lags, by how much and why, and that a paused
/// job does not keep anybody waiting.
#[tokio::test]
async fn a_fence_names_who_lags() {
    let bed = Bed::new().await;
    let (mut origin, edge) = pair(&bed).await;
    apply(&bed, "site").await;
    let id = origin.orders(with_a_job).await.jobs[0].job;
    origin.report(id, source(5), None).await;
    drop(edge);
    bed.until("/jobs/site", |job| {
        job["targets"][0]["state"] == "unreachable"
    })
    .await;
    let playing = async {
        let (number, _) = question(&mut origin).await;
        let fence = FenceAnswer {
            origin: ORIGIN,
            seq: Seq(5),
            held: Vec::new(),
            restless: Vec::new(),
        };
        origin
            .send(&AgentMessage::Answer {
                id: number,
                answer: Ok(Answer::Fence(fence)),
            })
            .await;
    };
    let (waited, ()) = tokio::join!(bed.get("/jobs/site/wait?timeout_ms=1000"), playing);
    assert_eq!(
        (&waited["done"], &waited["hopeless"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(waited["laggards"][0]["server"], "edge");
    assert!(
        waited["laggards"][0]["why"]
            .as_str()
            .unwrap()
            .contains("not connected")
    );
    bed.post("/jobs/site/pause", Value::Null).await;
    assert!(origin.orders(with_a_job).await.jobs[0].paused);
    let waited = bed.get("/jobs/site/wait?timeout_ms=20000").await;
    assert_eq!(waited["hopeless"], true);
    assert_eq!(bed.get("/jobs/site").await["state"], "paused");
    bed.post("/jobs/site/resume", Value::Null).await;
    let order = origin.orders(|orders| !orders.jobs[0].paused).await;
    assert_eq!(order.jobs[0].source.as_ref().unwrap().resume, 1);
}

/// Proves that applying a job waits for what a target's own content would suffer, and that
/// accepting reaches the target as an order.
#[tokio::test]
async fn foreign_content_waits_to_be_accepted() {
    let bed = Bed::new().await;
    let (mut origin, mut edge) = pair(&bed).await;
    let applying = bed.call(Method::PUT, "/jobs/site", job("site", false, 20_000));
    let playing = async {
        let id = origin.orders(with_a_job).await.jobs[0].job;
        edge.orders(with_a_job).await;
        origin.report(id, source(5), None).await;
        let waits = |complete| TargetReport {
            preview: Some(Preview {
                complete,
                equal: 1,
                replaced: 1,
                removed: 2,
                replaced_names: vec!["index.html".into()],
                removed_names: vec!["old".into(), "old/a\\n".into()],
                ..Preview::default()
            }),
            ..target(TargetState::AwaitingAccept, 0)
        };
        edge.report(id, None, Some(waits(false))).await;
        edge.report(id, None, Some(waits(true))).await;
    };
    let ((status, applied), ()) = tokio::join!(applying, playing);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(applied["undecided"], json!([]));
    let waiting = &applied["status"]["targets"][0];
    assert_eq!(waiting["state"], "awaiting-accept");
    assert_eq!(waiting["preview"]["removed"], 2);
    assert_eq!(waiting["preview"]["removed_names"][1], "old/a\\n");
    bed.post("/jobs/site/accept", Value::Null).await;
    let accepted = |orders: &Orders| {
        orders.jobs[0]
            .target
            .as_ref()
            .is_some_and(|target| target.adopt == Adopt::Accept)
    };
    edge.orders(accepted).await;
    let (status, value) = bed.call(Method::POST, "/jobs", job("site", false, 0)).await;
    assert_eq!(status, StatusCode::CONFLICT, "{value}");
}

/// Proves that a master that was restored from an older copy shows what it knows and orders nothing,
/// that only a master's own signature brings that about, and that it rules again once that is
/// accepted: above what its agents obey, and without the servers that had been removed.
#[tokio::test]
async fn a_restored_master_orders_nothing_until_accepted() {
    let mut bed = Bed::new().await;
    let (mut origin, edge) = pair(&bed).await;
    apply(&bed, "site").await;
    origin.orders(with_a_job).await;
    let (origin_id, edge_id, key) = (origin.server, edge.server, origin.orders_key);
    bed.stop().await;
    let copy = bed.copy();
    bed.start().await;
    let mut origin = bed.connect("origin", origin_id, key).await;
    let (status, _) = bed.call(Method::DELETE, "/servers/edge", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let later = origin.orders(|orders| orders.revoked == [edge_id]).await;
    bed.stop().await;
    bed.restore(&copy);
    bed.start().await;
    // Signed by somebody else: of no weight.
    let forged = SigningKey::from_seed(&[1; 32]).sign(&Standing {
        cluster: later.cluster,
        epoch: Epoch {
            term: u64::MAX,
            counter: 0,
        },
        instance: 99,
        revoked: vec![origin_id],
    });
    let mut origin = bed.connect_showing("origin", origin_id, key, forged).await;
    // The copy has the same term, and another instance.
    let older = origin.orders(with_a_job).await;
    assert_eq!(older.epoch.term, later.epoch.term);
    let outranked = |status: &Value| status["master"]["outranked_by_term"].as_u64();
    assert_eq!(outranked(&bed.get("/status").await), None);

    let mut origin = bed
        .connect_showing("origin", origin_id, key, later.standing.clone())
        .await;
    let status = bed.get("/status").await;
    assert_eq!(outranked(&status), Some(later.epoch.term));
    assert_eq!(status["servers"].as_array().unwrap().len(), 2);
    let accepted = bed.post("/accept-restore", Value::Null).await;
    // The first that come: there were none while it was outranked.
    let orders = origin.orders(|_| true).await;
    assert_eq!(orders.epoch.term, later.epoch.term + 1);
    assert_eq!(accepted["term"], orders.epoch.term);
    assert_eq!(orders.revoked, [edge_id]);
    let (status, _) = bed.call(Method::POST, "/accept-restore", Value::Null).await;
    assert_eq!(status, StatusCode::CONFLICT);
    bed.stop().await;
    bed.start().await;
    let status = bed.get("/status").await;
    assert_eq!(status["servers"].as_array().unwrap().len(), 1, "{status}");
}

/// Proves that a master that starts again knows its servers and jobs, orders under a higher term,
/// and takes its agents back.
#[tokio::test]
async fn a_restart_keeps_jobs_and_raises_the_term() {
    let mut bed = Bed::new().await;
    let (mut origin, edge) = pair(&bed).await;
    apply(&bed, "site").await;
    let before = origin.orders(with_a_job).await;
    bed.post("/jobs/site/run", Value::Null).await;
    bed.stop().await;
    drop((
        origin.connection.closed().await,
        edge.connection.closed().await,
    ));
    bed.start().await;
    let status = bed.get("/status").await;
    assert_eq!(status["servers"].as_array().unwrap().len(), 2);
    assert_eq!(status["jobs"][0]["name"], "site");
    let mut origin = bed
        .connect("origin", origin.server, origin.orders_key)
        .await;
    let after = origin.orders(with_a_job).await;
    assert_eq!(after.epoch.term, before.epoch.term + 1);
    assert_ne!(after.instance, before.instance, "each run is told apart");
    assert_eq!(after.jobs[0].job, before.jobs[0].job);
    assert_eq!(after.jobs[0].source.as_ref().unwrap().run, 1);
    let (status, _) = bed.call(Method::DELETE, "/jobs/site", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    origin.orders(|orders| orders.jobs.is_empty()).await;
    bed.stop().await;
    bed.start().await;
    assert_eq!(bed.get("/jobs").await, json!([]));
}

fn line(number: u64, ms: u64, path: &str) -> LogLine {
    LogLine {
        number,
        at: at(ms),
        op: Op::Create,
        path: path.into(),
        detail: String::new(),
        latency_ms: None,
        seq: Seq(number),
    }
}

/// Answers one question for log lines, as an agent with these lines does.
async fn answer_log(agent: &mut Agent, job: JobId, lines: &[LogLine]) {
    let (id, ask) = question(agent).await;
    let Ask::Log {
        job: asked,
        after,
        limit,
    } = ask
    else {
        panic!("{ask:?}")
    };
    assert_eq!(asked, job);
    let limit = usize::try_from(limit).unwrap();
    let mut found: Vec<LogLine> = lines
        .iter()
        .filter(|line| line.number > after)
        .cloned()
        .collect();
    if after == 0 {
        found.drain(..found.len().saturating_sub(limit));
    }
    found.truncate(limit);
    agent
        .send(&AgentMessage::Answer {
            id,
            answer: Ok(Answer::Log(found)),
        })
        .await;
}

/// Proves that the log merges the servers' lines by time, goes on where the cursor says, and begins
/// anew with an agent whose numbers did.
#[tokio::test]
async fn the_log_merges_and_goes_on() {
    let bed = Bed::new().await;
    let (mut origin, mut edge) = pair(&bed).await;
    apply(&bed, "site").await;
    let id = origin.orders(with_a_job).await.jobs[0].job;
    let paths = |page: &Value| -> Vec<String> {
        let lines = page["lines"].as_array().unwrap();
        lines
            .iter()
            .map(|line| line["path"].as_str().unwrap().to_owned())
            .collect()
    };
    let at_origin = [line(1, 10, "a"), line(2, 30, "b")];
    let at_edge = [line(1, 20, "a")];
    let (page, (), ()) = tokio::join!(
        bed.get("/jobs/site/log"),
        answer_log(&mut origin, id, &at_origin),
        answer_log(&mut edge, id, &at_edge),
    );
    assert_eq!(paths(&page), ["a", "a", "b"]);
    assert_eq!(page["lines"][1]["server"], "edge");
    // The origin's agent started anew: its first line is number 1 again.
    let next = format!("/jobs/site/log?cursor={}", page["cursor"].as_str().unwrap());
    let restarted = [line(1, 50, "c")];
    let at_edge = [line(1, 20, "a"), line(2, 40, "b")];
    let (page, (), ()) = tokio::join!(
        bed.get(&next),
        async {
            for _ in 0..3 {
                answer_log(&mut origin, id, &restarted).await;
            }
        },
        answer_log(&mut edge, id, &at_edge),
    );
    assert_eq!(paths(&page), ["b", "c"]);
    let explaining = bed.get("/jobs/site/explain?path=YS9i");
    let sentence = |text: &str| Ok(Answer::Explain(vec![text.to_owned()]));
    let playing = async {
        let (number, ask) = question(&mut origin).await;
        assert_eq!(
            ask,
            Ask::Explain {
                job: id,
                path: b"a/b".to_vec()
            }
        );
        origin
            .send(&AgentMessage::Answer {
                id: number,
                answer: sentence("carried"),
            })
            .await;
        let (number, _) = question(&mut edge).await;
        let refused = Err("not known".to_owned());
        edge.send(&AgentMessage::Answer {
            id: number,
            answer: refused,
        })
        .await;
    };
    let (explained, ()) = tokio::join!(explaining, playing);
    assert_eq!(explained["servers"][0]["role"], "source");
    assert_eq!(explained["servers"][0]["lines"][0], "carried");
    assert_eq!(explained["servers"][1]["error"], "not known");
}
