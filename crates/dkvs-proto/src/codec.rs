//! Bodies of messages: bincode 2 in its standard configuration, with a limit, and nothing after the message.
//!
//! This is the only module that names bincode. The crate is finished and no longer maintained, so the bytes it makes
//! are specified in docs/protocol.md and held by golden tests: another encoder can take its place.
//!
//! A hostile body may claim any length. Everything of variable length therefore goes through the crate's `wire` helpers,
//! which take slices of what has arrived and never reserve room for what was only claimed.

use serde::{Deserialize, Serialize};

use crate::limits::BODY_LEN_MAX;

/// Why bytes are not the message they should be. They are dropped and counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not an encoding of the message.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The message is followed by bytes that do not belong to it.
    #[error("{0} surplus byte(s) after the message")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<BODY_LEN_MAX>()
}

/// Appends the message's bytes.
///
/// # Panics
/// Never for the messages of this crate: writing to memory cannot fail, and their lengths are all known.
pub fn encode<T: Serialize>(message: &T, into: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(message, into, config())
        .expect("a message of known lengths can be written to memory");
}

/// The message's bytes.
#[must_use]
pub fn to_vec<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes);
    bytes
}

/// Reads a message that takes up all of `bytes`.
///
/// # Errors
/// [`CodecError`] for anything else.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (message, read) = bincode::serde::borrow_decode_from_slice(bytes, config())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if read == bytes.len() { Ok(message) } else { Err(CodecError::Trailing(bytes.len() - read)) }
}
