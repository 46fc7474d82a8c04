//! The store on disk, over the LSM engine fjall.
//!
//! fjall was chosen for its small durable batches: pure Rust, one journal for all keyspaces (so a batch over
//! two of them is atomic), and the fastest group commits of the embedded engines measured. Writes go through
//! one [`Committer`] thread; reads go straight to the engine.
//!
//! ```text
//!   commit ─> Committer ─> journal (write, fsync if asked) ─> memtables ─> new View ─> answers
//!   get, scan ───────────────────────────────────────────────────────────> View (a snapshot)
//! ```
//!
//! What fjall (3.1) does and does not do, where it shapes this file:
//!
//! - A batch commit persists the journal *before* it touches the memtables, so nothing is visible before its
//!   fsync. But plain reads look at the newest entries, so they can see half of a batch while it is being
//!   applied. Readers here see a [`View`]: a snapshot that is replaced once a commit has returned.
//! - All entries of a batch share a sequence number; a key must not occur twice. [`Batch`] sees to that.
//! - An empty key, or one above 65,535 bytes, panics. [`Batch`] refuses them.
//! - A commit that finds the engine's background work too far behind sleeps until it has caught up, forever
//!   if a background thread has failed. [`FjallEngine::wait_for_room`] waits outside, where a failure is
//!   seen.
//! - A crash while a database is being created leaves a directory that never opens again. It is created under
//!   another name and renamed.
//! - A keyspace whose description is lost is dropped at open and would come back empty. Missing keyspaces of
//!   an existing store are reported as damage.
//! - Damage in journals and in the lists of tables is taken for what a crash leaves. [`fjall_check`] looks first.
//! - A journal is cut at its first torn entry, as it should be. But if a power cut kept a later part of an
//!   unsynced tail and lost an earlier one *inside a value*, the checksum fails and the open is refused.
//!   [`fjall_check`] cuts torn tails off before the engine sees them. Commits with `Fsync` leave no unsynced tail of
//!   more than one group.
//! - A compaction that meets a damaged block fails, and poisons the database: reads go on, writes do not, and
//!   after the next start it is the same again as soon as the same tables are compacted.
//!
//! Keys and values are copied on the way in and out. On the way in on purpose: the engine keeps entries until
//! a memtable is flushed, and a small value must not keep alive the large datagram it came in.

use crate::{
    Batch, Durability, Health, Keyspace, ScanLimit, Store, StoreError,
    committer::{Committer, Engine},
    fjall_check,
};
use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::{
    fs, io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// What the system says of a place on the disk that cannot be read.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Threads for flushes and compactions. fjall (3.1) keeps the first free for flushes: what it finds in their queue about
/// compactions it puts back at once, again and again while all others compact. With two threads that takes a core for as long as
/// any compaction runs; with three, the third mostly clears the queue. With one, a long compaction holds back the
/// flush that writers wait for, and if the queue fills up meanwhile, the thread waits for room in it that only itself could make.
const WORKER_THREADS: usize = 3;

/// When a keyspace's write buffer is flushed to a table. It bounds memory (up to [`SEALED_MEMTABLES_MAX`] + 2
/// per busy keyspace exist for a moment) and the time to reopen; larger means fewer compactions. fjall stores
/// it with the keyspace: a change takes effect for new directories only.
const MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Table files kept open; fjall's 900 is most of the 1,024 descriptors a process commonly has.
const OPEN_FILES_MAX: usize = 256;

/// Writers wait while this many full write buffers of a keyspace are not flushed yet. fjall's own limit is 4
/// and one commit can add two (one rotation requested before it, one by it), so below this it never waits
/// inside.
const SEALED_MEMTABLES_MAX: usize = 1;

/// Writers wait while a keyspace has this many tables that reads must all look into. fjall slows down at 20
/// and stops at 30; compaction starts at 4.
const L0_TABLES_MAX: usize = 18;

/// How often a waiting writer looks again: short against a flush (some 100 ms), long against the look.
const ROOM_POLL: Duration = Duration::from_millis(1);

/// What an operator may choose about a [`FjallStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FjallConfig {
    /// Memory for blocks of tables that were read. The system's page cache sits below it, so it saves the
    /// decoding of hot blocks rather than disk reads. Default 32 MiB.
    pub cache_bytes_max: u64,
    /// `Interval` commits are on disk at most this much later. Default 100 ms: ten flushes a second do not
    /// wear a disk, and no human notices.
    pub flush_interval: Duration,
    /// When the journals together exceed this, idle keyspaces are flushed so that old journals can go. It
    /// bounds the time to open after a crash (about a second per 100 MB). Values below 64 MiB, the size of
    /// one journal, count as that. Default 128 MiB.
    pub journal_bytes_max: u64,
}

impl FjallConfig {
    const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
}

impl Default for FjallConfig {
    fn default() -> Self {
        Self {
            cache_bytes_max: 32 * 1024 * 1024,
            flush_interval: Duration::from_millis(100),
            journal_bytes_max: 2 * Self::JOURNAL_BYTES,
        }
    }
}

/// A durable [`Store`] in a directory of its own.
pub struct FjallStore {
    dir: PathBuf,
    view: SharedView,
    committer: Committer,
}

/// What readers see: everything up to a finished commit. `None` once closed.
type SharedView = Arc<RwLock<Option<Arc<View>>>>;

struct View {
    snapshot: Snapshot,
    keyspaces: Keyspaces,
}

type Keyspaces = [fjall::Keyspace; Keyspace::ALL.len()];

impl FjallStore {
    /// Opens the store in `dir`, creating it when missing; then replays its journals.
    ///
    /// Blocking, for seconds after a crash under load. `dir` must belong to the store alone; use
    /// [`DataDir`](crate::DataDir) to know that it is the right one.
    pub fn open(dir: &Path, config: &FjallConfig) -> Result<Self, StoreError> {
        if is_missing_or_empty(dir).map_err(|e| StoreError::io("read", dir, e))? {
            create(dir, config)?;
        }
        fjall_check::check(dir)?;
        let db = open_database(dir, config)?;
        let missing: Vec<_> = Keyspace::ALL.into_iter().filter(|k| !db.keyspace_exists(k.name())).collect();
        if let Some(gone) = missing.iter().find(|keyspace| keyspace.is_original()) {
            return Err(corrupt(dir, format!("keyspace {} is gone", gone.name())));
        }
        let keyspaces = open_keyspaces(&db).map_err(|e| error("open", dir, e))?;
        if !missing.is_empty() {
            // The directory is of an earlier release, which does not mind what it does not know.
            db.persist(PersistMode::SyncAll).map_err(|e| error("upgrade", dir, e))?;
        }
        let view = SharedView::default();
        let engine = FjallEngine { db, keyspaces, view: Arc::clone(&view), dir: dir.into() };
        engine.publish();
        let committer = Committer::start(engine, config.flush_interval)
            .map_err(|e| StoreError::io("start the commit thread of", dir, e))?;
        Ok(Self { dir: dir.into(), view, committer })
    }

    fn view(&self) -> Result<Arc<View>, StoreError> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.clone().ok_or(StoreError::Closed)
    }
}

impl std::fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Store for FjallStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let view = self.view()?;
        let value = view.snapshot.get(&view.keyspaces[keyspace.index()], key);
        let value = value.map_err(|e| read_error("read", &self.dir, e))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let view = self.view()?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = (start, Bound::<&[u8]>::Unbounded);
        let mut entries = Vec::new();
        let mut bytes = 0;
        let found = view.snapshot.range::<&[u8], _>(&view.keyspaces[keyspace.index()], range);
        // An entry beyond the limit is not read: it may be damaged.
        for guard in found.take(limit.entries_max) {
            let (key, value) = guard.into_inner().map_err(|e| read_error("scan", &self.dir, e))?;
            let entry_len = key.len() + value.len();
            if !limit.admits(entries.len(), bytes, entry_len) {
                break;
            }
            bytes += entry_len;
            entries.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
        }
        Ok(entries)
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        self.committer.commit(batch, durability).await
    }

    fn health(&self) -> Health {
        Health { poisoned: self.committer.poisoned_by(), free_bytes: free_bytes(&self.dir) }
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.committer.close().await
    }
}

/// The commit thread's side; dropping it closes the database.
struct FjallEngine {
    db: Database,
    keyspaces: Keyspaces,
    view: SharedView,
    dir: PathBuf,
}

impl FjallEngine {
    /// Lets readers see everything committed so far.
    fn publish(&self) {
        let view = View { snapshot: self.db.snapshot(), keyspaces: self.keyspaces.clone() };
        self.set_view(Some(Arc::new(view)));
    }

    fn set_view(&self, view: Option<Arc<View>>) {
        let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let replaced = std::mem::replace(&mut *current, view);
        // Freeing a snapshot may clean up after it; readers need not wait for that.
        drop(current);
        drop(replaced);
    }

    /// Waits until the engine's flushes and compactions have caught up enough for one more group.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        let is_full = |keyspace: &fjall::Keyspace| {
            keyspace.sealed_memtable_count() > SEALED_MEMTABLES_MAX
                || keyspace.l0_table_count() >= L0_TABLES_MAX
        };
        while self.keyspaces.iter().any(is_full) {
            // Writing nothing out is the way to ask whether a background thread has failed.
            self.persist(PersistMode::Buffer)?;
            std::thread::sleep(ROOM_POLL);
        }
        Ok(())
    }

    fn persist(&self, mode: PersistMode) -> Result<(), StoreError> {
        self.db.persist(mode).map_err(|e| error("flush", &self.dir, e))
    }
}

impl Engine for FjallEngine {
    fn apply(&mut self, group: &Batch, durability: Durability) -> Result<(), StoreError> {
        self.wait_for_room()?;
        let mut batch = self.db.batch().durability(Some(match durability {
            Durability::Memory | Durability::Interval => PersistMode::Buffer,
            // fdatasync: it includes the file's length, and of the rest of the metadata recovery reads none.
            Durability::Fsync => PersistMode::SyncData,
        }));
        for (keyspace, key, value) in group.writes() {
            let keyspace = &self.keyspaces[keyspace.index()];
            match value {
                Some(value) => batch.insert(keyspace, &key[..], &value[..]),
                None => batch.remove(keyspace, &key[..]),
            }
        }
        batch.commit().map_err(|e| error("write to", &self.dir, e))?;
        self.publish();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.persist(PersistMode::SyncAll)
    }
}

impl Drop for FjallEngine {
    fn drop(&mut self) {
        self.set_view(None);
    }
}

/// What a process without privileges may still write to the file system of `dir`.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Elsewhere nobody is asked.
#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}

fn is_missing_or_empty(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// Creates an empty database beside `dir` and renames it, so that `dir` never holds half of one.
fn create(dir: &Path, config: &FjallConfig) -> Result<(), StoreError> {
    let mut staging = dir.as_os_str().to_owned();
    staging.push(".new");
    let staging = PathBuf::from(staging);
    let io_error = |what| move |e| StoreError::io(what, dir, e);

    if staging.try_exists().map_err(io_error("create"))? {
        fs::remove_dir_all(&staging).map_err(io_error("remove what is left of an earlier attempt at"))?;
    }
    let db = open_database(&staging, config)?;
    open_keyspaces(&db).map_err(|e| error("create", dir, e))?;
    db.persist(PersistMode::SyncAll).map_err(|e| error("create", dir, e))?;
    drop(db);

    if dir.try_exists().map_err(io_error("create"))? {
        fs::remove_dir(dir).map_err(io_error("replace the empty directory"))?;
    }
    fs::rename(&staging, dir).map_err(io_error("create"))?;
    crate::data_dir::sync_parent(dir).map_err(io_error("flush the directory above"))
}

fn open_database(dir: &Path, config: &FjallConfig) -> Result<Database, StoreError> {
    let builder = Database::builder(dir)
        .worker_threads(WORKER_THREADS)
        .max_cached_files(Some(OPEN_FILES_MAX))
        .cache_size(config.cache_bytes_max)
        .max_journaling_size(config.journal_bytes_max.max(FjallConfig::JOURNAL_BYTES));
    // The engine asserts some of what it reads. Nothing of an attempt that failed is used again.
    match catch_unwind(AssertUnwindSafe(|| builder.open())) {
        Ok(Ok(db)) => Ok(db),
        // With a database that is there, the system has no reason to lack what the engine looks for in it.
        Ok(Err(fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e))))
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) =>
        {
            Err(corrupt(dir, e.to_string()))
        }
        Ok(Err(e)) => Err(error("open", dir, e)),
        Err(_) => Err(corrupt(dir, "the engine panicked".into())),
    }
}

fn corrupt(dir: &Path, detail: String) -> StoreError {
    StoreError::Corrupt { what: "opening", path: dir.into(), detail: detail.into() }
}

fn open_keyspaces(db: &Database) -> fjall::Result<Keyspaces> {
    let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
    let [records, meta, hints, tombstones] =
        Keyspace::ALL.map(|keyspace| db.keyspace(keyspace.name(), options));
    Ok([records?, meta?, hints?, tombstones?])
}

/// Of a read. What the disk does not give back, after the system has tried for some time, is as lost as what has a wrong checksum:
/// to be had from the other replicas only.
fn read_error(what: &'static str, dir: &Path, failed: fjall::Error) -> StoreError {
    use fjall::{Error, LsmError};
    if let Error::Io(e) | Error::Storage(LsmError::Io(e)) = &failed
        && e.raw_os_error() == Some(EIO)
    {
        return StoreError::Corrupt { what, path: dir.into(), detail: e.to_string().into() };
    }
    error(what, dir, failed)
}

fn error(what: &'static str, dir: &Path, error: fjall::Error) -> StoreError {
    use fjall::{Error, LsmError};
    // Foreign, open enums: whatever is neither of these is damage.
    if let Error::Io(e) | Error::Storage(LsmError::Io(e)) = error {
        return StoreError::io(what, dir, e);
    }
    if let Error::Poisoned = error {
        let reason = "a flush or compaction in the background failed, for lack of room or because a file is damaged; \
                      the log says more. If it fails again after a restart with room, move the data directory away and start \
                      without it: where keys have other owners, those give back what it held";
        return StoreError::Poisoned { reason: reason.into() };
    }
    if let Error::Locked = error {
        return StoreError::InUse { path: dir.into() };
    }
    StoreError::Corrupt { what, path: dir.into(), detail: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_does_not_give_back_is_damaged_and_other_failures_of_reads_and_writes_are_not() {
        let of = |number| io::Error::from_raw_os_error(number);
        let (unreadable, too_many_files) = (EIO, rustix::io::Errno::MFILE.raw_os_error());
        for failed in
            [fjall::Error::Io(of(unreadable)), fjall::Error::Storage(fjall::LsmError::Io(of(unreadable)))]
        {
            let error = read_error("read", Path::new("data"), failed);
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
        let other = read_error("read", Path::new("data"), fjall::Error::Io(of(too_many_files)));
        assert!(matches!(other, StoreError::Io { .. }), "{other}");
        let written = error("write to", Path::new("data"), fjall::Error::Io(of(unreadable)));
        assert!(matches!(written, StoreError::Io { .. }), "{written}");
    }
}
