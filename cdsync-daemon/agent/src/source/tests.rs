//! A source on a real folder, watched by whatever this process may use.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cdsync_core::filter::FilterSpec;
use cdsync_core::ids::JobId;
use cdsync_core::job::Settings;
use cdsync_core::ledger::access::{Folders, children, live, log_after};
use cdsync_core::ledger::object::Kind;
use cdsync_core::ledger::outgoing::content_at;
use cdsync_core::ledger::rows::LiveObject;
use cdsync_fs::open_content;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const JOB: JobId = JobId(7);

struct Bed {
    space: tempfile::TempDir,
    board: Arc<Board>,
    log: Arc<JobLog>,
    hints_max: usize,
    settings: Settings,
    hub: Arc<WatchHub>,
    source: Option<Source>,
}

impl Bed {
    fn new(hints_max: usize) -> Self {
        let space = tempfile::tempdir().unwrap();
        fs::create_dir(space.path().join("root")).unwrap();
        Self {
            space,
            board: Arc::new(Board::default()),
            log: Arc::new(JobLog::default()),
            hints_max,
            settings: Settings::default(),
            hub: Arc::new(WatchHub::new()),
            source: None,
        }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.space.path().join("root").join(below)
    }

    fn write(&self, below: &str, bytes: &[u8]) {
        let path = self.at(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn start(&mut self) {
        let root = RootPath::new(self.at("").to_str().unwrap().trim_end_matches('/')).unwrap();
        let order = JobOrder {
            job: JOB,
            name: "site".parse().unwrap(),
            mode: Mode::Realtime,
            filter: FilterSpec::default(),
            paused: false,
            settings: self.settings.clone(),
            source: Some(SourceOrder {
                root,
                run: 0,
                resume: 0,
                decision: cdsync_core::wire::Decision::default(),
            }),
            target: None,
        };
        let context = SourceContext {
            order,
            allowed: vec![self.space.path().to_owned()],
            ledger: self.space.path().join("ledger.redb"),
            hub: Arc::clone(&self.hub),
            board: Arc::clone(&self.board),
            log: Arc::clone(&self.log),
            serving: Arc::new(Mutex::new(None)),
            hints_max: self.hints_max,
        };
        self.source = Some(Source::start(context).unwrap());
        self.until("the first scan ends", |bed| {
            bed.served().is_some_and(|s| s.announced.borrow().complete)
        });
        self.fence();
    }

    fn stop(&mut self) {
        self.source = None;
    }

    fn served(&self) -> Option<Arc<Served>> {
        let slot = &self.source.as_ref().unwrap().serving;
        slot.lock().unwrap().clone()
    }

    fn report(&self) -> SourceReport {
        let jobs = self.board.report().jobs;
        jobs.into_iter()
            .find_map(|job| job.source)
            .unwrap_or_default()
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < PATIENCE, "{what}: {:?}", self.report());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything that was done before is in the log.
    fn fence(&self) -> FenceAnswer {
        let (reply, answer) = oneshot::channel();
        let engine = &self.source.as_ref().unwrap().engine;
        engine.send(Input::Fence(reply)).unwrap();
        answer.blocking_recv().unwrap().unwrap()
    }

    /// What the ledger has, by path; folders end in a slash.
    fn ledger(&self) -> Vec<(String, LiveObject)> {
        let served = self.served().unwrap();
        let view = served.store.read().unwrap();
        let mut stack = vec![(String::new(), ObjectId::root(served.origin))];
        let mut found = Vec::new();
        while let Some((path, folder)) = stack.pop() {
            let mut names = Vec::new();
            children(&view, folder, &mut |name, row| {
                names.push((name.to_string(), row.object));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
            for (name, id) in names {
                let row = live(&view, id.unwrap()).unwrap().unwrap();
                let mut path = format!("{path}{name}");
                if row.state.kind == Kind::Folder {
                    path.push('/');
                    stack.push((path.clone(), id.unwrap()));
                }
                found.push((path, row));
            }
        }
        found
    }

    fn object(&self, path: &str) -> LiveObject {
        let found = self.ledger().into_iter().find(|(at, _)| at == path);
        found
            .unwrap_or_else(|| panic!("{path} is not in the ledger"))
            .1
    }

    fn assert_equal(&self) {
        let found: BTreeSet<String> = self.ledger().into_iter().map(|(path, _)| path).collect();
        let mut wanted = BTreeSet::new();
        walk(&self.at(""), "", &mut wanted);
        assert_eq!(found, wanted);
    }

    /// Reads every file for sending, as a subscription does, until the hashes are noted.
    fn send_all(&self) {
        let served = self.served().unwrap();
        for (path, row) in self.ledger() {
            if row.state.kind != Kind::File {
                continue;
            }
            let view = served.store.read().unwrap();
            let at = content_at(&view, &mut Folders::default(), row.state.id, Seq(0));
            let at = at.unwrap().unwrap();
            let dir = served.root.dir(&dir_ref(&at.folder)).unwrap();
            let reader = open_content(&dir, &at.name, &at.fingerprint).expect(&path);
            let hash = reader.read_small(&mut Vec::new()).unwrap();
            let hashed = vec![(
                at.object,
                at.version,
                cdsync_core::ledger::object::Hash(hash),
            )];
            served.engine.send(Input::Hashed(hashed)).unwrap();
        }
        self.until("hashes are noted", |bed| {
            let mut rows = bed.ledger().into_iter();
            rows.all(|(_, row)| {
                use cdsync_core::ledger::object::Content;
                !matches!(row.state.content, Content::Data { hash: None, .. })
            })
        });
    }
}

fn walk(folder: &Path, below: &str, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name == ".cdsync" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            let path = format!("{below}{name}/");
            walk(&entry.path(), &path, into);
            into.insert(path);
        } else {
            into.insert(format!("{below}{name}"));
        }
    }
}

/// Proves that hints beyond the buffer compare the folders that they speak of and no others, find
/// deletes and renames in them as such, and are told while they are open and in the job's log.
#[test]
fn own_overflow_compares_only_its_folders() {
    let mut bed = Bed::new(0);
    for folder in 0..100 {
        bed.write(&format!("quiet/{folder}/f"), b"x");
    }
    for file in 0..200 {
        bed.write(&format!("gone/{file}"), b"x");
        bed.write(&format!("from/{file}"), b"x");
    }
    bed.start();
    let (moved, listed) = (bed.object("from/7"), bed.report().listed);
    fs::remove_dir_all(bed.at("gone")).unwrap();
    fs::create_dir(bed.at("to")).unwrap();
    for file in 0..200 {
        let name = |folder: &str| bed.at(&format!("{folder}/{file}"));
        fs::rename(name("from"), name("to")).unwrap();
    }
    fs::rename(bed.at("quiet/5"), bed.at("to/five")).unwrap();
    assert!(bed.fence().held.is_empty());
    bed.assert_equal();
    let now = bed.object("to/7");
    assert_eq!(now.state.id, moved.state.id, "it was found by its identity");
    bed.until("the gaps are closed", |bed| bed.report().gap_count == 0);
    // Each burst of hints lists what it speaks of once more, never what lies beside it.
    assert!(bed.report().listed - listed < 60, "{:?}", bed.report());
    let lines = bed.log.after(0, 1000);
    assert!(
        lines
            .iter()
            .any(|line| line.detail.contains("hints were lost")),
        "{lines:?}"
    );
}

/// Proves that an overflow of the kernel's queue, which names nothing, is repaired by looking at
/// everything: nothing stays that was removed, nothing is read that looks as before.
#[test]
fn kernel_overflow_compares_everything_by_stat() {
    const LIMIT: &str = "/proc/sys/fs/fanotify/max_queued_events";
    struct Restored(String);
    impl Drop for Restored {
        fn drop(&mut self) {
            fs::write(LIMIT, &self.0).unwrap();
        }
    }
    let Ok(limit) = fs::read_to_string(LIMIT) else {
        return;
    };
    if fs::write(LIMIT, &limit).is_err() {
        eprintln!("skipped: only root lowers the limit of the kernel's queue");
        return;
    }
    let mut bed = Bed::new(crate::HINTS_MAX);
    for folder in 0..20 {
        for file in 0..50 {
            bed.write(&format!("{folder}/{file}"), b"x");
        }
    }
    let restored = Restored(limit);
    fs::write(LIMIT, "8").unwrap();
    bed.start();
    drop(restored);
    bed.send_all();
    let (kept, listed) = (bed.object("7/7"), bed.report().listed);
    let began = Instant::now();
    // Until it overflowed: the reader may be quick.
    while bed.report().listed < listed + 20 {
        assert!(
            began.elapsed() < PATIENCE,
            "the kernel's queue never overflowed"
        );
        for file in 0..50 {
            fs::remove_file(bed.at(&format!("3/{file}"))).unwrap();
        }
        fs::rename(bed.at("5"), bed.at("five")).unwrap();
        for file in 0..25 {
            fs::rename(bed.at(&format!("4/{file}")), bed.at(&format!("3/{file}"))).unwrap();
        }
        bed.fence();
        bed.assert_equal();
        fs::rename(bed.at("five"), bed.at("5")).unwrap();
        for file in 0..50 {
            bed.write(&format!("3/{file}"), b"y");
            bed.write(&format!("4/{file}"), b"y");
        }
        bed.fence();
        bed.assert_equal();
    }
    assert_eq!(bed.object("7/7"), kept, "it was looked at and not told of");
    bed.until("the gap is closed", |bed| bed.report().gap_count == 0);
}

/// Proves that a change of attributes while the source was down goes without content, that the
/// bytes are read again, and that they are told of if they are other ones with the same times.
#[test]
fn bytes_are_compared_after_downtime() {
    let mut bed = Bed::new(crate::HINTS_MAX);
    for file in ["same", "other"] {
        bed.write(file, b"first");
    }
    bed.start();
    bed.send_all();
    let before = ["same", "other"].map(|file| bed.object(file).state.content_seq);
    bed.stop();
    for file in ["same", "other"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = bed.at(file);
        let mtime = fs::metadata(&path).unwrap().modified().unwrap();
        if file == "other" {
            fs::write(&path, b"Other").unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::File::open(&path).unwrap().set_modified(mtime).unwrap();
    }
    bed.start();
    for (file, before) in ["same", "other"].into_iter().zip(before) {
        let now = bed.object(file).state;
        assert_eq!(now.meta.mode, 0o600);
        assert_eq!(
            now.content_seq != before,
            file == "other",
            "{file}: {now:?}"
        );
    }
    // A fence waited for them; the report is a moment behind.
    bed.until("nothing is in doubt", |bed| bed.report().doubts == 0);
}

/// Proves that the log is dropped up to what all targets are said to claim and no further, that
/// what is said of another ledger changes nothing, and that what is beyond the claim can be sent.
#[test]
fn what_all_claim_is_dropped() {
    let mut bed = Bed::new(1 << 16);
    bed.start();
    let tell = |bed: &Bed, origin, upto| {
        let job = JOB;
        let engine = &bed.source.as_ref().unwrap().engine;
        engine
            .send(Input::Claimed(ClaimedByAll { job, origin, upto }))
            .unwrap();
        bed.fence();
    };
    bed.write("first", b"1");
    let first = bed.fence();
    bed.write("second", b"2");
    let second = bed.fence();
    tell(&bed, OriginId(first.origin.0 ^ 1), second.seq);
    assert_eq!(bed.report().log.start, Seq(0), "of another ledger");
    let before = bed.report().log.bytes;
    tell(&bed, first.origin, first.seq);
    bed.until("the log is dropped", |bed| {
        bed.report().log.start == first.seq
    });
    assert!((1..before).contains(&bed.report().log.bytes));
    let mut left = Vec::new();
    let served = bed.served().unwrap();
    log_after(
        &served.store.read().unwrap(),
        first.seq,
        &mut |_, record| {
            left.push(record.seq);
            std::ops::ControlFlow::Continue(())
        },
    )
    .unwrap();
    drop(served);
    assert_eq!(left.last(), Some(&second.seq));
    assert_eq!(left.first(), Some(&first.seq.next()));
    // More than was announced cannot be claimed: it is said of another history.
    tell(&bed, first.origin, second.seq.next());
    bed.fence();
    assert_eq!(bed.report().log.start, first.seq);
    tell(&bed, first.origin, second.seq);
    bed.until("all is dropped", |bed| bed.report().log.start == second.seq);
    bed.stop();
    bed.start();
    assert_eq!(bed.report().log.start, second.seq);
    bed.assert_equal();
}

/// Proves that a root from which no events come is compared again and again: changes, deletes and
/// renames are found, those before a fence by that fence, and nothing is sent again for a rename.
#[test]
fn where_no_events_come_it_is_polled() {
    let mut bed = Bed::new(crate::HINTS_MAX);
    bed.hub = Arc::new(WatchHub::without_events());
    for file in ["a/kept", "a/gone", "a/moved"] {
        bed.write(file, b"x");
    }
    bed.start();
    bed.send_all();
    let moved = bed.object("a/moved");
    fs::remove_file(bed.at("a/gone")).unwrap();
    fs::create_dir(bed.at("b")).unwrap();
    fs::rename(bed.at("a/moved"), bed.at("b/here")).unwrap();
    bed.write("b/new", b"y");
    bed.fence();
    bed.assert_equal();
    let now = bed.object("b/here").state;
    assert_eq!(
        (now.id, now.content_seq),
        (moved.state.id, moved.state.content_seq)
    );
    bed.write("later", b"z");
    bed.until("it is found without a fence", |bed| {
        bed.ledger().iter().any(|(path, _)| path == "later")
    });
}

/// Proves that what is mounted below a root is reported and not entered, and that nothing is deleted
/// when it comes or goes.
#[test]
fn mounts_come_and_go_and_delete_nothing() {
    let mut bed = Bed::new(crate::HINTS_MAX);
    bed.write("disk/below/f", b"x");
    bed.write("other", b"x");
    let mount = |what: &str, path: &Path| {
        let mut command = std::process::Command::new(what);
        if what == "mount" {
            command.args(["-t", "tmpfs", "cdsync-test"]);
        }
        command
            .arg(path)
            .output()
            .is_ok_and(|out| out.status.success())
    };
    let at = bed.at("disk");
    if !mount("mount", &at) {
        eprintln!("skipped: only root mounts");
        return;
    }
    fs::write(at.join("foreign"), b"not ours").unwrap();
    assert!(mount("umount", &at));
    bed.start();
    bed.assert_equal();
    let before = bed.ledger();
    assert!(mount("mount", &at));
    struct Unmounted(PathBuf);
    impl Drop for Unmounted {
        fn drop(&mut self) {
            drop(std::process::Command::new("umount").arg(&self.0).output());
        }
    }
    let mounted = Unmounted(at.clone());
    fs::write(at.join("foreign"), b"not ours").unwrap();
    bed.write("other", b"changed");
    bed.fence();
    // A start compares everything.
    bed.stop();
    bed.start();
    let error = bed.report().last_error.unwrap_or_default();
    assert!(error.contains("another filesystem is mounted"), "{error}");
    let paths = |ledger: Vec<(String, LiveObject)>| {
        let mut ids: Vec<_> = ledger
            .into_iter()
            .map(|(p, row)| (p, row.state.id))
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(paths(bed.ledger()), paths(before.clone()));
    drop(mounted);
    bed.write("disk/below/g", b"x");
    bed.stop();
    bed.start();
    bed.assert_equal();
    assert_eq!(paths(bed.ledger()).len(), before.len() + 1);
}
