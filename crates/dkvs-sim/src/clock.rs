//! The servers' wall clocks: simulated time, plus what is wrong with each.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use dkvs_cluster::WallClock;
use dkvs_core::hlc::WallMs;

use crate::history::{ClockState, Micros};
use crate::trace::now;

/// Where wall time starts; any time will do.
const EPOCH_MS: i64 = 1_700_000_000_000;

const RUNNING: i64 = i64::MIN;

/// One server's wall clock.
#[derive(Debug)]
pub struct SkewedClock {
    skew_ms: AtomicI64,
    /// Where it stands still, while its server is paused.
    stands_at: AtomicI64,
}

impl Default for SkewedClock {
    fn default() -> Self {
        Self { skew_ms: AtomicI64::new(0), stands_at: AtomicI64::new(RUNNING) }
    }
}

impl SkewedClock {
    /// Sets it to be wrong by so much.
    pub fn set_skew(&self, ms: i64) {
        self.skew_ms.store(ms, Ordering::Relaxed);
    }

    /// Stops it at `elapsed_ms` of simulated time, or lets it go on, which makes it jump.
    pub fn freeze(&self, elapsed_ms: Option<i64>) {
        self.stands_at.store(elapsed_ms.unwrap_or(RUNNING), Ordering::Relaxed);
    }

    /// How it is from this time on.
    #[must_use]
    pub fn state(&self, from: Micros) -> ClockState {
        let stands_at = self.stands_at.load(Ordering::Relaxed);
        ClockState {
            from,
            skew_ms: self.skew_ms.load(Ordering::Relaxed),
            stands_at_ms: (stands_at != RUNNING).then_some(stands_at),
        }
    }
}

impl ClockState {
    /// What a clock in this state shows.
    #[must_use]
    pub fn wall_ms(&self, at: Micros) -> WallMs {
        let elapsed_ms = self.stands_at_ms.unwrap_or_else(|| i64::try_from(at / 1_000).unwrap_or(i64::MAX));
        (EPOCH_MS + elapsed_ms + self.skew_ms).unsigned_abs()
    }
}

/// The clock as a server is given it.
#[must_use]
pub fn wall_clock(clock: &Arc<SkewedClock>) -> WallClock {
    let clock = clock.clone();
    Arc::new(move || clock.state(0).wall_ms(now()))
}
