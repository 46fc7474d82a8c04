//! Could one register, one operation at a time, have given these answers?
//!
//! A history is linearizable when every operation can be given a moment between its call and its return such that each read
//! returns what was last written before it (Herlihy and Wing 1990). The search goes through the possible orders step by
//! step, and back when a read cannot be explained (Wing and Gong 1993, *Testing and Verifying Concurrent Objects*); what
//! was done and the value it left, once found to lead nowhere, is not tried again (Lowe 2017, *Testing for
//! Linearizability*).
//!
//! ```text
//!    w1 |-----|        w2 |-----------|            w1, r=1, w2, s=2, r=2   explains all reads
//!         r=1 |--|     s=2 |---|  r=2 |--|
//!                                 u=1 |--|         u=1 cannot be explained: s=2 was over before
//! ```
//!
//! Three things keep the search short. A read that fits the present value is taken at once: it changes nothing, so it
//! never stands in the way later. A write that may take effect at any time or never (no return is known) only matters to
//! a read of its value, and is tried only just before one. And the operations done are nearly always the first so many
//! and a few after, so a remembered state is small.
//!
//! Values need not be unique. A read may have more than one acceptable value; any will do.
//!
//! What it leaves out: objects other than registers, and a bound on time. The search may explode when many writes overlap,
//! so it stops after a number of steps and says that it does not know.

use std::collections::HashSet;
use std::hash::Hash;

use crate::history::Micros;

/// Steps that suffice for histories of some ten thousand operations with few at a time.
pub const STEPS_MAX: usize = 1_000_000;

/// One operation on a register with values `V`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op<V> {
    /// What it did.
    pub kind: Kind<V>,
    /// When it was called.
    pub called: Micros,
    /// When it returned. A write without a return may take effect at any time from its call, or never; a read without
    /// one says nothing and is ignored.
    pub returned: Option<Micros>,
    /// The operation, by its place in the history, that must come before this one although times do not tell: the
    /// same client's last, if it returned at the very time of this call. Ignored when that one has no return.
    pub after: Option<usize>,
}

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<V> {
    /// It wrote this.
    Write(V),
    /// It read one of these.
    Read(Vec<V>),
}

/// What the search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains all reads.
    Linearizable,
    /// There is none.
    NotLinearizable {
        /// The operations, by their places, that could have come next where the search got furthest, and led nowhere.
        stuck: Vec<usize>,
    },
    /// The limit was reached first.
    Inconclusive,
}

/// Searches for an order of `ops` on a register that holds `initial` at first, in at most `steps_max` steps.
pub fn check<V: Copy + Eq + Hash>(initial: V, ops: &[Op<V>], steps_max: usize) -> Verdict {
    Search::new(initial, ops).run(steps_max)
}

#[derive(Clone, Copy)]
enum Move {
    /// Place in `must`.
    Write(usize),
    /// Place in `may`.
    Optional(usize),
}

enum Done<V> {
    Must(usize),
    May(usize),
    Value(V),
}

/// A choice in the search: the moves from one state, and how to get back to it.
struct Choice {
    moves: Vec<Move>,
    next: usize,
    trail_len: usize,
}

/// All that decides whether the rest can be explained.
#[derive(PartialEq, Eq, Hash)]
struct State<V> {
    low: usize,
    ahead: Box<[usize]>,
    used: Box<[usize]>,
    value: V,
}

struct Search<'a, V> {
    ops: &'a [Op<V>],
    /// Operations that happened, in the order of their calls: place, call, return.
    must: Vec<(usize, Micros, Micros)>,
    /// Writes that may have happened, in the order of their calls.
    may: Vec<usize>,
    /// For each operation of `must`, the one of `must` that it has to wait for.
    after: Vec<Option<usize>>,
    done: Vec<bool>,
    done_count: usize,
    /// All of `must` before this are done.
    low: usize,
    used: Vec<bool>,
    value: V,
    trail: Vec<Done<V>>,
    furthest: (usize, Vec<usize>),
}

impl<'a, V: Copy + Eq + Hash> Search<'a, V> {
    fn new(initial: V, ops: &'a [Op<V>]) -> Self {
        let happened = |(place, op): (usize, &Op<V>)| Some((place, op.called, op.returned?));
        let mut must: Vec<_> = ops.iter().enumerate().filter_map(happened).collect();
        must.sort_by_key(|&(place, called, _)| (called, place));
        let mut place_in_must = vec![None; ops.len()];
        must.iter().enumerate().for_each(|(at, &(place, ..))| place_in_must[place] = Some(at));
        let after = must.iter().map(|&(place, ..)| place_in_must[ops[place].after?]).collect();

        let open_write =
            |&place: &usize| ops[place].returned.is_none() && matches!(ops[place].kind, Kind::Write(_));
        let mut may: Vec<usize> = (0..ops.len()).filter(open_write).collect();
        may.sort_by_key(|&place| (ops[place].called, place));
        Self {
            ops,
            after,
            done: vec![false; must.len()],
            done_count: 0,
            low: 0,
            used: vec![false; may.len()],
            value: initial,
            trail: Vec::new(),
            furthest: (0, Vec::new()),
            must,
            may,
        }
    }

    fn run(mut self, steps_max: usize) -> Verdict {
        let mut dead_ends = HashSet::new();
        let mut choices: Vec<Choice> = Vec::new();
        let mut steps = 0;
        loop {
            // Here a new state was entered.
            self.take_reads();
            if self.low == self.must.len() {
                return Verdict::Linearizable;
            }
            if steps == steps_max {
                return Verdict::Inconclusive;
            }
            steps += 1;
            let moves = if dead_ends.insert(self.state()) { self.moves() } else { Vec::new() };
            choices.push(Choice { moves, next: 0, trail_len: self.trail.len() });
            if !self.go_on(&mut choices) {
                return Verdict::NotLinearizable { stuck: self.furthest.1 };
            }
        }
    }

    /// Makes the next move there is, going back to the last state that has one.
    fn go_on(&mut self, choices: &mut Vec<Choice>) -> bool {
        while let Some(choice) = choices.last_mut() {
            self.undo_to(choice.trail_len);
            if let Some(&chosen) = choice.moves.get(choice.next) {
                choice.next += 1;
                self.make(chosen);
                return true;
            }
            choices.pop();
        }
        false
    }

    /// The operations that may come next: nothing that is not done returned before they were called.
    fn candidates(&self) -> (Vec<usize>, Micros) {
        let mut first_return = Micros::MAX;
        let mut open = Vec::new();
        for at in self.low..self.must.len() {
            let (_, called, returned) = self.must[at];
            if called > first_return {
                break;
            }
            if !self.done[at] {
                first_return = first_return.min(returned);
                open.push(at);
            }
        }
        open.retain(|&at| {
            self.must[at].1 <= first_return && self.after[at].is_none_or(|first| self.done[first])
        });
        (open, first_return)
    }

    /// The values a read accepts; nothing for a write.
    fn accepted(&self, at: usize) -> &'a [V] {
        match &self.ops[self.must[at].0].kind {
            Kind::Read(values) => values,
            Kind::Write(_) => &[],
        }
    }

    /// Takes all reads that may come next and fit the value.
    fn take_reads(&mut self) {
        loop {
            let (candidates, _) = self.candidates();
            let fitting: Vec<usize> =
                candidates.iter().copied().filter(|&at| self.accepted(at).contains(&self.value)).collect();
            fitting.iter().for_each(|&at| self.mark(at));
            if fitting.is_empty() {
                if self.done_count > self.furthest.0 || self.furthest.1.is_empty() {
                    self.furthest = (self.done_count, candidates.iter().map(|&at| self.must[at].0).collect());
                }
                return;
            }
        }
    }

    /// What may come next apart from reads that fit. Writes that a waiting read wants come first.
    fn moves(&self) -> Vec<Move> {
        let (candidates, first_return) = self.candidates();
        let wanted = |value: V| candidates.iter().any(|&at| self.accepted(at).contains(&value));
        let mut moves = Vec::new();
        let mut offered: Vec<V> = Vec::new();
        for (nth, &place) in self.may.iter().enumerate() {
            let Op { kind: Kind::Write(value), called, .. } = self.ops[place] else { continue };
            if called > first_return {
                break;
            }
            // Of two that write the same, the one called first will do.
            if !self.used[nth] && !offered.contains(&value) && wanted(value) {
                offered.push(value);
                moves.push(Move::Optional(nth));
            }
        }
        let mut writes: Vec<(bool, Micros, usize)> = Vec::new();
        for &at in &candidates {
            let (place, _, returned) = self.must[at];
            if let Kind::Write(value) = self.ops[place].kind {
                writes.push((!wanted(value), returned, at));
            }
        }
        writes.sort_unstable();
        let wanted_first = writes.partition_point(|&(unwanted, ..)| !unwanted);
        let rest = writes.split_off(wanted_first);
        let as_moves =
            |writes: Vec<(bool, Micros, usize)>| writes.into_iter().map(|(.., at)| Move::Write(at));
        as_moves(writes).chain(moves).chain(as_moves(rest)).collect()
    }

    fn make(&mut self, chosen: Move) {
        let place = match chosen {
            Move::Write(at) => {
                self.mark(at);
                self.must[at].0
            }
            Move::Optional(nth) => {
                self.used[nth] = true;
                self.trail.push(Done::May(nth));
                self.may[nth]
            }
        };
        if let Kind::Write(value) = self.ops[place].kind {
            self.trail.push(Done::Value(std::mem::replace(&mut self.value, value)));
        }
    }

    fn mark(&mut self, at: usize) {
        self.done[at] = true;
        self.done_count += 1;
        self.trail.push(Done::Must(at));
        while self.done.get(self.low).copied().unwrap_or(false) {
            self.low += 1;
        }
    }

    fn undo_to(&mut self, trail_len: usize) {
        for done in self.trail.drain(trail_len..).rev() {
            match done {
                Done::Must(at) => {
                    self.done[at] = false;
                    self.done_count -= 1;
                    self.low = self.low.min(at);
                }
                Done::May(nth) => self.used[nth] = false,
                Done::Value(value) => self.value = value,
            }
        }
    }

    fn state(&self) -> State<V> {
        let ahead = (self.low..self.must.len()).filter(|&at| self.done[at]);
        let ahead = ahead.take(self.done_count - self.low).collect();
        let used = (0..self.used.len()).filter(|&nth| self.used[nth]).collect();
        State { low: self.low, ahead, used, value: self.value }
    }
}
