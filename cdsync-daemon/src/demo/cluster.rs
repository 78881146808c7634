//! The demo's master and agents, each with its own identity, ports and folders.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdsync_agent::Agent;
use cdsync_core::coordinator::JobStatus;
use cdsync_core::filter::FilterSpec;
use cdsync_core::ids::Label;
use cdsync_core::job::{Mode, Settings};
use cdsync_master::api::types::{
    Applied, ApplyRequest, JobBody, LogPage, TokenMade, TokenRequest, Waited,
};
use cdsync_master::{Master, MasterConfig};
use hyper::Method;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::agent;
use crate::args::{JoinArgs, ManagerArgs};
use crate::cli::client::Client;
use crate::cli::connect;
use crate::failure::{Failure, Result, chain};
use crate::join::{self, Joined};
use crate::output::say;
use crate::text::millis;

/// The demo's job.
const JOB: &str = "demo";

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A target of the demo.
pub(super) struct DemoTarget {
    pub(super) name: Label,
    pub(super) root: PathBuf,
}

/// Something that runs until it is told to end.
struct Running {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn start<F: Future<Output = ()> + Send + 'static>(
        run: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
    ) -> Self {
        let (end, ended) = oneshot::channel();
        // A sender that is gone ends it just as well.
        let task = tokio::spawn(run(Box::pin(async move { drop(ended.await) })));
        Self { end, task }
    }

    async fn stop(self) {
        // One that ended by itself needs no word.
        let _ = self.end.send(());
        // A task that panicked has said so; the demo ends all the same.
        let _ = self.task.await;
    }
}

/// A whole cluster in this process.
pub(super) struct Cluster {
    client: Client,
    master: Running,
    agents: Vec<Running>,
    pub(super) targets: Vec<DemoTarget>,
}

impl Cluster {
    /// Makes and starts a master, one source and the targets, in two regions.
    pub(super) async fn start(folder: &Path, source: &Path, targets: usize) -> Result<Self> {
        let data = folder.join("master");
        let failed = |error: &dyn std::error::Error| Failure::condition(chain(error));
        let config = MasterConfig {
            listen: LOOPBACK,
            http: LOOPBACK,
            advertise: Some("127.0.0.1:0".to_owned()),
        };
        Master::init(&data, config).map_err(|e| failed(&e))?;
        let master = Master::open(&data).await.map_err(|e| failed(&e))?;
        let master = Running::start(|ended| master.run(ended));
        let client = connect(&ManagerArgs {
            data: Some(data),
            ..ManagerArgs::default()
        })?;
        let mut cluster = Self {
            client,
            master,
            agents: Vec::new(),
            targets: Vec::new(),
        };
        cluster.add(folder, "origin", "eu/home", source).await?;
        for n in 1..=targets {
            let name = format!("edge-{n}");
            let root = folder.join(&name);
            std::fs::create_dir(&root).map_err(|e| failed(&e))?;
            let group = if n % 2 == 0 { "asia/edge" } else { "eu/edge" };
            cluster.add(folder, &name, group, &root).await?;
            let name = Label::new(name).map_err(|e| failed(&e))?;
            cluster.targets.push(DemoTarget { name, root });
        }
        Ok(cluster)
    }

    async fn add(&mut self, folder: &Path, name: &str, group: &str, root: &Path) -> Result<()> {
        let failed = |error: &dyn std::error::Error| Failure::condition(chain(error));
        let request = TokenRequest {
            name: Label::new(name).map_err(|e| failed(&e))?,
            group: group.to_owned(),
            ttl_ms: 60_000,
        };
        let made: TokenMade = self
            .client
            .send(Method::POST, "/tokens", Some(&request), Duration::ZERO)
            .await?;
        let data = folder.join(format!("agent-{name}"));
        join::enrol(JoinArgs {
            data: data.clone(),
            token: made.token,
            roots: vec![root.to_owned()],
            listen: LOOPBACK,
            advertise: None,
            json: false,
        })
        .await?;
        let agent = Agent::start(agent::config(&data, Joined::load(&data)?));
        let agent = agent.map_err(|e| failed(&e))?;
        self.agents.push(Running::start(|ended| agent.run(ended)));
        Ok(())
    }

    /// Makes the job.
    pub(super) async fn apply(&self, source: &Path, filter: FilterSpec) -> Result<()> {
        let place = |server: &str, root: &Path| format!("{server}:{}", root.display());
        let request = ApplyRequest {
            job: JobBody {
                name: Label::new(JOB).map_err(|e| Failure::machine(&e))?,
                mode: Mode::Realtime,
                source: vec![place("origin", source)],
                target: self
                    .targets
                    .iter()
                    .map(|t| place(t.name.as_str(), &t.root))
                    .collect(),
                filter,
                settings: Settings::default(),
            },
            adopt: false,
            wait_ms: 0,
        };
        let _: Applied = self
            .client
            .send(Method::POST, "/jobs", Some(&request), Duration::ZERO)
            .await?;
        Ok(())
    }

    pub(super) async fn status(&self) -> Result<JobStatus> {
        self.client.get(&format!("/jobs/{JOB}")).await
    }

    /// Waits until every target holds all that the source holds now.
    pub(super) async fn wait(&self, timeout: Duration) -> Result<()> {
        let path = format!("/jobs/{JOB}/wait?timeout_ms={}", millis(timeout));
        let waited: Waited = self.client.get_slowly(&path, timeout).await?;
        if waited.done {
            return Ok(());
        }
        let why: Vec<String> = waited.laggards.iter().map(|l| l.why.clone()).collect();
        Err(Failure::condition(format!(
            "the targets do not follow: {}",
            why.join("; ")
        )))
    }

    /// Shows the job's log as it grows; ends only when it fails.
    pub(super) async fn follow_log(&self) -> Result<()> {
        let patience = Duration::from_secs(30);
        let mut cursor = String::new();
        loop {
            let path = if cursor.is_empty() {
                format!("/jobs/{JOB}/log")
            } else {
                format!(
                    "/jobs/{JOB}/log?cursor={cursor}&wait_ms={}",
                    millis(patience)
                )
            };
            let page: LogPage = self.client.get_slowly(&path, patience).await?;
            // What is there at first is the story of the first copy.
            for line in page.lines.iter().filter(|_| !cursor.is_empty()) {
                let after = line
                    .latency_ms
                    .map_or(String::new(), |ms| format!("after {ms} ms"));
                let text = format!("{:<8} {:<10} {}", line.server, line.op, line.path);
                say(&format!("{text:<60} {} {after}", line.detail));
            }
            cursor = page.cursor;
        }
    }

    /// Ends the agents, then the master.
    pub(super) async fn stop(self) {
        for agent in self.agents {
            agent.stop().await;
        }
        self.master.stop().await;
    }
}
