//! Looking at servers: how they are, and what they hold.

use std::time::Duration;

use bytes::Bytes;
use dkvs_core::servers::ServerIndex;
use dkvs_net::Socket;
use dkvs_proto::message::admin::{AdminAnswer, AdminRequest, PeerReport, ScanPage, StatusReport};
pub use dkvs_proto::message::admin::{HintReport, KeyReport, Liveness, SiblingReport, SiblingState};
use dkvs_proto::message::client::Token;

use crate::client::Client;
use crate::error::Error;
use crate::request::check_key;

/// Bytes of keys and values asked for in one page.
const PAGE_LEN: u32 = 256 * 1024;

/// How one server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The release it runs.
    pub version: String,
    /// The fingerprint of its ring, 16 hexadecimal digits.
    pub ring: String,
    /// Since it started.
    pub uptime: Duration,
    /// Keys with a value. One that has expired counts until its bytes are dropped.
    pub keys: u64,
    /// Keys whose deletion, or expired value, is still remembered.
    pub tombstones: u64,
    /// Bytes of keys and values stored.
    pub bytes: u64,
    /// Where the data is; empty when it is in memory.
    pub data_dir: String,
    /// The largest lead of another server's clock that it did not follow.
    pub clock_skew: Duration,
    /// Datagrams it dropped as not ours, damaged or malformed.
    pub junk_datagrams: u64,
    /// Why its store takes no more writes until it is started again; `None` when it does.
    pub poisoned: Option<String>,
    /// Bytes free on its disk; `None` when the data is in memory or its system does not say.
    pub disk_free: Option<u64>,
    /// Bytes that have to be free for it to accept puts.
    pub disk_free_min: u64,
    /// Records it found damaged since it started.
    pub damaged_found: u64,
    /// Damaged records it has not repaired yet.
    pub damaged_waiting: u64,
    /// Times it has looked at all its records for damage since it started.
    pub scrubs: u64,
    /// Puts since it started that left a key with so many siblings that a warning was due.
    pub siblings_warned: u64,
    /// Partitions it has to read before it can compare them with others.
    pub partitions_unread: u64,
    /// Tombstones it has forgotten since it started, as nothing was left that they were needed against.
    pub reaped: u64,
    /// How long it takes at most until it and the others hold the same, once faults have ended: by the configuration and what it
    /// stores, while requests leave time for it. `None` when servers are not compared.
    pub converges: Option<Duration>,
    /// The other servers, as it sees them.
    pub peers: Vec<Peer>,
}

/// Another server, as the one asked sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub server: ServerIndex,
    /// Whether it answers.
    pub liveness: Liveness,
    /// How long it has been so.
    pub since: Duration,
    /// Why it is thought to be so.
    pub reason: String,
    /// Hints that wait for it: writes it did not acknowledge.
    pub hints: u64,
    /// Bytes of these.
    pub hint_bytes: u64,
    /// Partitions in which it missed writes for which there is no hint.
    pub dirty_partitions: u64,
    /// How long ago the two were found equal; `None` when they were not since the server asked has started.
    pub agreed: Option<Duration>,
    /// Partitions that are known to differ, and wait to be made equal.
    pub differing_partitions: u64,
    /// Records that comparisons have moved between the two since then.
    pub records_moved: u64,
}

impl Status {
    /// Whether it refuses puts for want of space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.disk_free.is_some_and(|free| free < self.disk_free_min)
    }
}

/// One key a server holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value a get would show.
    pub value: Bytes,
    /// How many values there are that nobody has replaced.
    pub siblings: u32,
}

/// Part of what a server holds, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In the order of partitions, then keys.
    pub entries: Vec<Entry>,
    /// For the next call; `None` at the end.
    pub next: Option<Bytes>,
}

impl<S: Socket> Client<S> {
    /// Asks a server how it is.
    ///
    /// # Errors
    /// [`Error::Connect`] when it does not answer.
    pub async fn status(&self, server: ServerIndex) -> Result<Status, Error> {
        match self.ask_admin(server, AdminRequest::Status, false).await? {
            AdminAnswer::Status(report) => Ok(status(report)),
            AdminAnswer::Ring(_) | AdminAnswer::Page(_) | AdminAnswer::Refused(_) | AdminAnswer::Key(_) => {
                Err(self.nonsense(server))
            }
        }
    }

    /// One page of what a server holds, whoever owns it. Start with `None`, go on with the page's `next`.
    ///
    /// # Errors
    /// [`Error::Connect`] when it does not answer.
    pub async fn page(&self, server: ServerIndex, after: Option<Bytes>) -> Result<Page, Error> {
        let request = AdminRequest::Scan { after: after.map(Token), len_max: PAGE_LEN };
        match self.ask_admin(server, request, true).await? {
            AdminAnswer::Page(page) => Ok(read_page(page)),
            AdminAnswer::Ring(_) | AdminAnswer::Status(_) | AdminAnswer::Refused(_) | AdminAnswer::Key(_) => {
                Err(self.nonsense(server))
            }
        }
    }

    /// What a server itself holds of a key, without the values. Ask each of the key's owners to compare them.
    ///
    /// # Errors
    /// [`Error::Usage`] when the key's length is not allowed, [`Error::Connect`] when the server does not answer.
    pub async fn explain(&self, server: ServerIndex, key: impl Into<Bytes>) -> Result<KeyReport, Error> {
        let key = key.into();
        check_key(&key)?;
        let request = AdminRequest::Explain { ring: self.ring().id(), key };
        match self.ask_admin(server, request, false).await? {
            AdminAnswer::Key(report) => Ok(report),
            AdminAnswer::Ring(_)
            | AdminAnswer::Status(_)
            | AdminAnswer::Page(_)
            | AdminAnswer::Refused(_) => Err(self.nonsense(server)),
        }
    }

    fn nonsense(&self, server: ServerIndex) -> Error {
        Error::Connect {
            server: self.name(server).to_string(),
            reason: "it answered another question".into(),
        }
    }
}

fn status(report: StatusReport) -> Status {
    Status {
        version: report.version,
        ring: report.ring.to_string(),
        uptime: Duration::from_millis(report.uptime_ms),
        keys: report.keys,
        tombstones: report.tombstones,
        bytes: report.bytes,
        data_dir: report.data_dir,
        clock_skew: Duration::from_millis(report.clock_skew_ms),
        junk_datagrams: report.junk_datagrams,
        poisoned: Some(report.poisoned).filter(|reason| !reason.is_empty()),
        disk_free: report.disk_free,
        disk_free_min: report.disk_free_min,
        damaged_found: report.damaged_found,
        damaged_waiting: report.damaged_waiting,
        scrubs: report.scrubs,
        siblings_warned: report.siblings_warned,
        partitions_unread: report.partitions_unread,
        reaped: report.reaped,
        converges: report.converges_ms.map(Duration::from_millis),
        peers: report.peers.into_iter().map(peer).collect(),
    }
}

fn peer(report: PeerReport) -> Peer {
    Peer {
        server: report.server,
        liveness: report.liveness,
        since: Duration::from_millis(report.since_ms),
        reason: report.reason,
        hints: report.hints,
        hint_bytes: report.hint_bytes,
        dirty_partitions: report.dirty_partitions,
        agreed: report.agreed_ms.map(Duration::from_millis),
        differing_partitions: report.differing_partitions,
        records_moved: report.records_moved,
    }
}

fn read_page(page: ScanPage) -> Page {
    let entry = |entry: dkvs_proto::message::admin::ScanEntry| Entry {
        key: entry.key,
        value: entry.value,
        siblings: entry.siblings,
    };
    Page { entries: page.entries.into_iter().map(entry).collect(), next: page.next.map(|token| token.0) }
}
