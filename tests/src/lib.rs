//! Clusters in one process, on real sockets, for tests.
//!
//! A [`Cluster`] is a ring and its servers, each on a port the system chose, with its data in memory and behind a
//! [`FaultySocket`] that can lose and repeat datagrams. A server can be killed, and started again with or without what
//! it knew. Nothing here sleeps: what takes time is waited for with a deadline.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Ring, ServerIndex, ServerList, ServerName};
use dkvs_cluster::{Kept, Replica, Server, ServerConfig, Target, decode_kept};
use dkvs_core::record::Record;
use dkvs_core::servers::ServerEntry;
use dkvs_net::faults::{Faults, FaultySocket};
use dkvs_net::{Endpoint, EndpointConfig, NoService, Patience, Port, Socket};
use dkvs_proto::message::client::{ClientAnswer, ClientRequest};
use dkvs_proto::message::{Answer, Request};
use dkvs_storage::{Batch, Durability, Keyspace, ScanLimit, Start, Store};
use tokio::time::Instant;

use crate::disk::TestDisk;

pub mod disk;

pub mod processes;

pub mod fleet;

pub mod many;

/// Long enough for anything that is not stuck, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a test's client waits for a sign of life: longer than any pause of a busy machine, short enough to pass
/// over killed servers.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);

/// A socket of a test: real, with faults.
pub type TestSocket = FaultySocket<Port>;

/// A client of a test cluster.
pub type TestClient = Client<TestSocket>;

/// Any wall time will do.
const WALL_MS: i64 = 1_700_000_000_000;

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The ring's servers.
    pub servers: Vec<ServerEntry>,
    /// Pairs that all servers are given at start.
    pub initial: Vec<(Bytes, Bytes)>,
    /// How bad the network is, for servers and clients.
    pub faults: Faults,
    /// Where the faults come from.
    pub seed: u64,
    /// Pause of servers between looking at all they have for damage; `None` if they do not look.
    pub scrub_pause: Option<Duration>,
    /// Bytes of hints that a server keeps for another one.
    pub hint_bytes_max: u64,
    /// Bytes that requests hold after they were answered, for owners that have not answered.
    pub background_bytes_max: usize,
    /// Time between comparisons of servers; `None` if they do not compare.
    pub repair_interval: Option<Duration>,
    /// Bytes of records that comparisons move in a second; 0 for no limit.
    pub repair_bytes_per_s_max: u64,
    /// Time between rounds of forgetting tombstones; `None` for never.
    pub reap_interval: Option<Duration>,
    /// Longest time that servers let requests take. Tombstones stay for longer than that.
    pub timeout_max: Duration,
    /// Time between pings to a server that is silent. Short, so that one that is back is noticed soon.
    pub ping_interval: Duration,
}

impl Plan {
    /// `count` equal servers. Their names are those of documentation addresses: where they really are, only the
    /// cluster knows.
    #[must_use]
    pub fn of(count: u16) -> Self {
        let entry = |number| ServerEntry { name: name(&format!("192.0.2.{number}"), 1234), nodes: 16 };
        Self::with((1..=count).map(entry).collect())
    }

    /// These servers.
    #[must_use]
    pub fn with(servers: Vec<ServerEntry>) -> Self {
        Self {
            servers,
            initial: Vec::new(),
            faults: Faults::default(),
            seed: 1,
            scrub_pause: None,
            hint_bytes_max: 256 << 20,
            background_bytes_max: 256 << 20,
            repair_interval: None,
            repair_bytes_per_s_max: 0,
            reap_interval: None,
            timeout_max: Duration::from_secs(60),
            ping_interval: Duration::from_millis(100),
        }
    }
}

/// A server's name.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn name(host: &str, port: u16) -> ServerName {
    ServerName::new(host, port).expect("a server's name")
}

struct Member {
    store: Arc<TestDisk>,
    running: Option<Server<TestSocket, Arc<TestDisk>>>,
    skew_ms: Arc<AtomicI64>,
    starts: u64,
}

/// Servers in this process.
pub struct Cluster {
    plan: Plan,
    ring: Arc<Ring>,
    addresses: Vec<SocketAddr>,
    members: Vec<Member>,
}

impl Cluster {
    /// Starts all servers of the plan.
    pub async fn start(plan: Plan) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let ring = Arc::new(Ring::new(ServerList::new(plan.servers.clone()).expect("a ring")));
        let mut ports = Vec::new();
        for _ in ring.servers() {
            ports.push(Port::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port"));
        }
        let addresses = ports.iter().map(Socket::local_addr).collect();
        let member = |_| Member { store: Arc::default(), running: None, skew_ms: Arc::default(), starts: 0 };
        let members = (0..ports.len()).map(member).collect();
        let mut cluster = Self { plan, ring, addresses, members };
        for (server, port) in cluster.servers().into_iter().zip(ports) {
            cluster.run(server, port, Start::New).await;
        }
        cluster
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// All servers.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerIndex> {
        self.ring.servers().indices().collect()
    }

    /// The owners of a key, first to last.
    #[must_use]
    pub fn owners(&self, key: &str, n: usize) -> Vec<ServerIndex> {
        self.ring.owners_of_key(key.as_bytes(), n).to_vec()
    }

    /// Where a server receives.
    #[must_use]
    pub fn address(&self, server: ServerIndex) -> SocketAddr {
        self.addresses[server.as_usize()]
    }

    async fn run(&mut self, server: ServerIndex, port: Port, start: Start) {
        let (seed, initial) = (self.plan.seed, self.plan.initial.clone());
        let member = &mut self.members[server.as_usize()];
        member.starts += 1;
        let skew_ms = member.skew_ms.clone();
        let wall_clock = Arc::new(move || (WALL_MS + skew_ms.load(Ordering::Relaxed)).unsigned_abs());
        let unique = seed << 32 | u64::from(server.number()) << 16 | member.starts;
        let config = ServerConfig::new(self.ring.clone(), server, self.addresses.clone(), wall_clock, unique);
        let mut config = config.expect("a ring");
        match self.plan.scrub_pause {
            Some(pause) => config.scrub_pause = pause,
            None => config.scrub_bytes_per_s = 0,
        }
        config.hint_bytes_max = self.plan.hint_bytes_max;
        config.background_bytes_max = self.plan.background_bytes_max;
        config.repair_interval = self.plan.repair_interval.unwrap_or(Duration::ZERO);
        config.repair_bytes_per_s_max = self.plan.repair_bytes_per_s_max;
        config.reap_interval = self.plan.reap_interval.unwrap_or(Duration::ZERO);
        config.timeout_max = self.plan.timeout_max;
        config.ping_interval = self.plan.ping_interval;
        let socket = FaultySocket::new(port, self.plan.faults, unique);
        let store = member.store.clone();
        let running = Server::start(socket, store, start, initial, config).await;
        member.running = Some(running.expect("a server on an empty store"));
    }

    /// Kills a server: it stops in the middle of whatever it does. What it has stored stays.
    pub fn kill(&mut self, server: ServerIndex) {
        self.members[server.as_usize()].running = None;
    }

    /// Stops a server in order, with no patience for what still waits for others.
    ///
    /// # Panics
    /// When it does not run, or its store fails.
    pub async fn stop(&mut self, server: ServerIndex) {
        let member = &mut self.members[server.as_usize()];
        let running = member.running.take().expect("the server runs");
        running.stop(Duration::ZERO).await.expect("a store in memory");
        member.store.reopen();
    }

    /// Starts a killed server on what it had stored.
    pub async fn restart(&mut self, server: ServerIndex) {
        self.start_again(server, Start::Unclean).await;
    }

    /// Starts a server that was stopped.
    pub async fn restart_stopped(&mut self, server: ServerIndex) {
        self.start_again(server, Start::Clean).await;
    }

    async fn start_again(&mut self, server: ServerIndex, start: Start) {
        let address = self.address(server);
        // The port is free once the last task of the server before has ended.
        let port = eventually("the port to be free", || async { Port::bind(address).await.ok() }).await;
        self.members[server.as_usize()].store.reopen();
        self.run(server, port, start).await;
    }

    /// Starts a killed server on an empty store, which it takes for its first.
    pub async fn restart_wiped(&mut self, server: ServerIndex) {
        self.members[server.as_usize()].store = Arc::default();
        self.start_again(server, Start::New).await;
    }

    /// Sets a server's wall clock wrong by this much.
    pub fn skew_clock(&self, server: ServerIndex, ms: i64) {
        self.members[server.as_usize()].skew_ms.store(ms, Ordering::Relaxed);
    }

    /// Lets time pass on all servers' wall clocks.
    pub fn advance_clocks(&self, ms: i64) {
        for member in &self.members {
            member.skew_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    /// Flips a bit in the middle of what a server has stored for a key.
    ///
    /// # Panics
    /// When it has stored nothing.
    pub async fn damage(&self, server: ServerIndex, key: &str) {
        let store = &self.members[server.as_usize()].store;
        let all = ScanLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
        let entries = store.scan(Keyspace::Records, None, all).expect("a store in memory");
        let (place, value) =
            entries.into_iter().find(|(place, _)| place.ends_with(key.as_bytes())).expect("it is there");
        let mut damaged = value.to_vec();
        damaged[value.len() / 2] ^= 1;
        let mut batch = Batch::new();
        batch.put(Keyspace::Records, place, damaged);
        store.commit(batch, Durability::Memory).await.expect("a store in memory");
    }

    /// Has a server's disk have so many bytes free.
    pub fn set_free_bytes(&self, server: ServerIndex, free_bytes: u64) {
        self.members[server.as_usize()].store.set_free_bytes(free_bytes);
    }

    /// Has the next commit of a server's store fail, and so all that come after it, until the server is started again.
    pub fn fail_disk(&self, server: ServerIndex, reason: &str) {
        self.members[server.as_usize()].store.fail(reason);
    }

    /// Has so many more commits of a server's store end, and the one after them never.
    pub fn hang_disk_after(&self, server: ServerIndex, commits: usize) {
        self.members[server.as_usize()].store.hang_after(commits);
    }

    /// Has the next read by key fail in a keyspace of a server's store.
    pub fn fail_read(&self, server: ServerIndex, keyspace: Keyspace) {
        self.members[server.as_usize()].store.fail_read(keyspace);
    }

    /// What a running server has stored for a key; empty when nothing.
    #[must_use]
    pub fn stored(&self, server: ServerIndex, key: &str) -> Record {
        self.readable(server, key).expect("a readable record")
    }

    /// The same; `None` when what it has stored is damaged, and not repaired yet.
    #[must_use]
    pub fn readable(&self, server: ServerIndex, key: &str) -> Option<Record> {
        let running = self.members[server.as_usize()].running.as_ref().expect("the server runs");
        running.replica().fetch(key.as_bytes()).ok()
    }

    /// What a server, running or not, keeps for another one: keys and records.
    ///
    /// # Panics
    /// When a hint is damaged.
    #[must_use]
    pub fn hints(&self, holder: ServerIndex, target: ServerIndex) -> Vec<(Bytes, Record)> {
        let target = Target::of(&self.ring.servers()[target].name);
        let entries = self.entries(holder, Keyspace::Hints);
        let hint = |(place, value)| match decode_kept(&place, &value)? {
            Kept::Hint { target: of, key, record, .. } if of == target => {
                Some((key, record.expect("a whole hint")))
            }
            Kept::Hint { .. } | Kept::Dirty(_) => None,
        };
        entries.into_iter().filter_map(hint).collect()
    }

    /// All that stands in one keyspace of a server's store.
    #[must_use]
    pub fn entries(&self, server: ServerIndex, keyspace: Keyspace) -> Vec<(Bytes, Bytes)> {
        let all = ScanLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
        self.members[server.as_usize()].store.scan(keyspace, None, all).expect("a store in memory")
    }

    /// Puts entries into a killed server's store.
    pub async fn put_back(&self, server: ServerIndex, keyspace: Keyspace, entries: Vec<(Bytes, Bytes)>) {
        let mut batch = Batch::new();
        entries.into_iter().for_each(|(place, value)| batch.put(keyspace, place, value));
        let store = &self.members[server.as_usize()].store;
        store.commit(batch, Durability::Memory).await.expect("a store in memory");
    }

    /// Empties one keyspace of a killed server's store.
    pub async fn clear(&self, server: ServerIndex, keyspace: Keyspace) {
        let mut batch = Batch::new();
        self.entries(server, keyspace).into_iter().for_each(|(place, _)| batch.delete(keyspace, place));
        let store = &self.members[server.as_usize()].store;
        store.commit(batch, Durability::Memory).await.expect("a store in memory");
    }

    /// What a running server has of records.
    #[must_use]
    pub fn replica(&self, server: ServerIndex) -> &Replica<Arc<TestDisk>> {
        self.members[server.as_usize()].running.as_ref().expect("the server runs").replica()
    }

    /// A client with the library's defaults, but patient: a busy machine must not fail a test.
    pub async fn client(&self) -> TestClient {
        self.client_with(ClientConfig {
            timeout: PATIENCE,
            silence_max: SILENCE_MAX,
            ..ClientConfig::default()
        })
        .await
    }

    /// A client.
    pub async fn client_with(&self, config: ClientConfig) -> TestClient {
        let socket = self.socket().await;
        Client::with_socket(socket, (*self.ring).clone(), self.addresses.clone(), None, config)
            .expect("a valid configuration")
    }

    async fn socket(&self) -> TestSocket {
        let port = Port::for_calls(&self.addresses).await.expect("a free port");
        FaultySocket::new(port, self.plan.faults, self.plan.seed)
    }

    /// Has one server coordinate a request, whoever the key's first owner is.
    pub async fn ask(&self, coordinator: ServerIndex, request: ClientRequest) -> ClientAnswer {
        let socket = self.socket().await;
        let config = EndpointConfig::default();
        let endpoint = Endpoint::start::<NoService>(socket, config, rand::random(), None);
        let patience = Patience::until(Instant::now() + PATIENCE);
        match endpoint.call(self.address(coordinator), &Request::Client(request), patience).await {
            Ok(Answer::Client(answer)) => answer,
            other => panic!("{coordinator:?} answered {other:?}"),
        }
    }
}

/// Repeats `attempt` until it returns something, and fails after [`PATIENCE`].
pub async fn eventually<A, F: Future<Output = Option<A>>>(what: &str, attempt: impl Fn() -> F) -> A {
    eventually_within(PATIENCE, what, attempt).await
}

/// The same, with another patience: for what leaves a busy machine alone.
pub async fn eventually_within<A, F: Future<Output = Option<A>>>(
    patience: Duration,
    what: &str,
    attempt: impl Fn() -> F,
) -> A {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(result) = attempt().await {
            return result;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
