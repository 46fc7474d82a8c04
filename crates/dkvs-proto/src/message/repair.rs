//! Two servers that compare what they share, so that what one has missed is found with nobody reading it.
//!
//! ```text
//!   Hashes   root                       ──> Differing []           equal: the usual end
//!   Hashes   children of what differs   ──> Differing [...]        down to partitions
//!   Keys     entries of a partition     ──> Keys                   which keys differ; records travel as usual
//!   Done                                ──> Done                   somebody else may compare now
//! ```

use bytes::Bytes;
use dkvs_core::hash_tree::EntryHash;
use dkvs_core::position::Partition;
use dkvs_core::ring::{RingId, ServerIndex};
use serde::{Deserialize, Serialize};

use crate::wire;

/// What a server asks of one with which it shares partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRequest {
    /// The ring it is on.
    pub ring: RingId,
    /// Who asks.
    pub from: ServerIndex,
    /// What to compare.
    pub compare: Compare,
}

/// What to compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// Nodes of the hash tree over the partitions that the two share.
    Hashes {
        /// Digits in each node's number: 0 for the root, 4 for a partition.
        level: u8,
        /// The nodes, and the asker's hash of each.
        #[serde(with = "wire::list")]
        nodes: Vec<(u16, EntryHash)>,
    },
    /// Some neighbouring entries of a partition: all that the asker has between two keys.
    Keys {
        /// Which.
        partition: Partition,
        /// The key before the first; empty for the start.
        #[serde(with = "wire::bytes")]
        after: Bytes,
        /// The last key that counts; empty for the end.
        #[serde(with = "wire::bytes")]
        last: Bytes,
        /// Fingerprints of the asker's entries.
        #[serde(with = "wire::list")]
        entries: Vec<EntryHash>,
    },
    /// Nothing more, for now.
    Done,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairAnswer {
    /// Those of the nodes whose hashes are others here.
    Differing(#[serde(with = "wire::list")] Vec<u16>),
    /// How the entries differ.
    Keys {
        /// Keys of entries here that the asker does not have so.
        #[serde(with = "wire::keys")]
        theirs: Vec<Bytes>,
        /// Places in the asker's list of entries that are not here so.
        #[serde(with = "wire::list")]
        yours: Vec<u32>,
        /// The last key that was compared, where that is not the asker's; empty when all were.
        #[serde(with = "wire::bytes")]
        last: Bytes,
    },
    /// A hash is not known here yet.
    NotBuilt,
    /// Another server compares just now.
    Busy,
    /// To the asker's last word.
    Done,
}
