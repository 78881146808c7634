use std::io::Write;
use std::os::fd::AsFd;
use std::sync::MutexGuard;

use super::*;
use crate::dir::{Finder, LookWants};
use crate::testing::{Place, is_root, name, path};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Log {
    hints: Vec<Hint>,
    gaps: Vec<Gap>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Log>>);

impl HintSink for Recorder {
    fn hints(&mut self, batch: &[Hint]) {
        self.0.lock().unwrap().hints.extend_from_slice(batch);
    }
    fn gap(&mut self, why: Gap) {
        self.0.lock().unwrap().gaps.push(why);
    }
}

impl Recorder {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }

    fn clear(&self) {
        *self.log() = Log::default();
    }

    /// Everything told of a name, as one.
    fn of(&self, wanted: &str) -> HintFlags {
        let wanted = Some(name(wanted));
        let mut all = HintFlags::default();
        self.log()
            .hints
            .iter()
            .filter(|h| h.name == wanted)
            .for_each(|h| all.merge(h.what));
        all
    }

    fn renames(&self) -> Vec<(Name, Name)> {
        let pair = |h: &Hint| Some((h.name.clone()?, h.renamed_to.clone()?.1));
        self.log().hints.iter().filter_map(pair).collect()
    }
}

fn fanotify(what: &str) -> Option<(Place, Recorder, Watch)> {
    if !is_root(what) {
        return None;
    }
    let place = Place::quiet();
    let recorder = Recorder::default();
    let watch = WatchHub::new()
        .watch(&place.root, Box::new(recorder.clone()))
        .unwrap();
    if watch.backend() != Backend::Fanotify {
        eprintln!("SKIPPED, no fanotify here: {what}");
        return None;
    }
    recorder.clear();
    Some((place, recorder, watch))
}

/// The same small life of a file, for both backends.
fn life_of_a_file(place: &Place) {
    let mut file = std::fs::File::create(place.at("d/new")).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    std::fs::rename(place.at("d/new"), place.at("renamed")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.at("renamed"), mode).unwrap();
    std::fs::remove_file(place.at("renamed")).unwrap();
}

fn check_life(recorder: &Recorder) {
    let new = recorder.of("new");
    assert!(new.created && new.written && new.closed, "{new:?}");
    assert_eq!(recorder.renames(), [(name("new"), name("renamed"))]);
    let renamed = recorder.of("renamed");
    assert!(renamed.attributes && renamed.removed, "{renamed:?}");
    assert!(recorder.log().gaps.is_empty());
}

/// Proves that flush returns after everything done before it was delivered, with the process that
/// did it and the folder's handle as a look shows it.
#[test]
fn fanotify_delivers_before_flush_returns() {
    let Some((place, recorder, watch)) = fanotify("hints") else {
        return;
    };
    std::fs::create_dir(place.at("d")).unwrap();
    life_of_a_file(&place);
    watch.flush(PATIENCE).unwrap();
    check_life(&recorder);
    let handle = place.look("d").unwrap().handle.unwrap();
    let own = std::process::id() as i32;
    let log = recorder.log();
    let hint = log
        .hints
        .iter()
        .find(|h| h.name == Some(name("new")))
        .unwrap();
    assert_eq!((&hint.folder, hint.pid), (&FolderRef::Handle(handle), own));
    let top = place.root.top().self_look().unwrap().handle.unwrap();
    let (to, _) = log.hints.iter().find_map(|h| h.renamed_to.clone()).unwrap();
    assert_eq!(to, FolderRef::Handle(top));
}

/// Proves that a folder's rename is one hint with both names, an exchange two, and that a change of
/// the folder itself names no file.
#[test]
fn fanotify_tells_renames_whole() {
    let Some((place, recorder, watch)) = fanotify("renames") else {
        return;
    };
    std::fs::create_dir(place.at("a")).unwrap();
    std::fs::create_dir(place.at("b")).unwrap();
    watch.flush(PATIENCE).unwrap();
    recorder.clear();
    std::fs::rename(place.at("a"), place.at("b/c")).unwrap();
    watch.flush(PATIENCE).unwrap();
    assert_eq!(recorder.renames(), [(name("a"), name("c"))]);
    assert!(recorder.log().hints[0].what.is_folder);
    recorder.clear();
    let top = place.root.top();
    drop(top.create_exclusive(&name("f"), 0o644).unwrap());
    top.exchange(&name("f"), &top, &name("b")).unwrap();
    watch.flush(PATIENCE).unwrap();
    assert_eq!(
        recorder.renames(),
        [(name("f"), name("b")), (name("b"), name("f"))]
    );
    recorder.clear();
    std::fs::set_permissions(
        place.at("f"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    watch.flush(PATIENCE).unwrap();
    let log = recorder.log();
    let own = log.hints.iter().find(|h| h.name.is_none()).unwrap();
    assert!(own.what.attributes && own.what.is_folder);
    let f = top.look(&name("f"), LookWants::HANDLE).unwrap().unwrap();
    assert_eq!(own.folder, FolderRef::Handle(f.handle.unwrap()));
}

/// Proves that a file which is changed by a name that is gone again is told, and found by its handle:
/// at its other name, also where that moved or a folder above it, and nowhere once it has none or
/// only one outside.
#[test]
fn objects_are_found_by_what_is_told() {
    let Some((place, recorder, watch)) = fanotify("objects") else {
        return;
    };
    let top = place.root.top();
    std::fs::create_dir(place.at("d")).unwrap();
    place.write("d/a", b"1");
    std::fs::hard_link(place.at("d/a"), place.at("b")).unwrap();
    let seen = top.look(&name("b"), LookWants::HANDLE).unwrap().unwrap();
    let handle = seen.handle.clone();
    recorder.clear();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.at("b"), mode).unwrap();
    std::fs::remove_file(place.at("b")).unwrap();
    watch.flush(PATIENCE).unwrap();
    let hints = recorder.log().hints.clone();
    let of = |hint: &&Hint| hint.object == handle;
    let own = hints.iter().find(|h| h.name == Some(name("b"))).unwrap();
    assert!(own.what.attributes && own.object == handle, "{own:?}");
    let strays: Vec<_> = hints.iter().filter(of).collect();
    assert!(
        strays.iter().any(|h| h.folder == FolderRef::Nowhere),
        "{strays:?}"
    );

    let handle = handle.unwrap();
    let find = || Finder::open(&place.root).unwrap().find(&handle).unwrap();
    std::fs::rename(place.at("d"), place.at("e")).unwrap();
    let folder = top.look(&name("e"), LookWants::HANDLE).unwrap().unwrap();
    let found = find().unwrap();
    assert_eq!(found.identity, seen.fingerprint.identity);
    assert_eq!(found.name, Some((folder.handle.unwrap(), name("a"))));
    assert!(!found.several);
    std::fs::hard_link(place.at("e/a"), place.base.path().join("out")).unwrap();
    assert!(find().unwrap().several);
    std::fs::remove_file(place.at("e/a")).unwrap();
    assert_eq!(find(), None);
    std::fs::hard_link(place.base.path().join("out"), place.at("back")).unwrap();
    std::fs::remove_file(place.base.path().join("out")).unwrap();
    let held = std::fs::File::open(place.at("back")).unwrap();
    assert_eq!(find().unwrap().name.unwrap().1, name("back"));
    std::fs::remove_file(place.at("back")).unwrap();
    assert_eq!(find(), None, "it is open, but has no name");
    drop(held);
    assert_eq!(find(), None);
}

/// Proves that one group serves several roots of a filesystem, and that a dropped watch is told
/// nothing more.
#[test]
fn roots_share_a_group() {
    let Some((place, first, watch)) = fanotify("two roots") else {
        return;
    };
    let hub = WatchHub::new();
    let (a, b) = (Recorder::default(), Recorder::default());
    let watch_a = hub.watch(&place.root, Box::new(a.clone())).unwrap();
    let watch_b = hub.watch(&place.root, Box::new(b.clone())).unwrap();
    assert_eq!(hub.groups.lock().unwrap().len(), 1);
    place.write("one", b"");
    drop(watch_b);
    b.clear();
    place.write("two", b"");
    watch_a.flush(PATIENCE).unwrap();
    assert!(a.of("one").created && a.of("two").created);
    assert!(b.log().hints.is_empty());
    drop(watch_a);
    assert!(
        hub.groups
            .lock()
            .unwrap()
            .values()
            .all(|g| g.strong_count() == 0)
    );
    watch.flush(PATIENCE).unwrap();
    assert!(first.of("two").created);
}

/// Proves that an ignored folder is silent but for what is renamed out of it.
#[test]
fn ignored_folder_tells_only_renames() {
    let Some((place, recorder, watch)) = fanotify("ignore marks") else {
        return;
    };
    std::fs::create_dir(place.at("stage")).unwrap();
    let stage = place.root.top().open_folder(&name("stage")).unwrap();
    watch.ignore_folder(&stage);
    watch.flush(PATIENCE).unwrap();
    recorder.clear();
    let file = stage.create_exclusive(&name("temp"), 0o600).unwrap();
    rustix::io::write(file.as_fd(), b"x").unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    drop(file);
    drop(stage.create_exclusive(&name("other"), 0o600).unwrap());
    stage.unlink(&name("other")).unwrap();
    stage
        .rename_new(&name("temp"), &place.root.top(), &name("final"))
        .unwrap();
    watch.flush(PATIENCE).unwrap();
    assert_eq!(recorder.renames(), [(name("temp"), name("final"))]);
    let about_stage = |h: &&Hint| h.renamed_to.is_none() && h.name != Some(name("final"));
    let log = recorder.log();
    let rest: Vec<_> = log
        .hints
        .iter()
        .filter(about_stage)
        .filter(|h| [Some(name("temp")), Some(name("other"))].contains(&h.name))
        .collect();
    assert!(rest.is_empty(), "{rest:?}");
}

/// Proves that a storm of events arrives whole while the reader takes its pauses.
#[test]
fn storm_arrives_whole() {
    let Some((place, recorder, watch)) = fanotify("a storm") else {
        return;
    };
    for n in 0..3000 {
        place.write(&format!("s{n}"), b"x");
    }
    watch.flush(PATIENCE).unwrap();
    if recorder.log().gaps.is_empty() {
        for n in 0..3000 {
            assert!(recorder.of(&format!("s{n}")).created, "s{n}");
        }
    } else {
        assert!(recorder.log().gaps.iter().all(|g| *g == Gap::Overflow));
    }
}

fn inotify(place: &Place) -> (Recorder, Watch) {
    let recorder = Recorder::default();
    let hub = WatchHub::unprivileged();
    let watch = hub.watch(&place.root, Box::new(recorder.clone())).unwrap();
    assert_eq!(watch.backend(), Backend::Notify("inotify"));
    (recorder, watch)
}

/// Proves that the other backend gives equivalent hints, by path, and that its flush delivers.
#[test]
fn notify_gives_equivalent_hints() {
    let place = Place::quiet();
    std::fs::create_dir(place.at("d")).unwrap();
    let (recorder, watch) = inotify(&place);
    watch.flush(PATIENCE).unwrap();
    recorder.clear();
    life_of_a_file(&place);
    watch.flush(PATIENCE).unwrap();
    check_life(&recorder);
    let log = recorder.log();
    let hint = log
        .hints
        .iter()
        .find(|h| h.name == Some(name("new")))
        .unwrap();
    assert_eq!(hint.folder, FolderRef::Path(path("d")));
    let (to, _) = log.hints.iter().find_map(|h| h.renamed_to.clone()).unwrap();
    assert_eq!(to, FolderRef::Path(RelPath::root()));
}

/// Proves that folders that come or move are told as a gap, as nothing in them is watched for a
/// moment, and that once the watch has settled everything in them is told, also below them.
#[test]
fn notify_tells_new_and_moved_folders() {
    let place = Place::quiet();
    let (recorder, watch) = inotify(&place);
    std::fs::create_dir_all(place.at("a/m")).unwrap();
    watch.flush(PATIENCE).unwrap();
    assert!(recorder.log().gaps.contains(&Gap::NotWatched));
    watch.settle();
    recorder.clear();
    std::fs::rename(place.at("a"), place.at("n")).unwrap();
    watch.flush(PATIENCE).unwrap();
    assert!(recorder.log().gaps.contains(&Gap::NotWatched));
    watch.settle();
    place.write("n/m/file", b"x");
    watch.flush(PATIENCE).unwrap();
    assert!(recorder.of("file").created);
    drop(watch);
    recorder.clear();
    place.write("n/m/after", b"x");
    assert!(recorder.log().hints.is_empty());
}

/// Proves that the root's own end is a gap, by which the job is halted.
#[test]
fn notify_tells_the_roots_end() {
    let place = Place::quiet();
    let (recorder, _watch) = inotify(&place);
    std::fs::rename(place.at(""), place.base.path().join("away")).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !recorder.log().gaps.contains(&Gap::RootChanged) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
}

/// Proves that hints come on a filesystem which may refuse marks, by whatever backend proves itself.
#[test]
fn overlay_is_watched_somehow() {
    if !is_root("mounting an overlay") {
        return;
    }
    let place = Place::quiet();
    let base = place.base.path();
    for folder in ["lower", "upper", "work"] {
        std::fs::create_dir(base.join(folder)).unwrap();
    }
    let at = |folder: &str| base.join(folder).display().to_string();
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower"),
        at("upper"),
        at("work")
    );
    let run = |program: &str, args: &[&str]| {
        std::process::Command::new(program)
            .args(args)
            .output()
            .unwrap()
            .status
            .success()
    };
    if !run(
        "mount",
        &["-t", "overlay", "overlay", "-o", &layers, &at("root")],
    ) {
        eprintln!("SKIPPED, cannot mount an overlay here");
        return;
    }
    let recorder = Recorder::default();
    let watched = (|| {
        let root = Root::open(base, &path("root")).ok()?;
        let watch = WatchHub::new()
            .watch(&root, Box::new(recorder.clone()))
            .ok()?;
        place.write("file", b"x");
        watch.flush(PATIENCE).ok()?;
        Some(watch.backend())
    })();
    assert!(run("umount", &["-l", &at("root")]));
    eprintln!("overlay is watched by {watched:?}");
    assert!(watched.is_some() && recorder.of("file").created);
}
