//! What was acknowledged is on all owners' disks once hints are delivered, with nobody reading (of G8 what hints do).
//!
//! When all faults have ended, clients have finished and no hint is left, each owner of a key, for the N of the write, knows
//! the event of every acknowledged write: it holds its value, or has replaced it. A *coordinator* of the write is a server that
//! numbered one of the events that its acknowledgement covers.
//!
//! Excused is one owner of one write, when
//! - a coordinator ended, not in order, between the call and [`HINTED`] after it gave the owners up, or did so later and its disk
//!   may have kept it from writing hints since then: it had not kept the write for anybody yet;
//! - a coordinator's disk had no space for hints in that time, and there is little room for what goes on after an answer: it may
//!   have tried only once;
//! - a coordinator's disk was wiped, restored or (unless the level is `fsync`) cut off before a flush since the call: its
//!   hints are lost;
//! - so was the owner's own disk, or bits of this key's record flipped on it: its copy is lost; or its record was damaged
//!   earlier and is not repaired yet: what it holds cannot be told;
//! - a coordinator has a mark for the owner and the key's partition: the hints' budget was used up;
//! - servers compare, and the owner is none of the cluster's n, but of a request's larger N: marks for it are forgotten;
//! - servers compare, hints have a small budget, and a coordinator is none of the cluster's n (its put was sloppy, or had a larger N):
//!   it has nothing to compare, so the marks it left are forgotten, and the others make their copies equal.
//!
//! Not checked: a write of which no event was seen, or one whose event nobody is known to have numbered. How long it
//! takes is checked by the runner.

use std::collections::BTreeSet;
use std::time::Duration;

use dkvs_core::position::Partition;
use dkvs_core::servers::ServerIndex;

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Write, in_words};
use crate::history::{Damage, History};
use crate::trace::micros;

/// Within this time after giving up the owners that have not acknowledged a write its coordinator has written hints, unless
/// something keeps its disk from it. It has begun the write by the time that is acknowledged, and then has as long as the client had.
pub(crate) const HINTED: Duration = Duration::from_secs(1);

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let history = evidence.history;
    for key in evidence.keys.values().filter(|_| !history.quiet_disks.is_empty()) {
        for write in &key.writes {
            let Some(owners) = history.owners.get(&(key.name.to_owned(), write.op.n)) else { continue };
            let Fate::Acknowledged(context) = write.fate else { continue };
            let dots: Vec<_> = write.dots.iter().filter(|&&dot| context.covers(dot)).collect();
            let numbered_by =
                dots.iter().map(|dot| history.coordinators.get(&dot.actor.incarnation).copied());
            let Some(coordinators) = numbered_by.collect::<Option<BTreeSet<_>>>() else { continue };
            let is_lost = |&server| may_have_kept_nothing(history, server, write);
            if dots.is_empty() || coordinators.iter().any(is_lost) {
                continue;
            }
            for owner in
                owners.iter().filter(|&&owner| !is_excused(history, owner, &coordinators, key, write))
            {
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

/// Whether the coordinator ended, or could not write, before it had kept the write for those that had not acknowledged it.
fn may_have_kept_nothing(history: &History, coordinator: ServerIndex, write: &Write<'_>) -> bool {
    let (called, deadline) = (write.op.called, write.op.deadline);
    let begun = write.op.returned.unwrap_or(deadline);
    let until = begun + (deadline - called) + micros(HINTED);
    let full_disks = history.full_disks.iter().filter(|_| history.background_is_scarce);
    history
        .ends
        .iter()
        .chain(full_disks)
        .any(|&(server, from, to)| server == coordinator && from <= until && to >= called)
}

fn is_excused(
    history: &History,
    owner: ServerIndex,
    coordinators: &BTreeSet<ServerIndex>,
    key: &Key<'_>,
    write: &Write<'_>,
) -> bool {
    let is_damaged = history.damage.iter().any(|damage| match *damage {
        Damage::Unflushed { .. } if history.is_flushed => false,
        Damage::Wiped { server, at }
        | Damage::Restored { server, at, .. }
        | Damage::Unflushed { server, at } => {
            at >= write.op.called && (server == owner || coordinators.contains(&server))
        }
        Damage::Flipped { server, at, key: ref flipped } => {
            at >= write.op.called && server == owner && flipped == key.name
        }
    });
    let partition = Partition::of_key(key.name.as_bytes()).number();
    let is_marked = history.kept.iter().any(|kept| {
        kept.key.is_none()
            && kept.partition == partition
            && kept.target == owner
            && coordinators.contains(&kept.holder)
    });
    let is_unreadable = history.quiet_damaged.contains(&(owner, key.name.to_owned()));
    let owners = history.owners.get(&(key.name.to_owned(), write.op.n));
    let place = owners.and_then(|owners| owners.iter().position(|&other| other == owner));
    let is_beyond = history.compared_n.is_some_and(|n| place.is_some_and(|place| place >= n));
    let lists = history.owners.iter().filter(|((name, _), _)| name == key.name);
    let longest = lists.map(|(_, owners)| owners).max_by_key(|owners| owners.len());
    let owns =
        |n: usize, server| longest.is_some_and(|owners| owners.iter().take(n).any(|owner| owner == server));
    let is_forgotten = history.hints_are_scarce
        && history.compared_n.is_some_and(|n| coordinators.iter().any(|server| !owns(n, server)));
    is_damaged || is_marked || is_unreadable || is_beyond || is_forgotten
}
