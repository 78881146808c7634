//! The engine's part of reconciling with an upstream whose log does not lead on from the cursor.

use cdsync_core::ids::ServerId;
use cdsync_core::replica::{ReconcileProgress, Replica};
use cdsync_core::wire::{CompareAnswer, CompareAsk, CompareWhy, Cursor, Snapshot};
use cdsync_fs::Durability;

use super::engine::{Engine, empty};
use super::{Ended, LinkOrder, TargetContext, TargetError, Verdict};

impl Engine {
    /// A subscription begins with a snapshot.
    pub(super) fn begin_comparison(
        &mut self,
        context: &TargetContext,
        (by, from): (ServerId, Option<Cursor>),
        snapshot: &Snapshot,
    ) -> Result<(Verdict, Option<Ended>), TargetError> {
        self.begin_link(by);
        self.compared_bytes = 0;
        if let Some(preview) = &mut self.preview {
            preview.begin_comparison(snapshot)?;
            return Ok((Verdict::GoOn, None));
        }
        if from != self.replica.resume() {
            return Ok((Verdict::Again, None));
        }
        let goes_on = self.store.write(Durability::Durable, |t| {
            self.replica.handle_snapshot(t, snapshot)
        })?;
        if !goes_on {
            return self.begin_anew(context);
        }
        let why = match snapshot.why {
            CompareWhy::Behind => "the upstream's log does not reach back to what is here",
            CompareWhy::Unknown => "the upstream does not know what is here",
        };
        context.log.note(format!("{why}: comparing everything"));
        Ok((Verdict::GoOn, None))
    }

    /// The upstream has another history. What is on the disk is compared and adopted.
    pub(super) fn begin_anew(
        &mut self,
        context: &TargetContext,
    ) -> Result<(Verdict, Option<Ended>), TargetError> {
        tracing::warn!(job = %context.order.name, "the source's ledger is another one: adopting");
        context
            .log
            .note("the source's ledger is another one: comparing everything");
        let former = self.replica.resume();
        empty(&self.store)?;
        self.store
            .write(Durability::Durable, |t| Replica::note_former(t, former))?;
        Ok((Verdict::Anew, Some(Ended::Again)))
    }

    pub(super) fn take_compared(
        &mut self,
        answer: CompareAnswer,
        bytes: u64,
    ) -> Result<(), TargetError> {
        self.compared_bytes += bytes;
        let compared = match &mut self.preview {
            Some(preview) => preview.take_compared(answer)?,
            None => {
                self.store.write(Durability::Lazy, |t| {
                    self.replica.handle_compared(t, answer)
                })?;
                self.replica.take_refused()
            }
        };
        if let Some(refused) = compared {
            let reason = refused.to_string();
            tracing::error!(reason, "a comparison is refused");
            self.link.say(LinkOrder::Drop(reason));
        }
        Ok(())
    }

    /// Asks what is to be asked now, and makes some of what was found to differ.
    pub(super) fn reconcile(&mut self, context: &TargetContext) -> Result<(), TargetError> {
        let view = self.store.read()?;
        if let Some(ask) = self.replica.poll_compare(&view)? {
            if let (CompareAsk::Done, Some(at)) = (&ask, self.replica.reconciling()) {
                context.log.note(format!(
                    "{} names compared: {} objects differ; that took {} bytes",
                    at.names, at.found, self.compared_bytes
                ));
            }
            self.link.say(LinkOrder::Compare(ask));
        }
        drop(view);
        if self.replica.has_differences() {
            self.store
                .write(Durability::Lazy, |t| self.replica.plan_differences(t))?;
            self.apply_planned()?;
        }
        Ok(())
    }
}

/// Why and how far, for people.
pub(super) fn describe(progress: &ReconcileProgress) -> String {
    let why = match progress.why {
        CompareWhy::Behind => "the upstream's log does not reach back to what is here",
        CompareWhy::Unknown => "the upstream does not know what is here",
    };
    let ReconcileProgress {
        names,
        files,
        found,
        ..
    } = progress;
    if progress.applying {
        format!("{why}: {found} objects differ and are being brought")
    } else {
        format!("{why}: {names} names are compared, of about {files} files; {found} objects differ")
    }
}
