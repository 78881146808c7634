//! The coordinator under scripted and random inputs.

use proptest::prelude::*;

use super::*;
use crate::filter::FilterSpec;
use crate::ids::OriginId;
use crate::job::{Mode, Settings};
use crate::ledger::object::Seq;
use crate::topology::tests::server;
use crate::wire::{
    Adopt, DriftReport, FenceAnswer, Grant, LossReport, Orders, Signed, SourceReport, SourceState,
    TargetReport, TargetState, TrashReport,
};

const ORIGIN: OriginId = OriginId(77);

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn spec(name: &str, mode: Mode, source: &str, targets: &[&str]) -> JobSpec {
    JobSpec {
        name: label(name),
        mode,
        sources: vec![source.parse().unwrap()],
        targets: targets.iter().map(|text| text.parse().unwrap()).collect(),
        filter: FilterSpec::default(),
        settings: Settings::default(),
    }
}

fn hello(name: &str) -> Hello {
    Hello {
        program: "test".into(),
        address: format!("{name}:7410"),
        roots: vec!["/srv".into()],
        standing: Signed::default(),
        watching: "fanotify".into(),
    }
}

/// A coordinator with an origin and three edges, all of them connected.
struct Bed {
    coordinator: Coordinator,
    ids: BTreeMap<String, ServerId>,
    now: WallMillis,
}

impl Bed {
    fn new() -> Self {
        let identity = MasterIdentity {
            cluster: 1,
            instance: 2,
            term: 3,
        };
        let key = SigningKey::from_seed(&[5; 32]);
        let mut bed = Self {
            coordinator: Coordinator::new(identity, key, [], []),
            ids: BTreeMap::new(),
            now: WallMillis(1_000_000),
        };
        for (id, name, region, group) in [
            (1, "origin", "europe", "paris"),
            (2, "edge-1", "asia", "seoul"),
            (3, "edge-2", "asia", "seoul"),
            (4, "edge-3", "asia", "tokyo"),
        ] {
            bed.coordinator
                .handle_joined(server(id, name, region, group))
                .unwrap();
            bed.ids.insert(name.to_owned(), ServerId(id));
            bed.connect(name);
        }
        bed.orders();
        bed
    }

    fn id(&self, name: &str) -> ServerId {
        self.ids[name]
    }

    fn connect(&mut self, name: &str) {
        self.coordinator
            .handle_hello(self.id(name), hello(name), self.now);
    }

    fn put(&mut self, spec: JobSpec, adopt: bool) -> Job {
        let job = self.coordinator.prepare_job(spec, JobId(9), adopt).unwrap();
        self.coordinator.handle_job(job.clone());
        job
    }

    fn job(&self, name: &str) -> Job {
        self.coordinator.job(&label(name)).unwrap().clone()
    }

    /// All orders that are due, opened.
    fn orders(&mut self) -> BTreeMap<ServerId, Orders> {
        let key = SigningKey::from_seed(&[5; 32]).verifying_key();
        let mut all = BTreeMap::new();
        while let Some(next) = self.coordinator.poll_orders(self.now) {
            let orders: Orders = next.orders.verify(&key).unwrap();
            assert_eq!((orders.server, orders.epoch), (next.server, next.epoch));
            all.insert(next.server, orders);
        }
        all
    }

    /// A report under the newest epoch.
    fn report(
        &mut self,
        name: &str,
        job: &Job,
        source: Option<SourceReport>,
        target: Option<TargetReport>,
    ) {
        let epoch = self.coordinator.epoch();
        let jobs = vec![JobReport {
            job: job.id,
            source,
            target,
        }];
        self.coordinator
            .handle_report(self.id(name), Report { epoch, jobs }, self.now);
    }
}

fn source(state: SourceState, head: u64) -> Option<SourceReport> {
    Some(SourceReport {
        state,
        origin: ORIGIN,
        head: Seq(head),
        run_done: (0, Seq(0)),
        resume: 0,
        ..SourceReport::default()
    })
}

fn target(state: TargetState, claim: u64) -> TargetReport {
    TargetReport {
        state,
        upstream: Some(ServerId(1)),
        resume: 0,
        origin: ORIGIN,
        claim: Seq(claim),
        head: Seq(claim),
        pending_bytes: 0,
        oldest_pending_ms: 0,
        parked_count: 0,
        parked: Vec::new(),
        preview: None,
        last_error: None,
        trash: TrashReport::default(),
        drift: DriftReport::default(),
        losses: LossReport::default(),
    }
}

/// Proves that a plan reaches exactly those it concerns, with a grant of their own, and that the
/// source is skipped where it is its own target.
#[test]
fn a_job_makes_orders_for_its_members() {
    let mut bed = Bed::new();
    let before = bed.coordinator.epoch();
    bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia/seoul:/srv/www", "origin:/srv/www"],
        ),
        false,
    );
    let orders = bed.orders();
    assert_eq!(
        orders.keys().copied().collect::<Vec<_>>(),
        [1, 2, 3].map(ServerId)
    );
    let origin = &orders[&ServerId(1)].jobs[0];
    assert!(origin.source.is_some() && origin.target.is_none());
    let edge = orders[&ServerId(2)].jobs[0].target.as_ref().unwrap();
    assert_eq!(edge.adopt, Adopt::Ask);
    assert_eq!(edge.upstreams.len(), 1);
    assert_eq!(edge.upstreams[0].address, "origin:7410");
    let key = SigningKey::from_seed(&[5; 32]).verifying_key();
    let grant: Grant = edge.grant.verify(&key).unwrap();
    assert_eq!((grant.holder, grant.job), (ServerId(2), JobId(9)));
    assert!(grant.epoch > before);
    assert!(bed.orders().is_empty());
}

/// Proves that only what changes a server's orders raises its epoch, that a reconnect repeats the
/// same orders, and that a lease is renewed at half of its time.
#[test]
fn epochs_rise_with_the_plan() {
    let mut bed = Bed::new();
    let job = bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["edge-1:/srv/www"],
        ),
        false,
    );
    let first = bed.orders();
    assert!(
        !first.contains_key(&ServerId(4)),
        "edge-3 has no part in it"
    );
    let epoch = bed.coordinator.epoch();
    bed.coordinator.handle_job(job.clone());
    assert_eq!(bed.coordinator.epoch(), epoch, "nothing changed");
    bed.connect("edge-1");
    let again = bed.orders();
    assert_eq!(again[&ServerId(2)].epoch, first[&ServerId(2)].epoch);
    bed.coordinator.handle_job(job.with_run());
    let run = bed.orders();
    assert_eq!(
        run.keys().copied().collect::<Vec<_>>(),
        [ServerId(1)],
        "only the source runs"
    );
    bed.now = WallMillis(bed.now.0 + 1000 * 3600 * 24 * 4);
    bed.coordinator.handle_time(bed.now);
    let renewed = bed.orders();
    assert_eq!(renewed.len(), 4);
    assert!(renewed.values().all(|orders| orders.epoch > epoch));
    assert!(renewed.values().all(|orders| orders.lease_until > bed.now));
}

/// Proves that accepting speaks of a target and its root: another root, another source or a server
/// that joins later has to be accepted anew.
#[test]
fn what_was_accepted_is_bound_to_its_root() {
    let mut bed = Bed::new();
    bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia:/srv/www"],
        ),
        true,
    );
    let adopt = |orders: &BTreeMap<ServerId, Orders>, id: u64| {
        orders[&ServerId(id)].jobs[0].target.as_ref().unwrap().adopt
    };
    assert_eq!(adopt(&bed.orders(), 2), Adopt::Accept);
    bed.coordinator
        .handle_joined(server(5, "edge-4", "asia", "tokyo"))
        .unwrap();
    bed.ids.insert("edge-4".into(), ServerId(5));
    bed.connect("edge-4");
    assert_eq!(adopt(&bed.orders(), 5), Adopt::Ask);
    bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia:/srv/other"],
        ),
        false,
    );
    assert_eq!(adopt(&bed.orders(), 2), Adopt::Ask);
    bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia:/srv/www"],
        ),
        true,
    );
    bed.orders();
    bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/new",
            &["@asia:/srv/www"],
        ),
        false,
    );
    assert_eq!(adopt(&bed.orders(), 2), Adopt::Ask);
}

/// Proves that a declaration that cannot run is refused with what to do, and one that may come to
/// run (an empty group) is not.
#[test]
fn declarations_are_checked_against_the_cluster() {
    let mut bed = Bed::new();
    let problem = |bed: &Bed, source: &str, targets: &[&str]| {
        let spec = spec("bad", Mode::Realtime, source, targets);
        match bed.coordinator.prepare_job(spec, JobId(1), false) {
            Err(JobRefused::Problems { problems, .. }) => problems[0].to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert!(problem(&bed, "nobody:/srv", &["edge-1:/srv"]).contains("master token --name nobody"));
    assert!(problem(&bed, "origin:/srv", &["nobody:/srv"]).contains("no server nobody"));
    assert!(problem(&bed, "origin:/etc", &["edge-1:/srv"]).contains("does not allow /etc"));
    assert!(problem(&bed, "origin:/srv", &["edge-1:/home"]).contains("does not allow /home"));
    assert!(problem(&bed, "origin:/srv", &["origin:/srv"]).contains("source itself"));
    assert!(problem(&bed, "origin:/srv/a", &["origin:/srv/a/b"]).contains("lie in each other"));
    assert!(
        problem(&bed, "origin:/srv", &["edge-1:/srv/a", "@asia:/srv/b"]).contains("target twice")
    );
    bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["edge-1:/srv/www"],
        ),
        false,
    );
    assert!(problem(&bed, "origin:/srv/x", &["edge-1:/srv/www/sub"]).contains("overlaps /srv/www"));
    let empty = spec("later", Mode::Realtime, "origin:/srv/x", &["@mars:/srv/x"]);
    let job = bed.coordinator.prepare_job(empty, JobId(2), false).unwrap();
    assert!(bed.coordinator.status(&job).problems[0].contains("has no servers"));
}

/// Proves the states that scripts read, and how the worst of them becomes the job's.
#[test]
fn states_follow_from_reports() {
    let mut bed = Bed::new();
    let job = bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia/seoul:/srv/www"],
        ),
        false,
    );
    let state = |bed: &Bed| bed.coordinator.status(&bed.job("site")).state;
    assert_eq!(state(&bed), JobState::Scanning, "nobody has reported");
    bed.report("origin", &job, source(SourceState::Watching, 10), None);
    bed.report("edge-1", &job, None, Some(target(TargetState::InSync, 10)));
    bed.report("edge-2", &job, None, Some(target(TargetState::InSync, 10)));
    assert_eq!(state(&bed), JobState::InSync);
    bed.report("origin", &job, source(SourceState::Watching, 12), None);
    let status = bed.coordinator.status(&job);
    assert_eq!(
        (status.state, status.targets[0].pending_changes),
        (JobState::Lagging, 2)
    );
    assert_eq!(status.targets[0].upstream.as_deref(), Some("origin"));
    bed.coordinator
        .handle_disconnected(bed.id("edge-2"), bed.now);
    assert_eq!(state(&bed), JobState::Unreachable);
    bed.coordinator.handle_job(job.clone().with_pause());
    assert_eq!(state(&bed), JobState::Paused);
    let halted = SourceState::Halted {
        reason: "the root\nvanished".into(),
    };
    bed.report("origin", &job, source(halted, 12), None);
    let status = bed.coordinator.status(&bed.job("site"));
    assert_eq!(status.state, JobState::Halted);
    assert_eq!(status.reason.as_deref(), Some("the root\\nvanished"));
    assert_eq!(status.targets[0].state.as_str(), "lagging");
}

/// Proves that a fence is reached only when every target of the newest orders claims the number of
/// that ledger with nothing parked, and that it says who lags and why.
#[test]
fn fences_wait_for_every_target() {
    let mut bed = Bed::new();
    let job = bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia/seoul:/srv/www"],
        ),
        false,
    );
    assert!(
        matches!(bed.coordinator.start_fence(&job), FenceStart::Later(_)),
        "no report yet"
    );
    bed.report("origin", &job, source(SourceState::Watching, 10), None);
    assert_eq!(
        bed.coordinator.start_fence(&job),
        FenceStart::Ask(ServerId(1))
    );
    let fence = FenceAnswer {
        origin: ORIGIN,
        seq: Seq(10),
        held: Vec::new(),
        restless: Vec::new(),
    };
    bed.report("edge-1", &job, None, Some(target(TargetState::InSync, 10)));
    bed.report("edge-2", &job, None, Some(target(TargetState::Lagging, 7)));
    let waiting = bed.coordinator.evaluate_fence(&job, &fence);
    let FenceVerdict::Waiting(laggards) = waiting else {
        panic!("{waiting:?}")
    };
    assert_eq!(laggards.len(), 1);
    assert_eq!(laggards[0].server, Some(label("edge-2")));
    assert_eq!(laggards[0].pending_changes, 3);
    let parked = TargetReport {
        parked_count: 1,
        ..target(TargetState::Parked, 10)
    };
    bed.report("edge-2", &job, None, Some(parked));
    assert!(matches!(
        bed.coordinator.evaluate_fence(&job, &fence),
        FenceVerdict::Waiting(_)
    ));
    bed.report("edge-2", &job, None, Some(target(TargetState::InSync, 10)));
    assert_eq!(
        bed.coordinator.evaluate_fence(&job, &fence),
        FenceVerdict::Done
    );
    let held = FenceAnswer {
        held: vec!["a".into()],
        ..fence.clone()
    };
    assert!(matches!(
        bed.coordinator.evaluate_fence(&job, &held),
        FenceVerdict::Never(_)
    ));
    let restless = FenceAnswer {
        restless: vec!["a".into()],
        ..fence.clone()
    };
    let FenceVerdict::Again(laggards) = bed.coordinator.evaluate_fence(&job, &restless) else {
        panic!("who writes the file may end at any time");
    };
    assert_eq!(laggards[0].paths, ["a"]);
    let other = FenceAnswer {
        origin: OriginId(1),
        ..fence.clone()
    };
    assert_eq!(
        bed.coordinator.evaluate_fence(&job, &other),
        FenceVerdict::Restart
    );
    bed.report(
        "edge-2",
        &job,
        None,
        Some(target(TargetState::AwaitingAccept, 0)),
    );
    assert!(matches!(
        bed.coordinator.evaluate_fence(&job, &fence),
        FenceVerdict::Never(_)
    ));
    // A report of old orders says nothing of the new ones.
    bed.report("edge-2", &job, None, Some(target(TargetState::InSync, 10)));
    let changed = JobSpec {
        settings: Settings {
            max_age_ms: 100,
            ..Settings::default()
        },
        ..job.spec.clone()
    };
    bed.put(changed, false);
    let job = bed.job("site");
    assert!(matches!(
        bed.coordinator.start_fence(&job),
        FenceStart::Later(_)
    ));
    assert!(matches!(
        bed.coordinator.evaluate_fence(&job, &fence),
        FenceVerdict::Waiting(_)
    ));
}

/// Proves that a source is told the lowest of its targets' claims: also that of one that is away,
/// not before each of them has reported, nothing of another ledger, and not what a removed one has.
#[test]
fn a_source_learns_what_all_targets_claim() {
    let mut bed = Bed::new();
    let job = bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["@asia/seoul:/srv/www", "edge-3:/srv/www"],
        ),
        true,
    );
    bed.orders();
    let claimed = |bed: &Bed| {
        let told = bed.coordinator.claimed(bed.id("origin"));
        assert!(told.iter().all(|t| (t.job, t.origin) == (job.id, ORIGIN)));
        told.first().map(|told| told.upto.0)
    };
    bed.report("origin", &job, source(SourceState::Watching, 90), None);
    bed.report("edge-1", &job, None, Some(target(TargetState::InSync, 70)));
    bed.report("edge-2", &job, None, Some(target(TargetState::Lagging, 30)));
    assert_eq!(claimed(&bed), None, "one has not reported");
    bed.report("edge-3", &job, None, Some(target(TargetState::InSync, 50)));
    assert_eq!(claimed(&bed), Some(30));
    assert_eq!(bed.coordinator.claimed(bed.id("edge-1")), []);
    let edge_2 = bed.id("edge-2");
    bed.coordinator.handle_disconnected(edge_2, bed.now);
    bed.report("edge-1", &job, None, Some(target(TargetState::InSync, 90)));
    assert_eq!(claimed(&bed), Some(30), "who is away comes again");
    let other = TargetReport {
        origin: OriginId(78),
        ..target(TargetState::Lagging, 80)
    };
    bed.report("edge-2", &job, None, Some(other));
    assert_eq!(claimed(&bed), None, "another ledger");
    bed.coordinator.handle_removed(edge_2, bed.now);
    assert_eq!(claimed(&bed), Some(50));
}

/// Proves that a manual job's fence speaks of its last run.
#[test]
fn manual_jobs_wait_for_their_run() {
    let mut bed = Bed::new();
    let job = bed.put(
        spec(
            "site",
            Mode::Manual,
            "origin:/srv/www",
            &["edge-1:/srv/www"],
        ),
        false,
    );
    assert!(
        matches!(bed.coordinator.start_fence(&job), FenceStart::Never(_)),
        "never run"
    );
    let job = job.with_run();
    bed.coordinator.handle_job(job.clone());
    bed.report("origin", &job, source(SourceState::Scanning, 4), None);
    assert!(matches!(
        bed.coordinator.start_fence(&job),
        FenceStart::Later(_)
    ));
    let done = SourceReport {
        run_done: (1, Seq(5)),
        ..source(SourceState::Idle, 6).unwrap()
    };
    bed.report("origin", &job, Some(done), None);
    let fence = FenceAnswer {
        origin: ORIGIN,
        seq: Seq(5),
        held: Vec::new(),
        restless: Vec::new(),
    };
    assert_eq!(bed.coordinator.start_fence(&job), FenceStart::Run(fence));
    let held = SourceReport {
        run_done: (1, Seq(5)),
        held_count: 1,
        held: vec!["secret: permission denied".into()],
        ..source(SourceState::Idle, 6).unwrap()
    };
    bed.report("origin", &job, Some(held), None);
    let FenceStart::Run(answer) = bed.coordinator.start_fence(&job) else {
        panic!("the run has ended");
    };
    let FenceVerdict::Never(laggards) = bed.coordinator.evaluate_fence(&job, &answer) else {
        panic!("the source could not look at everything");
    };
    assert_eq!(laggards[0].server, Some(label("origin")));
    assert_eq!(laggards[0].paths, ["secret: permission denied"]);
}

/// Proves that what was reported before a manager resumed a job ends no fence that came after.
#[test]
fn a_resume_is_waited_for() {
    let mut bed = Bed::new();
    let root = ("origin:/srv/www", ["edge-1:/srv/www"]);
    let job = bed.put(spec("site", Mode::Realtime, root.0, &root.1), false);
    let halted = SourceState::Halted {
        reason: "the root vanished".into(),
    };
    let of = |state: SourceState, resume| SourceReport {
        resume,
        ..source(state, 10).unwrap()
    };
    bed.report("origin", &job, Some(of(halted.clone(), 0)), None);
    let fence = FenceAnswer {
        origin: ORIGIN,
        seq: Seq(10),
        held: Vec::new(),
        restless: Vec::new(),
    };
    assert!(matches!(
        bed.coordinator.start_fence(&job),
        FenceStart::Never(_)
    ));
    let job = job.with_resume();
    bed.coordinator.handle_job(job.clone());
    // The agent has the new orders, its source not yet.
    bed.report("origin", &job, Some(of(halted.clone(), 0)), None);
    assert!(matches!(
        bed.coordinator.start_fence(&job),
        FenceStart::Later(_)
    ));
    bed.report("origin", &job, Some(of(halted, 1)), None);
    assert!(matches!(
        bed.coordinator.start_fence(&job),
        FenceStart::Never(_)
    ));
    bed.report("origin", &job, Some(of(SourceState::Watching, 1)), None);
    let stopped = target(TargetState::Halted, 0);
    bed.report("edge-1", &job, None, Some(stopped.clone()));
    assert!(matches!(
        bed.coordinator.evaluate_fence(&job, &fence),
        FenceVerdict::Waiting(_)
    ));
    let again = TargetReport {
        resume: 1,
        ..stopped
    };
    bed.report("edge-1", &job, None, Some(again));
    assert!(matches!(
        bed.coordinator.evaluate_fence(&job, &fence),
        FenceVerdict::Never(_)
    ));
}

/// Proves that a removed server gets no orders, leaves no state, and that what it was the source of
/// is taken from its targets.
#[test]
fn a_removed_server_is_forgotten() {
    let mut bed = Bed::new();
    let job = bed.put(
        spec(
            "site",
            Mode::Realtime,
            "origin:/srv/www",
            &["edge-1:/srv/www"],
        ),
        false,
    );
    bed.orders();
    bed.coordinator.handle_removed(ServerId(1), bed.now);
    let orders = bed.orders();
    // All that are left: each of them may serve what the removed one had a grant for.
    assert_eq!(
        orders.keys().copied().collect::<Vec<_>>(),
        [2, 3, 4].map(ServerId)
    );
    assert!(orders[&ServerId(2)].jobs.is_empty());
    assert!(bed.coordinator.status(&job).problems[0].contains("no server origin"));
    assert!(
        !bed.coordinator
            .handle_hello(ServerId(1), hello("origin"), bed.now)
    );
    assert!(bed.orders().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Join(u64, u8),
    Remove(u64),
    Hello(u64),
    Disconnect(u64),
    Report(u64, u64, u64, u8),
    Put(u64, u64, u8, bool),
    RemoveJob(u64),
    Pause(u64),
    Resume(u64),
    Run(u64),
    Time(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..5_u64;
    prop_oneof![
        (id.clone(), 0..3_u8).prop_map(|(a, b)| Step::Join(a, b)),
        id.clone().prop_map(Step::Remove),
        id.clone().prop_map(Step::Hello),
        id.clone().prop_map(Step::Disconnect),
        (id.clone(), id.clone(), any::<u64>(), 0..8_u8)
            .prop_map(|(a, b, c, d)| Step::Report(a, b, c, d)),
        (id.clone(), id.clone(), 0..4_u8, any::<bool>())
            .prop_map(|(a, b, c, d)| Step::Put(a, b, c, d)),
        id.clone().prop_map(Step::RemoveJob),
        id.clone().prop_map(Step::Pause),
        id.clone().prop_map(Step::Resume),
        id.prop_map(Step::Run),
        any::<u32>().prop_map(Step::Time),
    ]
}

fn apply(coordinator: &mut Coordinator, step: Step, now: &mut WallMillis) {
    let groups = ["paris", "seoul", "tokyo"];
    let state = |code: u8| match code {
        0 => TargetState::AwaitingAccept,
        1 => TargetState::Scanning,
        2 => TargetState::Copying,
        3 => TargetState::InSync,
        4 => TargetState::Lagging,
        5 => TargetState::Parked,
        6 => TargetState::Unreachable,
        _ => TargetState::Halted,
    };
    let job = |coordinator: &Coordinator, number| {
        coordinator.job(&label(&format!("j{number}"))).ok().cloned()
    };
    match step {
        Step::Join(id, group) => {
            let group = groups[usize::from(group)];
            let _ = coordinator.handle_joined(server(id, &format!("s{id}"), "r", group));
        }
        Step::Remove(id) => coordinator.handle_removed(ServerId(id), *now),
        Step::Hello(id) => {
            coordinator.handle_hello(ServerId(id), hello("x"), *now);
        }
        Step::Disconnect(id) => coordinator.handle_disconnected(ServerId(id), *now),
        Step::Report(id, number, seq, code) => {
            let Some(job) = job(coordinator, number) else {
                return;
            };
            let target = Some(target(state(code), seq));
            let source = source(SourceState::Watching, seq / 2);
            let jobs = vec![JobReport {
                job: job.id,
                source,
                target,
            }];
            let epoch = coordinator.epoch();
            coordinator.handle_report(ServerId(id), Report { epoch, jobs }, *now);
        }
        Step::Put(number, id, group, adopt) => {
            let place = match group {
                3 => "@r:/srv/t".to_owned(),
                group => format!("@r/{}:/srv/{group}", groups[usize::from(group)]),
            };
            let spec = spec(
                &format!("j{number}"),
                Mode::Realtime,
                &format!("s{id}:/srv/x"),
                &[&place],
            );
            if let Ok(job) = coordinator.prepare_job(spec, JobId(number), adopt) {
                coordinator.handle_job(job);
            }
        }
        Step::RemoveJob(number) => coordinator.handle_job_removed(JobId(number)),
        Step::Pause(number) => {
            if let Some(job) = job(coordinator, number) {
                coordinator.handle_job(job.with_pause());
            }
        }
        Step::Resume(number) => {
            if let Some(job) = job(coordinator, number) {
                coordinator.handle_job(job.with_resume());
            }
        }
        Step::Run(number) => {
            if let Some(job) = job(coordinator, number) {
                coordinator.handle_job(job.with_run());
            }
        }
        Step::Time(ms) => {
            now.0 += u64::from(ms);
            coordinator.handle_time(*now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Proves that whatever happens in whatever order, no question panics, epochs only rise, each
    /// server's orders name it and it alone, and nothing is left unsent to those connected.
    #[test]
    fn random_histories_keep_the_rules(steps in proptest::collection::vec(step(), 1..60)) {
        let key = SigningKey::from_seed(&[5; 32]);
        let verifying = key.verifying_key();
        let identity = MasterIdentity { cluster: 1, instance: 2, term: 3 };
        let mut coordinator = Coordinator::new(identity, key, [], []);
        let mut now = WallMillis(0);
        let mut newest: BTreeMap<ServerId, Epoch> = BTreeMap::new();
        for step in steps {
            let before = coordinator.epoch();
            let connected = if let Step::Hello(id) = &step { Some(ServerId(*id)) } else { None };
            apply(&mut coordinator, step, &mut now);
            prop_assert!(coordinator.epoch() >= before);
            while let Some(next) = coordinator.poll_orders(now) {
                let orders: Orders = next.orders.verify(&verifying).unwrap();
                prop_assert_eq!(orders.server, next.server);
                prop_assert!(coordinator.is_connected(next.server));
                let known = newest.insert(next.server, next.epoch);
                let repeated = connected == Some(next.server);
                prop_assert!(known.is_none_or(|known| next.epoch > known || (repeated && next.epoch == known)));
                for job in &orders.jobs {
                    let target = job.target.as_ref();
                    let grant = target.map(|t| t.grant.verify::<Grant>(&verifying).unwrap());
                    prop_assert!(grant.is_none_or(|grant| grant.holder == next.server));
                }
            }
            let jobs: Vec<Job> = coordinator.jobs().cloned().collect();
            for job in &jobs {
                let status = coordinator.status(job);
                prop_assert!(status.targets.len() <= 5);
                let fence = FenceAnswer { origin: ORIGIN, seq: Seq(9), held: Vec::new(), restless: Vec::new() };
                let _ = coordinator.evaluate_fence(job, &fence);
            }
            prop_assert!(coordinator.servers(now).len() <= 5);
        }
    }
}

/// Proves that everybody is told of a removed server, under a new epoch, until its grants have
/// ended, also by a master that was started since.
#[test]
fn removed_servers_are_told_to_everybody() {
    let mut bed = Bed::new();
    bed.orders();
    let (before, edge) = (bed.coordinator.epoch(), bed.id("edge-1"));
    bed.coordinator.handle_removed(edge, bed.now);
    let orders = bed.orders();
    assert!(orders.contains_key(&bed.id("origin")) && !orders.contains_key(&edge));
    for told in orders.values() {
        assert!(told.epoch > before);
        assert_eq!(told.revoked, [edge]);
    }
    let key = || SigningKey::from_seed(&[5; 32]);
    let later = |days: u64| WallMillis(bed.now.0 + days * 24 * 3_600_000);
    for (days, named) in [(7, true), (9, false)] {
        let servers: Vec<_> = bed.coordinator.topology().iter().cloned().collect();
        let mut next = Coordinator::new(bed.coordinator.identity(), key(), servers, [])
            .with_revoked([(edge, bed.now)]);
        next.handle_hello(ServerId(1), hello("origin"), later(days));
        let told = next.poll_orders(later(days)).unwrap();
        let told: Orders = told.orders.verify(&key().verifying_key()).unwrap();
        assert_eq!(told.revoked.contains(&edge), named);
    }
}
