//! A master that was restored from an older copy: agents show it orders that are later than its
//! own. It shows what it knows, and orders nothing, until a person says that it is to rule.

use std::collections::BTreeSet;

use super::Coordinator;
use crate::ids::ServerId;
use crate::time::WallMillis;
use crate::wire::{Signed, Standing};

/// What agents proved of later masters than this one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outranked {
    /// The highest term that they obey.
    pub term: u64,
    /// Servers that a later master had removed; at most as many as its orders named.
    pub revoked: BTreeSet<ServerId>,
}

impl Coordinator {
    /// What agents proved of later masters, if they did.
    #[must_use]
    pub const fn outranked(&self) -> Option<&Outranked> {
        self.outranked.as_ref()
    }

    /// An agent showed whose orders it obeys. What is not signed with this cluster's key counts for
    /// nothing: an agent alone cannot stop a master.
    pub(super) fn note_standing(&mut self, shown: &Signed) {
        let Ok(standing) = shown.verify::<Standing>(&self.key.verifying_key()) else {
            return;
        };
        let own = self.identity;
        let other = standing.epoch.term == own.term && standing.instance != own.instance;
        if standing.cluster != own.cluster || !(standing.epoch.term > own.term || other) {
            return;
        }
        let outranked = self.outranked.get_or_insert_default();
        outranked.term = outranked.term.max(standing.epoch.term);
        outranked.revoked.extend(standing.revoked);
    }

    /// A person said that this master is to rule, under a term above all that agents have shown,
    /// which the driver has stored. Servers that a later master had removed are removed here too.
    /// Does nothing for a term that is not above them.
    pub fn handle_restore_accepted(&mut self, term: u64, now: WallMillis) {
        let Some(outranked) = self.outranked.take_if(|outranked| outranked.term < term) else {
            return;
        };
        self.identity.term = term;
        for server in outranked.revoked {
            self.handle_removed(server, now);
        }
        self.tell_all();
    }
}
