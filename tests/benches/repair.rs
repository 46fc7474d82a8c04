//! What comparisons of servers cost: the bytes of a round between two servers that agree, and of one between two that differ in a
//! hundred keys; and what gets suffer while a server that lost all it had is filled again: gets of keys that all owners hold, and
//! gets of keys that it may lack, which make it take them before they answer.
//!
//! ```sh
//! unshare --net sh -c 'ip link set lo up; cargo bench -p dkvs-tests --bench repair'
//! ```
//! Bytes are those of the loopback interface, with the headers of IP, UDP and TCP, so nothing else should run on it: hence the
//! network namespace. `KEYS=100000` makes it shorter. It ends with an error when the first two are more than they may be; how long
//! gets take depends on what else runs, and is for people to judge.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fmt;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dkvs::{ClientConfig, Peer, ServerIndex};
use dkvs_tests::{Cluster, Plan, TestClient};
use futures::{StreamExt, stream};

/// Puts at one time while keys are written, and getters at one time while gets are measured.
const WRITERS: usize = 256;
const GETTERS: usize = 8;

/// Bytes of a value.
const VALUE_LEN: usize = 100;

/// Keys that are made to differ.
const DIFFERING: usize = 100;

/// Bytes that two servers may need for a round when they agree.
const AGREED_BYTES_MAX: u64 = 1 << 10;

/// Bytes that two servers may need for a hundred keys that differ, beside the records themselves. What they try to send to the
/// third, which is down meanwhile, is among what is measured: some KiB.
const DIFFERING_BYTES_MAX: u64 = 200 << 10;

/// Keys that are written when the server is empty, and so are held by all.
const HELD: usize = 10_000;

/// Time between regular rounds, and how long rounds of servers that agree are counted.
const INTERVAL: Duration = Duration::from_secs(1);
const AGREED_ROUNDS: u32 = 20;

/// How long gets are measured.
const GETS: Duration = Duration::from_secs(15);

/// Longer than a benchmark.
const NEVER: Duration = Duration::from_secs(24 * 3_600);

fn main() -> ExitCode {
    // `cargo test --benches` only wants to know that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let keys = std::env::var("KEYS").map_or(1_000_000, |keys| keys.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let exceeded = runtime.block_on(run(keys));
    exceeded.iter().for_each(|exceeded| println!("error: {exceeded}"));
    if exceeded.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A measurement that is more than it may be.
struct Exceeded {
    what: &'static str,
    measured: u64,
    max: u64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, and at most {} is allowed", self.what, self.measured, self.max)
    }
}

/// Measures all. Returns what is more than it may be.
async fn run(keys: usize) -> Vec<Exceeded> {
    let mut exceeded = Vec::new();
    let mut check = |what, measured, max| {
        if measured > max {
            exceeded.push(Exceeded { what, measured, max });
        }
    };
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
    let bytes = (loopback_bytes() - before).div_ceil(3 * u64::from(AGREED_ROUNDS));
    println!("agreed: {bytes} bytes a round and pair");
    check("bytes of a round of two servers that agree", bytes, AGREED_BYTES_MAX);

    // So that a single pair differs, one server is down, and one of the others alone is given the puts: a regular round finds them.
    cluster.kill(b);
    let is_of_a = |number: &usize| cluster.owners(&key(*number), 1) == [a];
    let differing: Vec<usize> = (0..keys).filter(is_of_a).take(DIFFERING).collect();
    let moved_before = moved(&client, a, c).await;
    just_agreed(&client, a, c).await;
    for &number in &differing {
        client.put(key(number), vec![8; VALUE_LEN]).n(1).w(1).await.unwrap();
    }
    let before = loopback_bytes();
    let began = Instant::now();
    equal(&cluster, a, c, &differing).await;
    let took = began.elapsed();
    // The end of the round, and the next one, which finds nothing more.
    tokio::time::sleep(INTERVAL).await;
    let bytes = loopback_bytes() - before;
    let records = moved(&client, a, c).await - moved_before;
    println!(
        "{DIFFERING} keys differ between two servers: {bytes} bytes until they agreed, {records} records moved, {took:.1?}"
    );
    check("records moved between two servers", records, DIFFERING as u64);
    let records_len = (DIFFERING * (key(0).len() + VALUE_LEN)) as u64;
    check("bytes between two servers that differ", bytes, DIFFERING_BYTES_MAX + records_len);
    cluster.restart(b).await;
    agreed(&client, &[a, b, c]).await;

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
    exceeded
}

fn key(number: usize) -> String {
    format!("key {number:010}")
}

async fn put_all(client: &TestClient, numbers: Range<usize>, w: usize) {
    let puts = numbers.map(|number| client.put(key(number), vec![7; VALUE_LEN]).w(w).into_future());
    stream::iter(puts).buffer_unordered(WRITERS).for_each(|put| async { drop(put.unwrap()) }).await;
}

/// Waits until two servers hold the same of these keys. Nothing is sent for it.
async fn equal(cluster: &Cluster, one: ServerIndex, other: ServerIndex, keys: &[usize]) {
    let is_equal = |number| cluster.stored(one, &key(number)) == cluster.stored(other, &key(number));
    while !keys.iter().all(|&number| is_equal(number)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until each of these servers has found the others that run equal, later than now.
async fn agreed(client: &TestClient, servers: &[ServerIndex]) {
    let began = Instant::now();
    loop {
        let mut is_agreed = true;
        for &server in servers {
            let status = client.status(server).await.unwrap();
            is_agreed &= status.partitions_unread == 0;
            for peer in status.peers.iter().filter(|peer| servers.contains(&peer.server)) {
                is_agreed &= peer.agreed.is_some_and(|ago| ago < began.elapsed());
            }
        }
        if is_agreed {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a server says of another.
async fn peer(client: &TestClient, server: ServerIndex, of: ServerIndex) -> Peer {
    let status = client.status(server).await.unwrap();
    status.peers.into_iter().find(|peer| peer.server == of).unwrap()
}

/// Waits until the first of two servers has just found the other equal, so that its next round is not due yet.
async fn just_agreed(client: &TestClient, first: ServerIndex, other: ServerIndex) {
    while peer(client, first, other).await.agreed.is_none_or(|ago| ago > INTERVAL / 10) {
        tokio::time::sleep(INTERVAL / 50).await;
    }
}

/// How many records the comparisons of two servers have moved since their starts.
async fn moved(client: &TestClient, one: ServerIndex, other: ServerIndex) -> u64 {
    peer(client, one, other).await.records_moved + peer(client, other, one).await.records_moved
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
