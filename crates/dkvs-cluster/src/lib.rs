//! What a DKVS server does: it stores records for the keys it owns, and coordinates requests for the keys of others.
//!
//! ```text
//!   Endpoint ──> Service ─┬─ client ──> Coordinator ──┬──> Replica (this server's own copy)
//!                         │                           └──> Endpoint ──> other owners' replicas
//!                         ├─ replica ─────────────────────> Replica ──> one writer ──> Store
//!                         └─ admin ───────────────────────> status, ring, pages of keys
//! ```
//!
//! - [`Replica`] holds records. One writer applies all changes, in batches, and answers when they are durable.
//! - [`Coordinator`](crate) drives one request over the owners of a key, through the folds of `dkvs_core::quorum`.
//! - `failure_detector` knows who answers: whom to ask first, and whom to spare what can wait.
//! - `hints` keeps what other owners have missed, also in their place, and delivers it when they answer.
//! - `tree` sums up the records, and `anti_entropy` compares these sums with other servers' and makes equal what differs.
//! - `reaping` forgets tombstones, when all servers have shown that nothing is left that they are needed against.
//! - `scrub` reads all records, slowly, in search of damage; `mend` repairs what was found from the other owners.
//! - [`check`] looks at a store without a server.
//! - [`Server`] wires them to a port and starts and stops them.
//!
//! Invariant: nothing leaves a server (an acknowledgement, a dot, a record) before the commit that holds it is as
//! durable as the server promises.
//!
//! It knows neither sockets nor file formats: both come in as type parameters, and so the same code runs in a
//! simulation.

pub mod config;

mod clock;

mod stored;

mod damage;

mod identity;

mod siblings;

mod replica;

mod writer;

mod failure_detector;

mod hints;

mod anti_entropy;

mod tree;

mod reaping;

mod coordinator;

mod mend;

mod scrub;

mod admin;

pub mod check;

pub mod server;

#[doc(hidden)]
pub mod write_path;

pub use clock::WallClock;
pub use config::ServerConfig;
pub use hints::{DirtyMark, Kept, Target, decode_kept};
pub use replica::{Replica, ReplicaError};
pub use server::Server;
pub use siblings::SiblingLimits;
pub use stored::{Entry, decode_entry};
