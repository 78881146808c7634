//! What a replica asks of a disk.

use std::sync::Arc;

use crate::ids::ObjectId;
use crate::ledger::access::{FolderAt, Slot};
use crate::ledger::loss::Losses;
use crate::ledger::object::{Fingerprint, Hash, Identity, Kind, Metadata, Observed};
use crate::ledger::rows::{Known, Left, ParkedWhat};
use crate::path::{Name, NameSetDigest};
use crate::time::Timestamp;

/// A name in a folder, as a disk can find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: FolderAt,
    /// The name in it.
    pub name: Name,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// In the batch being applied: the content of this index.
    Inline(usize),
    /// Fetched and staged for this object.
    Staged(ObjectId),
}

/// One object to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveOne {
    /// Which object.
    pub id: ObjectId,
    /// From where.
    pub from: Place,
    /// To where.
    pub to: Place,
    /// What it is known by.
    pub identity: Identity,
}

impl MoveOne {
    /// What is noted of it until it is done.
    pub(super) fn parked(&self) -> ParkedWhat {
        let place = |at: &Place| (at.folder.clone(), at.name.clone());
        ParkedWhat::Move {
            from: place(&self.from),
            to: place(&self.to),
            then: None,
        }
    }
}

/// What to do where others changed what is expected at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDrift {
    /// It goes to the trash without a word: after a crash it may be our own.
    #[default]
    Ignore,
    /// It goes to the trash, which is told: [`ApplyResult::Overwrote`].
    Replace,
    /// It stays, and nothing is done: [`ApplyResult::Kept`].
    Keep,
}

/// What is at a name, compared with what is known: whoever drives a disk looks, and obeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// Nothing.
    Nothing,
    /// What was left there.
    AsLeft,
    /// The content that was left there, with another mode.
    OtherMeta,
    /// Something else.
    Other,
}

impl Met {
    /// Whether it must not be touched.
    #[must_use]
    pub fn stays(self, drift: OnDrift) -> bool {
        drift == OnDrift::Keep && matches!(self, Self::OtherMeta | Self::Other)
    }

    /// Whether replacing it is to be told.
    #[must_use]
    pub fn is_told(self, drift: OnDrift) -> bool {
        drift == OnDrift::Replace && matches!(self, Self::OtherMeta | Self::Other)
    }
}

/// One thing to do. Every one may be done twice, or over its own half-done state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyOp {
    /// Makes a folder, or takes the one that is there: [`ApplyResult::Found`].
    MakeFolder {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// Its metadata (its times are set again once its content is there).
        meta: Metadata,
        /// What is still to be removed from there, and is not taken.
        left: Option<Identity>,
    },
    /// Publishes a file.
    WriteFile {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// Its bytes.
        body: Body,
        /// Its metadata.
        meta: Metadata,
        /// What is expected at the name, `None` for nothing: replaced.
        over: Option<Known>,
        /// What to do with whatever else is found there.
        drift: OnDrift,
        /// A file that is there already is taken as it is, if it is equal by what the job compares.
        adopt: bool,
    },
    /// Takes a file that is there already if its size and modification time are these, and its
    /// content where the job has that compared.
    AdoptFile {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// Size in bytes.
        size: u64,
        /// Modification time.
        mtime: Timestamp,
        /// BLAKE3 of its content, where that is known.
        hash: Option<Hash>,
        /// Its metadata.
        meta: Metadata,
        /// What is expected if it is not equal.
        over: Option<Known>,
        /// With [`OnDrift::Keep`]: anything else stays.
        drift: OnDrift,
    },
    /// Publishes a symbolic link.
    MakeLink {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// What it points to.
        target: Vec<u8>,
        /// Its metadata.
        meta: Metadata,
        /// As for files.
        over: Option<Known>,
        /// As for files.
        drift: OnDrift,
    },
    /// Publishes a pipe, a socket or a device.
    MakeSpecial {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// What it is.
        kind: Kind,
        /// A device's number, else zero.
        device: u64,
        /// Its metadata.
        meta: Metadata,
        /// As for files.
        over: Option<Identity>,
    },
    /// Sets metadata.
    SetMeta {
        /// Which object.
        id: ObjectId,
        /// Where; `None` for the root folder.
        at: Option<Place>,
        /// What it is known by.
        identity: Identity,
        /// What it is.
        kind: Kind,
        /// The metadata.
        meta: Metadata,
        /// How it was left, where that is to be looked at before.
        left: Option<Left>,
        /// What to do if it is not so.
        drift: OnDrift,
    },
    /// Makes a name a link to a file, in place of what is there.
    Link {
        /// Which object.
        id: ObjectId,
        /// A name that it has.
        from: Place,
        /// The name that it gets.
        at: Place,
        /// What it is known by.
        identity: Identity,
        /// What is expected at the name.
        over: Option<Identity>,
    },
    /// Compares a copy with how it was written, reading a file from the disk where its hash is
    /// known: [`ApplyResult::NotEqual`] when it is not so.
    Verify {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// What it is.
        kind: Kind,
        /// What it looked like.
        print: Fingerprint,
        /// For what is no folder: how it was left.
        left: Option<Left>,
    },
    /// Looks whether a copy is as it was left, metadata and all: [`ApplyResult::Differs`] when it is
    /// not so.
    Check {
        /// Which object; the default one where it is only asked whether anything is there.
        id: ObjectId,
        /// Where; `None` for the root folder.
        at: Option<Place>,
        /// What it is.
        kind: Kind,
        /// What it looked like.
        print: Fingerprint,
        /// How its content was left, where that is asked.
        left: Option<Left>,
        /// The metadata that it should have, where that is asked.
        meta: Option<Metadata>,
        /// What of that it is known not to have.
        losses: Losses,
    },
    /// Moves objects, each to where another one may still be.
    Move(Vec<MoveOne>),
    /// Moves something into the trash.
    Remove {
        /// Which object.
        id: ObjectId,
        /// Where.
        at: Place,
        /// What it is known by; all zero for whatever is there.
        known: Known,
        /// What to do if a file is not so.
        drift: OnDrift,
        /// What it is.
        kind: Kind,
        /// For a folder: everything that the ledger has below it. What else is there stays.
        below: NameSetDigest,
    },
}

impl ApplyOp {
    /// The object that it is about; the first of a move.
    #[must_use]
    pub fn object(&self) -> Option<ObjectId> {
        match self {
            Self::MakeFolder { id, .. }
            | Self::WriteFile { id, .. }
            | Self::AdoptFile { id, .. }
            | Self::MakeLink { id, .. }
            | Self::MakeSpecial { id, .. }
            | Self::Link { id, .. }
            | Self::SetMeta { id, .. }
            | Self::Verify { id, .. }
            | Self::Check { id, .. }
            | Self::Remove { id, .. } => Some(*id),
            Self::Move(moves) => moves.first().map(|m| m.id),
        }
    }

    /// The metadata that it gives.
    #[must_use]
    pub fn meta(&self) -> Option<&Metadata> {
        match self {
            Self::MakeFolder { meta, .. }
            | Self::WriteFile { meta, .. }
            | Self::AdoptFile { meta, .. }
            | Self::MakeLink { meta, .. }
            | Self::MakeSpecial { meta, .. }
            | Self::SetMeta { meta, .. } => Some(meta),
            Self::Check { meta, .. } => meta.as_ref(),
            Self::Link { .. } | Self::Verify { .. } | Self::Move(_) | Self::Remove { .. } => None,
        }
    }

    /// The name that it is about, where that is one.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::MakeFolder { at, .. }
            | Self::WriteFile { at, .. }
            | Self::AdoptFile { at, .. }
            | Self::MakeLink { at, .. }
            | Self::MakeSpecial { at, .. }
            | Self::Link { at, .. }
            | Self::Verify { at, .. }
            | Self::Remove { at, .. } => Some(at),
            Self::SetMeta { at, .. } | Self::Check { at, .. } => at.as_ref(),
            Self::Move(_) => None,
        }
    }

    /// The places that it changes.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let moved = self.moves().iter().flat_map(|one| [&one.from, &one.to]);
        self.place().into_iter().chain(moved)
    }

    /// The metadata that it gives, to be changed to what this disk's server knows.
    pub fn meta_mut(&mut self) -> Option<&mut Metadata> {
        match self {
            Self::MakeFolder { meta, .. }
            | Self::WriteFile { meta, .. }
            | Self::AdoptFile { meta, .. }
            | Self::MakeLink { meta, .. }
            | Self::MakeSpecial { meta, .. }
            | Self::SetMeta { meta, .. } => Some(meta),
            Self::Check { meta, .. } => meta.as_mut(),
            Self::Link { .. } | Self::Verify { .. } | Self::Move(_) | Self::Remove { .. } => None,
        }
    }

    /// The name that a file is written to.
    pub(super) fn into_written(self) -> Option<Slot> {
        match self {
            Self::WriteFile { at, .. } => Some((at.folder.id, at.name)),
            _ => None,
        }
    }

    /// What it moves.
    pub(super) fn moves(&self) -> &[MoveOne] {
        match self {
            Self::Move(moves) => moves,
            _ => &[],
        }
    }

    /// Whether it is done while a batch is taken in, and no record of that says so: content that was
    /// fetched, and further names.
    pub(super) fn is_beside_batch(&self) -> bool {
        matches!(
            self,
            Self::Link { .. }
                | Self::WriteFile {
                    body: Body::Staged(_),
                    ..
                }
        )
    }

    /// The folder that it happens in: operations of different folders may run side by side.
    #[must_use]
    pub fn folder(&self) -> Option<ObjectId> {
        self.place().map(|at| at.folder.id)
    }
}

/// Operations that may be done in any order and side by side, but for folders: those are made
/// first, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// The operations, shared with the replica: drop the step before it is answered.
    pub ops: Arc<Vec<ApplyOp>>,
    /// One after another, in their order.
    pub ordered: bool,
}

impl Step {
    /// Whether it moves objects. Then the transaction in which it was polled must be durable
    /// before it is carried out, and the one in which it was answered before the next step is: a
    /// disk that is more than one move ahead of its ledger cannot be told from a foreign one.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, ApplyOp::Move(_)))
    }
}

/// What became of one move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveResult {
    /// It is at its new name.
    Done(Box<Observed>),
    /// It is neither at its old name nor at its new one.
    Missing,
    /// Not done: to this disk its new name is the same as this other one of the folder.
    Clashes(Name),
    /// Not done, and why, for people.
    Failed(String),
}

/// How a copy is another one than it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Nothing is there.
    Gone,
    /// Something else is there.
    Other,
    /// Its content.
    Content,
    /// Its owner, mode, times or attributes.
    Meta,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyResult {
    /// Done; what is there now, where there is something.
    Done(Vec<Observed>),
    /// [`ApplyOp::MakeFolder`]: it was there already, and may hold what no ledger knows.
    Found(Vec<Observed>),
    /// [`ApplyOp::Move`]: one for each object.
    Moved(Vec<MoveResult>),
    /// As [`ApplyResult::Done`]; what others had changed there is in the trash, or was only
    /// metadata.
    Overwrote(Vec<Observed>),
    /// [`ApplyOp::Check`]: others changed it.
    Differs(Difference),
    /// Not done: others changed what is there, and it stays.
    Kept,
    /// Not done: to this disk its name is the same as this other one of the folder.
    Clashes(Name),
    /// [`ApplyOp::AdoptFile`]: what is there is not equal, and may be replaced.
    /// [`ApplyOp::SetMeta`]: its content is not what was left there, or is gone; of a folder, it is
    /// not at its name.
    /// [`ApplyOp::Remove`]: something else is there, of another kind or another folder.
    NotEqual,
    /// Not done, and why, for people.
    Failed(String),
}
