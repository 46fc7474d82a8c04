//! The calls in flight, by the address they went to.
//!
//! A peer is added when it is first called, as callers name their peers and strangers cannot, and forgotten only when there
//! are too many: it costs its next call one round trip, for a new proof.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use dkvs_proto::envelope::Header;
use dkvs_proto::frame::{Frame, Kind, with_expiry};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::gauges::Gauge;
use crate::validity::{KnownClock, Validity, expires};

/// Destinations remembered: more than the servers of any ring.
pub(crate) const PEERS_MAX: usize = 1_024;

/// What ends a call.
#[derive(Debug)]
pub(crate) enum Heard {
    Answer(Kind, Bytes),
    UseStream,
    Overloaded,
}

/// One request that waits for its answer.
#[derive(Debug)]
struct Call {
    /// The request's frame; `None` when it went by stream.
    frame: Option<Arc<[u8]>>,
    expiry: Expiry,
    /// Whether the peer has shown that it got the request.
    sign_of_life: bool,
    /// Whether it was sent, after a sign of life, to be begun as late as its caller gives it up at last.
    extended: bool,
    /// Whether a process of the peer other than the one that was heard last may have got a copy with its proof.
    known_elsewhere: bool,
    ended: Option<oneshot::Sender<Heard>>,
}

/// When a call's request expires.
#[derive(Clone, Debug)]
pub(crate) struct Expiry {
    /// When its caller gives it up if the peer shows no sign of life.
    pub(crate) unheard: Instant,
    /// When its caller gives it up at last.
    pub(crate) heard: Instant,
    /// The request on whose behalf the call is made.
    pub(crate) within: Option<Validity>,
}

impl Expiry {
    fn until(&self, sign_of_life: bool) -> Instant {
        let own = if sign_of_life { self.heard } else { self.unheard };
        let within = self.within.as_ref().and_then(Validity::until);
        within.map_or(own, |within| within.min(own))
    }
}

/// What is known of one destination.
#[derive(Debug, Default)]
struct Peer {
    /// 0 when there is none.
    proof: u64,
    /// The session of the process that told the proof.
    session: u64,
    /// Told together with the proof.
    clock: Option<KnownClock>,
    calls: BTreeMap<u64, Call>,
}

/// All destinations.
#[derive(Debug)]
pub(crate) struct Peers {
    peers: BTreeMap<SocketAddr, Peer>,
    next_id: u64,
    in_flight: usize,
    calls_max: usize,
    pub(crate) calls_gauge: Gauge,
    pub(crate) peers_gauge: Gauge,
}

impl Peers {
    /// Ids count up from `first_id`; at most `calls_max` calls are in flight.
    pub(crate) fn new(first_id: u64, calls_max: usize) -> Self {
        Self {
            peers: BTreeMap::new(),
            next_id: first_id,
            in_flight: 0,
            calls_max,
            calls_gauge: Gauge::new(calls_max),
            peers_gauge: Gauge::new(PEERS_MAX),
        }
    }

    /// Whether one more call to `to` would be too many. Makes room among the peers if need be.
    pub(crate) fn is_full(&mut self, to: SocketAddr) -> bool {
        if self.in_flight >= self.calls_max {
            self.calls_gauge.was_full();
            return true;
        }
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&to) {
            self.peers_gauge.was_full();
            let idle = self.peers.iter().find(|(_, peer)| peer.calls.is_empty()).map(|(&address, _)| address);
            return idle.is_none_or(|idle| self.peers.remove(&idle).is_none());
        }
        false
    }

    /// Registers a call and returns its id. `frame` makes the request's bytes once the id and the expiry are known.
    pub(crate) fn begin(
        &mut self,
        to: SocketAddr,
        expiry: Expiry,
        frame: impl FnOnce(u64, u64) -> Option<Arc<[u8]>>,
        ended: oneshot::Sender<Heard>,
    ) -> (u64, Option<Arc<[u8]>>) {
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight += 1;
        let peer = self.peers.entry(to).or_default();
        let frame = frame(id, expires(peer.clock, expiry.until(false)));
        let call = Call {
            frame: frame.clone(),
            expiry,
            sign_of_life: false,
            extended: false,
            known_elsewhere: false,
            ended: Some(ended),
        };
        peer.calls.insert(id, call);
        self.calls_gauge.set(self.in_flight);
        self.peers_gauge.set(self.peers.len());
        (id, frame)
    }

    /// Whether a destination has told its clock.
    pub(crate) fn knows_clock(&self, to: SocketAddr) -> bool {
        self.peers.get(&to).is_some_and(|peer| peer.clock.is_some())
    }

    /// When a call's request expires, on the receiver's clock, if its caller waits until it gives it up at last.
    pub(crate) fn expires(&self, to: SocketAddr, id: u64) -> u64 {
        let peer = self.peers.get(&to);
        let call =
            peer.and_then(|peer| peer.calls.get(&id).map(|call| (peer.clock, call.expiry.until(true))));
        let (clock, until) = call.unwrap_or((None, Instant::now()));
        expires(clock, until)
    }

    /// A call's request as it is to be sent again.
    pub(crate) fn repetition(&mut self, to: SocketAddr, id: u64) -> Option<Arc<[u8]>> {
        let peer = self.peers.get_mut(&to)?;
        peer.calls.get_mut(&id)?.repetition(peer.clock)
    }

    /// Forgets a call, answered or not.
    pub(crate) fn end(&mut self, to: SocketAddr, id: u64) {
        if self.peers.get_mut(&to).is_some_and(|peer| peer.calls.remove(&id).is_some()) {
            self.in_flight -= 1;
            self.calls_gauge.set(self.in_flight);
        }
    }

    pub(crate) fn sign_of_life(&self, to: SocketAddr, id: u64) -> bool {
        self.peers.get(&to).and_then(|peer| peer.calls.get(&id)).is_some_and(|call| call.sign_of_life)
    }

    /// Whether a copy of the request may be begun until its caller gives it up at last.
    pub(crate) fn is_extended(&self, to: SocketAddr, id: u64) -> bool {
        self.peers.get(&to).and_then(|peer| peer.calls.get(&id)).is_some_and(|call| call.extended)
    }

    /// Of a call to a peer that was restarted: whether the process before may have executed the request.
    pub(crate) fn is_known_elsewhere(&self, to: SocketAddr, id: u64) -> bool {
        self.peers.get(&to).and_then(|peer| peer.calls.get(&id)).is_some_and(|call| call.known_elsewhere)
    }

    /// What an envelope to `to` says: our proof there, and the oldest id that waits for an answer.
    pub(crate) fn proof_and_oldest(&self, to: SocketAddr) -> (u64, u64) {
        let Some(peer) = self.peers.get(&to) else { return (0, 0) };
        (peer.proof, peer.calls.keys().next().copied().unwrap_or(self.next_id))
    }

    /// Takes a frame that is not a request. Returns the requests to send again, and whether it was expected at all.
    pub(crate) fn heard(
        &mut self,
        from: SocketAddr,
        header: Header,
        frame: &Frame<'_>,
    ) -> (Vec<Arc<[u8]>>, bool) {
        let Some(peer) = self.peers.get_mut(&from) else { return (Vec::new(), false) };
        let Some(call) = peer.calls.get_mut(&frame.id) else { return (Vec::new(), false) };
        call.sign_of_life = true;
        match frame.kind {
            Kind::Challenge => {
                let told = KnownClock::told(header.oldest);
                if peer.proof == header.proof {
                    peer.clock = Some(peer.clock.map_or(told, |known| known.better(told)));
                } else if peer.proof != 0 && peer.session != header.session {
                    // Another process than the one that was asked: it knows nothing of the requests, and must not get
                    // them under their old ids. The one before may have executed one, and its answer may be under
                    // way; it would end the call, and leave this process with a request that nobody waits for.
                    // It has the copy it asks about, so that is known to nobody else, unless it was sent more than once.
                    peer.tell(header, told);
                    for (&id, call) in &mut peer.calls {
                        call.known_elsewhere |= id != frame.id;
                        call.abandon();
                    }
                } else {
                    peer.tell(header, told);
                    let clock = peer.clock;
                    let again = peer.calls.values_mut().filter_map(|call| call.repetition(clock));
                    return (again.collect(), true);
                }
            }
            Kind::Working => {}
            Kind::UseStream => call.end(Heard::UseStream),
            Kind::Overloaded => call.end(Heard::Overloaded),
            Kind::ClientAnswer | Kind::ReplicaAnswer | Kind::AdminAnswer => {
                call.end(Heard::Answer(frame.kind, Bytes::copy_from_slice(frame.body)));
            }
            Kind::ClientRequest | Kind::ReplicaRequest | Kind::AdminRequest => return (Vec::new(), false),
        }
        (Vec::new(), true)
    }
}

impl Peer {
    /// Takes what a challenge tells.
    fn tell(&mut self, challenge: Header, clock: KnownClock) {
        self.proof = challenge.proof;
        self.session = challenge.session;
        self.clock = Some(clock);
    }
}

impl Call {
    fn repetition(&mut self, clock: Option<KnownClock>) -> Option<Arc<[u8]>> {
        self.extended |= self.sign_of_life;
        self.known_elsewhere = true;
        let until = self.expiry.until(self.sign_of_life);
        self.frame.as_ref().map(|frame| with_expiry(frame, expires(clock, until)))
    }

    /// Has the caller start again, with another id.
    fn abandon(&mut self) {
        self.ended = None;
    }

    fn end(&mut self, heard: Heard) {
        if let Some(ended) = self.ended.take() {
            // The caller may have given up just now.
            let _ = ended.send(heard);
        }
    }
}
