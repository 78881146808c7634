//! A master and agents as processes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::aftermath::{Deadline, output_within, reap};
use crate::binary::cdsync;
use crate::compare::{assert_equal, differences};
use crate::random::Random;
use crate::space::{Space, is_root};
use crate::usage::Usage;
use crate::wait::wait_until;

/// How long a process may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a manager's command may take: those that wait are told for how long, which is shorter.
const COMMAND_MAX: Duration = Duration::from_secs(300);

/// How long a cluster may live, unless its test says otherwise. Most live for some seconds.
const LIFE_MAX: Duration = Duration::from_secs(600);

/// The lines of a process's log that are shown when a test fails.
const LOG_LINES: usize = 40;

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

impl Said {
    /// What it wrote to stdout, as JSON.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    /// It ended with this exit code.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }
}

/// A process of the cluster, running or not.
#[derive(Debug)]
struct Process {
    child: Option<Child>,
    data: PathBuf,
    kind: &'static str,
    /// Another user that it runs as.
    user: Option<u32>,
    /// A folder that it sees at another path, in a mount namespace of its own.
    bound: Option<(PathBuf, PathBuf)>,
    /// A program that starts it in its own place.
    launcher: Option<PathBuf>,
    /// Further arguments of its command.
    args: Vec<String>,
}

/// A master and agents, each its own process on its own address. All end when it is dropped; when
/// that is because the test failed, the ends of their logs are printed.
#[derive(Debug)]
pub struct Cluster {
    /// Where sources and targets lie.
    pub space: Space,
    network: [u8; 3],
    processes: BTreeMap<String, Process>,
    binary: PathBuf,
    _deadline: Deadline,
}

impl Cluster {
    /// Makes and starts a master, on the first address of a free part of 127/8.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start() -> Self {
        Self::start_in(Space::new(), LIFE_MAX)
    }

    /// As [`Self::start`], for a test that may take longer. One that has not ended after `limit`
    /// ends this whole process.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start_for(limit: Duration) -> Self {
        Self::start_in(Space::new(), limit)
    }

    /// As [`Self::start`], where some folders were made already: the data of a process NAME is in
    /// `data-NAME`.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start_with(space: Space) -> Self {
        Self::start_in(space, LIFE_MAX)
    }

    fn start_in(space: Space, limit: Duration) -> Self {
        let deadline = Deadline::new(limit, &format!("the test in {}", space.path().display()));
        let mut cluster = Self {
            space,
            network: free_network(),
            processes: BTreeMap::new(),
            binary: cdsync().to_owned(),
            _deadline: deadline,
        };
        cluster.init_master();
        cluster.up("master");
        cluster
    }

    fn init_master(&mut self) {
        let data = self.space.path().join("data-master");
        let (listen, http) = (self.address(1, 7400), self.address(1, 7480));
        let text = data.to_str().unwrap();
        let args = [
            "master", "init", "--data", text, "--listen", &listen, "--http", &http,
        ];
        self.cdsync(args).expect(0);
        let process = Process {
            child: None,
            data,
            kind: "master",
            user: None,
            bound: None,
            launcher: None,
            args: Vec::new(),
        };
        self.processes.insert("master".to_owned(), process);
    }

    /// An address of this cluster.
    #[must_use]
    pub fn address(&self, host: u8, port: u16) -> String {
        let [a, b, c] = self.network;
        format!("{a}.{b}.{c}.{host}:{port}")
    }

    /// Where an agent listens: the master has the first address, agents follow as they join.
    #[must_use]
    pub fn agent_address(&self, host: u8) -> String {
        self.address(host, 7410)
    }

    /// The data folder of a process.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn data(&self, name: &str) -> &Path {
        &self.processes[name].data
    }

    /// A token for a server.
    ///
    /// # Panics
    /// When the master makes none.
    #[must_use]
    pub fn token(&self, name: &str, group: &str) -> String {
        let said = self.cdsync(["master", "token", "--name", name, "--group", group]);
        said.expect(0).out.trim().to_owned()
    }

    /// Joins and starts an agent in the group `eu/one` that may use one root.
    pub fn agent(&mut self, name: &str, root: &Path) {
        self.agent_in(name, "eu/one", &[root]);
    }

    /// Joins and starts an agent.
    pub fn agent_in(&mut self, name: &str, group: &str, roots: &[&Path]) {
        self.join(name, group, roots, None);
        self.up(name);
    }

    /// Joins and starts an agent of another user, who gets its data folder. It runs a copy of the
    /// program, because the build folder may be closed to others.
    pub fn agent_as(&mut self, name: &str, user: u32, roots: &[&Path]) {
        let copy = self.space.path().join("cdsync");
        if !copy.exists() {
            fs::copy(&self.binary, &copy).unwrap();
        }
        self.join(name, "eu/one", roots, Some(user));
        self.up(name);
    }

    /// Joins and starts an agent that sees its folder `own` at the path `root`, as on a machine of
    /// its own: so several servers of a group can have one path. `false` where this machine does not
    /// permit mount namespaces; then nothing was done.
    pub fn agent_bound(&mut self, name: &str, group: &str, root: &Path, own: &Path) -> bool {
        if !run(namespace().arg("true")).code.eq(&0) {
            return false;
        }
        self.join(name, group, &[root], None);
        let process = self.processes.get_mut(name).unwrap();
        process.bound = Some((own.to_owned(), root.to_owned()));
        self.up(name);
        true
    }

    /// Joins and starts an agent by way of a program, which is given the command line to become.
    pub fn agent_through(&mut self, name: &str, root: &Path, launcher: &Path) {
        self.join(name, "eu/one", &[root], None);
        let process = self.processes.get_mut(name).unwrap();
        process.launcher = Some(launcher.to_owned());
        self.up(name);
    }

    /// Joins a server and starts nothing: its place in the cluster is the test's to fill. Returns
    /// where it is expected to listen.
    #[must_use]
    pub fn member(&mut self, name: &str, root: &Path) -> String {
        self.join(name, "eu/one", &[root], None);
        self.agent_address(u8::try_from(self.processes.len()).unwrap())
    }

    fn join(&mut self, name: &str, group: &str, roots: &[&Path], user: Option<u32>) {
        let data = self.space.path().join(format!("data-{name}"));
        let token = self.token(name, group);
        let host = u8::try_from(self.processes.len() + 1).unwrap();
        let listen = self.agent_address(host);
        let mut command = Command::new(&self.binary);
        command.args(["agent", "join", "--token", &token, "--listen", &listen]);
        command.arg("--data").arg(&data);
        for root in roots {
            command.arg("--root").arg(root);
        }
        run(&mut command).expect(0);
        if let Some(user) = user {
            give(&data, user);
        }
        let process = Process {
            child: None,
            data,
            kind: "agent",
            user,
            bound: None,
            launcher: None,
            args: Vec::new(),
        };
        self.processes.insert(name.to_owned(), process);
    }

    /// Starts a process that is stopped. Returns when it answers (a master) or is connected (an
    /// agent whose master runs).
    ///
    /// # Panics
    /// When it does not.
    pub fn up(&mut self, name: &str) {
        self.spawn(name);
        if name == "master" {
            wait_until(PATIENCE, "the master answers", || {
                self.cdsync(["status"]).code == 0
            });
        } else if self.processes["master"].child.is_some() {
            wait_until(PATIENCE, &format!("{name} is connected"), || {
                self.server_state(name).as_deref() == Some("connected")
            });
        }
    }

    /// Starts a process and does not wait for it.
    ///
    /// # Panics
    /// When it runs already, or cannot be started.
    pub fn spawn(&mut self, name: &str) {
        let log = self.log_path(name);
        let out = File::options().create(true).append(true).open(log).unwrap();
        let (copy, shift) = (self.space.path().join("cdsync"), self.shift_path(name));
        let boot = self.boot_path(name);
        let process = self.processes.get_mut(name).unwrap();
        assert!(process.child.is_none(), "{name} runs already");
        let mut command = match &process.bound {
            None => Command::new("setpriv"),
            Some((own, seen)) => {
                let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
                let mut command = namespace();
                command.args(["sh", "-c", script, "sh"]);
                command.args([own, seen]).arg("setpriv");
                command
            }
        };
        // It dies with the thread that runs the test.
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = process.user {
            let ids = [format!("--reuid={user}"), format!("--regid={user}")];
            let more = ["--clear-groups", "--inh-caps=-all"];
            command.args(ids).args(more).arg(copy);
        } else {
            command.args(&process.launcher).arg(&self.binary);
        }
        command.env("CDSYNC_TEST_CLOCK_SHIFT_FILE", shift);
        if boot.exists() {
            command.env("CDSYNC_TEST_BOOT_ID_FILE", boot);
        }
        command
            .args([process.kind, "run", "--data"])
            .arg(&process.data)
            .args(&process.args);
        command.stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        process.child = Some(command.spawn().unwrap());
    }

    /// From its next start on, a process gets these further arguments.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn with_args(&mut self, name: &str, args: &[&str]) {
        let process = self.processes.get_mut(name).unwrap();
        process.args = args.iter().map(ToString::to_string).collect();
    }

    /// From its next start on, an agent takes this for another run of the operating system.
    ///
    /// # Panics
    /// When the file that tells it cannot be written.
    pub fn reboot(&self, name: &str, random: &mut Random) {
        let id = format!("{:032x}\n", random.below(u64::MAX));
        fs::write(self.boot_path(name), id).unwrap();
    }

    /// Ends a process politely (SIGTERM) and waits for that.
    ///
    /// # Panics
    /// When it does not end, or not with exit code 0.
    pub fn stop(&mut self, name: &str) {
        let status = self.terminate(name);
        assert!(status.success(), "{name} ended with {status}");
    }

    /// As [`Self::stop`], for a process that may have been started just now: before it listens to
    /// signals, this one ends it.
    pub(crate) fn stop_early(&mut self, name: &str) {
        let status = self.terminate(name);
        let early = status.signal() == Some(Signal::TERM.as_raw());
        assert!(early || status.success(), "{name} ended with {status}");
    }

    fn terminate(&mut self, name: &str) -> ExitStatus {
        let mut child = self.take(name);
        signal(&child, Signal::TERM);
        reap(PATIENCE, &mut child, &format!("{name} ends"));
        child.wait().unwrap()
    }

    /// Ends a process at once (SIGKILL).
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.take(name);
        signal(&child, Signal::KILL);
        reap(PATIENCE, &mut child, &format!("{name} is dead"));
    }

    /// The process's number while it was started and not ended here.
    #[must_use]
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.processes[name].child.as_ref().map(Child::id)
    }

    /// What a process has done since it was started, and what it has.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    #[track_caller]
    pub fn usage(&self, name: &str) -> Usage {
        Usage::of(self.pid(name).expect("it runs"))
    }

    /// All processes that were started run still, and none of them has panicked.
    ///
    /// # Panics
    /// When one does not, or has.
    #[track_caller]
    pub fn assert_healthy(&mut self) {
        let names: Vec<String> = self.processes.keys().cloned().collect();
        for name in names {
            if self.pid(&name).is_some() {
                assert!(self.is_alive(&name), "{name} ended");
            }
            let log = self.log(&name);
            assert!(!log.contains("panicked"), "{name}: {log}");
        }
    }

    /// Stops a process where it is (SIGSTOP), or lets it go on (SIGCONT).
    ///
    /// # Panics
    /// When it was not started.
    pub fn freeze(&self, name: &str, frozen: bool) {
        let child = self.processes[name].child.as_ref().unwrap();
        signal(child, if frozen { Signal::STOP } else { Signal::CONT });
    }

    /// Lets all processes go on that were stopped where they are.
    pub(crate) fn thaw(&self) {
        for child in self.processes.values().filter_map(|p| p.child.as_ref()) {
            // It may have ended.
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let _ = kill_process(pid.unwrap(), Signal::CONT);
        }
    }

    fn take(&mut self, name: &str) -> Child {
        let process = self.processes.get_mut(name).unwrap();
        process
            .child
            .take()
            .unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Whether a process has not ended by itself.
    ///
    /// # Panics
    /// When it was not started.
    pub fn is_alive(&mut self, name: &str) -> bool {
        let child = self.processes.get_mut(name).unwrap().child.as_mut();
        child.unwrap().try_wait().unwrap().is_none()
    }

    /// Sets an agent's wall clock so many milliseconds apart from this machine's.
    pub fn shift_clock(&self, name: &str, milliseconds: i64) {
        let beside = self.space.path().join("shift~");
        fs::write(&beside, milliseconds.to_string()).unwrap();
        fs::rename(beside, self.shift_path(name)).unwrap();
    }

    fn shift_path(&self, name: &str) -> PathBuf {
        self.space.path().join(format!("{name}.shift"))
    }

    fn boot_path(&self, name: &str) -> PathBuf {
        self.space.path().join(format!("{name}.boot"))
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.space.path().join(format!("{name}.log"))
    }

    /// What a process logged since it was first started.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.log_path(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs a manager's command against this cluster's master.
    ///
    /// # Panics
    /// When it cannot be run.
    #[track_caller]
    pub fn cdsync<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Said {
        run(self.command().args(args))
    }

    /// As [`Self::cdsync`], for a command that may take up to `limit`.
    ///
    /// # Panics
    /// When it cannot be run, or takes longer.
    #[track_caller]
    pub fn cdsync_within<'a>(
        &self,
        limit: Duration,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Said {
        said(output_within(limit, self.command().args(args)))
    }

    /// A command with its environment set for this cluster's master.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        let data = self.space.path().join("data-master");
        command.env("CDSYNC_DATA", data).stdin(Stdio::null());
        command
            .env_remove("CDSYNC_MASTER")
            .env_remove("CDSYNC_TOKEN_FILE");
        command
    }

    /// Runs a command of words separated by spaces, which must do what it says, and gives its JSON.
    ///
    /// # Panics
    /// When it does not end with exit code 0.
    #[must_use]
    #[track_caller]
    pub fn json(&self, words: &str) -> Value {
        let said = self.cdsync(words.split(' ').chain(["--json"]));
        said.expect(0).json()
    }

    /// Applies a job file.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[track_caller]
    pub fn apply(&self, text: &str, more: &[&str]) -> Said {
        let file = self.space.path().join("job.toml");
        fs::write(&file, text).unwrap();
        let args = ["job", "apply", "-f", file.to_str().unwrap()];
        self.cdsync(args.into_iter().chain(more.iter().copied()))
    }

    /// Makes a realtime job from one server's folder to others', `(server, path)` each.
    #[track_caller]
    pub fn job(&self, name: &str, source: (&str, &Path), targets: &[(&str, &Path)]) {
        self.apply(&job_file(name, source, targets, ""), &[])
            .expect(0);
    }

    /// Waits until every target of a job holds all.
    ///
    /// # Panics
    /// When that does not come within a minute.
    #[track_caller]
    pub fn wait(&self, job: &str) {
        let said = self.cdsync(["job", "wait", job, "--timeout", "60s"]);
        if said.code != 0 {
            eprintln!("{}", self.cdsync(["job", "status", job]).out);
            // Parked paths stand by themselves on a line, before their reason.
            for line in said.err.lines().filter(|line| line.starts_with("    ")) {
                let path = line.trim().split(": ").next().unwrap_or_default();
                eprintln!(
                    "{path}\n{}",
                    self.cdsync(["job", "explain", job, "--", path]).out
                );
            }
        }
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    }

    /// Two folders of a job are equal.
    ///
    /// # Panics
    /// When they are not: with the differences, and what the servers know of the first ones.
    #[track_caller]
    pub fn assert_equal(&self, job: &str, source: &Path, target: &Path) {
        let found = differences(source, target);
        for line in found.iter().take(3) {
            let path = line.split(": ").next().unwrap_or_default();
            let said = self.cdsync(["job", "explain", job, "--", path]);
            eprintln!("{path}\n{}{}", said.out, said.err);
            let log = self.cdsync(["job", "log", job]).out;
            for line in log.lines().filter(|line| line.contains(path)) {
                eprintln!("  {line}");
            }
        }
        assert_equal(source, target);
    }

    /// The number up to which a job's source has recorded changes.
    #[must_use]
    #[track_caller]
    pub fn source_seq(&self, job: &str) -> u64 {
        let status = self.json(&format!("job status {job}"));
        status["sources"][0]["seq"].as_u64().expect("a number")
    }

    /// The state of a server, as `server list` has it.
    #[must_use]
    pub fn server_state(&self, name: &str) -> Option<String> {
        let list = self.json("server list");
        let found = list
            .as_array()?
            .iter()
            .find(|server| server["name"] == name)?;
        Some(found["state"].as_str()?.to_owned())
    }

    /// Waits until a job's state is this one; gives its status.
    ///
    /// # Panics
    /// When that does not come within half a minute.
    #[track_caller]
    pub fn wait_state(&self, job: &str, state: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.json(&format!("job status {job}"));
            if status["state"] == state {
                return status;
            }
            assert!(
                Instant::now() < end,
                "job {job} is not {state} within {PATIENCE:?}: {status:#}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn tell(&self) {
        let mut text = String::new();
        for name in self.processes.keys() {
            let log = self.log(name);
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(LOG_LINES);
            let _ = writeln!(text, "--- {name}\n{}", lines[last..].join("\n"));
        }
        eprintln!("{text}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        for process in self.processes.values_mut() {
            if let Some(mut child) = process.child.take() {
                let _ = child.kill();
                let end = Instant::now() + PATIENCE;
                while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

/// The text of a job file: `(server, path)` for the source and each target, and further lines.
#[must_use]
pub fn job_file(
    name: &str,
    source: (&str, &Path),
    targets: &[(&str, &Path)],
    more: &str,
) -> String {
    let place = |(server, path): &(&str, &Path)| {
        let key = match server.strip_prefix('@') {
            None => format!("server = {server:?}"),
            Some(group) if group.contains('/') => format!("group = {group:?}"),
            Some(region) => format!("region = {region:?}"),
        };
        format!("{{ {key}, path = {:?} }}", path.to_str().expect("UTF-8"))
    };
    let targets: Vec<String> = targets.iter().map(place).collect();
    format!(
        "name = {name:?}\nsource = [{}]\ntarget = [{}]\n{more}\n",
        place(&source),
        targets.join(", ")
    )
}

#[track_caller]
fn run(command: &mut Command) -> Said {
    said(output_within(COMMAND_MAX, command))
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The beginning of a command in a mount namespace of its own.
fn namespace() -> Command {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "--"]);
    command
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.unwrap(), signal).unwrap();
}

fn give(folder: &Path, user: u32) {
    std::os::unix::fs::chown(folder, Some(user), Some(user)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        std::os::unix::fs::chown(entry.unwrap().path(), Some(user), Some(user)).unwrap();
    }
}

/// A part of 127/8 in which nobody has the master's port. Each process and each test of it tries
/// others first.
fn free_network() -> [u8; 3] {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let process = std::process::id().to_le_bytes();
    // 127.0 and 127.1 are left to others.
    let second = 2 + process[0] % 250;
    (0..=u8::MAX)
        .map(|_| {
            [
                127,
                second,
                NEXT.fetch_add(1, Ordering::Relaxed) ^ process[1],
            ]
        })
        .find(|[a, b, c]| UdpSocket::bind(format!("{a}.{b}.{c}.1:7400")).is_ok())
        .expect("a free network of 127/8")
}
