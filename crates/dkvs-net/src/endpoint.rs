//! One port's conversations: calls made from it, and requests served on it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dkvs_proto::codec::CodecError;
use dkvs_proto::envelope::Header;
use dkvs_proto::frame::Frame;
use dkvs_proto::limits::BODY_LEN_MAX;
use dkvs_proto::message::{Answer, Request};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::calls::check_len;
use crate::config::EndpointConfig;
use crate::gauges::{Gauge, Level};
use crate::lock;
use crate::outbox::{Outbox, pack};
use crate::peers::Peers;
use crate::proof::AddressProofs;
use crate::serve;
use crate::sessions::Sessions;
use crate::socket::Socket;
use crate::stream_places::StreamPlaces;
use crate::streams::{self, IdleStreams};
use crate::validity::{ExpiryClock, Validity};

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. It runs to its end even when the caller has given up; what must not be begun then has to
    /// ask `validity`, which repetitions of the request extend.
    fn handle(
        &self,
        from: SocketAddr,
        request: Request,
        validity: Validity,
    ) -> impl Future<Output = Answer> + Send;
}

/// The service of an endpoint that only calls: it cannot exist, so requests are dropped as junk.
#[derive(Debug)]
pub enum NoService {}

impl Service for NoService {
    async fn handle(&self, _: SocketAddr, _: Request, _: Validity) -> Answer {
        match *self {}
    }
}

/// An answer, and what it leaves open.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// Whether the request may have been executed, or may still be, under an id that it had before: by a process of the server that
    /// has ended since, it seems, and whatever the one that answered did.
    pub maybe_done_before: bool,
}

/// Why a call has no answer, by what it says about the request's effects.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// Here or there is too much to do, or the request came too late to be begun. Nothing was done, unless the request had been sent more than once: then an
    /// earlier copy may have been executed, by a server that has restarted since.
    #[error("overloaded")]
    Overloaded {
        /// Whether it had been sent more than once.
        repeated: bool,
    },
    /// The request is longer than any message may be. Nothing was sent.
    #[error("the request has {len} bytes; at most {BODY_LEN_MAX} can be sent")]
    TooLong {
        /// Bytes of the request.
        len: usize,
    },
    /// No stream could be opened, and the request had not been sent in any other way. Nothing was done.
    #[error("cannot connect: {0}")]
    Connect(Arc<std::io::Error>),
    /// The endpoint was closed. The request may have been executed.
    #[error("the endpoint is closed")]
    Closed,
    /// No sign of life from the peer within the caller's patience. The request may have been begun, and what was begun
    /// may take effect even later; it will not be begun any more.
    #[error("no sign of life within {} ms", .0.as_millis())]
    Silent(Duration),
    /// The peer was restarted, it seems, and may have passed the request on before, or does not take it now. Whoever it was passed
    /// to, or the peer itself, may still begin an earlier copy.
    #[error("the server was restarted")]
    Restarted,
    /// No answer by the deadline. The request may have been begun, or by stream may still be.
    #[error("timed out")]
    TimedOut,
    /// The stream broke. The request may have been begun, or may still be.
    #[error("the connection broke: {0}")]
    Broken(Arc<std::io::Error>),
    /// The answer could not be read. The request may have been executed.
    #[error("the answer is malformed: {0}")]
    Malformed(CodecError),
}

impl CallError {
    /// Whether the request certainly had no effect and will have none.
    #[must_use]
    pub fn nothing_was_done(&self) -> bool {
        match self {
            Self::Overloaded { repeated: false } | Self::TooLong { .. } | Self::Connect(_) => true,
            Self::Overloaded { repeated: true }
            | Self::Restarted
            | Self::Closed
            | Self::Silent(_)
            | Self::TimedOut
            | Self::Broken(_)
            | Self::Malformed(_) => false,
        }
    }

    /// Whether the request may be begun from now on. If so, giving it to another server may have it executed twice, and
    /// the second time after whatever follows.
    #[must_use]
    pub fn may_begin_later(&self) -> bool {
        match self {
            Self::Closed | Self::Restarted | Self::TimedOut | Self::Broken(_) => true,
            Self::Overloaded { .. }
            | Self::TooLong { .. }
            | Self::Connect(_)
            | Self::Silent(_)
            | Self::Malformed(_) => false,
        }
    }
}

/// How long a caller waits. A request by datagram is not begun by its receiver after the caller gave it up.
#[derive(Clone, Debug)]
pub struct Patience {
    /// The answer must be here by then.
    pub deadline: Instant,
    /// Give up earlier if the peer shows no sign of having got the request for this long.
    pub silence: Option<Duration>,
    /// The request on whose behalf the call is made: the call's is not to be begun after that has expired.
    pub within: Option<Validity>,
    /// Whether the peer may pass the request on. Then its restart ends the call, as it does not end what was passed on.
    pub passed_on: bool,
}

impl Patience {
    /// Waits until `deadline`, whatever the peer does.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self { deadline, silence: None, within: None, passed_on: false }
    }
}

/// What an endpoint has seen, counted since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams that were not ours, damaged, malformed, or answers nobody waited for.
    pub junk: AtomicU64,
    /// Datagrams whose sender had to prove its address first.
    pub challenged: AtomicU64,
    /// Requests sent again.
    pub retransmitted: AtomicU64,
    /// Messages lost on this side: the outbox was full or the socket refused.
    pub unsent: AtomicU64,
    /// Requests answered as overloaded.
    pub overloaded: AtomicU64,
    /// Requests that came too late to be begun.
    pub expired: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One port's conversations. Clones share it; it closes when the last is dropped, or by [`Endpoint::close`].
pub struct Endpoint<S: Socket> {
    shared: Arc<Shared<S>>,
    close_when_dropped: Arc<DropGuard>,
}

impl<S: Socket> Clone for Endpoint<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), close_when_dropped: self.close_when_dropped.clone() }
    }
}

impl<S: Socket> std::fmt::Debug for Endpoint<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({})", self.shared.socket.local_addr())
    }
}

pub(crate) struct Shared<S: Socket> {
    pub(crate) socket: S,
    pub(crate) config: EndpointConfig,
    pub(crate) session: u64,
    pub(crate) counters: Counters,
    pub(crate) idle_streams: IdleStreams<S::Stream>,
    /// Not a `watch`, which wakes those that wait in a random order: the simulator could not repeat a run.
    pub(crate) closed: CancellationToken,
    pub(crate) streams: StreamPlaces,
    pub(crate) stream_room: Semaphore,
    pub(crate) answer_room: Semaphore,
    pub(crate) client_requests: Places,
    pub(crate) other_requests: Places,
    pub(crate) gauges: Gauges,
    pub(crate) peers: Mutex<Peers>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) proofs: AddressProofs,
    pub(crate) clock: ExpiryClock,
    pub(crate) outbox: Outbox,
    pub(crate) jitter: Mutex<StdRng>,
}

/// Room for requests of one sort that are being served.
///
/// There are two sorts. A client's request waits for what this server asks of others; what others ask of it waits for nobody.
/// If they shared their room, servers full of clients' requests would refuse each other what these wait for, and all would
/// come to nothing.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) free: Arc<Semaphore>,
    pub(crate) gauge: Gauge,
}

impl Places {
    fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max)), gauge: Gauge::new(max) }
    }
}

/// Of what is not in a table that has a gauge of its own.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) challenges: Gauge,
    pub(crate) stream_bytes: Gauge,
    pub(crate) answer_bytes: Gauge,
}

impl Gauges {
    fn new(config: &EndpointConfig) -> Self {
        Self {
            challenges: Gauge::new(serve::CHALLENGES_MAX),
            stream_bytes: Gauge::new(streams::room_len(config)),
            answer_bytes: Gauge::new(streams::room_len(config)),
        }
    }
}

impl<S: Socket> Endpoint<S> {
    /// Starts to call from, and with a `service` to serve on, a port. `seed` is where its session, its proofs and
    /// its jitter come from: it must not be guessable by strangers.
    ///
    /// Must be called within a Tokio runtime.
    pub fn start<V: Service>(socket: S, config: EndpointConfig, seed: u64, service: Option<Arc<V>>) -> Self {
        let endpoint = Self::new(socket, config, seed);
        endpoint.serve(service);
        endpoint
    }

    /// An endpoint that neither sends nor receives until [`Endpoint::serve`]: for a service that calls from the port
    /// it serves on.
    pub fn new(socket: S, config: EndpointConfig, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let closed = CancellationToken::new();
        let close_when_dropped = Arc::new(closed.clone().drop_guard());
        let shared = Shared {
            session: random.next_u64(),
            peers: Mutex::new(Peers::new(random.next_u64() >> 2, config.calls_max)),
            proofs: AddressProofs::new((random.next_u64(), random.next_u64())),
            clock: ExpiryClock::new(random.next_u64()),
            sessions: Mutex::new(Sessions::new(config.sessions_max)),
            outbox: Outbox::new(config.outbox_len_max),
            client_requests: Places::new(config.requests_max),
            other_requests: Places::new(config.requests_max),
            streams: StreamPlaces::new(config.streams_max),
            stream_room: Semaphore::new(config.stream_bytes_max / streams::ROOM_UNIT_LEN),
            answer_room: Semaphore::new(config.stream_bytes_max / streams::ROOM_UNIT_LEN),
            gauges: Gauges::new(&config),
            jitter: Mutex::new(random),
            counters: Counters::default(),
            idle_streams: IdleStreams::default(),
            closed,
            socket,
            config,
        };
        Self { shared: Arc::new(shared), close_when_dropped }
    }

    /// Starts to send, receive and serve. To be called once.
    pub fn serve<V: Service>(&self, service: Option<Arc<V>>) {
        tokio::spawn(self.shared.clone().send_loop());
        tokio::spawn(self.shared.clone().receive_loop(service.clone()));
        if let Some(service) = service {
            tokio::spawn(streams::accept_loop(self.shared.clone(), service));
        }
    }

    /// The address the port is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.socket.local_addr()
    }

    /// What the endpoint has seen.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// How full everything here is that has a limit, and was at most.
    #[must_use]
    pub fn levels(&self) -> Vec<Level> {
        let Shared { outbox, gauges, idle_streams, streams, client_requests, other_requests, .. } =
            &*self.shared;
        let mut levels = vec![
            outbox.gauge.level("outbox"),
            idle_streams.gauge.level("idle_streams"),
            client_requests.gauge.level("client_requests"),
            other_requests.gauge.level("other_requests"),
            gauges.challenges.level("challenges"),
            streams.gauge.level("streams"),
            gauges.stream_bytes.level("stream_bytes"),
            gauges.answer_bytes.level("answer_bytes"),
        ];
        let peers = lock(&self.shared.peers);
        levels.extend([peers.calls_gauge.level("calls"), peers.peers_gauge.level("peers")]);
        drop(peers);
        let sessions = lock(&self.shared.sessions);
        levels.extend([
            sessions.sessions_gauge.level("sessions"),
            sessions.answers_gauge.level("answers"),
            sessions.answers_of_one_gauge.level("answers_of_one_session"),
        ]);
        levels
    }

    /// Asks `to`, by datagram if the request fits one and by stream otherwise, and waits for the answer.
    ///
    /// # Errors
    /// [`CallError`] says whether the request may have been executed. Dropping the future abandons the call.
    pub async fn call(
        &self,
        to: SocketAddr,
        request: &Request,
        patience: Patience,
    ) -> Result<Answer, CallError> {
        self.ask(to, request, patience).await.map(|answered| answered.answer)
    }

    /// As [`Endpoint::call`], for a request that is not idempotent and may be refused.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    pub async fn ask(
        &self,
        to: SocketAddr,
        request: &Request,
        patience: Patience,
    ) -> Result<Answered, CallError> {
        let (kind, body) = request.encode();
        self.shared.call(to, kind, &body, patience).await
    }

    /// Asks `to` by stream: for a request whose answer is known to be long.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    pub async fn call_by_stream(
        &self,
        to: SocketAddr,
        request: &Request,
        patience: Patience,
    ) -> Result<Answer, CallError> {
        let (kind, body) = request.encode();
        check_len(&body)?;
        let call = self.shared.begin(to, &patience, |_, _| None)?;
        let frame = Frame { kind, id: call.id, expires: 0, body: &body };
        let answered = self.shared.call_by_stream(to, frame, patience.deadline, false).await?;
        Ok(answered.answer)
    }

    /// Takes no new requests, lets those being served finish until `deadline`, sends their answers, and stops.
    pub async fn close(&self, deadline: Instant) {
        let all = u32::try_from(self.shared.config.requests_max).unwrap_or(u32::MAX);
        // While this waits, requests that come find no permit and are answered as overloaded.
        let mut all_served = Vec::new();
        for places in [&self.shared.client_requests, &self.shared.other_requests] {
            all_served.extend(timeout_at(deadline, places.free.acquire_many(all)).await);
        }
        let _all_sent = timeout_at(deadline, self.shared.send_queued()).await;
        self.abort();
        drop(all_served);
    }

    /// Stops at once: nothing more is sent, received or served.
    pub fn abort(&self) {
        self.shared.closed.cancel();
    }
}

/// Sending.
impl<S: Socket> Shared<S> {
    pub(crate) fn push(&self, to: SocketAddr, frame: Arc<[u8]>) {
        if !self.outbox.push(to, frame) {
            Counters::count(&self.counters.unsent);
        }
    }

    async fn send_loop(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
                () = self.outbox.filled() => {}
            }
            // Tasks that are ready to run now may have something to add. Nobody waits: with nothing else to do, this
            // returns at once.
            tokio::task::yield_now().await;
            self.send_queued().await;
        }
    }

    async fn send_queued(&self) {
        for (to, frames) in self.outbox.take() {
            let (proof, oldest) = lock(&self.peers).proof_and_oldest(to);
            let header = Header { session: self.session, proof, oldest };
            for run in pack(header, &frames, self.config.datagram_len_max) {
                self.send(to, &run.bytes, run.segment_len).await;
            }
        }
    }

    pub(crate) async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) {
        if let Err(error) = self.socket.send(to, bytes, segment_len).await {
            Counters::count(&self.counters.unsent);
            tracing::debug!(%to, %error, "datagram lost on this side");
        }
    }
}
