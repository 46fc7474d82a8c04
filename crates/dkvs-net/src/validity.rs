//! Until when a request may be begun.
//!
//! A caller that hears nothing from one server asks another, and must then be sure that the first will not begin what
//! it was asked: a put that is begun late would replace what was written meanwhile. No message can stop a server that
//! cannot be reached, but time can: each request says when it expires (a lease, Gray and Cheriton 1989), and the caller goes
//! elsewhere only after that. A server that was paused, or whose datagrams were held back, finds the request expired.
//! Requests nobody waits for are not worth the work anyway.
//!
//! ```text
//!   server's clock   ... 1000 ────────────── 1180 ──────── 1250 ──────> expired: not begun
//!                          │ challenge: 1000    ^ "until 1250"
//!   caller               heard at 0 ──────── sends at 180, goes elsewhere at 250, not before
//! ```
//! The moment is told on the server's clock, so no two clocks have to agree; they have to run at the same speed, within
//! one part in 1,024. The caller learns the server's clock from a challenge. By the time it hears of it, the clock has gone on: what
//! it reckons is never ahead, and the request expires too early rather than too late.
//!
//! What it leaves out: a machine whose monotonic clock stands still while it sleeps. A virtual machine that is frozen
//! and thawed without being told may begin a request late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Clocks run differently by at most one part in this many. NTP slews by at most one in 2,000, each of the two.
const DRIFT: u32 = 1_024;

/// An expiry farther ahead than this is no reading of this clock, but of the one before the last start.
const AHEAD_MAX: Duration = Duration::from_secs(3_600);

/// Stands for "never" in a frame.
pub(crate) const NEVER: u64 = 0;

/// An expiry that has passed on every clock.
const PASSED: u64 = 1;

/// A server's clock for expiries: microseconds since a moment drawn at random at each start, so that readings from
/// before a start are known as such.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpiryClock {
    start: Instant,
    reading_at_start: u64,
}

impl ExpiryClock {
    pub(crate) fn new(random: u64) -> Self {
        Self { start: Instant::now(), reading_at_start: (random >> 2).max(PASSED + 1) }
    }

    pub(crate) fn now(&self) -> u64 {
        self.reading_at_start.saturating_add(micros(self.start.elapsed()))
    }

    /// What a request's expiry means here.
    pub(crate) fn validity(&self, expires: u64) -> Validity {
        let validity = Validity { clock: Some(*self), until: Arc::default() };
        validity.extend(expires);
        validity
    }

    fn instant(&self, reading: u64) -> Instant {
        self.start + Duration::from_micros(reading.saturating_sub(self.reading_at_start))
    }
}

/// Until when one request may be begun. Clones share it; repetitions of the request extend it.
#[derive(Clone, Debug)]
pub struct Validity {
    clock: Option<ExpiryClock>,
    /// The latest expiry heard; 0 before the first, `u64::MAX` for never.
    until: Arc<AtomicU64>,
}

impl Validity {
    /// Of a request that does not expire.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { clock: None, until: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Of a request that expires after `duration`.
    #[must_use]
    pub fn lasting(duration: Duration) -> Self {
        let clock = ExpiryClock::new(0);
        clock.validity(clock.now().saturating_add(micros(duration)))
    }

    /// Whether it may still be begun.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.clock.is_none_or(|clock| clock.now() <= self.until.load(Ordering::Relaxed))
    }

    /// When it expires, unless extended; `None` for never.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::Relaxed);
        self.clock.filter(|_| until != u64::MAX).map(|clock| clock.instant(until))
    }

    /// A repetition says how long it may be begun. What is no reading of this server's clock says nothing.
    pub(crate) fn extend(&self, expires: u64) {
        let Some(clock) = self.clock else { return };
        let until = match expires {
            NEVER => u64::MAX,
            reading if reading <= clock.now().saturating_add(micros(AHEAD_MAX)) => reading,
            _ => return,
        };
        self.until.fetch_max(until, Ordering::Relaxed);
    }
}

/// What a caller knows of a server's clock: what it read when it was told, which was before it was heard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownClock {
    reading: u64,
    heard: Instant,
}

impl KnownClock {
    pub(crate) fn told(reading: u64) -> Self {
        Self { reading, heard: Instant::now() }
    }

    /// What the clock will read at `instant`, or less.
    pub(crate) fn at_most(&self, instant: Instant) -> u64 {
        let elapsed = instant.saturating_duration_since(self.heard);
        self.reading.saturating_add(micros(elapsed - elapsed / DRIFT))
    }

    /// The better of two readings of one clock: as neither is ahead, the later one.
    pub(crate) fn better(self, other: Self) -> Self {
        let now = Instant::now();
        if other.at_most(now) > self.at_most(now) { other } else { self }
    }
}

/// An expiry in a frame, by what is known of the receiver's clock. Where nothing is known of it yet, the frame must not be
/// begun at all: it may leave later than it was made, together with a proof of address that has come meanwhile.
pub(crate) fn expires(clock: Option<KnownClock>, until: Instant) -> u64 {
    clock.map_or(PASSED, |clock| clock.at_most(until).max(PASSED))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_request_expires_on_the_servers_clock_not_after_the_caller_gave_it_up() {
        let server = ExpiryClock::new(7 << 40);
        let told = server.now();
        tokio::time::advance(20 * MS).await;
        let known = Some(KnownClock::told(told));
        tokio::time::advance(100 * MS).await;
        let gives_up = Instant::now() + 250 * MS;
        let validity = server.validity(expires(known, gives_up));
        assert!(validity.holds());
        assert!(validity.until().is_some_and(|until| until <= gives_up && until >= gives_up - 25 * MS));
        tokio::time::advance(250 * MS).await;
        assert!(!validity.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn a_repetition_extends_it_and_never_shortens_it() {
        let server = ExpiryClock::new(7 << 40);
        let validity = server.validity(server.now() + 1_000);
        let shared = validity.clone();
        validity.extend(server.now() + 500);
        tokio::time::advance(MS).await;
        assert!(shared.holds());
        validity.extend(server.now() + 2_000);
        tokio::time::advance(2 * MS).await;
        assert!(shared.holds());
        tokio::time::advance(MS).await;
        assert!(!shared.holds());
        validity.extend(NEVER);
        assert!(shared.holds() && shared.until().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn by_a_clock_that_nobody_has_told_a_request_has_expired() {
        let soon = Instant::now() + 250 * MS;
        for random in [0, 1, 5, 7 << 40, u64::MAX] {
            assert!(!ExpiryClock::new(random).validity(expires(None, soon)).holds(), "{random}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readings_from_before_a_restart_are_void() {
        for (before, after) in [(1 << 60, 1 << 50), (1 << 50, 1 << 60)] {
            let until = ExpiryClock::new(before).now() + 250_000;
            assert!(!ExpiryClock::new(after).validity(until).holds(), "{before} then {after}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_of_different_speed_make_it_expire_early() {
        let known = KnownClock::told(0);
        let minute = Duration::from_secs(60);
        let reckoned = Duration::from_micros(known.at_most(Instant::now() + minute));
        assert!(reckoned <= minute.mul_f64(0.999_1) && reckoned >= minute.mul_f64(0.999));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_challenge_does_not_make_a_clock_worse() {
        let fresh = KnownClock::told(1_000);
        tokio::time::advance(50 * MS).await;
        let delayed = KnownClock::told(2_000);
        assert_eq!(fresh.better(delayed).reading, 1_000);
        assert_eq!(delayed.better(fresh).reading, 1_000);
    }
}
