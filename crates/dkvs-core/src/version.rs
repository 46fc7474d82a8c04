//! Who did what: dots, version vectors, and the actors that keep them honest.
//!
//! A *dot* names one event on one key: the `counter`-th thing an *actor* did to it. A *version vector* summarises
//! all events known: for each actor, the highest counter. It works because an actor's events on a key are
//! numbered without gaps, and a replica always learns them together with everything the actor knew before
//! (Preguiça et al. 2010, *Dotted Version Vectors*; Almeida et al. 2014).
//!
//! ```text
//!   vv   { A: 3, B: 1 }      knows A's events 1, 2, 3 and B's event 1
//!   dots { A3 }              of those, the value written by A's third event is still alive
//! ```
//!
//! # An actor is not a server
//! A counter is safe only while the one who counts remembers how far it got. A server forgets: it loses its disk,
//! it is restored from a backup, it reaps a key, its log has a torn tail. If it then reuses a counter, two values
//! carry one dot and one of them vanishes without a trace (Riak's long-lived bug kv679). So the actor of a dot is
//! new whenever knowledge of the key is not provable: a random [`Actor::incarnation`] for each start that does not
//! follow a clean stop, and within it an [`Actor::epoch`] for each key that the server cannot prove to remember.
//!
//! # Initial values
//! Pairs given on a server's command line must be older than any put, and one value wherever they are given. Their
//! actor is made from the pair itself and lies in epoch 0, which real events never use. A vector with any real
//! entry covers every initial dot, and so has no need to name one.
//!
//! What it leaves out: actors of servers long gone stay in the vectors of keys they wrote. A vector grows with the
//! unclean restarts that wrote the key, not with clients or puts.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The one who counts: a server's incarnation, and an epoch within it. 12 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// Drawn at random when a data directory is created, and after any start that does not follow a clean stop.
    pub incarnation: u64,
    /// Taken from a persistent counter whenever the server cannot prove what it last did to a key. Real events
    /// have epochs from 1; epoch 0 marks an initial value.
    pub epoch: u32,
}

impl Actor {
    /// The actor of an initial pair: the same wherever the same pair is given.
    #[must_use]
    pub fn initial(key: &[u8], value: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"dkvs initial pair");
        hash.update((key.len() as u64).to_be_bytes());
        hash.update(key);
        hash.update(value);
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self { incarnation: u64::from_be_bytes([a, b, c, d, e, f, g, h]), epoch: 0 }
    }

    /// Whether this actor stands for an initial value, older than any put.
    #[must_use]
    pub fn is_initial(self) -> bool {
        self.epoch == 0
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.incarnation, self.epoch)
    }
}

/// One event: the `counter`-th of its actor on one key. Counters start at 1. 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who did it.
    pub actor: Actor,
    /// Which of the actor's events on the key it was.
    pub counter: u64,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.actor, self.counter)
    }
}

/// A summary of events: for each actor, the highest counter known.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct VersionVector {
    /// In the order of their actors, no actor twice. Either only real actors or only initial ones.
    entries: Vec<Dot>,
}

impl VersionVector {
    /// The vector that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many actors it names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The highest counter known of `actor`; 0 when it was never heard of.
    #[must_use]
    pub fn counter(&self, actor: Actor) -> u64 {
        self.place_of(actor).map_or(0, |place| self.entries[place].counter)
    }

    /// The entries, in the order of their actors.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Dot> + '_ {
        self.entries.iter().copied()
    }

    /// Whether the event is among those known. Any real event covers all initial ones.
    #[must_use]
    pub fn covers(&self, dot: Dot) -> bool {
        self.counter(dot.actor) >= dot.counter || (dot.actor.is_initial() && self.knows_a_put())
    }

    /// Learns an event, and with it the actor's events before it.
    pub fn add(&mut self, dot: Dot) {
        if dot.actor.is_initial() && self.knows_a_put() {
            return;
        }
        if !dot.actor.is_initial() && !self.knows_a_put() {
            self.entries.clear();
        }
        match self.place_of(dot.actor) {
            Ok(place) => self.entries[place].counter = dot.counter.max(self.entries[place].counter),
            Err(place) => {
                // Most vectors never get a second entry.
                if self.entries.is_empty() {
                    self.entries.reserve_exact(1);
                }
                self.entries.insert(place, dot);
            }
        }
    }

    /// Learns all that `other` knows: the pointwise maximum.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|dot| self.add(dot));
    }

    /// Whether everything `other` knows is known here too.
    #[must_use]
    pub fn descends_from(&self, other: &Self) -> bool {
        other.iter().all(|dot| self.covers(dot))
    }

    /// The entries are all real or all initial, so one of them tells.
    fn knows_a_put(&self) -> bool {
        self.entries.first().is_some_and(|dot| !dot.actor.is_initial())
    }

    /// Where an actor's entry is, or would have to be.
    fn place_of(&self, actor: Actor) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&actor, |dot| dot.actor)
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vv = Self::new();
        dots.into_iter().for_each(|dot| vv.add(dot));
        vv
    }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Numbers this server's events so that no dot is ever used twice.
///
/// Holds the server's current incarnation and the next epoch it may take. Making both durable before a dot leaves
/// the server is the caller's duty; [`Dots::next_epoch`] is what there is to store.
#[derive(Clone, Debug)]
pub struct Dots {
    incarnation: u64,
    next_epoch: u32,
}

impl Dots {
    /// A server whose epochs below `next_epoch` are spent. Epoch 0 is never handed out.
    #[must_use]
    pub fn new(incarnation: u64, next_epoch: u32) -> Self {
        Self { incarnation, next_epoch: next_epoch.max(1) }
    }

    /// The incarnation that new dots carry.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The first epoch that no dot has used.
    #[must_use]
    pub fn next_epoch(&self) -> u32 {
        self.next_epoch
    }

    /// The dot of this server's next event on a key, given all that is `known` about the key (the record and the
    /// context of the request) and this server's `own` last dot on it.
    ///
    /// Counting goes on from `own` only when that is provably the last: same incarnation, and nobody knows of a
    /// later one. Otherwise the dot is the first of a new epoch.
    ///
    /// Returns `None` when the incarnation has no epochs left; the caller must then draw a new incarnation.
    pub fn next(&mut self, known: &VersionVector, own: Option<Dot>) -> Option<Dot> {
        if let Some(own) = own
            && own.actor.incarnation == self.incarnation
            && known.counter(own.actor) == own.counter
            && let Some(counter) = own.counter.checked_add(1)
        {
            return Some(Dot { actor: own.actor, counter });
        }
        let epoch = self.next_epoch;
        self.next_epoch = epoch.checked_add(1)?;
        Some(Dot { actor: Actor { incarnation: self.incarnation, epoch }, counter: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(incarnation: u64, epoch: u32, counter: u64) -> Dot {
        Dot { actor: Actor { incarnation, epoch }, counter }
    }

    #[test]
    fn a_key_remembered_is_counted_on() {
        let mut dots = Dots::new(9, 4);
        let first = dots.next(&VersionVector::new(), None).unwrap();
        assert_eq!(first, dot(9, 4, 1));
        let known = VersionVector::from_iter([first, dot(1, 1, 7)]);
        assert_eq!(dots.next(&known, Some(first)), Some(dot(9, 4, 2)));
        assert_eq!(dots.next_epoch(), 5);
    }

    #[test]
    fn a_key_not_provably_remembered_gets_a_new_epoch() {
        let own = dot(9, 4, 2);
        let forgot_it = (VersionVector::from_iter([own]), None);
        let others_know_more = (VersionVector::from_iter([dot(9, 4, 3)]), Some(own));
        let record_knows_less = (VersionVector::from_iter([dot(9, 4, 1)]), Some(own));
        let before_a_crash = (VersionVector::from_iter([dot(8, 4, 2)]), Some(dot(8, 4, 2)));
        for (known, own) in [forgot_it, others_know_more, record_knows_less, before_a_crash] {
            assert_eq!(Dots::new(9, 5).next(&known, own), Some(dot(9, 5, 1)), "{known:?} {own:?}");
        }
    }

    #[test]
    fn counters_and_epochs_that_run_out_are_not_reused() {
        let last = dot(9, 4, u64::MAX);
        assert_eq!(Dots::new(9, 5).next(&VersionVector::from_iter([last]), Some(last)), Some(dot(9, 5, 1)));
        assert_eq!(Dots::new(9, u32::MAX).next(&VersionVector::new(), None), None);
    }

    #[test]
    fn any_put_covers_every_initial_value() {
        let initial = Dot { actor: Actor::initial(b"k", b"v"), counter: 1 };
        let mut vv = VersionVector::from_iter([initial]);
        assert!(vv.covers(initial));
        assert!(!vv.covers(Dot { actor: Actor::initial(b"k", b"w"), counter: 1 }));
        vv.add(dot(1, 1, 1));
        assert!(vv.covers(initial));
        assert_eq!(vv.len(), 1, "what is covered anyway need not be named");
        assert!(vv.descends_from(&VersionVector::from_iter([initial])));
    }
}
