//! What scripts rely on: modes, states, exit codes, JSON.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use cdsync_tests::{Cluster, job_file};
use serde_json::Value;

/// A source, a target, and the job `site` between them, in sync; and a second pair of folders on the
/// same servers with the job `beat`, whose fence proves that time passed for both agents.
struct Bed {
    cluster: Cluster,
    source: PathBuf,
    target: PathBuf,
    beat: [PathBuf; 2],
}

impl Bed {
    fn start(mode: &str) -> Self {
        let mut cluster = Cluster::start();
        let [from, to] = ["from", "to"].map(|name| cluster.space.folder(name));
        let below = |name: &str| {
            let both = [from.join(name), to.join(name)];
            both.iter().for_each(|path| fs::create_dir(path).unwrap());
            both
        };
        let ([source, target], beat) = (below("site"), below("beat"));
        fs::write(source.join("file"), "content").unwrap();
        cluster.agent("origin", &from);
        cluster.agent("edge", &to);
        let targets = [("edge", target.as_path())];
        let job = job_file(
            "site",
            ("origin", &source),
            &targets,
            &format!("mode = {mode:?}"),
        );
        cluster.apply(&job, &[]).expect(0);
        cluster.job("beat", ("origin", &beat[0]), &[("edge", &beat[1])]);
        Self {
            cluster,
            source,
            target,
            beat,
        }
    }

    /// A change made now has arrived in the other job: one made before would have, too.
    #[track_caller]
    fn beat(&self) {
        for number in 0..3 {
            fs::write(self.beat[0].join("beat"), number.to_string()).unwrap();
            self.cluster.wait("beat");
            self.cluster
                .assert_equal("beat", &self.beat[0], &self.beat[1]);
        }
    }

    #[track_caller]
    fn equal(&self) {
        self.cluster.wait("site");
        self.cluster
            .assert_equal("site", &self.source, &self.target);
    }
}

/// Proves that a job in manual mode moves nothing until it is run, then all, and then nothing again.
#[test]
fn a_manual_job_moves_when_it_is_run() {
    let bed = Bed::start("manual");
    bed.beat();
    assert!(
        !bed.target.join("file").exists(),
        "it moved before it was run"
    );
    bed.cluster
        .cdsync(["job", "run", "site", "--wait"])
        .expect(0);
    bed.cluster.assert_equal("site", &bed.source, &bed.target);
    assert!(bed.target.join("file").exists());
    fs::write(bed.source.join("second"), "2").unwrap();
    fs::write(bed.source.join("file"), "changed").unwrap();
    bed.beat();
    assert!(
        !bed.target.join("second").exists(),
        "it moved before it was run again"
    );
    assert_eq!(fs::read(bed.target.join("file")).unwrap(), b"content");
    // The fence of a manual job speaks of its last run.
    bed.cluster.wait("site");
    let said = bed
        .cluster
        .cdsync(["job", "run", "site", "--wait", "--json"])
        .expect(0);
    assert_eq!(said.json()["done"], true);
    bed.cluster.assert_equal("site", &bed.source, &bed.target);
    fs::rename(bed.source.join("second"), bed.source.join("third")).unwrap();
    bed.cluster.cdsync(["job", "run", "site"]).expect(0);
    bed.equal();
}

/// Proves that a paused job moves nothing and says so, that it goes on when resumed, and that a
/// removed one leaves all files alone.
#[test]
fn jobs_are_paused_resumed_and_removed() {
    let bed = Bed::start("realtime");
    bed.equal();
    bed.cluster.cdsync(["job", "pause", "site"]).expect(0);
    assert_eq!(bed.cluster.json("job status site")["state"], "paused");
    bed.beat();
    fs::write(bed.source.join("paused"), "1").unwrap();
    bed.beat();
    assert!(!bed.target.join("paused").exists(), "it moved while paused");
    let said = bed
        .cluster
        .cdsync(["job", "wait", "site", "--timeout", "30s"])
        .expect(1);
    assert!(said.err.contains("paused"), "{}", said.err);
    bed.cluster.cdsync(["job", "resume", "site"]).expect(0);
    bed.equal();
    assert!(bed.target.join("paused").exists());
    bed.cluster.cdsync(["job", "remove", "site"]).expect(0);
    bed.cluster.cdsync(["job", "status", "site"]).expect(1);
    let jobs = bed.cluster.json("job list");
    assert_eq!(jobs.as_array().unwrap().len(), 1);
    bed.beat();
    fs::write(bed.source.join("removed"), "1").unwrap();
    fs::remove_file(bed.source.join("paused")).unwrap();
    bed.beat();
    assert!(bed.target.join("paused").exists() && !bed.target.join("removed").exists());
    // Made again, it finds a target that holds something.
    let job = job_file(
        "site",
        ("origin", &bed.source),
        &[("edge", &bed.target)],
        "",
    );
    bed.cluster.apply(&job, &[]).expect(1);
    bed.cluster.apply(&job, &["--adopt"]).expect(0);
    bed.equal();
}

#[track_caller]
fn has(value: &Value, fields: &str) {
    let found: BTreeSet<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for field in fields.split(' ') {
        assert!(found.contains(field), "{field} is missing in {value:#}");
    }
}

/// Proves that every command has JSON, with the documented fields and types.
#[test]
fn json_has_the_documented_fields() {
    let bed = Bed::start("realtime");
    bed.equal();
    let servers = bed.cluster.json("server list");
    assert_eq!(servers.as_array().unwrap().len(), 2);
    has(&servers[0], "name region group state last_seen_ms");
    assert_eq!(
        (&servers[0]["region"], &servers[0]["group"]),
        (&"eu".into(), &"one".into())
    );
    let job = bed.cluster.json("job status site");
    has(&job, "name mode state sources targets");
    let told = (&job["name"], &job["mode"], &job["state"]);
    assert_eq!(
        told,
        (&"site".into(), &"realtime".into(), &"in-sync".into())
    );
    has(&job["sources"][0], "server root seq");
    assert_eq!(job["sources"][0]["root"], bed.source.to_str().unwrap());
    let target = &job["targets"][0];
    has(
        target,
        "server root state upstream cursor pending_changes pending_bytes oldest_pending_ms last_error",
    );
    assert_eq!(
        (&target["server"], &target["upstream"]),
        (&"edge".into(), &"origin".into())
    );
    assert_eq!(target["cursor"], job["sources"][0]["seq"]);
    assert_eq!(target["pending_changes"], 0);
    assert_eq!(target["last_error"], Value::Null);
    let waited = bed.cluster.json("job wait site --timeout 60s");
    assert_eq!(waited["done"], true);
    let log = bed.cluster.json("job log site");
    let made = log["lines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["path"] == "file");
    has(made.unwrap(), "server at_ms op path seq");
    let explained = bed.cluster.json("job explain site file");
    assert_eq!(explained["servers"].as_array().unwrap().len(), 2);
    has(&bed.cluster.json("status"), "master servers jobs");
    bed.cluster.json("job list").as_array().unwrap();
    for command in ["pause", "resume", "accept"] {
        has(
            &bed.cluster.json(&format!("job {command} site")),
            "name mode state",
        );
    }
    has(&bed.cluster.json("job run site"), "run");
    has(&bed.cluster.json("job remove beat"), "removed");
    let (from, to) = (&bed.beat[0], &bed.beat[1]);
    let words = format!(
        "job add beat --from origin:{} --to edge:{}",
        from.display(),
        to.display()
    );
    has(&bed.cluster.json(&words), "created status");
    has(
        &bed.cluster.json("master token --name x --group a/b"),
        "token address expires_ms",
    );
    has(&bed.cluster.json("server remove edge"), "removed");
}

/// Proves that the exit codes are as documented: 0 done, 1 not met with who and why, 2 usage,
/// 3 unreachable, 4 not permitted.
#[test]
fn exit_codes_tell_what_happened() {
    let mut bed = Bed::start("realtime");
    bed.equal();
    let said = bed
        .cluster
        .cdsync(["job", "explain", "site", "file"])
        .expect(0);
    assert!(
        said.out.contains("origin") && said.out.contains("a file"),
        "{}",
        said.out
    );
    bed.cluster.stop("edge");
    fs::write(bed.source.join("later"), "later").unwrap();
    let said = bed
        .cluster
        .cdsync(["job", "wait", "site", "--timeout", "2s"])
        .expect(1);
    assert!(said.err.contains("edge: unreachable"), "{}", said.err);
    let said = bed
        .cluster
        .cdsync(["job", "wait", "site", "--timeout", "1s", "--json"])
        .expect(1);
    assert_eq!(said.json()["laggards"][0]["server"], "edge");
    let said = bed
        .cluster
        .cdsync(["job", "explain", "site", "file"])
        .expect(1);
    assert!(said.err.contains("1 server"), "{}", said.err);
    bed.cluster.cdsync(["job", "status", "nosuch"]).expect(1);
    bed.cluster.up("edge");
    bed.equal();

    bed.cluster.cdsync(["job"]).expect(2);
    bed.cluster.cdsync(["job", "status", "No Label"]).expect(2);
    bed.cluster
        .cdsync(["job", "wait", "site", "--timeout", "soon"])
        .expect(2);
    let said = bed
        .cluster
        .apply("name = \"x\"\nsource = 1\n", &[])
        .expect(2);
    assert!(said.err.contains("job.toml:2"), "{}", said.err);
    let two = "name = \"x\"\nsource = []\ntarget = [{ server = \"edge\", path = \"/a/../b\" }]\n";
    bed.cluster.apply(two, &[]).expect(2);

    let token = fs::read_to_string(bed.cluster.data("master").join("owner.token")).unwrap();
    let wrong = bed.cluster.space.path().join("wrong.token");
    let from_afar = |bed: &Bed, file: &std::path::Path| {
        let url = format!("https://{}", bed.cluster.address(1, 7480));
        bed.cluster.cdsync(["--", "job"]).expect(2);
        let file = file.to_str().unwrap().to_owned();
        bed.cluster
            .cdsync(["job", "list", "--master", &url, "--token-file", &file])
    };
    fs::write(&wrong, &token).unwrap();
    from_afar(&bed, &wrong).expect(0);
    fs::write(&wrong, other_secret(&token)).unwrap();
    from_afar(&bed, &wrong).expect(4);
    bed.cluster.stop("master");
    let said = bed.cluster.cdsync(["job", "list"]).expect(3);
    assert!(said.err.contains("master run"), "{}", said.err);
}

/// Proves that the doctor passes a joined server, and names a master that is gone, a root that is
/// missing and a key that others may read.
#[test]
fn the_doctor_names_what_is_wrong() {
    let mut bed = Bed::start("realtime");
    let data = bed.cluster.data("edge").to_str().unwrap().to_owned();
    let doctor = |bed: &Bed, more: &[&str]| {
        let line = ["doctor", "--json", "--data", &data];
        bed.cluster
            .cdsync(line.into_iter().chain(more.iter().copied()))
    };
    let failed = |said: &Value| {
        let all = said.as_array().unwrap().iter();
        let failed = all.filter(|finding| finding["verdict"] == "fail");
        let text = |finding: &Value| finding["check"].as_str().unwrap().to_owned();
        failed.map(text).collect::<BTreeSet<_>>()
    };
    let said = doctor(&bed, &[]).expect(0).json();
    assert!(failed(&said).is_empty());
    let has = |check: &str| said.as_array().unwrap().iter().any(|f| f["check"] == check);
    for check in [
        "kernel",
        "clock",
        "certificate",
        "master",
        "publishing",
        "watching",
    ] {
        assert!(has(check), "{check}: {said}");
    }
    bed.cluster.stop("master");
    let key = bed.cluster.data("edge").join("node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let said = doctor(&bed, &["--root", "/no/such/root"]).expect(1).json();
    let expected = ["agent's folder", "master", "root"].map(str::to_owned);
    assert_eq!(failed(&said), BTreeSet::from(expected));
}

/// A token with one other letter in its middle.
fn other_secret(token: &str) -> String {
    let mut bytes = token.trim().as_bytes().to_vec();
    let middle = bytes.len() / 3;
    bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
    String::from_utf8(bytes).unwrap()
}
