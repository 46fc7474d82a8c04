//! No dot ever carries two values (G1, and what contexts rest on).
//!
//! An event's name is given once. A server that forgot what it did last to a key (wiped, restored, cut off, started again)
//! counts on under a new name; else one of two values with one name would vanish without a trace. So of all records ever
//! on any disk, no two show one dot with different operations. No damage excuses from it: damage is what it is about.
//!
//! Not checked: one operation with two bodies, as the history does not have the bytes; keys of a mad peer.

use super::Findings;
use crate::checkers::evidence::Evidence;

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for (key, dots) in evidence.history.dots.iter().filter(|(key, _)| evidence.is_promised(key)) {
        for (dot, ops) in dots {
            findings.claim(ops.len() <= 1, || {
                let writes: Vec<_> = ops.iter().map(|op| evidence.history.ops.get(op).ok_or(op)).collect();
                format!("{dot:?} on key {key:?} carries the values of several writes: {writes:?}")
            });
        }
    }
}
