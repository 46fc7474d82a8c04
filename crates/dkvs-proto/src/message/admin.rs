//! Questions to a server about itself. None of them asks for unbounded output: what may be long comes in pages.

use bytes::Bytes;
use dkvs_core::hlc::{Hlc, WallMs};
use dkvs_core::record::{OpId, RecordHash};
use dkvs_core::ring::RingId;
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::Dot;
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::client::Token;
use crate::wire;

/// What one may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// The ring, and the quorums that apply where a request leaves them open.
    Ring,
    /// How the server is.
    Status,
    /// A page of what the server holds, in the order of partitions and keys.
    Scan {
        /// Where the page before ended.
        after: Option<Token>,
        /// Bytes of keys and values that the page may have. One entry is always sent.
        len_max: u32,
    },
    /// What the server itself holds of one key, without the values.
    Explain {
        /// The ring the client knows.
        ring: RingId,
        /// 1..=32,768 bytes.
        #[serde(with = "wire::bytes")]
        key: Bytes,
    },
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminAnswer {
    /// The ring.
    Ring(RingReport),
    /// How the server is.
    Status(StatusReport),
    /// A page of what it holds.
    Page(ScanPage),
    /// Nothing was done.
    Refused(Refusal),
    /// What it holds of one key.
    Key(KeyReport),
}

/// A ring as `servers.txt` has it, and the cluster's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingReport {
    /// The servers.
    #[serde(with = "wire::list")]
    pub servers: Vec<RingServer>,
    /// Copies where a request does not say.
    pub n: u16,
    /// Read quorum where a request does not say.
    pub r: u16,
    /// Write quorum where a request does not say.
    pub w: u16,
    /// Whether other servers may stand in for owners where a request does not say.
    pub sloppy: bool,
}

/// One line of `servers.txt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingServer {
    /// IP address or host name.
    #[serde(with = "wire::text")]
    pub host: String,
    /// UDP and TCP port.
    pub port: u16,
    /// How many nodes it has on the ring.
    pub nodes: u32,
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The release it runs.
    #[serde(with = "wire::text")]
    pub version: String,
    /// The ring it is on.
    pub ring: RingId,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Keys with a value. One that has expired counts until its bytes are dropped.
    pub keys: u64,
    /// Keys whose deletion, or expired value, is still remembered.
    pub tombstones: u64,
    /// Bytes of keys and values stored.
    pub bytes: u64,
    /// Where the data is; empty when it is in memory.
    #[serde(with = "wire::text")]
    pub data_dir: String,
    /// The largest lead of a peer's clock that was ignored, in milliseconds; 0 when none was.
    pub clock_skew_ms: u64,
    /// Datagrams dropped because they were not ours, damaged or malformed.
    pub junk_datagrams: u64,
    /// Why the store takes no more writes until it is started again; empty when it does.
    #[serde(with = "wire::text")]
    pub poisoned: String,
    /// Bytes left on the disk; `None` when the data is in memory or the system does not say.
    pub disk_free: Option<u64>,
    /// Bytes that have to be left for puts to be accepted.
    pub disk_free_min: u64,
    /// Records found damaged since the start.
    pub damaged_found: u64,
    /// Damaged records that are not repaired yet.
    pub damaged_waiting: u64,
    /// Times that all records have been looked at for damage since the start.
    pub scrubs: u64,
    /// Puts since the start that left a key with so many siblings that a warning was due.
    pub siblings_warned: u64,
    /// Partitions that the server has to read before it can compare them with others.
    pub partitions_unread: u64,
    /// Tombstones forgotten since the start.
    pub reaped: u64,
    /// How long it takes at most, in milliseconds, until it and the others hold the same once faults have ended: by the configuration and
    /// what it stores, while requests leave time for it. `None` when servers are not compared.
    pub converges_ms: Option<u64>,
    /// The other servers of the ring, as this one sees them.
    #[serde(with = "wire::list")]
    pub peers: Vec<PeerReport>,
}

/// Another server, as the one asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Which.
    pub server: ServerIndex,
    /// Whether it answers.
    pub liveness: Liveness,
    /// How long it has been so, in milliseconds.
    pub since_ms: u64,
    /// Why it is thought to be so.
    #[serde(with = "wire::text")]
    pub reason: String,
    /// Hints that wait for it.
    pub hints: u64,
    /// Bytes of keys and records of these.
    pub hint_bytes: u64,
    /// Partitions in which it missed writes for which there is no hint.
    pub dirty_partitions: u64,
    /// How long ago the two were found equal, in milliseconds; `None` when they were not since the start.
    pub agreed_ms: Option<u64>,
    /// Partitions that are known to differ, and wait to be made equal.
    pub differing_partitions: u64,
    /// Records that comparisons have moved between the two since the start.
    pub records_moved: u64,
}

/// Whether a server answers, as far as another one can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// It answers.
    Up,
    /// It did not answer lately.
    Suspect,
    /// It has not answered for a while.
    Down,
}

/// Part of what a server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPage {
    /// Keys with a value that has not expired.
    #[serde(with = "wire::list")]
    pub entries: Vec<ScanEntry>,
    /// Where to go on; `None` at the end.
    pub next: Option<Token>,
}

/// One key a server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanEntry {
    /// The key.
    #[serde(with = "wire::bytes")]
    pub key: Bytes,
    /// The value a get would show.
    #[serde(with = "wire::bytes")]
    pub value: Bytes,
    /// How many siblings there are.
    pub siblings: u32,
}

/// What one server holds of a key, without the values. As long as such a record without its values, and one for each hint, at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyReport {
    /// The server's wall clock: what has expired by it is hidden from gets through this server.
    pub clock_ms: WallMs,
    /// Whether the record was damaged, and is not repaired yet: then it is not told.
    pub is_damaged: bool,
    /// The record's fingerprint.
    pub hash: RecordHash,
    /// Bytes of the record as it is stored; 0 when there is none.
    pub bytes: u64,
    /// The record's version vector: of each actor the latest event it has heard of.
    #[serde(with = "wire::list")]
    pub vv: Vec<Dot>,
    /// The values that nobody has replaced, in the order of their dots.
    #[serde(with = "wire::list")]
    pub siblings: Vec<SiblingReport>,
    /// What it keeps of the key for servers that missed it.
    #[serde(with = "wire::list")]
    pub hints: Vec<HintReport>,
}

/// A value, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiblingReport {
    /// The event that wrote it.
    pub dot: Dot,
    /// The operation.
    pub op: OpId,
    /// When it was written, by its coordinator's clock.
    pub hlc: Hlc,
    /// From when on it is hidden.
    pub expires: Option<WallMs>,
    /// What is left of it.
    pub state: SiblingState,
    /// Bytes of the value.
    pub len: u64,
}

/// What is left of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiblingState {
    /// All of it.
    Value,
    /// It is a deletion.
    Tombstone,
    /// It expired long ago, and its bytes were dropped.
    Dropped,
}

/// A hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintReport {
    /// Whom it is for.
    pub target: ServerIndex,
    /// The fingerprint of the record in it; `None` when it is damaged.
    pub hash: Option<RecordHash>,
    /// Bytes it takes.
    pub bytes: u64,
    /// The record's version vector; empty when it is damaged.
    #[serde(with = "wire::list")]
    pub vv: Vec<Dot>,
    /// The record's values, in the order of their dots.
    #[serde(with = "wire::list")]
    pub siblings: Vec<SiblingReport>,
}
