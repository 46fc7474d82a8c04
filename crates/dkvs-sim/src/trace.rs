//! What happened in a run, event by event: as a fingerprint always, as text when asked for.
//!
//! The fingerprint covers every datagram delivered, every commit, every operation and every fault with its simulated
//! time. Two runs of one seed must have the same; that is how the simulator checks that nothing but the seed decides.

use std::fmt::Arguments;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::history::Micros;

/// The record of one run's events.
#[derive(Debug)]
pub struct Trace {
    hash: Mutex<u64>,
    events: Mutex<u64>,
    /// Whether events are printed.
    shown: bool,
}

impl Trace {
    /// A trace that prints its events to standard output if `shown`.
    #[must_use]
    pub fn new(shown: bool) -> Self {
        Self { hash: Mutex::new(0xCBF2_9CE4_8422_2325), events: Mutex::new(0), shown }
    }

    /// The fingerprint so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        *self.hash.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event in words.
    pub fn note(&self, at: Micros, what: Arguments<'_>) {
        let line = what.to_string();
        self.absorb(at, line.as_bytes());
        self.show(at, what);
    }

    /// Notes an event that happens too often for words: these bytes, which `what` describes.
    pub fn note_bytes(&self, at: Micros, bytes: &[u8], what: impl FnOnce() -> String) {
        self.absorb(at, bytes);
        if self.shown {
            self.show(at, format_args!("{}", what()));
        }
    }

    fn show(&self, at: Micros, what: Arguments<'_>) {
        if self.shown {
            // Whoever reads may have stopped; the run goes on.
            let _ = writeln!(std::io::stdout(), "{:>10.3} {what}", Duration::from_micros(at).as_secs_f64());
        }
    }

    fn absorb(&self, at: Micros, bytes: &[u8]) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        // FNV-1a, eight bytes at a time: speed matters here, strength does not.
        let mut take = |word: u64| *hash = (*hash ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        take(at);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            take(u64::from_le_bytes(word));
        }
        take(bytes.len() as u64);
    }
}

/// The simulated time, on a simulated host.
#[must_use]
pub fn now() -> Micros {
    turmoil::sim_elapsed().map_or(0, micros)
}

/// A duration as the history counts.
#[must_use]
pub fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}
