//! What servers' wall clocks may have shown: the bounds within which a value expires.
//!
//! A client does not know which server read its clock for it, nor when exactly. So the bounds hold for all servers, and
//! one whose clock was right is counted among them. They are a little too wide: machines act within a step of simulated
//! time, and faults between steps.

use dkvs_core::hlc::WallMs;

use crate::history::{ClockState, History, Micros};

/// Longer than any step.
const STEP_MAX: Micros = 20_000;

const RIGHT: ClockState = ClockState { from: 0, skew_ms: 0, stands_at_ms: None };

/// The latest time that any server's clock may have shown between two times.
#[must_use]
pub fn latest(history: &History, from: Micros, to: Micros) -> WallMs {
    shown(history, from, to).map(|(_, latest)| latest).max().unwrap_or(WallMs::MAX)
}

/// The earliest.
#[must_use]
pub fn earliest(history: &History, from: Micros, to: Micros) -> WallMs {
    shown(history, from, to).map(|(earliest, _)| earliest).min().unwrap_or(0)
}

/// What clocks showed at the beginning and end of each state they were in.
fn shown(history: &History, from: Micros, to: Micros) -> impl Iterator<Item = (WallMs, WallMs)> {
    let (from, to) = (from.saturating_sub(STEP_MAX), to.saturating_add(STEP_MAX));
    let of_states = history.clocks.values().flat_map(move |states| {
        states.iter().enumerate().map(move |(at, state)| {
            let until = states.get(at + 1).map_or(Micros::MAX, |next| next.from.saturating_add(STEP_MAX));
            (*state, until)
        })
    });
    let states = std::iter::once((RIGHT, Micros::MAX)).chain(of_states);
    states.filter(move |(state, until)| state.from <= to && *until >= from).map(move |(state, until)| {
        (state.wall_ms(from.max(state.from.saturating_sub(STEP_MAX))), state.wall_ms(to.min(until)))
    })
}

#[cfg(test)]
mod tests {
    use dkvs_core::servers::ServerIndex;

    use super::*;

    const SLACK_MS: WallMs = STEP_MAX / 1_000;

    #[test]
    fn the_bounds_hold_for_every_clock_at_every_time_between() {
        let mut history = History::default();
        let right = |ms: u64| RIGHT.wall_ms(ms * 1_000);
        let bounds = |history: &History| {
            (earliest(history, 5_000_000, 6_000_000), latest(history, 5_000_000, 6_000_000))
        };
        assert_eq!(bounds(&history), (right(5_000) - SLACK_MS, right(6_000) + SLACK_MS));
        let state =
            |from_ms: u64, skew_ms, stands_at_ms| ClockState { from: from_ms * 1_000, skew_ms, stands_at_ms };
        let ahead = ServerIndex::new(0);
        history.clocks.insert(ahead, vec![state(1_000, 90_000, None), state(2_000, 0, None)]);
        assert_eq!(bounds(&history), (right(5_000) - SLACK_MS, right(6_000) + SLACK_MS), "over by then");
        history.clocks.insert(ahead, vec![state(1_000, 90_000, None), state(5_500, -90_000, None)]);
        let (low, high) = bounds(&history);
        assert_eq!((low, high), (right(5_500) - SLACK_MS - 90_000, right(5_500) + SLACK_MS + 90_000));
        history.clocks.insert(ServerIndex::new(1), vec![state(4_000, -100_000, Some(4_000))]);
        assert_eq!(bounds(&history), (right(4_000) - 100_000, high), "it stood still");
        assert_eq!(latest(&history, 0, 5_000_000), right(5_000) + SLACK_MS + 90_000);
        assert!(latest(&history, 0, Micros::MAX) > right(1_000_000));
    }
}
