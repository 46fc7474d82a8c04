//! A store without a disk, for simulations and tests.
//!
//! Trees behind a mutex. A commit is done when it is first polled, so a simulation that owns the clock and
//! the order of tasks also owns the order of commits. It passes the same suite as the store on disk. What it
//! leaves out is durability: every level is a promise until the process ends, and a simulated crash that
//! should lose unsynced writes has to be built around it.

use crate::{Batch, Durability, Health, Keyspace, ScanLimit, Store, StoreError};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

type Trees = [BTreeMap<Bytes, Bytes>; Keyspace::ALL.len()];

/// Ordered maps in memory; see the module's text.
#[derive(Debug)]
pub struct MemoryStore {
    /// `None` once closed.
    trees: Mutex<Option<Trees>>,
    /// What it says is free.
    free_bytes: AtomicU64,
}

/// Stands for memory without a limit.
const NO_LIMIT: u64 = u64::MAX;

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { trees: Mutex::new(Some(Trees::default())), free_bytes: AtomicU64::new(NO_LIMIT) }
    }

    /// Has it say, as a store on a disk does, that so many bytes are free. It takes writes all the same.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Trees>> {
        // No code that can panic runs under this lock, so a poisoned one guards whole trees.
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let trees = self.lock();
        let trees = trees.as_ref().ok_or(StoreError::Closed)?;
        Ok(trees[keyspace.index()].get(key).cloned())
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let trees = self.lock();
        let trees = trees.as_ref().ok_or(StoreError::Closed)?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (key, value) in trees[keyspace.index()].range::<[u8], _>((start, Bound::Unbounded)) {
            let entry_len = key.len() + value.len();
            if !limit.admits(entries.len(), bytes, entry_len) {
                break;
            }
            bytes += entry_len;
            entries.push((key.clone(), value.clone()));
        }
        Ok(entries)
    }

    async fn commit(&self, batch: Batch, _durability: Durability) -> Result<(), StoreError> {
        batch.check()?;
        let mut trees = self.lock();
        let trees = trees.as_mut().ok_or(StoreError::Closed)?;
        for ((keyspace, key), value) in batch {
            let tree = &mut trees[keyspace.index()];
            match value {
                Some(value) => tree.insert(key, value),
                None => tree.remove(&key),
            };
        }
        Ok(())
    }

    fn health(&self) -> Health {
        let free = self.free_bytes.load(Ordering::Relaxed);
        Health { poisoned: None, free_bytes: Some(free).filter(|&free| free != NO_LIMIT) }
    }

    async fn close(&self) -> Result<(), StoreError> {
        *self.lock() = None;
        Ok(())
    }
}
