//! The one writer: takes what has queued up, applies it, commits it once, answers all of it.
//!
//! ```text
//!   changes ──> [c1 c2 c3] ──read, event or merge──> staged entries ──one commit──> answers 1 2 3
//!               [c4 c5]    ──read, event or merge──> staged entries ····waits·····> answers 4 5
//!                            (of what is in c1 c2 c3, what they staged)
//! ```
//! Load makes the batches larger and the cost per change smaller; a lone change never waits for company. Changes to
//! one key in a batch see each other. Only one task reads, decides and writes, so an event's dot is never given twice.
//!
//! While a batch is committed, the next one is staged: at most one is under way, and one is being built. What the
//! former changed, the writer reads from it and not from the store; nobody else sees it. The commit of the latter begins when
//! the former is done. If that fails, what was staged on top of it is dropped, and nobody is told that it happened.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dkvs_core::hash_tree::EntryHash;
use dkvs_core::limits::{RECORD_LEN_MAX, SIBLINGS_LEN_MAX, VERSION_VECTOR_LEN_MAX};
use dkvs_core::record::{Body, OpId, Record, Sibling, Write};
use dkvs_core::version::{Dot, VersionVector};
use dkvs_net::{Gauge, Validity};
use dkvs_proto::message::reap::{ReapKey, ReapRequest, ReapStep};
use dkvs_proto::message::replica::Cause;
use dkvs_proto::message::{self, Refusal};
use dkvs_proto::record::fits;
use dkvs_storage::{Batch, Durability, Keyspace, Store, StoreError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::damage::{self, Damage, Remains, is_damage};
use crate::hints::{Held, HintChange, HintWriter, Target};
use crate::identity::Identity;
use crate::reaping::Watches;
use crate::replica::{QueueLimits, ReplicaConfig, ReplicaError, Room, Terms, level};
use crate::siblings::SiblingWarnings;
use crate::stored::{PARTITION_LEN, Stored, key_of, store_key};
use crate::tree::{LeafChange, Tree};

/// Bytes of records after which a batch takes no more changes: a small change to a key with many values reads and writes
/// all of them.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// What is said of a record that is over the limits of its layout.
pub(crate) const TOO_MANY_VERSIONS: &str = "the key's record would have more versions than a record can hold";

/// Below this part of the space that puts need, nothing is written any more. What comes before is for deletes and repairs; what
/// is left then, for the engine, which writes a whole buffer or table at a time.
const UPKEEP_SHARE: u64 = 4;

const TOTALS_KEY: &[u8] = b"totals";

type Done<A> = oneshot::Sender<Result<A, ReplicaError>>;

/// What a client asks to be written.
pub(crate) struct ClientWrite {
    pub(crate) op: OpId,
    pub(crate) body: Body,
    /// For how long readers are to be shown it, in milliseconds from when it is written.
    pub(crate) ttl_ms: Option<u64>,
}

impl ClientWrite {
    /// One that does not expire.
    pub(crate) fn lasting(op: OpId, body: Body) -> Self {
        Self { op, body, ttl_ms: None }
    }
}

/// Something to do to one key.
pub(crate) enum Change {
    Event {
        /// The owner for which this server stands in, if it does: the event is made in the hint for it.
        hint_for: Option<Target>,
        key: Bytes,
        context: Option<VersionVector>,
        write: ClientWrite,
        valid: Validity,
        durability: message::Durability,
        done: Done<Event>,
    },
    Supersede {
        /// As that of the first event.
        hint_for: Option<Target>,
        key: Bytes,
        first: Event,
        missed: VersionVector,
        valid: Validity,
        durability: message::Durability,
        done: Done<Option<Event>>,
    },
    Merge {
        key: Bytes,
        record: Record,
        terms: Terms,
        valid: Validity,
        done: Done<Vec<Dot>>,
    },
    /// Put this entry aside if it is damaged.
    Quarantine {
        store_key: Bytes,
        done: Done<()>,
    },
    /// Drop the bytes of what has expired long ago.
    Reclaim {
        store_key: Bytes,
        done: Done<()>,
    },
    /// Merge what all other owners hold into a record that was damaged here.
    Mend {
        key: Bytes,
        theirs: Record,
        /// How often records had been found damaged again when they were asked.
        again: u64,
        done: Done<()>,
    },
    /// Read on in search of what the hash tree does not know.
    ReadTree {
        done: Done<Vec<Bytes>>,
    },
    /// Keep a record for an owner for which this server stands in.
    StandIn {
        target: Target,
        key: Bytes,
        record: Record,
        terms: Terms,
        valid: Validity,
        done: Done<Vec<Dot>>,
    },
    /// Take a step towards forgetting tombstones.
    Reap {
        request: ReapRequest,
        valid: Validity,
        done: Done<Vec<u32>>,
    },
    /// Change what is kept for another server.
    Hint {
        change: HintChange,
        durability: message::Durability,
        done: Done<()>,
    },
}

/// A change in the queue, and the room it takes if it is long.
pub(crate) struct Queued {
    pub(crate) change: Change,
    pub(crate) room: Option<Room>,
}

/// Of the writer's queue and batches.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) changes: Gauge,
    pub(crate) change_bytes: Gauge,
    pub(crate) batch: Gauge,
    pub(crate) siblings: SiblingWarnings,
}

impl Gauges {
    pub(crate) fn new(limits: QueueLimits, bytes_max: usize) -> Self {
        Self {
            changes: Gauge::new(limits.changes_max),
            change_bytes: Gauge::new(bytes_max),
            batch: Gauge::new(limits.batch_max),
            siblings: SiblingWarnings::default(),
        }
    }
}

/// An event that this server made.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The key's record with the event in it.
    pub(crate) record: Record,
    pub(crate) dot: Dot,
    /// What a client has seen that knows of the event; see [`Record::seen_after`].
    pub(crate) seen: VersionVector,
}

/// An answer that waits for the commit.
enum Waiting {
    Event(Done<Event>, Event),
    Superseded(Done<Option<Event>>, Option<Event>),
    Missed(Done<Vec<Dot>>, Vec<Dot>),
    Passed(Done<Vec<u32>>, Vec<u32>),
    Done(Done<()>),
}

impl Waiting {
    fn answer(self, committed: Result<(), StoreError>) {
        // Whoever asked may have given up meanwhile.
        match self {
            Self::Event(done, event) => drop(done.send(committed.map(|()| event).map_err(Into::into))),
            Self::Superseded(done, event) => drop(done.send(committed.map(|()| event).map_err(Into::into))),
            Self::Missed(done, missed) => drop(done.send(committed.map(|()| missed).map_err(Into::into))),
            Self::Passed(done, places) => {
                drop(done.send(committed.map(|()| places).map_err(Into::into)));
            }
            Self::Done(done) => drop(done.send(committed.map_err(Into::into))),
        }
    }
}

/// How much a replica holds. Kept in the store, in the commits that change it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) keys: u64,
    pub(crate) tombstones: u64,
    pub(crate) bytes: u64,
}

impl Totals {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (keys, rest) = bytes.split_first_chunk()?;
        let (tombstones, rest) = rest.split_first_chunk()?;
        let bytes = rest.try_into().ok()?;
        Some(Self {
            keys: u64::from_be_bytes(*keys),
            tombstones: u64::from_be_bytes(*tombstones),
            bytes: u64::from_be_bytes(bytes),
        })
    }

    fn encode(self) -> Vec<u8> {
        [self.keys, self.tombstones, self.bytes].map(u64::to_be_bytes).concat()
    }

    fn add(&mut self, entry: Weight) {
        let kind = if entry.live { &mut self.keys } else { &mut self.tombstones };
        *kind += 1;
        self.bytes += entry.bytes;
    }

    fn remove(&mut self, entry: Weight) {
        let kind = if entry.live { &mut self.keys } else { &mut self.tombstones };
        *kind = kind.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.bytes);
    }
}

/// What an entry adds to the totals.
#[derive(Clone, Copy)]
struct Weight {
    live: bool,
    /// Whether there is nothing in it but tombstones.
    deleted: bool,
    bytes: u64,
}

/// An entry of the batch being built.
struct Staged {
    stored: Stored,
    /// What the store has once the batch under way is in it; `None` when nothing.
    before: Option<Weight>,
    /// What that adds to the hash tree; `None` when it is damaged, and nobody knows.
    hash: Option<EntryHash>,
    changed: bool,
    /// What is left of a damaged entry that this batch puts aside.
    remains: Option<Remains>,
    /// Whether the damage was found in this batch, or in the one under way.
    newly_damaged: bool,
    /// Whether this batch repairs it.
    mended: bool,
}

/// The batch being built.
#[derive(Default)]
struct Building {
    staged: BTreeMap<Bytes, Staged>,
    waiting: Vec<Waiting>,
    rooms: Vec<Room>,
    changes: usize,
    /// What the disk had room for when the batch was begun.
    space: Option<Space>,
}

type Commit = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// A batch whose commit has begun.
struct UnderWay {
    commit: Commit,
    /// The entries it changes, as the store will have them. They leave it when the next batch takes them up.
    entries: BTreeMap<Bytes, Staged>,
    waiting: Vec<Waiting>,
    _rooms: Vec<Room>,
    /// How much there is once it is committed.
    totals: Totals,
    list: damage::ListChange,
    reaped: u64,
    /// What changes in the hash tree once it is committed.
    leaves: Vec<LeafChange>,
}

/// What the disk has room for.
enum Space {
    Plenty,
    /// Not for clients' values.
    Upkeep(Refusal),
    Nothing(Refusal),
}

impl Space {
    /// Refuses what there is no room for.
    fn admit(&self, cause: Cause) -> Result<(), ReplicaError> {
        match (self, cause) {
            (Self::Plenty, _) | (Self::Upkeep(_), Cause::Upkeep) => Ok(()),
            (Self::Upkeep(refusal), Cause::Put) | (Self::Nothing(refusal), _) => {
                Err(ReplicaError::Refused(refusal.clone()))
            }
        }
    }
}

/// What the writer keeps true in the commits that change it.
pub(crate) struct Ledgers {
    pub(crate) damage: Arc<Damage>,
    pub(crate) hints: HintWriter,
    pub(crate) tree: Arc<Tree>,
    pub(crate) watches: Arc<Watches>,
}

/// Applies changes, one batch after the other.
pub(crate) struct Writer<T> {
    store: Arc<T>,
    identity: Identity,
    clock: Arc<Clock>,
    config: ReplicaConfig,
    gauges: Arc<Gauges>,
    damage: Arc<Damage>,
    hints: HintWriter,
    tree: Arc<Tree>,
    watches: Arc<Watches>,
    /// Those who wait for the tree to be read on, when no commit is under way.
    tree_readers: Vec<Done<Vec<Bytes>>>,
    /// Whether the disk was too full for something when it was looked at last.
    was_full: bool,
    /// Of the records in the batch being built, as the store had them.
    batch_bytes: usize,
    /// How durable the batch being built has to be.
    batch_durability: Durability,
    under_way: Option<UnderWay>,
    totals: watch::Sender<Totals>,
    stopped: watch::Sender<bool>,
}

impl<T: Store> Writer<T> {
    /// The writer, and where it shows that it has stopped and how much there is.
    pub(crate) fn new(
        store: Arc<T>,
        identity: Identity,
        clock: Arc<Clock>,
        config: ReplicaConfig,
        gauges: Arc<Gauges>,
        Ledgers { damage, hints, tree, watches }: Ledgers,
    ) -> Result<(Self, watch::Receiver<bool>, watch::Receiver<Totals>), StoreError> {
        let stored = store.get(Keyspace::Meta, TOTALS_KEY)?;
        let known = stored.as_deref().and_then(Totals::decode).unwrap_or_default();
        let (totals, watched_totals) = watch::channel(known);
        let (stopped, watched_stop) = watch::channel(false);
        let writer = Self {
            store,
            identity,
            clock,
            batch_durability: config.durability,
            under_way: None,
            config,
            gauges,
            damage,
            hints,
            tree,
            watches,
            tree_readers: Vec::new(),
            was_full: false,
            batch_bytes: 0,
            totals,
            stopped,
        };
        Ok((writer, watched_stop, watched_totals))
    }

    /// Runs until told to stop and the queue is empty.
    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Queued>,
        batch_max: usize,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut changes = Vec::new();
        let mut building = Building::default();
        loop {
            let gathered = queue.len();
            let room = batch_max - building.changes;
            let received = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
                committed = outcome(&mut self.under_way) => {
                    self.finish(committed, &mut building);
                    continue;
                }
                received = queue.recv_many(&mut changes, room), if room > 0 => received,
            };
            if received == 0 {
                break;
            }
            self.gauges.changes.set(gathered.max(received));
            building.waiting.reserve(received);
            for queued in changes.drain(..) {
                if self.batch_bytes >= BATCH_BYTES_MAX {
                    self.turn_over(&mut building).await;
                }
                self.apply(queued, &mut building);
            }
            if self.under_way.is_none() {
                self.read_tree();
                self.begin(&mut building);
            }
        }
        while self.under_way.is_some() {
            self.turn_over(&mut building).await;
        }
        self.keep_tree().await;
        self.stopped.send_replace(true);
    }

    /// Reads on for the hash tree, if that is wanted. No commit may be under way: what is read is then what is committed.
    fn read_tree(&mut self) {
        if self.tree_readers.is_empty() {
            return;
        }
        let read = self.tree.read_page(&*self.store);
        for done in self.tree_readers.drain(..) {
            let unreadable = read.clone().map_err(ReplicaError::from);
            drop(done.send(unreadable));
        }
    }

    /// Keeps the hash tree for the next start. If that fails, the records are read again then.
    async fn keep_tree(&mut self) {
        let mut batch = Batch::new();
        self.tree.stage(&mut batch);
        if let Err(error) = self.store.commit(batch, Durability::Memory).await {
            tracing::warn!(%error, "the hash tree cannot be kept");
        }
    }

    /// Adds a change to the batch being built.
    fn apply(&mut self, Queued { change, room }: Queued, building: &mut Building) {
        let Building { staged, waiting, rooms, changes, space } = building;
        let space = space.get_or_insert_with(|| self.space());
        *changes += 1;
        rooms.extend(room);
        waiting.extend(self.stage(change, space, staged));
    }

    /// Begins the commit of the batch that was built; nothing may be under way. If nothing changed, there is nothing to wait for.
    fn begin(&mut self, building: &mut Building) {
        let Building { staged, waiting, rooms, changes, .. } = std::mem::take(building);
        if changes == 0 {
            return;
        }
        self.gauges.batch.set(changes);
        self.batch_bytes = 0;
        let durability = std::mem::replace(&mut self.batch_durability, self.config.durability);
        let mut batch = Batch::new();
        let mut entries = staged;
        entries.retain(|_, entry| entry.changed);
        let mut totals = *self.totals.borrow();
        let (mut list, mut reaped) = (damage::ListChange::default(), 0);
        let mut leaves = Vec::with_capacity(entries.len());
        let long_ago = self.clock.long_ago();
        for (store_key, entry) in &mut entries {
            entry.stored.record.drop_expired(long_ago);
            let before = std::mem::take(&mut entry.before);
            before.into_iter().for_each(|before| totals.remove(before));
            let remains = entry.remains.take();
            entry.newly_damaged = remains.is_some();
            if std::mem::take(&mut entry.mended) {
                list.stage_mended(&mut batch, store_key);
            } else if let Some(remains) = remains {
                list.stage_found(&mut batch, store_key, remains);
            }
            entry.changed = false;
            let key = key_of(store_key).unwrap_or_default();
            let hash = self.tree.hash_of(&key, &entry.stored);
            let change = entry.hash.replace(hash).map(|before| before ^ hash);
            leaves.push(LeafChange { store_key: store_key.clone(), change });
            if entry.stored == Stored::default() {
                batch.delete(Keyspace::Records, store_key.clone());
                reaped += u64::from(before.is_some());
            } else {
                let bytes = entry.stored.encode();
                let weight = weight(store_key, &entry.stored, bytes.len());
                totals.add(weight);
                entry.before = Some(weight);
                batch.put(Keyspace::Records, store_key.clone(), bytes);
            }
            if entry.before.is_some_and(|after| after.deleted) {
                batch.put(Keyspace::Tombstones, store_key.clone(), Bytes::new());
            } else if before.is_some_and(|before| before.deleted) {
                batch.delete(Keyspace::Tombstones, store_key.clone());
            }
        }
        self.hints.take(&mut batch);
        self.watches.changed(entries.keys().filter_map(|store_key| store_key.get(PARTITION_LEN..)));
        self.watches.changed(self.hints.committing());
        // What asks for more than the server's own level may ask it of what was committed before.
        if batch.is_empty() && durability <= self.config.durability {
            // A store that failed may have lost what is seen here, as it was not on disk yet.
            let poisoned = self.store.health().poisoned;
            answer(waiting, &poisoned.map_or(Ok(()), |reason| Err(StoreError::Poisoned { reason })));
            return;
        }
        batch.put(Keyspace::Meta, Bytes::from_static(TOTALS_KEY), totals.encode());
        let leased = self.identity.stage_lease(&mut batch);
        let durability = if leased { Durability::Fsync } else { durability };
        let store = self.store.clone();
        let mut commit: Commit = Box::pin(async move { store.commit(batch, durability).await });
        // It queues when it is first polled. Whoever waits for it polls it again.
        if let Poll::Ready(committed) = commit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            commit = Box::pin(std::future::ready(committed));
        }
        self.under_way =
            Some(UnderWay { commit, entries, waiting, _rooms: rooms, totals, list, reaped, leaves });
    }

    /// Waits for the batch under way, if there is one, and begins the commit of the one that was built meanwhile.
    async fn turn_over(&mut self, building: &mut Building) {
        if self.under_way.is_some() {
            let committed = outcome(&mut self.under_way).await;
            self.finish(committed, building);
        } else {
            self.begin(building);
        }
    }

    /// The batch under way has come to its end, and the next may begin. If it failed, the next fails with it, untried: it was
    /// staged on top of what the store may not have.
    fn finish(&mut self, committed: Result<(), StoreError>, building: &mut Building) {
        let Some(done) = self.under_way.take() else { return };
        match &committed {
            Ok(()) => {
                self.totals.send_replace(done.totals);
                self.damage.committed(done.list);
                self.hints.committed();
                self.watches.count_reaped(done.reaped);
                self.tree.committed(&done.leaves, true);
                self.read_tree();
                // Before the answers, so that the disk need not wait for them.
                self.begin(building);
            }
            Err(error) => {
                tracing::error!(%error, "commit failed");
                self.batch_bytes = 0;
                self.batch_durability = self.config.durability;
                self.hints.failed();
                self.tree.committed(&done.leaves, false);
                answer(std::mem::take(building).waiting, &committed);
            }
        }
        answer(done.waiting, &committed);
    }

    /// What the disk has room for now. Running out of space in a commit would stop all writes until a restart.
    fn space(&mut self) -> Space {
        let needed = self.config.disk_free_bytes_min;
        let space = match self.store.health().free_bytes {
            Some(free) if free < needed => {
                let path = self.config.data_dir.clone();
                let upkeep = needed / UPKEEP_SHARE;
                if free < upkeep {
                    Space::Nothing(Refusal::DiskFull { path, free, needed: upkeep })
                } else {
                    Space::Upkeep(Refusal::DiskFull { path, free, needed })
                }
            }
            Some(_) | None => Space::Plenty,
        };
        let is_full = !matches!(space, Space::Plenty);
        if is_full != self.was_full {
            self.was_full = is_full;
            let path = &self.config.data_dir;
            match &space {
                Space::Plenty => tracing::warn!(path, "there is space again: puts are accepted"),
                Space::Upkeep(refusal) | Space::Nothing(refusal) => {
                    tracing::error!(path, ?refusal, "disk full: puts are refused until there is space");
                }
            }
        }
        space
    }

    /// Applies one change to the staged entries. Refusals are answered at once.
    fn stage(
        &mut self,
        change: Change,
        space: &Space,
        staged: &mut BTreeMap<Bytes, Staged>,
    ) -> Option<Waiting> {
        match change {
            Change::Event { hint_for, key, context, write, valid, durability, done } => {
                let cause = if write.body == Body::Tombstone { Cause::Upkeep } else { Cause::Put };
                let result =
                    in_time(&valid).and_then(|()| space.admit(cause)).and_then(|()| match hint_for {
                        Some(target) => self.in_hint(target, &key, durability, |writer, entry| {
                            writer.event(&key, entry, context, write)
                        }),
                        None => self.entry(store_key(&key), staged).and_then(|entry| {
                            let before = entry.stored.record.siblings().len();
                            let event = self.event(&key, entry, context, write)?;
                            self.look_at_siblings(&key, before, entry);
                            self.strengthen(entry, durability);
                            Ok(event)
                        }),
                    });
                or_refuse(result, done).map(|(event, done)| Waiting::Event(done, event))
            }
            Change::Merge { key, record, terms, valid, done } => {
                let result = in_time(&valid)
                    .and_then(|()| space.admit(terms.cause))
                    .and_then(|()| self.entry(store_key(&key), staged))
                    .and_then(|entry| {
                        let before = entry.stored.record.siblings().len();
                        let missed = merge(entry, &record)?;
                        self.look_at_siblings(&key, before, entry);
                        self.strengthen(entry, terms.durability);
                        Ok(missed)
                    });
                or_refuse(result, done).map(|(missed, done)| Waiting::Missed(done, missed))
            }
            Change::Supersede { hint_for, key, first, missed, valid, durability, done } => {
                let admitted = in_time(&valid).and_then(|()| space.admit(Cause::Upkeep));
                let result = admitted.and_then(|()| match hint_for {
                    Some(target) => self.in_hint(target, &key, durability, |writer, entry| {
                        // The hint of the first event may have been delivered, and is gone then.
                        merge(entry, &first.record)?;
                        writer.supersede(entry, &first, &missed)
                    }),
                    None => self.entry(store_key(&key), staged).and_then(|entry| {
                        let event = self.supersede(entry, &first, &missed)?;
                        self.strengthen(entry, durability);
                        Ok(event)
                    }),
                });
                or_refuse(result, done).map(|(event, done)| Waiting::Superseded(done, event))
            }
            Change::Quarantine { store_key, done } => {
                let result = space.admit(Cause::Upkeep).and_then(|()| self.entry(store_key, staged));
                or_refuse(result.map(drop), done).map(|((), done)| Waiting::Done(done))
            }
            Change::Reclaim { store_key, done } => {
                let long_ago = self.clock.long_ago();
                let result = space.admit(Cause::Upkeep).and_then(|()| self.entry(store_key, staged));
                let result = result.map(|entry| {
                    // One that holds nothing but tombstones is found here because it is not known as such.
                    entry.changed |= entry.stored.record.drop_expired(long_ago) || entry.stored.is_deleted();
                });
                or_refuse(result, done).map(|((), done)| Waiting::Done(done))
            }
            Change::Mend { key, theirs, again, done } => {
                let is_current = self.damage.again() == again;
                let result = space
                    .admit(Cause::Upkeep)
                    .and_then(|()| self.entry(store_key(&key), staged))
                    .and_then(|entry| if is_current { mend(entry, &theirs) } else { Ok(()) });
                or_refuse(result, done).map(|((), done)| Waiting::Done(done))
            }
            Change::ReadTree { done } => {
                self.tree_readers.push(done);
                None
            }
            Change::StandIn { target, key, record, terms, valid, done } => {
                let admitted = in_time(&valid).and_then(|()| space.admit(terms.cause));
                let result = admitted.and_then(|()| {
                    self.in_hint(target, &key, terms.durability, |_, entry| merge(entry, &record))
                });
                or_refuse(result, done).map(|(missed, done)| Waiting::Missed(done, missed))
            }
            Change::Reap { request, valid, done } => {
                let admitted = in_time(&valid).and_then(|()| space.admit(Cause::Upkeep));
                let result = admitted.and_then(|()| self.reap(&request, staged));
                or_refuse(result, done).map(|(places, done)| Waiting::Passed(done, places))
            }
            Change::Hint { change, durability, done } => {
                let result = space.admit(Cause::Upkeep).and_then(|()| self.hints.stage(&*self.store, change));
                self.batch_durability = self.batch_durability.max(level(durability));
                or_refuse(result, done).map(|((), done)| Waiting::Done(done))
            }
        }
    }

    /// Takes a step towards forgetting tombstones. The places of the keys that pass.
    fn reap(
        &mut self,
        ReapRequest { from, round, step, keys, .. }: &ReapRequest,
        staged: &mut BTreeMap<Bytes, Staged>,
    ) -> Result<Vec<u32>, ReplicaError> {
        let long_ago = self.clock.long_ago();
        let mut passed = Vec::new();
        for (place, ReapKey { key, hash }) in (0..).zip(keys) {
            let entry = self.entry(store_key(key), staged)?;
            let Stored { record, is_incomplete, .. } = &entry.stored;
            let is_nothing = entry.stored == Stored::default();
            let is_same = !is_incomplete && record.hash() == *hash && record.is_deleted(long_ago);
            let is_kept = self.hints.has(&*self.store, key)?;
            if !(is_nothing || is_same) || is_kept || !self.watches.step(*from, *round, *step, key) {
                continue;
            }
            if *step == ReapStep::Reap && is_same {
                entry.stored = Stored::default();
                entry.changed = true;
            }
            passed.push(place);
        }
        if *step == ReapStep::Confirm {
            self.batch_durability = Durability::Fsync;
        }
        Ok(passed)
    }

    /// Changes what is kept of a key for others, and keeps what comes of it for one of them. It counts in a quorum, so it is
    /// written even if nothing new came of it: what is there may be less durable.
    fn in_hint<A>(
        &mut self,
        target: Target,
        key: &Bytes,
        asked: message::Durability,
        change: impl FnOnce(&mut Self, &mut Staged) -> Result<A, ReplicaError>,
    ) -> Result<A, ReplicaError> {
        let (record, own) = self.hints.held(&*self.store, target, key)?;
        let mut entry = Staged {
            // No record of this server.
            hash: None,
            stored: Stored { record, own, is_incomplete: false },
            before: None,
            changed: false,
            remains: None,
            newly_damaged: false,
            mended: false,
        };
        let answer = change(self, &mut entry)?;
        let Stored { record, own, .. } = entry.stored;
        let key = key.clone();
        let held = Held { record, own, durability: self.delivered_as(asked) };
        self.hints.stage(&*self.store, HintChange::Hold { target, key, held })?;
        self.batch_durability = self.batch_durability.max(level(asked));
        Ok(answer)
    }

    /// How durable an owner has to make what was kept for it, before it is deleted here: it takes the place of a copy that
    /// may be on the disk by then.
    fn delivered_as(&self, asked: message::Durability) -> message::Durability {
        match self.config.durability.max(level(asked)) {
            Durability::Memory => message::Durability::Memory,
            Durability::Interval | Durability::Fsync => message::Durability::Fsync,
        }
    }

    fn look_at_siblings(&self, key: &[u8], before: usize, entry: &Staged) {
        let after = entry.stored.record.siblings().len();
        self.gauges.siblings.look(self.config.siblings, key, before, after);
    }

    /// Has the batch be as durable as one of its changes asks. What that one found already done may have been done with
    /// less, so it is written again.
    fn strengthen(&mut self, entry: &mut Staged, durability: message::Durability) {
        let durability = level(durability);
        if durability > self.config.durability {
            entry.changed = true;
            self.batch_durability = self.batch_durability.max(durability);
        }
    }

    /// The key's entry in this batch. If this is the first change to it, from the batch under way, or else from the store. An
    /// incomplete one takes the place of one that is damaged.
    fn entry<'a>(
        &mut self,
        store_key: Bytes,
        staged: &'a mut BTreeMap<Bytes, Staged>,
    ) -> Result<&'a mut Staged, ReplicaError> {
        use std::collections::btree_map::Entry;
        match staged.entry(store_key) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(slot) => {
                let under_way = self.under_way.as_mut();
                if let Some(entry) = under_way.and_then(|batch| batch.entries.remove(slot.key())) {
                    self.batch_bytes += entry.stored.record.value_len();
                    return Ok(slot.insert(entry));
                }
                let (bytes, stored) = match self.store.get(Keyspace::Records, slot.key()) {
                    Ok(None) => (None, Ok(Stored::default())),
                    Ok(Some(bytes)) => {
                        let stored = Stored::decode(&bytes).map_err(|error| error.to_string());
                        (Some(bytes), stored)
                    }
                    Err(error) if is_damage(&error) => (Some(Bytes::new()), Err(error.to_string())),
                    Err(error) => return Err(error.into()),
                };
                let len = bytes.as_ref().map(Bytes::len);
                let (stored, before, remains) = match stored {
                    Ok(stored) => {
                        let before = len.map(|len| weight(slot.key(), &stored, len));
                        (stored, before, None)
                    }
                    Err(reason) => {
                        let before = damaged_weight(&*self.store, slot.key(), len.unwrap_or_default())?;
                        let remains = Remains::of(&*self.store, slot.key(), bytes.unwrap_or_default())?;
                        damage::tell(slot.key(), &reason);
                        (Stored { is_incomplete: true, ..Stored::default() }, Some(before), Some(remains))
                    }
                };
                self.batch_bytes += stored.record.value_len();
                let key = key_of(slot.key()).unwrap_or_default();
                let hash = remains.is_none().then(|| self.tree.hash_of(&key, &stored));
                let changed = remains.is_some();
                Ok(slot.insert(Staged {
                    stored,
                    before,
                    hash,
                    changed,
                    remains,
                    newly_damaged: changed,
                    mended: false,
                }))
            }
        }
    }

    fn event(
        &mut self,
        key: &[u8],
        entry: &mut Staged,
        context: Option<VersionVector>,
        ClientWrite { op, body, ttl_ms }: ClientWrite,
    ) -> Result<Event, ReplicaError> {
        let record = &entry.stored.record;
        // A coordinator that failed may have begun the put. With a context, all it replaces is gone then; without one, only
        // what that coordinator held.
        let nothing_to_replace = || record.siblings().iter().all(|sibling| sibling.write.op == op);
        let begun = record.written_by(op);
        if let Some(begun) = begun
            && (context.is_some() || nothing_to_replace())
        {
            let context = context.unwrap_or_else(|| record.vv().clone());
            let seen = record.seen_after(&context, begun.dot);
            return Ok(Event { record: record.clone(), dot: begun.dot, seen });
        }
        let context = context.unwrap_or_else(|| record.vv().clone());
        let kept = record.siblings().iter().filter(|sibling| !context.covers(sibling.dot));
        let len = body.len() + kept.map(|sibling| sibling.write.body.len()).sum::<usize>();
        if len > RECORD_LEN_MAX {
            return Err(ReplicaError::Refused(Refusal::TooLong {
                what: "record, all its siblings together".into(),
                len: len as u64,
                len_max: RECORD_LEN_MAX as u64,
            }));
        }
        self.config.siblings.admit(key, record, &context).map_err(ReplicaError::Refused)?;
        // The time is chosen once, here if it was not elsewhere.
        let chosen = || ttl_ms.map(|ttl_ms| self.clock.now().saturating_add(ttl_ms));
        let expires = begun.map_or_else(chosen, |begun| begun.write.expires);
        let write = Write { op, hlc: self.clock.tick(), expires, body };
        let dot = self.make_event(entry, &context, write)?;
        let record = entry.stored.record.clone();
        Ok(Event { dot, seen: record.seen_after(&context, dot), record })
    }

    /// The second round of a put without a context: a second event that replaces its first and what that had missed.
    /// `None` when the first has been replaced meanwhile: then what had been missed may be what replaced it.
    fn supersede(
        &mut self,
        entry: &mut Staged,
        first: &Event,
        missed: &VersionVector,
    ) -> Result<Option<Event>, ReplicaError> {
        let mut siblings = entry.stored.record.siblings().iter();
        let Some(first_write) = siblings.find(|sibling| sibling.dot == first.dot) else { return Ok(None) };
        let write = first_write.write.clone();
        let mut context = missed.clone();
        context.add(first.dot);
        let dot = self.make_event(entry, &context, write)?;
        context.merge(&first.seen);
        let record = entry.stored.record.clone();
        Ok(Some(Event { dot, seen: record.seen_after(&context, dot), record }))
    }

    /// Refused when the record would become one that no decoder reads: then a peer or a context has named more events than
    /// servers ever made.
    fn make_event(
        &mut self,
        entry: &mut Staged,
        context: &VersionVector,
        write: Write,
    ) -> Result<Dot, ReplicaError> {
        let Stored { record, own, .. } = &mut entry.stored;
        let mut known = record.vv().clone();
        known.merge(context);
        let dot = self.identity.next_dot(&known, *own);
        known.add(dot);
        let stays = |sibling: &&Sibling| !sibling.dot.actor.is_initial() && !context.covers(sibling.dot);
        let siblings = record.siblings().iter().filter(stays).count() + 1;
        if known.len() > VERSION_VECTOR_LEN_MAX || siblings > SIBLINGS_LEN_MAX {
            return Err(too_many_versions());
        }
        record.event(context, dot, write);
        *own = Some(dot);
        entry.changed = true;
        Ok(dot)
    }
}

/// How the batch under way ended, once it has; never if there is none.
async fn outcome(under_way: &mut Option<UnderWay>) -> Result<(), StoreError> {
    match under_way {
        Some(batch) => batch.commit.as_mut().await,
        None => std::future::pending().await,
    }
}

fn answer(waiting: Vec<Waiting>, committed: &Result<(), StoreError>) {
    waiting.into_iter().for_each(|waiting| waiting.answer(committed.clone()));
}

/// Refuses a put that nobody counts on any more. What this server holds now was there before the put expired, so an event
/// that passes replaces nothing newer, even if it is interrupted right here.
fn in_time(valid: &Validity) -> Result<(), ReplicaError> {
    if valid.holds() { Ok(()) } else { Err(ReplicaError::Refused(Refusal::Overloaded)) }
}

fn too_many_versions() -> ReplicaError {
    ReplicaError::Refused(Refusal::Invalid(TOO_MANY_VERSIONS.into()))
}

fn weight(store_key: &Bytes, stored: &Stored, value_len: usize) -> Weight {
    let bytes = (store_key.len() + value_len) as u64;
    Weight { live: stored.is_live(), deleted: stored.is_deleted(), bytes }
}

/// What an entry that cannot be read any more has added, as far as anybody can tell: it was a value, unless it is known to have
/// been deleted.
fn damaged_weight(store: &impl Store, store_key: &Bytes, value_len: usize) -> Result<Weight, StoreError> {
    let deleted = match store.get(Keyspace::Tombstones, store_key) {
        Err(error) if is_damage(&error) => false,
        known => known?.is_some(),
    };
    Ok(Weight { live: !deleted, deleted, bytes: (store_key.len() + value_len) as u64 })
}

fn merge(entry: &mut Staged, record: &Record) -> Result<Vec<Dot>, ReplicaError> {
    let ours = &mut entry.stored.record;
    let missed = ours.missed_by(record);
    if !ours.includes(record) {
        let mut merged = ours.clone();
        merged.merge(record);
        if !fits(&merged) {
            return Err(too_many_versions());
        }
        *ours = merged;
        entry.changed = true;
    }
    Ok(missed)
}

/// Completes what was damaged. What is whole already is left as it is, and so is what was found damaged only now, in
/// this batch or the one under way, as what was found since the others were asked: their answers may be older than what was lost.
fn mend(entry: &mut Staged, theirs: &Record) -> Result<(), ReplicaError> {
    if entry.stored.is_incomplete && !entry.newly_damaged {
        merge(entry, theirs)?;
        entry.stored.is_incomplete = false;
        entry.changed = true;
        entry.mended = true;
    }
    Ok(())
}

/// Passes a result on with its addressee, or tells the addressee of the error.
fn or_refuse<A>(result: Result<A, ReplicaError>, done: Done<A>) -> Option<(A, Done<A>)> {
    match result {
        Ok(answer) => Some((answer, done)),
        Err(error) => {
            drop(done.send(Err(error)));
            None
        }
    }
}
