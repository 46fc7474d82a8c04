//! What clients asked and heard, and what lay on the disks in the end: all that a checker may know.
//!
//! A checker never looks into a running server. It sees operations with the times of their call and return, and
//! contexts opened to the version vectors they are, so that "this context covers that write" is exact. After the faults
//! have ended it also sees the records on all disks.

use std::collections::{BTreeMap, BTreeSet};

use dkvs_cluster::Target;
use dkvs_core::hlc::WallMs;
use dkvs_core::record::{OpId, Record};
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Dot, VersionVector};
use dkvs_net::Level;

/// Simulated time since the run began, in microseconds.
pub type Micros = u64;

/// The value of one put; every put of a run writes another. Kept small here whatever was sent.
pub type ValueId = u64;

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Position in the history.
    pub id: usize,
    /// Who asked. After an unknown outcome a client goes on under a new number, as the old one may still be at work.
    pub client: u32,
    /// The key.
    pub key: String,
    /// The quorum asked for.
    pub n: usize,
    /// Owners that a get waits for, or a put.
    pub quorum: usize,
    /// Whether others may stand in for them.
    pub sloppy: bool,
    /// When it was called.
    pub called: Micros,
    /// When it returned; `None` when it had not when the run ended.
    pub returned: Option<Micros>,
    /// By when it had promised to return.
    pub deadline: Micros,
    /// What was asked.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a value (`None`: delete).
    Write {
        /// What to write. Deletions have a number of their own too, in `write`.
        value: Option<ValueId>,
        /// Number of this write, unique in the run, also for deletions.
        write: ValueId,
        /// The context sent along; `None` for a blind write.
        context: Option<VersionVector>,
        /// For how long the value is to be shown, in milliseconds; `None` for as long as nobody replaces it.
        ttl_ms: Option<u64>,
    },
    /// Read, with all siblings.
    Read,
}

/// What a client heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Still under way.
    Pending,
    /// The write is acknowledged.
    Written {
        /// The context returned.
        context: VersionVector,
    },
    /// The read succeeded.
    Read {
        /// All siblings: values, or `None` for deletions. Empty when the key was never written.
        values: Vec<Option<ValueId>>,
        /// The context returned; empty when there was nothing to see.
        context: VersionVector,
    },
    /// Certainly without effect.
    Failed,
    /// A write that may take effect now, later or never.
    Unknown,
    /// A read that was not answered.
    Unavailable,
}

/// Who counted for an answer, as the answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Owners that did what was asked.
    pub owners: Vec<ServerIndex>,
    /// Who stood in, and for which owner.
    pub stand_ins: Vec<(ServerIndex, ServerIndex)>,
}

/// A record of a client's key that was to be written to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// When.
    pub at: Micros,
    /// For whom it was kept as a hint; `None` for the server's own record.
    pub hint_for: Option<Target>,
    /// Which events it knew of.
    pub vv: VersionVector,
}

/// A record of nothing but tombstones that was to be removed from a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Whose disk.
    pub server: ServerIndex,
    /// When.
    pub at: Micros,
    /// The key.
    pub key: String,
    /// What was there.
    pub record: Record,
}

/// What happened to disks, which decides what may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A server's disk was emptied.
    Wiped {
        /// Whose.
        server: ServerIndex,
        /// When.
        at: Micros,
    },
    /// A server's disk went back to what it was earlier.
    Restored {
        /// Whose.
        server: ServerIndex,
        /// When.
        at: Micros,
        /// To the state of this time.
        back_to: Micros,
    },
    /// A power cut took what a server had acknowledged but, as its durability level allows, not yet flushed.
    Unflushed {
        /// Whose.
        server: ServerIndex,
        /// When.
        at: Micros,
    },
    /// Bits of one stored record flipped.
    Flipped {
        /// Whose.
        server: ServerIndex,
        /// When.
        at: Micros,
        /// Which record.
        key: String,
    },
}

/// A pair that a server was given at each of its starts: older than any put, and one value wherever it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Who was given it.
    pub server: ServerIndex,
    /// The key.
    pub key: String,
    /// The value's number, which no write has.
    pub value: ValueId,
    /// What stands for its event.
    pub dot: Dot,
}

/// What a server's wall clock showed from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// From when on.
    pub from: Micros,
    /// How wrong it was, in milliseconds.
    pub skew_ms: i64,
    /// The simulated time at which it stood still, in milliseconds, if it did.
    pub stands_at_ms: Option<i64>,
}

/// How full the tables, queues and buffers of a server or client were in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Whose.
    pub who: String,
    /// What its gauges showed when it was stopped, killed, or still there at the end of the run.
    pub levels: Vec<Level>,
}

/// Something that a server keeps for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HintLeft {
    /// Who keeps it.
    pub holder: ServerIndex,
    /// For whom.
    pub target: ServerIndex,
    /// The key of a hint; `None` for the mark of a partition.
    pub key: Option<String>,
    /// The partition.
    pub partition: u16,
}

/// The records on one server's disk.
pub type DiskCensus = BTreeMap<String, Record>;

/// A run, as checkers see it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In the order of their calls.
    pub operations: Vec<Operation>,
    /// What servers were given at their starts.
    pub given: Vec<Given>,
    /// Whether somebody sent servers what it liked, for keys that no operation names. Of these nothing is promised.
    pub has_mad_peer: bool,
    /// Whether servers answer for nothing that is not flushed.
    pub is_flushed: bool,
    /// Which client operation wrote under which dot, from all records ever seen on a disk or in a message.
    pub dots: BTreeMap<String, BTreeMap<Dot, BTreeSet<OpId>>>,
    /// The expiries that were seen with each event, on any disk.
    pub expiries: BTreeMap<String, BTreeMap<Dot, BTreeSet<Option<WallMs>>>>,
    /// What happened to servers' wall clocks, which were right at first, in the order of time.
    pub clocks: BTreeMap<ServerIndex, Vec<ClockState>>,
    /// For so long after its expiry a value keeps its bytes on every disk, by the wall clock of that server.
    pub bytes_kept_ms: u64,
    /// Which server numbered its events under which incarnation, from all records ever seen on a disk.
    pub coordinators: BTreeMap<u64, ServerIndex>,
    /// Who counted for the operations that succeeded, by their ids.
    pub counted: BTreeMap<usize, Counted>,
    /// What servers wrote to their disks, by server and key, in the order of time.
    pub stored: BTreeMap<(ServerIndex, String), Vec<Stored>>,
    /// What servers removed from their disks, in the order of time.
    pub reaped: Vec<Reaped>,
    /// Whom hints are for.
    pub targets: BTreeMap<Target, ServerIndex>,
    /// The write's number behind each client operation.
    pub ops: BTreeMap<OpId, ValueId>,
    /// What happened to disks, in the order of time.
    ///
    /// The world damages one server's disk only, until `repaired` names a later time; and in a run with damage no
    /// write asks for fewer than two acknowledgements. So no acknowledged record is ever damaged on more than W - 1
    /// of its owners. From a damage until the next repair, reads with R < N need not see what the damaged server had
    /// acknowledged: R + W > N counts copies that are no longer there. Everything must be back after the repair.
    pub damage: Vec<Damage>,
    /// When every key had been read with R = N, all reads called after the damage before. In the order of time.
    pub repaired: Vec<Micros>,
    /// When the last fault had ended.
    pub healed: Option<Micros>,
    /// Every life of a server or client that is over, in the order of their ends.
    pub lives: Vec<Life>,
    /// When servers ended with hints that they may not have written: from when their disk may have kept them from it, or else
    /// from an end that nobody asked for, to the end.
    pub ends: Vec<(ServerIndex, Micros, Micros)>,
    /// From when to when a server's disk had no space for hints either.
    pub full_disks: Vec<(ServerIndex, Micros, Micros)>,
    /// Whether servers have so little room for what goes on after an answer that they may try only once to write a hint.
    pub background_is_scarce: bool,
    /// The disks of all servers when the faults had ended, clients had finished, and no hint was left or none was delivered
    /// any more; before every key was read with R = N.
    pub quiet_disks: BTreeMap<ServerIndex, DiskCensus>,
    /// When that was.
    pub quiet_at: Micros,
    /// Of which keys a server's record was then damaged, and not repaired yet.
    pub quiet_damaged: BTreeSet<(ServerIndex, String)>,
    /// Where servers compare: of how many owners. Marks for others are forgotten there.
    pub compared_n: Option<usize>,
    /// Whether hints have so small a budget that marks take their place.
    pub hints_are_scarce: bool,
    /// What was then kept for other servers.
    pub kept: Vec<HintLeft>,
    /// The disks of all servers at the end, after every key was read with R = N.
    pub disks: BTreeMap<ServerIndex, DiskCensus>,
    /// The owners of each key, first to last, for each n used.
    pub owners: BTreeMap<(String, usize), Vec<ServerIndex>>,
}

/// A claim that did not hold, in words that name the operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name: its file's.
    pub invariant: &'static str,
    /// What was seen, and what was to be expected.
    pub what: String,
}
