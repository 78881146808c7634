//! Relays on loopback between one client and one server, for UDP and for TCP: the wire that tests
//! cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn udp(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            let mut client = None;
            loop {
                let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                let to = if from == server { client } else { Some(server) };
                if from != server {
                    client = Some(from);
                }
                if let (Some(to), false) = (to, is_cut.load(Ordering::Relaxed)) {
                    let _ = socket.send_to(&buffer[..len], to).await;
                }
            }
        });
        Self { addr, cut, task }
    }

    /// For any number of TCP connections. Once cut, nothing passes and nothing is closed.
    pub(crate) async fn tcp(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let mut passing = tokio::task::JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(server).await.unwrap();
                for end in [&near, &far] {
                    end.set_nodelay(true).unwrap();
                }
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                for (from, to) in [(near_in, far_out), (far_in, near_out)] {
                    passing.spawn(pass(from, to, Arc::clone(&is_cut)));
                }
            }
        });
        Self { addr, cut, task }
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    cut: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let read = from.read(&mut buffer).await;
        if cut.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        match read {
            Ok(read) if read > 0 => {
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}
