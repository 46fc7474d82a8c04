//! When have enough servers answered? N, R and W as folds over replies (DeCandia et al. 2007, §4.5).
//!
//! The async code around these folds only moves messages: it tells them who answered what, and they say whether to
//! wait ([`Progress::Pending`]), to answer ([`Progress::Reached`]) or to give up ([`Progress::Unreachable`]).
//!
//! A **write** is done when `w` distinct owners hold it. A **read** is done when `r` distinct owners hold the same
//! record. When the first `r` replies differ, their merge becomes the read's *target*, the stale ones are asked to
//! take it, and the read is done when `r` owners hold it: a read makes the agreement it needs. Without that write-back
//! `r + w > n` is not even monotonic, as two reads during one put may see new, then old.
//!
//! ```text
//!   r = 2    B: {1}  C: {2}   ->  target {1,2}, repair B and C     ->  B acked, C acked: reached
//!            B: {1}  C: {1,2} ->  target {1,2}, repair B; C has it ->  B acked: reached
//! ```
//!
//! In a sloppy request another server may stand in for an owner ([`crate::participants`]), and counts in its place. What a
//! stand-in holds is merged into a read's target, but it is not sent the target: it keeps writes, not copies. So a sloppy
//! read makes owners agree, and not those who stand in for them.
//!
//! Invariants: each owner's slot counts once, whatever is repeated and whoever fills it; a server that is not an owner counts
//! only where it was asked to stand in; an acknowledgement that arrives after its time-out still counts, as it is true.
//!
//! What it leaves out: the target is fixed by the first `r` replies. A later reply that knows more is not waited for
//! and not returned; it is left to repair after the answer.

use std::collections::BTreeMap;

use crate::record::Record;
use crate::servers::ServerIndex;
use crate::version::{Dot, VersionVector};

/// Copies kept of a key unless a request or a configuration says otherwise.
pub const N_DEFAULT: usize = 3;

/// How many copies, and how many of them a read and a write wait for: 1 ≤ r, w ≤ n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    n: usize,
    r: usize,
    w: usize,
}

/// Numbers that make no quorum. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    /// A quorum of nothing.
    #[error("{name} is 0; it must be at least 1")]
    Zero {
        /// `n`, `r` or `w`.
        name: &'static str,
    },
    /// A quorum of more copies than there are.
    #[error("{name} is {value}, but only n = {n} copies are kept; {name} must be at most n")]
    MoreThanCopies {
        /// `r` or `w`.
        name: &'static str,
        /// What was asked.
        value: usize,
        /// The copies.
        n: usize,
    },
    /// More copies than servers.
    #[error("n is {n}, but the ring has only {servers} server(s); n must be at most the number of servers")]
    MoreThanServers {
        /// What was asked.
        n: usize,
        /// Servers on the ring.
        servers: usize,
    },
}

impl Quorum {
    /// `n` copies, of which a read waits for `r` and a write for `w`.
    ///
    /// # Errors
    /// When one is zero, or `r` or `w` exceeds `n`.
    pub fn new(n: usize, r: usize, w: usize) -> Result<Self, QuorumError> {
        for (name, value) in [("n", n), ("r", r), ("w", w)] {
            if value == 0 {
                return Err(QuorumError::Zero { name });
            }
            if value > n {
                return Err(QuorumError::MoreThanCopies { name, value, n });
            }
        }
        Ok(Self { n, r, w })
    }

    /// Fills in what a request leaves open, on a ring of `servers`: 3 copies, or as many as there are servers, and
    /// majorities of them.
    ///
    /// # Errors
    /// As [`Quorum::new`], and when `n` exceeds the number of servers.
    pub fn with_defaults(
        servers: usize,
        n: Option<usize>,
        r: Option<usize>,
        w: Option<usize>,
    ) -> Result<Self, QuorumError> {
        let n = n.unwrap_or(N_DEFAULT.min(servers));
        let majority = n / 2 + 1;
        if n > servers {
            return Err(QuorumError::MoreThanServers { n, servers });
        }
        Self::new(n, r.unwrap_or(majority), w.unwrap_or(majority))
    }

    /// Copies kept.
    #[must_use]
    pub fn n(self) -> usize {
        self.n
    }

    /// Owners a read waits for.
    #[must_use]
    pub fn r(self) -> usize {
        self.r
    }

    /// Owners a write waits for.
    #[must_use]
    pub fn w(self) -> usize {
        self.w
    }
}

/// What a fold over replies has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Wait for more replies.
    Pending,
    /// Enough owners answered.
    Reached,
    /// Too many owners failed: no further reply that is still awaited can make it enough.
    Unreachable,
}

fn progress(have: usize, may_come: usize, needed: usize) -> Progress {
    if have >= needed {
        Progress::Reached
    } else if have + may_come < needed {
        Progress::Unreachable
    } else {
        Progress::Pending
    }
}

/// One owner's part in a request, as a report to the client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<E> {
    /// Nothing heard yet.
    Waiting,
    /// It did what was asked.
    Ok,
    /// It did not, or nobody knows; `E` says why.
    Failed(E),
}

/// What became of the server that was asked to stand in for an owner.
#[derive(Clone, Debug)]
enum StandIn<A> {
    /// Asked, and nothing heard yet.
    Asked,
    /// It did what was asked.
    Done(ServerIndex, A),
}

/// By the owner for whom they stand in. An owner without an entry has no stand-in, or one that failed.
type StandIns<A> = BTreeMap<ServerIndex, StandIn<A>>;

/// Counts the owners that hold a write, and those that stand in for them. `E` is a failure's reason, kept for the report.
#[derive(Clone, Debug)]
pub struct WriteQuorum<E> {
    needed: usize,
    answers: BTreeMap<ServerIndex, Answer<E>>,
    stand_ins: StandIns<()>,
    missed: VersionVector,
}

impl<E> WriteQuorum<E> {
    /// Waits for `w` of `owners`.
    #[must_use]
    pub fn new(owners: &[ServerIndex], w: usize) -> Self {
        let answers = owners.iter().map(|&owner| (owner, Answer::Waiting)).collect();
        Self { needed: w, answers, stand_ins: StandIns::new(), missed: VersionVector::new() }
    }

    /// `server` holds the write durably. `missed` are the dots of values it held that the write did not cover.
    pub fn acked(&mut self, server: ServerIndex, missed: &[Dot]) -> Progress {
        if let Some(answer) = self.answers.get_mut(&server) {
            *answer = Answer::Ok;
            missed.iter().for_each(|&dot| self.missed.add(dot));
        }
        self.progress()
    }

    /// `server` did not acknowledge the write.
    pub fn failed(&mut self, server: ServerIndex, reason: E) -> Progress {
        if let Some(answer) = self.answers.get_mut(&server)
            && matches!(answer, Answer::Waiting)
        {
            *answer = Answer::Failed(reason);
        }
        self.progress()
    }

    /// Somebody is asked to stand in for `owner`. Until it has answered or failed, the owner's slot may still be filled.
    pub fn stand_in_asked(&mut self, owner: ServerIndex) {
        if self.answers.contains_key(&owner) {
            self.stand_ins.entry(owner).or_insert(StandIn::Asked);
        }
    }

    /// `stand_in` was asked to stand in for `owner`, and holds the write for it durably. `missed` as in
    /// [`WriteQuorum::acked`].
    pub fn stood_in(&mut self, owner: ServerIndex, stand_in: ServerIndex, missed: &[Dot]) -> Progress {
        if let Some(asked) = self.stand_ins.get_mut(&owner) {
            *asked = StandIn::Done(stand_in, ());
            missed.iter().for_each(|&dot| self.missed.add(dot));
        }
        self.progress()
    }

    /// Who was asked to stand in for `owner` did not, and nobody else is asked.
    pub fn nobody_stands_in(&mut self, owner: ServerIndex) -> Progress {
        if matches!(self.stand_ins.get(&owner), Some(StandIn::Asked)) {
            self.stand_ins.remove(&owner);
        }
        self.progress()
    }

    /// What the replies so far have come to.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (mut filled, mut may_come) = (0, 0);
        for (owner, answer) in &self.answers {
            match (answer, self.stand_ins.get(owner)) {
                (Answer::Ok, _) | (_, Some(StandIn::Done(..))) => filled += 1,
                (Answer::Waiting, _) | (_, Some(StandIn::Asked)) => may_come += 1,
                (Answer::Failed(_), None) => {}
            }
        }
        progress(filled, may_come, self.needed)
    }

    /// The slots that count only through a stand-in: the owner, and who holds the write for it.
    pub fn stand_ins(&self) -> impl Iterator<Item = (ServerIndex, ServerIndex)> {
        self.stand_ins.iter().filter_map(|(&owner, stand_in)| match (stand_in, self.answers.get(&owner)) {
            (StandIn::Asked, _) | (_, Some(Answer::Ok)) => None,
            (&StandIn::Done(server, ()), _) => Some((owner, server)),
        })
    }

    /// All values that acknowledging owners held and the write did not cover. A put without a context replaces them
    /// too before it is acknowledged.
    #[must_use]
    pub fn missed(&self) -> &VersionVector {
        &self.missed
    }

    /// Every owner with its answer.
    pub fn answers(&self) -> impl Iterator<Item = (ServerIndex, &Answer<E>)> {
        self.answers.iter().map(|(&server, answer)| (server, answer))
    }
}

#[derive(Clone, Debug)]
enum Reply<E> {
    Waiting,
    /// Replied before the target was known.
    Replied(Record),
    /// Has less than the target; asked to take it, or about to be.
    Stale,
    Holds,
    /// Did not reply.
    Failed(E),
    /// Replied with less than the target, and did not acknowledge it.
    RepairFailed(E),
}

/// Finds the record that `r` owners hold, or makes them hold it. `E` is a failure's reason, kept for the report.
#[derive(Clone, Debug)]
pub struct ReadQuorum<E> {
    needed: usize,
    replies: BTreeMap<ServerIndex, Reply<E>>,
    stand_ins: StandIns<Record>,
    target: Option<Record>,
    repairs: Vec<ServerIndex>,
}

impl<E> ReadQuorum<E> {
    /// Waits for `r` of `owners`.
    #[must_use]
    pub fn new(owners: &[ServerIndex], r: usize) -> Self {
        let replies = owners.iter().map(|&owner| (owner, Reply::Waiting)).collect();
        Self { needed: r, replies, stand_ins: StandIns::new(), target: None, repairs: Vec::new() }
    }

    /// `server` holds `record`; a key it has never heard of is the empty record.
    pub fn replied(&mut self, server: ServerIndex, record: Record) -> Progress {
        if let Some(reply) = self.replies.get_mut(&server)
            && matches!(reply, Reply::Waiting | Reply::Failed(_))
        {
            *reply = Reply::Replied(record);
            self.settle();
        }
        self.progress()
    }

    /// `server` did not reply, or did not acknowledge a repair.
    pub fn failed(&mut self, server: ServerIndex, reason: E) -> Progress {
        match self.replies.get_mut(&server) {
            Some(reply @ Reply::Waiting) => *reply = Reply::Failed(reason),
            Some(reply @ Reply::Stale) => *reply = Reply::RepairFailed(reason),
            Some(Reply::Replied(_) | Reply::Holds | Reply::Failed(_) | Reply::RepairFailed(_)) | None => {}
        }
        self.progress()
    }

    /// `server` acknowledged that it holds the target. It counts whatever was heard of the server before.
    pub fn repaired(&mut self, server: ServerIndex) -> Progress {
        if let Some(reply) = self.replies.get_mut(&server)
            && self.target.is_some()
        {
            *reply = Reply::Holds;
        }
        self.progress()
    }

    /// Somebody is asked to stand in for `owner`. Until it has answered or failed, the owner's slot may still be filled.
    pub fn stand_in_asked(&mut self, owner: ServerIndex) {
        if self.replies.contains_key(&owner) {
            self.stand_ins.entry(owner).or_insert(StandIn::Asked);
        }
    }

    /// `stand_in` was asked to stand in for `owner`, and keeps `record` of the key for others; the empty record when nothing.
    pub fn stood_in(&mut self, owner: ServerIndex, stand_in: ServerIndex, record: Record) -> Progress {
        if let Some(asked @ StandIn::Asked) = self.stand_ins.get_mut(&owner) {
            *asked = StandIn::Done(stand_in, record);
            self.settle();
        }
        self.progress()
    }

    /// Who was asked to stand in for `owner` did not, and nobody else is asked.
    pub fn nobody_stands_in(&mut self, owner: ServerIndex) -> Progress {
        if matches!(self.stand_ins.get(&owner), Some(StandIn::Asked)) {
            self.stand_ins.remove(&owner);
        }
        self.progress()
    }

    /// What the replies so far have come to. A stand-in counts once the target is known: it is not made to hold it.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (mut filled, mut may_come) = (0, 0);
        for (owner, reply) in &self.replies {
            match (reply, self.stand_ins.get(owner)) {
                (Reply::Holds, _) => filled += 1,
                (_, Some(StandIn::Done(..))) if self.target.is_some() => filled += 1,
                (Reply::Failed(_) | Reply::RepairFailed(_), None) => {}
                (Reply::Waiting | Reply::Replied(_) | Reply::Stale, _) | (_, Some(_)) => may_come += 1,
            }
        }
        progress(filled, may_come, self.needed)
    }

    /// The slots whose owner has not answered and a stand-in has: the owner, and who stood in for it.
    pub fn stand_ins(&self) -> impl Iterator<Item = (ServerIndex, ServerIndex)> {
        self.stand_ins.iter().filter_map(|(&owner, stand_in)| match (stand_in, self.replies.get(&owner)) {
            (StandIn::Asked, _) | (_, Some(Reply::Replied(_) | Reply::Stale | Reply::Holds)) => None,
            (&StandIn::Done(server, _), _) => Some((owner, server)),
        })
    }

    /// The record the read returns once it is reached; `None` until `r` owners have replied.
    #[must_use]
    pub fn target(&self) -> Option<&Record> {
        self.target.as_ref()
    }

    /// The owners to send the target to. Each is named once.
    pub fn take_repairs(&mut self) -> Vec<ServerIndex> {
        std::mem::take(&mut self.repairs)
    }

    /// The owners that are known to hold the target.
    pub fn holders(&self) -> impl Iterator<Item = ServerIndex> {
        let holds = self.replies.iter().filter(|(_, reply)| matches!(reply, Reply::Holds));
        holds.map(|(&server, _)| server)
    }

    /// Every owner with its answer: ok when it replied.
    pub fn answers(&self) -> impl Iterator<Item = (ServerIndex, Answer<&E>)> {
        self.replies.iter().map(|(&server, reply)| {
            let answer = match reply {
                Reply::Waiting => Answer::Waiting,
                Reply::Replied(_) | Reply::Stale | Reply::Holds => Answer::Ok,
                Reply::Failed(reason) | Reply::RepairFailed(reason) => Answer::Failed(reason),
            };
            (server, answer)
        })
    }

    /// Fixes the target at the `r`-th reply, then tells holders from stale owners.
    fn settle(&mut self) {
        if self.target.is_none() {
            let stood_in = |owner| match self.stand_ins.get(owner)? {
                StandIn::Asked => None,
                StandIn::Done(_, record) => Some(record),
            };
            let slots = self.replies.iter().map(|(owner, reply)| (reply.record(), stood_in(owner)));
            let filled: Vec<_> = slots.filter(|(own, other)| own.or(*other).is_some()).collect();
            if filled.len() >= self.needed {
                let mut merged = Record::new();
                filled.iter().flat_map(|(own, other)| own.iter().chain(other)).for_each(|r| merged.merge(r));
                self.target = Some(merged);
            }
        }
        let Some(target) = &self.target else { return };
        for (&server, reply) in &mut self.replies {
            let Some(record) = reply.record() else { continue };
            if record.includes(target) {
                *reply = Reply::Holds;
            } else {
                *reply = Reply::Stale;
                self.repairs.push(server);
            }
        }
    }
}

impl<E> Reply<E> {
    fn record(&self) -> Option<&Record> {
        match self {
            Self::Replied(record) => Some(record),
            Self::Waiting | Self::Stale | Self::Holds | Self::Failed(_) | Self::RepairFailed(_) => None,
        }
    }
}
