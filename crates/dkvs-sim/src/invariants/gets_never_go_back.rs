//! Gets of a key never go back (G4): once a get has returned a state, later gets return it or a later one, whoever asks.
//!
//! A get answers when R owners hold what it returns. So of two gets, one after the other, whose quorums overlap (2R > N
//! when both asked for the same R, and the same N), the context of the second covers all that the first one's covers.
//!
//! After a damage that its owner does not see (all but flipped bits) this is owed from the first read of the key with R = N that was called after it; what a get had seen
//! before is owed then too, unless R of the owners or more were damaged since it was called, or it was under way when the
//! disk was damaged.
//!
//! Not checked: sloppy gets; gets that overlap; gets whose quorums need not meet; the siblings themselves, which
//! `replaced_values_never_return` and `concurrent_writes_are_never_lost` compare.

use super::Findings;
use crate::checkers::evidence::{Evidence, in_words};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values() {
        for second in &key.reads {
            for first in key.reads.iter().filter(|first| key.keeps(first.op, second.op)) {
                findings.claim(second.context.descends_from(first.context), || {
                    let (before, after) = (in_words(first.op), in_words(second.op));
                    format!(
                        "{before} had seen {:?}; {after}, which came later, only {:?}",
                        first.context, second.context
                    )
                });
            }
        }
    }
}
