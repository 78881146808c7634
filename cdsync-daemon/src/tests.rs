//! The command line, its files, and its calls of a real master over TLS and QUIC.

use std::path::Path;

use cdsync_core::job::{Durability, Mode, OnDelete, Settings, Specials, Who};
use cdsync_master::{Master, MasterConfig};
use clap::{CommandFactory, Parser};
use tokio::sync::oneshot;

use crate::args::{
    AgentCommand, Cli, Command, JobCommand, JoinArgs, ManagerArgs, MasterCommand, TransportArg,
};
use crate::cli::{self, Found, find, parse_job_file};
use crate::failure::{Kind, Result};
use crate::join;

fn parse(line: &str) -> std::result::Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

/// Proves that the definition of the command line is consistent.
#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

/// Proves that the documented lines are read with the documented defaults.
#[test]
fn documented_lines_parse() {
    for line in [
        "cdsync demo --source /tmp --targets 5 --once",
        "cdsync master init --data m --listen 10.0.0.1:7400 --http 127.0.0.1:0 --advertise m:7400",
        "cdsync master run --data m",
        "cdsync master token --data m --name edge-1 --group asia/seoul --ttl 1h",
        "cdsync agent join --data a --token T --root /srv --root /home --listen [::]:7410",
        "cdsync agent run --data a",
        "cdsync agent run --data a --transport quic",
        "cdsync agent run --data a --transport tcp",
        "cdsync status --json",
        "cdsync server list --data m",
        "cdsync server remove edge-1 --master https://m:7480 --token-file t",
        "cdsync job apply -f site.toml --adopt",
        "cdsync job add site --from origin:/srv --to edge-1:/srv @asia:/srv --to @asia/seoul:/srv",
        "cdsync job accept site",
        "cdsync job list --json",
        "cdsync job --json --data m status site",
        "cdsync job run site --wait",
        "cdsync job wait site --timeout 500ms",
        "cdsync job pause site",
        "cdsync job resume site",
        "cdsync job resume site --accept",
        "cdsync job resume site --restore --json",
        "cdsync job resume site --again",
        "cdsync job remove site",
        "cdsync job log site --follow",
        "cdsync job explain site a/b",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let Command::Master(master) = parse("cdsync master init --data m").unwrap().command else {
        panic!("not master");
    };
    let MasterCommand::Init(init) = master.command else {
        panic!("not init")
    };
    assert_eq!(init.listen.to_string(), "0.0.0.0:7400");
    assert_eq!(init.http.to_string(), "127.0.0.1:7480");
    let line = "cdsync agent join --data a --token T --root /srv";
    let Command::Agent(agent) = parse(line).unwrap().command else {
        panic!("not agent")
    };
    let AgentCommand::Join(join) = agent.command else {
        panic!("not join")
    };
    assert_eq!(join.listen.to_string(), "0.0.0.0:7410");
    let Command::Agent(agent) = parse("cdsync agent run --data a").unwrap().command else {
        panic!("not agent")
    };
    let AgentCommand::Run { transport, .. } = agent.command else {
        panic!("not run")
    };
    assert_eq!(transport, TransportArg::Auto);
    let Command::Job(job) = parse("cdsync job wait site").unwrap().command else {
        panic!("not job");
    };
    let JobCommand::Wait { timeout, .. } = job.command else {
        panic!("not wait")
    };
    assert_eq!(timeout.as_secs(), 60);
    let Command::Demo(demo) = parse("cdsync demo").unwrap().command else {
        panic!("not demo")
    };
    assert_eq!((demo.targets, demo.once), (3, false));
}

/// Proves that a wrong line is a usage error, exit code 2.
#[test]
fn wrong_lines_are_usage_errors() {
    for line in [
        "cdsync",
        "cdsync master init",
        "cdsync job add site --from origin:/srv",
        "cdsync job add SITE --from origin:/srv --to edge:/srv",
        "cdsync job add site --from origin --to edge:/srv",
        "cdsync job wait site --timeout 60",
        "cdsync status --data m --master x:1",
        "cdsync agent join --data a --token T",
        "cdsync agent run --data a --transport sctp",
        "cdsync demo --targets 0",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

/// Proves which of arguments and environment wins.
#[test]
fn the_master_is_found() {
    let environment = |name: &str| match name {
        "CDSYNC_DATA" => Some("env".to_owned()),
        "CDSYNC_MASTER" => Some("https://[::1]:7480/".to_owned()),
        "CDSYNC_TOKEN_FILE" => Some("token".to_owned()),
        _ => None,
    };
    let none = ManagerArgs::default();
    let data = ManagerArgs {
        data: Some("arg".into()),
        ..none.clone()
    };
    assert_eq!(
        find(&data, environment).unwrap(),
        Found::Folder("arg".into())
    );
    let remote = Found::Remote {
        address: "[::1]:7480".into(),
        token_file: "token".into(),
    };
    assert_eq!(find(&none, environment).unwrap(), remote);
    let only_data = |name: &str| environment(name).filter(|_| name == "CDSYNC_DATA");
    assert_eq!(find(&none, only_data).unwrap(), Found::Folder("env".into()));
    assert_eq!(find(&none, |_| None).unwrap_err().kind(), Kind::Usage);
    for url in [
        "",
        "x",
        "https://x",
        "x:0",
        "https://x:1/y",
        "http://x:y",
        ":1",
    ] {
        let args = ManagerArgs {
            master: Some(url.into()),
            ..none.clone()
        };
        assert_eq!(
            find(&args, environment).unwrap_err().kind(),
            Kind::Usage,
            "{url}"
        );
    }
    let args = ManagerArgs {
        master: Some("x:1".into()),
        ..none
    };
    assert_eq!(find(&args, |_| None).unwrap_err().kind(), Kind::Usage);
}

/// Proves that the documented job file is read as it is meant.
#[test]
fn job_files_are_read() {
    let text = r#"
name = "site"
mode = "manual"
source = [{ server = "origin", path = "/srv/www" }]
target = [{ server = "edge-1", path = "/srv/www" }, { group = "asia/seoul", path = "/srv/www/" }, { region = "europe", path = "/" }]
filter = { include = [], exclude = ['(^|/)\.git/'] }
max_age = "2s"
durability = "each"
on_delete = "erase"
specials = ["device"]
scan_every = "0s"
log = { age = "1d" }
trash = { size = "2GiB" }
retry = { most = "5m" }
guard = { percent = 10 }
"#;
    let spec = parse_job_file(Path::new("site.toml"), text).unwrap();
    assert_eq!((spec.mode, spec.settings.max_age_ms), (Mode::Manual, 2_000));
    let places: Vec<String> = spec.targets.iter().map(ToString::to_string).collect();
    assert_eq!(
        places,
        ["edge-1:/srv/www", "@asia/seoul:/srv/www", "@europe:/"]
    );
    assert!(matches!(spec.sources[0].who, Who::Server(_)));
    assert_eq!(spec.filter.exclude, [r"(^|/)\.git/"]);
    let mut settings = Settings {
        max_age_ms: 2_000,
        durability: Durability::Each,
        on_delete: OnDelete::Erase,
        scan_every_ms: 0,
        ..Settings::default()
    };
    settings.specials = Specials {
        fifos: false,
        sockets: false,
        devices: true,
    };
    settings.log.age_ms = 86_400_000;
    settings.trash.bytes = Some(2 << 30);
    settings.retry.most_ms = 300_000;
    settings.guard.percent = 10;
    assert_eq!(spec.settings, settings);
}

/// Proves that an error in a job file names file, line and what is wrong.
#[test]
fn job_file_errors_have_a_place() {
    let good = [
        "name = \"site\"",
        "source = [{ server = \"origin\", path = \"/srv\" }]",
        "target = [{ server = \"edge\", path = \"/srv\" }]",
        "filter = {}",
    ];
    let with = |line: usize, text: &str| {
        let mut lines = good;
        lines[line] = text;
        parse_job_file(Path::new("site.toml"), &lines.join("\n"))
    };
    assert!(parse_job_file(Path::new("site.toml"), &good.join("\n")).is_ok());
    for (line, text, expected) in [
        (0, "name = \"Site\"", "site.toml:1: "),
        (0, "nome = \"site\"", "site.toml:1: "),
        (
            1,
            "source = [{ server = \"origin\", path = \"srv\" }]",
            "not a root",
        ),
        (
            1,
            "source = [{ region = \"origin\", path = \"/srv\" }]",
            "exactly one",
        ),
        (
            2,
            "target = [{ server = \"a\", region = \"b\", path = \"/srv\" }]",
            "name one of",
        ),
        (
            2,
            "target = [{ group = \"asia\", path = \"/srv\" }]",
            "site.toml:3: ",
        ),
        (
            2,
            "target = [{ server = \"a\", path = \"/srv\", colour = 1 }]",
            "colour",
        ),
        (2, "target = []", "0 targets"),
        (3, "filter = { exclude = ['('] }", "site.toml:4: "),
        (3, "filter = { only = [] }", "only"),
        (3, "max_age = \"1ms\"", "max_age lies between"),
        (3, "[[", "site.toml:4: "),
    ] {
        let failure = with(line, text).unwrap_err();
        assert_eq!(failure.kind(), Kind::Usage);
        let said = failure.to_string();
        assert!(said.starts_with("site.toml"), "{said}");
        assert!(said.contains(expected), "{text}: {said}");
    }
}

/// A master that serves a folder until it is stopped.
struct Running {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn start(data: &Path) -> Running {
    let master = Master::open(data).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(master.run(async {
        let _ = stopped.await;
    }));
    Running { stop, task }
}

fn init(data: &Path) {
    let any = "127.0.0.1:0".parse().unwrap();
    let config = MasterConfig {
        listen: any,
        http: any,
        advertise: None,
    };
    Master::init(data, config).unwrap();
}

fn command(line: &str) -> Command {
    parse(line)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .command
}

async fn run(line: &str) -> Result<()> {
    match command(line) {
        Command::Status(args) => cli::servers::status(args).await,
        Command::Server(args) => cli::servers::run(args).await,
        Command::Job(args) => cli::jobs::run(args).await,
        Command::Agent(args) => match args.command {
            AgentCommand::Join(args) => join::join(args).await,
            AgentCommand::Run { .. } => panic!("not in this test"),
        },
        Command::Master(args) => match args.command {
            MasterCommand::Token(args) => cli::token::token(args).await,
            _ => panic!("not in this test"),
        },
        Command::Demo(_) | Command::Doctor(_) => panic!("not in this test"),
    }
}

/// A token for a server, made by the API as `master token` does.
async fn token(data: &Path, name: &str) -> String {
    let args = ManagerArgs {
        data: Some(data.to_owned()),
        ..ManagerArgs::default()
    };
    let body = serde_json::json!({ "name": name, "group": "asia/seoul", "ttl_ms": 60_000 });
    let client = cli::connect(&args).unwrap();
    let made: cdsync_master::api::types::TokenMade = client
        .send(
            hyper::Method::POST,
            "/tokens",
            Some(&body),
            std::time::Duration::ZERO,
        )
        .await
        .unwrap();
    made.token
}

/// Proves the manager's way over real TLS and QUIC: who is not let in and with which exit code, a
/// join that leaves a folder that an agent can start from, and jobs.
#[tokio::test]
async fn a_manager_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (m, other) = (at("m"), at("other"));
    let (data, other_token) = (m.display(), other.join("owner.token"));
    let kind = |result: Result<()>| result.unwrap_err().kind();
    assert_eq!(
        kind(run(&format!("cdsync status --data {data}")).await),
        Kind::Condition
    );
    init(&m);
    init(&other);
    assert_eq!(
        kind(run(&format!("cdsync server list --data {data}")).await),
        Kind::Unreachable
    );
    let running = start(&m).await;
    run(&format!("cdsync status --data {data}")).await.unwrap();
    run(&format!(
        "cdsync master token --data {data} --name x --group a/b"
    ))
    .await
    .unwrap();
    let address = std::fs::read_to_string(m.join("http.addr")).unwrap();
    let (address, foreign) = (address.trim(), other_token.display());
    let line = format!("cdsync status --master https://{address} --token-file {foreign}");
    assert_eq!(kind(run(&line).await), Kind::NotPermitted);
    let joined = at("a");
    let join = |token: &str| {
        format!(
            "cdsync agent join --data {} --token {token} --root {} --listen 127.0.0.1:0",
            joined.display(),
            folder.path().display()
        )
    };
    let good = token(&m, "edge").await;
    run(&join(&good)).await.unwrap();
    let loaded = join::Joined::load(&joined).unwrap();
    assert_eq!(loaded.name.as_str(), "edge");
    assert_eq!(loaded.roots, [folder.path()]);
    assert_eq!(
        kind(run(&join(&good)).await),
        Kind::Condition,
        "the folder is taken"
    );
    std::fs::remove_file(joined.join("agent.toml")).unwrap();
    assert_eq!(
        kind(run(&join(&good)).await),
        Kind::NotPermitted,
        "the token is used"
    );
    assert_eq!(kind(run(&join("cdsync-join-1.x")).await), Kind::Usage);
    let add = format!("cdsync job add site --from edge:/x --to nobody:/x --data {data}");
    assert_eq!(kind(run(&add).await), Kind::Condition);
    let add = format!("cdsync job add site --from edge:/x --to @mars:/x --data {data} --json");
    run(&add).await.unwrap();
    let wait = format!("cdsync job wait site --timeout 10ms --data {data}");
    assert_eq!(kind(run(&wait).await), Kind::Condition);
    for line in [
        "job list",
        "job status site",
        "job log site",
        "job pause site",
        "server list",
    ] {
        run(&format!("cdsync {line} --data {data}")).await.unwrap();
    }
    run(&format!("cdsync job remove site --data {data}"))
        .await
        .unwrap();
    run(&format!("cdsync server remove edge --data {data}"))
        .await
        .unwrap();
    running.stop.send(()).unwrap();
    running.task.await.unwrap();
    assert_eq!(
        kind(run(&format!("cdsync job list --data {data}")).await),
        Kind::Unreachable
    );
}

/// Proves that another member of the cluster cannot pose as the master: a server with a valid
/// certificate of the right authority, but in the role of an agent, gets no token to see.
#[tokio::test]
async fn a_member_cannot_pose_as_the_master() {
    use cdsync_transport::{CERTIFICATE_VALIDITY, CertificateAuthority, PeerIdentity};
    let folder = tempfile::tempdir().unwrap();
    let m = folder.path().join("m");
    init(&m);
    let authority = CertificateAuthority::load(&m).unwrap();
    let agent = PeerIdentity::agent(authority.cluster(), cdsync_core::ids::ServerId(7));
    // The master's own identity in its folder, replaced by a member's.
    authority
        .issue_local(&agent, CERTIFICATE_VALIDITY)
        .unwrap()
        .save(&m.join("node"))
        .unwrap();
    let running = start(&m).await;
    let failure = run(&format!("cdsync status --data {}", m.display()))
        .await
        .unwrap_err();
    assert_eq!(failure.kind(), Kind::NotPermitted);
    assert!(failure.to_string().contains("not the master"), "{failure}");
    drop(running.stop);
    running.task.await.unwrap();
}

/// Proves that roots are taken as absolute, plain paths.
#[tokio::test]
async fn roots_are_checked_before_the_token_is_used() {
    let args = JoinArgs {
        data: "nowhere".into(),
        token: "x".into(),
        roots: vec!["/srv".into()],
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        json: false,
    };
    assert_eq!(join::join(args).await.unwrap_err().kind(), Kind::Usage);
}
