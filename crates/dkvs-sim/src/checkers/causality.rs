//! Do the siblings fit the context? The oracle of causality.
//!
//! Whoever shows siblings also shows a version vector, which covers all events that went into what it shows. An event adds
//! its value and removes those its context covers; records only merge.
//!
//! ```text
//!   A1 put, context {}      B1 put, context {}      A2 put, context {A1}
//!
//!   vector {A1, B1}   shows A1 B1        A1 ──> A2
//!   vector {A2, B1}   shows A2 B1        B1
//! ```
//!
//! So two things can be told from one sight alone, without times and quorums, and with no excuse for damage, as a wiped or
//! restored disk shows less but never a mixture that no history explains:
//! - a value is not shown beside a write whose context covers it ([`Sight::returned`]);
//! - a value that is covered is shown, or hidden as its time has come, unless the context of a covered event covers it too, or a blind write is covered
//!   that may have replaced it ([`Sight::lost`]). Of a blind write nobody knows what it replaced.
//!
//! The first asks for a write that is *shown*, not only covered. A put's context names its event by a number, and thereby
//! covers the actor's earlier events, but not what those had replaced: a replica that is behind may learn of the number
//! first.
//!
//! [`accounted`] asks the same of a whole history and its last record, and more: every write that is gone must have been
//! replaced by one that is there, or by one that was replaced in turn. Writes that replaced each other are not enough.

use std::collections::BTreeSet;

use dkvs_core::record::Record;
use dkvs_core::version::{Dot, VersionVector};

use super::evidence::{Fate, Key, Read, Write};
use crate::history::ValueId;

/// Siblings shown together with a vector: by a get or a disk.
#[derive(Clone, Debug)]
pub struct Sight<'a> {
    key: &'a Key<'a>,
    seen: &'a VersionVector,
    shown: Shown<'a>,
    /// What the contexts of all covered events cover.
    replaced: VersionVector,
    /// Whether events are covered that were never seen on a disk.
    unseen_events: bool,
    /// What the contexts of the writes shown cover.
    replaced_by_shown: VersionVector,
}

#[derive(Clone, Debug)]
enum Shown<'a> {
    /// With the numbers of those that may be hidden.
    Values(&'a [Option<ValueId>], &'a BTreeSet<ValueId>),
    Dots(BTreeSet<Dot>),
}

impl<'a> Sight<'a> {
    /// What a get showed.
    #[must_use]
    pub fn of_read(key: &'a Key<'a>, read: &'a Read<'a>) -> Self {
        Self::new(key, read.context, Shown::Values(read.values, read.hidden()))
    }

    /// What a disk holds.
    #[must_use]
    pub fn of_record(key: &'a Key<'a>, record: &'a Record) -> Self {
        let dots = record.siblings().iter().map(|sibling| sibling.dot).collect();
        Self::new(key, record.vv(), Shown::Dots(dots))
    }

    fn new(key: &'a Key<'a>, seen: &'a VersionVector, shown: Shown<'a>) -> Self {
        let mut sight = Self {
            key,
            seen,
            shown,
            unseen_events: key.covers_unseen_events(seen),
            replaced: VersionVector::new(),
            replaced_by_shown: VersionVector::new(),
        };
        for write in &key.writes {
            let Some(context) = write.context.filter(|_| covers_any(seen, write)) else { continue };
            sight.replaced.merge(context);
            if sight.shows(write) {
                sight.replaced_by_shown.merge(context);
            }
        }
        sight
    }

    /// The writes shown beside one whose context covers every event that could show them, with that other write.
    #[must_use]
    pub fn returned(&self) -> Vec<(&'a Write<'a>, &'a Write<'a>)> {
        match &self.shown {
            Shown::Values(values, _) => {
                values.iter().filter_map(|&value| self.value_returned(value)).collect()
            }
            Shown::Dots(dots) => {
                let returned = |dot: &&Dot| self.replaced_by_shown.covers(**dot);
                let pair = |&dot: &Dot| Some((self.key.writes.iter().find(|w| w.dots.contains(&dot))?, dot));
                let pairs = dots.iter().filter(returned).filter_map(pair);
                pairs.filter_map(|(write, dot)| Some((write, self.replacer(write, dot)?))).collect()
            }
        }
    }

    fn value_returned(&self, value: Option<ValueId>) -> Option<(&'a Write<'a>, &'a Write<'a>)> {
        let bearers = self.key.bearers(value, self.seen);
        let &(write, dot) = bearers.first()?;
        let all_replaced = bearers.iter().all(|&(_, dot)| self.replaced_by_shown.covers(dot));
        if all_replaced { Some((write, self.replacer(write, dot)?)) } else { None }
    }

    fn replacer(&self, write: &Write<'_>, dot: Dot) -> Option<&'a Write<'a>> {
        let covers = |by: &Write<'_>| by.context.is_some_and(|context| context.covers(dot));
        let mut writes = self.key.writes.iter();
        writes.find(|by| by.number != write.number && covers(by) && self.shows(by))
    }

    /// Whether it is certainly this write that is shown.
    fn shows(&self, write: &Write<'_>) -> bool {
        match &self.shown {
            Shown::Values(values, _) if write.value.is_some() => values.contains(&write.value),
            Shown::Values(values, _) => {
                let deletions = self.key.bearers(None, self.seen);
                values.contains(&None) && deletions.iter().all(|(other, _)| other.number == write.number)
            }
            Shown::Dots(dots) => write.dots.iter().any(|dot| dots.contains(dot)),
        }
    }

    /// The writes that were seen and are not shown, although nothing seen explains it.
    #[must_use]
    pub fn lost(&self) -> Vec<(&'a Write<'a>, Dot)> {
        let writes = self.key.writes.iter().filter(|write| !self.may_show(write));
        writes.filter_map(|write| Some((write, self.unexplained(write)?))).collect()
    }

    /// Whether the write's value is shown, or may be: a get does not say which deletion it shows, nor what it hides.
    fn may_show(&self, write: &Write<'_>) -> bool {
        match &self.shown {
            Shown::Values(values, hidden) => values.contains(&write.value) || hidden.contains(&write.number),
            Shown::Dots(dots) => {
                write.dots.iter().any(|dot| dots.contains(dot) || self.key.forgotten.holds(*dot))
            }
        }
    }

    /// A dot of the write that was seen and that nothing replaced.
    fn unexplained(&self, write: &Write<'_>) -> Option<Dot> {
        let covered = || write.dots.iter().copied().filter(|&dot| self.seen.covers(dot));
        let by_context = |dot| self.replaced.covers(dot) || self.hidden_replacer(write, dot);
        if covered().all(by_context) || self.blind_replacer(write) {
            return None;
        }
        // One execution of a blind write may have replaced the other.
        if write.is_blind() && covered().any(by_context) {
            return None;
        }
        covered().find(|&dot| !by_context(dot))
    }

    fn blind_replacer(&self, write: &Write<'_>) -> bool {
        self.key.writes.iter().any(|by| {
            by.is_blind() && by.may_replace(write) && (covers_any(self.seen, by) || self.may_cover_unseen(by))
        })
    }

    fn hidden_replacer(&self, write: &Write<'_>, dot: Dot) -> bool {
        self.key.writes.iter().any(|by| {
            by.number != write.number
                && by.context.is_some_and(|context| context.covers(dot))
                && self.may_cover_unseen(by)
        })
    }

    /// Whether an event that was covered and never seen on a disk may be of this write.
    fn may_cover_unseen(&self, write: &Write<'_>) -> bool {
        self.unseen_events && write.may_have_unseen_events(self.key)
    }
}

fn covers_any(seen: &VersionVector, write: &Write<'_>) -> bool {
    write.dots.iter().any(|&dot| seen.covers(dot))
}

/// The writes that the siblings of `last` account for: they are among them, or were replaced by a write that is
/// accounted for. What was forgotten is.
#[must_use]
pub fn accounted(key: &Key<'_>, last: &Record) -> BTreeSet<ValueId> {
    let stays = |dot| last.holds(dot) || key.forgotten.holds(dot);
    let alive = |write: &&Write<'_>| write.dots.iter().any(|&dot| stays(dot));
    let mut open: Vec<&Write<'_>> = key.writes.iter().filter(alive).collect();
    let mut accounted: BTreeSet<ValueId> = open.iter().map(|write| write.number).collect();
    while let Some(by) = open.pop() {
        for write in key.writes.iter().filter(|write| by.may_replace(write)) {
            if write.fate != Fate::Failed && write.may_have_happened(key) && accounted.insert(write.number) {
                open.push(write);
            }
        }
    }
    accounted
}
