//! A folder that was removed and made anew under its name stays the object that it was.
//!
//! What is in it is compared name by name. So a tree that is removed and unpacked again is told as
//! the changes that it comes to, and only what does not come back counts as deleted.

use super::compare::{Lost, Moves, Round};
use super::pairing::{is_folder, left};
use super::{Coalescer, Slot};
use crate::ledger::access;
use crate::ledger::object::{Kind, Observed};
use crate::ledger::rows::Local;
use crate::ledger::tables::{Table, TableError, Tables};
use crate::time::WallMillis;

impl Coalescer {
    /// Takes the folders out of a round that took the place of others which are gone.
    pub(super) fn renew_folders(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        round: &mut Round,
        moves: &Moves,
    ) -> Result<(), TableError> {
        let is_new_folder = |slot: &Slot| {
            let found = round.found.get(slot);
            !moves.contains_key(slot) && found.is_some_and(|f| f.observed.kind == Kind::Folder)
        };
        let renewed: Vec<Slot> = left(&round.lost, moves)
            .filter(|(slot, lost)| is_folder(lost) && is_new_folder(slot))
            .map(|(slot, _)| slot.clone())
            .collect();
        for slot in renewed {
            if let (Some(lost), Some(found)) = (round.lost.remove(&slot), round.found.remove(&slot))
            {
                self.renew_folder(wall, t, lost, &found.observed)?;
            }
        }
        Ok(())
    }

    fn renew_folder(
        &mut self,
        wall: WallMillis,
        t: &mut dyn Tables,
        lost: Lost,
        seen: &Observed,
    ) -> Result<(), TableError> {
        let Lost { id, mut row, .. } = lost;
        if let Some(old) = row.local.as_ref().and_then(|local| local.handle.as_ref()) {
            access::remove_handle(t, old, id)?;
        }
        if let Some(handle) = seen.folder_handle() {
            self.doubt_holder(t, handle)?;
            t.put(Table::Handles, handle, &id.to_key())?;
            self.listings.heard(id, handle);
        }
        row.local = Some(Local {
            fingerprint: seen.fingerprint,
            handle: seen.folder_handle().cloned(),
            round: 0,
        });
        self.folders.forget();
        self.listings.deep(id);
        self.record_change(wall, t, id, row, seen, false)
    }
}
