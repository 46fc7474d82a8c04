//! Operations: built, then awaited.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use dkvs_core::limits::{KEY_LEN_MAX, TTL_MS_MAX};
use dkvs_core::servers::ServerName;
use dkvs_net::{Port, Socket};
use dkvs_proto::message::Durability;
use dkvs_proto::message::client::{
    self as wire, ClientAnswer, ClientRequest, GetDone, PutBody, PutDone, Token,
};
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::client::{Client, Route};
use crate::context::Context;
use crate::error::{Error, QuorumKind};

/// Longest time after which a value may be asked to expire: 100 years.
pub const TTL_MAX: Duration = Duration::from_millis(TTL_MS_MAX);

/// A put or a delete to be sent; await it.
#[must_use = "an operation is sent when it is awaited"]
#[derive(Clone, Debug)]
pub struct Put<S: Socket = Port> {
    client: Client<S>,
    key: Bytes,
    body: PutBody,
    context: Option<Context>,
    n: Option<usize>,
    w: Option<usize>,
    durability: Durability,
    ttl: Option<Duration>,
    sloppy: Option<bool>,
    timeout: Duration,
}

/// A get to be sent; await it.
#[must_use = "an operation is sent when it is awaited"]
#[derive(Clone, Debug)]
pub struct Get<S: Socket = Port> {
    client: Client<S>,
    key: Bytes,
    n: Option<usize>,
    r: Option<usize>,
    sloppy: Option<bool>,
    timeout: Duration,
    siblings: bool,
}

/// A server that counted in the place of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// Who stood in. It does not own the key.
    pub server: ServerName,
    /// The owner in whose place it counted. Of a write, it keeps a hint for it.
    pub owner: ServerName,
}

/// A write that is held by `w` servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    acked: Vec<ServerName>,
    stand_ins: Vec<StandIn>,
    context: Context,
}

impl Written {
    /// The owners that had acknowledged when the answer was sent: at least `w`, together with those that stood in.
    #[must_use]
    pub fn acked(&self) -> &[ServerName] {
        &self.acked
    }

    /// Who counted in the place of an owner; nobody unless the write was sloppy.
    #[must_use]
    pub fn stand_ins(&self) -> &[StandIn] {
        &self.stand_ins
    }

    /// What the client has seen of the key now that it knows its own write.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    values: Vec<Option<Bytes>>,
    sibling_count: usize,
    context: Context,
    answered: Vec<ServerName>,
    stand_ins: Vec<StandIn>,
}

impl Got {
    /// The value; `None` when the key was never written, its deletion is the latest, or all that was written has expired.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        self.values.first()?.as_ref()
    }

    /// All values that nobody has replaced and that have not expired, latest first, `None` for a deletion. Only the first of them unless
    /// [`Get::siblings`] asked for all.
    #[must_use]
    pub fn siblings(&self) -> &[Option<Bytes>] {
        &self.values
    }

    /// How many values there are that nobody has replaced and that have not expired; more than one after concurrent writes.
    #[must_use]
    pub fn sibling_count(&self) -> usize {
        self.sibling_count
    }

    /// What was seen: hand it to the put or delete that follows from this read.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The owners that had answered: at least `r`, together with those that stood in.
    #[must_use]
    pub fn answered(&self) -> &[ServerName] {
        &self.answered
    }

    /// Who counted in the place of an owner; nobody unless the get was sloppy.
    #[must_use]
    pub fn stand_ins(&self) -> &[StandIn] {
        &self.stand_ins
    }
}

impl<S: Socket> Put<S> {
    pub(crate) fn value(client: Client<S>, key: Bytes, value: Bytes) -> Self {
        Self::new(client, key, PutBody::Value(value))
    }

    pub(crate) fn tombstone(client: Client<S>, key: Bytes) -> Self {
        Self::new(client, key, PutBody::Tombstone)
    }

    fn new(client: Client<S>, key: Bytes, body: PutBody) -> Self {
        let timeout = client.config().timeout;
        Self {
            client,
            key,
            body,
            context: None,
            n: None,
            w: None,
            durability: Durability::default(),
            ttl: None,
            sloppy: None,
            timeout,
        }
    }

    /// Keeps `n` copies.
    pub fn n(mut self, n: usize) -> Self {
        self.n = Some(n);
        self
    }

    /// Waits until `w` servers hold it.
    pub fn w(mut self, w: usize) -> Self {
        self.w = Some(w);
        self
    }

    /// Has every server make it this durable before it acknowledges, where that is more than the server's own level.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Has readers not be shown the value from so long after it was written, as far as servers' clocks agree. Whole
    /// milliseconds, from 1 ms to [`TTL_MAX`]. A delete has none.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Whether other servers may stand in for owners that are down, keep the write for them, and count. A get that is to find
    /// it meanwhile has to be sloppy too, and even then may not; see docs/consistency.md, *Sloppy quorums*.
    pub fn sloppy(mut self, sloppy: bool) -> Self {
        self.sloppy = Some(sloppy);
        self
    }

    /// Replaces exactly what was seen when the context was handed out. Without a context, everything acknowledged
    /// before.
    pub fn context(mut self, context: &Context) -> Self {
        self.context = Some(context.clone());
        self
    }

    /// How long it may take, everything included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn send(self) -> Result<Written, Error> {
        let deadline = Instant::now() + self.timeout;
        check_key(&self.key)?;
        if let PutBody::Value(value) = &self.body {
            let len_max = self.client.config().value_len_max;
            if value.len() > len_max {
                let len = value.len();
                return Err(Error::Usage(format!(
                    "the value has {len} bytes; at most {len_max} are allowed"
                )));
            }
        }
        let ttl_ms = self.ttl.map(|ttl| check_ttl(ttl, &self.body)).transpose()?;
        let quorum = self.client.quorum(self.n, None, self.w)?;
        let put = wire::Put {
            ring: self.client.ring().id(),
            key: self.key.clone(),
            body: self.body,
            // The context of a key never written says that nothing was seen, which no server needs to be told twice.
            context: self.context.map(|context| Token(seen(&self.key, context))),
            n: wire_number(quorum.n()),
            w: wire_number(quorum.w()),
            op: self.client.next_op(),
            timeout_ms: 0,
            forwarded: false,
            durability: self.durability,
            ttl_ms,
            sloppy: self.client.is_sloppy(self.sloppy),
        };
        let request = |timeout_ms| ClientRequest::Put(wire::Put { timeout_ms, ..put.clone() });
        let read = |answer| match answer {
            ClientAnswer::Put(done) => Some(done),
            ClientAnswer::Get(_) | ClientAnswer::Failed(_) => None,
        };
        let route = Route { kind: QuorumKind::Write, n: quorum.n(), is_sloppy: put.sloppy };
        let done = self.client.coordinate(&self.key, route, deadline, request, read).await?;
        let PutDone { acked, context, stand_ins } = done;
        let (acked, stand_ins) = (self.client.names(acked), self.client.stand_ins(stand_ins));
        Ok(Written { acked, stand_ins, context: Context(context.0) })
    }
}

impl<S: Socket> Get<S> {
    pub(crate) fn new(client: Client<S>, key: Bytes) -> Self {
        let timeout = client.config().timeout;
        Self { client, key, n: None, r: None, sloppy: None, timeout, siblings: false }
    }

    /// Asks `n` copies.
    pub fn n(mut self, n: usize) -> Self {
        self.n = Some(n);
        self
    }

    /// Waits until `r` servers agree.
    pub fn r(mut self, r: usize) -> Self {
        self.r = Some(r);
        self
    }

    /// Whether other servers may stand in for owners that are down, answer with what they keep for them, and count. Then
    /// R + W > N promises nothing; see docs/consistency.md, *Sloppy quorums*.
    pub fn sloppy(mut self, sloppy: bool) -> Self {
        self.sloppy = Some(sloppy);
        self
    }

    /// How long it may take, everything included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Brings all siblings, not only the latest.
    pub fn siblings(mut self) -> Self {
        self.siblings = true;
        self
    }

    async fn send(self) -> Result<Got, Error> {
        let deadline = Instant::now() + self.timeout;
        check_key(&self.key)?;
        let quorum = self.client.quorum(self.n, self.r, None)?;
        let sloppy = self.client.is_sloppy(self.sloppy);
        let request = |timeout_ms| {
            ClientRequest::Get(wire::Get {
                ring: self.client.ring().id(),
                key: self.key.clone(),
                n: wire_number(quorum.n()),
                r: wire_number(quorum.r()),
                timeout_ms,
                siblings: self.siblings,
                sloppy,
            })
        };
        let read = |answer| match answer {
            ClientAnswer::Get(done) => Some(done),
            ClientAnswer::Put(_) | ClientAnswer::Failed(_) => None,
        };
        let route = Route { kind: QuorumKind::Read, n: quorum.n(), is_sloppy: sloppy };
        self.client.coordinate(&self.key, route, deadline, request, read).await.map(|done| self.got(done))
    }

    fn got(&self, done: GetDone) -> Got {
        let value = |body| match body {
            PutBody::Value(value) => Some(value),
            PutBody::Tombstone => None,
        };
        Got {
            values: done.values.into_iter().map(value).collect(),
            sibling_count: done.siblings as usize,
            context: done.context.map(|token| Context(token.0)).unwrap_or_default(),
            answered: self.client.names(done.answered),
            stand_ins: self.client.stand_ins(done.stand_ins),
        }
    }
}

impl<S: Socket> IntoFuture for Put<S> {
    type Output = Result<Written, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<S: Socket> IntoFuture for Get<S> {
    type Output = Result<Got, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

/// Whether a key has a length that is allowed. Every operation checks this before it sends anything; a caller with
/// several operations to make can check all keys first.
///
/// # Errors
/// [`Error::Usage`] when it is empty or too long.
pub fn check_key(key: &[u8]) -> Result<(), Error> {
    match key.len() {
        0 => Err(Error::Usage("the key is empty; it must have at least 1 byte".into())),
        1..=KEY_LEN_MAX => Ok(()),
        len => Err(Error::Usage(format!("the key has {len} bytes; at most {KEY_LEN_MAX} are allowed"))),
    }
}

/// A time to live in milliseconds.
fn check_ttl(ttl: Duration, body: &PutBody) -> Result<u64, Error> {
    let usage = |text: String| Err(Error::Usage(text));
    match (u64::try_from(ttl.as_millis()), body) {
        (_, PutBody::Tombstone) => usage("a deletion does not expire".into()),
        (Ok(ttl_ms @ 1..=TTL_MS_MAX), PutBody::Value(_)) => Ok(ttl_ms),
        (_, PutBody::Value(_)) => usage(format!("a value expires after 1 ms to 100 years, not {ttl:?}")),
    }
}

/// An empty context means that the key was read and nothing was there: a vector that covers nothing.
fn seen(key: &[u8], context: Context) -> Bytes {
    if context.is_empty() {
        dkvs_proto::context::encode(key, &dkvs_core::version::VersionVector::new())
    } else {
        context.0
    }
}

/// Quorums are at most as large as the ring, which counts its servers in 16 bits.
fn wire_number(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}
