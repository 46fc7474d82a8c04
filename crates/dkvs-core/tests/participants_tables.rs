//! Who may fill whose slot, and what a filled slot is worth in the quorum folds.

use std::collections::BTreeSet;

use bytes::Bytes;
use dkvs_core::hlc::Hlc;
use dkvs_core::participants::Participants;
use dkvs_core::quorum::{Progress, ReadQuorum, WriteQuorum};
use dkvs_core::record::{Body, OpId, Record, Write};
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Actor, Dot, VersionVector};

fn servers(numbers: &[u16]) -> Vec<ServerIndex> {
    numbers.iter().copied().map(ServerIndex::new).collect()
}

fn server(number: u16) -> ServerIndex {
    ServerIndex::new(number)
}

/// The preference list 10 20 30 | 40 50 60, the servers that are down, who coordinates, and who then stands in for 10, 20, 30.
#[test]
fn the_next_servers_that_are_up_stand_in_in_order() {
    let preference = servers(&[10, 20, 30, 40, 50, 60]);
    for (down, coordinator, expected) in [
        (&[][..], 10, [Some(40), Some(50), Some(60)]),
        (&[40], 10, [Some(50), Some(60), None]),
        (&[40, 50, 60], 10, [None; 3]),
        (&[], 50, [Some(50), Some(40), Some(60)]),
        (&[10, 20, 30, 40], 60, [Some(60), Some(50), None]),
        (&[], 70, [Some(40), Some(50), Some(60)]),
    ] {
        let mut participants = Participants::sloppy(&preference, 3, server(coordinator));
        assert_eq!(participants.owners(), servers(&[10, 20, 30]));
        let stand_ins = [10, 20, 30]
            .map(|owner| participants.stand_in_for(server(owner), |server| !down.contains(&server.number())));
        assert_eq!(stand_ins, expected.map(|stand_in| stand_in.map(server)), "{down:?}, {coordinator}");
    }
}

#[test]
fn a_server_fills_one_slot_however_often_it_is_asked_for_and_an_owner_only_its_own() {
    let preference = servers(&[10, 20, 30, 40, 50]);
    for n in 1..=5 {
        let mut participants = Participants::sloppy(&preference, n, server(10));
        let mut named = BTreeSet::new();
        for _ in 0..10 {
            let stand_in = participants.stand_in_for(server(10), |_| true);
            assert!(stand_in.is_none_or(|stand_in| !preference[..n].contains(&stand_in)));
            assert!(stand_in.is_none_or(|stand_in| named.insert(stand_in)));
        }
        assert_eq!(named.len(), 5 - n);
    }
}

#[test]
fn nobody_stands_in_in_a_strict_request_or_for_a_server_that_owns_nothing() {
    let mut strict = Participants::strict(&servers(&[10, 20]));
    assert_eq!(strict.stand_in_for(server(10), |_| true), None);
    let mut sloppy = Participants::sloppy(&servers(&[10, 20, 30]), 2, server(10));
    assert_eq!(sloppy.stand_in_for(server(30), |_| true), None);
    assert_eq!(sloppy.stand_in_for(server(10), |_| true), Some(server(30)), "it is still there");
}

/// One that was down when it was looked for may be up later.
#[test]
fn whoever_was_passed_over_may_stand_in_later() {
    let mut participants = Participants::sloppy(&servers(&[10, 20, 30]), 1, server(10));
    assert_eq!(participants.stand_in_for(server(10), |up| up == server(30)), Some(server(30)));
    assert_eq!(participants.stand_in_for(server(10), |_| true), Some(server(20)));
}

// ------------------------------------------------------------------------------------------------------------- folds

fn record(counter: u64) -> Record {
    let mut record = Record::new();
    let op = OpId { client: 1, sequence: counter };
    let write = Write { op, hlc: Hlc::default(), expires: None, body: Body::Value(Bytes::new()) };
    record.event(
        &VersionVector::new(),
        Dot { actor: Actor { incarnation: counter, epoch: 1 }, counter: 1 },
        write,
    );
    record
}

#[test]
fn a_slot_counts_once_whoever_fills_it() {
    let (owners, dot) =
        (servers(&[10, 20, 30]), Dot { actor: Actor { incarnation: 1, epoch: 1 }, counter: 1 });
    let mut quorum: WriteQuorum<&str> = WriteQuorum::new(&owners, 2);
    assert_eq!(quorum.stood_in(server(10), server(40), &[]), Progress::Pending, "it was not asked");
    quorum.stand_in_asked(server(10));
    assert_eq!(quorum.stood_in(server(10), server(40), &[dot]), Progress::Pending);
    assert_eq!(quorum.stand_ins().collect::<Vec<_>>(), [(server(10), server(40))]);
    assert!(quorum.missed().covers(dot));
    assert_eq!(quorum.acked(server(10), &[]), Progress::Pending, "the owner's slot was filled already");
    assert_eq!(quorum.stand_ins().count(), 0, "the owner counts itself");
    assert_eq!(quorum.acked(server(20), &[]), Progress::Reached);
}

#[test]
fn a_slot_is_lost_only_when_neither_the_owner_nor_a_stand_in_may_fill_it() {
    let mut quorum: WriteQuorum<&str> = WriteQuorum::new(&servers(&[10, 20]), 2);
    quorum.stand_in_asked(server(10));
    quorum.stand_in_asked(server(30));
    assert_eq!(quorum.failed(server(10), "down"), Progress::Pending);
    assert_eq!(quorum.nobody_stands_in(server(10)), Progress::Unreachable);
    quorum.stand_in_asked(server(10));
    assert_eq!(quorum.progress(), Progress::Pending, "another was asked");
    quorum.stood_in(server(10), server(40), &[]);
    assert_eq!(quorum.nobody_stands_in(server(10)), Progress::Pending, "what stood in stands in");
    assert_eq!(quorum.acked(server(20), &[]), Progress::Reached);
    assert_eq!(quorum.stand_ins().collect::<Vec<_>>(), [(server(10), server(40))]);
}

#[test]
fn a_read_merges_what_stand_ins_keep_and_repairs_owners_only() {
    let mut quorum: ReadQuorum<&str> = ReadQuorum::new(&servers(&[10, 20, 30]), 2);
    quorum.stand_in_asked(server(10));
    assert_eq!(quorum.stood_in(server(10), server(40), record(1)), Progress::Pending);
    assert_eq!(quorum.target(), None, "one of two");
    assert_eq!(quorum.replied(server(20), record(2)), Progress::Pending);
    let mut target = record(1);
    target.merge(&record(2));
    assert_eq!(quorum.target(), Some(&target));
    assert_eq!(quorum.take_repairs(), [server(20)]);
    assert_eq!(quorum.repaired(server(20)), Progress::Reached);
    assert_eq!(quorum.stand_ins().collect::<Vec<_>>(), [(server(10), server(40))]);
}

#[test]
fn stand_ins_alone_may_answer_a_read_and_an_owner_that_fails_leaves_its_slot_to_one() {
    let mut quorum: ReadQuorum<&str> = ReadQuorum::new(&servers(&[10, 20]), 2);
    quorum.stand_in_asked(server(10));
    quorum.stood_in(server(10), server(40), record(1));
    quorum.stand_in_asked(server(20));
    assert_eq!(quorum.failed(server(20), "down"), Progress::Pending);
    assert_eq!(quorum.stood_in(server(20), server(50), Record::new()), Progress::Reached);
    assert_eq!(quorum.target(), Some(&record(1)));
    assert_eq!(quorum.stand_ins().count(), 2);
    assert!(quorum.take_repairs().is_empty());
}
