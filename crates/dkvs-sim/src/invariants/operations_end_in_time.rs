//! Every operation ends by its deadline (G9), whatever is broken.
//!
//! It returns at most [`BOUND`] after the deadline it was called with. One that has not returned is late when the run went
//! on for longer than that.
//!
//! Not checked: that it succeeds.

use std::time::Duration;

use super::Findings;
use crate::checkers::evidence::{Evidence, in_words};
use crate::history::{Micros, Operation};

/// What an answer may come too late by: the time a client needs to notice its deadline and say so.
const BOUND: Duration = Duration::from_millis(50);

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings) {
    let operations = &evidence.history.operations;
    let last = operations.iter().map(|op| op.returned.unwrap_or(op.called)).max().unwrap_or_default();
    let end = last.max(evidence.history.healed.unwrap_or_default());
    for op in operations {
        let late = op.returned.unwrap_or(end).saturating_sub(latest(op));
        findings.claim(late == 0, || {
            format!("{} was to end by {} µs and was {late} µs late", in_words(op), latest(op))
        });
    }
}

fn latest(op: &Operation) -> Micros {
    op.deadline.saturating_add(Micros::try_from(BOUND.as_micros()).unwrap_or(Micros::MAX))
}
