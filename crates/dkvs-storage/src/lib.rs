//! Ordered bytes to bytes, in atomic batches, durable when asked.
//!
//! A server must never take back an answer, so what it answers for has to be on disk first (*durable before
//! visible*). This crate is the only place that knows what a disk is. It offers a [`Store`] with three verbs,
//! get, scan and commit, twice: [`FjallStore`] on disk and [`MemoryStore`] for simulations and tests. Beside
//! them stands [`DataDir`], which answers the question a store cannot: *is this the directory I left, and is
//! it mine?*
//!
//! ```text
//!   Batch ──commit──> queue ──> commit thread ──one engine batch──> journal ── fsync? ──> readers see it
//!   Batch ──commit──>   ┘            (group commit)                                       callers answered
//! ```
//!
//! Invariants:
//!
//! - A [`Batch`] is applied whole or not at all, across [`Keyspace`]s, for readers and after a crash.
//! - Nothing of a batch is visible before it is as durable as its [`Durability`] says.
//! - Commits that were begun one after the other are applied in that order.
//! - After a failed write the store refuses all further ones ([`StoreError::Poisoned`]) until it is opened
//!   again: what the failed one left behind is not known, and a later success would hide that. Reads go on.
//!
//! What it leaves out: versions, partitions, checksums of values and expiry. Keys and values are bytes; a
//! record that must detect damage carries its own checksum. There are no read transactions over several
//! calls: each call sees whole batches, two calls may see different ones. There is no reserve for a full
//! disk: running out of space during a commit poisons the store like any failed write, so whoever writes
//! looks at [`Health::free_bytes`] before.

mod error;

mod batch;

mod memory;

mod committer;

mod fjall_check;

mod fjall_store;

mod data_dir;

pub use batch::{Batch, KEY_LEN_MAX, VALUE_LEN_MAX};
pub use data_dir::{DataDir, DataDirError, FORMAT_VERSION, Start, create_dir, sync_dir};
pub use error::StoreError;
pub use fjall_store::{FjallConfig, FjallStore};
pub use memory::MemoryStore;

use bytes::Bytes;
use std::{future::Future, sync::Arc};

/// A separate ordered map inside a store. One batch may write to several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// What clients stored.
    Records,
    /// What a server must remember about itself: few keys, rarely written.
    Meta,
    /// Writes kept for other servers, until those have them.
    Hints,
    /// Where in the records there is nothing but tombstones.
    Tombstones,
}

impl Keyspace {
    /// Every keyspace, in order: a store opens all of them.
    pub const ALL: [Self; 4] = [Self::Records, Self::Meta, Self::Hints, Self::Tombstones];

    /// The name under which an engine keeps it on disk; changing one orphans the data under it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Meta => "meta",
            Self::Hints => "hints",
            Self::Tombstones => "tombstones",
        }
    }

    /// Whether every store has had it from the start. One that came later is created where it is missing.
    pub(crate) fn is_original(self) -> bool {
        match self {
            Self::Records | Self::Meta => true,
            Self::Hints | Self::Tombstones => false,
        }
    }

    /// Its position in [`Keyspace::ALL`], for tables with one entry per keyspace.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Records => 0,
            Self::Meta => 1,
            Self::Hints => 2,
            Self::Tombstones => 3,
        }
    }
}

/// What must be true of a batch when its commit returns. Ordered: a stronger level is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// In the operating system's hands. A killed process loses nothing, a power cut may lose any amount.
    Memory,
    /// As `Memory`, and the store itself flushes to disk within its flush interval: a power cut loses at most
    /// that much.
    Interval,
    /// On disk. Nothing the store can lose.
    Fsync,
}

/// How much one [`Store::scan`] may return. Both limits hold, but the first entry is always returned (unless
/// `entries_max` is 0), so that a scan that continues after its last key gets past a large value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimit {
    /// At most this many entries.
    pub entries_max: usize,
    /// At most this many bytes of keys and values together.
    pub bytes_max: usize,
}

impl ScanLimit {
    /// Whether an entry of `entry_len` bytes is still admitted after `entries` entries of `bytes` bytes.
    pub(crate) fn admits(self, entries: usize, bytes: usize, entry_len: usize) -> bool {
        entries < self.entries_max && (entries == 0 || bytes.saturating_add(entry_len) <= self.bytes_max)
    }
}

/// How a store is; see [`Store::health`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it takes no more writes, if it does not.
    pub poisoned: Option<Arc<str>>,
    /// Bytes that may still be written where it keeps its data; `None` where that has no limit or cannot be told.
    pub free_bytes: Option<u64>,
}

/// An ordered, durable map per [`Keyspace`], written in atomic batches.
///
/// After [`Store::close`] every call but `close` returns [`StoreError::Closed`].
pub trait Store: Send + Sync + 'static {
    /// The committed value, or `None`.
    ///
    /// Blocking but short (memory, or a read of a page the system most likely caches): async code may call
    /// it.
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Entries in key order, from the first key strictly greater than `after` (`None`: the very first).
    ///
    /// One call sees one moment. To page, pass the last key returned; entries committed meanwhile may or may
    /// not be seen, none that stays is skipped or repeated. Blocking, as long as `limit` allows.
    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Applies all of the batch or nothing.
    ///
    /// On `Ok` it is as durable as asked and visible; it is never visible before. A future that is dropped
    /// leaves the batch applied whole (most likely, once it was polled) or not at all, never in part. An
    /// empty batch changes nothing, and promises nothing about earlier ones.
    fn commit(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How it is now. Blocking but short, a call into the system: async code may call it once for each batch.
    fn health(&self) -> Health;

    /// Finishes what was begun, flushes everything to disk and stops the store's own threads.
    ///
    /// Idempotent. An error means that something accepted may not be on disk: do not call this stop clean.
    fn close(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl<S: Store> Store for Arc<S> {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        S::get(self, keyspace, key)
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        S::scan(self, keyspace, after, limit)
    }

    fn commit(
        &self,
        batch: Batch,
        durability: Durability,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::commit(self, batch, durability)
    }

    fn health(&self) -> Health {
        S::health(self)
    }

    fn close(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::close(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyspaces_index_is_its_place_in_all() {
        for (place, keyspace) in Keyspace::ALL.into_iter().enumerate() {
            assert_eq!(keyspace.index(), place);
        }
    }

    #[test]
    fn a_stronger_durability_is_greater() {
        assert!(Durability::Memory < Durability::Interval && Durability::Interval < Durability::Fsync);
    }
}
