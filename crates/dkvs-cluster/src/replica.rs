//! One server's copy of the records it owns.
//!
//! Reads go straight to the store and see what is committed. Changes go through the one writer of
//! [`crate::writer`], which serialises them and answers when they are durable.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::hash_tree::EntryHash;
use dkvs_core::hlc::WallMs;
use dkvs_core::position::Partition;
use dkvs_core::record::Record;
use dkvs_core::version::{Dot, VersionVector};
use dkvs_net::{Gauge, Held, Level, Validity};
use dkvs_proto::message::reap::ReapRequest;
use dkvs_proto::message::replica::Cause;
use dkvs_proto::message::{self, Refusal};
use dkvs_storage::{Durability, Health, Keyspace, ScanLimit, Start, Store, StoreError};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::damage::{Damage, is_damage, scan_readable};
use crate::hints::{self, DirtyMark, Hint, HintChange, HintWriter, HintsKept, Target};
use crate::identity::Identity;
use crate::reaping::Watches;
use crate::siblings::SiblingLimits;
use crate::stored::{Stored, key_of, store_key};
use crate::tree::Tree;
use crate::writer::{Change, ClientWrite, Event, Gauges, Ledgers, Queued, Totals, Writer};

/// The unit in which room for long changes is counted, in bytes. A change shorter than one is bounded by the length of the
/// queue, and takes no room.
const ROOM_UNIT_LEN: usize = 4 * 1_024;

/// How much may wait for the writer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) changes_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) batch_max: usize,
}

/// Why a replica did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Nothing was done.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The store failed. A change may or may not have happened.
    #[error("storage failed: {0}")]
    Storage(#[from] StoreError),
    /// What the store held for the key was damaged, and is not repaired yet. Nothing was done.
    #[error("the stored record is damaged, and not repaired yet")]
    Damaged,
}

impl ReplicaError {
    /// As it is told to others.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Storage(error) => Refusal::Storage(error.to_string()),
            Self::Damaged => Refusal::Damaged,
        }
    }
}

/// What is asked of a replica beside a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How durable the change has to be, if that is more than the server's own level.
    pub(crate) durability: message::Durability,
    /// What space the change may take.
    pub(crate) cause: Cause,
}

impl Terms {
    /// For what makes copies equal.
    pub(crate) const UPKEEP: Self = Self { durability: message::Durability::Memory, cause: Cause::Upkeep };
}

/// A level that was asked for, as the store knows it.
pub(crate) fn level(asked: message::Durability) -> Durability {
    match asked {
        message::Durability::Memory => Durability::Memory,
        message::Durability::Interval => Durability::Interval,
        message::Durability::Fsync => Durability::Fsync,
    }
}

/// What a replica is told when it is opened.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaConfig {
    /// How durable every change is before it is answered.
    pub(crate) durability: Durability,
    pub(crate) limits: QueueLimits,
    /// Where the data is, for messages.
    pub(crate) data_dir: String,
    /// Bytes that have to be free for clients' values to be accepted.
    pub(crate) disk_free_bytes_min: u64,
    /// Bytes of hints kept for one server.
    pub(crate) hint_bytes_max: u64,
    pub(crate) siblings: SiblingLimits,
    /// How long a message of this server may live.
    pub(crate) message_life: Duration,
    /// Keys that this server is given at its start.
    pub(crate) given: BTreeSet<Bytes>,
}

/// One entry of a page: a key and its record.
pub(crate) type Entry = (Bytes, Record);

/// Entries of a partition with their hashes.
pub(crate) struct HashPage {
    pub(crate) hashes: Vec<(Bytes, EntryHash)>,
    /// The last key that was read; `None` when there are no more.
    pub(crate) end: Option<Bytes>,
    /// Whether none was left out.
    pub(crate) is_whole: bool,
}

/// A page that was looked at for damage.
pub(crate) struct Scrubbed {
    /// The last entry; `None` when none could be read.
    pub(crate) last: Option<Bytes>,
    /// Bytes that were read.
    pub(crate) bytes: usize,
    /// Why what follows cannot be read.
    pub(crate) damage: Option<StoreError>,
}

/// The gauge of the bytes of long changes.
#[derive(Debug)]
pub(crate) struct SharedGauge(Arc<Gauges>);

impl Deref for SharedGauge {
    type Target = Gauge;

    fn deref(&self) -> &Gauge {
        &self.0.change_bytes
    }
}

/// Room that a long change takes from before it queues until it is committed.
pub(crate) type Room = (OwnedSemaphorePermit, Held<SharedGauge>);

/// This server's records. Clones share them.
pub struct Replica<T> {
    store: Arc<T>,
    changes: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    room_units: usize,
    gauges: Arc<Gauges>,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
    totals: watch::Receiver<Totals>,
    damage: Arc<Damage>,
    hints_kept: Arc<HintsKept>,
    tree: Arc<Tree>,
    watches: Arc<Watches>,
}

impl<T> Clone for Replica<T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            changes: self.changes.clone(),
            room: self.room.clone(),
            room_units: self.room_units,
            gauges: self.gauges.clone(),
            stop: self.stop.clone(),
            stopped: self.stopped.clone(),
            totals: self.totals.clone(),
            damage: self.damage.clone(),
            hints_kept: self.hints_kept.clone(),
            tree: self.tree.clone(),
            watches: self.watches.clone(),
        }
    }
}

impl<T> std::fmt::Debug for Replica<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replica({:?})", *self.totals.borrow())
    }
}

impl<T: Store> Replica<T> {
    /// Opens the records in `store` and starts their writer. `start` says how the last run ended.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(crate) async fn open(
        store: Arc<T>,
        start: Start,
        config: ReplicaConfig,
        clock: Arc<Clock>,
        mut random: StdRng,
    ) -> Result<Self, StoreError> {
        let limits = config.limits;
        let odd = EntryHash::from_bytes(random.random());
        let tree = Arc::new(Tree::open(&*store, start, odd).await?);
        let identity = Identity::open(&*store, start, random).await?;
        let incarnation = identity.incarnation();
        let damage = Arc::new(Damage::open(&*store)?);
        let hints = HintWriter::open(&*store, config.hint_bytes_max)?;
        let hints_kept = hints.kept();
        let (changes, queue) = mpsc::channel(limits.changes_max);
        let room_units = limits.bytes_max / ROOM_UNIT_LEN;
        let gauges = Arc::new(Gauges::new(limits, room_units * ROOM_UNIT_LEN));
        let (stop, stopping) = watch::channel(false);
        let watches = Arc::new(Watches::new(config.message_life, config.given.clone()));
        let (damage_kept, tree_kept) = (damage.clone(), tree.clone());
        let ledgers = Ledgers { damage: damage_kept, hints, tree: tree_kept, watches: watches.clone() };
        let (writer, stopped, totals) =
            Writer::new(store.clone(), identity, clock, config, gauges.clone(), ledgers)?;
        let Totals { keys, tombstones, bytes } = *totals.borrow();
        let (incarnation, damaged) = (format_args!("{incarnation:016x}"), damage.waiting());
        match start {
            Start::New | Start::Clean => {
                tracing::info!(?start, incarnation, keys, tombstones, bytes, damaged, "replica opened");
            }
            // Whoever sees that it was not clean wants to know what is there.
            Start::Unclean => {
                tracing::warn!(?start, incarnation, keys, tombstones, bytes, damaged, "replica recovered");
            }
        }
        tokio::spawn(writer.run(queue, limits.batch_max, stopping));
        let room = Arc::new(Semaphore::new(room_units));
        Ok(Self {
            store,
            changes,
            room,
            room_units,
            gauges,
            stop,
            stopped,
            totals,
            damage,
            hints_kept,
            tree,
            watches,
        })
    }

    /// The record of a key; empty when there is none. A damaged one is put aside, and repaired from the other owners.
    ///
    /// # Errors
    /// When it cannot be read: others have to be asked.
    pub fn fetch(&self, key: &[u8]) -> Result<Record, ReplicaError> {
        let stored = self.stored(key)?;
        if stored.is_incomplete { Err(ReplicaError::Damaged) } else { Ok(stored.record) }
    }

    /// The entry of a key, an empty one when there is none, or what takes the place of a damaged one.
    pub(crate) fn stored(&self, key: &[u8]) -> Result<Stored, ReplicaError> {
        let store_key = store_key(key);
        let stored = match self.store.get(Keyspace::Records, &store_key) {
            Ok(None) => return Ok(Stored::default()),
            Ok(Some(bytes)) => Stored::decode(&bytes).ok(),
            Err(error) if is_damage(&error) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(stored.unwrap_or_else(|| {
            self.report(store_key);
            Stored { is_incomplete: true, ..Stored::default() }
        }))
    }

    /// Has the writer look at an entry that seems damaged. If it has too much to do now, whoever reads the entry next
    /// reports it again.
    fn report(&self, store_key: Bytes) {
        let (done, _) = oneshot::channel();
        let change = Change::Quarantine { store_key, done };
        let _ = self.changes.try_send(Queued { change, room: None });
    }

    /// Has the writer drop bytes of an entry that have expired. If it has too much to do now, the next scrub does.
    fn reclaim(&self, store_key: Bytes) {
        let (done, _) = oneshot::channel();
        let _ = self.changes.try_send(Queued { change: Change::Reclaim { store_key, done }, room: None });
    }

    /// Completes a record that was damaged here with what the other owners hold of it. They were asked when records had been found
    /// damaged so often [again](Damage::again): if it is more by now, this one may be among them, and is left as it is.
    pub(crate) async fn mend(&self, key: Bytes, theirs: Record, again: u64) -> Result<(), ReplicaError> {
        let len = key.len() + theirs.value_len();
        self.change(len, |done| Change::Mend { key, theirs, again, done }).await
    }

    /// The hash tree over the records.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Has the writer read a page of what the hash tree does not know.
    pub(crate) async fn read_tree_page(&self) -> Result<(), ReplicaError> {
        let unreadable = self.change(0, |done| Change::ReadTree { done }).await?;
        unreadable.into_iter().for_each(|store_key| self.report(store_key));
        Ok(())
    }

    /// Some of the entries of a partition after a key of it, with their hashes. Damaged ones are left out, and all that follow what
    /// the engine cannot read.
    pub(crate) fn entry_hashes(
        &self,
        partition: Partition,
        after: &[u8],
        limit: ScanLimit,
    ) -> Result<HashPage, StoreError> {
        let number = partition.number().to_be_bytes();
        let after = [&number[..], after].concat();
        let (page, damage) = scan_readable(&*self.store, Some(&after), limit)?;
        let is_ours = |store_key: &Bytes| store_key.starts_with(&number);
        let last = page.last().filter(|(last, _)| is_ours(last) && damage.is_none());
        let end = last.and_then(|(last, _)| key_of(last));
        // Where the page ends, the partition may not.
        let mut is_whole = damage.is_none() || page.last().is_some_and(|(last, _)| !is_ours(last));
        let ours = page.into_iter().filter(|(store_key, _)| is_ours(store_key));
        let hashes = ours.filter_map(|(store_key, bytes)| match Stored::decode(&bytes) {
            Ok(Stored { is_incomplete: true, .. }) => {
                is_whole = false;
                None
            }
            Ok(stored) if stored == Stored::default() => None,
            Ok(stored) => {
                let key = key_of(&store_key)?;
                let hash = self.tree.hash_of(&key, &stored);
                Some((key, hash))
            }
            Err(_) => {
                is_whole = false;
                self.report(store_key);
                None
            }
        });
        let hashes = hashes.collect();
        Ok(HashPage { hashes, end, is_whole })
    }

    /// What was found damaged here.
    pub(crate) fn damage(&self) -> &Damage {
        &self.damage
    }

    /// A page of the keys whose records are not repaired yet, after one of them.
    pub(crate) fn damaged_keys(&self, after: Option<&Bytes>) -> Result<Vec<Bytes>, StoreError> {
        Damage::page(&*self.store, after)
    }

    /// How the store is.
    pub(crate) fn health(&self) -> Health {
        self.store.health()
    }

    /// Where there is nothing but tombstones, after a store key.
    pub(crate) fn tombstones(
        &self,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<Bytes>, StoreError> {
        let page = self.store.scan(Keyspace::Tombstones, after, limit)?;
        Ok(page.into_iter().map(|(store_key, _)| store_key).collect())
    }

    /// What this server watches, and has under way.
    pub(crate) fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// Takes a step towards forgetting tombstones. The places of the keys that pass.
    pub(crate) async fn reap(&self, request: ReapRequest, valid: Validity) -> Result<Vec<u32>, ReplicaError> {
        let len = request.keys.iter().map(|key| key.key.len()).sum();
        self.change(len, |done| Change::Reap { request, valid, done }).await
    }

    /// Looks at a page of entries after one of them, puts aside what is damaged, and drops the bytes of what expired before
    /// `long_ago`.
    pub(crate) fn scrub(
        &self,
        after: Option<&[u8]>,
        limit: ScanLimit,
        long_ago: WallMs,
    ) -> Result<Scrubbed, StoreError> {
        let (page, damage) = scan_readable(&*self.store, after, limit)?;
        let bytes = page.iter().map(|(store_key, bytes)| store_key.len() + bytes.len()).sum();
        for (store_key, bytes) in &page {
            match Stored::decode(bytes) {
                Ok(mut stored) => {
                    let is_unknown =
                        || self.store.get(Keyspace::Tombstones, store_key).map(|at| at.is_none());
                    if stored.record.drop_expired(long_ago) || stored.is_deleted() && is_unknown()? {
                        self.reclaim(store_key.clone());
                    }
                }
                Err(_) => self.report(store_key.clone()),
            }
        }
        Ok(Scrubbed { last: page.last().map(|(store_key, _)| store_key.clone()), bytes, damage })
    }

    /// Makes an event: a put or delete that this server coordinates. Without a `context` it replaces what this server
    /// holds. Returns when it is durable. Refused when it is not `valid` any more by the time it is its turn. There is no
    /// second event if its `op` has made one that leaves nothing to do.
    pub(crate) async fn event(
        &self,
        key: Bytes,
        context: Option<VersionVector>,
        write: ClientWrite,
        valid: Validity,
        durability: message::Durability,
    ) -> Result<Event, ReplicaError> {
        self.event_in(None, key, context, write, valid, durability).await
    }

    /// [`Replica::event`], in the hint for an owner for which this server stands in, if there is one, and on all hints of the
    /// key. Of what this server owns itself it takes no notice.
    pub(crate) async fn event_in(
        &self,
        hint_for: Option<Target>,
        key: Bytes,
        context: Option<VersionVector>,
        write: ClientWrite,
        valid: Validity,
        durability: message::Durability,
    ) -> Result<Event, ReplicaError> {
        let len = key.len() + write.body.len();
        let change = |done| Change::Event { hint_for, key, context, write, valid, durability, done };
        self.change(len, change).await
    }

    /// Merges another replica's record. Returns what was known here before that a put without a
    /// context would have had to replace and had not heard of; see [`Record::missed_by`]. Refused when it is not `valid` any more
    /// by the time it is its turn: a record that comes too late may be of before its key was forgotten.
    pub(crate) async fn merge(
        &self,
        key: Bytes,
        record: Record,
        terms: Terms,
        valid: Validity,
    ) -> Result<Vec<Dot>, ReplicaError> {
        let len = key.len() + record.value_len();
        self.change(len, |done| Change::Merge { key, record, terms, valid, done }).await
    }

    /// Makes a second event in place of this server's `first`, which replaces also what was `missed`. `None` if the first
    /// has been replaced meanwhile. Refused when the put is not `valid` any more: what was missed may then be newer.
    /// It is made where the first was, in the record or in a hint.
    pub(crate) async fn supersede(
        &self,
        hint_for: Option<Target>,
        key: Bytes,
        first: Event,
        missed: VersionVector,
        valid: Validity,
        durability: message::Durability,
    ) -> Result<Option<Event>, ReplicaError> {
        let len = key.len() + first.record.value_len();
        let change = |done| Change::Supersede { hint_for, key, first, missed, valid, durability, done };
        self.change(len, change).await
    }

    /// Keeps a record for an owner for which this server stands in. Returns what it kept of the key before that the record had
    /// not heard of, as [`Replica::merge`] does.
    pub(crate) async fn stand_in(
        &self,
        target: Target,
        key: Bytes,
        record: Record,
        terms: Terms,
        valid: Validity,
    ) -> Result<Vec<Dot>, ReplicaError> {
        let len = key.len() + record.value_len();
        self.change(len, |done| Change::StandIn { target, key, record, terms, valid, done }).await
    }

    /// All that is kept of a key for others; empty when nothing is.
    ///
    /// # Errors
    /// When some of it cannot be read: others have to be asked.
    pub(crate) fn fetch_hints(&self, key: &[u8]) -> Result<Record, ReplicaError> {
        let mut all = Record::new();
        for target in self.hints_kept.targets() {
            let Some((hint, _)) = self.hint_held(target, key)? else { continue };
            all.merge(&hint.record.map_err(|_| ReplicaError::Damaged)?);
        }
        Ok(all)
    }

    /// Changes what is kept for another server. Returns when that is durable.
    pub(crate) async fn hint(
        &self,
        change: HintChange,
        durability: message::Durability,
    ) -> Result<(), ReplicaError> {
        let len = match &change {
            HintChange::Keep { key, record, .. } => key.len() + record.value_len(),
            HintChange::Hold { key, held, .. } => key.len() + held.record.value_len(),
            HintChange::Delivered { .. } | HintChange::Clean(_) => 0,
        };
        self.change(len, |done| Change::Hint { change, durability, done }).await
    }

    /// Some of the hints for a server, after the one for this key.
    pub(crate) fn hints(&self, target: Target, after: Option<&Bytes>) -> Result<Vec<Hint>, StoreError> {
        hints::page(&*self.store, target, after)
    }

    /// The hint for a server that is kept of one key, and its bytes.
    pub(crate) fn hint_held(&self, target: Target, key: &[u8]) -> Result<Option<(Hint, u64)>, StoreError> {
        hints::held(&*self.store, target, key)
    }

    /// How often a change left a key with many siblings.
    pub(crate) fn siblings_warned(&self) -> u64 {
        self.gauges.siblings.count()
    }

    /// How much is kept for other servers.
    pub(crate) fn hints_kept(&self) -> &HintsKept {
        &self.hints_kept
    }

    /// The dirty marks of a server after that of a partition, at most so many.
    pub(crate) fn dirty_marks_of(
        &self,
        target: Target,
        after: Option<Partition>,
        marks_max: usize,
    ) -> Result<Vec<DirtyMark>, StoreError> {
        hints::dirty_marks_of(&*self.store, target, after, marks_max)
    }

    /// Where other servers missed writes for which there is no hint: at most so many marks, after one of them. To be
    /// compared with what those servers hold, and then cleared.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn dirty_marks(
        &self,
        after: Option<DirtyMark>,
        marks_max: usize,
    ) -> Result<Vec<DirtyMark>, StoreError> {
        hints::dirty_marks(&*self.store, after, marks_max)
    }

    /// Forgets a mark as it was read, because what it stands for was repaired since. One that was set again meanwhile stays.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn clear_dirty_mark(&self, mark: DirtyMark) -> Result<(), ReplicaError> {
        self.hint(HintChange::Clean(mark), message::Durability::Memory).await
    }

    /// Has the writer apply a change of so many bytes. Whoever gives it up meanwhile leaves it in the queue, so that the
    /// room it takes is not the caller's but its own.
    async fn change<A>(
        &self,
        len: usize,
        change: impl FnOnce(oneshot::Sender<Result<A, ReplicaError>>) -> Change,
    ) -> Result<A, ReplicaError> {
        let (done, answer) = oneshot::channel();
        let stopping = || ReplicaError::Refused(Refusal::Stopping);
        let room = self.room_for(len).await;
        if self.changes.capacity() == 0 {
            self.gauges.changes.was_full();
        }
        let queued = Queued { change: change(done), room };
        self.changes.send(queued).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Waits for room for a change of so many bytes, if it needs any. One that needs more than there is takes all.
    async fn room_for(&self, len: usize) -> Option<Room> {
        let units = (len / ROOM_UNIT_LEN).min(self.room_units);
        if units == 0 {
            return None;
        }
        if units > self.room.available_permits() {
            self.gauges.change_bytes.was_full();
        }
        let permits = u32::try_from(units).unwrap_or(u32::MAX);
        let permit = self.room.clone().acquire_many_owned(permits).await.ok()?;
        Some((permit, Gauge::hold(SharedGauge(self.gauges.clone()), units * ROOM_UNIT_LEN)))
    }

    /// How full the writer's queue and its batches are, and were at most.
    pub(crate) fn levels(&self) -> [Level; 3] {
        let Gauges { changes, change_bytes, batch, .. } = &*self.gauges;
        [changes.level("changes"), change_bytes.level("change_bytes"), batch.level("batch")]
    }

    /// A page of the records after a store key, and where the next page starts. Damaged records are left out.
    pub(crate) fn page(
        &self,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<(Vec<Entry>, Option<Bytes>), StoreError> {
        let page = self.store.scan(Keyspace::Records, after, limit)?;
        let next = page.last().map(|(store_key, _)| store_key.clone());
        let readable = page.into_iter().filter_map(|(store_key, bytes)| match Stored::decode(&bytes) {
            Ok(stored) if stored.is_incomplete => None,
            Ok(stored) => Some((key_of(&store_key)?, stored.record)),
            Err(_) => {
                self.report(store_key);
                None
            }
        });
        Ok((readable.collect(), next))
    }

    /// How much is held.
    pub(crate) fn totals(&self) -> Totals {
        *self.totals.borrow()
    }

    /// Takes no more changes, waits for those that were taken, and closes the store.
    ///
    /// # Errors
    /// When the store cannot promise that everything is on disk.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.stop.send_replace(true);
        // An error means that the writer is gone, which is what is waited for.
        let _ = self.stopped.clone().wait_for(|stopped| *stopped).await;
        self.store.close().await
    }
}

#[cfg(test)]
mod tests {
    use dkvs_core::hlc::Hlc;
    use dkvs_core::limits::VERSION_VECTOR_LEN_MAX;
    use dkvs_core::record::{Body, OpId, Write};
    use dkvs_core::ring::{RingId, ServerIndex};
    use dkvs_core::servers::ServerName;
    use dkvs_core::version::Actor;
    use dkvs_proto::message::reap::{ReapKey, ReapStep};
    use dkvs_storage::{Batch, MemoryStore};
    use rand::SeedableRng;

    use super::*;

    const KEY: Bytes = Bytes::from_static(b"k");

    const MESSAGE_LIFE: Duration = Duration::from_secs(1);

    /// Whatever the server's level is.
    const WEAK: message::Durability = message::Durability::Memory;
    const STRONG: message::Durability = message::Durability::Fsync;

    async fn replica() -> Replica<MemoryStore> {
        replica_on(Arc::new(MemoryStore::new()), Durability::Memory).await
    }

    async fn replica_on<T: Store>(store: Arc<T>, durability: Durability) -> Replica<T> {
        let clock = Arc::new(Clock::new(Arc::new(|| 1_000), 1_000));
        let random = StdRng::seed_from_u64(1);
        let limits = QueueLimits { changes_max: 8, bytes_max: 1 << 20, batch_max: 4 };
        let data_dir = String::new();
        let config = ReplicaConfig {
            durability,
            limits,
            data_dir,
            disk_free_bytes_min: 0,
            hint_bytes_max: 1 << 20,
            siblings: SiblingLimits::default(),
            message_life: MESSAGE_LIFE,
            given: BTreeSet::new(),
        };
        Replica::open(store, Start::New, config, clock, random).await.unwrap()
    }

    fn op(sequence: u64) -> OpId {
        OpId { client: 1, sequence }
    }

    fn value(text: &'static str) -> Body {
        Body::Value(Bytes::from_static(text.as_bytes()))
    }

    /// What another coordinator made of an operation, knowing of nothing else.
    fn made_elsewhere(op: OpId, body: Body) -> Record {
        let dot = Dot { actor: Actor { incarnation: 77, epoch: 1 }, counter: op.sequence };
        let mut record = Record::new();
        record.event(&VersionVector::new(), dot, Write { op, hlc: Hlc::default(), expires: None, body });
        record
    }

    async fn shown(replica: &Replica<MemoryStore>) -> Vec<Body> {
        let record = replica.fetch(&KEY).unwrap();
        record.values(0).into_iter().map(|sibling| sibling.write.body.clone()).collect()
    }

    /// Whether a server passes a step with the key, of which the first owner holds this record.
    async fn passes<T: Store>(replica: &Replica<T>, step: ReapStep, held: &Record) -> bool {
        let keys = vec![ReapKey { key: KEY, hash: held.hash() }];
        let (ring, from) = (RingId::from_bits(0), ServerIndex::new(0));
        let request = ReapRequest { ring, from, round: 1, step, keys };
        replica.reap(request, Validity::unlimited()).await.unwrap() == [0]
    }

    #[tokio::test]
    async fn a_step_is_passed_by_who_holds_the_same_or_nothing_and_no_hint() {
        let replica = replica().await;
        let (alive, deleted) = (made_elsewhere(op(1), value("v")), made_elsewhere(op(2), Body::Tombstone));
        assert!(passes(&replica, ReapStep::Watch, &deleted).await, "it holds nothing");
        replica.merge(KEY, alive.clone(), Terms::UPKEEP, Validity::unlimited()).await.unwrap();
        assert!(!passes(&replica, ReapStep::Watch, &deleted).await, "it has not heard of the deletion");
        assert!(!passes(&replica, ReapStep::Watch, &alive).await, "it is not deleted");
        replica
            .event(KEY, None, ClientWrite::lasting(op(3), Body::Tombstone), Validity::unlimited(), WEAK)
            .await
            .unwrap();
        let held = replica.fetch(&KEY).unwrap();
        assert!(passes(&replica, ReapStep::Watch, &held).await);
        assert!(passes(&replica, ReapStep::Fence, &held).await);

        let kept = HintChange::Keep { target: target(1), key: KEY, record: alive.clone() };
        replica.hint(kept, WEAK).await.unwrap();
        for step in [ReapStep::Watch, ReapStep::Fence, ReapStep::Reap] {
            assert!(!passes(&replica, step, &held).await, "{step:?}: it keeps a hint");
        }
        let hash = alive.hash();
        let delivered = HintChange::Delivered { target: target(1), key: KEY, hash, durability: STRONG };
        replica.hint(delivered, WEAK).await.unwrap();
        assert!(!passes(&replica, ReapStep::Fence, &held).await, "a hint came and went");
        assert!(passes(&replica, ReapStep::Watch, &held).await);

        let before = replica.totals();
        assert!(!passes(&replica, ReapStep::Reap, &deleted).await, "another record");
        assert_eq!(replica.fetch(&KEY).unwrap(), held);
        assert!(passes(&replica, ReapStep::Reap, &held).await);
        assert_eq!((replica.fetch(&KEY).unwrap(), replica.totals()), (Record::new(), Totals::default()));
        assert_ne!(before, Totals::default());
        assert!(passes(&replica, ReapStep::Reap, &held).await, "it was removed already");
        assert_eq!(replica.watches().reaped(), 1);
    }

    /// The first coordinator of put 2 did not know put 1, and failed before it heard of it.
    #[tokio::test]
    async fn a_blind_put_begun_elsewhere_still_replaces_what_was_there() {
        let replica = replica().await;
        replica
            .event(KEY, None, ClientWrite::lasting(op(1), value("old")), Validity::unlimited(), WEAK)
            .await
            .unwrap();
        replica
            .merge(KEY, made_elsewhere(op(2), value("new")), Terms::UPKEEP, Validity::unlimited())
            .await
            .unwrap();
        assert_eq!(shown(&replica).await.len(), 2);
        replica
            .event(KEY, None, ClientWrite::lasting(op(2), value("new")), Validity::unlimited(), WEAK)
            .await
            .unwrap();
        assert_eq!(shown(&replica).await, [value("new")]);
    }

    #[tokio::test]
    async fn a_put_begun_elsewhere_that_has_nothing_left_to_replace_makes_no_second_event() {
        for context in [None, Some(VersionVector::new())] {
            let replica = replica().await;
            replica
                .merge(KEY, made_elsewhere(op(1), value("v")), Terms::UPKEEP, Validity::unlimited())
                .await
                .unwrap();
            let before = replica.fetch(&KEY).unwrap();
            let event = replica
                .event(KEY, context, ClientWrite::lasting(op(1), value("v")), Validity::unlimited(), WEAK)
                .await
                .unwrap();
            assert_eq!(event.record, before);
        }
    }

    fn target(port: u16) -> Target {
        Target::of(&ServerName::new("127.0.0.1", port).unwrap())
    }

    async fn put_in_hint(replica: &Replica<MemoryStore>, sequence: u64, target: Target) -> Event {
        let write = ClientWrite::lasting(op(sequence), value("v"));
        replica.event_in(Some(target), KEY, None, write, Validity::unlimited(), WEAK).await.unwrap()
    }

    #[tokio::test]
    async fn events_in_a_hint_replace_what_is_kept_and_count_on_and_leave_the_own_record_alone() {
        let replica = replica().await;
        let first = put_in_hint(&replica, 1, target(1)).await;
        let second = put_in_hint(&replica, 2, target(1)).await;
        assert_eq!(second.dot, Dot { counter: 2, ..first.dot });
        assert_eq!((second.record.siblings().len(), second.record.vv().len()), (1, 1));
        assert_eq!(replica.fetch_hints(&KEY).unwrap(), second.record);
        assert_eq!(replica.fetch(&KEY).unwrap(), Record::new());
        // What was kept for anybody is known to whoever makes a record for somebody else.
        let missed = replica
            .stand_in(target(2), KEY, made_elsewhere(op(3), value("w")), Terms::UPKEEP, Validity::unlimited())
            .await;
        assert_eq!(missed.unwrap(), [second.dot]);
        assert_eq!(replica.fetch_hints(&KEY).unwrap().siblings().len(), 2);
    }

    /// Flips a bit of the record in the store, and has the damage found.
    async fn damage(store: &MemoryStore, replica: &Replica<MemoryStore>) {
        let place = store_key(&KEY);
        let mut bytes = store.get(Keyspace::Records, &place).unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, place.clone(), bytes);
        store.commit(batch, Durability::Memory).await.unwrap();
        assert!(matches!(replica.fetch(&KEY), Err(ReplicaError::Damaged)));
        replica.change(0, |done| Change::Quarantine { store_key: place, done }).await.unwrap();
    }

    #[tokio::test]
    async fn there_is_as_much_after_a_repair_as_before_the_damage() {
        let all = ScanLimit { entries_max: 9, bytes_max: 1 << 20 };
        for body in [value("v"), Body::Tombstone] {
            let store = Arc::new(MemoryStore::new());
            let replica = replica_on(store.clone(), Durability::Memory).await;
            let record = made_elsewhere(op(1), body);
            replica.merge(KEY, record.clone(), Terms::UPKEEP, Validity::unlimited()).await.unwrap();
            let held = || (replica.totals(), replica.tombstones(None, all).unwrap());
            let before = held();
            damage(&store, &replica).await;
            replica.mend(KEY, record, replica.damage().again()).await.unwrap();
            assert_eq!(held(), before);
        }
    }

    /// What the others said when it was damaged first may be older than what was lost then.
    #[tokio::test]
    async fn a_record_damaged_twice_is_mended_with_answers_from_after_the_second_time_only() {
        let store = Arc::new(MemoryStore::new());
        let replica = replica_on(store.clone(), Durability::Memory).await;
        let put = async |record| {
            replica.merge(KEY, record, Terms::UPKEEP, Validity::unlimited()).await.unwrap();
        };
        put(made_elsewhere(op(1), value("old"))).await;
        damage(&store, &replica).await;
        let (asked, answered) = (replica.damage().again(), made_elsewhere(op(1), value("old")));
        put(made_elsewhere(op(2), value("new"))).await;
        damage(&store, &replica).await;
        assert_eq!(replica.damage().waiting(), 1, "one record");
        replica.mend(KEY, answered.clone(), asked).await.unwrap();
        assert!(matches!(replica.fetch(&KEY), Err(ReplicaError::Damaged)));
        replica.mend(KEY, answered, replica.damage().again()).await.unwrap();
        assert_eq!(shown(&replica).await, [value("old")]);
        assert_eq!(replica.damage().waiting(), 0);
    }

    /// The owner came back between the two rounds of a put without a context.
    #[tokio::test]
    async fn a_second_event_is_made_though_the_hint_of_the_first_was_delivered() {
        let replica = replica().await;
        let first = put_in_hint(&replica, 1, target(1)).await;
        let hash = first.record.hash();
        let delivered = HintChange::Delivered { target: target(1), key: KEY, hash, durability: STRONG };
        replica.hint(delivered, WEAK).await.unwrap();
        let missed = made_elsewhere(op(2), value("to be replaced"));
        let second = replica
            .supersede(Some(target(1)), KEY, first.clone(), missed.vv().clone(), Validity::unlimited(), WEAK)
            .await;
        let mut owner = first.record;
        owner.merge(&missed);
        assert_eq!(owner.siblings().len(), 2);
        owner.merge(&second.unwrap().unwrap().record);
        assert_eq!(owner.siblings().len(), 1, "{owner:?}");
        assert_eq!(replica.fetch_hints(&KEY).unwrap().siblings().len(), 1);
    }

    /// The later hint is delivered and gone, the earlier one stays.
    #[tokio::test]
    async fn an_event_is_not_numbered_on_from_a_hint_that_is_behind() {
        let replica = replica().await;
        let mut dots = vec![put_in_hint(&replica, 1, target(1)).await.dot];
        for sequence in 2..6 {
            let event = put_in_hint(&replica, sequence, target(2)).await;
            dots.push(event.dot);
            let hash = event.record.hash();
            let delivered = HintChange::Delivered { target: target(2), key: KEY, hash, durability: STRONG };
            replica.hint(delivered, WEAK).await.unwrap();
            assert!(replica.hint_held(target(2), &KEY).unwrap().is_none());
        }
        dots.push(put_in_hint(&replica, 6, target(1)).await.dot);
        let distinct: std::collections::BTreeSet<_> = dots.iter().collect();
        assert_eq!(distinct.len(), dots.len(), "{dots:?}");
    }

    /// What an owner takes over from a stand-in that has it on its disk must be on the owner's disk.
    #[tokio::test]
    async fn a_hint_that_counts_is_delivered_to_the_disk_unless_memory_is_all_that_was_asked_for() {
        use Durability::{Fsync, Interval, Memory};
        use message::Durability as Asked;
        for (server, asked, expected) in [
            (Memory, Asked::Memory, Asked::Memory),
            (Memory, Asked::Interval, Asked::Fsync),
            (Interval, Asked::Memory, Asked::Fsync),
            (Fsync, Asked::Memory, Asked::Fsync),
        ] {
            let replica = replica_on(Arc::new(MemoryStore::new()), server).await;
            let terms = Terms { durability: asked, cause: Cause::Put };
            replica
                .stand_in(target(1), KEY, made_elsewhere(op(1), value("v")), terms, Validity::unlimited())
                .await
                .unwrap();
            let (hint, _) = replica.hint_held(target(1), &KEY).unwrap().unwrap();
            assert_eq!(hint.durability, expected, "{server:?}, asked for {asked:?}");
        }
    }

    /// A peer has filled the key's vector with actors of its own making.
    #[tokio::test]
    async fn a_put_that_would_leave_an_unreadable_record_is_refused() {
        let replica = replica().await;
        let actors = 1..=VERSION_VECTOR_LEN_MAX as u64;
        let dot = |incarnation| Dot { actor: Actor { incarnation, epoch: 1 }, counter: u64::MAX };
        let full = Record::from_parts(actors.map(dot).collect(), Vec::new()).unwrap();
        replica.merge(KEY, full.clone(), Terms::UPKEEP, Validity::unlimited()).await.unwrap();
        let refused = |error| matches!(error, ReplicaError::Refused(Refusal::Invalid(_)));
        let put = replica
            .event(KEY, None, ClientWrite::lasting(op(1), value("v")), Validity::unlimited(), WEAK)
            .await;
        assert!(put.is_err_and(refused));
        assert_eq!(replica.fetch(&KEY).unwrap(), full);
    }

    /// A store that remembers how durable its commits were to be, and may say that it has failed since.
    #[derive(Default)]
    struct Watched(MemoryStore, std::sync::Mutex<Vec<Durability>>, std::sync::OnceLock<Arc<str>>);

    impl Store for Watched {
        fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get(keyspace, key)
        }

        fn scan(
            &self,
            keyspace: Keyspace,
            after: Option<&[u8]>,
            limit: ScanLimit,
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            self.0.scan(keyspace, after, limit)
        }

        async fn commit(&self, batch: dkvs_storage::Batch, durability: Durability) -> Result<(), StoreError> {
            self.1.lock().unwrap().push(durability);
            self.0.commit(batch, durability).await
        }

        fn health(&self) -> Health {
            Health { poisoned: self.2.get().cloned(), ..self.0.health() }
        }

        async fn close(&self) -> Result<(), StoreError> {
            self.0.close().await
        }
    }

    #[tokio::test]
    async fn a_change_is_as_durable_as_the_stronger_of_what_the_server_and_the_request_ask() {
        use Durability::{Fsync, Interval, Memory};
        use message::Durability as Asked;
        for (server, asked, expected) in [
            (Memory, Asked::Memory, Memory),
            (Memory, Asked::Interval, Interval),
            (Interval, Asked::Memory, Interval),
            (Interval, Asked::Fsync, Fsync),
            (Fsync, Asked::Memory, Fsync),
        ] {
            let store = Arc::new(Watched::default());
            let replica = replica_on(store.clone(), server).await;
            replica
                .event(KEY, None, ClientWrite::lasting(op(1), value("v")), Validity::unlimited(), WEAK)
                .await
                .unwrap();
            // One that was executed already, one from elsewhere, and one that is here already.
            store.1.lock().unwrap().clear();
            replica
                .event(KEY, None, ClientWrite::lasting(op(1), value("v")), Validity::unlimited(), asked)
                .await
                .unwrap();
            let record = made_elsewhere(op(2), value("w"));
            let terms = Terms { durability: asked, cause: Cause::Put };
            replica.merge(KEY, record.clone(), Terms::UPKEEP, Validity::unlimited()).await.unwrap();
            replica.merge(KEY, record, terms, Validity::unlimited()).await.unwrap();
            let commits = std::mem::take(&mut *store.1.lock().unwrap());
            let is_more = expected > server;
            let all = if is_more { vec![expected, server, expected] } else { vec![server] };
            assert_eq!(commits, all, "{server:?}, asked for {asked:?}");
            let target = Target::of(&ServerName::new("127.0.0.1", 1234).unwrap());
            let keep = HintChange::Keep { target, key: KEY, record: made_elsewhere(op(3), value("x")) };
            replica.hint(keep, asked).await.unwrap();
            assert_eq!(*store.1.lock().unwrap(), [expected], "a hint, {server:?}, asked for {asked:?}");
        }
    }

    /// What is there may have been lost to a flush that failed.
    #[tokio::test]
    async fn what_is_there_already_is_not_acknowledged_by_a_store_that_has_failed() {
        let store = Arc::new(Watched::default());
        let replica = replica_on(store.clone(), Durability::Interval).await;
        let record = made_elsewhere(op(1), value("v"));
        let merged = async || replica.merge(KEY, record.clone(), Terms::UPKEEP, Validity::unlimited()).await;
        merged().await.unwrap();
        merged().await.unwrap();
        store.2.set("no flush".into()).unwrap();
        let poisoned = |error| matches!(error, ReplicaError::Storage(StoreError::Poisoned { .. }));
        assert!(merged().await.is_err_and(poisoned));
        assert_eq!(replica.fetch(&KEY).unwrap(), record, "reads go on");
    }

    #[tokio::test(start_paused = true)]
    async fn who_confirms_that_it_holds_a_tombstone_has_it_on_disk() {
        let store = Arc::new(Watched::default());
        let replica = replica_on(store.clone(), Durability::Memory).await;
        let held = made_elsewhere(op(1), Body::Tombstone);
        replica.merge(KEY, held.clone(), Terms::UPKEEP, Validity::unlimited()).await.unwrap();
        store.1.lock().unwrap().clear();
        for step in [ReapStep::Watch, ReapStep::Fence] {
            assert!(passes(&replica, step, &held).await);
        }
        tokio::time::advance(MESSAGE_LIFE).await;
        assert_eq!(*store.1.lock().unwrap(), [], "nothing has asked for it yet");
        for confirmed in 1..=2 {
            assert!(passes(&replica, ReapStep::Confirm, &held).await);
            assert_eq!(*store.1.lock().unwrap(), vec![Durability::Fsync; confirmed]);
        }
    }

    /// A store whose commits wait until they are let through, and fail when told. Unlike a real one it goes on after that.
    struct Gated {
        store: MemoryStore,
        begun: watch::Sender<usize>,
        outcomes: tokio::sync::Mutex<mpsc::UnboundedReceiver<Result<(), StoreError>>>,
    }

    impl Gated {
        fn new() -> (Arc<Self>, mpsc::UnboundedSender<Result<(), StoreError>>) {
            let (outcome, outcomes) = mpsc::unbounded_channel();
            let (store, begun) = (MemoryStore::new(), watch::Sender::new(0));
            (Arc::new(Self { store, begun, outcomes: tokio::sync::Mutex::new(outcomes) }), outcome)
        }

        async fn begun(&self, commits: usize) {
            self.begun.subscribe().wait_for(|begun| *begun >= commits).await.unwrap();
        }
    }

    impl Store for Gated {
        fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.store.get(keyspace, key)
        }

        fn scan(
            &self,
            keyspace: Keyspace,
            after: Option<&[u8]>,
            limit: ScanLimit,
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            self.store.scan(keyspace, after, limit)
        }

        async fn commit(&self, batch: dkvs_storage::Batch, durability: Durability) -> Result<(), StoreError> {
            self.begun.send_modify(|begun| *begun += 1);
            self.outcomes.lock().await.recv().await.unwrap_or(Err(StoreError::Closed))?;
            self.store.commit(batch, durability).await
        }

        fn health(&self) -> Health {
            self.store.health()
        }

        async fn close(&self) -> Result<(), StoreError> {
            self.store.close().await
        }
    }

    /// A replica whose first commit is under way, with a second put to its key staged on top of it. Beside it, the two puts.
    async fn overlapping(
        store: &Arc<Gated>,
        outcome: &mpsc::UnboundedSender<Result<(), StoreError>>,
    ) -> (Replica<Gated>, [tokio::task::JoinHandle<Result<Event, ReplicaError>>; 2]) {
        // Of the new incarnation.
        outcome.send(Ok(())).unwrap();
        let replica = replica_on(store.clone(), Durability::Memory).await;
        let put = |sequence, text| {
            let replica = replica.clone();
            tokio::spawn(async move {
                replica
                    .event(
                        KEY,
                        None,
                        ClientWrite::lasting(op(sequence), value(text)),
                        Validity::unlimited(),
                        WEAK,
                    )
                    .await
            })
        };
        let first = put(1, "first");
        store.begun(2).await;
        let second = put(2, "second");
        // On this one thread, the others have come to rest once time can pass.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(replica.changes.capacity(), replica.changes.max_capacity(), "the second is staged");
        assert!(!first.is_finished() && !second.is_finished(), "nothing is answered before its commit");
        assert_eq!(*store.begun.borrow(), 2, "one batch is under way at a time");
        assert_eq!(replica.fetch(&KEY).unwrap(), Record::new(), "nothing is shown before its commit");
        assert_eq!(replica.totals(), Totals::default());
        (replica, [first, second])
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_staged_on_top_of_another_sees_it_and_is_answered_after_its_own_commit() {
        let (store, outcome) = Gated::new();
        let (replica, [first, second]) = overlapping(&store, &outcome).await;
        outcome.send(Ok(())).unwrap();
        let first = first.await.unwrap().unwrap();
        store.begun(3).await;
        assert_eq!(replica.fetch(&KEY).unwrap(), first.record);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!second.is_finished(), "its own commit is not done");
        outcome.send(Ok(())).unwrap();
        let second = second.await.unwrap().unwrap();
        assert_eq!(second.dot, Dot { counter: 2, ..first.dot }, "the next event of the same epoch");
        let record = replica.fetch(&KEY).unwrap();
        assert_eq!(record, second.record);
        assert_eq!(record.values(0).len(), 1, "the second has replaced the first");
        let Totals { keys, tombstones, bytes } = replica.totals();
        let entry = store.get(Keyspace::Records, &store_key(&KEY)).unwrap().unwrap();
        assert_eq!((keys, tombstones, bytes), (1, 0, (store_key(&KEY).len() + entry.len()) as u64));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_staged_on_top_of_a_failed_commit_fails_with_it_and_is_not_tried() {
        let (store, outcome) = Gated::new();
        let (replica, puts) = overlapping(&store, &outcome).await;
        outcome.send(Err(StoreError::Unknown { reason: "as the test asked".into() })).unwrap();
        for put in puts {
            assert!(matches!(put.await.unwrap(), Err(ReplicaError::Storage(StoreError::Unknown { .. }))));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*store.begun.borrow(), 2, "the batch on top is not committed");
        assert_eq!(replica.fetch(&KEY).unwrap(), Record::new());
        // What comes later starts from what the store has.
        outcome.send(Ok(())).unwrap();
        let put = replica
            .event(KEY, None, ClientWrite::lasting(op(3), value("third")), Validity::unlimited(), WEAK)
            .await
            .unwrap();
        assert_eq!(replica.fetch(&KEY).unwrap(), put.record);
        assert_eq!(replica.totals().keys, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_commits_what_is_under_way_and_what_is_staged_on_top_of_it() {
        let (store, outcome) = Gated::new();
        let (replica, puts) = overlapping(&store, &outcome).await;
        outcome.send(Ok(())).unwrap();
        outcome.send(Ok(())).unwrap();
        // Of the hash tree.
        outcome.send(Ok(())).unwrap();
        replica.close().await.unwrap();
        for put in puts {
            put.await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_put_makes_no_event_and_no_second_one() {
        let replica = replica().await;
        let expired = Validity::lasting(Duration::ZERO);
        tokio::time::advance(Duration::from_millis(1)).await;
        let overloaded = |error| matches!(error, ReplicaError::Refused(Refusal::Overloaded));
        let late =
            replica.event(KEY, None, ClientWrite::lasting(op(1), value("late")), expired.clone(), WEAK).await;
        assert!(late.is_err_and(overloaded));
        assert_eq!(replica.fetch(&KEY).unwrap(), Record::new());

        let first = replica
            .event(KEY, None, ClientWrite::lasting(op(2), value("v")), Validity::unlimited(), WEAK)
            .await
            .unwrap();
        replica
            .merge(KEY, made_elsewhere(op(3), value("newer")), Terms::UPKEEP, Validity::unlimited())
            .await
            .unwrap();
        let missed =
            VersionVector::from_iter([Dot { actor: Actor { incarnation: 77, epoch: 1 }, counter: 3 }]);
        assert!(
            replica.supersede(None, KEY, first, missed, expired.clone(), WEAK).await.is_err_and(overloaded)
        );
        assert_eq!(shown(&replica).await.len(), 2);
    }
}
