//! A coordinator and an owner, or a server that stands in for one. All requests are idempotent: a merge done twice is a merge done once.

use bytes::Bytes;
use dkvs_core::record::{Record, RecordHash};
use dkvs_core::ring::RingId;
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::Dot;
use serde::{Deserialize, Serialize};

use super::reap::ReapRequest;
use super::repair::{RepairAnswer, RepairRequest};
use super::{Durability, Refusal};
use crate::wire;

/// What a coordinator asks of an owner, or of a server that stands in for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaRequest {
    /// Merge this record into yours and make it durable.
    Merge {
        /// The ring the coordinator is on.
        ring: RingId,
        /// The key.
        #[serde(with = "wire::bytes")]
        key: Bytes,
        /// The coordinator's whole record.
        #[serde(with = "wire::record")]
        record: Record,
        /// How durable it has to be before it is acknowledged, at least.
        durability: Durability,
        /// Why.
        cause: Cause,
    },
    /// Send your record, unless it is the one I have.
    Fetch {
        /// The ring the coordinator is on.
        ring: RingId,
        /// The key.
        #[serde(with = "wire::bytes")]
        key: Bytes,
        /// Fingerprint of the coordinator's own record; of the empty record when it has none.
        known: RecordHash,
    },
    /// Are you there? Asked of servers that have not been heard from lately.
    Ping,
    /// Stand in for an owner: keep this record for it as a hint, durably, and deliver it when the owner answers. The hint
    /// counts toward the put's quorum, so it is never dropped.
    MergeHint {
        /// The ring the coordinator is on.
        ring: RingId,
        /// The key.
        #[serde(with = "wire::bytes")]
        key: Bytes,
        /// The coordinator's whole record.
        #[serde(with = "wire::record")]
        record: Record,
        /// The owner.
        owner: ServerIndex,
        /// How durable the hint has to be before it is acknowledged, at least.
        durability: Durability,
        /// Why.
        cause: Cause,
    },
    /// Stand in for an owner: send what you keep of a key for others, unless it is the record I have.
    FetchHints {
        /// The ring the coordinator is on.
        ring: RingId,
        /// The key.
        #[serde(with = "wire::bytes")]
        key: Bytes,
        /// Fingerprint of the record the coordinator has; of the empty record when it has none.
        known: RecordHash,
    },
    /// Compare your records with mine.
    Repair(RepairRequest),
    /// Take a step towards forgetting tombstones.
    Reap(ReapRequest),
}

/// Why a record is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A client puts a value. An owner with too little space on its disk refuses.
    Put,
    /// A client deletes, or copies that differ are made equal. What little space there is is kept for this.
    Upkeep,
}

/// What an owner answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaAnswer {
    /// Merged and durable, in the own record or in a hint.
    Merged {
        /// What the owner knew before and the sent record had not heard of, if there were values among it, as
        /// [`Record::missed_by`] finds it.
        #[serde(with = "wire::list")]
        missed: Vec<Dot>,
    },
    /// The record is the one you have.
    Same,
    /// The record, or the merge of all hints of the key; empty when the key is unknown here.
    Record(#[serde(with = "wire::record")] Record),
    /// Nothing was done.
    Refused(Refusal),
    /// To a ping.
    Alive,
    /// To a comparison.
    Repair(RepairAnswer),
    /// The places of the keys that passed the step.
    Reap(#[serde(with = "wire::list")] Vec<u32>),
    /// The record was lost here. This is what was written to it since.
    Incomplete(#[serde(with = "wire::record")] Record),
}
