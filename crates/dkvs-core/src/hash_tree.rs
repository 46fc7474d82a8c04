//! How two replicas find out where they differ, at a cost that follows the difference (DeCandia et al. 2007, §4.7).
//!
//! A replica sums up each [`Partition`] in one number, its *leaf*: the XOR over the [`EntryHash`]es of its keys. A key's
//! record changes, and the leaf changes by XOR of the old and the new hash; nothing has to be read again. A node of the tree
//! above stands for all partitions whose number begins with the same digits, and its hash is the XOR of their leaves, so
//! that nodes need not be stored either.
//!
//! ```text
//!   level 0   root        all 65,536 partitions
//!         1   d           those that begin with the hexadecimal digit d
//!         2   db
//!         3   dbd
//!         4   dbdb        one partition: a leaf
//! ```
//! Two servers compare what they share: the root first, then, of each node that differs, its sixteen children. So a Merkle
//! tree (Merkle 1987) is walked, but its hashes are sums: what two servers share is another set of partitions for each pair,
//! and a sum over any set is at hand.
//!
//! # Invariants
//! Two replicas with equal entries in a set of partitions have equal sums over it. With entries that differ, sums are equal with
//! a chance of 2^-128, also if somebody chooses keys: an entry's hash depends on the random incarnations in its dots.
//!
//! A leaf that is not known is not guessed: [`Leaves::sum`] is then `None`.
//!
//! # What it leaves out
//! Values. Dots never carry two values, so a record's version and dots stand for all of it; a value whose bits rotted is the
//! business of checksums.

use std::fmt;
use std::ops::{BitXor, BitXorAssign};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::position::{PARTITIONS, Partition};
use crate::record::Record;

/// Children of a node.
pub const FAN_OUT: u16 = 16;

/// The level of the leaves; the root's is 0.
pub const LEAF_LEVEL: u8 = 4;

const LEVEL_BITS: u32 = FAN_OUT.ilog2();

const _: () = assert!(1 << (LEVEL_BITS * LEAF_LEVEL as u32) == PARTITIONS, "a leaf is one partition");

/// Fingerprint of a key and its record, or the XOR of some. 16 bytes of SHA-256.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryHash([u8; 16]);

impl EntryHash {
    /// The sum of nothing.
    pub const ZERO: Self = Self([0; 16]);

    /// Of a key and what a replica holds of it. Equal exactly when the records have equal fingerprints; see [`Record::hash`].
    #[must_use]
    pub fn of(key: &[u8], record: &Record) -> Self {
        let mut hash = Sha256::new();
        hash.update((key.len() as u64).to_be_bytes());
        hash.update(key);
        record.feed(&mut |bytes| hash.update(bytes));
        let digest: [u8; 32] = hash.finalize().into();
        let (head, _) = digest.split_at(16);
        Self(head.try_into().expect("a SHA-256 digest is longer than 16 bytes"))
    }

    /// The hash with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl BitXor for EntryHash {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        Self((u128::from_ne_bytes(self.0) ^ u128::from_ne_bytes(other.0)).to_ne_bytes())
    }
}

impl BitXorAssign for EntryHash {
    fn bitxor_assign(&mut self, other: Self) {
        *self = *self ^ other;
    }
}

impl fmt::Debug for EntryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A set of partitions: 8 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct PartitionSet(Box<[u64]>);

impl PartitionSet {
    /// The partitions that `is_member` says.
    #[must_use]
    pub fn of(is_member: impl Fn(Partition) -> bool) -> Self {
        let word = |word: usize| {
            let bit = |bit: usize| {
                let number = u16::try_from(word * 64 + bit).expect("there are 65,536 partitions");
                u64::from(is_member(Partition::new(number))) << bit
            };
            (0..64).map(bit).fold(0, |word, bit| word | bit)
        };
        Self((0..PARTITIONS / 64).map(word).collect())
    }

    /// Whether it has the partition.
    #[must_use]
    pub fn contains(&self, partition: Partition) -> bool {
        let number = usize::from(partition.number());
        self.0[number / 64] >> (number % 64) & 1 == 1
    }

    /// Adds or removes a partition. Returns whether it was there.
    pub fn set(&mut self, partition: Partition, is_member: bool) -> bool {
        let was_member = self.contains(partition);
        let number = usize::from(partition.number());
        if was_member != is_member {
            self.0[number / 64] ^= 1 << (number % 64);
        }
        was_member
    }

    /// How many it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// The first of its partitions at or after this one.
    #[must_use]
    pub fn next_from(&self, from: Partition) -> Option<Partition> {
        let from = usize::from(from.number());
        let first = self.0[from / 64] & u64::MAX << (from % 64);
        let rest = self.0.iter().enumerate().skip(from / 64 + 1).map(|(place, &word)| (place, word));
        let mut words = std::iter::once((from / 64, first)).chain(rest);
        let (place, word) = words.find(|(_, word)| *word != 0)?;
        let number = place * 64 + word.trailing_zeros() as usize;
        u16::try_from(number).ok().map(Partition::new)
    }
}

impl fmt::Debug for PartitionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartitionSet({} of {PARTITIONS})", self.len())
    }
}

/// A node of the tree: the partitions whose number begins with so many hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    level: u8,
    digits: u16,
}

impl Node {
    /// Over all partitions.
    pub const ROOT: Self = Self { level: 0, digits: 0 };

    /// The node of this level with these digits; `None` when there is none.
    #[must_use]
    pub fn new(level: u8, digits: u16) -> Option<Self> {
        let nodes = 1_u32.checked_shl(LEVEL_BITS * u32::from(level.min(LEAF_LEVEL)))?;
        (level <= LEAF_LEVEL && u32::from(digits) < nodes).then_some(Self { level, digits })
    }

    /// How many digits.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.level
    }

    /// The digits, as a number.
    #[must_use]
    pub const fn digits(self) -> u16 {
        self.digits
    }

    /// The nodes below; none for a leaf.
    pub fn children(self) -> impl Iterator<Item = Self> {
        let children = if self.level < LEAF_LEVEL { FAN_OUT } else { 0 };
        (0..children)
            .map(move |child| Self { level: self.level + 1, digits: self.digits << LEVEL_BITS | child })
    }

    /// Its partitions, from the first to the last.
    #[must_use]
    pub fn partitions(self) -> std::ops::RangeInclusive<u16> {
        let free = LEVEL_BITS * u32::from(LEAF_LEVEL - self.level);
        let first = u32::from(self.digits) << free;
        let last = first + (1 << free) - 1;
        let number = |number| u16::try_from(number).expect("a node lies among the partitions");
        number(first)..=number(last)
    }
}

/// The leaves of one replica's tree: 1 MiB.
#[derive(Clone, Debug)]
pub struct Leaves {
    sums: Box<[EntryHash]>,
    unknown: PartitionSet,
}

impl Leaves {
    /// Of a replica without entries.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            sums: vec![EntryHash::ZERO; PARTITIONS].into_boxed_slice(),
            unknown: PartitionSet::of(|_| false),
        }
    }

    /// Of a replica of which nothing is known yet.
    #[must_use]
    pub fn unknown() -> Self {
        Self { unknown: PartitionSet::of(|_| true), ..Self::empty() }
    }

    /// A partition's leaf, if it is known.
    #[must_use]
    pub fn get(&self, partition: Partition) -> Option<EntryHash> {
        (!self.unknown.contains(partition)).then(|| self.sums[usize::from(partition.number())])
    }

    /// What the entries of a partition sum up to, as they were read; `None` when that cannot be told any more.
    pub fn set(&mut self, partition: Partition, sum: Option<EntryHash>) {
        self.unknown.set(partition, sum.is_none());
        self.sums[usize::from(partition.number())] = sum.unwrap_or_default();
    }

    /// An entry has changed: `change` is the XOR of its hashes before and after, [`EntryHash::ZERO`] standing for no entry. An
    /// unknown leaf stays unknown.
    pub fn add(&mut self, partition: Partition, change: EntryHash) {
        if !self.unknown.contains(partition) {
            self.sums[usize::from(partition.number())] ^= change;
        }
    }

    /// The first partition at or after this one whose leaf is not known.
    #[must_use]
    pub fn next_unknown(&self, from: Partition) -> Option<Partition> {
        self.unknown.next_from(from)
    }

    /// How many leaves are not known.
    #[must_use]
    pub fn unknown_len(&self) -> usize {
        self.unknown.len()
    }

    /// The hash of a node over the partitions that two servers share; `None` when one of the leaves is not known.
    #[must_use]
    pub fn sum(&self, node: Node, shared: &PartitionSet) -> Option<EntryHash> {
        let partitions =
            node.partitions().map(Partition::new).filter(|&partition| shared.contains(partition));
        let mut sum = EntryHash::ZERO;
        for partition in partitions {
            sum ^= self.get(partition)?;
        }
        Some(sum)
    }

    /// The leaves that are not zero, to be kept; `None` when one is not known.
    #[must_use]
    pub fn known(&self) -> Option<Vec<(Partition, EntryHash)>> {
        let leaf = |partition| self.get(partition).map(|sum| (partition, sum));
        let leaves = Partition::all().map(leaf).collect::<Option<Vec<_>>>()?;
        Some(leaves.into_iter().filter(|(_, sum)| *sum != EntryHash::ZERO).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Record;

    fn hash(number: u8) -> EntryHash {
        EntryHash::of(&[number], &Record::initial(&[number], Vec::new().into()))
    }

    #[test]
    fn an_entrys_hash_depends_on_its_key_and_its_record() {
        let record = Record::initial(b"k", Vec::new().into());
        assert_eq!(EntryHash::of(b"k", &record), EntryHash::of(b"k", &record.clone()));
        assert_ne!(EntryHash::of(b"k", &record), EntryHash::of(b"l", &record));
        assert_ne!(EntryHash::of(b"k", &record), EntryHash::of(b"k", &Record::new()));
    }

    #[test]
    fn a_nodes_children_divide_its_partitions() {
        let mut level = vec![Node::ROOT];
        for depth in 0..=LEAF_LEVEL {
            assert!(level.iter().all(|node| node.level() == depth));
            let all: Vec<u16> = level.iter().flat_map(|node| node.partitions()).collect();
            assert!(all.iter().copied().eq(0..=u16::MAX), "level {depth}");
            level = level.into_iter().flat_map(Node::children).collect();
        }
        assert!(level.is_empty(), "leaves have no children");
        assert_eq!(Node::new(4, 0xdbdb).map(Node::partitions), Some(0xdbdb..=0xdbdb));
        assert_eq!(Node::new(1, 0xd).map(Node::partitions), Some(0xd000..=0xdfff));
        for (level, digits) in [(0, 1), (1, 16), (3, 4_096), (5, 0), (u8::MAX, 0)] {
            assert_eq!(Node::new(level, digits), None, "{level} {digits}");
        }
    }

    #[test]
    fn sums_are_over_what_is_shared_and_never_over_what_is_not_known() {
        let mut leaves = Leaves::empty();
        let [a, b, c] = [0x0001, 0x0010, 0xffff].map(Partition::new);
        leaves.add(a, hash(1));
        leaves.add(b, hash(2));
        leaves.add(c, hash(3));
        let all = PartitionSet::of(|_| true);
        let some = PartitionSet::of(|partition| partition != b);
        assert_eq!(leaves.sum(Node::ROOT, &all), Some(hash(1) ^ hash(2) ^ hash(3)));
        assert_eq!(leaves.sum(Node::ROOT, &some), Some(hash(1) ^ hash(3)));
        leaves.set(b, None);
        leaves.add(b, hash(4));
        assert_eq!(leaves.sum(Node::ROOT, &all), None);
        assert_eq!(leaves.sum(Node::ROOT, &some), Some(hash(1) ^ hash(3)));
        assert_eq!((leaves.next_unknown(a), leaves.next_unknown(c), leaves.known()), (Some(b), None, None));
        leaves.set(b, Some(hash(5)));
        assert_eq!(leaves.known(), Some(vec![(a, hash(1)), (b, hash(5)), (c, hash(3))]));
    }

    #[test]
    fn unknown_leaves_are_found_in_order() {
        let mut leaves = Leaves::unknown();
        assert_eq!(leaves.next_unknown(Partition::new(77)), Some(Partition::new(77)));
        Partition::all().for_each(|partition| leaves.set(partition, Some(EntryHash::ZERO)));
        assert_eq!(leaves.next_unknown(Partition::new(0)), None);
        for number in [63, 64, 200] {
            leaves.set(Partition::new(number), None);
        }
        let next = |from| leaves.next_unknown(Partition::new(from)).map(Partition::number);
        assert_eq!(
            [0, 63, 64, 65, 200, 201].map(next),
            [Some(63), Some(63), Some(64), Some(200), Some(200), None]
        );
    }

    proptest! {
        /// Entries come, change and go in any order: the leaf is that of what is there.
        #[test]
        fn a_leaf_is_the_sum_of_what_is_there(changes in prop::collection::vec((0_u8..8, 0_u8..4), 0..64)) {
            let mut entries = std::collections::BTreeMap::new();
            let mut leaves = Leaves::empty();
            let partition = Partition::new(9);
            let entry = |key: u8, version: u8| {
                if version == 0 { EntryHash::ZERO } else { hash(key * 4 + version) }
            };
            for (key, version) in changes {
                let before = entries.insert(key, version).unwrap_or(0);
                leaves.add(partition, entry(key, before) ^ entry(key, version));
            }
            let expected = entries.iter().fold(EntryHash::ZERO, |sum, (&key, &version)| sum ^ entry(key, version));
            prop_assert_eq!(leaves.get(partition), Some(expected));
        }
    }
}
