//! After the faults: reads everything through everybody, and judges.
//!
//! To the history the simulator's invariants are applied that need neither disks nor dots (a client sees neither): gets
//! never go back, nothing unwritten appears, operations end in time, all owners can be read after healing, single
//! writers are linearizable. Checked here is what only this workload makes, or what contexts alone can tell: no element
//! of a set is lost, keys with one writer end with the last write, deleted keys stay deleted, reads have heard of what
//! was acknowledged before, and all servers say the same in the end, asked for all owners or for one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dkvs::{Ring, ServerIndex};
use dkvs_core::record::OpId;
use dkvs_core::ring::RingId;
use dkvs_core::version::VersionVector;
use dkvs_net::{Endpoint, EndpointConfig, NoService, Patience};
use dkvs_proto::message::client::{ClientAnswer, ClientRequest, Get, GetDone, Put, PutBody, PutDone};
use dkvs_proto::message::{Answer, Request};
use dkvs_sim::history::{Action, History, Micros, Operation, Outcome, ValueId};
use dkvs_sim::invariants;
use futures::StreamExt;
use tokio::time::Instant;

use crate::network::{Place, SERVERS};
use crate::record::{Quorums, Record};
use crate::servers::{PORT, Servers};
use crate::workload::{AddressedSocket, Value};

/// What one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server that did not work is left alone, and how long at most when it goes on like that.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Keys read at one time.
const KEYS_AT_ONCE: usize = 8;
/// How much later than its deadline a request may return, besides what this process is woken late.
const SLACK: Duration = Duration::from_millis(500);

/// What a key is in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// The write of each sibling and the elements it holds; deletions are left out.
    values: BTreeMap<ValueId, BTreeSet<ValueId>>,
    /// Siblings that nobody can have written.
    strange: usize,
    context: VersionVector,
}

/// Asks each server itself, whoever owns a key.
pub(crate) struct Reader {
    endpoint: Endpoint<AddressedSocket>,
    ring: RingId,
    record: Arc<Record>,
    client: u64,
    sequence: AtomicU64,
}

impl Reader {
    pub(crate) async fn new(record: Arc<Record>) -> Self {
        let socket = AddressedSocket::bind(Place::Client(0).ip()).await.expect("a free port");
        let endpoint = Endpoint::start::<NoService>(socket, EndpointConfig::default(), rand::random(), None);
        let ring = Ring::new(Servers::list()).id();
        Self { endpoint, ring, record, client: rand::random(), sequence: AtomicU64::new(0) }
    }

    async fn ask(&self, coordinator: usize, request: ClientRequest) -> Option<ClientAnswer> {
        let to = SocketAddr::new(Place::Server(coordinator).ip(), PORT);
        let patience = Patience::until(Instant::now() + TIMEOUT);
        match self.endpoint.call(to, &Request::Client(request), patience).await {
            Ok(Answer::Client(answer)) => Some(answer),
            Ok(Answer::Replica(_) | Answer::Admin(_)) | Err(_) => None,
        }
    }

    async fn put(&self, coordinator: usize, w: usize) -> Option<PutDone> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let put = Put {
            ring: self.ring,
            // In nobody's way: the workload has no such keys.
            key: format!("probe {coordinator}").into(),
            body: PutBody::Value(Bytes::from(sequence.to_string())),
            context: None,
            n: number(SERVERS),
            w: number(w),
            op: OpId { client: self.client, sequence },
            timeout_ms: millis(TIMEOUT),
            forwarded: false,
        };
        match self.ask(coordinator, ClientRequest::Put(put)).await? {
            ClientAnswer::Put(done) => Some(done),
            ClientAnswer::Get(_) | ClientAnswer::Failed(_) => None,
        }
    }

    async fn get(&self, coordinator: usize, key: &str, n: usize, r: usize) -> Option<GetDone> {
        let get = Get {
            ring: self.ring,
            key: key.to_owned().into(),
            n: number(n),
            r: number(r),
            timeout_ms: millis(TIMEOUT),
            siblings: true,
        };
        match self.ask(coordinator, ClientRequest::Get(get)).await? {
            ClientAnswer::Get(done) => Some(done),
            ClientAnswer::Put(_) | ClientAnswer::Failed(_) => None,
        }
    }

    /// Whether a server stores what it is given.
    pub(crate) async fn stores(&self, server: usize) -> bool {
        let me = ServerIndex::new(number(server));
        self.put(server, 1).await.is_some_and(|done| done.acked.contains(&me))
    }

    /// Whether a server coordinates requests that need everybody.
    pub(crate) async fn serves(&self, server: usize) -> bool {
        let put = self.put(server, SERVERS).await.is_some();
        let serves = put && self.get(server, &format!("probe {server}"), SERVERS, SERVERS).await.is_some();
        if !serves {
            tokio::time::sleep(PAUSE).await;
        }
        serves
    }

    /// Reads every key through every server from all owners, until they agree; then from one owner, which has to agree
    /// too. What was under way when the clients stopped may still take effect meanwhile.
    pub(crate) async fn read_everything(
        &self,
        keys: &[(String, Quorums)],
        at_most: Duration,
    ) -> BTreeMap<String, End> {
        let deadline = Instant::now() + at_most;
        let read = keys.iter().map(|(key, quorums)| self.settle(key, *quorums, deadline));
        let ends: Vec<_> = futures::stream::iter(read).buffer_unordered(KEYS_AT_ONCE).collect().await;
        ends.into_iter().flatten().collect()
    }

    async fn settle(&self, key: &str, quorums: Quorums, deadline: Instant) -> Option<(String, End)> {
        let mut seen = Vec::new();
        let mut pause = PAUSE;
        loop {
            seen.clear();
            for r in [quorums.n, 1] {
                for server in 0..SERVERS {
                    seen.extend(self.read(server, key, quorums, r).await);
                }
            }
            let agreed = seen.windows(2).all(|pair| pair[0] == pair[1]);
            if agreed && seen.len() == 2 * SERVERS {
                return Some((key.to_owned(), seen.swap_remove(0)));
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        self.record.trouble(format_args!("{key:?} did not converge; the servers say {seen:?}"));
        None
    }

    async fn read(&self, server: usize, key: &str, quorums: Quorums, r: usize) -> Option<End> {
        let id = self.record.called(
            self.record.new_client(),
            key,
            Quorums { r, ..quorums },
            TIMEOUT,
            Action::Read,
        );
        let done = self.get(server, key, quorums.n, r).await;
        let Some(done) = done else {
            self.record.returned(id, Outcome::Unavailable);
            return None;
        };
        let context = done.context.map(|token| {
            dkvs_proto::context::decode(key.as_bytes(), &token.0).expect("a context for its key")
        });
        let mut end = End { context: context.unwrap_or_default(), ..End::default() };
        let mut values = Vec::new();
        for value in done.values {
            match value {
                PutBody::Tombstone => values.push(None),
                PutBody::Value(bytes) => match Value::decode(&bytes) {
                    Some(value) => {
                        values.push(Some(value.write));
                        end.values.insert(value.write, value.elements);
                    }
                    None => end.strange += 1,
                },
            }
        }
        self.record.returned(id, Outcome::Read { values, context: end.context.clone() });
        Some(end)
    }
}

fn number(number: usize) -> u16 {
    u16::try_from(number).unwrap()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap()
}

/// All operations on one key.
struct Story<'a> {
    key: &'a str,
    quorums: Quorums,
    operations: Vec<&'a Operation>,
    end: Option<&'a End>,
    repeatable: &'a BTreeSet<ValueId>,
}

/// What a verdict is based on.
pub(crate) struct Evidence<'a> {
    /// Every key that was used.
    pub(crate) keys: &'a [(String, Quorums)],
    /// All operations.
    pub(crate) operations: &'a [Operation],
    /// What the keys are in the end.
    pub(crate) ends: &'a BTreeMap<String, End>,
    /// Writes that may have been given to a second coordinator. Until servers know again a write they have executed,
    /// such a write may take effect once more, later, as docs/consistency.md says of retries.
    pub(crate) repeatable: &'a BTreeSet<ValueId>,
    /// When the last fault had ended.
    pub(crate) healed: Micros,
    /// How late this process was woken at worst.
    pub(crate) lateness: Duration,
}

/// What does not hold.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Vec<String> {
    let Evidence { keys, operations, ends, repeatable, healed, lateness: _ } = *evidence;
    let mut by_key = BTreeMap::<&str, Vec<&Operation>>::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let mut troubles = Vec::new();
    for (key, quorums) in keys {
        let operations = by_key.remove(key.as_str()).unwrap_or_default();
        let story = Story { key, quorums: *quorums, operations, end: ends.get(key), repeatable };
        troubles.extend(story.troubles());
    }
    troubles.extend(simulators(evidence));
    let adds =
        operations.iter().filter(|operation| operation.key.starts_with("set ")).filter(|o| acknowledged(o));
    if adds.count() == 0 {
        troubles.push("nothing was added to any set, so nothing was tested".into());
    }
    if !operations.iter().any(|operation| operation.called > healed && acknowledged(operation)) {
        troubles.push("after healing, no client could write".into());
    }
    troubles
}

/// What the simulator's invariants say, those that need neither dots nor disks.
fn simulators(evidence: &Evidence<'_>) -> Vec<String> {
    const ALWAYS: [&str; 4] = [
        "gets_never_go_back",
        "nothing_unwritten_appears",
        "operations_end_in_time",
        "owners_agree_after_healing",
    ];
    // It has to know of writes that were executed twice, which only their dots tell.
    const ONCE: [&str; 1] = ["single_writers_are_linearizable"];
    let late = Micros::try_from((SLACK + evidence.lateness).as_micros()).unwrap();
    let excused =
        |operation: &Operation| Operation { deadline: operation.deadline + late, ..operation.clone() };
    let operations: Vec<Operation> = evidence.operations.iter().map(excused).collect();
    let twice: BTreeSet<&str> = evidence
        .operations
        .iter()
        .filter(|operation| {
            write_of(operation).is_some_and(|(write, _)| evidence.repeatable.contains(&write))
        })
        .map(|operation| operation.key.as_str())
        .collect();
    let once =
        operations.iter().filter(|operation| !twice.contains(operation.key.as_str())).cloned().collect();
    let apply = |names: &[&str], operations: Vec<Operation>| {
        let history = History { operations, healed: Some(evidence.healed), ..History::default() };
        let found = invariants::examine(&history).into_iter();
        let found = found.filter(|findings| names.contains(&findings.invariant));
        found.flat_map(|findings| findings.violations).collect::<Vec<_>>()
    };
    let violations = [apply(&ALWAYS, operations), apply(&ONCE, once)].into_iter().flatten();
    violations.map(|violation| format!("{}: {}", violation.invariant, violation.what)).collect()
}

fn write_of(operation: &Operation) -> Option<(ValueId, Option<ValueId>)> {
    match operation.action {
        Action::Write { value, write, .. } => Some((write, value)),
        Action::Read => None,
    }
}

/// When a write was acknowledged, and the context that came with it.
fn acknowledgement(operation: &Operation) -> Option<(Micros, &VersionVector)> {
    match &operation.outcome {
        Outcome::Written { context } => Some((operation.returned?, context)),
        Outcome::Read { .. }
        | Outcome::Pending
        | Outcome::Failed
        | Outcome::Unknown
        | Outcome::Unavailable => None,
    }
}

fn acknowledged(operation: &Operation) -> bool {
    acknowledgement(operation).is_some()
}

impl Story<'_> {
    fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if let Some(end) = self.end {
            if end.strange > 0 {
                troubles.push(format!("{:?} has values nobody wrote", self.key));
            }
            match self.key.split(' ').next() {
                Some("set") => troubles.extend(self.elements_lost(end)),
                Some("own" | "gone") => troubles.extend(self.not_the_last(end)),
                _ => {}
            }
        }
        troubles.extend(self.unaware());
        troubles
    }

    fn writes(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().copied().filter(|operation| write_of(operation).is_some())
    }

    /// Every acknowledged add is in the union of the siblings.
    fn elements_lost(&self, end: &End) -> Option<String> {
        let union: BTreeSet<ValueId> = end.values.values().flatten().copied().collect();
        let adds = self.writes().filter(|operation| acknowledged(operation));
        let lost: Vec<String> = adds
            .filter(|operation| write_of(operation).is_some_and(|(write, _)| !union.contains(&write)))
            .map(|operation| format!("operation {}", operation.id))
            .collect();
        (!lost.is_empty())
            .then(|| format!("{:?} lost acknowledged adds: {lost:?}; in the end {end:?}", self.key))
    }

    /// A key with one writer ends with the last acknowledged write. A write that may take effect later, because nobody
    /// heard of it again or because it was given to two coordinators, may stand beside it or replace it.
    fn not_the_last(&self, end: &End) -> Option<String> {
        let writes: Vec<&Operation> = self.writes().collect();
        let last = writes.iter().rfind(|operation| acknowledged(operation))?;
        let last_value = write_of(last).and_then(|(_, value)| value);
        let later: Vec<_> = writes.iter().filter(|operation| self.may_come_later(operation)).collect();
        let later_values: BTreeSet<ValueId> =
            later.iter().filter_map(|operation| write_of(operation)?.1).collect();
        let found: BTreeSet<ValueId> = end.values.keys().copied().collect();
        // A put without a context replaces what was acknowledged before only if the write quorums overlap; with a
        // context, what the context covers.
        let exact = 2 * self.quorums.w > self.quorums.n && !self.uses_old_contexts();
        let missing = last_value.is_some_and(|value| !found.contains(&value)) && later.is_empty();
        let extra = found.iter().any(|value| Some(*value) != last_value && !later_values.contains(value));
        (missing || exact && extra).then(|| {
            format!(
                "{:?} should end with the write of operation {}, but ends with {end:?}",
                self.key, last.id
            )
        })
    }

    fn may_come_later(&self, operation: &Operation) -> bool {
        matches!(operation.outcome, Outcome::Unknown | Outcome::Pending)
            || write_of(operation).is_some_and(|(write, _)| self.repeatable.contains(&write))
    }

    /// Whether the writer passed contexts that did not cover all it had written.
    fn uses_old_contexts(&self) -> bool {
        let mut seen = VersionVector::new();
        self.operations.iter().any(|operation| {
            let old = match &operation.action {
                Action::Write { context: Some(context), .. } => !context.descends_from(&seen),
                Action::Write { context: None, .. } | Action::Read => false,
            };
            match &operation.outcome {
                Outcome::Written { context } => seen.merge(context),
                Outcome::Read { .. }
                | Outcome::Pending
                | Outcome::Failed
                | Outcome::Unknown
                | Outcome::Unavailable => {}
            }
            old
        })
    }

    /// Where quorums overlap, a read has heard of all that was acknowledged before it began: its context covers what
    /// the writer's context does.
    fn unaware(&self) -> Vec<String> {
        let Quorums { n, r, w } = self.quorums;
        if r + w <= n {
            return Vec::new();
        }
        let mut written: Vec<_> =
            self.operations.iter().filter_map(|&operation| acknowledgement(operation)).collect();
        written.sort_by_key(|(at, _)| *at);
        let mut written = written.into_iter().peekable();
        let mut known = VersionVector::new();
        let mut troubles = Vec::new();
        // In the order of their calls.
        for operation in &self.operations {
            while let Some((_, context)) = written.next_if(|(at, _)| *at < operation.called) {
                known.merge(context);
            }
            if let Outcome::Read { context, .. } = &operation.outcome
                && operation.quorum >= r
                && !context.descends_from(&known)
            {
                troubles.push(format!(
                    "{known:?} was acknowledged before a read that has not heard of it all: {operation:?}"
                ));
            }
        }
        troubles
    }
}
