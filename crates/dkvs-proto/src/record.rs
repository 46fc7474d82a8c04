//! A record's bytes: the same on every disk and in every message, so that equal records are equal bytes.
//!
//! ```text
//!   u8   layout version, 1
//!   u16  entries of the version vector
//!   u16  siblings
//!   per entry, by actor:    u64 incarnation  u32 epoch  u64 counter
//!   per sibling, by dot:    u64 incarnation  u32 epoch  u64 counter
//!                           u64 client  u64 sequence  u64 hlc
//!                           u8  flags: 1 tombstone, 2 expires
//!                           u64 expiry in ms since 1970      only with flag 2
//!                           u32 length, then the value       only without flag 1
//!   u32  CRC-32 of everything before it
//! ```
//! Integers are big-endian. There is exactly one encoding of a record: a decoder refuses any other order.

use bytes::Bytes;
use dkvs_core::hlc::Hlc;
use dkvs_core::limits::{SIBLINGS_LEN_MAX, VERSION_VECTOR_LEN_MAX};
use dkvs_core::record::{Body, OpId, Record, Sibling, Write};
use dkvs_core::version::{Actor, Dot, VersionVector};

use crate::read::Reader;

const LAYOUT_VERSION: u8 = 1;
const FLAG_TOMBSTONE: u8 = 1;
const FLAG_EXPIRES: u8 = 2;
const CRC_LEN: usize = 4;

/// Why bytes are not a record. On a disk: damage, to be repaired from another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not those that were written.
    #[error("record checksum mismatch")]
    Checksum,
    /// Written by a later release.
    #[error("record layout version {0} is unknown, this release knows {LAYOUT_VERSION}")]
    Version(u8),
    /// The checksum holds, but the structure does not.
    #[error("malformed record")]
    Malformed,
}

/// Whether the record is within the limits of its layout. A merge may exceed them only if a peer sends nonsense.
#[must_use]
pub fn fits(record: &Record) -> bool {
    record.vv().len() <= VERSION_VECTOR_LEN_MAX && record.siblings().len() <= SIBLINGS_LEN_MAX
}

/// Appends the record's bytes.
///
/// # Panics
/// When the record does not [`fits`].
pub fn encode(record: &Record, into: &mut Vec<u8>) {
    let start = into.len();
    let count = |len: usize| u16::try_from(len).expect("a record within its limits").to_be_bytes();
    into.push(LAYOUT_VERSION);
    into.extend_from_slice(&count(record.vv().len()));
    into.extend_from_slice(&count(record.siblings().len()));
    record.vv().iter().for_each(|dot| write_dot(dot, into));
    record.siblings().iter().for_each(|sibling| write_sibling(sibling, into));
    let crc = crc32fast::hash(&into[start..]);
    into.extend_from_slice(&crc.to_be_bytes());
}

/// The record's bytes.
#[must_use]
pub fn to_vec(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128 + record.value_len());
    encode(record, &mut bytes);
    bytes
}

/// Appends a dot's 20 bytes.
pub fn write_dot(dot: Dot, into: &mut Vec<u8>) {
    into.extend_from_slice(&dot.actor.incarnation.to_be_bytes());
    into.extend_from_slice(&dot.actor.epoch.to_be_bytes());
    into.extend_from_slice(&dot.counter.to_be_bytes());
}

fn write_sibling(sibling: &Sibling, into: &mut Vec<u8>) {
    let write = &sibling.write;
    write_dot(sibling.dot, into);
    for field in [write.op.client, write.op.sequence, write.hlc.bits()] {
        into.extend_from_slice(&field.to_be_bytes());
    }
    let tombstone = if write.body == Body::Tombstone { FLAG_TOMBSTONE } else { 0 };
    into.push(tombstone | if write.expires.is_some() { FLAG_EXPIRES } else { 0 });
    if let Some(expires) = write.expires {
        into.extend_from_slice(&expires.to_be_bytes());
    }
    if let Some(value) = write.body.value() {
        let len = u32::try_from(value.len()).expect("a value within its limit");
        into.extend_from_slice(&len.to_be_bytes());
        into.extend_from_slice(value);
    }
}

/// Reads a record that takes up all of `bytes`. Its values share `bytes`.
///
/// # Errors
/// [`RecordError`] for anything that [`encode`] does not write.
pub fn decode(bytes: &Bytes) -> Result<Record, RecordError> {
    let body_len = bytes.len().checked_sub(CRC_LEN).ok_or(RecordError::Malformed)?;
    let (body, crc) = bytes.split_at(body_len);
    if crc != crc32fast::hash(body).to_be_bytes() {
        return Err(RecordError::Checksum);
    }
    let mut reader = Reader(body);
    match reader.u8().ok_or(RecordError::Malformed)? {
        LAYOUT_VERSION => read_parts(&mut reader, bytes).ok_or(RecordError::Malformed),
        other => Err(RecordError::Version(other)),
    }
}

fn read_parts(reader: &mut Reader<'_>, owner: &Bytes) -> Option<Record> {
    let entries = usize::from(reader.u16()?);
    let siblings = usize::from(reader.u16()?);
    if entries > VERSION_VECTOR_LEN_MAX || siblings > SIBLINGS_LEN_MAX {
        return None;
    }
    let vv = read_vector(reader, entries)?;
    let mut values: Vec<Sibling> = Vec::new();
    for _ in 0..siblings {
        let sibling = read_sibling(reader, owner)?;
        let ascending = values.last().is_none_or(|before| before.dot < sibling.dot);
        if !ascending || !vv.covers(sibling.dot) {
            return None;
        }
        values.push(sibling);
    }
    if reader.0.is_empty() { Record::from_parts(vv, values) } else { None }
}

/// Reads `entries` dots in ascending order of their actors.
pub(crate) fn read_vector(reader: &mut Reader<'_>, entries: usize) -> Option<VersionVector> {
    let mut vv = VersionVector::new();
    let mut before = None;
    for _ in 0..entries {
        let dot = read_dot(reader)?;
        if before >= Some(dot.actor) {
            return None;
        }
        before = Some(dot.actor);
        vv.add(dot);
    }
    (vv.len() == entries).then_some(vv)
}

pub(crate) fn read_dot(reader: &mut Reader<'_>) -> Option<Dot> {
    let actor = Actor { incarnation: reader.u64()?, epoch: reader.u32()? };
    let counter = reader.u64()?;
    (counter > 0).then_some(Dot { actor, counter })
}

fn read_sibling(reader: &mut Reader<'_>, owner: &Bytes) -> Option<Sibling> {
    let dot = read_dot(reader)?;
    let op = OpId { client: reader.u64()?, sequence: reader.u64()? };
    let hlc = Hlc::from_bits(reader.u64()?);
    let flags = reader.u8()?;
    if flags & !(FLAG_TOMBSTONE | FLAG_EXPIRES) != 0 {
        return None;
    }
    let expires = if flags & FLAG_EXPIRES == 0 { None } else { Some(reader.u64()?) };
    let body = if flags & FLAG_TOMBSTONE == 0 {
        let len = usize::try_from(reader.u32()?).ok()?;
        Body::Value(owner.slice_ref(reader.bytes(len)?))
    } else {
        Body::Tombstone
    };
    Some(Sibling { dot, write: Write { op, hlc, expires, body } })
}
