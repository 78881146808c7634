//! Sends 1 GiB over one stream on loopback, both ends in this process, and prints what it took.
//!
//! `cargo run --release -p cdsync-transport --example throughput -- [MiB] [KiB per send] [frames]
//! [--transport quic|tcp] [--between SERVER_NAMESPACE CLIENT_NAMESPACE SERVER_IP]`
//! With `frames` the bytes travel as frames of the given size instead of bare pieces; with
//! `--between` (as root) the ends are in two network namespaces, as `ip netns` makes them.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, CloseCode, Connection, FrameReader, FrameWriter,
    NodeIdentity, PeerExpectation, PeerIdentity, QuicConfig, QuicTransport, TcpTransport,
    Transport,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// CPU time of this process: user and system clock ticks from /proc, 100 a second.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

async fn receive(connection: &dyn Connection, frames: bool) -> Outcome<usize> {
    let (_send, mut recv) = connection.accept().await?;
    let mut total = 0;
    if frames {
        let mut reader = FrameReader::new(recv);
        while let Some(frame) = reader.next().await? {
            total += frame.payload.len();
        }
        return Ok(total);
    }
    let mut slots = vec![Bytes::new(); 32];
    while let Some(filled) = recv.recv_many(&mut slots).await? {
        total += slots[..filled].iter().map(Bytes::len).sum::<usize>();
    }
    Ok(total)
}

async fn send(connection: &dyn Connection, total: usize, step: usize, frames: bool) -> Outcome<()> {
    let piece = Bytes::from(vec![0x5a; step]);
    let (mut send, _recv) = connection.open().await?;
    if frames {
        let mut writer = FrameWriter::new(send);
        for _ in 0..total / step {
            writer.write(1, std::slice::from_ref(&piece)).await?;
        }
        writer.finish().await?;
    } else {
        for _ in 0..total / step {
            send.send(&mut [piece.clone()]).await?;
        }
        send.finish()?;
    }
    connection.closed().await;
    Ok(())
}

/// What to measure, from the command line.
struct Options {
    total: usize,
    step: usize,
    frames: bool,
    tcp: bool,
    /// Network namespaces of server and client, and the server's address.
    between: Option<[String; 3]>,
}

impl Options {
    fn parse() -> Self {
        let all: Vec<_> = std::env::args().skip(1).collect();
        let after = |name: &str| all.iter().position(|a| a == name).map(|at| &all[at + 1..]);
        let number =
            |at: usize, default| all.get(at).and_then(|a| a.parse().ok()).unwrap_or(default);
        Self {
            total: number(0, 1_024usize) << 20,
            step: number(1, 256usize) << 10,
            frames: all.iter().any(|a| a == "frames"),
            tcp: after("--transport").is_some_and(|rest| rest.first().is_some_and(|t| t == "tcp")),
            between: after("--between").and_then(|rest| rest.get(..3)?.to_vec().try_into().ok()),
        }
    }

    fn bind(&self, listen: SocketAddr, node: NodeIdentity) -> Outcome<Arc<dyn Transport>> {
        let config = QuicConfig::default();
        Ok(if self.tcp {
            Arc::new(TcpTransport::bind(listen, node, config)?)
        } else {
            Arc::new(QuicTransport::bind(listen, node, config)?)
        })
    }

    /// Runs one end on a runtime of its own, in its namespace if there are any.
    fn run<T: Send + 'static>(
        &self,
        end: usize,
        task: impl AsyncFnOnce() -> Outcome<T> + Send + 'static,
    ) -> std::thread::JoinHandle<Outcome<T>> {
        let namespace = self.between.as_ref().map(|names| names[end].clone());
        std::thread::spawn(move || {
            if let Some(name) = namespace {
                let file = fs::File::open(format!("/var/run/netns/{name}"))?;
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), kind)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(task())
        })
    }
}

#[expect(clippy::print_stdout, reason = "an example talks to a person")]
fn main() -> Outcome<()> {
    let options = Arc::new(Options::parse());
    let ca = CertificateAuthority::create()?;
    let node = |id| {
        ca.issue_local(
            &PeerIdentity::agent(ca.cluster(), ServerId(id)),
            CERTIFICATE_VALIDITY,
        )
    };
    let (server_node, client_node) = (node(1)?, node(2)?);
    let (tell, told) = mpsc::channel();
    let host = match &options.between {
        Some([_, _, host]) => host.clone(),
        None => "127.0.0.1".to_owned(),
    };
    let opts = Arc::clone(&options);
    let receiving = options.run(0, async move || {
        let server = opts.bind(format!("{host}:0").parse()?, server_node)?;
        tell.send(server.local_addr())?;
        let accepted = server.accept().await.ok_or("closed")?;
        let received = receive(&*accepted, opts.frames).await;
        accepted.close(CloseCode::DONE, "");
        server.close().await;
        received
    });
    let addr = told.recv()?.to_string();
    let opts = Arc::clone(&options);
    let sending = options.run(1, async move || {
        let any = "0.0.0.0:0".parse()?;
        let client = opts.bind(any, client_node)?;
        let dialled = client
            .connect(&addr, &PeerExpectation::agent(ServerId(1)))
            .await?;
        let (begun, cpu_before) = (Instant::now(), cpu());
        send(&*dialled, opts.total, opts.step, opts.frames).await?;
        let took = begun.elapsed().as_secs_f64();
        Ok((took, (cpu() - cpu_before).as_secs_f64(), dialled.stats()))
    });
    let (took, spent, stats) = sending.join().map_err(|_| "the sender failed")??;
    let received = receiving.join().map_err(|_| "the receiver failed")??;
    let mib = received as f64 / f64::from(1 << 20);
    println!(
        "{mib:.0} MiB in {took:.2} s: {:.0} MiB/s, {spent:.2} CPU-seconds, {:.2} per GiB",
        mib / took,
        spent * 1024.0 / mib
    );
    println!("{stats:?}");
    Ok(())
}
