//! The stream lane: the same requests and answers over TCP, for those that do not fit a datagram.
//!
//! ```text
//!   caller: preface | frame crc | frame crc ...
//!   server:          | frame crc | frame crc ...        one answer for each request, in order
//! ```
//! Each frame is followed by its CRC-32. A connection carries one request at a time and is then kept for the next;
//! requests that run side by side use several. TCP's handshake has proved the caller's address.
//!
//! A request keeps its session and id on whatever connection it comes, so a retry over a new connection is known as
//! a retry. What a server asks of another expires, as by datagram: a merge that lay in a connection for minutes could bring back what was
//! forgotten meanwhile. The requests of clients do not; in the place of the expiry stands what a datagram's envelope says, the oldest id
//! that the session still waits for. Without it, answers to puts would be remembered for too short or too long.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use crc32fast::Hasher as Checksum;
use dkvs_proto::envelope::{STREAM_PREFACE_LEN, parse_stream_preface, stream_preface};
use dkvs_proto::frame::{EXPIRY_LEN, FRAME_HEADER_LEN, Frame, FrameHeader, Kind};
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use crate::calls::read_answer;
use crate::config::EndpointConfig;
use crate::endpoint::{Answered, CallError, Counters, Service, Shared};
use crate::gauges::{Gauge, Held};
use crate::lock;
use crate::peers::PEERS_MAX;
use crate::serve::Admitted;
use crate::socket::Socket;
use crate::stream_places::StreamPlace;
use crate::validity::NEVER;

/// Connections kept for one peer while nobody uses them. One more is closed instead.
const IDLE_PER_PEER_MAX: usize = 8;

/// Connections kept for all peers. One more is closed instead.
const IDLE_MAX: usize = IDLE_PER_PEER_MAX * PEERS_MAX;

/// How much room is made at a time for a body that was announced but has not come.
const READ_STEP_LEN: usize = 64 * 1024;

/// The unit in which room for bodies is counted, in bytes.
pub(crate) const ROOM_UNIT_LEN: usize = 1_024;

/// Pause before asking again about a request that is being executed.
const WORKING_PAUSE: Duration = Duration::from_millis(50);

/// Connections that wait for their next request.
pub(crate) struct IdleStreams<T> {
    kept: Mutex<Kept<T>>,
    pub(crate) gauge: Gauge,
}

struct Kept<T> {
    /// No peer stands here without a connection.
    by_peer: BTreeMap<SocketAddr, Vec<T>>,
    count: usize,
}

impl<T> Default for IdleStreams<T> {
    fn default() -> Self {
        let kept = Kept { by_peer: BTreeMap::new(), count: 0 };
        Self { kept: Mutex::new(kept), gauge: Gauge::new(IDLE_MAX) }
    }
}

impl<T> IdleStreams<T> {
    fn take(&self, to: SocketAddr) -> Option<T> {
        let mut kept = lock(&self.kept);
        let of_peer = kept.by_peer.get_mut(&to)?;
        let stream = of_peer.pop();
        if of_peer.is_empty() {
            kept.by_peer.remove(&to);
        }
        kept.count -= usize::from(stream.is_some());
        self.gauge.set(kept.count);
        stream
    }

    fn keep(&self, to: SocketAddr, stream: T) {
        let mut kept = lock(&self.kept);
        let of_peer = kept.by_peer.get(&to).map_or(0, Vec::len);
        if of_peer >= IDLE_PER_PEER_MAX || kept.count >= IDLE_MAX {
            return self.gauge.was_full();
        }
        kept.by_peer.entry(to).or_default().push(stream);
        kept.count += 1;
        self.gauge.set(kept.count);
    }
}

/// How many bytes of bodies the streams of one direction may hold together.
pub(crate) fn room_len(config: &EndpointConfig) -> usize {
    config.stream_bytes_max / ROOM_UNIT_LEN * ROOM_UNIT_LEN
}

async fn write_frame<W: AsyncWrite + Unpin>(to: &mut W, frame: &Frame<'_>) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(frame.len() + 4);
    frame.write(&mut bytes);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Whether a kept connection was closed by the other side, as far as is known here: nothing need be sent to find out.
fn has_ended<R: AsyncRead + Unpin>(stream: &mut R) -> bool {
    // On a kept connection nothing is to be read; whatever comes of it is its end.
    stream.read_u8().now_or_never().is_some()
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a frame's header, and of a request its expiry, or what stands in its place: the oldest id that the session still
/// waits for.
async fn read_header<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<(FrameHeader, u64, Checksum)> {
    let mut head = [0; FRAME_HEADER_LEN];
    from.read_exact(&mut head).await?;
    let header = FrameHeader::parse(&head).ok_or_else(|| malformed("unknown kind or length"))?;
    let mut checksum = Checksum::new();
    checksum.update(&head);
    let mut expires = [0; EXPIRY_LEN];
    if header.kind.is_request() {
        from.read_exact(&mut expires).await?;
        checksum.update(&expires);
    }
    Ok((header, u64::from_be_bytes(expires), checksum))
}

/// Reads a frame's body, making room only as its bytes arrive, and the CRC after it.
async fn read_body<R: AsyncRead + Unpin>(
    from: &mut R,
    len: usize,
    mut checksum: Checksum,
) -> io::Result<Bytes> {
    let mut body = Vec::with_capacity(len.min(READ_STEP_LEN));
    from.take(len as u64).read_to_end(&mut body).await?;
    checksum.update(&body);
    if from.read_u32().await? != checksum.finalize() {
        return Err(malformed("checksum mismatch"));
    }
    Ok(body.into())
}

/// Whether requests of a kind expire on the stream lane.
pub(crate) fn expires_by_stream(kind: Kind) -> bool {
    kind == Kind::ReplicaRequest
}

/// Whether copies of a request by stream have gone out.
pub(crate) struct Sent {
    /// By datagram.
    pub(crate) before: bool,
    /// On a connection that broke. Then a server that has ended since may have executed it.
    pub(crate) broke: bool,
}

impl Sent {
    pub(crate) fn at_all(&self) -> bool {
        self.before || self.broke
    }
}

/// What came of one request on one connection.
enum Exchanged {
    Answered(Kind, Bytes),
    /// It had expired, by the server's clock.
    Expired,
    Overloaded,
}

impl Exchanged {
    /// What it says of the request; `None` when that had expired.
    fn read(self, sent: &Sent) -> Result<Option<Answered>, CallError> {
        match self {
            Self::Answered(kind, body) => {
                Ok(Some(Answered { answer: read_answer(kind, &body)?, maybe_done_before: sent.broke }))
            }
            Self::Expired => Ok(None),
            Self::Overloaded => Err(CallError::Overloaded { repeated: sent.at_all() }),
        }
    }
}

impl<S: Socket> Shared<S> {
    /// Asks by stream. A kept connection that turns out to be closed is replaced; the request's id makes that safe. `None` when the
    /// request has expired.
    pub(crate) async fn ask_by_stream(
        &self,
        to: SocketAddr,
        frame: Frame<'_>,
        sent: &mut Sent,
    ) -> Result<Option<Answered>, CallError> {
        while let Some(mut idle) = self.idle_streams.take(to) {
            if has_ended(&mut idle) {
                continue;
            }
            match self.exchange(to, &mut idle, &frame).await {
                Ok(exchanged) => {
                    self.idle_streams.keep(to, idle);
                    return exchanged.read(sent);
                }
                Err(_) => sent.broke = true,
            }
        }
        let broken = |error| CallError::Broken(Arc::new(error));
        let unreachable =
            |error| if sent.at_all() { broken(error) } else { CallError::Connect(Arc::new(error)) };
        let mut stream = self.socket.connect(to).await.map_err(unreachable)?;
        stream.write_all(&stream_preface(self.session)).await.map_err(broken)?;
        let exchanged = self.exchange(to, &mut stream, &frame).await.map_err(broken)?;
        self.idle_streams.keep(to, stream);
        exchanged.read(sent)
    }

    /// One request and its answer. The error is the connection's.
    async fn exchange(
        &self,
        to: SocketAddr,
        stream: &mut S::Stream,
        frame: &Frame<'_>,
    ) -> io::Result<Exchanged> {
        loop {
            let expires = {
                let peers = lock(&self.peers);
                if expires_by_stream(frame.kind) {
                    peers.expires(to, frame.id)
                } else {
                    peers.proof_and_oldest(to).1
                }
            };
            write_frame(stream, &Frame { expires, ..*frame }).await?;
            let (header, _, checksum) = read_header(stream).await?;
            // Held until the answer is read: what callers read at one time has a limit too. Who waits does so until its deadline.
            let _room = self.room_for(header.body_len, &self.answer_room, &self.gauges.answer_bytes).await;
            let body = read_body(stream, header.body_len, checksum).await?;
            if header.id != frame.id {
                return Err(malformed("an answer to another request"));
            }
            match header.kind {
                Kind::Working => sleep(WORKING_PAUSE).await,
                Kind::Overloaded => return Ok(Exchanged::Overloaded),
                Kind::Challenge if expires_by_stream(frame.kind) => return Ok(Exchanged::Expired),
                Kind::ClientAnswer
                | Kind::ReplicaAnswer
                | Kind::AdminAnswer
                | Kind::ClientRequest
                | Kind::ReplicaRequest
                | Kind::AdminRequest
                | Kind::Challenge
                | Kind::UseStream => return Ok(Exchanged::Answered(header.kind, body)),
            }
        }
    }

    async fn serve_stream<V: Service>(
        self: &Arc<Self>,
        mut stream: S::Stream,
        mut place: StreamPlace,
        from: SocketAddr,
        service: &V,
    ) -> io::Result<()> {
        let mut preface = [0; STREAM_PREFACE_LEN];
        timeout(self.config.stream_idle_max, stream.read_exact(&mut preface)).await??;
        let session = parse_stream_preface(&preface).map_err(|e| malformed(&e.to_string()))?;
        let idle_max = self.config.stream_idle_max;
        let mut head = timeout(idle_max, read_header(&mut stream)).await??;
        loop {
            self.serve_request(&mut stream, session, head, from, service).await?;
            let next = timeout(idle_max, read_header(&mut stream));
            let Some((kept, next)) = self.streams.wait(place, next).await else { return Ok(()) };
            (place, head) = (kept, next??);
        }
    }

    /// Reads the rest of a request and answers it.
    async fn serve_request<V: Service>(
        self: &Arc<Self>,
        stream: &mut S::Stream,
        session: u64,
        (header, expires_or_oldest, checksum): (FrameHeader, u64, Checksum),
        from: SocketAddr,
        service: &V,
    ) -> io::Result<()> {
        let idle_max = self.config.stream_idle_max;
        // Held until the request is answered: all streams together hold no more than their budget.
        let room = self.room_for(header.body_len, &self.stream_room, &self.gauges.stream_bytes);
        let _room = timeout(idle_max, room).await?;
        let body = timeout(idle_max, read_body(stream, header.body_len, checksum)).await??;
        let (expires, oldest) =
            if expires_by_stream(header.kind) { (expires_or_oldest, 0) } else { (NEVER, expires_or_oldest) };
        lock(&self.sessions).seen(session, oldest);
        let frame = Frame { kind: header.kind, id: header.id, expires, body: &body };
        let (kind, body) = match self.admit(session, &frame) {
            Admitted::Execute(request, validity, permit) => {
                let answer = self.execute(service, from, session, header.id, request, validity).await;
                drop(permit);
                answer
            }
            Admitted::Answer(kind, body) => (kind, body),
            Admitted::Expired => (Kind::Challenge, Bytes::new()),
            Admitted::Ignore => return Err(malformed("not a request")),
        };
        let answer = Frame::answer(kind, header.id, &body);
        timeout(idle_max, write_frame(stream, &answer)).await??;
        Ok(())
    }

    /// Waits for a share of a budget for bodies.
    async fn room_for<'a>(
        &self,
        body_len: usize,
        room: &'a Semaphore,
        gauge: &'a Gauge,
    ) -> Option<(SemaphorePermit<'a>, Held<&'a Gauge>)> {
        let share = body_len.div_ceil(ROOM_UNIT_LEN).min(self.config.stream_bytes_max / ROOM_UNIT_LEN);
        if share > room.available_permits() {
            gauge.was_full();
        }
        let permit = room.acquire_many(u32::try_from(share).unwrap_or(u32::MAX)).await.ok()?;
        Some((permit, Gauge::hold(gauge, share * ROOM_UNIT_LEN)))
    }
}

/// Serves connections until the endpoint closes.
pub(crate) async fn accept_loop<S: Socket, V: Service>(shared: Arc<Shared<S>>, service: Arc<V>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            accepted = shared.socket.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a stream");
                // Out of descriptors, usually: give others time to close theirs.
                sleep(WORKING_PAUSE).await;
                continue;
            }
        };
        let Some(place) = shared.streams.take() else {
            Counters::count(&shared.counters.overloaded);
            continue;
        };
        let (shared, service) = (shared.clone(), service.clone());
        tokio::spawn(async move {
            let served = tokio::select! {
                biased;
                () = shared.closed.cancelled() => Ok(()),
                served = shared.serve_stream(stream, place, from, &*service) => served,
            };
            if let Err(error) = served {
                tracing::debug!(%from, %error, "stream ended");
            }
        });
    }
}
