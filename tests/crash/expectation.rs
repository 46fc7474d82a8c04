//! What may be found under a key with one writer.
//!
//! A key is written on only while it is certain what its last write did, and that no second server has begun it as well
//! (docs/consistency.md, *A retry*). So at most its last write is of unknown outcome, and the states to be expected can
//! be listed.

use std::collections::BTreeSet;

/// A number for each put of a run. The value follows from it.
pub(crate) type Put = u64;

/// What a get shows of a key: the puts whose values stand there.
pub(crate) type State = BTreeSet<Put>;

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Acknowledged,
    /// It had no effect and never will.
    Failed,
    Unknown,
}

/// The states one of which must be found.
#[derive(Clone, Debug)]
pub(crate) struct Expectation(Vec<State>);

impl Expectation {
    /// Nothing was written yet.
    pub(crate) fn nothing() -> Self {
        Self(vec![State::new()])
    }

    /// The key was written to; `None` deletes.
    pub(crate) fn wrote(&mut self, put: Option<Put>, outcome: Outcome) {
        let [before] = &self.0[..] else { panic!("a key is left alone once it is uncertain: {self:?}") };
        let after = State::from_iter(put);
        match outcome {
            Outcome::Failed => {}
            Outcome::Acknowledged => self.0 = vec![after],
            Outcome::Unknown => {
                // It may also stand beside what it was to replace.
                let both = before | &after;
                self.0.extend([after, both]);
            }
        }
    }

    /// Whether this may be found. If so, the key never goes back behind it.
    pub(crate) fn admits(&mut self, found: &State) -> bool {
        if !self.0.contains(found) {
            return false;
        }
        if found != &self.0[0] {
            let (first, last) = (self.0[0].clone(), found.clone());
            // What stands beside its replacement may still go.
            self.0.retain(|state| state != &first && (state == &last || state.is_subset(&last)));
        }
        true
    }

    /// Whether it is known what there is.
    pub(crate) fn is_certain(&self) -> bool {
        self.0.len() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(writes: &[(Option<Put>, Outcome)]) -> Expectation {
        let mut expectation = Expectation::nothing();
        writes.iter().for_each(|(put, outcome)| expectation.wrote(*put, *outcome));
        expectation
    }

    fn admits(expectation: &Expectation, puts: &[Put]) -> bool {
        expectation.clone().admits(&puts.iter().copied().collect())
    }

    #[test]
    fn an_acknowledged_write_is_there_and_nothing_else() {
        use Outcome::{Acknowledged, Failed};
        let put = after(&[(Some(1), Acknowledged), (Some(2), Acknowledged), (Some(3), Failed)]);
        assert!(admits(&put, &[2]) && put.is_certain());
        for wrong in [&[][..], &[1], &[3], &[1, 2], &[2, 3], &[9]] {
            assert!(!admits(&put, wrong), "{wrong:?}");
        }
        let deleted = after(&[(Some(1), Acknowledged), (None, Acknowledged)]);
        assert!(admits(&deleted, &[]) && !admits(&deleted, &[1]));
    }

    #[test]
    fn a_write_of_unknown_outcome_may_be_there_and_stays_once_it_was_seen() {
        use Outcome::{Acknowledged, Unknown};
        let unknown = after(&[(Some(1), Acknowledged), (Some(2), Unknown)]);
        assert!(!unknown.is_certain());
        for possible in [&[1][..], &[2], &[1, 2]] {
            assert!(admits(&unknown, possible), "{possible:?}");
        }
        assert!(!admits(&unknown, &[]) && !admits(&unknown, &[3]));
        let mut seen = unknown.clone();
        assert!(seen.admits(&State::from([2])) && !seen.admits(&State::from([1])) && seen.is_certain());
        let mut seen = unknown;
        assert!(seen.admits(&State::from([1, 2])) && !admits(&seen, &[1]) && admits(&seen, &[2]));

        let mut deleted = after(&[(Some(1), Acknowledged), (None, Unknown)]);
        assert!(
            admits(&deleted, &[1]) && deleted.admits(&State::new()) && !deleted.admits(&State::from([1]))
        );
    }
}
