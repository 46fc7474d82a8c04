//! Drives one request over the owners of a key (DeCandia et al. 2007, §4.5–4.6).
//!
//! The decisions are the folds of `dkvs_core::quorum`; the code here sends what they ask for, to all owners at once,
//! and feeds them the answers as they come. The client is answered at the W-th or R-th; what is still under way then
//! goes on in the background until the request's deadline, if there is room for it there.
//!
//! ```text
//!   put   event at this server ──> record to the other owners ──> W hold it ──┬──> answer
//!         without a context, owners that held values it had not heard of:     └──> second event, once more to all
//!   get   this server's record ──> "send yours unless it is this one" ──> R agree, or are made to ──> answer
//! ```
//!
//! In a sloppy request the slot of an owner that is not seen up, fails, or says nothing for a while is offered to the next
//! server that may stand in for it ([`Participants`]). The owner is asked all the same. A server that does not own the key
//! coordinates a sloppy put itself when none of the owners does: it makes the event in a hint ([`crate::hints`]), and the
//! others get the record as always.
//!
//! What it leaves out: it asks all owners every time, also those that are thought to be down. Whoever answers counts. A
//! stand-in that has not answered when the client is answered is not waited for: this server keeps hints for all owners that
//! have not acknowledged, whoever else does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::hlc::WallMs;
use dkvs_core::limits::{KEY_LEN_MAX, TTL_MS_MAX};
use dkvs_core::participants::Participants;
use dkvs_core::quorum::{Answer as OwnerState, Progress, Quorum, ReadQuorum, WriteQuorum};
use dkvs_core::record::{Body, Record, RecordHash, Sibling};
use dkvs_core::ring::{Ring, RingId, ServerIndex};
use dkvs_core::version::{Dot, VersionVector};
use dkvs_net::{Answered, CallError, Endpoint, Gauge, Patience, Socket, Validity};
use dkvs_proto::context;
use dkvs_proto::message::client::{
    ClientAnswer, ClientRequest, Failure, Get, GetDone, OwnerAnswer, Put, PutBody, PutDone, QuorumMissed,
    StandIn, Token,
};
use dkvs_proto::message::reap::ReapRequest;
use dkvs_proto::message::replica::{Cause, ReplicaAnswer, ReplicaRequest};
use dkvs_proto::message::{Answer, Durability, Refusal, Request};
use dkvs_proto::record::fits;
use dkvs_storage::{Store, StoreError};
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::anti_entropy::AntiEntropy;
use crate::clock::Clock;
use crate::failure_detector::FailureDetector;
use crate::hints::{HintChange, Target};
use crate::reaping::UnderWay;
use crate::replica::{Replica, ReplicaError, Terms};
use crate::writer::{ClientWrite, TOO_MANY_VERSIONS};

/// Part of a request's time kept back, so that the client still hears who did not answer.
const REPORT_SHARE: u32 = 10;
const REPORT_MAX: Duration = Duration::from_millis(100);

/// Part of a request's time after which an owner that shows no sign of life is passed over when forwarding, and others are
/// asked to stand in for owners that have not answered.
const SILENCE_SHARE: u32 = 4;
const SILENCE_MAX: Duration = Duration::from_millis(250);

/// Pause before a hint that the store could not take is written again.
const HINT_RETRY: Duration = Duration::from_secs(1);

/// The same while a request waits for it, and how often it is tried then.
const HINT_NOW_RETRY: Duration = Duration::from_millis(20);
const HINT_TRIES: u32 = 4;

/// How long owners may take to acknowledge a repair after the answer.
const LATE_REPAIR_MAX: Duration = Duration::from_secs(1);

/// Keys that are repaired at one time after their gets were answered. More are left to later gets.
const LATE_REPAIRS_MAX: usize = 1_024;

/// What a call under way holds beside the key and the values: its task, its place in tables, versions.
const CALL_LEN: usize = 1_024;

/// Coordinates requests on one server.
pub(crate) struct Coordinator<S: Socket, T> {
    pub(crate) ring: Arc<Ring>,
    pub(crate) me: ServerIndex,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) value_len_max: usize,
    pub(crate) timeout_max: Duration,
    pub(crate) endpoint: Endpoint<S>,
    pub(crate) replica: Replica<T>,
    /// Tells what has expired.
    pub(crate) clock: Arc<Clock>,
    /// Who answers.
    pub(crate) detector: FailureDetector,
    /// Who compares with whom.
    pub(crate) anti_entropy: AntiEntropy,
    /// The keys that are being repaired after their gets were answered.
    pub(crate) repairs: LateRepairs,
    /// Bytes held for owners that had not answered when the client was.
    pub(crate) background: Gauge,
    /// What goes on after requests were answered. A stop waits for it.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when a stop has come so far that nobody answers any more.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the server goes without a stop: what goes on is then left as it is.
    pub(crate) killed: CancellationToken,
}

/// What one owner answered, or why it did not.
type FromOwner<A> = (ServerIndex, Result<A, OwnerAnswer>);

/// The keys that are being repaired after their gets were answered: each once.
#[derive(Debug, Default)]
pub(crate) struct LateRepairs(Mutex<BTreeSet<Bytes>>);

/// A key's turn to be repaired, until dropped.
struct Turn<'a>(&'a LateRepairs, Bytes);

impl LateRepairs {
    /// `None` while the key is being repaired, or too many are.
    fn begin(&self, key: &Bytes) -> Option<Turn<'_>> {
        let mut keys = self.keys();
        let is_free = keys.len() < LATE_REPAIRS_MAX && keys.insert(key.clone());
        is_free.then(|| Turn(self, key.clone()))
    }

    fn keys(&self) -> MutexGuard<'_, BTreeSet<Bytes>> {
        // Nothing that can panic runs under this lock, so a poisoned one guards a whole set.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.keys().remove(&self.1);
    }
}

/// A write that owners have missed.
#[derive(Clone)]
struct Missed {
    key: Bytes,
    record: Record,
    durability: Durability,
}

type Writes = FuturesUnordered<BoxFuture<'static, FromOwner<Vec<Dot>>>>;

/// For whom a server was asked to stand in, and what it answered.
type FromStandIn<A> = (ServerIndex, FromOwner<A>);
type StandInWrites = FuturesUnordered<BoxFuture<'static, FromStandIn<Vec<Dot>>>>;

/// Who takes part in one request.
#[derive(Clone)]
struct Cast {
    participants: Participants,
    is_sloppy: bool,
    /// Owners that were found not to answer while the request was passed on.
    silent: BTreeSet<ServerIndex>,
    /// The owner for which this server stands in.
    mine: Option<ServerIndex>,
    /// When others are asked to stand in for owners that have not answered by then.
    impatient_from: Instant,
    /// Held as long as the request has records of its key at hand.
    under_way: Arc<UnderWay>,
}

impl Cast {
    fn owners(&self) -> &[ServerIndex] {
        self.participants.owners()
    }
}

/// What came of passing a put on.
enum Forwarded {
    Answered(ClientAnswer),
    /// No owner that was tried will begin it any more; whether one of them may have done it.
    InVain(Failure, bool),
    /// One of them may.
    Unknown(Failure),
}

impl<S: Socket, T: Store> Coordinator<S, T> {
    pub(crate) async fn handle(self: &Arc<Self>, request: ClientRequest, validity: Validity) -> ClientAnswer {
        let outcome = match request {
            ClientRequest::Put(put) => self.put(put, validity).await,
            ClientRequest::Get(get) => self.get(get).await,
        };
        outcome.unwrap_or_else(ClientAnswer::Failed)
    }

    /// The other servers of the ring.
    pub(crate) fn peers(&self) -> Vec<ServerIndex> {
        self.ring.servers().indices().filter(|&server| server != self.me).collect()
    }

    /// Checks that a request was made for the ring this server is on.
    pub(crate) fn check_ring(&self, ring: RingId) -> Result<(), Refusal> {
        if ring == self.ring.id() { Ok(()) } else { Err(Refusal::WrongRing { ring: self.ring.id() }) }
    }

    /// Checks that a request can be served here.
    pub(crate) fn check(&self, ring: RingId, key: &[u8]) -> Result<(), Refusal> {
        self.check_ring(ring)?;
        if key.is_empty() {
            return Err(Refusal::Invalid("the key is empty; it must have at least 1 byte".into()));
        }
        if key.len() > KEY_LEN_MAX {
            return Err(too_long("key", key.len(), KEY_LEN_MAX));
        }
        Ok(())
    }

    /// Checks that this server may stand in for another; says whom a hint for that one is for.
    pub(crate) fn check_stand_in(
        &self,
        ring: RingId,
        key: &[u8],
        owner: ServerIndex,
    ) -> Result<Target, Refusal> {
        self.check(ring, key)?;
        if owner == self.me || owner.as_usize() >= self.ring.servers().len() {
            return Err(Refusal::Invalid("there is no other server of this number to stand in for".into()));
        }
        Ok(self.target(owner))
    }

    /// Checks a step towards forgetting tombstones.
    pub(crate) fn check_reap(&self, request: &ReapRequest) -> Result<(), Refusal> {
        self.check_ring(request.ring)?;
        if request.from == self.me || request.from.as_usize() >= self.ring.servers().len() {
            return Err(Refusal::Invalid("who wants to forget is no other server of the ring".into()));
        }
        request.keys.iter().try_for_each(|asked| self.check(request.ring, &asked.key))
    }

    fn owners(&self, key: &[u8], n: u16, r: u16, w: u16) -> Result<Vec<ServerIndex>, Refusal> {
        let [n, r, w] = [n, r, w].map(usize::from);
        Quorum::with_defaults(self.ring.servers().len(), Some(n), Some(r), Some(w))
            .map_err(|error| Refusal::Invalid(error.to_string()))?;
        Ok(self.ring.owners_of_key(key, n).to_vec())
    }

    /// When to give up, so that the report still reaches the client in time.
    fn deadline(&self, timeout_ms: u32) -> Instant {
        let timeout = Duration::from_millis(timeout_ms.into()).min(self.timeout_max);
        Instant::now() + (timeout - (timeout / REPORT_SHARE).min(REPORT_MAX))
    }

    /// Who takes part in a request for a key: its owners, and if it is sloppy whoever may stand in for them.
    fn cast(&self, key: &Bytes, n: u16, is_sloppy: bool, deadline: Instant) -> Cast {
        let (n, now) = (usize::from(n), Instant::now());
        let participants = if is_sloppy {
            let preference = self.ring.owners_of_key(key, self.ring.servers().len());
            Participants::sloppy(preference, n, self.me)
        } else {
            Participants::strict(self.ring.owners_of_key(key, n))
        };
        let impatient_from = now + (deadline.saturating_duration_since(now) / SILENCE_SHARE).min(SILENCE_MAX);
        let under_way = Arc::new(self.replica.watches().begin(key));
        Cast { participants, is_sloppy, silent: BTreeSet::new(), mine: None, impatient_from, under_way }
    }

    async fn put(self: &Arc<Self>, put: Put, validity: Validity) -> Result<ClientAnswer, Failure> {
        let start = Instant::now();
        self.check(put.ring, &put.key).map_err(Failure::Refused)?;
        let owners = self.owners(&put.key, put.n, 1, put.w).map_err(Failure::Refused)?;
        let deadline = self.deadline(put.timeout_ms);
        let mut cast = self.cast(&put.key, put.n, put.sloppy, deadline);
        if owners.contains(&self.me) {
            return self.put_here(put, validity, &cast, deadline, start).await;
        }
        match self.forward(put.clone(), &owners, deadline, validity.clone()).await {
            Forwarded::Answered(answer) => Ok(answer),
            Forwarded::InVain(in_vain, maybe_done) if put.sloppy && !put.forwarded => {
                cast.silent.extend(&owners);
                cast.mine = owners.first().copied();
                // This server comes first of all that may stand in.
                let _me = cast.mine.and_then(|owner| cast.participants.stand_in_for(owner, |_| true));
                match self.put_here(put, validity, &cast, deadline, start).await {
                    // It speaks for itself alone.
                    Err(Failure::Refused(_)) if maybe_done => Err(in_vain),
                    done => done,
                }
            }
            Forwarded::InVain(failure, _) | Forwarded::Unknown(failure) => Err(failure),
        }
    }

    /// Coordinates a put, as an owner or in the place of one.
    async fn put_here(
        self: &Arc<Self>,
        put: Put,
        validity: Validity,
        cast: &Cast,
        deadline: Instant,
        start: Instant,
    ) -> Result<ClientAnswer, Failure> {
        check_ttl(&put).map_err(Failure::Refused)?;
        let body = match put.body {
            PutBody::Value(value) if value.len() > self.value_len_max => {
                return Err(Failure::Refused(too_long("value", value.len(), self.value_len_max)));
            }
            PutBody::Value(value) => Body::Value(value),
            PutBody::Tombstone => Body::Tombstone,
        };
        let seen = put.context.map(|token| context::decode(&put.key, &token.0)).transpose();
        let seen = seen.map_err(|_| Failure::Refused(Refusal::BadContext))?;
        let blind = seen.is_none();
        let cause = if body == Body::Tombstone { Cause::Upkeep } else { Cause::Put };
        let terms = Terms { durability: put.durability, cause };

        let write = ClientWrite { op: put.op, body, ttl_ms: put.ttl_ms };
        let hint_for = cast.mine.map(|owner| self.target(owner));
        let (key, durability) = (put.key.clone(), terms.durability);
        let event = self.replica.event_in(hint_for, key, seen, write, validity.clone(), durability);
        let mut event = match timeout_at(deadline, event).await {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return Err(self.own_failure(error, put.w, start)),
            Err(_) => return Err(self.too_late(put.w, start)),
        };
        let mut quorum = self.replicate(&put.key, &event.record, cast, put.w, deadline, terms).await;
        if blind && quorum.progress() == Progress::Reached && !quorum.missed().is_empty() {
            // Others held values that this put is to replace and had not heard of.
            let missed = quorum.missed().clone();
            let (key, first) = (put.key.clone(), event.clone());
            let second = self.replica.supersede(hint_for, key, first, missed, validity, terms.durability);
            match timeout_at(deadline, second).await {
                Ok(Ok(Some(second))) => {
                    event = second;
                    quorum = self.replicate(&put.key, &event.record, cast, put.w, deadline, terms).await;
                }
                // Somebody has read this put's value and replaced it: it is held, and over.
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(self.unknown(error, put.w, start)),
                Err(_) => return Err(self.too_late(put.w, start)),
            }
        }
        let stand_ins = stand_ins(quorum.stand_ins());
        if quorum.progress() != Progress::Reached {
            return Err(missed(put.w, report(quorum.answers()), stand_ins, start));
        }
        let acked = quorum.answers().filter(|(_, answer)| **answer == OwnerState::Ok);
        Ok(ClientAnswer::Put(PutDone {
            acked: acked.map(|(server, _)| server).collect(),
            context: Token(context::encode(&put.key, &event.seen)),
            stand_ins,
        }))
    }

    /// Sends `record` to the other owners and waits until `w` slots are filled, the one of this server included. The rest goes
    /// on in the background, and whoever has not acknowledged it by the deadline gets a hint.
    async fn replicate(
        self: &Arc<Self>,
        key: &Bytes,
        record: &Record,
        cast: &Cast,
        w: u16,
        deadline: Instant,
        terms: Terms,
    ) -> WriteQuorum<OwnerAnswer> {
        let mut quorum = WriteQuorum::new(cast.owners(), w.into());
        let mut participants = cast.participants.clone();
        match cast.mine {
            None => _ = quorum.acked(self.me, &[]),
            Some(owner) => {
                quorum.stand_in_asked(owner);
                quorum.stood_in(owner, self.me, &[]);
            }
        }
        let others = cast.owners().iter().filter(|&&owner| owner != self.me);
        let mut writes: Writes = others
            .clone()
            .map(|&owner| self.clone().merge_at(owner, key.clone(), record.clone(), deadline, terms))
            .collect();
        let mut stand_ins = StandInWrites::new();
        let mut asked: BTreeSet<ServerIndex> = cast.mine.into_iter().collect();
        // Finds the next server to stand in for an owner, if there is one.
        let mut stand_in = |owner, quorum: &mut WriteQuorum<OwnerAnswer>, stand_ins: &StandInWrites| {
            let Some(server) = participants.stand_in_for(owner, |server| self.detector.is_up(server)) else {
                return quorum.nobody_stands_in(owner);
            };
            quorum.stand_in_asked(owner);
            let (key, record) = (key.clone(), record.clone());
            stand_ins.push(self.clone().stand_in_at(server, owner, key, record, deadline, terms));
            quorum.progress()
        };
        for &owner in others.clone().filter(|&&owner| self.is_away(owner, cast)) {
            if quorum.progress() == Progress::Pending && asked.insert(owner) {
                stand_in(owner, &mut quorum, &stand_ins);
            }
        }
        let mut is_patient = cast.is_sloppy;
        while quorum.progress() == Progress::Pending {
            tokio::select! {
                biased;
                Some((owner, answer)) = writes.next() => match answer {
                    Ok(missed) => _ = quorum.acked(owner, &missed),
                    Err(reason) => {
                        if asked.insert(owner) {
                            stand_in(owner, &mut quorum, &stand_ins);
                        }
                        quorum.failed(owner, reason);
                    }
                },
                Some((owner, (server, answer))) = stand_ins.next() => match answer {
                    Ok(missed) => _ = quorum.stood_in(owner, server, &missed),
                    Err(_) => _ = stand_in(owner, &mut quorum, &stand_ins),
                },
                () = sleep_until(cast.impatient_from), if is_patient => {
                    is_patient = false;
                    let waiting = quorum.answers().filter(|(_, answer)| **answer == OwnerState::Waiting);
                    let waiting: Vec<_> = waiting.map(|(owner, _)| owner).collect();
                    for owner in waiting.into_iter().filter(|&owner| asked.insert(owner)) {
                        stand_in(owner, &mut quorum, &stand_ins);
                    }
                }
                else => break,
            }
        }
        let (mut failed, mut waiting) = (Vec::new(), BTreeSet::new());
        // For the owner for which this server stands in, the record is in a hint already.
        for (owner, answer) in quorum.answers().filter(|(owner, _)| cast.mine != Some(*owner)) {
            match answer {
                OwnerState::Ok => {}
                OwnerState::Failed(_) => failed.push(owner),
                OwnerState::Waiting => drop(waiting.insert(owner)),
            }
        }
        if failed.is_empty() && waiting.is_empty() {
            return quorum;
        }
        let len = (failed.len() + waiting.len()) * call_len(key, record);
        let missed = Missed { key: key.clone(), record: record.clone(), durability: terms.durability };
        match Gauge::try_hold(Background(self.clone()), len) {
            Some(room) => {
                let (coordinator, under_way) = (self.clone(), cast.under_way.clone());
                self.go_on(async move {
                    coordinator.see_to(failed, waiting, writes, &missed).await;
                    drop((room, under_way));
                });
            }
            // The request stays until its hints are written. It is not to wait for space on a disk.
            None => {
                drop(writes);
                join_all(failed.into_iter().chain(waiting).map(|owner| self.hint_now(owner, &missed))).await;
            }
        }
        quorum
    }

    /// Whether others are asked at once to stand in for an owner.
    fn is_away(&self, owner: ServerIndex, cast: &Cast) -> bool {
        cast.silent.contains(&owner) || !self.detector.is_up(owner)
    }

    /// Does something after the request was answered.
    fn go_on(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let coordinator = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = coordinator.killed.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Waits for the owners that have not acknowledged a record, and keeps it for those that do not.
    async fn see_to(
        &self,
        failed: Vec<ServerIndex>,
        mut waiting: BTreeSet<ServerIndex>,
        mut writes: Writes,
        missed: &Missed,
    ) {
        for &owner in &failed {
            self.hint(owner, missed).await;
        }
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                answer = writes.next() => match answer {
                    None => break,
                    Some((owner, answer)) => {
                        if waiting.remove(&owner) && answer.is_err() {
                            self.hint(owner, missed).await;
                        }
                    }
                }
            }
        }
        for owner in waiting {
            self.hint(owner, missed).await;
        }
    }

    /// Whom hints for a server are for.
    pub(crate) fn target(&self, server: ServerIndex) -> Target {
        Target::of(&self.ring.servers()[server].name)
    }

    /// Keeps a record for an owner that has not acknowledged it. What the store cannot take now is tried again until the
    /// server ends or the store takes nothing more.
    async fn hint(&self, owner: ServerIndex, missed: &Missed) {
        loop {
            if self.killed.is_cancelled() {
                return;
            }
            let Err(error) = self.try_hint(owner, missed).await else { return };
            let is_over = self.stopping.is_cancelled() || self.replica.health().poisoned.is_some();
            if is_over {
                return self.not_kept(owner, &error);
            }
            tracing::debug!(?owner, %error, "a write that an owner missed cannot be kept for it now");
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => {}
                () = sleep(HINT_RETRY) => {}
            }
        }
    }

    /// As [`Self::hint`], for a request that waits for it: after a bad read it is tried a few times.
    async fn hint_now(&self, owner: ServerIndex, missed: &Missed) {
        let mut tries = 1;
        while let Err(error) = self.try_hint(owner, missed).await {
            let may_pass = matches!(error, ReplicaError::Storage(StoreError::Io { .. }));
            if !may_pass || tries == HINT_TRIES {
                return self.not_kept(owner, &error);
            }
            tries += 1;
            sleep(HINT_NOW_RETRY).await;
        }
    }

    async fn try_hint(&self, owner: ServerIndex, missed: &Missed) -> Result<(), ReplicaError> {
        let Missed { key, record, durability } = missed.clone();
        let target = self.target(owner);
        let change = HintChange::Keep { target, key, record };
        self.replica.hint(change, durability).await?;
        self.detector.news(owner).notify_one();
        if self.replica.hints_kept().tally(target).dirty > 0 {
            self.anti_entropy.wake(owner);
        }
        Ok(())
    }

    fn not_kept(&self, owner: ServerIndex, error: &ReplicaError) {
        let count = self.replica.hints_kept().not_kept();
        tracing::warn!(?owner, %error, count, "a write that an owner missed cannot be kept for it");
    }

    /// Has `owner` merge a record and make it durable.
    pub(crate) fn merge_at(
        self: Arc<Self>,
        owner: ServerIndex,
        key: Bytes,
        record: Record,
        deadline: Instant,
        terms: Terms,
    ) -> BoxFuture<'static, FromOwner<Vec<Dot>>> {
        Box::pin(async move {
            if owner == self.me {
                let merging = self.replica.merge(key, record, terms, Validity::unlimited());
                let merged = timeout_at(deadline, merging).await;
                return (owner, own_answer(merged.ok()));
            }
            let Terms { durability, cause } = terms;
            let request = ReplicaRequest::Merge { ring: self.ring.id(), key, record, durability, cause };
            (owner, merged(self.ask(owner, request, deadline).await))
        })
    }

    /// Has `server` keep a record for `owner`, and count for it.
    fn stand_in_at(
        self: Arc<Self>,
        server: ServerIndex,
        owner: ServerIndex,
        key: Bytes,
        record: Record,
        deadline: Instant,
        terms: Terms,
    ) -> BoxFuture<'static, FromStandIn<Vec<Dot>>> {
        Box::pin(async move {
            let (ring, Terms { durability, cause }) = (self.ring.id(), terms);
            let request = ReplicaRequest::MergeHint { ring, key, record, owner, durability, cause };
            (owner, (server, merged(self.ask(server, request, deadline).await)))
        })
    }

    /// Has `server` send what it keeps of a key for others, unless it is what is `known` here.
    fn hints_at(
        self: Arc<Self>,
        server: ServerIndex,
        owner: ServerIndex,
        key: Bytes,
        known: (RecordHash, Record),
        deadline: Instant,
    ) -> BoxFuture<'static, FromStandIn<Record>> {
        Box::pin(async move {
            if server == self.me {
                let kept = self.replica.fetch_hints(&key);
                return (owner, (server, kept.map_err(|error| OwnerAnswer::Refused(error.refusal()))));
            }
            let request = ReplicaRequest::FetchHints { ring: self.ring.id(), key, known: known.0 };
            (owner, (server, fetched(self.ask(server, request, deadline).await, known.1)))
        })
    }

    /// Has `owner` send its record, unless it is the one `known` here.
    pub(crate) fn fetch_at(
        self: Arc<Self>,
        owner: ServerIndex,
        key: Bytes,
        known: (RecordHash, Record),
        deadline: Instant,
    ) -> BoxFuture<'static, FromOwner<Record>> {
        Box::pin(async move {
            let request = ReplicaRequest::Fetch { ring: self.ring.id(), key, known: known.0 };
            (owner, fetched(self.ask(owner, request, deadline).await, known.1))
        })
    }

    pub(crate) async fn ask(
        &self,
        owner: ServerIndex,
        request: ReplicaRequest,
        deadline: Instant,
    ) -> Result<ReplicaAnswer, OwnerAnswer> {
        let to = self.addresses[owner.as_usize()];
        let began = Instant::now();
        let answer = self.endpoint.call(to, &Request::Replica(request), Patience::until(deadline)).await;
        self.learn(owner, began, answer.as_ref().err());
        match answer {
            Ok(Answer::Replica(answer)) => Ok(answer),
            Ok(Answer::Client(_) | Answer::Admin(_)) => {
                Err(OwnerAnswer::Refused(Refusal::Invalid("answered another question".into())))
            }
            Err(CallError::Overloaded { .. }) => Err(OwnerAnswer::Refused(Refusal::Overloaded)),
            Err(error) => {
                tracing::debug!(%to, %error, "an owner did not answer");
                Err(OwnerAnswer::TimedOut)
            }
        }
    }

    /// Tells the failure detector what came of a request that began then.
    fn learn(&self, owner: ServerIndex, began: Instant, failure: Option<&CallError>) {
        if self.detector.learn(owner, began, failure) {
            self.anti_entropy.wake(owner);
        }
    }

    /// Passes a put to the first owner that shows a sign of life, beginning with those that answered lately; a sloppy one to
    /// those only. It is not passed to a second owner while the first may still begin it.
    async fn forward(
        &self,
        mut put: Put,
        owners: &[ServerIndex],
        deadline: Instant,
        validity: Validity,
    ) -> Forwarded {
        if put.forwarded {
            return Forwarded::InVain(Failure::Refused(Refusal::NotOwner), false);
        }
        let start = Instant::now();
        put.forwarded = true;
        let silence = ((deadline - start) / SILENCE_SHARE).min(SILENCE_MAX);
        let mut tried = Vec::new();
        let (mut maybe_done, mut may_begin_later) = (false, false);
        let mut owners = self.detector.by_liveness(owners);
        owners.retain(|&owner| !put.sloppy || self.detector.is_up(owner));
        for owner in owners {
            let left = deadline.saturating_duration_since(Instant::now());
            put.timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            let to = self.addresses[owner.as_usize()];
            let request = Request::Client(ClientRequest::Put(put.clone()));
            let within = Some(validity.clone());
            let patience = Patience { deadline, silence: Some(silence), within, passed_on: false };
            let began = Instant::now();
            let answer = self.endpoint.ask(to, &request, patience).await;
            if answer.is_ok() {
                self.learn(owner, began, None);
            }
            may_begin_later = match answer {
                // It speaks for itself alone, and for the process that it is now.
                Ok(Answered {
                    answer: Answer::Client(ClientAnswer::Failed(Failure::Refused(reason))),
                    maybe_done_before,
                }) if maybe_done || maybe_done_before => {
                    tried.push((owner, OwnerAnswer::Refused(reason)));
                    may_begin_later = true;
                    break;
                }
                Ok(Answered { answer: Answer::Client(answer), .. }) => return Forwarded::Answered(answer),
                Ok(_) => {
                    maybe_done = true;
                    false
                }
                Err(error) => {
                    maybe_done |= !error.nothing_was_done();
                    error.may_begin_later()
                }
            };
            tried.push((owner, OwnerAnswer::TimedOut));
            if may_begin_later {
                break;
            }
        }
        let failure = missed(put.w, tried, Vec::new(), start);
        if may_begin_later { Forwarded::Unknown(failure) } else { Forwarded::InVain(failure, maybe_done) }
    }

    /// This server's own part failed, before anything left for another. Only of a commit that failed nobody knows what is
    /// left.
    fn own_failure(&self, error: ReplicaError, needed: u16, start: Instant) -> Failure {
        match error {
            ReplicaError::Storage(StoreError::Unknown { .. }) => self.unknown(error, needed, start),
            ReplicaError::Refused(_) | ReplicaError::Storage(_) | ReplicaError::Damaged => {
                Failure::Refused(error.refusal())
            }
        }
    }

    /// This server could not do its part of a write, of which others may hold something.
    fn unknown(&self, error: ReplicaError, needed: u16, start: Instant) -> Failure {
        missed(needed, vec![(self.me, OwnerAnswer::Refused(error.refusal()))], Vec::new(), start)
    }

    /// This server has not done its part of a write in time, and may still do it.
    fn too_late(&self, needed: u16, start: Instant) -> Failure {
        missed(needed, vec![(self.me, OwnerAnswer::TimedOut)], Vec::new(), start)
    }

    async fn get(self: &Arc<Self>, get: Get) -> Result<ClientAnswer, Failure> {
        let start = Instant::now();
        self.check(get.ring, &get.key).map_err(Failure::Refused)?;
        self.owners(&get.key, get.n, get.r, 1).map_err(Failure::Refused)?;
        let deadline = self.deadline(get.timeout_ms);
        let cast = self.cast(&get.key, get.n, get.sloppy, deadline);
        let mut read = Read::start(self.clone(), get.key.clone(), cast, get.r, deadline);
        read.run_until(|progress| progress != Progress::Pending).await;
        let (Progress::Reached, Some(target)) = (read.quorum.progress(), read.quorum.target()) else {
            let owners = read.quorum.answers().map(|(server, answer)| (server, owner_answer(answer)));
            return Err(missed(get.r, owners.collect(), stand_ins(read.quorum.stand_ins()), start));
        };
        if !fits(target) {
            return Err(Failure::Refused(Refusal::Invalid(TOO_MANY_VERSIONS.into())));
        }
        let done = get_done(&get, target, &read.quorum, self.clock.now());
        let len = read.under_way() * call_len(&get.key, target);
        if len > 0
            && let Some(room) = Gauge::try_hold(Background(self.clone()), len)
        {
            let stopping = self.stopping.clone();
            self.go_on(async move {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => {}
                    () = read.repair_late() => {}
                }
                drop(room);
            });
        }
        Ok(ClientAnswer::Get(done))
    }
}

/// One get under way.
struct Read<S: Socket, T> {
    coordinator: Arc<Coordinator<S, T>>,
    key: Bytes,
    deadline: Instant,
    quorum: ReadQuorum<OwnerAnswer>,
    fetches: FuturesUnordered<BoxFuture<'static, FromOwner<Record>>>,
    repairs: Writes,
    cast: Cast,
    /// What is at hand here, so that it need not be sent.
    known: (RecordHash, Record),
    /// Owners for which somebody was asked to stand in.
    asked: BTreeSet<ServerIndex>,
    stand_ins: FuturesUnordered<BoxFuture<'static, FromStandIn<Record>>>,
}

impl<S: Socket, T: Store> Read<S, T> {
    /// Asks every owner; this server's own record is at hand and tells the others what need not be sent.
    fn start(coordinator: Arc<Coordinator<S, T>>, key: Bytes, cast: Cast, r: u16, deadline: Instant) -> Self {
        let owners = cast.owners().to_vec();
        let mut quorum = ReadQuorum::new(&owners, r.into());
        let (mut own, mut is_unreadable) = (Record::new(), false);
        if owners.contains(&coordinator.me) {
            match coordinator.replica.fetch(&key) {
                Ok(record) => {
                    own = record.clone();
                    quorum.replied(coordinator.me, record);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read the own record");
                    is_unreadable = true;
                    quorum.failed(coordinator.me, OwnerAnswer::Refused(error.refusal()));
                }
            }
        }
        let fetches = FuturesUnordered::new();
        let known = (own.hash(), own);
        // With R = 1 the own record is the answer, and asking others would only cost.
        let goes_on = quorum.progress() == Progress::Pending;
        if goes_on {
            for &owner in owners.iter().filter(|&&owner| owner != coordinator.me) {
                fetches.push(coordinator.clone().fetch_at(owner, key.clone(), known.clone(), deadline));
            }
        }
        let (asked, repairs, stand_ins) = Default::default();
        let mut read =
            Self { coordinator, key, deadline, quorum, fetches, repairs, cast, known, asked, stand_ins };
        for owner in owners.into_iter().filter(|_| goes_on) {
            let is_away = if owner == read.coordinator.me {
                is_unreadable
            } else {
                read.coordinator.is_away(owner, &read.cast)
            };
            if is_away {
                read.stand_in_once(owner);
            }
        }
        read
    }

    fn under_way(&self) -> usize {
        self.fetches.len() + self.repairs.len() + self.stand_ins.len()
    }

    /// Asks somebody to stand in for an owner, if nobody was asked yet.
    fn stand_in_once(&mut self, owner: ServerIndex) {
        if self.asked.insert(owner) {
            self.stand_in(owner);
        }
    }

    /// Asks the next server to stand in for an owner, if there is one.
    fn stand_in(&mut self, owner: ServerIndex) {
        let Self { coordinator, cast, .. } = self;
        let is_up = |server| coordinator.detector.is_up(server);
        let Some(server) = cast.participants.stand_in_for(owner, is_up) else {
            self.quorum.nobody_stands_in(owner);
            return;
        };
        self.quorum.stand_in_asked(owner);
        let (coordinator, key, known) = (self.coordinator.clone(), self.key.clone(), self.known.clone());
        self.stand_ins.push(coordinator.hints_at(server, owner, key, known, self.deadline));
    }

    /// Feeds answers to the fold and sends the repairs it asks for, until `enough` or nothing is under way.
    async fn run_until(&mut self, enough: impl Fn(Progress) -> bool) {
        let mut is_patient = self.cast.is_sloppy;
        self.send_repairs();
        while !enough(self.quorum.progress()) {
            tokio::select! {
                biased;
                Some((owner, answer)) = self.repairs.next() => match answer {
                    Ok(_) => _ = self.quorum.repaired(owner),
                    Err(reason) => self.failed(owner, reason),
                },
                Some((owner, answer)) = self.fetches.next() => match answer {
                    Ok(record) => _ = self.quorum.replied(owner, record),
                    Err(reason) => self.failed(owner, reason),
                },
                Some((owner, (server, answer))) = self.stand_ins.next() => match answer {
                    Ok(record) => _ = self.quorum.stood_in(owner, server, record),
                    Err(_) => self.stand_in(owner),
                },
                () = sleep_until(self.cast.impatient_from), if is_patient && self.under_way() > 0 => {
                    is_patient = false;
                    let waiting = self.quorum.answers().filter(|(_, answer)| *answer == OwnerState::Waiting);
                    let waiting: Vec<_> = waiting.map(|(owner, _)| owner).collect();
                    waiting.into_iter().for_each(|owner| self.stand_in_once(owner));
                }
                else => return,
            };
            self.send_repairs();
        }
    }

    fn failed(&mut self, owner: ServerIndex, reason: OwnerAnswer) {
        self.stand_in_once(owner);
        self.quorum.failed(owner, reason);
    }

    /// After the answer: waits for those that have not replied, then has everybody who is found to lack something take all
    /// that was found. One repair of a key at a time: what another one is at is left to it, or to the next get.
    async fn repair_late(mut self) {
        let (mut late, mut kept) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                biased;
                Some((owner, answer)) = self.repairs.next() => match answer {
                    Ok(_) => self.quorum.repaired(owner),
                    Err(reason) => self.quorum.failed(owner, reason),
                },
                Some((owner, answer)) = self.fetches.next() => {
                    late.extend(answer.ok().map(|record| (owner, record)));
                    continue;
                }
                Some((_, (_, answer))) = self.stand_ins.next() => {
                    kept.extend(answer.ok());
                    continue;
                }
                else => break,
            };
        }
        let Some(target) = self.quorum.target() else { return };
        let mut all = target.clone();
        late.iter().map(|(_, record)| record).chain(&kept).for_each(|record| all.merge(record));
        let held = self.quorum.holders().map(|owner| (owner, target));
        let held = held.chain(late.iter().map(|(owner, record)| (*owner, record)));
        let stale: Vec<_> =
            held.filter(|(_, record)| !record.includes(&all)).map(|(owner, _)| owner).collect();
        if stale.is_empty() || !fits(&all) {
            return;
        }
        let Some(_turn) = self.coordinator.repairs.begin(&self.key) else { return };
        let deadline = Instant::now() + LATE_REPAIR_MAX;
        let merge = |owner| {
            self.coordinator.clone().merge_at(owner, self.key.clone(), all.clone(), deadline, Terms::UPKEEP)
        };
        stale.into_iter().map(merge).collect::<Writes>().for_each(|_| async {}).await;
    }

    fn send_repairs(&mut self) {
        for owner in self.quorum.take_repairs() {
            // What no owner can read is not sent; the get is refused.
            let Some(target) = self.quorum.target().filter(|target| fits(target)).cloned() else { return };
            let coordinator = self.coordinator.clone();
            self.repairs.push(coordinator.merge_at(
                owner,
                self.key.clone(),
                target,
                self.deadline,
                Terms::UPKEEP,
            ));
        }
    }
}

/// What a call holds until it is answered: the record, and the bytes it is sent as.
fn call_len(key: &Bytes, record: &Record) -> usize {
    CALL_LEN + key.len() + 2 * record.value_len()
}

/// The gauge of what goes on in the background.
struct Background<S: Socket, T>(Arc<Coordinator<S, T>>);

impl<S: Socket, T> Deref for Background<S, T> {
    type Target = Gauge;

    fn deref(&self) -> &Gauge {
        &self.0.background
    }
}

/// What a client is shown of a record at this time. The context covers also what is hidden.
fn get_done(get: &Get, target: &Record, quorum: &ReadQuorum<OwnerAnswer>, now: WallMs) -> GetDone {
    let values = target.values(now);
    let sent = if get.siblings { values.len() } else { 1 };
    let answered = quorum.answers().filter(|(_, answer)| *answer == OwnerState::Ok);
    GetDone {
        siblings: u32::try_from(values.len()).unwrap_or(u32::MAX),
        values: values.into_iter().take(sent).map(put_body).collect(),
        context: seen(&get.key, target.vv()),
        answered: answered.map(|(server, _)| server).collect(),
        stand_ins: stand_ins(quorum.stand_ins()),
    }
}

fn put_body(sibling: &Sibling) -> PutBody {
    match &sibling.write.body {
        Body::Value(value) => PutBody::Value(value.clone()),
        Body::Tombstone => PutBody::Tombstone,
    }
}

fn seen(key: &[u8], vv: &VersionVector) -> Option<Token> {
    (!vv.is_empty()).then(|| Token(context::encode(key, vv)))
}

fn check_ttl(put: &Put) -> Result<(), Refusal> {
    let is_allowed = |ttl_ms| (1..=TTL_MS_MAX).contains(&ttl_ms) && put.body != PutBody::Tombstone;
    if put.ttl_ms.is_none_or(is_allowed) {
        Ok(())
    } else {
        let reason = format!("only a value expires, after 1 to {TTL_MS_MAX} ms");
        Err(Refusal::Invalid(reason))
    }
}

fn too_long(what: &str, len: usize, len_max: usize) -> Refusal {
    Refusal::TooLong { what: what.into(), len: len as u64, len_max: len_max as u64 }
}

fn own_answer<A>(merged: Option<Result<A, ReplicaError>>) -> Result<A, OwnerAnswer> {
    match merged {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error)) => Err(OwnerAnswer::Refused(error.refusal())),
        None => Err(OwnerAnswer::TimedOut),
    }
}

/// What a server answered that was to merge a record.
fn merged(answer: Result<ReplicaAnswer, OwnerAnswer>) -> Result<Vec<Dot>, OwnerAnswer> {
    match answer {
        Ok(ReplicaAnswer::Merged { missed }) => Ok(missed),
        Ok(other) => Err(unexpected(other)),
        Err(reason) => Err(reason),
    }
}

/// What a server answered that was to send a record, unless it is the one known here.
fn fetched(answer: Result<ReplicaAnswer, OwnerAnswer>, known: Record) -> Result<Record, OwnerAnswer> {
    match answer {
        Ok(ReplicaAnswer::Same) => Ok(known),
        Ok(ReplicaAnswer::Record(record)) => Ok(record),
        Ok(other) => Err(unexpected(other)),
        Err(reason) => Err(reason),
    }
}

fn unexpected(answer: ReplicaAnswer) -> OwnerAnswer {
    match answer {
        ReplicaAnswer::Refused(refusal) => OwnerAnswer::Refused(refusal),
        ReplicaAnswer::Incomplete(_) => OwnerAnswer::Refused(Refusal::Damaged),
        ReplicaAnswer::Merged { .. }
        | ReplicaAnswer::Same
        | ReplicaAnswer::Record(_)
        | ReplicaAnswer::Repair(_)
        | ReplicaAnswer::Reap(_)
        | ReplicaAnswer::Alive => OwnerAnswer::Refused(Refusal::Invalid("answered another question".into())),
    }
}

fn owner_answer(answer: OwnerState<&OwnerAnswer>) -> OwnerAnswer {
    match answer {
        OwnerState::Waiting => OwnerAnswer::TimedOut,
        OwnerState::Ok => OwnerAnswer::Ok,
        OwnerState::Failed(reason) => reason.clone(),
    }
}

fn report<'a>(
    answers: impl Iterator<Item = (ServerIndex, &'a OwnerState<OwnerAnswer>)>,
) -> Vec<(ServerIndex, OwnerAnswer)> {
    let by_reference = |answer: &'a OwnerState<OwnerAnswer>| match answer {
        OwnerState::Waiting => OwnerState::Waiting,
        OwnerState::Ok => OwnerState::Ok,
        OwnerState::Failed(reason) => OwnerState::Failed(reason),
    };
    answers.map(|(server, answer)| (server, owner_answer(by_reference(answer)))).collect()
}

fn missed(
    needed: u16,
    owners: Vec<(ServerIndex, OwnerAnswer)>,
    stand_ins: Vec<StandIn>,
    start: Instant,
) -> Failure {
    let waited_ms = u32::try_from(start.elapsed().as_millis()).unwrap_or(u32::MAX);
    Failure::Quorum(QuorumMissed { needed, owners, waited_ms, stand_ins })
}

/// As they are told to clients, from the owners and who counts for them.
fn stand_ins(slots: impl Iterator<Item = (ServerIndex, ServerIndex)>) -> Vec<StandIn> {
    slots.map(|(owner, server)| StandIn { server, owner }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_repaired_once_at_a_time_and_not_too_many_are() {
        let repairs = LateRepairs::default();
        let key = |number: usize| Bytes::from(format!("key {number}"));
        let first = repairs.begin(&key(0));
        assert!(first.is_some() && repairs.begin(&key(0)).is_none());
        drop(first);
        let turns: Vec<_> = (0..LATE_REPAIRS_MAX).map(|number| repairs.begin(&key(number))).collect();
        assert!(turns.iter().all(Option::is_some));
        assert!(repairs.begin(&key(LATE_REPAIRS_MAX)).is_none());
    }
}
