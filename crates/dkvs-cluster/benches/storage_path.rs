//! What the storage path costs: durable writes a second through the server's one writer, beside the bare engine and beside
//! the disk.
//!
//! ```text
//!   writers ──> Replica ──> one writer ──> FjallStore ──> commit thread ──> engine ──> fdatasync     "server"
//!                                            one thread, batches as long ──> engine ──> fdatasync     "engine"
//!                                                              a small append ──> fdatasync           "disk"
//! ```
//! `cargo bench -p dkvs-cluster --bench storage_path`, some minutes. The machine's speed drifts, so in each round the three
//! run right after one another, and what counts is the median of the rounds' ratios. The engine gets batches of the
//! length that the server's batches had on average in the same round, with entries of the same length.
//!
//! `cargo bench -p dkvs-cluster --bench storage_path -- memory` leaves out the fdatasync of server and engine, so that what
//! the processor does is the whole of it. Numbers choose other counts of writers.
//!
//! Both sides pay for making their keys. The server's side also pays for its writers, one task and one look at the clock for each
//! put, and for counting what is committed; the engine's side has one thread and looks at the clock once for each batch.
//!
//! What it leaves out: the network, the coordinator, and records that exist: every put is of a new key.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dkvs_cluster::write_path::WritePath;
use dkvs_core::record::OpId;
use dkvs_storage::{
    Batch, Durability, FjallConfig, FjallStore, Health, Keyspace, ScanLimit, Start, Store, StoreError,
};
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// How many write at once, if nothing else is said.
const WRITERS: [usize; 4] = [1, 8, 64, 512];
const ROUNDS: usize = 7;
/// How long each of the three runs in a round.
const PHASE: Duration = Duration::from_millis(1_500);
/// How long the process is watched for being idle before a phase, and how often at most.
const SETTLE_STEP: Duration = Duration::from_millis(50);
const SETTLE_STEPS_MAX: usize = 40;
const VALUE: &[u8] = &[b'v'; 100];
/// What the disk is asked to append: about a page of journal.
const APPEND: &[u8] = &[b'a'; 4_096];
/// Of a key of the store before the key itself: its partition.
const PARTITION_LEN: usize = 2;

type AnyError = Box<dyn std::error::Error>;

/// A store that counts what is committed to it.
struct Counting {
    store: FjallStore,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    commits: AtomicU64,
    records: AtomicU64,
    record_bytes: AtomicU64,
}

impl Counts {
    fn add(&self, batch: &Batch) {
        let (mut records, mut bytes) = (0, 0);
        for (_, key, value) in batch.writes().filter(|(keyspace, ..)| *keyspace == Keyspace::Records) {
            records += 1;
            bytes += key.len() + value.map_or(0, Bytes::len);
        }
        self.records.fetch_add(records, Ordering::Relaxed);
        self.record_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Commits, records and bytes so far.
    fn read(&self) -> [u64; 3] {
        [&self.commits, &self.records, &self.record_bytes].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Store for Counting {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(keyspace, key)
    }

    fn scan(
        &self,
        keyspace: Keyspace,
        after: Option<&[u8]>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.store.scan(keyspace, after, limit)
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        self.counts.add(&batch);
        self.store.commit(batch, durability).await
    }

    fn health(&self) -> Health {
        self.store.health()
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

/// What a phase did.
struct Phase {
    /// Entries durable in a second.
    rate: f64,
    /// Of one call, in microseconds.
    p50: f64,
    p99: f64,
    /// This process's processor time for an entry, in microseconds; the engine's threads in the background included.
    cpu: f64,
}

/// When a phase began, by the clock on the wall and by the one of this process's processor time.
struct Begin(Instant, Duration);

impl Begin {
    fn now() -> Self {
        Self(Instant::now(), cpu_time())
    }

    fn phase(&self, entries: u64, mut calls: Vec<Duration>) -> Phase {
        let (elapsed, cpu) = (self.0.elapsed(), cpu_time().saturating_sub(self.1));
        calls.sort_unstable();
        let at = |percent: usize| {
            let place = calls.len() * percent / 100;
            calls.get(place).map_or(f64::NAN, |call| call.as_secs_f64() * 1e6)
        };
        let entries = entries as f64;
        Phase {
            rate: entries / elapsed.as_secs_f64(),
            p50: at(50),
            p99: at(99),
            cpu: cpu.as_secs_f64() * 1e6 / entries,
        }
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Waits until the engines have done most of what they do in the background, which is not the next phase's to pay.
fn settle() {
    for _ in 0..SETTLE_STEPS_MAX {
        let before = cpu_time();
        std::thread::sleep(SETTLE_STEP);
        if cpu_time().saturating_sub(before) < SETTLE_STEP / 20 {
            return;
        }
    }
}

/// The server's side: a write path that stays open over all rounds.
struct Server {
    runtime: Runtime,
    path: WritePath<Counting>,
    counts: Arc<Counts>,
    /// Numbers the puts.
    next: Arc<AtomicU64>,
}

impl Server {
    fn open(dir: &Path, durability: Durability) -> Result<Self, AnyError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let counts = Arc::<Counts>::default();
        let store =
            Counting { store: FjallStore::open(dir, &FjallConfig::default())?, counts: counts.clone() };
        let wall = Arc::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
        let path = runtime.block_on(WritePath::open(store, Start::New, durability, wall, 1))?;
        Ok(Self { runtime, path, counts, next: Arc::default() })
    }

    /// Writes from so many tasks at once. Beside the phase, the average batch: its entries, and the bytes of each.
    fn run(&self, writers: usize) -> Result<(Phase, usize, usize), AnyError> {
        let before = self.counts.read();
        let begin = Begin::now();
        let end = begin.0 + PHASE;
        let calls = self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..writers {
                tasks.spawn(write_until(end, self.path.clone(), self.next.clone()));
            }
            let mut calls = Vec::new();
            while let Some(done) = tasks.join_next().await {
                calls.extend(done?.map_err(|error| error.to_string())?);
            }
            Ok::<_, AnyError>(calls)
        })?;
        let after = self.counts.read();
        let [commits, records, bytes] = [0, 1, 2].map(|count: usize| after[count] - before[count]);
        let average = |sum: u64, count: u64| usize::try_from((sum + count / 2) / count.max(1));
        Ok((begin.phase(records, calls), average(records, commits)?, average(bytes, records)?))
    }
}

async fn write_until(
    end: Instant,
    path: WritePath<Counting>,
    next: Arc<AtomicU64>,
) -> Result<Vec<Duration>, dkvs_cluster::ReplicaError> {
    let mut calls = Vec::new();
    let mut start = Instant::now();
    while start < end {
        let sequence = next.fetch_add(1, Ordering::Relaxed);
        let key = format!("{sequence:016}").into();
        path.put(key, Bytes::from_static(VALUE), OpId { client: 1, sequence }).await?;
        let done = Instant::now();
        calls.push(done - start);
        start = done;
    }
    Ok(calls)
}

/// The engine alone, opened as the store opens it.
struct Engine {
    db: Database,
    records: fjall::Keyspace,
    persist: PersistMode,
    next: u64,
}

impl Engine {
    fn open(dir: &Path, persist: PersistMode) -> Result<Self, AnyError> {
        let db = Database::builder(dir)
            .worker_threads(3)
            .max_cached_files(Some(256))
            .cache_size(32 << 20)
            .max_journaling_size(128 << 20)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(16 << 20);
        let records = db.keyspace("records", options)?;
        Ok(Self { db, records, persist, next: 0 })
    }

    fn run(&mut self, batch_len: usize, entry_len: usize) -> Result<Phase, AnyError> {
        let begin = Begin::now();
        let (mut entries, mut calls) = (0, Vec::new());
        let mut value = vec![b'v'; entry_len];
        while begin.0.elapsed() < PHASE {
            let call = Instant::now();
            let mut batch = self.db.batch().durability(Some(self.persist));
            for _ in 0..batch_len {
                let key = self.next_key();
                value.truncate(entry_len.saturating_sub(key.len()));
                batch.insert(&self.records, &key[..], &value[..]);
            }
            batch.commit()?;
            calls.push(call.elapsed());
            entries += batch_len as u64;
        }
        Ok(begin.phase(entries, calls))
    }

    /// In no order, as partitions are.
    fn next_key(&mut self) -> Vec<u8> {
        let partition = self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let mut key = partition[..PARTITION_LEN].to_vec();
        key.extend_from_slice(format!("{:016}", self.next).as_bytes());
        self.next += 1;
        key
    }
}

/// The disk alone.
fn sync(file: &mut File) -> Result<Phase, AnyError> {
    let begin = Begin::now();
    let mut calls = Vec::new();
    while begin.0.elapsed() < PHASE / 2 {
        let call = Instant::now();
        file.write_all(APPEND)?;
        file.sync_data()?;
        calls.push(call.elapsed());
    }
    Ok(begin.phase(calls.len() as u64, calls))
}

/// One line of the table, of one round or of all.
struct Row {
    batch_len: usize,
    server: Phase,
    engine: Phase,
    disk: Phase,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(text: &str) {
    // Nobody may be listening any more.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn print_table(writers: &[usize], rounds: &[Vec<Row>]) {
    print(
        "| writers | batch | server, writes/s | engine, items/s | ratio (lowest to highest) | server p50 / p99 µs | engine p50 / p99 µs | ratio of p50 | server / engine cpu µs | fdatasync p50 / p99 µs |",
    );
    print("|---|---|---|---|---|---|---|---|---|---|");
    for (place, writers) in writers.iter().enumerate() {
        let of = |value: fn(&Row) -> f64| rounds.iter().map(|rows| value(&rows[place])).collect::<Vec<_>>();
        let rates = of(|row| row.server.rate / row.engine.rate);
        let (low, high) = rates.iter().fold((f64::MAX, f64::MIN), |(l, h), r| (l.min(*r), h.max(*r)));
        print(&format!(
            "| {writers} | {:.0} | {:.0} | {:.0} | {:.2} ({low:.2} to {high:.2}) | {:.0} / {:.0} | {:.0} / {:.0} | {:.2} | {:.1} / {:.1} | {:.0} / {:.0} |",
            median(of(|row| row.batch_len as f64)),
            median(of(|row| row.server.rate)),
            median(of(|row| row.engine.rate)),
            median(rates),
            median(of(|row| row.server.p50)),
            median(of(|row| row.server.p99)),
            median(of(|row| row.engine.p50)),
            median(of(|row| row.engine.p99)),
            median(of(|row| row.server.p50 / row.engine.p50)),
            median(of(|row| row.server.cpu)),
            median(of(|row| row.engine.cpu)),
            median(of(|row| row.disk.p50)),
            median(of(|row| row.disk.p99)),
        ));
    }
}

fn main() -> Result<(), AnyError> {
    // `cargo test --benches` runs this too, and only wants to know that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    // Beside the build, on a disk; what the system calls temporary may be in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let chosen: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let writers = if chosen.is_empty() { WRITERS.to_vec() } else { chosen };
    let (durability, persist) = match std::env::args().any(|argument| argument == "memory") {
        true => (Durability::Memory, PersistMode::Buffer),
        false => (Durability::Fsync, PersistMode::SyncData),
    };
    let server = Server::open(&dir.path().join("server"), durability)?;
    let mut engine = Engine::open(&dir.path().join("engine"), persist)?;
    let mut file = File::create(dir.path().join("append"))?;

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut rows = Vec::new();
        for &writers in &writers {
            settle();
            let (served, batch_len, entry_len) = server.run(writers)?;
            settle();
            let engine = engine.run(batch_len, entry_len)?;
            rows.push(Row { batch_len, server: served, engine, disk: sync(&mut file)? });
        }
        rounds.push(rows);
    }
    print_table(&writers, &rounds);

    server.runtime.block_on(server.path.close())?;
    drop(engine);
    Ok(dir.close()?)
}
