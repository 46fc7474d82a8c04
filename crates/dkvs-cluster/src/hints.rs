//! Writes that other servers have missed, kept for them until they have them (DeCandia et al. 2007, §4.6).
//!
//! An owner that did not acknowledge a write (it was down, too slow, or refused) gets a *hint* at the write's coordinator:
//! the key and the record as it was sent. There is one for each target and key, and a later one is merged into it. When
//! the target answers, it is sent the hints, some at a time; each is deleted once the target has acknowledged it, unless it
//! has changed meanwhile.
//!
//! ```text
//!   hints/  1, target, partition, key   ->  a hint
//!             u8  layout version, 2
//!             u8  flags: 1 this server has made events in the hint
//!             u8  durability of its delivery: 0 the target's own, 1 interval, 2 fsync
//!             u64 incarnation  u32 epoch  u64 counter  of its last event there       only with flag 1
//!             u32 CRC-32 of the bytes before it
//!             the record
//!   hints/  2, target, partition        ->  how often it was marked: a dirty mark
//! ```
//! Layout version 1, which is still read, has the record right after its version.
//!
//! A target is the first 8 bytes of SHA-1 over its name, `IP PORT`: its place in the ring's list may change with the list.
//!
//! The record stands in the hint, although the coordinator has one of its own: a hint then outlives damage to
//! the coordinator's record, and a server that does not own the key can keep one as well.
//!
//! A server that *stands in* for an owner keeps a hint that *counts*: it took the owner's place in a quorum. The key's hints
//! are also what it answers with when it is asked to stand in for a read, and what it makes an event on when it coordinates a
//! put itself. The number of its last event is part of the hint whose target it made it for, so that such puts need not
//! each begin a new epoch; what may be counted on is told by that hint alone, as it is written with each such event.
//!
//! The hints of one target have a budget in bytes. What would exceed it leaves a *dirty mark* for its partition instead: there
//! the target is known to lack something, but not what, and [`crate::anti_entropy`] compares. So does a hint that is damaged.
//! A hint that counts is kept whatever the budget is; the others give way.
//!
//! Invariants:
//! - a hint goes away only when its target has acknowledged it as it is, or when it is damaged and a dirty mark takes its place;
//! - one that counts is there, and is delivered to be as durable as its write was to be, or it is not acknowledged;
//! - all changes go through the one writer, and a hint is as durable as its write was to be.
//!
//! What it leaves out: what was under way when the coordinator was killed. It had not given the owner up yet, and there is
//! no hint.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::position::{Partition, Position};
use dkvs_core::record::{Record, RecordHash};
use dkvs_core::ring::ServerIndex;
use dkvs_core::servers::ServerName;
use dkvs_core::version::Dot;
use dkvs_net::Socket;
use dkvs_proto::message::client::OwnerAnswer;
use dkvs_proto::message::{self, Refusal};
use dkvs_proto::record::{self as record_bytes, RecordError, fits};
use dkvs_storage::{Batch, Keyspace, ScanLimit, Store, StoreError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout};

use crate::coordinator::Coordinator;
use crate::damage::is_damage;
use crate::replica::{ReplicaError, Terms};
use crate::stored::read_dot;
use crate::writer::TOO_MANY_VERSIONS;

const LAYOUT_VERSION: u8 = 2;
/// The record alone, after the version.
const LAYOUT_VERSION_PLAIN: u8 = 1;
const HAS_OWN: u8 = 1;
const HEAD_LEN: usize = 3;
const OWN_LEN: usize = 20;
const CRC_LEN: usize = 4;
const HINT: u8 = 1;
const DIRTY: u8 = 2;
const TARGET_LEN: usize = 8;
const PARTITION_LEN: usize = 2;

/// Hints read in one go, and held until they are acknowledged.
const PAGE: ScanLimit = ScanLimit { entries_max: 64, bytes_max: 1 << 20 };

/// Hints under way to one target. After it had no room for one, or did not answer, they are sent one by one, and with each that it
/// acknowledges again one more side by side: what is first in order would else always take the room from the rest.
const IN_FLIGHT_MAX: usize = 16;

/// How long a target may take to acknowledge a hint.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Pause of a hint that the target, or this server, had no room for.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// Pause before hints that were not acknowledged are sent again, if the target answers at all.
const RETRY: Duration = Duration::from_secs(1);

/// Longest pause before hints that the target will not have are sent again. The first is [`RETRY`]; each keeps the target's
/// room, a stream for one, from others for a moment.
const REFUSED_RETRY_MAX: Duration = Duration::from_secs(30);

/// Entries looked at in one go at the start.
const OPEN_PAGE: ScanLimit = ScanLimit { entries_max: 1_024, bytes_max: 4 << 20 };

/// Whom a hint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target([u8; TARGET_LEN]);

impl Target {
    /// The server of this name.
    #[must_use]
    pub fn of(server: &ServerName) -> Self {
        let digest = Position::of_key(server.ring_text().as_bytes());
        Self(*digest.as_bytes().first_chunk().expect("a position is longer than a target"))
    }
}

/// A partition in which a target is known to lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirtyMark {
    /// Who lacks it.
    pub target: Target,
    /// Where.
    pub partition: Partition,
    /// How often it was marked: a mark that was set again meanwhile is another one.
    pub times: u64,
}

/// A change of what is kept for a target.
pub(crate) enum HintChange {
    /// It missed this record. It is held for it elsewhere too, so it need not be kept over the budget.
    Keep { target: Target, key: Bytes, record: Record },
    /// This server stands in for it: the record counts.
    Hold { target: Target, key: Bytes, held: Held },
    /// It has acknowledged the record of this hash, and made it so durable.
    Delivered { target: Target, key: Bytes, hash: RecordHash, durability: message::Durability },
    /// Its replica of the partition was compared and made equal since the mark was read.
    Clean(DirtyMark),
}

/// How much is kept for one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Hints.
    pub(crate) hints: u64,
    /// Bytes of their places and values.
    pub(crate) bytes: u64,
    /// Dirty marks.
    pub(crate) dirty: u64,
}

/// How much is kept for whom, as committed.
#[derive(Debug, Default)]
pub(crate) struct HintsKept {
    tallies: Mutex<BTreeMap<Target, Tally>>,
    /// Writes that an owner missed and that could not be kept for it, as the store took nothing.
    unkept: AtomicU64,
}

impl HintsKept {
    pub(crate) fn tally(&self, target: Target) -> Tally {
        self.tallies().get(&target).copied().unwrap_or_default()
    }

    /// Those for whom there are hints.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let tallies = self.tallies();
        tallies.iter().filter(|(_, tally)| tally.hints > 0).map(|(target, _)| *target).collect()
    }

    /// Counts a hint that could not be written. Returns how many there were.
    pub(crate) fn not_kept(&self) -> u64 {
        self.unkept.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<Target, Tally>> {
        // Nothing that can panic runs under this lock, so a poisoned one guards a whole map.
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hint as it is read to be delivered.
pub(crate) struct Hint {
    pub(crate) key: Bytes,
    /// `Err` when it is damaged.
    pub(crate) record: Result<Record, RecordError>,
    /// How durable the target has to make it, if that is more than its own level.
    pub(crate) durability: message::Durability,
}

/// What stands in a hint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) record: Record,
    /// The last event that this server made in this hint.
    pub(crate) own: Option<Dot>,
    pub(crate) durability: message::Durability,
}

impl Hint {
    fn read(key: Bytes, value: &Bytes) -> Self {
        match decode(value) {
            Ok(Held { record, durability, .. }) => Self { key, record: Ok(record), durability },
            Err(reason) => Self { key, record: Err(reason), durability: message::Durability::default() },
        }
    }
}

/// What is to stand in which place; `None` for nothing.
type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// The writer's side: changes of the batch being built, and of the one being committed.
pub(crate) struct HintWriter {
    bytes_max: u64,
    tallies: BTreeMap<Target, Tally>,
    staged: Changes,
    /// With how much there is once it is committed.
    committing: Option<(Changes, BTreeMap<Target, Tally>)>,
    kept: Arc<HintsKept>,
}

impl HintWriter {
    /// Counts what an earlier run has left.
    pub(crate) fn open(store: &impl Store, bytes_max: u64) -> Result<Self, StoreError> {
        let mut tallies: BTreeMap<Target, Tally> = BTreeMap::new();
        let mut after: Option<Bytes> = None;
        loop {
            let page = match store.scan(Keyspace::Hints, after.as_deref(), OPEN_PAGE) {
                Err(error) if is_damage(&error) => {
                    tracing::error!(%error, "hints cannot be read: those behind the damage are not delivered");
                    break;
                }
                page => page?,
            };
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (place, value) in &page {
                match Place::read(place) {
                    Some(Place::Hint { target, .. }) => {
                        tallies.entry(target).or_default().hint_added(place, value);
                    }
                    Some(Place::Dirty { target, .. }) => tallies.entry(target).or_default().dirty += 1,
                    None => tracing::error!(?place, "an entry among the hints is none"),
                }
            }
        }
        let kept = HintsKept { tallies: Mutex::new(tallies.clone()), unkept: AtomicU64::new(0) };
        Ok(Self { bytes_max, tallies, staged: Changes::new(), committing: None, kept: Arc::new(kept) })
    }

    /// Where it shows how much is kept.
    pub(crate) fn kept(&self) -> Arc<HintsKept> {
        self.kept.clone()
    }

    /// Applies a change to the batch being built.
    pub(crate) fn stage(&mut self, store: &impl Store, change: HintChange) -> Result<(), ReplicaError> {
        match change {
            HintChange::Keep { target, key, record } => {
                let durability = message::Durability::default();
                self.keep(store, target, &key, Held { record, own: None, durability }, false)
            }
            HintChange::Hold { target, key, held } => self.keep(store, target, &key, held, true),
            HintChange::Delivered { target, key, hash, durability } => {
                self.delivered(store, target, &key, hash, durability)
            }
            HintChange::Clean(mark) => self.clean(store, mark),
        }
    }

    fn keep(
        &mut self,
        store: &impl Store,
        target: Target,
        key: &[u8],
        mut new: Held,
        counts: bool,
    ) -> Result<(), ReplicaError> {
        let place = hint_place(target, key);
        let held = self.get(store, &place)?;
        match held.as_ref().map(decode) {
            None => {}
            Some(Ok(held)) => {
                new.record.merge(&held.record);
                new.own = new.own.or(held.own);
                new.durability = new.durability.max(held.durability);
            }
            Some(Err(reason)) => self.damaged(store, target, key, reason)?,
        }
        let before = held.as_ref().map_or(0, |held| entry_len(&place, held));
        if !fits(&new.record) {
            return if counts {
                Err(ReplicaError::Refused(Refusal::Invalid(TOO_MANY_VERSIONS.into())))
            } else {
                self.mark(store, target, Partition::of_key(key))
            };
        }
        let value = encode(&new);
        let tally = self.tallies.entry(target).or_default();
        let bytes = tally.bytes - before.min(tally.bytes) + entry_len(&place, &value);
        if !counts && bytes > self.bytes_max {
            return self.mark(store, target, Partition::of_key(key));
        }
        if let Some(held) = &held {
            tally.hint_removed(&place, held);
        }
        tally.hint_added(&place, &value);
        self.staged.insert(place, Some(value));
        Ok(())
    }

    /// All that is kept of a key for others, and in the hint for `target` the last event made there. What is damaged is left
    /// out.
    pub(crate) fn held(
        &self,
        store: &impl Store,
        target: Target,
        key: &[u8],
    ) -> Result<(Record, Option<Dot>), StoreError> {
        let (mut all, mut own) = (Record::new(), None);
        for other in self.tallies.iter().filter(|(_, tally)| tally.hints > 0).map(|(other, _)| *other) {
            let value = self.get(store, &hint_place(other, key))?;
            let Some(Ok(held)) = value.as_ref().map(decode) else { continue };
            all.merge(&held.record);
            if other == target {
                own = held.own;
            }
        }
        Ok((all, own))
    }

    /// Whether anything is kept of a key for anybody.
    pub(crate) fn has(&self, store: &impl Store, key: &[u8]) -> Result<bool, StoreError> {
        for (target, _) in self.tallies.iter().filter(|(_, tally)| tally.hints > 0) {
            if self.get(store, &hint_place(*target, key))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes the hint, unless it has changed since it was read.
    fn delivered(
        &mut self,
        store: &impl Store,
        target: Target,
        key: &[u8],
        hash: RecordHash,
        durability: message::Durability,
    ) -> Result<(), ReplicaError> {
        let place = hint_place(target, key);
        let Some(held) = self.get(store, &place)? else { return Ok(()) };
        match decode(&held) {
            Ok(held) if held.record.hash() != hash || held.durability > durability => return Ok(()),
            Ok(_) => {}
            Err(reason) => self.damaged(store, target, key, reason)?,
        }
        self.tallies.entry(target).or_default().hint_removed(&place, &held);
        self.staged.insert(place, None);
        Ok(())
    }

    fn clean(&mut self, store: &impl Store, mark: DirtyMark) -> Result<(), ReplicaError> {
        let place = dirty_place(mark.target, mark.partition);
        if self.get(store, &place)?.is_some_and(|value| times(&value) == mark.times) {
            let tally = self.tallies.entry(mark.target).or_default();
            tally.dirty = tally.dirty.saturating_sub(1);
            self.staged.insert(place, None);
        }
        Ok(())
    }

    fn damaged(
        &mut self,
        store: &impl Store,
        target: Target,
        key: &[u8],
        reason: RecordError,
    ) -> Result<(), ReplicaError> {
        tracing::error!(
            key = format_args!("{:?}", String::from_utf8_lossy(key)),
            %reason,
            "a hint is damaged: its partition is marked as one to be compared"
        );
        self.mark(store, target, Partition::of_key(key))
    }

    fn mark(&mut self, store: &impl Store, target: Target, partition: Partition) -> Result<(), ReplicaError> {
        let place = dirty_place(target, partition);
        let held = self.get(store, &place)?;
        if held.is_none() {
            self.tallies.entry(target).or_default().dirty += 1;
        }
        let times = held.as_ref().map_or(0, times).wrapping_add(1);
        self.staged.insert(place, Some(Bytes::copy_from_slice(&times.to_be_bytes())));
        Ok(())
    }

    /// What stands in a place once all that was staged is committed. What the engine finds damaged there reads as
    /// something that is no hint.
    fn get(&self, store: &impl Store, place: &Bytes) -> Result<Option<Bytes>, StoreError> {
        let committing = || self.committing.as_ref().and_then(|(changes, _)| changes.get(place));
        if let Some(value) = self.staged.get(place).or_else(committing) {
            return Ok(value.clone());
        }
        match store.get(Keyspace::Hints, place) {
            Err(error) if is_damage(&error) => Ok(Some(Bytes::new())),
            value => value,
        }
    }

    /// Moves the staged changes to the batch that is committed next.
    pub(crate) fn take(&mut self, batch: &mut Batch) {
        if self.staged.is_empty() {
            return;
        }
        let staged = std::mem::take(&mut self.staged);
        for (place, value) in &staged {
            match value {
                Some(value) => batch.put(Keyspace::Hints, place.clone(), value.clone()),
                None => batch.delete(Keyspace::Hints, place.clone()),
            }
        }
        self.committing = Some((staged, self.tallies.clone()));
    }

    /// The keys whose hints change in the batch that was taken last.
    pub(crate) fn committing(&self) -> impl Iterator<Item = &[u8]> {
        let changes = self.committing.iter().flat_map(|(changes, _)| changes.keys());
        changes.filter_map(|place| place.get(1 + TARGET_LEN + PARTITION_LEN..))
    }

    /// The batch was committed. Called before the next one is taken.
    pub(crate) fn committed(&mut self) {
        if let Some((_, tallies)) = self.committing.take() {
            *self.kept.tallies() = tallies;
        }
    }

    /// The batch was not committed, and what was staged on top of it is given up.
    pub(crate) fn failed(&mut self) {
        self.committing = None;
        self.staged.clear();
        self.tallies = self.kept.tallies().clone();
    }
}

impl Tally {
    fn hint_added(&mut self, place: &Bytes, value: &Bytes) {
        self.hints += 1;
        self.bytes += entry_len(place, value);
    }

    fn hint_removed(&mut self, place: &Bytes, value: &Bytes) {
        self.hints = self.hints.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry_len(place, value));
    }
}

fn entry_len(place: &Bytes, value: &Bytes) -> u64 {
    (place.len() + value.len()) as u64
}

// ------------------------------------------------------------------------------------------------------------ layout

enum Place {
    Hint { target: Target, key: Bytes },
    Dirty { target: Target, partition: Partition },
}

impl Place {
    fn read(place: &Bytes) -> Option<Self> {
        let (&[kind], rest) = place.split_first_chunk()?;
        let (target, rest) = rest.split_first_chunk::<TARGET_LEN>()?;
        let (partition, key) = rest.split_first_chunk::<PARTITION_LEN>()?;
        let target = Target(*target);
        match kind {
            HINT if !key.is_empty() => Some(Self::Hint { target, key: place.slice_ref(key) }),
            DIRTY if key.is_empty() => {
                let partition = Partition::new(u16::from_be_bytes(*partition));
                Some(Self::Dirty { target, partition })
            }
            _ => None,
        }
    }
}

fn place(kind: u8, target: Target, partition: Partition, key: &[u8]) -> Bytes {
    [&[kind][..], &target.0, &partition.number().to_be_bytes(), key].concat().into()
}

fn hint_place(target: Target, key: &[u8]) -> Bytes {
    place(HINT, target, Partition::of_key(key), key)
}

fn dirty_place(target: Target, partition: Partition) -> Bytes {
    place(DIRTY, target, partition, &[])
}

fn times(value: &Bytes) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn encode(held: &Held) -> Bytes {
    let mut bytes = Vec::with_capacity(160 + held.record.value_len());
    let own_flag = if held.own.is_some() { HAS_OWN } else { 0 };
    let durability = match held.durability {
        message::Durability::Memory => 0,
        message::Durability::Interval => 1,
        message::Durability::Fsync => 2,
    };
    bytes.extend_from_slice(&[LAYOUT_VERSION, own_flag, durability]);
    if let Some(own) = held.own {
        record_bytes::write_dot(own, &mut bytes);
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    record_bytes::encode(&held.record, &mut bytes);
    bytes.into()
}

fn decode(value: &Bytes) -> Result<Held, RecordError> {
    let malformed = RecordError::Malformed;
    match value.first() {
        Some(&LAYOUT_VERSION) => {}
        Some(&LAYOUT_VERSION_PLAIN) => {
            return Ok(Held { record: record_bytes::decode(&value.slice(1..))?, ..Held::default() });
        }
        Some(&other) => return Err(RecordError::Version(other)),
        None => return Err(malformed),
    }
    let &[_, flags, durability] = value.first_chunk::<HEAD_LEN>().ok_or(malformed)?;
    let head_len = HEAD_LEN + if flags & HAS_OWN == 0 { 0 } else { OWN_LEN };
    let head = value.get(..head_len).ok_or(malformed)?;
    let crc = value.get(head_len..head_len + CRC_LEN).ok_or(malformed)?;
    if crc != crc32fast::hash(head).to_be_bytes() {
        return Err(RecordError::Checksum);
    }
    let durability = match durability {
        0 => message::Durability::Memory,
        1 => message::Durability::Interval,
        2 => message::Durability::Fsync,
        _ => return Err(malformed),
    };
    let own = read_dot(&head[HEAD_LEN..]);
    let record = record_bytes::decode(&value.slice(head_len + CRC_LEN..))?;
    Ok(Held { record, own, durability })
}

/// The hints of one target after one of them, in the order of partitions and keys.
pub(crate) fn page(
    store: &impl Store,
    target: Target,
    after: Option<&Bytes>,
) -> Result<Vec<Hint>, StoreError> {
    let start: Bytes = [&[HINT][..], &target.0].concat().into();
    let after = after.map_or(start, |key| hint_place(target, key));
    let page = store.scan(Keyspace::Hints, Some(&after), PAGE)?;
    let ours = page.into_iter().map_while(|(place, value)| match Place::read(&place)? {
        Place::Hint { target: of, key } if of == target => Some(Hint::read(key, &value)),
        Place::Hint { .. } | Place::Dirty { .. } => None,
    });
    Ok(ours.collect())
}

/// What is kept of one key for a target, and how many bytes that takes.
pub(crate) fn held(
    store: &impl Store,
    target: Target,
    key: &[u8],
) -> Result<Option<(Hint, u64)>, StoreError> {
    let place = hint_place(target, key);
    let value = match store.get(Keyspace::Hints, &place) {
        Err(error) if is_damage(&error) => Some(Bytes::new()),
        value => value?,
    };
    Ok(value.map(|value| {
        let hint = Hint::read(Bytes::copy_from_slice(key), &value);
        (hint, entry_len(&place, &value))
    }))
}

/// What an entry of [`Keyspace::Hints`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A hint.
    Hint {
        /// Whom it is for.
        target: Target,
        /// The key.
        key: Bytes,
        /// What the target missed; `None` when the hint is damaged.
        record: Option<Record>,
        /// The last event that the server made in the hint.
        own: Option<Dot>,
    },
    /// A dirty mark.
    Dirty(DirtyMark),
}

/// Reads an entry of [`Keyspace::Hints`], for tools that read a store without its server; `None` when it is none.
#[must_use]
pub fn decode_kept(place: &Bytes, value: &Bytes) -> Option<Kept> {
    Some(match Place::read(place)? {
        Place::Hint { target, key } => {
            let held = decode(value).ok();
            let own = held.as_ref().and_then(|held| held.own);
            Kept::Hint { target, key, record: held.map(|held| held.record), own }
        }
        Place::Dirty { target, partition } => {
            Kept::Dirty(DirtyMark { target, partition, times: times(value) })
        }
    })
}

/// The dirty marks of a target after that of a partition, at most so many.
pub(crate) fn dirty_marks_of(
    store: &impl Store,
    target: Target,
    after: Option<Partition>,
    marks_max: usize,
) -> Result<Vec<DirtyMark>, StoreError> {
    let start = || [&[DIRTY][..], &target.0].concat().into();
    let after: Bytes = after.map_or_else(start, |partition| dirty_place(target, partition));
    let limit = ScanLimit { entries_max: marks_max, bytes_max: PAGE.bytes_max };
    let page = store.scan(Keyspace::Hints, Some(&after), limit)?;
    let ours = page.into_iter().map_while(|(place, value)| match Place::read(&place)? {
        Place::Dirty { target: of, partition } if of == target => {
            Some(DirtyMark { target, partition, times: times(&value) })
        }
        Place::Dirty { .. } | Place::Hint { .. } => None,
    });
    Ok(ours.collect())
}

/// The dirty marks after one of them, at most so many.
pub(crate) fn dirty_marks(
    store: &impl Store,
    after: Option<DirtyMark>,
    marks_max: usize,
) -> Result<Vec<DirtyMark>, StoreError> {
    let after = after.map_or(Bytes::from_static(&[DIRTY]), |mark| dirty_place(mark.target, mark.partition));
    let limit = ScanLimit { entries_max: marks_max, bytes_max: PAGE.bytes_max };
    let page = store.scan(Keyspace::Hints, Some(&after), limit)?;
    let mark = |(place, value): (Bytes, Bytes)| match Place::read(&place)? {
        Place::Dirty { target, partition } => Some(DirtyMark { target, partition, times: times(&value) }),
        Place::Hint { .. } => None,
    };
    Ok(page.into_iter().filter_map(mark).collect())
}

// ---------------------------------------------------------------------------------------------------------- delivery

/// Delivers what is kept for one server whenever it answers, until aborted.
pub(crate) async fn deliver<S: Socket, T: Store>(coordinator: Arc<Coordinator<S, T>>, server: ServerIndex) {
    let target = coordinator.target(server);
    let mut in_flight_max = IN_FLIGHT_MAX;
    let mut refused_retry = RETRY;
    loop {
        let waiting = coordinator.replica.hints_kept().tally(target).hints > 0;
        if !waiting || !coordinator.detector.is_up(server) {
            // Whoever wrote a hint may be gone before it could tell.
            let _ = timeout(RETRY, coordinator.detector.news(server).notified()).await;
            continue;
        }
        let pass = all(&coordinator, server, target, &mut in_flight_max).await.unwrap_or_else(|error| {
            tracing::warn!(?server, %error, "hints cannot be delivered now");
            Pass::Stuck
        });
        match pass {
            Pass::Delivered => refused_retry = RETRY,
            Pass::Refused => {
                let _ = timeout(refused_retry, coordinator.detector.news(server).notified()).await;
                refused_retry = (refused_retry * 2).min(REFUSED_RETRY_MAX);
            }
            Pass::Stuck => sleep(RETRY).await,
        }
    }
}

/// What came of sending all hints of a target.
enum Pass {
    /// All were acknowledged.
    Delivered,
    /// All were acknowledged but for some that the target will not have.
    Refused,
    /// There were none, or some could not be delivered now.
    Stuck,
}

/// Sends all hints of a target once.
async fn all<S: Socket, T: Store>(
    coordinator: &Arc<Coordinator<S, T>>,
    server: ServerIndex,
    target: Target,
    in_flight_max: &mut usize,
) -> Result<Pass, ReplicaError> {
    let mut after = None;
    let mut pass = Pass::Delivered;
    loop {
        let page = coordinator.replica.hints(target, after.as_ref())?;
        let Some(last) = page.last() else {
            return Ok(if after.is_some() { pass } else { Pass::Stuck });
        };
        after = Some(last.key.clone());
        let mut page = page.into_iter();
        let mut in_flight = FuturesUnordered::new();
        let mut goes_on = true;
        loop {
            while goes_on
                && in_flight.len() < *in_flight_max
                && let Some(hint) = page.next()
            {
                in_flight.push(one(coordinator, server, target, hint));
            }
            match in_flight.next().await {
                None => break,
                Some(done) => match done? {
                    Delivery::Done => *in_flight_max = (*in_flight_max + 1).min(IN_FLIGHT_MAX),
                    Delivery::Refused if matches!(pass, Pass::Delivered) => pass = Pass::Refused,
                    Delivery::Refused => {}
                    Delivery::NoRoom => (pass, *in_flight_max) = (Pass::Stuck, 1),
                    Delivery::GiveUp => (goes_on, *in_flight_max) = (false, 1),
                },
            }
        }
        if !goes_on {
            return Ok(Pass::Stuck);
        }
    }
}

/// What became of one hint.
enum Delivery {
    Done,
    /// The target will not have it. It is kept, and others may be delivered.
    Refused,
    /// The target has too much to do for this one now.
    NoRoom,
    /// There is no use in sending more now.
    GiveUp,
}

async fn one<S: Socket, T: Store>(
    coordinator: &Arc<Coordinator<S, T>>,
    server: ServerIndex,
    target: Target,
    Hint { key, record, durability }: Hint,
) -> Result<Delivery, ReplicaError> {
    let _under_way = coordinator.replica.watches().begin(&key);
    let hash = match record {
        Ok(record) => {
            let hash = record.hash();
            let deadline = Instant::now() + ANSWER_MAX;
            let terms = Terms { durability, ..Terms::UPKEEP };
            let merging = coordinator.clone().merge_at(server, key.clone(), record, deadline, terms);
            if let (_, Err(reason)) = merging.await {
                tracing::debug!(?server, ?reason, "a hint was not acknowledged");
                if reason == OwnerAnswer::Refused(Refusal::Overloaded) {
                    sleep(ROOM_PAUSE).await;
                    return Ok(Delivery::NoRoom);
                }
                return Ok(match reason {
                    OwnerAnswer::Refused(Refusal::Invalid(_) | Refusal::TooLong { .. }) => Delivery::Refused,
                    OwnerAnswer::Refused(_) | OwnerAnswer::TimedOut | OwnerAnswer::Ok => Delivery::GiveUp,
                });
            }
            hash
        }
        // The writer finds it damaged, and leaves a mark.
        Err(_) => Record::new().hash(),
    };
    coordinator
        .replica
        .hint(HintChange::Delivered { target, key, hash, durability }, message::Durability::Memory)
        .await?;
    Ok(Delivery::Done)
}

#[cfg(test)]
pub(crate) mod tests {
    use dkvs_core::hlc::Hlc;
    use dkvs_core::record::{Body, OpId, Write};
    use dkvs_core::version::{Actor, Dot, VersionVector};
    use dkvs_storage::{Durability, MemoryStore};

    use super::*;

    const KEY: &[u8] = b"k";

    fn target() -> Target {
        Target::of(&ServerName::new("127.0.0.1", 1234).unwrap())
    }

    /// A hint as it is stored.
    pub(crate) fn hint_entry(key: &[u8], record: &Record) -> (Bytes, Bytes) {
        (hint_place(target(), key), encode(&Held { record: record.clone(), ..Held::default() }))
    }

    fn record(counter: u64) -> Record {
        let mut record = Record::new();
        let op = OpId { client: 1, sequence: counter };
        let write = Write { op, hlc: Hlc::default(), expires: None, body: Body::Value("v".into()) };
        let dot = Dot { actor: Actor { incarnation: counter, epoch: 1 }, counter: 1 };
        record.event(&VersionVector::new(), dot, write);
        record
    }

    fn keep(record: &Record) -> HintChange {
        HintChange::Keep { target: target(), key: Bytes::from_static(KEY), record: record.clone() }
    }

    fn delivered(record: &Record) -> HintChange {
        delivered_as(record, message::Durability::Memory)
    }

    fn delivered_as(record: &Record, durability: message::Durability) -> HintChange {
        HintChange::Delivered {
            target: target(),
            key: Bytes::from_static(KEY),
            hash: record.hash(),
            durability,
        }
    }

    async fn commit(store: &MemoryStore, writer: &mut HintWriter, changes: Vec<HintChange>) {
        for change in changes {
            writer.stage(store, change).unwrap();
        }
        let mut batch = Batch::new();
        writer.take(&mut batch);
        store.commit(batch, Durability::Memory).await.unwrap();
        writer.committed();
    }

    fn held(store: &MemoryStore) -> Vec<Record> {
        page(store, target(), None).unwrap().into_iter().map(|hint| hint.record.unwrap()).collect()
    }

    #[tokio::test]
    async fn hints_for_one_key_are_merged_in_a_batch_and_across_batches() {
        let store = MemoryStore::new();
        let mut writer = HintWriter::open(&store, 1 << 20).unwrap();
        let mut all = record(1);
        commit(&store, &mut writer, vec![keep(&record(1)), keep(&record(2))]).await;
        commit(&store, &mut writer, vec![keep(&record(3))]).await;
        all.merge(&record(2));
        all.merge(&record(3));
        assert_eq!(held(&store), [all]);
        let tally = writer.kept().tally(target());
        assert_eq!((tally.hints, tally.dirty), (1, 0));
        assert_eq!(
            HintWriter::open(&store, 1 << 20).unwrap().kept().tally(target()),
            tally,
            "counted at start"
        );
    }

    #[tokio::test]
    async fn a_hint_is_deleted_only_as_it_was_acknowledged() {
        let store = MemoryStore::new();
        let mut writer = HintWriter::open(&store, 1 << 20).unwrap();
        commit(&store, &mut writer, vec![keep(&record(1)), keep(&record(2))]).await;
        commit(&store, &mut writer, vec![delivered(&record(1))]).await;
        let merged = held(&store);
        assert_eq!(merged.len(), 1, "it has changed since");
        commit(&store, &mut writer, vec![delivered(&merged[0]), delivered(&merged[0])]).await;
        assert!(held(&store).is_empty());
        assert_eq!(writer.kept().tally(target()), Tally::default());
    }

    /// The next batch is built while one is being committed.
    #[tokio::test]
    async fn changes_see_those_that_are_being_committed() {
        let store = MemoryStore::new();
        let mut writer = HintWriter::open(&store, 1 << 20).unwrap();
        writer.stage(&store, keep(&record(1))).unwrap();
        let mut first = Batch::new();
        writer.take(&mut first);
        writer.stage(&store, keep(&record(2))).unwrap();
        store.commit(first, Durability::Memory).await.unwrap();
        writer.committed();
        commit(&store, &mut writer, Vec::new()).await;
        assert_eq!(held(&store)[0].siblings().len(), 2);
    }

    #[tokio::test]
    async fn over_the_budget_and_for_damage_a_mark_is_left_and_cleared_only_as_it_was_read() {
        let store = MemoryStore::new();
        let mut writer = HintWriter::open(&store, 10).unwrap();
        commit(&store, &mut writer, vec![keep(&record(1))]).await;
        assert!(held(&store).is_empty());
        let mark = dirty_marks(&store, None, 10).unwrap()[0];
        assert_eq!((mark.partition, mark.times), (Partition::of_key(KEY), 1));
        assert_eq!(writer.kept().tally(target()), Tally { hints: 0, bytes: 0, dirty: 1 });

        commit(&store, &mut writer, vec![keep(&record(2)), HintChange::Clean(mark)]).await;
        let again = dirty_marks(&store, None, 10).unwrap()[0];
        assert_eq!(again.times, 2, "marked again since it was read");
        assert!(dirty_marks(&store, Some(again), 10).unwrap().is_empty());
        commit(&store, &mut writer, vec![HintChange::Clean(again)]).await;
        assert!(dirty_marks(&store, None, 10).unwrap().is_empty());
        assert_eq!(writer.kept().tally(target()), Tally::default());

        let mut writer = HintWriter::open(&store, 1 << 20).unwrap();
        commit(&store, &mut writer, vec![keep(&record(1))]).await;
        let mut batch = Batch::new();
        batch.put(Keyspace::Hints, hint_place(target(), KEY), Bytes::from_static(&[1, 2, 3]));
        store.commit(batch, Durability::Memory).await.unwrap();
        commit(&store, &mut writer, vec![delivered(&record(1))]).await;
        assert!(page(&store, target(), None).unwrap().is_empty(), "the damaged hint is gone");
        assert_eq!(dirty_marks(&store, None, 10).unwrap().len(), 1);
    }

    fn hold(record: &Record, own: Option<Dot>) -> HintChange {
        let held = Held { record: record.clone(), own, durability: message::Durability::Fsync };
        HintChange::Hold { target: target(), key: Bytes::from_static(KEY), held }
    }

    #[tokio::test]
    async fn a_hint_that_counts_is_kept_over_the_budget_and_others_give_way() {
        let store = MemoryStore::new();
        let mut writer = HintWriter::open(&store, 10).unwrap();
        commit(&store, &mut writer, vec![hold(&record(1), None)]).await;
        assert_eq!(held(&store), [record(1)]);
        commit(&store, &mut writer, vec![keep(&record(2))]).await;
        assert_eq!(held(&store), [record(1)], "what is there stays, and the rest leaves a mark");
        let tally = writer.kept().tally(target());
        assert_eq!((tally.hints, tally.dirty), (1, 1));
        commit(&store, &mut writer, vec![hold(&record(3), None)]).await;
        assert_eq!(held(&store)[0].siblings().len(), 2);
        let hint = page(&store, target(), None).unwrap().remove(0);
        assert_eq!(hint.durability, message::Durability::Fsync);
        let all = hint.record.unwrap();
        commit(&store, &mut writer, vec![delivered(&all)]).await;
        assert_eq!(held(&store).len(), 1, "it was to be more durable by the time it was acknowledged");
        commit(&store, &mut writer, vec![delivered_as(&all, message::Durability::Fsync)]).await;
        assert!(held(&store).is_empty());
    }

    #[tokio::test]
    async fn the_last_event_is_kept_with_the_hint_it_was_made_in_and_goes_with_it() {
        let store = MemoryStore::new();
        let mut writer = HintWriter::open(&store, 1 << 20).unwrap();
        let other = Target::of(&ServerName::new("127.0.0.1", 1235).unwrap());
        let own = record(1).siblings()[0].dot;
        let elsewhere = HintChange::Keep { target: other, key: Bytes::from_static(KEY), record: record(2) };
        commit(&store, &mut writer, vec![hold(&record(1), Some(own)), elsewhere, keep(&record(3))]).await;
        let mut all = record(1);
        all.merge(&record(2));
        all.merge(&record(3));
        assert_eq!(writer.held(&store, target(), KEY).unwrap(), (all.clone(), Some(own)));
        assert_eq!(writer.held(&store, other, KEY).unwrap(), (all, None), "another hint's is not its own");
        let hint = held(&store).remove(0);
        commit(&store, &mut writer, vec![delivered_as(&hint, message::Durability::Fsync)]).await;
        assert_eq!(writer.held(&store, target(), KEY).unwrap(), (record(2), None));
    }

    #[test]
    fn a_hint_reads_back_one_of_the_first_layout_too_and_damage_is_noticed() {
        let own = Some(Dot { actor: Actor { incarnation: 7, epoch: 8 }, counter: 9 });
        for durability in
            [message::Durability::Memory, message::Durability::Interval, message::Durability::Fsync]
        {
            for own in [None, own] {
                let held = Held { record: record(1), own, durability };
                assert_eq!(decode(&encode(&held)), Ok(held));
            }
        }
        let plain = [&[LAYOUT_VERSION_PLAIN][..], &record_bytes::to_vec(&record(1))].concat();
        assert_eq!(decode(&plain.into()), Ok(Held { record: record(1), ..Held::default() }));

        let bytes = encode(&Held { record: record(1), own, durability: message::Durability::Fsync });
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged.into()).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes.slice(..len)).is_err(), "{len} bytes");
        }
    }
}
