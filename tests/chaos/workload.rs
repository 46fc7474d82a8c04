//! What clients do while things break.
//!
//! | keys | who writes | how |
//! |---|---|---|
//! | `set` | everybody | get, add an element to the union of all siblings, put with the get's context |
//! | `register` | everybody | puts without context, with one, deletes |
//! | `own` | one task | mostly puts without context |
//! | `gone` | one task | a put or two, then a delete, then never again |
//!
//! Each key has its n and quorums, and everybody keeps to them. After so many operations keys are left alone and new
//! ones begun, so that checkers have short histories to think about.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dkvs::{Client, ClientConfig, Context, Error, Ring};
use dkvs_core::version::VersionVector;
use dkvs_net::{Port, Socket};
use dkvs_sim::history::{Action, Outcome, ValueId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::net::{TcpSocket, TcpStream};

use crate::network::{CLIENTS, Place};
use crate::record::{Quorums, Record, lock};
use crate::servers::{PORT, Servers};

/// Tasks of one client, which share its address.
const TASKS: usize = 3;
/// How long tasks think between operations.
const THINK_MS_MAX: u64 = 40;
/// What a request may take.
const TIMEOUTS_MS: [u64; 3] = [1_000, 1_500, 2_000];
/// Operations on a shared key before the next is begun.
const SHARED_OPERATIONS: u64 = 250;
/// The same for a key of one task.
const OWN_OPERATIONS: u64 = 40;
/// Shared keys of a kind that are in use at one time.
const SHARED_KEYS: u64 = 2;
/// Longest filling of a value: longer than a datagram, so that both lanes are used.
const FILLING_LEN_MAX: usize = 4_000;

/// A server that shows no sign of life for so long is passed over for the next: the client's own setting. Nothing that
/// a server may have begun is given to another earlier.
const SILENCE: Duration = Duration::from_millis(200);

const MAJORITIES: Quorums = Quorums { n: 3, r: 2, w: 2 };
/// What keys ask for, in turn.
const QUORUMS: [Quorums; 6] = [
    MAJORITIES,
    Quorums { n: 5, r: 3, w: 3 },
    Quorums { n: 3, r: 1, w: 1 },
    MAJORITIES,
    Quorums { n: 3, r: 1, w: 3 },
    Quorums { n: 3, r: 3, w: 1 },
];

/// A socket with an address of its own, so that each client can be cut off alone.
pub(crate) struct AddressedSocket {
    port: Port,
    ip: IpAddr,
}

impl AddressedSocket {
    pub(crate) async fn bind(ip: IpAddr) -> io::Result<Self> {
        Ok(Self { port: Port::bind(SocketAddr::new(ip, 0)).await?, ip })
    }
}

impl Socket for AddressedSocket {
    type Stream = TcpStream;

    fn local_addr(&self) -> SocketAddr {
        self.port.local_addr()
    }

    async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) -> io::Result<()> {
        self.port.send(to, bytes, segment_len).await
    }

    async fn recv<F>(&self, each: F) -> io::Result<()>
    where
        F: FnMut(SocketAddr, &[u8]) + Send,
    {
        self.port.recv(each).await
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.ip, 0))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.port.accept().await
    }
}

/// A client at an address of the sandbox.
pub(crate) async fn client(ip: IpAddr) -> Client<AddressedSocket> {
    let servers = Servers::list();
    let address = |entry: &dkvs_core::servers::ServerEntry| {
        SocketAddr::new(entry.name.host().to_string().parse().expect("an address"), PORT)
    };
    let addresses = servers.into_iter().map(address).collect();
    let socket = AddressedSocket::bind(ip).await.expect("a free port");
    let ring = Ring::new(Servers::list());
    let config = ClientConfig { silence_max: SILENCE, ..ClientConfig::default() };
    Client::with_socket(socket, ring, addresses, None, config).expect("a configuration")
}

/// A value as it is sent: the write's number, the elements it holds, and some filling.
pub(crate) struct Value {
    pub(crate) write: ValueId,
    pub(crate) elements: BTreeSet<ValueId>,
}

impl Value {
    fn new(write: ValueId) -> Self {
        Self { write, elements: BTreeSet::new() }
    }

    fn encode(&self, filling: usize) -> Bytes {
        let elements: Vec<String> = self.elements.iter().map(ToString::to_string).collect();
        format!("{} [{}] {}", self.write, elements.join(" "), "x".repeat(filling)).into()
    }

    /// `None` when nobody can have written that.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (write, rest) = text.split_once(" [")?;
        let (elements, filling) = rest.split_once("] ")?;
        let elements: Result<_, _> = elements.split_terminator(' ').map(str::parse).collect();
        let whole = filling.bytes().all(|byte| byte == b'x');
        whole.then_some(Self { write: write.parse().ok()?, elements: elements.ok()? })
    }
}

/// A context, opened.
pub(crate) fn opened(key: &str, context: &Context) -> VersionVector {
    if context.is_empty() {
        return VersionVector::new();
    }
    let hex = context.to_string();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hexadecimal digits");
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    dkvs_proto::context::decode(key.as_bytes(), &bytes).expect("a context for its key")
}

/// What all clients share.
pub(crate) struct Workload {
    record: Arc<Record>,
    stop: AtomicBool,
    /// Operations on shared keys, by kind.
    shared: [AtomicU64; 2],
    /// Keys of tasks, for others to read.
    board: Mutex<Vec<(String, Quorums)>>,
    all: Mutex<Vec<(String, Quorums)>>,
}

#[derive(Clone, Copy)]
enum Shared {
    Set,
    Register,
}

impl Workload {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        let (board, all) = (Mutex::default(), Mutex::default());
        Self { record, stop: AtomicBool::new(false), shared: Default::default(), board, all }
    }

    /// Operations under way are finished, and none begun.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// All keys ever used.
    pub(crate) fn keys(&self) -> Vec<(String, Quorums)> {
        lock(&self.all).clone()
    }

    /// Works until it is stopped.
    pub(crate) async fn run(self: &Arc<Self>, seed: u64) {
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let ip = Place::Client(number).ip();
            let client = client(ip).await;
            for task in 0..TASKS {
                let random =
                    StdRng::seed_from_u64(seed ^ u64::try_from(1 + number * TASKS + task).unwrap() << 40);
                let name = format!("{number}.{task}");
                let worker = Worker {
                    client: client.clone(),
                    number: self.record.new_client(),
                    work: self.clone(),
                    ip,
                    random,
                };
                tasks.push(tokio::spawn(worker.run(name)));
            }
        }
        for task in tasks {
            task.await.expect("a client that does not panic");
        }
    }

    fn register_key(&self, key: &str, quorums: Quorums, own: bool) {
        lock(&self.all).push((key.to_owned(), quorums));
        if own {
            let mut board = lock(&self.board);
            board.push((key.to_owned(), quorums));
            if board.len() > CLIENTS * TASKS {
                board.remove(0);
            }
        }
    }

    /// A shared key of now.
    fn shared_key(&self, kind: Shared) -> (String, Quorums) {
        let (counter, name) = match kind {
            Shared::Set => (&self.shared[0], "set"),
            Shared::Register => (&self.shared[1], "register"),
        };
        let count = counter.fetch_add(1, Ordering::Relaxed);
        let generation = count / (SHARED_OPERATIONS * SHARED_KEYS) * SHARED_KEYS + count % SHARED_KEYS;
        let quorums = QUORUMS[usize::try_from(generation).unwrap() % QUORUMS.len()];
        let key = format!("{name} {generation}");
        if count % (SHARED_OPERATIONS * SHARED_KEYS) < SHARED_KEYS {
            self.register_key(&key, quorums, false);
        }
        (key, quorums)
    }
}

/// One task of a client.
struct Worker {
    client: Client<AddressedSocket>,
    number: u32,
    work: Arc<Workload>,
    ip: IpAddr,
    random: StdRng,
}

/// A key and what is asked of it.
struct Target {
    key: String,
    quorums: Quorums,
}

/// What a read found.
struct Seen {
    values: Vec<Value>,
    context: Context,
}

impl Worker {
    async fn run(mut self, name: String) {
        let (mut own, mut own_count, mut gone_count) = (self.own_key(&name, 0), 0, 0);
        let mut own_context = None;
        while !self.work.is_stopped() {
            let think = self.random.random_range(0..=THINK_MS_MAX);
            tokio::time::sleep(Duration::from_millis(think)).await;
            match self.random.random_range(0..100) {
                0..35 => self.add_to_set().await,
                35..60 => self.use_register().await,
                60..85 => {
                    own_count += 1;
                    if own_count % OWN_OPERATIONS == 0 {
                        own = self.own_key(&name, own_count / OWN_OPERATIONS);
                        own_context = None;
                    }
                    own_context = self.use_own(&own, own_context).await;
                }
                85..90 => {
                    gone_count += 1;
                    self.put_and_delete(format!("gone {name} {gone_count}")).await;
                }
                _ => {
                    let chosen = lock(&self.work.board).choose(&mut self.random).cloned();
                    if let Some((key, quorums)) = chosen {
                        self.get(&Target { key, quorums }).await;
                    }
                }
            }
        }
    }

    fn own_key(&mut self, name: &str, generation: u64) -> Target {
        let quorums = *QUORUMS.choose(&mut self.random).expect("some");
        let key = format!("own {name} {generation}");
        self.work.register_key(&key, quorums, true);
        Target { key, quorums }
    }

    async fn add_to_set(&mut self) {
        let (key, quorums) = self.work.shared_key(Shared::Set);
        let target = Target { key, quorums };
        let Some(seen) = self.get(&target).await else { return };
        let mut value = Value::new(self.work.record.new_write());
        value.elements = seen.values.into_iter().flat_map(|value| value.elements).collect();
        value.elements.insert(value.write);
        self.put(&target, Some(value), Some(&seen.context)).await;
    }

    async fn use_register(&mut self) {
        let (key, quorums) = self.work.shared_key(Shared::Register);
        let target = Target { key, quorums };
        let value = Value::new(self.work.record.new_write());
        match self.random.random_range(0..100) {
            0..45 => drop(self.get(&target).await),
            45..80 => drop(self.put(&target, Some(value), None).await),
            80..85 => drop(self.put(&target, None, None).await),
            choice => {
                let Some(seen) = self.get(&target).await else { return };
                let value = (choice < 95).then_some(value);
                self.put(&target, value, Some(&seen.context)).await;
            }
        }
    }

    async fn use_own(&mut self, target: &Target, context: Option<Context>) -> Option<Context> {
        let value = Value::new(self.work.record.new_write());
        match self.random.random_range(0..100) {
            0..20 => self.get(target).await.map(|seen| seen.context),
            20..40 => self.put(target, Some(value), context.as_ref()).await,
            40..45 => self.put(target, None, None).await,
            _ => self.put(target, Some(value), None).await,
        }
    }

    async fn put_and_delete(&mut self, key: String) {
        let target = Target { key, quorums: MAJORITIES };
        self.work.register_key(&target.key, MAJORITIES, true);
        let value = Value::new(self.work.record.new_write());
        let mut context = self.put(&target, Some(value), None).await;
        if self.random.random_bool(0.3) {
            let value = Value::new(self.work.record.new_write());
            context = self.put(&target, Some(value), context.as_ref()).await;
        }
        if self.random.random_bool(0.5) {
            context = self.get(&target).await.map(|seen| seen.context);
        }
        let context = context.filter(|_| self.random.random_bool(0.5));
        self.put(&target, None, context.as_ref()).await;
        self.get(&target).await;
    }

    /// Whoever does not know what became of a write goes on as somebody else: the old one may still be at work.
    async fn become_another(&mut self) {
        self.number = self.work.record.new_client();
        if self.random.random_bool(0.3) {
            self.client = client(self.ip).await;
        }
    }

    fn timeout(&mut self) -> Duration {
        Duration::from_millis(*TIMEOUTS_MS.choose(&mut self.random).expect("some"))
    }

    async fn get(&mut self, target: &Target) -> Option<Seen> {
        let Target { key, quorums } = target;
        let (timeout, record) = (self.timeout(), self.work.record.clone());
        let get = self.client.get(key.clone()).n(quorums.n).r(quorums.r).siblings().timeout(timeout);
        let id = record.called(self.number, key, *quorums, timeout, Action::Read);
        match get.await {
            Ok(got) => {
                let values: Vec<Option<Option<Value>>> = got
                    .siblings()
                    .iter()
                    .map(|value| value.as_ref().map(|bytes| Value::decode(bytes)))
                    .collect();
                if values.iter().flatten().any(Option::is_none) || got.sibling_count() != values.len() {
                    record.trouble(format_args!("a get of {key:?} brought what nobody put: {got:?}"));
                }
                let writes =
                    values.iter().map(|value| value.as_ref().map(|v| v.as_ref().map_or(0, |v| v.write)));
                let outcome = Outcome::Read { values: writes.collect(), context: opened(key, got.context()) };
                record.returned(id, outcome);
                Some(Seen {
                    values: values.into_iter().flatten().flatten().collect(),
                    context: got.context().clone(),
                })
            }
            Err(error) => {
                record.returned(id, Outcome::Unavailable);
                self.judge(target, &error);
                None
            }
        }
    }

    /// `None` as value deletes. Returns the context of an acknowledged write.
    async fn put(
        &mut self,
        target: &Target,
        value: Option<Value>,
        context: Option<&Context>,
    ) -> Option<Context> {
        let Target { key, quorums } = target;
        let (timeout, record) = (self.timeout(), self.work.record.clone());
        let write = value.as_ref().map_or_else(|| record.new_write(), |value| value.write);
        let filling =
            if self.random.random_bool(0.1) { self.random.random_range(0..FILLING_LEN_MAX) } else { 0 };
        let bytes = value.as_ref().map(|value| value.encode(filling));
        let put = match bytes {
            Some(bytes) => self.client.put(key.clone(), bytes),
            None => self.client.delete(key.clone()),
        };
        let put = put.n(quorums.n).w(quorums.w).timeout(timeout);
        let put = context.into_iter().fold(put, dkvs::Put::context);
        let action = Action::Write {
            value: value.map(|value| value.write),
            write,
            context: context.map(|context| opened(key, context)),
            ttl_ms: None,
        };
        let id = record.called(self.number, key, *quorums, timeout, action);
        let start = Instant::now();
        let done = put.await;
        if start.elapsed() >= SILENCE {
            record.may_be_begun_twice(write);
        }
        match done {
            Ok(written) => {
                record.returned(id, Outcome::Written { context: opened(key, written.context()) });
                Some(written.context().clone())
            }
            Err(error) => {
                let unknown = !error.nothing_was_written();
                record.returned(id, if unknown { Outcome::Unknown } else { Outcome::Failed });
                self.judge(target, &error);
                if unknown {
                    self.become_another().await;
                }
                None
            }
        }
    }

    /// Things break, but not the servers' idea of the ring, nor the rules of asking.
    fn judge(&self, target: &Target, error: &Error) {
        match error {
            Error::Unknown(_) | Error::Unavailable(_) => {}
            // A get with R = 1 may be answered by an owner whose disk was full before the key was first written. Puts with
            // its context then each leave a sibling at the owners that have room.
            Error::TooManySiblings { siblings, siblings_max, .. } if siblings >= siblings_max => {}
            Error::Usage(_)
            | Error::Connect { .. }
            | Error::WrongRing { .. }
            | Error::Refused { .. }
            | Error::TooManySiblings { .. } => {
                let Target { key, quorums } = target;
                self.work.record.trouble(format_args!("a client was told of {key:?} ({quorums:?}): {error}"));
            }
        }
    }
}
