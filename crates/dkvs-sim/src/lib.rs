//! DKVS under deterministic simulation.
//!
//! Many servers and clients of the real code run in one process, on one thread, over a simulated network, clock and
//! disk. Everything follows from one seed: what clients do, what breaks and when, in which order datagrams arrive. The
//! same seed gives the same run, event for event, so that a failure found among a million runs can be looked at as
//! often as it takes.
//!
//! ```text
//!   seed ──> plan: servers, clients, quorums, faults
//!              └──> world: turmoil's hosts and network, SimSocket, Disk, skewed clocks
//!                     └──> history: what clients asked and heard, when    ┐
//!                     └──> census: what lies on which disk                ┴──> invariants
//! ```

//! Reading order: [`run`] (one seed, start to end), [`plan`], [`workload`] and [`client`](crate) (what clients do),
//! `mad`, [`nemesis`] and [`world`] (what breaks), [`socket`], [`weather`], [`disk`] and [`clock`] (the seams); then
//! [`history`], [`checkers`] and [`invariants`]. docs/testing.md says how to use it.
//!
//! What it leaves out: threads, real sockets, real files. One task runs at a time and time passes in steps of a
//! millisecond, so races between threads, and what a kernel or a file system does, are for tests on real processes.

pub mod run;

pub mod plan;

pub mod workload;

mod client;

mod server;

mod mad;

pub mod nemesis;

pub mod world;

pub mod socket;

pub mod weather;

pub mod disk;

pub mod clock;

pub mod shared;

pub mod recorder;

pub mod trace;

pub mod seed;

pub mod history;

pub mod checkers;

pub mod invariants;
