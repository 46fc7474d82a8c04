//! The laws of records, over records that can really come to be.
//!
//! A random history runs over three replicas of one key: puts, deletes and retries with all sorts of contexts,
//! merges, discards, pairs given at start, restarts and lost keys. Every record that stood at a replica at any time
//! is kept, and the laws must hold between any of them. Each law was seen to fail with its clause of `Record` removed.

use std::collections::BTreeSet;

use bytes::Bytes;
use dkvs_core::hlc::Hlc;
use dkvs_core::record::{Body, OpId, Record, Sibling, Write};
use dkvs_core::version::{Actor, Dot, Dots, VersionVector};
use proptest::prelude::*;
use proptest::sample::Index;

const REPLICAS: usize = 3;
const KEY: &[u8] = b"the key";

/// So many cases. A failing one is printed and not kept: proptest finds no place for its file beside these tests.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// What a put has seen.
#[derive(Clone, Debug)]
enum Seen {
    Nothing,
    /// All that its coordinator holds.
    Own,
    /// Some record, of any replica and time.
    Some(Index),
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        at: usize,
        seen: Seen,
        tombstone: bool,
        retry: bool,
        hlc: u64,
        expires: Option<u64>,
    },
    Merge {
        from: Index,
        at: usize,
    },
    Discard {
        seen: Index,
        at: usize,
    },
    Initial {
        at: usize,
        value: u8,
    },
    /// The replica loses the key, and knows that it does not know what it did to it.
    Forget {
        at: usize,
    },
    /// A start that does not follow a clean stop.
    Restart {
        at: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..REPLICAS;
    let seen = prop_oneof![Just(Seen::Nothing), Just(Seen::Own), any::<Index>().prop_map(Seen::Some)];
    let expires = proptest::option::of(0..3_u64);
    prop_oneof![
        8 => (at.clone(), seen, prop::bool::weighted(0.2), prop::bool::weighted(0.2), 0..4_u64, expires).prop_map(
            |(at, seen, tombstone, retry, hlc, expires)| Step::Put { at, seen, tombstone, retry, hlc, expires }
        ),
        8 => (any::<Index>(), at.clone()).prop_map(|(from, at)| Step::Merge { from, at }),
        1 => (any::<Index>(), at.clone()).prop_map(|(seen, at)| Step::Discard { seen, at }),
        1 => (at.clone(), 0..3_u8).prop_map(|(at, value)| Step::Initial { at, value }),
        1 => at.clone().prop_map(|at| Step::Forget { at }),
        1 => at.prop_map(|at| Step::Restart { at }),
    ]
}

#[derive(Clone, Debug)]
struct Replica {
    record: Record,
    own: Option<Dot>,
    dots: Dots,
}

/// A put: the record before, what it had seen, its dot, and the record after.
type Event = (Record, VersionVector, Dot, Record);

/// Every record that stood somewhere at some time, and every put.
fn run(steps: &[Step]) -> (Vec<Record>, Vec<Event>) {
    let mut incarnation = 0;
    let mut new_incarnation = || {
        incarnation += 1;
        Dots::new(incarnation, 1)
    };
    let new = |dots| Replica { record: Record::new(), own: None, dots };
    let mut replicas: Vec<Replica> = (0..REPLICAS).map(|_| new(new_incarnation())).collect();
    let mut ever = vec![Record::new()];
    let mut events = Vec::new();
    let mut op = OpId { client: 1, sequence: 0 };
    for step in steps {
        let at = match step {
            &Step::Put { at, ref seen, tombstone, retry, hlc, expires } => {
                let replica = &mut replicas[at];
                let context = match seen {
                    Seen::Nothing => VersionVector::new(),
                    Seen::Own => replica.record.vv().clone(),
                    Seen::Some(which) => which.get(&ever).vv().clone(),
                };
                let mut known = replica.record.vv().clone();
                known.merge(&context);
                let dot = replica.dots.next(&known, replica.own).expect("epochs do not run out");
                op.sequence += u64::from(!retry);
                let value = || Body::Value(Bytes::copy_from_slice(&op.sequence.to_be_bytes()));
                let body = if tombstone { Body::Tombstone } else { value() };
                let before = replica.record.clone();
                replica.record.event(&context, dot, Write { op, hlc: Hlc::from_bits(hlc), expires, body });
                replica.own = Some(dot);
                events.push((before, context, dot, replica.record.clone()));
                at
            }
            Step::Merge { from, at } => {
                replicas[*at].record.merge(from.get(&ever));
                *at
            }
            Step::Discard { seen, at } => {
                replicas[*at].record.discard(seen.get(&ever).vv());
                *at
            }
            Step::Initial { at, value } => {
                replicas[*at].record.merge(&Record::initial(KEY, vec![*value].into()));
                *at
            }
            Step::Forget { at } => {
                replicas[*at].record = Record::new();
                replicas[*at].own = None;
                *at
            }
            Step::Restart { at } => {
                replicas[*at].dots = new_incarnation();
                *at
            }
        };
        ever.push(replicas[at].record.clone());
    }
    (ever, events)
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}

/// Records of one history, and which three of them to compare.
fn three_records() -> impl Strategy<Value = [Record; 3]> {
    (history(), [any::<Index>(), any::<Index>(), any::<Index>()]).prop_map(|(steps, which)| {
        let (ever, _) = run(&steps);
        which.map(|index| index.get(&ever).clone())
    })
}

fn merged(a: &Record, b: &Record) -> Record {
    let mut merged = a.clone();
    merged.merge(b);
    merged
}

fn dots(record: &Record) -> BTreeSet<Dot> {
    record.siblings().iter().map(|sibling| sibling.dot).collect()
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn merge_is_commutative_associative_and_idempotent([a, b, c] in three_records()) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
        prop_assert_eq!(merged(&a, &Record::new()), a);
    }

    /// The definition of a merge, dot by dot, without the sorted walk that computes it.
    #[test]
    fn a_value_survives_a_merge_exactly_if_no_side_knows_it_without_having_it([a, b, _c] in three_records()) {
        let merged = merged(&a, &b);
        let survives = |one: &Record, other: &Record, dot: Dot| {
            dots(one).contains(&dot) && (dots(other).contains(&dot) || !other.vv().covers(dot))
        };
        let all: BTreeSet<Dot> = dots(&a).union(&dots(&b)).copied().collect();
        let expected: BTreeSet<Dot> =
            all.into_iter().filter(|&dot| survives(&a, &b, dot) || survives(&b, &a, dot)).collect();
        prop_assert_eq!(dots(&merged), expected);
        for dot in a.vv().iter().chain(b.vv().iter()) {
            prop_assert!(merged.vv().covers(dot));
        }
        for dot in merged.vv().iter() {
            prop_assert_eq!(dot.counter, a.vv().counter(dot.actor).max(b.vv().counter(dot.actor)));
        }
    }

    #[test]
    fn a_record_includes_another_exactly_if_merging_it_changes_nothing([a, b, _c] in three_records()) {
        prop_assert_eq!(a.includes(&b), merged(&a, &b) == a);
        prop_assert!(merged(&a, &b).includes(&a) && merged(&a, &b).includes(&b));
        prop_assert_eq!(a.includes(&b) && b.includes(&a), a == b);
    }

    #[test]
    fn records_have_one_hash_exactly_if_they_are_equal([a, b, _c] in three_records()) {
        prop_assert_eq!(a.hash() == b.hash(), a == b);
        prop_assert_eq!(merged(&a, &b).hash(), merged(&b, &a).hash());
    }

    #[test]
    fn a_vector_descends_exactly_from_what_it_gains_nothing_from([a, b, c] in three_records()) {
        let gains = |a: &VersionVector, b: &VersionVector| {
            let mut merged = a.clone();
            merged.merge(b);
            merged != *a
        };
        prop_assert_eq!(a.vv().descends_from(b.vv()), !gains(a.vv(), b.vv()));
        let both = a.vv().descends_from(b.vv()) && a.vv().descends_from(c.vv());
        prop_assert_eq!(a.vv().descends_from(merged(&b, &c).vv()), both);
    }

    #[test]
    fn siblings_are_covered_by_their_vector_and_stand_once_in_order(steps in history()) {
        for record in run(&steps).0 {
            prop_assert!(record.siblings().iter().all(|sibling| record.vv().covers(sibling.dot)), "{record:?}");
            prop_assert!(record.siblings().windows(2).all(|pair| pair[0].dot < pair[1].dot), "{record:?}");
            let again = Record::from_parts(record.vv().clone(), record.siblings().to_vec());
            prop_assert_eq!(again, Some(record));
        }
    }

    #[test]
    fn a_put_replaces_what_it_has_seen_and_every_initial_value_and_nothing_else(steps in history()) {
        for (before, context, dot, after) in run(&steps).1 {
            let mut expected: BTreeSet<Dot> =
                dots(&before).into_iter().filter(|&old| !context.covers(old) && !old.actor.is_initial()).collect();
            prop_assert!(expected.insert(dot), "{:?} was used before", dot);
            prop_assert_eq!(dots(&after), expected);
            prop_assert!(after.vv().descends_from(before.vv()) && after.vv().descends_from(&context));
            for entry in after.vv().iter().filter(|&entry| entry != dot) {
                let known = before.vv().counter(entry.actor).max(context.counter(entry.actor));
                prop_assert_eq!(entry.counter, known, "nothing is learnt but the put");
            }
        }
    }

    /// What an owner names in its acknowledgement is what it still has, after the merge, and the sender has not.
    #[test]
    fn the_dots_a_sender_does_not_know_are_those_its_receiver_keeps_beside_it([held, sent, _c] in three_records()) {
        let missed: BTreeSet<Dot> = held.dots_unknown_to(sent.vv()).into_iter().collect();
        let beside: BTreeSet<Dot> = dots(&merged(&held, &sent)).difference(&dots(&sent)).copied().collect();
        prop_assert_eq!(&missed, &beside);
        prop_assert!(held.dots_unknown_to(held.vv()).is_empty());
        let mut replaced = sent.clone();
        replaced.discard(&missed.iter().copied().collect());
        prop_assert!(missed.is_disjoint(&dots(&merged(&held, &replaced))), "a second round replaces them");
    }

    #[test]
    fn a_reader_is_shown_one_value_of_each_operation_latest_first_and_none_that_expired(
        steps in history(), now in 0..4_u64,
    ) {
        for record in run(&steps).0 {
            let shown = record.values(now);
            let recency = |sibling: &Sibling| (sibling.write.hlc, sibling.dot);
            prop_assert!(shown.windows(2).all(|pair| recency(pair[0]) > recency(pair[1])), "{shown:?}");
            let is_gone = |write: &Write| {
                write.expires.is_some_and(|at| at <= now || write.body == Body::Tombstone)
            };
            let alive = || record.siblings().iter().filter(|sibling| !is_gone(&sibling.write));
            let ops: BTreeSet<OpId> = alive().map(|sibling| sibling.write.op).collect();
            prop_assert_eq!(shown.iter().map(|sibling| sibling.write.op).collect::<BTreeSet<_>>(), ops.clone());
            prop_assert_eq!(shown.len(), ops.len(), "no operation twice");
            for sibling in alive() {
                let as_shown = shown.iter().find(|shown| shown.write.op == sibling.write.op).unwrap();
                prop_assert!(recency(as_shown) >= recency(sibling));
                prop_assert_eq!(record.written_by(sibling.write.op).map(|s| s.write.op), Some(sibling.write.op));
            }
            prop_assert_eq!(record.winner(now), shown.first().copied());
        }
    }

    /// Servers drop the bytes of what has expired when they like. That must not show, neither in what they exchange nor in what
    /// readers see, and what has met it is as if it had dropped them too.
    #[test]
    fn dropped_bytes_change_neither_fingerprints_nor_merges_nor_what_readers_see(
        records in three_records(), long_ago in [0..4_u64, 0..4_u64, 0..4_u64],
    ) {
        let less = |at: usize| {
            let mut record = records[at].clone();
            record.drop_expired(long_ago[at]);
            record
        };
        let [a, b, c] = [less(0), less(1), less(2)];
        for (record, dropped) in records.iter().zip([&a, &b, &c]) {
            prop_assert_eq!(record.hash(), dropped.hash());
            prop_assert!(record.includes(dropped) && dropped.includes(record), "nothing to exchange");
            prop_assert_eq!(&merged(record, dropped), dropped);
            prop_assert_eq!(&merged(dropped, record), dropped);
            prop_assert!(!dropped.clone().drop_expired(0));
            for now in 4..6 {
                prop_assert_eq!(record.values(now), dropped.values(now));
            }
        }
        prop_assert_eq!(merged(&records[0], &records[1]).hash(), merged(&a, &b).hash());
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
    }

    /// A put anywhere, then the pair again from any side: only what was put is left.
    #[test]
    fn initial_values_are_one_where_they_are_equal_and_gone_after_any_put(
        ours in any::<u8>(), theirs in any::<u8>(), with_context in any::<bool>(), hlc in any::<u64>(),
    ) {
        let pair = |value: u8| Record::initial(KEY, vec![value].into());
        let both = merged(&pair(ours), &pair(theirs));
        prop_assert_eq!(both.values(0).len(), if ours == theirs { 1 } else { 2 });
        prop_assert_eq!(&merged(&both, &pair(ours)), &both);

        let mut put = pair(ours);
        let context = if with_context { put.vv().clone() } else { VersionVector::new() };
        let dot = Dots::new(5, 1).next(put.vv(), None).unwrap();
        let op = OpId { client: 0, sequence: 0 };
        put.event(&context, dot, Write { op, hlc: Hlc::from_bits(hlc), expires: None, body: Body::Tombstone });
        prop_assert_eq!(dots(&put), BTreeSet::from([dot]));
        for stale in [&pair(ours), &pair(theirs), &both] {
            prop_assert_eq!(&merged(&put, stale), &put);
            prop_assert_eq!(&merged(stale, &put), &put);
        }
    }
}

#[test]
fn initial_pairs_of_different_keys_are_different_events() {
    let actors = [(&b"k"[..], &b"v"[..]), (b"kv", b""), (b"", b"kv"), (b"k", b"w"), (b"l", b"v")]
        .map(|(key, value)| Actor::initial(key, value));
    assert_eq!(BTreeSet::from(actors).len(), actors.len());
    assert!(actors.into_iter().all(Actor::is_initial));
}

#[test]
fn parts_in_which_a_dot_stands_twice_are_no_record() {
    let record = Record::initial(KEY, Bytes::from_static(b"v"));
    let twice = [record.siblings(), record.siblings()].concat();
    assert_eq!(Record::from_parts(record.vv().clone(), twice), None);
}

#[test]
#[should_panic(expected = "was used before")]
fn a_dot_that_is_known_already_is_a_bug_of_the_caller() {
    let mut record = Record::new();
    let dot = Dot { actor: Actor { incarnation: 1, epoch: 1 }, counter: 1 };
    let op = OpId { client: 0, sequence: 0 };
    let write = Write { op, hlc: Hlc::default(), expires: None, body: Body::Tombstone };
    record.event(&VersionVector::new(), dot, write.clone());
    record.event(&VersionVector::new(), dot, write);
}

/// `old` was replaced by `new`. The coordinator of a blind put has missed both, one owner has both, another only `old`.
#[test]
fn what_a_blind_put_missed_includes_what_that_had_replaced() {
    let event = |record: &mut Record, context: &VersionVector, incarnation| {
        let op = OpId { client: incarnation, sequence: 0 };
        let dot = Dots::new(incarnation, 1).next(record.vv(), None).unwrap();
        record.event(context, dot, Write { op, hlc: Hlc::default(), expires: None, body: Body::Tombstone });
        dot
    };
    let mut has_old = Record::new();
    event(&mut has_old, &VersionVector::new(), 1);
    let mut has_both = has_old.clone();
    event(&mut has_both, has_old.vv(), 2);

    let mut coordinator = Record::new();
    let first = event(&mut coordinator, &VersionVector::new(), 3);
    let mut context = VersionVector::from_iter(has_both.missed_by(&coordinator));
    context.add(first);
    let second = event(&mut coordinator, &context, 4);
    for owner in [&has_old, &has_both] {
        assert_eq!(dots(&merged(owner, &coordinator)), BTreeSet::from([second]));
    }
}
