//! The values and pure functions of DKVS.
//!
//! A Dynamo is mostly arithmetic: where a key lives, what a version knows, when enough servers have answered.
//! That arithmetic is here, and nothing else: no function in this crate waits, reads a clock, opens a file or
//! draws a random number. Time and randomness come in as arguments, so the same input gives the same output in
//! a server, in a test and in a simulation.
//!
//! ```text
//!   key ──SHA-1──> Position ──top 16 bits──> Partition ──Ring──> preference list (owners, fallbacks)
//!   put ──Record::event──> Record ──Record::merge──> Record           what an owner stores
//!   replies ──WriteQuorum / ReadQuorum──> Pending | Reached | Unreachable
//!   preference list ──Participants──> owners, and who stands in for them
//!   records ──EntryHash──> Leaves ──Node──> where two replicas differ
//! ```
//!
//! Reading order: [`position`] and [`servers`], [`ring`]; [`version`], [`record`]; [`hlc`]; [`quorum`], [`participants`];
//! [`hash_tree`]; [`limits`].
//!
//! What it leaves out: bytes. How a record or a message is laid out is the business of `dkvs-proto`.

pub mod limits;
pub mod position;
pub mod servers;

pub mod ring;

pub mod version;

pub mod record;

pub mod hlc;

pub mod quorum;

pub mod participants;

pub mod hash_tree;
