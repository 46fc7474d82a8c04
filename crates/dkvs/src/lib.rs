//! The client of DKVS, a leaderless, replicated, durable key-value store.
//!
//! Every request chooses how many servers keep the key (`n`), and how many of them a read (`r`) or a write (`w`) waits
//! for. Left alone, three copies and majorities.
//!
//! ```no_run
//! # async fn example() -> Result<(), dkvs::Error> {
//! let client = dkvs::Client::connect("127.0.0.1:1234").await?;
//!
//! client.put("color", "green").await?;
//! let got = client.get("color").await?;
//! assert_eq!(got.value().map(|value| &value[..]), Some(&b"green"[..]));
//!
//! // Choose: survive the loss of two disks, read from any one server.
//! client.put("color", "blue").n(3).w(3).await?;
//! let got = client.get("color").n(3).r(1).await?;
//!
//! // Read, change, write back: replaces exactly what was read, and nothing written meanwhile.
//! client.put("color", "dark blue").context(got.context()).await?;
//! client.delete("color").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # When something goes wrong
//! An [`Error`] says what the caller can do about it. A write has three outcomes: done (`Ok`), certainly not done
//! ([`Error::nothing_was_written`]), and *unknown* ([`Error::Unknown`]): it may take effect now, later or never. Writing
//! the same value again is always a way out.
//!
//! # Owners that are down
//! Strict requests need R or W of a key's N owners. With [`Put::sloppy`] and [`Get::sloppy`] other servers may stand in for
//! owners that are down. The answer tells them apart ([`Written::stand_ins`], [`Got::stand_ins`]), and promises less.
//!
//! # Siblings
//! Two clients that write without having seen each other's value leave both. A read shows the latest and says how many
//! there are; [`Get::siblings`] brings all, and a put with that read's context replaces them by one.
//!
//! The client knows the ring and talks to an owner of the key directly; if that one is silent, to the next.

mod client;
mod config;
mod context;
mod error;
mod inspect;
mod request;

pub use client::Client;
pub use config::ClientConfig;
pub use context::{Context, ContextParseError};
pub use error::{Error, OwnerReport, QuorumKind, QuorumReport};
pub use inspect::{Entry, HintReport, KeyReport, Liveness, Page, Peer, SiblingReport, SiblingState, Status};
pub use request::{Get, Got, Put, StandIn, TTL_MAX, Written, check_key};

pub use bytes::Bytes;
pub use dkvs_core::position::{Partition, Position};
pub use dkvs_core::quorum::Quorum;
pub use dkvs_core::ring::Ring;
pub use dkvs_core::servers::{self, ServerIndex, ServerList, ServerName};
pub use dkvs_core::version::Dot;
pub use dkvs_net::{EndpointConfig, Level};
pub use dkvs_proto::message::Durability;
