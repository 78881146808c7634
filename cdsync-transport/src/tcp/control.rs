//! The control lane: signs of life both ways, and why the connection ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::Purpose;
use super::lane::{Filled, Lane, LaneError, kind};
use super::link::{Ending, Link, over};
use crate::error::{CloseCode, CloseReason};
use crate::quic::QuicConfig;

/// How long an ending side waits until the peer was told.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// What may come at once: a sign of life in seconds, and a wish for each stream.
const MESSAGES_MAX: usize = 1024;

/// What a reason may take on the wire.
const REASON_MAX_BYTES: usize = 800;

/// Stays with a connection until it is over. `alive` is dropped when the peer was told.
pub(super) async fn run(
    link: Arc<Link>,
    lane: Lane,
    config: QuicConfig,
    alive: Option<mpsc::Sender<()>>,
) {
    let failed = talk(&link, &lane, &config).await;
    if let Err(error) = failed {
        link.fail(reason(&error));
    }
    let ending = link.ending().borrow().clone();
    if let Some(Ending::Local { code, reason }) = ending {
        // A peer that is gone need not be told.
        let _ = timeout(CLOSE_WAIT, farewell(&lane, code, &reason)).await;
    }
    drop(alive);
}

/// What a failure of the control lane says.
fn reason(error: &LaneError) -> CloseReason {
    error.reason().unwrap_or(CloseReason::Restarted)
}

async fn talk(link: &Arc<Link>, lane: &Lane, config: &QuicConfig) -> Result<(), LaneError> {
    let begun = Instant::now();
    let mut heard = begun;
    let mut ending = link.ending();
    let mut ticks = interval(config.keep_alive);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if listen(link, lane, begun)? {
            heard = Instant::now();
        }
        if link.reason().is_some() {
            return Ok(());
        }
        let pending = !lane.write(&mut lane.tx())?;
        tokio::select! {
            _ = over(&mut ending) => return Ok(()),
            () = sleep_until(heard + config.idle_timeout) => {
                link.fail(CloseReason::TimedOut);
                return Ok(());
            }
            _ = ticks.tick() => {
                link.expire_idle();
                let now = u64::try_from(begun.elapsed().as_micros()).unwrap_or_default();
                lane.put(kind::PING, &[&now.to_le_bytes()])?;
            }
            () = link.wanted.notified() => {
                for _ in 0..link.take_wanted() {
                    lane.put(kind::DIAL, &[])?;
                }
            }
            ready = lane.stream.readable() => ready.map_err(LaneError::Io)?,
            ready = lane.stream.writable(), if pending => ready.map_err(LaneError::Io)?,
        }
    }
}

/// Takes what has come; whether anything did.
fn listen(link: &Arc<Link>, lane: &Lane, begun: Instant) -> Result<bool, LaneError> {
    let mut rx = lane.rx();
    let mut heard = 0;
    loop {
        while let Some((kind, body)) = lane.next(&mut rx)? {
            heard += 1;
            if heard > MESSAGES_MAX {
                return Err(LaneError::Protocol("too many messages at once"));
            }
            match kind {
                kind::PING if body.len() == 8 => {
                    let mut tx = lane.tx();
                    // Who asks and never reads the answers is cut off by the silence.
                    if tx.is_flushed() {
                        tx.put(kind::PONG, &[&body])?;
                    }
                }
                kind::PONG => {
                    if let Ok(sent) = <[u8; 8]>::try_from(&body[..]) {
                        let sent = Duration::from_micros(u64::from_le_bytes(sent));
                        link.measured(begun.elapsed().saturating_sub(sent));
                    }
                }
                kind::DIAL => bring_lane(link)?,
                kind::CLOSE => link.fail(closed_by_peer(&body)),
                _ => return Err(LaneError::Protocol("an unexpected message")),
            }
        }
        if link.reason().is_some() || lane.fill(&mut rx)? == Filled::Nothing {
            return Ok(heard > 0);
        }
    }
}

/// The peer wants to open a stream and cannot dial.
fn bring_lane(link: &Arc<Link>) -> Result<(), LaneError> {
    let Some(dialler) = &link.dialler else {
        return Err(LaneError::Protocol("the acceptor dials nobody"));
    };
    let Ok(permit) = Arc::clone(&link.lanes).try_acquire_owned() else {
        return Err(LaneError::Protocol("too many lanes are wanted"));
    };
    let Some(place) = dialler.local.lanes.take(link.peer.server) else {
        return Err(LaneError::Protocol(
            "too many lanes are wanted on all connections",
        ));
    };
    let brought = (place, permit);
    let (link, dialler) = (Arc::clone(link), dialler.clone());
    link.clone().spawn(async move {
        let mut ending = link.ending();
        tokio::select! {
            biased;
            _ = over(&mut ending) => {}
            lane = dialler.lane(&link, Purpose::Reverse, Some(brought)) => match lane {
                Ok(lane) => link.await_stream(lane),
                Err(detail) => link.fail(CloseReason::Protocol { detail }),
            }
        }
    });
    Ok(())
}

/// The reason in a close message.
pub(super) fn closed_by_peer(body: &[u8]) -> CloseReason {
    match body.split_first_chunk::<4>() {
        Some((code, text)) => CloseReason::by_peer(CloseCode(u32::from_le_bytes(*code)), text),
        None => CloseReason::by_peer(CloseCode::PROTOCOL, b""),
    }
}

/// Says why this side ends the connection, and waits until the peer lets go of it.
pub(super) async fn farewell(lane: &Lane, code: CloseCode, reason: &str) -> Result<(), LaneError> {
    let text = &reason.as_bytes()[..reason.len().min(REASON_MAX_BYTES)];
    lane.put(kind::CLOSE, &[&code.0.to_le_bytes(), text])?;
    lane.flush().await?;
    shutdown(&lane.stream, Shutdown::Write).map_err(|e| LaneError::Io(io::Error::from(e)))?;
    loop {
        // Its end, the aim of this, is an error.
        lane.message().await?;
    }
}
