//! At most once: what has been executed for whom, and what was answered.
//!
//! A caller names each request by its session and an id, and repeats both in every retransmission. A request that is
//! being served is not started again; the answer to one that must not be executed twice is kept until the caller
//! says that it no longer waits for it (the envelope's `oldest`), or until no datagram of that time can be accepted
//! any more (the lifetime of a proof of address). Lee et al. 2015, *Implementing Linearizability at Large Scale and
//! Low Latency*, without its durable part: a restart forgets, and refuses what was sent before it instead.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use dkvs_proto::frame::Kind;
use tokio::time::Instant;

use crate::gauges::Gauge;
use crate::proof::PROOF_LIFETIME;
use crate::validity::Validity;

/// Answers remembered for one session. A caller with more calls in flight to one server is told to slow down.
const ANSWERS_PER_SESSION_MAX: usize = 32_768;

/// Requests and answers remembered over all sessions. A session costs an address nothing, so that a limit for each would
/// be none for one who draws many.
const ANSWERS_MAX: usize = 8 * ANSWERS_PER_SESSION_MAX;

/// A request that was admitted.
#[derive(Debug)]
enum State {
    Underway(Validity),
    Finished(Kind, Bytes),
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Execute it, then call [`Sessions::finished`] or [`Sessions::forget`].
    Execute,
    /// It is too late to begin it.
    Expired,
    /// It is being executed.
    Working,
    /// It was executed; this was the answer.
    Answered(Kind, Bytes),
    /// The caller has had the answer: a late duplicate.
    Over,
    /// No room to remember it.
    Full,
}

#[derive(Debug)]
struct Session {
    oldest: u64,
    requests: BTreeMap<u64, State>,
    /// Whether it ever executed something that must not be executed twice.
    finished_any: bool,
    last_seen: Instant,
}

impl State {
    fn is_underway(&self) -> bool {
        matches!(self, Self::Underway(_))
    }
}

/// All callers of one server.
#[derive(Debug)]
pub(crate) struct Sessions {
    sessions: BTreeMap<u64, Session>,
    sessions_max: usize,
    /// Requests of all sessions.
    answers: usize,
    swept: Instant,
    pub(crate) sessions_gauge: Gauge,
    pub(crate) answers_gauge: Gauge,
    /// Of the session that has most.
    pub(crate) answers_of_one_gauge: Gauge,
}

impl Sessions {
    pub(crate) fn new(sessions_max: usize) -> Self {
        Self {
            sessions: BTreeMap::new(),
            sessions_max,
            answers: 0,
            swept: Instant::now(),
            sessions_gauge: Gauge::new(sessions_max),
            answers_gauge: Gauge::new(ANSWERS_MAX),
            answers_of_one_gauge: Gauge::new(ANSWERS_PER_SESSION_MAX),
        }
    }

    /// A datagram of `session` came: it waits for no answer below `oldest`.
    pub(crate) fn seen(&mut self, session: u64, oldest: u64) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.last_seen = Instant::now();
            if oldest > session.oldest {
                session.oldest = oldest;
                let before = session.requests.len();
                session.requests.retain(|&id, state| id >= oldest || state.is_underway());
                self.answers -= before - session.requests.len();
                self.answers_gauge.set(self.answers);
            }
        }
    }

    /// A request came that expires at `expires`, by this server's clock: `validity`. A repetition of one that is being
    /// executed extends the validity that one was given.
    pub(crate) fn admit(&mut self, session: u64, id: u64, expires: u64, validity: &Validity) -> Admission {
        self.sweep();
        let room = self.sessions.len() < self.sessions_max;
        if !room && !self.sessions.contains_key(&session) {
            self.sessions_gauge.was_full();
            return Admission::Full;
        }
        let new = || Session {
            oldest: 0,
            requests: BTreeMap::new(),
            finished_any: false,
            last_seen: Instant::now(),
        };
        let name = session;
        let session = self.sessions.entry(name).or_insert_with(new);
        let admission = match session.requests.get(&id) {
            Some(State::Underway(begun)) => {
                begun.extend(expires);
                Admission::Working
            }
            Some(State::Finished(kind, body)) => Admission::Answered(*kind, body.clone()),
            None if id < session.oldest => Admission::Over,
            None if !validity.holds() => Admission::Expired,
            None if session.requests.len() >= ANSWERS_PER_SESSION_MAX => {
                self.answers_of_one_gauge.was_full();
                Admission::Full
            }
            None if self.answers >= ANSWERS_MAX => {
                self.answers_gauge.was_full();
                Admission::Full
            }
            None => {
                session.requests.insert(id, State::Underway(validity.clone()));
                self.answers += 1;
                self.answers_gauge.set(self.answers);
                self.answers_of_one_gauge.set(session.requests.len());
                Admission::Execute
            }
        };
        // What was turned away leaves nothing to remember.
        if session.requests.is_empty() && !session.finished_any {
            self.sessions.remove(&name);
        }
        self.sessions_gauge.set(self.sessions.len());
        admission
    }

    /// The request was executed; a repetition gets the same answer.
    pub(crate) fn finished(&mut self, session: u64, id: u64, kind: Kind, body: Bytes) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.finished_any = true;
            let before = session.requests.len();
            if id < session.oldest {
                session.requests.remove(&id);
            } else {
                session.requests.insert(id, State::Finished(kind, body));
            }
            self.answers = self.answers - before + session.requests.len();
            self.answers_gauge.set(self.answers);
        }
    }

    /// The request was not executed, or may be executed again.
    pub(crate) fn forget(&mut self, session: u64, id: u64) {
        if let Entry::Occupied(mut session) = self.sessions.entry(session) {
            self.answers -= usize::from(session.get_mut().requests.remove(&id).is_some());
            self.answers_gauge.set(self.answers);
            if session.get().requests.is_empty() && !session.get().finished_any {
                session.remove();
            }
            self.sessions_gauge.set(self.sessions.len());
        }
    }

    /// Drops sessions from which nothing acceptable can come any more, now and then.
    fn sweep(&mut self) {
        if self.swept.elapsed() < PROOF_LIFETIME / 8 {
            return;
        }
        self.swept = Instant::now();
        self.sessions.retain(|_, session| {
            session.last_seen.elapsed() < PROOF_LIFETIME || session.requests.values().any(State::is_underway)
        });
        self.answers = self.sessions.values().map(|session| session.requests.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::validity::ExpiryClock;

    fn admit(sessions: &mut Sessions, session: u64, id: u64) -> Admission {
        sessions.admit(session, id, 0, &Validity::unlimited())
    }

    fn answer() -> (Kind, Bytes) {
        (Kind::ClientAnswer, Bytes::from_static(b"done"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_executed_once_and_its_answer_repeated() {
        let mut sessions = Sessions::new(4);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Execute);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Working);
        sessions.finished(1, 7, answer().0, answer().1);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Answered(answer().0, answer().1));
        assert_eq!(
            admit(&mut sessions, 2, 7),
            Admission::Execute,
            "another session's request 7 is another request"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_the_caller_has_had_is_dropped_and_its_request_not_executed_again() {
        let mut sessions = Sessions::new(4);
        admit(&mut sessions, 1, 7);
        sessions.finished(1, 7, answer().0, answer().1);
        sessions.seen(1, 8);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Over);
        assert_eq!(admit(&mut sessions, 1, 8), Admission::Execute);
        sessions.seen(1, 3);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Over, "an older datagram does not move it back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_executed_survives_the_callers_loss_of_interest() {
        let mut sessions = Sessions::new(4);
        admit(&mut sessions, 1, 7);
        sessions.seen(1, 9);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Working);
        sessions.finished(1, 7, answer().0, answer().1);
        assert_eq!(admit(&mut sessions, 1, 7), Admission::Over);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_as_long_as_a_proof_lives_and_the_table_is_bounded() {
        let mut sessions = Sessions::new(2);
        for session in [1, 2] {
            admit(&mut sessions, session, 0);
            sessions.finished(session, 0, answer().0, answer().1);
        }
        assert_eq!(admit(&mut sessions, 3, 0), Admission::Full);
        tokio::time::advance(PROOF_LIFETIME / 2).await;
        sessions.seen(1, 0);
        tokio::time::advance(PROOF_LIFETIME / 2).await;
        assert_eq!(admit(&mut sessions, 3, 0), Admission::Execute, "session 2 is gone");
        assert_eq!(
            admit(&mut sessions, 1, 0),
            Admission::Answered(answer().0, answer().1),
            "session 1 is not"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_left_nothing_to_remember_take_no_room() {
        let mut sessions = Sessions::new(2);
        for session in 0..100 {
            assert_eq!(admit(&mut sessions, session, 0), Admission::Execute);
            sessions.forget(session, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_too_late_is_not_begun_and_a_repetition_extends_what_was() {
        let mut sessions = Sessions::new(4);
        let clock = ExpiryClock::new(1 << 40);
        let soon = clock.now() + 1_000;
        let validity = clock.validity(soon);
        assert_eq!(sessions.admit(1, 7, soon, &validity), Admission::Execute);
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(!validity.holds());
        assert_eq!(sessions.admit(1, 8, soon, &clock.validity(soon)), Admission::Expired);
        let later = clock.now() + 1_000;
        assert_eq!(sessions.admit(1, 7, later, &clock.validity(later)), Admission::Working);
        assert!(validity.holds());
        sessions.finished(1, 7, answer().0, answer().1);
        assert_eq!(
            sessions.admit(1, 7, soon, &clock.validity(soon)),
            Admission::Answered(answer().0, answer().1),
            "an answer does not expire"
        );
    }
}
