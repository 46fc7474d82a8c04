//! The server's hybrid clock, and its guard against peers whose clocks are far ahead.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use dkvs_core::hlc::{Hlc, HybridClock, WallMs};
use dkvs_core::record::Record;
use dkvs_net::{Gauge, Level};

/// Where wall time comes from: milliseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> WallMs + Send + Sync>;

/// Makes timestamps for this server's events.
pub(crate) struct Clock {
    wall: WallClock,
    skew_ms_max: u64,
    state: Mutex<State>,
    reported: Gauge,
}

struct State {
    hybrid: HybridClock,
    skew_ms_seen: u64,
    /// Each is logged once. A peer is a server of the ring or somebody who could reach our port; the set is cut off
    /// at [`REPORTED_MAX`].
    reported: BTreeSet<SocketAddr>,
}

const REPORTED_MAX: usize = 1_024;

impl Clock {
    pub(crate) fn new(wall: WallClock, skew_ms_max: u64) -> Self {
        let hybrid = HybridClock::new(skew_ms_max);
        let state = State { hybrid, skew_ms_seen: 0, reported: BTreeSet::new() };
        Self { wall, skew_ms_max, state: Mutex::new(state), reported: Gauge::new(REPORTED_MAX) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tick(&self) -> Hlc {
        self.state().hybrid.tick((self.wall)())
    }

    /// The wall clock: what has expired by it is not shown here.
    pub(crate) fn now(&self) -> WallMs {
        (self.wall)()
    }

    /// What expired before this has expired by the clock of every server whose clock is as right as is asked of it, and its
    /// bytes may be dropped.
    pub(crate) fn long_ago(&self) -> WallMs {
        self.now().saturating_sub(self.skew_ms_max)
    }

    /// Takes note of the timestamps a peer sent, so that later events here sort after them.
    pub(crate) fn observe(&self, from: SocketAddr, record: &Record) {
        let Some(latest) = record.siblings().iter().map(|sibling| sibling.write.hlc).max() else { return };
        let now_ms = (self.wall)();
        let mut state = self.state();
        if let Err(ahead) = state.hybrid.observe(latest, now_ms) {
            state.skew_ms_seen = state.skew_ms_seen.max(ahead.skew_ms);
            if state.reported.len() >= REPORTED_MAX {
                self.reported.was_full();
            } else if state.reported.insert(from) {
                self.reported.set(state.reported.len());
                tracing::warn!(
                    peer = %from, skew_ms = ahead.skew_ms,
                    "a peer's clock is too far ahead and is not followed; check its time synchronisation"
                );
            }
        }
    }

    /// How many peers were reported.
    pub(crate) fn level(&self) -> Level {
        self.reported.level("reported_peers")
    }

    /// The largest lead that was not followed, in milliseconds.
    pub(crate) fn skew_ms_seen(&self) -> u64 {
        self.state().skew_ms_seen
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dkvs_core::record::{Body, OpId, Write};
    use dkvs_core::version::{Actor, Dot, VersionVector};

    use super::*;

    fn written_at(hlc: Hlc) -> Record {
        let mut record = Record::new();
        let dot = Dot { actor: Actor { incarnation: 1, epoch: 1 }, counter: 1 };
        let op = OpId { client: 1, sequence: 1 };
        record.event(
            &VersionVector::new(),
            dot,
            Write { op, hlc, expires: None, body: Body::Value(Bytes::new()) },
        );
        record
    }

    #[test]
    fn a_peer_far_ahead_is_counted_and_not_followed() {
        let clock = Clock::new(Arc::new(|| 1_000_000), 60_000);
        let peer = "127.0.0.1:1".parse().unwrap();
        clock.observe(peer, &written_at(Hlc::from_bits(1_030_000 << 16)));
        assert_eq!(clock.skew_ms_seen(), 0);
        assert!(clock.tick().wall_ms() >= 1_030_000, "30 s ahead is followed");
        clock.observe(peer, &written_at(Hlc::from_bits(1_070_000 << 16)));
        assert_eq!(clock.skew_ms_seen(), 70_000);
        assert!(clock.tick().wall_ms() < 1_070_000);
    }
}
