//! A context is what a client has seen of a key, neither more nor less.
//!
//! 1. A get's context covers every value it shows; else a put that passes it back would leave what its client had seen.
//! 2. The context of an acknowledged put or delete covers no living value but its own; else the client's next put would
//!    replace what somebody else had written and nobody had seen. A get that begins afterwards, with R + W > N, shows what
//!    was alive: if it shows another write's value, the put's context does not cover that, unless the context sent did.
//!
//! After damage the second claim is owed as in `acknowledged_writes_are_readable`.
//!
//! Not checked: contexts that cover events which never happened, or less than their client had seen.

use dkvs_core::version::{Dot, VersionVector};

use super::Findings;
use crate::checkers::evidence::{Evidence, Fate, Key, Read, Write, in_words};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    for key in evidence.keys.values() {
        for read in &key.reads {
            covers_what_it_shows(key, read, findings);
        }
        for write in &key.writes {
            let returned = match write.fate {
                Fate::Acknowledged(context) => context,
                Fate::Open | Fate::Failed => continue,
            };
            for read in key.reads.iter().filter(|read| key.keeps(write.op, read.op)) {
                covers_nothing_unseen(key, (write, returned), read, findings);
            }
        }
    }
}

fn covers_what_it_shows(key: &Key<'_>, read: &Read<'_>, findings: &mut Findings) {
    // Only of values the writer is known, and what nobody wrote is another invariant's business.
    let writes = read.values.iter().filter_map(|&value| key.writer_of(value?));
    for write in writes.filter(|write| !write.dots.is_empty()) {
        findings.claim(write.dots.iter().any(|&dot| read.context.covers(dot)), || {
            let (get, put) = (in_words(read.op), in_words(write.op));
            format!("{get} shows {put}, and its context does not cover it: {:?}", read.context)
        });
    }
}

fn covers_nothing_unseen(
    key: &Key<'_>,
    (write, returned): (&Write<'_>, &VersionVector),
    read: &Read<'_>,
    findings: &mut Findings,
) {
    for &value in read.values {
        let bearers = key.bearers(value, read.context);
        let unseen = |&(other, dot): &(&Write<'_>, Dot)| {
            other.number != write.number
                && returned.covers(dot)
                && write.context.is_none_or(|sent| !sent.covers(dot))
        };
        let Some(&(other, _)) = bearers.first() else { continue };
        findings.claim(!bearers.iter().all(unseen), || {
            let (put, get, other) = (in_words(write.op), in_words(read.op), in_words(other.op));
            format!(
                "{put} returned a context that covers {other}, unseen, and {get} still shows it: {returned:?}"
            )
        });
    }
}
