//! First copies and live changes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cdsync_tests::{Churn, Cluster, Random, is_root, job_file, make_tree, seed};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A cluster of a source and two targets, and the job `site`.
struct Site {
    cluster: Cluster,
    source: PathBuf,
    targets: [PathBuf; 2],
}

impl Site {
    fn start(fill: impl FnOnce(&Path)) -> Self {
        let mut cluster = Cluster::start();
        let [source, one, two] = ["source", "one", "two"].map(|name| cluster.space.folder(name));
        fill(&source);
        cluster.agent("origin", &source);
        cluster.agent("edge-1", &one);
        cluster.agent("edge-2", &two);
        let targets: [(&str, &Path); 2] = [("edge-1", &one), ("edge-2", &two)];
        // Nearly everything is deleted at once here, which is somebody else's test.
        let more = "guard = { percent = 100 }";
        let job = job_file("site", ("origin", &source), &targets, more);
        cluster.apply(&job, &[]).expect(0);
        let site = Self {
            cluster,
            source,
            targets: [one, two],
        };
        site.settled("first copy");
        site
    }

    #[track_caller]
    fn settled(&self, step: &str) {
        let began = Instant::now();
        self.cluster.wait("site");
        eprintln!("{step}: {:?}", began.elapsed());
        for target in &self.targets {
            self.cluster.assert_equal("site", &self.source, target);
        }
    }

    /// Makes a change and compares; gives the number of records that it took, beside those that
    /// only say new times of folders.
    #[track_caller]
    fn step(&self, what: &str, change: impl FnOnce(&Path)) -> usize {
        let before = self.cluster.source_seq("site");
        change(&self.source);
        self.settled(what);
        let lines = self.cluster.json("job log site")["lines"].take();
        let mut records = BTreeSet::new();
        for line in lines.as_array().unwrap() {
            let seq = line["seq"].as_u64().unwrap();
            if line["server"] == "origin" && seq > before {
                eprintln!("  {seq} {} {} {}", line["op"], line["path"], line["detail"]);
                if line["op"] != "attributes" {
                    records.insert(seq);
                }
            }
        }
        records.len()
    }
}

fn sample(top: &Path) {
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    fs::create_dir(top.join("empty")).unwrap();
    for (name, content) in [
        ("a/one", "1"),
        ("a/b/two", "22"),
        ("a/b/c/three", "333"),
        ("top", ""),
    ] {
        fs::write(top.join(name), content).unwrap();
    }
    fs::write(top.join("large"), Random::new(7).bytes(3 << 20)).unwrap();
    symlink("a/one", top.join("link")).unwrap();
    symlink("/nowhere/at all", top.join("dangling")).unwrap();
    fs::set_permissions(top.join("a/b"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir(top.join("many")).unwrap();
    for number in 0..2_000 {
        fs::write(top.join(format!("many/{number}")), number.to_string()).unwrap();
    }
}

/// Proves that a first copy, and then every kind of change of files and folders, reaches two targets
/// with content and metadata, and that renames and swaps of folders are one record each.
#[test]
fn every_kind_of_change_arrives() {
    let site = Site::start(sample);
    let in_place = |top: &Path| {
        let file = File::options().write(true).open(top.join("large")).unwrap();
        file.write_all_at(b"changed in the middle", 1_000_000)
            .unwrap();
    };
    site.step("new file", |top| fs::write(top.join("new"), "new").unwrap());
    site.step("edit in place", in_place);
    site.step("save as editors do", |top| {
        fs::write(top.join("a/.one.swp"), "saved").unwrap();
        fs::rename(top.join("a/.one.swp"), top.join("a/one")).unwrap();
    });
    site.step("append", |top| {
        let mut file = File::options()
            .append(true)
            .open(top.join("a/b/two"))
            .unwrap();
        file.write_all(b"more").unwrap();
    });
    site.step("truncate", |top| {
        File::options()
            .write(true)
            .open(top.join("large"))
            .unwrap()
            .set_len(999_999)
            .unwrap();
    });
    let records = site.step("rename a file", |top| {
        fs::rename(top.join("large"), top.join("a/b/larger")).unwrap();
    });
    assert_eq!(records, 1);
    let inode = |path: &str| fs::metadata(site.targets[0].join(path)).unwrap().ino();
    let kept = inode("many/77");
    let records = site.step("rename a folder with 2,000 files", |top| {
        fs::rename(top.join("many"), top.join("a/lots")).unwrap();
    });
    assert_eq!(records, 1);
    assert_eq!(inode("a/lots/77"), kept, "it was copied, not renamed");
    let records = site.step("swap two folders", |top| {
        let (x, y) = (top.join("a/lots"), top.join("empty"));
        renameat_with(CWD, x, CWD, y, RenameFlags::EXCHANGE).unwrap();
    });
    assert_eq!(records, 1);
    assert_eq!(inode("empty/77"), kept, "it was copied, not swapped");
    let records = site.step("swap a file and a folder", |top| {
        let (x, y) = (top.join("new"), top.join("empty"));
        renameat_with(CWD, x, CWD, y, RenameFlags::EXCHANGE).unwrap();
    });
    assert_eq!(records, 1);
    let records = site.step("rename over", |top| {
        fs::rename(top.join("a/one"), top.join("top")).unwrap();
    });
    assert_eq!(records, 1);
    metadata(&site);
    names(&site);
    site.step("delete a file", |top| {
        fs::remove_file(top.join("top")).unwrap()
    });
    site.step("delete a tree", |top| {
        fs::remove_dir_all(top.join("new")).unwrap()
    });
    site.step("delete everything", |top| {
        for entry in fs::read_dir(top).unwrap().flatten() {
            let path = entry.path();
            match path.file_name().unwrap().as_bytes() {
                b".cdsync" => {}
                _ if entry.file_type().unwrap().is_dir() => fs::remove_dir_all(path).unwrap(),
                _ => fs::remove_file(path).unwrap(),
            }
        }
        fs::write(top.join("last"), "").unwrap();
    });
}

fn metadata(site: &Site) {
    site.step("mode", |top| {
        let modes = [
            ("a/b/larger", 0o4711),
            ("a/b", 0o2755),
            ("a/b/c/three", 0o400),
        ];
        for (path, mode) in modes {
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
    });
    if is_root() {
        site.step("owner", |top| {
            let chown = std::os::unix::fs::lchown;
            chown(top.join("a/b/larger"), Some(1234), Some(4321)).unwrap();
            chown(top.join("a/b"), Some(1), None).unwrap();
            chown(top.join("dangling"), None, Some(5)).unwrap();
        });
    } else {
        eprintln!("SKIPPED: changes of owner (needs root)");
    }
    site.step("times", |top| {
        for (path, seconds) in [
            ("a/b/two", 1_000_000_000),
            ("a", 86_400),
            ("a/b/c", 4_000_000_000),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, 987_654_321);
            File::open(top.join(path))
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
    });
    site.step("symlink to elsewhere", |top| {
        fs::remove_file(top.join("link")).unwrap();
        symlink("../../etc/passwd", top.join("link")).unwrap();
        symlink("b", top.join("a/tmp")).unwrap();
        fs::rename(top.join("a/tmp"), top.join("dangling")).unwrap();
    });
    site.step("a file becomes a folder", |top| {
        fs::remove_file(top.join("a/b/two")).unwrap();
        fs::create_dir(top.join("a/b/two")).unwrap();
        fs::write(top.join("a/b/two/in"), "in").unwrap();
    });
    site.step("a folder becomes a symlink", |top| {
        fs::remove_dir_all(top.join("a/b/c")).unwrap();
        symlink("/", top.join("a/b/c")).unwrap();
    });
    site.step("empty folder", |top| {
        fs::create_dir(top.join("a/hollow")).unwrap()
    });
}

fn names(site: &Site) {
    let longest = [b'x'; 255];
    let odd: [&[u8]; 8] = [
        b"line\nfeed",
        b"not \xff\xfe UTF-8",
        &longest,
        b"-rf",
        b"  ",
        b"a\\b",
        b"..hidden",
        "\u{1F389}".as_bytes(),
    ];
    site.step("odd names", |top| {
        for name in odd {
            let folder = top.join("a/b/two").join(OsStr::from_bytes(name));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(OsStr::from_bytes(name)), name).unwrap();
        }
    });
    site.step("odd names renamed", |top| {
        for name in odd {
            let name = OsStr::from_bytes(name);
            fs::rename(top.join("a/b/two").join(name), top.join(name)).unwrap();
        }
    });
}

/// Proves that after several hundred random changes of every kind by two threads at once, the
/// targets are equal to the source.
#[test]
fn random_changes_end_equal() {
    let seed = seed();
    let site = Site::start(|top| make_tree(top, &mut Random::new(seed), 12, 80));
    for round in 0..3 {
        let churn = Churn::start(&site.source, seed + round, 2, Duration::from_millis(4));
        let target = 300;
        cdsync_tests::wait_until(Duration::from_secs(60), "changes", || {
            churn.count() >= target
        });
        let done = churn.stop();
        site.settled(&format!("round {round}: {done} changes"));
    }
}
