//! What comparisons of servers cost: the bytes of a round between servers that agree, and of one that finds a hundred keys that
//! differ; and what gets suffer while a server that lost all it had is filled again: gets of keys that all owners hold, and gets of keys
//! that it may lack, which make it take them before they answer.
//!
//! ```sh
//! unshare --net sh -c 'ip link set lo up; cargo bench --offline -p dkvs-tests --bench repair'
//! ```
//! Bytes are those of the loopback interface, with the headers of IP, UDP and TCP, so nothing else should run on it: hence the
//! network namespace. `KEYS=100000` makes it shorter.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dkvs::{ClientConfig, ServerIndex};
use dkvs_storage::Keyspace;
use dkvs_tests::{Cluster, Plan, TestClient};
use futures::{StreamExt, stream};

/// Puts at one time while keys are written, and getters at one time while gets are measured.
const WRITERS: usize = 256;
const GETTERS: usize = 8;

/// Bytes of a value.
const VALUE_LEN: usize = 100;

/// Keys that are made to differ.
const DIFFERING: usize = 100;

/// Keys that are written when the server is empty, and so are held by all.
const HELD: usize = 10_000;

/// Time between regular rounds, and how long rounds of servers that agree are counted.
const INTERVAL: Duration = Duration::from_secs(1);
const AGREED_ROUNDS: u32 = 20;

/// How long gets are measured.
const GETS: Duration = Duration::from_secs(15);

/// Longer than a benchmark.
const NEVER: Duration = Duration::from_secs(24 * 3_600);

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let keys = std::env::var("KEYS").map_or(1_000_000, |keys| keys.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(keys));
}

async fn run(keys: usize) {
    let plan = Plan {
        hint_bytes_max: 0,
        repair_interval: Some(INTERVAL),
        repair_bytes_per_s_max: 16 << 20,
        ping_interval: NEVER,
        ..Plan::of(3)
    };
    let mut cluster = Cluster::start(plan).await;
    let config = ClientConfig { timeout: Duration::from_secs(30), ..ClientConfig::default() };
    let client = cluster.client_with(config).await;
    let [a, b, c] = cluster.servers()[..] else { unreachable!("three servers") };
    let began = Instant::now();
    put_all(&client, 0..keys, 3).await;
    println!("{keys} keys on three servers, written in {:.0?}", began.elapsed());
    agreed(&client, &[a, b, c]).await;

    let before = loopback_bytes();
    tokio::time::sleep(INTERVAL * AGREED_ROUNDS).await;
    let bytes = loopback_bytes() - before;
    println!("agreed: {:.0} bytes a round and pair", bytes as f64 / f64::from(AGREED_ROUNDS) / 3.0);

    // Nobody has marks of what the server missed, and the two that remain have read their records again.
    cluster.kill(c);
    put_all(&client, 0..DIFFERING, 2).await;
    for holder in [a, b] {
        cluster.kill(holder);
        cluster.clear(holder, Keyspace::Hints).await;
        cluster.restart(holder).await;
    }
    agreed(&client, &[a, b]).await;
    let before = loopback_bytes();
    let began = Instant::now();
    cluster.restart(c).await;
    let moved = agreed(&client, &[a, b, c]).await;
    let bytes = loopback_bytes() - before;
    println!(
        "{DIFFERING} keys differ at one of three: {bytes} bytes until all pairs agreed, {moved} records moved, {:.1?}",
        began.elapsed()
    );

    let client = Arc::new(client);
    let quiet = gets(&client, 0..keys, GETS).await;
    cluster.kill(c);
    let began = Instant::now();
    cluster.restart_wiped(c).await;
    let held = keys..keys + HELD;
    put_all(&client, held.clone(), 3).await;
    let (mut of_held, mut of_any) = (Vec::new(), Vec::new());
    let filling = AtomicBool::new(true);
    let end = async {
        agreed(&client, &[a, b, c]).await;
        filling.store(false, Ordering::Relaxed);
        began.elapsed()
    };
    let measure = async {
        while filling.load(Ordering::Relaxed) {
            of_held.extend(gets(&client, held.clone(), Duration::from_secs(1)).await);
            of_any.extend(gets(&client, 0..keys, Duration::from_secs(1)).await);
        }
    };
    let (filled, ()) = tokio::join!(end, measure);
    let after = gets(&client, 0..keys, GETS).await;
    println!("an empty server filled with {keys} records in {filled:.0?}");
    let measured = [
        ("before it was filled", quiet),
        ("while it was filled, of keys that all owners hold", of_held),
        ("while it was filled, of any keys", of_any),
        ("after it was filled", after),
    ];
    for (when, mut latencies) in measured {
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_micros();
        println!("gets {when}: {}, p50 {} us, p99 {} us", latencies.len(), at(50), at(99));
    }
}

fn key(number: usize) -> String {
    format!("key {number:010}")
}

async fn put_all(client: &TestClient, numbers: Range<usize>, w: usize) {
    let puts = numbers.map(|number| client.put(key(number), vec![7; VALUE_LEN]).w(w).into_future());
    stream::iter(puts).buffer_unordered(WRITERS).for_each(|put| async { drop(put.unwrap()) }).await;
}

/// Waits until each of these servers has found the others that run equal, later than now. Returns how many records the comparisons
/// of all have moved since their starts.
async fn agreed(client: &TestClient, servers: &[ServerIndex]) -> u64 {
    let began = Instant::now();
    loop {
        let mut moved = 0;
        let mut is_agreed = true;
        for &server in servers {
            let status = client.status(server).await.unwrap();
            is_agreed &= status.partitions_unread == 0;
            for peer in status.peers.iter().filter(|peer| servers.contains(&peer.server)) {
                moved += peer.records_moved;
                is_agreed &= peer.agreed.is_some_and(|ago| ago < began.elapsed());
            }
        }
        if is_agreed {
            return moved;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Times gets of random keys.
async fn gets(client: &Arc<TestClient>, keys: Range<usize>, duration: Duration) -> Vec<Duration> {
    let getter = || {
        let (client, keys) = (client.clone(), keys.clone());
        tokio::spawn(async move {
            let (began, mut latencies) = (Instant::now(), Vec::new());
            while began.elapsed() < duration {
                let key = key(rand::random_range(keys.clone()));
                let asked = Instant::now();
                client.get(key).await.unwrap();
                latencies.push(asked.elapsed());
            }
            latencies
        })
    };
    let getters: Vec<_> = (0..GETTERS).map(|_| getter()).collect();
    let mut latencies = Vec::new();
    for getter in getters {
        latencies.extend(getter.await.unwrap());
    }
    latencies
}

/// Bytes that were sent over the loopback interface.
fn loopback_bytes() -> u64 {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().nth(8).unwrap().parse().unwrap()
}
