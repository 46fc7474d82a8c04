//! A client and the server that coordinates for it.

use bytes::Bytes;
use dkvs_core::record::OpId;
use dkvs_core::ring::RingId;
use dkvs_core::servers::ServerIndex;
use serde::{Deserialize, Serialize};

use super::{Durability, Refusal};
use crate::wire;

/// An operation on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientRequest {
    /// Write a value or a deletion. Not idempotent: executed at most once for each session and request id.
    Put(Put),
    /// Read the value.
    Get(Get),
}

/// A put, or a delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The ring the client knows.
    pub ring: RingId,
    /// 1..=32,768 bytes.
    #[serde(with = "wire::bytes")]
    pub key: Bytes,
    /// What to write.
    pub body: PutBody,
    /// What the client has seen of the key, as [`crate::context`] encodes it. Without it the put replaces everything
    /// acknowledged before it.
    pub context: Option<Token>,
    /// Copies.
    pub n: u16,
    /// Owners that must hold it before the answer.
    pub w: u16,
    /// The operation, the same in every retry.
    pub op: OpId,
    /// How long the coordinator may take, in milliseconds.
    pub timeout_ms: u32,
    /// Passed on by a server that does not own the key; not to be passed on again.
    pub forwarded: bool,
    /// How durable each owner makes it before it acknowledges, at least.
    pub durability: Durability,
    /// For how long readers are to be shown the value, in milliseconds from when its coordinator writes it; at least 1 and
    /// at most [`TTL_MS_MAX`](dkvs_core::limits::TTL_MS_MAX). `None` for as long as nobody replaces it, and for a deletion.
    pub ttl_ms: Option<u64>,
    /// Whether other servers may stand in for owners that do not answer, and count.
    pub sloppy: bool,
}

/// A context as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token(#[serde(with = "wire::bytes")] pub Bytes);

/// What a put writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutBody {
    /// A value, possibly empty.
    Value(#[serde(with = "wire::bytes")] Bytes),
    /// A deletion.
    Tombstone,
}

/// A get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// The ring the client knows.
    pub ring: RingId,
    /// 1..=32,768 bytes.
    #[serde(with = "wire::bytes")]
    pub key: Bytes,
    /// Copies.
    pub n: u16,
    /// Owners that must agree before the answer.
    pub r: u16,
    /// How long the coordinator may take, in milliseconds.
    pub timeout_ms: u32,
    /// Whether to send all siblings, not only the winner.
    pub siblings: bool,
    /// Whether other servers may stand in for owners that do not answer, and count.
    pub sloppy: bool,
}

/// What a coordinator answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientAnswer {
    /// The put is held by `w` owners, or by as many owners and stand-ins together.
    Put(PutDone),
    /// `r` owners agree, or as many owners and stand-ins have answered.
    Get(GetDone),
    /// Neither.
    Failed(Failure),
}

/// A put that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutDone {
    /// The owners that had acknowledged it when the answer was sent.
    #[serde(with = "wire::list")]
    pub acked: Vec<ServerIndex>,
    /// What the client has seen of the key now that it knows its own put.
    pub context: Token,
    /// Who counted in the place of an owner; nobody unless the put was sloppy.
    #[serde(with = "wire::list")]
    pub stand_ins: Vec<StandIn>,
}

/// A server that counted in the place of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandIn {
    /// Who stood in. It does not own the key.
    pub server: ServerIndex,
    /// For whom. Of a put, it keeps a hint for that owner.
    pub owner: ServerIndex,
}

/// A get that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetDone {
    /// The values nobody has replaced and that have not expired, latest first; only the first of them unless all were
    /// asked for. Empty when the key was never written, or all that was has expired.
    #[serde(with = "wire::list")]
    pub values: Vec<PutBody>,
    /// How many there are, whether sent or not.
    pub siblings: u32,
    /// What the client has seen of the key; `None` when there is nothing to have seen.
    pub context: Option<Token>,
    /// The owners that had answered.
    #[serde(with = "wire::list")]
    pub answered: Vec<ServerIndex>,
    /// Who counted in the place of an owner; nobody unless the get was sloppy.
    #[serde(with = "wire::list")]
    pub stand_ins: Vec<StandIn>,
}

/// A request that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Nothing was done.
    Refused(Refusal),
    /// Too few owners answered. A put's outcome is then unknown: it may take effect now, later or never.
    Quorum(QuorumMissed),
}

/// Who answered and who did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumMissed {
    /// How many owners had to answer.
    pub needed: u16,
    /// The part of each owner that was asked. A coordinator that fails at its own part asks nobody else.
    #[serde(with = "wire::list")]
    pub owners: Vec<(ServerIndex, OwnerAnswer)>,
    /// How long the coordinator waited, in milliseconds.
    pub waited_ms: u32,
    /// Who counted in the place of an owner.
    #[serde(with = "wire::list")]
    pub stand_ins: Vec<StandIn>,
}

/// One owner's part in a request that missed its quorum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerAnswer {
    /// It did what was asked.
    Ok,
    /// It did not answer in time.
    TimedOut,
    /// It refused.
    Refused(Refusal),
}
