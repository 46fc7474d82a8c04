//! What the store holds for a key: the record, and beside it what only this server may know.
//!
//! ```text
//!   key    u16 partition, then the key's bytes      a partition's keys are neighbours
//!   value  u8  layout version, 1
//!          u8  flags: 1 this server has acted on the key, 2 something of the record was lost here
//!          u64 incarnation  u32 epoch  u64 counter  of its last event       only with flag 1
//!          u32 CRC-32 of the bytes before it
//!          the record, as dkvs_proto::record lays it out, with its own CRC-32
//! ```
//! Integers are big-endian. `own` is never sent, never merged and never part of a backup: it says what *this* server
//! did last, which is true only here.
//!
//! A record with flag 2 takes the place of a damaged one. It holds what was written since. Reads must not count it, until
//! it has been merged with what the other owners have; see [`crate::damage`].

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_core::record::{Body, Record};
use dkvs_core::version::{Actor, Dot};
use dkvs_proto::record::{self, RecordError};

const LAYOUT_VERSION: u8 = 1;
const HAS_OWN: u8 = 1;
const IS_INCOMPLETE: u8 = 2;
pub(crate) const PARTITION_LEN: usize = 2;
const OWN_LEN: usize = 20;
const CRC_LEN: usize = 4;

/// A key's entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    /// This server's last event on the key.
    pub(crate) own: Option<Dot>,
    /// Whether something that this server held of the key was lost.
    pub(crate) is_incomplete: bool,
}

/// The store's key for a key.
pub(crate) fn store_key(key: &[u8]) -> Bytes {
    let partition = Partition::of_key(key).number().to_be_bytes();
    [&partition[..], key].concat().into()
}

/// An entry of [`Keyspace::Records`](dkvs_storage::Keyspace::Records), for tools that read a store without its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its record.
    pub record: Record,
    /// The server's last event on the key.
    pub own: Option<Dot>,
}

/// An entry from its place and value; `None` when it is damaged, incomplete or of another layout.
#[must_use]
pub fn decode_entry(store_key: &Bytes, value: &Bytes) -> Option<Entry> {
    let stored = Stored::decode(value).ok().filter(|stored| !stored.is_incomplete)?;
    Some(Entry { key: key_of(store_key)?, record: stored.record, own: stored.own })
}

/// The key of a store's key; `None` if that is too short to be one.
pub(crate) fn key_of(store_key: &Bytes) -> Option<Bytes> {
    (store_key.len() > PARTITION_LEN).then(|| store_key.slice(PARTITION_LEN..))
}

impl Stored {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(160 + self.record.value_len());
        let own_flag = if self.own.is_some() { HAS_OWN } else { 0 };
        let incomplete_flag = if self.is_incomplete { IS_INCOMPLETE } else { 0 };
        bytes.extend_from_slice(&[LAYOUT_VERSION, own_flag | incomplete_flag]);
        if let Some(own) = self.own {
            record::write_dot(own, &mut bytes);
        }
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        record::encode(&self.record, &mut bytes);
        bytes
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let malformed = RecordError::Malformed;
        let head_len = match bytes.get(..2).ok_or(malformed)? {
            [LAYOUT_VERSION, flags] if flags & !(HAS_OWN | IS_INCOMPLETE) == 0 => {
                2 + if flags & HAS_OWN == 0 { 0 } else { OWN_LEN }
            }
            [LAYOUT_VERSION, _] => return Err(malformed),
            [other, ..] => return Err(RecordError::Version(*other)),
            [] => return Err(malformed),
        };
        let head = bytes.get(..head_len).ok_or(malformed)?;
        let crc = bytes.get(head_len..head_len + CRC_LEN).ok_or(malformed)?;
        if crc != crc32fast::hash(head).to_be_bytes() {
            return Err(RecordError::Checksum);
        }
        let own = read_dot(&head[2..]);
        let record = record::decode(&bytes.slice(head_len + CRC_LEN..))?;
        Ok(Self { record, own, is_incomplete: head[1] & IS_INCOMPLETE != 0 })
    }

    /// Whether there is nothing in it but tombstones.
    pub(crate) fn is_deleted(&self) -> bool {
        !self.is_incomplete && self.record.is_deleted(0)
    }

    /// Whether a get would find a value. One that has expired counts until its bytes are dropped: what an entry adds to the
    /// totals must not change by itself.
    pub(crate) fn is_live(&self) -> bool {
        self.record.winner(0).is_some_and(|winner| winner.write.body != Body::Tombstone)
    }
}

/// The dot that [`record::write_dot`] wrote; `None` when there is none.
pub(crate) fn read_dot(bytes: &[u8]) -> Option<Dot> {
    let (incarnation, rest) = bytes.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (counter, _) = rest.split_first_chunk()?;
    let actor = Actor { incarnation: u64::from_be_bytes(*incarnation), epoch: u32::from_be_bytes(*epoch) };
    Some(Dot { actor, counter: u64::from_be_bytes(*counter) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let record = Record::initial(b"k", Bytes::from_static(b"value"));
        let own = Dot { actor: Actor { incarnation: 7, epoch: 8 }, counter: 9 };
        Stored { record, own: Some(own), is_incomplete: false }
    }

    #[test]
    fn an_entry_reads_back() {
        let without_own = Stored { own: None, ..stored() };
        let incomplete = Stored { is_incomplete: true, ..stored() };
        for entry in [stored(), without_own, incomplete, Stored::default()] {
            assert_eq!(Stored::decode(&entry.encode().into()), Ok(entry));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let bytes = stored().encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Stored::decode(&damaged.into()).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Stored::decode(&Bytes::copy_from_slice(&bytes[..len])).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_store_key_starts_with_its_partition() {
        let key = store_key(b"abc");
        assert_eq!(key_of(&key).as_deref(), Some(&b"abc"[..]));
        assert_eq!(key[..2], Partition::of_key(b"abc").number().to_be_bytes());
        assert_eq!(key_of(&Bytes::from_static(b"ab")), None);
        let entry = Bytes::from(stored().encode());
        let Stored { record, own, .. } = stored();
        assert_eq!(decode_entry(&key, &entry), Some(Entry { key: Bytes::from_static(b"abc"), record, own }));
        assert_eq!(decode_entry(&key, &entry.slice(1..)), None);
    }
}
