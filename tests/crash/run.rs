//! One run: work, kill, start, check, and again.

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dkvs::{Client, ClientConfig};
use dkvs_tests::fleet::{Fleet, RunDirectory};
use dkvs_tests::processes::release_binary;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::load::{self, Board, WRITERS, Writer};

const SERVERS: usize = 3;
/// How long servers work before they are killed, at most: many commits, and sometimes none.
const WORK_MS_MAX: u64 = 150;
/// How long those that are left go on without the others, at most.
const ALONE_MS_MAX: u64 = 150;
/// How far into its start a server is killed again, at most; a start takes about as long.
const START_MS_MAX: u64 = 40;
/// How soon a key can be read from all owners when all run.
const READ_MAX: Duration = Duration::from_secs(60);
/// Keys read at one time.
const KEYS_AT_ONCE: usize = 16;
/// Troubles shown.
const SHOWN_MAX: usize = 20;

/// What is the same in all cycles.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// Lines for the servers' configuration.
    pub(crate) settings: &'static str,
    /// Unless the environment says otherwise.
    pub(crate) cycles: u64,
    /// Whether every kill hits all servers.
    pub(crate) always_all: bool,
}

pub(crate) fn run(plan: &Plan) {
    let seed = from_env("DKVS_CRASH_SEED").unwrap_or_else(rand::random);
    let cycles = from_env("DKVS_CRASH_CYCLES").unwrap_or(plan.cycles);
    if cycles == 0 {
        say(format_args!("crash, {}: SKIPPED: DKVS_CRASH_CYCLES=0", plan.name));
        return;
    }
    let directory = RunDirectory::new("crash", seed);
    let below = directory.path().join(plan.name);
    std::fs::create_dir_all(&below).unwrap();
    say(format_args!(
        "crash, {}: {cycles} cycles, DKVS_CRASH_SEED={seed}, below {}",
        plan.name,
        below.display()
    ));
    let binary = std::env::var_os("DKVS_CRASH_SERVER").map(PathBuf::from);
    let binary = binary.unwrap_or_else(|| release_binary("dkvs-server"));
    let start = Instant::now();
    let mut fleet = Fleet::new(&binary, &below, SERVERS, plan.settings);
    let board = Arc::new(Board::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(cycle_on(plan, cycles, seed, &mut fleet, &board));

    for server in fleet.all() {
        let log = fleet.log_since(server, 0);
        log.lines().filter(|line| line.contains("panicked")).for_each(|line| board.trouble(line.to_owned()));
    }
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    say(format_args!(
        "crash, {}: {:.0} s, {} writes acknowledged, {} unknown, {} failed, {} keys, {} reads under load",
        plan.name,
        start.elapsed().as_secs_f64(),
        count(&board.acknowledged),
        count(&board.unknown),
        count(&board.failed),
        board.all().len(),
        count(&board.reads),
    ));
    let troubles = board.troubles();
    for trouble in troubles.iter().take(SHOWN_MAX) {
        say(format_args!("crash, {}: VIOLATION: {trouble}", plan.name));
    }
    assert!(
        troubles.is_empty(),
        "{} violations, DKVS_CRASH_SEED={seed}; see {}",
        troubles.len(),
        below.display()
    );
    assert!(
        count(&board.acknowledged) >= 5 * cycles,
        "the servers were hardly at work when they were killed"
    );
}

async fn cycle_on(plan: &Plan, cycles: u64, seed: u64, fleet: &mut Fleet, board: &Arc<Board>) {
    let mut random = StdRng::seed_from_u64(seed);
    fleet.start(&fleet.all());
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        writers.push(Writer {
            client: fleet.client(load::config()).await,
            board: board.clone(),
            random: StdRng::seed_from_u64(seed ^ (1 + number) << 32),
            name: format!("key {number}"),
            keys: 0,
        });
    }
    let reader = Reader::new(fleet, board.clone()).await;
    for cycle in 1..=cycles {
        let stop = Arc::new(AtomicBool::new(false));
        let work: Vec<_> = writers.drain(..).map(|writer| tokio::spawn(writer.work(stop.clone()))).collect();
        tokio::task::block_in_place(|| kill_and_start(plan, fleet, &mut random));
        stop.store(true, Ordering::Relaxed);
        for writer in work {
            writers.push(writer.await.unwrap());
        }
        reader.check(board.take_unchecked(), &mut random).await;
        if !board.troubles().is_empty() {
            board.trouble(format!("seen in cycle {cycle} of {cycles}"));
            return;
        }
    }
    reader.check(board.all(), &mut random).await;
    for server in fleet.all() {
        if let Some(status) = fleet.ended(server) {
            board.trouble(format!("server {} ended by itself with {status}", 1 + server));
        }
    }
}

/// All servers run before and after.
fn kill_and_start(plan: &Plan, fleet: &mut Fleet, random: &mut StdRng) {
    let mut victims = fleet.all();
    victims.shuffle(random);
    let count = if plan.always_all { SERVERS } else { random.random_range(1..=SERVERS) };
    victims.truncate(count);
    sleep_up_to(WORK_MS_MAX, random);
    for &server in &victims {
        assert!(fleet.ended(server).is_none(), "server {} ended by itself", 1 + server);
    }
    fleet.kill(&victims);
    if count < SERVERS {
        sleep_up_to(ALONE_MS_MAX, random);
    }
    while random.random_bool(0.3) {
        victims.iter().for_each(|&server| fleet.launch(server));
        sleep_up_to(START_MS_MAX, random);
        fleet.kill(&victims);
    }
    fleet.start(&victims);
}

/// The moment of a kill: it is to be anywhere.
fn sleep_up_to(ms_max: u64, random: &mut StdRng) {
    std::thread::sleep(Duration::from_micros(random.random_range(0..1_000 * ms_max)));
}

/// Reads when nobody writes.
struct Reader {
    board: Arc<Board>,
    all: Client,
    /// For each server a client that asks nobody else.
    each: Vec<Client>,
}

impl Reader {
    async fn new(fleet: &Fleet, board: Arc<Board>) -> Self {
        let config = || ClientConfig { timeout: Duration::from_secs(5), ..load::config() };
        let mut each = Vec::new();
        for server in fleet.all() {
            each.push(fleet.client_of(server, config()).await);
        }
        Self { board, all: fleet.client(config()).await, each }
    }

    async fn check(&self, keys: Vec<String>, random: &mut StdRng) {
        let reads: Vec<_> =
            keys.iter().map(|key| self.check_key(key, random.random_range(0..SERVERS))).collect();
        futures::stream::iter(reads).buffer_unordered(KEYS_AT_ONCE).collect::<Vec<()>>().await;
    }

    /// From all owners; then each of them must say so itself.
    async fn check_key(&self, key: &str, server: usize) {
        self.read(&self.all, key, SERVERS, "read from all owners").await;
        self.read(&self.each[server], key, 1, &format!("read from server {} alone", 1 + server)).await;
    }

    async fn read(&self, client: &Client, key: &str, r: usize, where_from: &str) {
        let deadline = Instant::now() + READ_MAX;
        loop {
            match client.get(key.to_owned()).n(SERVERS).r(r).siblings().await {
                Ok(got) => {
                    match load::state(key, &got) {
                        Ok(found) => self.board.found(key, &found, where_from),
                        Err(trouble) => self.board.trouble(trouble),
                    }
                    return;
                }
                Err(error) if Instant::now() > deadline => {
                    self.board
                        .trouble(format!("{key:?} cannot be {where_from} within {READ_MAX:?}: {error}"));
                    return;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no whole number")))
}

/// Tells whoever watches.
fn say(what: impl Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}
