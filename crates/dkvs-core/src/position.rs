//! Where on the ring: positions, and the partitions they fall into.
//!
//! A ring needs a place for every key and every virtual node, spread evenly whatever people name their keys. A
//! [`Position`] is a SHA-1 digest read as a 160-bit number, as consistent hashing wants it (Karger et al. 1997)
//! with the hash this project's ring is defined by.
//!
//! Everything that is kept *about* keys (hash trees, hints, transfers) is kept per slice of the ring, because a
//! slice stays the same when servers come and go. The ring is cut into 65,536 equal slices; a [`Partition`] is the
//! top 16 bits of a position (DeCandia et al. 2007, §6.2: equal-sized partitions).
//!
//! ```text
//!   SHA-1("cc") = bdb480de655aa6ec75ca058c849c4faf3c0f75b1      a Position, 20 bytes
//!                 ^^^^
//!                 bdb4                                          its Partition, one of 65,536
//! ```
//!
//! Invariants: positions compare as big-endian numbers; `a <= b` implies `a.partition() <= b.partition()`.
//!
//! What it leaves out: integrity. SHA-1 only places keys here. Collisions can be made on purpose, and all they
//! give is two keys in one place, which any two keys of a partition share anyway. Somebody who chooses keys can
//! aim them at one partition and so overload its owners; nothing here prevents that. Checksums and fingerprints
//! use other hashes.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

/// How many partitions the ring is cut into. Enough that thousands of nodes rarely share one, few enough that a
/// table with an entry for each costs 128 KiB.
pub const PARTITIONS: usize = 1 << 16;

/// A place on the ring: 160 bits, compared as a big-endian number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position([u8; 20]);

impl Position {
    /// Where a key lives: the SHA-1 of its bytes. One hash, no allocation.
    #[must_use]
    pub fn of_key(key: &[u8]) -> Self {
        Self(Sha1::digest(key).into())
    }

    /// The position with these big-endian bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The 20 bytes, most significant first.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// The partition it falls into: its top 16 bits.
    #[must_use]
    pub const fn partition(self) -> Partition {
        let [high, low, ..] = self.0;
        Partition(u16::from_be_bytes([high, low]))
    }
}

/// 40 hexadecimal digits, as `sha1sum` prints them.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the ring's [`PARTITIONS`] equal slices, numbered from 0 clockwise. Every number is a partition, so one
/// that comes from the network needs no check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition(u16);

impl Partition {
    /// The partition with this number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The partition a key falls into.
    #[must_use]
    pub fn of_key(key: &[u8]) -> Self {
        Position::of_key(key).partition()
    }

    /// Its number, 0..=65,535: the top 16 bits of every position in it.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// All partitions, clockwise from 0.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=u16::MAX).map(Self)
    }
}

/// Four hexadecimal digits: the start of every position in it.
impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
