//! A connection behind the trait.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::Purpose;
use super::dial::LaneDialler;
use super::lane::Lane;
use super::link::{Handle, Link, over};
use super::stream::halves;
use crate::connection::{BoxFuture, Connection, LinkStats, Stream};
use crate::error::{CloseCode, CloseReason};
use crate::peer::PeerIdentity;

/// How long a lane that cannot be made waits for the connection to say why.
const VERDICT_WAIT: Duration = Duration::from_millis(500);

/// How often a lane is tried.
const LANE_ATTEMPTS: u32 = 4;

/// One connection to a peer.
#[derive(Debug)]
pub(super) struct TcpConnection {
    handle: Arc<Handle>,
    offered: Mutex<mpsc::Receiver<Arc<Lane>>>,
}

impl TcpConnection {
    pub(super) fn new(link: Arc<Link>, offered: mpsc::Receiver<Arc<Lane>>) -> Self {
        Self {
            handle: Arc::new(Handle { link }),
            offered: Mutex::new(offered),
        }
    }

    /// A lane for a new stream: an idle one, a new one, or one that the peer is asked for.
    async fn lane(&self) -> Result<Arc<Lane>, CloseReason> {
        let link = &self.handle.link;
        match &link.dialler {
            Some(dialler) => match link.take_idle() {
                Some(lane) => Ok(lane),
                None => dial(link, dialler).await,
            },
            None => {
                let mut asked = false;
                loop {
                    let mut came = std::pin::pin!(link.came.notified());
                    came.as_mut().enable();
                    if let Some(lane) = link.take_idle() {
                        return Ok(lane);
                    }
                    if !std::mem::replace(&mut asked, true) {
                        link.want_lane();
                    }
                    came.await;
                }
            }
        }
    }
}

/// Makes a lane. One that cannot be made does not end what the others carry, until it could not be
/// several times: a peer may be busy with the handshakes of others.
async fn dial(link: &Arc<Link>, dialler: &LaneDialler) -> Result<Arc<Lane>, CloseReason> {
    let mut attempt = 1;
    loop {
        let detail = match dialler.lane(link, Purpose::Streams, None).await {
            Ok(lane) => return Ok(lane),
            Err(detail) => detail,
        };
        let mut ending = link.ending();
        if let Ok(reason) = timeout(VERDICT_WAIT * attempt, over(&mut ending)).await {
            return Err(reason);
        }
        if attempt == LANE_ATTEMPTS {
            let reason = CloseReason::Protocol { detail };
            link.fail(reason.clone());
            return Err(reason);
        }
        attempt += 1;
    }
}

impl Connection for TcpConnection {
    fn peer(&self) -> &PeerIdentity {
        &self.handle.link.peer
    }

    fn remote_addr(&self) -> SocketAddr {
        self.handle.link.remote
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
        Box::pin(async move {
            let link = &self.handle.link;
            let mut ending = link.ending();
            let opening = async {
                let permit = Arc::clone(&link.permits).acquire_owned().await;
                Ok((self.lane().await?, permit.map_err(|_| CloseReason::Local)?))
            };
            tokio::select! {
                biased;
                reason = over(&mut ending) => Err(reason),
                opened = opening => {
                    let (lane, permit) = opened?;
                    Ok(halves(Arc::clone(&self.handle), lane, Some(permit)))
                }
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, CloseReason>> {
        Box::pin(async move {
            let mut ending = self.handle.link.ending();
            let next = async { self.offered.lock().await.recv().await };
            tokio::select! {
                biased;
                reason = over(&mut ending) => Err(reason),
                lane = next => {
                    let lane = lane.ok_or(CloseReason::Local)?;
                    Ok(halves(Arc::clone(&self.handle), lane, None))
                }
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.handle.link.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async move { over(&mut self.handle.link.ending()).await })
    }

    fn stats(&self) -> LinkStats {
        self.handle.link.stats()
    }
}
