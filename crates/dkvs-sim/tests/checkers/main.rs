//! Checkers and invariants against histories made by hand: some that break a promise, some that only look like it.

mod story;

mod acknowledged_writes_are_readable;
mod acknowledged_writes_reach_all_owners;
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

mod linearizability;
