//! Contexts never lose concurrent writes (G1): an acknowledged value goes away only through a later put or delete whose
//! context covers it, or through one without a context.
//!
//! 1. *In one sight.* Who has heard of a write, acknowledged or not, shows its value, unless also having heard of what
//!    replaced it: a write whose context covers it, or a blind write that was not over before it began. This holds for every get,
//!    and every disk in the end, whatever was damaged.
//! 2. *In the end.* Every acknowledged write is among the siblings that all owners together hold, or was replaced by a write
//!    that is, or by one that was replaced in turn, and so on. Two blind writes side by side may replace one another, but
//!    not both. A write is excused when W of the owners or more were damaged since it was called with no read from all of them
//!    between.
//!
//! With `replaced_values_never_return` this makes the siblings in the end exactly the maximal writes, for keys written with
//! contexts.
//!
//! Not checked: which of two concurrent blind writes survives, and whether a blind write removed more than it had to. An
//! event that was covered and never seen on a disk, as another replaced it in the same commit, may have been any write's that
//! overlapped another, and is believed to have replaced what is missing.

use super::Findings;
use crate::checkers::causality::{Sight, accounted};
use crate::checkers::convergence;
use crate::checkers::evidence::{Evidence, Key, in_words};
use crate::history::Micros;

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values() {
        for read in &key.reads {
            in_one_sight(&Sight::of_read(key, read), &in_words(read.op), findings);
        }
        for (server, disk) in &evidence.history.disks {
            if let Some(record) = disk.get(key.name) {
                let holder = format!("the disk of server {server} (key {:?})", key.name);
                in_one_sight(&Sight::of_record(key, record), &holder, findings);
            }
        }
        in_the_end(evidence, key, findings);
    }
}

fn in_one_sight(sight: &Sight<'_>, whose: &str, findings: &mut Findings) {
    let lost = sight.lost();
    findings.claim(lost.is_empty(), || {
        let lost: Vec<String> =
            lost.iter().map(|(write, dot)| format!("{} ({dot:?})", in_words(write.op))).collect();
        format!(
            "{whose} has heard of writes that nobody replaced, and does not show them: {}",
            lost.join("; ")
        )
    });
}

fn in_the_end(evidence: &Evidence<'_>, key: &Key<'_>, findings: &mut Findings) {
    let Some(last) = convergence::merged(evidence.history, key.name) else { return };
    let accounted = accounted(key, &last);
    let acknowledged = key.writes.iter().filter(|write| write.is_acknowledged());
    for write in acknowledged.filter(|write| !key.at_risk(write.op, Micros::MAX)) {
        findings.claim(accounted.contains(&write.number), || {
            let write = in_words(write.op);
            format!("{write} was acknowledged and is lost: neither it nor what replaced it is in {last:?}")
        });
    }
}
