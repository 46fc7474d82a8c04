//! A server's disk: what is in memory, what is on the platter, and what a crash leaves of it.
//!
//! ```text
//!   commit ──> journal ──(its delay passes)──> visible to readers, caller answered
//!                 └─────(fsync, or the flush interval passes)──> on the platter
//!
//!   killed process   everything answered stays; the commit under way is there whole, or not at all
//!   power cut        the platter stays, and the first few of the rest, whole: a torn tail is cut off
//! ```
//! A [`Disk`] outlives its server. [`Disk::open`] gives a [`SimStore`] to one life of the server and says, as the real
//! data directory would, how the last one ended. A store of an earlier life can do nothing any more.
//!
//! Faults: slow commits, transient read errors, commits that fail (which poison the store like a real one), a full
//! disk, flipped bits in a stored record, an emptied directory, an older copy put back.
//!
//! What it leaves out: damage inside the engine's own files. The engine checks its journal itself, and a torn batch is
//! dropped whole; what reaches a server are flipped bits in values, errors, and missing tails.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_cluster::{Entry, Kept};
use dkvs_core::record::Record;
use dkvs_core::servers::ServerIndex;
use dkvs_storage::{Batch, Durability, Health, Keyspace, ScanLimit, Start, Store, StoreError};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::history::{DiskCensus, Micros, Reaped, Stored};
use crate::plan::{DISK_FREE_BYTES_MIN, KEY_PREFIX};
use crate::recorder::Recorder;
use crate::trace::{Trace, micros, now};
use crate::weather::flip;

type Tree = BTreeMap<(Keyspace, Bytes), Bytes>;

/// How often a frozen disk looks whether it may go on.
const FROZEN_PAUSE: Duration = Duration::from_millis(5);

/// How a disk behaves just now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskConditions {
    /// Longest time of a commit that need not be flushed.
    pub write_max: Duration,
    /// Longest time of one that must be.
    pub flush_max: Duration,
    /// A read fails, this once, with this probability.
    pub read_fault: f64,
    /// A commit fails and poisons the store, with this probability.
    pub write_fault: f64,
    /// Bytes that are free; with none, every commit fails.
    pub free: u64,
    /// Nothing happens at all: the machine is paused.
    pub frozen: bool,
}

impl DiskConditions {
    /// A good disk.
    #[must_use]
    pub fn healthy() -> Self {
        Self {
            write_max: Duration::from_millis(1),
            flush_max: Duration::from_millis(4),
            read_fault: 0.0,
            write_fault: 0.0,
            free: u64::MAX,
            frozen: false,
        }
    }
}

/// An older state, kept to be put back.
#[derive(Clone, Debug)]
pub struct Copy {
    tree: Tree,
    /// When it was made.
    pub at: Micros,
}

/// A batch that is not on the platter yet.
#[derive(Debug)]
struct Pending {
    batch: Batch,
    /// When it was answered; `None` while it is under way.
    answered: Option<Micros>,
}

#[derive(Debug)]
struct Platter {
    synced: Tree,
    journal: Vec<Pending>,
    visible: Tree,
    /// Which life of the server may use it. Odd while one does.
    life: u64,
    used: bool,
    clean: bool,
    poison: Option<Arc<str>>,
    poisoned_at: Option<Micros>,
    conditions: DiskConditions,
    flush_interval: Duration,
    random: StdRng,
}

/// A server's disk; clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk {
    platter: Arc<Mutex<Platter>>,
    server: ServerIndex,
    recorder: Arc<Recorder>,
    trace: Arc<Trace>,
}

impl Disk {
    /// An empty disk that nobody has used, of the server with this number.
    #[must_use]
    pub fn new(
        server: u16,
        flush_interval: Duration,
        random: StdRng,
        recorder: Arc<Recorder>,
        trace: Arc<Trace>,
    ) -> Self {
        let platter = Platter {
            synced: Tree::new(),
            journal: Vec::new(),
            visible: Tree::new(),
            life: 0,
            used: false,
            clean: false,
            poison: None,
            poisoned_at: None,
            conditions: DiskConditions::healthy(),
            flush_interval,
            random,
        };
        Self { platter: Arc::new(Mutex::new(platter)), server: ServerIndex::new(server), recorder, trace }
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the disk for a new life of its server.
    #[must_use]
    pub fn open(&self) -> (SimStore, Start) {
        let mut platter = self.lock();
        platter.life += 1;
        (platter.poison, platter.poisoned_at) = (None, None);
        let start = match (platter.used, platter.clean) {
            (false, _) => Start::New,
            (true, true) => Start::Clean,
            (true, false) => Start::Unclean,
        };
        (platter.used, platter.clean) = (true, false);
        let turn = tokio::sync::Mutex::new(());
        (SimStore { disk: self.clone(), life: platter.life, turn, closed: Mutex::new(false) }, start)
    }

    /// Vouches for a clean stop.
    pub fn mark_clean(&self) {
        self.lock().clean = true;
    }

    /// Changes how the disk behaves.
    pub fn set(&self, change: impl FnOnce(&mut DiskConditions)) {
        change(&mut self.lock().conditions);
    }

    /// Whether its server takes no more writes until it is started again.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.lock().poison.is_some()
    }

    /// The process was killed: the operating system still has everything that was answered.
    pub fn kill(&self) {
        let mut platter = self.lock();
        let keep_last = platter.random.random_bool(0.5);
        platter.journal.retain(|pending| pending.answered.is_some() || keep_last);
        platter.begin_next_life();
    }

    /// The power was cut at `at`. Of what is not flushed a random first part stays; with `may_lose`, that may be something that was
    /// answered, and without it, it is nothing of that. Returns whether anything that had been answered is gone.
    pub fn cut_power(&self, at: Micros, may_lose: bool) -> bool {
        let mut platter = self.lock();
        let flushed_before = at.saturating_sub(micros(platter.flush_interval));
        let is_flushed = |pending: &Pending| pending.answered.is_some_and(|at| at < flushed_before);
        let flushed = platter.journal.iter().take_while(|pending| is_flushed(pending)).count();
        let kept = platter.journal.len() - flushed;
        let kept = flushed + platter.random.random_range(0..=kept);
        let first_answered = platter.journal.iter().position(|pending| pending.answered.is_some());
        // Who must lose nothing, and has not flushed, is to notice.
        let kept = if may_lose { kept } else { kept.min(first_answered.unwrap_or(kept)) };
        let lost_answered = platter.journal[kept..].iter().any(|pending| pending.answered.is_some());
        platter.journal.truncate(kept);
        platter.begin_next_life();
        let Platter { synced, visible, journal, .. } = &mut *platter;
        journal.clear();
        synced.clone_from(visible);
        lost_answered
    }

    /// Whether a power cut could take what was answered.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.lock().journal.iter().any(|pending| pending.answered.is_some())
    }

    /// Empties the disk of a stopped server.
    pub fn wipe(&self) {
        let mut platter = self.lock();
        platter.replace(Tree::new());
        platter.used = false;
    }

    /// A copy of what is on the disk, as a backup would make it.
    #[must_use]
    pub fn copy(&self, at: Micros) -> Copy {
        Copy { tree: self.lock().visible.clone(), at }
    }

    /// Puts an older copy back under a stopped server.
    pub fn restore(&self, copy: &Copy) {
        let mut platter = self.lock();
        platter.replace(copy.tree.clone());
        (platter.used, platter.clean) = (true, false);
    }

    /// Flips bits in one stored record of a clients' key, of this one if it is named. Returns the key; `None` when there is no
    /// record.
    #[must_use]
    pub fn flip_record(&self, only: Option<&str>) -> Option<Bytes> {
        let mut platter = self.lock();
        // What was given to one server at its start may be nowhere else, and is lost with its only copy.
        let is_elsewhere = |place: &Bytes, value: &Bytes| {
            dkvs_cluster::decode_entry(place, value).is_some_and(|Entry { record, .. }| {
                record.siblings().iter().all(|sibling| !sibling.dot.actor.is_initial())
            })
        };
        let is_wanted =
            |key: &[u8]| only.map_or(key.starts_with(KEY_PREFIX.as_bytes()), |only| key == only.as_bytes());
        let is_clients = |((keyspace, place), value): &(&(Keyspace, Bytes), &Bytes)| {
            *keyspace == Keyspace::Records && is_wanted(&place[2..]) && is_elsewhere(place, value)
        };
        let keys: Vec<_> =
            platter.visible.iter().filter(is_clients).map(|(place, _)| place.clone()).collect();
        if keys.is_empty() {
            return None;
        }
        let place = keys[platter.random.random_range(0..keys.len())].clone();
        let mut value = platter.visible.get(&place)?.to_vec();
        flip(&mut value, &mut platter.random);
        let value = Bytes::from(value);
        // The medium changed under everybody: what waits in the journal for this place is hit as well, but not what a commit
        // under way is to write there.
        let batch = {
            let mut batch = Batch::new();
            batch.put(place.0, place.1.clone(), value.clone());
            batch
        };
        if platter.journal.is_empty() {
            platter.synced.insert(place.clone(), value.clone());
        } else {
            let pending = platter.journal.iter().position(|pending| pending.answered.is_none());
            let place = pending.unwrap_or(platter.journal.len());
            platter.journal.insert(place, Pending { batch, answered: Some(0) });
        }
        platter.visible.insert(place.clone(), value);
        let key = place.1.slice(2..);
        Some(key)
    }

    /// The records on the disk, and the keys of those that cannot be read.
    #[must_use]
    pub fn census(&self) -> (DiskCensus, Vec<String>) {
        let (mut records, mut damaged) = (DiskCensus::new(), Vec::new());
        for ((keyspace, store_key), value) in &self.lock().visible {
            if *keyspace != Keyspace::Records {
                continue;
            }
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            match dkvs_cluster::decode_entry(store_key, value) {
                Some(Entry { key, record, .. }) => _ = records.insert(text(&key), record),
                None => damaged.push(text(&store_key[2.min(store_key.len())..])),
            }
        }
        (records, damaged)
    }
}

impl Disk {
    /// What is kept on it for other servers. What others than this run's clients wrote is left out.
    #[must_use]
    pub fn kept(&self) -> Vec<Kept> {
        let platter = self.lock();
        let entries = platter.visible.iter().filter(|((keyspace, _), _)| *keyspace == Keyspace::Hints);
        let kept = entries.filter_map(|((_, place), value)| dkvs_cluster::decode_kept(place, value));
        kept.filter(|kept| match kept {
            Kept::Hint { key, .. } => key.starts_with(KEY_PREFIX.as_bytes()),
            Kept::Dirty(_) => true,
        })
        .collect()
    }

    /// Whether something may keep its server from reading or writing in time just now.
    #[must_use]
    pub fn is_hindered(&self) -> bool {
        self.lock().conditions != DiskConditions::healthy()
    }

    /// Whether its server takes not even what makes copies equal, hints among it, for want of space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().conditions.free < DISK_FREE_BYTES_MIN / 4
    }

    /// How many bytes of records there are.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        let platter = self.lock();
        let records = platter.visible.iter().filter(|((keyspace, _), _)| *keyspace == Keyspace::Records);
        records.map(|((_, place), value)| (place.len() + value.len()) as u64).sum()
    }

    /// Since when its server takes no more writes, if so.
    #[must_use]
    pub fn poisoned_at(&self) -> Option<Micros> {
        self.lock().poisoned_at
    }
}

impl Platter {
    /// What is left after an end of the server: the platter and what the journal still holds.
    fn begin_next_life(&mut self) {
        self.life += 1;
        (self.poison, self.poisoned_at) = (None, None);
        let Self { synced, journal, visible, .. } = self;
        visible.clone_from(synced);
        for pending in journal {
            pending.answered.get_or_insert(0);
            apply(visible, &pending.batch);
        }
    }

    fn replace(&mut self, tree: Tree) {
        self.life += 1;
        self.journal.clear();
        self.synced.clone_from(&tree);
        self.visible = tree;
        (self.poison, self.poisoned_at) = (None, None);
    }

    /// Commits happen one after the other: one that is not answered when the next begins was left by its caller, and is
    /// in all the same.
    fn finish_abandoned(&mut self) {
        let Self { journal, visible, .. } = self;
        for pending in journal.iter_mut().filter(|pending| pending.answered.is_none()) {
            pending.answered = Some(now());
            apply(visible, &pending.batch);
        }
    }

    fn flush(&mut self) {
        for pending in self.journal.drain(..) {
            apply(&mut self.synced, &pending.batch);
        }
    }

    /// Moves to the platter what the background flush has reached by now.
    fn flush_due(&mut self, at: Micros) {
        let flushed_before = at.saturating_sub(micros(self.flush_interval));
        let due = |pending: &Pending| pending.answered.is_some_and(|at| at < flushed_before);
        let count = self.journal.iter().take_while(|pending| due(pending)).count();
        for pending in self.journal.drain(..count) {
            apply(&mut self.synced, &pending.batch);
        }
    }

    fn poison(&mut self, reason: &str) -> StoreError {
        let reason: Arc<str> = reason.into();
        self.poison = Some(reason.clone());
        self.poisoned_at = Some(now());
        StoreError::Unknown { reason }
    }
}

fn apply(tree: &mut Tree, batch: &Batch) {
    for (keyspace, key, value) in batch.writes() {
        match value {
            Some(value) => tree.insert((keyspace, key.clone()), value.clone()),
            None => tree.remove(&(keyspace, key.clone())),
        };
    }
}

/// A disk as one life of its server sees it.
#[derive(Debug)]
pub struct SimStore {
    disk: Disk,
    life: u64,
    /// Commits happen one after the other, in the order they were begun.
    turn: tokio::sync::Mutex<()>,
    closed: Mutex<bool>,
}

impl SimStore {
    fn platter(&self) -> Result<MutexGuard<'_, Platter>, StoreError> {
        let platter = self.disk.lock();
        if platter.life != self.life || *self.closed.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(StoreError::Closed);
        }
        Ok(platter)
    }

    fn readable(&self) -> Result<MutexGuard<'_, Platter>, StoreError> {
        let mut platter = self.platter()?;
        let fault = platter.conditions.read_fault;
        if platter.random.random_bool(fault) {
            return Err(StoreError::Io {
                what: "read",
                path: "disk".into(),
                source: Arc::new(std::io::Error::other("a bad sector, this once")),
            });
        }
        Ok(platter)
    }

    /// Puts the batch in the journal; says how long the rest takes.
    fn begin(&self, batch: &Batch, durability: Durability) -> Result<Duration, StoreError> {
        let mut platter = self.platter()?;
        if let Some(reason) = platter.poison.clone() {
            return Err(StoreError::Poisoned { reason });
        }
        if platter.conditions.free == 0 {
            return Err(platter.poison("no space left on device"));
        }
        platter.finish_abandoned();
        for (keyspace, key, value) in batch.writes() {
            let Some(value) = value else {
                self.replaces(&platter, keyspace, key, &Record::new());
                continue;
            };
            let (hint_for, key, record, own) = match keyspace {
                Keyspace::Records => match dkvs_cluster::decode_entry(key, value) {
                    Some(entry) => {
                        self.replaces(&platter, keyspace, key, &entry.record);
                        (None, entry.key, entry.record, entry.own)
                    }
                    None => continue,
                },
                Keyspace::Hints => match dkvs_cluster::decode_kept(key, value) {
                    Some(Kept::Hint { target, key, record: Some(record), own }) => {
                        (Some(target), key, record, own)
                    }
                    Some(Kept::Hint { record: None, .. } | Kept::Dirty(_)) | None => continue,
                },
                Keyspace::Meta | Keyspace::Tombstones => continue,
            };
            let Disk { recorder, server, .. } = &self.disk;
            recorder.seen(&key, &record);
            if let Some(own) = own {
                recorder.numbers(*server, own.actor.incarnation);
            }
            let vv = record.vv().clone();
            recorder.stores(*server, &key, Stored { at: now(), hint_for, vv });
        }
        platter.journal.push(Pending { batch: batch.clone(), answered: None });
        let longest = match durability {
            Durability::Memory | Durability::Interval => platter.conditions.write_max,
            Durability::Fsync => platter.conditions.flush_max,
        };
        Ok(longest.mul_f64(platter.random.random_range(0.0..1.0)))
    }

    /// An entry makes room for another one. If that knows of nothing that was there, this was forgotten: a key may be forgotten and
    /// written anew in one batch.
    fn replaces(&self, platter: &Platter, keyspace: Keyspace, key: &Bytes, by: &Record) {
        let held = platter.visible.get(&(keyspace, key.clone()));
        let entry = held.and_then(|value| dkvs_cluster::decode_entry(key, value));
        let is_forgotten = |held: &Record| {
            by.vv().is_empty()
                || held.is_deleted(u64::MAX) && !held.vv().iter().any(|dot| by.vv().covers(dot))
        };
        if let Some(Entry { key, record, .. }) = entry.filter(|entry| is_forgotten(&entry.record))
            && keyspace == Keyspace::Records
        {
            let Disk { recorder, server, .. } = &self.disk;
            let key = String::from_utf8_lossy(&key).into_owned();
            recorder.reaps(Reaped { server: *server, at: now(), key, record });
        }
    }

    /// The batch begun last has taken its time.
    fn finish(&self, batch: &Batch, durability: Durability) -> Result<(), StoreError> {
        let at = now();
        let mut platter = self.platter()?;
        let fault = platter.conditions.write_fault;
        if platter.random.random_bool(fault) {
            // It stays in the journal: after a restart it may be there.
            return Err(platter.poison("input/output error"));
        }
        apply(&mut platter.visible, batch);
        if let Some(pending) = platter.journal.iter_mut().rev().find(|pending| pending.answered.is_none()) {
            pending.answered = Some(at);
        }
        match durability {
            Durability::Fsync => platter.flush(),
            Durability::Memory | Durability::Interval => platter.flush_due(at),
        }
        drop(platter);
        self.note(at, batch, durability);
        Ok(())
    }

    fn note(&self, at: Micros, batch: &Batch, durability: Durability) {
        for (keyspace, store_key, value) in batch.writes() {
            let bytes = value.cloned().unwrap_or_default();
            self.disk.trace.note_bytes(at, &bytes, || {
                let what = match dkvs_cluster::decode_entry(store_key, &bytes) {
                    Some(Entry { key, record, .. }) => {
                        let siblings: Vec<_> =
                            record.siblings().iter().map(|sibling| (sibling.dot, sibling.write.op)).collect();
                        format!("{key:?} = {siblings:?} of {:?}", record.vv())
                    }
                    None => format!("{keyspace:?} {store_key:?}"),
                };
                format!("disk of server-{} ({durability:?}): {what}", self.disk.server.as_usize())
            });
        }
    }

    async fn while_frozen(&self) {
        while self.disk.lock().conditions.frozen {
            sleep(FROZEN_PAUSE).await;
        }
    }
}

impl Store for SimStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let place = (keyspace, Bytes::copy_from_slice(key));
        Ok(self.readable()?.visible.get(&place).cloned())
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let platter = self.readable()?;
        let from = match after {
            Some(key) => Bound::Excluded((keyspace, Bytes::copy_from_slice(key))),
            None => Bound::Included((keyspace, Bytes::new())),
        };
        let (mut entries, mut len) = (Vec::new(), 0);
        for ((space, key), value) in platter.visible.range((from, Bound::Unbounded)) {
            let entry_len = key.len() + value.len();
            let fits = entries.len() < limit.entries_max
                && (entries.is_empty() || len + entry_len <= limit.bytes_max);
            if *space != keyspace || !fits {
                break;
            }
            len += entry_len;
            entries.push((key.clone(), value.clone()));
        }
        Ok(entries)
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        batch.check()?;
        let _turn = self.turn.lock().await;
        let delay = self.begin(&batch, durability)?;
        sleep(delay).await;
        self.while_frozen().await;
        self.finish(&batch, durability)
    }

    fn health(&self) -> Health {
        let platter = self.disk.lock();
        Health { poisoned: platter.poison.clone(), free_bytes: Some(platter.conditions.free) }
    }

    async fn close(&self) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let mut platter = match self.platter() {
            Ok(platter) => platter,
            Err(_) => return Ok(()),
        };
        if let Some(reason) = platter.poison.clone() {
            return Err(StoreError::Poisoned { reason });
        }
        platter.flush();
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const LIVES: u64 = 200;

    fn disk(seed: u64) -> Disk {
        let random = StdRng::seed_from_u64(seed);
        Disk::new(0, Duration::from_secs(1), random, Arc::default(), Arc::new(Trace::new(false)))
    }

    fn batch(key: &'static str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Keyspace::Meta, key, key);
        batch
    }

    fn has(store: &SimStore, key: &str) -> bool {
        store.get(Keyspace::Meta, key.as_bytes()).unwrap().is_some()
    }

    /// Begins a commit that does not come to its end.
    async fn interrupted(store: &SimStore, key: &'static str, durability: Durability) {
        let commit = store.commit(batch(key), durability);
        let _ = tokio::time::timeout(Duration::ZERO, commit).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_loses_nothing_that_was_answered_and_maybe_what_was_not() {
        let mut kept = 0;
        for seed in 0..LIVES {
            let disk = disk(seed);
            let (store, start) = disk.open();
            assert_eq!(start, Start::New);
            store.commit(batch("answered"), Durability::Memory).await.unwrap();
            disk.set(|disk| disk.frozen = true);
            interrupted(&store, "not", Durability::Memory).await;
            assert!(!has(&store, "not"), "nothing is visible before it is answered");
            disk.kill();
            assert!(matches!(store.get(Keyspace::Meta, b"answered"), Err(StoreError::Closed)));
            let (store, start) = disk.open();
            assert_eq!(start, Start::Unclean);
            assert!(has(&store, "answered"));
            kept += u64::from(has(&store, "not"));
        }
        assert!((LIVES / 4..LIVES * 3 / 4).contains(&kept), "{kept}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_power_cut_leaves_what_was_flushed_and_a_first_part_of_the_rest() {
        let mut kept = [0; 2];
        for seed in 0..LIVES {
            let disk = disk(seed);
            let (store, _) = disk.open();
            store.commit(batch("before"), Durability::Memory).await.unwrap();
            store.commit(batch("flushed"), Durability::Fsync).await.unwrap();
            store.commit(batch("first"), Durability::Memory).await.unwrap();
            store.commit(batch("second"), Durability::Memory).await.unwrap();
            let lost = disk.cut_power(0, true);
            let (store, _) = disk.open();
            assert!(has(&store, "before") && has(&store, "flushed"));
            let [first, second] = ["first", "second"].map(|key| has(&store, key));
            assert!(first || !second, "the rest is kept from its beginning");
            assert_eq!(lost, !first || !second);
            kept[0] += u64::from(first);
            kept[1] += u64::from(second);
        }
        assert!(kept[1] > 0 && kept[0] > kept[1] && kept[0] < LIVES, "{kept:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn with_interval_a_power_cut_takes_the_last_interval_only() {
        for seed in 0..LIVES {
            let disk = disk(seed);
            let (store, _) = disk.open();
            store.commit(batch("old"), Durability::Interval).await.unwrap();
            disk.cut_power(micros(Duration::from_secs(3)), true);
            assert!(has(&disk.open().0, "old"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_untouched_disk_after_a_clean_stop_starts_clean() {
        let disk = disk(1);
        let (store, _) = disk.open();
        store.commit(batch("a"), Durability::Memory).await.unwrap();
        let copy = disk.copy(0);
        store.close().await.unwrap();
        disk.mark_clean();
        assert_eq!(disk.open().1, Start::Clean);
        assert_eq!(disk.open().1, Start::Unclean, "the mark is good for one start");
        disk.mark_clean();
        disk.restore(&copy);
        let (store, start) = disk.open();
        assert_eq!((start, has(&store, "a")), (Start::Unclean, true));
        disk.wipe();
        let (store, start) = disk.open();
        assert_eq!((start, has(&store, "a")), (Start::New, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_fails_is_not_visible_and_poisons_until_the_next_life() {
        let disk = disk(1);
        let (store, _) = disk.open();
        disk.set(|disk| disk.write_fault = 1.0);
        let error = store.commit(batch("a"), Durability::Fsync).await.unwrap_err();
        assert!(matches!(error, StoreError::Unknown { .. }));
        disk.set(|disk| disk.write_fault = 0.0);
        let error = store.commit(batch("b"), Durability::Fsync).await.unwrap_err();
        assert!(matches!(error, StoreError::Poisoned { .. }) && disk.is_poisoned());
        assert!(!has(&store, "a"));
        assert!(store.close().await.is_err());
        disk.kill();
        let (store, _) = disk.open();
        store.commit(batch("b"), Durability::Fsync).await.unwrap();
    }
}
