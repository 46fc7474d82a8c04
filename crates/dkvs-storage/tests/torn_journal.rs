//! Whatever a crash leaves of the last writes in a journal, the store opens, with all that was there before and nothing of
//! a torn batch; and what a crash does not leave is refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use bytes::Bytes;
use dkvs_storage::{Batch, Durability, FjallConfig, FjallStore, Keyspace, ScanLimit, Store, StoreError};
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

const PAGE_LEN: usize = 4_096;
const NO_LIMIT: ScanLimit = ScanLimit { entries_max: usize::MAX, bytes_max: usize::MAX };

type Content = BTreeMap<(Keyspace, Bytes), Bytes>;

/// Every opening flushes, which takes time on a disk.
fn temporary() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(dir: &Path) -> Result<FjallStore, StoreError> {
    FjallStore::open(dir, &FjallConfig::default())
}

/// A store whose batches are all in its journal, each written to two keyspaces.
struct Written {
    dir: TempDir,
    /// The journal up to the end of the last batch.
    journal: Vec<u8>,
    /// Where each batch ends, and what is in the store by then. The first end is that of an empty store.
    steps: Vec<(usize, Content)>,
}

impl Written {
    async fn new(values: &[Vec<u8>]) -> Self {
        let dir = temporary();
        let store = open(dir.path()).unwrap();
        let mut content = Content::new();
        let mut steps = vec![(journal_of(dir.path()).len(), content.clone())];
        for (i, value) in values.iter().enumerate() {
            let mut batch = Batch::new();
            for keyspace in [Keyspace::Records, Keyspace::Meta] {
                let key = Bytes::from(format!("key {i}"));
                batch.put(keyspace, key.clone(), value.clone());
                content.insert((keyspace, key), value.clone().into());
            }
            store.commit(batch, Durability::Fsync).await.unwrap();
            steps.push((journal_of(dir.path()).len(), content.clone()));
        }
        store.close().await.unwrap();
        let journal = journal_of(dir.path());
        Self { dir, journal, steps }
    }

    /// A copy with this in place of the journal.
    fn with_journal(&self, journal: &[u8]) -> TempDir {
        let copied = temporary();
        copy_all(self.dir.path(), copied.path());
        fs::write(copied.path().join("0.jnl"), journal).unwrap();
        copied
    }

    /// With this in place of the journal, the store holds what was there after the first `batches`, and nothing else; it
    /// takes more, and has that after the next opening.
    async fn expect(&self, journal: &[u8], batches: usize, what: &str) {
        let copied = self.with_journal(journal);
        let mut expected = self.steps[batches].1.clone();
        let store = open(copied.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(content(&store) == expected, "{what}: not what the first {batches} batches wrote");
        let (key, value) = (Bytes::from_static(b"more"), Bytes::from_static(b"value"));
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, key.clone(), value.clone());
        store.commit(batch, Durability::Fsync).await.unwrap();
        store.close().await.unwrap();
        drop(store);

        expected.insert((Keyspace::Records, key), value);
        let store = open(copied.path()).unwrap_or_else(|error| panic!("{what}, again: {error}"));
        assert!(content(&store) == expected, "{what}: not what was written after it");
        store.close().await.unwrap();
    }

    /// With this in place of the journal the store is refused, by the journal's name, and the journal is left alone.
    fn expect_refusal(&self, journal: &[u8], what: &str) {
        let copied = self.with_journal(journal);
        match open(copied.path()) {
            Err(StoreError::Corrupt { path, .. }) => assert!(path.ends_with("0.jnl"), "{what}: {path:?}"),
            other => panic!("{what}: {other:?}"),
        }
        let left = fs::read(copied.path().join("0.jnl")).unwrap();
        assert!(left == journal, "{what}: what is refused is not changed");
    }
}

/// What is written in the journal. A batch does not end in a zero; behind the last one there is room for more.
fn journal_of(dir: &Path) -> Vec<u8> {
    let mut bytes = fs::read(dir.join("0.jnl")).unwrap();
    let len = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(len);
    bytes
}

fn copy_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            fs::create_dir(to.join(&name)).unwrap();
            copy_all(&path, &to.join(&name));
        } else if path.extension().is_none_or(|extension| extension != "jnl") {
            fs::copy(&path, to.join(&name)).unwrap();
        }
    }
}

fn content(store: &FjallStore) -> Content {
    let of = |keyspace| store.scan(keyspace, None, NO_LIMIT).unwrap().into_iter().map(move |e| (keyspace, e));
    Keyspace::ALL.into_iter().flat_map(of).map(|(keyspace, (key, value))| ((keyspace, key), value)).collect()
}

/// Bytes without zeros, different for each `seed`.
fn text(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (b'a'..=b'z').nth((seed + i + i / 26) % 26).unwrap()).collect()
}

#[tokio::test]
async fn a_journal_that_ends_anywhere_has_its_whole_batches_and_nothing_of_a_torn_one() {
    let written = Written::new(&[text(1, 30), text(2, 5), vec![0; 40], text(4, 30)]).await;
    let batches = written.steps.len() - 1;
    let end = written.journal.len();
    for len in written.steps[batches - 2].0..=end {
        let whole = written.steps.iter().rposition(|(end, _)| *end <= len).unwrap();
        let mut journal = written.journal[..len].to_vec();
        written.expect(&journal, whole, &format!("{len} bytes of {end}")).await;
        // The same in a journal with room for more.
        journal.resize(end + PAGE_LEN, 0);
        written.expect(&journal, whole, &format!("{len} bytes of {end}, and zeros")).await;
    }
}

#[tokio::test]
async fn a_page_that_a_power_cut_has_lost_takes_its_batch_along() {
    let long = 16 * PAGE_LEN;
    let written = Written::new(&[text(1, 30), text(2, 30), text(3, long)]).await;
    let (start, end) = (written.steps[2].0, written.journal.len());
    let mut holes = 0;
    for page in (0..end).step_by(PAGE_LEN).filter(|page| page + PAGE_LEN > start) {
        // What was flushed before is in its page still.
        let lost = page.max(start)..(page + PAGE_LEN).min(end);
        let mut journal = written.journal.clone();
        journal[lost.clone()].fill(0);
        written.expect(&journal, 2, &format!("without {lost:?} of {start}..{end}")).await;
        journal[lost.start..].fill(0);
        written.expect(&journal, 2, &format!("without all from {} on", lost.start)).await;
        holes += 1;
    }
    assert!(holes > 2 * long / PAGE_LEN, "there are two long values, and {holes} pages");
}

/// Batches that were not flushed one by one may lose an earlier page than the last one's.
#[tokio::test]
async fn a_page_that_a_power_cut_has_lost_takes_the_batches_behind_it_along() {
    let written = Written::new(&[text(1, 30), text(2, 16 * PAGE_LEN), text(3, 30), text(4, 30)]).await;
    let first = written.steps[1].0.next_multiple_of(PAGE_LEN);
    for page in (first..written.journal.len()).step_by(PAGE_LEN) {
        let end = (page + PAGE_LEN).min(written.journal.len());
        let mut journal = written.journal.clone();
        journal[page..end].fill(0);
        written.expect(&journal, 1, &format!("without {page}..{end}")).await;
    }
}

#[tokio::test]
async fn a_damaged_batch_is_refused_wherever_it_is() {
    let written = Written::new(&[text(1, 30), text(2, 30), text(3, 30)]).await;
    for at in written.steps[0].0..written.journal.len() {
        // The last batch's number is compared with none behind it.
        let number = written.steps[2].0 + 5;
        if (number..number + 7).contains(&at) {
            continue;
        }
        let mut journal = written.journal.clone();
        journal[at] ^= 0x80;
        written.expect_refusal(&journal, &format!("byte {at} of {}", journal.len()));
    }
}

/// Zeros that somebody has stored are no lost page.
#[tokio::test]
async fn a_damaged_batch_is_refused_also_if_there_are_zeros_in_it_and_behind_it() {
    let zeros = || vec![0; 16 * PAGE_LEN];
    let written = Written::new(&[text(1, 30), zeros(), zeros()]).await;
    for batch in [1, 2] {
        let (start, end) = (written.steps[batch].0, written.steps[batch + 1].0);
        // The first key, a value, the checksum.
        for at in [start + 13 + 21, start + 5 * PAGE_LEN, end - 12] {
            let mut journal = written.journal.clone();
            journal[at] ^= 1;
            written.expect_refusal(&journal, &format!("byte {} of batch {batch}", at - start));
        }
    }
}
