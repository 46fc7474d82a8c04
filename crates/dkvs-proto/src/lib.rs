//! The words of DKVS: what servers and clients say to each other, and the bytes they say it in.
//!
//! ```text
//!   Request / Answer ──codec──> body ──frame──> kind, id, length, body ──envelope──> one datagram
//!                                                                      └─stream────> one of many on a connection
//! ```
//!
//! - [`message`] has the conversations as closed enums: a client with a server, a coordinator with a replica, an
//!   operator with a server. A new message must break every place that should know it.
//! - [`frame`] and [`envelope`] are laid out by hand, byte by byte, and do not depend on any serialisation library.
//! - [`codec`] turns the enums into bodies and back. It is the only module that names `bincode`.
//! - [`record`] and [`context`] have layouts of their own: they outlive a message, on disks and with clients.
//!
//! Bytes come from a network and from disks, so every decoder here may be given anything: it returns an error, does
//! not panic, and allocates no more than a small multiple of the bytes it was given.
//!
//! docs/protocol.md specifies all of it with test vectors. What it leaves out: what a message *means*.

pub mod limits;

pub mod message;

pub mod frame;

pub mod envelope;

pub mod codec;

pub mod record;

pub mod context;

mod read;
mod wire;
