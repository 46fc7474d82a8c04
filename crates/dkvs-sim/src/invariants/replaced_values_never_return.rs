//! A replaced or deleted value never returns (G2, and what a put replaces).
//!
//! Six claims, from the one that needs least to the one that needs most:
//! 1. *In one sight.* A value is not shown beside a write whose context covers it: not by a get, and not by a disk in the
//!    end, whatever was damaged.
//! 2. *Between gets.* What a get had seen to be gone (its context covers the event, the value is not among the siblings)
//!    no later get shows, if their quorums overlap as in `gets_never_go_back`, with the same excuses after damage.
//! 3. *After a put with a context.* What the context of an acknowledged write covers no later get with R + W > N shows.
//! 4. *After a blind write.* With 2W > N, a put without a context replaces everything acknowledged before it began: once it
//!    is acknowledged itself, no later get with R + W > N shows such a value. This is checked for blind writes that no
//!    other write could have replaced meanwhile, and for values of writes that no second server had begun as well; and not for a
//!    deletion of which some owner knew nothing any more, as it had been forgotten.
//! 5. *In the end.* When all owners have exchanged their records, what any get had seen to be gone is gone, however few it
//!    asked, and so is what claims 3 and 4 say was replaced; unless as many owners as had to hold the get's or write's state were
//!    damaged before a repair.
//!
//! 6. *Pairs given at a start* are older than any put: who has heard of a put or delete, acknowledged or not, shows none, be it
//!    a get or a disk in the end, whatever was damaged.
//!
//! What a get does not show because its time may have come is not seen to be gone.
//!
//! Every execution of a write is an event of its own, and so is the second round of a blind put. A value may return through
//! an event that whoever replaced it had not seen.
//!
//! Not checked: gets with quorums that need not meet, as those of sloppy requests, before the owners have exchanged their records. Of a deletion a
//! get does not say which it is; it counts as returned only when no other can be meant.

use dkvs_core::record::Record;
use dkvs_core::version::{Dot, VersionVector};

use super::Findings;
use crate::checkers::causality::Sight;
use crate::checkers::convergence;
use crate::checkers::evidence::{Evidence, Key, Read, Write, in_words, knows_a_write};
use crate::history::{Micros, ValueId};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values() {
        let lone: Vec<&Write<'_>> = key.writes.iter().filter(|write| is_lone_blind(key, write)).collect();
        for read in &key.reads {
            in_one_sight(&Sight::of_read(key, read), &in_words(read.op), findings);
            let given = read.values.iter().any(|&value| key.is_given(value));
            given_before_puts(given, read.context, &in_words(read.op), findings);
            for &value in read.values {
                between_gets(key, read, value, findings);
                after_contexts(key, read, value, findings);
                after_blind_writes(key, &lone, read, value, findings);
            }
        }
        for (server, disk) in &evidence.history.disks {
            if let Some(record) = disk.get(key.name) {
                let holder = format!("the disk of server {server} (key {:?})", key.name);
                in_one_sight(&Sight::of_record(key, record), &holder, findings);
                let given = record.siblings().iter().any(|sibling| sibling.dot.actor.is_initial());
                given_before_puts(given, record.vv(), &holder, findings);
            }
        }
        if let Some(last) = convergence::merged(evidence.history, key.name) {
            in_the_end(key, &lone, &last, findings);
        }
    }
}

fn given_before_puts(shows_given: bool, seen: &VersionVector, whose: &str, findings: &mut Findings) {
    findings.claim(!shows_given || !knows_a_write(seen), || {
        format!("{whose} has heard of a put, and shows what a server was given at its start: {seen:?}")
    });
}

fn in_one_sight(sight: &Sight<'_>, whose: &str, findings: &mut Findings) {
    let returned = sight.returned();
    findings.claim(returned.is_empty(), || {
        let pairs: Vec<String> = returned
            .iter()
            .map(|(old, by)| format!("{}, replaced by {}", in_words(old.op), in_words(by.op)))
            .collect();
        format!("{whose} shows a write and what it had replaced: {}", pairs.join("; "))
    });
}

fn between_gets(key: &Key<'_>, read: &Read<'_>, value: Option<ValueId>, findings: &mut Findings) {
    let bearers = key.bearers(value, read.context);
    if bearers.is_empty() {
        return;
    }
    let earlier = key.reads.iter().filter(|earlier| key.keeps(earlier.op, read.op));
    for earlier in earlier {
        let saw_gone =
            |&(old, dot): &(&Write<'_>, Dot)| earlier.context.covers(dot) && !earlier.may_hide(old);
        let gone = !earlier.shows(value) && bearers.iter().all(saw_gone);
        findings.claim(!gone, || {
            let (before, after) = (in_words(earlier.op), in_words(read.op));
            format!("{before} had seen that {} was gone; {after} shows it again", in_words(bearers[0].0.op))
        });
    }
}

fn after_contexts(key: &Key<'_>, read: &Read<'_>, value: Option<ValueId>, findings: &mut Findings) {
    let bearers = key.bearers(value, read.context);
    let Some(&(old, _)) = bearers.first() else { return };
    for by in key.writes.iter().filter(|by| by.is_acknowledged() && key.keeps(by.op, read.op)) {
        let Some(context) = by.context else { continue };
        findings.claim(!bearers.iter().all(|&(_, dot)| context.covers(dot)), || {
            let (get, put, old) = (in_words(read.op), in_words(by.op), in_words(old.op));
            format!("{get} shows {old}, which the context of {put} covers")
        });
    }
}

/// Without a context, acknowledged, and nothing at work meanwhile may have replaced it.
fn is_lone_blind(key: &Key<'_>, write: &Write<'_>) -> bool {
    let disturbs =
        |other: &Write<'_>| other.may_replace(write) && other.may_have_happened(key) && other.overlaps(write);
    let alone = || !key.writes.iter().any(disturbs);
    write.is_blind() && write.is_acknowledged() && alone()
}

/// Whether `blind` must have removed what `old` had written.
fn must_have_replaced(key: &Key<'_>, blind: &Write<'_>, old: &Write<'_>) -> bool {
    old.number != blind.number
        && old.is_acknowledged()
        && !old.may_surface()
        && key.keeps(old.op, blind.op)
        && !key.is_forgotten(old, blind.op.returned.unwrap_or(Micros::MAX))
}

fn after_blind_writes(
    key: &Key<'_>,
    lone: &[&Write<'_>],
    read: &Read<'_>,
    value: Option<ValueId>,
    findings: &mut Findings,
) {
    let bearers = key.bearers(value, read.context);
    let Some(&(old, _)) = bearers.first() else { return };
    for blind in lone.iter().filter(|blind| key.keeps(blind.op, read.op)) {
        let gone = bearers.iter().all(|&(old, _)| must_have_replaced(key, blind, old));
        findings.claim(!gone, || {
            let (get, put, old) = (in_words(read.op), in_words(blind.op), in_words(old.op));
            format!("{get} shows {old}, which {put} had replaced")
        });
    }
}

fn in_the_end(key: &Key<'_>, lone: &[&Write<'_>], last: &Record, findings: &mut Findings) {
    for sibling in last.siblings() {
        let Some(old) = key.writes.iter().find(|write| write.dots.contains(&sibling.dot)) else { continue };
        let mut claim = |gone: bool, by: &crate::history::Operation| {
            findings.claim(!gone, || {
                let (old, by) = (in_words(old.op), in_words(by));
                format!("in the end {old} is there, which {by} had replaced or seen replaced")
            });
        };
        for read in key.reads.iter().filter(|read| !key.at_risk(read.op, Micros::MAX)) {
            let is_there = read.shows(old.value) || read.may_hide(old);
            claim(read.context.covers(sibling.dot) && !is_there, read.op);
        }
        let acknowledged = key.writes.iter().filter(|by| by.is_acknowledged() && by.number != old.number);
        for by in acknowledged.filter(|by| !key.at_risk(by.op, Micros::MAX)) {
            claim(by.context.is_some_and(|context| context.covers(sibling.dot)), by.op);
        }
        for blind in lone.iter().filter(|blind| !key.at_risk(blind.op, Micros::MAX)) {
            claim(must_have_replaced(key, blind, old), blind.op);
        }
    }
}
