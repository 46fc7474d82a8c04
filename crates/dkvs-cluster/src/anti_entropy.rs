//! Compares this server's records with each other server's, and makes equal what differs (DeCandia et al. 2007, §4.7).
//!
//! It finds what hints do not: what was missed by a server whose coordinator was killed, lost with a disk, or over the budget
//! of hints. It runs always. Between two servers that agree a round costs one datagram each way, and otherwise what differs:
//!
//! ```text
//!   root ──equal──> agreed                                                  one comparison
//!     └──> children of what differs, level by level ──> partitions          hashes of 16 children for each node
//!             └── pause ──> the same partitions again                       what is only under way is equal by now
//!                   └──> hashes of entries ──> keys ──> records, merged on both sides
//! ```
//! The server listed first begins the regular rounds of a pair. Each of the two begins one for a cause: at its start, when the
//! other has come back, and where it has a mark that the other missed something (see [`crate::hints`]); then there first.
//!
//! A server has one exchange going out and one coming in at a time; a root is compared any time.
//! Records that move are paced, leave the servers alone for longer than they took, and are merges like any other: asked for
//! one by one, so that they find room among the requests of clients.
//!
//! Invariant: nothing is taken for what it was when it was compared. A record is read, sent and merged anew, so an exchange that
//! ends anywhere, or twice, does no harm.
//!
//! What it leaves out: copies beyond the cluster's n, which requests with a larger N have made, and a partition that cannot be
//! read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::hash_tree::{EntryHash, LEAF_LEVEL, Node, PartitionSet};
use dkvs_core::position::Partition;
use dkvs_core::record::{Record, RecordHash};
use dkvs_core::ring::{Ring, ServerIndex};
use dkvs_net::{Socket, Validity};
use dkvs_proto::message::Refusal;
use dkvs_proto::message::client::OwnerAnswer;
use dkvs_proto::message::repair::{Compare, RepairAnswer, RepairRequest};
use dkvs_proto::message::replica::{ReplicaAnswer, ReplicaRequest};
use dkvs_proto::record::fits;
use dkvs_storage::{ScanLimit, Store, StoreError};
use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::coordinator::Coordinator;
use crate::replica::{HashPage, ReplicaError, Terms};
use crate::stored::Stored;

/// Nodes whose hashes travel in one message.
const NODES_MAX: usize = 1_024;

/// Entries compared in one message, and bytes read for it.
const KEYS_PAGE: ScanLimit = ScanLimit { entries_max: 1_024, bytes_max: 1 << 20 };

/// How long partitions that differ are left alone before they are compared again: a write that is under way takes less.
const CONFIRM_PAUSE: Duration = Duration::from_millis(500);

/// How long a comparison may take to be answered, and how long a record may take to come or go.
const COMPARE_MAX: Duration = Duration::from_secs(1);
const RECORD_MAX: Duration = Duration::from_secs(5);

/// Pause before a round that could not be finished is begun again, and after one that changed something.
const RETRY: Duration = Duration::from_secs(1);
const AFTER_REPAIR: Duration = Duration::from_millis(100);

/// Pause after the other server had no room for a request, and how often one is tried again.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
const ROOM_TRIES: u32 = 50;

/// How often a server that compares with somebody else is asked again after that pause: for longer than most visits take. Servers
/// that come in the same rhythm would else meet the same visitor each time.
const VISIT_TRIES: u32 = 10;

/// How long a server that compares keeps others from it without a word.
const VISIT_MAX: Duration = Duration::from_secs(10);

/// Partitions compared side by side, and records under way. After the other server had no room, records go one by one.
const PARTITIONS_AT_ONCE: usize = 8;
const RECORDS_AT_ONCE: usize = 8;

/// After each record and each comparison of a partition its place rests for so many times as long as that took: the more servers have
/// to do for clients, the longer. Not longer than a busy server takes, as time spent waiting for room or for the pace is no work.
const REST: u32 = 15;
const REST_MAX: Duration = Duration::from_millis(100);

/// Marks read in one go.
const MARKS_MAX: usize = 256;

/// Records that the other server will not have, remembered so that they are not sent again and again.
const UNWANTED_MAX: usize = 1_024;

/// What a record costs beside its values, for the pace.
const RECORD_LEN: usize = 256;

/// What this server knows of its comparisons with one other.
pub(crate) struct Pair {
    /// Partitions that both own.
    shared: PartitionSet,
    /// There is a cause for a round.
    news: Notify,
    progress: Mutex<Progress>,
    /// Records that came or went since the start.
    moved: AtomicU64,
}

/// How far two servers have come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// When they were equal last.
    pub(crate) agreed: Option<Instant>,
    /// Partitions that are known to differ, and wait for their turn.
    pub(crate) differing: usize,
}

impl Pair {
    pub(crate) fn progress(&self) -> Progress {
        *self.lock()
    }

    /// How long ago the two were found equal last. Those that own nothing together always are.
    pub(crate) fn agreed_ago(&self) -> Option<Duration> {
        if self.shared.is_empty() { Some(Duration::ZERO) } else { Some(self.lock().agreed?.elapsed()) }
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn agreed(&self) {
        *self.lock() = Progress { agreed: Some(Instant::now()), differing: 0 };
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Nothing that can panic runs under this lock, so a poisoned one guards whole numbers.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server that compares its records with ours.
#[derive(Clone, Copy)]
struct Visitor {
    from: ServerIndex,
    until: Instant,
}

/// What the rounds of one server share.
pub(crate) struct AntiEntropy {
    /// In the ring's order; what stands for this server itself shares nothing.
    pairs: Vec<Pair>,
    /// Time between regular rounds with one server; zero for no rounds at all.
    interval: Duration,
    outgoing: Semaphore,
    incoming: Mutex<Option<Visitor>>,
    pace: Pace,
}

impl AntiEntropy {
    /// For this server of a ring whose keys have `n` owners.
    pub(crate) fn new(
        ring: &Ring,
        me: ServerIndex,
        n: usize,
        interval: Duration,
        bytes_per_s_max: u64,
    ) -> Self {
        let nothing = || PartitionSet::of(|_| false);
        let mut shared: Vec<PartitionSet> = ring.servers().indices().map(|_| nothing()).collect();
        for partition in Partition::all() {
            let owners = ring.preference_list(partition).iter().take(n);
            if owners.clone().any(|&owner| owner == me) {
                for owner in owners.filter(|&&owner| owner != me) {
                    shared[owner.as_usize()].set(partition, true);
                }
            }
        }
        let pair = |shared| Pair {
            shared,
            news: Notify::new(),
            progress: Mutex::default(),
            moved: AtomicU64::default(),
        };
        Self {
            pairs: shared.into_iter().map(pair).collect(),
            interval,
            outgoing: Semaphore::new(1),
            incoming: Mutex::default(),
            pace: Pace::new(bytes_per_s_max),
        }
    }

    pub(crate) fn pair(&self, server: ServerIndex) -> &Pair {
        &self.pairs[server.as_usize()]
    }

    /// How long it takes at most until what differs is equal, if it is all that this server holds, as many entries and bytes, and as long
    /// as the pace leaves it; `None` when nothing is compared.
    pub(crate) fn takes_at_most(&self, entries: u64, bytes: u64) -> Option<Duration> {
        let waits = ROOM_PAUSE * VISIT_TRIES + CONFIRM_PAUSE;
        let moves = self.pace.takes(bytes.saturating_add(entries.saturating_mul(RECORD_LEN as u64)));
        (!self.interval.is_zero()).then(|| (self.interval + waits).saturating_add(moves))
    }

    /// There is a cause to compare with this server soon.
    pub(crate) fn wake(&self, server: ServerIndex) {
        self.pair(server).news.notify_one();
    }

    /// Whether this server may compare now. It then keeps others from it for a while.
    fn admit(&self, from: ServerIndex) -> bool {
        let now = Instant::now();
        let mut incoming = self.incoming();
        let is_free = incoming.is_none_or(|visitor| visitor.from == from || visitor.until <= now);
        if is_free {
            *incoming = Some(Visitor { from, until: now + VISIT_MAX });
        }
        is_free
    }

    fn leave(&self, from: ServerIndex) {
        let mut incoming = self.incoming();
        if incoming.is_some_and(|visitor| visitor.from == from) {
            *incoming = None;
        }
    }

    fn incoming(&self) -> MutexGuard<'_, Option<Visitor>> {
        // Nothing that can panic runs under this lock.
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spreads what is moved over time.
struct Pace {
    bytes_per_s_max: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_s_max: u64) -> Self {
        Self { bytes_per_s_max, free_at: Mutex::new(Instant::now()) }
    }

    /// How long so many bytes take.
    fn takes(&self, bytes: u64) -> Duration {
        match self.bytes_per_s_max {
            0 => Duration::ZERO,
            rate => Duration::try_from_secs_f64(bytes as f64 / rate as f64).unwrap_or(Duration::MAX),
        }
    }

    /// Waits until what was moved before has had its time, and accounts for so many bytes more.
    async fn spend(&self, bytes: usize) {
        if self.bytes_per_s_max == 0 {
            return;
        }
        let takes = self.takes(bytes as u64);
        let free_at = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begins = (*free_at).max(Instant::now());
            *free_at = begins + takes;
            begins
        };
        sleep_until(free_at).await;
    }
}

// ------------------------------------------------------------------------------------------------------------- asked

/// Answers a server that compares.
pub(crate) fn answer<S: Socket, T: Store>(
    coordinator: &Coordinator<S, T>,
    RepairRequest { ring, from, compare }: RepairRequest,
) -> Result<RepairAnswer, ReplicaError> {
    let invalid = |reason: &str| Err(ReplicaError::Refused(Refusal::Invalid(reason.into())));
    coordinator.check_ring(ring).map_err(ReplicaError::Refused)?;
    let repair = &coordinator.anti_entropy;
    if from == coordinator.me || from.as_usize() >= repair.pairs.len() {
        return invalid("who compares is no other server of the ring");
    }
    let pair = repair.pair(from);
    match compare {
        Compare::Hashes { level, nodes } => {
            if level > 0 && !repair.admit(from) {
                return Ok(RepairAnswer::Busy);
            }
            let in_order = nodes.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
            if !in_order {
                return invalid("the nodes to compare are not in order");
            }
            let mut differing = Vec::new();
            for (digits, theirs) in nodes {
                let Some(node) = Node::new(level, digits) else {
                    return invalid("there is no such node in a hash tree");
                };
                match coordinator.replica.tree().sum(node, &pair.shared) {
                    None => return Ok(RepairAnswer::NotBuilt),
                    Some(ours) if ours == theirs => {}
                    Some(_) => differing.push(digits),
                }
            }
            if level == 0 && differing.is_empty() {
                pair.agreed();
            }
            Ok(RepairAnswer::Differing(differing))
        }
        Compare::Keys { partition, .. } if !pair.shared.contains(partition) => {
            invalid("the partition to compare is not owned by both")
        }
        Compare::Keys { .. } if !repair.admit(from) => Ok(RepairAnswer::Busy),
        Compare::Keys { partition, after, last, entries } => {
            let HashPage { hashes: ours, end, .. } =
                coordinator.replica.entry_hashes(partition, &after, KEYS_PAGE)?;
            let last = match end {
                Some(end) if last.is_empty() || end < last => end,
                _ => last,
            };
            let is_compared = |key: &Bytes| last.is_empty() || *key <= last;
            let known: BTreeSet<EntryHash> = entries.iter().copied().collect();
            let ours = ours.into_iter().filter(|(key, _)| is_compared(key));
            let mut held = BTreeSet::new();
            let mut theirs = Vec::new();
            for (key, hash) in ours {
                held.insert(hash);
                if !known.contains(&hash) {
                    theirs.push(key);
                }
            }
            let places = (0..).zip(&entries);
            let yours = places.filter(|(_, hash)| !held.contains(hash)).map(|(place, _)| place).collect();
            Ok(RepairAnswer::Keys { theirs, yours, last })
        }
        Compare::Done => {
            repair.leave(from);
            Ok(RepairAnswer::Done)
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ asking

/// How a round ended.
enum Ended {
    /// The two are equal.
    Agreed,
    /// Something differed, and so many records came or went. To be looked at again.
    Repaired(u64),
    /// One of the two has to read its records first, or is comparing with somebody else.
    Later,
}

/// Why a round could not go on.
#[derive(Debug, thiserror::Error)]
enum Halt {
    #[error("the other server: {0:?}")]
    NotAnswered(OwnerAnswer),
    #[error("the other server compares with somebody else")]
    Busy,
    #[error("one of the two has to read its records first")]
    NotBuilt,
    #[error("this server: {0}")]
    Local(#[from] ReplicaError),
    #[error("something else of the round has failed")]
    Over,
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Local(error.into())
    }
}

/// Compares with one server, again and again, until aborted.
pub(crate) async fn run<S: Socket, T: Store>(coordinator: Arc<Coordinator<S, T>>, server: ServerIndex) {
    let repair = &coordinator.anti_entropy;
    let pair = repair.pair(server);
    if repair.interval.is_zero() {
        return;
    }
    // Two that share nothing have nothing to compare. But one may have coordinated sloppy puts of keys of the other, and marks of
    // these are to be cleared.
    let compares = !pair.shared.is_empty();
    let is_first = compares && coordinator.me < server;
    let target = coordinator.target(server);
    let mut unwanted = Unwanted::default();
    let (mut has_cause, mut has_failed) = (compares, false);
    loop {
        has_cause |= coordinator.replica.hints_kept().tally(target).dirty > 0;
        let mut pause = repair.interval;
        if (has_cause || is_first) && coordinator.detector.is_up(server) {
            let round = Round { coordinator: &coordinator, server, pair, records: Records::new(has_failed) };
            let ended = round.run(&mut unwanted).await;
            has_failed = ended.is_err();
            match ended {
                Ok(Ended::Agreed | Ended::Repaired(0)) => has_cause = false,
                Ok(Ended::Repaired(_)) => (has_cause, pause) = (true, AFTER_REPAIR),
                Ok(Ended::Later) => (has_cause, pause) = (true, RETRY),
                Err(halt) => {
                    tracing::debug!(?server, %halt, "a comparison could not be finished");
                    (has_cause, pause) = (true, RETRY);
                }
            }
        }
        has_cause |= timeout(pause, pair.news.notified()).await.is_ok();
    }
}

/// Records that the other server has refused for good.
#[derive(Default)]
struct Unwanted(BTreeMap<Bytes, RecordHash>);

impl Unwanted {
    fn has(&self, key: &Bytes, record: &Record) -> bool {
        self.0.get(key) == Some(&record.hash())
    }

    fn add(&mut self, key: Bytes, hash: RecordHash) {
        if self.0.len() >= UNWANTED_MAX {
            self.0.pop_first();
        }
        self.0.insert(key, hash);
    }
}

/// Places for records under way in one round. They close when something fails: what is under way then ends, and nothing more begins.
struct Records {
    places: Semaphore,
    /// The only place for what travels, once the other server had no room.
    narrow: Semaphore,
    is_narrow: AtomicBool,
}

impl Records {
    fn new(is_narrow: bool) -> Self {
        Self {
            places: Semaphore::new(RECORDS_AT_ONCE),
            narrow: Semaphore::new(1),
            is_narrow: AtomicBool::new(is_narrow),
        }
    }

    /// Waits for the only place, if there is just one. Fails when nothing more is to be sent.
    async fn turn(&self) -> Result<Option<SemaphorePermit<'_>>, OwnerAnswer> {
        if self.places.is_closed() {
            return Err(OwnerAnswer::TimedOut);
        }
        if !self.is_narrow.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.narrow.acquire().await.map(Some).map_err(|_| OwnerAnswer::TimedOut)
    }

    /// Waits for all of them, and tells what failed first.
    async fn finish(&self, mut under_way: impl Stream<Item = Result<(), Halt>> + Unpin) -> Result<(), Halt> {
        let mut first = Ok(());
        while let Some(done) = under_way.next().await {
            if let Err(halt) = done {
                self.places.close();
                self.narrow.close();
                if matches!(first, Ok(()) | Err(Halt::Over)) {
                    first = Err(halt);
                }
            }
        }
        first
    }
}

/// One round with one server.
struct Round<'a, S: Socket, T> {
    coordinator: &'a Arc<Coordinator<S, T>>,
    server: ServerIndex,
    pair: &'a Pair,
    records: Records,
}

impl<S: Socket, T: Store> Round<'_, S, T> {
    async fn run(&self, unwanted: &mut Unwanted) -> Result<Ended, Halt> {
        let repair = &self.coordinator.anti_entropy;
        let unwanted = &Mutex::new(unwanted);
        let moved_before = self.pair.moved();
        let has_marks = self.tally() > 0;
        if !has_marks && self.differing(0, &[Node::ROOT]).await?.is_empty() {
            self.pair.agreed();
            return Ok(Ended::Agreed);
        }
        let _turn = repair.outgoing.acquire().await;
        let exchanged = async {
            self.see_to_marks(unwanted).await?;
            let differing = self.descend().await?;
            if differing.is_empty() {
                return Ok(());
            }
            sleep(CONFIRM_PAUSE).await;
            let differing = self.differing(LEAF_LEVEL, &differing).await?;
            self.pair.lock().differing = differing.len();
            let partitions = differing.into_iter().map(|node| Partition::new(node.digits()));
            let compared = partitions.map(|partition| async move {
                self.compare_keys(partition, unwanted).await?;
                let mut progress = self.pair.lock();
                progress.differing = progress.differing.saturating_sub(1);
                Ok(())
            });
            self.records.finish(stream::iter(compared).buffer_unordered(PARTITIONS_AT_ONCE)).await
        }
        .await;
        // Whatever came of it, and whether this is heard or not.
        let _ = self.ask(Compare::Done).await;
        match exchanged {
            Ok(()) => Ok(Ended::Repaired(self.pair.moved() - moved_before)),
            Err(Halt::Busy | Halt::NotBuilt) => Ok(Ended::Later),
            Err(halt) => Err(halt),
        }
    }

    fn tally(&self) -> u64 {
        let target = self.coordinator.target(self.server);
        self.coordinator.replica.hints_kept().tally(target).dirty
    }

    /// Compares the partitions in which the other server is known to have missed something, and clears the marks.
    async fn see_to_marks(&self, unwanted: &Mutex<&mut Unwanted>) -> Result<(), Halt> {
        let target = self.coordinator.target(self.server);
        let mut after = None;
        while self.tally() > 0 {
            let marks = self.coordinator.replica.dirty_marks_of(target, after, MARKS_MAX)?;
            let Some(last) = marks.last() else { break };
            after = Some(last.partition);
            let seen_to = marks.into_iter().map(|mark| async move {
                // Copies beyond the cluster's n are nobody's to keep equal.
                let is_done = !self.pair.shared.contains(mark.partition)
                    || self.compare_keys(mark.partition, unwanted).await?;
                if is_done {
                    self.coordinator.replica.clear_dirty_mark(mark).await?;
                }
                Ok(())
            });
            self.records.finish(stream::iter(seen_to).buffer_unordered(PARTITIONS_AT_ONCE)).await?;
        }
        Ok(())
    }

    /// The partitions that differ, found level by level.
    async fn descend(&self) -> Result<Vec<Node>, Halt> {
        let mut differing = vec![Node::ROOT];
        for level in 1..=LEAF_LEVEL {
            let children: Vec<Node> = differing.into_iter().flat_map(Node::children).collect();
            differing = self.differing(level, &children).await?;
        }
        Ok(differing)
    }

    /// Those of some nodes of a level that differ.
    async fn differing(&self, level: u8, nodes: &[Node]) -> Result<Vec<Node>, Halt> {
        let mut found = Vec::new();
        for nodes in nodes.chunks(NODES_MAX) {
            let tree = self.coordinator.replica.tree();
            let ours = nodes.iter().map(|&node| Some((node.digits(), tree.sum(node, &self.pair.shared)?)));
            let Some(nodes) = ours.collect::<Option<Vec<_>>>() else { return Err(Halt::NotBuilt) };
            let answer = self.ask(Compare::Hashes { level, nodes }).await?;
            let RepairAnswer::Differing(digits) = answer else { return Err(unexpected(&answer)) };
            found.extend(digits.into_iter().filter_map(|digits| Node::new(level, digits)));
        }
        Ok(found)
    }

    /// Finds the keys of a partition whose records differ, and makes them equal. Whether this server has told all that it is to
    /// hold: of what is damaged here it cannot.
    async fn compare_keys(
        &self,
        partition: Partition,
        unwanted: &Mutex<&mut Unwanted>,
    ) -> Result<bool, Halt> {
        let (mut after, mut all_whole) = (Bytes::new(), true);
        loop {
            if self.records.places.is_closed() {
                return Err(Halt::Over);
            }
            let HashPage { hashes: ours, end, is_whole } =
                self.coordinator.replica.entry_hashes(partition, &after, KEYS_PAGE)?;
            all_whole &= is_whole;
            let entries = ours.iter().map(|(_, hash)| *hash).collect();
            let asked = end.unwrap_or_default();
            let compare = Compare::Keys { partition, after: after.clone(), last: asked, entries };
            let began = Instant::now();
            let answer = self.ask(compare).await?;
            rest(began).await;
            let RepairAnswer::Keys { theirs, yours, last } = answer else { return Err(unexpected(&answer)) };
            let place = |place| usize::try_from(place).ok();
            let ours = yours.into_iter().filter_map(|at| ours.get(place(at)?).map(|(key, _)| key.clone()));
            let is_compared = |key: &Bytes| last.is_empty() || *key <= last;
            let keys: BTreeSet<Bytes> = theirs.into_iter().chain(ours).filter(is_compared).collect();
            let exchanges = keys.into_iter().map(|key| self.exchange(key, unwanted));
            self.records.finish(exchanges.collect::<FuturesUnordered<_>>()).await?;
            if last.is_empty() {
                return Ok(all_whole);
            }
            if last <= after {
                return Err(Halt::NotAnswered(OwnerAnswer::Refused(Refusal::Invalid(
                    "nothing compared".into(),
                ))));
            }
            after = last;
        }
    }

    /// Makes the two servers' records of a key equal to what both know together.
    async fn exchange(&self, key: Bytes, unwanted: &Mutex<&mut Unwanted>) -> Result<(), Halt> {
        let _place = self.records.places.acquire().await.map_err(|_| Halt::Over)?;
        let began = Instant::now();
        let exchanged = self.exchange_now(key, unwanted).await;
        rest(began).await;
        exchanged
    }

    async fn exchange_now(&self, key: Bytes, unwanted: &Mutex<&mut Unwanted>) -> Result<(), Halt> {
        let Coordinator { replica, anti_entropy, .. } = &**self.coordinator;
        let _under_way = replica.watches().begin(&key);
        // What is left of a damaged one is not sent, but need not come again either.
        let Stored { record: ours, is_incomplete, .. } = replica.stored(&key)?;
        let known = (ours.hash(), ours.clone());
        let fetched = self.patiently(|| self.fetch(key.clone(), known.clone())).await?;
        let Some(theirs) = fetched else { return Ok(()) };
        anti_entropy.pace.spend(RECORD_LEN + theirs.value_len()).await;
        if !ours.includes(&theirs) {
            self.coordinator.clock.observe(self.coordinator.addresses[self.server.as_usize()], &theirs);
            match replica.merge(key.clone(), theirs.clone(), Terms::UPKEEP, Validity::unlimited()).await {
                Ok(_) => drop(self.pair.moved.fetch_add(1, Ordering::Relaxed)),
                Err(ReplicaError::Refused(Refusal::Invalid(_))) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        let mut all = ours;
        all.merge(&theirs);
        let is_unwanted = || lock(unwanted).has(&key, &all);
        if is_incomplete || theirs.includes(&all) || !fits(&all) || is_unwanted() {
            return Ok(());
        }
        anti_entropy.pace.spend(RECORD_LEN + all.value_len()).await;
        let hash = all.hash();
        match self.patiently(|| self.merge(key.clone(), all.clone())).await? {
            Some(()) => drop(self.pair.moved.fetch_add(1, Ordering::Relaxed)),
            None => lock(unwanted).add(key, hash),
        }
        Ok(())
    }

    /// Until when a record may take to come or go. No message may live longer than the longest request.
    fn record_deadline(&self) -> Instant {
        Instant::now() + RECORD_MAX.min(self.coordinator.timeout_max)
    }

    async fn fetch(&self, key: Bytes, known: (RecordHash, Record)) -> Result<Record, OwnerAnswer> {
        let _turn = self.records.turn().await?;
        let deadline = self.record_deadline();
        self.coordinator.clone().fetch_at(self.server, key, known, deadline).await.1
    }

    async fn merge(&self, key: Bytes, record: Record) -> Result<(), OwnerAnswer> {
        let _turn = self.records.turn().await?;
        let deadline = self.record_deadline();
        let merged = self.coordinator.clone().merge_at(self.server, key, record, deadline, Terms::UPKEEP);
        merged.await.1.map(drop)
    }

    /// Tries something again while the other server has no room for it; from then on records go one by one. `None` when it is
    /// refused for good.
    async fn patiently<A, F>(&self, attempt: impl Fn() -> F) -> Result<Option<A>, Halt>
    where
        F: Future<Output = Result<A, OwnerAnswer>>,
    {
        for _ in 0..ROOM_TRIES {
            match attempt().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(OwnerAnswer::Refused(Refusal::Overloaded)) => {
                    self.records.is_narrow.store(true, Ordering::Relaxed);
                    sleep(ROOM_PAUSE).await;
                }
                Err(OwnerAnswer::Refused(
                    Refusal::Invalid(_) | Refusal::TooLong { .. } | Refusal::Damaged,
                )) => return Ok(None),
                Err(other) => return Err(Halt::NotAnswered(other)),
            }
        }
        Err(Halt::NotAnswered(OwnerAnswer::Refused(Refusal::Overloaded)))
    }

    /// Asks the other server, again while it has no room and, for a while, when it has a visitor.
    async fn ask(&self, compare: Compare) -> Result<RepairAnswer, Halt> {
        let (ring, from) = (self.coordinator.ring.id(), self.coordinator.me);
        let request = RepairRequest { ring, from, compare };
        let asked = || async {
            let deadline = Instant::now() + COMPARE_MAX;
            let request = ReplicaRequest::Repair(request.clone());
            match self.coordinator.ask(self.server, request, deadline).await? {
                ReplicaAnswer::Repair(answer) => Ok(answer),
                ReplicaAnswer::Refused(refusal) => Err(OwnerAnswer::Refused(refusal)),
                ReplicaAnswer::Merged { .. }
                | ReplicaAnswer::Same
                | ReplicaAnswer::Record(_)
                | ReplicaAnswer::Incomplete(_)
                | ReplicaAnswer::Reap(_)
                | ReplicaAnswer::Alive => {
                    Err(OwnerAnswer::Refused(Refusal::Invalid("answered another question".into())))
                }
            }
        };
        for _ in 0..VISIT_TRIES {
            match self.patiently(asked).await? {
                Some(RepairAnswer::Busy) => sleep(ROOM_PAUSE).await,
                Some(answer) => return Ok(answer),
                None => {
                    let refusal = Refusal::Invalid("refused to compare".into());
                    return Err(Halt::NotAnswered(OwnerAnswer::Refused(refusal)));
                }
            }
        }
        Err(Halt::Busy)
    }
}

/// Leaves the servers alone after something that began then.
async fn rest(began: Instant) {
    sleep((began.elapsed() * REST).min(REST_MAX)).await;
}

fn lock<'a, 'b>(unwanted: &'a Mutex<&'b mut Unwanted>) -> MutexGuard<'a, &'b mut Unwanted> {
    // Nothing that can panic runs under this lock.
    unwanted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unexpected(answer: &RepairAnswer) -> Halt {
    match answer {
        RepairAnswer::NotBuilt => Halt::NotBuilt,
        RepairAnswer::Busy => Halt::Busy,
        RepairAnswer::Differing(_) | RepairAnswer::Keys { .. } | RepairAnswer::Done => {
            Halt::NotAnswered(OwnerAnswer::Refused(Refusal::Invalid("answered another comparison".into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn after_a_failure_what_is_under_way_ends_and_nothing_more_begins() {
        let records = Records::new(false);
        let (begun, ended) = (Cell::new(0), Cell::new(0));
        let exchange = async |number| {
            let _place = records.places.acquire().await.map_err(|_| Halt::Over)?;
            begun.set(begun.get() + 1);
            yield_now().await;
            if number == 1 {
                return Err(Halt::NotAnswered(OwnerAnswer::TimedOut));
            }
            yield_now().await;
            ended.set(ended.get() + 1);
            Ok(())
        };
        let exchanges: FuturesUnordered<_> = (0..100).map(exchange).collect();
        let done = records.finish(exchanges).await;
        assert!(matches!(done, Err(Halt::NotAnswered(OwnerAnswer::TimedOut))), "{done:?}");
        let (begun, ended) = (begun.get(), ended.get());
        assert!((RECORDS_AT_ONCE..=2 * RECORDS_AT_ONCE).contains(&begun), "{begun}");
        assert_eq!(ended, begun - 1, "all but the one that failed");
        assert!(records.turn().await.is_err(), "nothing more is sent");
    }
}
