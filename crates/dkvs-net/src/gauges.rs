//! How full every table, queue and buffer is, was at most, and may be.
//!
//! A [`Gauge`] stands beside what it measures and is told what is there after the fact; it decides nothing, unless asked to
//! by [`Gauge::try_hold`]. So a limit that is not kept shows as a peak above it. Reading is free of locks and costs whoever is
//! measured a few relaxed atomic operations.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// Measures one table, queue or buffer.
#[derive(Debug)]
pub struct Gauge {
    limit: u64,
    now: AtomicU64,
    peak: AtomicU64,
    full: AtomicU64,
}

/// What a gauge shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// What is measured.
    pub name: &'static str,
    /// How much is there.
    pub now: u64,
    /// The most there ever was.
    pub peak: u64,
    /// The most there may be.
    pub limit: u64,
    /// How often there was no room: something was refused, lost, given up, or had to wait.
    pub full: u64,
}

impl Gauge {
    /// Of something empty that may hold `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let limit = to_u64(limit);
        Self { limit, now: AtomicU64::new(0), peak: AtomicU64::new(0), full: AtomicU64::new(0) }
    }

    /// There is so much now.
    pub fn set(&self, now: usize) {
        let now = to_u64(now);
        self.now.store(now, Ordering::Relaxed);
        self.rose_to(now);
    }

    /// There was no room.
    pub fn was_full(&self) {
        self.full.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `amount` as there until the answer is dropped.
    pub fn hold<G: Deref<Target = Self>>(gauge: G, amount: usize) -> Held<G> {
        let amount = to_u64(amount);
        let before = gauge.now.fetch_add(amount, Ordering::Relaxed);
        gauge.rose_to(before.saturating_add(amount));
        Held { gauge, amount }
    }

    /// [`Gauge::hold`] if that keeps the limit; otherwise counts as full.
    pub fn try_hold<G: Deref<Target = Self>>(gauge: G, amount: usize) -> Option<Held<G>> {
        let amount = to_u64(amount);
        let before = gauge.now.fetch_add(amount, Ordering::Relaxed);
        let now = before.saturating_add(amount);
        if now > gauge.limit {
            gauge.now.fetch_sub(amount, Ordering::Relaxed);
            gauge.was_full();
            return None;
        }
        gauge.rose_to(now);
        Some(Held { gauge, amount })
    }

    /// What it shows, under the name of what it measures.
    #[must_use]
    pub fn level(&self, name: &'static str) -> Level {
        let [now, peak, full] = [&self.now, &self.peak, &self.full].map(|part| part.load(Ordering::Relaxed));
        Level { name, now, peak, limit: self.limit, full }
    }

    /// Peaks are rare: most of the time this only reads.
    fn rose_to(&self, now: u64) {
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }
}

/// Part of what a gauge counts, until dropped.
#[derive(Debug)]
pub struct Held<G: Deref<Target = Gauge>> {
    gauge: G,
    amount: u64,
}

impl<G: Deref<Target = Gauge>> Drop for Held<G> {
    fn drop(&mut self) {
        self.gauge.now.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

fn to_u64(amount: usize) -> u64 {
    u64::try_from(amount).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(gauge: &Gauge) -> [u64; 4] {
        let Level { now, peak, limit, full, .. } = gauge.level("of a test");
        [now, peak, limit, full]
    }

    #[test]
    fn a_peak_stays_and_may_be_above_the_limit() {
        let gauge = Gauge::new(3);
        [1, 4, 2].into_iter().for_each(|now| gauge.set(now));
        assert_eq!(shown(&gauge), [2, 4, 3, 0]);
    }

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let gauge = Gauge::new(3);
        let two = Gauge::hold(&gauge, 2);
        assert!(Gauge::try_hold(&gauge, 2).is_none());
        assert_eq!(shown(&gauge), [2, 2, 3, 1]);
        drop(two);
        let three = Gauge::try_hold(&gauge, 3);
        assert!(three.is_some());
        assert_eq!(shown(&gauge), [3, 3, 3, 1]);
    }
}
