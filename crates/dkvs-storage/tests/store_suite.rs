//! What every `Store` does alike: one suite, run over each of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use bytes::Bytes;
use dkvs_sim::{
    disk::{Disk, SimStore},
    trace::Trace,
};
use dkvs_storage::{
    Batch, Durability, FjallConfig, FjallStore, Keyspace, MemoryStore, ScanLimit, Store, StoreError,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};
use tempfile::TempDir;

use Keyspace::{Meta, Records};

const NO_LIMIT: ScanLimit = ScanLimit { entries_max: usize::MAX, bytes_max: usize::MAX };

/// A store and what must outlive it.
struct Fixture<S> {
    store: Arc<S>,
    _dir: Option<TempDir>,
}

fn memory() -> Fixture<MemoryStore> {
    Fixture { store: Arc::new(MemoryStore::new()), _dir: None }
}

fn fjall() -> Fixture<FjallStore> {
    let dir = tempfile::tempdir().unwrap();
    let store = FjallStore::open(&dir.path().join("store"), &FjallConfig::default()).unwrap();
    Fixture { store: Arc::new(store), _dir: Some(dir) }
}

/// A disk of the simulator, each time another: what it takes of its time is its seed's.
fn simulated() -> Fixture<SimStore> {
    static SEED: AtomicU64 = AtomicU64::new(0);
    let random = StdRng::seed_from_u64(SEED.fetch_add(1, Ordering::Relaxed));
    let (recorder, trace) = (Arc::default(), Arc::new(Trace::new(false)));
    let (store, _) = Disk::new(0, Duration::from_millis(50), random, recorder, trace).open();
    Fixture { store: Arc::new(store), _dir: None }
}

fn put(keyspace: Keyspace, key: &str, value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put(keyspace, key.to_owned(), value.to_owned());
    batch
}

fn keys(entries: &[(Bytes, Bytes)]) -> Vec<&str> {
    entries.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect()
}

async fn commit(store: &impl Store, batch: Batch) {
    store.commit(batch, Durability::Memory).await.unwrap();
}

async fn a_put_is_read_back_overwritten_and_deleted(store: Arc<impl Store>) {
    assert_eq!(store.get(Records, b"k").unwrap(), None);
    for durability in [Durability::Memory, Durability::Interval, Durability::Fsync] {
        let value = format!("{durability:?}");
        store.commit(put(Records, "k", &value), durability).await.unwrap();
        assert_eq!(store.get(Records, b"k").unwrap(), Some(value.into()));
    }
    assert_eq!(store.get(Meta, b"k").unwrap(), None, "keyspaces are separate");
    let mut batch = Batch::new();
    batch.delete(Records, "k");
    batch.delete(Records, "never there");
    commit(&store, batch).await;
    assert_eq!(store.get(Records, b"k").unwrap(), None);
    assert_eq!(store.scan(Records, None, NO_LIMIT).unwrap(), []);
}

async fn one_batch_writes_both_keyspaces(store: Arc<impl Store>) {
    let mut batch = put(Records, "k", "record");
    batch.put(Meta, "k", "meta");
    commit(&store, batch).await;
    assert_eq!(store.get(Records, b"k").unwrap().unwrap(), "record");
    assert_eq!(store.get(Meta, b"k").unwrap().unwrap(), "meta");
}

async fn the_last_write_to_a_key_in_a_batch_wins(store: Arc<impl Store>) {
    let mut batch = put(Records, "put last", "1");
    batch.delete(Records, "put last");
    batch.put(Records, "put last", "2");
    batch.put(Records, "deleted last", "1");
    batch.delete(Records, "deleted last");
    commit(&store, batch).await;
    assert_eq!(store.get(Records, b"put last").unwrap().unwrap(), "2");
    assert_eq!(store.get(Records, b"deleted last").unwrap(), None);
}

async fn commits_begun_in_order_are_applied_in_order(store: Arc<impl Store>) {
    for round in 0..50 {
        // All are queued before any is answered, so they may well share a group.
        let (first, second, third) = tokio::join!(
            store.commit(put(Records, "k", "first"), Durability::Memory),
            store.commit(put(Records, "k", "second"), Durability::Memory),
            store.commit(put(Records, "k", &format!("third {round}")), Durability::Memory),
        );
        assert!(first.is_ok() && second.is_ok() && third.is_ok());
        assert_eq!(store.get(Records, b"k").unwrap().unwrap(), format!("third {round}"));
    }
}

async fn a_scan_is_in_key_order_after_the_given_key(store: Arc<impl Store>) {
    let mut batch = put(Meta, "aa", "in the other keyspace");
    for key in ["b", "a", "c", "ab", "\u{7f}"] {
        batch.put(Records, key, "v");
    }
    commit(&store, batch).await;
    let scan = |after: Option<&str>| store.scan(Records, after.map(str::as_bytes), NO_LIMIT).unwrap();
    assert_eq!(keys(&scan(None)), ["a", "ab", "b", "c", "\u{7f}"]);
    assert_eq!(keys(&scan(Some("a"))), ["ab", "b", "c", "\u{7f}"], "strictly greater");
    assert_eq!(keys(&scan(Some("aa"))), ["ab", "b", "c", "\u{7f}"], "of a key that is not there");
    assert_eq!(keys(&scan(Some(""))), ["a", "ab", "b", "c", "\u{7f}"]);
    assert_eq!(keys(&scan(Some("\u{7f}"))), [""; 0]);
}

async fn a_scan_stops_at_either_limit_but_returns_one_entry(store: Arc<impl Store>) {
    let mut batch = Batch::new();
    for key in ["a", "b", "c", "d"] {
        batch.put(Records, key, "123456789");
    }
    commit(&store, batch).await;
    let scan = |entries_max, bytes_max| {
        store.scan(Records, None, ScanLimit { entries_max, bytes_max }).unwrap().len()
    };
    assert_eq!(scan(3, usize::MAX), 3);
    assert_eq!(scan(0, usize::MAX), 0);
    assert_eq!(scan(usize::MAX, 30), 3, "three entries of ten bytes");
    assert_eq!(scan(usize::MAX, 29), 2);
    assert_eq!(scan(usize::MAX, 0), 1);
    assert_eq!(scan(2, 30), 2);
}

async fn an_empty_value_is_not_a_missing_one(store: Arc<impl Store>) {
    commit(&store, put(Records, "k", "")).await;
    assert_eq!(store.get(Records, b"k").unwrap(), Some(Bytes::new()));
    assert_eq!(store.scan(Records, None, NO_LIMIT).unwrap(), [(Bytes::from("k"), Bytes::new())]);
}

async fn the_longest_key_and_a_value_of_8_mib_are_stored(store: Arc<impl Store>) {
    // A client's longest key, with the partition in front of it.
    let key = vec![b'k'; 32_770];
    let value: Vec<u8> = (0..8 * 1024 * 1024_u32).map(|i| i.wrapping_mul(31).to_le_bytes()[1]).collect();
    let mut batch = Batch::new();
    batch.put(Records, key.clone(), value.clone());
    store.commit(batch, Durability::Fsync).await.unwrap();
    assert!(store.get(Records, &key).unwrap().unwrap() == value);
    assert_eq!(store.scan(Records, None, NO_LIMIT).unwrap().len(), 1);
}

async fn a_batch_that_cannot_be_stored_is_refused_whole(store: Arc<impl Store>) {
    for (key, complaint) in [
        (vec![], "batch refused: an empty key in meta"),
        (vec![0; 65_536], "batch refused: a key of 65536 bytes in meta, at most 65535 are stored"),
    ] {
        let mut batch = put(Records, "innocent", "v");
        batch.put(Meta, key, "v");
        let error = store.commit(batch, Durability::Fsync).await.unwrap_err();
        assert_eq!(error.to_string(), complaint);
    }
    assert_eq!(store.get(Records, b"innocent").unwrap(), None);
    commit(&store, put(Records, "later", "v")).await;
}

async fn concurrent_commits_are_all_visible_once_answered(store: Arc<impl Store>) {
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..32 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for i in 0..25 {
                let key = format!("{task}/{i}");
                store.commit(put(Records, &key, &key), Durability::Interval).await.unwrap();
                assert_eq!(store.get(Records, key.as_bytes()).unwrap().unwrap(), key);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.scan(Records, None, NO_LIMIT).unwrap().len(), 32 * 25);
}

async fn readers_never_see_half_of_a_batch(store: Arc<impl Store>) {
    let number = |store: &dyn Fn(Keyspace) -> Option<Bytes>, keyspace| {
        store(keyspace).map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
    };
    let reader = tokio::task::spawn_blocking({
        let store = Arc::clone(&store);
        move || {
            let get = |keyspace| store.get(keyspace, b"number").unwrap();
            let mut last = 0;
            while last < 300 {
                let meta = number(&get, Meta);
                let record = number(&get, Records);
                last = number(&get, Meta);
                assert!(meta <= record && record <= last, "{meta}, then {record}, then {last}");
            }
        }
    });
    for n in 1..=300_u64 {
        let mut batch = Batch::new();
        for keyspace in Keyspace::ALL {
            batch.put(keyspace, "number", n.to_be_bytes().to_vec());
            // Work between the two writes makes the moment between them long enough to be seen.
            for filler in 0..500 {
                batch.put(keyspace, format!("filler {filler}"), "v");
            }
        }
        commit(&store, batch).await;
    }
    reader.await.unwrap();
}

async fn a_commit_whose_caller_left_is_applied_whole(store: Arc<impl Store>) {
    for i in 0..20 {
        let mut batch = Batch::new();
        for keyspace in Keyspace::ALL {
            batch.put(keyspace, format!("{i}"), "v");
        }
        let mut left = Box::pin(store.commit(batch, Durability::Fsync));
        let _ = left.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        drop(left);
    }
    // Commits are applied in order, so once this one is answered the others are in.
    commit(&store, put(Records, "last", "v")).await;
    assert_eq!(store.scan(Records, None, NO_LIMIT).unwrap().len(), 21);
    assert_eq!(store.scan(Meta, None, NO_LIMIT).unwrap().len(), 20);
}

async fn a_closed_store_says_so_and_closes_again(store: Arc<impl Store>) {
    commit(&store, put(Records, "k", "v")).await;
    store.close().await.unwrap();
    let commit = store.commit(put(Records, "k", "w"), Durability::Memory).await;
    assert!(matches!(commit, Err(StoreError::Closed)), "{commit:?}");
    assert!(matches!(store.get(Records, b"k"), Err(StoreError::Closed)));
    assert!(matches!(store.scan(Records, None, NO_LIMIT), Err(StoreError::Closed)));
    store.close().await.unwrap();
}

#[derive(Clone, Debug)]
struct Write {
    keyspace: Keyspace,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// Few and short keys, so that writes meet.
fn any_write() -> impl Strategy<Value = Write> {
    let key = proptest::collection::vec(0..4_u8, 1..4);
    let value = proptest::option::weighted(0.7, proptest::collection::vec(any::<u8>(), 0..20));
    (proptest::sample::select(Keyspace::ALL.to_vec()), key, value).prop_map(|(keyspace, key, value)| Write {
        keyspace,
        key,
        value,
    })
}

fn behaves_like_a_sorted_map<S: Store>(open: impl Fn() -> Fixture<S>) {
    let batches = proptest::collection::vec(proptest::collection::vec(any_write(), 0..8), 0..12);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let limits = (0..20_usize, 0..200_usize);
    proptest!(ProptestConfig::with_cases(40), |(
        batches in batches,
        after in proptest::option::of(proptest::collection::vec(0..4_u8, 0..4)),
        (entries_max, bytes_max) in limits,
    )| {
        let fixture = open();
        let mut model: BTreeMap<(Keyspace, Vec<u8>), Vec<u8>> = BTreeMap::new();
        for writes in batches {
            let mut batch = Batch::new();
            for Write { keyspace, key, value } in writes {
                match value {
                    Some(value) => {
                        batch.put(keyspace, key.clone(), value.clone());
                        model.insert((keyspace, key), value);
                    }
                    None => {
                        batch.delete(keyspace, key.clone());
                        model.remove(&(keyspace, key));
                    }
                }
            }
            runtime.block_on(fixture.store.commit(batch, Durability::Memory)).unwrap();
        }
        for keyspace in Keyspace::ALL {
            let all: Vec<_> = model.iter().filter(|((k, _), _)| *k == keyspace).collect();
            for ((_, key), value) in &all {
                prop_assert_eq!(&fixture.store.get(keyspace, key).unwrap().unwrap(), *value);
            }
            let mut expected = Vec::new();
            let mut bytes = 0;
            for ((_, key), value) in all {
                if after.as_ref().is_some_and(|after| key <= after) {
                    continue;
                }
                bytes += key.len() + value.len();
                if expected.len() == entries_max || (bytes > bytes_max && !expected.is_empty()) {
                    break;
                }
                expected.push((Bytes::from(key.clone()), Bytes::from(value.clone())));
            }
            let limit = ScanLimit { entries_max, bytes_max };
            prop_assert_eq!(fixture.store.scan(keyspace, after.as_deref(), limit).unwrap(), expected);
        }
    });
}

macro_rules! suite {
    ($store:ident: $($claim:ident),* $(,)?) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $claim() {
                    let fixture = super::$store();
                    super::$claim(std::sync::Arc::clone(&fixture.store)).await;
                }
            )*

            #[test]
            fn behaves_like_a_sorted_map() {
                super::behaves_like_a_sorted_map(super::$store);
            }
        }
    };
}

macro_rules! suites {
    ($($store:ident),*) => { $(
        suite! { $store:
            a_put_is_read_back_overwritten_and_deleted,
            one_batch_writes_both_keyspaces,
            the_last_write_to_a_key_in_a_batch_wins,
            commits_begun_in_order_are_applied_in_order,
            a_scan_is_in_key_order_after_the_given_key,
            a_scan_stops_at_either_limit_but_returns_one_entry,
            an_empty_value_is_not_a_missing_one,
            the_longest_key_and_a_value_of_8_mib_are_stored,
            a_batch_that_cannot_be_stored_is_refused_whole,
            concurrent_commits_are_all_visible_once_answered,
            readers_never_see_half_of_a_batch,
            a_commit_whose_caller_left_is_applied_whole,
            a_closed_store_says_so_and_closes_again,
        }
    )* };
}

suites!(memory, fjall, simulated);
