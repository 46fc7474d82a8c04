//! Looks at a store without its server: is everything in it whole, and where it belongs?
//!
//! For operators, on a server that is stopped: after a disk has shown errors, after a restore, before an upgrade. It reads
//! every entry and changes nothing.

use std::fmt;

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_storage::{Keyspace, ScanLimit, Store, StoreError};

use crate::damage::{Damage, is_damage};
use crate::hints::{Kept, decode_kept};
use crate::identity;
use crate::stored::{Stored, key_of, store_key};

/// Entries read in one go.
const PAGE: ScanLimit = ScanLimit { entries_max: 1_024, bytes_max: 4 << 20 };

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records that are whole.
    pub records: u64,
    /// Of these, those with a value.
    pub keys: u64,
    /// Of these, those with more than one.
    pub keys_with_siblings: u64,
    /// Of these, those that remember a deletion.
    pub tombstones: u64,
    /// Bytes of all records' entries.
    pub bytes: u64,
    /// Partitions that hold something.
    pub partitions: u64,
    /// Writes that are kept for other servers.
    pub hints: u64,
    /// Partitions marked as ones in which another server has missed writes, once for each such server.
    pub dirty_partitions: u64,
    /// The server's incarnation, and the first epoch it has not leased; `None` when it has none yet.
    pub identity: Option<(u64, u32)>,
    /// How much is wrong.
    pub findings: u64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An entry cannot be read.
    Damaged {
        /// The key, as far as it is known.
        key: Bytes,
        /// Its partition.
        partition: u16,
        /// Why.
        reason: String,
    },
    /// A record was found damaged by the server, and is not repaired yet.
    Incomplete {
        /// The key.
        key: Bytes,
        /// Its partition.
        partition: u16,
    },
    /// A key lies in a partition that is not its own.
    Misplaced {
        /// The key.
        key: Bytes,
        /// Where it lies.
        partition: u16,
    },
    /// A record names an epoch of this server beyond what it has leased: the lease is older than the record.
    BeyondLease {
        /// The key.
        key: Bytes,
        /// The epoch.
        epoch: u32,
    },
    /// The server's identity cannot be read. It will draw a new one.
    NoIdentity,
    /// A hint cannot be read. The server marks its partition instead.
    DamagedHint {
        /// The key.
        key: Bytes,
        /// Its partition.
        partition: u16,
    },
    /// An entry among the hints is none.
    NoHint {
        /// Where it lies.
        place: Bytes,
    },
    /// Part of the hints cannot be read at all: those behind it are not delivered.
    HintsUnreadable {
        /// Why.
        reason: String,
    },
    /// Part of the store cannot be read at all.
    Unreadable {
        /// The partition from which on.
        partition: u16,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |key: &Bytes| format!("{:?}", String::from_utf8_lossy(key));
        match self {
            Self::Damaged { key, partition, reason } => {
                write!(f, "partition {partition}, key {}: damaged: {reason}", text(key))
            }
            Self::Incomplete { key, partition } => {
                write!(f, "partition {partition}, key {}: was damaged, not repaired yet", text(key))
            }
            Self::Misplaced { key, partition } => {
                write!(f, "partition {partition}, key {}: belongs to another partition", text(key))
            }
            Self::BeyondLease { key, epoch } => {
                write!(f, "key {}: names epoch {epoch}, which is beyond the lease", text(key))
            }
            Self::DamagedHint { key, partition } => {
                write!(f, "partition {partition}, key {}: a hint for another server is damaged", text(key))
            }
            Self::NoHint { place } => write!(f, "among the hints: an entry that is none: {place:?}"),
            Self::HintsUnreadable { reason } => {
                write!(f, "some hints for other servers cannot be read: {reason}")
            }
            Self::NoIdentity => write!(f, "the server's identity cannot be read; it will draw a new one"),
            Self::Unreadable { partition, reason } => {
                write!(f, "from partition {partition} on: cannot be read: {reason}")
            }
        }
    }
}

/// Reads everything, and tells of each thing that is wrong.
///
/// # Errors
/// When the store cannot be read for a reason other than damage.
pub fn check(store: &impl Store, mut tell: impl FnMut(Finding)) -> Result<Summary, StoreError> {
    let mut summary = Summary { identity: identity::stored(store)?, ..Summary::default() };
    let mut findings = 0;
    let mut found = |finding| {
        findings += 1;
        tell(finding);
    };
    let has_meta = !store.scan(Keyspace::Meta, None, ScanLimit { entries_max: 1, bytes_max: 1 })?.is_empty();
    if has_meta && summary.identity.is_none() {
        found(Finding::NoIdentity);
    }
    let mut after: Option<Bytes> = None;
    let mut last_partition = None;
    loop {
        let page = match store.scan(Keyspace::Records, after.as_deref(), PAGE) {
            Ok(page) => page,
            Err(error) if is_damage(&error) => {
                let partition = after.as_ref().map_or(0, partition_of);
                found(Finding::Unreadable { partition, reason: error.to_string() });
                let Some(next) = partition.checked_add(1) else { break };
                after = Some(Bytes::copy_from_slice(&next.to_be_bytes()));
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (store_key, bytes) in &page {
            let partition = partition_of(store_key);
            if last_partition != Some(partition) {
                last_partition = Some(partition);
                summary.partitions += 1;
            }
            summary.bytes += (store_key.len() + bytes.len()) as u64;
            check_entry(store_key, bytes, &mut summary, &mut found);
        }
    }
    check_list(store, &mut found)?;
    check_hints(store, &mut summary, &mut found)?;
    summary.findings = findings;
    Ok(summary)
}

fn check_entry(place: &Bytes, bytes: &Bytes, summary: &mut Summary, found: &mut impl FnMut(Finding)) {
    let partition = partition_of(place);
    let key = key_of(place).unwrap_or_default();
    let stored = match Stored::decode(bytes) {
        Ok(stored) => stored,
        Err(error) => return found(Finding::Damaged { key, partition, reason: error.to_string() }),
    };
    if Partition::of_key(&key).number() != partition {
        found(Finding::Misplaced { key: key.clone(), partition });
    }
    if stored.is_incomplete {
        return found(Finding::Incomplete { key, partition });
    }
    let ours = |incarnation| summary.identity.filter(|identity| identity.0 == incarnation);
    let own = stored.own.and_then(|own| Some((own, ours(own.actor.incarnation)?)));
    if let Some((own, (_, lease_end))) = own
        && own.actor.epoch >= lease_end
    {
        found(Finding::BeyondLease { key, epoch: own.actor.epoch });
    }
    summary.records += 1;
    if stored.is_live() {
        summary.keys += 1;
        summary.keys_with_siblings += u64::from(stored.record.values(0).len() > 1);
    } else {
        summary.tombstones += 1;
    }
}

/// What is on the list of damaged records, but has no entry.
fn check_list(store: &impl Store, found: &mut impl FnMut(Finding)) -> Result<(), StoreError> {
    let mut after: Option<Bytes> = None;
    loop {
        let page = Damage::page(store, after.as_ref())?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        for place in &page {
            let key = key_of(place).unwrap_or_default();
            if store.get(Keyspace::Records, &store_key(&key)).is_ok_and(|entry| entry.is_none()) {
                let reason = "it was found damaged, and its entry is gone".into();
                found(Finding::Damaged { key, partition: partition_of(place), reason });
            }
        }
    }
}

/// What is kept for other servers.
fn check_hints(
    store: &impl Store,
    summary: &mut Summary,
    found: &mut impl FnMut(Finding),
) -> Result<(), StoreError> {
    let mut after: Option<Bytes> = None;
    loop {
        let page = match store.scan(Keyspace::Hints, after.as_deref(), PAGE) {
            Err(error) if is_damage(&error) => {
                found(Finding::HintsUnreadable { reason: error.to_string() });
                return Ok(());
            }
            page => page?,
        };
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        for (place, value) in page {
            match decode_kept(&place, &value) {
                Some(Kept::Hint { record: Some(_), .. }) => summary.hints += 1,
                Some(Kept::Hint { key, record: None, .. }) => {
                    let partition = Partition::of_key(&key).number();
                    found(Finding::DamagedHint { key, partition });
                }
                Some(Kept::Dirty(_)) => summary.dirty_partitions += 1,
                None => found(Finding::NoHint { place }),
            }
        }
    }
}

fn partition_of(place: &Bytes) -> u16 {
    place.first_chunk().map_or(0, |number| u16::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use dkvs_core::record::Record;
    use dkvs_core::version::{Actor, Dot};
    use dkvs_storage::{Batch, Durability, MemoryStore, Start};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::hints::tests::hint_entry;
    use crate::identity::Identity;

    async fn put(store: &MemoryStore, keyspace: Keyspace, place: Bytes, bytes: Vec<u8>) {
        let mut batch = Batch::new();
        batch.put(keyspace, place, bytes);
        store.commit(batch, Durability::Memory).await.unwrap();
    }

    fn stored(key: &[u8]) -> Stored {
        Stored { record: Record::initial(key, Bytes::from_static(b"v")), ..Stored::default() }
    }

    fn findings(store: &MemoryStore) -> (Vec<Finding>, Summary) {
        let mut findings = Vec::new();
        let summary = check(store, |finding| findings.push(finding)).unwrap();
        (findings, summary)
    }

    #[tokio::test]
    async fn everything_that_is_wrong_is_found_and_nothing_else() {
        let store = MemoryStore::new();
        assert_eq!(findings(&store), (vec![], Summary::default()));
        let identity = Identity::open(&store, Start::New, StdRng::seed_from_u64(1)).await.unwrap();
        put(&store, Keyspace::Records, store_key(b"whole"), stored(b"whole").encode()).await;
        let (none, summary) = findings(&store);
        assert_eq!((none, summary.records, summary.keys, summary.partitions), (vec![], 1, 1, 1));

        let mut damaged = stored(b"damaged").encode();
        damaged[20] ^= 1;
        put(&store, Keyspace::Records, store_key(b"damaged"), damaged).await;
        let incomplete = Stored { is_incomplete: true, ..stored(b"incomplete") };
        put(&store, Keyspace::Records, store_key(b"incomplete"), incomplete.encode()).await;
        let mut elsewhere = store_key(b"misplaced").to_vec();
        elsewhere[0] ^= 1;
        put(&store, Keyspace::Records, elsewhere.into(), stored(b"misplaced").encode()).await;
        let own = Dot { actor: Actor { incarnation: identity.incarnation(), epoch: 5_000 }, counter: 1 };
        let beyond = Stored { own: Some(own), ..stored(b"beyond") };
        put(&store, Keyspace::Records, store_key(b"beyond"), beyond.encode()).await;

        let (found, summary) = findings(&store);
        assert_eq!(summary.findings, 4);
        let has =
            |wanted: &dyn Fn(&Finding) -> bool| found.iter().filter(|finding| wanted(finding)).count() == 1;
        assert!(has(&|finding| matches!(finding, Finding::Damaged { key, .. } if key == "damaged")));
        assert!(has(&|finding| matches!(finding, Finding::Incomplete { key, .. } if key == "incomplete")));
        assert!(has(&|finding| matches!(finding, Finding::Misplaced { key, .. } if key == "misplaced")));
        assert!(has(&|finding| matches!(finding, Finding::BeyondLease { epoch: 5_000, .. })));
    }

    #[tokio::test]
    async fn hints_are_counted_and_those_that_cannot_be_read_are_found() {
        let store = MemoryStore::new();
        let of = |key: &[u8]| Record::initial(key, Bytes::from_static(b"v"));
        let (whole, damaged) = (hint_entry(b"whole", &of(b"whole")), hint_entry(b"damaged", &of(b"damaged")));
        put(&store, Keyspace::Hints, whole.0, whole.1.to_vec()).await;
        let mut bytes = damaged.1.to_vec();
        bytes[20] ^= 1;
        put(&store, Keyspace::Hints, damaged.0, bytes).await;
        put(&store, Keyspace::Hints, Bytes::from_static(b"?"), vec![1]).await;
        let (found, summary) = findings(&store);
        let key = Bytes::from_static(b"damaged");
        let partition = Partition::of_key(&key).number();
        let stray = Finding::NoHint { place: Bytes::from_static(b"?") };
        assert_eq!(found, [Finding::DamagedHint { key, partition }, stray]);
        assert_eq!((summary.hints, summary.dirty_partitions, summary.findings), (1, 0, 2));
    }

    #[tokio::test]
    async fn an_unreadable_identity_and_a_lost_entry_are_found() {
        let store = MemoryStore::new();
        put(&store, Keyspace::Meta, Bytes::from_static(b"identity"), vec![2; 17]).await;
        let mut batch = Batch::new();
        crate::damage::stage_found(&mut batch, &store_key(b"lost"), Bytes::new());
        store.commit(batch, Durability::Memory).await.unwrap();
        let (found, _) = findings(&store);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], Finding::NoIdentity);
        assert!(matches!(&found[1], Finding::Damaged { key, .. } if key == "lost"));
    }
}
