//! Receiving: answers go to their calls, requests to the service, and strangers have to prove their address first.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dkvs_proto::envelope::{self, Header};
use dkvs_proto::frame::{Frame, Kind};
use dkvs_proto::message::Request;
use tokio::sync::OwnedSemaphorePermit;

use crate::endpoint::{Counters, Places, Service, Shared};
use crate::gauges::Gauge;
use crate::lock;
use crate::sessions::{Admission, Sessions};
use crate::socket::Socket;
use crate::validity::Validity;

/// Challenges that may wait at one time for the socket to take them. Whoever sends junk can ask for any number.
pub(crate) const CHALLENGES_MAX: usize = 1_024;

impl<S: Socket> Shared<S> {
    pub(crate) async fn receive_loop<V: Service>(self: Arc<Self>, service: Option<Arc<V>>) {
        loop {
            let receive = self.socket.recv(|from, datagram| self.received(from, datagram, service.as_ref()));
            let received = tokio::select! {
                biased;
                () = self.closed.cancelled() => return,
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
            let (again, expected) = lock(&self.peers).heard(from, header, &frame);
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

    /// Asks a sender to prove its address, and tells it the clock by which requests expire: one short datagram for its
    /// longer one.
    fn challenge(self: &Arc<Self>, to: SocketAddr, id: u64) {
        Counters::count(&self.counters.challenged);
        let proof = self.proofs.issue(to);
        let header = Header { session: self.session, proof, oldest: self.clock.now() };
        let mut datagram = envelope::DatagramBuilder::new(header);
        datagram.push(&Frame::answer(Kind::Challenge, id, &[]));
        // Not through the outbox: there it would share an envelope with others, which have no room for its proof.
        let (shared, datagram) = (self.clone(), datagram.finish(0));
        let Some(waiting) = Gauge::try_hold(Waiting(shared.clone()), 1) else {
            return Counters::count(&self.counters.unsent);
        };
        tokio::spawn(async move {
            shared.send(to, &datagram, datagram.len()).await;
            drop(waiting);
        });
    }

    fn requested<V: Service>(
        self: &Arc<Self>,
        from: SocketAddr,
        session: u64,
        frame: &Frame<'_>,
        service: &Arc<V>,
    ) {
        match self.admit(session, frame) {
            Admitted::Execute(request, validity, permit) => {
                let (shared, service, id) = (self.clone(), service.clone(), frame.id);
                tokio::spawn(async move {
                    let (kind, body) = shared.execute(&*service, from, session, id, request, validity).await;
                    drop(permit);
                    shared.answer(from, Frame::answer(kind, id, &body));
                });
            }
            Admitted::Answer(kind, body) => self.answer(from, Frame::answer(kind, frame.id, &body)),
            // Late, or by a clock that its sender does not know well enough.
            Admitted::Expired => self.challenge(from, frame.id),
            Admitted::Ignore => {}
        }
    }

    /// Decides what a request deserves. Used by both lanes.
    pub(crate) fn admit(&self, session: u64, frame: &Frame<'_>) -> Admitted {
        if !frame.kind.is_request() {
            // Though there may be an answer to a request with its id.
            Counters::count(&self.counters.junk);
            return Admitted::Ignore;
        }
        let notice = |kind| Admitted::Answer(kind, Bytes::new());
        let validity = self.clock.validity(frame.expires);
        match lock(&self.sessions).admit(session, frame.id, frame.expires, &validity) {
            Admission::Execute => {}
            Admission::Expired => {
                Counters::count(&self.counters.expired);
                return Admitted::Expired;
            }
            Admission::Working => return notice(Kind::Working),
            Admission::Answered(kind, body) => return Admitted::Answer(kind, body),
            Admission::Over => return Admitted::Ignore,
            Admission::Full => {
                Counters::count(&self.counters.overloaded);
                // "Overloaded" promises that a request will never be begun. Of one that cannot be remembered nobody can: when
                // there is room again, a copy that is still under way will be begun.
                let harmless = matches!(Request::decode(frame.kind, frame.body), Some(Ok(request)) if request.is_idempotent());
                return if harmless { notice(Kind::Overloaded) } else { Admitted::Ignore };
            }
        }
        let places = self.places_for(frame.kind);
        let Ok(permit) = places.free.clone().try_acquire_owned() else {
            Counters::count(&self.counters.overloaded);
            places.gauge.was_full();
            lock(&self.sessions).finished(session, frame.id, Kind::Overloaded, Bytes::new());
            return notice(Kind::Overloaded);
        };
        match Request::decode(frame.kind, frame.body) {
            Some(Ok(request)) => Admitted::Execute(request, validity, permit),
            None | Some(Err(_)) => {
                Counters::count(&self.counters.junk);
                lock(&self.sessions).forget(session, frame.id);
                Admitted::Ignore
            }
        }
    }

    fn places_for(&self, kind: Kind) -> &Places {
        if kind == Kind::ClientRequest { &self.client_requests } else { &self.other_requests }
    }

    /// Executes a request and remembers its answer if it must not be executed again.
    pub(crate) async fn execute<V: Service>(
        &self,
        service: &V,
        from: SocketAddr,
        session: u64,
        id: u64,
        request: Request,
        validity: Validity,
    ) -> (Kind, Bytes) {
        let _served = Gauge::hold(&self.places_for(request.kind()).gauge, 1);
        let forget = ForgetUnlessFinished { sessions: &self.sessions, session, id };
        let idempotent = request.is_idempotent();
        let (kind, body) = service.handle(from, request, validity).await.encode();
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
            .or_else(|| self.datagram_frame(Frame::answer(Kind::UseStream, frame.id, &[])));
        if let Some(frame) = frame {
            self.push(to, frame);
        }
    }
}

/// The gauge of the challenges that wait.
struct Waiting<S: Socket>(Arc<Shared<S>>);

impl<S: Socket> Deref for Waiting<S> {
    type Target = Gauge;

    fn deref(&self) -> &Gauge {
        &self.0.gauges.challenges
    }
}

/// What a request deserves.
pub(crate) enum Admitted {
    /// To be executed, while the permit is held.
    Execute(Request, Validity, OwnedSemaphorePermit),
    /// Not to be executed any more: nobody counts on it.
    Expired,
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
