//! What a history proves about each key: its writes with their dots, its gets, and how long a damaged disk excuses them.
//!
//! # Dots
//! A write is known by its number; its dots are those under which the runner found it on any disk. There may be several: a
//! put is executed once for each server that a client tried, and every execution is an event of its own, or two. An execution
//! is begun, and so replaces, only before the client goes on; its value may be seen later ([`Write::late_dots`]). And some may be missing, when another event on the key replaced it in the same commit, so that it never
//! lay on a disk. But an actor's events are numbered without gaps: whether a vector covers events that were not seen can be
//! told ([`Key::covers_unseen_events`]).
//!
//! # Damage
//! Overlapping quorums count copies. A disk that lost some (wiped, restored, cut off before a flush, flipped) makes the
//! count wrong until the key has been repaired, that is read from all its owners:
//!
//! ```text
//!   n = 3, w = r = 2        X     Y     Z
//!   put 1, acked by X, Y    1     1     -
//!   X is wiped              -     1     -      a get from X and Z finds nothing, and may
//!   get with r = n          1     1     1      now it may not
//! ```
//!
//! [`Key::keeps`] says for two operations whether the second must meet what the first had left. It must when their
//! quorums overlap, the first precedes the second, and no damage stands between:
//! - the second does not touch an *unsettled* time of the key: from the damage of an owner's disk until the first
//!   repair that was called after it. For gets flipped bits make no such time: the owner sees that it has lost something, and answers no
//!   get before it has what all the others hold. It may take part in writes, which then replace less than they should;
//! - what the first left is not *at risk* ([`Key::at_risk`]): since it was called, and until a repair, fewer owners were
//!   damaged than had to hold it. After the repair all N hold it;
//! - if the first is a get, no damage fell into it, for an owner might have taken the get's state before the damage and
//!   been counted after it. (A write may span a damage: its coordinator held it before anybody acknowledged, and a
//!   coordinator that is damaged acknowledges no more. One whose bits flip does, and may have been mended before the others had
//!   the write: of such a write nothing is owed until a repair that began after it.)
//!
//! # Sloppy requests
//! Their quorums need not meet anybody's, so [`Key::keeps`] is never true of them; strict requests on the same key go on to
//! meet each other. What a sloppy request left lies with whoever stood in as well, and no read from all owners proves that it has
//! come home. So it is at risk when as many servers as had to hold it were damaged since, whichever and whatever was repaired; what a
//! sloppy get saw, when one was: it makes no agreement among stand-ins.
//!
//! # Pairs given at a start
//! They are no writes: nobody calls them, they have no place in time, and any event on the key covers them. They are given again
//! at every start, so that no damage but a flipped bit loses them ([`Key::given`]).
//!
//! # Expiry
//! Each server hides by its own wall clock, and drops bytes by it some time later, so a get may hide what has expired by the clock of
//! any server ([`Read::may_hide`]), and so may what was forgotten ([`super::memory`]); [`super::clocks`] knows how wrong they were. It still covers it.
//!
//! What it leaves out: it takes every acknowledgement for durable; a level that may lose some has to report the loss as damage.

use std::collections::{BTreeMap, BTreeSet};

use dkvs_core::record::Record;
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Actor, Dot, VersionVector};

use super::{clocks, memory};
use crate::history::{Action, Damage, Given, History, Micros, Operation, Outcome, Reaped, ValueId};

/// A history, by key.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// What it was made from.
    pub history: &'a History,
    /// Every key that an operation named.
    pub keys: BTreeMap<&'a str, Key<'a>>,
}

/// What happened to one key.
#[derive(Clone, Debug, Default)]
pub struct Key<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its writes, in the order of their calls.
    pub writes: Vec<Write<'a>>,
    /// Its gets that were answered, in the order of their calls.
    pub reads: Vec<Read<'a>>,
    /// What servers were given of it at their starts.
    pub given: Vec<&'a Given>,
    /// What was removed of it, when nothing was left that it was needed against.
    pub forgotten: Record,
    /// Each of these removals, in the order of time.
    reaped: Vec<&'a Reaped>,
    /// The counters of the events seen.
    events: BTreeMap<Actor, BTreeSet<u64>>,
    by_number: BTreeMap<ValueId, usize>,
    by_value: BTreeMap<ValueId, usize>,
    /// For each n asked for: what damage and repair did to these owners.
    care: BTreeMap<usize, Care>,
    /// When whose disk lost something of the key, owner or not.
    damage: Vec<(Micros, ServerIndex)>,
}

/// A put or delete.
#[derive(Clone, Debug)]
pub struct Write<'a> {
    /// The operation.
    pub op: &'a Operation,
    /// Its number.
    pub number: ValueId,
    /// The value; `None` for a deletion.
    pub value: Option<ValueId>,
    /// The context sent along; `None` for a blind write.
    pub context: Option<&'a VersionVector>,
    /// The events that wrote it.
    pub dots: BTreeSet<Dot>,
    /// What the client knows of it.
    pub fate: Fate<'a>,
    /// For how long the value was to be shown, in milliseconds.
    pub ttl_ms: Option<u64>,
}

/// What a client knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate<'a> {
    /// It is acknowledged, with this context.
    Acknowledged(&'a VersionVector),
    /// It may take effect now, later or never.
    Open,
    /// It has no effect, ever.
    Failed,
}

/// A get that was answered.
#[derive(Clone, Debug)]
pub struct Read<'a> {
    /// The operation.
    pub op: &'a Operation,
    /// The siblings shown; `None` for a deletion.
    pub values: &'a [Option<ValueId>],
    /// The context returned.
    pub context: &'a VersionVector,
    /// The numbers of writes that it has heard of and may have hidden, as their time may have come.
    hidden: BTreeSet<ValueId>,
}

/// Damage and repair of the owners of a key, for one n.
#[derive(Clone, Debug, Default)]
struct Care {
    damage: Vec<(Micros, ServerIndex)>,
    /// Reads from all owners that no damage fell into: when called, when returned.
    repairs: Vec<(Micros, Micros)>,
    /// From a damage until the repair after it.
    unsettled: Vec<(Micros, Micros)>,
    /// The same, of damage that the owner does not see.
    unsettled_for_gets: Vec<(Micros, Micros)>,
}

/// Whether `first` was certainly over when `second` began.
#[must_use]
pub fn precedes(first: &Operation, second: &Operation) -> bool {
    first.returned.is_some_and(|returned| {
        returned < second.called
            || (returned == second.called && first.client == second.client && first.id < second.id)
    })
}

/// An operation, as violations name it.
#[must_use]
pub fn in_words(op: &Operation) -> String {
    let what = match &op.action {
        Action::Write { value, write, context, ttl_ms } => {
            let kind = if value.is_some() { "put" } else { "delete" };
            let context = if context.is_some() { " with a context" } else { "" };
            let ttl = ttl_ms.map(|ttl_ms| format!(" for {ttl_ms} ms")).unwrap_or_default();
            format!("{kind} {write}{context}{ttl}")
        }
        Action::Read => "the get".to_owned(),
    };
    let Operation { id, client, key, n, quorum, called, .. } = op;
    let returned = op.returned.map_or("open".to_owned(), |returned| returned.to_string());
    let sloppy = if op.sloppy { ", sloppy" } else { "" };
    format!(
        "{what} (#{id} of client {client}, key {key:?}, {quorum} of {n}{sloppy}, {called}..{returned} µs)"
    )
}

impl<'a> Evidence<'a> {
    /// Sorts a history by key.
    #[must_use]
    pub fn new(history: &'a History) -> Self {
        let mut keys: BTreeMap<&str, Key<'a>> = BTreeMap::new();
        for op in &history.operations {
            let key = keys.entry(op.key.as_str()).or_default();
            key.name = &op.key;
            key.add(op);
        }
        for key in keys.values_mut() {
            key.add_dots(history);
            key.add_hidden(history);
            key.forgotten = memory::forgotten(history, key.name, Micros::MAX);
            key.reaped = history.reaped.iter().filter(|reaped| reaped.key == key.name).collect();
            key.given = history.given.iter().filter(|given| given.key == key.name).collect();
            let asked: BTreeSet<usize> = key.operations().map(|op| op.n).collect();
            key.damage = history.damage.iter().filter_map(|damage| damaged(damage, key.name)).collect();
            key.care = asked.into_iter().map(|n| (n, Care::new(history, key, n))).collect();
        }
        Self { history, keys }
    }

    /// Whether anything is promised of a key.
    #[must_use]
    pub fn is_promised(&self, key: &str) -> bool {
        !self.history.has_mad_peer || self.keys.contains_key(key)
    }
}

impl<'a> Key<'a> {
    fn add(&mut self, op: &'a Operation) {
        match (&op.action, &op.outcome) {
            (Action::Read, Outcome::Read { values, context }) => {
                self.reads.push(Read { op, values, context, hidden: BTreeSet::new() });
            }
            (
                Action::Read,
                Outcome::Pending
                | Outcome::Written { .. }
                | Outcome::Failed
                | Outcome::Unknown
                | Outcome::Unavailable,
            ) => {}
            (&Action::Write { value, write: number, ref context, ttl_ms }, outcome) => {
                let fate = match outcome {
                    Outcome::Written { context } => Fate::Acknowledged(context),
                    Outcome::Failed => Fate::Failed,
                    Outcome::Pending | Outcome::Read { .. } | Outcome::Unknown | Outcome::Unavailable => {
                        Fate::Open
                    }
                };
                let at = self.writes.len();
                self.by_number.insert(number, at);
                self.by_value.extend(value.map(|value| (value, at)));
                let context = context.as_ref();
                let dots = BTreeSet::new();
                self.writes.push(Write { op, number, value, context, dots, fate, ttl_ms });
            }
        }
    }

    fn add_dots(&mut self, history: &History) {
        for (&dot, ops) in history.dots.get(self.name).into_iter().flatten() {
            self.events.entry(dot.actor).or_default().insert(dot.counter);
            for number in ops.iter().filter_map(|op| history.ops.get(op)) {
                if let Some(&at) = self.by_number.get(number) {
                    self.writes[at].dots.insert(dot);
                }
            }
        }
    }

    /// Finds what gets may have hidden.
    fn add_hidden(&mut self, history: &History) {
        for read in &mut self.reads {
            let ended = read.op.returned.unwrap_or(Micros::MAX);
            let forgotten = memory::forgotten(history, self.name, ended);
            let writes = self.writes.iter();
            let hidden = writes.filter(|write| write.dots.iter().any(|&dot| forgotten.holds(dot)));
            read.hidden = hidden.map(|write| write.number).collect();
        }
        let Some(expiries) = history.expiries.get(self.name) else { return };
        let expiring: Vec<&Write<'_>> = self.writes.iter().filter(|write| write.ttl_ms.is_some()).collect();
        for read in &mut self.reads {
            let ended = read.op.returned.unwrap_or(Micros::MAX);
            let by_then = clocks::latest(history, read.op.called, ended);
            let dropped_before = clocks::latest(history, 0, ended).saturating_sub(history.bytes_kept_ms);
            let may_be_hidden = |dot: &Dot| {
                let mut seen = expiries.get(dot).into_iter().flatten().flatten();
                read.context.covers(*dot) && seen.any(|&at| at <= by_then || at <= dropped_before)
            };
            let hidden = expiring.iter().filter(|write| write.dots.iter().any(may_be_hidden));
            read.hidden.extend(hidden.map(|write| write.number));
        }
    }

    fn operations(&self) -> impl Iterator<Item = &'a Operation> + '_ {
        self.writes.iter().map(|write| write.op).chain(self.reads.iter().map(|read| read.op))
    }

    /// The write with this number.
    #[must_use]
    pub fn write(&self, number: ValueId) -> Option<&Write<'a>> {
        self.by_number.get(&number).map(|&at| &self.writes[at])
    }

    /// The write of this value.
    #[must_use]
    pub fn writer_of(&self, value: ValueId) -> Option<&Write<'a>> {
        self.by_value.get(&value).map(|&at| &self.writes[at])
    }

    /// Whether this value was given to some server at its start.
    #[must_use]
    pub fn is_given(&self, value: Option<ValueId>) -> bool {
        self.given.iter().any(|given| Some(given.value) == value)
    }

    /// Whether it is a deletion that some server had forgotten by then. Others may still show it, beside what was written since.
    #[must_use]
    pub fn is_forgotten(&self, write: &Write<'_>, by: Micros) -> bool {
        let holds = |reaped: &&Reaped| write.dots.iter().any(|&dot| reaped.record.holds(dot));
        self.reaped.iter().filter(|reaped| reaped.at <= by).any(holds)
    }

    /// Whether the vector covers events that were never seen on a disk, and so belong to writes unknown.
    #[must_use]
    pub fn covers_unseen_events(&self, vv: &VersionVector) -> bool {
        vv.iter().filter(|last| !last.actor.is_initial()).any(|last| {
            let seen = self.events.get(&last.actor).map_or(0, |seen| seen.range(..=last.counter).count());
            (seen as u64) < last.counter
        })
    }

    /// The events through which a get whose context is `seen` can show `value`. A deletion does not say which it is,
    /// so it may be any that was seen.
    #[must_use]
    pub fn bearers(&self, value: Option<ValueId>, seen: &VersionVector) -> Vec<(&Write<'a>, Dot)> {
        let writes: Vec<&Write<'a>> = match value {
            Some(value) => self.writer_of(value).into_iter().collect(),
            None => self.writes.iter().filter(|write| write.value.is_none()).collect(),
        };
        let dots = |write: &'_ Write<'a>| write.dots.clone();
        let pairs = writes.into_iter().flat_map(|write| dots(write).into_iter().map(move |dot| (write, dot)));
        pairs.filter(|&(_, dot)| seen.covers(dot)).collect()
    }

    /// Whether the quorum of `second` must meet what `first` left on its own. See the file's head.
    #[must_use]
    pub fn keeps(&self, first: &Operation, second: &Operation) -> bool {
        !(first.sloppy || second.sloppy)
            && first.n == second.n
            && first.quorum + second.quorum > first.n
            && precedes(first, second)
            && !self.is_unsettled(second)
            && !(self.spans_damage(first)
                && (first.action == Action::Read || !self.is_repaired_between(first, second)))
            && !self.at_risk(first, second.called)
    }

    /// Whether what an operation left on its quorum may be gone by the time `until`.
    #[must_use]
    pub fn at_risk(&self, op: &Operation, until: Micros) -> bool {
        self.at_risk_from(op).is_some_and(|from| from <= until)
    }

    /// When what an operation left on its quorum may first have been gone: as many owners were damaged as had to hold it,
    /// before a repair gave it to all.
    #[must_use]
    pub fn at_risk_from(&self, op: &Operation) -> Option<Micros> {
        if op.sloppy {
            return self.sloppy_at_risk_from(op);
        }
        let care = self.care.get(&op.n).filter(|care| !care.damage.is_empty())?;
        let mut hit = BTreeSet::new();
        let mut copies = op.quorum;
        let called_after = |&&(called, _): &&(Micros, Micros)| op.returned.is_some_and(|end| end < called);
        let mut repairs = care.repairs.iter().filter(called_after).peekable();
        for &(at, server) in care.damage.iter().filter(|&&(at, _)| op.called <= at) {
            while repairs.next_if(|&&(_, end)| end < at).is_some() {
                hit.clear();
                copies = op.n;
            }
            hit.insert(server);
            if hit.len() >= copies {
                return Some(at);
            }
        }
        None
    }

    fn sloppy_at_risk_from(&self, op: &Operation) -> Option<Micros> {
        let copies = if op.action == Action::Read { 1 } else { op.quorum };
        let mut hit = BTreeSet::new();
        let after = self.damage.iter().filter(|&&(at, _)| op.called <= at);
        after.filter(|&&(_, server)| hit.insert(server)).nth(copies - 1).map(|&(at, _)| at)
    }

    /// Whether the key was damaged and not repaired at some time while the operation ran, in a way that matters to it.
    #[must_use]
    pub fn is_unsettled(&self, op: &Operation) -> bool {
        self.care.get(&op.n).is_some_and(|care| match op.action {
            Action::Read => touches(op, &care.unsettled_for_gets),
            Action::Write { .. } => touches(op, &care.unsettled),
        })
    }

    /// Whether all owners were read between the two.
    #[must_use]
    pub fn is_repaired_between(&self, first: &Operation, second: &Operation) -> bool {
        let Some(returned) = first.returned else { return false };
        self.care.get(&first.n).is_some_and(|care| {
            care.repairs.iter().any(|&(called, end)| returned <= called && end <= second.called)
        })
    }

    /// Whether the key was damaged while the operation ran.
    #[must_use]
    pub fn spans_damage(&self, op: &Operation) -> bool {
        let inside = |&(at, _): &(Micros, ServerIndex)| {
            op.called <= at && op.returned.is_none_or(|returned| at <= returned)
        };
        self.care.get(&op.n).is_some_and(|care| care.damage.iter().any(inside))
    }
}

/// Whether an operation ran in one of these times, even partly.
fn touches(op: &Operation, times: &[(Micros, Micros)]) -> bool {
    times.iter().any(|&(from, to)| op.called <= to && op.returned.is_none_or(|end| end >= from))
}

/// Whether whoever has seen this has seen a put or delete, whosever.
#[must_use]
pub fn knows_a_write(seen: &VersionVector) -> bool {
    seen.iter().any(|last| !last.actor.is_initial())
}

impl Care {
    fn new(history: &History, key: &Key<'_>, n: usize) -> Self {
        let owners = history.owners.get(&(key.name.to_owned(), n));
        let is_owners =
            |(_, server): &(Micros, ServerIndex)| owners.is_none_or(|owners| owners.contains(server));
        let lost = history.damage.iter().filter_map(|damage| damaged(damage, key.name));
        let mut damage: Vec<(Micros, ServerIndex)> = lost.filter(is_owners).collect();
        damage.sort_unstable();

        let from_all = |op: &Operation| op.quorum == op.n && op.n >= n && !op.sloppy;
        let gets = key.reads.iter().filter(|read| from_all(read.op));
        let gets = gets.filter_map(|read| Some((read.op.called, read.op.returned?)));
        // The runner's repairs say when they ended; they began after the damage before.
        let named = history.repaired.iter().map(|&end| {
            let last = damage.iter().map(|&(at, _)| at).take_while(|&at| at < end).last();
            (last.map_or(0, |at| at + 1), end)
        });
        let clean = |&(called, end): &(Micros, Micros)| damage.iter().all(|&(at, _)| at < called || end < at);
        let mut repairs: Vec<(Micros, Micros)> = gets.chain(named).filter(clean).collect();
        repairs.sort_unstable_by_key(|&(called, end)| (end, called));

        let repaired_after = |at: Micros| {
            repairs
                .iter()
                .filter(|&&(called, _)| called > at)
                .map(|&(_, end)| end)
                .min()
                .unwrap_or(Micros::MAX)
        };
        let unsettled = damage.iter().map(|&(at, _)| (at, repaired_after(at))).collect();
        let is_unseen = |damage: &&Damage| !matches!(damage, Damage::Flipped { .. });
        let unseen = history.damage.iter().filter(is_unseen).filter_map(|damage| damaged(damage, key.name));
        let unsettled_for_gets = unseen.filter(is_owners).map(|(at, _)| (at, repaired_after(at))).collect();
        Self { damage, repairs, unsettled, unsettled_for_gets }
    }
}

/// When and whose disk lost something of a key.
fn damaged(damage: &Damage, name: &str) -> Option<(Micros, ServerIndex)> {
    match *damage {
        Damage::Wiped { server, at }
        | Damage::Restored { server, at, .. }
        | Damage::Unflushed { server, at } => Some((at, server)),
        Damage::Flipped { server, at, ref key } => (key == name).then_some((at, server)),
    }
}

impl Write<'_> {
    /// Whether it was sent without a context.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.context.is_none()
    }

    /// Whether it is acknowledged.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        match self.fate {
            Fate::Acknowledged(_) => true,
            Fate::Open | Fate::Failed => false,
        }
    }

    /// The events that may show only after it was acknowledged: those the returned context does not cover. A client that
    /// hears nothing asks another server, and the first may have begun the put and keep the value to itself for long.
    pub fn late_dots(&self) -> impl Iterator<Item = Dot> + '_ {
        let known = match self.fate {
            Fate::Acknowledged(returned) => Some(returned),
            Fate::Open | Fate::Failed => None,
        };
        self.dots.iter().copied().filter(move |&dot| known.is_some_and(|known| !known.covers(dot)))
    }

    /// When it could last replace anything; `None` when there is no such time known.
    #[must_use]
    pub fn over(&self) -> Option<Micros> {
        match self.fate {
            Fate::Acknowledged(_) => self.op.returned,
            Fate::Open => None,
            Fate::Failed => Some(self.op.called),
        }
    }

    /// Whether its value may show again after it was replaced.
    #[must_use]
    pub fn may_surface(&self) -> bool {
        self.over().is_none() || self.late_dots().next().is_some()
    }

    /// Whether the two may have been at work at one time.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends_before = |one: &Self, other: &Self| one.over().is_some() && precedes(one.op, other.op);
        !ends_before(self, other) && !ends_before(other, self)
    }

    /// Whether it may have taken effect.
    #[must_use]
    pub fn may_have_happened(&self, key: &Key<'_>) -> bool {
        self.fate != Fate::Failed && (!self.dots.is_empty() || self.may_have_unseen_events(key))
    }

    /// Whether another event on the key may have replaced it in the same commit.
    #[must_use]
    pub fn may_have_unseen_events(&self, key: &Key<'_>) -> bool {
        let in_one_commit =
            |other: &Write<'_>| other.number != self.number && !other.dots.is_empty() && self.overlaps(other);
        self.fate != Fate::Failed && key.writes.iter().any(in_one_commit)
    }

    /// Whether it may have replaced `other`: through its context, or without one, if it was not over before `other`
    /// began.
    #[must_use]
    pub fn may_replace(&self, other: &Write<'_>) -> bool {
        if self.number == other.number || self.fate == Fate::Failed {
            return false;
        }
        match self.context {
            Some(context) => other.dots.iter().any(|&dot| context.covers(dot)),
            None => self.over().is_none() || !precedes(self.op, other.op),
        }
    }
}

impl Read<'_> {
    /// Whether the value is among the siblings shown.
    #[must_use]
    pub fn shows(&self, value: Option<ValueId>) -> bool {
        self.values.contains(&value)
    }

    /// Whether it has heard of the write, and its time may have come by the clock of whichever server answered, or of one that
    /// dropped its bytes.
    #[must_use]
    pub fn may_hide(&self, write: &Write<'_>) -> bool {
        self.hidden.contains(&write.number)
    }

    /// The numbers of all such writes.
    #[must_use]
    pub fn hidden(&self) -> &BTreeSet<ValueId> {
        &self.hidden
    }
}
