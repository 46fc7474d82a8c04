//! A key with a single writer is a linearizable register (follows from G1, G3 and G4; in general DKVS is not
//! linearizable).
//!
//! When the writes of a key never overlap, each called after all earlier ones had returned, and quorums overlap (R + W > N
//! for every get and every acknowledged write, 2R > N, one N), then the operations can be put into an order that agrees with
//! their times and in which each get returns what was last written.
//!
//! How a key's answers become a register's:
//! - An acknowledged write happens once, between call and return. A second execution of it, which may show later, replaces
//!   nothing newer: it can only stand beside what was written since.
//! - A write with an unknown outcome may take effect at any time after its call, or never, and once for each of its events.
//! - A get that shows several siblings counts as a get of any one of them. Siblings are what an unknown write leaves beside a
//!   later one, and a write with a context that did not cover the one before; which is shown first is for the clocks.
//! - A value whose time may have come counts as shown by each get that has heard of it: expiry hides, it writes nothing.
//! - A deletion is a value of its own kind, and so is "never written". A get that finds nothing where a deletion was forgotten counts
//!   as one of that. What servers were given at their start counts as
//!   never written: which of them a get meets first is nobody's promise.
//!
//! Gets that touch an unsettled time after damage are left out, and all gets from the time on at which an acknowledged write
//! may be gone; the others must fit even so.
//!
//! Not checked: keys with overlapping writers, as the writes of two clients may stay siblings; keys whose requests asked
//! for different N, or were sloppy. When the search exceeds its limit, the key counts as undecided.

use std::collections::BTreeMap;

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Read, Write, in_words};
use crate::checkers::linearizability::{self, Kind, Op, STEPS_MAX, Verdict};
use crate::history::{Operation, ValueId};

/// What a register may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum State {
    NeverWritten,
    Deleted,
    Value(ValueId),
}

impl From<Option<ValueId>> for State {
    fn from(value: Option<ValueId>) -> Self {
        value.map_or(Self::Deleted, Self::Value)
    }
}

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values().filter(|key| qualifies(key)) {
        let (operations, register) = register(key);
        match linearizability::check(State::NeverWritten, &register, STEPS_MAX) {
            Verdict::Linearizable => findings.claim(true, String::new),
            Verdict::NotLinearizable { stuck } => findings.claim(false, || {
                let stuck: Vec<String> = stuck
                    .iter()
                    .map(|&at| format!("{} {:?}", in_words(operations[at]), register[at].kind))
                    .collect();
                format!(
                    "no order explains the gets of key {:?}; stuck before one of: {}",
                    key.name,
                    stuck.join("; ")
                )
            }),
            Verdict::Inconclusive => findings.undecided += 1,
        }
    }
}

fn qualifies(key: &Key<'_>) -> bool {
    let one_after_the_other = key.writes.windows(2).all(|pair| {
        let [first, second] = pair else { return true };
        first.op.returned.is_some_and(|returned| returned <= second.op.called)
    });
    let acknowledged = || key.writes.iter().filter(|write| write.is_acknowledged());
    let overlaps = |read: &Read<'_>| {
        let n = read.op.n;
        2 * read.op.quorum > n && acknowledged().all(|write| read.op.quorum + write.op.quorum > n)
    };
    let mut asked = key.writes.iter().map(|write| write.op.n).chain(key.reads.iter().map(|read| read.op.n));
    let n = asked.next();
    let is_strict =
        || key.writes.iter().map(|w| w.op).chain(key.reads.iter().map(|r| r.op)).all(|op| !op.sloppy);
    !key.writes.is_empty()
        && is_strict()
        && asked.all(|other| Some(other) == n)
        && one_after_the_other
        && key.reads.iter().all(overlaps)
}

/// The register's operations, and whose they are.
fn register<'a>(key: &Key<'a>) -> (Vec<&'a Operation>, Vec<Op<State>>) {
    let mut operations = Vec::new();
    let mut register = Vec::new();
    let mut places = BTreeMap::new();
    let mut last_write = None;
    for write in &key.writes {
        let op = |returned, after| Op {
            kind: Kind::Write(State::from(write.value)),
            called: write.op.called,
            returned,
            after,
        };
        if write.is_acknowledged() {
            let after = last_write.replace(register.len());
            places.insert(write.op.id, register.len());
            operations.push(write.op);
            register.push(op(write.op.returned, after));
        }
        for _ in 0..other_effects(write) {
            operations.push(write.op);
            register.push(op(None, None));
        }
    }
    let acknowledged: Vec<_> = key.writes.iter().filter(|write| write.is_acknowledged()).collect();
    let gone_from = acknowledged.iter().filter_map(|write| key.at_risk_from(write.op)).min();
    let hit: Vec<_> = acknowledged.iter().filter(|write| key.spans_damage(write.op)).collect();
    let may_miss = |read: &Operation| {
        let is_before = |write: &Operation| read.returned.is_some_and(|end| end < write.called);
        hit.iter().any(|write| !is_before(write.op) && !key.is_repaired_between(write.op, read))
    };
    let reads = key.reads.iter().filter(|read| {
        !(key.is_unsettled(read.op) || may_miss(read.op))
            && gone_from.is_none_or(|from| read.op.returned.is_some_and(|end| end < from))
    });
    for read in reads {
        let state = |&value| if key.is_given(value) { State::NeverWritten } else { value.into() };
        let mut states: Vec<State> = read.values.iter().map(state).collect();
        // A deletion that was forgotten is what a get meets that finds nothing.
        let hidden = read.hidden().iter().filter_map(|&number| key.write(number));
        let hidden = hidden.filter(|write| write.value.is_some() || read.values.is_empty());
        states.extend(hidden.map(|write| State::from(write.value)));
        if states.is_empty() {
            states.push(State::NeverWritten);
        }
        places.insert(read.op.id, register.len());
        operations.push(read.op);
        let op =
            Op { kind: Kind::Read(states), called: read.op.called, returned: read.op.returned, after: None };
        register.push(op);
    }
    // What one client did at one time, it did in the order of its calls.
    let mut by_client: BTreeMap<u32, (&Operation, usize)> = BTreeMap::new();
    for &place in places.values() {
        let op = operations[place];
        if let Some((before, earlier)) = by_client.insert(op.client, (op, place))
            && before.returned == Some(op.called)
        {
            register[place].after = register[place].after.or(Some(earlier));
        }
    }
    (operations, register)
}

/// How often a write may take effect at a time of its own.
fn other_effects(write: &Write<'_>) -> usize {
    match write.fate {
        Fate::Acknowledged(_) | Fate::Failed => 0,
        Fate::Open => write.dots.len().max(1),
    }
}
