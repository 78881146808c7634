//! Sends 1 GiB over one stream on loopback, both ends in this process, and prints what it took.
//!
//! `cargo run --release -p cdsync-transport --example throughput -- [MiB] [KiB per send] [frames]`
//! With `frames` the bytes travel as frames of the given size instead of bare pieces.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, CloseCode, Connection, FrameReader, FrameWriter,
    PeerExpectation, PeerIdentity, QuicConfig, QuicTransport, Transport,
};

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

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let mut number = |default| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (total, step) = (number(1_024usize) << 20, number(256usize) << 10);
    let frames = std::env::args().any(|a| a == "frames");
    let ca = CertificateAuthority::create()?;
    let node = |id| {
        ca.issue_local(
            &PeerIdentity::agent(ca.cluster(), ServerId(id)),
            CERTIFICATE_VALIDITY,
        )
    };
    let any = "127.0.0.1:0".parse()?;
    let server = QuicTransport::bind(any, node(1)?, QuicConfig::default())?;
    let client = QuicTransport::bind(any, node(2)?, QuicConfig::default())?;
    let addr = server.local_addr().to_string();
    let dialled = client
        .connect(&addr, &PeerExpectation::agent(ServerId(1)))
        .await?;
    let accepted = server.accept().await.ok_or("closed")?;
    let (begun, cpu_before) = (Instant::now(), cpu());
    let receiving = tokio::spawn(async move {
        let received = receive(&*accepted, frames).await;
        accepted.close(CloseCode::DONE, "");
        received
    });
    send(&*dialled, total, step, frames).await?;
    let received = receiving.await??;
    let (took, spent) = (
        begun.elapsed().as_secs_f64(),
        (cpu() - cpu_before).as_secs_f64(),
    );
    let mib = received as f64 / f64::from(1 << 20);
    println!(
        "{mib:.0} MiB in {took:.2} s: {:.0} MiB/s, {spent:.2} CPU-seconds",
        mib / took
    );
    println!("{:?}", dialled.stats());
    Ok(())
}
