//! Records of the log: the full new state of names and objects that changed together.

use serde::{Deserialize, Serialize};

use super::object::{Kind, ObjectState, Seq, Version};
use super::writer::size_of;
use crate::bounds;
use crate::ids::{IncarnationId, ObjectId};
use crate::path::Name;
use crate::time::Hlc;

/// The most names and objects in one record. A record holds what one step of a program changed
/// together (a rename, a swap, a chain of renames); more than this is split where nothing depends
/// on it.
pub const RECORD_MAX_ITEMS: usize = 16 * 1024;

/// The longest signature that is taken.
const SIGNATURE_MAX_BYTES: usize = 64;

/// What a name is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameState {
    /// The folder.
    pub parent: ObjectId,
    /// The name in it.
    pub name: Name,
    /// The object behind it, `None` for nothing.
    pub object: Option<ObjectId>,
}

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// The run of the agent that wrote it.
    pub incarnation: IncarnationId,
    /// When.
    pub hlc: Hlc,
    /// Names as they are now.
    #[serde(deserialize_with = "bounds::list::<_, _, RECORD_MAX_ITEMS>")]
    pub names: Vec<NameState>,
    /// Objects as they are now. Every object that got a name here is among them.
    #[serde(deserialize_with = "bounds::list::<_, _, { 2 * RECORD_MAX_ITEMS }>")]
    pub objects: Vec<ObjectState>,
    /// Objects that have no name any more.
    #[serde(deserialize_with = "bounds::list::<_, _, RECORD_MAX_ITEMS>")]
    pub removed: Vec<ObjectId>,
    /// Marks a group of records that become visible together: always zero in this version.
    pub group: u64,
    /// The release set it belongs to: always zero in this version.
    pub set: u64,
    /// The origin's signature: always empty in this version.
    #[serde(deserialize_with = "bounds::list::<_, _, SIGNATURE_MAX_BYTES>")]
    pub signature: Vec<u8>,
}

impl Record {
    /// The objects whose content this record changed, in the order in which a batch carries them.
    pub fn contents(&self) -> impl Iterator<Item = &ObjectState> {
        self.objects.iter().filter(|o| self.carries_content(o))
    }

    /// Whether an object of this record comes with content: a file whose bytes changed here. An
    /// empty file needs none.
    #[must_use]
    pub fn carries_content(&self, object: &ObjectState) -> bool {
        object.kind == Kind::File && object.content_seq == self.seq
    }

    /// How many content bytes the record brings.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.contents().map(|state| size_of(&state.content)).sum()
    }

    /// How many bytes of extended attributes the record brings.
    #[must_use]
    pub fn xattr_bytes(&self) -> u64 {
        let bytes = |state: &ObjectState| state.meta.xattrs.bytes() as u64;
        self.objects.iter().map(bytes).sum()
    }

    /// The version that this record gives to its objects.
    #[must_use]
    pub fn version(&self, origin: crate::ids::OriginId) -> Version {
        Version {
            origin,
            incarnation: self.incarnation,
            seq: self.seq,
            hlc: self.hlc,
        }
    }
}
