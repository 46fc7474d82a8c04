//! The bytes of everything that travels or is kept, written out, so that a change of a library cannot change them
//! unnoticed.
//!
//! Spaces in the hex stand between fields and mean nothing. docs/protocol.md prints the same vectors under the same
//! names; a test here holds it to that. They were made by a second, independent encoder written from that page.

use bytes::Bytes;
use dkvs_core::hash_tree::EntryHash;
use dkvs_core::hlc::Hlc;
use dkvs_core::position::Partition;
use dkvs_core::record::{Body, OpId, Record, RecordHash, Sibling, Write};
use dkvs_core::ring::{Ring, RingId};
use dkvs_core::servers::{self as servers_txt, ServerIndex};
use dkvs_core::version::{Actor, Dot, VersionVector};
use dkvs_proto::envelope::{self, DatagramBuilder, Header};
use dkvs_proto::frame::{Frame, Kind};
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
use dkvs_proto::{codec, context, record};

const DOT_A: Dot = Dot { actor: Actor { incarnation: 0xa1a2_a3a4_a5a6_a7a8, epoch: 1 }, counter: 2 };
const DOT_B: Dot = Dot { actor: Actor { incarnation: 0xb1b2_b3b4_b5b6_b7b8, epoch: 3 }, counter: 1 };

const ENTRY_HASH: EntryHash = EntryHash::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn token() -> Token {
    Token(Bytes::from_static(&[0xaa, 0xbb, 0xcc]))
}

fn ring() -> RingId {
    RingId::from_bits(0x1122_3344_5566_7788)
}

fn servers(numbers: &[u16]) -> Vec<ServerIndex> {
    numbers.iter().copied().map(ServerIndex::new).collect()
}

fn stand_in(server: u16, owner: u16) -> StandIn {
    StandIn { server: ServerIndex::new(server), owner: ServerIndex::new(owner) }
}

fn refused(refusal: Refusal) -> Answer {
    Answer::Client(ClientAnswer::Failed(Failure::Refused(refusal)))
}

fn put(body: PutBody, context: Option<Token>, forwarded: bool, ttl_ms: Option<u64>) -> Put {
    let op = OpId { client: 0x0102_0304_0506_0708, sequence: 70_000 };
    Put {
        ring: ring(),
        key: text("key"),
        body,
        context,
        n: 3,
        w: 2,
        op,
        timeout_ms: 1_000,
        forwarded,
        durability: Durability::Fsync,
        ttl_ms,
        sloppy: forwarded,
    }
}

/// A fingerprint with the bytes 0 to 15.
fn hash() -> RecordHash {
    let bytes: Vec<u8> = (0..16).collect();
    codec::decode(&bytes).expect("a hash is any 16 bytes")
}

fn sibling(dot: Dot, op: (u64, u64), hlc: u64, expires: Option<u64>, body: Body) -> Sibling {
    let op = OpId { client: op.0, sequence: op.1 };
    Sibling { dot, write: Write { op, hlc: Hlc::from_bits(hlc), expires, body } }
}

/// One value.
fn small_record() -> Record {
    let value = sibling(DOT_A, (7, 9), 0x10, None, Body::Value(text("v")));
    Record::from_parts(VersionVector::from_iter([DOT_A]), vec![value]).expect("one dot")
}

/// A value, and a tombstone that expires.
fn full_record() -> Record {
    let value = sibling(DOT_A, (7, 9), 0x019a_aabb_ccdd_0001, None, Body::Value(text("blue")));
    let tombstone = sibling(DOT_B, (8, 1), 0x100, Some(0x0000_019b_0000_0000), Body::Tombstone);
    Record::from_parts(VersionVector::from_iter([DOT_A, DOT_B]), vec![tombstone, value]).expect("two dots")
}

fn key_report() -> KeyReport {
    let op = OpId { client: 0x0102_0304_0506_0708, sequence: 70_000 };
    let sibling =
        |dot, expires, state, len| SiblingReport { dot, op, hlc: Hlc::from_bits(251), expires, state, len };
    KeyReport {
        clock_ms: 0x0000_01b9_0000_0000,
        is_damaged: false,
        hash: hash(),
        bytes: 250,
        vv: vec![DOT_A],
        siblings: vec![
            sibling(DOT_A, None, SiblingState::Value, 1_000),
            sibling(DOT_B, Some(0x0000_019b_0000_0000), SiblingState::Dropped, 0),
        ],
        hints: vec![
            HintReport {
                target: ServerIndex::new(1),
                hash: Some(hash()),
                bytes: 251,
                vv: vec![DOT_A],
                siblings: vec![sibling(DOT_A, None, SiblingState::Tombstone, 0)],
            },
            HintReport {
                target: ServerIndex::new(2),
                hash: None,
                bytes: 5,
                vv: Vec::new(),
                siblings: Vec::new(),
            },
        ],
    }
}

/// A name, a message and its bytes.
enum Golden {
    Request(&'static str, Request, &'static str),
    Answer(&'static str, Answer, &'static str),
    /// Bytes that were made in another way.
    Bytes(&'static str, Vec<u8>, &'static str),
}

fn request(name: &'static str, request: Request, hex: &'static str) -> Golden {
    Golden::Request(name, request, hex)
}

fn answer(name: &'static str, answer: Answer, hex: &'static str) -> Golden {
    Golden::Answer(name, answer, hex)
}

#[rustfmt::skip]
fn messages() -> Vec<Golden> {
    vec![
        // 0 Put: ring, key, body (0 Value: bytes), context (1 Some: bytes), n, w, op (client, sequence), timeout, forwarded, durability (2 Fsync), ttl (1 Some), sloppy.
        request("client_request/put", Request::Client(ClientRequest::Put(put(PutBody::Value(text("value")), Some(token()), false, Some(30_000)))),
            "00 fd8877665544332211 036b6579 000576616c7565 0103aabbcc 03 02 fd0807060504030201 \
             fc70110100 fbe803 00 02 01fb3075 00"),
        // 0 Put: ring, key, body (1 Tombstone), context (0 None), n, w, op, timeout, forwarded, durability, ttl (0 None), sloppy.
        request("client_request/put_tombstone", Request::Client(ClientRequest::Put(put(PutBody::Tombstone, None, true, None))),
            "00 fd8877665544332211 036b6579 01 00 03 02 fd0807060504030201 fc70110100 fbe803 01 02 00 01"),
        // 1 Get: ring, key, n, r, timeout, siblings, sloppy.
        request("client_request/get", Request::Client(ClientRequest::Get(Get { ring: ring(), key: text("key"), n: 5, r: 300, timeout_ms: 250, siblings: true, sloppy: true })),
            "01 fd8877665544332211 036b6579 05 fb2c01 fa 01 01"),
        // 0 Put: acked (2 servers), context, stand_ins (none).
        answer("client_answer/put", Answer::Client(ClientAnswer::Put(PutDone { acked: servers(&[0, 511]), context: token(), stand_ins: vec![] })),
            "00 0200fbff01 03aabbcc 00"),
        // 0 Put: acked (1 server), context, stand_ins (2: server, owner).
        answer("client_answer/put_sloppy", Answer::Client(ClientAnswer::Put(PutDone { acked: servers(&[0]), context: token(), stand_ins: vec![stand_in(511, 1), stand_in(4, 250)] })),
            "00 0100 03aabbcc 02fbff010104fa"),
        // 1 Get: values (3: Value, empty Value, Tombstone), siblings, context (Some), answered (2 servers), stand_ins (1).
        answer("client_answer/get", Answer::Client(ClientAnswer::Get(GetDone { values: vec![PutBody::Value(text("value")), PutBody::Value(Bytes::new()), PutBody::Tombstone], siblings: 3, context: Some(token()), answered: servers(&[1, 2]), stand_ins: vec![stand_in(3, 0)] })),
            "01 03000576616c7565000001 03 0103aabbcc 020102 010300"),
        // 1 Get: no values, siblings, context (None), answered (1 server), stand_ins (none).
        answer("client_answer/get_nothing", Answer::Client(ClientAnswer::Get(GetDone { values: vec![], siblings: 0, context: None, answered: servers(&[0]), stand_ins: vec![] })),
            "01 00 00 00 0100 00"),
        // 2 Failed, 1 Quorum: needed, owners (3: server, 0 Ok | 1 TimedOut | 2 Refused and why), waited, stand_ins (1).
        answer("client_answer/failed_quorum", Answer::Client(ClientAnswer::Failed(Failure::Quorum(QuorumMissed { needed: 2, owners: vec![(ServerIndex::new(0), OwnerAnswer::Ok), (ServerIndex::new(1), OwnerAnswer::TimedOut), (ServerIndex::new(251), OwnerAnswer::Refused(Refusal::Overloaded))], waited_ms: 1_000, stand_ins: vec![stand_in(2, 1)] }))),
            "02 01 02 0300000101fbfb000200 fbe803 010201"),
        // 2 Failed, 0 Refused, 0 Overloaded.
        answer("client_answer/failed_refused_overloaded", refused(Refusal::Overloaded),
            "02 00 00"),
        // 2 Failed, 0 Refused, 1 WrongRing: ring.
        answer("client_answer/failed_refused_wrong_ring", refused(Refusal::WrongRing { ring: ring() }),
            "02 00 01 fd8877665544332211"),
        // 2 Failed, 0 Refused, 2 NotOwner.
        answer("client_answer/failed_refused_not_owner", refused(Refusal::NotOwner),
            "02 00 02"),
        // 2 Failed, 0 Refused, 3 BadContext.
        answer("client_answer/failed_refused_bad_context", refused(Refusal::BadContext),
            "02 00 03"),
        // 2 Failed, 0 Refused, 4 TooLong: what, len, len_max.
        answer("client_answer/failed_refused_too_long", refused(Refusal::TooLong { what: "key".into(), len: 40_000, len_max: 32_768 }),
            "02 00 04 036b6579 fb409c fb0080"),
        // 2 Failed, 0 Refused, 5 Invalid: text in UTF-8.
        answer("client_answer/failed_refused_invalid", refused(Refusal::Invalid("n > 3 — no".into())),
            "02 00 05 0c6e203e203320e28094206e6f"),
        // 2 Failed, 0 Refused, 6 Storage: text.
        answer("client_answer/failed_refused_storage", refused(Refusal::Storage("disk full".into())),
            "02 00 06 096469736b2066756c6c"),
        // 2 Failed, 0 Refused, 7 Stopping.
        answer("client_answer/failed_refused_stopping", refused(Refusal::Stopping),
            "02 00 07"),
        // 2 Failed, 0 Refused, 8 DiskFull: path, free, needed.
        answer("client_answer/failed_refused_disk_full", refused(Refusal::DiskFull { path: "/d".into(), free: 300, needed: 1 << 32 }),
            "02 00 08 022f64 fb2c01 fd0000000001000000"),
        // 2 Failed, 0 Refused, 9 Damaged.
        answer("client_answer/failed_refused_damaged", refused(Refusal::Damaged),
            "02 00 09"),
        // 2 Failed, 0 Refused, 10 TooManySiblings: siblings, siblings_max, context.
        answer("client_answer/failed_refused_too_many_siblings", refused(Refusal::TooManySiblings { siblings: 300, siblings_max: 100, context: token() }),
            "02 00 0a fb2c01 64 03aabbcc"),
        // 0 Merge: ring, key, record (a byte string in its own layout), durability (0 Memory), cause (0 Put).
        request("replica_request/merge", Request::Replica(ReplicaRequest::Merge { ring: ring(), key: text("key"), record: small_record(), durability: Durability::Memory, cause: Cause::Put }),
            "00 fd8877665544332211 036b6579 4f0100010001a1a2a3a4a5a6a7a8000000010000000000000002 \
             a1a2a3a4a5a6a7a80000000100000000000000020000000000000007000000000000000900000000000 \
             00010000000000176beeb5d78 00 00"),
        // 1 Fetch: ring, key, known (16 bytes without a length).
        request("replica_request/fetch", Request::Replica(ReplicaRequest::Fetch { ring: ring(), key: text("key"), known: hash() }),
            "01 fd8877665544332211 036b6579 000102030405060708090a0b0c0d0e0f"),
        // 2 Ping.
        request("replica_request/ping", Request::Replica(ReplicaRequest::Ping),
            "02"),
        // 3 MergeHint: ring, key, record, owner, durability (2 Fsync), cause (1 Upkeep).
        request("replica_request/merge_hint", Request::Replica(ReplicaRequest::MergeHint { ring: ring(), key: text("key"), record: Record::new(), owner: ServerIndex::new(300), durability: Durability::Fsync, cause: Cause::Upkeep }),
            "03 fd8877665544332211 036b6579 090100000000fb42dead fb2c01 02 01"),
        // 4 FetchHints: ring, key, known.
        request("replica_request/fetch_hints", Request::Replica(ReplicaRequest::FetchHints { ring: ring(), key: text("key"), known: hash() }),
            "04 fd8877665544332211 036b6579 000102030405060708090a0b0c0d0e0f"),
        // 5 Repair: ring, from, compare (0 Hashes: level, nodes (1: digits, hash)).
        request("replica_request/repair_hashes", Request::Replica(ReplicaRequest::Repair(RepairRequest { ring: ring(), from: ServerIndex::new(2), compare: Compare::Hashes { level: 4, nodes: vec![(0xdbdb, ENTRY_HASH)] } })),
            "05 fd8877665544332211 02 00 04 01 fbdbdb 000102030405060708090a0b0c0d0e0f"),
        // 5 Repair: ring, from, compare (1 Keys: partition, after, last, entries (1)).
        request("replica_request/repair_keys", Request::Replica(ReplicaRequest::Repair(RepairRequest { ring: ring(), from: ServerIndex::new(2), compare: Compare::Keys { partition: Partition::new(7), after: Bytes::new(), last: text("key"), entries: vec![ENTRY_HASH] } })),
            "05 fd8877665544332211 02 01 07 00 036b6579 01 000102030405060708090a0b0c0d0e0f"),
        // 5 Repair: ring, from, compare (2 Done).
        request("replica_request/repair_done", Request::Replica(ReplicaRequest::Repair(RepairRequest { ring: ring(), from: ServerIndex::new(2), compare: Compare::Done })),
            "05 fd8877665544332211 02 02"),
        // 6 Reap: ring, from, round, step (2 Confirm), keys (1: key, hash).
        request("replica_request/reap", Request::Replica(ReplicaRequest::Reap(ReapRequest { ring: ring(), from: ServerIndex::new(2), round: 65_536, step: ReapStep::Confirm, keys: vec![ReapKey { key: text("key"), hash: hash() }] })),
            "06 fd8877665544332211 02 fc00000100 02 01 036b6579 000102030405060708090a0b0c0d0e0f"),
        // 0 Merged: missed (2 dots: incarnation, epoch, counter).
        answer("replica_answer/merged", Answer::Replica(ReplicaAnswer::Merged { missed: vec![DOT_A, Dot { actor: Actor { incarnation: 1, epoch: 2 }, counter: 65_536 }] }),
            "00 02 fda8a7a6a5a4a3a2a10102 0102fc00000100"),
        // 1 Same.
        answer("replica_answer/same", Answer::Replica(ReplicaAnswer::Same),
            "01"),
        // 2 Record: record.
        answer("replica_answer/record", Answer::Replica(ReplicaAnswer::Record(small_record())),
            "02 4f0100010001a1a2a3a4a5a6a7a8000000010000000000000002a1a2a3a4a5a6a7a8000000010000 \
             000000000002000000000000000700000000000000090000000000000010000000000176beeb5d78"),
        // 3 Refused, 7 Stopping.
        answer("replica_answer/refused", Answer::Replica(ReplicaAnswer::Refused(Refusal::Stopping)),
            "03 07"),
        // 4 Alive.
        answer("replica_answer/alive", Answer::Replica(ReplicaAnswer::Alive),
            "04"),
        // 5 Repair, 0 Differing: digits (2).
        answer("replica_answer/repair_differing", Answer::Replica(ReplicaAnswer::Repair(RepairAnswer::Differing(vec![7, 0xdbdb]))),
            "05 00 02 07 fbdbdb"),
        // 5 Repair, 1 Keys: theirs (1), yours (2), last.
        answer("replica_answer/repair_keys", Answer::Replica(ReplicaAnswer::Repair(RepairAnswer::Keys { theirs: vec![text("key")], yours: vec![0, 251], last: Bytes::new() })),
            "05 01 01 036b6579 02 00 fbfb00 00"),
        // 5 Repair, 2 NotBuilt.
        answer("replica_answer/repair_not_built", Answer::Replica(ReplicaAnswer::Repair(RepairAnswer::NotBuilt)),
            "05 02"),
        // 5 Repair, 3 Busy.
        answer("replica_answer/repair_busy", Answer::Replica(ReplicaAnswer::Repair(RepairAnswer::Busy)),
            "05 03"),
        // 5 Repair, 4 Done.
        answer("replica_answer/repair_done", Answer::Replica(ReplicaAnswer::Repair(RepairAnswer::Done)),
            "05 04"),
        // 6 Reap: places (2).
        answer("replica_answer/reap", Answer::Replica(ReplicaAnswer::Reap(vec![0, 251])),
            "06 02 00 fbfb00"),
        // 7 Incomplete: record.
        answer("replica_answer/incomplete", Answer::Replica(ReplicaAnswer::Incomplete(small_record())),
            "07 4f0100010001a1a2a3a4a5a6a7a8000000010000000000000002a1a2a3a4a5a6a7a8000000010000 \
             000000000002000000000000000700000000000000090000000000000010000000000176beeb5d78"),
        // 0 Ring.
        request("admin_request/ring", Request::Admin(AdminRequest::Ring),
            "00"),
        // 1 Status.
        request("admin_request/status", Request::Admin(AdminRequest::Status),
            "01"),
        // 2 Scan: after (None), len_max.
        request("admin_request/scan_first", Request::Admin(AdminRequest::Scan { after: None, len_max: 65_536 }),
            "02 00 fc00000100"),
        // 2 Scan: after (Some), len_max.
        request("admin_request/scan_next", Request::Admin(AdminRequest::Scan { after: Some(token()), len_max: 65_536 }),
            "02 0103aabbcc fc00000100"),
        // 3 Explain: ring, key.
        request("admin_request/explain", Request::Admin(AdminRequest::Explain { ring: ring(), key: text("key") }),
            "03 fd8877665544332211 036b6579"),
        // 0 Ring: servers (2: host, port, nodes), n, r, w, sloppy.
        answer("admin_answer/ring", Answer::Admin(AdminAnswer::Ring(RingReport { servers: vec![RingServer { host: "127.0.0.1".into(), port: 1234, nodes: 1 }, RingServer { host: "::1".into(), port: 1235, nodes: 65_536 }], n: 3, r: 2, w: 2, sloppy: true })),
            "00 02 093132372e302e302e31fbd20401 033a3a31fbd304fc00000100 03 02 02 01"),
        // 1 Status: version, ring, uptime_ms, keys, tombstones, bytes, data_dir, clock_skew_ms, junk_datagrams, poisoned,
        // disk_free (Some), disk_free_min, damaged_found, damaged_waiting, scrubs, siblings_warned,
        // partitions_unread, reaped, converges_ms (Some), peers (1: server, liveness, since_ms, reason, hints, hint_bytes, dirty_partitions, agreed_ms (Some),
        // differing_partitions, records_moved).
        answer("admin_answer/status", Answer::Admin(AdminAnswer::Status(StatusReport { version: "0.1.0".into(), ring: ring(), uptime_ms: 1, keys: 250, tombstones: 251, bytes: 65_535, data_dir: String::new(), clock_skew_ms: 65_536, junk_datagrams: 1 << 32, poisoned: "bad".into(), disk_free: Some(251), disk_free_min: 250, damaged_found: 3, damaged_waiting: 2, scrubs: 1, siblings_warned: 4, partitions_unread: 7, reaped: 252, converges_ms: Some(60_000), peers: vec![PeerReport { server: ServerIndex::new(2), liveness: Liveness::Down, since_ms: 251, reason: "late".into(), hints: 5, hint_bytes: 65_536, dirty_partitions: 6, agreed_ms: Some(251), differing_partitions: 8, records_moved: 9 }] })),
            "01 05302e312e30 fd8877665544332211 01 fa fbfb00 fbffff 00 fc00000100 \
             fd0000000001000000 03626164 01fbfb00 fa 03 02 01 04 07 fbfc00 01fb60ea \
             01 02 02 fbfb00 046c617465 05 fc00000100 06 01fbfb00 08 09"),
        // 2 Page: entries (1: key, value, siblings), next (Some).
        answer("admin_answer/page", Answer::Admin(AdminAnswer::Page(ScanPage { entries: vec![ScanEntry { key: text("key"), value: text("value"), siblings: 2 }], next: Some(token()) })),
            "02 01 036b6579 0576616c7565 02 0103aabbcc"),
        // 3 Refused, 0 Overloaded.
        answer("admin_answer/refused", Answer::Admin(AdminAnswer::Refused(Refusal::Overloaded)),
            "03 00"),
        // 4 Key: clock_ms, is_damaged, hash (16 bytes), bytes, vv (1 dot), siblings (2: dot, op, hlc, expires, state, len), hints (2:
        // target, hash, bytes, vv, siblings).
        answer("admin_answer/key", Answer::Admin(AdminAnswer::Key(key_report())),
            "04 fd00000000b9010000 00 000102030405060708090a0b0c0d0e0f fa 01 fda8a7a6a5a4a3a2a10102 \
             02 fda8a7a6a5a4a3a2a10102 fd0807060504030201 fc70110100 fbfb00 00 00 fbe803 \
             fdb8b7b6b5b4b3b2b10301 fd0807060504030201 fc70110100 fbfb00 01fd000000009b010000 02 00 \
             02 01 01000102030405060708090a0b0c0d0e0f fbfb00 01 fda8a7a6a5a4a3a2a10102 \
             01 fda8a7a6a5a4a3a2a10102 fd0807060504030201 fc70110100 fbfb00 00 01 00 \
             02 00 05 00 00"),
    ]
}

const SESSION: u64 = 0x0102_0304_0506_0708;
const PROOF: u64 = 0x2122_2324_2526_2728;
const STATUS: Frame<'_> = Frame { kind: Kind::AdminRequest, id: 7, expires: 1_234, body: &[1] };

fn datagram(header: Header, frames: &[Frame<'_>], padding: usize) -> Vec<u8> {
    let mut builder = DatagramBuilder::new(header);
    frames.iter().for_each(|frame| builder.push(frame));
    let len = builder.len();
    builder.finish(len + padding)
}

fn one_server_ring() -> Ring {
    Ring::new(servers_txt::parse("127.0.0.1\t1234  1 # one", "servers.txt").expect("a valid list"))
}

/// A frame as it stands on a stream, with its CRC-32.
fn on_stream(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes
}

#[rustfmt::skip]
fn layouts() -> Vec<Golden> {
    let from = |session, proof, oldest| Header { session, proof, oldest };
    let ring = Frame { kind: Kind::AdminRequest, id: 8, expires: 0, body: &[0] };
    let challenge = Frame::answer(Kind::Challenge, 7, &[]);
    vec![
        // magic, version, flags, crc, session, proof, oldest, then the frame: kind, id, length, expiry, body.
        Golden::Bytes("datagram/request", datagram(from(SESSION, 0, 7), &[STATUS], 0),
            "444b 01 00 e92bcb21 0102030405060708 0000000000000000 0000000000000007 03 0000000000000007 \
             00000001 00000000000004d2 01"),
        // The answer to it: the server's session, the proof to use, the server's clock, a frame without a body.
        Golden::Bytes("datagram/challenge", datagram(from(0x1112_1314_1516_1718, PROOF, 1_000), &[challenge], 0),
            "444b 01 00 06dde78a 1112131415161718 2122232425262728 00000000000003e8 c0 0000000000000007 \
             00000000"),
        // Two frames and five bytes of padding.
        Golden::Bytes("datagram/two_frames_padded", datagram(from(SESSION, PROOF, 7), &[STATUS, ring], 5),
            "444b 01 00 5448ed3f 0102030405060708 2122232425262728 0000000000000007 03 0000000000000007 \
             00000001 00000000000004d2 01 03 0000000000000008 00000001 0000000000000000 00 0000000000"),
        // magic, version, flags, crc, session.
        Golden::Bytes("stream/preface", envelope::stream_preface(SESSION).to_vec(),
            "444b 01 01 3fca88c5 0102030405060708"),
        // kind, id, length, expiry, body, crc.
        Golden::Bytes("stream/frame", on_stream(&STATUS),
            "03 0000000000000007 00000001 00000000000004d2 01 d85ee289"),
        // version, entries, siblings, two entries, a value (dot, client, sequence, hlc, flags, length, bytes), a tombstone
        // that expires (dot, client, sequence, hlc, flags, expiry), crc.
        Golden::Bytes("record/full", record::to_vec(&full_record()),
            "01 0002 0002 a1a2a3a4a5a6a7a8000000010000000000000002 \
             b1b2b3b4b5b6b7b8000000030000000000000001 a1a2a3a4a5a6a7a8000000010000000000000002 \
             0000000000000007 0000000000000009 019aaabbccdd0001 00 00000004 626c7565 \
             b1b2b3b4b5b6b7b8000000030000000000000001 0000000000000008 0000000000000001 \
             0000000000000100 03 0000019b00000000 b94ea127"),
        Golden::Bytes("record/empty", record::to_vec(&Record::new()),
            "01 0000 0000 fb42dead"),
        Golden::Bytes("record/one", record::to_vec(&small_record()),
            "01 0001 0001 a1a2a3a4a5a6a7a8000000010000000000000002 \
             a1a2a3a4a5a6a7a8000000010000000000000002 0000000000000007 0000000000000009 \
             0000000000000010 00 00000001 76 beeb5d78"),
        // version, entries, two entries, crc with the key "k".
        Golden::Bytes("context/two_actors", context::encode(b"k", full_record().vv()).to_vec(),
            "01 0002 a1a2a3a4a5a6a7a8000000010000000000000002 \
             b1b2b3b4b5b6b7b8000000030000000000000001 e4b67012"),
        // A list of one server: "127.0.0.1 1234 1" and a line feed.
        Golden::Bytes("ring_id/one_server", one_server_ring().id().bits().to_be_bytes().to_vec(), "e0c22221647db958"),
        // Of the empty key.
        Golden::Bytes("context/nothing", context::encode(b"", &VersionVector::new()).to_vec(),
            "01 0000 6a45dbdb"),
    ]
}

fn unspaced(hex: &str) -> String {
    hex.split_whitespace().collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = unspaced(hex);
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("hex digits"))
        .collect()
}

#[test]
fn everything_that_travels_or_is_kept_has_the_bytes_written_here() {
    for golden in messages().into_iter().chain(layouts()) {
        let (name, bytes, hex) = match golden {
            Golden::Request(name, request, hex) => (name, request.encode().1, hex),
            Golden::Answer(name, answer, hex) => (name, answer.encode().1, hex),
            Golden::Bytes(name, bytes, hex) => (name, bytes, hex),
        };
        assert_eq!(to_hex(&bytes), unspaced(hex), "{name}");
    }
}

#[test]
fn the_bytes_written_here_read_back() {
    for golden in messages() {
        match golden {
            Golden::Request(name, request, hex) => {
                let read = Request::decode(request.encode().0, &from_hex(hex));
                assert_eq!(read, Some(Ok(request)), "{name}");
            }
            Golden::Answer(name, answer, hex) => {
                let read = Answer::decode(answer.encode().0, &from_hex(hex));
                assert_eq!(read, Some(Ok(answer)), "{name}");
            }
            Golden::Bytes(name, ..) => panic!("{name} is no message"),
        }
    }
    for record in [full_record(), Record::new(), small_record()] {
        assert_eq!(record::decode(&record::to_vec(&record).into()), Ok(record));
    }
    let token = context::encode(b"k", full_record().vv());
    assert_eq!(context::decode(b"k", &token).as_ref(), Ok(full_record().vv()));
    assert_eq!(context::decode(b"l", &token), Err(context::ContextError), "of another key");
}

/// One that is forgotten above would not be held to anything.
#[test]
fn every_message_stands_here() {
    let variants = |prefix: &str| {
        let named = |golden: &Golden| match golden {
            Golden::Request(name, ..) | Golden::Answer(name, ..) | Golden::Bytes(name, ..) => *name,
        };
        let leading = |golden: &Golden| match golden {
            Golden::Request(.., hex) | Golden::Answer(.., hex) | Golden::Bytes(.., hex) => from_hex(hex)[0],
        };
        let mut tags: Vec<u8> =
            messages().iter().filter(|g| named(g).starts_with(prefix)).map(leading).collect();
        tags.dedup();
        tags
    };
    for (prefix, kind, count) in [
        ("client_request", Kind::ClientRequest, 2),
        ("client_answer", Kind::ClientAnswer, 3),
        ("replica_request", Kind::ReplicaRequest, 7),
        ("replica_answer", Kind::ReplicaAnswer, 8),
        ("admin_request", Kind::AdminRequest, 4),
        ("admin_answer", Kind::AdminAnswer, 5),
    ] {
        assert_eq!(variants(prefix), (0..count).collect::<Vec<u8>>(), "{prefix}");
        let body = [count, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let read = if kind.is_request() {
            Request::decode(kind, &body).unwrap().map(drop)
        } else {
            Answer::decode(kind, &body).unwrap().map(drop)
        };
        assert!(
            read.is_err_and(|e| e.to_string().contains("variant")),
            "{prefix} has a variant that is not here"
        );
    }
}

#[test]
fn the_protocol_page_prints_the_same_vectors() {
    let page = include_str!("../../../docs/protocol.md");
    for golden in messages().into_iter().chain(layouts()) {
        let (name, hex) = match golden {
            Golden::Request(name, _, hex) | Golden::Answer(name, _, hex) | Golden::Bytes(name, _, hex) => {
                (name, hex)
            }
        };
        let printed = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert_eq!(printed.map(unspaced), Some(unspaced(hex)), "{name} in docs/protocol.md");
    }
}
