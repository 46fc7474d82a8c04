//! Who takes part in a request: the owners of a key, and who stands in for those that are down (DeCandia et al. 2007,
//! §4.6).
//!
//! A request has one *slot* for each of the key's N owners. A strict request fills a slot only with the owner itself. In a
//! *sloppy* one, when an owner does not answer, the next server of the preference list that does, and that has no slot yet,
//! may fill the owner's slot instead: it *stands in*.
//!
//! ```text
//!   preference list   B  C  A │ D  E  F        N = 3; C and A are down, and so is E
//!   slots             B  C  A
//!   filled by         B  D  F                  2 stand-ins, 1 owner
//! ```
//! A server that coordinates a key it does not own stands in before all others: it is there already.
//!
//! Invariants: a slot counts once, whoever fills it and however many have tried; a server fills at most one slot; an owner
//! never fills another owner's slot.
//!
//! What it leaves out: who is up is somebody's opinion, asked for each time. Two coordinators with two opinions choose other
//! stand-ins, and a read may then miss what a write has left with them: overlap is what sloppy requests give up.

use crate::servers::ServerIndex;

/// The owners of a key for one request, and the servers that may still stand in for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participants {
    owners: Vec<ServerIndex>,
    /// In the order in which they are asked. Each leaves the list when it is.
    spare: Vec<ServerIndex>,
}

impl Participants {
    /// These owners, and nobody else.
    #[must_use]
    pub fn strict(owners: &[ServerIndex]) -> Self {
        Self { owners: owners.to_vec(), spare: Vec::new() }
    }

    /// The first `n` of a preference list; whoever comes after them may stand in, `coordinator` before the others.
    #[must_use]
    pub fn sloppy(preference: &[ServerIndex], n: usize, coordinator: ServerIndex) -> Self {
        let (owners, fallbacks) = preference.split_at(n.min(preference.len()));
        let mut spare = fallbacks.to_vec();
        spare.sort_by_key(|&server| server != coordinator);
        Self { owners: owners.to_vec(), spare }
    }

    /// The owners, one for each slot, first to last.
    #[must_use]
    pub fn owners(&self) -> &[ServerIndex] {
        &self.owners
    }

    /// The next server to fill the slot of `owner`; `None` when nobody that is up is left, or this is no owner. It is not
    /// named again, for this slot or another.
    pub fn stand_in_for(
        &mut self,
        owner: ServerIndex,
        is_up: impl Fn(ServerIndex) -> bool,
    ) -> Option<ServerIndex> {
        if !self.owners.contains(&owner) {
            return None;
        }
        let place = self.spare.iter().position(|&server| is_up(server))?;
        Some(self.spare.remove(place))
    }
}
