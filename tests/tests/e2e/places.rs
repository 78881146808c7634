//! Targets by group and region, other users, larger trees.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cdsync_tests::{Cluster, Random, is_root, make_tree, seed, wait_until};

/// Proves that a job's targets may be a group and a region, and that a server which joins the group
/// later gets the copy, and what changes then.
#[test]
fn groups_and_regions_are_targets() {
    let mut cluster = Cluster::start();
    let source = cluster.space.folder("source");
    fs::write(source.join("file"), "content").unwrap();
    cluster.agent("origin", &source);
    // All servers of a group have one path, which is another folder on each of them.
    let shared = cluster.space.plain_folder("shared");
    let mut folders = Vec::new();
    let mut add = |cluster: &mut Cluster, name: &str, group: &str| {
        let own = cluster.space.folder(name);
        let made = cluster.agent_bound(name, group, &shared, &own);
        folders.push(own);
        made.then(|| folders.clone())
    };
    let added = add(&mut cluster, "seoul-1", "asia/seoul");
    let Some(_) = added.and_then(|_| add(&mut cluster, "tokyo-1", "asia/tokyo")) else {
        eprintln!("SKIPPED: groups and regions (needs mount namespaces)");
        return;
    };
    add(&mut cluster, "oslo-1", "north/oslo").unwrap();
    let equal = |cluster: &Cluster, job: &str, folders: &[&Path]| {
        cluster.wait(job);
        for folder in folders {
            cluster.assert_equal(job, &source, folder);
        }
    };
    let at = |name: &str| source.with_file_name(name);
    cluster.job(
        "site",
        ("origin", &source),
        &[("@asia/seoul", &shared), ("@north", &shared)],
    );
    equal(&cluster, "site", &[&at("seoul-1"), &at("oslo-1")]);
    assert!(
        !at("tokyo-1").join("file").exists(),
        "it is not in the group"
    );
    for (name, group) in [("seoul-2", "asia/seoul"), ("bergen-1", "north/bergen")] {
        add(&mut cluster, name, group).unwrap();
        equal(&cluster, "site", &[&at(name)]);
        assert!(at(name).join("file").exists());
    }
    fs::write(source.join("later"), "later").unwrap();
    fs::rename(source.join("file"), source.join("renamed")).unwrap();
    let all = ["seoul-1", "oslo-1", "seoul-2", "bergen-1"].map(at);
    equal(&cluster, "site", &all.each_ref().map(|path| path.as_path()));
    assert_eq!(
        cluster.json("job status site")["targets"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
}

/// The user `nobody` on most systems; any that owns nothing would do.
const NOBODY: u32 = 65_534;

/// Proves that agents without root, which watch by inotify, carry the same changes.
#[test]
fn agents_without_root_carry_the_same() {
    if !is_root() {
        eprintln!("SKIPPED: agents of another user (needs root; all other tests ran without)");
        return;
    }
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    for folder in [&source, &target] {
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    cluster.agent_as("origin", NOBODY, &[&source]);
    cluster.agent_as("edge", NOBODY, &[&target]);
    let step = |script: &str| {
        let id = NOBODY.to_string();
        let ran = Command::new("setpriv")
            .args([
                "--reuid",
                &id,
                "--regid",
                &id,
                "--clear-groups",
                "sh",
                "-ec",
                script,
            ])
            .current_dir(&source)
            .status();
        assert!(ran.unwrap().success(), "{script}");
    };
    let check = |script: &str| {
        eprintln!("{script}");
        cluster.wait("site");
        cluster.assert_equal("site", &source, &target);
    };
    step("mkdir -p a/b/c; for i in $(seq 300); do echo $i > a/b/$i; done; ln -s a/b link");
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    check("first copy");
    assert!(
        cluster.log("origin").contains("backend=Notify"),
        "{}",
        cluster.log("origin")
    );
    for script in [
        "echo new > new; mkdir -p deep/er/and/deeper; echo x > deep/er/and/deeper/file",
        "echo edit >> a/b/1; echo saved > .a~; mv .a~ a/b/2; truncate -s 1 a/b/100",
        "mv new a/renamed; mv a/b many",
        "echo after >> many/7; mv many/8 many/9; mv deep/er a/er; echo y > a/er/and/y",
        "chmod 750 a; chmod 600 many/10; touch -d '2001-02-03 04:05:06.789' many/11 a/er",
        "ln -sfn elsewhere link; mkdir hollow; rm many/12; rm -r a/er",
        "mkdir x; mv many x/; mkdir many; echo z > many/1; mv x/many/5 many/5",
        "rm -rf x many; echo end > end",
    ] {
        step(script);
        check(script);
    }
}

/// Proves that `job wait` fails by name while the source's agent may not look into a folder, that
/// nothing of it is taken for gone, and that it comes by itself once it may be looked into.
#[test]
fn a_folder_that_cannot_be_listed_fails_the_wait() {
    use std::os::unix::fs::PermissionsExt as _;
    if !is_root() {
        eprintln!("SKIPPED: a folder that cannot be listed (needs root)");
        return;
    }
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    for folder in [&source, &target] {
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let secret = source.join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("inside"), "inside").unwrap();
    fs::write(source.join("open"), "open").unwrap();
    let allow = |mode| fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
    allow(0o700);
    cluster.agent_as("origin", NOBODY, &[&source]);
    cluster.agent_as("edge", NOBODY, &[&target]);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    let said = cluster
        .cdsync("job wait site --timeout 60s --json".split(' '))
        .expect(1)
        .json();
    let laggard = &said["laggards"][0];
    assert_eq!(laggard["server"], "origin", "{said}");
    let path = laggard["paths"][0].as_str().unwrap();
    assert!(path.starts_with("secret: "), "{said}");
    allow(0o755);
    cluster.wait("site");
    assert_eq!(
        fs::read_to_string(target.join("secret/inside")).unwrap(),
        "inside"
    );
}

/// Proves that the rename of a folder with most of a larger tree is one record, and at the target
/// soon, without its content being sent again.
#[test]
fn a_large_folder_is_renamed_by_one_record() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    fs::create_dir(source.join("drivers")).unwrap();
    make_tree(&source.join("drivers"), &mut random, 180, 2_700);
    make_tree(&source, &mut random, 20, 300);
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
    let before = cluster.source_seq("site");
    let began = std::time::Instant::now();
    fs::rename(source.join("drivers"), source.join("folder-0/moved")).unwrap();
    wait_until(Duration::from_secs(10), "the folder is renamed", || {
        target.join("folder-0/moved").exists()
    });
    eprintln!("there after {:?}", began.elapsed());
    cluster.wait("site");
    assert_eq!(cluster.source_seq("site") - before, 1);
    let log = cluster.json("job log site");
    let lines = log["lines"].as_array().unwrap();
    let last = lines
        .iter()
        .filter(|line| line["seq"].as_u64() > Some(before))
        .count();
    // One line at the source, one at the target.
    assert_eq!(last, 2, "{log:#}");
    cluster.assert_equal("site", &source, &target);
}
