//! An agent's own folder, its clock, its ports and its master.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use cdsync_transport::{PeerExpectation, QuicConfig, QuicTransport, Transport as _};
use rustix::fs::statvfs;
use rustix::process::geteuid;

use super::Findings;
use crate::failure::chain;
use crate::join::Joined;
use crate::text::{ago, bytes, millis};

/// What the ledgers of a few million files take, with room to grow.
const DATA_BYTES: u64 = 1 << 30;
/// How long a master may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) async fn check(findings: &mut Findings, folder: &Path, joined: &Joined) {
    findings.about(folder.display().to_string());
    permissions(findings, folder);
    space(findings, folder);
    clock(findings, folder, joined);
    findings.about(joined.listen.to_string());
    ports(findings, joined.listen);
    findings.about(&joined.master_address);
    master(findings, joined).await;
}

/// The key is the server's identity: nobody else may read it.
fn permissions(findings: &mut Findings, folder: &Path) {
    for name in ["", "node.key"] {
        let path = folder.join(name);
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            Err(error) => {
                let next = "join this server again, into an empty folder";
                let found = format!("cannot look at {}: {error}", path.display());
                findings.fail("agent's folder", found, next);
                continue;
            }
        };
        let open = found.permissions().mode() & 0o077;
        if found.uid() != geteuid().as_raw() || open != 0 {
            findings.fail(
                "agent's folder",
                format!("{} can be used by others", path.display()),
                format!(
                    "chown {} and chmod go= {}",
                    geteuid().as_raw(),
                    path.display()
                ),
            );
        } else {
            findings.ok("agent's folder", format!("{} is private", path.display()));
        }
    }
}

fn space(findings: &mut Findings, folder: &Path) {
    match statvfs(folder) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            if free < DATA_BYTES {
                findings.warn(
                    "space",
                    format!("{} left for the ledgers", bytes(free)),
                    "make room: about 130 bytes for each file, and the log's size per job",
                );
            } else {
                findings.ok("space", format!("{} left for the ledgers", bytes(free)));
            }
        }
        Err(error) => findings.fail("space", error.to_string(), "make the folder readable"),
    }
}

/// A clock that is far off makes leases end or certificates void.
fn clock(findings: &mut Findings, folder: &Path, joined: &Joined) {
    const NEXT: &str = "set the clock, and keep it by NTP (timedatectl set-ntp true)";
    let now = SystemTime::now();
    let until = |then: SystemTime| millis(then.duration_since(now).unwrap_or_default());
    let newest = ["orders", "node.pem"]
        .iter()
        .filter_map(|name| fs::metadata(folder.join(name)).ok()?.modified().ok())
        .max();
    match newest.map(until) {
        Some(ahead @ 60_000..) => {
            let found = format!("it is {} behind what was written here before", ago(ahead));
            findings.fail("clock", found, NEXT);
        }
        _ => findings.ok("clock", "not behind what was written here before"),
    }
    let left = until(joined.identity.expires_at());
    if left == 0 {
        findings.fail(
            "certificate",
            "it has expired, or the clock is ahead",
            format!("{NEXT}; else join this server again"),
        );
    } else if until(joined.identity.renew_at()) == 0 {
        findings.warn(
            "certificate",
            format!("good for {}, and due to be renewed", ago(left)),
            "nothing, once the agent has reached its master",
        );
    } else {
        findings.ok("certificate", format!("good for {}", ago(left)));
    }
}

fn ports(findings: &mut Findings, listen: SocketAddr) {
    let udp = UdpSocket::bind(listen).map(drop);
    let tcp = TcpListener::bind(listen).map(drop);
    for (check, bound) in [("UDP port", udp), ("TCP port", tcp)] {
        match bound {
            Ok(()) => findings.ok(check, "free for the agent"),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => findings.warn(
                check,
                "in use",
                "nothing, if that is this agent running; else stop what uses it, or listen elsewhere",
            ),
            Err(error) => findings.fail(
                check,
                format!("cannot be used: {error}"),
                "correct `listen` in agent.toml",
            ),
        }
    }
}

async fn master(findings: &mut Findings, joined: &Joined) {
    let any: IpAddr = match joined.listen {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let bound = QuicTransport::bind(
        SocketAddr::new(any, 0),
        joined.identity.clone(),
        QuicConfig::default(),
    );
    let transport = match bound {
        Ok(transport) => transport,
        Err(error) => {
            let next = "see the ports and limits above";
            return findings.fail("master", chain(&error), next);
        }
    };
    let expect = PeerExpectation::any_master();
    let dialled = transport.connect(&joined.master_address, &expect);
    let next = "see that the master runs, that its UDP port is open to this server, and that both clocks are right";
    match tokio::time::timeout(ANSWER, dialled).await {
        Ok(Ok(_)) => findings.ok("master", "answers, and proves to be this cluster's"),
        Ok(Err(error)) => findings.fail("master", chain(&error), next),
        Err(_) => findings.fail("master", "does not answer", next),
    }
}
