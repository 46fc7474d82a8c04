//! The hash tree over this server's records: kept true by the writer, read by anti-entropy.
//!
//! Each commit changes the leaves of what it changes, once it is done: whoever reads them sees what is committed. They live in
//! memory. A clean stop keeps them in the store, and the next start takes them from there:
//!
//! ```text
//!   meta/"leaves"   u8 layout version, 2 | 16 random bytes | for each leaf that is not zero: u16 partition, 16 bytes
//!                   | u32 CRC-32 of all before
//! ```
//! The random bytes stand for what is lost, in the leaves of incomplete records; so they live as long as the leaves.
//!
//! After any other start nothing is known. All records are then read once more, in the background, a page at a time, each
//! between two commits: what lies before the end of the last page is kept true by the commits, what lies behind it is still to
//! be read. A partition in which damage is found is read again in the same way.
//!
//! Invariant: a leaf is what the committed entries of its partition sum up to, or it is not known.
//!
//! What can never be equal to another server's copy has a hash of its own: a partition that cannot be read to its end, and a record of
//! which something was lost. Such a partition is compared key by key in each round. So the other server sends what cannot be read here, which
//! is how it is found damaged, and repaired.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::hash_tree::{EntryHash, Leaves, Node, PartitionSet};
use dkvs_core::position::Partition;
use dkvs_storage::{Batch, Durability, Keyspace, ScanLimit, Start, Store, StoreError};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::damage::{is_damage, scan_readable};
use crate::replica::Replica;
use crate::stored::{Stored, key_of};

const KEY: &[u8] = b"leaves";
const LAYOUT_VERSION: u8 = 2;
const LEAF_LEN: usize = 18;

/// Entries read in one go. It keeps the writer for some 100 µs.
const PAGE: ScanLimit = ScanLimit { entries_max: 256, bytes_max: 256 << 10 };

/// Pause between pages: for what the writer has to do for clients.
const PAGE_PAUSE: Duration = Duration::from_millis(2);

/// Pause after a page could not be read, or the writer had no time for it.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// What a commit does to one entry's place in the tree.
#[derive(Debug)]
pub(crate) struct LeafChange {
    pub(crate) store_key: Bytes,
    /// The XOR of the entry's hash before and after; `None` when it is not known what was there.
    pub(crate) change: Option<EntryHash>,
}

/// The tree, shared by the writer and those who read it.
#[derive(Debug)]
pub(crate) struct Tree {
    state: Mutex<State>,
    /// Stands for what no other server can have.
    odd: EntryHash,
    /// There is a partition to be read.
    unknown: Notify,
}

#[derive(Debug)]
struct State {
    leaves: Leaves,
    reading: Option<Reading>,
    /// Whether it was said that what is read just now cannot be.
    is_told: bool,
}

/// A partition that is being read.
#[derive(Debug)]
struct Reading {
    partition: Partition,
    /// The last entry that is in the sum.
    after: Bytes,
    sum: EntryHash,
}

impl Reading {
    fn begin(partition: Partition) -> Self {
        let after = Bytes::copy_from_slice(&partition.number().to_be_bytes());
        Self { partition, after, sum: EntryHash::ZERO }
    }
}

impl Tree {
    /// What the last run has left, if it ended in order. Whatever is kept in the store is then removed: it is true only now, and
    /// after this run it would be taken for what this run has left. `random` stands for what is lost, unless leaves with another
    /// number are taken over.
    pub(crate) async fn open(
        store: &impl Store,
        start: Start,
        random: EntryHash,
    ) -> Result<Self, StoreError> {
        let kept = match store.get(Keyspace::Meta, KEY) {
            Err(error) if is_damage(&error) => Some(Bytes::new()),
            kept => kept?,
        };
        let mut leaves = match start {
            Start::New => Leaves::empty(),
            Start::Unclean | Start::Clean => Leaves::unknown(),
        };
        let mut odd = random;
        if let Some(kept) = kept {
            let mut batch = Batch::new();
            batch.delete(Keyspace::Meta, Bytes::from_static(KEY));
            store.commit(batch, Durability::Memory).await?;
            if start == Start::Clean {
                (odd, leaves) = decode(&kept).unwrap_or((odd, leaves));
            }
        }
        let state = Mutex::new(State { leaves, reading: None, is_told: false });
        Ok(Self { state, odd, unknown: Notify::new() })
    }

    /// The hash of a node over the partitions that two servers share; `None` when a leaf is not known.
    pub(crate) fn sum(&self, node: Node, shared: &PartitionSet) -> Option<EntryHash> {
        self.state().leaves.sum(node, shared)
    }

    /// How many partitions are still to be read.
    pub(crate) fn unknown_len(&self) -> usize {
        self.state().leaves.unknown_len()
    }

    /// Whether all leaves are known.
    pub(crate) fn is_known(&self) -> bool {
        self.state().leaves.next_unknown(Partition::new(0)).is_none()
    }

    /// The hash of an entry as it is stored.
    pub(crate) fn hash_of(&self, key: &[u8], stored: &Stored) -> EntryHash {
        if *stored == Stored::default() {
            return EntryHash::ZERO;
        }
        if stored.is_incomplete {
            // As that of another key, so that two of a partition do not make up for each other.
            return EntryHash::of(&[self.odd.as_bytes(), key].concat(), &stored.record);
        }
        EntryHash::of(key, &stored.record)
    }

    /// A commit has changed these entries. With `is_done` false nobody knows whether it has.
    pub(crate) fn committed(&self, changes: &[LeafChange], is_done: bool) {
        let mut state = self.state();
        let State { leaves, reading, .. } = &mut *state;
        for LeafChange { store_key, change } in changes {
            let Some(partition) = partition_of(store_key) else { continue };
            let in_reading = reading.as_mut().filter(|reading| reading.partition == partition);
            match change.filter(|_| is_done) {
                Some(change) => {
                    leaves.add(partition, change);
                    if let Some(reading) = in_reading.filter(|reading| *store_key <= reading.after) {
                        reading.sum ^= change;
                    }
                }
                None => {
                    leaves.set(partition, None);
                    if let Some(reading) = in_reading {
                        *reading = Reading::begin(partition);
                    }
                    self.unknown.notify_one();
                }
            }
        }
    }

    /// Reads on where leaves are not known. Called by the writer, when no commit is under way. Returns the entries that cannot be
    /// read; each then stands for nothing until it is put aside.
    pub(crate) fn read_page(&self, store: &impl Store) -> Result<Vec<Bytes>, StoreError> {
        let mut state = self.state();
        let State { leaves, reading, is_told } = &mut *state;
        let begun = match reading.take() {
            Some(begun) => begun,
            None => match leaves.next_unknown(Partition::new(0)) {
                Some(partition) => Reading::begin(partition),
                None => return Ok(Vec::new()),
            },
        };
        let (page, damage) = match scan_readable(store, Some(&begun.after), PAGE) {
            Ok(page) => page,
            Err(error) => {
                *reading = Some(begun);
                return Err(error);
            }
        };
        let mut now = Some(begun);
        let mut unreadable = Vec::new();
        for (store_key, bytes) in &page {
            let Some((partition, key)) = partition_of(store_key).zip(key_of(store_key)) else { continue };
            let Some(reading) = reach(leaves, now.take(), Some(partition)) else { break };
            let hash = match Stored::decode(bytes) {
                Ok(stored) => self.hash_of(&key, &stored),
                Err(_) => {
                    unreadable.push(store_key.clone());
                    EntryHash::ZERO
                }
            };
            now = Some(Reading { after: store_key.clone(), sum: reading.sum ^ hash, ..reading });
        }
        *reading = match (damage, now) {
            // Where it cannot be read, nobody can tell which partition that is.
            (Some(error), Some(reading)) => {
                let partition = reading.partition.number();
                if !std::mem::replace(is_told, true) {
                    tracing::error!(partition, %error, "a partition cannot be read, and perhaps some that follow");
                }
                leaves.set(reading.partition, Some(self.odd));
                None
            }
            (_, now) => {
                *is_told = false;
                if page.is_empty() { reach(leaves, now, None) } else { now }
            }
        };
        Ok(unreadable)
    }

    /// Something of the partition cannot be read, if there is anything: it is read again, to see which others have the same.
    pub(crate) fn doubt(&self, partition: Partition) {
        let mut state = self.state();
        let is_read = state.reading.as_ref().is_some_and(|reading| reading.partition == partition);
        if !is_read && state.leaves.get(partition).is_some_and(|sum| sum != EntryHash::ZERO) {
            state.leaves.set(partition, None);
            self.unknown.notify_one();
        }
    }

    /// What a clean stop keeps.
    pub(crate) fn stage(&self, batch: &mut Batch) {
        if let Some(leaves) = self.state().leaves.known() {
            batch.put(Keyspace::Meta, Bytes::from_static(KEY), encode(self.odd, &leaves));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock while it is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next entry is in this partition, or there is none: what lies before it is known now. `None` when that has come to a
/// partition which was known already.
fn reach(leaves: &mut Leaves, reading: Option<Reading>, next: Option<Partition>) -> Option<Reading> {
    let mut reading = reading?;
    while next != Some(reading.partition) {
        leaves.set(reading.partition, Some(reading.sum));
        let after = reading.partition.number().checked_add(1).map(Partition::new)?;
        if leaves.get(after).is_some() {
            return None;
        }
        reading = Reading::begin(after);
    }
    Some(reading)
}

fn partition_of(store_key: &Bytes) -> Option<Partition> {
    store_key.first_chunk().map(|number| Partition::new(u16::from_be_bytes(*number)))
}

fn encode(odd: EntryHash, leaves: &[(Partition, EntryHash)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + odd.as_bytes().len() + leaves.len() * LEAF_LEN + 4);
    bytes.push(LAYOUT_VERSION);
    bytes.extend_from_slice(odd.as_bytes());
    for (partition, sum) in leaves {
        bytes.extend_from_slice(&partition.number().to_be_bytes());
        bytes.extend_from_slice(sum.as_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

/// `None` for anything unreadable: to read the records again is always right.
fn decode(bytes: &Bytes) -> Option<(EntryHash, Leaves)> {
    let (bytes, crc) = bytes.split_last_chunk()?;
    if crc32fast::hash(bytes).to_be_bytes() != *crc {
        return None;
    }
    let (&[LAYOUT_VERSION], rest) = bytes.split_first_chunk()? else { return None };
    let (odd, rest) = rest.split_first_chunk()?;
    let (kept, []) = rest.as_chunks::<LEAF_LEN>() else { return None };
    let mut leaves = Leaves::empty();
    for leaf in kept {
        let (partition, sum) = leaf.split_first_chunk()?;
        let sum = EntryHash::from_bytes(sum.try_into().ok()?);
        leaves.set(Partition::new(u16::from_be_bytes(*partition)), Some(sum));
    }
    Some((EntryHash::from_bytes(*odd), leaves))
}

/// How long it takes to read so many entries, when the writer has time.
pub(crate) fn read_takes(entries: u64) -> Duration {
    let pages = entries.div_ceil(PAGE.entries_max as u64);
    PAGE_PAUSE.saturating_mul(u32::try_from(pages).unwrap_or(u32::MAX))
}

/// Reads what is not known, whenever there is something, until aborted.
pub(crate) async fn run<T: Store>(replica: Replica<T>) {
    loop {
        if replica.tree().is_known() {
            replica.tree().unknown.notified().await;
            continue;
        }
        match replica.read_tree_page().await {
            Ok(()) => sleep(PAGE_PAUSE).await,
            Err(error) => {
                tracing::warn!(%error, "records cannot be read to be compared");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dkvs_core::record::Record;
    use dkvs_storage::MemoryStore;

    use super::*;
    use crate::stored::store_key;

    const ODD: EntryHash = EntryHash::from_bytes([7; 16]);

    fn stored(key: &str, version: &'static str) -> Stored {
        Stored { record: Record::initial(key.as_bytes(), version.into()), ..Stored::default() }
    }

    async fn put(store: &MemoryStore, key: &str, stored: &Stored) {
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, store_key(key.as_bytes()), stored.encode());
        store.commit(batch, Durability::Memory).await.unwrap();
    }

    fn keys() -> Vec<String> {
        (0..1_000).map(|number| format!("key {number}")).collect()
    }

    /// What the store's entries sum up to, partition by partition.
    fn truth(store: &MemoryStore, tree: &Tree) -> Vec<(Partition, EntryHash)> {
        let mut leaves = Leaves::empty();
        let all = ScanLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
        for (store_key, bytes) in store.scan(Keyspace::Records, None, all).unwrap() {
            let hash = tree.hash_of(&key_of(&store_key).unwrap(), &Stored::decode(&bytes).unwrap());
            leaves.add(partition_of(&store_key).unwrap(), hash);
        }
        leaves.known().unwrap()
    }

    fn leaves(tree: &Tree) -> Option<Vec<(Partition, EntryHash)>> {
        tree.state().leaves.known()
    }

    #[tokio::test]
    async fn what_is_read_page_by_page_is_true_whatever_is_committed_in_between() {
        let store = MemoryStore::new();
        for key in keys() {
            put(&store, &key, &stored(&key, "before")).await;
        }
        let tree = Tree::open(&store, Start::Unclean, ODD).await.unwrap();
        assert_eq!(tree.sum(Node::ROOT, &PartitionSet::of(|_| true)), None);
        let mut changing = keys().into_iter().step_by(7);
        let mut pages = 0;
        while !tree.is_known() {
            assert!(tree.read_page(&store).unwrap().is_empty());
            pages += 1;
            for key in changing.by_ref().take(10) {
                let (before, after) = (stored(&key, "before"), stored(&key, "after"));
                put(&store, &key, &after).await;
                let change =
                    Some(tree.hash_of(key.as_bytes(), &before) ^ tree.hash_of(key.as_bytes(), &after));
                tree.committed(&[LeafChange { store_key: store_key(key.as_bytes()), change }], true);
            }
        }
        assert!(pages > 3, "{pages}");
        assert_eq!(leaves(&tree), Some(truth(&store, &tree)));

        // Nobody knows what was there: the partition is read again, and only that.
        let key = "key 77";
        put(&store, key, &Stored { is_incomplete: true, ..Stored::default() }).await;
        tree.committed(&[LeafChange { store_key: store_key(key.as_bytes()), change: None }], true);
        assert!(!tree.is_known());
        assert!(tree.read_page(&store).unwrap().is_empty());
        assert_eq!(leaves(&tree), Some(truth(&store, &tree)), "in one page");
    }

    /// A store with a block that cannot be read, from one place of a key to another.
    struct Rotten(MemoryStore, std::ops::Range<Bytes>);

    impl Store for Rotten {
        fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
            self.0.get(keyspace, key)
        }

        fn scan(
            &self,
            keyspace: Keyspace,
            after: Option<&[u8]>,
            limit: ScanLimit,
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            let page = self.0.scan(keyspace, after, limit)?;
            match page.iter().any(|(store_key, _)| self.1.contains(store_key)) {
                false => Ok(page),
                true => Err(StoreError::Corrupt {
                    what: "reading",
                    path: "a table".into(),
                    detail: "a wrong checksum".into(),
                }),
            }
        }

        async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
            self.0.commit(batch, durability).await
        }

        fn health(&self) -> dkvs_storage::Health {
            self.0.health()
        }

        async fn close(&self) -> Result<(), StoreError> {
            self.0.close().await
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_costs_the_partitions_around_it_and_no_others() {
        let store = MemoryStore::new();
        for key in keys() {
            put(&store, &key, &stored(&key, "v")).await;
        }
        let tree = Tree::open(&store, Start::Unclean, ODD).await.unwrap();
        let truth = truth(&store, &tree);
        let held: Vec<Partition> = truth.iter().map(|(partition, _)| *partition).collect();
        let start = |partition: Partition| Bytes::copy_from_slice(&partition.number().to_be_bytes());
        let store = Rotten(store, start(held[100])..start(held[120]));
        let mut pages = 0;
        while !tree.is_known() {
            assert!(tree.read_page(&store).unwrap().is_empty());
            pages += 1;
        }
        let read = leaves(&tree).unwrap();
        let wrong: Vec<Partition> =
            read.into_iter().filter(|leaf| !truth.contains(leaf)).map(|(at, _)| at).collect();
        // Nobody can tell that the last one before it is whole.
        assert_eq!((wrong.first(), wrong.last()), (Some(&held[99]), Some(&held[119])));
        assert!(pages < wrong.len() + 20, "{pages}");

        // What is doubted is read again, but not what is empty.
        tree.doubt(held[7]);
        assert!(!tree.is_known());
        tree.read_page(&store).unwrap();
        assert_eq!(tree.state().leaves.get(held[7]), Some(truth[7].1));
        tree.doubt(Partition::new(held[7].number() + 1));
        assert_eq!(tree.is_known(), held[8].number() != held[7].number() + 1);
    }

    #[tokio::test]
    async fn leaves_outlive_a_clean_stop_once_and_nothing_else() {
        let store = MemoryStore::new();
        let tree = Tree::open(&store, Start::New, ODD).await.unwrap();
        let (key, after) = ("k", stored("k", "v"));
        put(&store, key, &after).await;
        let change = Some(tree.hash_of(key.as_bytes(), &after));
        tree.committed(&[LeafChange { store_key: store_key(key.as_bytes()), change }], true);
        let mut batch = Batch::new();
        tree.stage(&mut batch);
        store.commit(batch, Durability::Memory).await.unwrap();
        let kept = store.get(Keyspace::Meta, KEY).unwrap().unwrap();

        let clean = Tree::open(&store, Start::Clean, ODD).await.unwrap();
        assert_eq!(leaves(&clean), Some(truth(&store, &tree)));
        let again = Tree::open(&store, Start::Clean, ODD).await.unwrap();
        assert_eq!(leaves(&again), None, "they were true for one start only");

        // A run that does not come to know its leaves keeps none, and must not seem to have kept these.
        let mut batch = Batch::new();
        clean.stage(&mut batch);
        store.commit(batch, Durability::Memory).await.unwrap();
        let unclean = Tree::open(&store, Start::Unclean, ODD).await.unwrap();
        assert_eq!(leaves(&unclean), None);
        let mut batch = Batch::new();
        unclean.stage(&mut batch);
        assert!(batch.is_empty(), "nothing is known yet");
        let after_it = Tree::open(&store, Start::Clean, ODD).await.unwrap();
        assert_eq!(leaves(&after_it), None, "of the run before it");

        for len in 0..kept.len() {
            assert!(decode(&kept.slice(..len)).is_none(), "{len} bytes");
        }
        for bit in 0..kept.len() * 8 {
            let mut damaged = kept.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged.into()).is_none(), "bit {bit}");
        }
    }

    #[tokio::test]
    async fn an_incomplete_record_is_known_again_after_a_clean_stop_and_two_do_not_make_up_for_each_other() {
        let store = MemoryStore::new();
        let tree = Tree::open(&store, Start::New, ODD).await.unwrap();
        let lost = Stored { is_incomplete: true, ..stored("k", "what is left") };
        put(&store, "k", &lost).await;
        let change = Some(tree.hash_of(b"k", &lost));
        tree.committed(&[LeafChange { store_key: store_key(b"k"), change }], true);
        let mut batch = Batch::new();
        tree.stage(&mut batch);
        store.commit(batch, Durability::Memory).await.unwrap();

        let other = EntryHash::from_bytes([8; 16]);
        let tree = Tree::open(&store, Start::Clean, other).await.unwrap();
        let mended = stored("k", "v");
        put(&store, "k", &mended).await;
        let change = Some(tree.hash_of(b"k", &lost) ^ tree.hash_of(b"k", &mended));
        tree.committed(&[LeafChange { store_key: store_key(b"k"), change }], true);
        assert_eq!(leaves(&tree), Some(truth(&store, &tree)));

        let whole = |key: &[u8]| EntryHash::of(key, &lost.record);
        let both = tree.hash_of(b"k", &lost) ^ tree.hash_of(b"l", &lost);
        assert_ne!(both, whole(b"k") ^ whole(b"l"));
    }

    #[tokio::test]
    async fn a_commit_of_unknown_outcome_makes_its_partitions_unknown() {
        let store = MemoryStore::new();
        let tree = Tree::open(&store, Start::New, ODD).await.unwrap();
        let change = Some(EntryHash::from_bytes([1; 16]));
        tree.committed(&[LeafChange { store_key: store_key(b"k"), change }], false);
        assert_eq!(leaves(&tree), None);
        tree.read_page(&store).unwrap();
        assert_eq!(leaves(&tree), Some(Vec::new()));
    }
}
