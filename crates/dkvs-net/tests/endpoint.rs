//! Two endpoints on real sockets, and the bad networks and strangers between them.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::record::{OpId, Record};
use dkvs_core::ring::RingId;
use dkvs_net::faults::{Faults, FaultySocket};
use dkvs_net::{
    Answered, CallError, Endpoint, EndpointConfig, NoService, Patience, Port, Service, Socket, Validity,
};
use dkvs_proto::envelope::{self, DatagramBuilder, Header};
use dkvs_proto::frame::{EXPIRY_LEN, FRAME_HEADER_LEN, Frame, FrameHeader, Kind};
use dkvs_proto::message::admin::{AdminAnswer, AdminRequest, ScanEntry, ScanPage};
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, Get, Put, PutBody, PutDone, Token};
use dkvs_proto::message::replica::{Cause, ReplicaAnswer, ReplicaRequest};
use dkvs_proto::message::{Answer, Durability, Refusal, Request};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

fn patience() -> Patience {
    Patience::until(Instant::now() + PATIENCE)
}

fn put(sequence: u64, value: impl Into<Bytes>) -> Request {
    Request::Client(ClientRequest::Put(Put {
        ring: RingId::from_bits(1),
        key: "k".into(),
        body: PutBody::Value(value.into()),
        context: None,
        n: 1,
        w: 1,
        op: OpId { client: 1, sequence },
        timeout_ms: 1_000,
        forwarded: false,
        durability: Durability::default(),
        ttl_ms: None,
        sloppy: false,
    }))
}

/// What a server asks of another, with a key so long that it goes by stream.
fn long_fetch() -> Request {
    let key = Bytes::from(vec![b'k'; 100_000]);
    Request::Replica(ReplicaRequest::Fetch { ring: RingId::from_bits(1), key, known: Record::new().hash() })
}

fn scan(len_max: u32) -> Request {
    Request::Admin(AdminRequest::Scan { after: None, len_max })
}

/// Counts what it executes. A put is answered with its value; a scan with as many bytes as it asks for. While no
/// permits are there, it works and works.
struct Counting {
    executed: Mutex<Vec<u64>>,
    /// When the requests of servers expired, `None` for never.
    expiries: Mutex<Vec<Option<Instant>>>,
    started: AtomicUsize,
    permits: Semaphore,
}

impl Counting {
    fn new(permits: usize) -> Arc<Self> {
        let permits = Semaphore::new(permits);
        let (executed, expiries) = Default::default();
        Arc::new(Self { executed, expiries, started: AtomicUsize::new(0), permits })
    }

    fn executed(&self) -> Vec<u64> {
        let mut executed = self.executed.lock().unwrap().clone();
        executed.sort_unstable();
        executed
    }
}

impl Service for Counting {
    async fn handle(&self, _: SocketAddr, request: Request, validity: Validity) -> Answer {
        self.started.fetch_add(1, Ordering::SeqCst);
        let _permit = self.permits.acquire().await.unwrap();
        match request {
            Request::Client(ClientRequest::Put(put)) => {
                self.executed.lock().unwrap().push(put.op.sequence);
                let PutBody::Value(value) = put.body else { panic!("puts of values only") };
                Answer::Client(ClientAnswer::Put(PutDone {
                    acked: Vec::new(),
                    context: Token(value),
                    stand_ins: Vec::new(),
                }))
            }
            Request::Admin(AdminRequest::Scan { len_max, .. }) => {
                let value = Bytes::from(vec![b'v'; len_max as usize]);
                let entry = ScanEntry { key: "k".into(), value, siblings: 1 };
                Answer::Admin(AdminAnswer::Page(ScanPage { entries: vec![entry], next: None }))
            }
            Request::Replica(_) => {
                self.expiries.lock().unwrap().push(validity.until());
                Answer::Replica(ReplicaAnswer::Same)
            }
            other @ (Request::Client(_) | Request::Admin(_)) => panic!("{other:?}"),
        }
    }
}

async fn port() -> Port {
    Port::bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

async fn server(service: Arc<Counting>, config: EndpointConfig) -> Endpoint<Port> {
    Endpoint::start(port().await, config, rand::random(), Some(service))
}

async fn caller() -> Endpoint<Port> {
    let port = Port::for_calls(&["127.0.0.1:1".parse().unwrap()]).await.unwrap();
    Endpoint::start::<NoService>(port, EndpointConfig::default(), rand::random(), None)
}

fn answered_value(answer: Result<Answer, CallError>) -> Bytes {
    match answer {
        Ok(Answer::Client(ClientAnswer::Put(done))) => done.context.0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_gets_its_own_answer() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, server.local_addr());
    let calls: FuturesUnordered<_> = (0..1_000)
        .map(|i| {
            let caller = &caller;
            async move { (i, caller.call(to, &put(i, format!("value {i}")), patience()).await) }
        })
        .collect();
    for (i, answer) in calls.collect::<Vec<_>>().await {
        assert_eq!(answered_value(answer), format!("value {i}"));
    }
    assert_eq!(service.executed(), Vec::from_iter(0..1_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_loss_and_duplication_everything_is_executed_exactly_once() {
    let faults = Faults { loss: 0.2, duplication: 0.5 };
    let service = Counting::new(100);
    let config = EndpointConfig::default();
    let socket = FaultySocket::new(port().await, faults, 1);
    let server = Endpoint::start(socket, config.clone(), 2, Some(service.clone()));
    let socket = FaultySocket::new(Port::for_calls(&[server.local_addr()]).await.unwrap(), faults, 3);
    let caller = Endpoint::start::<NoService>(socket, config, 4, None);
    let to = server.local_addr();
    let calls: FuturesUnordered<_> = (0..500)
        .map(|i| {
            let caller = &caller;
            async move { caller.call(to, &put(i, "v"), patience()).await }
        })
        .collect();
    let answers: Vec<_> = calls.collect().await;
    assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
    assert_eq!(service.executed(), Vec::from_iter(0..500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_a_datagram_takes_the_stream_both_ways_and_is_executed_once() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, server.local_addr());
    for (sequence, len) in [(0, 1_000), (1, 1_300), (2, 70_000), (3, 5 << 20), (4, 20 << 20)] {
        let value = Bytes::from(vec![b'x'; len]);
        let answer = caller.call(to, &put(sequence, value.clone()), patience()).await;
        assert!(answered_value(answer) == value, "{len} bytes");
    }
    assert_eq!(service.executed(), [0, 1, 2, 3, 4]);
    // A small request with a long answer: asked by datagram, told to use the stream.
    for len in [1_000, 1_300, 1 << 20] {
        let Ok(Answer::Admin(AdminAnswer::Page(page))) = caller.call(to, &scan(len), patience()).await else {
            panic!("no page of {len} bytes")
        };
        assert_eq!(page.entries[0].value.len(), len as usize);
    }
}

#[tokio::test]
async fn a_peer_that_works_is_waited_for_and_one_that_is_gone_is_not() {
    let service = Counting::new(0);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, server.local_addr());
    let silence = Some(Duration::from_millis(500));
    let patience = Patience { silence, ..patience() };
    let call = tokio::spawn({
        let caller = caller.clone();
        let patience = patience.clone();
        async move { caller.call(to, &put(1, "slow"), patience).await }
    });
    // The caller has asked more than once, so it was told that its request is worked on.
    while caller.counters().retransmitted.load(Ordering::Relaxed) < 8 {
        tokio::task::yield_now().await;
    }
    assert_eq!(service.started.load(Ordering::SeqCst), 1);
    service.permits.add_permits(1);
    assert_eq!(answered_value(call.await.unwrap()), "slow");

    let nobody = port().await.local_addr();
    let gone = caller.call(nobody, &put(2, "v"), patience).await;
    assert!(matches!(gone, Err(CallError::Silent(_))), "{gone:?}");
    assert!(!gone.unwrap_err().nothing_was_done());
}

#[tokio::test]
async fn a_server_with_too_much_to_do_says_so_and_does_nothing() {
    let service = Counting::new(0);
    let server = server(service.clone(), EndpointConfig { requests_max: 1, ..Default::default() }).await;
    let (caller, to) = (caller().await, server.local_addr());
    let first = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(to, &put(1, "first"), patience()).await }
    });
    while service.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    for request in [put(2, "second"), put(3, vec![0; 100_000])] {
        let refused = caller.call(to, &request, patience()).await;
        assert!(matches!(refused, Err(CallError::Overloaded { repeated: false })), "{refused:?}");
    }
    service.permits.add_permits(1);
    assert_eq!(answered_value(first.await.unwrap()), "first");
    assert_eq!(answered_value(caller.call(to, &put(2, "second"), patience()).await), "second");
    assert_eq!(service.executed(), [1, 2]);
}

/// A bulk load of long values: nothing but streams, and more of them than answers are kept.
#[tokio::test]
async fn a_caller_by_stream_says_which_answers_it_has_had() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, server.local_addr());
    for number in 0..3 {
        caller.call_by_stream(to, &put(number, "v"), patience()).await.unwrap();
    }
    let levels = server.levels();
    let answers = levels.iter().find(|level| level.name == "answers").unwrap();
    assert!(answers.peak <= 2, "{answers:?}");
}

/// Each caller keeps its connection for later; together they keep more than the server has room for.
#[tokio::test]
async fn connections_that_are_kept_give_way_to_new_ones() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig { streams_max: 2, ..Default::default() }).await;
    let to = server.local_addr();
    let mut callers = Vec::new();
    for number in 0..4 {
        let caller = caller().await;
        let answer = caller.call_by_stream(to, &put(number, "v"), patience()).await;
        assert!(answer.is_ok(), "caller {number}: {answer:?}");
        callers.push(caller);
    }
    for (number, caller) in (4..).zip(&callers) {
        let answer = caller.call_by_stream(to, &put(number, "v"), patience()).await;
        assert!(answer.is_ok(), "caller {number}, whose connection may have been closed: {answer:?}");
    }
    assert_eq!(service.executed(), Vec::from_iter(0..8));
    let levels = server.levels();
    let streams = levels.iter().find(|level| level.name == "streams").unwrap();
    assert_eq!(streams.peak, 2, "{streams:?}");
}

/// A frame as it stands on a stream.
fn on_stream(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    let crc = crc32fast::hash(&bytes).to_be_bytes();
    bytes.extend_from_slice(&crc);
    bytes
}

/// What a coordinator gave up minutes ago, and the network has kept, must not bring back what was forgotten since.
#[tokio::test]
async fn what_a_server_asks_of_another_expires_on_the_stream_lane_too() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, server.local_addr());
    let patience = patience();
    // Its caller has not heard of the server's clock before.
    caller.call(to, &long_fetch(), patience.clone()).await.unwrap();
    let expiry = service.expiries.lock().unwrap().last().copied().unwrap();
    assert!(expiry.is_some_and(|expiry| expiry <= patience.deadline), "{expiry:?}");

    let started = service.started.load(Ordering::SeqCst);
    let (kind, body) = long_fetch().encode();
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let expired = Frame { kind, id: 7, expires: 1, body: &body };
    let bytes = [&envelope::stream_preface(1)[..], &on_stream(&expired)].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; on_stream(&Frame::answer(Kind::Challenge, 7, &[])).len()];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, on_stream(&Frame::answer(Kind::Challenge, 7, &[])));
    assert_eq!(service.started.load(Ordering::SeqCst), started, "it was not begun");
}

#[tokio::test]
async fn a_restarted_server_is_asked_for_its_new_clock() {
    let before = server(Counting::new(100), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, before.local_addr());
    caller.call(to, &long_fetch(), patience()).await.unwrap();
    before.abort();
    drop(before);
    let port = timeout(PATIENCE, async {
        loop {
            match Port::bind(to).await {
                Ok(port) => break port,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let service = Counting::new(100);
    let config = EndpointConfig::default();
    let _after = Endpoint::start(port.await.unwrap(), config, rand::random(), Some(service.clone()));
    let answer = caller.call(to, &long_fetch(), patience()).await;
    assert!(matches!(answer, Ok(Answer::Replica(ReplicaAnswer::Same))), "{answer:?}");
    let expiries = service.expiries.lock().unwrap().clone();
    assert!(expiries.iter().all(Option::is_some), "{expiries:?}");
}

/// A server executes a request, and is restarted before its answer is there. The process after it refuses.
#[tokio::test]
async fn a_refusal_on_a_second_connection_speaks_for_the_second_process_alone() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let refused = Answer::Client(ClientAnswer::Failed(Failure::Refused(Refusal::Overloaded)));
    let (kind, refusal) = refused.encode();
    // Answers so many requests on a connection, then reads one more and closes it.
    let serve = async |answered: usize| {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; envelope::STREAM_PREFACE_LEN]).await.unwrap();
        for number in 0..=answered {
            let mut head = [0; FRAME_HEADER_LEN];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let header = FrameHeader::parse(&head).unwrap();
            stream.read_exact(&mut vec![0; EXPIRY_LEN + header.body_len + 4]).await.unwrap();
            if number < answered {
                stream.write_all(&on_stream(&Frame::answer(kind, header.id, &refusal))).await.unwrap();
            }
        }
    };
    let caller = caller().await;
    let long = vec![0; 100_000];
    let asking = async {
        let mut maybe_done_before = Vec::new();
        for number in 0..2 {
            let answered = caller.ask(to, &put(number, long.clone()), patience()).await.unwrap();
            assert_eq!(answered.answer, refused);
            maybe_done_before.push(answered.maybe_done_before);
        }
        drop(caller);
        maybe_done_before
    };
    let serving = async {
        serve(1).await;
        serve(1).await;
    };
    let (maybe_done_before, ()) = timeout(PATIENCE, futures::future::join(asking, serving)).await.unwrap();
    assert_eq!(maybe_done_before, [false, true]);
}

/// A caller made of bytes, of which each session is another one to the server.
struct Raw {
    socket: UdpSocket,
    proof: u64,
}

impl Raw {
    async fn connected(server: &Endpoint<Port>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server.local_addr()).await.unwrap();
        let mut raw = Self { socket, proof: 0 };
        raw.send(1, 1, &scan(1)).await;
        raw.proof = raw.hears().await.0.proof;
        raw
    }

    async fn send(&self, session: u64, id: u64, request: &Request) {
        let (kind, body) = request.encode();
        let mut datagram = DatagramBuilder::new(Header { session, proof: self.proof, oldest: 0 });
        datagram.push(&Frame { kind, id, expires: 0, body: &body });
        self.socket.send(&datagram.finish(0)).await.unwrap();
    }

    async fn hears(&self) -> (Header, Kind, u64) {
        let mut buffer = vec![0; 2_048];
        let len = timeout(PATIENCE, self.socket.recv(&mut buffer)).await.unwrap().unwrap();
        let (header, frames) = envelope::parse(&buffer[..len]).unwrap();
        (header, frames[0].kind, frames[0].id)
    }
}

#[tokio::test]
async fn what_was_refused_as_too_much_is_not_begun_when_there_is_room_again() {
    let service = Counting::new(0);
    let server = server(service.clone(), EndpointConfig { requests_max: 1, ..Default::default() }).await;
    let raw = Raw::connected(&server).await;
    raw.send(9, 1, &put(1, "first")).await;
    while service.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    raw.send(9, 2, &put(2, "refused")).await;
    assert_eq!(raw.hears().await.1, Kind::Overloaded);
    service.permits.add_permits(10);
    assert_eq!(raw.hears().await.1, Kind::ClientAnswer);
    raw.send(9, 2, &put(2, "refused")).await;
    assert_eq!(raw.hears().await.1, Kind::Overloaded);
    assert_eq!(service.executed(), [1]);
}

#[tokio::test]
async fn a_put_that_cannot_be_remembered_is_not_said_to_have_no_effect() {
    let service = Counting::new(10);
    let server = server(service.clone(), EndpointConfig { sessions_max: 1, ..Default::default() }).await;
    let raw = Raw::connected(&server).await;
    raw.send(9, 1, &put(1, "remembered")).await;
    assert_eq!(raw.hears().await.1, Kind::ClientAnswer);
    raw.send(10, 1, &put(2, "ignored")).await;
    raw.send(10, 2, &scan(1)).await;
    let (_, kind, id) = raw.hears().await;
    assert_eq!((kind, id), (Kind::Overloaded, 2));
    assert_eq!(service.executed(), [1]);
}

#[tokio::test]
async fn a_caller_with_too_many_calls_is_refused_one_more() {
    let service = Counting::new(0);
    let server = server(service, EndpointConfig::default()).await;
    let port = Port::for_calls(&[server.local_addr()]).await.unwrap();
    let config = EndpointConfig { calls_max: 1, ..Default::default() };
    let caller = Endpoint::start::<NoService>(port, config, 1, None);
    let to = server.local_addr();
    let request = put(1, "v");
    let mut first = Box::pin(caller.call(to, &request, patience()));
    assert!(futures::poll!(&mut first).is_pending());
    assert!(matches!(
        caller.call(to, &put(2, "v"), patience()).await,
        Err(CallError::Overloaded { repeated: false })
    ));
    drop(first);
    let soon = Patience::until(Instant::now() + Duration::from_millis(50));
    assert!(
        matches!(caller.call(to, &put(3, "v"), soon).await, Err(CallError::TimedOut)),
        "there is room again"
    );
}

/// Every kind of request there is, of every length that fits a datagram: somebody without a proof of address gets
/// fewer bytes back than were sent, and nothing is executed.
#[tokio::test]
async fn nobody_unproven_gets_more_bytes_than_it_sent() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let ring = RingId::from_bits(1);
    let key = Bytes::from_static(b"k");
    let get = Get { ring, key: key.clone(), n: 1, r: 1, timeout_ms: 1, siblings: true, sloppy: false };
    let requests = [
        put(1, ""),
        put(2, vec![0; 1_000]),
        Request::Client(ClientRequest::Get(get)),
        Request::Replica(ReplicaRequest::Merge {
            ring,
            key: key.clone(),
            record: Record::new(),
            durability: Durability::Memory,
            cause: Cause::Upkeep,
        }),
        Request::Replica(ReplicaRequest::Fetch { ring, key, known: Record::new().hash() }),
        Request::Admin(AdminRequest::Ring),
        Request::Admin(AdminRequest::Status),
        scan(1_000_000),
    ];
    for request in &requests {
        for proof in [0, 1, u64::MAX] {
            let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let (kind, body) = request.encode();
            let mut datagram = DatagramBuilder::new(Header { session: 9, proof, oldest: 0 });
            datagram.push(&Frame { kind, id: 1, expires: 0, body: &body });
            let datagram = datagram.finish(0);
            stranger.send_to(&datagram, server.local_addr()).await.unwrap();
            let mut answer = vec![0; 65_536];
            let len = timeout(PATIENCE, stranger.recv(&mut answer)).await.unwrap().unwrap();
            assert!(len <= datagram.len(), "{len} bytes for {}: {request:?}", datagram.len());
            let (_, frames) = envelope::parse(&answer[..len]).unwrap();
            assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [Kind::Challenge]);
            // One challenge, and nothing after it: what the server does next is answer somebody else.
            caller().await.call(server.local_addr(), &scan(1), patience()).await.unwrap();
            assert!(stranger.try_recv(&mut answer).is_err(), "a second answer to {request:?}");
        }
    }
    assert!(service.executed().is_empty());
}

#[tokio::test]
async fn a_proof_is_worth_nothing_at_another_address() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let holder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let thief = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = vec![0; 2_048];
    let (kind, body) = put(1, "v").encode();
    let request = |proof| {
        let mut datagram = DatagramBuilder::new(Header { session: 9, proof, oldest: 0 });
        datagram.push(&Frame { kind, id: 1, expires: 0, body: &body });
        datagram.finish(0)
    };
    holder.send_to(&request(0), server.local_addr()).await.unwrap();
    let len = timeout(PATIENCE, holder.recv(&mut buffer)).await.unwrap().unwrap();
    let proof = envelope::parse(&buffer[..len]).unwrap().0.proof;
    for (socket, expected) in [(&thief, Kind::Challenge), (&holder, Kind::ClientAnswer)] {
        socket.send_to(&request(proof), server.local_addr()).await.unwrap();
        let len = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
        let (_, frames) = envelope::parse(&buffer[..len]).unwrap();
        assert_eq!(frames[0].kind, expected);
    }
    assert_eq!(service.executed(), [1]);
}

/// Between the caller and the server stands somebody who holds a request back until the caller has given it up.
#[tokio::test]
async fn what_a_caller_gave_up_is_not_begun_any_more() {
    let service = Counting::new(100);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let to_caller = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to_server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    to_server.connect(server.local_addr()).await.unwrap();
    let (caller, to) = (caller().await, to_caller.local_addr().unwrap());
    let call = |number, silence: Option<Duration>| {
        let caller = caller.clone();
        let patience = Patience { silence, ..patience() };
        tokio::spawn(async move { caller.call(to, &put(number, "v"), patience).await })
    };
    let (mut forth, mut back) = (vec![0; 2_048], vec![0; 2_048]);

    let mut passed = call(1, None);
    let mut from = None;
    let answer = loop {
        tokio::select! {
            answer = &mut passed => break answer.unwrap(),
            Ok((len, caller)) = to_caller.recv_from(&mut forth) => {
                from = Some(caller);
                to_server.send(&forth[..len]).await.unwrap();
            }
            Ok(len) = to_server.recv(&mut back) => {
                to_caller.send_to(&back[..len], from.unwrap()).await.unwrap();
            }
        }
    };
    assert_eq!(answered_value(answer), "v");

    let mut held = call(2, Some(Duration::from_millis(200)));
    let mut datagrams = Vec::new();
    let answer = loop {
        tokio::select! {
            answer = &mut held => break answer.unwrap(),
            Ok((len, _)) = to_caller.recv_from(&mut forth) => datagrams.push(forth[..len].to_vec()),
        }
    };
    assert!(matches!(answer, Err(CallError::Silent(_))), "{answer:?}");
    assert!(!datagrams.is_empty());
    while to_server.try_recv(&mut back).is_ok() {}
    for datagram in &datagrams {
        to_server.send(datagram).await.unwrap();
        let len = timeout(PATIENCE, to_server.recv(&mut back)).await.unwrap().unwrap();
        let (_, frames) = envelope::parse(&back[..len]).unwrap();
        assert_eq!(frames[0].kind, Kind::Challenge);
    }
    assert_eq!(server.counters().expired.load(Ordering::Relaxed), datagrams.len() as u64);
    assert_eq!(service.executed(), [1]);
}

/// A server that is restarted while a request is under way: the old process may have executed it, the new one knows
/// nothing of it.
#[tokio::test]
async fn a_restarted_server_gets_requests_under_new_ids() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (caller, to) = (caller().await, server.local_addr().unwrap());
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.ask(to, &put(1, "v"), patience()).await }
    });
    // The next request with this proof: its id, and where it came from.
    let next_with = async |proof: u64| loop {
        let mut buffer = vec![0; 2_048];
        let (len, from) = timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        let (header, frames) = envelope::parse(&buffer[..len]).unwrap();
        if header.proof == proof {
            return (frames[0].id, from);
        }
    };
    let challenge = |session, proof, id| {
        let mut datagram = DatagramBuilder::new(Header { session, proof, oldest: 1_000 });
        datagram.push(&Frame::answer(Kind::Challenge, id, &[]));
        datagram.finish(0)
    };
    let (first, from) = next_with(0).await;
    server.send_to(&challenge(1, 11, first), from).await.unwrap();
    assert_eq!(next_with(11).await.0, first, "the process that asks for a proof has not executed anything");
    server.send_to(&challenge(1, 12, first), from).await.unwrap();
    assert_eq!(next_with(12).await.0, first, "a later proof of the same process");
    server.send_to(&challenge(2, 21, first), from).await.unwrap();
    let (second, _) = next_with(21).await;
    assert_ne!(second, first);
    for (id, value) in [(first, "of the process before"), (second, "of this one")] {
        let done = PutDone { acked: Vec::new(), context: Token(value.into()), stand_ins: Vec::new() };
        let (kind, body) = Answer::Client(ClientAnswer::Put(done)).encode();
        let mut datagram = DatagramBuilder::new(Header { session: 2, proof: 0, oldest: 0 });
        datagram.push(&Frame::answer(kind, id, &body));
        server.send_to(&datagram.finish(0), from).await.unwrap();
    }
    let Answered { answer, maybe_done_before } = call.await.unwrap().unwrap();
    assert_eq!(answered_value(Ok(answer)), "of this one");
    assert!(maybe_done_before, "the process before may have executed it too");
}

/// A server is restarted, and asks about one of two requests that were each sent once: that one it has, the other one the process before may have
/// executed.
#[tokio::test]
async fn only_the_request_that_a_restarted_server_asks_about_is_known_to_nobody_else() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let port = Port::for_calls(&[to]).await.unwrap();
    let config =
        EndpointConfig { retransmit_min: PATIENCE, retransmit_max: PATIENCE, ..EndpointConfig::default() };
    let caller = Endpoint::start::<NoService>(port, config, rand::random(), None);
    let ask = |sequence| {
        let caller = caller.clone();
        tokio::spawn(async move { caller.ask(to, &put(sequence, "v"), patience()).await })
    };
    // Answers each request that comes, until this session's proof has brought so many to their end.
    let serve = async |session, requests: usize, asked_about: usize| {
        let (mut served, mut challenged) = (0, 0);
        while served < requests {
            let mut buffer = vec![0; 2_048];
            let (len, from) = timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
            let (header, frames) = envelope::parse(&buffer[..len]).unwrap();
            for frame in &frames {
                let mut datagram = DatagramBuilder::new(Header { session, proof: session, oldest: 1_000 });
                if header.proof == session {
                    let done =
                        PutDone { acked: Vec::new(), context: Token("v".into()), stand_ins: Vec::new() };
                    let (kind, body) = Answer::Client(ClientAnswer::Put(done)).encode();
                    datagram.push(&Frame::answer(kind, frame.id, &body));
                    served += 1;
                } else if challenged < asked_about {
                    datagram.push(&Frame::answer(Kind::Challenge, frame.id, &[]));
                    challenged += 1;
                } else {
                    continue;
                }
                server.send_to(&datagram.finish(0), from).await.unwrap();
            }
        }
    };
    let first = ask(1);
    serve(11, 1, 1).await;
    assert!(!first.await.unwrap().unwrap().maybe_done_before, "no other process has shown itself");
    let pair = [ask(2), ask(3)];
    serve(22, 2, 1).await;
    let mut known_elsewhere = Vec::new();
    for call in pair {
        known_elsewhere.push(call.await.unwrap().unwrap().maybe_done_before);
    }
    known_elsewhere.sort_unstable();
    assert_eq!(known_elsewhere, [false, true]);
}

/// A challenge that comes late, from the process before the last start, looks like that of a new one: the process that is asked
/// again, and has no room, may be the one that executes what it was asked before.
#[tokio::test]
async fn a_refusal_after_a_restart_speaks_for_the_last_copy_only() {
    for is_known_elsewhere in [false, true] {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        let port = Port::for_calls(&[to]).await.unwrap();
        // Nothing is sent twice, but for what a challenge asks for.
        let config = EndpointConfig {
            retransmit_min: PATIENCE,
            retransmit_max: PATIENCE,
            ..EndpointConfig::default()
        };
        let caller = Endpoint::start::<NoService>(port, config, rand::random(), None);
        let call = tokio::spawn(async move { caller.call(to, &put(1, "v"), patience()).await });
        let reply = async |header, kind, wanted_proof| {
            let mut buffer = vec![0; 2_048];
            let (len, from) = timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
            let (asked, frames) = envelope::parse(&buffer[..len]).unwrap();
            assert_eq!(asked.proof, wanted_proof);
            let mut datagram = DatagramBuilder::new(header);
            datagram.push(&Frame::answer(kind, frames[0].id, &[]));
            server.send_to(&datagram.finish(0), from).await.unwrap();
        };
        let told = |session| Header { session, proof: session, oldest: 1_000 };
        if is_known_elsewhere {
            reply(told(1), Kind::Challenge, 0).await;
            reply(told(2), Kind::Challenge, 1).await;
        } else {
            reply(told(2), Kind::Challenge, 0).await;
        }
        reply(told(2), Kind::Overloaded, 2).await;
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.may_begin_later(), is_known_elsewhere, "{error:?}");
    }
}

/// A server that passes requests on is restarted: what the old process passed on may still be begun elsewhere.
#[tokio::test]
async fn a_request_that_may_have_been_passed_on_is_not_made_anew() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (caller, to) = (caller().await, server.local_addr().unwrap());
    let call = tokio::spawn({
        let caller = caller.clone();
        let patience = Patience { passed_on: true, ..patience() };
        async move { caller.call(to, &put(1, "v"), patience).await }
    });
    for (session, proof) in [(1, 11), (2, 21)] {
        let mut buffer = vec![0; 2_048];
        let (len, from) = timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        let id = envelope::parse(&buffer[..len]).unwrap().1[0].id;
        let mut datagram = DatagramBuilder::new(Header { session, proof, oldest: 1_000 });
        datagram.push(&Frame::answer(Kind::Challenge, id, &[]));
        server.send_to(&datagram.finish(0), from).await.unwrap();
    }
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Restarted) && error.may_begin_later(), "{error:?}");
}

/// The server has shown a sign of life, so that the request may be begun until the caller's deadline. A challenge of the
/// process before the last start, which comes late, must not make the caller go elsewhere before that.
#[tokio::test]
async fn a_request_that_may_still_be_begun_is_not_given_up_after_a_late_challenge() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (caller, to) = (caller().await, server.local_addr().unwrap());
    let deadline = Instant::now() + 2 * PATIENCE;
    let call = tokio::spawn({
        let caller = caller.clone();
        let silence = Some(PATIENCE);
        async move { caller.call(to, &put(1, "v"), Patience { silence, ..Patience::until(deadline) }).await }
    });
    let next_with = async |proof: u64| loop {
        let mut buffer = vec![0; 2_048];
        let (len, from) = timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        let (header, frames) = envelope::parse(&buffer[..len]).unwrap();
        if header.proof == proof {
            return (frames[0].id, Duration::from_micros(frames[0].expires), from);
        }
    };
    // By then the caller has given up, if it hears nothing more; by the clock that the challenges tell.
    let silent_for = PATIENCE * 3 / 2;
    let challenge = |session, proof, id| {
        let mut datagram = DatagramBuilder::new(Header { session, proof, oldest: 1_000 });
        datagram.push(&Frame::answer(Kind::Challenge, id, &[]));
        datagram.finish(0)
    };
    let (first, _, from) = next_with(0).await;
    server.send_to(&challenge(2, 21, first), from).await.unwrap();
    let (_, expires, _) = next_with(21).await;
    assert!(expires > silent_for, "after a sign of life it may be begun until the deadline: {expires:?}");
    server.send_to(&challenge(1, 11, first), from).await.unwrap();
    let (second, expires, _) = next_with(11).await;
    assert_ne!(second, first);
    assert!(expires > silent_for, "the first copy still may, and so the caller waits as long: {expires:?}");
    call.abort();
}

/// A stranger knows the caller's address and its request's id, and answers before the server does.
#[tokio::test]
async fn an_answer_from_a_stranger_is_not_believed() {
    let [real, stranger] =
        [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    let (caller, to) = (caller().await, real.local_addr().unwrap());
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(to, &put(1, "v"), patience()).await }
    });
    let mut buffer = vec![0; 2_048];
    let (len, from) = timeout(PATIENCE, real.recv_from(&mut buffer)).await.unwrap().unwrap();
    let id = envelope::parse(&buffer[..len]).unwrap().1[0].id;
    let answer = |value: &'static str| {
        let done = PutDone { acked: Vec::new(), context: Token(value.into()), stand_ins: Vec::new() };
        let (kind, body) = Answer::Client(ClientAnswer::Put(done)).encode();
        let mut datagram = DatagramBuilder::new(Header { session: 9, proof: 0, oldest: 0 });
        datagram.push(&Frame::answer(kind, id, &body));
        datagram.finish(0)
    };
    stranger.send_to(&answer("forged"), from).await.unwrap();
    while caller.counters().junk.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    real.send_to(&answer("real"), from).await.unwrap();
    assert_eq!(answered_value(call.await.unwrap()), "real");
}

#[tokio::test]
async fn junk_is_counted_and_the_service_goes_on() {
    let service = Counting::new(100);
    let server = server(service, EndpointConfig::default()).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for len in [0, 1, 7, 31, 32, 100, 1_200, 60_000] {
        stranger.send_to(&vec![0xA5; len], server.local_addr()).await.unwrap();
        let mut stream = tokio::net::TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(&vec![0xA5; len]).await.unwrap();
    }
    let caller = caller().await;
    caller.call(server.local_addr(), &put(1, "v"), patience()).await.unwrap();
    caller.call(server.local_addr(), &put(2, vec![0; 100_000]), patience()).await.unwrap();
    assert_eq!(
        server.counters().junk.load(Ordering::Relaxed),
        7,
        "an empty datagram has nothing in it to count"
    );
}

/// Found by the fuzz target `stream`.
#[tokio::test]
async fn a_notice_on_a_stream_is_not_answered_even_with_the_id_of_an_answered_put() {
    let server = server(Counting::new(9), EndpointConfig::default()).await;
    let (kind, put) = put(1, "v").encode();
    let asked = Frame { kind, id: 7, expires: 0, body: &put };
    let mut bytes = envelope::stream_preface(1).to_vec();
    for frame in [asked, asked, Frame::answer(Kind::Working, 7, &[])] {
        bytes.extend(on_stream(&frame));
    }
    let mut stream = tokio::net::TcpStream::connect(server.local_addr()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answers = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answers)).await.unwrap().unwrap();
    let (first, second) = answers.split_at(answers.len() / 2);
    assert_eq!(
        (first[0], first),
        (Kind::ClientAnswer as u8, second),
        "two requests, and nothing else, are answered"
    );
}

#[tokio::test]
async fn a_closed_endpoint_ends_its_calls_and_lets_go_of_its_port() {
    let server = server(Counting::new(0), EndpointConfig::default()).await;
    let to = server.local_addr();
    let caller = caller().await;
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(to, &put(1, "v"), patience()).await }
    });
    while server.counters().challenged.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(matches!(call.await.unwrap(), Err(CallError::Closed)));
    server.abort();
    drop(server);
    let again = timeout(PATIENCE, async {
        while Port::bind(to).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    again.await.expect("the port is free again");
}

#[tokio::test]
async fn closing_lets_what_is_being_served_finish() {
    let service = Counting::new(0);
    let server = server(service.clone(), EndpointConfig::default()).await;
    let (caller, to) = (caller().await, server.local_addr());
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(to, &put(1, "last"), patience()).await }
    });
    while service.started.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let close = tokio::spawn({
        let server = server.clone();
        async move { server.close(Instant::now() + PATIENCE).await }
    });
    service.permits.add_permits(1);
    close.await.unwrap();
    assert_eq!(answered_value(call.await.unwrap()), "last");
}

#[tokio::test]
async fn messages_ready_at_one_moment_share_datagrams() {
    /// Counts the datagrams that leave.
    struct Sending(Port, Arc<AtomicUsize>);
    impl Socket for Sending {
        type Stream = <Port as Socket>::Stream;
        fn local_addr(&self) -> SocketAddr {
            self.0.local_addr()
        }
        async fn send(&self, to: SocketAddr, bytes: &[u8], segment_len: usize) -> std::io::Result<()> {
            self.1.fetch_add(bytes.len().div_ceil(segment_len), Ordering::SeqCst);
            self.0.send(to, bytes, segment_len).await
        }
        async fn recv<F: FnMut(SocketAddr, &[u8]) + Send>(&self, each: F) -> std::io::Result<()> {
            self.0.recv(each).await
        }
        async fn connect(&self, to: SocketAddr) -> std::io::Result<Self::Stream> {
            self.0.connect(to).await
        }
        async fn accept(&self) -> std::io::Result<(Self::Stream, SocketAddr)> {
            self.0.accept().await
        }
    }
    let server = server(Counting::new(1_000), EndpointConfig::default()).await;
    let (sent, to) = (Arc::new(AtomicUsize::new(0)), server.local_addr());
    let socket = Sending(Port::for_calls(&[to]).await.unwrap(), sent.clone());
    let config = EndpointConfig { retransmit_min: PATIENCE, retransmit_max: PATIENCE, ..Default::default() };
    let caller = Endpoint::start::<NoService>(socket, config, 1, None);
    caller.call(to, &put(0, "v"), patience()).await.unwrap();
    let before = sent.load(Ordering::SeqCst);
    let calls: FuturesUnordered<_> = (1..=100)
        .map(|i| {
            let caller = &caller;
            async move { caller.call(to, &put(i, "v"), patience()).await }
        })
        .collect();
    assert!(calls.collect::<Vec<_>>().await.iter().all(Result::is_ok));
    let datagrams = sent.load(Ordering::SeqCst) - before;
    assert!(datagrams <= 20, "100 small requests went in {datagrams} datagrams");
}

#[tokio::test]
async fn a_request_sent_on_a_connection_that_broke_may_have_been_executed() {
    let server = server(Counting::new(100), EndpointConfig::default()).await;
    let to = server.local_addr();
    let long = vec![0; 100_000];
    let [used, fresh] = [caller().await, caller().await];
    used.call(to, &put(1, long.clone()), patience()).await.unwrap();
    server.abort();
    drop(server);
    let gone = timeout(PATIENCE, async {
        while tokio::net::TcpStream::connect(to).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("nobody accepts any more");
    for caller in [used, fresh] {
        let error = caller.call(to, &put(2, long.clone()), patience()).await.unwrap_err();
        assert!(matches!(error, CallError::Connect(_)) && error.nothing_was_done(), "{error}");
    }

    // Somebody who closes each connection once a request has come.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let closing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 1_000]).await.unwrap();
    });
    let error = caller().await.call(to, &put(3, long), patience()).await.unwrap_err();
    closing.await.unwrap();
    assert!(!error.nothing_was_done() && error.may_begin_later(), "{error}");
}
