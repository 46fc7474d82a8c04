//! Histories that read like stories.
//!
//! ```text
//!   Story::of("two puts side by side")
//!       .put(1).dot("A1")                        put 1, blind, acknowledged by 2 of 3, as event A1
//!       .put(2).dot("B1").seeing("A1")           put 2 with the context {A1}
//!       .get("2", "A1 B1")                       shows value 2 with the context {A1, B1}
//!       .get("1 x", "A1 C1").quorum(3)           shows value 1 and a deletion; R = 3
//!       .everywhere("A1 B1", "B1")               in the end all owners know A1 and B1, and hold B1's value
//! ```
//! What a call adds comes after all before it; `at` moves the last operation to another time. Times are in milliseconds,
//! servers A, B, C are 0, 1, 2, and an event's letter is its coordinator; `g7` stands for the value 7 given at a start.

use std::fmt;

use bytes::Bytes;
use dkvs_cluster::Target;
use dkvs_core::hlc::{Hlc, WallMs};
use dkvs_core::position::Partition;
use dkvs_core::record::{Body, OpId, Record, Sibling, Write};
use dkvs_core::servers::{ServerIndex, ServerName};
use dkvs_core::version::{Actor, Dot, VersionVector};
use dkvs_net::Level;
use dkvs_sim::history::{
    Action, ClockState, Counted, Damage, Given, HintLeft, History, Life, Operation, Outcome, Reaped, Stored,
    ValueId,
};
use dkvs_sim::invariants;

#[derive(Clone)]
pub(crate) struct Story {
    title: &'static str,
    history: History,
    key: String,
    now: u64,
    /// Whether the context of the last put was given.
    told: bool,
}

/// For so long values keep their bytes after their time.
pub(crate) const BYTES_KEPT_MS: u64 = 60_000;

fn dot(text: &str) -> Dot {
    let (actor, counter) = text.split_at(1);
    if actor == "g" {
        let incarnation = counter.parse().expect("a dot such as g7");
        return Dot { actor: Actor { incarnation, epoch: 0 }, counter: 1 };
    }
    let incarnation = u64::from(actor.as_bytes()[0]);
    Dot { actor: Actor { incarnation, epoch: 1 }, counter: counter.parse().expect("a dot such as A1") }
}

fn dots(text: &str) -> impl Iterator<Item = Dot> {
    text.split_whitespace().map(dot)
}

fn op_id(number: ValueId) -> OpId {
    OpId { client: 0, sequence: number }
}

fn server(letter: char) -> ServerIndex {
    ServerIndex::new(u16::try_from(u32::from(letter) - u32::from('A')).expect("a letter from A"))
}

impl Story {
    pub(crate) fn of(title: &'static str) -> Self {
        let history = History::default();
        Self { title, history, key: "k".into(), now: 0, told: true }
    }

    /// What follows is about another key.
    pub(crate) fn on(mut self, key: &str) -> Self {
        self.key = key.into();
        self
    }

    // ---------------------------------------------------------------------------------------- operations

    pub(crate) fn put(self, number: ValueId) -> Self {
        let action = Action::Write { value: Some(number), write: number, context: None, ttl_ms: None };
        self.add(action, Outcome::Written { context: VersionVector::new() })
    }

    pub(crate) fn delete(self, number: ValueId) -> Self {
        let action = Action::Write { value: None, write: number, context: None, ttl_ms: None };
        self.add(action, Outcome::Written { context: VersionVector::new() })
    }

    /// Shows these values, `x` for a deletion, with this context.
    pub(crate) fn get(self, shown: &str, seen: &str) -> Self {
        let value = |word: &str| (word != "x").then(|| word.parse().expect("a value's number or x"));
        let values = shown.split_whitespace().map(value).collect();
        self.add(Action::Read, Outcome::Read { values, context: dots(seen).collect() })
    }

    fn add(mut self, action: Action, outcome: Outcome) -> Self {
        self.now += 10;
        let called = self.now * 1_000;
        let returned = Some(called + 5_000);
        let id = self.history.operations.len();
        let key = self.key.clone();
        let deadline = called + 1_000_000;
        let op = Operation {
            id,
            client: 1,
            key,
            n: 3,
            quorum: 2,
            sloppy: false,
            called,
            returned,
            deadline,
            action,
            outcome,
        };
        self.history.operations.push(op);
        self.told = false;
        self
    }

    fn last(&mut self) -> &mut Operation {
        self.history.operations.last_mut().expect("an operation first")
    }

    fn last_write(&mut self) -> (ValueId, &mut Option<VersionVector>) {
        match &mut self.last().action {
            Action::Write { write, context, .. } => (*write, context),
            Action::Read => panic!("the last operation is a get"),
        }
    }

    /// The events of the last put. Unless said otherwise, the context it returned is the one sent and these.
    pub(crate) fn dot(mut self, text: &str) -> Self {
        let (number, _) = self.last_write();
        self.history.ops.insert(op_id(number), number);
        let key = self.last().key.clone();
        let of_key = self.history.dots.entry(key).or_default();
        for dot in dots(text) {
            of_key.entry(dot).or_default().insert(op_id(number));
        }
        self.learn(text)
    }

    /// The context sent with the last put.
    pub(crate) fn seeing(mut self, text: &str) -> Self {
        *self.last_write().1 = Some(dots(text).collect());
        self.learn(text)
    }

    /// The last put was begun by a second server too, as this event, which its acknowledgement does not know.
    pub(crate) fn again(mut self, event: &str) -> Self {
        let (number, _) = self.last_write();
        self.seen(event, number)
    }

    fn learn(mut self, text: &str) -> Self {
        let told = self.told;
        if let Outcome::Written { context } = &mut self.last().outcome
            && !told
        {
            dots(text).for_each(|dot| context.add(dot));
        }
        self
    }

    /// The value of the last put is to be shown for so long.
    pub(crate) fn ttl(mut self, ms: u64) -> Self {
        match &mut self.last().action {
            Action::Write { ttl_ms, .. } => *ttl_ms = Some(ms),
            Action::Read => panic!("the last operation is a get"),
        }
        self
    }

    /// The context that the last put returned.
    pub(crate) fn returning(mut self, text: &str) -> Self {
        self.last().outcome = Outcome::Written { context: dots(text).collect() };
        self.told = true;
        self
    }

    /// Its client never heard of it.
    pub(crate) fn unknown(mut self) -> Self {
        self.last().outcome = Outcome::Unknown;
        self
    }

    pub(crate) fn failed(mut self) -> Self {
        self.last().outcome = Outcome::Failed;
        self
    }

    pub(crate) fn pending(mut self) -> Self {
        self.last().outcome = Outcome::Pending;
        self.last().returned = None;
        self
    }

    /// Its W or R.
    pub(crate) fn quorum(mut self, quorum: usize) -> Self {
        self.last().quorum = quorum;
        self
    }

    pub(crate) fn n(mut self, n: usize) -> Self {
        self.last().n = n;
        self
    }

    pub(crate) fn by(mut self, client: u32) -> Self {
        self.last().client = client;
        self
    }

    /// When it was called and returned.
    pub(crate) fn at(mut self, called: u64, returned: u64) -> Self {
        self.now = self.now.max(called).max(returned);
        self.last().called = called * 1_000;
        self.last().returned = Some(returned * 1_000);
        self
    }

    pub(crate) fn deadline(mut self, at: u64) -> Self {
        self.last().deadline = at * 1_000;
        self
    }

    /// Others may stand in for the owners asked by the last operation.
    pub(crate) fn sloppy(mut self) -> Self {
        self.last().sloppy = true;
        self
    }

    /// The last operation's answer names these owners, and these stand-ins, each as who and for whom.
    pub(crate) fn counted(mut self, owners: &str, stand_ins: &str) -> Self {
        let id = self.last().id;
        let pair = |pair: &str| {
            let mut servers = pair.chars().map(server);
            (servers.next().expect("who"), servers.next().expect("for whom"))
        };
        let stand_ins = stand_ins.split_whitespace().map(pair).collect();
        self.history.counted.insert(id, Counted { owners: owners.chars().map(server).collect(), stand_ins });
        self
    }

    /// When the last operation was called, this server wrote a record that knows these events, as its own or in a hint.
    pub(crate) fn stored(mut self, letter: char, hint_for: Option<char>, known: &str) -> Self {
        let called = self.last().called;
        self.stored_at(called / 1_000, letter, hint_for, known)
    }

    pub(crate) fn stored_at(mut self, at: u64, letter: char, hint_for: Option<char>, known: &str) -> Self {
        let target = |letter| {
            let host = format!("192.0.2.{}", server(letter).number());
            (Target::of(&ServerName::new(&host, 1234).expect("a name")), server(letter))
        };
        self.history.targets.extend(('A'..='E').map(target));
        let hint_for = hint_for.map(|letter| target(letter).0);
        let place = (server(letter), self.key.clone());
        let stored = Stored { at: at * 1_000, hint_for, vv: dots(known).collect() };
        self.history.stored.entry(place).or_default().push(stored);
        self
    }

    // --------------------------------------------------------------------------------------------- disks

    /// A record with this event, of this write, was seen on a disk.
    pub(crate) fn seen(mut self, event: &str, number: ValueId) -> Self {
        let of_key = self.history.dots.entry(self.key.clone()).or_default();
        of_key.entry(dot(event)).or_default().insert(op_id(number));
        self
    }

    /// An event with this expiry, by a clock that is right, was seen on a disk.
    pub(crate) fn expiring(self, event: &str, at_ms: u64) -> Self {
        let clock = ClockState { from: 0, skew_ms: 0, stands_at_ms: None };
        self.with_expiry(event, Some(clock.wall_ms(at_ms * 1_000)))
    }

    /// An event without an expiry was seen on a disk.
    pub(crate) fn lasting(self, event: &str) -> Self {
        self.with_expiry(event, None)
    }

    fn with_expiry(mut self, event: &str, expires: Option<WallMs>) -> Self {
        let of_key = self.history.expiries.entry(self.key.clone()).or_default();
        of_key.entry(dot(event)).or_default().insert(expires);
        self
    }

    /// From this time on a server's clock is wrong by so much.
    pub(crate) fn clock(mut self, letter: char, from_ms: u64, skew_ms: i64) -> Self {
        let state = ClockState { from: from_ms * 1_000, skew_ms, stands_at_ms: None };
        self.history.clocks.entry(server(letter)).or_default().push(state);
        self
    }

    /// This server is given the value at each of its starts. Its event is `g` and the number.
    pub(crate) fn given(mut self, letter: char, value: ValueId) -> Self {
        let dot = dot(&format!("g{value}"));
        self.history.given.push(Given { server: server(letter), key: self.key.clone(), value, dot });
        self
    }

    /// In some life of some server, what this gauge measures was so much at most.
    pub(crate) fn level(mut self, name: &'static str, peak: u64, limit: u64) -> Self {
        let level = Level { name, now: 0, peak, limit, full: 0 };
        self.history.lives.push(Life { who: "server 0".into(), levels: vec![level] });
        self
    }

    fn damage(mut self, damage: impl FnOnce(u64) -> Damage) -> Self {
        self.now += 10;
        self.history.damage.push(damage(self.now * 1_000));
        self
    }

    pub(crate) fn wipe(self, letter: char) -> Self {
        self.damage(|at| Damage::Wiped { server: server(letter), at })
    }

    pub(crate) fn restore(self, letter: char, back_to: u64) -> Self {
        self.damage(|at| Damage::Restored { server: server(letter), at, back_to: back_to * 1_000 })
    }

    pub(crate) fn cut_off(self, letter: char) -> Self {
        self.damage(|at| Damage::Unflushed { server: server(letter), at })
    }

    /// Servers answer for nothing that is not flushed.
    pub(crate) fn flushed(mut self) -> Self {
        self.history.is_flushed = true;
        self
    }

    pub(crate) fn flip(self, letter: char, key: &str) -> Self {
        self.damage(|at| Damage::Flipped { server: server(letter), at, key: key.into() })
    }

    /// The runner has read every key from all owners.
    pub(crate) fn repaired(mut self) -> Self {
        self.now += 10;
        self.history.repaired.push(self.now * 1_000);
        self
    }

    pub(crate) fn healed(mut self) -> Self {
        self.now += 10;
        self.history.healed = Some(self.now * 1_000);
        self
    }

    /// In the end this server's disk knows these events and holds the values of those.
    pub(crate) fn disk(mut self, letter: char, known: &str, alive: &str) -> Self {
        let siblings = dots(alive).map(|dot| self.sibling(dot)).collect();
        let record = Record::from_parts(dots(known).collect(), siblings).expect("no event twice");
        self.history.disks.entry(server(letter)).or_default().insert(self.key.clone(), record);
        self
    }

    /// After hints were delivered this server's disk knows these events.
    pub(crate) fn quiet(mut self, letter: char, known: &str) -> Self {
        let siblings = dots(known).map(|dot| self.sibling(dot)).collect();
        let record = Record::from_parts(dots(known).collect(), siblings).expect("no event twice");
        self.history.quiet_disks.entry(server(letter)).or_default().insert(self.key.clone(), record);
        self
    }

    /// After hints were delivered, this server's record was damaged.
    pub(crate) fn unreadable(mut self, letter: char) -> Self {
        self.history.quiet_damaged.insert((server(letter), self.key.clone()));
        self
    }

    /// This server removes a record that knows these events and holds those deletions.
    pub(crate) fn forgets(mut self, letter: char, known: &str, alive: &str) -> Self {
        self.now += 10;
        let siblings = dots(alive).map(|dot| self.sibling(dot)).collect();
        let record = Record::from_parts(dots(known).collect(), siblings).expect("no event twice");
        let (at, key) = (self.now * 1_000, self.key.clone());
        self.history.reaped.push(Reaped { server: server(letter), at, key, record });
        self
    }

    /// This server ended in between, without being asked to.
    pub(crate) fn ended(mut self, letter: char, from: u64, to: u64) -> Self {
        self.history.ends.push((server(letter), from * 1_000, to * 1_000));
        self
    }

    /// After hints were delivered, this server's disk had a mark that another one missed writes of the key.
    pub(crate) fn marked(mut self, holder: char, target: char) -> Self {
        let partition = Partition::of_key(self.key.as_bytes()).number();
        let (holder, target) = (server(holder), server(target));
        self.history.kept.push(HintLeft { holder, target, key: None, partition });
        self
    }

    /// Servers compare what this many owners of a key hold.
    pub(crate) fn comparing(mut self, n: usize) -> Self {
        self.history.compared_n = Some(n);
        self
    }

    /// In the end all owners' disks do.
    pub(crate) fn everywhere(self, known: &str, alive: &str) -> Self {
        ['A', 'B', 'C'].into_iter().fold(self, |story, letter| story.disk(letter, known, alive))
    }

    fn sibling(&self, dot: Dot) -> Sibling {
        let op = self.history.dots.get(&self.key).and_then(|dots| dots.get(&dot)?.first().copied());
        let op = op.unwrap_or(op_id(999));
        let deletes = |other: &Operation| match other.action {
            Action::Write { value, write, .. } => value.is_none() && write == op.sequence,
            Action::Read => false,
        };
        let deleted = self.history.operations.iter().any(deletes);
        let body = if deleted { Body::Tombstone } else { Body::Value(Bytes::new()) };
        Sibling { dot, write: Write { op, hlc: Hlc::default(), expires: None, body } }
    }

    // -------------------------------------------------------------------------------------------- verdicts

    pub(crate) fn told(&self) -> History {
        let mut history = self.history.clone();
        history.bytes_kept_ms = BYTES_KEPT_MS;
        history.coordinators =
            ('A'..='D').map(|letter| (u64::from(u32::from(letter)), server(letter))).collect();
        for op in &self.history.operations {
            let owners = (0..op.n).filter_map(|at| Some(ServerIndex::new(u16::try_from(at).ok()?)));
            history.owners.insert((op.key.clone(), op.n), owners.collect());
        }
        history
    }

    /// Nothing is wrong with it, and the invariant has looked at it.
    #[track_caller]
    pub(crate) fn keeps(self, invariant: &str) {
        let findings = invariants::examine(&self.told());
        for finding in &findings {
            assert!(finding.violations.is_empty(), "{self}: {:#?}", finding.violations);
            assert_eq!(finding.undecided, 0, "{self}");
        }
        let tested = findings.iter().find(|finding| finding.invariant == invariant).map(|f| f.tested);
        assert!(tested.is_some_and(|tested| tested > 0), "{self}: {invariant} did not test anything");
    }

    /// This invariant is broken, and perhaps others.
    #[track_caller]
    pub(crate) fn breaks(self, invariant: &str) {
        let violations = invariants::check(&self.told());
        assert!(
            violations.iter().any(|violation| violation.invariant == invariant),
            "{self}: {violations:#?}"
        );
    }

    /// This invariant is broken, and no other.
    #[track_caller]
    pub(crate) fn breaks_only(self, invariant: &str) {
        let violations = invariants::check(&self.told());
        assert!(
            violations.iter().all(|violation| violation.invariant == invariant) && !violations.is_empty(),
            "{self}: {violations:#?}"
        );
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the story of {}", self.title)
    }
}
