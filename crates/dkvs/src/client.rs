//! A client: the ring, a port to call from, and the choice of whom to ask.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::quorum::Quorum;
use dkvs_core::record::OpId;
use dkvs_core::ring::Ring;
use dkvs_core::servers::{ServerEntry, ServerIndex, ServerList, ServerName};
use dkvs_net::{CallError, Endpoint, Gauge, Level, NoService, Patience, Port, Socket, resolve};
use dkvs_proto::message::admin::{AdminAnswer, AdminRequest, RingReport, RingServer};
use dkvs_proto::message::client::{
    self as wire, ClientAnswer, ClientRequest, Failure, OwnerAnswer, QuorumMissed,
};
use dkvs_proto::message::{Answer, Refusal, Request};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::config::ClientConfig;
use crate::context::Context;
use crate::error::{Error, OwnerReport, QuorumKind, QuorumReport, in_words};
use crate::request::{Get, Put, StandIn};

/// Part of an operation's time after which a server that shows no sign of life is passed over.
const SILENCE_SHARE: u32 = 4;

/// What is said of a server whose answer does not belong to the question.
const NONSENSE: &str = "it answered another question; is it of another release?";

/// How long a silent server is asked last.
const SUSPICION: Duration = Duration::from_secs(5);

/// What decides whom an operation goes to.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    pub(crate) kind: QuorumKind,
    /// The first so many of the key's preference list are its owners.
    pub(crate) n: usize,
    pub(crate) is_sloppy: bool,
}

/// A client of a cluster. Cheap to clone; clones share the port and may be used at the same time.
pub struct Client<S: Socket = Port> {
    inner: Arc<Inner<S>>,
}

impl<S: Socket> Clone for Client<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<S: Socket> std::fmt::Debug for Client<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client of {:?}", self.inner.ring)
    }
}

struct Inner<S: Socket> {
    ring: Ring,
    addresses: Vec<SocketAddr>,
    endpoint: Endpoint<S>,
    config: ClientConfig,
    defaults: Option<Quorum>,
    client_id: u64,
    operations: AtomicU64,
    /// Servers of the ring, so at most as many.
    suspects: Mutex<BTreeMap<ServerIndex, Instant>>,
    suspects_gauge: Gauge,
}

impl Client {
    /// Asks the server at `HOST:PORT` for the ring, and becomes a client of its cluster.
    ///
    /// # Errors
    /// [`Error::Usage`] when the text is not an address, [`Error::Connect`] when nobody answers there.
    pub async fn connect(server: &str) -> Result<Self, Error> {
        Self::connect_with(server, ClientConfig::default()).await
    }

    /// [`Client::connect`] with settings.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(server: &str, config: ClientConfig) -> Result<Self, Error> {
        let name: ServerName = server.parse()?;
        let failed = |reason: String| Error::Connect { server: server.to_owned(), reason };
        let to = resolve_name(&name).await?;
        let port = Port::for_calls(&[to]).await?;
        let (endpoint, _) = endpoint(port, &config)?;
        let patience = Patience::until(Instant::now() + config.timeout);
        let answer = endpoint.call(to, &Request::Admin(AdminRequest::Ring), patience).await;
        let report = match answer.map_err(|error| failed(error.to_string()))? {
            Answer::Admin(AdminAnswer::Ring(report)) => report,
            Answer::Admin(AdminAnswer::Refused(refusal)) => return Err(failed(in_words(&refusal))),
            Answer::Admin(_) | Answer::Client(_) | Answer::Replica(_) => {
                return Err(failed(NONSENSE.into()));
            }
        };
        let defaults = Quorum::new(report.n.into(), report.r.into(), report.w.into()).ok();
        let config = ClientConfig { sloppy: config.sloppy.or(Some(report.sloppy)), ..config };
        let servers = server_list(report).map_err(failed)?;
        Self::build(servers, defaults, config).await
    }

    /// A client of the cluster whose `servers.txt` this is. Sends nothing yet.
    ///
    /// # Errors
    /// [`Error::Connect`] when a host name has no address.
    pub async fn with_servers(servers: ServerList, config: ClientConfig) -> Result<Self, Error> {
        Self::build(servers, None, config).await
    }

    async fn build(
        servers: ServerList,
        defaults: Option<Quorum>,
        config: ClientConfig,
    ) -> Result<Self, Error> {
        let mut addresses = Vec::with_capacity(servers.len());
        for entry in &servers {
            addresses.push(resolve_name(&entry.name).await?);
        }
        let port = Port::for_calls(&addresses).await?;
        Self::with_socket(port, Ring::new(servers), addresses, defaults, config)
    }
}

async fn resolve_name(name: &ServerName) -> Result<SocketAddr, Error> {
    let resolved = resolve(&name.host().to_string(), name.port()).await;
    resolved.map_err(|error| Error::Connect { server: name.to_string(), reason: error.to_string() })
}

fn server_list(report: RingReport) -> Result<ServerList, String> {
    let entry = |server: RingServer| {
        let name = ServerName::new(&server.host, server.port).map_err(|error| error.to_string())?;
        Ok(ServerEntry { name, nodes: server.nodes })
    };
    let entries = report.servers.into_iter().map(entry).collect::<Result<Vec<_>, String>>()?;
    ServerList::new(entries).map_err(|error| error.to_string())
}

fn endpoint<S: Socket>(socket: S, config: &ClientConfig) -> Result<(Endpoint<S>, StdRng), Error> {
    let mut random = StdRng::seed_from_u64(config.seed.unwrap_or_else(rand::random));
    let transport = config.endpoint.clone().validated()?;
    let endpoint = Endpoint::start::<NoService>(socket, transport, random.next_u64(), None);
    Ok((endpoint, random))
}

impl<S: Socket> Client<S> {
    /// A client on a socket of one's own: a simulated one, or where the ring's names are not where servers receive.
    /// `addresses` are in the ring's order.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is not one address for each server, or a setting is out of its range.
    pub fn with_socket(
        socket: S,
        ring: Ring,
        addresses: Vec<SocketAddr>,
        defaults: Option<Quorum>,
        config: ClientConfig,
    ) -> Result<Self, Error> {
        if addresses.len() != ring.servers().len() {
            let (given, servers) = (addresses.len(), ring.servers().len());
            return Err(Error::Usage(format!("{given} addresses for a ring of {servers} servers")));
        }
        let (endpoint, mut random) = endpoint(socket, &config)?;
        let suspects_gauge = Gauge::new(ring.servers().len());
        let inner = Inner {
            ring,
            addresses,
            endpoint,
            config,
            defaults,
            client_id: random.next_u64(),
            operations: AtomicU64::new(0),
            suspects: Mutex::default(),
            suspects_gauge,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The number this client goes by in the records it writes, drawn from its seed. Beside it stands the number of
    /// the write: 0 for the first put or delete that this client sent, then 1, and so on.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.client_id
    }

    /// How full everything here is that has a limit, and was at most.
    #[must_use]
    pub fn levels(&self) -> Vec<Level> {
        let mut levels = self.inner.endpoint.levels();
        levels.push(self.inner.suspects_gauge.level("suspects"));
        levels
    }

    /// The ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.inner.ring
    }

    /// Where a server of the ring receives.
    #[must_use]
    pub fn address(&self, server: ServerIndex) -> Option<SocketAddr> {
        self.inner.addresses.get(server.as_usize()).copied()
    }

    /// Writes a value. Await the builder to send it.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Put<S> {
        Put::value(self.clone(), key.into(), value.into())
    }

    /// Deletes a key; deleting one that does not exist succeeds. Await the builder to send it.
    pub fn delete(&self, key: impl Into<Bytes>) -> Put<S> {
        Put::tombstone(self.clone(), key.into())
    }

    /// Reads a key. Await the builder to send it.
    pub fn get(&self, key: impl Into<Bytes>) -> Get<S> {
        Get::new(self.clone(), key.into())
    }

    /// The quorum a request gets that asks for these, on this client's ring.
    ///
    /// # Errors
    /// [`Error::Usage`] when the numbers make no quorum.
    pub fn quorum(&self, n: Option<usize>, r: Option<usize>, w: Option<usize>) -> Result<Quorum, Error> {
        let config = &self.inner.config;
        let servers = self.inner.ring.servers().len();
        let chosen_n = n.or(config.n);
        // The cluster's own quorums belong to the cluster's own n.
        let defaults = self.inner.defaults.filter(|defaults| chosen_n.is_none_or(|n| n == defaults.n()));
        let n = chosen_n.or(defaults.map(Quorum::n));
        let r = r.or(config.r).or(defaults.map(Quorum::r));
        let w = w.or(config.w).or(defaults.map(Quorum::w));
        Ok(Quorum::with_defaults(servers, n, r, w)?)
    }

    /// Whether a request is sloppy that asks for this; strict where neither it, the client nor the cluster says.
    pub(crate) fn is_sloppy(&self, asked: Option<bool>) -> bool {
        asked.or(self.inner.config.sloppy).unwrap_or(false)
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub(crate) fn next_op(&self) -> OpId {
        let sequence = self.inner.operations.fetch_add(1, Ordering::Relaxed);
        OpId { client: self.inner.client_id, sequence }
    }

    /// Sends an operation to the owners of its key, one after the other until one coordinates it; then to the other
    /// servers, which pass it on. A write goes to the next server only when the one before will not begin it any more.
    /// `request` makes the message from the milliseconds that are left, `read` takes what was
    /// asked for out of the answer.
    pub(crate) async fn coordinate<A>(
        &self,
        key: &[u8],
        Route { kind, n, is_sloppy }: Route,
        deadline: Instant,
        request: impl Fn(u32) -> ClientRequest,
        read: impl Fn(ClientAnswer) -> Option<A>,
    ) -> Result<A, Error> {
        let start = Instant::now();
        // All owners may be silent, and somebody else is to have time to stand in for them.
        let shares = if is_sloppy { u32::try_from(n + 1).unwrap_or(u32::MAX) } else { SILENCE_SHARE };
        let share = deadline.saturating_duration_since(start) / shares.max(SILENCE_SHARE);
        let silence = share.min(self.inner.config.silence_max);
        let mut tried = Vec::new();
        let mut maybe_done = false;
        let owners = self.inner.ring.owners_of_key(key, n);
        for server in self.candidates(key) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let request = Request::Client(request(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)));
            let passed_on = kind == QuorumKind::Write && !owners.contains(&server);
            let patience = Patience { deadline, silence: Some(silence), within: None, passed_on };
            let to = self.inner.addresses[server.as_usize()];
            let answered = self.inner.endpoint.ask(to, &request, patience).await;
            let maybe_done_before = answered.as_ref().is_ok_and(|answered| answered.maybe_done_before);
            maybe_done |= maybe_done_before;
            let failure = match answered.map(|answered| answered.answer) {
                Ok(Answer::Client(ClientAnswer::Failed(failure))) => {
                    match self.failed(server, kind, failure) {
                        // An earlier copy may be at work there.
                        Ok(report) if kind == QuorumKind::Write && maybe_done_before => {
                            tried.push((self.name(server), report));
                            break;
                        }
                        Ok(report) => report,
                        // It speaks for itself alone, and for the process that it is now.
                        Err(error)
                            if kind == QuorumKind::Write && maybe_done && error.nothing_was_written() =>
                        {
                            let reason = if let Error::Refused { reason, .. } = error {
                                reason
                            } else {
                                error.to_string()
                            };
                            tried.push((self.name(server), OwnerReport::Failed(reason)));
                            break;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(Answer::Client(answer)) => {
                    self.suspects().remove(&server);
                    if let Some(read) = read(answer) {
                        return Ok(read);
                    }
                    maybe_done = true;
                    OwnerReport::Failed(NONSENSE.into())
                }
                Ok(Answer::Replica(_) | Answer::Admin(_)) => {
                    maybe_done = true;
                    OwnerReport::Failed(NONSENSE.into())
                }
                Err(error) => {
                    maybe_done |= !error.nothing_was_done();
                    self.suspect(server);
                    if kind == QuorumKind::Write && error.may_begin_later() {
                        tried.push((self.name(server), silent(&error)));
                        break;
                    }
                    silent(&error)
                }
            };
            tried.push((self.name(server), failure));
        }
        let report = QuorumReport {
            kind: QuorumKind::Coordinator,
            needed: 1,
            owners: tried,
            stand_ins: Vec::new(),
            waited: start.elapsed(),
        };
        Err(if kind == QuorumKind::Write && maybe_done {
            Error::Unknown(report)
        } else {
            Error::Unavailable(report)
        })
    }

    /// The servers to ask, best first: owners before others, those that were silent lately last.
    fn candidates(&self, key: &[u8]) -> Vec<ServerIndex> {
        let ring = &self.inner.ring;
        let mut candidates = ring.owners_of_key(key, ring.servers().len()).to_vec();
        let mut suspects = self.suspects();
        suspects.retain(|_, since| since.elapsed() < SUSPICION);
        candidates.sort_by_key(|server| suspects.contains_key(server));
        candidates
    }

    /// What to make of a coordinator's failure: an error, or a reason to ask the next server.
    fn failed(&self, server: ServerIndex, kind: QuorumKind, failure: Failure) -> Result<OwnerReport, Error> {
        match failure {
            Failure::Quorum(missed) => Err(self.missed(kind, missed)),
            Failure::Refused(refusal) => match refusal {
                Refusal::Overloaded
                | Refusal::Stopping
                | Refusal::NotOwner
                | Refusal::Storage(_)
                | Refusal::DiskFull { .. }
                | Refusal::Damaged => Ok(OwnerReport::Failed(in_words(&refusal))),
                Refusal::WrongRing { ring } => Err(Error::WrongRing {
                    server: self.name(server),
                    theirs: ring.to_string(),
                    ours: self.inner.ring.id().to_string(),
                }),
                Refusal::TooManySiblings { siblings, siblings_max, context } => Err(Error::TooManySiblings {
                    server: self.name(server),
                    siblings,
                    siblings_max,
                    context: Context(context.0),
                }),
                Refusal::BadContext | Refusal::TooLong { .. } | Refusal::Invalid(_) => {
                    Err(Error::Refused { server: self.name(server), reason: in_words(&refusal) })
                }
            },
        }
    }

    fn missed(&self, kind: QuorumKind, missed: QuorumMissed) -> Error {
        let owner = |(server, answer): (ServerIndex, OwnerAnswer)| {
            let report = match answer {
                OwnerAnswer::Ok => OwnerReport::Ok,
                OwnerAnswer::TimedOut => OwnerReport::TimedOut,
                OwnerAnswer::Refused(refusal) => OwnerReport::Failed(in_words(&refusal)),
            };
            (self.name(server), report)
        };
        let report = QuorumReport {
            kind,
            needed: missed.needed.into(),
            owners: missed.owners.into_iter().filter(|(server, _)| self.knows(*server)).map(owner).collect(),
            waited: Duration::from_millis(missed.waited_ms.into()),
            stand_ins: self.stand_ins(missed.stand_ins),
        };
        if kind == QuorumKind::Write { Error::Unknown(report) } else { Error::Unavailable(report) }
    }

    fn knows(&self, server: ServerIndex) -> bool {
        server.as_usize() < self.inner.addresses.len()
    }

    /// The name of a server of this ring.
    pub(crate) fn name(&self, server: ServerIndex) -> ServerName {
        self.inner.ring.servers()[server].name.clone()
    }

    pub(crate) fn names(&self, servers: Vec<ServerIndex>) -> Vec<ServerName> {
        servers.into_iter().filter(|&server| self.knows(server)).map(|server| self.name(server)).collect()
    }

    pub(crate) fn stand_ins(&self, stand_ins: Vec<wire::StandIn>) -> Vec<StandIn> {
        let named = |wire::StandIn { server, owner }| {
            let is_known = self.knows(server) && self.knows(owner);
            is_known.then(|| StandIn { server: self.name(server), owner: self.name(owner) })
        };
        stand_ins.into_iter().filter_map(named).collect()
    }

    fn suspect(&self, server: ServerIndex) {
        let mut suspects = self.suspects();
        suspects.insert(server, Instant::now());
        self.inner.suspects_gauge.set(suspects.len());
    }

    fn suspects(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerIndex, Instant>> {
        self.inner.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks one server about itself.
    pub(crate) async fn ask_admin(
        &self,
        server: ServerIndex,
        request: AdminRequest,
        by_stream: bool,
    ) -> Result<AdminAnswer, Error> {
        let failed = |reason: String| Error::Connect { server: self.name(server).to_string(), reason };
        let to = self.address(server).ok_or_else(|| Error::Usage(format!("there is no server {server}")))?;
        let patience = Patience::until(Instant::now() + self.inner.config.timeout);
        let request = Request::Admin(request);
        let answer = if by_stream {
            self.inner.endpoint.call_by_stream(to, &request, patience).await
        } else {
            self.inner.endpoint.call(to, &request, patience).await
        };
        match answer.map_err(|error| failed(error.to_string()))? {
            Answer::Admin(AdminAnswer::Refused(refusal)) => Err(failed(in_words(&refusal))),
            Answer::Admin(answer) => Ok(answer),
            Answer::Client(_) | Answer::Replica(_) => Err(failed(NONSENSE.into())),
        }
    }
}

fn silent(error: &CallError) -> OwnerReport {
    match error {
        CallError::Silent(_) | CallError::TimedOut => OwnerReport::TimedOut,
        CallError::Overloaded { .. }
        | CallError::TooLong { .. }
        | CallError::Connect(_)
        | CallError::Closed
        | CallError::Restarted
        | CallError::Broken(_)
        | CallError::Malformed(_) => OwnerReport::Failed(error.to_string()),
    }
}
