//! Random messages and records, of every sort.

use std::collections::BTreeMap;

use bytes::Bytes;
use dkvs_core::hash_tree::EntryHash;
use dkvs_core::hlc::Hlc;
use dkvs_core::position::Partition;
use dkvs_core::record::{Body, OpId, Record, RecordHash, Sibling, Write};
use dkvs_core::ring::RingId;
use dkvs_core::servers::ServerIndex;
use dkvs_core::version::{Actor, Dot, VersionVector};
use dkvs_proto::codec;
use dkvs_proto::message::admin::{
    AdminAnswer, AdminRequest, HintReport, KeyReport, Liveness, PeerReport, RingReport, RingServer,
    ScanEntry, ScanPage, SiblingReport, SiblingState, StatusReport,
};
use dkvs_proto::message::client::{
    ClientAnswer, ClientRequest, Failure, Get, GetDone, OwnerAnswer, Put, PutBody, PutDone, QuorumMissed,
    StandIn, Token,
};
use dkvs_proto::message::reap::{ReapKey, ReapRequest, ReapStep};
use dkvs_proto::message::repair::{Compare, RepairAnswer, RepairRequest};
use dkvs_proto::message::replica::{Cause, ReplicaAnswer, ReplicaRequest};
use dkvs_proto::message::{Answer, Durability, Refusal, Request};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

/// So many cases. A failing one is printed and not kept: proptest finds no place for its file beside these tests.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Small and large numbers, so that every length of a variable-length integer is met.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300_u64, 65_000..66_000_u64, 0xffff_ff00..0x1_0000_0100_u64, any::<u64>()]
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 240..300)].prop_map(Bytes::from)
}

fn text() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn ring() -> impl Strategy<Value = RingId> {
    number().prop_map(RingId::from_bits)
}

fn token() -> impl Strategy<Value = Token> {
    bytes().prop_map(Token)
}

fn op() -> impl Strategy<Value = OpId> {
    (number(), number()).prop_map(|(client, sequence)| OpId { client, sequence })
}

fn server() -> impl Strategy<Value = ServerIndex> {
    any::<u16>().prop_map(ServerIndex::new)
}

fn actor() -> impl Strategy<Value = Actor> {
    // Few actors, so that some dots share one.
    (0..4_u64, 1..4_u32).prop_map(|(incarnation, epoch)| Actor { incarnation: incarnation << 60, epoch })
}

pub(crate) fn dot() -> impl Strategy<Value = Dot> {
    (actor(), 1..=u64::MAX).prop_map(|(actor, counter)| Dot { actor, counter })
}

pub(crate) fn vector() -> impl Strategy<Value = VersionVector> {
    let initial = bytes().prop_map(|value| Dot { actor: Actor::initial(b"k", &value), counter: 1 });
    let of = |dots: Vec<Dot>| dots.into_iter().collect();
    prop_oneof![9 => vec(dot(), 0..6).prop_map(of), 1 => vec(initial, 0..3).prop_map(of)]
}

fn write() -> impl Strategy<Value = Write> {
    let body = prop_oneof![3 => bytes().prop_map(Body::Value), 1 => Just(Body::Tombstone)];
    (op(), any::<u64>(), option::of(any::<u64>()), body).prop_map(|(op, hlc, expires, body)| Write {
        op,
        hlc: Hlc::from_bits(hlc),
        expires,
        body,
    })
}

pub(crate) fn record() -> impl Strategy<Value = Record> {
    let put =
        (vector(), btree_map(dot(), write(), 0..6)).prop_map(|(vv, siblings): (_, BTreeMap<Dot, Write>)| {
            let siblings = siblings.into_iter().map(|(dot, write)| Sibling { dot, write }).collect();
            Record::from_parts(vv, siblings).expect("no dot stands twice in a map")
        });
    prop_oneof![9 => put, 1 => bytes().prop_map(|value| Record::initial(b"k", value))]
}

fn hash() -> impl Strategy<Value = RecordHash> {
    any::<[u8; 16]>().prop_map(|bytes| codec::decode(&bytes).expect("a hash is any 16 bytes"))
}

fn put_body() -> impl Strategy<Value = PutBody> {
    prop_oneof![bytes().prop_map(PutBody::Value), Just(PutBody::Tombstone)]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        Just(Refusal::Overloaded),
        ring().prop_map(|ring| Refusal::WrongRing { ring }),
        Just(Refusal::NotOwner),
        Just(Refusal::BadContext),
        (text(), number(), number()).prop_map(|(what, len, len_max)| Refusal::TooLong { what, len, len_max }),
        text().prop_map(Refusal::Invalid),
        text().prop_map(Refusal::Storage),
        Just(Refusal::Stopping),
        (text(), number(), number()).prop_map(|(path, free, needed)| Refusal::DiskFull {
            path,
            free,
            needed
        }),
        Just(Refusal::Damaged),
        (any::<u32>(), any::<u32>(), token()).prop_map(|(siblings, siblings_max, context)| {
            Refusal::TooManySiblings { siblings, siblings_max, context }
        }),
    ]
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Durability::Memory), Just(Durability::Interval), Just(Durability::Fsync)]
}

fn client_request() -> impl Strategy<Value = ClientRequest> {
    let numbers = (any::<u16>(), any::<u16>(), any::<u32>(), any::<bool>(), any::<bool>());
    prop_oneof![
        (ring(), bytes(), put_body(), option::of(token()), op(), numbers, durability(), option::of(number()))
            .prop_map(|(ring, key, body, context, op, numbers, durability, ttl_ms)| {
                let (n, w, timeout_ms, forwarded, sloppy) = numbers;
                ClientRequest::Put(Put {
                    ring,
                    key,
                    body,
                    context,
                    n,
                    w,
                    op,
                    timeout_ms,
                    forwarded,
                    durability,
                    ttl_ms,
                    sloppy,
                })
            }),
        (ring(), bytes(), numbers).prop_map(|(ring, key, (n, r, timeout_ms, siblings, sloppy))| {
            ClientRequest::Get(Get { ring, key, n, r, timeout_ms, siblings, sloppy })
        }),
    ]
}

fn stand_ins() -> impl Strategy<Value = Vec<StandIn>> {
    vec((server(), server()).prop_map(|(server, owner)| StandIn { server, owner }), 0..3)
}

fn client_answer() -> impl Strategy<Value = ClientAnswer> {
    let owner_answer = prop_oneof![
        Just(OwnerAnswer::Ok),
        Just(OwnerAnswer::TimedOut),
        refusal().prop_map(OwnerAnswer::Refused)
    ];
    prop_oneof![
        (vec(server(), 0..5), token(), stand_ins())
            .prop_map(|(acked, context, stand_ins)| ClientAnswer::Put(PutDone { acked, context, stand_ins })),
        (vec(put_body(), 0..5), any::<u32>(), option::of(token()), vec(server(), 0..5), stand_ins())
            .prop_map(|(values, siblings, context, answered, stand_ins)| {
                ClientAnswer::Get(GetDone { values, siblings, context, answered, stand_ins })
            }),
        refusal().prop_map(|refusal| ClientAnswer::Failed(Failure::Refused(refusal))),
        (any::<u16>(), vec((server(), owner_answer), 0..5), any::<u32>(), stand_ins()).prop_map(
            |(needed, owners, waited_ms, stand_ins)| {
                let missed = QuorumMissed { needed, owners, waited_ms, stand_ins };
                ClientAnswer::Failed(Failure::Quorum(missed))
            }
        ),
    ]
}

fn replica_request() -> impl Strategy<Value = ReplicaRequest> {
    prop_oneof![
        (ring(), bytes(), record(), durability(), prop_oneof![Just(Cause::Put), Just(Cause::Upkeep)])
            .prop_map(|(ring, key, record, durability, cause)| ReplicaRequest::Merge {
                ring,
                key,
                record,
                durability,
                cause
            }),
        (ring(), bytes(), hash()).prop_map(|(ring, key, known)| ReplicaRequest::Fetch { ring, key, known }),
        Just(ReplicaRequest::Ping),
        (ring(), bytes(), record(), server(), durability()).prop_map(
            |(ring, key, record, owner, durability)| ReplicaRequest::MergeHint {
                ring,
                key,
                record,
                owner,
                durability,
                cause: Cause::Put
            }
        ),
        (ring(), bytes(), hash()).prop_map(|(ring, key, known)| ReplicaRequest::FetchHints {
            ring,
            key,
            known
        }),
        repair_request().prop_map(ReplicaRequest::Repair),
        reap_request().prop_map(ReplicaRequest::Reap),
    ]
}

fn replica_answer() -> impl Strategy<Value = ReplicaAnswer> {
    prop_oneof![
        vec(dot(), 0..5).prop_map(|missed| ReplicaAnswer::Merged { missed }),
        Just(ReplicaAnswer::Same),
        record().prop_map(ReplicaAnswer::Record),
        refusal().prop_map(ReplicaAnswer::Refused),
        Just(ReplicaAnswer::Alive),
        repair_answer().prop_map(ReplicaAnswer::Repair),
        vec(any::<u32>(), 0..5).prop_map(ReplicaAnswer::Reap),
        record().prop_map(ReplicaAnswer::Incomplete),
    ]
}

fn entry_hash() -> impl Strategy<Value = EntryHash> {
    any::<[u8; 16]>().prop_map(EntryHash::from_bytes)
}

fn repair_request() -> impl Strategy<Value = RepairRequest> {
    let partition = any::<u16>().prop_map(Partition::new);
    let compare = prop_oneof![
        (any::<u8>(), vec((any::<u16>(), entry_hash()), 0..5))
            .prop_map(|(level, nodes)| Compare::Hashes { level, nodes }),
        (partition, bytes(), bytes(), vec(entry_hash(), 0..5))
            .prop_map(|(partition, after, last, entries)| Compare::Keys { partition, after, last, entries }),
        Just(Compare::Done),
    ];
    (ring(), server(), compare).prop_map(|(ring, from, compare)| RepairRequest { ring, from, compare })
}

fn repair_answer() -> impl Strategy<Value = RepairAnswer> {
    prop_oneof![
        vec(any::<u16>(), 0..5).prop_map(RepairAnswer::Differing),
        (vec(bytes(), 0..5), vec(any::<u32>(), 0..5), bytes())
            .prop_map(|(theirs, yours, last)| RepairAnswer::Keys { theirs, yours, last }),
        Just(RepairAnswer::NotBuilt),
        Just(RepairAnswer::Busy),
        Just(RepairAnswer::Done),
    ]
}

fn reap_request() -> impl Strategy<Value = ReapRequest> {
    let step =
        prop::sample::select(vec![ReapStep::Watch, ReapStep::Fence, ReapStep::Confirm, ReapStep::Reap]);
    let keys = vec((bytes(), hash()).prop_map(|(key, hash)| ReapKey { key, hash }), 0..5);
    (ring(), server(), any::<u64>(), step, keys).prop_map(|(ring, from, round, step, keys)| ReapRequest {
        ring,
        from,
        round,
        step,
        keys,
    })
}

fn admin_request() -> impl Strategy<Value = AdminRequest> {
    prop_oneof![
        Just(AdminRequest::Ring),
        Just(AdminRequest::Status),
        (option::of(token()), any::<u32>())
            .prop_map(|(after, len_max)| AdminRequest::Scan { after, len_max }),
        (ring(), bytes()).prop_map(|(ring, key)| AdminRequest::Explain { ring, key }),
    ]
}

fn admin_answer() -> impl Strategy<Value = AdminAnswer> {
    let server =
        (text(), any::<u16>(), any::<u32>()).prop_map(|(host, port, nodes)| RingServer { host, port, nodes });
    let entry = (bytes(), bytes(), any::<u32>()).prop_map(|(key, value, siblings)| ScanEntry {
        key,
        value,
        siblings,
    });
    let numbers = [(); 13].map(|()| number());
    let liveness = prop_oneof![Just(Liveness::Up), Just(Liveness::Suspect), Just(Liveness::Down)];
    let numbers_of_peer = [(); 6].map(|()| number());
    let peer = (self::server(), liveness, text(), option::of(number()), numbers_of_peer).prop_map(
        |(
            server,
            liveness,
            reason,
            agreed_ms,
            [since_ms, hints, hint_bytes, dirty_partitions, differing_partitions, records_moved],
        )| PeerReport {
            server,
            liveness,
            since_ms,
            reason,
            hints,
            hint_bytes,
            dirty_partitions,
            agreed_ms,
            differing_partitions,
            records_moved,
        },
    );
    prop_oneof![
        (vec(server, 0..5), any::<u16>(), any::<u16>(), any::<u16>(), any::<bool>()).prop_map(
            |(servers, n, r, w, sloppy)| AdminAnswer::Ring(RingReport { servers, n, r, w, sloppy })
        ),
        (text(), ring(), text(), numbers, text(), [(); 2].map(|()| option::of(number())), vec(peer, 0..5))
            .prop_map(|(version, ring, data_dir, numbers, poisoned, [disk_free, converges_ms], peers)| {
                let [uptime_ms, keys, tombstones, bytes, clock_skew_ms, junk_datagrams, rest @ ..] = numbers;
                let [
                    disk_free_min,
                    damaged_found,
                    damaged_waiting,
                    scrubs,
                    siblings_warned,
                    partitions_unread,
                    reaped,
                ] = rest;
                AdminAnswer::Status(StatusReport {
                    version,
                    ring,
                    uptime_ms,
                    keys,
                    tombstones,
                    bytes,
                    data_dir,
                    clock_skew_ms,
                    junk_datagrams,
                    poisoned,
                    disk_free,
                    disk_free_min,
                    damaged_found,
                    damaged_waiting,
                    scrubs,
                    siblings_warned,
                    partitions_unread,
                    reaped,
                    converges_ms,
                    peers,
                })
            }),
        (vec(entry, 0..5), option::of(token()))
            .prop_map(|(entries, next)| AdminAnswer::Page(ScanPage { entries, next })),
        refusal().prop_map(AdminAnswer::Refused),
        key_report().prop_map(AdminAnswer::Key),
    ]
}

fn key_report() -> impl Strategy<Value = KeyReport> {
    let state =
        prop_oneof![Just(SiblingState::Value), Just(SiblingState::Tombstone), Just(SiblingState::Dropped)];
    let sibling = (dot(), op(), any::<u64>(), option::of(number()), state, number()).prop_map(
        |(dot, op, hlc, expires, state, len)| SiblingReport {
            dot,
            op,
            hlc: Hlc::from_bits(hlc),
            expires,
            state,
            len,
        },
    );
    let siblings = vec(sibling, 0..5).boxed();
    let hint = (server(), option::of(hash()), number(), vec(dot(), 0..5), siblings.clone())
        .prop_map(|(target, hash, bytes, vv, siblings)| HintReport { target, hash, bytes, vv, siblings });
    (number(), any::<bool>(), hash(), number(), vec(dot(), 0..5), siblings, vec(hint, 0..5)).prop_map(
        |(clock_ms, is_damaged, hash, bytes, vv, siblings, hints)| KeyReport {
            clock_ms,
            is_damaged,
            hash,
            bytes,
            vv,
            siblings,
            hints,
        },
    )
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        client_request().prop_map(Request::Client),
        replica_request().prop_map(Request::Replica),
        admin_request().prop_map(Request::Admin),
    ]
}

pub(crate) fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        client_answer().prop_map(Answer::Client),
        replica_answer().prop_map(Answer::Replica),
        admin_answer().prop_map(Answer::Admin),
    ]
}
