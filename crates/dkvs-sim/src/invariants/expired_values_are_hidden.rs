//! Expired values are hidden (G12 for expiry: at its time, as far as clocks agree), and every server knows the same time.
//!
//! 1. *Hidden.* A get shows a value only through an event that had not expired by the earliest time that any server's wall
//!    clock showed while the get ran: whoever coordinated it has looked at its own clock. How wrong clocks were is known
//!    exactly.
//! 2. *One time.* Of all records ever on any disk, no two show one event with different expiries, or with and without one:
//!    it is chosen once, and kept by whatever passes the value on, be it repair, a hint, or the second round of a put.
//! 3. *The time asked for.* An event expires if its put asked for it, and not if it did not: so long as was asked after what
//!    some server's wall clock showed between the call and the deadline of the put; later, if nobody answered it in time.
//!
//! No damage excuses from them.
//!
//! Not checked: that a value is shown until then, which is the business of the other invariants (they take for hidden what
//! may be, by the latest clock); when bytes are dropped; keys of a mad peer.

use std::collections::BTreeSet;

use dkvs_core::hlc::WallMs;
use dkvs_core::version::Dot;

use super::Findings;
use crate::checkers::clocks;
use crate::checkers::evidence::{Evidence, Key, Read, Write, in_words};
use crate::history::{History, Micros, ValueId};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let history = evidence.history;
    for key in evidence.keys.values() {
        for read in &key.reads {
            read.values.iter().flatten().for_each(|&value| hidden(history, key, read, value, findings));
        }
        for write in &key.writes {
            write.dots.iter().for_each(|&dot| as_asked(history, key, write, dot, findings));
        }
    }
    for (name, dots) in history.expiries.iter().filter(|(name, _)| evidence.is_promised(name)) {
        for (dot, expiries) in dots.iter().filter(|(_, expiries)| expiries.iter().any(Option::is_some)) {
            findings.claim(expiries.len() == 1, || {
                format!("{dot:?} on key {name:?} has several expiries: {expiries:?}")
            });
        }
    }
}

fn expiries(history: &History, key: &Key<'_>, dot: Dot) -> BTreeSet<Option<WallMs>> {
    history.expiries.get(key.name).and_then(|dots| dots.get(&dot)).cloned().unwrap_or_default()
}

fn hidden(history: &History, key: &Key<'_>, read: &Read<'_>, value: ValueId, findings: &mut Findings) {
    let bearers = key.bearers(Some(value), read.context);
    let Some(&(write, _)) = bearers.first().filter(|(write, _)| write.ttl_ms.is_some()) else { return };
    let now = clocks::earliest(history, read.op.called, read.op.returned.unwrap_or(read.op.deadline));
    let has_expired = |dot| {
        let seen = expiries(history, key, dot);
        !seen.is_empty() && seen.iter().all(|at| at.is_some_and(|at| at <= now))
    };
    findings.claim(!bearers.iter().all(|&(_, dot)| has_expired(dot)), || {
        let (get, put) = (in_words(read.op), in_words(write.op));
        format!("{get} shows {put}, which had expired by every clock, at {now} ms")
    });
}

fn as_asked(history: &History, key: &Key<'_>, write: &Write<'_>, dot: Dot, findings: &mut Findings) {
    // A request that nobody answered may lie in a stream, and be executed when that arrives.
    let called = write.op.called;
    let deadline = if write.is_acknowledged() { write.op.deadline } else { Micros::MAX };
    let within = |ttl_ms: u64| {
        clocks::earliest(history, called, deadline) + ttl_ms
            ..=clocks::latest(history, called, deadline) + ttl_ms
    };
    for expires in expiries(history, key, dot) {
        let is_as_asked = match (write.ttl_ms, expires) {
            (None, None) => continue,
            (Some(ttl_ms), Some(at)) => within(ttl_ms).contains(&at),
            (None, Some(_)) | (Some(_), None) => false,
        };
        findings.claim(is_as_asked, || {
            let (put, asked) = (in_words(write.op), write.ttl_ms);
            format!(
                "{put} asked for a time of {asked:?} ms, and its event {dot:?} has the expiry {expires:?}"
            )
        });
    }
}
