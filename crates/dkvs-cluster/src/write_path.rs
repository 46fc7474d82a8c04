//! A replica without a network, for benchmarks and for tests on bad disks. Not part of the interface.

use std::sync::Arc;

use bytes::Bytes;
use dkvs_core::record::{Body, OpId};
use dkvs_net::Validity;
use dkvs_proto::message::Durability as Asked;
use dkvs_storage::{Durability, Start, Store, StoreError};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::clock::{Clock, WallClock};
use crate::replica::{QueueLimits, Replica, ReplicaConfig, ReplicaError};
use crate::siblings::SiblingLimits;
use crate::writer::ClientWrite;

/// What a put that this server coordinates goes through here before it is answered or sent. Clones share it.
#[derive(Debug)]
pub struct WritePath<T>(Replica<T>);

impl<T> Clone for WritePath<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Store> WritePath<T> {
    /// Opens the records of a `store` whose last use ended as `start` says, with the limits that a server has by default.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn open(
        store: T,
        start: Start,
        durability: Durability,
        wall: WallClock,
        seed: u64,
    ) -> Result<Self, StoreError> {
        let limits = QueueLimits { changes_max: 4_096, bytes_max: 256 << 20, batch_max: 1_024 };
        let clock = Arc::new(Clock::new(wall, 60_000));
        let random = StdRng::seed_from_u64(seed);
        let config = ReplicaConfig {
            durability,
            limits,
            data_dir: String::new(),
            disk_free_bytes_min: 1 << 20,
            hint_bytes_max: 256 << 20,
            siblings: SiblingLimits::default(),
            message_life: std::time::Duration::from_secs(1),
            given: std::collections::BTreeSet::new(),
        };
        let replica = Replica::open(Arc::new(store), start, config, clock, random).await?;
        Ok(Self(replica))
    }

    /// Makes the event of a put without a context, and returns when it is durable.
    ///
    /// # Errors
    /// When the event was refused or the store failed.
    pub async fn put(&self, key: Bytes, value: Bytes, op: OpId) -> Result<(), ReplicaError> {
        let body = Body::Value(value);
        let event =
            self.0.event(key, None, ClientWrite::lasting(op, body), Validity::unlimited(), Asked::Memory);
        event.await.map(drop)
    }

    /// The latest value; `None` when there is none.
    ///
    /// # Errors
    /// When the record is damaged or the store failed.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReplicaError> {
        let record = self.0.fetch(key)?;
        Ok(record.winner(0).and_then(|winner| match &winner.write.body {
            Body::Value(value) => Some(value.clone()),
            Body::Tombstone => None,
        }))
    }

    /// Stops the writer and closes the store.
    ///
    /// # Errors
    /// When the store cannot promise that everything is on disk.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.0.close().await
    }
}
