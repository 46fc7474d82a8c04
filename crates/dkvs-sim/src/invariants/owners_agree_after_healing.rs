//! After healing, a read from all owners makes all owners hold the same record (of G8 what reads do).
//!
//! When all faults have ended, a get with R = N succeeds for every key, and when it has, the records of the key on all its
//! owners' disks are equal: versions, siblings, everything. No earlier damage excuses from it.
//!
//! Not checked: how long it takes; keys that no operation named; servers that do not own the key. A key that requests with
//! different N used has to be read with the largest.

use super::Findings;
use crate::checkers::convergence;
use crate::checkers::evidence::{Evidence, Key};
use crate::history::Micros;

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let Some(healed) = evidence.history.healed else { return };
    for key in evidence.keys.values() {
        let repaired = evidence.history.repaired.iter().any(|&at| at > healed);
        findings.claim(repaired || was_read_from_all(key, healed), || {
            format!("after the faults had ended, no get of key {:?} from all its owners succeeded", key.name)
        });
        let disagreement = convergence::disagreement(evidence.history, key.name);
        findings.claim(disagreement.is_none(), || {
            format!("in the end the owners of key {:?} hold different records: {disagreement:?}", key.name)
        });
    }
}

fn was_read_from_all(key: &Key<'_>, healed: Micros) -> bool {
    let asked = key.writes.iter().map(|write| write.op.n).chain(key.reads.iter().map(|read| read.op.n));
    let n = asked.max().unwrap_or_default();
    key.reads.iter().any(|read| read.op.quorum == n && !read.op.sloppy && read.op.called >= healed)
}
