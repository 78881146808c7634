//! What a test leaves behind when it dies or never ends: nothing.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::wait::wait_until;

/// How long cleaning up may take.
const CLEANING_MAX: Duration = Duration::from_secs(60);

/// A shell script that runs when this is dropped, or when this process ends without that, be it by
/// SIGKILL: it waits for the end of a pipe that only this process holds.
#[derive(Debug)]
pub(crate) struct Aftermath {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Aftermath {
    /// Keeps the script, and its arguments, ready.
    ///
    /// # Panics
    /// When there is no shell.
    pub(crate) fn new(script: &str, args: &[&str]) -> Self {
        let script = format!("trap '' INT TERM HUP; cat >/dev/null; {script}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).args(args);
        // What ends a whole group of processes must not end this one.
        command.process_group(0).stdin(Stdio::piped());
        let mut shell = command.spawn().expect("a shell");
        let pipe = shell.stdin.take();
        Self { shell, pipe }
    }
}

impl Drop for Aftermath {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let end = Instant::now() + CLEANING_MAX;
        while matches!(self.shell.try_wait(), Ok(None)) {
            if Instant::now() > end {
                eprintln!("cleaning up takes long: left alone");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends this process with all its tests when it is not dropped in time. A run of the tests that
/// never ends tells nobody anything.
#[derive(Debug)]
pub(crate) struct Deadline {
    alive: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Deadline {
    pub(crate) fn new(limit: Duration, what: &str) -> Self {
        let (alive, ended) = mpsc::channel();
        let what = what.to_owned();
        let wait = move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // Not `eprintln`, which the test harness would keep to itself.
                let _ = writeln!(
                    std::io::stderr(),
                    "{what} has not ended after {limit:?}: all ends here"
                );
                std::process::abort();
            }
        };
        Self {
            alive: Some(alive),
            thread: Some(std::thread::spawn(wait)),
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be run, or has not ended within `limit`; it is killed then.
#[track_caller]
pub(crate) fn output_within(limit: Duration, command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn();
    let child = child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let pid = child.id();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    match told.recv_timeout(limit) {
        Ok(output) => output.expect("its output can be read"),
        Err(_) => {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
            panic!("not within {limit:?}: {command:?}");
        }
    }
}

/// Waits for the end of a process that was told to end.
///
/// # Panics
/// When it has not ended within `limit`.
#[track_caller]
pub(crate) fn reap(limit: Duration, child: &mut Child, what: &str) {
    wait_until(limit, what, || !matches!(child.try_wait(), Ok(None)));
}
