//! Looks at a store without its server: is everything in it whole, and where it belongs?
//!
//! For operators, on a server that is stopped: after a disk has shown errors, after a restore, before an upgrade. It reads
//! every entry and changes none. But the store has to be opened for it, which replays journals and cuts off what a crash has
//! left of its last writes, as the server's next start would.

use std::fmt;

use bytes::Bytes;
use dkvs_core::position::Partition;
use dkvs_storage::{Keyspace, ScanLimit, Store, StoreError};

use crate::damage::{self, is_damage};
use crate::hints::{Kept, decode_kept};
use crate::identity;
use crate::stored::{Stored, key_of, store_key};

/// Entries read in one go.
const PAGE: ScanLimit = ScanLimit { entries_max: 1_024, bytes_max: 4 << 20 };
/// The same on the way to a place that cannot be read.
const STEP: ScanLimit = ScanLimit { entries_max: 1, ..PAGE };

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
    /// Part of what the server remembers about itself cannot be read at all. It may refuse to start.
    MetaUnreadable {
        /// Why.
        reason: String,
    },
    /// Part of the list of tombstones cannot be read at all: these may never be forgotten.
    TombstonesUnreadable {
        /// Why.
        reason: String,
    },
    /// Part of the records cannot be read at all.
    Unreadable {
        /// The partition in which it begins. Some of its records may have been read.
        first: u16,
        /// The partition in which it ends.
        last: u16,
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
            Self::MetaUnreadable { reason } => {
                write!(f, "some of what the server remembers about itself cannot be read: {reason}")
            }
            Self::TombstonesUnreadable { reason } => {
                write!(f, "some of the list of tombstones cannot be read: {reason}")
            }
            Self::Unreadable { first, last, reason } => {
                write!(f, "partitions {first} to {last}: some records cannot be read: {reason}")
            }
        }
    }
}

/// Reads everything, and tells of each thing that is wrong.
///
/// # Errors
/// When the store cannot be read for a reason other than damage.
pub fn check(store: &impl Store, mut tell: impl FnMut(Finding)) -> Result<Summary, StoreError> {
    let mut findings = 0;
    let mut found = |finding| {
        findings += 1;
        tell(finding);
    };
    let mut summary = Summary::default();
    match identity::stored(store) {
        Ok(identity) => {
            summary.identity = identity;
            if identity.is_none() && has_meta(store)? {
                found(Finding::NoIdentity);
            }
        }
        // It is met again among the rest.
        Err(error) if is_damage(&error) => {}
        Err(error) => return Err(error),
    }
    check_records(store, &mut summary, &mut found)?;
    check_meta(store, &mut found)?;
    check_hints(store, &mut summary, &mut found)?;
    read_all(store, Keyspace::Tombstones, |read| {
        if let Read::Gap { reason, .. } = read {
            found(Finding::TombstonesUnreadable { reason });
        }
    })?;
    summary.findings = findings;
    Ok(summary)
}

/// Whether the server has remembered anything. What is damaged is something.
fn has_meta(store: &impl Store) -> Result<bool, StoreError> {
    match store.scan(Keyspace::Meta, None, STEP) {
        Err(error) if is_damage(&error) => Ok(true),
        page => Ok(!page?.is_empty()),
    }
}

/// What is met in a keyspace.
enum Read {
    Entry(Bytes, Bytes),
    /// Entries that cannot be read, by the first two bytes of where they begin and end.
    Gap {
        first: u16,
        last: u16,
        reason: String,
    },
}

/// Reads all entries of a keyspace that a scan can reach. Where the next one cannot, it goes on with the next two bytes that
/// places can begin with, which among records is the next partition.
fn read_all(store: &impl Store, keyspace: Keyspace, mut met: impl FnMut(Read)) -> Result<(), StoreError> {
    let mut after: Option<Bytes> = None;
    let mut limit = PAGE;
    let mut gap: Option<(u16, String)> = None;
    loop {
        let place = after.as_ref().map_or(0, partition_of);
        match store.scan(keyspace, after.as_deref(), limit) {
            Ok(page) => {
                if let Some((first, reason)) = gap.take() {
                    met(Read::Gap { first, last: place.saturating_sub(1), reason });
                    limit = PAGE;
                }
                let Some((last, _)) = page.last() else { return Ok(()) };
                after = Some(last.clone());
                page.into_iter().for_each(|(place, value)| met(Read::Entry(place, value)));
            }
            Err(error) if !is_damage(&error) => return Err(error),
            // The entries before the damaged one are read one by one.
            Err(_) if limit == PAGE => limit = STEP,
            Err(error) => {
                let (first, reason) = gap.take().unwrap_or_else(|| (place, error.to_string()));
                let Some(next) = place.checked_add(1) else {
                    met(Read::Gap { first, last: place, reason });
                    return Ok(());
                };
                gap = Some((first, reason));
                after = Some(Bytes::copy_from_slice(&next.to_be_bytes()));
            }
        }
    }
}

fn check_records(
    store: &impl Store,
    summary: &mut Summary,
    found: &mut impl FnMut(Finding),
) -> Result<(), StoreError> {
    let mut last_partition = None;
    read_all(store, Keyspace::Records, |read| match read {
        Read::Entry(place, bytes) => {
            let partition = partition_of(&place);
            if last_partition != Some(partition) {
                last_partition = Some(partition);
                summary.partitions += 1;
            }
            summary.bytes += (place.len() + bytes.len()) as u64;
            check_entry(&place, &bytes, summary, found);
        }
        Read::Gap { first, last, reason } => found(Finding::Unreadable { first, last, reason }),
    })
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

/// What the server remembers about itself; and what is on the list of damaged records, but has no entry.
fn check_meta(store: &impl Store, found: &mut impl FnMut(Finding)) -> Result<(), StoreError> {
    read_all(store, Keyspace::Meta, |read| match read {
        Read::Entry(place, _) => {
            let Some(place) = damage::store_key_at(&place) else { return };
            let key = key_of(&place).unwrap_or_default();
            if store.get(Keyspace::Records, &store_key(&key)).is_ok_and(|entry| entry.is_none()) {
                let reason = "it was found damaged, and its entry is gone".into();
                found(Finding::Damaged { key, partition: partition_of(&place), reason });
            }
        }
        Read::Gap { reason, .. } => found(Finding::MetaUnreadable { reason }),
    })
}

/// What is kept for other servers.
fn check_hints(
    store: &impl Store,
    summary: &mut Summary,
    found: &mut impl FnMut(Finding),
) -> Result<(), StoreError> {
    read_all(store, Keyspace::Hints, |read| {
        let (place, value) = match read {
            Read::Entry(place, value) => (place, value),
            Read::Gap { reason, .. } => return found(Finding::HintsUnreadable { reason }),
        };
        match decode_kept(&place, &value) {
            Some(Kept::Hint { record: Some(_), .. }) => summary.hints += 1,
            Some(Kept::Hint { key, record: None, .. }) => {
                let partition = Partition::of_key(&key).number();
                found(Finding::DamagedHint { key, partition });
            }
            Some(Kept::Dirty(_)) => summary.dirty_partitions += 1,
            None => found(Finding::NoHint { place }),
        }
    })
}

fn partition_of(place: &Bytes) -> u16 {
    place.first_chunk().map_or(0, |number| u16::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use dkvs_core::record::Record;
    use dkvs_core::version::{Actor, Dot};
    use dkvs_storage::{Batch, Durability, FjallConfig, FjallStore, MemoryStore, Start};
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
        let place = store_key(b"lost");
        let remains = crate::damage::Remains::of(&store, &place, Bytes::new()).unwrap();
        crate::damage::ListChange::default().stage_found(&mut batch, &place, remains);
        store.commit(batch, Durability::Memory).await.unwrap();
        let (found, _) = findings(&store);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], Finding::NoIdentity);
        assert!(matches!(&found[1], Finding::Damaged { key, .. } if key == "lost"));
    }

    /// A store in `dir` with a table of these entries in one keyspace and nothing else, of which one data block is damaged.
    fn damaged_store(dir: &std::path::Path, damaged: Keyspace, entries: &[(Bytes, Vec<u8>)]) -> FjallStore {
        let db = fjall::Database::builder(dir).open().unwrap();
        let keyspaces = Keyspace::ALL
            .map(|keyspace| db.keyspace(keyspace.name(), fjall::KeyspaceCreateOptions::default).unwrap());
        let position = Keyspace::ALL.iter().position(|keyspace| *keyspace == damaged).unwrap();
        let keyspace = &keyspaces[position];
        for (place, value) in entries {
            keyspace.insert(&place[..], &value[..]).unwrap();
        }
        keyspace.rotate_memtable_and_wait().unwrap();
        db.persist(fjall::PersistMode::SyncAll).unwrap();
        drop((keyspaces, db));

        // The engine's own keyspace is the first of all.
        let tables = dir.join("keyspaces").join((position + 1).to_string()).join("tables");
        let tables: Vec<_> = std::fs::read_dir(tables).unwrap().map(|table| table.unwrap().path()).collect();
        assert_eq!(tables.len(), 1, "{tables:?}");
        let mut bytes = std::fs::read(&tables[0]).unwrap();
        // Data comes first in a table, and is most of it.
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&tables[0], bytes).unwrap();
        FjallStore::open(dir, &FjallConfig::default()).unwrap()
    }

    #[tokio::test]
    async fn of_records_only_those_in_a_damaged_block_are_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<String> = (0..400).map(|i| format!("key {i}")).collect();
        let entry = |key: &String| {
            let mut bytes = stored(key.as_bytes()).encode();
            if key == "key 7" || key == "key 9" {
                bytes[20] ^= 1;
            }
            (store_key(key.as_bytes()), bytes)
        };
        let store = damaged_store(dir.path(), Keyspace::Records, &keys.iter().map(entry).collect::<Vec<_>>());
        let can_be_read = |key: &&String| store.get(Keyspace::Records, &store_key(key.as_bytes())).is_ok();
        let readable = keys.iter().filter(can_be_read).count() as u64;
        assert!((300..400).contains(&readable), "{readable} keys are beside the damaged block");
        assert!(keys[7..10].iter().all(|key| can_be_read(&key)), "two of them have damage of their own");

        let mut findings = Vec::new();
        let summary = check(&store, |finding| findings.push(finding)).unwrap();
        // The engine looks at two entries more before it gives one out.
        assert!((readable - 4..=readable - 2).contains(&summary.records), "{summary:?} {findings:?}");
        assert_eq!((summary.findings, findings.len()), (3, 3), "{findings:?}");
        let is_own = |finding: &&Finding| matches!(finding, Finding::Damaged { key, .. } if key.len() == 5);
        assert_eq!(findings.iter().filter(is_own).count(), 2, "{findings:?}");
        let gap = findings.iter().find_map(|finding| {
            if let Finding::Unreadable { first, last, .. } = finding { Some(*first..=*last) } else { None }
        });
        let gap = gap.unwrap();
        for key in keys.iter().filter(|key| !can_be_read(key)) {
            assert!(gap.contains(&Partition::of_key(key.as_bytes()).number()), "{key}: {findings:?}");
        }
        store.close().await.unwrap();
    }

    /// The keyspace that has a gap.
    fn unreadable(finding: &Finding) -> Option<Keyspace> {
        match finding {
            Finding::Unreadable { .. } => Some(Keyspace::Records),
            Finding::MetaUnreadable { .. } => Some(Keyspace::Meta),
            Finding::HintsUnreadable { .. } => Some(Keyspace::Hints),
            Finding::TombstonesUnreadable { .. } => Some(Keyspace::Tombstones),
            Finding::Damaged { .. }
            | Finding::Incomplete { .. }
            | Finding::Misplaced { .. }
            | Finding::BeyondLease { .. }
            | Finding::NoIdentity
            | Finding::DamagedHint { .. }
            | Finding::NoHint { .. } => None,
        }
    }

    #[tokio::test]
    async fn a_damaged_block_is_found_in_every_keyspace() {
        for keyspace in Keyspace::ALL {
            let dir = tempfile::tempdir().unwrap();
            let place = |i| store_key(format!("key {i}").as_bytes());
            let entries: Vec<_> = (0..400).map(|i| (place(i), vec![b'v'; 100])).collect();
            let store = damaged_store(dir.path(), keyspace, &entries);
            let mut findings = Vec::new();
            check(&store, |finding| findings.push(finding)).unwrap();
            let gaps: Vec<_> = findings.iter().filter_map(unreadable).collect();
            assert_eq!(gaps, [keyspace]);
            store.close().await.unwrap();
        }
    }
}
