//! Forgetting deletions: the first owner of a key asks all servers of the ring, step by step, whether anything is left that its
//! tombstones are still needed against.
//!
//! ```text
//!   Watch ──> Fence ──> (a pause longer than any message lives) ──> Confirm ──> Confirm ──> Reap
//! ```
//! A step is asked of all servers, and begun when all have answered the one before it. A key takes part in a step when it has
//! passed those before it at every server.

use bytes::Bytes;
use dkvs_core::record::RecordHash;
use dkvs_core::ring::{RingId, ServerIndex};
use serde::{Deserialize, Serialize};

use crate::wire;

/// What the first owner of some keys asks of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapRequest {
    /// The ring it is on.
    pub ring: RingId,
    /// Who asks.
    pub from: ServerIndex,
    /// Which of its rounds this is: drawn at random at its start, and counted.
    pub round: u64,
    /// What to do.
    pub step: ReapStep,
    /// The keys, and the fingerprint of what the asker holds of each: tombstones, and nothing else.
    #[serde(with = "wire::list")]
    pub keys: Vec<ReapKey>,
}

/// A key, and the fingerprint of its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapKey {
    /// The key.
    #[serde(with = "wire::bytes")]
    pub key: Bytes,
    /// The record's fingerprint.
    pub hash: RecordHash,
}

/// What to do with each of the keys. In every step a key passes only if the server holds that record or nothing, and no hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReapStep {
    /// Watch it: from now on, any change of what is held of it ends the watch.
    Watch,
    /// It is still watched. Remember what is under way on it now.
    Fence,
    /// It is still watched, what was under way has ended long ago, and all of that is on disk.
    Confirm,
    /// Forget it.
    Reap,
}
