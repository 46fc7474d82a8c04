//! A stream from anybody: what comes on an accepted connection, and what a server answers on one that a caller opened.
//!
//! Endpoints read it with the code they always run, on streams in memory and with a clock that jumps to whatever is
//! waited for. Each input is played twice, for the sake of its checksums: as the whole stream, and as frames that get
//! a preface, checksums and, in answers, the ids that are waited for. Some connections bring all at once and are closed, some
//! bring it bit by bit and then fall silent; a server gets both kinds side by side.
//!
//! Besides not panicking, an endpoint has to come to an end with each of them, answer what was asked, no put with two
//! answers, and then serve a well-formed request.

#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dkvs_net::{Endpoint, EndpointConfig, NoService, Patience, Service, Socket, Validity};
use dkvs_proto::envelope::{STREAM_PREFACE_LEN, parse_stream_preface, stream_preface};
use dkvs_proto::frame::{EXPIRY_LEN, FRAME_HEADER_LEN, Frame, FrameHeader, Kind};
use dkvs_proto::message::admin::{AdminAnswer, AdminRequest};
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, PutDone, Token};
use dkvs_proto::message::replica::ReplicaAnswer;
use dkvs_proto::message::{Answer, Refusal, Request};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const QUESTION: Request = Request::Admin(AdminRequest::Status);
/// Longer than whatever an endpoint should wait for.
const TOO_LONG: Duration = Duration::from_secs(50);

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    AtOnceThenClosed,
    BitByBitThenSilent,
}

/// One side of a connection, whose other side says what it was told to say. When dropped, it tells what was written.
struct Played {
    manner: Manner,
    bit_len: usize,
    unread: Bytes,
    rested: bool,
    written: Vec<u8>,
    dropped: Option<oneshot::Sender<Vec<u8>>>,
}

impl Played {
    fn new(bytes: &Bytes, manner: Manner) -> (Self, oneshot::Receiver<Vec<u8>>) {
        let (dropped, written) = oneshot::channel();
        let bit_len = if manner == Manner::AtOnceThenClosed { usize::MAX } else { 1 + bytes.len() / 8 };
        let (unread, dropped) = (bytes.clone(), Some(dropped));
        (Self { manner, bit_len, unread, rested: false, written: Vec::new(), dropped }, written)
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        if let Some(dropped) = self.dropped.take() {
            let _ = dropped.send(std::mem::take(&mut self.written));
        }
    }
}

impl AsyncRead for Played {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.manner {
            Manner::AtOnceThenClosed => {}
            Manner::BitByBitThenSilent if self.unread.is_empty() => return Poll::Pending,
            Manner::BitByBitThenSilent => {
                self.rested = !self.rested;
                if self.rested {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        let len = self.bit_len.min(self.unread.len()).min(into.remaining());
        into.put_slice(&self.unread.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Played {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A port without datagrams, and with the streams that were handed to it: to accept, or to connect to.
struct PlayedPort {
    streams: Mutex<mpsc::UnboundedReceiver<Played>>,
    _until_dropped: oneshot::Sender<()>,
}

impl Socket for PlayedPort {
    type Stream = Played;

    fn local_addr(&self) -> SocketAddr {
        ADDRESS
    }

    async fn send(&self, _: SocketAddr, _: &[u8], _: usize) -> io::Result<()> {
        Ok(())
    }

    async fn recv<F: FnMut(SocketAddr, &[u8]) + Send>(&self, _: F) -> io::Result<()> {
        std::future::pending().await
    }

    async fn connect(&self, _: SocketAddr) -> io::Result<Played> {
        self.streams.lock().await.try_recv().map_err(|_| io::ErrorKind::ConnectionRefused.into())
    }

    async fn accept(&self) -> io::Result<(Played, SocketAddr)> {
        match self.streams.lock().await.recv().await {
            Some(stream) => Ok((stream, ADDRESS)),
            None => std::future::pending().await,
        }
    }
}

/// An endpoint and what it is given to read.
struct Playing {
    endpoint: Endpoint<PlayedPort>,
    streams: mpsc::UnboundedSender<Played>,
    all_dropped: oneshot::Receiver<()>,
}

impl Playing {
    fn start<V: Service>(service: Option<V>) -> Self {
        let (streams, to_come) = mpsc::unbounded_channel();
        let (until_dropped, all_dropped) = oneshot::channel();
        let port = PlayedPort { streams: Mutex::new(to_come), _until_dropped: until_dropped };
        let endpoint = Endpoint::start(port, EndpointConfig::default(), 1, service.map(Arc::new));
        Self { endpoint, streams, all_dropped }
    }

    fn play(&self, bytes: &Bytes, manner: Manner) -> oneshot::Receiver<Vec<u8>> {
        let (stream, written) = Played::new(bytes, manner);
        assert!(self.streams.send(stream).is_ok(), "the endpoint holds its port");
        written
    }

    async fn end(self) {
        drop(self.endpoint);
        assert!(timeout(TOO_LONG, self.all_dropped).await.is_ok(), "an endpoint that was dropped goes on");
    }
}

/// Answers each put with another context, so that one that was executed twice has two answers.
struct Counting(AtomicU64);

impl Service for Counting {
    async fn handle(&self, _: SocketAddr, request: Request, _: Validity) -> Answer {
        sleep(Duration::from_millis(1)).await;
        match request {
            Request::Client(ClientRequest::Put(_)) => {
                let number = self.0.fetch_add(1, Ordering::Relaxed);
                let context = Token(Bytes::copy_from_slice(&number.to_be_bytes()));
                Answer::Client(ClientAnswer::Put(PutDone { acked: Vec::new(), context, stand_ins: Vec::new() }))
            }
            Request::Client(ClientRequest::Get(_)) => {
                Answer::Client(ClientAnswer::Failed(Failure::Refused(Refusal::NotOwner)))
            }
            Request::Replica(_) => Answer::Replica(ReplicaAnswer::Same),
            Request::Admin(_) => Answer::Admin(AdminAnswer::Refused(Refusal::Stopping)),
        }
    }
}

/// The frame at the start of `bytes`, without its checksum: its header and its length, which may be more than there is.
fn frame_at(bytes: &[u8]) -> Option<(FrameHeader, usize)> {
    let header = bytes.first_chunk::<FRAME_HEADER_LEN>().and_then(FrameHeader::parse)?;
    let expiry_len = if header.kind.is_request() { EXPIRY_LEN } else { 0 };
    Some((header, FRAME_HEADER_LEN + expiry_len + header.body_len))
}

/// The undamaged frames at the start of `bytes`, and what follows them.
fn read_frames(mut bytes: &[u8]) -> (Vec<Frame<'_>>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((header, len)) = frame_at(bytes)
        && let Some((frame, rest)) = bytes.split_at_checked(len)
        && let Some((crc, rest)) = rest.split_first_chunk()
        && *crc == crc32fast::hash(frame).to_be_bytes()
    {
        let body = &frame[len - header.body_len..];
        frames.push(Frame { kind: header.kind, id: header.id, expires: 0, body });
        bytes = rest;
    }
    (frames, bytes)
}

/// The frames at the start of `frames` with checksums that are right and with ids that `id` chooses, and then the rest.
fn sealed(preface: &[u8], mut frames: &[u8], mut id: impl FnMut(FrameHeader) -> u64) -> Bytes {
    let mut stream = preface.to_vec();
    while let Some((header, len)) = frame_at(frames) {
        let (frame, rest) = frames.split_at(len.min(frames.len()));
        let start = stream.len();
        stream.extend_from_slice(frame);
        stream[start + 1..start + 9].copy_from_slice(&id(header).to_be_bytes());
        let crc = crc32fast::hash(&stream[start..]);
        stream.extend_from_slice(&crc.to_be_bytes());
        frames = rest;
    }
    stream.extend_from_slice(frames);
    stream.into()
}

/// The session a stream is opened for, and the undamaged requests at its start. None if nobody would read it.
fn read_requests(stream: &[u8]) -> (Option<u64>, Vec<Frame<'_>>) {
    let Some((preface, frames)) = stream.split_first_chunk::<STREAM_PREFACE_LEN>() else {
        return (None, Vec::new());
    };
    match parse_stream_preface(preface) {
        Ok(session) => (Some(session), read_frames(frames).0),
        Err(_) => (None, Vec::new()),
    }
}

/// What a server wrote answers what it read, in order. `puts` are the answers that puts have had so far.
fn check_answers(asked: &[u8], written: &[u8], puts: &mut BTreeMap<(Option<u64>, u64), Vec<u8>>) {
    let (answers, rest) = read_frames(written);
    assert!(rest.is_empty(), "a server wrote something else than frames");
    let (session, requests) = read_requests(asked);
    assert!(answers.len() <= requests.len(), "more answers than requests");
    for (request, answer) in requests.iter().zip(answers) {
        assert!(request.kind.is_request() && request.id == answer.id, "an answer to another request");
        match Answer::decode(answer.kind, answer.body) {
            Some(Ok(Answer::Client(ClientAnswer::Put(_)))) => {
                let first = puts.entry((session, answer.id)).or_insert_with(|| answer.body.to_vec());
                assert_eq!(answer.body, *first, "a put was executed twice");
            }
            Some(answer) => assert!(answer.is_ok(), "a server wrote an answer that cannot be read"),
            None => assert!(
                matches!(answer.kind, Kind::Working | Kind::Overloaded)
                    || (answer.kind, request.kind) == (Kind::Challenge, Kind::ReplicaRequest)
            ),
        }
    }
}

/// A server accepts streams.
async fn serve(asked: [&Bytes; 2]) {
    let playing = Playing::start(Some(Counting(AtomicU64::new(0))));
    let mut streams = Vec::new();
    for asked in asked {
        for manner in [Manner::AtOnceThenClosed, Manner::BitByBitThenSilent] {
            streams.push((asked, playing.play(asked, manner)));
        }
    }
    let mut puts = BTreeMap::new();
    for (asked, written) in streams {
        let written = timeout(TOO_LONG, written).await.expect("a stream comes to its end");
        check_answers(asked, &written.unwrap_or_default(), &mut puts);
    }
    let (kind, body) = QUESTION.encode();
    let mut question = Vec::new();
    Frame { kind, id: 1, expires: 0, body: &body }.write(&mut question);
    let question = sealed(&stream_preface(!0), &question, |header| header.id);
    let written = playing.play(&question, Manner::AtOnceThenClosed).await.unwrap_or_default();
    assert_eq!(read_frames(&written).0.len(), 1, "a well-formed request is answered, whatever was before it");
    playing.end().await;
}

/// A caller has its calls answered by streams: the one that was played, then those that get checksums and ids.
async fn call(played: &Bytes) {
    let playing = Playing::start(None::<NoService>);
    let ask = || async {
        let patience = Patience::until(Instant::now() + Duration::from_secs(1));
        playing.endpoint.call_by_stream(ADDRESS, &QUESTION, patience).await
    };
    // A first call is told nothing, and shows which ids the next ones will have.
    let written = playing.play(&Bytes::new(), Manner::AtOnceThenClosed);
    assert!(ask().await.is_err(), "an answer out of nothing");
    let written = written.await.unwrap_or_default();
    let (_, asked) = read_requests(&written);
    assert_eq!(asked.len(), 1, "a caller writes its request");

    let mut call = asked[0].id + 1;
    let given = [played.clone(), answering(played, call + 1), answering(played, call + 3)];
    let manners = [Manner::AtOnceThenClosed, Manner::AtOnceThenClosed, Manner::BitByBitThenSilent];
    let mut answers = Vec::new();
    for ((given, manner), calls) in given.iter().zip(manners).zip([1, 2, 2]) {
        let _written = playing.play(given, manner);
        for _ in 0..calls {
            answers.extend(ask().await.map(|answer| (call, answer)));
            call += 1;
        }
    }
    let given: Vec<_> = given.iter().flat_map(|given| read_frames(given).0).collect();
    for (call, answer) in answers {
        let mut to_it = given.iter().filter(|given| given.id == call);
        let is_it = |given: &Frame<'_>| Answer::decode(given.kind, given.body) == Some(Ok(answer.clone()));
        assert!(to_it.any(is_it), "an answer that nobody gave");
    }
    playing.end().await;
}

/// A stream of answers, to the call `id` and those after it.
fn answering(played: &[u8], mut id: u64) -> Bytes {
    sealed(&[], played, |header| {
        let this = id;
        id += u64::from(header.kind != Kind::Working);
        this
    })
}

async fn play(played: Bytes) {
    serve([&played, &sealed(&stream_preface(1), &played, |header| header.id)]).await;
    call(&played).await;
}

thread_local! {
    static RUNTIME: Runtime =
        Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime needs no more");
}

fuzz_target!(|bytes: &[u8]| RUNTIME.with(|runtime| runtime.block_on(play(Bytes::copy_from_slice(bytes)))));
