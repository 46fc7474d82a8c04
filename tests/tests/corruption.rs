//! A flipped byte in any file of a data directory: the server refuses to start and says which file and what to do, or it
//! starts. Nothing wrong is ever served, by it or by the others.
//!
//! Three real servers hold data, some of it in tables and some in journals. One is stopped, cleanly or with `kill -9`, and
//! a copy of its directory is damaged again and again. After each start keys are read through it and through another.
//! `DKVS_CORRUPTION_SEED` chooses the same files and bytes again; `DKVS_CORRUPTION_PLACES` asks for more of each kind.
//!
//! Most of those bytes nobody reads, so another test flips one that is read for certain, within a value, and wants it repaired.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Partition};
use dkvs_storage::{DataDir, Keyspace};
use dkvs_tests::eventually;
use dkvs_tests::fleet::{Fleet, RunDirectory};
use dkvs_tests::processes::release_binary;
use fjall::KeyspaceCreateOptions;
use fjall::compaction::Leveled;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const SERVERS: usize = 3;
/// The one whose files are damaged.
const DAMAGED: usize = 0;
/// The one that is read through beside it.
const BESIDE: usize = 1;
/// The one that misses some writes.
const LAGGING: usize = 2;
/// Damaged places of each kind of file.
const PLACES: usize = 8;
/// When the engine makes a table: early, so that little data makes many.
const TABLE_BYTES: u64 = 64 * 1024;
/// Keys that are in tables by the time the servers stop, and keys that only two servers have the latest value of.
const KEYS: usize = 300;
const RECENT_PER_CASE: usize = 4;
/// Keys written last.
const LAST: usize = 10;
/// Keys of [`KEYS`] that are read after each start.
const SAMPLE: usize = 60;
const KEYS_AT_ONCE: usize = 16;

/// A key, and its value unless it was deleted.
type Entry = (String, Option<Bytes>);
type Content = BTreeMap<String, Option<Bytes>>;

/// Every kind of file, by the beginning and the end of its path in the data directory.
const KINDS: [(&str, &str); 11] = [
    ("LOCK", ""),
    ("OWNER", ""),
    ("FORMAT", ""),
    ("CLEAN", ""),
    ("RING", ""),
    ("store/lock", ""),
    ("store/version", ""),
    ("store/", ".jnl"),
    ("store/keyspaces/", "/current"),
    ("store/keyspaces/", "/v"),
    TABLES,
];

const TABLES: (&str, &str) = ("store/keyspaces/", "/tables/");

fn is_of(path: &str, (start, end): (&str, &str)) -> bool {
    // A version and a table end with a number.
    let numberless = path.trim_end_matches(|c: char| c.is_ascii_digit());
    let ends = if end.is_empty() { path == start } else { path.ends_with(end) || numberless.ends_with(end) };
    path.starts_with(start) && ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_any_file_is_refused_or_harmless_and_nothing_wrong_is_served() {
    let seed = from_env("DKVS_CORRUPTION_SEED").unwrap_or_else(rand::random);
    let count = from_env("DKVS_CORRUPTION_PLACES").map_or(PLACES, |count| usize::try_from(count).unwrap());
    let directory = RunDirectory::new("corruption", seed);
    say(&format!("corruption: DKVS_CORRUPTION_SEED={seed}, below {}", directory.path().display()));
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::new(&server_binary(), directory.path(), SERVERS, "");
    let recent = RECENT_PER_CASE * count * KINDS.len();
    let mut world = World::prepare(&mut fleet, directory.path(), recent, small_tables).await;

    let (mut started, mut refused) = (0, 0);
    for kind in KINDS {
        for place in 0..count {
            // Every kind of stop for every kind of file; only a clean one leaves a marker.
            let clean = place % 2 == 0 || kind.0 == "CLEAN";
            let what = world.damage(&fleet, kind, clean, &mut random);
            if world.examine(&mut fleet, &what, &mut random).await {
                started += 1;
            } else {
                refused += 1;
            }
        }
    }
    say(&format!("corruption: {started} starts, {refused} refusals"));
    assert!(
        started > 0 && refused > 0,
        "{started} starts and {refused} refusals: what is damaged is not what is read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_of_a_value_in_a_table_is_found_by_reads_and_repaired_from_the_other_owners() {
    for clean in [true, false] {
        damage_a_value(clean, true, "scrub_bytes_per_s = 0\nrepair_interval_ms = 0").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_of_a_value_in_a_table_is_found_with_nobody_reading_and_repaired() {
    for clean in [true, false] {
        let settings = "scrub_bytes_per_s = 1000000000\nscrub_pause_ms = 100\nrepair_interval_ms = 200";
        damage_a_value(clean, false, settings).await;
    }
}

/// The byte hides all values in its block. Has them read, or not, and wants all of them repaired.
async fn damage_a_value(clean: bool, read_first: bool, settings: &str) {
    let directory = RunDirectory::new("corruption-value", u64::from(clean) + 2 * u64::from(read_first));
    let mut fleet = Fleet::new(&server_binary(), directory.path(), SERVERS, settings);
    // A compaction that met it would end all writes.
    let strategy = || Arc::new(Leveled::default().with_l0_threshold(u8::MAX));
    let options = || small_tables().compaction_strategy(strategy());
    let world = World::prepare(&mut fleet, directory.path(), 0, options).await;
    let what = world.damage_value(&fleet, clean);
    let all: Vec<Entry> = world.everywhere.clone().into_iter().chain(world.last.clone()).collect();
    let hidden = hidden(&fleet.data(DAMAGED), &directory.path().join("looked at"), &all);
    assert!(hidden > 0, "{what} hides nothing");
    fleet.start(&[DAMAGED]);
    if read_first {
        read(&world.damaged, &all, SERVERS, &what).await;
    }
    let server = fleet.ring().servers().indices().nth(DAMAGED).unwrap();
    eventually(&format!("the repair of {hidden} values hidden by {what}"), async || {
        let status = world.damaged.status(server).await.ok()?;
        (status.damaged_found == hidden && status.damaged_waiting == 0).then_some(())
    })
    .await;
    // What it holds now, with nobody to help it.
    fleet.kill(&[BESIDE, LAGGING]);
    read(&world.damaged, &all, 1, &what).await;
}

/// How many of these keys cannot be read from a data directory, by a copy of it.
fn hidden(data: &Path, looked_at: &Path, all: &[Entry]) -> u64 {
    copy(data, looked_at);
    let engine = fjall::Database::builder(looked_at.join("store")).open().unwrap();
    let records = engine.keyspace(Keyspace::Records.name(), KeyspaceCreateOptions::default).unwrap();
    let is_hidden = |(key, _): &&Entry| {
        let partition = Partition::of_key(key.as_bytes()).number().to_be_bytes();
        records.get([&partition, key.as_bytes()].concat()).is_err()
    };
    all.iter().filter(is_hidden).count() as u64
}

/// What the servers hold, and how the damaged one's directory looked before.
struct World {
    /// On all servers.
    everywhere: Content,
    /// The lagging server has older values of these. Each is read once: a read brings that server up to date.
    recent: Vec<Entry>,
    /// Written last, on all servers.
    last: Content,
    stopped: PathBuf,
    killed: PathBuf,
    /// Asks the damaged server only, and the one beside it only.
    damaged: Client,
    beside: Client,
}

impl World {
    async fn prepare(
        fleet: &mut Fleet,
        directory: &Path,
        recent_count: usize,
        options: impl Fn() -> KeyspaceCreateOptions,
    ) -> Self {
        for server in fleet.all() {
            let (data, _) = DataDir::open(&fleet.data(server), &fleet.owner(server)).unwrap();
            let engine = fjall::Database::builder(data.store_path()).open().unwrap();
            let keyspaces = Keyspace::ALL.map(|keyspace| engine.keyspace(keyspace.name(), &options).unwrap());
            engine.persist(fjall::PersistMode::SyncAll).unwrap();
            drop((keyspaces, engine));
        }
        fleet.start(&fleet.all());
        let client = fleet.client(patient()).await;
        let old = |key: String| (key.clone(), Some(Bytes::from(format!("{key}, before ").repeat(30))));
        let new = |key: String| (key.clone(), Some(Bytes::from(format!("{key}, after ").repeat(40))));
        let keys = |name: &'static str, count: usize| (0..count).map(move |i| format!("{name} {i}"));

        let mut everywhere: Content = keys("key", KEYS).map(old).collect();
        write(&client, &everywhere, 3).await;
        let mut changed: Content = keys("key", KEYS).skip(1).step_by(2).map(new).collect();
        changed.extend(keys("key", KEYS).step_by(5).map(|key| (key, None)));
        write(&client, &changed, 3).await;
        everywhere.extend(changed);

        write(&client, &keys("recent", recent_count).map(old).collect(), 3).await;
        fleet.kill(&[LAGGING]);
        let recent: Content = keys("recent", recent_count).map(new).collect();
        write(&client, &recent, 2).await;
        fleet.start(&[LAGGING]);

        let last: Content = keys("last", LAST).map(old).collect();
        write(&client, &last, 3).await;
        let (stopped, killed) = (directory.join("stopped"), directory.join("killed"));
        fleet.kill(&[DAMAGED]);
        copy(&fleet.data(DAMAGED), &killed);
        fleet.start(&[DAMAGED]);
        let status = fleet.terminate(DAMAGED);
        assert!(status.success(), "a clean stop, not {status}");
        copy(&fleet.data(DAMAGED), &stopped);
        Self {
            everywhere,
            recent: recent.into_iter().collect(),
            last,
            stopped,
            killed,
            damaged: fleet.client_of(DAMAGED, patient()).await,
            beside: fleet.client_of(BESIDE, patient()).await,
        }
    }

    /// Puts a copy in place of the directory.
    fn put_back(&self, fleet: &Fleet, clean: bool) -> PathBuf {
        let data = fleet.data(DAMAGED);
        fs::remove_dir_all(&data).unwrap();
        copy(if clean { &self.stopped } else { &self.killed }, &data);
        data
    }

    /// Puts a copy in place of the directory, with a byte flipped in a file of this kind. Says which.
    fn damage(&self, fleet: &Fleet, kind: (&str, &str), clean: bool, random: &mut StdRng) -> String {
        let data = self.put_back(fleet, clean);
        let vouched_for = kind.0.starts_with("store/") || kind.0 == "LOCK";
        if clean && !vouched_for {
            vouch(fleet);
        }
        let files: Vec<String> = files(&data).into_iter().filter(|file| is_of(file, kind)).collect();
        let file =
            files.choose(random).unwrap_or_else(|| panic!("there is no {kind:?} in {}", data.display()));
        let path = data.join(file);
        let mut bytes = fs::read(&path).unwrap();
        let at = match bytes.len() {
            0 => {
                bytes.push(0);
                0
            }
            // At the ends is what says where everything else is.
            len if random.random_bool(0.5) => len - random.random_range(1..=len.min(400)),
            len => random.random_range(0..len),
        };
        bytes[at] ^= random.random_range(1..=u8::MAX);
        overwrite(&path, &bytes);
        if clean && vouched_for {
            vouch(fleet);
        }
        told(at, file, bytes[at], clean)
    }

    /// Puts a copy in place of the directory, with a byte flipped in the middle of a value that stands in a table. Tables are not
    /// compressed, so a value can be found in them.
    fn damage_value(&self, fleet: &Fleet, clean: bool) -> String {
        let data = self.put_back(fleet, clean);
        let tables = files(&data).into_iter().filter(|file| is_of(file, TABLES));
        for file in tables {
            let mut bytes = fs::read(data.join(&file)).unwrap();
            let place = |value: &Bytes| bytes.windows(value.len()).position(|window| window == value);
            let found =
                self.everywhere.values().flatten().find_map(|value| Some(place(value)? + value.len() / 2));
            let Some(at) = found else { continue };
            bytes[at] ^= 1;
            overwrite(&data.join(&file), &bytes);
            if clean {
                vouch(fleet);
            }
            return told(at, &file, bytes[at], clean);
        }
        panic!("no value is in a table below {}", data.display());
    }

    /// Starts the damaged server and reads. Returns whether it started.
    async fn examine(&mut self, fleet: &mut Fleet, what: &str, random: &mut StdRng) -> bool {
        let log_start = fleet.log_len(DAMAGED);
        fleet.launch(DAMAGED);
        let status = fleet.wait_ready(DAMAGED);
        let recent = self.recent.split_off(self.recent.len() - RECENT_PER_CASE);
        let everywhere = Vec::from_iter(self.everywhere.clone());
        let sample: Vec<Entry> = everywhere.sample(random, SAMPLE).cloned().collect();
        match status {
            Ok(()) => {
                // First what it says alone, before any other request can repair it.
                let alone: Vec<Entry> = sample.iter().cloned().chain(self.last.clone()).collect();
                read(&self.damaged, &alone, 1, what).await;
                read(&self.damaged, &recent, 2, what).await;
            }
            Err(status) => check_refusal(status.code(), fleet, log_start, what),
        }
        read(&self.beside, &[sample, recent].concat(), 2, what).await;
        let log = fleet.log_since(DAMAGED, log_start);
        assert!(!log.contains("panicked"), "{what}: {log}");
        if let Some(status) = fleet.ended(DAMAGED) {
            panic!("{what}: the server ended by itself with {status}: {log}");
        }
        fleet.kill(&[DAMAGED]);
        status.is_ok()
    }
}

/// A copy is never clean, and neither is what was written to. Disks do not do either when they fail: so the directory is
/// vouched for once more, with the damage where that can be.
fn vouch(fleet: &Fleet) {
    let (data, _) = DataDir::open(&fleet.data(DAMAGED), &fleet.owner(DAMAGED)).unwrap();
    data.mark_clean().unwrap();
}

/// Writes a file anew in its place, as a disk does.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// What was damaged, for whoever has to find out why.
fn told(at: usize, file: &str, now: u8, clean: bool) -> String {
    let stop = if clean { "a clean stop" } else { "a kill" };
    format!("byte {at} of {file} (now {now}), damaged after {stop}")
}

/// Tables that little data fills.
fn small_tables() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(TABLE_BYTES)
}

fn server_binary() -> PathBuf {
    let binary = std::env::var_os("DKVS_CORRUPTION_SERVER").map(PathBuf::from);
    binary.unwrap_or_else(|| release_binary("dkvs-server"))
}

/// A server that does not start says why, where, and what to do, and nothing else.
fn check_refusal(code: Option<i32>, fleet: &Fleet, log_start: u64, what: &str) {
    const REMEDIES: [&str; 5] =
        ["empty directory", "an empty one", "remove the file", "newer dkvs-server", "its own directory"];
    let log = fleet.log_since(DAMAGED, log_start);
    assert_eq!(code, Some(1), "{what}: {log}");
    let error = log.lines().find(|line| line.starts_with("error: "));
    let error = error.unwrap_or_else(|| panic!("{what}: no error is told: {log}"));
    let data = fleet.data(DAMAGED);
    assert!(error.contains(&*data.to_string_lossy()), "{what}: the message does not say where: {error}");
    assert!(REMEDIES.iter().any(|remedy| error.contains(remedy)), "{what}: and what to do now? {error}");
    assert!(!log.contains("backtrace"), "{what}: {log}");
}

/// Reads keys until they are answered: what is damaged is refused until it is repaired.
async fn read(client: &Client, expected: &[Entry], r: usize, what: &str) {
    let reads = expected.iter().map(|(key, value)| async move {
        let start = Instant::now();
        loop {
            match client.get(key.clone()).n(SERVERS).r(r).siblings().await {
                Ok(got) => {
                    let found: Vec<&Bytes> = got.siblings().iter().flatten().collect();
                    let expected: Vec<&Bytes> = value.iter().collect();
                    assert!(found == expected, "{what}: {key:?} with r = {r} is {found:?}, not {expected:?}");
                    return;
                }
                Err(error) => assert!(start.elapsed() < dkvs_tests::PATIENCE, "{what}: {key:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let reads: Vec<_> = reads.collect();
    futures::stream::iter(reads).buffer_unordered(KEYS_AT_ONCE).collect::<Vec<()>>().await;
}

async fn write(client: &Client, content: &Content, w: usize) {
    let writes = content.iter().map(|(key, value)| {
        let put = match value {
            Some(value) => client.put(key.clone(), value.clone()),
            None => client.delete(key.clone()),
        };
        async move { put.n(SERVERS).w(w).await.map(drop).unwrap() }
    });
    let writes: Vec<_> = writes.collect();
    futures::stream::iter(writes).buffer_unordered(KEYS_AT_ONCE).collect::<Vec<()>>().await;
}

fn patient() -> ClientConfig {
    ClientConfig {
        timeout: Duration::from_secs(10),
        silence_max: dkvs_tests::SILENCE_MAX,
        ..ClientConfig::default()
    }
}

/// Every file below `directory`, relative to it, in order.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                pending.push(entry);
            } else {
                found.push(entry.strip_prefix(directory).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no whole number")))
}

/// Tells whoever watches.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
