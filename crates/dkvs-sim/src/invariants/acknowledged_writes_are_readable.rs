//! An acknowledged write that nobody replaced is readable, at all times (G3, and of G1 what a get can tell).
//!
//! A get that begins after a put or delete was acknowledged returns it or what replaced it, when R + W > N and both asked
//! for the same N. So the get's context covers what the write's returned context covers, and an event of the write; and if its value is not among the siblings, some
//! other write replaced it: one whose context covers the write, or one without a context, called before the get returned.
//!
//! A value whose time may have come by the clock of some server need not be shown, but the get has heard of it all the same.
//!
//! After a damage (a disk wiped, restored, or cut off before a flush) this is owed for the key's owners from the first read of
//! the key with R = N that was called after the damage; until then a get may meet the damaged owner and one that the write
//! had not reached. A flipped bit excuses no get of what was acknowledged before: the owner sees it. It is owed for all writes again, but for those whose every
//! copy may have been among the damaged: W owners or more since the write was called, with no read from all owners between.
//!
//! A pair that more than N − R owners are given at their starts is readable from the beginning: every get shows it, or has heard
//! of a put or delete. Of damage only a flipped bit excuses from it, in the record of one of them: what no other owner holds is lost with
//! that, until the next start gives it again.
//!
//! Not checked here: sloppy requests; gets that overlap the write; R + W ≤ N; whether what replaced the write may itself be gone (that is
//! `concurrent_writes_are_never_lost`); writes of which no event was seen, except as such.

use std::collections::BTreeSet;

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Read, Write, in_words, knows_a_write};
use crate::history::{Damage, Given, ValueId};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values() {
        for read in key.reads.iter().filter(|read| !read.op.sloppy) {
            shows_what_was_given(evidence, key, read, findings);
        }
        for write in key.writes.iter().filter(|write| write.is_acknowledged()) {
            findings.claim(write.may_have_happened(key), || {
                format!("{} was acknowledged, but no disk ever held it", in_words(write.op))
            });
            if write.dots.is_empty() {
                continue;
            }
            for read in key.reads.iter().filter(|read| key.keeps(write.op, read.op)) {
                findings.claim(knows(key, read, write), || {
                    let (get, put) = (in_words(read.op), in_words(write.op));
                    format!("{get} has not heard of {put}, only of {:?}", read.context)
                });
                let is_shown = read.shows(write.value) || read.may_hide(write);
                findings.claim(is_shown || was_replaced(key, read, write), || {
                    let (get, put) = (in_words(read.op), in_words(write.op));
                    format!("{get} does not show {put}, and nobody replaced it: {:?}", read.values)
                });
            }
        }
    }
}

fn shows_what_was_given(evidence: &Evidence<'_>, key: &Key<'_>, read: &Read<'_>, findings: &mut Findings) {
    let Some(owners) = evidence.history.owners.get(&(key.name.to_owned(), read.op.n)) else { return };
    let values: BTreeSet<ValueId> = key.given.iter().map(|given| given.value).collect();
    for value in values {
        let is_lost = |server| {
            evidence.history.damage.iter().any(|damage| match damage {
                Damage::Flipped { server: flipped, key: name, .. } => *flipped == server && name == key.name,
                Damage::Wiped { .. } | Damage::Restored { .. } | Damage::Unflushed { .. } => false,
            })
        };
        let has_it = |given: &&&Given| {
            given.value == value && owners.contains(&given.server) && !is_lost(given.server)
        };
        if key.given.iter().filter(has_it).count() + read.op.quorum > read.op.n {
            findings.claim(read.shows(Some(value)) || knows_a_write(read.context), || {
                let get = in_words(read.op);
                format!(
                    "{get} neither shows value {value}, given to servers at their start, nor knows of a put"
                )
            });
        }
    }
}

/// Whether the get has heard of the write: of all that the context returned names, and of an event of it.
fn knows(key: &Key<'_>, read: &Read<'_>, write: &Write<'_>) -> bool {
    let returned = match write.fate {
        Fate::Acknowledged(returned) => returned,
        Fate::Open | Fate::Failed => return true,
    };
    let seen = || write.dots.iter().any(|&dot| read.context.covers(dot));
    let unseen = || key.covers_unseen_events(read.context) && write.may_have_unseen_events(key);
    read.context.descends_from(returned) && (seen() || unseen())
}

fn was_replaced(key: &Key<'_>, read: &Read<'_>, write: &Write<'_>) -> bool {
    let in_time = |by: &&Write<'_>| read.op.returned.is_none_or(|returned| by.op.called <= returned);
    key.writes.iter().filter(in_time).any(|by| by.may_replace(write))
}
