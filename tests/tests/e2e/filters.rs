//! What a job carries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cdsync_tests::{Cluster, job_file};

/// All paths of a tree, folders with a trailing `/`.
fn paths(top: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(top.join(&folder)).unwrap().flatten() {
            let path = folder.join(entry.file_name());
            let text = path.to_str().unwrap().to_owned();
            if entry.file_name() == ".cdsync" {
            } else if entry.file_type().unwrap().is_dir() {
                found.insert(format!("{text}/"));
                folders.push(path);
            } else {
                found.insert(text);
            }
        }
    }
    found
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|&path| path.to_owned()).collect()
}

fn put(top: &Path, path: &str) {
    let path = top.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "content").unwrap();
}

/// Proves that include and exclude lists hold, that an excluded folder is not entered, that a folder
/// which is not included is made only for what it contains, and that renames which change verdicts
/// take away and bring.
#[test]
fn filters_hold_and_renames_are_judged_anew() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    for path in [
        "a.txt",
        "a.bin",
        "docs/any",
        "docs/deep/any.bin",
        "x/y/z.txt",
        "x/only/no.bin",
        "x/.git/config.txt",
        ".git/b.txt",
        "x/secret.txt",
        "x/dir.txt/file",
    ] {
        put(&source, path);
    }
    fs::create_dir(source.join("hollow")).unwrap();
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let filter =
        r"filter = { include = ['\.txt$', '^docs/'], exclude = ['(^|/)\.git/', 'secret'] }";
    let job = job_file("site", ("origin", &source), &[("edge", &target)], filter);
    cluster.apply(&job, &[]).expect(0);
    let holds = |step: &str, expected: &[&str]| {
        cluster.wait("site");
        assert_eq!(paths(&target), set(expected), "{step}");
    };
    let rename = |from: &str, to: &str| {
        fs::rename(source.join(from), source.join(to)).unwrap();
    };
    let docs = [
        "a.txt",
        "docs/",
        "docs/any",
        "docs/deep/",
        "docs/deep/any.bin",
    ];
    holds(
        "first copy",
        &[&docs[..], &["x/", "x/y/", "x/y/z.txt"]].concat(),
    );
    rename("a.txt", "a.dat");
    rename("a.bin", "b.txt");
    let docs = [
        "b.txt",
        "docs/",
        "docs/any",
        "docs/deep/",
        "docs/deep/any.bin",
    ];
    holds(
        "files leave and join",
        &[&docs[..], &["x/", "x/y/", "x/y/z.txt"]].concat(),
    );
    rename("x/y/z.txt", "x/y/z.dat");
    holds("a folder goes with its last content", &docs);
    put(&source, "x/only/deep/now.txt");
    let now = ["x/", "x/only/", "x/only/deep/", "x/only/deep/now.txt"];
    holds(
        "a folder comes for its first content",
        &[&docs[..], &now].concat(),
    );
    rename("docs/deep", "deep");
    holds("a folder leaves", &[&docs[..3], &now].concat());
    put(&source, "deep/own.txt");
    rename("deep", "docs/again");
    let again = ["docs/again/", "docs/again/any.bin", "docs/again/own.txt"];
    holds("a folder joins", &[&docs[..3], &now, &again].concat());
    rename("x/.git", "x/git");
    let git = ["x/git/", "x/git/config.txt"];
    holds(
        "an excluded folder joins",
        &[&docs[..3], &now, &again, &git].concat(),
    );
    rename("x/only", "x/secret");
    holds(
        "a folder becomes excluded",
        &[&docs[..3], &again, &["x/"], &git].concat(),
    );
    fs::write(source.join("x/secret/deep/now.txt"), "more").unwrap();
    fs::write(source.join(".git/b.txt"), "more").unwrap();
    holds(
        "excluded changes",
        &[&docs[..3], &again, &["x/"], &git].concat(),
    );
    let said = cluster
        .cdsync(["job", "explain", "site", "x/secret/deep/now.txt"])
        .expect(0);
    assert!(said.out.contains("filter"), "{}", said.out);
}
