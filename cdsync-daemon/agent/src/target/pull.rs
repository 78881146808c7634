//! Pulling contents into staging: a large one range by range, small ones one after another on one
//! stream, all asked for before the first comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::JobId;
use cdsync_core::ledger::object::Hash;
use cdsync_core::replica::{FetchResult, FetchWant};
use cdsync_core::wire::{
    ContentAnswer, ContentHeader, FetchRequest, PeerMessage, RefusedWhy, Signed, decode, kind,
};
use cdsync_delta::{RANGE_BYTES, RootBuilder, range_count, range_hash};
use cdsync_fs::{ApplyError, StagedWriter};
use cdsync_transport::{Connection, Frame, FrameError, FrameReader, FrameWriter};
use tokio::sync::mpsc;

use super::disk::Disk;
use super::link::{OPEN_MAX, write};
use super::{Input, Pull};
use crate::mailbox::Mailbox;
use crate::source::chain;

/// How long an upstream may take for one answer or range: it may have others to serve first.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How many ranges wait for the disk.
pub(super) const WRITE_BEHIND: usize = 4;
/// What is read to its end although it cannot be staged.
const SHORT_MAX_BYTES: u64 = RANGE_BYTES as u64;
/// A range and its hash.
const FRAME_MAX_BYTES: usize = RANGE_BYTES + 32;

/// How long a pull that was interrupted holds its place: the connection may still be good.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The contents that are pulled on one stream.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) job: JobId,
    pub(super) grant: Signed,
    pub(super) pulls: Vec<Pull>,
    pub(super) connection: Arc<dyn Connection>,
    pub(super) disk: Arc<Disk>,
    pub(super) engine: Mailbox<Input>,
}

/// What was pulled, where it is staged, and what the job's log says of it.
pub(super) type Pulled = (FetchResult, StagedWriter, Option<String>);

/// Why a pull did not bring the content.
pub(super) enum Failure {
    /// The connection or the peer failed: on another connection it may do better.
    Interrupted,
    /// An answer that is final for now.
    Answer(FetchResult),
    /// It failed so that nothing more can be read from the stream.
    Broken(String),
    /// What is here is no help, and why: the whole is to be pulled.
    OfNoUse(String),
}

/// Anything that went wrong on the stream itself.
pub(super) fn interrupted<E>(_: E) -> Failure {
    Failure::Interrupted
}

pub(super) fn broken(reason: impl Into<String>) -> Failure {
    Failure::Broken(reason.into())
}

fn failed(reason: impl Into<String>) -> Failure {
    Failure::Answer(FetchResult::Failed(reason.into()))
}

impl Fetch {
    /// Pulls, and tells the engine what came of each.
    pub(super) async fn run(self) {
        let mut different = match &self.pulls[..] {
            [
                Pull {
                    want,
                    base: Some(base),
                },
            ] => self.difference(want, base).await,
            _ => None,
        };
        let mut stream = match different {
            Some(_) => Err(()),
            None => self.ask().await,
        };
        for Pull { want, .. } in &self.pulls {
            let pulled = match (different.take(), &mut stream) {
                (Some(ended), _) => ended,
                (None, Ok(reader)) => {
                    let pulled = self.pull(want, reader).await;
                    pulled.map(|(result, staged)| (result, staged, None))
                }
                (None, Err(())) => Err(Failure::Interrupted),
            };
            let mut note = None;
            let (result, staged) = match pulled {
                Ok((result, staged, said)) => {
                    note = said;
                    (result, Some(staged))
                }
                Err(Failure::Answer(result)) => (result, None),
                Err(Failure::Broken(reason) | Failure::OfNoUse(reason)) => {
                    stream = Err(());
                    (FetchResult::Failed(reason), None)
                }
                Err(Failure::Interrupted) => {
                    if stream.is_ok() || want == &self.pulls[0].want {
                        // It is asked for again at once; when the connection is gone, so is this task.
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                    stream = Err(());
                    (FetchResult::Interrupted, None)
                }
            };
            let object = want.object;
            // An engine that is gone asks again when it is back.
            let _ = self
                .engine
                .deliver(Input::Fetched {
                    object,
                    result,
                    staged,
                    note,
                })
                .await;
        }
    }

    /// Opens a stream to the upstream. Cancel safe.
    pub(super) async fn open(&self) -> Result<(FrameWriter, FrameReader), Failure> {
        let opened = tokio::time::timeout(OPEN_MAX, self.connection.open()).await;
        let (send, recv) = opened.map_err(interrupted)?.map_err(interrupted)?;
        let reader = FrameReader::new(recv).with_max_payload(FRAME_MAX_BYTES);
        Ok((FrameWriter::new(send), reader))
    }

    /// Asks for all of them.
    async fn ask(&self) -> Result<FrameReader, ()> {
        let (mut writer, reader) = self.open().await.map_err(drop)?;
        for Pull { want, .. } in &self.pulls {
            write(&mut writer, &PeerMessage::Fetch(self.request(want)))
                .await
                .map_err(drop)?;
        }
        writer.finish().await.map_err(drop)?;
        Ok(reader)
    }

    pub(super) fn request(&self, want: &FetchWant) -> FetchRequest {
        FetchRequest {
            job: self.job,
            grant: self.grant.clone(),
            object: want.object,
            at_least: want.at_least,
        }
    }

    async fn pull(
        &self,
        want: &FetchWant,
        reader: &mut FrameReader,
    ) -> Result<(FetchResult, StagedWriter), Failure> {
        let header = self.header(want, reader).await?;
        self.ranges(header, reader, None).await
    }

    /// What the upstream announces, if it has it.
    pub(super) async fn header(
        &self,
        want: &FetchWant,
        reader: &mut FrameReader,
    ) -> Result<ContentHeader, Failure> {
        let header = match message(reader).await? {
            PeerMessage::Content(ContentAnswer::Follows(header)) => header,
            PeerMessage::Content(ContentAnswer::Removed { by }) => {
                return Err(Failure::Answer(FetchResult::Removed(by)));
            }
            PeerMessage::Content(ContentAnswer::Unsettled) => {
                return Err(Failure::Answer(FetchResult::Unsettled));
            }
            PeerMessage::Content(ContentAnswer::Unreadable { reason }) => {
                return Err(failed(format!("the source cannot read it: {reason}")));
            }
            PeerMessage::Refused {
                why: RefusedWhy::Grant,
                reason,
            } => return Err(broken(format!("the source refuses it: {reason}"))),
            PeerMessage::Refused { .. } => return Err(Failure::Interrupted),
            _ => return Err(broken(BROKEN)),
        };
        check(&header, want).map_err(broken)?;
        Ok(header)
    }

    /// Pulls the ranges of a content; the first one may have come.
    pub(super) async fn ranges(
        &self,
        header: ContentHeader,
        reader: &mut FrameReader,
        mut first: Option<Frame>,
    ) -> Result<(FetchResult, StagedWriter), Failure> {
        let (ranges, inbox) = mpsc::channel(WRITE_BEHIND);
        let disk = Arc::clone(&self.disk);
        // It ends by itself when the channel's other end is dropped.
        let stage = tokio::task::spawn_blocking(move || stage(&disk, header.size, inbox));
        let mut told = None;
        for _ in 0..range_count(header.size) {
            let frame = match first.take() {
                Some(first) => first,
                None => frame(reader).await?,
            };
            if frame.kind != kind::RANGE {
                told = Some(frame);
                break;
            }
            // A closed channel: staging failed, and says why below. What is short is read to its end,
            // for what comes behind it.
            if ranges.send(frame.payload).await.is_err() && header.size > SHORT_MAX_BYTES {
                break;
            }
        }
        drop(ranges);
        let staged = stage.await.map_err(interrupted)?;
        if let Err(reason) = &staged
            && header.size > SHORT_MAX_BYTES
        {
            return Err(broken(reason));
        }
        let last = match told {
            Some(frame) => message_of(&frame)?,
            None => message(reader).await?,
        };
        let (staged, root) = staged.map_err(failed)?;
        match last {
            PeerMessage::ContentEnd { root: said } if Some(said) == root => {
                Ok((staged_as(&header, said), staged))
            }
            PeerMessage::Abandon => Err(Failure::Answer(FetchResult::Unsettled)),
            PeerMessage::ContentEnd { .. } => Err(failed("the content does not match its hash")),
            _ => Err(broken(BROKEN)),
        }
    }
}

/// What a fetch fails with that got something else than was asked for.
pub(super) const BROKEN: &str = "the upstream broke the protocol: see what runs there";

/// A content that is staged whole, as its upstream announced it.
pub(super) fn staged_as(header: &ContentHeader, hash: Hash) -> FetchResult {
    FetchResult::Staged {
        version: header.version,
        mtime: header.mtime,
        size: header.size,
        hash,
    }
}

/// What an upstream announces, against what was asked for.
fn check(header: &ContentHeader, want: &FetchWant) -> Result<(), &'static str> {
    if header.version < want.at_least {
        return Err("the upstream offers an older version than asked for");
    }
    if header.version == want.at_least && header.size > want.size {
        return Err("the upstream announces more bytes than the record that it sent");
    }
    if i64::try_from(header.size).is_err() || !header.mtime.is_valid() {
        return Err("the upstream announces what no file can be");
    }
    Ok(())
}

/// The next frame, from an upstream that must not fall silent for long. Cancel safe.
pub(super) async fn frame(reader: &mut FrameReader) -> Result<Frame, Failure> {
    match reader.next_within(SILENCE_MAX).await {
        Ok(Some(frame)) => Ok(frame),
        // On another stream the same would come: it is told, and tried again later.
        Err(error @ (FrameError::TooLarge { .. } | FrameError::Stalled { .. })) => {
            Err(broken(chain(&error)))
        }
        Ok(None) | Err(_) => Err(Failure::Interrupted),
    }
}

async fn message(reader: &mut FrameReader) -> Result<PeerMessage, Failure> {
    message_of(&frame(reader).await?)
}

pub(super) fn message_of(frame: &Frame) -> Result<PeerMessage, Failure> {
    if frame.kind != kind::MESSAGE {
        return Err(broken(BROKEN));
    }
    decode(&frame.payload).map_err(|_| broken(BROKEN))
}

/// Checks and writes ranges as they come. The root hash is `None` when some are missing.
fn stage(
    disk: &Disk,
    size: u64,
    mut inbox: mpsc::Receiver<Bytes>,
) -> Result<(StagedWriter, Option<Hash>), String> {
    let told = |error: ApplyError| chain(&error);
    let stager = disk.fetch_stager().map_err(told)?;
    let writer = disk.with_room(size, || stager.large(size)).map_err(told)?;
    let mut root = RootBuilder::new();
    let single = size <= RANGE_BYTES as u64;
    while let Some(payload) = inbox.blocking_recv() {
        let index = root.pushed();
        let (said, bytes) = payload
            .split_at_checked(32)
            .ok_or("the upstream sent a range without a hash")?;
        if bytes.is_empty() && !single {
            return Err(format!("the upstream sent nothing as range {index}"));
        }
        let hash = range_hash(index, bytes, single);
        if hash.0 != said {
            return Err(format!("range {index} does not match its hash"));
        }
        let left = size.saturating_sub(index * RANGE_BYTES as u64);
        disk.with_room(left, || writer.write_range(index, bytes))
            .map_err(told)?;
        root.push(hash);
    }
    let root = root.finish(size).ok().map(Hash);
    Ok((writer, root))
}
