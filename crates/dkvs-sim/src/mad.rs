//! A host that looks like a valid peer and sends mad messages.
//!
//! It proves its address as every caller does, names the right ring, and then sends what no server would: huge counters,
//! times of the future, vectors and siblings up to what a record may have, events that a server never made under that server's
//! name, contexts made up, keys of any bytes, bodies with flipped bits or without their end.
//!
//! Datagrams are not authenticated, so a Merge from anybody is taken for a server's, by design: whoever can reach the port
//! may add values to any key, or hide values by a vector that covers them. So mad records go to keys of their own, which no
//! client uses; what goes to clients' keys must be refused. The run must stand it: nobody panics, no record on a disk
//! becomes unreadable, no limit is passed, and what is promised of clients' keys holds.
//!
//! It uses up the sessions of a server that has room for few. What it leaves out: using up streams.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::hlc::Hlc;
use dkvs_core::limits::{SIBLINGS_LEN_MAX, VERSION_VECTOR_LEN_MAX};
use dkvs_core::record::{Body, OpId, Record, Sibling, Write};
use dkvs_core::ring::RingId;
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Actor, Dot, VersionVector};
use dkvs_net::{Endpoint, EndpointConfig, NoService, Patience, Socket};
use dkvs_proto::context;
use dkvs_proto::envelope::{DatagramBuilder, Header, parse};
use dkvs_proto::frame::{Frame, Kind};
use dkvs_proto::message::admin::AdminRequest;
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Failure, Get, Put, PutBody, Token};
use dkvs_proto::message::replica::{Cause, ReplicaAnswer, ReplicaRequest};
use dkvs_proto::message::{Answer, Durability, Refusal, Request};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use tokio::time::{Instant, sleep, timeout};

use crate::plan::pick;
use crate::seed;
use crate::shared::{Host, Shared};
use crate::socket::SimSocket;
use crate::trace::now;
use crate::weather::flip;

/// Longest pause between two messages.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// How long it waits for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What it asks of servers beside. Neither is where it is mad.
const DURABILITY: Durability = Durability::Memory;
const CAUSE: Cause = Cause::Upkeep;

/// Its keys.
const KEYS: u32 = 3;

/// Sessions under which it asks for something all at once: more than some servers have room for.
const SESSIONS: u64 = 32;

struct Mad {
    shared: Arc<Shared>,
    endpoint: Endpoint<SimSocket>,
    /// For what the endpoint would not send.
    raw: SimSocket,
    proofs: BTreeMap<SocketAddr, u64>,
    next_id: u64,
    /// Actors seen in servers' records.
    known: Vec<Actor>,
    random: StdRng,
}

/// Sends mad messages until the faults end.
pub(crate) async fn run(shared: Arc<Shared>, host: Host) -> io::Result<()> {
    let socket = || SimSocket::for_calls(shared.ips[host], shared.weather.clone(), shared.trace.clone());
    let seed = seed::derive(shared.plan.seed, "mad endpoint", 0);
    let mut mad = Mad {
        endpoint: Endpoint::start::<NoService>(socket().await?, EndpointConfig::default(), seed, None),
        raw: socket().await?,
        proofs: BTreeMap::new(),
        next_id: 1,
        known: Vec::new(),
        random: seed::random(shared.plan.seed, "mad", 0),
        shared,
    };
    while !mad.shared.is_healed() {
        sleep(PAUSE_MAX.mul_f64(mad.random.random_range(0.0..1.0))).await;
        mad.act().await;
    }
    Ok(())
}

impl Mad {
    async fn act(&mut self) {
        let to = *pick(&self.shared.addresses, &mut self.random);
        match self.random.random_range(0..11) {
            0..=3 => {
                let merge = self.mad_merge();
                self.ask(to, merge).await;
            }
            4 | 5 => {
                let request = self.mad_request();
                self.ask(to, request).await;
            }
            6 => self.learn(to).await,
            7 => self.another_ring(to).await,
            8 => self.crowd(to).await,
            _ => self.damaged(to).await,
        }
    }

    async fn ask(&mut self, to: SocketAddr, request: Request) -> Option<Answer> {
        let (kind, body) = request.encode();
        let answer = self.endpoint.call(to, &request, Patience::until(Instant::now() + PATIENCE)).await;
        let heard =
            answer.as_ref().map_or_else(ToString::to_string, |answer| format!("{:?}", answer.encode().0));
        self.shared.trace.note(now(), format_args!("mad {kind:?} of {} bytes to {to}: {heard}", body.len()));
        answer.ok()
    }

    fn ring(&self) -> RingId {
        self.shared.ring.id()
    }

    /// A key that no client uses.
    fn key(&mut self) -> Bytes {
        let any: Vec<u8> = match self.random.random_range(0..20) {
            0 => b"../../mad\0".into(),
            1 => vec![0xff; self.random.random_range(0..40_000)],
            2 => Vec::new(),
            _ => format!("mad-{}", self.random.random_range(0..KEYS)).into(),
        };
        any.into()
    }

    fn actor(&mut self) -> Actor {
        if !self.known.is_empty() && self.random.random_bool(0.5) {
            let known = *pick(&self.known, &mut self.random);
            // The server may be about to begin this epoch.
            return Actor { epoch: known.epoch.saturating_add(self.random.random_range(0..20)), ..known };
        }
        let epoch = *pick(&[0, 1, 2, u32::MAX], &mut self.random);
        Actor { incarnation: self.random.next_u64() >> *pick(&[0, 61], &mut self.random), epoch }
    }

    fn dot(&mut self) -> Dot {
        let counter = *pick(&[1, 2, 1_000, u64::MAX - 1, u64::MAX], &mut self.random);
        Dot { actor: self.actor(), counter }
    }

    fn vector(&mut self) -> VersionVector {
        let len = *pick(&[0, 1, 3, 30, VERSION_VECTOR_LEN_MAX - 1, VERSION_VECTOR_LEN_MAX], &mut self.random);
        let mut vector = VersionVector::new();
        while vector.len() < len {
            vector.add(self.dot());
        }
        vector
    }

    fn record(&mut self) -> Record {
        let vector = self.vector();
        let room = SIBLINGS_LEN_MAX.min(VERSION_VECTOR_LEN_MAX - vector.len());
        let len = (*pick(&[0, 1, 1, 5, 200, SIBLINGS_LEN_MAX], &mut self.random)).min(room);
        let siblings = (0..len).map(|_| self.sibling()).collect();
        Record::from_parts(vector, siblings).unwrap_or_default()
    }

    fn sibling(&mut self) -> Sibling {
        let hlc = *pick(&[0, 1 << 16, 59_000 << 16, u64::MAX], &mut self.random);
        let op = OpId { client: self.random.next_u64(), sequence: u64::MAX };
        let body = match self.random.random_range(0..10) {
            0..=3 => Body::Tombstone,
            4..=8 => Body::Value(vec![b'!'; self.random.random_range(0..20)].into()),
            _ => Body::Value(vec![b'!'; 10_000].into()),
        };
        let expires = self.random.random_bool(0.1).then_some(1);
        Sibling { dot: self.dot(), write: Write { op, hlc: Hlc::from_bits(hlc), expires, body } }
    }

    fn mad_merge(&mut self) -> Request {
        let (ring, key, record) = (self.ring(), self.key(), self.record());
        let (durability, cause) = (DURABILITY, CAUSE);
        // Of a server, or of none, as the number comes.
        let owner = ServerIndex::new(u16::try_from(self.next_id % 9).unwrap_or_default());
        Request::Replica(match self.next_id % 4 {
            0 => ReplicaRequest::MergeHint { ring, key, record, owner, durability, cause },
            1 => ReplicaRequest::FetchHints { ring, key, known: record.hash() },
            _ => ReplicaRequest::Merge { ring, key, record, durability, cause },
        })
    }

    /// What a client may ask, of mad keys: there the servers meet what was merged.
    fn mad_request(&mut self) -> Request {
        let (ring, key) = (self.ring(), self.key());
        let n = *pick(&[1, 3, 3, 3, 0, u16::MAX], &mut self.random);
        let quorum = *pick(&[1, 2, 2, 3, 0, u16::MAX], &mut self.random);
        let timeout_ms = *pick(&[0, 300, 300, u32::MAX], &mut self.random);
        match self.random.random_range(0..6) {
            0 => Request::Client(ClientRequest::Get(Get {
                ring,
                key,
                n,
                r: quorum,
                timeout_ms,
                siblings: true,
                sloppy: self.next_id.is_multiple_of(3),
            })),
            1 if self.next_id.is_multiple_of(2) => Request::Admin(AdminRequest::Explain { ring, key }),
            1 => Request::Admin(AdminRequest::Scan { after: Some(Token(key)), len_max: u32::MAX }),
            _ => self.mad_put(n, quorum, timeout_ms),
        }
    }

    fn mad_put(&mut self, n: u16, w: u16, timeout_ms: u32) -> Request {
        let (ring, key) = (self.ring(), self.key());
        let context = self.random.random_bool(0.5).then(|| Token(context::encode(&key, &self.vector())));
        Request::Client(ClientRequest::Put(Put {
            ring,
            key,
            body: PutBody::Tombstone,
            context,
            n,
            w,
            op: OpId { client: 7, sequence: self.random.next_u64() },
            timeout_ms,
            forwarded: self.random.random_bool(0.5),
            durability: Durability::Fsync,
            ttl_ms: None,
            sloppy: self.next_id.is_multiple_of(3),
        }))
    }

    fn clients_key(&mut self) -> Bytes {
        pick(&self.shared.plan.keys, &mut self.random).name.clone().into()
    }

    /// Learns who writes, from a record that any peer may fetch.
    async fn learn(&mut self, to: SocketAddr) {
        let (ring, key, known) = (self.ring(), self.clients_key(), Record::new().hash());
        let request = Request::Replica(ReplicaRequest::Fetch { ring, key, known });
        if let Some(Answer::Replica(ReplicaAnswer::Record(record))) = self.ask(to, request).await {
            self.known =
                record.vv().iter().map(|dot| dot.actor).filter(|actor| !actor.is_initial()).collect();
            self.impersonate(to).await;
        }
    }

    /// Claims to know what the servers' actors have not done yet, and has this server write to the same key.
    async fn impersonate(&mut self, to: SocketAddr) {
        let to_come = |actor: &Actor| {
            let first = *actor;
            (0..20).map(move |ahead| Actor { epoch: first.epoch.saturating_add(ahead), ..first })
        };
        let dots = self.known.iter().flat_map(to_come).map(|actor| Dot { actor, counter: u64::MAX });
        let record = Record::from_parts(dots.collect(), Vec::new()).unwrap_or_default();
        let (ring, key) = (self.ring(), Bytes::from_static(b"mad-0"));
        self.ask(
            to,
            Request::Replica(ReplicaRequest::Merge {
                ring,
                key: key.clone(),
                record,
                durability: DURABILITY,
                cause: CAUSE,
            }),
        )
        .await;
        let op = OpId { client: 7, sequence: self.random.next_u64() };
        let (body, context, n) = (PutBody::Tombstone, None, self.shared.plan.servers);
        let put = Put {
            ring,
            key,
            body,
            context,
            n,
            w: 1,
            op,
            timeout_ms: 300,
            forwarded: false,
            durability: DURABILITY,
            ttl_ms: None,
            sloppy: false,
        };
        self.ask(to, Request::Client(ClientRequest::Put(put))).await;
    }

    /// What is asked for another ring must be refused, also of clients' keys.
    async fn another_ring(&mut self, to: SocketAddr) {
        let (ring, key) = (RingId::from_bits(self.random.next_u64()), self.clients_key());
        let merge = Request::Replica(ReplicaRequest::Merge {
            ring,
            key: key.clone(),
            record: self.record(),
            durability: DURABILITY,
            cause: CAUSE,
        });
        if let Some(answer) = self.ask(to, merge).await {
            let refused =
                matches!(answer, Answer::Replica(ReplicaAnswer::Refused(Refusal::WrongRing { .. })));
            assert!(refused, "a merge for another ring was answered {answer:?}");
        }
        let op = OpId { client: 7, sequence: 7 };
        let (body, context) = (PutBody::Tombstone, None);
        let put = Put {
            ring,
            key,
            body,
            context,
            n: 3,
            w: 1,
            op,
            timeout_ms: 300,
            forwarded: false,
            durability: DURABILITY,
            ttl_ms: None,
            sloppy: false,
        };
        if let Some(answer) = self.ask(to, Request::Client(ClientRequest::Put(put))).await {
            let failure = Failure::Refused(Refusal::WrongRing { ring: self.ring() });
            assert_eq!(answer, Answer::Client(ClientAnswer::Failed(failure)), "to a put for another ring");
        }
    }

    /// A body with flipped bits, or without its end, in an envelope that is in order.
    async fn damaged(&mut self, to: SocketAddr) {
        let request = if self.random.random_bool(0.5) { self.mad_merge() } else { self.mad_request() };
        let (kind, mut body) = request.encode();
        body.truncate(60_000);
        match self.random.random_range(0..3) {
            0 if !body.is_empty() => body.truncate(self.random.random_range(0..body.len())),
            1 => body.push(0),
            _ => flip(&mut body, &mut self.random),
        }
        self.next_id += 1;
        self.send(to, self.next_id % SESSIONS, kind, &body).await;
        if self.hear().await {
            self.send(to, self.next_id % SESSIONS, kind, &body).await;
        }
    }

    /// The same put under many sessions, each of which the server would have to remember.
    async fn crowd(&mut self, to: SocketAddr) {
        let (kind, body) = self.mad_put(1, 1, 300).encode();
        for session in 0..SESSIONS {
            self.next_id += 1;
            self.send(to, session, kind, &body).await;
            // The first is answered with a challenge, if there is no proof yet.
            if session == 0 {
                self.hear().await;
            }
        }
        self.hear().await;
    }

    async fn send(&self, to: SocketAddr, session: u64, kind: Kind, body: &[u8]) {
        let proof = self.proofs.get(&to).copied().unwrap_or_default();
        let mut datagram = DatagramBuilder::new(Header { session, proof, oldest: self.next_id });
        datagram.push(&Frame { kind, id: self.next_id, expires: 0, body });
        let datagram = datagram.finish(0);
        // A machine that cannot be reached is as good as one that is mad.
        let _ = self.raw.send(to, &datagram, datagram.len()).await;
    }

    /// Waits for proofs of its address. Returns whether there was one.
    async fn hear(&mut self) -> bool {
        let (raw, proofs, mut challenged) = (&self.raw, &mut self.proofs, false);
        let mut hear = |from: SocketAddr, datagram: &[u8]| {
            if let Ok((header, frames)) = parse(datagram)
                && frames.iter().any(|frame| frame.kind == Kind::Challenge)
            {
                proofs.insert(from, header.proof);
                challenged = true;
            }
        };
        // Junk is not answered.
        let _ = timeout(PATIENCE / 4, async { while raw.recv(&mut hear).await.is_ok() {} }).await;
        challenged
    }
}
