//! What can go wrong, by what a caller can do about it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dkvs_core::quorum::QuorumError;
use dkvs_core::servers::{NameError, ServerName, ServersError};
use dkvs_net::config::ConfigError;
use dkvs_proto::message::Refusal;

use crate::context::Context;
use crate::request::StandIn;

/// Why an operation did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The call cannot work as it is: fix it. Nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// The server named to connect to cannot be reached or does not exist. Nothing was written.
    #[error("cannot reach {server}: {reason}")]
    Connect {
        /// As it was given.
        server: String,
        /// What happened.
        reason: String,
    },
    /// The client's ring is not the servers': give the client the servers' `servers.txt`, or let it ask for the ring.
    /// Nothing was written.
    #[error("{server} is on another ring ({theirs}) than this client ({ours}): their servers.txt differ")]
    WrongRing {
        /// Who said so.
        server: ServerName,
        /// The server's ring.
        theirs: String,
        /// The client's ring.
        ours: String,
    },
    /// A server refused. Nothing was written.
    #[error("{server} refused: {reason}")]
    Refused {
        /// Who refused.
        server: ServerName,
        /// Why.
        reason: String,
    },
    /// The key has so many siblings that a put may not leave one more. Nothing was written. Get it with all siblings, merge them, and put
    /// the result with the context of that get; or put with the `context` here what is to replace them unseen.
    #[error(
        "{server} refused: the key has {siblings} siblings, and a put may leave at most {siblings_max}; get it with all siblings, \
         merge them, and put the result with the context of that get"
    )]
    TooManySiblings {
        /// Who refused.
        server: ServerName,
        /// How many the key has.
        siblings: u32,
        /// Most that a put may leave.
        siblings_max: u32,
        /// Covers all siblings that this server holds.
        context: Context,
    },
    /// The write may take effect now, later or never. Write again, or read to find out.
    #[error("{0}: the outcome is unknown")]
    Unknown(QuorumReport),
    /// Too few servers answered a read, or none could be reached. Nothing was written. Try again, or ask for less.
    #[error("{0}")]
    Unavailable(QuorumReport),
}

impl Error {
    /// Whether it is certain that nothing was written and nothing will be.
    #[must_use]
    pub fn nothing_was_written(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}

impl From<QuorumError> for Error {
    fn from(error: QuorumError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<ServersError> for Error {
    fn from(error: ServersError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Connect { server: "the network".into(), reason: Arc::new(error).to_string() }
    }
}

/// Who answered and who did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumReport {
    /// What was not reached.
    pub kind: QuorumKind,
    /// How many owners had to answer.
    pub needed: usize,
    /// Those asked, with what they answered.
    pub owners: Vec<(ServerName, OwnerReport)>,
    /// Who counted in the place of an owner.
    pub stand_ins: Vec<StandIn>,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Which quorum a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumKind {
    /// A coordinator found too few owners to acknowledge a write.
    Write,
    /// A coordinator found too few owners to agree on a read.
    Read,
    /// No server could be found to coordinate.
    Coordinator,
}

/// One server's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerReport {
    /// It did what was asked.
    Ok,
    /// It did not answer in time.
    TimedOut,
    /// It could not or would not; the reason.
    Failed(String),
}

impl QuorumReport {
    /// How many answered as asked, those that stood in for owners included.
    #[must_use]
    pub fn acked(&self) -> usize {
        let owners = self.owners.iter().filter(|(_, report)| *report == OwnerReport::Ok).count();
        owners + self.stand_ins.len()
    }
}

impl fmt::Display for QuorumReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acked, needed) = (self.acked(), self.needed);
        match self.kind {
            QuorumKind::Write => write!(f, "write quorum not reached: {acked} of {needed} acknowledged")?,
            QuorumKind::Read => write!(f, "read quorum not reached: {acked} of {needed} answered")?,
            QuorumKind::Coordinator => write!(f, "no server answered")?,
        }
        for (place, (server, report)) in self.owners.iter().enumerate() {
            f.write_str(if place == 0 { " (" } else { ", " })?;
            match report {
                OwnerReport::Ok => write!(f, "{server} ok")?,
                OwnerReport::TimedOut => write!(f, "{server} did not answer in {}", Seconds(self.waited))?,
                OwnerReport::Failed(reason) => write!(f, "{server} failed: {reason}")?,
            }
        }
        for StandIn { server, owner } in &self.stand_ins {
            write!(f, ", {server} stood in for {owner}")?;
        }
        if self.owners.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// A duration as people read it: `1 s`, `0.9 s`, `45 ms`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0.as_millis() + 50) / 100;
        match (self.0.as_millis(), tenths % 10) {
            (ms @ 0..100, _) => write!(f, "{ms} ms"),
            (_, 0) => write!(f, "{} s", tenths / 10),
            (_, tenth) => write!(f, "{}.{tenth} s", tenths / 10),
        }
    }
}

/// A server's refusal in words.
pub(crate) fn in_words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Overloaded => "overloaded".into(),
        Refusal::WrongRing { ring } => format!("it is on another ring ({ring}): the servers.txt differ"),
        Refusal::NotOwner => "it does not own the key".into(),
        Refusal::BadContext => "the context is damaged or belongs to another key; get the key again".into(),
        Refusal::TooLong { what, len, len_max } => {
            format!("the {what} has {len} bytes; at most {len_max} are allowed")
        }
        Refusal::Invalid(reason) => reason.clone(),
        Refusal::Storage(reason) => format!("its storage failed: {reason}"),
        Refusal::Stopping => "it is stopping".into(),
        Refusal::DiskFull { path, free, needed } => {
            format!("disk full: {path} has {free} bytes free, and {needed} must be free for this")
        }
        Refusal::Damaged => "its copy of the key is damaged, and being repaired from the other owners".into(),
        Refusal::TooManySiblings { siblings, .. } => {
            format!("the key has {siblings} siblings, too many for a put")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_quorum_names_who_answered_and_who_did_not() {
        let name = |port| ServerName::new("127.0.0.1", port).unwrap();
        let report = QuorumReport {
            kind: QuorumKind::Write,
            needed: 2,
            owners: vec![
                (name(1234), OwnerReport::Ok),
                (name(1235), OwnerReport::TimedOut),
                (name(1236), OwnerReport::Failed("overloaded".into())),
            ],
            stand_ins: Vec::new(),
            waited: Duration::from_millis(980),
        };
        assert_eq!(
            Error::Unknown(report.clone()).to_string(),
            "write quorum not reached: 1 of 2 acknowledged (127.0.0.1:1234 ok, 127.0.0.1:1235 did not answer in 1 s, \
             127.0.0.1:1236 failed: overloaded): the outcome is unknown"
        );
        let stand_ins = vec![StandIn { server: name(1237), owner: name(1235) }];
        let owners = vec![(name(1235), OwnerReport::TimedOut)];
        let report = QuorumReport { stand_ins, owners, ..report };
        assert_eq!(
            Error::Unavailable(report).to_string(),
            "write quorum not reached: 1 of 2 acknowledged (127.0.0.1:1235 did not answer in 1 s, 127.0.0.1:1237 stood in for \
             127.0.0.1:1235)"
        );
    }

    #[test]
    fn durations_read_well() {
        let texts =
            [7, 99, 100, 949, 951, 1_000, 12_340].map(|ms| Seconds(Duration::from_millis(ms)).to_string());
        assert_eq!(texts, ["7 ms", "99 ms", "0.1 s", "0.9 s", "1 s", "1 s", "12.3 s"]);
    }
}
