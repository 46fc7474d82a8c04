//! Nothing unwritten appears (G2): a get returns only what somebody put, and disks hold nothing else.
//!
//! Every value that a get shows was written to that key by a put called before the get returned, and not by one that
//! was told it had failed: a failed write has no effect, ever; or some server was given it at its start. The same holds for deletions, and for every event found on any
//! disk at any time. A deletion stays a deletion, and a value a value, on disks too, until its bytes are dropped after
//! its time. No damage excuses from it.
//!
//! Not checked: the bytes of values, which the runner compares before it writes the history; contexts; keys of a mad peer.

use dkvs_core::record::{Body, OpId, Sibling};
use dkvs_core::version::Dot;

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Read, Write, in_words};
use crate::history::{History, ValueId};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values() {
        for read in &key.reads {
            for &value in read.values {
                findings.claim(was_written(key, read, value), || {
                    let what = value.map_or("a deletion".to_owned(), |value| format!("value {value}"));
                    format!("{} shows {what}, which nobody had put", in_words(read.op))
                });
            }
        }
    }
    for (name, dots) in evidence.history.dots.iter().filter(|(name, _)| evidence.is_promised(name)) {
        for (&dot, _) in dots.iter().filter(|(dot, _)| dot.actor.is_initial()) {
            findings.claim(was_given(evidence, name, dot), || {
                format!("{dot:?} on key {name:?} stands for a pair that no server was given")
            });
        }
        for (dot, ops) in dots.iter().filter(|(dot, _)| !dot.actor.is_initial()) {
            for &op in ops {
                let write = write_of(evidence, name, op);
                findings.claim(write.is_some_and(|write| write.fate != Fate::Failed), || match write {
                    Some(failed) => {
                        format!("{} was told to have failed, and is event {dot:?}", in_words(failed.op))
                    }
                    None => {
                        format!("event {dot:?} on key {name:?} is of operation {op:?}, which no client made")
                    }
                });
            }
        }
    }
    for (server, name, sibling) in held(evidence.history).filter(|(_, name, _)| evidence.is_promised(name)) {
        findings.claim(is_as_written(evidence, name, sibling), || {
            format!("the disk of server {server} holds for key {name:?} what nobody put: {sibling:?}")
        });
    }
}

fn was_written(key: &Key<'_>, read: &Read<'_>, value: Option<ValueId>) -> bool {
    let in_time = |write: &Write<'_>| {
        write.fate != Fate::Failed && read.op.returned.is_none_or(|returned| write.op.called <= returned)
    };
    key.is_given(value) || key.writes.iter().any(|write| write.value == value && in_time(write))
}

fn was_given(evidence: &Evidence<'_>, name: &str, dot: Dot) -> bool {
    evidence.history.given.iter().any(|given| given.key == name && given.dot == dot)
}

fn write_of<'e, 'a>(evidence: &'e Evidence<'a>, name: &str, op: OpId) -> Option<&'e Write<'a>> {
    evidence.keys.get(name)?.write(*evidence.history.ops.get(&op)?)
}

fn held(history: &History) -> impl Iterator<Item = (u16, &str, &Sibling)> {
    history.disks.iter().flat_map(|(server, disk)| {
        disk.iter().flat_map(move |(name, record)| {
            record.siblings().iter().map(move |sibling| (server.number(), name.as_str(), sibling))
        })
    })
}

fn is_as_written(evidence: &Evidence<'_>, name: &str, sibling: &Sibling) -> bool {
    was_given(evidence, name, sibling.dot)
        || write_of(evidence, name, sibling.write.op).is_some_and(|write| match sibling.write.body {
            Body::Value(_) => write.value.is_some(),
            Body::Tombstone => write.value.is_none() || sibling.is_dropped() && write.ttl_ms.is_some(),
        })
}
