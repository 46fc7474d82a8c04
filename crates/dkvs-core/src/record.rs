//! What an owner stores for a key: the values nobody has replaced, and all that is known about the others.
//!
//! A [`Record`] is a *dotted version vector set* (Almeida et al. 2014, *Scalable and Accurate Causality Tracking
//! for Eventually Consistent Stores*): one version vector for the whole key, and siblings that each carry only the
//! dot of the event that wrote them.
//!
//! ```text
//!   replica X                        replica Y                      X merged with Y
//!   vv {A: 2, B: 1}                  vv {A: 1, B: 2}                vv {A: 2, B: 2}
//!   A2 "blue"                        A1 "red"                       A2 "blue"     Y has not heard of it
//!                                    B2 "green"                     B2 "green"    X has not heard of it
//!                                                                   (A1 is gone: X knows it and no longer has it)
//! ```
//!
//! Invariants:
//! - every sibling's dot is covered by the record's own vector;
//! - `merge` is commutative, associative and idempotent, so replicas may exchange records in any order, twice, late;
//! - a value leaves a record only by [`Record::event`] or [`Record::discard`] with a context that covers it, here or
//!   at a replica whose record was merged;
//! - the whole record is replicated, never one value and a vector: a vector that covers more than the values it
//!   travels with would delete what the receiver alone still has.
//!
//! # Expiry
//! A value may carry a wall time from which readers are not shown it. It stays a value that somebody has to replace: no
//! merge, no event and no fingerprint looks at a clock, so that replicas whose clocks differ never differ for it. Long
//! after its time its bytes may be dropped ([`Record::drop_expired`]): a tombstone with an expiry is what is left of
//! such a value, with its dot, and takes its place wherever the two meet.
//!
//! What it leaves out: it never forgets a tombstone by itself. Removing one for good needs proof that nothing is left of what it
//! replaced.

use std::cmp::Reverse;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hlc::{Hlc, WallMs};
use crate::version::{Actor, Dot, VersionVector};

/// Names one operation of one client, so that a retry can be told from a second operation. 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// Drawn at random by each client.
    pub client: u64,
    /// Counted by the client.
    pub sequence: u64,
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}", self.client, self.sequence)
    }
}

/// What a put left behind.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Body {
    /// A value, possibly empty.
    Value(Bytes),
    /// A deletion, kept as a value so that replicas can tell "deleted" from "never heard of".
    Tombstone,
}

impl Body {
    /// The value's bytes, if it is one.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Value(bytes) => Some(bytes),
            Self::Tombstone => None,
        }
    }

    /// Length of the value in bytes; 0 for a tombstone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.value().map_or(0, Bytes::len)
    }

    /// Whether there are no value bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(bytes) if bytes.len() <= 32 => write!(f, "{bytes:?}"),
            Self::Value(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Tombstone => f.write_str("tombstone"),
        }
    }
}

/// What a put or delete asks to be written, before it has a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The operation, so that a retry writes one value.
    pub op: OpId,
    /// The coordinator's timestamp.
    pub hlc: Hlc,
    /// Absolute wall time from which the value is hidden, chosen once by the coordinator.
    pub expires: Option<WallMs>,
    /// The value or tombstone. A tombstone that expires is a value whose bytes were dropped after its time.
    pub body: Body,
}

/// One value that nobody has replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sibling {
    /// The event that wrote it.
    pub dot: Dot,
    /// What was written.
    pub write: Write,
}

impl Sibling {
    /// Concurrent siblings are shown latest first; the dot breaks ties so that all replicas agree.
    fn recency(&self) -> (Hlc, Dot) {
        (self.write.hlc, self.dot)
    }

    /// Whether readers are not shown it at this time. What has lost its bytes is hidden whatever the clock says.
    #[must_use]
    pub fn is_expired(&self, now: WallMs) -> bool {
        self.write.expires.is_some_and(|at| at <= now) || self.is_dropped()
    }

    /// Whether it is a value that has lost its bytes after its time.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.write.expires.is_some() && self.write.body == Body::Tombstone
    }
}

/// Fingerprint of a record: equal for two replicas exactly when their records are equal, as no dot ever carries two
/// values; but for bytes dropped after their time. 16 bytes of SHA-256 over the vector and the siblings' dots, so that
/// no client can make two records with one fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordHash([u8; 16]);

impl RecordHash {
    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// All that one replica knows of one key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Record {
    vv: VersionVector,
    /// In the order of their dots; no dot twice; all covered by `vv`.
    siblings: Vec<Sibling>,
}

impl Record {
    /// The record of a key nobody has written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A record from its parts, as read from a disk or a message. The vector learns the siblings' dots.
    /// Returns `None` when a dot stands twice.
    #[must_use]
    pub fn from_parts(mut vv: VersionVector, mut siblings: Vec<Sibling>) -> Option<Self> {
        siblings.sort_by_key(|sibling| sibling.dot);
        siblings.iter().for_each(|sibling| vv.add(sibling.dot));
        let distinct = siblings.windows(2).all(|pair| matches!(pair, [a, b] if a.dot != b.dot));
        distinct.then_some(Self { vv, siblings })
    }

    /// The record of a pair given at start: older than any put, and the same wherever the pair is given.
    #[must_use]
    pub fn initial(key: &[u8], value: Bytes) -> Self {
        let actor = Actor::initial(key, &value);
        let dot = Dot { actor, counter: 1 };
        let op = OpId { client: actor.incarnation, sequence: 0 };
        let write = Write { op, hlc: Hlc::default(), expires: None, body: Body::Value(value) };
        Self { vv: VersionVector::from_iter([dot]), siblings: vec![Sibling { dot, write }] }
    }

    /// All events this record knows of.
    #[must_use]
    pub fn vv(&self) -> &VersionVector {
        &self.vv
    }

    /// The values nobody has replaced, in the order of their dots. A retried put may stand here twice; see
    /// [`Record::values`].
    #[must_use]
    pub fn siblings(&self) -> &[Sibling] {
        &self.siblings
    }

    /// The siblings a reader is shown at this time: latest first, those of one operation as one, and none that has
    /// expired.
    #[must_use]
    pub fn values(&self, now: WallMs) -> Vec<&Sibling> {
        let mut latest_first: Vec<&Sibling> =
            self.siblings.iter().filter(|sibling| !sibling.is_expired(now)).collect();
        latest_first.sort_by_key(|sibling| Reverse(sibling.recency()));
        let mut shown: Vec<&Sibling> = Vec::with_capacity(latest_first.len());
        for sibling in latest_first {
            if shown.iter().all(|earlier| earlier.write.op != sibling.write.op) {
                shown.push(sibling);
            }
        }
        shown
    }

    /// The sibling shown first at this time: the latest by its timestamp, then by its dot. At time 0, of all whose bytes
    /// are still there.
    #[must_use]
    pub fn winner(&self, now: WallMs) -> Option<&Sibling> {
        let shown = self.siblings.iter().filter(|sibling| !sibling.is_expired(now));
        shown.max_by_key(|sibling| sibling.recency())
    }

    /// The sibling that `op` wrote, if nobody has replaced it.
    #[must_use]
    pub fn written_by(&self, op: OpId) -> Option<&Sibling> {
        self.siblings.iter().find(|sibling| sibling.write.op == op)
    }

    /// Bytes of values over all siblings.
    #[must_use]
    pub fn value_len(&self) -> usize {
        self.siblings.iter().map(|sibling| sibling.write.body.len()).sum()
    }

    /// Records a put or delete: what `context` covers is gone, what it does not cover stays beside the new value.
    /// An initial value is older than any put and goes whatever the context.
    ///
    /// # Panics
    /// When `dot` is already known: the caller's numbering is broken, and going on would lose a value.
    pub fn event(&mut self, context: &VersionVector, dot: Dot, write: Write) {
        self.discard(context);
        assert!(!self.vv.covers(dot), "dot {dot:?} was used before: {:?} knows it", self.vv);
        self.siblings.retain(|sibling| !sibling.dot.actor.is_initial());
        self.vv.add(dot);
        let at = self.siblings.partition_point(|sibling| sibling.dot < dot);
        // Most keys never have a second one.
        if self.siblings.is_empty() {
            self.siblings.reserve_exact(1);
        }
        self.siblings.insert(at, Sibling { dot, write });
    }

    /// Drops the siblings that `context` covers, and remembers that they are gone.
    pub fn discard(&mut self, context: &VersionVector) {
        self.siblings.retain(|sibling| !context.covers(sibling.dot));
        self.vv.merge(context);
    }

    /// Drops the bytes of values whose time came before `long_ago`. Returns whether there were any. Nothing else of the
    /// record changes, nor does its fingerprint.
    pub fn drop_expired(&mut self, long_ago: WallMs) -> bool {
        let mut dropped = false;
        for Sibling { write, .. } in &mut self.siblings {
            if write.body != Body::Tombstone && write.expires.is_some_and(|at| at < long_ago) {
                write.body = Body::Tombstone;
                dropped = true;
            }
        }
        dropped
    }

    /// Whether nothing is left but tombstones and values whose time came before `long_ago`: something was written, and all of it
    /// is deleted.
    #[must_use]
    pub fn is_deleted(&self, long_ago: WallMs) -> bool {
        let is_over = |Sibling { write, .. }: &Sibling| {
            write.body == Body::Tombstone || write.expires.is_some_and(|at| at < long_ago)
        };
        !self.vv.is_empty() && self.siblings.iter().all(is_over)
    }

    /// Learns all that `other` knows: keeps the siblings both have, and those of either that the other has not
    /// heard of. Of one that has lost its bytes in either, the bytes are gone.
    pub fn merge(&mut self, other: &Self) {
        let ours = std::mem::take(&mut self.siblings);
        let mut theirs = other.siblings.iter().peekable();
        for sibling in ours {
            while let Some(new) = theirs.next_if(|new| new.dot < sibling.dot) {
                self.keep_unless_covered(new);
            }
            match theirs.next_if(|new| new.dot == sibling.dot) {
                Some(same) if same.is_dropped() => self.siblings.push(same.clone()),
                Some(_) => self.siblings.push(sibling),
                None if !other.vv.covers(sibling.dot) => self.siblings.push(sibling),
                None => {}
            }
        }
        theirs.for_each(|new| self.keep_unless_covered(new));
        self.vv.merge(&other.vv);
    }

    fn keep_unless_covered(&mut self, sibling: &Sibling) {
        if !self.vv.covers(sibling.dot) {
            self.siblings.push(sibling.clone());
        }
    }

    /// Whether merging `other` into this would change nothing, but perhaps drop bytes that have expired.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        self.vv.descends_from(&other.vv)
            && self.siblings.iter().all(|ours| other.holds(ours.dot) || !other.vv.covers(ours.dot))
    }

    /// The dots of this record's siblings that `vv` has not heard of.
    #[must_use]
    pub fn dots_unknown_to(&self, vv: &VersionVector) -> Vec<Dot> {
        self.siblings.iter().map(|sibling| sibling.dot).filter(|&dot| !vv.covers(dot)).collect()
    }

    /// What an owner that holds this record tells a coordinator that sends it `sent`: the dots of the values that
    /// `sent` has not heard of, and if there are any, the latest dots of everything else it has not heard of. A put
    /// without a context must then cover all of it in a second event. The values alone would not do: a third owner
    /// may hold what they had replaced, and have missed that they did.
    ///
    /// Nothing is named when one of the values sent is known here to be replaced: what is here may be what replaced
    /// it, and a put must not undo what came after it.
    #[must_use]
    pub fn missed_by(&self, sent: &Self) -> Vec<Dot> {
        let mut missed = self.dots_unknown_to(&sent.vv);
        let replaced = |dot| self.vv.covers(dot) && !self.holds(dot);
        if missed.is_empty() || sent.siblings.iter().any(|sibling| replaced(sibling.dot)) {
            return Vec::new();
        }
        missed.extend(self.vv.iter().filter(|&dot| !sent.vv.covers(dot) && !self.holds(dot)));
        missed
    }

    /// What a client that had seen `before` has seen once it knows that its put is event `dot` of this record: the
    /// context to hand back.
    ///
    /// A vector that names the put's dot also covers its actor's dots before it. When one of those is a value here
    /// that the client has not seen, the put itself must stay unseen too, or the client's next put would replace both.
    #[must_use]
    pub fn seen_after(&self, before: &VersionVector, dot: Dot) -> VersionVector {
        let mut seen = before.clone();
        seen.add(dot);
        let covers_unseen = self.siblings.iter().any(|other| other.dot != dot && seen.covers(other.dot));
        if covers_unseen { before.clone() } else { seen }
    }

    /// Whether the value of this event is here.
    #[must_use]
    pub fn holds(&self, dot: Dot) -> bool {
        self.siblings.binary_search_by_key(&dot, |sibling| sibling.dot).is_ok()
    }

    /// The record's fingerprint.
    #[must_use]
    pub fn hash(&self) -> RecordHash {
        let mut hash = Sha256::new();
        self.feed(&mut |bytes| hash.update(bytes));
        let digest: [u8; 32] = hash.finalize().into();
        let (head, _) = digest.split_at(16);
        RecordHash(head.try_into().expect("a SHA-256 digest is longer than 16 bytes"))
    }

    /// Hands out, piece by piece, what stands for the record in a fingerprint.
    pub(crate) fn feed(&self, to: &mut dyn FnMut(&[u8])) {
        let mut add = |dots: &mut dyn ExactSizeIterator<Item = Dot>| {
            to(&(dots.len() as u64).to_be_bytes());
            for Dot { actor, counter } in dots {
                to(&actor.incarnation.to_be_bytes());
                to(&actor.epoch.to_be_bytes());
                to(&counter.to_be_bytes());
            }
        };
        add(&mut self.vv.iter());
        add(&mut self.siblings.iter().map(|sibling| sibling.dot));
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let siblings = self.siblings.iter().map(|sibling| (sibling.dot, &sibling.write.body));
        f.debug_struct("Record")
            .field("vv", &self.vv)
            .field("siblings", &siblings.collect::<Vec<_>>())
            .finish()
    }
}
