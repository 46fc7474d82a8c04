//! Who answers, as far as this server can tell (DeCandia et al. 2007, §4.8.3).
//!
//! Every answer to any request counts, and every request that waited long enough in vain. Only a put that was passed on to its
//! owner says nothing when it fails: that may be the fault of those for whom the owner waits. A server that has not been heard
//! from lately is sent a ping, so that one that is idle is not taken for one that is gone, and one that is back is noticed.
//!
//! ```text
//!              a timeout               two more in a row
//!     up ────────────────> suspect ────────────────────────> down
//!      ^                      │                                │
//!      └──────── any answer ──┴────────────────────────────────┘
//! ```
//! Of requests that wait side by side, one timeout counts: a timeout says something new only if the request began after
//! the last thing that was known.
//!
//! Invariant: what is found here is this server's own view, and only a matter of order: whom to ask first, whom to spare
//! what can wait. It never changes who owns a key, and an answer counts whatever is thought of the server it comes from.
//!
//! What it leaves out: it tells nobody. Two servers may disagree, and when one of the two ways between them is cut they do.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dkvs_core::ring::ServerIndex;
use dkvs_net::{CallError, Socket};
use dkvs_proto::message::admin::Liveness;
use dkvs_proto::message::replica::ReplicaRequest;
use dkvs_storage::Store;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::coordinator::Coordinator;

/// Timeouts in a row after which a server counts as down.
const DOWN_TIMEOUTS: u32 = 3;

/// Why a server is thought to be up or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing has been heard of it, nor missed.
    NotAsked,
    Answered,
    /// So many requests in a row waited in vain.
    TimedOut(u32),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("not asked yet"),
            Self::Answered => f.write_str("answers"),
            Self::TimedOut(1) => f.write_str("did not answer in time"),
            Self::TimedOut(times) => write!(f, "did not answer {times} times in a row"),
        }
    }
}

/// What is thought of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) liveness: Liveness,
    pub(crate) reason: Reason,
    /// Since when it has had this liveness.
    pub(crate) since: Instant,
    /// When it answered last; when this server started, if it never did.
    heard: Instant,
    /// When the latest thing was learned. A request that began earlier tells nothing new by timing out.
    learned: Instant,
}

impl View {
    fn new(now: Instant) -> Self {
        Self { liveness: Liveness::Up, reason: Reason::NotAsked, since: now, heard: now, learned: now }
    }

    /// It answered. Returns whether that is news.
    fn answered(&mut self, now: Instant) -> bool {
        (self.heard, self.learned, self.reason) = (now, now, Reason::Answered);
        self.turn(Liveness::Up, now)
    }

    /// A request that began at `began` was not answered. Returns whether that changes its liveness.
    fn timed_out(&mut self, began: Instant, now: Instant) -> bool {
        if began < self.learned {
            return false;
        }
        let times = match self.reason {
            Reason::TimedOut(times) => times.saturating_add(1),
            Reason::NotAsked | Reason::Answered => 1,
        };
        (self.learned, self.reason) = (now, Reason::TimedOut(times));
        self.turn(if times < DOWN_TIMEOUTS { Liveness::Suspect } else { Liveness::Down }, now)
    }

    fn turn(&mut self, liveness: Liveness, now: Instant) -> bool {
        let turns = self.liveness != liveness;
        if turns {
            (self.liveness, self.since) = (liveness, now);
        }
        turns
    }
}

/// All servers of the ring, in its order. What stands for this server itself is never changed.
#[derive(Debug)]
pub(crate) struct FailureDetector {
    views: Mutex<Vec<View>>,
    /// For each server: it is up again, or there is something to be done for it. One task waits for each.
    news: Vec<Arc<Notify>>,
    /// Time between pings to a server that is silent, and how long an answer may take.
    ping_interval: Duration,
}

impl FailureDetector {
    pub(crate) fn new(servers: usize, ping_interval: Duration) -> Self {
        Self {
            views: Mutex::new(vec![View::new(Instant::now()); servers]),
            news: (0..servers).map(|_| Arc::default()).collect(),
            ping_interval,
        }
    }

    pub(crate) fn view(&self, server: ServerIndex) -> View {
        self.views()[server.as_usize()]
    }

    pub(crate) fn is_up(&self, server: ServerIndex) -> bool {
        self.view(server).liveness == Liveness::Up
    }

    /// Where the task that does things for this server hears that there is something to do.
    pub(crate) fn news(&self, server: ServerIndex) -> &Arc<Notify> {
        &self.news[server.as_usize()]
    }

    /// Those first that answer. Otherwise they stay in order.
    pub(crate) fn by_liveness(&self, servers: &[ServerIndex]) -> Vec<ServerIndex> {
        let views = self.views();
        let mut ordered = servers.to_vec();
        ordered.sort_by_key(|server| match views[server.as_usize()].liveness {
            Liveness::Up => 0,
            Liveness::Suspect => 1,
            Liveness::Down => 2,
        });
        ordered
    }

    /// Learns from how a call that began at `began` has ended. What was given up for this server's own reasons, or
    /// sooner than an answer can be asked for, says nothing. Returns whether the server is back.
    pub(crate) fn ping_interval(&self) -> Duration {
        self.ping_interval
    }

    pub(crate) fn learn(&self, server: ServerIndex, began: Instant, failure: Option<&CallError>) -> bool {
        let now = Instant::now();
        let mut views = self.views();
        let view = &mut views[server.as_usize()];
        let turned = match failure {
            None | Some(CallError::Malformed(_) | CallError::Restarted) => view.answered(now),
            Some(
                CallError::TimedOut | CallError::Silent(_) | CallError::Connect(_) | CallError::Broken(_),
            ) if now - began >= self.ping_interval => view.timed_out(began, now),
            Some(
                CallError::TimedOut
                | CallError::Silent(_)
                | CallError::Connect(_)
                | CallError::Broken(_)
                | CallError::Overloaded { .. }
                | CallError::TooLong { .. }
                | CallError::Closed,
            ) => false,
        };
        let view = *view;
        drop(views);
        if turned {
            let (liveness, reason) = (view.liveness, view.reason);
            tracing::info!(?server, ?liveness, %reason, "a server is seen otherwise than before");
            if liveness == Liveness::Up {
                self.news(server).notify_one();
            }
            return liveness == Liveness::Up;
        }
        false
    }

    fn views(&self) -> MutexGuard<'_, Vec<View>> {
        // Nothing that can panic runs under this lock, so a poisoned one guards whole views.
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pings one server whenever it has been silent for an interval, until aborted.
pub(crate) async fn watch<S: Socket, T: Store>(coordinator: Arc<Coordinator<S, T>>, server: ServerIndex) {
    let interval = coordinator.detector.ping_interval;
    loop {
        let due = coordinator.detector.view(server).heard + interval;
        if Instant::now() < due {
            sleep_until(due).await;
            continue;
        }
        let next = Instant::now() + interval;
        // What it answers is no matter: the call tells the detector.
        let _ = coordinator.ask(server, ReplicaRequest::Ping, next).await;
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(view: View) -> (Liveness, Reason) {
        (view.liveness, view.reason)
    }

    #[tokio::test]
    async fn timeouts_in_a_row_make_a_server_suspect_then_down_and_one_answer_makes_it_up() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut view = View::new(start);
        let mut turns = Vec::new();
        for s in 1..=4 {
            turns.push((view.timed_out(at(s), at(s + 1)), seen(view)));
        }
        let expected = [
            (true, (Liveness::Suspect, Reason::TimedOut(1))),
            (false, (Liveness::Suspect, Reason::TimedOut(2))),
            (true, (Liveness::Down, Reason::TimedOut(3))),
            (false, (Liveness::Down, Reason::TimedOut(4))),
        ];
        assert_eq!(turns, expected);
        assert_eq!(view.since, at(4), "since the third");
        assert!(view.answered(at(6)));
        assert_eq!((seen(view), view.since), ((Liveness::Up, Reason::Answered), at(6)));
        assert!(!view.answered(at(7)));
        assert_eq!((view.since, view.heard), (at(6), at(7)));
    }

    #[tokio::test]
    async fn requests_that_wait_side_by_side_count_once() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut view = View::new(start);
        for ended in 2..=9 {
            view.timed_out(at(1), at(ended));
        }
        assert_eq!(seen(view), (Liveness::Suspect, Reason::TimedOut(1)));
    }

    #[tokio::test]
    async fn a_request_that_began_before_the_last_answer_says_nothing_by_timing_out() {
        let start = Instant::now();
        let at = |s: u32| start + SECOND * s;
        let mut view = View::new(start);
        view.answered(at(2));
        assert!(!view.timed_out(at(1), at(3)));
        assert_eq!(seen(view), (Liveness::Up, Reason::Answered));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_early_or_for_want_of_room_says_nothing() {
        let detector = FailureDetector::new(2, SECOND);
        let server = ServerIndex::new(1);
        let began = Instant::now();
        detector.learn(server, began, Some(&CallError::Overloaded { repeated: false }));
        detector.learn(server, began, Some(&CallError::TimedOut));
        assert!(detector.is_up(server));
        tokio::time::advance(SECOND).await;
        detector.learn(server, began, Some(&CallError::Closed));
        assert!(detector.is_up(server));
        detector.learn(server, began, Some(&CallError::TimedOut));
        assert!(!detector.is_up(server));
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_answer_come_first_and_those_that_are_down_last() {
        let detector = FailureDetector::new(4, SECOND);
        let servers: Vec<_> = (0..4).map(ServerIndex::new).collect();
        for (server, timeouts) in [(servers[0], 3), (servers[1], 1)] {
            for _ in 0..timeouts {
                let began = Instant::now();
                tokio::time::advance(SECOND).await;
                detector.learn(server, began, Some(&CallError::TimedOut));
            }
        }
        let [down, suspect, up_a, up_b] = servers[..] else { panic!("four servers") };
        assert_eq!(detector.by_liveness(&servers), [up_a, up_b, suspect, down]);
        detector.learn(down, Instant::now(), None);
        assert_eq!(detector.by_liveness(&servers), [down, up_a, up_b, suspect]);
    }
}
