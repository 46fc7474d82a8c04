//! A flipped bit anywhere in the engine's files is refused, or costs an answer; it never makes a wrong one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use bytes::Bytes;
use dkvs_storage::{Batch, Durability, FjallConfig, FjallStore, Keyspace, ScanLimit, Store, StoreError};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const NO_LIMIT: ScanLimit = ScanLimit { entries_max: usize::MAX, bytes_max: usize::MAX };

type Content = BTreeMap<(Keyspace, Bytes), Bytes>;

/// On a disk most of the time would go into flushes, of which there are many in every opening.
fn temporary() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(dir: &Path) -> Result<FjallStore, StoreError> {
    FjallStore::open(dir, &FjallConfig::default())
}

/// A closed store with several tables in each keyspace and a journal with batches that are in no table, and what is in
/// it. The engine keeps a keyspace's options with it, so the one that creates it may ask for small tables.
async fn closed_store() -> (TempDir, Content) {
    let dir = temporary();
    let db = fjall::Database::builder(dir.path()).open().unwrap();
    let options = || fjall::KeyspaceCreateOptions::default().max_memtable_size(32 * 1024);
    let keyspaces = Keyspace::ALL.map(|keyspace| db.keyspace(keyspace.name(), options).unwrap());
    db.persist(fjall::PersistMode::SyncAll).unwrap();
    drop((keyspaces, db));

    let mut content = Content::new();
    let store = open(dir.path()).unwrap();
    for i in 0..400_u32 {
        let mut batch = Batch::new();
        for keyspace in Keyspace::ALL {
            // Keys are written more than once, so that an old value can come back.
            let (key, value) =
                (Bytes::from(format!("key {}", i % 150)), Bytes::from(format!("{i} ").repeat(60)));
            batch.put(keyspace, key.clone(), value.clone());
            content.insert((keyspace, key), value);
        }
        store.commit(batch, Durability::Memory).await.unwrap();
    }
    store.close().await.unwrap();
    // What the journal has room for is given back when it is read.
    open(dir.path()).unwrap().close().await.unwrap();
    (dir, content)
}

/// Every file below `dir`, relative to it, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path) -> TempDir {
    let to = temporary();
    for file in files(from) {
        fs::create_dir_all(to.path().join(&file).parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to.path().join(&file)).unwrap();
    }
    to
}

/// Opens the store and compares everything with what was written. Says how damage showed, if it did.
async fn examine(dir: &Path, content: &Content, what: &str) -> Option<StoreError> {
    let store = match open(dir) {
        Ok(store) => store,
        Err(error) => return Some(error),
    };
    let mut noticed = None;
    for ((keyspace, key), value) in content {
        match store.get(*keyspace, key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(value), "{what}: {keyspace:?} {key:?}"),
            Err(error) => noticed = Some(error),
        }
    }
    for keyspace in Keyspace::ALL {
        match store.scan(keyspace, None, NO_LIMIT) {
            Ok(found) => {
                let expected = content.iter().filter(|((of, _), _)| *of == keyspace);
                let expected: Vec<_> =
                    expected.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                assert!(found == expected, "{what}: a scan of {keyspace:?}");
            }
            Err(error) => noticed = Some(error),
        }
    }
    // A compaction may have met the damage.
    let _ = store.close().await;
    noticed
}

/// Which bytes of a file of this length are flipped: about so many, half of them at its ends, where its structure is.
fn places(len: usize, count: usize) -> Vec<usize> {
    let ends = 10 * count;
    let step = |len: usize, count: usize| (len / count).max(1);
    let dense = step(2 * ends, count / 2);
    let sparse = step(len, count / 2);
    let is_end = |at: usize| at < ends || len - at <= ends;
    (0..len).filter(|&at| is_end(at) && at % dense == 0 || at % sparse == 0).collect()
}

/// The number of flips in each file; `DKVS_DAMAGE_PLACES` asks for more.
const PLACES: usize = 60;

#[tokio::test]
async fn a_flipped_bit_in_any_file_never_makes_a_wrong_answer() {
    let count = std::env::var("DKVS_DAMAGE_PLACES").map_or(PLACES, |count| count.parse().unwrap());
    let (dir, content) = closed_store().await;
    let found = files(dir.path());
    let kinds = ["0.jnl", "version", "keyspaces/0/current", "keyspaces/1/current", "keyspaces/1/tables"];
    for kind in kinds {
        assert!(found.iter().any(|file| file.starts_with(kind)), "there is a {kind} among {found:?}");
    }
    let mut tables_seen = BTreeMap::new();
    for file in found {
        // Tables are all alike: two of a keyspace will do.
        if file.parent().is_some_and(|above| above.ends_with("tables")) {
            let seen: &mut u32 = tables_seen.entry(file.parent().unwrap().to_owned()).or_default();
            *seen += 1;
            if *seen > 2 {
                continue;
            }
        }
        let bytes = fs::read(dir.path().join(&file)).unwrap();
        let mut noticed = 0;
        let places = places(bytes.len(), count);
        for &at in &places {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let copied = copy(dir.path());
            fs::write(copied.path().join(&file), damaged).unwrap();
            let what = format!("bit {} of byte {at} of {}", at % 8, file.display());
            if let Some(error) = examine(copied.path(), &content, &what).await {
                noticed += 1;
                let damage = matches!(error, StoreError::Corrupt { .. });
                assert!(damage && !error.to_string().contains("panicked"), "{what} was told as: {error}");
                let is_named = error.to_string().contains(&*file.to_string_lossy());
                assert!(
                    is_named || !file.ends_with("version"),
                    "{what} is not where the message says: {error}"
                );
            }
        }
        println!("{}: {noticed} of {} noticed", file.display(), places.len());
    }
}
