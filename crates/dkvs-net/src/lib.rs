//! The transport of DKVS: requests and their answers over UDP, and over a TCP stream when they do not fit.
//!
//! UDP loses, repeats and reorders, and anybody can lie about where a datagram comes from. This crate turns that
//! into one call: [`Endpoint::call`] returns the answer, or says what is known when there is none.
//!
//! ```text
//!   call ──> in flight ──> outbox ──(many messages a datagram, many datagrams a system call)──> Socket
//!             ^   │ retransmit with backoff until the deadline                                    │
//!             │   v                                                                               v
//!   answer <──┴─ matched by id and sender <──────────────────────────────────────────────────── receive
//!                                     request ──> proof of address ──> at most once ──> Service ──> answer
//! ```
//!
//! Invariants:
//! - an answer counts only if it comes from the address the request went to, with its id;
//! - a request that is not idempotent is executed at most once for each session and id, however often its datagrams
//!   are repeated ([`sessions`](crate));
//! - no request is begun after its caller stopped counting on it ([`validity`]);
//! - nobody who has not proved to receive at its address is sent more bytes than it sent ([`proof`](crate));
//! - every table and queue is bounded ([`gauges`]); what exceeds a bound is answered *overloaded*, waits for room until its
//!   deadline, or is a lost datagram.
//!
//! Reading order: [`socket`] (the world), [`gauges`], `proof`, `sessions` and [`validity`] (whom to serve, how often, how late), `outbox`, `peers` (calls in
//! flight), [`endpoint`], `calls`, `serve`; then `stream_places`, `streams`, [`port`] (real sockets) and [`faults`] (bad networks for tests).
//!
//! What it leaves out: congestion control. A server answers what it is asked, and callers are bounded; a path
//! narrower than that shows as loss and is met by exponential backoff only.

pub mod config;

pub mod gauges;

pub mod socket;

mod proof;

mod sessions;

pub mod validity;

mod outbox;

mod peers;

pub mod endpoint;

mod calls;

mod serve;

mod stream_places;

mod streams;

pub mod port;

pub mod faults;

pub use config::EndpointConfig;
pub use endpoint::{Answered, CallError, Counters, Endpoint, NoService, Patience, Service};
pub use gauges::{Gauge, Held, Level};
pub use port::{Port, resolve};
pub use socket::Socket;
pub use validity::Validity;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data is valid at every point where a holder could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
