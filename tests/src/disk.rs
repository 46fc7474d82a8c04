//! A server's store for tests: in memory, with the failures of a disk.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dkvs_storage::{Batch, Durability, Health, Keyspace, MemoryStore, ScanLimit, Store, StoreError};

/// A [`MemoryStore`] that fails when told. Like a store on a disk it takes nothing more after a commit that failed, until it
/// is opened again.
#[derive(Debug, Default)]
pub struct TestDisk {
    memory: MemoryStore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why the next commit fails, if it does.
    failing: Option<Arc<str>>,
    poisoned: Option<Arc<str>>,
    /// How many more commits end; all do unless told.
    commits_left: Option<usize>,
    /// Of which keyspace the next read by key fails, if it does.
    unreadable: Option<Keyspace>,
}

impl TestDisk {
    /// Has the next commit fail.
    pub fn fail(&self, reason: &str) {
        self.state().failing = Some(reason.into());
    }

    /// Has so many more commits end, and the one after them never.
    pub fn hang_after(&self, commits: usize) {
        self.state().commits_left = Some(commits);
    }

    /// Has the next read by key fail in a keyspace.
    pub fn fail_read(&self, keyspace: Keyspace) {
        self.state().unreadable = Some(keyspace);
    }

    /// Has it say that so many bytes are free.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.memory.set_free_bytes(free_bytes);
    }

    /// Opens it again, with all that it held, and without what it failed of.
    pub fn reopen(&self) {
        *self.state() = State::default();
        self.memory.reopen();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock, so a poisoned one guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the commit that begins now never ends.
    fn is_hanging(&self) -> bool {
        match &mut self.state().commits_left {
            None => false,
            Some(0) => true,
            Some(commits_left) => {
                *commits_left -= 1;
                false
            }
        }
    }

    fn try_to_write(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        if let Some(reason) = state.poisoned.clone() {
            return Err(StoreError::Poisoned { reason });
        }
        let Some(reason) = state.failing.take() else { return Ok(()) };
        state.poisoned = Some(reason.clone());
        Err(StoreError::Unknown { reason })
    }
}

impl Store for TestDisk {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if self.state().unreadable.take_if(|unreadable| *unreadable == keyspace).is_some() {
            let source = Arc::new(io::Error::other("told to fail"));
            return Err(StoreError::Io { what: "cannot read", path: "memory".into(), source });
        }
        self.memory.get(keyspace, key)
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.memory.scan(keyspace, after, limit)
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        if self.is_hanging() {
            std::future::pending::<()>().await;
        }
        self.try_to_write()?;
        self.memory.commit(batch, durability).await
    }

    fn health(&self) -> Health {
        Health { poisoned: self.state().poisoned.clone(), ..self.memory.health() }
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.memory.close().await
    }
}
