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
    state: Mutex<State>,
    /// What it says is free.
    free_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    trees: Trees,
    is_closed: bool,
}

impl State {
    fn open(&mut self) -> Result<&mut Trees, StoreError> {
        if self.is_closed { Err(StoreError::Closed) } else { Ok(&mut self.trees) }
    }
}

/// Stands for memory without a limit.
const NO_LIMIT: u64 = u64::MAX;

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Mutex::default(), free_bytes: AtomicU64::new(NO_LIMIT) }
    }

    /// Has it say, as a store on a disk does, that so many bytes are free. It takes writes all the same.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
    }

    /// Opens it again once it is closed, with all that it held.
    pub fn reopen(&self) {
        self.lock().is_closed = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock, so a poisoned one guards whole trees.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let mut state = self.lock();
        let trees = state.open()?;
        Ok(trees[keyspace.index()].get(key).cloned())
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut state = self.lock();
        let trees = state.open()?;
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
        let mut state = self.lock();
        let trees = state.open()?;
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
        self.lock().is_closed = true;
        Ok(())
    }
}
