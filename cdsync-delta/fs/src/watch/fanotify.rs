//! One fanotify group for a whole filesystem, read by its own thread.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::parse::{METADATA_BYTES, Parsed, parse};
use super::{FlushError, Gap, Hint, HintSink};
use crate::dir::Dir;
use crate::sys;

/// Room for one read: some thousand events.
const BUFFER_BYTES: usize = 256 * 1024;

/// More events than this within [`WINDOW`] are a storm.
const STORM_EVENTS: u64 = 128;
const WINDOW: Duration = Duration::from_millis(10);

/// The pause between two reads in a storm. The kernel merges events of one name meanwhile, which
/// measured a tenth of the cost of reading at once; idle, nothing waits.
const STORM_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

const MASK: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_RENAME
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR;

/// What happens in an ignored folder but renames: these end outside of it.
const IGNORED: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR
    | libc::FAN_EVENT_ON_CHILD;

type SharedSink = Arc<Mutex<Box<dyn HintSink>>>;

/// A group and its reader. Ends when the last member leaves.
#[derive(Debug)]
pub(super) struct Group {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    group: OwnedFd,
    /// Wakes the reader for a flush or the end.
    wake: OwnedFd,
    sinks: Mutex<Sinks>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct Sinks {
    next: u64,
    list: Vec<(u64, SharedSink)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    flush_wanted: u64,
    flush_done: u64,
    stop: bool,
    ended: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // All that is guarded here is consistent between any two statements that may panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// Marks the filesystem of `dir` and starts the reader.
    ///
    /// Besides folder and name, `FAN_REPORT_FID` tells the object of a change, and of each that got or
    /// lost a name: where a name is gone when it is looked at, the object may have another one. The
    /// queue keeps its default limit: an unlimited one could take all memory, and an overflow is
    /// only a walk.
    pub(super) fn start(dir: &Dir) -> Result<Arc<Self>, Errno> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_REPORT_DFID_NAME
            | libc::FAN_REPORT_FID
            | libc::FAN_NONBLOCK
            | libc::FAN_CLOEXEC;
        let group = sys::fanotify_init(flags)?;
        let mark = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        sys::fanotify_mark(group.as_fd(), mark, MASK, dir.as_fd())?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            group,
            wake,
            sinks: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("cdsync-fanotify".to_owned())
            .spawn(move || reading.run())
            .map_err(|_| Errno::AGAIN)?;
        Ok(Arc::new(Self {
            shared,
            reader: Mutex::new(Some(reader)),
        }))
    }

    pub(super) fn is_alive(&self) -> bool {
        !lock(&self.shared.state).ended
    }

    /// Adds a sink. It gets every hint of the filesystem from now on.
    pub(super) fn join(self: &Arc<Self>, sink: SharedSink) -> Member {
        let mut sinks = lock(&self.shared.sinks);
        sinks.next += 1;
        let id = sinks.next;
        sinks.list.push((id, sink));
        drop(sinks);
        Member {
            group: Arc::clone(self),
            id,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.wake();
        let reader = lock(&self.reader).take();
        if let Some(reader) = reader
            && reader.thread().id() != std::thread::current().id()
            && reader.join().is_err()
        {
            tracing::warn!("the fanotify reader had panicked");
        }
    }
}

/// One sink's place in a group; it leaves when dropped.
#[derive(Debug)]
pub(super) struct Member {
    group: Arc<Group>,
    id: u64,
}

impl Member {
    pub(super) fn flush(&self, patience: Duration) -> Result<(), FlushError> {
        let shared = &self.group.shared;
        let mut state = lock(&shared.state);
        state.flush_wanted += 1;
        let ticket = state.flush_wanted;
        shared.wake();
        let deadline = Instant::now() + patience;
        while state.flush_done < ticket {
            if state.ended {
                return Err(FlushError::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FlushError::TimedOut);
            }
            let waited = shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    pub(super) fn ignore_folder(&self, folder: &Dir) {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORE_SURV;
        let group = self.group.shared.group.as_fd();
        if let Err(errno) = sys::fanotify_mark(group, flags, IGNORED, folder.as_fd()) {
            // Only costs time. Kernels before 6.0 do not know this kind of mark.
            tracing::debug!(folder = %folder.path(), %errno, "no ignore mark");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        lock(&self.group.shared.sinks)
            .list
            .retain(|(id, _)| *id != self.id);
    }
}

/// How often to read.
#[derive(Debug)]
struct Pace {
    window: Instant,
    events: u64,
    storm_until: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            window: now,
            events: 0,
            storm_until: now,
        }
    }

    fn note(&mut self, events: u64) {
        let now = Instant::now();
        if now.duration_since(self.window) > WINDOW {
            self.window = now;
            self.events = 0;
        }
        self.events += events;
        if self.events >= STORM_EVENTS {
            self.storm_until = now + WINDOW;
        }
    }

    fn is_storm(&self) -> bool {
        Instant::now() < self.storm_until
    }
}

impl Shared {
    #[expect(
        clippy::host_endian_bytes,
        reason = "an eventfd counts in the machine's byte order"
    )]
    fn wake(&self) {
        // Full only if it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn run(&self) {
        if let Err(errno) = self.read_events() {
            tracing::error!(%errno, "the fanotify reader failed");
            self.broadcast(&[], Some(Gap::Ended));
        }
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    fn read_events(&self) -> Result<(), Errno> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut hints = Vec::new();
        let mut pace = Pace::new();
        loop {
            if pace.is_storm() {
                wait(
                    &mut [PollFd::new(&self.wake, PollFlags::IN)],
                    Some(&STORM_PAUSE),
                )?;
            }
            let group = PollFd::new(&self.group, PollFlags::IN);
            wait(&mut [group, PollFd::new(&self.wake, PollFlags::IN)], None)?;
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            let state = *lock(&self.state);
            if state.stop {
                return Ok(());
            }
            if state.flush_wanted > state.flush_done {
                self.read_all_queued(&mut buffer, &mut hints)?;
                lock(&self.state).flush_done = state.flush_wanted;
                self.changed.notify_all();
            } else {
                pace.note(self.read_once(&mut buffer, &mut hints)?.unwrap_or(0));
            }
        }
    }

    /// Reads as many events as are queued now; in a storm more come all the time.
    fn read_all_queued(&self, buffer: &mut [u8], hints: &mut Vec<Hint>) -> Result<(), Errno> {
        // FIONREAD counts the fixed part of each event alone.
        let queued = rustix::io::ioctl_fionread(&self.group)?.div_ceil(METADATA_BYTES as u64);
        let mut read = 0;
        while read < queued {
            match self.read_once(buffer, hints)? {
                Some(events) => read += events,
                None => break,
            }
        }
        Ok(())
    }

    /// Reads and delivers once. Tells how many events there were, `None` when there was none.
    fn read_once(&self, buffer: &mut [u8], hints: &mut Vec<Hint>) -> Result<Option<u64>, Errno> {
        let length = match rustix::io::read(&self.group, &mut *buffer) {
            Ok(length) => length,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => return Ok(Some(0)),
            Err(errno) => return Err(errno),
        };
        hints.clear();
        let parsed = parse(&buffer[..length], hints);
        self.broadcast(hints, gap_of(parsed));
        Ok(Some(parsed.events))
    }

    fn broadcast(&self, hints: &[Hint], gap: Option<Gap>) {
        // Held while delivering, so that a member that has left is not called any more.
        for (_, sink) in &lock(&self.sinks).list {
            let mut sink = lock(sink);
            if !hints.is_empty() {
                sink.hints(hints);
            }
            if let Some(gap) = gap {
                sink.gap(gap);
            }
        }
    }
}

fn gap_of(parsed: Parsed) -> Option<Gap> {
    if parsed.overflow {
        Some(Gap::Overflow)
    } else if parsed.malformed {
        Some(Gap::Malformed)
    } else {
        None
    }
}

fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<(), Errno> {
    match rustix::event::poll(fds, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
