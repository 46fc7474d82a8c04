//! Where keys live: consistent hashing with virtual nodes, answered from a table.
//!
//! Keys must be spread over servers so that everybody computes the same place without asking, a larger server gets
//! more, and a server that joins or leaves moves only its own share. Consistent hashing does that (Karger et al.
//! 1997, *Consistent Hashing and Random Trees*): servers and keys are hashed onto one circle, and a key belongs to
//! the servers met first when walking clockwise from it. Each server stands at many places, its virtual nodes, so
//! that shares even out and a lost server's load falls on all the others (DeCandia et al. 2007, *Dynamo*, §4.2).
//!
//! Node `i` of a server, `i` in 1..=COUNT, stands at its *token*, the SHA-1 of `IP PORT i`. The distinct servers in
//! the order of the walk are a key's *preference list*: the first N are its owners, the rest its fallbacks.
//!
//! ```text
//!   token     25  48  60  83  96  128  170  188  224        a ring of 256, servers A to E
//!   server     A   B   C   B   A   D    A    E    C
//!                ^
//!                key at 32: meets B C (B) A D (A) E   ──>   preference list  B C A D E,  N = 4: B C A D
//! ```
//!
//! # By partition
//! The walk starts at the first token whose own partition is at or after the key's, so all keys of a [`Partition`]
//! have one preference list, and hash trees, hints and transfers can be kept per partition. (Dynamo, §6.2: tokens
//! as in its strategy 1, equal partitions as in its strategy 3.)
//!
//! # The table
//! There are at most 65,536 different walks, so all are taken when the ring is built, and a lookup is a hash and
//! two reads. Taking them one by one would be slow; going round once *backwards* is not: the list that starts at
//! a node is the list that starts at the next one, with this node's server moved to the front.
//!
//! ```text
//!   from 224 (C)   C A B D E
//!   from 188 (E)   E C A B D
//!   from 170 (A)   A E C B D
//!   from 128 (D)   D A E C B       and so on back to 25
//! ```
//!
//! # Invariants
//! A ring is a function of its [`ServerList`] alone: equal lists give equal rings, with equal [`RingId`]s, on every
//! machine. Each preference list names each server once. The owners for N are the first of the owners for N + 1.
//! A server that joins is inserted into the lists and changes nothing else in them.
//!
//! # What it leaves out
//! - *Failures.* A server that is down keeps its place; who stands in for it is decided where the reply is missing.
//! - *Racks and zones.* Owners are different servers, but may all hang on one switch. Fallbacks and N are the only
//!   protection until lists know zones.
//! - *Several nodes in one partition.* Only the first of them in digest order decides where the partition's walk
//!   starts, so keys behind a token in its partition live as if they were before it. All that is lost is fineness:
//!   beyond some tens of thousands of nodes, more of them balance no better.
//! - *Integrity.* SHA-1 places nodes and keys, no more (see [`crate::position`]). The [`RingId`] is SHA-256.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use crate::position::{PARTITIONS, Partition, Position};
pub use crate::servers::ServerIndex;
use crate::servers::{SERVERS_MAX, ServerEntry, ServerList};

/// The name and version of the placement rule, part of every [`RingId`]: two builds that would place keys
/// differently must not take their rings for equal.
const PLACEMENT_RULE: &str = "dkvs ring 1\n";

const _: () =
    assert!(PARTITIONS * SERVERS_MAX * size_of::<ServerIndex>() <= 64 << 20, "a full table is 64 MiB");

/// One virtual node: a place on the ring and the server that stands there. Nodes are in ring order; if two had one
/// token, which SHA-1 does not let happen by chance, the server listed first would come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Where it stands.
    pub token: Position,
    /// Whose it is.
    pub server: ServerIndex,
}

/// A fingerprint of a whole ring: servers, counts, and the rule that places them. Rings with one id agree on every
/// owner of every key and on the meaning of every [`ServerIndex`]. The first 8 bytes of a SHA-256; it detects
/// servers that were started with different lists, not forgeries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RingId(u64);

impl RingId {
    /// The id with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its 64 bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Over the canonical text of the list, and the nodes where they do not follow from it.
    fn of(servers: &ServerList, placed_by_hand: &[Node]) -> Self {
        let mut hash = Sha256::new();
        hash.update(PLACEMENT_RULE);
        hash.update(servers.to_string());
        for node in placed_by_hand {
            hash.update(node.token.as_bytes());
            hash.update(node.server.number().to_be_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for RingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Servers on a circle, and for every partition the order in which they are preferred. Immutable; share it.
///
/// Memory: 22 bytes a node, 128 KiB, and 2 bytes a server for each partition that holds a token. That is 5 MiB for
/// 100 servers of 256 nodes.
#[derive(Clone)]
pub struct Ring {
    id: RingId,
    servers: ServerList,
    nodes: Box<[Node]>,
    table: Table,
}

impl Ring {
    /// The ring of these servers, each with as many nodes as its COUNT says.
    #[must_use]
    pub fn new(servers: ServerList) -> Self {
        let nodes = servers.indices().zip(&servers).flat_map(|(index, entry)| hashed_nodes(index, entry));
        let mut nodes: Vec<Node> = nodes.collect();
        nodes.sort_unstable();
        Self::of_sorted(RingId::of(&servers, &[]), servers, nodes)
    }

    /// A ring whose nodes stand at given tokens instead of hashed ones: for examples, tests, and layouts that place
    /// nodes by another rule. Its id covers the tokens. The nodes may come in any order.
    ///
    /// # Panics
    /// If a server has not as many nodes as its COUNT says, or a node belongs to no listed server.
    #[must_use]
    pub fn with_tokens(servers: ServerList, mut nodes: Vec<Node>) -> Self {
        let mut counts = vec![0; servers.len()];
        for node in &nodes {
            assert!(servers.get(node.server).is_some(), "{node:?} belongs to no server of the list");
            counts[node.server.as_usize()] += 1;
        }
        let listed = servers.iter().map(|entry| entry.nodes);
        assert!(
            listed.eq(counts.iter().copied()),
            "servers must have the nodes they list, but have {counts:?}"
        );
        nodes.sort_unstable();
        Self::of_sorted(RingId::of(&servers, &nodes), servers, nodes)
    }

    fn of_sorted(id: RingId, servers: ServerList, nodes: Vec<Node>) -> Self {
        Self { id, table: Table::new(&nodes, servers.len()), nodes: nodes.into(), servers }
    }

    /// The fingerprint: who has the same one agrees on everything a ring says.
    #[must_use]
    pub fn id(&self) -> RingId {
        self.id
    }

    /// The servers, which every [`ServerIndex`] of this ring counts in.
    #[must_use]
    pub fn servers(&self) -> &ServerList {
        &self.servers
    }

    /// All nodes in ring order: by token, clockwise from 0.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All servers in the order in which they are preferred for this partition: the first n are its owners, the
    /// rest its fallbacks.
    #[must_use]
    pub fn preference_list(&self, partition: Partition) -> &[ServerIndex] {
        self.table.list(partition)
    }

    /// The first `n` servers of the preference list; all of them if there are not so many.
    #[must_use]
    pub fn owners(&self, partition: Partition, n: usize) -> &[ServerIndex] {
        let list = self.preference_list(partition);
        &list[..n.min(list.len())]
    }

    /// The owners of a key when it is kept `n` times: one SHA-1 and two reads.
    #[must_use]
    pub fn owners_of_key(&self, key: &[u8], n: usize) -> &[ServerIndex] {
        self.owners(Partition::of_key(key), n)
    }
}

/// Without the table, which has tens of thousands of rows.
impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (servers, nodes) = (self.servers.len(), self.nodes.len());
        write!(f, "Ring {{ id: {}, servers: {servers}, nodes: {nodes} }}", self.id)
    }
}

/// The nodes of one server, at the hashes of `IP PORT i`.
fn hashed_nodes(server: ServerIndex, entry: &ServerEntry) -> impl Iterator<Item = Node> + use<> {
    let mut text = entry.name.ring_text() + " ";
    let stem = text.len();
    (1..=entry.nodes).map(move |i| {
        text.truncate(stem);
        write!(text, "{i}").expect("a String takes any text");
        Node { token: Position::of_key(text.as_bytes()), server }
    })
}

/// The preference list of every partition. Partitions whose walks start at one node share a row.
#[derive(Clone)]
struct Table {
    /// For each partition, which row.
    rows: Box<[u16]>,
    /// The rows one after the other, each naming all servers.
    lists: Box<[ServerIndex]>,
    servers: usize,
}

impl Table {
    /// `nodes` in ring order, with at least one of each of the servers.
    fn new(nodes: &[Node], servers: usize) -> Self {
        let mut rows = vec![0; PARTITIONS];
        let mut lists = Vec::new();
        let mut list = walk(nodes, servers);
        let mut row = 0;
        // The walk from node 0 comes first and is row 0: it also serves the partitions after the last token.
        lists.extend_from_slice(&list);
        for (i, node) in nodes.iter().enumerate().skip(1).rev() {
            move_to_front(&mut list, node.server);
            let (before, here) = (nodes[i - 1].token.partition(), node.token.partition());
            if before < here {
                row += 1;
                rows[usize::from(before.number()) + 1..=usize::from(here.number())].fill(row);
                lists.extend_from_slice(&list);
            }
        }
        Self { rows: rows.into(), lists: lists.into(), servers }
    }

    fn list(&self, partition: Partition) -> &[ServerIndex] {
        let start = usize::from(self.rows[usize::from(partition.number())]) * self.servers;
        &self.lists[start..start + self.servers]
    }
}

/// The servers in the order in which their first nodes come.
fn walk(nodes: &[Node], servers: usize) -> Vec<ServerIndex> {
    let mut list = Vec::with_capacity(servers);
    let mut met = vec![false; servers];
    for node in nodes {
        if !std::mem::replace(&mut met[node.server.as_usize()], true) {
            list.push(node.server);
        }
    }
    list
}

fn move_to_front(list: &mut [ServerIndex], server: ServerIndex) {
    let place = list.iter().position(|&other| other == server).expect("the list names every server");
    list[..=place].rotate_right(1);
}
