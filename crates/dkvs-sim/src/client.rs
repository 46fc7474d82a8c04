//! One machine's client: the real library on a simulated port, each operation written down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use dkvs::{Client, ClientConfig, Context, Error, ServerName, StandIn};
use dkvs_core::record::OpId;
use dkvs_core::version::VersionVector;
use tokio::sync::Mutex;
use tokio::time::Duration;

use crate::history::{Action, Counted, Operation, Outcome, ValueId};
use crate::plan::{KeyPlan, QuorumPlan};
use crate::seed;
use crate::shared::{Host, Shared};
use crate::socket::SimSocket;
use crate::trace::{micros, now};

/// What a worker writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewValue {
    /// The length of the value; `None` to delete.
    len: Option<usize>,
    /// For how long it is to be shown; `None` for ever, and for a deletion.
    ttl: Option<Duration>,
}

impl NewValue {
    /// A value of so many bytes, or a deletion.
    pub(crate) fn of(len: Option<usize>, ttl: Option<Duration>) -> Self {
        Self { len, ttl: ttl.filter(|_| len.is_some()) }
    }
}

/// A client that several workers use at once.
pub(crate) struct Recorded {
    client: Client<SimSocket>,
    host: Host,
    /// Writes sent so far: the sequence number of the next.
    writes: AtomicU64,
    shared: Arc<Shared>,
}

impl Recorded {
    /// A client on this machine, the first there or a later one.
    pub(crate) async fn start(shared: Arc<Shared>, host: Host, number: u64) -> Result<Arc<Self>, Error> {
        let (weather, trace) = (shared.weather.clone(), shared.trace.clone());
        let socket = SimSocket::for_calls(shared.ips[host], weather, trace).await?;
        let config = ClientConfig {
            timeout: shared.plan.timeout,
            silence_max: shared.plan.silence_max(),
            endpoint: shared.plan.client_endpoint(),
            seed: Some(seed::derive(shared.plan.seed, "client", host as u64 + (number << 32))),
            ..ClientConfig::default()
        };
        let ring = shared.ring.as_ref().clone();
        let client = Client::with_socket(socket, ring, shared.addresses.clone(), None, config)?;
        Ok(Arc::new(Self { client, host, writes: AtomicU64::new(0), shared }))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.shared.recorder.lived(format!("the client on host {}", self.host), self.client.levels());
    }
}

/// A machine with workers, which share its client. A new client takes over when the machine is to have one: it has not talked to
/// any server, and what the one before has under way ends by itself.
pub(crate) struct Machine {
    shared: Arc<Shared>,
    host: Host,
    client: Mutex<(u64, Arc<Recorded>)>,
}

impl Machine {
    /// A machine with its first client.
    pub(crate) async fn start(shared: Arc<Shared>, host: Host) -> Result<Arc<Self>, Error> {
        let client = Mutex::new((0, Recorded::start(shared.clone(), host, 0).await?));
        Ok(Arc::new(Self { shared, host, client }))
    }

    /// The client that is to be used now.
    pub(crate) async fn client(&self) -> Result<Arc<Recorded>, Error> {
        let mut client = self.client.lock().await;
        let number = self.shared.clients_wanted(self.host);
        if client.0 < number {
            *client = (number, Recorded::start(self.shared.clone(), self.host, number).await?);
        }
        Ok(client.1.clone())
    }
}

/// One of a machine's workers: it does one thing at a time, and remembers what it has seen.
pub(crate) struct Worker {
    recorded: Arc<Recorded>,
    /// Its number in the history.
    number: u32,
    seen: BTreeMap<String, Context>,
}

impl Worker {
    pub(crate) fn new(recorded: Arc<Recorded>) -> Self {
        let number = recorded.shared.recorder.new_client();
        Self { recorded, number, seen: BTreeMap::new() }
    }

    /// Goes on with this client.
    pub(crate) fn use_client(&mut self, client: Arc<Recorded>) {
        self.recorded = client;
    }

    /// The context last seen of a key, if any.
    pub(crate) fn seen(&self, key: &KeyPlan) -> Option<Context> {
        self.seen.get(&key.name).cloned()
    }

    /// Reads a key. Returns whether it worked.
    pub(crate) async fn get(&mut self, key: &KeyPlan, quorum: QuorumPlan, timeout: Duration) -> bool {
        let id = self.call(key, quorum, quorum.r, timeout, Action::Read);
        let get = self.recorded.client.get(key.name.clone()).siblings().sloppy(quorum.sloppy);
        let got = get.n(quorum.n).r(quorum.r).timeout(timeout).await;
        let outcome = match &got {
            Ok(got) => Outcome::Read {
                values: got.siblings().iter().map(|value| value.as_ref().map(value_id)).collect(),
                context: open(key, got.context()),
            },
            Err(_) => Outcome::Unavailable,
        };
        self.note(id, &outcome, got.as_ref().err());
        self.recorded.shared.recorder.returned(id, now(), outcome);
        if let Ok(got) = &got {
            self.counted(id, got.answered(), got.stand_ins());
            self.seen.insert(key.name.clone(), got.context().clone());
        }
        got.is_ok()
    }

    /// Writes.
    pub(crate) async fn write(
        &mut self,
        key: &KeyPlan,
        quorum: QuorumPlan,
        timeout: Duration,
        context: Option<Context>,
        NewValue { len, ttl }: NewValue,
    ) {
        let shared = self.recorded.shared.clone();
        let write = shared.recorder.new_write();
        let action = Action::Write {
            value: len.map(|_| write),
            write,
            context: context.as_ref().map(|context| open(key, context)),
            ttl_ms: ttl.map(|ttl| micros(ttl) / 1_000),
        };
        let id = self.call(key, quorum, quorum.w, timeout, action);
        let client = &self.recorded.client;
        let put = match len {
            Some(len) => client.put(key.name.clone(), value(write, len)),
            None => client.delete(key.name.clone()),
        };
        let put = put.n(quorum.n).w(quorum.w).sloppy(quorum.sloppy).timeout(timeout);
        let put = match &context {
            Some(context) => put.context(context),
            None => put,
        };
        let put = match ttl {
            Some(ttl) => put.ttl(ttl),
            None => put,
        };
        // The client numbers its writes in the order in which they are first polled, which is now.
        let sequence = self.recorded.writes.fetch_add(1, Ordering::Relaxed);
        let op = OpId { client: client.id(), sequence };
        shared.trace.note(now(), format_args!("client {} sends #{id} as {op:?}", self.number));
        shared.recorder.wrote(op, write);
        let written = put.await;
        let outcome = match &written {
            Ok(written) => Outcome::Written { context: open(key, written.context()) },
            Err(error) if error.nothing_was_written() => Outcome::Failed,
            Err(_) => Outcome::Unknown,
        };
        self.note(id, &outcome, written.as_ref().err());
        if outcome == Outcome::Unknown {
            self.number = shared.recorder.new_client();
        }
        shared.recorder.returned(id, now(), outcome);
        if let Ok(written) = written {
            self.counted(id, written.acked(), written.stand_ins());
            self.seen.insert(key.name.clone(), written.context().clone());
        }
    }

    /// Writes down who counted.
    fn counted(&self, id: usize, owners: &[ServerName], stand_ins: &[StandIn]) {
        let Shared { ring, recorder, .. } = &*self.recorded.shared;
        let index = |name: &ServerName| ring.servers().position(name);
        let owners = owners.iter().filter_map(index).collect();
        let pair = |stand_in: &StandIn| Some((index(&stand_in.server)?, index(&stand_in.owner)?));
        let stand_ins = stand_ins.iter().filter_map(pair).collect();
        recorder.counted(id, Counted { owners, stand_ins });
    }

    fn call(
        &self,
        key: &KeyPlan,
        QuorumPlan { n, sloppy, .. }: QuorumPlan,
        quorum: usize,
        timeout: Duration,
        action: Action,
    ) -> usize {
        let called = now();
        let operation = Operation {
            id: 0,
            client: self.number,
            key: key.name.clone(),
            n,
            quorum,
            sloppy,
            called,
            returned: None,
            deadline: called + micros(timeout),
            action,
            outcome: Outcome::Pending,
        };
        let trace = &self.recorded.shared.trace;
        let kind = if sloppy { " sloppy" } else { "" };
        let what = format!("{} n={n} quorum={quorum}{kind} {:?}", operation.key, operation.action);
        let id = self.recorded.shared.recorder.called(operation);
        trace.note(called, format_args!("client {} calls #{id}: {what}", self.number));
        id
    }

    fn note(&self, id: usize, outcome: &Outcome, error: Option<&Error>) {
        let why = error.map(|error| format!(" ({error})")).unwrap_or_default();
        let trace = &self.recorded.shared.trace;
        trace.note(now(), format_args!("client {} hears #{id}: {outcome:?}{why}", self.number));
    }
}

/// The bytes of a write's value: its number, then filling.
pub(crate) fn value(write: ValueId, len: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + len);
    bytes.put_u64(write);
    bytes.put_bytes(b'.', len);
    bytes.freeze()
}

/// The number in a value; 0, which no write has, when it holds none.
fn value_id(value: &Bytes) -> ValueId {
    let filling_is_whole = value.iter().skip(8).all(|&byte| byte == b'.');
    match value.first_chunk() {
        Some(number) if filling_is_whole => u64::from_be_bytes(*number),
        Some(_) | None => 0,
    }
}

fn open(key: &KeyPlan, context: &Context) -> VersionVector {
    if context.is_empty() {
        return VersionVector::new();
    }
    dkvs_proto::context::decode(key.name.as_bytes(), context.as_bytes()).expect("a context that servers made")
}
