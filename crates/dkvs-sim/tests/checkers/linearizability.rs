use dkvs_sim::checkers::linearizability::{Kind, Op, STEPS_MAX, Verdict, check};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

type Value = u32;

fn write(value: Value, called: u64, returned: u64) -> Op<Value> {
    Op { kind: Kind::Write(value), called, returned: Some(returned), after: None }
}

/// A write that nobody knows about.
fn perhaps(value: Value, called: u64) -> Op<Value> {
    Op { kind: Kind::Write(value), called, returned: None, after: None }
}

fn read(value: Value, called: u64, returned: u64) -> Op<Value> {
    Op { kind: Kind::Read(vec![value]), called, returned: Some(returned), after: None }
}

fn one_of(values: &[Value], called: u64, returned: u64) -> Op<Value> {
    Op { kind: Kind::Read(values.to_vec()), called, returned: Some(returned), after: None }
}

fn after(place: usize, op: Op<Value>) -> Op<Value> {
    Op { after: Some(place), ..op }
}

#[test]
fn histories_of_a_register_are_accepted() {
    let good: [(&str, Vec<Op<Value>>); 12] = [
        ("nothing", vec![]),
        ("the initial value", vec![read(0, 1, 2), read(0, 1, 9)]),
        ("one after the other", vec![write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)]),
        ("a read that overlaps sees the old", vec![write(1, 1, 9), read(0, 2, 3)]),
        ("a read that overlaps sees the new", vec![write(1, 1, 9), read(1, 2, 3)]),
        ("old, then new, during the write", vec![write(1, 1, 9), read(0, 2, 3), read(1, 4, 5)]),
        ("writes in the other order", vec![write(1, 1, 9), write(2, 2, 8), read(2, 3, 4), read(1, 10, 11)]),
        ("an open write that never happens", vec![perhaps(1, 1), read(0, 5, 6)]),
        (
            "an open write that happens late",
            vec![perhaps(1, 1), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)],
        ),
        ("any of the siblings", vec![write(1, 1, 2), one_of(&[2, 1], 3, 4), read(1, 5, 6)]),
        (
            "of two open writes of one value, both",
            vec![perhaps(1, 1), perhaps(1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8), read(1, 9, 10)],
        ),
        (
            "the tail of the figure, without the read that cannot be explained",
            vec![write(1, 1, 7), read(1, 4, 8), write(2, 18, 31), write(3, 20, 24), read(2, 27, 30)],
        ),
    ];
    for (title, ops) in good {
        assert_eq!(check(0, &ops, STEPS_MAX), Verdict::Linearizable, "{title}");
    }
}

#[test]
fn histories_of_no_register_are_refused() {
    let bad: [(&str, Vec<Op<Value>>); 11] = [
        ("a value never written", vec![read(1, 1, 2)]),
        ("a stale read", vec![write(1, 1, 2), read(0, 3, 4)]),
        ("new, then old, during the write", vec![write(1, 1, 9), read(1, 2, 3), read(0, 4, 5)]),
        ("a value of the future", vec![read(1, 1, 2), write(1, 3, 4)]),
        ("an open write of the future", vec![read(1, 1, 2), perhaps(1, 3)]),
        (
            "an open write that happens twice",
            vec![perhaps(1, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9)],
        ),
        ("two readers disagree on the order of two writes", {
            let writes = [write(1, 1, 20), write(2, 1, 20)];
            let readers = [read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)];
            [&writes[..], &readers[..]].concat()
        }),
        ("a write between is skipped", vec![write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]),
        ("none of the siblings", vec![write(1, 1, 2), one_of(&[0, 2], 3, 4)]),
        (
            "siblings chosen one way, then the other",
            vec![write(1, 1, 9), one_of(&[1, 5], 2, 3), one_of(&[0, 5], 4, 5)],
        ),
        ("the figure", {
            vec![
                write(1, 1, 7),
                read(1, 4, 8),
                write(2, 18, 31),
                write(3, 20, 24),
                read(2, 27, 30),
                read(4, 27, 30),
            ]
        }),
    ];
    for (title, ops) in bad {
        assert!(matches!(check(0, &ops, STEPS_MAX), Verdict::NotLinearizable { .. }), "{title}");
    }
}

#[test]
fn one_client_s_order_counts_where_times_do_not_tell() {
    let tied = [write(1, 1, 5), read(0, 5, 6)];
    assert_eq!(check(0, &tied, STEPS_MAX), Verdict::Linearizable);
    let ordered = [write(1, 1, 5), after(0, read(0, 5, 6))];
    assert_eq!(check(0, &ordered, STEPS_MAX), Verdict::NotLinearizable { stuck: vec![1] });
}

#[test]
fn the_place_where_it_got_stuck_is_named() {
    let ops = [write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(1, 7, 8), read(2, 9, 10)];
    assert_eq!(check(0, &ops, STEPS_MAX), Verdict::NotLinearizable { stuck: vec![3] });
}

#[test]
fn a_search_that_takes_too_long_is_given_up() {
    let mut ops: Vec<_> = (1..=16).map(|value| write(value, 1, 100)).collect();
    ops.push(read(99, 2, 101));
    assert_eq!(check(0, &ops, 1_000), Verdict::Inconclusive);
}

/// Every order there is, without a thought.
fn brute_force(value: Value, ops: &[Op<Value>], done: &mut Vec<bool>) -> bool {
    let open_and_must = |at: usize, done: &[bool]| !done[at] && ops[at].returned.is_some();
    if (0..ops.len()).all(|at| !open_and_must(at, done)) {
        return true;
    }
    for at in (0..ops.len()).filter(|&at| !done[at]).collect::<Vec<_>>() {
        let op = &ops[at];
        let must_wait = (0..ops.len())
            .any(|first| open_and_must(first, done) && ops[first].returned < Some(op.called))
            || op.after.is_some_and(|first| open_and_must(first, done));
        let next = match &op.kind {
            Kind::Write(new) => Some(*new),
            Kind::Read(values) => values.contains(&value).then_some(value),
        };
        if let Some(next) = next.filter(|_| !must_wait) {
            done[at] = true;
            let explained = brute_force(next, ops, done);
            done[at] = false;
            if explained {
                return true;
            }
        }
    }
    false
}

fn any_op(place: usize) -> impl Strategy<Value = Op<Value>> {
    let value = 0..4u32;
    let kind = prop_oneof![
        value.clone().prop_map(Kind::Write),
        value.clone().prop_map(|value| Kind::Read(vec![value])),
        prop::collection::vec(value, 1..3).prop_map(Kind::Read),
    ];
    let after = prop::option::weighted(0.1, 0..place.max(1));
    (kind, 0..12u64, 0..6u64, prop::bool::weighted(0.2), after).prop_map(
        move |(kind, called, lasting, open, after)| {
            let open = open && matches!(kind, Kind::Write(_));
            let returned = (!open).then_some(called + lasting);
            Op { kind, called, returned, after: after.filter(|_| place > 0 && returned.is_some()) }
        },
    )
}

fn any_history() -> impl Strategy<Value = Vec<Op<Value>>> {
    (1..8usize).prop_flat_map(|len| (0..len).map(any_op).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn it_agrees_with_trying_every_order(ops in any_history()) {
        let expected = brute_force(0, &ops, &mut vec![false; ops.len()]);
        let found = check(0, &ops, STEPS_MAX);
        prop_assert_eq!(found == Verdict::Linearizable, expected, "{:?}", found);
        prop_assert_ne!(found, Verdict::Inconclusive);
    }
}

/// What `clients` would see of a real register, each doing one thing after the other; some writes return too late.
fn played(seed: u64, len: usize, clients: usize) -> Vec<Op<Value>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut free_at = vec![0u64; clients];
    let mut moments = Vec::with_capacity(len);
    for nth in 0..len {
        let client = nth % clients;
        let called = free_at[client] + random.random_range(1..20);
        let moment = called + random.random_range(0..40);
        let returned = moment + random.random_range(0..40);
        free_at[client] = returned;
        moments.push((moment, nth, called, returned, random.random_bool(0.5)));
    }
    moments.sort_unstable();
    let mut value = 0;
    let mut ops = Vec::with_capacity(len);
    for (_, nth, called, returned, writes) in moments {
        if writes {
            value = Value::try_from(nth).expect("few operations") + 1;
            ops.push(if random.random_bool(0.002) {
                perhaps(value, called)
            } else {
                write(value, called, returned)
            });
        } else {
            ops.push(read(value, called, returned));
        }
    }
    ops
}

#[test]
fn ten_thousand_operations_of_five_clients_are_no_trouble() {
    let mut ops = played(1, 10_000, 5);
    assert_eq!(check(0, &ops, STEPS_MAX), Verdict::Linearizable);
    let stale = ops.iter().rposition(|op| matches!(op.kind, Kind::Read(_))).expect("there are reads");
    ops[stale].kind = Kind::Read(vec![0]);
    assert!(matches!(check(0, &ops, STEPS_MAX), Verdict::NotLinearizable { .. }));
}
