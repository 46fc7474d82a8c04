//! The quorum folds against oracles that count, over everything that can happen to a request.
//!
//! A test walks through all states that a fold can reach with N owners: in each state every event that could come
//! next comes, whether it makes sense or not: any owner's answer of any sort, the first time, again, or after its
//! opposite, and the answers of a stranger. So every assignment of outcomes to owners is met, in every order, with
//! every repetition. After each event the fold must say what the oracle says, which knows only the definitions.
//!
//! Two states are the same when the fold's own fields (its `Debug` text) and the oracle's are the same. From
//! [`RENAMED_FROM`] owners on, states that differ only in the owners' names are visited once; the smaller tables show
//! that names do not matter.

use std::collections::BTreeSet;
use std::fmt::Debug;

use bytes::Bytes;
use dkvs_core::hlc::Hlc;
use dkvs_core::quorum::{Answer, Progress, Quorum, QuorumError, ReadQuorum, WriteQuorum};
use dkvs_core::record::{Body, OpId, Record, Write};
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Actor, Dot, VersionVector};

const RENAMED_FROM: usize = 4;
const OWNERS_MAX: usize = 5;

/// Owners have other numbers than their places in the table, so that the two cannot be confused.
fn server(owner: usize) -> ServerIndex {
    ServerIndex::new(u16::try_from(90 - 10 * owner).expect("few owners"))
}

fn stranger() -> ServerIndex {
    ServerIndex::new(7)
}

fn servers(n: usize) -> Vec<ServerIndex> {
    (0..n).map(server).collect()
}

/// What the definitions say: enough, still possible, or not.
fn counted(have: usize, awaited: usize, needed: usize) -> Progress {
    match (have >= needed, have + awaited >= needed) {
        (true, _) => Progress::Reached,
        (false, true) => Progress::Pending,
        (false, false) => Progress::Unreachable,
    }
}

/// A fold and its oracle, side by side.
trait Table: Clone {
    /// What can happen to one owner.
    type Event: Copy + Debug;
    /// What the oracle knows of one owner.
    type Facts: Clone + Ord + Debug;
    /// What the oracle knows besides.
    type Rest: Clone + Ord + Debug;

    /// Tells both of an event and compares all they say. `None` is a stranger.
    fn step(&mut self, owner: Option<usize>, event: Self::Event) -> Result<(), String>;
    fn facts(&self) -> (Vec<Self::Facts>, Self::Rest);
    /// The fold's private state.
    fn inside(&self) -> String;
}

/// Visits every state that can be reached from `start`; returns how many there are.
fn explore<T: Table>(start: T, events: &[T::Event]) -> usize {
    let n = start.facts().0.len();
    let mut seen: BTreeSet<(Vec<T::Facts>, T::Rest, String)> = BTreeSet::new();
    let mut open = vec![(start, Vec::new())];
    while let Some((state, path)) = open.pop() {
        for &event in events {
            for owner in (0..n).map(Some).chain([None]) {
                let mut next = state.clone();
                if let Err(difference) = next.step(owner, event) {
                    panic!("{difference}\nafter {path:?}\nthen {:?}", (owner, event));
                }
                if owner.is_none() {
                    assert_eq!(next.inside(), state.inside(), "a stranger changed something after {path:?}");
                    continue;
                }
                let (mut facts, rest) = next.facts();
                let inside = if n < RENAMED_FROM { next.inside() } else { String::new() };
                if n >= RENAMED_FROM {
                    facts.sort();
                }
                if seen.insert((facts, rest, inside)) {
                    let path = path.iter().copied().chain([(owner, event)]).collect();
                    open.push((next, path));
                }
            }
        }
    }
    seen.len()
}

fn same<A: PartialEq + Debug>(what: &str, fold: A, oracle: A) -> Result<(), String> {
    if fold == oracle {
        Ok(())
    } else {
        Err(format!("{what}: the fold says {fold:?}, the oracle {oracle:?}"))
    }
}

// ---------------------------------------------------------------------------------------------------- writes

#[derive(Clone, Copy, Debug)]
enum WriteEvent {
    Ack,
    /// With the reason.
    Fail(char),
}

#[derive(Clone)]
struct WriteTable {
    fold: WriteQuorum<char>,
    w: usize,
    /// Whether the owner ever acknowledged, and the first reason it gave for not doing so.
    owners: Vec<(bool, Option<char>)>,
}

/// What owner `i` held and the write did not cover: some nothing, some values of one actor, some of their own.
fn missed_by(owner: usize) -> Vec<Dot> {
    let dot = |incarnation, counter| Dot { actor: Actor { incarnation, epoch: 1 }, counter };
    match owner {
        0 => vec![],
        1 => vec![dot(1, 1)],
        2 => vec![dot(1, 3), dot(2, 1)],
        other => vec![dot(other as u64, 1)],
    }
}

impl WriteTable {
    fn new(n: usize, w: usize) -> Self {
        Self { fold: WriteQuorum::new(&servers(n), w), w, owners: vec![(false, None); n] }
    }
}

impl Table for WriteTable {
    type Event = WriteEvent;
    type Facts = (bool, Option<char>);
    type Rest = ();

    fn step(&mut self, owner: Option<usize>, event: WriteEvent) -> Result<(), String> {
        let who = owner.map_or(stranger(), server);
        let before = self.fold.progress();
        let said = match event {
            WriteEvent::Ack => self.fold.acked(who, &missed_by(owner.unwrap_or(9))),
            WriteEvent::Fail(reason) => self.fold.failed(who, reason),
        };
        if let Some(owner) = owner {
            match event {
                WriteEvent::Ack => self.owners[owner].0 = true,
                WriteEvent::Fail(reason) => self.owners[owner].1 = self.owners[owner].1.or(Some(reason)),
            }
        }
        let acked = self.owners.iter().filter(|(acked, _)| *acked).count();
        let silent = self.owners.iter().filter(|facts| **facts == (false, None)).count();
        same("returned progress", said, counted(acked, silent, self.w))?;
        same("progress", self.fold.progress(), said)?;
        if before == Progress::Reached {
            same("what is reached stays reached", said, before)?;
        }
        let ackers = (0..self.owners.len()).filter(|&owner| self.owners[owner].0);
        same("missed", self.fold.missed().clone(), ackers.flat_map(missed_by).collect::<VersionVector>())?;
        let mut expected: Vec<(ServerIndex, Answer<char>)> = (0..self.owners.len())
            .map(|owner| match self.owners[owner] {
                (true, _) => (server(owner), Answer::Ok),
                (false, Some(reason)) => (server(owner), Answer::Failed(reason)),
                (false, None) => (server(owner), Answer::Waiting),
            })
            .collect();
        expected.sort_by_key(|(server, _)| *server);
        same("answers", self.fold.answers().map(|(s, a)| (s, a.clone())).collect::<Vec<_>>(), expected)
    }

    fn facts(&self) -> (Vec<Self::Facts>, ()) {
        (self.owners.clone(), ())
    }

    fn inside(&self) -> String {
        format!("{:?}", self.fold)
    }
}

#[test]
fn a_write_is_reached_exactly_when_w_distinct_owners_acked_whatever_else_happens() {
    let events = [WriteEvent::Ack, WriteEvent::Fail('x'), WriteEvent::Fail('y')];
    for n in 1..=OWNERS_MAX {
        for w in 1..=n {
            let states = explore(WriteTable::new(n, w), &events);
            assert!(states >= n, "n = {n}, w = {w}: only {states} states");
        }
    }
}

/// The same by brute force, owner by owner and order by order, without any sharing of states.
#[test]
fn a_write_counts_the_same_in_every_order_of_every_assignment_of_outcomes() {
    for n in 1..=OWNERS_MAX {
        for w in 1..=n {
            for outcomes in assignments(n, &[Some(WriteEvent::Ack), Some(WriteEvent::Fail('x')), None]) {
                let answering: Vec<usize> = (0..n).filter(|&owner| outcomes[owner].is_some()).collect();
                for order in orders(&answering) {
                    let mut table = WriteTable::new(n, w);
                    for &owner in &order {
                        let event = outcomes[owner].unwrap();
                        let steps = [Some(owner), None, Some(owner), Some(order[0])];
                        let events = [event, event, event, outcomes[order[0]].unwrap()];
                        for (who, event) in steps.into_iter().zip(events) {
                            table.step(who, event).unwrap_or_else(|e| panic!("{e}: {outcomes:?} {order:?}"));
                        }
                    }
                }
            }
        }
    }
}

fn assignments<T: Copy>(n: usize, outcomes: &[T]) -> Vec<Vec<T>> {
    (0..n).fold(vec![Vec::new()], |all, _| {
        let with = |list: &Vec<T>| -> Vec<Vec<T>> {
            outcomes.iter().map(|&o| list.iter().copied().chain([o]).collect()).collect()
        };
        all.iter().flat_map(with).collect()
    })
}

fn orders(of: &[usize]) -> Vec<Vec<usize>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let first_then_rest = |&first: &usize| {
        let rest: Vec<usize> = of.iter().copied().filter(|&other| other != first).collect();
        orders(&rest).into_iter().map(move |rest| [vec![first], rest].concat()).collect::<Vec<_>>()
    };
    of.iter().flat_map(first_then_rest).collect()
}

// ----------------------------------------------------------------------------------------------------- reads

/// What an owner may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    UpToDate,
    Stale,
    Missing,
    Concurrent,
    /// All of the above.
    Newest,
}

#[derive(Clone, Copy, Debug)]
enum ReadEvent {
    Reply(Held),
    Fail,
    /// Acknowledges the target.
    Repaired,
}

fn put(record: &mut Record, incarnation: u64, counter: u64) {
    let dot = Dot { actor: Actor { incarnation, epoch: 1 }, counter };
    let op = OpId { client: incarnation, sequence: counter };
    let write = Write { op, hlc: Hlc::from_bits(counter), expires: None, body: Body::Value(Bytes::new()) };
    let context = record.vv().clone();
    record.event(&context, dot, write);
}

fn held(held: Held) -> Record {
    let mut record = Record::new();
    match held {
        Held::Missing => {}
        Held::Stale => put(&mut record, 1, 1),
        Held::UpToDate => {
            put(&mut record, 1, 1);
            put(&mut record, 1, 2);
        }
        Held::Concurrent => put(&mut record, 2, 1),
        Held::Newest => {
            record = self::held(Held::UpToDate);
            record.merge(&self::held(Held::Concurrent));
        }
    }
    record
}

/// What the oracle knows of an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    /// Its first reply.
    replied: Option<Held>,
    /// It was named as one to send the target to.
    asked: bool,
    /// It acknowledged the target.
    confirmed: bool,
    /// It failed when something was awaited of it: a reply, or the acknowledgement of the target.
    failed: bool,
}

#[derive(Clone)]
struct ReadTable {
    fold: ReadQuorum<&'static str>,
    r: usize,
    owners: Vec<Owner>,
    /// The replies that the target was made of.
    first: Vec<Held>,
    /// Made once for all steps: building records is most of the work.
    records: std::rc::Rc<Vec<(Held, Record)>>,
}

impl ReadTable {
    fn new(n: usize, r: usize) -> Self {
        let all = [Held::UpToDate, Held::Stale, Held::Missing, Held::Concurrent, Held::Newest];
        let records = std::rc::Rc::new(all.map(|kind| (kind, held(kind))).to_vec());
        let fold = ReadQuorum::new(&servers(n), r);
        Self { fold, r, owners: vec![Owner::default(); n], first: Vec::new(), records }
    }

    fn record(&self, held: Held) -> &Record {
        &self.records.iter().find(|(kind, _)| *kind == held).expect("every sort was made").1
    }

    fn target(&self) -> Option<Record> {
        if self.first.len() < self.r {
            return None;
        }
        let mut target = Record::new();
        self.first.iter().for_each(|&held| target.merge(self.record(held)));
        Some(target)
    }

    /// Merging the target into what the owner replied with would change nothing.
    fn replied_with(&self, owner: &Owner, target: &Record) -> bool {
        owner.replied.is_some_and(|held| {
            let mut merged = self.record(held).clone();
            merged.merge(target);
            merged == *self.record(held)
        })
    }

    fn holds(&self, owner: &Owner) -> bool {
        self.target().is_some_and(|target| owner.confirmed || self.replied_with(owner, &target))
    }

    /// Tells the oracle.
    fn learn(&mut self, owner: usize, event: ReadEvent) {
        let known = self.target().is_some();
        let holds = self.holds(&self.owners[owner]);
        let facts = &mut self.owners[owner];
        match event {
            ReadEvent::Reply(held) if facts.replied.is_none() && !holds => {
                facts.replied = Some(held);
                facts.failed = false;
                if !known {
                    self.first.push(held);
                }
            }
            ReadEvent::Reply(_) => {}
            ReadEvent::Fail => facts.failed |= !holds && (facts.replied.is_none() || known),
            ReadEvent::Repaired => {
                facts.confirmed |= known;
                facts.failed &= !known;
            }
        }
    }

    /// Who must be named now: has replied with less than the target, and was not named before.
    fn newly_asked(&mut self) -> Vec<ServerIndex> {
        let Some(target) = self.target() else { return Vec::new() };
        let mut asked = Vec::new();
        for owner in 0..self.owners.len() {
            let facts = &self.owners[owner];
            if facts.replied.is_some() && !facts.asked && !self.replied_with(facts, &target) {
                self.owners[owner].asked = true;
                asked.push(server(owner));
            }
        }
        asked.sort();
        asked
    }
}

impl Table for ReadTable {
    type Event = ReadEvent;
    type Facts = Owner;
    type Rest = Vec<Held>;

    fn step(&mut self, owner: Option<usize>, event: ReadEvent) -> Result<(), String> {
        let who = owner.map_or(stranger(), server);
        let before = (self.fold.progress(), self.fold.target().cloned());
        let said = match event {
            ReadEvent::Reply(held) => self.fold.replied(who, self.record(held).clone()),
            ReadEvent::Fail => self.fold.failed(who, "failed"),
            ReadEvent::Repaired => self.fold.repaired(who),
        };
        if let Some(owner) = owner {
            self.learn(owner, event);
        }
        let holders = self.owners.iter().filter(|owner| self.holds(owner)).count();
        let lost = self.owners.iter().filter(|owner| owner.failed).count();
        same("returned progress", said, counted(holders, self.owners.len() - holders - lost, self.r))?;
        same("progress", self.fold.progress(), said)?;
        same("target", self.fold.target(), self.target().as_ref())?;
        if before.0 == Progress::Reached {
            same("what is reached stays reached", said, before.0)?;
        }
        if before.1.is_some() {
            same("a target once fixed stays", self.fold.target(), before.1.as_ref())?;
        }
        let mut repairs = self.fold.take_repairs();
        repairs.sort();
        same("repairs", repairs, self.newly_asked())?;
        same("repairs taken twice", self.fold.take_repairs(), vec![])?;
        let mut expected: Vec<(ServerIndex, Answer<&&str>)> = Vec::new();
        for (i, owner) in self.owners.iter().enumerate() {
            let answer = match (owner.failed, owner.replied.is_some() || owner.confirmed) {
                (true, _) => Answer::Failed(&"failed"),
                (false, true) => Answer::Ok,
                (false, false) => Answer::Waiting,
            };
            expected.push((server(i), answer));
        }
        expected.sort_by_key(|(server, _)| *server);
        same("answers", self.fold.answers().collect::<Vec<_>>(), expected)
    }

    fn facts(&self) -> (Vec<Owner>, Vec<Held>) {
        let mut first = self.first.clone();
        first.sort();
        (self.owners.clone(), first)
    }

    fn inside(&self) -> String {
        format!("{:?}", self.fold)
    }
}

/// Visits all states of reads of `n` owners.
fn explore_reads(n: usize, events: &[ReadEvent]) {
    for r in 1..=n {
        let states = explore(ReadTable::new(n, r), events);
        assert!(states >= n, "n = {n}, r = {r}: only {states} states");
    }
}

#[test]
fn a_read_is_reached_exactly_when_r_distinct_owners_hold_the_merge_of_the_first_r_replies() {
    use Held::{Concurrent, Missing, Newest, Stale, UpToDate};
    use ReadEvent::{Fail, Repaired, Reply};
    let all =
        [Reply(UpToDate), Reply(Stale), Reply(Missing), Reply(Concurrent), Reply(Newest), Fail, Repaired];
    (1..=3).for_each(|n| explore_reads(n, &all));
}

/// With fewer sorts of replies: all of them would take a minute.
#[test]
fn a_read_counts_the_same_with_more_owners() {
    use Held::{Concurrent, Newest, Stale, UpToDate};
    use ReadEvent::{Fail, Repaired, Reply};
    explore_reads(4, &[Reply(UpToDate), Reply(Concurrent), Reply(Newest), Fail, Repaired]);
    explore_reads(5, &[Reply(UpToDate), Reply(Stale), Reply(Concurrent), Fail, Repaired]);
}

// --------------------------------------------------------------------------------------------------- stories

#[test]
fn a_late_reply_said_twice_does_not_ask_for_a_second_repair() {
    let mut read = ReadQuorum::new(&servers(3), 2);
    read.replied(server(0), held(Held::UpToDate));
    assert_eq!(read.replied(server(1), held(Held::Stale)), Progress::Pending);
    assert_eq!(read.take_repairs(), [server(1)]);
    read.failed(server(2), "no reply");
    assert_eq!(read.failed(server(1), "no acknowledgement"), Progress::Unreachable);
    assert_eq!(read.replied(server(1), held(Held::Stale)), Progress::Unreachable, "nothing new was said");
    assert_eq!(read.take_repairs(), []);
    assert_eq!(read.repaired(server(1)), Progress::Reached, "late, and true");
}

#[test]
fn replies_that_lack_each_others_values_are_all_repaired() {
    let mut read = ReadQuorum::<()>::new(&servers(3), 3);
    for (owner, held) in
        [Held::UpToDate, Held::Concurrent, Held::Newest].map(self::held).into_iter().enumerate()
    {
        read.replied(server(owner), held);
    }
    assert_eq!(read.target(), Some(&held(Held::Newest)));
    let mut repairs = read.take_repairs();
    repairs.sort();
    assert_eq!(repairs, [server(1), server(0)]);
    assert_eq!(read.repaired(server(0)), Progress::Pending);
    assert_eq!(read.repaired(server(1)), Progress::Reached);
}

#[test]
fn repairs_not_taken_at_once_are_kept_until_they_are() {
    let mut read = ReadQuorum::<()>::new(&servers(3), 1);
    assert_eq!(read.replied(server(0), held(Held::UpToDate)), Progress::Reached);
    read.replied(server(1), held(Held::Stale));
    read.replied(server(2), held(Held::Missing));
    let mut repairs = read.take_repairs();
    repairs.sort();
    assert_eq!(repairs, [server(2), server(1)]);
}

#[test]
fn a_key_nobody_has_is_agreed_on_without_repairs() {
    let mut read = ReadQuorum::<()>::new(&servers(3), 2);
    assert_eq!(read.replied(server(0), Record::new()), Progress::Pending);
    assert_eq!(read.replied(server(2), Record::new()), Progress::Reached);
    assert_eq!(read.target(), Some(&Record::new()));
    assert_eq!(read.take_repairs(), []);
}

#[test]
fn an_owner_named_twice_counts_once() {
    let owners = [server(0), server(0), server(1)];
    let mut write = WriteQuorum::<()>::new(&owners, 2);
    assert_eq!(write.acked(server(0), &[]), Progress::Pending);
    assert_eq!(write.acked(server(1), &[]), Progress::Reached);
    let mut read = ReadQuorum::<()>::new(&owners, 2);
    assert_eq!(read.replied(server(0), Record::new()), Progress::Pending);
    assert_eq!(read.replied(server(1), Record::new()), Progress::Reached);
}

#[test]
fn more_answers_than_there_are_owners_are_out_of_reach_from_the_start() {
    assert_eq!(WriteQuorum::<()>::new(&servers(2), 3).progress(), Progress::Unreachable);
    assert_eq!(ReadQuorum::<()>::new(&[], 1).progress(), Progress::Unreachable);
}

// --------------------------------------------------------------------------------------------------- numbers

#[test]
fn n_r_and_w_are_accepted_exactly_when_one_to_n() {
    for n in 0..=OWNERS_MAX {
        for r in 0..=OWNERS_MAX + 1 {
            for w in 0..=OWNERS_MAX + 1 {
                let expected =
                    [("n", n), ("r", r), ("w", w)].into_iter().find_map(|(name, value)| match value {
                        0 => Some(QuorumError::Zero { name }),
                        value if value > n => Some(QuorumError::MoreThanCopies { name, value, n }),
                        _ => None,
                    });
                let quorum = Quorum::new(n, r, w);
                assert_eq!(quorum.err(), expected, "n = {n}, r = {r}, w = {w}");
                assert!(quorum.is_ok_and(|q| (q.n(), q.r(), q.w()) == (n, r, w)) || expected.is_some());
            }
        }
    }
}

#[test]
fn what_a_request_leaves_open_becomes_three_copies_and_majorities_of_them() {
    #[rustfmt::skip]
    let table = [
        // servers, n, r, w              n, r, w
        (1, None, None, None,            (1, 1, 1)),
        (2, None, None, None,            (2, 2, 2)),
        (3, None, None, None,            (3, 2, 2)),
        (9, None, None, None,            (3, 2, 2)),
        (9, Some(1), None, None,         (1, 1, 1)),
        (9, Some(2), None, None,         (2, 2, 2)),
        (9, Some(4), None, None,         (4, 3, 3)),
        (9, Some(5), None, None,         (5, 3, 3)),
        (9, Some(9), None, None,         (9, 5, 5)),
        (9, None, Some(1), None,         (3, 1, 2)),
        (9, None, None, Some(3),         (3, 2, 3)),
        (2, None, Some(1), Some(1),      (2, 1, 1)),
        (5, Some(5), Some(5), Some(1),   (5, 5, 1)),
    ];
    for (servers, n, r, w, expected) in table {
        let quorum = Quorum::with_defaults(servers, n, r, w).unwrap();
        assert_eq!((quorum.n(), quorum.r(), quorum.w()), expected, "{servers} servers, {n:?} {r:?} {w:?}");
    }
}

#[test]
fn numbers_that_make_no_quorum_are_refused_with_a_sentence_that_says_why() {
    #[rustfmt::skip]
    let table = [
        // servers, n, r, w
        (3, Some(0), None, None,    "n is 0; it must be at least 1"),
        (3, None, Some(0), None,    "r is 0; it must be at least 1"),
        (3, None, None, Some(0),    "w is 0; it must be at least 1"),
        (0, None, None, None,       "n is 0; it must be at least 1"),
        (5, None, Some(4), None,    "r is 4, but only n = 3 copies are kept; r must be at most n"),
        (5, None, None, Some(4),    "w is 4, but only n = 3 copies are kept; w must be at most n"),
        (2, None, None, Some(3),    "w is 3, but only n = 2 copies are kept; w must be at most n"),
        (5, Some(1), Some(2), None, "r is 2, but only n = 1 copies are kept; r must be at most n"),
        (2, Some(3), None, None,    "n is 3, but the ring has only 2 server(s); n must be at most the number of servers"),
        (2, Some(3), Some(9), None, "n is 3, but the ring has only 2 server(s); n must be at most the number of servers"),
    ];
    for (servers, n, r, w, message) in table {
        let refused = Quorum::with_defaults(servers, n, r, w).unwrap_err();
        assert_eq!(refused.to_string(), message, "{servers} servers, {n:?} {r:?} {w:?}");
    }
    let huge = Quorum::with_defaults(3, Some(usize::MAX), None, None);
    assert_eq!(huge, Err(QuorumError::MoreThanServers { n: usize::MAX, servers: 3 }));
}
