//! After the faults: reads everything through everybody, and judges.
//!
//! To the history the simulator's invariants are applied that need neither disks nor dots (a client sees neither): gets
//! never go back, nothing unwritten appears, operations end in time, all owners can be read after healing, single
//! writers are linearizable. Checked here is what only this workload makes, or what contexts and times alone can tell:
//!
//! - No element of a set is lost.
//! - A get whose quorum meets a write's, and that began after the write was acknowledged, has heard of it, and shows it
//!   unless another write may have replaced it: one whose context may cover it, or one without a context that was not
//!   over before it began. An acknowledged write is over with its answer, however many servers had begun it.
//! - A key with one writer shows in the end nothing but the last acknowledged write and what may show late: writes of
//!   unknown outcome, and writes that two servers may have begun. Those may stand beside the last write, but not replace
//!   it (docs/consistency.md, *A retry*). A deletion is a write, so deleted keys stay deleted.
//! - All servers say the same in the end, asked for all owners or for one.

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
use dkvs_proto::message::{Answer, Durability, Request};
use dkvs_sim::history::{Action, History, Micros, Operation, Outcome, ValueId};
use dkvs_sim::invariants::{self, Findings};
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
            durability: Durability::default(),
            ttl_ms: None,
            sloppy: false,
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
            sloppy: false,
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
    begun_twice: &'a BTreeSet<ValueId>,
}

/// What a verdict is based on.
pub(crate) struct Evidence<'a> {
    /// Every key that was used.
    pub(crate) keys: &'a [(String, Quorums)],
    /// All operations.
    pub(crate) operations: &'a [Operation],
    /// What the keys are in the end.
    pub(crate) ends: &'a BTreeMap<String, End>,
    /// Writes that two servers may have begun: one of the two may show late, beside what has replaced the other.
    pub(crate) begun_twice: &'a BTreeSet<ValueId>,
    /// When the last fault had ended.
    pub(crate) healed: Micros,
    /// How late this process was woken at worst.
    pub(crate) lateness: Duration,
}

/// What does not hold.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Vec<String> {
    let Evidence { keys, operations, ends, begun_twice, healed, lateness: _ } = *evidence;
    let mut by_key = BTreeMap::<&str, Vec<&Operation>>::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let mut troubles = Vec::new();
    for (key, quorums) in keys {
        let operations = by_key.remove(key.as_str()).unwrap_or_default();
        let story = Story { key, quorums: *quorums, operations, end: ends.get(key), begun_twice };
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
    const NAMES: [&str; 5] = [
        "gets_never_go_back",
        "nothing_unwritten_appears",
        "operations_end_in_time",
        "owners_agree_after_healing",
        "single_writers_are_linearizable",
    ];
    let late = Micros::try_from((SLACK + evidence.lateness).as_micros()).unwrap();
    let excused =
        |operation: &Operation| Operation { deadline: operation.deadline + late, ..operation.clone() };
    let quorums: BTreeMap<&str, Quorums> =
        evidence.keys.iter().map(|(key, quorums)| (key.as_str(), *quorums)).collect();
    // Of a key that is read by one owner alone, if only in the end, nothing is claimed that overlapping quorums make true.
    let as_agreed = |operation: &&Operation| {
        let agreed = quorums.get(operation.key.as_str());
        write_of(operation).is_some() || operation.quorum > 1 || agreed.is_none_or(|quorums| quorums.r == 1)
    };
    let operations = evidence.operations.iter().filter(as_agreed).map(excused).collect();
    let history = History { operations, healed: Some(evidence.healed), ..History::default() };
    let found = invariants::examine(&history).into_iter();
    let found = found.filter(|findings| NAMES.contains(&findings.invariant));
    let troubles = found.flat_map(|findings| {
        let Findings { invariant, tested, violations, .. } = findings;
        let untested = (tested == 0).then(|| "could never be tested".to_owned());
        let violated = violations.into_iter().map(|violation| violation.what);
        untested.into_iter().chain(violated).map(move |what| format!("{invariant}: {what}"))
    });
    troubles.collect()
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
                Some("own" | "gone") => troubles.extend(self.returned(end)),
                _ => {}
            }
        }
        troubles.extend(self.unaware());
        troubles.extend(self.lost());
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

    /// What a get does not show, although it was acknowledged before and nobody may have replaced it.
    fn lost(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for write in self.writes() {
            let (Some((_, value)), Some((acknowledged, _))) = (write_of(write), acknowledgement(write))
            else {
                continue;
            };
            let replacing = self.writes().filter(|by| self.may_replace(by, write));
            let replaced = replacing.map(|by| by.called).min().unwrap_or(Micros::MAX);
            let without = self.operations.iter().find(|get| {
                let meets = get.quorum + write.quorum > self.quorums.n && acknowledged < get.called;
                let in_time = get.returned.is_some_and(|returned| returned < replaced);
                let shows = match &get.outcome {
                    Outcome::Read { values, .. } => values.contains(&value),
                    Outcome::Pending
                    | Outcome::Written { .. }
                    | Outcome::Failed
                    | Outcome::Unknown
                    | Outcome::Unavailable => true,
                };
                meets && in_time && !shows
            });
            troubles.extend(without.map(|get| {
                format!("{write:?} was acknowledged and replaced by nobody, and is not shown by {get:?}")
            }));
        }
        troubles
    }

    /// Whether one write may have replaced what another had written.
    fn may_replace(&self, by: &Operation, old: &Operation) -> bool {
        let Action::Write { context, .. } = &by.action else { return false };
        if by.id == old.id || by.outcome == Outcome::Failed {
            return false;
        }
        match context {
            // What a client had seen before the old write was called does not cover it.
            Some(context) => !context.is_empty() && !self.was_seen_before(context, old.called),
            // Only while its outcome is unknown may it go on.
            None => acknowledgement(by).is_none_or(|(over, _)| over >= old.called),
        }
    }

    fn was_seen_before(&self, context: &VersionVector, at: Micros) -> bool {
        let seen = |operation: &&Operation| match &operation.outcome {
            Outcome::Written { context: seen } | Outcome::Read { context: seen, .. } => seen == context,
            Outcome::Pending | Outcome::Failed | Outcome::Unknown | Outcome::Unavailable => false,
        };
        let before = |operation: &&&Operation| operation.returned.is_some_and(|returned| returned < at);
        self.operations.iter().filter(before).any(seen)
    }

    /// What a key with one writer shows in the end besides the last acknowledged write, although it was replaced.
    fn returned(&self, end: &End) -> Option<String> {
        // A put without a context replaces what was acknowledged before only if the write quorums overlap; with a
        // context, what the context covers.
        if 2 * self.quorums.w <= self.quorums.n || self.uses_old_contexts() {
            return None;
        }
        let writes: Vec<&Operation> = self.writes().collect();
        let last = writes.iter().rfind(|operation| acknowledged(operation))?;
        let may_stand = |operation: &&&Operation| operation.id == last.id || self.may_show_late(operation);
        let may_stand: BTreeSet<ValueId> =
            writes.iter().filter(may_stand).filter_map(|operation| write_of(operation)?.1).collect();
        let returned: Vec<_> = end.values.keys().filter(|value| !may_stand.contains(value)).collect();
        (!returned.is_empty()).then(|| {
            format!(
                "{:?} should end with the write of operation {}, but {returned:?} came back: {end:?}",
                self.key, last.id
            )
        })
    }

    fn may_show_late(&self, operation: &Operation) -> bool {
        matches!(operation.outcome, Outcome::Unknown | Outcome::Pending)
            || write_of(operation).is_some_and(|(write, _)| self.begun_twice.contains(&write))
    }

    /// Whether the writer passed contexts that did not cover all it had written. The context of a put that met another one may
    /// not cover the put itself: it then tells nothing new.
    fn uses_old_contexts(&self) -> bool {
        let mut seen = VersionVector::new();
        let mut covers_last = true;
        self.operations.iter().any(|operation| {
            let old = match &operation.action {
                Action::Write { context: Some(context), .. } => !covers_last || !context.descends_from(&seen),
                Action::Write { context: None, .. } | Action::Read => false,
            };
            match &operation.outcome {
                Outcome::Written { context } => {
                    covers_last = !seen.descends_from(context);
                    seen.merge(context);
                }
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
