//! What was acknowledged is on all owners' disks once hints are delivered, with nobody reading (of G8 what hints do).
//!
//! When all faults have ended, clients have finished and no hint is left, each owner of a key, for the N of the write, knows
//! the event of every acknowledged write: it holds its value, or has replaced it.
//!
//! Not checked: a write during which, or within [`HINTED`] of whose deadline, one of the owners ended without being asked to, or
//! its disk may have kept it from writing hints until it ended, as that may have been its coordinator, and no hint outlives it then; one after whose call a disk of an owner was damaged, as hints
//! were lost with it; one of a partition that is marked as one in which an owner missed writes; one whose events were never
//! seen, or may not be told from a second execution's. How long it takes is checked by the runner.

use dkvs_core::position::Partition;
use dkvs_core::servers::ServerIndex;

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Write, in_words};
use crate::history::{Damage, Micros};

/// Within this time after a write's deadline its coordinator has written hints, on the slowest disk.
const HINTED: Micros = 10_000_000;

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let history = evidence.history;
    for key in evidence.keys.values().filter(|_| !history.quiet_disks.is_empty()) {
        for write in &key.writes {
            let Some(owners) = history.owners.get(&(key.name.to_owned(), write.op.n)) else { continue };
            let Fate::Acknowledged(context) = write.fate else { continue };
            let dots: Vec<_> = write.dots.iter().filter(|&&dot| context.covers(dot)).collect();
            if dots.is_empty() || is_excused(evidence, key, write, owners) {
                continue;
            }
            for owner in owners {
                let record = history.quiet_disks.get(owner).and_then(|disk| disk.get(key.name));
                let knows = record.is_some_and(|record| dots.iter().any(|&&dot| record.vv().covers(dot)));
                findings.claim(knows, || {
                    let what = in_words(write.op);
                    format!(
                        "after all hints were delivered, server {owner} has not heard of {what}: {record:?}"
                    )
                });
            }
        }
    }
}

fn is_excused(evidence: &Evidence<'_>, key: &Key<'_>, write: &Write<'_>, owners: &[ServerIndex]) -> bool {
    let history = evidence.history;
    let until = write.op.deadline + HINTED;
    let has_ended = history
        .ends
        .iter()
        .any(|&(server, from, to)| owners.contains(&server) && from <= until && to >= write.op.called);
    let is_damaged = history.damage.iter().any(|damage| {
        let (server, at) = match *damage {
            Damage::Wiped { server, at }
            | Damage::Restored { server, at, .. }
            | Damage::Unflushed { server, at }
            | Damage::Flipped { server, at, .. } => (server, at),
        };
        owners.contains(&server) && at >= write.op.called
    });
    let partition = Partition::of_key(key.name.as_bytes()).number();
    let is_marked = history.kept.iter().any(|kept| kept.key.is_none() && kept.partition == partition);
    has_ended || is_damaged || is_marked
}
