//! Forgets tombstones, when nothing is left that they are needed against.
//!
//! A tombstone that is removed while an older value of its key is left anywhere brings that value back: nothing then says that it
//! was deleted. So no age is enough. The first owner of a key asks *all* servers of the ring, in steps, for a proof:
//!
//! ```text
//!   Watch     all hold this record of nothing but tombstones, or nothing, and no hint; from here on, each says if that changes
//!   Fence     what each has under way on the key from before here may have an older value at hand. Nothing that begins later has
//!   pause     what was under way ends; what it sent is not begun any more
//!   Confirm   each has seen the end of all that, for longer than any message lives, and has what it says on disk
//!   Confirm   what arrived somewhere before the others had confirmed would have ended its watch by now
//!   Reap      each removes the record, if it is still that one; the first owner last
//! ```
//! A step begins when all have answered the one before. docs/decisions/0013 has the argument.
//!
//! ```text
//!   tombstones/  partition, key  ->  nothing       written and removed in the commits that change the record
//! ```
//!
//! Invariants:
//! - what is proven stays true: where an older value is nowhere, it comes from nowhere. So a round may end anywhere, and a last step
//!   may come late or twice;
//! - a key that is written meanwhile has another record, and keeps it.
//!
//! What it leaves out: an older copy of a disk that is put back afterwards. Keys that a server is given at its start are never
//! forgotten, as the next start would bring them back. Nothing is while a server is down.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_core::ring::ServerIndex;
use dkvs_net::{Socket, Validity};
use dkvs_proto::message::Refusal;
use dkvs_proto::message::client::OwnerAnswer;
use dkvs_proto::message::reap::{ReapKey, ReapRequest, ReapStep};
use dkvs_proto::message::replica::{ReplicaAnswer, ReplicaRequest};
use dkvs_storage::{ScanLimit, Store, StoreError};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use crate::coordinator::Coordinator;
use crate::damage::is_damage;
use crate::replica::ReplicaError;
use crate::scrub::beyond;
use crate::stored::key_of;

/// Keys of one round, and bytes of them: each is watched by every server until the round ends.
const ROUND_KEYS_MAX: usize = 16_384;
const ROUND_BYTES_MAX: usize = 1 << 20;

/// Keys of one message. The writer looks each of them up.
const MESSAGE_KEYS_MAX: usize = 64;

/// Entries read in one go in search of tombstones, and the pause after them.
const PAGE: ScanLimit = ScanLimit { entries_max: 256, bytes_max: 64 << 10 };
const PAGE_PAUSE: Duration = Duration::from_millis(2);

/// How long a server may take to answer a step.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Pause after a server had no room for a step, and how often it is asked.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
const ROOM_TRIES: u32 = 20;

/// Messages live no longer than requests may take, nor than this.
const MESSAGE_LIFE_MIN: Duration = Duration::from_secs(1);

/// Clocks run differently; see [`dkvs_net::validity`].
const DRIFT: u32 = 512;

/// The longest that what a server sends may be begun after it was sent, if it lets requests take so long.
pub(crate) fn message_life(timeout_max: Duration) -> Duration {
    let longest = timeout_max.max(MESSAGE_LIFE_MIN);
    longest + longest / DRIFT
}

// ----------------------------------------------------------------------------------------------------------- watching

/// What a server watches for those that want to forget tombstones, and what it has under way.
#[derive(Debug)]
pub(crate) struct Watches {
    state: Mutex<State>,
    /// How long messages live.
    message_life: Duration,
    /// Keys that this server was given at its start.
    given: BTreeSet<Bytes>,
    reaped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Operations under way that may have a record of a key at hand.
    under_way: HashMap<Bytes, u64>,
    /// Numbers operations and fences in the order in which they begin.
    last: u64,
    /// Of each server that wants to forget.
    rounds: BTreeMap<ServerIndex, Round>,
}

/// One server's round.
#[derive(Debug)]
struct Round {
    number: u64,
    keys: BTreeMap<Bytes, Watch>,
    bytes: usize,
}

/// A key whose record and hints have not changed since it was watched.
#[derive(Debug, Default)]
struct Watch {
    fence: Option<Fence>,
}

#[derive(Debug)]
struct Fence {
    number: u64,
    /// Operations that began before the fence and have not ended.
    older: u64,
    /// When the last one ended, or the fence was set.
    since: Instant,
}

/// An operation under way on a key, until dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    watches: Arc<Watches>,
    key: Bytes,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.watches.ended(&self.key, self.number);
    }
}

impl Watches {
    pub(crate) fn new(message_life: Duration, given: BTreeSet<Bytes>) -> Self {
        Self { state: Mutex::default(), message_life, given, reaped: AtomicU64::default() }
    }

    /// An operation begins that reads, holds or sends records of this key.
    pub(crate) fn begin(self: &Arc<Self>, key: &Bytes) -> UnderWay {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        *state.under_way.entry(key.clone()).or_default() += 1;
        UnderWay { watches: self.clone(), key: key.clone(), number }
    }

    fn ended(&self, key: &Bytes, number: u64) {
        let mut state = self.state();
        let State { under_way, rounds, .. } = &mut *state;
        if let Some(count) = under_way.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(key);
            }
        }
        for round in rounds.values_mut() {
            let fence = round.keys.get_mut(key).and_then(|watch| watch.fence.as_mut());
            if let Some(fence) = fence.filter(|fence| number < fence.number) {
                fence.older = fence.older.saturating_sub(1);
                fence.since = Instant::now();
            }
        }
    }

    /// What this server holds or keeps of these keys changes.
    pub(crate) fn changed<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let mut state = self.state();
        if state.rounds.values().all(|round| round.keys.is_empty()) {
            return;
        }
        for key in keys {
            state.rounds.values_mut().for_each(|round| round.forget(key));
        }
    }

    /// Takes a step with a key of which this server holds the record in question or nothing, and no hint. Whether it passes.
    pub(crate) fn step(&self, from: ServerIndex, number: u64, step: ReapStep, key: &Bytes) -> bool {
        if self.given.contains(key) {
            return false;
        }
        let mut state = self.state();
        let State { under_way, last, rounds } = &mut *state;
        let round = rounds.entry(from).or_insert_with(|| Round::new(number));
        if round.number != number {
            *round = Round::new(number);
        }
        match step {
            ReapStep::Watch => round.watch(key),
            ReapStep::Fence => match round.keys.get_mut(key) {
                Some(watch) => {
                    *last += 1;
                    let older = under_way.get(key).copied().unwrap_or_default();
                    watch.fence = Some(Fence { number: *last, older, since: Instant::now() });
                    true
                }
                None => false,
            },
            ReapStep::Confirm => {
                let fence = round.keys.get(key).and_then(|watch| watch.fence.as_ref());
                fence.is_some_and(|fence| fence.older == 0 && fence.since.elapsed() >= self.message_life)
            }
            ReapStep::Reap => {
                round.forget(key);
                true
            }
        }
    }

    /// So many records were removed.
    pub(crate) fn count_reaped(&self, records: u64) {
        self.reaped.fetch_add(records, Ordering::Relaxed);
    }

    /// Records removed since the start.
    pub(crate) fn reaped(&self) -> u64 {
        self.reaped.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock while it is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    fn new(number: u64) -> Self {
        Self { number, keys: BTreeMap::new(), bytes: 0 }
    }

    /// Watches a key anew. Not more than a round may have.
    fn watch(&mut self, key: &Bytes) -> bool {
        self.forget(key);
        let has_room = self.keys.len() < ROUND_KEYS_MAX && self.bytes + key.len() <= ROUND_BYTES_MAX;
        if has_room {
            self.bytes += key.len();
            // The message that a key is part of may be longer.
            self.keys.insert(Bytes::copy_from_slice(key), Watch::default());
        }
        has_room
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some((key, _)) = self.keys.remove_entry(key) {
            self.bytes -= key.len();
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- asking

/// Why a round could not go on. What it has not forgotten yet stays.
#[derive(Debug, thiserror::Error)]
enum Halt {
    #[error("server {0} does not answer: {1:?}")]
    NotAnswered(ServerIndex, OwnerAnswer),
    #[error("this server: {0}")]
    Local(#[from] ReplicaError),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Local(error.into())
    }
}

/// Forgets what can be forgotten of the keys that this server is the first owner of, again and again, until aborted.
pub(crate) async fn run<S: Socket, T: Store>(
    coordinator: Arc<Coordinator<S, T>>,
    interval: Duration,
    mut number: u64,
) {
    if interval.is_zero() {
        return;
    }
    let mut after = None;
    loop {
        sleep(interval).await;
        let mut peers = coordinator.peers().into_iter();
        if !peers.all(|peer| coordinator.detector.is_up(peer)) {
            continue;
        }
        number = number.wrapping_add(1);
        let reaper = Reaper { coordinator: &coordinator, number };
        if let Err(halt) = reaper.round(&mut after).await {
            tracing::debug!(%halt, "tombstones cannot be forgotten now");
        }
    }
}

/// One round of forgetting.
struct Reaper<'a, S: Socket, T> {
    coordinator: &'a Arc<Coordinator<S, T>>,
    number: u64,
}

impl<S: Socket, T: Store> Reaper<'_, S, T> {
    async fn round(&self, after: &mut Option<Bytes>) -> Result<(), Halt> {
        let me = self.coordinator.me;
        let peers = self.coordinator.peers();
        let everybody = [&[me][..], &peers].concat();
        let mut keys = self.candidates(after).await?;
        for step in [ReapStep::Watch, ReapStep::Fence] {
            keys = self.pass(step, &everybody, keys).await?;
        }
        if keys.is_empty() {
            return Ok(());
        }
        // With some time for what is under way now. Keys on which it takes longer have another round.
        let message_life = self.coordinator.replica.watches().message_life;
        sleep(message_life + message_life / 8).await;
        for step in [ReapStep::Confirm, ReapStep::Confirm] {
            keys = self.pass(step, &everybody, keys).await?;
        }
        keys = self.pass(ReapStep::Reap, &peers, keys).await?;
        keys = self.pass(ReapStep::Reap, &[me], keys).await?;
        if !keys.is_empty() {
            tracing::debug!(keys = keys.len(), "tombstones forgotten");
        }
        Ok(())
    }

    /// Keys after one of them of which this server is the first owner and holds nothing but tombstones.
    async fn candidates(&self, after: &mut Option<Bytes>) -> Result<Vec<ReapKey>, Halt> {
        let Coordinator { replica, ring, me, clock, .. } = &**self.coordinator;
        let (mut keys, mut bytes) = (Vec::new(), 0);
        loop {
            let page = match replica.tombstones(after.as_deref(), PAGE) {
                Err(error) if is_damage(&error) => {
                    tracing::error!(%error, ?after, "where there are tombstones cannot be read");
                    *after = beyond(after.as_deref());
                    return Ok(keys);
                }
                page => page?,
            };
            if page.is_empty() {
                *after = None;
                return Ok(keys);
            }
            for store_key in page {
                let Some(key) = key_of(&store_key) else { continue };
                if keys.len() == ROUND_KEYS_MAX || bytes + key.len() > ROUND_BYTES_MAX {
                    return Ok(keys);
                }
                *after = Some(store_key);
                if ring.preference_list(Partition::of_key(&key)).first() != Some(me) {
                    continue;
                }
                let Ok(record) = replica.fetch(&key) else { continue };
                if record.is_deleted(clock.long_ago()) {
                    bytes += key.len();
                    keys.push(ReapKey { key, hash: record.hash() });
                }
            }
            sleep(PAGE_PAUSE).await;
        }
    }

    /// Takes a step with some keys at some servers. Those that pass at all of them.
    async fn pass(
        &self,
        step: ReapStep,
        servers: &[ServerIndex],
        keys: Vec<ReapKey>,
    ) -> Result<Vec<ReapKey>, Halt> {
        let mut passed = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MESSAGE_KEYS_MAX) {
            let answers = join_all(servers.iter().map(|&server| self.ask(server, step, keys))).await;
            let answers: Vec<BTreeSet<usize>> = answers.into_iter().collect::<Result<_, _>>()?;
            let at_all = |place: &usize| answers.iter().all(|places| places.contains(place));
            passed.extend((0..keys.len()).filter(at_all).filter_map(|place| keys.get(place).cloned()));
        }
        Ok(passed)
    }

    /// Takes a step with some keys at one server. The places of those that pass.
    async fn ask(
        &self,
        server: ServerIndex,
        step: ReapStep,
        keys: &[ReapKey],
    ) -> Result<BTreeSet<usize>, Halt> {
        let (ring, from) = (self.coordinator.ring.id(), self.coordinator.me);
        let request = ReapRequest { ring, from, round: self.number, step, keys: keys.to_vec() };
        let places = if server == from {
            self.coordinator.replica.reap(request, Validity::unlimited()).await?
        } else {
            self.ask_other(server, request).await?
        };
        Ok(places.into_iter().filter_map(|place| usize::try_from(place).ok()).collect())
    }

    async fn ask_other(&self, server: ServerIndex, request: ReapRequest) -> Result<Vec<u32>, Halt> {
        let mut reason = OwnerAnswer::TimedOut;
        for _ in 0..ROOM_TRIES {
            let deadline = Instant::now() + ANSWER_MAX;
            let asked = ReplicaRequest::Reap(request.clone());
            reason = match self.coordinator.ask(server, asked, deadline).await {
                Ok(ReplicaAnswer::Reap(places)) => return Ok(places),
                Ok(ReplicaAnswer::Refused(refusal)) => OwnerAnswer::Refused(refusal),
                Ok(
                    ReplicaAnswer::Merged { .. }
                    | ReplicaAnswer::Same
                    | ReplicaAnswer::Record(_)
                    | ReplicaAnswer::Incomplete(_)
                    | ReplicaAnswer::Alive
                    | ReplicaAnswer::Repair(_),
                ) => OwnerAnswer::Refused(Refusal::Invalid("answered another question".into())),
                Err(reason) => reason,
            };
            if reason != OwnerAnswer::Refused(Refusal::Overloaded) {
                break;
            }
            sleep(ROOM_PAUSE).await;
        }
        Err(Halt::NotAnswered(server, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);
    const MS: Duration = Duration::from_millis(1);

    fn watches() -> Arc<Watches> {
        Arc::new(Watches::new(LIFE, BTreeSet::from(["given".into()])))
    }

    /// The first owner's first round.
    fn step(watches: &Watches, step: ReapStep, key: &str) -> bool {
        watches.step(ServerIndex::new(0), 1, step, &Bytes::copy_from_slice(key.as_bytes()))
    }

    fn watch_and_fence(watches: &Watches, key: &str) {
        assert!(step(watches, ReapStep::Watch, key));
        assert!(step(watches, ReapStep::Fence, key));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_on_which_nothing_is_under_way_is_confirmed_after_the_life_of_a_message() {
        let watches = watches();
        watch_and_fence(&watches, "k");
        tokio::time::advance(LIFE - MS).await;
        assert!(!step(&watches, ReapStep::Confirm, "k"));
        tokio::time::advance(MS).await;
        assert!(step(&watches, ReapStep::Confirm, "k") && step(&watches, ReapStep::Confirm, "k"));
        assert!(step(&watches, ReapStep::Reap, "k") && !step(&watches, ReapStep::Confirm, "k"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_life_of_a_message_counts_from_the_end_of_the_last_operation_that_is_older_than_the_fence() {
        let watches = watches();
        let key = Bytes::from_static(b"k");
        let before_the_watch = watches.begin(&key);
        assert!(step(&watches, ReapStep::Watch, "k"));
        let before_the_fence = watches.begin(&key);
        assert!(step(&watches, ReapStep::Fence, "k"));
        let after_it = watches.begin(&key);
        tokio::time::advance(2 * LIFE).await;
        assert!(!step(&watches, ReapStep::Confirm, "k"), "two are older");
        drop(before_the_watch);
        tokio::time::advance(LIFE).await;
        assert!(!step(&watches, ReapStep::Confirm, "k"), "one is");
        drop(before_the_fence);
        tokio::time::advance(LIFE - MS).await;
        assert!(!step(&watches, ReapStep::Confirm, "k"), "what it sent may still be begun");
        drop(after_it);
        tokio::time::advance(MS).await;
        assert!(step(&watches, ReapStep::Confirm, "k"), "what began after the fence does not count");
        assert!(watches.state().under_way.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_a_later_round_and_the_end_of_the_server_end_a_watch() {
        let watches = watches();
        for key in ["changed", "same", "unfenced"] {
            assert!(step(&watches, ReapStep::Watch, key));
        }
        watches.changed(["changed", "unknown"].into_iter().map(str::as_bytes));
        assert!(!step(&watches, ReapStep::Fence, "changed"));
        assert!(step(&watches, ReapStep::Fence, "same"));
        tokio::time::advance(LIFE).await;
        assert!(!step(&watches, ReapStep::Confirm, "unfenced"));
        assert!(!step(&self::watches(), ReapStep::Confirm, "same"), "another process");
        let key = Bytes::from_static(b"same");
        assert!(!watches.step(ServerIndex::new(1), 1, ReapStep::Confirm, &key), "another server's");
        assert!(step(&watches, ReapStep::Confirm, "same"));
        assert!(watches.step(ServerIndex::new(0), 2, ReapStep::Watch, &key), "the next round");
        assert!(!watches.step(ServerIndex::new(0), 2, ReapStep::Confirm, &key));
    }

    #[test]
    fn a_round_watches_so_many_keys_and_none_that_was_given() {
        let watches = watches();
        assert!(!step(&watches, ReapStep::Watch, "given"));
        for number in 0..ROUND_KEYS_MAX {
            assert!(step(&watches, ReapStep::Watch, &number.to_string()));
        }
        assert!(!step(&watches, ReapStep::Watch, "one more"));
        assert!(step(&watches, ReapStep::Watch, "0"), "one of them, again");
        watches.changed([&b"0"[..]].into_iter());
        let long = "k".repeat(ROUND_BYTES_MAX);
        assert!(!step(&watches, ReapStep::Watch, &long));
    }
}
