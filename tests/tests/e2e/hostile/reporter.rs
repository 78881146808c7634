//! An evil agent, towards the master and whoever reads what it says.

use std::fs;
use std::time::Duration;

use cdsync_core::coalescer::{MassDelete, TooMuch};
use cdsync_core::ids::{OriginId, ServerId};
use cdsync_core::ledger::object::Seq;
use cdsync_core::ledger::trim::Kept;
use cdsync_core::path::RelPath;
use cdsync_core::time::WallMillis;
use cdsync_core::wire::{
    AgentMessage, Answer, DriftReport, Epoch, GapReport, JobReport, LogLine, LossReport, Op,
    ParkedReport, Preview, Report, SourceReport, SourceState, TargetReport, TargetState,
    TrashReport,
};
use cdsync_tests::{Cluster, job_file, wait_until};

use super::assert_bounded;
use crate::member::Member;

const PATIENCE: Duration = Duration::from_secs(30);

/// What would be a line of its own, and speak to a terminal.
const FORGED: &str = "x\nFORGED line\r\x1b[2J\u{202e}\u{9b}31m";

const MOST: u64 = u64::MAX;

fn source() -> SourceReport {
    SourceReport {
        state: SourceState::Halted {
            reason: FORGED.to_owned(),
        },
        origin: OriginId(MOST),
        head: Seq(MOST),
        run_done: (MOST, Seq(MOST)),
        resume: MOST,
        held_count: MOST,
        held: vec![FORGED.to_owned(); 40],
        gap_count: MOST,
        gaps: vec![
            GapReport {
                path: FORGED.to_owned(),
                since: WallMillis(MOST),
            };
            40
        ],
        doubts: MOST,
        listed: MOST,
        scanned: Some(WallMillis(MOST)),
        deletes: Some(MassDelete {
            why: TooMuch::Beyond,
            files: MOST,
            gone: MOST,
            origin: OriginId(MOST),
            after: Seq(MOST),
            upto: Seq(0),
            held: MOST,
            names: vec![RelPath::new(FORGED.as_bytes().to_vec()).unwrap(); 20],
        }),
        last_error: Some(FORGED.to_owned()),
        log: Kept {
            start: Seq(MOST),
            bytes: MOST,
        },
    }
}

fn target() -> TargetReport {
    let names = vec![FORGED.to_owned(); 40];
    TargetReport {
        state: TargetState::AwaitingAccept,
        upstream: Some(ServerId(MOST)),
        resume: MOST,
        origin: OriginId(MOST),
        claim: Seq(MOST),
        head: Seq(0),
        pending_bytes: MOST,
        oldest_pending_ms: MOST,
        parked_count: MOST,
        parked: vec![
            ParkedReport {
                path: FORGED.to_owned(),
                reason: FORGED.to_owned(),
                since: WallMillis(MOST),
                attempts: u32::MAX,
                next_try: WallMillis(MOST),
            };
            40
        ],
        preview: Some(Preview {
            complete: true,
            source_empty: true,
            equal: MOST,
            replaced: MOST,
            removed: MOST,
            replaced_names: names.clone(),
            removed_names: names.clone(),
        }),
        last_error: Some(FORGED.to_owned()),
        trash: TrashReport {
            entries: MOST,
            bytes: MOST,
            oldest: Some(WallMillis(MOST)),
            trouble: Some(FORGED.to_owned()),
        },
        drift: DriftReport {
            count: MOST,
            names,
            kept: MOST,
            alert: true,
        },
        losses: LossReport {
            count: MOST,
            reasons: Vec::new(),
            first: Vec::new(),
        },
    }
}

/// A cluster with an honest job `site`, and a job `evil` whose both ends are the evil server's.
fn start() -> (Cluster, Member) {
    let mut cluster = Cluster::start();
    let [one, two] = ["one", "two"].map(|name| cluster.space.folder(name));
    let [from, to] = ["from", "to"].map(|name| cluster.space.plain_folder(name));
    fs::write(one.join("file"), "content").unwrap();
    cluster.agent("origin", &one);
    cluster.agent_in("edge", "eu/one", &[&two, &to]);
    cluster.job("site", ("origin", &one), &[("edge", &two)]);
    cluster.wait("site");
    let address = cluster.member("evil", &from);
    let roots = [&from, &to].map(|root| root.to_str().unwrap().to_owned());
    let forged = [format!("/{FORGED}")];
    let roots = roots.into_iter().chain(forged).collect();
    let member = Member::new(&cluster, "evil", &address, roots);
    for (job, source, target) in [
        ("evil", ("evil", &*from), [("edge", &*to)]),
        ("evil-too", ("origin", &*one), [("evil", &*to)]),
    ] {
        let text = job_file(job, source, &target, "");
        cluster.apply(&text, &[]).expect(0);
    }
    (cluster, member)
}

/// Every command that shows what agents say.
const COMMANDS: [&[&str]; 10] = [
    &["status"],
    &["server", "list"],
    &["job", "list"],
    &["job", "status", "evil"],
    &["job", "status", "evil-too"],
    &["job", "log", "evil"],
    &["job", "explain", "evil", "file"],
    &["job", "wait", "evil", "--timeout", "1s"],
    &["job", "wait", "evil-too", "--timeout", "1s"],
    &["job", "resume", "evil"],
];

/// Proves that whatever an agent writes into its reports and answers comes out of every command,
/// and stands in every log, as text on lines of our own, with the largest numbers there are.
#[test]
fn what_an_agent_says_is_one_harmless_line() {
    let (mut cluster, member) = start();
    let (orders, evil) = member.order(&cluster, "evil");
    let (_, too) = member.order(&cluster, "evil-too");
    let line = LogLine {
        number: MOST,
        at: WallMillis(MOST),
        op: Op::Note,
        path: FORGED.to_owned(),
        detail: FORGED.to_owned(),
        latency_ms: Some(MOST),
        seq: Seq(MOST),
    };
    *member.answer.lock().unwrap() = Ok(Answer::Log(vec![line; 3]));
    member.report(Report {
        epoch: orders.epoch,
        jobs: vec![
            JobReport {
                job: evil.job,
                source: Some(source()),
                target: None,
            },
            JobReport {
                job: too.job,
                source: None,
                target: Some(target()),
            },
        ],
    });
    wait_until(PATIENCE, "the report is there", || {
        let status = cluster.json("job status evil");
        status["sources"][0]["held_count"] == MOST
    });
    let mut shown = String::new();
    for words in COMMANDS {
        let said = cluster.cdsync(words.iter().copied());
        assert!((0..=4).contains(&said.code), "{words:?}: {said:?}");
        assert!(!said.err.contains("panicked"), "{words:?}: {}", said.err);
        shown.push_str(&said.out);
        shown.push_str(&said.err);
    }
    *member.answer.lock().unwrap() = Ok(Answer::Explain(vec![FORGED.to_owned(); 3]));
    shown.push_str(&cluster.cdsync(["job", "explain", "evil", "file"]).out);
    *member.answer.lock().unwrap() = Err(FORGED.to_owned());
    let refused = cluster.cdsync(["job", "log", "evil"]);
    shown.push_str(&refused.out);
    shown.push_str(&refused.err);
    for name in ["master", "origin", "edge"] {
        shown.push_str(&cluster.log(name));
    }
    assert!(shown.contains("FORGED line"), "it was shown at all");
    for line in shown.lines() {
        assert!(!line.starts_with("FORGED"), "{line:?}");
        let hidden = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!line.contains(hidden), "{line:?}");
    }
    cluster.wait("site");
    assert_bounded(&mut cluster, &["master", "origin", "edge"]);
}

/// Proves that an agent which floods the master with the largest reports, with answers that nobody
/// asked for and with hellos, makes it neither grow nor wait, and speaks of no job but its own.
#[test]
fn floods_of_reports_leave_the_master_alone() {
    let (mut cluster, member) = start();
    let (orders, evil) = member.order(&cluster, "evil");
    let (_, site) = {
        let kept = crate::member::kept_orders(&cluster, "edge");
        let mut jobs = kept.jobs.clone().into_iter();
        let site = jobs.find(|job| job.name.as_str() == "site").unwrap();
        (kept, site)
    };
    let long = "n".repeat(4_000);
    let held = SourceReport {
        held: vec![long; 900],
        ..source()
    };
    for number in 0..100_u64 {
        let foreign = JobReport {
            job: site.job,
            source: Some(source()),
            target: Some(target()),
        };
        let own = JobReport {
            job: evil.job,
            source: Some(held.clone()),
            target: None,
        };
        member.report(Report {
            epoch: if number % 2 == 0 {
                orders.epoch
            } else {
                Epoch {
                    term: MOST,
                    counter: MOST,
                }
            },
            jobs: vec![own, foreign],
        });
        member.say(AgentMessage::Answer {
            id: number,
            answer: Ok(Answer::Explain(vec![FORGED.to_owned(); 1_000])),
        });
    }
    let status = cluster.json("job status site");
    assert_eq!(status["state"], "in-sync", "{status}");
    cluster.wait("site");
    for root in 0..20 {
        // Each takes the place of the one before.
        let address = cluster.agent_address(220 + root);
        let again = Member::new(&cluster, "evil", &address, vec![format!("/{root}")]);
        again.order(&cluster, "evil");
    }
    cluster.wait("site");
    assert_bounded(&mut cluster, &["master", "origin", "edge"]);
}
