//! Reads files in doubt again, at a pace, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use cdsync_core::coalescer::Reread;
use cdsync_core::ledger::object::Hash;
use cdsync_core::ledger::outgoing::ContentAt;
use cdsync_delta::{RANGE_BYTES, RootBuilder, range_count};
use cdsync_fs::{ContentReader, ReadError, Root, open_content};

use super::{Input, SourceError, dir_ref};
use crate::mailbox::Mailbox;

/// How fast files are read again while nobody waits for them: a quarter of what a slow disk gives.
const BYTES_PER_SECOND: f64 = 32.0 * 1024.0 * 1024.0;

/// The engine's handle on the thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Rereader {
    asks: SyncSender<ContentAt>,
    pace: Arc<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    hurry: AtomicBool,
    ended: AtomicBool,
}

impl Rereader {
    pub(super) fn start(root: &Root, engine: &Mailbox<Input>) -> Result<Self, SourceError> {
        // The coalescer asks for one after the other.
        let (asks, asked) = sync_channel(1);
        let pace = Arc::new(Pace::default());
        let (root, engine, theirs) = (root.clone(), engine.clone(), Arc::clone(&pace));
        std::thread::Builder::new()
            .name("reread".into())
            .spawn(move || serve(&root, &asked, &engine, &theirs))
            .map_err(SourceError::Thread)?;
        Ok(Self { asks, pace })
    }

    /// Asks for a file to be read again; [`Input::Reread`] answers.
    pub(super) fn ask(&self, at: ContentAt) -> Result<(), SourceError> {
        let gone = |_| SourceError::Thread(std::io::ErrorKind::BrokenPipe.into());
        self.asks.send(at).map_err(gone)
    }

    /// Whether somebody waits.
    pub(super) fn hurry(&self, hurry: bool) {
        self.pace.hurry.store(hurry, Ordering::Relaxed);
    }
}

impl Drop for Rereader {
    fn drop(&mut self) {
        self.pace.ended.store(true, Ordering::Relaxed);
    }
}

fn serve(root: &Root, asked: &Receiver<ContentAt>, engine: &Mailbox<Input>, pace: &Pace) {
    while let Ok(at) = asked.recv() {
        let opened = root
            .dir(&dir_ref(&at.folder))
            .map_err(ReadError::Unreadable)
            .and_then(|dir| open_content(&dir, &at.name, &at.fingerprint));
        let reread = match opened.and_then(|reader| hash(reader, pace)) {
            Ok(Some(hash)) => Reread::Read(hash),
            Ok(None) => return,
            Err(ReadError::Unreadable(error)) => {
                tracing::debug!(%error, "a file in doubt cannot be read");
                Reread::Failed
            }
            Err(_) => Reread::Changed,
        };
        if engine.send(Input::Reread { at, reread }).is_err() {
            return;
        }
    }
}

/// `None` when nobody wants it any more.
fn hash(reader: ContentReader, pace: &Pace) -> Result<Option<Hash>, ReadError> {
    let size = reader.size();
    let mut root = RootBuilder::new();
    let mut bytes = Vec::with_capacity(RANGE_BYTES);
    for index in 0..range_count(size) {
        bytes.clear();
        let began = Instant::now();
        root.push(reader.read_range(index, &mut bytes)?);
        if pace.ended.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if !pace.hurry.load(Ordering::Relaxed) {
            #[expect(clippy::cast_precision_loss, reason = "a pace need not be exact")]
            let due = Duration::from_secs_f64(bytes.len() as f64 / BYTES_PER_SECOND);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    reader.finish()?;
    Ok(root.finish(size).ok().map(Hash))
}
