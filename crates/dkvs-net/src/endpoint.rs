//! One port's conversations: calls made from it, and requests served on it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dkvs_proto::codec::CodecError;
use dkvs_proto::envelope::{self, ENVELOPE_HEADER_LEN, Header};
use dkvs_proto::frame::{Frame, Kind};
use dkvs_proto::limits::BODY_LEN_MAX;
use dkvs_proto::message::{Answer, Request};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::EndpointConfig;
use crate::lock;
use crate::outbox::{Outbox, pack};
use crate::peers::{Heard, Peers};
use crate::proof::AddressProofs;
use crate::sessions::{Admission, Sessions};
use crate::socket::Socket;
use crate::streams::{self, IdleStreams};

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. It runs to its end even when the caller has given up.
    fn handle(&self, from: SocketAddr, request: Request) -> impl Future<Output = Answer> + Send;
}

/// The service of an endpoint that only calls: it cannot exist, so requests are dropped as junk.
#[derive(Debug)]
pub enum NoService {}

impl Service for NoService {
    async fn handle(&self, _: SocketAddr, _: Request) -> Answer {
        match *self {}
    }
}

/// Why a call has no answer, by what it says about the request's effects.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// Here or there is too much to do. Nothing was done.
    #[error("overloaded")]
    Overloaded,
    /// The request is longer than any message may be. Nothing was sent.
    #[error("the request has {len} bytes; at most {BODY_LEN_MAX} can be sent")]
    TooLong {
        /// Bytes of the request.
        len: usize,
    },
    /// No stream could be opened. Nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(Arc<std::io::Error>),
    /// The endpoint was closed. The request may have been executed.
    #[error("the endpoint is closed")]
    Closed,
    /// No sign of life from the peer within the caller's patience. The request may be executed, even later.
    #[error("no sign of life within {} ms", .0.as_millis())]
    Silent(Duration),
    /// No answer by the deadline. The request may be executed, even later.
    #[error("timed out")]
    TimedOut,
    /// The stream broke. The request may have been executed.
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
            Self::Overloaded | Self::TooLong { .. } | Self::Connect(_) => true,
            Self::Closed | Self::Silent(_) | Self::TimedOut | Self::Broken(_) | Self::Malformed(_) => false,
        }
    }
}

/// How long a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The answer must be here by then.
    pub deadline: Instant,
    /// Give up earlier if the peer shows no sign of having got the request for this long.
    pub silence: Option<Duration>,
}

impl Patience {
    /// Waits until `deadline`, whatever the peer does.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self { deadline, silence: None }
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
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One port's conversations. Clones share it; it closes when the last is dropped, or by [`Endpoint::close`].
pub struct Endpoint<S: Socket> {
    shared: Arc<Shared<S>>,
    close_when_dropped: Arc<CloseOnDrop>,
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

#[derive(Debug)]
struct CloseOnDrop(watch::Sender<bool>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

pub(crate) struct Shared<S: Socket> {
    pub(crate) socket: S,
    pub(crate) config: EndpointConfig,
    pub(crate) session: u64,
    pub(crate) counters: Counters,
    pub(crate) idle_streams: IdleStreams<S::Stream>,
    pub(crate) closed: watch::Receiver<bool>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) stream_room: Semaphore,
    requests: Arc<Semaphore>,
    peers: Mutex<Peers>,
    sessions: Mutex<Sessions>,
    proofs: AddressProofs,
    outbox: Outbox,
    jitter: Mutex<StdRng>,
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
        let (close, closed) = watch::channel(false);
        let shared = Shared {
            session: random.next_u64(),
            peers: Mutex::new(Peers::new(random.next_u64() >> 2)),
            proofs: AddressProofs::new((random.next_u64(), random.next_u64())),
            sessions: Mutex::new(Sessions::new(config.sessions_max)),
            outbox: Outbox::new(config.outbox_len_max),
            requests: Arc::new(Semaphore::new(config.requests_max)),
            streams: Arc::new(Semaphore::new(config.streams_max)),
            stream_room: Semaphore::new(config.stream_bytes_max / streams::ROOM_UNIT_LEN),
            jitter: Mutex::new(random),
            counters: Counters::default(),
            idle_streams: IdleStreams::default(),
            closed,
            socket,
            config,
        };
        Self { shared: Arc::new(shared), close_when_dropped: Arc::new(CloseOnDrop(close)) }
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
        let call = self.shared.begin(to, |_| None)?;
        let stream_call = self.shared.call_by_stream(to, Frame { kind, id: call.id, body: &body });
        timeout_at(patience.deadline, stream_call).await.unwrap_or(Err(CallError::TimedOut))
    }

    /// Takes no new requests, lets those being served finish until `deadline`, sends their answers, and stops.
    pub async fn close(&self, deadline: Instant) {
        let all = u32::try_from(self.shared.config.requests_max).unwrap_or(u32::MAX);
        // While this waits, requests that come find no permit and are answered as overloaded.
        let _all_served = timeout_at(deadline, self.shared.requests.acquire_many(all)).await;
        let _all_sent = timeout_at(deadline, self.shared.send_queued()).await;
        self.abort();
    }

    /// Stops at once: nothing more is sent, received or served.
    pub fn abort(&self) {
        self.close_when_dropped.0.send_replace(true);
    }
}

/// A call that is registered, until dropped.
struct Begun<'a, S: Socket> {
    shared: &'a Shared<S>,
    to: SocketAddr,
    id: u64,
    frame: Option<Arc<[u8]>>,
    ended: oneshot::Receiver<Heard>,
}

impl<S: Socket> Drop for Begun<'_, S> {
    fn drop(&mut self) {
        lock(&self.shared.peers).end(self.to, self.id);
    }
}

fn check_len(body: &[u8]) -> Result<(), CallError> {
    if body.len() > BODY_LEN_MAX { Err(CallError::TooLong { len: body.len() }) } else { Ok(()) }
}

impl<S: Socket> Shared<S> {
    /// Registers a call. `frame` makes the datagram frame, if it goes by datagram.
    fn begin(
        &self,
        to: SocketAddr,
        frame: impl FnOnce(u64) -> Option<Arc<[u8]>>,
    ) -> Result<Begun<'_, S>, CallError> {
        let (sender, ended) = oneshot::channel();
        let mut peers = lock(&self.peers);
        if peers.in_flight() >= self.config.calls_max {
            return Err(CallError::Overloaded);
        }
        let (id, frame) = peers.begin(to, frame, sender);
        drop(peers);
        Ok(Begun { shared: self, to, id, frame, ended })
    }

    async fn call(
        &self,
        to: SocketAddr,
        kind: Kind,
        body: &[u8],
        patience: Patience,
    ) -> Result<Answer, CallError> {
        check_len(body)?;
        let mut call = self.begin(to, |id| self.datagram_frame(Frame { kind, id, body }))?;
        let heard = match call.frame.clone() {
            Some(frame) => self.call_by_datagram(&mut call, frame, patience).await?,
            None => Heard::UseStream,
        };
        match heard {
            Heard::Answer(kind, body) => read_answer(kind, &body),
            Heard::Overloaded => Err(CallError::Overloaded),
            Heard::UseStream => {
                let stream_call = self.call_by_stream(to, Frame { kind, id: call.id, body });
                timeout_at(patience.deadline, stream_call).await.unwrap_or(Err(CallError::TimedOut))
            }
        }
    }

    /// The frame's bytes, unless it is too long for a datagram.
    fn datagram_frame(&self, frame: Frame<'_>) -> Option<Arc<[u8]>> {
        (ENVELOPE_HEADER_LEN + frame.len() <= self.config.datagram_len_max).then(|| {
            let mut bytes = Vec::with_capacity(frame.len());
            frame.write(&mut bytes);
            bytes.into()
        })
    }

    /// Sends the request, again and again with growing pauses, until something ends the call.
    async fn call_by_datagram(
        &self,
        call: &mut Begun<'_, S>,
        frame: Arc<[u8]>,
        patience: Patience,
    ) -> Result<Heard, CallError> {
        let start = Instant::now();
        let mut silent_at = patience.silence.map(|silence| start + silence);
        let mut pause = self.config.retransmit_min;
        let mut closed = self.closed.clone();
        self.push(call.to, frame.clone());
        loop {
            let again_at = Instant::now() + self.jittered(pause);
            let wake_at = [Some(patience.deadline), silent_at, Some(again_at)].into_iter().flatten().min();
            tokio::select! {
                biased;
                ended = &mut call.ended => return ended.map_err(|_| CallError::Closed),
                _ = closed.wait_for(|closed| *closed) => return Err(CallError::Closed),
                () = sleep_until(wake_at.unwrap_or(patience.deadline)) => {}
            }
            let now = Instant::now();
            if now >= patience.deadline {
                return Err(CallError::TimedOut);
            }
            if silent_at.is_some_and(|at| now >= at) {
                if !lock(&self.peers).sign_of_life(call.to, call.id) {
                    return Err(CallError::Silent(now - start));
                }
                silent_at = None;
            }
            if now >= again_at {
                Counters::count(&self.counters.retransmitted);
                self.push(call.to, frame.clone());
                pause = (pause * 2).min(self.config.retransmit_max);
            }
        }
    }

    /// Between three and five quarters of `pause`, so that callers that started together drift apart.
    fn jittered(&self, pause: Duration) -> Duration {
        pause.mul_f64(lock(&self.jitter).random_range(0.75..1.25))
    }

    fn push(&self, to: SocketAddr, frame: Arc<[u8]>) {
        if !self.outbox.push(to, frame) {
            Counters::count(&self.counters.unsent);
        }
    }

    async fn send_loop(self: Arc<Self>) {
        let mut closed = self.closed.clone();
        loop {
            tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return,
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

    async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) {
        if let Err(error) = self.socket.send(to, bytes, segment_len).await {
            Counters::count(&self.counters.unsent);
            tracing::debug!(%to, %error, "datagram lost on this side");
        }
    }

    async fn receive_loop<V: Service>(self: Arc<Self>, service: Option<Arc<V>>) {
        let mut closed = self.closed.clone();
        loop {
            let receive = self.socket.recv(|from, datagram| self.received(from, datagram, service.as_ref()));
            let received = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return,
                received = receive => received,
            };
            if let Err(error) = received {
                tracing::debug!(%error, "receiving failed");
                // An error that repeats at once must not keep the processor from everybody else.
                tokio::task::yield_now().await;
            }
        }
    }

    fn received<V: Service>(self: &Arc<Self>, from: SocketAddr, datagram: &[u8], service: Option<&Arc<V>>) {
        let (header, frames) = match envelope::parse(datagram) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::debug!(%from, %error, len = datagram.len(), "junk datagram");
                return Counters::count(&self.counters.junk);
            }
        };
        let (requests, others): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|frame| frame.kind.is_request());
        for frame in others {
            let (again, expected) = lock(&self.peers).heard(from, header.proof, &frame);
            again.into_iter().for_each(|frame| self.push(from, frame));
            if !expected {
                Counters::count(&self.counters.junk);
            }
        }
        let Some(first) = requests.first() else { return };
        match service {
            None => Counters::count(&self.counters.junk),
            Some(_) if !self.proofs.accepts(from, header.proof) => self.challenge(from, first.id),
            Some(service) => {
                lock(&self.sessions).seen(header.session, header.oldest);
                let requests = requests.into_iter();
                requests.for_each(|frame| self.requested(from, header.session, &frame, service));
            }
        }
    }

    /// Asks a sender to prove its address: one short datagram for its longer one.
    fn challenge(self: &Arc<Self>, to: SocketAddr, id: u64) {
        Counters::count(&self.counters.challenged);
        let proof = self.proofs.issue(to);
        let mut datagram = envelope::DatagramBuilder::new(Header { session: self.session, proof, oldest: 0 });
        datagram.push(&Frame { kind: Kind::Challenge, id, body: &[] });
        // Not through the outbox: there it would share an envelope with others, which have no room for its proof.
        let (shared, datagram) = (self.clone(), datagram.finish(0));
        tokio::spawn(async move { shared.send(to, &datagram, datagram.len()).await });
    }

    fn requested<V: Service>(
        self: &Arc<Self>,
        from: SocketAddr,
        session: u64,
        frame: &Frame<'_>,
        service: &Arc<V>,
    ) {
        match self.admit(session, frame) {
            Admitted::Execute(request, permit) => {
                let (shared, service, id) = (self.clone(), service.clone(), frame.id);
                tokio::spawn(async move {
                    let (kind, body) = shared.execute(&*service, from, session, id, request).await;
                    drop(permit);
                    shared.answer(from, Frame { kind, id, body: &body });
                });
            }
            Admitted::Answer(kind, body) => self.answer(from, Frame { kind, id: frame.id, body: &body }),
            Admitted::Ignore => {}
        }
    }

    /// Decides what a request deserves. Used by both lanes.
    pub(crate) fn admit(&self, session: u64, frame: &Frame<'_>) -> Admitted {
        let notice = |kind| Admitted::Answer(kind, Bytes::new());
        match lock(&self.sessions).admit(session, frame.id) {
            Admission::Execute => {}
            Admission::Working => return notice(Kind::Working),
            Admission::Answered(kind, body) => return Admitted::Answer(kind, body),
            Admission::Over => return Admitted::Ignore,
            Admission::Full => {
                Counters::count(&self.counters.overloaded);
                return notice(Kind::Overloaded);
            }
        }
        let Ok(permit) = self.requests.clone().try_acquire_owned() else {
            Counters::count(&self.counters.overloaded);
            lock(&self.sessions).forget(session, frame.id);
            return notice(Kind::Overloaded);
        };
        match Request::decode(frame.kind, frame.body) {
            Some(Ok(request)) => Admitted::Execute(request, permit),
            None | Some(Err(_)) => {
                Counters::count(&self.counters.junk);
                lock(&self.sessions).forget(session, frame.id);
                Admitted::Ignore
            }
        }
    }

    /// Executes a request and remembers its answer if it must not be executed again.
    pub(crate) async fn execute<V: Service>(
        &self,
        service: &V,
        from: SocketAddr,
        session: u64,
        id: u64,
        request: Request,
    ) -> (Kind, Bytes) {
        let forget = ForgetUnlessFinished { sessions: &self.sessions, session, id };
        let idempotent = request.is_idempotent();
        let (kind, body) = service.handle(from, request).await.encode();
        let body = Bytes::from(body);
        if !idempotent {
            std::mem::forget(forget);
            lock(&self.sessions).finished(session, id, kind, body.clone());
        }
        (kind, body)
    }

    fn answer(&self, to: SocketAddr, frame: Frame<'_>) {
        let frame = self
            .datagram_frame(frame)
            .or_else(|| self.datagram_frame(Frame { kind: Kind::UseStream, id: frame.id, body: &[] }));
        if let Some(frame) = frame {
            self.push(to, frame);
        }
    }
}

/// What a request deserves.
pub(crate) enum Admitted {
    /// To be executed, while the permit is held.
    Execute(Request, OwnedSemaphorePermit),
    /// This answer, at once.
    Answer(Kind, Bytes),
    /// Nothing.
    Ignore,
}

/// Lets a request be executed again if its execution was abandoned, or harmless.
struct ForgetUnlessFinished<'a> {
    sessions: &'a Mutex<Sessions>,
    session: u64,
    id: u64,
}

impl Drop for ForgetUnlessFinished<'_> {
    fn drop(&mut self) {
        lock(self.sessions).forget(self.session, self.id);
    }
}

pub(crate) fn read_answer(kind: Kind, body: &[u8]) -> Result<Answer, CallError> {
    let not_an_answer = || CodecError::Malformed(format!("{kind:?} is not an answer"));
    Answer::decode(kind, body).unwrap_or_else(|| Err(not_an_answer())).map_err(CallError::Malformed)
}
