//! What is said, grouped by conversation. A request of one conversation has an answer of the same.
//!
//! Every request that depends on the ring names the ring it was made for: two processes whose `servers.txt` differ
//! would place keys differently, and must find out before they do.

pub mod admin;
pub mod client;
pub mod reap;
pub mod repair;
pub mod replica;

use dkvs_core::ring::RingId;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::frame::Kind;
use crate::wire;
use admin::{AdminAnswer, AdminRequest};
use client::{ClientAnswer, ClientRequest};
use replica::{ReplicaAnswer, ReplicaRequest};

/// Anything one can ask a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A client's operation on a key.
    Client(ClientRequest),
    /// A coordinator's request to an owner.
    Replica(ReplicaRequest),
    /// A question about the server itself.
    Admin(AdminRequest),
}

/// Anything a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a [`Request::Client`].
    Client(ClientAnswer),
    /// To a [`Request::Replica`].
    Replica(ReplicaAnswer),
    /// To a [`Request::Admin`].
    Admin(AdminAnswer),
}

impl Request {
    /// Its kind and its body.
    #[must_use]
    pub fn encode(&self) -> (Kind, Vec<u8>) {
        let body = match self {
            Self::Client(request) => codec::to_vec(request),
            Self::Replica(request) => codec::to_vec(request),
            Self::Admin(request) => codec::to_vec(request),
        };
        (self.kind(), body)
    }

    /// The kind of the frame it travels in.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Client(_) => Kind::ClientRequest,
            Self::Replica(_) => Kind::ReplicaRequest,
            Self::Admin(_) => Kind::AdminRequest,
        }
    }

    /// Reads a body of the given kind; `None` when the kind is not a request's.
    ///
    /// # Errors
    /// [`CodecError`] when the body is not one.
    pub fn decode(kind: Kind, body: &[u8]) -> Option<Result<Self, CodecError>> {
        match kind {
            Kind::ClientRequest => Some(codec::decode(body).map(Self::Client)),
            Kind::ReplicaRequest => Some(codec::decode(body).map(Self::Replica)),
            Kind::AdminRequest => Some(codec::decode(body).map(Self::Admin)),
            Kind::ClientAnswer
            | Kind::ReplicaAnswer
            | Kind::AdminAnswer
            | Kind::Challenge
            | Kind::Working
            | Kind::UseStream
            | Kind::Overloaded => None,
        }
    }

    /// Whether doing it twice is the same as doing it once. What is not is executed at most once.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        match self {
            Self::Client(ClientRequest::Put(_)) => false,
            Self::Client(ClientRequest::Get(_)) | Self::Replica(_) | Self::Admin(_) => true,
        }
    }
}

impl Answer {
    /// Its kind and its body.
    #[must_use]
    pub fn encode(&self) -> (Kind, Vec<u8>) {
        match self {
            Self::Client(answer) => (Kind::ClientAnswer, codec::to_vec(answer)),
            Self::Replica(answer) => (Kind::ReplicaAnswer, codec::to_vec(answer)),
            Self::Admin(answer) => (Kind::AdminAnswer, codec::to_vec(answer)),
        }
    }

    /// Reads a body of the given kind; `None` when the kind is not an answer's.
    ///
    /// # Errors
    /// [`CodecError`] when the body is not one.
    pub fn decode(kind: Kind, body: &[u8]) -> Option<Result<Self, CodecError>> {
        match kind {
            Kind::ClientAnswer => Some(codec::decode(body).map(Self::Client)),
            Kind::ReplicaAnswer => Some(codec::decode(body).map(Self::Replica)),
            Kind::AdminAnswer => Some(codec::decode(body).map(Self::Admin)),
            Kind::ClientRequest
            | Kind::ReplicaRequest
            | Kind::AdminRequest
            | Kind::Challenge
            | Kind::Working
            | Kind::UseStream
            | Kind::Overloaded => None,
        }
    }
}

/// Why a server did nothing of what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The server has too much to do. Try again later, or elsewhere.
    Overloaded,
    /// The request was made for another ring: the two `servers.txt` differ.
    WrongRing {
        /// The ring the server is on.
        ring: RingId,
    },
    /// The server does not own the key, and the request was not to be passed on.
    NotOwner,
    /// The context is damaged or belongs to another key.
    BadContext,
    /// Something is longer than the server accepts.
    TooLong {
        /// What it is: `key`, `value`, `record`.
        #[serde(with = "wire::text")]
        what: String,
        /// Its length in bytes.
        len: u64,
        /// The longest accepted, in bytes.
        len_max: u64,
    },
    /// The request contradicts itself.
    Invalid(#[serde(with = "wire::text")] String),
    /// The server's storage failed; the text is for the operator.
    Storage(#[serde(with = "wire::text")] String),
    /// The server is stopping.
    Stopping,
    /// Too little space is left on the server's disk. Deletes, reads and repairs go on.
    DiskFull {
        /// Where the data is.
        #[serde(with = "wire::text")]
        path: String,
        /// Bytes left.
        free: u64,
        /// Bytes that have to be left for what was asked.
        needed: u64,
    },
    /// The server's copy of the key is damaged, and being repaired from the other owners: ask those.
    Damaged,
    /// The put would leave the key with too many values that nobody has replaced.
    TooManySiblings {
        /// How many it has now.
        siblings: u32,
        /// Most that a put may leave.
        siblings_max: u32,
        /// With this context a put replaces all of them.
        context: client::Token,
    },
}

/// How durable a change has to be before it is acknowledged, at least: a server's own level counts if it is stronger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Durability {
    /// Written. Survives the end of the process; in other words, whatever the server's level is.
    #[default]
    Memory,
    /// As `Memory`, and flushed to disk within the server's flush interval.
    Interval,
    /// On disk.
    Fsync,
}
