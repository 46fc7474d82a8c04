//! Invariants, one file each, named as claims.
//!
//! Each file opens with the promise of docs/consistency.md that it holds a run to, and says what it does not check. An
//! invariant sees a history and nothing else; it may neither pass by accident of how servers work nor fail where nothing
//! was promised. [`examine`] also counts how often each claim was put to the test, as a claim that was never tested holds
//! in every run.

mod acknowledged_writes_are_readable;
pub(crate) mod acknowledged_writes_reach_all_owners;
mod concurrent_writes_are_never_lost;
mod contexts_cover_what_was_seen;
mod expired_values_are_hidden;
mod forgotten_values_never_return;
mod gets_never_go_back;
mod no_dot_carries_two_values;
mod nothing_unwritten_appears;
mod operations_end_in_time;
mod owners_agree_after_healing;
mod queues_stay_under_their_limits;
mod replaced_values_never_return;
mod single_writers_are_linearizable;
mod sloppy_answers_are_what_they_say;

use crate::checkers::evidence::Evidence;
use crate::checkers::memory::remembered;
use crate::history::{History, Violation};

/// Most violations told of one invariant in one run; the others would say the same again.
pub const VIOLATIONS_MAX: usize = 20;

/// An invariant: its name, and what tests a run against it.
type Invariant = (&'static str, fn(&Evidence<'_>, &mut Findings));

const ALL: [Invariant; 15] = [
    ("acknowledged_writes_reach_all_owners", acknowledged_writes_reach_all_owners::check),
    ("acknowledged_writes_are_readable", acknowledged_writes_are_readable::check),
    ("expired_values_are_hidden", expired_values_are_hidden::check),
    ("forgotten_values_never_return", forgotten_values_never_return::check),
    ("gets_never_go_back", gets_never_go_back::check),
    ("replaced_values_never_return", replaced_values_never_return::check),
    ("concurrent_writes_are_never_lost", concurrent_writes_are_never_lost::check),
    ("contexts_cover_what_was_seen", contexts_cover_what_was_seen::check),
    ("single_writers_are_linearizable", single_writers_are_linearizable::check),
    ("sloppy_answers_are_what_they_say", sloppy_answers_are_what_they_say::check),
    ("nothing_unwritten_appears", nothing_unwritten_appears::check),
    ("no_dot_carries_two_values", no_dot_carries_two_values::check),
    ("owners_agree_after_healing", owners_agree_after_healing::check),
    ("operations_end_in_time", operations_end_in_time::check),
    ("queues_stay_under_their_limits", queues_stay_under_their_limits::check),
];

/// What came of one invariant in one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// Its name.
    pub invariant: &'static str,
    /// How often its claim could be tested.
    pub tested: u64,
    /// How often a test came to no decision within its limits.
    pub undecided: u64,
    /// Where the claim did not hold; at most [`VIOLATIONS_MAX`].
    pub violations: Vec<Violation>,
}

impl Findings {
    /// Counts a test of the claim; `what` says what was seen and what was to be expected.
    fn claim(&mut self, holds: bool, what: impl FnOnce() -> String) {
        self.tested += 1;
        if !holds && self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { invariant: self.invariant, what: what() });
        }
    }
}

/// Everything in a run that breaks a promise.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    examine(history).into_iter().flat_map(|findings| findings.violations).collect()
}

/// What came of every invariant.
#[must_use]
pub fn examine(history: &History) -> Vec<Findings> {
    let history = remembered(history);
    let evidence = Evidence::new(&history);
    let examined = ALL.map(|(invariant, check)| {
        let mut findings = Findings { invariant, tested: 0, undecided: 0, violations: Vec::new() };
        check(&evidence, &mut findings);
        findings
    });
    examined.into()
}
