//! What was forgotten never returns (of G2, when tombstones are removed).
//!
//! A record that holds nothing but tombstones is removed from a disk only when no copy of what it replaced is left anywhere: on no
//! disk, in no hint, in no message that may still be begun, in no server's hands. So from the first removal on
//!
//! 1. no get that is called then shows a value of which all events are covered by the vector of what was removed;
//! 2. no disk in the end holds such a value.
//!
//! No damage excuses from it but a disk that was put back to an earlier state; runs in which deletions are forgotten have none.
//!
//! Not checked: values that had expired when they were removed (`expired_values_are_hidden` sees to these); gets that were under way at the first removal; deletions, which look alike.

use dkvs_core::record::{Body, Record};
use dkvs_core::version::Dot;

use super::Findings;
use crate::checkers::evidence::{Evidence, Key, Read, in_words};
use crate::checkers::memory::forgotten;
use crate::history::Micros;

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let history = evidence.history;
    for key in evidence.keys.values() {
        if history.reaped.iter().all(|reaped| reaped.key != key.name) {
            continue;
        }
        for read in &key.reads {
            shows_nothing_forgotten(evidence, key, read, findings);
        }
        let all = forgotten(history, key.name, Micros::MAX);
        for (server, disk) in &history.disks {
            let siblings = disk.get(key.name).into_iter().flat_map(Record::siblings);
            let back = siblings.filter(|sibling| {
                sibling.write.body != Body::Tombstone
                    && all.vv().covers(sibling.dot)
                    && !sibling.dot.actor.is_initial()
            });
            let back: Vec<_> = back.map(|sibling| sibling.dot).collect();
            findings.claim(back.is_empty(), || {
                let key = key.name;
                format!(
                    "the disk of server {server} holds values of key {key:?} that were forgotten: {back:?}"
                )
            });
        }
    }
}

fn shows_nothing_forgotten(evidence: &Evidence<'_>, key: &Key<'_>, read: &Read<'_>, findings: &mut Findings) {
    let before = forgotten(evidence.history, key.name, read.op.called);
    for write in read.values.iter().filter_map(|&value| key.writer_of(value?)) {
        // What was removed as it had expired may still be shown by a server whose clock went back.
        let is_gone = |&dot: &Dot| before.vv().covers(dot) && !before.holds(dot);
        let is_back = !write.dots.is_empty() && write.dots.iter().all(is_gone);
        findings.claim(!is_back, || {
            let (get, put) = (in_words(read.op), in_words(write.op));
            format!("{get} shows {put}, which was deleted and forgotten: {:?}", before.vv())
        });
    }
}
