//! The servers' wall clocks: simulated time, plus what is wrong with each.

use std::sync::atomic::{AtomicI64, Ordering};

use dkvs_cluster::WallClock;
use std::sync::Arc;

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

    fn wall_ms(&self) -> u64 {
        let elapsed_ms = match self.stands_at.load(Ordering::Relaxed) {
            RUNNING => i64::try_from(now() / 1_000).unwrap_or(i64::MAX),
            stands_at => stands_at,
        };
        (EPOCH_MS + elapsed_ms + self.skew_ms.load(Ordering::Relaxed)).unsigned_abs()
    }
}

/// The clock as a server is given it.
#[must_use]
pub fn wall_clock(clock: &Arc<SkewedClock>) -> WallClock {
    let clock = clock.clone();
    Arc::new(move || clock.wall_ms())
}
