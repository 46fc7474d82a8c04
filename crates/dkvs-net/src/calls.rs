//! Making calls: a request is sent, by datagram or stream, until something ends the call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dkvs_proto::codec::CodecError;
use dkvs_proto::envelope::ENVELOPE_HEADER_LEN;
use dkvs_proto::frame::{Frame, Kind};
use dkvs_proto::limits::BODY_LEN_MAX;
use dkvs_proto::message::replica::ReplicaRequest;
use dkvs_proto::message::{Answer, Request};
use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::endpoint::{Answered, CallError, Counters, Patience, Shared};
use crate::lock;
use crate::peers::{Expiry, Heard};
use crate::socket::Socket;
use crate::streams::{Sent, expires_by_stream};

/// A call that is registered, until dropped.
pub(crate) struct Begun<'a, S: Socket> {
    shared: &'a Shared<S>,
    to: SocketAddr,
    pub(crate) id: u64,
    frame: Option<Arc<[u8]>>,
    ended: oneshot::Receiver<Heard>,
}

impl<S: Socket> Drop for Begun<'_, S> {
    fn drop(&mut self) {
        lock(&self.shared.peers).end(self.to, self.id);
    }
}

pub(crate) fn check_len(body: &[u8]) -> Result<(), CallError> {
    if body.len() > BODY_LEN_MAX { Err(CallError::TooLong { len: body.len() }) } else { Ok(()) }
}

impl<S: Socket> Shared<S> {
    /// Registers a call. `frame` makes the datagram frame, if it goes by datagram.
    pub(crate) fn begin(
        &self,
        to: SocketAddr,
        patience: &Patience,
        frame: impl FnOnce(u64, u64) -> Option<Arc<[u8]>>,
    ) -> Result<Begun<'_, S>, CallError> {
        let (sender, ended) = oneshot::channel();
        let mut peers = lock(&self.peers);
        if peers.is_full(to) {
            return Err(CallError::Overloaded { repeated: false });
        }
        let silent_at = patience.silence.map(|silence| Instant::now() + silence);
        let expiry = Expiry {
            unheard: silent_at.map_or(patience.deadline, |at| at.min(patience.deadline)),
            heard: patience.deadline,
            within: patience.within.clone(),
        };
        let (id, frame) = peers.begin(to, expiry, frame, sender);
        drop(peers);
        Ok(Begun { shared: self, to, id, frame, ended })
    }

    pub(crate) async fn call(
        &self,
        to: SocketAddr,
        kind: Kind,
        body: &[u8],
        mut patience: Patience,
    ) -> Result<Answered, CallError> {
        check_len(body)?;
        let frame = |id, expires| self.datagram_frame(Frame { kind, id, expires, body });
        let mut times_sent = 0;
        let mut maybe_done_before = false;
        let (call, heard) = loop {
            let mut call = match self.begin(to, &patience, frame) {
                Err(CallError::Overloaded { .. }) if times_sent > 0 => {
                    return Err(refused(true, maybe_done_before));
                }
                begun => begun?,
            };
            let Some(frame) = call.frame.clone() else { break (call, Heard::UseStream) };
            if let Some(heard) = self.call_by_datagram(&mut call, frame, &patience, &mut times_sent).await? {
                break (call, heard);
            }
            if patience.passed_on {
                return Err(CallError::Restarted);
            }
            maybe_done_before |= lock(&self.peers).is_known_elsewhere(to, call.id);
            // The peer was restarted, it seems, but a copy under the old id may still be begun: late challenges of the
            // process before look like those of a new one. So this peer is not given up for its silence any more.
            if lock(&self.peers).is_extended(to, call.id) {
                patience.silence = None;
            }
        };
        let answer = match heard {
            Heard::Answer(kind, body) => read_answer(kind, &body)?,
            Heard::Overloaded => return Err(refused(times_sent > 1, maybe_done_before)),
            Heard::UseStream => {
                let frame = Frame { kind, id: call.id, expires: 0, body };
                match self.call_by_stream(to, frame, patience.deadline, times_sent > 0).await {
                    Ok(answered) => {
                        maybe_done_before |= answered.maybe_done_before;
                        answered.answer
                    }
                    Err(CallError::Overloaded { repeated }) => {
                        return Err(refused(repeated, maybe_done_before));
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        Ok(Answered { answer, maybe_done_before })
    }

    /// Asks by stream, until `deadline`. A request that expires there is not sent before the server's clock is known, which
    /// only datagrams tell: if need be, the server is asked for a sign of life first.
    /// `sent_before`: the request has been sent already, by datagram.
    pub(crate) async fn call_by_stream(
        &self,
        to: SocketAddr,
        frame: Frame<'_>,
        deadline: Instant,
        sent_before: bool,
    ) -> Result<Answered, CallError> {
        let mut sent = Sent { before: sent_before, broke: false };
        let asking = async {
            if expires_by_stream(frame.kind) && !lock(&self.peers).knows_clock(to) {
                self.hear_clock(to, deadline).await?;
            }
            if let Some(answered) = self.ask_by_stream(to, frame, &mut sent).await? {
                return Ok(answered);
            }
            // The server was restarted, or was not heard of for so long that its clock is not known well enough. If it does not tell,
            // the request expires once more.
            let _ = self.hear_clock(to, deadline).await;
            let answered = self.ask_by_stream(to, frame, &mut sent).await?;
            answered.ok_or(CallError::Overloaded { repeated: sent.at_all() })
        };
        timeout_at(deadline, asking).await.unwrap_or(Err(CallError::TimedOut))
    }

    /// Has a server tell its clock if it has not told it for as long as a proof lives, or was restarted since. Whatever it answers.
    async fn hear_clock(&self, to: SocketAddr, deadline: Instant) -> Result<(), CallError> {
        let (kind, body) = Request::Replica(ReplicaRequest::Ping).encode();
        let patience = Patience::until(deadline);
        let frame = |id, expires| self.datagram_frame(Frame { kind, id, expires, body: &body });
        let mut call = self.begin(to, &patience, frame)?;
        let frame = call.frame.clone().ok_or(CallError::TooLong { len: body.len() })?;
        self.call_by_datagram(&mut call, frame, &patience, &mut 0).await.map(drop)
    }

    /// The frame's bytes, unless it is too long for a datagram.
    pub(crate) fn datagram_frame(&self, frame: Frame<'_>) -> Option<Arc<[u8]>> {
        (ENVELOPE_HEADER_LEN + frame.len() <= self.config.datagram_len_max).then(|| {
            let mut bytes = Vec::with_capacity(frame.len());
            frame.write(&mut bytes);
            bytes.into()
        })
    }

    /// Sends the request, again and again with growing pauses, until something ends the call. Counts how often it
    /// was sent, but for what a challenge had sent again. `None` when the peer was found to have been restarted: the request
    /// has to be made anew.
    async fn call_by_datagram(
        &self,
        call: &mut Begun<'_, S>,
        frame: Arc<[u8]>,
        patience: &Patience,
        times_sent: &mut u32,
    ) -> Result<Option<Heard>, CallError> {
        let start = Instant::now();
        *times_sent += 1;
        let mut silent_at = patience.silence.map(|silence| start + silence);
        let mut pause = self.config.retransmit_min;
        self.push(call.to, frame);
        loop {
            let again_at = Instant::now() + self.jittered(pause);
            let wake_at = [Some(patience.deadline), silent_at, Some(again_at)].into_iter().flatten().min();
            tokio::select! {
                biased;
                ended = &mut call.ended => return Ok(ended.ok()),
                () = self.closed.cancelled() => return Err(CallError::Closed),
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
                let repetition = lock(&self.peers).repetition(call.to, call.id);
                repetition.into_iter().for_each(|frame| self.push(call.to, frame));
                *times_sent += 1;
                pause = (pause * 2).min(self.config.retransmit_max);
            }
        }
    }

    /// Between three and five quarters of `pause`, so that callers that started together drift apart.
    fn jittered(&self, pause: Duration) -> Duration {
        pause.mul_f64(lock(&self.jitter).random_range(0.75..1.25))
    }
}

/// A server had no room for a request. That speaks for the id it had last: under an earlier one the same server may be
/// executing it, if what looked like its restart was a challenge that came late.
fn refused(repeated: bool, maybe_begun_before: bool) -> CallError {
    if maybe_begun_before { CallError::Restarted } else { CallError::Overloaded { repeated } }
}

pub(crate) fn read_answer(kind: Kind, body: &[u8]) -> Result<Answer, CallError> {
    let not_an_answer = || CodecError::Malformed(format!("{kind:?} is not an answer"));
    Answer::decode(kind, body).unwrap_or_else(|| Err(not_an_answer())).map_err(CallError::Malformed)
}
