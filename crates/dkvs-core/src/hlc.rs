//! A hybrid logical clock: wall time when clocks agree, a counter when they do not (Kulkarni et al. 2014).
//!
//! A timestamp is 48 bits of milliseconds since 1970 and 16 bits of counter in one `u64`, so that comparing
//! integers compares time. A new timestamp is larger than any this server has made or seen, and stays close to the
//! wall clock.
//!
//! Nothing depends on it but the order of *concurrent* siblings: which of two values that nobody ordered is shown
//! first. Causality is the version vector's business. So a peer whose clock is far ahead must not drag ours along:
//! a timestamp more than the allowed skew ahead of our wall clock is reported and otherwise ignored.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01 UTC on some server's wall clock.
pub type WallMs = u64;

const COUNTER_BITS: u32 = 16;
const WALL_MS_MAX: WallMs = u64::MAX >> COUNTER_BITS;

/// A timestamp: 48 bits of wall milliseconds, then 16 bits of counter. The default, 0, is older than any event.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hlc(u64);

impl Hlc {
    /// The timestamp with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All 64 bits, comparable as an integer.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The wall clock part, in milliseconds since 1970.
    #[must_use]
    pub const fn wall_ms(self) -> WallMs {
        self.0 >> COUNTER_BITS
    }

    const fn at(wall_ms: WallMs) -> Self {
        Self(if wall_ms > WALL_MS_MAX { WALL_MS_MAX } else { wall_ms } << COUNTER_BITS)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall_ms(), self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// A peer's timestamp lies further ahead of our wall clock than allowed. The clock did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFarAhead {
    /// How far ahead of our wall clock it is, in milliseconds.
    pub skew_ms: u64,
}

/// One server's clock. The wall time comes in with every call.
#[derive(Clone, Copy, Debug)]
pub struct HybridClock {
    last: Hlc,
    skew_ms_max: u64,
}

impl HybridClock {
    /// A clock that accepts timestamps up to `skew_ms_max` milliseconds ahead of the wall clock.
    #[must_use]
    pub fn new(skew_ms_max: u64) -> Self {
        Self { last: Hlc::default(), skew_ms_max }
    }

    /// A timestamp for an event here and now: larger than any made or observed before. When the counter of a
    /// millisecond runs out it flows over into the next one.
    pub fn tick(&mut self, now_ms: WallMs) -> Hlc {
        self.last = Hlc(self.last.0.saturating_add(1)).max(Hlc::at(now_ms));
        self.last
    }

    /// Takes note of a peer's timestamp, so that events here come after it.
    ///
    /// # Errors
    /// [`TooFarAhead`] when it is further ahead than allowed; the clock is then unchanged.
    pub fn observe(&mut self, peer: Hlc, now_ms: WallMs) -> Result<(), TooFarAhead> {
        let skew_ms = peer.wall_ms().saturating_sub(now_ms);
        if skew_ms > self.skew_ms_max {
            return Err(TooFarAhead { skew_ms });
        }
        self.last = self.last.max(peer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_grow_while_the_wall_clock_stands_still_or_runs_backwards() {
        let mut clock = HybridClock::new(60_000);
        let ticks: Vec<Hlc> = [1_000, 1_000, 999, 5, 1_001].map(|now| clock.tick(now)).to_vec();
        assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]), "{ticks:?}");
        assert_eq!(ticks[4].wall_ms(), 1_001);
    }

    #[test]
    fn a_tick_comes_after_every_timestamp_observed() {
        let mut clock = HybridClock::new(60_000);
        let peer = Hlc::at(50_000);
        clock.observe(peer, 1_000).unwrap();
        assert!(clock.tick(1_000) > peer);
    }

    #[test]
    fn a_peer_far_ahead_does_not_move_the_clock() {
        let mut clock = HybridClock::new(60_000);
        clock.tick(1_000);
        let mad = Hlc::at(1_000 + 60_001);
        assert_eq!(clock.observe(mad, 1_000), Err(TooFarAhead { skew_ms: 60_001 }));
        assert_eq!(
            clock.observe(Hlc::from_bits(u64::MAX), 1_000).map_err(|e| e.skew_ms > 1 << 40),
            Err(true)
        );
        assert_eq!(clock.tick(1_000).wall_ms(), 1_000);
        clock.observe(Hlc::at(1_000 + 60_000), 1_000).unwrap();
        assert_eq!(clock.tick(1_000).wall_ms(), 61_000);
    }

    #[test]
    fn a_full_counter_flows_into_the_next_millisecond() {
        let mut clock = HybridClock::new(60_000);
        let ticks: Vec<Hlc> = (0..70_000).map(|_| clock.tick(7)).collect();
        assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(ticks.last().unwrap().wall_ms(), 8);
    }

    #[test]
    fn the_end_of_time_is_not_an_overflow() {
        let mut clock = HybridClock::new(u64::MAX);
        clock.observe(Hlc::from_bits(u64::MAX), u64::MAX).unwrap();
        assert_eq!(clock.tick(u64::MAX), Hlc::from_bits(u64::MAX));
    }
}
