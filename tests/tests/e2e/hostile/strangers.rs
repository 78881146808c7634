//! Those who show no certificate at all.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use cdsync_tests::Cluster;

use super::assert_bounded;

/// Connections of each kind to each port.
const EACH: usize = 12;
/// A handshake may take 10 s; a busy machine more to see its end.
const CUT_WITHIN: Duration = Duration::from_secs(40);

/// The beginning of a handshake: a record that announces more than comes.
const HALF_A_HELLO: &[u8] = &[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3, 7, 7, 7];

/// Proves that who connects and says nothing, half a hello, or noise, to an agent, or to the API of
/// the master, is cut off within the time of a handshake, and that work goes on meanwhile.
#[test]
fn silence_is_cut() {
    let mut cluster = Cluster::start();
    let [source, target] = ["source", "target"].map(|name| cluster.space.folder(name));
    cluster.agent("origin", &source);
    cluster.agent("edge", &target);
    let ports = [cluster.agent_address(2), cluster.address(1, 7480)];
    let mut held = Vec::new();
    for port in &ports {
        for said in [&b""[..], HALF_A_HELLO, b"GET / HTTP/1.1\r\n"] {
            for _ in 0..EACH {
                let mut stream = TcpStream::connect(port).unwrap();
                stream.write_all(said).unwrap();
                held.push(stream);
            }
        }
    }
    std::fs::write(source.join("file"), "content").unwrap();
    cluster.job("site", ("origin", &source), &[("edge", &target)]);
    cluster.wait("site");
    cluster.assert_equal("site", &source, &target);
    for mut stream in held {
        stream.set_read_timeout(Some(CUT_WITHIN)).unwrap();
        let mut heard = Vec::new();
        match stream.read_to_end(&mut heard) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
    assert_bounded(&mut cluster, &["master", "origin", "edge"]);
}
