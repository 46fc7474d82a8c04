//! How an operation can end other than well, and what is told of it.

use std::io;

use bytes::Bytes;
use dkvs::Got;

use crate::output::{Exit, escaped};

/// Why there is no answer. Each is one line for people, a word for programs, and an exit status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command cannot work as it is. No operation was sent.
    #[error("{0}")]
    Usage(String),
    /// The key to get has no value, or its deletion is the latest of several siblings. What was read all the same
    /// holds the context for a put that follows.
    #[error("not found")]
    NotFound(Box<Got>),
    /// A key that an operation reads has no value. Nothing was written.
    #[error("not found: {}", escaped(.0))]
    SourceNotFound(Bytes),
    /// The part of a value does not lie inside it. Nothing was written.
    #[error("POS {pos}, LEN {len} is not inside the value, which has {value_len} bytes")]
    OutOfRange { pos: i64, len: u64, value_len: usize },
    /// What was put together is longer than a value may be. Nothing was written.
    #[error("the values together have more than {len_max} bytes, the most that a value may have")]
    TooLong { len_max: usize },
    /// No file names the ring, and it cannot be asked for. Nothing was sent but the question.
    #[error(
        "no servers.txt here and nobody answers at {server} ({reason}): start a cluster with 'dkvs-server', or name \
         a server with --connect HOST:PORT or a ring with --servers FILE"
    )]
    NoRing { server: String, reason: String },
    /// None of the servers could be inspected.
    #[error("no server answered")]
    NobodyAnswered,
    /// The library's reasons; only [`dkvs::Error::Unknown`] leaves open whether something was written.
    #[error("{0}")]
    Client(dkvs::Error),
    /// What a server holds is set aside in a temporary file until it is counted.
    #[error("cannot use a temporary file: {0}")]
    Spool(io::Error),
    /// The operation is done, but its answer cannot be shown.
    #[error("cannot write to stdout: {0}")]
    Stdout(io::Error),
    /// Nothing was sent.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

impl From<dkvs::Error> for Failure {
    fn from(error: dkvs::Error) -> Self {
        match error {
            dkvs::Error::Usage(text) => Self::Usage(text),
            error @ (dkvs::Error::Connect { .. }
            | dkvs::Error::WrongRing { .. }
            | dkvs::Error::Refused { .. }
            | dkvs::Error::TooManySiblings { .. }
            | dkvs::Error::Unknown(_)
            | dkvs::Error::Unavailable(_)) => Self::Client(error),
        }
    }
}

impl Failure {
    /// The word for programs and the exit status.
    pub(crate) fn class(&self) -> (&'static str, Exit) {
        match self {
            Self::Usage(_) | Self::Client(dkvs::Error::Usage(_)) => ("usage", Exit::Usage),
            Self::NotFound(_) | Self::SourceNotFound(_) => ("not_found", Exit::NotFound),
            Self::NoRing { .. } | Self::NobodyAnswered => ("unavailable", Exit::Unavailable),
            Self::Client(dkvs::Error::Connect { .. } | dkvs::Error::Unavailable(_)) => {
                ("unavailable", Exit::Unavailable)
            }
            Self::Client(dkvs::Error::Unknown(_)) => ("unknown", Exit::Unavailable),
            Self::Client(dkvs::Error::WrongRing { .. }) => ("wrong_ring", Exit::Other),
            Self::Client(dkvs::Error::Refused { .. }) => ("refused", Exit::Other),
            Self::Client(dkvs::Error::TooManySiblings { .. }) => ("too_many_siblings", Exit::Other),
            Self::OutOfRange { .. } => ("out_of_range", Exit::Other),
            Self::TooLong { .. } => ("too_long", Exit::Other),
            Self::Spool(_) | Self::Stdout(_) | Self::Runtime(_) => ("io", Exit::Other),
        }
    }
}
