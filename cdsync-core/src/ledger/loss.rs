//! What a disk cannot hold of an object.

use serde::{Deserialize, Serialize};

/// One thing that a target's disk could not hold, or its agent may not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Loss {
    /// Owner or group, and with it set-id bits.
    Owner,
    /// The permission bits.
    Mode,
    /// An access list.
    Acl,
    /// Extended attributes.
    Xattrs,
    /// The capabilities of a program.
    Capability,
    /// That several names are one file.
    HardLink,
    /// The modification time to the nanosecond.
    Time,
    /// All of it: its name is another one's to the filesystem.
    Name,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Owner,
        Self::Mode,
        Self::Acl,
        Self::Xattrs,
        Self::Capability,
        Self::HardLink,
        Self::Time,
        Self::Name,
    ];

    /// For people: what is missing and why.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Owner => "the agent may not give it its owner",
            Self::Mode => "the filesystem does not hold its permission bits",
            Self::Acl => "the filesystem does not hold its access list",
            Self::Xattrs => "the filesystem does not hold its extended attributes",
            Self::Capability => "the agent may not give it its capabilities",
            Self::HardLink => "the filesystem does not hold a file under several names",
            Self::Time => "the filesystem does not hold its exact time",
            Self::Name => "the filesystem takes its name for another one of its folder",
        }
    }
}

/// A set of losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Losses(u8);

impl Losses {
    /// None.
    pub const NONE: Self = Self(0);

    /// Adds one.
    pub const fn add(&mut self, loss: Loss) {
        self.0 |= 1 << loss as u8;
    }

    /// Takes one away.
    pub const fn remove(&mut self, loss: Loss) {
        self.0 &= !(1 << loss as u8);
    }

    /// Adds all of another set.
    pub const fn merge(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether one is among them.
    #[must_use]
    pub const fn has(self, loss: Loss) -> bool {
        self.0 & (1 << loss as u8) != 0
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of them, in their order.
    pub fn iter(self) -> impl Iterator<Item = Loss> {
        Loss::ALL.into_iter().filter(move |loss| self.has(*loss))
    }
}
