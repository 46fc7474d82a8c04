//! A server from start to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::quorum::Quorum;
use dkvs_core::record::{Record, RecordHash};
use dkvs_net::{Endpoint, Gauge, Level, Service, Socket, Validity};
use dkvs_proto::message::replica::{ReplicaAnswer, ReplicaRequest};
use dkvs_proto::message::{Answer, Request};
use dkvs_storage::{Start, Store, StoreError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::anti_entropy::{self, AntiEntropy};
use crate::clock::Clock;
use crate::config::ServerConfig;
use crate::coordinator::{Coordinator, LateRepairs};
use crate::failure_detector::{self, FailureDetector};
use crate::hints;
use crate::mend;
use crate::reaping;
use crate::replica::{QueueLimits, Replica, ReplicaConfig, ReplicaError, Terms};
use crate::scrub::{self, Scrub};
use crate::stored::Stored;
use crate::tree;

/// A running server. Dropping it without [`Server::stop`] is like a crash.
pub struct Server<S: Socket, T: Store> {
    running: Arc<Running<S, T>>,
    /// What goes on beside requests. It can be ended anywhere: what it changes, it has the writer change.
    background: Vec<AbortHandle>,
}

impl<S: Socket, T: Store> std::fmt::Debug for Server<S, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.local_addr())
    }
}

/// What a server's tasks share.
pub(crate) struct Running<S: Socket, T> {
    pub(crate) coordinator: Arc<Coordinator<S, T>>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) quorum: Quorum,
    pub(crate) sloppy: bool,
    pub(crate) data_dir: String,
    pub(crate) disk_free_bytes_min: u64,
    pub(crate) scrub: Arc<Scrub>,
    pub(crate) start: Instant,
}

impl<S: Socket, T: Store> Server<S, T> {
    /// Starts to serve on `socket` from `store`. `start` says how the store's last run ended. `initial` pairs are
    /// there before the first request is served; each is older than any put.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn start(
        socket: S,
        store: T,
        start: Start,
        initial: Vec<(Bytes, Bytes)>,
        config: ServerConfig,
    ) -> Result<Self, ReplicaError> {
        let mut random = StdRng::seed_from_u64(config.seed);
        let clock = Arc::new(Clock::new(config.wall_clock, config.clock_skew_ms_max));
        let identity_random = StdRng::seed_from_u64(random.next_u64());
        let limits = QueueLimits {
            changes_max: config.changes_max,
            bytes_max: config.change_bytes_max,
            batch_max: config.batch_max,
        };
        let replica_config = ReplicaConfig {
            durability: config.durability,
            limits,
            data_dir: config.data_dir.clone(),
            disk_free_bytes_min: config.disk_free_bytes_min,
            hint_bytes_max: config.hint_bytes_max,
            siblings: config.siblings,
            message_life: reaping::message_life(config.timeout_max),
            given: initial.iter().map(|(key, _)| key.clone()).collect(),
        };
        let replica =
            Replica::open(Arc::new(store), start, replica_config, clock.clone(), identity_random).await?;
        for (key, value) in initial {
            let record = Record::initial(&key, value);
            replica.merge(key, record, Terms::UPKEEP, Validity::unlimited()).await?;
        }
        let endpoint = Endpoint::new(socket, config.endpoint, random.next_u64());
        let detector = FailureDetector::new(config.ring.servers().len(), config.ping_interval);
        let anti_entropy = AntiEntropy::new(
            &config.ring,
            config.me,
            config.quorum.n(),
            config.repair_interval,
            config.repair_bytes_per_s_max,
        );
        let coordinator = Coordinator {
            ring: config.ring,
            me: config.me,
            addresses: config.addresses,
            value_len_max: config.value_len_max,
            timeout_max: config.timeout_max,
            endpoint: endpoint.clone(),
            replica,
            clock: clock.clone(),
            detector,
            anti_entropy,
            repairs: LateRepairs::default(),
            background: Gauge::new(config.background_bytes_max),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            killed: CancellationToken::new(),
        };
        let running = Arc::new(Running {
            coordinator: Arc::new(coordinator),
            clock,
            quorum: config.quorum,
            sloppy: config.sloppy,
            data_dir: config.data_dir,
            disk_free_bytes_min: config.disk_free_bytes_min,
            scrub: Arc::default(),
            start: Instant::now(),
        });
        endpoint.serve(Some(running.clone()));
        let mending = tokio::spawn(mend::run(running.coordinator.clone(), config.quorum.n()));
        let (replica, done) = (running.coordinator.replica.clone(), running.scrub.clone());
        let clock = running.clock.clone();
        let scrubbing =
            tokio::spawn(scrub::run(replica, clock, config.scrub_bytes_per_s, config.scrub_pause, done));
        let reading = tokio::spawn(tree::run(running.coordinator.replica.clone()));
        let mut background = vec![mending.abort_handle(), scrubbing.abort_handle(), reading.abort_handle()];
        let reaping =
            tokio::spawn(reaping::run(running.coordinator.clone(), config.reap_interval, random.next_u64()));
        background.push(reaping.abort_handle());
        for peer in running.coordinator.peers() {
            let watching = tokio::spawn(failure_detector::watch(running.coordinator.clone(), peer));
            background.push(watching.abort_handle());
            let delivering = tokio::spawn(hints::deliver(running.coordinator.clone(), peer));
            background.push(delivering.abort_handle());
            let comparing = tokio::spawn(anti_entropy::run(running.coordinator.clone(), peer));
            background.push(comparing.abort_handle());
        }
        Ok(Self { running, background })
    }

    /// Where it receives.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.running.coordinator.endpoint.local_addr()
    }

    /// The records this server holds.
    #[must_use]
    pub fn replica(&self) -> &Replica<T> {
        &self.running.coordinator.replica
    }

    /// How full everything here is that has a limit, and was at most. What requests being served hold beside is bounded by
    /// their number.
    #[must_use]
    pub fn levels(&self) -> Vec<Level> {
        let mut levels = self.running.coordinator.endpoint.levels();
        levels.extend(self.running.coordinator.replica.levels());
        levels.push(self.running.coordinator.background.level("background_bytes"));
        levels.push(self.running.clock.level());
        levels
    }

    /// Stops: finishes what it is doing for at most `grace`, then makes everything durable and closes the store.
    /// After `Ok` the data directory may be marked clean.
    ///
    /// # Errors
    /// When the store cannot promise that everything is on disk.
    pub async fn stop(&self, grace: Duration) -> Result<(), StoreError> {
        let coordinator = &self.running.coordinator;
        coordinator.endpoint.close(Instant::now() + grace).await;
        self.background.iter().for_each(AbortHandle::abort);
        // What still waits for owners leaves hints for them.
        coordinator.stopping.cancel();
        coordinator.tasks.close();
        coordinator.tasks.wait().await;
        self.running.coordinator.replica.close().await
    }
}

impl<S: Socket, T: Store> Drop for Server<S, T> {
    fn drop(&mut self) {
        self.background.iter().for_each(AbortHandle::abort);
        self.running.coordinator.killed.cancel();
        self.running.coordinator.endpoint.abort();
    }
}

impl<S: Socket, T: Store> Service for Running<S, T> {
    async fn handle(&self, from: SocketAddr, request: Request, validity: Validity) -> Answer {
        match request {
            Request::Client(request) => Answer::Client(self.coordinator.handle(request, validity).await),
            Request::Replica(request) => Answer::Replica(self.handle_replica(from, request, validity).await),
            Request::Admin(request) => Answer::Admin(self.handle_admin(request)),
        }
    }
}

impl<S: Socket, T: Store> Running<S, T> {
    async fn handle_replica(
        &self,
        from: SocketAddr,
        request: ReplicaRequest,
        validity: Validity,
    ) -> ReplicaAnswer {
        let answer = match request {
            ReplicaRequest::Merge { ring, key, record, durability, cause } => {
                match self.coordinator.check(ring, &key) {
                    Ok(()) => {
                        self.clock.observe(from, &record);
                        let terms = Terms { durability, cause };
                        let merged = self.coordinator.replica.merge(key, record, terms, validity).await;
                        merged.map(|missed| ReplicaAnswer::Merged { missed })
                    }
                    Err(refusal) => Err(ReplicaError::Refused(refusal)),
                }
            }
            ReplicaRequest::Fetch { ring, key, known } => match self.coordinator.check(ring, &key) {
                Ok(()) => self.coordinator.replica.stored(&key).map(|stored| held(stored, known)),
                Err(refusal) => Err(ReplicaError::Refused(refusal)),
            },
            ReplicaRequest::Ping => Ok(ReplicaAnswer::Alive),
            ReplicaRequest::MergeHint { ring, key, record, owner, durability, cause } => {
                match self.coordinator.check_stand_in(ring, &key, owner) {
                    Ok(target) => {
                        self.clock.observe(from, &record);
                        let terms = Terms { durability, cause };
                        let replica = &self.coordinator.replica;
                        let kept = replica.stand_in(target, key, record, terms, validity).await;
                        kept.map(|missed| {
                            self.coordinator.detector.news(owner).notify_one();
                            ReplicaAnswer::Merged { missed }
                        })
                    }
                    Err(refusal) => Err(ReplicaError::Refused(refusal)),
                }
            }
            ReplicaRequest::FetchHints { ring, key, known } => match self.coordinator.check(ring, &key) {
                Ok(()) => self.coordinator.replica.fetch_hints(&key).map(|record| {
                    if record.hash() == known { ReplicaAnswer::Same } else { ReplicaAnswer::Record(record) }
                }),
                Err(refusal) => Err(ReplicaError::Refused(refusal)),
            },
            ReplicaRequest::Repair(request) => {
                anti_entropy::answer(&self.coordinator, request).map(ReplicaAnswer::Repair)
            }
            ReplicaRequest::Reap(request) => match self.coordinator.check_reap(&request) {
                Ok(()) => self.coordinator.replica.reap(request, validity).await.map(ReplicaAnswer::Reap),
                Err(refusal) => Err(ReplicaError::Refused(refusal)),
            },
        };
        answer.unwrap_or_else(|error: ReplicaError| ReplicaAnswer::Refused(error.refusal()))
    }
}

/// What this server tells of an entry to one that has the record of this hash.
fn held(Stored { record, is_incomplete, .. }: Stored, known: RecordHash) -> ReplicaAnswer {
    match is_incomplete {
        true => ReplicaAnswer::Incomplete(record),
        false if record.hash() == known => ReplicaAnswer::Same,
        false => ReplicaAnswer::Record(record),
    }
}
