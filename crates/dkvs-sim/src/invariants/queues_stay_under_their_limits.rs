//! Every table, queue and buffer of a server and a client stays under its limit (G10), whatever is broken.
//!
//! Each has a gauge, which stands beside the code that keeps the limit and is told what is there afterwards. At the end of a
//! life (stopped, killed, cut off from power, or the end of the run) no gauge had a peak above its limit. Nothing excuses
//! from it.
//!
//! Not checked: what has no gauge, which is what a single request holds while it is served; resident memory; that what was
//! over a limit was told so, of which other invariants see that operations end in time and have the effect they are told.

use super::Findings;
use crate::checkers::evidence::Evidence;

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for life in &evidence.history.lives {
        for level in &life.levels {
            findings.claim(level.peak <= level.limit, || {
                let (who, name) = (&life.who, level.name);
                format!("{name} of {who} came to {}, but the limit is {}", level.peak, level.limit)
            });
        }
    }
}
