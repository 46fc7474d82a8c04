//! What a server is told when it starts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dkvs_core::limits::VALUE_LEN_MAX_DEFAULT;
use dkvs_core::quorum::{Quorum, QuorumError};
use dkvs_core::ring::{Ring, ServerIndex};
use dkvs_net::EndpointConfig;
use dkvs_storage::Durability;

use crate::clock::WallClock;
use crate::siblings::SiblingLimits;

/// Everything about one server but its socket and its store.
#[derive(Clone)]
pub struct ServerConfig {
    /// The ring all servers share.
    pub ring: Arc<Ring>,
    /// Which of the ring's servers this is.
    pub me: ServerIndex,
    /// Where each of the ring's servers receives, in the ring's order.
    pub addresses: Vec<SocketAddr>,
    /// The quorums told to clients that do not choose.
    pub quorum: Quorum,
    /// Whether clients that do not choose are told that other servers may stand in for owners.
    pub sloppy: bool,
    /// How durable a write is before it is acknowledged.
    pub durability: Durability,
    /// Bytes that have to be free on the disk for values to be accepted; below a quarter of it, nothing is written. 0 for no
    /// limit.
    pub disk_free_bytes_min: u64,
    /// Bytes of stored records looked at for damage in a second; 0 for none.
    pub scrub_bytes_per_s: u64,
    /// Pause between looking at all records and doing so again.
    pub scrub_pause: Duration,
    /// Bytes of hints kept for one server that misses writes. What would need more leaves a mark that replicas have to be
    /// compared.
    pub hint_bytes_max: u64,
    /// Time between comparisons of all records with those of each other server; zero for none.
    pub repair_interval: Duration,
    /// Bytes of records that such comparisons move in a second; 0 for no limit.
    pub repair_bytes_per_s_max: u64,
    /// Time between rounds in which this server forgets tombstones; zero for never.
    pub reap_interval: Duration,
    /// Time between pings to a server that is silent, and how long it may take to answer one.
    pub ping_interval: Duration,
    /// How many siblings of a key are too many.
    pub siblings: SiblingLimits,
    /// Longest value accepted, in bytes.
    pub value_len_max: usize,
    /// Longest lead of a peer's clock that is followed, in milliseconds.
    pub clock_skew_ms_max: u64,
    /// Longest time a request may ask for.
    pub timeout_max: Duration,
    /// Changes that may wait for the writer; one more waits with its sender.
    pub changes_max: usize,
    /// Bytes of long changes that may wait for the writer or be applied; one more waits with its sender.
    pub change_bytes_max: usize,
    /// Most changes in one commit. More would only make the first of them wait longer.
    pub batch_max: usize,
    /// Bytes that requests may hold in the background after they were answered, for owners that have not answered. What
    /// would need more is given up: those owners get a hint at once.
    pub background_bytes_max: usize,
    /// The transport.
    pub endpoint: EndpointConfig,
    /// Where the data is, as shown to operators; empty when it is in memory.
    pub data_dir: String,
    /// The wall clock.
    pub wall_clock: WallClock,
    /// Where all randomness comes from. Must be unpredictable, and new at every start.
    pub seed: u64,
}

impl ServerConfig {
    /// The defaults for one server of a ring.
    ///
    /// # Errors
    /// Never for a ring of at least one server, which every ring is.
    pub fn new(
        ring: Arc<Ring>,
        me: ServerIndex,
        addresses: Vec<SocketAddr>,
        wall_clock: WallClock,
        seed: u64,
    ) -> Result<Self, QuorumError> {
        let quorum = Quorum::with_defaults(ring.servers().len(), None, None, None)?;
        Ok(Self {
            ring,
            me,
            addresses,
            quorum,
            sloppy: false,
            durability: Durability::Fsync,
            disk_free_bytes_min: 256 << 20,
            scrub_bytes_per_s: 4 << 20,
            scrub_pause: Duration::from_secs(3_600),
            hint_bytes_max: 256 << 20,
            repair_interval: Duration::from_secs(10),
            repair_bytes_per_s_max: 16 << 20,
            reap_interval: Duration::from_secs(10),
            ping_interval: Duration::from_secs(1),
            siblings: SiblingLimits::default(),
            value_len_max: VALUE_LEN_MAX_DEFAULT,
            clock_skew_ms_max: 60_000,
            timeout_max: Duration::from_secs(60),
            changes_max: 4_096,
            change_bytes_max: 256 << 20,
            batch_max: 1_024,
            background_bytes_max: 256 << 20,
            endpoint: EndpointConfig::default(),
            data_dir: String::new(),
            wall_clock,
            seed,
        })
    }
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerConfig({:?} of {})", self.me, self.ring.id())
    }
}
